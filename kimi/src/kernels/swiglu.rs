//! SwiGLU: `silu(x·gateᵀ) · (x·upᵀ)` ("GLU Variants Improve Transformer", arXiv 2002.05202).
//!
//! Both products stay in f32 until they meet: rounded to bf16 before, they would be the largest error of a layer
//! (`docs/performance.md`, entry 78).

use kiln::prelude::*;

/// x `[n, in]`, gate and up `[width, in]` → out `[n, width]`.
#[kernel(deny(spill, wgmma_serialized))]
pub fn linear_swiglu<T, W, const M: usize, const N: usize, const K: usize>(
    x: &View<T, 2>,
    gate: &View<W, 2>,
    up: &View<W, 2>,
    out: &mut Block<T, M, N>,
) where
    T: Float + DotElement<Acc = f32>,
    W: Float,
{
    let y = swiglu_tile::<T, W, M, N, K>(x, gate, up, out.origin(0), out.origin(1));
    out.store(y.cast::<T>());
}

/// [`linear_swiglu`] for one row, or few. Program: (row of x, `N` channels), a warp, as of [`super::linear::linear_row`].
#[kernel(warps = 1, evict_first(gate, up))]
pub fn linear_swiglu_row<T: Float, W: Float, const N: usize, const C: usize, const B: usize>(
    x: &View<T, 2>,
    gate: &View<W, 2>,
    up: &View<W, 2>,
    out: &mut Block<T, 1, N>,
) {
    let y = swiglu_row::<T, W, N, C, B>(&x.select(0, program_id(0)), gate, up, out.origin(1));
    out.store(y.cast::<T>().reshape());
}

/// Of products that [`super::linear::linear_part`] left: partial `[parts, n, 2·width]` f32 (gate, then up), each the sum
/// of its parts in order → out `[n, width]`. Program: (row, `B` channels). `S` ≥ parts is a power of two.
#[kernel(warps = 1)]
pub fn swiglu_parts<T: Float, const S: usize, const B: usize>(partial: &View<f32, 3>, out: &mut Block<T, 1, B>) {
    let (at, width) = (out.origin(1), out.dim(1));
    let rows = partial.select(1, program_id(0));
    let gate: Vec<Tile<f32, 1, B>> = (0..S).map(|part| rows.load((part, at))).collect();
    let up: Vec<Tile<f32, 1, B>> = (0..S).map(|part| rows.load((part, at + width))).collect();
    let mut gated: Tile<f32, 1, B> = zeros();
    let mut upped: Tile<f32, 1, B> = zeros();
    for (gate, up) in gate.into_iter().zip(up) {
        gated += gate;
        upped += up;
    }
    out.store((gated.silu() * upped).cast::<T>());
}

/// `M` rows of x `[n, in]` from `row` on, by `N` channels of gate and up `[width, in]` from `channel` on.
#[device]
pub(super) fn swiglu_tile<T, W, const M: usize, const N: usize, const K: usize>(
    x: &View<T, 2>,
    gate: &View<W, 2>,
    up: &View<W, 2>,
    row: Tile<i32>,
    channel: Tile<i32>,
) -> Tile<f32, M, N>
where
    T: Float + DotElement<Acc = f32>,
    W: Float,
{
    let mut gated: Tile<f32, M, N> = zeros();
    let mut upped: Tile<f32, M, N> = zeros();
    for k in (0..x.dim(1)).step_by(K) {
        let x: Tile<T, M, K> = x.load((row, k));
        let g: Tile<W, N, K> = gate.load((channel, k));
        let u: Tile<W, N, K> = up.load((channel, k));
        gated = dot(x, g.cast::<T>().t(), gated);
        upped = dot(x, u.cast::<T>().t(), upped);
    }
    gated.silu() * upped
}

/// A row x `[in]` by `N` channels of gate and up `[width, in]` from `channel` on. A warp takes whole rows of the weights,
/// `C` chunks of `B` columns at a time, all of whose loads are in flight together.
#[device]
pub(super) fn swiglu_row<T: Float, W: Float, const N: usize, const C: usize, const B: usize>(
    x: &View<T, 1>,
    gate: &View<W, 2>,
    up: &View<W, 2>,
    channel: Tile<i32>,
) -> Tile<f32, N> {
    let mut gated: Tile<f32, N, B> = zeros();
    let mut upped: Tile<f32, N, B> = zeros();
    for k in (0..x.dim(0)).step_by(C * B) {
        let g: [Tile<W, N, B>; C] = std::array::from_fn(|c| gate.load((channel, k + c * B)));
        let u: [Tile<W, N, B>; C] = std::array::from_fn(|c| up.load((channel, k + c * B)));
        let x: [Tile<T, B>; C] = std::array::from_fn(|c| x.load(k + c * B));
        for c in unroll(0..C) {
            let x = x[c].cast::<f32>();
            gated += g[c].cast::<f32>() * x.row();
            upped += u[c].cast::<f32>() * x.row();
        }
    }
    gated.sum::<1>().silu() * upped.sum::<1>()
}
