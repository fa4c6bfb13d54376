//! The router: sigmoid scores, chosen with a bias that takes no part in the weights.
//!
//! `s = sigmoid(logits)`; the experts are the k largest of `s + bias`; their weights are `s / (Σ s + 1e-20) · scale`
//! ("Auxiliary-loss-free load balancing", arXiv 2408.15664; as transformers' `kimi_linear`).

use kiln::prelude::*;

/// logits `[n, experts]` f32, bias `[experts]` f32 → chosen `[n, K]` i32 by falling biased score, weights `[n, K]` f32.
/// `E` ≥ experts is a power of two. Program: token.
#[kernel]
pub fn route<const E: usize>(
    logits: &View<f32, 2>,
    bias: &View<f32, 1>,
    renormalize: bool,
    scale: f32,
    chosen: &mut View<i32, 2>,
    weights: &mut View<f32, 2>,
) {
    let token = program_id(0);
    let expert = iota::<E>();
    let row = logits.select(0, token);
    let logits: Tile<f32, E> = row.load(0);
    let score = logits.sigmoid();
    let bias: Tile<f32, E> = bias.load(0);
    let mut left = select(expert < row.dim(0), score + bias, f32::NEG_INFINITY);
    let mut total: Tile<f32> = zeros();
    for i in 0..chosen.dim(1) {
        let (_, best) = left.argmax::<0>();
        let weight = select(expert == best, score, 0.0).sum::<0>();
        left = select(expert != best, left, f32::NEG_INFINITY);
        total += weight;
        // SAFETY: a program writes its own token's row.
        unsafe {
            chosen.set((token, i), best);
            weights.set((token, i), weight);
        }
    }
    let factor = select(renormalize, scale / (total + 1e-20), scale);
    for i in 0..chosen.dim(1) {
        let weight = weights.get((token, i));
        // SAFETY: as above.
        unsafe { weights.set((token, i), weight * factor) };
    }
}
