//! Kernels whose author says who does what: roles and channels (`kiln::lang`).

use super::Trial;
use kiln::bf16;
use kiln::prelude::*;

/// c = a·bᵀ: one role copies, one computes; registers move between them. a `[m, k]`, b `[n, k]`. Program: a block of c.
#[kernel(deny(spill, wgmma_serialized, setmaxnreg_ignored))]
fn product<const M: usize, const N: usize, const K: usize>(
    a: &View<bf16, 2>,
    b: &View<bf16, 2>,
    c: &mut Block<f32, M, N>,
) {
    let (i, j, depth) = (c.origin(0), c.origin(1), a.dim(1));
    let (mut to, mut from) = channel::<(Tile<bf16, M, K>, Tile<bf16, N, K>), 3>();
    roles([
        role(4, || {
            for k in (0..depth).step_by(K) {
                to.send((a.load((i, k)), b.load((j, k))));
            }
        })
        .registers(40),
        role(8, || {
            let mut sum: Tile<f32, M, N> = zeros();
            for _ in (0..depth).step_by(K) {
                let slot = from.receive();
                sum = dot(slot.0, slot.1.t(), sum);
                slot.release();
            }
            c.store(sum);
        })
        .registers(232),
    ]);
}

/// c = sigmoid(scale ⊙ (a·bᵀ)), scale `[m]`, in three roles: the last finishes a block of columns while the one before
/// multiplies for the next. Program: `M` rows of c.
#[kernel(deny(spill, wgmma_serialized, setmaxnreg_ignored))]
fn finished<const M: usize, const N: usize, const K: usize>(
    a: &View<bf16, 2>,
    b: &View<bf16, 2>,
    scale: &View<f32, 1>,
    c: &mut View<bf16, 2>,
) {
    let (i, depth, columns) = (program_id(0) * M, a.dim(1), b.dim(0));
    let (mut to, mut from) = channel::<(Tile<bf16, M, K>, Tile<bf16, N, K>), 4>();
    let (mut made, mut next) = channel::<Tile<f32, M, N>, 2>();
    roles([
        role(4, || {
            for j in (0..columns).step_by(N) {
                for k in (0..depth).step_by(K) {
                    to.send((a.load((i, k)), b.load((j, k))));
                }
            }
        })
        .registers(40),
        role(4, || {
            for _ in (0..columns).step_by(N) {
                let mut sum: Tile<f32, M, N> = zeros();
                for _ in (0..depth).step_by(K) {
                    let slot = from.receive();
                    sum = dot(slot.0, slot.1.t(), sum);
                    slot.release();
                }
                made.send(sum);
            }
        })
        .registers(232),
        role(4, || {
            let scale: Tile<f32, M> = scale.load(i);
            for j in (0..columns).step_by(N) {
                let slot = next.receive();
                let sum = *slot;
                slot.release();
                // SAFETY: a program stores the rows of its own block, each column once.
                unsafe { c.store((i, j), (sum * scale.col()).sigmoid().cast()) };
            }
        })
        .registers(232),
    ]);
}

/// Sizes that blocks divide and others, more steps than slots and fewer.
pub(super) fn products_in_roles(trial: &mut Trial) -> anyhow::Result<()> {
    for (m, n, k) in [(128, 256, 64), (100, 300, 104), (256, 520, 448)] {
        let a = trial.normal::<bf16>(&[m, k], 1.0)?;
        let b = trial.normal::<bf16>(&[n, k], 1.0 / (k as f64).sqrt())?;
        let scale = trial.normal::<f32>(&[m], 1.0)?;
        let sum = |i: usize, j: usize| (0..k).map(|l| a.values[i * k + l] * b.values[j * k + l]).sum::<f64>();
        let sums: Vec<f64> = (0..m * n).map(|e| sum(e / n, e % n)).collect();
        let shape = format!("{m} x {n} x {k}");

        let mut c = trial.poisoned::<f32>(&[m, n])?;
        product::<128, 256, 64>(&a.tensor, &b.tensor, &mut c).run()?;
        trial.compare(&format!("{shape}: two roles"), &c, &sums, n, 1e-5)?;

        let want = sums.iter().enumerate().map(|(e, s)| 1.0 / (1.0 + (-scale.values[e / n] * s).exp()));
        let mut c = trial.poisoned::<bf16>(&[m, n])?;
        finished::<64, 64, 64>(&a.tensor, &b.tensor, &scale.tensor, &mut c).grid([m.div_ceil(64)]).run()?;
        trial.compare(&format!("{shape}: three roles"), &c, &want.collect::<Vec<_>>(), n, 5e-3)?;
    }
    Ok(())
}
