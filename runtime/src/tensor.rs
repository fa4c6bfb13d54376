//! The one tensor type: a piece of a device's memory, seen through a dtype, a shape and strides.
//!
//! Invariants: every element lies inside the memory (checked when the tensor is made, kept by every view), distinct
//! elements at distinct places. Cloning and viewing share the memory; a kernel's `&mut` output may therefore be part of
//! a larger tensor, and a launch refuses arguments of which one would write what another touches.
//!
//! Nothing here computes: a tensor is storage with a shape, and arithmetic is what kernels are for.

use crate::device::{Fill, Storage};
use crate::fetch::Fetch;
use crate::lang::Element;
use crate::layout::Layout;
use crate::{Device, Error, Result};
use kiln_codegen::ir::{Bits, DType};
use std::fmt;
use std::sync::Arc;

/// A multidimensional array on a device. Cloning shares the memory.
#[derive(Clone)]
pub struct Tensor {
    storage: Arc<Storage>,
    dtype: DType,
    layout: Layout,
}

/// The byte that makes any float a NaN; of a bool, a valid one.
fn poison(dtype: DType) -> u8 {
    if dtype == DType::Bool { 1 } else { 0xff }
}

fn bytes_of<T: Element>(data: &[T]) -> &[u8] {
    // SAFETY: the sealed list of `Element` has types without padding only, so all bytes are initialised; the length is
    // the slice's in bytes.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) }
}

impl Tensor {
    // -- making --------------------------------------------------------------------------------------------------------

    fn allocate(operation: &'static str, shape: &[usize], dtype: DType, device: Device, fill: Fill) -> Result<Tensor> {
        let layout = Layout::contiguous(shape).map_err(|m| Error::tensor(operation, m))?;
        let storage = Storage::allocate(device, layout.numel() * dtype.size(), fill)?;
        Ok(Tensor { storage, dtype, layout })
    }

    /// A tensor to be written before it is read. The interpreter refuses a read that comes first; with `KILN_POISON`
    /// (on in debug builds) floats are NaN; otherwise the contents are unspecified.
    ///
    /// # Errors
    /// If the device is not there or has not that much memory.
    pub fn uninit(shape: &[usize], dtype: DType, device: Device) -> Result<Tensor> {
        Tensor::allocate("uninit", shape, dtype, device, Fill::Uninit { poison: poison(dtype) })
    }

    /// All elements 0.
    ///
    /// # Errors
    /// If the device is not there or has not that much memory.
    pub fn zeros(shape: &[usize], dtype: DType, device: Device) -> Result<Tensor> {
        Tensor::allocate("zeros", shape, dtype, device, Fill::Zero)
    }

    /// All elements `value`, rounded to `dtype`.
    ///
    /// # Errors
    /// If the device is not there or has not that much memory.
    pub fn full(shape: &[usize], dtype: DType, value: f64, device: Device) -> Result<Tensor> {
        let mut tensor = Tensor::uninit(shape, dtype, device)?;
        tensor.fill(value)?;
        Ok(tensor)
    }

    /// A copy of row-major host data.
    ///
    /// # Errors
    /// If `data` does not have the shape's number of elements, or the device is not there or has not that much memory.
    pub fn from_slice<T: Element>(data: &[T], shape: &[usize], device: Device) -> Result<Tensor> {
        Tensor::from_bytes(bytes_of(data), T::DTYPE, shape, device)
    }

    /// A copy of row-major host data of a dtype known at run time (little endian, as in a file of weights).
    ///
    /// # Errors
    /// If `bytes` is not the size of the shape, or the device is not there or has not that much memory.
    pub fn from_bytes(bytes: &[u8], dtype: DType, shape: &[usize], device: Device) -> Result<Tensor> {
        let layout = Layout::contiguous(shape).map_err(|m| Error::tensor("from_bytes", m))?;
        let expected = layout.numel() * dtype.size();
        if bytes.len() != expected {
            let message = format!("shape {shape:?} of {dtype} takes {expected} bytes, not {}", bytes.len());
            return Err(Error::tensor("from_bytes", message));
        }
        let mut tensor = Tensor::uninit(shape, dtype, device)?;
        tensor.write_bytes(bytes)?;
        Ok(tensor)
    }

    /// `values` rounded to `dtype`.
    ///
    /// # Errors
    /// As [`Tensor::from_slice`].
    pub fn from_f32(values: &[f32], dtype: DType, shape: &[usize], device: Device) -> Result<Tensor> {
        if dtype == DType::F32 {
            return Tensor::from_slice(values, shape, device);
        }
        let size = dtype.size();
        let mut bytes = Vec::with_capacity(values.len() * size);
        for &v in values {
            bytes.extend_from_slice(&Bits::from_f64(dtype, v as f64).0.to_le_bytes()[..size]);
        }
        Tensor::from_bytes(&bytes, dtype, shape, device)
    }

    // -- asking --------------------------------------------------------------------------------------------------------

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn device(&self) -> Device {
        self.storage.device()
    }

    pub fn shape(&self) -> &[usize] {
        &self.layout.shape
    }

    /// In elements.
    pub fn strides(&self) -> &[usize] {
        &self.layout.strides
    }

    pub fn rank(&self) -> usize {
        self.layout.shape.len()
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.layout.numel()
    }

    /// Size of the elements in bytes.
    pub fn size_in_bytes(&self) -> usize {
        self.numel() * self.dtype.size()
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.layout.is_contiguous()
    }

    pub(crate) fn storage(&self) -> &Arc<Storage> {
        &self.storage
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether an element of this tensor and one of the other share memory.
    pub fn overlaps(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage)
            && self.layout.overlaps(self.dtype.size(), &other.layout, other.dtype.size())
    }

    // -- views: the same memory, seen differently ----------------------------------------------------------------------

    fn view(&self, operation: &'static str, layout: Result<Layout, String>) -> Result<Tensor> {
        let layout = layout.map_err(|m| Error::tensor(operation, m))?;
        Ok(Tensor { storage: self.storage.clone(), dtype: self.dtype, layout })
    }

    /// Dimension `dim` restricted to `start..start + len`.
    ///
    /// # Errors
    /// If that is not inside the dimension.
    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Result<Tensor> {
        self.view("narrow", self.layout.narrow(dim, start, len))
    }

    /// Dimension `dim` fixed at `index` and removed.
    ///
    /// # Errors
    /// If the index is not inside the dimension.
    pub fn select(&self, dim: usize, index: usize) -> Result<Tensor> {
        self.view("select", self.layout.select(dim, index))
    }

    /// The same elements in row-major order with other extents.
    ///
    /// # Errors
    /// If the number of elements differs, or the tensor is not contiguous.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        self.view("reshape", self.layout.reshape(shape))
    }

    /// Dimension i of the result is dimension `order[i]`.
    ///
    /// # Errors
    /// If `order` does not name every dimension once.
    pub fn permute(&self, order: &[usize]) -> Result<Tensor> {
        self.view("permute", self.layout.permute(order))
    }

    /// Two dimensions exchanged.
    ///
    /// # Errors
    /// If one of them does not exist.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Tensor> {
        let rank = self.rank();
        if a >= rank || b >= rank {
            return Err(Error::tensor("transpose", format!("dimensions {a} and {b} of a tensor of rank {rank}")));
        }
        let mut order: Vec<usize> = (0..rank).collect();
        order.swap(a, b);
        self.permute(&order)
    }

    // -- copying -------------------------------------------------------------------------------------------------------

    /// This tensor if it is contiguous, otherwise a copy that is.
    ///
    /// # Errors
    /// If there is no memory for the copy.
    pub fn contiguous(&self) -> Result<Tensor> {
        if self.is_contiguous() { Ok(self.clone()) } else { self.to_device_copy(self.device()) }
    }

    /// A contiguous copy with memory of its own.
    ///
    /// # Errors
    /// If there is no memory for the copy.
    pub fn deep_clone(&self) -> Result<Tensor> {
        self.to_device_copy(self.device())
    }

    /// This tensor if it is on `device`, otherwise a copy there.
    ///
    /// # Errors
    /// If the device is not there or has not that much memory.
    pub fn to_device(&self, device: Device) -> Result<Tensor> {
        if self.device() == device { Ok(self.clone()) } else { self.to_device_copy(device) }
    }

    fn to_device_copy(&self, device: Device) -> Result<Tensor> {
        let mut copy = Tensor::uninit(self.shape(), self.dtype, device)?;
        copy.copy_from(self)?;
        Ok(copy)
    }

    /// Copies the elements of `source`, from any device.
    ///
    /// # Errors
    /// If shape or dtype differ, or the two share memory.
    pub fn copy_from(&mut self, source: &Tensor) -> Result<()> {
        if (self.dtype, self.shape()) != (source.dtype, source.shape()) {
            let message =
                format!("{} {:?} cannot be copied to {} {:?}", source.dtype, source.shape(), self.dtype, self.shape());
            return Err(Error::tensor("copy_from", message));
        }
        if self.overlaps(source) {
            return Err(Error::tensor("copy_from", "source and destination share memory"));
        }
        let size = self.dtype.size();
        let ((_, to), (_, from)) = (self.layout.runs(), source.layout.runs());
        let pieces = common_runs(to, from).map(|(to, from, n)| (to * size, from * size, n * size));
        self.storage.copy(&source.storage, pieces)
    }

    /// Replaces the elements by row-major host data.
    ///
    /// # Errors
    /// If dtype or number of elements differ.
    pub fn write_slice<T: Element>(&mut self, data: &[T]) -> Result<()> {
        if T::DTYPE != self.dtype {
            return Err(Error::tensor("write_slice", format!("data of {} for a tensor of {}", T::DTYPE, self.dtype)));
        }
        self.write_bytes(bytes_of(data))
    }

    /// Replaces the elements by row-major host data of this tensor's dtype.
    ///
    /// # Errors
    /// If the number of bytes differs.
    pub fn write_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() != self.size_in_bytes() {
            let message = format!("{} bytes for a tensor of {}", bytes.len(), self.size_in_bytes());
            return Err(Error::tensor("write_bytes", message));
        }
        let size = self.dtype.size();
        let mut rest = bytes;
        for (start, n) in self.layout.runs().1 {
            let (piece, tail) = rest.split_at(n * size);
            self.storage.write(start * size, piece)?;
            rest = tail;
        }
        Ok(())
    }

    /// Sets every element to `value`, rounded to the dtype.
    ///
    /// # Errors
    /// If the device fails.
    pub fn fill(&mut self, value: f64) -> Result<()> {
        let element = &Bits::from_f64(self.dtype, value).0.to_le_bytes()[..self.dtype.size()];
        self.write_bytes(&element.repeat(self.numel()))
    }

    /// The elements in row-major order, as bytes; waits for the device.
    ///
    /// # Errors
    /// If the device fails, or (on the interpreter) an element was never written.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        // A few long runs are read one by one; many short ones are picked out of the whole span.
        const FEW: usize = 16;
        let size = self.dtype.size();
        let mut bytes = vec![0; self.size_in_bytes()];
        let (count, runs) = self.layout.runs();
        let host = matches!(self.device(), Device::Cpu | Device::Interpret);
        if count <= FEW || host {
            let mut rest = &mut bytes[..];
            for (start, n) in runs {
                let (piece, tail) = rest.split_at_mut(n * size);
                self.storage.read(start * size, piece)?;
                rest = tail;
            }
        } else {
            let span = self.layout.byte_range(size);
            let mut whole = vec![0; span.len()];
            self.storage.read(span.start, &mut whole)?;
            let mut rest = &mut bytes[..];
            for (start, n) in runs {
                let (piece, tail) = rest.split_at_mut(n * size);
                let at = start * size - span.start;
                piece.copy_from_slice(&whole[at..at + n * size]);
                rest = tail;
            }
        }
        Ok(bytes)
    }

    /// The elements in row-major order; waits for the device.
    ///
    /// # Errors
    /// If `T` is not the dtype, the device fails, or (on the interpreter) an element was never written.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        if T::DTYPE != self.dtype {
            return Err(Error::tensor("to_vec", format!("a tensor of {} read as {}", self.dtype, T::DTYPE)));
        }
        Ok(elements(self.to_bytes()?, self.numel()))
    }

    /// Begins to bring the elements to the host, as they are when what was asked of the device before is done. What is
    /// asked afterwards need not wait for the host, nor does [`Fetch::wait`] wait for it. For few elements: on a GPU the
    /// host's memory that they land in is kept for the next fetch.
    ///
    /// # Errors
    /// If the device fails, or (on the interpreter) an element was never written.
    pub fn fetch(&self) -> Result<Fetch> {
        let whole = self.contiguous()?;
        let bytes = whole.storage.fetch(whole.layout.offset * self.dtype.size(), self.size_in_bytes())?;
        Ok(Fetch { dtype: self.dtype, numel: self.numel(), bytes })
    }

    /// The elements in row-major order as f32, whatever the dtype (integers beyond 2^24 are rounded).
    ///
    /// # Errors
    /// If the device fails, or (on the interpreter) an element was never written.
    pub fn to_vec_f32(&self) -> Result<Vec<f32>> {
        let bytes = self.to_bytes()?;
        Ok(bytes
            .chunks_exact(self.dtype.size())
            .map(|element| {
                let mut bits = [0; 8];
                bits[..element.len()].copy_from_slice(element);
                Bits(u64::from_le_bytes(bits)).to_f64(self.dtype) as f32
            })
            .collect())
    }
}

/// Bytes as `numel` elements, which they are.
pub(crate) fn elements<T: Element>(mut bytes: Vec<u8>, numel: usize) -> Vec<T> {
    assert_eq!(bytes.len(), numel * size_of::<T>());
    if T::DTYPE == DType::Bool {
        bytes.iter_mut().for_each(|b| *b = (*b != 0) as u8);
    }
    let mut out = Vec::<T>::with_capacity(numel);
    // SAFETY: the bytes are `numel` values of `T`: the sealed list of `Element` has types of which every pattern is valid
    // (bools were made 0 or 1 above). The vector has room, and its own alignment.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), out.as_mut_ptr().cast::<u8>(), bytes.len());
        out.set_len(numel);
    }
    out
}

/// Cuts two sequences of runs, of equal total length, into common pieces `(to, from, length)`.
fn common_runs(
    mut to: impl Iterator<Item = (usize, usize)>,
    mut from: impl Iterator<Item = (usize, usize)>,
) -> impl Iterator<Item = (usize, usize, usize)> {
    let (mut a, mut b) = ((0, 0), (0, 0));
    std::iter::from_fn(move || {
        if a.1 == 0 {
            a = to.next()?;
        }
        if b.1 == 0 {
            b = from.next()?;
        }
        let n = a.1.min(b.1);
        let piece = (a.0, b.0, n);
        a = (a.0 + n, a.1 - n);
        b = (b.0 + n, b.1 - n);
        Some(piece)
    })
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {:?} on {}", self.dtype, self.shape(), self.device())?;
        if !self.is_contiguous() {
            write!(f, ", strides {:?}", self.strides())?;
        }
        write!(f, ")")
    }
}
