//! The boxes that warps hold of a tile.

use super::bits::{axis_bits, axis_shift, coords, flat, total_bits};
use super::{Level, LinearLayout};
use crate::ir::{MAX_RANK, Shape};

/// What every warp holds of a tile: as many boxes of the same extents, each with all its elements in this warp only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarpBoxes {
    /// A box in the lanes and registers of a warp.
    pub layout: LinearLayout,
    /// The tile's register for each of the box's.
    pub registers: Vec<u32>,
    /// Each box: what is exclusive-ored to these registers, and where it begins, from where the warp's first one does.
    pub boxes: Vec<(u32, [u32; MAX_RANK])>,
}

impl LinearLayout {
    /// The boxes of the warps; `None` if they hold something else, or something twice.
    pub fn warp_boxes(&self) -> Option<WarpBoxes> {
        let bases = Level::ALL.map(|level| self.bases(level));
        let shape = self.shape();
        let held_once = bases.iter().map(|b| b.len()).sum::<usize>() == total_bits(shape) as usize;
        if !held_once
            || !bases.iter().all(|b| b.iter().all(|b| b.is_power_of_two()))
            || !self.bases(Level::Block).is_empty()
        {
            return None;
        }
        let of_warps = self.bases(Level::Warp);
        // Up to the first bit of an axis that tells warps apart.
        let extents: Vec<u32> = (0..shape.rank())
            .map(|axis| {
                let shared = |k: &u32| of_warps.contains(&(1 << (axis_shift(shape, axis) + k)));
                1 << (0..axis_bits(shape, axis)).find(shared).unwrap_or(axis_bits(shape, axis))
            })
            .collect();
        let part = Shape::new(&extents);
        // A bit of the tile's coordinates within a box, as one of the box's.
        let within = |basis: u32| {
            let at = coords(shape, basis);
            let inside = (0..shape.rank()).all(|axis| at[axis] < extents[axis]);
            inside.then(|| flat(&part, &at[..shape.rank()]))
        };
        let lanes: Vec<u32> = self.bases(Level::Lane).iter().map(|&b| within(b)).collect::<Option<_>>()?;
        let (mut inside, mut registers, mut boxes) = (vec![], vec![0], vec![(0, [0; MAX_RANK])]);
        for (i, &basis) in self.bases(Level::Register).iter().enumerate() {
            match within(basis) {
                Some(basis) => {
                    inside.push(basis);
                    registers.extend(registers.clone().into_iter().map(|r| r | 1 << i));
                }
                None => {
                    let at = coords(shape, basis);
                    let further = |&(r, from): &(u32, [u32; MAX_RANK])| {
                        (r | 1 << i, std::array::from_fn(|axis| from[axis] + at[axis]))
                    };
                    boxes.extend(boxes.iter().map(further).collect::<Vec<_>>());
                }
            }
        }
        let layout = LinearLayout::new(part, inside, lanes, vec![], vec![]).ok()?;
        Some(WarpBoxes { layout, registers, boxes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warps_of_products_hold_boxes() {
        // Two warpgroups with 64 rows each, and twice that: another box 128 rows further down.
        let sums = LinearLayout::wgmma_accumulator(Shape::new(&[256, 64]), 64, [2, 1]).unwrap();
        let held = sums.warp_boxes().unwrap();
        assert_eq!(held.layout.shape(), &Shape::new(&[16, 64]));
        let begins: Vec<[u32; 2]> = held.boxes.iter().map(|b| [b.1[0], b.1[1]]).collect();
        assert_eq!(begins, [[0, 0], [128, 0]]);
        for (add, begin) in &held.boxes {
            for (r, &register) in held.registers.iter().enumerate() {
                for (lane, warp) in [(0, 0), (13, 0), (31, 5)] {
                    let own = held.layout.apply(r as u32, lane, 0);
                    let first = sums.apply(0, 0, warp);
                    let at = sums.apply(register ^ add, lane, warp);
                    assert_eq!(at, std::array::from_fn(|a| first[a] + begin[a] + own[a]), "{register} {lane} {warp}");
                }
            }
        }
    }

    #[test]
    fn transposed_they_are_as_wide_as_a_warp_has_rows() {
        let sums = LinearLayout::wgmma_accumulator(Shape::new(&[128, 32]), 32, [2, 1]).unwrap();
        let held = sums.transpose(&[1, 0, 2, 3]).warp_boxes().unwrap();
        assert_eq!(held.layout.shape(), &Shape::new(&[32, 16]));
        assert_eq!(held.boxes.len(), 1);
    }

    #[test]
    fn what_is_held_twice_is_no_box() {
        assert_eq!(LinearLayout::replicated(Shape::new(&[16, 16]), 5, 2).warp_boxes(), None);
    }
}
