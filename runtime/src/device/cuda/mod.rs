//! NVIDIA GPUs through the driver API.
//!
//! libcuda is loaded at run time, so a program built with this feature runs where there is no GPU and says so. Per GPU
//! there is one [`Context`] for the life of the process, with one stream: whatever is asked of the device happens in
//! that order, which is why freed memory can be handed out again at once and why nothing here waits except for copies
//! to the host. (A second stream serves work that is asked for side by side, see `beside`.) A graph is captured on
//! streams of its own, so what other threads do meanwhile neither gets into it nor waits for its end. Which stream is
//! whose is behind the queue's lock, but a launch takes it only while somebody captures or forks.
//!
//! Every return code is checked. A kernel that traps leaves the context in an error that every later call reports.

mod beside;
mod capture;
mod fetch;
mod memory;
mod module;
mod tensor_map;

pub(crate) use capture::CapturedGraph;
pub(crate) use fetch::Fetch;
pub(crate) use memory::Memory;
pub(crate) use module::{Arguments, Function, Image};

use crate::device::Storage;
use crate::{Device, Error, Result};
use beside::Fork;
use capture::Capture;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use fetch::Landing;
use memory::Pool;
use std::collections::HashMap;
use std::ffi::CStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Bytes of [`Context::zeros`].
const ZEROS: usize = 256;

/// A stream, another of higher priority for work beside it, and the event by which the two follow one another.
#[derive(Clone, Copy)]
struct Streams {
    own: sys::CUstream,
    side: sys::CUstream,
    turn: sys::CUevent,
}

/// One GPU: its primary context, its streams, its memory pool.
pub(crate) struct Context {
    ordinal: u32,
    context: sys::CUcontext,
    /// Where work is done.
    running: Streams,
    /// Where graphs are captured: nothing runs there.
    recording: Streams,
    pub(crate) name: String,
    /// Compute capability, major and minor.
    pub(crate) capability: (u32, u32),
    pub(crate) multiprocessors: u32,
    pub(crate) l2_bytes: usize,
    /// A few zeros in device memory, for tensor maps of views without elements.
    zeros: sys::CUdeviceptr,
    /// A word for each stream, where the programs of its launches meet.
    meetings: [sys::CUdeviceptr; 2],
    queue: Mutex<Queue>,
    capture_ended: Condvar,
    /// How many captures and forks are under way.
    divisions: AtomicUsize,
}

/// What must not change while work is queued.
#[derive(Default)]
struct Queue {
    pool: Pool,
    /// Of any thread: see [`Queue::captured`].
    capture: Option<Capture>,
    fork: Option<Fork>,
    /// Where no copy is under way.
    landings: Vec<Landing>,
}

// SAFETY: the driver's handles may be used from any thread; a thread makes the context current before each use, and
// everything mutable is behind the lock.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// The driver's words for a return code.
fn explain(code: CUresult) -> String {
    let mut text = std::ptr::null();
    // SAFETY: `text` receives a pointer to a constant of the driver, or stays null.
    unsafe {
        let _ = sys::cuGetErrorString(code, &mut text);
        if text.is_null() {
            format!("{code:?}")
        } else {
            format!("{} ({code:?})", CStr::from_ptr(text).to_string_lossy())
        }
    }
}

/// Loads and initialises the driver, once.
fn driver() -> Result<(), String> {
    static DRIVER: OnceLock<Result<(), String>> = OnceLock::new();
    DRIVER
        .get_or_init(|| {
            // SAFETY: looks for the library, which runs its initialisers; libcuda's are made for that.
            if !unsafe { sys::is_culib_present() } {
                return Err("libcuda was not found: is there an NVIDIA GPU with its driver?".into());
            }
            // SAFETY: the library is there; 0 is the only flag there is.
            match unsafe { sys::cuInit(0) } {
                CUresult::CUDA_SUCCESS => Ok(()),
                code => Err(format!("the NVIDIA driver does not start: {}", explain(code))),
            }
        })
        .clone()
}

impl Context {
    /// The context of GPU `ordinal`, made at first use.
    pub(crate) fn get(ordinal: u32) -> Result<&'static Context> {
        static CONTEXTS: OnceLock<Mutex<HashMap<u32, &'static Context>>> = OnceLock::new();
        let mut contexts = CONTEXTS.get_or_init(Default::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = contexts.get(&ordinal) {
            return Ok(context);
        }
        // One per GPU, kept until the process ends: tensors may be dropped at any time before.
        let context: &'static Context = Box::leak(Box::new(Context::open(ordinal)?));
        contexts.insert(ordinal, context);
        Ok(context)
    }

    fn open(ordinal: u32) -> Result<Context> {
        let unavailable = |reason: String| Error::Unavailable { device: Device::Cuda(ordinal), reason };
        let check = |call: &str, code| match code {
            CUresult::CUDA_SUCCESS => Ok(()),
            code => Err(unavailable(format!("{call} failed: {}", explain(code)))),
        };
        driver().map_err(unavailable)?;
        let mut count = 0;
        // SAFETY: the driver is initialised; the pointer is to a local.
        check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
        if ordinal >= count as u32 {
            return Err(unavailable(format!("the machine has {count} GPUs, numbered from 0")));
        }
        let mut device = 0;
        // SAFETY: the ordinal is below the count; the pointer is to a local.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal as i32) })?;
        let attribute = |a: Attribute| {
            let mut value = 0;
            // SAFETY: the device is valid; the pointer is to a local.
            check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, a, device) })?;
            Ok::<u32, Error>(value.max(0) as u32)
        };
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let l2_bytes = attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize;
        let mut name = [0; 128];
        // SAFETY: the driver writes at most the given length, with a final zero.
        let name = unsafe {
            check("cuDeviceGetName", sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32, device))?;
            CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
        };
        let mut context = std::ptr::null_mut();
        // SAFETY: the device is valid, the pointer is to a local.
        unsafe {
            check("cuDevicePrimaryCtxRetain", sys::cuDevicePrimaryCtxRetain(&mut context, device))?;
            check("cuCtxSetCurrent", sys::cuCtxSetCurrent(context))?;
        }
        let streams = || {
            let (mut own, mut side, mut turn) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
            let (mut least, mut greatest) = (0, 0);
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            // SAFETY: the context is current; the pointers are to locals.
            unsafe {
                check("cuStreamCreate", sys::cuStreamCreate(&mut own, flags))?;
                check("cuCtxGetStreamPriorityRange", sys::cuCtxGetStreamPriorityRange(&mut least, &mut greatest))?;
                check("cuStreamCreate", sys::cuStreamCreateWithPriority(&mut side, flags, greatest))?;
                let untimed = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
                check("cuEventCreate", sys::cuEventCreate(&mut turn, untimed))?;
            }
            Ok::<_, Error>(Streams { own, side, turn })
        };
        let zeros = || {
            let mut zeros = 0;
            // SAFETY: the context is current; the pointer is to a local; as many bytes are set as were allocated.
            unsafe {
                check("cuMemAlloc", sys::cuMemAlloc_v2(&mut zeros, ZEROS))?;
                check("cuMemsetD8", sys::cuMemsetD8_v2(zeros, 0, ZEROS))?;
            }
            Ok::<_, Error>(zeros)
        };
        let (zeros, words) = (zeros()?, zeros()?);
        let (queue, capture_ended) = (Mutex::default(), Condvar::new());
        Ok(Context {
            ordinal,
            context,
            running: streams()?,
            recording: streams()?,
            name,
            capability,
            multiprocessors,
            l2_bytes,
            zeros,
            meetings: [words, words + ZEROS as u64 / 2],
            queue,
            capture_ended,
            divisions: AtomicUsize::new(0),
        })
    }

    pub(crate) fn device(&self) -> Device {
        Device::Cuda(self.ordinal)
    }

    pub(crate) fn describe(&self) -> String {
        let (major, minor) = self.capability;
        format!("{}: {}, sm_{major}{minor}, {} multiprocessors", self.device(), self.name, self.multiprocessors)
    }

    /// A return code as an error of this device.
    fn check(&self, call: &'static str, code: CUresult) -> Result<()> {
        match code {
            CUresult::CUDA_SUCCESS => Ok(()),
            code => {
                // What the queue reports is the fault of a kernel launched earlier, and stays for good.
                let a_kernel = matches!(
                    code,
                    CUresult::CUDA_ERROR_LAUNCH_FAILED
                        | CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
                        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
                        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
                        | CUresult::CUDA_ERROR_ASSERT
                );
                let hint =
                    "; a kernel launched earlier failed (an assertion, perhaps): KILN_DEVICE=interpret shows where";
                let message = format!("{}{}", explain(code), if a_kernel { hint } else { "" });
                Err(Error::Driver { device: self.device(), call, message })
            }
        }
    }

    /// Makes the context current on this thread, as every other call requires.
    fn bind(&self) -> Result<()> {
        // SAFETY: a retained primary context.
        self.check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The queue, for work on the calling thread's stream.
    fn queue(&self) -> Result<MutexGuard<'_, Queue>> {
        self.bind()?;
        Ok(self.lock())
    }

    /// As [`Context::queue`], for what a graph cannot hold.
    fn queue_uncaptured(&self, call: &'static str) -> Result<MutexGuard<'_, Queue>> {
        let mut queue = self.queue()?;
        if queue.captured().is_some() {
            let message = "not possible while a graph is being captured: move it out of the closure".into();
            return Err(Error::Driver { device: self.device(), call, message });
        }
        Ok(queue)
    }

    /// Whether some thread captures a graph or has forked. Of other threads the answer may be late; what the calling thread
    /// does itself it never misses.
    fn is_divided(&self) -> bool {
        self.divisions.load(Ordering::Relaxed) > 0
    }

    /// Whether what the calling thread asks for runs at once, one after the other: it captures no graph and has not forked.
    pub(crate) fn is_undivided(&self) -> bool {
        let free = |mut queue: MutexGuard<Queue>| {
            queue.captured().is_none() && !queue.fork.as_ref().is_some_and(Fork::is_mine)
        };
        !self.is_divided() || free(self.lock())
    }

    /// The stream for a launch, and whether the launch may begin before the one before has ended. `storages` are those of
    /// its views, with whether they are written; of each `settled` says whether it is loaded from before that end, or is
    /// empty if nothing is. If the calling thread captures a graph, that keeps the storages alive.
    ///
    /// No lock in the ordinary case: only a thread that captures or forks itself uses another stream than all others. But
    /// then nobody knows what other threads launch meanwhile, so that who would load early may not.
    fn stream_for<'s>(
        &self,
        storages: impl Iterator<Item = (&'s Arc<Storage>, bool)>,
        settled: &[bool],
    ) -> Result<(sys::CUstream, bool)> {
        self.bind()?;
        let mut early = settled.is_empty();
        if !self.is_divided() {
            return Ok((self.running.own, early));
        }
        let mut queue = self.lock();
        let stream = self.stream(&queue);
        if let Some(capture) = queue.captured() {
            early |= capture.launch(stream, storages, settled);
        }
        Ok((stream, early))
    }

    /// Waits until everything queued is done.
    pub(crate) fn synchronize(&self) -> Result<()> {
        // Waits without the lock: others may queue meanwhile.
        drop(self.queue_uncaptured("synchronize")?);
        crate::device::count_wait();
        // SAFETY: the context's own stream.
        self.check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.running.own) })
    }

    /// The time that the work queued by `f` takes on the device; waits for it.
    pub(crate) fn time(&self, f: impl FnOnce() -> Result<()>) -> Result<Duration> {
        let (start, end) = (Event::new(self)?, Event::new(self)?);
        start.record()?;
        f()?;
        end.record()?;
        // SAFETY: recorded events of this context; the pointer is to a local.
        unsafe {
            self.check("cuEventSynchronize", sys::cuEventSynchronize(end.event))?;
            let mut milliseconds = 0.0;
            self.check("cuEventElapsedTime", sys::cuEventElapsedTime_v2(&mut milliseconds, start.event, end.event))?;
            Ok(Duration::from_secs_f64(milliseconds as f64 / 1e3))
        }
    }
}

struct Event<'a> {
    context: &'a Context,
    event: sys::CUevent,
}

impl<'a> Event<'a> {
    fn new(context: &'a Context) -> Result<Event<'a>> {
        context.bind()?;
        let mut event = std::ptr::null_mut();
        // SAFETY: the context is current; the pointer is to a local.
        context.check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, 0) })?;
        Ok(Event { context, event })
    }

    fn record(&self) -> Result<()> {
        let _queue = self.context.queue_uncaptured("timing")?;
        // SAFETY: an event and a stream of one context.
        self.context.check("cuEventRecord", unsafe { sys::cuEventRecord(self.event, self.context.running.own) })
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `new` and destroyed once. A failure leaks the event, no more.
        let _ = unsafe { sys::cuEventDestroy_v2(self.event) };
    }
}
