//! A layer of Kimi Delta Attention between its projections: what it computes, that nobody else in the batch changes it,
//! and the states that it leaves on the way.

use super::delta::{Layer, NATURES, Nature, output_bound, slots, state_bound};
use super::{Input, Trial};
use kiln::Tensor;
use kimi::model::ops::{Activation, Batch, Keep};
use kimi::reference;

const TAPS: usize = 4;
const EPS: f64 = 1e-5;

/// Inputs of a layer between its projections.
struct Step {
    /// Its `qkv` are the projections, before the convolution.
    layer: Layer,
    /// [channels, taps], as the reference takes it.
    weight: Input,
    /// [taps, channels], as kernels take it.
    taps_first: Tensor,
    gate: Input,
    norm: Input,
}

/// What the layer remembers, a slot each.
struct Pool {
    inputs: Input,
    state: Input,
}

impl Step {
    fn new<T: Activation>(
        trial: &mut Trial,
        n: usize,
        heads: [usize; 2],
        width: usize,
        nature: Nature,
    ) -> anyhow::Result<Step> {
        let layer = Layer::new::<T>(trial, n, heads, width, nature)?;
        let weight = trial.normal::<f32>(&[layer.columns(), TAPS], 0.7)?;
        let taps_first = weight.tensor.transpose(0, 1)?.contiguous()?;
        let gate = trial.normal::<T>(&[n, layer.heads, width], 1.0)?;
        let norm = trial.normal::<f32>(&[width], 1.0)?;
        Ok(Step { layer, weight, taps_first, gate, norm })
    }

    fn pool<T: Activation>(&self, trial: &mut Trial, slots: usize) -> anyhow::Result<Pool> {
        let Layer { heads, width, .. } = self.layer;
        let inputs = trial.normal::<T>(&[slots, TAPS - 1, self.layer.columns()], 1.0)?;
        let state = trial.states([slots, heads, width], 0.3)?;
        Ok(Pool { inputs, state })
    }

    /// Tokens `first .. first + n` on the device.
    fn run<T: Activation>(
        &self,
        trial: &Trial,
        first: usize,
        n: usize,
        pool: &mut Pool,
        at: &Batch,
    ) -> anyhow::Result<Tensor> {
        let part = |input: &Input| input.tensor.narrow(0, first, n);
        let layer = &self.layer;
        let (x, decay, beta, gate) = (part(&layer.qkv)?, part(&layer.decay)?, part(&layer.beta)?, part(&self.gate)?);
        let (a_log, dt_bias, norm) = (&layer.a_log.tensor, &layer.dt_bias.tensor, &self.norm.tensor);
        let (inputs, state) = (&mut pool.inputs.tensor, &mut pool.state.tensor);
        Ok(trial.ops::<T, f32>().kda(
            &x,
            &self.taps_first,
            &decay,
            &beta,
            a_log,
            dt_bias,
            layer.gate,
            &gate,
            norm,
            EPS,
            inputs,
            state,
            at,
        )?)
    }

    /// By the definition; the values of the pool become those after the tokens.
    fn reference(mut self, lengths: &[usize], places: &[usize], pool: &mut Pool) -> Vec<f64> {
        let Layer { heads, width, .. } = self.layer;
        let (row, size) = (self.layer.columns(), heads * width * width);
        let (mut convolved, mut first) = (vec![], 0);
        for (length, place) in lengths.iter().zip(places) {
            let stored = &mut pool.inputs.values[place * (TAPS - 1) * row..][..(TAPS - 1) * row];
            // The reference keeps each channel's inputs together.
            let mut past: Vec<f64> =
                (0..row * (TAPS - 1)).map(|i| stored[i % (TAPS - 1) * row + i / (TAPS - 1)]).collect();
            let x = &self.layer.qkv.values[first * row..][..length * row];
            convolved.extend(reference::short_convolution(x, &self.weight.values, row, &mut past));
            for (i, value) in past.iter().enumerate() {
                stored[i % (TAPS - 1) * row + i / (TAPS - 1)] = *value;
            }
            first += length;
        }
        self.layer.qkv.values = convolved;
        let (mut want, mut first) = (vec![], 0);
        for (length, place) in lengths.iter().zip(places) {
            let state = &mut pool.state.values[place * size..][..size];
            for (i, o) in self.layer.reference(first, *length, state).chunks_exact(width).enumerate() {
                let gate = &self.gate.values[first * heads * width + i * width..][..width];
                let y = reference::rms_norm(o, &self.norm.values, EPS);
                want.extend(y.iter().zip(gate).map(|(y, gate)| y * reference::sigmoid(*gate)));
            }
            first += length;
        }
        want
    }
}

impl Pool {
    /// The same in other memory, on the device only.
    fn copy(&self) -> anyhow::Result<Pool> {
        let copy = |input: &Input| -> anyhow::Result<Input> {
            Ok(Input { tensor: input.tensor.deep_clone()?, values: vec![] })
        };
        Ok(Pool { inputs: copy(&self.inputs)?, state: copy(&self.state)? })
    }

    /// The bits of a slot.
    fn slot(&self, slot: usize) -> anyhow::Result<[Vec<u8>; 2]> {
        Ok([self.inputs.tensor.select(0, slot)?.to_bytes()?, self.state.tensor.select(0, slot)?.to_bytes()?])
    }
}

/// The layer is convolution, delta rule and gated norm; slots of others stay as they are, and every sequence has the
/// same bits as alone.
pub(super) fn kda<T: Activation>(trial: &mut Trial) -> anyhow::Result<()> {
    for nature in NATURES {
        // One token each of few and of many sequences, up to four, up to eight, and more.
        // Then value heads that have a key head in common.
        let batches: [(&[usize], usize, [usize; 2]); 12] = [
            (&[1], 128, [2, 2]),
            (&[1; 5], 128, [2, 2]),
            (&[1, 1, 1], 64, [2, 2]),
            (&[2, 1, 3], 128, [2, 2]),
            (&[4], 64, [2, 2]),
            (&[2, 0, 1, 8], 64, [2, 2]),
            (&[15], 128, [2, 2]),
            (&[1, 1], 64, [2, 4]),
            (&[1, 5], 64, [1, 3]),
            // Prompts among them.
            (&[70], 64, [2, 2]),
            (&[1, 33, 16, 3, 20, 1], 64, [2, 2]),
            (&[1, 17, 2], 64, [1, 2]),
        ];
        for (lengths, width, heads) in batches {
            let (n, channels): (usize, usize) = (lengths.iter().sum(), heads[1] * width);
            let step = Step::new::<T>(trial, n, heads, width, nature)?;
            let columns = step.layer.columns();
            let places = slots(trial, lengths.len());
            let mut pool = step.pool::<T>(trial, lengths.len() + 1)?;
            let start = pool.copy()?;
            let at = Batch::new(trial.ops::<T, f32>(), lengths, &places)?;
            let got = step.run::<T>(trial, 0, n, &mut pool, &at)?;

            let mut first = 0;
            for (&length, &place) in lengths.iter().zip(&places) {
                let mut alone = start.copy()?;
                let at = Batch::new(trial.ops::<T, f32>(), &[length], &[place])?;
                let o = step.run::<T>(trial, first, length, &mut alone, &at)?;
                let same = o.to_bytes()? == got.narrow(0, first, length)?.to_bytes()?
                    && alone.slot(place)? == pool.slot(place)?;
                trial.expect(&format!("{nature:?}, sequences of {lengths:?}, {length} from {first} alone"), same);
                first += length;
            }

            let want = step.reference(lengths, &places, &mut pool);
            let what = format!("{nature:?}, sequences of {lengths:?}, {heads:?} heads of {width}");
            trial.compare(&what, &got, &want, n * channels, output_bound(T::DTYPE))?;
            // Copied, not computed.
            let (inputs, state) = (&pool.inputs, &pool.state);
            trial.compare(&format!("{what}: inputs"), &inputs.tensor, &inputs.values, columns, 0.0)?;
            trial.compare_states(&what, &state.tensor, &state.values, heads[1], state_bound(T::DTYPE))?;
        }
    }
    Ok(())
}

/// What is kept after some tokens is what there is after these tokens alone, bit for bit; and keeping changes nothing
/// else.
pub(super) fn kda_keeps<T: Activation>(trial: &mut Trial) -> anyhow::Result<()> {
    let chunk = Batch::keep_step::<T>();
    for nature in [Nature::Mild, Nature::Extreme, Nature::Bounded] {
        let batches: [(&[usize], usize, [usize; 2]); 8] = [
            (&[1, 1], 128, [2, 2]),
            (&[4, 0, 2], 64, [2, 2]),
            (&[1, 8], 128, [2, 2]),
            (&[15], 64, [2, 2]),
            (&[3, 1], 64, [2, 4]),
            (&[9], 64, [1, 3]),
            (&[2, 2 * chunk + 20, 1, chunk], 64, [2, 2]),
            (&[chunk + 1, 2], 64, [1, 2]),
        ];
        for (lengths, width, heads) in batches {
            let n = lengths.iter().sum();
            let step = Step::new::<T>(trial, n, heads, width, nature)?;
            let count = lengths.len();
            // Some tokens of each sequence, into slots in no order, one left over.
            let all: Vec<usize> = trial.numbers.distinct(count + n + 1, count + n + 1);
            let (places, mut free) = (&all[..count], all[count..].iter().copied());
            let mut keep = vec![];
            for (sequence, length) in lengths.iter().enumerate() {
                let there = |tokens: &usize| *length < 16 || tokens.is_multiple_of(chunk) || tokens == length;
                let some = |tokens: &usize| [1, chunk].contains(tokens) || trial.numbers.below(3) > 0;
                let tokens = (1..=*length).filter(there).filter(some);
                keep.extend(tokens.zip(&mut free).map(|(tokens, slot)| Keep { sequence, tokens, slot }));
            }
            let start = step.pool::<T>(trial, count + n + 1)?;
            let ops = trial.ops::<T, f32>();
            let what = format!("{nature:?}, sequences of {lengths:?}, {heads:?} heads of {width}");

            let (mut plain, mut kept) = (start.copy()?, start.copy()?);
            let o = step.run::<T>(trial, 0, n, &mut plain, &Batch::new(ops, lengths, places)?)?.to_bytes()?;
            let at = Batch::keeping(ops, lengths, places, &keep)?;
            let same = step.run::<T>(trial, 0, n, &mut kept, &at)?.to_bytes()? == o;
            trial.expect(&format!("{what}: outputs"), same);
            for slot in 0..all.len() {
                let Some(&Keep { sequence, tokens, .. }) = keep.iter().find(|keep| keep.slot == slot) else {
                    let same = kept.slot(slot)? == plain.slot(slot)?;
                    trial.expect(&format!("{what}: slot {slot}, where nothing is kept"), same);
                    continue;
                };
                let mut prefix = start.copy()?;
                let first = lengths[..sequence].iter().sum();
                let at = Batch::new(ops, &[tokens], &[places[sequence]])?;
                step.run::<T>(trial, first, tokens, &mut prefix, &at)?;
                let same = kept.slot(slot)? == prefix.slot(places[sequence])?;
                trial.expect(&format!("{what}: after {tokens} tokens of sequence {sequence}"), same);
            }
        }
    }
    Ok(())
}
