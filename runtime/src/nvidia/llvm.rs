//! Through LLVM and an assembler, or from the cache of what they made.
//!
//! `ptxas`, if there is one, turns PTX into machine code; otherwise, or if it does not know the chip, the image is PTX,
//! which the driver compiles. The key of an entry of the cache is all that it was made from: the kernel's text, which has
//! its facts and options, the target, the assembler, and the compiler (see `key`). An image that does not load is compiled
//! afresh before it counts as a failure.

use super::wants_text;
use crate::cache;
use crate::device::cuda::{Context, Function, Image};
use crate::key::Key;
use crate::knobs::{Assembler, Stage, knobs};
use kiln_codegen::ir::{Finding, Kernel, Lint, Loc};
use kiln_codegen::nvptx::{self, Target, ptxas};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// The kernel from the cache, or from LLVM.
pub(super) fn compiled(
    kernel: &Kernel,
    text: &str,
    context: &'static Context,
    target: Target,
    variant: &str,
) -> Result<(Function, Image), String> {
    let knobs = knobs();
    let key = Key::new(&[text, target.name(), &describe(&knobs.assembler)].map(str::as_bytes));
    let kept = if wants_text(kernel) { None } else { cache::get(&key).and_then(|bytes| Image::decode(&bytes)) };
    if let Some(image) = kept
        && let Ok(function) = Function::load(context, &image, kernel.loc)
    {
        return Ok((function, image));
    }
    let image = image(kernel, target, variant)?;
    let function = Function::load(context, &image, kernel.loc)
        .map_err(|message| format!("kernel `{}`: {message}", kernel.name))?;
    cache::put(&key, &image.encode());
    Ok((function, image))
}

/// The image of an optimised kernel.
pub(super) fn image(kernel: &Kernel, target: Target, variant: &str) -> Result<Image, String> {
    let knobs = knobs();
    if knobs.dumps(Stage::Llvm, &kernel.name) {
        let lowered = nvptx::llvm_text(kernel, target).map_err(|e| e.to_string())?;
        knobs.dump(Stage::Llvm, &kernel.name, variant, || lowered.text);
    }
    let start = Instant::now();
    let ptx = nvptx::compile(kernel, target).map_err(|e| e.to_string())?;
    let time = Some(start.elapsed());
    knobs.dump(Stage::Ptx, &kernel.name, variant, || ptx.text.clone());
    let mut image = Image {
        tensor_cores: ptx.tensor_cores(),
        time,
        code: ptx.text.into_bytes(),
        entry: ptx.entry,
        threads: ptx.threads,
        shared_bytes: ptx.shared_bytes,
        meets: ptx.meets,
        settled: ptx.settled,
        maps: ptx.maps,
        findings: ptx.findings,
    };
    assemble(&mut image, &knobs.assembler, target, kernel.loc);
    Ok(image)
}

/// Assembles `image.code`, the code of the kernel that stands `at`, in place if an assembler is configured and knows the
/// chip; otherwise leaves it to the driver.
fn assemble(image: &mut Image, assembler: &Assembler, target: Target, at: Loc) {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let Assembler::Ptxas(ptxas) = assembler else { return };
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let cubin = std::env::temp_dir().join(format!("kiln-{}-{serial}.cubin", std::process::id()));
    let ptx = String::from_utf8_lossy(&image.code).into_owned();
    let assembled = ptxas::assemble(ptxas, &ptx, target, Some(&cubin), at)
        .and_then(|report| Ok((report, std::fs::read(&cubin).map_err(|e| e.to_string())?)));
    let _ = std::fs::remove_file(&cubin);
    match assembled {
        Ok((report, code)) => {
            image.code = code;
            image.findings.extend(report.findings);
        }
        Err(why) => {
            let message = format!("{} was not used: {}", ptxas.display(), why.trim());
            image.findings.push(Finding::new(Lint::Assembler, at, message));
        }
    }
}

/// An assembler, and which version of it: a program is told from its successor by size and age.
fn describe(assembler: &Assembler) -> String {
    match assembler {
        Assembler::Driver => "driver".into(),
        Assembler::Ptxas(path) => {
            let file = std::fs::metadata(path).ok();
            let modified = file.as_ref().and_then(|m| m.modified().ok());
            format!("{} {:?} {modified:?}", path.display(), file.map(|m| m.len()))
        }
    }
}
