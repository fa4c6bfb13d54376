//! Two sequences of work side by side: one of them on a second stream, between a fork and a join.
//!
//! The pool's promise, that whoever gets a block comes after whoever gave it back, holds for one stream. So what is
//! given back between fork and join is held until the join, and a capture does not reuse its own memory there.

use super::{Capture, Context, Queue, Streams, sys};
use crate::Result;
use std::sync::atomic::Ordering;
use std::thread::ThreadId;

/// A fork that has not been joined.
pub(super) struct Fork {
    thread: ThreadId,
    /// The stream that it forks from.
    own: sys::CUstream,
    /// Whether what this thread asks for goes to the second stream.
    on_side: bool,
    /// Blocks given back meanwhile: address and size.
    pub(super) held: Vec<(u64, usize)>,
}

impl Fork {
    /// Whether the calling thread has forked.
    pub(super) fn is_mine(&self) -> bool {
        self.thread == std::thread::current().id()
    }
}

impl Context {
    /// The streams of the calling thread.
    fn streams(&self, queue: &Queue) -> Streams {
        if queue.capture.as_ref().is_some_and(Capture::is_mine) { self.recording } else { self.running }
    }

    /// The stream for what the calling thread asks for now.
    pub(super) fn stream(&self, queue: &Queue) -> sys::CUstream {
        let Streams { own, side, .. } = self.streams(queue);
        // A graph that is captured within a fork is not of the fork.
        let mine = |f: &Fork| f.on_side && f.own == own && f.is_mine();
        if queue.fork.as_ref().is_some_and(mine) { side } else { own }
    }

    /// Whether work on this stream is beside that of another: 0 or 1, the number of the word where the programs of its
    /// launches meet.
    pub(super) fn side_of(&self, stream: sys::CUstream) -> usize {
        usize::from(stream == self.running.side || stream == self.recording.side)
    }

    /// Runs `first` on the thread's own stream and `second` on the other, which has priority: of programs that want the
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
        let Streams { own, side, turn } = self.streams(&queue);
        queue.interrupt();
        self.follow(own, side, turn)?;
        self.divisions.fetch_add(1, Ordering::Relaxed);
        queue.fork = Some(Fork { thread: std::thread::current().id(), own, on_side: false, held: vec![] });
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
            self.divisions.fetch_sub(1, Ordering::Relaxed);
        }
        let Streams { own, side, turn } = self.streams(&queue);
        queue.interrupt();
        self.follow(side, own, turn)
    }

    /// What `after` does from now on waits for all that `before` has to do.
    fn follow(&self, before: sys::CUstream, after: sys::CUstream, turn: sys::CUevent) -> Result<()> {
        // SAFETY: an event and streams of this context; waiting takes the record just made.
        unsafe {
            self.check("cuEventRecord", sys::cuEventRecord(turn, before))?;
            self.check("cuStreamWaitEvent", sys::cuStreamWaitEvent(after, turn, 0))
        }
    }
}
