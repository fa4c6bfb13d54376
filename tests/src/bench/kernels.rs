//! Kernels that only the benchmarks need: a copy, a softmax over rows, random data made where it is used.

use kiln::prelude::*;
use std::f32::consts::LOG2_E;

/// out ← x, as fast as the memory allows.
#[kernel]
pub fn copy<const B: usize>(x: &View<i32, 1>, out: &mut Block<i32, B>) {
    let values: Tile<i32, B> = x.load(out.origin(0));
    out.store(values);
}

/// The sum of each piece of `B` elements: all of x is read, and next to nothing written. `ONCE`: it leaves room in the cache
/// for what others have written. Program: a piece.
#[kernel(evict_first(x if ONCE))]
pub fn sums<const B: usize, const ONCE: bool>(x: &View<f32, 1>, out: &mut Block<f32, 1>) {
    let piece: Tile<f32, B> = x.load(out.origin(0) * B);
    out.store(piece.sum::<0>().reshape());
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
    let rows = rows.cast::<f32>();
    let top = rows.amax::<1>() * LOG2_E;
    let e = rows.mul_add(LOG2_E, (-top).col()).exp2();
    out.store((e * e.sum::<1>().recip().col()).cast::<T>());
}

/// Softmax of rows that are longer than what a program holds: x `[rows, columns]` → out, with C·KEPT·B ≥ columns. A
/// row is a cluster of `C` ≤ 8 programs', each of `P` warps, and in shared memory from its one reading until it has been
/// written; what its parts have as highest scores and sums they exchange once. Program: `KEPT` blocks of `B` = 8·`L` columns
/// of a row.
#[kernel(warps = P, cluster = C, deny(spill))]
pub fn softmax_long<T: Float, const KEPT: usize, const B: usize, const L: usize, const P: u8, const C: u8>(
    x: &View<T, 2>,
    out: &mut View<T, 2>,
) {
    let programs = usize::from(C);
    let (row, part) = (program_id(0) / programs, program_id(0) % programs);
    let first = part * (KEPT * B);
    let columns = x.dim(1);
    assert!(columns <= programs * KEPT * B, "columns that no program has");
    let x = x.select(0, row);
    // Of each thread's columns; of none the highest is a number, as -∞ has no difference to itself.
    let none = f32::MIN / 2.0;
    let mut tops: Tile<f32, L> = full(f64::from(none));
    let mut totals: Tile<f32, L> = zeros();
    for c in (0..KEPT * B).step_by(B).stages(KEPT as u8) {
        let block: Tile<T, B> = x.load(first + c);
        let scores = select(iota::<B>() < columns - (first + c), block.cast::<f32>(), none);
        let scores: Tile<f32, L, 8> = scores.reshape();
        let top = tops.max(scores.amax::<1>());
        let more = scores.mul_add(LOG2_E, (top * -LOG2_E).col()).exp2();
        totals = totals * ((tops - top) * LOG2_E).exp2() + more.sum::<1>();
        tops = top;
    }
    let top = tops.amax::<0>();
    let total = (totals * ((tops - top) * LOG2_E).exp2()).sum::<0>();
    let mine = iota::<8>() == part;
    let tops: Tile<f32, 8> = select(mine, top.splat(), f32::NEG_INFINITY);
    let totals: Tile<f32, 8> = select(mine, total.splat(), 0.0);
    let all: Tile<f32, 16> = tops.join(totals, 0).cluster_max();
    let (tops, totals): (Tile<f32, 8>, Tile<f32, 8>) = (all.slice([0]), all.slice([8]));
    let top = tops.amax::<0>();
    let scale = (totals * ((tops - top) * LOG2_E).exp2()).sum::<0>().recip();
    let minus_top = top * -LOG2_E;
    for c in (0..KEPT * B).step_by(B).stages(KEPT as u8) {
        let block: Tile<T, B> = x.load(first + c);
        let p = block.cast::<f32>().mul_add(LOG2_E, minus_top).exp2() * scale;
        // SAFETY: a program writes its own columns.
        unsafe { out.store((row, first + c), p.cast::<T>().reshape::<D2<1, B>>()) };
    }
}

/// out ← x as another dtype.
#[kernel]
pub fn cast<T: Element, U: Element, const B: usize>(x: &View<T, 1>, out: &mut Block<U, B>) {
    let values: Tile<T, B> = x.load(out.origin(0));
    out.store(values.cast::<U>());
}
