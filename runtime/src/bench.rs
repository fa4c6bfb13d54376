//! How long a piece of work takes on a device.
//!
//! One harness for every benchmark, so that numbers compare: the median of several runs after some to warm up. On a GPU
//! time is the device's own (events), the L2 cache is emptied of the data before each run unless asked otherwise, and
//! the work is replayed as a graph, so that the host's part does not count. On the CPU and the interpreter time is the
//! wall clock's and caches are as they are.
//!
//! Check the result before timing it: a fast wrong kernel is no kernel.

use crate::{Device, Result};
use std::time::{Duration, Instant};

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub struct Bench {
    device: Device,
    warmup: usize,
    samples: usize,
    cold: bool,
    graph: bool,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// All samples, ascending.
    samples: Vec<Duration>,
}

impl Bench {
    /// Three runs to warm up, twenty samples, cold cache and graph replay on a GPU.
    pub fn new(device: Device) -> Bench {
        let gpu = matches!(device, Device::Cuda(_));
        Bench { device, warmup: 3, samples: 20, cold: gpu, graph: gpu }
    }

    /// The number of timed runs; at least one.
    pub fn samples(mut self, samples: usize) -> Bench {
        self.samples = samples.max(1);
        self
    }

    /// The number of runs before the timed ones.
    pub fn warmup(mut self, runs: usize) -> Bench {
        self.warmup = runs;
        self
    }

    /// Leaves the GPU's caches as the previous run left them.
    pub fn warm_cache(mut self) -> Bench {
        self.cold = false;
        self
    }

    /// Times launches as the host makes them, not their replay.
    pub fn without_graph(mut self) -> Bench {
        self.graph = false;
        self
    }

    /// Measures `work`, which is called several times and must do the same each time.
    ///
    /// # Errors
    /// If `work` fails, or with graph replay does what a graph cannot hold.
    pub fn run(&self, mut work: impl FnMut() -> Result<()>) -> Result<Timing> {
        for _ in 0..self.warmup.max(1) {
            work()?;
        }
        self.device.synchronize()?;
        let mut samples = match self.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(n) => self.on_gpu(n, work)?,
            _ => (0..self.samples)
                .map(|_| {
                    let start = Instant::now();
                    work()?;
                    self.device.synchronize()?;
                    Ok(start.elapsed())
                })
                .collect::<Result<Vec<_>>>()?,
        };
        samples.sort();
        Ok(Timing { samples })
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(&self, ordinal: u32, mut work: impl FnMut() -> Result<()>) -> Result<Vec<Duration>> {
        use crate::device::{Fill, Storage, cuda};
        let context = cuda::Context::get(ordinal)?;
        // Writing twice the cache's size leaves nothing else in it.
        let flush = Storage::allocate(self.device, 2 * context.l2_bytes, Fill::Zero)?;
        let Storage::Cuda(flush) = &*flush else { unreachable!("allocated on a GPU") };
        let graph = if self.graph { Some(context.capture(&mut work)?) } else { None };
        (0..self.samples)
            .map(|_| {
                if self.cold {
                    flush.fill(0)?;
                }
                context.time(|| graph.as_ref().map_or_else(&mut work, |g| g.replay()))
            })
            .collect()
    }
}

impl Timing {
    /// The middle sample.
    pub fn median(&self) -> Duration {
        self.samples[self.samples.len() / 2]
    }

    /// The fastest sample.
    pub fn fastest(&self) -> Duration {
        self.samples[0]
    }

    /// The slowest sample.
    pub fn slowest(&self) -> Duration {
        self.samples[self.samples.len() - 1]
    }

    /// All samples, ascending.
    pub fn samples(&self) -> &[Duration] {
        &self.samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_runs_the_work_and_the_median_is_in_the_middle() {
        let mut runs = 0;
        let timing = Bench::new(Device::Cpu)
            .samples(5)
            .warmup(2)
            .run(|| {
                runs += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!((runs, timing.samples().len()), (7, 5));
        assert!(timing.fastest() <= timing.median() && timing.median() <= timing.slowest());
        assert_eq!(timing.median(), timing.samples()[2]);
    }
}
