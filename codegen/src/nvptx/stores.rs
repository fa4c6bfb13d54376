//! Stores as bulk copies (`gpu::stores`).
//!
//! A warp has two buffers, of a panel each, for all stores of a loop's body. It puts a panel into one, makes that visible to
//! the accelerator, and its first lane starts the copy. Copies are counted in groups of one: before a buffer is filled again,
//! only the copy from the other one may be unread. So a warp goes on to its next tile without waiting for this one to be
//! in memory.
//!
//! Behind the loop is a barrier before which all copies have read: others may get the buffers, or the program end. A store
//! that may come to the same place as one before waits until that one has been made.

use super::lower::{Lower, Result};
use super::memory::{Words, pack};
use super::text::{V, int};
use crate::gpu::bulk::Transfer;
use crate::gpu::layout::{Level, LinearLayout};
use crate::gpu::stores::{BUFFERS, BulkStore, Way};
use crate::ir::{OpId, RegionId};

/// The buffers of a loop's body.
#[derive(Clone)]
pub(super) struct StoreBuffers {
    /// The first byte of this warp's.
    base: V,
    /// Bytes of one.
    each: usize,
    /// How many copies there are in an iteration, and how many so far.
    pieces: usize,
    count: usize,
}

impl<'k> Lower<'k> {
    /// Takes buffers for the stores of a loop's body, if there is room. No warp may use that memory otherwise meanwhile.
    pub(super) fn take_store_buffers(&mut self, region: RegionId) -> Option<StoreBuffers> {
        let plan = self.plan;
        let stores: Vec<&BulkStore> = self.k.region(region).ops.iter().filter_map(|id| plan.stores.get(id)).collect();
        let each = stores.iter().map(|s| s.piece()).max()?;
        let start = self.own_region(plan.warps * BUFFERS * each, 1024)?;
        let tid = self.tid();
        let warp = self.w.bin("lshr", "i32", &tid, &int(5));
        let own = self.w.bin("mul", "i32", &warp, &int(BUFFERS * each));
        let base = self.w.bin("add", "i32", &start, &own);
        Some(StoreBuffers { base, each, pieces: stores.iter().map(|s| s.pieces()).sum(), count: 0 })
    }

    pub(super) fn bulk_store(&mut self, id: OpId, store: &'k BulkStore) -> Result<()> {
        let mut buffers = self.store_buffers.clone().expect("the loop has taken some");
        let op = self.k.op(id);
        let layout = self.plan.work[&id].clone();
        let dtype = self.k.ty(op.operands[1]).dtype();
        let (size, shared) = (dtype.size(), &store.panels.layout);
        let registers = self.get(op.operands[1], &layout);
        self.order_store(id, &layout);

        let lane = self.lane();
        let starts = self.w.icmp("eq", "i32", &lane, &int(0));
        let starts = self.not_empty(store, starts);
        let lanes = store.way.lanes(shared);
        let thread = self.thread_bytes(lanes.iter().map(|&b| b * size as u32).collect());
        let begins = self.box_begins(store, &layout);
        let panel_elements = (store.piece() / size) as u32;
        for (add, origin) in &store.boxes {
            for panel in 0..store.panels.count() {
                // After an odd number of copies an iteration begins with the buffer that the last one ended with.
                let other = buffers.count > 0 || buffers.pieces.is_multiple_of(BUFFERS);
                self.wait_for_reads(if other { BUFFERS - 1 } else { 0 });
                self.warp_barrier();
                let buffer = buffers.count % BUFFERS * buffers.each;
                buffers.count += 1;
                for (offset, of_box) in store.way.accesses(shared) {
                    if offset / panel_elements != panel as u32 {
                        continue;
                    }
                    let within = (offset % panel_elements) as usize * size + buffer;
                    let place = self.shared_place(&buffers.base, &thread, within as u32);
                    let register = |&r: &u32| registers[(store.registers[r as usize] ^ add) as usize].clone();
                    let elements: Vec<V> = of_box.iter().map(register).collect();
                    let words = pack(&mut self.w, dtype, &elements);
                    match &store.way {
                        Way::Matrices(plan) => self.store_matrices(&place, plan.transposed, &words),
                        Way::Vectors { .. } => {
                            self.store_shared(&place, Words::of(dtype, elements.len()), &words, None);
                        }
                    }
                }
                self.w.asm_effect("void", "fence.proxy.async.shared::cta;", "", &[]);
                self.warp_barrier();
                let from = self.w.bin("add", "i32", &buffers.base, &int(buffer));
                self.start_copy(store, &begins, origin, panel, &from, &starts);
            }
        }
        self.unread_copies = true;
        self.store_buffers = Some(buffers);
        Ok(())
    }

    /// Where the warp's first box begins, per dimension of the parameter.
    fn box_begins(&mut self, store: &BulkStore, layout: &LinearLayout) -> Vec<V> {
        let mut begins = vec![];
        for &(start, axis) in &store.coords {
            let mut begin = self.scalar(start);
            if let Some(axis) = axis {
                let mut bases = vec![0; layout.bases(Level::Lane).len()];
                bases.extend(layout.axis_bases(Level::Warp, axis));
                let own = self.thread_part(bases);
                begin = self.w.bin("add", "i32", &begin, &own);
            }
            begins.push(begin);
        }
        begins
    }

    /// `starts`, if the parameter has elements at all: the map of one that has none is that of another.
    fn not_empty(&mut self, store: &BulkStore, starts: V) -> V {
        let param = self.k.slots()[store.map.slot].param as usize;
        let extents = self.view(self.k.params[param].value).extents;
        extents.iter().fold(starts, |all, extent| {
            let some = self.w.icmp("sgt", "i32", extent, &int(0));
            self.w.bin("and", "i1", &all, &some)
        })
    }

    /// One lane copies a panel to where it belongs.
    fn start_copy(&mut self, store: &BulkStore, begins: &[V], origin: &[u32], panel: usize, from: &V, starts: &V) {
        let mut at = vec![];
        let last = begins.len() - 1;
        for (d, (begin, (_, axis))) in begins.iter().zip(&store.coords).enumerate() {
            let mut further = axis.map_or(0, |a| origin[a] as usize);
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
        let (copy, add) = match store.map.transfer {
            Transfer::Add(_) => ("cp.reduce.async.bulk", ".add"),
            _ => ("cp.async.bulk", ""),
        };
        let ptx = format!(
            "@$2 {copy}.tensor.{}d.global.shared::cta{add}.bulk_group{modifier} [$1, {{{}}}], [$0]{hint}; \
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

    /// Before a barrier behind which others may get the memory that copies read.
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
