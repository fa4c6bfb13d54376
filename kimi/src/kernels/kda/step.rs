//! One step of decoding: everything between a layer's projections, in one kernel.

use super::{decay_scale, log2_decay, unit};
use kiln::prelude::*;

/// Short convolution with its state, SiLU, normalisation of q and k, gate, β, the recurrence, and the gated RMSNorm.
///
/// - x `[n, 3, heads·D]`, the projections of q, k and v; weight `[J, 3, heads·D]`; inputs `[slots, J-1, 3, heads·D]`,
///   the convolution's last inputs, oldest first, replaced; decay_input, beta_input, a_log, dt_bias, lower_bound
///   and sequences as of [`super::kda_recurrent`]; state `[slots, heads, DD]` f32, replaced, DD = D².
/// - gate `[n, heads, D]`, norm `[D]` → out `[n, heads, D]` = RMSNorm(o)·norm·sigmoid(gate).
///
/// A sequence has few tokens: they are taken one after another. `J` is 2, 3 or 4. Program: (head, sequence), with its
/// whole state in registers, so that this is read and written once, by 16 bytes a thread.
#[kernel(warps = 8)]
pub fn kda_step<T: Float, const D: usize, const DD: usize, const J: usize, const BOUNDED: bool>(
    x: &View<T, 3>,
    weight: &View<f32, 3>,
    decay_input: &View<T, 2>,
    beta_input: &View<T, 2>,
    a_log: &View<f32, 1>,
    dt_bias: &View<f32, 1>,
    lower_bound: f32,
    gate: &View<T, 3>,
    norm: &View<f32, 1>,
    eps: f32,
    sequences: &View<i32, 2>,
    inputs: &mut View<T, 4>,
    state: &mut View<f32, 3>,
    out: &mut View<T, 3>,
) {
    let (head, sequence) = (program_id(0), program_id(1));
    let (first, end) = (sequences.get((sequence, 1)), sequences.get((sequence, 2)));
    let slot = sequences.get((sequence, 3));
    let channels = head * D;
    let mut state = state.select(0, slot).select(0, head);
    let mut inputs = inputs.select(0, slot);
    let rate = a_log.get(head).exp();
    let scale = decay_scale::<BOUNDED>(rate, lower_bound);

    // In one row, so that all its addresses are one and an offset.
    let stored: Tile<f32, DD> = state.load(0);
    let mut s: Tile<f32, D, D> = stored.reshape();
    // Inputs of q, k, v (and a row of zeros) one, two and three tokens back; beyond J-1 tokens they lie outside.
    let mut back_1: Tile<T, 1, 4, D> = inputs.load((J as i32 - 2, 0, channels));
    let mut back_2: Tile<T, 1, 4, D> = inputs.load((J as i32 - 3, 0, channels));
    let mut back_3: Tile<T, 1, 4, D> = inputs.load((J as i32 - 4, 0, channels));
    for t in first..end {
        let now: Tile<T, 1, 4, D> = x.load((t, 0, channels));
        // The last tap meets the current token; taps that there are not are zero.
        let tap = |back: i32| -> Tile<f32, 1, 4, D> { weight.load((J as i32 - 1 - back, 0, channels)) };
        let mut sum = now.cast::<f32>() * tap(0);
        sum += back_1.cast::<f32>() * tap(1);
        sum += back_2.cast::<f32>() * tap(2);
        sum += back_3.cast::<f32>() * tap(3);
        (back_3, back_2, back_1) = (back_2, back_1, now);
        let qkv: Tile<f32, 4, D> = sum.silu().reshape();
        let q: Tile<f32, D> = qkv.slice::<D2<1, D>, 2>([0, 0]).reshape();
        let k: Tile<f32, D> = qkv.slice::<D2<1, D>, 2>([1, 0]).reshape();
        let v: Tile<f32, D> = qkv.slice::<D2<1, D>, 2>([2, 0]).reshape();

        let bias: Tile<f32, D> = dt_bias.load(channels);
        let a: Tile<f32, D> = decay_input.select(0, t).load(channels).cast();
        let g: Tile<f32, D> = log2_decay::<BOUNDED, 1, D>(a.reshape(), bias, rate, scale.reshape()).reshape();
        let beta = beta_input.get((t, head)).cast::<f32>().sigmoid();

        // Each vector is made where it is needed: beside the state it takes a register for each row.
        s = s * g.exp2().col();
        let k = k * unit(k);
        let u = (v - (s * k.col()).sum::<0>()) * beta;
        s += k.col().tile() * u.row();
        let q = q * unit(q) * (D as f32).powf(-0.5);
        let o = (s * q.col()).sum::<0>();

        let open: Tile<f32, D> = gate.select(0, t).select(0, head).load(0).cast();
        let norm: Tile<f32, D> = norm.load(0);
        let scale = ((o * o).sum::<0>() / (D as f32) + eps).rsqrt();
        let y = (o * scale * norm * open.sigmoid()).cast::<T>();
        // SAFETY: a program writes its own sequence's tokens, and of them its head.
        unsafe { out.store((t, head, 0), y.reshape::<D3<1, 1, D>>()) };
    }
    // SAFETY: a slot belongs to one sequence, and this program to its head.
    unsafe {
        state.store(0, s.reshape::<D1<DD>>());
        inputs.store((J as i32 - 2, 0, channels), back_1);
        inputs.store((J as i32 - 3, 0, channels), back_2);
        inputs.store((J as i32 - 4, 0, channels), back_3);
    }
}
