//! Sources, elementwise operations, shapes, dot.

use super::*;
use crate::ir::{BinaryOp, CmpOp, Precision, UnaryOp};

#[test]
fn sources() {
    let mut c = Case::new();
    let t = c.b.iota(dims(&[2, 4]), 1);
    assert_eq!(c.values(t), [0., 1., 2., 3., 0., 1., 2., 3.]);
    let mut c = Case::new();
    let t = c.b.iota(dims(&[2, 2, 2]), 0);
    assert_eq!(c.values(t), [0., 0., 0., 0., 1., 1., 1., 1.]);
    let mut c = Case::new();
    let t = c.b.splat(DType::BF16, dims(&[4]), -1.5);
    assert_eq!(c.values(t), [-1.5; 4]);
    let mut c = Case::new();
    let t = c.b.constant(DType::I8, dims(&[2]), Bits(u64::MAX));
    assert_eq!(c.bits(t), [Bits(0xff); 2]);
}

#[test]
fn every_program_knows_its_place() {
    let mut c = Case::new();
    let out = Arc::new(Buffer::uninit(4 * 24));
    let view = c.view("out", I32, &[4, 3, 2], Access::Write, &out);
    let ids: Vec<_> = (0..3).map(|a| c.b.program_id(a)).collect();
    let counts: Vec<_> = (0..3).map(|a| c.b.num_programs(a)).collect();
    let mut value = c.b.i32(0);
    for (id, n) in ids.iter().zip(&counts) {
        value = c.b.binary(BinaryOp::Mul, value, *n);
        value = c.b.binary(BinaryOp::Add, value, *id);
    }
    let tile = c.b.reshape(value, dims(&[1, 1, 1]));
    c.b.store(view, tile, &ids);
    c.run_grid([4, 3, 2]).unwrap();
    assert_eq!(i32_values(&out), (0..24).collect::<Vec<_>>());
}

#[test]
fn unary_and_binary() {
    let mut c = Case::new();
    let x = c.input(F32, &[4], &[0.0, -2.0, f64::INFINITY, f64::NAN]);
    let y = c.b.unary(UnaryOp::Sigmoid, x);
    let v = c.values(y);
    assert_eq!((v[0], v[2], v[3].is_nan()), (0.5, 1.0, true));
    let mut c = Case::new();
    let x = c.input(F32, &[4], &[1.0, f64::NAN, -1.0, 0.0]);
    let y = c.input(F32, &[4], &[f64::NAN, 2.0, f64::INFINITY, -0.0]);
    let z = c.b.binary(BinaryOp::Max, x, y);
    assert_eq!(c.values(z), [1.0, 2.0, f64::INFINITY, 0.0]);
    // 256 + 1 is a tie in bf16, and rounds to even.
    let mut c = Case::new();
    let x = c.input(DType::BF16, &[2], &[256.0, 258.0]);
    let y = c.input(DType::BF16, &[2], &[1.0, 1.0]);
    let z = c.b.binary(BinaryOp::Add, x, y);
    assert_eq!(c.values(z), [256.0, 260.0]);
}

#[test]
fn fma_keeps_the_product_exact() {
    // (1 + e)(1 - e) - 1 is -e²; the rounded product is 1.
    let e = 2f64.powi(-13);
    let mut c = Case::new();
    let x = c.input(F32, &[4], &[1.0 + e, 3e38, f64::INFINITY, -0.0]);
    let a = c.input(F32, &[4], &[1.0 - e, 2.0, 0.0, 1.0]);
    let b = c.input(F32, &[4], &[-1.0, -3e38, 1.0, -0.0]);
    let y = c.b.fma(x, a, b);
    let v = c.values(y);
    assert_eq!((v[0], v[1], v[2].is_nan(), v[3]), (-e * e, 3e38f32 as f64, true, 0.0));
    assert!(v[3].is_sign_negative());
    // 1.25 · 205 = 256.25 is 256 in bf16. With 1 added it is 257.25, which is nearer to 258; 256 + 1 would be 256.
    let mut c = Case::new();
    let x = c.input(DType::BF16, &[2], &[1.25, 1.25]);
    let a = c.input(DType::BF16, &[2], &[205.0, 205.0]);
    let b = c.input(DType::BF16, &[2], &[1.0, 0.0]);
    let y = c.b.fma(x, a, b);
    assert_eq!(c.values(y), [258.0, 256.0]);
}

#[test]
fn comparisons_and_select() {
    let mut c = Case::new();
    let x = c.input(F32, &[4], &[1.0, f64::NAN, -0.0, f64::NEG_INFINITY]);
    let y = c.input(F32, &[4], &[2.0, 1.0, 0.0, f64::NEG_INFINITY]);
    let lt = c.b.compare(CmpOp::Lt, x, y);
    let one = c.b.splat(I32, dims(&[4]), 1.0);
    let two = c.b.splat(I32, dims(&[4]), 2.0);
    let s = c.b.select(lt, one, two);
    assert_eq!(c.values(s), [1., 2., 2., 2.]);
    let mut c = Case::new();
    let x = c.input(DType::U8, &[2], &[200.0, 3.0]);
    let y = c.input(DType::U8, &[2], &[100.0, 3.0]);
    let ge = c.b.compare(CmpOp::Ge, x, y);
    assert_eq!(c.bits(ge), [Bits(1), Bits(1)]);
}

#[test]
fn casts_to_and_from_fp8() {
    let values = [0.3, -449.0, 1e9, f64::NAN];
    let mut c = Case::new();
    let x = c.input(F32, &[4], &values);
    let e4m3 = c.b.cast(x, DType::F8E4M3);
    let back = c.b.cast(e4m3, F32);
    let v = c.values(back);
    assert_eq!(v[..3], [0.3125, -448.0, 448.0]);
    assert!(v[3].is_nan());
    let mut c = Case::new();
    let x = c.input(F32, &[4], &values);
    let e5m2 = c.b.cast(x, DType::F8E5M2);
    let back = c.b.cast(e5m2, DType::BF16);
    let v = c.values(back);
    assert_eq!(v[..3], [0.3125, -448.0, f64::INFINITY]);
    assert!(v[3].is_nan());
}

#[test]
fn bitcast_keeps_every_bit_even_of_a_signalling_nan() {
    let mut c = Case::new();
    let x = c.input_bits(DType::U16, &[2], &[Bits(0x7f81), Bits(0x3f80)]);
    let f = c.b.bitcast(x, DType::BF16);
    let s = c.b.reshape(f, dims(&[2, 1]));
    let u = c.b.bitcast(s, DType::U16);
    assert_eq!(c.bits(u), [Bits(0x7f81), Bits(0x3f80)]);
}

#[test]
fn shapes() {
    let six = [0., 1., 2., 3., 4., 5., 6., 7.];
    let mut c = Case::new();
    let x = c.input(I32, &[2, 4], &six);
    let t = c.b.transpose(x, &[1, 0]);
    assert_eq!(c.values(t), [0., 4., 1., 5., 2., 6., 3., 7.]);
    let mut c = Case::new();
    let x = c.input(I32, &[2, 2, 2], &six);
    // Result axis i is operand axis perm[i]: a cycle tells this from its inverse.
    let t = c.b.transpose(x, &[1, 2, 0]);
    assert_eq!(c.values(t), [0., 4., 1., 5., 2., 6., 3., 7.]);
    let mut c = Case::new();
    let x = c.input(I32, &[2, 4], &six);
    let s = c.b.slice(x, &[0, 2], dims(&[2, 2]));
    assert_eq!(c.values(s), [2., 3., 6., 7.]);
    let mut c = Case::new();
    let x = c.input(I32, &[2, 1], &[7., 8.]);
    let s = c.b.broadcast(x, dims(&[2, 4]));
    assert_eq!(c.values(s), [7., 7., 7., 7., 8., 8., 8., 8.]);
    let mut c = Case::new();
    let x = c.input(I32, &[2, 1, 2], &[1., 2., 3., 4.]);
    let s = c.b.broadcast(x, dims(&[2, 2, 2]));
    assert_eq!(c.values(s), [1., 2., 1., 2., 3., 4., 3., 4.]);
    let mut c = Case::new();
    let x = c.b.i32(3);
    let s = c.b.broadcast(x, dims(&[2, 2]));
    assert_eq!(c.values(s), [3.; 4]);
    for (axis, want) in [(0, [0., 1., 2., 3., 4., 5., 6., 7.]), (1, [0., 1., 4., 5., 2., 3., 6., 7.])] {
        let mut c = Case::new();
        let x = c.input(DType::I64, &[2, 2], &six[..4]);
        let y = c.input(DType::I64, &[2, 2], &six[4..]);
        let j = c.b.join(x, y, axis);
        assert_eq!(c.values(j), want);
    }
}

fn product(dtype: DType, precision: Precision, a: &[f64], b: &[f64], acc: f64) -> Vec<f64> {
    let mut c = Case::new();
    let a = c.input(dtype, &[2, 2], a);
    let b = c.input(dtype, &[2, 2], b);
    let acc = c.b.splat(if dtype.is_float() { F32 } else { I32 }, dims(&[2, 2]), acc);
    let d = c.b.dot(a, b, acc, precision);
    c.values(d)
}

#[test]
fn dots() {
    // Exact in every type: two or three significant bits.
    let (a, b) = ([1., 2., 3., 4.], [5., 6., 1., 2.]);
    for dtype in [F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2, DType::I8, DType::U8] {
        assert_eq!(product(dtype, Precision::F32, &a, &b, 1.0), [8., 11., 20., 27.], "{dtype}");
    }
    // i8 · i8 needs more than 8 bits; u8 is not signed.
    assert_eq!(product(DType::I8, Precision::F32, &[-128.; 4], &[-128.; 4], 0.0), [32768.; 4]);
    assert_eq!(product(DType::U8, Precision::F32, &[255.; 4], &[255.; 4], 0.0), [130050.; 4]);
    // NaN and ∞ - ∞ reach the result.
    let v = product(F32, Precision::F32, &[f64::INFINITY, 1., 1., f64::NAN], &[1., 0., f64::NEG_INFINITY, 0.], 0.0);
    assert!(v[0].is_nan() && v[2].is_nan());
}

#[test]
fn dots_of_rank_3_multiply_matrix_by_matrix() {
    // [1 2] · [5 6; 1 2] + 1, [3 4] · [2 1; 0 3] + 2; then the second matrix of b turned.
    let (a, b) = ([1., 2., 3., 4.], [5., 6., 1., 2., 2., 1., 0., 3.]);
    for dtype in [F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2, DType::I8, DType::U8] {
        let sum = if dtype.is_float() { F32 } else { I32 };
        for (turn, want) in [(false, [8., 11., 8., 17.]), (true, [18., 6., 12., 14.])] {
            let mut c = Case::new();
            let a = c.input(dtype, &[2, 1, 2], &a);
            let mut b = c.input(dtype, &[2, 2, 2], &b);
            if turn {
                b = c.b.transpose(b, &[0, 2, 1]);
            }
            let acc = c.input(sum, &[2, 1, 2], &[1., 1., 2., 2.]);
            let d = c.b.dot(a, b, acc, Precision::F32);
            assert_eq!(c.values(d), want, "{dtype}");
        }
    }
    // Precisions, too: of 1 + 2⁻¹² only 1 is left.
    let x = 1.0 + 2f64.powi(-12);
    for (precision, want) in [(Precision::Tf32, 1.0), (Precision::Tf32x3, x), (Precision::F32, x)] {
        let mut c = Case::new();
        let (a, b) = (c.input(F32, &[2, 1, 1], &[x, 2.0 * x]), c.input(F32, &[2, 1, 1], &[1.0, 2.0]));
        let acc = c.b.splat(F32, dims(&[2, 1, 1]), 0.0);
        let d = c.b.dot(a, b, acc, precision);
        assert_eq!(c.values(d), [want, 4.0 * want]);
    }
}

#[test]
fn dot_adds_in_index_order_from_the_accumulator() {
    // 1e8 + 1 + 1 - 1e8 in f32: each 1 is lost on the way if the order is kept.
    let mut c = Case::new();
    let a = c.input(F32, &[1, 4], &[1e8, 1.0, 1.0, -1e8]);
    let b = c.input(F32, &[4, 1], &[1.0; 4]);
    let acc = c.b.splat(F32, dims(&[1, 1]), 3.0);
    let d = c.b.dot(a, b, acc, Precision::F32);
    assert_eq!(c.values(d), [0.0]);
}

#[test]
fn tf32_loses_what_three_products_keep() {
    let x = 1.0 + 2f64.powi(-12);
    let want = 2.0 * x;
    let (a, b) = ([x; 4], [1.0; 4]);
    assert_eq!(product(F32, Precision::Tf32, &a, &b, 0.0), [2.0; 4]);
    assert_eq!(product(F32, Precision::Tf32x3, &a, &b, 0.0), [want; 4]);
    assert_eq!(product(F32, Precision::F32, &a, &b, 0.0), [want; 4]);
    assert_eq!(product(DType::BF16, Precision::Tf32, &a, &b, 0.0), [2.0; 4]);
}
