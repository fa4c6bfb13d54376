//! Inline PTX: its parts, and what a thread executes of it alone.

use super::bulk::{Copy, Outgoing};
use super::compute::{b, f, mask, signed};
use super::parse::{Operand, split};
use super::{Simulator, Thread, UNDEFINED, WINDOW, Wait, real};

/// Who must have arrived for a piece of PTX to be executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    Thread,
    Warp,
    /// The 128 threads of a warpgroup.
    Group,
}

/// A piece of inline PTX. Its registers are the results, then the arguments, then those declared inside.
pub struct Asm {
    pub code: Vec<Ptx>,
    pub scope: Scope,
    pub out: usize,
    pub outs: usize,
    pub ties: Vec<Option<usize>>,
    pub args: Vec<Operand>,
    pub locals: usize,
}

/// An operand of a PTX instruction.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    Register(usize),
    Number(u64),
    Sink,
}

impl Arg {
    pub fn register(self) -> usize {
        match self {
            Arg::Register(r) => r,
            other => panic!("{other:?} is not a register"),
        }
    }

    pub fn value(self, env: &[u64]) -> u64 {
        match self {
            Arg::Register(r) => real(env[r], "PTX"),
            Arg::Number(x) => x,
            Arg::Sink => panic!("a sink has no value"),
        }
    }
}

/// A PTX instruction.
pub struct Ptx {
    /// Executed if this predicate is as said.
    guard: Option<(Arg, bool)>,
    pub name: String,
    pub op: Op,
    pub args: Vec<Arg>,
    /// Added to the address, in bytes.
    pub offset: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Move,
    Trap,
    Tf32,
    /// Two f32 to 16 bits each; whether to f16.
    Pair(bool),
    /// Arithmetic on two f16 or bf16 in a word.
    Paired,
    /// Shared or global; bytes of a word; words.
    Load(bool, usize, usize),
    Store(bool, usize, usize),
    /// A semaphore's value, once it is another than that which the thread has seen last.
    Look,
    /// Bytes of a word.
    Atomic(usize),
    /// The same without the value before: bytes of an element, words.
    Red(usize, usize),
    CopyAsync,
    CopyCommit,
    CopyWait,
    Barrier,
    BarrierArrive,
    BarrierInit,
    /// A store to a program's memory, which tells an mbarrier there: bytes of a word, words.
    Send(usize, usize),
    Arrive,
    ArriveExpect,
    TryWait,
    /// Back to a try, if it failed.
    Again,
    FenceProxy,
    /// Memory changes in program order here.
    Fence,
    FenceInit,
    BulkCopy,
    BulkStore,
    BulkCommit,
    /// Whether for reads only.
    BulkWait(bool),
    /// Whether for equality.
    Setp(bool),
    MaxRegisters,
    /// There are none.
    OtherGrids,
    ClusterArrive,
    ClusterWait,
    /// The same address in another program's window.
    Window,
    /// There are no caches.
    Policy,
    /// Bytes whose contents are lost.
    Discard,
    Mma,
    Ldmatrix,
    Stmatrix,
    Movmatrix,
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait,
    Wgmma,
}

impl Op {
    fn of(name: &str) -> Op {
        let parts: Vec<&str> = name.split('.').collect();
        let kind = parts[parts.len() - 1];
        // Of an element, if there are pairs of them.
        let bits = kind.trim_start_matches(char::is_alphabetic).trim_end_matches("x2");
        let size = bits.parse::<usize>().unwrap_or(0) / 8;
        let count = parts.iter().find_map(|p| p.strip_prefix('v')?.parse().ok()).unwrap_or(1);
        let shared = matches!(parts.get(1), Some(&"shared" | &"shared::cluster"));
        match (parts[0], parts.get(1).copied().unwrap_or_default()) {
            ("mov", _) => Op::Move,
            ("trap", _) => Op::Trap,
            ("discard", _) => Op::Discard,
            ("cvt", _) if name.contains("tf32") => Op::Tf32,
            ("cvt", _) if name.contains("x2") => Op::Pair(name.contains("f16x2") && !name.contains("bf16x2")),
            ("add" | "sub" | "mul", "rn") if name.ends_with("f16x2") => Op::Paired,
            // What loops around it ends where it goes on.
            ("ld", "acquire" | "relaxed") => Op::Look,
            ("ld", _) => Op::Load(shared, size, count),
            ("st", "async") => Op::Send(size, count),
            ("st", _) => Op::Store(shared, size, count),
            ("atom", _) => Op::Atomic(size),
            ("red", _) => Op::Red(size, count),
            ("fence", "acq_rel") => Op::Fence,
            ("cp", _) if name.contains("global.shared::cta.") => Op::BulkStore,
            ("cp", _) if name.starts_with("cp.async.bulk.tensor") => Op::BulkCopy,
            ("cp", _) if name == "cp.async.bulk.commit_group" => Op::BulkCommit,
            ("cp", _) if name.starts_with("cp.async.bulk.wait_group") => Op::BulkWait(name.ends_with(".read")),
            ("cp", _) if name.contains("commit") => Op::CopyCommit,
            ("cp", _) if name.contains("wait_group") => Op::CopyWait,
            ("cp", _) => Op::CopyAsync,
            ("bar", "sync") => Op::Barrier,
            ("bar", "arrive") => Op::BarrierArrive,
            ("mbarrier", "init") => Op::BarrierInit,
            ("mbarrier", "arrive") if name.contains("expect_tx") => Op::ArriveExpect,
            ("mbarrier", "arrive") => Op::Arrive,
            ("mbarrier", "try_wait") if name.contains("parity") => Op::TryWait,
            ("bra", _) => Op::Again,
            ("fence", "proxy") if name.ends_with("global") => Op::Fence,
            ("fence", "proxy") if name.contains("async") => Op::FenceProxy,
            ("fence", "mbarrier_init") => Op::FenceInit,
            ("setp", "eq") => Op::Setp(true),
            ("setp", "ne") => Op::Setp(false),
            ("setmaxnreg", _) => Op::MaxRegisters,
            ("barrier", "cluster") if name.contains("arrive") => Op::ClusterArrive,
            ("barrier", "cluster") => Op::ClusterWait,
            ("mapa", _) => Op::Window,
            ("griddepcontrol", _) => Op::OtherGrids,
            ("createpolicy", _) => Op::Policy,
            ("mma", "sync") => Op::Mma,
            ("ldmatrix", _) => Op::Ldmatrix,
            ("stmatrix", _) => Op::Stmatrix,
            ("movmatrix", _) if name == "movmatrix.sync.aligned.m8n8.trans.b16" => Op::Movmatrix,
            ("wgmma", "fence") => Op::WgmmaFence,
            ("wgmma", "commit_group") => Op::WgmmaCommit,
            ("wgmma", "wait_group") => Op::WgmmaWait,
            ("wgmma", "mma_async") => Op::Wgmma,
            _ => panic!("PTX {name}"),
        }
    }

    fn scope(self) -> Scope {
        match self {
            Op::Mma | Op::Ldmatrix | Op::Stmatrix | Op::Movmatrix | Op::WgmmaWait => Scope::Warp,
            Op::Wgmma | Op::WgmmaFence | Op::WgmmaCommit | Op::MaxRegisters => Scope::Group,
            _ => Scope::Thread,
        }
    }
}

impl Asm {
    pub fn parse(ptx: &str, out: usize, outs: usize, ties: Vec<Option<usize>>, args: Vec<Operand>) -> Asm {
        let text = ptx.trim();
        let text = text.strip_prefix('{').map_or(text, |t| t.strip_suffix('}').expect("a closing brace"));
        let mut names: Vec<String> = vec![];
        let mut labels = vec![];
        let mut code: Vec<Ptx> = vec![];
        let first = outs + args.len();
        for statement in text.split(';').map(str::trim).filter(|s| !s.is_empty()) {
            if let Some(list) = statement.strip_prefix(".reg ") {
                let (_, list) = list.trim().split_once(' ').expect("a type");
                names.extend(split(list));
                continue;
            }
            let arg = |s: &str| match s.strip_prefix('$') {
                Some(n) => Arg::Register(n.parse().unwrap_or_else(|_| panic!("operand {s}"))),
                None if s == "_" => Arg::Sink,
                None => match names.iter().position(|n| n == s) {
                    Some(i) => Arg::Register(first + i),
                    None => Arg::Number(s.parse().unwrap_or_else(|_| panic!("operand {s} in {statement}"))),
                },
            };
            let mut text = statement;
            if let Some((label, rest)) = text.split_once(": ")
                && label.chars().all(char::is_alphanumeric)
            {
                labels.push((label, code.len()));
                text = rest.trim();
            }
            let mut guard = None;
            if let Some(rest) = text.strip_prefix('@') {
                let (p, rest) = rest.split_once(' ').expect("a predicate");
                guard = Some((arg(p.trim_start_matches('!')), !p.starts_with('!')));
                text = rest;
            }
            let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
            // An address may have a constant added to it.
            let (rest, offset) = match rest.rsplit_once('+').and_then(|(r, n)| Some((r, n.strip_suffix(']')?))) {
                Some((address, n)) => (address, n.parse().unwrap_or_else(|_| panic!("offset {n}"))),
                None => (rest, 0),
            };
            let op = Op::of(name);
            if op == Op::Again {
                // A try may fail for no reason; what follows it must be a jump back.
                let (tried, at) =
                    (code.last().expect("a try"), labels.iter().find(|l| l.0 == rest).expect("a label").1);
                let same =
                    matches!((tried.args[0], guard), (Arg::Register(r), Some((Arg::Register(p), false))) if r == p);
                assert!(tried.op == Op::TryWait && at + 1 == code.len() && same, "{ptx}");
            } else if let Some(before) = code.last() {
                assert_ne!(before.op, Op::TryWait, "a failed try must be repeated: {ptx}");
            }
            let args = rest.split([',', '{', '}', '[', ']', ' ']).filter(|s| !s.is_empty());
            let args = if op == Op::Again { vec![] } else { args.map(arg).collect() };
            code.push(Ptx { guard, name: name.to_owned(), op, args, offset });
        }
        assert!(code.last().is_none_or(|c| c.op != Op::TryWait), "a failed try must be repeated: {ptx}");
        let rank = |s: &Scope| [Scope::Thread, Scope::Warp, Scope::Group].iter().position(|x| x == s);
        let scope = code.iter().map(|c| c.op.scope()).max_by_key(rank).unwrap_or(Scope::Thread);
        Asm { code, scope, out, outs, ties, args, locals: names.len() }
    }

    /// How many registers there are.
    pub fn width(&self) -> usize {
        self.outs + self.args.len() + self.locals
    }

    /// The registers at the start, as thread `t` sees them.
    pub fn enter(&self, t: &Thread, env: &mut Vec<u64>) {
        env.clear();
        env.resize(self.outs, UNDEFINED);
        for (a, tie) in self.args.iter().zip(&self.ties) {
            let v = t.raw(a);
            env.push(v);
            if let Some(n) = tie {
                env[*n] = v;
            }
        }
        env.resize(self.width(), UNDEFINED);
    }

    /// Writes the results.
    pub fn leave(&self, t: &mut Thread, env: &[u64]) {
        for (i, &v) in env[..self.outs].iter().enumerate() {
            t.set(self.out + i, v);
        }
    }
}

impl Ptx {
    /// Whether the predicate allows it.
    pub fn allowed(&self, env: &[u64]) -> bool {
        self.guard.is_none_or(|(p, wanted)| (p.value(env) & 1 == 1) == wanted)
    }
}

pub(super) fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

impl Simulator {
    /// PTX that a thread executes alone; what it waits for, if it must.
    pub fn alone(&mut self, asm: &Asm, t: &mut Thread) -> Option<Wait> {
        let mut env = std::mem::take(&mut self.env);
        asm.enter(t, &mut env);
        let wait = asm.code.iter().find_map(|p| if p.allowed(&env) { self.ptx(p, &mut env, t) } else { None });
        if wait.is_none() {
            asm.leave(t, &env);
        }
        self.env = env;
        wait
    }

    fn ptx(&mut self, p: &Ptx, env: &mut [u64], t: &mut Thread) -> Option<Wait> {
        let value = |i: usize, env: &[u64]| p.args[i].value(env);
        match p.op {
            Op::Move => env[p.args[0].register()] = value(1, env),
            Op::Trap => panic!("trap"),
            Op::Discard => {
                let (address, bytes) = (value(0, env), value(1, env) as usize);
                assert_eq!(address as usize % bytes, 0, "a part of a line");
                self.touch(t, false, address, bytes);
                self.reaches(t, address, true);
                self.memory(address, bytes).fill(0xff);
            }
            Op::Tf32 => env[0] = (env[1] as u32).wrapping_add(0x1000) as u64 & 0xffff_e000,
            Op::Setp(equal) => env[p.args[0].register()] = u64::from((value(1, env) == value(2, env)) == equal),
            Op::Load(shared, size, count) => {
                let address = value(count, env);
                assert_eq!(address as usize % (size * count), 0, "misaligned vector");
                self.touch(t, shared, address, size * count);
                if shared {
                    let other = (address / WINDOW) as usize != t.member;
                    assert!(!other || p.name.contains("::cluster"), "{} of another program's memory", p.name);
                    self.present(address);
                } else {
                    self.reaches(t, address, false);
                }
                for i in 0..count {
                    let at = address + (i * size) as u64;
                    if shared {
                        self.shared.read(at, size, t.event());
                    }
                    let bytes = if shared { self.shared.load(at, size) } else { self.memory(at, size) };
                    env[p.args[i].register()] = word(bytes);
                }
            }
            Op::Store(shared, size, count) => {
                let address = value(0, env);
                assert_eq!(address as usize % (size * count), 0, "misaligned vector");
                self.touch(t, shared, address, size * count);
                for i in 0..count {
                    let bytes = &value(1 + i, env).to_le_bytes()[..size];
                    let at = address + (i * size) as u64;
                    if shared {
                        self.shared.written(at, bytes, t.event());
                        self.shared.store(at, bytes);
                        t.remember(at, bytes);
                    } else {
                        self.reaches(t, at, true);
                        self.memory(at, size).copy_from_slice(bytes);
                    }
                }
            }
            Op::Send(size, count) => {
                let (address, barrier) = (value(0, env), value(1 + count, env));
                assert_eq!(address as usize % (size * count), 0, "misaligned vector");
                assert_eq!(address / WINDOW, barrier / WINDOW, "the mbarrier of another program");
                self.present(address);
                self.touch(t, true, address, size * count);
                for i in 0..count {
                    self.shared.store(address + (i * size) as u64, &value(1 + i, env).to_le_bytes()[..size]);
                }
                self.shared.barrier(barrier, t.id);
                self.shared.complete(barrier, (size * count) as i64);
                self.signalled = true;
            }
            Op::Atomic(size) => {
                let address = value(1, env);
                self.reaches(t, address, true);
                let old = word(self.memory(address, size));
                let more = if p.args.len() > 3 { value(3, env) } else { 0 };
                let new = atomic(&p.name, size, old, value(2, env), more);
                self.memory(address, size).copy_from_slice(&new.to_le_bytes()[..size]);
                env[p.args[0].register()] = old;
            }
            Op::Look => {
                let at = value(1, env);
                let found = self.semaphore(at);
                if t.looked == Some((at, found)) {
                    return Some(Wait::Signal(at, found));
                }
                t.looked = Some((at, found));
                env[p.args[0].register()] = found as u64;
            }
            Op::Red(size, words) => {
                let each = if p.name.ends_with("x2") { 2 } else { 1 };
                assert_eq!(value(0, env) as usize % (size * each * words), 0, "misaligned vector");
                for i in 0..each * words {
                    let address = value(0, env) + (i * size) as u64;
                    let x = value(1 + i / each, env) >> (i % each * 8 * size);
                    self.reaches(t, address, true);
                    let old = word(self.memory(address, size));
                    let new = atomic(&p.name, size, old, x, 0);
                    self.memory(address, size).copy_from_slice(&new.to_le_bytes()[..size]);
                }
            }
            Op::CopyCommit => t.copies.push(vec![]),
            Op::CopyWait => {
                let keep = value(0, env) as usize;
                let open = t.copies.pop().expect("a group is open");
                let done = t.copies.len().saturating_sub(keep);
                let groups: Vec<_> = t.copies.drain(..done).collect();
                t.copies.push(open);
                for (to, from, size, read) in groups.into_iter().flatten() {
                    let mut bytes = vec![0; size];
                    if read > 0 {
                        bytes[..read].copy_from_slice(self.memory(from, read));
                    }
                    self.shared.written(to, &bytes, t.event());
                    self.shared.store(to, &bytes);
                    t.remember(to, &bytes);
                }
            }
            Op::CopyAsync => {
                let size = value(2, env) as usize;
                let operands = p.args.len() - usize::from(p.name.contains("cache_hint"));
                let ignored = operands > 3 && value(3, env) != 0;
                let read = if ignored { 0 } else { size };
                let copy = (value(0, env), value(1, env), size, read);
                self.touch(t, true, copy.0, size);
                if read > 0 {
                    self.touch(t, false, copy.1, size);
                    self.reaches(t, copy.1, false);
                }
                // From now on it may be written to.
                let now = self.shared.load(copy.0, size).to_vec();
                self.shared.written(copy.0, &now, t.event());
                t.copies.last_mut().expect("a group is open").push(copy);
            }
            Op::Pair(half) => {
                let narrow = |x: u64| {
                    let x = f32::from_bits(x as u32);
                    u64::from(if half { half::f16::from_f32(x).to_bits() } else { half::bf16::from_f32(x).to_bits() })
                };
                env[0] = narrow(value(1, env)) << 16 | narrow(value(2, env));
            }
            Op::Paired => env[0] = paired(&p.name, value(1, env), value(2, env)),
            Op::BarrierArrive => {
                let (id, count) = (t.barrier(value(0, env)), value(1, env) as usize);
                let arrived = self.arrived.entry(id).or_default();
                *arrived += 1;
                assert!(*arrived <= count, "more threads arrive at barrier {id} than it is for");
            }
            Op::Barrier => return Some(Wait::Barrier(t.barrier(value(0, env)), value(1, env) as usize)),
            Op::BarrierInit => self.shared.init_barrier(value(0, env), value(1, env) as i64, t.id),
            Op::Arrive => {
                assert!(matches!(p.args[0], Arg::Sink), "{}", p.name);
                self.present(value(1, env));
                self.shared.arrive(value(1, env), 0, t.id);
                self.signalled = true;
            }
            Op::ArriveExpect => self.shared.arrive(value(1, env), value(2, env) as i64, t.id),
            Op::TryWait => {
                let (at, parity) = (value(1, env), value(2, env));
                if !self.shared.completed(at, parity, t.id) {
                    return Some(Wait::Mbarrier(at, parity));
                }
                env[p.args[0].register()] = 1;
            }
            Op::Again => panic!("the wait before returns when it has succeeded"),
            Op::Fence => {}
            Op::FenceProxy => t.fenced.append(&mut t.stores),
            Op::FenceInit => self.shared.fence_barriers(t.id),
            Op::OtherGrids if p.name.ends_with("wait") => t.waited = true,
            Op::OtherGrids => {
                assert!(t.waited, "the next launch may begin while the one before this one has not ended")
            }
            Op::ClusterArrive => t.arrivals += 1,
            Op::ClusterWait => return Some(Wait::Cluster),
            Op::Window => {
                let (address, member) = (value(1, env), value(2, env));
                env[p.args[0].register()] = member * WINDOW + address % WINDOW;
            }
            Op::Policy => env[p.args[0].register()] = 0,
            Op::BulkCopy => {
                let multicast = p.name.contains(".multicast::cluster");
                let n = p.args.len() - usize::from(p.name.ends_with(".L2::cache_hint")) - usize::from(multicast);
                let at = (2..n - 1).map(|i| value(i, env) as u32 as i32 as i64).collect();
                let rank = p.name["cp.async.bulk.tensor.".len()..].split('d').next().and_then(|r| r.parse().ok());
                assert_eq!(rank, Some(n - 3), "{}", p.name);
                let to = if multicast { value(n, env) } else { 1 << t.member };
                let members = (0..self.cluster).filter(|m| to >> m & 1 == 1).collect();
                let (to, barrier) = (value(0, env), value(n - 1, env));
                self.start(Copy { to, map: value(1, env), barrier, at, members }, t.id);
            }
            Op::BulkStore => {
                let n = p.args.len() - usize::from(p.name.ends_with(".L2::cache_hint"));
                let at = (1..n - 1).map(|i| value(i, env) as u32 as i32 as i64).collect();
                self.send(Outgoing::new(value(n - 1, env), value(0, env), at), t);
            }
            Op::BulkCommit => t.outgoing.push(vec![]),
            Op::BulkWait(reads) => self.wait_for_sent(value(0, env) as usize, reads, t),
            Op::Mma
            | Op::Ldmatrix
            | Op::Stmatrix
            | Op::Movmatrix
            | Op::MaxRegisters
            | Op::WgmmaFence
            | Op::WgmmaCommit
            | Op::WgmmaWait
            | Op::Wgmma => {
                panic!("{} needs other threads", p.name)
            }
        }
        None
    }
}

/// Sums, differences or products of the halves of two words. Exact in f64, or rounded to more than twice the bits.
fn paired(name: &str, x: u64, y: u64) -> u64 {
    let narrow = name.ends_with(".f16x2");
    let half = |shift: u32| {
        let [x, y] = [x, y].map(|v| (v >> shift) as u16);
        let [x, y] =
            [x, y].map(|v| if narrow { half::f16::from_bits(v).to_f64() } else { half::bf16::from_bits(v).to_f64() });
        let r = match &name[..3] {
            "add" => x + y,
            "sub" => x - y,
            _ => x * y,
        };
        let bits = if narrow { half::f16::from_f64(r).to_bits() } else { half::bf16::from_f64(r).to_bits() };
        u64::from(bits) << shift
    };
    half(0) | half(16)
}

/// What an atomic operation puts in the place of `old`.
fn atomic(name: &str, size: usize, old: u64, x: u64, other: u64) -> u64 {
    let vector = |part: &&str| !matches!(*part, "v2" | "v4" | "v8");
    let parts: Vec<&str> = name.split('.').filter(vector).collect();
    let kind = parts[parts.len() - 1].trim_end_matches("x2");
    let bits = size as u32 * 8;
    let float = kind.starts_with('f') || kind.starts_with("bf");
    let is_signed = kind.starts_with('s');
    match parts[parts.len() - 2] {
        "noftz" if kind == "f16" => {
            let [x, y] = [old, x].map(|v| half::f16::from_bits(v as u16).to_f32());
            half::f16::from_f32(x + y).to_bits() as u64
        }
        "noftz" => {
            let [x, y] = [old, x].map(|v| half::bf16::from_bits(v as u16).to_f32());
            half::bf16::from_f32(x + y).to_bits() as u64
        }
        "add" if float => b(f(old) + f(x)),
        "add" => old.wrapping_add(x),
        "exch" => x,
        "and" => old & x,
        "or" => old | x,
        "xor" => old ^ x,
        "min" if is_signed => signed(old, bits).min(signed(x, bits)) as u64,
        "max" if is_signed => signed(old, bits).max(signed(x, bits)) as u64,
        "min" => old.min(x & mask(bits)),
        "max" => old.max(x & mask(bits)),
        "cas" if old == x & mask(bits) => other,
        "cas" => old,
        other => panic!("atom {other}"),
    }
}
