//! Multi-head latent attention (MLA; "DeepSeek-V2", arXiv 2405.04434) without positions.
//!
//! The cache keeps per token the normalised latent c `[R]` and the shared key part k_r `[P]`. Prefill expands c to
//! per-head keys and values and runs flash attention (arXiv 2307.08691). Decode *absorbs* the expansion into the query
//! and the output: all heads share one key (c, k_r) and one value c; the context is split over programs and the parts
//! are combined by their log-sum-exps.

use kiln::prelude::*;

/// Splits the projection of a token into the cache's two parts, normalising the latent.
///
/// projected `[n, R + P]`, weight `[R]` → latent cache `[capacity, R]` and rope cache `[capacity, P]`, at rows
/// `position ..`. Program: token. `PB` ≥ P is a power of two.
#[kernel]
pub fn mla_cache<T: Float, W: Float, const R: usize, const PB: usize>(
    projected: &View<T, 2>,
    weight: &View<W, 1>,
    eps: f32,
    position: &View<i32, 1>,
    latent: &mut View<T, 2>,
    shared: &mut View<T, 2>,
) {
    let token = program_id(0);
    let at = position.get(0) + token;
    let row = projected.select(0, token);
    let c: Tile<f32, R> = row.load(0).cast();
    let weight: Tile<f32, R> = weight.load(0).cast();
    let scale = ((c * c).sum::<0>() / (R as f32) + eps).rsqrt();
    let k: Tile<T, PB> = row.load(R);
    // SAFETY: each token has a row of the cache of its own.
    unsafe {
        latent.store((at, 0), (c * scale * weight).cast::<T>().reshape::<D2<1, R>>());
        shared.store((at, 0), k.reshape::<D2<1, PB>>());
    }
}

/// Flash attention of a prompt (piece) over the expanded cache, causal.
///
/// q `[n, heads·(N + P)]` (per head N without, then P), kv `[context, heads·(N + V)]` (per head N of key, then V of
/// value), shared `[context, P]` → out `[n, heads·V]`. Query i stands at position `position[0] + i` and sees keys up to
/// there. scale > 0. `B` keys at a time; `PB` ≥ P is a power of two. Programs along axis 0, one for each tile of `M`
/// queries and head: of `together` heads at a time, so that their keys stay in the cache, the last tiles first, since
/// they have the most to do.
///
/// The values of a block of keys are added one turn after its scores (FlashAttention-3, arXiv 2407.08608): in each turn
/// the tensor cores have both products to do while the exponentials are computed.
#[kernel(deny(spill, wgmma_serialized, bank_conflict))]
pub fn mla_prefill<T, const N: usize, const PB: usize, const V: usize, const M: usize, const B: usize>(
    q: &View<T, 2>,
    kv: &View<T, 2>,
    shared: &View<T, 2>,
    position: &View<i32, 1>,
    scale: f32,
    together: i32,
    out: &mut View<T, 2>,
) where
    T: Float + DotElement<Acc = f32>,
{
    let (tiles, heads) = ((q.dim(0) + (M - 1)) / M, out.dim(1) / V);
    let group = program_id(0) / (together * tiles) * together;
    let within = program_id(0) - group * tiles;
    let together = together.min(heads - group);
    let (first, head) = ((tiles - 1 - within / together) * M, group + within % together);
    let rope = shared.dim(1);
    let q_at = head * (rope + N);
    let kv_at = head * (N + V);
    let position = position.get(0) + first;
    let q_nope: Tile<T, M, N> = q.load((first, q_at));
    let q_rope: Tile<T, M, PB> = q.load((first, q_at + N));
    let query = iota::<M>() + position;

    let mut highest: Tile<f32, M> = full(f64::NEG_INFINITY);
    let mut total: Tile<f32, M> = zeros();
    let mut acc: Tile<f32, M, V> = zeros();
    let mut p: Tile<T, M, B> = zeros();
    // exp2 with the scale folded in: 2^(s·log2 e) = e^s.
    let scale = scale * std::f32::consts::LOG2_E;
    let context = (position + M).min(kv.dim(0));
    for start in (0..context + B).step_by(B) {
        let k_nope: Tile<T, B, N> = kv.load((start, kv_at));
        // Where P < PB the query's columns beyond P are the next head's: the key's are zero.
        let k_rope: Tile<T, B, PB> = shared.load((start, 0));
        let mut s = dot(q_rope, k_rope.t(), dot(q_nope, k_nope.t(), zeros()));
        let v: Tile<T, B, V> = kv.load((start - B, kv_at + N));
        acc = dot(p, v, acc);
        // Only blocks that reach beyond the first query need the mask.
        if start + B > position {
            let key = iota::<B>() + start;
            s = select(key.row().tile() <= query.col().tile(), s, f32::NEG_INFINITY);
        }
        let new_highest = highest.max(s.amax::<1>() * scale);
        // A row that has seen no key yet keeps -inf as its highest; subtracting 0 instead keeps NaN away.
        let base = select(new_highest == f32::NEG_INFINITY, zeros(), new_highest);
        let weight = (s * scale - base.col()).exp2();
        let correction = (highest - base).exp2();
        total = total * correction + weight.sum::<1>();
        acc = acc * correction.col();
        p = weight.cast::<T>();
        highest = new_highest;
    }
    // SAFETY: each program has queries and a head of its own.
    unsafe { out.store((first, head * V), (acc * total.max(1e-30).recip().col()).cast::<T>()) };
}

/// Per head, a row times a slice of kv_b: the absorbed query, or the output from the latent.
///
/// `KEY`: x `[n, heads·(N + P)]` → y `[n, heads·R]`, y = xᵀ·W_k with W_k `[N, R]` = rows `head·(N + V) ..` of kv_b.
/// Program: (token, head). `B` rows of kv_b at a time.
#[kernel]
pub fn mla_absorb_query<T: Float, W: Float, const N: usize, const R: usize, const B: usize>(
    q: &View<T, 2>,
    kv_b: &View<W, 2>,
    rope: i32,
    value: i32,
    y: &mut Block<T, 1, R>,
) {
    let (token, head) = (program_id(0), program_id(1));
    let q = q.select(0, token);
    let mut sum: Tile<f32, R> = zeros();
    for n in (0..N).step_by(B) {
        let q: Tile<f32, B> = q.load(head * (rope + N) + n).cast();
        let w: Tile<f32, B, R> = kv_b.load((head * (value + N) + n, 0)).cast();
        sum += (w * q.col()).sum::<0>();
    }
    y.store(sum.cast::<T>().reshape());
}

/// The value half of kv_b applied to the attended latent: x `[n, heads·R]` f32 → y `[n, heads·V]`, y = W_v·x with W_v
/// `[V, R]` = rows `head·(N + V) + N ..` of kv_b. Program: (token, head).
#[kernel]
pub fn mla_expand_value<T: Float, W: Float, const V: usize, const R: usize, const B: usize>(
    x: &View<f32, 2>,
    kv_b: &View<W, 2>,
    nope: i32,
    y: &mut Block<T, 1, V>,
) {
    let (token, head) = (program_id(0), program_id(1));
    let x = x.select(0, token);
    let mut acc: Tile<f32, V, B> = zeros();
    for r in (0..R).step_by(B) {
        let x: Tile<f32, B> = x.load(head * R + r);
        let w: Tile<f32, V, B> = kv_b.load((head * (nope + V) + nope, r)).cast();
        acc += w * x.row();
    }
    y.store(acc.sum::<1>().cast::<T>().reshape());
}

/// Heads and channels of one of the `parts` parts of a tile in [`mla_decode`], all powers of two.
pub const fn part_of_tile(heads: usize, channels: usize, parts: usize) -> [usize; 2] {
    if parts <= heads { [heads / parts, channels] } else { [1, channels * heads / parts] }
}

/// One split of absorbed attention for one token: `H` heads share the keys, which are read once for all of them.
///
/// q_latent `[n, heads, R]`, q `[n, heads, N + P]`, latent `[sequences, capacity, R]`, shared `[sequences, capacity, P]` →
/// out `[n, heads, R]` f32. Each sequence has n / sequences tokens, and its i-th sees `position[sequence] + i + 1` keys;
/// rows beyond are finite. scale > 0. Program: (tile of `H` heads, split, token), so that those which read the same keys are
/// neighbours; `B` keys at a time. `PB` ≥ P is a power of two. The splits take turns, a block of keys each, so that they
/// read what lies side by side at the same time; of little, the last ones have nothing.
///
/// If there are several, `S` ≥ splits is a power of two, and they leave partial `[n, splits, heads, R]` f32 (not
/// normalised) and, in units of log2, their highest scores and sums `[n, splits, heads]`. When all have, each puts a part
/// of the tile together: `SH` heads and `SR` channels, an `S`-th.
///
/// Scores and sums are transposed, keys and channels along the rows: there are more of those than of heads, and the
/// tensor cores take rows by 64. `ONCE`: the caches are read once, or by neighbours, and leave room in the device's own
/// cache for what others have written.
#[kernel(
    warps = 4,
    evict_first(latent if ONCE, shared if ONCE),
    deny(spill, wgmma_serialized, bank_conflict)
)]
pub fn mla_decode<
    T,
    const R: usize,
    const PB: usize,
    const H: usize,
    const B: usize,
    const S: usize,
    const SH: usize,
    const SR: usize,
    const ONCE: bool,
>(
    q_latent: &View<T, 3>,
    q: &View<T, 3>,
    latent: &View<T, 3>,
    shared: &View<T, 3>,
    position: &View<i32, 1>,
    scale: f32,
    partial: &mut View<f32, 4>,
    highest_of: &mut View<f32, 3>,
    total_of: &mut View<f32, 3>,
    out: &mut View<f32, 3>,
) where
    T: Float + DotElement<Acc = f32>,
{
    let (head, split, token) = (program_id(0) * H, program_id(1), program_id(2));
    let each = q.dim(0) / position.dim(0);
    let sequence = token / each;
    let rope = shared.dim(2);
    let q_latent: Tile<T, H, R> = q_latent.select(0, token).load((head, 0));
    let q_rope: Tile<T, H, PB> = q.select(0, token).load((head, q.dim(2) - rope));
    let (latent, shared) = (latent.select(0, sequence), shared.select(0, sequence));
    let context = (position.get(sequence) + token % each + 1).min(latent.dim(0));
    let splits = num_programs(1);

    let mut highest: Tile<f32, H> = full(f64::NEG_INFINITY);
    let mut weights: Tile<f32, B, H> = zeros();
    let mut acc: Tile<f32, R, H> = zeros();
    let scale = scale * std::f32::consts::LOG2_E;
    for start in (split * B..context).step_by(splits * B) {
        let c: Tile<T, B, R> = latent.load((start, 0));
        let k: Tile<T, B, PB> = shared.load((start, 0));
        let s = dot(k, q_rope.t(), dot(c, q_latent.t(), zeros()));
        let visible = iota::<B>() + start < context;
        let s = select(visible.col(), s, f32::NEG_INFINITY);
        // The first key of a block is always visible, so the highest is finite.
        let new_highest = highest.max(s.amax::<0>() * scale);
        let p = (s * scale - new_highest.row()).exp2();
        let correction = (highest - new_highest).exp2();
        // Added up over keys at the end only.
        weights = weights * correction.row() + p;
        acc = dot(c.t(), p.cast::<T>(), acc * correction.row());
        highest = new_highest;
    }
    let total = weights.sum::<0>();
    if S == 1 {
        let o = acc * total.recip().row();
        // SAFETY: a program has heads and a token of its own.
        unsafe { out.store((token, head, 0), o.t().reshape::<D3<1, H, R>>()) };
    } else {
        // SAFETY: a program writes its own split, heads and token.
        unsafe {
            partial.store((token, split, head, 0), acc.t().reshape::<D4<1, 1, H, R>>());
            highest_of.store((token, split, head), highest.reshape::<D3<1, 1, H>>());
            total_of.store((token, split, head), total.reshape::<D3<1, 1, H>>());
        }
        grid_sync();
        for part in (split..S as i32).step_by(splits) {
            let at = part * (SH * SR);
            let (head, channel) = (head + at / R, at % R);
            let parts: Tile<f32, 1, S, SH, SR> = partial.load((token, 0, head, channel));
            let highest: Tile<f32, 1, S, SH> = highest_of.load_or((token, 0, head), full(f64::NEG_INFINITY));
            let total: Tile<f32, 1, S, SH> = total_of.load((token, 0, head));
            let highest: Tile<f32, S, SH> = highest.reshape();
            // The first split has a key, so that the highest of all is finite.
            let factor = (highest - highest.amax::<0>().row()).exp2();
            let weight = (total.reshape::<D2<S, SH>>() * factor).sum::<0>();
            let factor = factor.reshape::<D3<S, SH, 1>>().broadcast::<D3<S, SH, SR>>();
            let sum = (parts.reshape::<D3<S, SH, SR>>() * factor).sum::<0>();
            let o = sum * weight.recip().col();
            // SAFETY: each part of a tile is one program's.
            unsafe { out.store((token, head, channel), o.reshape::<D3<1, SH, SR>>()) };
        }
    }
}
