//! LLVM text to PTX.

use super::Target;
use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::memory_buffer::MemoryBuffer;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{CodeModel, FileType, InitializationConfig, RelocMode, Target as Llvm, TargetTriple};
use std::sync::Once;

/// Parses, verifies, optimises and emits; an error is LLVM's message.
pub fn ptx(text: &str, target: Target) -> Result<String, String> {
    static START: Once = Once::new();
    START.call_once(|| Llvm::initialize_nvptx(&InitializationConfig::default()));
    let context = Context::create();
    // LLVM wants the text to end with a zero byte that is not counted.
    let buffer = MemoryBuffer::create_from_memory_range_copy(text.as_bytes(), "kernel");
    let module = context.create_module_from_ir(buffer).map_err(|e| e.to_string())?;
    module.verify().map_err(|e| e.to_string())?;
    let triple = TargetTriple::create("nvptx64-nvidia-cuda");
    let machine = Llvm::from_triple(&triple)
        .map_err(|e| e.to_string())?
        .create_target_machine(
            &triple,
            target.name(),
            // The least with `st.async`, and with `movmatrix`.
            if target.sm >= 90 { "+ptx81" } else { "+ptx78" },
            OptimizationLevel::Aggressive,
            RelocMode::Default,
            CodeModel::Default,
        )
        .ok_or("LLVM has no NVPTX target machine")?;
    let options = PassBuilderOptions::create();
    options.set_loop_unrolling(false);
    options.set_loop_vectorization(false);
    options.set_loop_slp_vectorization(false);
    module.run_passes("default<O2>", &machine, options).map_err(|e| e.to_string())?;
    let out = machine.write_to_memory_buffer(&module, FileType::Assembly).map_err(|e| e.to_string())?;
    Ok(String::from_utf8_lossy(out.as_slice()).trim_end_matches('\0').to_owned())
}
