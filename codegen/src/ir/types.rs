//! Element types, shapes and the types of values.

use std::fmt;

/// The largest rank of a tile or a view.
pub const MAX_RANK: usize = 4;

/// The type of one element.
///
/// The two `F8` types are storage only: they can be loaded, stored, cast, bit-cast and moved between shapes, and are
/// operands of `dot`, but take part in no other arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// One byte in memory, 0 or 1.
    Bool,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    F8E4M3,
    F8E5M2,
    F16,
    BF16,
    F32,
}

impl DType {
    pub const ALL: [DType; 14] = [
        DType::Bool,
        DType::I8,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::U8,
        DType::U16,
        DType::U32,
        DType::U64,
        DType::F8E4M3,
        DType::F8E5M2,
        DType::F16,
        DType::BF16,
        DType::F32,
    ];

    /// Size of one element in memory, in bytes.
    pub const fn size(self) -> usize {
        match self {
            DType::Bool | DType::I8 | DType::U8 | DType::F8E4M3 | DType::F8E5M2 => 1,
            DType::I16 | DType::U16 | DType::F16 | DType::BF16 => 2,
            DType::I32 | DType::U32 | DType::F32 => 4,
            DType::I64 | DType::U64 => 8,
        }
    }

    pub const fn is_float(self) -> bool {
        matches!(self, DType::F8E4M3 | DType::F8E5M2 | DType::F16 | DType::BF16 | DType::F32)
    }

    pub const fn is_fp8(self) -> bool {
        matches!(self, DType::F8E4M3 | DType::F8E5M2)
    }

    /// Integers, without `Bool`.
    pub const fn is_int(self) -> bool {
        !self.is_float() && !matches!(self, DType::Bool)
    }

    pub const fn is_signed(self) -> bool {
        matches!(self, DType::I8 | DType::I16 | DType::I32 | DType::I64) || self.is_float()
    }

    /// The name in the text form, which is Rust's name of the type.
    pub const fn name(self) -> &'static str {
        match self {
            DType::Bool => "bool",
            DType::I8 => "i8",
            DType::I16 => "i16",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::U8 => "u8",
            DType::U16 => "u16",
            DType::U32 => "u32",
            DType::U64 => "u64",
            DType::F8E4M3 => "f8e4m3",
            DType::F8E5M2 => "f8e5m2",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F32 => "f32",
        }
    }

    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The extents of a tile, outermost first; row-major when order matters. Rank 0 is a scalar.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    rank: u8,
    dims: [u32; MAX_RANK],
}

impl Shape {
    pub const SCALAR: Shape = Shape { rank: 0, dims: [1; MAX_RANK] };

    /// # Panics
    /// If there are more than [`MAX_RANK`] extents.
    pub const fn new(extents: &[u32]) -> Shape {
        assert!(extents.len() <= MAX_RANK, "a shape has at most 4 extents");
        let mut dims = [1; MAX_RANK];
        let mut i = 0;
        while i < extents.len() {
            dims[i] = extents[i];
            i += 1;
        }
        Shape { rank: extents.len() as u8, dims }
    }

    pub const fn rank(&self) -> usize {
        self.rank as usize
    }

    pub fn dims(&self) -> &[u32] {
        &self.dims[..self.rank as usize]
    }

    pub fn dim(&self, axis: usize) -> usize {
        self.dims()[axis] as usize
    }

    /// Number of elements; 1 for a scalar.
    pub fn numel(&self) -> usize {
        self.dims().iter().map(|&d| d as usize).product()
    }

    /// The shape without `axis`.
    pub fn without(&self, axis: usize) -> Shape {
        let mut v = self.dims().to_vec();
        v.remove(axis);
        Shape::new(&v)
    }

    /// The shape with the extent of `axis` replaced.
    pub fn with(&self, axis: usize, extent: u32) -> Shape {
        let mut s = *self;
        s.dims[axis] = extent;
        s
    }
}

impl fmt::Display for Shape {
    /// `64x128`; nothing for a scalar.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, d) in self.dims().iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { "x" } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

/// The type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// A tile of elements. A scalar is a tile of rank 0.
    Tile(DType, Shape),
    /// A window on device memory: a pointer, `rank` extents and `rank` strides (in elements), known at run time.
    View(DType, u8),
    /// A queue between two roles; `channel` says how many slots it has and what a message is.
    Channel,
    /// A received message's place in its channel, to be released.
    Slot,
}

impl Type {
    pub const fn scalar(dtype: DType) -> Type {
        Type::Tile(dtype, Shape::SCALAR)
    }

    /// The element type of a tile or view.
    ///
    /// # Panics
    /// On a channel or slot: the verifier has made sure that operands have elements.
    pub fn dtype(self) -> DType {
        match self {
            Type::Tile(d, _) | Type::View(d, _) => d,
            Type::Channel | Type::Slot => panic!("a {self} has no elements"),
        }
    }

    /// The shape of a tile.
    ///
    /// # Panics
    /// On anything else: the verifier has made sure that tile operands are tiles.
    pub fn shape(self) -> Shape {
        match self {
            Type::Tile(_, s) => s,
            _ => panic!("a {self} has no static shape"),
        }
    }

    pub fn is_scalar(self) -> bool {
        matches!(self, Type::Tile(_, s) if s.rank() == 0)
    }
}

impl fmt::Display for Type {
    /// `f32`, `f32<64x128>`, `view<f32,2>`, `channel`, `slot`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Tile(d, s) if s.rank() == 0 => write!(f, "{d}"),
            Type::Tile(d, s) => write!(f, "{d}<{s}>"),
            Type::View(d, r) => write!(f, "view<{d},{r}>"),
            Type::Channel => f.write_str("channel"),
            Type::Slot => f.write_str("slot"),
        }
    }
}
