//! RMSNorm: `y = x / sqrt(mean(x²) + eps) · weight` ("Root Mean Square Layer Normalization", arXiv 1910.07467).

use kiln::prelude::*;

/// Of rows. x `[n, width]`, weight `[width]` → out `[n, width]`; `H` ≥ width is a power of two.
#[kernel]
pub fn rms_norm<X: Float, W: Float, T: Float, const H: usize>(
    x: &View<X, 2>,
    weight: &View<W, 1>,
    eps: f32,
    out: &mut Block<T, 1, H>,
) {
    let width = x.dim(1).cast::<f32>();
    let x: Tile<f32, H> = x.select(0, program_id(0)).load(0).cast();
    let weight: Tile<f32, H> = weight.load(0).cast();
    let scale = ((x * x).sum::<0>() / width + eps).rsqrt();
    out.store((x * scale * weight).cast::<T>().reshape());
}

/// Of each head, then gated: `out = rms_norm(x) · weight · sigmoid(gate)`.
///
/// x, gate `[n, heads, D]`, weight `[D]` → out `[n, heads, D]`. Program: (token, head).
#[kernel]
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
