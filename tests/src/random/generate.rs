//! The generator: a pool of exact values, and statements that add to it.
//!
//! Every value of the pool is the same, to the bit, on every back end, but for two liberties: which NaN a NaN is, and
//! the sign of a zero from `min` and `max`. So floats are bit-cast only after `max(x, 1)`, and not divided by. *Small*
//! values are integers of magnitude at most [`SMALL`], in any dtype: their sums and products are exact in any order.

use super::rng::{Rng, SMALL};
use super::{Argument, Case};
use kiln_codegen::ir::{
    BinaryOp, Bits, Builder, CmpOp, Combine, DType, Kernel, Loc, Precision, Reuse, Shape, Type, UnaryOp, ValueId,
};

/// How large a case may become.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Statements, loops' bodies included.
    pub statements: usize,
    /// Elements of a tile; at least 16.
    pub elements: usize,
    /// How deep loops and branches nest.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { statements: 24, elements: 512, depth: 3 }
    }
}

/// A value of the pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) v: ValueId,
    pub(super) small: bool,
}

pub(super) struct Generator {
    pub(super) b: Builder,
    pub(super) rng: Rng,
    pub(super) limits: Limits,
    pub(super) pool: Vec<Entry>,
    pub(super) arguments: Vec<Argument>,
    pub(super) grid: [u32; 3],
    /// This program's number, scalar i32.
    pub(super) program: ValueId,
    pub(super) depth: usize,
    pub(super) budget: usize,
    pub(super) inputs: Vec<usize>,
    pub(super) outputs: Vec<super::memory::Output>,
    /// The counters that all programs change atomically, made when first used: parameter and operation.
    pub(super) counters: Option<(ValueId, kiln_codegen::ir::AtomicOp)>,
}

/// The case of a seed.
pub fn generate(seed: u64, limits: Limits) -> Case {
    let mut rng = Rng::new(seed);
    let mut b = Builder::new("random", Loc::default());
    let grid = [rng.between(1, 3) as u32, rng.between(1, 2) as u32, 1];
    let (x, y) = (b.program_id(0), b.program_id(1));
    let width = b.num_programs(0);
    let row = b.binary(BinaryOp::Mul, y, width);
    let program = b.binary(BinaryOp::Add, row, x);
    let budget = 1 + rng.below(limits.statements);
    let mut g = Generator {
        b,
        rng,
        limits,
        pool: vec![],
        arguments: vec![],
        grid,
        program,
        depth: 0,
        budget,
        inputs: vec![],
        outputs: vec![],
        counters: None,
    };
    g.push(program, false);
    for _ in 0..g.rng.between(1, 3) {
        g.scalar_parameter();
    }
    for _ in 0..g.rng.between(1, 3) {
        g.input();
    }
    while g.budget > 0 {
        g.statement();
    }
    // What was computed last is otherwise often stored nowhere.
    for _ in 0..2 {
        g.store();
    }
    g.finish(seed)
}

impl Generator {
    fn finish(mut self, seed: u64) -> Case {
        let with_facts = self.rng.chance(50);
        let mut kernel = self.b.finish();
        for p in 0..kernel.params.len() {
            if !kernel.ty(kernel.params[p].value).is_scalar() && self.rng.chance(25) {
                kernel.params[p].reuse = Reuse::EvictFirst;
            }
            kernel.params[p].settled = !kernel.ty(kernel.params[p].value).is_scalar() && self.rng.chance(25);
        }
        let mut case = Case { seed, kernel, grid: self.grid, arguments: self.arguments };
        if with_facts {
            let slots = case.slots(&vec![0; case.arguments.len()]);
            case.kernel.facts = Kernel::facts_of(&case.kernel.slots(), &slots);
        }
        case
    }

    // -- the pool ------------------------------------------------------------------------------------------------------

    pub(super) fn push(&mut self, v: ValueId, small: bool) {
        self.pool.push(Entry { v, small });
    }

    pub(super) fn dtype(&self, v: ValueId) -> DType {
        self.b.ty(v).dtype()
    }

    pub(super) fn shape(&self, v: ValueId) -> Shape {
        self.b.ty(v).shape()
    }

    /// Any value that satisfies `f`, newer ones more often.
    pub(super) fn find(&mut self, f: impl Fn(&Generator, &Entry) -> bool) -> Option<Entry> {
        let fit: Vec<Entry> = self.pool.iter().filter(|e| f(self, e)).copied().collect();
        if fit.is_empty() {
            return None;
        }
        let i = self.rng.below(fit.len()).max(self.rng.below(fit.len()));
        Some(fit[i])
    }

    /// Some value whose dtype satisfies `f`, made if there is none.
    pub(super) fn any(&mut self, f: impl Fn(DType) -> bool) -> Entry {
        if self.rng.chance(80)
            && let Some(e) = self.find(|g, e| f(g.dtype(e.v)))
        {
            return e;
        }
        let fitting: Vec<DType> = DType::ALL.into_iter().filter(|&d| f(d)).collect();
        let (dtype, shape) = (self.rng.pick(&fitting), self.random_shape());
        self.value(dtype, shape)
    }

    pub(super) fn random_shape(&mut self) -> Shape {
        let rank = self.rng.pick(&[0, 1, 1, 1, 2, 2, 2, 3, 4]);
        let mut left = self.limits.elements;
        let mut extents = vec![];
        for _ in 0..rank {
            let extent = 1usize << self.rng.below(6);
            let extent = extent.min(left).min(1 << left.ilog2());
            extents.push(extent as u32);
            left /= extent;
        }
        Shape::new(&extents)
    }

    /// A value of this type, from the pool if there is one.
    pub(super) fn value(&mut self, dtype: DType, shape: Shape) -> Entry {
        let ty = Type::Tile(dtype, shape);
        if self.rng.chance(75)
            && let Some(e) = self.find(|g, e| g.b.ty(e.v) == ty)
        {
            return e;
        }
        self.make(dtype, shape)
    }

    fn make(&mut self, dtype: DType, shape: Shape) -> Entry {
        match self.rng.below(5) {
            0 if shape.rank() > 0 => return self.load_tile(dtype, shape),
            1 => {
                if let Some(e) = self.find(|g, e| g.shape(e.v) == shape && g.dtype(e.v) != dtype) {
                    // A small negative number is not small in an unsigned dtype.
                    let small = e.small && (dtype.is_signed() || !self.dtype(e.v).is_signed()) && dtype != DType::Bool;
                    let v = self.b.cast(e.v, dtype);
                    self.push(v, small);
                    return self.pool[self.pool.len() - 1];
                }
            }
            2 if shape.rank() > 0 => {
                if let Some(e) = self.find(|g, e| g.b.ty(e.v) == Type::scalar(dtype)) {
                    let v = self.b.broadcast(e.v, shape);
                    self.pool.push(Entry { v, ..e });
                    return self.pool[self.pool.len() - 1];
                }
            }
            3 if shape.rank() > 0 => {
                let axis = self.rng.below(shape.rank());
                let i = self.b.iota(shape, axis);
                let v = self.b.cast(i, dtype);
                self.push(v, dtype != DType::Bool && shape.dim(axis) <= SMALL as usize + 1);
                return self.pool[self.pool.len() - 1];
            }
            _ => {}
        }
        let small = dtype != DType::Bool && self.rng.chance(30);
        let bits = if small { self.rng.small(dtype) } else { self.rng.element(dtype) };
        let v = self.b.constant(dtype, shape, bits);
        self.push(v, small);
        self.pool[self.pool.len() - 1]
    }

    /// A small value of this type.
    pub(super) fn small(&mut self, dtype: DType, shape: Shape) -> ValueId {
        let ty = Type::Tile(dtype, shape);
        if let Some(e) = self.find(|g, e| e.small && g.b.ty(e.v) == ty) {
            return e.v;
        }
        // The low bits of any integer, less 3 where that is possible.
        let x = self.value(DType::I32, shape).v;
        let mask = self.b.constant(DType::I32, shape, Bits(SMALL as u64));
        let mut low = self.b.binary(BinaryOp::And, x, mask);
        if dtype.is_signed() {
            let three = self.b.constant(DType::I32, shape, Bits(3));
            low = self.b.binary(BinaryOp::Sub, low, three);
        }
        let v = self.b.cast(low, dtype);
        self.push(v, true);
        v
    }

    pub(super) fn constant_i32(&mut self, value: i64) -> ValueId {
        self.b.i32(value as i32)
    }

    // -- statements ----------------------------------------------------------------------------------------------------

    pub(super) fn statement(&mut self) {
        self.budget = self.budget.saturating_sub(1);
        match self.rng.below(20) {
            0 | 1 => self.unary(),
            2..=4 => self.binary(),
            5 if self.rng.chance(30) => self.fma(),
            5 => self.compare_and_select(),
            6 | 7 => self.cast(),
            8 | 9 => self.movement(),
            10 => self.along_axis(),
            11 => self.combine_region(),
            12 => self.dot(),
            13 => self.memory_read(),
            14 => self.store(),
            15 => self.memory_write(),
            16 | 17 => self.inexact(),
            _ if self.depth < self.limits.depth => self.control(),
            _ => self.binary(),
        }
    }

    fn unary(&mut self) {
        let exact =
            [UnaryOp::Neg, UnaryOp::Abs, UnaryOp::Not, UnaryOp::Floor, UnaryOp::Ceil, UnaryOp::Round, UnaryOp::Trunc];
        let op = self.rng.pick(&exact);
        let x = self.any(|d| op.accepts(d));
        // The least integer has no negative, so Neg and Abs keep small what is signed; Not of 0 is -1.
        let small = x.small && op != UnaryOp::Not;
        let v = self.b.unary(op, x.v);
        self.push(v, small);
    }

    fn binary(&mut self) {
        let op = self.rng.pick(BinaryOp::ALL);
        let x = self.any(|d| op.accepts(d) && !(d.is_float() && matches!(op, BinaryOp::Div | BinaryOp::Rem)));
        let (dtype, shape) = (self.dtype(x.v), self.shape(x.v));
        let mut y = self.value(dtype, shape);
        if matches!(op, BinaryOp::Div | BinaryOp::Rem) {
            // Not zero.
            let one = self.b.constant(dtype, shape, Bits(1));
            y = Entry { v: self.b.binary(BinaryOp::Or, y.v, one), small: false };
        }
        let (a, b) = if self.rng.chance(50) || op == BinaryOp::Div || op == BinaryOp::Rem { (x, y) } else { (y, x) };
        let v = self.b.binary(op, a.v, b.v);
        self.push(v, a.small && b.small && matches!(op, BinaryOp::Min | BinaryOp::Max));
    }

    fn fma(&mut self) {
        let x = self.any(|d| d.is_float() && !d.is_fp8());
        let (dtype, shape) = (self.dtype(x.v), self.shape(x.v));
        let (a, b) = (self.value(dtype, shape), self.value(dtype, shape));
        let v = self.b.fma(x.v, a.v, b.v);
        self.push(v, false);
    }

    fn compare_and_select(&mut self) {
        let op = self.rng.pick(CmpOp::ALL);
        let x = self.any(|d| op.accepts(d));
        let (dtype, shape) = (self.dtype(x.v), self.shape(x.v));
        let y = self.value(dtype, shape);
        let c = self.b.compare(op, x.v, y.v);
        self.push(c, false);
        let (a, b) = (self.any(|_| true), shape);
        let a = if self.shape(a.v) == b { a } else { x };
        let other = self.value(self.dtype(a.v), shape);
        let v = self.b.select(c, a.v, other.v);
        self.push(v, a.small && other.small);
    }

    fn cast(&mut self) {
        if self.rng.chance(30) {
            return self.bitcast();
        }
        let x = self.any(|_| true);
        let (from, to) = (self.dtype(x.v), self.rng.pick(&DType::ALL));
        let v = self.b.cast(x.v, to);
        self.push(v, x.small && to != DType::Bool && (to.is_signed() || !from.is_signed()));
    }

    fn bitcast(&mut self) {
        let x = self.any(|d| d != DType::Bool && !d.is_fp8()).v;
        let (from, shape) = (self.dtype(x), self.shape(x));
        // At least 1: neither NaN nor zero.
        let x = if from.is_float() {
            let one = self.b.splat(from, shape, 1.0);
            self.b.binary(BinaryOp::Max, x, one)
        } else {
            x
        };
        let fitting: Vec<DType> =
            DType::ALL.into_iter().filter(|d| d.size() == from.size() && *d != DType::Bool).collect();
        let to = self.rng.pick(&fitting);
        let v = self.b.bitcast(x, to);
        self.push(v, false);
    }

    pub(super) fn movement(&mut self) {
        let x = self.any(|_| true);
        let s = self.shape(x.v);
        let v = self.moved(x.v, s);
        self.pool.push(Entry { v, ..x });
    }

    /// The value moved to another shape, at random.
    pub(super) fn moved(&mut self, x: ValueId, s: Shape) -> ValueId {
        match self.rng.below(5) {
            0 => {
                if s.rank() == 0 {
                    let shape = self.random_shape();
                    return self.b.broadcast(x, shape);
                }
                let mut t = s;
                for axis in 0..s.rank() {
                    if s.dims()[axis] == 1 {
                        let extent = 1 << self.rng.below(4);
                        if t.numel() * extent <= self.limits.elements {
                            t = t.with(axis, extent as u32);
                        }
                    }
                }
                self.b.broadcast(x, t)
            }
            1 => {
                // The factors of two, dealt out anew.
                let rank = self.rng.between(if s.numel() == 1 { 0 } else { 1 }, 4) as usize;
                let mut extents = vec![1u32; rank];
                for _ in 0..s.numel().ilog2() {
                    extents[self.rng.below(rank)] *= 2;
                }
                self.b.reshape(x, Shape::new(&extents))
            }
            2 => {
                let mut perm: Vec<usize> = (0..s.rank()).collect();
                for i in (1..perm.len()).rev() {
                    perm.swap(i, self.rng.below(i + 1));
                }
                self.b.transpose(x, &perm)
            }
            3 => {
                let (mut t, mut offsets) = (s, vec![]);
                for axis in 0..s.rank() {
                    let extent = s.dims()[axis] >> self.rng.below(s.dims()[axis].ilog2() as usize + 1);
                    t = t.with(axis, extent);
                    offsets.push(self.rng.below((s.dims()[axis] / extent) as usize) as u32 * extent);
                }
                self.b.slice(x, &offsets, t)
            }
            _ if s.rank() > 0 && s.numel() * 2 <= self.limits.elements => {
                let y = if self.rng.chance(50) { x } else { self.value(self.dtype(x), s).v };
                // The other may be of any bits and size, and with it the result: the caller keeps its own claims
                // only for itself.
                let y = if self.dtype(y).is_float() { x } else { y };
                let y = if self.pool.iter().any(|e| e.v == x && e.small) { x } else { y };
                let axis = self.rng.below(s.rank());
                self.b.join(x, y, axis)
            }
            _ => x,
        }
    }

    fn along_axis(&mut self) {
        let op = self.rng.pick(Combine::ALL);
        let sums = matches!(op, Combine::Sum | Combine::Prod);
        if op == Combine::Region {
            return self.combine_region();
        }
        let x = self.any(|d| op.accepts(d) && !(sums && d.is_float()));
        let (mut x, mut s) = (x, self.shape(x.v));
        if s.rank() == 0 {
            s = Shape::new(&[1 << self.rng.below(6)]);
            let v = self.b.broadcast(x.v, s);
            x = Entry { v, ..x };
        }
        let mut v = x.v;
        if op == Combine::Sum && self.rng.chance(40) {
            // A float sum that is exact in any order: 512 · 7 is exact in f32; 16-bit floats count to 256.
            let d = if s.numel() * SMALL as usize <= 256 {
                self.rng.pick(&[DType::F32, DType::F16, DType::BF16])
            } else {
                DType::F32
            };
            v = self.small(d, s);
        }
        let axis = self.rng.below(s.rank());
        let keeps = matches!(op, Combine::Max | Combine::Min) && x.small && v == x.v;
        if self.rng.chance(50) {
            let r = self.b.reduce(v, axis, op);
            self.push(r, keeps);
        } else {
            let reverse = self.rng.chance(50);
            let r = self.b.scan(v, axis, op, reverse);
            self.push(r, keeps);
        }
    }

    /// A reduction or scan by a region: the largest with its index, or the composition of affine maps.
    fn combine_region(&mut self) {
        let s = self.random_shape();
        let s = if s.rank() == 0 { Shape::new(&[8]) } else { s };
        let axis = self.rng.below(s.rank());
        let affine = self.rng.chance(50);
        let (x, y) = if affine {
            let d = self.rng.pick(&[DType::I32, DType::U8, DType::I64, DType::U16]);
            (self.value(d, s).v, self.value(d, s).v)
        } else {
            let d = self.rng.pick(&[DType::F32, DType::I32, DType::BF16, DType::U8, DType::I64]);
            let index = self.b.iota(s, axis);
            let mut x = self.value(d, s).v;
            if d.is_float() {
                // NaN has no place in an order, and a combination must be associative.
                let zero = self.b.constant(d, s, Bits(0));
                x = self.b.binary(BinaryOp::Max, x, zero);
                x = self.b.unary(UnaryOp::Abs, x);
            }
            (x, index)
        };
        let step = move |b: &mut Builder, l: &[ValueId], r: &[ValueId]| {
            if affine {
                // x -> l0·x + l1, then r: r0·(l0·x + l1) + r1.
                let a = b.binary(BinaryOp::Mul, l[0], r[0]);
                let c = b.binary(BinaryOp::Mul, l[1], r[0]);
                let c = b.binary(BinaryOp::Add, c, r[1]);
                return vec![a, c];
            }
            let greater = b.compare(CmpOp::Gt, r[0], l[0]);
            let equal = b.compare(CmpOp::Eq, r[0], l[0]);
            let earlier = b.compare(CmpOp::Lt, r[1], l[1]);
            let tie = b.binary(BinaryOp::And, equal, earlier);
            let right = b.binary(BinaryOp::Or, greater, tie);
            vec![b.select(right, r[0], l[0]), b.select(right, r[1], l[1])]
        };
        let results = if self.rng.chance(50) {
            self.b.reduce_by(&[x, y], axis, step)
        } else {
            let reverse = self.rng.chance(50);
            self.b.scan_by(&[x, y], axis, reverse, step)
        };
        results.into_iter().for_each(|r| self.push(r, false));
    }

    /// Shapes of a product of matrices, or of several: both operands, what they are added to.
    pub(super) fn dot_shapes(&mut self) -> [Shape; 3] {
        let bits = self.limits.elements.ilog2() as usize;
        let products = self.rng.chance(30).then(|| self.rng.below(bits.min(3)));
        let limit = (bits - products.unwrap_or(0)) / 2;
        let [m, k, n] = std::array::from_fn(|_| 1u32 << self.rng.below(limit.min(5) + 1));
        [[m, k], [k, n], [m, n]].map(|[rows, columns]| match products {
            Some(p) => Shape::new(&[1 << p, rows, columns]),
            None => Shape::new(&[rows, columns]),
        })
    }

    fn dot(&mut self) {
        let [sa, sb, sc] = self.dot_shapes();
        let d =
            self.rng.pick(&[DType::I8, DType::U8, DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2]);
        let precision = self.rng.pick(Precision::ALL);
        let (a, b, c) = if d.is_float() {
            (self.small(d, sa), self.small(d, sb), self.small(DType::F32, sc))
        } else {
            (self.value(d, sa).v, self.value(d, sb).v, self.value(DType::I32, sc).v)
        };
        let v = self.b.dot(a, b, c, precision);
        self.push(v, false);
    }
}
