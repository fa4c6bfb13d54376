//! The f64 reference behind the interface of a real engine, so that whatever uses engines can be tested against it.

use std::collections::BTreeMap;

use super::model::{ReferenceLayerState, ReferenceModel, ReferenceState, ReferenceTrace};
use crate::config::Config;
use crate::engine::{Engine, EngineError, LayerRouting, LayerState, Precision, SessionId, Trace, Want, check_append};
use crate::sampling::Sampling;
use crate::weights::{Weights, WeightsError};

/// An engine without kernels.
pub struct ReferenceEngine {
    model: ReferenceModel,
    sessions: BTreeMap<SessionId, Session>,
    opened: usize,
}

struct Session {
    state: ReferenceState,
    /// The final norm's output for the last token [hidden]; empty before the first.
    last: Vec<f64>,
}

impl ReferenceEngine {
    /// Loads a model; `progress(done, total)` is told bytes.
    pub fn load(
        config: Config,
        weights: &Weights,
        progress: impl FnMut(usize, usize),
    ) -> Result<ReferenceEngine, WeightsError> {
        let model = ReferenceModel::load(config, weights, progress)?;
        Ok(ReferenceEngine { model, sessions: BTreeMap::new(), opened: 0 })
    }

    fn forward(
        &mut self,
        id: SessionId,
        ids: &[u32],
        trace: Option<&mut ReferenceTrace>,
    ) -> Result<Vec<f64>, EngineError> {
        let session = self.sessions.get_mut(&id).ok_or(EngineError::UnknownSession(id))?;
        check_append(self.model.config(), session.state.tokens, ids)?;
        let normed = self.model.forward(ids, &mut session.state, trace);
        if !ids.is_empty() {
            session.last = normed[normed.len() - self.model.config().hidden_size..].to_vec();
        }
        Ok(normed)
    }

    fn session(&self, id: SessionId) -> Result<&Session, EngineError> {
        self.sessions.get(&id).ok_or(EngineError::UnknownSession(id))
    }
}

impl Engine for ReferenceEngine {
    fn config(&self) -> &Config {
        self.model.config()
    }

    fn description(&self) -> String {
        "naive f64 reference on the CPU".into()
    }

    fn precision(&self) -> Precision {
        Precision::F32
    }

    fn open_session(&mut self) -> Result<SessionId, EngineError> {
        let id = SessionId(self.opened);
        self.opened += 1;
        self.sessions.insert(id, Session { state: self.model.new_state(), last: Vec::new() });
        Ok(id)
    }

    fn close_session(&mut self, session: SessionId) {
        self.sessions.remove(&session);
    }

    fn tokens(&self, session: SessionId) -> usize {
        self.sessions.get(&session).map_or(0, |session| session.state.tokens)
    }

    fn append(&mut self, session: SessionId, ids: &[u32], want: Want) -> Result<Vec<f32>, EngineError> {
        let normed = self.forward(session, ids, None)?;
        let rows = match want {
            Want::Nothing => &[][..],
            Want::Last => &normed[normed.len().saturating_sub(self.config().hidden_size)..],
            Want::All => &normed,
        };
        Ok(to_f32(&self.model.logits(rows)))
    }

    fn sample(&mut self, session: SessionId, sampling: &Sampling) -> Result<u32, EngineError> {
        let Session { state, last } = self.session(session)?;
        if last.is_empty() {
            return Err(EngineError::NoLogits);
        }
        Ok(sampling.pick(&to_f32(&self.model.logits(last)), state.tokens as u32))
    }

    fn trace(&mut self, session: SessionId, ids: &[u32]) -> Result<Trace, EngineError> {
        if ids.is_empty() {
            return Err(EngineError::NoLogits);
        }
        let mut seen = ReferenceTrace::default();
        let normed = self.forward(session, ids, Some(&mut seen))?;
        let (hidden, chosen) = (self.config().hidden_size, self.config().experts_per_token);
        let routing = seen.routing.iter().map(|(layer, routing)| LayerRouting {
            layer: *layer,
            experts: routing.experts[routing.experts.len() - chosen..].to_vec(),
            weights: to_f32(&routing.weights[routing.weights.len() - chosen..]),
        });
        Ok(Trace {
            logits: to_f32(&self.model.logits(&normed)),
            hidden: seen.hidden.iter().map(|x| to_f32(&x[x.len() - hidden..])).collect(),
            routing: routing.collect(),
        })
    }

    fn states(&mut self, session: SessionId) -> Result<Vec<LayerState>, EngineError> {
        let layer = |memory: &ReferenceLayerState| match memory {
            ReferenceLayerState::Kda { conv, state } => {
                LayerState::Kda { state: to_f32(state), conv: to_f32(&conv.concat()) }
            }
            ReferenceLayerState::Mla { latent, shared } => {
                LayerState::Mla { latent: to_f32(latent), shared: to_f32(shared) }
            }
        };
        Ok(self.session(session)?.state.layers.iter().map(layer).collect())
    }
}

fn to_f32(x: &[f64]) -> Vec<f32> {
    x.iter().map(|x| *x as f32).collect()
}
