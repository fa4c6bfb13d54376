//! Rung 2: softmax of rows, out[i, j] = exp(x[i, j] − m_i) / Σ_j exp(x[i, j] − m_i) with m_i = max_j x[i, j].
//!
//! You will learn
//! - to reduce a tile along an axis (`sum::<0>()`, `amax::<0>()`), and that a scalar stands beside any tile;
//! - to choose what lies beyond the edge: a width of 1000 is no power of two, so rows are tiles of 1024, and the 24
//!   elements too many must be −∞, which is nothing to a maximum and, after exp, nothing to a sum;
//! - why kernels are fused: the row stays in registers between the three passes over it.
//!
//! The floor: 8 bytes an element, read once and written once. Three separate operations (maximum, exp and sum, division)
//! would move it five times.

use anyhow::Result;
use kiln::prelude::*;
use kiln_examples::{Rung, Setup, Sizes, Work, climb};

/// x `[rows, width]` → out `[rows, width]`; `N` ≥ width. Program: a row.
#[kernel]
fn softmax<const N: usize>(x: &View<f32, 2>, out: &mut Block<f32, 1, N>) {
    let row: Tile<f32, N> = x.select(0, program_id(0)).load_or(0, f32::NEG_INFINITY);
    let e = (row - row.amax::<0>()).exp();
    out.store((e / e.sum::<0>()).reshape());
}

const WIDTH: usize = 1000;

pub fn run(mut setup: Setup) -> Result<Rung> {
    let rows = setup.size;
    // Without the maximum, exp(100) would be more than f32 holds.
    let x = setup.random(rows * WIDTH, -100.0..100.0);
    let dx = setup.tensor(&x, &[rows, WIDTH])?;
    let mut out = setup.output(&[rows, WIDTH])?;

    softmax::<1024>(&dx, &mut out).run()?;
    // exp costs a few units in the last place, the difference in its argument up to 200·2^-24 = 1.2e-5.
    let error = setup.check(&out, rows, 2e-5, |i| {
        let row: Vec<f64> = x[i * WIDTH..][..WIDTH].iter().map(|&v| v as f64).collect();
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|v| (v - max).exp()).sum();
        row.iter().map(|v| (v - max).exp() / sum).collect()
    })?;

    let time = setup.time(|| softmax::<1024>(&dx, &mut out).run())?;
    let problem = format!("{rows} rows of {WIDTH} f32");
    Ok(Rung { problem, error, time, work: Work::Bytes(2 * 4 * rows * WIDTH) })
}

fn main() -> Result<()> {
    climb("02 row softmax", Sizes { interpret: 50, cpu: 1 << 14, cuda: 1 << 18 }, run)
}
