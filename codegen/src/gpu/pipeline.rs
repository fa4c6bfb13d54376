//! Which loads of a loop run ahead of it, into a ring of shared-memory buffers, and by what means.
//!
//! Loops with loads that feed tensor-core products are considered. On Hopper their loads are *bulk copies* if all can
//! be ([`bulk`](super::bulk)): a producer thread starts them, mbarriers say when a buffer is full and when it is free,
//! and what else uses the tile reads it from the ring, too. Otherwise a load runs ahead by `cp.async` if all that
//! becomes of it are operands of tensor-core products in the same loop (directly or transposed), which then read it
//! from shared memory; if its box can be found for any iteration (coordinates computed from the loop's counter by pure
//! scalar operations, a view from outside); if nobody writes to its parameter; and if 16-byte copies are possible. The
//! loop then starts the copies of iteration i + stages - 1 while it computes iteration i.

use super::bulk::{self, BulkLoad, Nesting};
use super::layout::{Ldmatrix, LinearLayout};
use super::mma::DotPlan;
use super::panels::Panels;
use super::{Chip, facts};
use crate::ir::{Access, Def, Kernel, Loc, OpId, OpKind, RegionId, Type, ValueId};
use std::collections::HashMap;

/// How a load runs ahead.
#[derive(Clone, Debug)]
pub enum Copy {
    /// By all threads, in 16-byte pieces: which thread copies what.
    Async { layout: LinearLayout, access: facts::Access },
    /// By the producer.
    Bulk(BulkLoad),
}

/// A load that runs ahead.
#[derive(Clone, Debug)]
pub struct StagedLoad {
    pub load: OpId,
    pub copy: Copy,
    /// How the tile lies in its buffer.
    pub panels: Panels,
    /// Bytes of one buffer.
    pub bytes: usize,
}

/// A loop with loads that run ahead.
#[derive(Clone, Debug)]
pub struct StagedLoop {
    /// Buffers in the ring, at least 2.
    pub stages: usize,
    /// All by `cp.async`, or all bulk copies.
    pub loads: Vec<StagedLoad>,
    /// Whether they are bulk copies.
    pub bulk: bool,
    /// Whether it runs once at most, so that its buffers are free afterwards.
    pub once: bool,
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

/// Where a value is used.
type Users = HashMap<ValueId, Vec<OpId>>;

/// What the plans of loops look at.
struct Planner<'k> {
    k: &'k Kernel,
    dots: &'k HashMap<OpId, DotPlan>,
    users: Users,
    nesting: Nesting,
    warps: usize,
    chip: Chip,
}

/// Plans the loops of a kernel.
pub fn plan(
    k: &Kernel,
    dots: &HashMap<OpId, DotPlan>,
    warps: usize,
    chip: Chip,
    notes: &mut Vec<(Loc, String)>,
) -> HashMap<OpId, StagedLoop> {
    let mut users: Users = HashMap::new();
    for (i, op) in k.ops.iter().enumerate() {
        for &v in &op.operands {
            users.entry(v).or_default().push(OpId(i as u32));
        }
    }
    let planner = Planner { k, dots, users, nesting: Nesting::of(k), warps, chip };
    let mut out = HashMap::new();
    let mut left = chip.ring_bytes;
    for (i, op) in k.ops.iter().enumerate() {
        let OpKind::For { stages } = op.kind else { continue };
        let id = OpId(i as u32);
        if stages == 1 {
            continue;
        }
        let mut loads = planner.bulk_loads(id);
        let bulk = !loads.is_empty();
        if !bulk {
            loads = planner.async_loads(op.regions[0]);
            if chip.warpgroups && !loads.is_empty() {
                notes.push((op.loc, "loads run ahead by cp.async: not all can be bulk copies".into()));
            }
        }
        let bytes: usize = loads.iter().map(|l| l.bytes).sum();
        if loads.is_empty() {
            continue;
        }
        let wanted = if stages == 0 { if 4 * bytes <= 200 << 10 { 4 } else { 3 } } else { stages as usize };
        let stages = wanted.min(left / bytes);
        if stages < 2 {
            notes.push((op.loc, format!("loads do not run ahead: two buffers of {bytes} bytes are too many")));
            continue;
        }
        let once = planner.nesting.around(id).all(|o| k.op(o).kind == OpKind::If);
        // Buffers of bulk copies are taken for the whole kernel.
        if bulk {
            left -= stages * bytes;
        }
        out.insert(id, StagedLoop { stages, loads, bulk, once });
    }
    out
}

impl Planner<'_> {
    /// The tile that a load makes, in panels.
    fn panels(&self, load: OpId) -> Option<Panels> {
        let op = self.k.op(load);
        let Type::Tile(dtype, shape) = op.results.first().map(|&r| self.k.ty(r))? else { return None };
        (shape.rank() >= 2).then(|| Panels::new(shape, dtype.size()).ok())?
    }

    /// The uses of a load's tile: by whom, as which value, whether transposed on the way.
    fn uses(&self, load: OpId) -> Vec<(OpId, ValueId, bool)> {
        let k = self.k;
        let tile = k.op(load).results[0];
        let mut uses = vec![];
        for &user in self.users.get(&tile).into_iter().flatten() {
            match k.op(user).kind {
                OpKind::Transpose { .. } => {
                    let transposed = k.op(user).results[0];
                    uses.extend(self.users.get(&transposed).into_iter().flatten().map(|&u| (u, transposed, true)));
                }
                _ => uses.push((user, tile, false)),
            }
        }
        uses
    }

    /// Whether a product reads its operand `v` from panels.
    fn reads(&self, user: OpId, v: ValueId, panels: &Panels, transposed: bool) -> bool {
        let operands = &self.k.op(user).operands;
        match self.dots.get(&user) {
            Some(DotPlan::Mma(_)) if panels.size != 2 => false,
            Some(plan @ (DotPlan::Mma(_) | DotPlan::Wgmma(_))) => {
                (0..2).filter(|&i| operands[i] == v).all(|i| fetches(plan, i, panels, transposed)) && operands[2] != v
            }
            _ => false,
        }
    }

    /// The loads of a loop as bulk copies; none if some that could run ahead otherwise cannot be, or if no product
    /// reads them.
    fn bulk_loads(&self, id: OpId) -> Vec<StagedLoad> {
        let k = self.k;
        let body = k.op(id).regions[0];
        if !self.chip.warpgroups || !bulk::reachable(k, &self.nesting, id) {
            return vec![];
        }
        let mut loads = vec![];
        let mut feeds = false;
        for &load in &k.region(body).ops {
            let Some(panels) = self.panels(load) else { continue };
            let Some(bulk) = bulk::bulk_load(k, load, &panels) else {
                if self.async_load(body, load).is_some() {
                    return vec![];
                }
                continue;
            };
            let uses = self.uses(load);
            feeds |= uses.iter().any(|&(user, v, transposed)| self.reads(user, v, &panels, transposed));
            let bytes = panels.bytes().next_multiple_of(1024);
            loads.push(StagedLoad { load, copy: Copy::Bulk(bulk), panels, bytes });
        }
        if feeds { loads } else { vec![] }
    }

    fn async_loads(&self, body: RegionId) -> Vec<StagedLoad> {
        self.k.region(body).ops.iter().filter_map(|&load| self.async_load(body, load)).collect()
    }

    fn async_load(&self, body: RegionId, load: OpId) -> Option<StagedLoad> {
        let k = self.k;
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
        let movable = coords.iter().all(|&c| movable(k, body, c));
        if dtype.size() != 2 || shape.rank() != 2 || !outside || !readable || !movable {
            return None;
        }
        let access = facts::access(k, view, shape, coords);
        if access.vector < 8 || access.axis != 1 {
            return None;
        }
        let panels = self.panels(load)?;
        let uses = self.uses(load);
        let here = |user: &OpId| k.region(body).ops.contains(user);
        if !uses.iter().all(|&(user, v, transposed)| here(&user) && self.reads(user, v, &panels, transposed)) {
            return None;
        }
        let layout = LinearLayout::coalesced(shape, access.axis, 8, self.warps).ok()?;
        // Small tiles get shorter vectors from `coalesced`.
        let access = facts::Access { vector: 8, ..access };
        if layout.vectorise(access.axis, 8).width != 8 {
            return None;
        }
        let bytes = panels.bytes().next_multiple_of(1024);
        Some(StagedLoad { load, copy: Copy::Async { layout, access }, panels, bytes })
    }
}

/// Whether a product takes operand `i` (0 or 1) straight from panels.
pub fn fetches(plan: &DotPlan, i: usize, panels: &Panels, transposed: bool) -> bool {
    match plan {
        DotPlan::Fma { .. } => false,
        DotPlan::Mma(m) => {
            let layout = if i == 0 { &m.a } else { &m.b };
            Ldmatrix::plan(layout, &panels.seen(transposed), 2).is_some()
        }
        DotPlan::Wgmma(_) => panels.size == 2 && panels.shape.rank() == 2,
    }
}
