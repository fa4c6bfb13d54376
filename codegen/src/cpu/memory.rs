//! Views: windows, boxes, gathers, scatters and atomics.
//!
//! No memory outside a view is touched. Where an index may be outside, the address is replaced by that of a few bytes
//! of scratch memory that belong to nobody, and what comes from there is replaced by `other`: no branches. A loop over
//! boxes has two versions: in the fast one every group of four elements lies inside its view and is contiguous (checked
//! once, before the loop), so that only the indices along the other axes are checked; in the slow one every element is.

use super::emit::{Emitter, Point, ViewValue, clif_type, flags};
use super::plan::Place;
use crate::ir::{AtomicOp, DType, Def, Op, OpId, OpKind, Type, ValueId};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, MemFlags, Value, types};

impl<'a> Emitter<'a, '_> {
    // -- windows ---------------------------------------------------------------------------------------------------

    pub(super) fn emit_view(&mut self, op: &Op) {
        let mut view = self.views[&op.operands[0]].clone();
        match op.kind {
            OpKind::ViewSelect { dim } => {
                let dim = dim as usize;
                let index = self.index(op.operands[1]);
                let (extent, stride) = (view.extents.remove(dim), view.strides.remove(dim));
                let inside = self.b.ins().icmp(IntCC::UnsignedLessThan, index, extent);
                let bytes = self.element_bytes(op.operands[0], index, stride);
                let moved = self.b.ins().iadd(view.address, bytes);
                view.address = self.b.ins().select(inside, moved, view.address);
                // Outside: nothing is inside of what remains.
                let zero = self.iconst(0);
                for e in &mut view.extents {
                    *e = self.b.ins().select(inside, *e, zero);
                }
                view.valid = view.extents.is_empty().then_some(inside);
            }
            OpKind::ViewNarrow { dim } => {
                let dim = dim as usize;
                let (start, len) = (self.index(op.operands[1]), self.index(op.operands[2]));
                let (extent, zero) = (view.extents[dim], self.iconst(0));
                let end = self.b.ins().iadd(start, len);
                let start = self.b.ins().smax(start, zero);
                let start = self.b.ins().smin(start, extent);
                let end = self.b.ins().smin(end, extent);
                let len = self.b.ins().isub(end, start);
                view.extents[dim] = self.b.ins().smax(len, zero);
                let bytes = self.element_bytes(op.operands[0], start, view.strides[dim]);
                view.address = self.b.ins().iadd(view.address, bytes);
            }
            _ => unreachable!("not a window"),
        }
        self.views.insert(op.results[0], view);
    }

    fn index(&mut self, v: ValueId) -> Value {
        let x = self.scalar(v);
        self.b.ins().sextend(types::I64, x)
    }

    fn element_bytes(&mut self, view: ValueId, index: Value, stride: Value) -> Value {
        let elements = self.b.ins().imul(index, stride);
        self.b.ins().imul_imm(elements, self.k.ty(view).dtype().size() as i64)
    }

    // -- raw accesses ----------------------------------------------------------------------------------------------

    /// The bits at an address: an `i32` extended by the dtype's sign, an `i64`, or an `f32`.
    fn load_raw(&mut self, dtype: DType, address: Value) -> Value {
        let signed = dtype.is_signed() && !dtype.is_float();
        match (dtype, dtype.size()) {
            (DType::F32, _) => self.b.ins().load(types::F32, flags(), address, 0),
            (_, 1) if signed => self.b.ins().sload8(types::I32, flags(), address, 0),
            (_, 1) => self.b.ins().uload8(types::I32, flags(), address, 0),
            (_, 2) if signed => self.b.ins().sload16(types::I32, flags(), address, 0),
            (_, 2) => self.b.ins().uload16(types::I32, flags(), address, 0),
            (_, 4) => self.b.ins().load(types::I32, flags(), address, 0),
            _ => self.b.ins().load(types::I64, flags(), address, 0),
        }
    }

    /// The element from what [`Self::load_raw`] gave, one or four.
    fn element_of_raw(&mut self, dtype: DType, raw: Value, width: usize) -> Value {
        match dtype {
            DType::F32 | DType::I64 | DType::U64 => raw,
            d => self.decode(d, raw, width),
        }
    }

    /// Four contiguous elements.
    fn load_vector(&mut self, dtype: DType, address: Value) -> Value {
        let signed = dtype.is_signed() && !dtype.is_float();
        let raw = match dtype.size() {
            4 => return self.b.ins().load(clif_type(dtype, 4), flags(), address, 0),
            2 if signed => self.b.ins().sload16x4(flags(), address, 0),
            2 => self.b.ins().uload16x4(flags(), address, 0),
            _ => {
                let four = self.b.ins().load(types::I32, flags(), address, 0);
                let four = self.b.ins().scalar_to_vector(types::I32X4, four);
                let little = MemFlags::new().with_endianness(cranelift_codegen::ir::Endianness::Little);
                let bytes = self.b.ins().bitcast(types::I8X16, little, four);
                if signed {
                    let x = self.b.ins().swiden_low(bytes);
                    self.b.ins().swiden_low(x)
                } else {
                    let x = self.b.ins().uwiden_low(bytes);
                    self.b.ins().uwiden_low(x)
                }
            }
        };
        self.element_of_raw(dtype, raw, 4)
    }

    fn store_scalar(&mut self, dtype: DType, address: Value, x: Value) {
        if dtype == DType::F32 || dtype.size() == 8 {
            self.b.ins().store(flags(), x, address, 0);
            return;
        }
        let raw = self.encode(dtype, x, 1);
        match dtype.size() {
            1 => self.b.ins().istore8(flags(), raw, address, 0),
            2 => self.b.ins().istore16(flags(), raw, address, 0),
            _ => self.b.ins().store(flags(), raw, address, 0),
        };
    }

    /// Four contiguous elements.
    fn store_vector(&mut self, dtype: DType, address: Value, x: Value) {
        if dtype.size() == 4 {
            self.b.ins().store(flags(), x, address, 0);
            return;
        }
        let raw = self.encode(dtype, x, 4);
        let little = MemFlags::new().with_endianness(cranelift_codegen::ir::Endianness::Little);
        // Gather the low bytes of each lane: narrowing instructions would saturate.
        let bytes = self.b.ins().bitcast(types::I8X16, little, raw);
        let order: [u8; 16] = if dtype.size() == 2 {
            [0, 1, 4, 5, 8, 9, 12, 13, 0, 1, 4, 5, 8, 9, 12, 13]
        } else {
            [0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12]
        };
        let order = self.b.func.dfg.immediates.push(order.as_slice().into());
        let packed = self.b.ins().shuffle(bytes, bytes, order);
        let (ty, lane) = if dtype.size() == 2 { (types::I64X2, types::I64) } else { (types::I32X4, types::I32) };
        let packed = self.b.ins().bitcast(ty, little, packed);
        let low = self.b.ins().extractlane(packed, 0);
        debug_assert_eq!(self.b.func.dfg.value_type(low), lane);
        self.b.ins().store(flags(), low, address, 0);
    }

    /// `address` where `ok`, and otherwise memory of nobody.
    fn guarded(&mut self, ok: Option<Value>, address: Value) -> Value {
        match ok {
            Some(ok) => self.b.ins().select(ok, address, self.scratch),
            None => address,
        }
    }

    fn and(&mut self, x: Option<Value>, y: Value) -> Option<Value> {
        Some(match x {
            Some(x) => self.b.ins().band(x, y),
            None => y,
        })
    }

    // -- boxes -----------------------------------------------------------------------------------------------------

    /// The address of a point of the box at `coords`, but for the vector axis, and whether it is inside, but for the
    /// vector axis.
    fn row(&mut self, view: ValueId, coords: &[ValueId], p: Point) -> (ViewValue, Value, Option<Value>) {
        let v = self.views[&view].clone();
        let mut ok = v.valid;
        let mut address = v.address;
        for (axis, &c) in coords.iter().enumerate() {
            if p.vec == Some(axis) {
                continue;
            }
            let mut i = self.index(c);
            if let Some(at) = p.at[axis] {
                i = self.b.ins().iadd(i, at);
            }
            let inside = self.b.ins().icmp(IntCC::UnsignedLessThan, i, v.extents[axis]);
            ok = self.and(ok, inside);
            let bytes = self.element_bytes(view, i, v.strides[axis]);
            address = self.b.ins().iadd(address, bytes);
        }
        (v, address, ok)
    }

    /// Index of the first of four elements along the vector axis.
    fn vector_index(&mut self, c: ValueId, at: Option<Value>) -> Value {
        let i = self.index(c);
        at.map_or(i, |at| self.b.ins().iadd(i, at))
    }

    pub(super) fn load_element(&mut self, op: &Op, p: Point) -> Value {
        let OpKind::Load { has_other } = op.kind else { unreachable!("not a load") };
        let view = op.operands[0];
        let (Type::View(dtype, _), end) = (self.k.ty(view), op.operands.len() - has_other as usize) else {
            unreachable!("loads are from views")
        };
        let coords = &op.operands[1..end];
        let other = has_other.then(|| self.scalar(op.operands[end]));
        let other = match other {
            Some(x) if p.vec.is_some() => self.splat(dtype, x),
            Some(x) => x,
            None => self.zero(dtype, p.width()),
        };
        let (v, address, ok) = self.row(view, coords, p);
        let Some(axis) = p.vec else {
            let at = self.guarded(ok, address);
            let raw = self.load_raw(dtype, at);
            let x = self.element_of_raw(dtype, raw, 1);
            return match ok {
                Some(ok) => self.b.ins().select(ok, x, other),
                None => x,
            };
        };
        let i = self.vector_index(coords[axis], p.at[axis]);
        if self.fast {
            let bytes = self.b.ins().imul_imm(i, dtype.size() as i64);
            let address = self.b.ins().iadd(address, bytes);
            let at = self.guarded(ok, address);
            let x = self.load_vector(dtype, at);
            return match ok {
                Some(ok) => {
                    let mask = self.mask_of(ok);
                    let mask = self.b.ins().splat(types::I32X4, mask);
                    self.choose(mask, x, other)
                }
                None => x,
            };
        }
        let (lanes, masks) = self.lane_addresses(dtype, &v, axis, address, ok, i);
        let raw = lanes.map(|a| self.load_raw(dtype, a));
        let raw = self.join_lanes(raw);
        let x = self.element_of_raw(dtype, raw, 4);
        let masks = masks.map(|m| self.mask_of(m));
        let mask = self.join_lanes(masks);
        self.choose(mask, x, other)
    }

    /// The addresses of four elements along an axis, guarded, and whether each is inside.
    fn lane_addresses(
        &mut self,
        dtype: DType,
        v: &ViewValue,
        axis: usize,
        address: Value,
        ok: Option<Value>,
        first: Value,
    ) -> ([Value; 4], [Value; 4]) {
        let masks = [0, 1, 2, 3].map(|l| {
            let i = self.b.ins().iadd_imm(first, l);
            let inside = self.b.ins().icmp(IntCC::UnsignedLessThan, i, v.extents[axis]);
            ok.map_or(inside, |ok| self.b.ins().band(ok, inside))
        });
        let step = self.b.ins().imul_imm(v.strides[axis], dtype.size() as i64);
        let bytes = self.b.ins().imul(first, step);
        let mut at = self.b.ins().iadd(address, bytes);
        let lanes = masks.map(|m| {
            let lane = self.b.ins().select(m, at, self.scratch);
            at = self.b.ins().iadd(at, step);
            lane
        });
        (lanes, masks)
    }

    pub(super) fn zero(&mut self, dtype: DType, width: usize) -> Value {
        match clif_type(dtype, width) {
            types::F32 | types::F32X4 => self.f32(0.0, width),
            types::I32X4 => self.i32(0, 4),
            ty => self.b.ins().iconst(ty, 0),
        }
    }

    pub(super) fn emit_store(&mut self, op: &'a Op) {
        let (view, value, coords) = (op.operands[0], op.operands[1], &op.operands[2..]);
        let (dtype, shape) = (self.k.ty(value).dtype(), self.k.ty(value).shape());
        let vec = self.vector_axis(shape, &[value]);
        let mut conditions = self.whole_vectors(value, vec);
        if let Some(axis) = vec {
            let c = self.whole_box(view, coords[axis], axis, shape.dim(axis));
            conditions.push(c);
        }
        self.versioned(&conditions, |s| {
            s.nest(shape, vec, None, &mut |s, p| {
                let x = s.element(value, p);
                s.store_element(dtype, view, coords, p, x);
            });
            vec![]
        });
    }

    fn store_element(&mut self, dtype: DType, view: ValueId, coords: &[ValueId], p: Point, x: Value) {
        let (v, address, ok) = self.row(view, coords, p);
        let Some(axis) = p.vec else {
            let at = self.guarded(ok, address);
            return self.store_scalar(dtype, at, x);
        };
        let i = self.vector_index(coords[axis], p.at[axis]);
        if self.fast {
            let bytes = self.b.ins().imul_imm(i, dtype.size() as i64);
            let address = self.b.ins().iadd(address, bytes);
            let at = self.guarded(ok, address);
            return self.store_vector(dtype, at, x);
        }
        let (lanes, _) = self.lane_addresses(dtype, &v, axis, address, ok, i);
        for (l, at) in lanes.into_iter().enumerate() {
            let lane = self.lane(dtype, x, l);
            self.store_scalar(dtype, at, lane);
        }
    }

    /// One of four elements.
    pub(super) fn lane(&mut self, dtype: DType, x: Value, lane: usize) -> Value {
        let y = self.b.ins().extractlane(x, lane as u8);
        if dtype == DType::Bool { self.b.ins().icmp_imm(IntCC::NotEqual, y, 0) } else { y }
    }

    /// Whether the box's extent along `axis` lies inside the view and is contiguous.
    fn whole_box(&mut self, view: ValueId, coord: ValueId, axis: usize, extent: usize) -> Value {
        let v = self.views[&view].clone();
        let c = self.index(coord);
        let from = self.b.ins().icmp_imm(IntCC::SignedGreaterThanOrEqual, c, 0);
        let end = self.b.ins().iadd_imm(c, extent as i64);
        let to = self.b.ins().icmp(IntCC::SignedLessThanOrEqual, end, v.extents[axis]);
        let unit = self.b.ins().icmp_imm(IntCC::Equal, v.strides[axis], 1);
        let inside = self.b.ins().band(from, to);
        self.b.ins().band(inside, unit)
    }

    /// For each load that computing `v` along axis `vec` involves, whether it is of whole vectors.
    pub(super) fn whole_vectors(&mut self, v: ValueId, vec: Option<usize>) -> Vec<Value> {
        let mut out = vec![];
        if let (Place::Virtual, Def::Result(op, _)) = (self.plan.place(v), self.k.def(v)) {
            out = self.whole_vectors_of(self.k.op(op), vec);
        }
        out
    }

    /// The same for the result of an operation, wherever that lives.
    pub(super) fn whole_vectors_of(&mut self, op: &'a Op, vec: Option<usize>) -> Vec<Value> {
        let mut out = vec![];
        self.find_loads(op, vec, &mut out);
        out.sort_unstable();
        out.dedup();
        out
    }

    fn find_loads(&mut self, op: &'a Op, vec: Option<usize>, out: &mut Vec<Value>) {
        let Some(axis) = vec else { return };
        if matches!(op.kind, OpKind::Load { .. }) {
            let extent = self.k.ty(op.results[0]).shape().dim(axis);
            let c = self.whole_box(op.operands[0], op.operands[1 + axis], axis, extent);
            out.push(c);
            return;
        }
        let p = self.operand_point(op, Point { vec, ..Point::ORIGIN });
        let k = self.k;
        for &x in &op.operands {
            if let (Place::Virtual, Def::Result(inner, _)) = (self.plan.place(x), k.def(x)) {
                self.find_loads(k.op(inner), p.vec, out);
            }
        }
    }

    // -- single elements -------------------------------------------------------------------------------------------

    /// Indices and mask at a point, lane by lane: the guarded address and whether the element may be accessed.
    fn indexed(&mut self, view: ValueId, index: &[ValueId], mask: Option<ValueId>, p: Point) -> Vec<(Value, Value)> {
        let v = self.views[&view].clone();
        let columns: Vec<Value> = index.iter().map(|&i| self.element(i, p)).collect();
        let mask = mask.map(|m| self.element(m, p));
        let mut out = vec![];
        for l in 0..p.width() {
            let mut ok = v.valid;
            if let Some(m) = mask {
                let m = if p.vec.is_some() { self.lane(DType::Bool, m, l) } else { m };
                ok = self.and(ok, m);
            }
            let mut address = v.address;
            for (axis, &column) in columns.iter().enumerate() {
                let i = if p.vec.is_some() { self.b.ins().extractlane(column, l as u8) } else { column };
                let i = self.b.ins().sextend(types::I64, i);
                let inside = self.b.ins().icmp(IntCC::UnsignedLessThan, i, v.extents[axis]);
                ok = self.and(ok, inside);
                let bytes = self.element_bytes(view, i, v.strides[axis]);
                address = self.b.ins().iadd(address, bytes);
            }
            let ok = ok.unwrap_or_else(|| self.b.ins().iconst(types::I8, 1));
            let at = self.b.ins().select(ok, address, self.scratch);
            out.push((at, ok));
        }
        out
    }

    pub(super) fn gather_element(&mut self, op: &Op, p: Point) -> Value {
        let OpKind::Gather { masked } = op.kind else { unreachable!("not a gather") };
        let view = op.operands[0];
        let dtype = self.k.ty(view).dtype();
        let end = op.operands.len() - 2 * masked as usize;
        let mask = masked.then(|| op.operands[end]);
        let places = self.indexed(view, &op.operands[1..end], mask, p);
        let other = if masked { self.element(op.operands[end + 1], p) } else { self.zero(dtype, p.width()) };
        let raw: Vec<Value> = places.iter().map(|&(at, _)| self.load_raw(dtype, at)).collect();
        let raw = self.pack(&raw);
        let x = self.element_of_raw(dtype, raw, p.width());
        let inside = if p.vec.is_some() {
            let masks: Vec<Value> = places.iter().map(|&(_, ok)| self.mask_of(ok)).collect();
            self.pack(&masks)
        } else {
            places[0].1
        };
        self.choose(inside, x, other)
    }

    fn pack(&mut self, lanes: &[Value]) -> Value {
        match *lanes {
            [a, b, c, d] => self.join_lanes([a, b, c, d]),
            _ => lanes[0],
        }
    }

    pub(super) fn emit_scatter(&mut self, op: &'a Op) {
        let OpKind::Scatter { masked } = op.kind else { unreachable!("not a scatter") };
        let (view, value) = (op.operands[0], op.operands[1]);
        let end = op.operands.len() - masked as usize;
        let mask = masked.then(|| op.operands[end]);
        let (dtype, shape) = (self.k.ty(value).dtype(), self.k.ty(value).shape());
        let mut inputs = op.operands[1..].to_vec();
        inputs.retain(|&v| !matches!(self.k.ty(v), Type::View(..)));
        let vec = self.vector_axis(shape, &inputs);
        let mut conditions = vec![];
        for &v in &inputs {
            conditions.extend(self.whole_vectors(v, vec));
        }
        self.versioned(&conditions, |s| {
            s.nest(shape, vec, None, &mut |s, p| {
                let x = s.element(value, p);
                let places = s.indexed(view, &op.operands[2..end], mask, p);
                for (l, (at, _)) in places.into_iter().enumerate() {
                    let lane = if p.vec.is_some() { s.lane(dtype, x, l) } else { x };
                    s.store_scalar(dtype, at, lane);
                }
            });
            vec![]
        });
    }

    /// One call of the host per element: atomics are rare, and their order within a tile does not matter.
    pub(super) fn emit_atomic(&mut self, op: &'a Op) {
        let OpKind::Atomic { op: kind, masked } = op.kind else { unreachable!("not an atomic") };
        let (view, value) = (op.operands[0], op.operands[1]);
        let end = op.operands.len() - masked as usize;
        let mask = masked.then(|| op.operands[end]);
        let (dtype, shape) = (self.k.ty(value).dtype(), self.k.ty(value).shape());
        let result = self.plan.place(op.results[0]);
        self.fast = false;
        self.nest(shape, None, None, &mut |s, p| {
            let x = s.element(value, p);
            let (at, ok) = s.indexed(view, &op.operands[2..end], mask, p)[0];
            let old = s.atomic_element(kind, dtype, at, x);
            let old = s.scalar_from_bits(dtype, old);
            let zero = s.zero(dtype, 1);
            let old = s.b.ins().select(ok, old, zero);
            match result {
                Place::Tile(l) => s.write_tile(l, dtype, p, old),
                Place::Ssa => s.scalars[op.results[0].index()] = Some(old),
                _ => {}
            }
        });
    }

    /// An atomic addition for each element.
    pub(super) fn emit_store_add(&mut self, op: &'a Op) {
        let (view, value, coords) = (op.operands[0], op.operands[1], &op.operands[2..]);
        let (dtype, shape) = (self.k.ty(value).dtype(), self.k.ty(value).shape());
        self.fast = false;
        self.nest(shape, None, None, &mut |s, p| {
            let x = s.element(value, p);
            let (_, address, ok) = s.row(view, coords, p);
            let at = s.guarded(ok, address);
            s.atomic_element(AtomicOp::Add, dtype, at, x);
        });
    }

    /// Combines one element with a value; the bits that were there before.
    fn atomic_element(&mut self, op: AtomicOp, dtype: DType, at: Value, x: Value) -> Value {
        let bits = if dtype.size() == 8 {
            x
        } else {
            let raw = self.encode(dtype, x, 1);
            self.b.ins().uextend(types::I64, raw)
        };
        let code = self.iconst(atomic_code(op, dtype) as i64);
        self.call(self.helpers.atomic, &[code, at, bits])
    }

    /// Signals, and waits that have nothing to wait for: all earlier launches are over.
    pub(super) fn emit_semaphore(&mut self, id: OpId) {
        let op = self.k.op(id);
        let waits = op.kind == OpKind::Wait;
        let (at, ok) = self.indexed(op.operands[0], &op.operands[2..], None, Point::ORIGIN)[0];
        let taken = self.scalar(op.operands[1]);
        let count = if waits { self.b.ins().ineg(taken) } else { taken };
        let old = self.atomic_element(AtomicOp::Add, DType::I32, at, count);
        if waits {
            let old = self.scalar_from_bits(DType::I32, old);
            let given = self.b.ins().icmp(IntCC::SignedGreaterThanOrEqual, old, taken);
            let outside = self.b.ins().icmp_imm(IntCC::Equal, ok, 0);
            let holds = self.b.ins().bor(given, outside);
            self.demand(holds, id);
        }
    }
}

/// An atomic operation on a dtype as a number: see `helpers::atomic`.
fn atomic_code(op: AtomicOp, dtype: DType) -> u64 {
    let d = DType::ALL.iter().position(|&d| d == dtype).expect("all dtypes are listed");
    let o = super::helpers::ATOMICS.iter().position(|&o| o == op).expect("all operations are listed");
    (o * DType::ALL.len() + d) as u64
}
