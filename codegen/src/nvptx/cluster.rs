//! What the programs of a cluster exchange (`cluster_reduce`).
//!
//! A program has two buffers in shared memory, which exchanges use in turns (one, if there is a single exchange): it writes
//! its tile to one, waits at the cluster's barrier, and reads the tiles of all in the order of their ranks, each thread what
//! it needs. Of two programs each adds the other's tile to its own: the order makes no difference then. The barrier is
//! one of the program's own threads, too, and what was done to global memory before comes before what follows it. Where
//! copies have filled rings before, their memory is that of the buffers.
//!
//! Small tiles are sent instead, where nobody can tell the difference ([`mailbox`](super::mailbox)).
//!
//! A tile of which each thread has elements that nobody else has lies in a buffer thread by thread, else row by row.
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
use crate::ir::{Combine, DType, Meeting, OpId, OpKind};
use crate::passes::edit::walk;

/// A program's two buffers, one after the other.
#[derive(Clone)]
pub(super) struct Buffers {
    /// In bytes from the start of shared memory.
    start: usize,
    /// Of one buffer: a power of two.
    bytes: usize,
    /// Where they end, if they lie where rings were.
    in_ring: Option<usize>,
    /// The stack slot of the place of the next one to use, from the start: 0 or `bytes`.
    next: V,
    /// The last exchange, if it stands in no loop or branch.
    last: Option<OpId>,
}

impl Lower<'_> {
    /// Takes shared memory for what is exchanged.
    pub(super) fn take_exchange_buffers(&mut self) {
        self.take_mailbox();
        if !matches!(self.k.meeting(), Some((Meeting::Cluster(_), _))) || self.mailbox.is_some() {
            return;
        }
        let (k, mut bytes, mut all) = (self.k, 16, vec![]);
        walk(k, k.body, &mut |id, op| {
            if let OpKind::ClusterReduce(_) = op.kind {
                let ty = k.ty(op.results[0]);
                bytes = bytes.max((ty.dtype().size() * ty.shape().numel()).next_power_of_two());
                all.push(id);
            }
        });
        let body = &k.region(k.body).ops;
        let last = all.last().copied().filter(|id| body.contains(id));
        let taken = if all.len() == 1 && last.is_some() { bytes } else { 2 * bytes };
        // Exchanges come when the rings of loops are empty; in the body they come one after the other.
        let loops = self.plan.ahead.bulk.iter().filter(|(region, _)| **region != k.body);
        let ring = loops.flat_map(|(_, r)| &r.loads).map(|l| self.rings[&l.load].buffers).min();
        let ring = ring.filter(|start| start + taken <= self.shared_top && all.iter().all(|id| body.contains(id)));
        let start = ring.unwrap_or(self.shared_top.next_multiple_of(128));
        if ring.is_none() {
            self.shared_top = start + taken;
            self.shared_max = self.shared_max.max(self.shared_top);
        }
        let next = self.w.hoist("alloca i32, align 4");
        self.w.line(format_args!("store i32 0, ptr {next}, align 4"));
        self.exchanged = Some(Buffers { start, bytes, in_ring: ring.map(|_| start + taken), next, last });
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
        if self.mailbox.is_some() {
            return self.exchange_by_mail(id, combine);
        }
        let op = self.k.op(id);
        let (x, result) = (op.operands[0], op.results[0]);
        let (registers, layout) = self.get_home(x);
        let to = self.plan.versions[result.index()][0].clone();
        let dtype = self.k.ty(x).dtype();
        let Some(Buffers { start, bytes, in_ring, next, last }) = self.exchanged.clone() else {
            let registers = self.convert(&registers, dtype, &layout, &to)?;
            return self.define(result, registers);
        };
        let place = self.w.op(format_args!("load i32, ptr {next}, align 4"));
        let other = self.w.op(format_args!("xor i32 {place}, {bytes}"));
        self.w.line(format_args!("store i32 {other}, ptr {next}, align 4"));
        let buffer = self.shared_at(start, &place, 1);

        if let Some(end) = in_ring {
            // From here on it is nobody else's; what was there before may still be read.
            self.shared_top = self.shared_top.max(end);
            self.barrier();
        }
        let by_thread = layout == to && layout.copies() == 1;
        self.write_exchanged(&buffer, dtype, &layout, by_thread, &registers);
        self.barrier_by(|lower| lower.cluster_barrier("release"));
        let programs = u32::from(self.k.options.cluster);
        let (compact, copies) = to.compact_registers();
        let (mut sum, others) = if programs == 2 && by_thread {
            let program = self.w.call("i32", "llvm.nvvm.read.ptx.sreg.ctaid.x", &[]);
            let rank = self.w.bin("and", "i32", &program, &int(1));
            (registers.into_iter().map(Some).collect(), vec![self.w.bin("xor", "i32", &rank, &int(1))])
        } else {
            (vec![None; compact.registers()], (0..programs).map(int).collect())
        };
        self.exchanged_access("loads from a cluster", dtype, &compact, by_thread);
        for rank in others {
            let buffer = self.at_program(&buffer, &rank);
            self.add_exchanged("shared::cluster", &buffer, dtype, &compact, by_thread, combine, &mut sum);
        }
        let sum = copies.iter().map(|&r| sum[r as usize].clone().expect("a cluster has programs")).collect();
        if last == Some(id) {
            self.arrive_at_cluster("release");
        }
        self.define(result, sum)
    }

    /// The same place in the shared memory of the cluster's program of this rank.
    pub(super) fn at_program(&mut self, place: &V, rank: &V) -> V {
        let args = [("i32", place), ("i32", rank)];
        self.w.asm("i32", "mapa.shared::cluster.u32 $0, $1, $2;", "=r,r,r", &args)
    }

    /// Writes a tile to a buffer, every element once.
    fn write_exchanged(&mut self, buffer: &V, dtype: DType, layout: &LinearLayout, by_thread: bool, registers: &[V]) {
        let owner = self.owner(layout);
        self.each_exchanged(buffer, dtype, layout, by_thread, registers, |lower, address, form, words| {
            lower.store_shared(address, form, words, owner.as_ref());
        });
    }

    /// Does something with every part of a tile: where it lies in a buffer, its form and its words.
    pub(super) fn each_exchanged(
        &mut self,
        buffer: &V,
        dtype: DType,
        layout: &LinearLayout,
        by_thread: bool,
        registers: &[V],
        mut put: impl FnMut(&mut Self, &V, Words, &[V]),
    ) {
        let (compact, copies) = layout.compact_registers();
        self.exchanged_access("stores for a cluster", dtype, &compact, by_thread);
        let register = |r: &u32| copies.iter().position(|copy| copy == r).expect("every register is one of its copies");
        for (address, group) in self.exchanged_places(buffer, dtype, &compact, by_thread) {
            let elements: Vec<V> = group.iter().map(|r| registers[register(r)].clone()).collect();
            let words = pack(&mut self.w, dtype, &elements);
            put(self, &address, Words::of(dtype, elements.len()), &words);
        }
    }

    /// Reads a tile from a buffer of a program of the cluster and combines it with the sum so far: one access after the
    /// other, so that there are not two tiles in registers.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn add_exchanged(
        &mut self,
        space: &str,
        buffer: &V,
        dtype: DType,
        compact: &LinearLayout,
        by_thread: bool,
        combine: Combine,
        sum: &mut [Option<V>],
    ) {
        for (address, group) in self.exchanged_places(buffer, dtype, compact, by_thread) {
            let words = self.load_from(space, &address, Words::of(dtype, group.len()));
            let elements = unpack(&mut self.w, dtype, &words, group.len());
            for (&r, x) in group.iter().zip(elements) {
                let sum = &mut sum[r as usize];
                *sum = Some(match sum.take() {
                    Some(before) => math::combine(&mut self.w, combine, dtype, &before, &x),
                    None => x,
                });
            }
        }
    }

    /// Reports a tile's accesses in a buffer. Thread by thread they have no bank conflicts.
    pub(super) fn exchanged_access(&mut self, what: &str, dtype: DType, layout: &LinearLayout, by_thread: bool) {
        if !by_thread {
            let rows = exchanged_rows(layout);
            self.shared_tile(what, dtype, layout, &rows, &rows.vectorise(layout, dtype.size()));
        }
    }

    /// The addresses of a thread's accesses in a buffer, and the registers of each.
    fn exchanged_places(
        &mut self,
        buffer: &V,
        dtype: DType,
        layout: &LinearLayout,
        by_thread: bool,
    ) -> Vec<(V, Vec<u32>)> {
        let size = dtype.size() as u32;
        if by_thread {
            // Each access of a warp is one run of bytes.
            let registers: Vec<u32> = (0..layout.registers() as u32).collect();
            let (together, threads) = ((16 / size).min(registers.len() as u32), self.threads() as u32);
            let tid = self.tid();
            let own = self.w.bin("mul", "i32", &tid, &int(together * size));
            let own = self.w.bin("add", "i32", buffer, &own);
            let groups = registers.chunks(together as usize).enumerate();
            return groups
                .map(|(i, group)| {
                    let place = self.w.bin("add", "i32", &own, &int(i as u32 * threads * together * size));
                    (place, group.to_vec())
                })
                .collect();
        }
        let thread = self.thread_bytes(layout.thread_bases().map(|b| b * size).collect());
        let rows = exchanged_rows(layout);
        let groups = rows.vectorise(layout, dtype.size()).groups.into_iter();
        groups.map(|group| (self.shared_place(buffer, &thread, layout.flat(group[0], 0, 0) * size), group)).collect()
    }
}

/// A buffer of a tile that lies row by row.
fn exchanged_rows(layout: &LinearLayout) -> SharedLayout {
    SharedLayout::row_major(*layout.shape()).expect("extents of a layout are powers of two")
}
