//! Reductions and scans.

use super::*;
use crate::ir::{BinaryOp, CmpOp, Combine};

const EIGHT: [f64; 8] = [1., 2., 3., 4., 5., 6., 7., 8.];

#[test]
fn reductions() {
    for (axis, want) in [(0, vec![6., 8., 10., 12.]), (1, vec![10., 26.])] {
        for dtype in [F32, I32, DType::BF16, DType::U64] {
            let mut c = Case::new();
            let x = c.input(dtype, &[2, 4], &EIGHT);
            let r = c.b.reduce(x, axis, Combine::Sum);
            assert_eq!(c.values(r), want, "{dtype} {axis}");
        }
    }
    let mut c = Case::new();
    let x = c.input(I32, &[2, 2, 2], &EIGHT);
    let r = c.b.reduce(x, 1, Combine::Max);
    assert_eq!(c.values(r), [3., 4., 7., 8.]);
    let mut c = Case::new();
    let x = c.input(F32, &[4], &[f64::NAN, -1.0, f64::NEG_INFINITY, f64::NAN]);
    let r = c.b.reduce(x, 0, Combine::Max);
    assert_eq!(c.values(r), [-1.0]);
    let mut c = Case::new();
    let x = c.input(DType::Bool, &[4], &[1., 1., 0., 1.]);
    let r = c.b.reduce(x, 0, Combine::And);
    assert_eq!(c.values(r), [0.0]);
    // One element: itself, also -0, which 0 + -0 would lose.
    let mut c = Case::new();
    let x = c.input(F32, &[1], &[-0.0]);
    let r = c.b.reduce(x, 0, Combine::Sum);
    assert_eq!(c.bits(r), [Bits(0x8000_0000)]);
}

#[test]
fn narrow_sums_round_at_every_step() {
    let mut c = Case::new();
    let x = c.input(DType::BF16, &[4], &[256.0, 1.0, 1.0, 1.0]);
    let r = c.b.reduce(x, 0, Combine::Sum);
    assert_eq!(c.values(r), [256.0]);
}

#[test]
fn scans() {
    let mut c = Case::new();
    let x = c.input(F32, &[2, 4], &EIGHT);
    let s = c.b.scan(x, 1, Combine::Sum, false);
    assert_eq!(c.values(s), [1., 3., 6., 10., 5., 11., 18., 26.]);
    let mut c = Case::new();
    let x = c.input(I32, &[2, 4], &EIGHT);
    let s = c.b.scan(x, 1, Combine::Sum, true);
    assert_eq!(c.values(s), [10., 9., 7., 4., 26., 21., 15., 8.]);
    let mut c = Case::new();
    let x = c.input(I32, &[2, 2, 2], &EIGHT);
    let s = c.b.scan(x, 1, Combine::Prod, false);
    assert_eq!(c.values(s), [1., 2., 3., 8., 5., 6., 35., 48.]);
}

/// (value, index) of the largest, the first of equals.
fn argmax(b: &mut Builder, l: &[ValueId], r: &[ValueId]) -> Vec<ValueId> {
    let later_wins = b.compare(CmpOp::Gt, r[0], l[0]);
    vec![b.select(later_wins, r[0], l[0]), b.select(later_wins, r[1], l[1])]
}

#[test]
fn reductions_by_a_region() {
    for (axis, want) in [(1, vec![2., 0.]), (0, vec![0., 1., 0., 1.])] {
        let mut c = Case::new();
        let x = c.input(F32, &[2, 4], &[3., 1., 4., 1., 3., 2., 1., 3.]);
        let i = c.b.iota(dims(&[2, 4]), axis);
        let r = c.b.reduce_by(&[x, i], axis, argmax);
        assert_eq!(c.values(r[1]), want, "axis {axis}");
    }
}

/// Linear recurrence h = a·h + b as a scan of pairs; it does not commute. A scalar from outside and a constant within.
fn recurrence(reverse: bool) -> Vec<f64> {
    let mut c = Case::new();
    let a = c.input(F32, &[2, 4], &[2., 3., 5., 7., 1., 1., 1., 1.]);
    let x = c.input(F32, &[2, 4], &EIGHT);
    let outside = c.b.splat(F32, dims(&[]), 1.0);
    let r = c.b.scan_by(&[a, x], 1, reverse, |b, l, r| {
        let zero = b.splat(F32, dims(&[]), 0.0);
        let scaled = b.binary(BinaryOp::Mul, l[1], r[0]);
        let scaled = b.binary(BinaryOp::Mul, scaled, outside);
        let sum = b.binary(BinaryOp::Add, scaled, r[1]);
        vec![b.binary(BinaryOp::Mul, l[0], r[0]), b.binary(BinaryOp::Add, sum, zero)]
    });
    c.values(r[1])
}

#[test]
fn scans_by_a_region_keep_the_order() {
    // h₁ = 1·3 + 2 = 5, h₂ = 5·5 + 3 = 28, h₃ = 28·7 + 4 = 200.
    assert_eq!(recurrence(false), [1., 5., 28., 200., 5., 11., 18., 26.]);
    // From the far end: 4, 4·5 + 3 = 23, 23·3 + 2 = 71, 71·2 + 1 = 143.
    assert_eq!(recurrence(true), [143., 71., 23., 4., 26., 21., 15., 8.]);
}
