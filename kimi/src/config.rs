//! `config.json` of a Kimi Linear checkpoint.
//!
//! `model_type: "kimi_linear"` is shared by models that this crate cannot run (gates with a lower bound, rotary
//! positions, extra prediction heads, vision towers…).  Running one of those would give fluent nonsense, so a
//! configuration is judged field by field: every dimension is read and checked, every switch must have the value
//! that the code implements, and a field that is not known at all is refused unless it is plainly switched off
//! (`null`, `false`).  The error always names the field.
//!
//! Invariants of a [`Config`] that was read: every dimension is at least 1 and at most [`MAX_DIMENSION`]; the KDA and
//! full-attention lists together name every layer exactly once; `experts_per_token <= experts`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// No dimension of a sane checkpoint is larger; products of three of them still fit in 64 bits.
pub const MAX_DIMENSION: usize = 1 << 20;

/// Epsilon of the norm on the MLA latent.  It is not in `config.json`: transformers builds that norm with its class
/// default and every checkpoint was made with it.
pub const LATENT_NORM_EPSILON: f64 = 1e-6;

/// Epsilon under the square root of the L2 normalisation of KDA's queries and keys.
pub const QK_NORM_EPSILON: f64 = 1e-6;

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {path}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The file is not a JSON object.
    #[error("{path} is not a JSON object: {reason}", path = path.display())]
    Json { path: PathBuf, reason: String },
    /// A required field is absent.
    #[error("config field `{field}` is missing (expected {expected})")]
    Missing { field: String, expected: &'static str },
    /// A field has a type or value that cannot be right for any model.
    #[error("config field `{field}` is {found}, expected {expected}")]
    Invalid { field: String, found: String, expected: String },
    /// The field is legitimate, but asks for something that this implementation does not have.
    #[error("config field `{field}` is {found}, which is not supported: {reason}")]
    Unsupported { field: String, found: String, reason: String },
}

/// How a layer mixes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mixer {
    /// Kimi Delta Attention: a gated delta rule with a fixed-size state.
    Kda,
    /// Multi-head latent attention over all earlier tokens, without positions.
    Mla,
}

/// What follows the mixer in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForward {
    /// One SwiGLU of `intermediate_size`.
    Dense,
    /// Routed experts plus the shared ones.
    Moe,
}

/// The dimensions and switches of a Kimi Linear model, as its `config.json` states them.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Rows of the embedding and of the output head.
    pub vocab_size: usize,
    /// Epsilon of every RMS norm but the latent's ([`LATENT_NORM_EPSILON`]).
    pub rms_norm_eps: f64,
    /// The output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Longest sequence, in tokens.
    pub model_max_length: usize,
    /// Mixer of each layer, in order; its length is the number of layers.
    pub mixers: Vec<Mixer>,

    /// KDA: heads.
    pub kda_heads: usize,
    /// KDA: width of a head's key and of its value.
    pub kda_head_dim: usize,
    /// KDA: taps of the short causal convolution.
    pub conv_kernel: usize,

    /// MLA: heads.
    pub mla_heads: usize,
    /// MLA: width of the compressed key-value latent.
    pub kv_lora_rank: usize,
    /// MLA: part of a head's query and key that comes from the latent.
    pub qk_nope_head_dim: usize,
    /// MLA: part of the key that all heads share.  It would carry the rotation; in this model nothing is rotated.
    pub qk_rope_head_dim: usize,
    /// MLA: width of a head's value.
    pub v_head_dim: usize,

    /// Width of the dense feed-forward.
    pub intermediate_size: usize,
    /// The first so many layers are dense.
    pub first_k_dense_replace: usize,
    /// Of the later layers, those whose 0-based index is a multiple of this have experts.
    pub moe_layer_freq: usize,
    /// Routed experts of a layer.
    pub experts: usize,
    /// Experts chosen for a token.
    pub experts_per_token: usize,
    /// Shared experts; they are stored as one SwiGLU of `shared_experts * moe_intermediate_size`.
    pub shared_experts: usize,
    /// Width of one expert.
    pub moe_intermediate_size: usize,
    /// Divide the chosen experts' weights by their sum.
    pub moe_renormalize: bool,
    /// Factor on the experts' weights, after that.
    pub routed_scaling_factor: f64,

    /// First token of a plain text, where the checkpoint names one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a reply.
    pub eos_token_ids: Vec<u32>,
    /// Padding.
    pub pad_token_id: Option<u32>,
    /// The type most weights are stored in, as the config says ("bfloat16"); informative.
    pub dtype: Option<String>,
}

/// Fields that say nothing about what is computed, or repeat what other fields say.
const HARMLESS: &[&str] = &[
    "architectures",
    "auto_map",
    "attention_bias",
    "attention_dropout",
    "chunk_size_feed_forward",
    "head_dim",
    "id2label",
    "initializer_range",
    "label2id",
    "max_position_embeddings",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "rope_parameters",
    "rope_theta",
    "tokenizer_class",
    "transformers_version",
    "use_cache",
    "is_encoder_decoder",
];

/// Switches with the only value that is implemented, and what another value would mean.
const REQUIRED: &[(&str, &str, &str)] = &[
    ("model_type", "\"kimi_linear\"", "only Kimi Linear checkpoints can be run"),
    ("mla_use_nope", "true", "rotary positions on the MLA layers are not implemented"),
    ("moe_router_activation_func", "\"sigmoid\"", "the router's scores are sigmoids"),
    ("hidden_act", "\"silu\"", "feed-forwards are SwiGLU"),
];

/// Fields that may be absent, and the only value that is implemented.
const OPTIONAL: &[(&str, &str, &str)] = &[
    ("num_nextn_predict_layers", "0", "extra prediction (MTP) layers are not implemented"),
    ("q_lora_rank", "null", "compressed MLA queries are not implemented"),
    ("rope_scaling", "null", "nothing is rotated in this model"),
    ("num_expert_group", "1", "choosing expert groups before experts is not implemented"),
    ("topk_group", "1", "choosing expert groups before experts is not implemented"),
    ("attention_bias", "false", "attention projections have no bias"),
    ("quantization_config", "null", "quantised checkpoints are not implemented; use bf16, f16 or f32 weights"),
];

impl Config {
    /// Reads and checks `config.json`.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
        let not_json = |reason: String| ConfigError::Json { path: path.into(), reason };
        match serde_json::from_str(&text).map_err(|e| not_json(e.to_string()))? {
            Value::Object(fields) => Config::from_fields(&fields),
            other => Err(not_json(format!("it is {}", brief(&other)))),
        }
    }

    /// Checks the fields of a parsed `config.json`.
    pub fn from_fields(fields: &Map<String, Value>) -> Result<Config, ConfigError> {
        let top = Fields { fields, prefix: "" };
        for &(name, expected, reason) in REQUIRED {
            top.only(name, expected, reason, true)?;
        }
        for &(name, expected, reason) in OPTIONAL {
            top.only(name, expected, reason, false)?;
        }

        let layers = top.dimension("num_hidden_layers")?;
        let linear_fields = match fields.get("linear_attn_config") {
            Some(Value::Object(inner)) => inner,
            Some(other) => return Err(top.invalid("linear_attn_config", other, "an object")),
            None => return Err(top.missing("linear_attn_config", "an object with the KDA dimensions")),
        };
        let linear = Fields { fields: linear_fields, prefix: "linear_attn_config." };
        let mla_heads = top.dimension("num_attention_heads")?;
        if fields.contains_key("num_key_value_heads") && top.dimension("num_key_value_heads")? != mla_heads {
            let found = brief(&fields["num_key_value_heads"]);
            let reason = format!("MLA expands the latent to one key per query head, so it must be {mla_heads}");
            return Err(ConfigError::Unsupported { field: "num_key_value_heads".into(), found, reason });
        }

        let config = Config {
            hidden_size: top.dimension("hidden_size")?,
            vocab_size: top.dimension("vocab_size")?,
            rms_norm_eps: top.positive("rms_norm_eps")?,
            tie_word_embeddings: top.switch("tie_word_embeddings", false)?,
            model_max_length: top.context_length()?,
            mixers: mixers(&linear, layers)?,
            kda_heads: linear.dimension("num_heads")?,
            kda_head_dim: linear.dimension("head_dim")?,
            conv_kernel: linear.dimension("short_conv_kernel_size")?,
            mla_heads,
            kv_lora_rank: top.dimension("kv_lora_rank")?,
            qk_nope_head_dim: top.dimension("qk_nope_head_dim")?,
            qk_rope_head_dim: top.dimension("qk_rope_head_dim")?,
            v_head_dim: top.dimension("v_head_dim")?,
            intermediate_size: top.dimension("intermediate_size")?,
            first_k_dense_replace: top.count("first_k_dense_replace")?,
            moe_layer_freq: if fields.contains_key("moe_layer_freq") { top.dimension("moe_layer_freq")? } else { 1 },
            experts: top.dimension("num_experts")?,
            experts_per_token: top.dimension("num_experts_per_token")?,
            shared_experts: top.count("num_shared_experts")?,
            moe_intermediate_size: top.dimension("moe_intermediate_size")?,
            moe_renormalize: top.switch("moe_renormalize", true)?,
            routed_scaling_factor: top.positive("routed_scaling_factor")?,
            bos_token_id: top.tokens("bos_token_id")?.first().copied(),
            eos_token_ids: top.tokens("eos_token_id")?,
            pad_token_id: top.tokens("pad_token_id")?.first().copied(),
            dtype: ["dtype", "torch_dtype"].iter().find_map(|k| fields.get(*k)?.as_str().map(str::to_owned)),
        };
        if config.experts_per_token > config.experts {
            let expected = format!("at most num_experts = {}", config.experts);
            return Err(top.invalid("num_experts_per_token", &fields["num_experts_per_token"], expected));
        }
        for field in ["bos_token_id", "eos_token_id", "pad_token_id"] {
            if top.tokens(field)?.iter().any(|&id| id as usize >= config.vocab_size) {
                return Err(top.invalid(field, &fields[field], format!("below vocab_size = {}", config.vocab_size)));
            }
        }

        linear.refuse_unknown(&[
            "full_attn_layers",
            "kda_layers",
            "num_heads",
            "head_dim",
            "short_conv_kernel_size",
        ])?;
        top.refuse_unknown(TOP_LEVEL)?;
        Ok(config)
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.mixers.len()
    }

    /// What follows the mixer in the layer with this 0-based index.
    pub fn feed_forward(&self, layer: usize) -> FeedForward {
        if layer >= self.first_k_dense_replace && layer.is_multiple_of(self.moe_layer_freq) {
            FeedForward::Moe
        } else {
            FeedForward::Dense
        }
    }

    /// Channels of each of KDA's q, k and v: heads times head width.
    pub fn kda_channels(&self) -> usize {
        self.kda_heads * self.kda_head_dim
    }

    /// Width of one MLA query or key: the latent's part and the shared part.
    pub fn mla_qk_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// Numbers that MLA caches for a token in one layer: latent and shared key.
    pub fn mla_cache_dim(&self) -> usize {
        self.kv_lora_rank + self.qk_rope_head_dim
    }
}

/// Top-level fields that [`Config::from_fields`] reads.
const TOP_LEVEL: &[&str] = &[
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "first_k_dense_replace",
    "hidden_size",
    "intermediate_size",
    "kv_lora_rank",
    "linear_attn_config",
    "model_max_length",
    "moe_intermediate_size",
    "moe_layer_freq",
    "moe_renormalize",
    "num_attention_heads",
    "num_experts",
    "num_experts_per_token",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_shared_experts",
    "pad_token_id",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "rms_norm_eps",
    "routed_scaling_factor",
    "tie_word_embeddings",
    "torch_dtype",
    "use_grouped_topk",
    "v_head_dim",
    "vocab_size",
];

/// A layer's mixer from the two **1-indexed** lists, which must partition the layers.
fn mixers(linear: &Fields, layers: usize) -> Result<Vec<Mixer>, ConfigError> {
    let mut mixers = vec![None; layers];
    for (field, mixer) in [("kda_layers", Mixer::Kda), ("full_attn_layers", Mixer::Mla)] {
        let expected = || format!("a list of layer numbers from 1 to {layers}, each layer in exactly one list");
        let value = linear.get(field, "a list of layer numbers counted from 1")?;
        let list = value.as_array().ok_or_else(|| linear.invalid(field, value, expected()))?;
        for entry in list {
            let slot =
                entry.as_u64().and_then(|n| n.checked_sub(1)).and_then(|n| mixers.get_mut(usize::try_from(n).ok()?));
            match slot {
                Some(slot @ None) => *slot = Some(mixer),
                _ => return Err(linear.invalid(field, entry, expected())),
            }
        }
    }
    mixers
        .iter()
        .enumerate()
        .map(|(at, mixer)| {
            mixer.ok_or_else(|| ConfigError::Invalid {
                field: "linear_attn_config.kda_layers".into(),
                found: format!("without layer {}", at + 1),
                expected: "every layer in it or in full_attn_layers".into(),
            })
        })
        .collect()
}

/// One JSON object with the path that errors prefix its fields with.
struct Fields<'a> {
    fields: &'a Map<String, Value>,
    prefix: &'static str,
}

impl Fields<'_> {
    fn name(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }

    fn missing(&self, field: &str, expected: &'static str) -> ConfigError {
        ConfigError::Missing { field: self.name(field), expected }
    }

    fn invalid(&self, field: &str, found: &Value, expected: impl Into<String>) -> ConfigError {
        ConfigError::Invalid { field: self.name(field), found: brief(found), expected: expected.into() }
    }

    fn get(&self, field: &str, expected: &'static str) -> Result<&Value, ConfigError> {
        self.fields.get(field).ok_or_else(|| self.missing(field, expected))
    }

    /// A whole number from `least` to [`MAX_DIMENSION`].
    fn whole(&self, field: &str, least: usize) -> Result<usize, ConfigError> {
        let value = self.get(field, "a whole number")?;
        let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
        number
            .filter(|n| (least..=MAX_DIMENSION).contains(n))
            .ok_or_else(|| self.invalid(field, value, format!("a whole number from {least} to {MAX_DIMENSION}")))
    }

    fn dimension(&self, field: &str) -> Result<usize, ConfigError> {
        self.whole(field, 1)
    }

    fn count(&self, field: &str) -> Result<usize, ConfigError> {
        self.whole(field, 0)
    }

    fn positive(&self, field: &str) -> Result<f64, ConfigError> {
        let value = self.get(field, "a positive number")?;
        let number = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        number.ok_or_else(|| self.invalid(field, value, "a positive number"))
    }

    fn switch(&self, field: &str, default: bool) -> Result<bool, ConfigError> {
        match self.fields.get(field) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.invalid(field, value, "true or false")),
        }
    }

    /// `model_max_length`, or `max_position_embeddings` where only that is given.
    fn context_length(&self) -> Result<usize, ConfigError> {
        let field =
            if self.fields.contains_key("model_max_length") { "model_max_length" } else { "max_position_embeddings" };
        let value =
            self.fields.get(field).ok_or_else(|| self.missing("model_max_length", "the context length in tokens"))?;
        let length = value.as_u64().filter(|n| (1..=1 << 31).contains(n));
        length.map(|n| n as usize).ok_or_else(|| self.invalid(field, value, "a context length from 1 to 2^31 tokens"))
    }

    /// A token id, a list of them, or nothing.
    fn tokens(&self, field: &str) -> Result<Vec<u32>, ConfigError> {
        let one = |value: &Value| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| self.invalid(field, value, "a token id"))
        };
        match self.fields.get(field) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(value) => Ok(vec![one(value)?]),
        }
    }

    /// Refuses any value but `expected` (written as JSON), with the reason.
    fn only(&self, field: &str, expected: &'static str, reason: &str, required: bool) -> Result<(), ConfigError> {
        let Some(value) = self.fields.get(field) else {
            return if required { Err(self.missing(field, expected)) } else { Ok(()) };
        };
        let (text, absent) = (value.to_string(), value.is_null() && !required);
        if absent || text == expected {
            return Ok(());
        }
        let reason = format!("{reason} (expected {expected})");
        Err(ConfigError::Unsupported { field: self.name(field), found: brief(value), reason })
    }

    /// Refuses fields that nobody above looked at, unless they are switched off.
    fn refuse_unknown(&self, known: &[&str]) -> Result<(), ConfigError> {
        let checked = |name: &str| REQUIRED.iter().chain(OPTIONAL).any(|(field, ..)| *field == name);
        for (name, value) in self.fields {
            let off = matches!(value, Value::Null | Value::Bool(false));
            let fine =
                self.prefix.is_empty() && (checked(name) || HARMLESS.contains(&name.as_str()) || name.starts_with('_'));
            if !off && !fine && !known.contains(&name.as_str()) {
                return Err(ConfigError::Unsupported {
                    field: self.name(name),
                    found: brief(value),
                    reason: "the field is not known, so the model may compute something that is not implemented".into(),
                });
            }
        }
        Ok(())
    }
}

/// A JSON value short enough for an error message.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { format!("{}…", text.chars().take(57).collect::<String>()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tiny() -> Map<String, Value> {
        serde_json::from_str(include_str!("../models/kimi-tiny/config.json")).unwrap()
    }

    fn error_with(field: &str, value: Value) -> String {
        let mut fields = tiny();
        match field.split_once('.') {
            Some((outer, inner)) => fields[outer][inner] = value,
            None => drop(fields.insert(field.into(), value)),
        }
        Config::from_fields(&fields).unwrap_err().to_string()
    }

    #[test]
    fn reads_the_shipped_config() {
        let config = Config::from_fields(&tiny()).unwrap();
        use Mixer::{Kda, Mla};
        assert_eq!(config.mixers, [Kda, Kda, Kda, Mla, Kda, Kda, Mla]);
        assert_eq!((config.hidden_size, config.kda_channels(), config.mla_qk_dim()), (256, 256, 96));
        assert_eq!((config.feed_forward(0), config.feed_forward(1)), (FeedForward::Dense, FeedForward::Moe));
        assert_eq!(config.eos_token_ids, [3842]);
    }

    #[test]
    fn refuses_other_models_and_names_the_field() {
        let cases = [
            ("model_type", json!("llama")),
            ("mla_use_nope", json!(false)),
            ("num_nextn_predict_layers", json!(1)),
            ("vision_config", json!({"depth": 2})),
            ("q_lora_rank", json!(1536)),
            ("hidden_act", json!("gelu")),
            ("moe_router_activation_func", json!("softmax")),
            ("num_expert_group", json!(8)),
            ("topk_group", json!(4)),
            ("rope_scaling", json!({"type": "yarn"})),
            ("quantization_config", json!({"bits": 8})),
            ("num_key_value_heads", json!(1)),
            ("attention_bias", json!(true)),
            ("attn_residual_block", json!(4)),
            ("linear_attn_config.gate_lower_bound", json!(-5.0)),
            ("linear_attn_config.full_attn_layers", json!([4])),
            ("linear_attn_config.full_attn_layers", json!([3, 4, 7])),
            ("linear_attn_config.full_attn_layers", json!([0, 4, 7])),
            ("linear_attn_config.kda_layers", json!([1, 2, 3, 5, 6, 8])),
            ("linear_attn_config.head_dim", json!(0)),
            ("hidden_size", json!(-1)),
            ("hidden_size", json!(1u64 << 40)),
            ("vocab_size", json!("many")),
            ("num_experts_per_token", json!(17)),
            ("eos_token_id", json!(4096)),
            ("rms_norm_eps", json!(0.0)),
        ];
        for (field, value) in cases {
            let message = error_with(field, value.clone());
            let named = if field.ends_with("full_attn_layers") { "linear_attn_config." } else { field };
            assert!(message.contains(named), "{field} = {value}: {message}");
        }
    }

    #[test]
    fn names_a_missing_field() {
        for field in ["hidden_size", "linear_attn_config", "mla_use_nope", "num_experts", "model_max_length"] {
            let mut fields = tiny();
            fields.remove(field);
            let message = Config::from_fields(&fields).unwrap_err().to_string();
            assert!(message.contains(field) && message.contains("missing"), "{message}");
        }
    }

    #[test]
    fn unknown_fields_that_are_off_do_not_matter() {
        let mut fields = tiny();
        fields.insert("some_new_feature".into(), json!(false));
        fields.insert("vision_config".into(), Value::Null);
        fields.insert("eos_token_id".into(), json!([3842, 3841]));
        assert_eq!(Config::from_fields(&fields).unwrap().eos_token_ids, [3842, 3841]);
    }
}
