//! A small seeded generator of random numbers, and of random elements that arithmetic finds unpleasant.

use kiln_codegen::ir::{Bits, DType};

/// SplitMix64. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `n`, which is positive.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1) as usize) as i64
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// An element of `dtype`: mostly ordinary, often an edge case, sometimes any bits at all.
    pub fn element(&mut self, dtype: DType) -> Bits {
        let any = match dtype {
            DType::Bool => return Bits(self.bits() & 1),
            d => Bits(self.bits() >> (64 - 8 * d.size())),
        };
        match self.below(10) {
            0..=3 => self.small(dtype),
            4..=6 if dtype.is_float() => Bits::from_f64(dtype, self.between(-4000, 4000) as f64 / 700.0),
            4..=6 => Bits::from_i64(dtype, self.between(-100, 100)),
            7 if dtype.is_float() => {
                let edges =
                    [0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e-41, -6e-8, 65504.0, 3.4e38, 1e10];
                Bits::from_f64(dtype, self.pick(&edges))
            }
            7 => {
                let top = 1u64 << (8 * dtype.size() - 1);
                let ones = (top - 1) << 1 | 1;
                Bits(self.pick(&[0, ones, top, top - 1]))
            }
            _ => any,
        }
    }

    /// An integer of at most [`SMALL`] in magnitude (not negative where that is impossible).
    pub fn small(&mut self, dtype: DType) -> Bits {
        let low = if dtype.is_signed() { -SMALL } else { 0 };
        Bits::from_i64(dtype, self.between(low, SMALL))
    }
}

/// Integers up to this are exact in every float dtype (e5m2 has three digits), and sums of thousands of products of two
/// are exact in f32.
pub const SMALL: i64 = 7;
