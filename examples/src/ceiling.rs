//! How fast a device could go: what a rung is measured against.
//!
//! Ceilings are measured in the same run where that takes no kernel of ours: a copy for bandwidth, a chain of fused
//! multiply-adds on every core for arithmetic. A GPU's arithmetic is its data sheet's, for the models listed here.

use crate::Work;
use anyhow::Result;
use kiln::{Bench, DType, Device, Tensor};
use std::hint::black_box;
use std::time::Instant;

pub(crate) struct Ceiling {
    /// 10⁹ bytes or operations a second.
    pub(crate) giga: f64,
    /// Where the number comes from.
    pub(crate) what: &'static str,
}

/// The ceiling for this kind of work; `None` where none is known. The interpreter is not in the race.
pub(crate) fn of(device: Device, work: Work) -> Result<Option<Ceiling>> {
    Ok(match (device, work) {
        (Device::Interpret, _) => None,
        (Device::Cpu, Work::Bytes(_)) => {
            Some(Ceiling { giga: host_copy().max(host_read()), what: "a copy or a sum, all cores" })
        }
        (Device::Cpu, _) => Some(Ceiling { giga: host_multiply_add(), what: "multiply-adds in registers, all cores" }),
        (Device::Cuda(_), Work::Bytes(_)) => Some(Ceiling { giga: device_copy(device)?, what: "a device copy" }),
        (Device::Cuda(_), work) => {
            let model = device.describe()?;
            // NVIDIA H100 data sheet, SXM, dense; the H200 has the same cores.
            let hopper = model.contains("H100") || model.contains("H200");
            let giga = if let Work::Flops(_) = work { 67_000.0 } else { 989_000.0 };
            hopper.then_some(Ceiling { giga, what: "data sheet" })
        }
    })
}

/// Bytes read and written by a copy between two tensors that fit no cache.
fn device_copy(device: Device) -> Result<f64> {
    const BYTES: usize = 1 << 30;
    let from = Tensor::zeros(&[BYTES], DType::U8, device)?;
    let mut to = Tensor::uninit(&[BYTES], DType::U8, device)?;
    let time = Bench::new(device).without_graph().run(|| to.copy_from(&from))?.median();
    Ok(2.0 * BYTES as f64 / time.as_secs_f64() / 1e9)
}

fn threads() -> usize {
    let all = std::thread::available_parallelism().map_or(1, |n| n.get());
    kiln::knobs::knobs().threads.unwrap_or(all)
}

/// The best run of `work` on every core at once within about a second, in seconds: whatever else the machine does
/// makes a ceiling lower, never higher.
fn best_on_all_cores(mut work: Vec<Box<dyn FnMut() + Send + '_>>) -> f64 {
    let (begin, mut best) = (Instant::now(), f64::INFINITY);
    while begin.elapsed().as_secs_f64() < 1.0 || best.is_infinite() {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for piece in &mut work {
                scope.spawn(piece);
            }
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// Bytes read and written by every core copying its own piece, together larger than a cache.
fn host_copy() -> f64 {
    const BYTES: usize = 128 << 20;
    let (from, mut to) = (vec![1u8; BYTES], vec![0u8; BYTES]);
    let piece = BYTES.div_ceil(threads());
    let work = from.chunks(piece).zip(to.chunks_mut(piece));
    let seconds = best_on_all_cores(
        work.map(|(from, to)| Box::new(|| black_box(&mut *to).copy_from_slice(black_box(from))) as _).collect(),
    );
    2.0 * BYTES as f64 / seconds / 1e9
}

/// Bytes read by every core summing its own piece: more than a copy's, where a store first fetches what it overwrites.
fn host_read() -> f64 {
    const WORDS: usize = 16 << 20;
    let from = vec![1u64; WORDS];
    let sum = |piece: &[u64]| piece.iter().fold(0u64, |sum, x| sum.wrapping_add(*x));
    let work = from.chunks(WORDS.div_ceil(threads()));
    let seconds =
        best_on_all_cores(work.map(|piece| Box::new(move || _ = black_box(sum(black_box(piece)))) as _).collect());
    8.0 * WORDS as f64 / seconds / 1e9
}

/// Independent chains of multiply-adds: as many as hide the latency of two units, few enough for the registers.
const CHAINS: usize = 12;
const LANES: usize = 8;
const ROUNDS: usize = 1_000_000;

fn host_multiply_add() -> f64 {
    let work = (0..threads()).map(|_| Box::new(multiply_add) as _).collect();
    (threads() * ROUNDS * CHAINS * LANES * 2) as f64 / best_on_all_cores(work) / 1e9
}

fn multiply_add() {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: both features were just detected.
        return unsafe { multiply_add_avx2() };
    }
    chains(|x, a, b| x * a + b);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_add_avx2() {
    chains(|x, a, b| x.mul_add(a, b));
}

#[inline(always)]
fn chains(step: impl Fn(f32, f32, f32) -> f32) {
    let (a, b) = black_box((0.5f32, 0.5f32));
    let mut x = [[1f32; LANES]; CHAINS];
    for _ in 0..ROUNDS {
        for chain in &mut x {
            for lane in chain {
                *lane = step(*lane, a, b);
            }
        }
    }
    black_box(x);
}
