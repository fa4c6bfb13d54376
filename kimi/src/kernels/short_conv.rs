//! Short causal depthwise convolution, then SiLU: `y[t, c] = silu(Σ_j weight[c, j] · x[t - (J-1) + j, c])`.
//!
//! Tokens of several sequences stand one after another; `start[t]` is the position of the first token of t's sequence
//! in this batch and `slot[t]` its state. What lies before the start comes from the state, which keeps the last J-1
//! inputs of each channel, oldest first: so a prompt in pieces, and a single token, are the same computation.

use kiln::prelude::*;

/// x `[n, channels]`, weight `[channels, J]`, state `[slots, J-1, channels]`, start, slot `[n]` → y `[n, channels]`.
/// Program: (tile of `M` tokens, channel block).
#[kernel]
pub fn short_conv<T: Float, W: Float, const J: usize, const M: usize, const B: usize>(
    x: &View<T, 2>,
    weight: &View<W, 2>,
    state: &View<T, 3>,
    start: &View<i32, 1>,
    slot: &View<i32, 1>,
    y: &mut Block<T, M, B>,
) {
    let (first, channels) = (y.origin(0), y.origin(1));
    let token = iota::<M>() + first;
    let start: Tile<i32, M> = start.load(first);
    // How many inputs before its token each row may look at without leaving this batch.
    let inside = token - start;
    let mut sum: Tile<f32, M, B> = zeros();
    for j in unroll(0..J) {
        let back = J - 1 - j;
        let here: Tile<T, M, B> = x.load((first - back, channels));
        let here = select((inside >= back).col(), here.cast::<f32>(), 0.0);
        let weight: Tile<f32, B, 1> = weight.load((channels, j)).cast();
        sum += here * weight.reshape::<D1<B>>().row();
    }
    // Few tiles hold the first tokens of a sequence: those alone read states.
    let early = (inside < J - 1) & (token < x.dim(0));
    if early.any::<0>() {
        let slot: Tile<i32, M> = slot.load(first);
        let channel: Tile<i32, M, B> = (iota::<B>() + channels).row().tile();
        for j in unroll(0..J - 1) {
            let place = inside + j;
            let before = state.gather_masked(
                (slot.col().tile(), place.col(), channel),
                ((place < J - 1) & early).col().tile() & (channel < x.dim(1)),
                0.0,
            );
            let weight: Tile<f32, B, 1> = weight.load((channels, j)).cast();
            sum += before.cast::<f32>() * weight.reshape::<D1<B>>().row();
        }
    }
    y.store(sum.silu().cast::<T>());
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
