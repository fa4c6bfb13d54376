//! Identities of elementwise operations.
//!
//! Integers wrap, so they are a ring and the rules are the ring's:
//!   x+0, x-0, x·1, x/1, x<<0, x>>0, x|0, x^0, x&-1 = x     x·0, x-x, x^x, x&0, x%1 = 0     x|-1 = -1
//!   x&x, x|x, min(x,x), max(x,x) = x     x-c = x+(-c)     (x∘c)∘d = x∘(c∘d) for ∘ in + · & | ^
//! Floats: only what holds for -0, infinities and NaN:
//!   x·1, x/1, x-(+0), x+(-0) = x         (not x+0: -0+0 is 0; not x·0, not x-x)
//! Both: constants go right of a commutative operation and of a comparison; --x = x; |−x|, ||x|| = |x|;
//!   a comparison of an integer with itself is known; !(a<b) = a>=b on integers, !(a==b) = a!=b on all.
//! Select: select(c,x,x) = x; by a constant; select(!c,x,y) = select(c,y,x); select(c,true,false) = c.
//! Casts: a cast back to where an exact cast came from is nothing; a cast of an exact cast is one cast (`composes`).

use super::canonicalize::Rewrite;
use super::fold::canonical;
use crate::ir::{BinaryOp, Bits, CmpOp, DType, Kernel, Op, OpKind, Type, UnaryOp, ValueId};
use crate::semantics;

/// Applies one identity; new operations go to the end of `before`.
pub fn simplify(k: &mut Kernel, op: &Op, before: &mut Vec<crate::ir::OpId>) -> Option<Rewrite> {
    match op.kind {
        OpKind::Unary(f) => unary(k, f, op),
        OpKind::Binary(f) => binary(k, f, op, before),
        OpKind::Compare(f) => compare(k, f, op, before),
        OpKind::Select => select(k, op),
        OpKind::Cast => cast(k, op),
        OpKind::Bitcast => {
            let (_, inner) = through(k, op.operands[0], |kind| matches!(kind, OpKind::Bitcast))?;
            if k.ty(inner) == k.ty(op.results[0]) {
                return Some(Rewrite::value(inner));
            }
            Some(Rewrite::op(OpKind::Bitcast, &[inner]))
        }
        _ => None,
    }
}

/// The kind and the first operand of the operation behind `v`, if it is one of these.
fn through(k: &Kernel, v: ValueId, is: impl Fn(&OpKind) -> bool) -> Option<(OpKind, ValueId)> {
    let op = k.op(k.defining_op(v)?);
    is(&op.kind).then(|| (op.kind.clone(), op.operands[0]))
}

fn unary(k: &Kernel, f: UnaryOp, op: &Op) -> Option<Rewrite> {
    let x = op.operands[0];
    let inner = k.op(k.defining_op(x)?);
    match (f, &inner.kind) {
        (UnaryOp::Neg, OpKind::Unary(UnaryOp::Neg)) | (UnaryOp::Not, OpKind::Unary(UnaryOp::Not)) => {
            Some(Rewrite::value(inner.operands[0]))
        }
        (UnaryOp::Abs, OpKind::Unary(UnaryOp::Abs)) => Some(Rewrite::value(x)),
        (UnaryOp::Abs, OpKind::Unary(UnaryOp::Neg)) => Some(Rewrite::op(op.kind.clone(), &[inner.operands[0]])),
        (UnaryOp::Not, &OpKind::Compare(c)) => {
            // With NaN, !(a < b) is true and a >= b is not.
            let ordered = !k.ty(inner.operands[0]).dtype().is_float();
            let negated = match c {
                CmpOp::Eq => CmpOp::Ne,
                CmpOp::Ne => CmpOp::Eq,
                CmpOp::Lt if ordered => CmpOp::Ge,
                CmpOp::Le if ordered => CmpOp::Gt,
                CmpOp::Gt if ordered => CmpOp::Le,
                CmpOp::Ge if ordered => CmpOp::Lt,
                _ => return None,
            };
            Some(Rewrite::op(OpKind::Compare(negated), &inner.operands))
        }
        _ => None,
    }
}

fn commutes(f: BinaryOp, d: DType) -> bool {
    match f {
        BinaryOp::Add | BinaryOp::Mul | BinaryOp::And | BinaryOp::Or | BinaryOp::Xor => true,
        // Of two zeros of different sign either may result, and the order may decide.
        BinaryOp::Min | BinaryOp::Max => !d.is_float(),
        _ => false,
    }
}

/// A constant of `like`'s type, created before the operation at hand.
pub fn new_constant(k: &mut Kernel, ty: Type, bits: Bits, op: &Op, before: &mut Vec<crate::ir::OpId>) -> ValueId {
    let id = k.new_op(OpKind::Const(bits), &[], &[ty], &[], op.loc);
    before.push(id);
    k.op(id).results[0]
}

fn binary(k: &mut Kernel, f: BinaryOp, op: &Op, before: &mut Vec<crate::ir::OpId>) -> Option<Rewrite> {
    let (x, y) = (op.operands[0], op.operands[1]);
    let ty = k.ty(x);
    let d = ty.dtype();
    if k.constant(x).is_some() && k.constant(y).is_none() && commutes(f, d) {
        return Some(Rewrite::op(op.kind.clone(), &[y, x]));
    }
    let c = k.constant(y).map(|bits| canonical(d, bits));
    let is = |value: i64| c == Some(Bits::from_i64(d, value));
    if d.is_float() {
        let neutral = match f {
            BinaryOp::Mul | BinaryOp::Div => is(1),
            BinaryOp::Sub => is(0),
            BinaryOp::Add => c == Some(Bits::from_f64(d, -0.0)),
            _ => false,
        };
        return neutral.then(|| Rewrite::value(x));
    }
    // From here on integers and bool. For bool only the bitwise operations exist, and 1 is "all ones".
    let ones = c == Some(if d == DType::Bool { Bits(1) } else { Bits::from_i64(d, -1) });
    let neutral = match f {
        BinaryOp::Add | BinaryOp::Sub | BinaryOp::Or | BinaryOp::Xor => is(0),
        // The amount counts modulo the width.
        BinaryOp::Shl | BinaryOp::Shr => c.is_some_and(|c| c.0.is_multiple_of(8 * d.size() as u64)),
        BinaryOp::Mul | BinaryOp::Div => is(1),
        BinaryOp::And => ones || x == y,
        _ => false,
    };
    if neutral || (x == y && matches!(f, BinaryOp::Or | BinaryOp::Min | BinaryOp::Max)) {
        return Some(Rewrite::value(x));
    }
    let absorbs = match f {
        BinaryOp::Mul | BinaryOp::And => is(0),
        BinaryOp::Or => ones,
        _ => false,
    };
    if absorbs {
        return Some(Rewrite::value(y));
    }
    let zero = (x == y && matches!(f, BinaryOp::Sub | BinaryOp::Xor)) || (f == BinaryOp::Rem && is(1));
    if zero {
        return Some(Rewrite::op(OpKind::Const(Bits(0)), &[]));
    }
    let c = c?;
    if f == BinaryOp::Sub {
        let negated = new_constant(k, ty, semantics::binary(f, d, Bits(0), c)?, op, before);
        return Some(Rewrite::op(OpKind::Binary(BinaryOp::Add), &[x, negated]));
    }
    // (x ∘ b) ∘ c
    let inner = k.op(k.defining_op(x)?);
    let associates = matches!(f, BinaryOp::Add | BinaryOp::Mul | BinaryOp::And | BinaryOp::Or | BinaryOp::Xor);
    if !associates || inner.kind != op.kind {
        return None;
    }
    let base = inner.operands[0];
    let b = k.constant(inner.operands[1])?;
    let both = new_constant(k, ty, semantics::binary(f, d, b, c)?, op, before);
    Some(Rewrite::op(op.kind.clone(), &[base, both]))
}

fn compare(k: &mut Kernel, f: CmpOp, op: &Op, before: &mut Vec<crate::ir::OpId>) -> Option<Rewrite> {
    let (x, y) = (op.operands[0], op.operands[1]);
    if k.constant(x).is_some() && k.constant(y).is_none() {
        let mirrored = match f {
            CmpOp::Eq | CmpOp::Ne => f,
            CmpOp::Lt => CmpOp::Gt,
            CmpOp::Le => CmpOp::Ge,
            CmpOp::Gt => CmpOp::Lt,
            CmpOp::Ge => CmpOp::Le,
        };
        return Some(Rewrite::op(OpKind::Compare(mirrored), &[y, x]));
    }
    if x == y && !k.ty(x).dtype().is_float() {
        let holds = matches!(f, CmpOp::Eq | CmpOp::Le | CmpOp::Ge);
        let ty = k.ty(op.results[0]);
        return Some(Rewrite::value(new_constant(k, ty, Bits(holds as u64), op, before)));
    }
    None
}

fn select(k: &Kernel, op: &Op) -> Option<Rewrite> {
    let (c, x, y) = (op.operands[0], op.operands[1], op.operands[2]);
    if x == y {
        return Some(Rewrite::value(x));
    }
    if let Some(bits) = k.constant(c) {
        return Some(Rewrite::value(if bits.0 != 0 { x } else { y }));
    }
    if let Some((_, inner)) = through(k, c, |kind| *kind == OpKind::Unary(UnaryOp::Not)) {
        return Some(Rewrite::op(OpKind::Select, &[inner, y, x]));
    }
    if k.ty(x).dtype() == DType::Bool
        && let (Some(a), Some(b)) = (k.constant(x), k.constant(y))
    {
        return match (a.0 != 0, b.0 != 0) {
            (true, false) => Some(Rewrite::value(c)),
            (false, true) => Some(Rewrite::op(OpKind::Unary(UnaryOp::Not), &[c])),
            _ => Some(Rewrite::value(x)),
        };
    }
    None
}

fn cast(k: &Kernel, op: &Op) -> Option<Rewrite> {
    let x = op.operands[0];
    let (middle, to) = (k.ty(x).dtype(), k.ty(op.results[0]).dtype());
    if middle == to {
        return Some(Rewrite::value(x));
    }
    let (_, inner) = through(k, x, |kind| *kind == OpKind::Cast)?;
    let from = k.ty(inner).dtype();
    if !composes(from, middle, to) {
        return None;
    }
    Some(if from == to { Rewrite::value(inner) } else { Rewrite::op(OpKind::Cast, &[inner]) })
}

/// Whether every value of `a` is a value of `b`.
fn exact(a: DType, b: DType) -> bool {
    use DType::*;
    // Digits of the significand, or of the integer without its sign.
    let digits = |d: DType| match d {
        Bool => 1,
        F8E4M3 => 4,
        F8E5M2 => 3,
        F16 => 11,
        BF16 => 8,
        F32 => 24,
        d => 8 * d.size() as u32 - d.is_signed() as u32,
    };
    match (a.is_float(), b.is_float()) {
        _ if a == b => true,
        (true, true) => matches!((a, b), (_, F32) | (F8E4M3 | F8E5M2, F16 | BF16)),
        // fp8 saturates or overflows early; bool's 0 and 1 it has.
        (false, true) => a == Bool || (digits(a) <= digits(b) && !b.is_fp8()),
        (true, false) => false,
        (false, false) => b != Bool && digits(a) <= digits(b) && (!a.is_signed() || b.is_signed()),
    }
}

/// Whether a → b → c is a → c. The first cast must lose nothing. Integers become integers by wrapping, floats by
/// saturation: if b is of the other kind than a, an integer c must hold all of a.
fn composes(a: DType, b: DType, c: DType) -> bool {
    exact(a, b) && (a.is_float() == b.is_float() || c.is_float() || c == DType::Bool || exact(a, c))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All casts that the rule merges, on every value of narrow types and on values around the edges of wide ones.
    #[test]
    fn merged_casts_compute_the_same() {
        for a in DType::ALL {
            let values: Vec<Bits> = match (a, a.size()) {
                (DType::Bool, _) => vec![Bits(0), Bits(1)],
                (_, 1) => (0..=0xff).map(Bits).collect(),
                (_, 2) => (0..=0xffff).map(Bits).collect(),
                (_, size) => (0..8 * size as u32)
                    .flat_map(|s| {
                        [1u64 << s, (1u64 << s) - 1, (1u64 << s) + 1, !(1u64 << s), (1u64 << s) - (1 << (s / 2))]
                    })
                    .map(|v| Bits(v & (u64::MAX >> (64 - 8 * size))))
                    .collect(),
            };
            for (b, c) in DType::ALL.into_iter().flat_map(|b| DType::ALL.map(|c| (b, c))) {
                if !composes(a, b, c) {
                    continue;
                }
                for &v in &values {
                    let (two, one) = (semantics::cast(b, c, semantics::cast(a, b, v)), semantics::cast(a, c, v));
                    let nan = c.is_float() && two.to_f64(c).is_nan() && one.to_f64(c).is_nan();
                    assert!(two == one || nan, "{a} -> {b} -> {c} of {:#x}: {:#x}, {:#x}", v.0, two.0, one.0);
                }
            }
        }
    }
}
