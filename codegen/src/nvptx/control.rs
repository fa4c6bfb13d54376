//! Loops and branches.
//!
//! Values that run around a loop are phis of registers, named in advance, 16-bit elements in words of two: what computes
//! and what reads them mostly does so, too. A `for` tests at its end. Rings and slots turn at the start of an iteration;
//! what a loop leaves in flight is waited for at its end.

use super::lower::{Lower, Result};
use super::memory::{pack, unpack};
use super::text::{V, int, llvm_type};
use crate::gpu::assembly::AssemblyPlan;
use crate::gpu::layout::LinearLayout;
use crate::ir::{DType, Op, OpId, OpKind, ValueId};

impl<'k> Lower<'k> {
    /// Whether the registers of a value run around a loop in words of two.
    fn in_words(&self, v: ValueId, registers: usize) -> bool {
        let dtype = self.k.ty(v).dtype();
        dtype != DType::Bool && dtype.size() == 2 && registers.is_multiple_of(2)
    }

    /// What runs around a loop of a value's registers.
    fn to_carry(&mut self, v: ValueId, registers: &[V]) -> Vec<V> {
        if !self.in_words(v, registers.len()) {
            return registers.to_vec();
        }
        let dtype = self.k.ty(v).dtype();
        registers.chunks(2).flat_map(|pair| pack(&mut self.w, dtype, pair)).collect()
    }

    /// The registers of a value, from what runs around a loop.
    fn from_carried(&mut self, v: ValueId, carried: &[V], registers: usize) -> Vec<V> {
        if !self.in_words(v, registers) {
            return carried.to_vec();
        }
        unpack(&mut self.w, self.k.ty(v).dtype(), carried, registers)
    }

    /// Phis of what runs around a loop of these values, which have so many registers each; their next values are named in
    /// advance.
    fn phis(
        &mut self,
        values: &[ValueId],
        layouts: &[LinearLayout],
        inits: &[Vec<V>],
        [from, latch]: [&str; 2],
    ) -> Vec<(Vec<V>, Vec<String>)> {
        let mut out = vec![];
        for ((&v, layout), init) in values.iter().zip(layouts).zip(inits) {
            let ty = self.carried_type(v, layout);
            let mut regs = vec![];
            let mut nexts = vec![];
            for x in init {
                let next = format!("%n{}", self.w.fresh());
                regs.push(self.w.op(format_args!("phi {ty} [ {x}, %{from} ], [ {next}, %{latch} ]")));
                nexts.push(next);
            }
            out.push((regs, nexts));
        }
        out
    }

    fn carried_type(&self, v: ValueId, layout: &LinearLayout) -> &'static str {
        if self.in_words(v, layout.registers()) { "i32" } else { llvm_type(self.k.ty(v).dtype()) }
    }

    fn alias_all(&mut self, yields: &[ValueId], layouts: &[LinearLayout], phis: &[(Vec<V>, Vec<String>)]) {
        for ((&v, layout), (_, nexts)) in yields.iter().zip(layouts).zip(phis) {
            let ty = self.carried_type(v, layout);
            let registers = self.get(v, layout);
            for (x, name) in self.to_carry(v, &registers).iter().zip(nexts) {
                self.w.alias(name, ty, x);
            }
        }
    }

    /// The values of an iteration, from their phis.
    fn define_carried(
        &mut self,
        values: &[ValueId],
        layouts: &[LinearLayout],
        phis: &[(Vec<V>, Vec<String>)],
    ) -> Result<()> {
        for ((&v, layout), (words, _)) in values.iter().zip(layouts).zip(phis) {
            let registers = self.from_carried(v, words, layout.registers());
            self.define(v, registers)?;
        }
        Ok(())
    }

    /// The first layouts of values, in order.
    fn layouts_of(&self, values: &[ValueId]) -> Vec<LinearLayout> {
        values.iter().map(|&v| self.plan.versions[v.index()][0].clone()).collect()
    }

    pub(super) fn lower_for(&mut self, id: OpId) -> Result<()> {
        let (k, plan) = (self.k, self.plan);
        let op = k.op(id);
        let region = op.regions[0];
        let (lo, hi, step) = (self.scalar(op.operands[0]), self.scalar(op.operands[1]), self.scalar(op.operands[2]));
        // What is put together in shared memory goes around in no registers.
        let assemblies: Vec<&AssemblyPlan> = plan.assemblies.iter().filter(|a| a.assembly.owner == id).collect();
        let in_registers = |i: &usize| !assemblies.iter().any(|a| a.assembly.index == *i);
        let carried: Vec<usize> = (0..op.results.len()).filter(in_registers).collect();
        let pick = |all: &[ValueId]| -> Vec<ValueId> { carried.iter().map(|&i| all[i]).collect() };
        let (results, args) = (pick(&op.results), pick(&k.region(region).args[1..]));
        let layouts = self.layouts_of(&results);
        let inits = pick(&op.operands[3..]);
        let inits: Vec<Vec<V>> = inits.iter().zip(&layouts).map(|(&v, l)| self.get(v, l)).collect();
        let starts: Vec<Vec<V>> = results.iter().zip(&inits).map(|(&v, init)| self.to_carry(v, init)).collect();
        let known = self.ordered_by_iteration(id);
        // In a loop that stores, where warps may be at different steps, they exchange what is theirs in regions that
        // nobody else uses meanwhile. (Without bulk copies shared memory is for programs beside this one.)
        let stores = k.region(region).ops.iter().any(|&o| matches!(k.op(o).kind, OpKind::Store | OpKind::StoreAdd));
        let own = stores && !self.rings.is_empty();
        if own && !self.scratch_busy.is_empty() {
            self.barrier();
        }
        self.start_assemblies(&assemblies);
        let ring = self.start_ring(id, &lo, &hi, &step);
        let slots = self.start_slots(id, &lo, &hi, &step);
        let in_flight = if ring.is_some() { vec![] } else { self.carried_in_flight(id) };
        // With the condition at the end: what is after the last iteration is no matter of a loop that never ran.
        let [pre, body, latch, done, exit] = ["pre", "loop", "latch", "done", "exit"].map(|s| self.w.label(s));
        self.w.jump(&pre);
        self.w.start(&pre);
        let any = self.w.icmp("slt", "i32", &lo, &hi);
        self.w.branch(&any, &body, &exit);
        self.w.start(&body);
        let next_stage = format!("%n{}", self.w.fresh());
        let stage = match ring.is_some() || slots.is_some() {
            true => self.w.op(format_args!("phi i32 [ 0, %{pre} ], [ {next_stage}, %{latch} ]")),
            false => int(0),
        };
        let next = format!("%n{}", self.w.fresh());
        let i = self.w.op(format_args!("phi i32 [ {lo}, %{pre} ], [ {next}, %{latch} ]"));
        let phis = self.phis(&args, &layouts, &starts, [&pre, &latch]);
        self.forget_order_but(&known);
        self.traced = own;
        if let Some(ring) = &ring {
            self.turn_ring(ring, &i, &stage);
        }
        if let Some(slots) = &slots {
            self.turn_slots(slots, &i, &stage);
        }
        self.define(k.region(region).args[0], vec![i.clone()])?;
        self.define_carried(&args, &layouts, &phis)?;
        let turns = self.takes_turns(id).then_some(false);
        let outer_turn = std::mem::replace(&mut self.turn, turns);
        let (top, outer) = (self.shared_top, std::mem::replace(&mut self.own_scratch, own));
        let own_buffers = self.take_store_buffers(region);
        let outer_buffers = std::mem::replace(&mut self.store_buffers, own_buffers);
        let yields = pick(self.region(region)?);
        self.own_scratch = outer;
        self.store_buffers = outer_buffers;
        let owned = std::mem::replace(&mut self.shared_top, top) != top;
        self.pass_turn();
        self.turn = outer_turn;
        let late = self.end_iteration(&yields, &args, &in_flight);
        let earlier = (!late.is_empty()).then(|| self.w.icmp("ne", "i32", &i, &lo));
        self.release(region, &late, earlier.as_ref());
        self.w.jump(&latch);
        self.w.start(&latch);
        self.alias_all(&yields, &layouts, &phis);
        let stages = ring.as_ref().map(|r| r.plan.stages).or(slots.as_ref().map(|s| s.stages));
        if let Some(stages) = stages {
            let after = self.next_stage(stages, &stage);
            self.w.alias(&next_stage, "i32", &after);
        }
        self.w.line(format_args!("{next} = add i32 {i}, {step}"));
        let more = self.w.icmp("slt", "i32", &next.as_str().into(), &hi);
        self.w.branch(&more, &body, &done);
        self.w.start(&done);
        for ((&r, layout), (_, nexts)) in results.iter().zip(&layouts).zip(&phis) {
            let last: Vec<V> = nexts.iter().map(|n| n.as_str().into()).collect();
            let registers = self.from_carried(r, &last, layout.registers());
            self.set_registers(r, registers);
        }
        if !late.is_empty() {
            let landing = results.iter().zip(&args).filter(|(_, a)| in_flight.contains(a));
            self.wait_for(&landing.map(|(&r, _)| r).collect::<Vec<_>>(), 0);
            self.release_last(region, &late);
        }
        let done = self.w.block.clone();
        self.w.jump(&exit);
        self.w.start(&exit);
        for ((&r, init), layout) in results.iter().zip(&inits).zip(&layouts) {
            let ty = llvm_type(self.k.ty(r).dtype());
            let last = self.first_registers(r);
            debug_assert_eq!(last.len(), layout.registers());
            let merged = init.iter().zip(&last);
            let merged = merged.map(|(a, b)| self.w.op(format_args!("phi {ty} [ {a}, %{pre} ], [ {b}, %{done} ]")));
            let merged = merged.collect();
            self.set_registers(r, merged);
        }
        if let Some(ring) = &ring {
            self.end_ring(ring);
        }
        if let Some(slots) = &slots {
            self.end_slots(slots);
        }
        if owned {
            self.barrier();
        }
        self.forget_order();
        self.end_rings(region);
        for &r in &results {
            let regs = self.first_registers(r);
            self.define(r, regs)?;
        }
        self.end_assemblies(&assemblies)
    }

    /// Waits for what may not stay in flight around a loop, and for all that earlier iterations issued; the products
    /// that stay in flight.
    fn end_iteration(&mut self, yields: &[ValueId], args: &[ValueId], in_flight: &[ValueId]) -> Vec<OpId> {
        let places = |v: ValueId| yields.iter().zip(args).filter(move |(y, _)| **y == v);
        let stays = |v: ValueId| places(v).count() > 0 && places(v).all(|(_, a)| in_flight.contains(a));
        let lands: Vec<ValueId> = self.flying.iter().map(|f| f.value).filter(|&v| !stays(v)).collect();
        self.settle(&lands);
        let Some(first) = self.flying.iter().map(|f| f.group).min() else { return vec![] };
        self.wait_for(&[], self.committed + 1 - first);
        // A product's operands are read until the last of those that add to it has landed.
        let mut late = vec![];
        let mut open: Vec<ValueId> = self.flying.drain(..).map(|f| f.value).collect();
        while let Some(v) = open.pop() {
            if let Some(product) = self.k.defining_op(v).filter(|&o| self.is_wgmma(o)) {
                late.push(product);
                open.push(self.k.op(product).operands[2]);
            }
        }
        late
    }

    pub(super) fn lower_while(&mut self, op: &'k Op) -> Result<()> {
        let k = self.k;
        let (condition, body_region) = (op.regions[0], op.regions[1]);
        let layouts = self.layouts_of(&op.results);
        let inits: Vec<Vec<V>> = op.operands.iter().zip(&layouts).map(|(&v, l)| self.get(v, l)).collect();
        let inits: Vec<Vec<V>> = op.results.iter().zip(&inits).map(|(&v, init)| self.to_carry(v, init)).collect();
        let [pre, head, body, latch, exit] = ["pre", "head", "loop", "latch", "exit"].map(|s| self.w.label(s));
        self.w.jump(&pre);
        self.w.start(&pre);
        self.w.jump(&head);
        self.w.start(&head);
        let phis = self.phis(&op.results, &layouts, &inits, [&pre, &latch]);
        self.forget_order();
        self.define_carried(&k.region(condition).args, &layouts, &phis)?;
        let ends = self.region(condition)?;
        self.settle_all();
        let more = self.scalar(ends[0]);
        self.w.branch(&more, &body, &exit);
        self.w.start(&body);
        self.define_carried(&k.region(body_region).args, &layouts, &phis)?;
        let yields = self.region(body_region)?;
        self.settle_all();
        self.w.jump(&latch);
        self.w.start(&latch);
        self.alias_all(yields, &layouts, &phis);
        self.w.jump(&head);
        self.w.start(&exit);
        self.forget_order();
        self.define_carried(&op.results, &layouts, &phis)
    }

    pub(super) fn lower_if(&mut self, op: &'k Op) -> Result<()> {
        let condition = self.scalar(op.operands[0]);
        let layouts = self.layouts_of(&op.results);
        // What is in flight outside stays so: neither branch looks at it.
        let outside = std::mem::take(&mut self.flying);
        let committed = self.committed;
        let [yes, no, merge] = ["then", "else", "join"].map(|s| self.w.label(s));
        self.w.branch(&condition, &yes, &no);
        let mut ends = vec![];
        for (label, &region) in [yes, no].iter().zip(&op.regions) {
            self.w.start(label);
            self.forget_order();
            let yields = self.region(region)?;
            self.settle_all();
            // Its products have landed; whether there were any, what follows does not know.
            self.committed = committed;
            self.release(region, &[], None);
            let values: Vec<Vec<V>> = yields.iter().zip(&layouts).map(|(&v, l)| self.get(v, l)).collect();
            ends.push((values, self.w.block.clone()));
            self.w.jump(&merge);
        }
        self.flying = outside;
        self.w.start(&merge);
        self.forget_order();
        let mut merged = vec![];
        for (i, &r) in op.results.iter().enumerate() {
            let ty = llvm_type(self.k.ty(r).dtype());
            let mut regs = vec![];
            for j in 0..ends[0].0[i].len() {
                let (a, b) = (&ends[0].0[i][j], &ends[1].0[i][j]);
                regs.push(self.w.op(format_args!("phi {ty} [ {a}, %{} ], [ {b}, %{} ]", ends[0].1, ends[1].1)));
            }
            merged.push((r, regs));
        }
        for (r, regs) in merged {
            self.define(r, regs)?;
        }
        Ok(())
    }
}
