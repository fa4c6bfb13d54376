//! Kimi Delta Attention: short convolution, query/key normalisation, decay gate, and the gated delta rule.

use super::dense::{dot, sigmoid, silu, softplus};

/// Sizes of one KDA layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KdaShape {
    /// Heads of q and k.
    pub key_heads: usize,
    /// Heads of v, of the gates and of the state: a multiple. Head h has q and k of head h / (heads / key_heads).
    pub heads: usize,
    /// Width of a key.
    pub key: usize,
    /// Width of a value.
    pub value: usize,
}

/// Depthwise causal convolution, then SiLU.
///
/// - `x` [tokens, channels]; `weight` [channels, taps], the last tap meets the current token.
/// - `state` [channels, taps - 1]: the inputs before the first of `x`, oldest first (zeros at the start of a
///   sequence).  Updated to the last `taps - 1` inputs, so that a later call continues where this one ends.
///
/// Returns [tokens, channels].
pub fn short_convolution(x: &[f64], weight: &[f64], channels: usize, state: &mut [f64]) -> Vec<f64> {
    let (taps, tokens) = (weight.len() / channels, x.len() / channels);
    assert_eq!((weight.len(), x.len()), (channels * taps, channels * tokens));
    assert_eq!(state.len(), channels * (taps - 1));
    let mut y = vec![0.0; x.len()];
    for c in 0..channels {
        let past = &mut state[c * (taps - 1)..][..taps - 1];
        let all: Vec<f64> = past.iter().copied().chain((0..tokens).map(|t| x[t * channels + c])).collect();
        for t in 0..tokens {
            y[t * channels + c] = silu(dot(&all[t..t + taps], &weight[c * taps..][..taps]));
        }
        past.copy_from_slice(&all[tokens..]);
    }
    y
}

/// `x / sqrt(Σ x² + epsilon) * scale` over rows of `width`.
pub fn l2_norm(x: &[f64], width: usize, epsilon: f64, scale: f64) -> Vec<f64> {
    assert!(x.len().is_multiple_of(width));
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(width) {
        let factor = scale / (dot(row, row) + epsilon).sqrt();
        y.extend(row.iter().map(|x| x * factor));
    }
    y
}

/// The decay gate, natural logarithm of what a key channel keeps: `-exp(a_log[head]) * softplus(x + dt_bias)`.
///
/// `x` [tokens, heads, key] is the output of the low-rank projection; `a_log` [heads]; `dt_bias` [heads, key].
/// The result [tokens, heads, key] is at most 0 and not bounded below.
pub fn kda_gate(x: &[f64], a_log: &[f64], dt_bias: &[f64]) -> Vec<f64> {
    of_each_channel(x, a_log, dt_bias, |rate, x| -rate * softplus(x))
}

/// The bounded gate, between `lower_bound` and 0: `lower_bound * sigmoid(exp(a_log[head]) * (x + dt_bias))`; else as
/// [`kda_gate`].
pub fn kda_bounded_gate(x: &[f64], a_log: &[f64], dt_bias: &[f64], lower_bound: f64) -> Vec<f64> {
    of_each_channel(x, a_log, dt_bias, |rate, x| lower_bound * sigmoid(rate * x))
}

/// A function of exp(a_log) and of x with its bias.
fn of_each_channel(x: &[f64], a_log: &[f64], dt_bias: &[f64], gate: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    let key = dt_bias.len() / a_log.len();
    assert_eq!(dt_bias.len(), a_log.len() * key);
    assert!(x.len().is_multiple_of(dt_bias.len()));
    let channels = (0..dt_bias.len()).cycle();
    x.iter().zip(channels).map(|(x, channel)| gate(a_log[channel / key].exp(), x + dt_bias[channel])).collect()
}

/// The gated delta rule, token by token:
///
/// ```text
/// S ← Diag(e^g) S;   u = β (v − Sᵀ k);   S ← S + k uᵀ;   o = Sᵀ q
/// ```
///
/// - `q`, `k` [tokens, key_heads, key] (normalised, q scaled); `g` [tokens, heads, key], natural logarithms ≤ 0;
///   `v` [tokens, heads, value]; `beta` [tokens, heads].
/// - `state` [heads, key, value]: before the first token; updated to after the last.
///
/// Returns o [tokens, heads, value].
pub fn kda_recurrence(
    shape: KdaShape,
    q: &[f64],
    k: &[f64],
    v: &[f64],
    g: &[f64],
    beta: &[f64],
    state: &mut [f64],
) -> Vec<f64> {
    let KdaShape { key_heads, heads, key, value } = shape;
    let tokens = beta.len() / heads;
    assert_eq!(beta.len(), tokens * heads);
    assert!(heads.is_multiple_of(key_heads));
    assert_eq!((q.len(), k.len()), (tokens * key_heads * key, tokens * key_heads * key));
    assert_eq!(g.len(), tokens * heads * key);
    assert_eq!((v.len(), state.len()), (tokens * heads * value, heads * key * value));
    let mut out = vec![0.0; v.len()];
    for t in 0..tokens {
        for h in 0..heads {
            let at = t * heads + h;
            let key_at = t * key_heads + h / (heads / key_heads);
            let (q, k, g) = (&q[key_at * key..][..key], &k[key_at * key..][..key], &g[at * key..][..key]);
            let v = &v[at * value..][..value];
            let state = &mut state[h * key * value..][..key * value];
            let mut seen = vec![0.0; value];
            for d in 0..key {
                let keep = g[d].exp();
                for (s, seen) in state[d * value..][..value].iter_mut().zip(&mut seen) {
                    *s *= keep;
                    *seen += k[d] * *s;
                }
            }
            let update: Vec<f64> = v.iter().zip(&seen).map(|(v, seen)| beta[at] * (v - seen)).collect();
            let o = &mut out[at * value..][..value];
            for d in 0..key {
                for ((s, u), o) in state[d * value..][..value].iter_mut().zip(&update).zip(o.iter_mut()) {
                    *s += k[d] * u;
                    *o += q[d] * *s;
                }
            }
        }
    }
    out
}
