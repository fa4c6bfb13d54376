//! The assembler's verdict on PTX: registers, spills, and the instructions that became of it.
//!
//! Needs NVIDIA's `ptxas`, found through `KILN_PTXAS` or `PATH`, and for the instructions `nvdisasm` beside it; no GPU.

use std::collections::BTreeMap;
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

/// The assembler's version, `V13.0.88`: registers and instructions depend on it.
///
/// # Errors
/// If it cannot be asked.
pub fn version(ptxas: &Path) -> Result<String, String> {
    let run = Command::new(ptxas).arg("--version").output().map_err(|e| format!("{}: {e}", ptxas.display()))?;
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    let word = text.split_whitespace().find(|w| w.starts_with('V') && w[1..].starts_with(|c: char| c.is_ascii_digit()));
    word.map(str::to_owned).ok_or_else(|| format!("{}: no version in {text:?}", ptxas.display()))
}

/// How often each instruction stands in machine code, by its name without modifiers (`HGMMA`, `LDSM`, `STL`).
///
/// # Errors
/// If the disassembler is missing or refuses the file.
pub fn instructions(ptxas: &Path, cubin: &Path) -> Result<BTreeMap<String, u32>, String> {
    let beside = ptxas.with_file_name("nvdisasm");
    let nvdisasm = if beside.is_file() { beside } else { PathBuf::from("nvdisasm") };
    let run = Command::new(&nvdisasm).arg("-c").arg(cubin).output();
    let run = run.map_err(|e| format!("{}: {e}", nvdisasm.display()))?;
    if !run.status.success() {
        return Err(String::from_utf8_lossy(&run.stderr).into_owned());
    }
    let counts = count(&String::from_utf8_lossy(&run.stdout));
    if counts.is_empty() {
        Err(format!("{}: no instructions in {}", nvdisasm.display(), cubin.display()))
    } else {
        Ok(counts)
    }
}

/// Counts the lines of a disassembly: `/*0040*/  @!P0 LDS.128 R4, [R2] ;`.
fn count(disassembly: &str) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for line in disassembly.lines() {
        let Some((_, code)) = line.trim_start().strip_prefix("/*").and_then(|rest| rest.split_once("*/")) else {
            continue;
        };
        let mut words = code.split_whitespace().skip_while(|word| word.starts_with(['@', '{']));
        let name = words.next().unwrap_or("").split(['.', ';']).next().unwrap_or("");
        if name.starts_with(|c: char| c.is_ascii_uppercase()) {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
    }
    counts
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_are_read() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'kiln_k' for 'sm_90a'\n\
            ptxas info    : Function properties for kiln_k\n    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads\n\
            ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized\n\
            ptxas info    : Used 168 registers, used 1 barriers\n";
        let report = parse(log);
        assert_eq!((report.registers, report.spill_stores, report.spill_loads), (168, 12, 16));
        assert!(report.warnings.len() == 1 && report.warnings[0].contains("serialized"));
    }

    #[test]
    fn instructions_are_counted_by_name() {
        let text = "k:\n.text.k:\n        /*0000*/   LDC R1, c[0x0][0x28] ;\n        /*0010*/   @!P0 LDS.128 R4, [R2] ;\n\
            /*0020*/   @P1 LDS R4, [R2] ;\n        /*0030*/   EXIT;\n.L_x_0:\n    /*0000*/  \t.byte\t0x04, 0x2f\n";
        let counts: Vec<(String, u32)> = count(text).into_iter().collect();
        assert_eq!(counts, [("EXIT".into(), 1), ("LDC".into(), 1), ("LDS".into(), 2)]);
    }
}
