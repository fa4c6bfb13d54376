//! Copies to the host that are waited for later.
//!
//! The driver copies beside other work only to page-locked memory. Making that takes long and may wait for the device,
//! so pieces of it are kept, each with the event that says that the copy to it is done.

use super::{Context, Memory, sys};
use crate::Result;

/// The smallest piece of page-locked memory: a page.
const LEAST: usize = 4096;

/// A piece of page-locked memory where copies land, and the event of the last one. Kept as long as the context, which is
/// for ever.
#[derive(Clone, Copy)]
pub(super) struct Landing {
    memory: *mut u8,
    bytes: usize,
    done: sys::CUevent,
}

/// A copy under way.
pub(crate) struct Fetch {
    context: &'static Context,
    /// Nobody else's meanwhile.
    landing: Landing,
    bytes: usize,
}

impl Memory {
    /// Queues a copy of some bytes, at least one, to the host.
    pub(crate) fn fetch(&self, offset: usize, bytes: usize) -> Result<Fetch> {
        self.assert_inside(offset, bytes);
        let context = self.context;
        let mut queue = context.queue_uncaptured("a copy to the host")?;
        let landing = match queue.landings.iter().position(|landing| landing.bytes >= bytes) {
            Some(at) => queue.landings.swap_remove(at),
            None => Landing::new(context, bytes)?,
        };
        let (to, done, stream) = (landing.memory.cast(), landing.done, context.stream(&queue));
        // SAFETY: the source is inside the block; the target has `bytes` bytes at least and is nobody else's before the
        // fetch is dropped, which waits for the event; event and stream are of this context.
        let queued = unsafe {
            let code = sys::cuMemcpyDtoHAsync_v2(to, self.address + offset as u64, bytes, stream);
            let copied = context.check("cuMemcpyDtoHAsync", code);
            copied.and_then(|()| context.check("cuEventRecord", sys::cuEventRecord(done, stream)))
        };
        // Dropping a fetch takes the queue.
        drop(queue);
        let fetch = Fetch { context, landing, bytes };
        queued.map(|()| fetch)
    }
}

impl Landing {
    /// Memory for so many bytes; the context is current.
    fn new(context: &Context, bytes: usize) -> Result<Landing> {
        let bytes = bytes.max(LEAST);
        let (mut memory, mut done) = (std::ptr::null_mut(), std::ptr::null_mut());
        let untimed = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the context is current; the pointers are to locals.
        unsafe {
            context.check("cuEventCreate", sys::cuEventCreate(&mut done, untimed))?;
            context.check("cuMemAllocHost", sys::cuMemAllocHost_v2(&mut memory, bytes))?;
        }
        Ok(Landing { memory: memory.cast(), bytes, done })
    }
}

impl Fetch {
    /// The bytes, once they are there.
    pub(crate) fn wait(self) -> Result<Vec<u8>> {
        crate::device::count_wait();
        self.context.bind()?;
        // SAFETY: an event of this context.
        let code = unsafe { sys::cuEventSynchronize(self.landing.done) };
        self.context.check("cuEventSynchronize", code)?;
        // SAFETY: the landing has as many bytes, all written by the copy that is over, and nobody else's before the drop.
        Ok(unsafe { std::slice::from_raw_parts(self.landing.memory, self.bytes) }.to_vec())
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        // The next copy that lands there must not meet this one.
        // SAFETY: an event of this context. Failing, the context is in error and copies nothing any more.
        let _ = unsafe { sys::cuEventSynchronize(self.landing.done) };
        self.context.lock().landings.push(self.landing);
    }
}
