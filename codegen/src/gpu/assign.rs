//! Gives every tile value the layouts in which it exists.
//!
//! Two walks. Forwards, anchors (memory accesses, matrix products, reductions, carried values) choose a *home* layout,
//! and pure operations on anchored values inherit the best of their operands'. Values that cost nothing to compute
//! anywhere (constants, indices, broadcasts and what is computed from those alone) get none. Backwards, operations
//! with effects *demand* their operands in certain layouts; a demand on a value without home becomes demands on its
//! operands, one on a value with a home a conversion. Every version of a value is made right after its definition, so
//! conversions leave loops by themselves and no version is made twice.
//!
//! Invariants: scalars have exactly one version, replicated in every thread; `versions[v]` starts with the home, if
//! there is one and anybody demands `v`; a value nobody demands has no version and is not computed.

use super::assembly::{self, Assembly, AssemblyPlan};
use super::bulk::{Nesting, Transfer, selections};
use super::layout::{Conversion, LinearLayout};
use super::mma::{self, DotPlan};
use super::panels::Panels;
use super::pipeline::{self, Ahead, BulkRegion};
use super::stores::{BulkStore, bulk_store};
use super::suitable::{
    axis_bits, coalesced, coalesced_within_warps, in_order_layout, scanned_by_threads, spread_copies,
};
use super::{Chip, facts, origins};
use crate::ir::{Combine, Def, Finding, Kernel, Lint, Op, OpId, OpKind, RegionId, Reuse, Shape, Type, ValueId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;

/// How much a layout should be kept when several meet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Rank {
    /// Any layout would do.
    Default,
    /// Follows from another by a reduction or a change of shape.
    Derived,
    /// Made for memory accesses.
    Memory,
    /// Fixed by the tensor cores.
    Matrix,
}

/// The GPU IR of a kernel: tile IR beside this table of layouts.
pub struct Assignment {
    /// Warps of a program.
    pub warps: usize,
    /// Per value the layouts it exists in, the home first.
    pub versions: Vec<Vec<LinearLayout>>,
    /// Per value the layout it is defined in, if it has one.
    pub home: Vec<Option<LinearLayout>>,
    /// Versions beside the home that are computed like it, not converted from it.
    pub remade: HashSet<(ValueId, LinearLayout)>,
    /// How each matrix product is computed.
    pub dots: HashMap<OpId, DotPlan>,
    /// The layout that an operation with effects, a reduction, or a slice whose elements change lanes works in.
    pub work: HashMap<OpId, LinearLayout>,
    /// Loads that run ahead.
    pub ahead: Ahead,
    /// Stores as bulk copies.
    pub stores: HashMap<OpId, BulkStore>,
    /// Where the operands of warpgroups' products come from, if not from registers.
    pub shared_operands: HashMap<(OpId, usize), SharedOperand>,
    /// Tiles that loops put together in shared memory.
    pub assemblies: Vec<AssemblyPlan>,
    /// Values that are also kept in shared memory, for such products.
    pub placed: BTreeMap<ValueId, Panels>,
    /// What the author may want to know.
    pub findings: Vec<Finding>,
}

/// An operand that a product reads from shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedOperand {
    /// From the ring of the loop around: the tile of this load.
    Ring { load: OpId, transposed: bool },
    /// From the place of this value.
    Placed { value: ValueId, transposed: bool },
}

struct Assigner<'k> {
    k: &'k Kernel,
    chip: Chip,
    nesting: Nesting,
    out: Assignment,
    ranks: Vec<Rank>,
    /// Per shape (without extents of 1) and axis, the longest vector among the kernel's loads.
    longest: HashMap<(Vec<usize>, usize), usize>,
    /// The layouts of loads from which products' operands are computed where they are needed.
    wishes: HashMap<OpId, LinearLayout>,
    /// Tiles that loops are to put together in shared memory: they have no home.
    assemblies: Vec<Assembly>,
    /// Stores that bulk copies would make if they could, and why they cannot.
    no_copies: BTreeMap<OpId, &'static str>,
}

/// The warps a kernel runs with: the author's number, else 8 where a matrix product is large, else 4.
fn choose_warps(k: &Kernel) -> usize {
    if k.options.warps > 0 {
        return (k.options.warps as usize).next_power_of_two().min(32);
    }
    // Two warpgroups with 64 rows each; fewer rows are one's, however wide.
    let large = |o: &Op| {
        matches!(o.kind, OpKind::Dot(_)) && {
            let [_, m, _, n] = k.dot_extents(o);
            m >= 128 && m * n >= 128 * 128
        }
    };
    if k.ops.iter().any(large) { 8 } else { 4 }
}

/// Assigns layouts to a verified kernel.
pub fn assign(k: &Kernel, chip: Chip) -> Assignment {
    let mut assemblies = assembly::find(k);
    // In which layouts a tile is needed shows at the end.
    loop {
        match assign_with(k, chip, &assemblies) {
            Ok(assignment) => return assignment,
            Err(refused) => assemblies.retain(|a| *a != refused),
        }
    }
}

/// With these tiles in shared memory; or one that is too large, or not needed in one layout only.
fn assign_with(k: &Kernel, chip: Chip, assemblies: &[Assembly]) -> Result<Assignment, Assembly> {
    let warps = choose_warps(k);
    let out = Assignment {
        warps,
        versions: vec![vec![]; k.values.len()],
        home: vec![None; k.values.len()],
        remade: HashSet::new(),
        dots: HashMap::new(),
        work: HashMap::new(),
        ahead: Ahead::default(),
        stores: HashMap::new(),
        shared_operands: HashMap::new(),
        assemblies: vec![],
        placed: BTreeMap::new(),
        findings: vec![],
    };
    let mut a = Assigner {
        k,
        chip,
        nesting: Nesting::of(k),
        out,
        ranks: vec![Rank::Default; k.values.len()],
        longest: HashMap::new(),
        wishes: HashMap::new(),
        assemblies: assemblies.to_vec(),
        no_copies: BTreeMap::new(),
    };
    a.find_longest();
    a.plan_dots(chip);
    a.out.ahead = pipeline::plan(k, &a.out.dots, warps, chip, &mut a.out.findings);
    a.find_wishes();
    a.walk(k.body);
    a.demand_region(k.body, &[]);
    for &tile in assemblies {
        let result = k.op(tile.owner).results[tile.index];
        let ([needed], Some(piece)) = (&a.out.versions[result.index()][..], &a.out.home[tile.piece.index()]) else {
            return Err(tile);
        };
        let plan = AssemblyPlan::new(tile, piece, needed, k.ty(result).dtype().size(), chip);
        a.out.assemblies.push(plan.ok_or(tile)?);
    }
    for (id, why) in a.no_copies {
        let (op, ty) = (k.op(id), k.ty(k.op(id).operands[1]));
        a.out.findings.push(Finding::new(Lint::Fallback, op.loc, format!("{ty} is not stored by bulk copies: {why}")));
    }
    Ok(a.out)
}

impl Assignment {
    /// Row-major over the threads, a few elements each.
    pub fn default_layout(&self, shape: Shape) -> LinearLayout {
        let vector = (shape.numel() / (32 * self.warps)).clamp(1, 4);
        coalesced(shape, shape.rank().saturating_sub(1), vector, self.warps)
    }

    pub fn scalar_layout(&self) -> LinearLayout {
        LinearLayout::replicated(Shape::SCALAR, 5, self.warps.trailing_zeros() as usize)
    }

    /// The number of a version of `v`.
    ///
    /// # Panics
    /// If nobody demanded it, which is a mistake of this module.
    pub fn version(&self, v: ValueId, layout: &LinearLayout) -> usize {
        let found = self.versions[v.index()].iter().position(|l| l == layout);
        found.unwrap_or_else(|| panic!("{v:?} was not demanded in layout {layout}"))
    }

    /// The layouts, one line per version.
    pub fn dump(&self) -> String {
        let mut s = format!("warps {}\n", self.warps);
        for (i, versions) in self.versions.iter().enumerate() {
            for (j, l) in versions.iter().enumerate() {
                let home = if self.home[i].as_ref() == Some(l) { " (home)" } else { "" };
                let _ = writeln!(s, "%{i}.{j}: {l}{home}");
            }
        }
        s
    }
}

/// The extents other than 1, and which of them `axis` is.
fn without_ones(shape: Shape, axis: usize) -> (Vec<usize>, usize) {
    let extents: Vec<usize> = (0..shape.rank()).map(|a| shape.dim(a)).collect();
    let before = extents[..axis].iter().filter(|&&n| n > 1).count();
    (extents.into_iter().filter(|&n| n > 1).collect(), before)
}

impl Assigner<'_> {
    fn set(&mut self, v: ValueId, layout: Option<LinearLayout>, rank: Rank) {
        self.out.home[v.index()] = layout;
        self.ranks[v.index()] = rank;
    }

    fn home(&self, v: ValueId) -> Option<LinearLayout> {
        self.out.home[v.index()].clone()
    }

    /// Whether `v` is what a loop carries of a tile that it puts together in shared memory.
    fn assembled(&self, v: ValueId) -> bool {
        self.assemblies.iter().any(|a| {
            let op = self.k.op(a.owner);
            v == op.results[a.index] || v == self.k.region(op.regions[0]).args[1 + a.index]
        })
    }

    fn is_scalar(&self, v: ValueId) -> bool {
        self.k.ty(v).is_scalar()
    }

    /// The home of `v`, or what it would be stored as.
    fn home_or_default(&self, v: ValueId) -> LinearLayout {
        let shape = self.k.ty(v).shape();
        if shape.rank() == 0 {
            return self.out.scalar_layout();
        }
        self.home(v).unwrap_or_else(|| self.out.default_layout(shape))
    }

    /// Of several values of one shape the layout most worth keeping.
    fn best(&self, values: &[ValueId]) -> (Option<LinearLayout>, Rank) {
        let mut best: (Option<LinearLayout>, Rank) = (None, Rank::Default);
        for &v in values {
            if let Some(l) = self.home(v)
                && (best.0.is_none() || self.ranks[v.index()] > best.1)
            {
                best = (Some(l), self.ranks[v.index()]);
            }
        }
        best
    }

    fn find_longest(&mut self) {
        let k = self.k;
        for op in k.ops.iter().filter(|o| matches!(o.kind, OpKind::Load { .. })) {
            let shape = k.ty(op.results[0]).shape();
            if shape.rank() > 0 {
                let access = facts::access(k, op.operands[0], shape, &op.operands[1..1 + shape.rank()]);
                let longest = self.longest.entry(without_ones(shape, access.axis)).or_insert(1);
                *longest = access.vector.max(*longest);
            }
        }
    }

    fn plan_dots(&mut self, chip: Chip) {
        let k = self.k;
        for (i, op) in k.ops.iter().enumerate() {
            if let OpKind::Dot(precision) = op.kind {
                let id = OpId(i as u32);
                let plan = mma::plan(k, id, precision, self.out.warps, chip, &mut self.out.findings)
                    .unwrap_or_else(|| DotPlan::Fma { layout: self.out.default_layout(k.ty(op.results[0]).shape()) });
                self.out.dots.insert(id, plan);
            }
        }
    }

    fn find_wishes(&mut self) {
        let mut plans: Vec<_> = self.out.dots.iter().collect();
        plans.sort_by_key(|(id, _)| id.0);
        for (&id, plan) in plans {
            let DotPlan::Mma(m) = plan else { continue };
            let operands = &self.k.op(id).operands;
            for (&v, layout) in operands.iter().zip([&m.a, &m.b]) {
                for origin in origins::origins(self.k, v, layout) {
                    let fits = origin.whole && origin.layout.copies() == 1 && origins::reads_runs(self.k, &origin);
                    if fits && self.out.ahead.bulk_load(origin.load).is_none() {
                        self.wishes.entry(origin.load).or_insert(origin.layout);
                    }
                }
            }
        }
        // What else is read of these parameters in these shapes most likely meets what is computed from them.
        let parameter = |id: OpId| facts::view_facts(self.k, self.k.op(id).operands[0]).map(|f| f.param);
        let shape = |id: OpId| self.k.ty(self.k.op(id).results[0]).shape();
        let mut known: Vec<_> = self.wishes.iter().map(|(&id, l)| (id, l.clone())).collect();
        known.sort_by_key(|(id, _)| id.0);
        let loads = (0..self.k.ops.len() as u32).map(OpId);
        for load in loads.filter(|&id| matches!(self.k.op(id).kind, OpKind::Load { .. })) {
            let sibling = known.iter().find(|&&(id, _)| shape(id) == shape(load) && parameter(id) == parameter(load));
            if let Some((_, layout)) = sibling
                && self.out.ahead.bulk_load(load).is_none()
            {
                self.wishes.entry(load).or_insert(layout.clone());
            }
        }
    }

    // -- forwards ----------------------------------------------------------------------------------------------------

    fn walk(&mut self, region: RegionId) {
        for &op in &self.k.region(region).ops {
            self.forward(op);
        }
    }

    fn yielded(&self, region: RegionId) -> &[ValueId] {
        let last = *self.k.region(region).ops.last().expect("regions end with a yield");
        &self.k.op(last).operands
    }

    fn forward(&mut self, id: OpId) {
        let k = self.k;
        let op = k.op(id);
        let ty = op.results.first().map(|&r| k.ty(r));
        let scalar_result = matches!(ty, Some(Type::Tile(_, s)) if s.rank() == 0);
        match &op.kind {
            OpKind::Const(_) | OpKind::Iota { .. } | OpKind::Broadcast if !scalar_result => {
                self.set(op.results[0], None, Rank::Default);
            }
            kind if kind.is_elementwise() && !scalar_result => {
                let (layout, rank) = self.best(&op.operands);
                self.set(op.results[0], layout, rank);
            }
            OpKind::Transpose { perm } if !scalar_result => {
                let layout = self.home(op.operands[0]).map(|l| l.transpose(perm));
                self.set(op.results[0], layout, Rank::Derived);
            }
            OpKind::Reshape if !scalar_result => {
                let shape = k.ty(op.results[0]).shape();
                let layout = if self.is_scalar(op.operands[0]) { None } else { self.home(op.operands[0]) };
                let layout = layout.map(|l| l.reshape(shape).expect("the verifier checked the number of elements"));
                self.set(op.results[0], layout, Rank::Derived);
            }
            OpKind::Slice { offsets } if !scalar_result => {
                let shape = k.ty(op.results[0]).shape();
                self.out.work.remove(&id);
                let layout = self.home(op.operands[0]).map(|l| {
                    if let Some(map) = l.slice(offsets, shape) {
                        return map.layout;
                    }
                    match l.slice_within_warps(offsets, shape) {
                        Some(map) => {
                            self.out.work.insert(id, l);
                            spread_copies(map.layout)
                        }
                        None => self.out.default_layout(shape),
                    }
                });
                self.set(op.results[0], layout, Rank::Derived);
            }
            OpKind::Join { axis } => {
                let half = self.best(&op.operands).0.unwrap_or_else(|| self.home_or_default(op.operands[0]));
                self.set(op.results[0], Some(half.join(*axis as usize)), Rank::Derived);
            }
            OpKind::Reduce { axis, combine } => {
                let layout = self.axis_layout(op, *axis as usize, *combine, false);
                for &r in &op.results {
                    let result = (!self.is_scalar(r)).then(|| layout.reduce(*axis as usize));
                    self.set(r, result, Rank::Derived);
                }
                self.out.work.insert(id, layout);
            }
            OpKind::ClusterReduce(_) if !scalar_result => {
                let layout = self.home_or_default(op.operands[0]);
                self.set(op.results[0], Some(layout), Rank::Derived);
            }
            OpKind::Scan { axis, combine, .. } => {
                let layout = self.axis_layout(op, *axis as usize, *combine, true);
                for &r in &op.results {
                    self.set(r, Some(layout.clone()), Rank::Derived);
                }
                self.out.work.insert(id, layout);
            }
            OpKind::Dot(_) => {
                let layout = self.out.dots[&id].accumulator().clone();
                let rank = if self.out.dots[&id].is_mma() { Rank::Matrix } else { Rank::Default };
                self.set(op.results[0], Some(layout), rank);
            }
            // A tile in a ring is read in whatever layout it is needed.
            OpKind::Load { .. } if self.out.ahead.bulk_load(id).is_some() => {
                self.set(op.results[0], None, Rank::Default);
            }
            OpKind::Load { .. } if self.wishes.contains_key(&id) => {
                self.set(op.results[0], Some(self.wishes[&id].clone()), Rank::Memory);
            }
            OpKind::Load { .. } if !scalar_result => {
                let shape = k.ty(op.results[0]).shape();
                let coords = &op.operands[1..1 + shape.rank()];
                let mut access = facts::access(k, op.operands[0], shape, coords);
                // Wide elements that meet narrow ones take several accesses of 16 bytes side by side, so that
                // both lie in the same threads.
                if access.vector * k.ty(op.results[0]).dtype().size() == 16 {
                    let longest = self.longest.get(&without_ones(shape, access.axis)).copied();
                    access.vector = longest.unwrap_or(1).max(access.vector);
                }
                self.set(op.results[0], Some(self.memory_layout(shape, access)), Rank::Memory);
            }
            OpKind::Gather { .. } if !scalar_result => {
                let (layout, rank) = self.best(&op.operands[1..]);
                let shape = k.ty(op.results[0]).shape();
                let layout = layout.unwrap_or_else(|| self.out.default_layout(shape));
                self.set(op.results[0], Some(layout), rank);
            }
            OpKind::Scatter { .. } | OpKind::Atomic { .. } => {
                let layout = match self.best(&op.operands[1..]).0 {
                    Some(l) => l,
                    None => self.home_or_default(op.operands[1]),
                };
                if let Some(&r) = op.results.first()
                    && !self.is_scalar(r)
                {
                    self.set(r, Some(layout.clone()), Rank::Derived);
                }
                self.out.work.insert(id, layout);
            }
            OpKind::Store | OpKind::StoreAdd => {
                let mut layout = self.store_layout(op);
                if let Some((own, store)) = self.as_copies(id, &layout) {
                    layout = own;
                    self.out.stores.insert(id, store);
                }
                self.out.work.insert(id, layout);
            }
            OpKind::For { .. } => self.forward_for(op),
            OpKind::While => self.forward_while(op),
            OpKind::If => {
                for &r in &op.regions {
                    self.walk(r);
                }
                for (i, &r) in op.results.iter().enumerate() {
                    if self.is_scalar(r) {
                        continue;
                    }
                    let ends: Vec<ValueId> = op.regions.iter().map(|&region| self.yielded(region)[i]).collect();
                    let (layout, rank) = self.best(&ends);
                    let layout = layout.unwrap_or_else(|| self.out.default_layout(k.ty(r).shape()));
                    self.set(r, Some(layout), rank);
                }
            }
            _ => {}
        }
    }

    fn memory_layout(&self, shape: Shape, access: facts::Access) -> LinearLayout {
        coalesced(shape, access.axis, access.vector, self.out.warps)
    }

    /// The layout to reduce or scan in: the operands' own if its hardware bits can be told apart, and no other is better.
    fn axis_layout(&self, op: &Op, axis: usize, combine: Combine, scan: bool) -> LinearLayout {
        let shape = self.k.ty(op.operands[0]).shape();
        let named = combine != Combine::Region && !scan;
        let ok = |l: &LinearLayout| axis_bits(l, axis).is_some();
        match self.best(&op.operands).0 {
            Some(l) if scan && ok(&l) => scanned_by_threads(&l, axis).unwrap_or(l),
            Some(l) if ok(&l) => l,
            _ if named => self.out.default_layout(shape),
            _ => in_order_layout(shape, axis, self.out.warps),
        }
    }

    /// The layout to store in: the value's own if its threads write runs that are long enough.
    fn store_layout(&self, op: &Op) -> LinearLayout {
        let shape = self.k.ty(op.operands[1]).shape();
        if shape.rank() == 0 {
            return self.out.scalar_layout();
        }
        let access = facts::access(self.k, op.operands[0], shape, &op.operands[2..]);
        let ideal = self.memory_layout(shape, access);
        let size = self.k.ty(op.operands[1]).dtype().size();
        let Some(own) = self.home(op.operands[1]) else { return ideal };
        // Bytes in a row that a warp writes at once, and the bytes per thread.
        let quality = |l: &LinearLayout| {
            let (vector, run) = l.runs(access.axis, access.vector);
            ((run * size).min(64), (vector * size).min(8))
        };
        let best = quality(&ideal);
        let good = |l: &LinearLayout, run: usize| quality(l).0 >= best.0.min(run) && quality(l).1 >= best.1;
        // A tile that stays within its warps needs no barrier on the way: whole sectors are enough.
        let near = || coalesced_within_warps(&own, access).filter(|l| good(l, 32));
        if good(&own, 64) { own } else { near().unwrap_or(ideal) }
    }

    /// The store of what warpgroups' products give as bulk copies, where in the layout that it has it would not do, and a
    /// loop goes on. That it cannot be made by them is remembered.
    fn as_copies(&mut self, id: OpId, suits: &LinearLayout) -> Option<(LinearLayout, BulkStore)> {
        self.no_copies.remove(&id);
        let value = self.k.op(id).operands[1];
        let own = self.home(value).filter(|own| own != suits)?;
        let of_products = matches!(self.ranks[value.index()], Rank::Matrix | Rank::Derived)
            && self.out.dots.values().any(|dot| matches!(dot, DotPlan::Wgmma(_)));
        let around = self.nesting.around(id).next();
        let looped = around.is_some_and(|o| matches!(self.k.op(o).kind, OpKind::For { .. }));
        // What rings leave; their barriers come first, and buffers begin at multiples of 1,024.
        let rings: usize = self.out.ahead.bulk.values().map(BulkRegion::bytes).sum();
        let left = self.chip.shared_bytes.saturating_sub(rings + (2 << 10)) / self.out.warps;
        if !of_products || !looped || rings == 0 {
            return None;
        }
        match bulk_store(self.k, id, &own, left) {
            Ok(store) => Some((own, store)),
            Err(why) => {
                self.no_copies.insert(id, why);
                None
            }
        }
    }

    fn forward_for(&mut self, op: &Op) {
        let region = op.regions[0];
        let args = self.k.region(region).args[1..].to_vec();
        let inits = op.operands[3..].to_vec();
        for (&arg, &init) in args.iter().zip(&inits) {
            if !self.is_scalar(arg) && !self.assembled(arg) {
                let (layout, rank) = self.best(&[init]);
                self.set(arg, layout, rank);
            }
        }
        self.settle(&args, region, region);
        for (&arg, &r) in args.iter().zip(&op.results) {
            let (layout, rank) = self.best(&[arg]);
            self.set(r, layout, rank);
        }
    }

    /// Walks a loop's body until the carried values' layouts are those that the body would like to yield.
    fn settle(&mut self, args: &[ValueId], body: RegionId, yields: RegionId) {
        for last in [false, false, true] {
            self.walk(body);
            let ends = self.yielded(yields).to_vec();
            let mut changed = false;
            for (&arg, &end) in args.iter().zip(&ends) {
                if self.is_scalar(arg) || self.assembled(arg) || last && self.home(arg).is_some() {
                    continue;
                }
                let (layout, rank) = self.best(&[arg, end]);
                let layout = layout.unwrap_or_else(|| self.out.default_layout(self.k.ty(arg).shape()));
                if self.home(arg).as_ref() != Some(&layout) {
                    self.set(arg, Some(layout), rank);
                    changed = true;
                }
            }
            if !changed {
                return;
            }
        }
        self.walk(body);
    }

    fn forward_while(&mut self, op: &Op) {
        let (condition, body) = (op.regions[0], op.regions[1]);
        let (first, second) = (self.k.region(condition).args.clone(), self.k.region(body).args.clone());
        for (i, &init) in op.operands.iter().enumerate() {
            if !self.is_scalar(init) {
                let (layout, rank) = self.best(&[init]);
                let layout = layout.unwrap_or_else(|| self.out.default_layout(self.k.ty(init).shape()));
                for v in [first[i], second[i], op.results[i]] {
                    self.set(v, Some(layout.clone()), rank);
                }
            }
        }
        self.walk(condition);
        self.walk(body);
    }

    // -- backwards ---------------------------------------------------------------------------------------------------

    /// `v` is needed in this layout.
    fn demand(&mut self, v: ValueId, layout: &LinearLayout) {
        let k = self.k;
        let Type::Tile(_, shape) = k.ty(v) else { return };
        let home = if shape.rank() == 0 { Some(self.out.scalar_layout()) } else { self.home(v) };
        let mut wanted = vec![];
        if let Some(h) = home {
            // Scalars are demanded "in any layout".
            if shape.rank() > 0 && h != *layout {
                wanted.push(layout.clone());
            }
            wanted.insert(0, h);
        } else {
            wanted.push(layout.clone());
        }
        for (i, l) in wanted.iter().enumerate() {
            if self.out.versions[v.index()].contains(l) {
                continue;
            }
            let anchored = shape.rank() == 0 || self.home(v).is_some();
            self.out.versions[v.index()].push(l.clone());
            if anchored && i > 0 && !self.remade(v, l) {
                continue;
            }
            if let Def::Result(op, _) = k.def(v) {
                self.demand_operands(op, l);
            }
        }
    }

    /// Whether `v`, which has a home, is computed once more for this layout instead of being converted: if it is one of
    /// several functions of one value, whose conversion then serves all of them.
    fn remade(&mut self, v: ValueId, layout: &LinearLayout) -> bool {
        let k = self.k;
        let argument = |v: ValueId| {
            let op = k.op(k.defining_op(v)?);
            matches!(op.kind, OpKind::Unary(_)).then(|| op.operands[0])
        };
        let Some(mut root) = argument(v) else { return false };
        while let Some(x) = argument(root) {
            root = x;
        }
        let functions = k.ops.iter().filter(|o| matches!(o.kind, OpKind::Unary(_)) && o.operands[0] == root).count();
        let again = functions > 1 && layout.copies() == 1;
        if again {
            self.out.remade.insert((v, layout.clone()));
        }
        again
    }

    fn demand_home(&mut self, v: ValueId) {
        if matches!(self.k.ty(v), Type::Tile(..)) {
            let layout = self.home_or_default(v);
            self.demand(v, &layout);
        }
    }

    /// A result of `op` is made in `layout`.
    fn demand_operands(&mut self, id: OpId, layout: &LinearLayout) {
        let k = self.k;
        let op = k.op(id);
        match &op.kind {
            // The producer computes where its copies come from.
            OpKind::Load { .. } if self.out.ahead.bulk_load(id).is_some() => return,
            // What is received lies in shared memory, too, and is read in whatever layout it is needed.
            OpKind::Receive => return,
            OpKind::Load { .. } | OpKind::Gather { .. } => {
                for &v in &op.operands {
                    self.demand(v, layout);
                }
            }
            OpKind::Reduce { .. } | OpKind::Scan { .. } => {
                let work = self.out.work[&id].clone();
                for &v in &op.operands {
                    self.demand(v, &work);
                }
                // All results come at once.
                for &r in &op.results {
                    self.demand_home(r);
                }
            }
            OpKind::Slice { .. } if self.out.work.contains_key(&id) => {
                let work = self.out.work[&id].clone();
                self.demand(op.operands[0], &work);
            }
            OpKind::Dot(_) => match self.out.dots[&id].clone() {
                DotPlan::Fma { layout } => {
                    self.demand_home(op.operands[0]);
                    self.demand_home(op.operands[1]);
                    self.demand(op.operands[2], &layout);
                }
                DotPlan::Mma(m) => {
                    for (i, l) in [&m.a, &m.b].into_iter().enumerate() {
                        if self.demand_staged(id, i).is_none() {
                            self.demand(op.operands[i], l);
                        }
                    }
                    self.demand(op.operands[2], &m.acc);
                }
                DotPlan::Wgmma(m) => {
                    for i in 0..2 {
                        let source = match self.demand_staged(id, i) {
                            Some(ring) => Some(ring),
                            None if i == 0 && self.moves_freely(op.operands[0], &m.a) => None,
                            None => Some(self.place(op.operands[i])),
                        };
                        match source {
                            Some(source) => _ = self.out.shared_operands.insert((id, i), source),
                            None => self.demand(op.operands[i], &m.a),
                        }
                    }
                    self.demand(op.operands[2], &m.acc);
                }
            },
            // Demanded where they stand.
            OpKind::For { .. } | OpKind::While | OpKind::If | OpKind::Atomic { .. } | OpKind::ClusterReduce(_) => {}
            OpKind::ProgramId { .. } | OpKind::NumPrograms { .. } | OpKind::Const(_) | OpKind::Iota { .. } => {}
            OpKind::Dim { .. } => self.demand_view(op.operands[0]),
            _ => {
                for (i, &v) in op.operands.iter().enumerate() {
                    if let Some(l) = operand_layout(k, op, i, layout) {
                        self.demand(v, &l);
                    }
                }
            }
        }
        if let Some(&v) = op.operands.first() {
            self.demand_view(v);
        }
    }

    /// If a product's operand is a load that runs ahead and that it can read from the ring: demands what the copies
    /// need.
    fn demand_staged(&mut self, dot: OpId, i: usize) -> Option<SharedOperand> {
        let k = self.k;
        let (load, transposed) = pipeline::source(k, k.op(dot).operands[i])?;
        let panels = self.out.ahead.panels(load)?;
        // A tile that others look at, too, comes as it is: not rounded to tf32.
        let rounded =
            panels.size != 4 || self.out.ahead.bulk_load(load).is_some_and(|l| l.copy.map.transfer == Transfer::Tf32);
        if !rounded || !pipeline::fetches(&self.out.dots[&dot], i, panels, transposed) {
            return None;
        }
        if let Some((id, _)) = self.out.ahead.async_load(load) {
            let mut leaves = vec![];
            for &c in &k.op(load).operands[1..] {
                pipeline::leaves(k, k.op(id).regions[0], c, &mut leaves);
            }
            for leaf in leaves {
                self.demand_home(leaf);
            }
            self.demand_view(k.op(load).operands[0]);
        }
        Some(SharedOperand::Ring { load, transposed })
    }

    /// Whether `v` comes to this layout without going through shared memory.
    fn moves_freely(&self, v: ValueId, layout: &LinearLayout) -> bool {
        let size = self.k.ty(v).dtype().size();
        let Some(home) = self.home(v) else { return true };
        let plan = Conversion::plan_within(&home, layout, size, 64 << 10, false);
        matches!(plan, Ok(Conversion::Identity | Conversion::Registers(_)))
    }

    /// Puts a product's operand into shared memory, the way its threads hold runs of elements.
    fn place(&mut self, v: ValueId) -> SharedOperand {
        let k = self.k;
        // A transposition is a matter of the descriptor.
        let (value, transposed) = match k.defining_op(v).map(|o| k.op(o)) {
            Some(op) if matches!(op.kind, OpKind::Transpose { .. }) => (op.operands[0], true),
            _ => (v, false),
        };
        let shape = k.ty(value).shape();
        self.demand_home(value);
        let panels = Panels::new(shape, k.ty(value).dtype().size());
        self.out.placed.insert(value, panels.expect("the plan of the product checked its extents"));
        SharedOperand::Placed { value, transposed }
    }

    /// The scalars that a view is made with.
    fn demand_view(&mut self, v: ValueId) {
        if let (Type::View(..), Def::Result(op, _)) = (self.k.ty(v), self.k.def(v)) {
            for &o in &self.k.op(op).operands {
                match self.k.ty(o) {
                    Type::View(..) => self.demand_view(o),
                    _ => self.demand_home(o),
                }
            }
        }
    }

    /// Of what is carried, what is not put together in shared memory.
    fn demand_carried(&mut self, values: &[ValueId], layouts: &[Option<LinearLayout>]) {
        for (&v, layout) in values.iter().zip(layouts) {
            if let Some(layout) = layout {
                self.demand(v, layout);
            }
        }
    }

    /// Demands what the operations with effects need. `carried`: the layouts to yield.
    fn demand_region(&mut self, region: RegionId, carried: &[Option<LinearLayout>]) {
        let k = self.k;
        for &id in &k.region(region).ops {
            let op = k.op(id);
            match &op.kind {
                OpKind::Store | OpKind::StoreAdd | OpKind::Scatter { .. } | OpKind::Atomic { .. } => {
                    let layout = self.out.work[&id].clone();
                    for &v in &op.operands {
                        self.demand(v, &layout);
                    }
                    self.demand_view(op.operands[0]);
                    for &r in &op.results {
                        self.demand_home(r);
                    }
                }
                // Who discards what was copied must know where it came from.
                OpKind::Load { .. } if self.out.ahead.bulk_load(id).is_some() => {
                    let (param, _) = selections(k, op.operands[0]).expect("bulk copies come by selections");
                    if k.params[param].reuse == Reuse::Discard {
                        self.demand_view(op.operands[0]);
                        op.operands[1..].iter().for_each(|&v| self.demand_home(v));
                    }
                }
                OpKind::Signal | OpKind::Wait => {
                    self.demand_view(op.operands[0]);
                    op.operands[1..].iter().for_each(|&v| self.demand_home(v));
                }
                OpKind::ClusterReduce(_) => {
                    self.demand_home(op.operands[0]);
                    self.demand_home(op.results[0]);
                }
                OpKind::Send => op.operands[1..].iter().for_each(|&v| self.demand_home(v)),
                OpKind::Assert { .. } => self.demand_home(op.operands[0]),
                OpKind::Print { .. } => {
                    for &v in op.operands.iter().filter(|&&v| k.ty(v).is_scalar()) {
                        self.demand_home(v);
                    }
                }
                OpKind::For { .. } | OpKind::While | OpKind::If => {
                    let carried = op.results.iter().filter(|&&r| !self.assembled(r)).copied().collect::<Vec<_>>();
                    for &r in &carried {
                        self.demand_home(r);
                    }
                    let layout = |&r| carried.contains(&r).then(|| self.home_or_default(r));
                    let layouts: Vec<Option<LinearLayout>> = op.results.iter().map(layout).collect();
                    let skip = if matches!(op.kind, OpKind::For { .. }) { 3 } else { 0 };
                    for &v in &op.operands[..op.operands.len().min(skip)] {
                        self.demand_home(v);
                    }
                    if op.kind == OpKind::If {
                        self.demand_home(op.operands[0]);
                    } else {
                        self.demand_carried(&op.operands[skip..], &layouts);
                    }
                    for (i, &r) in op.regions.iter().enumerate() {
                        for &a in k.region(r).args.iter().filter(|&&a| !self.assembled(a)).collect::<Vec<_>>() {
                            self.demand_home(a);
                        }
                        let condition = op.kind == OpKind::While && i == 0;
                        let ends = if condition { vec![Some(self.out.scalar_layout())] } else { layouts.clone() };
                        self.demand_region(r, &ends);
                    }
                }
                OpKind::Yield => self.demand_carried(&op.operands, carried),
                _ => {
                    if let Some(a) = self.assemblies.iter().find(|a| a.insert == id) {
                        self.demand_home(a.piece);
                    }
                }
            }
        }
    }
}

/// In which layout a pure operation needs operand `i` to make its result in `layout`; `None` for views.
pub fn operand_layout(k: &Kernel, op: &Op, i: usize, layout: &LinearLayout) -> Option<LinearLayout> {
    let Type::Tile(_, shape) = k.ty(op.operands[i]) else { return None };
    Some(match &op.kind {
        OpKind::Transpose { perm } => layout.transpose_source(perm),
        OpKind::Reshape => layout.reshape(shape).expect("the verifier checked the number of elements"),
        OpKind::Broadcast => {
            let source = layout.broadcast_source(shape).expect("the verifier checked the extents");
            source.compact_registers().0
        }
        OpKind::Slice { offsets } => layout.slice_source(offsets, shape).layout,
        OpKind::Join { axis } => {
            layout.join_source(*axis as usize).expect("a join is made where it was laid out").layout
        }
        _ => layout.clone(),
    })
}
