//! Stored results of another implementation (Hugging Face transformers, f32 on a CPU), to compare an engine with.
//!
//! A golden folder holds `golden.json` and `golden.safetensors`; the tensors are listed in the shipped checkpoint's
//! README.  Everything is checked on reading, so that a comparison never indexes outside of what is there.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::config::{Config, FeedForward, Mixer};
use crate::weights::{Tensor, Weights, WeightsError};

/// Why golden data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// `golden.json` could not be read.
    #[error("cannot read {path}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// `golden.json` is not what it should be.
    #[error("{path}: {reason}", path = path.display())]
    Json { path: PathBuf, reason: String },
    /// `golden.safetensors` is not what it should be.
    #[error(transparent)]
    Tensors(#[from] WeightsError),
    /// A tensor does not fit the model.
    #[error("golden tensor `{name}` has shape {found:?}, expected {expected}: it is not of this model")]
    Shape { name: String, found: Vec<usize>, expected: String },
}

/// All stored results.
pub struct Golden {
    /// By prompt.
    pub prompts: Vec<GoldenPrompt>,
    /// The held-out conversations, each scored alone.
    pub held_out: Vec<HeldOut>,
}

/// Results for one prompt.
pub struct GoldenPrompt {
    /// Its name, for people.
    pub name: String,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Position of the first of the stored logits; they go to the end.
    pub logits_from: usize,
    /// [tokens - logits_from, vocabulary]
    pub logits: Vec<f32>,
    /// At the last position: embedding, each layer, final norm: [layers + 2, hidden].
    pub hidden: Vec<f32>,
    /// At the last position, per layer with experts: [layers with experts, chosen].
    pub experts: Vec<u32>,
    /// Their weights.
    pub expert_weights: Vec<f32>,
    /// Lead of the last expert chosen over the first left out, per layer with experts.
    pub expert_margin: Vec<f32>,
    /// The greedy continuation.
    pub greedy: Vec<u32>,
    /// Lead of each of its tokens over the runner-up.
    pub greedy_margin: Vec<f32>,
    /// States after the prompt, where they are stored.
    pub states: Vec<GoldenState>,
}

/// A KDA layer's memory after a prompt.
pub struct GoldenState {
    /// 0-based.
    pub layer: usize,
    /// [heads, key, value]
    pub state: Vec<f32>,
    /// The last `taps - 1` inputs of the q, k and v convolutions: [3 * channels, taps - 1], oldest first.
    pub conv: Vec<f32>,
}

/// One conversation that the model was not trained on.
pub struct HeldOut {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Sum of -ln p over all tokens but the first.
    pub nll: f64,
}

impl Golden {
    /// Reads a golden folder for the model with this config.
    pub fn open(folder: &Path, config: &Config) -> Result<Golden, GoldenError> {
        #[derive(Deserialize)]
        struct Info {
            prompts: Vec<PromptInfo>,
        }
        let path = folder.join("golden.json");
        let text = std::fs::read_to_string(&path).map_err(|source| GoldenError::Read { path: path.clone(), source })?;
        let info: Info =
            serde_json::from_str(&text).map_err(|e| GoldenError::Json { path: path.clone(), reason: e.to_string() })?;
        let tensors = Tensors(Weights::open_file(&folder.join("golden.safetensors"))?);
        let mut prompts = Vec::new();
        for (at, info) in info.prompts.into_iter().enumerate() {
            let impossible = info.logits_from >= info.tokens || info.tokens == 0;
            if impossible {
                let reason =
                    format!("prompt {:?}: {} tokens, logits from {}", info.name, info.tokens, info.logits_from);
                return Err(GoldenError::Json { path, reason });
            }
            prompts.push(tensors.prompt(&format!("p{at}"), info, config)?);
        }
        Ok(Golden { prompts, held_out: tensors.held_out()? })
    }
}

#[derive(Deserialize)]
struct PromptInfo {
    name: String,
    tokens: usize,
    logits_from: usize,
}

struct Tensors(Weights);

impl Tensors {
    fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, GoldenError> {
        let tensor = self.0.find(name).ok_or_else(|| WeightsError::MissingTensor { name: name.into() })?;
        if tensor.shape == shape { Ok(tensor) } else { Err(misfit(tensor, format!("{shape:?}"))) }
    }

    fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, GoldenError> {
        Ok(self.get(name, shape)?.to_f32()?)
    }

    fn ids(&self, name: &str, shape: &[usize]) -> Result<Vec<u32>, GoldenError> {
        Ok(self.get(name, shape)?.to_i32()?.into_iter().map(|id| id as u32).collect())
    }

    fn prompt(&self, prefix: &str, info: PromptInfo, c: &Config) -> Result<GoldenPrompt, GoldenError> {
        let name = |part: &str| format!("{prefix}.{part}");
        let routed = (0..c.layers()).filter(|layer| c.feed_forward(*layer) == FeedForward::Moe).count();
        let greedy = self.length(&name("greedy"))?;
        let mut states = Vec::new();
        for (layer, mixer) in c.mixers.iter().enumerate() {
            let (state, conv) = (name(&format!("state.{layer}")), name(&format!("conv.{layer}")));
            if *mixer == Mixer::Kda && self.0.find(&state).is_some() {
                let state = self.floats(&state, &[c.kda_heads, c.kda_head_dim, c.kda_head_dim])?;
                // As many inputs as the convolution has taps are stored; the oldest of them no longer matters.
                let conv = self.floats(&conv, &[3 * c.kda_channels(), c.conv_kernel])?;
                let conv = conv.chunks_exact(c.conv_kernel).flat_map(|inputs| &inputs[1..]).copied().collect();
                states.push(GoldenState { layer, state, conv });
            }
        }
        Ok(GoldenPrompt {
            ids: self.ids(&name("ids"), &[info.tokens])?,
            logits: self.floats(&name("logits"), &[info.tokens - info.logits_from, c.vocab_size])?,
            logits_from: info.logits_from,
            hidden: self.floats(&name("hidden"), &[c.layers() + 2, c.hidden_size])?,
            experts: self.ids(&name("experts"), &[routed, c.experts_per_token])?,
            expert_weights: self.floats(&name("expert_weights"), &[routed, c.experts_per_token])?,
            expert_margin: self.floats(&name("expert_margin"), &[routed])?,
            greedy: self.ids(&name("greedy"), &[greedy])?,
            greedy_margin: self.floats(&name("greedy_margin"), &[greedy])?,
            name: info.name,
            states,
        })
    }

    fn length(&self, name: &str) -> Result<usize, GoldenError> {
        let tensor = self.0.find(name).ok_or_else(|| WeightsError::MissingTensor { name: name.into() })?;
        match tensor.shape {
            [length] => Ok(*length),
            _ => Err(misfit(tensor, "one dimension".into())),
        }
    }

    fn held_out(&self) -> Result<Vec<HeldOut>, GoldenError> {
        let count = self.length("val.nll")?;
        let ids = self.ids("val.ids", &[self.length("val.ids")?])?;
        let offsets = self.ids("val.offsets", &[count + 1])?;
        let nll = self.get("val.nll", &[count])?.to_f64()?;
        let piece = |(pair, nll): (&[u32], &f64)| {
            let ids = ids.get(pair[0] as usize..pair[1] as usize).filter(|ids| !ids.is_empty());
            ids.map(|ids| HeldOut { ids: ids.to_vec(), nll: *nll })
        };
        let all: Option<_> = offsets.windows(2).zip(&nll).map(piece).collect();
        all.ok_or_else(|| GoldenError::Shape {
            name: "val.offsets".into(),
            found: vec![count + 1],
            expected: "rising offsets into val.ids".into(),
        })
    }
}

fn misfit(tensor: Tensor<'_>, expected: String) -> GoldenError {
    GoldenError::Shape { name: tensor.name.into(), found: tensor.shape.into(), expected }
}
