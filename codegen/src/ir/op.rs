//! The operations. The interpreter (`interp`) defines what each computes; this file says what each *is*:
//! operands, results, and the constraints that the verifier enforces.

use super::{MAX_RANK, RegionId, Type, ValueId};
use smallvec::SmallVec;

/// Elementwise functions of one operand; the result has the operand's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnaryOp {
    /// Floats and signed integers (wrapping).
    Neg,
    /// Floats and signed integers (wrapping).
    Abs,
    /// Bitwise complement; logical for `bool`.
    Not,
    // The rest is for f16, bf16, f32: computed in f32, rounded once to the element type.
    Exp,
    /// 2^x; results below 2^-126, the least normal f32, are 0.
    Exp2,
    Log,
    Log2,
    /// The logarithm to base 2 where an absolute error is enough: within 2^-22 for x in [0.5, 2], within 2^-22 of the
    /// value elsewhere. Below 2^-126, the least normal f32, x counts as 0.
    Log2Approx,
    Sqrt,
    Rsqrt,
    Sin,
    Cos,
    Tanh,
    /// 1 / (1 + e^-x), 0 and 1 in the limits.
    Sigmoid,
    /// x · sigmoid(x).
    Silu,
    /// ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|); never overflows.
    Softplus,
    Erf,
    Floor,
    Ceil,
    /// To nearest, ties to even.
    Round,
    Trunc,
    /// 1 / x.
    Recip,
}

/// Elementwise functions of two operands of one type; the result has that type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BinaryOp {
    /// Integers wrap.
    Add,
    Sub,
    Mul,
    /// Floats: IEEE. Integers: towards zero; by zero is an error (the compiled back ends give 0);
    /// `MIN / -1` wraps.
    Div,
    /// Sign of the dividend, as in Rust; by zero as for `Div`.
    Rem,
    /// If one operand is NaN, the other; of two zeros either.
    Min,
    Max,
    /// Integers and bool.
    And,
    Or,
    Xor,
    /// Integers; the amount is taken modulo the width.
    Shl,
    /// Arithmetic for signed types.
    Shr,
}

/// Comparisons; the result is a `bool` tile. Ordered, except that `Ne` is true on NaN (as in Rust).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CmpOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// How to combine along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Combine {
    Sum,
    Prod,
    Max,
    Min,
    And,
    Or,
    Xor,
    /// By the operation's region: 2n scalar arguments (n of the left, n of the right), n scalars yielded. Must be
    /// associative; it is applied in index order, grouped in any way. Pure: no memory operation, no control flow.
    Region,
}

/// Read-modify-write operations; integers and f32 (`Add`, `Exchange` also f16/bf16).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AtomicOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
}

/// The arithmetic of a `dot` of f32 operands. 16-bit operands ignore it: their products are exact in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Products and sums in f32.
    #[default]
    F32,
    /// Operands rounded to tf32 (10 mantissa bits) for the tensor cores.
    Tf32,
    /// Three tf32 products of split operands: nearly f32, on the tensor cores.
    Tf32x3,
}

/// A part of a program that runs at the same time as others: one region of a `roles`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Role {
    /// Warps that do it on a GPU; 0: the compiler decides.
    pub warps: u8,
    /// Registers that each of their threads may have; 0: the compiler decides.
    pub registers: u16,
}

/// A constant element, as bits of its dtype (floats by their own encoding, integers sign- or zero-extended).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bits(pub u64);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OpKind {
    // -- sources ---------------------------------------------------------------------------------------------------
    /// () → tile, every element `bits`.
    Const(Bits),
    /// () → i32 tile, each element its own index along `axis`.
    Iota {
        axis: u8,
    },
    /// () → i32: this program's index in the grid along `axis` (0..3).
    ProgramId {
        axis: u8,
    },
    /// () → i32: the extent of the grid along `axis`.
    NumPrograms {
        axis: u8,
    },

    // -- elementwise; operands of equal shape ----------------------------------------------------------------------
    Unary(UnaryOp),
    Binary(BinaryOp),
    Compare(CmpOp),
    /// (x: T, a: T, b: T) → T: x·a + b for f16, bf16, f32. The product is exact and the sum is rounded to f32, then to T:
    /// for f32 once in all, for the others as every operation on them is.
    Fma,
    /// (bool, T, T) → T.
    Select,
    /// T → U, values: float → float rounds to nearest even (overflow to infinity; e4m3 saturates to ±448);
    /// float → int truncates and saturates, NaN to 0; int → int wraps; → bool is `!= 0`; bool → 0 or 1.
    Cast,
    /// Same bits, same element size.
    Bitcast,

    // -- shape -----------------------------------------------------------------------------------------------------
    /// Extents of 1 repeated; a scalar to any shape. Otherwise equal rank.
    Broadcast,
    /// Row-major order kept, extents changed.
    Reshape,
    /// Result axis i is operand axis `perm[i]`.
    Transpose {
        perm: [u8; MAX_RANK],
    },
    /// The box of the result's shape that starts at `offsets`. Offsets are multiples of the result's extents.
    Slice {
        offsets: [u32; MAX_RANK],
    },
    /// Two tiles of equal shape, one after the other along `axis`.
    Join {
        axis: u8,
    },

    // -- along an axis ---------------------------------------------------------------------------------------------
    /// n tiles of one shape → n tiles without `axis`.
    Reduce {
        axis: u8,
        combine: Combine,
    },
    /// n tiles of one shape → n tiles of that shape: inclusive scan, from the far end if `reverse`.
    Scan {
        axis: u8,
        combine: Combine,
        reverse: bool,
    },

    // -- matrix ----------------------------------------------------------------------------------------------------
    /// (a: T<MxK>, b: T<KxN>, acc: A<MxN>) → A<MxN>: acc + a·b. T f16/bf16/f32/fp8 with A f32; T i8/u8 with A i32.
    /// Of tiles of rank 3 one product per index of the first axis: (T<BxMxK>, T<BxKxN>, A<BxMxN>) → A<BxMxN>.
    Dot(Precision),

    // -- memory ----------------------------------------------------------------------------------------------------
    // Coordinates are i32. An element outside the view is not touched: loads give `other`, stores do nothing.
    /// view → i32: the extent of dimension `dim`.
    Dim {
        dim: u8,
    },
    /// (view<T,r>, i32) → view<T,r-1>: dimension `dim` fixed at an index. An index outside is an error; the compiled
    /// back ends give a view with no elements.
    ViewSelect {
        dim: u8,
    },
    /// (view<T,r>, start i32, len i32) → view<T,r>: dimension `dim` narrowed to [start, start+len), clamped to the
    /// view's extent.
    ViewNarrow {
        dim: u8,
    },
    /// (view<T,r>, r coordinates i32, [other: T scalar]) → tile of rank r: the box that starts there. Default other: 0.
    Load {
        has_other: bool,
    },
    /// (view<T,r>, tile of rank r, r coordinates i32).
    Store,
    /// (view<T,r>, tile of rank r, r coordinates i32): each element is added to the one in its place, as an atomic `Add` of
    /// its own (relaxed, device scope).
    StoreAdd,
    /// (view<T,r>, r index tiles i32<S>, [mask: bool<S>, other: T<S>]) → T<S>. With a mask, `other` where it is false
    /// or the index is outside; without, outside is an error (compiled back ends: 0).
    Gather {
        masked: bool,
    },
    /// (view<T,r>, value T<S>, r index tiles i32<S>, [mask: bool<S>]). Two elements of one tile must not name one
    /// place. Outside is not touched.
    Scatter {
        masked: bool,
    },
    /// (view<T,r>, value T<S>, r index tiles i32<S>, [mask]) → T<S>: the values before (0 where masked). Relaxed,
    /// device scope.
    Atomic {
        op: AtomicOp,
        masked: bool,
    },
    /// (view<i32,r>, count i32, r coordinates i32): adds `count` to a semaphore once everything that this program has
    /// stored so far is visible to the device (release). Outside of the view nothing happens.
    Signal,
    /// (view<i32,r>, r coordinates i32): waits until a semaphore is above 0 and takes 1 from it; what the program
    /// does afterwards sees all that was stored before the signals (acquire). They must come from launches that were
    /// queued earlier: interpreter and CPU, which run one launch after the other, report an error instead of waiting.
    Wait,

    // -- programs that meet ----------------------------------------------------------------------------------------
    /// T<S> → T<S>: element by element, the tiles of all programs of the cluster combined in the order of their ranks,
    /// ((x₀ ∘ x₁) ∘ x₂) …, every step rounded to T; a named combination. The programs meet here: all come to the same
    /// operation equally often, and what one of them did to memory before lies before what the others do afterwards.
    /// Not in roles. In a cluster of one, the operand.
    ClusterReduce(Combine),
    /// (): all programs of the launch come here equally often; what any of them did to memory before lies before what
    /// the others do afterwards. Not in roles, and not in a kernel whose clusters exchange tiles.
    GridSync,

    // -- control ---------------------------------------------------------------------------------------------------
    /// (lo i32, hi i32, step i32, inits…) → carried…; one region (i i32, carried…) yielding carried…. Runs for
    /// i = lo, lo+step, … < hi; step > 0. `stages`: hint for software pipelining, 0 is "the compiler decides".
    For {
        stages: u8,
    },
    /// (inits…) → carried…; regions: condition (carried…) yielding one bool, body (carried…) yielding carried….
    While,
    /// (bool) → results…; two regions without arguments, each yielding the results.
    If,
    /// The end of every region.
    Yield,

    // -- roles -----------------------------------------------------------------------------------------------------
    /// () → channel: a queue in `slots` slots of messages, each of which is tiles of the types `message`. The n-th send
    /// waits for the release of message n - `slots`.
    Channel {
        slots: u8,
        message: SmallVec<[Type; 2]>,
    },
    /// (); one region without arguments and values for each role. They run at the same time; the operation ends when
    /// all have. It is the last of the body, after operations without effect.
    Roles(SmallVec<[Role; 2]>),
    /// (channel, tiles of its message): waits for a slot. One role sends.
    Send,
    /// (channel) → (slot, tiles of its message): waits for a message. One other role receives.
    Receive,
    /// (slot): the slot may be filled again. Exactly once, in the region that received it. The tiles remain values.
    Release,

    // -- diagnostics -----------------------------------------------------------------------------------------------
    /// (bool tile): all must hold. Interpreter and CPU: an error with the message; GPU: a trap.
    Assert {
        message: String,
    },
    /// (any tiles): interpreter and CPU print them; GPU prints scalars.
    Print {
        message: String,
    },
}

/// One operation of the arena.
#[derive(Clone, Debug)]
pub struct Op {
    pub kind: OpKind,
    pub operands: SmallVec<[ValueId; 4]>,
    pub results: SmallVec<[ValueId; 1]>,
    pub regions: SmallVec<[RegionId; 2]>,
    pub loc: super::Loc,
}

impl OpKind {
    /// Whether the operation does more than compute its results: it may not be removed, repeated or moved across
    /// another such operation. Loads are not effects but read memory: see [`OpKind::reads_memory`].
    pub fn has_effect(&self) -> bool {
        matches!(
            self,
            OpKind::Store
                | OpKind::StoreAdd
                | OpKind::Scatter { .. }
                | OpKind::Atomic { .. }
                | OpKind::Signal
                | OpKind::Wait
                | OpKind::ClusterReduce(_)
                | OpKind::GridSync
                | OpKind::Assert { .. }
                | OpKind::Print { .. }
                | OpKind::Yield
                | OpKind::Channel { .. }
                | OpKind::Send
                | OpKind::Receive
                | OpKind::Release
        )
    }

    pub fn reads_memory(&self) -> bool {
        matches!(self, OpKind::Load { .. } | OpKind::Gather { .. } | OpKind::Atomic { .. } | OpKind::StoreAdd)
    }

    /// Whether each element of the result is a function of the operands' elements at the same place.
    pub fn is_elementwise(&self) -> bool {
        matches!(
            self,
            OpKind::Unary(_)
                | OpKind::Binary(_)
                | OpKind::Compare(_)
                | OpKind::Fma
                | OpKind::Select
                | OpKind::Cast
                | OpKind::Bitcast
        )
    }

    /// Whether the operation's regions are part of the program, rather than a combination's.
    pub fn has_regions(&self) -> bool {
        matches!(self, OpKind::For { .. } | OpKind::While | OpKind::If | OpKind::Roles(_))
    }
}
