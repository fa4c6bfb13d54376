//! Elements of virtual values and scalars: sources, elementwise operations and casts, for one element or four.
//!
//! [`Emitter::element`] pulls: it computes a value at a point by computing its operands there. What a floating type
//! narrower than f32 computes is rounded to it after every operation; integers narrower than 32 bits are cut back.

use super::emit::{Emitter, Point, clif_type};
use super::plan::{Place, matching_axes};
use crate::ir::{BinaryOp, Bits, CmpOp, DType, Def, Op, OpKind, Type, UnaryOp, ValueId};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, MemFlags, Value, types};

impl<'a> Emitter<'a, '_> {
    pub(super) fn scalar(&mut self, v: ValueId) -> Value {
        self.element(v, Point::ORIGIN)
    }

    /// The value at a point.
    pub(super) fn element(&mut self, v: ValueId, p: Point) -> Value {
        match self.plan.place(v) {
            Place::Ssa => self.scalars[v.index()].expect("defined before use"),
            Place::Dead => unreachable!("a dead value has no use"),
            Place::Tile(l) => {
                if let Some(&x) = self.memo.get(&(v, p)) {
                    return x;
                }
                let x = self.read_tile(l, self.k.ty(v).dtype(), p);
                self.memo.insert((v, p), x);
                x
            }
            Place::Virtual => {
                if let Some(&x) = self.memo.get(&(v, p)) {
                    return x;
                }
                let Def::Result(op, _) = self.k.def(v) else { unreachable!("virtual values are results") };
                let x = self.compute(self.k.op(op), p);
                self.memo.insert((v, p), x);
                x
            }
        }
    }

    /// The operand's point for a point of the operation's result.
    pub(super) fn operand_point(&mut self, op: &Op, p: Point) -> Point {
        if !matches!(op.kind, OpKind::Broadcast | OpKind::Reshape | OpKind::Transpose { .. } | OpKind::Slice { .. }) {
            return p;
        }
        let from = self.k.ty(op.operands[0]).shape();
        let mut q = Point::ORIGIN;
        match op.kind {
            OpKind::Broadcast => {
                for axis in 0..from.rank() {
                    if from.dim(axis) > 1 {
                        q.at[axis] = p.at[axis];
                        if p.vec == Some(axis) {
                            q.vec = p.vec;
                        }
                    }
                }
            }
            OpKind::Reshape => {
                let to = self.k.ty(op.results[0]).shape();
                for (i, axis) in matching_axes(from, to).into_iter().enumerate() {
                    if let Some(axis) = axis {
                        q.at[axis] = p.at[i];
                        if p.vec == Some(i) {
                            q.vec = Some(axis);
                        }
                    }
                }
            }
            OpKind::Transpose { perm } => {
                for (i, &axis) in perm.iter().enumerate().take(from.rank()) {
                    q.at[axis as usize] = p.at[i];
                    if p.vec == Some(i) {
                        q.vec = Some(axis as usize);
                    }
                }
            }
            OpKind::Slice { offsets } => {
                q = p;
                for (axis, &offset) in offsets.iter().enumerate().take(from.rank()) {
                    let offset = offset as i64;
                    q.at[axis] = match p.at[axis] {
                        Some(i) if offset != 0 => Some(self.b.ins().iadd_imm(i, offset)),
                        None if offset != 0 => Some(self.iconst(offset)),
                        i => i,
                    };
                }
            }
            _ => {}
        }
        q
    }

    /// One element, or four, of an operation's result.
    pub(super) fn compute(&mut self, op: &'a Op, p: Point) -> Value {
        let width = p.width();
        let dtype = self.k.ty(op.results[0]).dtype();
        match op.kind {
            OpKind::Const(bits) => self.constant(dtype, bits, width),
            OpKind::Iota { axis } => self.iota(axis as usize, p),
            OpKind::Broadcast | OpKind::Reshape | OpKind::Transpose { .. } | OpKind::Slice { .. } => {
                let q = self.operand_point(op, p);
                let x = self.element(op.operands[0], q);
                if width > q.width() { self.splat(dtype, x) } else { x }
            }
            OpKind::Load { .. } => self.load_element(op, p),
            OpKind::Gather { .. } => self.gather_element(op, p),
            _ => {
                let args: Vec<Value> = op.operands.iter().map(|&x| self.element(x, p)).collect();
                self.pointwise(op, &args, width)
            }
        }
    }

    /// The result of an operation on scalars, where it stands.
    pub(super) fn scalar_result(&mut self, op: &'a Op) -> Value {
        match op.kind {
            OpKind::ProgramId { .. } | OpKind::NumPrograms { .. } => self.load_id(&op.kind),
            OpKind::Dim { dim } => {
                let extent = self.views[&op.operands[0]].extents[dim as usize];
                self.b.ins().ireduce(types::I32, extent)
            }
            OpKind::Load { .. } | OpKind::Gather { .. } => self.compute(op, Point::ORIGIN),
            OpKind::Reshape | OpKind::Broadcast | OpKind::Slice { .. } => {
                let q = self.operand_point(op, Point::ORIGIN);
                self.element(op.operands[0], q)
            }
            OpKind::Transpose { .. } => self.scalar(op.operands[0]),
            _ => self.compute(op, Point::ORIGIN),
        }
    }

    // -- sources ---------------------------------------------------------------------------------------------------

    pub(super) fn splat(&mut self, dtype: DType, x: Value) -> Value {
        let x = if dtype == DType::Bool { self.mask_of(x) } else { x };
        self.b.ins().splat(clif_type(dtype, 4), x)
    }

    /// A scalar bool as an `i32` of all zeros or all ones.
    pub(super) fn mask_of(&mut self, x: Value) -> Value {
        let x = self.b.ins().uextend(types::I32, x);
        self.b.ins().ineg(x)
    }

    /// Four lanes of 32 bits.
    pub(super) fn vector_constant(&mut self, float: bool, lanes: [u32; 4]) -> Value {
        let bytes: Vec<u8> = lanes.iter().flat_map(|l| l.to_le_bytes()).collect();
        let handle = self.b.func.dfg.constants.insert(bytes.as_slice().into());
        self.b.ins().vconst(if float { types::F32X4 } else { types::I32X4 }, handle)
    }

    pub(super) fn f32(&mut self, value: f32, width: usize) -> Value {
        if width == 1 { self.b.ins().f32const(value) } else { self.vector_constant(true, [value.to_bits(); 4]) }
    }

    pub(super) fn i32(&mut self, value: i32, width: usize) -> Value {
        if width == 1 {
            self.b.ins().iconst(types::I32, value as i64)
        } else {
            self.vector_constant(false, [value as u32; 4])
        }
    }

    fn constant(&mut self, dtype: DType, bits: Bits, width: usize) -> Value {
        match dtype {
            DType::Bool if width == 1 => self.b.ins().iconst(types::I8, (bits.0 & 1) as i64),
            DType::Bool => self.i32(-((bits.0 & 1) as i32), width),
            DType::I64 | DType::U64 => self.b.ins().iconst(types::I64, bits.0 as i64),
            d if d.is_float() => self.f32(bits.to_f64(d) as f32, width),
            d => self.i32(bits.to_i64(d) as i32, width),
        }
    }

    fn iota(&mut self, axis: usize, p: Point) -> Value {
        let i = match p.at[axis] {
            Some(i) => self.b.ins().ireduce(types::I32, i),
            None => self.i32(0, 1),
        };
        if p.vec.is_none() {
            return i;
        }
        let i = self.b.ins().splat(types::I32X4, i);
        if p.vec == Some(axis) {
            let lanes = self.vector_constant(false, [0, 1, 2, 3]);
            self.b.ins().iadd(i, lanes)
        } else {
            i
        }
    }

    /// A scalar from the bits of a launch slot.
    pub(super) fn scalar_from_bits(&mut self, dtype: DType, bits: Value) -> Value {
        match dtype {
            DType::I64 | DType::U64 => bits,
            _ => {
                let raw = self.b.ins().ireduce(types::I32, bits);
                let raw = if dtype.is_float() { raw } else { self.cut(dtype, raw, 1) };
                self.decode(dtype, raw, 1)
            }
        }
    }

    // -- bits and lanes --------------------------------------------------------------------------------------------

    pub(super) fn as_float(&mut self, x: Value, width: usize) -> Value {
        self.b.ins().bitcast(clif_type(DType::F32, width), MemFlags::new(), x)
    }

    pub(super) fn as_int(&mut self, x: Value, width: usize) -> Value {
        self.b.ins().bitcast(clif_type(DType::I32, width), MemFlags::new(), x)
    }

    /// `c ? x : y`, all of one form; `c` is a bool's form of that width.
    pub(super) fn choose(&mut self, c: Value, x: Value, y: Value) -> Value {
        let ty = self.b.func.dfg.value_type(x);
        if !ty.is_vector() {
            return self.b.ins().select(c, x, y);
        }
        let c = if ty == types::F32X4 { self.as_float(c, 4) } else { c };
        self.b.ins().bitselect(c, x, y)
    }

    pub(super) fn mad(&mut self, a: Value, b: Value, c: Value) -> Value {
        if self.fma {
            self.b.ins().fma(a, b, c)
        } else {
            let product = self.b.ins().fmul(a, b);
            self.b.ins().fadd(product, c)
        }
    }

    /// Applies a function of scalars to each lane.
    pub(super) fn lanewise(
        &mut self,
        args: &[Value],
        width: usize,
        mut f: impl FnMut(&mut Self, &[Value]) -> Value,
    ) -> Value {
        if width == 1 {
            return f(self, args);
        }
        let lanes = [0, 1, 2, 3].map(|i| {
            let lane: Vec<Value> = args.iter().map(|&a| self.b.ins().extractlane(a, i)).collect();
            f(self, &lane)
        });
        self.join_lanes(lanes)
    }

    /// The low bits of an integer of up to 32 bits, extended again.
    fn cut(&mut self, dtype: DType, x: Value, width: usize) -> Value {
        let bits = 8 * dtype.size() as i64;
        match dtype {
            DType::I8 | DType::I16 => {
                let x = self.b.ins().ishl_imm(x, 32 - bits);
                self.b.ins().sshr_imm(x, 32 - bits)
            }
            DType::U8 | DType::U16 => {
                let mask = self.i32((1 << bits) - 1, width);
                self.b.ins().band(x, mask)
            }
            _ => x,
        }
    }

    /// Brings a computed element back into its type: floats are rounded, integers cut.
    pub(super) fn finish(&mut self, dtype: DType, x: Value, width: usize) -> Value {
        if dtype.is_float() { self.round_float(dtype, x, width) } else { self.cut(dtype, x, width) }
    }

    // -- operations ------------------------------------------------------------------------------------------------

    /// An elementwise operation on elements of its operands.
    pub(super) fn pointwise(&mut self, op: &Op, args: &[Value], width: usize) -> Value {
        let dtype_of = |s: &Self, v: ValueId| match s.k.ty(v) {
            Type::Tile(d, _) => d,
            _ => unreachable!("elementwise operands are tiles"),
        };
        let from = dtype_of(self, op.operands[0]);
        match op.kind {
            OpKind::Unary(u) => self.unary(u, from, args[0], width),
            OpKind::Binary(b) => self.binary(b, from, args[0], args[1], width),
            OpKind::Compare(c) => self.compare(c, from, args[0], args[1]),
            OpKind::Fma => self.fma(from, args, width),
            OpKind::Select => self.choose(args[0], args[1], args[2]),
            OpKind::Cast => self.cast(from, self.k.ty(op.results[0]).dtype(), args[0], width),
            OpKind::Bitcast => {
                let to = self.k.ty(op.results[0]).dtype();
                if from.size() == 8 {
                    return args[0];
                }
                let raw = self.encode(from, args[0], width);
                let raw = if to.is_float() { self.zero_extended(from, raw, width) } else { self.cut(to, raw, width) };
                self.decode(to, raw, width)
            }
            ref kind => unreachable!("{kind:?} is not elementwise"),
        }
    }

    /// Raw bits of a small type without the copies of the sign.
    fn zero_extended(&mut self, dtype: DType, raw: Value, width: usize) -> Value {
        match dtype.size() {
            1 => self.cut(DType::U8, raw, width),
            2 => self.cut(DType::U16, raw, width),
            _ => raw,
        }
    }

    fn unary(&mut self, op: UnaryOp, dtype: DType, x: Value, width: usize) -> Value {
        if !dtype.is_float() {
            let y = match op {
                UnaryOp::Neg => self.b.ins().ineg(x),
                UnaryOp::Abs => self.b.ins().iabs(x),
                _ if dtype == DType::Bool && width == 1 => self.b.ins().bxor_imm(x, 1),
                _ => self.b.ins().bnot(x),
            };
            return if dtype == DType::Bool { y } else { self.cut(dtype, y, width) };
        }
        let y = match op {
            UnaryOp::Neg => return self.b.ins().fneg(x),
            UnaryOp::Abs => return self.b.ins().fabs(x),
            UnaryOp::Sqrt => self.b.ins().sqrt(x),
            UnaryOp::Floor => self.b.ins().floor(x),
            UnaryOp::Ceil => self.b.ins().ceil(x),
            UnaryOp::Round => self.b.ins().nearest(x),
            UnaryOp::Trunc => self.b.ins().trunc(x),
            UnaryOp::Recip => {
                let one = self.f32(1.0, width);
                self.b.ins().fdiv(one, x)
            }
            UnaryOp::Rsqrt => {
                let one = self.f32(1.0, width);
                let root = self.b.ins().sqrt(x);
                self.b.ins().fdiv(one, root)
            }
            UnaryOp::Sin | UnaryOp::Cos | UnaryOp::Erf => {
                let f = match op {
                    UnaryOp::Sin => self.helpers.sin,
                    UnaryOp::Cos => self.helpers.cos,
                    _ => self.helpers.erf,
                };
                self.lanewise(&[x], width, |s, x| s.call(f, x))
            }
            _ => self.transcendental(op, x, width),
        };
        self.round_float(dtype, y, width)
    }

    pub(super) fn call(&mut self, f: cranelift_codegen::ir::FuncRef, args: &[Value]) -> Value {
        let call = self.b.ins().call(f, args);
        self.b.inst_results(call)[0]
    }

    pub(super) fn binary(&mut self, op: BinaryOp, dtype: DType, x: Value, y: Value, width: usize) -> Value {
        let z = if dtype.is_float() {
            match op {
                BinaryOp::Add => self.b.ins().fadd(x, y),
                BinaryOp::Sub => self.b.ins().fsub(x, y),
                BinaryOp::Mul => self.b.ins().fmul(x, y),
                BinaryOp::Div => self.b.ins().fdiv(x, y),
                BinaryOp::Rem => {
                    let f = self.helpers.rem;
                    self.lanewise(&[x, y], width, |s, a| s.call(f, a))
                }
                BinaryOp::Min | BinaryOp::Max => {
                    let cc = if op == BinaryOp::Min { FloatCC::LessThan } else { FloatCC::GreaterThan };
                    let better = self.b.ins().fcmp(cc, x, y);
                    let better = self.choose(better, x, y);
                    // A comparison with NaN is false and gave y, which is right unless y is the NaN.
                    let nan = self.b.ins().fcmp(FloatCC::Unordered, y, y);
                    return self.choose(nan, x, better);
                }
                _ => unreachable!("{op:?} of floats"),
            }
        } else {
            let signed = dtype.is_signed();
            match op {
                BinaryOp::Add => self.b.ins().iadd(x, y),
                BinaryOp::Sub => self.b.ins().isub(x, y),
                BinaryOp::Mul => self.b.ins().imul(x, y),
                BinaryOp::Div | BinaryOp::Rem => {
                    self.lanewise(&[x, y], width, |s, a| s.divide(op == BinaryOp::Div, signed, a[0], a[1]))
                }
                BinaryOp::Min if signed => self.b.ins().smin(x, y),
                BinaryOp::Max if signed => self.b.ins().smax(x, y),
                BinaryOp::Min => self.b.ins().umin(x, y),
                BinaryOp::Max => self.b.ins().umax(x, y),
                BinaryOp::And => self.b.ins().band(x, y),
                BinaryOp::Or => self.b.ins().bor(x, y),
                BinaryOp::Xor => self.b.ins().bxor(x, y),
                BinaryOp::Shl | BinaryOp::Shr => {
                    let width_mask = 8 * dtype.size() as i64 - 1;
                    self.lanewise(&[x, y], width, |s, a| {
                        let by = s.b.ins().band_imm(a[1], width_mask);
                        match (op, signed) {
                            (BinaryOp::Shl, _) => s.b.ins().ishl(a[0], by),
                            (_, true) => s.b.ins().sshr(a[0], by),
                            (_, false) => s.b.ins().ushr(a[0], by),
                        }
                    })
                }
            }
        };
        if dtype == DType::Bool { z } else { self.finish(dtype, z, width) }
    }

    /// Integer division without traps: by zero gives 0, MIN / -1 wraps.
    fn divide(&mut self, quotient: bool, signed: bool, x: Value, y: Value) -> Value {
        let ty = self.b.func.dfg.value_type(x);
        let zero = self.b.ins().iconst(ty, 0);
        let one = self.b.ins().iconst(ty, 1);
        let by_zero = self.b.ins().icmp_imm(IntCC::Equal, y, 0);
        let mut divisor = self.b.ins().select(by_zero, one, y);
        if !signed {
            let z = if quotient { self.b.ins().udiv(x, divisor) } else { self.b.ins().urem(x, divisor) };
            return self.b.ins().select(by_zero, zero, z);
        }
        let by_minus_one = self.b.ins().icmp_imm(IntCC::Equal, y, -1);
        divisor = self.b.ins().select(by_minus_one, one, divisor);
        let z = if quotient {
            let z = self.b.ins().sdiv(x, divisor);
            let negated = self.b.ins().ineg(x);
            self.b.ins().select(by_minus_one, negated, z)
        } else {
            self.b.ins().srem(x, divisor)
        };
        self.b.ins().select(by_zero, zero, z)
    }

    /// Rounded once to f32 on every machine, unlike [`mad`](Self::mad).
    fn fma(&mut self, dtype: DType, args: &[Value], width: usize) -> Value {
        let y = if self.fma {
            self.b.ins().fma(args[0], args[1], args[2])
        } else {
            let f = self.helpers.fma;
            self.lanewise(args, width, |s, a| s.call(f, a))
        };
        self.round_float(dtype, y, width)
    }

    fn compare(&mut self, op: CmpOp, dtype: DType, x: Value, y: Value) -> Value {
        if dtype.is_float() {
            let cc = match op {
                CmpOp::Eq => FloatCC::Equal,
                CmpOp::Ne => FloatCC::NotEqual,
                CmpOp::Lt => FloatCC::LessThan,
                CmpOp::Le => FloatCC::LessThanOrEqual,
                CmpOp::Gt => FloatCC::GreaterThan,
                CmpOp::Ge => FloatCC::GreaterThanOrEqual,
            };
            return self.b.ins().fcmp(cc, x, y);
        }
        // A mask of four bools is 0 or -1: signed comparison has the order reversed, unsigned has it right.
        let signed = dtype.is_signed();
        let cc = match op {
            CmpOp::Eq => IntCC::Equal,
            CmpOp::Ne => IntCC::NotEqual,
            CmpOp::Lt if signed => IntCC::SignedLessThan,
            CmpOp::Le if signed => IntCC::SignedLessThanOrEqual,
            CmpOp::Gt if signed => IntCC::SignedGreaterThan,
            CmpOp::Ge if signed => IntCC::SignedGreaterThanOrEqual,
            CmpOp::Lt => IntCC::UnsignedLessThan,
            CmpOp::Le => IntCC::UnsignedLessThanOrEqual,
            CmpOp::Gt => IntCC::UnsignedGreaterThan,
            CmpOp::Ge => IntCC::UnsignedGreaterThanOrEqual,
        };
        self.b.ins().icmp(cc, x, y)
    }

    pub(super) fn cast(&mut self, from: DType, to: DType, x: Value, width: usize) -> Value {
        if from == to {
            return x;
        }
        if from == DType::Bool {
            let number = if width == 1 { self.b.ins().uextend(types::I32, x) } else { self.b.ins().ineg(x) };
            return self.cast(DType::I32, to, number, width);
        }
        match (from.is_float(), to.is_float()) {
            (true, true) => self.round_float(to, x, width),
            (true, false) => self.float_to_int(to, x, width),
            (false, true) => {
                let ty = clif_type(DType::F32, width);
                let y = match from.is_signed() {
                    true => self.b.ins().fcvt_from_sint(ty, x),
                    // Narrow unsigned integers are positive as i32.
                    false if from.size() < 4 => self.b.ins().fcvt_from_sint(ty, x),
                    false if from == DType::U32 && width == 1 => {
                        let wide = self.b.ins().uextend(types::I64, x);
                        self.b.ins().fcvt_from_sint(ty, wide)
                    }
                    false => self.b.ins().fcvt_from_uint(ty, x),
                };
                self.round_float(to, y, width)
            }
            (false, false) => {
                if to == DType::Bool {
                    if width == 1 {
                        return self.b.ins().icmp_imm(IntCC::NotEqual, x, 0);
                    }
                    let zero = self.i32(0, width);
                    return self.b.ins().icmp(IntCC::NotEqual, x, zero);
                }
                match (from.size(), to.size()) {
                    (8, 8) => x,
                    (8, _) => {
                        let x = self.b.ins().ireduce(types::I32, x);
                        self.cut(to, x, width)
                    }
                    (_, 8) if from.is_signed() => self.b.ins().sextend(types::I64, x),
                    (_, 8) => self.b.ins().uextend(types::I64, x),
                    _ => self.cut(to, x, width),
                }
            }
        }
    }

    fn float_to_int(&mut self, to: DType, x: Value, width: usize) -> Value {
        match to {
            DType::Bool => {
                let zero = self.f32(0.0, width);
                self.b.ins().fcmp(FloatCC::NotEqual, x, zero)
            }
            DType::I64 => self.b.ins().fcvt_to_sint_sat(types::I64, x),
            DType::U64 => self.b.ins().fcvt_to_uint_sat(types::I64, x),
            DType::U32 => self.b.ins().fcvt_to_uint_sat(clif_type(to, width), x),
            _ => {
                let y = self.b.ins().fcvt_to_sint_sat(clif_type(DType::I32, width), x);
                let bits = 8 * to.size() as u32;
                let (low, high) = match to {
                    DType::I32 => return y,
                    d if d.is_signed() => (-(1i32 << (bits - 1)), (1i32 << (bits - 1)) - 1),
                    _ => (0, (1i32 << bits) - 1),
                };
                let (low, high) = (self.i32(low, width), self.i32(high, width));
                let y = self.b.ins().smax(y, low);
                self.b.ins().smin(y, high)
            }
        }
    }
}
