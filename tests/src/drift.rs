//! How far an engine strays from f32 on the CPU: medians over many prompts, where `verify` has a few whose near ties decide
//! what they show.

use anyhow::ensure;
use kimi::engine::{Engine, EngineError, SessionId, Trace, Want};
use kimi::reference::relative_error;
use std::collections::BTreeSet;

/// Tokens of a prompt: chunks of the delta rule, and a last one that is not full.
const PROMPT: usize = 315;

/// A relative error of logits that bf16 shows where other experts are met, and hardly elsewhere.
const FAR: f64 = 3e-2;

/// Traces of prompts against others of the same prompts.
struct Strays {
    name: String,
    /// By prompt: relative errors of the residual stream, embedding to final norm, at the last token.
    hidden: Vec<Vec<f64>>,
    /// By prompt: relative error of the last token's logits.
    logits: Vec<f64>,
    /// By layer with experts: prompts whose last token met other experts there, and in no layer before.
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
        let of_layer = |layer: usize| median(self.hidden.iter().map(|prompt| prompt[layer]).collect());
        let hidden: Vec<String> = (0..layers).map(|layer| format!("{:.2e}", of_layer(layer))).collect();
        let (hidden, logits) = (hidden.join("  "), median(self.logits.clone()));
        let (beyond, prompts) = (self.logits.iter().filter(|&&error| error > FAR).count(), self.logits.len());
        format!(
            "{}\n  residual stream, median: {hidden}\n  logits, median: {logits:.2e}; beyond {FAR:.0e} in {beyond} of \
             {prompts} prompts\n  other experts first met, by layer: {:?}",
            self.name, self.parted
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

#[cfg(test)]
mod tests {
    use super::*;
    use kimi::engine::LayerRouting;

    #[test]
    fn strays_are_told_by_layer() {
        let trace = |last: f32, experts: [[u32; 2]; 2]| Trace {
            logits: vec![1.0, 0.0, last, 0.0],
            hidden: vec![vec![1.0], vec![last]],
            routing: experts.map(|of| LayerRouting { experts: of.to_vec(), ..LayerRouting::default() }).to_vec(),
        };
        let mut strays = Strays::new("some");
        let want = trace(1.0, [[0, 1], [2, 3]]);
        for got in [trace(1.5, [[1, 0], [3, 2]]), trace(1.01, [[0, 1], [3, 4]]), trace(1.25, [[0, 2], [0, 1]])] {
            strays.add(&got, &want, 2);
        }
        assert_eq!(
            strays.report(),
            "some\n  residual stream, median: 0.00e0  2.50e-1\n  logits, median: 2.50e-1; beyond 3e-2 in 2 of 3 prompts\n  \
             other experts first met, by layer: [1, 1]"
        );
    }
}
