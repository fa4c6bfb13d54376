//! Matrix products by warpgroups: `wgmma.mma_async` on descriptors of shared memory.
//!
//! A product is issued and left *in flight*: its result has registers, but they are the tensor cores' until a wait.
//! [`Lower::settle`] puts the wait before the first operation that looks at the result (another product that adds to
//! it need not look), and lets those products fly on that were issued later. The wait takes the registers and gives
//! them back, so that no compiler moves a use above it. A loop's accumulator to which the body does nothing but add
//! products stays in flight around the loop.
//!
//! Two warpgroups that compute with their results between products (attention) do so *in turns*: while one issues
//! products the other computes, so that the tensor cores never wait for both (FlashAttention-3, arXiv 2407.08608). A
//! warpgroup waits at a named barrier of its own before its first product of a turn; the other arrives there when it
//! has issued its last.
//!
//! Descriptors follow the PTX manual ("Matrix Descriptor Format", "Strides"). For a tile in panels of S bytes: K-major,
//! groups of eight rows are 8·S bytes apart, and a step along K is 32 bytes within a panel; otherwise groups of eight
//! along K are 8·S bytes apart, the next S bytes of the other axis lie in the next panel, and a step along K is 16 rows.

use super::lower::{Lower, Result};
use super::memory::Words;
use super::text::{V, int, llvm_type, struct_type, tuple_type};
use crate::gpu::assign::SharedOperand;
use crate::gpu::layout::Swizzle;
use crate::gpu::mma::{DotPlan, WgmmaPlan};
use crate::gpu::panels::Panels;
use crate::ir::{Bits, DType, Def, OpId, OpKind, RegionId, ValueId};
use std::fmt::Write;

/// Bytes along K that one instruction takes of each row.
const STEP: usize = 32;

/// A product whose result is not there yet.
pub(super) struct Flying {
    pub value: ValueId,
    /// Its number in the order of commits.
    pub group: usize,
}

/// The first operand of a tile of 64 rows.
enum First<'a> {
    /// In shared memory, from this descriptor on.
    Shared(&'a Matrix, V),
    /// Its 32-bit words, four for each step along K.
    Registers(&'a [V]),
}

/// An operand in shared memory.
struct Matrix {
    panels: Panels,
    /// Of its first byte, 32 bits.
    address: V,
    k_major: bool,
}

impl Matrix {
    /// The descriptor's constant part.
    fn format(&self) -> u64 {
        let swizzle = self.panels.swizzle;
        let mode: u64 = match swizzle {
            Swizzle::None => 0,
            Swizzle::B128 => 1,
            Swizzle::B64 => 2,
            Swizzle::B32 => 3,
        };
        let rows = (8 * swizzle.bytes() as u64) >> 4;
        let leading = if self.k_major { 1 } else { (self.panels.stride() as u64) >> 4 };
        mode << 62 | rows << 32 | leading << 16
    }

    /// Bytes from the start to `other` along M or N and step `k` along K.
    fn offset(&self, other: usize, k: usize) -> usize {
        let bytes = self.panels.swizzle.bytes();
        let along_k = k * STEP / self.panels.size;
        let (row, column) = if self.k_major { (other, along_k) } else { (along_k, other) };
        let (panel, within) = (column / self.panels.columns(), column % self.panels.columns());
        panel * self.panels.stride() + row * bytes + within * self.panels.size
    }
}

impl Lower<'_> {
    /// Which warpgroup this thread is of: i32, the same for a whole warp.
    fn warpgroup(&mut self) -> V {
        if self.warps() == 4 {
            return int(0);
        }
        if self.warpgroup.is_none() {
            let tid = self.tid();
            self.w.declare("i32 @llvm.nvvm.shfl.sync.idx.i32(i32, i32, i32, i32)");
            let own = self.w.hoist(format_args!("lshr i32 {tid}, 7"));
            let uniform =
                self.w.hoist(format_args!("call i32 @llvm.nvvm.shfl.sync.idx.i32(i32 -1, i32 {own}, i32 0, i32 31)"));
            self.warpgroup = Some(uniform);
        }
        self.warpgroup.clone().expect("just set")
    }

    /// The descriptor of an operand from `other` along M or N; `per_group`: what each warpgroup adds to that.
    fn descriptor(&mut self, m: &Matrix, other: usize, group: &V, per_group: usize) -> V {
        let mut address = self.w.bin("add", "i32", &m.address, &int(m.offset(other, 0)));
        if per_group > 0 {
            let own = self.w.bin("mul", "i32", group, &int(m.offset(per_group, 0)));
            address = self.w.bin("add", "i32", &address, &own);
        }
        let place = self.w.bin("lshr", "i32", &address, &int(4));
        let place = self.w.op(format_args!("and i32 {place}, 16383"));
        let place = self.w.convert("zext", "i32", &place, "i64");
        self.w.op(format_args!("or i64 {place}, {}", m.format() as i64))
    }

    /// An operand of a product that lies in shared memory. `k_axis`: its axis along K.
    fn matrix(&mut self, id: OpId, i: usize, k_axis: usize) -> Option<Matrix> {
        let (panels, address, transposed) = match *self.plan.shared_operands.get(&(id, i))? {
            SharedOperand::Ring { load, transposed } => {
                let staged = &self.staged[&load];
                (staged.panels.clone(), staged.address.clone(), transposed)
            }
            SharedOperand::Placed { value, transposed } => {
                let start = self.places[&value];
                let base = self.shared_base();
                let address = self.w.bin("add", "i32", &base, &int(start));
                (self.plan.placed[&value].clone(), address, transposed)
            }
        };
        // Rows run along the last axis in memory.
        Some(Matrix { panels, address, k_major: (k_axis == 1) != transposed })
    }

    pub(super) fn dot_wgmma(&mut self, id: OpId, m: &WgmmaPlan) -> Result<()> {
        self.take_turn();
        let k = self.k;
        let op = k.op(id);
        let shape = k.ty(op.results[0]).shape();
        let [along_m, along_n] = m.groups;
        let group = self.warpgroup();
        let group_m = if along_m == 1 { int(0) } else { self.w.op(format_args!("and i32 {group}, {}", along_m - 1)) };
        let group_n = self.w.bin("lshr", "i32", &group, &int(along_m.trailing_zeros()));
        let b = self.matrix(id, 1, 0).expect("the second operand is in shared memory");
        let a = self.matrix(id, 0, 1);
        let words: Vec<V> = match &a {
            Some(_) => vec![],
            None => {
                let regs = self.get(op.operands[0], &m.a);
                regs.chunks(4 / m.dtype.size()).flat_map(|word| self.packed(m.dtype, word)).collect()
            }
        };
        let zero = k.constant(op.operands[2]) == Some(Bits(0));
        if self.uses(op.operands[2]) == 1 {
            // Nobody else looks at it: from here on it is this product that is in flight.
            self.flying.retain(|f| f.value != op.operands[2]);
        } else {
            self.settle(&op.operands[2..]);
        }
        let acc = if zero { vec![] } else { self.get(op.operands[2], &m.acc) };
        let mut acc = acc.chunks(m.n / 2);
        let steps = k.ty(op.operands[0]).shape().dim(1) * m.dtype.size() / STEP;
        let (tiles_m, tiles_n) = (shape.dim(0) / (64 * along_m), shape.dim(1) / (m.n * along_n));
        let mut out = vec![];
        for i in 0..tiles_m {
            for j in 0..tiles_n {
                let start = a.as_ref().map(|a| (a, self.descriptor(a, i * along_m * 64, &group_m, 64)));
                let first = match start {
                    Some((a, start)) => First::Shared(a, start),
                    None => First::Registers(&words[i * steps * 4..][..steps * 4]),
                };
                let second = (&b, self.descriptor(&b, j * along_n * m.n, &group_n, m.n));
                let last = (i, j) == (tiles_m - 1, tiles_n - 1);
                out.extend(self.tile(m, steps, first, second, acc.next(), last));
            }
        }
        // Where warpgroups do not take turns the assembler would put what follows between the instructions, as soon as its
        // operands are loaded. No load comes before a warp's barrier.
        if a.is_none() && self.turn.is_none() {
            self.warp_barrier();
        }
        let result = op.results[0];
        self.committed += 1;
        self.flying.push(Flying { value: result, group: self.committed });
        self.set_registers(result, out);
        // Another version, or a copy in shared memory, is made now or never.
        if self.plan.versions[result.index()].len() > 1 || self.plan.placed.contains_key(&result) {
            self.settle(&[result]);
            let (regs, _) = self.get_home(result);
            return self.define(result, regs);
        }
        Ok(())
    }

    /// A warpgroup's 64×N results: one instruction per step along K, in one piece of PTX, so that nothing comes between
    /// them. Without `acc` the first step does not add. The `last` tile of a product closes its group.
    fn tile(
        &mut self,
        m: &WgmmaPlan,
        steps: usize,
        first: First,
        (b, b_start): (&Matrix, V),
        acc: Option<&[V]>,
        last: bool,
    ) -> Vec<V> {
        let (size, per) = (m.dtype.size(), m.n / 2);
        let name = match m.dtype {
            DType::F16 => "f16",
            DType::F8E4M3 => "e4m3",
            DType::F8E5M2 => "e5m2",
            DType::I8 => "s8",
            DType::U8 => "u8",
            DType::F32 => "tf32",
            _ => "bf16",
        };
        // Floats may be negated on the way, integers may not.
        let (sum, ty, register, signs) =
            if m.dtype.is_float() { ("f32", "float", "f", ", 1, 1") } else { ("s32", "i32", "r", "") };
        let sums: Vec<String> = (0..per).map(|r| format!("${r}")).collect();
        let sums = sums.join(",");
        let out = if acc.is_some() { "=" } else { "=&" };
        let mut constraints = vec![format!("{out}{register}"); per];
        let mut args: Vec<(&str, V)> = vec![];
        let mut ptx = String::from("{ .reg .pred add, start; setp.eq.b32 add, 0, 0; setp.ne.b32 start, 0, 0; ");
        ptx.push_str("wgmma.fence.sync.aligned; ");
        for s in 0..steps {
            let mut operand = |kind: &str, ty: &'static str, v: V| {
                args.push((ty, v));
                constraints.push(kind.to_owned());
                format!("${}", per + args.len() - 1)
            };
            // Operands of other than 16 bits are K-major and have no say in it.
            let transposed = |m: &Matrix| if size == 2 { format!(", {}", u8::from(!m.k_major)) } else { String::new() };
            let (left, left_transposed) = match &first {
                First::Shared(a, start) => {
                    let d = self.w.bin("add", "i64", start, &int(a.offset(0, s) >> 4));
                    (operand("l", "i64", d), transposed(a))
                }
                First::Registers(words) => {
                    let names = words[4 * s..][..4].iter().map(|w| operand("r", "i32", w.clone()));
                    (format!("{{{}}}", names.collect::<Vec<_>>().join(",")), String::new())
                }
            };
            let d = self.w.bin("add", "i64", &b_start, &int(b.offset(0, s) >> 4));
            let right = operand("l", "i64", d);
            let add = if acc.is_none() && s == 0 { "start" } else { "add" };
            let _ = write!(
                ptx,
                "wgmma.mma_async.sync.aligned.m64n{}k{}.{sum}.{name}.{name} {{{sums}}}, {left}, {right}, \
                 {add}{signs}{left_transposed}{}; ",
                m.n,
                STEP / size,
                transposed(b)
            );
        }
        ptx.push_str(if last { "wgmma.commit_group.sync.aligned; }" } else { "}" });
        if let Some(acc) = acc {
            constraints.extend((0..per).map(|r| r.to_string()));
            args.extend(acc.iter().map(|v| (ty, v.clone())));
        }
        let refs: Vec<(&str, &V)> = args.iter().map(|(t, v)| (*t, v)).collect();
        let result = self.w.asm_effect(&struct_type(ty, per), &ptx, &constraints.join(","), &refs);
        self.w.fields(ty, per, &result)
    }

    /// Waits until these values are there, if they are in flight.
    pub(super) fn settle(&mut self, values: &[ValueId]) {
        let Some(group) = self.flying.iter().filter(|f| values.contains(&f.value)).map(|f| f.group).max() else {
            return;
        };
        // What was issued before is there, too.
        let done: Vec<ValueId> = self.flying.iter().filter(|f| f.group <= group).map(|f| f.value).collect();
        self.flying.retain(|f| f.group > group);
        self.wait_for(&done, self.committed - group);
    }

    pub(super) fn settle_all(&mut self) {
        let all: Vec<ValueId> = self.flying.iter().map(|f| f.value).collect();
        self.settle(&all);
    }

    /// Waits until at most `left` products are in flight; these values are there then.
    pub(super) fn wait_for(&mut self, done: &[ValueId], left: usize) {
        self.pass_turn();
        let regs: Vec<Vec<V>> = done.iter().map(|&v| self.first_registers(v)).collect();
        let ptx = format!("wgmma.wait_group.sync.aligned {left};");
        let of = |(&v, regs): (&ValueId, &Vec<V>)| vec![llvm_type(self.k.ty(v).dtype()); regs.len()];
        let types: Vec<&str> = done.iter().zip(&regs).flat_map(of).collect();
        if types.is_empty() {
            self.w.asm_effect("void", &ptx, "", &[]);
            return;
        }
        let ties = (0..types.len()).map(|r| r.to_string());
        let outs = types.iter().map(|&ty| if ty == "float" { "=f" } else { "=r" }.to_owned());
        let constraints: Vec<String> = outs.chain(ties).collect();
        let args: Vec<(&str, &V)> = types.iter().copied().zip(regs.iter().flatten()).collect();
        let result = self.w.asm_effect(&tuple_type(&types), &ptx, &constraints.join(","), &args);
        let mut after = self.w.parts(&types, &result).into_iter();
        for (&v, old) in done.iter().zip(&regs) {
            let new = after.by_ref().take(old.len()).collect();
            self.set_registers(v, new);
        }
    }

    // -- turns -------------------------------------------------------------------------------------------------------

    /// Whether the two warpgroups issue the products of this loop in turns: they share neither rows nor sums, and what
    /// they compute between products becomes an operand; but an iteration's first product does not wait for results of
    /// the one before, as everything then does.
    pub(super) fn takes_turns(&self, id: OpId) -> bool {
        let k = self.k;
        let body = &k.region(k.op(id).regions[0]).ops;
        let mut products = body.iter().filter(|&&o| self.is_wgmma(o)).peekable();
        let computed = |o: OpId| !self.plan.shared_operands.contains_key(&(o, 0));
        let apart = |o: OpId| matches!(&self.plan.dots[&o], DotPlan::Wgmma(m) if m.groups == [2, 1]);
        let region = k.op(id).regions[0];
        let at_once = |o: OpId| k.op(o).operands[..2].iter().all(|&v| !self.carried(region, v));
        self.shifts_registers()
            && products.peek().is_some_and(|&&o| at_once(o))
            && products.clone().all(|&o| apart(o))
            && products.any(|&o| computed(o))
    }

    /// Whether a value is computed from what runs around the loop with this body.
    fn carried(&self, body: RegionId, v: ValueId) -> bool {
        match self.k.def(v) {
            Def::Arg(region, i) => region == body && i > 0,
            Def::Result(op, _) if self.k.region(body).ops.contains(&op) => {
                self.k.op(op).operands.iter().any(|&o| self.carried(body, o))
            }
            _ => false,
        }
    }

    /// The named barrier of the first warpgroup's turns; the second one's follows.
    fn first_turn(&self) -> usize {
        self.named_barrier + 1
    }

    /// The barrier of this warpgroup (`other`: of the other one).
    fn turn_barrier(&mut self, other: bool) -> V {
        let own = self.warpgroup();
        if other {
            return self.w.op(format_args!("sub i32 {}, {own}", self.first_turn() + 1));
        }
        self.w.op(format_args!("add i32 {own}, {}", self.first_turn()))
    }

    /// Before the kernel's first loop: the first warpgroup's first turn is free.
    pub(super) fn start_turns(&mut self) {
        let own = self.warpgroup();
        let second = self.w.icmp("eq", "i32", &own, &int(1));
        let [yes, go] = ["second", "turns"].map(|s| self.w.label(s));
        self.w.branch(&second, &yes, &go);
        self.w.start(&yes);
        self.w.asm_effect("void", &format!("bar.arrive {}, 256;", self.first_turn()), "", &[]);
        self.w.jump(&go);
        self.w.start(&go);
    }

    /// Waits for this warpgroup's turn to issue products, if there are turns and it is not its already.
    fn take_turn(&mut self) {
        if self.turn == Some(false) {
            let barrier = self.turn_barrier(false);
            self.w.asm_effect("void", "bar.sync $0, 256;", "r", &[("i32", &barrier)]);
            self.turn = Some(true);
        }
    }

    /// It is the other warpgroup's turn.
    pub(super) fn pass_turn(&mut self) {
        if self.turn == Some(true) {
            let barrier = self.turn_barrier(true);
            self.w.asm_effect("void", "bar.arrive $0, 256;", "r", &[("i32", &barrier)]);
            self.turn = Some(false);
        }
    }

    /// Takes shared memory for the operands that are put there.
    pub(super) fn take_places(&mut self) {
        for (&v, panels) in &self.plan.placed {
            self.shared_top = self.shared_top.next_multiple_of(1024);
            self.places.insert(v, self.shared_top);
            self.shared_top += panels.bytes();
        }
        self.shared_max = self.shared_max.max(self.shared_top);
    }

    /// Puts a value that products read into its place in shared memory.
    pub(super) fn put(&mut self, v: ValueId) {
        let Some(panels) = self.plan.placed.get(&v) else { return };
        // Products may still read what was there; none of an iteration before (`carried_in_flight`).
        self.settle_all();
        self.barrier();
        let (regs, layout) = self.get_home(v);
        let (dtype, size, shared) = (self.k.ty(v).dtype(), panels.size, &panels.layout);
        let base = self.shared_base();
        let base = self.w.bin("add", "i32", &base, &int(self.places[&v]));
        let thread = self.thread_bytes(layout.thread_bases().map(|b| size as u32 * shared.offset(b)).collect());
        let skip = layout.redundant().register;
        let access = shared.vectorise(&layout, size);
        self.shared_tile("stores for products", dtype, &layout, shared, &access);
        for group in access.groups {
            if group[0] & skip != 0 {
                continue;
            }
            let offset = size as u32 * shared.offset(layout.flat(group[0], 0, 0));
            let place = self.shared_place(&base, &thread, offset);
            let elements: Vec<V> = group.iter().map(|&r| regs[r as usize].clone()).collect();
            let words = self.packed(dtype, &elements);
            self.store_shared(&place, Words::of(dtype, elements.len()), &words, None);
        }
        self.w.asm_effect("void", "fence.proxy.async.shared::cta;", "", &[]);
        self.barrier();
    }

    /// The carried values of a loop that stay in flight from one iteration to the next: those to which the body does
    /// nothing but add products of operands that the next iteration leaves alone. (The assembler serialises products
    /// if other instructions write to registers that are in flight around a loop.)
    pub(super) fn carried_in_flight(&self, id: OpId) -> Vec<ValueId> {
        let k = self.k;
        let body = k.op(id).regions[0];
        let last = *k.region(body).ops.last().expect("regions end with a yield");
        let alone = |v: ValueId| {
            self.uses(v) == 1 && self.plan.versions[v.index()].len() == 1 && !self.plan.placed.contains_key(&v)
        };
        let added_to = |&(&arg, &end): &(&ValueId, &ValueId)| {
            // From the end back to the beginning, product by product, each looked at by the next one only.
            let mut v = end;
            while let Some(product) = k.defining_op(v).filter(|&o| self.is_wgmma(o)) {
                let here = k.region(body).ops.contains(&product);
                if !alone(v) || !here || (0..2).any(|i| self.rewritten(product, i, body)) {
                    return false;
                }
                v = k.op(product).operands[2];
            }
            v == arg && v != end && alone(arg)
        };
        let carried = k.region(body).args[1..].iter().zip(&k.op(last).operands);
        carried.filter(added_to).map(|(&arg, _)| arg).collect()
    }

    /// Whether each iteration of a loop writes a product's operand to where the one before wrote it, to registers or to
    /// a place in shared memory: a ring has other buffers.
    fn rewritten(&self, product: OpId, i: usize, body: RegionId) -> bool {
        let inside = |v: ValueId| match self.k.def(v) {
            Def::Param(_) => false,
            Def::Arg(region, _) => region == body,
            Def::Result(op, _) => self.k.region(body).ops.contains(&op),
        };
        match self.plan.shared_operands.get(&(product, i)) {
            Some(SharedOperand::Ring { .. }) => false,
            Some(&SharedOperand::Placed { value, .. }) => inside(value),
            None => true,
        }
    }

    /// The values that an operation's regions look at.
    pub(super) fn looked_at(&self, id: OpId) -> Vec<ValueId> {
        let op = self.k.op(id);
        let mut out = op.operands.to_vec();
        for &region in &op.regions {
            for &inner in &self.k.region(region).ops {
                out.extend(self.looked_at(inner));
            }
        }
        out
    }

    /// How often a value is an operand.
    fn uses(&self, v: ValueId) -> usize {
        self.k.ops.iter().flat_map(|o| &o.operands).filter(|&&o| o == v).count()
    }

    pub(super) fn is_wgmma(&self, id: OpId) -> bool {
        matches!(self.k.op(id).kind, OpKind::Dot(_)) && matches!(self.plan.dots[&id], DotPlan::Wgmma(_))
    }
}
