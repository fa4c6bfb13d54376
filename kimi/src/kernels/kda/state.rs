//! Second kernel of a prompt: the state from chunk to chunk, and the outputs.

use super::{GROUP, STATE_COLUMNS};
use kiln::prelude::*;

/// Per chunk, with S the state before it and all else as [`super::kda_chunk`] leaves it (−k_in and q_in are the halves of
/// kq_in):
/// ```text
/// r = v − k_in S      o = q_in S + p r      S ← Diag(keep) S + k_outᵀ r
/// ```
/// computed transposed: each result is then the first operand of a product that follows, where the tensor cores take
/// it from registers, and all second operands come from memory as they lie there.
///
/// qkv as of [`super::kda_chunk`]; sequences `[count, 4]`: first chunk, first token, end, slot; state
/// `[slots·heads, D / 32, D, 32]` f32 in blocks of [`STATE_COLUMNS`], replaced → o `[n, heads, D]`. If `KEEP`: chunks
/// `[count, 4]`, in column 2 the slot that gets the state after a chunk, or -1. `AHEAD` chunks are in shared memory at a
/// time; `C2` = 2·`C`.
///
/// If `BESIDE`, it may run beside kda_chunk: it waits for the signals of [`GROUP`] chunks at a time, and started `[1]`
/// counts its programs; kq_in and k_out hold nothing afterwards. There must be one program a head then (`V` = `D`).
/// Program: (`V` value columns, which are `B` blocks of the state; head; first of its sequences).
#[kernel(
    evict_first(qkv if BESIDE, p if BESIDE),
    discard(kq_in if BESIDE, k_out if BESIDE),
    deny(spill, wgmma_serialized, bank_conflict)
)]
pub fn kda_state<
    T,
    const D: usize,
    const C: usize,
    const C2: usize,
    const V: usize,
    const B: usize,
    const AHEAD: usize,
    const BESIDE: bool,
    const KEEP: bool,
>(
    qkv: &View<T, 2>,
    kq_in: &View<T, 3>,
    k_out: &View<T, 3>,
    p: &View<T, 3>,
    keep: &View<f32, 3>,
    ready: &mut View<i32, 2>,
    started: &mut View<i32, 1>,
    sequences: &View<i32, 2>,
    chunks: &View<i32, 2>,
    state: &mut View<f32, 4>,
    o: &mut View<T, 3>,
) where
    T: Float + DotElement<Acc = f32>,
{
    let (column, head, heads) = (program_id(0) * V, program_id(1), o.dim(1));
    let block = program_id(0) * B;
    if BESIDE {
        // SAFETY: everybody adds.
        unsafe { started.atomic_add(full::<i32, D0>(0.0), full(1.0)) };
    }
    // The values are the last columns.
    let values = qkv.dim(1) - (heads - head) * D + column;
    let o = o.select(1, head);
    let (kq_in, k_out) = (kq_in.select(0, head), k_out.select(0, head));
    let (p, keep) = (p.select(0, head), keep.select(0, head));

    for sequence in (program_id(2)..sequences.dim(0)).step_by(num_programs(2)) {
        let (chunk, slot) = (sequences.get((sequence, 0)), sequences.get((sequence, 3)));
        let (first, end) = (sequences.get((sequence, 1)), sequences.get((sequence, 2)));
        let length = end - first;
        let mut o = o.narrow(0, first, length);
        let mut own_state = state.select(0, slot * heads + head);

        let stored: Tile<f32, B, D, STATE_COLUMNS> = own_state.load((block, 0, 0));
        let mut s: Tile<f32, V, D> = stored.t().reshape();
        let mut out: Tile<T, V, C> = zeros();
        for t in (0..length).step_by(C).stages(AHEAD as u8) {
            let before = s.cast::<T>();
            let row = chunk * C + t;
            if BESIDE {
                if t % (GROUP * C) as i32 == 0 {
                    let count = ((length - t + (C - 1)) / C).min(GROUP);
                    // SAFETY: `kda_chunk` signals each chunk of a head once, for the first of its group.
                    unsafe { ready.wait((head, chunk + t / C), count) };
                }
            }
            // Beyond the sequence's end k_in, k_out and the rows of p that count are zero, whatever finite v is
            // there.
            let v: Tile<T, C, V> = qkv.load((first + t, values));
            let kq_in: Tile<T, C2, D> = kq_in.load((2 * row, 0));
            let (k_out, p): (Tile<T, C, D>, Tile<T, C, C>) = (k_out.load((row, 0)), p.load((row, 0)));
            let keep: Tile<f32, 1, D> = keep.load((chunk + t / C, 0));

            // What does not need r is under way, or done, when r is there: while the state is asked, the outputs of the chunk
            // before leave, the state decays, and v is read.
            let v: Tile<f32, V, C> = v.t().cast();
            let known_and_asked = dot(before, kq_in.t(), zeros());
            let keep = keep.broadcast::<D2<V, D>>();
            // SAFETY: a program writes the columns of its own sequence, head and block; rows before the sequence's first and
            // past its end lie outside the narrowed view.
            unsafe { o.store((t - C, column), out.t()) };
            s *= keep;
            let minus_known: Tile<f32, V, C> = known_and_asked.slice([0, 0]);
            let asked: Tile<f32, V, C> = known_and_asked.slice([0, C]);
            let r = (minus_known + v).cast::<T>();
            let told = dot(r, p.t(), zeros());
            s = dot(r, k_out, s);
            out = (asked + told).cast();
            if KEEP {
                let kept = chunks.get((chunk + t / C, 2));
                if kept >= 0 {
                    let mut state = state.select(0, kept * heads + head);
                    // SAFETY: as above; a slot belongs to one sequence or one chunk.
                    unsafe { state.store((block, 0, 0), s.reshape::<D3<B, STATE_COLUMNS, D>>().t()) };
                }
            }
        }
        let last = (length + (C - 1)) / C * C - C;
        // SAFETY: as above.
        unsafe {
            o.store((last, column), out.t());
            own_state.store((block, 0, 0), s.reshape::<D3<B, STATE_COLUMNS, D>>().t());
        }
    }
}
