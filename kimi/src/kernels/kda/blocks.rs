//! A chunk in blocks: tiles by warp, lower triangular matrices put together, and the inverse.

use kiln::prelude::*;

/// `[C, B]` as a matrix for each part of the channels and each block.
#[device]
pub fn split<
    T: Float,
    const H: usize,
    const N: usize,
    const C: usize,
    const B: usize,
    const S: usize,
    const W: usize,
>(
    x: Tile<T, C, B>,
) -> Tile<T, N, S, W> {
    x.reshape::<D3<C, H, W>>().permute::<D3<H, C, W>, 3>([1, 0, 2]).reshape()
}

/// What [`split`] took apart.
#[device]
pub fn joined<
    T: Float,
    const H: usize,
    const N: usize,
    const C: usize,
    const B: usize,
    const S: usize,
    const W: usize,
>(
    x: Tile<T, N, S, W>,
) -> Tile<T, C, B> {
    x.reshape::<D3<H, C, W>>().permute::<D3<C, H, W>, 3>([1, 0, 2]).reshape()
}

/// A value for each token, in the shape of what [`split`] gives.
#[device]
pub fn by_token<const H: usize, const N: usize, const C: usize, const S: usize, const W: usize>(
    x: Tile<f32, C>,
) -> Tile<f32, N, S, W> {
    x.reshape::<D3<1, C, 1>>().broadcast::<D3<H, C, W>>().reshape()
}

/// Two sums over the parts of the channels, in one exchange between warps. `C` = 2·`S`.
#[device]
pub fn both_summed<const H: usize, const C: usize, const S: usize>(
    x: Tile<f32, H, C, S>,
    y: Tile<f32, H, C, S>,
) -> (Tile<f32, C, S>, Tile<f32, C, S>) {
    let both: Tile<f32, C, C> = x.join::<D3<H, C, C>>(y, 2).sum::<0>();
    (both.slice([0, 0]), both.slice([0, S]))
}

/// Element i of row i, and of row i + `S`, …
#[device]
pub fn diagonal<const C: usize, const S: usize>(x: Tile<f32, C, S>) -> Tile<f32, C> {
    let here = (iota::<C>().col() - iota::<S>().row()) % S == 0;
    select(here, x, 0.0).sum::<1>()
}

/// Lower triangular blocks of twice the width: `own` on the diagonal, `corner` (in the second rows) left of it.
#[device]
pub fn beside<const C: usize, const W: usize, const W2: usize>(
    own: Tile<f32, C, W>,
    corner: Tile<f32, C, W>,
    second: Tile<bool, C>,
) -> Tile<f32, C, W2> {
    let left = select(second.col(), corner, own);
    let right = select(second.col(), own, 0.0);
    left.join(right, 1)
}

/// (I + A)⁻¹ for strictly lower triangular matrices A of `S` rows.
///
/// Blocks of 1, 2, 4, … rows are inverted in place: with T the inverse of the blocks on the diagonal so far and A_b the
/// part of A that joins two of them, the inverse of the joined blocks is T − T A_b T. No entry of these inverses
/// exceeds 1 (`docs/kda.md`), so nothing grows on the way.
#[device]
pub fn invert<X: Float + DotElement<Acc = f32>, const N: usize, const S: usize>(
    a: Tile<f32, N, S, S>,
) -> Tile<f32, N, S, S> {
    let row: Tile<i32, N, S, S> = iota::<S>().reshape::<D3<1, S, 1>>().broadcast();
    let column: Tile<i32, N, S, S> = iota::<S>().reshape::<D3<1, 1, S>>().broadcast();
    let identity: Tile<f32, N, S, S> = select(row == column, full(1.0), 0.0);
    let mut inverse = identity - select((row % 2 == 1) & (column + 1 == row), a, 0.0);
    for level in unroll(1..S.trailing_zeros() as usize) {
        let size = 1usize << level;
        let joins = (row / size % 2 == 1) & (column / size + 1 == row / size);
        let narrow = inverse.cast::<X>();
        let corner = dot_batch(narrow, select(joins, a, 0.0).cast::<X>(), zeros());
        inverse -= dot_batch(corner.cast::<X>(), narrow, zeros());
    }
    inverse
}
