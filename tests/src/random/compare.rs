//! When two results agree.

use super::{Argument, Case};
use kiln_codegen::ir::{Bits, DType};

/// How closely an output must agree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// To the bit; any NaN equals any other, and zeros are equal (of two zeros `min` may give either).
    Exact,
    /// Within relative · |value| + absolute, and one unit of the dtype's last place, since values that close may round
    /// to neighbours. Infinity counts as the number after the largest.
    Near { relative: f64, absolute: f64 },
    /// A sum of n terms in any order: each of its n additions errs by at most half a unit of a partial sum, and no
    /// partial sum exceeds the sum of the terms' magnitudes, which the kernel stores beside it (in parameter
    /// `magnitude`). `relative` is n units and what the operands' own rounding adds. Where the magnitudes overflow, the
    /// order decides between infinities and NaN, and nothing can be asked.
    Sum { magnitude: usize, relative: f64 },
    /// The magnitudes of another output: not compared, they only scale its tolerance.
    Magnitude,
}

/// The distance of 1 to the next number.
pub(super) fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F8E4M3 => 0.125,
        DType::F8E5M2 => 0.25,
        DType::F16 => 2f64.powi(-10),
        DType::BF16 => 2f64.powi(-7),
        _ => 2f64.powi(-23),
    }
}

fn largest(dtype: DType) -> f64 {
    match dtype {
        DType::F8E4M3 => 448.0,
        DType::F8E5M2 => 57344.0,
        DType::F16 => 65504.0,
        DType::BF16 => 2f64.powi(127) * (2.0 - 2f64.powi(-7)),
        _ => f32::MAX as f64,
    }
}

/// The smallest normal number: what is below may have been flushed to zero on the way.
fn tiny(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-14) * unit(dtype),
        _ => 2f64.powi(-126),
    }
}

fn element(bytes: &[u8], dtype: DType, i: usize) -> Bits {
    let mut word = [0; 8];
    word[..dtype.size()].copy_from_slice(&bytes[i * dtype.size()..][..dtype.size()]);
    Bits(u64::from_le_bytes(word))
}

/// Compares all buffers.
///
/// # Errors
/// The first element that disagrees, and how many do.
pub(super) fn compare(case: &Case, want: &[Vec<u8>], got: &[Vec<u8>], exact: bool, slack: f64) -> Result<(), String> {
    if want.len() != got.len() {
        return Err(format!("{} buffers instead of {}", got.len(), want.len()));
    }
    for (i, argument) in case.arguments.iter().enumerate() {
        let Argument::View { dtype, rule, .. } = argument else { continue };
        if want[i].len() != got[i].len() {
            return Err(format!("buffer {i} has {} bytes instead of {}", got[i].len(), want[i].len()));
        }
        let mut wrong = 0;
        let mut first = None;
        for e in 0..want[i].len() / dtype.size() {
            let (w, g) = (element(&want[i], *dtype, e), element(&got[i], *dtype, e));
            let magnitude = match rule {
                Rule::Sum { magnitude, .. } => element(&want[*magnitude], DType::F32, e).to_f64(DType::F32),
                _ => 0.0,
            };
            if !close(*dtype, w, g, if exact { None } else { Some(*rule) }, magnitude, slack) {
                wrong += 1;
                first.get_or_insert((e, w, g));
            }
        }
        if let Some((e, w, g)) = first {
            let name = &case.kernel.params[i].name;
            let (w, g) = (show(*dtype, w), show(*dtype, g));
            return Err(format!("`{name}`, element {e} of its buffer: {g}, expected {w} ({wrong} differ; {rule:?})"));
        }
    }
    Ok(())
}

fn show(dtype: DType, bits: Bits) -> String {
    format!("{} ({:#x})", kiln_codegen::ir::constant_text(dtype, bits), bits.0)
}

fn close(dtype: DType, want: Bits, got: Bits, rule: Option<Rule>, magnitude: f64, slack: f64) -> bool {
    if want == got {
        return true;
    }
    if !dtype.is_float() {
        // Magnitudes are floats, and only floats have tolerances.
        return false;
    }
    let (w, g) = (want.to_f64(dtype), got.to_f64(dtype));
    if w.is_nan() && g.is_nan() {
        return true;
    }
    let tolerance = match rule {
        None => return false,
        Some(Rule::Magnitude) => return true,
        Some(Rule::Exact) => return w == g,
        Some(Rule::Near { relative, absolute }) => {
            slack * (relative * w.abs().min(largest(dtype)) + absolute) + unit(dtype) * w.abs().min(largest(dtype))
        }
        Some(Rule::Sum { relative, .. }) => {
            // Overflow on the way, in f32 or in the narrower dtype.
            if !magnitude.is_finite() || magnitude * (1.0 + relative) >= largest(dtype) {
                return true;
            }
            relative * magnitude + unit(dtype) * w.abs()
        }
    };
    if w.is_nan() || g.is_nan() {
        return false;
    }
    let bound = largest(dtype) * (1.0 + unit(dtype));
    (w.clamp(-bound, bound) - g.clamp(-bound, bound)).abs() <= tolerance + tiny(dtype)
}
