//! Elementwise operations on every dtype that takes part.

use super::*;
use crate::ir::{BinaryOp, CmpOp, UnaryOp};
use crate::semantics;

/// Interesting f32 values: limits, ties, and a sweep of all magnitudes.
fn f32_sweep(random: &mut Random) -> Vec<Bits> {
    let mut v: Vec<f32> = vec![
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        1.5,
        2.5,
        -2.5,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MIN_POSITIVE,
        1e-45,
        -1e-45,
        f32::MAX,
        f32::MIN,
        88.7,
        89.0,
        -87.5,
        -103.0,
        -104.5,
        127.9,
        -149.5,
        0.625,
        448.0,
        65504.0,
        65520.0,
        2147483648.0,
        -2147483648.0,
        4294967296.0,
    ];
    while v.len() < 128 {
        v.push(f32::from_bits(random.bits() as u32));
    }
    while v.len() < 1024 {
        v.push((random.unit() * 2f64.powf(random.unit() * 12.0)) as f32);
    }
    v.into_iter().map(|x| Bits(x.to_bits() as u64)).collect()
}

const MATH: [UnaryOp; 14] = [
    UnaryOp::Exp,
    UnaryOp::Exp2,
    UnaryOp::Log,
    UnaryOp::Log2,
    UnaryOp::Log2Approx,
    UnaryOp::Sqrt,
    UnaryOp::Rsqrt,
    UnaryOp::Sin,
    UnaryOp::Cos,
    UnaryOp::Tanh,
    UnaryOp::Sigmoid,
    UnaryOp::Silu,
    UnaryOp::Softplus,
    UnaryOp::Erf,
];

const ULP3: f64 = 3.0 / 8_388_608.0;

/// Below this, errors are absolute: subnormals have fewer digits. Silu multiplies such a sigmoid by up to 104.
fn subnormals(op: UnaryOp) -> f64 {
    if op == UnaryOp::Silu { 2f64.powi(-121) } else { 2f64.powi(-126) }
}

#[test]
fn transcendental_functions_are_within_three_ulp() {
    for op in MATH {
        for seed in 0..4 {
            let mut c = Case::new();
            c.random = Random(seed);
            let values = f32_sweep(&mut c.random);
            let x = c.input_bits(F32, &[1024], &values);
            let y = c.b.unary(op, x);
            c.output(y);
            c.within(ULP3, subnormals(op)).check();
        }
    }
}

/// 2^x for an x below -126 is 0 and not a subnormal number; of a subnormal x it is 1.
#[test]
fn exp2_has_no_subnormal_results() {
    let cases = [
        (-125.0, 2f64.powi(-125)),
        (-126.0, 2f64.powi(-126)),
        ((-126f32).next_down(), 0.0),
        (-126.5, 0.0),
        (-130.0, 0.0),
        (-149.0, 0.0),
        (-1e30, 0.0),
        (f32::NEG_INFINITY, 0.0),
        (1e-45, 1.0),
        (-1e-45, 1.0),
        (128.0, f64::INFINITY),
        (f32::INFINITY, f64::INFINITY),
        (f32::NAN, f64::NAN),
    ];
    for dtype in [F32, BF16] {
        let mut c = Case::new();
        let values: Vec<Bits> = cases.iter().map(|&(x, _)| Bits::from_f64(dtype, x as f64)).collect();
        for (&x, (_, want)) in values.iter().zip(cases) {
            let got = semantics::unary(UnaryOp::Exp2, dtype, x).to_f64(dtype);
            // Rounded to bf16, the number below -126 is -126.
            let want = if x.to_f64(dtype) == -126.0 { 2f64.powi(-126) } else { want };
            assert!(got == want || got.is_nan() && want.is_nan(), "2^{} is {got}, not {want}", x.to_f64(dtype));
        }
        let values: Vec<Bits> = values.into_iter().cycle().take(32).collect();
        let x = c.input_bits(dtype, &[32], &values);
        let y = c.b.unary(UnaryOp::Exp2, x);
        c.output(y);
        c.check();
    }
}

/// Where `log2` and `log2_approx` differ here: the logarithm of a subnormal number is that of 0.
#[test]
fn log2_approx_takes_subnormal_numbers_for_zero() {
    let nan = f64::NAN;
    let infinity = f64::INFINITY;
    let cases = [
        (f32::MIN_POSITIVE, -126.0),
        (f32::MIN_POSITIVE.next_down(), -infinity),
        (-1e-45, -infinity),
        (0.0, -infinity),
        (-0.0, -infinity),
        (1.0, 0.0),
        (0.5, -1.0),
        (1024.0, 10.0),
        (f32::INFINITY, infinity),
        (-f32::MIN_POSITIVE, nan),
        (-1.0, nan),
        (-f32::INFINITY, nan),
        (f32::NAN, nan),
    ];
    let mut c = Case::new();
    let values: Vec<Bits> = cases.iter().map(|&(x, _)| Bits::from_f64(F32, x as f64)).collect();
    for (&x, (_, want)) in values.iter().zip(cases) {
        let got = semantics::unary(UnaryOp::Log2Approx, F32, x).to_f64(F32);
        assert!(got == want || got.is_nan() && want.is_nan(), "log2 {} is {got}, not {want}", x.to_f64(F32));
    }
    let values: Vec<Bits> = values.into_iter().cycle().take(32).collect();
    let x = c.input_bits(F32, &[32], &values);
    let y = c.b.unary(UnaryOp::Log2Approx, x);
    c.output(y);
    c.check();
}

#[test]
fn scalars_take_the_same_functions() {
    for op in MATH {
        for x in [0.3, -2.0, 0.0, 90.0, -104.0] {
            let mut c = Case::new();
            let x = c.scalar(F32, Bits::from_f64(F32, x));
            let y = c.b.unary(op, x);
            let y = c.b.broadcast(y, dims(&[1]));
            c.output(y);
            c.within(ULP3, subnormals(op)).check();
        }
    }
}

#[test]
fn exact_functions_of_one_operand() {
    for dtype in DType::ALL.into_iter().filter(|d| !d.is_fp8()) {
        let ops: &[UnaryOp] = match dtype {
            DType::Bool => &[UnaryOp::Not],
            d if d.is_float() => &[
                UnaryOp::Neg,
                UnaryOp::Abs,
                UnaryOp::Floor,
                UnaryOp::Ceil,
                UnaryOp::Round,
                UnaryOp::Trunc,
                UnaryOp::Recip,
                UnaryOp::Sqrt,
            ],
            d if d.is_signed() => &[UnaryOp::Neg, UnaryOp::Abs, UnaryOp::Not],
            _ => &[UnaryOp::Not],
        };
        for &op in ops {
            let mut c = Case::new();
            let values = c.random.hostile(dtype, 256);
            let x = c.input_bits(dtype, &[256], &values);
            let y = c.b.unary(op, x);
            c.output(y);
            c.check();
        }
    }
}

#[test]
fn binary_operations_and_comparisons_are_exact() {
    use BinaryOp::*;
    for dtype in DType::ALL.into_iter().filter(|d| !d.is_fp8()) {
        let ops: &[BinaryOp] = match dtype {
            DType::Bool => &[And, Or, Xor],
            d if d.is_float() => &[Add, Sub, Mul, Div, Rem, Min, Max],
            _ => &[Add, Sub, Mul, Div, Rem, Min, Max, And, Or, Xor, Shl, Shr],
        };
        for hostile in [false, true] {
            let mut c = Case::new();
            let sample = |c: &mut Case| {
                let mut v = if hostile { c.random.hostile(dtype, 256) } else { c.random.values(dtype, 256) };
                // Divisors of the interpreter must not be 0; -1 is the hostile one.
                for (i, b) in v.iter_mut().enumerate() {
                    if b.0 == 0 && dtype.is_int() || (hostile && i % 7 == 0 && dtype.is_int()) {
                        *b = Bits::from_i64(dtype, -1);
                    }
                }
                c.input_bits(dtype, &[256], &v)
            };
            let (x, y) = (sample(&mut c), sample(&mut c));
            for &op in ops {
                let z = c.b.binary(op, x, y);
                c.output(z);
            }
            for op in [CmpOp::Eq, CmpOp::Ne, CmpOp::Lt, CmpOp::Le, CmpOp::Gt, CmpOp::Ge] {
                let z = c.b.compare(op, x, y);
                c.output(z);
                let w = c.b.select(z, x, y);
                c.output(w);
            }
            c.check();
        }
    }
}

/// With the instruction and without, on vectors and on what is left over.
#[test]
fn fma_keeps_the_product_exact() {
    for dtype in [F32, BF16, DType::F16] {
        let mut c = Case::new();
        // (1 + e)(1 - e) - 1 is -e², which a rounded product loses: there it is 0.
        let e = 2f64.powi(if dtype == F32 { -13 } else { -7 });
        let known = [1.0 + e, 1.0 - e, -1.0].map(|x| Bits::from_f64(dtype, x));
        let columns =
            known.map(|first| [vec![first], c.random.hostile(dtype, 127), c.random.values(dtype, 130)].concat());
        let inputs = columns.each_ref().map(|column| {
            let (most, rest) = column.split_at(256);
            [c.input_bits(dtype, &[256], most), c.input_bits(dtype, &[2], rest)]
        });
        for part in 0..2 {
            let y = c.b.fma(inputs[0][part], inputs[1][part], inputs[2][part]);
            c.output(y);
        }
        let [x, a, b] = &columns;
        let want: Vec<Bits> = (0..x.len()).map(|i| semantics::fma(dtype, x[i], a[i], b[i])).collect();
        assert_eq!(want[0].to_f64(dtype), -e * e);
        let mut kernel = c.b.finish();
        for fma in [has_fma(), false] {
            let (result, memory) = launch_for(fma, &mut kernel, &c.args, [1; 3], false);
            result.expect("runs");
            let bytes: Vec<u8> = memory[6..].iter().flat_map(|m| m[GUARD..m.len() - GUARD].to_vec()).collect();
            assert_eq!(bytes.len(), want.len() * dtype.size());
            for (i, (found, want)) in bytes.chunks_exact(dtype.size()).zip(&want).enumerate() {
                let found = Bits(found.iter().rev().fold(0, |x, &b| x << 8 | b as u64));
                let nan = found.to_f64(dtype).is_nan() && want.to_f64(dtype).is_nan();
                assert!(found == *want || nan, "{dtype}, instruction {fma}, [{i}]: {found:x?}, not {want:x?}");
            }
        }
    }
}

#[test]
fn integers_divided_by_zero_give_zero() {
    let mut c = Case::new();
    let x = c.input(I32, &[8]);
    let zero = c.b.splat(I32, dims(&[8]), 0.0);
    let q = c.b.binary(BinaryOp::Div, x, zero);
    let r = c.b.binary(BinaryOp::Rem, x, zero);
    c.output(q);
    c.output(r);
    let mut kernel = c.b.finish();
    let (result, memory) = launch(&mut kernel, &c.args, [1; 3], false);
    result.expect("runs");
    for m in &memory[1..] {
        assert!(m[GUARD..m.len() - GUARD].iter().all(|&b| b == 0));
    }
}

#[test]
fn casts_between_all_dtypes() {
    for from in DType::ALL {
        let mut c = Case::new();
        let mut values = c.random.hostile(from, 512);
        values.extend(c.random.values(from, 256));
        values.extend(f32_sweep(&mut c.random).iter().take(256).map(|b| Bits::from_f64(from, b.to_f64(F32))));
        let x = c.input_bits(from, &[1024], &values);
        for to in DType::ALL {
            if from != to {
                let y = c.b.cast(x, to);
                c.output(y);
            }
        }
        c.check();
    }
}

#[test]
fn bitcasts_of_equal_sizes() {
    for from in DType::ALL.into_iter().filter(|&d| d != DType::Bool) {
        let mut c = Case::new();
        let values = c.random.values(from, 256);
        let x = c.input_bits(from, &[256], &values);
        for to in DType::ALL.into_iter().filter(|&d| d != DType::Bool && d != from && d.size() == from.size()) {
            let y = c.b.bitcast(x, to);
            c.output(y);
        }
        c.check();
    }
}

#[test]
fn a_long_fused_chain_rounds_after_every_operation() {
    for dtype in [BF16, DType::F16, F32] {
        let mut c = Case::new();
        let (x, y) = (c.input(dtype, &[16, 64]), c.input(dtype, &[16, 64]));
        let mut z = x;
        for i in 0..40 {
            z = c.b.binary(if i % 2 == 0 { BinaryOp::Mul } else { BinaryOp::Add }, z, y);
        }
        c.output(z);
        c.check();
    }
}
