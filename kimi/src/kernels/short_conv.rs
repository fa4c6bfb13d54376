//! Short causal depthwise convolution, then SiLU: `y[t, c] = silu(Σ_j weight[c, j] · x[t - (J-1) + j, c])`.
//!
//! Tokens of several sequences stand one after another; `start[t]` is the position of the first token of t's sequence
//! in this batch and `slot[t]` its state. What lies before the start comes from the state, which keeps the last J-1
//! inputs of each channel, oldest first: so a prompt in pieces, and a single token, are the same computation.

use kiln::prelude::*;

/// x `[n, channels]`, weight `[J, channels]`, state `[slots, J-1, channels]`, start, slot `[n]` → y `[n, channels]`.
/// Program: (`N` tokens, `B` channels), of `P` warps.
///
/// A thread slides along the tokens of its channels, `M` at a time, with the J-1 inputs before them in registers, so that
/// an input is read once. The next `M` are on their way meanwhile.
#[kernel(warps = P)]
pub fn short_conv<T: Float, W: Float, const J: usize, const N: usize, const M: usize, const B: usize, const P: u8>(
    x: &View<T, 2>,
    weight: &View<W, 2>,
    state: &View<T, 3>,
    start: &View<i32, 1>,
    slot: &View<i32, 1>,
    y: &mut View<T, 2>,
) {
    let (first, channels) = (program_id(0) * N, program_id(1) * B);
    let end = (first + N).min(x.dim(0));
    let inputs = |t: Tile<i32>| -> [Tile<T, 1, B>; M] { std::array::from_fn(|m| x.load((t + m, channels))) };
    let mut next = inputs(first);
    let mut past: [Tile<T, 1, B>; J] = std::array::from_fn(|j| x.load((first + j - J, channels)));
    let taps: [Tile<W, B>; J] = std::array::from_fn(|j| weight.select(0, j).load(channels));
    let taps: [Tile<f32, 1, B>; J] = taps.map(|tap| tap.cast::<f32>().reshape());
    for t in (first..end).step_by(M) {
        let window: Vec<Tile<T, 1, B>> = past.into_iter().chain(next).collect();
        // What lies beyond the view is not loaded.
        next = inputs(select(t + M < end, t + M, x.dim(0)));
        for m in unroll(0..M) {
            let mut sum = window[m + 1].cast::<f32>() * taps[0];
            for j in unroll(1..J) {
                sum += window[m + 1 + j].cast::<f32>() * taps[j];
            }
            // SAFETY: a program writes its own channels of its own tokens (`N` is a multiple of `M`).
            unsafe { y.store((t + m, channels), sum.silu().cast::<T>()) };
        }
        past = std::array::from_fn(|j| window[M + j]);
    }
    // Few programs have the first tokens of a sequence, which look back into the state: those are done again.
    let token = iota::<N>() + first;
    let starts: Tile<i32, N> = start.load(first);
    if ((token - starts < J - 1) & (token < x.dim(0))).any::<0>() {
        for t in first..end {
            let inside = t - start.get(t);
            if inside < J - 1 {
                let slot = slot.get(t);
                let mut sum: Tile<f32, 1, B> = zeros();
                for j in unroll(0..J) {
                    // How far back this tap looks. An index of -1 is outside, where loads give zeros.
                    let back = J - 1 - j;
                    let here: Tile<T, 1, B> = x.load((select(inside >= back, t - back, -1), channels));
                    let place = select(inside < back, inside + j, -1);
                    let before: Tile<T, 1, 1, B> = state.load((slot, place, channels));
                    sum += (here + before.reshape::<D2<1, B>>()).cast::<f32>() * taps[j];
                }
                // SAFETY: as above.
                unsafe { y.store((t, channels), sum.silu().cast::<T>()) };
            }
        }
    }
}

/// Keeps J-1 inputs of each channel for the tokens that come next. rows `[count, 4]`: a sequence's first token, the token
/// after the last input to keep, the slot with what came before the first, the slot to write. Program: (row, channel
/// block).
///
/// No two rows write one slot, and none reads what another writes.
#[kernel]
pub fn short_conv_state<T: Float, const J: usize, const B: usize>(
    x: &View<T, 2>,
    rows: &View<i32, 2>,
    state: &mut View<T, 3>,
) {
    let (row, channels) = (program_id(0), program_id(1) * B);
    let (start, end) = (rows.get((row, 0)), rows.get((row, 1)));
    let (from, to) = (rows.get((row, 2)), rows.get((row, 3)));
    // Oldest first: place j takes the input at `end - (J-1) + j`, which an old state still holds if there are few tokens.
    // Places are read before they are overwritten, because the input that place j needs stands at j or later.
    for j in unroll(0..J - 1) {
        let t = end + j - (J - 1);
        let here: Tile<T, 1, B> = x.load((select(t >= start, t, -1), channels));
        let old: Tile<T, 1, 1, B> = state.load((from, select(t < start, t - start + (J - 1), -1), channels));
        let value = here + old.reshape::<D2<1, B>>();
        // SAFETY: the slot belongs to this row alone, and this program to its channels.
        unsafe { state.store((to, j, channels), value.reshape::<D3<1, 1, B>>()) };
    }
}
