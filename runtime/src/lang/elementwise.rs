//! Elementwise arithmetic and functions: Rust's operators and methods on [`Tile`].

use super::{Element, Float, Int, Logical, Number, Operand, Shape, Tile};
use crate::stage;
use kiln_codegen::ir::{BinaryOp, UnaryOp};
use std::ops::*;

impl<T: Element, S: Shape> Tile<T, S> {
    #[track_caller]
    fn unary(self, op: UnaryOp) -> Self {
        Tile::from_id(stage::emit(|b| b.unary(op, self.id())))
    }

    #[track_caller]
    fn binary(self, op: BinaryOp, rhs: Self) -> Self {
        Tile::from_id(stage::emit(|b| b.binary(op, self.id(), rhs.id())))
    }

    /// Each element converted to `U`: floats round to nearest even; float to integer truncates and saturates;
    /// integers wrap; to bool is `!= 0`.
    #[track_caller]
    pub fn cast<U: Element>(self) -> Tile<U, S> {
        Tile::from_id(stage::emit(|b| b.cast(self.id(), U::DTYPE)))
    }

    /// The same bits as another type of the same size.
    #[track_caller]
    pub fn bitcast<U: Element>(self) -> Tile<U, S> {
        if T::DTYPE.size() != U::DTYPE.size() {
            return stage::error(format!(
                "bitcast from {} ({} bytes) to {} ({} bytes): the sizes differ; use `.cast()` to convert values",
                T::DTYPE,
                T::DTYPE.size(),
                U::DTYPE,
                U::DTYPE.size()
            ));
        }
        Tile::from_id(stage::emit(|b| b.bitcast(self.id(), U::DTYPE)))
    }
}

macro_rules! binary_operators {
    ($($bound:ident { $($trait:ident $method:ident $assign:ident $assign_method:ident $op:ident;)* })*) => {$($(
        impl<T: $bound, S: Shape, B: Operand<T, S>> $trait<B> for Tile<T, S> {
            type Output = Tile<T, S>;
            #[track_caller]
            fn $method(self, rhs: B) -> Tile<T, S> { self.binary(BinaryOp::$op, rhs.operand()) }
        }
        impl<T: $bound, S: Shape, B: Operand<T, S>> $assign<B> for Tile<T, S> {
            #[track_caller]
            fn $assign_method(&mut self, rhs: B) { *self = self.binary(BinaryOp::$op, rhs.operand()) }
        }
    )*)*};
}
binary_operators! {
    Number {
    Add add AddAssign add_assign Add;
    Sub sub SubAssign sub_assign Sub;
    Mul mul MulAssign mul_assign Mul;
    Div div DivAssign div_assign Div;
    Rem rem RemAssign rem_assign Rem;
    }
    Logical {
    BitAnd bitand BitAndAssign bitand_assign And;
    BitOr bitor BitOrAssign bitor_assign Or;
    BitXor bitxor BitXorAssign bitxor_assign Xor;
    }
    Int {
    Shl shl ShlAssign shl_assign Shl;
    Shr shr ShrAssign shr_assign Shr;
    }
}

// A Rust number on the left: `1.0 - x`, `BLOCK * i`.
macro_rules! number_on_the_left {
    ($($number:ty: $bound:ident: $($trait:ident $method:ident),*;)*) => {$($(
        impl<T: $bound, S: Shape> $trait<Tile<T, S>> for $number {
            type Output = Tile<T, S>;
            #[track_caller]
            fn $method(self, rhs: Tile<T, S>) -> Tile<T, S> { $trait::$method(Operand::<T, S>::operand(self), rhs) }
        }
    )*)*};
}
number_on_the_left! {
    f32: Float: Add add, Sub sub, Mul mul, Div div;
    usize: Int: Add add, Sub sub, Mul mul, Div div, Rem rem;
}

impl<T: Number, S: Shape> Neg for Tile<T, S> {
    type Output = Self;
    #[track_caller]
    fn neg(self) -> Self {
        self.unary(UnaryOp::Neg)
    }
}

impl<T: Logical, S: Shape> Not for Tile<T, S> {
    type Output = Self;
    #[track_caller]
    fn not(self) -> Self {
        self.unary(UnaryOp::Not)
    }
}

impl<T: Number, S: Shape> Tile<T, S> {
    #[track_caller]
    pub fn abs(self) -> Self {
        self.unary(UnaryOp::Abs)
    }

    /// The larger; if one is NaN, the other.
    #[track_caller]
    pub fn max(self, rhs: impl Operand<T, S>) -> Self {
        self.binary(BinaryOp::Max, rhs.operand())
    }

    /// The smaller; if one is NaN, the other.
    #[track_caller]
    pub fn min(self, rhs: impl Operand<T, S>) -> Self {
        self.binary(BinaryOp::Min, rhs.operand())
    }
}

impl<T: Float, S: Shape> Tile<T, S> {
    /// `self · a + b` with the exact product: for `f32` rounded once, by one instruction where the device has it. For
    /// narrower floats the sum is rounded to f32 and then to `T`, as for every operation on them. `self * a + b` rounds
    /// the product, too; the compiler never makes one of the other.
    #[track_caller]
    pub fn mul_add(self, a: impl Operand<T, S>, b: impl Operand<T, S>) -> Self {
        let (a, b) = (a.operand(), b.operand());
        Tile::from_id(stage::emit(|builder| builder.fma(self.id(), a.id(), b.id())))
    }
}

macro_rules! float_functions {
    ($($(#[$doc:meta])* $name:ident $op:ident;)*) => {
        /// Computed in f32 and rounded once to `T`.
        impl<T: Float, S: Shape> Tile<T, S> {$(
            $(#[$doc])*
            #[track_caller]
            pub fn $name(self) -> Self { self.unary(UnaryOp::$op) }
        )*}
    };
}
float_functions! {
    exp Exp;
    /// 2^x; 0 where that is below 2^-126, the least normal `f32`.
    exp2 Exp2;
    /// Natural logarithm.
    log Log;
    /// Logarithm to base 2, to a few units of the last place even where it is near 0.
    log2 Log2;
    /// Logarithm to base 2 by the device's instruction, where it has one: within 2^-22 of the true value for x in
    /// [0.5, 2], within 2^-22 times the value elsewhere. Cheaper than [`log2`](Self::log2) and as good for exponents,
    /// whose absolute error matters; not for values near 0 that something is divided by. An x below 2^-126 (the least
    /// normal `f32`) counts as 0, whose logarithm is -∞.
    log2_approx Log2Approx;
    sqrt Sqrt;
    /// 1 / √x.
    rsqrt Rsqrt;
    sin Sin;
    cos Cos;
    tanh Tanh;
    /// 1 / (1 + e^-x).
    sigmoid Sigmoid;
    /// x · sigmoid(x).
    silu Silu;
    /// ln(1 + e^x), without overflow.
    softplus Softplus;
    erf Erf;
    floor Floor;
    ceil Ceil;
    /// To the nearest integer, ties to even.
    round Round;
    trunc Trunc;
    /// 1 / x.
    recip Recip;
}
