//! The NVPTX back end: a kernel in, PTX out.
//!
//! `gpu` decides where every element of every tile lives; this module writes what each thread does as LLVM text
//! ([`text`], [`math`], `lower`, `control`, `memory`, `shared`, `reduce`, `scan`, `cluster`, `dot`; what is slow goes
//! to `findings`), and `emit` has LLVM turn it into PTX. Without the feature `llvm` the text can still be made
//! ([`llvm_text`]); LLVM is needed for the last step only.
//!
//! Hardware instructions that LLVM has no good form of are inline PTX: with effects where they touch memory or
//! synchronise, without where they only compute.

mod assembly;
mod bulk;
mod channel;
mod cluster;
mod control;
mod dependent;
mod diagnostics;
#[cfg(test)]
mod differential;
mod dot;
#[cfg(feature = "llvm")]
mod emit;
mod findings;
mod grid;
mod lower;
mod mailbox;
mod math;
mod memory;
mod parts;
mod pipeline;
mod places;
pub mod ptxas;
mod reduce;
mod registers;
mod scan;
mod semaphore;
mod shared;
#[cfg(test)]
mod simulate;
mod stores;
#[cfg(all(test, feature = "llvm"))]
mod tests;
#[cfg(test)]
mod tests_clusters;
#[cfg(test)]
mod tests_dependent;
#[cfg(test)]
mod tests_findings;
#[cfg(test)]
mod tests_grid;
#[cfg(test)]
mod tests_kernels;
#[cfg(test)]
mod tests_roles;
#[cfg(test)]
mod tests_stores;
#[cfg(test)]
mod tests_tiles;
#[cfg(all(test, feature = "llvm"))]
mod tests_types;
#[cfg(test)]
mod tests_warpgroups;
mod text;
mod wgmma;

pub use crate::gpu::bulk::{TensorMap, Transfer};

use crate::gpu::{self, Chip};
use crate::ir::{Denied, Finding, Kernel, Loc, Meeting};
use crate::passes::roles::{self, Division};

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

    /// Whether what compiling a kernel found is allowed. On Hopper, that is, which kernels are written for: what they deny
    /// is no error on the chips that get code for sm_80 because there is no better.
    ///
    /// # Errors
    /// As of [`Kernel::check`].
    pub fn check(self, kernel: &Kernel, findings: &[Finding]) -> Result<(), Denied> {
        if self.sm >= 90 { kernel.check(findings) } else { Ok(()) }
    }

    /// Shared memory that one program may ask for, in bytes.
    pub fn shared_limit(self) -> usize {
        if self.sm >= 90 { 227 << 10 } else { 163 << 10 }
    }
}

impl Target {
    /// What to try one after the other, until the kernel fits into shared memory: rings of pipelined loops as large as
    /// can be, then smaller ones, at last without products that need their operands in shared memory.
    fn chips(self) -> Vec<Chip> {
        let chip =
            |warpgroups, kib: usize| Chip { warpgroups, shared_bytes: self.shared_limit(), ring_bytes: kib << 10 };
        match self.sm {
            90.. => vec![chip(true, 212), chip(true, 160), chip(true, 112), chip(true, 64), chip(false, 112)],
            _ => vec![chip(false, 100)],
        }
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
    /// The tensor maps that follow the launch slots as parameters of 128 bytes each.
    pub maps: Vec<TensorMap>,
    /// Whether all programs meet: after the maps comes a 64-bit parameter, the address of a word that is 0 before the
    /// first launch and in use by one launch at a time. The launch must be cooperative.
    pub meets: bool,
    /// For each view among the parameters whether it may be loaded from before the launch before has ended, if that is
    /// allowed to this one: it must not have written there. Empty if nothing is done before.
    pub settled: Vec<bool>,
    /// Why something is slower than its author may expect. The assembler knows more ([`ptxas::assemble`]).
    pub findings: Vec<Finding>,
}

/// Instructions of tensor cores in a kernel's text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TensorCores {
    /// By warpgroups.
    pub wgmma: u32,
    /// By single warps.
    pub mma: u32,
}

impl std::fmt::Display for TensorCores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} wgmma, {} mma.sync", self.wgmma, self.mma)
    }
}

impl Ptx {
    pub fn tensor_cores(&self) -> TensorCores {
        let count = |instruction: &str| self.text.matches(instruction).count() as u32;
        TensorCores { wgmma: count("wgmma.mma_async."), mma: count("mma.sync.") }
    }
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
    /// Programs of a cluster, if they share copies or exchange tiles; else 1.
    pub cluster: u32,
    pub maps: Vec<TensorMap>,
    /// As [`Ptx::meets`].
    pub meets: bool,
    /// As [`Ptx::settled`].
    pub settled: Vec<bool>,
    pub findings: Vec<Finding>,
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
/// If the kernel needs more shared memory than the target has, has more roles than the target can run
/// ([`passes::roles`](crate::passes::roles)), or exchanges tiles within clusters that the target does not have.
pub fn llvm_text(kernel: &Kernel, target: Target) -> Result<Lowered, Error> {
    if let Some((Meeting::Cluster(_), exchange)) = kernel.meeting().filter(|_| target.sm < 90) {
        let message = format!("programs of a cluster exchange tiles on Hopper, and this is code for {}", target.name());
        return Err(Error::Unsupported { kernel: kernel.name.clone(), loc: kernel.op(exchange).loc, message });
    }
    // Where roles have warps of their own, work stays where its author put it.
    let division = roles::divide(kernel, target.sm < 90);
    let several = division.as_ref().filter(|d| d.parts.len() > 1);
    if let Some(d) = several.filter(|_| target.sm < 90) {
        let rule = "before Hopper one role computes, and the others only load and send";
        let (loc, message) = match d.refusals.first() {
            Some(why) => (why.loc, format!("{rule}: {}", why.rule)),
            None => (d.loc, format!("{rule}: here {} roles do more", d.parts.len())),
        };
        return Err(Error::Unsupported { kernel: kernel.name.clone(), loc, message });
    }
    let limit = target.shared_limit();
    let mut needed = 0;
    for chip in target.chips() {
        let lowered = match several {
            Some(division) => parts::lower(kernel, division, target, chip)?,
            None => lower_one(kernel, division.as_ref(), target, chip)?,
        };
        needed = lowered.shared_bytes as usize;
        if needed <= limit {
            return Ok(lowered);
        }
    }
    Err(Error::SharedMemory { kernel: kernel.name.clone(), needed, limit, target: target.name() })
}

/// A kernel of one computing role, or without roles, for a chip.
fn lower_one(kernel: &Kernel, division: Option<&Division>, target: Target, chip: Chip) -> Result<Lowered, Error> {
    let kernel = division.map_or(kernel, |d| &d.parts[0].kernel);
    let plan = gpu::assign::assign(kernel, chip);
    let mut lower = lower::Lower::new(kernel, &plan, target.sm);
    if let Some(division) = division {
        registers::budget(std::slice::from_mut(&mut lower), division)?;
    }
    lower.run()?;
    // The assembler shifts registers only where it knows how many a program may take.
    let least = kernel.options.min_programs_per_sm.max(u8::from(lower.shifts_registers()));
    let mut findings = division.map_or(vec![], |d| d.findings.clone());
    findings.extend(plan.findings.iter().cloned());
    findings.append(&mut lower.findings);
    let together = lower.shares() || lower.exchanged.is_some() || lower.mailbox.is_some();
    let cluster = if together { u32::from(kernel.options.cluster) } else { 1 };
    let (threads, shared_bytes) = (lower.launched_threads(), lower.shared_max);
    let settled = lower.settled();
    let all = lowered(kernel, lower.w, [threads, shared_bytes], least, cluster, lower.maps, findings);
    Ok(Lowered { settled, ..all })
}

/// What has been written, with its frame.
fn lowered(
    kernel: &Kernel,
    w: text::Writer,
    [threads, shared_bytes]: [usize; 2],
    least: u8,
    cluster: u32,
    maps: Vec<TensorMap>,
    findings: Vec<Finding>,
) -> Lowered {
    let entry = entry_name(kernel);
    let meets = matches!(kernel.meeting(), Some((Meeting::Grid, _)));
    let text = w.finish(&entry, [kernel.slots().len(), maps.len(), meets.into()], threads, least, shared_bytes > 0);
    let (threads, shared_bytes) = (threads as u32, shared_bytes as u32);
    Lowered { text, entry, threads, shared_bytes, cluster, maps, meets, settled: vec![], findings }
}

/// Compiles a verified kernel to PTX.
///
/// # Errors
/// As [`llvm_text`].
#[cfg(feature = "llvm")]
pub fn compile(kernel: &Kernel, target: Target) -> Result<Ptx, Error> {
    let lowered = llvm_text(kernel, target)?;
    let internal = |message| Error::Internal { kernel: kernel.name.clone(), message };
    let mut text = emit::ptx(&lowered.text, target).map_err(internal)?;
    if lowered.cluster > 1 {
        // LLVM 19 cannot say it.
        let threads = format!(".reqntid {}, 1, 1", lowered.threads);
        let Some((before, after)) = text.split_once(&threads) else {
            return Err(internal(format!("no `{threads}` in the PTX")));
        };
        text = format!("{before}{threads}\n.reqnctapercluster {}, 1, 1{after}", lowered.cluster);
    }
    let Lowered { entry, threads, shared_bytes, maps, meets, settled, findings, .. } = lowered;
    Ok(Ptx { text, entry, threads, shared_bytes, maps, meets, settled, findings })
}
