//! Kimi Linear: tokenizer, weights, the model, sampling, and a chat, with every kernel written in Kiln.
//!
//! | module | holds |
//! | --- | --- |
//! | [`config`] | `config.json`, checked field by field |
//! | [`weights`], [`checkpoint`] | memory-mapped safetensors; which tensors a model has |
//! | [`tokenizer`], [`template`] | text to tokens and back; chats without injection |
//! | [`reference`] | the naive f64 definition of every operation, and of the whole model |
//! | [`engine`] | what runs a model, as `verify` and `chat` see it |
//! | [`chat`] | the interactive program |
//! | [`golden`], [`verify`] | stored results of another implementation, and the comparison with them |
//! | [`sampling`] | sampling parameters, the counter-based generator, the host sampler |

pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod engine;
pub mod golden;
pub mod kernels;
pub mod model;
pub mod reference;
pub mod sampling;
pub mod template;
pub mod tokenizer;
pub mod verify;
pub mod weights;

/// The folder of the small checkpoint that ships in the repository.
pub fn shipped_model() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/kimi-tiny")
}
