//! Random kernels on a device of the runtime: the way that every launch takes, and the only one to a GPU.
//!
//! Threads that check cases at once share a runner by cloning it. They compile in parallel and run one after the other,
//! so that a kernel which traps, and takes the GPU's context with it, or never ends, is known by its seed.

use super::{Argument, Case, Runner};
use kiln::{Device, RawArg, RawKernel, Tensor};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// A device, as a runner.
#[derive(Clone, Debug)]
pub struct OnDevice {
    device: Device,
    name: String,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Held while a case runs; the seed of the case after which the device runs nothing any more.
    lost_to: Mutex<Option<u64>>,
    /// The case that runs, and since when.
    running: Mutex<Option<(u64, Instant)>>,
}

impl OnDevice {
    pub fn new(device: Device) -> OnDevice {
        OnDevice { device, name: device.to_string(), shared: Arc::default() }
    }

    /// The seed of the case after which the device runs nothing any more. Waits for the case that runs.
    pub fn lost_to(&self) -> Option<u64> {
        *self.shared.lost_to.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The seed of the case that runs at the moment, and since when; does not wait for it.
    pub fn running(&self) -> Option<(u64, Instant)> {
        *self.shared.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_running(&self, case: Option<(u64, Instant)>) {
        *self.shared.running.lock().unwrap_or_else(PoisonError::into_inner) = case;
    }
}

impl Runner for OnDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&mut self, case: &Case) -> Result<Vec<Vec<u8>>, String> {
        let compiled = RawKernel::new(case.kernel.clone()).and_then(|k| k.compile(self.device).map(|()| k));
        let mut lost_to = self.shared.lost_to.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seed) = *lost_to {
            return Err(format!("{} runs nothing since seed {seed}", self.device));
        }
        self.set_running(Some((case.seed, Instant::now())));
        let result = compiled.and_then(|kernel| launch(case, &kernel, self.device));
        self.set_running(None);
        result.map_err(|error| {
            // Whether it was this case alone, or whether nothing works any more.
            let alive = self.device.synchronize().is_ok();
            if !alive {
                *lost_to = Some(case.seed);
            }
            format!("{error}{}", if alive { "" } else { "; nothing runs there any more" })
        })
    }

    fn is_lost(&self) -> bool {
        self.lost_to().is_some()
    }
}

/// Runs a case; every argument's buffer afterwards.
fn launch(case: &Case, kernel: &RawKernel, device: Device) -> kiln::Result<Vec<Vec<u8>>> {
    let memory = |argument: &Argument| match argument {
        Argument::Scalar(_) => Ok(None),
        Argument::View { dtype, bytes, .. } => {
            Tensor::from_bytes(bytes, *dtype, &[bytes.len() / dtype.size()], device).map(Some)
        }
    };
    let memories = case.arguments.iter().map(memory).collect::<kiln::Result<Vec<_>>>()?;
    let args: Vec<RawArg<'_>> = case
        .arguments
        .iter()
        .zip(&memories)
        .map(|(argument, memory)| match (argument, memory) {
            (Argument::View { offset, shape, strides, .. }, Some(memory)) => {
                RawArg::View { memory, offset: *offset, shape, strides }
            }
            (Argument::Scalar(bits), _) => RawArg::Scalar(*bits),
            (Argument::View { .. }, None) => unreachable!("every view has its memory"),
        })
        .collect();
    // SAFETY: programs of a generated kernel write rows or blocks of their own, and change what they share atomically
    // (the interpreter, which runs first, has checked that); outputs have strides under which elements lie apart.
    unsafe { kernel.launch(device, case.grid.map(|n| n as usize), &args) }?;
    memories.iter().map(|memory| memory.as_ref().map_or(Ok(vec![]), Tensor::to_bytes)).collect()
}
