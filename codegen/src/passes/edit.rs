//! What passes share: replacing values, finding what surrounds what, dropping carried values.

use crate::ir::{Kernel, Op, OpId, OpKind, RegionId, ValueId};
use smallvec::SmallVec;
use std::collections::HashMap;

/// Values that stand for others. A pass walks definitions before uses and applies this to the operands it meets.
#[derive(Default)]
pub struct Replacements(HashMap<ValueId, ValueId>);

impl Replacements {
    pub fn insert(&mut self, old: ValueId, new: ValueId) {
        let new = self.resolve(new);
        assert_ne!(old, new, "a value cannot replace itself");
        self.0.insert(old, new);
    }

    pub fn resolve(&self, mut v: ValueId) -> ValueId {
        while let Some(&next) = self.0.get(&v) {
            v = next;
        }
        v
    }

    pub fn apply(&self, k: &mut Kernel, op: OpId) {
        for v in &mut k.ops[op.index()].operands {
            *v = self.resolve(*v);
        }
    }
}

/// The `yield` that ends a region.
pub fn terminator(k: &Kernel, region: RegionId) -> OpId {
    *k.region(region).ops.last().expect("the verifier has seen a `yield`")
}

/// What a region yields.
pub fn yielded(k: &Kernel, region: RegionId) -> &[ValueId] {
    &k.op(terminator(k, region)).operands
}

/// Calls `f` for every operation in a region and in the regions below, outer before inner.
pub fn walk(k: &Kernel, region: RegionId, f: &mut impl FnMut(OpId, &Op)) {
    for &id in &k.region(region).ops {
        let op = k.op(id);
        f(id, op);
        op.regions.iter().for_each(|&r| walk(k, r, f));
    }
}

/// Whether any operation in these regions satisfies `f`.
pub fn any(k: &Kernel, regions: &[RegionId], f: impl Fn(&OpKind) -> bool) -> bool {
    let mut found = false;
    regions.iter().for_each(|&r| walk(k, r, &mut |_, op| found |= f(&op.kind)));
    found
}

/// Whether an operation may change memory. After one that waits for others it is what they have made of it.
pub fn writes(kind: &OpKind) -> bool {
    let waits = matches!(kind, OpKind::Signal | OpKind::Wait | OpKind::ClusterReduce(_) | OpKind::GridSync);
    waits || matches!(kind, OpKind::Store | OpKind::StoreAdd | OpKind::Scatter { .. } | OpKind::Atomic { .. })
}

/// Whether the operation, beyond computing its results, may end in an error: where it would not have run, it must not
/// be run. An element outside of a view is no error for `load` and masked `gather`, but uninitialised memory is.
pub fn may_fail(k: &Kernel, op: &Op) -> bool {
    use crate::ir::BinaryOp::{Div, Rem};
    match op.kind {
        OpKind::Binary(Div | Rem) => {
            let d = k.ty(op.operands[1]).dtype();
            d.is_int() && k.constant(op.operands[1]).is_none_or(|bits| bits.to_i64(d) == 0)
        }
        OpKind::ViewSelect { .. } => true,
        ref kind => kind.reads_memory() || kind.has_effect(),
    }
}

fn retain<T: Clone>(items: &[T], keep: &[bool]) -> Vec<T> {
    items.iter().zip(keep).filter(|(_, k)| **k).map(|(item, _)| item.clone()).collect()
}

/// Removes the results of a `for`, `while` or `if` that are not to be kept, with all that carries them.
pub fn keep_slots(k: &mut Kernel, id: OpId, keep: &[bool]) {
    if keep.iter().all(|k| *k) {
        return;
    }
    let op = k.op(id).clone();
    let results = retain(&op.results, keep);
    let (bounds, carries) = match op.kind {
        OpKind::For { .. } => (3, true),
        OpKind::While => (0, true),
        _ => (1, false),
    };
    for (i, &r) in results.iter().enumerate() {
        k.values[r.index()].def = crate::ir::Def::Result(id, i as u32);
    }
    k.ops[id.index()].results = results.into();
    if carries {
        let kept = retain(&op.operands[bounds..], keep);
        let operands: SmallVec<_> = op.operands[..bounds].iter().copied().chain(kept).collect();
        k.ops[id.index()].operands = operands;
    }
    for (n, &region) in op.regions.iter().enumerate() {
        if carries {
            let first = matches!(op.kind, OpKind::For { .. }) as usize;
            let args = k.region(region).args.clone();
            let kept = retain(&args[first..], keep);
            let args: Vec<ValueId> = args[..first].iter().copied().chain(kept).collect();
            for (i, &a) in args.iter().enumerate() {
                k.values[a.index()].def = crate::ir::Def::Arg(region, i as u32);
            }
            k.regions[region.index()].args = args;
        }
        let is_condition = matches!(op.kind, OpKind::While) && n == 0;
        if !is_condition {
            let end = terminator(k, region);
            k.ops[end.index()].operands = retain(&k.op(end).operands, keep).into();
        }
    }
}
