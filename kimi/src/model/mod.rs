//! The model on a device: weights, what a session remembers, and the forward pass.
//!
//! The residual stream is f32; between kernels activations are `T` (f32, or bf16 on a GPU). A forward pass only queues
//! work: nothing in it waits for the device. With few tokens it asks for the same launches whatever the session's length,
//! which is how a step of decoding can be recorded (see `step`).

mod engine;
mod launched;
mod load;
pub mod ops;
mod session;
mod step;

pub use engine::{open, open_as_gpu};
pub use launched::kernels;
pub use session::FIRST_CAPACITY;

use crate::config::{Config, LATENT_NORM_EPSILON};
use crate::engine::{EngineError, LayerRouting};
use kiln::{Device, Element, Float, Tensor};
use load::{FeedForward, FeedForwardWeights, KdaWeights, MixerWeights, MlaWeights, ModelWeights, MoeWeights};
use ops::{Activation, Batch, Gate, MlaShape, Ops};
use session::{Memory, Session};

type Result<T> = std::result::Result<T, EngineError>;

/// Up to so many tokens attend through the absorbed form, which never expands the cache.
const ABSORBED_TOKENS: usize = 4;

/// What [`Model::forward`] passed by, still on the device.
#[derive(Default)]
struct Passed {
    /// The residual stream [n, hidden] after the embedding and each layer, copied; then the final norm's output.
    hidden: Vec<Tensor>,
    /// (layer, chosen [n, k], weights [n, k]).
    routing: Vec<(usize, Tensor, Tensor)>,
}

struct Model<T, W> {
    config: Config,
    weights: ModelWeights,
    ops: Ops<T, W>,
    /// Where the token of a step stands.
    one_token: Batch,
}

impl<T: Activation, W: Float> Model<T, W> {
    fn new(ops: Ops<T, W>, config: Config, weights: ModelWeights) -> Result<Self> {
        Ok(Model { config, weights, ops, one_token: Batch::single(ops, 1)? })
    }

    /// Runs tokens (ids [n] i32, n at least one, for which there is room) after those that the session has on the device,
    /// and counts them there; gives the final norm's output [n, hidden].
    fn forward(
        &self,
        session: &mut Session,
        ids: &Tensor,
        batch: &Batch,
        mut passed: Option<&mut Passed>,
    ) -> Result<Tensor> {
        let (c, ops, count) = (&self.config, self.ops, ids.shape()[0]);
        let at = Place { batch, position: &session.position, count, context: session.tokens + count };
        let mut x = ops.embedding(ids, &self.weights.embedding)?;
        if let Some(p) = &mut passed {
            p.hidden.push(x.deep_clone()?);
        }
        let layers = &self.weights.layers;
        let eps = c.rms_norm_eps;
        let first_norm = layers.first().map_or(&self.weights.norm, |layer| &layer.input_norm);
        let mut h = ops.rms_norm::<f32, T, f32>(&x, first_norm, eps)?;
        for (index, (layer, memory)) in layers.iter().zip(&mut session.memory).enumerate() {
            let mixed = match (&layer.mixer, memory) {
                (MixerWeights::Kda(w), Memory::Kda { conv, state }) => self.kda(w, &h, conv, state, &at)?,
                (MixerWeights::Mla(w), Memory::Mla { latent, shared }) => self.mla(w, &h, latent, shared, &at)?,
                _ => unreachable!("weights and memory are both built from config.mixers"),
            };
            let norm = &layer.post_norm;
            let fed = match &layer.feed_forward {
                FeedForward::Dense(w) => {
                    let h = ops.add_rms_norm::<f32, T, f32>(&mut x, &mixed, norm, eps)?;
                    self.feed_forward(w, &h)?
                }
                FeedForward::Moe(w) => {
                    let (h, exact) = ops.add_rms_norm_exact::<f32, T, f32>(&mut x, &mixed, norm, eps)?;
                    let (fed, chosen, weights) = self.moe(w, &h, &exact)?;
                    if let Some(p) = &mut passed {
                        p.routing.push((index, chosen, weights));
                    }
                    fed
                }
            };
            // Of the next layer, or the last one of all.
            let next_norm = layers.get(index + 1).map_or(&self.weights.norm, |layer| &layer.input_norm);
            h = ops.add_rms_norm::<f32, T, f32>(&mut x, &fed, next_norm, eps)?;
            if let Some(p) = &mut passed {
                p.hidden.push(x.deep_clone()?);
            }
        }
        ops.advance(&mut session.position, count)?;
        Ok(h)
    }

    /// h [n, hidden] normalised → what to add to the residual stream, in parts [parts, n, hidden] f32.
    fn kda(&self, w: &KdaWeights, h: &Tensor, conv: &mut Tensor, state: &mut Tensor, at: &Place) -> Result<Tensor> {
        let (c, ops, n) = (&self.config, self.ops, at.count);
        let (heads, head) = (c.kda_heads, c.kda_head_dim);
        let qkv = ops.linear::<T>(h, &w.qkv)?;
        let low_rank = ops.linear::<T>(h, &w.low_rank)?;
        let decay = ops.linear::<T>(&low_rank.narrow(1, 0, head)?, &w.decay)?;
        let gate = ops.linear::<T>(&low_rank.narrow(1, head, head)?, &w.gate)?.reshape(&[n, heads, head])?;
        let beta = low_rank.narrow(1, 2 * head, heads)?;
        let (a_log, dt_bias, kind, eps, at) = (&w.a_log, &w.dt_bias, Gate::Softplus, c.rms_norm_eps, at.batch);
        let o = ops.kda(&qkv, &w.conv, &decay, &beta, a_log, dt_bias, kind, &gate, &w.norm, eps, conv, state, at)?;
        ops.linear_parts(&o.reshape(&[n, heads * head])?, &w.out)
    }

    /// As [`Model::kda`].
    fn mla(&self, w: &MlaWeights, h: &Tensor, latent: &mut Tensor, shared: &mut Tensor, at: &Place) -> Result<Tensor> {
        let (c, ops) = (&self.config, self.ops);
        let shape =
            MlaShape { heads: c.mla_heads, nope: c.qk_nope_head_dim, rope: c.qk_rope_head_dim, value: c.v_head_dim };
        let q = ops.linear::<T>(h, &w.q)?;
        let projected = ops.linear::<T>(h, &w.kv_a)?;
        ops.mla_cache(&projected, &w.norm, LATENT_NORM_EPSILON, at.position, latent, shared)?;
        let o = if at.count <= ABSORBED_TOKENS {
            ops.mla_decode(&q, latent, shared, &w.kv_b, at.position, shape)?
        } else {
            let (latent, shared) = (latent.narrow(0, 0, at.context)?, shared.narrow(0, 0, at.context)?);
            let kv = ops.linear::<T>(&latent, &w.kv_b)?;
            ops.mla_prefill(&q, &kv, &shared, at.position, shape)?
        };
        ops.linear_parts(&o, &w.out)
    }

    /// As [`Model::kda`].
    fn feed_forward(&self, w: &FeedForwardWeights, h: &Tensor) -> Result<Tensor> {
        self.ops.linear_parts(&self.ops.linear_swiglu(h, &w.gate_up)?, &w.down)
    }

    /// As [`Model::kda`], and the chosen experts and their weights. exact: h in f32, for the router.
    fn moe(&self, w: &MoeWeights, h: &Tensor, exact: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let (c, ops) = (&self.config, self.ops);
        let logits = ops.router_logits(exact, &w.router)?;
        let (chosen, weights) =
            ops.route(&logits, &w.bias, c.experts_per_token, c.moe_renormalize, c.routed_scaling_factor)?;
        let out = match &w.shared {
            Some(shared) => self.feed_forward(shared, h)?,
            None => Tensor::zeros(&[1, h.shape()[0], h.shape()[1]], f32::DTYPE, ops.device)?,
        };
        ops.experts_add(h, &w.gate, &w.up, &w.down, &chosen, &weights, &mut out.select(0, 0)?)?;
        Ok((out, chosen, weights))
    }

    /// Appends a piece of a prompt, at least one token, for which there is room: the final norm's output [n, hidden], and
    /// in the session the last token's logits.
    fn append(&self, session: &mut Session, ids: &[u32], passed: Option<&mut Passed>) -> Result<Tensor> {
        let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        let batch = Batch::single(self.ops, ids.len())?;
        let h = self.forward(session, &self.ops.integers(&ids)?, &batch, passed)?;
        session.tokens += ids.len();
        self.logits_into(&h.narrow(0, ids.len() - 1, 1)?, &mut session.logits)?;
        Ok(h)
    }

    /// h [n, hidden] after the final norm → [n, vocabulary] f32.
    fn logits(&self, h: &Tensor) -> Result<Tensor> {
        self.ops.linear::<f32>(h, self.lm_head())
    }

    /// [`Model::logits`] into a tensor that is there.
    fn logits_into(&self, h: &Tensor, logits: &mut Tensor) -> Result<()> {
        self.ops.linear_into::<f32>(h, self.lm_head(), logits)
    }

    fn lm_head(&self) -> &Tensor {
        self.weights.lm_head.as_ref().unwrap_or(&self.weights.embedding)
    }
}

/// Where the tokens of a pass stand.
struct Place<'a> {
    batch: &'a Batch,
    /// [1]: the first token's position.
    position: &'a Tensor,
    count: usize,
    /// Tokens up to the last one of these, as the host counts them: for passes that are never replayed.
    context: usize,
}

/// The last row of chosen experts and weights.
fn last_routing((layer, chosen, weights): &(usize, Tensor, Tensor)) -> Result<LayerRouting> {
    let last = chosen.shape()[0] - 1;
    let experts = chosen.select(0, last)?.to_vec::<i32>()?.into_iter().map(|e| e as u32).collect();
    Ok(LayerRouting { layer: *layer, experts, weights: weights.select(0, last)?.to_vec::<f32>()? })
}

/// One line about where the model runs.
fn describe(device: Device, activations: kiln::DType, matrices: kiln::DType) -> String {
    let place = device.describe().unwrap_or_else(|_| device.to_string());
    format!("{place}; activations {activations}, weights {matrices}")
}
