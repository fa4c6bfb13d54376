//! Signals from one launch to another that runs beside it.
//!
//! A signal comes after a barrier of the program, so that one thread's release covers what all of them have stored. A wait
//! is one thread's: it looks until there is enough to take, takes it, and everybody else follows by a barrier, or, in
//! a kernel with bulk copies, where the producer waits (`gpu::bulk`), by the mbarriers of the copies that come next.

use super::lower::{Lower, Result};
use super::text::{V, int};
use crate::ir::{DType, Op};

impl Lower<'_> {
    pub(super) fn signal(&mut self, op: &Op) -> Result<()> {
        let view = self.view(op.operands[0]);
        let [count, at @ ..] = &op.operands[1..] else { unreachable!("verified") };
        let (count, at): (V, Vec<V>) = (self.scalar(*count), at.iter().map(|&v| self.scalar(v)).collect());
        let (address, inside) = self.element(&view, &at, DType::I32.size());
        self.barrier();
        let tid = self.tid();
        let first = self.w.icmp("eq", "i32", &tid, &int(0));
        let signals = self.w.and(Some(first), inside).expect("two conditions");
        let [signal, on] = ["signal", "signalled"].map(|s| self.w.label(s));
        self.w.branch(&signals, &signal, &on);
        self.w.start(&signal);
        self.w.asm_effect("void", "fence.acq_rel.gpu;", "", &[]);
        self.add_to(&address, &count);
        self.w.jump(&on);
        self.w.start(&on);
        Ok(())
    }

    pub(super) fn wait_for_signal(&mut self, op: &Op) -> Result<()> {
        let view = self.view(op.operands[0]);
        let [count, at @ ..] = &op.operands[1..] else { unreachable!("verified") };
        let (count, at): (V, Vec<V>) = (self.scalar(*count), at.iter().map(|&v| self.scalar(v)).collect());
        let (address, inside) = self.element(&view, &at, DType::I32.size());
        let tid = self.tid();
        let first = self.w.icmp("eq", "i32", &tid, &int(0));
        let waits = self.w.and(Some(first), inside).expect("two conditions");
        self.take(&address, &count, Some(&waits));
        self.barrier();
        Ok(())
    }

    /// The calling thread, where `enabled`, waits until the semaphore has so many and takes them.
    pub(super) fn take(&mut self, address: &V, count: &V, enabled: Option<&V>) {
        let [look, take, taken] = ["look", "take", "taken"].map(|s| self.w.label(s));
        match enabled {
            Some(enabled) => self.w.branch(enabled, &look, &taken),
            None => self.w.jump(&look),
        }
        self.w.start(&look);
        let found = self.w.asm_effect("i32", "ld.acquire.gpu.global.b32 $0, [$1];", "=r,l", &[("i64", address)]);
        let given = self.w.icmp("sge", "i32", &found, count);
        self.w.branch(&given, &take, &look);
        self.w.start(&take);
        let less = self.w.bin("sub", "i32", &int(0), count);
        self.add_to(address, &less);
        self.w.jump(&taken);
        self.w.start(&taken);
    }

    fn add_to(&mut self, address: &V, count: &V) {
        let ptx = "red.relaxed.gpu.global.add.u32 [$0], $1;";
        self.w.asm_effect("void", ptx, "l,r", &[("i64", address), ("i32", count)]);
    }
}
