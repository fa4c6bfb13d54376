//! Mixture of experts: grouped products with SwiGLU, and the weighted sum.
//!
//! An *assignment* `a = token·k + i` says that the token's i-th choice is expert `chosen[token, i]`. Results are stored
//! by assignment, so that the sum over a token's experts has a fixed order whoever else is in the batch.

use kiln::prelude::*;

/// Lists the assignments of each expert, in order. chosen `[n·k]` → list `[experts, n·k]`, count `[experts]`.
/// Program: expert. `B` assignments are looked at at a time.
#[kernel]
pub fn group_by_expert<const B: usize>(chosen: &View<i32, 1>, list: &mut View<i32, 2>, count: &mut View<i32, 1>) {
    let expert = program_id(0);
    let mut found: Tile<i32> = zeros();
    for start in (0..chosen.dim(0)).step_by(B) {
        let theirs: Tile<i32, B> = chosen.load_or(start, -1);
        let mine = theirs == expert;
        let ones = mine.cast::<i32>();
        let place = ones.cumsum::<0>() - 1 + found;
        let row: Tile<i32, B> = expert.splat();
        // SAFETY: a program writes its own expert's row; places of the unmasked are distinct.
        unsafe { list.scatter_masked((row, place), iota::<B>() + start, mine) };
        found += ones.sum::<0>();
    }
    // SAFETY: as above.
    unsafe { count.set(expert, found) };
}

/// gate and up products of many tokens, with SwiGLU: `out[a, :] = silu(x·gateᵀ) · (x·upᵀ)` with x the token of a.
///
/// x `[n, in]`, gate, up `[experts, width, in]` → out `[n·k, width]`. Program: (row tile, channel tile, expert); `M`
/// assignments by `N` channels.
#[kernel]
pub fn experts_gate_up<T, W, const M: usize, const N: usize, const K: usize>(
    x: &View<T, 2>,
    gate: &View<W, 3>,
    up: &View<W, 3>,
    list: &View<i32, 2>,
    count: &View<i32, 1>,
    choices: i32,
    out: &mut View<T, 2>,
) where
    T: Float + DotElement<Acc = f32>,
    W: Float,
{
    let (first, channel, expert) = (program_id(0) * M, program_id(1) * N, program_id(2));
    let count = count.get(expert);
    if first < count {
        let assignment: Tile<i32, M> = list.select(0, expert).narrow(0, 0, count).load(first);
        let valid = iota::<M>() + first < count;
        let token = assignment / choices;
        let (gate, up) = (gate.select(0, expert), up.select(0, expert));
        let mut gated: Tile<f32, M, N> = zeros();
        let mut upped: Tile<f32, M, N> = zeros();
        for k in (0..x.dim(1)).step_by(K) {
            let x: Tile<T, M, K> =
                x.gather_masked((token.col().tile(), (iota::<K>() + k).row().tile()), valid.col(), 0.0);
            let g: Tile<W, N, K> = gate.load((channel, k));
            let u: Tile<W, N, K> = up.load((channel, k));
            gated = dot(x, g.cast::<T>().t(), gated);
            upped = dot(x, u.cast::<T>().t(), upped);
        }
        let value = (gated.silu() * upped).cast::<T>();
        let columns: Tile<i32, M, N> = (iota::<N>() + channel).row().tile();
        // SAFETY: an assignment stands in one list once.
        unsafe { out.scatter_masked((assignment.col().tile(), columns), value, valid.col()) };
    }
}

/// down product of many tokens: `out[a, :] = h[a, :]·downᵀ` of a's expert. h `[n·k, width]`, down
/// `[experts, hidden, width]` → out `[n·k, hidden]`. Programs as in [`experts_gate_up`].
#[kernel]
pub fn experts_down<T, W, const M: usize, const N: usize, const K: usize>(
    h: &View<T, 2>,
    down: &View<W, 3>,
    list: &View<i32, 2>,
    count: &View<i32, 1>,
    out: &mut View<T, 2>,
) where
    T: Float + DotElement<Acc = f32>,
    W: Float,
{
    let (first, channel, expert) = (program_id(0) * M, program_id(1) * N, program_id(2));
    let count = count.get(expert);
    if first < count {
        let assignment: Tile<i32, M> = list.select(0, expert).narrow(0, 0, count).load(first);
        let valid = iota::<M>() + first < count;
        let down = down.select(0, expert);
        let mut acc: Tile<f32, M, N> = zeros();
        for k in (0..h.dim(1)).step_by(K) {
            let h: Tile<T, M, K> =
                h.gather_masked((assignment.col().tile(), (iota::<K>() + k).row().tile()), valid.col(), 0.0);
            let d: Tile<W, N, K> = down.load((channel, k));
            acc = dot(h, d.cast::<T>().t(), acc);
        }
        let columns: Tile<i32, M, N> = (iota::<N>() + channel).row().tile();
        // SAFETY: an assignment stands in one list once.
        unsafe { out.scatter_masked((assignment.col().tile(), columns), acc.cast::<T>(), valid.col()) };
    }
}

/// [`experts_gate_up`] for few tokens, without lists. Program: (assignment, channel tile).
#[kernel]
pub fn experts_gate_up_row<T: Float, W: Float, const N: usize, const K: usize>(
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
    let channel = out.origin(1);
    let mut gated: Tile<f32, N, K> = zeros();
    let mut upped: Tile<f32, N, K> = zeros();
    for k in (0..x.dim(0)).step_by(K) {
        let x: Tile<f32, K> = x.load(k).cast();
        let g: Tile<f32, N, K> = gate.load((channel, k)).cast();
        let u: Tile<f32, N, K> = up.load((channel, k)).cast();
        gated += g * x.row();
        upped += u * x.row();
    }
    out.store((gated.sum::<1>().silu() * upped.sum::<1>()).cast::<T>().reshape());
}

/// [`experts_down`] for few tokens. Program: (assignment, channel tile).
#[kernel]
pub fn experts_down_row<T: Float, W: Float, const N: usize, const K: usize>(
    h: &View<T, 2>,
    down: &View<W, 3>,
    chosen: &View<i32, 1>,
    out: &mut Block<T, 1, N>,
) {
    let assignment = program_id(0);
    let (h, down) = (h.select(0, assignment), down.select(0, chosen.get(assignment)));
    let mut acc: Tile<f32, N, K> = zeros();
    for k in (0..h.dim(0)).step_by(K) {
        let h: Tile<f32, K> = h.load(k).cast();
        let d: Tile<f32, N, K> = down.load((out.origin(1), k)).cast();
        acc += d * h.row();
    }
    out.store(acc.sum::<1>().cast::<T>().reshape());
}

/// `out[n, :] += Σ_i weights[n, i] · y[n·k + i, :]`, in the order of i. y `[n·k, hidden]`, out `[n, hidden]` f32.
#[kernel]
pub fn combine_experts<T: Float, const B: usize>(y: &View<T, 2>, weights: &View<f32, 2>, out: &mut Block<f32, 1, B>) {
    let (token, choices) = (program_id(0), weights.dim(1));
    let mut sum: Tile<f32, B> = out.load().reshape();
    for i in 0..choices {
        let y: Tile<f32, B> = y.select(0, token * choices + i).load(out.origin(1)).cast();
        sum += y * weights.get((token, i));
    }
    out.store(sum.reshape());
}
