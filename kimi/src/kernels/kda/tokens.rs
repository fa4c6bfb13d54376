//! Values of several tokens in one tile, of which one is meant by its place.

use kiln::prelude::*;

/// `all` with x in place i.
#[device]
pub(super) fn put<const N: usize, const A: usize, const E: usize>(
    i: Tile<i32>,
    x: Tile<f32, A, E>,
    all: Tile<f32, N, A, E>,
) -> Tile<f32, N, A, E> {
    let x: Tile<f32, 1, A, E> = x.reshape();
    if N == 1 { x.broadcast() } else { select(is::<N, A, E>(i), x.broadcast::<D3<N, A, E>>(), all) }
}

/// What is in place i.
#[device]
pub(super) fn take<const N: usize, const A: usize, const E: usize>(
    i: Tile<i32>,
    all: Tile<f32, N, A, E>,
) -> Tile<f32, A, E> {
    if N == 1 { all.sum::<0>() } else { select(is::<N, A, E>(i), all, 0.0).sum::<0>() }
}

/// Whether a token is the i-th.
#[device]
pub(super) fn is<const N: usize, const A: usize, const E: usize>(i: Tile<i32>) -> Tile<bool, N, A, E> {
    (iota::<N>() == i).reshape::<D3<N, 1, 1>>().broadcast()
}
