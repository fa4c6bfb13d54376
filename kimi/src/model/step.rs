//! A step of decoding: a token is picked and appended.
//!
//! ```text
//! pick ─┬─▶ pass: embedding … layers … logits, position += 1 ─▶ pick …     the device
//!       └─▶ fetch ─▶ host: show it, ask for the next step                 meanwhile
//! ```
//!
//! The pass is some hundred launches that are the same for every token: it reads the token and the position from device
//! memory, and its grids follow from the capacity of the caches, not from their content. So a GPU's pass is launched
//! once after the caches were made or grew (which also compiles its kernels), recorded at the second step, and replayed
//! from then on. Other devices have no recordings and launch it each time; it is the same pass, with the same results.
//!
//! The pick is a launch of its own, with its sampling parameters: they may be others at every step, and the host gets
//! the token while the pass runs.

use super::ops::Activation;
use super::session::Session;
use super::{Model, Result};
use crate::sampling::Sampling;
use kiln::{Device, Float, Graph};

/// How far the pass of a session's steps has come on its way to be replayed.
#[derive(Default)]
pub(super) enum Recorded {
    /// It has not run on the caches that there are.
    #[default]
    Nothing,
    /// It has run, so that all of its kernels are compiled.
    Ran,
    /// It is recorded.
    Pass(Graph),
}

impl<T: Activation, W: Float> Model<T, W> {
    /// Picks a token from the session's logits and appends it; there is room for it. Waits for the pick alone.
    pub(super) fn step(&self, session: &mut Session, sampling: &Sampling) -> Result<u32> {
        self.ops.sample_into(&session.logits, sampling, &session.position, &mut session.picked)?;
        let picked = session.picked.fetch()?;
        session.recorded = match std::mem::take(&mut session.recorded) {
            Recorded::Pass(graph) => {
                graph.replay()?;
                Recorded::Pass(graph)
            }
            Recorded::Ran if matches!(self.ops.device, Device::Cuda(_)) => {
                let graph = Graph::capture(self.ops.device, || self.append_picked(session))?;
                graph.replay()?;
                Recorded::Pass(graph)
            }
            _ => {
                self.append_picked(session)?;
                Recorded::Ran
            }
        };
        session.tokens += 1;
        Ok(picked.wait::<i32>()?[0] as u32)
    }

    /// The pass. Nothing in it may depend on the session's number of tokens.
    pub(super) fn append_picked(&self, session: &mut Session) -> Result<()> {
        let picked = session.picked.clone();
        let h = self.forward(session, &picked, &self.one_token, None)?;
        self.logits_into(&h, &mut session.logits)
    }
}
