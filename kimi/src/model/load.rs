//! Brings a checkpoint onto a device, in the form the kernels want.
//!
//! Projections of one input are stacked into one matrix, so that one launch computes them; the experts of a layer are
//! stacked into one tensor. Matrices keep one type `W` (that of the embedding); norms, convolution taps, gates' constants
//! and the router are f32, which holds every checkpoint type exactly.

use crate::checkpoint::{FeedForwardTensors, Kda, MixerTensors, Mla, ModelTensors, Moe, SwiGlu};
use crate::config::Config;
use crate::engine::EngineError;
use crate::weights::{self, Dtype, Weights};
use kiln::{DType, Device, Tensor};

/// SwiGLU.
pub struct FeedForwardWeights {
    /// Gate above up: [2·width, hidden].
    pub gate_up: Tensor,
    /// [hidden, width]
    pub down: Tensor,
}

/// Kimi Delta Attention; channels = heads·head width.
pub struct KdaWeights {
    /// q, k, v projections: [3·channels, hidden].
    pub qkv: Tensor,
    /// Their taps [taps, 3·channels], f32.
    pub conv: Tensor,
    /// Down projections of decay and output gate, and beta: [2·head width + heads, hidden].
    pub low_rank: Tensor,
    /// Up projection of the decay [channels, head width].
    pub decay: Tensor,
    /// Up projection of the output gate [channels, head width].
    pub gate: Tensor,
    /// [heads], f32
    pub a_log: Tensor,
    /// [channels], f32
    pub dt_bias: Tensor,
    /// [head width], f32
    pub norm: Tensor,
    /// [hidden, channels]
    pub out: Tensor,
}

/// Latent attention.
pub struct MlaWeights {
    /// [heads·(nope + rope), hidden]
    pub q: Tensor,
    /// [latent + rope, hidden]
    pub kv_a: Tensor,
    /// [latent], f32
    pub norm: Tensor,
    /// [heads·(nope + value), latent]
    pub kv_b: Tensor,
    /// [hidden, heads·value]
    pub out: Tensor,
}

/// Routed and shared experts.
pub struct MoeWeights {
    /// [experts, hidden], f32
    pub router: Tensor,
    /// [experts], f32
    pub bias: Tensor,
    /// [experts, width, hidden]
    pub gate: Tensor,
    /// [experts, width, hidden]
    pub up: Tensor,
    /// [experts, hidden, width]
    pub down: Tensor,
    pub shared: Option<FeedForwardWeights>,
}

#[allow(clippy::large_enum_variant)] // one per layer
pub enum MixerWeights {
    Kda(KdaWeights),
    Mla(MlaWeights),
}

#[allow(clippy::large_enum_variant)]
pub enum FeedForward {
    Dense(FeedForwardWeights),
    Moe(MoeWeights),
}

pub struct LayerWeights {
    pub input_norm: Tensor,
    pub mixer: MixerWeights,
    pub post_norm: Tensor,
    pub feed_forward: FeedForward,
}

pub struct ModelWeights {
    pub embedding: Tensor,
    pub layers: Vec<LayerWeights>,
    pub norm: Tensor,
    /// `None` where it is the embedding.
    pub lm_head: Option<Tensor>,
}

/// The type that matrices of this checkpoint have on the device: that of the embedding.
pub fn weight_type(config: &Config, weights: &Weights) -> Result<DType, EngineError> {
    let table = weights.tensor("model.embed_tokens.weight", &[config.vocab_size, config.hidden_size])?;
    Ok(dtype_of(table.dtype))
}

fn dtype_of(dtype: Dtype) -> DType {
    match dtype {
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        _ => DType::F32,
    }
}

struct Loader<'p> {
    device: Device,
    matrix: DType,
    done: usize,
    total: usize,
    progress: &'p mut dyn FnMut(usize, usize),
}

type Stored<'a> = weights::Tensor<'a>;

impl Loader<'_> {
    /// Tensors on top of each other along dimension 0, as one of `shape` and `dtype`.
    fn stack(&mut self, parts: &[&Stored<'_>], shape: &[usize], dtype: DType) -> Result<Tensor, EngineError> {
        let whole = Tensor::uninit(&[shape.iter().product()], dtype, self.device)?;
        let mut at = 0;
        for part in parts {
            let mut place = whole.narrow(0, at, part.len())?;
            if dtype_of(part.dtype) == dtype {
                place.write_bytes(part.bytes)?;
            } else {
                place.copy_from(&Tensor::from_f32(&part.to_f32()?, dtype, &[part.len()], self.device)?)?;
            }
            at += part.len();
            self.done += part.bytes.len();
            (self.progress)(self.done, self.total);
        }
        Ok(whole.reshape(shape)?)
    }

    fn matrix(&mut self, parts: &[&Stored<'_>], shape: &[usize]) -> Result<Tensor, EngineError> {
        self.stack(parts, shape, self.matrix)
    }

    fn floats(&mut self, parts: &[&Stored<'_>], shape: &[usize]) -> Result<Tensor, EngineError> {
        self.stack(parts, shape, DType::F32)
    }

    fn swiglu(
        &mut self,
        w: &SwiGlu<Stored<'_>>,
        width: usize,
        hidden: usize,
    ) -> Result<FeedForwardWeights, EngineError> {
        Ok(FeedForwardWeights {
            gate_up: self.matrix(&[&w.gate, &w.up], &[2 * width, hidden])?,
            down: self.matrix(&[&w.down], &[hidden, width])?,
        })
    }

    fn kda(&mut self, c: &Config, w: &Kda<Stored<'_>>) -> Result<KdaWeights, EngineError> {
        let (hidden, heads, head, channels) = (c.hidden_size, c.kda_heads, c.kda_head_dim, c.kda_channels());
        let [q, k, v] = &w.qkv_proj;
        let [conv_q, conv_k, conv_v] = &w.qkv_conv;
        Ok(KdaWeights {
            qkv: self.matrix(&[q, k, v], &[3 * channels, hidden])?,
            // By tap, so that neighbouring channels lie side by side.
            conv: self
                .floats(&[conv_q, conv_k, conv_v], &[3 * channels, c.conv_kernel])?
                .transpose(0, 1)?
                .contiguous()?,
            low_rank: self.matrix(&[&w.f_a_proj, &w.g_a_proj, &w.b_proj], &[2 * head + heads, hidden])?,
            decay: self.matrix(&[&w.f_b_proj], &[channels, head])?,
            gate: self.matrix(&[&w.g_b_proj], &[channels, head])?,
            a_log: self.floats(&[&w.a_log], &[heads])?,
            dt_bias: self.floats(&[&w.dt_bias], &[channels])?,
            norm: self.floats(&[&w.o_norm], &[head])?,
            out: self.matrix(&[&w.o_proj], &[hidden, channels])?,
        })
    }

    fn mla(&mut self, c: &Config, w: &Mla<Stored<'_>>) -> Result<MlaWeights, EngineError> {
        let (hidden, heads, latent) = (c.hidden_size, c.mla_heads, c.kv_lora_rank);
        Ok(MlaWeights {
            q: self.matrix(&[&w.q_proj], &[heads * c.mla_qk_dim(), hidden])?,
            kv_a: self.matrix(&[&w.kv_a_proj], &[c.mla_cache_dim(), hidden])?,
            norm: self.floats(&[&w.kv_a_norm], &[latent])?,
            kv_b: self.matrix(&[&w.kv_b_proj], &[heads * (c.qk_nope_head_dim + c.v_head_dim), latent])?,
            out: self.matrix(&[&w.o_proj], &[hidden, heads * c.v_head_dim])?,
        })
    }

    fn moe(&mut self, c: &Config, w: &Moe<Stored<'_>>) -> Result<MoeWeights, EngineError> {
        let (hidden, experts, width) = (c.hidden_size, c.experts, c.moe_intermediate_size);
        let all = |pick: for<'a, 'b> fn(&'a SwiGlu<Stored<'b>>) -> &'a Stored<'b>| {
            w.experts.iter().map(pick).collect::<Vec<_>>()
        };
        let shared = match &w.shared {
            Some(shared) => Some(self.swiglu(shared, c.shared_experts * width, hidden)?),
            None => None,
        };
        Ok(MoeWeights {
            router: self.floats(&[&w.router], &[experts, hidden])?,
            bias: self.floats(&[&w.router_bias], &[experts])?,
            gate: self.matrix(&all(|e| &e.gate), &[experts, width, hidden])?,
            up: self.matrix(&all(|e| &e.up), &[experts, width, hidden])?,
            down: self.matrix(&all(|e| &e.down), &[experts, hidden, width])?,
            shared,
        })
    }
}

impl ModelWeights {
    /// Checks every tensor first, then copies; `progress(done, total)` is told bytes of the checkpoint.
    ///
    /// # Errors
    /// A tensor is missing or has another shape or type than the config says; the device is out of memory.
    pub fn load(
        config: &Config,
        weights: &Weights,
        device: Device,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<ModelWeights, EngineError> {
        let stored = ModelTensors::load(config, |name, shape| weights.tensor(name, shape))?;
        let matrix = weight_type(config, weights)?;
        let mut load = Loader { device, matrix, done: 0, total: weights.total_bytes(), progress };
        let (hidden, table) = (config.hidden_size, [config.vocab_size, config.hidden_size]);
        let embedding = load.matrix(&[&stored.embedding], &table)?;
        let mut layers = vec![];
        for layer in &stored.layers {
            layers.push(LayerWeights {
                input_norm: load.floats(&[&layer.input_norm], &[hidden])?,
                mixer: match &layer.mixer {
                    MixerTensors::Kda(w) => MixerWeights::Kda(load.kda(config, w)?),
                    MixerTensors::Mla(w) => MixerWeights::Mla(load.mla(config, w)?),
                },
                post_norm: load.floats(&[&layer.post_norm], &[hidden])?,
                feed_forward: match &layer.feed_forward {
                    FeedForwardTensors::Dense(w) => {
                        FeedForward::Dense(load.swiglu(w, config.intermediate_size, hidden)?)
                    }
                    FeedForwardTensors::Moe(w) => FeedForward::Moe(load.moe(config, w)?),
                },
            });
        }
        let norm = load.floats(&[&stored.norm], &[hidden])?;
        let lm_head = match &stored.lm_head {
            Some(head) => Some(load.matrix(&[head], &table)?),
            None => None,
        };
        Ok(ModelWeights { embedding, layers, norm, lm_head })
    }
}
