//! Which loads of a loop run ahead of it: asynchronous copies into a ring of shared-memory buffers.
//!
//! A load qualifies if all that becomes of it are operands of tensor-core products in the same loop (directly or
//! transposed), which then read their fragments from shared memory with `ldmatrix`; if its box can be found for any
//! iteration (coordinates computed from the loop's counter by pure scalar operations, a view from outside); if nobody
//! writes to its parameter; and if 16-byte copies are possible. The loop then starts the copies of iteration
//! i + stages - 1 while it computes iteration i.

use super::facts;
use super::layout::{Ldmatrix, LinearLayout, SharedLayout};
use super::mma::DotPlan;
use crate::ir::{Access, Def, Kernel, OpId, OpKind, RegionId, Type, ValueId};
use std::collections::HashMap;

/// A load that runs ahead.
#[derive(Clone, Debug)]
pub struct StagedLoad {
    pub load: OpId,
    /// Which thread copies what.
    pub copy: LinearLayout,
    pub access: facts::Access,
    /// How the tile lies in its buffer.
    pub shared: SharedLayout,
    /// Bytes of one buffer.
    pub bytes: usize,
}

/// A loop with loads that run ahead.
#[derive(Clone, Debug)]
pub struct StagedLoop {
    /// Buffers in the ring, at least 2.
    pub stages: usize,
    pub loads: Vec<StagedLoad>,
}

/// The load that a product's operand comes from, and whether it is transposed on the way.
pub fn source(k: &Kernel, v: ValueId) -> Option<(OpId, bool)> {
    let op = k.defining_op(v)?;
    match k.op(op).kind {
        OpKind::Load { .. } => Some((op, false)),
        OpKind::Transpose { .. } => {
            let from = k.defining_op(k.op(op).operands[0])?;
            matches!(k.op(from).kind, OpKind::Load { .. }).then_some((from, true))
        }
        _ => None,
    }
}

/// Whether a scalar can be computed for any iteration of the loop with this body.
fn movable(k: &Kernel, body: RegionId, v: ValueId) -> bool {
    match k.def(v) {
        Def::Arg(region, i) => region != body || i == 0,
        Def::Param(_) => true,
        Def::Result(op, _) if !k.region(body).ops.contains(&op) => true,
        Def::Result(op, _) => {
            let op = k.op(op);
            let pure = matches!(
                op.kind,
                OpKind::Const(_)
                    | OpKind::Unary(_)
                    | OpKind::Binary(_)
                    | OpKind::Compare(_)
                    | OpKind::Select
                    | OpKind::Cast
            );
            pure && op.operands.iter().all(|&o| movable(k, body, o))
        }
    }
}

/// The scalars from outside of the loop that a coordinate needs.
pub fn leaves(k: &Kernel, body: RegionId, v: ValueId, out: &mut Vec<ValueId>) {
    match k.def(v) {
        Def::Result(op, _) if k.region(body).ops.contains(&op) => {
            for &o in &k.op(op).operands {
                leaves(k, body, o, out);
            }
        }
        Def::Arg(region, 0) if region == body => {}
        _ => out.push(v),
    }
}

/// Plans the loops of a kernel. `limit`: bytes of shared memory that buffers may take together.
pub fn plan(k: &Kernel, dots: &HashMap<OpId, DotPlan>, warps: usize, limit: usize) -> HashMap<OpId, StagedLoop> {
    let mut users: HashMap<ValueId, Vec<OpId>> = HashMap::new();
    for (i, op) in k.ops.iter().enumerate() {
        for &v in &op.operands {
            users.entry(v).or_default().push(OpId(i as u32));
        }
    }
    let mut out = HashMap::new();
    for (i, op) in k.ops.iter().enumerate() {
        let OpKind::For { stages } = op.kind else { continue };
        if stages == 1 {
            continue;
        }
        let body = op.regions[0];
        let loads: Vec<StagedLoad> =
            k.region(body).ops.iter().filter_map(|&load| staged_load(k, dots, &users, body, load, warps)).collect();
        let bytes: usize = loads.iter().map(|l| l.bytes).sum();
        if loads.is_empty() {
            continue;
        }
        let wanted = if stages == 0 { if 4 * bytes <= 100 << 10 { 4 } else { 3 } } else { stages as usize };
        let stages = wanted.min(limit / bytes);
        if stages >= 2 {
            out.insert(OpId(i as u32), StagedLoop { stages, loads });
        }
    }
    out
}

fn staged_load(
    k: &Kernel,
    dots: &HashMap<OpId, DotPlan>,
    users: &HashMap<ValueId, Vec<OpId>>,
    body: RegionId,
    load: OpId,
    warps: usize,
) -> Option<StagedLoad> {
    let op = k.op(load);
    if op.kind != (OpKind::Load { has_other: false }) {
        return None;
    }
    let Type::Tile(dtype, shape) = k.ty(op.results[0]) else { return None };
    let view = op.operands[0];
    let outside = !matches!(k.defining_op(view), Some(o) if k.region(body).ops.contains(&o));
    let facts = facts::view_facts(k, view)?;
    let readable = k.params[facts.param].access == Access::Read;
    let coords = &op.operands[1..];
    if dtype.size() != 2 || shape.rank() != 2 || !outside || !readable || !coords.iter().all(|&c| movable(k, body, c)) {
        return None;
    }
    let access = facts::access(k, view, shape, coords);
    if access.vector < 8 {
        return None;
    }
    // Rows of 16-byte vectors, permuted so that eight rows of one column meet different banks.
    let row = shape.dim(access.axis) * 2;
    let (per_phase, max_phase) = match row {
        128.. => (1, 8),
        64 => (2, 4),
        32 => (4, 2),
        _ => (1, 1),
    };
    let order = [access.axis, 1 - access.axis];
    let shared = SharedLayout::swizzled(shape, &order, 8, per_phase, max_phase).ok()?;

    // Every use: an operand of a tensor-core product of this loop, that ldmatrix can serve.
    let mut uses = vec![];
    for &user in users.get(&op.results[0])? {
        match k.op(user).kind {
            OpKind::Transpose { .. } => {
                let transposed = k.op(user).results[0];
                uses.extend(users.get(&transposed)?.iter().map(|&u| (u, transposed, true)));
            }
            _ => uses.push((user, op.results[0], false)),
        }
    }
    for (user, v, transposed) in uses {
        let DotPlan::Mma(plan) = dots.get(&user)? else { return None };
        let operands = &k.op(user).operands;
        if !k.region(body).ops.contains(&user) || operands[2] == v {
            return None;
        }
        let seen = if transposed { shared.transpose(&[1, 0, 2, 3]) } else { shared.clone() };
        for (i, layout) in [(0, &plan.a), (1, &plan.b)] {
            if operands[i] == v {
                Ldmatrix::plan(layout, &seen, 2)?;
            }
        }
    }
    let copy = LinearLayout::coalesced(shape, access.axis, 8, warps).ok()?;
    // Small tiles get shorter vectors from `coalesced`.
    let access = facts::Access { vector: 8, ..access };
    if copy.vectorise(access.axis, 8).width != 8 {
        return None;
    }
    Some(StagedLoad { load, copy, access, shared, bytes: (shape.numel() * 2).next_multiple_of(1024) })
}
