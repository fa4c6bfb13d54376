//! The CPU back end: tile IR to machine code through Cranelift, programs of a grid spread over threads.
//!
//! `plan` decides where values live, `emit` and its siblings emit loops over 128-bit vectors, and this file turns the
//! result into a [`CpuKernel`] and launches it. Scratch memory belongs to a thread and is reused by every program that
//! the thread runs. A program with roles takes a thread for each, programs that meet have threads of their own
//! (`roles`).
//!
//! Invariants:
//! - Compiled code does not trap: divisions and accesses are guarded. What fails comes back as [`CpuError`].
//! - It touches views only inside their bounds, and otherwise only its thread's scratch memory.
//! - A kernel must have passed the verifier; on others, compilation may panic.

mod combine;
mod control;
mod dot;
mod elementwise;
mod emit;
mod floats;
mod helpers;
mod math;
mod memory;
mod plan;
mod roles;
#[cfg(test)]
mod tests;

use crate::ir::{Kernel, Loc, Meeting, OpKind};
use crate::passes::roles::divide;
use cranelift_codegen::Context as ClifContext;
use cranelift_codegen::ir::{AbiParam, Signature, UserFuncName, types};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{FuncId, Linkage, Module};
use helpers::{Context, HelperRefs, LaunchIds};
use plan::Plan;
use rayon::prelude::*;
use roles::{Crew, Failure};
use std::cell::RefCell;
use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};

/// Why a kernel could not be compiled or did not finish.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuError {
    #[error("kernel `{kernel}`: the CPU back end cannot generate code for this machine: {reason}")]
    Machine { kernel: String, reason: String },
    #[error("kernel `{kernel}`: generating machine code failed, which is a defect of the compiler: {reason}")]
    Codegen { kernel: String, reason: String },
    #[error("kernel `{kernel}`: launched with {found} argument slots, but its parameters take {expected}")]
    Slots { kernel: String, expected: usize, found: usize },
    #[error("kernel `{kernel}`: in a grid of {grid:?} axis 0 is not a multiple of the clusters of {cluster}")]
    Grid { kernel: String, grid: [u32; 3], cluster: usize },
    #[error("kernel `{kernel}`: all {programs} programs of a grid of {grid:?} are to meet, and {most} can")]
    Meeting { kernel: String, grid: [u32; 3], programs: u64, most: u64 },
    #[error("kernel `{kernel}`, program {program:?}, {loc}: {message}")]
    Failed { kernel: String, program: [u32; 3], loc: Loc, message: String },
}

/// How many programs of a launch can meet: each has a thread.
const MOST_TOGETHER: u64 = 1024;

/// slots, scratch memory, ids, context → 0, or 1 + the number of the operation that failed.
type Entry = unsafe extern "C" fn(*const u64, *mut u8, *const LaunchIds, *const Context) -> u32;

/// A kernel in machine code of this process.
pub struct CpuKernel {
    name: String,
    entry: Entry,
    slots: usize,
    scratch_bytes: usize,
    /// How many roles a program has, each of which takes a thread; 0: it has none.
    roles: usize,
    /// Which programs meet, and run on a thread each.
    meeting: Option<Meeting>,
    context: Context,
    /// What can fail, by operation: where it stands and what to say.
    failures: HashMap<u32, (Loc, String)>,
    code_bytes: usize,
    code: ManuallyDrop<JITModule>,
}

// SAFETY: after `compile` the module is only kept to own the code's memory; nothing reaches it until `drop`, which has
// exclusive access. The code itself is immutable and keeps no state; everything else is `Send + Sync` by itself.
unsafe impl Send for CpuKernel {}
// SAFETY: see above.
unsafe impl Sync for CpuKernel {}

impl Drop for CpuKernel {
    fn drop(&mut self) {
        // SAFETY: the module is taken once, here. No code of it runs any more: `launch` borrows `self` until all its
        // programs have ended, and the entry point is not handed out.
        unsafe { ManuallyDrop::take(&mut self.code).free_memory() }
    }
}

impl std::fmt::Debug for CpuKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuKernel")
            .field("name", &self.name)
            .field("scratch_bytes", &self.scratch_bytes)
            .field("code_bytes", &self.code_bytes)
            .finish_non_exhaustive()
    }
}

/// Compiles a verified kernel for this machine.
///
/// # Errors
/// If Cranelift does not support the machine or refuses the code.
pub fn compile(kernel: &Kernel) -> Result<CpuKernel, CpuError> {
    // A role that copies needs no thread of its own.
    let division = divide(kernel, true);
    match division.as_ref().map(|d| &d.parts[..]) {
        Some([one]) => compile_for(&one.kernel, has_fma()),
        _ => compile_for(kernel, has_fma()),
    }
}

/// `fma`: whether the machine multiplies and adds in one instruction.
fn compile_for(kernel: &Kernel, fma: bool) -> Result<CpuKernel, CpuError> {
    let machine = |reason: String| CpuError::Machine { kernel: kernel.name.clone(), reason };
    let defect = |reason: String| CpuError::Codegen { kernel: kernel.name.clone(), reason };
    let mut flags = settings::builder();
    for (name, value) in [
        ("opt_level", "speed"),
        ("is_pic", "false"),
        ("use_colocated_libcalls", "false"),
        ("enable_verifier", if cfg!(debug_assertions) { "true" } else { "false" }),
    ] {
        flags.set(name, value).map_err(|e| machine(e.to_string()))?;
    }
    let isa = cranelift_native::builder()
        .map_err(|e| machine(e.to_string()))?
        .finish(settings::Flags::new(flags))
        .map_err(|e| machine(e.to_string()))?;
    let mut builder = JITBuilder::with_isa(isa, cranelift_module::default_libcall_names());
    builder.symbol("kiln_sin", helpers::sin as *const u8);
    builder.symbol("kiln_cos", helpers::cos as *const u8);
    builder.symbol("kiln_erf", helpers::erf as *const u8);
    builder.symbol("kiln_rem", helpers::rem as *const u8);
    builder.symbol("kiln_fma", helpers::fma as *const u8);
    builder.symbol("kiln_atomic", helpers::atomic as *const u8);
    builder.symbol("kiln_print", helpers::print as *const u8);
    builder.symbol("kiln_exchange", roles::exchange as *const u8);
    let mut module = JITModule::new(builder);
    let plan = Plan::new(kernel);
    let (id, code_bytes) = define(&mut module, kernel, &plan, fma).map_err(defect)?;
    module.finalize_definitions().map_err(|e| defect(e.to_string()))?;
    let code = module.get_finalized_function(id);
    // SAFETY: the function was declared with the signature of `Entry`, in the C calling convention of this machine.
    let entry = unsafe { std::mem::transmute::<*const u8, Entry>(code) };
    let failures = kernel.ops.iter().enumerate().filter_map(|(i, op)| match &op.kind {
        OpKind::Assert { message } => Some((i as u32, (op.loc, format!("assertion failed: {message}")))),
        OpKind::Wait => Some((i as u32, (op.loc, "waits for a signal that no earlier launch has given".to_owned()))),
        OpKind::For { .. } => Some((i as u32, (op.loc, "the step of a loop must be positive".to_owned()))),
        OpKind::Send | OpKind::Receive | OpKind::Channel { .. } | OpKind::ClusterReduce(_) | OpKind::GridSync => {
            Some((i as u32, (op.loc, format!("`{}` at {}", op.kind.mnemonic(), op.loc))))
        }
        _ => None,
    });
    Ok(CpuKernel {
        name: kernel.name.clone(),
        entry,
        slots: kernel.slots().len(),
        scratch_bytes: plan.scratch_bytes,
        roles: roles::count(kernel),
        meeting: kernel.meeting().map(|(meeting, _)| meeting),
        context: Context::new(kernel, &plan),
        failures: failures.collect(),
        code_bytes,
        code: ManuallyDrop::new(module),
    })
}

/// Generates the code of a kernel's function; returns its number and size.
fn define(module: &mut JITModule, kernel: &Kernel, plan: &Plan, fma: bool) -> Result<(FuncId, usize), String> {
    let text = |e: cranelift_module::ModuleError| format!("{e:?}");
    let pointer = module.target_config().pointer_type();
    let signature = |module: &JITModule, params: &[types::Type], result: Option<types::Type>| -> Signature {
        let mut s = module.make_signature();
        s.params.extend(params.iter().map(|&t| AbiParam::new(t)));
        s.returns.extend(result.map(AbiParam::new));
        s
    };
    let entry = signature(module, &[pointer; 4], Some(types::I32));
    let id = module.declare_function("kernel", Linkage::Export, &entry).map_err(text)?;
    let mut context = ClifContext::new();
    context.func.signature = entry;
    context.func.name = UserFuncName::user(0, id.as_u32());
    let mut import = |name: &str, params: &[types::Type], result: Option<types::Type>| {
        let s = signature(module, params, result);
        let f = module.declare_function(name, Linkage::Import, &s).map_err(text)?;
        Ok::<_, String>(module.declare_func_in_func(f, &mut context.func))
    };
    let helpers = HelperRefs {
        sin: import("kiln_sin", &[types::F32], Some(types::F32))?,
        cos: import("kiln_cos", &[types::F32], Some(types::F32))?,
        erf: import("kiln_erf", &[types::F32], Some(types::F32))?,
        rem: import("kiln_rem", &[types::F32; 2], Some(types::F32))?,
        fma: import("kiln_fma", &[types::F32; 3], Some(types::F32))?,
        atomic: import("kiln_atomic", &[types::I64, pointer, types::I64], Some(types::I64))?,
        print: import("kiln_print", &[pointer, types::I32, pointer, pointer], None)?,
        exchange: import("kiln_exchange", &[pointer, types::I32, pointer, pointer, types::I64], Some(types::I64))?,
    };
    let mut frontend = FunctionBuilderContext::new();
    let mut b = FunctionBuilder::new(&mut context.func, &mut frontend);
    let block = b.create_block();
    b.append_block_params_for_function_params(block);
    b.switch_to_block(block);
    let [slots, scratch, ids, host] = [0, 1, 2, 3].map(|i| b.block_params(block)[i]);
    let mut emitter = emit::Emitter {
        k: kernel,
        plan,
        b: &mut b,
        helpers,
        fma,
        scalars: vec![None; kernel.values.len()],
        views: HashMap::new(),
        scratch,
        ids,
        context: host,
        fast: true,
        memo: HashMap::new(),
    };
    emitter.emit_kernel(slots);
    b.seal_all_blocks();
    b.finalize();
    module.define_function(id, &mut context).map_err(text)?;
    let size = context.compiled_code().map_or(0, |c| c.code_buffer().len());
    Ok((id, size))
}

/// Whether multiplying and adding is one instruction here; without it, Cranelift would call a function.
fn has_fma() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    true
}

/// 64-byte aligned memory of one thread.
#[repr(align(64))]
#[derive(Clone, Copy)]
struct Line(#[expect(dead_code, reason = "only compiled code looks inside")] [u8; 64]);

thread_local! {
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(vec![]) };
}

impl CpuKernel {
    /// The kernel's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Size of the machine code, in bytes.
    pub fn code_bytes(&self) -> usize {
        self.code_bytes
    }

    /// Scratch memory of one program, in bytes.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch_bytes
    }

    /// Runs every program of the grid and waits for all.
    ///
    /// # Errors
    /// If the number of slots is not that of the kernel's parameters, if programs of clusters exchange tiles and the grid
    /// is not whole clusters, if too many programs are to meet, or if an assertion fails or a loop's step is not positive
    /// (then programs that have not begun do not run).
    ///
    /// # Safety
    /// The slots must describe the kernel's arguments as `ir::abi` says: each view's elements must be in memory that
    /// may be read, and written if the kernel writes there, for the whole launch; aligned to the dtype's size. The
    /// facts that the kernel was compiled with must hold. Programs must not race on what they write.
    pub unsafe fn launch(&self, slots: &[u64], grid: [u32; 3]) -> Result<(), CpuError> {
        if slots.len() != self.slots {
            return Err(CpuError::Slots { kernel: self.name.clone(), expected: self.slots, found: slots.len() });
        }
        let total: u64 = grid.iter().map(|&g| g as u64).product();
        let kernel = || self.name.clone();
        let together = match self.meeting {
            None => 1,
            Some(Meeting::Cluster(cluster)) if !grid[0].is_multiple_of(cluster) => {
                return Err(CpuError::Grid { kernel: kernel(), grid, cluster: cluster as usize });
            }
            Some(Meeting::Cluster(cluster)) => cluster as u64,
            Some(Meeting::Grid) if total > MOST_TOGETHER => {
                return Err(CpuError::Meeting { kernel: kernel(), grid, programs: total, most: MOST_TOGETHER });
            }
            Some(Meeting::Grid) => total.max(1),
        };
        let stop = AtomicBool::new(false);
        let program = |i: u64| {
            let (gx, gy) = (grid[0] as u64, grid[1] as u64);
            [(i % gx) as u32, (i / gx % gy) as u32, (i / gx / gy) as u32]
        };
        // SAFETY: of the function's own demands, that the caller vouches for the slots.
        let run = |ids: &LaunchIds| unsafe { self.run(slots, ids) };
        let crew = if together > 1 { together as usize } else { self.roles };
        if crew > 0 {
            let number = |i: u64, member: u32| if together > 1 { i * together + u64::from(member) } else { i };
            let program = |i: u64, member: u32| program(number(i, member));
            return self.run_crews(crew, total / together, &program, &stop, |role, crew, i| {
                run(&LaunchIds { program: program(i, role), grid, role, crew })
            });
        }
        let run = |i: u64| {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let ids = LaunchIds { program: program(i), grid, role: 0, crew: std::ptr::null() };
            let code = run(&ids);
            if code == 0 {
                return Ok(());
            }
            stop.store(true, Ordering::Relaxed);
            Err(self.failed(ids.program, Failure::Operation(code)))
        };
        if total == 1 || rayon::current_num_threads() == 1 {
            return (0..total).try_for_each(run);
        }
        (0..total).into_par_iter().try_for_each(run)
    }

    /// Runs the kernel's function in this thread's scratch memory.
    ///
    /// # Safety
    /// As [`Self::launch`]; of a kernel with crews, `ids` must name the thread's.
    unsafe fn run(&self, slots: &[u64], ids: &LaunchIds) -> u32 {
        SCRATCH.with_borrow_mut(|scratch| {
            let lines = self.scratch_bytes / 64;
            if scratch.len() < lines {
                scratch.resize(lines, Line([0; 64]));
            }
            // SAFETY: the entry has this signature; the memory it is given is as large as the plan says, and what
            // else it touches the caller vouches for.
            unsafe { (self.entry)(slots.as_ptr(), scratch.as_mut_ptr().cast(), ids, &self.context) }
        })
    }

    /// Spreads programs, or those that meet, over crews of so many threads. `program` says which one a member of a crew
    /// runs.
    fn run_crews(
        &self,
        size: usize,
        total: u64,
        program: &(impl Fn(u64, u32) -> [u32; 3] + Sync),
        stop: &AtomicBool,
        run: impl Fn(u32, &Crew, u64) -> u32 + Sync,
    ) -> Result<(), CpuError> {
        let number = (rayon::current_num_threads() / size).max(1).min(total as usize);
        let run = &run;
        let crews: Vec<Crew> = (0..number).map(|_| Crew::new(size)).collect();
        let role = &|crew: &Crew, first: u64, role: u32| -> Result<(), CpuError> {
            for i in (first..total).step_by(number) {
                match crew.end(run(role, crew, i), stop) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(failure) => return Err(self.failed(program(i, role), failure)),
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (crews.iter().zip(0..))
                .flat_map(|(crew, first)| (0..size as u32).map(move |r| (crew, first, r)))
                .map(|(crew, first, r)| scope.spawn(move || role(crew, first, r)))
                .collect();
            let outcomes = threads.into_iter().map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e)));
            outcomes.fold(Ok(()), Result::and)
        })
    }

    /// What to say of a program that ended early.
    fn failed(&self, program: [u32; 3], failure: Failure) -> CpuError {
        let said = |op: u32| self.failures.get(&op).cloned().unwrap_or_default();
        let (loc, message) = match failure {
            Failure::Operation(code) => said(code - 1),
            Failure::Deadlock(waiting) => {
                let first = waiting.values().next().map_or(Loc::default(), |&op| said(op).0);
                let (who, what) = match self.meeting {
                    None => ("role", "a deadlock"),
                    Some(Meeting::Cluster(_)) => ("program", "the programs of a cluster do not meet"),
                    Some(Meeting::Grid) => ("program", "the programs do not meet"),
                };
                let waits = |(member, &op): (&u32, &u32)| format!("{who} {member} waits in {}", said(op).1);
                (first, format!("{what}: {}", waiting.iter().map(waits).collect::<Vec<_>>().join(", ")))
            }
            Failure::NotReceived(channel, n) => {
                (said(channel).0, format!("{n} messages of the channel were never received"))
            }
        };
        CpuError::Failed { kernel: self.name.clone(), program, loc, message }
    }
}
