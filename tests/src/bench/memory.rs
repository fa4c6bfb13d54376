//! What the memory allows: kernels that do nothing but read as many bytes as a case has to, or move them in place.
//!
//! They are measured as the cases are, one of them as a graph or many as the nodes of one, with what somebody else has
//! left in the cache. So they tell which part of a case's time is neither its arithmetic nor its order of things.

use super::{Case, Least, Work, kernels, poisoned, random};
use crate::cases::values;
use kiln::{Element, Tensor};
use kimi::reference::relative_error;

/// From so many bytes on the reader leaves to the cache what it evicts: less than that is read faster if it evicts itself.
const ONCE: usize = 256 << 20;

/// What others must read: cases' names, and bytes.
const READ: [(&str, usize); 9] = [
    ("gemm_n2304_k4096", 2 * 2304 * 4096),
    ("gemm_n12288_k2304", 2 * 12288 * 2304),
    ("gemm_n18432_k2304", 2 * 18432 * 2304),
    ("gemm_n163840_k2304", 2 * 163_840 * 2304),
    ("mla_decode_b1_ctx4096", 2 * 4096 * 576),
    ("mla_decode_b1_ctx131072", 2 * 131_072 * 576),
    ("mla_decode_b16_ctx4096", 2 * 16 * 4096 * 576),
    ("mla_decode_b16_ctx32768", 2 * 16 * 32_768 * 576),
    ("mla_decode_b128_ctx4096", 2 * 128 * 4096 * 576),
];

/// Bytes of a sequence's states: 32 heads of 128 by 128 in f32.
const STATES: usize = 4 * 32 * 128 * 128;

/// States that others must read and write.
const IN_PLACE: [(&str, usize); 3] =
    [("kda_decode_b1", STATES), ("kda_decode_b16", 16 * STATES), ("kda_decode_b128", 128 * STATES)];

/// Elements of a program: best, or nearly, among 1,024 to 8,192.
const PIECE: usize = 2048;

pub(super) fn cases() -> Vec<Case> {
    let read = READ.iter().map(|&(name, bytes)| read(name, bytes));
    read.chain(IN_PLACE.iter().map(|&(name, bytes)| in_place(name, bytes))).collect()
}

/// The sums of pieces.
fn read(name: &str, bytes: usize) -> Case {
    Case::of_a_step(format!("read/{name}"), move |device, _| {
        let pieces = bytes / 4 / PIECE;
        let x = random::<f32>(device, &[pieces * PIECE], 1.0, 1)?;
        let mut sums = poisoned::<f32>(device, &[pieces])?;
        let (input, result) = (x.clone(), sums.clone());
        Ok(Work {
            least: Least { flops: 0.0, bytes: bytes as f64 },
            run: Box::new(move || {
                let run = if bytes < ONCE { kernels::sums::<PIECE, true> } else { kernels::sums::<PIECE, false> };
                Ok(run(&x, &mut sums).run()?)
            }),
            check: Box::new(move || {
                let (mut got, mut want) = (vec![], vec![]);
                for piece in [0, pieces / 2, pieces - 1] {
                    got.extend(values(&result.narrow(0, piece, 1)?)?);
                    want.push(values(&input.narrow(0, piece * PIECE, PIECE)?)?.iter().sum::<f64>());
                }
                Ok((relative_error(&got, &want), 1e-4))
            }),
            eager: false,
        })
    })
}

/// x ← x + 1.
fn in_place(name: &str, bytes: usize) -> Case {
    Case::of_a_step(format!("in_place/{name}"), move |device, _| {
        let n = bytes / 4;
        let mut x = Tensor::zeros(&[n], f32::DTYPE, device)?;
        let result = x.clone();
        Ok(Work {
            least: Least { flops: 0.0, bytes: 2.0 * bytes as f64 },
            run: Box::new(move || Ok(kernels::increment::<PIECE>(&mut x).run()?)),
            check: Box::new(move || {
                let mut wrong = 0;
                for start in [0, n / 2, n - 4096] {
                    wrong += result.narrow(0, start, 4096)?.to_vec::<f32>()?.iter().filter(|x| **x != 1.0).count();
                }
                Ok((wrong as f64, 0.0))
            }),
            eager: false,
        })
    })
}
