//! From a source to code that runs: stages a kernel once, compiles it once per device and set of facts.
//!
//! What is found is found without lock or allocation: each thread remembers the kernels that it has launched, and a
//! kernel's list of compiled forms only grows. Staging and compiling happen under a lock of the one kernel concerned, so
//! that two threads neither do the same work nor wait for different kernels. Failures are not kept: the next launch tries
//! again and reports again.

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
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// A staged kernel and what it has been compiled to.
pub(crate) struct Staged {
    /// As staged and verified. Without facts, unless it is a `RawKernel`'s.
    pub(crate) kernel: Kernel,
    pub(crate) slots: Vec<Slot>,
    variants: Variants,
    compiling: Mutex<()>,
}

/// The rest of a list of compiled forms, of which there are few.
#[derive(Default)]
struct Variants(OnceLock<Box<Variant>>);

struct Variant {
    device: Device,
    facts: Facts,
    compiled: Compiled,
    rest: Variants,
}

impl Variants {
    /// The form for this device and these facts; if there is none, the list's end, where it is to be added.
    fn find(&self, device: Device, facts: &Facts) -> Result<&Compiled, &Variants> {
        let mut rest = self;
        while let Some(variant) = rest.0.get() {
            if variant.device == device && variant.facts == *facts {
                return Ok(&variant.compiled);
            }
            rest = &variant.rest;
        }
        Err(rest)
    }
}

impl Staged {
    /// A verified kernel.
    pub(crate) fn new(kernel: Kernel) -> Staged {
        let slots = kernel.slots();
        Staged { kernel, slots, variants: Variants::default(), compiling: Mutex::new(()) }
    }

    /// The facts that these slot values justify.
    pub(crate) fn facts_of(&self, slots: &Slots) -> Facts {
        self.slots.iter().zip(slots).map(|(s, &v)| Fact::of(s.kind, v)).collect()
    }

    /// The kernel that a launch with these facts runs.
    pub(crate) fn with_facts(&self, facts: &Facts) -> Kernel {
        Kernel { facts: facts.to_vec(), ..self.kernel.clone() }
    }
}

/// The facts of all slots, inline for all but the largest kernels.
pub(crate) type Facts = SmallVec<[Fact; 64]>;

/// Code for one device and one set of facts. Cloning shares it.
#[derive(Clone)]
pub(crate) enum Compiled {
    Cpu(Arc<CpuKernel>),
    #[cfg(feature = "cuda")]
    Cuda(Arc<cuda::Function>),
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

/// The staged form of a source.
pub(crate) fn staged(source: &Source) -> Result<Arc<Staged>> {
    thread_local! {
        static LAUNCHED: RefCell<HashMap<TypeId, Arc<Staged>>> = RefCell::default();
    }
    if let Some(staged) = LAUNCHED.with_borrow(|launched| launched.get(&source.key).cloned()) {
        return Ok(staged);
    }
    let staged = shared(source)?;
    LAUNCHED.with_borrow_mut(|launched| launched.insert(source.key, staged.clone()));
    Ok(staged)
}

/// The staged form of a source, from the table of all threads.
fn shared(source: &Source) -> Result<Arc<Staged>> {
    /// None until it has been staged.
    type Entry = Arc<Mutex<Option<Arc<Staged>>>>;
    static TABLE: LazyLock<Mutex<HashMap<TypeId, Entry>>> = LazyLock::new(Default::default);
    // No lock of this file guards an invariant that a panic could break, so poisoning is ignored throughout.
    let entry = TABLE.lock().unwrap_or_else(PoisonError::into_inner).entry(source.key).or_default().clone();
    let mut entry = entry.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(staged) = &*entry {
        return Ok(staged.clone());
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
    *entry = Some(staged.clone());
    Ok(staged)
}

/// Code of a staged kernel for a device, specialised to these facts.
pub(crate) fn compiled(staged: &Staged, device: Device, facts: Facts) -> Result<&Compiled> {
    if let Ok(compiled) = staged.variants.find(device, &facts) {
        return Ok(compiled);
    }
    let _one_at_a_time = staged.compiling.lock().unwrap_or_else(PoisonError::into_inner);
    let end = match staged.variants.find(device, &facts) {
        Ok(compiled) => return Ok(compiled),
        Err(end) => end,
    };
    let _clock = Clock(Instant::now());
    let mut kernel = staged.with_facts(&facts);
    let start = Instant::now();
    passes::optimize(&mut kernel);
    let compiled = compile(staged, &kernel, start.elapsed(), device)?;
    // Only this thread adds.
    let variant = || Box::new(Variant { device, facts, compiled, rest: Variants::default() });
    Ok(&end.0.get_or_init(variant).compiled)
}

/// Compiles a staged kernel, in the form that it has with its facts after the passes, which took so long.
#[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
fn compile(staged: &Staged, kernel: &Kernel, passes: Duration, device: Device) -> Result<Compiled> {
    let refused = |message: String| Error::Compile { device, message };
    match device {
        Device::Cpu => {
            knobs::knobs().dump(Stage::TileOpt, &kernel.name, "", || kernel.to_string());
            cpu::compile(kernel).map(|k| Compiled::Cpu(Arc::new(k))).map_err(|e| refused(e.to_string()))
        }
        Device::Interpret => Err(refused(format!("kernel `{}`: the interpreter runs tile IR as it is", kernel.name))),
        #[cfg(feature = "cuda")]
        Device::Cuda(n) => {
            let function = crate::nvidia::compile(&staged.kernel, kernel, passes, cuda::Context::get(n)?)?;
            Ok(Compiled::Cuda(Arc::new(function)))
        }
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => Err(device.not_built()),
    }
}
