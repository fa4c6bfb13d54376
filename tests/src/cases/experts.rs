//! The router and the mixture of experts.

use super::{LENGTHS, Trial, bound};
use kiln::{Element, Float, Tensor};
use kimi::checkpoint::SwiGlu;
use kimi::model::ops::Activation;
use kimi::reference::{self, RouterShape, Routing};

/// Two experts whose biased scores differ by less may change places in f32: scores near 1 have errors of 1e-7 each.
const NEAR_TIE: f64 = 1e-6;

pub(super) fn route(trial: &mut Trial) -> anyhow::Result<()> {
    for (experts, chosen) in [(5, 1), (16, 4), (21, 8), (64, 8), (8, 8)] {
        for n in LENGTHS {
            // Saturated scores: all 1 or 0 in f32, so that the bias alone decides, or the lower index of equals.
            let logits = match n % 3 {
                0 => (0..n * experts).map(|_| if trial.numbers.below(2) == 0 { -1000.0 } else { 1000.0 }).collect(),
                _ => trial.numbers.normals(n * experts, 2.0),
            };
            let logits = trial.input::<f32>(&[n, experts], logits)?;
            // The bias must take part in the choice, and in nothing else.
            let bias = trial.normal::<f32>(&[experts], 0.3)?;
            for renormalize in [true, false] {
                let ops = trial.ops::<f32, f32>();
                let (got, weights) = ops.route(&logits.tensor, &bias.tensor, chosen, renormalize, 2.446)?;
                let shape = RouterShape { chosen, renormalize, scale: 2.446 };
                let want = reference::route(shape, &logits.values, &bias.values);
                compare_routing(trial, &format!("{n} tokens, {chosen} of {experts}"), experts, &got, &weights, &want)?;
            }
        }
    }
    Ok(())
}

/// Compares choices and weights as weights over all experts, which does not depend on the order of the chosen.
fn compare_routing(
    trial: &mut Trial,
    what: &str,
    experts: usize,
    got: &Tensor,
    weights: &Tensor,
    want: &Routing,
) -> anyhow::Result<()> {
    let chosen = got.shape()[1];
    let spread = |ids: &[usize], weights: &[f64]| {
        // An expert that is not chosen has no weight; NaN would be lost in a sum, so weights are put, not added.
        let mut all = vec![0.0; experts];
        for (id, weight) in ids.iter().zip(weights) {
            if let Some(place) = all.get_mut(*id) {
                *place = *weight;
            }
        }
        all
    };
    let (got, weights) = (super::values(got)?, super::values(weights)?);
    for (t, margin) in want.margin.iter().enumerate() {
        if *margin < NEAR_TIE {
            continue;
        }
        let range = t * chosen..(t + 1) * chosen;
        let ids: Vec<usize> = got[range.clone()].iter().map(|id| *id as usize).collect();
        let got = spread(&ids, &weights[range.clone()]);
        let ids: Vec<usize> = want.experts[range.clone()].iter().map(|id| *id as usize).collect();
        let want = spread(&ids, &want.weights[range]);
        trial.report.add(what, reference::relative_error(&got, &want), bound(f32::DTYPE));
    }
    Ok(())
}

pub(super) fn experts<T: Activation, W: Float>(trial: &mut Trial) -> anyhow::Result<()> {
    // Expert counts other than a power of two; widths that no block divides.
    for (count, chosen, hidden, width) in [(5, 2, 100, 48), (3, 3, 64, 33), (21, 4, 64, 64)] {
        let scale = |inputs: usize| (inputs as f64).powf(-0.5);
        let gate = trial.normal::<W>(&[count, width, hidden], scale(hidden))?;
        let up = trial.normal::<W>(&[count, width, hidden], scale(hidden))?;
        let down = trial.normal::<W>(&[count, hidden, width], scale(width))?;
        let slice = |values: &[f64], e: usize| values[e * width * hidden..][..width * hidden].to_vec();
        let all: Vec<SwiGlu<Vec<f64>>> = (0..count)
            .map(|e| SwiGlu { gate: slice(&gate.values, e), up: slice(&up.values, e), down: slice(&down.values, e) })
            .collect();
        for n in [0, 1, 3, 15, 17, 33] {
            // Spread over the experts, and all tokens at the same ones, which leaves the others without work.
            for crowded in [false, true] {
                let x = trial.normal::<T>(&[n, hidden], 1.0)?;
                let ids: Vec<usize> = (0..n)
                    .flat_map(|_| if crowded { (0..chosen).collect() } else { trial.numbers.distinct(chosen, count) })
                    .collect();
                let weights: Vec<f64> = (0..n * chosen).map(|_| trial.numbers.unit()).collect();
                let weights = trial.input::<f32>(&[n, chosen], weights)?;
                let mut out = trial.normal::<f32>(&[n, hidden], 0.1)?;
                let on_device: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
                let on_device = Tensor::from_slice(&on_device, &[n, chosen], trial.device)?;
                trial.ops::<T, W>().experts_add(
                    &x.tensor,
                    &gate.tensor,
                    &up.tensor,
                    &down.tensor,
                    &on_device,
                    &weights.tensor,
                    &mut out.tensor,
                )?;

                let routing = Routing {
                    experts: ids.iter().map(|id| *id as u32).collect(),
                    weights: weights.values,
                    margin: vec![],
                };
                let sum = reference::experts(&x.values, hidden, &routing, &all);
                let want = reference::add(&sum, &out.values);
                let what = format!("{n} tokens, {chosen} of {count} experts{}", if crowded { ", crowded" } else { "" });
                trial.compare(&what, &out.tensor, &want, hidden, bound(T::DTYPE))?;
            }
        }
    }
    Ok(())
}
