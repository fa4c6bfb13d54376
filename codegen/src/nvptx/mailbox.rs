//! Small tiles that the programs of a cluster exchange (`cluster_reduce`) without its barrier.
//!
//! A barrier of the cluster comes with a fence that waits until all of a thread's memory traffic is over, which takes
//! longer than all the rest of an exchange. Here each program writes its tile into the shared memory of all, itself
//! included (`st.async`), at the place of its rank, and waits at an mbarrier of its own until all tiles have come.
//!
//! That says nothing of global memory, so a kernel may do it only if nobody can tell the difference ([`suits`]):
//! - No program has written anything before. So nothing that was written before an exchange is read after it.
//! - What is written afterwards may have been read before, by others. A thread first stores a word that depends on all
//!   that it has loaded through such a parameter, for nobody to read: it cannot do so before the values are there. Then
//!   the threads of the program wait for each other, and only then it tells others. A store that comes later cannot
//!   change what has been read.
//!
//! Invariants:
//! - There are two buffers, used in turns, each with an mbarrier, which has completed a phase for each exchange in it. Who
//!   sends the tile after the next has the next one of everybody, who sent that when all of his threads had read the last
//!   one that was in this buffer.
//! - Nobody sends before everybody's mbarriers are made: all arrive at the cluster's barrier when theirs are, and wait
//!   there before they first send. Nobody ends before he has all that is sent to him.

use super::lower::{Lower, Result};
use super::memory::Words;
use super::text::{V, int};
use crate::gpu::assign::Assignment;
use crate::gpu::layout::LinearLayout;
use crate::ir::{Access, Combine, DType, Kernel, Meeting, OpId, OpKind};
use crate::passes::edit::walk;

/// Bytes of the largest tile that is exchanged so. Each program has room for those of all.
const MOST: usize = 1024;

/// Buffers, which are used in turns.
const TURNS: usize = 2;

/// A program's memory for what it is sent.
pub(super) struct Mailbox {
    /// The mbarriers, in bytes from the start of shared memory.
    barriers: usize,
    /// A word of each thread's, for nobody to read.
    unread: usize,
    /// The buffers: of each turn a tile of each program.
    tiles: usize,
    /// Of a tile, at most.
    bytes: usize,
    /// How many exchanges have been lowered.
    done: usize,
    /// What was loaded from where the kernel writes, since the last exchange: words of so many bits.
    loaded: Vec<(usize, V)>,
}

/// Whether all exchanges of a kernel can be such.
fn suits(k: &Kernel, plan: &Assignment) -> bool {
    let exchanges = |id: &OpId| matches!(k.op(*id).kind, OpKind::ClusterReduce(_));
    let body = &k.region(k.body).ops;
    let Some(last) = body.iter().rposition(exchanges) else { return false };
    let nested = |id: OpId| !body.contains(&id);
    let written = |id: OpId| {
        let view = *k.op(id).operands.first().expect("accesses have a view");
        crate::gpu::facts::view_facts(k, view).is_none_or(|f| k.params[f.param].access == Access::Write)
    };
    let mut suits = plan.ahead.bulk.is_empty();
    let mut before = |id: OpId, kind: &OpKind| {
        suits &= match kind {
            OpKind::ClusterReduce(_) => {
                let ty = k.ty(k.op(id).results[0]);
                let size = ty.dtype().size();
                !nested(id) && matches!(size, 4 | 8) && size * ty.shape().numel() <= MOST
            }
            OpKind::Store | OpKind::StoreAdd | OpKind::Scatter { .. } | OpKind::Atomic { .. } => false,
            OpKind::Signal | OpKind::Wait => false,
            OpKind::Load { .. } => !(nested(id) && written(id)),
            OpKind::Gather { .. } => !written(id),
            _ => true,
        }
    };
    for &id in &body[..=last] {
        before(id, &k.op(id).kind);
        k.op(id).regions.iter().for_each(|&r| walk(k, r, &mut |id, op| before(id, &op.kind)));
    }
    // Behind the last one of the body there may be some within its regions.
    for &id in &body[last + 1..] {
        k.op(id).regions.iter().for_each(|&r| walk(k, r, &mut |id, _| suits &= !exchanges(&id)));
    }
    suits
}

impl Lower<'_> {
    /// Takes shared memory for what others send, if all exchanges can be such.
    pub(super) fn take_mailbox(&mut self) {
        if !matches!(self.k.meeting(), Some((Meeting::Cluster(_), _))) || !suits(self.k, self.plan) {
            return;
        }
        let (k, mut bytes) = (self.k, 16);
        walk(k, k.body, &mut |_, op| {
            if let OpKind::ClusterReduce(_) = op.kind {
                let ty = k.ty(op.results[0]);
                bytes = bytes.max(ty.dtype().size() * ty.shape().numel());
            }
        });
        let barriers = self.shared_top.next_multiple_of(128);
        let unread = barriers + 8 * TURNS;
        let tiles = (unread + 4 * self.threads()).next_multiple_of(128);
        self.shared_top = tiles + TURNS * self.programs() * bytes;
        self.shared_max = self.shared_max.max(self.shared_top);
        self.mailbox = Some(Mailbox { barriers, unread, tiles, bytes, done: 0, loaded: vec![] });
    }

    fn programs(&self) -> usize {
        self.k.options.cluster.into()
    }

    /// Makes the mbarriers, and tells the others.
    pub(super) fn open_mailbox(&mut self) {
        let Some(&Mailbox { barriers, .. }) = self.mailbox.as_ref() else { return };
        let tid = self.tid();
        let [make, made] = ["make", "made"].map(|s| self.w.label(s));
        let first = self.w.icmp("eq", "i32", &tid, &int(0));
        self.w.branch(&first, &make, &made);
        self.w.start(&make);
        self.make_barrier(barriers, TURNS, 1);
        self.w.asm_effect("void", "fence.mbarrier_init.release.cluster;", "", &[]);
        self.w.jump(&made);
        self.w.start(&made);
        self.arrive_at_cluster("relaxed");
    }

    /// The words of a load's accesses, of which exchanges must know if the kernel writes to the parameter, too.
    pub(super) fn remember_loaded(&mut self, load: OpId, words: &[V]) {
        if self.mailbox.is_none() {
            return;
        }
        let op = self.k.op(load);
        let param = self.view(op.operands[0]).param;
        let form = Words::of(self.k.ty(op.results[0]).dtype(), self.box_accesses(load).0[0].len());
        if let Some(mailbox) = self.mailbox.as_mut().filter(|_| self.k.params[param].access == Access::Write) {
            mailbox.loaded.extend(words.iter().map(|w| (form.bits, w.clone())));
        }
    }

    /// Waits until what this thread has loaded is there.
    fn wait_for_loaded(&mut self, unread: usize, loaded: Vec<(usize, V)>) {
        let w = &mut self.w;
        let mut all: Option<V> = None;
        for (bits, word) in loaded {
            let word = match bits {
                64 => {
                    let high = w.bin("lshr", "i64", &word, &int(32));
                    let both = w.bin("xor", "i64", &word, &high);
                    w.convert("trunc", "i64", &both, "i32")
                }
                32 => word,
                _ => w.convert("zext", "i16", &word, "i32"),
            };
            all = Some(match all {
                Some(others) => w.bin("xor", "i32", &others, &word),
                None => word,
            });
        }
        let Some(all) = all else { return };
        let tid = self.tid();
        let place = self.shared_at(unread, &tid, 4);
        self.w.asm_effect("void", "st.shared.b32 [$0], $1;", "r,r", &[("i32", &place), ("i32", &all)]);
    }

    /// Sends a tile to all and combines what all have sent.
    pub(super) fn exchange_by_mail(&mut self, id: OpId, combine: Combine) -> Result<()> {
        let op = self.k.op(id);
        let (x, result) = (op.operands[0], op.results[0]);
        let (registers, layout) = self.get_home(x);
        let to = self.plan.versions[result.index()][0].clone();
        let (dtype, programs) = (self.k.ty(x).dtype(), self.programs());
        let mailbox = self.mailbox.as_mut().expect("it was taken");
        let (loaded, done) = (std::mem::take(&mut mailbox.loaded), mailbox.done);
        mailbox.done += 1;
        let &Mailbox { barriers, unread, tiles, bytes, .. } = &*mailbox;
        let (turn, phase) = (done % TURNS, done / TURNS % 2);

        self.wait_for_loaded(unread, loaded);
        self.barrier();
        if done == 0 {
            self.wait_for_cluster();
        }
        let barrier = self.shared_at(barriers, &int(turn), 8);
        let buffer = self.shared_at(tiles, &int(turn), programs * bytes);
        let by_thread = layout == to && layout.copies() == 1;
        self.expect_tiles(&barrier, programs * dtype.size() * layout.shape().numel());
        let own = self.own_tile(&buffer, bytes);
        self.send_tile(&own, &barrier, dtype, &layout, by_thread, &registers);
        self.wait_for_tiles(&barrier, phase);

        let (compact, copies) = to.compact_registers();
        self.exchanged_access("loads from a cluster", dtype, &compact, by_thread);
        let mut sum = vec![None; compact.registers()];
        for rank in 0..programs {
            let tile = self.w.bin("add", "i32", &buffer, &int(rank * bytes));
            self.add_exchanged("shared", &tile, dtype, &compact, by_thread, combine, &mut sum);
        }
        let sum = copies.iter().map(|&r| sum[r as usize].clone().expect("a cluster has programs")).collect();
        self.define(result, sum)
    }

    /// The first thread says how many bytes will come.
    fn expect_tiles(&mut self, barrier: &V, bytes: usize) {
        let tid = self.tid();
        let first = self.w.icmp("eq", "i32", &tid, &int(0));
        let ptx = format!("@$1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], {bytes};");
        self.w.asm_effect("void", &ptx, "r,b", &[("i32", barrier), ("i1", &first)]);
    }

    fn wait_for_tiles(&mut self, barrier: &V, phase: usize) {
        let ptx = format!(
            "{{ .reg .pred done; again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [$0], {phase}; \
             @!done bra again; }}"
        );
        self.w.asm_effect("void", &ptx, "r", &[("i32", barrier)]);
    }

    /// This program's place among the tiles of a buffer.
    fn own_tile(&mut self, buffer: &V, bytes: usize) -> V {
        let program = self.w.call("i32", "llvm.nvvm.read.ptx.sreg.ctaid.x", &[]);
        let rank = self.w.op(format_args!("and i32 {program}, {}", self.programs() - 1));
        let own = self.w.bin("mul", "i32", &rank, &int(bytes));
        self.w.bin("add", "i32", buffer, &own)
    }

    /// Writes a tile, every element once, to the same place of each program.
    fn send_tile(
        &mut self,
        place: &V,
        barrier: &V,
        dtype: DType,
        layout: &LinearLayout,
        by_thread: bool,
        registers: &[V],
    ) {
        let owner = self.owner(layout);
        self.each_exchanged(place, dtype, layout, by_thread, registers, |lower, place, form, words| {
            for rank in 0..lower.programs() {
                let [place, barrier] = [place, barrier].map(|at| lower.at_program(at, &int(rank)));
                lower.send_words(&place, &barrier, form, words, owner.as_ref());
            }
        });
    }

    fn send_words(&mut self, place: &V, barrier: &V, form: Words, words: &[V], enabled: Option<&V>) {
        let names: Vec<String> = (0..form.count).map(|i| format!("${}", i + 2)).collect();
        let list = if form.count == 1 { names[0].clone() } else { format!("{{{}}}", names.join(",")) };
        let mut constraints = format!("r,r{}", format!(",{}", form.constraint()).repeat(form.count));
        let mut args = vec![("i32", place), ("i32", barrier)];
        args.extend(words.iter().map(|w| (form.asm_type(), w)));
        let mut predicate = String::new();
        if let Some(enabled) = enabled {
            predicate = format!("@${} ", args.len());
            constraints.push_str(",b");
            args.push(("i1", enabled));
        }
        let ptx = format!(
            "{predicate}st.async.shared::cluster.mbarrier::complete_tx::bytes{} [$0], {list}, [$1];",
            form.suffix()
        );
        self.w.asm_effect("void", &ptx, &constraints, &args);
    }
}
