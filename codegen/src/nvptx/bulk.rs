//! Loops whose loads are bulk copies (`gpu::bulk`): mbarriers, the computing warps' side and the producer.
//!
//! A kernel with such loops has one more warp, whose first thread is the *producer*. It walks through the kernel's
//! loops like everybody else, but all it does is wait until a buffer is free, and start the copies that fill it. The
//! other warps wait until a buffer is full, compute, and say that it is free. Both sides count through a ring with a
//! place and a phase of their own, kept in stack slots (which LLVM turns into registers), so that a ring may be walked
//! any number of times.
//!
//! Invariants: `full[s]` completes when the bytes of all copies of an iteration have arrived, `free[s]` when each
//! computing warp has arrived once after its last read of the buffer. A warp arrives with one lane, after a warp-wide
//! barrier or a wait for its products.

use super::lower::{Lower, Result, elementwise};
use super::memory::{Words, unpack};
use super::text::{V, constant, int};
use crate::gpu::bulk::{computable, selections};
use crate::gpu::layout::LinearLayout;
use crate::gpu::pipeline::{Copy, StagedLoop};
use crate::ir::{Def, OpId, OpKind, RegionId, ValueId};
use std::collections::HashMap;

/// Where a ring's barriers and buffers are, in bytes from the start of shared memory.
#[derive(Clone)]
pub(super) struct Places {
    full: usize,
    free: usize,
    /// Each load's first buffer.
    buffers: Vec<usize>,
    end: usize,
}

/// One side's way through a ring.
#[derive(Clone)]
pub(super) struct Walk {
    /// Stack slots of the place in the ring and of the phase.
    place: V,
    phase: V,
}

/// A ring of bulk copies, as the computing warps see it.
pub(super) struct BulkRing<'k> {
    pub plan: &'k StagedLoop,
    places: Places,
    walk: Walk,
}

impl<'k> Lower<'k> {
    /// Takes shared memory for the barriers and buffers of all rings.
    pub(super) fn take_rings(&mut self) {
        let mut loops: Vec<(OpId, &'k StagedLoop)> =
            self.plan.loops.iter().filter(|(_, l)| l.bulk).map(|(&id, l)| (id, l)).collect();
        loops.sort_by_key(|&(id, _)| id);
        for (id, plan) in &loops {
            let full = self.shared_top;
            self.shared_top += 16 * plan.stages;
            let places = Places { full, free: full + 8 * plan.stages, buffers: vec![], end: 0 };
            self.rings.insert(*id, places);
        }
        for (id, plan) in loops {
            let places = self.rings.get_mut(&id).expect("just inserted");
            for load in &plan.loads {
                self.shared_top = self.shared_top.next_multiple_of(1024);
                places.buffers.push(self.shared_top);
                self.shared_top += plan.stages * load.bytes;
            }
            places.end = self.shared_top;
        }
        self.shared_max = self.shared_max.max(self.shared_top);
    }

    /// A byte of shared memory, `stage · each` further on, as a 32-bit address.
    fn shared_at(&mut self, start: usize, stage: &V, each: usize) -> V {
        let base = self.shared_base();
        let offset = self.w.bin("mul", "i32", stage, &int(each));
        let offset = self.w.bin("add", "i32", &offset, &int(start));
        self.w.bin("add", "i32", &base, &offset)
    }

    fn walk(&mut self, phase: u32) -> Walk {
        let place = self.w.hoist("alloca i32, align 4");
        let slot = self.w.hoist("alloca i32, align 4");
        self.w.line(format_args!("store i32 0, ptr {place}, align 4"));
        self.w.line(format_args!("store i32 {phase}, ptr {slot}, align 4"));
        Walk { place, phase: slot }
    }

    fn advance(&mut self, walk: &Walk, stages: usize) {
        let (place, phase) = self.position(walk);
        let next = self.w.bin("add", "i32", &place, &int(1));
        let wrap = self.w.icmp("eq", "i32", &next, &int(stages));
        let next = self.w.select(&wrap, "i32", &int(0), &next);
        let turned = self.w.bin("xor", "i32", &phase, &int(1));
        let phase = self.w.select(&wrap, "i32", &turned, &phase);
        self.w.line(format_args!("store i32 {next}, ptr {}, align 4", walk.place));
        self.w.line(format_args!("store i32 {phase}, ptr {}, align 4", walk.phase));
    }

    fn position(&mut self, walk: &Walk) -> (V, V) {
        let place = self.w.op(format_args!("load i32, ptr {}, align 4", walk.place));
        let phase = self.w.op(format_args!("load i32, ptr {}, align 4", walk.phase));
        (place, phase)
    }

    fn wait(&mut self, barrier: &V, phase: &V) {
        let ptx = "{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [$0], $1; \
                   @!done bra again; }";
        self.w.asm_effect("void", ptx, "r,r", &[("i32", barrier), ("i32", phase)]);
    }

    // -- start and end -----------------------------------------------------------------------------------------------

    /// Makes the barriers and sends the producer its way; what follows is for the computing warps.
    pub(super) fn split_roles(&mut self) -> Result<()> {
        if self.rings.is_empty() {
            return Ok(());
        }
        let tid = self.tid();
        let [init, ready, others, produce, leave, compute] =
            ["init", "ready", "others", "produce", "leave", "compute"].map(|s| self.w.label(s));
        let first = self.w.icmp("eq", "i32", &tid, &int(0));
        self.w.branch(&first, &init, &ready);
        self.w.start(&init);
        let rings: Vec<(OpId, Places)> =
            self.plan.loops.keys().filter_map(|id| Some((*id, self.rings.get(id)?.clone()))).collect();
        for (id, places) in &rings {
            for stage in 0..self.plan.loops[id].stages {
                for (start, count) in [(places.full, 1), (places.free, self.warps())] {
                    let barrier = self.shared_at(start, &int(0), 0);
                    let barrier = self.w.bin("add", "i32", &barrier, &int(8 * stage));
                    let ptx = format!("mbarrier.init.shared::cta.b64 [$0], {count};");
                    self.w.asm_effect("void", &ptx, "r", &[("i32", &barrier)]);
                }
            }
        }
        self.w.asm_effect("void", "fence.mbarrier_init.release.cluster;", "", &[]);
        self.w.asm_effect("void", "fence.proxy.async.shared::cta;", "", &[]);
        self.w.jump(&ready);
        self.w.start(&ready);
        self.w.call("void", "llvm.nvvm.barrier0", &[]);
        let threads = self.threads();
        let computes = self.w.icmp("ult", "i32", &tid, &int(threads));
        self.w.branch(&computes, &compute, &others);
        self.w.start(&others);
        let producer = self.w.icmp("eq", "i32", &tid, &int(threads));
        self.w.branch(&producer, &produce, &leave);
        self.w.start(&produce);
        // A buffer that was never filled is free: the phase before the first has completed.
        let walks = rings.iter().map(|&(id, _)| (id, self.walk(1))).collect();
        Producer { walks, known: HashMap::new() }.region(self, self.k.body);
        self.w.jump(&leave);
        self.w.start(&leave);
        self.w.line("ret void");
        self.w.start(&compute);
        for (id, _) in rings {
            let walk = self.walk(0);
            self.walks.insert(id, walk);
        }
        Ok(())
    }

    /// The ring of a loop, if its loads are bulk copies.
    pub(super) fn bulk_ring(&self, id: OpId) -> Option<BulkRing<'k>> {
        let places = self.rings.get(&id)?.clone();
        Some(BulkRing { plan: &self.plan.loops[&id], places, walk: self.walks[&id].clone() })
    }

    /// At the start of an iteration: waits for its tiles.
    pub(super) fn receive(&mut self, ring: &BulkRing<'k>) {
        let (place, phase) = self.position(&ring.walk);
        let barrier = self.shared_at(ring.places.full, &place, 8);
        self.wait(&barrier, &phase);
        for (load, &start) in ring.plan.loads.iter().zip(&ring.places.buffers) {
            let address = self.shared_at(start, &place, load.bytes);
            self.staged.insert(load.load, super::pipeline::Staged { panels: load.panels.clone(), address });
        }
    }

    /// At the end of an iteration: this warp has read its buffer, or the one before (`late`, where there is one).
    pub(super) fn release(&mut self, ring: &BulkRing<'k>, late: Option<&V>) {
        let stages = ring.plan.stages;
        let (mut place, _) = self.position(&ring.walk);
        self.w.call("void", "llvm.nvvm.bar.warp.sync", &[("i32", &int(-1))]);
        let mut arrives = self.leader();
        if let Some(exists) = late {
            let first = self.w.icmp("eq", "i32", &place, &int(0));
            let before = self.w.bin("sub", "i32", &place, &int(1));
            place = self.w.select(&first, "i32", &int(stages - 1), &before);
            arrives = self.w.and(Some(arrives), Some(exists.clone())).expect("two conditions");
        }
        let barrier = self.shared_at(ring.places.free, &place, 8);
        let ptx = "@$1 mbarrier.arrive.shared::cta.b64 _, [$0];";
        self.w.asm_effect("void", ptx, "r,b", &[("i32", &barrier), ("i1", &arrives)]);
    }

    pub(super) fn next_place(&mut self, ring: &BulkRing<'k>) {
        self.advance(&ring.walk, ring.plan.stages);
    }

    /// After the loop: its tiles are gone, and if it does not come again its memory is free.
    pub(super) fn end_bulk_ring(&mut self, ring: &BulkRing<'k>) {
        for load in &ring.plan.loads {
            self.staged.remove(&load.load);
        }
        if ring.plan.once && self.shared_top == ring.places.end {
            self.scratch_read = true;
            self.shared_top = ring.places.buffers[0];
        }
    }

    /// Whether this is the first lane of its warp.
    fn leader(&mut self) -> V {
        let tid = self.tid();
        let lane = self.w.op(format_args!("and i32 {tid}, 31"));
        self.w.icmp("eq", "i32", &lane, &int(0))
    }

    /// The registers of a tile that lies in a ring.
    pub(super) fn read_staged(&mut self, load: OpId, layout: &LinearLayout) -> Option<Vec<V>> {
        let staged = self.staged.get(&load)?.clone();
        let dtype = self.k.ty(self.k.op(load).results[0]).dtype();
        let (shared, size) = (&staged.panels.layout, dtype.size());
        let thread = self.thread_image(layout, |b| size as u32 * shared.offset(b));
        let mut regs = vec![int(0); layout.registers()];
        for group in shared.vectorise(layout, size).groups {
            let offset = size as u32 * shared.offset(layout.flat(group[0], 0, 0));
            let place = self.w.bin("xor", "i32", &thread, &int(offset));
            let place = self.w.bin("add", "i32", &staged.address, &place);
            let words = self.load_shared(&place, Words::of(dtype, group.len()));
            for (&r, x) in group.iter().zip(unpack(&mut self.w, dtype, &words, group.len())) {
                regs[r as usize] = x;
            }
        }
        Some(regs)
    }
}

/// The thread that starts the copies: what it knows of the kernel's values.
struct Producer {
    walks: HashMap<OpId, Walk>,
    known: HashMap<ValueId, V>,
}

impl Producer {
    /// Walks through a region: loops with rings, and whatever has such loops inside.
    fn region(&mut self, lower: &mut Lower, region: RegionId) {
        let k = lower.k;
        for &id in &k.region(region).ops {
            if has_ring(lower, id) {
                // What is computed inside is not visible outside.
                let known = self.known.clone();
                match k.op(id).kind {
                    OpKind::For { .. } => self.walk_loop(lower, id),
                    _ => self.walk_if(lower, id),
                }
                self.known = known;
            }
        }
    }

    fn walk_loop(&mut self, lower: &mut Lower, id: OpId) {
        let op = lower.k.op(id);
        let region = op.regions[0];
        let [lo, hi, step] = [0, 1, 2].map(|i| self.scalar(lower, op.operands[i]));
        let [pre, head, body, latch, exit] = ["pre", "head", "loop", "latch", "exit"].map(|s| lower.w.label(s));
        lower.w.jump(&pre);
        lower.w.start(&pre);
        lower.w.jump(&head);
        lower.w.start(&head);
        let next = format!("%n{}", lower.w.fresh());
        let i = lower.w.op(format_args!("phi i32 [ {lo}, %{pre} ], [ {next}, %{latch} ]"));
        let more = lower.w.icmp("slt", "i32", &i, &hi);
        lower.w.branch(&more, &body, &exit);
        lower.w.start(&body);
        self.known.insert(lower.k.region(region).args[0], i.clone());
        if let Some(walk) = self.walks.get(&id).cloned() {
            self.fill(lower, id, &walk);
        }
        self.region(lower, region);
        lower.w.jump(&latch);
        lower.w.start(&latch);
        lower.w.line(format_args!("{next} = add i32 {i}, {step}"));
        lower.w.jump(&head);
        lower.w.start(&exit);
    }

    fn walk_if(&mut self, lower: &mut Lower, id: OpId) {
        let op = lower.k.op(id);
        let condition = self.scalar(lower, op.operands[0]);
        let [yes, no, join] = ["then", "else", "join"].map(|s| lower.w.label(s));
        lower.w.branch(&condition, &yes, &no);
        for (label, &region) in [yes, no].iter().zip(&op.regions) {
            lower.w.start(label);
            let known = self.known.clone();
            self.region(lower, region);
            self.known = known;
            lower.w.jump(&join);
        }
        lower.w.start(&join);
    }

    /// Fills the next buffer of a ring, once it is free.
    fn fill(&mut self, lower: &mut Lower, id: OpId, walk: &Walk) {
        let plan = &lower.plan.loops[&id];
        let places = lower.rings[&id].clone();
        let (place, phase) = lower.position(walk);
        let free = lower.shared_at(places.free, &place, 8);
        lower.wait(&free, &phase);
        let full = lower.shared_at(places.full, &place, 8);
        let bytes: usize = plan.loads.iter().map(|l| l.panels.bytes()).sum();
        let ptx = format!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], {bytes};");
        lower.w.asm_effect("void", &ptx, "r", &[("i32", &full)]);
        for (load, &start) in plan.loads.iter().zip(&places.buffers) {
            let Copy::Bulk(bulk) = &load.copy else { unreachable!("a bulk ring has bulk copies only") };
            let map = lower.tensor_map(&bulk.map);
            let coords: Vec<V> = bulk.coords.iter().map(|&c| self.scalar(lower, c)).collect();
            let buffer = lower.shared_at(start, &place, load.bytes);
            for panel in 0..load.panels.count() {
                let to = lower.w.bin("add", "i32", &buffer, &int(panel * load.panels.stride()));
                let mut at = coords.clone();
                let last = at.len() - 1;
                at[last] = lower.w.bin("add", "i32", &at[last], &int(panel * load.panels.columns()));
                // The hardware counts dimensions from the last.
                at.reverse();
                let names: Vec<String> = (0..at.len()).map(|i| format!("${}", i + 3)).collect();
                let ptx = format!(
                    "cp.async.bulk.tensor.{}d.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1, {{{}}}], [$2];",
                    at.len(),
                    names.join(",")
                );
                let constraints = format!("r,l,r{}", ",r".repeat(at.len()));
                let mut args = vec![("i32", &to), ("i64", &map), ("i32", &full)];
                args.extend(at.iter().map(|c| ("i32", c)));
                lower.w.asm_effect("void", &ptx, &constraints, &args);
            }
        }
        lower.advance(walk, plan.stages);
    }

    /// A scalar, computed where it is first needed.
    fn scalar(&mut self, lower: &mut Lower, v: ValueId) -> V {
        if let Some(x) = self.known.get(&v) {
            return x.clone();
        }
        let k = lower.k;
        debug_assert!(computable(k, v), "the plan asks for what the producer can compute");
        let value = match k.def(v) {
            Def::Result(op, _) => {
                let op = k.op(op);
                match &op.kind {
                    OpKind::ProgramId { axis } => {
                        let name = format!("llvm.nvvm.read.ptx.sreg.ctaid.{}", ["x", "y", "z"][*axis as usize]);
                        lower.w.call("i32", &name, &[])
                    }
                    OpKind::NumPrograms { axis } => {
                        let name = format!("llvm.nvvm.read.ptx.sreg.nctaid.{}", ["x", "y", "z"][*axis as usize]);
                        lower.w.call("i32", &name, &[])
                    }
                    OpKind::Const(bits) => constant(k.ty(v).dtype(), *bits),
                    OpKind::Dim { dim } => self.extent(lower, op.operands[0], *dim as usize),
                    OpKind::Gather { .. } => self.element(lower, op.operands[0], &op.operands[1..]),
                    kind => {
                        let xs: Vec<V> = op.operands.iter().map(|&o| self.scalar(lower, o)).collect();
                        let refs: Vec<&V> = xs.iter().collect();
                        elementwise(&mut lower.w, kind, k.ty(op.operands[0]).dtype(), k.ty(v).dtype(), &refs)
                    }
                }
            }
            // Parameters are there from the start.
            _ => lower.scalar(v),
        };
        self.known.insert(v, value.clone());
        value
    }

    /// The extent of a dimension of a view that comes from a parameter by selections.
    fn extent(&mut self, lower: &Lower, view: ValueId, dim: usize) -> V {
        let (param, way) = selections(lower.k, view).expect("the plan asks for selections only");
        let mut kept: Vec<usize> = (0..lower.view(lower.k.params[param].value).extents.len()).collect();
        for (selected, _) in way {
            kept.remove(selected as usize);
        }
        lower.view(lower.k.params[param].value).extents[kept[dim]].clone()
    }

    /// One element of a read-only parameter; 0 outside of it.
    fn element(&mut self, lower: &mut Lower, view: ValueId, indices: &[ValueId]) -> V {
        let (param, way) = selections(lower.k, view).expect("the plan asks for selections only");
        let whole = lower.view(lower.k.params[param].value);
        let dtype = lower.k.ty(view).dtype();
        let mut index: Vec<V> = indices.iter().map(|&i| self.scalar(lower, i)).collect();
        for &(dim, i) in way.iter().rev() {
            index.insert(dim as usize, self.scalar(lower, i));
        }
        let (address, inside) = lower.element(&whole, &index, dtype.size());
        let words = lower.load_words(&address, Words::of(dtype, 1), inside.as_ref());
        let value = unpack(&mut lower.w, dtype, &words, 1)[0].clone();
        value
    }
}

/// Whether an operation is, or has inside, a loop with bulk copies.
fn has_ring(lower: &Lower, id: OpId) -> bool {
    let inside = |r: &RegionId| lower.k.region(*r).ops.iter().any(|&o| has_ring(lower, o));
    lower.rings.contains_key(&id) || lower.k.op(id).regions.iter().any(inside)
}
