//! Loops whose loads run ahead by `cp.async` (`gpu::pipeline`) into a ring of buffers, and `ldmatrix` out of one.
//!
//! At the start of iteration i, this thread's copies for i are waited for and a barrier makes everybody's visible. The
//! same barrier says that everybody is done with iteration i - 1, whose buffer the copies for i + stages - 1 then
//! fill. Copies beyond the last iteration are skipped; their groups are empty, so that the count of groups holds.

use super::lower::{Lower, elementwise};
use super::memory::Box;
use super::shared::EVERYWHERE;
use super::text::{V, constant, int};
use crate::gpu::assign::SharedOperand;
use crate::gpu::facts;
use crate::gpu::layout::{Ldmatrix, LinearLayout};
use crate::gpu::panels::Panels;
use crate::gpu::pipeline::{AsyncCopy, StagedLoop, fetches, source};
use crate::ir::{DType, Def, OpId, OpKind, RegionId, ValueId};
use std::collections::HashMap;

/// The least bytes of a copy; others have 8 or 16.
const MIN_COPY: usize = 4;

/// Where the current iteration's tile of a staged load lies.
#[derive(Clone)]
pub(super) struct Staged {
    pub panels: Panels,
    /// 32-bit address of its buffer.
    pub address: V,
}

/// An operand in shared memory, of which `ldmatrix` fetches words when they are needed.
pub(super) struct FetchedOperand {
    plan: Ldmatrix,
    /// The lane's address.
    address: V,
    base: V,
    words: Vec<Option<V>>,
}

/// The ring of a loop being lowered.
pub(super) struct Ring<'k> {
    pub plan: &'k StagedLoop,
    body: RegionId,
    step: V,
    hi: V,
    /// Byte offset of each load's first buffer.
    starts: Vec<usize>,
}

/// The slots of a loop's loads that run ahead in each thread's own, used in turns.
#[derive(Clone)]
pub(super) struct Slots {
    pub stages: usize,
    /// Whether all iterations have their own.
    pub all: bool,
    body: RegionId,
    lo: V,
    step: V,
    hi: V,
    /// Byte offset of the first thread's first slot.
    start: usize,
    /// Bytes from the slots of one iteration to those of the next.
    bytes: usize,
    loads: Vec<SlotLoad>,
    /// Whether a later loop's are used.
    borrowed: bool,
}

#[derive(Clone)]
struct SlotLoad {
    load: OpId,
    /// Bytes of an access, and so of a slot: threads' slots of one access lie side by side.
    bytes: usize,
    /// The byte offset of every access's slots.
    offsets: Vec<usize>,
    /// By how much its coordinates grow with an iteration, if that is known.
    growth: Option<Vec<u32>>,
}

/// A load's slots for one iteration: the address of every access's.
pub(super) type Slot = Vec<V>;

impl<'k> Lower<'k> {
    /// Takes the buffers and starts the first copies.
    pub(super) fn start_ring(&mut self, id: OpId, lo: &V, hi: &V, step: &V) -> Option<Ring<'k>> {
        let plan = self.plan.ahead.loops.get(&id)?;
        let body = self.k.op(id).regions[0];
        if !self.scratch_busy.is_empty() {
            self.barrier();
        }
        let mut starts = vec![];
        for load in &plan.loads {
            self.shared_top = self.shared_top.next_multiple_of(1024);
            starts.push(self.shared_top);
            self.shared_top += plan.stages * load.bytes;
        }
        self.shared_max = self.shared_max.max(self.shared_top);
        let ring = Ring { plan, body, step: step.clone(), hi: hi.clone(), starts };
        for stage in 0..plan.stages - 1 {
            let ahead = self.w.bin("mul", "i32", step, &int(stage));
            let i = self.w.bin("add", "i32", lo, &ahead);
            self.issue(&ring, &i, &int(stage));
        }
        Some(ring)
    }

    /// At the start of an iteration: `i` its counter, `stage` its place in the ring.
    pub(super) fn turn_ring(&mut self, ring: &Ring<'k>, i: &V, stage: &V) {
        let stages = ring.plan.stages;
        self.w.asm_effect("void", &format!("cp.async.wait_group {};", stages - 2), "", &[]);
        if self.feeds_wgmma(ring) {
            self.w.asm_effect("void", "fence.proxy.async.shared::cta;", "", &[]);
        }
        self.barrier();
        let ahead = self.w.bin("mul", "i32", &ring.step, &int(stages - 1));
        let next = self.w.bin("add", "i32", i, &ahead);
        let slot = self.previous_stage(stages, stage);
        self.issue(ring, &next, &slot);
        for (load, &start) in ring.plan.loads.iter().zip(&ring.starts) {
            let base = self.shared_base();
            let address = self.buffer(&base, start, load.bytes, stage);
            self.staged.insert(load.load, Staged { panels: load.panels.clone(), address });
        }
    }

    /// Whether a product by warpgroups reads from the ring: it does so by another way than the copies take.
    fn feeds_wgmma(&self, ring: &Ring<'k>) -> bool {
        let ours = |load: OpId| ring.plan.loads.iter().any(|l| l.load == load);
        let reads = |s: &SharedOperand| matches!(*s, SharedOperand::Ring { load, .. } if ours(load));
        self.plan.shared_operands.values().any(reads)
    }

    /// The place, of so many, of the iteration after the one at `stage`.
    pub(super) fn next_stage(&mut self, stages: usize, stage: &V) -> V {
        let next = self.w.bin("add", "i32", stage, &int(1));
        let wrap = self.w.icmp("eq", "i32", &next, &int(stages));
        self.w.select(&wrap, "i32", &int(0), &next)
    }

    /// And of the one before, which is that of the iteration `stages - 1` ahead.
    fn previous_stage(&mut self, stages: usize, stage: &V) -> V {
        let first = self.w.icmp("eq", "i32", stage, &int(0));
        let before = self.w.bin("sub", "i32", stage, &int(1));
        self.w.select(&first, "i32", &int(stages - 1), &before)
    }

    /// After the loop: nothing is under way, and the buffers are free once everybody has arrived.
    pub(super) fn end_ring(&mut self, ring: &Ring<'k>) {
        self.w.asm_effect("void", "cp.async.wait_group 0;", "", &[]);
        self.scratch_busy.push(EVERYWHERE);
        for load in &ring.plan.loads {
            self.staged.remove(&load.load);
        }
        self.shared_top = ring.starts[0];
    }

    fn buffer(&mut self, base: &V, start: usize, bytes: usize, stage: &V) -> V {
        let offset = self.w.bin("mul", "i32", stage, &int(bytes));
        let offset = self.w.bin("add", "i32", &offset, &int(start));
        self.w.bin("add", "i32", base, &offset)
    }

    /// Where shared memory begins, for copies to it. What the threads of a warp have in common, as this, the assembler gives a
    /// uniform register, and that together with a cache policy makes an instruction that an H100 finds illegal. So it depends
    /// on what the assembler takes for each thread's own: whether a thread's index, shuffled to where it is, is itself.
    fn copies_base(&mut self, with_policy: bool) -> V {
        let base = self.shared_base();
        if !with_policy {
            return base;
        }
        if self.own_shared_base.is_none() {
            let tid = self.tid();
            self.w.declare("i32 @llvm.nvvm.shfl.sync.idx.i32(i32, i32, i32, i32)");
            let same = self
                .w
                .hoist(format_args!("call i32 @llvm.nvvm.shfl.sync.idx.i32(i32 -1, i32 {tid}, i32 {tid}, i32 31)"));
            let same = self.w.hoist(format_args!("icmp eq i32 {same}, {tid}"));
            self.own_shared_base = Some(self.w.hoist(format_args!("select i1 {same}, i32 {base}, i32 0")));
        }
        self.own_shared_base.clone().expect("just set")
    }

    /// Starts the copies of the iteration with counter `i`, if there is one, into buffers `slot`; one group.
    fn issue(&mut self, ring: &Ring<'k>, i: &V, slot: &V) {
        let exists = self.w.icmp("slt", "i32", i, &ring.hi);
        for (load, &start) in ring.plan.loads.iter().zip(&ring.starts) {
            let op = self.k.op(load.load);
            let AsyncCopy { layout, access } = &load.copy;
            let mut known = HashMap::new();
            let coords: Vec<V> =
                op.operands[1..].iter().map(|&c| self.scalar_at(ring.body, c, i, &mut known)).collect();
            let view = self.view(op.operands[0]);
            let policy = self.eviction_policy(view.param);
            let owner = self.owner(layout);
            let enabled = self.w.and(owner, Some(exists.clone())).expect("two conditions");
            let skip = layout.redundant().register;
            let (copies, dtype) = (layout.vectorise(access.axis, access.vector), self.k.ty(op.results[0]).dtype());
            self.stand_at(op.loc);
            self.global_access(op.operands[0], layout, *access);
            self.shared_tile("copies to a ring", dtype, layout, &load.panels.layout, &copies);
            let mut place = Box::new(self, view, layout, &coords, 2);
            let base = self.copies_base(policy.is_some());
            let buffer = self.buffer(&base, start, load.bytes, slot);
            let shared = &load.panels.layout;
            let thread = self.thread_bytes(layout.thread_bases().map(|b| 2 * shared.offset(b)).collect());
            for group in place.groups(*access) {
                if group[0] & skip != 0 {
                    continue;
                }
                let mask = place.mask(self, group[0]);
                let from = place.address(self, group[0]);
                let offset = 2 * shared.offset(layout.flat(group[0], 0, 0));
                let to = self.shared_place(&buffer, &thread, offset);
                self.copy_async("cg", (&to, &from), (16, mask.as_ref()), Some(&enabled), policy.as_ref());
            }
        }
        self.w.asm_effect("void", "cp.async.commit_group;", "", &[]);
    }

    /// Starts a copy of `bytes` by this thread where `enabled`; of zeros where it is not `inside`: elements outside of the
    /// view. `level`: `cg` passes by the first-level cache, `ca` does not.
    fn copy_async(
        &mut self,
        level: &str,
        (to, from): (&V, &V),
        (bytes, inside): (usize, Option<&V>),
        enabled: Option<&V>,
        policy: Option<&(&'static str, V)>,
    ) {
        let mut args = vec![("i32", to), ("i64", from)];
        let (mut constraints, mut hint, mut last, mut guard) = ("r,l".to_owned(), "", String::new(), String::new());
        let mut operand = |constraint: &str, ty: &'static str, v| {
            constraints.push(',');
            constraints.push_str(constraint);
            args.push((ty, v));
            args.len() - 1
        };
        let outside = inside.map(|inside| self.w.bin("xor", "i1", inside, &"true".into()));
        if let Some(outside) = &outside {
            last.push_str(&format!(", ${}", operand("b", "i1", outside)));
        }
        // Shorter copies do not take a policy: an illegal instruction on an H100, though the assembler has nothing against
        // it.
        if let Some((modifier, policy)) = policy.filter(|_| bytes == 16) {
            hint = *modifier;
            last.push_str(&format!(", ${}", operand("l", "i64", policy)));
        }
        if let Some(enabled) = enabled {
            guard = format!("@${} ", operand("b", "i1", enabled));
        }
        let ptx = format!("{guard}cp.async.{level}.shared.global{hint} [$0], [$1], {bytes}{last};");
        self.w.asm_effect("void", &ptx, &constraints, &args);
    }

    /// A scalar of the loop's body as it is in the iteration with counter `i`.
    fn scalar_at(&mut self, body: RegionId, v: ValueId, i: &V, known: &mut HashMap<ValueId, V>) -> V {
        let k = self.k;
        if let Some(x) = known.get(&v) {
            return x.clone();
        }
        let value = match k.def(v) {
            Def::Arg(region, 0) if region == body => i.clone(),
            Def::Result(op, _) if k.region(body).ops.contains(&op) => {
                let op = k.op(op);
                let xs: Vec<V> = op.operands.iter().map(|&o| self.scalar_at(body, o, i, known)).collect();
                let dtype = k.ty(v).dtype();
                match &op.kind {
                    OpKind::Const(bits) => constant(dtype, *bits),
                    kind => {
                        let refs: Vec<&V> = xs.iter().collect();
                        elementwise(&mut self.w, kind, k.ty(op.operands[0]).dtype(), dtype, &refs)
                    }
                }
            }
            _ => self.scalar(v),
        };
        known.insert(v, value.clone());
        value
    }

    /// The slots of a loop's loads that run ahead in each thread's own, the first copies on their way.
    pub(super) fn start_slots(&mut self, id: OpId, lo: &V, hi: &V, step: &V) -> Option<Slots> {
        if let Some(slots) = self.lent.remove(&id) {
            return Some(slots);
        }
        let borrowed = self.plan.ahead.borrowed.get(&id);
        let Some(borrowed) = borrowed.filter(|b| b.loads.iter().all(|&(own, lent)| self.alike(own, lent))) else {
            return self.take_slots(id, lo, hi, step);
        };
        // Both loops have the same bounds.
        let slots = match self.lent.get(&borrowed.owner) {
            Some(slots) => slots.clone(),
            None => self.take_slots(borrowed.owner, lo, hi, step)?,
        };
        let load = |&(own, lent): &(OpId, OpId)| {
            let slot = slots.loads.iter().find(|l| l.load == lent).expect("alike");
            SlotLoad { load: own, ..slot.clone() }
        };
        let loads = borrowed.loads.iter().map(load).collect();
        let own = Slots { loads, borrowed: true, ..slots.clone() };
        self.lent.insert(borrowed.owner, slots);
        Some(own)
    }

    /// Whether two loads of one shape are made by the same accesses, through slots.
    fn alike(&self, a: OpId, b: OpId) -> bool {
        let [of_a, of_b] = [a, b].map(|load| self.k.op(load).results[0]);
        if !self.demanded(of_a) || !self.demanded(of_b) {
            return false;
        }
        let layout = |v: ValueId| &self.plan.versions[v.index()][0];
        let (accesses, bytes) = self.box_accesses(a);
        layout(of_a) == layout(of_b) && (accesses, bytes) == self.box_accesses(b) && bytes >= MIN_COPY
    }

    /// Takes the slots of a loop, and starts the first copies.
    fn take_slots(&mut self, id: OpId, lo: &V, hi: &V, step: &V) -> Option<Slots> {
        let mut bytes = 0;
        let mut loads = vec![];
        let plan = self.plan.ahead.slots.get(&id)?;
        for &load in &plan.loads {
            if self.demanded(self.k.op(load).results[0])
                && let (accesses, width @ MIN_COPY..) = self.box_accesses(load)
            {
                let offsets = (0..accesses.len()).map(|i| bytes + width * self.threads() * i).collect();
                bytes += width * self.threads() * accesses.len();
                let growth = self.growth(id, load);
                loads.push(SlotLoad { load, bytes: width, offsets, growth });
            }
        }
        if loads.is_empty() {
            return None;
        }
        if !self.scratch_busy.is_empty() {
            self.barrier();
        }
        let start = self.shared_top.next_multiple_of(128);
        let (stages, all) = (plan.stages, plan.all);
        self.shared_top = start + stages * bytes;
        self.shared_max = self.shared_max.max(self.shared_top);
        let body = self.k.op(id).regions[0];
        let (lo, hi, step) = (lo.clone(), hi.clone(), step.clone());
        let slots = Slots { stages, all, body, lo, step, hi, start, bytes, loads, borrowed: false };
        // Memory answers in order: what the kernel has asked for before would wait for these copies if the assembler put it
        // behind them.
        self.warp_barrier();
        if all {
            self.fill_all_slots(&slots);
            return Some(slots);
        }
        for stage in 0..stages - 1 {
            let i = self.counter_at(&slots, stage);
            self.fill_slots(&slots, &i, &int(stage));
        }
        Some(slots)
    }

    /// The counter of an iteration, the first being 0.
    fn counter_at(&mut self, slots: &Slots, iteration: usize) -> V {
        let ahead = self.w.bin("mul", "i32", &slots.step, &int(iteration));
        self.w.bin("add", "i32", &slots.lo, &ahead)
    }

    /// By how much a load's coordinates grow with an iteration of a loop.
    fn growth(&self, id: OpId, load: OpId) -> Option<Vec<u32>> {
        let k = self.k;
        let (body, step) = (k.op(id).regions[0], k.constant(k.op(id).operands[2])?.0 as u32);
        let of = |&c: &ValueId| facts::growth(k, body, c)?.checked_mul(step).filter(|&g| g < 1 << 16);
        k.op(load).operands[1..].iter().map(of).collect()
    }

    /// At the start of an iteration: `i` its counter, `stage` which of its slots a thread uses.
    pub(super) fn turn_slots(&mut self, slots: &Slots, i: &V, stage: &V) {
        // Every iteration makes a group of copies, if an empty one: those before it are to be there, and its own.
        let later = if slots.all { slots.stages - 1 } else { slots.stages - 2 };
        self.w.asm_effect("void", &format!("cp.async.wait_group {later};"), "", &[]);
        for load in &slots.loads {
            let base = self.shared_base();
            let places = load.offsets.iter().map(|&o| self.slot(&base, slots, load, o, stage)).collect();
            self.slots.insert(load.load, places);
        }
        if slots.all {
            self.w.asm_effect("void", "cp.async.commit_group;", "", &[]);
            return;
        }
        let ahead = self.w.bin("mul", "i32", &slots.step, &int(slots.stages - 1));
        let next = self.w.bin("add", "i32", i, &ahead);
        let other = self.previous_stage(slots.stages, stage);
        self.fill_slots(slots, &next, &other);
    }

    pub(super) fn end_slots(&mut self, slots: &Slots) {
        if slots.borrowed {
            return;
        }
        self.scratch_busy.push(EVERYWHERE);
        self.shared_top = slots.start;
    }

    /// Starts the copies of the iteration with counter `i`, if there is one.
    fn fill_slots(&mut self, slots: &Slots, i: &V, stage: &V) {
        let exists = self.w.icmp("slt", "i32", i, &slots.hi);
        let mut known = HashMap::new();
        for load in &slots.loads {
            let mut place = self.slot_box(slots, load, i, &mut known);
            self.fill_slot(slots, load, &mut place, stage, Some(&exists));
        }
        self.w.asm_effect("void", "cp.async.commit_group;", "", &[]);
    }

    /// Starts the copies of all iterations, each of which has slots. Their places are found from those of the first, if
    /// coordinates grow with the counter.
    fn fill_all_slots(&mut self, slots: &Slots) {
        let mut known = HashMap::new();
        let mut places: Vec<Box> =
            slots.loads.iter().map(|load| self.slot_box(slots, load, &slots.lo, &mut known)).collect();
        for stage in 0..slots.stages {
            let mut known = HashMap::new();
            for (load, place) in slots.loads.iter().zip(&mut places) {
                if let Some(growth) = &load.growth {
                    place.move_to(growth.iter().map(|g| g * stage as u32).collect());
                } else if stage > 0 {
                    let i = self.counter_at(slots, stage);
                    *place = self.slot_box(slots, load, &i, &mut known);
                }
                self.fill_slot(slots, load, place, &int(stage), None);
            }
            self.w.asm_effect("void", "cp.async.commit_group;", "", &[]);
        }
    }

    /// What a load reads in the iteration with counter `i`.
    fn slot_box(&mut self, slots: &Slots, load: &SlotLoad, i: &V, known: &mut HashMap<ValueId, V>) -> Box<'k> {
        let plan = self.plan;
        let op = self.k.op(load.load);
        let coords: Vec<V> = op.operands[1..].iter().map(|&c| self.scalar_at(slots.body, c, i, known)).collect();
        let view = self.view(op.operands[0]);
        let layout = &plan.versions[op.results[0].index()][0];
        Box::new(self, view, layout, &coords, self.k.ty(op.results[0]).dtype().size())
    }

    /// Starts the copies of one load to its slots.
    fn fill_slot(&mut self, slots: &Slots, load: &SlotLoad, place: &mut Box, stage: &V, enabled: Option<&V>) {
        let op = self.k.op(load.load);
        let (accesses, bytes) = self.box_accesses(load.load);
        let layout = &self.plan.versions[op.results[0].index()][0];
        self.stand_at(op.loc);
        let access = facts::access(self.k, op.operands[0], *layout.shape(), &op.operands[1..]);
        self.global_access(op.operands[0], layout, access);
        let param = self.view(op.operands[0]).param;
        let policy = self.eviction_policy(param);
        let base = self.copies_base(policy.is_some());
        for (registers, &offset) in accesses.iter().zip(&load.offsets) {
            let mask = place.mask(self, registers[0]);
            let from = place.address(self, registers[0]);
            let to = self.slot(&base, slots, load, offset, stage);
            // Only whole vectors can pass by the first-level cache.
            let level = if bytes == 16 { "cg" } else { "ca" };
            self.copy_async(level, (&to, &from), (bytes, mask.as_ref()), enabled, policy.as_ref());
        }
    }

    /// The address of this thread's slot of the access whose slots begin at `offset`.
    fn slot(&mut self, base: &V, slots: &Slots, load: &SlotLoad, offset: usize, stage: &V) -> V {
        let tid = self.tid();
        let own = self.w.bin("mul", "i32", &tid, &int(load.bytes));
        let own = self.w.bin("add", "i32", base, &own);
        let turn = self.w.bin("mul", "i32", stage, &int(slots.bytes));
        let own = self.w.bin("add", "i32", &own, &turn);
        self.w.bin("add", "i32", &own, &int(slots.start + offset))
    }

    /// A product's operand `i` if it lies in a ring, to be read in this fragment layout.
    pub(super) fn fetched(&mut self, dot: OpId, i: usize, layout: &LinearLayout) -> Option<FetchedOperand> {
        let (load, transposed) = source(self.k, self.k.op(dot).operands[i])?;
        let Staged { panels, address: base } = self.staged.get(&load)?.clone();
        if !fetches(&self.plan.dots[&dot], i, &panels, transposed) {
            return None;
        }
        let plan = Ldmatrix::plan(layout, &panels.seen(transposed), 2)?;
        let dtype = self.k.ty(self.k.op(dot).operands[i]).dtype();
        Some(self.to_fetch(plan, dtype, layout, &base))
    }

    fn to_fetch(&mut self, plan: Ldmatrix, dtype: DType, layout: &LinearLayout, base: &V) -> FetchedOperand {
        self.shared_access("ldmatrix", dtype, *layout.shape(), plan.wavefronts(2));
        let address = self.thread_part(plan.thread.iter().map(|&b| 2 * b).collect());
        FetchedOperand { plan, address, base: base.clone(), words: vec![None; layout.registers() / 2] }
    }

    /// All words of a tile of 16-bit elements that lies at `base`, two registers of `layout` each.
    pub(super) fn fetch_all(&mut self, plan: Ldmatrix, dtype: DType, layout: &LinearLayout, base: &V) -> Vec<V> {
        let mut tile = self.to_fetch(plan, dtype, layout, base);
        let count = tile.words.len();
        self.fetch(&mut tile, 0, count)
    }

    /// Words `first..first + count` of an operand.
    pub(super) fn fetch(&mut self, operand: &mut FetchedOperand, first: usize, count: usize) -> Vec<V> {
        for word in first..first + count {
            if operand.words[word].is_some() {
                continue;
            }
            let holds = |r: &[u32]| r.chunks(2).any(|pair| pair[0] as usize / 2 == word);
            let instruction =
                operand.plan.instructions.iter().find(|i| holds(&i.registers)).expect("every register is loaded");
            // What of the offset no thread's address can set is added to it, as an immediate: few addresses are
            // left to compute, or to keep in registers around the loop.
            let offset = 2 * instruction.offset;
            let swizzled = operand.plan.thread.iter().fold(0, |all, &b| all | (2 * b));
            let place = self.w.bin("xor", "i32", &operand.address, &int(offset & swizzled));
            let place = self.w.bin("add", "i32", &operand.base, &place);
            let immediate = offset & !swizzled;
            let words = self.load_matrices(&place, immediate, operand.plan.transposed, operand.plan.matrices);
            for (pair, w) in instruction.registers.chunks(2).zip(words) {
                operand.words[pair[0] as usize / 2] = Some(w);
            }
        }
        operand.words[first..first + count].iter().map(|w| w.clone().expect("just fetched")).collect()
    }
}
