//! Stores as bulk copies (`gpu::stores`).
//!
//! A warp has some buffers of one panel each. It puts a panel into one, makes that visible to the accelerator, and its first
//! lane starts the copy. Copies are counted in groups, one each: before a buffer is filled again, no more may be unread
//! than there are other buffers. So a kernel that goes on to its next tile does not wait for this one's to be in memory.
//!
//! In a loop whose warps may be at different steps the buffers are the warps' own; elsewhere they are scratch memory,
//! which nobody gets (after a barrier) before the copies have read it. A store that may come to the same place as one
//! before waits until that one has been made.

use super::Target;
use super::lower::{Lower, Result, View};
use super::memory::{Words, pack};
use super::text::{V, int};
use crate::gpu::layout::{Level, LinearLayout};
use crate::gpu::stores::{BulkStore, Way};
use crate::ir::{OpId, ValueId};

impl<'k> Lower<'k> {
    pub(super) fn bulk_store(&mut self, id: OpId, store: &'k BulkStore) -> Result<()> {
        let op = self.k.op(id);
        let layout = self.plan.work[&id].clone();
        let dtype = self.k.ty(op.operands[1]).dtype();
        let (size, shared) = (dtype.size(), &store.panels.layout);
        let registers = self.get(op.operands[1], &layout);
        self.order(op.operands[0], Some(&op.operands[2..]), &layout, true);

        let (base, buffers, kept) = self.store_buffers(store);
        let warp = self.tid();
        let warp = self.w.bin("lshr", "i32", &warp, &int(5));
        let own = self.w.bin("mul", "i32", &warp, &int(buffers * store.piece()));
        let base = self.w.bin("add", "i32", &base, &own);
        let lane = self.lane();
        let starts = self.w.icmp("eq", "i32", &lane, &int(0));
        let starts = self.reached(op.operands[0], store, starts);
        let lanes = store.way.lanes(shared);
        let thread = self.thread_bytes(lanes.iter().map(|&b| b * size as u32).collect());
        let begins = self.box_begins(store, &layout);
        let panel_elements = (store.piece() / size) as u32;
        let mut count = 0;
        for (add, origin) in &store.boxes {
            for panel in 0..store.panels.count() {
                let buffer = count % buffers;
                if kept || count >= buffers {
                    self.wait_for_reads(buffers - 1);
                    self.w.call("void", "llvm.nvvm.bar.warp.sync", &[("i32", &int(-1))]);
                }
                count += 1;
                for (offset, of_box) in store.way.accesses(shared) {
                    if offset / panel_elements != panel as u32 {
                        continue;
                    }
                    let within = (offset % panel_elements) as usize * size + buffer * store.piece();
                    let place = self.shared_place(&base, &thread, within as u32);
                    let elements: Vec<V> = of_box
                        .iter()
                        .map(|&r| registers[(store.registers[r as usize] ^ add) as usize].clone())
                        .collect();
                    let words = pack(&mut self.w, dtype, &elements);
                    match &store.way {
                        Way::Matrices(plan) => self.store_matrices(&place, plan.transposed, &words),
                        Way::Vectors { .. } => {
                            self.store_shared(&place, Words::of(dtype, elements.len()), &words, None);
                        }
                    }
                }
                self.w.asm_effect("void", "fence.proxy.async.shared::cta;", "", &[]);
                self.w.call("void", "llvm.nvvm.bar.warp.sync", &[("i32", &int(-1))]);
                let from = self.w.bin("add", "i32", &base, &int(buffer * store.piece()));
                self.start_copy(store, &begins, origin, panel, &from, &starts);
            }
        }
        self.unread_copies = true;
        Ok(())
    }

    /// Shared memory for the warps' buffers, how many each has, and whether copies from them may be under way still.
    fn store_buffers(&mut self, store: &BulkStore) -> (V, usize, bool) {
        let (warps, alignment) = (self.plan.warps, store.alignment());
        if self.own_scratch
            && let Some(buffers) = self.fitting(store, 2)
            && let Some(base) = self.own_region(warps * buffers * store.piece(), alignment)
        {
            return (base, buffers, true);
        }
        let buffers = self.fitting(store, store.pieces()).expect("there is room");
        (self.scratch_at(warps * buffers * store.piece(), alignment), buffers, false)
    }

    /// How many buffers of a warp fit into shared memory, at most so many, if as many are filled equally often.
    fn fitting(&self, store: &BulkStore, most: usize) -> Option<usize> {
        let pieces = store.pieces();
        let top = self.shared_top.next_multiple_of(store.alignment());
        let left = Target { sm: self.sm }.shared_limit().saturating_sub(top);
        let fits = |&b: &usize| pieces.is_multiple_of(b) && self.plan.warps * b * store.piece() <= left;
        (1..=most.min(pieces)).rev().find(fits)
    }

    /// Whether each warp can have a buffer.
    pub(super) fn has_room(&self, store: &BulkStore) -> bool {
        self.fitting(store, 1).is_some()
    }

    /// Where the warp's first box begins, per dimension of the parameter.
    fn box_begins(&mut self, store: &BulkStore, layout: &LinearLayout) -> Vec<V> {
        let mut begins = vec![];
        for (dim, coord) in store.coords.iter().enumerate() {
            let mut begin = self.scalar(coord.start);
            if let Some(from) = coord.from {
                // The view begins at its end if it lies behind that.
                let (from, extent) = (self.scalar(from), self.parameter(store).extents[dim].clone());
                let from = self.w.call("i32", "llvm.smin.i32", &[("i32", &from), ("i32", &extent)]);
                begin = self.w.bin("add", "i32", &from, &begin);
            }
            if let Some(axis) = coord.axis {
                let mut bases = vec![0; layout.bases(Level::Lane).len()];
                bases.extend(layout.axis_bases(Level::Warp, axis));
                let own = self.thread_part(bases);
                begin = self.w.bin("add", "i32", &begin, &own);
            }
            begins.push(begin);
        }
        begins
    }

    /// The parameter that a store is to.
    fn parameter(&self, store: &BulkStore) -> View {
        self.view(self.k.params[self.k.slots()[store.map.slot].param as usize].value)
    }

    /// `starts`, if the tile is in a narrowed view, and if the parameter has elements at all: the map of one that has none is
    /// that of another.
    fn reached(&mut self, view: ValueId, store: &BulkStore, mut starts: V) -> V {
        for extent in self.parameter(store).extents {
            let some = self.w.icmp("sgt", "i32", &extent, &int(0));
            starts = self.w.bin("and", "i1", &starts, &some);
        }
        let extents = self.view(view).extents;
        for coord in store.coords.iter().filter(|c| c.from.is_some()) {
            let axis = coord.axis.expect("the tile runs along it");
            let start = self.scalar(coord.start);
            let inside = self.w.icmp("ult", "i32", &start, &extents[axis]);
            starts = self.w.bin("and", "i1", &starts, &inside);
        }
        starts
    }

    /// One lane copies a panel to where it belongs.
    fn start_copy(&mut self, store: &BulkStore, begins: &[V], origin: &[u32], panel: usize, from: &V, starts: &V) {
        let mut at = vec![];
        let last = begins.len() - 1;
        for (d, (begin, coord)) in begins.iter().zip(&store.coords).enumerate() {
            let mut further = coord.axis.map_or(0, |a| origin[a] as usize);
            if d == last {
                further += panel * store.panels.columns();
            }
            at.push(self.w.bin("add", "i32", begin, &int(further)));
        }
        // The hardware counts dimensions from the last.
        at.reverse();
        let map = self.tensor_map(&store.map);
        let param = self.k.slots()[store.map.slot].param as usize;
        let policy = self.eviction_policy(param);
        let names: Vec<String> = (0..at.len()).map(|i| format!("${}", i + 3)).collect();
        let mut constraints = format!("r,l,b{}", ",r".repeat(at.len()));
        let mut args = vec![("i32", from), ("i64", &map), ("i1", starts)];
        args.extend(at.iter().map(|c| ("i32", c)));
        let (mut modifier, mut hint) = ("", String::new());
        if let Some((name, policy)) = &policy {
            (modifier, hint) = (name, format!(", ${}", args.len()));
            constraints.push_str(",l");
            args.push(("i64", policy));
        }
        let ptx = format!(
            "@$2 cp.async.bulk.tensor.{}d.global.shared::cta.bulk_group{modifier} [$1, {{{}}}], [$0]{hint}; \
             @$2 cp.async.bulk.commit_group;",
            at.len(),
            names.join(",")
        );
        self.w.asm_effect("void", &ptx, &constraints, &args);
    }

    /// Waits until all but so many of the thread's copies have read shared memory.
    fn wait_for_reads(&mut self, but: usize) {
        self.w.asm_effect("void", &format!("cp.async.bulk.wait_group.read {but};"), "", &[]);
    }

    /// Before a barrier behind which others may get the memory that copies read, and at the end.
    pub(super) fn finish_reads(&mut self) {
        if std::mem::take(&mut self.unread_copies) {
            self.wait_for_reads(0);
        }
    }

    /// Whether a parameter is stored to by copies.
    pub(super) fn copied_to(&self, param: usize) -> bool {
        let slots = self.k.slots();
        self.plan.stores.values().any(|s| slots[s.map.slot].param as usize == param)
    }

    /// Waits until all that the thread copies is in memory.
    pub(super) fn finish_copies(&mut self) {
        self.w.asm_effect("void", "cp.async.bulk.wait_group 0;", "", &[]);
    }
}
