//! Elements as bits: the one place that encodes and decodes every dtype.

use super::{Bits, DType};
use half::{bf16, f16};

impl Bits {
    /// `value` in `dtype`: floats rounded to nearest even (through f32, as every back end computes), integers
    /// truncated and saturated (NaN to 0), bool `!= 0`.
    pub fn from_f64(dtype: DType, value: f64) -> Bits {
        Bits(match dtype {
            DType::Bool => (value != 0.0) as u64,
            DType::I8 => value as i8 as u8 as u64,
            DType::I16 => value as i16 as u16 as u64,
            DType::I32 => value as i32 as u32 as u64,
            DType::I64 => value as i64 as u64,
            DType::U8 => value as u8 as u64,
            DType::U16 => value as u16 as u64,
            DType::U32 => value as u32 as u64,
            DType::U64 => value as u64,
            DType::F8E4M3 => encode_f8(value as f32, 4, 3) as u64,
            DType::F8E5M2 => encode_f8(value as f32, 5, 2) as u64,
            DType::F16 => f16::from_f32(value as f32).to_bits() as u64,
            DType::BF16 => bf16::from_f32(value as f32).to_bits() as u64,
            DType::F32 => (value as f32).to_bits() as u64,
        })
    }

    /// `value` in `dtype`: integers wrapped, floats rounded, bool `!= 0`.
    pub fn from_i64(dtype: DType, value: i64) -> Bits {
        Bits(match dtype {
            DType::Bool => (value != 0) as u64,
            d if d.is_float() => return Bits::from_f64(d, value as f64),
            d if d.size() == 8 => value as u64,
            d => value as u64 & ((1 << (8 * d.size())) - 1),
        })
    }

    /// The value, exactly (integers beyond 2^53 rounded).
    pub fn to_f64(self, dtype: DType) -> f64 {
        match dtype {
            DType::F8E4M3 => decode_f8(self.0 as u8, 4, 3) as f64,
            DType::F8E5M2 => decode_f8(self.0 as u8, 5, 2) as f64,
            DType::F16 => f16::from_bits(self.0 as u16).to_f64(),
            DType::BF16 => bf16::from_bits(self.0 as u16).to_f64(),
            DType::F32 => f32::from_bits(self.0 as u32) as f64,
            DType::U64 => self.0 as f64,
            d => self.to_i64(d) as f64,
        }
    }

    /// An integer's or bool's value (u64 as its two's complement); floats truncated.
    pub fn to_i64(self, dtype: DType) -> i64 {
        match dtype {
            DType::Bool => (self.0 != 0) as i64,
            DType::I8 => self.0 as u8 as i8 as i64,
            DType::I16 => self.0 as u16 as i16 as i64,
            DType::I32 => self.0 as u32 as i32 as i64,
            DType::U8 => self.0 as u8 as i64,
            DType::U16 => self.0 as u16 as i64,
            DType::U32 => self.0 as u32 as i64,
            DType::I64 | DType::U64 => self.0 as i64,
            d => self.to_f64(d) as i64,
        }
    }
}

/// Rounds to an 8-bit float, nearest even. E4M3 has no infinity and saturates to ±448, NaN is 0x7f; E5M2 is IEEE-like.
/// Source: "FP8 formats for deep learning", arXiv 2209.05433.
pub fn encode_f8(value: f32, exponent_bits: u32, mantissa_bits: u32) -> u8 {
    let e4m3 = exponent_bits == 4;
    let sign = ((value.to_bits() >> 31) as u8) << 7;
    let a = value.abs();
    if a.is_nan() {
        return sign | 0x7f;
    }
    let bias = (1 << (exponent_bits - 1)) - 1;
    let min_exponent = 1 - bias;
    // The exponent of the value's binade, not below that of the subnormals, gives the spacing to round to.
    let exponent = if a == 0.0 { min_exponent } else { (((a.to_bits() >> 23) as i32) - 127).max(min_exponent) };
    let unit = 2f64.powi(exponent - mantissa_bits as i32);
    let steps = (a as f64 / unit).round_ties_even() as u64;
    let code = (((exponent - min_exponent) as u64) << mantissa_bits).saturating_add(steps);
    let largest = if e4m3 { 0x7e } else { 0x7b };
    if code > largest { sign | if e4m3 { 0x7e } else { 0x7c } } else { sign | code as u8 }
}

/// The value of an 8-bit float.
pub fn decode_f8(code: u8, exponent_bits: u32, mantissa_bits: u32) -> f32 {
    let sign = if code & 0x80 != 0 { -1.0 } else { 1.0 };
    let exponent = ((code & 0x7f) >> mantissa_bits) as i32;
    let mantissa = (code & ((1 << mantissa_bits) - 1)) as f32;
    let bias = (1 << (exponent_bits - 1)) - 1;
    let scale = (1u32 << mantissa_bits) as f32;
    if exponent_bits == 4 && code & 0x7f == 0x7f {
        return f32::NAN;
    }
    if exponent_bits == 5 && exponent == 31 {
        return if mantissa == 0.0 { sign * f32::INFINITY } else { f32::NAN };
    }
    if exponent == 0 {
        sign * mantissa / scale * 2f32.powi(1 - bias)
    } else {
        sign * (1.0 + mantissa / scale) * 2f32.powi(exponent - bias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f8_code_round_trips() {
        for (e, m) in [(4, 3), (5, 2)] {
            for code in 0..=255u8 {
                let v = decode_f8(code, e, m);
                if !v.is_nan() {
                    assert_eq!(encode_f8(v, e, m), code, "e{e}m{m} {code:#x} = {v}");
                }
            }
        }
    }

    #[test]
    fn e4m3_saturates_and_e5m2_overflows_to_infinity() {
        assert_eq!(decode_f8(encode_f8(1e9, 4, 3), 4, 3), 448.0);
        assert_eq!(decode_f8(encode_f8(-f32::INFINITY, 4, 3), 4, 3), -448.0);
        assert_eq!(decode_f8(encode_f8(1e9, 5, 2), 5, 2), f32::INFINITY);
    }
}
