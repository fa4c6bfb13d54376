//! Rung 7: the gated delta rule in chunks of C tokens, on `dot` (the WY form of "Parallelizing Linear Transformers with
//! the Delta Rule", arXiv 2406.06484, with the decay of arXiv 2412.06464).
//!
//! Inside a chunk let G_i be the sum of g up to and including token i, and K, Q, V, U the matrices of C rows. Token i
//! meets what token j < i wrote, faded by e^{G_i − G_j}. Written out, the lookups of a chunk are a triangular system:
//! ```text
//! A[i, j] = β_i e^{G_i − G_j} k_i·k_j  (j < i)        P[i, j] = e^{G_i − G_j} q_i·k_j  (j ≤ i)
//! U       = (I + A)⁻¹ Diag(β) (V − Diag(e^G) K S)
//! O       = Diag(e^G) Q S + P U
//! S       ← e^{G_C} S + (Diag(e^{G_C − G}) K)ᵀ U
//! ```
//!
//! You will learn
//! - to trade order for work: C steps that wait for each other become a few matrix products;
//! - scans (`cumsum`, `reverse_cumsum`), masks from `iota`, and helper functions (`#[device]`);
//! - to keep exponents ≤ 0: only differences G_i − G_j with j ≤ i are ever exponentiated. e^{G_i}·e^{−G_j} is the same on
//!   paper, and overflows as soon as the memory fades quickly.
//!
//! The work counted is that of the recurrence (rung 6), so that the two rungs compare; a chunk does more operations, but
//! on tiles. Kimi Delta Attention lets each channel of a key fade by its own g: rungs 8 to 11.

use anyhow::Result;
use kiln::prelude::*;
use kiln_examples::delta_rule::{D, Inputs};
use kiln_examples::{Rung, Setup, Sizes, Work, climb};

/// The inverse of I + A for strictly lower triangular A, by forward substitution: row i is e_i − Σ_{j<i} A_ij row_j.
#[device]
fn unit_lower_inverse<const C: usize>(a: Tile<f32, C, C>) -> Tile<f32, C, C> {
    let row = iota::<C>();
    let identity: Tile<f32, C, C> = (row.col() == row.row()).cast();
    let mut inverse = identity;
    for i in 1..C {
        let is_i = row == i;
        let a_i = select(is_i.col(), a, 0.0).sum::<0>();
        let known = (inverse * a_i.col()).sum::<0>();
        inverse = select(is_i.col(), identity - known.row(), inverse);
    }
    inverse
}

/// Arguments and programs as on rung 6.
#[kernel]
fn delta_rule<const D: usize, const V: usize, const C: usize>(
    q: &View<f32, 3>,
    k: &View<f32, 3>,
    v: &View<f32, 3>,
    g: &View<f32, 2>,
    beta: &View<f32, 2>,
    o: &mut View<f32, 3>,
) {
    let (column, head) = (program_id(0) * V, program_id(1));
    let (i, j) = (iota::<C>().col(), iota::<C>().row());
    let mut s: Tile<f32, D, V> = zeros();
    for t in (0..k.dim(1)).step_by(C) {
        // Rows past the last token are 0: they write nothing into S.
        let q: Tile<f32, C, D> = q.select(0, head).load((t, 0));
        let k: Tile<f32, C, D> = k.select(0, head).load((t, 0));
        let v: Tile<f32, C, V> = v.select(0, head).load((t, column));
        let g: Tile<f32, C> = g.select(0, head).load(t);
        let beta: Tile<f32, C> = beta.select(0, head).load(t);
        let sum = g.cumsum::<0>();
        let fade = (sum.col() - sum.row()).min(0.0).exp();

        let a = select(j < i, dot(k, k.t(), zeros()) * fade * beta.col(), 0.0);
        let p = select(j <= i, dot(q, k.t(), zeros()) * fade, 0.0);
        let missing = (v - dot(k, s, zeros()) * sum.exp().col()) * beta.col();
        let u = dot(unit_lower_inverse(a), missing, zeros());
        let read = dot(p, u, dot(q, s, zeros()) * sum.exp().col());

        let still_to_fade = g.reverse_cumsum::<0>() - g;
        let kept = k * still_to_fade.exp().col();
        s = dot(kept.t(), u, s * g.sum::<0>().exp());
        let read: Tile<f32, 1, C, V> = read.reshape();
        // SAFETY: a program alone writes its columns of its head.
        unsafe { o.store((head, t, column), read) };
    }
}

pub fn run(mut setup: Setup) -> Result<Rung> {
    const V: usize = 32;
    const C: usize = 16;
    let x = Inputs::random(&mut setup)?;
    let mut o = setup.output(&x.shape())?;
    let launch = |o: &mut _| delta_rule::<D, V, C>(&x.q, &x.k, &x.v, &x.g, &x.beta, o).grid([D / V, x.heads]).run();

    launch(&mut o)?;
    // G is a sum of up to C decays of up to 10 (160 at most), rounded to 2^-24 of it: up to 1e-5 in what e^{G_i − G_j}
    // is multiplied with, though only where it is tiny.
    let error = setup.check(&o, x.heads, 1e-5, |head| x.expected(head))?;

    let time = setup.time(|| launch(&mut o))?;
    Ok(Rung { problem: x.problem(), error, time, work: Work::Flops(x.flops()) })
}

fn main() -> Result<()> {
    climb("07 delta rule, chunked", Sizes { interpret: 40, cpu: 1024, cuda: 8192 }, run)
}
