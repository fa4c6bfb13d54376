//! Floats narrower than f32, in f32 registers: rounding to them, and their encodings.
//!
//! A value of such a type is kept as the f32 that equals it. Loading decodes, storing encodes (exactly, since every
//! result has been rounded), and both are shifts and selections that work on four lanes at once.

use super::emit::{Emitter, clif_type};
use crate::ir::DType;
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{InstBuilder, Value, types};

/// An IEEE-like format: exponent and mantissa bits.
#[derive(Clone, Copy)]
struct Format {
    exponent: u32,
    mantissa: u32,
    /// E4M3 has no infinity, and one NaN.
    finite_only: bool,
}

impl Format {
    fn of(dtype: DType) -> Format {
        let (exponent, mantissa) = match dtype {
            DType::F8E4M3 => (4, 3),
            DType::F8E5M2 => (5, 2),
            DType::F16 => (5, 10),
            d => unreachable!("{d} has no soft format"),
        };
        Format { exponent, mantissa, finite_only: dtype == DType::F8E4M3 }
    }

    fn bias(&self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    /// Mantissa bits of f32 beyond this format's.
    fn dropped(&self) -> i64 {
        23 - self.mantissa as i64
    }

    /// What to add to this format's exponent and mantissa, in place of f32's, to have f32's exponent.
    fn rebias(&self) -> i32 {
        (127 - self.bias()) << 23
    }

    fn smallest_normal(&self) -> f32 {
        2f32.powi(1 - self.bias())
    }

    /// The distance between subnormals.
    fn unit(&self) -> f32 {
        2f32.powi(1 - self.bias() - self.mantissa as i32)
    }

    fn largest(&self) -> f32 {
        if self.finite_only { 448.0 } else { (2.0 - 0.5f32.powi(self.mantissa as i32)) * 2f32.powi(self.bias()) }
    }

    /// The code of infinity, or E4M3's NaN.
    fn special(&self) -> i32 {
        if self.finite_only { 0x7f } else { ((1 << self.exponent) - 1) << self.mantissa }
    }

    fn nan(&self) -> i32 {
        match self.mantissa {
            10 => 0x7e00,
            _ => 0x7f,
        }
    }
}

const NAN: i32 = 0x7fc0_0000;
const INFINITY: i32 = 0x7f80_0000;
const SIGN: i32 = i32::MIN;

impl Emitter<'_, '_> {
    /// Rounds an f32 to nearest even in `dtype`; the result is an f32.
    pub(super) fn round_float(&mut self, dtype: DType, x: Value, width: usize) -> Value {
        match dtype {
            DType::F32 => x,
            DType::BF16 => self.round_bf16(x, width),
            d => self.round_soft(Format::of(d), x, width),
        }
    }

    fn round_bf16(&mut self, x: Value, width: usize) -> Value {
        let bits = self.as_int(x, width);
        let odd = self.b.ins().ushr_imm(bits, 16);
        let one = self.i32(1, width);
        let odd = self.b.ins().band(odd, one);
        let half = self.i32(0x7fff, width);
        let rounded = self.b.ins().iadd(bits, half);
        let rounded = self.b.ins().iadd(rounded, odd);
        // Adding to a NaN could carry into the sign: it stays, quiet.
        let quiet = self.i32(0x0040_0000, width);
        let quiet = self.b.ins().bor(bits, quiet);
        let nan = self.b.ins().fcmp(FloatCC::Unordered, x, x);
        let y = self.choose(nan, quiet, rounded);
        let top = self.i32(0xffff_0000u32 as i32, width);
        let y = self.b.ins().band(y, top);
        self.as_float(y, width)
    }

    fn round_soft(&mut self, f: Format, x: Value, width: usize) -> Value {
        let bits = self.as_int(x, width);
        let sign = self.i32(SIGN, width);
        let sign = self.b.ins().band(bits, sign);
        let a = self.b.ins().bxor(bits, sign);
        let magnitude = self.as_float(a, width);
        // Normal: add half a unit less one, and one if odd; then clear what is dropped.
        let odd = self.b.ins().ushr_imm(a, f.dropped());
        let one = self.i32(1, width);
        let odd = self.b.ins().band(odd, one);
        let half = self.i32((1 << (f.dropped() - 1)) - 1, width);
        let normal = self.b.ins().iadd(a, half);
        let normal = self.b.ins().iadd(normal, odd);
        let keep = self.i32(-(1 << f.dropped()), width);
        let normal = self.b.ins().band(normal, keep);
        // Subnormal: in f32, adding 2^23 units rounds to a whole number of units.
        let shift = self.f32(f.unit() * 8_388_608.0, width);
        let subnormal = self.b.ins().fadd(magnitude, shift);
        let subnormal = self.b.ins().fsub(subnormal, shift);
        let subnormal = self.as_int(subnormal, width);
        let limit = self.f32(f.smallest_normal(), width);
        let small = self.b.ins().fcmp(FloatCC::LessThan, magnitude, limit);
        let y = self.choose(small, subnormal, normal);
        // Too large: as integers, positive floats have their order.
        let largest = self.i32(f.largest().to_bits() as i32, width);
        let over = self.b.ins().icmp(IntCC::SignedGreaterThan, y, largest);
        let most = if f.finite_only { largest } else { self.i32(INFINITY, width) };
        let y = self.choose(over, most, y);
        let nan = self.b.ins().fcmp(FloatCC::Unordered, x, x);
        let not_a_number = self.i32(NAN, width);
        let y = self.choose(nan, not_a_number, y);
        let y = self.b.ins().bor(y, sign);
        self.as_float(y, width)
    }

    /// The bits of an element of up to 32 bits, in an `i32`; what is above them is arbitrary.
    pub(super) fn encode(&mut self, dtype: DType, x: Value, width: usize) -> Value {
        match dtype {
            DType::Bool if width == 1 => self.b.ins().uextend(types::I32, x),
            DType::Bool => self.b.ins().ineg(x),
            DType::F32 => self.as_int(x, width),
            DType::BF16 => {
                let bits = self.as_int(x, width);
                self.b.ins().ushr_imm(bits, 16)
            }
            d if d.is_float() => self.encode_soft(Format::of(d), x, width),
            _ => x,
        }
    }

    fn encode_soft(&mut self, f: Format, x: Value, width: usize) -> Value {
        let bits = self.as_int(x, width);
        let magnitude_mask = self.i32(i32::MAX, width);
        let a = self.b.ins().band(bits, magnitude_mask);
        let magnitude = self.as_float(a, width);
        let rebias = self.i32(f.rebias(), width);
        let normal = self.b.ins().isub(a, rebias);
        let normal = self.b.ins().ushr_imm(normal, f.dropped());
        // The number of units is in the low bits of the sum with 2^23 units.
        let shift = self.f32(f.unit() * 8_388_608.0, width);
        let subnormal = self.b.ins().fadd(magnitude, shift);
        let subnormal = self.as_int(subnormal, width);
        let low = self.i32((1 << 23) - 1, width);
        let subnormal = self.b.ins().band(subnormal, low);
        let limit = self.f32(f.smallest_normal(), width);
        let small = self.b.ins().fcmp(FloatCC::LessThan, magnitude, limit);
        let mut y = self.choose(small, subnormal, normal);
        let infinity = self.i32(INFINITY, width);
        if !f.finite_only {
            let infinite = self.b.ins().icmp(IntCC::Equal, a, infinity);
            let code = self.i32(f.special(), width);
            y = self.choose(infinite, code, y);
        }
        let nan = self.b.ins().icmp(IntCC::SignedGreaterThan, a, infinity);
        let code = self.i32(f.nan(), width);
        y = self.choose(nan, code, y);
        let sign = self.b.ins().bxor(bits, a);
        let sign = self.b.ins().ushr_imm(sign, 31 - (f.exponent + f.mantissa) as i64);
        self.b.ins().bor(y, sign)
    }

    /// The inverse of [`Self::encode`], from bits that are zero-extended (for integers: extended by their sign).
    pub(super) fn decode(&mut self, dtype: DType, raw: Value, width: usize) -> Value {
        match dtype {
            DType::Bool if width == 1 => self.b.ins().icmp_imm(IntCC::NotEqual, raw, 0),
            DType::Bool => {
                let zero = self.i32(0, width);
                self.b.ins().icmp(IntCC::NotEqual, raw, zero)
            }
            DType::F32 => self.as_float(raw, width),
            DType::BF16 => {
                let bits = self.b.ins().ishl_imm(raw, 16);
                self.as_float(bits, width)
            }
            d if d.is_float() => self.decode_soft(Format::of(d), raw, width),
            _ => raw,
        }
    }

    fn decode_soft(&mut self, f: Format, raw: Value, width: usize) -> Value {
        let size = (f.exponent + f.mantissa) as i64;
        let mask = self.i32((1 << size) - 1, width);
        let code = self.b.ins().band(raw, mask);
        let sign = self.b.ins().ushr_imm(raw, size);
        let sign = self.b.ins().ishl_imm(sign, 31);
        let rebias = self.i32(f.rebias(), width);
        let shifted = self.b.ins().ishl_imm(code, f.dropped());
        let normal = self.b.ins().iadd(shifted, rebias);
        let units = self.b.ins().fcvt_from_sint(clif_type(DType::F32, width), code);
        let unit = self.f32(f.unit(), width);
        let subnormal = self.b.ins().fmul(units, unit);
        let subnormal = self.as_int(subnormal, width);
        let first_normal = self.i32(1 << f.mantissa, width);
        let small = self.b.ins().icmp(IntCC::SignedLessThan, code, first_normal);
        let mut y = self.choose(small, subnormal, normal);
        let special = self.i32(f.special(), width);
        let is_special = self.b.ins().icmp(IntCC::SignedGreaterThanOrEqual, code, special);
        let value = if f.finite_only {
            self.i32(NAN, width)
        } else {
            // All exponent bits set: infinity, or NaN with its payload.
            let ones = self.i32(INFINITY, width);
            self.b.ins().bor(shifted, ones)
        };
        y = self.choose(is_special, value, y);
        let y = self.b.ins().bor(y, sign);
        self.as_float(y, width)
    }
}
