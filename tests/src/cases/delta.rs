//! Kimi Delta Attention: short convolution, gate, delta rule; batches of several sequences, states carried over.

use super::{Input, Trial, bound, values};
use kiln::{DType, Device, Element, Tensor};
use kimi::model::ops::{Activation, Batch, Gate, Keep, state_shape};
use kimi::reference::{self, KdaShape};

/// Lengths of the sequences of a batch.
const BATCHES: [&[usize]; 10] =
    [&[0], &[1], &[2, 0, 1], &[2, 1], &[15], &[16], &[17, 3], &[1, 1, 1], &[63, 1, 20], &[65]];

/// Slots for so many sequences, in no order, one left over.
pub(super) fn slots(trial: &mut Trial, sequences: usize) -> Vec<usize> {
    // An empty sequence names no slot, and the convolution takes slot 0 for it.
    if sequences == 1 { vec![0] } else { trial.numbers.distinct(sequences, sequences + 1) }
}

pub(super) fn short_conv<T: Activation>(trial: &mut Trial) -> anyhow::Result<()> {
    for (channels, taps) in [(300, 4), (20, 4), (256, 2), (40, 3)] {
        let weight = trial.normal::<f32>(&[channels, taps], 0.7)?;
        for lengths in BATCHES {
            let n: usize = lengths.iter().sum();
            let places = slots(trial, lengths.len());
            let count = lengths.len() + 1;
            let x = trial.normal::<T>(&[n, channels], 1.0)?;
            let mut state = trial.normal::<T>(&[count, taps - 1, channels], 1.0)?;
            let at = Batch::new(trial.ops::<T, f32>(), lengths, &places)?;
            // The kernel takes the taps first.
            let taps_first = weight.tensor.transpose(0, 1)?.contiguous()?;
            let got = trial.ops::<T, f32>().short_conv::<f32>(&x.tensor, &taps_first, &mut state.tensor, &at)?;

            let (mut want, mut first) = (vec![], 0);
            for (length, place) in lengths.iter().zip(&places) {
                // The reference keeps each channel's inputs together.
                let stored = &mut state.values[place * (taps - 1) * channels..][..(taps - 1) * channels];
                let mut past: Vec<f64> = (0..channels)
                    .flat_map(|c| (0..taps - 1).map(move |j| (j, c)))
                    .map(|(j, c)| stored[j * channels + c])
                    .collect();
                let x = &x.values[first * channels..][..length * channels];
                want.extend(reference::short_convolution(x, &weight.values, channels, &mut past));
                for (i, value) in past.iter().enumerate() {
                    stored[i % (taps - 1) * channels + i / (taps - 1)] = *value;
                }
                first += length;
            }
            let what = format!("sequences of {lengths:?}, {channels} channels, {taps} taps");
            trial.compare(&what, &got, &want, channels, bound(T::DTYPE))?;
            // Copied, not computed; the slot that nobody has must not change.
            trial.compare(&format!("{what}: state"), &state.tensor, &state.values, channels, 0.0)?;
        }
    }
    Ok(())
}

/// What the decay gate, the keys and the write strength are like.
#[derive(Clone, Copy, Debug)]
pub(super) enum Nature {
    /// Decay near 1, everything ordinary.
    Mild,
    /// A_log up to ln 201 as measured in the 48 B model.
    Measured,
    /// A_log = ln 201, gate inputs ±1000: a channel is kept whole or erased, at random.
    Extreme,
    /// Nothing is ever forgotten, all keys are equal, β is 1: every token overwrites the one before.
    EqualKeys,
    /// Keys of zero: nothing is written, whatever β; the norm's epsilon is all that keeps 0/0 away.
    ZeroKeys,
    /// β is 0 or 1 exactly.
    Switched,
    /// The bounded gate, ordinary inputs.
    Bounded,
    /// The bounded gate at one of its ends, at random.
    BoundedExtreme,
}

pub(super) const NATURES: [Nature; 8] = [
    Nature::Mild,
    Nature::Measured,
    Nature::Extreme,
    Nature::EqualKeys,
    Nature::ZeroKeys,
    Nature::Switched,
    Nature::Bounded,
    Nature::BoundedExtreme,
];

/// The bound of the bounded gates.
const LOWER_BOUND: f32 = -5.0;

/// Inputs of the delta rule.
pub(super) struct Layer {
    pub key_heads: usize,
    pub heads: usize,
    pub width: usize,
    pub gate: Gate,
    pub qkv: Input,
    pub decay: Input,
    pub beta: Input,
    pub a_log: Input,
    pub dt_bias: Input,
}

impl Layer {
    /// `heads` of keys and of values.
    pub fn new<T: Activation>(
        trial: &mut Trial,
        n: usize,
        [key_heads, heads]: [usize; 2],
        width: usize,
        nature: Nature,
    ) -> anyhow::Result<Layer> {
        let channels = heads * width;
        let row = (2 * key_heads + heads) * width;
        let mut qkv = trial.numbers.normals(n * row, 1.0);
        for t in 0..n {
            for c in key_heads * width..2 * key_heads * width {
                match nature {
                    Nature::EqualKeys => qkv[t * row + c] = qkv[c],
                    Nature::ZeroKeys => qkv[t * row + c] = 0.0,
                    _ => {}
                }
            }
        }
        let sign = |trial: &mut Trial| if trial.numbers.below(2) == 0 { -1000.0 } else { 1000.0 };
        let decay: Vec<f64> = (0..n * channels)
            .map(|_| match nature {
                Nature::Extreme | Nature::BoundedExtreme => sign(trial),
                Nature::EqualKeys => -1000.0,
                _ => trial.numbers.normal(),
            })
            .collect();
        let beta: Vec<f64> = (0..n * heads)
            .map(|_| match nature {
                Nature::Switched => sign(trial),
                Nature::EqualKeys => 1000.0,
                _ => trial.numbers.normal(),
            })
            .collect();
        let a_log: Vec<f64> = (0..heads)
            .map(|head| match nature {
                Nature::Extreme => 201f64.ln(),
                // The first head has the largest value measured.
                Nature::Measured => {
                    (1.0 + 200.0 * (1 - head.min(1)) as f64 + 15.0 * trial.numbers.unit()).min(201.0).ln()
                }
                _ => (0.01 + 0.1 * trial.numbers.unit()).ln(),
            })
            .collect();
        let dt_bias = trial.numbers.normals(channels, 1.0);
        Ok(Layer {
            key_heads,
            heads,
            width,
            gate: match nature {
                Nature::Bounded | Nature::BoundedExtreme => Gate::Bounded(LOWER_BOUND),
                _ => Gate::Softplus,
            },
            qkv: trial.input::<T>(&[n, row], qkv)?,
            decay: trial.input::<T>(&[n, channels], decay)?,
            beta: trial.input::<T>(&[n, heads], beta)?,
            a_log: trial.input::<f32>(&[heads], a_log)?,
            dt_bias: trial.input::<f32>(&[channels], dt_bias)?,
        })
    }

    /// Of all q, k and v.
    pub fn columns(&self) -> usize {
        (2 * self.key_heads + self.heads) * self.width
    }

    /// One head of as many of keys as of values, for the reference.
    fn head(&self, head: usize) -> Layer {
        assert_eq!(self.key_heads, self.heads);
        let (heads, width) = (self.heads, self.width);
        // Every input is rows of heads × some width; qkv three of them a token.
        let of = |input: &Input, width: usize| Input {
            tensor: input.tensor.clone(),
            values: input
                .values
                .chunks_exact(heads * width)
                .flat_map(|row| &row[head * width..][..width])
                .copied()
                .collect(),
        };
        Layer {
            key_heads: 1,
            heads: 1,
            width,
            gate: self.gate,
            qkv: of(&self.qkv, width),
            decay: of(&self.decay, width),
            beta: of(&self.beta, 1),
            a_log: of(&self.a_log, 1),
            dt_bias: of(&self.dt_bias, width),
        }
    }

    /// Tokens `first .. first + n` on the device.
    pub fn run<T: Activation>(
        &self,
        trial: &Trial,
        first: usize,
        n: usize,
        state: &mut Tensor,
        at: &Batch,
    ) -> anyhow::Result<Tensor> {
        let piece = |input: &Input| input.tensor.narrow(0, first, n);
        let (qkv, decay, beta) = (piece(&self.qkv)?, piece(&self.decay)?, piece(&self.beta)?);
        let ops = trial.ops::<T, f32>();
        Ok(ops.delta_rule(&qkv, &decay, &beta, &self.a_log.tensor, &self.dt_bias.tensor, self.gate, state, at)?)
    }

    /// Tokens `first .. first + n` by the definition; `state` is one sequence's.
    pub fn reference(&self, first: usize, n: usize, state: &mut [f64]) -> Vec<f64> {
        let (key_heads, heads, width, channels) = (self.key_heads, self.heads, self.width, self.heads * self.width);
        let row = self.columns();
        let rows = &self.qkv.values[first * row..][..n * row];
        let part = |from: usize, heads: usize| -> Vec<f64> {
            rows.chunks_exact(row).flat_map(|row| &row[from * width..][..heads * width]).copied().collect()
        };
        let q = reference::l2_norm(&part(0, key_heads), width, 1e-6, (width as f64).powf(-0.5));
        let k = reference::l2_norm(&part(key_heads, key_heads), width, 1e-6, 1.0);
        let v = part(2 * key_heads, heads);
        let decay = &self.decay.values[first * channels..][..n * channels];
        let (a_log, dt_bias) = (&self.a_log.values, &self.dt_bias.values);
        let g = match self.gate {
            Gate::Softplus => reference::kda_gate(decay, a_log, dt_bias),
            Gate::Bounded(low) => reference::kda_bounded_gate(decay, a_log, dt_bias, low.into()),
        };
        let beta: Vec<f64> =
            self.beta.values[first * heads..][..n * heads].iter().map(|x| reference::sigmoid(*x)).collect();
        let shape = KdaShape { key_heads, heads, key: width, value: width };
        reference::kda_recurrence(shape, &q, &k, &v, &g, &beta, state)
    }
}

/// The bound of outputs.
///
/// In f32 the exponent G_i − G_j is a difference of sums of up to 16 decays of at most 30: the sums reach 480, where
/// f32 resolves 3e-5, and that is the relative error of a ratio between them. For narrower types [`bound`] binds.
pub(super) fn output_bound(dtype: DType) -> f64 {
    bound(dtype).max(1e-4)
}

/// The state is f32 always, but written from keys and values that the kernel may multiply in the narrower type.
pub(super) fn state_bound(dtype: DType) -> f64 {
    output_bound(dtype)
}

pub(super) fn delta_rule<T: Activation>(trial: &mut Trial) -> anyhow::Result<()> {
    for nature in NATURES {
        let equal = BATCHES.map(|lengths| (lengths, 2, 2, 64));
        // Then value heads that have a key head in common.
        let more: [(&[usize], _, _, _); 3] = [(&[17], 1, 1, 128), (&[65, 3], 2, 4, 64), (&[33], 1, 3, 64)];
        for (lengths, key_heads, heads, width) in equal.into_iter().chain(more) {
            let n = lengths.iter().sum();
            let layer = Layer::new::<T>(trial, n, [key_heads, heads], width, nature)?;
            let places = slots(trial, lengths.len());
            let size = heads * width * width;
            let mut state = trial.states([lengths.len() + 1, heads, width], 0.3)?;
            let at = Batch::in_pieces(trial.ops::<T, f32>(), lengths, &places, &[], 128)?;
            let got = layer.run::<T>(trial, 0, n, &mut state.tensor, &at)?;

            let (mut want, mut first) = (vec![], 0);
            for (length, place) in lengths.iter().zip(&places) {
                want.extend(layer.reference(first, *length, &mut state.values[place * size..][..size]));
                first += length;
            }
            let what = format!("{nature:?}, sequences of {lengths:?}, {key_heads} and {heads} heads of {width}");
            // By head over all tokens: a single token's output may be nearly nothing after cancellation.
            trial.compare(&what, &got, &want, n * heads * width, output_bound(T::DTYPE))?;
            let bound = state_bound(T::DTYPE);
            trial.compare_states(&what, &state.tensor, &state.values, heads, bound)?;
        }
    }
    Ok(())
}

/// A prompt in pieces, then single tokens, is the prompt in one piece.
pub(super) fn delta_rule_in_pieces<T: Activation>(trial: &mut Trial) -> anyhow::Result<()> {
    let (heads, width) = (1, 64);
    for nature in NATURES {
        for pieces in [&[16, 16, 1][..], &[17, 1, 1, 15], &[1, 64], &[33, 2]] {
            let n = pieces.iter().sum();
            let layer = Layer::new::<T>(trial, n, [heads; 2], width, nature)?;
            let mut state = trial.states([1, heads, width], 0.0)?;
            let (mut got, mut first) = (vec![], 0);
            for length in pieces {
                let at = Batch::new(trial.ops::<T, f32>(), &[*length], &[0])?;
                got.extend(values(&layer.run::<T>(trial, first, *length, &mut state.tensor, &at)?)?);
                first += length;
            }
            let want = layer.reference(0, n, &mut state.values);
            let what = format!("{nature:?}, pieces of {pieces:?}");
            trial.report.add(&what, reference::relative_error(&got, &want), output_bound(T::DTYPE));
            let bound = state_bound(T::DTYPE);
            trial.compare_states(&what, &state.tensor, &state.values, heads, bound)?;
        }
    }
    Ok(())
}

/// A prompt of a million tokens on a GPU: its end is that of the recurrence, and in parts it has the same bits.
///
/// With 34 heads of 64 inputs and outputs have more elements than 31 bits count. Elsewhere it is a thousand tokens.
pub(super) fn delta_rule_long<T: Activation>(trial: &mut Trial) -> anyhow::Result<()> {
    let gpu = matches!(trial.device, Device::Cuda(_));
    let (n, period, part, heads) = if gpu { (1 << 20, 4093, 1 << 16, 34) } else { (1000, 300, 256, 2) };
    let width = 64;
    for nature in [Nature::Mild, Nature::Extreme] {
        // The inputs repeat themselves, at other places of chunks.
        let mut layer = Layer::new::<T>(trial, period, [heads; 2], width, nature)?;
        let last_head = layer.head(heads - 1);
        for input in [&mut layer.qkv, &mut layer.decay, &mut layer.beta] {
            let all = trial.poisoned::<T>(&[n, input.tensor.shape()[1]])?;
            for first in (0..n).step_by(period) {
                let count = period.min(n - first);
                all.narrow(0, first, count)?.copy_from(&input.tensor.narrow(0, 0, count)?)?;
            }
            input.tensor = all;
        }
        let zeros = || Tensor::zeros(&state_shape(1, heads, width), DType::F32, trial.device);
        let (mut state, mut state_in_parts) = (zeros()?, zeros()?);
        let ops = trial.ops::<T, f32>();
        let o = layer.run::<T>(trial, 0, n, &mut state, &Batch::new(ops, &[n], &[0])?)?;
        for first in (0..n).step_by(part) {
            let count = part.min(n - first);
            let at = Batch::new(ops, &[count], &[0])?;
            let got = layer.run::<T>(trial, first, count, &mut state_in_parts, &at)?;
            let same = got.to_bytes()? == o.narrow(0, first, count)?.to_bytes()?;
            trial.expect(&format!("{nature:?}, {count} tokens from {first}"), same);
        }
        let same = state.to_bytes()? == state_in_parts.to_bytes()?;
        trial.expect(&format!("{nature:?}, state after parts"), same);

        let (mut want, mut want_state) = (vec![], vec![0.0; width * width]);
        for first in (0..n).step_by(period) {
            want = last_head.reference(0, period.min(n - first), &mut want_state);
        }
        let count = want.len() / width;
        let end = o.narrow(0, n - count, count)?.narrow(1, heads - 1, 1)?.contiguous()?;
        trial.compare(&format!("{nature:?}, the end"), &end, &want, want.len(), output_bound(T::DTYPE))?;
        let state = state.narrow(1, heads - 1, 1)?;
        trial.compare_states(&format!("{nature:?}"), &state, &want_state, 1, state_bound(T::DTYPE))?;
    }
    Ok(())
}

/// The same bits every time, however pieces fall side by side: 100 times on a GPU.
pub(super) fn delta_rule_repeats<T: Activation>(trial: &mut Trial) -> anyhow::Result<()> {
    let (heads, width, lengths) = (4, 64, [333, 16, 200]);
    let gpu = matches!(trial.device, Device::Cuda(_));
    let layer = Layer::new::<T>(trial, lengths.iter().sum(), [heads; 2], width, NATURES[0])?;
    let start = trial.states([lengths.len(), heads, width], 0.3)?;
    let at = Batch::in_pieces(trial.ops::<T, f32>(), &lengths, &[2, 0, 1], &[], 128)?;
    let mut first = None;
    for repeat in 0..if gpu { 100 } else { 2 } {
        let mut state = Tensor::uninit(start.tensor.shape(), f32::DTYPE, trial.device)?;
        state.copy_from(&start.tensor)?;
        let o = layer.run::<T>(trial, 0, lengths.iter().sum(), &mut state, &at)?;
        let got = (values(&o)?, values(&state)?);
        let same = *first.get_or_insert_with(|| got.clone()) == got;
        trial.expect(&format!("repeat {repeat} is the first, bit for bit"), same);
    }
    Ok(())
}

/// States on the way, of prompts and of few tokens, are those after these tokens alone, bit for bit (neither being brief
/// for its pieces); and keeping them changes nothing else.
pub(super) fn delta_rule_keeps<T: Activation>(trial: &mut Trial) -> anyhow::Result<()> {
    let (heads, width, step) = (2, 64, Batch::keep_step::<T>());
    let lengths = [3 * step + 5, 4, 2 * step];
    let n = lengths.iter().sum();
    for nature in [Nature::Mild, Nature::Extreme, Nature::Bounded] {
        let layer = Layer::new::<T>(trial, n, [heads; 2], width, nature)?;
        let start = trial.states([12, heads, width], 0.3)?.tensor;
        let start_inputs = trial.normal::<T>(&[12, 3, 3 * heads * width], 1.0)?.tensor;
        let weight = trial.normal::<f32>(&[4, 3 * heads * width], 0.7)?.tensor;
        let places = [7, 0, 3];
        let after = [(0, step), (0, 3 * step), (0, 3 * step + 5), (1, 1), (1, 4), (2, step)];
        let slots = [2, 9, 4, 11, 1, 6];
        let keep: Vec<Keep> =
            after.iter().zip(slots).map(|(&(sequence, tokens), slot)| Keep { sequence, tokens, slot }).collect();
        // Tokens `first .. first + n`: outputs, and the pools.
        let run = |trial: &Trial, first: usize, n: usize, at: &Batch| -> anyhow::Result<[Tensor; 4]> {
            let (mut state, mut inputs) = (start.deep_clone()?, start_inputs.deep_clone()?);
            let o = layer.run::<T>(trial, first, n, &mut state, at)?;
            let x = layer.qkv.tensor.narrow(0, first, n)?;
            let y = trial.ops::<T, f32>().short_conv::<f32>(&x, &weight, &mut inputs, at)?;
            Ok([o, y, state, inputs])
        };
        let ops = trial.ops::<T, f32>();
        let plain = run(trial, 0, n, &Batch::in_pieces(ops, &lengths, &places, &[], 128)?)?;
        let kept = run(trial, 0, n, &Batch::in_pieces(ops, &lengths, &places, &keep, 128)?)?;
        for i in 0..2 {
            let same = plain[i].to_bytes()? == kept[i].to_bytes()?;
            trial.expect(&format!("{nature:?}: outputs"), same);
        }
        for slot in 0..12 {
            let (from, other, what) = match keep.iter().find(|keep| keep.slot == slot) {
                None => (slot, None, format!("slot {slot}, where nothing is kept")),
                Some(&Keep { sequence, tokens, .. }) => {
                    let place = places[sequence];
                    let at = Batch::in_pieces(ops, &[tokens], &[place], &[], 128)?;
                    let alone = run(trial, lengths[..sequence].iter().sum(), tokens, &at)?;
                    (place, Some(alone), format!("after {tokens} tokens of sequence {sequence}"))
                }
            };
            let other = other.as_ref().unwrap_or(&plain);
            for i in 2..4 {
                let same = kept[i].select(0, slot)?.to_bytes()? == other[i].select(0, from)?.to_bytes()?;
                trial.expect(&format!("{nature:?}: {what}"), same);
            }
        }
    }
    Ok(())
}
