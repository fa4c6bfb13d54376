//! Which loads run ahead of the computation, into rings of shared-memory buffers, and by what means.
//!
//! Loads that feed tensor-core products are considered. On Hopper a loop's loads are *bulk copies* if all can be
//! ([`bulk`](super::bulk)): a producer thread starts them, mbarriers say when a buffer is full and when it is free,
//! and what else uses the tile reads it from the ring, too. So are loads outside of loops, if products alone use them.
//!
//! Otherwise a loop's load runs ahead by `cp.async` if all that becomes of it are operands of tensor-core products in
//! the same loop (directly or transposed), which then read it from shared memory; if its box can be found for any
//! iteration (coordinates computed from the loop's counter by pure scalar operations, a view from outside); if nobody
//! writes to its parameter; and if 16-byte copies along its last axis are possible. The loop then starts the copies of
//! iteration i + stages - 1 while it computes iteration i.
//!
//! Where no loop's products read rings, what a loop loads from such places runs ahead, too (of a loop with products one
//! iteration, of any loop as many as its author asks for): each thread copies what it will need into shared memory of its
//! own. (A copy in flight to registers would take one of the few scoreboards, which all that waits for results shares.) A
//! loop that comes before another one with the same loads, and more, reads that one's slots if all iterations have some.

use super::bulk::{self, BulkLoad, Nesting, Transfer};
use super::layout::{Ldmatrix, LinearLayout};
use super::mma::DotPlan;
use super::panels::Panels;
use super::{Chip, cluster, facts};
use crate::ir::{Access, Def, Finding, Kernel, Lint, OpId, OpKind, Region, RegionId, Type, ValueId};
use crate::passes::edit::{any, walk};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What a thread may copy for one iteration, in bytes.
const SLOT_BYTES: usize = 128;

/// A load that runs ahead.
#[derive(Clone, Debug)]
pub struct StagedLoad<C> {
    pub load: OpId,
    pub copy: C,
    /// How the tile lies in its buffer.
    pub panels: Panels,
    /// Bytes of one buffer.
    pub bytes: usize,
}

/// A copy by all threads, in 16-byte pieces.
#[derive(Clone, Debug)]
pub struct AsyncCopy {
    /// Which thread copies what.
    pub layout: LinearLayout,
    pub access: facts::Access,
}

/// A loop with loads that run ahead by `cp.async`.
#[derive(Clone, Debug)]
pub struct StagedLoop {
    /// Buffers in the ring, at least 2.
    pub stages: usize,
    pub loads: Vec<StagedLoad<AsyncCopy>>,
}

/// The bulk copies of one region: a loop's body, a branch, or the kernel's body.
#[derive(Clone, Debug)]
pub struct BulkRegion {
    /// Buffers in each ring: 1 where the region runs once at most.
    pub stages: usize,
    pub loads: Vec<StagedLoad<BulkLoad>>,
    /// Whether the region is the body of a loop that runs once at most, so that its buffers are free afterwards.
    pub once: bool,
}

impl BulkRegion {
    /// The first of each group of loads that arrive together.
    pub fn groups(&self) -> impl Iterator<Item = &StagedLoad<BulkLoad>> {
        self.loads.iter().filter(|l| l.copy.first == l.load)
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> usize {
        self.stages * self.loads.iter().map(|l| l.bytes).sum::<usize>()
    }

    /// The loads of a group, by its first.
    pub fn group(&self, first: &StagedLoad<BulkLoad>) -> impl Iterator<Item = &StagedLoad<BulkLoad>> {
        let first = first.load;
        self.loads.iter().filter(move |l| l.copy.first == first)
    }
}

/// A loop with loads that run ahead in slots of each thread's own.
#[derive(Clone, Debug)]
pub struct SlotLoop {
    /// Iterations that have slots at a time, at least 2; or all there are.
    pub stages: usize,
    /// Whether that is all of them.
    pub all: bool,
    pub loads: Vec<OpId>,
}

/// The slots of a later loop, for a loop all of whose loads are among that one's: what is copied once serves both.
#[derive(Clone, Debug)]
pub struct Borrowed {
    pub owner: OpId,
    /// Each load, and that of the owner.
    pub loads: Vec<(OpId, OpId)>,
}

/// What runs ahead.
#[derive(Clone, Debug, Default)]
pub struct Ahead {
    pub loops: HashMap<OpId, StagedLoop>,
    pub slots: HashMap<OpId, SlotLoop>,
    pub borrowed: HashMap<OpId, Borrowed>,
    pub bulk: BTreeMap<RegionId, BulkRegion>,
}

impl Ahead {
    /// A bulk copy, by its load.
    pub fn bulk_load(&self, load: OpId) -> Option<&StagedLoad<BulkLoad>> {
        self.bulk.values().flat_map(|r| &r.loads).find(|l| l.load == load)
    }

    /// A copy by `cp.async`, by its load, and its loop.
    pub fn async_load(&self, load: OpId) -> Option<(OpId, &StagedLoad<AsyncCopy>)> {
        self.loops.iter().flat_map(|(&id, l)| l.loads.iter().map(move |s| (id, s))).find(|(_, s)| s.load == load)
    }

    /// The panels that a load's tile lies in, if it runs ahead.
    pub fn panels(&self, load: OpId) -> Option<&Panels> {
        self.bulk_load(load).map(|l| &l.panels).or_else(|| self.async_load(load).map(|(_, l)| &l.panels))
    }
}

/// The load that a product's operand comes from, and whether it is transposed on the way. None of tiles of rank 3:
/// their products read no rings.
pub fn source(k: &Kernel, v: ValueId) -> Option<(OpId, bool)> {
    if k.ty(v).shape().rank() != 2 {
        return None;
    }
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
            let pure = op.kind.is_elementwise() || matches!(op.kind, OpKind::Const(_));
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

/// Plans what runs ahead in a kernel.
pub fn plan(k: &Kernel, dots: &HashMap<OpId, DotPlan>, warps: usize, chip: Chip, findings: &mut Vec<Finding>) -> Ahead {
    let (mut ahead, mut found) = plan_for(k, dots, warps, chip);
    if let Some((at, why)) = refusal(k, &ahead).filter(|_| !ahead.bulk.is_empty()) {
        (ahead, found) = plan_for(k, dots, warps, Chip { warpgroups: false, ..chip });
        findings.push(Finding::new(Lint::Fallback, k.op(at).loc, format!("no bulk copies: {why}")));
    }
    findings.append(&mut found);
    ahead
}

/// The operation that the producer of bulk copies cannot pass, and why.
fn refusal(k: &Kernel, ahead: &Ahead) -> Option<(OpId, &'static str)> {
    if let Some((_, exchange)) = k.meeting()
        && !exchanges_follow(k, ahead)
    {
        return Some((exchange, "the producer cannot come to where programs meet"));
    }
    let nesting = Nesting::of(k);
    let mut waits = (0..k.ops.len()).map(|i| OpId(i as u32)).filter(|&id| k.op(id).kind == OpKind::Wait);
    let left = waits.find(|&id| !waits_for_copies(k, &nesting, id, ahead))?;
    Some((left, "none comes before other reads after this wait"))
}

/// Whether programs meet only when all has been copied, and each for itself: the producer has left then, and nobody
/// waits for it.
fn exchanges_follow(k: &Kernel, ahead: &Ahead) -> bool {
    let has = |id: OpId, f: &dyn Fn(OpId) -> bool| {
        let mut found = f(id);
        k.op(id).regions.iter().for_each(|&r| walk(k, r, &mut |id, _| found |= f(id)));
        found
    };
    let copies = |id: OpId| ahead.bulk_load(id).is_some();
    let exchanges = |id: OpId| matches!(k.op(id).kind, OpKind::ClusterReduce(_) | OpKind::GridSync);
    let ops = &k.region(k.body).ops;
    let after = ops.iter().rposition(|&id| has(id, &copies)).map_or(0, |last| last + 1);
    let shared = ahead.bulk.values().flat_map(|r| &r.loads).any(|l| l.copy.share.is_some());
    !shared && !ops[..after].iter().any(|&id| has(id, &exchanges))
}

/// Whether the producer can wait for a signal instead of the computing warps: a bulk copy is the next thing that reads
/// memory.
fn waits_for_copies(k: &Kernel, nesting: &Nesting, wait: OpId, ahead: &Ahead) -> bool {
    let op = k.op(wait);
    let after = |op: OpId| {
        let follows = |r: &Region| r.ops.iter().position(|&o| o == op).map(|at| r.ops[at + 1..].to_vec());
        k.regions.iter().find_map(follows).unwrap_or_default()
    };
    let branches = nesting.around(wait).take_while(|&o| k.op(o).kind == OpKind::If);
    let next = std::iter::once(wait).chain(branches).find_map(|o| first_read(k, &after(o)));
    next.is_some_and(|o| ahead.bulk_load(o).is_some())
        && bulk::selections(k, op.operands[0]).is_some()
        && op.operands[1..].iter().all(|&v| bulk::computable(k, v))
}

/// The first operation that reads memory, also within loops and branches.
fn first_read(k: &Kernel, ops: &[OpId]) -> Option<OpId> {
    ops.iter().find_map(|&o| match &k.op(o).regions[..] {
        [] => k.op(o).kind.reads_memory().then_some(o),
        regions => regions.iter().find_map(|&r| first_read(k, &k.region(r).ops)),
    })
}

fn plan_for(k: &Kernel, dots: &HashMap<OpId, DotPlan>, warps: usize, chip: Chip) -> (Ahead, Vec<Finding>) {
    let mut users: Users = HashMap::new();
    for (i, op) in k.ops.iter().enumerate() {
        for &v in &op.operands {
            users.entry(v).or_default().push(OpId(i as u32));
        }
    }
    let planner = Planner { k, dots, users, nesting: Nesting::of(k), warps, chip };
    let (mut out, mut findings) = (Ahead::default(), vec![]);
    let mut left = chip.ring_bytes;
    if chip.warpgroups {
        planner.outside_of_loops(k.body, &mut left, &mut out);
    }
    for (i, op) in k.ops.iter().enumerate() {
        let OpKind::For { stages } = op.kind else { continue };
        let (id, body) = (OpId(i as u32), op.regions[0]);
        if stages == 1 {
            continue;
        }
        let bulk = planner.bulk_loads(id);
        if bulk.is_empty() && waits(k, id) {
            continue; // What is behind a wait may not be read before.
        }
        let copies = if bulk.is_empty() { planner.async_loads(body) } else { vec![] };
        let bytes: usize = bulk.iter().map(|l| l.bytes).chain(copies.iter().map(|l| l.bytes)).sum();
        if bytes == 0 {
            let loads = planner.slot_loads(body, stages > 0);
            if !loads.is_empty() {
                let wanted = if stages == 0 { 2 } else { stages as usize };
                let trips = k.trip_count(op).map(|n| n as usize).filter(|n| (1..=wanted).contains(n));
                out.slots.insert(id, SlotLoop { stages: trips.unwrap_or(wanted), all: trips.is_some(), loads });
            }
            continue;
        }
        let wanted = if stages == 0 { if 4 * bytes <= 200 << 10 { 4 } else { 3 } } else { stages as usize };
        let stages = wanted.min(left / bytes);
        if stages < 2 {
            let why = format!("loads do not run ahead: two buffers of {bytes} bytes are too many");
            findings.push(Finding::new(Lint::Fallback, op.loc, why));
        } else if bulk.is_empty() {
            out.loops.insert(id, StagedLoop { stages, loads: copies });
        } else {
            // Buffers of bulk copies are taken for the whole kernel.
            left -= stages * bytes;
            let once = planner.nesting.around(id).all(|o| k.op(o).kind == OpKind::If);
            out.bulk.insert(body, BulkRegion { stages, loads: bulk, once });
        }
    }
    if !out.loops.is_empty() || !out.bulk.is_empty() {
        out.slots.clear();
    }
    for region in &k.regions {
        for (i, &id) in region.ops.iter().enumerate() {
            let borrowed = region.ops[i + 1..].iter().find_map(|&owner| planner.borrows(&out.slots, region, id, owner));
            out.borrowed.extend(borrowed.map(|b| (id, b)));
        }
    }
    planner.explain(&out, &mut findings);
    (out, findings)
}

/// Whether something in a loop or branch waits for others: what comes after may not be read before.
fn waits(k: &Kernel, id: OpId) -> bool {
    any(k, &k.op(id).regions, waits_for_others)
}

fn waits_for_others(kind: &OpKind) -> bool {
    matches!(kind, OpKind::Wait | OpKind::GridSync)
}

impl Planner<'_> {
    /// The tile that a load makes, in panels.
    fn panels(&self, load: OpId) -> Result<Panels, &'static str> {
        let ty = self.k.ty(self.k.op(load).results[0]);
        if ty.shape().rank() < 2 {
            return Err("it is no matrix");
        }
        Panels::new(ty.shape(), ty.dtype().size()).map_err(|_| "its rows have fewer than 32 bytes")
    }

    /// A load as a bulk copy, or why it cannot be one.
    fn bulk(&self, load: OpId) -> Result<StagedLoad<BulkLoad>, &'static str> {
        let panels = self.panels(load)?;
        let copy = bulk::bulk_load(self.k, load, &panels)?;
        if self.nesting.around(load).next().is_some_and(|around| !bulk::reachable(self.k, &self.nesting, around)) {
            return Err("the producer cannot compute a loop's bounds or a condition around it");
        }
        let bytes = panels.bytes().next_multiple_of(panels.alignment());
        Ok(StagedLoad { load, copy, panels, bytes })
    }

    /// The loads of a region.
    fn loads(&self, region: RegionId) -> impl Iterator<Item = OpId> {
        let ops = self.k.region(region).ops.iter().copied();
        ops.filter(|&op| matches!(self.k.op(op).kind, OpKind::Load { .. }))
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
            Some(plan @ (DotPlan::Mma(_) | DotPlan::Wgmma(_))) => {
                (0..2).filter(|&i| operands[i] == v).all(|i| fetches(plan, i, panels, transposed)) && operands[2] != v
            }
            _ => false,
        }
    }

    /// The loads of a loop as bulk copies; none if some that could run ahead otherwise cannot be, or if no product
    /// reads them.
    fn bulk_loads(&self, id: OpId) -> Vec<StagedLoad<BulkLoad>> {
        if !self.chip.warpgroups {
            return vec![];
        }
        let body = self.k.op(id).regions[0];
        let mut loads = vec![];
        let mut feeds = false;
        for load in self.loads(body) {
            let mut bulk = match self.bulk(load) {
                Ok(bulk) => bulk,
                Err(_) if self.async_load(body, load).is_ok() => return vec![],
                Err(_) => continue,
            };
            cluster::share(self.k, &self.nesting, load, &bulk.panels, &mut bulk.copy);
            let uses = self.uses(load);
            let reads = |&(user, v, transposed): &_| self.reads(user, v, &bulk.panels, transposed);
            // Products read f32 rounded to tf32, others as it is.
            let (some, all) = (uses.iter().any(reads), !uses.is_empty() && uses.iter().all(reads));
            if bulk.panels.size == 4 && all {
                bulk.copy.map.transfer = Transfer::Tf32;
            }
            feeds |= if bulk.panels.size == 4 { all } else { some };
            loads.push(bulk);
        }
        self.arrive_together(body, &mut loads);
        if feeds { loads } else { vec![] }
    }

    /// Loads of a region with no work between them share their barriers: a wait costs a warp some forty cycles even if
    /// all is there.
    fn arrive_together(&self, region: RegionId, loads: &mut [StagedLoad<BulkLoad>]) {
        let mut loads = loads.iter_mut().peekable();
        let mut first: Option<(OpId, Option<usize>)> = None;
        for &op in &self.k.region(region).ops {
            if let Some(load) = loads.next_if(|l| l.load == op) {
                let programs = load.copy.share.map(|share| share.programs);
                match first {
                    Some((with, same)) if same == programs => load.copy.first = with,
                    _ => first = Some((op, programs)),
                }
            } else if self.works(op) {
                first = None;
            }
        }
    }

    /// Whether an operation is more than a step on the way of a coordinate or a tile.
    fn works(&self, op: OpId) -> bool {
        let op = self.k.op(op);
        let tile = op.operands.iter().any(|&v| matches!(self.k.ty(v), Type::Tile(..)) && !self.k.ty(v).is_scalar());
        let moves = matches!(op.kind, OpKind::Transpose { .. } | OpKind::Reshape | OpKind::Slice { .. });
        !op.regions.is_empty() || (tile && !moves)
    }

    /// The loads of a region that runs once at most, and of the branches in it, of which products make all use.
    fn outside_of_loops(&self, region: RegionId, left: &mut usize, out: &mut Ahead) {
        let k = self.k;
        let mut loads = vec![];
        for &id in &k.region(region).ops {
            let op = k.op(id);
            if op.kind == OpKind::If && bulk::computable(k, op.operands[0]) {
                op.regions.iter().for_each(|&r| self.outside_of_loops(r, left, out));
            }
            if matches!(op.kind, OpKind::Load { .. })
                && let Ok(mut bulk) = self.bulk(id)
                && bulk.bytes <= *left
                && self.alone(id)
            {
                *left -= bulk.bytes;
                if bulk.panels.size == 4 {
                    bulk.copy.map.transfer = Transfer::Tf32;
                }
                loads.push(bulk);
            }
        }
        if !loads.is_empty() {
            self.arrive_together(region, &mut loads);
            out.bulk.insert(region, BulkRegion { stages: 1, loads, once: false });
        }
    }

    /// Whether products by warpgroups make all use of a load, from its panels.
    fn alone(&self, load: OpId) -> bool {
        let Ok(panels) = self.panels(load) else { return false };
        let wgmma = |user: &OpId| matches!(self.dots.get(user), Some(DotPlan::Wgmma(_)));
        self.uses(load).iter().all(|(user, v, turned)| wgmma(user) && self.reads(*user, *v, &panels, *turned))
    }

    /// What runs ahead in a loop without rings, in slots of each thread's own. `asked`: whether its author asks for that.
    fn slot_loads(&self, body: RegionId, asked: bool) -> Vec<OpId> {
        let k = self.k;
        let ops = &k.region(body).ops;
        if !asked && !ops.iter().any(|o| self.dots.get(o).is_some_and(DotPlan::is_mma)) {
            return vec![];
        }
        let mut left = SLOT_BYTES * 32 * self.warps;
        let loads = ops.iter().copied().filter(|&load| {
            let op = k.op(load);
            let Some(&Type::Tile(dtype, shape)) = op.results.first().map(|&r| k.ty(r)).as_ref() else { return false };
            let bytes = (shape.numel() * dtype.size()).max(4 * 32 * self.warps);
            let fits = op.kind == (OpKind::Load { has_other: false }) && shape.rank() > 0 && bytes <= left;
            let found = fits && self.found_ahead(body, load).is_ok();
            left -= if found { bytes } else { 0 };
            found
        });
        loads.collect()
    }

    /// Whether a loop can do with the slots of a later one in the same region: both have slots for all iterations, and the
    /// later one's copies can start where the earlier one begins: their places are known there, and nothing is waited for
    /// between the two.
    fn borrows(&self, slots: &HashMap<OpId, SlotLoop>, region: &Region, id: OpId, owner: OpId) -> Option<Borrowed> {
        let k = self.k;
        let (own, lent) = (slots.get(&id)?, slots.get(&owner)?);
        let bounds = |id: OpId| [0, 1, 2].map(|i| k.constant(k.op(id).operands[i]));
        if !own.all || !lent.all || bounds(id) != bounds(owner) {
            return None;
        }
        let bodies = [id, owner].map(|id| k.op(id).regions[0]);
        let same = |a: OpId, b: OpId| {
            let (a, b) = (k.op(a), k.op(b));
            let coords = a.operands[1..].iter().zip(&b.operands[1..]);
            a.operands[0] == b.operands[0]
                && k.ty(a.results[0]) == k.ty(b.results[0])
                && coords.into_iter().all(|(&a, &b)| facts::same_function(k, bodies, [a, b]))
        };
        let partner = |&load: &OpId| lent.loads.iter().find(|&&l| same(load, l)).map(|&l| (load, l));
        let loads: Vec<(OpId, OpId)> = own.loads.iter().map(partner).collect::<Option<_>>()?;
        let place = |id: OpId| region.ops.iter().position(|&o| o == id);
        let late = &region.ops[place(id)?..];
        if region.ops[place(id)?..place(owner)?].iter().any(|&o| waits_for_others(&k.op(o).kind) || waits(k, o)) {
            return None;
        }
        let early = |v: &ValueId| !matches!(k.defining_op(*v), Some(o) if late.contains(&o));
        let found = lent.loads.iter().all(|&load| {
            let (op, mut needed) = (k.op(load), vec![]);
            op.operands[1..].iter().for_each(|&c| leaves(k, bodies[1], c, &mut needed));
            early(&op.operands[0]) && needed.iter().all(early)
        });
        found.then_some(Borrowed { owner, loads })
    }

    /// Whether a load's box can be found for any iteration of the loop with this body, and nobody writes there; if not, why.
    fn found_ahead(&self, body: RegionId, load: OpId) -> Result<(), &'static str> {
        let k = self.k;
        let op = k.op(load);
        let view = op.operands[0];
        if matches!(k.defining_op(view), Some(o) if k.region(body).ops.contains(&o)) {
            return Err("its view is made in the loop");
        }
        if facts::view_facts(k, view).is_none_or(|f| k.params[f.param].access != Access::Read) {
            return Err("the kernel may write to its parameter");
        }
        let movable = op.operands[1..].iter().all(|&c| movable(k, body, c));
        if movable { Ok(()) } else { Err("a coordinate is not computed from the loop's counter alone") }
    }

    fn async_loads(&self, body: RegionId) -> Vec<StagedLoad<AsyncCopy>> {
        self.loads(body).filter_map(|load| self.async_load(body, load).ok()).collect()
    }

    /// A load of the loop with this body as a copy by `cp.async`, or why it cannot be one.
    fn async_load(&self, body: RegionId, load: OpId) -> Result<StagedLoad<AsyncCopy>, &'static str> {
        let k = self.k;
        let op = k.op(load);
        if op.kind != (OpKind::Load { has_other: false }) {
            return Err("it has an `other` value");
        }
        let ty = k.ty(op.results[0]);
        let shape = ty.shape();
        if ty.dtype().size() != 2 || shape.rank() != 2 {
            return Err("it is no matrix of 16-bit elements");
        }
        self.found_ahead(body, load)?;
        let access = facts::access(k, op.operands[0], shape, &op.operands[1..]);
        if access.vector < 8 || access.axis != 1 {
            return Err("its rows are not known to consist of whole, aligned runs of 16 bytes");
        }
        let panels = self.panels(load)?;
        let uses = self.uses(load);
        let here = |user: &OpId| k.region(body).ops.contains(user);
        if !uses.iter().all(|&(user, v, transposed)| here(&user) && self.reads(user, v, &panels, transposed)) {
            return Err("not all that uses it are products of its loop that read from a ring");
        }
        // Small tiles get shorter vectors from `coalesced`.
        let layout = LinearLayout::coalesced(shape, access.axis, 8, self.warps).ok();
        let layout =
            layout.filter(|l| l.vectorise(access.axis, 8).width == 8).ok_or("it is too small for its warps")?;
        let access = facts::Access { vector: 8, ..access };
        let bytes = panels.bytes().next_multiple_of(panels.alignment());
        Ok(StagedLoad { load, copy: AsyncCopy { layout, access }, panels, bytes })
    }

    /// Says of the loads that products take why they do not run ahead, or by a slower way than the chip has.
    fn explain(&self, ahead: &Ahead, findings: &mut Vec<Finding>) {
        let k = self.k;
        let products =
            (0..k.ops.len()).map(|i| OpId(i as u32)).filter(|id| self.dots.get(id).is_some_and(DotPlan::is_mma));
        let taken = products.flat_map(|id| &k.op(id).operands[..2]).filter_map(|&v| source(k, v));
        let loads: BTreeSet<OpId> = taken.map(|(load, _)| load).filter(|&l| ahead.bulk_load(l).is_none()).collect();
        for load in loads {
            let Some(why) = self.slower(load) else { continue };
            let (op, looped) = (k.op(load), self.nesting.around(load).any(|o| k.op(o).kind != OpKind::If));
            let how = match () {
                _ if ahead.async_load(load).is_some() => "runs ahead by cp.async, not as a bulk copy",
                _ if ahead.slots.values().any(|l| l.loads.contains(&load)) => {
                    "runs ahead in slots of each thread's own"
                }
                _ if looped => "does not run ahead",
                _ => "is no bulk copy",
            };
            let finding = Finding::new(Lint::Fallback, op.loc, format!("{} {how}: {why}", k.ty(op.results[0])));
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
    }

    /// Why a load that a product takes is not what is best on this chip: a bulk copy, or else one by `cp.async`. None if
    /// it could be, or if its author wants it so.
    fn slower(&self, load: OpId) -> Option<&'static str> {
        let k = self.k;
        let around: Vec<OpId> = self.nesting.around(load).collect();
        let bulk = self.chip.warpgroups.then(|| self.bulk(load).err());
        match around.first().map(|&id| (id, &k.op(id).kind)) {
            Some((_, OpKind::For { stages: 1 })) => None,
            Some((id, OpKind::For { .. })) => {
                let body = k.op(id).regions[0];
                let waits = || waits(k, id).then_some("what comes after a wait may not be read before");
                bulk.flatten().or_else(|| self.async_load(body, load).err()).or_else(waits)
            }
            _ if around.iter().any(|&o| k.op(o).kind != OpKind::If) => {
                bulk.flatten().or(Some("it does not stand in a `for` itself"))
            }
            // Outside of loops bulk copies are for products alone.
            _ if self.alone(load) => bulk.map(|why| why.unwrap_or("rings leave no room for it")),
            _ => None,
        }
    }
}

/// Whether a product takes operand `i` (0 or 1) straight from panels.
pub fn fetches(plan: &DotPlan, i: usize, panels: &Panels, transposed: bool) -> bool {
    if panels.shape.rank() != 2 {
        return false;
    }
    match plan {
        DotPlan::Fma { .. } => false,
        DotPlan::Mma(m) => {
            let layout = if i == 0 { &m.a } else { &m.b };
            panels.size == 2 && Ldmatrix::plan(layout, &panels.seen(transposed), 2).is_some()
        }
        DotPlan::Wgmma(m) => panels.size == m.dtype.size(),
    }
}
