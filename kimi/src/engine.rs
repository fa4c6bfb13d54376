//! What runs a model, seen from the programs that use one (`verify`, `chat`, later a server).
//!
//! An engine owns the weights and any number of *sessions*; a session is one sequence with the state that the model
//! keeps of it.  The calls are cut so that an engine on a device has no reason to wait for it in between: `append`
//! with [`Want::Nothing`] only enqueues work, the logits of the last token stay on the device, `sample` picks from
//! them there and brings one number back, and `step` feeds the picked token to the next pass without waiting for the
//! host to see it (`model::step`).  Tests and `verify` look deeper through `trace` and `states`, which may be slow.
//!
//! Invariants for every engine:
//! - A call that returns an error has changed nothing: the session has the tokens that it had before.
//! - Appending a sequence in pieces of any length gives what appending it at once gives, within rounding, and what a
//!   session gives never depends on other sessions.
//! - Token t of a session is picked with the noise of position t ([`Sampling::pick`]), so the same seed gives the
//!   same tokens however the prompt was cut.

use std::path::Path;
use std::str::FromStr;

use crate::config::{Config, ConfigError};
use crate::reference::engine::ReferenceEngine;
use crate::sampling::Sampling;
use crate::weights::{Weights, WeightsError};

/// Why an engine could not be made or could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// `config.json` is unusable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tensors are unusable.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The sequence would become longer than the model allows.
    #[error("{have} tokens and {more} more exceed the model's context of {limit} tokens")]
    ContextExceeded { have: usize, more: usize, limit: usize },
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocabulary} tokens")]
    UnknownToken { id: u32, vocabulary: usize },
    /// Sampling or stepping before the first token.
    #[error("nothing to sample from: the session has no tokens yet")]
    NoLogits,
    /// A session id that is not open.
    #[error("session {0:?} is not open")]
    UnknownSession(SessionId),
    /// The device cannot be used.
    #[error("device `{device}` is not available: {reason}")]
    Unavailable { device: Device, reason: String },
    /// The device is out of memory.
    #[error("out of memory on {device}: {reason}")]
    OutOfMemory { device: String, reason: String },
    /// Anything else that went wrong on the device.
    #[error(transparent)]
    Device(Box<dyn std::error::Error + Send + Sync>),
}

impl From<kiln::Error> for EngineError {
    fn from(error: kiln::Error) -> EngineError {
        match error {
            kiln::Error::OutOfMemory { device, bytes, detail } => EngineError::OutOfMemory {
                device: device.to_string(),
                reason: format!("{bytes} bytes were asked for{detail}"),
            },
            error => EngineError::Device(Box::new(error)),
        }
    }
}

/// Where a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first GPU if there is one that works, else the CPU.
    #[default]
    Auto,
    /// Kernels compiled for this machine's CPU.
    Cpu,
    /// Kernels compiled for the NVIDIA GPU with this ordinal.
    Cuda(usize),
    /// Kernels interpreted, with every check; very slow.
    Interpret,
    /// No kernels at all: the naive f64 reference.
    Reference,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            "interpret" => Ok(Device::Interpret),
            "reference" => Ok(Device::Reference),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Device::Cuda)
                .ok_or_else(|| format!("unknown device {text:?}; expected auto, cpu, cuda, cuda:N or interpret")),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(n) => write!(f, "cuda:{n}"),
            Device::Interpret => f.write_str("interpret"),
            Device::Reference => f.write_str("reference"),
        }
    }
}

/// In what an engine computes; decides which tolerances it is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32 (or better) throughout.
    F32,
    /// bf16 matrix products and activations, f32 where the model asks for it.
    Bf16,
}

/// One open sequence of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub usize);

/// Which logits an [`Engine::append`] brings to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// None; those of the last token stay where they are, for [`Engine::sample`].
    Nothing,
    /// Those of the last token: [vocabulary].
    Last,
    /// Those of all appended tokens: [tokens, vocabulary].
    All,
}

/// What one forward pass passed by, at its last token.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Logits of all tokens [tokens, vocabulary].
    pub logits: Vec<f32>,
    /// The residual stream at the last token: embedding, after each layer, after the final norm; each [hidden].
    pub hidden: Vec<Vec<f32>>,
    /// The routers' choices for the last token, one per layer with experts.
    pub routing: Vec<LayerRouting>,
}

/// A router's choice for one token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerRouting {
    /// 0-based layer.
    pub layer: usize,
    /// Chosen experts, in any order.
    pub experts: Vec<u32>,
    /// Their weights, in the same order.
    pub weights: Vec<f32>,
}

/// What a layer remembers of a session.
#[derive(Clone, Debug, PartialEq)]
pub enum LayerState {
    /// Kimi Delta Attention.
    Kda {
        /// [heads, key, value]
        state: Vec<f32>,
        /// The last inputs of the convolutions [q, k and v channels, taps - 1], oldest first.
        conv: Vec<f32>,
    },
    /// The cache of latent attention.
    Mla {
        /// Normalised latents [tokens, latent].
        latent: Vec<f32>,
        /// Shared key parts [tokens, rope].
        shared: Vec<f32>,
    },
}

/// Runs a model.
pub trait Engine {
    /// The model's config.
    fn config(&self) -> &Config;

    /// One line for people: device and number type.
    fn description(&self) -> String;

    /// Which tolerances apply.
    fn precision(&self) -> Precision;

    /// Opens an empty session.
    fn open_session(&mut self) -> Result<SessionId, EngineError>;

    /// Frees a session; one that is not open is ignored.
    fn close_session(&mut self, session: SessionId);

    /// Number of tokens of an open session (0 for one that is not open).
    fn tokens(&self, session: SessionId) -> usize;

    /// Appends tokens (any number, also none) to a session and gives the logits that are wanted.
    fn append(&mut self, session: SessionId, ids: &[u32], want: Want) -> Result<Vec<f32>, EngineError>;

    /// Picks a token from the logits of the session's last one.  Does not append it.
    fn sample(&mut self, session: SessionId, sampling: &Sampling) -> Result<u32, EngineError>;

    /// Picks a token and appends it.  An engine on a device does both without waiting in between.
    fn step(&mut self, session: SessionId, sampling: &Sampling) -> Result<u32, EngineError> {
        check_append(self.config(), self.tokens(session), &[0])?;
        let id = self.sample(session, sampling)?;
        self.append(session, &[id], Want::Nothing)?;
        Ok(id)
    }

    /// Like [`Engine::append`] with [`Want::All`], and tells what it passed by.  At least one token.
    fn trace(&mut self, session: SessionId, ids: &[u32]) -> Result<Trace, EngineError>;

    /// What every layer remembers of a session.
    fn states(&mut self, session: SessionId) -> Result<Vec<LayerState>, EngineError>;
}

/// May these tokens be appended to a session of `have` tokens?  Engines ask before they change anything.
pub fn check_append(config: &Config, have: usize, ids: &[u32]) -> Result<(), EngineError> {
    let (more, limit, vocabulary) = (ids.len(), config.model_max_length, config.vocab_size);
    if more > limit.saturating_sub(have) {
        return Err(EngineError::ContextExceeded { have, more, limit });
    }
    match ids.iter().find(|id| **id as usize >= vocabulary) {
        Some(&id) => Err(EngineError::UnknownToken { id, vocabulary }),
        None => Ok(()),
    }
}

/// Loads the checkpoint in `folder` onto a device.  `progress(done, total)` is told bytes.
pub fn open(
    folder: &Path,
    device: Device,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Box<dyn Engine>, EngineError> {
    #[cfg(all(embedded_pack, feature = "cuda-packed"))]
    kiln::embed_pack(include_bytes!(env!("KIMI_PACK")));
    let config = Config::read(&folder.join("config.json"))?;
    let weights = Weights::open(folder)?;
    let device = match device {
        Device::Reference => return Ok(Box::new(ReferenceEngine::load(config, &weights, progress)?)),
        Device::Auto => kiln::Device::auto()?,
        Device::Cpu => kiln::Device::Cpu,
        Device::Interpret => kiln::Device::Interpret,
        Device::Cuda(n) => kiln::Device::Cuda(u32::try_from(n).unwrap_or(u32::MAX)),
    };
    crate::model::open(config, &weights, device, progress)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named() {
        for (text, device) in [("auto", Device::Auto), ("cuda:3", Device::Cuda(3)), ("interpret", Device::Interpret)] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "CPU"] {
            assert!(text.parse::<Device>().unwrap_err().contains("expected auto"));
        }
    }
}
