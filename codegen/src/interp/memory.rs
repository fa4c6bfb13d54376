//! Views and the operations that touch memory.
//!
//! Invariant: the elements of a [`View`] lie in its buffer ([`View::new`] checks the whole extent, and selecting or
//! narrowing only shrinks it), so an element within the extents has an address within the buffer.

use super::buffer::{Access, Memory, Refusal, is_several};
use super::error::{ErrorKind, Fault};
use super::tile::{Data, Word, unflatten};
use crate::ir::{AtomicOp, Bits, DType, MAX_RANK, Shape};
use crate::semantics;
use std::collections::HashSet;

/// A window on a buffer. Offsets and strides count elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    /// Which of the launch's buffers.
    pub(super) buffer: usize,
    /// Which parameter it comes from.
    pub(super) param: usize,
    dtype: DType,
    rank: usize,
    offset: i64,
    dims: [i64; MAX_RANK],
    strides: [i64; MAX_RANK],
}

impl View {
    /// Checks that the view lies within `bytes` bytes; otherwise says what is wrong.
    pub(super) fn new(
        (buffer, param): (usize, usize),
        dtype: DType,
        offset: usize,
        shape: &[i64],
        strides: &[i64],
        bytes: usize,
    ) -> Result<View, String> {
        let rank = shape.len();
        if rank > MAX_RANK || strides.len() != rank {
            return Err(format!(
                "a view has one stride per extent, at most {MAX_RANK}; here {strides:?} for {shape:?}"
            ));
        }
        if let Some(d) = shape.iter().find(|d| !(0..=i32::MAX as i64).contains(*d)) {
            return Err(format!("extent {d} is not an i32 of at least 0"));
        }
        // i128 holds 4 · 2^31 · 2^63.
        let (mut first, mut last) = (offset as i128, offset as i128);
        for (&d, &s) in shape.iter().zip(strides) {
            let reach = (d as i128 - 1) * s as i128;
            first += reach.min(0);
            last += reach.max(0);
        }
        let elements = (bytes / dtype.size()) as i128;
        if shape.iter().all(|&d| d > 0) && (first < 0 || last >= elements) {
            return Err(format!(
                "a view of shape {shape:?} and strides {strides:?} at element {offset} reaches from element {first} to \
                 {last}, but the buffer has {elements} elements of {dtype}"
            ));
        }
        let mut view = View { buffer, param, dtype, rank, offset: offset as i64, dims: [1; 4], strides: [0; 4] };
        view.dims[..rank].copy_from_slice(shape);
        view.strides[..rank].copy_from_slice(strides);
        Ok(view)
    }

    pub(super) fn dim(&self, dim: usize) -> i64 {
        self.dims[dim]
    }

    pub(super) fn select(&self, dim: usize, index: i32) -> Result<View, ErrorKind> {
        let (index, extent) = (index as i64, self.dims[dim]);
        if !(0..extent).contains(&index) {
            return Err(ErrorKind::OutOfBounds { dim, index, extent });
        }
        let mut v = *self;
        v.move_start(dim, index);
        v.rank -= 1;
        for d in dim..v.rank {
            (v.dims[d], v.strides[d]) = (v.dims[d + 1], v.strides[d + 1]);
        }
        (v.dims[v.rank], v.strides[v.rank]) = (1, 0);
        Ok(v)
    }

    /// The part of dimension `dim` in [start, start + len), as far as the view has it.
    pub(super) fn narrow(&self, dim: usize, start: i32, len: i32) -> View {
        let extent = self.dims[dim];
        let low = (start as i64).clamp(0, extent);
        let high = (start as i64 + len as i64).clamp(low, extent);
        let mut v = *self;
        v.move_start(dim, low);
        v.dims[dim] = high - low;
        v
    }

    /// Moves the origin; wraps where the view is empty and its offset therefore means nothing.
    fn move_start(&mut self, dim: usize, index: i64) {
        self.offset = self.offset.wrapping_add(index.wrapping_mul(self.strides[dim]));
    }

    /// The offset of an element, in elements, if the view has it.
    fn locate(&self, index: &[i64]) -> Result<usize, ErrorKind> {
        let outside = |(dim, &i): (usize, &i64)| !(0..self.dims[dim]).contains(&i);
        if let Some(dim) = index.iter().enumerate().position(outside) {
            return Err(ErrorKind::OutOfBounds { dim, index: index[dim], extent: self.dims[dim] });
        }
        // Only now: the strides of a view without elements may be anything, and the sum would overflow.
        Ok(index.iter().zip(&self.strides).fold(self.offset, |at, (i, stride)| at + i * stride) as usize)
    }

    /// Whether different indices are certainly different places: sorted by stride, each dimension steps over all that
    /// the smaller ones reach.
    fn is_injective(&self) -> bool {
        let mut dims: Vec<(u128, u128)> =
            (0..self.rank).map(|d| (self.strides[d].unsigned_abs() as u128, self.dims[d] as u128)).collect();
        dims.retain(|&(_, extent)| extent > 1);
        dims.sort_unstable();
        let mut reach = 0;
        dims.into_iter().all(|(stride, extent)| {
            let apart = stride > reach;
            reach += stride * (extent - 1);
            apart
        })
    }
}

/// Who accesses memory, for blame and for the history of touches.
#[derive(Clone, Copy)]
pub(super) struct Accessor {
    /// The program's linear number.
    pub(super) program: u32,
    pub(super) grid: [u32; 3],
    /// The role, of so many (at least 1); none before the roles, which each of them does for itself.
    pub(super) role: Option<u32>,
    pub(super) roles: u32,
}

impl Accessor {
    fn blame(&self, refusal: Refusal) -> (usize, ErrorKind) {
        match refusal {
            Refusal::Unwritten { byte } => (byte, ErrorKind::Uninitialised),
            Refusal::Race { byte, other, how } => {
                let other = if is_several(other) { None } else { Some(other / self.roles) };
                let kind = match other {
                    None if self.roles > 1 => ErrorKind::RoleRace { how },
                    Some(program) if program == self.program => ErrorKind::RoleRace { how },
                    other => ErrorKind::Race { other: other.map(|p| program_index(p, self.grid)), how },
                };
                (byte, kind)
            }
        }
    }

    /// Touches `count` elements from `offset`; an error says which of them, and why.
    fn touch(
        &self,
        memory: &mut Memory,
        access: Access,
        size: usize,
        offset: usize,
        count: usize,
    ) -> Result<(), (i64, ErrorKind)> {
        // Before the roles any two of them, that is, not one alone.
        let first = self.role.unwrap_or(0);
        let last = self.role.unwrap_or(1).min(self.roles - 1);
        (first..=last).try_for_each(|role| {
            memory.touch(access, self.program * self.roles + role, offset * size, count * size).map_err(|refusal| {
                let (byte, kind) = self.blame(refusal);
                ((byte / size) as i64, kind)
            })
        })
    }
}

/// The program with this linear number; axis 0 counts fastest.
pub(super) fn program_index(linear: u32, [x, y, _]: [u32; 3]) -> [u32; 3] {
    [linear % x, linear / x % y, linear / x / y]
}

/// One innermost row of a box within a view.
struct Row {
    /// Coordinates in the view of the row's first element that the view has.
    index: Vec<i64>,
    /// Where that element stands in the tile.
    tile: usize,
    /// How many elements from there the view has.
    count: usize,
    /// Where that element lies in the buffer, and the distance of the following.
    offset: usize,
    stride: i64,
}

/// Calls `f` with every row (along the last axis) of the box of `shape` at `start`, as far as the view has it.
fn for_rows(
    view: &View,
    start: &[i64],
    shape: Shape,
    mut f: impl FnMut(Row) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let rank = shape.rank();
    let (outer, extent) = if rank == 0 { (0, 1) } else { (rank - 1, shape.dim(rank - 1)) };
    let (low, high) = match rank {
        0 => (0, 1),
        _ => ((-start[outer]).max(0), (view.dims[outer] - start[outer]).min(extent as i64)),
    };
    if low >= high {
        return Ok(());
    }
    let rows = Shape::new(&shape.dims()[..outer]);
    for r in 0..rows.numel() {
        let mut index = unflatten(rows, r);
        index.iter_mut().zip(start).for_each(|(i, s)| *i += s);
        if rank > 0 {
            index.push(start[outer] + low);
        }
        let Ok(offset) = view.locate(&index) else { continue };
        let stride = if rank > 0 { view.strides[outer] } else { 1 };
        f(Row { index, tile: r * extent + low as usize, count: (high - low) as usize, offset, stride })?;
    }
    Ok(())
}

/// A row's element `i` is at fault.
fn in_row(row: &Row, i: i64, kind: ErrorKind) -> Fault {
    let mut index = row.index.clone();
    if let Some(last) = index.last_mut() {
        *last += i;
    }
    Fault::from(kind).at(index)
}

fn load_words<W: Word>(
    memory: &mut Memory,
    who: Accessor,
    view: &View,
    start: &[i64],
    shape: Shape,
    other: W,
) -> Result<Vec<W>, Fault> {
    let mut out = vec![other; shape.numel()];
    for_rows(view, start, shape, |row| {
        let slots = &mut out[row.tile..row.tile + row.count];
        if row.stride == 1 {
            who.touch(memory, Access::Read, W::SIZE, row.offset, row.count)
                .map_err(|(i, kind)| in_row(&row, i, kind))?;
            let bytes = &memory.bytes[row.offset * W::SIZE..][..row.count * W::SIZE];
            for (slot, bytes) in slots.iter_mut().zip(bytes.chunks_exact(W::SIZE)) {
                *slot = W::read(bytes);
            }
            return Ok(());
        }
        for (i, slot) in slots.iter_mut().enumerate() {
            let offset = (row.offset as i64 + i as i64 * row.stride) as usize;
            who.touch(memory, Access::Read, W::SIZE, offset, 1).map_err(|(_, kind)| in_row(&row, i as i64, kind))?;
            *slot = W::read(&memory.bytes[offset * W::SIZE..]);
        }
        Ok(())
    })?;
    Ok(out)
}

fn store_words<W: Word>(
    memory: &mut Memory,
    who: Accessor,
    view: &View,
    start: &[i64],
    shape: Shape,
    values: &[W],
) -> Result<(), Fault> {
    let mut places = if view.is_injective() { None } else { Some(HashSet::new()) };
    for_rows(view, start, shape, |row| {
        let values = &values[row.tile..row.tile + row.count];
        if row.stride == 1 && places.is_none() {
            who.touch(memory, Access::Write, W::SIZE, row.offset, row.count)
                .map_err(|(i, kind)| in_row(&row, i, kind))?;
            let bytes = &mut memory.bytes[row.offset * W::SIZE..][..row.count * W::SIZE];
            for (value, bytes) in values.iter().zip(bytes.chunks_exact_mut(W::SIZE)) {
                value.write(bytes);
            }
            return Ok(());
        }
        for (i, value) in values.iter().enumerate() {
            let offset = (row.offset as i64 + i as i64 * row.stride) as usize;
            if !places.as_mut().is_none_or(|p| p.insert(offset)) {
                return Err(in_row(&row, i as i64, ErrorKind::DuplicateIndex));
            }
            who.touch(memory, Access::Write, W::SIZE, offset, 1).map_err(|(_, kind)| in_row(&row, i as i64, kind))?;
            value.write(&mut memory.bytes[offset * W::SIZE..]);
        }
        Ok(())
    })
}

/// Memory may hold any byte where a bool is read; a tile holds 0 or 1.
fn canonical(dtype: DType, mut data: Data) -> Data {
    if let (DType::Bool, Data::W1(v)) = (dtype, &mut data) {
        v.iter_mut().for_each(|x| *x = (*x != 0) as u8);
    }
    data
}

pub(super) fn load(
    memory: &mut Memory,
    who: Accessor,
    view: &View,
    start: &[i64],
    shape: Shape,
    other: Bits,
) -> Result<Data, Fault> {
    let data = match view.dtype.size() {
        1 => Data::W1(load_words(memory, who, view, start, shape, other.0 as u8)?),
        2 => Data::W2(load_words(memory, who, view, start, shape, other.0 as u16)?),
        4 => Data::W4(load_words(memory, who, view, start, shape, other.0 as u32)?),
        _ => Data::W8(load_words(memory, who, view, start, shape, other.0)?),
    };
    Ok(canonical(view.dtype, data))
}

/// What a box shows is as if it had never been written.
pub(super) fn discard(memory: &mut Memory, view: &View, start: &[i64], shape: Shape) {
    let size = view.dtype.size();
    let rows = for_rows(view, start, shape, |row| {
        for i in 0..row.count {
            memory.mark_unwritten((row.offset as i64 + i as i64 * row.stride) as usize * size, size);
        }
        Ok(())
    });
    rows.expect("nothing fails");
}

pub(super) fn store(
    memory: &mut Memory,
    who: Accessor,
    view: &View,
    start: &[i64],
    shape: Shape,
    value: &Data,
) -> Result<(), Fault> {
    match value {
        Data::W1(v) => store_words(memory, who, view, start, shape, v),
        Data::W2(v) => store_words(memory, who, view, start, shape, v),
        Data::W4(v) => store_words(memory, who, view, start, shape, v),
        Data::W8(v) => store_words(memory, who, view, start, shape, v),
    }
}

/// An atomic addition for each element.
pub(super) fn store_add(
    memory: &mut Memory,
    who: Accessor,
    view: &View,
    start: &[i64],
    shape: Shape,
    value: &Data,
) -> Result<(), Fault> {
    for_rows(view, start, shape, |row| {
        for i in 0..row.count {
            let offset = (row.offset as i64 + i as i64 * row.stride) as usize;
            atomic_element(memory, who, AtomicOp::Add, view.dtype, offset, value.get(row.tile + i))
                .map_err(|kind| in_row(&row, i as i64, kind))?;
        }
        Ok(())
    })
}

/// Combines one element with a value; what it was before.
fn atomic_element(
    memory: &mut Memory,
    who: Accessor,
    op: AtomicOp,
    dtype: DType,
    offset: usize,
    value: Bits,
) -> Result<Bits, ErrorKind> {
    who.touch(memory, Access::Atomic, dtype.size(), offset, 1).map_err(|(_, kind)| kind)?;
    let old = read_element(memory, dtype, offset);
    write_element(memory, dtype, offset, semantics::atomic(op, dtype, old, value));
    Ok(old)
}

fn read_element(memory: &Memory, dtype: DType, offset: usize) -> Bits {
    let size = dtype.size();
    let mut raw = [0; 8];
    raw[..size].copy_from_slice(&memory.bytes[offset * size..][..size]);
    let bits = u64::from_le_bytes(raw);
    Bits(if dtype == DType::Bool { (bits != 0) as u64 } else { bits })
}

fn write_element(memory: &mut Memory, dtype: DType, offset: usize, bits: Bits) {
    let size = dtype.size();
    memory.bytes[offset * size..][..size].copy_from_slice(&bits.0.to_le_bytes()[..size]);
}

/// Index tiles, one per dimension.
pub(super) struct Indices<'a>(pub(super) Vec<&'a Data>);

impl Indices<'_> {
    fn get(&self, i: usize) -> Vec<i64> {
        self.0.iter().map(|d| d.i32_at(i) as i64).collect()
    }
}

/// `masked`: the mask and the values where it is false; with it, an element outside has that value too.
pub(super) fn gather(
    memory: &mut Memory,
    who: Accessor,
    view: &View,
    indices: &Indices<'_>,
    numel: usize,
    masked: Option<(&Data, &Data)>,
) -> Result<Data, Fault> {
    let dtype = view.dtype;
    Data::try_generate(dtype, numel, |i| {
        if let Some((mask, other)) = masked
            && !mask.bool_at(i)
        {
            return Ok(other.get(i));
        }
        let index = indices.get(i);
        let offset = match (view.locate(&index), masked) {
            (Ok(offset), _) => offset,
            (Err(_), Some((_, other))) => return Ok(other.get(i)),
            (Err(kind), None) => return Err(Fault::from(kind).at(index)),
        };
        match who.touch(memory, Access::Read, dtype.size(), offset, 1) {
            Ok(()) => Ok(read_element(memory, dtype, offset)),
            Err((_, kind)) => Err(Fault::from(kind).at(index)),
        }
    })
}

pub(super) fn scatter(
    memory: &mut Memory,
    who: Accessor,
    view: &View,
    value: &Data,
    indices: &Indices<'_>,
    mask: Option<&Data>,
) -> Result<(), Fault> {
    let mut places = HashSet::new();
    for i in (0..value.len()).filter(|&i| mask.is_none_or(|m| m.bool_at(i))) {
        let index = indices.get(i);
        let Ok(offset) = view.locate(&index) else { continue };
        if !places.insert(offset) {
            return Err(Fault::from(ErrorKind::DuplicateIndex).at(index));
        }
        if let Err((_, kind)) = who.touch(memory, Access::Write, view.dtype.size(), offset, 1) {
            return Err(Fault::from(kind).at(index));
        }
        write_element(memory, view.dtype, offset, value.get(i));
    }
    Ok(())
}

/// Elements of one tile that name one place follow each other in row-major order (compiled: in any order).
pub(super) fn atomic(
    memory: &mut Memory,
    who: Accessor,
    op: AtomicOp,
    view: &View,
    value: &Data,
    indices: &Indices<'_>,
    mask: Option<&Data>,
) -> Result<Data, Fault> {
    let dtype = view.dtype;
    Data::try_generate(dtype, value.len(), |i| {
        if mask.is_some_and(|m| !m.bool_at(i)) {
            return Ok(Bits(0));
        }
        let index = indices.get(i);
        let Ok(offset) = view.locate(&index) else { return Ok(Bits(0)) };
        atomic_element(memory, who, op, dtype, offset, value.get(i)).map_err(|kind| Fault::from(kind).at(index))
    })
}

/// Adds to a semaphore; a negative count is taken, which needs that it was given before.
pub(super) fn semaphore(
    memory: &mut Memory,
    who: Accessor,
    view: &View,
    index: &[i64],
    count: i32,
) -> Result<(), Fault> {
    let Ok(offset) = view.locate(index) else { return Ok(()) };
    if let Err((_, kind)) = who.touch(memory, Access::Atomic, view.dtype.size(), offset, 1) {
        return Err(Fault::from(kind).at(index.to_vec()));
    }
    let old = read_element(memory, view.dtype, offset);
    let value = old.to_i64(view.dtype) as i32;
    if count < 0 && value < count.wrapping_neg() {
        return Err(Fault::from(ErrorKind::NeverSignalled).at(index.to_vec()));
    }
    write_element(memory, view.dtype, offset, Bits(value.wrapping_add(count) as u32 as u64));
    Ok(())
}
