//! Tiles while a program runs: elements as bits of their dtype, stored by width.
//!
//! Four representations (one per element size) serve the fourteen dtypes: what only moves elements is written once per
//! width, and what computes reads the bits as its dtype, which costs nothing. Row-major. Bits are canonical (a bool is
//! 0 or 1; see `semantics`).

use crate::ir::{Bits, DType, Shape};
use std::fmt;

/// The elements of a tile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Data {
    W1(Vec<u8>),
    W2(Vec<u16>),
    W4(Vec<u32>),
    W8(Vec<u64>),
}

/// Evaluates the expression with `$v` bound to the vector of whichever width, for results independent of the width.
macro_rules! with_elements {
    ($data:expr, $v:ident => $e:expr) => {
        match $data {
            $crate::interp::tile::Data::W1($v) => $e,
            $crate::interp::tile::Data::W2($v) => $e,
            $crate::interp::tile::Data::W4($v) => $e,
            $crate::interp::tile::Data::W8($v) => $e,
        }
    };
}

/// As [`with_elements`], for an expression that is a vector of the same width; the result is a [`Data`].
macro_rules! map_elements {
    ($data:expr, $v:ident => $e:expr) => {
        match $data {
            $crate::interp::tile::Data::W1($v) => $crate::interp::tile::Data::W1($e),
            $crate::interp::tile::Data::W2($v) => $crate::interp::tile::Data::W2($e),
            $crate::interp::tile::Data::W4($v) => $crate::interp::tile::Data::W4($e),
            $crate::interp::tile::Data::W8($v) => $crate::interp::tile::Data::W8($e),
        }
    };
}

pub(super) use map_elements;

/// An element of one width, as it lies in memory (little-endian, as on every target).
pub(super) trait Word: Copy {
    const SIZE: usize;
    fn read(bytes: &[u8]) -> Self;
    fn write(self, bytes: &mut [u8]);
}

macro_rules! word {
    ($($t:ty),*) => {$(
        impl Word for $t {
            const SIZE: usize = size_of::<$t>();
            #[inline]
            fn read(bytes: &[u8]) -> Self {
                <$t>::from_le_bytes(bytes[..Self::SIZE].try_into().expect("SIZE bytes"))
            }
            #[inline]
            fn write(self, bytes: &mut [u8]) {
                bytes[..Self::SIZE].copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
word!(u8, u16, u32, u64);

impl Data {
    /// `n` elements of `bits`.
    pub(super) fn splat(dtype: DType, n: usize, bits: Bits) -> Data {
        match dtype.size() {
            _ if dtype == DType::Bool => Data::W1(vec![(bits.0 != 0) as u8; n]),
            1 => Data::W1(vec![bits.0 as u8; n]),
            2 => Data::W2(vec![bits.0 as u16; n]),
            4 => Data::W4(vec![bits.0 as u32; n]),
            _ => Data::W8(vec![bits.0; n]),
        }
    }

    /// `n` elements, element i being `f(i)`; the first error ends it.
    pub(super) fn try_generate<E>(
        dtype: DType,
        n: usize,
        mut f: impl FnMut(usize) -> Result<Bits, E>,
    ) -> Result<Data, E> {
        Ok(match dtype.size() {
            1 => Data::W1((0..n).map(|i| f(i).map(|b| b.0 as u8)).collect::<Result<_, E>>()?),
            2 => Data::W2((0..n).map(|i| f(i).map(|b| b.0 as u16)).collect::<Result<_, E>>()?),
            4 => Data::W4((0..n).map(|i| f(i).map(|b| b.0 as u32)).collect::<Result<_, E>>()?),
            _ => Data::W8((0..n).map(|i| f(i).map(|b| b.0)).collect::<Result<_, E>>()?),
        })
    }

    pub(super) fn generate(dtype: DType, n: usize, mut f: impl FnMut(usize) -> Bits) -> Data {
        let result: Result<Data, std::convert::Infallible> = Data::try_generate(dtype, n, |i| Ok(f(i)));
        match result {
            Ok(data) => data,
            Err(never) => match never {},
        }
    }

    pub(super) fn len(&self) -> usize {
        with_elements!(self, v => v.len())
    }

    #[inline]
    #[allow(clippy::unnecessary_cast, reason = "it is one of four widths that is u64 already")]
    pub(super) fn get(&self, i: usize) -> Bits {
        with_elements!(self, v => Bits(v[i] as u64))
    }

    /// The elements at these positions, in this order.
    pub(super) fn permuted(&self, positions: impl Iterator<Item = usize>) -> Data {
        map_elements!(self, v => positions.map(|i| v[i]).collect())
    }

    pub(super) fn i32_at(&self, i: usize) -> i32 {
        self.get(i).0 as u32 as i32
    }

    pub(super) fn bool_at(&self, i: usize) -> bool {
        self.get(i).0 != 0
    }
}

/// The row-major index of element `i` of a tile.
pub(super) fn unflatten(shape: Shape, mut i: usize) -> Vec<i64> {
    let mut index = vec![0; shape.rank()];
    for (slot, &d) in index.iter_mut().zip(shape.dims()).rev() {
        *slot = (i % d as usize) as i64;
        i /= d as usize;
    }
    index
}

/// A tile as an observer sees it (a trace, a print).
#[derive(Clone, PartialEq, Eq)]
pub struct Tile {
    dtype: DType,
    shape: Shape,
    data: std::rc::Rc<Data>,
}

impl Tile {
    pub(super) fn new(dtype: DType, shape: Shape, data: std::rc::Rc<Data>) -> Tile {
        Tile { dtype, shape, data }
    }

    /// For a compiled kernel's prints, which thereby read like the interpreter's.
    pub(crate) fn from_bits(dtype: DType, shape: Shape, bits: impl Fn(usize) -> Bits) -> Tile {
        Tile { dtype, shape, data: std::rc::Rc::new(Data::generate(dtype, shape.numel(), bits)) }
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Element `i` in row-major order.
    ///
    /// # Panics
    /// If there is no such element.
    pub fn bits(&self, i: usize) -> Bits {
        self.data.get(i)
    }

    /// All elements by value, in row-major order (64-bit integers beyond 2^53 are rounded).
    pub fn values(&self) -> Vec<f64> {
        (0..self.data.len()).map(|i| self.bits(i).to_f64(self.dtype)).collect()
    }

    fn element(&self, f: &mut fmt::Formatter<'_>, i: usize) -> fmt::Result {
        let bits = self.bits(i);
        match self.dtype {
            DType::Bool => write!(f, "{}", bits.0 != 0),
            DType::U64 => write!(f, "{}", bits.0),
            d if d.is_float() => write!(f, "{:?}", bits.to_f64(d) as f32),
            d => write!(f, "{}", bits.to_i64(d)),
        }
    }

    fn nested(&self, f: &mut fmt::Formatter<'_>, axis: usize, start: usize, span: usize) -> fmt::Result {
        if axis == self.shape.rank() {
            return self.element(f, start);
        }
        let extent = self.shape.dim(axis);
        let inner = span / extent;
        f.write_str("[")?;
        for i in 0..extent {
            // Of a long axis the ends say enough.
            if extent > 16 && i == 8 {
                f.write_str(", ...")?;
            } else if extent <= 16 || !(8..extent - 4).contains(&i) {
                f.write_str(if i > 0 { ", " } else { "" })?;
                self.nested(f, axis + 1, start + i * inner, inner)?;
            }
        }
        f.write_str("]")
    }
}

impl fmt::Display for Tile {
    /// `[[1.0, 2.0], [3.0, 4.0]]`; long axes abbreviated.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.nested(f, 0, 0, self.shape.numel())
    }
}

impl fmt::Debug for Tile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}<{}> {self}", self.dtype, self.shape)
    }
}
