//! What the compiler made of the kernels of this process.

use crate::Device;
use kiln_codegen::ir::Finding;
use kiln_codegen::nvptx::TensorCores;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// One compiled kernel: what it needs of the machine, and what its author should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelReport {
    pub kernel: String,
    pub device: Device,
    /// Threads per program.
    pub threads: u32,
    /// Registers per thread.
    pub registers: u32,
    /// Local memory per thread in bytes: spilled registers, mostly.
    pub local_bytes: u32,
    /// Dynamic shared memory per program in bytes.
    pub shared_bytes: u32,
    /// Programs that a multiprocessor holds at the same time.
    pub programs_per_sm: u32,
    /// Instructions of tensor cores in its code.
    pub tensor_cores: TensorCores,
    /// What the compiler's passes and LLVM took, without the assembler; none if the kernel is a pack's or the cache's.
    pub compile_time: Option<Duration>,
    /// What is slow, and where: by the compiler's passes, the assembler and the driver.
    pub findings: Vec<Finding>,
}

static REPORTS: Mutex<Vec<KernelReport>> = Mutex::new(vec![]);

/// Reports on the kernels compiled for GPUs so far, in the order of their first launch; one per specialisation.
pub fn kernel_reports() -> Vec<KernelReport> {
    REPORTS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

static TOLERANT: AtomicBool = AtomicBool::new(false);

/// Runs kernels whatever their authors deny, for the rest of the process, as `KILN_DENY=off` does: for programs whose
/// users would rather have a slow kernel than none. Reports still have what was found.
pub fn tolerate_findings() {
    TOLERANT.store(true, Ordering::Relaxed);
}

#[cfg(feature = "cuda")]
pub(crate) fn is_tolerant() -> bool {
    TOLERANT.load(Ordering::Relaxed)
}

/// Notes a kernel.
#[cfg(feature = "cuda")]
pub(crate) fn add(report: KernelReport) {
    REPORTS.lock().unwrap_or_else(PoisonError::into_inner).push(report);
}

impl fmt::Display for KernelReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KernelReport { kernel, device, threads, registers, local_bytes, shared_bytes, .. } = self;
        write!(f, "{kernel} on {device}: {threads} threads, {registers} registers, {local_bytes} B local, ")?;
        write!(f, "{shared_bytes} B shared, {} programs per multiprocessor, ", self.programs_per_sm)?;
        write!(f, "{}", self.tensor_cores)?;
        if let Some(time) = self.compile_time {
            write!(f, ", {:.3} s of passes and LLVM", time.as_secs_f64())?;
        }
        self.findings.iter().try_for_each(|finding| write!(f, "\n  {finding}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_instructions_and_times() {
        let mut report = KernelReport {
            kernel: "k".into(),
            device: Device::Cpu,
            threads: 128,
            registers: 40,
            local_bytes: 0,
            shared_bytes: 1024,
            programs_per_sm: 4,
            tensor_cores: TensorCores { wgmma: 4, mma: 12 },
            compile_time: Some(Duration::from_millis(83)),
            findings: vec![],
        };
        let text = "k on cpu: 128 threads, 40 registers, 0 B local, 1024 B shared, 4 programs per multiprocessor, 4 wgmma, 12 mma.sync";
        assert_eq!(report.to_string(), format!("{text}, 0.083 s of passes and LLVM"));
        report.compile_time = None;
        assert_eq!(report.to_string(), text);
    }
}
