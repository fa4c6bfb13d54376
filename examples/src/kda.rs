//! Inputs of Kimi Delta Attention ("Kimi Linear", arXiv 2510.26692), the rule itself in f64, and what the rungs that
//! compute it share on the device: the decay gate, and the inverse that the chunked forms need.

use crate::Setup;
use anyhow::Result;
use kiln::prelude::*;
use kiln::{DType, Device, Tensor};
use std::f32::consts::LOG2_E;

/// Width of a key, and of a value.
pub const D: usize = 128;

/// Tokens of a chunk.
pub const C: usize = 16;

/// Bits that a channel loses at most per token, where a chunk's decays are split around one anchor.
pub const FLOOR: f32 = 14.0;

/// Random inputs on the device, and what they are on the host.
pub struct Inputs {
    pub heads: usize,
    pub tokens: usize,
    /// `[heads, tokens, D]`, of length 1.
    pub q: Tensor,
    /// `[heads, tokens, D]`, of length 1.
    pub k: Tensor,
    /// `[heads, tokens, D]`.
    pub v: Tensor,
    /// `[heads, tokens, D]`, what a channel's decay is made of.
    pub x: Tensor,
    /// `[heads]` f32, e^A_log.
    pub rate: Tensor,
    /// `[heads, tokens]` f32 in 0..1, how much of the difference is written.
    pub beta: Tensor,
    dtype: DType,
    host: [Vec<f32>; 6],
}

/// As many heads as a layer of the 48 B model has, where a device can take them.
pub fn heads(device: Device) -> usize {
    match device {
        Device::Interpret => 1,
        Device::Cpu => 4,
        Device::Cuda(_) => 32,
    }
}

impl Inputs {
    /// `setup.size` tokens; q, k, v and x in `dtype`.
    pub fn random(setup: &mut Setup, dtype: DType, heads: usize) -> Result<Inputs> {
        let tokens = setup.size;
        let n = heads * tokens;
        let (q, k) = setup.queries_and_keys(n, D);
        let v = setup.random(n * D, -1.0..1.0);
        // A channel remembers some tokens or thousands; the forgetful half is erased at once now and then.
        let usual = setup.random(heads * D, -12.0..-2.0);
        let mut x = setup.random(n * D, -1.0..1.0);
        let sudden = setup.random(n * D, 0.0..1.0);
        for (i, x) in x.iter_mut().enumerate() {
            let usual = usual[i / (tokens * D) * D + i % D];
            *x += if usual > -7.0 && sudden[i] < 0.02 { 30.0 } else { usual };
        }
        let rate = setup.random(heads, 1.0..16.0);
        let beta = setup.random(n, 0.0..1.0);

        let wide = |x: &[f32]| Tensor::from_f32(x, dtype, &[heads, tokens, D], setup.device);
        let (q, k, v, x) = (wide(&q)?, wide(&k)?, wide(&v)?, wide(&x)?);
        // The f64 recurrence gets what the kernels get: after rounding.
        let host = [q.to_vec_f32()?, k.to_vec_f32()?, v.to_vec_f32()?, x.to_vec_f32()?, rate.clone(), beta.clone()];
        let (rate, beta) = (setup.tensor(&rate, &[heads])?, setup.tensor(&beta, &[heads, tokens])?);
        Ok(Inputs { heads, tokens, q, k, v, x, rate, beta, dtype, host })
    }

    /// Of the output.
    pub fn shape(&self) -> [usize; 3] {
        [self.heads, self.tokens, D]
    }

    pub fn problem(&self) -> String {
        format!("{} heads, {} tokens, keys and values of {D}, {}", self.heads, self.tokens, self.dtype)
    }

    /// Operations of the recurrence: fade 1, look up 2, write 2, read 2, for each element of the memory and token.
    pub fn flops(&self) -> usize {
        7 * self.heads * self.tokens * D * D
    }

    /// o `[tokens, D]` of one head, token by token, in f64.
    pub fn expected(&self, head: usize) -> Vec<f64> {
        let [q, k, v, x, rate, beta] = &self.host;
        let mut s = vec![[0f64; D]; D];
        let mut out = Vec::with_capacity(self.tokens * D);
        for t in head * self.tokens..(head + 1) * self.tokens {
            let of = |x: &[f32]| -> [f64; D] { std::array::from_fn(|d| x[t * D + d] as f64) };
            let (q, k, v, x) = (of(q), of(k), of(v), of(x));
            let mut said = [0.0; D];
            for ((row, x), k) in s.iter_mut().zip(x).zip(k) {
                let softplus = x.max(0.0) + (-x.abs()).exp().ln_1p();
                let keep = (-f64::from(rate[head]) * softplus).exp();
                row.iter_mut().for_each(|s| *s *= keep);
                said.iter_mut().zip(&*row).for_each(|(said, s)| *said += k * s);
            }
            let u: [f64; D] = std::array::from_fn(|column| beta[t] as f64 * (v[column] - said[column]));
            let mut read = [0.0; D];
            for ((row, k), q) in s.iter_mut().zip(k).zip(q) {
                row.iter_mut().zip(&u).for_each(|(s, u)| *s += k * u);
                read.iter_mut().zip(&*row).for_each(|(read, s)| *read += q * s);
            }
            out.extend(read);
        }
        out
    }
}

/// Logarithm to base 2 of what a channel keeps, at most 0 and without bound: −rate·softplus(x)·log2 e.
#[device]
pub fn log2_decay<S: Shape>(x: Tile<f32, S>, rate: Tile<f32>) -> Tile<f32, S> {
    x.softplus() * (rate * -LOG2_E).splat::<S>()
}

/// (I + A)⁻¹ for strictly lower triangular A, by matrix products.
///
/// With T the inverse of the blocks on the diagonal (first of one row, then of 2, 4, …) and B what of A joins two
/// neighbours, the inverse of the joined blocks is T − T B T.
#[device]
pub fn unit_lower_inverse<const C: usize>(a: Tile<f32, C, C>) -> Tile<f32, C, C> {
    let (row, column): (Tile<i32, C, C>, Tile<i32, C, C>) = (iota::<C>().col().tile(), iota::<C>().row().tile());
    let mut inverse: Tile<f32, C, C> = (row == column).cast();
    for level in unroll(0..C.trailing_zeros() as usize) {
        let size = 1usize << level;
        let joins = (row / size % 2 == 1) & (column / size + 1 == row / size);
        let corner = dot(inverse, select(joins, a, 0.0), zeros());
        inverse -= dot(corner, inverse, zeros());
    }
    inverse
}
