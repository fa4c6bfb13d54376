//! Identities of operations that move elements.
//!
//! Rules: what moves nothing is its operand; two of a kind are one; a uniform tile stays uniform wherever it is moved,
//! and an elementwise operation on uniform tiles is the operation on scalars, broadcast. A slice of a join is a slice
//! of one half, and two halves joined again are the whole. Along an axis of extent 1 there is nothing to combine.

use super::algebra::new_constant;
use super::canonicalize::Rewrite;
use crate::ir::{Kernel, MAX_RANK, Op, OpId, OpKind, Shape, Type, ValueId};

/// Applies one identity; new operations go to the end of `before`.
pub fn simplify(k: &mut Kernel, op: &Op, before: &mut Vec<OpId>) -> Option<Rewrite> {
    match op.kind {
        OpKind::Broadcast | OpKind::Reshape => {
            let x = op.operands[0];
            if k.ty(x) == k.ty(op.results[0]) {
                return Some(Rewrite::value(x));
            }
            if op.kind == OpKind::Reshape
                && let Some(scalar) = uniform(k, x)
            {
                return Some(splat(k, op, scalar));
            }
            let inner = source(k, x)?;
            (inner.kind == op.kind).then(|| Rewrite::op(op.kind.clone(), &inner.operands))
        }
        OpKind::Transpose { perm } => transpose(k, op, perm),
        OpKind::Slice { offsets } => slice(k, op, offsets),
        OpKind::Join { axis } => join(k, op, axis as usize),
        OpKind::Reduce { axis, .. } | OpKind::Scan { axis, .. } => {
            let shape = k.ty(op.operands[0]).shape();
            if shape.dim(axis as usize) != 1 {
                return None;
            }
            if matches!(op.kind, OpKind::Scan { .. }) {
                return Some(Rewrite::Values(op.operands.to_vec()));
            }
            let reduced = op.operands.iter().zip(&op.results).map(|(&x, &r)| {
                let id = k.new_op(OpKind::Reshape, &[x], &[k.ty(r)], &[], op.loc);
                before.push(id);
                k.op(id).results[0]
            });
            Some(Rewrite::Values(reduced.collect()))
        }
        _ if op.kind.is_elementwise() => elementwise(k, op, before),
        _ => None,
    }
}

fn source(k: &Kernel, v: ValueId) -> Option<&Op> {
    k.defining_op(v).map(|op| k.op(op))
}

/// The scalar that every element of `v` is.
fn uniform(k: &Kernel, v: ValueId) -> Option<ValueId> {
    let op = source(k, v)?;
    (op.kind == OpKind::Broadcast && k.ty(op.operands[0]).is_scalar()).then(|| op.operands[0])
}

/// `scalar` in the shape of the operation's result.
fn splat(k: &Kernel, op: &Op, scalar: ValueId) -> Rewrite {
    if k.ty(op.results[0]).is_scalar() { Rewrite::value(scalar) } else { Rewrite::op(OpKind::Broadcast, &[scalar]) }
}

fn transpose(k: &Kernel, op: &Op, perm: [u8; MAX_RANK]) -> Option<Rewrite> {
    let x = op.operands[0];
    let rank = k.ty(x).shape().rank();
    if (0..rank).all(|i| perm[i] as usize == i) {
        return Some(Rewrite::value(x));
    }
    if let Some(scalar) = uniform(k, x) {
        return Some(splat(k, op, scalar));
    }
    let inner = source(k, x)?;
    let OpKind::Transpose { perm: first } = inner.kind else { return None };
    let mut both = [0, 1, 2, 3];
    for i in 0..rank {
        both[i] = first[perm[i] as usize];
    }
    Some(Rewrite::op(OpKind::Transpose { perm: both }, &inner.operands))
}

fn slice(k: &Kernel, op: &Op, offsets: [u32; MAX_RANK]) -> Option<Rewrite> {
    let x = op.operands[0];
    let shape = k.ty(op.results[0]).shape();
    if k.ty(x).shape() == shape {
        return Some(Rewrite::value(x));
    }
    if let Some(scalar) = uniform(k, x) {
        return Some(splat(k, op, scalar));
    }
    let inner = source(k, x)?;
    match inner.kind {
        // The extents are powers of two and the result's divide the inner slice's, so the sum is aligned.
        OpKind::Slice { offsets: first } => {
            let both = std::array::from_fn(|i| first[i] + offsets[i]);
            Some(Rewrite::op(OpKind::Slice { offsets: both }, &inner.operands))
        }
        OpKind::Join { axis } => {
            let axis = axis as usize;
            let half = k.ty(inner.operands[0]).shape().dims()[axis];
            if shape.dims()[axis] > half {
                return None; // All of the joined axis.
            }
            // Aligned, and no longer than a half: it lies within one.
            let second = offsets[axis] >= half;
            let mut within = offsets;
            within[axis] -= if second { half } else { 0 };
            Some(Rewrite::op(OpKind::Slice { offsets: within }, &[inner.operands[second as usize]]))
        }
        _ => None,
    }
}

fn join(k: &Kernel, op: &Op, axis: usize) -> Option<Rewrite> {
    if let (Some(a), Some(b)) = (uniform(k, op.operands[0]), uniform(k, op.operands[1]))
        && a == b
    {
        return Some(splat(k, op, a));
    }
    let (a, b) = (source(k, op.operands[0])?, source(k, op.operands[1])?);
    let (OpKind::Slice { offsets: first }, OpKind::Slice { offsets: second }) = (&a.kind, &b.kind) else {
        return None;
    };
    let whole = a.operands[0];
    let half = k.ty(op.operands[0]).shape().dims()[axis];
    let mut next = [0; MAX_RANK];
    next[axis] = half;
    let halves = *first == [0; MAX_RANK] && *second == next;
    (halves && b.operands[0] == whole && k.ty(whole) == k.ty(op.results[0])).then(|| Rewrite::value(whole))
}

fn elementwise(k: &mut Kernel, op: &Op, before: &mut Vec<OpId>) -> Option<Rewrite> {
    let Type::Tile(d, shape) = k.ty(op.results[0]) else { return None };
    if shape == Shape::SCALAR {
        return None;
    }
    // Constants alone would have been folded; what was not must not be taken apart for ever.
    let mut varies = false;
    for &v in &op.operands {
        match uniform(k, v) {
            Some(_) => varies = true,
            None => k.constant(v).map(|_| ())?,
        }
    }
    if !varies {
        return None;
    }
    let scalars: Vec<ValueId> = (op.operands.iter())
        .map(|&v| match (uniform(k, v), k.constant(v)) {
            (Some(scalar), _) => scalar,
            (_, Some(bits)) => new_constant(k, Type::scalar(k.ty(v).dtype()), bits, op, before),
            _ => unreachable!("seen to be uniform above"),
        })
        .collect();
    let id = k.new_op(op.kind.clone(), &scalars, &[Type::scalar(d)], &[], op.loc);
    before.push(id);
    Some(Rewrite::op(OpKind::Broadcast, &[k.op(id).results[0]]))
}
