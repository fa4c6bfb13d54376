//! Rung 13: a product whose inner dimension is long and whose result is one tile: programs share the inner dimension, and add
//! up what they have in memory ("split-K").
//!
//! You will learn
//! - `store_add`: adds a tile to a box of memory, each element in an atomic step. Programs may add to the same box, in
//!   whichever order they come; it is `unsafe`, as the launch must do nothing else with these elements;
//! - `num_programs(2)`: the launch says into how many shares the work is cut, the kernel does not care;
//! - the price: sums of floats depend on their order, so the last bits may differ from run to run. Where they must not, let
//!   every program store its part, and add the parts up in a second kernel (the model's `linear_part` and `sum_parts`).
//!
//! The ceiling: multiply-adds of f32. One program alone would have one multiprocessor's, or one core's, part of it.

use anyhow::Result;
use kiln::Tensor;
use kiln::prelude::*;
use kiln_examples::{Rung, Setup, Sizes, Work, climb};

/// Rows and columns of the result.
const ROWS: usize = 32;
const COLUMNS: usize = 64;

/// c += a·b, a `[m, k]`, b `[k, n]`. Program: a block of c, and along axis 2 a share of the inner dimension.
#[kernel]
fn matmul<const M: usize, const N: usize, const K: usize>(a: &View<f32, 2>, b: &View<f32, 2>, c: &mut View<f32, 2>) {
    let (i, j, depth) = (program_id(0) * M, program_id(1) * N, a.dim(1));
    // In whole steps; the last shares may have less, or nothing.
    let share = (depth + (num_programs(2) * K - 1)) / (num_programs(2) * K) * K;
    let from = program_id(2) * share;
    let mut sum: Tile<f32, M, N> = zeros();
    for k in (from..(from + share).min(depth)).step_by(K) {
        let (a, b): (Tile<f32, M, K>, Tile<f32, K, N>) = (a.load((i, k)), b.load((k, j)));
        sum = dot(a, b, sum);
    }
    // SAFETY: programs of this launch only add to c.
    unsafe { c.store_add((i, j), sum) };
}

/// c = a·b, in twice as many shares as programs run side by side.
fn launch(a: &Tensor, b: &Tensor, c: &mut Tensor) -> kiln::Result<()> {
    c.fill(0.0)?;
    let shares = 2 * a.device().multiprocessors()?;
    matmul::<ROWS, COLUMNS, 32>(a, b, c).grid([1, 1, shares]).run()
}

pub fn run(mut setup: Setup) -> Result<Rung> {
    let depth = setup.size;
    let (a, b) = (setup.random(ROWS * depth, -1.0..1.0), setup.random(depth * COLUMNS, -1.0..1.0));
    let (da, db) = (setup.tensor(&a, &[ROWS, depth])?, setup.tensor(&b, &[depth, COLUMNS])?);
    let mut c = setup.output(&[ROWS, COLUMNS])?;

    launch(&da, &db, &mut c)?;
    // As on rung 3, √n·2^-24.
    let tolerance = 1e-6 + (depth as f64).sqrt() * 2f64.powi(-24);
    let error = setup.check(&c, ROWS, tolerance, |i| {
        let mut row = vec![0.0; COLUMNS];
        for (a, b) in a[i * depth..][..depth].iter().zip(b.chunks_exact(COLUMNS)) {
            row.iter_mut().zip(b).for_each(|(c, &b)| *c += f64::from(*a) * f64::from(b));
        }
        row
    })?;

    let time = setup.time(|| launch(&da, &db, &mut c))?;
    let work = Work::Flops(2 * ROWS * depth * COLUMNS);
    Ok(Rung { problem: format!("{ROWS}×{depth} by {depth}×{COLUMNS}, f32"), error, time, work })
}

fn main() -> Result<()> {
    climb("13 matmul, split", Sizes { interpret: 500, cpu: 100_000, cuda: 1_000_000 }, run)
}
