//! Memory of the interpreter.

use super::{Fill, HostMemory};
use crate::Result;

pub(crate) struct InterpretMemory(HostMemory);

impl InterpretMemory {
    pub(crate) fn allocate(bytes: usize, fill: Fill) -> Result<InterpretMemory> {
        HostMemory::allocate(bytes, fill).map(InterpretMemory)
    }

    pub(crate) fn address(&self) -> u64 {
        self.0.address()
    }

    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.0.read(offset, out)
    }

    pub(crate) fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        self.0.write(offset, data)
    }
}
