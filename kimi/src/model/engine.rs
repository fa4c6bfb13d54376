//! [`Engine`] on kernels.

use super::load::{ModelWeights, weight_type};
use super::ops::{Activation, Ops, activation_type, states_by_rows};
use super::session::{Memory, Session};
use super::{Model, Passed, describe, last_routing};
use crate::config::Config;
use crate::engine::{Engine, EngineError, LayerState, Precision, SessionId, Trace, Want, check_append};
use crate::sampling::Sampling;
use crate::weights::Weights;
use kiln::{DType, Device, Float, Tensor, bf16, f16};
use std::collections::BTreeMap;

/// Tokens of one pass; a longer prompt goes through in pieces, which bounds the memory of activations.
pub(super) const PIECE: usize = 2048;

type Result<T> = std::result::Result<T, EngineError>;

struct KernelEngine<T, W> {
    model: Model<T, W>,
    sessions: BTreeMap<SessionId, Session>,
    opened: usize,
}

/// Loads a checkpoint onto a device; `progress(done, total)` is told bytes.
///
/// # Errors
/// As [`crate::engine::open`].
pub fn open(
    config: Config,
    weights: &Weights,
    device: Device,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Box<dyn Engine>> {
    device.check()?;
    match activation_type(device) {
        DType::BF16 => with_activations::<bf16>(Ops::new(device), config, weights, progress),
        _ => with_activations::<f32>(Ops::new(device), config, weights, progress),
    }
}

/// The engine that a GPU would have, on the CPU: bf16 between kernels, and the kernels' instances for a GPU. What it
/// rounds is what a GPU rounds; only sums within products and functions come in another order or precision. Slow.
///
/// # Errors
/// As [`crate::engine::open`].
pub fn open_as_gpu(config: Config, weights: &Weights) -> Result<Box<dyn Engine>> {
    with_activations::<bf16>(Ops::new(Device::Cpu).with_gpu_tiles(), config, weights, &mut |_, _| {})
}

/// `ops` of any matrices: those of the checkpoint are taken.
fn with_activations<T: Activation>(
    ops: Ops<T, T>,
    config: Config,
    weights: &Weights,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Box<dyn Engine>> {
    fn load<T: Activation, W: Float>(
        ops: Ops<T, W>,
        config: Config,
        weights: &Weights,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Box<dyn Engine>> {
        let weights = ModelWeights::load(&config, weights, ops.device, progress)?;
        let model = Model::new(ops, config, weights)?;
        Ok(Box::new(KernelEngine { model, sessions: BTreeMap::new(), opened: 0 }))
    }
    match weight_type(&config, weights)? {
        DType::BF16 => load::<T, bf16>(ops.cast(), config, weights, progress),
        DType::F16 => load::<T, f16>(ops.cast(), config, weights, progress),
        _ => load::<T, f32>(ops.cast(), config, weights, progress),
    }
}

impl<T: Activation, W: Float> KernelEngine<T, W> {
    /// Runs tokens in pieces; `each` gets the final norm's output of every piece. If the device fails half-way the
    /// session is closed, since its memory is of no defined position.
    fn run(
        &mut self,
        id: SessionId,
        ids: &[u32],
        mut passed: Option<&mut Passed>,
        mut each: impl FnMut(&Model<T, W>, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let session = self.sessions.get_mut(&id).ok_or(EngineError::UnknownSession(id))?;
        let model = &self.model;
        check_append(&model.config, session.tokens, ids)?;
        model.reserve(session, ids.len())?;
        let mut work = || -> Result<()> {
            for piece in ids.chunks(PIECE) {
                let h = model.append(session, piece, passed.as_deref_mut())?;
                each(model, &h)?;
                if let Some(p) = &mut passed {
                    p.hidden.push(h);
                }
            }
            Ok(())
        };
        let done = work();
        if done.is_err() {
            self.sessions.remove(&id);
        }
        done
    }

    fn session(&self, id: SessionId) -> Result<&Session> {
        self.sessions.get(&id).ok_or(EngineError::UnknownSession(id))
    }
}

impl<T: Activation, W: Float> Engine for KernelEngine<T, W> {
    fn config(&self) -> &Config {
        &self.model.config
    }

    fn description(&self) -> String {
        describe(self.model.ops.device, T::DTYPE, W::DTYPE)
    }

    fn precision(&self) -> Precision {
        if T::DTYPE == DType::F32 { Precision::F32 } else { Precision::Bf16 }
    }

    fn open_session(&mut self) -> Result<SessionId> {
        let id = SessionId(self.opened);
        let session = self.model.new_session()?;
        self.opened += 1;
        self.sessions.insert(id, session);
        Ok(id)
    }

    fn close_session(&mut self, session: SessionId) {
        self.sessions.remove(&session);
    }

    fn tokens(&self, session: SessionId) -> usize {
        self.sessions.get(&session).map_or(0, |s| s.tokens)
    }

    fn append(&mut self, session: SessionId, ids: &[u32], want: Want) -> Result<Vec<f32>> {
        let mut all = vec![];
        self.run(session, ids, None, |model, h| {
            if want == Want::All {
                all.extend(model.logits(h)?.to_vec::<f32>()?);
            }
            Ok(())
        })?;
        let session = self.session(session)?;
        if want == Want::Last && session.tokens > 0 {
            all = session.logits.to_vec::<f32>()?;
        }
        Ok(all)
    }

    fn sample(&mut self, session: SessionId, sampling: &Sampling) -> Result<u32> {
        let session = self.session(session)?;
        if session.tokens == 0 {
            return Err(EngineError::NoLogits);
        }
        let picked = self.model.ops.sample(&session.logits, sampling, &session.position)?;
        Ok(picked.to_vec::<i32>()?[0] as u32)
    }

    /// If the device fails half-way the session is closed.
    fn step(&mut self, id: SessionId, sampling: &Sampling) -> Result<u32> {
        let session = self.sessions.get_mut(&id).ok_or(EngineError::UnknownSession(id))?;
        check_append(&self.model.config, session.tokens, &[0])?;
        if session.tokens == 0 {
            return Err(EngineError::NoLogits);
        }
        self.model.reserve(session, 1)?;
        let picked = self.model.step(session, sampling);
        if picked.is_err() {
            self.sessions.remove(&id);
        }
        picked
    }

    fn trace(&mut self, session: SessionId, ids: &[u32]) -> Result<Trace> {
        if ids.is_empty() {
            return Err(EngineError::NoLogits);
        }
        let mut trace = Trace::default();
        let pieces = ids.len().div_ceil(PIECE);
        for (i, piece) in ids.chunks(PIECE).enumerate() {
            let mut passed = Passed::default();
            let mut logits = vec![];
            self.run(session, piece, Some(&mut passed), |model, h| {
                logits = model.logits(h)?.to_vec::<f32>()?;
                Ok(())
            })?;
            trace.logits.extend(logits);
            if i + 1 == pieces {
                for h in &passed.hidden {
                    trace.hidden.push(h.select(0, h.shape()[0] - 1)?.to_vec_f32()?);
                }
                trace.routing = passed.routing.iter().map(last_routing).collect::<Result<_>>()?;
            }
        }
        Ok(trace)
    }

    fn states(&mut self, session: SessionId) -> Result<Vec<LayerState>> {
        let session = self.session(session)?;
        let states = session.memory.iter().map(|memory| {
            Ok(match memory {
                // The device keeps states in blocks of columns and [taps, channels]; the interface wants rows, and each
                // channel's taps together.
                Memory::Kda { conv, state } => LayerState::Kda {
                    state: states_by_rows(state)?.to_vec_f32()?,
                    conv: conv.select(0, 0)?.transpose(0, 1)?.to_vec_f32()?,
                },
                Memory::Mla { latent, shared } => LayerState::Mla {
                    latent: latent.narrow(0, 0, session.tokens)?.to_vec_f32()?,
                    shared: shared.narrow(0, 0, session.tokens)?.to_vec_f32()?,
                },
            })
        });
        states.collect()
    }
}
