//! Matrix products.
//!
//! A block of up to 4 × 8 results stays in registers while the common dimension runs: each step takes one or two vectors
//! of a row of b and one element of each row of a, spread over a vector. Operands lie in scratch memory as f32 (or i32),
//! so narrow floats have been converted once per tile and not once per use; products of 16-bit floats are exact in f32.
//! Columns run in the outer loop: the strip of b that the inner loops use stays in the first-level cache. Around that
//! runs the loop over the products, where the tiles have rank 3.

use super::emit::{Emitter, Point, clif_type, flags};
use super::plan::{Layout, Place};
use crate::ir::{DType, OpId, ValueId};
use cranelift_codegen::ir::{InstBuilder, Value, types};

/// The tile shape and where the operands lie.
struct Product {
    a: Layout,
    b: Layout,
    /// The axis of the rows; the columns' follows.
    row: usize,
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
        let [products, rows, depth, columns] = self.k.dot_extents(op);
        let row = self.k.ty(acc).shape().rank() - 2;
        let dtype = self.k.ty(acc).dtype();
        // What is added to may be computed here, too, from elements that do not fit in a lane.
        let width = if columns >= 4 && !self.has_long(acc) { 4 } else { 1 };
        // 8 to 16 registers are there for results, less those of the operands.
        let vectors = (columns / width).min(if rows >= 4 { 2 } else { 8 / rows });
        let block =
            Product { a: la, b: lb, row, depth, rows: rows.min(8 / vectors), vectors, width, float: dtype.is_float() };
        let vec = (width == 4).then_some(row + 1);
        let conditions = self.whole_vectors(acc, vec);
        self.versioned(&conditions, |s| {
            s.repeat((0, products, 1), |s, at| {
                let mut start = Point { vec, ..Point::ORIGIN };
                if products > 1 {
                    start = start.with(0, at);
                }
                s.repeat((0, columns, block.vectors * width), |s, j| {
                    s.repeat((0, rows, block.rows), |s, i| {
                        let points = s.block_points(&block, start, i, j);
                        let sums = points.iter().map(|&p| s.element(acc, p)).collect();
                        let sums = s.block_product(&block, points[0], sums);
                        for (p, sum) in points.into_iter().zip(sums) {
                            s.write_tile(to, dtype, p, sum);
                        }
                    });
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

    /// The points of a block of results from row i and column j, of the product that `start` is in.
    fn block_points(&mut self, block: &Product, start: Point, i: Value, j: Value) -> Vec<Point> {
        let mut points = vec![];
        for r in 0..block.rows {
            let row = self.b.ins().iadd_imm(i, r as i64);
            for c in 0..block.vectors {
                let column = self.b.ins().iadd_imm(j, (c * block.width) as i64);
                points.push(start.with(block.row, row).with(block.row + 1, column));
            }
        }
        points
    }

    /// Adds the product of `block.rows` rows of a and `block.vectors` vectors of columns of b, from the row and the
    /// column of `start` and in its product.
    fn block_product(&mut self, block: &Product, start: Point, sums: Vec<Value>) -> Vec<Value> {
        let Product { a, b, row, depth, rows, vectors, width, float } = *block;
        let column = row + 1;
        let element = if float { types::F32 } else { types::I32 };
        let vector = clif_type(if float { DType::F32 } else { DType::I32 }, width);
        // Where the start of an operand's rows or columns is.
        let base = |s: &mut Self, l: Layout, axis: usize| {
            let mut at = s.scratch;
            for axis in (0..row).chain([axis]) {
                if let Some(index) = start.at[axis] {
                    let bytes = s.b.ins().imul_imm(index, l.strides[axis] as i64 * 4);
                    at = s.b.ins().iadd(at, bytes);
                }
            }
            let first = s.plan.array_offset(l.array) + l.offset * 4;
            s.b.ins().iadd_imm(at, first as i64)
        };
        let a_row = base(self, a, row);
        let b_column = base(self, b, column);
        let unroll = depth.min(4);
        self.fold((0, depth, unroll), sums, |s, k, mut sums| {
            let at = |s: &mut Self, base: Value, stride: usize| {
                let bytes = s.b.ins().imul_imm(k, stride as i64 * 4);
                s.b.ins().iadd(base, bytes)
            };
            let (a_at, b_at) = (at(s, a_row, a.strides[column]), at(s, b_column, b.strides[row]));
            for step in 0..unroll {
                let columns: Vec<Value> = (0..vectors)
                    .map(|c| {
                        let offset = step * b.strides[row] + c * width * b.strides[column];
                        s.b.ins().load(vector, flags(), b_at, offset as i32 * 4)
                    })
                    .collect();
                for r in 0..rows {
                    let offset = step * a.strides[column] + r * a.strides[row];
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
