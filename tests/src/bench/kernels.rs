//! Kernels that only the benchmarks need: a copy, a softmax over rows, random data made where it is used.

use kiln::prelude::*;

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

/// Softmax of each row, in two passes: highest and sum (kept per lane, put together once), then the result.
///
/// x `[rows, columns]` → out, `B` columns at a time. Program: row.
#[kernel]
pub fn softmax<T: Float, const B: usize>(x: &View<T, 2>, out: &mut View<T, 2>) {
    let row = program_id(0);
    let x = x.select(0, row);
    // Lower than any score and yet finite, so that lanes which see no column subtract no infinities.
    let mut highest: Tile<f32, B> = full(-1e30);
    let mut total: Tile<f32, B> = zeros();
    for start in (0..x.dim(0)).step_by(B) {
        let raw: Tile<T, B> = x.load(start);
        let value = select(iota::<B>() + start < x.dim(0), raw.cast::<f32>(), f32::NEG_INFINITY);
        let new = highest.max(value);
        total = total * (highest - new).exp() + (value - new).exp();
        highest = new;
    }
    let top = highest.amax::<0>();
    let sum = (total * (highest - top).exp()).sum::<0>();
    for start in (0..x.dim(0)).step_by(B) {
        let value: Tile<T, B> = x.load(start);
        let p = (value.cast::<f32>() - top).exp() / sum;
        // SAFETY: a program writes its own row.
        unsafe { out.store((row, start), p.cast::<T>().reshape::<D2<1, B>>()) };
    }
}

/// out ← x as another dtype.
#[kernel]
pub fn cast<T: Element, U: Element, const B: usize>(x: &View<T, 1>, out: &mut Block<U, B>) {
    let values: Tile<T, B> = x.load(out.origin(0));
    out.store(values.cast::<U>());
}
