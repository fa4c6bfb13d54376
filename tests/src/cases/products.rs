//! Products of what the model does not multiply, 8-bit integers and f32 rounded to tf32, and in a way that it does not
//! have: added up in memory.

use super::{Input, Trial};
use kiln::prelude::*;
use kimi::reference;

/// c = a·bᵀ, a `[m, k]`, b `[n, k]`. Program: a block of c.
#[kernel(deny(spill, wgmma_serialized, bank_conflict, fallback))]
fn product<T: DotElement, const M: usize, const N: usize, const K: usize>(
    a: &View<T, 2>,
    b: &View<T, 2>,
    c: &mut Block<T::Acc, M, N>,
) {
    let (i, j) = (c.origin(0), c.origin(1));
    let mut sum: Tile<T::Acc, M, N> = zeros();
    for k in (0..a.dim(1)).step_by(K) {
        let (a, b): (Tile<T, M, K>, Tile<T, N, K>) = (a.load((i, k)), b.load((j, k)));
        sum = dot_with(a, b.t(), sum, Precision::Tf32);
    }
    c.store(sum);
}

fn products<T: DotElement, const K: usize>(
    trial: &mut Trial,
    number: impl Fn(&mut Trial) -> f64,
    bound: f64,
) -> anyhow::Result<()> {
    // Sizes that blocks divide and others; rows begin at multiples of 16, as bulk copies want them.
    for (m, n, k) in [(128, 128, 128), (100, 200, 112), (256, 136, 320)] {
        let mut operand = |rows: usize| -> anyhow::Result<Input> {
            let values = (0..rows * k).map(|_| number(trial)).collect();
            trial.input::<T>(&[rows, k], values)
        };
        let (a, b) = (operand(m)?, operand(n)?);
        let (x, y) = (&a.values, &b.values);
        let want: Vec<f64> =
            (0..m * n).map(|e| (0..k).map(|l| x[e / n * k + l] * y[e % n * k + l]).sum::<f64>()).collect();
        let mut small = trial.poisoned::<T::Acc>(&[m, n])?;
        product::<T, 64, 128, K>(&a.tensor, &b.tensor, &mut small).run()?;
        trial.compare(&format!("{m} x {n} x {k}, blocks of 64 rows"), &small, &want, n, bound)?;
        let mut large = trial.poisoned::<T::Acc>(&[m, n])?;
        product::<T, 128, 128, K>(&a.tensor, &b.tensor, &mut large).run()?;
        trial.compare(&format!("{m} x {n} x {k}, blocks of 128 rows"), &large, &want, n, bound)?;
    }
    Ok(())
}

/// All numbers that there are, bit for bit.
pub(super) fn of_i8(trial: &mut Trial) -> anyhow::Result<()> {
    products::<i8, 128>(trial, |t| t.numbers.below(256) as f64 - 128.0, 0.0)
}

pub(super) fn of_u8(trial: &mut Trial) -> anyhow::Result<()> {
    products::<u8, 64>(trial, |t| t.numbers.below(256) as f64, 0.0)
}

/// Operands just below numbers of tf32, which rounding hardly changes: to cut them off would lose a whole unit of tf32.
pub(super) fn of_tf32(trial: &mut Trial) -> anyhow::Result<()> {
    let below = |x: f64| f64::from(f32::from_bits(((x as f32).to_bits() & !0x1fff) - 1));
    products::<f32, 32>(trial, |t| below(t.numbers.normal()), 1e-5)
}

/// y += a·bᵀ, with the inner dimension of each tile of y shared out (split-K): every share is added where it belongs. Programs:
/// as many as there are, each of one tile's share after the other.
#[kernel(deny(spill, wgmma_serialized, bank_conflict))]
fn added<Y: Float, const M: usize, const N: usize, const K: usize, const SHARES: usize>(
    a: &View<bf16, 2>,
    b: &View<bf16, 2>,
    y: &mut View<Y, 2>,
) {
    let (rows, columns) = ((y.dim(0) + (M - 1)) / M, (y.dim(1) + (N - 1)) / N);
    let each = (a.dim(1) + (SHARES * K - 1)) / (SHARES * K) * K;
    for work in (program_id(0)..rows * columns * SHARES).step_by(num_programs(0)) {
        let (tile, from) = (work / SHARES, work % SHARES * each);
        let (i, j) = (tile / columns * M, tile % columns * N);
        let mut sum: Tile<f32, M, N> = zeros();
        for k in (from..(from + each).min(a.dim(1))).step_by(K) {
            let (a, b): (Tile<bf16, M, K>, Tile<bf16, N, K>) = (a.load((i, k)), b.load((j, k)));
            sum = dot(a, b.t(), sum);
        }
        // SAFETY: the launch does nothing else with y.
        unsafe { y.store_add((i, j), sum.cast::<Y>()) };
    }
}

fn added_to<Y: Float>(trial: &mut Trial, bound: f64) -> anyhow::Result<()> {
    // Rows of y that bulk copies can write, and such that threads have to: of 8 bytes, and of single elements.
    for (m, n, k) in [(256, 256, 512), (200, 136, 328), (70, 36, 200), (130, 33, 264)] {
        let (a, b) = (trial.normal::<bf16>(&[m, k], 1.0)?, trial.normal::<bf16>(&[n, k], 1.0)?);
        let before = trial.normal::<Y>(&[m, n], 1.0)?;
        let products = reference::linear(&a.values, &b.values, k);
        let want: Vec<f64> = before.values.iter().zip(products).map(|(x, y)| x + y).collect();
        macro_rules! shares {
            ($($m:literal by $n:literal in $s:literal)*) => {$({
                let mut y = before.tensor.deep_clone()?;
                added::<Y, $m, $n, 64, $s>(&a.tensor, &b.tensor, &mut y).grid(13).run()?;
                let what = format!("{m} x {n} x {k}, tiles of {} by {} in {} shares", $m, $n, $s);
                trial.compare(&what, &y, &want, n, bound)?;
            })*};
        }
        shares! { 64 by 64 in 1  64 by 64 in 3  128 by 128 in 4 }
    }
    Ok(())
}

pub(super) fn added_to_f32(trial: &mut Trial) -> anyhow::Result<()> {
    added_to::<f32>(trial, 1e-5)
}

/// Sums are rounded at each addition.
pub(super) fn added_to_bf16(trial: &mut Trial) -> anyhow::Result<()> {
    added_to::<bf16>(trial, 1e-2)
}

pub(super) fn added_to_f16(trial: &mut Trial) -> anyhow::Result<()> {
    added_to::<f16>(trial, 2e-3)
}
