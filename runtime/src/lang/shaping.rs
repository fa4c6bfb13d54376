//! Changing a tile's shape: the target is inferred or annotated (`let y: Tile<f32, 4, 16> = x.reshape();`).

use super::{Coords, D2, D3, Element, Shape, Tile};
use crate::stage;
use kiln_codegen::ir::{BinaryOp, CmpOp};

impl<T: Element, S: Shape> Tile<T, S> {
    /// The same elements in row-major order with other extents; the counts must agree.
    #[track_caller]
    pub fn reshape<U: Shape>(self) -> Tile<T, U> {
        let (from, to) = (S::shape(), U::shape());
        if from.numel() != to.numel() {
            return stage::error(format!(
                "reshape from {from:?} ({} elements) to {to:?} ({} elements): the counts must agree",
                from.numel(),
                to.numel()
            ));
        }
        Tile::from_id(stage::emit(|b| b.reshape(self.id(), to)))
    }

    /// Extents of 1 repeated; the rank must agree. A scalar fits any shape.
    #[track_caller]
    pub fn broadcast<U: Shape>(self) -> Tile<T, U> {
        let (from, to) = (S::shape(), U::shape());
        let fits = from.rank() == 0
            || from.rank() == to.rank() && from.dims().iter().zip(to.dims()).all(|(&a, &b)| a == b || a == 1);
        if !fits {
            return stage::error(format!("broadcast from {from:?} to {to:?}: only extents of 1 can be repeated"));
        }
        Tile::from_id(stage::emit(|b| b.broadcast(self.id(), to)))
    }

    /// A scalar repeated to any shape (see [`Tile::broadcast`]).
    #[track_caller]
    pub fn splat<U: Shape>(self) -> Tile<T, U> {
        self.broadcast()
    }

    /// The box of the annotated shape that starts at `offsets` (compile-time, multiples of the result's extents).
    #[track_caller]
    pub fn slice<U: Shape, const R: usize>(self, offsets: [usize; R]) -> Tile<T, U> {
        let (from, to) = (S::shape(), U::shape());
        let fits = from.rank() == R
            && to.rank() == R
            && (0..R).all(|i| offsets[i].is_multiple_of(to.dim(i)) && offsets[i] + to.dim(i) <= from.dim(i));
        if !fits {
            return stage::error(format!(
                "slice {to:?} at {offsets:?} of {from:?}: the box must lie inside, at multiples of its own extents"
            ));
        }
        let offsets = offsets.map(|o| o as u32);
        Tile::from_id(stage::emit(|b| b.slice(self.id(), &offsets, to)))
    }

    /// This tile, but with `piece` in place of the box of its shape that starts at `at`. Its extents divide the tile's,
    /// and each coordinate is a multiple of its extent.
    #[track_caller]
    pub fn insert<U: Shape, const R: usize>(self, at: impl Coords<R>, piece: Tile<T, U>) -> Self {
        let (whole, part) = (S::shape(), U::shape());
        let fits = whole.rank() == R && part.rank() == R && (0..R).all(|i| part.dim(i) <= whole.dim(i));
        if !fits {
            return stage::error(format!("insert {part:?} into {whole:?}: it is larger"));
        }
        let at = at.coords();
        let mut all = piece.id();
        let mut inside = None;
        stage::emit(|b| {
            for axis in (0..R).filter(|&i| part.dim(i) < whole.dim(i)) {
                // Copies of the piece side by side, of which one counts.
                let extent = b.i32(part.dim(axis) as i32);
                while b.ty(all).shape().dim(axis) < whole.dim(axis) {
                    all = b.join(all, all, axis);
                }
                let wanted = b.binary(BinaryOp::Div, at[axis], extent);
                let [extent, wanted] = [extent, wanted].map(|x| b.broadcast(x, whole));
                let place = b.iota(whole, axis);
                let number = b.binary(BinaryOp::Div, place, extent);
                let here = b.compare(CmpOp::Eq, number, wanted);
                inside = Some(inside.map_or(here, |before| b.binary(BinaryOp::And, before, here)));
            }
            if let Some(inside) = inside {
                all = b.select(inside, all, self.id());
            }
        });
        Tile::from_id(all)
    }

    /// This tile and then `other` along `axis`; the annotated result is twice as long there.
    #[track_caller]
    pub fn join<U: Shape>(self, other: Tile<T, S>, axis: usize) -> Tile<T, U> {
        let (from, to) = (S::shape(), U::shape());
        if axis >= from.rank() || from.with(axis, 2 * from.dims()[axis]) != to {
            return stage::error(format!("join of two {from:?} along axis {axis} does not give {to:?}"));
        }
        Tile::from_id(stage::emit(|b| b.join(self.id(), other.id(), axis)))
    }

    /// Axes reordered: axis i of the annotated result is axis `axes[i]` of this tile.
    #[track_caller]
    pub fn permute<U: Shape, const R: usize>(self, axes: [usize; R]) -> Tile<T, U> {
        let (from, to) = (S::shape(), U::shape());
        let mut seen = [false; R];
        axes.iter().for_each(|&a| {
            if a < R {
                seen[a] = true
            }
        });
        let fits = from.rank() == R
            && to.rank() == R
            && seen.iter().all(|&s| s)
            && (0..R).all(|i| to.dims()[i] == from.dims()[axes[i]]);
        if !fits {
            return stage::error(format!("permute {axes:?} of {from:?} does not give {to:?}"));
        }
        Tile::from_id(stage::emit(|b| b.transpose(self.id(), &axes)))
    }
}

impl<T: Element, const M: usize, const N: usize> Tile<T, D2<M, N>> {
    /// The transpose.
    #[track_caller]
    pub fn t(self) -> Tile<T, D2<N, M>> {
        self.permute([1, 0])
    }
}

impl<T: Element, const A: usize, const B: usize, const C: usize> Tile<T, D3<A, B, C>> {
    /// The last two axes exchanged.
    #[track_caller]
    pub fn t(self) -> Tile<T, D3<A, C, B>> {
        self.permute([0, 2, 1])
    }
}
