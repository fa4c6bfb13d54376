//! From which loads a value is computed element by element, and in which layout each of them would have to be.
//!
//! A product's operand that is computed rather than loaded is best computed where the product wants it: then the loads
//! at its beginning take the operand's layout, provided that it reads memory in runs, and nothing moves between.

use super::assign::operand_layout;
use super::facts;
use super::layout::LinearLayout;
use crate::ir::{Kernel, OpId, OpKind, ValueId};

/// A load behind a value.
pub struct Origin {
    pub load: OpId,
    pub layout: LinearLayout,
    /// Whether the value is computed from all of it.
    pub whole: bool,
}

/// The loads of tiles from which `v`, in this layout, is computed element by element: through arithmetic, shapes, scans and
/// copies of whole matrices, not through products, reductions or other broadcasts. Nearest first. A matrix that is a load as
/// it is has none: it comes through shared memory.
pub fn origins(k: &Kernel, v: ValueId, layout: &LinearLayout) -> Vec<Origin> {
    let mut found: Vec<Origin> = vec![];
    let mut seen = vec![];
    let mut open = std::collections::VecDeque::from([(v, layout.clone(), true, layout.shape().rank() > 2)]);
    while let Some((v, layout, whole, computed)) = open.pop_front() {
        let Some(id) = k.defining_op(v).filter(|_| !seen.contains(&v)) else { continue };
        seen.push(v);
        let op = k.op(id);
        match op.kind {
            OpKind::Load { .. } if computed => found.push(Origin { load: id, layout, whole }),
            OpKind::Scan { .. } => open.push_back((op.operands[0], layout, whole, true)),
            OpKind::Transpose { .. } | OpKind::Reshape | OpKind::Slice { .. } | OpKind::Bitcast => {
                let cut = matches!(op.kind, OpKind::Slice { .. });
                // A slice leaves open where the rest of its operand is.
                if let Some(l) = operand_layout(k, op, 0, &layout).filter(|l| l.shape().rank() > 0) {
                    open.push_back((op.operands[0], l, whole && !cut, computed));
                }
            }
            // Copies of whole matrices.
            OpKind::Broadcast if matrix_of(k, op.operands[0]) == matrix_of(k, v) => {
                if let Some(l) = operand_layout(k, op, 0, &layout) {
                    open.push_back((op.operands[0], l, whole, computed));
                }
            }
            _ if op.kind.is_elementwise() => {
                let tiles = op.operands.iter().filter(|&&o| !k.ty(o).is_scalar());
                open.extend(tiles.map(|&o| (o, layout.clone(), whole, true)));
            }
            _ => {}
        }
    }
    found
}

/// The last two extents.
fn matrix_of(k: &Kernel, v: ValueId) -> Vec<usize> {
    let shape = k.ty(v).shape();
    (shape.rank().saturating_sub(2)..shape.rank()).map(|axis| shape.dim(axis)).collect()
}

/// Whether `v` is computed from a load that in this layout would read memory in runs.
pub fn in_runs(k: &Kernel, v: ValueId, layout: &LinearLayout) -> bool {
    origins(k, v, layout).iter().any(|o| reads_runs(k, o))
}

/// Whether a load in this layout reads memory in runs: of 8 bytes by a thread, of a sector's 32 by neighbouring lanes.
pub fn reads_runs(k: &Kernel, Origin { load, layout, .. }: &Origin) -> bool {
    let op = k.op(*load);
    let (shape, size) = (*layout.shape(), k.ty(op.results[0]).dtype().size());
    let access = facts::access(k, op.operands[0], shape, &op.operands[1..1 + shape.rank()]);
    let (thread, lanes) = layout.runs(access.axis, access.vector);
    thread * size >= 8 && lanes * size >= 32
}
