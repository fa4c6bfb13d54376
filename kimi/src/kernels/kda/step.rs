//! One step of decoding: everything between a layer's projections, in one kernel.

use super::tokens::{is, put, take};
use super::{decay_scale, forgetting};
use kiln::prelude::*;

/// Short convolution with its state, SiLU, normalisation of q and k, gate, β, the recurrence, and the gated RMSNorm.
///
/// - x `[n, 3, heads·D]`, the projections of q, k and v; weight `[J, 3, heads·D]`; inputs `[slots, J-1, 3, heads·D]`,
///   the convolution's last inputs, oldest first, replaced; decay_input, beta_input, a_log, dt_bias, lower_bound
///   and sequences as of [`super::kda_recurrent`]; state `[slots·heads, B, D, V]` f32, replaced: D = B·V columns in
///   blocks of V, of each its D rows.
/// - If `GROUPED` several value heads have a key head: x `[n, 1, (2·key_heads + heads)·D]`, weight and inputs likewise;
///   inputs are not replaced, since others read them.
/// - If `KEEP`: kept `[n]`, the slot whose inputs and state become those after each token, or -1.
/// - gate `[n, heads, B, V]`, norm `[B, V]` → out `[n, heads, B, V]` = RMSNorm(o)·norm·sigmoid(gate).
///
/// A sequence has at most `N` tokens, `J` is 2, 3 or 4. Program: (head, sequence), or if `GROUPED` (key head, sequence,
/// value head within those of the key head); `P` of them share a multiprocessor.
///
/// Columns of the state do not depend on each other: after what all of them need, `C` of the blocks at a time (`C2` =
/// 2·C) go through all tokens, while the next are loaded. So a program takes few registers, and others on the same
/// multiprocessor load and store while it computes. Where there are more multiprocessors than heads, `O` = `C` = 1
/// instead of `B`: a head is a cluster of programs with a block each, which add up their squares (not if `GROUPED` or
/// `KEEP`); these load what is settled before the launch before has ended (more programs lose by it). None of `N`, `C` and
/// `O` changes a result: sums over rows and the order of squares are the same, and `N` moves elements only.
#[kernel(
    warps = 4, min_programs_per_sm = P, cluster = (B / O) as u8, deny(spill),
    settled(weight if O < B, a_log if O < B, dt_bias if O < B, sequences if O < B, inputs if O < B, state if O < B)
)]
pub fn kda_step<
    T: Float,
    const N: usize,
    const D: usize,
    const B: usize,
    const V: usize,
    const O: usize,
    const C: usize,
    const C2: usize,
    const J: usize,
    const BOUNDED: bool,
    const KEEP: bool,
    const GROUPED: bool,
    const P: u8,
>(
    x: &View<T, 3>,
    weight: &View<f32, 3>,
    decay_input: &View<T, 2>,
    beta_input: &View<T, 2>,
    a_log: &View<f32, 1>,
    dt_bias: &View<f32, 1>,
    lower_bound: f32,
    gate: &View<T, 4>,
    norm: &View<f32, 2>,
    eps: f32,
    sequences: &View<i32, 2>,
    kept: &View<i32, 1>,
    inputs: &mut View<T, 4>,
    state: &mut View<f32, 4>,
    out: &mut View<T, 4>,
) {
    let (key_head, sequence, heads) = (program_id(0) / (B / O), program_id(1), out.dim(1));
    let first_block = program_id(0) % (B / O) * O;
    let head = if GROUPED { key_head * num_programs(2) + program_id(2) } else { key_head };
    let (first, end) = (sequences.get((sequence, 1)), sequences.get((sequence, 2)));
    let slot = sequences.get((sequence, 3));
    let count = if N == 1 { full(1.0) } else { end - first };
    let channels = head * D;
    let mut own_state = state.select(0, slot * heads + head);

    // The first blocks are on their way while the program computes what does not need the state.
    let mut next: Tile<f32, C, D, V> = own_state.load((first_block, 0, 0));

    // Inputs of q, k, v (and a row of zeros) one, two and three tokens back; beyond J-1 tokens they lie outside.
    let before = inputs.select(0, slot);
    let past = |back: i32| of_head::<T, D, GROUPED>(&before, full((J as i32 - 1 - back).into()), key_head, head);
    let (mut back_1, mut back_2, mut back_3) = (past(1), past(2), past(3));
    let rate = a_log.get(head).exp();
    let scale = decay_scale::<BOUNDED>(rate, lower_bound);
    // Of each token q and k of unit length, v, e^g; β; and the product of q and k.
    let mut vectors: Tile<f32, N, 4, D> = zeros();
    let (mut betas, mut products): (Tile<f32, N, 1, 1>, Tile<f32, N, 1, 1>) = (zeros(), zeros());
    for i in 0..count {
        let t = first + i;
        // All loads first, since barriers follow; of these, those first that do not wait for the launch before.
        let bias: Tile<f32, D> = dt_bias.load(channels);
        // The last tap meets the current token; taps that there are not are zero.
        let tap = |back: i32| of_head::<f32, D, GROUPED>(weight, full((J as i32 - 1 - back).into()), key_head, head);
        let taps = [tap(0), tap(1), tap(2), tap(3)];
        let now = of_head::<T, D, GROUPED>(x, t, key_head, head);
        let a: Tile<T, D> = decay_input.select(0, t).load(channels);
        let beta = beta_input.get((t, head));
        let mut sum = now.cast::<f32>() * taps[0];
        sum += back_1.cast::<f32>() * taps[1];
        sum += back_2.cast::<f32>() * taps[2];
        sum += back_3.cast::<f32>() * taps[3];
        (back_3, back_2, back_1) = (back_2, back_1, now);
        let qkv: Tile<f32, 4, D> = sum.silu().reshape();
        let part = |at: usize| -> Tile<f32, 1, D> { qkv.slice([at, 0]) };
        let (q, k, v) = (part(0), part(1), part(2));

        let g: Tile<f32, 1, D> = forgetting::<BOUNDED, 1, D>(a.cast().reshape(), bias, rate) * scale;
        let beta = beta.cast::<f32>().sigmoid();

        // All sums over the channels at once.
        let squares: Tile<f32, 2, D> = (q * q).join(k * k, 0);
        let sums: Tile<f32, 4, D> = squares.join((q * k).join(q * k, 0), 0);
        let sums = sums.sum::<1>();
        let one = |at: usize| -> Tile<f32> { sums.slice::<D1<1>, 1>([at]).reshape() };
        let (q_unit, k_unit) = ((one(0) + 1e-6).rsqrt() * (D as f32).powf(-0.5), (one(1) + 1e-6).rsqrt());
        let product = one(2) * q_unit * k_unit;
        let qk: Tile<f32, 2, D> = (q * q_unit).join(k * k_unit, 0);
        let qkvg: Tile<f32, 4, D> = qk.join(v.join(g.exp2(), 0), 0);
        vectors = put(i, qkvg, vectors);
        betas = put(i, beta.reshape(), betas);
        products = put(i, product.reshape(), products);
        if KEEP {
            let kept = kept.get(t);
            if kept >= 0 {
                // SAFETY: a slot belongs to one sequence or token, and this program to its head.
                unsafe { store_inputs::<T, D, J, GROUPED>(inputs, kept, channels, [back_1, back_2, back_3]) };
            }
        }
    }
    if O == B {
        // SAFETY: as above.
        unsafe { store_inputs::<T, D, J, GROUPED>(inputs, slot, channels, [back_1, back_2, back_3]) };
    }

    // A program alone on its multiprocessor asks for these before the walk; where others compute meanwhile it saves registers.
    let gate = gate.select(1, head);
    let of_norm = || (gate.load((first, first_block, 0)), norm.load((first_block, 0)));
    let early = (C > 1 || O < B).then(of_norm);
    let mut o: Tile<f32, N, O, V> = zeros();
    let (mut squares, mut last): (Tile<f32, N, 1, 1>, Tile<f32, C, D, V>) = (zeros(), next);
    for own in (0..O).step_by(C) {
        let column = own + first_block;
        let mut s = next;
        if C < O {
            next = own_state.load((column + C, 0, 0));
        }
        for i in 0..count {
            let vectors = take(i, vectors);
            let row = |at: usize| -> Tile<f32, C, D, V> {
                let row: Tile<f32, 1, D> = vectors.slice([at, 0]);
                row.reshape::<D3<1, D, 1>>().broadcast()
            };
            let v = vectors.slice::<D2<1, D>, 2>([2, 0]).reshape::<D2<B, V>>();
            let v: Tile<f32, C, V> = if C == B {
                v.reshape()
            } else {
                let here = iota::<B>().row().tile::<C>() == (iota::<C>() + column).col();
                let here = here.reshape::<D3<C, B, 1>>().broadcast::<D3<C, B, V>>();
                select(here, v.reshape::<D3<1, B, V>>().broadcast::<D3<C, B, V>>(), 0.0).sum::<1>()
            };
            let (beta, product): (Tile<f32>, Tile<f32>) = (take(i, betas).reshape(), take(i, products).reshape());

            s = s * row(3);
            // What the state says of k, and of q before this token: o = Sᵀq + (kᵀq) u.
            let both: Tile<f32, C2, D, V> = (s * row(1)).join(s * row(0), 0);
            let sums = both.sum::<1>();
            let (said, before): (Tile<f32, C, V>, Tile<f32, C, V>) = (sums.slice([0, 0]), sums.slice([C, 0]));
            let u = (v - said) * beta;
            s = row(1).mul_add(u.reshape::<D3<C, 1, V>>().broadcast::<D3<C, D, V>>(), s);
            let block = before + u * product;
            let sums = (block * block).sum::<1>();
            let mut sum: Tile<f32> = take(i, squares).reshape();
            // One after the other, however many there are at a time.
            for c in unroll(0..C) {
                sum += sums.slice::<D1<1>, 1>([c]).reshape::<D0>();
                let here =
                    (iota::<O>() == own + c).reshape::<D3<1, O, 1>>().broadcast::<D3<N, O, V>>() & is::<N, O, V>(i);
                let part: Tile<f32, 1, V> = block.slice([c, 0]);
                o = select(here, part.reshape::<D3<1, 1, V>>().broadcast::<D3<N, O, V>>(), o);
            }
            squares = put(i, sum.reshape(), squares);
            if KEEP {
                let kept = kept.get(first + i);
                if kept >= 0 {
                    let mut state = state.select(0, kept * heads + head);
                    // SAFETY: as above.
                    unsafe { state.store((column, 0, 0), s) };
                }
            }
        }
        if O == B {
            // SAFETY: as above.
            unsafe { own_state.store((column, 0, 0), s) };
        } else {
            last = s;
        }
    }

    // Before any store: an exchange would have to wait for it.
    let squares = squares.cluster_sum();
    if O < B {
        // SAFETY: as above.
        unsafe { own_state.store((first_block, 0, 0), last) };
        if first_block == 0 {
            // SAFETY: as above; the other programs have read them.
            unsafe { store_inputs::<T, D, J, GROUPED>(inputs, slot, channels, [back_1, back_2, back_3]) };
        }
    }
    let mut out = out.select(1, head).narrow(0, first, end - first);
    let (open, norm): (Tile<T, N, O, V>, Tile<f32, O, V>) = early.unwrap_or_else(of_norm);
    let scale: Tile<f32, N, O, V> = (squares / (D as f32) + eps).rsqrt().broadcast();
    let norm: Tile<f32, N, O, V> = norm.reshape::<D3<1, O, V>>().broadcast();
    let y = (o * scale * norm * open.cast::<f32>().sigmoid()).cast::<T>();
    // SAFETY: a program writes its own sequence's tokens, and of them its head's blocks.
    unsafe { out.store((0, first_block, 0), y) };
}

/// Row `at` of q, k and v (and of zeros) of a head.
#[device]
fn of_head<T: Float, const D: usize, const GROUPED: bool>(
    rows: &View<T, 3>,
    at: Tile<i32>,
    key_head: Tile<i32>,
    head: Tile<i32>,
) -> Tile<T, 1, 4, D> {
    if GROUPED {
        let one = |place: Tile<i32>| -> Tile<T, 1, 1, D> { rows.load((at, 0, place * D)) };
        let key_heads = num_programs(0);
        let qk: Tile<T, 1, 2, D> = one(key_head).join(one(key_heads + key_head), 1);
        let v: Tile<T, 1, 2, D> = one(key_heads * 2 + head).join(zeros(), 1);
        qk.join(v, 1)
    } else {
        rows.load((at, 0, head * D))
    }
}

/// Inputs one, two and three tokens back; beyond J-1 tokens they lie outside. Not if heads have them in common.
///
/// # Safety
/// The program's own channels of these inputs.
#[device]
unsafe fn store_inputs<T: Float, const D: usize, const J: usize, const GROUPED: bool>(
    inputs: &View<T, 4>,
    slot: Tile<i32>,
    channels: Tile<i32>,
    back: [Tile<T, 1, 4, D>; 3],
) {
    if !GROUPED {
        let mut inputs = inputs.select(0, slot);
        for i in unroll(0..3) {
            // SAFETY: as the caller promises.
            unsafe { inputs.store((J as i32 - 2 - i as i32, 0, channels), back[i]) };
        }
    }
}
