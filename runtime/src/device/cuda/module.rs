//! From an image to a function that can be launched.
//!
//! If the image is PTX, the driver compiles it while loading it. What the driver finds (spills, what was ignored) is added
//! to what compiler and assembler found.

use super::{Context, sys, tensor_map};
use crate::Result;
use crate::device::Storage;
use cudarc::driver::sys::{CUfunction_attribute as Attribute, CUjit_option as Jit, CUresult};
use kiln_codegen::ir::{Finding, Loc};
use kiln_codegen::nvptx::{TensorCores, TensorMap, ptxas};
use smallvec::SmallVec;
use std::ffi::{CString, c_void};
use std::sync::Arc;
use std::time::Duration;

/// A compiled kernel before it is loaded: what the disk cache holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Image {
    /// PTX text, or a cubin.
    pub(crate) code: Vec<u8>,
    pub(crate) entry: String,
    /// Per program.
    pub(crate) threads: u32,
    /// Dynamic shared memory per program.
    pub(crate) shared_bytes: u32,
    /// The parameters that follow the slots: what bulk copies read.
    pub(crate) maps: Vec<TensorMap>,
    /// Whether all programs meet, by a word whose address is the last parameter.
    pub(crate) meets: bool,
    /// For each view among the arguments whether the kernel may load from it before the launch before has ended; empty if it
    /// does nothing before.
    pub(crate) settled: Vec<bool>,
    /// Instructions of tensor cores in its text.
    pub(crate) tensor_cores: TensorCores,
    /// What passes and LLVM took just now; not kept in caches.
    pub(crate) time: Option<Duration>,
    /// What compiler and assembler found.
    pub(crate) findings: Vec<Finding>,
}

/// A kernel loaded on one GPU. Modules are never unloaded: the table of compiled kernels keeps them, and so may graphs.
pub(crate) struct Function {
    context: &'static Context,
    function: sys::CUfunction,
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
    maps: Vec<TensorMap>,
    meets: bool,
    settled: Vec<bool>,
    /// Of every launch; the last one is that it may begin early. (Not inline: configurations point to them.)
    attributes: Vec<sys::CUlaunchAttribute>,
    /// Registers per thread.
    pub(crate) registers: u32,
    /// Local memory per thread, in bytes: spills and arrays.
    pub(crate) local_bytes: u32,
    /// Programs that a multiprocessor holds at the same time.
    pub(crate) programs_per_sm: u32,
    /// What compiler, assembler and driver found.
    pub(crate) findings: Vec<Finding>,
}

// SAFETY: the handle may be used from any thread whose current context is its own, which `launch` sees to.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Loads the image of the kernel that stands `at`. The error is the driver's log.
    pub(crate) fn load(context: &'static Context, image: &Image, at: Loc) -> Result<Function, String> {
        context.bind().map_err(|e| e.to_string())?;
        let (module, driver_log) = load_module(&image.code)?;
        let mut findings = image.findings.clone();
        let ptx = std::str::from_utf8(&image.code).unwrap_or_default();
        findings.extend(ptxas::parse(&driver_log, ptx, at).findings);
        let entry = CString::new(image.entry.as_str()).map_err(|_| "the entry's name has a zero byte".to_string())?;
        let check = |call: &str, code| match code {
            CUresult::CUDA_SUCCESS => Ok(()),
            code => Err(format!("{call} failed: {}", super::explain(code))),
        };
        let mut function = std::ptr::null_mut();
        // SAFETY: a loaded module, a terminated name, a pointer to a local.
        let code = unsafe { sys::cuModuleGetFunction(&mut function, module, entry.as_ptr()) };
        check("cuModuleGetFunction", code)?;
        let attribute = |a| {
            let mut value = 0;
            // SAFETY: a loaded function, a pointer to a local.
            check("cuFuncGetAttribute", unsafe { sys::cuFuncGetAttribute(&mut value, a, function) })?;
            Ok::<u32, String>(value.max(0) as u32)
        };
        // Above 48 KiB a kernel must ask; asking for what the chip lacks is the error to report.
        if image.shared_bytes > 48 << 10 {
            let a = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a loaded function.
            let code = unsafe { sys::cuFuncSetAttribute(function, a, image.shared_bytes as i32) };
            check("cuFuncSetAttribute", code)
                .map_err(|e| format!("{} bytes of shared memory per program are too many: {e}", image.shared_bytes))?;
        }
        let (mut programs, threads) = (0, image.threads as i32);
        // SAFETY: a loaded function, a pointer to a local.
        check("cuOccupancyMaxActiveBlocksPerMultiprocessor", unsafe {
            let shared = image.shared_bytes as usize;
            sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut programs, function, threads, shared)
        })?;
        // A kernel for such chips waits itself for the one before (`nvptx/dependent.rs` of the compiler); until then its
        // programs may already take their places.
        use sys::CUlaunchAttributeID as Id;
        let early = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
        let together = sys::CUlaunchAttributeValue { cooperative: 1 };
        let attributes = [
            (image.meets, Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, together),
            (context.capability >= (9, 0), Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, early),
        ];
        let attributes = attributes.into_iter().filter(|a| a.0);
        Ok(Function {
            context,
            function,
            threads: image.threads,
            shared_bytes: image.shared_bytes,
            maps: image.maps.clone(),
            meets: image.meets,
            settled: image.settled.clone(),
            attributes: attributes.map(|(_, id, value)| sys::CUlaunchAttribute { id, pad: [0; 4], value }).collect(),
            registers: attribute(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            local_bytes: attribute(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            programs_per_sm: programs.max(0) as u32,
            findings,
        })
    }

    /// Queues a launch. The grid is not empty and within the hardware's limits.
    ///
    /// # Safety
    /// `slots` are those of the kernel that was compiled, and every view that they describe lies in one of `storages`, its
    /// own (of each: whether it is written), all of which are of this function's GPU.
    pub(crate) unsafe fn launch<'s>(
        &self,
        slots: &[u64],
        grid: [u32; 3],
        storages: impl Iterator<Item = (&'s Arc<Storage>, bool)>,
    ) -> Result<()> {
        let maps = self.encode(slots)?;
        let (stream, early) = self.context.stream_for(storages, &self.settled)?;
        let parameters = self.parameters(slots, &maps, self.context.side_of(stream));
        // SAFETY: the parameters are this function's, and what they point to is there; memory is the caller's promise.
        unsafe { self.call(&self.config(grid, stream, early), &parameters) }
    }

    /// What [`Function::run`] takes for these slots.
    pub(crate) fn arguments(&self, slots: &[u64]) -> Result<Arguments> {
        let (slots, maps) = (slots.to_vec(), self.encode(slots)?.into_vec());
        let parameters = [0, 1].map(|side| self.parameters(&slots, &maps, side).into_boxed_slice());
        Ok(Arguments { _slots: slots, _maps: maps, parameters })
    }

    /// As [`Function::launch`], without anything left to build.
    ///
    /// # Safety
    /// That of [`Function::launch`], for the slots of these arguments of this function.
    pub(crate) unsafe fn run<'s>(
        &self,
        arguments: &Arguments,
        grid: [u32; 3],
        storages: impl Iterator<Item = (&'s Arc<Storage>, bool)>,
    ) -> Result<()> {
        let (stream, early) = self.context.stream_for(storages, &self.settled)?;
        // SAFETY: as in `launch`; the arguments keep what the parameters point to.
        unsafe { self.call(&self.config(grid, stream, early), &arguments.parameters[self.context.side_of(stream)]) }
    }

    /// The driver's part of [`Function::run`] alone, for a thread that neither captures nor forks.
    ///
    /// # Safety
    /// That of [`Function::run`], at every call.
    pub(crate) unsafe fn bare<'a>(
        &'a self,
        arguments: &'a Arguments,
        grid: [u32; 3],
    ) -> Result<impl Fn() -> Result<()> + 'a> {
        self.context.bind()?;
        let config = self.config(grid, self.context.running.own, self.settled.is_empty());
        // SAFETY: as in `run`.
        Ok(move || unsafe { self.call(&config, &arguments.parameters[0]) })
    }

    fn encode(&self, slots: &[u64]) -> Result<SmallVec<[sys::CUtensorMap; 4]>> {
        self.maps.iter().map(|map| tensor_map::encode(map, slots, self.context)).collect()
    }

    /// Where the function finds its parameters: one for each slot, then its tensor maps, then the word where the programs
    /// of a stream's launches meet.
    fn parameters(&self, slots: &[u64], maps: &[sys::CUtensorMap], side: usize) -> SmallVec<[*mut c_void; 64]> {
        let mut parameters: SmallVec<[*mut c_void; 64]> = slots.iter().map(address).collect();
        parameters.extend(maps.iter().map(address));
        parameters.extend(self.meets.then(|| address(&self.context.meetings[side])));
        parameters
    }

    /// `early`: whether programs may take their places, and load what is settled, before the launch before has ended.
    fn config(&self, [x, y, z]: [u32; 3], stream: sys::CUstream, early: bool) -> sys::CUlaunchConfig {
        let attributes = self.attributes.len() - usize::from(!early && self.context.capability >= (9, 0));
        sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: self.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared_bytes,
            hStream: stream,
            attrs: self.attributes.as_ptr().cast_mut(),
            numAttrs: attributes as u32,
        }
    }

    /// # Safety
    /// The configuration is this function's, and so are the parameters, which point to values that are there. The views
    /// among them lie in memory of this GPU that is given back to the pool, if at all, after this.
    unsafe fn call(&self, config: &sys::CUlaunchConfig, parameters: &[*mut c_void]) -> Result<()> {
        // SAFETY: the driver copies configuration and parameters, which it only reads, before it returns; freed blocks are
        // reused in stream order only.
        let code = unsafe {
            sys::cuLaunchKernelEx(config, self.function, parameters.as_ptr().cast_mut(), std::ptr::null_mut())
        };
        self.context.check("cuLaunchKernelEx", code)
    }
}

fn address<T>(value: &T) -> *mut c_void {
    std::ptr::from_ref(value).cast_mut().cast()
}

/// The parameters of a launch, built once: for the own stream of a thread and for its side.
pub(crate) struct Arguments {
    /// What the parameters point to, besides the context's words.
    _slots: Vec<u64>,
    _maps: Vec<sys::CUtensorMap>,
    parameters: [Box<[*mut c_void]>; 2],
}

// SAFETY: the pointers are to memory that this value owns and nobody writes, or to the context, which lives for ever.
unsafe impl Send for Arguments {}
// SAFETY: as above.
unsafe impl Sync for Arguments {}

/// Loads PTX or a cubin; returns the module and the driver's log, or the log as an error.
fn load_module(code: &[u8]) -> Result<(sys::CUmodule, String), String> {
    const LOG: usize = 16 << 10;
    let (mut info, mut error) = (vec![0u8; LOG], vec![0u8; LOG]);
    let mut options = [
        Jit::CU_JIT_INFO_LOG_BUFFER,
        Jit::CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES,
        Jit::CU_JIT_ERROR_LOG_BUFFER,
        Jit::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        Jit::CU_JIT_LOG_VERBOSE,
        Jit::CU_JIT_GENERATE_LINE_INFO,
    ];
    // The driver takes numbers in the place of pointers.
    let mut values: [*mut c_void; 6] = [
        info.as_mut_ptr().cast(),
        std::ptr::without_provenance_mut(LOG),
        error.as_mut_ptr().cast(),
        std::ptr::without_provenance_mut(LOG),
        std::ptr::without_provenance_mut(1),
        std::ptr::without_provenance_mut(1),
    ];
    // PTX is text and must end with a zero; a cubin does not mind.
    let mut image = code.to_vec();
    image.push(0);
    let mut module = std::ptr::null_mut();
    // SAFETY: a context is current; the image is terminated; options and values are as many as said, and the buffers
    // as long as said.
    let code = unsafe {
        sys::cuModuleLoadDataEx(
            &mut module,
            image.as_ptr().cast(),
            options.len() as u32,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    let text = |log: &[u8]| {
        let end = log.iter().position(|&b| b == 0).unwrap_or(log.len());
        String::from_utf8_lossy(&log[..end]).trim().to_string()
    };
    match code {
        CUresult::CUDA_SUCCESS => Ok((module, text(&info))),
        code => Err(format!("the driver refused it: {}\n{}", super::explain(code), text(&error))),
    }
}
