//! Which stores the tensor memory accelerator makes.
//!
//! What products give is spread over a warp so that it would write a few bytes to each of many rows. Instead a warp puts
//! its part of the tile into shared memory, and it is copied from there. That part must be a box, or several: then no
//! other warp takes part, and a warp waits only where it wants the same bytes of shared memory again.
//!
//! The copy needs a tensor map, hence all that a bulk copy to shared memory needs of a parameter ([`bulk`](super::bulk)).
//! It leaves out what is outside of the parameter, but not what is outside of a narrowed view: there a tile must be known
//! to lie inside or outside as a whole ([`facts::inside_or_outside`]). And the kernel must do nothing with the parameter but
//! store: others would have to know when a copy is over.

use super::bulk::TensorMap;
use super::facts;
use super::layout::{Ldmatrix, LinearLayout, SharedLayout, VectorAccess};
use super::panels::Panels;
use crate::ir::{Access, Def, Kernel, MAX_RANK, OpId, OpKind, Shape, ValueId};

/// Rows that a swizzle's pattern spans: a panel is a whole number of them.
const PATTERN: usize = 8;

/// A store as bulk copies, of one panel of one box of a warp each.
#[derive(Clone, Debug)]
pub struct BulkStore {
    /// A window on the parameter: a panel.
    pub map: TensorMap,
    /// Where the tile is, per dimension of the parameter.
    pub coords: Vec<Coord>,
    /// A warp's box, as it lies in shared memory.
    pub panels: Panels,
    /// How its elements get there.
    pub way: Way,
    /// The tile's register for each of the box's.
    pub registers: Vec<u32>,
    /// Each box of a warp: what is exclusive-ored to the registers, and where it begins, from where the first one does.
    pub boxes: Vec<(u32, [u32; MAX_RANK])>,
}

/// Where a tile is along a dimension of a parameter.
#[derive(Clone, Copy, Debug)]
pub struct Coord {
    /// i32, from where the view begins.
    pub start: ValueId,
    /// Where the view begins, if it was narrowed there: i32, not negative. The tile is stored if its start is in the view.
    pub from: Option<ValueId>,
    /// The tile's axis along the dimension.
    pub axis: Option<usize>,
}

/// How a warp puts a box into shared memory.
#[derive(Clone, Debug)]
pub enum Way {
    /// By matrices of 8x8 elements (`stmatrix`).
    Matrices(Ldmatrix),
    /// By vectors.
    Vectors { layout: LinearLayout, access: VectorAccess },
}

impl Way {
    /// Into panels, without bank conflicts; `None` if there is no such way.
    fn new(layout: &LinearLayout, shared: &SharedLayout, size: usize) -> Option<Way> {
        let matrices = Ldmatrix::plan(layout, shared, size).filter(|_| size == 2);
        if let Some(plan) = matrices.filter(|plan| plan.wavefronts(size).conflicts() == 0) {
            return Some(Way::Matrices(plan));
        }
        let access = shared.vectorise(layout, size);
        let conflicts = shared.wavefronts(layout, &access, size).conflicts();
        (conflicts == 0).then(|| Way::Vectors { layout: layout.clone(), access })
    }

    /// Offsets of lanes, in elements.
    pub fn lanes(&self, shared: &SharedLayout) -> Vec<u32> {
        match self {
            Way::Matrices(plan) => plan.thread.clone(),
            Way::Vectors { layout, .. } => layout.thread_bases().map(|b| shared.offset(b)).collect(),
        }
    }

    /// Each access: its offset in elements, and the box's registers.
    pub fn accesses(&self, shared: &SharedLayout) -> Vec<(u32, Vec<u32>)> {
        match self {
            Way::Matrices(plan) => plan.instructions.iter().map(|i| (i.offset, i.registers.clone())).collect(),
            Way::Vectors { layout, access } => {
                access.groups.iter().map(|g| (shared.offset(layout.flat(g[0], 0, 0)), g.clone())).collect()
            }
        }
    }
}

impl BulkStore {
    /// Bytes that the address of a warp's buffers is a multiple of: of a swizzle's pattern.
    pub fn alignment(&self) -> usize {
        PATTERN * self.panels.swizzle.bytes()
    }

    /// Bytes of a panel.
    pub fn piece(&self) -> usize {
        self.panels.stride()
    }

    /// How many copies a warp makes.
    pub fn pieces(&self) -> usize {
        self.boxes.len() * self.panels.count()
    }
}

/// A store of a tile in this layout as bulk copies, if it can be made by them.
pub fn bulk_store(k: &Kernel, id: OpId, layout: &LinearLayout) -> Option<BulkStore> {
    let op = k.op(id);
    let size = k.ty(op.operands[1]).dtype().size();
    let starts = op.operands[2..].iter().enumerate();
    let coords = starts.map(|(axis, &start)| Coord { start, from: None, axis: Some(axis) }).collect();
    let (param, coords) = in_parameter(k, op.operands[0], *layout.shape(), coords)?;
    if !matches!(size, 1 | 2 | 4) || !only_stored_to(k, param) {
        return None;
    }
    let held = layout.warp_boxes()?;
    let panels = Panels::new(*held.layout.shape(), size).ok()?;
    if !panels.rows().is_multiple_of(PATTERN) || panels.swizzle.bytes() < 32 {
        return None;
    }
    let last = coords.len() - 1;
    if coords[last].axis != Some(layout.shape().rank() - 1) {
        return None;
    }
    let f = facts::view_facts(k, k.params[param].value)?;
    let aligned =
        f.address >= 16 && f.unit[last] && f.strides[..last].iter().all(|&s| (s as usize * size).is_multiple_of(16));
    let extent = |c: &Coord| c.axis.map_or(1, |a| held.layout.shape().dim(a) as u32);
    let mut extents: Vec<u32> = coords.iter().map(extent).collect();
    extents[last] = panels.columns() as u32;
    if !aligned || coords.len() > 5 || extents.iter().any(|&e| e > 256) {
        return None;
    }
    let way = Way::new(&held.layout, &panels.layout, size)?;
    // Lanes must agree in the panel that an access is to.
    let apart = way.lanes(&panels.layout).iter().fold(0, |all, b| all | b);
    if apart as usize * size >= panels.stride() {
        return None;
    }
    let slot = k.slots().iter().position(|s| s.param as usize == param)?;
    let map = TensorMap { slot, size, extents, swizzle: panels.swizzle.bytes() };
    Some(BulkStore { map, coords, panels, way, registers: held.registers, boxes: held.boxes })
}

/// From a place in a view to that in the parameter which it is a part of: a selection gives a dimension back. `None` if a
/// tile of this shape may lie across an edge of a narrowed view.
fn in_parameter(k: &Kernel, view: ValueId, shape: Shape, mut coords: Vec<Coord>) -> Option<(usize, Vec<Coord>)> {
    let op = match k.def(view) {
        Def::Param(p) => return Some((p as usize, coords)),
        Def::Result(op, _) => k.op(op),
        Def::Arg(..) => return None,
    };
    match op.kind {
        OpKind::ViewSelect { dim } => {
            coords.insert(dim as usize, Coord { start: op.operands[1], from: None, axis: None });
        }
        OpKind::ViewNarrow { dim } => {
            let (from, length, coord) = (op.operands[1], op.operands[2], &mut coords[dim as usize]);
            let extent = shape.dim(coord.axis?) as u32;
            let whole = facts::not_negative(k, from) && facts::inside_or_outside(k, coord.start, extent, length);
            if coord.from.is_some() || !whole {
                return None;
            }
            coord.from = Some(from);
        }
        _ => return None,
    }
    in_parameter(k, op.operands[0], shape, coords)
}

/// Whether a kernel does nothing with a parameter but store, and tells nobody that it has.
fn only_stored_to(k: &Kernel, param: usize) -> bool {
    let tells = |kind: &OpKind| matches!(kind, OpKind::Signal | OpKind::GridSync | OpKind::ClusterReduce(_));
    let other = |kind: &OpKind| {
        let looks = matches!(kind, OpKind::ViewSelect { .. } | OpKind::ViewNarrow { .. } | OpKind::Dim { .. });
        !looks && *kind != OpKind::Store
    };
    let of_param = |v: ValueId| facts::view_facts(k, v).is_some_and(|f| f.param == param);
    k.params[param].access == Access::Write
        && !k.ops.iter().any(|o| tells(&o.kind) || other(&o.kind) && o.operands.first().is_some_and(|&v| of_param(v)))
}
