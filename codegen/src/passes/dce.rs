//! Dead code.
//!
//! Rule: an operation stays if it has an effect, if a value of it is used by one that stays, or if it surrounds one that
//! stays. A value carried around a loop, or yielded by an `if`, stays if it is used for more than its own next value. A
//! `while` that reads memory stays: it may be waiting for another program.

use super::edit::{any, keep_slots, terminator, walk, yielded};
use crate::ir::{Def, Kernel, OpId, OpKind, RegionId, ValueId};

/// Removes dead operations and carried values.
pub fn dce(k: &mut Kernel) {
    let mut live = Liveness {
        values: vec![false; k.values.len()],
        ops: vec![false; k.ops.len()],
        owner_of_op: vec![None; k.ops.len()],
        owner_of_region: vec![None; k.regions.len()],
        values_to_do: vec![],
        ops_to_do: vec![],
    };
    let mut roots = vec![];
    walk(k, k.body, &mut |id, op| {
        for &r in &op.regions {
            live.owner_of_region[r.index()] = Some(id);
            k.region(r).ops.iter().for_each(|inner| live.owner_of_op[inner.index()] = Some(id));
        }
        let waits = op.kind == OpKind::While && any(k, &op.regions, OpKind::reads_memory);
        if waits || (op.kind.has_effect() && op.kind != OpKind::Yield) {
            roots.push(id);
        }
    });
    roots.into_iter().for_each(|op| live.op(op));
    live.run(k);
    sweep(k, k.body, &live);
}

struct Liveness {
    values: Vec<bool>,
    ops: Vec<bool>,
    owner_of_op: Vec<Option<OpId>>,
    owner_of_region: Vec<Option<OpId>>,
    values_to_do: Vec<ValueId>,
    ops_to_do: Vec<OpId>,
}

impl Liveness {
    fn value(&mut self, v: ValueId) {
        if !std::mem::replace(&mut self.values[v.index()], true) {
            self.values_to_do.push(v);
        }
    }

    fn op(&mut self, op: OpId) {
        if !std::mem::replace(&mut self.ops[op.index()], true) {
            self.ops_to_do.push(op);
        }
    }

    fn run(&mut self, k: &Kernel) {
        loop {
            if let Some(v) = self.values_to_do.pop() {
                self.visit_value(k, v);
            } else if let Some(op) = self.ops_to_do.pop() {
                self.visit_op(k, op);
            } else {
                return;
            }
        }
    }

    fn visit_value(&mut self, k: &Kernel, v: ValueId) {
        match k.def(v) {
            Def::Param(_) => {}
            Def::Result(op, i) => {
                self.op(op);
                match k.op(op).kind {
                    OpKind::For { .. } | OpKind::While => self.slot(k, op, i as usize),
                    OpKind::If => k.op(op).regions.iter().for_each(|&r| self.value(yielded(k, r)[i as usize])),
                    _ => {}
                }
            }
            Def::Arg(region, i) => {
                let Some(op) = self.owner_of_region[region.index()] else { return };
                self.op(op);
                match k.op(op).kind {
                    OpKind::For { .. } if i > 0 => self.slot(k, op, i as usize - 1),
                    OpKind::While => self.slot(k, op, i as usize),
                    _ => {}
                }
            }
        }
    }

    /// A carried value lives in all its places or in none.
    fn slot(&mut self, k: &Kernel, op: OpId, i: usize) {
        let o = k.op(op);
        let (bounds, first) = if o.kind == OpKind::While { (0, 0) } else { (3, 1) };
        self.value(o.results[i]);
        self.value(o.operands[bounds + i]);
        o.regions.iter().for_each(|&r| self.value(k.region(r).args[first + i]));
        self.value(yielded(k, o.regions[o.regions.len() - 1])[i]);
    }

    fn visit_op(&mut self, k: &Kernel, op: OpId) {
        if let Some(owner) = self.owner_of_op[op.index()] {
            self.op(owner);
        }
        let o = k.op(op);
        match o.kind {
            OpKind::For { .. } => o.operands[..3].iter().for_each(|&v| self.value(v)),
            OpKind::While => self.value(yielded(k, o.regions[0])[0]),
            _ => {
                o.operands.iter().for_each(|&v| self.value(v));
                if !o.kind.has_regions() {
                    o.regions.iter().for_each(|&r| self.op(terminator(k, r)));
                }
            }
        }
    }
}

fn sweep(k: &mut Kernel, region: RegionId, live: &Liveness) {
    let mut ops = std::mem::take(&mut k.regions[region.index()].ops);
    ops.retain(|op| live.ops[op.index()] || k.op(*op).kind == OpKind::Yield);
    for &op in &ops {
        let o = k.op(op);
        let regions = o.regions.clone();
        if o.kind.has_regions() {
            let keep: Vec<bool> = o.results.iter().map(|r| live.values[r.index()]).collect();
            keep_slots(k, op, &keep);
        }
        regions.into_iter().for_each(|r| sweep(k, r, live));
    }
    k.regions[region.index()].ops = ops;
}
