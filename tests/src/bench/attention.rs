//! Multi-head latent attention: prefill over expanded keys, absorbed decode.

use super::{Case, Least, Work, random};
use crate::cases::{bound, values};
use kiln::{Element, bf16};
use kimi::model::ops::{MlaShape, Ops};
use kimi::reference::{self, relative_error};
use std::cell::RefCell;
use std::rc::Rc;

const SHAPE: MlaShape = MlaShape { heads: 32, nope: 128, rope: 64, value: 128 };
const LATENT: usize = 512;

pub(super) fn cases() -> Vec<Case> {
    let mut all: Vec<Case> = [2048, 8192, 32768].map(prefill).into();
    all.extend([(1, 4096), (1, 131072), (16, 4096), (16, 32768), (128, 4096)].map(|(b, context)| decode(b, context)));
    all
}

/// Softmax(q·keysᵀ·scale)·values of one query.
fn attend(q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
    let scale = (q.len() as f64).powf(-0.5);
    let scores: Vec<f64> = keys.iter().map(|k| q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() * scale).collect();
    let weights: Vec<f64> = reference::log_softmax(&scores).iter().map(|x| x.exp()).collect();
    let mut out = vec![0.0; values[0].len()];
    for (w, v) in weights.iter().zip(values) {
        out.iter_mut().zip(v).for_each(|(out, v)| *out += w * v);
    }
    out
}

fn prefill(tokens: usize) -> Case {
    let MlaShape { heads, nope, rope, value } = SHAPE;
    Case::new(format!("mla_prefill/causal_b1_t{tokens}_h{heads}_d{}_{value}", nope + rope), move |device| {
        let q = random::<bf16>(device, &[tokens, heads * (nope + rope)], 1.0, 1)?;
        let kv = random::<bf16>(device, &[tokens, heads * (nope + value)], 1.0, 2)?;
        let shared = random::<bf16>(device, &[tokens, rope], 1.0, 3)?;
        let at = Ops::<bf16, bf16>::new(device).integers(&[0])?;
        let result = Rc::new(RefCell::new(None));
        let (kept, inputs) = (result.clone(), (q.clone(), kv.clone(), shared.clone()));
        let t = tokens as f64;
        let bytes = 2 * heads * tokens * (2 * (nope + rope) + 2 * value);
        Ok(Work {
            least: Least { flops: heads as f64 * t * t * (nope + rope + value) as f64, bytes: bytes as f64 },
            run: Box::new(move || {
                let o = Ops::<bf16, bf16>::new(device).mla_prefill(&q, &kv, &shared, &at, SHAPE)?;
                kept.borrow_mut().get_or_insert(o);
                Ok(())
            }),
            check: Box::new(move || {
                let (q, kv, shared) = inputs;
                let o = result.borrow_mut().take().ok_or_else(|| anyhow::anyhow!("no result"))?;
                let shared = values(&shared)?;
                let mut error = 0f64;
                for head in [0, heads - 1] {
                    let rows = values(&kv.narrow(1, head * (nope + value), nope + value)?)?;
                    let rows: Vec<&[f64]> = rows.chunks_exact(nope + value).collect();
                    for i in [0, 1, 63, 64, tokens / 2 + 5, tokens - 1] {
                        let query = values(&q.select(0, i)?.narrow(0, head * (nope + rope), nope + rope)?)?;
                        let keys: Vec<Vec<f64>> =
                            (0..=i).map(|s| [&rows[s][..nope], &shared[s * rope..][..rope]].concat()).collect();
                        let of: Vec<Vec<f64>> = (0..=i).map(|s| rows[s][nope..].to_vec()).collect();
                        let got = values(&o.select(0, i)?.narrow(0, head * value, value)?)?;
                        error = error.max(relative_error(&got, &attend(&query, &keys, &of)));
                    }
                }
                Ok((error, bound(bf16::DTYPE)))
            }),
            eager: false,
        })
    })
}

/// Absorbed queries over the latents of `sequences`, one token each; the splits put together.
fn decode(sequences: usize, context: usize) -> Case {
    let MlaShape { heads, nope, rope, .. } = SHAPE;
    Case::of_a_step(format!("mla_decode/b{sequences}_ctx{context}_h{heads}"), move |device, activations| {
        let absorbed = activations.get(1, || random::<bf16>(device, &[sequences, heads, LATENT], 1.0, 1))?;
        let q = activations.get(2, || random::<bf16>(device, &[sequences, heads * (nope + rope)], 1.0, 2))?;
        let latent = random::<bf16>(device, &[sequences, context, LATENT], 1.0, 3)?;
        let shared = random::<bf16>(device, &[sequences, context, rope], 1.0, 4)?;
        let last = vec![context as i32 - 1; sequences];
        let at = activations.get(3, || Ok(Ops::<bf16, bf16>::new(device).integers(&last)?))?;
        let result = Rc::new(RefCell::new(None));
        let (kept, inputs) = (result.clone(), (absorbed.clone(), q.clone(), latent.clone(), shared.clone()));
        let (b, c, h) = (sequences as f64, context as f64, heads as f64);
        let width = (LATENT + rope) as f64;
        Ok(Work {
            least: Least { flops: 2.0 * b * h * c * (width + LATENT as f64), bytes: 2.0 * b * c * width },
            run: Box::new(move || {
                let ops = Ops::<bf16, bf16>::new(device);
                let o = ops.mla_attend(&absorbed, &q, &latent, &shared, &at, SHAPE)?;
                kept.borrow_mut().get_or_insert(o);
                Ok(())
            }),
            check: Box::new(move || {
                let (absorbed, q, latent, shared) = inputs;
                let o = result.borrow_mut().take().ok_or_else(|| anyhow::anyhow!("no result"))?;
                let mut error = 0f64;
                for (s, head) in [(0, 0), (sequences - 1, heads - 1)] {
                    let want = attend_latents(
                        &values(&absorbed.select(0, s)?.select(0, head)?)?,
                        &values(&q.select(0, s)?.narrow(0, head * (nope + rope) + nope, rope)?)?,
                        &values(&latent.select(0, s)?)?,
                        &values(&shared.select(0, s)?)?,
                    );
                    error = error.max(relative_error(&values(&o.select(0, s)?.select(0, head)?)?, &want));
                }
                Ok((error, bound(bf16::DTYPE)))
            }),
            eager: false,
        })
    })
}

/// One head's attended latent [R]: absorbed query [R] and its shared part [P] over latents [context, R] and shared keys
/// [context, P], row-major.
pub(super) fn attend_latents(absorbed: &[f64], shared_query: &[f64], latents: &[f64], shared: &[f64]) -> Vec<f64> {
    let latents: Vec<Vec<f64>> = latents.chunks_exact(absorbed.len()).map(<[f64]>::to_vec).collect();
    // `attend` divides by the root of the query's width, which here is not that of the keys.
    let fix = ((absorbed.len() + SHAPE.rope) as f64 / (SHAPE.nope + SHAPE.rope) as f64).sqrt();
    let query: Vec<f64> = absorbed.iter().chain(shared_query).map(|x| x * fix).collect();
    let keys: Vec<Vec<f64>> =
        latents.iter().zip(shared.chunks_exact(SHAPE.rope)).map(|(c, k)| [c, k].concat()).collect();
    attend(&query, &keys, &latents)
}
