//! From optimised tile IR to a function on a GPU, by way of the disk cache.
//!
//! The key of an entry is everything that determines it: the kernel's text, which has its facts and options, the
//! target, the assembler, and this compiler (see `cache`). What is kept is the image to load, so a hit needs neither
//! LLVM nor the assembler. An image that does not load is compiled afresh before it counts as a failure.

use crate::cache::{self, Key};
use crate::device::cuda::{Context, Function, Image, assemble};
use crate::knobs::{Assembler, Stage, knobs};
use crate::report::{self, KernelReport};
use crate::{Error, Result};
use kiln_codegen::ir::{Finding, Kernel, Lint};
use kiln_codegen::nvptx::{self, Target, TensorMap};

/// Compiles an optimised kernel for a GPU and loads it there.
pub(crate) fn compile(kernel: &Kernel, context: &'static Context) -> Result<Function> {
    let device = context.device();
    let refused = |message: String| Error::Compile { device, message };
    let (major, minor) = context.capability;
    if major < 8 {
        let reason =
            format!("kernels need compute capability 8.0 or later, {} has {major}.{minor}", context.describe());
        return Err(Error::Unavailable { device, reason });
    }
    // Code for sm_90a runs on 9.0 only; what came after runs what is for 8.0.
    let target = Target { sm: if (major, minor) == (9, 0) { 90 } else { 80 } };
    let knobs = knobs();
    let text = kernel.to_string();
    let options = format!("{:?} {:?}", kernel.options, kernel.facts);
    let assembler = describe(&knobs.assembler);
    let parts = [&text, &options, target.name(), &assembler].map(|p: &str| p.as_bytes());
    let key = Key::new(&parts);
    let variant = key.short();
    knobs.dump(Stage::TileOpt, &kernel.name, &variant, || text.clone());

    // A dump wants the text of every stage, which the cache does not hold.
    let wants_text = knobs.dumps(Stage::Llvm, &kernel.name) || knobs.dumps(Stage::Ptx, &kernel.name);
    let kept = if wants_text { None } else { cache::get(&key).and_then(|bytes| Image::decode(&bytes)) };
    if let Some(image) = kept
        && let Ok(function) = Function::load(context, &image, kernel.loc)
    {
        return reported(kernel, function, context, target, &variant);
    }

    if knobs.dumps(Stage::Llvm, &kernel.name) {
        let lowered = nvptx::llvm_text(kernel, target).map_err(|e| refused(e.to_string()))?;
        knobs.dump(Stage::Llvm, &kernel.name, &variant, || lowered.text);
    }
    let ptx = nvptx::compile(kernel, target).map_err(|e| refused(e.to_string()))?;
    knobs.dump(Stage::Ptx, &kernel.name, &variant, || ptx.text.clone());
    let mut image = Image {
        code: ptx.text.into_bytes(),
        entry: ptx.entry,
        threads: ptx.threads,
        shared_bytes: ptx.shared_bytes,
        maps: ptx.maps,
        findings: ptx.findings,
    };
    assemble(&mut image, &knobs.assembler, target, kernel.loc);
    let function = Function::load(context, &image, kernel.loc)
        .map_err(|message| refused(format!("kernel `{}`: {message}", kernel.name)))?;
    cache::put(&key, &image.encode());
    reported(kernel, function, context, target, &variant)
}

/// Reports on a loaded kernel, and refuses it if something was found that its author denies.
fn reported(kernel: &Kernel, function: Function, context: &Context, target: Target, variant: &str) -> Result<Function> {
    let report = KernelReport {
        kernel: kernel.name.clone(),
        device: context.device(),
        threads: function.threads,
        registers: function.registers,
        local_bytes: function.local_bytes,
        shared_bytes: function.shared_bytes,
        programs_per_sm: function.programs_per_sm,
        findings: function.findings.clone(),
    };
    knobs().dump(Stage::Report, &kernel.name, variant, || report.to_string());
    report::add(report);
    match target.check(kernel, &function.findings) {
        Err(denied) if knobs().deny => {
            let message = format!("{denied}\n  KILN_DENY=off runs it as it is");
            Err(Error::Compile { device: context.device(), message })
        }
        _ => Ok(function),
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

impl Image {
    /// As bytes: each field with its length before it.
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![];
        let mut field = |bytes: &[u8]| {
            out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            out.extend_from_slice(bytes);
        };
        field(&self.threads.to_le_bytes());
        field(&self.shared_bytes.to_le_bytes());
        field(self.entry.as_bytes());
        field(&self.code);
        field(&self.maps.iter().flat_map(encode_map).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
        for Finding { lint, place, message } in &self.findings {
            [lint.name(), place, message].iter().for_each(|text| field(text.as_bytes()));
        }
        out
    }

    /// The inverse; `None` if the bytes are something else.
    fn decode(mut bytes: &[u8]) -> Option<Image> {
        let mut fields = vec![];
        while !bytes.is_empty() {
            let (len, rest) = bytes.split_first_chunk::<8>()?;
            // Checked against what remains before anything is made of it.
            let (field, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
            fields.push(field);
            bytes = rest;
        }
        let [threads, shared_bytes, entry, code, maps, findings @ ..] = &fields[..] else { return None };
        let (findings, []) = findings.as_chunks::<3>() else { return None };
        let text = |b: &[u8]| String::from_utf8(b.to_vec()).ok();
        let finding = |[lint, place, message]: &[&[u8]; 3]| {
            Some(Finding { lint: Lint::from_name(&text(lint)?)?, place: text(place)?, message: text(message)? })
        };
        Some(Image {
            threads: u32::from_le_bytes((*threads).try_into().ok()?),
            shared_bytes: u32::from_le_bytes((*shared_bytes).try_into().ok()?),
            entry: text(entry)?,
            code: code.to_vec(),
            maps: decode_maps(maps)?,
            findings: findings.iter().map(finding).collect::<Option<_>>()?,
        })
    }
}

/// Slot, element size, swizzle, rank, extents.
fn encode_map(map: &TensorMap) -> Vec<u32> {
    let head = [map.slot, map.size, map.swizzle, map.extents.len()].map(|n| n as u32);
    head.iter().chain(&map.extents).copied().collect()
}

fn decode_maps(bytes: &[u8]) -> Option<Vec<TensorMap>> {
    let (words, rest) = bytes.as_chunks::<4>();
    let words: Vec<u32> = words.iter().map(|w| u32::from_le_bytes(*w)).collect();
    let (mut words, mut maps) = (&words[..], vec![]);
    while let Some((&[slot, size, swizzle, rank], rest)) = words.split_first_chunk::<4>() {
        let (extents, rest) = rest.split_at_checked(rank as usize)?;
        let [slot, size, swizzle] = [slot, size, swizzle].map(|n| n as usize);
        maps.push(TensorMap { slot, size, extents: extents.to_vec(), swizzle });
        words = rest;
    }
    (words.is_empty() && rest.is_empty()).then_some(maps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_round_trip_and_damage_is_noticed() {
        let image = Image {
            code: vec![1, 2, 0, 255],
            entry: "kiln_add".into(),
            threads: 128,
            shared_bytes: 4096,
            maps: vec![TensorMap { slot: 3, size: 2, extents: vec![1, 128, 64], swizzle: 128 }],
            findings: vec![
                Finding { lint: Lint::Fallback, place: "a.rs:1:2".into(), message: "slow".into() },
                Finding { lint: Lint::Spill, place: String::new(), message: String::new() },
            ],
        };
        let bytes = image.encode();
        assert_eq!(Image::decode(&bytes), Some(image));
        for cut in 1..40 {
            let decoded = Image::decode(&bytes[..cut]);
            assert!(decoded.is_none(), "{cut}");
        }
        assert_eq!(Image::decode(&[0xff; 40]), None);
    }
}
