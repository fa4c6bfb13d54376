//! What every elementwise operation computes, on the bits of one element.
//!
//! The interpreter evaluates through this file and the passes fold constants through it, so that folding cannot change
//! what a kernel computes. The compiled back ends are tested against it.
//!
//! Invariants:
//! - Bits are canonical: zero-extended to 64 bits (an i8 of -1 is `0xff`), bool is 0 or 1. Every function returns
//!   canonical bits; integers are also read when sign-extended.
//! - f16 and bf16 compute in f32 and round once, at the end. Sums, products, quotients and square roots are thereby
//!   correctly rounded (f32 has more than twice the digits plus two).
//! - Transcendental functions are computed in f64 from the f32 value and rounded to f32, then to the element type; a
//!   back end's own approximation is judged against that.
//! - Which dtypes an operation accepts is said by `accepts` (see `ir::names`) and enforced by the verifier; outside of
//!   that these functions panic.

use crate::ir::{AtomicOp, BinaryOp, Bits, CmpOp, Combine, DType, UnaryOp};
use half::{bf16, f16};

/// The value of a float element; exact for every float dtype.
#[inline]
pub fn to_f32(dtype: DType, x: Bits) -> f32 {
    match dtype {
        DType::F32 => f32::from_bits(x.0 as u32),
        DType::BF16 => bf16::from_bits(x.0 as u16).to_f32(),
        DType::F16 => f16::from_bits(x.0 as u16).to_f32(),
        d => x.to_f64(d) as f32,
    }
}

/// `value` rounded to a float dtype.
#[inline]
pub fn from_f32(dtype: DType, value: f32) -> Bits {
    match dtype {
        DType::F32 => Bits(value.to_bits() as u64),
        DType::BF16 => Bits(bf16::from_f32(value).to_bits() as u64),
        DType::F16 => Bits(f16::from_f32(value).to_bits() as u64),
        d => Bits::from_f64(d, value as f64),
    }
}

/// All ones in the width of `dtype`.
fn mask(dtype: DType) -> u64 {
    match dtype {
        DType::Bool => 1,
        d => u64::MAX >> (64 - 8 * d.size()),
    }
}

fn unsupported(what: impl std::fmt::Debug, dtype: DType) -> ! {
    panic!("{what:?} is not defined on {dtype}; the verifier refuses such a kernel")
}

/// A function of one element.
pub fn unary(op: UnaryOp, dtype: DType, x: Bits) -> Bits {
    match op {
        // A sign is one bit in every float format, so these are exact and keep NaN's payload.
        UnaryOp::Neg if dtype.is_float() => Bits(x.0 ^ (1 << (8 * dtype.size() - 1))),
        UnaryOp::Abs if dtype.is_float() => Bits(x.0 & (mask(dtype) >> 1)),
        UnaryOp::Neg => Bits::from_i64(dtype, x.to_i64(dtype).wrapping_neg()),
        UnaryOp::Abs => Bits::from_i64(dtype, x.to_i64(dtype).wrapping_abs()),
        UnaryOp::Not if !dtype.is_float() => Bits(!x.0 & mask(dtype)),
        _ if dtype.is_float() => from_f32(dtype, unary_f32(op, to_f32(dtype, x))),
        _ => unsupported(op, dtype),
    }
}

fn unary_f32(op: UnaryOp, x: f32) -> f32 {
    let wide = x as f64;
    let rounded = match op {
        UnaryOp::Sqrt => return x.sqrt(),
        UnaryOp::Recip => return 1.0 / x,
        UnaryOp::Floor => return x.floor(),
        UnaryOp::Ceil => return x.ceil(),
        UnaryOp::Round => return x.round_ties_even(),
        UnaryOp::Trunc => return x.trunc(),
        UnaryOp::Exp => wide.exp(),
        // The least normal f32 is 2^-126; no f32 is so close to -126 that its power would round to it.
        UnaryOp::Exp2 if x < -126.0 => 0.0,
        UnaryOp::Exp2 => wide.exp2(),
        UnaryOp::Log => wide.ln(),
        UnaryOp::Log2 => wide.log2(),
        UnaryOp::Log2Approx if x.is_subnormal() => f64::NEG_INFINITY,
        UnaryOp::Log2Approx => wide.log2(),
        UnaryOp::Rsqrt => 1.0 / wide.sqrt(),
        UnaryOp::Sin => wide.sin(),
        UnaryOp::Cos => wide.cos(),
        UnaryOp::Tanh => wide.tanh(),
        UnaryOp::Sigmoid => sigmoid(wide),
        UnaryOp::Silu => wide * sigmoid(wide),
        UnaryOp::Softplus => wide.max(0.0) + (-wide.abs()).exp().ln_1p(),
        UnaryOp::Erf => erf(wide),
        UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Not => unsupported(op, DType::F32),
    };
    rounded as f32
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The error function, to about 1e-14 relative: 2/√π · e^(-x²) · Σ 2ⁿ x^(2n+1) / (1·3·…·(2n+1)). All terms have the sign
/// of x, so nothing cancels. Source: Abramowitz and Stegun, 7.1.6. Beyond 6 the result is ±1 in f64.
fn erf(x: f64) -> f64 {
    if x.is_nan() || x.abs() > 6.0 {
        return if x.is_nan() { x } else { x.signum() };
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

/// A function of two elements; `None` for an integer divided by zero, which is an error in the interpreter.
pub fn binary(op: BinaryOp, dtype: DType, x: Bits, y: Bits) -> Option<Bits> {
    if dtype.is_float() {
        let (a, b) = (to_f32(dtype, x), to_f32(dtype, y));
        return Some(from_f32(dtype, binary_f32(op, dtype, a, b)));
    }
    Some(match op {
        BinaryOp::And => Bits(x.0 & y.0 & mask(dtype)),
        BinaryOp::Or => Bits((x.0 | y.0) & mask(dtype)),
        BinaryOp::Xor => Bits((x.0 ^ y.0) & mask(dtype)),
        _ if dtype == DType::Bool => unsupported(op, dtype),
        BinaryOp::Add => Bits(x.0.wrapping_add(y.0) & mask(dtype)),
        BinaryOp::Sub => Bits(x.0.wrapping_sub(y.0) & mask(dtype)),
        BinaryOp::Mul => Bits(x.0.wrapping_mul(y.0) & mask(dtype)),
        BinaryOp::Shl => Bits((x.0 << shift_amount(dtype, y)) & mask(dtype)),
        _ if dtype.is_signed() => {
            let (a, b) = (x.to_i64(dtype), y.to_i64(dtype));
            Bits::from_i64(
                dtype,
                match op {
                    // Wrapping: MIN / -1 of i64; a narrower quotient wraps when it is cut to its width.
                    BinaryOp::Div if b != 0 => a.wrapping_div(b),
                    BinaryOp::Rem if b != 0 => a.wrapping_rem(b),
                    BinaryOp::Div | BinaryOp::Rem => return None,
                    BinaryOp::Min => a.min(b),
                    BinaryOp::Max => a.max(b),
                    _ => a >> shift_amount(dtype, y),
                },
            )
        }
        _ => {
            let (a, b) = (x.0 & mask(dtype), y.0 & mask(dtype));
            Bits(match op {
                BinaryOp::Div => a.checked_div(b)?,
                BinaryOp::Rem => a.checked_rem(b)?,
                BinaryOp::Min => a.min(b),
                BinaryOp::Max => a.max(b),
                _ => a >> shift_amount(dtype, y),
            })
        }
    })
}

fn shift_amount(dtype: DType, y: Bits) -> u64 {
    y.0 & (8 * dtype.size() as u64 - 1)
}

#[inline]
fn binary_f32(op: BinaryOp, dtype: DType, a: f32, b: f32) -> f32 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Rem => a % b,
        BinaryOp::Min => a.min(b),
        BinaryOp::Max => a.max(b),
        _ => unsupported(op, dtype),
    }
}

/// x·a + b of floats: the product exact, the sum rounded to f32 and then to the element type.
pub fn fma(dtype: DType, x: Bits, a: Bits, b: Bits) -> Bits {
    from_f32(dtype, to_f32(dtype, x).mul_add(to_f32(dtype, a), to_f32(dtype, b)))
}

/// A comparison. Floats compare by value (ordered; `Ne` is true on NaN), bool as 0 and 1.
pub fn compare(op: CmpOp, dtype: DType, x: Bits, y: Bits) -> bool {
    if dtype.is_float() {
        holds(op, to_f32(dtype, x).partial_cmp(&to_f32(dtype, y)))
    } else if dtype.is_signed() {
        holds(op, Some(x.to_i64(dtype).cmp(&y.to_i64(dtype))))
    } else {
        holds(op, Some((x.0 & mask(dtype)).cmp(&(y.0 & mask(dtype)))))
    }
}

fn holds(op: CmpOp, order: Option<std::cmp::Ordering>) -> bool {
    match op {
        CmpOp::Eq => order.is_some_and(|o| o.is_eq()),
        CmpOp::Ne => !order.is_some_and(|o| o.is_eq()),
        CmpOp::Lt => order.is_some_and(|o| o.is_lt()),
        CmpOp::Le => order.is_some_and(|o| o.is_le()),
        CmpOp::Gt => order.is_some_and(|o| o.is_gt()),
        CmpOp::Ge => order.is_some_and(|o| o.is_ge()),
    }
}

/// A value in another dtype, as `OpKind::Cast` says. An integer becomes a float narrower than f32 through f32.
pub fn cast(from: DType, to: DType, x: Bits) -> Bits {
    if from.is_float() {
        // Saturation is to the range of `to`, which `from_f64` does; an f32 is exact in f64.
        return if to.is_float() { from_f32(to, to_f32(from, x)) } else { Bits::from_f64(to, to_f32(from, x) as f64) };
    }
    if to.is_float() {
        // Directly to f32: through f64 a 64-bit integer would round twice.
        let value = if from == DType::U64 { x.0 as f32 } else { x.to_i64(from) as f32 };
        return from_f32(to, value);
    }
    Bits::from_i64(to, x.to_i64(from))
}

/// One step of a named reduction or scan.
pub fn combine(op: Combine, dtype: DType, x: Bits, y: Bits) -> Bits {
    let op = match op {
        Combine::Sum => BinaryOp::Add,
        Combine::Prod => BinaryOp::Mul,
        Combine::Max => BinaryOp::Max,
        Combine::Min => BinaryOp::Min,
        Combine::And => BinaryOp::And,
        Combine::Or => BinaryOp::Or,
        Combine::Xor => BinaryOp::Xor,
        Combine::Region => unsupported(op, dtype),
    };
    binary(op, dtype, x, y).expect("only a division has no value")
}

/// What a read-modify-write operation leaves in memory.
pub fn atomic(op: AtomicOp, dtype: DType, old: Bits, value: Bits) -> Bits {
    let op = match op {
        AtomicOp::Add => BinaryOp::Add,
        AtomicOp::Min => BinaryOp::Min,
        AtomicOp::Max => BinaryOp::Max,
        AtomicOp::And => BinaryOp::And,
        AtomicOp::Or => BinaryOp::Or,
        AtomicOp::Xor => BinaryOp::Xor,
        AtomicOp::Exchange => return Bits(value.0 & mask(dtype)),
    };
    binary(op, dtype, old, value).expect("only a division has no value")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn i(d: DType, v: i64) -> Bits {
        Bits::from_i64(d, v)
    }

    #[test]
    fn integers_wrap_and_division_by_zero_has_no_value() {
        let d = DType::I8;
        assert_eq!(binary(BinaryOp::Add, d, i(d, 127), i(d, 1)), Some(i(d, -128)));
        assert_eq!(binary(BinaryOp::Div, d, i(d, -128), i(d, -1)), Some(i(d, -128)));
        assert_eq!(binary(BinaryOp::Div, d, i(d, -7), i(d, 2)), Some(i(d, -3)));
        assert_eq!(binary(BinaryOp::Rem, d, i(d, -7), i(d, 2)), Some(i(d, -1)));
        assert_eq!(binary(BinaryOp::Div, d, i(d, 1), i(d, 0)), None);
        assert_eq!(binary(BinaryOp::Rem, DType::U64, Bits(1), Bits(0)), None);
        assert_eq!(binary(BinaryOp::Div, DType::I64, Bits(1 << 63), i(DType::I64, -1)), Some(Bits(1 << 63)));
    }

    #[test]
    fn shifts_take_the_amount_modulo_the_width() {
        assert_eq!(binary(BinaryOp::Shr, DType::I16, i(DType::I16, -4), Bits(17)), Some(i(DType::I16, -2)));
        assert_eq!(binary(BinaryOp::Shr, DType::U16, Bits(0xfffc), Bits(17)), Some(Bits(0x7ffe)));
        assert_eq!(binary(BinaryOp::Shl, DType::U8, Bits(0x81), Bits(9)), Some(Bits(2)));
        assert_eq!(binary(BinaryOp::Shl, DType::U64, Bits(1), Bits(63)), Some(Bits(1 << 63)));
    }

    #[test]
    fn nan_loses_min_and_max_and_every_comparison_but_ne() {
        let d = DType::F32;
        let (nan, one) = (from_f32(d, f32::NAN), from_f32(d, 1.0));
        assert_eq!(binary(BinaryOp::Min, d, nan, one), Some(one));
        assert_eq!(binary(BinaryOp::Max, d, one, nan), Some(one));
        assert!(compare(CmpOp::Ne, d, nan, nan));
        for op in [CmpOp::Eq, CmpOp::Lt, CmpOp::Le, CmpOp::Gt, CmpOp::Ge] {
            assert!(!compare(op, d, nan, one), "{op:?}");
        }
        assert!(compare(CmpOp::Eq, d, from_f32(d, -0.0), from_f32(d, 0.0)));
    }

    #[test]
    fn casts_round_once_saturate_and_wrap() {
        // 2^24 + 1 + 2^-40: through f64 the tie would be decided twice.
        let big = (1i64 << 60) + (1 << 36) + 1;
        assert_eq!(to_f32(DType::F32, cast(DType::I64, DType::F32, i(DType::I64, big))), big as f32);
        assert_eq!(cast(DType::F32, DType::I8, from_f32(DType::F32, -1e9)), i(DType::I8, -128));
        assert_eq!(cast(DType::F32, DType::U16, from_f32(DType::F32, -1.0)), Bits(0));
        assert_eq!(cast(DType::F32, DType::I32, from_f32(DType::F32, f32::NAN)), Bits(0));
        assert_eq!(cast(DType::I32, DType::U8, i(DType::I32, -1)), Bits(255));
        assert_eq!(cast(DType::I8, DType::U64, i(DType::I8, -1)), Bits(u64::MAX));
        assert_eq!(cast(DType::F32, DType::Bool, from_f32(DType::F32, 0.5)), Bits(1));
        assert_eq!(cast(DType::U64, DType::F32, Bits(u64::MAX)), from_f32(DType::F32, 2f32.powi(64)));
        assert_eq!(cast(DType::F32, DType::F16, from_f32(DType::F32, 1e6)), Bits(0x7c00));
    }

    #[test]
    fn functions_in_their_limits() {
        let f = |op, x: f32| to_f32(DType::F32, unary(op, DType::F32, from_f32(DType::F32, x)));
        assert_eq!(f(UnaryOp::Sigmoid, -1e4), 0.0);
        assert_eq!(f(UnaryOp::Sigmoid, 1e4), 1.0);
        assert_eq!(f(UnaryOp::Softplus, 1e30), 1e30);
        assert_eq!(f(UnaryOp::Softplus, f32::NEG_INFINITY), 0.0);
        assert_eq!(f(UnaryOp::Softplus, f32::INFINITY), f32::INFINITY);
        assert!(f(UnaryOp::Softplus, f32::NAN).is_nan());
        assert_eq!(f(UnaryOp::Round, 2.5), 2.0);
        assert_eq!(f(UnaryOp::Erf, f32::INFINITY), 1.0);
        assert_eq!(f(UnaryOp::Erf, 0.0), 0.0);
        // Abramowitz and Stegun, table 7.1.
        for (x, y) in [(0.5, 0.520_5), (1.0, 0.842_700_8), (2.0, 0.995_322_3), (3.5, 0.999_999_3)] {
            assert!((f(UnaryOp::Erf, x) - y).abs() < 1e-6, "erf({x})");
            assert_eq!(f(UnaryOp::Erf, -x), -f(UnaryOp::Erf, x));
        }
        assert_eq!(unary(UnaryOp::Neg, DType::F16, Bits(0x3c00)), Bits(0xbc00));
        assert_eq!(unary(UnaryOp::Abs, DType::I8, Bits(0x80)), Bits(0x80));
        assert_eq!(unary(UnaryOp::Not, DType::Bool, Bits(1)), Bits(0));
        assert_eq!(unary(UnaryOp::Not, DType::U16, Bits(1)), Bits(0xfffe));
    }
}
