//! Which stores the tensor memory accelerator makes.
//!
//! A program that computes one tile after the other need not wait until a tile is in memory. What products give is spread
//! over a warp so that its own stores would write a few bytes to each of many rows: it exchanges elements through shared
//! memory anyway. From there they are copied while the warp goes on. Its part of the tile must be a box, or several: then
//! no other warp takes part, and a warp waits only where it wants the same bytes of shared memory again. (A program that
//! is over with its store gains nothing: it may not end before the copies have read.)
//!
//! The copy needs a tensor map, hence what a bulk copy to shared memory needs of view and parameter ([`bulk`](super::bulk)).
//! And the kernel must do nothing else with the parameter: others would have to know when a copy is over.

use super::bulk::{TensorMap, Transfer, aligned, in_parameter};
use super::facts;
use super::layout::{Ldmatrix, LinearLayout, SharedLayout, Swizzle, VectorAccess};
use super::panels::Panels;
use crate::ir::{Access, Kernel, MAX_RANK, OpId, OpKind, ValueId};

/// Rows that a swizzle's pattern spans: a panel is a whole number of them.
const PATTERN: usize = 8;

/// Buffers of a warp: one is filled while the other is read.
pub const BUFFERS: usize = 2;

/// A store as bulk copies, of one panel of one box of a warp each.
#[derive(Clone, Debug)]
pub struct BulkStore {
    /// A window on the parameter: a panel.
    pub map: TensorMap,
    /// Per dimension of the parameter, where the tile begins (i32), and which axis of the tile runs along it.
    pub coords: Vec<(ValueId, Option<usize>)>,
    /// A warp's box, as it lies in shared memory.
    pub panels: Panels,
    /// How its elements get there.
    pub way: Way,
    /// The tile's register for each of the box's.
    pub registers: Vec<u32>,
    /// Each box of a warp: what is exclusive-ored to the registers, and where it begins, from where the first one does.
    pub boxes: Vec<(u32, [u32; MAX_RANK])>,
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
    /// Bytes of a panel.
    pub fn piece(&self) -> usize {
        self.panels.stride()
    }

    /// How many copies a warp makes.
    pub fn pieces(&self) -> usize {
        self.boxes.len() * self.panels.count()
    }
}

/// A store of a tile in this layout as bulk copies, or why they cannot make it. `room`: bytes of shared memory that a
/// warp may have for them.
pub fn bulk_store(k: &Kernel, id: OpId, layout: &LinearLayout, room: usize) -> Result<BulkStore, &'static str> {
    let op = k.op(id);
    let dtype = k.ty(op.operands[1]).dtype();
    let size = dtype.size();
    let (param, coords) = in_parameter(k, op.operands[0], &op.operands[2..]).ok_or("its view was narrowed")?;
    if !only_stored_to(k, param) {
        return Err("the kernel does more with the parameter, or tells others of it");
    }
    if !matches!(size, 1 | 2 | 4) {
        return Err("its elements have 8 bytes");
    }
    if op.kind == OpKind::StoreAdd && !(dtype.is_float() || size == 4) {
        return Err("copies add no integers of less than 32 bits");
    }
    let (last, f) = (coords.len() - 1, facts::view_facts(k, k.params[param].value).expect("a parameter has facts"));
    if coords[last].1.is_none() {
        return Err("its rows do not run along the parameter's last dimension");
    }
    if !f.unit[last] {
        return Err("its last dimension is not known to be contiguous");
    }
    if !aligned(&f, size) {
        return Err("its address or a stride is not known to be a multiple of 16 bytes");
    }
    let held = layout.warp_boxes().ok_or("a warp's part of the tile is no box")?;
    let shape = *held.layout.shape();
    // Rows of less than 64 bytes are as good as stores.
    let panels = [Swizzle::B128, Swizzle::B64].map(|swizzle| Panels::with(shape, size, swizzle).ok());
    let mut panels = panels.into_iter().flatten().filter(|p| p.rows().is_multiple_of(PATTERN)).peekable();
    if panels.peek().is_none() {
        return Err("a warp's part has rows of less than 64 bytes, or fewer than 8");
    }
    let panels = panels.find(|p| BUFFERS * p.stride() <= room).ok_or("there is no room for it in shared memory")?;
    let extent = |&(_, axis): &(ValueId, Option<usize>)| axis.map_or(1, |a| shape.dim(a) as u32);
    let mut extents: Vec<u32> = coords.iter().map(extent).collect();
    extents[last] = panels.columns() as u32;
    if extents.iter().any(|&e| e > 256) {
        return Err("a warp's part has more than 256 rows");
    }
    let way =
        Way::new(&held.layout, &panels.layout, size).ok_or("it would get to shared memory with bank conflicts")?;
    // Lanes must agree in the panel that an access is to.
    let apart = way.lanes(&panels.layout).iter().fold(0, |all, b| all | b);
    if apart as usize * size >= panels.stride() {
        return Err("the lanes of a warp would write to several panels at a time");
    }
    let slot = k.slots().iter().position(|s| s.param as usize == param).expect("every parameter has slots");
    let transfer = if op.kind == OpKind::StoreAdd { Transfer::Add(dtype) } else { Transfer::Bits };
    let map = TensorMap { slot, size, extents, swizzle: panels.swizzle.bytes(), transfer };
    Ok(BulkStore { map, coords, panels, way, registers: held.registers, boxes: held.boxes })
}

/// Whether a kernel does nothing with a parameter but store, and tells nobody that it has.
fn only_stored_to(k: &Kernel, param: usize) -> bool {
    let tells = |kind: &OpKind| matches!(kind, OpKind::Signal | OpKind::GridSync | OpKind::ClusterReduce(_));
    let other = |kind: &OpKind| {
        let looks = matches!(kind, OpKind::ViewSelect { .. } | OpKind::ViewNarrow { .. } | OpKind::Dim { .. });
        !looks && !matches!(kind, OpKind::Store | OpKind::StoreAdd)
    };
    let of_param = |v: ValueId| facts::view_facts(k, v).is_some_and(|f| f.param == param);
    k.params[param].access == Access::Write
        && !k.ops.iter().any(|o| tells(&o.kind) || other(&o.kind) && o.operands.first().is_some_and(|&v| of_param(v)))
}
