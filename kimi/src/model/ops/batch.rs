//! Which tokens of a batch belong to which sequence, where states are kept, and how all that is cut for the kernels of
//! Kimi Delta Attention.

use super::{Activation, Ops, Result};
use crate::engine::EngineError;
use crate::kernels::kda::GROUP;
use kiln::{DType, Device, Element, Float, Tensor};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Sequences with fewer tokens go through the delta rule token by token, whatever else is in the batch.
pub(super) const SHORT: usize = 16;
/// The most tokens of a batch whose chunks are prepared at once: 28 KiB each with 32 heads of 128 in bf16.
const TOKENS_AT_ONCE: usize = 32768;
/// What part of a piece a brief sequence is less than: of fewer than 2,048 tokens.
const BRIEF: usize = 16;

/// Tokens in a chunk of the delta rule.
pub(super) fn chunk_tokens<T: Element>() -> usize {
    if T::DTYPE.size() == 2 { 32 } else { 16 }
}

/// A copy of what layers remember of a sequence after some of its tokens: the state, and the last inputs of the short
/// convolution.
///
/// To go on from there is to go on with that slot: so are the tokens of a speculation accepted that turn out to be
/// right, and so does a prompt begin where it has a prefix with another in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// The sequence, by its place in the batch.
    pub sequence: usize,
    /// After so many of the tokens that it has in the batch, at least one. Of a prompt (of 16 tokens or more): all, or
    /// a multiple of [`Batch::keep_step`].
    pub tokens: usize,
    /// Where the copy goes; a slot that nothing else in the batch uses.
    pub slot: usize,
}

/// Which tokens of a batch belong to which sequence.
pub struct Batch {
    /// Of each token, the first of its sequence.
    pub(super) start: Tensor,
    /// Of all sequences.
    pub(super) inputs: Inputs,
    /// Tokens in a chunk of the delta rule.
    pub(super) chunk: usize,
    pub(super) short: Option<Short>,
    pub(super) long: Option<Long>,
    /// Slots that a pool must have at least.
    slots: usize,
}

/// Which inputs of the convolution go where, [count, 4]: first token of a sequence, the token after the last input, the
/// slot of what came before the first, the slot to write or -1.
pub(super) struct Inputs {
    /// On the way.
    pub kept: Option<Tensor>,
    /// At the ends of sequences, into their own slots.
    pub last: Tensor,
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
    pub inputs: Inputs,
}

/// Sequences that go through in chunks.
pub(super) struct Long {
    pub pieces: Vec<Piece>,
    /// Their tokens, those of neighbours together.
    pub tokens: Vec<Range<usize>>,
    pub inputs: Inputs,
}

/// Chunks that are computed together.
pub(super) struct Piece {
    /// [count, 4]: first token, end of the sequence, slot that keeps the state after it or -1, the first chunk of those
    /// of its sequence that are waited for together.
    pub chunks: Tensor,
    /// [count, 4]: first of its chunks here, first token here, end here, slot.
    pub sequences: Tensor,
    /// Whether the state after one of its chunks is kept.
    pub keeps: bool,
    /// Whether its sequences are brief, less than a [`BRIEF`]th of what a piece may have, rather than longer.
    pub brief: bool,
    /// [heads + 1, count of chunks] i32, 0 between launches: semaphores that say that chunks are prepared and, below
    /// them, a counter of programs that have begun.
    ready: OnceCell<Tensor>,
}

impl Piece {
    /// Its semaphores and the counter, made when they are first asked for: a batch is the same for all layers.
    pub fn semaphores(&self, heads: usize, device: Device) -> Result<(Tensor, Tensor)> {
        let split = |all: &Tensor| Ok((all.narrow(0, 0, heads)?, all.select(0, heads)?));
        if let Some(all) = self.ready.get().filter(|r| r.shape()[0] == heads + 1) {
            return split(all);
        }
        let zeros = Tensor::zeros(&[heads + 1, self.chunks.shape()[0]], DType::I32, device)?;
        let _ = self.ready.set(zeros.clone());
        split(&zeros)
    }
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
    /// If there are more than 2^31 - 1 tokens or not one slot a sequence, a slot is used twice (sequences without tokens
    /// use none), or a copy is asked for where there is none: beyond a sequence's tokens, or within a chunk of a prompt.
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
        let chunk = chunk_tokens::<T>();
        let pool = check(lengths, slots, keep, chunk)?;
        let (mut sequences, mut first) = (vec![], 0);
        for (sequence, (&length, &slot)) in lengths.iter().zip(slots).enumerate() {
            let kept = keep.iter().filter(|keep| keep.sequence == sequence);
            let kept = kept.map(|keep| (first + keep.tokens as i32, keep.slot as i32)).collect();
            let end = first + length as i32;
            sequences.push(Sequence { first, end, slot: slot as i32, kept });
            first = end;
        }
        sequences.retain(|s| s.tokens() > 0);
        let start: Vec<i32> = sequences.iter().flat_map(|s| std::iter::repeat_n(s.first, s.tokens())).collect();
        let start = ops.integers(&start)?;
        let inputs = Inputs::new(ops, &sequences, &[])?;
        let (short, long): (Vec<_>, Vec<_>) = sequences.into_iter().partition(|s| s.tokens() < SHORT);
        Ok(Batch {
            start,
            inputs,
            chunk,
            short: if short.is_empty() { None } else { Some(Short::new(ops, &short, first)?) },
            long: if long.is_empty() { None } else { Some(Long::new(ops, &long, &short, chunk, tokens_at_once)?) },
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

    /// Of a prompt, states are kept after multiples of so many of its tokens in the batch: a chunk of the delta rule.
    pub fn keep_step<T: Activation>() -> usize {
        chunk_tokens::<T>()
    }

    /// Whether a pool of so many slots has those of the batch.
    pub(super) fn check_pool(&self, slots: usize) -> Result<()> {
        if slots >= self.slots {
            return Ok(());
        }
        Err(error(format!("the batch uses slot {}: the pool has {slots}", self.slots - 1)))
    }
}

/// A sequence of a batch.
struct Sequence {
    /// Its first token, and the one after its last.
    first: i32,
    end: i32,
    slot: i32,
    /// Slots that keep its state on the way, by the token that follows.
    kept: BTreeMap<i32, i32>,
}

impl Sequence {
    fn tokens(&self) -> usize {
        (self.end - self.first) as usize
    }

    /// The slot that keeps the state before this token, or -1.
    fn kept_before(&self, token: i32) -> i32 {
        self.kept.get(&token).copied().unwrap_or(-1)
    }
}

impl Inputs {
    /// Of these sequences; of the others, which are in the same batch, nothing is kept.
    fn new<T: Activation, W: Float>(ops: Ops<T, W>, sequences: &[Sequence], others: &[Sequence]) -> Result<Inputs> {
        let last = sequences.iter().map(|s| [s.first, s.end, s.slot, s.slot]);
        let last: Vec<_> = last.chain(others.iter().map(|s| [s.first, s.end, s.slot, -1])).collect();
        let kept = sequences.iter().flat_map(|s| s.kept.iter().map(|(end, slot)| [s.first, *end, s.slot, *slot]));
        let kept: Vec<_> = kept.collect();
        Ok(Inputs { kept: if kept.is_empty() { None } else { Some(table(ops, &kept)?) }, last: table(ops, &last)? })
    }
}

impl Short {
    /// Of a batch of `n` tokens.
    fn new<T: Activation, W: Float>(ops: Ops<T, W>, sequences: &[Sequence], n: i32) -> Result<Short> {
        let rows: Vec<_> = sequences.iter().map(|s| [0, s.first, s.end, s.slot]).collect();
        let keeps = sequences.iter().any(|s| !s.kept.is_empty());
        let mut kept = vec![-1; if keeps { n as usize } else { 0 }];
        for (end, slot) in sequences.iter().flat_map(|s| &s.kept) {
            kept[*end as usize - 1] = *slot;
        }
        Ok(Short {
            sequences: table(ops, &rows)?,
            longest: sequences.iter().map(Sequence::tokens).max().unwrap_or(0),
            kept: ops.integers(&kept)?,
            keeps,
            inputs: Inputs::new(ops, sequences, &[])?,
        })
    }
}

impl Long {
    /// Chunks in the order of the tokens, as many to a piece as are allowed. How a sequence is computed, and so rounded,
    /// depends on its own length only: brief ones and longer ones are in pieces of their own.
    fn new<T: Activation, W: Float>(
        ops: Ops<T, W>,
        sequences: &[Sequence],
        others: &[Sequence],
        chunk: usize,
        tokens_at_once: usize,
    ) -> Result<Long> {
        let most = (tokens_at_once / chunk).max(1);
        let piece = |chunks: &[[i32; 4]], sequences: &[[i32; 4]], brief| -> Result<Piece> {
            let keeps = chunks.iter().any(|[_, _, slot, _]| *slot >= 0);
            let (chunks, sequences) = (table(ops, chunks)?, table(ops, sequences)?);
            Ok(Piece { chunks, sequences, keeps, brief, ready: OnceCell::new() })
        };
        let (mut pieces, mut chunks, mut rows) = (vec![], vec![], vec![]);
        let mut tokens: Vec<Range<usize>> = vec![];
        let mut brief = false;
        for s in sequences {
            if (s.tokens() < tokens_at_once / BRIEF) != brief {
                if !chunks.is_empty() {
                    pieces.push(piece(&chunks, &rows, brief)?);
                    (chunks, rows) = (vec![], vec![]);
                }
                brief = !brief;
            }
            let mut first = s.first;
            while first < s.end {
                if chunks.len() == most {
                    pieces.push(piece(&chunks, &rows, brief)?);
                    (chunks, rows) = (vec![], vec![]);
                }
                let end = (first + ((most - chunks.len()) * chunk) as i32).min(s.end);
                let first_chunk = chunks.len();
                rows.push([first_chunk as i32, first, end, s.slot]);
                for token in (first..end).step_by(chunk) {
                    let next = (token + chunk as i32).min(end);
                    let group = first_chunk + (chunks.len() - first_chunk) / GROUP * GROUP;
                    chunks.push([token, end, s.kept_before(next), group as i32]);
                }
                first = end;
            }
            let (first, end) = (s.first as usize, s.end as usize);
            match tokens.last_mut() {
                Some(before) if before.end == first => before.end = end,
                _ => tokens.push(first..end),
            }
        }
        pieces.push(piece(&chunks, &rows, brief)?);
        Ok(Long { pieces, tokens, inputs: Inputs::new(ops, sequences, others)? })
    }
}

fn table<T: Activation, W: Float>(ops: Ops<T, W>, rows: &[[i32; 4]]) -> Result<Tensor> {
    Ok(Tensor::from_slice(rows.as_flattened(), &[rows.len(), 4], ops.device)?)
}

/// How many slots a pool must have for these sequences and copies.
fn check(lengths: &[usize], slots: &[usize], keep: &[Keep], chunk: usize) -> Result<usize> {
    if lengths.len() != slots.len() {
        return Err(error(format!("{} sequences have {} slots", lengths.len(), slots.len())));
    }
    let n = lengths.iter().fold(0usize, |n, length| n.saturating_add(*length));
    if n > i32::MAX as usize {
        return Err(error(format!("a batch of {n} tokens: at most {} can be told apart", i32::MAX)));
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
        if length >= SHORT && tokens < length && !tokens.is_multiple_of(chunk) {
            let what = format!("the state after {tokens} of {length} tokens of sequence {sequence} is to be kept");
            return Err(error(format!("{what}: a prompt's states are there after multiples of {chunk} and after all")));
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

#[cfg(test)]
mod tests {
    use super::*;
    use kiln::{Device, bf16};

    fn message(lengths: &[usize], slots: &[usize], keep: &[(usize, usize, usize)]) -> String {
        let keep: Vec<Keep> = keep.iter().map(|&(sequence, tokens, slot)| Keep { sequence, tokens, slot }).collect();
        let ops = Ops::<bf16, bf16>::new(Device::Cpu);
        match Batch::keeping(ops, lengths, slots, &keep) {
            Ok(_) => "accepted".into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        // Empty sequences use no slot; a prompt's last state may be kept wherever it ends.
        assert_eq!(message(&[0, 3, 70], &[0, 0, 1], &[(1, 3, 2), (2, 32, 3), (2, 70, 4)]), "accepted");
        assert_eq!(message(&[3], &[0, 1], &[]), "1 sequences have 2 slots");
        let twice = "slot 1 is used twice: every sequence and every kept state needs one of its own";
        assert_eq!(message(&[3, 1], &[1, 1], &[]), twice);
        assert_eq!(message(&[3, 1], &[0, 1], &[(0, 1, 1)]), twice);
        assert_eq!(message(&[3], &[0], &[(1, 1, 1)]), "a state of sequence 1 is to be kept: there are 1");
        for tokens in [0, 4] {
            let text = format!("the state after {tokens} tokens of sequence 0 is to be kept: it has 3 in this batch");
            assert_eq!(message(&[3], &[0], &[(0, tokens, 1)]), text);
        }
        let text = "the state after 2 tokens of sequence 0 is to be kept twice";
        assert_eq!(message(&[3], &[0], &[(0, 2, 1), (0, 2, 2)]), text);
        let text = "the state after 65 of 70 tokens of sequence 0 is to be kept: a prompt's states are there after \
                    multiples of 32 and after all";
        assert_eq!(message(&[70], &[0], &[(0, 65, 1)]), text);
        let text = "a batch of 2147483648 tokens: at most 2147483647 can be told apart";
        assert_eq!(message(&[1 << 31], &[0], &[]), text);
    }

    #[test]
    fn brief_sequences_are_apart() {
        let ops = Ops::<bf16, bf16>::new(Device::Cpu);
        let pieces = |lengths: &[usize]| -> Vec<(bool, usize)> {
            let slots: Vec<usize> = (0..lengths.len()).collect();
            let long = Batch::in_pieces(ops, lengths, &slots, &[], 640).unwrap().long;
            let pieces = long.into_iter().flat_map(|long| long.pieces);
            pieces.map(|piece| (piece.brief, piece.chunks.shape()[0])).collect()
        };
        assert_eq!(pieces(&[39, 20, 40, 700, 33]), [(true, 3), (false, 20), (false, 4), (true, 2)]);
        assert_eq!(pieces(&[20]), [(true, 1)]);
        assert!(pieces(&[3]).is_empty());
    }

    #[test]
    fn a_pool_must_have_the_slots() {
        let batch = Batch::new(Ops::<bf16, bf16>::new(Device::Cpu), &[1, 2], &[0, 4]).unwrap();
        assert!(batch.check_pool(5).is_ok());
        assert_eq!(batch.check_pool(4).unwrap_err().to_string(), "the batch uses slot 4: the pool has 4");
    }
}
