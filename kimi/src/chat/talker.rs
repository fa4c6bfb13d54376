//! A model with its tokenizer and one session: prompt tokens in, a streamed reply out.
//!
//! The session's state is reused: where a prompt begins with the very tokens that the session holds, only the rest is
//! run; a recurrent state cannot be cut back, so any other prompt starts from the first token.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::interrupt;
use super::settings::Settings;
use crate::engine::{self, Device, Engine, SessionId, Want, check_append};
use crate::template::{ChatTemplate, Message};
use crate::tokenizer::{StreamDecoder, Tokenizer};

/// Prompts are run in pieces of this many tokens, so that Ctrl-C is noticed in between.
const PIECE: usize = 512;

/// Control tokens that end a reply, besides those that the config names.
const STOP_NAMES: [&str; 2] = ["[EOS]", "<|im_end|>"];

/// Why a reply ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model ended it.
    Token,
    /// It has as many tokens as allowed.
    Length,
    /// The context is full.
    Context,
    /// Ctrl-C.
    Interrupted,
}

/// A reply.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its tokens, the stop token included.
    pub ids: Vec<u32>,
    /// Its text without control tokens.
    pub text: String,
    /// Why it ended.
    pub stop: Stop,
    /// How long it took.
    pub stats: Stats,
}

/// Times of one reply.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// From the start of the program's loading to a ready model.
    pub load: Duration,
    /// Tokens of the prompt that the session held already.
    pub reused: usize,
    /// Tokens of the prompt that were run.
    pub prompt: usize,
    /// Until the first token of the reply, without `compile`.
    pub prefill: Duration,
    /// Tokens of the reply.
    pub reply: usize,
    /// From the first token of the reply to its last, without `compile`.
    pub decode: Duration,
    /// For compiling kernels that this reply was the first to need: once per process, however long the texts are.
    pub compile: Duration,
}

impl std::fmt::Display for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = |tokens: usize, time: Duration| {
            let seconds = time.as_secs_f64();
            if tokens > 0 && seconds > 0.0 { format!("{:.1} tok/s", tokens as f64 / seconds) } else { "- tok/s".into() }
        };
        let Stats { load, reused, prompt, prefill, reply, decode, compile } = *self;
        write!(f, "load {:.2} s; prefill {prompt} tokens, {}", load.as_secs_f64(), rate(prompt, prefill))?;
        if reused > 0 {
            write!(f, " ({reused} reused)")?;
        }
        // The first token comes out of the prefill.
        write!(f, "; decode {reply} tokens, {}", rate(reply.saturating_sub(1), decode))?;
        if !compile.is_zero() {
            write!(f, "; besides, {:.2} s for compiling kernels", compile.as_secs_f64())?;
        }
        Ok(())
    }
}

/// A point in time, and how long kernels had been compiled until then.
#[derive(Clone, Copy)]
struct Moment {
    at: Instant,
    compiled: Duration,
}

impl Moment {
    fn now() -> Moment {
        Moment { at: Instant::now(), compiled: kiln::compile_time() }
    }

    /// The time since `earlier` that went into something else than compiling.
    fn without_compiling_since(&self, earlier: &Moment) -> Duration {
        (self.at - earlier.at).saturating_sub(self.compiled - earlier.compiled)
    }
}

/// A loaded model, ready to talk.
pub struct Talker {
    /// Where it came from.
    pub folder: PathBuf,
    /// Text to tokens.
    pub tokenizer: Tokenizer,
    engine: Box<dyn Engine>,
    /// The open session and the tokens that it holds.
    session: Option<(SessionId, Vec<u32>)>,
    stops: Vec<u32>,
    load: Duration,
}

impl Talker {
    /// Loads a checkpoint; `progress(done, total)` is told bytes.
    pub fn open(folder: &Path, device: Device, progress: &mut dyn FnMut(usize, usize)) -> anyhow::Result<Talker> {
        let start = Instant::now();
        anyhow::ensure!(folder.is_dir(), "there is no such folder");
        let tokenizer = Tokenizer::open(folder)?;
        let engine = engine::open(folder, device, progress)?;
        Talker::new(folder, tokenizer, engine, start.elapsed())
    }

    /// A talker of parts that are loaded already.
    pub fn new(folder: &Path, tokenizer: Tokenizer, engine: Box<dyn Engine>, load: Duration) -> anyhow::Result<Talker> {
        let (words, rows) = (tokenizer.vocab_size(), engine.config().vocab_size);
        anyhow::ensure!(words <= rows, "the tokenizer has {words} tokens, but the model's vocabulary only {rows}");
        let mut stops = engine.config().eos_token_ids.clone();
        stops.extend(STOP_NAMES.iter().filter_map(|name| tokenizer.control_id(name)));
        Ok(Talker { folder: folder.into(), tokenizer, engine, session: None, stops, load })
    }

    /// Device and number type, for people.
    pub fn description(&self) -> String {
        self.engine.description()
    }

    /// Longest sequence in tokens.
    pub fn context(&self) -> usize {
        self.engine.config().model_max_length
    }

    /// The prompt for the assistant's answer to these messages.
    pub fn chat_prompt(&self, messages: &[Message]) -> anyhow::Result<Vec<u32>> {
        Ok(ChatTemplate::new(&self.tokenizer)?.encode(&self.tokenizer, messages, true)?)
    }

    /// The prompt for continuing a plain text: `[BOS]`, where the model has one, and the text.
    pub fn raw_prompt(&self, text: &str) -> Vec<u32> {
        let begin = self.engine.config().bos_token_id.or_else(|| self.tokenizer.control_id("[BOS]"));
        begin.into_iter().chain(self.tokenizer.encode(text)).collect()
    }

    /// Makes a reply to a prompt.  `each` is given every token and the text that became certain with it; with
    /// `show_control`, control tokens are part of that text by their names.
    ///
    /// # Errors
    /// The prompt is longer than the context or has unknown ids (nothing has happened then); the engine fails; `each`
    /// fails.
    pub fn reply(
        &mut self,
        prompt: &[u32],
        settings: &Settings,
        show_control: bool,
        each: &mut dyn FnMut(u32, &str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Reply> {
        check_append(self.engine.config(), 0, prompt)?;
        let _listening = interrupt::Reply::begin();
        let start = Moment::now();
        let mut reply = Reply {
            ids: Vec::new(),
            text: String::new(),
            stop: Stop::Interrupted,
            stats: Stats { load: self.load, ..Stats::default() },
        };
        reply.stats.reused = self.rewind(prompt)?;
        let (session, held) = self.session.as_mut().context("rewind opens a session")?;
        for piece in prompt[reply.stats.reused..].chunks(PIECE) {
            if interrupt::was_requested() {
                return Ok(reply);
            }
            self.engine.append(*session, piece, Want::Nothing)?;
            held.extend(piece);
            reply.stats.prompt += piece.len();
        }

        let mut decoder = StreamDecoder::default();
        let mut first = start;
        reply.stop = loop {
            if interrupt::was_requested() {
                break Stop::Interrupted;
            }
            if settings.max_tokens.is_some_and(|most| reply.ids.len() >= most) {
                break Stop::Length;
            }
            if held.len() >= self.engine.config().model_max_length {
                break Stop::Context;
            }
            let id = self.engine.step(*session, &settings.sampling)?;
            held.push(id);
            if reply.ids.is_empty() {
                first = Moment::now();
            }
            reply.ids.push(id);
            let ends = self.stops.contains(&id);
            let visible = show_control && !ends || !self.tokenizer.is_control(id);
            let bytes = self.tokenizer.token_bytes(id).filter(|_| visible).unwrap_or_default();
            let text = decoder.push(bytes);
            each(id, &text)?;
            reply.text += &text;
            if ends {
                break Stop::Token;
            }
        };
        let rest = decoder.finish();
        if let (false, Some(&id)) = (rest.is_empty(), reply.ids.last()) {
            each(id, &rest)?;
            reply.text += &rest;
        }
        let end = Moment::now();
        reply.stats.prefill = first.without_compiling_since(&start);
        reply.stats.decode = end.without_compiling_since(&first);
        reply.stats.compile = end.compiled - start.compiled;
        reply.stats.reply = reply.ids.len();
        Ok(reply)
    }

    /// Makes the session one that holds a proper beginning of `prompt`; gives its length.
    fn rewind(&mut self, prompt: &[u32]) -> anyhow::Result<usize> {
        match &self.session {
            Some((_, held)) if prompt.starts_with(held) && held.len() < prompt.len() => Ok(held.len()),
            _ => {
                if let Some((session, _)) = self.session.take() {
                    self.engine.close_session(session);
                }
                self.session = Some((self.engine.open_session()?, Vec::new()));
                Ok(0)
            }
        }
    }
}
