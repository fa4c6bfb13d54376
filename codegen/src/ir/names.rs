//! The vocabulary of the operations' parameters: each function's name in the text form, the list of all, and the
//! dtypes it accepts. Printer, parser, verifier and the generator of random kernels share these tables.

use super::{AtomicOp, BinaryOp, CmpOp, Combine, DType, Lint, OpKind, Precision, UnaryOp};

macro_rules! names {
    ($ty:ident { $($variant:ident = $name:literal),* $(,)? }) => {
        impl $ty {
            pub const ALL: &'static [$ty] = &[$($ty::$variant),*];

            /// The name in the text form.
            pub const fn name(self) -> &'static str {
                match self { $($ty::$variant => $name),* }
            }

            pub fn from_name(name: &str) -> Option<$ty> {
                match name { $($name => Some($ty::$variant),)* _ => None }
            }
        }
    };
}

names!(UnaryOp {
    Neg = "neg", Abs = "abs", Not = "not", Exp = "exp", Exp2 = "exp2", Log = "log", Log2 = "log2",
    Log2Approx = "log2_approx", Sqrt = "sqrt", Rsqrt = "rsqrt", Sin = "sin", Cos = "cos", Tanh = "tanh",
    Sigmoid = "sigmoid", Silu = "silu", Softplus = "softplus", Erf = "erf", Floor = "floor", Ceil = "ceil",
    Round = "round", Trunc = "trunc", Recip = "recip",
});
names!(BinaryOp {
    Add = "add", Sub = "sub", Mul = "mul", Div = "div", Rem = "rem", Min = "min", Max = "max", And = "and", Or = "or",
    Xor = "xor", Shl = "shl", Shr = "shr",
});
names!(CmpOp { Eq = "eq", Ne = "ne", Lt = "lt", Le = "le", Gt = "gt", Ge = "ge" });
names!(Combine {
    Sum = "sum", Prod = "prod", Max = "max", Min = "min", And = "and", Or = "or", Xor = "xor", Region = "by",
});
names!(AtomicOp {
    Add = "add", Min = "min", Max = "max", And = "and", Or = "or", Xor = "xor", Exchange = "exchange",
});
names!(Lint {
    Spill = "spill", WgmmaSerialized = "wgmma_serialized", SetmaxnregIgnored = "setmaxnreg_ignored",
    BankConflict = "bank_conflict", Uncoalesced = "uncoalesced", Fallback = "fallback", Assembler = "assembler",
});
names!(Precision { F32 = "f32", Tf32 = "tf32", Tf32x3 = "tf32x3" });

/// f16, bf16, f32: the floats that take part in arithmetic.
pub(super) fn computes(d: DType) -> bool {
    d.is_float() && !d.is_fp8()
}

impl UnaryOp {
    pub fn accepts(self, d: DType) -> bool {
        match self {
            UnaryOp::Neg | UnaryOp::Abs => computes(d) || (d.is_int() && d.is_signed()),
            UnaryOp::Not => !d.is_float(),
            _ => computes(d),
        }
    }
}

impl BinaryOp {
    pub fn accepts(self, d: DType) -> bool {
        match self {
            BinaryOp::And | BinaryOp::Or | BinaryOp::Xor => !d.is_float(),
            BinaryOp::Shl | BinaryOp::Shr => d.is_int(),
            _ => computes(d) || d.is_int(),
        }
    }
}

impl CmpOp {
    pub fn accepts(self, d: DType) -> bool {
        !d.is_fp8()
    }
}

impl Combine {
    /// `Region` accepts every dtype: its operations have their own demands.
    pub fn accepts(self, d: DType) -> bool {
        match self {
            Combine::And | Combine::Or | Combine::Xor => !d.is_float(),
            Combine::Region => true,
            _ => computes(d) || d.is_int(),
        }
    }
}

impl AtomicOp {
    pub fn accepts(self, d: DType) -> bool {
        match self {
            AtomicOp::Add | AtomicOp::Exchange => computes(d) || d.is_int(),
            AtomicOp::Min | AtomicOp::Max => d == DType::F32 || d.is_int(),
            AtomicOp::And | AtomicOp::Or | AtomicOp::Xor => d.is_int(),
        }
    }
}

impl OpKind {
    /// The word that names the operation in the text form.
    pub const fn mnemonic(&self) -> &'static str {
        match self {
            OpKind::Const(_) => "const",
            OpKind::Iota { .. } => "iota",
            OpKind::ProgramId { .. } => "program_id",
            OpKind::NumPrograms { .. } => "num_programs",
            OpKind::Unary(op) => op.name(),
            OpKind::Binary(op) => op.name(),
            OpKind::Compare(op) => op.name(),
            OpKind::Fma => "fma",
            OpKind::Select => "select",
            OpKind::Cast => "cast",
            OpKind::Bitcast => "bitcast",
            OpKind::Broadcast => "broadcast",
            OpKind::Reshape => "reshape",
            OpKind::Transpose { .. } => "transpose",
            OpKind::Slice { .. } => "slice",
            OpKind::Join { .. } => "join",
            OpKind::Reduce { .. } => "reduce",
            OpKind::Scan { .. } => "scan",
            OpKind::Dot(_) => "dot",
            OpKind::Dim { .. } => "dim",
            OpKind::ViewSelect { .. } => "view_select",
            OpKind::ViewNarrow { .. } => "view_narrow",
            OpKind::Load { .. } => "load",
            OpKind::Store => "store",
            OpKind::StoreAdd => "store_add",
            OpKind::Gather { .. } => "gather",
            OpKind::Scatter { .. } => "scatter",
            OpKind::Atomic { .. } => "atomic",
            OpKind::Signal => "signal",
            OpKind::Wait => "wait",
            OpKind::ClusterReduce(_) => "cluster_reduce",
            OpKind::GridSync => "grid_sync",
            OpKind::For { .. } => "for",
            OpKind::While => "while",
            OpKind::If => "if",
            OpKind::Yield => "yield",
            OpKind::Channel { .. } => "channel",
            OpKind::Roles(_) => "roles",
            OpKind::Send => "send",
            OpKind::Receive => "receive",
            OpKind::Release => "release",
            OpKind::Assert { .. } => "assert",
            OpKind::Print { .. } => "print",
        }
    }
}
