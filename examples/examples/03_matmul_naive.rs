//! Rung 3: a matrix product the naive way, c[i, j] = Σ_k a[i, k] · b[k, j], one program per element.
//!
//! You will learn
//! - that a `for` over a range is a loop on the device, and that variables assigned in it are carried around it;
//! - to read single elements with `get`;
//! - what *arithmetic intensity* is. The product needs 2·n³ operations on 3·n² numbers, so memory should not matter; but
//!   here each multiplication fetches two numbers of its own, 4 bytes an operation, and that is the speed.
//!
//! The ceiling: what the arithmetic units can do. The next two rungs close the distance by reusing what was fetched.

use anyhow::Result;
use kiln::prelude::*;
use kiln_examples::{Rung, Setup, Sizes, Work, climb, matmul_row};

/// a `[m, k]`, b `[k, n]` → c `[m, n]`. Program: an element of c.
#[kernel]
fn matmul(a: &View<f32, 2>, b: &View<f32, 2>, c: &mut Block<f32, 1, 1>) {
    let (i, j) = (program_id(0), program_id(1));
    let mut sum: Tile<f32> = zeros();
    for k in 0..a.dim(1) {
        sum += a.get((i, k)) * b.get((k, j));
    }
    c.store(sum.splat());
}

pub fn run(mut setup: Setup) -> Result<Rung> {
    let n = setup.size;
    let (a, b) = (setup.random(n * n, -1.0..1.0), setup.random(n * n, -1.0..1.0));
    let (da, db) = (setup.tensor(&a, &[n, n])?, setup.tensor(&b, &[n, n])?);
    let mut c = setup.output(&[n, n])?;

    matmul(&da, &db, &mut c).run()?;
    // A sum of n products in f32: n roundings of 2^-24 that rarely go the same way, of partial sums about as large as
    // the result. √n·2^-24 is 4e-6 at n = 4096.
    let error = setup.check(&c, n, 1e-5, |i| matmul_row(&a, &b, n, i))?;

    let time = setup.time(|| matmul(&da, &db, &mut c).run())?;
    Ok(Rung { problem: format!("{n}³, f32"), error, time, work: Work::Flops(2 * n * n * n) })
}

fn main() -> Result<()> {
    climb("03 matmul, naive", Sizes { interpret: 20, cpu: 512, cuda: 4096 }, run)
}
