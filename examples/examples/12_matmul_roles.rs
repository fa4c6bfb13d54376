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
use kiln_examples::{Rung, Setup, Sizes, climb};

#[path = "05_matmul_tensor_core.rs"]
#[allow(dead_code)]
mod tensor_core;

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
    match setup.device {
        Device::Cuda(_) => tensor_core::measured(setup, DType::BF16, launch::<bf16>),
        _ => tensor_core::measured(setup, DType::F32, launch::<f32>),
    }
}

fn main() -> Result<()> {
    climb("12 matmul, roles", Sizes { interpret: 50, cpu: 512, cuda: 4096 }, run)
}
