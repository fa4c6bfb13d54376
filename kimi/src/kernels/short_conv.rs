//! Short causal depthwise convolution, then SiLU: `y[t, c] = silu(Σ_j weight[c, j] · x[t - (J-1) + j, c])`.
//!
//! Tokens of several sequences stand one after another; `start[t]` is the position of the first token of t's sequence
//! in this batch and `slot[t]` its state. What lies before the start comes from the state, which keeps the last J-1
//! inputs of each channel, oldest first: so a prompt in pieces, and a single token, are the same computation.

use kiln::prelude::*;

/// x `[n, channels]`, weight `[channels, J]`, state `[slots, J-1, channels]`, start, slot `[n]` → y `[n, channels]`.
/// Program: (token, channel block).
#[kernel]
pub fn short_conv<T: Float, W: Float, const J: usize, const B: usize>(
    x: &View<T, 2>,
    weight: &View<W, 2>,
    state: &View<T, 3>,
    start: &View<i32, 1>,
    slot: &View<i32, 1>,
    y: &mut Block<T, 1, B>,
) {
    let token = program_id(0);
    let channels = y.origin(1);
    let start = start.get(token);
    let state = state.select(0, slot.get(token));
    let mut sum: Tile<f32, B> = zeros();
    for j in unroll(0..J) {
        // Input at `token - back`: in this batch, or `start - t` inputs before its beginning.
        let t = token + j - (J - 1);
        let here: Tile<T, 1, B> = x.load((select(t >= start, t, -1), channels));
        let before: Tile<T, 1, B> = state.load((select(t < start, t - start + (J - 1), -1), channels));
        let weight: Tile<f32, B, 1> = weight.load((channels, j)).cast();
        let input: Tile<f32, B> = (here + before).cast::<f32>().reshape();
        sum += input * weight.reshape::<D1<B>>();
    }
    y.store(sum.silu().cast::<T>().reshape());
}

/// Keeps the last J-1 inputs of each sequence for its next tokens. Sequence s has tokens `bounds[s] .. bounds[s+1]`.
/// Program: (sequence, channel block).
///
/// Sequences must have distinct slots.
#[kernel]
pub fn short_conv_state<T: Float, const J: usize, const B: usize>(
    x: &View<T, 2>,
    bounds: &View<i32, 1>,
    slot: &View<i32, 1>,
    state: &mut View<T, 3>,
) {
    let sequence = program_id(0);
    let channels = program_id(1) * B;
    let (start, end) = (bounds.get(sequence), bounds.get(sequence + 1));
    let slot = slot.get(start.min(end - 1));
    // Oldest first: place j takes the input at `end - (J-1) + j`, which an old state still holds if the batch is short.
    // Places are read before they are overwritten, because the input that place j needs stands at j or later.
    for j in unroll(0..J - 1) {
        let t = end + j - (J - 1);
        let here: Tile<T, 1, B> = x.load((select(t >= start, t, -1), channels));
        let old: Tile<T, 1, 1, B> = state.load((slot, select(t < start, t - start + (J - 1), -1), channels));
        let value = here + old.reshape::<D2<1, B>>();
        // SAFETY: the slot belongs to this sequence alone, and this program to its channels.
        unsafe { state.store((slot, j, channels), value.reshape::<D3<1, 1, B>>()) };
    }
}
