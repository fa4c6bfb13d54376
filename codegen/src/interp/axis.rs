//! Reductions and scans along one axis, in index order.
//!
//! A reduction is a left fold from the first element: ((x₀ ∘ x₁) ∘ x₂) …, each step rounded to the element type. A scan
//! gives every partial result of that fold; a reversed scan is the scan of the reversed axis, reversed back, so its left
//! operand is what comes from the far end. Compiled code may group the steps in any way, and so may round differently.
//!
//! A combination given by a region is evaluated once per step on vectors with one element ("lane") per line along the
//! axis, instead of once per element.

use super::tile::Data;
use crate::ir::{Bits, Combine, DType, Shape};
use crate::semantics;
use std::rc::Rc;

/// A tile seen as lines along an axis: `outer` × `extent` × `inner`.
#[derive(Clone, Copy)]
pub(super) struct Lines {
    outer: usize,
    pub(super) extent: usize,
    inner: usize,
}

impl Lines {
    pub(super) fn new(shape: Shape, axis: usize) -> Lines {
        let product = |dims: &[u32]| dims.iter().map(|&d| d as usize).product();
        Lines {
            outer: product(&shape.dims()[..axis]),
            extent: shape.dim(axis),
            inner: product(&shape.dims()[axis + 1..]),
        }
    }

    /// Number of lines, which is the number of lanes of a step.
    pub(super) fn count(&self) -> usize {
        self.outer * self.inner
    }

    /// The first element of every line.
    fn starts(&self) -> impl Iterator<Item = usize> + use<> {
        let Lines { outer, extent, inner } = *self;
        (0..outer).flat_map(move |o| o * extent * inner..o * extent * inner + inner)
    }

    /// The elements at `step` of every line.
    fn at(&self, x: &Data, step: usize) -> Data {
        let Lines { outer, extent, inner } = *self;
        x.permuted((0..outer).flat_map(move |o| {
            let start = (o * extent + step) * inner;
            start..start + inner
        }))
    }

    /// The inverse of [`Lines::at`]: a tile from the elements at every step.
    fn assemble(&self, dtype: DType, steps: &[Rc<Data>]) -> Data {
        let Lines { outer, extent, inner } = *self;
        Data::generate(dtype, outer * extent * inner, |i| {
            let (o, step, lane) = (i / (extent * inner), i / inner % extent, i % inner);
            steps[step].get(o * inner + lane)
        })
    }
}

/// The fold of a named combination along the line that starts at `start`; `each` gets every partial result.
fn fold_named(
    (op, dtype): (Combine, DType),
    x: &Data,
    positions: impl Iterator<Item = usize>,
    mut each: impl FnMut(usize, Bits),
) {
    let mut sum = None;
    for p in positions {
        let value = x.get(p);
        let next = sum.map_or(value, |sum| semantics::combine(op, dtype, sum, value));
        each(p, next);
        sum = Some(next);
    }
}

pub(super) fn reduce(op: Combine, dtype: DType, lines: Lines, x: &Data) -> Data {
    let Lines { outer: _, extent, inner } = lines;
    if let (Combine::Sum, DType::F32, Data::W4(v)) = (op, dtype, x) {
        let line = |start: usize| (0..extent).map(move |step| f32::from_bits(v[start + step * inner]));
        let sum = |start| line(start).reduce(|a, b| a + b).map_or(0, f32::to_bits);
        return Data::W4(lines.starts().map(sum).collect());
    }
    let mut starts = lines.starts();
    Data::generate(dtype, lines.count(), |_| {
        let start = starts.next().expect("one start per line");
        let mut result = Bits(0);
        fold_named((op, dtype), x, (0..extent).map(|step| start + step * inner), |_, partial| result = partial);
        result
    })
}

pub(super) fn scan(op: Combine, dtype: DType, lines: Lines, reverse: bool, x: &Data) -> Data {
    let Lines { outer: _, extent, inner } = lines;
    let mut result = vec![Bits(0); x.len()];
    for start in lines.starts() {
        let place = |step: usize| start + if reverse { extent - 1 - step } else { step } * inner;
        fold_named((op, dtype), x, (0..extent).map(place), |p, partial| result[p] = partial);
    }
    Data::generate(dtype, x.len(), |i| result[i])
}

/// A step of a fold on the lanes of all operands: (left, right) to the combined.
type Step<'a, E> = dyn FnMut(&[Rc<Data>], &[Rc<Data>]) -> Result<Vec<Rc<Data>>, E> + 'a;

/// The partial results of the fold over every line, handed to `each` with their step.
fn fold<E>(
    lines: Lines,
    reverse: bool,
    xs: &[Rc<Data>],
    step: &mut Step<'_, E>,
    mut each: impl FnMut(usize, &[Rc<Data>]),
) -> Result<Vec<Rc<Data>>, E> {
    let place = |i: usize| if reverse { lines.extent - 1 - i } else { i };
    let lanes = |i: usize| xs.iter().map(|x| Rc::new(lines.at(x, place(i)))).collect::<Vec<_>>();
    let mut sum = lanes(0);
    each(place(0), &sum);
    for i in 1..lines.extent {
        sum = step(&sum, &lanes(i))?;
        each(place(i), &sum);
    }
    Ok(sum)
}

pub(super) fn reduce_by<E>(lines: Lines, xs: &[Rc<Data>], step: &mut Step<'_, E>) -> Result<Vec<Rc<Data>>, E> {
    fold(lines, false, xs, step, |_, _| {})
}

pub(super) fn scan_by<E>(
    lines: Lines,
    reverse: bool,
    dtypes: &[DType],
    xs: &[Rc<Data>],
    step: &mut Step<'_, E>,
) -> Result<Vec<Rc<Data>>, E> {
    let nothing = Rc::new(Data::W1(vec![]));
    let mut partial = vec![vec![nothing; lines.extent]; xs.len()];
    fold(lines, reverse, xs, step, |place, sums| {
        for (steps, sum) in partial.iter_mut().zip(sums) {
            steps[place] = sum.clone();
        }
    })?;
    Ok(partial.iter().zip(dtypes).map(|(steps, &d)| Rc::new(lines.assemble(d, steps))).collect())
}
