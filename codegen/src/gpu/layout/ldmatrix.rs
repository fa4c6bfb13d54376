//! Whether `ldmatrix` (or `stmatrix`) moves a tile between shared memory and registers.
//!
//! The instruction moves one, two or four matrices of 8 rows of 16 bytes. Lane 8j + i names the address of row i of
//! matrix j. Lane l receives, as 32-bit register j, the l%4-th word of row l/4 of matrix j; with `.trans` (16-bit
//! elements) the pair of rows 2(l%4), 2(l%4)+1 in column l/4. PTX manual, "ldmatrix".

use super::shared::{Wavefronts, wavefronts_of};
use super::{LANE_BITS, Level, LinearLayout, SharedLayout, Span, f2::apply};

/// How to move a tile with `ldmatrix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ldmatrix {
    pub transposed: bool,
    /// Matrices per instruction: 1, 2 or 4.
    pub matrices: usize,
    /// The offset (in elements) that a lane names is `thread` applied to its lane bits, then its warp's bits,
    /// exclusive-or the instruction's offset.
    pub thread: Vec<u32>,
    pub instructions: Vec<LdmatrixInstruction>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LdmatrixInstruction {
    /// In elements.
    pub offset: u32,
    /// The tile's registers that the instruction's 32-bit registers hold, in order; 4 / elem_bytes for each.
    pub registers: Vec<u32>,
}

impl Ldmatrix {
    /// The plan for a tile in registers and its place in shared memory; `None` if the instruction does not fit.
    ///
    /// # Panics
    /// If the tiles have different shapes.
    pub fn plan(layout: &LinearLayout, shared: &SharedLayout, elem_bytes: usize) -> Option<Ldmatrix> {
        let lanes = layout.bases(Level::Lane).len();
        if ![1, 2, 4].contains(&elem_bytes) || lanes != LANE_BITS || !layout.bases(Level::Block).is_empty() {
            return None;
        }
        let offsets = shared.offsets_of(layout);
        Ldmatrix::plain(&offsets, elem_bytes).or_else(|| Ldmatrix::transposed(&offsets, elem_bytes))
    }

    fn plain(offsets: &LinearLayout, elem_bytes: usize) -> Option<Ldmatrix> {
        let word = (4 / elem_bytes).ilog2();
        let (register, lane) = (offsets.bases(Level::Register), offsets.bases(Level::Lane));
        let span = Span::of(register);
        // Neighbours within a word, by register number; then the words of a row, by lane.
        let within: Vec<u32> = (0..word).map(|k| span.solve(1 << k)).collect::<Option<_>>()?;
        if lane[0] != 1 << word || lane[1] != 2 << word {
            return None;
        }
        let rows = [lane[2], lane[3], lane[4]];
        Ldmatrix::finish(offsets, false, &within, rows, 4 << word)
    }

    fn transposed(offsets: &LinearLayout, elem_bytes: usize) -> Option<Ldmatrix> {
        let (register, lane) = (offsets.bases(Level::Register), offsets.bases(Level::Lane));
        if elem_bytes != 2 || register.is_empty() || lane[2..] != [1, 2, 4] {
            return None;
        }
        Ldmatrix::finish(offsets, true, &[1], [register[0], lane[0], lane[1]], 8)
    }

    /// `within`: the registers that share a 32-bit register; `rows`: what a row's number contributes to its offset;
    /// `aligned`: elements of a row.
    fn finish(
        offsets: &LinearLayout,
        transposed: bool,
        within: &[u32],
        rows: [u32; 3],
        aligned: u32,
    ) -> Option<Ldmatrix> {
        let register = offsets.bases(Level::Register);
        // The remaining register bits number matrices and instructions. Within a word any representative will do:
        // take the first element's.
        let mut span = Span::of(within);
        let mut others: Vec<u32> = Vec::new();
        for (i, &b) in register.iter().enumerate() {
            if span.insert(1 << i, 0) {
                let low = if transposed { 0 } else { b & ((1 << within.len()) - 1) };
                others.push((1 << i) ^ apply(within, low));
            }
        }
        let warp = offsets.bases(Level::Warp);
        let offset_of = |r: u32| apply(register, r);
        let all = rows.iter().chain(warp).copied().chain(others.iter().map(|&r| offset_of(r)));
        if all.fold(0, |m, b| m | b) & (aligned - 1) != 0 {
            return None;
        }
        let per_instruction = others.len().min(2);
        let (matrix_bits, rest) = others.split_at(per_instruction);
        let mut thread = rows.to_vec();
        thread.extend(matrix_bits.iter().map(|&r| offset_of(r)));
        thread.resize(LANE_BITS, 0);
        thread.extend(warp);
        let instructions = (0..1u32 << rest.len())
            .map(|i| apply(rest, i))
            .map(|first| LdmatrixInstruction {
                offset: offset_of(first),
                registers: (0..1u32 << per_instruction)
                    .flat_map(|j| (0..1u32 << within.len()).map(move |k| (j, k)))
                    .map(|(j, k)| first ^ apply(matrix_bits, j) ^ apply(within, k))
                    .collect(),
            })
            .collect();
        Some(Ldmatrix { transposed, matrices: 1 << per_instruction, thread, instructions })
    }

    /// The wavefronts of all instructions of one warp: one per matrix where its rows meet different banks.
    pub fn wavefronts(&self, elem_bytes: usize) -> Wavefronts {
        let mut total = Wavefronts { actual: 0, ideal: 0 };
        for instruction in &self.instructions {
            for matrix in 0..self.matrices as u32 {
                let rows: Vec<u32> = (0..8)
                    .map(|row| (instruction.offset ^ apply(&self.thread, matrix * 8 + row)) * elem_bytes as u32)
                    .collect();
                let cost = wavefronts_of(&rows, 16);
                total.actual += cost.actual;
                total.ideal += cost.ideal;
            }
        }
        total
    }
}
