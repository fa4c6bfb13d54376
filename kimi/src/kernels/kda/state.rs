//! Second kernel of a prompt: the state from chunk to chunk, and the outputs.

use kiln::prelude::*;

/// Per chunk, with S the state before it and k_in, q_in, k_out, p, keep as [`super::kda_chunk`] leaves them:
/// ```text
/// r = v − k_in S      o = q_in S + p r      S ← Diag(keep) S + k_outᵀ r
/// ```
/// computed transposed: each result is then the first operand of a product that follows, where the tensor cores take
/// it from registers, and all second operands come from memory as they lie there.
///
/// qkv as of [`super::kda_chunk`]; sequences `[count, 4]`: first chunk, first token, end, slot; state
/// `[slots, heads, D, D]` f32, replaced → o `[n, heads, D]`. If `KEEP`: chunks `[count, 4]`, in column 2 the slot that
/// gets the state after a chunk, or -1. `AHEAD` chunks are in shared memory at a time. Program: (block of `V` value
/// columns, head, sequence).
#[kernel(deny(spill, wgmma_serialized, bank_conflict))]
pub fn kda_state<T, const D: usize, const C: usize, const V: usize, const AHEAD: usize, const KEEP: bool>(
    qkv: &View<T, 2>,
    k_in: &View<T, 3>,
    q_in: &View<T, 3>,
    k_out: &View<T, 3>,
    p: &View<T, 3>,
    keep: &View<f32, 3>,
    sequences: &View<i32, 2>,
    chunks: &View<i32, 2>,
    state: &mut View<f32, 4>,
    o: &mut View<T, 3>,
) where
    T: Float + DotElement<Acc = f32>,
{
    let (column, head, sequence) = (program_id(0) * V, program_id(1), program_id(2));
    let (chunk, slot) = (sequences.get((sequence, 0)), sequences.get((sequence, 3)));
    let (first, end) = (sequences.get((sequence, 1)), sequences.get((sequence, 2)));
    // The values are the last columns.
    let values = qkv.dim(1) - (o.dim(1) - head) * D + column;
    let mut o = o.select(1, head).narrow(0, first, end - first);
    let (k_in, q_in, k_out) = (k_in.select(0, head), q_in.select(0, head), k_out.select(0, head));
    let (p, keep) = (p.select(0, head), keep.select(0, head));

    let mut own_state = state.select(0, slot).select(0, head);

    let stored: Tile<f32, D, V> = own_state.load((0, column));
    let mut s: Tile<f32, V, D> = stored.t();
    for t in (0..end - first).step_by(C).stages(AHEAD as u8) {
        let row = chunk * C + t;
        // Beyond the sequence's end k_in, k_out and the rows of p that count are zero, whatever v is there.
        let v: Tile<T, C, V> = qkv.load((first + t, values));
        let (k_in, q_in): (Tile<T, C, D>, Tile<T, C, D>) = (k_in.load((row, 0)), q_in.load((row, 0)));
        let (k_out, p): (Tile<T, C, D>, Tile<T, C, C>) = (k_out.load((row, 0)), p.load((row, 0)));

        let keep: Tile<f32, 1, D> = keep.load((chunk + t / C, 0));
        let keep: Tile<f32, D> = keep.reshape();

        // What does not need r is under way, or done, when r is there.
        let before = s.cast::<T>();
        let known = dot(before, k_in.t(), zeros());
        let asked = dot(before, q_in.t(), zeros());
        let r = (v.t().cast::<f32>() - known).cast::<T>();
        let out = dot(r, p.t(), asked);
        s = dot(r, k_out, s * keep.row());
        // SAFETY: a program writes the columns of its own sequence, head and block; rows past the sequence's end lie
        // outside the narrowed view.
        unsafe { o.store((t, column), out.cast::<T>().t()) };
        if KEEP {
            let kept = chunks.get((chunk + t / C, 2));
            if kept >= 0 {
                let mut state = state.select(0, kept).select(0, head);
                // SAFETY: as above; a slot belongs to one sequence or one chunk.
                unsafe { state.store((0, column), s.t()) };
            }
        }
    }
    // SAFETY: as above.
    unsafe { own_state.store((0, column), s.t()) };
}
