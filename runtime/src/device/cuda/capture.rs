//! Graphs: a sequence of launches recorded once and replayed as one.
//!
//! A replay touches the addresses that were recorded, so the graph keeps alive whatever was touched: tensors from
//! outside, and the memory that was allocated while capturing. The latter is reused within the graph once the tensor
//! that held it is dropped, as it would be outside, and by nobody else while the graph lives.

use super::{Context, Queue, sys};
use crate::device::Storage;
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

/// What is kept while recording.
pub(super) struct Capture {
    thread: ThreadId,
    /// By address of the storage.
    kept: HashMap<usize, Kept>,
    /// Of each stream what its last launch writes, addresses of storages, if nothing else came after it.
    written: HashMap<sys::CUstream, Vec<usize>>,
}

struct Kept {
    storage: Arc<Storage>,
    /// Allocated in this capture.
    own: bool,
}

impl Capture {
    pub(super) fn is_mine(&self) -> bool {
        self.thread == std::thread::current().id()
    }

    /// Memory of the capture that nobody else holds any more, of that size or a quarter larger at most.
    pub(super) fn reuse(&self, size: usize) -> Option<Arc<Storage>> {
        let fits = |kept: &&Kept| match &*kept.storage {
            Storage::Cuda(m) => (size..=size + size / 4).contains(&m.size()),
            _ => false,
        };
        let unused = |kept: &&Kept| kept.own && Arc::strong_count(&kept.storage) == 1;
        self.kept.values().filter(unused).find(fits).map(|kept| kept.storage.clone())
    }

    pub(super) fn own(&mut self, storage: &Arc<Storage>) {
        self.kept.insert(Arc::as_ptr(storage) as usize, Kept { storage: storage.clone(), own: true });
    }

    /// Keeps the storages of a launch, of each whether it is written, which is the stream's last one from now on. Whether what
    /// came just before is a launch that writes none of those that are to be `settled` then.
    pub(super) fn launch<'s>(
        &mut self,
        stream: sys::CUstream,
        storages: impl Iterator<Item = (&'s Arc<Storage>, bool)>,
        settled: &[bool],
    ) -> bool {
        let before = self.written.remove(&stream);
        let (mut free, mut written) = (before.is_some(), vec![]);
        for (i, (storage, writes)) in storages.enumerate() {
            let address = Arc::as_ptr(storage) as usize;
            let changed = || before.as_ref().is_some_and(|b| b.contains(&address));
            free &= !(settled.get(i) == Some(&true) && changed());
            written.extend(writes.then_some(address));
            self.keep(storage);
        }
        self.written.insert(stream, written);
        free
    }

    /// Other work than launches comes now, or streams follow one another.
    pub(super) fn interrupt(&mut self) {
        self.written.clear();
    }

    fn keep(&mut self, storage: &Arc<Storage>) {
        let kept = || Kept { storage: storage.clone(), own: false };
        self.kept.entry(Arc::as_ptr(storage) as usize).or_insert_with(kept);
    }
}

/// A recorded sequence, ready to replay.
pub(crate) struct CapturedGraph {
    context: &'static Context,
    executable: sys::CUgraphExec,
    /// Returned to the pool after the graph is destroyed; later users come later on the stream.
    _kept: HashMap<usize, Kept>,
}

// SAFETY: the handle may be used from any thread; the driver wants launches of one graph one at a time, and `replay`
// holds the queue's lock.
unsafe impl Send for CapturedGraph {}
// SAFETY: as above.
unsafe impl Sync for CapturedGraph {}

impl Queue {
    /// The capture of the calling thread.
    pub(super) fn captured(&mut self) -> Option<&mut Capture> {
        self.capture.as_mut().filter(|capture| capture.is_mine())
    }

    /// If the calling thread captures a graph, keeps these storages alive with it.
    pub(super) fn keep<'s>(&mut self, storages: impl Iterator<Item = &'s Arc<Storage>>) {
        if let Some(capture) = self.captured() {
            storages.for_each(|s| capture.keep(s));
        }
    }

    /// Tells the calling thread's capture, if there is one, that what comes now is not a launch.
    pub(super) fn interrupt(&mut self) {
        if let Some(capture) = self.captured() {
            capture.interrupt();
        }
    }
}

impl Context {
    /// Records what `f` asks of this device. Waits while another thread captures, but not for ever: that thread may be
    /// waiting for this one.
    pub(crate) fn capture<E: From<Error>>(
        &'static self,
        f: impl FnOnce() -> Result<(), E>,
    ) -> Result<CapturedGraph, E> {
        /// Ends the capture, also when `f` panics.
        struct Recording(&'static Context);
        impl Recording {
            fn end(&self) -> (sys::CUresult, sys::CUgraph, Option<Capture>) {
                let mut queue = self.0.lock();
                let mut graph = std::ptr::null_mut();
                // SAFETY: the stream that the capture was begun on; the pointer is to a local.
                let code = unsafe { sys::cuStreamEndCapture(self.0.recording.own, &mut graph) };
                self.0.divisions.fetch_sub(1, Ordering::Relaxed);
                self.0.capture_ended.notify_all();
                (code, graph, queue.capture.take())
            }
        }
        impl Drop for Recording {
            fn drop(&mut self) {
                let (_, graph, kept) = self.end();
                if !graph.is_null() {
                    // SAFETY: just returned by the driver and known to nobody else.
                    let _ = unsafe { sys::cuGraphDestroy(graph) };
                }
                // After the lock is released: giving memory back takes it.
                drop(kept);
            }
        }

        const PATIENCE: Duration = Duration::from_secs(30);
        let queue = self.queue_uncaptured("a capture in a capture")?;
        let waited = self.capture_ended.wait_timeout_while(queue, PATIENCE, |queue| queue.capture.is_some());
        let (mut queue, outcome) = waited.unwrap_or_else(PoisonError::into_inner);
        if outcome.timed_out() {
            let reason = "another thread has been capturing a graph on it for long".into();
            return Err(Error::Unavailable { device: self.device(), reason }.into());
        }
        // Relaxed: allocating and loading code while recording is fine, neither is work on the stream.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: a stream of this context, on which nothing is being captured.
        self.check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.recording.own, mode) })?;
        self.divisions.fetch_add(1, Ordering::Relaxed);
        queue.capture =
            Some(Capture { thread: std::thread::current().id(), kept: HashMap::new(), written: HashMap::new() });
        drop(queue);

        let recording = Recording(self);
        f()?;
        let (code, graph, capture) = recording.end();
        std::mem::forget(recording);
        self.check("cuStreamEndCapture", code)?;
        let mut executable = std::ptr::null_mut();
        // SAFETY: a graph just returned by the driver; it is not needed once instantiated.
        let code = unsafe {
            let code = sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0);
            let _ = sys::cuGraphDestroy(graph);
            code
        };
        self.check("cuGraphInstantiate", code)?;
        let kept = capture.map(|c| c.kept).unwrap_or_default();
        Ok(CapturedGraph { context: self, executable, _kept: kept })
    }
}

impl CapturedGraph {
    /// Queues the recorded work once more.
    pub(crate) fn replay(&self) -> Result<()> {
        let _queue = self.context.queue_uncaptured("a replay in a capture")?;
        // SAFETY: an instantiated graph of this context; all memory that it touches is kept alive by `self`.
        let code = unsafe { sys::cuGraphLaunch(self.executable, self.context.running.own) };
        self.context.check("cuGraphLaunch", code)
    }
}

impl Drop for CapturedGraph {
    fn drop(&mut self) {
        // SAFETY: instantiated once, destroyed once; the driver finishes replays in flight first.
        let _ = unsafe { sys::cuGraphExecDestroy(self.executable) };
    }
}

#[cfg(test)]
mod tests {
    use super::Capture;
    use crate::{DType, Device, Tensor};
    use std::collections::HashMap;

    /// A launch may load early what is settled, unless the last launch of the same stream writes it.
    #[test]
    fn what_the_last_launch_writes_is_not_settled() {
        let mut capture =
            Capture { thread: std::thread::current().id(), kept: HashMap::new(), written: HashMap::new() };
        let [a, b] = [(); 2].map(|()| Tensor::zeros(&[4], DType::F32, Device::Cpu).unwrap());
        let (own, side) = (std::ptr::null_mut(), std::ptr::dangling_mut());
        let mut launch = |stream, views: [(&Tensor, bool); 2], settled: &[bool]| {
            capture.launch(stream, views.iter().map(|(t, written)| (t.storage(), *written)), settled)
        };
        assert!(!launch(own, [(&a, false), (&b, true)], &[]), "nobody knows what came before");
        assert!(!launch(own, [(&b, false), (&a, true)], &[true, false]), "b has just been written");
        assert!(launch(own, [(&b, false), (&a, false)], &[true, false]), "b was written two launches ago");
        assert!(launch(own, [(&a, true), (&b, true)], &[true, true]), "nothing was written");
        assert!(!launch(side, [(&a, false), (&b, false)], &[true, true]), "the first of another stream");
        assert!(launch(own, [(&a, false), (&b, false)], &[false, false]), "neither is settled");
        capture.interrupt();
        let views = [&a, &b].map(|t| (t.storage(), false));
        assert!(!capture.launch(own, views.into_iter(), &[true, true]), "after a copy, or a join");
    }
}
