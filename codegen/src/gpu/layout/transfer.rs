//! How layouts follow the shape operations of tile IR.
//!
//! `x.op(…)` is forwards: x the operand's layout, the answer a layout of the result that needs no data movement.
//! `x.op_source(…)` is backwards: x the result's layout, the answer the operand's layout from which the result comes
//! without data movement; backwards always succeeds except for `join`. Where registers do not simply keep their
//! numbers, the answer comes with the operand's register for each of the result's.

use super::bits::{axis_bits, axis_coord, axis_mask, axis_shift, coords, flat, total_bits};
use super::f2::apply;
use super::{LayoutError, Level, LinearLayout, Span};
use crate::ir::{MAX_RANK, Shape};

/// A layout, and for each register of the result the operand's register with its element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceMap {
    pub layout: LinearLayout,
    pub registers: Vec<u32>,
}

/// The operands' layout of a `join`, and for each register of the result (operand 0 or 1, its register).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinMap {
    pub layout: LinearLayout,
    pub registers: Vec<(u8, u32)>,
}

/// A box of a tile for which each thread reads its elements from a lane of its warp: for each register of the result
/// the operand's register, and the bits of the lane's number that are set to those of `lane`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneSlice {
    pub layout: LinearLayout,
    pub registers: Vec<u32>,
    pub mask: u32,
    pub lane: u32,
}

impl LinearLayout {
    /// The layout of the transposed tile, whose axis i is axis `perm[i]` of this one. Registers keep their numbers.
    pub fn transpose(&self, perm: &[u8]) -> LinearLayout {
        let from = *self.shape();
        let perm = &perm[..from.rank()];
        let dims: Vec<u32> = perm.iter().map(|&p| from.dims()[p as usize]).collect();
        let to = Shape::new(&dims);
        self.map_bases(to, |b| {
            let c = coords(&from, b);
            let moved: Vec<u32> = perm.iter().map(|&p| c[p as usize]).collect();
            flat(&to, &moved)
        })
    }

    /// The operand's layout for this layout of a transposition's result.
    pub fn transpose_source(&self, perm: &[u8]) -> LinearLayout {
        let mut inverse = [0; MAX_RANK];
        for (i, &p) in perm[..self.shape().rank()].iter().enumerate() {
            inverse[p as usize] = i as u8;
        }
        self.transpose(&inverse)
    }

    /// The layout of the tile with other extents, in row-major order; its own inverse. Registers keep their numbers.
    ///
    /// # Errors
    /// If the numbers of elements differ.
    pub fn reshape(&self, shape: Shape) -> Result<LinearLayout, LayoutError> {
        super::bits::extents_ok(&shape)?;
        if shape.numel() != self.shape().numel() {
            return Err(LayoutError::Mismatch(format!("{} elements reshaped to {shape}", self.shape())));
        }
        Ok(self.map_bases(shape, |b| b))
    }

    /// The layout of the broadcast tile in which every thread repeats its elements in new registers: register r of
    /// the result is register `r % self.registers()` of the operand.
    ///
    /// # Errors
    /// If an extent other than 1 changes.
    pub fn broadcast(&self, shape: Shape) -> Result<LinearLayout, LayoutError> {
        super::bits::extents_ok(&shape)?;
        let from = *self.shape();
        let repeated = check_broadcast(&from, &shape)?;
        let grown = self.bases_in(&from, &shape, &repeated);
        let mut register = grown[0].clone();
        for axis in (0..shape.rank()).rev().filter(|&a| repeated[a]) {
            register.extend((0..axis_bits(&shape, axis)).map(|k| 1 << (axis_shift(&shape, axis) + k)));
        }
        let [_, lane, warp, block] = grown;
        Ok(LinearLayout::from_parts(shape, [register, lane, warp, block]))
    }

    fn bases_in(&self, from: &Shape, to: &Shape, repeated: &[bool]) -> [Vec<u32>; 4] {
        let grow = |b: u32| {
            let c = coords(from, b);
            let mut out = [0; MAX_RANK];
            if from.rank() == to.rank() {
                for axis in (0..to.rank()).filter(|&a| !repeated[a]) {
                    out[axis] = c[axis];
                }
            }
            flat(to, &out)
        };
        Level::ALL.map(|l| self.bases(l).iter().map(|&b| grow(b)).collect())
    }

    /// The operand's layout for this layout of a broadcast's result: every place holds the element that it repeats.
    /// Registers keep their numbers (many are redundant: see [`LinearLayout::compact_registers`]).
    ///
    /// # Errors
    /// If an extent other than 1 changes.
    pub fn broadcast_source(&self, operand: Shape) -> Result<LinearLayout, LayoutError> {
        super::bits::extents_ok(&operand)?;
        let result = *self.shape();
        let repeated = check_broadcast(&operand, &result)?;
        Ok(self.map_bases(operand, |b| {
            let mut c = coords(&result, b);
            for (c, _) in c.iter_mut().zip(&repeated).filter(|(_, r)| **r) {
                *c = 0;
            }
            flat(&operand, &c)
        }))
    }

    /// The layout of the box of `shape` at `offsets` if each thread already holds what it needs of it.
    pub fn slice(&self, offsets: &[u32], shape: Shape) -> Option<SliceMap> {
        let from = *self.shape();
        let outside = (0..from.rank())
            .fold(0, |m, a| m | (axis_mask(&from, a) & !((shape.dims()[a] - 1) << axis_shift(&from, a))));
        let (register, registers) = self.registers_where(outside, flat(&from, offsets))?;
        let cut = |b: u32| flat(&shape, &coords(&from, b));
        let others = [Level::Lane, Level::Warp, Level::Block].map(|l| self.bases(l).iter().map(|&b| cut(b)).collect());
        let [lane, warp, block] = others;
        let register = register.into_iter().map(cut).collect();
        let layout = LinearLayout::new(shape, register, lane, warp, block).ok()?;
        Some(SliceMap { layout, registers })
    }

    /// The layout of the box of `shape` at `offsets` if lanes of the same warp, the same for all elements, hold it: each
    /// of the lanes that held something else gets a copy.
    pub fn slice_within_warps(&self, offsets: &[u32], shape: Shape) -> Option<LaneSlice> {
        let from = *self.shape();
        let outside = (0..from.rank())
            .fold(0, |m, a| m | (axis_mask(&from, a) & !((shape.dims()[a] - 1) << axis_shift(&from, a))));
        let [registers, lanes] = [Level::Register, Level::Lane].map(|l| self.bases(l));
        let apart = registers.iter().chain(lanes).all(|b| b & outside == 0 || b & !outside == 0);
        let fixed = [Level::Warp, Level::Block].iter().all(|&l| self.bases(l).iter().all(|b| b & outside == 0));
        if !apart || !fixed {
            return None;
        }
        let mut span = Span::new();
        for (i, &b) in registers.iter().chain(lanes).enumerate() {
            span.insert(b & outside, 1 << i);
        }
        let place = span.solve(flat(&from, offsets) & outside)?;
        let first = place & ((1 << registers.len()) - 1);
        let kept: Vec<usize> = (0..registers.len()).filter(|&i| registers[i] & outside == 0).collect();
        let number = |r: u32| kept.iter().enumerate().fold(first, |n, (i, &bit)| n | (r >> i & 1) << bit);
        let mask = lanes.iter().enumerate().fold(0, |m, (i, &b)| m | u32::from(b & outside != 0) << i);
        let cut = |b: u32| flat(&shape, &coords(&from, b & !outside));
        let [lane, warp, block] =
            [Level::Lane, Level::Warp, Level::Block].map(|l| self.bases(l).iter().map(|&b| cut(b)).collect());
        let register = kept.iter().map(|&i| cut(registers[i])).collect();
        let layout = LinearLayout::new(shape, register, lane, warp, block).ok()?;
        let registers = (0..1 << kept.len()).map(number).collect();
        Some(LaneSlice { layout, registers, mask, lane: place >> self.bases(Level::Register).len() })
    }

    /// The registers of a thread whose elements have the bits `mask` of the flat coordinate equal to `value`, if that
    /// is a question of registers alone: basis vectors for the numbers of those registers, and the registers.
    fn registers_where(&self, mask: u32, value: u32) -> Option<(Vec<u32>, Vec<u32>)> {
        if [Level::Lane, Level::Warp, Level::Block].iter().any(|&l| self.bases(l).iter().any(|b| b & mask != 0)) {
            return None;
        }
        let bases = self.bases(Level::Register);
        let first = Span::of(bases).solve(value)?;
        let masked: Vec<u32> = bases.iter().map(|b| b & mask).collect();
        let within = super::F2Map::new(masked, 32).kernel();
        let registers = (0..1u32 << within.len()).map(|x| first ^ apply(&within, x)).collect();
        Some((within.iter().map(|&r| apply(bases, r)).collect(), registers))
    }

    /// The operand's layout for this layout of the box at `offsets` of a tile of shape `operand`: each thread also
    /// holds, in new registers, what lies outside of the box.
    ///
    /// # Panics
    /// If the box does not lie in the tile.
    pub fn slice_source(&self, offsets: &[u32], operand: Shape) -> SliceMap {
        let part = *self.shape();
        let mut bases = Level::ALL.map(|l| {
            let grow = |&b: &u32| flat(&operand, &coords(&part, b));
            self.bases(l).iter().map(grow).collect::<Vec<u32>>()
        });
        let mut select = 0;
        for (axis, &offset) in offsets.iter().enumerate().take(operand.rank()) {
            for k in axis_bits(&part, axis)..axis_bits(&operand, axis) {
                select |= (offset >> k & 1) << bases[0].len();
                bases[0].push(1 << (axis_shift(&operand, axis) + k));
            }
        }
        let registers = (0..self.registers() as u32).map(|r| r | select).collect();
        SliceMap { layout: LinearLayout::from_parts(operand, bases), registers }
    }

    /// The layout of two tiles of this layout, one after the other along `axis`: the second's registers follow the
    /// first's.
    pub fn join(&self, axis: usize) -> LinearLayout {
        let from = *self.shape();
        let to = from.with(axis, from.dims()[axis] * 2);
        let mut bases =
            Level::ALL.map(|l| self.bases(l).iter().map(|&b| flat(&to, &coords(&from, b))).collect::<Vec<u32>>());
        bases[0].push(from.dims()[axis] << axis_shift(&to, axis));
        LinearLayout::from_parts(to, bases)
    }

    /// The operands' layout for this layout of a join's result; `None` if the operands do not meet within threads.
    pub fn join_source(&self, axis: usize) -> Option<JoinMap> {
        let half = self.shape().with(axis, self.shape().dims()[axis] / 2);
        let zero = [0; MAX_RANK];
        let mut second = zero;
        second[axis] = half.dims()[axis];
        let first = self.slice(&zero, half)?;
        let second = self.slice(&second, half)?;
        let mut registers = vec![(0, 0); self.registers()];
        for (operand, part) in [(0, &first), (1, &second)] {
            for (i, &r) in part.registers.iter().enumerate() {
                registers[r as usize] = (operand, i as u32);
            }
        }
        Some(JoinMap { layout: first.layout, registers })
    }

    /// The *sliced* layout of a reduction's result along `axis`: every place holds the result for the element it had.
    /// Without redundant registers.
    pub fn reduce(&self, axis: usize) -> LinearLayout {
        let from = *self.shape();
        let to = from.without(axis);
        let across = self.map_bases(to, |b| remove_axis(&from, &to, b, axis));
        across.compact_registers().0
    }

    /// A layout of the operand whose reduction along `axis` leaves this layout (up to redundant bits): the axis lies
    /// in registers, innermost.
    pub fn reduce_source(&self, axis: usize, extent: u32) -> Result<LinearLayout, LayoutError> {
        let part = *self.shape();
        let mut dims = part.dims().to_vec();
        dims.insert(axis, extent);
        let to = Shape::new(&dims);
        super::bits::extents_ok(&to)?;
        let mut bases = Level::ALL.map(|l| {
            let grow = |&b: &u32| {
                let mut c = coords(&part, b)[..part.rank()].to_vec();
                c.insert(axis, 0);
                flat(&to, &c)
            };
            self.bases(l).iter().map(grow).collect::<Vec<u32>>()
        });
        let along = (0..axis_bits(&to, axis)).map(|k| 1 << (axis_shift(&to, axis) + k));
        bases[0].splice(0..0, along);
        Ok(LinearLayout::from_parts(to, bases))
    }

    /// Block-diagonal product: the hardware bits of `self` below those of `outer`, level by level, and each of
    /// `outer`'s elements a whole tile of `self`. Extents multiply.
    ///
    /// # Errors
    /// If the ranks differ or the product is too large.
    pub fn product(&self, outer: &LinearLayout) -> Result<LinearLayout, LayoutError> {
        let (a, b) = (*self.shape(), *outer.shape());
        if a.rank() != b.rank() || total_bits(&a) + total_bits(&b) > 31 {
            return Err(LayoutError::Mismatch(format!("a product of {a} and {b}")));
        }
        let dims: Vec<u32> = (0..a.rank()).map(|i| a.dims()[i] * b.dims()[i]).collect();
        let to = Shape::new(&dims);
        let inner = |&f: &u32| flat(&to, &coords(&a, f));
        let scale = |&f: &u32| {
            let c: Vec<u32> = (0..b.rank()).map(|i| axis_coord(&b, f, i) * a.dims()[i]).collect();
            flat(&to, &c)
        };
        let [register, lane, warp, block] =
            Level::ALL.map(|l| self.bases(l).iter().map(inner).chain(outer.bases(l).iter().map(scale)).collect());
        LinearLayout::new(to, register, lane, warp, block)
    }
}

fn remove_axis(from: &Shape, to: &Shape, b: u32, axis: usize) -> u32 {
    let mut c = coords(from, b)[..from.rank()].to_vec();
    c.remove(axis);
    flat(to, &c)
}

/// For each result axis whether the operand is repeated along it.
fn check_broadcast(operand: &Shape, result: &Shape) -> Result<Vec<bool>, LayoutError> {
    let rank = result.rank();
    let scalar = operand.rank() == 0;
    let ok = scalar
        || operand.rank() == rank && (0..rank).all(|a| operand.dims()[a] == result.dims()[a] || operand.dims()[a] == 1);
    if !ok {
        return Err(LayoutError::Mismatch(format!("{operand} broadcast to {result}")));
    }
    Ok((0..rank).map(|a| scalar || operand.dims()[a] != result.dims()[a]).collect())
}
