//! Matrices in shared memory as the tensor memory accelerator writes them and `wgmma`'s descriptors read them.
//!
//! A tile lies in *panels* along its last axis: as many columns as a swizzle has bytes, all rows of them, one panel
//! after the other ([`SharedLayout::panels`]). A bulk copy fills one panel. (A single row needs no swizzle: all of it is
//! one panel.) A product sees such a tile either as it is or transposed; its operand is *K-major* if K runs along the
//! panel's rows of bytes.

use super::layout::{LayoutError, SharedLayout, Swizzle};
use crate::ir::Shape;

/// The most columns that one copy fills.
const MOST_COLUMNS: usize = 256;

/// A tile in panels. Its base is a multiple of [`Panels::alignment`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panels {
    /// As it lies in memory; panels divide the last axis.
    pub shape: Shape,
    pub swizzle: Swizzle,
    /// Where each element is.
    pub layout: SharedLayout,
    /// Bytes of an element.
    pub size: usize,
}

impl Panels {
    /// With the widest swizzle that a row of the tile fills.
    ///
    /// # Errors
    /// If a row has fewer than 32 bytes.
    pub fn new(shape: Shape, size: usize) -> Result<Panels, LayoutError> {
        let columns = shape.dim(shape.rank() - 1);
        let row = columns * size;
        if columns == shape.numel() && columns <= MOST_COLUMNS && row >= 32 {
            return Ok(Panels { shape, swizzle: Swizzle::None, layout: SharedLayout::row_major(shape)?, size });
        }
        let swizzle = match row {
            128.. => Swizzle::B128,
            64.. => Swizzle::B64,
            _ => Swizzle::B32,
        };
        Panels::with(shape, size, swizzle)
    }

    /// With this swizzle.
    ///
    /// # Errors
    /// If a row has fewer bytes.
    pub fn with(shape: Shape, size: usize, swizzle: Swizzle) -> Result<Panels, LayoutError> {
        Ok(Panels { shape, swizzle, layout: SharedLayout::panels(shape, size, swizzle)?, size })
    }

    /// Elements of a panel along the last axis.
    pub fn columns(&self) -> usize {
        match self.swizzle {
            Swizzle::None => self.shape.dim(self.shape.rank() - 1),
            swizzle => swizzle.bytes() / self.size,
        }
    }

    /// How many panels there are.
    pub fn count(&self) -> usize {
        self.shape.dim(self.shape.rank() - 1) / self.columns()
    }

    /// Rows of a panel: the product of all extents but the last.
    pub fn rows(&self) -> usize {
        self.shape.numel() / self.shape.dim(self.shape.rank() - 1)
    }

    /// Bytes from one panel to the next.
    pub fn stride(&self) -> usize {
        self.rows() * self.columns() * self.size
    }

    /// Bytes from the start of one tile to where another may start.
    pub fn alignment(&self) -> usize {
        if self.swizzle == Swizzle::None { 128 } else { 1024 }
    }

    /// Bytes of the tile.
    pub fn bytes(&self) -> usize {
        self.shape.numel() * self.size
    }

    /// The layout as an operand sees it.
    pub fn seen(&self, transposed: bool) -> SharedLayout {
        if transposed { self.layout.transpose(&[1, 0, 2, 3]) } else { self.layout.clone() }
    }
}
