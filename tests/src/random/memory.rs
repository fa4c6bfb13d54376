//! Parameters, and the statements that read and write memory.
//!
//! Each output belongs to one program per row (a leading dimension with one entry per program, selected) or per block
//! (a first dimension cut into blocks), so programs cannot race; inner extents are odd, and boxes hang over every edge.
//! Only the counters are shared, and changed by one kind of atomic operation whose order does not matter, of single
//! elements or of boxes.

use super::generate::{Entry, Generator};
use super::{Argument, Rule};
use kiln_codegen::ir::{Access, AtomicOp, BinaryOp, Bits, CmpOp, DType, Shape, Type, ValueId};

/// An output that may be written again, and read by the program that wrote it.
#[derive(Clone)]
pub(super) struct Output {
    param: ValueId,
    dtype: DType,
    shape: Shape,
    owned: Owned,
}

/// How programs share an output.
#[derive(Clone, Copy)]
enum Owned {
    Row,
    Block,
    NarrowedBlock,
}

impl Generator {
    pub(super) fn scalar_parameter(&mut self) {
        let dtype =
            self.rng.pick(&[DType::I32, DType::I32, DType::F32, DType::BF16, DType::I64, DType::U8, DType::Bool]);
        let bits = self.rng.element(dtype);
        let v = self.parameter("s", Type::scalar(dtype), Access::Read, Argument::Scalar(bits));
        self.push(v, false);
    }

    fn parameter(&mut self, prefix: &str, ty: Type, access: Access, argument: Argument) -> ValueId {
        let name = format!("{prefix}{}", self.arguments.len());
        self.arguments.push(argument);
        self.b.kernel_mut().add_param(name, ty, access, None)
    }

    /// A new input with random contents, extents and strides.
    pub(super) fn input(&mut self) -> usize {
        let dtype = self.rng.pick(&DType::ALL);
        let rank = self.rng.between(1, 4) as usize;
        self.input_of(dtype, rank)
    }

    fn input_of(&mut self, dtype: DType, rank: usize) -> usize {
        let most = [0, 70, 20, 9, 5][rank];
        let shape: Vec<i64> = (0..rank).map(|_| self.rng.between(1, most)).collect();
        let mut strides = vec![0; rank];
        let mut order: Vec<usize> = (0..rank).rev().collect();
        if self.rng.chance(25) {
            order.reverse();
        }
        let (mut next, mut offset) = (1, self.rng.pick(&[0, 0, 3, 16]));
        for d in order {
            strides[d] = next;
            next *= shape[d];
            match self.rng.below(12) {
                0 => next += self.rng.between(1, 5), // Padding.
                1 => next = (next + 15) / 16 * 16,
                2 => strides[d] = 0,
                3 => {
                    offset += strides[d] * (shape[d] - 1);
                    strides[d] = -strides[d];
                }
                _ => {}
            }
        }
        let elements = (next + offset + 1) as usize;
        let small = self.rng.chance(30);
        let mut bytes = vec![];
        for _ in 0..elements {
            let bits = if small { self.rng.small(dtype) } else { self.rng.element(dtype) };
            bytes.extend_from_slice(&bits.0.to_le_bytes()[..dtype.size()]);
        }
        let argument = Argument::View { dtype, bytes, offset: offset as usize, shape, strides, rule: Rule::Exact };
        let index = self.arguments.len();
        self.parameter("x", Type::View(dtype, rank as u8), Access::Read, argument);
        self.inputs.push(index);
        index
    }

    fn param(&self, index: usize) -> ValueId {
        self.b.kernel().params[index].value
    }

    /// An input of this type, made if there is none.
    fn find_input(&mut self, dtype: DType, rank: usize) -> usize {
        let ty = Type::View(dtype, rank as u8);
        let fit: Vec<usize> = self.inputs.iter().copied().filter(|&i| self.b.ty(self.param(i)) == ty).collect();
        if fit.is_empty() || self.rng.chance(10) { self.input_of(dtype, rank) } else { self.rng.pick(&fit) }
    }

    /// Where a box may start: inside, before the first element, far beyond the last, or by program.
    fn coordinate(&mut self, extent: u32) -> ValueId {
        match self.rng.below(8) {
            0..=2 => self.constant_i32(0),
            3 => {
                let c = self.rng.pick(&[1, 3, -1, -3, 16, 1000, i32::MAX as i64, i32::MIN as i64]);
                self.constant_i32(c)
            }
            4 | 5 => {
                let extent = self.constant_i32(extent as i64);
                self.b.binary(BinaryOp::Mul, self.program, extent)
            }
            6 => {
                let x = self.value(DType::I32, Shape::SCALAR).v;
                let mask = self.constant_i32(15);
                self.b.binary(BinaryOp::And, x, mask)
            }
            _ => self.value(DType::I32, Shape::SCALAR).v,
        }
    }

    /// Loads a tile of this type, of rank 1 or more.
    pub(super) fn load_tile(&mut self, dtype: DType, shape: Shape) -> Entry {
        let higher = shape.rank() < 4 && self.rng.chance(20);
        let input = self.find_input(dtype, shape.rank() + higher as usize);
        let mut view = self.param(input);
        if higher {
            let dim = self.rng.below(shape.rank() + 1);
            let index = self.index_below(input, dim);
            view = self.b.view_select(view, dim, index);
        }
        if self.rng.chance(20) {
            let dim = self.rng.below(shape.rank());
            let start = self.coordinate(shape.dims()[dim]);
            let length = self.rng.between(0, 9);
            let length = self.constant_i32(length);
            view = self.b.view_narrow(view, dim, start, length);
        }
        let coords: Vec<ValueId> = shape.dims().iter().map(|&d| self.coordinate(d)).collect();
        let other = if self.rng.chance(40) { self.find(|g, e| g.b.ty(e.v) == Type::scalar(dtype)) } else { None };
        let v = self.b.load(view, &coords, shape, other.map(|e| e.v));
        self.push(v, false);
        self.pool[self.pool.len() - 1]
    }

    /// An index inside dimension `dim` of an input: a remainder, made positive.
    fn index_below(&mut self, input: usize, dim: usize) -> ValueId {
        let view = self.param(input);
        if self.rng.chance(50) {
            let Argument::View { shape, .. } = &self.arguments[input] else { unreachable!("inputs are views") };
            let extent = shape[dim];
            let i = self.rng.between(0, extent - 1);
            return self.constant_i32(i);
        }
        let x = self.value(DType::I32, Shape::SCALAR).v;
        let positive = self.constant_i32(i32::MAX as i64);
        let x = self.b.binary(BinaryOp::And, x, positive);
        let extent = self.b.dim(view, dim);
        self.b.binary(BinaryOp::Rem, x, extent)
    }

    pub(super) fn memory_read(&mut self) {
        match self.rng.below(4) {
            0 => {
                let (dtype, shape) = (self.rng.pick(&DType::ALL), self.random_shape());
                if shape.rank() > 0 {
                    self.load_tile(dtype, shape);
                }
            }
            1 => {
                let input = self.rng.pick(&self.inputs.clone());
                let dim = self.rng.below(self.rank(input));
                let v = self.b.dim(self.param(input), dim);
                self.push(v, false);
            }
            2 if !self.outputs.is_empty() => {
                // What this program may have written.
                let output = self.outputs[self.rng.below(self.outputs.len())].clone();
                let (view, coords) = self.own_part(&output);
                let v = self.b.load(view, &coords, output.shape, None);
                self.push(v, false);
            }
            _ => self.gather(),
        }
    }

    fn rank(&self, input: usize) -> usize {
        match self.b.ty(self.param(input)) {
            Type::View(_, rank) => rank as usize,
            _ => unreachable!("inputs are views"),
        }
    }

    fn gather(&mut self) {
        let input = self.rng.pick(&self.inputs.clone());
        let (view, rank) = (self.param(input), self.rank(input));
        let dtype = self.dtype(view);
        let shape = self.random_shape();
        let masked = self.rng.chance(60);
        let mut index = vec![];
        for dim in 0..rank {
            let mut i = self.value(DType::I32, shape).v;
            if !masked || self.rng.chance(70) {
                let positive = self.b.constant(DType::I32, shape, Bits(i32::MAX as u64));
                i = self.b.binary(BinaryOp::And, i, positive);
                let extent = self.b.dim(view, dim);
                let extent = self.b.broadcast(extent, shape);
                i = self.b.binary(BinaryOp::Rem, i, extent);
            }
            index.push(i);
        }
        let masked = masked.then(|| {
            let mask = self.value(DType::Bool, shape).v;
            (mask, self.value(dtype, shape).v)
        });
        let v = self.b.gather(view, &index, masked);
        self.push(v, false);
    }

    // -- outputs -------------------------------------------------------------------------------------------------------

    /// A new output for tiles of this type, and its parameter's number.
    fn output(&mut self, dtype: DType, shape: Shape, owned: Option<Owned>, rule: Rule) -> (Output, usize) {
        let programs = (self.grid[0] * self.grid[1]) as i64;
        let owned = match (owned, shape.rank()) {
            (Some(owned), _) => owned,
            (_, 0) => Owned::Row,
            (_, 4) => self.rng.pick(&[Owned::Block, Owned::NarrowedBlock]),
            _ => self.rng.pick(&[Owned::Row, Owned::Block, Owned::NarrowedBlock]),
        };
        // A little more or less than the tile, so that it hangs over or leaves some untouched.
        let mut extents: Vec<i64> =
            shape.dims().iter().map(|&d| (d as i64 + self.rng.pick(&[0, 0, 1, -1, 3])).max(1)).collect();
        match owned {
            Owned::Row => extents.insert(0, programs),
            _ => extents[0] = (programs * shape.dims()[0] as i64 - self.rng.pick(&[0, 0, 1])).max(1),
        }
        let mut strides = vec![1; extents.len()];
        let mut next = 1;
        for d in (0..extents.len()).rev() {
            strides[d] = next;
            next = next * extents[d] + self.rng.pick(&[0, 0, 0, 2]);
        }
        let poison = if dtype == DType::Bool { 1 } else { 0xa5 };
        let bytes = vec![poison; next as usize * dtype.size()];
        let param = self.arguments.len();
        let ty = Type::View(dtype, extents.len() as u8);
        let argument = Argument::View { dtype, bytes, offset: 0, shape: extents, strides, rule };
        let value = self.parameter("y", ty, Access::Write, argument);
        (Output { param: value, dtype, shape, owned }, param)
    }

    /// The view and the place where this program's tile goes.
    fn own_part(&mut self, output: &Output) -> (ValueId, Vec<ValueId>) {
        let mut coords = vec![];
        for _ in 0..output.shape.rank() {
            let c = if self.rng.chance(80) { 0 } else { self.rng.between(-2, 3) };
            coords.push(self.constant_i32(c));
        }
        let extent = output.shape.dims().first().copied().unwrap_or(1);
        match output.owned {
            Owned::Row => (self.b.view_select(output.param, 0, self.program), coords),
            Owned::Block | Owned::NarrowedBlock => {
                let extent = self.constant_i32(extent as i64);
                let start = self.b.binary(BinaryOp::Mul, self.program, extent);
                if matches!(output.owned, Owned::NarrowedBlock) {
                    return (self.b.view_narrow(output.param, 0, start, extent), coords);
                }
                coords[0] = start;
                (output.param, coords)
            }
        }
    }

    /// Stores an exact value.
    pub(super) fn store(&mut self) {
        let x = self.any(|_| true);
        let (dtype, shape) = (self.dtype(x.v), self.shape(x.v));
        let fit: Vec<Output> = self.outputs.iter().filter(|o| o.dtype == dtype && o.shape == shape).cloned().collect();
        let output = if fit.is_empty() || self.rng.chance(50) {
            let (output, _) = self.output(dtype, shape, None, Rule::Exact);
            self.outputs.push(output.clone());
            output
        } else {
            fit[self.rng.below(fit.len())].clone()
        };
        let (view, coords) = self.own_part(&output);
        self.b.store(view, x.v, &coords);
    }

    /// Stores a value under a tolerance, in an output of its own.
    pub(super) fn store_near(&mut self, v: ValueId, relative: f64, absolute: f64) {
        let (dtype, shape) = (self.dtype(v), self.shape(v));
        let (output, _) = self.output(dtype, shape, None, Rule::Near { relative, absolute });
        let (view, coords) = self.own_part(&output);
        self.b.store(view, v, &coords);
    }

    /// Stores a sum and the magnitudes of its terms (f32, of the same shape).
    pub(super) fn store_sum(&mut self, sum: ValueId, magnitude: ValueId, relative: f64) {
        let (dtype, shape) = (self.dtype(sum), self.shape(sum));
        let (output, index) = self.output(dtype, shape, None, Rule::Magnitude);
        let (view, coords) = self.own_part(&output);
        self.b.store(view, sum, &coords);
        // The same place of an output with the same extents.
        let Argument::View { shape: extents, strides, bytes, .. } = self.arguments[index].clone() else {
            unreachable!("outputs are views")
        };
        let bytes = vec![0; bytes.len() / dtype.size() * 4];
        let argument =
            Argument::View { dtype: DType::F32, bytes, offset: 0, shape: extents, strides, rule: Rule::Magnitude };
        let ty = self.b.ty(output.param);
        let Type::View(_, rank) = ty else { unreachable!("outputs are views") };
        let number = self.arguments.len();
        let param = self.parameter("m", Type::View(DType::F32, rank), Access::Write, argument);
        let view = match output.owned {
            Owned::Row => self.b.view_select(param, 0, self.program),
            Owned::Block => param,
            Owned::NarrowedBlock => {
                let extent = self.constant_i32(shape.dims()[0] as i64);
                let start = self.b.binary(BinaryOp::Mul, self.program, extent);
                self.b.view_narrow(param, 0, start, extent)
            }
        };
        self.b.store(view, magnitude, &coords);
        if let Argument::View { rule, .. } = &mut self.arguments[index] {
            *rule = Rule::Sum { magnitude: number, relative };
        }
    }

    pub(super) fn memory_write(&mut self) {
        match self.rng.below(3) {
            0 => self.scatter(),
            1 => self.atomic(),
            _ => self.assert(),
        }
    }

    /// To places that a permutation of the tile's indices names, so no two elements meet.
    fn scatter(&mut self) {
        let n = 1u32 << self.rng.below(7);
        let shape = Shape::new(&[n]);
        let i = self.b.iota(shape, 0);
        let index = match self.rng.below(3) {
            0 => {
                let flip = self.rng.below(n as usize) as u64;
                let flip = self.b.constant(DType::I32, shape, Bits(flip));
                self.b.binary(BinaryOp::Xor, i, flip)
            }
            1 => {
                let shift = self.rng.between(-3, 3);
                let shift = self.b.constant(DType::I32, shape, Bits::from_i64(DType::I32, shift));
                self.b.binary(BinaryOp::Add, i, shift)
            }
            _ => {
                let odd = self.rng.below(8) as u64 * 2 + 1;
                let odd = self.b.constant(DType::I32, shape, Bits(odd));
                let i = self.b.binary(BinaryOp::Mul, i, odd);
                let mask = self.b.constant(DType::I32, shape, Bits(n as u64 - 1));
                self.b.binary(BinaryOp::And, i, mask)
            }
        };
        let x = self.any(|_| true);
        let x = self.value(self.dtype(x.v), shape).v;
        let (output, _) = self.output(self.dtype(x), shape, Some(Owned::Row), Rule::Exact);
        let view = self.b.view_select(output.param, 0, self.program);
        let mask = if self.rng.chance(50) { Some(self.value(DType::Bool, shape).v) } else { None };
        self.b.scatter(view, x, &[index], mask);
        self.outputs.push(output);
    }

    /// On counters that all programs share. The values before depend on the order of programs and are not used.
    fn atomic(&mut self) {
        let (counters, op) = match self.counters {
            Some(known) => known,
            None => {
                let ops = [AtomicOp::Add, AtomicOp::Min, AtomicOp::Max, AtomicOp::And, AtomicOp::Or, AtomicOp::Xor];
                let op = self.rng.pick(&ops);
                let dtype = self.rng.pick(&[DType::I32, DType::U32, DType::I64, DType::U64]);
                let start: Vec<u8> =
                    (0..11).flat_map(|_| self.rng.element(dtype).0.to_le_bytes()[..dtype.size()].to_vec()).collect();
                let argument = Argument::View {
                    dtype,
                    bytes: start,
                    offset: 0,
                    shape: vec![11],
                    strides: vec![1],
                    rule: Rule::Exact,
                };
                let v = self.parameter("counters", Type::View(dtype, 1), Access::Write, argument);
                self.counters = Some((v, op));
                (v, op)
            }
        };
        if op == AtomicOp::Add && self.rng.chance(50) {
            let n = 1u32 << self.rng.below(6);
            let x = self.value(self.dtype(counters), Shape::new(&[n])).v;
            let start = self.coordinate(n);
            return self.b.store_add(counters, x, &[start]);
        }
        let shape = self.random_shape();
        let i = self.value(DType::I32, shape).v;
        let mask = self.b.constant(DType::I32, shape, Bits(15));
        let i = self.b.binary(BinaryOp::And, i, mask);
        let x = self.value(self.dtype(counters), shape).v;
        let mask = if self.rng.chance(50) { Some(self.value(DType::Bool, shape).v) } else { None };
        self.b.atomic(op, counters, x, &[i], mask);
    }

    /// Something that always holds.
    fn assert(&mut self) {
        let x = self.any(|d| d.is_int());
        let y = self.value(self.dtype(x.v), self.shape(x.v));
        let low = self.b.binary(BinaryOp::Min, x.v, y.v);
        let c = self.b.compare(CmpOp::Le, low, x.v);
        self.b.assert(c, "the lesser of two is at most the first");
    }
}
