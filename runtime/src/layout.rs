//! Where the elements of a tensor lie in its memory: extents, strides, an offset; all in elements.
//!
//! Invariant: the elements of one layout occupy distinct places (no stride is 0 except where the extent is at most 1),
//! and the memory they belong to reaches up to [`Layout::end`]. Every operation here keeps it, which is what lets a
//! launch decide from two layouts whether two arguments touch the same memory.

use std::fmt;
use std::ops::{Deref, Range};

/// The largest rank of a tensor. Kernels take views of rank at most [`kiln_codegen::ir::MAX_RANK`].
pub const MAX_TENSOR_RANK: usize = 6;

/// Up to [`MAX_TENSOR_RANK`] numbers, inline: a view of a tensor costs no allocation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dims {
    len: u8,
    values: [usize; MAX_TENSOR_RANK],
}

impl Dims {
    pub(crate) fn new(values: &[usize]) -> Option<Dims> {
        let mut d = Dims { len: values.len() as u8, values: [0; MAX_TENSOR_RANK] };
        d.values.get_mut(..values.len())?.copy_from_slice(values);
        Some(d)
    }

    fn remove(&mut self, at: usize) {
        self.values.copy_within(at + 1.., at);
        self.values[MAX_TENSOR_RANK - 1] = 0; // beyond `len` all is 0, so that equality is of the numbers
        self.len -= 1;
    }
}

impl Deref for Dims {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.values[..self.len as usize]
    }
}

impl fmt::Debug for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub shape: Dims,
    pub strides: Dims,
    pub offset: usize,
}

impl Layout {
    /// Row-major from the start of the memory; an explanation if the rank or the number of elements is too large.
    pub(crate) fn contiguous(shape: &[usize]) -> Result<Layout, String> {
        let shape =
            Dims::new(shape).ok_or_else(|| format!("rank {} is above the largest, {MAX_TENSOR_RANK}", shape.len()))?;
        // Extents of 0 must not hide an overflow of the others: strides are computed with them as 1.
        let mut strides = shape;
        let mut step = 1usize;
        for d in (0..shape.len()).rev() {
            strides.values[d] = step;
            step = step
                .checked_mul(shape[d].max(1))
                .filter(|&s| s <= isize::MAX as usize / 8)
                .ok_or_else(|| format!("shape {shape:?} has too many elements"))?;
        }
        Ok(Layout { shape, strides, offset: 0 })
    }

    pub(crate) fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    pub(crate) fn is_contiguous(&self) -> bool {
        let mut step = 1;
        for d in (0..self.shape.len()).rev() {
            if self.shape[d] != 1 && self.strides[d] != step {
                return self.numel() == 0;
            }
            step *= self.shape[d];
        }
        true
    }

    /// One past the last element's place; the offset if there are none.
    pub(crate) fn end(&self) -> usize {
        if self.numel() == 0 {
            return self.offset;
        }
        self.offset + self.shape.iter().zip(self.strides.iter()).map(|(n, s)| (n - 1) * s).sum::<usize>() + 1
    }

    fn check_dim(&self, dim: usize) -> Result<(), String> {
        if dim < self.shape.len() {
            Ok(())
        } else {
            Err(format!("dimension {dim} of a tensor of rank {}", self.shape.len()))
        }
    }

    /// Dimension `dim` restricted to `start..start + len`.
    pub(crate) fn narrow(mut self, dim: usize, start: usize, len: usize) -> Result<Layout, String> {
        self.check_dim(dim)?;
        let extent = self.shape[dim];
        if start.checked_add(len).is_none_or(|end| end > extent) {
            return Err(format!("{len} elements from {start} exceed the extent {extent} of dimension {dim}"));
        }
        // An empty result keeps its offset: one past the end would leave the memory.
        if len > 0 {
            self.offset += start * self.strides[dim];
        }
        self.shape.values[dim] = len;
        Ok(self)
    }

    /// Dimension `dim` fixed at `index` and removed.
    pub(crate) fn select(self, dim: usize, index: usize) -> Result<Layout, String> {
        self.check_dim(dim)?;
        if index >= self.shape[dim] {
            return Err(format!("index {index} is outside the extent {} of dimension {dim}", self.shape[dim]));
        }
        let mut layout = self.narrow(dim, index, 1)?;
        layout.shape.remove(dim);
        layout.strides.remove(dim);
        Ok(layout)
    }

    /// Result dimension i is dimension `order[i]`.
    pub(crate) fn permute(self, order: &[usize]) -> Result<Layout, String> {
        let rank = self.shape.len();
        let mut seen = [false; MAX_TENSOR_RANK];
        let mut result = self;
        for (i, &d) in order.iter().enumerate() {
            if order.len() != rank || d >= rank || std::mem::replace(&mut seen[d], true) {
                return Err(format!("{order:?} is not an order of {rank} dimensions"));
            }
            result.shape.values[i] = self.shape[d];
            result.strides.values[i] = self.strides[d];
        }
        if order.len() != rank { Err(format!("{order:?} is not an order of {rank} dimensions")) } else { Ok(result) }
    }

    /// The same elements, row-major, with other extents. The layout must be contiguous.
    pub(crate) fn reshape(self, shape: &[usize]) -> Result<Layout, String> {
        if !self.is_contiguous() {
            return Err(format!(
                "shape {:?} with strides {:?} is not contiguous: call contiguous() first",
                self.shape, self.strides
            ));
        }
        let mut layout = Layout::contiguous(shape)?;
        if layout.numel() != self.numel() {
            return Err(format!("{} elements of {:?} do not fill {shape:?}", self.numel(), self.shape));
        }
        layout.offset = self.offset;
        Ok(layout)
    }

    /// The places of the elements in row-major order, as maximal contiguous runs `(start, length)`.
    pub(crate) fn runs(&self) -> (usize, impl Iterator<Item = (usize, usize)> + use<>) {
        let this = *self;
        let numel = this.numel();
        // Trailing dimensions that are contiguous together form one run.
        let mut inner = this.shape.len();
        let mut run = 1;
        while inner > 0 && (this.shape[inner - 1] == 1 || this.strides[inner - 1] == run) {
            inner -= 1;
            run *= this.shape[inner];
        }
        let count = if numel == 0 { 0 } else { numel / run };
        let starts = (0..count).map(move |i| {
            let (mut rest, mut at) = (i, this.offset);
            for d in (0..inner).rev() {
                at += rest % this.shape[d] * this.strides[d];
                rest /= this.shape[d];
            }
            (at, run)
        });
        (count, starts)
    }

    /// The bytes spanned, first to last.
    pub(crate) fn byte_range(&self, element: usize) -> Range<usize> {
        self.offset * element..self.end() * element
    }

    /// Whether an element of `self` (of `size` bytes) and one of `other` share a byte of one memory. Exact for
    /// whatever slicing and permuting one tensor can give; where the search would be long, `true`.
    pub(crate) fn overlaps(&self, size: usize, other: &Layout, other_size: usize) -> bool {
        if self.numel() == 0 || other.numel() == 0 {
            return false;
        }
        let (a, b) = (self.byte_range(size), other.byte_range(other_size));
        if a.end <= b.start || b.end <= a.start {
            return false;
        }
        // A common byte is a solution of Σ sᵢxᵢ − Σ tⱼyⱼ = d with every unknown in its extent. Equal strides are
        // merged into one unknown; the rest is a search by descending stride, pruned by what the smaller can reach.
        let mut terms: Vec<(i128, i128, i128)> = vec![]; // stride, least, greatest
        let mut add = |stride: usize, least: i128, greatest: i128| {
            match terms.iter_mut().find(|t| t.0 == stride as i128) {
                Some(t) => (t.1, t.2) = (t.1 + least, t.2 + greatest),
                None => terms.push((stride as i128, least, greatest)),
            };
        };
        for (layout, size, sign) in [(self, size, 1), (other, other_size, -1)] {
            let dims = layout.shape.iter().zip(layout.strides.iter()).map(|(&n, &s)| (n, s * size));
            for (n, stride) in dims.chain([(size, 1)]).filter(|d| d.0 > 1) {
                let last = sign * (n as i128 - 1);
                add(stride, last.min(0), last.max(0));
            }
        }
        terms.sort_by_key(|t| std::cmp::Reverse(t.0));
        let mut budget = 256;
        solvable(&terms, b.start as i128 - a.start as i128, &mut budget)
    }
}

/// Whether Σ stride·x = target has a solution with each x in its range; `true` once the budget is spent.
fn solvable(terms: &[(i128, i128, i128)], target: i128, budget: &mut u32) -> bool {
    let Some((&(stride, least, greatest), rest)) = terms.split_first() else { return target == 0 };
    if *budget == 0 {
        return true;
    }
    *budget -= 1;
    let low: i128 = rest.iter().map(|t| t.0 * t.1).sum();
    let high: i128 = rest.iter().map(|t| t.0 * t.2).sum();
    // stride·x must lie in [target − high, target − low].
    let first = (target - high).div_euclid(stride) + ((target - high).rem_euclid(stride) != 0) as i128;
    let last = (target - low).div_euclid(stride);
    let (first, last) = (first.max(least), last.min(greatest));
    let mut x = first;
    while x <= last {
        if solvable(rest, target - stride * x, budget) {
            return true;
        }
        x += 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(l: &Layout) -> Vec<usize> {
        l.runs().1.flat_map(|(s, n)| s..s + n).collect()
    }

    #[test]
    fn narrow_select_permute_name_the_right_places() {
        let l = Layout::contiguous(&[3, 4]).unwrap();
        assert_eq!(places(&l.narrow(1, 1, 2).unwrap()), [1, 2, 5, 6, 9, 10]);
        assert_eq!(places(&l.select(0, 2).unwrap()), [8, 9, 10, 11]);
        assert_eq!(places(&l.permute(&[1, 0]).unwrap()), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
        assert_eq!(l.runs().0, 1);
        assert_eq!(l.narrow(0, 1, 2).unwrap().runs().0, 1);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let l = Layout::contiguous(&[3, 4]).unwrap();
        assert!(l.narrow(2, 0, 1).is_err());
        assert!(l.narrow(0, 2, 2).is_err());
        assert!(l.narrow(0, usize::MAX, 2).is_err());
        assert!(l.select(0, 3).is_err());
        assert!(l.permute(&[0, 0]).is_err());
        assert!(l.permute(&[0]).is_err());
        assert!(l.permute(&[0, 1, 2]).is_err());
        assert!(l.permute(&[1, 0]).unwrap().reshape(&[12]).is_err());
        assert!(l.reshape(&[5, 2]).is_err());
        assert!(Layout::contiguous(&[1; 7]).is_err());
        assert!(Layout::contiguous(&[usize::MAX, 2]).is_err());
        assert!(Layout::contiguous(&[0, usize::MAX, 2]).is_err());
    }

    #[test]
    fn empty_layouts_stay_inside() {
        let l = Layout::contiguous(&[3, 4]).unwrap().narrow(0, 3, 0).unwrap();
        assert_eq!((l.numel(), l.offset, l.end(), l.runs().0), (0, 0, 0, 0));
        assert!(l.is_contiguous());
    }

    #[test]
    fn scalars_have_one_place() {
        let l = Layout::contiguous(&[]).unwrap();
        assert_eq!((places(&l), l.end()), (vec![0], 1));
    }

    /// Every pair of boxes of a small tensor, and their transposes: the search agrees with comparing the places.
    #[test]
    fn overlap_is_exact_on_boxes() {
        let base = Layout::contiguous(&[4, 6]).unwrap();
        let mut boxes = vec![];
        for (r, rn, c, cn) in
            [(0, 4, 0, 3), (0, 4, 3, 3), (1, 2, 0, 6), (0, 1, 0, 6), (3, 1, 5, 1), (1, 3, 2, 2), (0, 2, 1, 4)]
        {
            let b = base.narrow(0, r, rn).unwrap().narrow(1, c, cn).unwrap();
            boxes.extend([b, b.permute(&[1, 0]).unwrap()]);
        }
        for a in &boxes {
            for b in &boxes {
                let truth = places(a).iter().any(|p| places(b).contains(p));
                assert_eq!(a.overlaps(4, b, 4), truth, "{a:?} {b:?}");
            }
        }
    }
}
