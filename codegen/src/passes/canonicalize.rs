//! Canonical forms: constants folded, identities applied, control flow decided, dead code removed.
//!
//! Rules for control flow (those for values stand in `fold`, `algebra` and `shapes`):
//! - `if` by a constant is the branch taken; a result that both branches yield from outside is that value.
//! - `for` with constant bounds that never runs is its initial values; one that runs once is its body.
//! - A carried value that the body yields unchanged, or as its initial value, is the initial value.
//! - `assert` of true is nothing; a masked access whose mask is false everywhere is `other`, or nothing.
//! - `cluster_reduce` in a cluster of one is its operand.
//!
//! Every rule makes the kernel smaller or moves it towards a normal form, so rounds end; a bound on them guards against
//! a mistake in that reasoning.

use super::edit::{Replacements, yielded};
use super::{algebra, dce, fold, shapes};
use crate::ir::{Kernel, Op, OpId, OpKind, RegionId, ValueId};

/// What becomes of an operation.
pub enum Rewrite {
    /// It goes; these are its results.
    Values(Vec<ValueId>),
    /// It stays, with the same results, as another operation.
    Op(OpKind, Vec<ValueId>),
}

impl Rewrite {
    pub fn value(v: ValueId) -> Rewrite {
        Rewrite::Values(vec![v])
    }

    pub fn op(kind: OpKind, operands: &[ValueId]) -> Rewrite {
        Rewrite::Op(kind, operands.to_vec())
    }
}

const MAX_ROUNDS: usize = 16;

/// Brings a kernel into canonical form.
pub fn canonicalize(k: &mut Kernel) {
    for _ in 0..MAX_ROUNDS {
        let mut round = Round { replaced: Replacements::default(), changed: false };
        round.region(k, k.body);
        dce(k);
        if !round.changed {
            break;
        }
    }
}

struct Round {
    replaced: Replacements,
    changed: bool,
}

impl Round {
    fn region(&mut self, k: &mut Kernel, region: RegionId) {
        let ops = std::mem::take(&mut k.regions[region.index()].ops);
        let mut out = vec![];
        self.ops(k, ops, &mut out);
        k.regions[region.index()].ops = out;
    }

    fn ops(&mut self, k: &mut Kernel, ops: Vec<OpId>, out: &mut Vec<OpId>) {
        for id in ops {
            self.replaced.apply(k, id);
            if self.decided(k, id, out) {
                self.changed = true;
                continue;
            }
            self.drop_invariant_slots(k, id);
            for region in k.op(id).regions.clone() {
                self.region(k, region);
            }
            self.drop_equal_results(k, id);
            self.rewrite(k, id, out);
        }
    }

    /// Applies rules to one operation until none fits; what remains of it goes to `out`.
    fn rewrite(&mut self, k: &mut Kernel, id: OpId, out: &mut Vec<OpId>) {
        loop {
            let op = k.op(id).clone();
            match rule(k, &op, out) {
                None => return out.push(id),
                Some(Rewrite::Values(values)) => {
                    self.changed = true;
                    op.results.iter().zip(values).for_each(|(&r, v)| self.replaced.insert(r, v));
                    return;
                }
                Some(Rewrite::Op(kind, operands)) => {
                    self.changed = true;
                    let o = &mut k.ops[id.index()];
                    (o.kind, o.operands) = (kind, operands.into());
                    o.regions.clear();
                }
            }
        }
    }

    /// Handles an `if` or a `for` whose course is known.
    fn decided(&mut self, k: &mut Kernel, id: OpId, out: &mut Vec<OpId>) -> bool {
        let op = k.op(id).clone();
        match op.kind {
            OpKind::If => {
                let Some(bits) = k.constant(op.operands[0]) else { return false };
                self.inline(k, &op, op.regions[if bits.0 != 0 { 0 } else { 1 }], &[], out);
                true
            }
            OpKind::For { .. } => match k.trip_count(&op) {
                Some(0) => {
                    op.results.iter().zip(&op.operands[3..]).for_each(|(&r, &v)| self.replaced.insert(r, v));
                    true
                }
                Some(1) => {
                    let values: Vec<ValueId> = [op.operands[0]].iter().chain(&op.operands[3..]).copied().collect();
                    self.inline(k, &op, op.regions[0], &values, out);
                    true
                }
                _ => false,
            },
            _ => false,
        }
    }

    /// Puts a region, which runs exactly once, in the place of the operation that holds it.
    fn inline(&mut self, k: &mut Kernel, op: &Op, region: RegionId, args: &[ValueId], out: &mut Vec<OpId>) {
        let inner = std::mem::take(&mut k.regions[region.index()]);
        inner.args.iter().zip(args).for_each(|(&a, &v)| self.replaced.insert(a, v));
        let (&end, ops) = inner.ops.split_last().expect("the verifier has seen a `yield`");
        self.ops(k, ops.to_vec(), out);
        self.replaced.apply(k, end);
        let values = k.op(end).operands.clone();
        op.results.iter().zip(values).for_each(|(&r, v)| self.replaced.insert(r, v));
    }

    /// Carried values that never change are replaced; `dce` then drops what carried them.
    fn drop_invariant_slots(&mut self, k: &Kernel, id: OpId) {
        let op = k.op(id);
        let (bounds, first) = match op.kind {
            OpKind::For { .. } => (3, 1),
            OpKind::While => (0, 0),
            _ => return,
        };
        let body = op.regions[op.regions.len() - 1];
        for (i, &result) in op.results.iter().enumerate() {
            let init = op.operands[bounds + i];
            let next = self.replaced.resolve(yielded(k, body)[i]);
            if next == init || next == k.region(body).args[first + i] {
                self.changed = true;
                self.replaced.insert(result, init);
                op.regions.iter().for_each(|&r| self.replaced.insert(k.region(r).args[first + i], init));
            }
        }
    }

    fn drop_equal_results(&mut self, k: &Kernel, id: OpId) {
        let op = k.op(id);
        if op.kind != OpKind::If {
            return;
        }
        let (then, otherwise) = (yielded(k, op.regions[0]), yielded(k, op.regions[1]));
        for (i, &result) in op.results.iter().enumerate() {
            // A value that both branches see is defined outside of both.
            if then[i] == otherwise[i] {
                self.changed = true;
                self.replaced.insert(result, then[i]);
            }
        }
    }
}

fn rule(k: &mut Kernel, op: &Op, before: &mut Vec<OpId>) -> Option<Rewrite> {
    if matches!(op.kind, OpKind::Const(_) | OpKind::Yield) {
        return None;
    }
    if let Some(bits) = fold::fold(k, op) {
        return Some(Rewrite::op(OpKind::Const(bits), &[]));
    }
    let constant = |i: usize| k.constant(op.operands[i]).map(|bits| bits.0 != 0);
    let last = op.operands.len().wrapping_sub(1);
    match op.kind {
        OpKind::ClusterReduce(_) if k.options.cluster < 2 => return Some(Rewrite::value(op.operands[0])),
        OpKind::Assert { .. } if constant(0) == Some(true) => return Some(Rewrite::Values(vec![])),
        OpKind::Gather { masked: true } if constant(last - 1) == Some(false) => {
            return Some(Rewrite::value(op.operands[last]));
        }
        OpKind::Scatter { masked: true } if constant(last) == Some(false) => return Some(Rewrite::Values(vec![])),
        _ => {}
    }
    algebra::simplify(k, op, before).or_else(|| shapes::simplify(k, op, before))
}
