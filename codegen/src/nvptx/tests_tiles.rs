//! Tiles on their way between threads - exchanges, conversions, slices across lanes, products of rank 3, loads ahead -
//! compute what the interpreter computes.

use super::differential::{compare, compare_runs, general, specialised};
use super::simulate::{Order, Simulator, address_of};
use super::tests_kernels::{built, contiguous, for_loop, view};
use super::{Target, llvm_text};
use crate::ir::{Access, BinaryOp, Builder, CmpOp, Combine, DType, Kernel, Precision, Shape, UnaryOp, ValueId};

fn tile(b: &mut Builder, from: ValueId, dims: &[u32]) -> ValueId {
    let zero = b.i32(0);
    b.load(from, &vec![zero; dims.len()], Shape::new(dims), None)
}

fn store(b: &mut Builder, name: &str, x: ValueId) {
    let ty = b.ty(x);
    let rank = ty.shape().rank();
    let out = view(b, name, ty.dtype(), rank as u8, Access::Write);
    let zero = b.i32(0);
    b.store(out, x, &vec![zero; rank]);
}

/// The text of the kernel specialised to these shapes, for a chip with everything.
fn text(k: &Kernel, shapes: &[&[i64]]) -> String {
    llvm_text(&specialised(k, shapes), Target { sm: 90 }).unwrap_or_else(|e| panic!("{e}")).text
}

// -- exchanges -----------------------------------------------------------------------------------------------------------

/// Sums of columns and what was the largest in them, twice with something between: what lies in scratch memory is read
/// again, and then overwritten.
#[test]
fn the_same_value_is_exchanged_several_times() {
    let k = contiguous(built("again", |b| {
        let x = view(b, "x", DType::F32, 2, Access::Read);
        let t = tile(b, x, &[4, 32]);
        let sum = b.reduce(t, 0, Combine::Sum);
        // Stored and loaded again by others: a barrier that frees all of scratch memory.
        let out = view(b, "out", DType::F32, 1, Access::Write);
        let (zero, one) = (b.i32(0), b.i32(1));
        b.store(out, sum, &[zero]);
        let back = b.load(out, &[one], Shape::new(&[32]), None);
        let most = b.reduce(t, 0, Combine::Max);
        let least = b.reduce(t, 0, Combine::Min);
        let sums = b.scan(t, 0, Combine::Sum, true);
        // Another value's exchange.
        let twice = b.binary(BinaryOp::Add, t, t);
        let other = b.reduce(twice, 0, Combine::Max);
        let again = b.reduce(t, 0, Combine::Prod);
        for (i, v) in [back, most, least, sums, other, again].into_iter().enumerate() {
            store(b, &format!("out{i}"), v);
        }
    }));
    let row: &[i64] = &[32];
    let shapes: &[&[i64]] = &[&[4, 32], &[64], row, row, row, &[4, 32], row, row];
    compare(&k, [1; 3], shapes, 1e-5);
    let stores = text(&k, shapes).matches("st.shared").count();
    assert_eq!(stores, 3, "the first value, the second, the first");
}

/// Constants look the same whatever their type.
#[test]
fn exchanged_constants_are_told_apart() {
    let k = contiguous(built("constants", |b| {
        let t = view(b, "t", DType::F32, 2, Access::Read);
        let t = tile(b, t, &[4, 32]);
        let [x, y] = [DType::I32, DType::I64].map(|d| b.splat(d, Shape::new(&[4, 32]), 3.0));
        let r = b.reduce_by(&[t, x, y], 0, |b, l, r| {
            let most = b.binary(BinaryOp::Max, l[0], r[0]);
            vec![most, b.binary(BinaryOp::Add, l[1], r[1]), b.binary(BinaryOp::Mul, l[2], r[2])]
        });
        for (name, r) in ["most", "sum", "product"].into_iter().zip(r) {
            store(b, name, r);
        }
    }));
    compare(&k, [1; 3], &[&[4, 32], &[32], &[32], &[32]], 0.0);
}

/// 8- to 64-bit elements in vectors, over warps.
#[test]
fn exchanges_are_vectorised() {
    for dtype in [DType::I8, DType::Bool, DType::BF16, DType::F32, DType::I64] {
        let k = contiguous(built(&format!("exchange_{dtype}"), |b| {
            let x = view(b, "x", DType::I32, 3, Access::Read);
            let t = tile(b, x, &[4, 8, 32]);
            let t = match dtype {
                DType::Bool => {
                    let zero = b.splat(DType::I32, Shape::new(&[4, 8, 32]), 0.0);
                    b.compare(CmpOp::Gt, t, zero)
                }
                d => b.cast(t, d),
            };
            let combine = if dtype == DType::Bool { Combine::Xor } else { Combine::Max };
            for axis in 0..3 {
                let r = b.reduce(t, axis, combine);
                store(b, &format!("reduced{axis}"), r);
                let s = b.scan(t, axis, combine, axis == 1);
                store(b, &format!("scanned{axis}"), s);
            }
        }));
        let all: &[i64] = &[4, 8, 32];
        compare(&k, [1; 3], &[all, &[8, 32], all, &[4, 32], all, &[4, 8], all], 0.0);
    }
}
