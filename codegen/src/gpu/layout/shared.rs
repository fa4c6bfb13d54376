//! Tiles in shared memory, and what an access to them costs.
//!
//! Shared memory has 32 banks of 4 bytes. A warp's access is served in *wavefronts*, each giving one word of every
//! bank; lanes that want different words of one bank wait for one another. Accesses of 8 (16) bytes per lane are
//! served for 16 (8) lanes at a time, so that no phase asks for more than 128 bytes. A *swizzle* permutes the words so
//! that the lanes of a phase meet different banks; all in use are linear maps.

use super::bits::{axis_bits, axis_mask, axis_shift, extents_ok, total_bits};
use super::{F2Map, LANE_BITS, LayoutError, Level, LinearLayout, VectorAccess};
use crate::ir::Shape;
use std::collections::BTreeSet;
use std::fmt;

/// A bijective linear map from offsets (in elements) to the elements of a tile.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SharedLayout {
    shape: Shape,
    /// Flat coordinates of the offsets 1, 2, 4, …
    coords: F2Map,
    /// Offsets of the flat coordinates 1, 2, 4, …
    offsets: F2Map,
}

/// The width of a swizzle of the tensor memory accelerator and of wgmma's operand descriptors, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Swizzle {
    None,
    B32,
    B64,
    B128,
}

impl Swizzle {
    /// Bytes of a row of a swizzled panel.
    pub fn bytes(self) -> usize {
        match self {
            Swizzle::None => 16,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }
}

/// The cost of an access by all warps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wavefronts {
    pub actual: usize,
    /// What it costs without bank conflicts: one for each phase of each access.
    pub ideal: usize,
}

impl Wavefronts {
    pub fn conflicts(&self) -> usize {
        self.actual - self.ideal
    }
}

impl SharedLayout {
    /// The layout in which consecutive powers of two of the offset step by these flat coordinates.
    ///
    /// # Errors
    /// If that is no bijection.
    pub fn new(shape: Shape, coords: Vec<u32>) -> Result<SharedLayout, LayoutError> {
        extents_ok(&shape)?;
        let bits = total_bits(&shape);
        if let Some(&basis) = coords.iter().find(|&&b| u64::from(b) >= 1 << bits) {
            return Err(LayoutError::Outside { basis, shape });
        }
        if coords.len() != bits as usize {
            return Err(LayoutError::Mismatch(format!("{} offset bits for a tile of {shape}", coords.len())));
        }
        let coords = F2Map::new(coords, bits);
        let offsets = coords.inverse().ok_or(LayoutError::NotSurjective(shape))?;
        Ok(SharedLayout { shape, coords, offsets })
    }

    /// The layout that places the flat coordinates 1, 2, 4, … at these offsets.
    fn from_offsets(shape: Shape, offsets: Vec<u32>) -> Result<SharedLayout, LayoutError> {
        let bits = total_bits(&shape);
        let inverse = F2Map::new(offsets, bits).inverse().ok_or(LayoutError::NotSurjective(shape))?;
        SharedLayout::new(shape, inverse.bases().to_vec())
    }

    /// Contiguous, the axes in this order, fastest first.
    ///
    /// # Errors
    /// If `order` is no permutation of the axes or the extents are no powers of two.
    pub fn ordered(shape: Shape, order: &[usize]) -> Result<SharedLayout, LayoutError> {
        extents_ok(&shape)?;
        let steps = order
            .iter()
            .filter(|&&a| a < shape.rank())
            .flat_map(|&axis| (0..axis_bits(&shape, axis)).map(move |k| 1 << (axis_shift(&shape, axis) + k)));
        SharedLayout::new(shape, steps.collect())
    }

    pub fn row_major(shape: Shape) -> Result<SharedLayout, LayoutError> {
        SharedLayout::ordered(shape, &(0..shape.rank()).rev().collect::<Vec<_>>())
    }

    /// Contiguous in `order`, with vectors of `vec` elements of the fastest axis permuted by the second-fastest
    /// index: vector v of row r stands at v ^ (r / per_phase % max_phase).
    ///
    /// # Errors
    /// As [`SharedLayout::ordered`]; if the parameters are no powers of two, the rank is less than 2, or a row has
    /// fewer than `vec · max_phase` elements.
    pub fn swizzled(
        shape: Shape,
        order: &[usize],
        vec: u32,
        per_phase: u32,
        max_phase: u32,
    ) -> Result<SharedLayout, LayoutError> {
        let plain = SharedLayout::ordered(shape, order)?;
        let powers = [vec, per_phase, max_phase].iter().all(|n| n.is_power_of_two());
        if !powers || shape.rank() < 2 || vec * max_phase > shape.dims()[order[0]] {
            return Err(LayoutError::Unsupported {
                what: "a swizzle",
                need: "powers of two and a row of at least vec * max_phase elements".into(),
                found: format!("vec {vec}, per_phase {per_phase}, max_phase {max_phase} for {shape}"),
            });
        }
        let (row, shift) = (axis_mask(&shape, order[1]), axis_shift(&shape, order[1]));
        let offsets = (0..total_bits(&shape)).map(|i| {
            let x = 1u32 << i;
            plain.offset(x) ^ (((x & row) >> shift) / per_phase % max_phase * vec)
        });
        SharedLayout::from_offsets(shape, offsets.collect())
    }

    /// What the tensor memory accelerator writes and wgmma's descriptors read: panels of `swizzle.bytes()` along the
    /// last axis, one after the other, each row-major over the other axes; within, the 16-byte chunk index (address
    /// bits 4..) is exclusive-ored with address bits 7... The base must be aligned to 1024 bytes.
    ///
    /// # Errors
    /// If a row has fewer bytes than a panel, or elements are not 1, 2, 4 or 8 bytes.
    pub fn panels(shape: Shape, elem_bytes: usize, swizzle: Swizzle) -> Result<SharedLayout, LayoutError> {
        extents_ok(&shape)?;
        let row = shape.dims().last().map_or(1, |&n| n as usize) * elem_bytes;
        if ![1, 2, 4, 8].contains(&elem_bytes) || row < swizzle.bytes() {
            return Err(LayoutError::Unsupported {
                what: "this swizzle",
                need: format!("rows of at least {} bytes", swizzle.bytes()),
                found: format!("rows of {row} bytes"),
            });
        }
        let elem = elem_bytes.ilog2();
        let (total, last) = (total_bits(&shape), axis_bits(&shape, shape.rank() - 1));
        let panel = swizzle.bytes().ilog2() - elem;
        let xor_bits = swizzle.bytes().ilog2() - 4;
        let offsets = (0..total).map(|i| {
            // Position of this coordinate bit: within a panel's row, the panel's number (highest), or the rows.
            let bit = match i {
                i if i < panel => i,
                i if i < last => i + (total - last),
                i => i - (last - panel),
            };
            let address = 1u64 << (bit + elem);
            let chunk = (address >> 7 & ((1 << xor_bits) - 1)) << 4;
            ((address ^ chunk) >> elem) as u32
        });
        SharedLayout::from_offsets(shape, offsets.collect())
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The flat coordinate of the element at an offset.
    pub fn flat_at(&self, offset: u32) -> u32 {
        self.coords.apply(offset)
    }

    /// The offset, in elements, of a flat coordinate.
    pub fn offset(&self, flat: u32) -> u32 {
        self.offsets.apply(flat)
    }

    /// The same memory as the transposed tile; `perm` as in [`LinearLayout::transpose`].
    pub fn transpose(&self, perm: &[u8]) -> SharedLayout {
        let map = self.as_registers().transpose(perm);
        SharedLayout::new(*map.shape(), map.bases(Level::Register).to_vec()).expect("a permutation of coordinates")
    }

    /// The same memory as a tile of other extents.
    ///
    /// # Errors
    /// If the numbers of elements differ.
    pub fn reshape(&self, shape: Shape) -> Result<SharedLayout, LayoutError> {
        SharedLayout::new(shape, self.as_registers().reshape(shape)?.bases(Level::Register).to_vec())
    }

    fn as_registers(&self) -> LinearLayout {
        LinearLayout::from_parts(self.shape, [self.coords.bases().to_vec(), vec![], vec![], vec![]])
    }

    /// Where the elements of a tile in registers stand: a layout of rank 1 whose "coordinates" are offsets. Its basis
    /// vectors are the exclusive-or contributions to the address.
    ///
    /// # Panics
    /// If the tiles have different shapes.
    pub fn offsets_of(&self, layout: &LinearLayout) -> LinearLayout {
        assert_eq!(self.shape, *layout.shape(), "a tile and its shared memory have one shape");
        layout.map_bases(Shape::new(&[1 << total_bits(&self.shape)]), |b| self.offset(b))
    }

    /// The widest accesses (at most 16 bytes) by which the threads of `layout` reach their elements here.
    pub fn vectorise(&self, layout: &LinearLayout, elem_bytes: usize) -> VectorAccess {
        self.offsets_of(layout).vectorise(0, 16 / elem_bytes)
    }

    /// The wavefronts of an access by all warps of `layout`, with these groups of registers.
    pub fn wavefronts(&self, layout: &LinearLayout, access: &VectorAccess, elem_bytes: usize) -> Wavefronts {
        let offsets = self.offsets_of(layout);
        let mut total = Wavefronts { actual: 0, ideal: 0 };
        for warp in 0..layout.warps() as u32 {
            for group in &access.groups {
                let lanes: Vec<u32> =
                    (0..1 << LANE_BITS).map(|lane| offsets.flat(group[0], lane, warp) * elem_bytes as u32).collect();
                let cost = wavefronts_of(&lanes, access.width * elem_bytes);
                total.actual += cost.actual;
                total.ideal += cost.ideal;
            }
        }
        total
    }
}

/// The wavefronts of one instruction in which each lane accesses `bytes` bytes at its address.
pub fn wavefronts_of(addresses: &[u32], bytes: usize) -> Wavefronts {
    let phase = addresses.len().min(128 / bytes.max(4));
    let actual = addresses
        .chunks(phase)
        .map(|lanes| {
            let words: BTreeSet<u32> = lanes.iter().flat_map(|&a| a / 4..(a + bytes as u32).div_ceil(4)).collect();
            let mut banks = [0; 32];
            for word in words {
                banks[word as usize % 32] += 1;
            }
            banks.into_iter().max().unwrap_or(0)
        })
        .sum();
    Wavefronts { actual, ideal: addresses.len().div_ceil(phase) }
}

impl fmt::Display for SharedLayout {
    /// `8x16 shared[(0,1) (0,2) …]`: the coordinates at offsets 1, 2, 4, …
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.as_registers().to_string();
        f.write_str(&text.replace("reg[", "shared[").replace(" lane[] warp[]", ""))
    }
}
