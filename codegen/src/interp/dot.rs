//! The matrix product: acc + a·b, added to `acc` in index order k = 0 … K-1, one rounding per product and per sum.
//! Products of 16-bit and 8-bit floats are exact in f32, so for them only the sums round. Integers wrap.

use super::tile::Data;
use crate::ir::{DType, Precision};
use crate::semantics;

/// `dims` = [B, M, K, N]; a is B×M×K, b is B×K×N, acc and the result B×M×N: B products, each of its own matrices.
pub(super) fn dot(precision: Precision, dtype: DType, dims: [usize; 4], a: &Data, b: &Data, acc: &Data) -> Data {
    let Data::W4(acc) = acc else { panic!("dot accumulates 32-bit elements; the verifier refuses such a kernel") };
    let mut acc = acc.clone();
    if !dtype.is_float() {
        let (a, b) = (integers(dtype, a), integers(dtype, b));
        multiply(dims, &a, &b, &mut acc, |sum, a, b| (sum as i32).wrapping_add(a.wrapping_mul(b)) as u32);
        return Data::W4(acc);
    }
    let (a, b) = (floats(dtype, a), floats(dtype, b));
    let mut sums: Vec<f32> = acc.iter().map(|&x| f32::from_bits(x)).collect();
    let plain = |sum: f32, a: f32, b: f32| sum + a * b;
    match precision {
        Precision::Tf32 if dtype == DType::F32 => {
            let round = |v: Vec<f32>| v.into_iter().map(tf32).collect::<Vec<_>>();
            multiply(dims, &round(a), &round(b), &mut sums, plain);
        }
        Precision::Tf32x3 if dtype == DType::F32 => {
            let split = |v: Vec<f32>| v.into_iter().map(|x| (tf32(x), tf32_rest(x))).collect::<Vec<_>>();
            multiply(dims, &split(a), &split(b), &mut sums, |sum, a, b| sum + (a.1 * b.0 + a.0 * b.1) + a.0 * b.0);
        }
        _ => multiply(dims, &a, &b, &mut sums, plain),
    }
    Data::W4(sums.into_iter().map(f32::to_bits).collect())
}

/// The loop order keeps k ascending for every element and walks rows.
fn multiply<T: Copy, A: Copy>([c, m, k, n]: [usize; 4], a: &[T], b: &[T], acc: &mut [A], step: impl Fn(A, T, T) -> A) {
    // The rows of all matrices of a and acc, one after the other.
    for i in 0..c * m {
        let row = &mut acc[i * n..(i + 1) * n];
        let b = &b[i / m * k * n..];
        for l in 0..k {
            let x = a[i * k + l];
            for (sum, &y) in row.iter_mut().zip(&b[l * n..(l + 1) * n]) {
                *sum = step(*sum, x, y);
            }
        }
    }
}

fn floats(dtype: DType, x: &Data) -> Vec<f32> {
    (0..x.len()).map(|i| semantics::to_f32(dtype, x.get(i))).collect()
}

fn integers(dtype: DType, x: &Data) -> Vec<i32> {
    (0..x.len()).map(|i| x.get(i).to_i64(dtype) as i32).collect()
}

/// To 10 mantissa bits, nearest, ties away from zero, as the hardware's conversion does; infinity and NaN stay.
pub(super) fn tf32(x: f32) -> f32 {
    if !x.is_finite() {
        return x;
    }
    // A carry runs into the exponent, which is right: the next binade, or infinity.
    f32::from_bits((x.to_bits() + 0x1000) & !0x1fff)
}

/// What rounding to tf32 lost, itself rounded. Nothing is lost of an infinity (∞ - ∞ would be NaN); its product with a
/// rest of 0 is NaN all the same, on the tensor cores too.
fn tf32_rest(x: f32) -> f32 {
    let high = tf32(x);
    if high.is_finite() { tf32(x - high) } else { 0.0 }
}
