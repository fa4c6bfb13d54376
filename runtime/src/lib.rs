//! Kiln: tiled kernels in Rust, for NVIDIA GPUs and CPUs.
//!
//! Kernels are written with what [`prelude`] brings: [`kernel`] functions on [`Tile`]s and [`View`]s. On the host,
//! [`Device`] names a place, [`Tensor`] is memory there, and calling a kernel's function gives a [`Launch`] that runs it
//! on tensors; [`tune`] chooses among a kernel's instances. Settings are environment variables, listed in [`knobs`].

extern crate self as kiln;

mod bench;
#[cfg(all(feature = "cuda", feature = "llvm"))]
mod cache;
mod compile;
mod device;
mod disk;
mod error;
mod fetch;
mod graph;
#[cfg(feature = "cuda")]
mod key;
pub mod knobs;
pub mod lang;
mod launch;
mod layout;
#[cfg(feature = "cuda")]
mod nvidia;
#[cfg(feature = "cuda")]
mod pack;
mod prepared;
mod raw;
mod record;
mod report;
#[doc(hidden)]
pub mod stage;
mod tensor;
pub mod tune;

pub use bench::{Bench, Timing};
pub use compile::compile_time;
pub use device::{Device, waits};
pub use error::{Error, Result};
pub use fetch::Fetch;
pub use graph::{Graph, captures};
pub use kiln_codegen::ir::{self, DType};
pub use kiln_codegen::nvptx::TensorCores;
pub use kiln_macros::{Carried, KernelArg, device, kernel};
pub use lang::*;
pub use launch::{Grid, Launch, Source};
pub use layout::MAX_TENSOR_RANK;
#[cfg(all(feature = "cuda", feature = "llvm"))]
pub use nvidia::add_to_pack;
#[cfg(feature = "cuda")]
pub use pack::embed_pack;
pub use prepared::Prepared;
pub use raw::{RawArg, RawKernel};
pub use record::record;
pub use report::{KernelReport, kernel_reports, tolerate_findings};
pub use stage::{Carried, KernelArg};
pub use tensor::Tensor;
pub use tune::Tuned;

/// What a file with kernels imports: `use kiln::prelude::*;`.
pub mod prelude {
    pub use crate::lang::*;
    pub use crate::{Carried, KernelArg, device, kernel};
}
