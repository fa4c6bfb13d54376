//! Shape operations, reductions, scans and products.

use super::*;
use crate::ir::{BinaryOp, Combine, Precision};

const SHAPES: [&[u32]; 9] = [&[1], &[2], &[64], &[1, 1], &[4, 8], &[64, 2], &[16, 1], &[2, 8, 4], &[2, 4, 1, 16]];

#[test]
fn iota_const_and_broadcast() {
    for shape in SHAPES {
        let mut c = Case::new();
        for axis in 0..shape.len() {
            let x = c.b.iota(dims(shape), axis);
            c.output(x);
            let row = c.input(F32, dims(shape).with(axis, 1).dims());
            let wide = c.b.broadcast(row, dims(shape));
            c.output(wide);
            let x = c.b.cast(x, F32);
            let sum = c.b.binary(BinaryOp::Add, x, wide);
            c.output(sum);
        }
        let seven = c.b.splat(BF16, dims(shape), 7.0);
        c.output(seven);
        c.check();
    }
}

#[test]
fn transpose_slice_join_and_reshape() {
    for dtype in [F32, BF16, DType::Bool, DType::I64, DType::U8] {
        let mut c = Case::new();
        let x = c.input(dtype, &[4, 8, 2]);
        for perm in [[0, 2, 1], [2, 1, 0], [1, 2, 0]] {
            let y = c.b.transpose(x, &perm);
            c.output(y);
            let z = c.b.reshape(y, dims(&[16, 4]));
            c.output(z);
            let s = c.b.slice(y, &[0; 3], dims(&[1, 2, 2]));
            c.output(s);
        }
        let s = c.b.slice(x, &[2, 4, 0], dims(&[2, 4, 2]));
        c.output(s);
        for axis in 0..3 {
            let j = c.b.join(s, s, axis);
            c.output(j);
        }
        let flat = c.b.reshape(x, dims(&[64]));
        let back = c.b.reshape(flat, dims(&[2, 1, 32]));
        c.output(back);
        // Of what is nowhere in memory.
        let i = c.b.iota(dims(&[8, 16]), 1);
        let i = c.b.cast(i, dtype);
        let t = c.b.transpose(i, &[1, 0]);
        c.output(t);
        let r = c.b.reshape(t, dims(&[4, 32]));
        c.output(r);
        let s = c.b.slice(i, &[4, 8], dims(&[4, 8]));
        c.output(s);
        c.check();
    }
}

#[test]
fn unit_reshapes_are_fused() {
    let mut c = Case::new();
    let x = c.input(F32, &[64]);
    let y = c.b.binary(BinaryOp::Mul, x, x);
    let y = c.b.reshape(y, dims(&[1, 64]));
    let z = c.input(F32, &[1, 64]);
    let s = c.b.binary(BinaryOp::Add, y, z);
    c.output(s);
    let col = c.b.reshape(s, dims(&[64, 1]));
    let wide = c.b.broadcast(col, dims(&[64, 8]));
    c.output(wide);
    c.check();
}

#[test]
fn named_reductions_and_scans_along_every_axis() {
    for shape in SHAPES {
        for dtype in [F32, BF16, I32, DType::U8, DType::I64, DType::I16, DType::Bool] {
            let mut c = Case::new();
            let x = c.input(dtype, shape);
            let ops: &[Combine] = match dtype {
                DType::Bool => &[Combine::And, Combine::Or, Combine::Xor],
                d if d.is_float() => &[Combine::Sum, Combine::Prod, Combine::Max, Combine::Min],
                _ => {
                    &[Combine::Sum, Combine::Prod, Combine::Max, Combine::Min, Combine::And, Combine::Or, Combine::Xor]
                }
            };
            for axis in 0..shape.len() {
                for &op in ops {
                    let y = c.b.reduce(x, axis, op);
                    c.output(y);
                    for reverse in [false, true] {
                        let z = c.b.scan(x, axis, op, reverse);
                        c.output(z);
                    }
                }
            }
            // Grouping differs, and bf16 is rounded once instead of 64 times.
            let ulp = if dtype == BF16 { 2f64.powi(-8) } else { 2f64.powi(-24) };
            c.within(64.0 * ulp, 2.0).check();
        }
    }
}

#[test]
fn nan_is_ignored_by_min_and_max() {
    let mut c = Case::new();
    let mut values = vec![Bits::from_f64(F32, f64::NAN); 128];
    values[5] = Bits::from_f64(F32, 3.0);
    values[40] = Bits::from_f64(F32, -3.0);
    let x = c.input_bits(F32, &[2, 64], &values);
    for op in [Combine::Max, Combine::Min] {
        for axis in 0..2 {
            let y = c.b.reduce(x, axis, op);
            c.output(y);
        }
    }
    c.check();
}

#[test]
fn combinations_by_region() {
    for shape in [&[16u32][..], &[4, 8], &[8, 1, 4]] {
        for axis in 0..shape.len() {
            let mut c = Case::new();
            let (a, b) = (c.input(F32, shape), c.input(F32, shape));
            let index = c.b.iota(dims(shape), axis);
            // x ↦ a·x + b, composed: what a linear recurrence scans with.
            let compose = |b: &mut Builder, l: &[ValueId], r: &[ValueId]| {
                let gain = b.binary(BinaryOp::Mul, l[0], r[0]);
                let carried = b.binary(BinaryOp::Mul, l[1], r[0]);
                let offset = b.binary(BinaryOp::Add, carried, r[1]);
                vec![gain, offset]
            };
            for reverse in [false, true] {
                for y in c.b.scan_by(&[a, b], axis, reverse, compose) {
                    c.output(y);
                }
            }
            // The largest and its index.
            let largest = |b: &mut Builder, l: &[ValueId], r: &[ValueId]| {
                let left = b.compare(crate::ir::CmpOp::Ge, l[0], r[0]);
                vec![b.select(left, l[0], r[0]), b.select(left, l[1], r[1])]
            };
            for y in c.b.reduce_by(&[a, index], axis, largest) {
                c.output(y);
            }
            c.within(1e-6, 1.0).check();
        }
    }
}

#[test]
fn products_of_all_shapes_and_dtypes() {
    let shapes = [(1, 64, 64), (16, 16, 16), (4, 2, 1), (2, 8, 2), (32, 64, 4), (1, 1, 8), (64, 32, 16), (8, 4, 8)];
    for (m, k, n) in shapes {
        for dtype in [F32, BF16, DType::F16, DType::F8E4M3, DType::F8E5M2, DType::I8, DType::U8] {
            let mut c = Case::new();
            let (a, b) = (c.input(dtype, &[m, k]), c.input(dtype, &[k, n]));
            let sum = if dtype.is_int() { I32 } else { F32 };
            let acc = c.input(sum, &[m, n]);
            let y = c.b.dot(a, b, acc, Precision::F32);
            c.output(y);
            // Operands that lie across: transposed tiles, and ones that are nowhere.
            let (at, bt) = (c.input(dtype, &[k, m]), c.input(dtype, &[n, k]));
            let at = c.b.transpose(at, &[1, 0]);
            let bt = c.b.transpose(bt, &[1, 0]);
            let zero = c.b.splat(sum, dims(&[m, n]), 0.0);
            let y = c.b.dot(at, bt, zero, Precision::F32);
            c.output(y);
            let ones = c.b.splat(dtype, dims(&[k, n]), 1.0);
            let y = c.b.dot(a, ones, y, Precision::F32);
            c.output(y);
            c.within(1e-5, 4.0 * k as f64).check();
        }
    }
}

#[test]
fn products_of_rank_3() {
    let shapes = [(16, 16, 16), (4, 2, 1), (2, 8, 2), (16, 8, 4), (1, 1, 8), (1, 16, 32), (8, 4, 8), (1, 1, 1)];
    for count in [1, 2, 4] {
        for (m, k, n) in shapes {
            for dtype in [F32, BF16, DType::F16, DType::F8E4M3, DType::I8] {
                let mut c = Case::new();
                let (a, b) = (c.input(dtype, &[count, m, k]), c.input(dtype, &[count, k, n]));
                let sum = if dtype.is_int() { I32 } else { F32 };
                let acc = c.input(sum, &[count, m, n]);
                let y = c.b.dot(a, b, acc, Precision::F32);
                c.output(y);
                // Matrices that lie across, and products that do not lie one after the other.
                let (at, bt) = (c.input(dtype, &[count, k, m]), c.input(dtype, &[n, count, k]));
                let at = c.b.transpose(at, &[0, 2, 1]);
                let bt = c.b.transpose(bt, &[1, 2, 0]);
                let zero = c.b.splat(sum, dims(&[count, m, n]), 0.0);
                let z = c.b.dot(at, bt, zero, Precision::F32);
                c.output(z);
                let outer = c.input(dtype, &[m, count, k]);
                let outer = c.b.transpose(outer, &[1, 0, 2]);
                let ones = c.b.splat(dtype, dims(&[count, k, n]), 1.0);
                let y = c.b.dot(outer, ones, y, Precision::F32);
                c.output(y);
                // The sums of one are an operand of the next; of its own transposed, too.
                if !dtype.is_int() {
                    let turned = c.b.transpose(y, &[0, 2, 1]);
                    let zero = c.b.splat(F32, dims(&[count, m, m]), 0.0);
                    let square = c.b.dot(y, turned, zero, Precision::F32);
                    c.output(square);
                }
                c.within(1e-5, 4.0 * (k * n) as f64).check();
            }
        }
    }
}
