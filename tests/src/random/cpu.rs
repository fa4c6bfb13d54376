//! Random kernels on the CPU back end.

use super::{Argument, Case, Runner};
use kiln_codegen::{cpu, passes};

/// The Cranelift back end, on the kernel as built or after the passes.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    pub optimise: bool,
}

impl Runner for Cpu {
    fn name(&self) -> &str {
        if self.optimise { "CPU, optimised" } else { "CPU" }
    }

    fn run(&mut self, case: &Case) -> Result<Vec<Vec<u8>>, String> {
        let mut kernel = case.kernel.clone();
        if self.optimise {
            passes::optimize(&mut kernel);
        }
        let compiled = cpu::compile(&kernel).map_err(|e| e.to_string())?;
        let mut buffers: Vec<Vec<u128>> = case.arguments.iter().map(aligned).collect();
        let addresses: Vec<u64> = buffers.iter_mut().map(|b| b.as_mut_ptr() as u64).collect();
        // SAFETY: the slots are those of the kernel's parameters, in order. Every view lies in its buffer, of which it
        // says the extents and strides (the interpreter, which runs first, has checked that), buffers begin at
        // multiples of 16 as the facts demand, none is shared, and all live until the launch has returned.
        unsafe { compiled.launch(&case.slots(&addresses), case.grid) }.map_err(|e| e.to_string())?;
        Ok(buffers.iter().zip(&case.arguments).map(|(b, a)| bytes(b, a)).collect())
    }
}

/// The contents of an argument's buffer, at a multiple of 16.
fn aligned(argument: &Argument) -> Vec<u128> {
    let Argument::View { bytes, .. } = argument else { return vec![] };
    let word = |chunk: &[u8]| {
        let mut word = [0; 16];
        word[..chunk.len()].copy_from_slice(chunk);
        u128::from_le_bytes(word)
    };
    bytes.chunks(16).map(word).collect()
}

fn bytes(buffer: &[u128], argument: &Argument) -> Vec<u8> {
    let Argument::View { bytes, .. } = argument else { return vec![] };
    let mut all: Vec<u8> = buffer.iter().flat_map(|w| w.to_le_bytes()).collect();
    all.truncate(bytes.len());
    all
}
