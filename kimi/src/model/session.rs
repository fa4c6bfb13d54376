//! One sequence: what the device keeps of it.
//!
//! A latent cache has room for a power of two of tokens, or as many as the model allows. So its capacity follows from the
//! number of tokens alone, and with it how attention is split and rounded; and between two powers nothing moves, so that
//! a recorded step stays right.

use super::ops::{Activation, state_shape};
use super::step::Recorded;
use super::{Model, Result};
use crate::config::Mixer;
use kiln::{Element, Float, Tensor};

/// Rows of a fresh latent cache, if the model allows so many tokens.
pub const FIRST_CAPACITY: usize = 256;

/// What one layer remembers of a session.
pub(super) enum Memory {
    /// The last inputs of the convolutions [1, taps - 1, 3·channels], and the state
    /// [1, heads, value / 32, key, 32] f32 ([`state_shape`]).
    Kda { conv: Tensor, state: Tensor },
    /// Latents [capacity, latent] and shared keys [capacity, rope]; zeros beyond the session's tokens.
    Mla { latent: Tensor, shared: Tensor },
}

/// One sequence. Its tensors stay where they are, but for the caches when they grow.
pub(super) struct Session {
    pub memory: Vec<Memory>,
    /// Rows of the latent caches.
    capacity: usize,
    pub tokens: usize,
    /// `tokens` as the device counts them [1] i32: after the work that is queued.
    pub position: Tensor,
    /// Logits of the last token [1, vocabulary] f32, if there is one.
    pub logits: Tensor,
    /// The token that a step has picked [1] i32.
    pub picked: Tensor,
    pub recorded: Recorded,
}

impl<T: Activation, W: Float> Model<T, W> {
    pub(super) fn new_session(&self) -> Result<Session> {
        let (c, device) = (&self.config, self.ops.device);
        let capacity = FIRST_CAPACITY.min(c.model_max_length);
        let memory = c.mixers.iter().map(|mixer| {
            Ok(match mixer {
                Mixer::Kda => Memory::Kda {
                    conv: Tensor::zeros(&[1, c.conv_kernel - 1, 3 * c.kda_channels()], T::DTYPE, device)?,
                    state: Tensor::zeros(&state_shape(1, c.kda_heads, c.kda_head_dim), f32::DTYPE, device)?,
                },
                Mixer::Mla => Memory::Mla {
                    latent: Tensor::zeros(&[capacity, c.kv_lora_rank], T::DTYPE, device)?,
                    shared: Tensor::zeros(&[capacity, c.qk_rope_head_dim], T::DTYPE, device)?,
                },
            })
        });
        Ok(Session {
            memory: memory.collect::<Result<_>>()?,
            capacity,
            tokens: 0,
            position: Tensor::zeros(&[1], i32::DTYPE, device)?,
            logits: Tensor::uninit(&[1, c.vocab_size], f32::DTYPE, device)?,
            picked: Tensor::uninit(&[1], i32::DTYPE, device)?,
            recorded: Recorded::default(),
        })
    }

    /// Makes room for `more` tokens, which the model allows. If that fails, the session is as it was.
    pub(super) fn reserve(&self, session: &mut Session, more: usize) -> Result<()> {
        let needed = session.tokens + more;
        if needed > session.capacity {
            let capacity = needed.next_power_of_two().min(self.config.model_max_length);
            // It names the caches that there were.
            session.recorded = Recorded::default();
            for memory in &mut session.memory {
                if let Memory::Mla { latent, shared } = memory {
                    grow(latent, session.tokens, capacity)?;
                    grow(shared, session.tokens, capacity)?;
                }
            }
            session.capacity = capacity;
        }
        Ok(())
    }
}

/// Gives the cache so many rows, of which it keeps the first `used`.
fn grow(cache: &mut Tensor, used: usize, rows: usize) -> Result<()> {
    let larger = Tensor::zeros(&[rows, cache.shape()[1]], cache.dtype(), cache.device())?;
    larger.narrow(0, 0, used)?.copy_from(&cache.narrow(0, 0, used)?)?;
    *cache = larger;
    Ok(())
}
