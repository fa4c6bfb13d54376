//! Products of what the model does not multiply: 8-bit integers, and f32 rounded to tf32.

use super::{Input, Trial};
use kiln::prelude::*;

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
