//! Short convolution and Kimi Delta Attention.

use super::{Activations, Case, Least, Work, random};
use crate::cases::{bound, values};
use kiln::{Device, Element, Tensor, bf16};
use kimi::model::ops::{Batch, Gate, Keep, Ops, state_shape, states_by_rows};
use kimi::reference::{self, KdaShape, relative_error};
use std::cell::RefCell;
use std::rc::Rc;

const HEADS: usize = 32;
const WIDTH: usize = 128;
const CHANNELS: usize = HEADS * WIDTH;

pub(super) fn cases() -> Vec<Case> {
    let mut all: Vec<Case> = [1024, 8192, 32768].map(short_conv).into();
    for (gate, name) in [(Gate::Softplus, "softplus"), (Gate::Bounded(-5.0), "bounded")] {
        all.extend([(1, 1024), (1, 8192), (1, 32768), (1, 131072), (8, 8192)].map(|(b, t)| {
            let name = format!("kda_prefill/{name}_b{b}_t{t}_h{HEADS}_d{WIDTH}");
            let bytes = 2 * b * t * CHANNELS * 5 + 8 * b * HEADS * WIDTH * WIDTH;
            let flops = 2 * b * t * HEADS * (3 * WIDTH * WIDTH + 2 * 64 * WIDTH);
            let least = Least { flops: flops as f64, bytes: bytes as f64 };
            Case::new(name, move |device| delta_rule(device, b, t, gate, least))
        }));
    }
    all.extend([1, 16, 128].map(|b| {
        let least = Least { flops: 0.0, bytes: (8 * b * HEADS * WIDTH * WIDTH) as f64 };
        Case::of_a_step(format!("kda_decode/b{b}_h{HEADS}_d{WIDTH}"), move |device, common| {
            step(device, common, b, 1, least)
        })
    }));
    // Every state on the way is kept: one is read, as many written as there are tokens.
    all.extend([(1, 4), (16, 4), (128, 4), (16, 8)].map(|(b, n)| {
        let least = Least { flops: 0.0, bytes: (4 * (1 + n) * b * HEADS * WIDTH * WIDTH) as f64 };
        Case::of_a_step(format!("kda_verify/b{b}_n{n}_h{HEADS}_d{WIDTH}"), move |device, common| {
            step(device, common, b, n, least)
        })
    }));
    all
}

/// `sequences` of `tokens` each.
fn batch(device: Device, sequences: usize, tokens: usize) -> anyhow::Result<Batch> {
    let slots: Vec<usize> = (0..sequences).collect();
    Ok(Batch::new(Ops::<bf16, bf16>::new(device), &vec![tokens; sequences], &slots)?)
}

fn short_conv(tokens: usize) -> Case {
    const ALL: usize = 3 * CHANNELS;
    Case::new(format!("short_conv/bf16_t{tokens}_d{ALL}_w4_silu"), move |device| {
        let x = random::<bf16>(device, &[tokens, ALL], 1.0, 1)?;
        let weight = random::<f32>(device, &[4, ALL], 1.0, 2)?;
        let mut state = Tensor::zeros(&[1, 3, ALL], bf16::DTYPE, device)?;
        let at = batch(device, 1, tokens)?;
        let result = Rc::new(RefCell::new(None));
        let (kept, inputs) = (result.clone(), (x.clone(), weight.clone()));
        Ok(Work {
            least: Least { flops: 0.0, bytes: 4.0 * (tokens * ALL) as f64 },
            run: Box::new(move || {
                let y = Ops::<bf16, bf16>::new(device).short_conv::<f32>(&x, &weight, &mut state, &at)?;
                kept.borrow_mut().get_or_insert(y);
                Ok(())
            }),
            check: Box::new(move || {
                let (x, weight) = inputs;
                let y = result.borrow_mut().take().ok_or_else(|| anyhow::anyhow!("no result"))?;
                // The beginning, and the end with the three inputs before it as its state.
                let weight = values(&weight.transpose(0, 1)?.contiguous()?)?;
                let mut state = vec![0.0; ALL * 3];
                let head = reference::short_convolution(&values(&x.narrow(0, 0, 16)?)?, &weight, ALL, &mut state);
                let first = relative_error(&values(&y.narrow(0, 0, 16)?)?, &head);
                let before = values(&x.narrow(0, tokens - 11, 3)?)?;
                let mut state: Vec<f64> = (0..ALL * 3).map(|i| before[i % 3 * ALL + i / 3]).collect();
                let tail =
                    reference::short_convolution(&values(&x.narrow(0, tokens - 8, 8)?)?, &weight, ALL, &mut state);
                let last = relative_error(&values(&y.narrow(0, tokens - 8, 8)?)?, &tail);
                Ok((first.max(last), bound(bf16::DTYPE)))
            }),
            eager: false,
        })
    })
}

/// Normalisation of q and k, gates and the delta rule, from a state of zeros, which later runs continue.
fn delta_rule(device: Device, sequences: usize, tokens: usize, gate: Gate, least: Least) -> anyhow::Result<Work> {
    let n = sequences * tokens;
    let qkv = random::<bf16>(device, &[n, 3 * CHANNELS], 1.0, 1)?;
    let decay = random::<bf16>(device, &[n, CHANNELS], 1.0, 2)?;
    let beta = random::<bf16>(device, &[n, HEADS], 1.0, 3)?;
    // exp(A_log) from 1 to 16, as the peers have it.
    let a_log: Vec<f32> = (0..HEADS).map(|h| (1.0 + 15.0 * h as f32 / HEADS as f32).ln()).collect();
    let a_log = Tensor::from_slice(&a_log, &[HEADS], device)?;
    let dt_bias = random::<f32>(device, &[CHANNELS], 1.0, 4)?;
    let mut state = Tensor::zeros(&state_shape(sequences, HEADS, WIDTH), f32::DTYPE, device)?;
    let at = batch(device, sequences, tokens)?;
    let result = Rc::new(RefCell::new(None));
    let kept = result.clone();
    let inputs = (qkv.clone(), decay.clone(), beta.clone(), a_log.clone(), dt_bias.clone());
    Ok(Work {
        least,
        run: Box::new(move || {
            let ops = Ops::<bf16, bf16>::new(device);
            let o = ops.delta_rule(&qkv, &decay, &beta, &a_log, &dt_bias, gate, &mut state, &at)?;
            if kept.borrow().is_none() {
                let mut last = Tensor::uninit(state.shape(), f32::DTYPE, device)?;
                last.copy_from(&state)?;
                *kept.borrow_mut() = Some((o, last));
            }
            Ok(())
        }),
        check: Box::new(move || {
            let (qkv, decay, beta, a_log, dt_bias) = inputs;
            let (a_log, dt_bias) = (values(&a_log)?, values(&dt_bias)?);
            let (o, last) = result.borrow_mut().take().ok_or_else(|| anyhow::anyhow!("no result"))?;
            let mut error = 0f64;
            // Short prompts whole, with the last state; of others the beginnings of the first and the last sequence, which
            // what comes later cannot change.
            let whole = tokens <= 1024;
            for (sequence, first) in [(0, 0), (sequences - 1, n - tokens)] {
                let count = if whole { tokens } else { 100 };
                let rows = values(&qkv.narrow(0, first, count)?)?;
                let third = |i: usize| -> Vec<f64> {
                    rows.chunks_exact(3 * CHANNELS).flat_map(|row| &row[i * CHANNELS..][..CHANNELS]).copied().collect()
                };
                let q = reference::l2_norm(&third(0), WIDTH, 1e-6, (WIDTH as f64).powf(-0.5));
                let k = reference::l2_norm(&third(1), WIDTH, 1e-6, 1.0);
                let x = values(&decay.narrow(0, first, count)?)?;
                let g = match gate {
                    Gate::Softplus => reference::kda_gate(&x, &a_log, &dt_bias),
                    Gate::Bounded(low) => reference::kda_bounded_gate(&x, &a_log, &dt_bias, low.into()),
                };
                let beta: Vec<f64> =
                    values(&beta.narrow(0, first, count)?)?.iter().map(|x| reference::sigmoid(*x)).collect();
                let mut state = vec![0.0; HEADS * WIDTH * WIDTH];
                let shape = KdaShape { key_heads: HEADS, heads: HEADS, key: WIDTH, value: WIDTH };
                let want = reference::kda_recurrence(shape, &q, &k, &third(2), &g, &beta, &mut state);
                error = error.max(relative_error(&values(&o.narrow(0, first, count)?)?, &want));
                if whole {
                    let last = relative_error(&values(&states_by_rows(&last.narrow(0, sequence, 1)?)?)?, &state);
                    error = error.max(last);
                }
            }
            Ok((error, bound(bf16::DTYPE)))
        }),
        eager: false,
    })
}

/// So many tokens of each sequence, from projections to what the output projection takes; states are kept after each
/// and continued by later runs.
fn step(
    device: Device,
    activations: &mut Activations,
    sequences: usize,
    tokens: usize,
    least: Least,
) -> anyhow::Result<Work> {
    const ALL: usize = 3 * CHANNELS;
    const EPS: f64 = 1e-5;
    let n = sequences * tokens;
    let slots: Vec<usize> = (0..sequences).collect();
    let keep: Vec<Keep> = (0..n)
        .map(|token| Keep { sequence: token / tokens, tokens: token % tokens + 1, slot: sequences + token })
        .filter(|keep| keep.tokens < tokens)
        .collect();
    let at = match &activations.batch {
        Some(batch) => batch.clone(),
        None => Rc::new(Batch::keeping(Ops::<bf16, bf16>::new(device), &vec![tokens; sequences], &slots, &keep)?),
    };
    activations.batch = Some(at.clone());
    let mut activation =
        |number, shape: &[usize]| activations.get(number, || random::<bf16>(device, shape, 1.0, number));
    let x = activation(1, &[n, ALL])?;
    let decay = activation(2, &[n, CHANNELS])?;
    let beta = activation(3, &[n, HEADS])?;
    let gate = activation(6, &[n, HEADS, WIDTH])?;
    let a_log: Vec<f32> = (0..HEADS).map(|h| (1.0 + 15.0 * h as f32 / HEADS as f32).ln()).collect();
    let a_log = Tensor::from_slice(&a_log, &[HEADS], device)?;
    let dt_bias = random::<f32>(device, &[CHANNELS], 1.0, 4)?;
    let weight = random::<f32>(device, &[ALL, 4], 1.0, 5)?;
    let taps_first = weight.transpose(0, 1)?.contiguous()?;
    let norm = random::<f32>(device, &[WIDTH], 1.0, 7)?;
    let mut inputs = Tensor::zeros(&[sequences + n, 3, ALL], bf16::DTYPE, device)?;
    let mut state = Tensor::zeros(&state_shape(sequences + n, HEADS, WIDTH), f32::DTYPE, device)?;
    let result = Rc::new(RefCell::new(None));
    let kept = result.clone();
    let read = (x.clone(), decay.clone(), beta.clone(), a_log.clone(), dt_bias.clone());
    let more = (weight.clone(), gate.clone(), norm.clone());
    Ok(Work {
        least,
        run: Box::new(move || {
            let (kind, ops) = (Gate::Softplus, Ops::<bf16, bf16>::new(device));
            let o = ops.kda(
                &x,
                &taps_first,
                &decay,
                &beta,
                &a_log,
                &dt_bias,
                kind,
                &gate,
                &norm,
                EPS,
                &mut inputs,
                &mut state,
                &at,
            )?;
            kept.borrow_mut().get_or_insert(o);
            Ok(())
        }),
        check: Box::new(move || {
            let ((x, decay, beta, a_log, dt_bias), (weight, gate, norm)) = (read, more);
            let o = result.borrow_mut().take().ok_or_else(|| anyhow::anyhow!("no result"))?;
            let (a_log, dt_bias, weight, norm) = (values(&a_log)?, values(&dt_bias)?, values(&weight)?, values(&norm)?);
            let mut error = 0f64;
            for s in [0, sequences - 1] {
                let one = |t: &Tensor| -> anyhow::Result<Vec<f64>> { Ok(values(&t.narrow(0, s * tokens, tokens)?)?) };
                let qkv = reference::short_convolution(&one(&x)?, &weight, ALL, &mut vec![0.0; ALL * 3]);
                let third = |i: usize| -> Vec<f64> {
                    qkv.chunks_exact(ALL).flat_map(|row| &row[i * CHANNELS..][..CHANNELS]).copied().collect()
                };
                let q = reference::l2_norm(&third(0), WIDTH, 1e-6, (WIDTH as f64).powf(-0.5));
                let k = reference::l2_norm(&third(1), WIDTH, 1e-6, 1.0);
                let g = reference::kda_gate(&one(&decay)?, &a_log, &dt_bias);
                let beta: Vec<f64> = one(&beta)?.iter().map(|x| reference::sigmoid(*x)).collect();
                let mut state = vec![0.0; HEADS * WIDTH * WIDTH];
                let shape = KdaShape { key_heads: HEADS, heads: HEADS, key: WIDTH, value: WIDTH };
                let y = reference::kda_recurrence(shape, &q, &k, &third(2), &g, &beta, &mut state);
                let gate = one(&gate)?;
                let want: Vec<f64> = (y.chunks_exact(WIDTH).zip(gate.chunks_exact(WIDTH)))
                    .flat_map(|(y, gate)| {
                        let y = reference::rms_norm(y, &norm, EPS);
                        y.into_iter().zip(gate).map(|(y, gate)| y * reference::sigmoid(*gate)).collect::<Vec<_>>()
                    })
                    .collect();
                error = error.max(relative_error(&one(&o)?, &want));
            }
            Ok((error, bound(bf16::DTYPE)))
        }),
        eager: false,
    })
}
