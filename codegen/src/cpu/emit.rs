//! Emits a kernel: loop nests, tiles in scratch memory, and the roots that are computed element by element.
//!
//! Elements are computed at a [`Point`]: one index per axis, of which one may stand for four consecutive elements. A
//! value at a point is one Cranelift value: `f32` or `f32x4` for every float type, `i32` or `i32x4` for every integer
//! of up to 32 bits (sign- or zero-extended), `i64` for longer ones, and for `bool` an `i8` that is 0 or 1, or a mask
//! of four lanes. Elements in scratch memory have the same form, with `bool` as a mask.

use super::helpers::{HelperRefs, LaunchIds};
use super::plan::{self, Layout, Place, Plan, lane_bytes};
use crate::ir::{DType, Def, Fact, Kernel, MAX_RANK, Op, OpId, OpKind, RegionId, Shape, Type, ValueId};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{Block, BlockArg, InstBuilder, MemFlags, Type as ClifType, Value, types};
use cranelift_frontend::FunctionBuilder;
use std::collections::HashMap;
use std::mem::offset_of;

/// Indices of one element, or of four consecutive elements along `vec`. An index that is absent is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Point {
    pub(super) at: [Option<Value>; MAX_RANK],
    pub(super) vec: Option<usize>,
}

impl Point {
    pub(super) const ORIGIN: Point = Point { at: [None; MAX_RANK], vec: None };

    /// Elements per value.
    pub(super) fn width(&self) -> usize {
        if self.vec.is_some() { 4 } else { 1 }
    }

    pub(super) fn with(mut self, axis: usize, index: Value) -> Point {
        self.at[axis] = Some(index);
        self
    }

    /// Without `axis`, which must not be the vector axis.
    pub(super) fn without(&self, axis: usize) -> Point {
        let mut p = Point { at: [None; MAX_RANK], vec: self.vec.map(|v| if v > axis { v - 1 } else { v }) };
        for i in 0..MAX_RANK - 1 {
            p.at[i] = self.at[if i >= axis { i + 1 } else { i }];
        }
        p
    }
}

/// A view at run time: everything is `i64`.
#[derive(Clone, Debug)]
pub(super) struct ViewValue {
    pub(super) address: Value,
    pub(super) extents: Vec<Value>,
    pub(super) strides: Vec<Value>,
    /// For rank 0 only: whether there is an element.
    pub(super) valid: Option<Value>,
}

pub(super) struct Emitter<'a, 'b> {
    pub(super) k: &'a Kernel,
    pub(super) plan: &'a Plan,
    pub(super) b: &'a mut FunctionBuilder<'b>,
    pub(super) helpers: HelperRefs,
    /// Whether the machine multiplies and adds in one instruction.
    pub(super) fma: bool,
    pub(super) scalars: Vec<Option<Value>>,
    pub(super) views: HashMap<ValueId, ViewValue>,
    pub(super) scratch: Value,
    pub(super) ids: Value,
    pub(super) context: Value,
    /// Whether memory accesses of the loop being emitted are known to be whole vectors.
    pub(super) fast: bool,
    /// Elements computed so far in this block.
    pub(super) memo: HashMap<(ValueId, Point), Value>,
}

/// Accesses to scratch memory and, once checked, to views do not trap.
pub(super) fn flags() -> MemFlags {
    MemFlags::new().with_notrap()
}

/// The form of an element of `dtype`, or of four.
pub(super) fn clif_type(dtype: DType, width: usize) -> ClifType {
    match (dtype, width) {
        (d, 1) if d.is_float() => types::F32,
        (d, _) if d.is_float() => types::F32X4,
        (DType::Bool, 1) => types::I8,
        (DType::I64 | DType::U64, _) => types::I64,
        (_, 1) => types::I32,
        _ => types::I32X4,
    }
}

impl<'a> Emitter<'a, '_> {
    pub(super) fn emit_kernel(&mut self, slots: Value) {
        let mut slot = 0;
        for param in &self.k.params {
            let mut next = |s: &mut Self| {
                let one = s.k.fact(slot) == Fact::One;
                let v = if one {
                    s.b.ins().iconst(types::I64, 1)
                } else {
                    s.b.ins().load(types::I64, flags(), slots, (slot * 8) as i32)
                };
                slot += 1;
                v
            };
            match self.k.ty(param.value) {
                Type::Tile(dtype, _) => {
                    let bits = next(self);
                    let v = self.scalar_from_bits(dtype, bits);
                    self.scalars[param.value.index()] = Some(v);
                }
                Type::View(_, rank) => {
                    let address = next(self);
                    let extents = (0..rank).map(|_| next(self)).collect();
                    let strides = (0..rank).map(|_| next(self)).collect();
                    self.views.insert(param.value, ViewValue { address, extents, strides, valid: None });
                }
                Type::Channel | Type::Slot => unreachable!("no parameter is one"),
            }
        }
        self.emit_ops(self.k.body);
        let zero = self.b.ins().iconst(types::I32, 0);
        self.b.ins().return_(&[zero]);
    }

    // -- blocks ----------------------------------------------------------------------------------------------------

    pub(super) fn goto(&mut self, block: Block) {
        self.b.switch_to_block(block);
        self.memo.clear();
    }

    pub(super) fn block_args(values: &[Value]) -> Vec<BlockArg> {
        values.iter().map(|&v| v.into()).collect()
    }

    pub(super) fn jump(&mut self, block: Block, values: &[Value]) {
        self.b.ins().jump(block, &Self::block_args(values));
    }

    pub(super) fn iconst(&mut self, value: i64) -> Value {
        self.b.ins().iconst(types::I64, value)
    }

    /// Calls `f` with i = start, start + step, … < end, and values carried from each call to the next.
    /// There is at least one step, and `end - start` is a multiple of `step`.
    pub(super) fn fold(
        &mut self,
        (start, end, step): (usize, usize, usize),
        carried: Vec<Value>,
        mut f: impl FnMut(&mut Self, Value, Vec<Value>) -> Vec<Value>,
    ) -> Vec<Value> {
        if start >= end {
            return carried;
        }
        let first = self.iconst(start as i64);
        if end - start <= step {
            return f(self, first, carried);
        }
        let body = self.b.create_block();
        let exit = self.b.create_block();
        let index = self.b.append_block_param(body, types::I64);
        let mut inside = vec![];
        let mut after = vec![];
        for &v in &carried {
            let ty = self.b.func.dfg.value_type(v);
            inside.push(self.b.append_block_param(body, ty));
            after.push(self.b.append_block_param(exit, ty));
        }
        let mut enter = vec![first];
        enter.extend(&carried);
        self.jump(body, &enter);
        self.goto(body);
        let results = f(self, index, inside);
        let next = self.b.ins().iadd_imm(index, step as i64);
        let more = self.b.ins().icmp_imm(IntCC::SignedLessThan, next, end as i64);
        let mut back = vec![next];
        back.extend(&results);
        self.b.ins().brif(more, body, &Self::block_args(&back), exit, &Self::block_args(&results));
        self.goto(exit);
        after
    }

    pub(super) fn repeat(&mut self, range: (usize, usize, usize), mut f: impl FnMut(&mut Self, Value)) {
        self.fold(range, vec![], |s, i, _| {
            f(s, i);
            vec![]
        });
    }

    /// Calls `f` at every point of `shape`, four elements at a time along `vec`; `skip` stays 0.
    pub(super) fn nest(
        &mut self,
        shape: Shape,
        vec: Option<usize>,
        skip: Option<usize>,
        f: &mut dyn FnMut(&mut Self, Point),
    ) {
        let start = Point { vec, ..Point::ORIGIN };
        self.nest_from(0, shape, skip, start, f);
    }

    fn nest_from(
        &mut self,
        axis: usize,
        shape: Shape,
        skip: Option<usize>,
        p: Point,
        f: &mut dyn FnMut(&mut Self, Point),
    ) {
        if axis == shape.rank() {
            f(self, p);
        } else if Some(axis) == skip || shape.dim(axis) == 1 {
            self.nest_from(axis + 1, shape, skip, p, f);
        } else {
            let step = if p.vec == Some(axis) { 4 } else { 1 };
            self.repeat((0, shape.dim(axis), step), |s, i| s.nest_from(axis + 1, shape, skip, p.with(axis, i), f));
        }
    }

    /// Emits `f` twice, if it accesses memory: for when all accesses are whole vectors (which `conditions` say), and
    /// for when not. `f` returns the same number of values both times.
    pub(super) fn versioned(&mut self, conditions: &[Value], mut f: impl FnMut(&mut Self) -> Vec<Value>) -> Vec<Value> {
        let Some((&first, rest)) = conditions.split_first() else {
            self.fast = true;
            return f(self);
        };
        let all = rest.iter().fold(first, |x, &y| self.b.ins().band(x, y));
        let [fast, slow, exit] = [(); 3].map(|()| self.b.create_block());
        self.b.ins().brif(all, fast, &[], slow, &[]);
        self.b.set_cold_block(slow);
        let mut results = vec![];
        for (block, is_fast) in [(fast, true), (slow, false)] {
            self.goto(block);
            self.fast = is_fast;
            let values = f(self);
            if is_fast {
                for &v in &values {
                    let ty = self.b.func.dfg.value_type(v);
                    results.push(self.b.append_block_param(exit, ty));
                }
            }
            self.jump(exit, &values);
        }
        self.goto(exit);
        results
    }

    /// The axis to compute four elements at a time along: the last one with more than one element, or else an earlier
    /// one. `values` are what is computed in the loop.
    pub(super) fn vector_axis(&self, shape: Shape, values: &[ValueId]) -> Option<usize> {
        if values.iter().any(|&v| self.has_long(v)) {
            return None;
        }
        (0..shape.rank()).rev().find(|&a| shape.dim(a) >= 4)
    }

    /// Whether computing the value involves elements that do not fit in a lane.
    pub(super) fn has_long(&self, v: ValueId) -> bool {
        if self.k.ty(v).dtype().size() == 8 {
            return true;
        }
        match (self.plan.place(v), self.k.def(v)) {
            (Place::Virtual, Def::Result(op, _)) => {
                let tile = |x: &&ValueId| matches!(self.k.ty(**x), Type::Tile(_, s) if s.rank() > 0);
                self.k.op(op).operands.iter().filter(tile).any(|&x| self.has_long(x))
            }
            _ => false,
        }
    }

    // -- tiles in scratch memory -----------------------------------------------------------------------------------

    fn tile_address(&mut self, l: Layout, dtype: DType, p: Point) -> (Value, i32) {
        let size = lane_bytes(dtype);
        let mut address = self.scratch;
        // The vector axis last: what comes before is the same for the whole inner loop.
        let axes = (0..MAX_RANK).filter(|&a| Some(a) != p.vec).chain(p.vec);
        for axis in axes {
            if let Some(i) = p.at[axis]
                && l.strides[axis] != 0
            {
                let bytes = self.b.ins().imul_imm(i, (l.strides[axis] * size) as i64);
                address = self.b.ins().iadd(address, bytes);
            }
        }
        (address, (self.plan.array_offset(l.array) + l.offset * size) as i32)
    }

    pub(super) fn read_tile(&mut self, l: Layout, dtype: DType, p: Point) -> Value {
        let (address, offset) = self.tile_address(l, dtype, p);
        if dtype == DType::Bool && p.vec.is_none() {
            let mask = self.b.ins().load(types::I32, flags(), address, offset);
            return self.b.ins().icmp_imm(IntCC::NotEqual, mask, 0);
        }
        match p.vec {
            Some(axis) if l.strides[axis] != 1 => {
                let lane = if dtype.is_float() { types::F32 } else { types::I32 };
                let step = (l.strides[axis] * 4) as i32;
                let lanes = [0, 1, 2, 3].map(|i| self.b.ins().load(lane, flags(), address, offset + i * step));
                self.join_lanes(lanes)
            }
            _ => self.b.ins().load(clif_type(dtype, p.width()), flags(), address, offset),
        }
    }

    pub(super) fn write_tile(&mut self, l: Layout, dtype: DType, p: Point, mut v: Value) {
        let (address, offset) = self.tile_address(l, dtype, p);
        if dtype == DType::Bool && p.vec.is_none() {
            let one = self.b.ins().uextend(types::I32, v);
            v = self.b.ins().ineg(one);
        }
        match p.vec {
            Some(axis) if l.strides[axis] != 1 => {
                for i in 0..4 {
                    let lane = self.b.ins().extractlane(v, i);
                    self.b.ins().store(flags(), lane, address, offset + (i as usize * l.strides[axis] * 4) as i32);
                }
            }
            _ => {
                self.b.ins().store(flags(), v, address, offset);
            }
        }
    }

    pub(super) fn join_lanes(&mut self, lanes: [Value; 4]) -> Value {
        let ty = self.b.func.dfg.value_type(lanes[0]).by(4).expect("a vector of four lanes");
        let first = self.b.ins().scalar_to_vector(ty, lanes[0]);
        (1..4).fold(first, |v, i| self.b.ins().insertlane(v, lanes[i], i as u8))
    }

    /// Computes `v` everywhere and writes it to `to`, which has its shape.
    pub(super) fn copy_to(&mut self, v: ValueId, to: Layout) {
        let (dtype, shape) = (self.k.ty(v).dtype(), self.k.ty(v).shape());
        let vec = self.vector_axis(shape, &[v]);
        let conditions = self.whole_vectors(v, vec);
        self.versioned(&conditions, |s| {
            s.nest(shape, vec, None, &mut |s, p| {
                let x = s.element(v, p);
                s.write_tile(to, dtype, p, x);
            });
            vec![]
        });
    }

    // -- regions ---------------------------------------------------------------------------------------------------

    /// Emits all operations of a region but its `Yield`, which is returned.
    pub(super) fn emit_ops(&mut self, region: RegionId) -> OpId {
        let k = self.k;
        let (&last, ops) = k.region(region).ops.split_last().expect("a region ends with Yield");
        for &op in ops {
            self.emit_op(op);
        }
        last
    }

    fn emit_op(&mut self, id: OpId) {
        let k = self.k;
        let op = k.op(id);
        match op.kind {
            OpKind::For { .. } => return self.emit_for(id),
            OpKind::While => return self.emit_while(op),
            OpKind::If => return self.emit_if(op),
            OpKind::Store => return self.emit_store(op),
            OpKind::StoreAdd => return self.emit_store_add(op),
            OpKind::Scatter { .. } => return self.emit_scatter(op),
            OpKind::Atomic { .. } => return self.emit_atomic(op),
            OpKind::Signal | OpKind::Wait => return self.emit_semaphore(id),
            OpKind::Reduce { .. } => return self.emit_reduce(op),
            OpKind::Scan { .. } => return self.emit_scan(op),
            OpKind::Assert { .. } => return self.emit_assert(id),
            OpKind::Print { .. } => return self.emit_print(id),
            OpKind::ViewSelect { .. } | OpKind::ViewNarrow { .. } => return self.emit_view(op),
            OpKind::Roles(_) => return self.emit_roles(id),
            OpKind::Send | OpKind::Receive | OpKind::Release | OpKind::ClusterReduce(_) | OpKind::GridSync => {
                return self.emit_exchange(id);
            }
            OpKind::Channel { .. } | OpKind::Yield => return,
            _ => {}
        }
        let result = op.results[0];
        match self.plan.place(result) {
            Place::Virtual | Place::Dead => {}
            Place::Ssa => {
                let v = self.scalar_result(op);
                self.scalars[result.index()] = Some(v);
            }
            Place::Tile(_) if plan::is_alias(k, self.plan, id) => {}
            Place::Tile(l) => match op.kind {
                OpKind::Dot(_) => self.emit_dot(id, l),
                OpKind::Join { axis } => {
                    let x = op.operands[0];
                    let half = k.ty(x).shape().dim(axis as usize) * l.strides[axis as usize];
                    self.copy_to(x, l);
                    self.copy_to(op.operands[1], Layout { offset: l.offset + half, ..l });
                }
                OpKind::Reshape => {
                    let x = op.operands[0];
                    self.copy_to(x, Layout { strides: plan::row_major(k.ty(x).shape()), ..l });
                }
                _ => self.materialise(op, l),
            },
        }
    }

    /// A root that is computed element by element.
    fn materialise(&mut self, op: &'a Op, l: Layout) {
        let v = op.results[0];
        let (dtype, shape) = (self.k.ty(v).dtype(), self.k.ty(v).shape());
        let mut inputs: Vec<ValueId> = vec![v];
        inputs.extend(op.operands.iter().filter(|&&x| matches!(self.k.ty(x), Type::Tile(_, s) if s.rank() > 0)));
        let vec = self.vector_axis(shape, &inputs);
        let conditions = self.whole_vectors_of(op, vec);
        self.versioned(&conditions, |s| {
            s.nest(shape, vec, None, &mut |s, p| {
                let x = s.compute(op, p);
                s.write_tile(l, dtype, p, x);
            });
            vec![]
        });
    }

    pub(super) fn load_id(&mut self, op: &OpKind) -> Value {
        let offset = match op {
            OpKind::ProgramId { axis } => offset_of!(LaunchIds, program) + 4 * *axis as usize,
            OpKind::NumPrograms { axis } => offset_of!(LaunchIds, grid) + 4 * *axis as usize,
            _ => unreachable!("only for program ids"),
        };
        self.b.ins().load(types::I32, flags(), self.ids, offset as i32)
    }
}
