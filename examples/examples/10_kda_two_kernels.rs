//! Rung 10: Kimi Delta Attention in two kernels: what does not need the state, for all chunks at once; then the walk.
//!
//! On rung 9 U = T (V − (K ⊙ e^G) S) with T = (I + A)⁻¹ Diag(β). Apply T to what U is multiplied with instead, and nothing
//! but the state depends on the state, nor on V:
//! ```text
//! prepare   k_in = K ⊙ e^G      q_in = Q ⊙ e^G      p = P T      k_out = Tᵀ (K ⊙ e^{G_C − G})      keep = e^{G_C}
//! walk      r = V − k_in S      O = q_in S + p r      S ← Diag(keep) S + k_outᵀ r
//! ```
//!
//! You will learn
//! - to take work off the critical path: a step of the walk is four products, and the rest has a program for each chunk
//!   and head, thousands of them, each done once instead of once for each block of columns;
//! - what that costs: the intermediate results go through memory, more bytes than the inputs;
//! - to write a kernel over the element type (as on rung 5): bf16 operands for a GPU's tensor cores, sums in f32. The
//!   anchor of rung 9 serves bf16 as well, which has the exponents of f32.
//!
//! What bounds it: `prepare` is bound by the exponentials and the conversions around its products; `walk` by latency,
//! chunk after chunk, with few programs. The model's kernels do the same on chunks of 32 (three anchors), with the
//! state transposed so that products chain in registers: `kimi/src/kernels/kda/`, `docs/kda.md`.

use anyhow::Result;
use kiln::prelude::*;
use kiln::{DType, Device, Tensor};
use kiln_examples::kda::{self, C, D, FLOOR, Inputs, log2_decay, unit_lower_inverse};
use kiln_examples::{Rung, Setup, Sizes, Work, climb};

/// q, k, x `[heads, tokens, D]`, rate `[heads]`, beta `[heads, tokens]` → k_in, q_in, k_out `[heads, chunks·C, D]`, p
/// `[heads, chunks·C, C]`, keep `[heads, chunks, D]`. Program: (head, chunk).
#[kernel]
fn prepare<T: Float + DotElement<Acc = f32>, const D: usize, const C: usize>(
    q: &View<T, 3>,
    k: &View<T, 3>,
    x: &View<T, 3>,
    rate: &View<f32, 1>,
    beta: &View<f32, 2>,
    k_in: &mut Block<T, 1, C, D>,
    q_in: &mut Block<T, 1, C, D>,
    k_out: &mut Block<T, 1, C, D>,
    p: &mut Block<T, 1, C, C>,
    keep: &mut Block<f32, 1, 1, D>,
) {
    let (head, t) = (k_in.origin(0), k_in.origin(1));
    let (i, j) = (iota::<C>().col(), iota::<C>().row());
    // Rows past the last token are 0.
    let q: Tile<T, C, D> = q.select(0, head).load((t, 0));
    let k: Tile<T, C, D> = k.select(0, head).load((t, 0));
    let x: Tile<T, C, D> = x.select(0, head).load((t, 0));
    let beta: Tile<f32, C> = beta.select(0, head).load(t);
    let (q, k) = (q.cast::<f32>(), k.cast::<f32>());
    let g = log2_decay(x.cast::<f32>(), rate.get(head)).max(-FLOOR);
    let (sum, total) = (g.cumsum::<0>(), g.sum::<0>());

    let from_anchor = sum - (total * 0.5).row();
    let (later, earlier) = (from_anchor.exp2(), (k * (-from_anchor).exp2()).cast::<T>().t());
    let a = select(j < i, dot((k * later).cast::<T>(), earlier, zeros()) * beta.col(), 0.0);
    let scores = select(j <= i, dot((q * later).cast::<T>(), earlier, zeros()), 0.0);

    let t = (unit_lower_inverse(a) * beta.row()).cast::<T>();
    let kept = sum.exp2();
    let rest = (k * (-(sum - total.row())).exp2()).cast::<T>();
    k_in.store((k * kept).cast::<T>().reshape());
    q_in.store((q * kept).cast::<T>().reshape());
    k_out.store(dot(t.t(), rest, zeros()).cast::<T>().reshape());
    p.store(dot(scores.cast::<T>(), t, zeros()).cast::<T>().reshape());
    keep.store(total.exp2().reshape());
}

/// v `[heads, tokens, D]` and what `prepare` wrote → o `[heads, tokens, D]`. Program: (`V` columns, head).
#[kernel]
fn walk<T: Float + DotElement<Acc = f32>, const D: usize, const V: usize, const C: usize>(
    v: &View<T, 3>,
    k_in: &View<T, 3>,
    q_in: &View<T, 3>,
    k_out: &View<T, 3>,
    p: &View<T, 3>,
    keep: &View<f32, 3>,
    o: &mut View<f32, 3>,
) {
    let (column, head) = (program_id(0) * V, program_id(1));
    let mut s: Tile<f32, D, V> = zeros();
    for t in (0..v.dim(1)).step_by(C) {
        let (read, after) = step::<T, D, V, C>(v, k_in, q_in, k_out, p, keep, head, t, column, s);
        s = after;
        let read: Tile<f32, 1, C, V> = read.reshape();
        // SAFETY: a program alone writes its columns of its head.
        unsafe { o.store((head, t, column), read) };
    }
}

/// A step of the walk, the chunk of a head that begins at token t: what is read in `V` columns, and the state after it.
#[device]
pub fn step<T: Float + DotElement<Acc = f32>, const D: usize, const V: usize, const C: usize>(
    v: &View<T, 3>,
    k_in: &View<T, 3>,
    q_in: &View<T, 3>,
    k_out: &View<T, 3>,
    p: &View<T, 3>,
    keep: &View<f32, 3>,
    head: Tile<i32>,
    t: Tile<i32>,
    column: Tile<i32>,
    s: Tile<f32, D, V>,
) -> (Tile<f32, C, V>, Tile<f32, D, V>) {
    let v: Tile<T, C, V> = v.select(0, head).load((t, column));
    let k_in: Tile<T, C, D> = k_in.select(0, head).load((t, 0));
    let q_in: Tile<T, C, D> = q_in.select(0, head).load((t, 0));
    let k_out: Tile<T, C, D> = k_out.select(0, head).load((t, 0));
    let p: Tile<T, C, C> = p.select(0, head).load((t, 0));
    let keep: Tile<f32, D> = keep.select(0, head).select(0, t / C).load(0);
    let before = s.cast::<T>();
    let r = (v.cast::<f32>() - dot(k_in, before, zeros())).cast::<T>();
    let read = dot(p, r, dot(q_in, before, zeros()));
    (read, dot(k_out.t(), r, s * keep.col()))
}

/// What `prepare` writes, each element NaN before that.
pub struct Prepared {
    pub k_in: Tensor,
    pub q_in: Tensor,
    pub k_out: Tensor,
    pub p: Tensor,
    pub keep: Tensor,
}

impl Prepared {
    pub fn new<T: Element>(i: &Inputs) -> Result<Prepared> {
        let chunks = i.tokens.div_ceil(C);
        let tensor =
            |dtype, shape: [usize; 2]| Tensor::full(&[i.heads, shape[0], shape[1]], dtype, f64::NAN, i.q.device());
        Ok(Prepared {
            k_in: tensor(T::DTYPE, [chunks * C, D])?,
            q_in: tensor(T::DTYPE, [chunks * C, D])?,
            k_out: tensor(T::DTYPE, [chunks * C, D])?,
            p: tensor(T::DTYPE, [chunks * C, C])?,
            keep: tensor(DType::F32, [chunks, D])?,
        })
    }

    pub fn fill<T: Float + DotElement<Acc = f32>>(&mut self, i: &Inputs) -> kiln::Result<()> {
        let Prepared { k_in, q_in, k_out, p, keep } = self;
        prepare::<T, D, C>(&i.q, &i.k, &i.x, &i.rate, &i.beta, k_in, q_in, k_out, p, keep).run()
    }
}

/// Both kernels.
pub fn in_one_piece<T: Float + DotElement<Acc = f32>>(
    i: &Inputs,
    c: &mut Prepared,
    o: &mut Tensor,
) -> kiln::Result<()> {
    const V: usize = 32;
    c.fill::<T>(i)?;
    walk::<T, D, V, C>(&i.v, &c.k_in, &c.q_in, &c.k_out, &c.p, &c.keep, o).grid([D / V, i.heads]).run()
}

pub fn run(setup: Setup) -> Result<Rung> {
    if let Device::Cuda(_) = setup.device { run_in::<bf16>(setup) } else { run_in::<f32>(setup) }
}

/// With inputs and operands of `T`.
pub fn run_in<T: Float + DotElement<Acc = f32>>(mut setup: Setup) -> Result<Rung> {
    let heads = kda::heads(setup.device);
    let i = Inputs::random(&mut setup, T::DTYPE, heads)?;
    let mut o = setup.output(&i.shape())?;
    let mut c = Prepared::new::<T>(&i)?;

    in_one_piece::<T>(&i, &mut c, &mut o)?;
    let error = setup.check(&o, i.heads, tolerance(T::DTYPE), |head| i.expected(head))?;

    let time = setup.time(|| in_one_piece::<T>(&i, &mut c, &mut o))?;
    Ok(Rung { problem: i.problem(), error, time, work: work(T::DTYPE, &i) })
}

/// f32: as on rung 9. bf16: operands are off by up to 2^-9, four of them on the way from inputs to an output.
pub fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F32 { 8e-5 } else { 1e-2 }
}

pub fn work(dtype: DType, i: &Inputs) -> Work {
    if dtype == DType::F32 { Work::Flops(i.flops()) } else { Work::TensorFlops(i.flops()) }
}

fn main() -> Result<()> {
    climb("10 KDA, two kernels", Sizes { interpret: 40, cpu: 1024, cuda: 8192 }, run)
}
