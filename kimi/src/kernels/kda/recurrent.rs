//! The recurrence, token by token: few tokens of many sequences (decode).

use super::{decay_scale, forgetting, unit};
use kiln::prelude::*;

/// Arguments as of [`super::kda_chunk`] and [`super::kda_state`], state `[slots·heads, D / V, D, V]`; of sequences column 0
/// is not read. If `KEEP`: kept `[n]`, the slot that gets the state after each token, or -1.
/// Program: (block of `V` value columns of all value heads of a key head, key head, sequence).
#[kernel(deny(spill))]
pub fn kda_recurrent<T: Float, const D: usize, const V: usize, const BOUNDED: bool, const KEEP: bool>(
    qkv: &View<T, 2>,
    decay_input: &View<T, 2>,
    beta_input: &View<T, 2>,
    a_log: &View<f32, 1>,
    dt_bias: &View<f32, 1>,
    lower_bound: f32,
    sequences: &View<i32, 2>,
    kept: &View<i32, 1>,
    state: &mut View<f32, 4>,
    o: &mut View<T, 3>,
) {
    let (key_head, sequence, key_heads) = (program_id(1), program_id(2), num_programs(1));
    let blocks = D / V;
    let head = key_head * (num_programs(0) / blocks) + program_id(0) / blocks;
    let block = program_id(0) % blocks;
    let (column, heads) = (block * V, o.dim(1));
    let (first, end) = (sequences.get((sequence, 1)), sequences.get((sequence, 2)));
    let slot = sequences.get((sequence, 3));
    let rate = a_log.get(head).exp();
    let scale = decay_scale::<BOUNDED>(rate, lower_bound);
    let bias: Tile<f32, D> = dt_bias.load(head * D);
    let stored: Tile<f32, 1, 1, D, V> = state.load((slot * heads + head, block, 0, 0));
    let mut s: Tile<f32, D, V> = stored.reshape();
    for t in first..end {
        let row = qkv.select(0, t);
        let q: Tile<f32, D> = row.load(key_head * D).cast();
        let k: Tile<f32, D> = row.load((key_heads + key_head) * D).cast();
        let v: Tile<f32, V> = row.load((key_heads * 2 + head) * D + column).cast();
        let (q, k) = (q * unit(q) * (D as f32).powf(-0.5), k * unit(k));
        let x: Tile<f32, D> = decay_input.select(0, t).load(head * D).cast();
        let g: Tile<f32, D> = forgetting::<BOUNDED, 1, D>(x.reshape(), bias, rate).reshape() * scale;
        let beta = beta_input.get((t, head)).cast::<f32>().sigmoid();
        s = s * g.exp2().col();
        let u = (v - (s * k.col()).sum::<0>()) * beta;
        s += k.col().tile() * u.row();
        let out: Tile<f32, V> = (s * q.col()).sum::<0>();
        // SAFETY: a program writes the columns of its own sequence, head and block.
        unsafe { o.store((t, head, column), out.cast::<T>().reshape::<D3<1, 1, V>>()) };
        if KEEP {
            let kept = kept.get(t);
            if kept >= 0 {
                // SAFETY: as above; a slot belongs to one token.
                unsafe { state.store((kept * heads + head, block, 0, 0), s.reshape::<D4<1, 1, D, V>>()) };
            }
        }
    }
    // SAFETY: as above; a slot belongs to one sequence.
    unsafe { state.store((slot * heads + head, block, 0, 0), s.reshape::<D4<1, 1, D, V>>()) };
}
