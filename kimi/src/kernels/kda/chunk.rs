//! First kernel of a prompt: everything about a chunk of tokens that does not need the state (`docs/kda.md`).
//!
//! With G the inclusive cumulative sum of the decays g inside the chunk, b = β and S the state before the chunk:
//! ```text
//! A[i,j] = b_i Σ_d k_i k_j e^{G_i − G_j}  (j < i)      P[i,j] = Σ_d q_i k_j e^{G_i − G_j}  (j ≤ i)
//! T      = (I + A)⁻¹ Diag(b)
//! r      = v − (k ⊙ e^G) S                             what the values are beyond what the state says
//! o      = (q ⊙ e^G) S + (P T) r
//! S      ← Diag(e^{G_C}) S + (Tᵀ (k ⊙ e^{G_C − G}))ᵀ r
//! ```
//! The usual form applies T to r first (or to v and k beforehand). Here it is applied to P and k: then r is the only
//! intermediate that is rounded per token, and an error there is an error of the input v, which later tokens correct.
//!
//! The ratio e^{G_i − G_j} is per channel, so it is split into a factor of row i and one of column j around an *anchor*
//! between the two, and the sums over d are matrix products of the tensor cores. A chunk is two blocks of `S` tokens:
//! ```text
//! own         own: both in one block, anchor in its middle
//! pair own    pair: the second block with the first, anchor between them
//! ```
//! For pair both factors are at most √2. Within a block half of them are more; a decay below `208 / S` bits a token is set
//! to that, so that no factor exceeds 2^105. Exponents are of base 2, and anchors whole: what is rounded relative to one is
//! moved to another, or to the beginning of the chunk, without rounding it again.
//!
//! Lengths take all channels, the rest goes channel by channel: so there are two passes over q and k, of which the second
//! reads what the first one has fetched.

use super::blocks::{beside, both_summed, by_token, diagonal, invert, joined, split};
use super::{FLOOR_BITS, decay_scale, forgetting};
use kiln::prelude::*;

/// A program beside the walk ends when the walk has taken the chunk that is so many before its own, or after so many
/// looks of half a microsecond: further ahead, what the two hand over leaves the cache before it is read.
const LEAD: i32 = 8;
const LOOKS: i32 = 8;

/// f32 has no fractions next to it: added and subtracted again it rounds what is below 2^22 to whole numbers.
const WITHOUT_FRACTION: f32 = 1.5 * (1u32 << 23) as f32;

/// Of each chunk of `C` = 2·`S` tokens and each head.
///
/// - qkv `[n, (2·key_heads + heads)·D]` after the convolution, heads a multiple of key_heads; decay_input
///   `[n, heads·D]`; beta_input `[n, heads]`; a_log `[heads]`; dt_bias `[heads·D]`; lower_bound of a `BOUNDED` gate;
///   chunks `[count, 4]`: first token, end of its sequence, (not read), its semaphore.
/// - kq_in `[heads, count·2·C, D]`: of each chunk −k ⊙ e^G, then q ⊙ e^G, with k of length 1 and q of length D^-½;
///   k_out = Tᵀ (k ⊙ e^{G_C − G}) `[heads, count·C, D]`; p = P T `[heads, count·C, C]`; keep = e^{G_C}
///   `[heads, count, D]`.
/// - ready `[heads, count]`: semaphores; if kda_state runs `BESIDE`, a chunk's gets a signal when all this is stored.
///
/// `X`, as wide as `T`: element of the inverse, whose entries are at most 1. The tokens of a block by
/// `W` channels are a warp's: of `N` = 2·`H` warps, which have `B` = H·`W` channels at a time. Program: (key head, value head
/// within those of the key head, chunk), so that the chunks of all heads come in the order of time.
#[kernel(
    warps = N as u8,
    min_programs_per_sm = if H == 1 { 4 } else { 3 },
    evict_first(qkv if BESIDE, decay_input if BESIDE),
    deny(spill, wgmma_serialized, bank_conflict)
)]
pub fn kda_chunk<
    T,
    X,
    const D: usize,
    const C: usize,
    const S: usize,
    const H: usize,
    const N: usize,
    const B: usize,
    const W: usize,
    const BOUNDED: bool,
    const BESIDE: bool,
>(
    qkv: &View<T, 2>,
    decay_input: &View<T, 2>,
    beta_input: &View<T, 2>,
    a_log: &View<f32, 1>,
    dt_bias: &View<f32, 1>,
    lower_bound: f32,
    chunks: &View<i32, 2>,
    kq_in: &mut View<T, 3>,
    k_out: &mut View<T, 3>,
    p: &mut View<T, 3>,
    keep: &mut View<f32, 3>,
    ready: &mut View<i32, 2>,
) where
    T: Float + DotElement<Acc = f32>,
    X: Float + DotElement<Acc = f32>,
{
    let (key_head, key_heads, chunk) = (program_id(0), num_programs(0), program_id(2));
    let head = key_head * num_programs(1) + program_id(1);
    let (first, end) = (chunks.get((chunk, 0)), chunks.get((chunk, 1)));
    let length = end - first;
    // Beyond the sequence's end everything is zero, which leaves the state as it is.
    let qkv = qkv.narrow(0, first, length);
    let decay_input = decay_input.narrow(0, first, length);
    let token = iota::<C>();
    let second = token >= S;
    let rate = a_log.get(head).exp();
    let scale = decay_scale::<BOUNDED>(rate, lower_bound);
    // What is forgotten at most, down to the floor: past the end nothing.
    let most: Tile<f32, C> = select(token < length, (-FLOOR_BITS / S as f32 / scale).broadcast(), 0.0);
    // Asked for as early as there are registers: of brief sequences' programs later.
    let beta_input = beta_input.narrow(0, first, length).select(1, head);
    let early: Tile<T, C> = beta_input.load(0);
    let (q_at, k_at, at) = (key_head * D, (key_heads + key_head) * D, head * D);

    // Squares of lengths are on the diagonal.
    let mut q_squares: Tile<f32, N, S, S> = zeros();
    let mut k_squares: Tile<f32, N, S, S> = zeros();
    for d in (0..D).step_by(B).stages(4) {
        let (q, k): (Tile<T, C, B>, Tile<T, C, B>) = (qkv.load((0, q_at + d)), qkv.load((0, k_at + d)));
        let (q, k) = (split::<T, H, N, C, B, S, W>(q), split::<T, H, N, C, B, S, W>(k));
        q_squares = dot_batch(q, q.t(), q_squares);
        k_squares = dot_batch(k, k.t(), k_squares);
    }
    let (q_squares, k_squares) = both_summed::<H, C, S>(q_squares.reshape(), k_squares.reshape());
    let squares = |x: Tile<f32, C, S>| diagonal::<C, S>(x) + 1e-6;
    let q_unit = by_token::<H, N, C, S, W>((squares(q_squares) * D as f32).rsqrt());
    let k_unit = by_token::<H, N, C, S, W>(squares(k_squares).rsqrt());

    // A and P by part of the channels and block, before masks and β.
    let mut a_own: Tile<f32, N, S, S> = zeros();
    let mut p_own: Tile<f32, N, S, S> = zeros();
    let mut a_pair: Tile<f32, H, C, S> = zeros();
    let mut p_pair: Tile<f32, H, C, S> = zeros();
    // k_out before T.
    let mut rest: Tile<X, C, D> = zeros();
    let in_second = (iota::<N>() % 2 == 1).reshape::<D3<N, 1, 1>>().broadcast::<D3<N, 1, W>>();
    for d in (0..D).step_by(B).stages(4) {
        let x: Tile<T, C, B> = decay_input.load((0, at + d));
        let bias: Tile<f32, B> = dt_bias.load(at + d);
        let g = forgetting::<BOUNDED, C, B>(x.cast(), bias, rate).min(most.col()) * scale;

        // Sums of decays: within the block up to the token, of the block, in the chunk before the block.
        let within = split::<f32, H, N, C, B, S, W>(g).cumsum::<1>();
        let sum: Tile<f32, N, 1, W> = within.slice([0, S - 1, 0]);
        let of_blocks: Tile<f32, H, 2, W> = sum.reshape();
        let before = (of_blocks.cumsum::<1>() - of_blocks).reshape::<D3<N, 1, W>>();
        let total: Tile<f32, H, W> = of_blocks.sum::<1>();
        // Anchors: by the middle of the block, and by the end of the first block.
        let middle: Tile<f32, N, 1, W> = within.slice([0, S / 2 - 1, 0]);
        let whole_bits = |x: Tile<f32, N, 1, W>| x + WITHOUT_FRACTION - WITHOUT_FRACTION;
        let (anchor, between) = (whole_bits(before + middle), whole_bits(select(in_second, before, sum)));

        let q: Tile<T, C, B> = qkv.load((0, q_at + d));
        let k: Tile<T, C, B> = qkv.load((0, k_at + d));
        let (q, k) = (split::<T, H, N, C, B, S, W>(q), split::<T, H, N, C, B, S, W>(k));

        // Relative to the anchor of its own block.
        let from_anchor = within + (before - anchor).broadcast::<D3<N, S, W>>();
        let later = from_anchor.exp2();
        let (q, k) = (q.cast::<f32>() * q_unit, k.cast::<f32>() * k_unit);
        let (q, k, earlier_k) = (q * later, k * later, k * (-from_anchor).exp2());
        let (q_own, k_own, earlier_own) = (q.cast::<T>(), k.cast::<T>(), earlier_k.cast::<T>());
        a_own = dot_batch(k_own, earlier_own.t(), a_own);
        p_own = dot_batch(q_own, earlier_own.t(), p_own);

        // Moved to that of the first block's end, whose columns all rows of these channels meet.
        let factor =
            select(in_second, anchor - between, between - anchor).exp2().cast::<T>().broadcast::<D3<N, S, W>>();
        let columns: Tile<T, H, 1, S, W> = (earlier_own * factor).reshape::<D4<H, 2, S, W>>().slice([0, 0, 0, 0]);
        let pair = |rows: Tile<T, N, S, W>, sum: Tile<f32, H, C, S>| -> Tile<f32, H, C, S> {
            if H == 1 {
                let columns: Tile<T, H, S, W> = columns.reshape();
                dot_batch(rows.reshape(), columns.t(), sum)
            } else {
                // By block again: saves registers.
                let columns: Tile<T, N, S, W> = columns.broadcast::<D4<H, 2, S, W>>().reshape();
                dot_batch(rows, columns.t(), sum.reshape()).reshape()
            }
        };
        (a_pair, p_pair) = (pair(k_own * factor, a_pair), pair(q_own * factor, p_pair));

        let all: Tile<f32, N, 1, W> = total.reshape::<D3<H, 1, W>>().broadcast::<D3<H, 2, W>>().reshape();
        let until_end = (all - anchor).exp2().broadcast::<D3<N, S, W>>();
        rest = rest.insert((0, d), joined::<X, H, N, C, B, S, W>((earlier_k * until_end).cast()));
        let factor = anchor.exp2();
        let by = |factor: Tile<f32, N, 1, W>| factor.cast::<T>().broadcast::<D3<N, S, W>>();
        let k_in = joined::<T, H, N, C, B, S, W>(k_own * by(-factor));
        let q_in = joined::<T, H, N, C, B, S, W>(q_own * by(factor));
        // SAFETY: a program writes what belongs to its own chunk and head.
        unsafe {
            keep.store((head, chunk, d), total.reshape::<D3<1, 1, B>>().exp2());
            kq_in.store((head, 2 * chunk * C, d), k_in.reshape::<D3<1, C, B>>());
            kq_in.store((head, 2 * chunk * C + C, d), q_in.reshape::<D3<1, C, B>>());
        }
    }

    // Brief sequences do not come that far.
    let waits = BESIDE && H == 1;
    let (semaphore, taken_before) = (chunks.get((chunk, 3)), chunks.get(((chunk - LEAD).max(0), 3)));
    let mut ready = ready.select(0, head);
    let mut ahead: Tile<i32> = full(0.0);
    if waits {
        // SAFETY: everybody adds.
        ahead = unsafe { ready.atomic_add(taken_before, full(0.0)) };
    }

    let (a_own, p_own) = both_summed::<H, C, S>(a_own.reshape(), p_own.reshape());
    let (a_pair, p_pair) = both_summed::<H, C, S>(a_pair, p_pair);
    let (row, column) = ((token % S).col().tile(), iota::<S>().row().tile());
    let scores = beside::<C, S, C>(select(column <= row, p_own, 0.0), p_pair, second);

    let beta: Tile<T, C> = if H == 1 { early } else { beta_input.load(0) };
    let beta = beta.cast::<f32>().sigmoid();
    let a_own = (select(column < row, a_own, 0.0) * beta.col()).reshape::<D3<2, S, S>>();
    let a_pair = (a_pair * beta.col()).cast::<X>();
    let own = invert::<X, 2, S>(a_own);
    // The inverse of [[L₁, 0], [L₂₁, L₂]] has −L₂⁻¹ L₂₁ L₁⁻¹ in its lower left corner.
    let narrow: Tile<X, 2, S, S> = own.cast();
    let corner = dot_batch(narrow, a_pair.reshape::<D3<2, S, S>>(), zeros()).cast::<X>();
    let first: Tile<X, S, S> = narrow.reshape::<D2<C, S>>().slice([0, 0]);
    let corner = dot(corner.reshape::<D2<C, S>>(), first, zeros());
    let inverse = beside::<C, S, C>(own.reshape(), -corner, second);
    // β after the product, so that the inverse's diagonal of ones is exact in it.
    let scores = (dot(scores.cast::<X>(), inverse.cast::<X>(), zeros()) * beta.row()).cast::<T>();
    // SAFETY: as above.
    unsafe { p.store((head, chunk * C, 0), scores.reshape::<D3<1, C, C>>()) };

    let sum = dot((inverse * beta.row()).cast::<X>().t(), rest, zeros()).cast::<T>();
    // SAFETY: as above.
    unsafe {
        k_out.store((head, chunk * C, 0), sum.reshape::<D3<1, C, D>>());
        if BESIDE {
            ready.signal(semaphore, 1);
        }
        if waits {
            let mut looks: Tile<i32> = full(0.0);
            while (ahead > 0) & (looks < LOOKS) & (chunk >= LEAD) {
                ahead = ready.atomic_add(taken_before, full(0.0));
                looks += 1;
            }
        }
    }
}
