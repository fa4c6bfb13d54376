//! Short causal depthwise convolution, then SiLU: `y[t, c] = silu(Σ_j weight[c, j] · x[t - (J-1) + j, c])`.
//!
//! Tokens of several sequences stand one after another; `start[t]` is the position of the first token of t's sequence.
//! What lies before it comes from the sequence's state, the last J-1 inputs of each channel, oldest first: so a prompt in
//! pieces, and a single token, are the same computation.

use kiln::prelude::*;

/// x `[n, channels]`, weight `[J, channels]`, state `[slots, J-1, channels]`, start `[n]`, rows of [`short_conv_state`] for
/// the ends of sequences → y `[n, channels]`; state is replaced. Programs along axis 0, of `P` warps: one for `N` tokens or a
/// row, and `B` channels; those of the same tokens are neighbours, so that whole rows are read at a time.
///
/// A thread slides along the tokens of its channels, `M` at a time, with the J-1 inputs before them in registers, so that
/// an input is read once. The next `M` are on their way meanwhile. The first J-1 tokens of sequences are left to programs
/// of their own, which replace the state that nobody else reads.
#[kernel(warps = P)]
pub fn short_conv<T: Float, W: Float, const J: usize, const N: usize, const M: usize, const B: usize, const P: u8>(
    x: &View<T, 2>,
    weight: &View<W, 2>,
    state: &mut View<T, 3>,
    start: &View<i32, 1>,
    rows: &View<i32, 2>,
    y: &mut View<T, 2>,
) {
    let across = (x.dim(1) + (B - 1)) / B;
    let (block, channels, n) = (program_id(0) / across, program_id(0) % across * B, x.dim(0));
    let blocks = (n + (N - 1)) / N;
    let tap = |j: usize| -> Tile<f32, 1, B> { weight.select(0, j).load::<D1<B>>(channels).cast::<f32>().reshape() };
    if block < blocks {
        let (first, end) = (block * N, (block * N + N).min(n));
        let inputs = |t: Tile<i32>| -> [Tile<T, 1, B>; M] { std::array::from_fn(|m| x.load((t + m, channels))) };
        let mut next = inputs(first);
        let mut past: [Tile<T, 1, B>; J] = std::array::from_fn(|j| x.load((first + j - J, channels)));
        let taps: [Tile<f32, 1, B>; J] = std::array::from_fn(tap);
        let token = iota::<N>() + first;
        let starts: Tile<i32, N> = start.load(first);
        if ((token - starts < J - 1) & (token < n)).any::<0>() {
            // Few programs: token by token.
            for t in first..end {
                if t - start.get(t) >= J - 1 {
                    let mut sum: Tile<f32, 1, B> = zeros();
                    for j in unroll(0..J) {
                        let input: Tile<T, 1, B> = x.load((t - (J - 1 - j), channels));
                        sum += input.cast::<f32>() * taps[j];
                    }
                    // SAFETY: a program writes its own channels of its own tokens.
                    unsafe { y.store((t, channels), sum.silu().cast::<T>()) };
                }
            }
        } else {
            for t in (first..end).step_by(M) {
                let window: Vec<Tile<T, 1, B>> = past.into_iter().chain(next).collect();
                // What lies beyond the view is not loaded.
                next = inputs(select(t + M < end, t + M, n));
                for m in unroll(0..M) {
                    let mut sum = window[m + 1].cast::<f32>() * taps[0];
                    for j in unroll(1..J) {
                        sum += window[m + 1 + j].cast::<f32>() * taps[j];
                    }
                    // SAFETY: as above (`N` is a multiple of `M`).
                    unsafe { y.store((t + m, channels), sum.silu().cast::<T>()) };
                }
                past = std::array::from_fn(|j| window[M + j]);
            }
        }
    } else {
        let row = block - blocks;
        let (first, end, slot) = (rows.get((row, 0)), rows.get((row, 1)), rows.get((row, 2)));
        for t in first..(first + (J - 1)).min(end) {
            let inside = t - first;
            let mut sum: Tile<f32, 1, B> = zeros();
            for j in unroll(0..J) {
                // How far back this tap looks. An index of -1 is outside, where loads give zeros.
                let back = J - 1 - j;
                let here: Tile<T, 1, B> = x.load((select(inside >= back, t - back, -1), channels));
                let place = select(inside < back, inside + j, -1);
                let before: Tile<T, 1, 1, B> = state.load((slot, place, channels));
                sum += (here + before.reshape::<D2<1, B>>()).cast::<f32>() * tap(j);
            }
            // SAFETY: no other program writes these tokens.
            unsafe { y.store((t, channels), sum.silu().cast::<T>()) };
        }
        // SAFETY: no other program reads or writes this row's slots.
        unsafe { keep_inputs::<T, J, B>(x, rows, row, channels, state) };
    }
}

/// Keeps J-1 inputs of each channel for the tokens that come next. rows `[count, 4]`: a sequence's first token, the token
/// after the last input to keep, the slot with what came before the first, the slot to write (none if it is -1). Program:
/// (row, channel block).
///
/// No two rows write one slot, and none reads what another writes.
#[kernel]
pub fn short_conv_state<T: Float, const J: usize, const B: usize>(
    x: &View<T, 2>,
    rows: &View<i32, 2>,
    state: &mut View<T, 3>,
) {
    // SAFETY: the slot belongs to this row alone, and this program to its channels.
    unsafe { keep_inputs::<T, J, B>(x, rows, program_id(0), program_id(1) * B, state) };
}

/// Of one row.
///
/// # Safety
/// Nobody else writes or reads these channels of the row's slots.
#[device]
unsafe fn keep_inputs<T: Float, const J: usize, const B: usize>(
    x: &View<T, 2>,
    rows: &View<i32, 2>,
    row: Tile<i32>,
    channels: Tile<i32>,
    state: &mut View<T, 3>,
) {
    let (start, end) = (rows.get((row, 0)), rows.get((row, 1)));
    let (from, to) = (rows.get((row, 2)), rows.get((row, 3)));
    // Oldest first: place j takes the input at `end - (J-1) + j`, which an old state still holds if there are few tokens.
    // Places are read before they are overwritten, because the input that place j needs stands at j or later.
    for j in unroll(0..J - 1) {
        let t = end + j - (J - 1);
        let here: Tile<T, 1, B> = x.load((select(t >= start, t, -1), channels));
        let old: Tile<T, 1, 1, B> = state.load((from, select(t < start, t - start + (J - 1), -1), channels));
        let value = here + old.reshape::<D2<1, B>>();
        // SAFETY: as the caller promises.
        unsafe { state.store((to, j, channels), value.reshape::<D3<1, 1, B>>()) };
    }
}
