//! The text form of a kernel: `Display` prints it, [`super::parse`] reads it back.
//!
//! ```text
//! kernel scale(%x: view<f32,1> [address % 16, stride0 = 1], %out: write view<f32,1> block 64, %n: i32) warps 4 {
//!   %0: i32 = program_id 0
//!   %1: i32 = const 64
//!   %2: i32 = mul %0, %1
//!   %3: f32<64> = load %x[%2]
//!   %4: f32<64> = for %5: i32 = %0 to %n step %1 carrying (%6: f32<64> = %3) {
//!     %7: f32<64> = add %6, %6
//!     yield %7
//!   }
//!   store %out[%2], %4
//!   yield
//! }
//! ```
//!
//! A line is `results: types = operation attributes operands`. Parameters keep their names, other values are numbered in
//! the order of their definitions, so that equal kernels have equal texts. `{:#}` adds the source locations
//! (`at "file":line:column`). Printing never fails: what the verifier would refuse still has a text.

use super::*;
use std::collections::{HashMap, HashSet};
use std::fmt::Write;

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut printer =
            Printer { kernel: self, names: HashMap::new(), next: 0, locs: f.alternate(), out: String::new() };
        printer.kernel();
        f.write_str(&printer.out)
    }
}

struct Printer<'a> {
    kernel: &'a Kernel,
    names: HashMap<ValueId, String>,
    next: usize,
    locs: bool,
    out: String,
}

/// Whether `name` can stand in the text without quotes.
pub(super) fn is_word(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
}

pub(super) fn slot_name(kind: SlotKind) -> String {
    match kind {
        SlotKind::Scalar => "value".into(),
        SlotKind::Address => "address".into(),
        SlotKind::Extent(d) => format!("extent{d}"),
        SlotKind::Stride(d) => format!("stride{d}"),
    }
}

/// An element as the text form writes it: a number where that gives the bits back, else the bits in hexadecimal.
pub fn constant_text(dtype: DType, bits: Bits) -> String {
    match dtype {
        DType::Bool => return if bits.0 == 0 { "false" } else { "true" }.into(),
        DType::U64 => return bits.0.to_string(),
        d if d.is_int() => return bits.to_i64(d).to_string(),
        _ => {}
    }
    let value = bits.to_f64(dtype);
    if !value.is_nan() && Bits::from_f64(dtype, value) == bits {
        // The shortest decimal that is this f32: 0.1, not 0.10000000149011612.
        let short = format!("{:?}", value as f32);
        if short.parse().is_ok_and(|v: f64| Bits::from_f64(dtype, v) == bits) {
            return short;
        }
    }
    format!("{:#x}", bits.0)
}

impl Printer<'_> {
    fn kernel(&mut self) {
        let k = self.kernel;
        let mut taken = HashSet::new();
        let slots = k.slots();
        let mut params = vec![];
        for (i, p) in k.params.iter().enumerate() {
            let mut name = if is_word(&p.name) { p.name.clone() } else { format!("p{i}") };
            while !taken.insert(name.clone()) {
                name.push('_');
            }
            let mut text = format!("%{name}");
            if name != p.name {
                let _ = write!(text, " {:?}", p.name);
            }
            let write = if p.access == Access::Write { "write " } else { "" };
            let reuse = match p.reuse {
                Reuse::Unknown => "",
                Reuse::EvictFirst => "evict_first ",
                Reuse::Discard => "discard ",
            };
            let settled = if p.settled { "settled " } else { "" };
            let _ = write!(text, ": {write}{reuse}{settled}{}", k.ty(p.value));
            if let Some(block) = p.block {
                let _ = write!(text, " block {}", if block.rank() == 0 { "scalar".into() } else { block.to_string() });
            }
            let facts: Vec<String> = (slots.iter().enumerate().filter(|(_, s)| s.param as usize == i))
                .filter_map(|(index, s)| match k.fact(index) {
                    Fact::Unknown => None,
                    Fact::One => Some(format!("{} = 1", slot_name(s.kind))),
                    Fact::Multiple16 => Some(format!("{} % 16", slot_name(s.kind))),
                })
                .collect();
            if !facts.is_empty() {
                let _ = write!(text, " [{}]", facts.join(", "));
            }
            params.push(text);
            self.names.insert(p.value, name);
        }
        let name = if is_word(&k.name) { k.name.clone() } else { format!("{:?}", k.name) };
        let _ = write!(self.out, "kernel {name}(");
        let line = params.join(", ");
        if line.len() <= 100 {
            self.out.push_str(&line);
        } else {
            let _ = write!(self.out, "\n  {}\n", params.join(",\n  "));
        }
        self.out.push(')');
        if k.options.warps != 0 {
            let _ = write!(self.out, " warps {}", k.options.warps);
        }
        if k.options.min_programs_per_sm != 0 {
            let _ = write!(self.out, " min_programs_per_sm {}", k.options.min_programs_per_sm);
        }
        if k.options.cluster != 0 {
            let _ = write!(self.out, " cluster {}", k.options.cluster);
        }
        if !k.options.deny.is_empty() {
            let _ = write!(self.out, " deny [{}]", k.options.deny);
        }
        self.loc(k.loc);
        self.region(k.body, 0);
        self.out.push('\n');
    }

    fn loc(&mut self, loc: Loc) {
        if self.locs && !loc.file.is_empty() {
            let _ = write!(self.out, " at {:?}:{}:{}", loc.file, loc.line, loc.column);
        }
    }

    /// Names a value that is defined here.
    fn define(&mut self, v: ValueId) -> String {
        let name = self.names.entry(v).or_insert_with(|| {
            self.next += 1;
            (self.next - 1).to_string()
        });
        format!("%{name}: {}", self.kernel.ty(v))
    }

    /// A use. What is used before its definition (which the verifier refuses) shows its index in the arena.
    fn value(&self, v: ValueId) -> String {
        match self.names.get(&v) {
            Some(name) => format!("%{name}"),
            None => format!("%undefined.{}", v.0),
        }
    }

    fn values(&self, vs: &[ValueId]) -> String {
        vs.iter().map(|&v| self.value(v)).collect::<Vec<_>>().join(", ")
    }

    fn region(&mut self, region: RegionId, depth: usize) {
        self.out.push_str(" {\n");
        for &op in &self.kernel.region(region).ops {
            self.op(op, depth + 1);
        }
        let _ = write!(self.out, "{:1$}}}", "", 2 * depth);
    }

    fn args(&mut self, region: RegionId) -> Vec<String> {
        self.kernel.region(region).args.iter().map(|&a| self.define(a)).collect()
    }

    /// `%a: T = %init` for each argument and operand.
    fn carried(&mut self, args: &[ValueId], inits: &[ValueId]) -> String {
        let pairs: Vec<String> = (args.iter().enumerate())
            .map(|(i, &a)| {
                let init = inits.get(i).map_or("%missing".into(), |&v| self.value(v));
                format!("{} = {init}", self.define(a))
            })
            .collect();
        pairs.join(", ")
    }

    fn op(&mut self, id: OpId, depth: usize) {
        let op = self.kernel.op(id);
        let o = &op.operands[..];
        let _ = write!(self.out, "{:1$}", "", 2 * depth);
        let results: Vec<String> = op.results.iter().map(|&r| self.define(r)).collect();
        if !results.is_empty() {
            let _ = write!(self.out, "{} = ", results.join(", "));
        }
        self.out.push_str(op.kind.mnemonic());
        let text = match &op.kind {
            OpKind::Const(bits) => {
                let dtype = match op.results.first().map(|&r| self.kernel.ty(r)) {
                    Some(Type::Tile(dtype, _)) => dtype,
                    _ => DType::U64,
                };
                constant_text(dtype, *bits)
            }
            OpKind::Iota { axis } => format!("axis {axis}"),
            OpKind::ProgramId { axis } | OpKind::NumPrograms { axis } => axis.to_string(),
            OpKind::Transpose { perm } => format!("{:?} {}", &perm[..self.rank(o)], self.values(o)),
            OpKind::Slice { offsets } => format!("{:?} {}", &offsets[..self.rank(o)], self.values(o)),
            OpKind::Join { axis } => format!("axis {axis} {}", self.values(o)),
            OpKind::Reduce { axis, combine } => format!("{} axis {axis} {}", combine.name(), self.values(o)),
            OpKind::Scan { axis, combine, reverse } => {
                let reverse = if *reverse { " reverse" } else { "" };
                format!("{} axis {axis}{reverse} {}", combine.name(), self.values(o))
            }
            OpKind::ClusterReduce(combine) => format!("{} {}", combine.name(), self.values(o)),
            OpKind::Dot(Precision::F32) => self.values(o),
            OpKind::Dot(precision) => format!("{} {}", precision.name(), self.values(o)),
            OpKind::Dim { dim } | OpKind::ViewSelect { dim } | OpKind::ViewNarrow { dim } => {
                format!("{dim} {}", self.values(o))
            }
            OpKind::Load { .. } | OpKind::Gather { .. } => self.access(op),
            OpKind::Store | OpKind::StoreAdd | OpKind::Scatter { .. } => self.access(op),
            OpKind::Signal | OpKind::Wait => self.access(op),
            OpKind::Atomic { op: which, .. } => format!("{} {}", which.name(), self.access(op)),
            OpKind::Assert { message } => format!("{}, {message:?}", self.values(o)),
            OpKind::Print { message } if o.is_empty() => format!("{message:?}"),
            OpKind::Print { message } => format!("{message:?}, {}", self.values(o)),
            OpKind::For { .. } | OpKind::While | OpKind::Roles(_) | OpKind::GridSync => String::new(),
            OpKind::Channel { slots, message } => {
                let types: Vec<String> = message.iter().map(Type::to_string).collect();
                format!("{slots} of ({})", types.join(", "))
            }
            OpKind::Send | OpKind::Receive | OpKind::Release => self.values(o),
            OpKind::Unary(_) | OpKind::Binary(_) | OpKind::Compare(_) | OpKind::Fma | OpKind::Select => self.values(o),
            OpKind::Cast | OpKind::Bitcast | OpKind::Broadcast | OpKind::Reshape | OpKind::If | OpKind::Yield => {
                self.values(o)
            }
        };
        if !text.is_empty() {
            let _ = write!(self.out, " {text}");
        }
        match (&op.kind, &op.regions[..]) {
            (OpKind::For { stages }, &[body]) if o.len() >= 3 && !self.kernel.region(body).args.is_empty() => {
                let args = &self.kernel.region(body).args;
                let induction = self.define(args[0]);
                let bounds: Vec<String> = o[..3].iter().map(|&v| self.value(v)).collect();
                let _ = write!(self.out, " {induction} = {} to {} step {}", bounds[0], bounds[1], bounds[2]);
                if *stages != 0 {
                    let _ = write!(self.out, " stages {stages}");
                }
                if args.len() > 1 {
                    let carried = self.carried(&args[1..], &o[3..]);
                    let _ = write!(self.out, " carrying ({carried})");
                }
                self.loc(op.loc);
                self.region(body, depth);
            }
            (OpKind::While, &[condition, body]) => {
                let carried = self.carried(&self.kernel.region(condition).args, o);
                let _ = write!(self.out, " ({carried})");
                self.loc(op.loc);
                self.region(condition, depth);
                let args = self.args(body).join(", ");
                let _ = write!(self.out, " do ({args})");
                self.region(body, depth);
            }
            (OpKind::If, &[then, otherwise]) => {
                self.loc(op.loc);
                self.region(then, depth);
                self.out.push_str(" else");
                self.region(otherwise, depth);
            }
            (OpKind::Roles(roles), regions) => {
                self.loc(op.loc);
                for (role, &region) in roles.iter().zip(regions) {
                    self.out.push_str(" role");
                    if role.warps != 0 {
                        let _ = write!(self.out, " warps {}", role.warps);
                    }
                    if role.registers != 0 {
                        let _ = write!(self.out, " registers {}", role.registers);
                    }
                    self.region(region, depth);
                }
            }
            (_, regions) => {
                self.loc(op.loc);
                for &region in regions {
                    let args = self.args(region).join(", ");
                    let _ = write!(self.out, " ({args})");
                    self.region(region, depth);
                }
            }
        }
        self.out.push('\n');
    }

    /// `%view[%i, %j], %value if %mask else %other`.
    fn access(&self, op: &Op) -> String {
        let o = &op.operands[..];
        let stores = !matches!(op.kind, OpKind::Load { .. } | OpKind::Gather { .. });
        let (mask, other) = match op.kind {
            OpKind::Load { has_other } => (false, has_other),
            OpKind::Gather { masked } => (masked, masked),
            OpKind::Scatter { masked } | OpKind::Atomic { masked, .. } => (masked, false),
            _ => (false, false),
        };
        let first = 1 + stores as usize;
        let extra = mask as usize + other as usize;
        if o.len() < first + extra {
            return self.values(o);
        }
        let last = o.len() - extra;
        let mut text = format!("{}[{}]", self.value(o[0]), self.values(&o[first..last]));
        if stores {
            let _ = write!(text, ", {}", self.value(o[1]));
        }
        if mask {
            let _ = write!(text, " if {}", self.value(o[last]));
        }
        if other {
            let _ = write!(text, " else {}", self.value(o[o.len() - 1]));
        }
        text
    }

    fn rank(&self, operands: &[ValueId]) -> usize {
        match operands.first().map(|&v| self.kernel.ty(v)) {
            Some(Type::Tile(_, shape)) => shape.rank(),
            _ => MAX_RANK,
        }
    }
}
