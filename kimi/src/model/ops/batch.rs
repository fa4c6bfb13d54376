//! Which tokens of a batch belong to which sequence, where states are kept, and how all that is cut for the kernels of
//! Kimi Delta Attention.

use super::{Activation, Ops, Result};
use crate::engine::EngineError;
use kiln::{Element, Float, Tensor};
use std::collections::BTreeSet;

/// Sequences with fewer tokens go through the delta rule token by token, whatever else is in the batch.
pub(super) const SHORT: usize = 16;
/// Tokens of a batch whose chunks are prepared at once: 28 KiB each with 32 heads of 128 in bf16, twice.
const TOKENS_AT_ONCE: usize = 8192;

/// Tokens in a chunk of the delta rule.
pub(super) fn chunk_tokens<T: Element>() -> usize {
    if T::DTYPE.size() == 2 { 64 } else { 32 }
}

/// A copy of what layers remember of a sequence after some of its tokens: the state, and the last inputs of the short
/// convolution.
///
/// To go on from there is to go on with that slot: so are the tokens of a speculation accepted that turn out to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// The sequence, by its place in the batch.
    pub sequence: usize,
    /// After so many of the tokens that it has in the batch, at least one.
    pub tokens: usize,
    /// Where the copy goes; a slot that nothing else in the batch uses.
    pub slot: usize,
}

/// Which tokens of a batch belong to which sequence.
pub struct Batch {
    /// Of each token, the first of its sequence.
    pub(super) start: Tensor,
    /// Of each token, its sequence's state slot.
    pub(super) slot: Tensor,
    pub(super) inputs: Inputs,
    /// Tokens in a chunk of the delta rule.
    pub(super) chunk: usize,
    pub(super) short: Option<Short>,
    /// Of the other sequences, piece after piece.
    pub(super) pieces: Vec<Piece>,
    /// Slots that a pool must have at least.
    slots: usize,
}

/// Which inputs of the convolution go where, [count, 4]: first token of a sequence, the token after the last input, the
/// slot of what came before the first, the slot to write.
pub(super) struct Inputs {
    /// On the way.
    pub kept: Option<Tensor>,
    /// At the ends of sequences, into their own slots.
    pub last: Option<Tensor>,
}

/// Sequences whose tokens are taken one after another.
pub(super) struct Short {
    /// [count, 4]: 0, first token, end, slot.
    pub sequences: Tensor,
    /// The most tokens that one of them has.
    pub longest: usize,
    /// Of each token of the batch, the slot that keeps the state after it, or -1; empty if there are none.
    pub kept: Tensor,
    pub keeps: bool,
}

/// Chunks that are computed together.
pub(super) struct Piece {
    /// [count, 4]: first token, end of the sequence, 0, 0. (Rows of 16 bytes stay aligned.)
    pub chunks: Tensor,
    /// [count, 4]: first of its chunks here, first token here, end here, slot.
    pub sequences: Tensor,
}

impl Batch {
    /// Sequences of these lengths one after another, each with its state slot.
    ///
    /// # Errors
    /// As [`Batch::keeping`].
    pub fn new<T: Activation, W: Float>(ops: Ops<T, W>, lengths: &[usize], slots: &[usize]) -> Result<Batch> {
        Batch::keeping(ops, lengths, slots, &[])
    }

    /// The same, with copies of states on the way.
    ///
    /// # Errors
    /// If there is not one slot a sequence, a slot is used twice (sequences without tokens use none), or a copy is asked
    /// of tokens that there are not.
    pub fn keeping<T: Activation, W: Float>(
        ops: Ops<T, W>,
        lengths: &[usize],
        slots: &[usize],
        keep: &[Keep],
    ) -> Result<Batch> {
        Batch::in_pieces(ops, lengths, slots, keep, TOKENS_AT_ONCE)
    }

    /// The same with so many tokens' chunks prepared at once, or one chunk.
    ///
    /// # Errors
    /// As [`Batch::keeping`].
    pub fn in_pieces<T: Activation, W: Float>(
        ops: Ops<T, W>,
        lengths: &[usize],
        slots: &[usize],
        keep: &[Keep],
        tokens_at_once: usize,
    ) -> Result<Batch> {
        let pool = check(lengths, slots, keep)?;
        let chunk = chunk_tokens::<T>();
        let n: usize = lengths.iter().sum();
        let (mut firsts, mut start, mut slot, mut last) = (vec![], vec![], vec![], vec![]);
        let (mut short, mut long): (Vec<[i32; 4]>, Vec<[i32; 4]>) = (vec![], vec![]);
        for (&length, &place) in lengths.iter().zip(slots) {
            let (first, place) = (start.len() as i32, place as i32);
            let end = first + length as i32;
            firsts.push(first);
            start.extend(std::iter::repeat_n(first, length));
            slot.extend(std::iter::repeat_n(place, length));
            match length {
                0 => continue,
                1..SHORT => short.push([0, first, end, place]),
                _ => long.push([0, first, end, place]),
            }
            last.push([first, end, place, place]);
        }
        let mut kept = vec![-1; if keep.is_empty() { 0 } else { n }];
        let mut kept_inputs = vec![];
        for &Keep { sequence, tokens, slot: place } in keep {
            let (first, place) = (firsts[sequence], place as i32);
            let end = first + tokens as i32;
            if lengths[sequence] >= SHORT {
                return Err(error(format!("sequence {sequence} is a prompt: its states are not kept on the way")));
            }
            kept[end as usize - 1] = place;
            kept_inputs.push([first, end, slots[sequence] as i32, place]);
        }
        let table = |rows: &[[i32; 4]]| Tensor::from_slice(rows.as_flattened(), &[rows.len(), 4], ops.device);
        let some = |rows: &[[i32; 4]]| if rows.is_empty() { Ok(None) } else { table(rows).map(Some) };
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
        let longest = short.iter().map(|[_, first, end, _]| (end - first) as usize).max();
        let short = |longest| -> Result<Short> {
            let keeps = kept.iter().any(|place| *place >= 0);
            Ok(Short { sequences: table(&short)?, longest, kept: ops.integers(&kept)?, keeps })
        };
        Ok(Batch {
            start: ops.integers(&start)?,
            slot: ops.integers(&slot)?,
            inputs: Inputs { kept: some(&kept_inputs)?, last: some(&last)? },
            chunk,
            short: longest.map(short).transpose()?,
            pieces,
            slots: pool,
        })
    }

    /// One sequence of `n` tokens with its state in slot 0.
    ///
    /// # Errors
    /// If the device has no memory for the tables.
    pub fn single<T: Activation, W: Float>(ops: Ops<T, W>, n: usize) -> Result<Batch> {
        Batch::new(ops, &[n], &[0])
    }

    /// Whether every sequence is so short that its tokens are taken one after another.
    pub fn is_short(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Whether a pool of so many slots has those of the batch.
    pub(super) fn check_pool(&self, slots: usize) -> Result<()> {
        if slots >= self.slots {
            return Ok(());
        }
        Err(error(format!("the batch uses slot {}: the pool has {slots}", self.slots - 1)))
    }
}

/// How many slots a pool must have for these sequences and copies.
fn check(lengths: &[usize], slots: &[usize], keep: &[Keep]) -> Result<usize> {
    if lengths.len() != slots.len() {
        return Err(error(format!("{} sequences have {} slots", lengths.len(), slots.len())));
    }
    let (mut used, mut positions) = (BTreeSet::new(), BTreeSet::new());
    let mut claim = |slot: usize| {
        if used.insert(slot) {
            return Ok(());
        }
        Err(error(format!("slot {slot} is used twice: every sequence and every kept state needs one of its own")))
    };
    for (length, slot) in lengths.iter().zip(slots) {
        if *length > 0 {
            claim(*slot)?;
        }
    }
    for &Keep { sequence, tokens, slot } in keep {
        let Some(&length) = lengths.get(sequence) else {
            return Err(error(format!("a state of sequence {sequence} is to be kept: there are {}", lengths.len())));
        };
        if !(1..=length).contains(&tokens) {
            let what = format!("the state after {tokens} tokens of sequence {sequence} is to be kept");
            return Err(error(format!("{what}: it has {length} in this batch")));
        }
        if !positions.insert((sequence, tokens)) {
            return Err(error(format!("the state after {tokens} tokens of sequence {sequence} is to be kept twice")));
        }
        claim(slot)?;
    }
    Ok(used.last().map_or(0, |slot| slot + 1))
}

fn error(text: String) -> EngineError {
    EngineError::Device(text.into())
}
