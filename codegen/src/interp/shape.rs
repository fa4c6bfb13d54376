//! Operations that move elements and compute nothing.

use super::tile::{Data, map_elements};
use crate::ir::{Bits, DType, MAX_RANK, Shape};

/// For each element of `shape` in row-major order, the position at `base` + Σ index · stride.
fn positions(shape: Shape, base: usize, strides: [usize; MAX_RANK]) -> impl Iterator<Item = usize> {
    // Rank 4, with leading extents of 1.
    let lead = MAX_RANK - shape.rank();
    let (mut dims, mut steps) = ([1; MAX_RANK], [0; MAX_RANK]);
    for axis in 0..shape.rank() {
        (dims[lead + axis], steps[lead + axis]) = (shape.dim(axis), strides[axis]);
    }
    let [d0, d1, d2, d3] = dims;
    let [s0, s1, s2, s3] = steps;
    let rows = (0..d0).flat_map(move |i| (0..d1).map(move |j| base + i * s0 + j * s1));
    let rows = rows.flat_map(move |p| (0..d2).map(move |k| p + k * s2));
    rows.flat_map(move |p| (0..d3).map(move |l| p + l * s3))
}

/// Row-major strides of a shape.
pub(super) fn row_major(shape: Shape) -> [usize; MAX_RANK] {
    let mut strides = [0; MAX_RANK];
    let mut step = 1;
    for axis in (0..shape.rank()).rev() {
        strides[axis] = step;
        step *= shape.dim(axis);
    }
    strides
}

pub(super) fn iota(shape: Shape, axis: usize) -> Data {
    let inner = row_major(shape)[axis];
    let extent = shape.dim(axis);
    Data::W4((0..shape.numel()).map(|i| (i / inner % extent) as u32).collect())
}

pub(super) fn broadcast(x: &Data, from: Shape, to: Shape) -> Data {
    if from.numel() == 1 {
        return map_elements!(x, v => vec![v[0]; to.numel()]);
    }
    let mut strides = row_major(from);
    for (axis, stride) in strides.iter_mut().enumerate().take(from.rank()) {
        if from.dim(axis) == 1 {
            *stride = 0;
        }
    }
    x.permuted(positions(to, 0, strides))
}

pub(super) fn transpose(x: &Data, from: Shape, to: Shape, perm: &[u8; MAX_RANK]) -> Data {
    let old = row_major(from);
    let mut strides = [0; MAX_RANK];
    for axis in 0..to.rank() {
        strides[axis] = old[perm[axis] as usize];
    }
    x.permuted(positions(to, 0, strides))
}

pub(super) fn slice(x: &Data, from: Shape, to: Shape, offsets: &[u32; MAX_RANK]) -> Data {
    let strides = row_major(from);
    let base = (0..from.rank()).map(|axis| offsets[axis] as usize * strides[axis]).sum();
    x.permuted(positions(to, base, strides))
}

/// `shape` is that of each operand.
pub(super) fn join(dtype: DType, x: &Data, y: &Data, shape: Shape, axis: usize) -> Data {
    let run = shape.dim(axis) * row_major(shape)[axis];
    Data::generate(dtype, 2 * shape.numel(), |i| -> Bits {
        let (block, within) = (i / (2 * run), i % (2 * run));
        if within < run { x.get(block * run + within) } else { y.get(block * run + within - run) }
    })
}
