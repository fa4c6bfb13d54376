//! Two sequences of work side by side: one of them on a second stream, between a fork and a join.
//!
//! The pool's promise, that whoever gets a block comes after whoever gave it back, holds for one stream. So what is
//! given back between fork and join is held until the join, and a capture does not reuse its own memory there.

use super::{Context, Queue, sys};
use crate::Result;
use std::thread::ThreadId;

/// A fork that has not been joined.
pub(super) struct Fork {
    thread: ThreadId,
    /// Whether what this thread asks for goes to the second stream.
    on_side: bool,
    /// Blocks given back meanwhile: address and size.
    pub(super) held: Vec<(u64, usize)>,
}

impl Context {
    /// The stream for what the calling thread asks for now.
    pub(super) fn stream(&self, queue: &Queue) -> sys::CUstream {
        let mine = |f: &&Fork| f.on_side && f.thread == std::thread::current().id();
        if queue.fork.as_ref().filter(mine).is_some() { self.side } else { self.stream }
    }

    /// The word where the programs of a stream's launches meet.
    pub(super) fn meeting(&self, stream: sys::CUstream) -> u64 {
        self.meetings[usize::from(stream == self.side)]
    }

    /// Runs `first` on the context's own stream and `second` on the other, which has priority: of programs that want the
    /// same place when it becomes free, not over those that have it. Both after all before and before all after. One
    /// inside another, or beside another thread's: one after the other.
    pub(crate) fn beside(
        &'static self,
        first: impl FnOnce() -> Result<()>,
        second: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        /// Joins, also when a closure panics.
        struct Join(&'static Context);
        impl Drop for Join {
            fn drop(&mut self) {
                let _ = self.0.join();
            }
        }
        let mut queue = self.queue()?;
        if queue.fork.is_some() {
            drop(queue);
            first()?;
            return second();
        }
        self.follow(self.stream, self.side)?;
        queue.fork = Some(Fork { thread: std::thread::current().id(), on_side: false, held: vec![] });
        drop(queue);
        let join = Join(self);
        first()?;
        if let Some(fork) = &mut self.queue()?.fork {
            fork.on_side = true;
        }
        second()?;
        std::mem::forget(join);
        self.join()
    }

    fn join(&self) -> Result<()> {
        let mut queue = self.queue()?;
        if let Some(fork) = queue.fork.take() {
            fork.held.into_iter().for_each(|(address, size)| queue.pool.give(address, size));
        }
        self.follow(self.side, self.stream)
    }

    /// What `after` does from now on waits for all that `before` has to do.
    fn follow(&self, before: sys::CUstream, after: sys::CUstream) -> Result<()> {
        // SAFETY: an event and streams of this context; waiting takes the record just made.
        unsafe {
            self.check("cuEventRecord", sys::cuEventRecord(self.turn, before))?;
            self.check("cuStreamWaitEvent", sys::cuStreamWaitEvent(after, self.turn, 0))
        }
    }
}
