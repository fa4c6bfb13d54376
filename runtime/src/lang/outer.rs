//! A column beside a row, or beside a matrix: `k.col() * u.row()` is the outer product.
//!
//! [`Tile`] takes a [`Col`] or [`Row`] on its right as an operand; here they stand on the left.

use super::{Col, D2, Element, Number, Operand, Row, Tile};
use crate::stage::Compare;
use kiln_codegen::ir::CmpOp;
use std::ops::*;

macro_rules! pairs {
    ($($left:ident[$l:ident] $right:ident[$r:ident]: $($trait:ident $method:ident)*;)*) => {$($(
        impl<T: Number, const M: usize, const N: usize> $trait<$right<T, $r>> for $left<T, $l> {
            type Output = Tile<T, D2<M, N>>;
            #[track_caller]
            fn $method(self, rhs: $right<T, $r>) -> Tile<T, D2<M, N>> {
                $trait::$method(self.operand(), rhs)
            }
        }
    )*)*};
}
pairs! {
    Col[M] Row[N]: Add add Sub sub Mul mul Div div;
    Row[N] Col[M]: Add add Sub sub Mul mul Div div;
}

macro_rules! before_a_matrix {
    ($($left:ident[$l:ident]: $($trait:ident $method:ident)*;)*) => {$($(
        impl<T: Number, const M: usize, const N: usize> $trait<Tile<T, D2<M, N>>> for $left<T, $l> {
            type Output = Tile<T, D2<M, N>>;
            #[track_caller]
            fn $method(self, rhs: Tile<T, D2<M, N>>) -> Tile<T, D2<M, N>> {
                $trait::$method(self.operand(), rhs)
            }
        }
    )*)*};
}
before_a_matrix! {
    Col[M]: Add add Sub sub Mul mul Div div;
    Row[N]: Add add Sub sub Mul mul Div div;
}

impl<T: Element, const M: usize, const N: usize> Compare<Row<T, N>> for Col<T, M> {
    type Output = Tile<bool, D2<M, N>>;
    #[track_caller]
    fn compare(self, op: CmpOp, rhs: Row<T, N>) -> Tile<bool, D2<M, N>> {
        let left: Tile<T, D2<M, N>> = self.operand();
        left.compare(op, rhs)
    }
}

impl<T: Element, const M: usize, const N: usize> Compare<Col<T, M>> for Row<T, N> {
    type Output = Tile<bool, D2<M, N>>;
    #[track_caller]
    fn compare(self, op: CmpOp, rhs: Col<T, M>) -> Tile<bool, D2<M, N>> {
        let left: Tile<T, D2<M, N>> = self.operand();
        left.compare(op, rhs)
    }
}
