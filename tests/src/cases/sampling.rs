//! Picking the next token: the kernels against `Sampling::pick`, token for token.

use super::Trial;
use kiln::Tensor;
use kimi::sampling::Sampling;

/// Sizes of vocabularies around the kernels' block of 1024.
const VOCABULARIES: [usize; 5] = [1, 17, 1023, 1025, 3000];

/// Rows of logits: ordinary, with ties, with NaN and infinities, with one possible token.
fn rows(trial: &mut Trial, vocabulary: usize) -> Vec<Vec<f32>> {
    let mut rows: Vec<Vec<f32>> =
        (0..5).map(|_| trial.numbers.normals(vocabulary, 3.0).iter().map(|x| *x as f32).collect()).collect();
    for x in &mut rows[1] {
        *x = x.round();
    }
    for i in 0..vocabulary {
        match i % 3 {
            0 => rows[2][i] = f32::NAN,
            1 => rows[2][i] = f32::NEG_INFINITY,
            _ => {}
        }
    }
    if vocabulary > 2 {
        let only = trial.numbers.below(vocabulary);
        for (i, x) in rows[3].iter_mut().enumerate() {
            *x = if i == only { 1.0 } else { f32::NEG_INFINITY };
        }
    }
    // A row of which nothing can be picked has the documented answer only where something is a number.
    if rows[2].iter().all(|x| !x.is_finite()) {
        rows.remove(2);
    }
    rows
}

/// Counts the rows where the device picks another token.
fn differences(trial: &Trial, rows: &[Vec<f32>], sampling: &Sampling, positions: &[u32]) -> anyhow::Result<usize> {
    let vocabulary = rows[0].len();
    let logits = Tensor::from_slice(&rows.concat(), &[rows.len(), vocabulary], trial.device)?;
    let ops = trial.ops::<f32, f32>();
    let at = ops.integers(&positions.iter().map(|p| *p as i32).collect::<Vec<_>>())?;
    let got = ops.sample(&logits, sampling, &at)?.to_vec::<i32>()?;
    let want = rows.iter().zip(positions).map(|(row, position)| sampling.pick(row, *position) as i32);
    Ok(got.iter().zip(want).filter(|(got, want)| **got != *want).count())
}

pub(super) fn argmax(trial: &mut Trial) -> anyhow::Result<()> {
    for vocabulary in VOCABULARIES {
        let rows = rows(trial, vocabulary);
        let positions = vec![0; rows.len()];
        let off = differences(trial, &rows, &Sampling::greedy(), &positions)?;
        trial.report.add(&format!("vocabulary of {vocabulary}"), off as f64, 0.0);
    }
    Ok(())
}

pub(super) fn sample(trial: &mut Trial) -> anyhow::Result<()> {
    let filters = [(0, 1.0, 0.0), (1, 1.0, 0.0), (40, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.05), (50, 0.8, 0.02)];
    let (mut off, mut drawn) = (0, 0);
    for vocabulary in VOCABULARIES {
        for (i, (top_k, top_p, min_p)) in filters.into_iter().enumerate() {
            for temperature in [0.7, 1.5] {
                let rows = rows(trial, vocabulary);
                let seed = 0x1234_5678_9abc_def0 ^ (i as u64) << 40;
                let sampling = Sampling { temperature, top_k, top_p, min_p, seed };
                let positions: Vec<u32> = rows.iter().map(|_| trial.numbers.below(1 << 20) as u32).collect();
                off += differences(trial, &rows, &sampling, &positions)?;
                drawn += rows.len();
            }
        }
    }
    // A draw differs where two scores, or a logit and the threshold, are closer than f32's error in exp and log. With
    // scores of size 10 that is 1e-6, a chance of about 1e-5 a draw; one in 200 stands for "it happened to happen".
    trial.report.add(&format!("{drawn} draws"), off as f64 / drawn as f64, 0.005);
    Ok(())
}
