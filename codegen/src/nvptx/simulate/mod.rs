//! Runs lowered kernels without a GPU: an interpreter of the subset of LLVM text and inline PTX that this back end
//! writes, thread by thread.
//!
//! Every thread runs alone until it needs others (a barrier, a shuffle, a tensor-core instruction); there they must
//! have arrived at the same place, and a warp that can go on does so before the next one moves, unless one of its
//! threads has arrived at an mbarrier. Since threads do not take turns in between, in one of the two orders of threads a
//! missing barrier shows as a wrong or unwritten value. In programs without mbarriers, also accesses to shared memory by
//! two threads without a barrier between are looked for.
//! Asynchronous copies happen when they are waited for, no sooner (or, bulk copies, at once); those to global memory when
//! all is over, if nobody waits. Results of unfinished
//! products are marked, and nobody may look at them. A program in which nobody can go on fails with a list of what
//! everybody waits for.
//!
//! Where a kernel may begin before the launch before it has ended, no thread touches other than settled memory, or writes,
//! before it has waited, and none leaves without.
//!
//! The programs of a cluster run together. Each has a window of one shared memory to itself: all that is by address works
//! across programs as it does within one.

mod asm;
mod bulk;
mod compute;
mod memory;
mod parse;
mod warp;
mod wgmma;

use super::Lowered;
use asm::Scope;
use bulk::{Copy, EncodedMap, Outgoing};
use compute::mask;
use memory::{Event, Shared};
use parse::{Code, Operand, Program, Special};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use wgmma::Flight;

/// The address of the first byte of shared memory.
const SHARED_START: u64 = 1024;

/// Bytes of addresses from one program's shared memory to the next one's, in a cluster.
const WINDOW: u64 = 1 << 20;

/// What a value's upper 16 bits are if it is the result of an unfinished product: below, its number of the order of
/// commits and its bits.
const IN_FLIGHT: u64 = 0xf17e;
/// A value that nobody has written.
const UNDEFINED: u64 = 0xf17f << 48;

fn in_flight(group: u64, bits: u64) -> u64 {
    assert!(group < 1 << 16, "too many groups of products");
    IN_FLIGHT << 48 | group << 32 | bits
}

fn flying(v: u64) -> Option<(u64, u64)> {
    (v >> 48 == IN_FLIGHT).then_some((v >> 32 & 0xffff, v & 0xffff_ffff))
}

/// A value that must be there.
fn real(v: u64, what: &str) -> u64 {
    if v >> 49 == IN_FLIGHT >> 1 {
        let why = if v == UNDEFINED { "a value that nobody wrote" } else { "the result of an unfinished product" };
        panic!("{what} looks at {why}");
    }
    v
}

/// What a thread waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum Wait {
    Nothing,
    /// The rest of its warp, or of its warpgroup.
    Warp,
    Group,
    /// Which, and for how many threads.
    Barrier(u64, usize),
    /// All threads of the cluster that have not left, until they have arrived as often.
    Cluster,
    /// Which, and the parity of the phase.
    Mbarrier(u64, u64),
    /// A semaphore's address, and its value until now.
    Signal(u64, i32),
    Exited,
}

pub struct Thread {
    /// Its number in the cluster; the first of each program is that of a warpgroup.
    id: usize,
    /// Its program's place in the cluster.
    member: usize,
    pc: usize,
    wait: Wait,
    /// Whether the launch before has ended for it.
    waited: bool,
    /// The semaphore that it has looked at last, and what it saw.
    looked: Option<(u64, i32)>,
    /// Barriers that it has passed, and those of its warp.
    barriers: usize,
    warp_barriers: usize,
    /// How often it has arrived at the cluster's barrier.
    arrivals: usize,
    values: Vec<u64>,
    block: usize,
    previous: usize,
    /// Copies by `cp.async`, grouped by commits; the last group is open.
    copies: Vec<Vec<(u64, u64, usize, usize)>>,
    /// Bulk copies to global memory, grouped by commits; the last group is open.
    outgoing: Vec<Vec<Outgoing>>,
    /// Ordinary stores to shared memory that asynchronous instructions do not see: before a fence, and after one.
    stores: Vec<(u64, [u8; 16], usize)>,
    fenced: Vec<(u64, [u8; 16], usize)>,
    /// Groups of products that were committed, and that are known to have finished.
    committed: u64,
    landed: u64,
    /// Per slot, the last group of products that reads it as a register.
    held: Vec<u64>,
    keeps_stores: bool,
}

impl Thread {
    fn raw(&self, o: &Operand) -> u64 {
        match o {
            Operand::Slot(s) => self.values[*s],
            Operand::Immediate(x) => *x,
        }
    }

    fn get(&self, o: &Operand) -> u64 {
        match o {
            Operand::Slot(s) => real(self.values[*s], "an instruction"),
            Operand::Immediate(x) => *x,
        }
    }

    fn set(&mut self, slot: usize, v: u64) {
        if let Some(&group) = self.held.get(slot) {
            assert!(group <= self.landed, "a register is written while an unfinished product reads it");
        }
        self.values[slot] = v;
    }

    /// A product of this group reads a slot.
    fn hold(&mut self, slot: usize, group: u64) {
        self.held.resize(self.values.len(), 0);
        self.held[slot] = group;
    }

    /// A named barrier of its program's.
    fn barrier(&self, id: u64) -> u64 {
        16 * self.member as u64 + id
    }

    /// What it does now.
    fn event(&self) -> Event {
        Event { thread: self.id, barriers: self.barriers, warp_barriers: self.warp_barriers }
    }

    /// An ordinary store to shared memory.
    fn remember(&mut self, address: u64, bytes: &[u8]) {
        if self.keeps_stores {
            let mut all = [0; 16];
            all[..bytes.len()].copy_from_slice(bytes);
            self.stores.push((address, all, bytes.len()));
        }
    }

    fn jump(&mut self, program: &Program, label: usize) {
        self.previous = std::mem::replace(&mut self.block, label);
        self.pc = program.labels[label];
    }
}

/// An access of a thread by itself: by which instruction, to shared or global memory, where.
#[derive(Clone, Copy, Debug)]
pub struct Touch {
    pub thread: usize,
    pub pc: usize,
    pub shared: bool,
    pub address: u64,
    pub bytes: usize,
}

/// When things happen that the hardware leaves open.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// The last threads first; and the last bulk copies.
    pub backwards: bool,
    /// Bulk copies happen at once.
    pub early: bool,
}

impl Order {
    /// The first two differ in both.
    pub const ALL: [Order; 4] = [
        Order { backwards: false, early: false },
        Order { backwards: true, early: true },
        Order { backwards: false, early: true },
        Order { backwards: true, early: false },
    ];
}

pub struct Simulator {
    program: Rc<Program>,
    maps_wanted: Vec<super::TensorMap>,
    threads: usize,
    /// Programs that run together: of a kernel in which all meet, those of the whole grid, which has one axis.
    cluster: usize,
    /// Whether all meet; the last of the buffers is their word.
    meets: bool,
    /// Of each buffer whether it may be read before the launch before has ended; empty if nothing is done before.
    settled: Vec<bool>,
    shared_bytes: usize,
    /// Whether asynchronous instructions read shared memory.
    asynchronous: bool,
    /// Whether only barriers order accesses to shared memory.
    traced: bool,
    pub global: Vec<Vec<u8>>,
    /// What threads access, if anybody wants to know.
    pub touches: Option<Vec<Touch>>,
    // Of the program that runs.
    shared: Shared,
    maps: Vec<EncodedMap>,
    under_way: VecDeque<Copy>,
    flights: Vec<Flight>,
    /// Whether the thread that moves has just arrived at an mbarrier.
    signalled: bool,
    /// How many threads have arrived at each named barrier and gone on.
    arrived: BTreeMap<u64, usize>,
    /// How many threads of each program have left.
    left: Vec<usize>,
    backwards: bool,
    early: bool,
    place: [u32; 3],
    grid: [u32; 3],
    env: Vec<u64>,
}

/// The simulated address of a buffer.
pub fn address_of(buffer: usize) -> u64 {
    (buffer as u64 + 1) << 32
}

impl Simulator {
    pub fn new(lowered: &Lowered, mut global: Vec<Vec<u8>>) -> Simulator {
        global.extend(lowered.meets.then(|| vec![0; 4]));
        Simulator {
            program: Rc::new(Program::parse(&lowered.text)),
            maps_wanted: lowered.maps.clone(),
            threads: lowered.threads as usize,
            cluster: lowered.cluster as usize,
            meets: lowered.meets,
            settled: lowered.settled.clone(),
            shared_bytes: lowered.shared_bytes as usize,
            asynchronous: ["wgmma", "bulk_group"].iter().any(|a| lowered.text.contains(a)),
            traced: !["mbarrier", "bar.sync", "bar.arrive"].iter().any(|b| lowered.text.contains(b)),
            global,
            touches: None,
            shared: Shared::default(),
            maps: vec![],
            under_way: VecDeque::new(),
            flights: vec![],
            signalled: false,
            arrived: BTreeMap::new(),
            left: vec![],
            backwards: false,
            early: false,
            place: [0; 3],
            grid: [0; 3],
            env: vec![],
        }
    }

    /// Programs of such a grid that run together.
    pub fn run_together(&self, grid: [u32; 3]) -> usize {
        if self.meets { grid[0] as usize } else { self.cluster }
    }

    /// Threads from one program of a cluster to the next.
    fn stride(&self) -> usize {
        self.threads.next_multiple_of(128)
    }

    /// Runs one program, or those that run together from it on. `params`: the launch slots.
    pub fn run(&mut self, params: &[u64], place: [u32; 3], grid: [u32; 3], order: Order) {
        let program = self.program.clone();
        assert!(!self.meets || grid[1..] == [1, 1], "programs that meet lie along one axis");
        self.cluster = self.run_together(grid);
        self.shared = Shared::new((self.cluster - 1) * WINDOW as usize + self.shared_bytes, self.traced);
        self.arrived.clear();
        self.left = vec![0; self.cluster];
        assert_eq!(place[0] as usize % self.cluster, 0, "a cluster begins at a multiple of its size");
        self.maps = self.maps_wanted.iter().map(|m| EncodedMap::new(m, params)).collect();
        (self.backwards, self.early, self.place, self.grid) = (order.backwards, order.early, place, grid);
        let mut values = vec![UNDEFINED; program.count];
        for (i, &p) in params.iter().enumerate() {
            if let Some(slot) = program.find(&format!("%p{i}")) {
                values[slot] = p;
            }
        }
        if let Some(word) = program.find(super::grid::WORD) {
            values[word] = address_of(self.global.len() - 1);
        }
        let base = program.find("%shared_base");
        let (per_program, stride) = (self.threads, self.stride());
        let mut threads: Vec<Thread> = (0..self.cluster * per_program)
            .map(|number| (number / per_program, number % per_program))
            .map(|(member, id)| Thread {
                id: member * stride + id,
                member,
                pc: 0,
                wait: Wait::Nothing,
                waited: self.settled.is_empty(),
                looked: None,
                barriers: 0,
                warp_barriers: 0,
                arrivals: 0,
                values: values.clone(),
                block: 0,
                previous: 0,
                copies: vec![vec![]],
                outgoing: vec![vec![]],
                stores: vec![],
                fenced: vec![],
                committed: 0,
                landed: 0,
                held: vec![],
                keeps_stores: self.asynchronous,
            })
            .collect();
        for (t, base) in threads.iter_mut().flat_map(|t| base.map(|b| (t, b))) {
            t.values[base] = SHARED_START + t.member as u64 * WINDOW;
        }
        while !threads.iter().all(|t| t.wait == Wait::Exited) {
            let moved = self.move_warps(&program, &mut threads)
                | self.move_groups(&program, &mut threads)
                | self.move_barriers(&mut threads);
            if !moved && !self.land() {
                panic!("nobody can go on: {}", self.describe(&program, &threads));
            }
        }
        for t in &mut threads {
            self.wait_for_sent(0, false, t);
        }
        assert!(self.under_way.is_empty(), "copies that nobody waited for");
        assert!(self.flights.is_empty(), "products that nobody waited for");
    }

    /// An access of a thread, by an instruction of its own, to global memory.
    fn reaches(&self, t: &Thread, address: u64, writes: bool) {
        let settled = || self.settled[(address >> 32) as usize - 1] && !writes;
        assert!(t.waited || settled(), "{address:#x} is touched before the launch before has ended");
    }

    fn touch(&mut self, t: &Thread, shared: bool, address: u64, bytes: usize) {
        if let Some(touches) = &mut self.touches {
            touches.push(Touch { thread: t.id, pc: t.pc, shared, address, bytes });
        }
    }

    /// Every warp as far as it comes, one after the other; whether any moved.
    fn move_warps(&mut self, program: &Program, threads: &mut [Thread]) -> bool {
        let mut moved = false;
        for w in order(threads.len() / 32, self.backwards) {
            let warp = &mut threads[32 * w..][..32];
            'warp: loop {
                for lane in order(32, self.backwards) {
                    let t = &mut warp[lane];
                    if let Wait::Mbarrier(at, parity) = t.wait
                        && self.shared.completed(at, parity, t.id)
                    {
                        t.wait = Wait::Nothing;
                    }
                    if let Wait::Signal(at, seen) = t.wait
                        && self.semaphore(at) != seen
                    {
                        t.wait = Wait::Nothing;
                    }
                    if t.wait == Wait::Nothing {
                        self.advance(program, t);
                        moved = true;
                    }
                    // Whoever waits for that goes first.
                    if std::mem::take(&mut self.signalled) {
                        break 'warp;
                    }
                }
                let pc = warp[0].pc;
                if !warp.iter().all(|t| t.wait == Wait::Warp && t.pc == pc) {
                    break;
                }
                self.together(&program.code[pc], warp);
                release(warp);
                moved = true;
            }
        }
        moved
    }

    fn semaphore(&mut self, address: u64) -> i32 {
        i32::from_le_bytes(self.memory(address, 4)[..4].try_into().expect("four bytes"))
    }

    fn move_groups(&mut self, program: &Program, threads: &mut [Thread]) -> bool {
        let mut moved = false;
        let groups = self.threads / 128;
        for g in order(self.cluster * groups, self.backwards) {
            let group = &mut threads[g / groups * self.threads + 128 * (g % groups)..][..128];
            let pc = group[0].pc;
            if group.iter().all(|t| t.wait == Wait::Group && t.pc == pc) {
                let Code::Asm(asm) = &program.code[pc] else { unreachable!("PTX only is for warpgroups") };
                self.as_group(asm, group);
                release(group);
                moved = true;
            }
        }
        moved
    }

    fn move_barriers(&mut self, threads: &mut [Thread]) -> bool {
        let mut waiting: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (i, t) in threads.iter().enumerate() {
            if let Wait::Barrier(id, _) = t.wait {
                waiting.entry(id).or_default().push(i);
            }
        }
        let mut moved = self.move_cluster(threads);
        for members in waiting.into_values() {
            let first = &threads[members[0]];
            let (pc, wait) = (first.pc, first.wait);
            let Wait::Barrier(id, count) = wait else { unreachable!("just looked at") };
            let arrived = self.arrived.get(&id).copied().unwrap_or(0);
            if members.len() + arrived < count {
                continue;
            }
            assert_eq!(members.len() + arrived, count, "too many threads at barrier {id}");
            self.arrived.remove(&id);
            for m in members {
                let t = &mut threads[m];
                assert!(t.pc == pc && t.wait == wait, "threads meet at different barriers");
                self.shared.publish(&mut t.fenced);
                t.barriers += 1;
                (t.wait, t.pc) = (Wait::Nothing, pc + 1);
            }
            if count == self.threads {
                self.shared.share_barriers();
            }
            moved = true;
        }
        moved
    }

    /// Lets those go on that wait for a cluster in which all that are left have arrived.
    fn move_cluster(&mut self, threads: &mut [Thread]) -> bool {
        let arrived = threads.iter().filter(|t| t.wait != Wait::Exited).map(|t| t.arrivals).min().unwrap_or(0);
        // Programs may have passed different numbers of barriers of their own.
        let barriers = threads.iter().map(|t| t.barriers).max().unwrap_or(0) + 1;
        let mut moved = false;
        for t in threads.iter_mut().filter(|t| t.wait == Wait::Cluster && t.arrivals <= arrived) {
            self.shared.publish(&mut t.fenced);
            t.barriers = barriers;
            (t.wait, t.pc) = (Wait::Nothing, t.pc + 1);
            moved = true;
        }
        if moved {
            self.shared.share_barriers();
        }
        moved
    }

    /// Whose shared memory an address is in: that of a program that has not left.
    fn present(&self, address: u64) {
        let member = (address / WINDOW) as usize;
        assert!(self.left[member] < self.threads, "{address:#x} is in the shared memory of a program that has left");
    }

    /// What everybody waits for.
    fn describe(&self, program: &Program, threads: &[Thread]) -> String {
        let mut at: BTreeMap<(Wait, usize), Vec<usize>> = BTreeMap::new();
        for t in threads.iter().filter(|t| t.wait != Wait::Exited) {
            at.entry((t.wait, t.pc)).or_default().push(t.id);
        }
        let mut out = String::new();
        for ((wait, pc), ids) in at {
            let (first, last) = (ids[0], ids[ids.len() - 1]);
            out += &format!("\n  {} threads ({first} to {last}): {wait:?} at `{}`", ids.len(), program.lines[pc]);
            if let Wait::Mbarrier(at, _) = wait {
                out += &format!(", which is {:?}", self.shared.barriers[&at]);
            }
        }
        out
    }

    /// One thread, until it needs others.
    fn advance(&mut self, program: &Program, t: &mut Thread) {
        let mut buffer = [0; 4];
        loop {
            match &program.code[t.pc] {
                Code::Move(out, x) => t.set(*out, t.raw(x)),
                Code::Binary(op, bits, out, x, y) => {
                    let (x, y) = (t.get(x), t.get(y));
                    let v = match bits {
                        0 => op(0, x, y),
                        n => op(*n, x & mask(*n), y & mask(*n)) & mask(*n),
                    };
                    t.set(*out, v);
                }
                Code::Icmp(op, bits, out, x, y) => {
                    let (x, y) = (t.get(x) & mask(*bits), t.get(y) & mask(*bits));
                    t.set(*out, u64::from(op(x, y, compute::signed(x, *bits), compute::signed(y, *bits))));
                }
                Code::Fcmp(op, out, x, y) => t.set(*out, u64::from(op(compute::f(t.get(x)), compute::f(t.get(y))))),
                Code::Select(out, c, x, y) => t.set(*out, if t.get(c) & 1 == 1 { t.get(x) } else { t.get(y) }),
                Code::Function(function, out, args) => {
                    for (place, a) in buffer.iter_mut().zip(args) {
                        *place = t.get(a);
                    }
                    t.set(*out, function(&buffer[..args.len()]));
                }
                Code::Special(what, out) => {
                    let v = match what {
                        Special::Thread => (t.id - t.member * self.stride()) as u64,
                        Special::Program(0) => u64::from(self.place[0]) + t.member as u64,
                        Special::Program(axis) => u64::from(self.place[*axis]),
                        Special::Programs(axis) => u64::from(self.grid[*axis]),
                    };
                    t.set(*out, v);
                }
                Code::Phi(..) => {
                    // All phis of a block at once.
                    let mut values = vec![];
                    while let Code::Phi(out, edges) = &program.code[t.pc] {
                        let edge = edges.iter().find(|e| e.1 == t.previous).expect("an edge from the block before");
                        values.push((*out, t.raw(&edge.0)));
                        t.pc += 1;
                    }
                    for (out, v) in values {
                        t.set(out, v);
                    }
                    continue;
                }
                Code::Stack(out, x) => t.set(*out, t.get(x)),
                Code::Jump(label) => {
                    t.jump(program, *label);
                    continue;
                }
                Code::Branch(c, yes, no) => {
                    t.jump(program, if t.get(c) & 1 == 1 { *yes } else { *no });
                    continue;
                }
                Code::Return => {
                    let read = t.outgoing.iter().flatten().all(Outgoing::is_read);
                    assert!(read, "a thread leaves before its copies have read shared memory");
                    assert!(t.waited, "a thread leaves before the launch before has ended");
                    t.wait = Wait::Exited;
                    self.left[t.member] += 1;
                    return;
                }
                Code::Barrier => {
                    t.wait = Wait::Barrier(t.barrier(0), self.threads);
                    return;
                }
                Code::WarpBarrier | Code::Shuffle(..) => {
                    t.wait = Wait::Warp;
                    return;
                }
                Code::Asm(asm) => {
                    let wait = match asm.scope {
                        Scope::Thread => self.alone(asm, t),
                        Scope::Warp => Some(Wait::Warp),
                        Scope::Group => Some(Wait::Group),
                    };
                    if let Some(wait) = wait {
                        t.wait = wait;
                        return;
                    }
                    if self.signalled {
                        t.pc += 1;
                        return;
                    }
                }
            }
            t.pc += 1;
        }
    }
}

/// Numbers up to `n`, from either end.
fn order(n: usize, backwards: bool) -> impl Iterator<Item = usize> {
    (0..n).map(move |i| if backwards { n - 1 - i } else { i })
}

/// Threads that have executed an instruction together go on.
fn release(threads: &mut [Thread]) {
    for t in threads {
        (t.wait, t.pc) = (Wait::Nothing, t.pc + 1);
    }
}
