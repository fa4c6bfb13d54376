//! Every operation of Kimi Linear as a `#[kernel]`.
//!
//! Conventions: `T` is the type of activations (f32, bf16, f16), `W` of weights; arithmetic between is f32. Token-major
//! layouts: `[token, channel]` or `[token, head, channel]`. Each file states the formula it computes; the naive version
//! stands in `reference/` under the same name.

pub mod attention;
pub mod embedding;
pub mod experts;
pub mod kda;
pub mod linear;
pub mod norm;
pub mod position;
pub mod router;
pub mod sampling;
pub mod short_conv;
pub mod swiglu;
