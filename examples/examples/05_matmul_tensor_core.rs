//! Rung 5: a matrix product with `dot`, which a GPU's tensor cores compute.
//!
//! You will learn
//! - `dot(a, b, acc)`: acc + a·b of whole tiles. How (tensor cores with operands from shared memory, or multiply-adds in
//!   a CPU's vector registers) is the compiler's business;
//! - to step through the inner dimension K at a time, so that one fetch serves a whole `dot`;
//! - kernels over any element type: `T` is f32 or bf16 here, and sums are f32 (`DotElement<Acc = f32>`) either way.
//!
//! The ceiling: tensor cores for bf16 on a GPU, multiply-adds of f32 on a CPU.

use anyhow::Result;
use kiln::prelude::*;
use kiln::{DType, Device, Tensor};
use kiln_examples::{Rung, Setup, Sizes, Work, climb, matmul_row};

/// a `[m, k]`, b `[k, n]` → c `[m, n]`. Program: a block of c.
#[kernel]
fn matmul<T: DotElement<Acc = f32>, const M: usize, const N: usize, const K: usize>(
    a: &View<T, 2>,
    b: &View<T, 2>,
    c: &mut Block<f32, M, N>,
) {
    let mut sum: Tile<f32, M, N> = zeros();
    for k in (0..a.dim(1)).step_by(K) {
        let a: Tile<T, M, K> = a.load((c.origin(0), k));
        let b: Tile<T, K, N> = b.load((k, c.origin(1)));
        sum = dot(a, b, sum);
    }
    c.store(sum);
}

/// With the tile that suits the device.
pub fn launch<T: DotElement<Acc = f32>>(a: &Tensor, b: &Tensor, c: &mut Tensor) -> kiln::Result<()> {
    match a.device() {
        Device::Cuda(_) => matmul::<T, 128, 128, 64>(a, b, c).run(),
        _ => matmul::<T, 32, 32, 32>(a, b, c).run(),
    }
}

pub fn run(setup: Setup) -> Result<Rung> {
    if let Device::Cuda(_) = setup.device { run_in::<bf16>(setup) } else { run_in::<f32>(setup) }
}

/// With operands of `T`.
pub fn run_in<T: DotElement<Acc = f32>>(setup: Setup) -> Result<Rung> {
    measured(setup, T::DTYPE, launch::<T>)
}

/// Checks and times a product of operands of `dtype` with sums in f32.
pub fn measured(
    mut setup: Setup,
    dtype: DType,
    launch: fn(&Tensor, &Tensor, &mut Tensor) -> kiln::Result<()>,
) -> Result<Rung> {
    let n = setup.size;
    let (a, b) = (setup.random(n * n, -1.0..1.0), setup.random(n * n, -1.0..1.0));
    let da = Tensor::from_f32(&a, dtype, &[n, n], setup.device)?;
    let db = Tensor::from_f32(&b, dtype, &[n, n], setup.device)?;
    let mut c = setup.output(&[n, n])?;

    launch(&da, &db, &mut c)?;
    // What the kernel was given: after rounding to T. Products of bf16 are exact in f32, so √n·2^-24 as on rung 3.
    let (a, b) = (da.to_vec_f32()?, db.to_vec_f32()?);
    let error = setup.check(&c, n, 1e-5, |i| matmul_row(&a, &b, n, i))?;

    let time = setup.time(|| launch(&da, &db, &mut c))?;
    let flops = 2 * n * n * n;
    let work = if dtype == DType::F32 { Work::Flops(flops) } else { Work::TensorFlops(flops) };
    Ok(Rung { problem: format!("{n}³, {}", dtype), error, time, work })
}

fn main() -> Result<()> {
    climb("05 matmul, dot", Sizes { interpret: 50, cpu: 512, cuda: 4096 }, run)
}
