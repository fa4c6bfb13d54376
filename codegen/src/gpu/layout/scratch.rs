//! Conversions through shared memory, with a swizzle made for the two layouts.
//!
//! The scratch layout is a basis of the tile's coordinate space, in order of offset: *vector* (up to 16 bytes that a
//! thread accesses at once), *bank* (the rest of a 128-byte row), *row*. Two lanes conflict if they differ by an
//! element of another row in the same bank: if the span of the lanes of a phase meets the span of the rows. So rows are
//! chosen as a common complement of the lanes of the source's and of the destination's phases. Both spans have at most
//! a row's dimension; extended to exactly that, they do have one: for P = C + {a}, Q = C + {b} with C = P ∩ Q, the sums
//! a + b and a complement of P + Q. Hence neither side has bank conflicts, whatever the layouts. After Zhou et al.
//! (arXiv 2505.23819), section 5.4.
//!
//! Vectors are directions that both layouts hold in registers. Where these are less than 16 bytes one of the sides may
//! add directions of its own, which the other side's lanes run along; that restricts the choice of rows, so candidates
//! are built and counted.
//!
//! Accesses may also go by 8×8 matrices of 16-bit elements, of which each lane has a part and eight lanes name the rows
//! (`stmatrix`, `ldmatrix`, see [`Ldmatrix`]), also transposed: then neighbours in a thread need not be neighbours in
//! memory. It is such a matrix's rows that must lie in different banks then.
//!
//! A tile too large for the scratch goes in passes: directions that both layouts hold in registers, and that no lane
//! or warp moves along, are left out of the layout and enumerated.

use super::f2::apply;
use super::shared::{Wavefronts, wavefronts_of};
use super::{F2Map, LANE_BITS, Ldmatrix, LdmatrixInstruction, Level, LinearLayout, SharedLayout, Span};
use crate::ir::Shape;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScratchPlan {
    /// Size of the scratch memory; its address must be a multiple of 128.
    pub bytes: usize,
    pub store: ScratchSide,
    pub load: ScratchSide,
    /// Each pass: store, barrier, load; and a barrier before the next pass (or user of the scratch).
    pub passes: Vec<ScratchPass>,
    /// Registers that the loads write.
    pub registers: usize,
    /// For each register of the destination, the written register that holds its element.
    pub copies: Vec<u32>,
    /// Each warp reads only what it wrote itself: the barriers need only order a warp's own accesses.
    pub warp_local: bool,
    /// The scratch as a tile. Its coordinates are those of the converted tile if there is one pass.
    pub scratch: SharedLayout,
}

/// Whether matrices are transposed on their way.
pub type Transposed = bool;

/// What the stores (loads) of all passes have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScratchSide {
    /// Elements per access, aligned to their size; of matrices, of a thread.
    pub width: usize,
    /// Whether an access is `width / 2` matrices, and these are transposed. The thread's offset is then that of the row that
    /// it names.
    pub matrices: Option<Transposed>,
    /// The thread's part of the offset, in elements: contributions of the lane's bits, then of the warp's.
    pub thread: Vec<u32>,
    /// Lanes (warps) with one of these bits set hold copies: they need not store. Zero for loads.
    pub redundant_lanes: u32,
    pub redundant_warps: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScratchPass {
    pub stores: Vec<ScratchAccess>,
    pub loads: Vec<ScratchAccess>,
}

/// One access of each thread, at the thread's offset exclusive-or `offset`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScratchAccess {
    /// In elements.
    pub offset: u32,
    /// In order of address: registers of the source (stores), written registers (loads).
    pub registers: Vec<u32>,
}

impl ScratchPlan {
    /// `src` and `dst` agree in shape, lanes, warps, and in what a block of a cluster holds. More than `limit` bytes go in
    /// several passes; `by_matrices`: whether stores may go so, which takes Hopper.
    pub fn new(
        src: &LinearLayout,
        dst: &LinearLayout,
        elem_bytes: usize,
        limit: usize,
        stays_in_warp: bool,
        by_matrices: bool,
    ) -> ScratchPlan {
        let (dst, copies) = dst.compact_registers();
        let split = PassSplit::new(src, &dst, elem_bytes, limit);
        let (source, target) = (Side::new(src, &split), Side::new(&dst, &split));
        let redundant = src.redundant();
        let stores_may = by_matrices && elem_bytes == 2 && redundant.lane == 0;
        let (scratch, [to, from]) = best_scratch(&source.layout, &target.layout, elem_bytes, stores_may);
        let (stores, mut store) = source.way(&scratch, elem_bytes, to);
        store.redundant_warps = redundant.warp;
        store.redundant_lanes = if store.matrices.is_none() { redundant.lane } else { 0 };
        let (loads, load) = target.way(&scratch, elem_bytes, from);
        let passes = (0..1u32 << split.directions.len())
            .map(|p| ScratchPass {
                stores: shifted(&stores, apply(&source.passes, p)),
                loads: shifted(&loads, apply(&target.passes, p)),
            })
            .collect();
        let bytes = elem_bytes * scratch.shape().numel();
        let scratch = if split.directions.is_empty() { scratch.reshape(*src.shape()) } else { Ok(scratch) };
        ScratchPlan {
            bytes,
            store,
            load,
            passes,
            registers: dst.registers(),
            copies,
            warp_local: stays_in_warp && redundant.warp == 0,
            scratch: scratch.expect("the same number of elements"),
        }
    }

    /// Wavefronts of all stores and of all loads of one warp.
    pub fn wavefronts(&self, elem_bytes: usize, warp: u32) -> [Wavefronts; 2] {
        let count = |side: &ScratchSide, accesses: &mut dyn Iterator<Item = &ScratchAccess>| {
            let mut sum = Wavefronts { actual: 0, ideal: 0 };
            for a in accesses {
                let at = |lane| (apply(&side.thread, warp << LANE_BITS | lane) ^ a.offset) * elem_bytes as u32;
                // Of matrices one after the other, each by the eight lanes that name its rows.
                let (lanes, at_once, bytes) = match side.matrices {
                    None => (1 << LANE_BITS, 1 << LANE_BITS, side.width * elem_bytes),
                    Some(_) => (4 * side.width as u32, 8, 16),
                };
                for first in (0..lanes).step_by(at_once as usize) {
                    let cost = wavefronts_of(&(first..first + at_once).map(at).collect::<Vec<_>>(), bytes);
                    (sum.actual, sum.ideal) = (sum.actual + cost.actual, sum.ideal + cost.ideal);
                }
            }
            sum
        };
        [
            count(&self.store, &mut self.passes.iter().flat_map(|p| &p.stores)),
            count(&self.load, &mut self.passes.iter().flat_map(|p| &p.loads)),
        ]
    }

    /// Instructions per warp, roughly, in the unit of the shuffle plan's cost: accesses with their wavefronts, what puts
    /// words together, and two barriers a pass with the latency that they expose.
    pub(super) fn cost(&self, elem_bytes: usize) -> usize {
        let wavefronts: usize = self.wavefronts(elem_bytes, 0).iter().map(|w| w.actual).sum();
        let access = |a: &ScratchAccess| 1 + torn_words(&a.registers, elem_bytes);
        let accesses = self.passes.iter().flat_map(|p| p.stores.iter().chain(&p.loads)).map(access).sum::<usize>();
        wavefronts + accesses + self.passes.len() * if self.warp_local { 8 } else { 48 }
    }
}

fn shifted(accesses: &[ScratchAccess], by: u32) -> Vec<ScratchAccess> {
    let shift =
        |a: &ScratchAccess| ScratchAccess { offset: a.offset, registers: a.registers.iter().map(|r| r ^ by).collect() };
    accesses.iter().map(shift).collect()
}

/// New coordinates for the tile, in which the highest bits are the number of the pass.
struct PassSplit {
    /// One direction for each bit of the pass's number.
    directions: Vec<u32>,
    /// Bits within a pass.
    bits: u32,
    /// From flat coordinates to the new ones.
    map: F2Map,
}

impl PassSplit {
    fn new(src: &LinearLayout, dst: &LinearLayout, elem_bytes: usize, limit: usize) -> PassSplit {
        let total = src.shape().numel().ilog2();
        let want = (src.shape().numel() * elem_bytes).div_ceil(limit.max(1)).next_power_of_two().ilog2();
        if want == 0 {
            return PassSplit { directions: Vec::new(), bits: total, map: F2Map::identity(total) };
        }
        let above = |l: &LinearLayout| Level::ALL[1..].iter().flat_map(|&v| l.bases(v).to_vec()).collect::<Vec<_>>();
        let threads = [above(src), above(dst)].concat();
        let mut taken = Span::of(&threads);
        let common = Span::of(src.bases(Level::Register)).intersection(&Span::of(dst.bases(Level::Register)));
        // Echelon form, large steps first: small ones are worth more within a vector.
        let directions: Vec<u32> =
            Span::of(&common).basis().filter(|&d| taken.insert(d, 0)).take(want as usize).collect();
        let bits = total - directions.len() as u32;
        let mut basis = Span::new();
        for (i, &d) in directions.iter().enumerate() {
            basis.insert(d, 1 << (bits as usize + i));
        }
        // Threads before anything else, so that none of them moves along a pass's direction.
        let mut count = 0;
        for v in threads.into_iter().chain((0..total).map(|i| 1 << i)) {
            count += u32::from(basis.insert(v, 1 << count.min(31)));
        }
        let images = (0..total).map(|i| basis.solve(1 << i).expect("a basis of everything")).collect();
        PassSplit { directions, bits, map: F2Map::new(images, total) }
    }
}

/// The part of a layout that goes through one pass.
struct Side {
    /// Of rank 1, in the coordinates of a pass; without redundant registers.
    layout: LinearLayout,
    /// The original register numbers of the bits of `layout`'s.
    numbers: Vec<u32>,
    /// What the bits of the pass's number add to the original register number.
    passes: Vec<u32>,
}

impl Side {
    fn new(original: &LinearLayout, split: &PassSplit) -> Side {
        let images = |l: Level| original.bases(l).iter().map(|&b| split.map.apply(b)).collect::<Vec<u32>>();
        let all = images(Level::Register);
        let span = Span::of(&all);
        let passes = (0..split.directions.len())
            .map(|i| span.solve(1 << (split.bits as usize + i)).expect("held in registers"))
            .collect();
        let pass_number = F2Map::new(all.iter().map(|b| (u64::from(*b) >> split.bits) as u32).collect(), 32);
        let mut seen = Span::new();
        let numbers: Vec<u32> = pass_number.kernel().into_iter().filter(|&r| seen.insert(apply(&all, r), 0)).collect();
        let register = numbers.iter().map(|&r| apply(&all, r)).collect();
        let bases = [register, images(Level::Lane), images(Level::Warp), images(Level::Block)];
        Side { layout: LinearLayout::from_parts(Shape::new(&[1 << split.bits]), bases), numbers, passes }
    }

    /// All accesses and what they have in common, by matrices if there is a plan for that.
    fn way(
        &self,
        scratch: &SharedLayout,
        elem_bytes: usize,
        by_matrices: Option<Ldmatrix>,
    ) -> (Vec<ScratchAccess>, ScratchSide) {
        let Some(plan) = by_matrices else {
            let (accesses, width) = self.accesses(scratch, elem_bytes);
            let offsets = scratch.offsets_of(&self.layout);
            let thread = offsets.bases(Level::Lane).iter().chain(offsets.bases(Level::Warp)).copied().collect();
            let side = ScratchSide { width, matrices: None, thread, redundant_lanes: 0, redundant_warps: 0 };
            return (accesses, side);
        };
        let access = |i: &LdmatrixInstruction| ScratchAccess {
            offset: i.offset,
            registers: i.registers.iter().map(|&r| apply(&self.numbers, r)).collect(),
        };
        let side = ScratchSide {
            width: 2 * plan.matrices,
            matrices: Some(plan.transposed),
            thread: plan.thread,
            redundant_lanes: 0,
            redundant_warps: 0,
        };
        (plan.instructions.iter().map(access).collect(), side)
    }

    /// The registers grouped into accesses, and their width.
    fn accesses(&self, scratch: &SharedLayout, elem_bytes: usize) -> (Vec<ScratchAccess>, usize) {
        let vectors = scratch.vectorise(&self.layout, elem_bytes);
        let offsets = scratch.offsets_of(&self.layout);
        let access = |group: &Vec<u32>| ScratchAccess {
            offset: offsets.flat(group[0], 0, 0),
            registers: group.iter().map(|&r| apply(&self.numbers, r)).collect(),
        };
        (vectors.groups.iter().map(access).collect(), vectors.width)
    }
}

/// Instructions for the address of the row that a lane names, which is not where its own elements go.
const ADDRESS_COST: usize = 4;

/// The cheapest of the scratch layouts for two layouts of rank 1, and how the stores and the loads go by matrices, if they
/// do; `stores_may`: whether stores can.
fn best_scratch(
    src: &LinearLayout,
    dst: &LinearLayout,
    elem_bytes: usize,
    stores_may: bool,
) -> (SharedLayout, [Option<Ldmatrix>; 2]) {
    let max_vector = (16 / elem_bytes).ilog2() as usize;
    let threads = |l: &LinearLayout| Level::ALL[1..].iter().flat_map(|&v| l.bases(v).to_vec()).collect::<Vec<_>>();
    let registers = |l: &LinearLayout| Span::of(l.bases(Level::Register));
    // Common vectors that no thread's position interferes with.
    let mut clear = Span::of(&[threads(src), threads(dst)].concat());
    let mut common = registers(src).intersection(&registers(dst));
    // In the order of the destination's registers: the first of them are packed into words again.
    let wanted = registers(dst);
    common.sort_unstable_by_key(|&v| wanted.solve(v));
    let vector: Vec<u32> = common.into_iter().filter(|&v| clear.insert(v, 0)).take(max_vector).collect();

    let mut candidates = Vec::new();
    for (wide, narrow) in [(dst, src), (src, dst)] {
        // Directions that only the wide side holds in registers, those first that the narrow side's lanes run along.
        let mut own = Span::of(&[vector.clone(), threads(wide)].concat());
        let mut along = registers(wide).intersection(&Span::of(narrow.bases(Level::Lane)));
        along.sort_unstable();
        along.extend(wide.bases(Level::Register));
        let extra: Vec<u32> = along.into_iter().filter(|&u| own.insert(u, 0)).collect();
        for count in 0..=extra.len().min(max_vector - vector.len()) {
            candidates.extend(scratch_basis(&vector, &extra[..count], wide, narrow, elem_bytes, None));
        }
        // Rows and columns of the narrow side's matrices, if the wide side holds either in registers.
        if elem_bytes == 2
            && let (Some(&pair), [lanes @ .., a, b, c]) =
                (narrow.bases(Level::Register).first(), narrow.bases(Level::Lane))
        {
            let (row, column) = ([&[pair], lanes].concat(), vec![*a, *b, *c]);
            for (run, other) in [(&row, &column), (&column, &row)] {
                let mut own = Span::of(&threads(wide));
                if run.iter().all(|&u| registers(wide).solve(u).is_some() && own.insert(u, 0)) {
                    candidates.extend(scratch_basis(&[], run, wide, narrow, elem_bytes, Some(other)));
                }
            }
        }
    }
    let plain = |scratch: &SharedLayout, l: &LinearLayout, loads: bool| {
        // Other accesses and warps only permute the banks.
        let v = scratch.vectorise(l, elem_bytes);
        let offsets = scratch.offsets_of(l);
        let lanes: Vec<u32> = (0..1 << LANE_BITS).map(|t| offsets.flat(0, t, 0) * elem_bytes as u32).collect();
        let wavefronts = wavefronts_of(&lanes, v.width * elem_bytes);
        let torn: usize = v.groups.iter().map(|g| torn_words(g, elem_bytes)).sum();
        let moved: usize = v.groups.iter().filter(|_| loads).map(|g| moved_words(g, elem_bytes)).sum();
        let cost = v.groups.len() * (wavefronts.actual + 1) + torn + moved;
        (wavefronts.conflicts() == 0).then_some((cost, None))
    };
    let matrices = |scratch: &SharedLayout, l: &LinearLayout| {
        let plan = Ldmatrix::plan(l, scratch, elem_bytes).filter(|_| elem_bytes == 2)?;
        let wavefronts = plan.wavefronts(elem_bytes);
        let torn: usize = plan.instructions.iter().map(|i| torn_words(&i.registers, elem_bytes)).sum();
        let cost = plan.instructions.len() + wavefronts.actual + torn + ADDRESS_COST;
        (wavefronts.conflicts() == 0).then_some((cost, Some(plan)))
    };
    let way = |scratch: &SharedLayout, l: &LinearLayout, loads: bool| {
        let ways = [plain(scratch, l, loads), matrices(scratch, l).filter(|_| loads || stores_may)];
        ways.into_iter().flatten().min_by_key(|w| w.0)
    };
    let ways = candidates.into_iter().filter_map(|scratch| {
        let (to, from) = (way(&scratch, src, false)?, way(&scratch, dst, true)?);
        Some((to.0 + from.0, scratch, [to.1, from.1]))
    });
    let (_, scratch, by_matrices) =
        ways.min_by_key(|w| w.0).expect("without directions of its own a side always has a layout");
    (scratch, by_matrices)
}

/// Of an access's words those whose elements are not neighbours in the words that registers are packed into: an
/// instruction each.
fn torn_words(registers: &[u32], elem_bytes: usize) -> usize {
    let in_word = (4 / elem_bytes).max(1);
    let whole = |w: &[u32]| (w[0] as usize).is_multiple_of(in_word) && w.iter().zip(w[0]..).all(|(&r, at)| r == at);
    registers.chunks_exact(in_word).filter(|w| !whole(w)).count()
}

/// Of a load's words those that do not follow the one before in the order of registers, which is the one that stores and
/// products take several in: a move each. Elements of whole words are more often taken one by one.
fn moved_words(registers: &[u32], elem_bytes: usize) -> usize {
    let in_word = (4 / elem_bytes).max(1);
    if in_word == 1 {
        return 0;
    }
    let words: Vec<usize> = registers.iter().step_by(in_word).map(|&r| r as usize / in_word).collect();
    words.iter().enumerate().filter(|&(i, &w)| w != words[0] + i).count()
}

/// The scratch layout whose vectors are `vector`, for the wide side followed by `extra`; `None` if no choice of rows
/// serves both sides. `matrix`: what the narrow side's lanes run along at a time, if its accesses are to be matrices.
fn scratch_basis(
    vector: &[u32],
    extra: &[u32],
    wide: &LinearLayout,
    narrow: &LinearLayout,
    elem_bytes: usize,
    matrix: Option<&[u32]>,
) -> Option<SharedLayout> {
    let bits = wide.shape().numel().ilog2();
    let row_bits = (128 / elem_bytes).ilog2() as usize;
    let word_bits = (4 / elem_bytes).max(1).ilog2() as usize;
    // Beyond the vectors the space is extra + rest; the rest contains where the wide side's threads start.
    let starts = [wide, narrow].into_iter().flat_map(|l| [Level::Lane, Level::Warp, Level::Block].map(|v| l.bases(v)));
    let others = [wide, narrow].into_iter().map(|l| l.bases(Level::Register));
    let units: Vec<u32> = (0..bits).map(|i| 1 << i).collect();
    let order = starts.chain(others).flatten().chain(&units).copied();
    let (mut without_vector, mut onto_rest) = (Span::new(), Span::new());
    for &v in vector {
        without_vector.insert(v, 0);
        onto_rest.insert(v, 0);
    }
    for &u in extra {
        without_vector.insert(u, u);
        onto_rest.insert(u, 0);
    }
    let mut rest = Vec::new();
    for v in order {
        // A span answers with labels: labelled by themselves, vectors are answered with their projection.
        if onto_rest.insert(v, v) {
            without_vector.insert(v, v);
            rest.push(v);
        }
    }
    let project = |span: &Span, v: u32| span.solve(v).expect("spans everything");

    // Elements that share a word with the first do not conflict: directions for a word that vectors leave open.
    let open = word_bits.saturating_sub(vector.len() + extra.len());
    let word: Vec<u32> = rest.iter().copied().take(open).collect();
    let in_word: Vec<u32> = extra.iter().chain(&word).copied().take(word_bits.saturating_sub(vector.len())).collect();
    let phase = |l: &LinearLayout, vector_bits: usize| {
        let lanes = LANE_BITS.min(row_bits - vector_bits);
        l.bases(Level::Lane)[..lanes.min(l.bases(Level::Lane).len())].to_vec()
    };
    let mut wide_span = Span::new();
    for v in phase(wide, vector.len() + extra.len()).into_iter().chain(word.clone()) {
        wide_span.insert(project(&onto_rest, v), 0);
    }
    let mut narrow_all = Span::new();
    let of_narrow = matrix.map_or_else(|| [phase(narrow, vector.len()), in_word].concat(), <[u32]>::to_vec);
    for v in of_narrow {
        narrow_all.insert(project(&without_vector, v), 0);
    }
    let narrow_span = Span::of(&narrow_all.intersection(&Span::of(&rest)));

    let dim = rest.len().min(row_bits - vector.len() - extra.len());
    let rows = common_complement(wide_span, narrow_span, &rest, dim)?;
    let mut banks = Span::of(&[word.clone(), rows.clone()].concat());
    let bank: Vec<u32> = rest.iter().copied().filter(|&v| banks.insert(v, 0)).collect();
    SharedLayout::new(*wide.shape(), [vector, extra, &word, &bank, &rows].concat()).ok()
}

/// A basis of a common complement of `p` and `q` in the space of basis `space`, once both are extended to dimension
/// `dim`; `None` if one has more.
fn common_complement(mut p: Span, mut q: Span, space: &[u32], dim: usize) -> Option<Vec<u32>> {
    let dim = dim as u32;
    if p.dim() > dim || q.dim() > dim {
        return None;
    }
    // Towards each other first: what they share needs no sums.
    let (p0, q0) = (p.clone(), q.clone());
    for (span, other) in [(&mut p, q0), (&mut q, p0)] {
        for v in other.basis().chain(space.iter().copied()) {
            if span.dim() < dim {
                span.insert(v, 0);
            }
        }
    }
    let both = Span::of(&p.intersection(&q));
    let beyond = |span: &Span| {
        let mut seen = both.clone();
        span.basis().filter(|&v| seen.insert(v, 0)).collect::<Vec<_>>()
    };
    let mut complement: Vec<u32> = beyond(&p).into_iter().zip(beyond(&q)).map(|(a, b)| a ^ b).collect();
    let mut sum = p;
    for v in q.basis() {
        sum.insert(v, 0);
    }
    complement.extend(space.iter().copied().filter(|&v| sum.insert(v, 0)));
    Some(complement)
}
