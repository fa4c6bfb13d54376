//! Reductions, and what scans share with them.
//!
//! Every bit of the index along the axis is counted by one hardware bit: of the register, the lane or the warp. A step
//! joins neighbouring runs of 2^k indices along one such bit. Named combinations commute, so their steps are taken in
//! the cheapest order (registers, lanes, warps); a combination given by a region takes them from the lowest index bit
//! up, so that it always joins a run with the one that follows.

use super::lower::{Lower, Result};
use super::math;
use super::memory::{Words, pack, unpack};
use super::text::{V, int, llvm_type};
use crate::gpu::layout::{Level, LinearLayout};
use crate::gpu::suitable::axis_bits;
use crate::ir::{Combine, DType, Op, OpId, OpKind};
use std::collections::BTreeMap;
use std::ops::Range;

/// The values of all operands at one place.
pub(super) type Row = Vec<V>;

/// What the last exchange between threads left in scratch memory.
pub(super) struct Exchange {
    values: Vec<V>,
    /// Bytes of an element: the text of a constant does not tell.
    size: usize,
    base: V,
    bytes: Range<usize>,
    block: String,
    scratches: usize,
}

impl Lower<'_> {
    pub(super) fn along_axis(&mut self, id: OpId) -> Result<()> {
        let op = self.k.op(id);
        let layout = self.plan.work[&id].clone();
        let operands: Vec<Vec<V>> = op.operands.iter().map(|&v| self.get(v, &layout)).collect();
        let rows: Vec<Row> = (0..layout.registers()).map(|r| operands.iter().map(|o| o[r].clone()).collect()).collect();
        match op.kind {
            OpKind::Reduce { axis, combine } => self.reduce(op, &layout, axis as usize, combine, rows),
            OpKind::Scan { axis, combine, reverse } => self.scan(op, &layout, axis as usize, combine, reverse, rows),
            _ => unreachable!("only called for reductions and scans"),
        }
    }

    pub(super) fn dtypes(&self, op: &Op) -> Vec<DType> {
        op.operands.iter().map(|&v| self.k.ty(v).dtype()).collect()
    }

    pub(super) fn join(&mut self, op: &Op, combine: Combine, left: &Row, right: &Row) -> Row {
        if combine == Combine::Region {
            let args: Vec<V> = left.iter().chain(right).cloned().collect();
            return self.inline_region(op.regions[0], &args);
        }
        let dtype = self.k.ty(op.operands[0]).dtype();
        vec![math::combine(&mut self.w, combine, dtype, &left[0], &right[0])]
    }

    pub(super) fn select_rows(&mut self, dtypes: &[DType], condition: &V, yes: &Row, no: &Row) -> Row {
        let pick = |(i, d): (usize, &DType)| self.w.select(condition, llvm_type(*d), &yes[i], &no[i]);
        dtypes.iter().enumerate().map(pick).collect()
    }

    fn butterfly(&mut self, dtypes: &[DType], row: &Row, bit: usize) -> Row {
        let distance = int(1 << bit);
        let mut out = vec![];
        for (x, &d) in row.iter().zip(dtypes) {
            out.push(self.shuffle(d, std::slice::from_ref(x), "bfly", &distance)[0].clone());
        }
        out
    }

    /// Whether bit `bit` of the thread's index (lanes, then warps) is set.
    fn thread_bit(&mut self, bit: usize) -> V {
        let mut bases = vec![0; 5 + self.warps().trailing_zeros() as usize];
        bases[bit] = 1;
        let x = self.thread_part(bases);
        self.w.icmp("ne", "i32", &x, &int(0))
    }

    /// The rows of all threads that differ in some of these warp bits: `[combination][row]`, the combination's bit i
    /// being the value of warp bit `bits[i]`.
    fn from_warps(&mut self, dtypes: &[DType], rows: &[Row], bits: &[usize]) -> Vec<Vec<Row>> {
        let tid = self.tid();
        let mask: u32 = bits.iter().map(|b| 32 << b).sum();
        let rest = self.w.bin("and", "i32", &tid, &int(!mask as i32));
        let mut threads = vec![];
        for c in 0..1 << bits.len() {
            let warp: u32 = bits.iter().enumerate().filter(|(k, _)| c >> k & 1 == 1).map(|(_, b)| 32 << b).sum();
            threads.push(self.w.bin("or", "i32", &rest, &int(warp)));
        }
        self.from_threads(dtypes, rows, &threads)
    }

    /// The rows of other threads, by way of shared memory: `[i][row]`, those of thread `from[i]`. What lies there since
    /// the last exchange is not stored again. There are no bank conflicts to report: a warp stores one run of bytes, and
    /// `from` is a thread's own number with some of its bits fixed, so that a warp loads parts of one run.
    pub(super) fn from_threads(&mut self, dtypes: &[DType], rows: &[Row], from: &[V]) -> Vec<Vec<Row>> {
        let threads = self.threads();
        let mut all = vec![vec![vec![]; rows.len()]; from.len()];
        let tid = self.tid();
        for (i, &dtype) in dtypes.iter().enumerate() {
            let size = dtype.size();
            // In parts, so that the scratch stays small.
            for (part, chunk) in rows.chunks(16).enumerate() {
                let values: Vec<V> = chunk.iter().map(|row| row[i].clone()).collect();
                // Up to 16 bytes at once.
                let vector = (1 << values.len().trailing_zeros()).min(16 / size);
                let words = Words::of(dtype, vector);
                let step = vector * size;
                let base = match self.exchanged(&values, size) {
                    Some(base) => base,
                    None => {
                        let base = self.scratch(values.len() * threads * size);
                        let own = self.w.bin("mul", "i32", &tid, &int(step));
                        let own = self.w.bin("add", "i32", &base, &own);
                        for (j, group) in values.chunks(vector).enumerate() {
                            let address = self.w.bin("add", "i32", &own, &int(j * threads * step));
                            let word = pack(&mut self.w, dtype, group);
                            self.store_shared(&address, words, &word, None);
                        }
                        self.scratch_written();
                        let (block, scratches) = (self.w.block.clone(), self.scratches);
                        let bytes = self.scratch_busy.last().cloned().expect("just written");
                        let (values, base) = (values.clone(), base.clone());
                        self.exchange = Some(Exchange { values, size, base: base.clone(), bytes, block, scratches });
                        base
                    }
                };
                for (thread, rows) in from.iter().zip(&mut all) {
                    let place = self.w.bin("mul", "i32", thread, &int(step));
                    let place = self.w.bin("add", "i32", &base, &place);
                    for j in 0..values.len() / vector {
                        let address = self.w.bin("add", "i32", &place, &int(j * threads * step));
                        let word = self.load_shared(&address, words);
                        for (k, x) in unpack(&mut self.w, dtype, &word, vector).into_iter().enumerate() {
                            rows[part * 16 + j * vector + k].push(x);
                        }
                    }
                }
            }
        }
        all
    }

    /// Where these values of all threads lie in scratch memory, if nothing has been written there since; it will be read.
    fn exchanged(&mut self, values: &[V], size: usize) -> Option<V> {
        let e = self.exchange.as_ref().filter(|e| e.values == values && e.size == size)?;
        if e.block != self.w.block || e.scratches != self.scratches {
            return None;
        }
        // A barrier may have freed it.
        if !self.scratch_busy.contains(&e.bytes) {
            self.scratch_busy.push(e.bytes.clone());
        }
        Some(e.base.clone())
    }

    fn reduce(&mut self, op: &Op, layout: &LinearLayout, axis: usize, combine: Combine, rows: Vec<Row>) -> Result<()> {
        let dtypes = self.dtypes(op);
        let mut steps = axis_bits(layout, axis).expect("the layout was chosen for this");
        if combine != Combine::Region {
            steps.sort_by_key(|s| s.0);
        }
        // Redundant registers hold what another one holds.
        let copies = layout.redundant().register;
        let mut live: BTreeMap<u32, Row> =
            rows.into_iter().enumerate().map(|(r, x)| (r as u32, x)).filter(|(r, _)| r & copies == 0).collect();
        let mut i = 0;
        while i < steps.len() {
            let (level, bit) = steps[i];
            i += 1;
            match level {
                Level::Register => {
                    let firsts: Vec<u32> = live.keys().copied().filter(|r| r >> bit & 1 == 0).collect();
                    for r in firsts {
                        let right = live.remove(&(r | 1 << bit)).expect("registers along an axis come in pairs");
                        let joined = self.join(op, combine, &live[&r], &right);
                        live.insert(r, joined);
                    }
                }
                Level::Lane => {
                    let upper = (combine == Combine::Region).then(|| self.thread_bit(bit));
                    for row in live.values_mut() {
                        let other = self.butterfly(&dtypes, row, bit);
                        *row = match &upper {
                            None => self.join(op, combine, row, &other),
                            Some(u) => {
                                let left = self.select_rows(&dtypes, u, &other, row);
                                let right = self.select_rows(&dtypes, u, row, &other);
                                self.join(op, combine, &left, &right)
                            }
                        };
                    }
                }
                Level::Warp | Level::Block => {
                    let mut bits = vec![bit];
                    while i < steps.len() && steps[i].0 == Level::Warp {
                        bits.push(steps[i].1);
                        i += 1;
                    }
                    let keys: Vec<u32> = live.keys().copied().collect();
                    let rows: Vec<Row> = live.values().cloned().collect();
                    let mut all = match bits[..] {
                        // Either order gives the same bits: who has a row need not read it.
                        [bit] if combine != Combine::Region => {
                            let tid = self.tid();
                            let other = self.w.bin("xor", "i32", &tid, &int(32 << bit));
                            let others = self.from_threads(&dtypes, &rows, &[other]);
                            [vec![rows], others].concat()
                        }
                        _ => self.from_warps(&dtypes, &rows, &bits),
                    };
                    // A tree, neighbours first: combination 2j + 1 follows 2j.
                    while all.len() > 1 {
                        let mut next = vec![];
                        for pair in all.chunks(2) {
                            let mut joined = vec![];
                            for (left, right) in pair[0].iter().zip(&pair[1]) {
                                joined.push(self.join(op, combine, left, right));
                            }
                            next.push(joined);
                        }
                        all = next;
                    }
                    for (key, row) in keys.into_iter().zip(all.remove(0)) {
                        live.insert(key, row);
                    }
                }
            }
        }
        // The result's registers by the element they hold.
        let result = layout.reduce(axis);
        let shape = layout.shape();
        let mut by_flat: BTreeMap<u32, Row> = BTreeMap::new();
        for (r, row) in live {
            let mut c = crate::gpu::layout::coords(shape, layout.flat(r, 0, 0))[..shape.rank()].to_vec();
            c.remove(axis);
            by_flat.insert(crate::gpu::layout::flat(result.shape(), &c), row);
        }
        for (n, &v) in op.results.iter().enumerate() {
            if self.demanded(v) {
                let regs = (0..result.registers() as u32).map(|r| by_flat[&result.flat(r, 0, 0)][n].clone()).collect();
                self.define(v, regs)?;
            }
        }
        Ok(())
    }
}
