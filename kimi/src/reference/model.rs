//! The whole model in f64, made of the operations beside it.
//!
//! It defines what a checkpoint means, and it carries state like a real engine does: a sequence may be given in
//! pieces of any length, and the pieces together must give what the whole gives.

use super::*;
use crate::checkpoint::{FeedForwardTensors, Kda, MixerTensors, Mla, ModelTensors};
use crate::config::{Config, LATENT_NORM_EPSILON, Mixer, QK_NORM_EPSILON};
use crate::weights::{Weights, WeightsError};

/// A model's weights in f64.
pub struct ReferenceModel {
    config: Config,
    tensors: ModelTensors<Vec<f64>>,
}

/// What one layer remembers of a sequence.
#[derive(Clone, Debug)]
pub enum ReferenceLayerState {
    /// The convolutions' last inputs and the delta rule's state.
    Kda {
        /// Of q, k and v: [channels, taps - 1], oldest first.
        conv: [Vec<f64>; 3],
        /// [heads, key, value]
        state: Vec<f64>,
    },
    /// The cache of all tokens so far.
    Mla {
        /// Normalised latents [tokens, latent].
        latent: Vec<f64>,
        /// Shared key parts [tokens, rope].
        shared: Vec<f64>,
    },
}

/// What a model remembers of a sequence.
#[derive(Clone, Debug)]
pub struct ReferenceState {
    /// Tokens so far.
    pub tokens: usize,
    /// One per layer.
    pub layers: Vec<ReferenceLayerState>,
}

/// What a forward pass passes by, for all its tokens.
#[derive(Clone, Debug, Default)]
pub struct ReferenceTrace {
    /// The residual stream [tokens, hidden]: embedding, after each layer, and after the final norm.
    pub hidden: Vec<Vec<f64>>,
    /// (0-based layer, its routing), for the layers with experts.
    pub routing: Vec<(usize, Routing)>,
    /// (0-based layer, what its delta rule is given), for the KDA layers.
    pub kda: Vec<(usize, KdaInputs)>,
}

/// What the delta rule of a KDA layer is given, weights included.
#[derive(Clone, Debug)]
pub struct KdaInputs {
    /// q, k and v after their convolutions, before q and k are normalised: [tokens, channels] each.
    pub qkv: [Vec<f64>; 3],
    /// The decay gate's projection, without `dt_bias`: [tokens, channels].
    pub decay: Vec<f64>,
    /// The write strength's projection, before the sigmoid: [tokens, heads].
    pub beta: Vec<f64>,
    /// [heads]
    pub a_log: Vec<f64>,
    /// [channels]
    pub dt_bias: Vec<f64>,
}

impl ReferenceModel {
    /// Widens all weights to f64: eight bytes a parameter, so this is for small models.
    /// `progress(done, total)` is told bytes of the checkpoint.
    pub fn load(
        config: Config,
        weights: &Weights,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<ReferenceModel, WeightsError> {
        let (mut done, total) = (0, weights.total_bytes());
        let tensors = ModelTensors::load(&config, |name, shape| {
            let tensor = weights.tensor(name, shape)?;
            done += tensor.bytes.len();
            progress(done, total);
            tensor.to_f64()
        })?;
        Ok(ReferenceModel { config, tensors })
    }

    /// The model's config.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The state before the first token.
    pub fn new_state(&self) -> ReferenceState {
        let c = &self.config;
        let layer = |mixer: &Mixer| match mixer {
            Mixer::Kda => ReferenceLayerState::Kda {
                conv: std::array::from_fn(|_| vec![0.0; c.kda_channels() * (c.conv_kernel - 1)]),
                state: vec![0.0; c.kda_heads * c.kda_head_dim * c.kda_head_dim],
            },
            Mixer::Mla => ReferenceLayerState::Mla { latent: Vec::new(), shared: Vec::new() },
        };
        ReferenceState { tokens: 0, layers: c.mixers.iter().map(layer).collect() }
    }

    /// Runs some tokens (each below the vocabulary's size) after those that `state` has seen, and gives the final
    /// norm's output [tokens, hidden]; [`ReferenceModel::logits`] makes logits of as many of its rows as are wanted.
    pub fn forward(&self, ids: &[u32], state: &mut ReferenceState, mut trace: Option<&mut ReferenceTrace>) -> Vec<f64> {
        let (c, hidden) = (&self.config, self.config.hidden_size);
        let mut x = embedding(ids, &self.tensors.embedding, hidden);
        let mut note = |x: &Vec<f64>, kda: Option<(usize, KdaInputs)>, routing: Option<(usize, Routing)>| {
            if let Some(trace) = trace.as_deref_mut() {
                trace.hidden.push(x.clone());
                trace.kda.extend(kda);
                trace.routing.extend(routing);
            }
        };
        note(&x, None, None);
        for (at, (layer, memory)) in self.tensors.layers.iter().zip(&mut state.layers).enumerate() {
            let (mut given, mut routing) = (None, None);
            let y = rms_norm(&x, &layer.input_norm, c.rms_norm_eps);
            let y = match (&layer.mixer, memory) {
                (MixerTensors::Kda(w), ReferenceLayerState::Kda { conv, state }) => {
                    let inputs = KdaInputs::new(c, w, &y, conv);
                    let y = kda(c, w, &y, &inputs, state);
                    given = Some((at, inputs));
                    y
                }
                (MixerTensors::Mla(w), ReferenceLayerState::Mla { latent, shared }) => mla(c, w, &y, latent, shared),
                _ => unreachable!("a state made by new_state has the model's layers"),
            };
            x = add(&x, &y);
            let y = rms_norm(&x, &layer.post_norm, c.rms_norm_eps);
            let y = match &layer.feed_forward {
                FeedForwardTensors::Dense(w) => feed_forward(&y, hidden, w),
                FeedForwardTensors::Moe(w) => {
                    let shape = RouterShape {
                        chosen: c.experts_per_token,
                        renormalize: c.moe_renormalize,
                        scale: c.routed_scaling_factor,
                    };
                    let chosen = route(shape, &linear(&y, &w.router, hidden), &w.router_bias);
                    let mut sum = experts(&y, hidden, &chosen, &w.experts);
                    if let Some(shared) = &w.shared {
                        sum = add(&sum, &feed_forward(&y, hidden, shared));
                    }
                    routing = Some((at, chosen));
                    sum
                }
            };
            x = add(&x, &y);
            note(&x, given, routing);
        }
        state.tokens += ids.len();
        let x = rms_norm(&x, &self.tensors.norm, c.rms_norm_eps);
        note(&x, None, None);
        x
    }

    /// Logits [tokens, vocabulary] of rows that [`ReferenceModel::forward`] gave.
    pub fn logits(&self, normed: &[f64]) -> Vec<f64> {
        let head = self.tensors.lm_head.as_ref().unwrap_or(&self.tensors.embedding);
        linear(normed, head, self.config.hidden_size)
    }
}

impl KdaInputs {
    /// From normalised input x [tokens, hidden]; `conv` as in [`ReferenceLayerState`].
    fn new(c: &Config, w: &Kda<Vec<f64>>, x: &[f64], conv: &mut [Vec<f64>; 3]) -> KdaInputs {
        let (hidden, channels, width) = (c.hidden_size, c.kda_channels(), c.kda_head_dim);
        KdaInputs {
            qkv: std::array::from_fn(|i| {
                short_convolution(&linear(x, &w.qkv_proj[i], hidden), &w.qkv_conv[i], channels, &mut conv[i])
            }),
            decay: linear(&linear(x, &w.f_a_proj, hidden), &w.f_b_proj, width),
            beta: linear(x, &w.b_proj, hidden),
            a_log: w.a_log.clone(),
            dt_bias: w.dt_bias.clone(),
        }
    }

    /// Normalisation, gates and the recurrence: o [tokens, channels]; `state` [heads, key, value] is updated.
    pub fn delta_rule(&self, state: &mut [f64]) -> Vec<f64> {
        let (heads, width) = (self.a_log.len(), self.dt_bias.len() / self.a_log.len());
        let [q, k, v] = &self.qkv;
        let q = l2_norm(q, width, QK_NORM_EPSILON, (width as f64).powf(-0.5));
        let k = l2_norm(k, width, QK_NORM_EPSILON, 1.0);
        let g = kda_gate(&self.decay, &self.a_log, &self.dt_bias);
        let beta: Vec<f64> = self.beta.iter().map(|x| sigmoid(*x)).collect();
        kda_recurrence(KdaShape { key_heads: heads, heads, key: width, value: width }, &q, &k, v, &g, &beta, state)
    }
}

/// Kimi Delta Attention on normalised input x [tokens, hidden] -> [tokens, hidden].
fn kda(c: &Config, w: &Kda<Vec<f64>>, x: &[f64], inputs: &KdaInputs, state: &mut [f64]) -> Vec<f64> {
    let (hidden, channels, width) = (c.hidden_size, c.kda_channels(), c.kda_head_dim);
    let o = inputs.delta_rule(state);
    let gate = linear(&linear(x, &w.g_a_proj, hidden), &w.g_b_proj, width);
    linear(&gated_rms_norm(&o, &gate, &w.o_norm, c.rms_norm_eps), &w.o_proj, channels)
}

/// Latent attention on normalised input x [tokens, hidden] -> [tokens, hidden]; appends to the cache.
fn mla(c: &Config, w: &Mla<Vec<f64>>, x: &[f64], latent: &mut Vec<f64>, shared: &mut Vec<f64>) -> Vec<f64> {
    let hidden = c.hidden_size;
    let q = linear(x, &w.q_proj, hidden);
    for row in linear(x, &w.kv_a_proj, hidden).chunks_exact(c.mla_cache_dim()) {
        let (compressed, key) = row.split_at(c.kv_lora_rank);
        latent.extend(rms_norm(compressed, &w.kv_a_norm, LATENT_NORM_EPSILON));
        shared.extend(key);
    }
    let shape = MlaShape {
        heads: c.mla_heads,
        latent: c.kv_lora_rank,
        nope: c.qk_nope_head_dim,
        rope: c.qk_rope_head_dim,
        value: c.v_head_dim,
    };
    linear(&mla_attention(shape, &q, latent, shared, &w.kv_b_proj), &w.o_proj, c.mla_heads * c.v_head_dim)
}
