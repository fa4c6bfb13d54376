//! Reads LLVM text.

use super::asm::Asm;
use super::bulk::MAPS_START;
use super::compute::{
    Binary, Compare, CompareFloats, b, binary, bits_of, cast, compare, compare_floats, intrinsic, mask,
};
use std::collections::HashMap;
use std::rc::Rc;

#[derive(Clone, Copy, Debug)]
pub enum Operand {
    Slot(usize),
    Immediate(u64),
}

/// A thread's special register.
#[derive(Clone, Copy)]
pub enum Special {
    Thread,
    Program(usize),
    Programs(usize),
}

/// An instruction; the first number is the slot of its result, [`NOWHERE`] if it has none.
pub enum Code {
    /// Also of values that are not there yet.
    Move(usize, Operand),
    Binary(Binary, u32, usize, Operand, Operand),
    Icmp(Compare, u32, usize, Operand, Operand),
    Fcmp(CompareFloats, usize, Operand, Operand),
    Select(usize, Operand, Operand, Operand),
    Function(Rc<dyn Fn(&[u64]) -> u64>, usize, Vec<Operand>),
    Special(Special, usize),
    /// By the label before.
    Phi(usize, Vec<(Operand, usize)>),
    /// A load from or a store to a stack slot.
    Stack(usize, Operand),
    /// Lane, whether exclusive-ored with one's own.
    Shuffle(usize, Operand, Operand, bool),
    WarpBarrier,
    Barrier,
    Asm(Asm),
    Jump(usize),
    Branch(Operand, usize, usize),
    Return,
}

pub const NOWHERE: usize = usize::MAX;

/// A kernel.
#[derive(Default)]
pub struct Program {
    pub code: Vec<Code>,
    /// The text of each instruction.
    pub lines: Vec<String>,
    /// Where each label is.
    pub labels: Vec<usize>,
    /// How many slots a thread has.
    pub count: usize,
    names: HashMap<String, usize>,
    label_names: HashMap<String, usize>,
    /// Stack slots that are simulated: those of one i32.
    stack: Vec<String>,
}

/// Splits at commas outside of any brackets.
pub fn split(text: &str) -> Vec<String> {
    let mut depth = 0;
    let mut out = vec![String::new()];
    for c in text.chars() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                out.push(String::new());
                continue;
            }
            _ => {}
        }
        out.last_mut().expect("never empty").push(c);
    }
    out.into_iter().map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect()
}

impl Program {
    pub fn parse(text: &str) -> Program {
        let mut p = Program::default();
        let body = text.split("define void").nth(1).expect("a function").split_once("{\n").expect("a body").1;
        p.label("entry");
        for line in body.lines() {
            let line = line.split_once(", !dbg ").map_or(line, |(code, _)| code);
            let line = line.replace("ptrtoint (ptr addrspace(3) @shared to i32)", "%shared_base");
            if line == "}" {
                break;
            }
            if let Some(name) = line.strip_suffix(':') {
                let label = p.label(name);
                p.labels[label] = p.code.len();
            } else if let Some(code) = p.line(line.trim()) {
                p.code.push(code);
                p.lines.push(line.trim().chars().take(160).collect());
            }
        }
        p
    }

    fn label(&mut self, name: &str) -> usize {
        let next = self.labels.len();
        let label = *self.label_names.entry(name.to_owned()).or_insert(next);
        if label == next {
            self.labels.push(0);
        }
        label
    }

    /// The slot of a value.
    pub fn slot(&mut self, name: &str) -> usize {
        self.slots(name, 1)
    }

    /// The first of the slots of a value with `n` fields.
    fn slots(&mut self, name: &str, n: usize) -> usize {
        let next = self.count;
        let slot = *self.names.entry(name.to_owned()).or_insert(next);
        if slot == next {
            self.count += n;
        }
        slot
    }

    /// The slot of a value that the kernel uses.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }

    fn operand(&mut self, text: &str) -> Operand {
        let text = text.trim();
        if text.starts_with('%') {
            return Operand::Slot(self.slot(text));
        }
        Operand::Immediate(match text {
            "true" => 1,
            "false" => 0,
            t if t.starts_with("0x") => {
                b(f64::from_bits(u64::from_str_radix(&t[2..], 16).expect("hexadecimal")) as f32)
            }
            t => t.parse::<i128>().unwrap_or_else(|_| panic!("operand {t}")) as u64,
        })
    }

    fn typed(&mut self, text: &str) -> Operand {
        let (_, v) = text.split_once(' ').unwrap_or_else(|| panic!("typed operand {text}"));
        self.operand(v)
    }

    /// The operands of a call; `list` is `(…)` and what may follow.
    fn arguments(&mut self, list: &str) -> Vec<Operand> {
        let list = list.trim_start_matches('(');
        let list = &list[..list.rfind(')').expect("a list")];
        split(list).iter().map(|a| self.typed(a)).collect()
    }

    /// The stack slot in `…, ptr %x, …`, if it is simulated.
    fn stack_slot(&mut self, args: &[String]) -> Option<usize> {
        let name = args.iter().find_map(|a| a.strip_prefix("ptr "))?;
        self.stack.iter().any(|s| s == name).then(|| self.slot(name))
    }

    fn line(&mut self, line: &str) -> Option<Code> {
        // Printing is not simulated.
        if ["getelementptr", "addrspacecast", "vprintf", "fpext float"].iter().any(|s| line.contains(s)) {
            return None;
        }
        let (name, rest) = match line.split_once(" = ") {
            Some((name, rest)) if name.starts_with('%') => (Some(name), rest),
            _ => (None, line),
        };
        let (op, args) = rest.split_once(' ').unwrap_or((rest, ""));
        if op == "call" && args.contains(" asm ") {
            return Some(Code::Asm(self.asm(name, args)));
        }
        if op == "alloca" {
            if args.starts_with("i32") {
                self.stack.extend(name.map(str::to_owned));
            }
            return None;
        }
        if op == "store" {
            let args = split(args);
            return self.stack_slot(&args).map(|s| Code::Stack(s, self.typed(&args[0])));
        }
        let out = name.map_or(NOWHERE, |n| self.slot(n));
        Some(match op {
            "load" => Code::Stack(out, Operand::Slot(self.stack_slot(&split(args)).expect("a stack slot"))),
            "ptrtoint" => {
                let map = args.strip_prefix("ptr %map").and_then(|m| m.split(' ').next()?.parse::<u64>().ok());
                Code::Move(out, Operand::Immediate(MAPS_START + map.expect("a tensor map")))
            }
            "icmp" | "fcmp" => {
                let (predicate, args) = args.split_once(' ').expect("a predicate");
                let (ty, args) = args.split_once(' ').expect("a type");
                let args = split(args);
                let (x, y) = (self.operand(&args[0]), self.operand(&args[1]));
                if op == "icmp" {
                    Code::Icmp(compare(predicate), bits_of(ty), out, x, y)
                } else {
                    Code::Fcmp(compare_floats(predicate), out, x, y)
                }
            }
            "select" => {
                let args = split(args);
                Code::Select(out, self.typed(&args[0]), self.typed(&args[1]), self.typed(&args[2]))
            }
            "zext" | "sext" | "trunc" | "bitcast" | "fptrunc" | "fpext" | "sitofp" | "uitofp" => {
                let (from, to) = args.split_once(" to ").expect("a cast");
                let from = from.trim_start_matches("nuw ").trim_start_matches("nsw ");
                let (ty, v) = from.split_once(' ').expect("a typed operand");
                let v = self.operand(v);
                let (op, ty, to) = (op.to_owned(), ty.to_owned(), to.trim().to_owned());
                if ty == to {
                    Code::Move(out, v)
                } else {
                    let (narrow, wide) = (mask(bits_of(&ty)), mask(bits_of(&to)));
                    if matches!(op.as_str(), "zext" | "trunc" | "bitcast") {
                        return Some(Code::Function(Rc::new(move |x| x[0] & narrow & wide), out, vec![v]));
                    }
                    Code::Function(Rc::new(move |x| cast(&op, &ty, &to, x[0] & narrow) & wide), out, vec![v])
                }
            }
            "fneg" => Code::Function(Rc::new(|x| x[0] ^ 0x8000_0000), out, vec![self.typed(args)]),
            "phi" => {
                let (_, list) = args.split_once(' ').expect("a type");
                let edge = |e: &String| {
                    let inner = split(e.trim_matches(['[', ']', ' ']));
                    (self.operand(&inner[0]), self.label(inner[1].trim_start_matches('%')))
                };
                Code::Phi(out, split(list).iter().map(edge).collect())
            }
            "extractvalue" => {
                let (tuple, index) = args.rsplit_once(',').expect("an index");
                let source = self.slot(tuple.rsplit_once(' ').expect("a value").1);
                Code::Move(out, Operand::Slot(source + index.trim().parse::<usize>().expect("an index")))
            }
            "br" if args.starts_with("label") => Code::Jump(self.label(args.trim_start_matches("label %"))),
            "br" => {
                let args = split(args);
                let condition = self.typed(&args[0]);
                let [yes, no] = [1, 2].map(|i| self.label(args[i].trim_start_matches("label %")));
                Code::Branch(condition, yes, no)
            }
            "ret" => Code::Return,
            "call" => {
                let (head, list) = args.split_once('(').expect("a call");
                let name = head.rsplit_once('@').expect("a name").1.to_owned();
                let args = self.arguments(list);
                self.call(name, out, args)
            }
            _ => {
                let (ty, args) = args.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                let args = split(args);
                let (x, y) = (self.operand(&args[0]), self.operand(&args[1]));
                Code::Binary(binary(op), if ty == "float" { 0 } else { bits_of(ty) }, out, x, y)
            }
        })
    }

    fn call(&mut self, name: String, out: usize, args: Vec<Operand>) -> Code {
        let axis = || "xyz".find(name.chars().last().expect("a name")).expect("an axis");
        match name.as_str() {
            "llvm.nvvm.barrier0" => Code::Barrier,
            "llvm.nvvm.bar.warp.sync" => Code::WarpBarrier,
            "llvm.nvvm.read.ptx.sreg.tid.x" => Code::Special(Special::Thread, out),
            n if n.contains("sreg.nctaid") => Code::Special(Special::Programs(axis()), out),
            n if n.contains("sreg.ctaid") => Code::Special(Special::Program(axis()), out),
            n if n.contains("shfl.sync") => Code::Shuffle(out, args[1], args[2], n.contains("bfly")),
            _ => Code::Function(Rc::new(move |x| intrinsic(&name, x)), out, args),
        }
    }

    fn asm(&mut self, name: Option<&str>, args: &str) -> Asm {
        let parts: Vec<&str> = args.split('"').collect();
        let constraints: Vec<&str> = parts[3].split(',').filter(|c| *c != "~{memory}").collect();
        let outs = constraints.iter().filter(|c| c.starts_with('=')).count();
        let ties = constraints[outs..].iter().map(|c| c.parse().ok()).collect();
        let args = self.arguments(parts[4]);
        let out = name.map_or(NOWHERE, |n| self.slots(n, outs));
        Asm::parse(parts[1], out, outs, ties, args)
    }
}
