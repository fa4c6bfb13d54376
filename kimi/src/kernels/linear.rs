//! Linear layers: `y = x·Wᵀ` with W `[out, in]` as checkpoints store it.

use kiln::prelude::*;

/// x `[n, in]`, weight `[out, in]` → y `[n, out]`. Products of `C`, sums in f32. `ONCE`: the weight is read once, and the
/// second-level cache is not to keep it.
#[kernel(evict_first(weight if ONCE), deny(spill, wgmma_serialized))]
pub fn linear<T, W, C, Y, const M: usize, const N: usize, const K: usize, const ONCE: bool>(
    x: &View<T, 2>,
    weight: &View<W, 2>,
    y: &mut Block<Y, M, N>,
) where
    T: Float,
    W: Float,
    C: Float + DotElement<Acc = f32>,
    Y: Float,
{
    let mut acc: Tile<f32, M, N> = zeros();
    for k in (0..x.dim(1)).step_by(K) {
        let x: Tile<T, M, K> = x.load((y.origin(0), k));
        let weight: Tile<W, N, K> = weight.load((y.origin(1), k));
        acc = dot(x.cast::<C>(), weight.cast::<C>().t(), acc);
    }
    y.store(acc.cast::<Y>());
}

/// How many steps' operands fit into the shared memory of a multiprocessor that a program has to itself; `bytes` of each.
#[device]
fn stages(bytes: usize) -> u8 {
    ((200 << 10) / bytes) as u8
}

/// The row and column of a tile's number, where `band` rows at a time are counted column by column.
#[device]
fn in_bands(tile: Tile<i32>, rows: Tile<i32>, columns: Tile<i32>, band: usize) -> (Tile<i32>, Tile<i32>) {
    let number = tile / (columns * band);
    let within = tile - number * columns * band;
    let height = (rows - number * band).min(band);
    (number * band + within % height, within / height)
}

/// For results of many tiles: [`linear`] by a fixed number of programs, each of one tile after the other, so that the
/// next tile's operands are on their way while this one's sums are stored. A tile has `N` columns and `E` strips of `X`
/// more, so that their number need not be a power of two. Bands of `BAND` rows of tiles are done column by column, which
/// keeps what neighbours read in the cache. `P` programs of a cluster, one below the other, share the weight. `ONCE` as in
/// [`linear`]: the rows are one band. Programs along axis 0.
#[kernel(
    cluster = P,
    evict_first(weight if ONCE),
    deny(spill, wgmma_serialized, bank_conflict),
    tune(M, N, E, X, P in [
        (128, 256, 0, 64, 1), (128, 256, 0, 64, 2), (128, 128, 1, 64, 1), (128, 128, 1, 64, 2), (128, 128, 0, 64, 1),
        (64, 256, 0, 64, 1), (64, 128, 1, 16, 1), (64, 128, 0, 64, 1),
    ])
)]
pub fn linear_tiles<
    T,
    W,
    C,
    Y,
    const M: usize,
    const N: usize,
    const E: usize,
    const X: usize,
    const K: usize,
    const BAND: usize,
    const P: u8,
    const ONCE: bool,
>(
    x: &View<T, 2>,
    weight: &View<W, 2>,
    y: &mut View<Y, 2>,
) where
    T: Float,
    W: Float,
    C: Float + DotElement<Acc = f32>,
    Y: Float,
{
    let (programs, width) = (P as usize, N + E * X);
    let rows = (y.dim(0) + (M * programs - 1)) / (M * programs);
    let columns = (y.dim(1) + (width - 1)) / width;
    for tile in (program_id(0) / programs..rows * columns).step_by(num_programs(0) / programs) {
        let (row, column) = in_bands(tile, rows, columns, BAND / programs);
        let (row, column) = ((row * programs + program_id(0) % programs) * M, column * width);
        let mut acc: Tile<f32, M, N> = zeros();
        let mut strips: [Tile<f32, M, X>; E] = [zeros(); E];
        let bytes = (M * T::DTYPE.size() + width * W::DTYPE.size()) * K;
        for k in (0..x.dim(1)).step_by(K).stages(stages(bytes)) {
            let x: Tile<T, M, K> = x.load((row, k));
            let x = x.cast::<C>();
            let near: Tile<W, N, K> = weight.load((column, k));
            acc = dot(x, near.cast::<C>().t(), acc);
            for e in unroll(0..E) {
                let far: Tile<W, X, K> = weight.load((column + (N + e * X), k));
                strips[e] = dot(x, far.cast::<C>().t(), strips[e]);
            }
        }
        // SAFETY: a tile is one program's.
        unsafe { y.store((row, column), acc.cast::<Y>()) };
        for e in unroll(0..E) {
            // SAFETY: as above.
            unsafe { y.store((row, column + (N + e * X)), strips[e].cast::<Y>()) };
        }
    }
}

/// Of 8-bit floats with a scale for each row of x and of the weight: y `[n, out]` = (x·Wᵀ) · x_scale · weight_scale. x
/// `[n, in]`, weight `[out, in]` e4m3, x_scale `[n]`, weight_scale `[out]` f32; sums in f32. Programs as in
/// [`linear_tiles`].
#[kernel(
    cluster = P,
    deny(wgmma_serialized, bank_conflict),
    tune(M, N, K, P in [(128, 256, 128, 2), (128, 256, 128, 1), (128, 128, 128, 1), (64, 256, 128, 1), (64, 128, 128, 1)])
)]
pub fn linear_scaled<Y: Float, const M: usize, const N: usize, const K: usize, const BAND: usize, const P: u8>(
    x: &View<f8e4m3, 2>,
    weight: &View<f8e4m3, 2>,
    x_scale: &View<f32, 1>,
    weight_scale: &View<f32, 1>,
    y: &mut View<Y, 2>,
) {
    let programs = P as usize;
    let rows = (y.dim(0) + (M * programs - 1)) / (M * programs);
    let columns = (y.dim(1) + (N - 1)) / N;
    for tile in (program_id(0) / programs..rows * columns).step_by(num_programs(0) / programs) {
        let (row, column) = in_bands(tile, rows, columns, BAND / programs);
        let (row, column) = ((row * programs + program_id(0) % programs) * M, column * N);
        let mut acc: Tile<f32, M, N> = zeros();
        for k in (0..x.dim(1)).step_by(K) {
            let x: Tile<f8e4m3, M, K> = x.load((row, k));
            let weight: Tile<f8e4m3, N, K> = weight.load((column, k));
            acc = dot(x, weight.t(), acc);
        }
        let x_scale: Tile<f32, M> = x_scale.load(row);
        let weight_scale: Tile<f32, N> = weight_scale.load(column);
        // SAFETY: a tile is one program's.
        unsafe { y.store((row, column), (acc * x_scale.col() * weight_scale.row()).cast::<Y>()) };
    }
}

/// For one row, or few: a row of x against `N` rows of the weight; the weight is read once per row of x. `ONCE` as in
/// [`linear`].
///
/// Program: (row of x, `N` outputs). A warp takes whole rows of the weight, `C` chunks of `B` columns at a time, all of
/// whose loads are in flight together. `WHOLE`: that is all of a row, and the weight is loaded before the launch that writes
/// x has ended. For narrow weights; wide ones take longer so (entry 92 of `docs/performance.md`).
#[kernel(warps = P, evict_first(weight if ONCE), settled(weight if WHOLE))]
pub fn linear_row<
    T: Float,
    W: Float,
    Y: Float,
    const N: usize,
    const C: usize,
    const B: usize,
    const P: u8,
    const WHOLE: bool,
    const ONCE: bool,
>(
    x: &View<T, 2>,
    weight: &View<W, 2>,
    y: &mut Block<Y, 1, N>,
) {
    let x = x.select(0, program_id(0));
    let acc = if WHOLE {
        chunk_products::<T, W, N, C, B>(&x, weight, y.origin(1), full(0.0), zeros())
    } else {
        row_products::<T, W, N, C, B>(&x, weight, y.origin(1))
    };
    y.store(acc.sum::<1>().cast::<Y>().reshape());
}

/// Products of a row x `[in]` with rows `first ..` of a weight `[out, in]`, summed over columns that are a multiple of
/// `B` apart; the caller sums the rest.
#[device]
pub(super) fn row_products<T: Float, W: Float, const N: usize, const C: usize, const B: usize>(
    x: &View<T, 1>,
    weight: &View<W, 2>,
    first: Tile<i32>,
) -> Tile<f32, N, B> {
    let mut acc: Tile<f32, N, B> = zeros();
    for k in (0..x.dim(0)).step_by(C * B) {
        acc = chunk_products::<T, W, N, C, B>(x, weight, first, k, acc);
    }
    acc
}

/// [`row_products`] of `C`·`B` columns from k on, added to `acc`.
#[device]
fn chunk_products<T: Float, W: Float, const N: usize, const C: usize, const B: usize>(
    x: &View<T, 1>,
    weight: &View<W, 2>,
    first: Tile<i32>,
    k: Tile<i32>,
    acc: Tile<f32, N, B>,
) -> Tile<f32, N, B> {
    let weights: [Tile<W, N, B>; C] = std::array::from_fn(|c| weight.load((first, k + c * B)));
    let inputs: [Tile<T, B>; C] = std::array::from_fn(|c| x.load(k + c * B));
    let mut acc = acc;
    for c in unroll(0..C) {
        acc += weights[c].cast::<f32>() * inputs[c].cast::<f32>().row();
    }
    acc
}

/// [`linear`] with the inner dimension shared out among programs, where the tiles of y alone are too few to keep the
/// memory busy. partial `[parts, n, out]` f32. Program: (part, row tile, column tile).
#[kernel(evict_first(weight), deny(spill, wgmma_serialized))]
pub fn linear_part<T, W, const M: usize, const N: usize, const K: usize>(
    x: &View<T, 2>,
    weight: &View<W, 2>,
    partial: &mut Block<f32, 1, M, N>,
) where
    T: Float + DotElement<Acc = f32>,
    W: Float,
{
    let share = (x.dim(1) + num_programs(0) * K - 1) / (num_programs(0) * K) * K;
    let from = program_id(0) * share;
    let mut acc: Tile<f32, M, N> = zeros();
    for k in (from..(from + share).min(x.dim(1))).step_by(K) {
        let x: Tile<T, M, K> = x.load((partial.origin(1), k));
        let weight: Tile<W, N, K> = weight.load((partial.origin(2), k));
        acc = dot(x, weight.cast::<T>().t(), acc);
    }
    partial.store(acc.reshape());
}

/// The parts of [`linear_part`] put together, in order: partial `[parts, n, out]` f32 → y `[n, out]`. Program: (row, `B`
/// columns). `S` ≥ parts is a power of two.
#[kernel(warps = 1)]
pub fn sum_parts<Y: Float, const S: usize, const B: usize>(partial: &View<f32, 3>, y: &mut Block<Y, 1, B>) {
    let parts: Vec<Tile<f32, 1, 1, B>> = (0..S).map(|part| partial.load((part, program_id(0), y.origin(1)))).collect();
    let mut sum: Tile<f32, B> = zeros();
    for part in parts {
        sum += part.reshape::<D1<B>>();
    }
    y.store(sum.cast::<Y>().reshape());
}
