//! Kiln: tiled kernels in Rust, for NVIDIA GPUs and CPUs.
//!
//! [`Device`] names a place, [`Tensor`] is memory there, [`Launch`] runs a kernel on tensors. Settings are environment
//! variables, listed in [`knobs`].

mod compile;
mod device;
mod error;
pub mod knobs;
mod launch;
mod layout;
mod tensor;

pub use device::Device;
pub use error::{Error, Result};
pub use kiln_codegen::ir;
pub use launch::{Grid, Launch, Source};
pub use layout::MAX_TENSOR_RANK;
pub use tensor::{HostElement, Tensor};
