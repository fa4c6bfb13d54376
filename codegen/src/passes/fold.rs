//! Constant folding.
//!
//! Rule: an operation whose operands are constants, and whose result is the same everywhere, is that constant. Elements
//! are computed by `semantics`, by which the interpreter computes them. A division by zero is not folded: it must fail
//! when it runs. Sums of floats are not folded: their grouping is the back end's.

use crate::ir::{Bits, Combine, DType, Kernel, Op, OpKind, Type};
use crate::semantics;

/// The constant that every element of the operation's only result is, if that is known.
pub fn fold(k: &Kernel, op: &Op) -> Option<Bits> {
    let &[result] = &op.results[..] else { return None };
    let Type::Tile(to, shape) = k.ty(result) else { return None };
    if let OpKind::Iota { axis } = op.kind {
        return (shape.dim(axis as usize) == 1).then_some(Bits(0));
    }
    // Before any constant is looked up: only these are functions of the values alone.
    let moves = matches!(
        op.kind,
        OpKind::Broadcast
            | OpKind::Reshape
            | OpKind::Transpose { .. }
            | OpKind::Slice { .. }
            | OpKind::Join { .. }
            | OpKind::Reduce { .. }
            | OpKind::Scan { .. }
    );
    if !moves && !op.kind.is_elementwise() {
        return None;
    }
    let x: Vec<Bits> = op.operands.iter().map(|&v| k.constant(v)).collect::<Option<_>>()?;
    let Type::Tile(from, operand_shape) = k.ty(op.operands[0]) else { return None };
    match op.kind {
        OpKind::Unary(f) => Some(semantics::unary(f, from, x[0])),
        OpKind::Binary(f) => semantics::binary(f, from, x[0], x[1]),
        OpKind::Compare(f) => Some(Bits(semantics::compare(f, from, x[0], x[1]) as u64)),
        OpKind::Fma => Some(semantics::fma(from, x[0], x[1], x[2])),
        OpKind::Select => Some(if x[0].0 != 0 { x[1] } else { x[2] }),
        OpKind::Cast => Some(semantics::cast(from, to, x[0])),
        OpKind::Bitcast => Some(canonical(from, x[0])),
        OpKind::Broadcast | OpKind::Reshape | OpKind::Transpose { .. } | OpKind::Slice { .. } => Some(x[0]),
        OpKind::Join { .. } => (canonical(from, x[0]) == canonical(from, x[1])).then_some(x[0]),
        OpKind::Reduce { axis, combine } => match combine {
            Combine::Max | Combine::Min | Combine::And | Combine::Or => Some(x[0]),
            Combine::Sum if from.is_int() => {
                let n = Bits::from_i64(from, operand_shape.dim(axis as usize) as i64);
                semantics::binary(crate::ir::BinaryOp::Mul, from, x[0], n)
            }
            _ => None,
        },
        OpKind::Scan { combine: Combine::Max | Combine::Min | Combine::And | Combine::Or, .. } => Some(x[0]),
        _ => None,
    }
}

/// The zero-extended bits of an element.
pub fn canonical(dtype: DType, bits: Bits) -> Bits {
    if dtype.is_int() { Bits::from_i64(dtype, bits.to_i64(dtype)) } else { bits }
}
