//! Multi-head latent attention: the cache, prefill over expanded keys, absorbed decode.

use super::{LENGTHS, Trial, bound, values};
use kiln::Float;
use kimi::model::ops::{Activation, MlaShape};
use kimi::reference;

/// The last query of `n` stands at the last key of `context`.
fn first_position(context: usize, n: usize) -> i32 {
    (context - n) as i32
}

pub(super) fn mla_cache<T: Activation>(trial: &mut Trial) -> anyhow::Result<()> {
    for (latent, rope, position) in [(64, 16, 0), (64, 24, 3), (128, 64, 17)] {
        let weight = trial.normal::<f32>(&[latent], 1.0)?;
        for n in LENGTHS {
            let projected = trial.normal::<T>(&[n, latent + rope], 1.0)?;
            let capacity = position + n + 2;
            let mut c = trial.poisoned::<T>(&[capacity, latent])?;
            let mut k = trial.poisoned::<T>(&[capacity, rope])?;
            let ops = trial.ops::<T, f32>();
            let at = ops.integers(&[position as i32])?;
            ops.mla_cache(&projected.tensor, &weight.tensor, 1e-6, &at, &mut c, &mut k)?;

            let rows = || projected.values.chunks_exact(latent + rope);
            let raw: Vec<f64> = rows().flat_map(|row| &row[..latent]).copied().collect();
            let shared: Vec<f64> = rows().flat_map(|row| &row[latent..]).copied().collect();
            let what = format!("{n} tokens at {position}, {latent} + {rope}");
            let want = reference::rms_norm(&raw, &weight.values, 1e-6);
            trial.compare(&what, &c.narrow(0, position, n)?, &want, latent, bound(T::DTYPE))?;
            trial.compare(&format!("{what}: shared"), &k.narrow(0, position, n)?, &shared, rope, 0.0)?;
            // Rows of other tokens are as they were.
            for (cache, width) in [(&c, latent), (&k, rope)] {
                let kept = values(cache)?.iter().filter(|x| x.is_nan()).count();
                let off = kept.abs_diff((position + 2) * width);
                trial.report.add(&format!("{what}: rows of others"), off as f64, 0.0);
            }
        }
    }
    Ok(())
}

pub(super) fn mla_prefill<T: Activation>(trial: &mut Trial) -> anyhow::Result<()> {
    let heads = 2;
    let pieces = [(0, 0), (1, 1), (15, 15), (17, 17), (65, 65), (17, 57), (64, 65), (1, 64), (16, 100)];
    for (width, rope) in [(32, 24), (64, 16)] {
        for (n, context) in pieces {
            // Scores of usual size, and so large that attention is nearly a choice.
            for scale in [1.0, 8.0] {
                let q = trial.normal::<T>(&[n, heads * (width + rope)], scale)?;
                let kv = trial.normal::<T>(&[context, heads * 2 * width], 1.0)?;
                let shared = trial.normal::<T>(&[context, rope], 1.0)?;
                let shape = MlaShape { heads, nope: width, rope, value: width };
                let ops = trial.ops::<T, f32>();
                let at = ops.integers(&[first_position(context, n)])?;
                let got = ops.mla_prefill(&q.tensor, &kv.tensor, &shared.tensor, &at, shape)?;

                // The reference expands latents; with the identity for kv_b the latents are the expanded rows.
                let latent = heads * 2 * width;
                let mut identity = vec![0.0; latent * latent];
                identity.iter_mut().step_by(latent + 1).for_each(|x| *x = 1.0);
                let shape = reference::MlaShape { heads, latent, nope: width, rope, value: width };
                let want = reference::mla_attention(shape, &q.values, &kv.values, &shared.values, &identity);
                let what = format!("{n} queries, {context} keys, {width} + {rope}, scores of {scale}");
                trial.compare(&what, &got, &want, heads * width, bound(T::DTYPE))?;
            }
        }
    }
    Ok(())
}

pub(super) fn mla_decode<T: Activation, W: Float>(trial: &mut Trial) -> anyhow::Result<()> {
    let (latent, nope, value) = (64, 32, 64);
    // The context may be shorter than the cache, by whose rows the splits are chosen: one from 1 row, several from 129 on.
    // Of 600 keys the last split of 600 rows has a part, those of 1,000 rows beyond it have none. Of up to 4, 8, 32 and 64
    // splits each has a place.
    // With 67 queries a GPU has programs enough without splits: they take 32 heads.
    let places =
        [(1, 1), (1, 15), (3, 3), (2, 17), (1, 64), (4, 65), (1, 257), (2, 600), (1, 1100), (1, 4200), (67, 70)];
    for ((n, context), spare) in places.into_iter().flat_map(|place| [(place, 0), (place, 400)]) {
        for (heads, rope) in [(3, 16), (18, 24)] {
            let q = trial.normal::<T>(&[n, heads * (nope + rope)], 1.0)?;
            let c = trial.normal::<T>(&[context + spare, latent], 1.0)?;
            let shared = trial.normal::<T>(&[context + spare, rope], 1.0)?;
            let kv_b = trial.normal::<W>(&[heads * (nope + value), latent], (latent as f64).powf(-0.5))?;
            let shape = MlaShape { heads, nope, rope, value };
            let ops = trial.ops::<T, W>();
            let at = ops.integers(&[first_position(context, n)])?;
            let got = ops.mla_decode(&q.tensor, &c.tensor, &shared.tensor, &kv_b.tensor, &at, shape)?;

            let shape = reference::MlaShape { heads, latent, nope, rope, value };
            let (c, shared) = (&c.values[..context * latent], &shared.values[..context * rope]);
            let want = reference::mla_attention(shape, &q.values, c, shared, &kv_b.values);
            let what = format!("{n} queries, {context} keys and {spare} rows, {heads} heads, shared part {rope}");
            trial.compare(&what, &got, &want, heads * value, bound(T::DTYPE))?;
        }
    }
    Ok(())
}
