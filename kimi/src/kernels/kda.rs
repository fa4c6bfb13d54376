//! Kimi Delta Attention ("Kimi Linear", arXiv 2510.26692).
//!
//! Per head, with state S `[D, V]`:
//! ```text
//! S ← Diag(exp g_t) S;   u = β_t (v_t − Sᵀ k_t);   S ← S + k_t uᵀ;   o_t = Sᵀ q_t
//! ```
//! The decay g ≤ 0 is per channel and unbounded, so nothing here ever forms exp of a positive number: only differences
//! of cumulative sums G_i − G_j with j ≤ i. A decay below [`FLOOR`] nats a token is set to it: what is left of the past,
//! e^-30 ≈ 1e-13, is under f32's resolution either way, and G keeps its fraction bits.

use kiln::prelude::*;

/// The strongest decay of one token, in nats.
const FLOOR: f32 = -30.0;

/// Normalises q and k per head, and computes decay and write strength.
///
/// qkv `[n, 3·heads·D]` after the convolution; decay_input `[n, heads·D]`; beta_input `[n, heads]`; a_log `[heads]`;
/// dt_bias `[heads·D]` → q, k `[n, heads, D]` (q ← q/|q|·D^-0.5, k ← k/|k|, |x|² = Σx² + 1e-6);
/// g = −exp(a_log)·softplus(decay_input + dt_bias) `[n, heads, D]`; beta = sigmoid(beta_input) `[n, heads]`; all f32.
/// Program: (token, head).
#[kernel]
pub fn kda_gate<T: Float, const D: usize>(
    qkv: &View<T, 2>,
    decay_input: &View<T, 2>,
    beta_input: &View<T, 2>,
    a_log: &View<f32, 1>,
    dt_bias: &View<f32, 1>,
    q: &mut Block<f32, 1, 1, D>,
    k: &mut Block<f32, 1, 1, D>,
    g: &mut Block<f32, 1, 1, D>,
    beta: &mut Block<f32, 1, 1, 1>,
) {
    let (token, head, heads) = (program_id(0), program_id(1), q.dim(1));
    let row = qkv.select(0, token);
    let raw_q: Tile<f32, D> = row.load(head * D).cast();
    let raw_k: Tile<f32, D> = row.load((heads + head) * D).cast();
    let unit_q = raw_q * ((raw_q * raw_q).sum::<0>() + 1e-6).rsqrt();
    let unit_k = raw_k * ((raw_k * raw_k).sum::<0>() + 1e-6).rsqrt();
    q.store((unit_q * (D as f32).powf(-0.5)).reshape());
    k.store(unit_k.reshape());
    let x: Tile<f32, D> = decay_input.select(0, token).load(head * D).cast();
    let dt_bias: Tile<f32, D> = dt_bias.load(head * D);
    let rate = a_log.get(head).exp();
    g.store((-((x + dt_bias).softplus() * rate)).reshape());
    let b = beta_input.get((token, head)).cast::<f32>().sigmoid();
    beta.store(b.splat());
}

/// The recurrence, token by token: few tokens of many sequences (decode).
///
/// q, k, g `[n, heads, D]`, v = qkv's last third, beta `[n, heads]`; sequence s has tokens `bounds[s] .. bounds[s+1]`
/// and its state in slot `slot[bounds[s]]` of state `[slots, heads, D, D]` f32, read and replaced → o `[n, heads, D]`.
/// Program: (value block of `V` columns, head, sequence).
#[kernel]
pub fn kda_recurrent<T: Float, const D: usize, const V: usize>(
    q: &View<f32, 3>,
    k: &View<f32, 3>,
    g: &View<f32, 3>,
    beta: &View<f32, 2>,
    qkv: &View<T, 2>,
    bounds: &View<i32, 1>,
    slot: &View<i32, 1>,
    state: &mut View<f32, 4>,
    o: &mut View<T, 3>,
) {
    let (column, head, sequence) = (program_id(0) * V, program_id(1), program_id(2));
    let (start, end) = (bounds.get(sequence), bounds.get(sequence + 1));
    let slot = slot.get(start.min(end - 1));
    let values = (q.dim(1) * 2 + head) * D + column;
    let stored: Tile<f32, 1, 1, D, V> = state.load((slot, head, 0, column));
    let mut s: Tile<f32, D, V> = stored.reshape();
    for t in start..end {
        let q: Tile<f32, D> = q.select(0, t).select(0, head).load(0);
        let k: Tile<f32, D> = k.select(0, t).select(0, head).load(0);
        let g: Tile<f32, D> = g.select(0, t).select(0, head).load(0);
        let v: Tile<f32, V> = qkv.select(0, t).load(values).cast();
        s = s * g.exp().col();
        let u = (v - (s * k.col()).sum::<0>()) * beta.get((t, head));
        s += k.col().tile() * u.row();
        let out: Tile<f32, V> = (s * q.col()).sum::<0>();
        // SAFETY: a program writes the columns of its own sequence, head and block.
        unsafe { o.store((t, head, column), out.cast::<T>().reshape::<D3<1, 1, V>>()) };
    }
    // SAFETY: as above; a slot belongs to one sequence.
    unsafe { state.store((slot, head, 0, column), s.reshape::<D4<1, 1, D, V>>()) };
}

/// The inverse of I + A for strictly lower triangular A, by forward substitution: row i is e_i − Σ_{j<i} A_ij row_j.
#[device]
pub fn unit_lower_inverse<const C: usize>(a: Tile<f32, C, C>) -> Tile<f32, C, C> {
    let row = iota::<C>();
    let identity: Tile<f32, C, C> = select(row.col().tile() == row.row().tile(), full(1.0), 0.0);
    let mut inverse = identity;
    for i in 1..C {
        let picked = row == i;
        let a_i = select(picked.col(), a, 0.0).sum::<0>();
        let correction = (inverse * a_i.col()).sum::<0>();
        inverse = select(picked.col(), identity - correction.row(), inverse);
    }
    inverse
}

/// The recurrence in chunks of `C` tokens (WY / UT form), for prompts. Arguments and programs as [`kda_recurrent`].
///
/// With G the inclusive cumulative sum of g inside a chunk:
/// ```text
/// A[i,j]   = β_i Σ_d k_i k_j e^{G_i − G_j}  (j < i)      P[i,j] = Σ_d q_i k_j e^{G_i − G_j}  (j ≤ i)
/// u        = (I + A)⁻¹ Diag(β) (v − (k ⊙ e^G) S)
/// o        = (q ⊙ e^G) S + P u
/// S        ← Diag(e^{G_C}) S + (k ⊙ e^{G_C − G})ᵀ u
/// ```
/// The ratio e^{G_i − G_j} is per channel: it is formed explicitly for `B` channels at a time.
#[kernel]
pub fn kda_chunked<T: Float, const D: usize, const V: usize, const C: usize, const B: usize>(
    q: &View<f32, 3>,
    k: &View<f32, 3>,
    g: &View<f32, 3>,
    beta: &View<f32, 2>,
    qkv: &View<T, 2>,
    bounds: &View<i32, 1>,
    slot: &View<i32, 1>,
    state: &mut View<f32, 4>,
    o: &mut View<T, 3>,
) {
    let (column, head, sequence) = (program_id(0) * V, program_id(1), program_id(2));
    let (start, end) = (bounds.get(sequence), bounds.get(sequence + 1));
    let slot = slot.get(start.min(end - 1));
    let values = (q.dim(1) * 2 + head) * D + column;
    // This sequence's tokens of this head; beyond its end everything is zero, which leaves the state as it is.
    let (q, k, g) = (q.select(1, head), k.select(1, head), g.select(1, head));
    let (q, k, g) = (q.narrow(0, start, end - start), k.narrow(0, start, end - start), g.narrow(0, start, end - start));
    let beta = beta.select(1, head).narrow(0, start, end - start);
    let v = qkv.narrow(0, start, end - start);
    let i = iota::<C>().col().tile();
    let j = iota::<C>().row().tile();

    let stored: Tile<f32, 1, 1, D, V> = state.load((slot, head, 0, column));
    let mut s: Tile<f32, D, V> = stored.reshape();
    for t in (0..end - start).step_by(C) {
        let mut a: Tile<f32, C, C> = zeros();
        let mut p: Tile<f32, C, C> = zeros();
        for d in (0..D).step_by(B) {
            let q: Tile<f32, C, B> = q.load((t, d));
            let k: Tile<f32, C, B> = k.load((t, d));
            let g: Tile<f32, C, B> = g.load((t, d));
            let sum = g.max(FLOOR).cumsum::<0>();
            let ratio = (rows::<C, B>(sum) - columns::<C, B>(sum)).min(0.0).exp();
            let weighted = ratio * columns::<C, B>(k);
            a += (rows::<C, B>(k) * weighted).sum::<2>();
            p += (rows::<C, B>(q) * weighted).sum::<2>();
        }
        let beta: Tile<f32, C> = beta.load(t);
        let inverse = unit_lower_inverse::<C>(select(j < i, a * beta.col(), 0.0));
        let p = select(j <= i, p, 0.0);

        let q: Tile<f32, C, D> = q.load((t, 0));
        let k: Tile<f32, C, D> = k.load((t, 0));
        let g: Tile<f32, C, D> = g.load((t, 0)).max(FLOOR);
        let sum = g.cumsum::<0>();
        let total = g.sum::<0>();
        let v: Tile<f32, C, V> = v.load((t, values)).cast();
        let missing = (v - dot(k * sum.exp(), s, zeros())) * beta.col();
        let u = dot(inverse, missing, zeros());
        let out = dot(q * sum.exp(), s, dot(p, u, zeros()));
        let kept = k * (total.row().tile() - sum).min(0.0).exp();
        s = dot(kept.t(), u, s * total.exp().col());

        // Rows past the end lie outside the narrowed view and are not written.
        let mut mine = o.narrow(0, start, end - start);
        // SAFETY: a program writes the columns of its own sequence, head and block.
        unsafe { mine.store((t, head, column), out.cast::<T>().reshape::<D3<C, 1, V>>()) };
    }
    // SAFETY: as above; a slot belongs to one sequence.
    unsafe { state.store((slot, head, 0, column), s.reshape::<D4<1, 1, D, V>>()) };
}

/// Element (i, j, d) = x[i, d].
#[device]
fn rows<const C: usize, const B: usize>(x: Tile<f32, C, B>) -> Tile<f32, C, C, B> {
    let x: Tile<f32, C, 1, B> = x.reshape();
    x.broadcast()
}

/// Element (i, j, d) = x[j, d].
#[device]
fn columns<const C: usize, const B: usize>(x: Tile<f32, C, B>) -> Tile<f32, C, C, B> {
    let x: Tile<f32, 1, C, B> = x.reshape();
    x.broadcast()
}
