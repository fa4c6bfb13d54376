//! Loops, branches, carried tiles, assertions and prints.

use super::*;
use crate::ir::{BinaryOp, CmpOp, Combine, OpKind, Precision};

/// Builds a loop from `lo` to `hi` that carries `inits`.
pub(super) fn for_loop(
    b: &mut Builder,
    (lo, hi, step): (i32, i32, i32),
    inits: &[ValueId],
    body: impl FnOnce(&mut Builder, ValueId, &[ValueId]) -> Vec<ValueId>,
) -> Vec<ValueId> {
    let (lo, hi, step) = (b.i32(lo), b.i32(hi), b.i32(step));
    let types: Vec<Type> = inits.iter().map(|&v| b.ty(v)).collect();
    let args: Vec<Type> = std::iter::once(Type::scalar(I32)).chain(types.iter().copied()).collect();
    let (region, args) = b.open(&args);
    let out = body(b, args[0], &args[1..]);
    b.close(&out);
    let operands = [&[lo, hi, step], inits].concat();
    let op = b.emit_with_regions(OpKind::For { stages: 0 }, &operands, &types, &[region]);
    b.results(op)
}

#[test]
fn matrix_product_in_a_loop() {
    for (dtype, m, k, n) in [(F32, 33, 70, 65), (BF16, 64, 64, 64), (DType::F16, 1, 130, 17)] {
        let mut c = Case::new();
        let (va, vb) = (c.random.values(dtype, m * k), c.random.values(dtype, k * n));
        let a = c.view(dtype, &[m as i64, k as i64], Access::Read, &va);
        let b = c.view(dtype, &[k as i64, n as i64], Access::Read, &vb);
        let out = c.target(F32, &[m as i64, n as i64]);
        let mut at = vec![];
        for axis in 0..2 {
            let pid = c.b.program_id(axis);
            let size = c.b.i32(32);
            at.push(c.b.binary(BinaryOp::Mul, pid, size));
        }
        let zero = c.b.splat(F32, dims(&[32, 32]), 0.0);
        let sum = for_loop(&mut c.b, (0, k as i32, 16), &[zero], |bl, i, carried| {
            let x = bl.load(a, &[at[0], i], dims(&[32, 16]), None);
            let y = bl.load(b, &[i, at[1]], dims(&[16, 32]), None);
            vec![bl.dot(x, y, carried[0], Precision::F32)]
        });
        c.b.store(out, sum[0], &at);
        c.within(1e-5, k as f64).check_grid([(m as u32).div_ceil(32), (n as u32).div_ceil(32), 1]);
    }
}

#[test]
fn softmax_with_a_running_maximum() {
    let mut c = Case::new();
    let values = c.random.values(F32, 8 * 100);
    let v = c.view(F32, &[8, 100], Access::Read, &values);
    let m0 = c.b.splat(F32, dims(&[8]), f64::NEG_INFINITY);
    let s0 = c.b.splat(F32, dims(&[8]), 0.0);
    let acc0 = c.b.splat(F32, dims(&[8, 16]), 0.0);
    let out = for_loop(&mut c.b, (0, 100, 16), &[m0, s0, acc0], |b, i, carried| {
        let zero = b.i32(0);
        let low = b.splat(F32, Shape::SCALAR, f64::NEG_INFINITY);
        let x = b.load(v, &[zero, i], dims(&[8, 16]), Some(low));
        let top = b.reduce(x, 1, Combine::Max);
        let m = b.binary(BinaryOp::Max, carried[0], top);
        let scale = b.binary(BinaryOp::Sub, carried[0], m);
        let scale = b.unary(crate::ir::UnaryOp::Exp, scale);
        let column = b.reshape(m, dims(&[8, 1]));
        let wide = b.broadcast(column, dims(&[8, 16]));
        let p = b.binary(BinaryOp::Sub, x, wide);
        let p = b.unary(crate::ir::UnaryOp::Exp, p);
        let row = b.reduce(p, 1, Combine::Sum);
        let s = b.binary(BinaryOp::Mul, carried[1], scale);
        let s = b.binary(BinaryOp::Add, s, row);
        let scale = b.reshape(scale, dims(&[8, 1]));
        let scale = b.broadcast(scale, dims(&[8, 16]));
        let acc = b.binary(BinaryOp::Mul, carried[2], scale);
        let acc = b.binary(BinaryOp::Add, acc, p);
        vec![m, s, acc]
    });
    for y in out {
        c.output(y);
    }
    c.within(1e-5, 1e-3).check();
}

#[test]
fn carried_tiles_that_swap_rotate_and_stay() {
    for shape in [&[16u32][..], &[4, 8]] {
        let mut c = Case::new();
        let (x, y, z) = (c.input(F32, shape), c.input(F32, shape), c.input(F32, shape));
        let out = for_loop(&mut c.b, (0, 5, 1), &[x, y, z], |_, _, v| vec![v[1], v[0], v[2]]);
        let turned = for_loop(&mut c.b, (0, 4, 1), &out, |b, i, v| {
            let sum = b.binary(BinaryOp::Add, v[0], v[1]);
            let i = b.cast(i, F32);
            let i = b.broadcast(i, dims(shape));
            let sum = b.binary(BinaryOp::Add, sum, i);
            vec![v[2], v[0], sum]
        });
        for v in out.into_iter().chain(turned) {
            c.output(v);
        }
        c.check();
    }
}

#[test]
fn a_carried_square_that_is_transposed_each_time() {
    let mut c = Case::new();
    let x = c.input(F32, &[8, 8]);
    let out = for_loop(&mut c.b, (0, 3, 1), &[x], |b, _, v| {
        let t = b.transpose(v[0], &[1, 0]);
        let s = b.binary(BinaryOp::Add, v[0], t);
        let u = b.transpose(s, &[1, 0]);
        vec![b.binary(BinaryOp::Sub, u, v[0])]
    });
    c.output(out[0]);
    let out = for_loop(&mut c.b, (0, 3, 1), &[x], |b, _, v| vec![b.transpose(v[0], &[1, 0])]);
    c.output(out[0]);
    // The product reads the carried tile as an operand, too.
    let out = for_loop(&mut c.b, (0, 3, 1), &[x], |b, _, v| vec![b.dot(v[0], x, v[0], Precision::F32)]);
    c.output(out[0]);
    c.within(1e-5, 100.0).check();
}

/// Of a tile that a loop carries: the product cannot be computed where its operand lies.
#[test]
fn products_of_rank_3_in_loops() {
    let mut c = Case::new();
    let (a, b) = (c.input(BF16, &[2, 8, 8]), c.input(BF16, &[2, 8, 8]));
    let acc = c.input(F32, &[2, 8, 8]);
    let out = for_loop(&mut c.b, (0, 3, 1), &[acc], |bl, _, v| vec![bl.dot(a, b, v[0], Precision::F32)]);
    c.output(out[0]);
    let x = c.input(F32, &[4, 4, 4]);
    let out = for_loop(&mut c.b, (0, 2, 1), &[x], |bl, _, v| vec![bl.dot(v[0], x, v[0], Precision::F32)]);
    c.output(out[0]);
    c.within(1e-4, 400.0).check();
}

#[test]
fn loops_in_loops_and_loops_of_nothing() {
    let mut c = Case::new();
    let x = c.input(I32, &[4, 4]);
    let n = c.b.i32(3);
    let out = for_loop(&mut c.b, (0, 4, 1), &[x, n], |b, i, v| {
        let inner = for_loop(b, (2, 9, 3), &[v[0]], |b, j, w| {
            let k = b.binary(BinaryOp::Mul, i, j);
            let k = b.broadcast(k, dims(&[4, 4]));
            vec![b.binary(BinaryOp::Add, w[0], k)]
        });
        let m = b.binary(BinaryOp::Add, v[1], i);
        vec![inner[0], m]
    });
    let none = for_loop(&mut c.b, (5, 5, 1), &[x], |b, _, v| vec![b.binary(BinaryOp::Add, v[0], v[0])]);
    let last =
        for_loop(&mut c.b, (i32::MAX - 2, i32::MAX, 5), &[x], |b, _, v| vec![b.binary(BinaryOp::Add, v[0], v[0])]);
    let m = c.b.broadcast(out[1], dims(&[1]));
    for v in [out[0], none[0], last[0], m] {
        c.output(v);
    }
    c.check();
}

#[test]
fn while_and_if() {
    let mut c = Case::new();
    let x = c.input(F32, &[16]);
    let start = c.b.i32(27);
    let types = [Type::scalar(I32), Type::Tile(F32, dims(&[16]))];
    let (condition, args) = c.b.open(&types);
    let one = c.b.i32(1);
    let more = c.b.compare(CmpOp::Ne, args[0], one);
    c.b.close(&[more]);
    let (body, args) = c.b.open(&types);
    let two = c.b.i32(2);
    let odd = c.b.binary(BinaryOp::Rem, args[0], two);
    let one = c.b.i32(1);
    let is_odd = c.b.compare(CmpOp::Eq, odd, one);
    let (yes, _) = c.b.open(&[]);
    let three = c.b.i32(3);
    let n = c.b.binary(BinaryOp::Mul, args[0], three);
    let n = c.b.binary(BinaryOp::Add, n, one);
    let t = c.b.binary(BinaryOp::Add, args[1], x);
    c.b.close(&[n, t]);
    let (no, _) = c.b.open(&[]);
    let n = c.b.binary(BinaryOp::Div, args[0], two);
    c.b.close(&[n, args[1]]);
    let branch = c.b.emit_with_regions(OpKind::If, &[is_odd], &types, &[yes, no]);
    let results = c.b.results(branch);
    c.b.close(&results);
    let op = c.b.emit_with_regions(OpKind::While, &[start, x], &types, &[condition, body]);
    let out = c.b.results(op);
    let n = c.b.broadcast(out[0], dims(&[1]));
    c.output(n);
    c.output(out[1]);
    c.check();
}

#[test]
fn failures_name_kernel_place_and_program() {
    let mut c = Case::new();
    let pid = c.b.program_id(0);
    let pid = c.b.broadcast(pid, dims(&[8, 4]));
    let five = c.b.splat(I32, dims(&[8, 4]), 5.0);
    let fine = c.b.compare(CmpOp::Lt, pid, five);
    c.b.loc = Loc { file: "case.rs", line: 7, column: 3 };
    c.b.assert(fine, "program below five");
    let mut kernel = c.b.finish();
    launch(&mut kernel, &[], [5, 1, 1], false).0.expect("holds");
    let error = launch(&mut kernel, &[], [6, 1, 1], false).0.expect_err("fails");
    assert_eq!(
        error.to_string(),
        "kernel `case`, program [5, 0, 0], case.rs:7:3: assertion failed: program below five"
    );

    let mut c = Case::new();
    let x = c.b.i32(1);
    for_loop(&mut c.b, (0, 4, 0), &[x], |_, _, v| vec![v[0]]);
    let error = launch(&mut c.b.finish(), &[], [1, 1, 1], false).0.expect_err("fails");
    assert!(error.to_string().contains("step of a loop"), "{error}");
}

#[test]
fn wrong_numbers_of_slots_are_refused() {
    let mut c = Case::new();
    c.scalar(F32, Bits(0));
    let error = launch(&mut c.b.finish(), &[], [1, 1, 1], false).0.expect_err("fails");
    assert_eq!(error, CpuError::Slots { kernel: "case".into(), expected: 1, found: 0 });
}

#[test]
fn prints_do_not_disturb() {
    let mut c = Case::new();
    let x = c.input(BF16, &[2, 4]);
    let y = c.b.binary(BinaryOp::Add, x, x);
    let pid = c.b.program_id(0);
    c.b.print("twice", &[y, pid]);
    c.output(y);
    c.check();
}
