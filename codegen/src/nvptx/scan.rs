//! Scans.
//!
//! Every bit of the index along the axis is counted by one hardware bit: of the register, the lane or the warp. A step
//! joins neighbouring runs of indices along one such bit, from the lowest up (Sklansky's form): the elements of the run
//! that comes second take in the total of the first. That total is the scan of the first run's last element, so that
//! nothing but the scan is kept, and a lane reads it by one shuffle from where it is known to be. If the lowest bits are
//! registers', these are one step, one element after the other.
//!
//! Between warps a look costs two barriers. Neighbouring bits of the warp are therefore one step, for which every thread
//! reads the totals of all runs that are joined; if more steps follow, it keeps the total of what they make together.
//!
//! Reversed, the run with the bit set comes first, and its last element is that of the lowest index.

use super::lower::{Lower, Result};
use super::reduce::Row;
use super::text::{V, int};
use crate::gpu::layout::{Level, LinearLayout};
use crate::gpu::suitable::axis_bits;
use crate::ir::{Combine, DType, Op};
use std::collections::BTreeMap;

/// A scan under way: every run of indices that differ only in the joined bits is scanned.
struct Scan {
    dtypes: Vec<DType>,
    reverse: bool,
    /// By register, without redundant ones.
    rows: BTreeMap<u32, Row>,
    /// The bits that are joined, of registers and of lanes.
    registers: u32,
    lanes: u32,
    /// After a step between warps: the totals of this thread's runs, by register without the joined bits.
    totals: Option<BTreeMap<u32, Row>>,
}

impl Scan {
    /// The place of a run's first element (in the order of the scan), or of its last, in bits `mask`.
    fn end(&self, mask: u32, last: bool) -> u32 {
        if last != self.reverse { mask } else { 0 }
    }

    /// Registers without the joined bits and `more`.
    fn keys(&self, more: u32) -> Vec<u32> {
        self.rows.keys().copied().filter(|r| r & (self.registers | more) == 0).collect()
    }
}

impl Lower<'_> {
    pub(super) fn scan(
        &mut self,
        op: &Op,
        layout: &LinearLayout,
        axis: usize,
        combine: Combine,
        reverse: bool,
        rows: Vec<Row>,
    ) -> Result<()> {
        let steps = axis_bits(layout, axis).expect("the layout was chosen for this");
        let copies = layout.redundant().register;
        let rows = rows.into_iter().enumerate().map(|(r, x)| (r as u32, x)).filter(|(r, _)| r & copies == 0).collect();
        let mut s = Scan { dtypes: self.dtypes(op), reverse, rows, registers: 0, lanes: 0, totals: None };
        let mut i = 0;
        // What a thread has of a run, one element after the other: fewer operations than by halves.
        while i < steps.len() && steps[i].0 == Level::Register {
            s.registers |= 1 << steps[i].1;
            i += 1;
        }
        let mut places: Vec<u32> = (0..1u32 << i).map(|n| (0..i).map(|j| (n >> j & 1) << steps[j].1).sum()).collect();
        if reverse {
            places.reverse();
        }
        for key in s.keys(0) {
            for pair in places.windows(2) {
                let sum = self.join(op, combine, &s.rows[&(key | pair[0])], &s.rows[&(key | pair[1])]);
                s.rows.insert(key | pair[1], sum);
            }
        }
        while i < steps.len() {
            let (level, bit) = steps[i];
            i += 1;
            match level {
                Level::Register => {
                    let register = 1 << bit;
                    let totals = match s.totals.take() {
                        None => self.last_of_first(&s, register, 0),
                        Some(totals) => {
                            let part = |key: u32, second| totals[&(key | s.end(register, second))].clone();
                            let parts =
                                s.keys(register).into_iter().map(|key| (key, vec![part(key, false), part(key, true)]));
                            let parts = parts.collect();
                            self.totals(op, combine, &mut s, parts, &[], i < steps.len())
                        }
                    };
                    self.take_in(op, combine, &mut s, &totals, register, 0);
                    s.registers |= register;
                }
                Level::Lane => {
                    let lane = 1 << bit;
                    let totals = match s.totals.take() {
                        None => self.last_of_first(&s, 0, lane),
                        Some(totals) => {
                            let [first, second] =
                                [false, true].map(|second| self.thread_with(lane, s.end(lane, second)));
                            let mut parts = BTreeMap::new();
                            for (key, row) in totals {
                                let both = [&first, &second].map(|lane| self.shuffle_row(&s.dtypes, &row, lane));
                                parts.insert(key, both.to_vec());
                            }
                            self.totals(op, combine, &mut s, parts, &[], i < steps.len())
                        }
                    };
                    self.take_in(op, combine, &mut s, &totals, 0, lane);
                    s.lanes |= lane;
                }
                Level::Warp | Level::Block => {
                    let mut bits = vec![32u32 << bit];
                    while i < steps.len() && steps[i].0 == Level::Warp {
                        bits.push(32 << steps[i].1);
                        i += 1;
                    }
                    let mask: u32 = bits.iter().sum();
                    // The runs that are joined, in the order of the scan.
                    let place = |c: u32| bits.iter().enumerate().filter(|(k, _)| c >> k & 1 == 1).map(|(_, b)| b).sum();
                    let mut places: Vec<u32> = (0..1 << bits.len()).map(place).collect();
                    if reverse {
                        places.reverse();
                    }
                    let keys = s.keys(0);
                    let (lanes, rows): (u32, Vec<Row>) = match s.totals.take() {
                        None => {
                            let last = s.end(s.registers, true);
                            (s.lanes, keys.iter().map(|key| s.rows[&(key | last)].clone()).collect())
                        }
                        Some(totals) => (0, totals.into_values().collect()),
                    };
                    let from: Vec<V> =
                        places.iter().map(|p| self.thread_with(lanes | mask, s.end(lanes, true) | p)).collect();
                    // Without more steps, nobody needs the total of the last run.
                    let more = i < steps.len();
                    let read = from.len() - usize::from(!more);
                    let mut parts: BTreeMap<u32, Vec<Row>> = BTreeMap::new();
                    for rows in self.from_threads(&s.dtypes, &rows, &from[..read]) {
                        for (key, row) in keys.iter().zip(rows) {
                            parts.entry(*key).or_default().push(row);
                        }
                    }
                    let tid = self.tid();
                    let own = self.w.bin("and", "i32", &tid, &int(mask));
                    let mut is = vec![];
                    for p in &places[2..] {
                        is.push(self.w.icmp("eq", "i32", &own, &int(*p)));
                    }
                    let totals = self.totals(op, combine, &mut s, parts, &is, more);
                    self.take_in(op, combine, &mut s, &totals, 0, mask);
                }
            }
        }
        let by_element: BTreeMap<u32, Row> = s.rows.into_iter().map(|(r, row)| (layout.flat(r, 0, 0), row)).collect();
        for (n, &v) in op.results.iter().enumerate() {
            if self.demanded(v) {
                let row = |r| &by_element[&layout.flat(r, 0, 0)];
                let regs = (0..layout.registers() as u32).map(|r| row(r)[n].clone()).collect();
                self.define(v, regs)?;
            }
        }
        Ok(())
    }

    /// The number of the thread that differs from this one in having `value` in the bits `mask`.
    fn thread_with(&mut self, mask: u32, value: u32) -> V {
        let mut thread = self.tid();
        if mask != value {
            thread = self.w.bin("and", "i32", &thread, &int(!(mask & !value) as i32));
        }
        self.w.bin("or", "i32", &thread, &int(value))
    }

    /// The row of another lane. `lane`: its number, or its thread's.
    fn shuffle_row(&mut self, dtypes: &[DType], row: &Row, lane: &V) -> Row {
        let element = |(x, &d): (&V, &DType)| self.shuffle(d, std::slice::from_ref(x), "idx", lane)[0].clone();
        row.iter().zip(dtypes).map(element).collect()
    }

    /// For the step along a bit of the register or of the lane: the scans of the first runs' last elements.
    fn last_of_first(&mut self, s: &Scan, register: u32, lane: u32) -> BTreeMap<u32, Row> {
        let last = s.end(s.registers, true) | s.end(register, false);
        let mut totals: BTreeMap<u32, Row> =
            s.keys(register).into_iter().map(|key| (key, s.rows[&(key | last)].clone())).collect();
        let moved = s.lanes | lane;
        if moved != 0 {
            let from = self.thread_with(moved, s.end(s.lanes, true) | s.end(lane, false));
            for row in totals.values_mut() {
                *row = self.shuffle_row(&s.dtypes, row, &from);
            }
        }
        totals
    }

    /// What comes before this thread's run, given the totals of the runs that a step joins, in order: of the first run
    /// or, where the condition `is[i]` holds, of the first i + 2. If there are more steps, the total of all is kept.
    fn totals(
        &mut self,
        op: &Op,
        combine: Combine,
        s: &mut Scan,
        parts: BTreeMap<u32, Vec<Row>>,
        is: &[V],
        more: bool,
    ) -> BTreeMap<u32, Row> {
        let mut before = BTreeMap::new();
        let mut all = BTreeMap::new();
        for (key, parts) in parts {
            let mut sum = parts[0].clone();
            let mut own = sum.clone();
            for (i, part) in parts[1..].iter().enumerate() {
                if i < is.len() || more {
                    sum = self.join(op, combine, &sum, part);
                }
                if let Some(this) = is.get(i) {
                    own = self.select_rows(&s.dtypes, this, &sum, &own);
                }
            }
            before.insert(key, own);
            all.insert(key, sum);
        }
        s.totals = more.then_some(all);
        before
    }

    /// The elements that come second in the step along these bits of the register or of the thread take in the total
    /// of what comes first.
    fn take_in(
        &mut self,
        op: &Op,
        combine: Combine,
        s: &mut Scan,
        totals: &BTreeMap<u32, Row>,
        register: u32,
        thread: u32,
    ) {
        let second = (thread != 0).then(|| {
            let tid = self.tid();
            let own = self.w.bin("and", "i32", &tid, &int(thread));
            self.w.icmp("ne", "i32", &own, &int(s.end(thread, false)))
        });
        let first = s.end(register, false);
        let joined = s.registers | register;
        for (r, row) in &mut s.rows {
            if register != 0 && r & register == first {
                continue;
            }
            let sum = self.join(op, combine, &totals[&(r & !joined)], row);
            *row = match &second {
                Some(second) => self.select_rows(&s.dtypes, second, &sum, row),
                None => sum,
            };
        }
    }
}
