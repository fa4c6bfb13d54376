//! `kimi verify`: does an engine compute what the stored results say?
//!
//! Perplexity alone hides a wrong router (leaving out the selection bias changes the total loss of the shipped model
//! by 0.002 %, and single logits by 13), so everything that is stored is compared: logits, the residual stream after
//! every layer, the routers' choices, states, greedy tokens, and only then the loss.
//!
//! Checks with a tolerance decide about the result; the rest is printed to show *where* a difference starts.

use std::io::Write;

use crate::engine::{Engine, EngineError, LayerRouting, LayerState, Precision, Want};
use crate::golden::{Golden, GoldenPrompt};
use crate::reference::{negative_log_likelihood, relative_error};
use crate::sampling::Sampling;

/// What to compare.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Only prompts of at most this many tokens.
    pub longest_prompt: usize,
    /// Greedy tokens per prompt (at most as many as are stored).
    pub greedy_tokens: usize,
    /// Score the held-out conversations.
    pub held_out: bool,
}

/// The tolerances of a number type.
#[derive(Clone, Copy, Debug)]
pub struct Tolerances {
    /// Relative error of a position's logits.
    pub logits: LogitErrors,
    /// Experts may differ where the stored margin is below this.
    pub expert_margin: f32,
    /// Relative error of the states, where it is bounded.
    pub states: Option<f64>,
    /// Must all greedy tokens be equal?
    pub greedy: bool,
    /// Total loss of the held-out conversations: absolute (nats) and relative; the larger one binds.
    pub loss: (f64, f64),
}

impl Tolerances {
    /// f32 leaves four decimal digits to the order of summation, over which transformers itself is off by 3e-5 from
    /// f64.  bf16 has 8 bits of mantissa: transformers' own bf16 run shows 3e-2.  There a router's near tie falls either
    /// way, and a position that meets another expert is off by more, whatever the kernels: so most positions are bound,
    /// the median one more tightly, and the worst one by what no such exchange explains.
    pub fn of(precision: Precision) -> Tolerances {
        match precision {
            Precision::F32 => Tolerances {
                logits: LogitErrors { median: 1e-4, most: 1e-4, worst: 1e-4 },
                expert_margin: 0.0,
                states: Some(1e-4),
                greedy: true,
                loss: (1.0, 0.0),
            },
            Precision::Bf16 => Tolerances {
                logits: LogitErrors { median: 1e-2, most: 3e-2, worst: 2e-1 },
                expert_margin: 2e-2,
                states: None,
                greedy: false,
                loss: (0.0, 1e-3),
            },
        }
    }
}

/// Relative errors of logits, position by position.
#[derive(Clone, Copy, Debug)]
pub struct LogitErrors {
    /// Of the median position.
    pub median: f64,
    /// Of all but one position in 20, or a part of 20.
    pub most: f64,
    /// Of the worst position.
    pub worst: f64,
}

impl LogitErrors {
    /// Of logits [positions, vocabulary], at least one position.
    fn of(got: &[f32], want: &[f32], vocabulary: usize) -> LogitErrors {
        let rows = got.chunks_exact(vocabulary).zip(want.chunks_exact(vocabulary));
        let mut errors: Vec<f64> = rows.map(|(got, want)| relative_error(got, want)).collect();
        errors.sort_by(f64::total_cmp);
        let last = errors.len() - 1;
        let most = last.saturating_sub(errors.len().div_ceil(20));
        LogitErrors { median: errors[errors.len() / 2], most: errors[most], worst: errors[last] }
    }

    fn within(self, tolerance: LogitErrors) -> bool {
        self.median <= tolerance.median && self.most <= tolerance.most && self.worst <= tolerance.worst
    }
}

impl std::fmt::Display for LogitErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "median {:.1e}, 19 of 20 {:.1e}, worst {:.1e}", self.median, self.most, self.worst)
    }
}

/// What a run amounts to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Checks with a tolerance that were made.
    pub checks: usize,
    /// Those that failed, in words.
    pub failures: Vec<String>,
}

/// A run in progress.
struct Run<'a> {
    engine: &'a mut dyn Engine,
    out: &'a mut dyn Write,
    tolerances: Tolerances,
    report: Report,
}

/// Compares an engine with stored results and writes what it finds to `out`.
///
/// # Errors
/// Of the engine and of `out`; differences are no errors, they are in the report.
pub fn verify(
    engine: &mut dyn Engine,
    golden: &Golden,
    options: Options,
    out: &mut dyn Write,
) -> anyhow::Result<Report> {
    let tolerances = Tolerances::of(engine.precision());
    writeln!(out, "engine: {}", engine.description())?;
    let mut run = Run { engine, out, tolerances, report: Report::default() };
    for (at, prompt) in golden.prompts.iter().enumerate() {
        if prompt.ids.len() <= options.longest_prompt {
            writeln!(run.out, "\nprompt {at} \"{}\", {} tokens", prompt.name, prompt.ids.len())?;
            run.prompt(at, prompt)?;
            run.pieces(at, prompt)?;
            run.greedy(at, prompt, options.greedy_tokens)?;
        }
    }
    if options.held_out {
        run.held_out(golden)?;
    }
    let report = run.report;
    writeln!(out)?;
    for failure in &report.failures {
        writeln!(out, "FAILED: {failure}")?;
    }
    let failed = report.failures.len();
    writeln!(out, "{} checks, {} passed, {failed} failed", report.checks, report.checks - failed)?;
    Ok(report)
}

impl Run<'_> {
    /// Counts a check and keeps what failed.
    fn check(&mut self, passed: bool, what: impl FnOnce() -> String) {
        self.report.checks += 1;
        if !passed {
            self.report.failures.push(what());
        }
    }

    /// Runs something in a session of its own.
    fn in_session<T>(
        &mut self,
        body: impl FnOnce(&mut dyn Engine, crate::engine::SessionId) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let session = self.engine.open_session()?;
        let result = body(self.engine, session);
        self.engine.close_session(session);
        result
    }

    /// Logits, hidden states, routing and states of one prompt in one piece.
    fn prompt(&mut self, at: usize, prompt: &GoldenPrompt) -> anyhow::Result<()> {
        let tolerances = self.tolerances;
        let (trace, states) =
            self.in_session(|engine, session| Ok((engine.trace(session, &prompt.ids)?, engine.states(session)?)))?;
        let config = self.engine.config();
        let (vocabulary, hidden, chosen) = (config.vocab_size, config.hidden_size, config.experts_per_token);
        anyhow::ensure!(
            trace.logits.len() == prompt.ids.len() * vocabulary
                && trace.hidden.len() * hidden == prompt.hidden.len()
                && trace.routing.len() == prompt.expert_margin.len(),
            "the engine's trace does not have the model's shape"
        );

        let got = &trace.logits[prompt.logits_from * vocabulary..];
        let errors = LogitErrors::of(got, &prompt.logits, vocabulary);
        let whole = relative_error(got, &prompt.logits);
        writeln!(self.out, "  logits     error {whole:.1e}, by position: {errors} (tolerance: {})", tolerances.logits)?;
        self.check(errors.within(tolerances.logits), || format!("prompt {at}: logits are off by position: {errors}"));

        for (layer, (got, want)) in trace.hidden.iter().zip(prompt.hidden.chunks_exact(hidden)).enumerate() {
            let name = match layer {
                0 => "embedding".into(),
                n if n + 1 == trace.hidden.len() => "final norm".into(),
                n => format!("layer {n:<4}"),
            };
            write!(self.out, "  {name:10} error {:.1e}", relative_error(got, want))?;
            if let Some(at_routed) = trace.routing.iter().position(|routing| routing.layer + 1 == layer) {
                self.routing(at, prompt, at_routed, &trace.routing[at_routed], chosen)?;
            }
            let stored = prompt.states.iter().find(|stored| stored.layer + 1 == layer);
            if let (Some(stored), Some(LayerState::Kda { state, conv })) =
                (stored, layer.checked_sub(1).and_then(|layer| states.get(layer)))
            {
                let (state, conv) = (relative_error(state, &stored.state), relative_error(conv, &stored.conv));
                write!(self.out, "; state {state:.1e}, convolution {conv:.1e}")?;
                if let Some(tolerance) = tolerances.states {
                    self.check(state.max(conv) <= tolerance, || {
                        format!("prompt {at}, layer {layer}: state off by {state:.2e}, convolution by {conv:.2e}")
                    });
                }
            }
            writeln!(self.out)?;
        }
        Ok(())
    }

    /// One router's choice against the stored one.
    fn routing(
        &mut self,
        at: usize,
        prompt: &GoldenPrompt,
        routed: usize,
        got: &LayerRouting,
        chosen: usize,
    ) -> anyhow::Result<()> {
        let range = routed * chosen..(routed + 1) * chosen;
        let (experts, margin) = (&prompt.experts[range.clone()], prompt.expert_margin[routed]);
        let found = |expert: &u32| got.experts.iter().position(|e| e == expert);
        let agreed = experts.iter().filter(|expert| found(expert).is_some()).count();
        let near_tie = margin < self.tolerances.expert_margin;
        write!(self.out, "; experts {agreed}/{chosen}")?;
        if agreed == chosen {
            let weights: Vec<f32> = experts.iter().filter_map(|e| got.weights.get(found(e)?).copied()).collect();
            write!(self.out, ", weights error {:.1e}", relative_error(&weights, &prompt.expert_weights[range]))?;
        } else {
            write!(self.out, " (margin {margin:.1e}{})", if near_tie { ", a near tie" } else { "" })?;
        }
        let equal = agreed == chosen && got.experts.len() == chosen;
        let layer = got.layer + 1;
        self.check(equal || near_tie, || {
            format!("prompt {at}, layer {layer}: {agreed} of {chosen} experts agree, at a margin of {margin:.2e}")
        });
        Ok(())
    }

    /// The same prompt in pieces must give the same logits as in one piece; the last position, from which a reply goes on,
    /// is none of the few that may be off by more.
    fn pieces(&mut self, at: usize, prompt: &GoldenPrompt) -> anyhow::Result<()> {
        let (ids, vocabulary) = (&prompt.ids, self.engine.config().vocab_size);
        let want = self.in_session(|engine, session| engine.append(session, ids, Want::All))?;
        // Odd pieces, and as token by token as it stays quick.
        for piece in [1, 7, 65].into_iter().filter(|piece| *piece < ids.len() && ids.len() / piece <= 128) {
            let got = self.in_session(|engine, session| {
                let mut logits = Vec::new();
                for ids in ids.chunks(piece) {
                    logits.extend(engine.append(session, ids, Want::All)?);
                }
                Ok(logits)
            })?;
            anyhow::ensure!(got.len() == want.len(), "the engine's logits do not have the model's shape");
            let errors = LogitErrors::of(&got, &want, vocabulary);
            let last = got.len() - vocabulary;
            let last = relative_error(&got[last..], &want[last..]);
            writeln!(
                self.out,
                "  in pieces of {piece:<3} differs from one piece by {last:.1e} at the end, by position: {errors}"
            )?;
            let tolerance = self.tolerances.logits;
            self.check(errors.within(tolerance) && last <= tolerance.most, || {
                format!("prompt {at}: pieces of {piece} differ by {last:.2e} at the end, by position: {errors}")
            });
        }
        Ok(())
    }

    /// The greedy continuation.
    fn greedy(&mut self, at: usize, prompt: &GoldenPrompt, tokens: usize) -> anyhow::Result<()> {
        let want = &prompt.greedy[..tokens.min(prompt.greedy.len())];
        let got = self.in_session(|engine, session| {
            engine.append(session, &prompt.ids, Want::Nothing)?;
            want.iter().map(|_| engine.step(session, &Sampling::greedy())).collect::<Result<Vec<_>, _>>()
        })?;
        let agreed = got.iter().zip(want).take_while(|(got, want)| got == want).count();
        write!(self.out, "  greedy     {agreed}/{} tokens", want.len())?;
        if agreed < want.len() {
            let margin = prompt.greedy_margin[agreed];
            write!(self.out, ", then {} for {} (whose lead is {margin:.2e})", got[agreed], want[agreed])?;
        }
        writeln!(self.out)?;
        if self.tolerances.greedy {
            self.check(agreed == want.len(), || {
                format!("prompt {at}: {agreed} of {} greedy tokens are equal", want.len())
            });
        }
        Ok(())
    }

    /// The loss on conversations that the model was not trained on.
    fn held_out(&mut self, golden: &Golden) -> anyhow::Result<()> {
        let vocabulary = self.engine.config().vocab_size;
        let (mut total, mut want, mut worst) = (0.0, 0.0, (0.0, 0));
        for (at, conversation) in golden.held_out.iter().enumerate() {
            let ids = &conversation.ids;
            let logits = self.in_session(|engine, session| engine.append(session, ids, Want::All))?;
            let nll = negative_log_likelihood(&logits, ids, vocabulary);
            total += nll;
            want += conversation.nll;
            let off = (nll - conversation.nll).abs();
            if off.is_nan() || off > worst.0 {
                worst = (off, at);
            }
        }
        let (absolute, relative) = self.tolerances.loss;
        let tolerance = absolute.max(relative * want);
        let difference = total - want;
        writeln!(
            self.out,
            "\nheld out   {} conversations: total loss {total:.2} nats for {want:.2}, {difference:+.3} (tolerance {tolerance:.1}); \
             worst is conversation {}, off by {:.1e}",
            golden.held_out.len(),
            worst.1,
            worst.0
        )?;
        self.check(difference.abs() <= tolerance, || {
            format!("held-out loss is {total:.2}, off by {difference:+.3} from {want:.2}")
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
