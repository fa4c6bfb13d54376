//! Channels between computing roles: slots in shared memory that one side's threads write and the other's read.
//!
//! Invariants: `full[s]` completes when each thread of the sender has arrived, after its last write to slot s; `free[s]`
//! when each thread of the receiver has, after its last read. Each side counts through the slots with a place and a phase of
//! its own, as with bulk copies (`bulk.rs`). What is received is read at once, in every layout in which somebody looks at it,
//! so that a release waits for nothing.

use super::bulk::Walk;
use super::lower::{Lower, Result};
use super::memory::{Words, pack, unpack};
use super::text::{V, int};
use crate::gpu::layout::{LinearLayout, SharedLayout};
use crate::gpu::panels::Panels;
use crate::ir::{DType, Kernel, Lint, Op, OpKind, Type, ValueId};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// Where a channel lies, in bytes from the start of shared memory.
#[derive(Debug)]
pub(super) struct Channel {
    slots: usize,
    full: usize,
    free: usize,
    /// Each tile of a message: where its first slot is, its bytes, and where its elements are in them.
    tiles: Vec<(usize, usize, SharedLayout)>,
    /// Warps that send and that receive.
    warps: [usize; 2],
}

/// All channels of a kernel, by their values.
pub(super) type Channels = Rc<BTreeMap<ValueId, Channel>>;

/// One side's way through a channel, and where the slots are that it has not released.
#[derive(Default)]
pub(super) struct Ways {
    walks: HashMap<ValueId, Walk>,
    held: HashMap<ValueId, V>,
}

/// The operations of a part that send and receive.
fn ends(k: &Kernel) -> Vec<&Op> {
    let mut found = vec![];
    let mut open = vec![k.body];
    while let Some(region) = open.pop() {
        for op in k.region(region).ops.iter().map(|&id| k.op(id)) {
            open.extend(&op.regions);
            if matches!(op.kind, OpKind::Send | OpKind::Receive) {
                found.push(op);
            }
        }
    }
    found
}

/// Where the elements of a tile are in its slot.
fn layout(dtype: DType, shape: crate::ir::Shape) -> SharedLayout {
    // Swizzled where there are rows to swizzle.
    let panels = (shape.rank() >= 2 && dtype.size() <= 4).then(|| Panels::new(shape, dtype.size()).ok()).flatten();
    let row_major = || SharedLayout::row_major(shape).expect("extents are powers of two");
    panels.map_or_else(row_major, |p| p.layout)
}

/// Places the channels of parts, each with its number of warps, from the start of shared memory on; where they end.
pub(super) fn channels(parts: &[(&Kernel, usize)]) -> (Channels, usize) {
    let mut warps: BTreeMap<ValueId, [usize; 2]> = BTreeMap::new();
    for &(k, n) in parts {
        for op in ends(k) {
            warps.entry(op.operands[0]).or_default()[usize::from(op.kind == OpKind::Receive)] = n;
        }
    }
    let mut top = 0;
    let mut take = |bytes: usize, alignment: usize| {
        let at = usize::next_multiple_of(top, alignment);
        top = at + bytes;
        at
    };
    let mut out = BTreeMap::new();
    for (channel, warps) in warps {
        let (slots, message) = parts[0].0.channel(channel);
        let slots = slots as usize;
        let (full, free) = (take(8 * slots, 8), take(8 * slots, 8));
        let mut tiles = vec![];
        for &ty in message {
            let Type::Tile(dtype, shape) = ty else { continue };
            let bytes = (shape.numel() * dtype.size()).next_multiple_of(128);
            tiles.push((take(slots * bytes, 1024), bytes, layout(dtype, shape)));
        }
        out.insert(channel, Channel { slots, full, free, tiles, warps });
    }
    (Rc::new(out), top)
}

impl Lower<'_> {
    /// Makes the barriers of all channels.
    pub(super) fn make_channels(&mut self) {
        for channel in self.channels.clone().values() {
            for (start, warps) in [(channel.full, channel.warps[0]), (channel.free, channel.warps[1])] {
                // Nobody at one end, and the other waits for ever; but a barrier is for somebody.
                self.make_barrier(start, channel.slots, 32 * warps.max(1));
            }
        }
    }

    /// This part's ways through its channels, at its start.
    pub(super) fn start_ways(&mut self) {
        for op in ends(self.k) {
            // A slot that was never filled is free: the phase before the first has completed.
            let phase = u32::from(op.kind == OpKind::Send);
            if !self.ways.walks.contains_key(&op.operands[0]) {
                let walk = self.walk(phase);
                self.ways.walks.insert(op.operands[0], walk);
            }
        }
    }

    /// Waits at the barriers that start here, for the slot that comes next; its number. The other warpgroup may have to take
    /// its turn before that.
    fn next_slot(&mut self, channel: ValueId, barriers: usize) -> V {
        self.pass_turn();
        let walk = self.ways.walks[&channel].clone();
        let (place, phase) = self.position(&walk);
        let barrier = self.shared_at(barriers, &place, 8);
        self.wait(&barrier, &phase);
        self.advance(&walk, self.channels[&channel].slots);
        place
    }

    /// This thread is done with a slot.
    fn arrive(&mut self, barriers: usize, place: &V) {
        let barrier = self.shared_at(barriers, place, 8);
        self.w.asm_effect("void", "mbarrier.arrive.shared::cta.b64 _, [$0];", "r", &[("i32", &barrier)]);
    }

    pub(super) fn send(&mut self, op: &Op) {
        let channels = self.channels.clone();
        let channel = &channels[&op.operands[0]];
        let slot = self.next_slot(op.operands[0], channel.free);
        for (&v, (start, bytes, shared)) in op.operands[1..].iter().zip(&channel.tiles) {
            let (regs, layout) = self.get_home(v);
            let base = self.shared_at(*start, &slot, *bytes);
            self.write_slot(&regs, self.k.ty(v).dtype(), &layout, shared, &base);
        }
        self.arrive(channel.full, &slot);
    }

    fn write_slot(&mut self, regs: &[V], dtype: DType, layout: &LinearLayout, shared: &SharedLayout, base: &V) {
        let size = dtype.size();
        let thread = self.thread_bytes(layout.thread_bases().map(|b| size as u32 * shared.offset(b)).collect());
        let owner = self.owner(layout);
        let skip = layout.redundant().register;
        let access = shared.vectorise(layout, size);
        self.shared_tile("stores for another role", dtype, layout, shared, &access);
        for group in access.groups.into_iter().filter(|g| g[0] & skip == 0) {
            let offset = size as u32 * shared.offset(layout.flat(group[0], 0, 0));
            let place = self.shared_place(base, &thread, offset);
            let elements: Vec<V> = group.iter().map(|&r| regs[r as usize].clone()).collect();
            let words = pack(&mut self.w, dtype, &elements);
            self.store_shared(&place, Words::of(dtype, elements.len()), &words, owner.as_ref());
        }
    }

    pub(super) fn receive_message(&mut self, op: &Op) -> Result<()> {
        let channels = self.channels.clone();
        let channel = &channels[&op.operands[0]];
        let slot = self.next_slot(op.operands[0], channel.full);
        for (&v, (start, bytes, shared)) in op.results[1..].iter().zip(&channel.tiles) {
            let base = self.shared_at(*start, &slot, *bytes);
            for (version, layout) in self.plan.versions[v.index()].iter().enumerate() {
                let registers = self.read_slot(self.k.ty(v).dtype(), layout, shared, &base);
                self.set_version(v, version, registers);
            }
            if self.plan.placed.contains_key(&v) {
                let why =
                    "a product reads a copy of this tile: only what a copying role sends lies as products read it";
                self.find(Lint::Fallback, why.into());
            }
            self.put(v);
        }
        self.ways.held.insert(op.results[0], slot);
        Ok(())
    }

    fn read_slot(&mut self, dtype: DType, layout: &LinearLayout, shared: &SharedLayout, base: &V) -> Vec<V> {
        let size = dtype.size();
        let thread = self.thread_bytes(layout.thread_bases().map(|b| size as u32 * shared.offset(b)).collect());
        let access = shared.vectorise(layout, size);
        self.shared_tile("loads from another role", dtype, layout, shared, &access);
        let mut regs = vec![int(0); layout.registers()];
        for group in access.groups {
            let offset = size as u32 * shared.offset(layout.flat(group[0], 0, 0));
            let place = self.shared_place(base, &thread, offset);
            let words = self.load_shared(&place, Words::of(dtype, group.len()));
            for (&r, x) in group.iter().zip(unpack(&mut self.w, dtype, &words, group.len())) {
                regs[r as usize] = x;
            }
        }
        regs
    }

    pub(super) fn release_slot(&mut self, op: &Op) {
        let slot = self.ways.held.remove(&op.operands[0]).expect("a slot is released where it was received");
        let receive = self.k.defining_op(op.operands[0]).expect("a slot is received");
        let free = self.channels[&self.k.op(receive).operands[0]].free;
        self.arrive(free, &slot);
    }
}
