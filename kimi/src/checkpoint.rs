//! Which tensors a Kimi Linear checkpoint holds: every name and shape, written down once.
//!
//! [`ModelTensors::load`] walks them in the order of the forward pass and calls back for each, so that the same list
//! serves the f64 reference (`T = Vec<f64>`), an engine that uploads to a device (`T` = its tensor type), and a mere
//! check of a checkpoint (`T = ()`).

use crate::config::{Config, FeedForward, Mixer};

/// A SwiGLU feed-forward.
#[derive(Clone, Debug, Default)]
pub struct SwiGlu<T> {
    /// [width, hidden]
    pub gate: T,
    /// [width, hidden]
    pub up: T,
    /// [hidden, width]
    pub down: T,
}

/// Kimi Delta Attention; `channels` = heads * head width, and the low ranks are one head wide.
#[derive(Clone, Debug)]
pub struct Kda<T> {
    /// Query, key and value projections, each [channels, hidden].
    pub qkv_proj: [T; 3],
    /// Their short convolutions, each [channels, taps].
    pub qkv_conv: [T; 3],
    /// [heads], f32 in checkpoints
    pub a_log: T,
    /// [channels], f32 in checkpoints
    pub dt_bias: T,
    /// Decay gate, down: [head width, hidden].
    pub f_a_proj: T,
    /// Decay gate, up: [channels, head width].
    pub f_b_proj: T,
    /// Output gate, down: [head width, hidden].
    pub g_a_proj: T,
    /// Output gate, up: [channels, head width].
    pub g_b_proj: T,
    /// Beta: [heads, hidden].
    pub b_proj: T,
    /// [head width]
    pub o_norm: T,
    /// [hidden, channels]
    pub o_proj: T,
}

/// Multi-head latent attention.
#[derive(Clone, Debug)]
pub struct Mla<T> {
    /// [heads * (nope + rope), hidden]
    pub q_proj: T,
    /// Latent and shared key: [latent + rope, hidden].
    pub kv_a_proj: T,
    /// [latent]
    pub kv_a_norm: T,
    /// [heads * (nope + value), latent]; of each head, first the key's rows, then the value's.
    pub kv_b_proj: T,
    /// [hidden, heads * value]
    pub o_proj: T,
}

/// Routed and shared experts.
#[derive(Clone, Debug)]
pub struct Moe<T> {
    /// [experts, hidden]
    pub router: T,
    /// Selection bias [experts], f32 in checkpoints.
    pub router_bias: T,
    /// The routed experts.
    pub experts: Vec<SwiGlu<T>>,
    /// All shared experts as one feed-forward; `None` where the config has none.
    pub shared: Option<SwiGlu<T>>,
}

/// A layer's token mixer.
#[derive(Clone, Debug)]
#[allow(missing_docs, clippy::large_enum_variant)] // one per layer: size does not matter, indirection would
pub enum MixerTensors<T> {
    Kda(Kda<T>),
    Mla(Mla<T>),
}

/// A layer's feed-forward.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum FeedForwardTensors<T> {
    Dense(SwiGlu<T>),
    Moe(Moe<T>),
}

/// One layer.
#[derive(Clone, Debug)]
pub struct LayerTensors<T> {
    /// Norm before the mixer [hidden].
    pub input_norm: T,
    /// KDA or MLA.
    pub mixer: MixerTensors<T>,
    /// Norm before the feed-forward [hidden].
    pub post_norm: T,
    /// Dense or experts.
    pub feed_forward: FeedForwardTensors<T>,
}

/// The whole model.
#[derive(Clone, Debug)]
pub struct ModelTensors<T> {
    /// [vocabulary, hidden]
    pub embedding: T,
    /// In order.
    pub layers: Vec<LayerTensors<T>>,
    /// Final norm [hidden].
    pub norm: T,
    /// [vocabulary, hidden]; `None` where it is the embedding.
    pub lm_head: Option<T>,
}

impl<T> ModelTensors<T> {
    /// Calls `load(name, shape)` for every tensor of the model.
    ///
    /// # Errors
    /// The first error of `load`.
    pub fn load<E>(config: &Config, mut load: impl FnMut(&str, &[usize]) -> Result<T, E>) -> Result<Self, E> {
        let c = config;
        let table = [c.vocab_size, c.hidden_size];
        let embedding = load("model.embed_tokens.weight", &table)?;
        let mut layers = Vec::new();
        for (at, mixer) in c.mixers.iter().enumerate() {
            let prefix = format!("model.layers.{at}.");
            let mut load = |name: &str, shape: &[usize]| load(&format!("{prefix}{name}"), shape);
            layers.push(LayerTensors {
                input_norm: load("input_layernorm.weight", &[c.hidden_size])?,
                mixer: match mixer {
                    Mixer::Kda => MixerTensors::Kda(kda(c, &mut load)?),
                    Mixer::Mla => MixerTensors::Mla(mla(c, &mut load)?),
                },
                post_norm: load("post_attention_layernorm.weight", &[c.hidden_size])?,
                feed_forward: match c.feed_forward(at) {
                    FeedForward::Dense => FeedForwardTensors::Dense(swiglu(
                        c.hidden_size,
                        c.intermediate_size,
                        "mlp",
                        ["gate_proj", "up_proj", "down_proj"],
                        &mut load,
                    )?),
                    FeedForward::Moe => FeedForwardTensors::Moe(moe(c, &mut load)?),
                },
            });
        }
        let norm = load("model.norm.weight", &[c.hidden_size])?;
        let lm_head = if c.tie_word_embeddings { None } else { Some(load("lm_head.weight", &table)?) };
        Ok(ModelTensors { embedding, layers, norm, lm_head })
    }
}

fn kda<T, E>(c: &Config, load: &mut impl FnMut(&str, &[usize]) -> Result<T, E>) -> Result<Kda<T>, E> {
    let (hidden, channels, head) = (c.hidden_size, c.kda_channels(), c.kda_head_dim);
    let mut proj = |name: &str, shape: [usize; 2]| load(&format!("self_attn.{name}.weight"), &shape);
    Ok(Kda {
        qkv_proj: [
            proj("q_proj", [channels, hidden])?,
            proj("k_proj", [channels, hidden])?,
            proj("v_proj", [channels, hidden])?,
        ],
        qkv_conv: [
            proj("q_conv1d", [channels, c.conv_kernel])?,
            proj("k_conv1d", [channels, c.conv_kernel])?,
            proj("v_conv1d", [channels, c.conv_kernel])?,
        ],
        f_a_proj: proj("f_a_proj", [head, hidden])?,
        f_b_proj: proj("f_b_proj", [channels, head])?,
        g_a_proj: proj("g_a_proj", [head, hidden])?,
        g_b_proj: proj("g_b_proj", [channels, head])?,
        b_proj: proj("b_proj", [c.kda_heads, hidden])?,
        o_proj: proj("o_proj", [hidden, channels])?,
        o_norm: load("self_attn.o_norm.weight", &[head])?,
        a_log: load("self_attn.A_log", &[c.kda_heads])?,
        dt_bias: load("self_attn.dt_bias", &[channels])?,
    })
}

fn mla<T, E>(c: &Config, load: &mut impl FnMut(&str, &[usize]) -> Result<T, E>) -> Result<Mla<T>, E> {
    let expanded = c.mla_heads * (c.qk_nope_head_dim + c.v_head_dim);
    Ok(Mla {
        q_proj: load("self_attn.q_proj.weight", &[c.mla_heads * c.mla_qk_dim(), c.hidden_size])?,
        kv_a_proj: load("self_attn.kv_a_proj_with_mqa.weight", &[c.mla_cache_dim(), c.hidden_size])?,
        kv_a_norm: load("self_attn.kv_a_layernorm.weight", &[c.kv_lora_rank])?,
        kv_b_proj: load("self_attn.kv_b_proj.weight", &[expanded, c.kv_lora_rank])?,
        o_proj: load("self_attn.o_proj.weight", &[c.hidden_size, c.mla_heads * c.v_head_dim])?,
    })
}

fn moe<T, E>(c: &Config, load: &mut impl FnMut(&str, &[usize]) -> Result<T, E>) -> Result<Moe<T>, E> {
    let (hidden, width) = (c.hidden_size, c.moe_intermediate_size);
    let router = load("block_sparse_moe.gate.weight", &[c.experts, hidden])?;
    let router_bias = load("block_sparse_moe.gate.e_score_correction_bias", &[c.experts])?;
    let mut experts = Vec::new();
    for e in 0..c.experts {
        experts.push(swiglu(hidden, width, &format!("block_sparse_moe.experts.{e}"), ["w1", "w3", "w2"], load)?);
    }
    let shared = if c.shared_experts == 0 {
        None
    } else {
        let names = ["gate_proj", "up_proj", "down_proj"];
        Some(swiglu(hidden, c.shared_experts * width, "block_sparse_moe.shared_experts", names, load)?)
    };
    Ok(Moe { router, router_bias, experts, shared })
}

/// `names` are those of the gate, up and down matrices.
fn swiglu<T, E>(
    hidden: usize,
    width: usize,
    prefix: &str,
    names: [&str; 3],
    load: &mut impl FnMut(&str, &[usize]) -> Result<T, E>,
) -> Result<SwiGlu<T>, E> {
    let mut one = |name: &str, shape: [usize; 2]| load(&format!("{prefix}.{name}.weight"), &shape);
    Ok(SwiGlu {
        gate: one(names[0], [width, hidden])?,
        up: one(names[1], [width, hidden])?,
        down: one(names[2], [hidden, width])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Weights, WeightsError};

    #[test]
    fn the_list_covers_the_shipped_checkpoint() {
        let folder = crate::shipped_model();
        let config = Config::read(&folder.join("config.json")).unwrap();
        let weights = Weights::open(&folder).unwrap();
        let mut names = Vec::new();
        ModelTensors::load(&config, |name, shape| {
            names.push(name.to_owned());
            weights.tensor(name, shape).map(|_| ())
        })
        .unwrap();
        let mut stored: Vec<_> = weights.names().collect();
        stored.sort_unstable();
        names.sort_unstable();
        assert_eq!(names, stored);
    }

    #[test]
    fn a_config_with_other_sizes_is_noticed() {
        let folder = crate::shipped_model();
        let mut config = Config::read(&folder.join("config.json")).unwrap();
        let weights = Weights::open(&folder).unwrap();
        let check = |config: &Config| {
            ModelTensors::load(config, |name, shape| weights.tensor(name, shape).map(|_| ())).map(|_| ()).unwrap_err()
        };
        config.experts = 17;
        assert!(matches!(check(&config), WeightsError::Shape { name, .. } if name.ends_with("gate.weight")));
        config.experts = 16;
        config.hidden_size = 512;
        assert!(matches!(check(&config), WeightsError::Shape { .. }));
    }
}
