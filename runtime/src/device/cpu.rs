//! Host memory for the CPU device.
//!
//! Aligned to 64 bytes (a cache line, and more than any vector), zeroed or poisoned: its bytes are always initialised,
//! so reading a tensor never depends on what a kernel did. Two tensors may share one memory and be used from two
//! threads; a lock per memory keeps a running launch or copy that writes apart from every other. The lock is held by
//! the thread that waits for the launch, so a thread of a rayon pool, which while waiting may pick up the very launch
//! that needs the lock, never blocks on it: it gets [`Error::Busy`].

use super::{Device, Fill};
use crate::{Error, Result, knobs};
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::{Once, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

const ALIGN: usize = 64;

/// Starts the threads that programs of a grid are spread over, as many as `KILN_THREADS` says. Without it, or if the
/// host program has started rayon's threads before, they are as rayon has them.
pub(crate) fn start_threads() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        if let Some(threads) = knobs::knobs().threads {
            let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        }
    });
}

pub(crate) struct HostMemory {
    start: NonNull<u8>,
    bytes: usize,
    lock: RwLock<()>,
}

// SAFETY: the memory is owned by this value and freed once, by `drop`; any thread may do that.
unsafe impl Send for HostMemory {}
// SAFETY: bytes are reached through `read` and `write`, which hold the lock, and by launches, which hold it too.
unsafe impl Sync for HostMemory {}

/// A memory held against others for the duration of a launch.
pub(crate) enum Held<'a> {
    /// Only ever dropped.
    Read { _guard: RwLockReadGuard<'a, ()> },
    /// Only ever dropped.
    Write { _guard: RwLockWriteGuard<'a, ()> },
}

impl HostMemory {
    fn layout(bytes: usize) -> Option<Layout> {
        // Whole lines, at least one: there is always an address, and vector accesses at the end stay inside.
        Layout::from_size_align(bytes.max(1).checked_next_multiple_of(ALIGN)?, ALIGN).ok()
    }

    pub(crate) fn allocate(bytes: usize, fill: Fill) -> Result<HostMemory> {
        let refused = || Error::OutOfMemory { device: Device::Cpu, bytes, detail: String::new() };
        let layout = HostMemory::layout(bytes).ok_or_else(refused)?;
        let poison = match fill {
            Fill::Uninit { poison } if knobs::knobs().poison => Some(poison),
            _ => None,
        };
        // SAFETY: the size is not 0. Without poison the operating system's zeroes cost next to nothing.
        let start = unsafe { if poison.is_some() { alloc(layout) } else { alloc_zeroed(layout) } };
        let start = NonNull::new(start).ok_or_else(refused)?;
        if let Some(byte) = poison {
            // SAFETY: `layout.size()` bytes were just allocated.
            unsafe { start.as_ptr().write_bytes(byte, layout.size()) };
        }
        Ok(HostMemory { start, bytes, lock: RwLock::new(()) })
    }

    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Holds the memory for reading, or alone for writing.
    pub(crate) fn hold(&self, write: bool) -> Result<Held<'_>> {
        let busy = || Error::Busy { device: Device::Cpu };
        // A poisoned lock only says that some thread panicked; bytes have no invariant that could be broken.
        let may_block = rayon::current_thread_index().is_none();
        Ok(if write {
            let guard = match self.lock.try_write() {
                Ok(g) => g,
                Err(TryLockError::Poisoned(p)) => p.into_inner(),
                Err(TryLockError::WouldBlock) if may_block => self.lock.write().unwrap_or_else(|p| p.into_inner()),
                Err(TryLockError::WouldBlock) => return Err(busy()),
            };
            Held::Write { _guard: guard }
        } else {
            let guard = match self.lock.try_read() {
                Ok(g) => g,
                Err(TryLockError::Poisoned(p)) => p.into_inner(),
                Err(TryLockError::WouldBlock) if may_block => self.lock.read().unwrap_or_else(|p| p.into_inner()),
                Err(TryLockError::WouldBlock) => return Err(busy()),
            };
            Held::Read { _guard: guard }
        })
    }

    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        assert!(offset.checked_add(out.len()).is_some_and(|end| end <= self.bytes));
        let _held = self.hold(false)?;
        // SAFETY: in range by the assertion, initialised since allocation, and nobody writes while the lock is held;
        // `out` is the caller's own memory.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr().add(offset), out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    pub(crate) fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        assert!(offset.checked_add(data.len()).is_some_and(|end| end <= self.bytes));
        let _held = self.hold(true)?;
        // SAFETY: in range by the assertion, and nobody else reads or writes while the lock is held; `data` is the
        // caller's own memory.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.start.as_ptr().add(offset), data.len()) };
        Ok(())
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        let layout = HostMemory::layout(self.bytes).expect("allocated with this layout");
        // SAFETY: allocated by `allocate` with this layout, and not freed before.
        unsafe { dealloc(self.start.as_ptr(), layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_zeroed_and_writable() {
        let m = HostMemory::allocate(100, Fill::Zero).unwrap();
        assert_eq!(m.address() % 64, 0);
        let mut b = [1; 100];
        m.read(0, &mut b).unwrap();
        assert_eq!(b, [0; 100]);
        m.write(98, &[7, 8]).unwrap();
        m.read(97, &mut b[..3]).unwrap();
        assert_eq!(b[..3], [0, 7, 8]);
        assert_eq!(HostMemory::allocate(0, Fill::Zero).unwrap().address() % 64, 0);
    }

    #[test]
    fn too_much_is_an_error_that_says_how_much() {
        let bytes = isize::MAX as usize / 2;
        let e = HostMemory::allocate(bytes, Fill::Zero).err().unwrap().to_string();
        assert!(e.contains(&bytes.to_string()), "{e}");
        assert!(HostMemory::allocate(usize::MAX, Fill::Zero).is_err());
    }

    #[test]
    fn a_pool_thread_never_waits_for_a_held_memory() {
        let m = HostMemory::allocate(8, Fill::Zero).unwrap();
        let held = m.hold(true).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert!(matches!(pool.install(|| m.write(0, &[1])), Err(Error::Busy { .. })));
        drop(held);
        pool.install(|| m.write(0, &[1])).unwrap();
    }
}
