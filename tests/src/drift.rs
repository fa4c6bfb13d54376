//! How far an engine strays from f32 on the CPU: medians over many prompts, where `verify` has a few whose near ties decide
//! what they show.

use anyhow::ensure;
use kimi::engine::{Engine, EngineError, SessionId, Trace, Want};
use kimi::reference::relative_error;
use std::collections::BTreeSet;

/// Tokens of a prompt: chunks of the delta rule, and a last one that is not full.
const PROMPT: usize = 315;

/// Prompts cut into pieces of so many tokens (or not at all), against another trace of the same prompts.
struct Strays {
    name: String,
    /// By prompt: of the residual stream after each layer, at the last token.
    hidden: Vec<Vec<f64>>,
    /// By prompt: of the last token's logits.
    logits: Vec<f64>,
    /// Prompts whose last token met other experts, by layer with experts: where it did for the first time.
    parted: Vec<usize>,
}

impl Strays {
    fn new(name: impl Into<String>) -> Strays {
        Strays { name: name.into(), hidden: vec![], logits: vec![], parted: vec![] }
    }

    fn add(&mut self, got: &Trace, want: &Trace, vocabulary: usize) {
        let last = |trace: &Trace| trace.logits[trace.logits.len() - vocabulary..].to_vec();
        self.logits.push(relative_error(&last(got), &last(want)));
        self.hidden.push(got.hidden.iter().zip(&want.hidden).map(|(got, want)| relative_error(got, want)).collect());
        let met = |trace: &Trace| -> Vec<BTreeSet<u32>> {
            trace.routing.iter().map(|layer| layer.experts.iter().copied().collect()).collect()
        };
        self.parted.resize(want.routing.len(), 0);
        if let Some(layer) = met(got).iter().zip(met(want)).position(|(got, want)| *got != want) {
            self.parted[layer] += 1;
        }
    }

    fn report(&self) -> String {
        let layers = self.hidden.first().map_or(0, Vec::len);
        let by_layer: Vec<String> = (0..layers)
            .map(|layer| format!("{:.2e}", median(self.hidden.iter().map(|prompt| prompt[layer]).collect())))
            .collect();
        let beyond = self.logits.iter().filter(|&&error| error > 3e-2).count();
        format!(
            "{}\n  residual stream, median  {}\n  logits, median {:.2e}; beyond 3e-2 in {beyond} of {} prompts\n  other experts first met, by layer: {:?}",
            self.name,
            by_layer.join("  "),
            median(self.logits.clone()),
            self.logits.len(),
            self.parted
        )
    }
}

fn median(mut errors: Vec<f64>) -> f64 {
    errors.sort_by(f64::total_cmp);
    errors[errors.len() / 2]
}

/// Traces the last piece of a prompt after the others.
fn traced(engine: &mut dyn Engine, ids: &[u32], piece: usize) -> Result<Trace, EngineError> {
    let session = engine.open_session()?;
    let mut run = |session: SessionId| {
        let (before, last) = ids.split_at((ids.len() - 1) / piece * piece);
        for ids in before.chunks(piece) {
            engine.append(session, ids, Want::Nothing)?;
        }
        engine.trace(session, last)
    };
    let result = run(session);
    engine.close_session(session);
    result
}

/// Cuts `text` into prompts, runs them through both engines, by the first one also in pieces, and tells what differs.
///
/// # Errors
/// Of the engines; if there is no prompt.
pub fn drift(engine: &mut dyn Engine, exact: &mut dyn Engine, text: &[u32]) -> anyhow::Result<String> {
    let vocabulary = engine.config().vocab_size;
    let pieces = [7, 65];
    let mut whole = Strays::new("in one piece, from f32");
    let mut from_exact = pieces.map(|piece| Strays::new(format!("in pieces of {piece}, from f32")));
    let mut from_whole = pieces.map(|piece| Strays::new(format!("in pieces of {piece}, from one piece")));
    for ids in text.chunks_exact(PROMPT) {
        let want = traced(exact, ids, ids.len())?;
        let got = traced(engine, ids, ids.len())?;
        whole.add(&got, &want, vocabulary);
        for (at, piece) in pieces.into_iter().enumerate() {
            let in_pieces = traced(engine, ids, piece)?;
            from_exact[at].add(&in_pieces, &want, vocabulary);
            from_whole[at].add(&in_pieces, &got, vocabulary);
        }
    }
    ensure!(!whole.logits.is_empty(), "a prompt has {PROMPT} tokens, there are {}", text.len());
    let all = [whole].into_iter().chain(from_exact).chain(from_whole);
    Ok(all.map(|strays| strays.report()).collect::<Vec<_>>().join("\n"))
}
