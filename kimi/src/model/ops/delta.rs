//! Kimi Delta Attention, one operation after another: the short convolution, and the delta rule in chunks or token by
//! token.

use super::batch::{Inputs, Long, Piece, Short, chunk_tokens};
use super::{Activation, Batch, FEW_ROWS, Ops, Result, WARP, unsupported};
use crate::engine::EngineError;
use crate::kernels::kda::{self, STATE_COLUMNS};
use crate::kernels::short_conv;
use kiln::{Device, Float, Tensor, f16};

/// Tokens of a sequence in the mean from which on states walk beside the preparation of chunks, few at a time.
const LONG: usize = 1024;

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
pub(super) struct DeltaInput<'a> {
    pub qkv: &'a Tensor,
    pub decay: &'a Tensor,
    pub beta: &'a Tensor,
    pub a_log: &'a Tensor,
    pub dt_bias: &'a Tensor,
    pub gate: Gate,
    /// Value heads that have a key head in common.
    pub group: usize,
}

/// A pool of states is `[slots, heads, width / 32, width, 32]` f32: the value columns of a head in blocks of
/// [`STATE_COLUMNS`], of each block its rows (key channels).
pub fn state_shape(slots: usize, heads: usize, width: usize) -> [usize; 5] {
    [slots, heads, width / STATE_COLUMNS, width, STATE_COLUMNS]
}

/// A pool of states as [slots, heads, width, width / 32, 32]: in row-major order these are the [key, value] matrices.
/// Also the other way round. The memory is the same.
///
/// # Errors
/// If the tensor is neither.
pub fn states_by_rows(states: &Tensor) -> kiln::Result<Tensor> {
    states.transpose(2, 3)
}

/// A pool of states as kernels take it, [slots·heads, width / 32, width, 32], of how many heads and which width.
pub(super) fn state_blocks(pool: &Tensor) -> Result<(Tensor, usize, usize)> {
    match *pool.shape() {
        [slots, heads, blocks, width, STATE_COLUMNS] if blocks * STATE_COLUMNS == width => {
            Ok((pool.reshape(&[slots * heads, blocks, width, STATE_COLUMNS])?, heads, width))
        }
        _ => {
            let found = format!("states are {:?}", pool.shape());
            let text = format!("{found} instead of [slots, heads, width / {STATE_COLUMNS}, width, {STATE_COLUMNS}]");
            Err(EngineError::Device(text.into()))
        }
    }
}

/// What [`kda::kda_chunk`] leaves for [`kda::kda_state`].
#[derive(Clone)]
struct Chunks {
    kq_in: Tensor,
    k_out: Tensor,
    p: Tensor,
    keep: Tensor,
    ready: Tensor,
    started: Tensor,
}

impl<T: Activation, W: Float> Ops<T, W> {
    /// x [n, channels], weight [taps, channels], state [slots, taps - 1, channels] (replaced) → [n, channels].
    pub fn short_conv<V: Float>(self, x: &Tensor, weight: &Tensor, state: &mut Tensor, at: &Batch) -> Result<Tensor> {
        at.check_pool(state.shape()[0])?;
        self.convolved::<V>(x, weight, state, at, &at.inputs)
    }

    /// The convolution of all tokens; these inputs are kept. `inputs.last` has all sequences of the batch.
    pub(super) fn convolved<V: Float>(
        self,
        x: &Tensor,
        weight: &Tensor,
        state: &mut Tensor,
        at: &Batch,
        inputs: &Inputs,
    ) -> Result<Tensor> {
        let mut y = self.empty::<T>(x.shape())?;
        let (n, channels) = (x.shape()[0], x.shape()[1]);
        if n == 0 {
            return Ok(y);
        }
        // Copies on the way may need what a sequence began with, which the next launch replaces.
        if let Some(kept) = &inputs.kept {
            self.keep_inputs(x, weight.shape()[0], state, kept)?;
        }
        let (start, last) = (&at.start, &inputs.last);
        let few = n < FEW_ROWS;
        let grid = (if few { n } else { n.div_ceil(16) } + last.shape()[0]) * channels.div_ceil(WARP);
        with_const!(J = weight.shape()[0], of [2, 3, 4], "linear_attn_config.short_conv_kernel_size", {
            if few {
                short_conv::short_conv::<T, V, J, 1, 1, WARP, 1>(x, weight, state, start, last, &mut y)
                    .grid(grid)
                    .run()?
            } else {
                short_conv::short_conv::<T, V, J, 16, 8, WARP, 1>(x, weight, state, start, last, &mut y)
                    .grid(grid)
                    .run()?
            }
        });
        Ok(y)
    }

    /// Keeps inputs of sequences, without a convolution.
    pub(super) fn keep_inputs(self, x: &Tensor, taps: usize, state: &mut Tensor, rows: &Tensor) -> Result<()> {
        let grid = [rows.shape()[0], x.shape()[1].div_ceil(WARP)];
        with_const!(
            J = taps,
            of [2, 3, 4],
            "linear_attn_config.short_conv_kernel_size",
            short_conv::short_conv_state::<T, J, WARP>(x, rows, state).grid(grid).run()?
        );
        Ok(())
    }

    /// Gate, normalisation and the delta rule: qkv [n, (2·key heads + heads)·width] after the convolution, decay
    /// [n, heads·width] and beta [n, heads] inputs; state [slots, heads, width / 32, width, 32] f32
    /// ([`state_shape`], replaced) → [n, heads, width]. Value head h has q and k of head h / (heads / key heads).
    ///
    /// # Errors
    /// If the columns are not those of a whole number of value heads a key head, the width is none of the kernels',
    /// states are not in such blocks, or the batch is not of these activations or this pool.
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
        at.check_pool(state.shape()[0])?;
        let (mut state, heads, width) = state_blocks(state)?;
        let mut o = self.empty::<T>(&[qkv.shape()[0], heads, width])?;
        let group = value_heads_a_key_head(qkv.shape()[1], heads, width)?;
        let input = DeltaInput { qkv, decay, beta, a_log, dt_bias, gate, group };
        if let Some(short) = &at.short {
            with_const!(
                D = width,
                of [64, 128],
                "linear_attn_config.head_dim",
                self.delta_rule_short::<D>(&input, short, &mut state, &mut o)?
            );
        }
        self.delta_rule_long(&input, &mut state, at, &mut o)?;
        Ok(o)
    }

    /// Of the sequences that go through in chunks; states as [`state_blocks`] gives them.
    pub(super) fn delta_rule_long(
        self,
        input: &DeltaInput,
        state: &mut Tensor,
        at: &Batch,
        o: &mut Tensor,
    ) -> Result<()> {
        if at.chunk != chunk_tokens::<T>() {
            return Err(EngineError::Device("the batch was made for activations of another width".into()));
        }
        let Some(Long { pieces, .. }) = &at.long else { return Ok(()) };
        with_const!(D = o.shape()[2], of [64, 128], "linear_attn_config.head_dim", {
            const B: usize = D / STATE_COLUMNS;
            // The inverse inside a chunk has entries of at most 1: f16 keeps three bits more of them than bf16.
            if T::DTYPE.size() == 2 {
                self.delta_rule_chunks::<f16, D, B, 64, 32, 16>(input, pieces, state, o)
            } else {
                self.delta_rule_chunks::<f32, D, B, 32, 16, 8>(input, pieces, state, o)
            }
        })
    }

    /// Sequences of few tokens, one token after another.
    fn delta_rule_short<const D: usize>(
        self,
        input: &DeltaInput,
        Short { sequences, kept, keeps, .. }: &Short,
        state: &mut Tensor,
        o: &mut Tensor,
    ) -> Result<()> {
        let DeltaInput { qkv, decay, beta, a_log, dt_bias, gate, group } = *input;
        let grid = [D / STATE_COLUMNS * group, o.shape()[1] / group, sequences.shape()[0]];
        macro_rules! recurrent {
            ($BOUNDED:literal, $KEEP:literal, $low:expr) => {
                kda::kda_recurrent::<T, D, STATE_COLUMNS, $BOUNDED, $KEEP>(
                    qkv, decay, beta, a_log, dt_bias, $low, sequences, kept, state, o,
                )
                .grid(grid)
                .run()?
            };
        }
        match (gate, keeps) {
            (Gate::Softplus, false) => recurrent!(false, false, 0.0),
            (Gate::Softplus, true) => recurrent!(false, true, 0.0),
            (Gate::Bounded(low), false) => recurrent!(true, false, low),
            (Gate::Bounded(low), true) => recurrent!(true, true, low),
        }
        Ok(())
    }

    /// Chunks of `C` = 2·`S` tokens. Where walkers of whole states leave most multiprocessors to others, they walk along
    /// as chunks are prepared; otherwise afterwards, all sequences at once, with half a state each.
    fn delta_rule_chunks<
        X: Activation,
        const D: usize,
        const B: usize,
        const C2: usize,
        const C: usize,
        const S: usize,
    >(
        self,
        input: &DeltaInput,
        pieces: &[Piece],
        state: &mut Tensor,
        o: &mut Tensor,
    ) -> Result<()> {
        let heads = o.shape()[1];
        for piece in pieces {
            let chunks = self.chunks::<D, C>(heads, piece)?;
            // A walker takes one sequence after the other: those should be long. It has no registers left for copies of
            // the state on the way.
            let (tokens, sequences) = (piece.chunks.shape()[0] * C, piece.sequences.shape()[0]);
            let long = sequences == 1 || tokens / sequences >= LONG;
            // Where launches are one after the other, everybody has room.
            let room = 4 * heads <= self.multiprocessors || !matches!(self.device, Device::Cuda(_));
            if room && long && !piece.keeps {
                let prepare = || {
                    kda::kda_gate(&mut chunks.started.clone(), heads as i32).grid([1]).run()?;
                    self.prepare_chunks::<X, D, C, S, true>(input, piece, &chunks)
                };
                let walk = || self.walk_chunks::<D, C2, C, D, B, 6, true>(input, piece, &chunks, state, o);
                self.device.beside(prepare, walk)?;
            } else {
                self.prepare_chunks::<X, D, C, S, false>(input, piece, &chunks)?;
                self.walk_chunks::<D, C2, C, 64, 2, 5, false>(input, piece, &chunks, state, o)?;
            }
        }
        Ok(())
    }

    fn chunks<const D: usize, const C: usize>(self, heads: usize, piece: &Piece) -> Result<Chunks> {
        let count = piece.chunks.shape()[0];
        let (ready, started) = piece.semaphores(heads, self.device)?;
        Ok(Chunks {
            kq_in: self.empty::<T>(&[heads, 2 * count * C, D])?,
            k_out: self.empty::<T>(&[heads, count * C, D])?,
            p: self.empty::<T>(&[heads, count * C, C])?,
            keep: self.empty::<f32>(&[heads, count, D])?,
            ready,
            started,
        })
    }

    fn prepare_chunks<X: Activation, const D: usize, const C: usize, const S: usize, const BESIDE: bool>(
        self,
        input: &DeltaInput,
        piece: &Piece,
        chunks: &Chunks,
    ) -> kiln::Result<()> {
        let Chunks { kq_in, k_out, p, keep, ready, .. } = &mut chunks.clone();
        let DeltaInput { qkv, decay, beta, a_log, dt_bias, gate, group } = *input;
        let (heads, count, chunks) = (kq_in.shape()[0], piece.chunks.shape()[0], &piece.chunks);
        let grid = [heads / group, group, count];
        macro_rules! prepare {
            ($H:literal, $N:literal, $B:literal, $BOUNDED:literal, $low:expr) => {
                kda::kda_chunk::<T, X, D, C, S, $H, $N, $B, 32, $BOUNDED, BESIDE>(
                    qkv, decay, beta, a_log, dt_bias, $low, chunks, kq_in, k_out, p, keep, ready,
                )
                .grid(grid)
                .run()
            };
        }
        // Brief sequences have two warps for each block: less work in all is less time only where there is much of it.
        let brief = piece.brief && T::DTYPE.size() == 2;
        match (gate, brief) {
            (Gate::Softplus, false) => prepare!(1, 2, 32, false, 0.0),
            (Gate::Softplus, true) => prepare!(2, 4, 64, false, 0.0),
            (Gate::Bounded(low), false) => prepare!(1, 2, 32, true, low),
            (Gate::Bounded(low), true) => prepare!(2, 4, 64, true, low),
        }
    }

    fn walk_chunks<
        const D: usize,
        const C2: usize,
        const C: usize,
        const V: usize,
        const B: usize,
        const AHEAD: usize,
        const BESIDE: bool,
    >(
        self,
        input: &DeltaInput,
        piece: &Piece,
        chunks: &Chunks,
        state: &mut Tensor,
        o: &mut Tensor,
    ) -> kiln::Result<()> {
        let Chunks { kq_in, k_out, p, keep, ready, started } = &mut chunks.clone();
        let (qkv, heads) = (input.qkv, kq_in.shape()[0]);
        let Piece { chunks, sequences, keeps, .. } = piece;
        let grid = [D / V, heads, if BESIDE { 1 } else { sequences.shape()[0] }];
        macro_rules! walk {
            ($KEEP:literal) => {
                kda::kda_state::<T, D, C, C2, V, B, AHEAD, BESIDE, $KEEP>(
                    qkv, kq_in, k_out, p, keep, ready, started, sequences, chunks, state, o,
                )
                .grid(grid)
                .run()
            };
        }
        if *keeps { walk!(true) } else { walk!(false) }
    }
}

/// How many value heads have a key head in common, from the columns of all q, k and v.
pub(super) fn value_heads_a_key_head(columns: usize, heads: usize, width: usize) -> Result<usize> {
    let key_columns = columns.saturating_sub(heads * width) / 2;
    let key_heads = key_columns.checked_div(width).unwrap_or(0);
    if key_heads > 0 && (2 * key_heads + heads) * width == columns && heads.is_multiple_of(key_heads) {
        return Ok(heads / key_heads);
    }
    let found = format!("q, k and v have {columns} columns, v {heads} heads of {width}");
    Err(EngineError::Device(format!("{found}: there must be a whole number of value heads for each key head").into()))
}

#[cfg(test)]
mod tests {
    use super::{state_blocks, state_shape, states_by_rows, value_heads_a_key_head};
    use kiln::{DType, Device, Tensor};

    /// Where kernels look for what stands in a row and a column.
    #[test]
    fn states_lie_in_blocks() {
        let places: Vec<i32> = (0..2 * 3 * 64 * 64).collect();
        let pool = Tensor::from_slice(&places, &state_shape(2, 3, 64), Device::Cpu).unwrap();
        let rows = states_by_rows(&pool).unwrap().to_vec::<i32>().unwrap();
        let (head, key, column) = (5, 7, 45);
        let place = ((head * 2 + column / 32) * 64 + key) * 32 + column % 32;
        assert_eq!(rows[(head * 64 + key) * 64 + column], place as i32);
        assert_eq!(state_blocks(&pool).unwrap().0.shape(), [6, 2, 64, 32]);
    }

    #[test]
    fn other_states_are_refused() {
        for shape in [&[2, 3, 64, 64][..], &[2, 3, 1, 64, 64], &[2, 3, 4, 64, 32]] {
            let states = Tensor::zeros(shape, DType::F32, Device::Cpu).unwrap();
            let error = state_blocks(&states).unwrap_err().to_string();
            assert_eq!(error, format!("states are {shape:?} instead of [slots, heads, width / 32, width, 32]"));
        }
    }

    #[test]
    fn key_heads_follow_from_the_columns() {
        assert_eq!(value_heads_a_key_head(3 * 4 * 64, 4, 64).unwrap(), 1);
        assert_eq!(value_heads_a_key_head((2 * 2 + 6) * 64, 6, 64).unwrap(), 3);
        // No key heads, one too many, and a part of one.
        for columns in [6 * 64, (2 * 4 + 6) * 64, (2 * 2 + 6) * 64 + 2] {
            let error = value_heads_a_key_head(columns, 6, 64).unwrap_err().to_string();
            let text = "there must be a whole number of value heads for each key head";
            assert_eq!(error, format!("q, k and v have {columns} columns, v 6 heads of 64: {text}"));
        }
        assert!(value_heads_a_key_head(0, 0, 0).is_err());
    }
}
