//! Which loads the tensor memory accelerator can make, and what a producer of such copies must know.
//!
//! A bulk copy needs a *tensor map* (a window of fixed extents on a whole parameter, encoded by the host) and one
//! coordinate per dimension of the parameter. One thread outside of the computing warps, the *producer*, walks through
//! the kernel's loops and starts the copies; it sees scalars only. So a load is a bulk copy if its view comes from a
//! read-only parameter by selections, if the parameter is laid out as the hardware asks (16-byte address and strides,
//! the last dimension contiguous), and if the producer can compute its coordinates and the bounds and conditions of
//! everything around it.

use super::facts::{self, ViewFacts};
use super::panels::Panels;
use crate::ir::{Access, DType, Def, Kernel, OpId, OpKind, RegionId, ValueId};
use std::collections::HashMap;

/// The tensor map of a load or store: a window on a parameter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorMap {
    /// The first launch slot of the parameter, a view: its address; then its extents, then its strides.
    pub slot: usize,
    /// Bytes of an element: 1, 2 or 4.
    pub size: usize,
    /// The extents of one copy, one per dimension of the parameter; the last is a panel's columns.
    pub extents: Vec<u32>,
    /// Bytes of the shared memory's swizzle: 32, 64 or 128; 16 if there is none.
    pub swizzle: usize,
    pub transfer: Transfer,
}

/// What becomes of elements on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transfer {
    /// They stay what they are.
    Bits,
    /// f32 becomes tf32, rounded to nearest, ties to even.
    Tf32,
    /// They are added to those in global memory.
    Add(DType),
}

/// A load as a bulk copy.
#[derive(Clone, Debug)]
pub struct BulkLoad {
    pub map: TensorMap,
    /// i32, one per dimension of the parameter.
    pub coords: Vec<ValueId>,
    /// If all programs of a cluster want this tile: each copies a part of its rows to all.
    pub share: Option<Share>,
    /// The first of the loads that arrive together: what waits for one waits for all.
    pub first: OpId,
}

/// How a cluster shares a copy.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Programs of the cluster.
    pub programs: usize,
    /// The parameter's dimension along the tile's rows; the map's extent there is one program's part.
    pub dim: usize,
}

/// The operation around each region, and the region around each operation.
pub struct Nesting {
    owner: HashMap<RegionId, OpId>,
    region: HashMap<OpId, RegionId>,
}

impl Nesting {
    pub fn of(k: &Kernel) -> Nesting {
        let mut n = Nesting { owner: HashMap::new(), region: HashMap::new() };
        let mut open = vec![k.body];
        while let Some(region) = open.pop() {
            for &op in &k.region(region).ops {
                n.region.insert(op, region);
                for &inner in &k.op(op).regions {
                    n.owner.insert(inner, op);
                    open.push(inner);
                }
            }
        }
        n
    }

    /// The operations around `op`, innermost first.
    pub fn around(&self, op: OpId) -> impl Iterator<Item = OpId> {
        let up = |op: &OpId| self.region.get(op).and_then(|r| self.owner.get(r)).copied();
        std::iter::successors(up(&op), move |op| up(op))
    }
}

/// Whether the producer can compute a scalar.
pub fn computable(k: &Kernel, v: ValueId) -> bool {
    if !k.ty(v).is_scalar() {
        return false;
    }
    let all = |vs: &[ValueId]| vs.iter().all(|&v| computable(k, v));
    match k.def(v) {
        Def::Param(_) => true,
        // The counter of a loop that the producer walks, too.
        Def::Arg(region, i) => {
            i == 0 && k.ops.iter().any(|o| matches!(o.kind, OpKind::For { .. }) && o.regions.contains(&region))
        }
        Def::Result(op, _) => {
            let op = k.op(op);
            match op.kind {
                OpKind::ProgramId { .. } | OpKind::NumPrograms { .. } | OpKind::Const(_) => true,
                _ if op.kind.is_elementwise() => all(&op.operands),
                OpKind::Dim { .. } => selections(k, op.operands[0]).is_some(),
                OpKind::Gather { masked: false } => {
                    let read = |(param, indices): (usize, Vec<(u8, ValueId)>)| {
                        k.params[param].access == Access::Read && indices.iter().all(|&(_, i)| computable(k, i))
                    };
                    selections(k, op.operands[0]).is_some_and(read) && all(&op.operands[1..])
                }
                _ => false,
            }
        }
    }
}

/// The parameter that a view comes from, and the selections on the way, the outermost first. `None` if it was narrowed.
pub fn selections(k: &Kernel, view: ValueId) -> Option<(usize, Vec<(u8, ValueId)>)> {
    match k.def(view) {
        Def::Param(p) => Some((p as usize, vec![])),
        Def::Result(op, _) => {
            let op = k.op(op);
            let OpKind::ViewSelect { dim } = op.kind else { return None };
            let (param, mut way) = selections(k, op.operands[0])?;
            way.push((dim, op.operands[1]));
            Some((param, way))
        }
        Def::Arg(..) => None,
    }
}

/// A place in a view as one in the parameter that it comes from by selections, and that parameter: per dimension the
/// coordinate, and which of the view's it is, unless it was selected. `None` if the view was narrowed.
pub fn in_parameter(k: &Kernel, view: ValueId, coords: &[ValueId]) -> Option<(usize, Vec<(ValueId, Option<usize>)>)> {
    let (param, way) = selections(k, view)?;
    let mut place: Vec<(ValueId, Option<usize>)> = coords.iter().enumerate().map(|(i, &c)| (c, Some(i))).collect();
    // Undo the selections, the last one first: each gives a dimension back.
    for &(dim, index) in way.iter().rev() {
        place.insert(dim as usize, (index, None));
    }
    Some((param, place))
}

/// Whether the hardware takes a parameter's address and strides, of elements of so many bytes.
pub fn aligned(f: &ViewFacts, size: usize) -> bool {
    let rows = &f.strides[..f.strides.len() - 1];
    f.address >= 16 && rows.iter().all(|&s| (s as usize * size).is_multiple_of(16))
}

/// A load as a bulk copy into these panels, or why it cannot be one.
pub fn bulk_load(k: &Kernel, load: OpId, panels: &Panels) -> Result<BulkLoad, &'static str> {
    let op = k.op(load);
    if op.kind != (OpKind::Load { has_other: false }) {
        return Err("it has an `other` value");
    }
    let ty = k.ty(op.results[0]);
    let (size, shape) = (ty.dtype().size(), ty.shape());
    let (param, place) = in_parameter(k, op.operands[0], &op.operands[1..]).ok_or("its view was narrowed")?;
    if k.params[param].access != Access::Read {
        return Err("the kernel may write to its parameter");
    }
    let last = place.len() - 1;
    if place[last].1.is_none() {
        return Err("its rows do not run along the parameter's last dimension");
    }
    let (coords, axes): (Vec<ValueId>, Vec<Option<usize>>) = place.into_iter().unzip();
    let mut extents: Vec<u32> = axes.iter().map(|axis| axis.map_or(1, |a| shape.dims()[a])).collect();
    extents[last] = panels.columns() as u32;
    let f = facts::view_facts(k, k.params[param].value).expect("a parameter has facts");
    if !matches!(size, 1 | 2 | 4) {
        return Err("its elements have 8 bytes");
    }
    if !f.unit[last] {
        return Err("its last dimension is not known to be contiguous");
    }
    if !aligned(&f, size) {
        return Err("its address or a stride is not known to be a multiple of 16 bytes");
    }
    if extents.iter().any(|&e| e > 256) {
        return Err("it has more than 256 rows");
    }
    if !coords.iter().all(|&c| computable(k, c)) {
        return Err("a coordinate is not a scalar that the producer can compute");
    }
    let slot = k.slots().iter().position(|s| s.param as usize == param).expect("every parameter has slots");
    Ok(BulkLoad {
        map: TensorMap { slot, size, extents, swizzle: panels.swizzle.bytes(), transfer: Transfer::Bits },
        coords,
        share: None,
        first: load,
    })
}

/// Whether the producer can walk to a loop: it computes the bounds of this loop and of those around it, and the
/// conditions.
pub fn reachable(k: &Kernel, nesting: &Nesting, id: OpId) -> bool {
    std::iter::once(id).chain(nesting.around(id)).all(|id| {
        let op = k.op(id);
        match op.kind {
            OpKind::For { .. } => op.operands[..3].iter().all(|&v| computable(k, v)),
            OpKind::If => computable(k, op.operands[0]),
            _ => false,
        }
    })
}
