//! The layout of a tile in registers.

use super::bits::{axis_coord, axis_mask, axis_shift, coords, extents_ok, total_bits};
use super::{F2Map, LayoutError, Span};
use crate::ir::{MAX_RANK, Shape};
use std::fmt;

/// A level of the hardware's hierarchy: what a bit of a hardware index counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Registers of a thread: the elements of the tile that one thread holds, in order.
    Register,
    /// Threads of a warp.
    Lane,
    /// Warps of a block.
    Warp,
    /// Blocks of a cluster.
    Block,
}

impl Level {
    pub const ALL: [Level; 4] = [Level::Register, Level::Lane, Level::Warp, Level::Block];

    fn name(self) -> &'static str {
        match self {
            Level::Register => "reg",
            Level::Lane => "lane",
            Level::Warp => "warp",
            Level::Block => "block",
        }
    }
}

/// One index per level; also, bit by bit, a set of hardware bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    pub register: u32,
    pub lane: u32,
    pub warp: u32,
    pub block: u32,
}

impl Place {
    pub fn get(&self, level: Level) -> u32 {
        match level {
            Level::Register => self.register,
            Level::Lane => self.lane,
            Level::Warp => self.warp,
            Level::Block => self.block,
        }
    }
}

/// A linear map from (register, lane, warp, block) to the elements of a tile.
///
/// Bit i of, say, the lane index contributes the basis vector `bases(Level::Lane)[i]`, a flat coordinate; the element
/// at a place is the exclusive or of all contributions. Every element is held at least once. It is held more than
/// once where basis vectors are zero or dependent: *redundant* bits, see [`LinearLayout::redundant`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LinearLayout {
    shape: Shape,
    bases: [Vec<u32>; 4],
}

impl LinearLayout {
    /// The layout with these basis vectors, as flat coordinates of a `shape` tile, lowest hardware bit first.
    ///
    /// # Errors
    /// If extents are no powers of two, a basis vector lies outside the tile, or an element is held nowhere.
    pub fn new(
        shape: Shape,
        register: Vec<u32>,
        lane: Vec<u32>,
        warp: Vec<u32>,
        block: Vec<u32>,
    ) -> Result<LinearLayout, LayoutError> {
        extents_ok(&shape)?;
        let layout = LinearLayout { shape, bases: [register, lane, warp, block] };
        let bits = total_bits(&shape);
        if let Some(&basis) = layout.all_bases().find(|&&b| u64::from(b) >= 1 << bits) {
            return Err(LayoutError::Outside { basis, shape });
        }
        if layout.all_bases().count() > 32 {
            return Err(LayoutError::Unsupported {
                what: "a layout",
                need: "at most 32 hardware bits".into(),
                found: layout.all_bases().count().to_string(),
            });
        }
        if !layout.map().is_surjective() {
            return Err(LayoutError::NotSurjective(shape));
        }
        Ok(layout)
    }

    /// For maps that are layouts by construction.
    pub(super) fn from_parts(shape: Shape, bases: [Vec<u32>; 4]) -> LinearLayout {
        let layout = LinearLayout { shape, bases };
        debug_assert!(layout.map().is_surjective(), "not surjective: {layout}");
        layout
    }

    /// Every element in every thread: register r holds the element with flat index r.
    pub fn replicated(shape: Shape, lane_bits: usize, warp_bits: usize) -> LinearLayout {
        let register = (0..total_bits(&shape)).map(|i| 1 << i).collect();
        LinearLayout::from_parts(shape, [register, vec![0; lane_bits], vec![0; warp_bits], vec![]])
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The basis vectors of lanes, then those of warps.
    pub fn thread_bases(&self) -> impl Iterator<Item = u32> {
        [Level::Lane, Level::Warp].into_iter().flat_map(|level| self.bases(level)).copied()
    }

    pub fn bases(&self, level: Level) -> &[u32] {
        &self.bases[level as usize]
    }

    /// The same hardware bits with other images; `f` maps flat coordinates linearly.
    pub(super) fn map_bases(&self, shape: Shape, f: impl Fn(u32) -> u32) -> LinearLayout {
        LinearLayout::from_parts(shape, self.bases.clone().map(|level| level.into_iter().map(&f).collect()))
    }

    pub(super) fn with_registers(&self, register: Vec<u32>) -> LinearLayout {
        let [_, lane, warp, block] = self.bases.clone();
        LinearLayout::from_parts(self.shape, [register, lane, warp, block])
    }

    fn all_bases(&self) -> impl Iterator<Item = &u32> {
        self.bases.iter().flatten()
    }

    /// The number of places of a level: registers of a thread, lanes of a warp, …
    pub fn size(&self, level: Level) -> usize {
        1 << self.bases(level).len()
    }

    /// Elements that one thread holds.
    pub fn registers(&self) -> usize {
        self.size(Level::Register)
    }

    pub fn warps(&self) -> usize {
        self.size(Level::Warp)
    }

    /// The flat coordinate of the element at a place.
    pub fn flat(&self, register: u32, lane: u32, warp: u32) -> u32 {
        self.flat_at(Place { register, lane, warp, block: 0 })
    }

    pub fn flat_at(&self, place: Place) -> u32 {
        Level::ALL.into_iter().fold(0, |f, l| f ^ super::f2::apply(self.bases(l), place.get(l)))
    }

    /// The coordinates of the element at a place.
    pub fn apply(&self, register: u32, lane: u32, warp: u32) -> [u32; MAX_RANK] {
        coords(&self.shape, self.flat(register, lane, warp))
    }

    /// What the bits of a level contribute to the coordinate along `axis`: the basis vectors, cut to it.
    pub fn axis_bases(&self, level: Level, axis: usize) -> Vec<u32> {
        self.bases(level).iter().map(|&b| axis_coord(&self.shape, b, axis)).collect()
    }

    /// The whole map, from hardware indices with the register bits lowest, then lane, warp, block.
    pub fn map(&self) -> F2Map {
        F2Map::new(self.all_bases().copied().collect(), total_bits(&self.shape))
    }

    /// A hardware index of [`LinearLayout::map`] taken apart.
    pub fn place(&self, index: u32) -> Place {
        let mut shift = 0;
        let mut next = |level: Level| {
            let bits = self.bases(level).len();
            let v = (u64::from(index) >> shift) & ((1 << bits) - 1);
            shift += bits;
            v as u32
        };
        Place {
            register: next(Level::Register),
            lane: next(Level::Lane),
            warp: next(Level::Warp),
            block: next(Level::Block),
        }
    }

    /// The inverse of [`LinearLayout::place`].
    pub fn index(&self, place: Place) -> u32 {
        Level::ALL.into_iter().rev().fold(0u64, |x, l| x << self.bases(l).len() | u64::from(place.get(l))) as u32
    }

    /// From a flat coordinate to one hardware index that holds it, the one without redundant bits.
    pub fn inverse(&self) -> F2Map {
        self.map().inverse().expect("layouts are surjective")
    }

    /// The hardware bits that hold nothing new: among the places where all of them are zero, each element is found
    /// exactly once. A store, an atomic or a sum over all elements takes part only there. Bits of lower levels, and
    /// lower bits within a level, are preferred for holding data.
    pub fn redundant(&self) -> Place {
        let mut span = Span::new();
        let mut index = 0u32;
        for (i, &b) in self.all_bases().enumerate() {
            if !span.insert(b, 0) {
                index |= 1 << i;
            }
        }
        self.place(index)
    }

    /// How many places hold each element.
    pub fn copies(&self) -> usize {
        1 << (self.all_bases().count() as u32 - total_bits(&self.shape))
    }

    /// The layout without redundant registers, and for each register of `self` the register that holds the same
    /// element in the result.
    pub fn compact_registers(&self) -> (LinearLayout, Vec<u32>) {
        let mut span = Span::new();
        let mut kept = Vec::new();
        let mut image = Vec::new();
        for &b in self.bases(Level::Register) {
            let label = 1u32 << kept.len();
            let (rest, by) = span.reduce(b);
            if rest == 0 {
                image.push(by);
            } else {
                span.insert(b, label);
                kept.push(b);
                image.push(label);
            }
        }
        let map = (0..self.registers() as u32).map(|r| super::f2::apply(&image, r)).collect();
        (self.with_registers(kept), map)
    }

    /// Whether the coordinate of any element along `axis` is the *sum* of what its thread and what its register
    /// contribute (they share no bit), so that a register is a constant offset from its thread's first element.
    pub fn registers_add(&self, axis: usize) -> bool {
        let or = |level| self.axis_bases(level, axis).iter().fold(0, |m, b| m | b);
        or(Level::Register) & (or(Level::Lane) | or(Level::Warp) | or(Level::Block)) == 0
    }

    /// The widest vectors in which a thread can access its elements in a memory that is contiguous along `axis`:
    /// at most `max` elements (a power of two), aligned to their width. Every register appears in one access.
    pub fn vectorise(&self, axis: usize, max: usize) -> VectorAccess {
        let shift = if axis < self.shape.rank() { axis_shift(&self.shape, axis) } else { 0 };
        let bits = if axis < self.shape.rank() { super::bits::axis_bits(&self.shape, axis) } else { 0 };
        let registers = Span::of(self.bases(Level::Register));
        let by_thread = Level::ALL[1..].iter().flat_map(|&l| self.bases(l)).fold(0, |m, b| m | b);
        // Register numbers one, two, four, … elements further on. Where the thread's first element is not aligned,
        // the order within a vector would depend on the thread.
        let within: Vec<u32> = (0..bits.min(max.max(1).ilog2()))
            .map(|k| 1u32 << (shift + k))
            .map_while(|step| if by_thread & step != 0 { None } else { registers.solve(step) })
            .collect();
        // The first registers of the accesses: one for each coset, made aligned.
        let low = (1u32 << within.len()) - 1;
        let mut span = Span::of(&within);
        let mut firsts: Vec<u32> = Vec::new();
        for (i, &b) in self.bases(Level::Register).iter().enumerate() {
            if span.insert(1 << i, 0) {
                firsts.push((1 << i) ^ super::f2::apply(&within, (b >> shift) & low));
            }
        }
        let groups = (0..1u32 << firsts.len())
            .map(|g| super::f2::apply(&firsts, g))
            .map(|first| (0..=low).map(|j| first ^ super::f2::apply(&within, j)).collect())
            .collect();
        VectorAccess { width: 1 << within.len(), groups }
    }

    /// How many neighbours along `axis` a thread accesses at once, at most `max`, and how many a warp does: the thread's
    /// and those of the lanes that follow it there.
    pub fn runs(&self, axis: usize, max: usize) -> (usize, usize) {
        let vector = self.vectorise(axis, max).width;
        let lanes = self.axis_bases(Level::Lane, axis);
        let mut run = vector;
        while run < self.shape.dim(axis) && lanes.contains(&(run as u32)) {
            run *= 2;
        }
        (vector, run)
    }

    /// Whether each basis vector lies either along `axis` or across it; reductions need that.
    pub fn is_axis_aligned(&self, axis: usize) -> bool {
        let mask = axis_mask(&self.shape, axis);
        self.all_bases().all(|&b| b & mask == 0 || b & !mask == 0)
    }
}

/// Elements of one thread grouped into vectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VectorAccess {
    /// Elements per access.
    pub width: usize,
    /// For each access its registers, in order of address.
    pub groups: Vec<Vec<u32>>,
}

impl VectorAccess {
    /// Every element by itself.
    pub fn single(layout: &LinearLayout) -> VectorAccess {
        VectorAccess { width: 1, groups: (0..layout.registers() as u32).map(|r| vec![r]).collect() }
    }
}

impl fmt::Display for LinearLayout {
    /// `16x8 reg[(0,1) (8,0)] lane[(0,2) (0,4) (1,0) (2,0) (4,0)] warp[]`: the coordinates of the basis vectors.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.shape.rank() == 0 {
            f.write_str("scalar")?
        } else {
            write!(f, "{}", self.shape)?
        };
        for level in Level::ALL {
            if level == Level::Block && self.bases(level).is_empty() {
                continue;
            }
            write!(f, " {}[", level.name())?;
            for (i, &b) in self.bases(level).iter().enumerate() {
                let c = coords(&self.shape, b)[..self.shape.rank()].iter().map(u32::to_string).collect::<Vec<_>>();
                write!(f, "{}({})", if i > 0 { " " } else { "" }, c.join(","))?;
            }
            f.write_str("]")?;
        }
        Ok(())
    }
}
