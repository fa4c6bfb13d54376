//! One step of decoding: everything between a layer's projections, in one kernel.

use super::{log2_decay, unit};
use kiln::prelude::*;

/// Short convolution with its state, SiLU, normalisation of q and k, gate, β, the recurrence, and the gated RMSNorm.
///
/// - x `[n, 3·heads·D]`, the projections of q, k and v; weight `[3·heads·D, J]`; inputs `[slots, J-1, 3·heads·D]`, the
///   convolution's last inputs, oldest first, replaced; decay_input, beta_input, a_log, dt_bias, lower_bound, sequences
///   and state as of [`super::kda_recurrent`].
/// - gate `[n, heads, D]`, norm `[D]` → out `[n, heads, D]` = RMSNorm(o)·norm·sigmoid(gate).
///
/// A sequence has few tokens: they are taken one after another. Program: (head, sequence), with the whole state of
/// them in registers, so that it is read and written once, by 16 bytes a thread.
#[kernel(warps = 8)]
pub fn kda_step<T: Float, const D: usize, const J: usize, const BOUNDED: bool>(
    x: &View<T, 2>,
    weight: &View<f32, 2>,
    decay_input: &View<T, 2>,
    beta_input: &View<T, 2>,
    a_log: &View<f32, 1>,
    dt_bias: &View<f32, 1>,
    lower_bound: f32,
    gate: &View<T, 3>,
    norm: &View<f32, 1>,
    eps: f32,
    sequences: &View<i32, 2>,
    inputs: &mut View<T, 3>,
    state: &mut View<f32, 4>,
    out: &mut View<T, 3>,
) {
    let (head, sequence, heads) = (program_id(0), program_id(1), out.dim(1));
    let (first, end) = (sequences.get((sequence, 1)), sequences.get((sequence, 2)));
    let slot = sequences.get((sequence, 3));
    let (q_at, k_at, v_at) = (head * D, (heads + head) * D, (heads * 2 + head) * D);
    let mut state = state.select(0, slot).select(0, head);
    let mut inputs = inputs.select(0, slot);
    let rate = a_log.get(head).exp();
    let bias: Tile<f32, D> = dt_bias.load(head * D);
    let norm: Tile<f32, D> = norm.load(0);

    let mut s: Tile<f32, D, D> = state.load((0, 0));
    for t in first..end {
        let q = convolved::<T, D, J>(x, weight, &inputs, first, t, q_at);
        let k = convolved::<T, D, J>(x, weight, &inputs, first, t, k_at);
        let v = convolved::<T, D, J>(x, weight, &inputs, first, t, v_at);
        let a: Tile<f32, D> = decay_input.select(0, t).load(head * D).cast();
        let g: Tile<f32, D> = log2_decay::<BOUNDED, 1, D>((a + bias).reshape(), rate, lower_bound).reshape();
        let beta = beta_input.get((t, head)).cast::<f32>().sigmoid();

        // Each vector is made where it is needed: spread over the rows it takes as many registers as a row block.
        s = s * g.exp2().col();
        let k = k * unit(k);
        let u = (v - (s * k.col()).sum::<0>()) * beta;
        s += k.col().tile() * u.row();
        let q = q * unit(q) * (D as f32).powf(-0.5);
        let o = (s * q.col()).sum::<0>();

        let open: Tile<f32, D> = gate.select(0, t).select(0, head).load(0).cast();
        let scale = ((o * o).sum::<0>() / (D as f32) + eps).rsqrt();
        let y = (o * scale * norm * open.sigmoid()).cast::<T>();
        // SAFETY: a program writes its own sequence's tokens, and of them its head.
        unsafe { out.store((t, head, 0), y.reshape::<D3<1, 1, D>>()) };
    }
    // SAFETY: a slot belongs to one sequence, and this program to its head.
    unsafe { state.store((0, 0), s) };

    // Oldest first: a place takes an input that stands at it or later, so it is read before it is overwritten.
    for j in unroll(0..J - 1) {
        for part in unroll(0..3) {
            let at = (heads * part + head) * D;
            let last = input::<T, D, J>(x, &inputs, first, end - (J - 1 - j), at);
            // SAFETY: as above.
            unsafe { inputs.store((j, at), last.reshape::<D2<1, D>>()) };
        }
    }
}

/// The input of token `t`, which may lie up to J-1 tokens before the `first` of this batch: channels `at ..`.
#[device]
fn input<T: Float, const D: usize, const J: usize>(
    x: &View<T, 2>,
    inputs: &View<T, 2>,
    first: Tile<i32>,
    t: Tile<i32>,
    at: Tile<i32>,
) -> Tile<T, D> {
    // One of the two lies outside and is zero.
    let here: Tile<T, 1, D> = x.load((select(t >= first, t, -1), at));
    let old: Tile<T, 1, D> = inputs.load((select(t < first, t - first + (J - 1), -1), at));
    (here + old).reshape()
}

/// SiLU of the convolution at token `t`, channels `at ..`.
#[device]
fn convolved<T: Float, const D: usize, const J: usize>(
    x: &View<T, 2>,
    weight: &View<f32, 2>,
    inputs: &View<T, 2>,
    first: Tile<i32>,
    t: Tile<i32>,
    at: Tile<i32>,
) -> Tile<f32, D> {
    let mut sum: Tile<f32, D> = zeros();
    for j in unroll(0..J) {
        let weight: Tile<f32, D, 1> = weight.load((at, j));
        sum += input::<T, D, J>(x, inputs, first, t - (J - 1 - j), at).cast::<f32>() * weight.reshape::<D1<D>>();
    }
    sum.silu()
}
