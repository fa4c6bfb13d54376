//! Kernels that only the benchmarks need: a copy, a softmax over rows, random data made where it is used.

use kiln::prelude::*;
use std::f32::consts::LOG2_E;

/// out ← x, as fast as the memory allows.
#[kernel]
pub fn copy<const B: usize>(x: &View<i32, 1>, out: &mut Block<i32, B>) {
    let values: Tile<i32, B> = x.load(out.origin(0));
    out.store(values);
}

/// x ← x + 1: a launch with next to nothing in it.
#[kernel]
pub fn increment<const B: usize>(x: &mut Block<f32, B>) {
    x.store(x.load() + 1.0);
}

/// Random numbers of mean 0 and about deviation `scale`, a pure function of place and seed: the sum of two uniform
/// ones, centred, which has no tails.
#[kernel]
pub fn random<T: Float, const B: usize>(seed: u32, scale: f32, out: &mut Block<T, B>) {
    let at: Tile<i32, B> = iota::<B>() + out.origin(0);
    let bits = scramble(scramble(at.cast::<u32>() + seed));
    let low = (bits & 0xffffu32).cast::<f32>();
    let high = (bits >> 16).cast::<f32>();
    // Two uniform numbers of variance 1/12 each have √6 deviations between their sum and its mean per unit.
    let x = ((low + high) * (1.0 / 65_536.0) - 1.0) * 2.449_49;
    out.store((x * scale).cast::<T>());
}

/// MurmurHash3's 32-bit finaliser.
#[device]
fn scramble<S: Shape>(x: Tile<u32, S>) -> Tile<u32, S> {
    let x = (x ^ (x >> 16)) * 0x85EB_CA6Bu32;
    let x = (x ^ (x >> 13)) * 0xC2B2_AE35u32;
    x ^ (x >> 16)
}

/// Softmax of rows that a program holds: x `[rows, columns]` → out, with `N` ≥ columns. Program: `R` rows, of `P` warps.
#[kernel(warps = P)]
pub fn softmax<T: Float, const R: usize, const N: usize, const P: u8>(x: &View<T, 2>, out: &mut Block<T, R, N>) {
    let rows: Tile<T, R, N> = x.load_or((out.origin(0), 0), full(f64::NEG_INFINITY));
    let rows = rows.cast::<f32>() * LOG2_E;
    let e = (rows - rows.amax::<1>().col()).exp2();
    out.store((e * e.sum::<1>().recip().col()).cast::<T>());
}

/// Softmax of rows that are longer than what a program holds: x `[rows, columns]` → out, with C·KEPT·B ≥ columns. A
/// row is a cluster of `C` ≤ 8 programs', each of `P` warps, and in registers while they exchange, once, what its parts have
/// as highest scores and sums. Program: `KEPT` blocks of `B` columns of a row.
#[kernel(warps = P, cluster = C, deny(spill))]
pub fn softmax_long<T: Float, const KEPT: usize, const B: usize, const P: u8, const C: u8>(
    x: &View<T, 2>,
    out: &mut View<T, 2>,
) {
    let programs = usize::from(C);
    let (row, part) = (program_id(0) / programs, program_id(0) % programs);
    let first = part * (KEPT * B);
    assert!(x.dim(1) <= programs * KEPT * B, "columns that no program has");
    let x = x.select(0, row);
    let kept: [Tile<T, B>; KEPT] = std::array::from_fn(|c| x.load_or(first + c * B, full(f64::NEG_INFINITY)));
    let scores = kept.map(|block| block.cast::<f32>() * LOG2_E);
    // Per lane, and put together once.
    let highest = scores.into_iter().reduce(|highest, block| highest.max(block)).expect("a block at least");
    let own = highest.amax::<0>();
    // A part without columns has nothing but -∞.
    let zero: Tile<f32> = full(0.0);
    let base: Tile<f32> = select(own == f32::NEG_INFINITY, zero, own);
    let mut total: Tile<f32, B> = zeros();
    for block in scores {
        total += (block - base).exp2();
    }
    let mine = iota::<8>() == part;
    let tops: Tile<f32, 8> = select(mine, own.splat(), f32::NEG_INFINITY);
    let totals: Tile<f32, 8> = select(mine, total.sum::<0>().splat(), 0.0);
    let all: Tile<f32, 16> = tops.join(totals, 0).cluster_max();
    let (tops, totals): (Tile<f32, 8>, Tile<f32, 8>) = (all.slice([0]), all.slice([8]));
    let top = tops.amax::<0>();
    let scale = (base - top).exp2() * (totals * (tops - top).exp2()).sum::<0>().recip();
    for c in unroll(0..KEPT) {
        let p = (scores[c] - base).exp2() * scale;
        // SAFETY: a program writes its own columns.
        unsafe { out.store((row, first + c * B), p.cast::<T>().reshape::<D2<1, B>>()) };
    }
}

/// out ← x as another dtype.
#[kernel]
pub fn cast<T: Element, U: Element, const B: usize>(x: &View<T, 1>, out: &mut Block<U, B>) {
    let values: Tile<T, B> = x.load(out.origin(0));
    out.store(values.cast::<U>());
}
