//! Rung 4: a matrix product in tiles, c = Σ_k (column k of a) ⊗ (row k of b).
//!
//! You will learn
//! - to reuse: a program computes M×N elements, and the M + N numbers that it fetches per step serve M·N
//!   multiplications, as many bytes as before for M·N/(M + N) times the work;
//! - outer products: a vector as `.col()` beside a vector as `.row()` makes a matrix;
//! - that tile sizes are compile-time parameters: the same kernel serves any device, each with its own numbers.
//!
//! The ceiling: the arithmetic units for f32. The tile of sums must fit into registers; too large a tile goes back and
//! forth to memory, too small a one fetches too often.

use anyhow::Result;
use kiln::prelude::*;
use kiln::{Device, Tensor};
use kiln_examples::{Rung, Setup, Sizes, Work, climb, matmul_row};

/// a `[m, k]`, b `[k, n]` → c `[m, n]`. Program: a block of c.
#[kernel]
fn matmul<const M: usize, const N: usize>(a: &View<f32, 2>, b: &View<f32, 2>, c: &mut Block<f32, M, N>) {
    let mut sum: Tile<f32, M, N> = zeros();
    for k in 0..a.dim(1) {
        let column: Tile<f32, M> = a.select(1, k).load(c.origin(0));
        let row: Tile<f32, N> = b.select(0, k).load(c.origin(1));
        sum += column.col() * row.row();
    }
    c.store(sum);
}

/// With the tile that suits the device.
fn launch(a: &Tensor, b: &Tensor, c: &mut Tensor) -> kiln::Result<()> {
    match a.device() {
        Device::Cuda(_) => matmul::<64, 64>(a, b, c).run(),
        _ => matmul::<8, 32>(a, b, c).run(),
    }
}

pub fn run(mut setup: Setup) -> Result<Rung> {
    let n = setup.size;
    let (a, b) = (setup.random(n * n, -1.0..1.0), setup.random(n * n, -1.0..1.0));
    let (da, db) = (setup.tensor(&a, &[n, n])?, setup.tensor(&b, &[n, n])?);
    let mut c = setup.output(&[n, n])?;

    launch(&da, &db, &mut c)?;
    // As on rung 3: √n·2^-24 and some room.
    let error = setup.check(&c, n, 1e-5, |i| matmul_row(&a, &b, n, i))?;

    let time = setup.time(|| launch(&da, &db, &mut c))?;
    Ok(Rung { problem: format!("{n}³, f32"), error, time, work: Work::Flops(2 * n * n * n) })
}

fn main() -> Result<()> {
    climb("04 matmul, tiled", Sizes { interpret: 50, cpu: 512, cuda: 4096 }, run)
}
