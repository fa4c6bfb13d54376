//! `Tile`: the value that kernels compute with.

use super::{D0, D1, D2, D3, D4, Element, Float, Int, Shape};
use crate::stage;
use kiln_codegen::ir::{Bits, ValueId};
use std::marker::PhantomData;

/// A tile of elements of `T` with shape `S`: a handle of a value in the kernel that is being staged.
///
/// Inside `#[kernel]` and `#[device]` functions write `Tile<f32>` for a scalar, `Tile<f32, 128>`,
/// `Tile<bf16, 64, 128>` and so on.
pub struct Tile<T: Element, S: Shape = D0> {
    id: ValueId,
    // Handles mean something on the staging thread only.
    _marker: PhantomData<(T, S, *const ())>,
}

/// A scalar: a tile of rank 0.
pub type Scalar<T> = Tile<T, D0>;

impl<T: Element, S: Shape> Clone for Tile<T, S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T: Element, S: Shape> Copy for Tile<T, S> {}

impl<T: Element, S: Shape> Tile<T, S> {
    pub(crate) fn from_id(id: ValueId) -> Self {
        Tile { id, _marker: PhantomData }
    }

    pub(crate) fn id(self) -> ValueId {
        self.id
    }
}

/// What can stand beside a tile of `T` and shape `S`: such a tile, a scalar of `T`, a [`Col`] or [`Row`] of a matrix,
/// or a Rust number.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not combine with a tile of `{T}` and shape `{S}`",
    label = "expected a tile of `{T}` and shape `{S}`, or a scalar",
    note = "other element type: `.cast::<{T}>()`; a vector beside a matrix: `.col()` or `.row()`; other extents: `.broadcast()`"
)]
pub trait Operand<T: Element, S: Shape> {
    #[doc(hidden)]
    #[track_caller]
    fn operand(self) -> Tile<T, S>;
}

impl<T: Element, S: Shape> Operand<T, S> for Tile<T, S> {
    fn operand(self) -> Tile<T, S> {
        self
    }
}

macro_rules! scalar_operand {
    ($($d:ident [$($p:ident),*];)*) => {$(
        impl<T: Element, $(const $p: usize),*> Operand<T, $d<$($p),*>> for Tile<T, D0> {
            #[track_caller]
            fn operand(self) -> Tile<T, $d<$($p),*>> { self.splat() }
        }
    )*};
}
scalar_operand! { D1 [A]; D2 [A, B]; D3 [A, B, C]; D4 [A, B, C, D]; }

macro_rules! number_operand {
    ($($t:ty: $bound:ident;)*) => {$(
        impl<T: $bound, S: Shape> Operand<T, S> for $t {
            #[track_caller]
            fn operand(self) -> Tile<T, S> { full(self as f64) }
        }
    )*};
}
number_operand! { f32: Float; f64: Float; }

macro_rules! integer_operand {
    ($($t:ty)*) => {$(
        impl<T: Int, S: Shape> Operand<T, S> for $t {
            #[track_caller]
            fn operand(self) -> Tile<T, S> { constant(Bits::from_i64(T::DTYPE, self as i64)) }
        }
    )*};
}
integer_operand! { i32 usize i64 u32 u64 }

impl<S: Shape> Operand<bool, S> for bool {
    #[track_caller]
    fn operand(self) -> Tile<bool, S> {
        constant(Bits(self as u64))
    }
}

/// A vector that stands for a matrix with equal columns: element (i, j) is vector element i.
#[derive(Clone, Copy)]
pub struct Col<T: Element, const M: usize>(Tile<T, D1<M>>);

/// A vector that stands for a matrix with equal rows: element (i, j) is vector element j.
#[derive(Clone, Copy)]
pub struct Row<T: Element, const N: usize>(Tile<T, D1<N>>);

impl<T: Element, const M: usize> Tile<T, D1<M>> {
    /// This vector as a column, repeated across.
    pub fn col(self) -> Col<T, M> {
        Col(self)
    }

    /// This vector as a row, repeated downwards.
    pub fn row(self) -> Row<T, M> {
        Row(self)
    }
}

impl<T: Element, const M: usize> Col<T, M> {
    /// The matrix.
    #[track_caller]
    pub fn tile<const N: usize>(self) -> Tile<T, D2<M, N>> {
        let column: Tile<T, D2<M, 1>> = self.0.reshape();
        column.broadcast()
    }
}

impl<T: Element, const N: usize> Row<T, N> {
    /// The matrix.
    #[track_caller]
    pub fn tile<const M: usize>(self) -> Tile<T, D2<M, N>> {
        let row: Tile<T, D2<1, N>> = self.0.reshape();
        row.broadcast()
    }
}

impl<T: Element, const M: usize, const N: usize> Operand<T, D2<M, N>> for Col<T, M> {
    #[track_caller]
    fn operand(self) -> Tile<T, D2<M, N>> {
        self.tile()
    }
}

impl<T: Element, const M: usize, const N: usize> Operand<T, D2<M, N>> for Row<T, N> {
    #[track_caller]
    fn operand(self) -> Tile<T, D2<M, N>> {
        self.tile()
    }
}

#[track_caller]
fn constant<T: Element, S: Shape>(bits: Bits) -> Tile<T, S> {
    Tile::from_id(stage::emit(|b| b.constant(T::DTYPE, S::shape(), bits)))
}

/// A tile with every element `value`, rounded to `T`.
#[track_caller]
pub fn full<T: Element, S: Shape>(value: f64) -> Tile<T, S> {
    constant(Bits::from_f64(T::DTYPE, value))
}

/// A tile of zeros.
#[track_caller]
pub fn zeros<T: Element, S: Shape>() -> Tile<T, S> {
    full(0.0)
}

/// 0, 1, 2, … N-1.
#[track_caller]
pub fn iota<const N: usize>() -> Tile<i32, D1<N>> {
    Tile::from_id(stage::emit(|b| b.iota(D1::<N>::shape(), 0)))
}

/// This program's index in the grid along `axis` (0, 1 or 2).
#[track_caller]
pub fn program_id(axis: usize) -> Tile<i32> {
    Tile::from_id(stage::emit(|b| b.program_id(axis)))
}

/// The extent of the grid along `axis` (0, 1 or 2).
#[track_caller]
pub fn num_programs(axis: usize) -> Tile<i32> {
    Tile::from_id(stage::emit(|b| b.num_programs(axis)))
}

/// Elementwise `if c { x } else { y }`; both are evaluated.
#[track_caller]
pub fn select<T: Element, S: Shape>(c: impl Operand<bool, S>, x: Tile<T, S>, y: impl Operand<T, S>) -> Tile<T, S> {
    let (c, y) = (c.operand(), y.operand());
    Tile::from_id(stage::emit(|b| b.select(c.id, x.id, y.id)))
}
