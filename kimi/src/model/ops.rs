//! One host function per operation of the model: allocates the result, picks the kernel's tile sizes, launches.
//!
//! Tile extents are compile-time; where the config decides one, the function picks among the instances below and names
//! the config field if none fits. Nothing here waits for the device.

use crate::engine::EngineError;
use crate::kernels::{attention, embedding, experts, kda, linear, norm, router, sampling, short_conv};
use crate::sampling::Sampling;
use kiln::{DType, Device, DotElement, Element, Float, Tensor};
use std::marker::PhantomData;

/// Below so many rows a linear layer reads its weights once per row instead of tiling rows.
const FEW_ROWS: usize = 5;
/// From so many tiles of 128 by 256 a GPU computes linear layers in them.
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
        let many = rows.div_ceil(128) * columns.div_ceil(256) >= MANY_TILES && C::DTYPE.size() == 2;
        match (few, self.gpu) {
            (true, true) => linear::linear_row::<T, V, Y, ADD, 16, 256>(x, weight, y).run()?,
            (true, false) => linear::linear_row::<T, V, Y, ADD, 32, 64>(x, weight, y).run()?,
            (false, true) if many => {
                let programs = self.device.multiprocessors()?;
                linear::linear_tiles::<T, V, C, Y, ADD, 128, 256, 64, 16>(x, weight, y).grid(programs).run()?
            }
            (false, true) => linear::linear::<T, V, C, Y, ADD, 64, 128, 64>(x, weight, y).run()?,
            (false, false) => linear::linear::<T, V, C, Y, ADD, 32, 32, 64>(x, weight, y).run()?,
        }
        Ok(())
    }

    /// x [n, in], weight [out, in] e4m3 with a scale per row, x_scale [n], weight_scale [out] f32 → [n, out].
    pub fn linear_scaled<Y: Float>(
        self,
        x: &Tensor,
        x_scale: &Tensor,
        weight: &Tensor,
        weight_scale: &Tensor,
    ) -> Result<Tensor> {
        let mut y = self.empty::<Y>(&[x.shape()[0], weight.shape()[0]])?;
        let programs = self.device.multiprocessors()?;
        if self.gpu {
            linear::linear_scaled::<Y, 128, 256, 128, 16>(x, weight, x_scale, weight_scale, &mut y)
                .grid(programs)
                .run()?
        } else {
            linear::linear_scaled::<Y, 32, 32, 64, 16>(x, weight, x_scale, weight_scale, &mut y).grid(programs).run()?
        }
        Ok(y)
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
        state: &mut Tensor,
        at: &Batch,
    ) -> Result<Tensor> {
        let (n, heads, width) = (qkv.shape()[0], state.shape()[1], state.shape()[2]);
        let each = [n, heads, width];
        let (mut q, mut k, mut g) = (self.empty::<f32>(&each)?, self.empty::<f32>(&each)?, self.empty::<f32>(&each)?);
        let mut b = self.empty::<f32>(&[n, heads, 1])?;
        let mut o = self.empty::<T>(&each)?;
        if n == 0 {
            return Ok(o);
        }
        with_const!(D = width, of [64, 128], "linear_attn_config.head_dim", {
            kda::kda_gate::<T, D>(qkv, decay, beta, a_log, dt_bias, &mut q, &mut k, &mut g, &mut b).run()?;
            let b = b.reshape(&[n, heads])?;
            let grid = [width / 32, heads, at.sequences()];
            if n < 16 * at.sequences() {
                kda::kda_recurrent::<T, D, 32>(&q, &k, &g, &b, qkv, &at.bounds, &at.slot, state, &mut o)
                    .grid(grid)
                    .run()?
            } else {
                kda::kda_chunked::<T, D, 32, 16, 16>(&q, &k, &g, &b, qkv, &at.bounds, &at.slot, state, &mut o)
                    .grid(grid)
                    .run()?
            }
        });
        Ok(o)
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
        // Heads whose keys and values fill half of an H100's L2 cache.
        let head_bytes = kv.shape()[0] * (shape.nope + shape.value) * T::DTYPE.size();
        let together = ((24 << 20) / head_bytes.max(1)).clamp(1, shape.heads) as i32;
        with_const!(V = shape.value, of [32, 64, 128], "v_head_dim", {
            with_const!(P = shape.rope.next_power_of_two(), of [16, 32, 64, 128], "qk_rope_head_dim", {
                let grid = |queries: usize| n.div_ceil(queries) * shape.heads;
                if self.gpu && n > 64 {
                    attention::mla_prefill::<T, V, P, V, 128, 128>(q, kv, shared, position, scale, together, &mut out)
                        .grid(grid(128))
                        .run()?
                } else if self.gpu {
                    attention::mla_prefill::<T, V, P, V, 64, 64>(q, kv, shared, position, scale, together, &mut out)
                        .grid(grid(64))
                        .run()?
                } else {
                    attention::mla_prefill::<T, V, P, V, 16, 32>(q, kv, shared, position, scale, together, &mut out)
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

/// Which tokens of a batch belong to which sequence.
pub struct Batch {
    /// Sequence s has tokens `bounds[s] .. bounds[s + 1]`.
    pub bounds: Tensor,
    /// Of each token, the first of its sequence.
    pub start: Tensor,
    /// Of each token, its sequence's state slot.
    pub slot: Tensor,
}

impl Batch {
    /// One sequence of `n` tokens with its state in slot 0.
    pub fn single<T: Activation, W: Float>(ops: Ops<T, W>, n: usize) -> Result<Batch> {
        let zeros = vec![0; n];
        Ok(Batch { bounds: ops.integers(&[0, n as i32])?, start: ops.integers(&zeros)?, slot: ops.integers(&zeros)? })
    }

    fn sequences(&self) -> usize {
        self.bounds.shape()[0] - 1
    }
}

/// The element type of activations on a device.
pub fn activation_type(device: Device) -> DType {
    if matches!(device, Device::Cuda(_)) { DType::BF16 } else { DType::F32 }
}
