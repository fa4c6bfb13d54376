//! Decoding by steps beside decoding call by call, on the shipped model. What a GPU makes of it `lab model` checks.

use kiln_tests::decode::steps_are_appends;
use kimi::config::Config;
use kimi::engine::{self, Device, Engine, EngineError, LayerState, Precision, SessionId, Trace, Want};
use kimi::model::FIRST_CAPACITY;
use kimi::sampling::Sampling;

fn open(device: Device) -> Box<dyn Engine> {
    engine::open(&kimi::shipped_model(), device, &mut |_, _| {}).unwrap()
}

/// Past the size at which the caches grow.
#[test]
fn steps_are_appends_on_the_cpu() {
    assert_eq!(steps_are_appends(&mut *open(Device::Cpu), FIRST_CAPACITY - 20, 48).unwrap(), 0);
}

#[test]
fn steps_are_appends_on_the_interpreter() {
    assert_eq!(steps_are_appends(&mut *open(Device::Interpret), 3, 6).unwrap(), 0);
}

/// A guard first catches a planted violation: steps that append a token too many, or another one.
#[test]
fn wrong_steps_are_noticed() {
    for (fault, words) in [(Fault::TwoTokens, "logits are others"), (Fault::WrongToken, "the step picked")] {
        let error = steps_are_appends(&mut Faulty(open(Device::Cpu), fault), 3, 4).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    TwoTokens,
    WrongToken,
}

struct Faulty(Box<dyn Engine>, Fault);

type Result<T> = std::result::Result<T, EngineError>;

impl Engine for Faulty {
    fn step(&mut self, session: SessionId, sampling: &Sampling) -> Result<u32> {
        let id = self.0.step(session, sampling)?;
        if self.1 == Fault::TwoTokens {
            self.0.step(session, sampling)?;
        }
        Ok(id ^ u32::from(self.1 == Fault::WrongToken))
    }

    fn config(&self) -> &Config {
        self.0.config()
    }

    fn description(&self) -> String {
        self.0.description()
    }

    fn precision(&self) -> Precision {
        self.0.precision()
    }

    fn open_session(&mut self) -> Result<SessionId> {
        self.0.open_session()
    }

    fn close_session(&mut self, session: SessionId) {
        self.0.close_session(session);
    }

    fn tokens(&self, session: SessionId) -> usize {
        self.0.tokens(session)
    }

    fn append(&mut self, session: SessionId, ids: &[u32], want: Want) -> Result<Vec<f32>> {
        self.0.append(session, ids, want)
    }

    fn sample(&mut self, session: SessionId, sampling: &Sampling) -> Result<u32> {
        self.0.sample(session, sampling)
    }

    fn trace(&mut self, session: SessionId, ids: &[u32]) -> Result<Trace> {
        self.0.trace(session, ids)
    }

    fn states(&mut self, session: SessionId) -> Result<Vec<LayerState>> {
        self.0.states(session)
    }
}
