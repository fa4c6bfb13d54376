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

/// Softmax of rows that are longer than what a program holds: x `[rows, columns]` → out. Program: row, of `P` warps.
///
/// The first `KEPT` blocks of `B` columns are read once and stay in registers; the others are read twice, the second time
/// backwards, so that the cache still has what was read last. Highest and sum are kept per lane and put together once.
#[kernel(warps = P, evict_first(out))]
pub fn softmax_long<T: Float, const KEPT: usize, const B: usize, const P: u8>(x: &View<T, 2>, out: &mut View<T, 2>) {
    let row = program_id(0);
    let x = x.select(0, row);
    let (first, columns) = (KEPT * B, x.dim(0));
    let kept: [Tile<T, B>; KEPT] = std::array::from_fn(|c| x.load_or(c * B, full(f64::NEG_INFINITY)));
    // Lower than any score and yet finite, so that lanes which see no column subtract no infinities.
    let mut highest: Tile<f32, B> = full(-1e30);
    let mut total: Tile<f32, B> = zeros();
    for start in (first..columns).step_by(4 * B) {
        let values = four::<T, B>(&x, start);
        let new = values.into_iter().fold(highest, |highest, value| highest.max(value));
        total *= (highest - new).exp2();
        for value in values {
            total += (value - new).exp2();
        }
        highest = new;
    }
    let before = highest;
    for chunk in kept {
        highest = highest.max(chunk.cast::<f32>() * LOG2_E);
    }
    total *= (before - highest).exp2();
    for chunk in kept {
        total += (chunk.cast::<f32>() * LOG2_E - highest).exp2();
    }
    let top = highest.amax::<0>();
    let scale = (total * (highest - top).exp2()).sum::<0>().recip();
    let steps = (columns - first + (4 * B - 1)) / (4 * B);
    for step in 0..steps {
        let start = (steps - 1 - step) * (4 * B) + first;
        let values = four::<T, B>(&x, start);
        for i in unroll(0..4) {
            let p = (values[i] - top).exp2() * scale;
            // SAFETY: a program writes its own row.
            unsafe { out.store((row, start + i * B), p.cast::<T>().reshape::<D2<1, B>>()) };
        }
    }
    for c in unroll(0..KEPT) {
        let p = (kept[c].cast::<f32>() * LOG2_E - top).exp2() * scale;
        // SAFETY: a program writes its own row.
        unsafe { out.store((row, c * B), p.cast::<T>().reshape::<D2<1, B>>()) };
    }
}

/// out ← x as another dtype.
#[kernel]
pub fn cast<T: Element, U: Element, const B: usize>(x: &View<T, 1>, out: &mut Block<U, B>) {
    let values: Tile<T, B> = x.load(out.origin(0));
    out.store(values.cast::<U>());
}

/// Four blocks of scores in units of log2, -inf beyond the row; all are in flight together.
#[device]
fn four<T: Float, const B: usize>(x: &View<T, 1>, start: Tile<i32>) -> [Tile<f32, B>; 4] {
    let raw: [Tile<T, B>; 4] = std::array::from_fn(|i| x.load_or(start + i * B, full(f64::NEG_INFINITY)));
    raw.map(|block| block.cast::<f32>() * LOG2_E)
}
