//! One host function per operation of the model: allocates the result, picks the kernel's tile sizes, launches.
//!
//! Tile extents are compile-time; where the config decides one, the function picks among the instances below and names
//! the config field if none fits. Nothing here waits for the device.

use crate::engine::EngineError;
use crate::kernels::{attention, embedding, experts, kda, linear, norm, router, sampling, short_conv};
use crate::sampling::Sampling;
use kiln::{DType, Device, DotElement, Element, Float, Tensor, f16};
use std::marker::PhantomData;

/// Below so many rows a linear layer on a CPU reads its weights once per row instead of tiling rows.
const FEW_ROWS: usize = 5;
/// Columns that a warp takes at a time: 16 bytes of bf16 for each of 32 lanes.
const WARP: usize = 256;
/// Multiprocessors of an H100, for which tiles are chosen where there is none.
const USUAL_MULTIPROCESSORS: usize = 132;
/// Tiles of large linear layers, and the time that one takes relative to the first (measured on an H100).
const TILES: [(usize, usize, f64); 4] = [(128, 256, 1.0), (128, 128, 0.57), (64, 256, 0.55), (64, 128, 0.36)];
/// Programs that share the context of one decoded token.
const MAX_SPLITS: usize = 128;
/// Keys that one program of a split looks at, at least.
const KEYS_PER_SPLIT: usize = 128;
/// From so many assignments to experts on their tiles come in many rounds.
const MANY_ASSIGNMENTS: usize = 1 << 16;
/// Up to so many assignments the experts are not sorted by expert.
const FEW_ASSIGNMENTS: usize = 32;

/// Activations: f32 or bf16.
pub trait Activation: Float + DotElement<Acc = f32> {}
impl<T: Float + DotElement<Acc = f32>> Activation for T {}

/// Operations on one device with activations of `T` and matrices of `W`.
#[derive(Clone, Copy)]
pub struct Ops<T, W> {
    pub device: Device,
    /// Choose the tile sizes that suit a GPU.
    gpu: bool,
    /// Programs to make at least, where the work can be cut in any number of pieces.
    multiprocessors: usize,
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

/// The tile with which `programs` finish a linear layer first, each doing one tile after the other, and the time in
/// tiles of the first kind.
fn best_tiles(rows: usize, columns: usize, programs: usize) -> ((usize, usize), f64) {
    let time = |&(m, n, one): &(usize, usize, f64)| {
        (rows.div_ceil(m) * columns.div_ceil(n)).div_ceil(programs.max(1)) as f64 * one
    };
    let all = TILES.iter().map(|tile| ((tile.0, tile.1), time(tile)));
    all.min_by(|a, b| a.1.total_cmp(&b.1)).expect("there are some")
}

/// How many columns of a linear layer to do first, in large tiles that fill whole rounds of `programs`, if that and the
/// rest in the best tiles for it take less time than all in one kind.
fn whole_rounds(rows: usize, columns: usize, programs: usize) -> Option<usize> {
    // Time of a launch and of the programs that wait for the last one.
    const ANOTHER_LAUNCH: f64 = 0.1;
    let (m, n, one) = TILES[0];
    let high = rows.div_ceil(m);
    let rounds = high * columns.div_ceil(n) / programs.max(1);
    let first = rounds * programs / high * n;
    let time = rounds as f64 * one + best_tiles(rows, columns.saturating_sub(first), programs).1 + ANOTHER_LAUNCH;
    (0 < first && first < columns && time < best_tiles(rows, columns, programs).1).then_some(first)
}

/// Chunks of [`WARP`] columns that hold a row of `width`, of the numbers that there are instances for.
fn chunks_of_width(width: usize) -> usize {
    let needed = width.div_ceil(WARP).max(1);
    [1, 2, 3, 4, 6, 9, 12, 16, 20, 28, 32].into_iter().find(|&c| c >= needed).unwrap_or(needed)
}

impl<T: Activation, W: Float> Ops<T, W> {
    pub fn new(device: Device) -> Self {
        // A device that is not there says so when it is given work.
        let multiprocessors = device.multiprocessors().unwrap_or(1);
        Ops { device, gpu: matches!(device, Device::Cuda(_)), multiprocessors, _types: PhantomData }
    }

    /// The same with the tile sizes of a GPU whatever the device is, so that its kernel instances can be examined, or
    /// interpreted, without one.
    pub fn with_gpu_tiles(self) -> Self {
        Ops { gpu: true, multiprocessors: USUAL_MULTIPROCESSORS, ..self }
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

    /// x [n, width] → [n, width].
    pub fn rms_norm<X: Float, Y: Float, V: Float>(self, x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
        let mut out = self.empty::<Y>(x.shape())?;
        let (n, eps) = (x.shape()[0], eps as f32);
        with_const!(
            C = chunks_of_width(x.shape()[1]),
            of [1, 2, 3, 4, 6, 9, 12, 16, 20, 28, 32],
            "hidden_size",
            norm::rms_norm::<X, V, Y, C, WARP>(x, weight, eps, &mut out).grid([n]).run()?
        );
        Ok(out)
    }

    /// x [n, width] f32 += the parts of delta [parts, n, width] → x normalised [n, width].
    pub fn add_rms_norm<D: Float, Y: Float, V: Float>(
        self,
        x: &mut Tensor,
        delta: &Tensor,
        weight: &Tensor,
        eps: f64,
    ) -> Result<Tensor> {
        let mut out = self.empty::<Y>(x.shape())?;
        let (n, eps) = (x.shape()[0], eps as f32);
        with_const!(
            C = chunks_of_width(x.shape()[1]),
            of [1, 2, 3, 4, 6, 9, 12, 16, 20, 28, 32],
            "hidden_size",
            norm::add_rms_norm::<D, V, Y, C, WARP>(x, delta, weight, eps, &mut out).grid([n]).run()?
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
        self.matmul::<W, T, Y>(x, weight, &mut y)?;
        Ok(y)
    }

    /// x·weightᵀ in f32, perhaps in parts whose sum it is: [parts, n, out].
    pub fn linear_parts(self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let (rows, columns, inner) = (x.shape()[0], weight.shape()[0], weight.shape()[1]);
        let parts = self.parts::<T>(rows, columns, inner);
        let mut partial = self.empty::<f32>(&[parts, rows, columns])?;
        if parts > 1 {
            self.matmul_in_parts::<W>(x, weight, &mut partial)?;
        } else {
            self.matmul::<W, T, f32>(x, weight, &mut partial.reshape(&[rows, columns])?)?;
        }
        Ok(partial)
    }

    /// The router's logits, computed in f32: x [n, hidden], weight [experts, hidden] f32 → [n, experts] f32.
    pub fn router_logits(self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let mut y = self.empty::<f32>(&[x.shape()[0], weight.shape()[0]])?;
        self.matmul::<f32, f32, f32>(x, weight, &mut y)?;
        Ok(y)
    }

    /// Into how many parts, at most 8, the inner dimension of a product is cut: as many as give each multiprocessor three
    /// programs, if each keeps some steps. Only for few rows, whose tiles alone would leave the memory idle.
    fn parts<C: Activation>(self, rows: usize, columns: usize, inner: usize) -> usize {
        if !self.gpu || C::DTYPE.size() != 2 || !(2..=64).contains(&rows) {
            return 1;
        }
        let tiles = columns.div_ceil(64).max(1);
        (3 * self.multiprocessors / tiles).min(inner.div_ceil(64) / 4).clamp(1, 8)
    }

    /// x·weightᵀ of 2 to 64 rows → partial [parts, n, out].
    fn matmul_in_parts<V: Float>(self, x: &Tensor, weight: &Tensor, partial: &mut Tensor) -> Result<()> {
        if x.shape()[0] <= 16 {
            linear::linear_part::<T, V, 16, 64, 64>(x, weight, partial).run()?;
        } else {
            linear::linear_part::<T, V, 64, 64, 64>(x, weight, partial).run()?;
        }
        Ok(())
    }

    fn matmul<V: Float, C: Activation, Y: Float>(self, x: &Tensor, weight: &Tensor, y: &mut Tensor) -> Result<()> {
        let (rows, columns, inner) = (x.shape()[0], weight.shape()[0], weight.shape()[1]);
        if !self.gpu {
            if rows < FEW_ROWS {
                linear::linear_row::<T, V, Y, 32, 1, 64, 4>(x, weight, y).run()?;
            } else {
                linear::linear::<T, V, C, Y, 32, 32, 64>(x, weight, y).run()?;
            }
            return Ok(());
        }
        let parts = self.parts::<C>(rows, columns, inner);
        if rows == 1 || rows < FEW_ROWS && C::DTYPE.size() == 4 {
            // A power of two of chunks, or 9 for a width like 2304; a grid has at most 65,535 programs along its second axis.
            if columns > 65_535 {
                linear::linear_row::<T, V, Y, 4, 4, WARP, 1>(x, weight, y).run()?;
            } else if inner.is_multiple_of(9 * WARP) {
                linear::linear_row::<T, V, Y, 1, 9, WARP, 1>(x, weight, y).run()?;
            } else {
                linear::linear_row::<T, V, Y, 2, 4, WARP, 1>(x, weight, y).run()?;
            }
        } else if parts > 1 {
            let mut partial = self.empty::<f32>(&[parts, rows, columns])?;
            self.matmul_in_parts::<V>(x, weight, &mut partial)?;
            linear::sum_parts::<Y, 8, 128>(&partial, y).run()?;
        } else if rows <= 16 && C::DTYPE.size() == 2 {
            linear::linear::<T, V, C, Y, 16, 64, 64>(x, weight, y).run()?;
        } else if rows <= 64 && C::DTYPE.size() == 2 {
            linear::linear::<T, V, C, Y, 64, 64, 64>(x, weight, y).run()?;
        } else if C::DTYPE.size() == 2 {
            let programs = self.multiprocessors;
            if let Some(first) = whole_rounds(rows, columns, programs) {
                for (start, len) in [(0, first), (first, columns - first)] {
                    let weight = weight.narrow(0, start, len)?;
                    self.matmul::<V, C, Y>(x, &weight, &mut y.narrow(1, start, len)?)?;
                }
                return Ok(());
            }
            match best_tiles(rows, columns, programs).0 {
                (128, 256) => linear::linear_tiles::<T, V, C, Y, 128, 256, 64, 16>(x, weight, y),
                (128, _) => linear::linear_tiles::<T, V, C, Y, 128, 128, 64, 16>(x, weight, y),
                (_, 256) => linear::linear_tiles::<T, V, C, Y, 64, 256, 64, 16>(x, weight, y),
                _ => linear::linear_tiles::<T, V, C, Y, 64, 128, 64, 16>(x, weight, y),
            }
            .grid(programs)
            .run()?;
        } else {
            linear::linear::<T, V, C, Y, 64, 128, 32>(x, weight, y).run()?;
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
        let programs = self.multiprocessors;
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

    /// x [n, channels], weight [taps, channels], state [slots, taps - 1, channels] (replaced) → [n, channels]. Sequence
    /// s has tokens `bounds[s] .. bounds[s + 1]`.
    pub fn short_conv<V: Float>(self, x: &Tensor, weight: &Tensor, state: &mut Tensor, at: &Batch) -> Result<Tensor> {
        let mut y = self.empty::<T>(x.shape())?;
        if x.shape()[0] == 0 {
            return Ok(y);
        }
        let blocks = x.shape()[1].div_ceil(WARP);
        with_const!(J = weight.shape()[0], of [2, 3, 4], "linear_attn_config.short_conv_kernel_size", {
            let few = x.shape()[0] < FEW_ROWS;
            let grid = [if few { x.shape()[0] } else { x.shape()[0].div_ceil(16) }, blocks];
            if few {
                short_conv::short_conv::<T, V, J, 1, 1, WARP, 1>(x, weight, state, &at.start, &at.slot, &mut y)
                    .grid(grid)
                    .run()?
            } else {
                short_conv::short_conv::<T, V, J, 16, 8, WARP, 1>(x, weight, state, &at.start, &at.slot, &mut y)
                    .grid(grid)
                    .run()?
            }
            short_conv::short_conv_state::<T, J, WARP>(x, &at.bounds, &at.slot, state)
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
        if !at.is_short() {
            return Err(EngineError::Device("a step takes sequences of few tokens only".into()));
        }
        let mut out = self.empty::<T>(gate.shape())?;
        let Some(sequences) = &at.short else { return Ok(out) };
        let (taps, channels) = (conv.shape()[0], conv.shape()[1] / 3);
        let x = &x.reshape(&[x.shape()[0], 3, channels])?;
        let conv = &conv.reshape(&[taps, 3, channels])?;
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

    /// Absorbed attention of few tokens over the latent cache of their sequence, which all n belong to. q [n, heads·(nope
    /// + rope)], latent [context, R], shared [context, rope], kv_b [heads·(nope + value), R] → [n, heads·value].
    pub fn mla_decode(
        self,
        q: &Tensor,
        latent: &Tensor,
        shared: &Tensor,
        kv_b: &Tensor,
        position: &Tensor,
        shape: MlaShape,
    ) -> Result<Tensor> {
        let absorbed = self.mla_absorb_query(q, kv_b, shape)?;
        let one = |cache: &Tensor| cache.reshape(&[1, cache.shape()[0], cache.shape()[1]]);
        let attended = self.mla_attend(&absorbed, q, &one(latent)?, &one(shared)?, position, shape)?;
        self.mla_expand_value(&attended, kv_b, shape)
    }

    /// Queries as the latent sees them: q [n, heads·(nope + rope)] → [n, heads, R].
    pub fn mla_absorb_query(self, q: &Tensor, kv_b: &Tensor, shape: MlaShape) -> Result<Tensor> {
        let (n, heads, r) = (q.shape()[0], shape.heads, kv_b.shape()[1]);
        let (rope, value) = (shape.rope as i32, shape.value as i32);
        let mut absorbed = self.empty::<T>(&[n, heads * r])?;
        with_const!(R = r, of [64, 128, 256, 512], "kv_lora_rank", {
            with_const!(N = shape.nope, of [32, 64, 128], "qk_nope_head_dim", {
                attention::mla_absorb_query::<T, W, N, R, 8>(q, kv_b, rope, value, &mut absorbed).run()?
            })
        });
        Ok(absorbed.reshape(&[n, heads, r])?)
    }

    /// Values of attended latents: [n, heads, R] f32 → [n, heads·value].
    pub fn mla_expand_value(self, attended: &Tensor, kv_b: &Tensor, shape: MlaShape) -> Result<Tensor> {
        let (n, heads, r) = (attended.shape()[0], shape.heads, kv_b.shape()[1]);
        let nope = shape.nope as i32;
        let attended = attended.reshape(&[n, heads * r])?;
        let mut out = self.empty::<T>(&[n, heads * shape.value])?;
        with_const!(R = r, of [64, 128, 256, 512], "kv_lora_rank", {
            with_const!(V = shape.value, of [32, 64, 128], "v_head_dim", {
                attention::mla_expand_value::<T, W, V, R, 32>(&attended, kv_b, nope, &mut out).run()?
            })
        });
        Ok(out)
    }

    /// Attention over latents of n tokens, as many of each sequence, the last ones before the end of its context.
    /// absorbed [n, heads, R], q [n, heads·(nope + rope)], latent [sequences, context, R], shared [sequences, context,
    /// rope], position [sequences]: of each sequence's first token → [n, heads, R] f32.
    pub fn mla_attend(
        self,
        absorbed: &Tensor,
        q: &Tensor,
        latent: &Tensor,
        shared: &Tensor,
        position: &Tensor,
        shape: MlaShape,
    ) -> Result<Tensor> {
        let (n, heads, r) = (q.shape()[0], shape.heads, latent.shape()[2]);
        let q = q.reshape(&[n, heads, shape.nope + shape.rope])?;
        let wide = self.gpu && heads > 16 && T::DTYPE.size() == 2;
        let tiles = heads.div_ceil(if wide { 32 } else { 16 });
        // As many programs as multiprocessors, each with as much of the context.
        let most = (self.multiprocessors / (n * tiles).max(1)).clamp(1, MAX_SPLITS);
        let splits = latent.shape()[1].div_ceil(KEYS_PER_SPLIT).clamp(1, most);
        let scale = shape.scale();
        let mut partial = self.empty::<f32>(&[n, splits, heads, r])?;
        let mut highest = self.empty::<f32>(&[n, splits, heads])?;
        let mut total = self.empty::<f32>(&[n, splits, heads])?;
        let mut attended = self.empty::<f32>(&[n, heads, r])?;
        let (highest, total) = (&mut highest, &mut total);
        with_const!(R = r, of [64, 128, 256, 512], "kv_lora_rank", {
            with_const!(P = shape.rope.next_power_of_two(), of [16, 32, 64, 128], "qk_rope_head_dim", {
                let out = &mut partial;
                match (wide, self.gpu && T::DTYPE.size() == 2) {
                    (true, true) => attention::mla_decode::<T, R, P, 32, 64>(
                        absorbed, &q, latent, shared, position, scale, out, highest, total,
                    ),
                    (_, true) => attention::mla_decode::<T, R, P, 16, 64>(
                        absorbed, &q, latent, shared, position, scale, out, highest, total,
                    ),
                    _ => attention::mla_decode::<T, R, P, 16, 16>(
                        absorbed, &q, latent, shared, position, scale, out, highest, total,
                    ),
                }
                .grid([splits, tiles, n])
                .run()?
            })
        });
        with_const!(S = splits.next_power_of_two(), of [1, 2, 4, 8, 16, 32, 64, 128], "max_splits", {
            attention::mla_combine::<f32, S, 64>(&partial, highest, total, &mut attended).run()?
        });
        Ok(attended)
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
        let sorted = n * k > FEW_ASSIGNMENTS;
        let mut place = self.empty::<i32>(&[n * k])?;
        if !sorted {
            if self.gpu {
                experts::experts_gate_up_row::<T, W, 1, 9, WARP>(x, gate, up, &chosen, choices, &mut h).run()?;
                experts::experts_down_row::<T, W, 2, 4, WARP>(&h, down, &chosen, &mut y).run()?;
            } else {
                experts::experts_gate_up_row::<T, W, 32, 1, 64>(x, gate, up, &chosen, choices, &mut h).run()?;
                experts::experts_down_row::<T, W, 32, 1, 64>(&h, down, &chosen, &mut y).run()?;
            }
        } else {
            let mut order = self.empty::<i32>(&[n * k])?;
            let mut bounds = self.empty::<i32>(&[count, 2])?;
            if n * k > MANY_ASSIGNMENTS {
                experts::group_by_expert::<4096>(&chosen, &mut order, &mut place, &mut bounds).grid([count]).run()?;
            } else {
                experts::group_by_expert::<1024>(&chosen, &mut order, &mut place, &mut bounds).grid([count]).run()?;
            }
            let mut rows = self.empty::<T>(&[n * k, hidden])?;
            experts::gather_tokens::<T, WARP>(x, &order, choices, &mut rows).run()?;
            // Rows of an expert, on average, decide on the height of the tiles.
            let large = self.gpu && T::DTYPE.size() == 2;
            let height = match large {
                true if n * k > 64 * count => 128,
                true => 64,
                false => 16,
            };
            let most = (n * k / height + count).min(n * k);
            let mut tiles = self.empty::<i32>(&[most, 3])?;
            with_const!(
                E = count.next_power_of_two().max(16),
                of [16, 32, 64, 128, 256, 512, 1024],
                "num_experts",
                match height {
                    128 => experts::tile_experts::<128, E>(&bounds, &mut tiles).grid([count]).run()?,
                    64 => experts::tile_experts::<64, E>(&bounds, &mut tiles).grid([count]).run()?,
                    _ => experts::tile_experts::<16, E>(&bounds, &mut tiles).grid([count]).run()?,
                }
            );
            // One program for each tile, or where there are very many as many as run side by side.
            let programs = |wide: usize, channels: usize| {
                let tiles = most * channels.div_ceil(wide);
                if n * k > MANY_ASSIGNMENTS { tiles.min(self.multiprocessors) } else { tiles }
            };
            if height == 128 {
                experts::experts_gate_up::<T, W, 128, 128, 64>(&rows, gate, up, &tiles, &mut h)
                    .grid(programs(128, width))
                    .run()?;
                experts::experts_down::<T, W, 128, 256, 64>(&h, down, &tiles, &mut y)
                    .grid(programs(256, hidden))
                    .run()?;
            } else if large {
                experts::experts_gate_up::<T, W, 64, 64, 64>(&rows, gate, up, &tiles, &mut h)
                    .grid(programs(64, width))
                    .run()?;
                experts::experts_down::<T, W, 64, 128, 64>(&h, down, &tiles, &mut y)
                    .grid(programs(128, hidden))
                    .run()?;
            } else {
                experts::experts_gate_up::<T, W, 16, 64, 64>(&rows, gate, up, &tiles, &mut h)
                    .grid(programs(64, width))
                    .run()?;
                experts::experts_down::<T, W, 16, 64, 64>(&h, down, &tiles, &mut y).grid(programs(64, hidden)).run()?;
            }
        }
        with_const!(
            S = k.next_power_of_two(),
            of [1, 2, 4, 8, 16, 32],
            "num_experts_per_token",
            if sorted {
                experts::combine_experts::<T, true, S, WARP>(&y, &place, weights, out).run()?
            } else {
                experts::combine_experts::<T, false, S, WARP>(&y, &place, weights, out).run()?
            }
        );
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

#[cfg(test)]
mod tests {
    use super::{best_tiles, whole_rounds};

    #[test]
    fn tiles_are_chosen_by_rounds() {
        // 512 large tiles are 3.9 rounds; of 192 the second round would be half empty.
        assert_eq!(best_tiles(4096, 4096, 132).0, (128, 256));
        assert_ne!(best_tiles(512, 12288, 132).0, (128, 256));
        assert_eq!(whole_rounds(4096, 4096, 132), None);
        // 288 tiles: two rounds of 132 are 66 columns of four, the rest is small.
        assert_eq!(whole_rounds(512, 18432, 132), Some(66 * 256));
        // What is left after the first part is not cut again.
        assert_eq!(whole_rounds(512, 66 * 256, 132), None);
        assert_eq!(whole_rounds(512, 18432 - 66 * 256, 132), None);
        assert_eq!(whole_rounds(512, 2304, 132), None);
    }
}
