//! The linear kernel in each tile size: what the choice in `kimi::model::ops` rests on.

use super::{poisoned, random};
use crate::cases::{bound, values};
use kiln::{Bench, Device, Element, Tensor, bf16};
use kimi::kernels::linear::{linear, linear_part, linear_tiles, sum_parts};
use kimi::reference::relative_error;

type Run = fn(&Tensor, &Tensor, &mut Tensor) -> kiln::Result<()>;

fn tile<const M: usize, const N: usize, const K: usize>() -> (String, Run) {
    let run: Run = |x, w, y| linear::<bf16, bf16, bf16, bf16, M, N, K, false>(x, w, y).run();
    (format!("{M}x{N}x{K}"), run)
}

/// `E` strips of `X` columns beside `N`, `P` programs of a cluster.
fn tiles<const M: usize, const N: usize, const E: usize, const X: usize, const P: u8>() -> (String, Run) {
    tiles_once::<M, N, E, X, P, false>()
}

/// The same, the weight evicted first if `ONCE`.
fn tiles_once<const M: usize, const N: usize, const E: usize, const X: usize, const P: u8, const ONCE: bool>()
-> (String, Run) {
    let run: Run = |x, w, y| {
        let cluster = usize::from(P);
        let grid = (y.device().multiprocessors()? / cluster).max(1) * cluster;
        linear_tiles::<bf16, bf16, bf16, bf16, M, N, E, X, 64, 16, P, ONCE>(x, w, y).grid(grid).run()
    };
    let width = N + E * X;
    (format!("{M}x{width}x64 in bands of 16, clusters of {P}{}", if ONCE { ", once" } else { "" }), run)
}

/// The inner dimension in `P` parts, added up by a second kernel.
fn parts<const M: usize, const N: usize, const K: usize, const P: usize>() -> (String, Run) {
    let run: Run = |x, w, y| {
        let mut partial = Tensor::uninit(&[P, y.shape()[0], y.shape()[1]], f32::DTYPE, y.device())?;
        linear_part::<bf16, bf16, M, N, K>(x, w, &mut partial).run()?;
        sum_parts::<bf16, 4, 128>(&partial, y).run()
    };
    (format!("{M}x{N}x{K}, {P} parts"), run)
}

/// Times y `[m, n]` = x `[m, k]` · w `[n, k]`ᵀ (bf16) in every tile size and prints a line for each. The first row of
/// each result is compared with f64 before it is timed.
///
/// # Errors
/// If a launch fails or a result is wrong.
pub fn sweep(device: Device, [m, n, k]: [usize; 3]) -> anyhow::Result<()> {
    let x = random::<bf16>(device, &[m, k], 1.0, 1)?;
    let w = random::<bf16>(device, &[n, k], 1.0, 2)?;
    let row = values(&x.select(0, 0)?)?;
    let columns = n.min(256);
    let mut want = vec![];
    for j in 0..columns {
        want.push(row.iter().zip(values(&w.select(0, j)?)?).map(|(x, w)| x * w).sum::<f64>());
    }
    let tiles = [
        tile::<64, 64, 64>(),
        tile::<64, 128, 32>(),
        tile::<64, 128, 64>(),
        tile::<64, 256, 64>(),
        tile::<128, 128, 32>(),
        tile::<128, 128, 64>(),
        tile::<128, 256, 64>(),
        tiles::<128, 256, 0, 64, 1>(),
        tiles::<128, 256, 0, 64, 2>(),
        tiles::<128, 128, 1, 64, 1>(),
        tiles::<128, 128, 1, 64, 2>(),
        tiles::<128, 128, 0, 64, 1>(),
        tiles::<128, 128, 0, 64, 2>(),
        tiles::<64, 256, 0, 64, 1>(),
        tiles::<64, 128, 0, 64, 1>(),
        tiles::<128, 64, 1, 16, 1>(),
        tiles::<128, 64, 1, 16, 2>(),
        tiles::<128, 64, 1, 16, 4>(),
        tiles::<64, 128, 1, 16, 1>(),
        tiles_once::<64, 128, 1, 16, 1, true>(),
        tiles_once::<128, 64, 1, 16, 1, true>(),
        tiles_once::<128, 128, 0, 64, 1, true>(),
        tiles_once::<128, 128, 1, 64, 1, true>(),
        tiles_once::<128, 256, 0, 64, 1, true>(),
        tiles_once::<128, 256, 0, 64, 2, true>(),
        tiles_once::<64, 256, 0, 64, 1, true>(),
        tiles::<64, 128, 1, 16, 2>(),
        tiles::<64, 128, 1, 16, 4>(),
        tiles::<64, 64, 1, 16, 4>(),
        tiles::<64, 128, 0, 64, 2>(),
        tiles::<64, 128, 0, 64, 4>(),
        tiles::<128, 64, 0, 64, 4>(),
        tiles::<256, 128, 0, 64, 1>(),
        tiles::<256, 128, 0, 64, 2>(),
        parts::<128, 128, 64, 2>(),
        parts::<128, 256, 64, 2>(),
        parts::<128, 256, 64, 3>(),
        parts::<128, 256, 64, 4>(),
    ];
    for (name, run) in tiles {
        let mut y = poisoned::<bf16>(device, &[m, n])?;
        run(&x, &w, &mut y)?;
        let error = relative_error(&values(&y.select(0, 0)?)?[..columns], &want);
        anyhow::ensure!(error <= bound(bf16::DTYPE), "tiles of {name}: the result is off by {error:.1e}");
        let us = Bench::new(device).run(|| run(&x, &w, &mut y))?.median().as_secs_f64() * 1e6;
        let tflops = 2.0 * m as f64 * n as f64 * k as f64 / us / 1e6;
        println!("{name:26} {us:11.1} us {tflops:8.1} TFLOP/s");
    }
    Ok(())
}
