//! Loop-invariant code motion.
//!
//! Rule: an operation directly in the body of a `for` or in a region of a `while`, whose operands are all defined outside
//! of the loop, moves before the loop, if it has no effect and cannot fail (see `may_fail`). What can fail moves only
//! from where it certainly runs: the body of a `for` that is known to run, or the condition of a `while`. Reads move
//! only out of a `for` that is known to run and writes nothing, never out of a `while`: it may be waiting for another
//! program. Inner loops first, so that an invariant leaves all loops at once.

use super::edit::{any, may_fail, walk, writes};
use crate::ir::{Kernel, Op, OpId, OpKind, RegionId, ValueId};
use std::collections::HashSet;

/// Moves invariants out of loops.
pub fn licm(k: &mut Kernel) {
    region(k, k.body);
}

fn region(k: &mut Kernel, r: RegionId) {
    let ops = std::mem::take(&mut k.regions[r.index()].ops);
    let mut out = vec![];
    for id in ops {
        for inner in k.op(id).regions.clone() {
            region(k, inner);
        }
        if matches!(k.op(id).kind, OpKind::For { .. } | OpKind::While) {
            hoist(k, id, &mut out);
        }
        out.push(id);
    }
    k.regions[r.index()].ops = out;
}

/// Moves the invariants of one loop to `out`.
fn hoist(k: &mut Kernel, id: OpId, out: &mut Vec<OpId>) {
    let op = k.op(id).clone();
    let mut inside: HashSet<ValueId> = HashSet::new();
    for &r in &op.regions {
        inside.extend(&k.region(r).args);
        walk(k, r, &mut |_, o| {
            inside.extend(&o.results);
            o.regions.iter().for_each(|&r| inside.extend(&k.region(r).args));
        });
    }
    let is_for = op.kind != OpKind::While;
    let runs = is_for && k.trip_count(&op).is_some_and(|n| n > 0);
    let may_read = runs && !any(k, &op.regions, writes);
    for (n, &r) in op.regions.iter().enumerate() {
        let certain = runs || (!is_for && n == 0);
        let ops = std::mem::take(&mut k.regions[r.index()].ops);
        let (moved, kept): (Vec<OpId>, Vec<OpId>) = ops.into_iter().partition(|&id| {
            let o = k.op(id);
            let allowed = !o.kind.has_effect()
                && !o.kind.has_regions()
                && (!o.kind.reads_memory() || may_read)
                && (certain || !may_fail_anywhere(k, o));
            let invariant = allowed && is_invariant(k, o, &inside);
            if invariant {
                o.results.iter().for_each(|r| {
                    inside.remove(r);
                });
            }
            invariant
        });
        out.extend(moved);
        k.regions[r.index()].ops = kept;
    }
}

/// With the operations in the regions of a combination.
fn may_fail_anywhere(k: &Kernel, op: &Op) -> bool {
    let mut fails = may_fail(k, op);
    op.regions.iter().for_each(|&r| walk(k, r, &mut |_, o| fails |= o.kind != OpKind::Yield && may_fail(k, o)));
    fails
}

fn is_invariant(k: &Kernel, op: &Op, inside: &HashSet<ValueId>) -> bool {
    let mut own: HashSet<ValueId> = HashSet::new();
    let mut invariant = op.operands.iter().all(|v| !inside.contains(v));
    for &r in &op.regions {
        own.extend(&k.region(r).args);
        walk(k, r, &mut |_, o| {
            invariant &= o.operands.iter().all(|v| own.contains(v) || !inside.contains(v));
            own.extend(&o.results);
        });
    }
    invariant
}
