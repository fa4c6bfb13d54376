//! Rung 12: the product of rung 5 with its parts said by hand: who copies, who computes, and what is between them.
//!
//! You will learn
//! - `roles([..])`: parts of one program that run at the same time, on a GPU each in warps of its own;
//! - `channel::<M, N>()`: N slots for messages of type M. `send` waits for a free slot, `receive` for a full one, and a
//!   message takes its slot until `release`. So the copies of up to N steps are under way while one is computed;
//! - what the types say: only the sender's end sends, and a slot is released once. What they cannot say, the compiler or
//!   the interpreter does: leave out a `release`, send once too often, and see;
//! - that rung 5 asks for the same without a word of it. Write roles where you know better than the compiler: how many
//!   slots, how many warps, how the registers are divided between them.
//!
//! The ceiling: that of rung 5, and so is the code: a role that only copies is what the compiler makes there by itself.

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
    let (i, j) = (c.origin(0), c.origin(1));
    let (mut to, mut from) = channel::<(Tile<T, M, K>, Tile<T, K, N>), 4>();
    roles([
        role(4, || {
            for k in (0..a.dim(1)).step_by(K) {
                to.send((a.load((i, k)), b.load((k, j))));
            }
        })
        .registers(40),
        role(8, || {
            let mut sum: Tile<f32, M, N> = zeros();
            for _ in (0..a.dim(1)).step_by(K) {
                let slot = from.receive();
                sum = dot(slot.0, slot.1, sum);
                slot.release();
            }
            c.store(sum);
        })
        .registers(232),
    ]);
}

/// With the tile that suits the device.
pub fn launch<T: DotElement<Acc = f32>>(a: &Tensor, b: &Tensor, c: &mut Tensor) -> kiln::Result<()> {
    match a.device() {
        Device::Cuda(_) => matmul::<T, 128, 256, 64>(a, b, c).run(),
        _ => matmul::<T, 32, 32, 32>(a, b, c).run(),
    }
}

pub fn run(setup: Setup) -> Result<Rung> {
    if let Device::Cuda(_) = setup.device { run_in::<bf16>(setup) } else { run_in::<f32>(setup) }
}

/// With operands of `T`.
pub fn run_in<T: DotElement<Acc = f32>>(mut setup: Setup) -> Result<Rung> {
    let n = setup.size;
    let (a, b) = (setup.random(n * n, -1.0..1.0), setup.random(n * n, -1.0..1.0));
    let da = Tensor::from_f32(&a, T::DTYPE, &[n, n], setup.device)?;
    let db = Tensor::from_f32(&b, T::DTYPE, &[n, n], setup.device)?;
    let mut c = setup.output(&[n, n])?;

    launch::<T>(&da, &db, &mut c)?;
    let (a, b) = (da.to_vec_f32()?, db.to_vec_f32()?);
    // As on rung 5: it is the same sum.
    let error = setup.check(&c, n, 1e-5, |i| matmul_row(&a, &b, n, i))?;

    let time = setup.time(|| launch::<T>(&da, &db, &mut c))?;
    let flops = 2 * n * n * n;
    let work = if T::DTYPE == DType::F32 { Work::Flops(flops) } else { Work::TensorFlops(flops) };
    Ok(Rung { problem: format!("{n}³, {}", T::DTYPE), error, time, work })
}

fn main() -> Result<()> {
    climb("12 matmul, roles", Sizes { interpret: 50, cpu: 512, cuda: 4096 }, run)
}
