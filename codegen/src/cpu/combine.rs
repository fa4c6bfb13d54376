//! Reductions and scans.
//!
//! A named reduction along the vector axis keeps up to four vectors of partial results and combines their lanes at the
//! end; along another axis, vectors of results accumulate side by side. Partial results of floats narrower than f32
//! stay f32 and are rounded once. Combinations given by a region are applied element by element, in order.

use super::emit::{Emitter, Point};
use super::plan::Place;
use crate::ir::{BinaryOp, Combine, DType, Op, OpKind, Shape, ValueId};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};

/// Partial results of a reduction along the vector axis.
const PARTIAL: usize = 4;

fn operation(combine: Combine) -> BinaryOp {
    match combine {
        Combine::Sum => BinaryOp::Add,
        Combine::Prod => BinaryOp::Mul,
        Combine::Max => BinaryOp::Max,
        Combine::Min => BinaryOp::Min,
        Combine::And => BinaryOp::And,
        Combine::Or => BinaryOp::Or,
        Combine::Xor => BinaryOp::Xor,
        Combine::Region => unreachable!("not a named combination"),
    }
}

/// What partial results are computed in.
fn wide(dtype: DType) -> DType {
    match dtype {
        d if d.is_float() => DType::F32,
        DType::I8 | DType::I16 => DType::I32,
        DType::U8 | DType::U16 => DType::U32,
        d => d,
    }
}

impl<'a> Emitter<'a, '_> {
    pub(super) fn emit_reduce(&mut self, op: &'a Op) {
        let OpKind::Reduce { axis, combine } = op.kind else { unreachable!("not a reduction") };
        let axis = axis as usize;
        if op.results.iter().all(|&r| self.plan.place(r) == Place::Dead) {
            return;
        }
        let shape = self.k.ty(op.operands[0]).shape();
        if combine == Combine::Region {
            self.fast = false;
            return self.nest(shape.with(axis, 1), None, Some(axis), &mut |s, p| {
                let results = s.fold_region(op, axis, shape.dim(axis), p);
                s.write_results(op, p.without(axis), &results);
            });
        }
        let x = op.operands[0];
        let vec = self.vector_axis(shape, &[x]);
        let conditions = self.whole_vectors(x, vec);
        let scalar = shape.rank() == 1;
        let results = self.versioned(&conditions, |s| {
            let mut out = vec![];
            // With the vector axis reduced, the points of the results are single.
            let outer = if vec == Some(axis) { None } else { vec };
            s.nest(shape, outer, Some(axis), &mut |s, p| {
                let y = s.reduce_line(x, combine, axis, shape.dim(axis), p, vec == Some(axis));
                if scalar {
                    out = vec![y];
                } else {
                    s.write_results(op, p.without(axis), &[y]);
                }
            });
            out
        });
        if scalar {
            self.scalars[op.results[0].index()] = Some(results[0]);
        }
    }

    /// Reduces the line along `axis` through `p`.
    fn reduce_line(
        &mut self,
        x: ValueId,
        combine: Combine,
        axis: usize,
        extent: usize,
        p: Point,
        along_vector: bool,
    ) -> Value {
        let dtype = self.k.ty(x).dtype();
        let acc = wide(dtype);
        let op = operation(combine);
        let (lanes, p) = if along_vector { (4, Point { vec: Some(axis), ..p }) } else { (1, p) };
        let width = p.width();
        let partial = (extent / lanes).min(PARTIAL);
        let at = |s: &mut Self, start: Value, i: usize| {
            let i = if i == 0 { start } else { s.b.ins().iadd_imm(start, (i * lanes) as i64) };
            s.element(x, p.with(axis, i))
        };
        let zero = self.iconst(0);
        let first: Vec<Value> = (0..partial).map(|i| at(self, zero, i)).collect();
        let step = partial * lanes;
        let mut sums = self.fold((step, extent, step), first, |s, i, sums| {
            let next: Vec<Value> = (0..partial).map(|j| at(s, i, j)).collect();
            sums.into_iter().zip(next).map(|(x, y)| s.binary(op, acc, x, y, width)).collect()
        });
        while sums.len() > 1 {
            let high = sums.split_off(sums.len() / 2);
            sums = sums.into_iter().zip(high).map(|(x, y)| self.binary(op, acc, x, y, width)).collect();
        }
        let mut y = sums[0];
        if along_vector {
            let [a, b, c, d] = [0, 1, 2, 3].map(|l| self.lane(dtype, y, l));
            let low = self.binary(op, acc, a, c, 1);
            let high = self.binary(op, acc, b, d, 1);
            y = self.binary(op, acc, low, high, 1);
        }
        if dtype == DType::Bool { y } else { self.finish(dtype, y, if along_vector { 1 } else { width }) }
    }

    fn write_results(&mut self, op: &Op, p: Point, values: &[Value]) {
        for (&r, &y) in op.results.iter().zip(values) {
            match self.plan.place(r) {
                Place::Tile(l) => self.write_tile(l, self.k.ty(r).dtype(), p, y),
                Place::Ssa => self.scalars[r.index()] = Some(y),
                _ => {}
            }
        }
    }

    /// Elements of the operands at index `i` of the line through `p`.
    fn line(&mut self, op: &Op, axis: usize, p: Point, i: Value) -> Vec<Value> {
        op.operands.iter().map(|&x| self.element(x, p.with(axis, i))).collect()
    }

    fn fold_region(&mut self, op: &'a Op, axis: usize, extent: usize, p: Point) -> Vec<Value> {
        let zero = self.iconst(0);
        let first = self.line(op, axis, p, zero);
        self.fold((1, extent, 1), first, |s, i, left| {
            let right = s.line(op, axis, p, i);
            s.apply_region(op, &left, &right)
        })
    }

    /// The combination that an operation's region computes, on scalars.
    fn apply_region(&mut self, op: &'a Op, left: &[Value], right: &[Value]) -> Vec<Value> {
        let k = self.k;
        let region = k.region(op.regions[0]);
        for (&arg, &x) in region.args.iter().zip(left.iter().chain(right)) {
            self.scalars[arg.index()] = Some(x);
        }
        let (&last, ops) = region.ops.split_last().expect("a region ends with Yield");
        for &id in ops {
            let inner = k.op(id);
            let y = self.scalar_result(inner);
            self.scalars[inner.results[0].index()] = Some(y);
        }
        k.op(last).operands.iter().map(|&v| self.scalar(v)).collect()
    }

    pub(super) fn emit_scan(&mut self, op: &'a Op) {
        let OpKind::Scan { axis, combine, reverse } = op.kind else { unreachable!("not a scan") };
        let axis = axis as usize;
        if op.results.iter().all(|&r| self.plan.place(r) == Place::Dead) {
            return;
        }
        let shape = self.k.ty(op.operands[0]).shape();
        let extent = shape.dim(axis);
        // Along the scanned axis every element depends on the one before; vectors go along another.
        let inner = (axis + 1..shape.rank()).any(|a| shape.dim(a) >= 4);
        let vec = if combine == Combine::Region || !inner { None } else { self.vector_axis(shape, &op.operands) };
        let conditions = self.whole_vectors(op.operands[0], vec);
        self.versioned(&conditions, |s| {
            s.nest(shape, vec, Some(axis), &mut |s, p| s.scan_line(op, combine, (axis, extent, reverse), p));
            vec![]
        });
    }

    fn scan_line(&mut self, op: &'a Op, combine: Combine, (axis, extent, reverse): (usize, usize, bool), p: Point) {
        let dtype = self.k.ty(op.operands[0]).dtype();
        let place = |s: &mut Self, i: Value| {
            if reverse { s.b.ins().irsub_imm(i, extent as i64 - 1) } else { i }
        };
        let zero = self.iconst(0);
        let start = place(self, zero);
        let first = self.line(op, axis, p, start);
        self.write_results(op, p.with(axis, start), &first);
        self.fold((1, extent, 1), first, |s, i, left| {
            let i = place(s, i);
            let right = s.line(op, axis, p, i);
            let next = if combine == Combine::Region {
                s.apply_region(op, &left, &right)
            } else {
                vec![s.binary(operation(combine), dtype, left[0], right[0], p.width())]
            };
            s.write_results(op, p.with(axis, i), &next);
            next
        });
    }

    /// Whether a bool tile is true everywhere.
    pub(super) fn all(&mut self, v: ValueId) -> Value {
        let shape: Shape = self.k.ty(v).shape();
        let vec = self.vector_axis(shape, &[v]);
        let conditions = self.whole_vectors(v, vec);
        let results = self.versioned(&conditions, |s| {
            let one = s.b.ins().iconst(types::I8, 1);
            vec![s.all_from(v, 0, shape, Point { vec, ..Point::ORIGIN }, one)]
        });
        results[0]
    }

    fn all_from(&mut self, v: ValueId, axis: usize, shape: Shape, p: Point, so_far: Value) -> Value {
        if axis == shape.rank() {
            let x = self.element(v, p);
            let x = self.all_lanes(x, p.width());
            return self.b.ins().band(so_far, x);
        }
        let step = if p.vec == Some(axis) { 4 } else { 1 };
        let result = self.fold((0, shape.dim(axis), step), vec![so_far], |s, i, c| {
            vec![s.all_from(v, axis + 1, shape, p.with(axis, i), c[0])]
        });
        result[0]
    }

    /// Whether a mask of four bools is true in all lanes, as a scalar bool.
    fn all_lanes(&mut self, mask: Value, width: usize) -> Value {
        if width == 1 {
            return mask;
        }
        let all = self.b.ins().vall_true(mask);
        self.b.ins().icmp_imm(IntCC::NotEqual, all, 0)
    }
}
