//! Flat coordinates and their bits.

use super::LayoutError;
use crate::ir::{MAX_RANK, Shape};

/// Whether the extents are powers of two and the tile has at most 2^31 elements.
pub fn extents_ok(shape: &Shape) -> Result<(), LayoutError> {
    let ok = shape.dims().iter().all(|d| d.is_power_of_two())
        && shape.dims().iter().map(|d| d.trailing_zeros()).sum::<u32>() <= 31;
    if ok { Ok(()) } else { Err(LayoutError::Extents(*shape)) }
}

/// Number of coordinate bits of the tile.
pub(super) fn total_bits(shape: &Shape) -> u32 {
    shape.dims().iter().map(|d| d.trailing_zeros()).sum()
}

/// Number of coordinate bits along `axis`.
pub(super) fn axis_bits(shape: &Shape, axis: usize) -> u32 {
    shape.dims()[axis].trailing_zeros()
}

/// The position of the lowest bit of `axis` in a flat coordinate.
pub(super) fn axis_shift(shape: &Shape, axis: usize) -> u32 {
    shape.dims()[axis + 1..].iter().map(|d| d.trailing_zeros()).sum()
}

/// The bits of a flat coordinate that belong to `axis`.
pub(super) fn axis_mask(shape: &Shape, axis: usize) -> u32 {
    (shape.dims()[axis] - 1) << axis_shift(shape, axis)
}

/// The coordinate along `axis` of a flat coordinate.
pub(super) fn axis_coord(shape: &Shape, flat: u32, axis: usize) -> u32 {
    (flat >> axis_shift(shape, axis)) & (shape.dims()[axis] - 1)
}

/// The coordinates of a flat (row-major) index; entries from the rank on are zero.
pub fn coords(shape: &Shape, flat: u32) -> [u32; MAX_RANK] {
    let mut c = [0; MAX_RANK];
    for (axis, c) in c.iter_mut().enumerate().take(shape.rank()) {
        *c = axis_coord(shape, flat, axis);
    }
    c
}

/// The flat (row-major) index of coordinates.
pub fn flat(shape: &Shape, coords: &[u32]) -> u32 {
    (0..shape.rank()).fold(0, |f, axis| f << axis_bits(shape, axis) | coords[axis])
}

/// One term of a linear map of an index x: `(x & mask)` shifted left by `shift` (right if negative).
///
/// A map with basis vectors is the exclusive or of such terms, one for each distance that a bit travels: the cheapest
/// way to evaluate it at run time. Where the terms share no bit of the result, their sum is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShiftTerm {
    pub mask: u32,
    pub shift: i32,
}

impl ShiftTerm {
    /// The terms of the map with these basis vectors, in order of shift.
    pub fn of(bases: &[u32]) -> Vec<ShiftTerm> {
        let mut terms: Vec<ShiftTerm> = Vec::new();
        for (i, &basis) in bases.iter().enumerate() {
            let mut rest = basis;
            while rest != 0 {
                let shift = rest.trailing_zeros() as i32 - i as i32;
                rest &= rest - 1;
                match terms.iter_mut().find(|t| t.shift == shift) {
                    Some(t) => t.mask |= 1 << i,
                    None => terms.push(ShiftTerm { mask: 1 << i, shift }),
                }
            }
        }
        terms.sort_by_key(|t| t.shift);
        terms
    }

    pub fn apply(&self, x: u32) -> u32 {
        let x = x & self.mask;
        if self.shift >= 0 { x << self.shift } else { x >> -self.shift }
    }
}
