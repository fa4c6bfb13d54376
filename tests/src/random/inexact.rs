//! What back ends may round differently: stored at once, under an argued tolerance.

use super::generate::Generator;
use kiln_codegen::ir::{BinaryOp, Combine, DType, Precision, Shape, UnaryOp, ValueId};

/// A unit in the last place of f32, relative to the value.
const ULP: f64 = 1.0 / (1 << 23) as f64;

impl Generator {
    pub(super) fn inexact(&mut self) {
        match self.rng.below(4) {
            0 | 1 => self.function(),
            2 => self.sum(),
            _ => self.real_dot(),
        }
    }

    /// A value of f16, bf16 or f32.
    fn real(&mut self) -> ValueId {
        self.any(|d| d.is_float() && !d.is_fp8()).v
    }

    /// min(max(x, -limit), limit), which also turns NaN into -limit.
    fn clamp(&mut self, x: ValueId, limit: f64) -> ValueId {
        let (d, s) = (self.dtype(x), self.shape(x));
        let (low, high) = (self.b.splat(d, s, -limit), self.b.splat(d, s, limit));
        let x = self.b.binary(BinaryOp::Max, x, low);
        self.b.binary(BinaryOp::Min, x, high)
    }

    fn function(&mut self) {
        let mut x = self.real();
        let (d, s) = (self.dtype(x), self.shape(x));
        if self.rng.chance(15) {
            // A quotient is rounded correctly, or to two units on a device without such a division. Divisors are
            // positive, as the sign of a zero is free.
            let y = self.value(d, s).v;
            let y = self.b.unary(UnaryOp::Abs, y);
            let v = self.b.binary(BinaryOp::Div, x, y);
            return self.store_near(v, 2.0 * ULP, 0.0);
        }
        use UnaryOp::*;
        let op = self.rng.pick(&[
            Exp, Exp2, Log, Log2, Log2Approx, Sqrt, Rsqrt, Sin, Cos, Tanh, Sigmoid, Silu, Softplus, Erf, Recip,
        ]);
        let (relative, absolute) = match op {
            // Correct to a unit or two.
            Sqrt | Rsqrt | Recip => (2.0 * ULP, 0.0),
            // e^x = 2^(x·log2 e): half a unit of the product, which is at most 150, is 2^-17 of the result.
            Exp | Exp2 => (128.0 * ULP, 0.0),
            // The same exponential, and 1 beside it.
            Sigmoid | Silu => (128.0 * ULP, 1e-37),
            // Near a zero of theirs these are computed as a difference of numbers about 1.
            Softplus | Tanh | Erf => (128.0 * ULP, 16.0 * ULP),
            // Near their zero at 1 they, too, may err as numbers about 1 do.
            Log | Log2 | Log2Approx => (16.0 * ULP, 16.0 * ULP),
            // After reduction by multiples of pi, of an argument up to 50.
            _ => (16.0 * ULP, 64.0 * ULP),
        };
        match op {
            Log | Log2 | Log2Approx | Sqrt | Rsqrt | Recip => x = self.b.unary(Abs, x),
            Sin | Cos => x = self.clamp(x, 50.0),
            _ => {}
        }
        let mut v = self.b.unary(op, x);
        if self.rng.chance(30) {
            v = self.b.unary(Neg, v);
        }
        self.store_near(v, relative, absolute);
    }

    fn sum(&mut self) {
        let mut x = self.real();
        if self.shape(x).rank() == 0 {
            x = self.b.broadcast(x, Shape::new(&[16]));
        }
        if self.rng.chance(70) {
            x = self.clamp(x, 1000.0);
        }
        let (d, s) = (self.dtype(x), self.shape(x));
        let axis = self.rng.below(s.rank());
        let magnitudes = self.b.unary(UnaryOp::Abs, x);
        let magnitudes = self.b.cast(magnitudes, DType::F32);
        let (sum, magnitude) = if self.rng.chance(60) {
            (self.b.reduce(x, axis, Combine::Sum), self.b.reduce(magnitudes, axis, Combine::Sum))
        } else {
            let reverse = self.rng.chance(50);
            (self.b.scan(x, axis, Combine::Sum, reverse), self.b.scan(magnitudes, axis, Combine::Sum, reverse))
        };
        // Two sums are compared, each off by n half units.
        let relative = s.dim(axis) as f64 * super::compare::unit(d);
        self.store_sum(sum, magnitude, relative);
    }

    fn real_dot(&mut self) {
        let [sa, sb, sc] = self.dot_shapes();
        let k = sa.dim(sa.rank() - 1);
        let d = self.rng.pick(&[DType::F32, DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2]);
        let precision = self.rng.pick(Precision::ALL);
        let operand = |g: &mut Generator, shape: Shape| {
            // fp8 has no arithmetic: what is to be limited is limited before it becomes fp8.
            let from = if d.is_fp8() { DType::F32 } else { d };
            let x = g.value(from, shape).v;
            let x = g.clamp(x, 100.0);
            let a = g.b.unary(UnaryOp::Abs, x);
            (g.b.cast(x, d), g.b.cast(a, d))
        };
        let (a, abs_a) = operand(self, sa);
        let (b, abs_b) = operand(self, sb);
        let acc = self.value(DType::F32, sc).v;
        let acc = self.clamp(acc, 1e6);
        let abs_acc = self.b.unary(UnaryOp::Abs, acc);
        let v = self.b.dot(a, b, acc, precision);
        let magnitude = self.b.dot(abs_a, abs_b, abs_acc, Precision::F32);
        // k products and k sums, twice; what the operands' own rounding loses is up to the precision asked for, and a
        // back end may always be more precise than asked.
        let rounding = match (d, precision) {
            (DType::F32, Precision::Tf32) => 2f64.powi(-9),
            (DType::F32, Precision::Tf32x3) => 2f64.powi(-19),
            _ => 0.0,
        };
        self.store_sum(v, magnitude, 2.0 * (k as f64 + 1.0) * ULP + rounding);
    }
}
