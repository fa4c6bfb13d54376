//! The layouts that hardware and memory ask for.
//!
//! All are *products of one-bit layouts*: a list that says, for one hardware bit after the other, along which axis it
//! steps over what the bits before it cover. [`LayoutBuilder`] is that list; the tables of fragments below follow the
//! PTX manual ("Matrix Fragments for mma.m16n8k16", "Register Fragments for wgmma.mma_async.m64nNk16").
//!
//! Where a tile is smaller than the list covers, the remaining bits are redundant: they step by zero. For the M and N
//! axes of a matrix product this is also what the instruction needs: the surplus rows compute copies.

use super::bits::{axis_bits, axis_shift, extents_ok};
use super::{LANE_BITS, LayoutError, Level, LinearLayout};
use crate::ir::Shape;

/// Builds a layout bit by bit.
#[derive(Clone, Debug)]
pub struct LayoutBuilder {
    shape: Shape,
    /// Bits covered along each axis.
    covered: Vec<u32>,
    bases: [Vec<u32>; 4],
}

impl LayoutBuilder {
    /// # Errors
    /// If the extents are no powers of two.
    pub fn new(shape: Shape) -> Result<LayoutBuilder, LayoutError> {
        extents_ok(&shape)?;
        Ok(LayoutBuilder { shape, covered: vec![0; shape.rank()], bases: Default::default() })
    }

    /// The next `count` bits of `level` step along `axis`; where the tile ends they hold copies.
    pub fn step(mut self, level: Level, axis: usize, count: usize) -> LayoutBuilder {
        for _ in 0..count {
            let k = self.covered[axis];
            let inside = k < axis_bits(&self.shape, axis);
            self.bases[level as usize].push(if inside { 1 << (axis_shift(&self.shape, axis) + k) } else { 0 });
            self.covered[axis] += u32::from(inside);
        }
        self
    }

    /// The next `count` bits of `level` hold copies.
    pub fn copies(mut self, level: Level, count: usize) -> LayoutBuilder {
        self.bases[level as usize].extend(std::iter::repeat_n(0, count));
        self
    }

    /// The layout; what is not covered yet goes to registers, axis by axis in this order (then the others, last
    /// axis first).
    pub fn finish(mut self, order: &[usize]) -> LinearLayout {
        let rank = self.shape.rank();
        for axis in order.iter().copied().chain((0..rank).rev()) {
            let missing = axis_bits(&self.shape, axis) - self.covered[axis];
            self = self.step(Level::Register, axis, missing as usize);
        }
        LinearLayout::from_parts(self.shape, self.bases)
    }
}

/// Which operand of a matrix product a fragment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// M×K.
    A,
    /// K×N.
    B,
}

/// log2 of a power of two.
fn log2(n: usize) -> usize {
    debug_assert!(n.is_power_of_two());
    n.trailing_zeros() as usize
}

fn need(ok: bool, what: &'static str, need: &str, found: impl ToString) -> Result<(), LayoutError> {
    if ok { Ok(()) } else { Err(LayoutError::Unsupported { what, need: need.into(), found: found.to_string() }) }
}

fn need_matrix(shape: &Shape, warps: [usize; 2]) -> Result<(), LayoutError> {
    need(shape.rank() == 2, "a matrix fragment", "rank 2", shape.rank())?;
    need(warps.iter().all(|n| n.is_power_of_two()), "a matrix fragment", "powers of two of warps", format!("{warps:?}"))
}

impl LinearLayout {
    /// Each thread holds a box of `size_per_thread`, each warp a box of `threads_per_warp` such boxes, the block a
    /// box of `warps` such boxes, which repeats over the tile in further registers. `order` lists the axes, fastest
    /// first. Where the tile is smaller than the block's box, threads hold copies.
    ///
    /// # Errors
    /// If the lists do not have one power of two per axis, or `order` is no permutation.
    pub fn blocked(
        shape: Shape,
        size_per_thread: &[usize],
        threads_per_warp: &[usize],
        warps: &[usize],
        order: &[usize],
    ) -> Result<LinearLayout, LayoutError> {
        let rank = shape.rank();
        for list in [size_per_thread, threads_per_warp, warps] {
            let ok = list.len() == rank && list.iter().all(|n| n.is_power_of_two());
            need(ok, "a blocked layout", "one power of two per axis", format!("{list:?}"))?;
        }
        let ok = order.len() == rank && (0..rank).all(|a| order.contains(&a));
        need(ok, "a blocked layout", "an order of all axes", format!("{order:?}"))?;
        let mut b = LayoutBuilder::new(shape)?;
        for (level, list) in [(Level::Register, size_per_thread), (Level::Lane, threads_per_warp), (Level::Warp, warps)]
        {
            for &axis in order {
                // A thread holds no copies of its own elements.
                let room = (axis_bits(&shape, axis) - b.covered[axis]) as usize;
                let count = if level == Level::Register { log2(list[axis]).min(room) } else { log2(list[axis]) };
                b = b.step(level, axis, count);
            }
        }
        Ok(b.finish(order))
    }

    /// The layout for memory accesses: `vector` consecutive elements along `axis` per thread, then as many lanes and
    /// warps along `axis` as it has room for, the rest along the other axes, last axis first.
    ///
    /// # Errors
    /// If the extents, `vector` or `warps` are no powers of two.
    pub fn coalesced(shape: Shape, axis: usize, vector: usize, warps: usize) -> Result<LinearLayout, LayoutError> {
        need(vector.is_power_of_two(), "a vector width", "a power of two", vector)?;
        need(warps.is_power_of_two(), "the number of warps", "a power of two", warps)?;
        let mut b = LayoutBuilder::new(shape)?;
        let order: Vec<usize> =
            std::iter::once(axis).chain((0..shape.rank()).rev().filter(|&a| a != axis)).take(shape.rank()).collect();
        if let Some(&axis) = order.first() {
            // Not more per thread than leaves every thread something to do.
            let threads = LANE_BITS + log2(warps);
            let spare = (super::bits::total_bits(&shape) as usize).saturating_sub(threads);
            let room = axis_bits(&shape, axis) as usize;
            b = b.step(Level::Register, axis, log2(vector).min(room).min(spare));
        }
        for (level, mut bits) in [(Level::Lane, LANE_BITS), (Level::Warp, log2(warps))] {
            for &axis in &order {
                let count = bits.min((axis_bits(&shape, axis) - b.covered[axis]) as usize);
                b = b.step(level, axis, count);
                bits -= count;
            }
            b = b.copies(level, bits);
        }
        Ok(b.finish(&order))
    }

    /// The accumulator (C, D) of `mma.sync…m16n8…`: an M×N tile over `warps` = [along M, along N], M fastest.
    /// Register bits: the fragment's (column, row + 8), then fragments along N, then along M.
    ///
    /// # Errors
    /// If the tile is no matrix, or the numbers of warps are no powers of two.
    pub fn mma_accumulator(shape: Shape, warps: [usize; 2]) -> Result<LinearLayout, LayoutError> {
        need_matrix(&shape, warps)?;
        let b = LayoutBuilder::new(shape)?
            .step(Level::Register, 1, 1)
            .step(Level::Lane, 1, 2)
            .step(Level::Lane, 0, 3)
            .step(Level::Register, 0, 1)
            .step(Level::Warp, 0, log2(warps[0]))
            .step(Level::Warp, 1, log2(warps[1]));
        Ok(b.finish(&[1, 0]))
    }

    /// An operand of `mma.sync` in registers, for elements of `elem_bytes` (2: m16n8k16; 4: tf32, m16n8k8;
    /// 1: m16n8k32). A is M×K and copied to the warps along N, B is K×N and copied to the warps along M; `warps` as
    /// for the accumulator, and fragment i along M (N) of A (B) meets fragment i of the accumulator. Register bits:
    /// the fragment's, then fragments along K, then along M or N.
    ///
    /// # Errors
    /// As for the accumulator; if K is smaller than the instruction's.
    pub fn mma_operand(
        shape: Shape,
        operand: Operand,
        elem_bytes: usize,
        warps: [usize; 2],
    ) -> Result<LinearLayout, LayoutError> {
        let (k_axis, other) = match operand {
            Operand::A => (1, 0),
            Operand::B => (0, 1),
        };
        need_matrix(&shape, warps)?;
        need([1, 2, 4].contains(&elem_bytes), "a matrix fragment", "elements of 1, 2 or 4 bytes", elem_bytes)?;
        // A sum over copies would count them twice.
        let min_k = 32 / elem_bytes;
        need(shape.dim(k_axis) >= min_k, "this matrix product", &format!("K of at least {min_k}"), shape.dim(k_axis))?;
        // A lane's 32-bit register holds 4 / elem_bytes neighbours along K.
        let mut b = LayoutBuilder::new(shape)?
            .step(Level::Register, k_axis, log2(4 / elem_bytes))
            .step(Level::Lane, k_axis, 2)
            .step(Level::Lane, other, 3);
        if operand == Operand::A {
            b = b.step(Level::Register, other, 1);
        }
        b = b.step(Level::Register, k_axis, 1);
        b = match operand {
            Operand::A => b.step(Level::Warp, other, log2(warps[0])).copies(Level::Warp, log2(warps[1])),
            Operand::B => b.copies(Level::Warp, log2(warps[0])).step(Level::Warp, other, log2(warps[1])),
        };
        Ok(b.finish(&[k_axis, other]))
    }

    /// An operand of [`LinearLayout::mma_operand`] for which the instruction's K stands for other indices of the tile: a
    /// sum may be taken in any order, so the lowest bits of K go to the registers, and each thread holds runs of up to
    /// 16 bytes along K. Both operands of a product must be in runs, or neither.
    pub fn in_runs(&self, operand: Operand, elem_bytes: usize) -> LinearLayout {
        let shape = *self.shape();
        let axis = shape.rank() - if operand == Operand::A { 1 } else { 2 };
        // The instruction's bits: neighbours in a 32-bit register, two bits of the lane, the upper half; beyond it,
        // fragments.
        let (bits, pair) = (axis_bits(&shape, axis) as usize, log2(4 / elem_bytes));
        let mut order: Vec<usize> = (0..pair).collect();
        order.push(pair + 2);
        order.extend((bits > pair + 3).then_some(pair + 3));
        order.extend([pair, pair + 1]);
        order.extend(order.len()..bits);
        let shift = axis_shift(&shape, axis);
        let mask = ((1u32 << bits) - 1) << shift;
        self.map_bases(shape, |b| {
            let moved = |(to, &from): (usize, &usize)| (b >> (shift as usize + from) & 1) << (shift as usize + to);
            b & !mask | order.iter().enumerate().map(moved).fold(0, |x, y| x | y)
        })
    }

    /// A matrix's layout for `batch` matrices one after another: over `warps` times as many warps, then in further
    /// registers.
    ///
    /// # Errors
    /// If the numbers are no powers of two.
    pub fn batched(&self, batch: usize, warps: usize) -> Result<LinearLayout, LayoutError> {
        let mut dims = vec![batch as u32];
        dims.extend(self.shape().dims());
        let shape = Shape::new(&dims);
        extents_ok(&shape)?;
        need(warps.is_power_of_two(), "matrices side by side", "powers of two of warps", warps)?;
        let first = axis_shift(&shape, 0);
        let mut steps = (0..log2(batch)).map(|i| 1u32 << (first as usize + i));
        let [mut register, lane, mut warp, block] = Level::ALL.map(|l| self.bases(l).to_vec());
        warp.extend((0..log2(warps)).map(|_| steps.next().unwrap_or(0)));
        register.extend(steps);
        LinearLayout::new(shape, register, lane, warp, block)
    }

    /// The accumulator of `wgmma.mma_async.m64nNk…`: an M×N tile over `warpgroups` = [along M, along N] of four
    /// warps, each warp 16 rows. `n` is the instruction's N: register bits are those of the instruction's operand
    /// list (column, row + 8, columns + 8, …), then further instructions along N, then along M.
    ///
    /// # Errors
    /// As for [`LinearLayout::mma_accumulator`]; if M is less than 64 per warpgroup, or `n` is no power of two from 8 to
    /// 256 within the tile's N per warpgroup.
    pub fn wgmma_accumulator(shape: Shape, n: usize, warpgroups: [usize; 2]) -> Result<LinearLayout, LayoutError> {
        need_matrix(&shape, warpgroups)?;
        need(shape.dim(0) >= 64 * warpgroups[0], "wgmma", "64 rows per warpgroup", shape.dim(0))?;
        let ok = n.is_power_of_two() && (8..=256).contains(&n) && n * warpgroups[1] <= shape.dim(1);
        need(ok, "wgmma", "N from 8 to 256 within the tile", n)?;
        let b = LayoutBuilder::new(shape)?
            .step(Level::Register, 1, 1)
            .step(Level::Lane, 1, 2)
            .step(Level::Lane, 0, 3)
            .step(Level::Register, 0, 1)
            .step(Level::Register, 1, log2(n / 8))
            .step(Level::Warp, 0, 2)
            .step(Level::Warp, 0, log2(warpgroups[0]))
            .step(Level::Warp, 1, log2(warpgroups[1]));
        Ok(b.finish(&[1, 0]))
    }

    /// The A operand of `wgmma` in registers: M×K, copied to the warpgroups along N. Register bits: the fragment's
    /// (K of 32 bytes), then fragments along K, then along M.
    ///
    /// # Errors
    /// As for [`LinearLayout::mma_operand`]; if M is less than 64 per warpgroup, or K is less than 32 bytes.
    pub fn wgmma_operand_a(
        shape: Shape,
        elem_bytes: usize,
        warpgroups: [usize; 2],
    ) -> Result<LinearLayout, LayoutError> {
        need_matrix(&shape, warpgroups)?;
        need(shape.dim(0) >= 64 * warpgroups[0], "wgmma", "64 rows per warpgroup", shape.dim(0))?;
        LinearLayout::mma_operand(shape, Operand::A, elem_bytes, [4 * warpgroups[0], warpgroups[1]])
    }
}
