//! RMSNorm: `y = x / sqrt(mean(x²) + eps) · weight` ("Root Mean Square Layer Normalization", arXiv 1910.07467).
//!
//! A row is read once: its chunks of `B` columns stay in registers. One warp takes a row, so that a sum needs neither
//! shared memory nor barriers, and chunks of 256 waste nothing of a width like 2304 = 9·256.

use kiln::prelude::*;

/// Of rows. x `[n, width]`, weight `[width]` → out `[n, width]`. Program: row. `C` chunks of `B` columns hold a row.
#[kernel(warps = 1)]
pub fn rms_norm<X: Float, W: Float, T: Float, const C: usize, const B: usize>(
    x: &View<X, 2>,
    weight: &View<W, 1>,
    eps: f32,
    out: &mut View<T, 2>,
) {
    let row = program_id(0);
    let weight = load_chunks::<W, C, B>(weight);
    let chunks = load_chunks::<X, C, B>(&x.select(0, row));
    store_chunks(normalised(widened(chunks), x.dim(1), widened(weight), eps), row, out);
}

/// The residual stream takes in what a layer adds, and is normalised: `x += Σ_s delta[s]`, `out = rms_norm(x)`.
///
/// x `[n, width]` f32 (replaced), delta `[parts, n, width]` (sums over pieces of a product's inner dimension, or one
/// whole), weight `[width]` → out `[n, width]`, and if `EXACT` the same in f32: exact `[n, width]`. Program: row, as in
/// [`rms_norm`].
#[kernel(warps = 1)]
pub fn add_rms_norm<D: Float, W: Float, T: Float, const C: usize, const B: usize, const EXACT: bool>(
    x: &mut View<f32, 2>,
    delta: &View<D, 3>,
    weight: &View<W, 1>,
    eps: f32,
    out: &mut View<T, 2>,
    exact: &mut View<f32, 2>,
) {
    let row = program_id(0);
    let mut chunks: [Tile<f32, 1, B>; C] = std::array::from_fn(|c| x.load((row, c * B)));
    for part in 0..delta.dim(0) {
        let more = widened(load_chunks::<D, C, B>(&delta.select(0, part).select(0, row)));
        for c in unroll(0..C) {
            chunks[c] = chunks[c] + more[c].reshape::<D2<1, B>>();
        }
    }
    for c in unroll(0..C) {
        // SAFETY: a row has one program.
        unsafe { x.store((row, c * B), chunks[c]) };
    }
    // Not earlier: the row and a part of what it takes in fill the registers.
    let weight = load_chunks::<W, C, B>(weight);
    let y = normalised(chunks.map(|chunk| chunk.reshape()), x.dim(1), widened(weight), eps);
    store_chunks(y, row, out);
    if EXACT {
        store_chunks(y, row, exact);
    }
}

/// A row in chunks, zeros beyond its end. All loads come first, so that all are in flight together.
#[device]
fn load_chunks<X: Float, const C: usize, const B: usize>(row: &View<X, 1>) -> [Tile<X, B>; C] {
    std::array::from_fn(|c| row.load(c * B))
}

#[device]
fn widened<X: Float, const C: usize, const B: usize>(chunks: [Tile<X, B>; C]) -> [Tile<f32, B>; C] {
    chunks.map(|chunk| chunk.cast())
}

/// `x / sqrt(mean(x²) + eps) · weight`.
#[device]
fn normalised<const C: usize, const B: usize>(
    x: [Tile<f32, B>; C],
    width: Tile<i32>,
    weight: [Tile<f32, B>; C],
    eps: Tile<f32>,
) -> [Tile<f32, B>; C] {
    let mut squares: Tile<f32, B> = zeros();
    for chunk in x {
        squares += chunk * chunk;
    }
    let scale = (squares.sum::<0>() / width.cast::<f32>() + eps).rsqrt();
    std::array::from_fn(|c| x[c] * scale * weight[c])
}

#[device]
fn store_chunks<T: Float, const C: usize, const B: usize>(y: [Tile<f32, B>; C], row: Tile<i32>, out: &mut View<T, 2>) {
    for c in unroll(0..C) {
        // SAFETY: a row has one program.
        unsafe { out.store((row, c * B), y[c].cast::<T>().reshape::<D2<1, B>>()) };
    }
}

/// Of each head, then gated: `out = rms_norm(x) · weight · sigmoid(gate)`.
///
/// x, gate `[n, heads, D]`, weight `[D]` → out `[n, heads, D]`. Program: (token, head).
#[kernel(warps = 1)]
pub fn gated_rms_norm<T: Float, W: Float, const D: usize>(
    x: &View<T, 3>,
    gate: &View<T, 3>,
    weight: &View<W, 1>,
    eps: f32,
    out: &mut Block<T, 1, 1, D>,
) {
    let (token, head) = (program_id(0), program_id(1));
    let x: Tile<f32, D> = x.select(0, token).select(0, head).load(0).cast();
    let gate: Tile<f32, D> = gate.select(0, token).select(0, head).load(0).cast();
    let weight: Tile<f32, D> = weight.load(0).cast();
    let scale = ((x * x).sum::<0>() / (D as f32) + eps).rsqrt();
    out.store((x * scale * weight * gate.sigmoid()).cast::<T>().reshape());
}
