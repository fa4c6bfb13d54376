//! The assembler's verdict on PTX: registers, spills, shared memory.
//!
//! Needs NVIDIA's `ptxas`, found through `KILN_PTXAS` or `PATH`; no GPU.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What `ptxas -v` says of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub registers: u32,
    pub spill_stores: u32,
    pub spill_loads: u32,
    /// Warnings and performance advisories.
    pub warnings: Vec<String>,
}

/// The assembler, if there is one on this machine.
pub fn find() -> Option<PathBuf> {
    if let Some(p) = std::env::var_os("KILN_PTXAS") {
        return Some(PathBuf::from(p));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|d| d.join("ptxas")).find(|p| p.is_file())
}

/// Assembles `text` for `arch`, to `cubin` if given.
///
/// # Errors
/// The assembler's messages.
pub fn assemble(ptxas: &Path, text: &str, arch: &str, cubin: Option<&Path>) -> Result<Report, String> {
    let unique = format!("kiln-{}-{:?}.ptx", std::process::id(), std::thread::current().id());
    let source = std::env::temp_dir().join(unique.replace(['(', ')'], ""));
    std::fs::write(&source, text).map_err(|e| e.to_string())?;
    let output = cubin.map_or_else(|| source.with_extension("cubin"), Path::to_path_buf);
    let run = Command::new(ptxas).args(["-v", "-arch", arch, "-o"]).arg(&output).arg(&source).output();
    let _ = std::fs::remove_file(&source);
    if cubin.is_none() {
        let _ = std::fs::remove_file(&output);
    }
    let run = run.map_err(|e| format!("{}: {e}", ptxas.display()))?;
    let log = String::from_utf8_lossy(&run.stderr).into_owned() + &String::from_utf8_lossy(&run.stdout);
    if !run.status.success() {
        return Err(log);
    }
    Ok(parse(&log))
}

fn number_before(line: &str, what: &str) -> Option<u32> {
    line.split(what).next()?.split_whitespace().last()?.parse().ok()
}

/// Reads the log of `ptxas -v` for one kernel.
pub fn parse(log: &str) -> Report {
    let mut report = Report::default();
    for line in log.lines() {
        if line.contains("bytes spill stores") {
            report.spill_stores = number_before(line, " bytes spill stores").unwrap_or(0);
            report.spill_loads = number_before(line, " bytes spill loads").unwrap_or(0);
        }
        if line.contains("Used ") && line.contains(" registers") {
            report.registers = number_before(line, " registers").unwrap_or(0);
        }
        if line.contains("warning") || line.contains("(C7") {
            report.warnings.push(line.trim().to_owned());
        }
    }
    report
}
