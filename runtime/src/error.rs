//! The one error type of the runtime.
//!
//! A message says what was expected, what was found and, where there is one, the remedy. Everything that a launch can
//! get wrong names the kernel, and the argument where one is to blame.

use crate::Device;
use kiln_codegen::ir::Loc;

/// Whatever can go wrong with devices, tensors and launches.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A device that this build or this machine does not have.
    #[error("device {device} is not available: {reason}")]
    Unavailable { device: Device, reason: String },

    /// A device name that is none.
    #[error("`{name}` is not a device: expected auto, cpu, interpret, cuda or cuda:N")]
    UnknownDevice { name: String },

    #[error("out of memory on {device}: {bytes} bytes were asked for{detail}")]
    OutOfMemory {
        device: Device,
        bytes: usize,
        /// What else is known, beginning with a separator; may be empty.
        detail: String,
    },

    /// The operating system or driver refused.
    #[error("{device}: {call} failed: {message}")]
    Driver { device: Device, call: &'static str, message: String },

    /// A tensor operation with a shape, dtype or device that does not fit.
    #[error("{operation}: {message}")]
    Tensor { operation: &'static str, message: String },

    /// Two threads at one tensor's memory, one of them writing, where waiting could deadlock.
    #[error("{device}: the memory of a tensor is in use by another launch or copy")]
    Busy { device: Device },

    /// The body of a kernel could not be staged: every mistake that was found, with its place.
    #[error("kernel `{kernel}` could not be staged:{}", list(mistakes))]
    Stage { kernel: String, mistakes: Vec<(Loc, String)> },

    /// A launch argument that does not fit its parameter.
    #[error("kernel `{kernel}`, argument `{argument}`: {message}")]
    Argument { kernel: String, argument: String, message: String },

    /// A launch that cannot be: grid, devices, number of arguments.
    #[error("kernel `{kernel}`: {message}")]
    Launch { kernel: String, message: String },

    /// A back end refused the kernel.
    #[error("{device}: {message}")]
    Compile {
        device: Device,
        /// Names kernel and place in the source, as far as they are known.
        message: String,
    },

    /// The kernel ran and failed: an assertion, an access that the interpreter refuses.
    #[error("{device}: {message}")]
    Run {
        device: Device,
        /// Names kernel, place in the source and program, as far as they are known.
        message: String,
    },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

fn list(mistakes: &[(Loc, String)]) -> String {
    mistakes.iter().map(|(at, message)| format!("\n  {at}: {message}")).collect()
}

impl Error {
    /// What staging a kernel found wrong.
    pub fn staging(kernel: &str, mistakes: impl IntoIterator<Item = (Loc, String)>) -> Error {
        Error::Stage { kernel: kernel.into(), mistakes: mistakes.into_iter().collect() }
    }

    pub(crate) fn tensor(operation: &'static str, message: impl Into<String>) -> Error {
        Error::Tensor { operation, message: message.into() }
    }
}
