//! Inputs: random numbers, and tensors beside the values that they hold.

use kiln::ir::Bits;
use kiln::{DType, Tensor};

/// A tensor and its elements, as rounded to its dtype.
pub struct Input {
    pub tensor: Tensor,
    pub values: Vec<f64>,
}

/// Random numbers by SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between 0 and 1, neither included.
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Less than `n`, which is positive.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Normally distributed with mean 0 and deviation 1 (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    pub fn normals(&mut self, count: usize, scale: f64) -> Vec<f64> {
        (0..count).map(|_| self.normal() * scale).collect()
    }

    /// `k` distinct numbers below `n`.
    pub fn distinct(&mut self, k: usize, n: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..n).collect();
        for i in 0..k {
            let j = i + self.below(n - i);
            all.swap(i, j);
        }
        all.truncate(k);
        all
    }
}

/// A number as `dtype` holds it.
pub(super) fn round(dtype: DType, value: f64) -> f64 {
    Bits::from_f64(dtype, value).to_f64(dtype)
}

/// The elements of a tensor of any dtype.
///
/// # Errors
/// If the device fails, or (on the interpreter) an element was never written.
pub fn values(tensor: &Tensor) -> kiln::Result<Vec<f64>> {
    let dtype = tensor.dtype();
    let element = |bytes: &[u8]| {
        let mut bits = [0; 8];
        bits[..bytes.len()].copy_from_slice(bytes);
        let bits = Bits(u64::from_le_bytes(bits));
        if dtype.is_float() { bits.to_f64(dtype) } else { bits.to_i64(dtype) as f64 }
    };
    Ok(tensor.to_bytes()?.chunks_exact(dtype.size()).map(element).collect())
}
