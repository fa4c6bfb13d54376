//! Tiles that loops put together in shared memory (`gpu::assembly`): their pieces' stores, and the loads at the end.

use super::lower::{Lower, Result};
use super::text::{V, int};
use crate::gpu::assembly::AssemblyPlan;

impl Lower<'_> {
    /// Before the loop: places for its tiles.
    pub(super) fn start_assemblies(&mut self, plans: &[&AssemblyPlan]) {
        if !plans.is_empty() && !self.scratch_busy.is_empty() {
            self.barrier();
        }
        for plan in plans {
            let start = self.shared_top.next_multiple_of(128);
            self.shared_top = start + plan.scratch.bytes;
            self.shared_max = self.shared_max.max(self.shared_top);
            self.assembled.insert(plan.assembly.insert, start);
        }
    }

    /// In an iteration: its piece to its place.
    pub(super) fn store_piece(&mut self, plan: &AssemblyPlan) {
        let k = self.k;
        let a = plan.assembly;
        let dtype = k.ty(a.piece).dtype();
        let size = dtype.size() as u32;
        let (registers, _) = self.get_home(a.piece);
        let counter = self.scalar(k.region(k.op(a.owner).regions[0]).args[0]);
        let extent = k.ty(a.piece).shape().dim(a.axis);
        let number = self.w.bin("lshr", "i32", &counter, &int(extent.trailing_zeros()));
        let bases: Vec<u32> = plan.scratch.store.thread.iter().map(|&b| b * size).collect();
        let taken = bases.iter().fold(0, |m, b| m | b);
        let (thread, pieces) = bases.split_at(bases.len() - a.pieces.trailing_zeros() as usize);
        let (mut place, _) = self.thread_bytes(thread.to_vec());
        for (bit, &base) in pieces.iter().enumerate() {
            let own = self.w.bin("lshr", "i32", &number, &int(bit));
            let own = self.w.bin("and", "i32", &own, &int(1));
            let own = self.w.bin("mul", "i32", &own, &int(base));
            place = self.w.bin("xor", "i32", &place, &own);
        }
        let base = self.shared_base();
        let base = self.w.op(format_args!("add i32 {base}, {}", self.assembled[&a.insert]));
        self.store_accesses(
            &registers,
            dtype,
            &plan.scratch.store,
            &plan.scratch.passes[0].stores,
            &base,
            &(place, taken),
        );
    }

    /// After the loop: the tiles in the layouts in which they are needed.
    pub(super) fn end_assemblies(&mut self, plans: &[&AssemblyPlan]) -> Result<()> {
        if plans.is_empty() {
            return Ok(());
        }
        self.barrier();
        let top = self.shared_top;
        for plan in plans.iter().rev() {
            let a = plan.assembly;
            let start = self.assembled[&a.insert];
            let tile = self.k.op(a.owner).results[a.index];
            let [stores, loads] = plan.scratch.wavefronts(self.k.ty(tile).dtype().size(), 0);
            let (dtype, shape) = (self.k.ty(tile).dtype(), self.k.ty(tile).shape());
            self.shared_access("stores of pieces", dtype, shape, stores);
            self.shared_access("loads of what was put together", dtype, shape, loads);
            let base = self.shared_base();
            let base: V = self.w.op(format_args!("add i32 {base}, {start}"));
            let mut written = vec![int(0); plan.scratch.registers];
            self.load_accesses(&mut written, dtype, &plan.scratch.load, &plan.scratch.passes[0].loads, &base);
            let registers = plan.scratch.copies.iter().map(|&r| written[r as usize].clone()).collect();
            self.define(tile, registers)?;
            self.scratch_busy.push(start..start + plan.scratch.bytes);
            if self.shared_top == top && start + plan.scratch.bytes == self.shared_top {
                self.shared_top = start;
            }
        }
        Ok(())
    }
}
