//! Kimi Delta Attention: short convolution, gate, delta rule; batches of several sequences, states carried over.

use super::{Input, Trial, bound, values};
use kiln::{DType, Device, Element, Tensor};
use kimi::model::ops::{Activation, Batch, Gate};
use kimi::reference::{self, KdaShape};

/// Lengths of the sequences of a batch.
const BATCHES: [&[usize]; 10] =
    [&[0], &[1], &[2, 0, 1], &[2, 1], &[15], &[16], &[17, 3], &[1, 1, 1], &[63, 1, 20], &[65]];

/// Slots for so many sequences, in no order, one left over.
fn slots(trial: &mut Trial, sequences: usize) -> Vec<usize> {
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
enum Nature {
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

const NATURES: [Nature; 8] = [
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
    fn new<T: Activation>(
        trial: &mut Trial,
        n: usize,
        heads: usize,
        width: usize,
        nature: Nature,
    ) -> anyhow::Result<Layer> {
        let channels = heads * width;
        let mut qkv = trial.numbers.normals(n * 3 * channels, 1.0);
        for t in 0..n {
            for c in channels..2 * channels {
                match nature {
                    Nature::EqualKeys => qkv[t * 3 * channels + c] = qkv[c],
                    Nature::ZeroKeys => qkv[t * 3 * channels + c] = 0.0,
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
            heads,
            width,
            gate: match nature {
                Nature::Bounded | Nature::BoundedExtreme => Gate::Bounded(LOWER_BOUND),
                _ => Gate::Softplus,
            },
            qkv: trial.input::<T>(&[n, 3 * channels], qkv)?,
            decay: trial.input::<T>(&[n, channels], decay)?,
            beta: trial.input::<T>(&[n, heads], beta)?,
            a_log: trial.input::<f32>(&[heads], a_log)?,
            dt_bias: trial.input::<f32>(&[channels], dt_bias)?,
        })
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
        let (heads, width, channels) = (self.heads, self.width, self.heads * self.width);
        let rows = &self.qkv.values[first * 3 * channels..][..n * 3 * channels];
        let third = |i: usize| -> Vec<f64> {
            rows.chunks_exact(3 * channels).flat_map(|row| &row[i * channels..][..channels]).copied().collect()
        };
        let q = reference::l2_norm(&third(0), width, 1e-6, (width as f64).powf(-0.5));
        let k = reference::l2_norm(&third(1), width, 1e-6, 1.0);
        let decay = &self.decay.values[first * channels..][..n * channels];
        let (a_log, dt_bias) = (&self.a_log.values, &self.dt_bias.values);
        let g = match self.gate {
            Gate::Softplus => reference::kda_gate(decay, a_log, dt_bias),
            Gate::Bounded(low) => reference::kda_bounded_gate(decay, a_log, dt_bias, low.into()),
        };
        let beta: Vec<f64> =
            self.beta.values[first * heads..][..n * heads].iter().map(|x| reference::sigmoid(*x)).collect();
        let shape = KdaShape { heads, key: width, value: width };
        reference::kda_recurrence(shape, &q, &k, &third(2), &g, &beta, state)
    }
}

/// The bound of outputs.
///
/// In f32 the exponent G_i − G_j is a difference of sums of up to 16 decays of at most 30: the sums reach 480, where
/// f32 resolves 3e-5, and that is the relative error of a ratio between them. For narrower types [`bound`] binds.
fn output_bound(dtype: DType) -> f64 {
    bound(dtype).max(1e-4)
}

/// The state is f32 always, but written from keys and values that the kernel may multiply in the narrower type.
fn state_bound(dtype: DType) -> f64 {
    output_bound(dtype)
}

pub(super) fn delta_rule<T: Activation>(trial: &mut Trial) -> anyhow::Result<()> {
    for nature in NATURES {
        for (lengths, heads, width) in BATCHES.map(|lengths| (lengths, 2, 64)).into_iter().chain([(&[17][..], 1, 128)])
        {
            let n = lengths.iter().sum();
            let layer = Layer::new::<T>(trial, n, heads, width, nature)?;
            let places = slots(trial, lengths.len());
            let size = heads * width * width;
            let mut state = trial.normal::<f32>(&[lengths.len() + 1, heads, width, width], 0.3)?;
            let at = Batch::in_pieces(trial.ops::<T, f32>(), lengths, &places, 128)?;
            let got = layer.run::<T>(trial, 0, n, &mut state.tensor, &at)?;

            let (mut want, mut first) = (vec![], 0);
            for (length, place) in lengths.iter().zip(&places) {
                want.extend(layer.reference(first, *length, &mut state.values[place * size..][..size]));
                first += length;
            }
            let what = format!("{nature:?}, sequences of {lengths:?}, {heads} heads of {width}");
            // By head over all tokens: a single token's output may be nearly nothing after cancellation.
            trial.compare(&what, &got, &want, n * heads * width, output_bound(T::DTYPE))?;
            let bound = state_bound(T::DTYPE);
            trial.compare(&format!("{what}: state"), &state.tensor, &state.values, size, bound)?;
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
            let layer = Layer::new::<T>(trial, n, heads, width, nature)?;
            let mut state = trial.input::<f32>(&[1, heads, width, width], vec![0.0; heads * width * width])?;
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
            trial.compare(&format!("{what}: state"), &state.tensor, &state.values, heads * width * width, bound)?;
        }
    }
    Ok(())
}

/// The same bits every time, however pieces fall side by side: 100 times on a GPU.
pub(super) fn delta_rule_repeats<T: Activation>(trial: &mut Trial) -> anyhow::Result<()> {
    let (heads, width, lengths) = (4, 64, [333, 16, 200]);
    let gpu = matches!(trial.device, Device::Cuda(_));
    let layer = Layer::new::<T>(trial, lengths.iter().sum(), heads, width, NATURES[0])?;
    let start = trial.normal::<f32>(&[lengths.len(), heads, width, width], 0.3)?;
    let at = Batch::in_pieces(trial.ops::<T, f32>(), &lengths, &[2, 0, 1], 128)?;
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

/// A step of decoding is convolution, delta rule and gated norm; slots of others stay as they are.
pub(super) fn kda_step<T: Activation>(trial: &mut Trial) -> anyhow::Result<()> {
    const TAPS: usize = 4;
    let (heads, eps) = (2, 1e-5);
    for nature in NATURES {
        // One token each of few and of many sequences, up to four, and more.
        let batches: [(&[usize], usize); 7] = [
            (&[1], 128),
            (&[1; 5], 128),
            (&[1, 1, 1], 64),
            (&[2, 1, 3], 128),
            (&[4], 64),
            (&[2, 0, 1, 8], 64),
            (&[15], 128),
        ];
        for (lengths, width) in batches {
            let (n, channels): (usize, usize) = (lengths.iter().sum(), heads * width);
            let mut layer = Layer::new::<T>(trial, n, heads, width, nature)?;
            let x = layer.qkv;
            let places = slots(trial, lengths.len());
            let count = lengths.len() + 1;
            let weight = trial.normal::<f32>(&[3 * channels, TAPS], 0.7)?;
            let gate = trial.normal::<T>(&[n, heads, width], 1.0)?;
            let norm = trial.normal::<f32>(&[width], 1.0)?;
            let mut inputs = trial.normal::<T>(&[count, TAPS - 1, 3 * channels], 1.0)?;
            let mut state = trial.normal::<f32>(&[count, heads, width, width], 0.3)?;
            let at = Batch::new(trial.ops::<T, f32>(), lengths, &places)?;
            let (decay, beta) = (&layer.decay.tensor, &layer.beta.tensor);
            let taps_first = weight.tensor.transpose(0, 1)?.contiguous()?;
            let (a_log, dt_bias) = (&layer.a_log.tensor, &layer.dt_bias.tensor);
            let ops = trial.ops::<T, f32>();
            // Tokens `first .. first + n`.
            let step = |first: usize, n: usize, inputs: &mut Tensor, state: &mut Tensor, at: &Batch| {
                let part = |tensor: &Tensor| tensor.narrow(0, first, n);
                let (x, decay, beta, gate) = (part(&x.tensor)?, part(decay)?, part(beta)?, part(&gate.tensor)?);
                let (kind, norm) = (layer.gate, &norm.tensor);
                ops.kda_step(&x, &taps_first, &decay, &beta, a_log, dt_bias, kind, &gate, norm, eps, inputs, state, at)
            };
            let (mut inputs_alone, mut state_alone) = (inputs.tensor.deep_clone()?, state.tensor.deep_clone()?);
            let got = step(0, n, &mut inputs.tensor, &mut state.tensor, &at)?;

            // The last sequence alone: the same to the bit.
            let (&last, &place) = (lengths.last().expect("not empty"), places.last().expect("not empty"));
            let at = Batch::new(ops, &[last], &[place])?;
            let alone = step(n - last, last, &mut inputs_alone, &mut state_alone, &at)?;
            let same = alone.to_bytes()? == got.narrow(0, n - last, last)?.to_bytes()?
                && state_alone.select(0, place)?.to_bytes()? == state.tensor.select(0, place)?.to_bytes()?;
            let what = format!("{nature:?}, sequences of {lengths:?}, the last alone");
            trial.report.add(&what, f64::from(u8::from(!same)), 0.0);

            let (row, size) = (3 * channels, heads * width * width);
            let (mut convolved, mut first) = (vec![], 0);
            for (length, place) in lengths.iter().zip(&places) {
                let stored = &mut inputs.values[place * (TAPS - 1) * row..][..(TAPS - 1) * row];
                let mut past: Vec<f64> =
                    (0..row * (TAPS - 1)).map(|i| stored[i % (TAPS - 1) * row + i / (TAPS - 1)]).collect();
                let x = &x.values[first * row..][..length * row];
                convolved.extend(reference::short_convolution(x, &weight.values, row, &mut past));
                for (i, value) in past.iter().enumerate() {
                    stored[i % (TAPS - 1) * row + i / (TAPS - 1)] = *value;
                }
                first += length;
            }
            layer.qkv = Input { tensor: x.tensor, values: convolved };
            let (mut want, mut first) = (vec![], 0);
            for (length, place) in lengths.iter().zip(&places) {
                let o = layer.reference(first, *length, &mut state.values[place * size..][..size]);
                for (i, o) in o.chunks_exact(width).enumerate() {
                    let gate = &gate.values[first * channels + i * width..][..width];
                    let y = reference::rms_norm(o, &norm.values, eps);
                    want.extend(y.iter().zip(gate).map(|(y, gate)| y * reference::sigmoid(*gate)));
                }
                first += length;
            }
            let what = format!("{nature:?}, sequences of {lengths:?}, {heads} heads of {width}");
            trial.compare(&what, &got, &want, n * channels, output_bound(T::DTYPE))?;
            // Copied, not computed.
            trial.compare(&format!("{what}: inputs"), &inputs.tensor, &inputs.values, row, 0.0)?;
            let bound = state_bound(T::DTYPE);
            trial.compare(&format!("{what}: state"), &state.tensor, &state.values, size, bound)?;
        }
    }
    Ok(())
}
