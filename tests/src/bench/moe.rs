//! Mixture of experts: 256 experts, the best 8.

use super::{Case, Least, Work, random};
use crate::cases::{Numbers, bound, values};
use kiln::{Element, Tensor, bf16};
use kimi::checkpoint::SwiGlu;
use kimi::model::ops::Ops;
use kimi::reference::{self, relative_error};
use std::collections::BTreeSet;

const EXPERTS: usize = 256;
const CHOSEN: usize = 8;
const HIDDEN: usize = 2304;
const WIDTH: usize = 1024;

pub(super) fn cases() -> Vec<Case> {
    [1, 16, 64, 512, 4096, 16384].map(experts).into()
}

/// Grouping, both products and the weighted sum: more than the peers' case, whose rows are grouped already and whose
/// results are not summed.
fn experts(tokens: usize) -> Case {
    Case::new(format!("moe_experts/bf16_t{tokens}_e{EXPERTS}_top{CHOSEN}_d{HIDDEN}_i{WIDTH}"), move |device| {
        let x = random::<bf16>(device, &[tokens, HIDDEN], 1.0, 1)?;
        let gate = random::<bf16>(device, &[EXPERTS, WIDTH, HIDDEN], 0.02, 2)?;
        let up = random::<bf16>(device, &[EXPERTS, WIDTH, HIDDEN], 0.02, 3)?;
        let down = random::<bf16>(device, &[EXPERTS, HIDDEN, WIDTH], 0.02, 4)?;
        let mut numbers = Numbers::new(1);
        let ids: Vec<i32> =
            (0..tokens).flat_map(|_| numbers.distinct(CHOSEN, EXPERTS)).map(|expert| expert as i32).collect();
        let weights: Vec<f32> = ids.iter().map(|_| numbers.unit() as f32).collect();
        let chosen = Tensor::from_slice(&ids, &[tokens, CHOSEN], device)?;
        let on_device = Tensor::from_slice(&weights, &[tokens, CHOSEN], device)?;
        // Later runs add to the same sum.
        let mut out = Tensor::zeros(&[tokens, HIDDEN], f32::DTYPE, device)?;
        let result = out.clone();
        let inputs = (x.clone(), gate.clone(), up.clone(), down.clone());
        let hit = ids.iter().collect::<BTreeSet<_>>().len();
        let rows = (tokens * CHOSEN) as f64;
        let (d, i) = (HIDDEN as f64, WIDTH as f64);
        Ok(Work {
            least: Least { flops: 6.0 * rows * i * d, bytes: 6.0 * hit as f64 * i * d + 4.0 * rows * d },
            run: Box::new(move || {
                Ok(Ops::<bf16, bf16>::new(device).experts_add(&x, &gate, &up, &down, &chosen, &on_device, &mut out)?)
            }),
            check: Box::new(move || {
                let (x, gate, up, down) = inputs;
                let mut error = 0f64;
                for t in [0, tokens - 1] {
                    let x = values(&x.select(0, t)?)?;
                    let mut want = vec![0.0; HIDDEN];
                    for a in t * CHOSEN..(t + 1) * CHOSEN {
                        let of =
                            |w: &Tensor| -> anyhow::Result<Vec<f64>> { Ok(values(&w.select(0, ids[a] as usize)?)?) };
                        let expert = SwiGlu { gate: of(&gate)?, up: of(&up)?, down: of(&down)? };
                        let y = reference::feed_forward(&x, HIDDEN, &expert);
                        want.iter_mut().zip(y).for_each(|(want, y)| *want += f64::from(weights[a]) * y);
                    }
                    error = error.max(relative_error(&values(&result.select(0, t)?)?, &want));
                }
                Ok((error, bound(bf16::DTYPE)))
            }),
            eager: false,
        })
    })
}
