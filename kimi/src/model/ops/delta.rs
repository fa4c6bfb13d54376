//! Kimi Delta Attention: the short convolution, the delta rule in chunks or token by token, and a step of decoding in
//! one kernel; how a batch is cut for them.

use super::{Activation, FEW_ROWS, Ops, Result, WARP, unsupported};
use crate::engine::EngineError;
use crate::kernels::{kda, short_conv};
use kiln::{Element, Float, Tensor, f16};

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
/// Tokens of a batch whose chunks are prepared at once: 28 KiB each with 32 heads of 128 in bf16, twice.
const TOKENS_AT_ONCE: usize = 8192;

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
    /// The most tokens that one of them has.
    longest_short: usize,
    /// Of the other sequences, piece after piece.
    pieces: Vec<Piece>,
}

/// What [`kda::kda_chunk`] leaves for [`kda::kda_state`].
struct Chunks {
    k_in: Tensor,
    q_in: Tensor,
    k_out: Tensor,
    p: Tensor,
    keep: Tensor,
}

/// Chunks that are computed together.
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

    /// The same with so many tokens' chunks prepared at once, or one chunk.
    pub fn in_pieces<T: Activation, W: Float>(
        ops: Ops<T, W>,
        lengths: &[usize],
        slots: &[usize],
        tokens_at_once: usize,
    ) -> Result<Batch> {
        let chunk = chunk_tokens::<T>();
        let (mut bounds, mut start, mut slot) = (vec![0], vec![], vec![]);
        let (mut short, mut long): (Vec<[i32; 4]>, Vec<[i32; 4]>) = (vec![], vec![]);
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
        // Chunks in the order of the tokens, as many to a piece as are allowed.
        let most = (tokens_at_once / chunk).max(1);
        let (mut pieces, mut chunks, mut sequences) = (vec![], vec![], vec![]);
        for [_, mut first, end, place] in long {
            while first < end {
                if chunks.len() == most {
                    pieces.push(Piece { chunks: table(&chunks)?, sequences: table(&sequences)? });
                    (chunks, sequences) = (vec![], vec![]);
                }
                let here = (first + ((most - chunks.len()) * chunk) as i32).min(end);
                sequences.push([chunks.len() as i32, first, here, place]);
                chunks.extend((first..here).step_by(chunk).map(|token| [token, here, 0, 0]));
                first = here;
            }
        }
        if !chunks.is_empty() {
            pieces.push(Piece { chunks: table(&chunks)?, sequences: table(&sequences)? });
        }
        Ok(Batch {
            bounds: ops.integers(&bounds)?,
            start: ops.integers(&start)?,
            slot: ops.integers(&slot)?,
            chunk,
            short: if short.is_empty() { None } else { Some(table(&short)?) },
            longest_short: short.iter().map(|[_, first, end, _]| (end - first) as usize).max().unwrap_or(0),
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

impl<T: Activation, W: Float> Ops<T, W> {
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
            // The inverse inside a chunk has entries of at most 1: f16 keeps three bits more of them than bf16.
            if at.chunk == 64 {
                self.delta_rule_chunks::<f16, D, 64, 32, 16>(&input, &at.pieces, state, &mut o)?;
            } else {
                self.delta_rule_chunks::<f32, D, 32, 16, 8>(&input, &at.pieces, state, &mut o)?;
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

    /// Chunks of `C` = 2·`M` = 4·`S` tokens: while the states walk one piece's, the next one's are prepared.
    fn delta_rule_chunks<X: Activation, const D: usize, const C: usize, const M: usize, const S: usize>(
        self,
        input: &DeltaInput,
        pieces: &[Piece],
        state: &mut Tensor,
        o: &mut Tensor,
    ) -> Result<()> {
        let heads = state.shape()[1];
        let mut ready: Option<(&Piece, Chunks)> = None;
        for piece in pieces {
            let mut next = self.chunks::<D, C>(heads, piece)?;
            match &ready {
                None => self.prepare_chunks::<X, D, C, M, S>(input, piece, &mut next)?,
                // Two chunks ahead leave room for the other kernel on the same multiprocessor.
                Some((piece_before, before)) => self.device.beside(
                    || self.walk_chunks::<D, C, 2>(input, piece_before, before, state, o),
                    || self.prepare_chunks::<X, D, C, M, S>(input, piece, &mut next),
                )?,
            }
            ready = Some((piece, next));
        }
        if let Some((piece, last)) = &ready {
            self.walk_chunks::<D, C, 3>(input, piece, last, state, o)?;
        }
        Ok(())
    }

    fn chunks<const D: usize, const C: usize>(self, heads: usize, piece: &Piece) -> Result<Chunks> {
        let count = piece.chunks.shape()[0];
        let by_token = [heads, count * C, D];
        Ok(Chunks {
            k_in: self.empty::<T>(&by_token)?,
            q_in: self.empty::<T>(&by_token)?,
            k_out: self.empty::<T>(&by_token)?,
            p: self.empty::<T>(&[heads, count * C, C])?,
            keep: self.empty::<f32>(&[heads, count, D])?,
        })
    }

    fn prepare_chunks<X: Activation, const D: usize, const C: usize, const M: usize, const S: usize>(
        self,
        input: &DeltaInput,
        piece: &Piece,
        Chunks { k_in, q_in, k_out, p, keep }: &mut Chunks,
    ) -> kiln::Result<()> {
        let DeltaInput { qkv, decay, beta, a_log, dt_bias, gate } = *input;
        let (heads, count, chunks) = (k_in.shape()[0], piece.chunks.shape()[0], &piece.chunks);
        match gate {
            Gate::Softplus => kda::kda_chunk::<T, X, D, C, M, S, false>(
                qkv, decay, beta, a_log, dt_bias, 0.0, chunks, k_in, q_in, k_out, p, keep,
            )
            .grid([count, heads])
            .run(),
            Gate::Bounded(low) => kda::kda_chunk::<T, X, D, C, M, S, true>(
                qkv, decay, beta, a_log, dt_bias, low, chunks, k_in, q_in, k_out, p, keep,
            )
            .grid([count, heads])
            .run(),
        }
    }

    fn walk_chunks<const D: usize, const C: usize, const AHEAD: usize>(
        self,
        input: &DeltaInput,
        piece: &Piece,
        Chunks { k_in, q_in, k_out, p, keep }: &Chunks,
        state: &mut Tensor,
        o: &mut Tensor,
    ) -> kiln::Result<()> {
        const V: usize = 64;
        let (heads, sequences) = (k_in.shape()[0], &piece.sequences);
        kda::kda_state::<T, D, C, V, AHEAD>(input.qkv, k_in, q_in, k_out, p, keep, sequences, state, o)
            .grid([D / V, heads, sequences.shape()[0]])
            .run()
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
        let out = self.empty::<T>(gate.shape())?;
        let Some(sequences) = &at.short else { return Ok(out) };
        let (taps, channels) = (conv.shape()[0], conv.shape()[1] / 3);
        let x = &x.reshape(&[x.shape()[0], 3, channels])?;
        let conv = &conv.reshape(&[taps, 3, channels])?;
        let inputs = &mut inputs.reshape(&[inputs.shape()[0], taps - 1, 3, channels])?;
        let (slots, heads, width) = (state.shape()[0], state.shape()[1], state.shape()[2]);
        let eps = eps as f32;
        let grid = [heads, sequences.shape()[0]];
        // Many programs share multiprocessors, few have one each for a whole state.
        let few = grid[0] * grid[1] < 2 * self.multiprocessors;
        with_const!(J = taps, of [2, 3, 4], "linear_attn_config.short_conv_kernel_size", {
            with_const!(D = width, of [64, 128], "linear_attn_config.head_dim", {
                const V: usize = 32;
                const B: usize = D / V;
                let blocks = |tensor: &Tensor| tensor.reshape(&[tensor.shape()[0], heads, B, V]);
                let (gate, norm) = (&blocks(gate)?, &norm.reshape(&[B, V])?);
                let by_block = &mut blocks(&out)?;
                let state = &mut state.reshape(&[slots * heads, width, B, V])?.permute(&[0, 2, 1, 3])?;
                // Tokens, blocks at a time, programs that the registers are to suffice for.
                macro_rules! step {
                    ($N:literal, $C:literal, $P:literal) => {
                        match kind {
                            Gate::Softplus => {
                                kda::kda_step::<T, $N, D, B, V, $C, { 2 * $C }, J, false, $P>(
                                    x, conv, decay, beta, a_log, dt_bias, 0.0, gate, norm, eps, sequences, inputs,
                                    state, by_block,
                                )
                                .grid(grid)
                                .run()?
                            }
                            Gate::Bounded(low) => {
                                kda::kda_step::<T, $N, D, B, V, $C, { 2 * $C }, J, true, $P>(
                                    x, conv, decay, beta, a_log, dt_bias, low, gate, norm, eps, sequences, inputs,
                                    state, by_block,
                                )
                                .grid(grid)
                                .run()?
                            }
                        }
                    };
                }
                match at.longest_short {
                    1 if few => step!(1, 2, 2),
                    1 => step!(1, 1, 4),
                    2..=4 => step!(4, 1, 3),
                    _ => step!(16, 1, 2),
                }
            })
        });
        Ok(out)
    }
}
