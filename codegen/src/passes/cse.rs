//! Common subexpressions.
//!
//! Rule: of two operations with equal kind, operands and result types, where the first is visible at the second, the
//! second is the first. Operations with effects or regions are left alone. Two reads are equal only if memory cannot
//! have changed between them: nothing was written, and no `while` was entered, which may be waiting for another program.
//! The region of a combination shares nothing with its surroundings, so that it stays self-contained.

use super::edit::{Replacements, any, writes};
use crate::ir::{Kernel, OpKind, RegionId, Type, ValueId};
use smallvec::SmallVec;
use std::collections::HashMap;

/// Removes operations that repeat another.
pub fn cse(k: &mut Kernel) {
    let mut pass = Cse { replaced: Replacements::default(), scopes: vec![], epoch: 0 };
    pass.region(k, k.body);
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    kind: OpKind,
    operands: SmallVec<[ValueId; 4]>,
    types: SmallVec<[Type; 1]>,
    /// Of reads: the state of memory. 0 for the rest.
    epoch: u64,
}

struct Cse {
    replaced: Replacements,
    /// What is visible, one table for each region around.
    scopes: Vec<HashMap<Key, SmallVec<[ValueId; 1]>>>,
    /// Counts the states of memory; never goes back, so a state that was left is not met again.
    epoch: u64,
}

impl Cse {
    fn region(&mut self, k: &mut Kernel, region: RegionId) {
        self.scopes.push(HashMap::new());
        let mut ops = std::mem::take(&mut k.regions[region.index()].ops);
        ops.retain(|&id| {
            self.replaced.apply(k, id);
            let op = k.op(id);
            if !op.regions.is_empty() {
                self.regions(k, id);
                return true;
            }
            if writes(&op.kind) {
                self.epoch += 1;
            }
            if op.kind.has_effect() {
                return true;
            }
            let key = Key {
                kind: op.kind.clone(),
                operands: op.operands.clone(),
                types: op.results.iter().map(|&r| k.ty(r)).collect(),
                epoch: if op.kind.reads_memory() { self.epoch + 1 } else { 0 },
            };
            if let Some(known) = self.scopes.iter().rev().find_map(|s| s.get(&key)) {
                op.results.iter().zip(known).for_each(|(&r, &v)| self.replaced.insert(r, v));
                return false;
            }
            let scope = self.scopes.last_mut().expect("pushed above");
            scope.insert(key, op.results.clone());
            true
        });
        k.regions[region.index()].ops = ops;
        self.scopes.pop();
    }

    fn regions(&mut self, k: &mut Kernel, id: crate::ir::OpId) {
        let op = k.op(id);
        let regions = op.regions.clone();
        let changes_memory = match op.kind {
            OpKind::While => true,
            OpKind::For { .. } => any(k, &regions, writes),
            _ => false,
        };
        let isolated = !op.kind.has_regions();
        // A loop's body follows itself, so what it writes is new at its start too.
        self.epoch += changes_memory as u64;
        let outer = if isolated { std::mem::take(&mut self.scopes) } else { vec![] };
        regions.into_iter().for_each(|r| self.region(k, r));
        if isolated {
            self.scopes = outer;
        }
        self.epoch += changes_memory as u64;
    }
}
