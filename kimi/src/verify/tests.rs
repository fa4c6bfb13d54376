//! The comparison passes where it should, and notices each kind of mistake that it is there for.

use std::path::PathBuf;

use super::*;
use crate::config::Config;
use crate::engine::{LayerRouting, SessionId, Trace};
use crate::reference::engine::ReferenceEngine;
use crate::weights::Weights;

fn golden_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/kimi-tiny")
}

fn engine() -> ReferenceEngine {
    let folder = crate::shipped_model();
    let config = Config::read(&folder.join("config.json")).unwrap();
    ReferenceEngine::load(config, &Weights::open(&folder).unwrap(), |_, _| {}).unwrap()
}

fn report(engine: &mut dyn Engine, conversations: usize) -> (Report, String) {
    let mut golden = Golden::open(&golden_folder(), engine.config()).unwrap();
    golden.held_out.truncate(conversations);
    golden.prompts.retain(|prompt| prompt.ids.len() == 96);
    let options = Options { longest_prompt: 100, greedy_tokens: 8, held_out: conversations > 0 };
    let mut out = Vec::new();
    let report = verify(engine, &golden, options, &mut out).unwrap();
    (report, String::from_utf8(out).unwrap())
}

/// A way to be wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    LogitsOff,
    WrongExpert,
    StateOff,
    NotANumber,
    PiecesDiffer,
    /// In 16 bits, at the last position alone.
    PiecesEndOff,
    WrongToken,
}

struct Faulty(ReferenceEngine, Fault);

impl Engine for Faulty {
    fn config(&self) -> &Config {
        self.0.config()
    }

    fn description(&self) -> String {
        format!("{:?}", self.1)
    }

    fn precision(&self) -> Precision {
        if self.1 == Fault::PiecesEndOff { Precision::Bf16 } else { Precision::F32 }
    }

    fn open_session(&mut self) -> Result<SessionId, EngineError> {
        self.0.open_session()
    }

    fn close_session(&mut self, session: SessionId) {
        self.0.close_session(session);
    }

    fn tokens(&self, session: SessionId) -> usize {
        self.0.tokens(session)
    }

    fn append(&mut self, session: SessionId, ids: &[u32], want: Want) -> Result<Vec<f32>, EngineError> {
        let mut logits = self.0.append(session, ids, want)?;
        // 96 tokens in pieces of 7 end with one of 5.
        if self.1 == Fault::PiecesDiffer && ids.len() == 5 {
            logits.iter_mut().for_each(|x| *x *= 1.001);
        }
        if self.1 == Fault::PiecesEndOff && ids.len() == 5 {
            logits.iter_mut().rev().take(self.config().vocab_size).for_each(|x| *x *= 1.1);
        }
        Ok(logits)
    }

    fn sample(&mut self, session: SessionId, sampling: &Sampling) -> Result<u32, EngineError> {
        Ok(self.0.sample(session, sampling)? ^ u32::from(self.1 == Fault::WrongToken))
    }

    fn trace(&mut self, session: SessionId, ids: &[u32]) -> Result<Trace, EngineError> {
        let mut trace = self.0.trace(session, ids)?;
        match self.1 {
            Fault::LogitsOff => trace.logits.iter_mut().for_each(|x| *x *= 1.0002),
            Fault::NotANumber => *trace.logits.last_mut().unwrap() = f32::NAN,
            Fault::WrongExpert => {
                let LayerRouting { experts, .. } = &mut trace.routing[3];
                experts[0] = (0..16).find(|e| !experts.contains(e)).unwrap();
            }
            _ => {}
        }
        Ok(trace)
    }

    fn states(&mut self, session: SessionId) -> Result<Vec<LayerState>, EngineError> {
        let mut states = self.0.states(session)?;
        if let (Fault::StateOff, LayerState::Kda { conv, .. }) = (self.1, &mut states[4]) {
            // As if the convolution kept its inputs one step too late.
            conv.rotate_right(1);
        }
        Ok(states)
    }
}

/// What a GPU would compute, but for the order of sums: prompts, whole and in pieces. Not the one of 17 tokens, where
/// layer 2 has experts at the 13th that are tied but for 4e-4, less than activations in bf16 tell apart
/// (`docs/performance.md`, entry 79).
#[test]
fn instances_for_a_gpu_hold() {
    let folder = crate::shipped_model();
    let config = Config::read(&folder.join("config.json")).unwrap();
    let mut engine = crate::model::open_as_gpu(config, &Weights::open(&folder).unwrap()).unwrap();
    let mut golden = Golden::open(&golden_folder(), engine.config()).unwrap();
    golden.prompts.retain(|prompt| prompt.ids.len() != 17);
    let options = Options { longest_prompt: usize::MAX, greedy_tokens: 8, held_out: false };
    let mut out = Vec::new();
    let report = verify(&mut *engine, &golden, options, &mut out).unwrap();
    assert!(report.checks == 26 && report.failures.is_empty(), "{}", String::from_utf8(out).unwrap());
}

#[test]
fn the_reference_passes() {
    let (report, text) = report(&mut engine(), 3);
    assert!(report.failures.is_empty(), "{text}");
    assert!(report.checks >= 17, "{text}");
    for part in ["logits", "layer 7", "experts 4/4", "state", "greedy     8/8", "held out   3 conversations"] {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}

#[test]
fn every_fault_is_noticed() {
    for (fault, message) in [
        (Fault::LogitsOff, "logits are off"),
        (Fault::NotANumber, "logits are off"),
        (Fault::WrongExpert, "experts agree"),
        (Fault::StateOff, "convolution by"),
        (Fault::PiecesDiffer, "pieces of 7"),
        (Fault::PiecesEndOff, "pieces of 7"),
        (Fault::WrongToken, "greedy tokens"),
    ] {
        let (report, text) = report(&mut Faulty(engine(), fault), 0);
        assert!(report.failures.iter().any(|failure| failure.contains(message)), "{fault:?}:\n{text}");
    }
}

/// One position in 20 may be off by what another expert explains, more may not; none may be off by more than that, and the
/// others are bound more tightly.
#[test]
fn near_ties_move_few_positions() {
    let tolerance = Tolerances::of(Precision::Bf16).logits;
    let passes = |errors: &[(usize, f32)]| {
        let want = [1.0; 2 * 40];
        let mut got = want;
        let mut rows = got.chunks_exact_mut(2);
        for &(count, error) in errors {
            rows.by_ref().take(count).for_each(|row| row.fill(1.0 + error));
        }
        LogitErrors::of(&got, &want, 2).within(tolerance)
    };
    assert!(passes(&[(2, 0.1), (17, 0.025), (21, 0.005)]));
    assert!(!passes(&[(3, 0.1), (17, 0.025), (20, 0.005)]));
    assert!(!passes(&[(1, 0.3)]));
    assert!(!passes(&[(1, f32::NAN)]));
    assert!(!passes(&[(25, 0.025)]));
}

#[test]
fn golden_data_of_another_model_is_refused() {
    let engine = engine();
    let mut config = engine.config().clone();
    config.vocab_size = 100;
    let error = Golden::open(&golden_folder(), &config).err().unwrap().to_string();
    assert!(error.contains("p0.logits") && error.contains("not of this model"), "{error}");
    assert!(Golden::open(&golden_folder().join("nowhere"), &config).is_err());
}

#[test]
fn errors_change_nothing() {
    let mut engine = engine();
    let session = engine.open_session().unwrap();
    assert!(matches!(engine.sample(session, &Sampling::greedy()), Err(EngineError::NoLogits)));
    engine.append(session, &[1, 2, 3], Want::Nothing).unwrap();
    let before = engine.states(session).unwrap();
    let limit = engine.config().model_max_length;
    let long = engine.append(session, &vec![0; limit - 2], Want::Nothing);
    assert!(matches!(long, Err(EngineError::ContextExceeded { have: 3, .. })));
    let unknown = engine.append(session, &[5, 4096], Want::Nothing);
    assert!(matches!(unknown, Err(EngineError::UnknownToken { id: 4096, vocabulary: 4096 })));
    assert_eq!((engine.tokens(session), engine.states(session).unwrap()), (3, before));
    engine.close_session(session);
    assert!(matches!(engine.append(session, &[1], Want::Last), Err(EngineError::UnknownSession(_))));
}
