//! Linear layouts: which register of which lane of which warp holds which element of a tile.
//!
//! Extents are powers of two, and so are the numbers of registers, lanes and warps. Every layout that the hardware
//! asks for (vectorised memory accesses, tensor-core fragments, swizzled shared memory) is then a linear map over F2
//! from the bits of the hardware index to the bits of the coordinates, and everything a compiler asks *about*
//! layouts (is no data movement needed? do lanes suffice? which swizzle has no bank conflicts?) is linear algebra on
//! a handful of machine words. After Zhou et al., "Linear Layouts" (arXiv 2505.23819).
//!
//! - [`F2Map`], [`Span`]: linear maps and subspaces over F2.
//! - [`LinearLayout`]: tiles in registers; `families` has the constructors, `transfer` follows the shape operations.
//! - [`SharedLayout`]: tiles in shared memory, swizzles and bank conflicts; [`Ldmatrix`].
//! - [`Conversion`]: plans to get from one layout to another.
//!
//! Invariant: coordinates are kept *flat*, as the row-major index of the element. Since extents are powers of two this
//! is the concatenation of the coordinates' bits, so a reshape changes no basis vector and a transposition permutes
//! their bits.
//!
//! ```
//! use kiln_codegen::gpu::layout::{Conversion, LinearLayout, Operand};
//! use kiln_codegen::ir::Shape;
//!
//! // Where a 16x8 accumulator lives: lane 5 holds in register 2 the element (9, 2).
//! let c = LinearLayout::mma_accumulator(Shape::new(&[16, 8]), [1, 1])?;
//! assert_eq!(c.to_string(), "16x8 reg[(0,1) (8,0)] lane[(0,2) (0,4) (1,0) (2,0) (4,0)] warp[]");
//! assert_eq!(c.apply(2, 5, 0)[..2], [9, 2]);
//!
//! // An accumulator already is the next product's operand.
//! let tile = Shape::new(&[64, 64]);
//! let c = LinearLayout::mma_accumulator(tile, [4, 1])?;
//! let a = LinearLayout::mma_operand(tile, Operand::A, 2, [4, 1])?;
//! assert_eq!(Conversion::plan(&c, &a, 2)?, Conversion::Identity);
//! # Ok::<(), kiln_codegen::gpu::layout::LayoutError>(())
//! ```

mod bits;
mod boxes;
mod convert;
#[cfg(test)]
mod convert_tests;
mod f2;
mod families;
mod ldmatrix;
mod linear;
mod scratch;
mod shared;
mod shuffle;
#[cfg(test)]
pub(crate) mod test_support;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_fragments;
mod transfer;
mod transpose;

pub use bits::{ShiftTerm, coords, extents_ok, flat};
pub use boxes::WarpBoxes;
pub use convert::{Affine, Conversion, SCRATCH_BYTES};
#[cfg(test)]
pub(super) use convert_tests::check_conversion;
pub use f2::{F2Map, Span};
pub use families::{LayoutBuilder, Operand};
pub use ldmatrix::{Ldmatrix, LdmatrixInstruction};
pub use linear::{Level, LinearLayout, Place, VectorAccess};
pub use scratch::{ScratchAccess, ScratchPass, ScratchPlan, ScratchSide, Transposed};
pub use shared::{SharedLayout, Swizzle, Wavefronts, wavefronts_of};
pub use shuffle::{ShufflePlan, ShuffleRound};
pub use transfer::{JoinMap, LaneSlice, SliceMap};

/// What is wrong with a layout or a request for one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error("extents of a distributed tile must be powers of two, found {0}")]
    Extents(crate::ir::Shape),
    #[error("basis vector {basis} lies outside a tile of {shape}")]
    Outside { basis: u32, shape: crate::ir::Shape },
    #[error("the layout leaves elements of the {0} tile unassigned")]
    NotSurjective(crate::ir::Shape),
    #[error("the layouts do not fit together: {0}")]
    Mismatch(String),
    #[error("{what} needs {need}, found {found}")]
    Unsupported { what: &'static str, need: String, found: String },
}

/// The number of lanes of a warp, as a number of bits.
pub const LANE_BITS: usize = 5;
