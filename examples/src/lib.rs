//! What the rungs of the ladder share: command line, random inputs, the check against f64, timing, the report.
//!
//! A rung is a program of its own under `examples/`: kernels first, then `run`, which takes a [`Setup`] and gives a
//! [`Rung`], then a `main` of one line. Invariants: inputs differ from run to run unless `--seed` is given; outputs are
//! NaN before a kernel writes them; nothing is timed before it was checked.

mod ceiling;
pub mod delta_rule;
pub mod kda;

use anyhow::{Context, Result, bail, ensure};
use kiln::{Bench, DType, Device, Tensor};
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime};

/// Where, how large and with which random numbers a rung runs.
pub struct Setup {
    pub device: Device,
    /// What it counts is the rung's to say (elements, rows, the side of a matrix, tokens).
    pub size: usize,
    seed: u64,
    state: u64,
    /// For how long to repeat what is timed.
    patience: Duration,
}

/// What a rung did.
#[derive(Debug)]
pub struct Rung {
    /// The problem, in words: shapes and element types.
    pub problem: String,
    /// The largest relative error found; it was within the rung's tolerance.
    pub error: f64,
    pub time: Duration,
    pub work: Work,
}

/// What bounds a rung from below, and how much of it there is.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Bytes that must cross the memory bus: each input read once, each output written once.
    Bytes(usize),
    /// Additions and multiplications on f32.
    Flops(usize),
    /// The same, of 16-bit numbers that `dot` multiplies: tensor cores, where a device has them.
    TensorFlops(usize),
}

/// The size of a rung on each device, if `--size` does not say.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub interpret: usize,
    pub cpu: usize,
    pub cuda: usize,
}

impl Setup {
    /// For tests: timed once.
    pub fn new(device: Device, size: usize, seed: u64) -> Setup {
        Setup { device, size, seed, state: seed, patience: Duration::ZERO }
    }

    /// q and k, `n` rows of `width` each, of length 1.
    pub(crate) fn queries_and_keys(&mut self, n: usize, width: usize) -> (Vec<f32>, Vec<f32>) {
        let mut k = self.random(n * width, -1.0..1.0);
        // A query is near its token's key: were the two at right angles, what is read of the first token would be the
        // rounding of a sum near 0, and say nothing about the kernel.
        let mut q: Vec<f32> = self.random(n * width, -0.5..0.5).iter().zip(&k).map(|(noise, k)| k + noise).collect();
        for row in q.chunks_mut(width).chain(k.chunks_mut(width)) {
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            row.iter_mut().for_each(|x| *x /= length);
        }
        (q, k)
    }

    /// `n` random numbers, evenly spread over `range`.
    pub fn random(&mut self, n: usize, range: Range<f32>) -> Vec<f32> {
        let next = || {
            // SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let unit = ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32;
            range.start + unit * (range.end - range.start)
        };
        std::iter::repeat_with(next).take(n).collect()
    }

    /// Host numbers on the device.
    pub fn tensor(&self, values: &[f32], shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::from_slice(values, shape, self.device)?)
    }

    /// An output, every element NaN: one that a kernel forgets shows.
    pub fn output(&self, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::full(shape, DType::F32, f64::NAN, self.device)?)
    }

    /// Compares `out` with a naive computation in f64, and returns the largest relative error of a part.
    ///
    /// `out` falls into `parts` equal parts (rows, heads); `expected(i)` computes part i. Every element must be finite.
    /// Of many parts the first, the last and some random ones are compared: a naive matrix product of 4096 rows takes a
    /// minute. The error of a part is |out − expected| / |expected| in the Euclidean norm, so that one wrong part
    /// cannot hide among right ones, and a sum that happens to be near 0 is no mistake.
    pub fn check(
        &mut self,
        out: &Tensor,
        parts: usize,
        tolerance: f64,
        expected: impl Fn(usize) -> Vec<f64>,
    ) -> Result<f64> {
        const COMPARED: usize = 16;
        let found = out.to_vec::<f32>()?;
        if let Some(i) = found.iter().position(|x| !x.is_finite()) {
            bail!("element {i} of {} is {}: was it written? (--seed {})", found.len(), found[i], self.seed);
        }
        let mut picked: Vec<usize> = (0..parts).collect();
        if parts > COMPARED {
            picked = self.random(COMPARED - 2, 0.0..1.0).iter().map(|u| (u * parts as f32) as usize).collect();
            picked.extend([0, parts - 1]);
        }
        let mut worst = 0f64;
        for part in picked {
            let len = found.len() / parts;
            let (found, expected) = (&found[part * len..][..len], expected(part));
            ensure!(expected.len() == len, "the reference has {} elements, the output {len}", expected.len());
            let difference = norm(found.iter().zip(&expected).map(|(&f, e)| f as f64 - e));
            let error = difference / norm(expected.iter().copied()).max(f64::MIN_POSITIVE);
            if error > tolerance {
                let at = (0..len).find(|&i| (found[i] as f64 - expected[i]).abs() > tolerance * expected[i].abs());
                let example = at.map_or(String::new(), |i| format!("; e.g. {} for {} at {i}", found[i], expected[i]));
                bail!(
                    "part {part} of {parts}: relative error {error:.1e} > {tolerance:.0e}{example} (--seed {})",
                    self.seed
                );
            }
            worst = worst.max(error);
        }
        Ok(worst)
    }

    /// The median time of `work`.
    pub fn time(&self, mut work: impl FnMut() -> kiln::Result<()>) -> Result<Duration> {
        let start = Instant::now();
        work()?;
        self.device.synchronize()?;
        let samples = self.patience.as_secs_f64() / start.elapsed().as_secs_f64().max(1e-6);
        Ok(Bench::new(self.device).warmup(1).samples((samples as usize).clamp(1, 20)).run(work)?.median())
    }
}

fn norm(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|x| x * x).sum::<f64>().sqrt()
}

/// Row `i` of the product of two n×n matrices, in f64.
pub fn matmul_row(a: &[f32], b: &[f32], n: usize, i: usize) -> Vec<f64> {
    let mut row = vec![0.0; n];
    for (k, &a) in a[i * n..][..n].iter().enumerate() {
        row.iter_mut().zip(&b[k * n..]).for_each(|(c, &b)| *c += a as f64 * b as f64);
    }
    row
}

/// The `main` of a rung: reads `--device`, `--size` and `--seed`, runs, and prints what was reached beside the ceiling.
pub fn climb(title: &str, sizes: Sizes, run: fn(Setup) -> Result<Rung>) -> Result<()> {
    let (mut device, mut size, mut seed) = (None, None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let usage = "expected --device auto|cpu|interpret|cuda[:N], --size N, --seed N";
        let value = arguments.next().with_context(|| format!("`{flag}`: {usage}"))?;
        let number = || value.parse::<u64>().with_context(|| format!("{flag} {value}: expected a number"));
        match flag.as_str() {
            "--device" => device = Some(Device::parse(&value)?),
            "--size" => size = Some(number()? as usize),
            "--seed" => seed = Some(number()?),
            _ => bail!("`{flag}`: {usage}"),
        }
    }
    let device = device.map_or_else(Device::auto, Ok)?;
    let size = size.unwrap_or(match device {
        Device::Interpret => sizes.interpret,
        Device::Cpu => sizes.cpu,
        Device::Cuda(_) => sizes.cuda,
    });
    let seed = seed.unwrap_or(SystemTime::UNIX_EPOCH.elapsed()?.as_micros() as u64);
    let rung = run(Setup { patience: Duration::from_secs(3), ..Setup::new(device, size, seed) })?;

    println!("{title}: {}, on {}", rung.problem, device.describe()?);
    println!("  correct   relative error {:.1e} against f64", rung.error);
    println!("  time      {:.3} ms", rung.time.as_secs_f64() * 1e3);
    let reached = rung.work.amount() as f64 / rung.time.as_secs_f64() / 1e9;
    match ceiling::of(device, rung.work)? {
        Some(c) => {
            let share = 100.0 * reached / c.giga;
            println!("  reached   {reached:.3} {} of {:.1} ({}): {share:.1} %", rung.work.unit(), c.giga, c.what);
        }
        None => println!("  reached   {reached:.3} {}", rung.work.unit()),
    }
    Ok(())
}

impl Work {
    fn amount(self) -> usize {
        let (Work::Bytes(n) | Work::Flops(n) | Work::TensorFlops(n)) = self;
        n
    }

    fn unit(self) -> &'static str {
        if let Work::Bytes(_) = self { "GB/s" } else { "GFLOP/s" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(out: &[f32], parts: usize) -> Result<f64> {
        let mut setup = Setup::new(Device::Cpu, out.len(), 1);
        let out = setup.tensor(out, &[out.len()])?;
        setup.check(&out, parts, 1e-6, |_| vec![1.0; out.numel() / parts])
    }

    /// The check must catch what it is for.
    #[test]
    fn the_check_refuses_wrong_and_missing_elements() {
        assert_eq!(checked(&[1.0; 64], 4).unwrap(), 0.0);
        let mut wrong = [1.0; 64];
        wrong[37] = 1.001;
        assert!(checked(&wrong, 4).unwrap_err().to_string().contains("part 2 of 4"));
        // Not among the parts that are compared, but every element must be finite.
        let mut missing = [1.0; 1000];
        missing[500] = f32::NAN;
        assert!(checked(&missing, 1000).unwrap_err().to_string().contains("element 500"));
    }

    #[test]
    fn random_numbers_fill_their_range_and_differ() {
        let mut setup = Setup::new(Device::Cpu, 0, 7);
        let x = setup.random(10_000, -2.0..1.0);
        assert!(x.iter().all(|v| (-2.0..1.0).contains(v)));
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        assert!((mean + 0.5).abs() < 0.05, "{mean}");
        assert_ne!(x, setup.random(10_000, -2.0..1.0));
    }
}
