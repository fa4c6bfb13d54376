//! Rung 8: Kimi Delta Attention token by token ("Kimi Linear", arXiv 2510.26692).
//!
//! The delta rule of rung 6, but each channel of a key fades by its own g, so that a head can forget some things and
//! keep others. The gate g = −rate·softplus(x) has no bound: a channel may be erased by a single token.
//! ```text
//! S ← Diag(e^{g_t}) S;   u = β_t (v_t − Sᵀ k_t);   S ← S + k_t uᵀ;   o_t = Sᵀ q_t
//! ```
//!
//! You will learn
//! - to ask for both sums of a token at once: o = Sᵀq after the write is Sᵀq before it, plus (k·q) u. On a GPU a sum over
//!   the rows of S is an exchange between warps; so the two do not wait for each other;
//! - why this is still slow. The work would keep a GPU busy for a fraction of a millisecond, but token t + 1 cannot
//!   start before token t is done: 8,192 times the latency of a load, a sum and an update. More heads or sequences
//!   cost nothing until the device is full, and shorten nothing.
//!
//! This is how tokens are generated, where there is only one at a time (`kimi/src/kernels/kda/step.rs`). For a prompt,
//! see the next rung.

use anyhow::Result;
use kiln::prelude::*;
use kiln_examples::kda::{self, D, Inputs, log2_decay};
use kiln_examples::{Rung, Setup, Sizes, Work, climb};

/// q, k, v, x `[heads, tokens, D]`, rate `[heads]`, beta `[heads, tokens]` → o `[heads, tokens, D]`. Program: (`V`
/// columns, head).
#[kernel]
fn kda<const D: usize, const V: usize>(
    q: &View<f32, 3>,
    k: &View<f32, 3>,
    v: &View<f32, 3>,
    x: &View<f32, 3>,
    rate: &View<f32, 1>,
    beta: &View<f32, 2>,
    o: &mut View<f32, 3>,
) {
    let (column, head) = (program_id(0) * V, program_id(1));
    let rate = rate.get(head);
    let mut s: Tile<f32, D, V> = zeros();
    for t in 0..k.dim(1) {
        let q: Tile<f32, D> = q.select(0, head).select(0, t).load(0);
        let k: Tile<f32, D> = k.select(0, head).select(0, t).load(0);
        let v: Tile<f32, V> = v.select(0, head).select(0, t).load(column);
        let x: Tile<f32, D> = x.select(0, head).select(0, t).load(0);
        s *= log2_decay(x, rate).exp2().col();
        let (said, read) = ((s * k.col()).sum::<0>(), (s * q.col()).sum::<0>());
        let u = (v - said) * beta.get((head, t));
        s += k.col() * u.row();
        let read = read + u * (k * q).sum::<0>();
        let read: Tile<f32, 1, 1, V> = read.reshape();
        // SAFETY: a program alone writes its columns of its head.
        unsafe { o.store((head, t, column), read) };
    }
}

pub fn run(mut setup: Setup) -> Result<Rung> {
    const V: usize = 16;
    let heads = kda::heads(setup.device);
    let i = Inputs::random(&mut setup, kiln::DType::F32, heads)?;
    let mut o = setup.output(&i.shape())?;
    let launch = |o: &mut _| kda::<D, V>(&i.q, &i.k, &i.v, &i.x, &i.rate, &i.beta, o).grid([D / V, i.heads]).run();

    launch(&mut o)?;
    // A decay near 1 is off by 2^-24 (2^-22 by a GPU's exp2), and tens of them are multiplied before a channel is erased.
    let error = setup.check(&o, i.heads, 1e-5, |head| i.expected(head))?;

    let time = setup.time(|| launch(&mut o))?;
    Ok(Rung { problem: i.problem(), error, time, work: Work::Flops(i.flops()) })
}

fn main() -> Result<()> {
    climb("08 KDA, recurrent", Sizes { interpret: 10, cpu: 1024, cuda: 8192 }, run)
}
