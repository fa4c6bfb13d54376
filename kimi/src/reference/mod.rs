//! What every operation of the model means: naive, in f64, one function an operation.
//!
//! These functions are the oracles that kernels are compared with, and [`model::ReferenceModel`] is the whole model
//! made of them.  They are written to be read next to the paper (arXiv 2510.26692) and not to be fast: no chunks, no
//! blocking, no fused steps; the delta rule goes token by token and attention expands every key and value.
//!
//! Conventions: tensors are row-major slices, shapes are written `[rows, columns]` with the last index running
//! fastest; a weight is `[out, in]` as in the checkpoint; `tokens` may be 0 everywhere.  A slice whose length does not
//! fit the stated shape is a bug of the caller and panics.

mod attention;
mod delta;
mod dense;
pub mod engine;
mod experts;
pub mod model;

pub use attention::{MlaShape, mla_attention, mla_expand};
pub use delta::{KdaShape, kda_bounded_gate, kda_gate, kda_recurrence, l2_norm, short_convolution};
pub use dense::{
    add, argmax, embedding, gated_rms_norm, linear, log_softmax, negative_log_likelihood, rms_norm, sigmoid, silu,
    softplus, swiglu,
};
pub use experts::{RouterShape, Routing, experts, feed_forward, route};

/// `|a - b| / |b|` in the Euclidean norm: the error measure of every comparison in this project.  Where the expected
/// `b` is all zero it is `|a|`.  NaN and infinities in `a` make it infinite, so that no comparison lets them pass.
pub fn relative_error<A: Copy + Into<f64>, B: Copy + Into<f64>>(a: &[A], b: &[B]) -> f64 {
    assert_eq!(a.len(), b.len(), "comparing tensors of different sizes");
    let (mut difference, mut norm) = (0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b): (f64, f64) = ((*a).into(), (*b).into());
        difference += (a - b) * (a - b);
        norm += b * b;
    }
    let error = if norm > 0.0 { (difference / norm).sqrt() } else { difference.sqrt() };
    if error.is_nan() { f64::INFINITY } else { error }
}

#[cfg(test)]
mod tests;
