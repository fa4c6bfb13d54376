//! Loads as bulk copies (`gpu::bulk`): mbarriers, the computing warps' side and the producer.
//!
//! A kernel with such loads has one more warp, whose first thread is the *producer*. It walks through the kernel's
//! loops like everybody else, but all it does is wait until a buffer is free, and start the copy that fills it. The
//! other warps wait where the load stands until its buffer is full, compute, and say at the end of the region that it
//! is free. Both sides count through a region's rings with a place and a phase of their own, kept in stack slots (which
//! LLVM turns into registers), so that a region may be walked any number of times.
//!
//! What a cluster of programs shares (`gpu::cluster`) each of them fetches a part of, for all. Such a buffer is free when
//! the computing warps of *all* programs have arrived, which they do at the barriers of all; its bytes come from all. So
//! nobody may begin before everybody's barriers are made, nor end while others may still arrive at its own.
//!
//! Loads with no work between them have their barriers in common (`first` of a [`BulkLoad`]).
//!
//! Invariants: `full[s]` completes when the bytes of the copies have arrived, `free[s]` when each computing warp has
//! arrived once after its last read of the buffer. A warp arrives with one lane, after a warp-wide barrier or a wait
//! for its products.

use super::lower::{Lower, Result, elementwise};
use super::memory::{Words, unpack};
use super::pipeline::Staged;
use super::shared::EVERYWHERE;
use super::text::{V, constant, int};
use crate::gpu::assign::SharedOperand;
use crate::gpu::bulk::{BulkLoad, Share, computable, selections};
use crate::gpu::layout::{Ldmatrix, LinearLayout};
use crate::gpu::pipeline::{BulkRegion, StagedLoad};
use crate::ir::{Def, Kernel, OpId, OpKind, RegionId, Reuse, Type, ValueId};
use std::collections::HashMap;

/// Where a ring's barriers and buffers are, in bytes from the start of shared memory.
#[derive(Clone, Copy)]
pub(super) struct Places {
    full: usize,
    free: usize,
    pub(super) buffers: usize,
    end: usize,
}

/// One side's way through the rings of a region.
#[derive(Clone)]
pub(super) struct Walk {
    /// Stack slots of the place in the ring and of the phase.
    place: V,
    phase: V,
}

impl<'k> Lower<'k> {
    /// Takes shared memory for the barriers and buffers of all rings: those of loops last, in the order in which they
    /// are done with.
    pub(super) fn take_rings(&mut self) {
        let regions = &self.plan.ahead.bulk;
        for region in regions.values() {
            for load in &region.loads {
                let mut full = self.shared_top;
                match self.rings.get(&load.copy.first) {
                    Some(first) => full = first.full,
                    None => self.shared_top += 16 * region.stages,
                }
                let places = Places { full, free: full + 8 * region.stages, buffers: 0, end: 0 };
                self.rings.insert(load.load, places);
            }
        }
        let (loops, singles): (Vec<_>, Vec<_>) = regions.values().partition(|r| r.once);
        for region in singles.into_iter().chain(loops.into_iter().rev()) {
            for load in &region.loads {
                let places = self.rings.get_mut(&load.load).expect("just inserted");
                places.buffers = self.shared_top.next_multiple_of(1024);
                places.end = places.buffers + region.stages * load.bytes;
                self.shared_top = places.end;
            }
        }
        self.shared_max = self.shared_max.max(self.shared_top);
    }

    /// A byte of shared memory, `stage · each` further on, as a 32-bit address.
    pub(super) fn shared_at(&mut self, start: usize, stage: &V, each: usize) -> V {
        let base = self.shared_base();
        let offset = self.w.bin("mul", "i32", stage, &int(each));
        let offset = self.w.bin("add", "i32", &offset, &int(start));
        self.w.bin("add", "i32", &base, &offset)
    }

    pub(super) fn walk(&mut self, phase: u32) -> Walk {
        let place = self.w.hoist("alloca i32, align 4");
        let slot = self.w.hoist("alloca i32, align 4");
        self.w.line(format_args!("store i32 0, ptr {place}, align 4"));
        self.w.line(format_args!("store i32 {phase}, ptr {slot}, align 4"));
        Walk { place, phase: slot }
    }

    pub(super) fn advance(&mut self, walk: &Walk, stages: usize) {
        let (place, phase) = self.position(walk);
        let next = self.w.bin("add", "i32", &place, &int(1));
        let wrap = self.w.icmp("eq", "i32", &next, &int(stages));
        let next = self.w.select(&wrap, "i32", &int(0), &next);
        let turned = self.w.bin("xor", "i32", &phase, &int(1));
        let phase = self.w.select(&wrap, "i32", &turned, &phase);
        self.w.line(format_args!("store i32 {next}, ptr {}, align 4", walk.place));
        self.w.line(format_args!("store i32 {phase}, ptr {}, align 4", walk.phase));
    }

    pub(super) fn position(&mut self, walk: &Walk) -> (V, V) {
        let place = self.w.op(format_args!("load i32, ptr {}, align 4", walk.place));
        let phase = self.w.op(format_args!("load i32, ptr {}, align 4", walk.phase));
        (place, phase)
    }

    pub(super) fn wait(&mut self, barrier: &V, phase: &V) {
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
        let [init, ready] = ["init", "ready"].map(|s| self.w.label(s));
        let first = self.w.icmp("eq", "i32", &tid, &int(0));
        self.w.branch(&first, &init, &ready);
        self.w.start(&init);
        self.make_ring_barriers();
        self.publish_barriers();
        self.w.jump(&ready);
        self.w.start(&ready);
        if self.shares() {
            self.cluster_barrier("relaxed");
        } else {
            self.w.call("void", "llvm.nvvm.barrier0", &[]);
        }
        self.send_producer_off();
        Ok(())
    }

    /// Makes `count` barriers, at which so many arrive.
    pub(super) fn make_barrier(&mut self, start: usize, count: usize, arrivals: usize) {
        for i in 0..count {
            let barrier = self.shared_at(start, &int(i), 8);
            let ptx = format!("mbarrier.init.shared::cta.b64 [$0], {arrivals};");
            self.w.asm_effect("void", &ptx, "r", &[("i32", &barrier)]);
        }
    }

    /// Makes the barriers of the rings.
    pub(super) fn make_ring_barriers(&mut self) {
        for region in self.plan.ahead.bulk.values() {
            for load in region.groups() {
                let Places { full, free, .. } = self.rings[&load.load];
                for (start, arrivals) in [(full, 1), (free, self.warps() * programs(load))] {
                    self.make_barrier(start, region.stages, arrivals);
                }
            }
        }
    }

    /// Lets others, and the copies, see the barriers that this thread has made.
    pub(super) fn publish_barriers(&mut self) {
        self.w.asm_effect("void", "fence.mbarrier_init.release.cluster;", "", &[]);
        self.w.asm_effect("void", "fence.proxy.async.shared::cta;", "", &[]);
    }

    /// Sends the producer its way, if there is one; what follows is for the computing warps.
    pub(super) fn send_producer_off(&mut self) {
        if self.rings.is_empty() {
            return self.move_registers(|b| b.computing);
        }
        let tid = self.tid();
        let [others, produce, leave, compute] = ["others", "produce", "leave", "compute"].map(|s| self.w.label(s));
        let threads = self.threads();
        let computes = self.w.icmp("ult", "i32", &tid, &int(threads));
        self.w.branch(&computes, &compute, &others);
        self.w.start(&others);
        self.move_registers(|b| b.copying);
        let producer = self.w.icmp("eq", "i32", &tid, &int(threads));
        self.w.branch(&producer, &produce, &leave);
        self.w.start(&produce);
        // A buffer that was never filled is free: the phase before the first has completed.
        let walks = self.start_walks(1);
        Producer { walks, known: HashMap::new() }.region(self, self.k.body);
        self.w.jump(&leave);
        self.w.start(&leave);
        self.w.line("ret void");
        self.w.start(&compute);
        self.move_registers(|b| b.computing);
        self.walks = self.start_walks(0);
        let loops = || {
            (0..self.k.ops.len()).map(|i| OpId(i as u32)).filter(|&o| matches!(self.k.op(o).kind, OpKind::For { .. }))
        };
        if loops().any(|o| self.takes_turns(o)) {
            self.start_turns();
        }
    }

    /// Whether this program's copies are also for others, and theirs for it.
    pub(super) fn shares(&self) -> bool {
        self.plan.ahead.bulk.values().flat_map(|r| &r.loads).any(|l| l.copy.share.is_some())
    }

    /// Waits for all threads of the cluster that have not left. `order`: `release` if what they did to memory comes
    /// before what follows, else `relaxed`.
    pub(super) fn cluster_barrier(&mut self, order: &str) {
        self.arrive_at_cluster(order);
        self.wait_for_cluster();
    }

    pub(super) fn arrive_at_cluster(&mut self, order: &str) {
        self.w.asm_effect("void", &format!("barrier.cluster.arrive.{order}.aligned;"), "", &[]);
    }

    pub(super) fn wait_for_cluster(&mut self) {
        self.w.asm_effect("void", "barrier.cluster.wait.acquire.aligned;", "", &[]);
    }

    /// Warps beside the computing ones. A multiprocessor's quarter serves every fourth warp: a ninth would leave each
    /// of three a third of its registers. If the products need more, a whole warpgroup comes along that gives most of
    /// its registers to the others.
    pub(super) fn producer_warps(&self) -> usize {
        match () {
            () if !self.copies() => 0,
            () if self.shifts_registers() => 4,
            () => 1,
        }
    }

    /// A walk for each region with rings, at the start of its side.
    fn start_walks(&mut self, phase: u32) -> HashMap<RegionId, Walk> {
        let regions: Vec<RegionId> = self.plan.ahead.bulk.keys().copied().collect();
        regions.into_iter().map(|r| (r, self.walk(phase))).collect()
    }

    /// Where the load stands: waits for its tile, and for those that arrive with it.
    pub(super) fn receive(&mut self, region: RegionId, load: &'k StagedLoad<BulkLoad>) {
        let walk = self.walks[&region].clone();
        let places = self.rings[&load.load];
        let (place, phase) = self.position(&walk);
        if load.copy.first == load.load {
            let barrier = self.shared_at(places.full, &place, 8);
            self.wait(&barrier, &phase);
        }
        self.discard(load);
        let address = self.shared_at(places.buffers, &place, load.bytes);
        self.staged.insert(load.load, Staged { panels: load.panels.clone(), address });
    }

    /// Where its parameter is to be discarded: the cache lines of a tile that has arrived, spread over the threads. Lines
    /// that are not wholly the tile's stay, and all of them where a row does not begin with a line.
    fn discard(&mut self, load: &StagedLoad<BulkLoad>) {
        const LINE: usize = 128;
        let op = self.k.op(load.load);
        let (param, _) = selections(self.k, op.operands[0]).expect("the plan asks for selections only");
        let Type::Tile(dtype, shape) = self.k.ty(op.results[0]) else { unreachable!("loads give tiles") };
        let (&columns, rows) = shape.dims().split_last().expect("bulk copies have a dimension");
        let bytes = columns as usize * dtype.size();
        if self.k.params[param].reuse != Reuse::Discard || !bytes.is_multiple_of(LINE) {
            return;
        }
        let view = self.view(op.operands[0]);
        let start: Vec<V> = op.operands[1..].iter().map(|&v| self.scalar(v)).collect();
        let (lines, threads) = (shape.numel() * dtype.size() / LINE, self.threads());
        let tid = self.tid();
        // A start that is a constant is as good as the thread's own part.
        let varies: Vec<bool> = start.iter().map(|s| s.parse::<i64>().is_err()).collect();
        for first in (0..lines).step_by(threads) {
            let line = self.w.bin("add", "i32", &tid, &int(first));
            let mut discards = view.valid.clone();
            if lines - first < threads {
                let some = self.w.icmp("ult", "i32", &line, &int(lines));
                discards = self.w.and(discards, Some(some));
            }
            let column = self.w.bin("urem", "i32", &line, &int(bytes / LINE));
            let column = self.w.bin("mul", "i32", &column, &int(LINE / dtype.size()));
            let mut own = vec![(column, LINE / dtype.size())];
            let mut row = self.w.bin("udiv", "i32", &line, &int(bytes / LINE));
            for &extent in rows.iter().rev() {
                own.push((self.w.bin("urem", "i32", &row, &int(extent)), 1));
                row = self.w.bin("udiv", "i32", &row, &int(extent));
            }
            own.reverse();
            // What does not change in a loop first: the address of the thread's part, and up to where a start may lie.
            let mut address = view.address.clone();
            let mut limits = vec![];
            let mut steps = vec![];
            for (dim, (at, length)) in own.iter().enumerate() {
                let (stride, extent) = (view.strides[dim].clone(), view.extents[dim].clone());
                let from = if varies[dim] { at.clone() } else { self.w.bin("add", "i32", at, &start[dim]) };
                address = self.moved(&address, &from, &stride, dtype.size());
                let end = self.w.bin("add", "i32", &from, &int(length - 1));
                let limit = self.w.bin("sub", "i32", &extent, &end);
                if varies[dim] {
                    steps.push(self.w.bin("mul", "i64", &stride, &int(dtype.size())));
                    limits.push((dim, limit));
                } else {
                    let inside = self.w.icmp("sgt", "i32", &limit, &int(0));
                    discards = self.w.and(discards, Some(inside));
                }
            }
            // Whole lines, from wherever a start leads to.
            let places = steps.iter().fold(address.clone(), |all, step| self.w.bin("or", "i64", &all, step));
            let within = self.w.bin("and", "i64", &places, &int(LINE - 1));
            let whole = self.w.icmp("eq", "i64", &within, &int(0));
            let discards = self.w.and(discards, Some(whole)).expect("two conditions");
            // Opaque, or the assembler would rather compute all of it again.
            address = self.w.asm("i64", "mov.b64 $0, $1;", "=l,l", &[("i64", &address)]);
            let mut within = None;
            for (n, (dim, limit)) in limits.into_iter().enumerate() {
                let mut limit = self.w.call("i32", "llvm.smax.i32", &[("i32", &limit), ("i32", &int(0))]);
                if n == 0 {
                    limit = self.w.select(&discards, "i32", &limit, &int(0));
                }
                let limit = self.w.asm("i32", "mov.b32 $0, $1;", "=r,r", &[("i32", &limit)]);
                let inside = self.w.icmp("ult", "i32", &start[dim], &limit);
                within = self.w.and(within, Some(inside));
                address = self.moved(&address, &start[dim], &view.strides[dim], dtype.size());
            }
            let discards = within.unwrap_or(discards);
            let ptx = format!("@$1 discard.global.L2 [$0], {LINE};");
            self.w.asm_effect("void", &ptx, "l,b", &[("i64", &address), ("i1", &discards)]);
        }
    }

    /// At the end of a region: this warp has read its buffers. Products that are still in flight (`late`) read
    /// buffers of this round, so that of those the round before is given back, where there was one (`earlier`).
    pub(super) fn release(&mut self, region: RegionId, late: &[OpId], earlier: Option<&V>) {
        let Some(bulk) = self.plan.ahead.bulk.get(&region) else { return };
        let walk = self.walks[&region].clone();
        let (place, _) = self.position(&walk);
        self.warp_barrier();
        for load in bulk.groups() {
            let before = earlier.filter(|_| self.read_by(late, bulk, load));
            self.give_back(load, bulk.stages, &place, before);
        }
        self.advance(&walk, bulk.stages);
    }

    /// After a loop with products that stayed in flight to its end: the buffers of the last round.
    pub(super) fn release_last(&mut self, region: RegionId, late: &[OpId]) {
        let Some(bulk) = self.plan.ahead.bulk.get(&region) else { return };
        let walk = self.walks[&region].clone();
        let (place, _) = self.position(&walk);
        for load in bulk.groups().filter(|l| self.read_by(late, bulk, l)).collect::<Vec<_>>() {
            self.give_back(load, bulk.stages, &place, Some(&"true".into()));
        }
    }

    /// Whether one of these products reads a tile of the load's group.
    fn read_by(&self, products: &[OpId], region: &BulkRegion, group: &StagedLoad<BulkLoad>) -> bool {
        let source = |p: OpId, i: usize| self.plan.shared_operands.get(&(p, i));
        let member = |load: &OpId| region.group(group).any(|l| l.load == *load);
        let reads = |s: Option<&SharedOperand>| matches!(s, Some(SharedOperand::Ring { load, .. }) if member(load));
        products.iter().any(|&p| (0..2).any(|i| reads(source(p, i))))
    }

    /// This warp is done with the group's buffers at `place`; or, if `before` holds, with the one before that.
    fn give_back(&mut self, load: &StagedLoad<BulkLoad>, stages: usize, place: &V, before: Option<&V>) {
        // Of a buffer that a cluster shares, a lane tells each program.
        let lane = self.lane();
        let mut arrives = self.w.icmp("ult", "i32", &lane, &int(programs(load)));
        let mut place = place.clone();
        if let Some(exists) = before {
            let first = self.w.icmp("eq", "i32", &place, &int(0));
            let previous = self.w.bin("sub", "i32", &place, &int(1));
            place = self.w.select(&first, "i32", &int(stages - 1), &previous);
            arrives = self.w.and(Some(arrives), Some(exists.clone())).expect("two conditions");
        }
        let mut barrier = self.shared_at(self.rings[&load.load].free, &place, 8);
        let mut space = "cta";
        if load.copy.share.is_some() {
            barrier = self.w.asm(
                "i32",
                "mapa.shared::cluster.u32 $0, $1, $2;",
                "=r,r,r",
                &[("i32", &barrier), ("i32", &lane)],
            );
            // Not `.release.cluster`: that waits for all of the thread's memory traffic. The products that read the buffer
            // have been waited for.
            space = "cluster";
        }
        let ptx = format!("@$1 mbarrier.arrive.shared::{space}.b64 _, [$0];");
        self.w.asm_effect("void", &ptx, "r,b", &[("i32", &barrier), ("i1", &arrives)]);
    }

    /// After the loop with this body: if it does not come again its buffers are free.
    pub(super) fn end_rings(&mut self, region: RegionId) {
        let Some(bulk) = self.plan.ahead.bulk.get(&region) else { return };
        let start = bulk.loads.iter().map(|l| self.rings[&l.load].buffers).min();
        let end = bulk.loads.iter().map(|l| self.rings[&l.load].end).max();
        if let (true, Some(start), Some(end)) = (bulk.once, start, end)
            && self.shared_top == end
        {
            self.scratch_busy.push(EVERYWHERE);
            self.shared_top = start;
        }
    }

    /// The thread's place in its warp.
    pub(super) fn lane(&mut self) -> V {
        let tid = self.tid();
        self.w.op(format_args!("and i32 {tid}, 31"))
    }

    /// A tile that lies in a ring, in every layout in which somebody looks at it.
    pub(super) fn load_staged(&mut self, load: OpId) -> Result<()> {
        let tile = self.k.op(load).results[0];
        for (version, layout) in self.plan.versions[tile.index()].iter().enumerate() {
            let registers = self.read_staged(load, layout);
            self.set_version(tile, version, registers);
        }
        self.put(tile);
        Ok(())
    }

    fn read_staged(&mut self, load: OpId, layout: &LinearLayout) -> Vec<V> {
        let staged = self.staged[&load].clone();
        let dtype = self.k.ty(self.k.op(load).results[0]).dtype();
        let (shared, size) = (&staged.panels.layout, dtype.size());
        let access = shared.vectorise(layout, size);
        // Neighbours of 16 bits that do not lie side by side: eight by eight by one instruction, if it fits.
        if (size, access.width) == (2, 1)
            && let Some(plan) = Ldmatrix::plan(layout, shared, size)
        {
            let words = self.fetch_all(plan, dtype, layout, &staged.address);
            return words.iter().flat_map(|word| unpack(&mut self.w, dtype, std::slice::from_ref(word), 2)).collect();
        }
        let thread = self.thread_bytes(layout.thread_bases().map(|b| size as u32 * shared.offset(b)).collect());
        let mut regs = vec![int(0); layout.registers()];
        self.shared_tile("loads from a ring", dtype, layout, shared, &access);
        for group in access.groups {
            let offset = size as u32 * shared.offset(layout.flat(group[0], 0, 0));
            let place = self.shared_place(&staged.address, &thread, offset);
            let words = self.load_shared(&place, Words::of(dtype, group.len()));
            for (&r, x) in group.iter().zip(unpack(&mut self.w, dtype, &words, group.len())) {
                regs[r as usize] = x;
            }
        }
        regs
    }
}

/// The thread that starts the copies: what it knows of the kernel's values.
struct Producer {
    walks: HashMap<RegionId, Walk>,
    known: HashMap<ValueId, V>,
}

impl Producer {
    /// Walks through a region: its bulk copies, and whatever has some inside.
    fn region(&mut self, lower: &mut Lower, region: RegionId) {
        let k = lower.k;
        for &id in &k.region(region).ops {
            if let Some(load) = lower.plan.ahead.bulk_load(id) {
                self.fill(lower, region, load);
            } else if k.op(id).kind == OpKind::Wait {
                self.wait(lower, id);
            } else if has_bulk(lower, id) || only_waits(k, id) {
                // What is computed inside is not visible outside.
                let known = self.known.clone();
                match k.op(id).kind {
                    OpKind::For { .. } => self.walk_loop(lower, id),
                    _ => self.walk_if(lower, id),
                }
                self.known = known;
            }
        }
        if let (Some(walk), Some(bulk)) = (self.walks.get(&region), lower.plan.ahead.bulk.get(&region)) {
            lower.advance(walk, bulk.stages);
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

    /// Fills the next buffer of a ring, once it and those that are filled with it are free.
    fn fill(&mut self, lower: &mut Lower, region: RegionId, load: &StagedLoad<BulkLoad>) {
        let places = lower.rings[&load.load];
        let walk = self.walks[&region].clone();
        let (place, phase) = lower.position(&walk);
        let full = lower.shared_at(places.full, &place, 8);
        if load.copy.first == load.load {
            let free = lower.shared_at(places.free, &place, 8);
            lower.wait(&free, &phase);
            let bytes: usize = lower.plan.ahead.bulk[&region].group(load).map(|l| l.panels.bytes()).sum();
            let ptx = format!("mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], {bytes};");
            lower.w.asm_effect("void", &ptx, "r", &[("i32", &full)]);
        }
        let map = lower.tensor_map(&load.copy.map);
        let mut coords: Vec<V> = load.copy.coords.iter().map(|&c| self.scalar(lower, c)).collect();
        let mut buffer = lower.shared_at(places.buffers, &place, load.bytes);
        if let Some(Share { programs, dim }) = load.copy.share {
            // A cluster begins at a multiple of its size.
            let program = lower.w.call("i32", "llvm.nvvm.read.ptx.sreg.ctaid.x", &[]);
            let own = lower.w.op(format_args!("and i32 {program}, {}", programs - 1));
            let rows = load.copy.map.extents[dim] as usize;
            let first = lower.w.bin("mul", "i32", &own, &int(rows));
            coords[dim] = lower.w.bin("add", "i32", &coords[dim], &first);
            let first = lower.w.bin("mul", "i32", &own, &int(rows * load.copy.map.swizzle));
            buffer = lower.w.bin("add", "i32", &buffer, &first);
        }
        let (param, _) =
            selections(lower.k, lower.k.op(load.load).operands[0]).expect("the plan asks for selections only");
        let policy = lower.eviction_policy(param);
        for panel in 0..load.panels.count() {
            let to = lower.w.bin("add", "i32", &buffer, &int(panel * load.panels.stride()));
            let mut at = coords.clone();
            let last = at.len() - 1;
            at[last] = lower.w.bin("add", "i32", &at[last], &int(panel * load.panels.columns()));
            // The hardware counts dimensions from the last.
            at.reverse();
            let names: Vec<String> = (0..at.len()).map(|i| format!("${}", i + 3)).collect();
            let mut constraints = format!("r,l,r{}", ",r".repeat(at.len()));
            let mut args = vec![("i32", &to), ("i64", &map), ("i32", &full)];
            args.extend(at.iter().map(|c| ("i32", c)));
            let (mut modifiers, mut last) = (String::new(), String::new());
            let everybody = load.copy.share.map(|share| int((1 << share.programs) - 1));
            if let Some(mask) = &everybody {
                modifiers.push_str(".multicast::cluster");
                last.push_str(&format!(", ${}", args.len()));
                constraints.push_str(",h");
                args.push(("i16", mask));
            }
            if let Some((modifier, policy)) = &policy {
                modifiers.push_str(modifier);
                last.push_str(&format!(", ${}", args.len()));
                constraints.push_str(",l");
                args.push(("i64", policy));
            }
            let ptx = format!(
                "cp.async.bulk.tensor.{}d.shared::cluster.global.mbarrier::complete_tx::bytes{modifiers} \
                 [$0], [$1, {{{}}}], [$2]{last};",
                at.len(),
                names.join(",")
            );
            lower.w.asm_effect("void", &ptx, &constraints, &args);
        }
    }

    /// Waits for a signal of another launch. What that one stored was not stored by copies like those that follow.
    fn wait(&mut self, lower: &mut Lower, id: OpId) {
        let op = lower.k.op(id);
        let count = self.scalar(lower, op.operands[1]);
        let (_, address, inside) = self.place(lower, op.operands[0], &op.operands[2..]);
        lower.take(&address, &count, inside.as_ref());
        lower.w.asm_effect("void", "fence.proxy.async.global;", "", &[]);
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
        let dtype = lower.k.ty(view).dtype();
        let (param, address, inside) = self.place(lower, view, indices);
        let words = lower.load_words(param, &address, Words::of(dtype, 1), inside.as_ref());
        unpack(&mut lower.w, dtype, &words, 1)[0].clone()
    }

    /// The address of an element of a view that comes from a parameter by selections, and whether it lies inside.
    fn place(&mut self, lower: &mut Lower, view: ValueId, indices: &[ValueId]) -> (usize, V, Option<V>) {
        let (param, way) = selections(lower.k, view).expect("the plan asks for selections only");
        let whole = lower.view(lower.k.params[param].value);
        let dtype = lower.k.ty(view).dtype();
        let mut index: Vec<V> = indices.iter().map(|&i| self.scalar(lower, i)).collect();
        for &(dim, i) in way.iter().rev() {
            index.insert(dim as usize, self.scalar(lower, i));
        }
        let (address, inside) = lower.element(&whole, &index, dtype.size());
        (param, address, inside)
    }
}

/// How many programs use a buffer.
fn programs(load: &StagedLoad<BulkLoad>) -> usize {
    load.copy.share.map_or(1, |share| share.programs)
}

/// Whether an operation does nothing but to wait for signals, under some condition.
pub(super) fn only_waits(k: &Kernel, id: OpId) -> bool {
    let op = k.op(id);
    let waits = |&o: &OpId| k.op(o).kind == OpKind::Wait;
    let quiet = |&o: &OpId| waits(&o) || k.op(o).kind == OpKind::Yield || !k.op(o).kind.has_effect();
    let ops = || op.regions.iter().flat_map(|&r| &k.region(r).ops);
    op.kind == OpKind::If && op.results.is_empty() && ops().any(waits) && ops().all(quiet)
}

/// Whether an operation has bulk copies inside.
fn has_bulk(lower: &Lower, id: OpId) -> bool {
    let inside = |&r: &RegionId| {
        lower.plan.ahead.bulk.contains_key(&r) || lower.k.region(r).ops.iter().any(|&o| has_bulk(lower, o))
    };
    lower.k.op(id).regions.iter().any(inside)
}
