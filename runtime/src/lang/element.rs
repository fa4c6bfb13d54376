//! Element types of tiles and views, and what arithmetic each takes part in.

use kiln_codegen::ir::DType;

pub use half::{bf16, f16};

/// An 8-bit float with 4 exponent bits and no infinity. Storage only: cast it to compute.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct f8e4m3(pub u8);

/// An 8-bit float with 5 exponent bits. Storage only: cast it to compute.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct f8e5m2(pub u8);

mod sealed {
    pub trait Sealed {}
}

/// What a tile can hold. Sealed: the list is the compiler's.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an element type",
    label = "expected one of bool, i8…i64, u8…u64, f8e4m3, f8e5m2, f16, bf16, f32"
)]
pub trait Element: sealed::Sealed + Copy + Send + Sync + 'static {
    const DTYPE: DType;
}

/// Elements with arithmetic: integers, f16, bf16, f32.
#[diagnostic::on_unimplemented(
    message = "tiles of `{Self}` have no arithmetic",
    label = "`{Self}` cannot be computed with",
    note = "cast first: `x.cast::<f32>()`"
)]
pub trait Number: Element {}

/// f16, bf16, f32.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a floating-point element",
    label = "needs f16, bf16 or f32",
    note = "cast first: `x.cast::<f32>()`"
)]
pub trait Float: Number {}

/// Signed and unsigned integers.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an integer element",
    label = "needs an integer",
    note = "cast first: `x.cast::<i32>()`"
)]
pub trait Int: Number {}

/// Elements with `&`, `|`, `^` and `!`: bool and integers.
#[diagnostic::on_unimplemented(message = "`{Self}` has no bitwise operations", label = "needs bool or an integer")]
pub trait Logical: Element {}

/// Elements that `dot` multiplies.
#[diagnostic::on_unimplemented(
    message = "`dot` does not multiply `{Self}`",
    label = "needs f16, bf16, f32, f8e4m3, f8e5m2, i8 or u8"
)]
pub trait DotElement: Element {
    /// The element of the accumulator: f32 for floats, i32 for integers.
    type Acc: Number;
}

macro_rules! elements {
    ($($t:ty => $d:ident $($trait:ident)*;)*) => {$(
        impl sealed::Sealed for $t {}
        impl Element for $t { const DTYPE: DType = DType::$d; }
        $(impl $trait for $t {})*
    )*};
}

elements! {
    bool => Bool Logical;
    i8 => I8 Number Int Logical;
    i16 => I16 Number Int Logical;
    i32 => I32 Number Int Logical;
    i64 => I64 Number Int Logical;
    u8 => U8 Number Int Logical;
    u16 => U16 Number Int Logical;
    u32 => U32 Number Int Logical;
    u64 => U64 Number Int Logical;
    f8e4m3 => F8E4M3;
    f8e5m2 => F8E5M2;
    f16 => F16 Number Float;
    bf16 => BF16 Number Float;
    f32 => F32 Number Float;
}

macro_rules! dot_elements {
    ($($t:ty => $acc:ty),*) => {$(impl DotElement for $t { type Acc = $acc; })*};
}
dot_elements!(f16 => f32, bf16 => f32, f32 => f32, f8e4m3 => f32, f8e5m2 => f32, i8 => i32, u8 => i32);
