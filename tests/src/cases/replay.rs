//! The delta rule on what the layers of the shipped model give it: keys that repeat, gates and write strengths as training
//! left them, where random numbers know nothing of each other.

use super::delta::{Layer, output_bound, state_bound};
use super::{Numbers, Report, Tiles, Trial};
use anyhow::Context;
use kiln::{DType, Device, Element, Tensor, bf16};
use kimi::config::Config;
use kimi::golden::Golden;
use kimi::model::ops::{Activation, Batch, Gate, state_shape, states_by_rows};
use kimi::reference::model::{KdaInputs, ReferenceModel, ReferenceTrace};
use kimi::weights::Weights;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// A folder of the repository: as it was when this was compiled, or below the working folder if that is elsewhere.
fn folder(compiled: PathBuf, below: &str) -> PathBuf {
    if compiled.is_dir() { compiled } else { below.into() }
}

/// (0-based layer, inputs) of the shipped model's KDA layers for the longest of the stored conversations, by the f64
/// reference.
fn layers() -> anyhow::Result<&'static [(usize, KdaInputs)]> {
    static LAYERS: LazyLock<anyhow::Result<Vec<(usize, KdaInputs)>>> = LazyLock::new(|| {
        let model = folder(kimi::shipped_model(), "kimi/models/kimi-tiny");
        let golden = folder(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/kimi-tiny"), "tests/golden/kimi-tiny");
        let config = Config::read(&model.join("config.json"))?;
        let golden = Golden::open(&golden, &config)?;
        let ids = golden.prompts.into_iter().map(|prompt| prompt.ids).max_by_key(Vec::len).context("no prompts")?;
        let model = ReferenceModel::load(config, &Weights::open(&model)?, |_, _| {})?;
        let mut trace = ReferenceTrace::default();
        model.forward(&ids, &mut model.new_state(), Some(&mut trace));
        Ok(trace.kda)
    });
    LAYERS.as_deref().map_err(|error| anyhow::anyhow!("replaying the shipped model: {error:#}"))
}

impl Layer {
    /// As they are after rounding to `T`.
    fn replayed<T: Activation>(trial: &Trial, given: &KdaInputs) -> anyhow::Result<Layer> {
        let (heads, channels) = (given.a_log.len(), given.dt_bias.len());
        let n = given.beta.len() / heads;
        let rows = |t: usize| given.qkv.iter().flat_map(move |x| &x[t * channels..][..channels]);
        Ok(Layer {
            key_heads: heads,
            heads,
            width: channels / heads,
            gate: Gate::Softplus,
            qkv: trial.input::<T>(&[n, 3 * channels], (0..n).flat_map(rows).copied().collect())?,
            decay: trial.input::<T>(&[n, channels], given.decay.clone())?,
            beta: trial.input::<T>(&[n, heads], given.beta.clone())?,
            a_log: trial.input::<f32>(&[heads], given.a_log.clone())?,
            dt_bias: trial.input::<f32>(&[channels], given.dt_bias.clone())?,
        })
    }
}

/// Against the f64 recurrence on exactly these inputs: outputs of each layer, and the last state of each head.
pub(super) fn delta_rule_replayed<T: Activation>(trial: &mut Trial) -> anyhow::Result<()> {
    for (at, given) in layers()? {
        let layer = Layer::replayed::<T>(trial, given)?;
        let (n, heads, width) = (layer.beta.tensor.shape()[0], layer.heads, layer.width);
        let mut state = trial.states([1, heads, width], 0.0)?;
        let batch = Batch::new(trial.ops::<T, f32>(), &[n], &[0])?;
        let got = layer.run::<T>(trial, 0, n, &mut state.tensor, &batch)?;
        let want = layer.reference(0, n, &mut state.values);
        let what = format!("layer {at}, {n} tokens");
        trial.compare(&what, &got, &want, want.len(), output_bound(T::DTYPE))?;
        trial.compare_states(&what, &state.tensor, &state.values, 1, state_bound(T::DTYPE))?;
    }
    Ok(())
}

/// Writes the same inputs, and what the kernels make of them, as safetensors for `tests/peers/kda_error.py`: by layer
/// q, k, v, x `[tokens, heads, width]`, beta `[tokens, heads]` and o in bf16, a_log `[heads]`, dt_bias `[heads, width]` and
/// the last state `[heads, key, value]` in f32. Returns how many layers there are.
///
/// # Errors
/// If the model cannot be read, a kernel cannot be launched, or the file cannot be written.
pub fn export(device: Device, path: &Path) -> anyhow::Result<usize> {
    let trial = Trial { device, tiles: Tiles::OfDevice, numbers: Numbers::new(0), report: Report::default() };
    let mut tensors = vec![];
    for (at, given) in layers()? {
        let layer = Layer::replayed::<bf16>(&trial, given)?;
        let (n, heads, width) = (layer.beta.tensor.shape()[0], layer.heads, layer.width);
        let mut state = Tensor::zeros(&state_shape(1, heads, width), f32::DTYPE, device)?;
        let batch = Batch::new(trial.ops::<bf16, f32>(), &[n], &[0])?;
        let o = layer.run::<bf16>(&trial, 0, n, &mut state, &batch)?;
        let qkv = layer.qkv.tensor.reshape(&[n, 3, heads, width])?;
        for (name, tensor) in [
            ("q", qkv.select(1, 0)?),
            ("k", qkv.select(1, 1)?),
            ("v", qkv.select(1, 2)?),
            ("x", layer.decay.tensor.reshape(&[n, heads, width])?),
            ("beta", layer.beta.tensor),
            ("a_log", layer.a_log.tensor),
            ("dt_bias", layer.dt_bias.tensor.reshape(&[heads, width])?),
            ("o", o),
            ("state", states_by_rows(&state)?.contiguous()?.reshape(&[heads, width, width])?),
        ] {
            tensors.push((format!("{at}.{name}"), tensor));
        }
    }
    std::fs::write(path, safetensors(&tensors)?).with_context(|| format!("writing {}", path.display()))?;
    Ok(layers()?.len())
}

/// 8 bytes of header length, a JSON header, the data.
fn safetensors(tensors: &[(String, Tensor)]) -> anyhow::Result<Vec<u8>> {
    let (mut header, mut data) = (serde_json::Map::new(), vec![]);
    for (name, tensor) in tensors {
        let from = data.len();
        data.extend(tensor.to_bytes()?);
        let dtype = if tensor.dtype() == DType::F32 { "F32" } else { "BF16" };
        let entry = serde_json::json!({ "dtype": dtype, "shape": tensor.shape(), "data_offsets": [from, data.len()] });
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header)?;
    // The data starts at a multiple of 8.
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok([&(header.len() as u64).to_le_bytes()[..], &header, &data].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written can be read again, and is what the model gave: rounded once, to bf16.
    #[test]
    fn exported_inputs_can_be_read() {
        let path = std::env::temp_dir().join(format!("kda-inputs-{}.safetensors", std::process::id()));
        assert_eq!(export(Device::Cpu, &path).unwrap(), layers().unwrap().len());
        let file = Weights::open_file(&path).unwrap();
        for (at, given) in layers().unwrap() {
            let read = |name: &str| file.find(&format!("{at}.{name}")).unwrap().to_f64().unwrap();
            let rounding = 1.0 / 256.0;
            let near = |a: &[f64], b: &[f64]| {
                assert_eq!(a.len(), b.len());
                a.iter().zip(b).all(|(a, b)| (a - b).abs() <= rounding * b.abs())
            };
            for (i, name) in ["q", "k", "v"].iter().enumerate() {
                assert!(near(&read(name), &given.qkv[i]), "layer {at}: {name}");
            }
            assert!(near(&read("x"), &given.decay) && near(&read("beta"), &given.beta));
            let mut state = vec![0.0; read("state").len()];
            let o = given.delta_rule(&mut state);
            // Inputs rounded to bf16 and the kernels' own roundings.
            assert!(kimi::reference::relative_error(&read("o"), &o) < 3e-2);
            assert!(kimi::reference::relative_error(&read("state"), &state) < 3e-2);
        }
        std::fs::remove_file(path).unwrap();
    }
}
