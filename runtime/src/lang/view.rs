//! Memory: views of tensors and this program's own block of an output.
//!
//! Safety model: `&View` only reads; a `&mut Block` is written at the place that the program id names, so no two
//! programs write the same element; everything else that writes is an `unsafe` method of `&mut View`, whose caller
//! promises that no two programs write one element, and that none reads what another writes.

use super::{D0, Element, Operand, Ranked, Shape, Tile};
use crate::stage;
use kiln_codegen::ir::{AtomicOp, ValueId};
use std::marker::PhantomData;

/// A tensor argument of rank `R`: extents and strides are known at run time. An access outside never touches memory.
pub struct View<T: Element, const R: usize> {
    id: ValueId,
    _marker: PhantomData<(T, *const ())>,
}

/// This program's own block of an output: rows and columns `program_id(k)·extent …` in each dimension k.
pub struct Block<T: Element, S: Shape> {
    id: ValueId,
    _marker: PhantomData<(T, S, *const ())>,
}

/// Element coordinates in a view of rank `R`: a scalar or number for rank 1, a tuple for more.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not address a view of rank {R}",
    label = "expected {R} coordinate(s): i32 scalars or integers, as a tuple where there are several"
)]
pub trait Coords<const R: usize> {
    #[doc(hidden)]
    #[track_caller]
    fn coords(self) -> Vec<ValueId>;
}

/// One index tile per dimension of a view of rank `R`, all of shape `S`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no index into a view of rank {R}",
    label = "expected {R} tile(s) of i32 of one shape, as a tuple where there are several; the first of full shape"
)]
pub trait Indices<const R: usize, S: Shape> {
    #[doc(hidden)]
    #[track_caller]
    fn indices(self) -> Vec<ValueId>;
}

impl<A: Operand<i32, D0>> Coords<1> for A {
    #[track_caller]
    fn coords(self) -> Vec<ValueId> {
        vec![self.operand().id()]
    }
}

impl<S: Shape> Indices<1, S> for Tile<i32, S> {
    fn indices(self) -> Vec<ValueId> {
        vec![self.id()]
    }
}

macro_rules! tuples {
    ($($rank:literal: $first:ident $($t:ident)*;)*) => {$(
        impl<$first: Operand<i32, D0>, $($t: Operand<i32, D0>),*> Coords<$rank> for ($first, $($t),*) {
            #[allow(non_snake_case)]
            #[track_caller]
            fn coords(self) -> Vec<ValueId> {
                let ($first, $($t),*) = self;
                vec![$first.operand().id(), $($t.operand().id()),*]
            }
        }
        impl<S: Shape, $($t: Operand<i32, S>),*> Indices<$rank, S> for (Tile<i32, S>, $($t),*) {
            #[allow(non_snake_case)]
            #[track_caller]
            fn indices(self) -> Vec<ValueId> {
                let ($first, $($t),*) = self;
                vec![$first.id(), $($t.operand().id()),*]
            }
        }
    )*};
}
tuples! { 2: A B; 3: A B C; 4: A B C D; }

impl<T: Element, const R: usize> View<T, R> {
    pub(crate) fn from_id(id: ValueId) -> Self {
        View { id, _marker: PhantomData }
    }

    /// The extent of dimension `dim`.
    #[track_caller]
    pub fn dim(&self, dim: usize) -> Tile<i32> {
        if dim >= R {
            return stage::error(format!("dimension {dim} of a view of rank {R}"));
        }
        Tile::from_id(stage::emit(|b| b.dim(self.id, dim)))
    }

    /// The view narrowed to `start .. start + len` in dimension `dim`, clamped to its extent.
    #[track_caller]
    pub fn narrow(&self, dim: usize, start: impl Operand<i32, D0>, len: impl Operand<i32, D0>) -> View<T, R> {
        let (start, len) = (start.operand(), len.operand());
        View::from_id(stage::emit(|b| b.view_narrow(self.id, dim, start.id(), len.id())))
    }

    /// The box of the annotated shape that starts at `at`; zeros outside the view.
    #[track_caller]
    pub fn load<S: Ranked<R>>(&self, at: impl Coords<R>) -> Tile<T, S> {
        let at = at.coords();
        Tile::from_id(stage::emit(|b| b.load(self.id, &at, S::shape(), None)))
    }

    /// [`View::load`] with `other` outside the view.
    #[track_caller]
    pub fn load_or<S: Ranked<R>>(&self, at: impl Coords<R>, other: impl Operand<T, D0>) -> Tile<T, S> {
        let (at, other) = (at.coords(), other.operand());
        Tile::from_id(stage::emit(|b| b.load(self.id, &at, S::shape(), Some(other.id()))))
    }

    /// One element; an index outside is an error (compiled code gives 0).
    #[track_caller]
    pub fn get(&self, at: impl Coords<R>) -> Tile<T> {
        let at = at.coords();
        Tile::from_id(stage::emit(|b| b.gather(self.id, &at, None)))
    }

    /// Elements anywhere; an index outside is an error (compiled code gives 0).
    #[track_caller]
    pub fn gather<S: Shape>(&self, index: impl Indices<R, S>) -> Tile<T, S> {
        let index = index.indices();
        Tile::from_id(stage::emit(|b| b.gather(self.id, &index, None)))
    }

    /// Elements anywhere; `other` where `mask` is false or the index is outside.
    #[track_caller]
    pub fn gather_masked<S: Shape>(
        &self,
        index: impl Indices<R, S>,
        mask: impl Operand<bool, S>,
        other: impl Operand<T, S>,
    ) -> Tile<T, S> {
        let (index, mask, other) = (index.indices(), mask.operand(), other.operand());
        Tile::from_id(stage::emit(|b| b.gather(self.id, &index, Some((mask.id(), other.id())))))
    }

    /// Writes the box that starts at `at`; what lies outside the view is not written.
    ///
    /// # Safety
    /// No other program of the launch writes or reads these elements, except after a dependence that orders the two.
    #[track_caller]
    pub unsafe fn store<S: Ranked<R>>(&mut self, at: impl Coords<R>, value: Tile<T, S>) {
        let at = at.coords();
        stage::emit(|b| b.store(self.id, value.id(), &at));
    }

    /// Adds to the box that starts at `at`, element by element, each an atomic step (relaxed, device-wide): programs may
    /// add to the same elements, in whichever order they come, so that sums of floats may differ from run to run. What
    /// lies outside the view is not touched.
    ///
    /// ```
    /// # use kiln::prelude::*;
    /// # use kiln::{Device, Tensor};
    /// /// sums[c] += Σ x[r, c]. Program: `R` rows of `C` columns.
    /// #[kernel]
    /// fn add_columns<const R: usize, const C: usize>(x: &View<f32, 2>, sums: &mut View<f32, 1>) {
    ///     let rows: Tile<f32, R, C> = x.load((program_id(0) * R, program_id(1) * C));
    ///     // SAFETY: programs only add.
    ///     unsafe { sums.store_add(program_id(1) * C, rows.sum::<0>()) };
    /// }
    ///
    /// let x = Tensor::from_slice(&[1f32; 300], &[100, 3], Device::Cpu)?;
    /// let mut sums = Tensor::from_slice(&[0f32, 1.0, 2.0], &[3], Device::Cpu)?;
    /// add_columns::<16, 4>(&x, &mut sums).grid([7, 1]).run()?;
    /// assert_eq!(sums.to_vec::<f32>()?, [100.0, 101.0, 102.0]);
    /// # Ok::<(), kiln::Error>(())
    /// ```
    ///
    /// # Safety
    /// No program of the launch reads or writes these elements but by atomics.
    #[track_caller]
    pub unsafe fn store_add<S: Ranked<R>>(&mut self, at: impl Coords<R>, value: Tile<T, S>) {
        let at = at.coords();
        stage::emit(|b| b.store_add(self.id, value.id(), &at));
    }

    /// Writes one element.
    ///
    /// # Safety
    /// As for [`View::store`].
    #[track_caller]
    pub unsafe fn set(&mut self, at: impl Coords<R>, value: impl Operand<T, D0>) {
        let (at, value) = (at.coords(), value.operand());
        stage::emit(|b| b.scatter(self.id, value.id(), &at, None));
    }

    /// Writes elements anywhere; an index outside writes nothing.
    ///
    /// # Safety
    /// As for [`View::store`]; and no two indices are equal.
    #[track_caller]
    pub unsafe fn scatter<S: Shape>(&mut self, index: impl Indices<R, S>, value: Tile<T, S>) {
        let index = index.indices();
        stage::emit(|b| b.scatter(self.id, value.id(), &index, None));
    }

    /// [`View::scatter`] where `mask` is true.
    ///
    /// # Safety
    /// As for [`View::scatter`], of the unmasked elements.
    #[track_caller]
    pub unsafe fn scatter_masked<S: Shape>(
        &mut self,
        index: impl Indices<R, S>,
        value: Tile<T, S>,
        mask: impl Operand<bool, S>,
    ) {
        let (index, mask) = (index.indices(), mask.operand());
        stage::emit(|b| b.scatter(self.id, value.id(), &index, Some(mask.id())));
    }

    #[track_caller]
    fn atomic<S: Shape>(&mut self, op: AtomicOp, index: impl Indices<R, S>, value: Tile<T, S>) -> Tile<T, S> {
        let index = index.indices();
        Tile::from_id(stage::emit(|b| b.atomic(op, self.id, value.id(), &index, None)))
    }
}

impl<const R: usize> View<i32, R> {
    /// Adds `count` to the semaphore at `at`, once everything that this program has stored so far is visible to the
    /// whole device (release). An element outside is not touched.
    ///
    /// # Safety
    /// Meanwhile the element is touched by signals and waits only.
    #[track_caller]
    pub unsafe fn signal(&mut self, at: impl Coords<R>, count: impl Operand<i32, D0>) {
        let (at, count) = (at.coords(), count.operand());
        stage::emit(|b| b.signal(self.id, count.id(), &at));
    }

    /// Waits until the semaphore at `at` has at least `count` and takes them; what follows sees everything that was
    /// stored before the signals (acquire). No wait for an element outside.
    ///
    /// The signals must come from launches that were queued before this one, which may run beside it
    /// ([`Device::beside`](crate::Device::beside)): interpreter and CPU, where earlier launches are over, report a
    /// semaphore that has less as an error. On a GPU the programs that wait must leave room for those that signal.
    ///
    /// # Safety
    /// As for [`View::signal`]; as many are taken as given.
    #[track_caller]
    pub unsafe fn wait(&mut self, at: impl Coords<R>, count: impl Operand<i32, D0>) {
        let (at, count) = (at.coords(), count.operand());
        stage::emit(|b| b.wait(self.id, count.id(), &at));
    }
}

macro_rules! atomics {
    ($($(#[$doc:meta])* $name:ident $op:ident;)*) => {
        impl<T: Element, const R: usize> View<T, R> {$(
            $(#[$doc])*
            ///
            /// Relaxed, device-wide; returns the values before. An index outside touches nothing and gives 0.
            ///
            /// # Safety
            /// No program of the launch reads or writes these elements but by atomics.
            #[track_caller]
            pub unsafe fn $name<S: Shape>(&mut self, index: impl Indices<R, S>, value: Tile<T, S>) -> Tile<T, S> {
                self.atomic(AtomicOp::$op, index, value)
            }
        )*}
    };
}
atomics! {
    /// Adds.
    atomic_add Add;
    /// Keeps the smaller.
    atomic_min Min;
    /// Keeps the larger.
    atomic_max Max;
    /// Exchanges.
    atomic_exchange Exchange;
}

macro_rules! select {
    ($($rank:literal -> $less:literal),*) => {$(
        impl<T: Element> View<T, $rank> {
            /// The view with dimension `dim` fixed at `index`; an index outside is an error (compiled code gives an
            /// empty view).
            #[track_caller]
            pub fn select(&self, dim: usize, index: impl Operand<i32, D0>) -> View<T, $less> {
                let index = index.operand();
                if dim >= $rank {
                    stage::error::<T, D0>(format!("dimension {dim} of a view of rank {}", $rank));
                }
                View::from_id(stage::emit(|b| b.view_select(self.id, dim.min($rank - 1), index.id())))
            }
        }
    )*};
}
select!(2 -> 1, 3 -> 2, 4 -> 3);

impl<T: Element, S: Shape> Block<T, S> {
    pub(crate) fn from_id(id: ValueId) -> Self {
        Block { id, _marker: PhantomData }
    }

    /// Where this block starts in dimension `dim`: `program_id(dim) · extent`.
    #[track_caller]
    pub fn origin(&self, dim: usize) -> Tile<i32> {
        super::program_id(dim) * S::shape().dim(dim)
    }

    /// The extent of the whole output in dimension `dim`.
    #[track_caller]
    pub fn dim(&self, dim: usize) -> Tile<i32> {
        Tile::from_id(stage::emit(|b| b.dim(self.id, dim)))
    }

    /// Writes the block; what lies outside the output is not written.
    #[track_caller]
    pub fn store(&mut self, value: Tile<T, S>) {
        let at = self.place();
        stage::emit(|b| b.store(self.id, value.id(), &at));
    }

    /// The block's present content, zeros outside the output.
    #[track_caller]
    pub fn load(&self) -> Tile<T, S> {
        let at = self.place();
        Tile::from_id(stage::emit(|b| b.load(self.id, &at, S::shape(), None)))
    }

    #[track_caller]
    fn place(&self) -> Vec<ValueId> {
        (0..S::RANK).map(|k| if k < 3 { self.origin(k) } else { super::full(0.0) }.id()).collect()
    }
}
