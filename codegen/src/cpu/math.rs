//! Exponentials, logarithms and what is made of them, for one f32 or four.
//!
//! Each is a reduction of the argument to a small interval and a polynomial there, within about 2 ulp of the exact
//! value over the whole range, subnormal results included (but for `exp2`, which has none). The polynomials are those of Moshier's Cephes library
//! (single precision; netlib.org/cephes).

use super::emit::{Emitter, clif_type};
use crate::ir::{DType, UnaryOp};
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Value};

/// ln 2 in two parts; the first has few bits, so that its product with an exponent is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// e^r = 1 + r + r²·p(r) for |r| <= ln(2)/2, highest power first.
const EXP: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];
/// 2^r = 1 + r·p(r) for |r| <= 1/2.
const EXP2: [f32; 6] = [1.535_336_2e-4, 1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, 6.931_472e-1];
/// ln(1 + r) = r - r²/2 + r³·p(r) for √½ <= 1 + r < √2.
const LOG: [f32; 9] = [
    7.037_683_6e-2,
    -1.151_461e-1,
    1.167_699_8e-1,
    -1.242_014_1e-1,
    1.424_932_3e-1,
    -1.666_805_7e-1,
    2.000_071_4e-1,
    -2.499_999_4e-1,
    3.333_333e-1,
];
/// tanh r = r + r³·p(r²) for |r| < 0.625.
const TANH: [f32; 5] = [-5.704_988_7e-3, 2.063_908_8e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328_3e-1];

impl Emitter<'_, '_> {
    pub(super) fn transcendental(&mut self, op: UnaryOp, x: Value, width: usize) -> Value {
        match op {
            UnaryOp::Exp => self.exp(x, width),
            UnaryOp::Exp2 => self.exp2(x, width),
            UnaryOp::Log => self.log(x, width, false),
            UnaryOp::Log2 => self.log(x, width, true),
            UnaryOp::Log2Approx => {
                // Subnormal numbers count as 0.
                let a = self.b.ins().fabs(x);
                let smallest = self.f32(f32::MIN_POSITIVE, width);
                let tiny = self.b.ins().fcmp(FloatCC::LessThan, a, smallest);
                let zero = self.f32(0.0, width);
                let x = self.choose(tiny, zero, x);
                self.log(x, width, true)
            }
            UnaryOp::Tanh => self.tanh(x, width),
            UnaryOp::Sigmoid => self.sigmoid(x, width),
            UnaryOp::Silu => {
                let s = self.sigmoid(x, width);
                self.b.ins().fmul(x, s)
            }
            UnaryOp::Softplus => self.softplus(x, width),
            op => unreachable!("{op:?} is not transcendental"),
        }
    }

    fn polynomial(&mut self, coefficients: &[f32], x: Value, width: usize) -> Value {
        let mut y = self.f32(coefficients[0], width);
        for &c in &coefficients[1..] {
            let c = self.f32(c, width);
            y = self.mad(y, x, c);
        }
        y
    }

    /// x rounded to an integer n, as a float and as an integer; |x| < 2^22. Adding 1.5 · 2^23 leaves no bits below 1, and
    /// the low bits of the sum count from there: cheaper than rounding and conversion, which must mind every float.
    fn round_to_int(&mut self, x: Value, factor: Option<f32>, width: usize) -> (Value, Value) {
        const SHIFT: f32 = 12_582_912.0;
        let shift = self.f32(SHIFT, width);
        let sum = match factor {
            Some(f) => {
                let f = self.f32(f, width);
                self.mad(x, f, shift)
            }
            None => self.b.ins().fadd(x, shift),
        };
        let n = self.b.ins().fsub(sum, shift);
        let bits = self.as_int(sum, width);
        let zero = self.i32(SHIFT.to_bits() as i32, width);
        (n, self.b.ins().isub(bits, zero))
    }

    /// y · 2^n for -300 <= n <= 300, rounded once. Two factors, because 2^n itself may overflow or be subnormal.
    fn scale(&mut self, y: Value, n: Value, width: usize) -> Value {
        let half = self.b.ins().sshr_imm(n, 1);
        let rest = self.b.ins().isub(n, half);
        let mut y = y;
        for part in [half, rest] {
            let bias = self.i32(127, width);
            let biased = self.b.ins().iadd(part, bias);
            let bits = self.b.ins().ishl_imm(biased, 23);
            let factor = self.as_float(bits, width);
            y = self.b.ins().fmul(y, factor);
        }
        y
    }

    fn clamp(&mut self, x: Value, low: f32, high: f32, width: usize) -> Value {
        // Comparisons with NaN are false, so that NaN passes through both.
        let low = self.f32(low, width);
        let below = self.b.ins().fcmp(FloatCC::LessThan, x, low);
        let x = self.choose(below, low, x);
        let high = self.f32(high, width);
        let above = self.b.ins().fcmp(FloatCC::GreaterThan, x, high);
        self.choose(above, high, x)
    }

    fn exp(&mut self, x: Value, width: usize) -> Value {
        // Beyond these the result is 0 or infinity, and stays so.
        let x = self.clamp(x, -110.0, 90.0, width);
        let (n, power) = self.round_to_int(x, Some(std::f32::consts::LOG2_E), width);
        let high = self.f32(-LN2_HIGH, width);
        let r = self.mad(n, high, x);
        let low = self.f32(-LN2_LOW, width);
        let r = self.mad(n, low, r);
        let p = self.polynomial(&EXP, r, width);
        let square = self.b.ins().fmul(r, r);
        let y = self.mad(p, square, r);
        let one = self.f32(1.0, width);
        let y = self.b.ins().fadd(y, one);
        self.scale(y, power, width)
    }

    fn exp2(&mut self, x: Value, width: usize) -> Value {
        // Results that are not normal are 0, whatever is computed for them; NaN is not less.
        let least = self.f32(-126.0, width);
        let tiny = self.b.ins().fcmp(FloatCC::LessThan, x, least);
        let high = self.f32(130.0, width);
        let above = self.b.ins().fcmp(FloatCC::GreaterThan, x, high);
        let x = self.choose(above, high, x);
        let (n, power) = self.round_to_int(x, None, width);
        let r = self.b.ins().fsub(x, n);
        let p = self.polynomial(&EXP2, r, width);
        let one = self.f32(1.0, width);
        let y = self.mad(p, r, one);
        let y = self.scale(y, power, width);
        let zero = self.f32(0.0, width);
        self.choose(tiny, zero, y)
    }

    /// The natural logarithm, or that to base 2.
    fn log(&mut self, x: Value, width: usize, base2: bool) -> Value {
        // Subnormals are made normal.
        let smallest = self.f32(f32::MIN_POSITIVE, width);
        let subnormal = self.b.ins().fcmp(FloatCC::LessThan, x, smallest);
        let up = self.f32(8_388_608.0, width);
        let scaled = self.b.ins().fmul(x, up);
        let a = self.choose(subnormal, scaled, x);
        let down = self.f32(-23.0, width);
        let zero = self.f32(0.0, width);
        let correction = self.choose(subnormal, down, zero);
        // a = m · 2^e with √½ <= m < √2: counting bits from those of √½ splits there.
        let bits = self.as_int(a, width);
        let root_half = self.i32(std::f32::consts::FRAC_1_SQRT_2.to_bits() as i32, width);
        let above = self.b.ins().isub(bits, root_half);
        let e = self.b.ins().sshr_imm(above, 23);
        let exponent = self.b.ins().ishl_imm(e, 23);
        let m = self.b.ins().isub(bits, exponent);
        let m = self.as_float(m, width);
        let e = self.b.ins().fcvt_from_sint(clif_type(DType::F32, width), e);
        let e = self.b.ins().fadd(e, correction);
        let one = self.f32(1.0, width);
        let r = self.b.ins().fsub(m, one);
        let square = self.b.ins().fmul(r, r);
        let p = self.polynomial(&LOG, r, width);
        let cube = self.b.ins().fmul(r, square);
        let y = self.b.ins().fmul(cube, p);
        let minus_half = self.f32(-0.5, width);
        let y = if base2 {
            // ln(m)·log2(e) + e, with log2(e) = 1 + 0.4427 so that r itself is not rounded.
            let y = self.mad(minus_half, square, y);
            let excess = self.f32(std::f32::consts::LOG2_E - 1.0, width);
            let sum = self.b.ins().fmul(y, excess);
            let sum = self.mad(r, excess, sum);
            let sum = self.b.ins().fadd(sum, y);
            let sum = self.b.ins().fadd(sum, r);
            self.b.ins().fadd(sum, e)
        } else {
            let low = self.f32(LN2_LOW, width);
            let y = self.mad(e, low, y);
            let y = self.mad(minus_half, square, y);
            let y = self.b.ins().fadd(r, y);
            let high = self.f32(LN2_HIGH, width);
            self.mad(e, high, y)
        };
        // 0 → -inf, negative or NaN → NaN, inf → inf.
        let infinity = self.f32(f32::INFINITY, width);
        let is_infinite = self.b.ins().fcmp(FloatCC::Equal, x, infinity);
        let y = self.choose(is_infinite, infinity, y);
        let minus_infinity = self.f32(f32::NEG_INFINITY, width);
        let is_zero = self.b.ins().fcmp(FloatCC::Equal, x, zero);
        let y = self.choose(is_zero, minus_infinity, y);
        let invalid = self.b.ins().fcmp(FloatCC::UnorderedOrLessThan, x, zero);
        let nan = self.f32(f32::NAN, width);
        self.choose(invalid, nan, y)
    }

    fn tanh(&mut self, x: Value, width: usize) -> Value {
        let square = self.b.ins().fmul(x, x);
        let p = self.polynomial(&TANH, square, width);
        let p = self.b.ins().fmul(p, square);
        let near = self.mad(p, x, x);
        // Otherwise 1 - 2 / (e^2|x| + 1), with the sign of x.
        let a = self.b.ins().fabs(x);
        let twice = self.b.ins().fadd(a, a);
        let e = self.exp(twice, width);
        let one = self.f32(1.0, width);
        let denominator = self.b.ins().fadd(e, one);
        let two = self.f32(2.0, width);
        let quotient = self.b.ins().fdiv(two, denominator);
        let far = self.b.ins().fsub(one, quotient);
        let far = self.copy_sign(far, x, width);
        let limit = self.f32(0.625, width);
        let is_near = self.b.ins().fcmp(FloatCC::LessThan, a, limit);
        self.choose(is_near, near, far)
    }

    fn copy_sign(&mut self, magnitude: Value, sign: Value, width: usize) -> Value {
        let (m, s) = (self.as_int(magnitude, width), self.as_int(sign, width));
        let bit = self.i32(i32::MIN, width);
        let s = self.b.ins().band(s, bit);
        let y = self.b.ins().bor(m, s);
        self.as_float(y, width)
    }

    /// With e = e^-|x|, which cannot overflow: 1 / (1 + e), or e / (1 + e) for negative x.
    fn sigmoid(&mut self, x: Value, width: usize) -> Value {
        let a = self.b.ins().fabs(x);
        let minus = self.b.ins().fneg(a);
        let e = self.exp(minus, width);
        let one = self.f32(1.0, width);
        let zero = self.f32(0.0, width);
        let negative = self.b.ins().fcmp(FloatCC::LessThan, x, zero);
        let numerator = self.choose(negative, e, one);
        let denominator = self.b.ins().fadd(one, e);
        self.b.ins().fdiv(numerator, denominator)
    }

    /// max(x, 0) + ln(1 + e) with e = e^-|x|. With u the rounded 1 + e, ln(1 + e) = ln u + (e - (u - 1)) / u.
    fn softplus(&mut self, x: Value, width: usize) -> Value {
        let a = self.b.ins().fabs(x);
        let minus = self.b.ins().fneg(a);
        let e = self.exp(minus, width);
        let one = self.f32(1.0, width);
        let u = self.b.ins().fadd(one, e);
        let log = self.log(u, width, false);
        let kept = self.b.ins().fsub(u, one);
        let lost = self.b.ins().fsub(e, kept);
        let correction = self.b.ins().fdiv(lost, u);
        let log = self.b.ins().fadd(log, correction);
        let zero = self.f32(0.0, width);
        // NaN compares false and stays.
        let negative = self.b.ins().fcmp(FloatCC::LessThan, x, zero);
        let positive = self.choose(negative, zero, x);
        self.b.ins().fadd(positive, log)
    }
}
