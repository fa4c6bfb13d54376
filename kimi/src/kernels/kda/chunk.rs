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
//! between the two, and the sums over d are matrix products of the tensor cores. A chunk is four blocks of `S` tokens:
//! ```text
//! own             own: both in one block, anchor in its middle
//! pair own        pair: the second block of a half with the first, anchor between them
//! half half own   half: the second half of the chunk with the first, anchor between them
//! half half pair own
//! ```
//! For pair and half both factors are at most 1. Within a block half of them are more; a decay below `224 / S` bits a
//! token is set to that, so that no factor exceeds 2^112. Exponents are of base 2.

use super::{FLOOR_BITS, log2_decay, row_units};
use kiln::prelude::*;

/// Channels at a time, and beside each other for two and four blocks.
const B: usize = 16;
const B2: usize = 2 * B;
const B4: usize = 4 * B;

/// Of each chunk of `C` = 2·`M` = 4·`S` tokens and each head.
///
/// - qkv `[n, 3·heads·D]` after the convolution; decay_input `[n, heads·D]`; beta_input `[n, heads]`; a_log `[heads]`;
///   dt_bias `[heads·D]`; lower_bound of a `BOUNDED` gate; chunks `[count, 4]`: first token, end of its sequence.
/// - k_in = k ⊙ e^G, q_in = D^-½ q ⊙ e^G, k_out = Tᵀ (k ⊙ e^{G_C − G}) `[heads, count·C, D]`; p = P T
///   `[heads, count·C, C]`; keep = e^{G_C} `[heads, count, D]`. q and k are of unit length.
///
/// `X`: element of the products whose operands are at most 1. Program: (chunk, head).
#[kernel]
pub fn kda_chunk<T, X, const D: usize, const C: usize, const M: usize, const S: usize, const BOUNDED: bool>(
    qkv: &View<T, 2>,
    decay_input: &View<T, 2>,
    beta_input: &View<T, 2>,
    a_log: &View<f32, 1>,
    dt_bias: &View<f32, 1>,
    lower_bound: f32,
    chunks: &View<i32, 2>,
    k_in: &mut View<T, 3>,
    q_in: &mut View<T, 3>,
    k_out: &mut View<T, 3>,
    p: &mut View<T, 3>,
    keep: &mut View<f32, 3>,
) where
    T: Float + DotElement<Acc = f32>,
    X: Float + DotElement<Acc = f32>,
{
    let (chunk, head, heads) = (program_id(0), program_id(1), k_in.dim(0));
    let (first, length) = (chunks.get((chunk, 0)), chunks.get((chunk, 1)) - chunks.get((chunk, 0)));
    // Beyond the sequence's end everything is zero, which leaves the state as it is.
    let qkv = qkv.narrow(0, first, length);
    let decay_input = decay_input.narrow(0, first, length);
    let token = iota::<C>();
    let (block, second, odd) = (token / S, token >= M, token / S % 2 == 1);
    let rate = a_log.get(head).exp();

    let q_all: Tile<T, C, D> = qkv.load((0, head * D));
    let k_all: Tile<T, C, D> = qkv.load((0, (heads + head) * D));
    let q_unit = row_units::<C, D>(q_all.cast()) * (D as f32).powf(-0.5);
    let k_unit = row_units::<C, D>(k_all.cast());

    // A and P by block, before masks and β.
    let mut a_own: Tile<f32, C, S> = zeros();
    let mut a_pair: Tile<f32, C, S> = zeros();
    let mut a_half: Tile<f32, C, M> = zeros();
    let mut p_own: Tile<f32, C, S> = zeros();
    let mut p_pair: Tile<f32, C, S> = zeros();
    let mut p_half: Tile<f32, C, M> = zeros();
    for d in (0..D).step_by(B) {
        let x: Tile<f32, C, B> = decay_input.load((0, head * D + d)).cast();
        let bias: Tile<f32, B> = dt_bias.load(head * D + d);
        let g = log2_decay::<BOUNDED, C, B>(x + bias.row(), rate, lower_bound);
        let g = select((token < length).col(), g, 0.0);
        let kept = g.sum::<0>().exp2();

        // Sums of decays: within the block up to the token, of the block, in the chunk before the block.
        let g: Tile<f32, 4, S, B> = g.max(-FLOOR_BITS / S as f32).reshape();
        let sums = g.cumsum::<1>();
        let blocks: Tile<f32, 4, B> = sums.slice::<D3<4, 1, B>, 3>([0, S - 1, 0]).reshape();
        let before = blocks.cumsum::<0>() - blocks;
        let middle: Tile<f32, 4, B> = sums.slice::<D3<4, 1, B>, 3>([0, S / 2 - 1, 0]).reshape();
        let half: Tile<f32, B> = before.slice::<D2<1, B>, 2>([2, 0]).reshape();
        let within: Tile<f32, C, B> = sums.reshape();
        let sum = within + per_block::<C, S, B>(before);
        let total = blocks.sum::<0>();

        let q: Tile<f32, C, B> = qkv.load((0, head * D + d)).cast();
        let k: Tile<f32, C, B> = qkv.load((0, (heads + head) * D + d)).cast();
        let (q, k) = (q * q_unit.col(), k * k_unit.col());

        let factor = sum.exp2();
        let rest = (total.row().tile() - sum).exp2();
        let place = (head, chunk * C, d);
        // SAFETY: a program writes what belongs to its own chunk and head.
        unsafe {
            keep.store((head, chunk, d), kept.reshape::<D3<1, 1, B>>());
            k_in.store(place, (k * factor).cast::<T>().reshape::<D3<1, C, B>>());
            q_in.store(place, (q * factor).cast::<T>().reshape::<D3<1, C, B>>());
            k_out.store(place, (k * rest).cast::<T>().reshape::<D3<1, C, B>>());
        }

        let factor = -(sum - half.row()).abs();
        let factor = factor.exp2();
        let (rows_q, rows_k) = ((q * factor).cast::<X>(), (k * factor).cast::<X>());
        let columns: Tile<X, M, B> = rows_k.slice([0, 0]);
        a_half = dot(rows_k, columns.t(), a_half);
        p_half = dot(rows_q, columns.t(), p_half);

        let factor = select(odd.col(), within, per_block::<C, S, B>(blocks) - within).exp2();
        let (rows_q, rows_k) = ((q * factor).cast::<X>(), (k * factor).cast::<X>());
        let columns: Tile<X, 2, S, B> = rows_k.reshape::<D3<2, M, B>>().slice([0, 0, 0]);
        let columns: Tile<X, B2, S> = columns.t().reshape();
        a_pair = dot(spread::<X, C, B, 2, B2>(rows_k, token / M), columns, a_pair);
        p_pair = dot(spread::<X, C, B, 2, B2>(rows_q, token / M), columns, p_pair);

        let factor = within - per_block::<C, S, B>(middle);
        let columns: Tile<T, 4, S, B> = (k * (-factor).exp2()).cast::<T>().reshape();
        let columns: Tile<T, B4, S> = columns.t().reshape();
        let factor = factor.exp2();
        let (rows_q, rows_k) = ((q * factor).cast::<T>(), (k * factor).cast::<T>());
        a_own = dot(spread::<T, C, B, 4, B4>(rows_k, block), columns, a_own);
        p_own = dot(spread::<T, C, B, 4, B4>(rows_q, block), columns, p_own);
    }

    let (row, column) = ((token % S).col().tile(), iota::<S>().row().tile());
    let p_own = select(column <= row, p_own, 0.0);
    let scores = beside::<C, M, C>(beside::<C, S, M>(p_own, p_pair, odd), p_half, second);

    let beta: Tile<f32, C> = beta_input.narrow(0, first, length).select(1, head).load(0).cast();
    let beta = beta.sigmoid();
    let a_own = select(column < row, a_own * beta.col(), 0.0);
    let a_pair = select(odd.col(), a_pair * beta.col(), 0.0).cast::<X>();
    let a_half = select(second.col(), a_half * beta.col(), 0.0).cast::<X>();
    let own = invert_blocks::<X, C, S>(a_own);
    // The inverse of [[L₁, 0], [L₂₁, L₂]] has −L₂⁻¹ L₂₁ L₁⁻¹ in its lower left corner.
    let narrow = own.cast::<X>();
    let corner = dot(spread::<X, C, S, 4, C>(narrow, block), a_pair, zeros());
    let corner = dot(spread::<X, C, S, 4, C>(corner.cast(), block - 1), narrow, zeros());
    let pair = beside::<C, S, M>(own, -corner, odd);
    let narrow = pair.cast::<X>();
    let corner = dot(spread::<X, C, M, 2, C>(narrow, token / M), a_half, zeros());
    let corner = dot(corner.cast::<X>(), narrow.slice::<D2<M, M>, 2>([0, 0]), zeros());
    let inverse = beside::<C, M, C>(pair, -corner, second);
    let inverse = (inverse * beta.row()).cast::<X>();
    let scores = dot(scores.cast::<X>(), inverse, zeros()).cast::<T>();

    // SAFETY: as above.
    unsafe { p.store((head, chunk * C, 0), scores.reshape::<D3<1, C, C>>()) };
    for d in (0..D).step_by(B) {
        let kept: Tile<T, 1, C, B> = k_out.load((head, chunk * C, d));
        let kept: Tile<X, C, B> = kept.reshape().cast();
        let sum = dot(inverse.t(), kept, zeros()).cast::<T>();
        // SAFETY: as above.
        unsafe { k_out.store((head, chunk * C, d), sum.reshape::<D3<1, C, B>>()) };
    }
}

/// Element (i, d) = x[block of i, d].
#[device]
fn per_block<const C: usize, const S: usize, const N: usize>(x: Tile<f32, 4, N>) -> Tile<f32, C, N> {
    let x: Tile<f32, 4, 1, N> = x.reshape();
    let x: Tile<f32, 4, S, N> = x.broadcast();
    x.reshape()
}

/// Row i moved to the columns `place[i]·K ..` of a matrix with `L` = `N`·`K` columns, zero elsewhere: so the product of
/// that with blocks `[K, _]` one below another multiplies every row with the block that it names.
#[device]
fn spread<X: Float, const C: usize, const K: usize, const N: usize, const L: usize>(
    x: Tile<X, C, K>,
    place: Tile<i32, C>,
) -> Tile<X, C, L> {
    let x: Tile<X, C, 1, K> = x.reshape();
    let x: Tile<X, C, N, K> = x.broadcast();
    let here: Tile<bool, C, N> = place.col().tile() == iota::<N>().row().tile();
    let here: Tile<bool, C, N, 1> = here.reshape();
    select(here.broadcast::<D3<C, N, K>>(), x, 0.0).reshape()
}

/// Lower triangular blocks of twice the width: `own` on the diagonal, `corner` (in the second rows) left of it.
#[device]
fn beside<const C: usize, const W: usize, const W2: usize>(
    own: Tile<f32, C, W>,
    corner: Tile<f32, C, W>,
    second: Tile<bool, C>,
) -> Tile<f32, C, W2> {
    let left = select(second.col(), corner, own);
    let right = select(second.col(), own, 0.0);
    left.join(right, 1)
}

/// (I + A)⁻¹ for the strictly lower triangular blocks A of `S` rows that stand one below another.
///
/// Blocks of 1, 2, 4, … rows are inverted in place: with T the inverse of the blocks on the diagonal so far and A_b the
/// part of A that joins two of them, the inverse of the joined blocks is T − T A_b T. No entry of these inverses
/// exceeds 1 (`docs/kda.md`), so nothing grows on the way.
#[device]
fn invert_blocks<X: Float + DotElement<Acc = f32>, const C: usize, const S: usize>(
    a: Tile<f32, C, S>,
) -> Tile<f32, C, S> {
    let block = iota::<C>() / S;
    let (row, column) = ((iota::<C>() % S).col().tile(), iota::<S>().row().tile());
    let identity: Tile<f32, C, S> = select(row == column, full(1.0), 0.0);
    let mut inverse = identity - select((row % 2 == 1) & (column + 1 == row), a, 0.0);
    for level in unroll(1..S.trailing_zeros() as usize) {
        let size = 1usize << level;
        let joins = (row / size % 2 == 1) & (column / size + 1 == row / size);
        let narrow = inverse.cast::<X>();
        let corner = dot(spread::<X, C, S, 4, C>(narrow, block), select(joins, a, 0.0).cast::<X>(), zeros());
        inverse -= dot(spread::<X, C, S, 4, C>(corner.cast(), block), narrow, zeros());
    }
    inverse
}
