//! Random layouts for the property tests.

use super::{LayoutBuilder, Level, LinearLayout, Span};
use crate::ir::Shape;

/// xorshift64*: tests must not depend on a seed from outside.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((u64::from((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32) * u64::from(n)) >> 32) as u32
    }

    /// A shape of rank 1 to 4 with at most 2^`bits` elements.
    pub(crate) fn shape(&mut self, bits: u32) -> Shape {
        let rank = 1 + self.below(4);
        let mut left = self.below(bits + 1);
        let mut dims = Vec::new();
        for _ in 0..rank {
            let b = self.below(left + 1);
            left -= b;
            dims.push(1 << b);
        }
        Shape::new(&dims)
    }

    /// A layout whose bits step along random axes, with random copies: like the families.
    pub(crate) fn stepping_layout(&mut self, shape: Shape, warp_bits: usize) -> LinearLayout {
        let mut b = LayoutBuilder::new(shape).unwrap();
        let mut todo = [(Level::Register, self.below(4) as usize), (Level::Lane, 5), (Level::Warp, warp_bits)];
        while let Some(i) = (0..3)
            .filter(|&i| todo[i].1 > 0)
            .nth(self.below(3) as usize % 3)
            .or_else(|| (0..3).find(|&i| todo[i].1 > 0))
        {
            todo[i].1 -= 1;
            b = match self.below(8) {
                0 => b.copies(todo[i].0, 1),
                _ => b.step(todo[i].0, self.below(shape.rank() as u32) as usize, 1),
            };
        }
        b.finish(&[])
    }

    /// A layout with arbitrary basis vectors, completed to a surjective one with registers.
    pub(crate) fn arbitrary_layout(&mut self, shape: Shape, warp_bits: usize) -> LinearLayout {
        let bits = shape.numel().trailing_zeros();
        let mut draw = |n: usize| (0..n).map(|_| self.below(1 << bits)).collect::<Vec<_>>();
        let (lane, warp) = (draw(5), draw(warp_bits));
        let mut register = draw(2);
        let mut span = Span::new();
        for &v in lane.iter().chain(&warp).chain(&register) {
            span.insert(v, 0);
        }
        for i in 0..bits {
            if span.insert(1 << i, 0) {
                register.push(1 << i);
            }
        }
        LinearLayout::new(shape, register, lane, warp, vec![]).unwrap()
    }

    pub(crate) fn layout(&mut self, shape: Shape, warp_bits: usize) -> LinearLayout {
        if self.below(2) == 0 {
            self.stepping_layout(shape, warp_bits)
        } else {
            self.arbitrary_layout(shape, warp_bits)
        }
    }
}
