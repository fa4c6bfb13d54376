//! Decides, before any code is emitted, where each value lives.
//!
//! A kernel's tiles do not fit in registers and must not be unrolled, so every *materialised* tile is a row-major array
//! in per-program scratch memory, and each operation that materialises one (or has an effect) is the *root* of one loop
//! nest. Elementwise operations and loads whose only use lies in one root are *virtual*: the root's loop computes their
//! elements where it needs them. Transposes, slices and reshapes of materialised tiles are other strides on the same
//! array.
//!
//! Invariants:
//! - A virtual load is not moved across an operation that may write memory.
//! - An array lives from its root to the last root that reads it, through virtual values, aliases and loops.
//! - A tile carried by a loop has one array. The loop's new value is computed in place when nothing reads the old value
//!   afterwards; otherwise it is copied there at the end of the body, after every new value has been computed.
//! - A store whose operand contains a load reads and writes element by element. A load from a read-only parameter may be
//!   fused so, as nothing that is written overlaps it (unless element on element); a load from a writable one is fused
//!   only when it reads the very box that is stored.

use crate::ir::{Access, DType, Def, Kernel, MAX_RANK, OpId, OpKind, RegionId, Shape, Type, UnaryOp, ValueId};
use crate::passes::edit::writes;
use std::collections::HashMap;

/// An array in scratch memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ArrayId(usize);

/// A tile in scratch memory: element (i, j, …) is at `offset + i·strides[0] + j·strides[1] + …` of the array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) array: ArrayId,
    pub(super) offset: usize,
    pub(super) strides: [usize; MAX_RANK],
}

/// Where a value lives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Place {
    /// A scalar or a view: SSA values.
    Ssa,
    /// Computed where it is used.
    Virtual,
    Tile(Layout),
    /// Never used and without effect: not computed.
    Dead,
}

pub(super) struct Plan {
    places: Vec<Place>,
    arrays: Vec<Array>,
    /// Contiguous copies of operands that an operation cannot read as they lie.
    copies: HashMap<(OpId, usize), ArrayId>,
    /// Size of the scratch memory of one program, in bytes. The first [`DUMMY_BYTES`] are no tile's.
    pub(super) scratch_bytes: usize,
}

/// Accesses that must not happen go to this many bytes at the start of the scratch memory instead.
pub(super) const DUMMY_BYTES: usize = 64;
/// The most operations fused into one loop.
const MAX_FUSED: usize = 48;
/// Up to this many simple operations are computed again rather than materialised.
const MAX_CHEAP: u32 = 4;

#[derive(Clone, Copy)]
struct Array {
    bytes: usize,
    start: usize,
    end: usize,
    at: usize,
}

/// Bytes of an element in scratch memory: everything narrower than 64 bits takes one 32-bit lane.
pub(super) fn lane_bytes(dtype: DType) -> usize {
    dtype.size().max(4)
}

/// Row-major strides.
pub(super) fn row_major(shape: Shape) -> [usize; MAX_RANK] {
    let mut strides = [0; MAX_RANK];
    let mut stride = 1;
    for axis in (0..shape.rank()).rev() {
        strides[axis] = stride;
        stride *= shape.dim(axis);
    }
    strides
}

/// Whether two shapes differ by extents of 1 only.
pub(super) fn same_but_ones(a: Shape, b: Shape) -> bool {
    let wide = |s: Shape| s.dims().iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
    wide(a) == wide(b)
}

/// For each axis of `to`, the axis of `from` with the same elements; `None` for extents of 1. The shapes must be
/// [`same_but_ones`].
pub(super) fn matching_axes(from: Shape, to: Shape) -> [Option<usize>; MAX_RANK] {
    let mut wide = (0..from.rank()).filter(|&a| from.dim(a) != 1);
    let mut axes = [None; MAX_RANK];
    for (axis, slot) in axes.iter_mut().enumerate().take(to.rank()) {
        if to.dim(axis) != 1 {
            *slot = wide.next();
        }
    }
    axes
}

impl Plan {
    pub(super) fn place(&self, v: ValueId) -> Place {
        self.places[v.index()]
    }

    pub(super) fn array_offset(&self, array: ArrayId) -> usize {
        self.arrays[array.0].at
    }

    /// The contiguous copy to make of an operand, if the operation needs one.
    pub(super) fn copy(&self, op: OpId, operand: usize, shape: Shape) -> Option<Layout> {
        let array = *self.copies.get(&(op, operand))?;
        Some(Layout { array, offset: 0, strides: row_major(shape) })
    }

    /// Where the n-th operand of a `send`, or the n-th result of a `receive`, lies for the host; of a `cluster_reduce`
    /// 0 is the operand and 1 the result.
    pub(super) fn message(&self, op: OpId, n: usize, v: ValueId, ty: Type) -> Option<Layout> {
        match self.place(v) {
            Place::Tile(l) if !self.copies.contains_key(&(op, n)) => Some(l),
            _ => self.copy(op, n, ty.shape()),
        }
    }

    pub(super) fn new(kernel: &Kernel) -> Plan {
        let mut p = Planner {
            k: kernel,
            users: vec![vec![]; kernel.values.len()],
            region_of: vec![None; kernel.ops.len()],
            parent: vec![None; kernel.regions.len()],
            position: vec![0; kernel.ops.len()],
            end: vec![0; kernel.ops.len()],
            order: vec![],
            cheap: vec![None; kernel.values.len()],
            root: vec![None; kernel.ops.len()],
            fused: vec![0; kernel.ops.len()],
            uses: vec![],
            plan: Plan {
                places: vec![Place::Ssa; kernel.values.len()],
                arrays: vec![],
                copies: HashMap::new(),
                scratch_bytes: 0,
            },
        };
        p.number(kernel.body, None);
        p.find_cheap();
        p.find_roots();
        p.assign_places();
        p.collect_uses();
        p.carry_in_place();
        p.allocate();
        p.plan
    }
}

struct Use {
    array: ArrayId,
    position: usize,
    /// The root reads element p of the array only to compute element p of its result.
    identity: bool,
}

struct Planner<'a> {
    k: &'a Kernel,
    users: Vec<Vec<(OpId, usize)>>,
    region_of: Vec<Option<RegionId>>,
    /// The operation that holds a region.
    parent: Vec<Option<OpId>>,
    /// Preorder numbers; `end` is the last number inside.
    position: Vec<usize>,
    end: Vec<usize>,
    order: Vec<OpId>,
    /// Number of simple operations to compute an element from constants and scalars.
    cheap: Vec<Option<u32>>,
    /// For a virtual operation with one root, that root.
    root: Vec<Option<OpId>>,
    fused: Vec<usize>,
    uses: Vec<Use>,
    plan: Plan,
}

fn is_tile(ty: Type) -> bool {
    matches!(ty, Type::Tile(_, s) if s.rank() > 0)
}

fn is_simple(kind: &OpKind) -> bool {
    match kind {
        OpKind::Unary(op) => matches!(op, UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Not),
        OpKind::Binary(_) | OpKind::Compare(_) | OpKind::Fma | OpKind::Select | OpKind::Cast | OpKind::Bitcast => true,
        _ => false,
    }
}

fn is_pointwise(kind: &OpKind) -> bool {
    is_simple(kind) || matches!(kind, OpKind::Unary(_))
}

impl Planner<'_> {
    fn number(&mut self, region: RegionId, parent: Option<OpId>) {
        self.parent[region.index()] = parent;
        for &op in &self.k.region(region).ops {
            self.region_of[op.index()] = Some(region);
            self.position[op.index()] = self.order.len();
            self.order.push(op);
            for (i, &v) in self.k.op(op).operands.iter().enumerate() {
                self.users[v.index()].push((op, i));
            }
            if self.k.op(op).kind.has_regions() {
                for &r in &self.k.op(op).regions {
                    self.number(r, Some(op));
                }
            }
            self.end[op.index()] = self.order.len() - 1;
        }
    }

    fn shape(&self, v: ValueId) -> Shape {
        self.k.ty(v).shape()
    }

    /// Whether the operation is a reshape that only adds or removes extents of 1, of a tile to a tile.
    fn is_unit_reshape(&self, op: OpId) -> bool {
        let op = self.k.op(op);
        matches!(op.kind, OpKind::Reshape) && {
            let (from, to) = (self.shape(op.operands[0]), self.shape(op.results[0]));
            to.rank() > 0 && same_but_ones(from, to)
        }
    }

    fn find_cheap(&mut self) {
        for (i, value) in self.k.values.iter().enumerate() {
            if !is_tile(value.ty) {
                self.cheap[i] = Some(0);
            }
        }
        for &id in &self.order {
            let op = self.k.op(id);
            let [result] = op.results[..] else { continue };
            if !is_tile(self.k.ty(result)) {
                continue;
            }
            let operands = || {
                op.operands.iter().try_fold(0, |sum, v| Some(sum + self.cheap[v.index()]?)).filter(|&c| c <= MAX_CHEAP)
            };
            self.cheap[result.index()] = match op.kind {
                OpKind::Const(_) | OpKind::Iota { .. } => Some(0),
                // Of something materialised: one load.
                OpKind::Broadcast => operands().or(Some(2)),
                OpKind::Transpose { .. } | OpKind::Slice { .. } => operands(),
                OpKind::Reshape if self.is_unit_reshape(id) => operands(),
                _ if is_simple(&op.kind) => operands().map(|c| c + 1).filter(|&c| c <= MAX_CHEAP),
                _ => None,
            };
        }
    }

    /// Whether the operation reads this operand element by element in its own loop.
    fn pulls(&self, op: OpId, operand: usize) -> bool {
        match &self.k.op(op).kind {
            OpKind::Dot(_) => operand == 2,
            OpKind::Yield => {
                let region = self.region_of[op.index()];
                let parent = region.and_then(|r| self.parent[r.index()]);
                parent.is_some_and(|p| matches!(self.k.op(p).kind, OpKind::If))
            }
            OpKind::Print { .. } | OpKind::Broadcast | OpKind::Transpose { .. } | OpKind::Slice { .. } => false,
            OpKind::Reshape => self.k.ty(self.k.op(op).results[0]).is_scalar(),
            _ => true,
        }
    }

    /// Finds the operations that are computed inside one other operation's loop.
    fn find_roots(&mut self) {
        for at in (0..self.order.len()).rev() {
            let id = self.order[at];
            let op = self.k.op(id);
            let fusible = is_pointwise(&op.kind)
                || matches!(op.kind, OpKind::Load { .. } | OpKind::Gather { .. })
                || self.is_unit_reshape(id);
            let [result] = op.results[..] else { continue };
            if !fusible || !is_tile(self.k.ty(result)) || self.cheap[result.index()].is_some() {
                continue;
            }
            let mut root = None;
            for &(user, operand) in &self.users[result.index()] {
                let r = match self.root[user.index()] {
                    Some(r) => Some(r),
                    None if self.pulls(user, operand) => Some(user),
                    None => None,
                };
                let same_region = self.region_of[user.index()] == self.region_of[id.index()];
                if r.is_none() || !same_region || root.is_some_and(|x| Some(x) != r) {
                    root = None;
                    break;
                }
                root = r;
            }
            let Some(r) = root else { continue };
            if self.fused[r.index()] >= MAX_FUSED || (op.kind.reads_memory() && !self.may_load_late(id, r)) {
                continue;
            }
            self.fused[r.index()] += 1;
            self.root[id.index()] = root;
        }
    }

    /// Whether a load may happen inside the loop of a later root.
    fn may_load_late(&self, load: OpId, root: OpId) -> bool {
        let between = self.position[load.index()] + 1..self.position[root.index()];
        if self.order[between].iter().any(|&op| writes(&self.k.op(op).kind)) {
            return false;
        }
        let (l, r) = (self.k.op(load), self.k.op(root));
        if !writes(&r.kind) {
            return true;
        }
        let (from, to) = (l.operands[0], r.operands[0]);
        let read_only = |v| self.k.view_param(v).is_some_and(|i| self.k.params[i as usize].access == Access::Read);
        if read_only(from) {
            return true;
        }
        // The same place is read and then written, element by element. What lies between is pointwise, but may be an
        // axis of extent 1 moved: the direct operand cannot be.
        matches!((&l.kind, &r.kind), (OpKind::Load { .. }, OpKind::Store))
            && from == to
            && l.operands[1..] == r.operands[2..]
            && self.same_box(r.operands[1], l.results[0])
    }

    /// Whether every virtual path from `v` to `load` is pointwise.
    fn same_box(&self, v: ValueId, load: ValueId) -> bool {
        if v == load {
            return true;
        }
        let Def::Result(op, _) = self.k.def(v) else { return true };
        let op = self.k.op(op);
        match op.kind {
            OpKind::Reshape => false,
            _ if is_pointwise(&op.kind) => op.operands.iter().all(|&x| self.same_box(x, load)),
            _ => true,
        }
    }

    fn new_array(&mut self, ty: Type, op: OpId) -> ArrayId {
        let at = self.position[op.index()];
        let bytes = lane_bytes(ty.dtype()) * ty.shape().numel();
        self.plan.arrays.push(Array { bytes, start: at, end: at, at: 0 });
        ArrayId(self.plan.arrays.len() - 1)
    }

    fn materialise(&mut self, v: ValueId, op: OpId) -> Place {
        let ty = self.k.ty(v);
        let array = self.new_array(ty, op);
        Place::Tile(Layout { array, offset: 0, strides: row_major(ty.shape()) })
    }

    fn assign_places(&mut self) {
        for at in 0..self.order.len() {
            let id = self.order[at];
            let op = self.k.op(id);
            for (i, &result) in op.results.iter().enumerate() {
                if !is_tile(self.k.ty(result)) {
                    continue;
                }
                let place = self.place_result(id, result);
                self.plan.places[result.index()] = place;
                if matches!(op.kind, OpKind::For { .. } | OpKind::While) {
                    // The regions see the carried tile in the array of the result.
                    let skip = matches!(op.kind, OpKind::For { .. }) as usize;
                    for &r in &op.regions {
                        let arg = self.k.region(r).args[skip + i];
                        self.plan.places[arg.index()] = place;
                    }
                }
            }
            self.plan_copies(id);
        }
    }

    fn place_result(&mut self, id: OpId, v: ValueId) -> Place {
        let op = self.k.op(id);
        if op.results.len() == 1 && self.users[v.index()].is_empty() && !op.kind.has_effect() && !op.kind.has_regions()
        {
            return Place::Dead;
        }
        if op.kind.has_regions() {
            return self.materialise(v, id);
        }
        if self.root[id.index()].is_some() {
            return Place::Virtual;
        }
        let shape = self.k.ty(v).shape();
        let source = op.operands.first().map(|x| self.plan.place(*x));
        match (&op.kind, source) {
            (OpKind::Transpose { perm }, Some(Place::Tile(l))) => {
                let mut strides = [0; MAX_RANK];
                (0..shape.rank()).for_each(|i| strides[i] = l.strides[perm[i] as usize]);
                return Place::Tile(Layout { strides, ..l });
            }
            (OpKind::Slice { offsets }, Some(Place::Tile(l))) => {
                let skipped: usize = (0..shape.rank()).map(|i| offsets[i] as usize * l.strides[i]).sum();
                return Place::Tile(Layout { offset: l.offset + skipped, ..l });
            }
            (OpKind::Reshape, Some(Place::Tile(l))) => {
                let from = self.k.ty(op.operands[0]).shape();
                if l.strides[..from.rank()] == row_major(from)[..from.rank()] {
                    return Place::Tile(Layout { strides: row_major(shape), ..l });
                }
                if same_but_ones(from, shape) {
                    let mut strides = [0; MAX_RANK];
                    for (slot, axis) in strides.iter_mut().zip(matching_axes(from, shape)) {
                        *slot = axis.map_or(0, |a| l.strides[a]);
                    }
                    return Place::Tile(Layout { strides, ..l });
                }
            }
            _ => {}
        }
        if self.cheap[v.index()].is_some() { Place::Virtual } else { self.materialise(v, id) }
    }

    /// Operands that must lie contiguously for this operation and do not.
    fn plan_copies(&mut self, id: OpId) {
        let op = self.k.op(id);
        match op.kind {
            OpKind::Dot(_) => {
                let columns = self.shape(op.operands[1]).rank() - 1;
                let several = self.shape(op.operands[1]).dim(columns) > 1;
                let direct = |p: Place, unit: bool| matches!(p, Place::Tile(l) if !unit || l.strides[columns] == 1);
                for (i, unit) in [(0, false), (1, several)] {
                    if !direct(self.plan.place(op.operands[i]), unit) {
                        let array = self.new_array(self.k.ty(op.operands[i]), id);
                        self.plan.copies.insert((id, i), array);
                    }
                }
            }
            OpKind::Print { .. } => {
                for (i, &v) in op.operands.iter().enumerate() {
                    if !matches!(self.k.ty(v), Type::View(..)) {
                        let array = self.new_array(self.k.ty(v), id);
                        self.plan.copies.insert((id, i), array);
                    }
                }
            }
            // What is sent is copied to where the host finds it; a received tile has an array, a scalar needs one.
            OpKind::Send => {
                for (i, &v) in op.operands.iter().enumerate().skip(1) {
                    let array = self.new_array(self.k.ty(v), id);
                    self.plan.copies.insert((id, i), array);
                }
            }
            OpKind::ClusterReduce(_) => {
                let result = op.results[0];
                let copied =
                    [(0, op.operands[0])].into_iter().chain(self.k.ty(result).is_scalar().then_some((1, result)));
                for (i, v) in copied {
                    let array = self.new_array(self.k.ty(v), id);
                    self.plan.copies.insert((id, i), array);
                }
            }
            OpKind::Receive => {
                for (i, &v) in op.results.iter().enumerate().skip(1) {
                    if self.k.ty(v).is_scalar() {
                        let array = self.new_array(self.k.ty(v), id);
                        self.plan.copies.insert((id, i), array);
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether the operation has its own code, rather than being computed by its users.
    fn is_root(&self, id: OpId) -> bool {
        let op = self.k.op(id);
        match op.results[..] {
            [] => true,
            [v] => match self.plan.place(v) {
                Place::Virtual | Place::Dead => false,
                Place::Tile(_) => !self.is_alias(id),
                Place::Ssa => true,
            },
            _ => true,
        }
    }

    fn is_alias(&self, id: OpId) -> bool {
        is_alias(self.k, &self.plan, id)
    }

    fn collect_uses(&mut self) {
        for at in 0..self.order.len() {
            let id = self.order[at];
            if !self.is_root(id) {
                continue;
            }
            let op = self.k.op(id);
            for (i, &v) in op.operands.iter().enumerate() {
                let identity = match op.kind {
                    OpKind::Dot(_) => i == 2,
                    _ => is_pointwise(&op.kind),
                };
                self.mark_use(v, at, identity);
            }
            // The arrays of a loop's or branch's results are written at the end of the regions.
            if op.kind.has_regions() {
                for &v in &op.results {
                    if let Place::Tile(l) = self.plan.place(v) {
                        let end = &mut self.plan.arrays[l.array.0].end;
                        *end = (*end).max(self.end[id.index()]);
                    }
                }
            }
        }
    }

    fn mark_use(&mut self, v: ValueId, position: usize, identity: bool) {
        match self.plan.place(v) {
            Place::Ssa | Place::Dead => {}
            Place::Tile(l) => {
                let identity = identity && l.offset == 0 && l.strides == row_major(self.shape(v));
                self.uses.push(Use { array: l.array, position, identity });
                let start = self.plan.arrays[l.array.0].start;
                // A use inside a loop of something from before the loop happens until the loop's end.
                let mut end = position;
                let mut inner = self.order[position];
                while let Some(outer) = self.region_of[inner.index()].and_then(|r| self.parent[r.index()]) {
                    let is_loop = matches!(self.k.op(outer).kind, OpKind::For { .. } | OpKind::While);
                    if is_loop && start < self.position[outer.index()] {
                        end = end.max(self.end[outer.index()]);
                    }
                    inner = outer;
                }
                let array = &mut self.plan.arrays[l.array.0];
                array.end = array.end.max(end);
            }
            Place::Virtual => {
                let Def::Result(id, _) = self.k.def(v) else { return };
                let op = self.k.op(id);
                let identity = identity && is_pointwise(&op.kind);
                for &x in &op.operands {
                    self.mark_use(x, position, identity);
                }
            }
        }
    }

    /// Lets a loop's new value be computed in the carried array itself where the old value is dead by then.
    fn carry_in_place(&mut self) {
        for at in 0..self.order.len() {
            let id = self.order[at];
            let op = self.k.op(id);
            let (body, skip) = match op.kind {
                OpKind::For { .. } => (op.regions[0], 1),
                OpKind::While => (op.regions[1], 0),
                _ => continue,
            };
            let Some(&last) = self.k.region(body).ops.last() else { continue };
            let yielded = self.k.op(last).operands.clone();
            for (i, &v) in yielded.iter().enumerate() {
                let Place::Tile(new) = self.plan.place(v) else { continue };
                let Place::Tile(carried) = self.plan.place(self.k.region(body).args[skip + i]) else { continue };
                let Def::Result(def, _) = self.k.def(v) else { continue };
                let owned = self.region_of[def.index()] == Some(body)
                    && !self.k.op(def).kind.has_regions()
                    && self.k.op(def).results.len() == 1
                    && !self.is_alias(def)
                    && new.array != carried.array
                    && yielded.iter().filter(|&&y| y == v).count() == 1;
                let at = self.position[def.index()];
                let inside = self.position[id.index()] + 1..=self.end[id.index()];
                let dead = self
                    .uses
                    .iter()
                    .filter(|u| u.array == carried.array && inside.contains(&u.position))
                    .all(|u| u.position < at || (u.position == at && u.identity));
                if owned && dead {
                    self.redirect(new.array, carried.array);
                }
            }
        }
    }

    /// Replaces one array by another everywhere.
    fn redirect(&mut self, from: ArrayId, to: ArrayId) {
        for place in &mut self.plan.places {
            if let Place::Tile(l) = place
                && l.array == from
            {
                l.array = to;
            }
        }
        for u in &mut self.uses {
            if u.array == from {
                u.array = to;
            }
        }
        let end = self.plan.arrays[from.0].end;
        self.plan.arrays[from.0].bytes = 0;
        let array = &mut self.plan.arrays[to.0];
        array.end = array.end.max(end);
    }

    /// First fit, in order of birth.
    fn allocate(&mut self) {
        // Copies at the end of a loop's body go through a second array where one carried tile becomes another.
        for at in 0..self.order.len() {
            let id = self.order[at];
            let op = self.k.op(id);
            let parent = self.region_of[id.index()].and_then(|r| self.parent[r.index()]);
            let Some(parent) = parent.filter(|&p| matches!(self.k.op(p).kind, OpKind::For { .. } | OpKind::While))
            else {
                continue;
            };
            if !matches!(op.kind, OpKind::Yield) {
                continue;
            }
            let carried: Vec<_> = self.k.op(parent).results.iter().map(|&v| self.plan.place(v)).collect();
            for (i, &v) in op.operands.iter().enumerate() {
                if i < carried.len() && self.plan.place(v) != carried[i] && self.reads_any(v, &carried) {
                    let array = self.new_array(self.k.ty(v), id);
                    self.plan.copies.insert((id, i), array);
                }
            }
        }
        let mut order: Vec<usize> = (0..self.plan.arrays.len()).collect();
        order.sort_by_key(|&i| self.plan.arrays[i].start);
        let mut placed: Vec<usize> = vec![];
        let mut total = DUMMY_BYTES;
        for i in order {
            let a = self.plan.arrays[i];
            let mut busy: Vec<(usize, usize)> = placed
                .iter()
                .map(|&j| self.plan.arrays[j])
                .filter(|b| b.bytes > 0 && b.start <= a.end && a.start <= b.end)
                .map(|b| (b.at, b.at + b.bytes))
                .collect();
            busy.sort_unstable();
            let mut at = DUMMY_BYTES;
            for (from, to) in busy {
                if at + a.bytes <= from {
                    break;
                }
                at = at.max(to.next_multiple_of(64));
            }
            self.plan.arrays[i].at = at;
            total = total.max(at + a.bytes);
            placed.push(i);
        }
        self.plan.scratch_bytes = total.next_multiple_of(64);
    }

    /// Whether reading the value reads one of these tiles' arrays.
    fn reads_any(&self, v: ValueId, tiles: &[Place]) -> bool {
        match self.plan.place(v) {
            Place::Tile(l) => tiles.iter().any(|p| matches!(p, Place::Tile(c) if c.array == l.array)),
            Place::Virtual => {
                let Def::Result(op, _) = self.k.def(v) else { return false };
                self.k.op(op).operands.iter().any(|&x| self.reads_any(x, tiles))
            }
            _ => false,
        }
    }
}

/// Whether the operation's result is another view of its operand's array.
pub(super) fn is_alias(kernel: &Kernel, plan: &Plan, id: OpId) -> bool {
    let op = kernel.op(id);
    matches!(op.kind, OpKind::Transpose { .. } | OpKind::Slice { .. } | OpKind::Reshape)
        && match (plan.place(op.operands[0]), plan.place(op.results[0])) {
            (Place::Tile(from), Place::Tile(to)) => from.array == to.array,
            _ => false,
        }
}
