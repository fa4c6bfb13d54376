//! Runs lowered kernels without a GPU: an interpreter of the subset of LLVM text and inline PTX that this back end
//! writes, thread by thread.
//!
//! Every thread runs alone until it needs others (a barrier, a shuffle, a tensor-core instruction); there all must
//! have arrived at the same place. Since threads do not take turns in between, in one of the two orders of threads a
//! missing barrier shows as a wrong or unwritten value. Asynchronous copies happen when they are waited for, no
//! sooner.

use std::collections::HashMap;

const WIDTH: usize = 8;

#[derive(Clone, Debug)]
enum Operand {
    Slot(usize),
    Immediate(u64),
}

#[derive(Clone, Debug)]
enum Code {
    Binary(String, u32, usize, Operand, Operand),
    Icmp(String, u32, usize, Operand, Operand),
    Fcmp(String, usize, Operand, Operand),
    Select(usize, Operand, Operand, Operand),
    Cast(String, String, String, usize, Operand),
    Fneg(usize, Operand),
    Phi(usize, Vec<(Operand, String)>),
    Call(String, usize, Vec<Operand>),
    Asm { ptx: String, out: usize, outs: usize, ties: Vec<Option<usize>>, args: Vec<Operand> },
    Extract(usize, usize, usize),
    Jump(String),
    Branch(Operand, String, String),
    Return,
}

pub struct Simulator {
    code: Vec<Code>,
    labels: HashMap<String, usize>,
    slots: HashMap<String, usize>,
    threads: usize,
    pub global: Vec<Vec<u8>>,
    shared: Vec<u8>,
}

struct Thread {
    pc: usize,
    values: Vec<u64>,
    block: String,
    previous: String,
    /// Copies issued, grouped by commits; the last group is open.
    copies: Vec<Vec<(u64, u64, usize, usize)>>,
}

/// The simulated address of a buffer.
pub fn address_of(buffer: usize) -> u64 {
    (buffer as u64 + 1) << 32
}

fn bits_of(ty: &str) -> u32 {
    match ty {
        "i1" => 1,
        "i8" => 8,
        "i16" | "half" | "bfloat" => 16,
        "i32" | "float" => 32,
        "i64" | "double" | "ptr" => 64,
        other => panic!("type {other}"),
    }
}

fn mask(bits: u32) -> u64 {
    if bits == 64 { u64::MAX } else { (1 << bits) - 1 }
}

fn signed(x: u64, bits: u32) -> i64 {
    ((x << (64 - bits)) as i64) >> (64 - bits)
}

fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

fn b(x: f32) -> u64 {
    x.to_bits() as u64
}

/// Splits at commas outside of any brackets.
fn split(text: &str) -> Vec<String> {
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

impl Simulator {
    pub fn new(text: &str, threads: usize, shared: usize, global: Vec<Vec<u8>>) -> Simulator {
        let mut s = Simulator {
            code: vec![],
            labels: HashMap::new(),
            slots: HashMap::new(),
            threads,
            global,
            shared: vec![0xee; shared],
        };
        let body = text.split("define void").nth(1).expect("a function").split_once("{\n").expect("a body").1;
        for line in body.lines() {
            let line = line.replace("ptrtoint (ptr addrspace(3) @shared to i32)", "0");
            if line == "}" {
                break;
            }
            if let Some(label) = line.strip_suffix(':') {
                s.labels.insert(label.to_owned(), s.code.len());
            } else {
                s.parse(line.trim());
            }
        }
        s
    }

    fn slot(&mut self, name: &str) -> usize {
        let next = self.slots.len() * WIDTH;
        *self.slots.entry(name.to_owned()).or_insert(next)
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

    fn parse(&mut self, line: &str) {
        // Printing is not simulated.
        if ["alloca", "getelementptr", "addrspacecast", "vprintf", "fpext float"].iter().any(|s| line.contains(s))
            || line.starts_with("store ")
        {
            return;
        }
        let (out, rest) = match line.split_once(" = ") {
            Some((name, rest)) if name.starts_with('%') => (self.slot(name), rest),
            _ => (usize::MAX, line),
        };
        let (op, args) = rest.split_once(' ').unwrap_or((rest, ""));
        let code = match op {
            "icmp" | "fcmp" => {
                let (predicate, args) = args.split_once(' ').expect("a predicate");
                let (ty, args) = args.split_once(' ').expect("a type");
                let args = split(args);
                let (x, y) = (self.operand(&args[0]), self.operand(&args[1]));
                if op == "icmp" {
                    Code::Icmp(predicate.into(), bits_of(ty), out, x, y)
                } else {
                    Code::Fcmp(predicate.into(), out, x, y)
                }
            }
            "select" => {
                let args = split(args);
                Code::Select(out, self.typed(&args[0]), self.typed(&args[1]), self.typed(&args[2]))
            }
            "zext" | "sext" | "trunc" | "bitcast" | "fptrunc" | "fpext" | "sitofp" | "uitofp" => {
                let (from, to) = args.split_once(" to ").expect("a cast");
                let (ty, v) = from.split_once(' ').expect("a typed operand");
                Code::Cast(op.into(), ty.into(), to.trim().into(), out, self.operand(v))
            }
            "fneg" => Code::Fneg(out, self.typed(args)),
            "phi" => {
                let (_, list) = args.split_once(' ').expect("a type");
                let list = split(list);
                let edge = |s: &mut Self, e: &str| {
                    let inner = split(e.trim_matches(['[', ']', ' ']));
                    (s.operand(&inner[0]), inner[1].trim_start_matches('%').to_owned())
                };
                Code::Phi(out, list.iter().map(|e| edge(self, e)).collect())
            }
            "extractvalue" => {
                let (tuple, index) = args.rsplit_once(',').expect("an index");
                let source = tuple.rsplit_once(' ').expect("a value").1.to_owned();
                Code::Extract(out, self.slot(&source), index.trim().parse().expect("an index"))
            }
            "br" if args.starts_with("label") => Code::Jump(args.trim_start_matches("label %").into()),
            "br" => {
                let args = split(args);
                let label = |s: &str| s.trim_start_matches("label %").to_owned();
                Code::Branch(self.typed(&args[0]), label(&args[1]), label(&args[2]))
            }
            "ret" => Code::Return,
            "call" if args.contains(" asm ") => {
                let parts: Vec<&str> = args.split('"').collect();
                let constraints: Vec<&str> = parts[3].split(',').filter(|c| *c != "~{memory}").collect();
                let outs = constraints.iter().filter(|c| c.starts_with('=')).count();
                let ties = constraints[outs..].iter().map(|c| c.parse().ok()).collect();
                let list = parts[4].trim_start_matches('(');
                let list = &list[..list.rfind(')').expect("a list")];
                let args = split(list).iter().map(|a| self.typed(a)).collect();
                Code::Asm { ptx: parts[1].into(), out, outs, ties, args }
            }
            "call" => {
                let (head, list) = args.split_once('(').expect("a call");
                let name = head.rsplit_once('@').expect("a name").1.to_owned();
                let list = &list[..list.rfind(')').expect("a list")];
                let args = split(list).iter().map(|a| self.typed(a)).collect();
                Code::Call(name, out, args)
            }
            _ => {
                let (ty, args) = args.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                let args = split(args);
                let (x, y) = (self.operand(&args[0]), self.operand(&args[1]));
                let bits = if ty == "float" { 0 } else { bits_of(ty) };
                Code::Binary(op.into(), bits, out, x, y)
            }
        };
        self.code.push(code);
    }

    /// Runs one program. `params`: the launch slots; `backwards`: the order of threads.
    pub fn run(&mut self, params: &[u64], program: [u32; 3], grid: [u32; 3], backwards: bool) {
        let count = self.slots.len() * WIDTH;
        let mut threads: Vec<Thread> = (0..self.threads)
            .map(|_| Thread {
                pc: 0,
                values: vec![0; count],
                block: "entry".into(),
                previous: String::new(),
                copies: vec![vec![]],
            })
            .collect();
        for (i, &p) in params.iter().enumerate() {
            if let Some(&slot) = self.slots.get(&format!("%p{i}")) {
                for t in &mut threads {
                    t.values[slot] = p;
                }
            }
        }
        let order: Vec<usize> = if backwards { (0..self.threads).rev().collect() } else { (0..self.threads).collect() };
        let code = self.code.clone();
        loop {
            for &t in &order {
                while self.step(&code, &mut threads[t], t, program, grid) {}
            }
            let pc = threads[0].pc;
            assert!(threads.iter().all(|t| t.pc == pc), "threads wait at different places");
            match &code[pc] {
                Code::Return => return,
                other => self.together(other, &mut threads),
            }
            for t in &mut threads {
                t.pc += 1;
            }
        }
    }

    fn memory(&mut self, address: u64, size: usize) -> &mut [u8] {
        let (buffer, offset) = ((address >> 32) as usize, (address & 0xffff_ffff) as usize);
        assert_eq!(offset % size, 0, "misaligned access of {size} bytes at {address:#x}");
        assert!(buffer >= 1 && buffer <= self.global.len(), "wild address {address:#x}");
        let buffer = &mut self.global[buffer - 1];
        assert!(offset + size <= buffer.len(), "{offset} + {size} is outside of a buffer of {}", buffer.len());
        &mut buffer[offset..offset + size]
    }

    fn shared_memory(&mut self, address: u64, size: usize) -> &mut [u8] {
        assert_eq!(address as usize % size, 0, "misaligned shared access of {size} bytes at {address:#x}");
        assert!(address as usize + size <= self.shared.len(), "outside of shared memory: {address}");
        &mut self.shared[address as usize..address as usize + size]
    }

    /// One instruction of one thread; false where it must wait for others.
    fn step(&mut self, code: &[Code], t: &mut Thread, tid: usize, program: [u32; 3], grid: [u32; 3]) -> bool {
        let get = |t: &Thread, o: &Operand| match o {
            Operand::Slot(s) => t.values[*s],
            Operand::Immediate(x) => *x,
        };
        match &code[t.pc] {
            Code::Return => return false,
            Code::Binary(op, bits, out, x, y) => {
                let (x, y) = (get(t, x), get(t, y));
                t.values[*out] = binary(op, *bits, x, y);
            }
            Code::Icmp(p, bits, out, x, y) => {
                let (x, y) = (get(t, x) & mask(*bits), get(t, y) & mask(*bits));
                let (sx, sy) = (signed(x, *bits), signed(y, *bits));
                t.values[*out] = match p.as_str() {
                    "eq" => x == y,
                    "ne" => x != y,
                    "ult" => x < y,
                    "ule" => x <= y,
                    "ugt" => x > y,
                    "uge" => x >= y,
                    "slt" => sx < sy,
                    "sle" => sx <= sy,
                    "sgt" => sx > sy,
                    "sge" => sx >= sy,
                    p => panic!("icmp {p}"),
                } as u64;
            }
            Code::Fcmp(p, out, x, y) => {
                let (x, y) = (f(get(t, x)), f(get(t, y)));
                t.values[*out] = match p.as_str() {
                    "oeq" => x == y,
                    "une" => x != y,
                    "olt" => x < y,
                    "ole" => x <= y,
                    "ogt" => x > y,
                    "oge" => x >= y,
                    "uno" => x.is_nan() || y.is_nan(),
                    p => panic!("fcmp {p}"),
                } as u64;
            }
            Code::Select(out, c, x, y) => t.values[*out] = if get(t, c) & 1 == 1 { get(t, x) } else { get(t, y) },
            Code::Cast(op, from, to, out, x) => {
                let x = get(t, x) & mask(bits_of(from));
                t.values[*out] = cast(op, from, to, x) & mask(bits_of(to));
            }
            Code::Fneg(out, x) => t.values[*out] = get(t, x) ^ 0x8000_0000,
            Code::Phi(..) => {
                // All phis of a block at once.
                let mut values = vec![];
                let mut pc = t.pc;
                while let Code::Phi(out, edges) = &code[pc] {
                    let edge = edges.iter().find(|e| e.1 == t.previous);
                    let edge = edge.unwrap_or_else(|| panic!("no edge from {} in {edges:?}", t.previous));
                    values.push((*out, get(t, &edge.0)));
                    pc += 1;
                }
                for (out, v) in values {
                    t.values[out] = v;
                }
                t.pc = pc;
                return true;
            }
            Code::Extract(out, source, i) => t.values[*out] = t.values[source + i],
            Code::Jump(label) => {
                self.jump(t, label);
                return true;
            }
            Code::Branch(c, yes, no) => {
                let label = if get(t, c) & 1 == 1 { yes } else { no };
                self.jump(t, label);
                return true;
            }
            Code::Call(name, out, args) => {
                if name.contains("barrier") || name.contains("bar.warp") || name.contains("shfl") {
                    return false;
                }
                let args: Vec<u64> = args.iter().map(|a| get(t, a)).collect();
                let value = match name.as_str() {
                    "llvm.nvvm.read.ptx.sreg.tid.x" => tid as u64,
                    n if n.starts_with("llvm.nvvm.read.ptx.sreg.") => {
                        let axis = "xyz".find(n.chars().last().expect("a name")).expect("an axis");
                        if n.contains("nctaid") { grid[axis] as u64 } else { program[axis] as u64 }
                    }
                    n => intrinsic(n, &args),
                };
                if *out != usize::MAX {
                    t.values[*out] = value;
                }
            }
            Code::Asm { ptx, out, outs, ties, args } => {
                if ptx.contains("mma.sync") || ptx.contains("ldmatrix") {
                    return false;
                }
                let mut env = vec![0u64; *outs];
                for (a, tie) in args.iter().zip(ties) {
                    let v = get(t, a);
                    env.push(v);
                    if let Some(n) = tie {
                        env[*n] = v;
                    }
                }
                for instruction in ptx.split(';').map(str::trim).filter(|i| !i.is_empty()) {
                    self.ptx(instruction, &mut env, t);
                }
                if *out != usize::MAX {
                    t.values[*out..*out + outs].copy_from_slice(&env[..*outs]);
                }
            }
        }
        t.pc += 1;
        true
    }

    fn jump(&self, t: &mut Thread, label: &str) {
        t.previous = std::mem::replace(&mut t.block, label.to_owned());
        t.pc = self.labels[label];
    }

    /// One PTX instruction that a thread executes alone.
    fn ptx(&mut self, instruction: &str, env: &mut [u64], t: &mut Thread) {
        let number = |s: &str| s.trim_matches(['[', ']', '{', '}', ' ', '$']).parse::<usize>();
        let value = |s: &str, env: &[u64]| -> u64 {
            let s = s.trim_matches(['[', ']', ' ']);
            match s.strip_prefix('$') {
                Some(n) => env[n.parse::<usize>().expect("an operand")],
                None => s.parse::<u64>().expect("a number"),
            }
        };
        let mut text = instruction;
        if let Some(rest) = text.strip_prefix('@') {
            let (p, rest) = rest.split_once(' ').expect("a predicate");
            if value(p, env) & 1 == 0 {
                return;
            }
            text = rest;
        }
        let (op, rest) = text.split_once(' ').unwrap_or((text, ""));
        let args = split(rest);
        let parts: Vec<&str> = op.split('.').collect();
        let kind = *parts.last().expect("a type");
        let size = kind.trim_start_matches(|c: char| c.is_alphabetic()).parse::<usize>().unwrap_or(0) / 8;
        let count = if op.contains(".v4.") {
            4
        } else if op.contains(".v2.") {
            2
        } else {
            1
        };
        let group = |s: &str| split(s.trim_matches(['{', '}'])).iter().map(|x| x.to_owned()).collect::<Vec<_>>();
        match parts[0] {
            "mov" => env[number(&args[0]).expect("an operand")] = value(&args[1], env),
            "trap" => panic!("trap"),
            "ex2" => env[0] = b(f(env[1]).exp2()),
            "rcp" => env[0] = b(1.0 / f(env[1])),
            "rsqrt" => env[0] = b(1.0 / f(env[1]).sqrt()),
            "cvt" if op.contains("bf16x2") => env[0] = half::bf16::from_f32(f(env[1])).to_bits() as u64,
            "cvt" if op.contains("f16x2") => env[0] = half::f16::from_f32(f(env[1])).to_bits() as u64,
            "cvt" if op.contains("tf32") => env[0] = (env[1] as u32).wrapping_add(0x1000) as u64 & 0xffff_e000,
            "ld" => {
                let address = value(&args[1], env);
                let space = parts[1];
                for (i, name) in group(&args[0]).iter().enumerate() {
                    if i == 0 {
                        assert_eq!(address as usize % (size * count), 0, "misaligned vector");
                    }
                    let at = address + (i * size) as u64;
                    let bytes =
                        if space == "shared" { self.shared_memory(at, size) } else { self.memory(at, size) }.to_vec();
                    let mut word = [0; 8];
                    word[..size].copy_from_slice(&bytes);
                    env[number(name).expect("an operand")] = u64::from_le_bytes(word);
                }
            }
            "st" => {
                let address = value(&args[0], env);
                assert_eq!(address as usize % (size * count), 0, "misaligned vector");
                for (i, name) in group(&args[1]).iter().enumerate() {
                    let word = value(name, env).to_le_bytes();
                    let at = address + (i * size) as u64;
                    let place = if parts[1] == "shared" { self.shared_memory(at, size) } else { self.memory(at, size) };
                    place.copy_from_slice(&word[..size]);
                }
            }
            "atom" => {
                let place = self.memory(value(&args[1], env), size);
                let mut word = [0; 8];
                word[..size].copy_from_slice(place);
                let (old, x) = (u64::from_le_bytes(word), value(&args[2], env));
                let bits = size as u32 * 8;
                let float = kind.starts_with('f') || kind.starts_with("bf");
                let new = match parts[parts.len() - 2] {
                    "noftz" => match kind {
                        "f16" => half::f16::from_f32(
                            half::f16::from_bits(old as u16).to_f32() + half::f16::from_bits(x as u16).to_f32(),
                        )
                        .to_bits() as u64,
                        _ => half::bf16::from_f32(
                            half::bf16::from_bits(old as u16).to_f32() + half::bf16::from_bits(x as u16).to_f32(),
                        )
                        .to_bits() as u64,
                    },
                    "add" if float => b(f(old) + f(x)),
                    "add" => old.wrapping_add(x),
                    "exch" => x,
                    "and" => old & x,
                    "or" => old | x,
                    "xor" => old ^ x,
                    "min" if kind.starts_with('s') => signed(old, bits).min(signed(x, bits)) as u64,
                    "max" if kind.starts_with('s') => signed(old, bits).max(signed(x, bits)) as u64,
                    "min" => old.min(x & mask(bits)),
                    "max" => old.max(x & mask(bits)),
                    "cas" if old == x & mask(bits) => value(&args[3], env),
                    "cas" => old,
                    other => panic!("atom {other}"),
                };
                place.copy_from_slice(&new.to_le_bytes()[..size]);
                env[number(&args[0]).expect("an operand")] = old;
            }
            "cp" if op.contains("commit") => t.copies.push(vec![]),
            "cp" if op.contains("wait_group") => {
                let keep = value(&args[0], env) as usize;
                let open = t.copies.pop().expect("a group is open");
                let done = t.copies.len().saturating_sub(keep);
                let groups: Vec<_> = t.copies.drain(..done).collect();
                t.copies.push(open);
                for (to, from, size, read) in groups.into_iter().flatten() {
                    let mut bytes = vec![0; size];
                    if read > 0 {
                        bytes[..read].copy_from_slice(self.memory(from, read));
                    }
                    self.shared_memory(to, size).copy_from_slice(&bytes);
                }
            }
            "cp" => {
                let (to, from, size) = (value(&args[0], env), value(&args[1], env), value(&args[2], env) as usize);
                let read = args.get(3).map_or(size, |a| value(a, env) as usize);
                t.copies.last_mut().expect("a group is open").push((to, from, size, read));
            }
            other => panic!("PTX {other}"),
        }
    }

    /// An instruction that all threads execute together.
    fn together(&mut self, code: &Code, threads: &mut [Thread]) {
        let get = |t: &Thread, o: &Operand| match o {
            Operand::Slot(s) => t.values[*s],
            Operand::Immediate(x) => *x,
        };
        match code {
            Code::Call(name, out, args) if name.contains("shfl") => {
                let sent: Vec<u64> = threads.iter().map(|t| get(t, &args[1])).collect();
                for (i, t) in threads.iter_mut().enumerate() {
                    let lane = get(t, &args[2]) as usize & 31;
                    let from = if name.contains("bfly") { i ^ lane } else { i & !31 | lane };
                    t.values[*out] = sent[from];
                }
            }
            Code::Call(..) => {}
            Code::Asm { ptx, out, args, .. } if ptx.contains("ldmatrix") => {
                let count = if ptx.contains(".x4") {
                    4
                } else if ptx.contains(".x2") {
                    2
                } else {
                    1
                };
                let trans = ptx.contains(".trans");
                let addresses: Vec<u64> = threads.iter().map(|t| get(t, &args[0])).collect();
                for (i, t) in threads.iter_mut().enumerate() {
                    let (warp, lane) = (i & !31, i & 31);
                    for j in 0..count {
                        let mut word = 0u64;
                        for half in 0..2 {
                            let (row, column) = if trans {
                                (2 * (lane % 4) + half, lane / 4)
                            } else {
                                (lane / 4, 2 * (lane % 4) + half)
                            };
                            let base = addresses[warp + 8 * j + row];
                            assert_eq!(base % 16, 0, "ldmatrix rows are aligned");
                            let bytes = self.shared_memory(base + 2 * column as u64, 2);
                            word |= (u16::from_le_bytes([bytes[0], bytes[1]]) as u64) << (16 * half);
                        }
                        t.values[out + j] = word;
                    }
                }
            }
            Code::Asm { ptx, out, args, .. } => {
                for warp in (0..threads.len()).step_by(32) {
                    let read = |lane: usize, i: usize| get(&threads[warp + lane], &args[i]);
                    let results = mma(ptx, &read);
                    for (lane, r) in results.into_iter().enumerate() {
                        threads[warp + lane].values[*out..*out + 4].copy_from_slice(&r);
                    }
                }
            }
            other => panic!("{other:?} needs no other threads"),
        }
    }
}

/// m16n8k(32 bytes): operand `i` of lane l is `read(l, i)`: four words of A, two of B, four of the accumulator.
fn mma(ptx: &str, read: &dyn Fn(usize, usize) -> u64) -> Vec<[u64; 4]> {
    let (bytes, integer) = if ptx.contains("k16") {
        (2, false)
    } else if ptx.contains("k8.") {
        (4, false)
    } else {
        (1, true)
    };
    let per_word = 4 / bytes;
    let depth = 8 * per_word;
    let element = |word: u64, i: usize| -> f64 {
        let x = word >> (8 * bytes * i);
        match bytes {
            2 if ptx.contains("bf16") => half::bf16::from_bits(x as u16).to_f64(),
            2 => half::f16::from_bits(x as u16).to_f64(),
            4 => f(x & 0xffff_e000) as f64,
            _ if ptx.contains("s8") => x as u8 as i8 as f64,
            _ => x as u8 as f64,
        }
    };
    let mut a = vec![vec![0.0; depth]; 16];
    let mut bm = vec![vec![0.0; 8]; depth];
    for lane in 0..32 {
        let (g, t) = (lane / 4, lane % 4);
        for w in 0..4 {
            for i in 0..per_word {
                a[g + 8 * (w & 1)][t * per_word + i + (w >> 1) * depth / 2] = element(read(lane, w), i);
            }
        }
        for w in 0..2 {
            for i in 0..per_word {
                bm[t * per_word + i + w * depth / 2][g] = element(read(lane, 4 + w), i);
            }
        }
    }
    (0..32)
        .map(|lane| {
            let (g, t) = (lane / 4, lane % 4);
            std::array::from_fn(|i| {
                let (row, column) = (g + 8 * (i >> 1), 2 * t + (i & 1));
                let sum: f64 = (0..depth).map(|k| a[row][k] * bm[k][column]).sum();
                let acc = read(lane, 6 + i);
                if integer {
                    (acc as u32 as i32).wrapping_add(sum as i32) as u32 as u64
                } else {
                    b((f(acc) as f64 + sum) as f32)
                }
            })
        })
        .collect()
}

fn binary(op: &str, bits: u32, x: u64, y: u64) -> u64 {
    if bits == 0 {
        let (x, y) = (f(x), f(y));
        return b(match op {
            "fadd" => x + y,
            "fsub" => x - y,
            "fmul" => x * y,
            "fdiv" => x / y,
            "frem" => x % y,
            op => panic!("{op}"),
        });
    }
    let (x, y) = (x & mask(bits), y & mask(bits));
    let (sx, sy) = (signed(x, bits), signed(y, bits));
    let value = match op {
        "add" => x.wrapping_add(y),
        "sub" => x.wrapping_sub(y),
        "mul" => x.wrapping_mul(y),
        "and" => x & y,
        "or" => x | y,
        "xor" => x ^ y,
        "shl" => x << y,
        "lshr" => x >> y,
        "ashr" => (sx >> y) as u64,
        "sdiv" => (sx / sy) as u64,
        "srem" => (sx % sy) as u64,
        "udiv" => x / y,
        "urem" => x % y,
        op => panic!("{op}"),
    };
    value & mask(bits)
}

fn cast(op: &str, from: &str, to: &str, x: u64) -> u64 {
    match op {
        "zext" | "trunc" | "bitcast" => x,
        "sext" => signed(x, bits_of(from)) as u64,
        "fptrunc" if to == "half" => half::f16::from_f32(f(x)).to_bits() as u64,
        "fptrunc" => half::bf16::from_f32(f(x)).to_bits() as u64,
        "fpext" => b(half::f16::from_bits(x as u16).to_f32()),
        "sitofp" => b(signed(x, bits_of(from)) as f32),
        "uitofp" => b(x as f32),
        op => panic!("{op}"),
    }
}

fn intrinsic(name: &str, a: &[u64]) -> u64 {
    let parts: Vec<&str> = name.split('.').collect();
    let ty = parts.last().copied().unwrap_or_default();
    match parts[1] {
        "fma" => b(f(a[0]).mul_add(f(a[1]), f(a[2]))),
        "minnum" => b(f(a[0]).min(f(a[1]))),
        "maxnum" => b(f(a[0]).max(f(a[1]))),
        "fabs" => a[0] & 0x7fff_ffff,
        "copysign" => a[0] & 0x7fff_ffff | a[1] & 0x8000_0000,
        "sqrt" => b(f(a[0]).sqrt()),
        "floor" => b(f(a[0]).floor()),
        "ceil" => b(f(a[0]).ceil()),
        "trunc" => b(f(a[0]).trunc()),
        "roundeven" => b(f(a[0]).round_ties_even()),
        "fptosi" => {
            let bits = bits_of(parts[3]);
            let limit = 1i128 << (bits - 1);
            ((f(a[0]) as f64 as i128).clamp(-limit, limit - 1) as u64) & mask(bits)
        }
        "fptoui" => {
            let bits = bits_of(parts[3]);
            ((f(a[0]) as f64 as i128).clamp(0, (1i128 << bits) - 1) as u64) & mask(bits)
        }
        "abs" => {
            let bits = bits_of(ty);
            signed(a[0] & mask(bits), bits).wrapping_abs() as u64 & mask(bits)
        }
        "smin" | "smax" | "umin" | "umax" => {
            let bits = bits_of(ty);
            let (x, y) = (a[0] & mask(bits), a[1] & mask(bits));
            let less = if parts[1].starts_with('s') { signed(x, bits) < signed(y, bits) } else { x < y };
            if less == parts[1].ends_with("min") { x } else { y }
        }
        _ => panic!("intrinsic {name}"),
    }
}
