//! From tile IR to a function on a GPU: from the program's pack, or else by compiling, if the program has LLVM.

mod image;
#[cfg(feature = "llvm")]
mod llvm;

use crate::device::cuda::{Context, Function, Image};
use crate::key::Key;
use crate::knobs::{Stage, knobs};
use crate::pack;
use crate::report::{self, KernelReport};
use crate::{Error, Result};
use kiln_codegen::ir::Kernel;
use kiln_codegen::nvptx::Target;
use std::time::Duration;

/// Compiles a kernel for a GPU and loads it there: `kernel` is what became of `staged` with its facts, in so much time.
pub(crate) fn compile(
    staged: &Kernel,
    kernel: &Kernel,
    passes: Duration,
    context: &'static Context,
) -> Result<Function> {
    let (major, minor) = context.capability;
    if major < 8 {
        let reason =
            format!("kernels need compute capability 8.0 or later, {} has {major}.{minor}", context.describe());
        return Err(Error::Unavailable { device: context.device(), reason });
    }
    // Code for sm_90a runs on 9.0 only; what came after runs what is for 8.0.
    let target = Target { sm: if (major, minor) == (9, 0) { 90 } else { 80 } };
    let text = kernel.to_string();
    let variant = Key::new(&[text.as_bytes(), target.name().as_bytes()]).short();
    knobs().dump(Stage::TileOpt, &kernel.name, &variant, || text.clone());

    let source = source(staged, target);
    let refused = |message: String| Error::Compile { device: context.device(), message };
    let found = packed(&source, kernel, context);
    #[cfg(feature = "llvm")]
    let found = found.map_or_else(|| llvm::compiled(kernel, &text, context, target, &variant), Ok);
    #[cfg(not(feature = "llvm"))]
    let found = found.ok_or_else(|| pack::missing(&kernel.name));
    let (function, image) = found.map_err(refused)?;
    let function = reported(kernel, function, &image, passes, context, target, &variant)?;
    pack::record(&source, &kernel.facts, || image.encode());
    Ok(function)
}

/// Compiles kernels as [`record`](crate::record) gives them, staged and with facts, and adds them to a pack, for GPUs of
/// compute capability 9.0 if `sm` is 90, for all others if it is 80. No GPU is needed.
///
/// # Errors
/// If a kernel cannot be compiled, or denies what compiling it found; if the file cannot be written.
#[cfg(feature = "llvm")]
pub fn add_to_pack(path: &std::path::Path, kernels: &[Kernel], sm: u32) -> Result<()> {
    use rayon::prelude::*;
    let target = Target { sm };
    kernels.par_iter().try_for_each(|staged| {
        let refused = |message: String| Error::Launch { kernel: staged.name.clone(), message };
        let mut kernel = staged.clone();
        kiln_codegen::passes::optimize(&mut kernel);
        let image = llvm::image(&kernel, target, "").map_err(refused)?;
        target.check(&kernel, &image.findings).map_err(|denied| refused(denied.to_string()))?;
        pack::add(path, &source(staged, target), &kernel.facts, &image.encode())
            .map_err(|e| refused(format!("cannot be added to {}: {e}", path.display())))
    })
}

/// What a kernel's variants are found by in a pack.
fn source(staged: &Kernel, target: Target) -> Key {
    let text = Kernel { facts: vec![], ..staged.clone() }.to_string();
    Key::new(&[text.as_bytes(), target.name().as_bytes()])
}

/// The kernel from the pack. Where it could be compiled, a variant that relies on less than is known is no match.
fn packed(source: &Key, kernel: &Kernel, context: &'static Context) -> Option<(Function, Image)> {
    if wants_text(kernel) {
        return None;
    }
    let (bytes, exact) = pack::pack().find(source, &kernel.facts)?;
    let image = Image::decode(bytes).filter(|_| exact || cfg!(not(feature = "llvm")))?;
    Some((Function::load(context, &image, kernel.loc).ok()?, image))
}

/// Whether a dump wants the text of stages that neither pack nor cache hold.
fn wants_text(kernel: &Kernel) -> bool {
    cfg!(feature = "llvm") && [Stage::Llvm, Stage::Ptx].iter().any(|&stage| knobs().dumps(stage, &kernel.name))
}

/// Reports on a loaded kernel, and refuses it if something was found that its author denies.
fn reported(
    kernel: &Kernel,
    function: Function,
    image: &Image,
    passes: Duration,
    context: &Context,
    target: Target,
    variant: &str,
) -> Result<Function> {
    let report = KernelReport {
        kernel: kernel.name.clone(),
        device: context.device(),
        threads: function.threads,
        registers: function.registers,
        local_bytes: function.local_bytes,
        shared_bytes: function.shared_bytes,
        programs_per_sm: function.programs_per_sm,
        tensor_cores: image.tensor_cores,
        compile_time: image.time.map(|time| passes + time),
        findings: function.findings.clone(),
    };
    knobs().dump(Stage::Report, &kernel.name, variant, || report.to_string());
    report::add(report);
    match target.check(kernel, &function.findings) {
        Err(denied) if knobs().deny && !report::is_tolerant() => {
            let message = format!("{denied}\n  KILN_DENY=off runs it as it is");
            Err(Error::Compile { device: context.device(), message })
        }
        _ => Ok(function),
    }
}

#[cfg(all(test, feature = "llvm"))]
mod tests {
    use super::*;

    const COPY: &str = "kernel copy(%x: view<f32,1> [stride0 = 1], %out: write view<f32,1> [stride0 = 1]) warps 2 {
        %0: i32 = const 0
        %1: f32<64> = load %x[%0]
        store %out[%0], %1
        yield
    }";

    #[test]
    fn kernels_compiled_into_a_pack_are_found_there() {
        let path = std::env::temp_dir().join(format!("kiln-add-to-pack-test-{}", std::process::id()));
        let kernel: Kernel = COPY.parse().unwrap();
        add_to_pack(&path, std::slice::from_ref(&kernel), 90).unwrap();
        let found = |staged: &Kernel, sm| {
            let pack = pack::Pack::read(&path);
            let found = pack.find(&source(staged, Target { sm }), &kernel.facts);
            found.map(|(bytes, exact)| (Image::decode(bytes).expect("whole"), exact))
        };
        let (image, exact) = found(&Kernel { facts: vec![], ..kernel.clone() }, 90).expect("it was added");
        assert!(exact && image.entry == "kiln_copy" && image.threads == 64);
        assert!(found(&kernel, 80).is_none(), "of another target");
        assert!(found(&Kernel { name: "other".into(), ..kernel.clone() }, 90).is_none());
        std::fs::remove_file(&path).unwrap();

        let strided = COPY.replace(" [stride0 = 1]", "").replace("warps 2", "deny [uncoalesced]");
        let e = add_to_pack(&path, &[strided.parse().unwrap()], 90).unwrap_err().to_string();
        assert!(e.contains("kernel `copy`") && e.contains("uncoalesced"), "{e}");
        assert!(!path.exists());
    }
}
