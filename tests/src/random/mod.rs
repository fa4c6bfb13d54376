//! Random kernels: one seed, one kernel with its arguments, run in several ways that must agree.
//!
//! The interpreter on the kernel as built is the reference. Against it stand the interpreter on the optimised kernel,
//! which must agree to the bit (any NaN is as good as another), and the compiled back ends, which must agree as each
//! output's [`Rule`] says. A back end is a [`Runner`]; whoever has one calls [`check`].
//!
//! What makes agreement decidable: values that flow on are *exact*, computed by operations that every back end must
//! perform to the bit. What a back end may round differently (transcendental functions, float sums, products of
//! matrices) is stored at once, under a rule that argues its tolerance, and flows nowhere.
//!
//! ```text
//! mod.rs       cases, runners, the check        generate.rs  the generator: statements that compute
//! rng.rs       random numbers and elements      control.rs   … loops and branches
//! compare.rs   rules and their tolerances       memory.rs    … parameters, loads, stores
//! shrink.rs    smaller cases that still fail    inexact.rs   … what is stored under a tolerance
//! cpu.rs       the CPU back end as a runner      on_device.rs  a device of the runtime as a runner
//! many.rs      many cases on several threads
//! ```

mod compare;
mod control;
mod cpu;
mod generate;
mod inexact;
mod many;
mod memory;
mod on_device;
mod rng;
mod shrink;

pub use compare::Rule;
pub use cpu::Cpu;
pub use generate::{Limits, generate};
pub use many::check_many;
pub use on_device::OnDevice;
pub use rng::Rng;
pub use shrink::shrink;

use kiln_codegen::interp::{self, Buffer};
use kiln_codegen::ir::{Bits, DType, Kernel};
use kiln_codegen::passes;
use std::fmt;
use std::sync::Arc;

/// An argument of a random kernel.
#[derive(Clone, Debug)]
pub enum Argument {
    Scalar(Bits),
    /// A window on a buffer of its own with these contents. Offset and strides count elements; strides may be 0 (inputs
    /// only) or negative.
    View {
        dtype: DType,
        bytes: Vec<u8>,
        offset: usize,
        shape: Vec<i64>,
        strides: Vec<i64>,
        rule: Rule,
    },
}

/// A kernel and what to launch it on.
#[derive(Clone, Debug)]
pub struct Case {
    pub seed: u64,
    pub kernel: Kernel,
    pub grid: [u32; 3],
    /// One for each parameter.
    pub arguments: Vec<Argument>,
}

impl Case {
    /// The launch slots (see `kiln_codegen::ir::Slot`), given where each view's buffer lies. Facts of the kernel demand
    /// that buffers lie at multiples of 16.
    pub fn slots(&self, addresses: &[u64]) -> Vec<u64> {
        let mut slots = vec![];
        for (argument, address) in self.arguments.iter().zip(addresses) {
            match argument {
                Argument::Scalar(bits) => slots.push(bits.0),
                Argument::View { dtype, offset, shape, strides, .. } => {
                    slots.push(address + (offset * dtype.size()) as u64);
                    slots.extend(shape.iter().chain(strides).map(|&n| n as u64));
                }
            }
        }
        slots
    }
}

/// A way to run a kernel.
pub trait Runner {
    fn name(&self) -> &str;

    /// Runs the case and returns every argument's buffer afterwards (empty for scalars).
    ///
    /// # Errors
    /// If the kernel cannot be compiled or run, which counts as a failure.
    fn run(&mut self, case: &Case) -> Result<Vec<Vec<u8>>, String>;

    /// Whether results must agree to the bit, whatever the rules permit.
    fn is_exact(&self) -> bool {
        false
    }

    /// By what the tolerances of functions are multiplied. 1 suits libraries that are right to a few units in the last
    /// place; a device whose approximations are coarser says here how much, and why.
    fn slack(&self) -> f64 {
        1.0
    }

    /// Whether nothing can be run any more because of a case that was: its failure cannot be looked into.
    fn is_lost(&self) -> bool {
        false
    }
}

/// The interpreter, before or after the passes.
#[derive(Clone, Copy, Debug)]
pub struct Interpreter {
    pub optimise: bool,
}

impl Runner for Interpreter {
    fn name(&self) -> &str {
        if self.optimise { "interpreter, optimised" } else { "interpreter" }
    }

    fn run(&mut self, case: &Case) -> Result<Vec<Vec<u8>>, String> {
        let mut kernel = case.kernel.clone();
        if self.optimise {
            passes::optimize(&mut kernel);
        }
        let mut buffers = vec![];
        let mut args = vec![];
        for argument in &case.arguments {
            match argument {
                Argument::Scalar(bits) => {
                    args.push(interp::Arg::Scalar(*bits));
                    buffers.push(None);
                }
                Argument::View { bytes, offset, shape, strides, .. } => {
                    let buffer = Arc::new(Buffer::from_bytes(bytes.clone()));
                    args.push(interp::Arg::View {
                        buffer: buffer.clone(),
                        offset_elements: *offset,
                        shape: shape.clone(),
                        strides: strides.clone(),
                    });
                    buffers.push(Some(buffer));
                }
            }
        }
        interp::run(&kernel, case.grid, &args).map_err(|e| e.to_string())?;
        let bytes = |b: Option<Arc<Buffer>>| b.map_or(Ok(vec![]), |b| b.to_bytes()).map_err(|e| e.to_string());
        buffers.into_iter().map(bytes).collect()
    }

    fn is_exact(&self) -> bool {
        true
    }
}

/// A disagreement.
#[derive(Debug)]
pub struct Failure {
    pub seed: u64,
    pub runner: String,
    pub what: String,
    /// The smallest kernel found that still fails; as generated if the runner was lost to it.
    pub kernel: Kernel,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} on {}: {}", self.seed, self.runner, self.what)?;
        let seed = self.seed;
        writeln!(f, "run it alone: `lab random --seed {seed} --cases 1`, or the test with KILN_SEED={seed}")?;
        write!(f, "the kernel, made smaller where that was possible:\n{}", self.kernel)
    }
}

/// Runs a case on the reference and on a runner and compares.
///
/// # Errors
/// What they disagree about, or why one of them did not run.
pub fn agrees(case: &Case, runner: &mut dyn Runner) -> Result<(), String> {
    let want = Interpreter { optimise: false }.run(case).map_err(|e| format!("the reference fails: {e}"))?;
    let got = runner.run(case)?;
    compare::compare(case, &want, &got, runner.is_exact(), runner.slack())
}

/// Generates the kernel of a seed and runs it on every runner. The kernel must verify, before and after the passes, and
/// its text must read back as the same text.
///
/// # Errors
/// The first disagreement, with a smaller kernel that shows it.
pub fn check(seed: u64, limits: Limits, runners: &mut [Box<dyn Runner>]) -> Result<(), Box<Failure>> {
    let case = generate(seed, limits);
    let failure = |runner: &str, what: String, kernel: Kernel| {
        Err(Box::new(Failure { seed, runner: runner.to_owned(), what, kernel }))
    };
    if let Err(e) = kiln_codegen::ir::verify(&case.kernel) {
        return failure("the generator", e.to_string(), case.kernel);
    }
    let text = case.kernel.to_string();
    match text.parse::<Kernel>() {
        Err(e) => return failure("the parser", e.to_string(), case.kernel),
        Ok(k) if k.to_string() != text => {
            return failure("the parser", format!("the text reads back as\n{k}"), case.kernel);
        }
        Ok(_) => {}
    }
    for runner in runners {
        if let Err(what) = agrees(&case, &mut **runner) {
            if runner.is_lost() {
                return failure(runner.name(), what, case.kernel);
            }
            let small = shrink(&case, &mut |smaller| agrees(smaller, &mut **runner).is_err());
            let what = agrees(&small, &mut **runner).err().unwrap_or(what);
            return failure(runner.name(), what, small.kernel);
        }
    }
    Ok(())
}
