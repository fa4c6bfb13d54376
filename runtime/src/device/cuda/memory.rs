//! Device memory, and the pool that it is taken from.
//!
//! The driver's allocator takes microseconds and may wait for the device, so freed blocks are kept by size and handed
//! out again. That is safe without waiting because all work is on one stream: whoever gets the block comes after
//! whoever gave it back. (While work is side by side, what is given back is held until both are done: see `beside`.) When
//! the driver has no more, the kept blocks are given back to it and it is asked again.

use super::{Context, sys};
use crate::device::{Fill, Storage};
use crate::{Device, Error, Result, knobs};
use cudarc::driver::sys::CUresult;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Free blocks by size.
#[derive(Default)]
pub(super) struct Pool {
    free: BTreeMap<usize, Vec<u64>>,
}

impl Pool {
    /// The size of the block for `bytes`: powers of two up to 1 MiB, then multiples of 2 MiB.
    fn block_size(bytes: usize) -> Option<usize> {
        if bytes <= 1 << 20 {
            Some(bytes.max(512).next_power_of_two())
        } else {
            bytes.checked_next_multiple_of(2 << 20)
        }
    }

    /// Takes a free block of that size, or one a quarter larger at most.
    fn take(&mut self, size: usize) -> Option<(u64, usize)> {
        let (&found, blocks) = self.free.range_mut(size..=size.saturating_add(size / 4)).next()?;
        let block = blocks.pop()?;
        if blocks.is_empty() {
            self.free.remove(&found);
        }
        Some((block, found))
    }

    pub(super) fn give(&mut self, address: u64, size: usize) {
        self.free.entry(size).or_default().push(address);
    }
}

/// A block of device memory; back to the pool when dropped.
pub(crate) struct Memory {
    pub(super) context: &'static Context,
    pub(super) address: u64,
    /// Of the block, at least what was asked for.
    size: usize,
}

impl Memory {
    /// Memory of at least `bytes` bytes, aligned to 512. In a capture it belongs to the graph.
    pub(crate) fn allocate(context: &'static Context, bytes: usize, fill: Fill) -> Result<Arc<Storage>> {
        let mut queue = context.queue()?;
        let refused = |detail: String| Error::OutOfMemory { device: context.device(), bytes, detail };
        let size = Pool::block_size(bytes).ok_or_else(|| refused(String::new()))?;
        let forked = queue.fork.is_some();
        let mut found = queue.captured().filter(|_| !forked).and_then(|c| c.reuse(size));
        if found.is_none() {
            let (address, size) = match queue.pool.take(size) {
                Some(block) => block,
                None => (context.allocate_block(&mut queue.pool, size).map_err(refused)?, size),
            };
            let storage = Arc::new(Storage::Cuda(Memory { context, address, size }));
            if let Some(capture) = queue.captured() {
                capture.own(&storage);
            }
            found = Some(storage);
        }
        drop(queue);
        let storage = found.expect("found or made above");
        let Storage::Cuda(memory) = &*storage else { unreachable!("made as CUDA memory") };
        match fill {
            Fill::Zero => memory.fill(0)?,
            Fill::Uninit { poison } if knobs::knobs().poison => memory.fill(poison)?,
            Fill::Uninit { .. } => {}
        }
        Ok(storage)
    }

    pub(crate) fn device(&self) -> Device {
        self.context.device()
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn assert_inside(&self, offset: usize, len: usize) {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.size), "outside of the memory");
    }

    /// Sets every byte of the block.
    pub(crate) fn fill(&self, byte: u8) -> Result<()> {
        let mut queue = self.context.queue()?;
        queue.interrupt();
        let stream = self.context.stream(&queue);
        // SAFETY: the block is `size` bytes long and belongs to this context.
        let code = unsafe { sys::cuMemsetD8Async(self.address, byte, self.size, stream) };
        self.context.check("cuMemsetD8Async", code)
    }

    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.assert_inside(offset, out.len());
        if out.is_empty() {
            return Ok(());
        }
        let stream;
        {
            let queue = self.context.queue_uncaptured("a copy to the host")?;
            stream = self.context.stream(&queue);
            let (to, from) = (out.as_mut_ptr().cast(), self.address + offset as u64);
            // SAFETY: `out` outlives the copy, which is waited for below; the source is inside the block.
            let code = unsafe { sys::cuMemcpyDtoHAsync_v2(to, from, out.len(), stream) };
            self.context.check("cuMemcpyDtoHAsync", code)?;
        }
        crate::device::count_wait();
        // SAFETY: the context's own stream. Failing here, the copy is over as well: the context is in error.
        self.context.check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream) })
    }

    /// Returns once `data` may be changed; the copy itself takes its turn on the stream.
    pub(crate) fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        self.assert_inside(offset, data.len());
        if data.is_empty() {
            return Ok(());
        }
        let queue = self.context.queue_uncaptured("a copy from the host")?;
        let stream = self.context.stream(&queue);
        let (to, from) = (self.address + offset as u64, data.as_ptr().cast());
        // SAFETY: the target is inside the block. `data` is ordinary (pageable)
        // memory, which the driver has read when it returns.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, data.len(), stream) };
        self.context.check("cuMemcpyHtoDAsync", code)
    }

    /// Copies pieces `(to, from, bytes)` within the device; `storages` are the two that hold them.
    pub(crate) fn copy(
        &self,
        from: &Memory,
        pieces: impl Iterator<Item = (usize, usize, usize)>,
        storages: [&Arc<Storage>; 2],
    ) -> Result<()> {
        let mut queue = self.context.queue()?;
        queue.keep(storages.into_iter());
        queue.interrupt();
        let stream = self.context.stream(&queue);
        for (to, at, len) in pieces {
            self.assert_inside(to, len);
            from.assert_inside(at, len);
            let (to, at) = (self.address + to as u64, from.address + at as u64);
            // SAFETY: both ranges are inside their blocks, which belong to this context.
            let code = unsafe { sys::cuMemcpyDtoDAsync_v2(to, at, len, stream) };
            self.context.check("cuMemcpyDtoDAsync", code)?;
        }
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let mut queue = self.context.lock();
        match &mut queue.fork {
            Some(fork) => fork.held.push((self.address, self.size)),
            None => queue.pool.give(self.address, self.size),
        }
    }
}

impl Context {
    /// A fresh block from the driver; the error is what is known of the device's memory.
    fn allocate_block(&self, pool: &mut Pool, size: usize) -> Result<u64, String> {
        let mut address = 0;
        // SAFETY: the context is current (the caller holds the queue); the pointer is to a local.
        let mut code = unsafe { sys::cuMemAlloc_v2(&mut address, size) };
        if code == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            for block in std::mem::take(&mut pool.free).into_values().flatten() {
                // SAFETY: allocated by this function and owned by the pool alone. The driver waits for its last use.
                let _ = unsafe { sys::cuMemFree_v2(block) };
            }
            // SAFETY: as above.
            code = unsafe { sys::cuMemAlloc_v2(&mut address, size) };
        }
        match code {
            CUresult::CUDA_SUCCESS => Ok(address),
            code => {
                let (mut free, mut total) = (0, 0);
                // SAFETY: the pointers are to locals.
                let _ = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
                Err(format!("; {free} of {total} bytes are free: {}", super::explain(code)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_reused_by_size() {
        let mut pool = Pool::default();
        assert_eq!(Pool::block_size(0), Some(512));
        assert_eq!(Pool::block_size(513), Some(1024));
        assert_eq!(Pool::block_size((1 << 20) + 1), Some(2 << 20));
        assert_eq!(Pool::block_size(usize::MAX), None);
        pool.give(7, 2 << 20);
        pool.give(9, 10 << 20);
        assert_eq!(pool.take(1 << 20), None, "twice the size is too much");
        assert_eq!(pool.take(8 << 20), Some((9, 10 << 20)));
        assert_eq!(pool.take(2 << 20), Some((7, 2 << 20)));
        assert!(pool.free.is_empty());
    }
}
