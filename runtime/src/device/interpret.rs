//! Memory of the interpreter: knows which bytes were ever written, and refuses to read others.

use super::{Device, Fill};
use crate::{Error, Result};
use kiln_codegen::interp::{Buffer, BufferError};
use std::sync::Arc;

pub(crate) struct InterpretMemory(Arc<Buffer>);

fn driver_error(error: BufferError) -> Error {
    Error::Driver { device: Device::Interpret, call: "access to a tensor's memory", message: error.to_string() }
}

impl InterpretMemory {
    pub(crate) fn allocate(bytes: usize, fill: Fill) -> Result<InterpretMemory> {
        // The buffer's own allocation would abort the process: try one that can fail first, with the same again for
        // what the interpreter notes about each byte.
        let size = bytes.saturating_mul(2);
        if Vec::<u8>::new().try_reserve_exact(size).is_err() {
            return Err(Error::OutOfMemory { device: Device::Interpret, bytes, detail: String::new() });
        }
        let buffer = match fill {
            Fill::Zero => Buffer::zeroed(bytes),
            Fill::Uninit { .. } => Buffer::uninit(bytes),
        };
        Ok(InterpretMemory(Arc::new(buffer)))
    }

    pub(crate) fn buffer(&self) -> &Arc<Buffer> {
        &self.0
    }

    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.0.read_bytes(offset, out).map_err(driver_error)
    }

    pub(crate) fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        self.0.write_bytes(offset, data).map_err(driver_error)
    }

    /// Copies pieces `(to, from, bytes)`; what was never written there is never written here.
    pub(crate) fn copy(
        &self,
        from: &InterpretMemory,
        mut pieces: impl Iterator<Item = (usize, usize, usize)>,
    ) -> Result<()> {
        pieces.try_for_each(|(to, at, len)| self.0.copy_from(to, &from.0, at, len)).map_err(driver_error)
    }
}
