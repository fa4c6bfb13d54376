//! From one layout of a tile to another, by the cheapest of: nothing, other register numbers, shuffles within the
//! warp, transpositions of small matrices there, shared memory.
//!
//! The planner looks for a linear map from the destination's places to the source's, with the same element at both.
//! Where the source holds copies there are many such maps; it takes those that stay in the thread, else in the warp.
//! If every destination place finds its element in its own thread, registers are renamed; in its own warp, see
//! `shuffle`; else, or if that is cheaper, see `scratch`.
//!
//! Plans are data: tables of registers and affine functions of the thread index. A lowering needs no algebra, and the
//! tests execute plans on arrays.

use super::f2::apply;
use super::scratch::ScratchPlan;
use super::shuffle::ShufflePlan;
use super::{LayoutError, Level, LinearLayout, Span};

/// How to convert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conversion {
    /// Every register already holds its element.
    Identity,
    /// Register r of the destination is register `.0[r]` of the source, in the same thread.
    Registers(Vec<u32>),
    /// Through the lanes of each warp.
    Shuffle(ShufflePlan),
    /// By transposing 8×8 matrices of 16-bit elements, whose rows' neighbours differ in bit `pair` of the register's
    /// number ([`LinearLayout::transposed_within_warps`]), and then further.
    Transpose { pair: usize, then: Box<Conversion> },
    /// Through shared memory.
    Shared(ScratchPlan),
}

/// An affine function over F2 of the thread: the lane's bits, then the warp's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affine {
    pub constant: u32,
    pub lane: Vec<u32>,
    pub warp: Vec<u32>,
}

impl Affine {
    pub fn apply(&self, lane: u32, warp: u32) -> u32 {
        self.constant ^ apply(&self.lane, lane) ^ apply(&self.warp, warp)
    }

    /// Whether the value is the same in all threads.
    pub fn is_constant(&self) -> bool {
        self.lane.iter().chain(&self.warp).all(|&b| b == 0)
    }

    /// Whether this is the lane's own index.
    pub fn is_lane(&self) -> bool {
        self.constant == 0
            && self.lane.iter().enumerate().all(|(i, &b)| b == 1 << i)
            && self.warp.iter().all(|&b| b == 0)
    }

    /// How many values it takes.
    pub fn values(&self) -> usize {
        let mut s = Span::new();
        for &b in self.lane.iter().chain(&self.warp) {
            s.insert(b, 0);
        }
        1 << s.dim()
    }
}

/// Where the elements of the destination's places are found within the source's own warp: for each destination bit
/// what it contributes to the source's register and lane. The warp is the destination's.
pub(super) struct Local {
    /// (register, lane) in the source, for the destination's register bits.
    pub register: Vec<(u32, u32)>,
    pub lane: Vec<(u32, u32)>,
    pub warp: Vec<(u32, u32)>,
}

impl Local {
    /// `None` if some element is not in the warp that needs it.
    pub(super) fn find(src: &LinearLayout, dst: &LinearLayout) -> Option<Local> {
        let registers = src.bases(Level::Register);
        let lane_shift = registers.len();
        let own_thread = Span::of(registers);
        let mut own_warp = own_thread.clone();
        for (i, &b) in src.bases(Level::Lane).iter().enumerate() {
            own_warp.insert(b, 1 << (lane_shift + i));
        }
        let split = |label: u32| (label & ((1 << lane_shift) - 1), label >> lane_shift);
        let look = |element: u32| own_thread.solve(element).or_else(|| own_warp.solve(element)).map(split);

        let register = dst.bases(Level::Register).iter().map(|&b| look(b)).collect::<Option<_>>()?;
        let lane = (dst.bases(Level::Lane).iter().zip(src.bases(Level::Lane)).enumerate())
            .map(|(i, (&d, &s))| match own_thread.solve(d ^ s) {
                Some(r) => Some((r, 1 << i)),
                None => look(d),
            })
            .collect::<Option<_>>()?;
        let upper = |l| dst.bases(l).iter().zip(src.bases(l)).map(|(&d, &s)| look(d ^ s)).collect::<Option<Vec<_>>>();
        let (warp, block) = (upper(Level::Warp)?, upper(Level::Block)?);
        // Plans do not depend on the block.
        block.iter().all(|&b| b == (0, 0)).then_some(Local { register, lane, warp })
    }

    /// The source's register for each of the destination's, if every element is in the thread that needs it and in
    /// the same register of every thread.
    fn renaming(&self) -> Option<Vec<u32>> {
        let stays = self.register.iter().all(|r| r.1 == 0)
            && self.lane.iter().enumerate().all(|(i, &l)| l == (0, 1 << i))
            && self.warp.iter().all(|&w| w == (0, 0));
        let bases: Vec<u32> = self.register.iter().map(|r| r.0).collect();
        stays.then(|| (0..1 << bases.len()).map(|r| apply(&bases, r)).collect())
    }
}

/// The most scratch memory that a conversion takes if it can do with less in several passes, in bytes.
pub const SCRATCH_BYTES: usize = 32 << 10;

impl Conversion {
    /// Plans the conversion of a tile of `elem_bytes` (1, 2, 4, 8) from `src` to `dst`.
    ///
    /// # Errors
    /// If the layouts differ in shape or in the number of lanes, warps or blocks; if data would have to move between
    /// the blocks of a cluster.
    pub fn plan(src: &LinearLayout, dst: &LinearLayout, elem_bytes: usize) -> Result<Conversion, LayoutError> {
        Conversion::plan_within(src, dst, elem_bytes, SCRATCH_BYTES, false)
    }

    /// As [`Conversion::plan`], with scratch memory of at most `scratch_bytes` where several passes allow that, and with
    /// stores `by_matrices`, which takes Hopper.
    ///
    /// # Errors
    /// As [`Conversion::plan`].
    pub fn plan_within(
        src: &LinearLayout,
        dst: &LinearLayout,
        elem_bytes: usize,
        scratch_bytes: usize,
        by_matrices: bool,
    ) -> Result<Conversion, LayoutError> {
        let direct = Conversion::plan_directly(src, dst, elem_bytes, scratch_bytes, by_matrices)?;
        if elem_bytes != 2 || matches!(direct, Conversion::Identity | Conversion::Registers(_)) {
            return Ok(direct);
        }
        let transposed = (0..src.bases(Level::Register).len()).find_map(|pair| {
            let between = src.transposed_within_warps(pair)?;
            let then = Box::new(Conversion::plan_directly(&between, dst, elem_bytes, scratch_bytes, by_matrices).ok()?);
            Some(Conversion::Transpose { pair, then })
        });
        let cost = |c: &Conversion| c.cost(src.registers(), elem_bytes);
        Ok(transposed.filter(|t| cost(t) < cost(&direct)).unwrap_or(direct))
    }

    /// Without transpositions.
    fn plan_directly(
        src: &LinearLayout,
        dst: &LinearLayout,
        elem_bytes: usize,
        scratch_bytes: usize,
        by_matrices: bool,
    ) -> Result<Conversion, LayoutError> {
        let threads = |l: &LinearLayout| [Level::Lane, Level::Warp, Level::Block].map(|v| l.size(v));
        if src.shape() != dst.shape() || threads(src) != threads(dst) {
            return Err(LayoutError::Mismatch(format!("{src} to {dst}")));
        }
        if ![1, 2, 4, 8].contains(&elem_bytes) {
            return Err(LayoutError::Unsupported {
                what: "a conversion",
                need: "elements of 1, 2, 4 or 8 bytes".into(),
                found: elem_bytes.to_string(),
            });
        }
        let local = Local::find(src, dst);
        if let Some(registers) = local.as_ref().and_then(Local::renaming) {
            let same = src.registers() == dst.registers() && registers.iter().enumerate().all(|(i, &r)| i as u32 == r);
            return Ok(if same { Conversion::Identity } else { Conversion::Registers(registers) });
        }
        let shuffle = local.as_ref().and_then(|_| ShufflePlan::new(src, dst, elem_bytes));
        if src.bases(Level::Block) != dst.bases(Level::Block) {
            return shuffle.map(Conversion::Shuffle).ok_or_else(|| LayoutError::Unsupported {
                what: "a conversion",
                need: "the same elements in each block of the cluster".into(),
                found: format!("{src} to {dst}"),
            });
        }
        let shared = ScratchPlan::new(src, dst, elem_bytes, scratch_bytes, local.is_some(), by_matrices);
        Ok(match shuffle {
            Some(plan) if plan.cost(elem_bytes) <= shared.cost(elem_bytes) => Conversion::Shuffle(plan),
            _ => Conversion::Shared(shared),
        })
    }

    /// Instructions per warp, roughly, from so many registers.
    fn cost(&self, registers: usize, elem_bytes: usize) -> usize {
        match self {
            Conversion::Identity | Conversion::Registers(_) => 0,
            Conversion::Shuffle(plan) => plan.cost(elem_bytes),
            Conversion::Transpose { then, .. } => registers / 2 + then.cost(registers, elem_bytes),
            Conversion::Shared(plan) => plan.cost(elem_bytes),
        }
    }

    /// The scratch memory needed, in bytes.
    pub fn scratch_bytes(&self) -> usize {
        match self {
            Conversion::Shared(plan) => plan.bytes,
            Conversion::Transpose { then, .. } => then.scratch_bytes(),
            _ => 0,
        }
    }
}
