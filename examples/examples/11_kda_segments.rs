//! Rung 11: Kimi Delta Attention with the walk cut into segments that run side by side (a scan over linear maps).
//!
//! What a chunk does to the state is linear plus a constant, and so is what a row of chunks does:
//! ```text
//! S ← Diag(keep) S + k_outᵀ (V − k_in S)  =  M S + N        M = Diag(keep) − k_outᵀ k_in      N = k_outᵀ V
//! (M₂, N₂) after (M₁, N₁)  =  (M₂ M₁, M₂ N₁ + N₂)
//! ```
//! So each segment's map can be made without the state that it starts from; then the states between segments follow, one
//! product each; then every segment walks again, from its own state, for the outputs.
//!
//! You will learn
//! - to break a chain of steps where they compose: 512 chunks in a row become 64 + 8 + 64 for 8 segments;
//! - to get a map from what already walks: N is where a walk from 0 ends, and M is where walks from the unit vectors end
//!   if all values are 0. Both are one kernel here, which treats M as D more columns: a load beyond the D columns of V
//!   gives 0, and column D + i starts as unit vector i;
//! - that this is more work: D more columns, and the walk twice. It pays where programs are too few to fill the device
//!   (few heads, one sequence), and costs where they are not. On a CPU with a few cores it never pays.
//!
//! No entry of a map grows with the segment's length: M is a product of matrices of norm at most 1 (`docs/kda.md`).

use anyhow::Result;
use kiln::prelude::*;
use kiln::{Device, Tensor};
use kiln_examples::kda::{self, C, D, Inputs};
use kiln_examples::{Rung, Setup, Sizes, climb};

#[path = "10_kda_two_kernels.rs"]
#[allow(dead_code)]
mod two_kernels;
use two_kernels::{Prepared, in_one_piece, step, tolerance, work};

/// The map of each segment of `length` tokens: v, k_in, k_out, keep of rung 10 → maps `[heads, segments, D, 2·D]`, first
/// N, then M. Program: (`V` of 2·D columns, head, segment).
#[kernel]
fn summarise<T: Float + DotElement<Acc = f32>, const D: usize, const V: usize, const C: usize>(
    v: &View<T, 3>,
    k_in: &View<T, 3>,
    k_out: &View<T, 3>,
    keep: &View<f32, 3>,
    length: i32,
    maps: &mut View<f32, 4>,
) {
    let (column, head, segment) = (program_id(0) * V, program_id(1), program_id(2));
    let first = segment * length;
    // 0, or column D + i of [0, 1].
    let mut s: Tile<f32, D, V> = (iota::<D>().col() == (iota::<V>() + column - D).row()).cast();
    for t in (first..(first + length).min(k_in.dim(1))).step_by(C) {
        let v: Tile<T, C, V> = v.select(0, head).load((t, column));
        let k_in: Tile<T, C, D> = k_in.select(0, head).load((t, 0));
        let k_out: Tile<T, C, D> = k_out.select(0, head).load((t, 0));
        let keep: Tile<f32, D> = keep.select(0, head).select(0, t / C).load(0);
        let r = (v.cast::<f32>() - dot(k_in, s.cast::<T>(), zeros())).cast::<T>();
        s = dot(k_out.t(), r, s * keep.col());
    }
    // SAFETY: a program alone writes its columns of its head and segment.
    unsafe { maps.store((head, segment, 0, column), s.reshape::<D4<1, 1, D, V>>()) };
}

/// maps → states `[heads, segments, D, D]`, the state before each segment. Program: (`V` columns, head).
#[kernel]
fn scan<const D: usize, const V: usize>(maps: &View<f32, 4>, states: &mut View<f32, 4>) {
    let (column, head) = (program_id(0) * V, program_id(1));
    let mut s: Tile<f32, D, V> = zeros();
    for segment in 0..maps.dim(1) {
        // SAFETY: a program alone writes its columns of its head.
        unsafe { states.store((head, segment, 0, column), s.reshape::<D4<1, 1, D, V>>()) };
        let map = maps.select(0, head).select(0, segment);
        let n: Tile<f32, D, V> = map.load((0, column));
        let m: Tile<f32, D, D> = map.load((0, D));
        s = dot(m, s, n);
    }
}

/// The walk of rung 10 from the states before the segments. Program: (`V` columns, head, segment).
#[kernel]
fn replay<T: Float + DotElement<Acc = f32>, const D: usize, const V: usize, const C: usize>(
    v: &View<T, 3>,
    k_in: &View<T, 3>,
    q_in: &View<T, 3>,
    k_out: &View<T, 3>,
    p: &View<T, 3>,
    keep: &View<f32, 3>,
    states: &View<f32, 4>,
    length: i32,
    o: &mut View<f32, 3>,
) {
    let (column, head, segment) = (program_id(0) * V, program_id(1), program_id(2));
    let first = segment * length;
    let mut s: Tile<f32, D, V> = states.select(0, head).select(0, segment).load((0, column));
    for t in (first..(first + length).min(k_in.dim(1))).step_by(C) {
        let (read, after) = step::<T, D, V, C>(v, k_in, q_in, k_out, p, keep, head, t, column, s);
        s = after;
        let read: Tile<f32, 1, C, V> = read.reshape();
        // SAFETY: a program alone writes its columns of its head, and its segment's tokens.
        unsafe { o.store((head, t, column), read) };
    }
}

pub fn run(setup: Setup) -> Result<Rung> {
    if let Device::Cuda(_) = setup.device { run_in::<bf16>(setup) } else { run_in::<f32>(setup) }
}

/// With inputs and operands of `T`.
pub fn run_in<T: Float + DotElement<Acc = f32>>(mut setup: Setup) -> Result<Rung> {
    const V: usize = 32;
    const SEGMENTS: usize = 8;
    // So few that a walk in one piece leaves most of a GPU idle.
    let heads = kda::heads(setup.device).min(4);
    let i = Inputs::random(&mut setup, T::DTYPE, heads)?;
    let mut o = setup.output(&i.shape())?;
    let mut c = Prepared::new::<T>(&i)?;
    // Segments of whole chunks; the last may be shorter.
    let length = i.tokens.div_ceil(C).div_ceil(SEGMENTS) * C;
    let segments = i.tokens.div_ceil(length);
    let mut maps = setup.output(&[heads, segments, D, 2 * D])?;
    let mut states = setup.output(&[heads, segments, D, D])?;
    let mut launch = |o: &mut Tensor| {
        c.fill::<T>(&i)?;
        let n = length as i32;
        let grid = [2 * D / V, heads, segments];
        summarise::<T, D, V, C>(&i.v, &c.k_in, &c.k_out, &c.keep, n, &mut maps).grid(grid).run()?;
        scan::<D, V>(&maps, &mut states).grid([D / V, heads]).run()?;
        let grid = [D / V, heads, segments];
        replay::<T, D, V, C>(&i.v, &c.k_in, &c.q_in, &c.k_out, &c.p, &c.keep, &states, n, o).grid(grid).run()
    };

    launch(&mut o)?;
    let error = setup.check(&o, i.heads, tolerance(T::DTYPE), |head| i.expected(head))?;

    let time = setup.time(|| launch(&mut o))?;
    let one = setup.time(|| in_one_piece::<T>(&i, &mut c, &mut o))?.as_secs_f64() * 1e3;
    let problem = format!("{}, {segments} segments (in one piece {one:.3} ms)", i.problem());
    Ok(Rung { problem, error, time, work: work(T::DTYPE, &i) })
}

fn main() -> Result<()> {
    climb("11 KDA, segments", Sizes { interpret: 70, cpu: 1024, cuda: 8192 }, run)
}
