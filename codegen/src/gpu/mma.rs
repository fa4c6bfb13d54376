//! Chooses how each matrix product is computed: on Hopper's tensor cores by warpgroups (`wgmma`), by single warps
//! (`mma.sync`), or by fused multiply-adds where the precision or the shape leaves no other way. Every fall back is
//! reported, with its reason.

use super::layout::{LinearLayout, Operand};
use super::{Chip, origins, pipeline};
use crate::ir::{DType, Def, Finding, Kernel, Lint, OpId, OpKind, Precision, Shape, ValueId};

/// The instruction of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmaKind {
    /// m16n8k16, f16 operands.
    F16,
    /// m16n8k16, bf16 operands (or 8-bit floats, which are exact in bf16).
    BF16,
    /// m16n8k8, f32 operands rounded to tf32.
    Tf32,
    /// Three tf32 products of split operands.
    Tf32x3,
    /// m16n8k32, signed and unsigned bytes.
    I8,
    U8,
}

/// A product on the tensor cores, or one for each index of a first axis.
#[derive(Clone, Debug)]
pub struct MmaPlan {
    pub kind: MmaKind,
    pub a: LinearLayout,
    pub b: LinearLayout,
    pub acc: LinearLayout,
}

/// A product by warpgroups (`wgmma.mma_async.m64nNk16` of 16-bit floats, `k32` of bytes, `k8` of f32 as tf32): the first
/// operand from registers or shared memory, the second from shared memory, the sums in registers.
#[derive(Clone, Debug)]
pub struct WgmmaPlan {
    /// Of both operands.
    pub dtype: DType,
    /// N of one instruction.
    pub n: usize,
    /// Warpgroups along M and N.
    pub groups: [usize; 2],
    /// Of the first operand, if it is in registers.
    pub a: LinearLayout,
    pub acc: LinearLayout,
}

#[derive(Clone, Debug)]
pub enum DotPlan {
    /// Operands through shared memory, one multiply-add per product.
    Fma {
        layout: LinearLayout,
    },
    Mma(Box<MmaPlan>),
    Wgmma(Box<WgmmaPlan>),
}

impl DotPlan {
    pub fn accumulator(&self) -> &LinearLayout {
        match self {
            DotPlan::Fma { layout } => layout,
            DotPlan::Mma(m) => &m.acc,
            DotPlan::Wgmma(m) => &m.acc,
        }
    }

    /// Whether tensor cores compute it.
    pub fn is_mma(&self) -> bool {
        !matches!(self, DotPlan::Fma { .. })
    }
}

/// What the iteration before yields for a value that a `for` carries.
fn carried_from(k: &Kernel, v: ValueId) -> Option<ValueId> {
    let Def::Arg(region, i @ 1..) = k.def(v) else { return None };
    k.ops.iter().find(|o| matches!(o.kind, OpKind::For { .. }) && o.regions[0] == region)?;
    let last = *k.region(region).ops.last()?;
    Some(k.op(last).operands[i as usize - 1])
}

/// Whether `v` is computed from the result of a matrix product in its own region, in this iteration or the one before,
/// so that rows should stay in one warp.
fn from_dot(k: &Kernel, v: ValueId, depth: u32) -> bool {
    fn go(k: &Kernel, v: ValueId, depth: u32, earlier: bool) -> bool {
        let Some(op) = k.defining_op(v).map(|o| k.op(o)) else {
            return earlier && carried_from(k, v).is_some_and(|end| go(k, end, depth, false));
        };
        match op.kind {
            OpKind::Dot(_) => true,
            OpKind::Load { .. } | OpKind::Gather { .. } | OpKind::For { .. } | OpKind::While | OpKind::If => false,
            _ => depth > 0 && op.operands.iter().any(|&o| go(k, o, depth - 1, earlier)),
        }
    }
    go(k, v, depth, true)
}

/// Warps along M and N for an M×N product.
fn warp_grid(k: &Kernel, op: OpId, m: usize, n: usize, warps: usize) -> [usize; 2] {
    // Part of a chain: the other product's first operand comes from this one, or this one's from another.
    let a = k.op(op).operands[0];
    let dots = || k.ops.iter().filter(|o| matches!(o.kind, OpKind::Dot(_)));
    let feeds = || dots().any(|o| from_dot(k, o.operands[0], 24) && reaches(k, o.operands[0], op, 24));
    let chained = from_dot(k, a, 24) || feeds();
    let most = (m / 16).clamp(1, warps);
    if chained {
        return [most, warps / most];
    }
    // Least operand traffic: the squarest warp tile, among those that leave every warp something of its own.
    let mut best = (usize::MAX, [most, warps / most]);
    let mut along_m = 1;
    while along_m <= warps {
        let grid = [along_m, warps / along_m];
        let copies = (grid[0] * 16).div_ceil(m).max(1) * (grid[1] * 8).div_ceil(n).max(1);
        let cost = copies * 100_000 + m.div_ceil(grid[0]) + n.div_ceil(grid[1]);
        if cost < best.0 {
            best = (cost, grid);
        }
        along_m *= 2;
    }
    best.1
}

fn reaches(k: &Kernel, v: ValueId, target: OpId, depth: u32) -> bool {
    match k.defining_op(v) {
        Some(o) if o == target => true,
        Some(o) if depth > 0 && !k.op(o).kind.has_regions() => {
            k.op(o).operands.iter().any(|&x| reaches(k, x, target, depth - 1))
        }
        _ => false,
    }
}

/// Multiplications from which a product is worth laying its second operand out in shared memory: about as many as a
/// multiprocessor does meanwhile.
const WORTH_A_FENCE: usize = 1 << 19;

/// `MxNxK` of a product.
fn dot_shape(k: &Kernel, id: OpId) -> String {
    let [batch, m, depth, n] = k.dot_extents(k.op(id));
    if batch > 1 { format!("{batch} of {m}x{n}x{depth}") } else { format!("{m}x{n}x{depth}") }
}

/// The plan of a product by warpgroups, or why there is none.
fn wgmma(k: &Kernel, id: OpId, precision: Precision, warps: usize) -> Result<WgmmaPlan, &'static str> {
    let op = k.op(id);
    let (a, dtype) = (k.ty(op.operands[0]).shape(), k.ty(op.operands[0]).dtype());
    let shape = k.ty(op.results[0]).shape();
    if shape.rank() != 2 {
        return Err("which takes one product at a time");
    }
    let (m, n, depth) = (shape.dim(0), shape.dim(1), a.dim(1));
    if dtype == DType::F32 && precision != Precision::Tf32 {
        return Err("which takes f32 as tf32 only");
    }
    let size = dtype.size();
    if m < 64 || n < 16 || depth * size < 32 {
        return Err(match dtype {
            DType::F32 => "which takes at least 64x16x8 of tf32",
            _ => "which takes at least 64x16x16 (8-bit: 64x16x32)",
        });
    }
    // Of other than 16-bit operands K must run along the rows in memory: of A as it is, of B transposed.
    let transposed =
        |i: usize| k.defining_op(op.operands[i]).is_some_and(|o| matches!(k.op(o).kind, OpKind::Transpose { .. }));
    if size != 2 && (transposed(0) || !transposed(1)) {
        return Err("which takes 8-bit and tf32 operands with K along their rows");
    }
    if warps < 4 {
        return Err("which takes four warps");
    }
    // To lay a computed operand out in shared memory takes two barriers and a fence that waits for all memory traffic.
    if pipeline::source(k, op.operands[1]).is_none() && m * n * depth < WORTH_A_FENCE {
        return Err("which reads its second operand from shared memory: too small for laying it out there");
    }
    // Rows first: a warpgroup's rows stay together, and each reads all of B.
    let along_m = (warps / 4).min(m / 64);
    let groups = [along_m, warps / 4 / along_m];
    // Where warpgroups share the rows and N runs along B's rows in memory, each takes whole panels of them.
    let least = if transposed(1) { 16 } else { 64 };
    if groups[1] > 1 && n / groups[1] < least {
        return Err("M and N are too small for its warpgroups");
    }
    let instruction = (n / groups[1]).min(256);
    let layouts = LinearLayout::wgmma_operand_a(a, size, groups)
        .and_then(|a| Ok((a, LinearLayout::wgmma_accumulator(shape, instruction, groups)?)));
    let (a, acc) = layouts.map_err(|_| "no layout fits")?;
    Ok(WgmmaPlan { dtype, n: instruction, groups, a, acc })
}

/// The tensor-core plan of a product, or `None` and a finding that says why there is none.
pub fn plan(
    k: &Kernel,
    id: OpId,
    precision: Precision,
    warps: usize,
    chip: Chip,
    findings: &mut Vec<Finding>,
) -> Option<DotPlan> {
    let mut slower = |why: String| findings.push(Finding::new(Lint::Fallback, k.op(id).loc, why));
    if chip.warpgroups {
        match wgmma(k, id, precision, warps) {
            Ok(plan) => return Some(DotPlan::Wgmma(Box::new(plan))),
            Err(why) => slower(format!("dot {}: no wgmma, {why}", dot_shape(k, id))),
        }
    }
    let op = k.op(id);
    let [batch, m, depth, n] = k.dot_extents(op);
    let kind = match (k.ty(op.operands[0]).dtype(), precision) {
        (DType::F16, _) => MmaKind::F16,
        (DType::BF16 | DType::F8E4M3 | DType::F8E5M2, _) => MmaKind::BF16,
        (DType::I8, _) => MmaKind::I8,
        (DType::U8, _) => MmaKind::U8,
        (_, Precision::Tf32) => MmaKind::Tf32,
        (_, Precision::Tf32x3) => MmaKind::Tf32x3,
        _ => {
            slower(format!("dot {m}x{n}x{depth} in f32: no tensor cores (ask for tf32 or tf32x3)"));
            return None;
        }
    };
    let bytes = match kind {
        MmaKind::F16 | MmaKind::BF16 => 2,
        MmaKind::Tf32 | MmaKind::Tf32x3 => 4,
        MmaKind::I8 | MmaKind::U8 => 1,
    };
    if depth * bytes < 32 {
        slower(format!("dot {m}x{n}x{depth}: K is below {}, no tensor cores", 32 / bytes));
        return None;
    }
    // Matrices first: then nothing of one is in another warp. Warps that are left share its tiles; if there is but one, they
    // compute the same, since that takes less than to hand each other halves of what follows.
    let rank = k.ty(op.results[0]).shape().rank();
    let single = rank == 3 && m <= 16 && n <= 16;
    let side_by_side = if single { warps } else { batch.min(warps) };
    let warps = warps / side_by_side;
    let whole = |l: LinearLayout| match rank {
        2 => Some(l),
        _ => l.batched(batch, side_by_side).ok(),
    };
    let plan = |grid, runs: bool| {
        let operand = |shape: [usize; 2], operand| {
            let l = LinearLayout::mma_operand(matrix(shape), operand, bytes, grid).ok()?;
            whole(if runs { l.in_runs(operand, bytes) } else { l })
        };
        Some(MmaPlan {
            kind,
            a: operand([m, depth], Operand::A)?,
            b: operand([depth, n], Operand::B)?,
            acc: whole(LinearLayout::mma_accumulator(matrix([m, n]), grid).ok()?)?,
        })
    };
    // Operands that are computed from memory stay where they are computed: rows in one warp, runs along K in a thread.
    let along_m = (m / 16).clamp(1, warps);
    if let Some(rows) = plan([along_m, warps / along_m], true)
        && [(0, &rows.a), (1, &rows.b)].iter().all(|(i, l)| origins::in_runs(k, op.operands[*i], l))
    {
        return Some(DotPlan::Mma(Box::new(rows)));
    }
    let plan = plan(warp_grid(k, id, m, n, warps), false)?;
    Some(DotPlan::Mma(Box::new(plan)))
}

fn matrix([rows, columns]: [usize; 2]) -> Shape {
    Shape::new(&[rows as u32, columns as u32])
}
