//! What is known of scalars and views while compiling: by which powers of two they divide, which stride is 1.
//!
//! Vector accesses need an aligned first element and a run of neighbours that lies wholly inside or wholly outside the
//! view. Both follow from divisibility: of the address, the strides, the coordinates and the extents. Facts come from
//! the launch ([`Fact`]) and are propagated through scalar arithmetic and view operations.
//!
//! Invariant: every answer is a power of two that divides the value in every run; 1 when nothing is known.

use crate::ir::{BinaryOp, Def, Fact, Kernel, OpId, OpKind, RegionId, Shape, Type, UnaryOp, ValueId};

/// Zero is divisible by everything; this is as far as anybody asks.
pub const EVERYTHING: u32 = 1 << 16;

/// What is known of a view.
#[derive(Clone, Debug)]
pub struct ViewFacts {
    /// The parameter that it is a window of.
    pub param: usize,
    /// Divides the address, in bytes.
    pub address: u32,
    /// Divides each extent, in elements.
    pub extents: Vec<u32>,
    /// Divides each stride, in elements.
    pub strides: Vec<u32>,
    /// Whether the stride is exactly 1.
    pub unit: Vec<bool>,
}

/// How a tile is best accessed through a view: `vector` elements at a time along `axis`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    pub axis: usize,
    pub vector: usize,
}

fn power_of(x: u64) -> u32 {
    if x == 0 { EVERYTHING } else { (1u64 << x.trailing_zeros().min(16)) as u32 }
}

/// A power of two that divides an integer scalar.
pub fn divisor(k: &Kernel, v: ValueId) -> u32 {
    divisor_within(k, v, 16)
}

fn divisor_within(k: &Kernel, v: ValueId, depth: u32) -> u32 {
    if depth == 0 {
        return 1;
    }
    let go = |v| divisor_within(k, v, depth - 1);
    let op = match k.def(v) {
        Def::Result(op, _) => k.op(op),
        // The first argument of a `for` body counts in steps from the lower bound.
        Def::Arg(region, 0) => match k.ops.iter().find(|o| o.regions.contains(&region)) {
            Some(o) if matches!(o.kind, OpKind::For { .. }) => return go(o.operands[0]).min(go(o.operands[2])),
            _ => return 1,
        },
        _ => return 1,
    };
    match &op.kind {
        OpKind::Const(bits) => power_of(bits.0),
        OpKind::Binary(BinaryOp::Add | BinaryOp::Sub | BinaryOp::Min | BinaryOp::Max) => {
            go(op.operands[0]).min(go(op.operands[1]))
        }
        OpKind::Binary(BinaryOp::Mul) => {
            (go(op.operands[0]) as u64 * go(op.operands[1]) as u64).min(EVERYTHING as u64) as u32
        }
        OpKind::Binary(BinaryOp::Shl) => match k.constant(op.operands[1]) {
            Some(amount) if amount.0 < 16 => ((go(op.operands[0]) as u64) << amount.0).min(EVERYTHING as u64) as u32,
            _ => go(op.operands[0]),
        },
        OpKind::Binary(BinaryOp::Div) => match k.constant(op.operands[1]) {
            // Exact when the divisor divides.
            Some(by) if by.0.is_power_of_two() && by.0 <= go(op.operands[0]) as u64 => go(op.operands[0]) / by.0 as u32,
            _ => 1,
        },
        OpKind::Unary(UnaryOp::Neg | UnaryOp::Abs) => go(op.operands[0]),
        OpKind::Select => go(op.operands[1]).min(go(op.operands[2])),
        OpKind::Cast if k.ty(op.operands[0]).dtype().is_int() => go(op.operands[0]),
        OpKind::Dim { dim } => view_facts(k, op.operands[0]).map_or(1, |f| f.extents[*dim as usize]),
        _ => 1,
    }
}

/// A sum of scalars (each a value and its factor) and a constant; all arithmetic wraps at 32 bits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Sum {
    terms: Vec<(ValueId, u32)>,
    constant: u32,
}

impl Sum {
    /// How often a scalar is in it.
    fn factor(&self, v: ValueId) -> u32 {
        self.terms.iter().find(|t| t.0 == v).map_or(0, |t| t.1)
    }

    fn add(&mut self, k: &Kernel, v: ValueId, factor: u32, depth: u32) {
        if let Some(bits) = k.constant(v) {
            self.constant = self.constant.wrapping_add((bits.0 as u32).wrapping_mul(factor));
            return;
        }
        if let (Def::Result(op, _), true) = (k.def(v), depth > 0) {
            let op = k.op(op);
            match op.kind {
                OpKind::Binary(BinaryOp::Add) => {
                    self.add(k, op.operands[0], factor, depth - 1);
                    return self.add(k, op.operands[1], factor, depth - 1);
                }
                OpKind::Binary(BinaryOp::Sub) => {
                    self.add(k, op.operands[0], factor, depth - 1);
                    return self.add(k, op.operands[1], factor.wrapping_neg(), depth - 1);
                }
                _ => {}
            }
        }
        match self.terms.iter_mut().find(|t| t.0 == v) {
            Some(t) => t.1 = t.1.wrapping_add(factor),
            None => self.terms.push((v, factor)),
        }
    }
}

/// Whether two boxes of one shape, at these coordinates of one view, are known to have no element in common: along some
/// axis they are a constant apart that is no less than the extent.
pub fn disjoint(k: &Kernel, shape: Shape, a: &[ValueId], b: &[ValueId]) -> bool {
    (0..shape.rank()).any(|axis| {
        let mut difference = Sum::default();
        difference.add(k, a[axis], 1, 8);
        difference.add(k, b[axis], 1u32.wrapping_neg(), 8);
        let extent = shape.dim(axis) as u32;
        let apart = difference.constant >= extent && difference.constant.wrapping_neg() >= extent;
        apart && difference.terms.iter().all(|t| t.1 == 0)
    })
}

/// Whether the boxes at these coordinates are known to have no element in common in different iterations of a loop:
/// along some axis a step takes them at least their extent further.
pub fn disjoint_by_iteration(k: &Kernel, id: OpId, shape: Shape, coords: &[ValueId]) -> bool {
    let body = k.op(id).regions[0];
    let Some(step) = k.constant(k.op(id).operands[2]).map(|bits| bits.0 as i32) else { return false };
    (0..shape.rank()).any(|axis| step >= shape.dim(axis) as i32 && growth(k, body, coords[axis]) == Some(1))
}

/// How much a coordinate grows with the counter of the loop with this body; `None` if it is not a multiple of it and
/// something from outside.
pub fn growth(k: &Kernel, body: RegionId, coord: ValueId) -> Option<u32> {
    let counter = k.region(body).args[0];
    let outside = |v: ValueId| match k.def(v) {
        Def::Param(_) => true,
        Def::Arg(region, _) => region != body,
        Def::Result(op, _) => !k.region(body).ops.contains(&op),
    };
    let mut place = Sum::default();
    place.add(k, coord, 1, 8);
    let stays = |t: &(ValueId, u32)| t.0 == counter || t.1 == 0 || outside(t.0);
    place.terms.iter().all(stays).then_some(place.factor(counter))
}

/// Whether coordinates in two loops, with these bodies, are the same function of the loops' counters.
pub fn same_function(k: &Kernel, bodies: [RegionId; 2], coords: [ValueId; 2]) -> bool {
    let [a, b] = [0, 1].map(|i| {
        let (counter, mut sum) = (k.region(bodies[i]).args[0], Sum::default());
        sum.add(k, coords[i], 1, 8);
        let grows = sum.factor(counter);
        sum.terms.retain(|t| t.0 != counter && t.1 != 0);
        sum.terms.sort();
        (grows, sum)
    });
    a == b
}

/// What is known of a view; nothing for a view that control flow chose (there is none in valid kernels).
pub fn view_facts(k: &Kernel, view: ValueId) -> Option<ViewFacts> {
    let Type::View(dtype, rank) = k.ty(view) else { return None };
    match k.def(view) {
        Def::Param(p) => {
            let base = k.slots().iter().position(|s| s.param == p)?;
            let known = |i: usize| match k.fact(i) {
                Fact::Multiple16 => 16,
                Fact::One | Fact::Unknown => 1,
            };
            let rank = rank as usize;
            Some(ViewFacts {
                param: p as usize,
                address: known(base).max(dtype.size() as u32),
                extents: (0..rank).map(|d| known(base + 1 + d)).collect(),
                strides: (0..rank).map(|d| known(base + 1 + rank + d)).collect(),
                unit: (0..rank).map(|d| k.fact(base + 1 + rank + d) == Fact::One).collect(),
            })
        }
        Def::Result(op, _) => {
            let op = k.op(op);
            let mut f = view_facts(k, op.operands[0])?;
            match op.kind {
                OpKind::ViewSelect { dim } => {
                    let d = dim as usize;
                    let step = f.strides[d] as u64 * divisor(k, op.operands[1]) as u64 * dtype.size() as u64;
                    f.address = f.address.min(power_of(step));
                    f.extents.remove(d);
                    f.strides.remove(d);
                    f.unit.remove(d);
                }
                OpKind::ViewNarrow { dim } => {
                    let d = dim as usize;
                    // The start is clamped to the extent, so it divides only by what divides both.
                    let start = divisor(k, op.operands[1]).min(f.extents[d]);
                    let start = if k.constant(op.operands[1]).is_some_and(|b| b.0 == 0) { EVERYTHING } else { start };
                    let step = f.strides[d] as u64 * start as u64 * dtype.size() as u64;
                    f.address = f.address.min(power_of(step));
                    f.extents[d] = f.extents[d].min(start).min(divisor(k, op.operands[2]));
                }
                _ => return None,
            }
            Some(f)
        }
        Def::Arg(..) => None,
    }
}

/// How to access a box of `shape` at `coords` through `view`.
pub fn access(k: &Kernel, view: ValueId, shape: Shape, coords: &[ValueId]) -> Access {
    let dtype = k.ty(view).dtype();
    let rank = shape.rank();
    let last = Access { axis: rank.saturating_sub(1), vector: 1 };
    let Some(f) = view_facts(k, view) else { return last };
    if rank == 0 {
        return last;
    }
    // Of several unit strides (extents of 1), the one with the longest run.
    let Some(axis) = (0..rank).filter(|&d| f.unit[d]).max_by_key(|&d| (shape.dim(d), d)) else { return last };
    let size = dtype.size() as u32;
    let mut vector = (16 / size).min(f.address / size).min(shape.dim(axis) as u32);
    vector = vector.min(f.extents[axis]).min(divisor(k, coords[axis]));
    for d in (0..rank).filter(|&d| d != axis) {
        let steps = if shape.dim(d) == 1 { divisor(k, coords[d]) } else { 1 };
        vector = vector.min(f.strides[d].saturating_mul(steps));
    }
    Access { axis, vector: vector.max(1) as usize }
}
