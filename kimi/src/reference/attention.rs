//! Multi-head latent attention without positions.

use rayon::prelude::*;

use super::dense::{dot, linear};

/// Sizes of one MLA layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlaShape {
    /// Heads.
    pub heads: usize,
    /// Width of the latent.
    pub latent: usize,
    /// Part of a key that is expanded from the latent.
    pub nope: usize,
    /// Part of a key that all heads share ("rope" by its name, though nothing is rotated).
    pub rope: usize,
    /// Width of a value.
    pub value: usize,
}

/// Keys and values of all heads from the cache: latent [context, latent] (normalised), shared key [context, rope],
/// `kv_b` [heads * (nope + value), latent] -> k [context, heads, nope + rope], v [context, heads, value].
pub fn mla_expand(shape: MlaShape, latent: &[f64], shared: &[f64], kv_b: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let MlaShape { heads, nope, rope, value, .. } = shape;
    let context = latent.len() / shape.latent;
    assert_eq!((latent.len(), shared.len()), (context * shape.latent, context * rope));
    let expanded = linear(latent, kv_b, shape.latent);
    let mut k = Vec::with_capacity(context * heads * (nope + rope));
    let mut v = Vec::with_capacity(context * heads * value);
    for (at, row) in expanded.chunks_exact(nope + value).enumerate() {
        k.extend(&row[..nope]);
        k.extend(&shared[at / heads * rope..][..rope]);
        v.extend(&row[nope..]);
    }
    (k, v)
}

/// Causal attention of the last `tokens` of a sequence over the whole of it.
///
/// - `q` [tokens, heads, nope + rope]
/// - `latent` [context, latent], already normalised, and `shared` [context, rope]: the cache **including** these
///   tokens, so that query t sees positions `0 ..= context - tokens + t`
/// - `kv_b` [heads * (nope + value), latent]
///
/// The scale is `(nope + rope)^-1/2`.  Returns [tokens, heads, value].
pub fn mla_attention(shape: MlaShape, q: &[f64], latent: &[f64], shared: &[f64], kv_b: &[f64]) -> Vec<f64> {
    let MlaShape { heads, nope, rope, value, .. } = shape;
    let width = nope + rope;
    let (tokens, context) = (q.len() / (heads * width), latent.len() / shape.latent);
    assert!(q.len() == tokens * heads * width && tokens <= context);
    let (k, v) = mla_expand(shape, latent, shared, kv_b);
    let scale = (width as f64).powf(-0.5);
    let mut out = vec![0.0; tokens * heads * value];
    out.par_chunks_exact_mut(value).enumerate().for_each(|(at, out)| {
        let (t, h) = (at / heads, at % heads);
        let visible = context - tokens + t + 1;
        let query = &q[at * width..][..width];
        let scores: Vec<f64> =
            (0..visible).map(|s| dot(query, &k[(s * heads + h) * width..][..width]) * scale).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
        for (s, score) in scores.iter().enumerate() {
            let p = (score - top).exp() / sum;
            for (out, v) in out.iter_mut().zip(&v[(s * heads + h) * value..][..value]) {
                *out += p * v;
            }
        }
    });
    out
}
