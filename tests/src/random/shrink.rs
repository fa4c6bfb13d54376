//! Makes a failing case smaller: effects are removed, one at a time, as long as it still fails; the passes' dead-code
//! elimination then takes away what nobody needs.

use super::{Argument, Case, Rule};
use kiln_codegen::ir::{Kernel, OpId, OpKind, RegionId, ValueId};
use kiln_codegen::passes;

/// The smallest case found for which `fails` holds, as it does for `case`.
pub fn shrink(case: &Case, fails: &mut dyn FnMut(&Case) -> bool) -> Case {
    let mut best = case.clone();
    loop {
        let before = best.clone();
        for (region, op) in effects(&before) {
            let mut smaller = best.clone();
            smaller.kernel.regions[region.index()].ops.retain(|&o| o != op);
            passes::dce(&mut smaller.kernel);
            if fails(&smaller) {
                best = smaller;
            }
        }
        if effects(&best).len() == effects(&before).len() {
            return best;
        }
    }
}

/// What may be removed: all effects but the stores of magnitudes, which scale a tolerance.
fn effects(case: &Case) -> Vec<(RegionId, OpId)> {
    let mut found = vec![];
    collect(&case.kernel, case.kernel.body, &mut found);
    found.retain(|&(_, op)| {
        let operands = &case.kernel.op(op).operands;
        !operands.first().is_some_and(|&v| is_magnitude(case, v))
    });
    found
}

fn collect(k: &Kernel, region: RegionId, found: &mut Vec<(RegionId, OpId)>) {
    for &op in &k.region(region).ops {
        let o = k.op(op);
        if o.kind.has_effect() && o.kind != OpKind::Yield {
            found.push((region, op));
        }
        o.regions.iter().for_each(|&r| collect(k, r, found));
    }
}

fn is_magnitude(case: &Case, mut v: ValueId) -> bool {
    while let Some(op) = case.kernel.defining_op(v) {
        match case.kernel.op(op).operands.first() {
            Some(&source)
                if matches!(case.kernel.op(op).kind, OpKind::ViewSelect { .. } | OpKind::ViewNarrow { .. }) =>
            {
                v = source;
            }
            _ => return false,
        }
    }
    let index = case.kernel.params.iter().position(|p| p.value == v);
    index.is_some_and(|i| matches!(case.arguments[i], Argument::View { rule: Rule::Magnitude, .. }))
}
