//! Shapes as types. Authors write `Tile<f32, 64, 128>`; the macros turn that into `Tile<f32, D2<64, 128>>`.

use kiln_codegen::ir;

/// The extents of a tile, known to the type. Extents are powers of two.
pub trait Shape: Copy + 'static {
    const RANK: usize;
    /// The extents as a value.
    fn shape() -> ir::Shape;
}

/// A shape of rank `R`.
#[diagnostic::on_unimplemented(
    message = "a tile of shape `{Self}` does not fit a view of rank {R}",
    label = "the tile's rank differs from the view's",
    note = "fix a dimension with `.select(dim, index)`, or give the tile an extent of 1 there and `.reshape()` it"
)]
pub trait Ranked<const R: usize>: Shape {}

/// A scalar.
#[derive(Clone, Copy, Debug)]
pub struct D0;
/// A vector.
#[derive(Clone, Copy, Debug)]
pub struct D1<const A: usize>;
/// A matrix, rows × columns.
#[derive(Clone, Copy, Debug)]
pub struct D2<const A: usize, const B: usize>;
#[derive(Clone, Copy, Debug)]
pub struct D3<const A: usize, const B: usize, const C: usize>;
#[derive(Clone, Copy, Debug)]
pub struct D4<const A: usize, const B: usize, const C: usize, const D: usize>;

macro_rules! shapes {
    ($($name:ident, $rank:literal, [$($p:ident),*];)*) => {$(
        impl<$(const $p: usize),*> Shape for $name<$($p),*> {
            const RANK: usize = $rank;
            fn shape() -> ir::Shape { ir::Shape::new(&[$($p as u32),*]) }
        }
        impl<$(const $p: usize),*> Ranked<$rank> for $name<$($p),*> {}
    )*};
}
shapes! {
    D0, 0, [];
    D1, 1, [A];
    D2, 2, [A, B];
    D3, 3, [A, B, C];
    D4, 4, [A, B, C, D];
}

/// A shape that has axis `A`, and what is left without it.
#[diagnostic::on_unimplemented(
    message = "shape `{Self}` has no axis {A}",
    label = "axes count from 0, outermost first"
)]
pub trait Axis<const A: usize>: Shape {
    type Without: Shape;
}

impl<const M: usize> Axis<0> for D1<M> {
    type Without = D0;
}
impl<const M: usize, const N: usize> Axis<0> for D2<M, N> {
    type Without = D1<N>;
}
impl<const M: usize, const N: usize> Axis<1> for D2<M, N> {
    type Without = D1<M>;
}
impl<const A: usize, const B: usize, const C: usize> Axis<0> for D3<A, B, C> {
    type Without = D2<B, C>;
}
impl<const A: usize, const B: usize, const C: usize> Axis<1> for D3<A, B, C> {
    type Without = D2<A, C>;
}
impl<const A: usize, const B: usize, const C: usize> Axis<2> for D3<A, B, C> {
    type Without = D2<A, B>;
}
