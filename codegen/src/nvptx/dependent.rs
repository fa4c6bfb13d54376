//! Launches that begin before the one before them has ended ("programmatic dependent launch", Hopper and later).
//!
//! The launcher lets a kernel's programs take their places as soon as no program of the launch before is left, or all of
//! them have allowed it; what that launch wrote may not be in memory yet. So every program *waits* for its end
//! (`griddepcontrol.wait`) before it touches memory that may have been written there, or stores: at the beginning, or in a
//! kernel with `settled` parameters before the first operation that does more than load from these.
//!
//! Such a kernel also *allows* the next launch to begin (`griddepcontrol.launch_dependents`), as soon as it has waited
//! itself: so all that was launched before this one has ended when the next one begins, which may find its settled
//! parameters changed by this one only, and the launcher sees to that. Other kernels do not: programs that can only wait
//! would hold places for nothing.
//!
//! Nothing is done before the wait in roles that compute side by side, by producers of bulk copies, nor where signals of
//! another launch are waited for.

use super::lower::Lower;
use crate::ir::{OpId, OpKind};

impl Lower<'_> {
    /// Whether something may be done before the launch before has ended.
    fn begins_early(&self) -> bool {
        let waits = || self.k.ops.iter().any(|op| op.kind == OpKind::Wait);
        let settled = || self.k.params.iter().any(|p| p.settled);
        self.sm >= 90 && !self.one_of_several && settled() && self.rings.is_empty() && !waits()
    }

    /// For each view among the parameters whether it is loaded from before the launch before has ended; empty if none is.
    pub(super) fn settled(&self) -> Vec<bool> {
        let views = || self.k.params.iter().filter(|p| !self.k.ty(p.value).is_scalar());
        if self.begins_early() { views().map(|p| p.settled).collect() } else { vec![] }
    }

    /// At the beginning: where nothing can be done before.
    pub(super) fn wait_for_earlier_grids(&mut self) {
        if !self.begins_early() && self.sm >= 90 {
            self.w.asm_effect("void", "griddepcontrol.wait;", "", &[]);
        }
    }

    /// Before an operation of the body: waits, if it is the first that has to.
    pub(super) fn wait_before(&mut self, id: OpId) {
        if self.begins_early() && !self.waited && self.must_wait(id) {
            self.waited = true;
            self.w.asm_effect("void", "griddepcontrol.wait;", "", &[]);
            self.w.asm_effect("void", "griddepcontrol.launch_dependents;", "", &[]);
        }
    }

    /// Whether an operation does more to memory than load what is settled, or is the end of the kernel.
    fn must_wait(&self, id: OpId) -> bool {
        let op = self.k.op(id);
        match &op.kind {
            OpKind::Load { .. } | OpKind::Gather { .. } => {
                let param = self.k.view_param(op.operands[0]);
                param.is_none_or(|param| !self.k.params[param as usize].settled)
            }
            OpKind::Yield => self.k.region(self.k.body).ops.last() == Some(&id),
            OpKind::Assert { .. } | OpKind::Print { .. } => false,
            kind if kind.has_effect() => true,
            _ => op.regions.iter().any(|&r| self.k.region(r).ops.iter().any(|&inner| self.must_wait(inner))),
        }
    }
}
