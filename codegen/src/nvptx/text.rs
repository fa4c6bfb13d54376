//! A writer of LLVM assembly.
//!
//! The lowering produces LLVM's text form, not its in-memory form: text needs no lifetimes, can be tested and read
//! without LLVM, and LLVM's own parser and verifier check every type before any code is generated. This module knows
//! names, blocks, declarations and constants; it knows nothing of tiles.
//!
//! Invariant: every operand is a [`V`], the text of a value (`%v12`, `7`, `0x3FF0000000000000`) without its type.

use super::places::Places;
use crate::ir::{Bits, DType, Loc};
use std::collections::{BTreeSet, HashMap};
use std::fmt::{Display, Write};
use std::rc::Rc;

/// The text of an LLVM value, without its type.
pub type V = Rc<str>;

/// The LLVM type that holds one element in a register. Floats narrower than f32 are held as integers of their bits.
pub fn llvm_type(dtype: DType) -> &'static str {
    match dtype {
        DType::Bool => "i1",
        DType::I8 | DType::U8 | DType::F8E4M3 | DType::F8E5M2 => "i8",
        DType::I16 | DType::U16 | DType::F16 | DType::BF16 => "i16",
        DType::I32 | DType::U32 => "i32",
        DType::I64 | DType::U64 => "i64",
        DType::F32 => "float",
    }
}

/// The LLVM integer type of an element in memory.
pub fn memory_type(dtype: DType) -> &'static str {
    match dtype.size() {
        1 => "i8",
        2 => "i16",
        4 => "i32",
        _ => "i64",
    }
}

/// A constant operand.
pub fn int(value: impl Display) -> V {
    value.to_string().into()
}

/// A `float` constant: LLVM spells it as the bits of the equal double.
pub fn float(value: f32) -> V {
    format!("0x{:016X}", (value as f64).to_bits()).into()
}

/// The register form of a constant element.
pub fn constant(dtype: DType, bits: Bits) -> V {
    match dtype {
        DType::F32 => {
            let x = f32::from_bits(bits.0 as u32);
            if x.is_nan() {
                // Widened by hand: a conversion may not keep a NaN's payload.
                let b = bits.0 as u32;
                let wide = ((b as u64 >> 31) << 63) | (0x7ff << 52) | ((b as u64 & 0x7f_ffff) << 29);
                format!("0x{wide:016X}").into()
            } else {
                float(x)
            }
        }
        DType::Bool => int((bits.0 != 0) as u8),
        DType::F8E4M3 | DType::F8E5M2 => int(bits.0 as u8),
        DType::F16 | DType::BF16 => int(bits.0 as u16),
        d => int(bits.to_i64(d)),
    }
}

/// Function text under construction.
#[derive(Default)]
pub struct Writer {
    body: String,
    /// What depends on the thread alone; runs before everything else.
    prologue: String,
    declarations: BTreeSet<String>,
    globals: String,
    next: u32,
    /// 16-bit values that are a half (0: the low one) of a 32-bit word.
    halves: HashMap<V, (V, usize)>,
    /// Words that were put together from such values.
    joined: HashMap<V, [V; 2]>,
    /// The label of the block being written.
    pub block: String,
    /// Where in the source instructions come from.
    places: Places,
}

impl Writer {
    /// A fresh number for names.
    pub fn fresh(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    /// The place in the source from which the next instructions come.
    pub fn at(&mut self, place: Loc) {
        self.places.move_to(place);
    }

    /// Writes an instruction without a result.
    pub fn line(&mut self, text: impl Display) {
        writeln!(self.body, "  {text}{}", self.places.here()).expect("writing to a string");
    }

    /// Writes an instruction and names its result.
    pub fn op(&mut self, text: impl Display) -> V {
        let name: V = format!("%v{}", self.fresh()).into();
        writeln!(self.body, "  {name} = {text}{}", self.places.here()).expect("writing to a string");
        name
    }

    /// Writes an instruction whose operands are hoisted, too, or parameters; its result is visible everywhere.
    pub fn hoist(&mut self, text: impl Display) -> V {
        let name: V = format!("%v{}", self.fresh()).into();
        writeln!(self.prologue, "  {name} = {text}").expect("writing to a string");
        name
    }

    /// Declares a function for hand-written calls.
    pub fn declare(&mut self, text: impl Display) {
        self.declarations.insert(format!("declare {text}"));
    }

    /// A fresh label, not started yet.
    pub fn label(&mut self, what: &str) -> String {
        format!("{what}{}", self.fresh())
    }

    /// Starts the block `label`; the block before must have been ended.
    pub fn start(&mut self, label: &str) {
        writeln!(self.body, "{label}:").expect("writing to a string");
        self.block = label.to_owned();
    }

    pub fn jump(&mut self, label: &str) {
        self.line(format_args!("br label %{label}"));
    }

    pub fn branch(&mut self, condition: &V, yes: &str, no: &str) {
        self.line(format_args!("br i1 {condition}, label %{yes}, label %{no}"));
    }

    /// `value` under a fixed name: what a phi written earlier refers to.
    pub fn alias(&mut self, name: &str, ty: &str, value: &V) {
        self.line(format_args!("{name} = bitcast {ty} {value} to {ty}"));
    }

    /// Calls an LLVM function or intrinsic, declaring it. `args`: types and values.
    pub fn call(&mut self, ret: &str, name: &str, args: &[(&str, &V)]) -> V {
        let types: Vec<&str> = args.iter().map(|a| a.0).collect();
        self.declarations.insert(format!("declare {ret} @{name}({})", types.join(", ")));
        let args: Vec<String> = args.iter().map(|(t, v)| format!("{t} {v}")).collect();
        let text = format!("call {ret} @{name}({})", args.join(", "));
        if ret == "void" {
            self.line(text);
            int(0)
        } else {
            self.op(text)
        }
    }

    /// PTX that only computes: may be moved, merged and dropped.
    pub fn asm(&mut self, ret: &str, ptx: &str, constraints: &str, args: &[(&str, &V)]) -> V {
        let args: Vec<String> = args.iter().map(|(t, v)| format!("{t} {v}")).collect();
        self.op(format_args!("call {ret} asm \"{ptx}\", \"{constraints}\"({})", args.join(", ")))
    }

    /// PTX with effects (memory, synchronisation): convergent, kept in order.
    pub fn asm_effect(&mut self, ret: &str, ptx: &str, constraints: &str, args: &[(&str, &V)]) -> V {
        let args: Vec<String> = args.iter().map(|(t, v)| format!("{t} {v}")).collect();
        let comma = if constraints.is_empty() { "" } else { "," };
        let text =
            format!("call {ret} asm sideeffect \"{ptx}\", \"{constraints}{comma}~{{memory}}\"({}) #1", args.join(", "));
        if ret == "void" {
            self.line(text);
            int(0)
        } else {
            self.op(text)
        }
    }

    /// The `count` results of an instruction that yields a struct of `ty` (or the value itself for one result).
    pub fn fields(&mut self, ty: &str, count: usize, value: &V) -> Vec<V> {
        self.parts(&vec![ty; count], value)
    }

    /// The results of an instruction that yields a struct of these types (or the value itself for one result).
    pub fn parts(&mut self, types: &[&str], value: &V) -> Vec<V> {
        if types.len() == 1 {
            return vec![value.clone()];
        }
        let tuple = tuple_type(types);
        (0..types.len()).map(|i| self.op(format_args!("extractvalue {tuple} {value}, {i}"))).collect()
    }

    /// Adds a module-level definition.
    pub fn global(&mut self, text: impl Display) {
        writeln!(self.globals, "{text}").expect("writing to a string");
    }

    // -- short forms -------------------------------------------------------------------------------------------------

    /// `opcode ty a, b`, folded when both are small integer constants or one is neutral.
    pub fn bin(&mut self, opcode: &str, ty: &str, a: &V, b: &V) -> V {
        match (opcode, &**a, &**b) {
            ("add" | "or" | "xor", "0", _) => b.clone(),
            ("add" | "sub" | "or" | "xor" | "shl" | "lshr", _, "0") => a.clone(),
            ("mul", "1", _) => b.clone(),
            ("mul", _, "1") => a.clone(),
            ("mul", "0", _) | ("mul", _, "0") => int(0),
            _ => self.op(format_args!("{opcode} {ty} {a}, {b}")),
        }
    }

    pub fn icmp(&mut self, predicate: &str, ty: &str, a: &V, b: &V) -> V {
        self.op(format_args!("icmp {predicate} {ty} {a}, {b}"))
    }

    pub fn select(&mut self, condition: &V, ty: &str, yes: &V, no: &V) -> V {
        if yes == no {
            return yes.clone();
        }
        match &**condition {
            "1" | "true" => yes.clone(),
            "0" | "false" => no.clone(),
            _ => self.op(format_args!("select i1 {condition}, {ty} {yes}, {ty} {no}")),
        }
    }

    pub fn convert(&mut self, opcode: &str, from: &str, value: &V, to: &str) -> V {
        if from == to { value.clone() } else { self.op(format_args!("{opcode} {from} {value} to {to}")) }
    }

    /// The two i16 in an i32, the low one first.
    pub fn halves(&mut self, word: &V) -> [V; 2] {
        if let Some(halves) = self.joined.get(word) {
            return halves.clone();
        }
        let high = self.op(format_args!("lshr i32 {word}, 16"));
        let halves =
            [self.op(format_args!("trunc i32 {word} to i16")), self.op(format_args!("trunc i32 {high} to i16"))];
        for (i, half) in halves.iter().enumerate() {
            self.halves.insert(half.clone(), (word.clone(), i));
        }
        halves
    }

    /// `new` has the bits of `old`: if that is half of a word, so is this.
    pub fn same_bits(&mut self, new: &V, old: &V) {
        if let Some(origin) = self.halves.get(old).cloned() {
            self.halves.insert(new.clone(), origin);
        }
    }

    /// The i32 of two i16: where they come from words by one permutation of bytes, which LLVM would not find.
    pub fn join(&mut self, low: &V, high: &V) -> V {
        let origin = |v| self.halves.get(v).cloned();
        let word = match (origin(low), origin(high)) {
            (Some((a, 0)), Some((b, 1))) if a == b => return a,
            (Some((a, i)), Some((b, j))) => {
                let bytes = if i == 0 { 0x10 } else { 0x32 } | if j == 0 { 0x5400 } else { 0x7600 };
                self.call("i32", "llvm.nvvm.prmt", &[("i32", &a), ("i32", &b), ("i32", &int(bytes))])
            }
            _ => {
                let [low, high] = [low, high].map(|v| self.convert("zext", "i16", v, "i32"));
                let high = self.bin("shl", "i32", &high, &int(16));
                self.bin("or", "i32", &low, &high)
            }
        };
        self.joined.insert(word.clone(), [low.clone(), high.clone()]);
        word
    }

    /// Logical and of conditions, where `None` is "always".
    pub fn and(&mut self, a: Option<V>, b: Option<V>) -> Option<V> {
        match (a, b) {
            (Some(a), Some(b)) => Some(self.op(format_args!("and i1 {a}, {b}"))),
            (a, b) => a.or(b),
        }
    }

    /// The module: target, declarations and one kernel of this name with `slots` parameters of 64 bits, then `maps`
    /// tensor maps.
    pub fn finish(
        self,
        name: &str,
        [slots, maps, meetings]: [usize; 3],
        threads: usize,
        min_ctas: u8,
        shared_in_use: bool,
    ) -> String {
        let mut params: Vec<String> = (0..slots).map(|i| format!("i64 %p{i}")).collect();
        params.extend((0..maps).map(|i| format!("ptr byval([128 x i8]) align 64 %map{i}")));
        params.extend((0..meetings).map(|_| format!("i64 {}", super::grid::WORD)));
        let mut out = String::from(
            "target datalayout = \"e-i64:64-i128:128-v16:16-v32:32-n16:32:64\"\ntarget triple = \"nvptx64-nvidia-cuda\"\n",
        );
        if shared_in_use {
            out.push_str("@shared = external addrspace(3) global [0 x i8], align 1024\n");
        }
        out.push_str(&self.globals);
        for d in &self.declarations {
            let _ = writeln!(out, "{d}");
        }
        let _ = writeln!(
            out,
            "define void @{name}({}) #0{} {{\nentry:\n{}  br label %body\nbody:\n{}  ret void\n}}",
            params.join(", "),
            self.places.kernel(),
            self.prologue,
            self.body
        );
        out.push_str("attributes #0 = { nounwind convergent }\nattributes #1 = { nounwind convergent }\n");
        let mut notes = vec![("kernel", 1), ("reqntidx", threads)];
        if min_ctas > 0 {
            notes.push(("minctasm", min_ctas as usize));
        }
        let ids: Vec<String> = (0..notes.len() + usize::from(maps > 0)).map(|i| format!("!{i}")).collect();
        let _ = writeln!(out, "!nvvm.annotations = !{{{}}}", ids.join(", "));
        for (i, (key, value)) in notes.iter().enumerate() {
            let _ = writeln!(out, "!{i} = !{{ptr @{name}, !\"{key}\", i32 {value}}}");
        }
        if maps > 0 {
            // Read where the driver put them, not from a copy of the thread's own. Parameters count from 1.
            let (i, places) = (notes.len(), (slots + 1..=slots + maps).map(|n| format!("i32 {n}")));
            let places: Vec<String> = places.collect();
            let _ = writeln!(out, "!{i} = !{{ptr @{name}, !\"grid_constant\", !{}}}", i + 1);
            let _ = writeln!(out, "!{} = !{{{}}}", i + 1, places.join(", "));
        }
        self.places.notes(name, &mut out);
        out
    }
}

/// The type of `count` results of type `ty`.
pub fn struct_type(ty: &str, count: usize) -> String {
    tuple_type(&vec![ty; count])
}

pub fn tuple_type(types: &[&str]) -> String {
    if let [ty] = types { (*ty).to_owned() } else { format!("{{ {} }}", types.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_words_are_joined_by_one_permutation() {
        let mut w = Writer::default();
        let (a, b): (V, V) = ("%a".into(), "%b".into());
        let [a0, a1] = w.halves(&a);
        let [b0, b1] = w.halves(&b);
        assert_eq!(w.join(&a0, &a1), a, "nothing to do");
        let c: V = "%c".into();
        w.same_bits(&c, &a1);
        assert_eq!(w.join(&a0, &c), a, "still nothing");
        let mut joined = |low: &V, high: &V, bytes: u32| {
            let word = w.join(low, high);
            let line = format!("{word} = call i32 @llvm.nvvm.prmt(i32 %a, i32 %b, i32 {bytes})");
            assert!(w.body.contains(&line), "{}", w.body);
            assert_eq!(w.halves(&word), [low.clone(), high.clone()], "they are known");
        };
        joined(&a0, &b0, 0x5410);
        joined(&a0, &b1, 0x7610);
        joined(&a1, &b0, 0x5432);
        joined(&a1, &b1, 0x7632);
        let word = w.join(&int(7), &b1);
        assert!(w.body.contains(&format!("{word} = or i32")), "a constant is no half: {}", w.body);
    }
}
