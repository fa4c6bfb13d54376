//! Rung 1: adding two vectors, out[i] = x[i] + y[i].
//!
//! You will learn
//! - that a kernel is a function run by many *programs*, each with a number, which compute on *tiles*;
//! - that `&View` is read, and `&mut Block` is the piece of an output that belongs to this program;
//! - that nothing special is needed at the end: what a tile reaches beyond a view is read as 0 and not written.
//!
//! The floor: 12 bytes an element (two read, one written) for one addition. Arithmetic is free here, so the ceiling is
//! the bandwidth of the memory.

use anyhow::Result;
use kiln::prelude::*;
use kiln_examples::{Rung, Setup, Sizes, Work, climb};

/// x, y `[n]` → out `[n]`. Program i: elements i·B … i·B + B − 1.
#[kernel]
fn add<const B: usize>(x: &View<f32, 1>, y: &View<f32, 1>, out: &mut Block<f32, B>) {
    let at = out.origin(0);
    let x: Tile<f32, B> = x.load(at);
    let y: Tile<f32, B> = y.load(at);
    out.store(x + y);
}

pub fn run(mut setup: Setup) -> Result<Rung> {
    let n = setup.size;
    let (x, y) = (setup.random(n, -1.0..1.0), setup.random(n, -1.0..1.0));
    let (dx, dy) = (setup.tensor(&x, &[n])?, setup.tensor(&y, &[n])?);
    let mut out = setup.output(&[n])?;

    // The number of programs follows from the blocks of the output: ceil(n / 1024).
    add::<1024>(&dx, &dy, &mut out).run()?;
    // One addition rounds once: at most 2^-24.
    let error = setup.check(&out, 1, 6e-8, |_| x.iter().zip(&y).map(|(&x, &y)| x as f64 + y as f64).collect())?;

    let time = setup.time(|| add::<1024>(&dx, &dy, &mut out).run())?;
    Ok(Rung { problem: format!("{n} of f32"), error, time, work: Work::Bytes(3 * 4 * n) })
}

fn main() -> Result<()> {
    climb("01 vector add", Sizes { interpret: 10_000, cpu: 1 << 24, cuda: 1 << 28 }, run)
}
