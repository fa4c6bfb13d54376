//! Mixture of experts: the router's choice and the experts' sum.

use super::dense::{linear, sigmoid, swiglu};
use crate::checkpoint::SwiGlu;

/// What a router is told besides its scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterShape {
    /// Experts chosen for a token.
    pub chosen: usize,
    /// Divide the chosen weights by their sum (plus 1e-20).
    pub renormalize: bool,
    /// Factor on the weights, after that.
    pub scale: f64,
}

/// The router's choice for some tokens; experts of a token by falling weight (of equals, the lower index first).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routing {
    /// Chosen experts [tokens, chosen].
    pub experts: Vec<u32>,
    /// Their weights [tokens, chosen].
    pub weights: Vec<f64>,
    /// By how much the biased score of the last expert taken leads the first one left out [tokens]; infinite where
    /// all are taken.  A choice with a small margin may legitimately differ in lower precision.
    pub margin: Vec<f64>,
}

/// Chooses experts: the best of `sigmoid(logits) + bias`; the weights are the **unbiased** sigmoids.
///
/// `logits` [tokens, experts] (the router's linear layer), `bias` [experts].  Among equal biased scores the lower
/// index is chosen.
pub fn route(shape: RouterShape, logits: &[f64], bias: &[f64]) -> Routing {
    let count = bias.len();
    assert!(logits.len().is_multiple_of(count) && shape.chosen <= count);
    let mut routing = Routing::default();
    for row in logits.chunks_exact(count) {
        let scores: Vec<f64> = row.iter().map(|x| sigmoid(*x)).collect();
        let biased = |e: &usize| scores[*e] + bias[*e];
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by(|a, b| biased(b).total_cmp(&biased(a)));
        let left_out = order.get(shape.chosen).map_or(f64::NEG_INFINITY, &biased);
        let (mut best, last) = (order[..shape.chosen].to_vec(), biased(&order[shape.chosen - 1]));
        routing.margin.push(last - left_out);
        best.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        let sum: f64 = if shape.renormalize { best.iter().map(|e| scores[*e]).sum::<f64>() + 1e-20 } else { 1.0 };
        routing.weights.extend(best.iter().map(|e| scores[*e] / sum * shape.scale));
        routing.experts.extend(best.iter().map(|e| *e as u32));
    }
    routing
}

/// One SwiGLU feed-forward, `down (silu(gate x) * up x)`: x [tokens, hidden] -> [tokens, hidden].
pub fn feed_forward(x: &[f64], hidden: usize, weights: &SwiGlu<Vec<f64>>) -> Vec<f64> {
    let width = weights.down.len() / hidden;
    let inner = swiglu(&linear(x, &weights.gate, hidden), &linear(x, &weights.up, hidden));
    linear(&inner, &weights.down, width)
}

/// The weighted sum of each token's chosen experts: x [tokens, hidden] -> [tokens, hidden].
pub fn experts(x: &[f64], hidden: usize, routing: &Routing, all: &[SwiGlu<Vec<f64>>]) -> Vec<f64> {
    let tokens = x.len() / hidden;
    let mut out = vec![0.0; x.len()];
    if tokens == 0 {
        return out;
    }
    let chosen = routing.experts.len() / tokens;
    for t in 0..tokens {
        let (x, out) = (&x[t * hidden..][..hidden], &mut out[t * hidden..][..hidden]);
        for at in t * chosen..(t + 1) * chosen {
            let y = feed_forward(x, hidden, &all[routing.experts[at] as usize]);
            for (out, y) in out.iter_mut().zip(y) {
                *out += routing.weights[at] * y;
            }
        }
    }
    out
}
