//! Mixture of experts: grouped products with SwiGLU, and the weighted sum.
//!
//! An *assignment* `a = token·k + i` says that the token's i-th choice is expert `chosen[token, i]`. For products the
//! assignments are sorted by expert, so that an expert's rows lie together and its weights are read once for all of
//! them; within an expert they keep their order. The sum over a token's experts goes by assignment, so that its order
//! is fixed whoever else is in the batch.

use super::swiglu::{swiglu_row, swiglu_tile};
use kiln::prelude::*;

/// Sorts the assignments by expert. chosen `[n·k]` → place `[n·k]`: where each stands in that order; bounds `[experts, 2]`:
/// first place and number of each expert's. Program: expert; `A` assignments at a time are counted, `B` placed.
#[kernel]
pub fn group_by_expert<const A: usize, const B: usize>(
    chosen: &View<i32, 1>,
    place: &mut View<i32, 1>,
    bounds: &mut View<i32, 2>,
) {
    let expert = program_id(0);
    let mut lower: Tile<i32, A> = zeros();
    for start in (0..chosen.dim(0)).step_by(A) {
        let theirs: Tile<i32, A> = chosen.load_or(start, i32::MAX);
        lower += (theirs < expert).cast::<i32>();
    }
    let first = lower.sum::<0>();
    let mut next = first;
    for start in (0..chosen.dim(0)).step_by(B) {
        let theirs: Tile<i32, B> = chosen.load_or(start, -1);
        let mine = theirs == expert;
        let ones = mine.cast::<i32>();
        let at = ones.cumsum::<0>() - 1 + next;
        let assignment = iota::<B>() + start;
        // SAFETY: an assignment has one expert, and the experts' places do not overlap.
        unsafe { place.scatter_masked(assignment, at, mine) };
        next += ones.sum::<0>();
    }
    // SAFETY: a program writes its own expert's row.
    unsafe {
        bounds.set((expert, 0), first);
        bounds.set((expert, 1), next - first);
    }
}

/// The tokens' rows in the order of the assignments, each read once: `out[place[t·choices + i], :] = x[t, :]`. Program:
/// (token t, `B` columns).
#[kernel(warps = 1)]
pub fn spread_tokens<T: Float, const B: usize>(
    x: &View<T, 2>,
    place: &View<i32, 1>,
    choices: i32,
    out: &mut View<T, 2>,
) {
    let (token, column) = (program_id(0), program_id(1) * B);
    let row: Tile<T, 1, B> = x.load((token, column));
    for assignment in token * choices..(token + 1) * choices {
        // SAFETY: an assignment has a row of its own.
        unsafe { out.store((place.get(assignment), column), row) };
    }
}

/// Cuts every expert's rows into tiles of `M`. bounds from [`group_by_expert`] → tiles `[most, 3]`: expert, first row and
/// end of each tile, `most` at least as many as there are; the others are empty. Program: expert; `E` ≥ experts is a power
/// of two.
#[kernel]
pub fn tile_experts<const M: usize, const E: usize>(bounds: &View<i32, 2>, tiles: &mut View<i32, 2>) {
    let expert = program_id(0);
    let counts: Tile<i32, E, 1> = bounds.load((0, 1));
    let each = (counts.reshape::<D1<E>>() + (M - 1)) / M;
    let before = select(iota::<E>() < expert, each, 0).sum::<0>();
    let (first, count) = (bounds.get((expert, 0)), bounds.get((expert, 1)));
    let mine = (count + (M - 1)) / M;
    // The last expert also writes the tiles that nobody has.
    let end = select(expert == num_programs(0) - 1, tiles.dim(0), before + mine);
    for tile in before..end {
        let row = first + (tile - before) * M;
        // SAFETY: an expert's tiles are its own.
        unsafe {
            tiles.set((tile, 0), expert);
            tiles.set((tile, 1), row);
            tiles.set((tile, 2), first + count);
        }
    }
}

/// gate and up products with SwiGLU: `out[j, :] = silu(x[j, :]·gateᵀ) · (x[j, :]·upᵀ)` of j's expert.
///
/// x `[n·k, in]` and out `[n·k, width]` in the order of assignments, gate, up `[experts, width, in]`, tiles from
/// [`tile_experts`]. Programs along axis 0, each of one tile of `M` assignments by `N` channels after the other, all
/// channels of a row tile next to each other. Rows of a tile beyond its end are the next expert's; they are computed and
/// not stored.
#[kernel(deny(spill, wgmma_serialized))]
pub fn experts_gate_up<T, W, const M: usize, const N: usize, const K: usize>(
    x: &View<T, 2>,
    gate: &View<W, 3>,
    up: &View<W, 3>,
    tiles: &View<i32, 2>,
    out: &mut View<T, 2>,
) where
    T: Float + DotElement<Acc = f32>,
    W: Float,
{
    let across = (out.dim(1) + (N - 1)) / N;
    for item in (program_id(0)..tiles.dim(0) * across).step_by(num_programs(0)) {
        let (tile, channel) = (item / across, item % across * N);
        let (expert, row, end) = (tiles.get((tile, 0)), tiles.get((tile, 1)), tiles.get((tile, 2)));
        if row < end {
            let (gate, up) = (gate.select(0, expert), up.select(0, expert));
            let y = swiglu_tile::<T, W, M, N, K>(x, &gate, &up, row, channel);
            let mut out = out.narrow(0, 0, end);
            // SAFETY: a tile is one program's.
            unsafe { out.store((row, channel), y.cast::<T>()) };
        }
    }
}

/// down product: `out[j, :] = h[j, :]·downᵀ` of j's expert. h `[n·k, width]`, down `[experts, hidden, width]` → out
/// `[n·k, hidden]`. Programs as in [`experts_gate_up`].
#[kernel(deny(spill, wgmma_serialized, bank_conflict))]
pub fn experts_down<T, W, const M: usize, const N: usize, const K: usize>(
    h: &View<T, 2>,
    down: &View<W, 3>,
    tiles: &View<i32, 2>,
    out: &mut View<T, 2>,
) where
    T: Float + DotElement<Acc = f32>,
    W: Float,
{
    let across = (out.dim(1) + (N - 1)) / N;
    for item in (program_id(0)..tiles.dim(0) * across).step_by(num_programs(0)) {
        let (tile, channel) = (item / across, item % across * N);
        let (expert, row, end) = (tiles.get((tile, 0)), tiles.get((tile, 1)), tiles.get((tile, 2)));
        if row < end {
            let down = down.select(0, expert);
            let mut acc: Tile<f32, M, N> = zeros();
            for k in (0..h.dim(1)).step_by(K) {
                let h: Tile<T, M, K> = h.load((row, k));
                let d: Tile<W, N, K> = down.load((channel, k));
                acc = dot(h, d.cast::<T>().t(), acc);
            }
            let mut out = out.narrow(0, 0, end);
            // SAFETY: a tile is one program's.
            unsafe { out.store((row, channel), acc.cast::<T>()) };
        }
    }
}

/// [`experts_gate_up`] for few tokens, not sorted: x `[n, in]`, chosen `[n·k]` → out `[n·k, width]` by assignment.
///
/// Program: (assignment, `N` channels), a warp.
#[kernel(warps = 1, evict_first(gate, up))]
pub fn experts_gate_up_row<T: Float, W: Float, const N: usize, const C: usize, const B: usize>(
    x: &View<T, 2>,
    gate: &View<W, 3>,
    up: &View<W, 3>,
    chosen: &View<i32, 1>,
    choices: i32,
    out: &mut Block<T, 1, N>,
) {
    let assignment = program_id(0);
    let expert = chosen.get(assignment);
    let (x, gate, up) = (x.select(0, assignment / choices), gate.select(0, expert), up.select(0, expert));
    let y = swiglu_row::<T, W, N, C, B>(&x, &gate, &up, out.origin(1));
    out.store(y.cast::<T>().reshape());
}

/// [`experts_down`] for few tokens, by assignment. Programs as in [`experts_gate_up_row`].
#[kernel(warps = 1, evict_first(down))]
pub fn experts_down_row<T: Float, W: Float, const N: usize, const C: usize, const B: usize>(
    h: &View<T, 2>,
    down: &View<W, 3>,
    chosen: &View<i32, 1>,
    out: &mut Block<T, 1, N>,
) {
    let assignment = program_id(0);
    let (h, down) = (h.select(0, assignment), down.select(0, chosen.get(assignment)));
    let sum = super::linear::row_products::<T, W, N, C, B>(&h, &down, out.origin(1)).sum::<1>();
    out.store(sum.cast::<T>().reshape());
}

/// `out[n, :] += Σ_i weights[n, i] · y[place[n·k + i], :]`, in the order of i. y `[n·k, hidden]`, place `[n·k]`: where
/// each assignment's row stands if they are `SORTED`, else not looked at; weights `[n, k]`; out `[n, hidden]` f32.
/// Program: (token, `B` columns). `S` ≥ k rows are in flight together.
#[kernel(warps = 1)]
pub fn combine_experts<T: Float, const SORTED: bool, const S: usize, const B: usize>(
    y: &View<T, 2>,
    place: &View<i32, 1>,
    weights: &View<f32, 2>,
    out: &mut Block<f32, 1, B>,
) {
    let (token, choices) = (program_id(0), weights.dim(1));
    // Beyond the last choice, the last one again, with a weight of 0.
    let choice = |i: usize| (choices - 1).min(i);
    let rows: [Tile<T, B>; S] = std::array::from_fn(|i| {
        let assignment = token * choices + choice(i);
        let row = if SORTED { place.get(assignment) } else { assignment };
        y.select(0, row).load(out.origin(1))
    });
    let mut sum: Tile<f32, B> = out.load().reshape();
    for i in unroll(0..S) {
        let weight = select(choices > i, weights.get((token, choice(i))), 0.0);
        sum += rows[i].cast::<f32>() * weight;
    }
    out.store(sum.reshape());
}
