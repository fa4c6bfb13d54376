//! Tile IR: an SSA arena with structured regions.
//!
//! A [`Kernel`] owns its operations, values and regions; handles are `Copy` indices. Control flow is structured
//! (`for`, `while`, `if` hold regions), so dominance is nesting order: a value is visible after its definition in the
//! same region and in every region nested below. The text form (`text`) prints and parses back; `verify` states the
//! rules.
//!
//! Absent on purpose: layouts, threads, shared memory (all of GPU IR; `roles` and channels say what runs beside what,
//! not where), pointers (memory is reached through views
//! only), and blocks with arbitrary jumps.

mod abi;
mod builder;
mod finding;
mod names;
mod op;
mod parse;
mod protocol;
mod scalar;
mod text;
mod types;
mod verify;

pub use abi::{Fact, Slot, SlotKind};
pub use builder::Builder;
pub use finding::{Denied, Finding, Lint, Lints};
pub use op::{AtomicOp, BinaryOp, Bits, CmpOp, Combine, Op, OpKind, Precision, Role, UnaryOp};
pub use parse::{ParseError, parse};
pub(crate) use protocol::{Expressions, exchanges};
pub use scalar::{decode_f8, encode_f8};
pub use text::constant_text;
pub use types::{DType, MAX_RANK, Shape, Type};
pub(crate) use verify::verify_form;
pub use verify::{MAX_ELEMENTS, MAX_EXCHANGED, VerifyError, verify};

use std::fmt;

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u32);
        impl $name {
            pub fn index(self) -> usize { self.0 as usize }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "%{}", self.0) }
        }
    };
}

handle!(
    /// A value: a parameter, a region's argument or a result.
    ValueId
);
handle!(
    /// An operation.
    OpId
);
handle!(
    /// A region.
    RegionId
);

/// Where in the author's source an operation comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Loc {
    pub file: &'static str,
    pub line: u32,
    pub column: u32,
}

impl Loc {
    #[track_caller]
    pub fn caller() -> Loc {
        let l = std::panic::Location::caller();
        Loc { file: l.file(), line: l.line(), column: l.column() }
    }
}

impl fmt::Display for Loc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.file.is_empty() {
            f.write_str("unknown")
        } else {
            write!(f, "{}:{}:{}", self.file, self.line, self.column)
        }
    }
}

impl fmt::Debug for Loc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What a kernel may do with a view parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    Read,
    Write,
}

/// A parameter: a scalar (tile of rank 0) or a view.
#[derive(Clone, Debug)]
pub struct Param {
    /// The author's name; a field of a struct argument is `arg.field`.
    pub name: String,
    pub value: ValueId,
    /// `Read` for scalars.
    pub access: Access,
    /// For an output partitioned by program id: the block's shape, of the view's rank.
    pub block: Option<Shape>,
    pub reuse: Reuse,
    /// Whether the launch just before this one does not write the memory: loads need not wait for that launch's end. Where
    /// it does write it, the launcher lets this one begin only then.
    pub settled: bool,
}

/// How often what a view shows is of use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reuse {
    /// Nobody said.
    #[default]
    Unknown,
    /// Once: a hint that caches may give it up first, whether read or written.
    EvictFirst,
    /// Every byte is loaded once at most, and what was loaded is not defined afterwards: caches need not write it back.
    Discard,
}

/// What the author asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Options {
    /// Warps per program; 0: the compiler decides.
    pub warps: u8,
    /// Least number of programs that one multiprocessor must be able to hold; 0: no demand.
    pub min_programs_per_sm: u8,
    /// How many neighbours along axis 0 of the grid run at the same time and may share what they load, or exchange
    /// tiles (`cluster_reduce`); 0: each is alone. A power of two, at most 8, that divides the grid's extent.
    pub cluster: u8,
    /// Findings that are errors.
    pub deny: Lints,
}

/// Arguments and operations; the last operation is `Yield`.
#[derive(Clone, Debug, Default)]
pub struct Region {
    pub args: Vec<ValueId>,
    pub ops: Vec<OpId>,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Def {
    Param(u32),
    Arg(RegionId, u32),
    Result(OpId, u32),
}

#[derive(Clone, Debug)]
pub struct Value {
    pub ty: Type,
    pub def: Def,
}

/// Which programs meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// Those of a cluster of so many.
    Cluster(u32),
    /// All of the launch.
    Grid,
}

impl Meeting {
    /// How many programs that is, in a launch of `all`.
    pub fn programs(self, all: u32) -> u32 {
        match self {
            Meeting::Cluster(programs) => programs,
            Meeting::Grid => all,
        }
    }
}

/// One kernel in tile IR.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub name: String,
    pub params: Vec<Param>,
    pub options: Options,
    /// What is known of each launch slot (see [`Kernel::slots`]); `Unknown` beyond its end.
    pub facts: Vec<Fact>,
    pub body: RegionId,
    pub loc: Loc,
    pub ops: Vec<Op>,
    pub values: Vec<Value>,
    pub regions: Vec<Region>,
}

impl Kernel {
    /// An empty kernel; its body has no operations yet, not even `Yield`.
    pub fn new(name: impl Into<String>, loc: Loc) -> Kernel {
        Kernel {
            name: name.into(),
            params: vec![],
            options: Options::default(),
            facts: vec![],
            body: RegionId(0),
            loc,
            ops: vec![],
            values: vec![],
            regions: vec![Region::default()],
        }
    }

    pub fn op(&self, op: OpId) -> &Op {
        &self.ops[op.index()]
    }

    pub fn region(&self, region: RegionId) -> &Region {
        &self.regions[region.index()]
    }

    pub fn ty(&self, value: ValueId) -> Type {
        self.values[value.index()].ty
    }

    pub fn def(&self, value: ValueId) -> Def {
        self.values[value.index()].def
    }

    /// The operation that computes `value`, if one does.
    pub fn defining_op(&self, value: ValueId) -> Option<OpId> {
        match self.def(value) {
            Def::Result(op, _) => Some(op),
            _ => None,
        }
    }

    /// The number of the parameter that a view is a window on.
    pub fn view_param(&self, view: ValueId) -> Option<u32> {
        match self.def(view) {
            Def::Param(i) => Some(i),
            Def::Result(op, _) => match self.op(op) {
                Op { kind: OpKind::ViewSelect { .. } | OpKind::ViewNarrow { .. }, operands, .. } => {
                    self.view_param(operands[0])
                }
                _ => None,
            },
            Def::Arg(..) => None,
        }
    }

    /// `[B, M, K, N]` of a `dot`: how many products (1 of tiles of rank 2), and the extents of each.
    pub fn dot_extents(&self, dot: &Op) -> [usize; 4] {
        let (a, b) = (self.ty(dot.operands[0]).shape(), self.ty(dot.operands[1]).shape());
        let row = a.rank() - 2;
        [if row > 0 { a.dim(0) } else { 1 }, a.dim(row), a.dim(row + 1), b.dim(row + 1)]
    }

    /// How many slots a channel has, and the tiles of its messages.
    ///
    /// # Panics
    /// If the value is no channel.
    pub fn channel(&self, channel: ValueId) -> (u8, &[Type]) {
        match self.defining_op(channel).map(|op| &self.op(op).kind) {
            Some(OpKind::Channel { slots, message }) => (*slots, message),
            _ => panic!("{channel:?} is no channel"),
        }
    }

    /// The programs that run together because they meet, and the first operation by which they do; `None` if every
    /// program can run alone.
    pub fn meeting(&self) -> Option<(Meeting, OpId)> {
        fn first(k: &Kernel, region: RegionId) -> Option<(Meeting, OpId)> {
            let cluster = k.options.cluster;
            k.region(region).ops.iter().find_map(|&id| match k.op(id).kind {
                OpKind::ClusterReduce(_) if cluster > 1 => Some((Meeting::Cluster(cluster.into()), id)),
                OpKind::GridSync => Some((Meeting::Grid, id)),
                _ => k.op(id).regions.iter().find_map(|&r| first(k, r)),
            })
        }
        first(self, self.body)
    }

    /// The bits of `value`, if it is a constant.
    pub fn constant(&self, value: ValueId) -> Option<Bits> {
        match self.defining_op(value).map(|op| &self.op(op).kind) {
            Some(OpKind::Const(bits)) => Some(*bits),
            _ => None,
        }
    }

    /// How often a `for` runs, if its bounds are constants, its step above 0.
    pub fn trip_count(&self, op: &Op) -> Option<u64> {
        let [lo, hi, step] = [0, 1, 2].map(|i| self.constant(op.operands[i]).map(|bits| bits.to_i64(DType::I32)));
        let (lo, hi, step) = (lo?, hi?, step?);
        (step > 0).then(|| if lo < hi { ((hi - lo - 1) / step + 1) as u64 } else { 0 })
    }

    pub fn new_value(&mut self, ty: Type, def: Def) -> ValueId {
        self.values.push(Value { ty, def });
        ValueId(self.values.len() as u32 - 1)
    }

    pub fn new_region(&mut self, args: &[Type]) -> RegionId {
        let region = RegionId(self.regions.len() as u32);
        self.regions.push(Region::default());
        for (i, &ty) in args.iter().enumerate() {
            let v = self.new_value(ty, Def::Arg(region, i as u32));
            self.regions[region.index()].args.push(v);
        }
        region
    }

    /// Adds an operation to the arena, in no region yet, with fresh results of the given types.
    pub fn new_op(
        &mut self,
        kind: OpKind,
        operands: &[ValueId],
        results: &[Type],
        regions: &[RegionId],
        loc: Loc,
    ) -> OpId {
        let op = OpId(self.ops.len() as u32);
        let results =
            results.iter().enumerate().map(|(i, &ty)| self.new_value(ty, Def::Result(op, i as u32))).collect();
        self.ops.push(Op { kind, operands: operands.into(), results, regions: regions.into(), loc });
        op
    }

    pub fn add_param(&mut self, name: impl Into<String>, ty: Type, access: Access, block: Option<Shape>) -> ValueId {
        let value = self.new_value(ty, Def::Param(self.params.len() as u32));
        self.params.push(Param { name: name.into(), value, access, block, reuse: Reuse::Unknown, settled: false });
        value
    }
}
