//! One host function per operation of the model: allocates the result, picks the kernel's tile sizes, launches.
//!
//! Tile extents are compile-time; where the config decides one, the function picks among the instances below and names
//! the config field if none fits. Nothing here waits for the device.

use crate::engine::EngineError;
use crate::kernels::{attention, embedding, experts, kda, linear, norm, router, sampling, short_conv};
use crate::sampling::Sampling;
use kiln::{DType, Device, DotElement, Element, Float, Tensor, f16};
use std::marker::PhantomData;

/// Below so many rows a linear layer reads its weights once per row instead of tiling rows.
const FEW_ROWS: usize = 5;
/// From so many tiles of 128 by 128 a GPU computes linear layers in them.
const MANY_TILES: usize = 128;
/// Programs that share the context of one decoded token.
const MAX_SPLITS: usize = 32;
/// Keys that one program of a split looks at, at least.
const KEYS_PER_SPLIT: usize = 256;

/// Activations: f32 or bf16.
pub trait Activation: Float + DotElement<Acc = f32> {}
impl<T: Float + DotElement<Acc = f32>> Activation for T {}

/// Operations on one device with activations of `T` and matrices of `W`.
#[derive(Clone, Copy)]
pub struct Ops<T, W> {
    pub device: Device,
    /// Choose the tile sizes that suit a GPU.
    gpu: bool,
    _types: PhantomData<(T, W)>,
}

type Result<T> = std::result::Result<T, EngineError>;

fn unsupported<T>(field: &str, found: usize, supported: &str) -> Result<T> {
    let text = format!("config field `{field}` is {found}: the kernels are built for {supported}");
    Err(EngineError::Device(text.into()))
}

/// Calls `$call` with the const `$name` = the listed value that equals `$value`.
macro_rules! with_const {
    ($name:ident = $value:expr, of [$($n:literal),*], $field:literal, $call:expr) => {
        match $value {
            $($n => { const $name: usize = $n; $call })*
            other => return unsupported($field, other, concat!($(" ", $n),*)),
        }
    };
}

impl<T: Activation, W: Float> Ops<T, W> {
    pub fn new(device: Device) -> Self {
        Ops { device, gpu: matches!(device, Device::Cuda(_)), _types: PhantomData }
    }

    /// The same with the tile sizes of a GPU whatever the device is, so that its kernel instances can be examined, or
    /// interpreted, without one.
    pub fn with_gpu_tiles(self) -> Self {
        Ops { gpu: true, ..self }
    }

    fn empty<E: Element>(self, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::uninit(shape, E::DTYPE, self.device)?)
    }

    /// Integers for the device: ids, positions, bounds.
    pub fn integers(self, values: &[i32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(values, &[values.len()], self.device)?)
    }

    /// ids [n] → [n, width] f32.
    pub fn embedding(self, ids: &Tensor, table: &Tensor) -> Result<Tensor> {
        let mut out = self.empty::<f32>(&[ids.shape()[0], table.shape()[1]])?;
        embedding::embedding::<W, 256>(ids, table, &mut out).run()?;
        Ok(out)
    }

    /// x [n, width] f32 → [n, width].
    pub fn rms_norm<Y: Float>(self, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
        let mut out = self.empty::<Y>(x.shape())?;
        let eps = eps as f32;
        with_const!(
            H = x.shape()[1].next_power_of_two().max(64),
            of [64, 128, 256, 512, 1024, 2048, 4096, 8192],
            "hidden_size",
            norm::rms_norm::<f32, f32, Y, H>(x, weight, eps, &mut out).run()?
        );
        Ok(out)
    }

    /// x, gate [n, heads, width] → normalised and gated.
    pub fn gated_rms_norm(self, x: &Tensor, gate: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
        let mut out = self.empty::<T>(x.shape())?;
        let eps = eps as f32;
        with_const!(
            D = x.shape()[2],
            of [64, 128],
            "linear_attn_config.head_dim",
            norm::gated_rms_norm::<T, f32, D>(x, gate, weight, eps, &mut out).run()?
        );
        Ok(out)
    }

    /// x [n, in] of `T`, weight [out, in] of `W` → [n, out].
    pub fn linear<Y: Float>(self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let mut y = self.empty::<Y>(&[x.shape()[0], weight.shape()[0]])?;
        self.matmul::<W, T, Y, false>(x, weight, &mut y)?;
        Ok(y)
    }

    /// y += x·weightᵀ, y [n, out] f32.
    pub fn linear_add(self, x: &Tensor, weight: &Tensor, y: &mut Tensor) -> Result<()> {
        self.matmul::<W, T, f32, true>(x, weight, y)
    }

    /// The router's logits, computed in f32: x [n, hidden], weight [experts, hidden] f32 → [n, experts] f32.
    pub fn router_logits(self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let mut y = self.empty::<f32>(&[x.shape()[0], weight.shape()[0]])?;
        self.matmul::<f32, f32, f32, false>(x, weight, &mut y)?;
        Ok(y)
    }

    fn matmul<V: Float, C: Activation, Y: Float, const ADD: bool>(
        self,
        x: &Tensor,
        weight: &Tensor,
        y: &mut Tensor,
    ) -> Result<()> {
        let (rows, columns) = (x.shape()[0], weight.shape()[0]);
        let few = rows < FEW_ROWS;
        // The largest tile that keeps its sums in registers, where there are tiles enough to fill a chip.
        let many = rows.div_ceil(128) * columns.div_ceil(128) >= MANY_TILES && C::DTYPE.size() == 2;
        match (few, self.gpu) {
            (true, true) => linear::linear_row::<T, V, Y, ADD, 16, 256>(x, weight, y).run()?,
            (true, false) => linear::linear_row::<T, V, Y, ADD, 32, 64>(x, weight, y).run()?,
            (false, true) if many => linear::linear::<T, V, C, Y, ADD, 128, 128, 64>(x, weight, y).run()?,
            (false, true) => linear::linear::<T, V, C, Y, ADD, 64, 128, 32>(x, weight, y).run()?,
            (false, false) => linear::linear::<T, V, C, Y, ADD, 32, 32, 64>(x, weight, y).run()?,
        }
        Ok(())
    }

    /// gate_up [n, 2·width] → [n, width].
    pub fn swiglu(self, gate_up: &Tensor) -> Result<Tensor> {
        let mut out = self.empty::<T>(&[gate_up.shape()[0], gate_up.shape()[1] / 2])?;
        linear::swiglu::<T, 256>(gate_up, &mut out).run()?;
        Ok(out)
    }

    /// x [n, channels], state [slots, taps - 1, channels] (replaced) → [n, channels]. Sequence s has tokens
    /// `bounds[s] .. bounds[s + 1]`.
    pub fn short_conv(self, x: &Tensor, weight: &Tensor, state: &mut Tensor, at: &Batch) -> Result<Tensor> {
        let mut y = self.empty::<T>(x.shape())?;
        if x.shape()[0] == 0 {
            return Ok(y);
        }
        let blocks = x.shape()[1].div_ceil(256);
        with_const!(J = weight.shape()[1], of [2, 3, 4], "linear_attn_config.short_conv_kernel_size", {
            if x.shape()[0] < FEW_ROWS {
                short_conv::short_conv::<T, f32, J, 1, 256>(x, weight, state, &at.start, &at.slot, &mut y).run()?
            } else {
                short_conv::short_conv::<T, f32, J, 16, 256>(x, weight, state, &at.start, &at.slot, &mut y).run()?
            }
            short_conv::short_conv_state::<T, J, 256>(x, &at.bounds, &at.slot, state)
                .grid([at.sequences(), blocks])
                .run()?
        });
        Ok(y)
    }

    /// Gate, normalisation and the delta rule: qkv [n, 3·channels] after the convolution, decay and beta inputs;
    /// state [slots, heads, width, width] f32 (replaced) → [n, heads, width].
    #[allow(clippy::too_many_arguments)]
    pub fn delta_rule(
        self,
        qkv: &Tensor,
        decay: &Tensor,
        beta: &Tensor,
        a_log: &Tensor,
        dt_bias: &Tensor,
        gate: Gate,
        state: &mut Tensor,
        at: &Batch,
    ) -> Result<Tensor> {
        let (n, heads, width) = (qkv.shape()[0], state.shape()[1], state.shape()[2]);
        let mut o = self.empty::<T>(&[n, heads, width])?;
        if at.chunk != chunk_tokens::<T>() {
            return Err(EngineError::Device("the batch was made for activations of another width".into()));
        }
        let input = DeltaInput { qkv, decay, beta, a_log, dt_bias, gate };
        with_const!(D = width, of [64, 128], "linear_attn_config.head_dim", {
            if let Some(sequences) = &at.short {
                self.delta_rule_short::<D>(&input, sequences, state, &mut o)?;
            }
            for piece in &at.pieces {
                // The inverse inside a chunk has entries of at most 1: f16 keeps three bits more of them than bf16.
                if at.chunk == 64 {
                    self.delta_rule_chunks::<f16, D, 64, 32, 16>(&input, piece, state, &mut o)?;
                } else {
                    self.delta_rule_chunks::<f32, D, 32, 16, 8>(&input, piece, state, &mut o)?;
                }
            }
        });
        Ok(o)
    }

    /// Sequences of few tokens, one token after another.
    fn delta_rule_short<const D: usize>(
        self,
        input: &DeltaInput,
        sequences: &Tensor,
        state: &mut Tensor,
        o: &mut Tensor,
    ) -> Result<()> {
        let DeltaInput { qkv, decay, beta, a_log, dt_bias, gate } = *input;
        let grid = [D / 32, state.shape()[1], sequences.shape()[0]];
        match gate {
            Gate::Softplus => {
                kda::kda_recurrent::<T, D, 32, false>(qkv, decay, beta, a_log, dt_bias, 0.0, sequences, state, o)
                    .grid(grid)
                    .run()?
            }
            Gate::Bounded(low) => {
                kda::kda_recurrent::<T, D, 32, true>(qkv, decay, beta, a_log, dt_bias, low, sequences, state, o)
                    .grid(grid)
                    .run()?
            }
        }
        Ok(())
    }

    /// Chunks of `C` = 2·`M` = 4·`S` tokens.
    fn delta_rule_chunks<X: Activation, const D: usize, const C: usize, const M: usize, const S: usize>(
        self,
        input: &DeltaInput,
        Piece { chunks, sequences }: &Piece,
        state: &mut Tensor,
        o: &mut Tensor,
    ) -> Result<()> {
        let DeltaInput { qkv, decay, beta, a_log, dt_bias, gate } = *input;
        let (heads, count) = (state.shape()[1], chunks.shape()[0]);
        let by_token = [heads, count * C, D];
        let (mut k_in, mut q_in) = (self.empty::<T>(&by_token)?, self.empty::<T>(&by_token)?);
        let mut k_out = self.empty::<T>(&by_token)?;
        let mut p = self.empty::<T>(&[heads, count * C, C])?;
        let mut keep = self.empty::<f32>(&[heads, count, D])?;
        match gate {
            Gate::Softplus => kda::kda_chunk::<T, X, D, C, M, S, false>(
                qkv, decay, beta, a_log, dt_bias, 0.0, chunks, &mut k_in, &mut q_in, &mut k_out, &mut p, &mut keep,
            )
            .grid([count, heads])
            .run()?,
            Gate::Bounded(low) => kda::kda_chunk::<T, X, D, C, M, S, true>(
                qkv, decay, beta, a_log, dt_bias, low, chunks, &mut k_in, &mut q_in, &mut k_out, &mut p, &mut keep,
            )
            .grid([count, heads])
            .run()?,
        }
        const V: usize = 64;
        kda::kda_state::<T, D, C, V>(qkv, &k_in, &q_in, &k_out, &p, &keep, sequences, state, o)
            .grid([D / V, heads, sequences.shape()[0]])
            .run()?;
        Ok(())
    }

    /// All of a layer between its projections, for a batch of [short](Batch::is_short) sequences: convolution, delta
    /// rule and gated RMSNorm. x [n, 3·channels] before the convolution, inputs [slots, taps - 1, 3·channels] and
    /// state [slots, heads, width, width] (replaced), gate [n, heads, width] → [n, heads, width].
    #[allow(clippy::too_many_arguments)]
    pub fn kda_step(
        self,
        x: &Tensor,
        conv: &Tensor,
        decay: &Tensor,
        beta: &Tensor,
        a_log: &Tensor,
        dt_bias: &Tensor,
        kind: Gate,
        gate: &Tensor,
        norm: &Tensor,
        eps: f64,
        inputs: &mut Tensor,
        state: &mut Tensor,
        at: &Batch,
    ) -> Result<Tensor> {
        let mut out = self.empty::<T>(gate.shape())?;
        if !at.is_short() {
            return Err(EngineError::Device("a step takes sequences of few tokens only".into()));
        }
        let Some(sequences) = &at.short else { return Ok(out) };
        let (channels, taps) = (conv.shape()[0] / 3, conv.shape()[1]);
        let x = &x.reshape(&[x.shape()[0], 3, channels])?;
        let conv = &conv.reshape(&[3, channels, taps])?;
        let inputs = &mut inputs.reshape(&[inputs.shape()[0], taps - 1, 3, channels])?;
        let (slots, heads, width) = (state.shape()[0], state.shape()[1], state.shape()[2]);
        let state = &mut state.reshape(&[slots, heads, width * width])?;
        let (eps, grid) = (eps as f32, [heads, sequences.shape()[0]]);
        with_const!(J = taps, of [2, 3, 4], "linear_attn_config.short_conv_kernel_size", {
            with_const!(D = width, of [64, 128], "linear_attn_config.head_dim", {
                const DD: usize = D * D;
                match kind {
                    Gate::Softplus => kda::kda_step::<T, D, DD, J, false>(
                        x, conv, decay, beta, a_log, dt_bias, 0.0, gate, norm, eps, sequences, inputs, state, &mut out,
                    )
                    .grid(grid)
                    .run()?,
                    Gate::Bounded(low) => kda::kda_step::<T, D, DD, J, true>(
                        x, conv, decay, beta, a_log, dt_bias, low, gate, norm, eps, sequences, inputs, state, &mut out,
                    )
                    .grid(grid)
                    .run()?,
                }
            })
        });
        Ok(out)
    }

    /// Puts n tokens' latents and shared keys into the caches at `position`. projected [n, latent + rope].
    pub fn mla_cache(
        self,
        projected: &Tensor,
        weight: &Tensor,
        eps: f64,
        position: &Tensor,
        latent: &mut Tensor,
        shared: &mut Tensor,
    ) -> Result<()> {
        let (n, eps) = (projected.shape()[0], eps as f32);
        with_const!(R = latent.shape()[1], of [64, 128, 256, 512], "kv_lora_rank", {
            with_const!(P = shared.shape()[1].next_power_of_two(), of [16, 32, 64, 128], "qk_rope_head_dim", {
                attention::mla_cache::<T, f32, R, P>(projected, weight, eps, position, latent, shared)
                    .grid([n])
                    .run()?
            })
        });
        Ok(())
    }

    /// Causal attention of a piece of prompt. q [n, heads·(nope + rope)], kv [context, heads·(nope + value)], shared
    /// [context, rope] → [n, heads·value].
    pub fn mla_prefill(
        self,
        q: &Tensor,
        kv: &Tensor,
        shared: &Tensor,
        position: &Tensor,
        shape: MlaShape,
    ) -> Result<Tensor> {
        let n = q.shape()[0];
        let mut out = self.empty::<T>(&[n, shape.heads * shape.value])?;
        if shape.nope != shape.value {
            return unsupported("v_head_dim", shape.value, "a value as wide as qk_nope_head_dim");
        }
        let scale = shape.scale();
        with_const!(V = shape.value, of [32, 64, 128], "v_head_dim", {
            with_const!(P = shape.rope.next_power_of_two(), of [16, 32, 64, 128], "qk_rope_head_dim", {
                let grid = |queries: usize| [n.div_ceil(queries), shape.heads];
                if self.gpu && n > 64 {
                    attention::mla_prefill::<T, V, P, V, 128, 128>(q, kv, shared, position, scale, &mut out)
                        .grid(grid(128))
                        .run()?
                } else if self.gpu {
                    attention::mla_prefill::<T, V, P, V, 64, 64>(q, kv, shared, position, scale, &mut out)
                        .grid(grid(64))
                        .run()?
                } else {
                    attention::mla_prefill::<T, V, P, V, 16, 32>(q, kv, shared, position, scale, &mut out)
                        .grid(grid(16))
                        .run()?
                }
            })
        });
        Ok(out)
    }

    /// Absorbed attention of few tokens over the latent cache. q [n, heads·(nope + rope)], latent [context, R], shared
    /// [context, rope], kv_b [heads·(nope + value), R] → [n, heads·value].
    pub fn mla_decode(
        self,
        q: &Tensor,
        latent: &Tensor,
        shared: &Tensor,
        kv_b: &Tensor,
        position: &Tensor,
        shape: MlaShape,
    ) -> Result<Tensor> {
        let (n, heads, r) = (q.shape()[0], shape.heads, latent.shape()[1]);
        let splits = latent.shape()[0].div_ceil(KEYS_PER_SPLIT).clamp(1, MAX_SPLITS);
        let (rope, value, nope, scale) = (shape.rope as i32, shape.value as i32, shape.nope as i32, shape.scale());
        let mut absorbed = self.empty::<T>(&[n, heads * r])?;
        let mut partial = self.empty::<f32>(&[n, splits, heads, r])?;
        let mut highest = self.empty::<f32>(&[n, splits, heads])?;
        let mut total = self.empty::<f32>(&[n, splits, heads])?;
        let mut attended = self.empty::<f32>(&[n, heads * r])?;
        let mut out = self.empty::<T>(&[n, heads * shape.value])?;
        with_const!(R = r, of [64, 128, 256, 512], "kv_lora_rank", {
            with_const!(N = shape.nope, of [32, 64, 128], "qk_nope_head_dim", {
                attention::mla_absorb_query::<T, W, N, R, 8>(q, kv_b, rope, value, &mut absorbed).run()?
            });
            with_const!(P = shape.rope.next_power_of_two(), of [16, 32, 64, 128], "qk_rope_head_dim", {
                let absorbed = absorbed.reshape(&[n, heads, r])?;
                let q = q.reshape(&[n, heads, shape.nope + shape.rope])?;
                attention::mla_decode::<T, R, P, 16, 32>(
                    &absorbed, &q, latent, shared, position, scale, &mut partial, &mut highest, &mut total,
                )
                .grid([splits, heads.div_ceil(16), n])
                .run()?
            });
            attention::mla_combine::<R>(&partial, &highest, &total, &mut attended).run()?;
            with_const!(V = shape.value, of [32, 64, 128], "v_head_dim", {
                attention::mla_expand_value::<T, W, V, R, 32>(&attended, kv_b, nope, &mut out).run()?
            })
        });
        Ok(out)
    }

    /// logits [n, experts] f32 → chosen experts [n, k] i32 and their weights [n, k] f32.
    pub fn route(
        self,
        logits: &Tensor,
        bias: &Tensor,
        k: usize,
        renormalize: bool,
        scale: f64,
    ) -> Result<(Tensor, Tensor)> {
        let n = logits.shape()[0];
        let (mut chosen, mut weights) = (self.empty::<i32>(&[n, k])?, self.empty::<f32>(&[n, k])?);
        let scale = scale as f32;
        with_const!(
            E = logits.shape()[1].next_power_of_two().max(16),
            of [16, 32, 64, 128, 256, 512],
            "num_experts",
            router::route::<E>(logits, bias, renormalize, scale, &mut chosen, &mut weights).grid([n]).run()?
        );
        Ok((chosen, weights))
    }

    /// out [n, hidden] f32 += the weighted experts of x [n, hidden]. gate, up [experts, width, hidden], down
    /// [experts, hidden, width].
    #[allow(clippy::too_many_arguments)]
    pub fn experts_add(
        self,
        x: &Tensor,
        gate: &Tensor,
        up: &Tensor,
        down: &Tensor,
        chosen: &Tensor,
        weights: &Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        let (n, k, hidden) = (x.shape()[0], chosen.shape()[1], x.shape()[1]);
        let (count, width, choices) = (gate.shape()[0], gate.shape()[1], chosen.shape()[1] as i32);
        let chosen = chosen.reshape(&[n * k])?;
        let mut h = self.empty::<T>(&[n * k, width])?;
        let mut y = self.empty::<T>(&[n * k, hidden])?;
        if n * k <= 2 * count {
            experts::experts_gate_up_row::<T, W, 32, 64>(x, gate, up, &chosen, choices, &mut h).run()?;
            experts::experts_down_row::<T, W, 32, 64>(&h, down, &chosen, &mut y).run()?;
        } else {
            let mut list = self.empty::<i32>(&[count, n * k])?;
            let mut counts = self.empty::<i32>(&[count])?;
            experts::group_by_expert::<256>(&chosen, &mut list, &mut counts).grid([count]).run()?;
            // An expert is chosen at most once by a token.
            const M: usize = 16;
            const N: usize = 32;
            let grid = |channels: usize| [n.div_ceil(M), channels.div_ceil(N), count];
            experts::experts_gate_up::<T, W, M, N, 32>(x, gate, up, &list, &counts, choices, &mut h)
                .grid(grid(width))
                .run()?;
            experts::experts_down::<T, W, M, N, 32>(&h, down, &list, &counts, &mut y).grid(grid(hidden)).run()?;
        }
        experts::combine_experts::<T, 256>(&y, weights, out).run()?;
        Ok(())
    }

    /// Draws one token per row of logits [n, vocabulary] f32; `position` [n] tokens come before it → [n] i32.
    pub fn sample(self, logits: &Tensor, sampling: &Sampling, position: &Tensor) -> Result<Tensor> {
        let mut out = self.empty::<i32>(&[logits.shape()[0]])?;
        if sampling.temperature == 0.0 {
            sampling::argmax::<1024>(logits, &mut out).run()?;
        } else {
            let s = sampling;
            let (low, high) = (s.seed as u32, (s.seed >> 32) as u32);
            let k = s.top_k.min(i32::MAX as u32) as i32;
            sampling::sample::<1024>(logits, position, s.temperature, k, s.top_p, s.min_p, low, high, &mut out)
                .run()?;
        }
        Ok(out)
    }
}

/// Widths of latent attention.
#[derive(Clone, Copy)]
pub struct MlaShape {
    pub heads: usize,
    pub nope: usize,
    pub rope: usize,
    pub value: usize,
}

impl MlaShape {
    fn scale(self) -> f32 {
        ((self.nope + self.rope) as f32).powf(-0.5)
    }
}

/// How much of the past a channel forgets with a token, from x = decay input + dt_bias.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gate {
    /// g = −exp(A_log)·softplus(x), without bound: Kimi Linear's.
    Softplus,
    /// g = bound·sigmoid(exp(A_log)·x), between this bound (negative) and 0.
    Bounded(f32),
}

/// What the delta rule reads.
#[derive(Clone, Copy)]
struct DeltaInput<'a> {
    qkv: &'a Tensor,
    decay: &'a Tensor,
    beta: &'a Tensor,
    a_log: &'a Tensor,
    dt_bias: &'a Tensor,
    gate: Gate,
}

/// Sequences with fewer tokens go through the delta rule token by token, whatever else is in the batch.
const SHORT: usize = 16;
/// Tokens of a batch whose chunks are in memory at once: 28 KiB each with 32 heads of 128 in bf16.
const TOKENS_AT_ONCE: usize = 16384;

/// Tokens in a chunk of the delta rule.
fn chunk_tokens<T: Element>() -> usize {
    if T::DTYPE.size() == 2 { 64 } else { 32 }
}

/// Which tokens of a batch belong to which sequence.
pub struct Batch {
    /// Sequence s has tokens `bounds[s] .. bounds[s + 1]`.
    pub bounds: Tensor,
    /// Of each token, the first of its sequence.
    pub start: Tensor,
    /// Of each token, its sequence's state slot.
    pub slot: Tensor,
    /// Tokens in a chunk of the delta rule.
    chunk: usize,
    /// Short sequences [count, 4]: 0, first token, end, slot.
    short: Option<Tensor>,
    /// Of the other sequences, piece after piece.
    pieces: Vec<Piece>,
}

/// Chunks that are computed together: some of each sequence.
struct Piece {
    /// [count, 4]: first token, end of the sequence, 0, 0. (Rows of 16 bytes stay aligned.)
    chunks: Tensor,
    /// [count, 4]: first of its chunks here, first token here, end here, slot.
    sequences: Tensor,
}

impl Batch {
    /// Sequences of these lengths one after another, each with its state slot; no two may share one.
    pub fn new<T: Activation, W: Float>(ops: Ops<T, W>, lengths: &[usize], slots: &[usize]) -> Result<Batch> {
        Batch::in_pieces(ops, lengths, slots, TOKENS_AT_ONCE)
    }

    /// The same with so many tokens' chunks in memory at once, or one chunk of each sequence.
    pub fn in_pieces<T: Activation, W: Float>(
        ops: Ops<T, W>,
        lengths: &[usize],
        slots: &[usize],
        tokens_at_once: usize,
    ) -> Result<Batch> {
        let chunk = chunk_tokens::<T>();
        let (mut bounds, mut start, mut slot) = (vec![0], vec![], vec![]);
        let (mut short, mut long) = (vec![], vec![]);
        for (&length, &place) in lengths.iter().zip(slots) {
            let first = *bounds.last().expect("starts with 0");
            let (end, place) = (first + length as i32, place as i32);
            bounds.push(end);
            start.extend(std::iter::repeat_n(first, length));
            slot.extend(std::iter::repeat_n(place, length));
            match length {
                0 => {}
                1..SHORT => short.push([0, first, end, place]),
                _ => long.push([0, first, end, place]),
            }
        }
        let table = |rows: &[[i32; 4]]| Tensor::from_slice(rows.as_flattened(), &[rows.len(), 4], ops.device);
        let mut pieces = vec![];
        while !long.is_empty() {
            let each = (tokens_at_once / (chunk * long.len())).max(1) * chunk;
            let (mut chunks, mut sequences) = (vec![], vec![]);
            for [_, first, end, place] in &mut long {
                let here = (*first + each as i32).min(*end);
                sequences.push([chunks.len() as i32, *first, here, *place]);
                chunks.extend((*first..here).step_by(chunk).map(|token| [token, here, 0, 0]));
                *first = here;
            }
            pieces.push(Piece { chunks: table(&chunks)?, sequences: table(&sequences)? });
            long.retain(|[_, first, end, _]| first < end);
        }
        Ok(Batch {
            bounds: ops.integers(&bounds)?,
            start: ops.integers(&start)?,
            slot: ops.integers(&slot)?,
            chunk,
            short: if short.is_empty() { None } else { Some(table(&short)?) },
            pieces,
        })
    }

    /// One sequence of `n` tokens with its state in slot 0.
    pub fn single<T: Activation, W: Float>(ops: Ops<T, W>, n: usize) -> Result<Batch> {
        Batch::new(ops, &[n], &[0])
    }

    /// Whether every sequence is so short that its tokens are taken one after another.
    pub fn is_short(&self) -> bool {
        self.pieces.is_empty()
    }

    fn sequences(&self) -> usize {
        self.bounds.shape()[0] - 1
    }
}

/// The element type of activations on a device.
pub fn activation_type(device: Device) -> DType {
    if matches!(device, Device::Cuda(_)) { DType::BF16 } else { DType::F32 }
}
