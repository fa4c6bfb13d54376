//! Moves tiles between layouts: by renaming registers, by shuffles within warps, through shared memory.
//!
//! The plans come from `gpu::layout`; this module executes them. Scratch memory lies above what is taken for good, reused
//! by everyone: whoever writes to it takes bytes that nobody may still read, or waits until the last readers are done
//! ([`Lower::scratch`]).

use super::Target;
use super::lower::{Lower, Result};
use super::memory::{Words, pack, unpack};
use super::text::{V, int, llvm_type, struct_type};
use crate::gpu::layout::{
    Affine, Conversion, LinearLayout, ScratchAccess, ScratchPlan, ScratchSide, SharedLayout, ShufflePlan, VectorAccess,
};
use crate::ir::{Bits, DType, Shape};
use std::ops::Range;

/// All of shared memory: nobody knows who may still read what.
pub(super) const EVERYWHERE: Range<usize> = 0..usize::MAX;
/// What scratch memory may take to save barriers.
const SPARE_BYTES: usize = 8 << 10;

impl Lower<'_> {
    /// Shared memory at byte offset 0, as a 32-bit address.
    pub(super) fn shared_base(&mut self) -> V {
        self.shared_max = self.shared_max.max(1);
        "ptrtoint (ptr addrspace(3) @shared to i32)".into()
    }

    /// A region of scratch memory, free to be written by everyone; its byte address.
    pub(super) fn scratch(&mut self, bytes: usize) -> V {
        self.scratches += 1;
        let bottom = self.shared_top.next_multiple_of(128);
        let free =
            |start: usize, busy: &[Range<usize>]| busy.iter().all(|b| start + bytes <= b.start || b.end <= start);
        // Beside what others still read, if that takes no memory that matters: saves a barrier.
        let limit = Target { sm: self.sm }.shared_limit();
        let spare = if self.rings.is_empty() { SPARE_BYTES.min(limit.saturating_sub(bottom)) } else { 0 };
        let most = self.shared_max.max(bottom + spare).max(bottom + bytes);
        let ends = self.scratch_busy.iter().filter(|b| b.end < most).map(|b| b.end.next_multiple_of(128));
        let mut starts: Vec<usize> = std::iter::once(bottom).chain(ends.filter(|&e| e >= bottom)).collect();
        starts.sort_unstable();
        let found = starts.into_iter().find(|&s| s + bytes <= most && free(s, &self.scratch_busy));
        let start = found.unwrap_or_else(|| {
            self.barrier();
            bottom
        });
        self.shared_max = self.shared_max.max(start + bytes);
        self.scratch_busy.push(start..start + bytes);
        let base = self.shared_base();
        self.w.op(format_args!("add i32 {base}, {start}"))
    }

    /// Where the threads of a warp wait for each other.
    pub(super) fn warp_barrier(&mut self) {
        self.w.call("void", "llvm.nvvm.bar.warp.sync", &[("i32", &int(-1))]);
    }

    /// What was written to the last region of scratch memory becomes visible; it will be read.
    pub(super) fn scratch_written(&mut self) {
        let last = self.scratch_busy.last().cloned();
        self.barrier();
        self.scratch_busy.extend(last);
    }

    pub(super) fn store_shared(&mut self, address: &V, words: Words, values: &[V], predicate: Option<&V>) {
        let first = 1 + usize::from(predicate.is_some());
        let ins: Vec<String> = (0..words.count).map(|i| format!("${}", i + first)).collect();
        let list = if words.count == 1 { ins[0].clone() } else { format!("{{{}}}", ins.join(",")) };
        let suffix = if words.bits == 8 { ".u8".to_owned() } else { words.suffix() };
        let mut constraints = String::from(if predicate.is_some() { "r,b" } else { "r" });
        let mut args = vec![("i32", address)];
        args.extend(predicate.iter().map(|p| ("i1", *p)));
        for v in values {
            constraints.push(',');
            constraints.push_str(words.constraint());
            args.push((words.asm_type(), v));
        }
        let at = if predicate.is_some() { "@$1 " } else { "" };
        self.w.asm_effect("void", &format!("{at}st.shared{suffix} [$0], {list};"), &constraints, &args);
    }

    pub(super) fn load_shared(&mut self, address: &V, words: Words) -> Vec<V> {
        self.load_from("shared", address, words)
    }

    /// From the shared memory of this program, `shared`, or of one of its cluster, `shared::cluster`.
    pub(super) fn load_from(&mut self, space: &str, address: &V, words: Words) -> Vec<V> {
        let outs: Vec<String> = (0..words.count).map(|i| format!("${i}")).collect();
        let list = if words.count == 1 { outs[0].clone() } else { format!("{{{}}}", outs.join(",")) };
        let suffix = if words.bits == 8 { ".u8".to_owned() } else { words.suffix() };
        let ty = struct_type(words.asm_type(), words.count);
        let constraints = format!("{},r", vec![format!("={}", words.constraint()); words.count].join(","));
        let ptx = format!("ld.{space}{suffix} {list}, [${}];", words.count);
        let result = self.w.asm_effect(&ty, &ptx, &constraints, &[("i32", address)]);
        self.w.fields(words.asm_type(), words.count, &result)
    }

    /// The registers of a tile in another layout.
    pub(super) fn convert(
        &mut self,
        regs: &[V],
        dtype: DType,
        from: &LinearLayout,
        to: &LinearLayout,
    ) -> Result<Vec<V>> {
        // What rings leave, but not so little that there would be many passes.
        let left = Target { sm: self.sm }.shared_limit().saturating_sub(self.shared_top + 128);
        let left = left.clamp(8 << 10, 64 << 10);
        let plan = Conversion::plan_within(from, to, dtype.size(), left, self.sm >= 90)
            .map_err(|e| super::Error::Internal { kernel: self.k.name.clone(), message: e.to_string() })?;
        Ok(self.converted(regs, dtype, &plan, *from.shape()))
    }

    fn converted(&mut self, regs: &[V], dtype: DType, plan: &Conversion, shape: Shape) -> Vec<V> {
        match plan {
            Conversion::Identity => regs.to_vec(),
            Conversion::Registers(map) => map.iter().map(|&r| regs[r as usize].clone()).collect(),
            Conversion::Shuffle(plan) => self.shuffle_plan(regs, dtype, plan),
            Conversion::Transpose { pair, then } => {
                let regs = self.transposed_within_warps(regs, dtype, *pair);
                self.converted(&regs, dtype, then, shape)
            }
            Conversion::Shared(plan) => {
                let [stores, loads] = plan.wavefronts(dtype.size(), 0);
                self.shared_access("stores to other threads", dtype, shape, stores);
                self.shared_access("loads from other threads", dtype, shape, loads);
                self.through_scratch(regs, dtype, plan)
            }
        }
    }

    /// 8×8 matrices of 16-bit elements, neighbours in registers whose numbers differ in this bit.
    fn transposed_within_warps(&mut self, regs: &[V], dtype: DType, pair: usize) -> Vec<V> {
        let mut out = regs.to_vec();
        for low in (0..regs.len()).filter(|r| r >> pair & 1 == 0) {
            let high = low | 1 << pair;
            let word = pack(&mut self.w, dtype, &[regs[low].clone(), regs[high].clone()]);
            let word = self.w.asm("i32", "movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;", "=r,r", &[("i32", &word[0])]);
            let elements = unpack(&mut self.w, dtype, &[word], 2);
            (out[low], out[high]) = (elements[0].clone(), elements[1].clone());
        }
        out
    }

    fn through_scratch(&mut self, regs: &[V], dtype: DType, plan: &ScratchPlan) -> Vec<V> {
        let size = dtype.size() as u32;
        let mut written = vec![int(0); plan.registers];
        let mut base = int(0);
        for (i, pass) in plan.passes.iter().enumerate() {
            if i > 0 && plan.warp_local {
                self.warp_barrier();
            } else if let Some(own) = plan.warp_local.then(|| self.own_region(plan.bytes, 128)).flatten() {
                base = own;
            } else {
                base = self.scratch(plan.bytes);
            }
            let thread = self.thread_bytes(plan.store.thread.iter().map(|&b| b * size).collect());
            self.store_accesses(regs, dtype, &plan.store, &pass.stores, &base, &thread);
            if plan.warp_local {
                self.warp_barrier();
            } else {
                self.scratch_written();
            }
            self.load_accesses(&mut written, dtype, &plan.load, &pass.loads, &base);
        }
        // Redundant registers are not loaded again.
        plan.copies.iter().map(|&r| written[r as usize].clone()).collect()
    }

    /// Stores to the region at `base`; `thread`: the thread's part of their addresses.
    pub(super) fn store_accesses(
        &mut self,
        registers: &[V],
        dtype: DType,
        side: &ScratchSide,
        accesses: &[ScratchAccess],
        base: &V,
        thread: &(V, u32),
    ) {
        for access in accesses {
            let address = self.shared_place(base, thread, access.offset * dtype.size() as u32);
            let elements: Vec<V> = access.registers.iter().map(|&r| registers[r as usize].clone()).collect();
            let words = pack(&mut self.w, dtype, &elements);
            match side.matrices {
                Some(transposed) => self.store_matrices(&address, transposed, &words),
                None => self.store_shared(&address, Words::of(dtype, elements.len()), &words, None),
            }
        }
    }

    /// Loads from the region at `base`.
    pub(super) fn load_accesses(
        &mut self,
        written: &mut [V],
        dtype: DType,
        side: &ScratchSide,
        accesses: &[ScratchAccess],
        base: &V,
    ) {
        let size = dtype.size() as u32;
        let thread = self.thread_bytes(side.thread.iter().map(|&b| b * size).collect());
        for access in accesses {
            let address = self.shared_place(base, &thread, access.offset * size);
            let words = match side.matrices {
                Some(transposed) => self.load_matrices(&address, 0, transposed, access.registers.len() / 2),
                None => self.load_shared(&address, Words::of(dtype, access.registers.len())),
            };
            let elements = unpack(&mut self.w, dtype, &words, access.registers.len());
            for (&r, x) in access.registers.iter().zip(elements) {
                written[r as usize] = x;
            }
        }
    }

    /// One, two or four matrices of 8×8 16-bit elements, a word of each; `address`: of the row that the lane names.
    pub(super) fn store_matrices(&mut self, address: &V, transposed: bool, words: &[V]) {
        let n = words.len();
        let trans = if transposed { ".trans" } else { "" };
        let list: Vec<String> = (1..=n).map(|i| format!("${i}")).collect();
        let ptx = format!("stmatrix.sync.aligned.m8n8.x{n}{trans}.shared.b16 [$0], {{{}}};", list.join(","));
        let args: Vec<(&str, &V)> = [("i32", address)].into_iter().chain(words.iter().map(|w| ("i32", w))).collect();
        self.w.asm_effect("void", &ptx, &vec!["r"; n + 1].join(","), &args);
    }

    /// So many matrices (one, two or four) of 8×8 16-bit elements, a word of each; `address` plus `immediate`: of the row
    /// that the lane names.
    pub(super) fn load_matrices(&mut self, address: &V, immediate: u32, transposed: bool, n: usize) -> Vec<V> {
        let trans = if transposed { ".trans" } else { "" };
        let outs: Vec<String> = (0..n).map(|i| format!("${i}")).collect();
        let ptx =
            format!("ldmatrix.sync.aligned.m8n8.x{n}{trans}.shared.b16 {{{}}}, [${n}+{immediate}];", outs.join(","));
        let constraints = format!("{},r", vec!["=r"; n].join(","));
        let result = self.w.asm_effect(&struct_type("i32", n), &ptx, &constraints, &[("i32", address)]);
        self.w.fields("i32", n, &result)
    }

    /// A region that nobody else uses in the loop around, if warps have such: a warp waits for itself only.
    pub(super) fn own_region(&mut self, bytes: usize, alignment: usize) -> Option<V> {
        if !self.own_scratch {
            return None;
        }
        if !self.traced {
            self.barrier();
        }
        // Beside what others may still read in this iteration.
        let busy = self.scratch_busy.iter().map(|b| b.end).filter(|&end| end < usize::MAX).max();
        let start = self.shared_top.max(busy.unwrap_or(0)).next_multiple_of(alignment);
        if start + bytes > (Target { sm: self.sm }).shared_limit() {
            return None;
        }
        self.shared_top = start + bytes;
        self.shared_max = self.shared_max.max(self.shared_top);
        self.warp_barrier();
        let base = self.shared_base();
        Some(self.w.op(format_args!("add i32 {base}, {start}")))
    }

    /// What the thread contributes to an address in bytes, given its values on the basis vectors of lanes and warps, and
    /// the bits that this may have.
    pub(super) fn thread_bytes(&mut self, bases: Vec<u32>) -> (V, u32) {
        let taken = bases.iter().fold(0, |m, b| m | b);
        (self.thread_part(bases), taken)
    }

    /// An address in shared memory. Of the bits of `offset` those that the thread's part may have are joined to it; the
    /// rest is added last, as the constant that an access takes.
    pub(super) fn shared_place(&mut self, base: &V, (thread, taken): &(V, u32), offset: u32) -> V {
        let place = self.w.bin("xor", "i32", thread, &int(offset & taken));
        let place = self.w.bin("add", "i32", base, &place);
        self.w.bin("add", "i32", &place, &int(offset & !taken))
    }

    /// The thread-dependent part of an affine function.
    fn affine_part(&mut self, f: &Affine) -> V {
        self.thread_part(f.lane.iter().chain(&f.warp).copied().collect())
    }

    /// The values of an affine function, without its constant.
    fn affine_values(f: &Affine) -> Vec<u32> {
        let mut values = vec![0];
        for &b in f.lane.iter().chain(&f.warp).filter(|&&b| b != 0) {
            if !values.contains(&b) {
                let more: Vec<u32> = values.iter().map(|v| v ^ b).collect();
                values.extend(more);
            }
        }
        values
    }

    fn shuffle_plan(&mut self, regs: &[V], dtype: DType, plan: &ShufflePlan) -> Vec<V> {
        let ty = llvm_type(dtype);
        let zero = super::text::constant(dtype, Bits(0));
        let mut written = vec![zero; plan.registers];
        for round in &plan.rounds {
            let values = Self::affine_values(&round.send);
            let sender = if values.len() > 1 { self.affine_part(&round.send) } else { int(0) };
            let mut elements = vec![];
            for &(by, _) in &round.moves {
                let at = |value: u32| regs[(round.send.constant ^ value ^ by) as usize].clone();
                let mut x = at(0);
                for &value in &values[1..] {
                    let this = self.w.icmp("eq", "i32", &sender, &int(value));
                    x = self.w.select(&this, ty, &at(value), &x);
                }
                elements.push(x);
            }
            let from = self.affine_part(&round.from);
            let from = self.w.bin("xor", "i32", &from, &int(round.from.constant));
            let received = self.shuffle(dtype, &elements, "idx", &from);
            let places = Self::affine_values(&round.receive);
            let receiver = if places.len() > 1 { self.affine_part(&round.receive) } else { int(0) };
            for (x, &(_, by)) in received.iter().zip(&round.moves) {
                for &place in &places {
                    let r = (round.receive.constant ^ place ^ by) as usize;
                    written[r] = if places.len() == 1 {
                        x.clone()
                    } else {
                        let this = self.w.icmp("eq", "i32", &receiver, &int(place));
                        self.w.select(&this, ty, x, &written[r])
                    };
                }
            }
        }
        plan.copies.iter().map(|&r| written[r as usize].clone()).collect()
    }

    /// Elements (together at most 32 bits, or one of 64) of another lane. `mode`: `idx` or `bfly`.
    pub(super) fn shuffle(&mut self, dtype: DType, elements: &[V], mode: &str, lane: &V) -> Vec<V> {
        let form = Words::of(dtype, elements.len());
        let words = pack(&mut self.w, dtype, elements);
        let mut out = vec![];
        for word in words {
            let mut parts = vec![];
            if form.bits == 64 {
                parts.push(self.w.convert("trunc", "i64", &word, "i32"));
                let high = self.w.bin("lshr", "i64", &word, &int(32));
                parts.push(self.w.convert("trunc", "i64", &high, "i32"));
            } else {
                parts.push(self.w.convert("zext", form.asm_type(), &word, "i32"));
            }
            let name = format!("llvm.nvvm.shfl.sync.{mode}.i32");
            let moved: Vec<V> = parts
                .iter()
                .map(|p| {
                    let args = [("i32", &int(-1)), ("i32", p), ("i32", lane), ("i32", &int(31))];
                    self.w.call("i32", &name, &args)
                })
                .collect();
            out.push(if form.bits == 64 {
                let low = self.w.convert("zext", "i32", &moved[0], "i64");
                let high = self.w.convert("zext", "i32", &moved[1], "i64");
                let high = self.w.bin("shl", "i64", &high, &int(32));
                self.w.bin("or", "i64", &low, &high)
            } else {
                self.w.convert("trunc", "i32", &moved[0], form.asm_type())
            });
        }
        unpack(&mut self.w, dtype, &out, elements.len())
    }

    /// The registers of a tile of which only the owners know the elements.
    pub(super) fn from_owners(&mut self, regs: &[V], dtype: DType, layout: &LinearLayout) -> Result<Vec<V>> {
        let size = dtype.size() as u32;
        let words = Words::of(dtype, 1);
        let base = self.scratch(layout.shape().numel() * dtype.size());
        let owner = self.owner(layout);
        let thread = self.thread_bytes(layout.thread_bases().map(|b| b * size).collect());
        let copies = layout.redundant().register;
        let rows = SharedLayout::row_major(*layout.shape()).expect("extents of a layout are powers of two");
        self.shared_tile("results for those that hold copies", dtype, layout, &rows, &VectorAccess::single(layout));
        for r in (0..layout.registers() as u32).filter(|r| r & copies == 0) {
            let address = self.shared_place(&base, &thread, layout.flat(r, 0, 0) * size);
            let word = pack(&mut self.w, dtype, &regs[r as usize..=r as usize]);
            self.store_shared(&address, words, &word, owner.as_ref());
        }
        self.scratch_written();
        let mut out = vec![];
        for r in 0..layout.registers() as u32 {
            let address = self.shared_place(&base, &thread, layout.flat(r, 0, 0) * size);
            let word = self.load_shared(&address, words);
            out.push(unpack(&mut self.w, dtype, &word, 1)[0].clone());
        }
        Ok(out)
    }
}
