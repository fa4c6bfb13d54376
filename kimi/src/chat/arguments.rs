//! The command line of the chat.

use std::path::PathBuf;

use clap::Parser;

use crate::engine::Device;

/// Talk with a Kimi Linear model.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "chat", version)]
pub struct Arguments {
    /// Folder of the checkpoint [default: the small model that ships with the source]
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,

    /// Where to run: auto, cpu, cuda, cuda:N or interpret
    #[arg(long, default_value = "auto")]
    pub device: Device,

    /// Give one reply to this text, then exit (`-` reads the text from standard input)
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,

    /// System prompt
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["raw", "prompt_tokens"])]
    pub system: Option<String>,

    /// Sampling temperature; 0 always takes the most likely token [default: the checkpoint's]
    #[arg(long, value_name = "F")]
    pub temperature: Option<f32>,

    /// Keep the N most likely tokens; 0 keeps all
    #[arg(long, value_name = "N")]
    pub top_k: Option<u32>,

    /// Keep the most likely tokens that together have this probability
    #[arg(long, value_name = "F")]
    pub top_p: Option<f32>,

    /// Keep tokens at least this likely, relative to the most likely one
    #[arg(long, value_name = "F")]
    pub min_p: Option<f32>,

    /// Seed: the same seed gives the same tokens [default: another one each time]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Longest reply, in tokens [default: what the context holds]
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,

    /// No chat template: continue the text as it is, after [BOS]
    #[arg(long)]
    pub raw: bool,

    /// Token ids instead of a text, separated by blanks, continued exactly as they are; implies --raw
    #[arg(long, value_name = "ID ID …", conflicts_with = "prompt")]
    pub prompt_tokens: Option<String>,

    /// Print the token ids of the reply, a stop token included, on one line, instead of its text
    #[arg(long)]
    pub print_tokens: bool,

    /// Print load time and speed of each reply on standard error
    #[arg(long)]
    pub stats: bool,
}

impl Arguments {
    /// The ids of `--prompt-tokens`.
    ///
    /// # Errors
    /// Something in it is not a number, or there is nothing.
    pub fn prompt_tokens(&self) -> anyhow::Result<Option<Vec<u32>>> {
        let Some(text) = &self.prompt_tokens else { return Ok(None) };
        let id = |word: &str| {
            word.parse::<u32>().map_err(|e| anyhow::anyhow!("--prompt-tokens: {word:?} is not a token id: {e}"))
        };
        let ids = text.split_whitespace().map(id).collect::<Result<Vec<_>, _>>()?;
        anyhow::ensure!(!ids.is_empty(), "--prompt-tokens: there are no ids in {text:?}");
        Ok(Some(ids))
    }

    /// Is the chat template left out?
    pub fn is_raw(&self) -> bool {
        self.raw || self.prompt_tokens.is_some()
    }
}
