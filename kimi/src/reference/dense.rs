//! Operations that look at one token at a time: norms, linear layers, activations, the loss.

use rayon::prelude::*;

/// The logistic function, without overflow for any input.
pub fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

/// `x * sigmoid(x)`.
pub fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

/// `ln(1 + e^x)`; the identity above 20, as PyTorch defines it.
pub fn softplus(x: f64) -> f64 {
    if x > 20.0 { x } else { x.exp().ln_1p() }
}

/// Rows of `table` [vocabulary, width] -> [tokens, width].
pub fn embedding(ids: &[u32], table: &[f64], width: usize) -> Vec<f64> {
    ids.iter().flat_map(|&id| &table[id as usize * width..][..width]).copied().collect()
}

/// `x Wᵀ`: x [tokens, inputs], weight [outputs, inputs] -> [tokens, outputs].
pub fn linear(x: &[f64], weight: &[f64], inputs: usize) -> Vec<f64> {
    assert!(x.len().is_multiple_of(inputs) && weight.len().is_multiple_of(inputs));
    let outputs = weight.len() / inputs;
    let mut y = vec![0.0; x.len() / inputs * outputs];
    // Parallel over outputs: a single token is the common case, and rows of the weight are what memory streams.
    let columns: Vec<Vec<f64>> = weight
        .par_chunks_exact(inputs)
        .with_min_len(32)
        .map(|row| x.chunks_exact(inputs).map(|x| dot(x, row)).collect())
        .collect();
    for (o, column) in columns.iter().enumerate() {
        for (t, value) in column.iter().enumerate() {
            y[t * outputs + o] = *value;
        }
    }
    y
}

/// Sum of products, in four interleaved partial sums so that it vectorises.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let (a4, a_rest) = a.as_chunks::<4>();
    let (b4, b_rest) = b.as_chunks::<4>();
    let mut sums = [0.0; 4];
    for (a, b) in a4.iter().zip(b4) {
        for i in 0..4 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest
}

/// `a + b`, the residual connection; any shape.
pub fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// `x / sqrt(mean(x²) + epsilon) * weight` over the last axis: x [rows, width], weight [width].
pub fn rms_norm(x: &[f64], weight: &[f64], epsilon: f64) -> Vec<f64> {
    let width = weight.len();
    assert!(x.len().is_multiple_of(width));
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(width) {
        let scale = 1.0 / (dot(row, row) / width as f64 + epsilon).sqrt();
        y.extend(row.iter().zip(weight).map(|(x, w)| x * scale * w));
    }
    y
}

/// `rms_norm(x) * sigmoid(gate)`: KDA's output norm.  x, gate [rows, width]; the weight [width] is shared by rows.
pub fn gated_rms_norm(x: &[f64], gate: &[f64], weight: &[f64], epsilon: f64) -> Vec<f64> {
    assert_eq!(x.len(), gate.len());
    rms_norm(x, weight, epsilon).iter().zip(gate).map(|(y, g)| y * sigmoid(*g)).collect()
}

/// `silu(gate) * up`, any shape.
pub fn swiglu(gate: &[f64], up: &[f64]) -> Vec<f64> {
    assert_eq!(gate.len(), up.len());
    gate.iter().zip(up).map(|(g, u)| silu(*g) * u).collect()
}

/// Index of the largest value, the first one of equals.  NaN never wins.
pub fn argmax(x: &[f64]) -> usize {
    let mut best = 0;
    for (i, value) in x.iter().enumerate() {
        if *value > x[best] || x[best].is_nan() && !value.is_nan() {
            best = i;
        }
    }
    best
}

/// `x - ln Σ e^x` over one row.
pub fn log_softmax(x: &[f64]) -> Vec<f64> {
    let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let log_sum = top + x.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
    x.iter().map(|x| x - log_sum).collect()
}

/// `-Σ ln p(ids[t + 1])` in nats: logits [tokens, vocabulary] of which row t predicts `ids[t + 1]`; the last row
/// predicts nothing that is known and is not used.
pub fn negative_log_likelihood(logits: &[f32], ids: &[u32], vocabulary: usize) -> f64 {
    assert_eq!(logits.len(), ids.len() * vocabulary);
    let rows: Vec<_> = logits.chunks_exact(vocabulary).zip(ids.iter().skip(1)).collect();
    rows.par_iter()
        .map(|(row, next)| {
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|x| f64::from(x - top).exp()).sum();
            f64::from(top) + sum.ln() - f64::from(row[**next as usize])
        })
        .collect::<Vec<_>>()
        .iter()
        .sum()
}
