//! Runs the file tests: kernels as text, and what becomes of them, in one file.
//!
//! A file starts with `test: NAME` and holds cases separated by lines `====`. A case is a kernel (or nearly one), a
//! line `--->`, and the expected output: of `print`, the kernel as it is printed; of `verify`, the verifier's or the
//! parser's error; of a pass, the kernel after it. `KILN_BLESS=1` writes the outputs into the files.

use kiln_codegen::ir::{self, Kernel};
use kiln_codegen::passes;
use std::fs;
use std::path::{Path, PathBuf};

/// The output of one case.
fn run(test: &str, input: &str) -> Result<String, String> {
    let kernel: Result<Kernel, _> = input.parse();
    if test == "verify" {
        return Ok(match kernel.map(|k| ir::verify(&k)) {
            Err(e) => format!("{e}\n"),
            Ok(Err(e)) => format!("{e}\n"),
            Ok(Ok(())) => "verified\n".to_string(),
        });
    }
    let kernel = kernel.map_err(|e| e.to_string())?;
    ir::verify(&kernel).map_err(|e| e.to_string())?;
    if test == "print" {
        let text = format!("{kernel:#}");
        let again: Kernel = text.parse().map_err(|e| format!("the printed text does not parse: {e}\n{text}"))?;
        let second = format!("{again:#}");
        return if second == text { Ok(text) } else { Err(format!("printed once:\n{text}\nand again:\n{second}")) };
    }
    let mut kernel = kernel;
    match passes::PASSES.iter().find(|(name, _)| *name == test) {
        Some((_, pass)) => pass(&mut kernel),
        None if test == "optimize" => passes::optimize(&mut kernel),
        None => return Err(format!("no such test: {test}")),
    }
    ir::verify(&kernel).map_err(|e| format!("the pass broke the kernel: {e}\n{kernel}"))?;
    Ok(kernel.to_string())
}

fn check(path: &Path, bless: bool) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let (header, body) = text.split_once('\n').unwrap_or((&text, ""));
    let test = header.strip_prefix("test: ").expect("a file test starts with `test: NAME`").trim();
    let (mut failures, mut blessed) = (vec![], vec![]);
    for (i, case) in body.split("\n====\n").enumerate() {
        let (input, expected) = case.split_once("\n--->\n").unwrap_or((case.trim_end(), ""));
        match run(test, input) {
            Err(e) => failures.push(format!("{}, case {}: {e}", path.display(), i + 1)),
            Ok(output) => {
                if output.trim() != expected.trim() && !bless {
                    let name = path.display();
                    failures.push(format!(
                        "{name}, case {}\n-- expected\n{}\n-- found\n{output}",
                        i + 1,
                        expected.trim()
                    ));
                }
                blessed.push(format!("{}\n--->\n{}", input.trim_end(), output.trim_end()));
            }
        }
    }
    if bless && failures.is_empty() {
        fs::write(path, format!("{header}\n{}\n", blessed.join("\n====\n"))).unwrap();
    }
    failures
}

#[test]
fn files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/filetests");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let bless = std::env::var_os("KILN_BLESS").is_some_and(|v| v == "1");
    let failures: Vec<String> = paths.iter().flat_map(|p| check(p, bless)).collect();
    assert!(!paths.is_empty(), "no file tests were found");
    assert!(failures.is_empty(), "{}\n\nKILN_BLESS=1 accepts what was found.", failures.join("\n\n"));
}
