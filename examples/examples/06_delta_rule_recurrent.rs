//! Rung 6: the gated delta rule, token by token ("Gated Delta Networks", arXiv 2412.06464).
//!
//! A head remembers in a matrix S `[D, V]` what value v belongs to what key k. Each token lets the memory fade by e^g
//! (g ≤ 0), looks up what it says of the key, writes β of the difference, and reads at the query q:
//! ```text
//! S ← e^{g_t} S;   u = β_t (v_t − Sᵀ k_t);   S ← S + k_t uᵀ;   o_t = Sᵀ q_t
//! ```
//!
//! You will learn
//! - to keep a matrix in registers over a whole loop: S is a variable that the loop carries, and never in memory;
//! - that a program which writes along a loop has no `Block` of its own: it writes a `&mut View`, which is `unsafe`, and
//!   you state why no other program writes there;
//! - to find independence: tokens follow each other, but columns of S never meet. So a program takes `V` columns of a
//!   head, as many programs as the device has room for.
//!
//! The work: 7·D operations a token and value (fade 1, look up 2, write 2, read 2). On paper that is plenty for the 16·D
//! bytes of a token; in truth each step waits for the one before, and that is the speed. See the next rung.

use anyhow::Result;
use kiln::prelude::*;
use kiln_examples::delta_rule::{D, Inputs};
use kiln_examples::{Rung, Setup, Sizes, Work, climb};

/// q, k, v `[heads, tokens, D]`, g, beta `[heads, tokens]` → o `[heads, tokens, D]`. Program: (`V` columns, head).
#[kernel]
fn delta_rule<const D: usize, const V: usize>(
    q: &View<f32, 3>,
    k: &View<f32, 3>,
    v: &View<f32, 3>,
    g: &View<f32, 2>,
    beta: &View<f32, 2>,
    o: &mut View<f32, 3>,
) {
    let (column, head) = (program_id(0) * V, program_id(1));
    let mut s: Tile<f32, D, V> = zeros();
    for t in 0..k.dim(1) {
        let q: Tile<f32, D> = q.select(0, head).select(0, t).load(0);
        let k: Tile<f32, D> = k.select(0, head).select(0, t).load(0);
        let v: Tile<f32, V> = v.select(0, head).select(0, t).load(column);
        s *= g.get((head, t)).exp();
        let u = (v - (s * k.col()).sum::<0>()) * beta.get((head, t));
        s += k.col() * u.row();
        let read: Tile<f32, 1, 1, V> = (s * q.col()).sum::<0>().reshape();
        // SAFETY: a program alone writes its columns of its head.
        unsafe { o.store((head, t, column), read) };
    }
}

pub fn run(mut setup: Setup) -> Result<Rung> {
    const V: usize = 16;
    let x = Inputs::random(&mut setup)?;
    let mut o = setup.output(&x.shape())?;
    // Without a `Block` among the outputs the grid must be given.
    let launch = |o: &mut _| delta_rule::<D, V>(&x.q, &x.k, &x.v, &x.g, &x.beta, o).grid([D / V, x.heads]).run();

    launch(&mut o)?;
    // The memory fades and q, k have length 1, so roundings of 2^-24 do not add up over tokens, only over D.
    let error = setup.check(&o, x.heads, 2e-6, |head| x.expected(head))?;

    let time = setup.time(|| launch(&mut o))?;
    Ok(Rung { problem: x.problem(), error, time, work: Work::Flops(x.flops()) })
}

fn main() -> Result<()> {
    climb("06 delta rule, recurrent", Sizes { interpret: 10, cpu: 1024, cuda: 8192 }, run)
}
