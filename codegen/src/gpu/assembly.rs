//! Tiles that a loop puts together, one piece an iteration.
//!
//! `Tile::insert` at a multiple of the loop's counter is a selection between the tile so far and copies of the piece side
//! by side: in registers a selection of every element in every iteration. A tile of which every iteration gives one piece,
//! all of them in order, and that nobody looks at before the loop's end, lies in shared memory instead: an iteration stores
//! its piece, and the tile is loaded after the loop, in the one layout in which it is needed.

use super::Chip;
use super::layout::{Level, LinearLayout, ScratchPlan};
use crate::ir::{BinaryOp, CmpOp, Kernel, OpId, OpKind, ValueId};
use crate::passes::edit::walk;

/// A tile that a loop puts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assembly {
    /// The loop, and which of the values that it carries this is.
    pub owner: OpId,
    pub index: usize,
    /// The selection that ends an iteration.
    pub insert: OpId,
    /// What an iteration gives.
    pub piece: ValueId,
    /// Along which axis the pieces lie, and how many there are.
    pub axis: usize,
    pub pieces: usize,
}

/// All of a kernel.
pub fn find(k: &Kernel) -> Vec<Assembly> {
    let mut uses = vec![0usize; k.values.len()];
    let mut carried = vec![];
    walk(k, k.body, &mut |id, op| {
        op.operands.iter().for_each(|v| uses[v.index()] += 1);
        if matches!(op.kind, OpKind::For { .. }) {
            carried.extend((0..op.results.len()).map(|i| (id, i)));
        }
    });
    carried.into_iter().filter_map(|(id, i)| assembly(k, &uses, id, i)).collect()
}

fn assembly(k: &Kernel, uses: &[usize], owner: OpId, index: usize) -> Option<Assembly> {
    let op = k.op(owner);
    let region = k.region(op.regions[0]);
    let (counter, tile) = (region.args[0], region.args[1 + index]);
    let end = k.op(*region.ops.last()?).operands[index];
    let insert = k.defining_op(end)?;
    let select = k.op(insert);
    let single = uses[tile.index()] == 1 && uses[end.index()] == 1 && region.ops.contains(&insert);
    if select.kind != OpKind::Select || select.operands[2] != tile || !single {
        return None;
    }
    let number = |v: ValueId| k.constant(v).map(|bits| bits.to_i64(k.ty(v).dtype()));
    let [lo, hi, step] = [0, 1, 2].map(|i| number(op.operands[i]));
    let (hi, step) = (hi?, step.filter(|&s| s > 0)?);
    // Copies of the piece side by side.
    let whole = k.ty(tile).shape();
    let axis = (0..whole.rank()).find(|&a| {
        let join = k.defining_op(select.operands[1]).map(|id| &k.op(id).kind);
        matches!(join, Some(OpKind::Join { axis }) if *axis as usize == a)
    })?;
    let mut piece = select.operands[1];
    while let Some(id) = k.defining_op(piece)
        && k.op(id).kind == (OpKind::Join { axis: axis as u8 })
        && k.op(id).operands[0] == k.op(id).operands[1]
    {
        piece = k.op(id).operands[0];
    }
    let extent = k.ty(piece).shape().dim(axis) as i64;
    if lo != Some(0) || hi != whole.dim(axis) as i64 || step != extent {
        return None;
    }
    // Of which the one counts whose number the iteration has.
    let divided = |v: ValueId| {
        let op = k.op(k.defining_op(v)?);
        (op.kind == OpKind::Binary(BinaryOp::Div) && number(op.operands[1]) == Some(extent)).then(|| op.operands[0])
    };
    let kind = |v: ValueId| k.defining_op(v).map(|id| &k.op(id).kind);
    let along = |v: ValueId| divided(v).is_some_and(|p| kind(p) == Some(&OpKind::Iota { axis: axis as u8 }));
    let wanted = |v: ValueId| {
        let from = k.defining_op(v).filter(|&id| k.op(id).kind == OpKind::Broadcast).map(|id| k.op(id).operands[0]);
        from.and_then(divided) == Some(counter)
    };
    let here = k.op(k.defining_op(select.operands[0])?);
    let [x, y] = here.operands[..] else { return None };
    let equal = here.kind == OpKind::Compare(CmpOp::Eq) && (along(x) && wanted(y) || along(y) && wanted(x));
    equal.then_some(Assembly { owner, index, insert, piece, axis, pieces: (hi / step) as usize })
}

/// The largest tile that is put together so, in bytes.
const LARGEST: usize = 32 << 10;

/// How an assembled tile goes through shared memory.
#[derive(Clone, Debug)]
pub struct AssemblyPlan {
    pub assembly: Assembly,
    /// From the layout in which a piece is computed to the one in which the tile is needed. In the stores the bits of a
    /// piece's number follow those of the warp.
    pub scratch: ScratchPlan,
}

impl AssemblyPlan {
    /// `size`: of an element, in bytes. `None` if the tile is too large.
    pub fn new(
        a: Assembly,
        piece: &LinearLayout,
        needed: &LinearLayout,
        size: usize,
        chip: Chip,
    ) -> Option<AssemblyPlan> {
        let bits = a.pieces.trailing_zeros() as usize;
        let side_by_side = (0..bits).fold(piece.clone(), |l, _| l.join(a.axis));
        let shape = *side_by_side.shape();
        let [mut register, lane, mut warp, block] = Level::ALL.map(|l| side_by_side.bases(l).to_vec());
        // As if each piece had warps of its own.
        warp.extend(register.split_off(register.len() - bits));
        let pieces = LinearLayout::new(shape, register, lane, warp, block).expect("the same bits");
        let bytes = size * shape.numel();
        let scratch = || ScratchPlan::new(&pieces, needed, size, bytes, false, chip.warpgroups);
        (bytes <= LARGEST).then(|| AssemblyPlan { assembly: a, scratch: scratch() })
    }
}
