//! From a source to code that runs: stages a kernel once, compiles it once per device and set of facts.
//!
//! The table is read by every launch and written by first launches only: a hit takes two read locks and no allocation.
//! Staging and compiling happen outside of the table's locks, under a lock of the one kernel concerned, so that two
//! threads neither do the same work nor wait for different kernels. Failures are not kept: the next launch tries again
//! and reports again.

#[cfg(feature = "cuda")]
use crate::device::cuda;
use crate::knobs::{self, Stage};
use crate::launch::{Slots, Source};
use crate::{Device, Error, Result};
use kiln_codegen::cpu::{self, CpuKernel};
use kiln_codegen::ir::{Fact, Kernel, Slot, VerifyError, verify};
use kiln_codegen::passes;
use smallvec::SmallVec;
use std::any::TypeId;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// A staged kernel and what it has been compiled to.
pub(crate) struct Staged {
    /// As staged and verified. Without facts, unless it is a `RawKernel`'s.
    pub(crate) kernel: Kernel,
    pub(crate) slots: Vec<Slot>,
    variants: RwLock<HashMap<(Device, Facts), Arc<Compiled>>>,
    compiling: Mutex<()>,
}

impl Staged {
    /// A verified kernel.
    pub(crate) fn new(kernel: Kernel) -> Staged {
        let slots = kernel.slots();
        Staged { kernel, slots, variants: RwLock::default(), compiling: Mutex::new(()) }
    }

    /// The facts that these slot values justify.
    pub(crate) fn facts_of(&self, slots: &Slots) -> Facts {
        self.slots.iter().zip(slots).map(|(s, &v)| Fact::of(s.kind, v)).collect()
    }
}

/// The facts of all slots, inline for all but the largest kernels.
pub(crate) type Facts = SmallVec<[Fact; 64]>;

/// Code for one device and one set of facts.
pub(crate) enum Compiled {
    Cpu(Box<CpuKernel>),
    #[cfg(feature = "cuda")]
    Cuda(cuda::Function),
}

static NANOSECONDS: AtomicU64 = AtomicU64::new(0);

/// The time that this process has spent so far on staging and compiling kernels, all threads together. First launches
/// take it; who measures something else subtracts what was added meanwhile, and says so.
pub fn compile_time() -> Duration {
    Duration::from_nanos(NANOSECONDS.load(Ordering::Relaxed))
}

/// Counts the time from its making to its end.
struct Clock(Instant);

impl Drop for Clock {
    fn drop(&mut self) {
        NANOSECONDS.fetch_add(self.0.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Entry {
    staged: RwLock<Option<Arc<Staged>>>,
    staging: Mutex<()>,
}

/// The staged form of a source.
pub(crate) fn staged(source: &Source) -> Result<Arc<Staged>> {
    static TABLE: LazyLock<RwLock<HashMap<TypeId, Arc<Entry>>>> = LazyLock::new(Default::default);
    // No lock of this file guards an invariant that a panic could break, so poisoning is ignored throughout.
    let found = TABLE.read().unwrap_or_else(PoisonError::into_inner).get(&source.key).cloned();
    let entry = found.unwrap_or_else(|| {
        TABLE.write().unwrap_or_else(PoisonError::into_inner).entry(source.key).or_default().clone()
    });
    let ready = || entry.staged.read().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(staged) = ready() {
        return Ok(staged);
    }
    let _one_at_a_time = entry.staging.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(staged) = ready() {
        return Ok(staged);
    }
    let _clock = Clock(Instant::now());
    let kernel = (source.stage)()?;
    knobs::knobs().dump(Stage::Tile, &kernel.name, "", || kernel.to_string());
    verify(&kernel).map_err(|e| {
        // The one mistake that types do not catch: a native variable that holds tiles and changes unseen.
        let escape = "a tile that is made inside a staged loop, branch or role is used outside of it. A variable changes there \
                      by `x = ..` or through `&mut x`; write `(&mut x).method(..)` where a method changes it";
        if e.is_escape() {
            return Error::staging(&kernel.name, [(e.loc, escape.to_string())]);
        }
        if e.is_about_exchanges() {
            let VerifyError { op, what, expected, found, .. } = &e;
            let message = format!("`{op}`, {what}: expected {expected}, found {found}");
            return Error::staging(&kernel.name, [(e.loc, message)]);
        }
        Error::Launch { kernel: kernel.name.clone(), message: format!("staged to invalid IR: {e}") }
    })?;
    let staged = Arc::new(Staged::new(kernel));
    *entry.staged.write().unwrap_or_else(PoisonError::into_inner) = Some(staged.clone());
    Ok(staged)
}

/// Code of a staged kernel for a device, specialised to these facts.
pub(crate) fn compiled(staged: &Staged, device: Device, facts: Facts) -> Result<Arc<Compiled>> {
    let key = (device, facts);
    let ready = || staged.variants.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
    if let Some(compiled) = ready() {
        return Ok(compiled);
    }
    let _one_at_a_time = staged.compiling.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(compiled) = ready() {
        return Ok(compiled);
    }
    let _clock = Clock(Instant::now());
    let mut kernel = staged.kernel.clone();
    kernel.facts = key.1.to_vec();
    let start = Instant::now();
    passes::optimize(&mut kernel);
    let compiled = Arc::new(compile(staged, &kernel, start.elapsed(), device)?);
    staged.variants.write().unwrap_or_else(PoisonError::into_inner).insert(key, compiled.clone());
    Ok(compiled)
}

/// Compiles a staged kernel, in the form that it has with its facts after the passes, which took so long.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
fn compile(staged: &Staged, kernel: &Kernel, passes: Duration, device: Device) -> Result<Compiled> {
    let refused = |message: String| Error::Compile { device, message };
    match device {
        Device::Cpu => {
            knobs::knobs().dump(Stage::TileOpt, &kernel.name, "", || kernel.to_string());
            cpu::compile(kernel).map(|k| Compiled::Cpu(Box::new(k))).map_err(|e| refused(e.to_string()))
        }
        Device::Interpret => Err(refused(format!("kernel `{}`: the interpreter runs tile IR as it is", kernel.name))),
        #[cfg(feature = "cuda")]
        Device::Cuda(n) => {
            crate::nvidia::compile(&staged.kernel, kernel, passes, cuda::Context::get(n)?).map(Compiled::Cuda)
        }
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => Err(device.not_built()),
    }
}
