//! Layouts that suit what is done with a tile: accesses to memory, and walks along an axis.

use super::facts;
use super::layout::{LayoutBuilder, Level, LinearLayout};
use crate::ir::Shape;

/// The bits of the flat coordinate that count along `axis`, lowest first.
fn axis_steps(shape: Shape, axis: usize) -> impl Iterator<Item = u32> {
    let below: u32 = (axis + 1..shape.rank()).map(|a| shape.dim(a).trailing_zeros()).sum();
    (0..shape.dim(axis).trailing_zeros()).map(move |k| 1 << (below + k))
}

/// Those along the other axes, the last axis first.
fn other_steps(shape: Shape, axis: usize) -> impl Iterator<Item = u32> {
    (0..shape.rank()).rev().filter(move |&a| a != axis).flat_map(move |a| axis_steps(shape, a))
}

/// The layout for memory accesses along `axis`, `vector` elements a thread.
pub fn coalesced(shape: Shape, axis: usize, vector: usize, warps: usize) -> LinearLayout {
    LinearLayout::coalesced(shape, axis, vector, warps).expect("the verifier checked that extents are powers of two")
}

/// The layout for memory accesses in which every warp keeps the elements that it has in `own`; `None` if warps do not
/// hold boxes, or break up the vectors.
pub fn coalesced_within_warps(own: &LinearLayout, access: facts::Access) -> Option<LinearLayout> {
    let (shape, warp) = (*own.shape(), own.bases(Level::Warp));
    if warp.iter().any(|b| b.count_ones() > 1) {
        return None;
    }
    // The coordinate bits that are left, those of the contiguous axis first.
    let bits = axis_steps(shape, access.axis).chain(other_steps(shape, access.axis));
    let mut left = bits.filter(|b| !warp.contains(b));
    let vector: Vec<u32> = left.by_ref().take(access.vector.trailing_zeros() as usize).collect();
    let mut lane: Vec<u32> = left.by_ref().take(5).collect();
    lane.resize(5, 0);
    let register = vector.into_iter().chain(left).collect();
    LinearLayout::new(shape, register, lane, warp.to_vec(), vec![]).ok()
}

/// The layout itself or, if lanes of a warp hold copies, one in which they share the elements out: what is computed from
/// them is then computed once.
pub fn spread_copies(own: LinearLayout) -> LinearLayout {
    let shape = *own.shape();
    let threads = 32 * own.warps();
    if own.redundant().lane == 0 || shape.numel() < threads || shape.rank() == 0 {
        return own;
    }
    let access = facts::Access { axis: shape.rank() - 1, vector: shape.numel() / threads };
    coalesced_within_warps(&own, access).unwrap_or(own)
}

/// A layout in which the hardware bits along `axis` are in order: registers innermost, then lanes, then warps.
pub fn in_order_layout(shape: Shape, axis: usize, warps: usize) -> LinearLayout {
    let bits = |n: usize| n.trailing_zeros() as usize;
    let along = bits(shape.dim(axis));
    let across = bits(shape.numel()) - along;
    let warp_bits = bits(warps);
    let across_warps = across.min(warp_bits);
    let across_lanes = (across - across_warps).min(5usize.saturating_sub(along.min(5)));
    let along_lanes = along.min(5 - across_lanes);
    let along_warps = (along - along_lanes).min(warp_bits - across_warps);
    let mut b = LayoutBuilder::new(shape)
        .expect("the verifier checked that extents are powers of two")
        .step(Level::Register, axis, along - along_lanes - along_warps)
        .step(Level::Lane, axis, along_lanes);
    let mut others: Vec<(usize, usize)> =
        (0..shape.rank()).rev().filter(|&a| a != axis).map(|a| (a, bits(shape.dim(a)))).collect();
    for (level, mut wanted) in [(Level::Lane, 5 - along_lanes), (Level::Warp, warp_bits - along_warps)] {
        for (a, left) in &mut others {
            let n = wanted.min(*left);
            b = b.step(level, *a, n);
            *left -= n;
            wanted -= n;
        }
        if level == Level::Warp {
            b = b.step(level, axis, along_warps);
        }
        b = b.copies(level, wanted);
    }
    b.finish(&[])
}

/// For each bit of the index along `axis`, lowest first, the hardware bit that counts it. `None` if the layout is not
/// that simple (then convert first).
pub fn axis_bits(layout: &LinearLayout, axis: usize) -> Option<Vec<(Level, usize)>> {
    let count = layout.shape().dim(axis).trailing_zeros();
    if !layout.is_axis_aligned(axis) {
        return None;
    }
    let mut found = vec![];
    for bit in 0..count {
        let mut holders = vec![];
        for level in Level::ALL {
            for (i, b) in layout.axis_bases(level, axis).into_iter().enumerate() {
                if b & (1 << bit) != 0 {
                    holders.push((level, i, b));
                }
            }
        }
        match holders[..] {
            [(level, i, b)] if b == 1 << bit => found.push((level, i)),
            _ => return None,
        }
    }
    Some(found)
}

/// Instead of `own` a layout in which each thread has all of the axis, so that no scan goes from lane to lane, if that
/// saves more than the way there costs. Every warp keeps what it has.
pub fn scanned_by_threads(own: &LinearLayout, axis: usize) -> Option<LinearLayout> {
    let lanes = axis_bits(own, axis)?.iter().filter(|(level, _)| *level == Level::Lane).count();
    if lanes < 3 || own.copies() > 1 {
        return None;
    }
    let (shape, warp) = (*own.shape(), own.bases(Level::Warp));
    let mut others = other_steps(shape, axis).filter(|b| !warp.contains(b));
    let lane: Vec<u32> = others.by_ref().take(5).collect();
    if lane.len() < 5 {
        return None;
    }
    let register = axis_steps(shape, axis).chain(others).collect();
    LinearLayout::new(shape, register, lane, warp.to_vec(), vec![]).ok().filter(|l| l.copies() == 1)
}
