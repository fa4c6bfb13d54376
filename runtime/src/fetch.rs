//! Copies to the host that are waited for later.
//!
//! `Tensor::to_vec` waits for everything queued so far, and the device is idle until the host has thought of something
//! new. A fetch is queued like a launch; what is asked of the device after it runs while the host waits for the fetch.

use crate::device::Fetching;
use crate::lang::Element;
use crate::{Error, Result, tensor};
use kiln_codegen::ir::DType;

/// The elements of a tensor on their way to the host, as they are when the work asked for before is done. Made by
/// [`Tensor::fetch`](crate::Tensor::fetch).
#[must_use = "the elements arrive at `wait`"]
pub struct Fetch {
    pub(crate) dtype: DType,
    pub(crate) numel: usize,
    pub(crate) bytes: Fetching,
}

impl Fetch {
    /// The elements in row-major order. Waits for what was asked of the device before the fetch, not for what came after.
    ///
    /// # Errors
    /// If `T` is not the tensor's dtype, or the device fails.
    pub fn wait<T: Element>(self) -> Result<Vec<T>> {
        if T::DTYPE != self.dtype {
            return Err(Error::tensor("fetch", format!("a tensor of {} read as {}", self.dtype, T::DTYPE)));
        }
        Ok(tensor::elements(self.bytes.wait()?, self.numel))
    }
}
