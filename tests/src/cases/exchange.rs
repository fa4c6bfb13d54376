//! What programs of a cluster exchange (`Tile::cluster_sum`): rows that are spread over them, and numbers that go
//! round; and numbers that go around a whole grid (`grid_sync`).

use super::Trial;
use kiln::prelude::*;
use kiln::{DType, Tensor, bf16};
use kimi::reference;

/// Softmax of rows less its mean, in clusters of `C` programs: x, out `[rows, columns]`, columns ≤ C·N. Program: `N`
/// columns of a share of the rows, `R` rows at a time.
#[kernel(cluster = C, deny(spill))]
fn spread<const R: usize, const N: usize, const C: u8>(x: &View<f32, 2>, out: &mut View<f32, 2>) {
    let programs = usize::from(C);
    let (share, shares) = (program_id(0) / programs, num_programs(0) / programs);
    let at = program_id(0) % programs * N;
    for row in (share * R..x.dim(0)).step_by(shares * R) {
        let part: Tile<f32, R, N> = x.load_or((row, at), f32::NEG_INFINITY);
        let e = (part - part.amax::<1>().cluster_max().col()).exp();
        let p = e * e.sum::<1>().cluster_sum().recip().col();
        let inside = ((iota::<N>() + at).row().tile::<R>() < x.dim(1)).cast::<f32>();
        let mean = p.sum::<1>().cluster_sum() / inside.sum::<1>().cluster_sum();
        // SAFETY: a program stores its own columns of its own rows.
        unsafe { out.store((row, at), p - mean.col()) };
    }
}

/// Each program's numbers become an eighth of half of what its neighbour has and of what all have, seven times over:
/// x, out `[programs, N]`. The neighbour's are read from where it has stored them.
#[kernel(cluster = C, deny(spill))]
fn passed_on<const N: usize, const C: u8>(x: &View<f32, 2>, out: &mut View<f32, 2>) {
    let (program, programs) = (program_id(0), usize::from(C));
    let neighbour = program / programs * programs + (program + 1) % programs;
    let mut own: Tile<f32, 1, N> = x.load((program, 0));
    for _ in 0..7 {
        // SAFETY: a program stores its own row. Who reads it has met this program since it was stored, and meets it
        // again before it is replaced.
        unsafe { out.store((program, 0), own) };
        let sum = own.cluster_sum();
        let theirs: Tile<f32, 1, N> = out.load((neighbour, 0));
        own = (theirs * 0.5 + sum) * 0.125;
        own = own.max(own.cluster_max() * -1.0);
    }
    // SAFETY: as above.
    unsafe { out.store((program, 0), own) };
}

/// `y = x·Wᵀ`, x `[n, in]`, weight `[out, in]`, y `[n, out]`: a cluster shares the inner dimension of a tile and adds up what its
/// programs have. Each stores a share of the rows. Program: (`C` for each row of tiles, column of tiles).
#[kernel(cluster = C, deny(spill, wgmma_serialized, bank_conflict))]
fn summed_up<const M: usize, const N: usize, const K: usize, const C: u8>(
    x: &View<bf16, 2>,
    weight: &View<bf16, 2>,
    y: &mut View<f32, 2>,
) {
    let programs = usize::from(C);
    let (part, row, column) = (program_id(0) % programs, program_id(0) / programs * M, program_id(1) * N);
    let share = (x.dim(1) + (K * programs - 1)) / (K * programs) * K;
    let mut sum: Tile<f32, M, N> = zeros();
    for k in (part * share..(part * share + share).min(x.dim(1))).step_by(K) {
        let x: Tile<bf16, M, K> = x.load((row, k));
        let weight: Tile<bf16, N, K> = weight.load((column, k));
        sum = dot(x, weight.t(), sum);
    }
    let sum = sum.cluster_sum();
    let above = part * (M / programs);
    let mut own = y.narrow(0, row + above, M / programs);
    // SAFETY: a share is one program's; the other rows lie outside of its view.
    unsafe { own.store((-above, column), sum) };
}

/// Each program's numbers become thrice themselves and what another has, which is further on in each of the rounds: x, out
/// `[programs, N]`, read from where that one has stored them.
#[kernel]
fn gone_around<const N: usize>(x: &View<i32, 2>, rounds: i32, out: &mut View<i32, 2>) {
    let (program, programs) = (program_id(0) + num_programs(0) * program_id(1), num_programs(0) * num_programs(1));
    let mut own: Tile<i32, 1, N> = x.load((program, 0));
    for round in 0..rounds {
        // SAFETY: a program stores its own row, after a meeting with those that have read it.
        unsafe { out.store((program, 0), own) };
        grid_sync();
        let theirs: Tile<i32, 1, N> = out.load(((program + round + 1) % programs, 0));
        grid_sync();
        own = own * 3 + theirs;
    }
    // SAFETY: as above.
    unsafe { out.store((program, 0), own) };
}

/// What [`passed_on`] computes of `[programs][N]`, operation by operation.
fn passed_on_by_host(x: &[Vec<f32>], cluster: usize) -> Vec<Vec<f32>> {
    let all = |x: &[Vec<f32>], program: usize, i: usize, f: fn(f32, f32) -> f32| {
        let first = program / cluster * cluster;
        x[first..first + cluster].iter().map(|row| row[i]).reduce(f).expect("a cluster has programs")
    };
    let each = |x: &[Vec<f32>], f: &dyn Fn(usize, usize) -> f32| -> Vec<Vec<f32>> {
        (0..x.len()).map(|program| (0..x[program].len()).map(|i| f(program, i)).collect()).collect()
    };
    (0..7).fold(x.to_vec(), |x, _| {
        let neighbour = |program: usize| program / cluster * cluster + (program + 1) % cluster;
        let mixed = each(&x, &|p, i| (x[neighbour(p)][i] * 0.5 + all(&x, p, i, |a, b| a + b)) * 0.125);
        each(&mixed, &|p, i| mixed[p][i].max(-all(&mixed, p, i, f32::max)))
    })
}

/// Rows that the clusters' shares divide and others, more rows than shares and fewer.
pub(super) fn rows_over_clusters(trial: &mut Trial) -> anyhow::Result<()> {
    for (rows, columns) in [(1, 64), (37, 256), (50, 200)] {
        let x = trial.normal::<f32>(&[rows, columns], 3.0)?;
        let want: Vec<f64> = (x.values.chunks_exact(columns))
            .flat_map(|row| reference::log_softmax(row).into_iter().map(|y| y.exp() - 1.0 / columns as f64))
            .collect();
        for clusters in [1, 3] {
            let mut out = trial.poisoned::<f32>(&[rows, columns])?;
            let what = |c: usize| format!("{rows} x {columns}: {clusters} clusters of {c}");
            spread::<4, 128, 2>(&x.tensor, &mut out).grid([2 * clusters]).run()?;
            trial.compare(&what(2), &out, &want, columns, 1e-5)?;
            out.fill(f64::NAN)?;
            spread::<2, 64, 4>(&x.tensor, &mut out).grid([4 * clusters]).run()?;
            trial.compare(&what(4), &out, &want, columns, 1e-5)?;
            out.fill(f64::NAN)?;
            spread::<8, 32, 8>(&x.tensor, &mut out).grid([8 * clusters]).run()?;
            trial.compare(&what(8), &out, &want, columns, 1e-5)?;
        }
    }
    Ok(())
}

/// Bit for bit: ranks are added in their order, and what was stored before an exchange is what is read after it.
pub(super) fn passed_on_in_clusters(trial: &mut Trial) -> anyhow::Result<()> {
    const N: usize = 512;
    let programs = 32;
    let x = trial.normal::<f32>(&[programs, N], 1.0)?;
    let rows: Vec<Vec<f32>> = x.values.chunks_exact(N).map(|row| row.iter().map(|&v| v as f32).collect()).collect();
    for cluster in [1, 2, 4, 8] {
        let mut out = trial.poisoned::<f32>(&[programs, N])?;
        match cluster {
            1 => passed_on::<N, 1>(&x.tensor, &mut out).grid([programs]).run()?,
            2 => passed_on::<N, 2>(&x.tensor, &mut out).grid([programs]).run()?,
            4 => passed_on::<N, 4>(&x.tensor, &mut out).grid([programs]).run()?,
            _ => passed_on::<N, 8>(&x.tensor, &mut out).grid([programs]).run()?,
        }
        let want: Vec<f64> = passed_on_by_host(&rows, cluster).concat().into_iter().map(f64::from).collect();
        trial.compare(&format!("clusters of {cluster}"), &out, &want, N, 0.0)?;
    }
    Ok(())
}

/// Bit for bit, with as many programs as multiprocessors or threads, and twice as many; one launch after the other.
pub(super) fn gone_around_the_grid(trial: &mut Trial) -> anyhow::Result<()> {
    const N: usize = 64;
    for (grid, rounds) in [([132, 1], 40), ([12, 22], 7), ([1, 1], 3), ([3, 2], 100)] {
        let programs = grid[0] * grid[1];
        let rows: Vec<Vec<i32>> =
            (0..programs).map(|p| (0..N).map(|i| (p * 31 + i * 7) as i32 % 100).collect()).collect();
        let x = Tensor::from_slice(&rows.concat(), &[programs, N], trial.device)?;
        let each = |rows: Vec<Vec<i32>>, round: usize| -> Vec<Vec<i32>> {
            let other = |p: usize| &rows[(p + round + 1) % programs];
            let sum = |p: usize, i: usize| rows[p][i].wrapping_mul(3).wrapping_add(other(p)[i]);
            (0..programs).map(|p| (0..N).map(|i| sum(p, i)).collect()).collect()
        };
        let want = (0..rounds).fold(rows, each).concat();
        for _ in 0..5 {
            let mut out = Tensor::zeros(&[programs, N], DType::I32, trial.device)?;
            gone_around::<N>(&x, rounds as i32, &mut out).grid(grid).run()?;
            trial.expect(&format!("a grid of {grid:?}, {rounds} rounds"), out.to_vec::<i32>()? == want);
        }
    }
    Ok(())
}

/// Large tiles, after products: in the memory through which their operands came. The last parts may have nothing.
pub(super) fn products_summed_up(trial: &mut Trial) -> anyhow::Result<()> {
    for (rows, inputs, outputs) in [(150, 520, 200), (65, 264, 33), (7, 72, 130)] {
        let weight = trial.normal::<bf16>(&[outputs, inputs], 1.0)?;
        let x = trial.normal::<bf16>(&[rows, inputs], 1.0)?;
        let want = reference::linear(&x.values, &weight.values, inputs);
        let mut y = trial.poisoned::<f32>(&[rows, outputs])?;
        macro_rules! tiles {
            ($($m:literal by $n:literal, clusters of $c:literal;)*) => {$({
                y.fill(f64::NAN)?;
                summed_up::<$m, $n, 64, $c>(&x.tensor, &weight.tensor, &mut y)
                    .grid([rows.div_ceil($m) * $c, outputs.div_ceil($n)])
                    .run()?;
                let what = format!("{rows} rows, {inputs} to {outputs}, tiles of {} by {}, clusters of {}", $m, $n, $c);
                trial.compare(&what, &y, &want, outputs, 1e-5)?;
            })*};
        }
        tiles! { 16 by 64, clusters of 4; 64 by 64, clusters of 8; 128 by 128, clusters of 2; 128 by 128, clusters of 4; }
    }
    Ok(())
}
