//! Lowers a kernel with its layouts to LLVM text: values, control flow, and the order of effects.
//!
//! A version of a tile is one LLVM value per register of its layout. Loops and conditionals become blocks with phis.
//! All threads of a program take the same way through them, since conditions are scalars, so barriers may stand
//! anywhere.
//!
//! Invariant: within a program, memory operations on a writable parameter look as if executed one after the other by
//! one thread. Two that may touch the same element from different threads, one of them writing, have a barrier
//! between them ([`Lower::order`]).

use super::bulk::{Places, Walk, only_waits};
use super::channel::{Channels, Ways};
use super::cluster::Buffers;
use super::mailbox::Mailbox;
use super::pipeline::{Slot, Slots, Staged};
use super::reduce::Exchange;
use super::registers::Budget;
use super::shared::EVERYWHERE;
use super::stores::StoreBuffers;
use super::text::{V, Writer, constant, int, llvm_type};
use super::wgmma::Flying;
use super::{Error, TensorMap, math};
use crate::gpu::assign::{Assignment, operand_layout};
use crate::gpu::facts;
use crate::gpu::layout::{Level, LinearLayout, ShiftTerm};
use crate::ir::{Access, BinaryOp, DType, Finding, Kernel, Loc, Op, OpId, OpKind, RegionId, Type, ValueId};
use crate::passes::edit::writes;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

/// A view at run time.
#[derive(Clone)]
pub(super) struct View {
    /// Byte address, i64.
    pub address: V,
    /// i32, at most i32::MAX.
    pub extents: Vec<V>,
    /// In elements, i64.
    pub strides: Vec<V>,
    /// The parameter that it is a window of.
    pub param: usize,
    /// If not, no element exists (a view of rank 0 has no extent to say so).
    pub valid: Option<V>,
}

/// A memory operation that is not yet separated from the next one by a barrier.
struct Pending {
    param: usize,
    writes: bool,
    /// View, coordinates and layout: two operations of one key touch an element from the same thread. `None`: unknown.
    key: Option<(ValueId, Vec<ValueId>, LinearLayout)>,
}

pub(super) struct Lower<'k> {
    pub k: &'k Kernel,
    pub plan: &'k Assignment,
    pub w: Writer,
    pub sm: u32,
    regs: HashMap<(ValueId, usize), Vec<V>>,
    views: HashMap<ValueId, View>,
    thread_parts: HashMap<Vec<u32>, V>,
    owners: HashMap<u32, V>,
    tid: Option<V>,
    /// How the second-level cache treats what asynchronous copies read once.
    pub policy: Option<V>,
    pending: Vec<Pending>,
    /// Bytes of shared memory that another thread may still read.
    pub scratch_busy: Vec<Range<usize>>,
    /// How often scratch memory has been given out.
    pub scratches: usize,
    pub exchange: Option<Exchange>,
    /// Where the loads that run ahead in each thread's own slots lie for this iteration.
    pub slots: HashMap<OpId, Slot>,
    /// Those of loops to come that an earlier one uses, too.
    pub lent: HashMap<OpId, Slots>,
    /// Where in the source the operation being lowered stands, and what the author may want to know.
    pub at: Loc,
    pub findings: Vec<Finding>,
    /// Loads of the loops around that lie in shared memory.
    pub staged: HashMap<OpId, Staged>,
    /// Bulk copies: where their rings are, and how far the computing warps are in those of each region.
    pub rings: HashMap<OpId, Places>,
    pub walks: HashMap<RegionId, Walk>,
    /// Whether the launch before has been waited for.
    pub waited: bool,
    /// The registers of this role's threads, if its author says how many.
    pub budget: Option<Budget>,
    /// In a program of several computing roles: this is one of them, its threads begin here.
    pub one_of_several: bool,
    pub first_thread: usize,
    /// The barrier of its threads; two more follow.
    pub named_barrier: usize,
    /// The channels between them, and this one's ways through them.
    pub channels: Channels,
    pub ways: Ways,
    /// Where this program's tiles lie that others of its cluster read, if they exchange any.
    pub exchanged: Option<Buffers>,
    /// Where small tiles of a cluster come, if all are exchanged so.
    pub mailbox: Option<Mailbox>,
    /// The tensor maps of those copies.
    pub maps: Vec<TensorMap>,
    /// Where values that products read lie in shared memory.
    pub places: HashMap<ValueId, usize>,
    /// Products that have been issued and not been waited for, and how many were ever issued.
    pub flying: Vec<Flying>,
    pub committed: usize,
    pub warpgroup: Option<V>,
    /// Where copies with a cache policy begin to count: shared memory, in a register of each thread's own.
    pub own_shared_base: Option<V>,
    /// In a loop in which two warpgroups issue products in turns: whether this one is at it.
    pub turn: Option<bool>,
    /// Bytes of shared memory taken for good, and the most ever used.
    pub shared_top: usize,
    /// Where loops put tiles together, by the selection that ends an iteration.
    pub assembled: HashMap<OpId, usize>,
    pub shared_max: usize,
    /// Whether conversions within warps take shared memory of their own.
    pub own_scratch: bool,
    /// Where the stores of the loop's body go that are copies.
    pub store_buffers: Option<StoreBuffers>,
    /// Whether copies may still read shared memory.
    pub unread_copies: bool,
    /// Whether `scratch_busy` has all that was done since the last barrier or, in a loop with such conversions, since
    /// the iteration began.
    pub traced: bool,
}

pub(super) type Result<T> = std::result::Result<T, Error>;

/// The parameter that an operation reads or writes.
fn touched(k: &Kernel, op: &Op) -> Option<usize> {
    let view = *op.operands.first().filter(|_| op.kind.reads_memory() || writes(&op.kind))?;
    facts::view_facts(k, view).map(|f| f.param)
}

impl<'k> Lower<'k> {
    pub fn new(k: &'k Kernel, plan: &'k Assignment, sm: u32) -> Lower<'k> {
        let mut w = Writer::default();
        w.block = "body".into();
        Lower {
            k,
            plan,
            w,
            sm,
            regs: HashMap::new(),
            views: HashMap::new(),
            thread_parts: HashMap::new(),
            owners: HashMap::new(),
            tid: None,
            policy: None,
            pending: vec![],
            scratch_busy: vec![],
            scratches: 0,
            exchange: None,
            slots: HashMap::new(),
            lent: HashMap::new(),
            at: k.loc,
            findings: vec![],
            staged: HashMap::new(),
            rings: HashMap::new(),
            walks: HashMap::new(),
            waited: false,
            budget: None,
            one_of_several: false,
            first_thread: 0,
            named_barrier: 1,
            channels: Channels::default(),
            ways: Ways::default(),
            exchanged: None,
            mailbox: None,
            maps: vec![],
            places: HashMap::new(),
            flying: vec![],
            committed: 0,
            warpgroup: None,
            own_shared_base: None,
            turn: None,
            shared_top: 0,
            assembled: HashMap::new(),
            own_scratch: false,
            store_buffers: None,
            unread_copies: false,
            traced: true,
            shared_max: 0,
        }
    }

    /// Lowers the whole kernel.
    pub fn run(&mut self) -> Result<()> {
        self.parameters();
        self.take_places();
        self.take_rings();
        self.take_exchange_buffers();
        self.open_mailbox();
        self.wait_for_earlier_grids();
        self.split_roles()?;
        self.region(self.k.body)?;
        if self.shares() {
            self.cluster_barrier("relaxed");
        }
        self.end_exchanges();
        Ok(())
    }

    pub(super) fn parameters(&mut self) {
        let mut slot = 0;
        for (i, p) in self.k.params.iter().enumerate() {
            match self.k.ty(p.value) {
                Type::Tile(d, _) => {
                    let bits = format!("%p{slot}");
                    let v = match d {
                        DType::F32 => {
                            let low = self.w.hoist(format_args!("trunc i64 {bits} to i32"));
                            self.w.hoist(format_args!("bitcast i32 {low} to float"))
                        }
                        DType::Bool => self.w.hoist(format_args!("icmp ne i64 {bits}, 0")),
                        d if d.size() == 8 => bits.into(),
                        d => self.w.hoist(format_args!("trunc i64 {bits} to {}", llvm_type(d))),
                    };
                    self.regs.insert((p.value, 0), vec![v]);
                    slot += 1;
                }
                Type::View(_, rank) => {
                    let rank = rank as usize;
                    let extents = (0..rank).map(|d| self.extent_parameter(slot + 1 + d)).collect();
                    let one = crate::ir::Fact::One;
                    let stride = |d: usize| {
                        let s = slot + 1 + rank + d;
                        if self.k.fact(s) == one { int(1) } else { format!("%p{s}").into() }
                    };
                    let strides = (0..rank).map(stride).collect();
                    let view = View { address: format!("%p{slot}").into(), extents, strides, param: i, valid: None };
                    self.views.insert(p.value, view);
                    slot += 1 + 2 * rank;
                }
                Type::Channel | Type::Slot => unreachable!("no parameter is one"),
            }
        }
    }

    /// At most i32::MAX (`ir::abi`).
    fn extent_parameter(&mut self, slot: usize) -> V {
        self.w.hoist(format_args!("trunc i64 %p{slot} to i32"))
    }

    // -- threads -----------------------------------------------------------------------------------------------------

    pub fn warps(&self) -> usize {
        self.plan.warps
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        32 * self.plan.warps
    }

    /// Those and the producer's, if there is one.
    pub fn launched_threads(&self) -> usize {
        self.threads() + 32 * self.producer_warps()
    }

    /// The address of a tensor map, i64.
    pub fn tensor_map(&mut self, map: &TensorMap) -> V {
        let known = self.maps.iter().position(|m| m == map);
        let i = known.unwrap_or_else(|| {
            self.maps.push(map.clone());
            self.maps.len() - 1
        });
        self.w.op(format_args!("ptrtoint ptr %map{i} to i64"))
    }

    /// The thread's index among those of the program, or of the role; of other threads it means nothing. i32.
    pub fn tid(&mut self) -> V {
        if self.tid.is_none() {
            self.w.declare("i32 @llvm.nvvm.read.ptx.sreg.tid.x()");
            let mut tid = self.w.hoist("call i32 @llvm.nvvm.read.ptx.sreg.tid.x()");
            if self.first_thread > 0 {
                tid = self.w.hoist(format_args!("sub i32 {tid}, {}", self.first_thread));
            }
            self.tid = Some(tid);
        }
        self.tid.clone().expect("just set")
    }

    /// The exclusive or of `bases[i]` over the bits i set in the thread's index, i32.
    pub fn thread_part(&mut self, bases: Vec<u32>) -> V {
        if bases.iter().all(|&b| b == 0) {
            return int(0);
        }
        if let Some(v) = self.thread_parts.get(&bases) {
            return v.clone();
        }
        let tid = self.tid();
        let mut sum: Option<V> = None;
        for term in ShiftTerm::of(&bases) {
            let mut x = self.w.hoist(format_args!("and i32 {tid}, {}", term.mask));
            if term.shift > 0 {
                x = self.w.hoist(format_args!("shl i32 {x}, {}", term.shift));
            } else if term.shift < 0 {
                x = self.w.hoist(format_args!("lshr i32 {x}, {}", -term.shift));
            }
            sum = Some(match sum {
                Some(s) => self.w.hoist(format_args!("xor i32 {s}, {x}")),
                None => x,
            });
        }
        let v = sum.unwrap_or_else(|| int(0));
        self.thread_parts.insert(bases, v.clone());
        v
    }

    /// The thread's contribution to the coordinate along `axis`.
    pub fn thread_coordinate(&mut self, layout: &LinearLayout, axis: usize) -> V {
        let mut bases = layout.axis_bases(Level::Lane, axis);
        bases.extend(layout.axis_bases(Level::Warp, axis));
        self.thread_part(bases)
    }

    /// Whether this thread is the one that acts for its elements; `None` if every thread has elements of its own.
    pub fn owner(&mut self, layout: &LinearLayout) -> Option<V> {
        let copies = layout.redundant();
        let mask = copies.lane | copies.warp << 5;
        if mask == 0 {
            return None;
        }
        if let Some(v) = self.owners.get(&mask) {
            return Some(v.clone());
        }
        let tid = self.tid();
        let bits = self.w.hoist(format_args!("and i32 {tid}, {mask}"));
        let v = self.w.hoist(format_args!("icmp eq i32 {bits}, 0"));
        self.owners.insert(mask, v.clone());
        Some(v)
    }

    // -- order of effects --------------------------------------------------------------------------------------------

    pub fn barrier(&mut self) {
        self.barrier_by(|lower| lower.thread_barrier());
    }

    /// Where all threads of the program wait for each other, by these instructions.
    pub fn barrier_by(&mut self, instructions: impl FnOnce(&mut Self)) {
        // The other warpgroup may have to take its turn before it comes here.
        self.pass_turn();
        self.finish_reads();
        instructions(self);
        self.pending.clear();
        self.scratch_busy.clear();
        self.traced = true;
    }

    fn thread_barrier(&mut self) {
        if self.rings.is_empty() && !self.one_of_several {
            self.w.call("void", "llvm.nvvm.barrier0", &[]);
        } else {
            // The producer does not come to barriers, nor do other roles.
            let ptx = format!("bar.sync {}, {};", self.named_barrier, self.threads());
            self.w.asm_effect("void", &ptx, "", &[]);
        }
    }

    /// Called before a memory operation: puts a barrier where an earlier one must be over in all threads.
    pub fn order(&mut self, view: ValueId, coords: Option<&[ValueId]>, layout: &LinearLayout, writes: bool) {
        let param = self.views[&view].param;
        if self.k.params[param].access == Access::Read {
            return;
        }
        let key = coords.map(|c| (view, c.to_vec(), layout.clone()));
        // Boxes of one view that are apart have nothing to wait for.
        let apart = |p: &Pending| match (&p.key, &key) {
            (Some((v, a, l)), Some((w, b, m))) => {
                v == w && l.shape() == m.shape() && facts::disjoint(self.k, *l.shape(), a, b)
            }
            _ => false,
        };
        // What several threads hold one of them stores; what it stores the others load.
        let redundant = layout.redundant();
        let alone = writes || redundant.lane | redundant.warp == 0;
        // Copies have no order among themselves.
        let copied = self.copied_to(param);
        let same = |p: &Pending| p.key.is_some() && p.key == key && !copied && (alone || !p.writes);
        let conflict = |p: &Pending| p.param == param && (p.writes || writes) && !same(p) && !apart(p);
        if self.pending.iter().any(conflict) {
            if copied {
                self.finish_copies();
            }
            self.barrier();
        }
        self.pending.push(Pending { param, writes, key });
    }

    /// [`Lower::order`] for a store. What is only added to needs no order: additions are atomic.
    pub(super) fn order_store(&mut self, id: OpId, layout: &LinearLayout) {
        let k = self.k;
        let op = k.op(id);
        let param = Some(self.views[&op.operands[0]].param);
        let adds = |o: &Op| o.kind == OpKind::StoreAdd;
        let only_added_to = || k.ops.iter().filter(|o| touched(k, o) == param).all(adds);
        if !adds(op) || !only_added_to() {
            self.order(op.operands[0], Some(&op.operands[2..]), layout, true);
        }
    }

    /// At the start and the end of a loop's body: what another iteration did is not known.
    pub(super) fn forget_order(&mut self) {
        self.forget_order_but(&[]);
    }

    /// The same, but for these parameters.
    pub(super) fn forget_order_but(&mut self, known: &[usize]) {
        self.scratch_busy.push(EVERYWHERE);
        self.traced = false;
        self.unread_copies = !self.plan.stores.is_empty();
        for (param, p) in self.k.params.iter().enumerate() {
            if p.access == Access::Write && !known.contains(&param) {
                self.pending.push(Pending { param, writes: true, key: None });
            }
        }
    }

    /// Parameters of which a loop's iterations touch different elements, by one store: nobody waits for another
    /// iteration. What was pending before the loop is over after this.
    pub(super) fn ordered_by_iteration(&mut self, id: OpId) -> Vec<usize> {
        let k = self.k;
        let body = k.op(id).regions[0];
        let mut by_param: HashMap<usize, Vec<OpId>> = HashMap::new();
        let mut open = vec![body];
        while let Some(region) = open.pop() {
            for &op in &k.region(region).ops {
                let o = k.op(op);
                open.extend(&o.regions);
                if let Some(param) = touched(k, o) {
                    by_param.entry(param).or_default().push(op);
                }
            }
        }
        let by_iteration = |ops: &[OpId]| match ops {
            [op] if k.op(*op).kind == OpKind::Store && k.region(body).ops.contains(op) => {
                let o = k.op(*op);
                let outside = !k.defining_op(o.operands[0]).is_some_and(|view| k.region(body).ops.contains(&view));
                outside && facts::disjoint_by_iteration(k, id, k.ty(o.operands[1]).shape(), &o.operands[2..])
            }
            _ => false,
        };
        let known = by_param.into_iter().filter(|(_, ops)| by_iteration(ops)).map(|(param, _)| param);
        let known: Vec<usize> = known.filter(|&param| k.params[param].access == Access::Write).collect();
        if self.pending.iter().any(|p| known.contains(&p.param)) {
            self.barrier();
        }
        known
    }

    // -- values ------------------------------------------------------------------------------------------------------

    /// The registers of `v` in this layout (scalars: any).
    pub fn get(&self, v: ValueId, layout: &LinearLayout) -> Vec<V> {
        let version = if self.k.ty(v).is_scalar() { 0 } else { self.plan.version(v, layout) };
        self.regs.get(&(v, version)).unwrap_or_else(|| panic!("{v:?}.{version} has not been made")).clone()
    }

    pub fn scalar(&self, v: ValueId) -> V {
        self.regs.get(&(v, 0)).unwrap_or_else(|| panic!("{v:?} has not been made"))[0].clone()
    }

    /// The registers of `v` as it is defined, and their layout.
    pub fn get_home(&self, v: ValueId) -> (Vec<V>, LinearLayout) {
        let layout = self.plan.versions[v.index()].first().unwrap_or_else(|| panic!("{v:?} was not demanded"));
        (self.get(v, layout), layout.clone())
    }

    pub fn view(&self, v: ValueId) -> View {
        self.views[&v].clone()
    }

    pub fn demanded(&self, v: ValueId) -> bool {
        !self.plan.versions[v.index()].is_empty()
    }

    /// Defines `v` by the registers of its first version; makes the others.
    pub fn define(&mut self, v: ValueId, registers: Vec<V>) -> Result<()> {
        let versions = &self.plan.versions[v.index()];
        let dtype = self.k.ty(v).dtype();
        for (i, to) in versions.iter().enumerate().skip(1) {
            let version = if self.plan.remade.contains(&(v, to.clone())) {
                self.pure_in(self.k.op(self.k.defining_op(v).expect("a function of another value")), to)?
            } else {
                self.convert(&registers, dtype, &versions[0], to)?
            };
            self.regs.insert((v, i), version);
        }
        self.regs.insert((v, 0), registers);
        self.put(v);
        Ok(())
    }

    /// The registers of `v` as it is defined, wherever they come from.
    pub fn first_registers(&self, v: ValueId) -> Vec<V> {
        self.regs[&(v, 0)].clone()
    }

    pub fn set_registers(&mut self, v: ValueId, registers: Vec<V>) {
        self.set_version(v, 0, registers);
    }

    pub fn set_version(&mut self, v: ValueId, version: usize, registers: Vec<V>) {
        self.regs.insert((v, version), registers);
    }

    // -- regions -----------------------------------------------------------------------------------------------------

    /// Lowers a region's operations; the values it yields.
    pub fn region(&mut self, region: RegionId) -> Result<&'k [ValueId]> {
        let k = self.k;
        // Tiles that have come by bulk copies are read where somebody first looks at them.
        let mut unread: Vec<OpId> = vec![];
        for &id in &k.region(region).ops {
            let op = k.op(id);
            if !unread.is_empty() {
                let looks = self.looked_at(id);
                let (now, later) = unread.into_iter().partition(|&load| looks.contains(&k.op(load).results[0]));
                unread = later;
                for load in now {
                    self.stand_at(k.op(load).loc);
                    self.load_staged(load)?;
                }
            }
            if region == k.body {
                self.wait_before(id);
            }
            if op.kind == OpKind::Yield {
                return Ok(&op.operands);
            }
            // The producer waits for signals; the copies that it starts afterwards bring the news here.
            if !self.rings.is_empty() && (op.kind == OpKind::Wait || only_waits(k, id)) {
                continue;
            }
            // What an operation looks at must be there; a product adds to its third operand without looking.
            match op.kind {
                OpKind::If => self.settle(&self.looked_at(id)),
                _ if op.kind.has_regions() => self.settle_all(),
                OpKind::Dot(_) if self.is_wgmma(id) => self.settle(&op.operands[..2]),
                _ => self.settle(&op.operands),
            }
            if let Some(load) = self.plan.ahead.bulk_load(id) {
                self.receive(region, load);
                unread.push(id);
                continue;
            }
            self.stand_at(op.loc);
            self.op(id)?;
        }
        Ok(&[])
    }

    /// What is lowered next comes from there.
    pub(super) fn stand_at(&mut self, place: Loc) {
        self.at = place;
        self.w.at(place);
    }

    fn op(&mut self, id: OpId) -> Result<()> {
        let k = self.k;
        let op = k.op(id);
        match &op.kind {
            OpKind::For { .. } => self.lower_for(id),
            OpKind::While => self.lower_while(op),
            OpKind::If => self.lower_if(op),
            OpKind::Store | OpKind::StoreAdd => match self.plan.stores.get(&id) {
                Some(store) if self.store_buffers.is_some() => self.bulk_store(id, store),
                _ => self.store(id),
            },
            OpKind::Scatter { .. } => self.scatter(id),
            OpKind::Atomic { .. } => self.atomic(id),
            OpKind::Signal => self.signal(op),
            OpKind::Wait => self.wait_for_signal(op),
            OpKind::ClusterReduce(combine) => self.cluster_reduce(id, *combine),
            OpKind::GridSync => {
                self.grid_sync();
                Ok(())
            }
            OpKind::Send => {
                self.send(op);
                Ok(())
            }
            OpKind::Receive => self.receive_message(op),
            OpKind::Release => {
                self.release_slot(op);
                Ok(())
            }
            OpKind::Assert { .. } => self.assert(op),
            OpKind::Print { message } => self.print(op, message),
            OpKind::ViewSelect { .. } | OpKind::ViewNarrow { .. } => {
                // A view that nobody uses may need scalars that nobody made.
                if op.operands[1..].iter().all(|&v| self.demanded(v)) {
                    let view = self.derived_view(op);
                    if let Some(view) = view {
                        self.views.insert(op.results[0], view);
                    }
                }
                Ok(())
            }
            OpKind::Select if self.assembled.contains_key(&id) => {
                let plan = self.plan.assemblies.iter().find(|a| a.assembly.insert == id);
                self.store_piece(plan.expect("it has a place"));
                Ok(())
            }
            _ if op.results.iter().all(|&r| !self.demanded(r)) => Ok(()),
            OpKind::Slice { offsets } if self.plan.work.contains_key(&id) => self.slice_within_warps(id, offsets),
            OpKind::Load { .. } => self.load(id),
            OpKind::Gather { .. } => self.gather(id),
            OpKind::Reduce { .. } | OpKind::Scan { .. } => self.along_axis(id),
            OpKind::Dot(_) => self.dot(id),
            _ => self.pure(op),
        }
    }

    // -- pure operations ---------------------------------------------------------------------------------------------

    /// An operation that computes registers from registers: every version it is demanded in, unless it has a home and
    /// the others are conversions.
    fn pure(&mut self, op: &'k Op) -> Result<()> {
        let r = op.results[0];
        let versions = &self.plan.versions[r.index()];
        let anchored = self.k.ty(r).is_scalar() || self.plan.home[r.index()].is_some();
        if anchored {
            let regs = self.pure_in(op, &versions[0])?;
            return self.define(r, regs);
        }
        for (i, layout) in versions.iter().enumerate() {
            let regs = self.pure_in(op, layout)?;
            self.regs.insert((r, i), regs);
        }
        self.put(r);
        Ok(())
    }

    fn pure_in(&mut self, op: &'k Op, layout: &LinearLayout) -> Result<Vec<V>> {
        let k = self.k;
        let r = op.results[0];
        let count = layout.registers();
        let dtype = k.ty(r).dtype();
        let operands: Vec<Vec<V>> = (0..op.operands.len())
            .filter_map(|i| operand_layout(k, op, i, layout).map(|l| self.get(op.operands[i], &l)))
            .collect();
        Ok(match &op.kind {
            OpKind::Const(bits) => vec![constant(dtype, *bits); count],
            OpKind::Iota { axis } => {
                let axis = *axis as usize;
                let thread = self.thread_coordinate(layout, axis);
                let bases = layout.axis_bases(Level::Register, axis);
                let how = if layout.registers_add(axis) { "add" } else { "xor" };
                let mut known: HashMap<u32, V> = HashMap::new();
                let mut out = vec![];
                for r in 0..count as u32 {
                    let own = apply(&bases, r);
                    if let Entry::Vacant(slot) = known.entry(own) {
                        let v = self.w.bin(how, "i32", &thread, &int(own));
                        slot.insert(v);
                    }
                    out.push(known[&own].clone());
                }
                out
            }
            OpKind::ProgramId { axis } => {
                let name = format!("llvm.nvvm.read.ptx.sreg.ctaid.{}", ["x", "y", "z"][*axis as usize]);
                vec![self.w.call("i32", &name, &[])]
            }
            OpKind::NumPrograms { axis } => {
                let name = format!("llvm.nvvm.read.ptx.sreg.nctaid.{}", ["x", "y", "z"][*axis as usize]);
                vec![self.w.call("i32", &name, &[])]
            }
            OpKind::Dim { dim } => vec![self.views[&op.operands[0]].extents[*dim as usize].clone()],
            // Two at once: one at a time, ptxas takes the unit that has a sixteenth of the throughput.
            OpKind::Cast
                if count.is_multiple_of(2)
                    && k.ty(op.operands[0]).dtype() == DType::F32
                    && matches!(dtype, DType::BF16 | DType::F16) =>
            {
                operands[0].chunks(2).flat_map(|x| math::narrow_pair(&mut self.w, dtype, &x[0], &x[1])).collect()
            }
            OpKind::Binary(b @ (BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul))
                if count.is_multiple_of(2) && (dtype == DType::F16 || dtype == DType::BF16 && self.sm >= 90) =>
            {
                let pairs = operands[0].chunks(2).zip(operands[1].chunks(2));
                let of = |p: &'_ [V]| [p[0].clone(), p[1].clone()];
                let pairs: Vec<_> = pairs.map(|(x, y)| (of(x), of(y))).collect();
                pairs
                    .iter()
                    .flat_map(|(x, y)| math::binary_pair(&mut self.w, *b, dtype, x.each_ref(), y.each_ref()))
                    .collect()
            }
            // Not the instruction for pairs: it rounds once to the type, and this rounds to f32 first.
            OpKind::Fma if count.is_multiple_of(2) && matches!(dtype, DType::BF16 | DType::F16) => {
                let mut sums = vec![];
                for i in 0..count {
                    let [x, a, b] = [0, 1, 2].map(|o| math::to_f32(&mut self.w, dtype, &operands[o][i]));
                    sums.push(math::fma(&mut self.w, &x, &a, &b));
                }
                sums.chunks(2).flat_map(|x| math::narrow_pair(&mut self.w, dtype, &x[0], &x[1])).collect()
            }
            kind if kind.is_elementwise() => {
                let from = k.ty(op.operands[0]).dtype();
                let mut out = vec![];
                for i in 0..count {
                    let xs: Vec<&V> = operands.iter().map(|o| &o[i]).collect();
                    out.push(elementwise(&mut self.w, &op.kind, from, dtype, &xs));
                }
                out
            }
            // Registers keep their numbers.
            OpKind::Transpose { .. } | OpKind::Reshape => operands[0].clone(),
            OpKind::Broadcast => {
                let shape = k.ty(op.operands[0]).shape();
                if shape.rank() == 0 {
                    vec![operands[0][0].clone(); count]
                } else {
                    let source = layout.broadcast_source(shape).expect("the verifier checked the extents");
                    let (_, map) = source.compact_registers();
                    map.iter().map(|&r| operands[0][r as usize].clone()).collect()
                }
            }
            OpKind::Slice { offsets } => {
                let map = layout.slice_source(offsets, k.ty(op.operands[0]).shape());
                map.registers.iter().map(|&r| operands[0][r as usize].clone()).collect()
            }
            OpKind::Join { axis } => {
                let map = layout.join_source(*axis as usize).expect("a join is made where it was laid out");
                map.registers.iter().map(|&(o, r)| operands[o as usize][r as usize].clone()).collect()
            }
            other => unreachable!("{other:?} is not pure"),
        })
    }

    /// A slice whose elements come from other lanes.
    fn slice_within_warps(&mut self, id: OpId, offsets: &[u32]) -> Result<()> {
        let op = self.k.op(id);
        let (operand, result) = (op.operands[0], op.results[0]);
        let layout = &self.plan.work[&id];
        let map =
            layout.slice_within_warps(offsets, self.k.ty(result).shape()).expect("the layout was chosen for this");
        let regs = self.get(operand, layout);
        let tid = self.tid();
        let others = self.w.bin("and", "i32", &tid, &int(31 & !map.mask));
        let lane = self.w.bin("or", "i32", &others, &int(map.lane));
        let dtype = self.k.ty(operand).dtype();
        let mut out = vec![];
        for r in map.registers {
            out.extend(self.shuffle(dtype, std::slice::from_ref(&regs[r as usize]), "idx", &lane));
        }
        for (i, to) in self.plan.versions[result.index()].iter().enumerate() {
            let registers = self.convert(&out, dtype, &map.layout, to)?;
            self.regs.insert((result, i), registers);
        }
        self.put(result);
        Ok(())
    }

    /// The combination that a region defines, on scalars.
    pub fn inline_region(&mut self, region: RegionId, args: &[V]) -> Vec<V> {
        let k = self.k;
        let r = k.region(region);
        let mut local: HashMap<ValueId, V> = r.args.iter().copied().zip(args.iter().cloned()).collect();
        for &id in &r.ops {
            let op = k.op(id);
            let at = |v: &ValueId| local.get(v).cloned().unwrap_or_else(|| self.scalar(*v));
            let xs: Vec<V> = op.operands.iter().map(at).collect();
            if op.kind == OpKind::Yield {
                return xs;
            }
            let dtype = k.ty(op.results[0]).dtype();
            let value = match &op.kind {
                OpKind::Const(bits) => constant(dtype, *bits),
                OpKind::Iota { .. } => int(0),
                OpKind::Broadcast | OpKind::Reshape | OpKind::Transpose { .. } | OpKind::Slice { .. } => xs[0].clone(),
                kind => {
                    let refs: Vec<&V> = xs.iter().collect();
                    elementwise(&mut self.w, kind, k.ty(op.operands[0]).dtype(), dtype, &refs)
                }
            };
            local.insert(op.results[0], value);
        }
        vec![]
    }

    fn derived_view(&mut self, op: &Op) -> Option<View> {
        let mut view = self.views.get(&op.operands[0])?.clone();
        let size = self.k.ty(op.operands[0]).dtype().size();
        let index = self.scalar(op.operands[1]);
        match op.kind {
            OpKind::ViewSelect { dim } => {
                let d = dim as usize;
                let (extent, stride) = (view.extents.remove(d), view.strides.remove(d));
                let inside = self.w.icmp("ult", "i32", &index, &extent);
                view.address = self.moved(&view.address, &index, &stride, size);
                for e in &mut view.extents {
                    *e = self.w.select(&inside, "i32", e, &int(0));
                }
                if view.extents.is_empty() {
                    view.valid = self.w.and(view.valid.take(), Some(inside));
                }
            }
            OpKind::ViewNarrow { dim } => {
                let d = dim as usize;
                let extent = view.extents[d].clone();
                let w = &mut self.w;
                let len = self.regs[&(op.operands[2], 0)][0].clone();
                let low = w.call("i32", "llvm.smax.i32", &[("i32", &index), ("i32", &int(0))]);
                let low = w.call("i32", "llvm.smin.i32", &[("i32", &low), ("i32", &extent)]);
                let start = w.convert("sext", "i32", &index, "i64");
                let len = w.convert("sext", "i32", &len, "i64");
                let end = w.bin("add", "i64", &start, &len);
                let (low64, extent64) =
                    (w.convert("sext", "i32", &low, "i64"), w.convert("sext", "i32", &extent, "i64"));
                let end = w.call("i64", "llvm.smin.i64", &[("i64", &end), ("i64", &extent64)]);
                let end = w.call("i64", "llvm.smax.i64", &[("i64", &end), ("i64", &low64)]);
                let end = w.convert("trunc", "i64", &end, "i32");
                view.extents[d] = w.bin("sub", "i32", &end, &low);
                let stride = view.strides[d].clone();
                view.address = self.moved(&view.address, &low, &stride, size);
            }
            _ => return None,
        }
        Some(view)
    }

    /// address + index · stride · size; index i32, stride i64 in elements.
    pub fn moved(&mut self, address: &V, index: &V, stride: &V, size: usize) -> V {
        let w = &mut self.w;
        if &**index == "0" {
            return address.clone();
        }
        let i = w.convert("sext", "i32", index, "i64");
        let elements = w.bin("mul", "i64", &i, stride);
        let bytes = w.bin("mul", "i64", &elements, &int(size));
        w.bin("add", "i64", address, &bytes)
    }
}

/// The exclusive or of the bases selected by the bits of `x`.
pub(super) fn apply(bases: &[u32], x: u32) -> u32 {
    bases.iter().enumerate().filter(|(i, _)| x >> i & 1 == 1).fold(0, |s, (_, b)| s ^ b)
}

/// One element of an elementwise operation; `from` is the first operand's type, `to` the result's.
pub(super) fn elementwise(w: &mut Writer, kind: &OpKind, from: DType, to: DType, xs: &[&V]) -> V {
    match kind {
        OpKind::Unary(op) => math::unary(w, *op, from, xs[0]),
        OpKind::Binary(op) => math::binary(w, *op, from, xs[0], xs[1]),
        OpKind::Compare(op) => math::compare(w, *op, from, xs[0], xs[1]),
        OpKind::Fma => {
            let [x, a, b] = [0, 1, 2].map(|i| math::to_f32(w, from, xs[i]));
            let sum = math::fma(w, &x, &a, &b);
            math::from_f32(w, from, &sum)
        }
        OpKind::Select => w.select(xs[0], llvm_type(to), xs[1], xs[2]),
        OpKind::Cast => math::cast(w, from, to, xs[0]),
        OpKind::Bitcast => math::bitcast(w, from, to, xs[0]),
        other => unreachable!("{other:?} is not elementwise"),
    }
}
