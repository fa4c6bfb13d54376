//! The NVPTX back end: a kernel in, PTX out.
//!
//! `gpu` decides where every element of every tile lives; this module writes what each thread does as LLVM text
//! ([`text`], [`math`], `lower`, `memory`, `shared`, `reduce`, `dot`), and `emit` has LLVM turn it into PTX. Without
//! the feature `llvm` the text can still be made ([`llvm_text`]); LLVM is needed for the last step only.
//!
//! Hardware instructions that LLVM has no good form of are inline PTX: with effects where they touch memory or
//! synchronise, without where they only compute.

#[cfg(test)]
mod differential;
mod dot;
#[cfg(feature = "llvm")]
mod emit;
mod lower;
mod math;
mod memory;
mod pipeline;
pub mod ptxas;
mod reduce;
mod shared;
#[cfg(test)]
mod simulate;
#[cfg(all(test, feature = "llvm"))]
mod tests;
#[cfg(test)]
mod tests_kernels;
mod text;

use crate::gpu;
use crate::ir::{Kernel, Loc};

/// The chip to compile for: 80 (Ampere and later) or 90 (Hopper, emitted as sm_90a).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub sm: u32,
}

impl Target {
    /// The name that LLVM and ptxas know it by.
    pub fn name(self) -> &'static str {
        if self.sm >= 90 { "sm_90a" } else { "sm_80" }
    }

    /// Shared memory that one program may ask for, in bytes.
    pub fn shared_limit(self) -> usize {
        if self.sm >= 90 { 227 << 10 } else { 163 << 10 }
    }
}

impl Target {
    /// Shared memory that the rings of pipelined loops may take; the rest is for everything else.
    fn ring_limit(self) -> usize {
        if self.sm >= 90 { 160 << 10 } else { 100 << 10 }
    }
}

/// A compiled kernel.
#[derive(Clone, Debug)]
pub struct Ptx {
    pub text: String,
    /// The entry point's name.
    pub entry: String,
    /// Threads per program, along x.
    pub threads: u32,
    /// Dynamic shared memory to request, in bytes.
    pub shared_bytes: u32,
    /// Why something is slower than its author may expect.
    pub notes: Vec<(Loc, String)>,
}

/// Why a kernel cannot be compiled.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("kernel `{kernel}` at {loc}: {message}")]
    Unsupported { kernel: String, loc: Loc, message: String },
    #[error(
        "kernel `{kernel}` needs {needed} bytes of shared memory, {target} has {limit} for a program: use smaller \
         tiles or fewer pipeline stages"
    )]
    SharedMemory { kernel: String, needed: usize, limit: usize, target: &'static str },
    #[error("kernel `{kernel}`: the compiler produced wrong code (this is a mistake of kiln): {message}")]
    Internal { kernel: String, message: String },
}

/// LLVM text and what goes with it.
#[derive(Clone, Debug)]
pub struct Lowered {
    pub text: String,
    pub entry: String,
    pub threads: u32,
    pub shared_bytes: u32,
    pub notes: Vec<(Loc, String)>,
}

/// A kernel name as an identifier of PTX.
fn entry_name(kernel: &Kernel) -> String {
    let clean = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' };
    let name: String = kernel.name.chars().map(clean).collect();
    format!("kiln_{name}")
}

/// Lowers a verified kernel to LLVM text.
///
/// # Errors
/// If the kernel needs more shared memory than the target has.
pub fn llvm_text(kernel: &Kernel, target: Target) -> Result<Lowered, Error> {
    let plan = gpu::assign::assign(kernel, target.ring_limit());
    let mut lower = lower::Lower::new(kernel, &plan, target.sm);
    lower.run()?;
    let (threads, shared) = (lower.threads(), lower.shared_max);
    if shared > target.shared_limit() {
        let limit = target.shared_limit();
        return Err(Error::SharedMemory { kernel: kernel.name.clone(), needed: shared, limit, target: target.name() });
    }
    let entry = entry_name(kernel);
    let least = kernel.options.min_programs_per_sm;
    let mut notes = plan.notes.clone();
    notes.append(&mut lower.notes);
    let text = lower.w.finish(&entry, kernel.slots().len(), threads, least, shared > 0);
    Ok(Lowered { text, entry, threads: threads as u32, shared_bytes: shared as u32, notes })
}

/// Compiles a verified kernel to PTX.
///
/// # Errors
/// As [`llvm_text`].
#[cfg(feature = "llvm")]
pub fn compile(kernel: &Kernel, target: Target) -> Result<Ptx, Error> {
    let lowered = llvm_text(kernel, target)?;
    let text =
        emit::ptx(&lowered.text, target).map_err(|message| Error::Internal { kernel: kernel.name.clone(), message })?;
    let Lowered { entry, threads, shared_bytes, notes, .. } = lowered;
    Ok(Ptx { text, entry, threads, shared_bytes, notes })
}
