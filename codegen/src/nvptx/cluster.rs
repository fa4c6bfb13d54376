//! What the programs of a cluster exchange (`cluster_reduce`).
//!
//! A program has two buffers in shared memory, which exchanges use in turns: it writes its tile to one, waits at the
//! cluster's barrier, and reads the tiles of all in the order of their ranks, each thread what it needs. The barrier is
//! one of the program's own threads, too, and what was done to global memory before comes before what follows it.
//!
//! Invariants:
//! - A buffer is written again two exchanges later. Who comes to the barrier between has read what he needed.
//! - A program leaves after a last barrier: until then others may read its memory. Where the last exchange stands in no
//!   loop or branch it comes to that barrier as soon as it has read, and waits at its end: what it stores in between
//!   need not be in memory for that.

use super::lower::{Lower, Result};
use super::math;
use super::memory::{Words, pack, unpack};
use super::text::{V, int};
use crate::gpu::layout::{LinearLayout, SharedLayout};
use crate::ir::{Combine, DType, OpId, OpKind};
use crate::passes::edit::walk;

/// A program's two buffers, one after the other.
#[derive(Clone)]
pub(super) struct Buffers {
    /// In bytes from the start of shared memory.
    start: usize,
    /// Of one buffer: a power of two.
    bytes: usize,
    /// The stack slot of the place of the next one to use, from the start: 0 or `bytes`.
    next: V,
    /// The last exchange, if it stands in no loop or branch.
    last: Option<OpId>,
}

impl Lower<'_> {
    /// Takes shared memory for what is exchanged.
    pub(super) fn take_exchange_buffers(&mut self) {
        if self.k.meeting().is_none() {
            return;
        }
        let (k, mut bytes, mut last) = (self.k, 16, None);
        walk(k, k.body, &mut |id, op| {
            if let OpKind::ClusterReduce(_) = op.kind {
                let ty = k.ty(op.results[0]);
                bytes = bytes.max((ty.dtype().size() * ty.shape().numel()).next_power_of_two());
                last = Some(id);
            }
        });
        let last = last.filter(|id| k.region(k.body).ops.contains(id));
        let start = self.shared_top.next_multiple_of(128);
        self.shared_top = start + 2 * bytes;
        self.shared_max = self.shared_max.max(self.shared_top);
        let next = self.w.hoist("alloca i32, align 4");
        self.w.line(format_args!("store i32 0, ptr {next}, align 4"));
        self.exchanged = Some(Buffers { start, bytes, next, last });
    }

    /// Waits until nobody reads this program's memory any more.
    pub(super) fn end_exchanges(&mut self) {
        let Some(Buffers { last, .. }) = self.exchanged else { return };
        if last.is_none() {
            self.arrive_at_cluster("release");
        }
        self.wait_for_cluster();
    }

    pub(super) fn cluster_reduce(&mut self, id: OpId, combine: Combine) -> Result<()> {
        let op = self.k.op(id);
        let (x, result) = (op.operands[0], op.results[0]);
        let (registers, layout) = self.get_home(x);
        let Some(Buffers { start, bytes, next, last }) = self.exchanged.clone() else {
            let to = self.plan.versions[result.index()][0].clone();
            let registers = self.convert(&registers, self.k.ty(x).dtype(), &layout, &to)?;
            return self.define(result, registers);
        };
        let dtype = self.k.ty(x).dtype();
        let place = self.w.op(format_args!("load i32, ptr {next}, align 4"));
        let other = self.w.op(format_args!("xor i32 {place}, {bytes}"));
        self.w.line(format_args!("store i32 {other}, ptr {next}, align 4"));
        let buffer = self.shared_at(start, &place, 1);

        self.write_exchanged(&buffer, dtype, &layout, &registers);
        self.barrier_by(|lower| lower.cluster_barrier("release"));
        let layout = self.plan.versions[result.index()][0].clone();
        let mut sum: Option<Vec<V>> = None;
        for rank in 0..u32::from(self.k.options.cluster) {
            let args = [("i32", &buffer), ("i32", &int(rank))];
            let buffer = self.w.asm("i32", "mapa.shared::cluster.u32 $0, $1, $2;", "=r,r,r", &args);
            let tile = self.read_exchanged(&buffer, dtype, &layout);
            sum = Some(match sum {
                None => tile,
                Some(sum) => {
                    let pairs = sum.iter().zip(&tile);
                    pairs.map(|(x, y)| math::combine(&mut self.w, combine, dtype, x, y)).collect()
                }
            });
        }
        if last == Some(id) {
            self.arrive_at_cluster("release");
        }
        self.define(result, sum.expect("a cluster has programs"))
    }

    /// Writes a tile to a buffer, row-major, every element once.
    fn write_exchanged(&mut self, buffer: &V, dtype: DType, layout: &LinearLayout, registers: &[V]) {
        let (compact, copies) = layout.compact_registers();
        let owner = self.owner(layout);
        let register = |r: &u32| copies.iter().position(|copy| copy == r).expect("every register is one of its copies");
        let (thread, groups) = self.exchanged_places(dtype, &compact);
        for group in groups {
            let address = self.shared_place(buffer, &thread, compact.flat(group[0], 0, 0) * dtype.size() as u32);
            let elements: Vec<V> = group.iter().map(|r| registers[register(r)].clone()).collect();
            let words = pack(&mut self.w, dtype, &elements);
            self.store_shared(&address, Words::of(dtype, elements.len()), &words, owner.as_ref());
        }
    }

    /// Reads a tile from a buffer of a program of the cluster.
    fn read_exchanged(&mut self, buffer: &V, dtype: DType, layout: &LinearLayout) -> Vec<V> {
        let (compact, copies) = layout.compact_registers();
        let (thread, groups) = self.exchanged_places(dtype, &compact);
        let mut read = vec![int(0); compact.registers()];
        for group in groups {
            let address = self.shared_place(buffer, &thread, compact.flat(group[0], 0, 0) * dtype.size() as u32);
            let words = self.load_from("shared::cluster", &address, Words::of(dtype, group.len()));
            let elements = unpack(&mut self.w, dtype, &words, group.len());
            for (&r, x) in group.iter().zip(elements) {
                read[r as usize] = x;
            }
        }
        copies.iter().map(|&r| read[r as usize].clone()).collect()
    }

    /// What the thread contributes to addresses in a buffer, and the registers of each access.
    fn exchanged_places(&mut self, dtype: DType, layout: &LinearLayout) -> ((V, u32), Vec<Vec<u32>>) {
        let size = dtype.size() as u32;
        let thread = self.thread_bytes(layout.thread_bases().map(|b| b * size).collect());
        let rows = SharedLayout::row_major(*layout.shape()).expect("extents of a layout are powers of two");
        (thread, rows.vectorise(layout, dtype.size()).groups)
    }
}
