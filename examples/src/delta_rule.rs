//! Inputs of the gated delta rule, and the rule itself in f64: shared by the rungs that compute it.

use crate::Setup;
use anyhow::Result;
use kiln::{Device, Tensor};

/// Width of a key, and of a value.
pub const D: usize = 64;

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
    /// `[heads, tokens]`, natural logarithm of what the memory keeps: mostly nearly all, sometimes hardly anything.
    pub g: Tensor,
    /// `[heads, tokens]` in 0..1, how much of the difference is written.
    pub beta: Tensor,
    host: [Vec<f32>; 5],
}

impl Inputs {
    /// `setup.size` tokens.
    pub fn random(setup: &mut Setup) -> Result<Inputs> {
        let tokens = setup.size;
        let heads = match setup.device {
            Device::Interpret => 1,
            Device::Cpu => 4,
            Device::Cuda(_) => 64,
        };
        let n = heads * tokens;
        let (q, k) = setup.queries_and_keys(n, D);
        let v = setup.random(n * D, -1.0..1.0);
        let mut g = setup.random(n, -0.1..0.0);
        let sudden = setup.random(n, 0.0..1.0);
        g.iter_mut().zip(&sudden).for_each(|(g, &u)| *g = if u < 0.02 { 100.0 * *g } else { *g });
        let beta = setup.random(n, 0.0..1.0);
        let wide = [heads, tokens, D];
        let narrow = [heads, tokens];
        Ok(Inputs {
            heads,
            tokens,
            q: setup.tensor(&q, &wide)?,
            k: setup.tensor(&k, &wide)?,
            v: setup.tensor(&v, &wide)?,
            g: setup.tensor(&g, &narrow)?,
            beta: setup.tensor(&beta, &narrow)?,
            host: [q, k, v, g, beta],
        })
    }

    /// Of the output.
    pub fn shape(&self) -> [usize; 3] {
        [self.heads, self.tokens, D]
    }

    pub fn problem(&self) -> String {
        format!("{} heads, {} tokens, keys and values of {D}, f32", self.heads, self.tokens)
    }

    /// Operations of the recurrence: fade 1, look up 2, write 2, read 2, for each element of the memory and token.
    pub fn flops(&self) -> usize {
        7 * self.heads * self.tokens * D * D
    }

    /// o `[tokens, D]` of one head, token by token, in f64.
    pub fn expected(&self, head: usize) -> Vec<f64> {
        let [q, k, v, g, beta] = &self.host;
        let mut s = vec![[0f64; D]; D];
        let mut out = Vec::with_capacity(self.tokens * D);
        for t in head * self.tokens..(head + 1) * self.tokens {
            let of = |x: &[f32]| -> [f64; D] { std::array::from_fn(|d| x[t * D + d] as f64) };
            let (q, k, v) = (of(q), of(k), of(v));
            let keep = (g[t] as f64).exp();
            s.iter_mut().flatten().for_each(|s| *s *= keep);
            let read = |s: &[[f64; D]], at: &[f64; D]| -> [f64; D] {
                let mut sum = [0.0; D];
                for (row, at) in s.iter().zip(at) {
                    sum.iter_mut().zip(row).for_each(|(sum, s)| *sum += s * at);
                }
                sum
            };
            let said = read(&s, &k);
            for (row, k) in s.iter_mut().zip(&k) {
                for (column, s) in row.iter_mut().enumerate() {
                    *s += k * beta[t] as f64 * (v[column] - said[column]);
                }
            }
            out.extend(read(&s, &q));
        }
        out
    }
}
