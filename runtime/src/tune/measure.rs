//! Measuring the candidates of a tuned launch, on its own arguments.
//!
//! All are compiled first, side by side. What cannot be compiled, needs more shared memory than there is, spills
//! registers or cannot be launched is out; the others are timed by [`Bench`]. An output is written many times meanwhile,
//! which changes nothing: that a tuned kernel does not read what it writes is checked when it is staged.

use super::{Known, Tuned, learn};
use crate::compile::{self, Compiled, Facts, Staged};
use crate::{Bench, Device, Error, Result};
use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What measuring the candidates of a bucket found.
#[derive(Clone, Debug)]
pub struct Measured {
    /// `device | kernel | extents`.
    pub bucket: String,
    /// By candidate: its values, and the median of its time, or why it has none.
    pub candidates: Vec<(String, Result<Duration, String>)>,
}

impl Measured {
    /// The number of the fastest candidate.
    pub fn best(&self) -> Option<usize> {
        let times = self.candidates.iter().enumerate().filter_map(|(i, (_, time))| Some((i, *time.as_ref().ok()?)));
        times.min_by_key(|&(_, time)| time).map(|(i, _)| i)
    }
}

impl fmt::Display for Measured {
    /// The bucket, the times in µs, the best marked by a star; reasons of those without a time on lines of their own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.bucket)?;
        let failed = |time: &Result<Duration, String>| time.as_ref().err().cloned();
        for (i, (values, time)) in self.candidates.iter().enumerate() {
            let star = if self.best() == Some(i) { "*" } else { "" };
            match time {
                Ok(time) => write!(f, "  {values} {}{star}", microseconds(*time))?,
                Err(_) => write!(f, "  {values} -")?,
            }
        }
        let reasons = self.candidates.iter().filter_map(|(values, time)| Some((values, failed(time)?)));
        reasons.into_iter().try_for_each(|(values, why)| write!(f, "\n    {values}: {why}"))
    }
}

/// `53.2 us`.
pub(super) fn microseconds(time: Duration) -> String {
    format!("{:.1} us", time.as_secs_f64() * 1e6)
}

/// What a call of [`measure`] has found so far.
struct Asked {
    samples: usize,
    found: Vec<Measured>,
}

thread_local! {
    static ASKED: RefCell<Option<Asked>> = const { RefCell::new(None) };
}

/// Runs `work`; each tuned launch of this thread in it measures its candidates first, by that many samples, once per
/// bucket and whatever is known already. For the rest of the process the best are known then; to keep them, put them
/// into a [`Table`](super::Table).
///
/// # Errors
/// Those of `work`.
pub fn measure<E>(samples: usize, work: impl FnOnce() -> Result<(), E>) -> Result<Vec<Measured>, E> {
    /// Ends the measuring, also when `work` panics.
    struct End;
    impl Drop for End {
        fn drop(&mut self) {
            ASKED.take();
        }
    }
    let _end = End;
    ASKED.set(Some(Asked { samples, found: vec![] }));
    work()?;
    Ok(ASKED.take().map(|asked| asked.found).unwrap_or_default())
}

impl<const N: usize> Tuned<'_, N> {
    /// Whether a launch of it can be timed now.
    pub(super) fn can_be_measured(&self, device: Device) -> bool {
        device.can_be_timed() && !self.launch.shapes().any(|(shape, _)| shape.contains(&0))
    }

    /// Measures if a caller of [`measure`] wants it.
    pub(super) fn measure_if_asked(&mut self, device: Device) {
        let wanted = ASKED.with_borrow(|asked| {
            let Asked { samples, found } = asked.as_ref()?;
            let key = self.key(device).ok()?;
            (!found.iter().any(|measured| measured.bucket == key)).then_some(*samples)
        });
        let Some(samples) = wanted.filter(|_| self.can_be_measured(device)) else { return };
        if let Ok(measured) = self.measured(device, samples) {
            learn(self.bucket(device), measured.best().map_or(Known::Hopeless, Known::Best));
            ASKED.with_borrow_mut(|asked| asked.iter_mut().for_each(|asked| asked.found.push(measured.clone())));
        }
    }

    /// Measures every candidate.
    pub(super) fn measured(&mut self, device: Device, samples: usize) -> Result<Measured> {
        let bucket = self.key(device)?;
        let staged: Vec<_> = (0..self.candidates.len()).map(|i| self.instance(i).staged()).collect();
        let compiled = compile_all(staged, device);
        let time = |(i, compiled): (usize, Result<(), String>)| {
            let bench = Bench::new(device).samples(samples);
            let time = compiled.and_then(|()| {
                let launch = self.instance(i);
                bench.run(|| launch.launch()).map_err(|e| e.to_string())
            });
            (self.text(&self.candidates[i].values), time.map(|timing| timing.median()))
        };
        Ok(Measured { bucket, candidates: compiled.into_iter().enumerate().map(time).collect() })
    }
}

/// Compiles kernels on all cores; of each, why it is not worth a launch.
fn compile_all(staged: Vec<Result<(Arc<Staged>, Facts)>>, device: Device) -> Vec<Result<(), String>> {
    let compile = |staged: &Result<(Arc<Staged>, Facts)>| match staged {
        Ok((staged, facts)) => {
            compile::compiled(staged, device, facts.clone()).map_err(|e| e.to_string()).and_then(judge)
        }
        Err(e) => Err(Error::to_string(e)),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let share = staged.len().div_ceil(cores).max(1);
        let parts = staged.chunks(share).map(|part| scope.spawn(move || part.iter().map(compile).collect::<Vec<_>>()));
        let parts: Vec<_> = parts.collect();
        parts
            .into_iter()
            .flat_map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// Whether code is worth a launch.
fn judge(compiled: &Compiled) -> Result<(), String> {
    match compiled {
        Compiled::Cpu(_) => Ok(()),
        #[cfg(feature = "cuda")]
        Compiled::Cuda(function) => {
            let spill = function.findings.iter().find(|f| f.lint == kiln_codegen::ir::Lint::Spill);
            spill.map_or(Ok(()), |finding| Err(finding.to_string()))
        }
    }
}
