//! Rung 9: Kimi Delta Attention in chunks of C tokens, one kernel (the WY form, as on rung 7).
//!
//! Let G_i be the sum of the decays of a chunk's tokens up to and including i: now a vector, one number per channel.
//! Then e^{G_i − G_j} stands inside the products of keys, under the sum over channels:
//! ```text
//! A[i, j] = β_i Σ_d k_i k_j e^{G_i − G_j}  (j < i)        P[i, j] = Σ_d q_i k_j e^{G_i − G_j}  (j ≤ i)
//! U       = (I + A)⁻¹ Diag(β) (V − (K ⊙ e^G) S)
//! O       = (Q ⊙ e^G) S + P U
//! S       ← Diag(e^{G_C}) S + (K ⊙ e^{G_C − G})ᵀ U
//! ```
//!
//! You will learn
//! - to split a ratio around an *anchor*: Σ_d (k_i e^{G_i − a}) (k_j e^{a − G_j}) is a matrix product for any a. Rung 7
//!   could exponentiate the differences, which are numbers; here that would take C² exponentials per channel;
//! - to bound exponents instead of hoping: a = G_C / 2 leaves |G_i − a| ≤ |G_C| / 2, and a decay below 2^-14 is set to
//!   2^-14, so |G_C| / 2 is at most 16·14 / 2 = 112 bits of the 127 that f32 has. What that costs: 2^-14 of a past that
//!   should be gone. (Entries with j > i may overflow: they are selected away, never multiplied by 0.)
//! - to invert a triangular matrix by products, log2 C of them in a row instead of C (`unit_lower_inverse`).
//!
//! What bounds it: chunks still follow each other, and all that a chunk needs is on the way from one state to the next:
//! exponentials, A, its inverse. What is more, the programs of a head, one for each V columns, all do it again.

use anyhow::Result;
use kiln::prelude::*;
use kiln_examples::kda::{self, C, D, FLOOR, Inputs, log2_decay, unit_lower_inverse};
use kiln_examples::{Rung, Setup, Sizes, Work, climb};

/// Arguments and programs as on rung 8.
#[kernel]
fn kda<const D: usize, const V: usize, const C: usize>(
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
    let (i, j) = (iota::<C>().col(), iota::<C>().row());
    let mut s: Tile<f32, D, V> = zeros();
    for t in (0..k.dim(1)).step_by(C) {
        // Rows past the last token are 0: they write nothing into S, and nobody reads how it fades there.
        let q: Tile<f32, C, D> = q.select(0, head).load((t, 0));
        let k: Tile<f32, C, D> = k.select(0, head).load((t, 0));
        let v: Tile<f32, C, V> = v.select(0, head).load((t, column));
        let x: Tile<f32, C, D> = x.select(0, head).load((t, 0));
        let beta: Tile<f32, C> = beta.select(0, head).load(t);
        let g = log2_decay(x, rate).max(-FLOOR);
        let (sum, total) = (g.cumsum::<0>(), g.sum::<0>());

        let from_anchor = sum - (total * 0.5).row();
        let (later, earlier) = (from_anchor.exp2(), (k * (-from_anchor).exp2()).t());
        let a = select(j < i, dot(k * later, earlier, zeros()) * beta.col(), 0.0);
        let p = select(j <= i, dot(q * later, earlier, zeros()), 0.0);

        let kept = sum.exp2();
        let missing = (v - dot(k * kept, s, zeros())) * beta.col();
        let u = dot(unit_lower_inverse(a), missing, zeros());
        let read = dot(p, u, dot(q * kept, s, zeros()));
        let rest = k * (-(sum - total.row())).exp2();
        s = dot(rest.t(), u, s * total.exp2().col());
        let read: Tile<f32, 1, C, V> = read.reshape();
        // SAFETY: a program alone writes its columns of its head.
        unsafe { o.store((head, t, column), read) };
    }
}

pub fn run(mut setup: Setup) -> Result<Rung> {
    const V: usize = 32;
    let heads = kda::heads(setup.device);
    let i = Inputs::random(&mut setup, kiln::DType::F32, heads)?;
    let mut o = setup.output(&i.shape())?;
    let launch = |o: &mut _| kda::<D, V, C>(&i.q, &i.k, &i.v, &i.x, &i.rate, &i.beta, o).grid([D / V, i.heads]).run();

    launch(&mut o)?;
    // 2^-14 for a decay that was floored; and G, a sum of up to 224 bits in f32, is off by 1e-5 at most.
    let error = setup.check(&o, i.heads, 8e-5, |head| i.expected(head))?;

    let time = setup.time(|| launch(&mut o))?;
    Ok(Rung { problem: i.problem(), error, time, work: Work::Flops(i.flops()) })
}

fn main() -> Result<()> {
    climb("09 KDA, chunked", Sizes { interpret: 40, cpu: 1024, cuda: 8192 }, run)
}
