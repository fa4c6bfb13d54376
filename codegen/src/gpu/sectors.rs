//! What a warp's access to a box costs in global memory.
//!
//! Memory is read and written in *sectors* of 32 bytes, aligned to their size. Where the lanes of a warp access
//! neighbours along a dimension of stride 1, they share sectors; elsewhere each lane has one of its own.
//!
//! What is not known counts in the kernel's favour or against it, as it nearly always is: a box begins where a sector
//! begins, and its rows (whose distance is a number of the launch) have no sector in common.

use super::facts::{self, Access};
use super::layout::{LANE_BITS, LinearLayout};
use crate::ir::{Kernel, ValueId};
use std::collections::BTreeSet;

const SECTOR: usize = 32;

/// Sectors of one access of a warp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sectors {
    pub touched: usize,
    /// What the bytes that are asked for fill.
    pub least: usize,
}

/// The sectors of each access to a box through `view` by the threads of `layout`. All accesses cost the same: they differ
/// by exclusive-or, aligned to an access.
pub fn sectors(k: &Kernel, view: ValueId, layout: &LinearLayout, access: Access) -> Sectors {
    let (rank, size) = (layout.shape().rank(), k.ty(view).dtype().size());
    let unit = rank > 0 && facts::view_facts(k, view).is_some_and(|f| f.unit[access.axis]);
    let groups = if unit { layout.vectorise(access.axis, access.vector) } else { layout.vectorise(0, 1) };
    let (mut touched, mut bytes) = (BTreeSet::new(), BTreeSet::new());
    for lane in 0..1 << LANE_BITS {
        let mut row = layout.apply(groups.groups[0][0], lane, 0);
        let column = if unit { std::mem::take(&mut row[access.axis]) as usize * size } else { 0 };
        for byte in (column..column + groups.width * size).step_by(size) {
            bytes.insert((row, byte));
            touched.insert((row, byte / SECTOR));
        }
    }
    Sectors { touched: touched.len(), least: (bytes.len() * size).div_ceil(SECTOR) }
}
