//! What all programs of a cluster have in common.
//!
//! A kernel may ask that neighbours along axis 0 of the grid run at the same time, as a *cluster* (`Options::cluster`). A
//! value is *common* if it is the same in all programs of a cluster: it does not depend on where a program stands within
//! one. `program_id(0) / n` is common if n is a multiple of the cluster's size, since a cluster begins at such a multiple.
//!
//! A bulk copy whose box is common, and which all programs make equally often, is *shared*: each program fetches its part
//! of the rows and the hardware delivers it to all (multicast). What a tile costs of the second-level cache's bandwidth is
//! then divided by the size of the cluster.

use super::bulk::{BulkLoad, Nesting, Share};
use super::panels::Panels;
use crate::ir::{BinaryOp, Def, Kernel, OpId, OpKind, ValueId};

/// Rows that a swizzle's pattern spans: parts of a tile begin at multiples.
const PATTERN: usize = 8;

/// Whether a scalar that the producer can compute ([`computable`](super::bulk::computable)) is common.
fn common(k: &Kernel, v: ValueId) -> bool {
    let all = |vs: &[ValueId]| vs.iter().all(|&v| common(k, v));
    match k.def(v) {
        Def::Param(_) => true,
        // The counter of a loop that all walk alike.
        Def::Arg(region, _) => {
            k.ops.iter().find(|o| o.regions.contains(&region)).is_some_and(|o| all(&o.operands[..3]))
        }
        Def::Result(op, _) => {
            let op = k.op(op);
            match op.kind {
                OpKind::ProgramId { axis } => axis != 0,
                OpKind::Binary(BinaryOp::Div) if is_program(k, op.operands[0]) => {
                    k.constant(op.operands[1]).is_some_and(|n| (n.0 as u32).is_multiple_of(k.options.cluster.into()))
                }
                _ => all(&op.operands),
            }
        }
    }
}

/// Whether this is `program_id(0)`.
fn is_program(k: &Kernel, v: ValueId) -> bool {
    k.defining_op(v).is_some_and(|op| k.op(op).kind == OpKind::ProgramId { axis: 0 })
}

/// Whether all programs of a cluster come to an operation equally often.
fn met_alike(k: &Kernel, nesting: &Nesting, id: OpId) -> bool {
    nesting.around(id).all(|around| {
        let op = k.op(around);
        match op.kind {
            OpKind::For { .. } => op.operands[..3].iter().all(|&v| common(k, v)),
            OpKind::If => common(k, op.operands[0]),
            _ => false,
        }
    })
}

/// Makes a copy one that the cluster shares, if it can be.
pub fn share(k: &Kernel, nesting: &Nesting, load: OpId, panels: &Panels, copy: &mut BulkLoad) {
    let programs = usize::from(k.options.cluster);
    let each = panels.shape.dim(0) / programs.max(1);
    if programs < 2 || panels.shape.rank() != 2 || !each.is_multiple_of(PATTERN) || each == 0 {
        return;
    }
    if copy.coords.iter().all(|&c| common(k, c)) && met_alike(k, nesting, load) {
        // Of the parameter's dimensions, those that were selected have extents of 1, and the last is the tile's columns.
        let rows = (0..copy.coords.len() - 1).filter(|&d| copy.map.extents[d] != 1).collect::<Vec<_>>();
        if let [dim] = rows[..] {
            copy.map.extents[dim] = each as u32;
            copy.share = Some(Share { programs, dim });
        }
    }
}
