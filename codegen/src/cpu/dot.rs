//! Matrix products.
//!
//! A block of up to 4 × 8 results stays in registers while the common dimension runs: each step takes one or two vectors
//! of a row of b and one element of each row of a, spread over a vector. Operands lie in scratch memory as f32 (or i32),
//! so narrow floats have been converted once per tile and not once per use; products of 16-bit floats are exact in f32.
//! Columns run in the outer loop: the strip of b that the inner loops use stays in the first-level cache.

use super::emit::{Emitter, Point, clif_type, flags};
use super::plan::{Layout, Place};
use crate::ir::{DType, OpId, ValueId};
use cranelift_codegen::ir::{InstBuilder, Value, types};

/// The tile shape and where the operands lie.
struct Product {
    a: Layout,
    b: Layout,
    depth: usize,
    /// Rows, vectors and elements per vector of a register block.
    rows: usize,
    vectors: usize,
    width: usize,
    float: bool,
}

impl<'a> Emitter<'a, '_> {
    pub(super) fn emit_dot(&mut self, id: OpId, to: Layout) {
        let op = self.k.op(id);
        let (a, b, acc) = (op.operands[0], op.operands[1], op.operands[2]);
        let [la, lb] = [(a, 0), (b, 1)].map(|(v, i)| self.dot_operand(id, v, i));
        let (rows, depth) = (self.k.ty(a).shape().dim(0), self.k.ty(a).shape().dim(1));
        let columns = self.k.ty(b).shape().dim(1);
        let dtype = self.k.ty(acc).dtype();
        // What is added to may be computed here, too, from elements that do not fit in a lane.
        let width = if columns >= 4 && !self.has_long(acc) { 4 } else { 1 };
        // 8 to 16 registers are there for results, less those of the operands.
        let vectors = (columns / width).min(if rows >= 4 { 2 } else { 8 / rows });
        let block =
            Product { a: la, b: lb, depth, rows: rows.min(8 / vectors), vectors, width, float: dtype.is_float() };
        let vec = (width == 4).then_some(1);
        let conditions = self.whole_vectors(acc, vec);
        self.versioned(&conditions, |s| {
            s.repeat((0, columns, block.vectors * width), |s, j| {
                s.repeat((0, rows, block.rows), |s, i| {
                    let points = s.block_points(&block, i, j, vec);
                    let sums = points.iter().map(|&p| s.element(acc, p)).collect();
                    let sums = s.block_product(&block, i, j, sums);
                    for (p, sum) in points.into_iter().zip(sums) {
                        s.write_tile(to, dtype, p, sum);
                    }
                });
            });
            vec![]
        });
    }

    /// Where an operand lies, after copying it if it does not lie as needed.
    fn dot_operand(&mut self, id: OpId, v: ValueId, operand: usize) -> Layout {
        if let Some(l) = self.plan.copy(id, operand, self.k.ty(v).shape()) {
            self.copy_to(v, l);
            return l;
        }
        match self.plan.place(v) {
            Place::Tile(l) => l,
            place => unreachable!("an operand of dot is in memory or copied there, not {place:?}"),
        }
    }

    fn block_points(&mut self, block: &Product, i: Value, j: Value, vec: Option<usize>) -> Vec<Point> {
        let mut points = vec![];
        for r in 0..block.rows {
            let row = self.b.ins().iadd_imm(i, r as i64);
            for c in 0..block.vectors {
                let column = self.b.ins().iadd_imm(j, (c * block.width) as i64);
                points.push(Point { vec, ..Point::ORIGIN }.with(0, row).with(1, column));
            }
        }
        points
    }

    /// Adds the product of `block.rows` rows of a from row i and `block.vectors` vectors of columns of b from column j.
    fn block_product(&mut self, block: &Product, i: Value, j: Value, sums: Vec<Value>) -> Vec<Value> {
        let Product { a, b, depth, rows, vectors, width, float } = *block;
        let element = if float { types::F32 } else { types::I32 };
        let vector = clif_type(if float { DType::F32 } else { DType::I32 }, width);
        let base = |s: &mut Self, l: Layout, index: Value, stride: usize| {
            let bytes = s.b.ins().imul_imm(index, stride as i64 * 4);
            let at = s.b.ins().iadd(s.scratch, bytes);
            let start = s.plan.array_offset(l.array) + l.offset * 4;
            s.b.ins().iadd_imm(at, start as i64)
        };
        let a_row = base(self, a, i, a.strides[0]);
        let b_column = base(self, b, j, b.strides[1]);
        let unroll = depth.min(4);
        self.fold((0, depth, unroll), sums, |s, k, mut sums| {
            let at = |s: &mut Self, base: Value, stride: usize| {
                let bytes = s.b.ins().imul_imm(k, stride as i64 * 4);
                s.b.ins().iadd(base, bytes)
            };
            let (a_at, b_at) = (at(s, a_row, a.strides[1]), at(s, b_column, b.strides[0]));
            for step in 0..unroll {
                let columns: Vec<Value> = (0..vectors)
                    .map(|c| {
                        let offset = step * b.strides[0] + c * width * b.strides[1];
                        s.b.ins().load(vector, flags(), b_at, offset as i32 * 4)
                    })
                    .collect();
                for r in 0..rows {
                    let offset = step * a.strides[1] + r * a.strides[0];
                    let x = s.b.ins().load(element, flags(), a_at, offset as i32 * 4);
                    let x = if width == 4 { s.b.ins().splat(vector, x) } else { x };
                    for (c, &y) in columns.iter().enumerate() {
                        let sum = &mut sums[r * vectors + c];
                        *sum = if float {
                            s.mad(x, y, *sum)
                        } else {
                            let product = s.b.ins().imul(x, y);
                            s.b.ins().iadd(*sum, product)
                        };
                    }
                }
            }
            sums
        })
    }
}
