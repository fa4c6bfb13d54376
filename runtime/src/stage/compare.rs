//! Comparisons and `&&`, `||`: Rust fixes their results to `bool`, so the macros call these instead. On compile-time
//! values they are what Rust does; on tiles they append an operation.

use crate::lang::{Element, Operand, Shape, Tile};
use kiln_codegen::ir::{CmpOp, DType};

/// What can be compared with `B`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be compared with `{B}` in a kernel",
    label = "expected two tiles of one type, a tile and a number, or two compile-time values"
)]
pub trait Compare<B> {
    type Output;
    #[doc(hidden)]
    #[track_caller]
    fn compare(self, op: CmpOp, rhs: B) -> Self::Output;
}

impl<T: Element, S: Shape, B: Operand<T, S>> Compare<B> for Tile<T, S> {
    type Output = Tile<bool, S>;
    #[track_caller]
    fn compare(self, op: CmpOp, rhs: B) -> Tile<bool, S> {
        let rhs = rhs.operand();
        Tile::from_id(super::emit(|b| b.compare(op, self.id(), rhs.id())))
    }
}

macro_rules! native {
    ($($t:ty)*) => {$(
        impl Compare<$t> for $t {
            type Output = bool;
            fn compare(self, op: CmpOp, rhs: $t) -> bool {
                match op {
                    CmpOp::Eq => self == rhs,
                    CmpOp::Ne => self != rhs,
                    CmpOp::Lt => self < rhs,
                    CmpOp::Le => self <= rhs,
                    CmpOp::Gt => self > rhs,
                    CmpOp::Ge => self >= rhs,
                }
            }
        }
    )*};
}
native! { usize isize i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 bool char &str DType }

macro_rules! comparisons {
    ($($name:ident $op:ident $symbol:literal;)*) => {$(
        #[doc = concat!("`a ", $symbol, " b`.")]
        #[track_caller]
        pub fn $name<A: Compare<B>, B>(a: A, b: B) -> A::Output {
            a.compare(CmpOp::$op, b)
        }
    )*};
}
comparisons! {
    eq Eq "==";
    ne Ne "!=";
    lt Lt "<";
    le Le "<=";
    gt Gt ">";
    ge Ge ">=";
}

/// `a && b`; on tiles both are evaluated.
#[track_caller]
pub fn and<A: std::ops::BitAnd<B>, B>(a: A, b: B) -> A::Output {
    a & b
}

/// `a || b`; on tiles both are evaluated.
#[track_caller]
pub fn or<A: std::ops::BitOr<B>, B>(a: A, b: B) -> A::Output {
    a | b
}
