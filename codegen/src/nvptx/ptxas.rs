//! The assembler's verdict on PTX: registers, spills, and the instructions that became of it.
//!
//! Needs NVIDIA's `ptxas`, found through `KILN_PTXAS` or `PATH`, and for the instructions `nvdisasm` beside it; no GPU.
//! The driver's own assembler writes the same log, which [`parse`] reads as well.

use super::Target;
use crate::ir::{Finding, Lint, Loc};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `ptxas -v` says of a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Per thread.
    pub registers: u32,
    /// Spills, warnings and performance advisories.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The programs that one multiprocessor holds at the same time: what is known as occupancy, in programs of so many
    /// threads and bytes of shared memory.
    pub fn programs_per_sm(&self, target: Target, threads: u32, shared_bytes: u32) -> u32 {
        // Registers are given to warps in units of 256; of shared memory the system takes 1 KiB for each program.
        let warps = threads.div_ceil(32);
        let registers = (self.registers * 32).next_multiple_of(256) * warps;
        let shared = if target.sm >= 90 { 228 << 10 } else { 164 << 10 };
        [32, 64 / warps, (64 << 10) / registers.max(1), shared / (shared_bytes + 1024).next_multiple_of(128)]
            .into_iter()
            .min()
            .unwrap_or(0)
    }
}

/// The assembler, if there is one on this machine.
pub fn find() -> Option<PathBuf> {
    if let Some(p) = std::env::var_os("KILN_PTXAS") {
        return Some(PathBuf::from(p));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|d| d.join("ptxas")).find(|p| p.is_file())
}

/// Assembles the PTX of the kernel that stands `at`, to `cubin` if given.
///
/// # Errors
/// The assembler's messages.
pub fn assemble(ptxas: &Path, text: &str, target: Target, cubin: Option<&Path>, at: Loc) -> Result<Report, String> {
    let unique = format!("kiln-{}-{:?}.ptx", std::process::id(), std::thread::current().id());
    let source = std::env::temp_dir().join(unique.replace(['(', ')'], ""));
    std::fs::write(&source, text).map_err(|e| e.to_string())?;
    let output = cubin.map_or_else(|| source.with_extension("cubin"), Path::to_path_buf);
    let run =
        Command::new(ptxas).args(["-v", "-lineinfo", "-arch", target.name(), "-o"]).arg(&output).arg(&source).output();
    let _ = std::fs::remove_file(&source);
    if cubin.is_none() {
        let _ = std::fs::remove_file(&output);
    }
    let run = run.map_err(|e| format!("{}: {e}", ptxas.display()))?;
    let log = String::from_utf8_lossy(&run.stderr).into_owned() + &String::from_utf8_lossy(&run.stdout);
    if !run.status.success() {
        return Err(log);
    }
    Ok(parse(&log, text, at))
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

/// The place in the author's source of a line of PTX, counted from 1: that of the last `.loc` before it.
fn place(ptx: &str, line: usize) -> Option<String> {
    let told = |l: &str| {
        let mut words = l.trim_start().strip_prefix(".loc")?.split_whitespace();
        let [file, line, column] = [words.next()?, words.next()?, words.next()?];
        // Line 0 is of what belongs to several.
        (line != "0").then(|| (file.to_owned(), format!("{line}:{column}")))
    };
    let before: Vec<&str> = ptx.lines().take(line).collect();
    let (file, within) = before.iter().rev().find_map(|l| told(l))?;
    let name =
        |l: &str| Some(l.trim_start().strip_prefix(".file")?.trim_start().strip_prefix(&file)?.trim().to_owned());
    Some(format!("{}:{within}", ptx.lines().find_map(name)?.trim_matches('"')))
}

/// Reads the log of `ptxas -v` for the kernel that stands `at`. What it says of a line of this `ptx` is a finding at the
/// author's line, of which that was made.
pub fn parse(log: &str, ptx: &str, at: Loc) -> Report {
    const AROUND: &str = " in around line ";
    let mut report = Report::default();
    let mut find = |lint, message: String| {
        let mut finding = Finding::new(lint, at, message);
        if let Some((before, after)) = finding.message.split_once(AROUND)
            && let Some((number, after)) = after.split_once(' ')
            && let Some(place) = number.parse().ok().and_then(|line| place(ptx, line))
        {
            finding = Finding { place, message: format!("{before} {after}"), ..finding };
        }
        report.findings.push(finding);
    };
    for line in log.lines() {
        let spilled = [" bytes spill stores", " bytes spill loads"].map(|what| number_before(line, what).unwrap_or(0));
        if spilled != [0, 0] {
            find(Lint::Spill, format!("{} bytes are stored to local memory, {} loaded again", spilled[0], spilled[1]));
        }
        if line.contains("Used ") && line.contains(" registers") {
            report.registers = number_before(line, " registers").unwrap_or(0);
        }
        if line.contains("warning") || line.contains("(C7") {
            let lint = match line {
                _ if line.contains("wgmma") && line.contains("serialized") => Lint::WgmmaSerialized,
                _ if line.contains("setmaxnreg") => Lint::SetmaxnregIgnored,
                _ => Lint::Assembler,
            };
            find(lint, line.split_once(" : ").map_or(line, |(_, message)| message).trim().to_owned());
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
            ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored to maintain minimum registers\n\
            ptxas warning : Value of threads per SM for entry k is out of range\n\
            ptxas info    : Used 168 registers, used 1 barriers\n";
        let report = parse(log, "", Loc { file: "k.rs", line: 2, column: 1 });
        assert_eq!(report.registers, 168);
        let found: Vec<String> = report.findings.iter().map(Finding::to_string).collect();
        assert_eq!(
            found,
            [
                "k.rs:2:1: spill: 12 bytes are stored to local memory, 16 loaded again",
                "k.rs:2:1: wgmma_serialized: (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized",
                "k.rs:2:1: setmaxnreg_ignored: (C7508) Potential Performance Loss: 'setmaxnreg' ignored to maintain minimum \
             registers",
                "k.rs:2:1: assembler: Value of threads per SM for entry k is out of range",
            ]
        );
        assert_eq!(
            parse("    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n", "", Loc::default()).findings,
            []
        );
    }

    #[test]
    fn lines_of_ptx_are_those_of_the_source() {
        let ptx = ".loc\t1 7 9\nadd;\n.loc\t2 30 5\nwgmma;\n.loc\t2 0 5\nmov;\n.file\t1 \"src/k.rs\"\n.file\t2 \"src/d.rs\"\n";
        let found = |line: usize| {
            let log = format!("ptxas info : (C7517) warpgroup.wait is injected in around line {line} by compiler\n");
            parse(&log, ptx, Loc { file: "k.rs", line: 2, column: 1 }).findings[0].to_string()
        };
        assert_eq!(found(2), "src/k.rs:7:9: assembler: (C7517) warpgroup.wait is injected by compiler");
        assert_eq!(found(4), "src/d.rs:30:5: assembler: (C7517) warpgroup.wait is injected by compiler");
        // What belongs to several lines stands behind the last one that is known.
        assert_eq!(found(6), found(4));
    }

    #[test]
    fn programs_share_registers_shared_memory_and_threads() {
        let programs = |registers, threads, shared| {
            Report { registers, findings: vec![] }.programs_per_sm(Target { sm: 90 }, threads, shared)
        };
        assert_eq!(programs(32, 1024, 0), 2, "threads");
        assert_eq!(programs(255, 128, 0), 2, "registers");
        assert_eq!(programs(33, 512, 0), 3, "registers, rounded up to 40");
        assert_eq!(programs(32, 128, 112 << 10), 2, "shared memory");
        assert_eq!(programs(32, 128, 113 << 10), 2, "shared memory, all of it");
        assert_eq!(programs(32, 128, 114 << 10), 1, "shared memory, with what the system takes");
        assert_eq!(programs(16, 32, 0), 32, "programs");
    }

    #[test]
    fn instructions_are_counted_by_name() {
        let text = "k:\n.text.k:\n        /*0000*/   LDC R1, c[0x0][0x28] ;\n        /*0010*/   @!P0 LDS.128 R4, [R2] ;\n\
            /*0020*/   @P1 LDS R4, [R2] ;\n        /*0030*/   EXIT;\n.L_x_0:\n    /*0000*/  \t.byte\t0x04, 0x2f\n";
        let counts: Vec<(String, u32)> = count(text).into_iter().collect();
        assert_eq!(counts, [("EXIT".into(), 1), ("LDC".into(), 1), ("LDS".into(), 2)]);
    }
}
