//! Global memory: loads, stores, gathers, scatters and atomics.
//!
//! An element outside its view is not touched: every access carries a predicate, the conjunction of one unsigned
//! comparison per dimension. Where facts allow, a run of elements along the unit-stride dimension is one access of up
//! to 16 bytes; the facts (see `gpu::facts`) include that such a run lies wholly inside or wholly outside.

use super::lower::{Lower, Result, View, apply};
use super::math;
use super::text::{V, Writer, int, llvm_type, memory_type, struct_type};
use crate::gpu::facts;
use crate::gpu::layout::{Level, LinearLayout};
use crate::ir::{AtomicOp, BinaryOp, DType, OpId, OpKind, Reuse};
use std::collections::HashMap;

/// How `count` neighbouring elements travel: machine words of this many bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Words {
    pub bits: usize,
    pub count: usize,
}

impl Words {
    pub fn of(dtype: DType, elements: usize) -> Words {
        let bytes = dtype.size() * elements;
        match (dtype.size(), bytes) {
            (8, _) => Words { bits: 64, count: elements },
            (_, 1..4) => Words { bits: 8 * bytes, count: 1 },
            _ => Words { bits: 32, count: bytes / 4 },
        }
    }

    /// The LLVM type of a word in inline PTX, which has no 8-bit registers.
    pub fn asm_type(self) -> &'static str {
        match self.bits {
            8 | 16 => "i16",
            32 => "i32",
            _ => "i64",
        }
    }

    pub fn constraint(self) -> &'static str {
        match self.bits {
            8 | 16 => "h",
            32 => "r",
            _ => "l",
        }
    }

    /// `.v4.b32` and the like.
    pub fn suffix(self) -> String {
        match self.count {
            1 => format!(".b{}", self.bits),
            n => format!(".v{n}.b{}", self.bits),
        }
    }
}

/// An element's bits as an integer of its size.
fn to_bits(w: &mut Writer, dtype: DType, x: &V) -> V {
    match dtype {
        DType::F32 => w.convert("bitcast", "float", x, "i32"),
        DType::Bool => w.convert("zext", "i1", x, "i8"),
        _ => x.clone(),
    }
}

fn from_bits(w: &mut Writer, dtype: DType, x: &V) -> V {
    match dtype {
        DType::F32 => w.convert("bitcast", "i32", x, "float"),
        DType::Bool => w.icmp("ne", "i8", x, &int(0)),
        _ => x.clone(),
    }
}

/// Elements packed into words (lowest address first); 8-bit words as i16.
pub(super) fn pack(w: &mut Writer, dtype: DType, elements: &[V]) -> Vec<V> {
    let words = Words::of(dtype, elements.len());
    let per_word = elements.len() / words.count;
    let size = 8 * dtype.size();
    let own = memory_type(dtype);
    let wide = words.asm_type();
    let mut out = vec![];
    for group in elements.chunks(per_word) {
        if let ([low, high], "i16", "i32") = (group, own, wide) {
            let [low, high] = [low, high].map(|x| to_bits(w, dtype, x));
            out.push(w.join(&low, &high));
            continue;
        }
        let mut word: Option<V> = None;
        for (i, x) in group.iter().enumerate() {
            let bits = to_bits(w, dtype, x);
            let bits = w.convert("zext", own, &bits, wide);
            let bits = w.bin("shl", wide, &bits, &int(i * size));
            word = Some(match word {
                Some(low) => w.bin("or", wide, &low, &bits),
                None => bits,
            });
        }
        out.extend(word);
    }
    out
}

/// The inverse of [`pack`].
pub(super) fn unpack(w: &mut Writer, dtype: DType, words: &[V], count: usize) -> Vec<V> {
    let form = Words::of(dtype, count);
    let per_word = count / form.count;
    let size = 8 * dtype.size();
    let own = memory_type(dtype);
    let wide = form.asm_type();
    let mut out = vec![];
    for word in words {
        if (per_word, own, wide) == (2, "i16", "i32") {
            out.extend(w.halves(word).map(|x| from_bits(w, dtype, &x)));
            continue;
        }
        for i in 0..per_word {
            let x = w.bin("lshr", wide, word, &int(i * size));
            let x = w.convert("trunc", wide, &x, own);
            out.push(from_bits(w, dtype, &x));
        }
    }
    out
}

/// Addresses and masks of one thread's elements of a box.
pub(super) struct Box<'a> {
    view: View,
    layout: &'a LinearLayout,
    size: usize,
    /// Per axis: start + the thread's part, or the start alone where registers do not add.
    base: Vec<V>,
    /// Per axis: the thread's part, where registers do not add.
    thread: Vec<Option<V>>,
    registers: Vec<Vec<u32>>,
    /// The byte address of the coordinates `base`.
    origin: V,
    /// Per axis, by how much the box has been moved.
    shift: Vec<u32>,
    inside: HashMap<(usize, [u32; 2]), V>,
    rows: HashMap<Vec<u32>, V>,
}

impl<'a> Box<'a> {
    pub fn new(lower: &mut Lower, view: View, layout: &'a LinearLayout, coords: &[V], size: usize) -> Box<'a> {
        let rank = layout.shape().rank();
        let mut base = vec![];
        let mut thread = vec![];
        for axis in 0..rank {
            let part = lower.thread_coordinate(layout, axis);
            if layout.registers_add(axis) {
                base.push(lower.w.bin("add", "i32", &coords[axis], &part));
                thread.push(None);
            } else {
                base.push(coords[axis].clone());
                thread.push(Some(part));
            }
        }
        let mut origin = view.address.clone();
        for axis in 0..rank {
            origin = lower.moved(&origin, &base[axis], &view.strides[axis], size);
        }
        let registers = (0..rank).map(|a| layout.axis_bases(Level::Register, a)).collect();
        let (shift, inside, rows) = (vec![0; rank], HashMap::new(), HashMap::new());
        Box { view, layout, size, base, thread, registers, origin, shift, inside, rows }
    }

    /// Moves the box so far from where it was made.
    pub fn move_to(&mut self, shift: Vec<u32>) {
        self.shift = shift;
    }

    /// How far a register lies from the base along an axis: a constant, or a value where registers do not add.
    fn step(&self, lower: &mut Lower, axis: usize, r: u32) -> V {
        let own = apply(&self.registers[axis], r);
        match &self.thread[axis] {
            None => int(own + self.shift[axis]),
            Some(part) => {
                let step = lower.w.bin("xor", "i32", part, &int(own));
                lower.w.bin("add", "i32", &step, &int(self.shift[axis]))
            }
        }
    }

    /// Whether the element of register `r` lies in the view.
    pub fn mask(&mut self, lower: &mut Lower, r: u32) -> Option<V> {
        let mut all = self.view.valid.clone();
        // Axes along which the registers agree first: they have that much of the mask in common.
        let mut axes: Vec<usize> = (0..self.base.len()).collect();
        axes.sort_by_key(|&axis| self.registers[axis].iter().filter(|&&basis| basis != 0).count());
        for axis in axes {
            let key = (axis, [apply(&self.registers[axis], r), self.shift[axis]]);
            if !self.inside.contains_key(&key) {
                let step = self.step(lower, axis, r);
                let c = lower.w.bin("add", "i32", &self.base[axis], &step);
                let v = lower.w.icmp("ult", "i32", &c, &self.view.extents[axis]);
                self.inside.insert(key, v);
            }
            all = lower.w.and(all, Some(self.inside[&key].clone()));
        }
        all
    }

    pub fn address(&mut self, lower: &mut Lower, r: u32) -> V {
        let rank = self.base.len();
        // Steps along a unit stride are constants: they stay out of the row's address and fold into the access.
        let unit: Vec<bool> = (0..rank).map(|a| &*self.view.strides[a] == "1" && self.thread[a].is_none()).collect();
        let own: Vec<u32> = (0..rank).map(|a| apply(&self.registers[a], r)).collect();
        let row: Vec<u32> = (0..rank).flat_map(|a| if unit[a] { [0, 0] } else { [own[a], self.shift[a]] }).collect();
        if !self.rows.contains_key(&row) {
            let mut p = self.origin.clone();
            for axis in (0..rank).filter(|&a| !unit[a]) {
                let step = self.step(lower, axis, r);
                p = lower.moved(&p, &step, &self.view.strides[axis], self.size);
            }
            self.rows.insert(row.clone(), p);
        }
        let along = |a: usize| (own[a] + self.shift[a]) as usize * self.size;
        let bytes: usize = (0..rank).filter(|&a| unit[a]).map(along).sum();
        lower.w.bin("add", "i64", &self.rows[&row], &int(bytes))
    }

    /// Registers in groups of one access each.
    pub fn groups(&self, access: facts::Access) -> Vec<Vec<u32>> {
        accesses(self.layout, access)
    }
}

/// The registers of each access to a box.
fn accesses(layout: &LinearLayout, access: facts::Access) -> Vec<Vec<u32>> {
    match layout.shape().rank() {
        0 => (0..layout.registers() as u32).map(|r| vec![r]).collect(),
        _ => layout.vectorise(access.axis, access.vector).groups,
    }
}

impl Lower<'_> {
    /// Words loaded through a view of this parameter where `mask` holds, zeros elsewhere.
    pub(super) fn load_words(&mut self, param: usize, address: &V, words: Words, mask: Option<&V>) -> Vec<V> {
        let Words { bits, count } = words;
        let outs: Vec<String> = (0..count).map(|i| format!("${i}")).collect();
        let list = if count == 1 { outs[0].clone() } else { format!("{{{}}}", outs.join(",")) };
        let ty = struct_type(words.asm_type(), count);
        // PTX has byte-wide loads into wider registers only.
        let (kind, suffix) = if bits == 8 { ("u8", String::new()) } else { ("", words.suffix()) };
        let suffix = if bits == 8 { format!(".{kind}") } else { suffix };
        let suffix = self.eviction(param).to_owned() + &suffix;
        let out_constraints = vec![format!("={}", words.constraint()); count].join(",");
        let result = match mask {
            None => {
                let ptx = format!("ld.global{suffix} {list}, [${count}];");
                self.w.asm_effect(&ty, &ptx, &format!("{out_constraints},l"), &[("i64", address)])
            }
            Some(m) => {
                let width = if bits == 8 { 16 } else { bits };
                let zero: String = outs.iter().map(|o| format!("mov.b{width} {o}, 0; ")).collect();
                let ptx = format!("{zero}@${} ld.global{suffix} {list}, [${count}];", count + 1);
                self.w.asm_effect(&ty, &ptx, &format!("{out_constraints},l,b"), &[("i64", address), ("i1", m)])
            }
        };
        self.w.fields(words.asm_type(), count, &result)
    }

    /// The cache operator of accesses through a parameter: `cs`, "likely accessed once", has its lines evicted first.
    fn eviction(&self, param: usize) -> &'static str {
        if self.k.params[param].reuse == Reuse::EvictFirst { ".cs" } else { "" }
    }

    /// What asynchronous copies from a parameter end with where its lines are to be evicted first: the modifier, and
    /// the policy, i64.
    pub(super) fn eviction_policy(&mut self, param: usize) -> Option<(&'static str, V)> {
        if self.k.params[param].reuse != Reuse::EvictFirst {
            return None;
        }
        let w = &mut self.w;
        let create = "call i64 asm \"createpolicy.fractional.L2::evict_first.b64 $0;\", \"=l\"()";
        let policy = self.policy.get_or_insert_with(|| w.hoist(create)).clone();
        Some((".L2::cache_hint", policy))
    }

    fn store_words(&mut self, param: usize, address: &V, words: Words, values: &[V], mask: Option<&V>) {
        let suffix = if words.bits == 8 { ".u8".to_owned() } else { words.suffix() };
        let instruction = format!("st.global{}{suffix}", self.eviction(param));
        self.write_words(&instruction, address, words, values, mask);
    }

    /// An instruction that takes an address and words to be put there in some way.
    fn write_words(&mut self, instruction: &str, address: &V, words: Words, values: &[V], mask: Option<&V>) {
        let first = 1 + usize::from(mask.is_some());
        let ins: Vec<String> = (0..words.count).map(|i| format!("${}", i + first)).collect();
        let list = if words.count == 1 { ins[0].clone() } else { format!("{{{}}}", ins.join(",")) };
        let predicate = if mask.is_some() { "@$1 " } else { "" };
        let mut constraints = String::from(if mask.is_some() { "l,b" } else { "l" });
        let mut args = vec![("i64", address)];
        args.extend(mask.iter().map(|m| ("i1", *m)));
        for v in values {
            constraints.push(',');
            constraints.push_str(words.constraint());
            args.push((words.asm_type(), v));
        }
        self.w.asm_effect("void", &format!("{predicate}{instruction} [$0], {list};"), &constraints, &args);
    }

    pub(super) fn load(&mut self, id: OpId) -> Result<()> {
        let op = self.k.op(id);
        let OpKind::Load { has_other } = op.kind else { unreachable!("only called for loads") };
        let r = op.results[0];
        let (dtype, shape) = (self.k.ty(r).dtype(), self.k.ty(r).shape());
        if let Some(slots) = self.slots.remove(&id) {
            let form = Words::of(dtype, self.box_accesses(id).0[0].len());
            let words: Vec<V> = slots.iter().flat_map(|place| self.load_shared(place, form)).collect();
            let regs = self.box_elements(id, &words);
            return self.define(r, regs);
        }
        let layout = self.plan.versions[r.index()][0].clone();
        let coords = &op.operands[1..1 + shape.rank()];
        self.order(op.operands[0], Some(coords), &layout, false);
        let starts: Vec<V> = coords.iter().map(|&c| self.scalar(c)).collect();
        let (words, masks) = self.load_box(id, &starts);
        self.remember_loaded(id, &words);
        let mut regs = self.box_elements(id, &words);
        if has_other {
            let other = self.scalar(op.operands[1 + shape.rank()]);
            for (group, mask) in self.box_accesses(id).0.iter().zip(&masks) {
                for (&r, m) in group.iter().flat_map(|r| mask.iter().map(move |m| (r, m))) {
                    regs[r as usize] = self.w.select(m, llvm_type(dtype), &regs[r as usize], &other);
                }
            }
        }
        self.define(r, regs)
    }

    /// The words of a load's box at these coordinates, access by access: zeros outside of the view; and whether each
    /// access lies inside.
    fn load_box(&mut self, id: OpId, starts: &[V]) -> (Vec<V>, Vec<Option<V>>) {
        let op = self.k.op(id);
        let (dtype, shape) = (self.k.ty(op.results[0]).dtype(), self.k.ty(op.results[0]).shape());
        let layout = &self.plan.versions[op.results[0].index()][0];
        let access = facts::access(self.k, op.operands[0], shape, &op.operands[1..1 + shape.rank()]);
        self.global_access(op.operands[0], layout, access);
        let view = self.view(op.operands[0]);
        let mut place = Box::new(self, view, layout, starts, dtype.size());
        let (mut words, mut masks) = (vec![], vec![]);
        for group in place.groups(access) {
            let mask = place.mask(self, group[0]);
            let address = place.address(self, group[0]);
            words.extend(self.load_words(place.view.param, &address, Words::of(dtype, group.len()), mask.as_ref()));
            masks.push(mask);
        }
        (words, masks)
    }

    /// The registers of each access to a load's box, and the bytes of one.
    pub(super) fn box_accesses(&self, id: OpId) -> (Vec<Vec<u32>>, usize) {
        let op = self.k.op(id);
        let (dtype, shape) = (self.k.ty(op.results[0]).dtype(), self.k.ty(op.results[0]).shape());
        let layout = &self.plan.versions[op.results[0].index()][0];
        let access = facts::access(self.k, op.operands[0], shape, &op.operands[1..1 + shape.rank()]);
        let accesses = accesses(layout, access);
        let bytes = accesses[0].len() * dtype.size();
        (accesses, bytes)
    }

    /// The elements of a load's box from its words.
    fn box_elements(&mut self, id: OpId, words: &[V]) -> Vec<V> {
        let r = self.k.op(id).results[0];
        let dtype = self.k.ty(r).dtype();
        let (accesses, _) = self.box_accesses(id);
        let mut regs = vec![int(0); self.plan.versions[r.index()][0].registers()];
        for (group, words) in accesses.iter().zip(words.chunks(words.len() / accesses.len())) {
            let elements = unpack(&mut self.w, dtype, words, group.len());
            for (&r, x) in group.iter().zip(elements) {
                regs[r as usize] = x;
            }
        }
        regs
    }

    pub(super) fn store(&mut self, id: OpId) -> Result<()> {
        let op = self.k.op(id);
        let value = op.operands[1];
        let (dtype, shape) = (self.k.ty(value).dtype(), self.k.ty(value).shape());
        let layout = self.plan.work[&id].clone();
        let coords = &op.operands[2..];
        let access = facts::access(self.k, op.operands[0], shape, coords);
        let regs = self.get(value, &layout);
        self.order_store(id, &layout);
        let starts: Vec<V> = coords.iter().map(|&c| self.scalar(c)).collect();
        self.global_access(op.operands[0], &layout, access);
        let view = self.view(op.operands[0]);
        let owner = self.owner(&layout);
        let skip = layout.redundant().register;
        let mut place = Box::new(self, view, &layout, &starts, dtype.size());
        for group in place.groups(access) {
            if group[0] & skip != 0 {
                continue;
            }
            let mask = place.mask(self, group[0]);
            let mask = self.w.and(owner.clone(), mask);
            let address = place.address(self, group[0]);
            let elements: Vec<V> = group.iter().map(|&r| regs[r as usize].clone()).collect();
            if op.kind == OpKind::StoreAdd {
                self.add_elements(dtype, &address, &elements, mask);
                continue;
            }
            let words = pack(&mut self.w, dtype, &elements);
            self.store_words(place.view.param, &address, Words::of(dtype, group.len()), &words, mask.as_ref());
        }
        Ok(())
    }

    /// Adds neighbouring elements to those at an address: on Hopper up to 16 bytes of floats at once.
    fn add_elements(&mut self, dtype: DType, address: &V, elements: &[V], mask: Option<V>) {
        let size = dtype.size();
        let together = if self.sm >= 90 && dtype.is_float() { elements.len() } else { 1 };
        for (i, part) in elements.chunks(together).enumerate() {
            let at = self.w.bin("add", "i64", address, &int(i * together * size));
            let words = Words::of(dtype, part.len());
            let vector = if words.count == 1 { String::new() } else { format!(".v{}", words.count) };
            let pair = if part.len() > words.count { "x2" } else { "" };
            let native = match dtype {
                DType::F32 => format!("add{vector}.f32"),
                DType::F16 => format!("add.noftz{vector}.f16{pair}"),
                DType::BF16 if self.sm >= 90 => format!("add.noftz{vector}.bf16{pair}"),
                _ if size >= 4 => format!("add.u{}", 8 * size),
                _ => {
                    self.atomic_loop(AtomicOp::Add, dtype, &at, &part[0], mask.clone());
                    continue;
                }
            };
            let values = pack(&mut self.w, dtype, part);
            self.write_words(&format!("red.relaxed.gpu.global.{native}"), &at, words, &values, mask.as_ref());
        }
    }

    /// The address of the element at `index` (one i32 per dimension), and whether it lies in the view.
    pub(super) fn element(&mut self, view: &View, index: &[V], size: usize) -> (V, Option<V>) {
        let mut address = view.address.clone();
        let mut inside = view.valid.clone();
        for (d, i) in index.iter().enumerate() {
            address = self.moved(&address, i, &view.strides[d], size);
            let ok = self.w.icmp("ult", "i32", i, &view.extents[d]);
            inside = self.w.and(inside, Some(ok));
        }
        (address, inside)
    }

    pub(super) fn gather(&mut self, id: OpId) -> Result<()> {
        let op = self.k.op(id);
        let OpKind::Gather { masked } = op.kind else { unreachable!("only called for gathers") };
        let r = op.results[0];
        let dtype = self.k.ty(r).dtype();
        let layout = self.plan.versions[r.index()][0].clone();
        let tiles: Vec<Vec<V>> = op.operands[1..].iter().map(|&v| self.get(v, &layout)).collect();
        let rank = tiles.len() - if masked { 2 } else { 0 };
        self.order(op.operands[0], None, &layout, false);
        let view = self.view(op.operands[0]);
        let mut regs = vec![];
        for j in 0..layout.registers() {
            let index: Vec<V> = tiles[..rank].iter().map(|t| t[j].clone()).collect();
            let (address, inside) = self.element(&view, &index, dtype.size());
            let mask = self.w.and(masked.then(|| tiles[rank][j].clone()), inside);
            let words = self.load_words(view.param, &address, Words::of(dtype, 1), mask.as_ref());
            let x = unpack(&mut self.w, dtype, &words, 1)[0].clone();
            regs.push(match (masked, &mask) {
                (true, Some(m)) => self.w.select(m, llvm_type(dtype), &x, &tiles[rank + 1][j]),
                _ => x,
            });
        }
        self.define(r, regs)
    }

    pub(super) fn scatter(&mut self, id: OpId) -> Result<()> {
        let op = self.k.op(id);
        let OpKind::Scatter { masked } = op.kind else { unreachable!("only called for scatters") };
        let dtype = self.k.ty(op.operands[1]).dtype();
        let layout = self.plan.work[&id].clone();
        let tiles: Vec<Vec<V>> = op.operands[1..].iter().map(|&v| self.get(v, &layout)).collect();
        let rank = tiles.len() - 1 - usize::from(masked);
        self.order(op.operands[0], None, &layout, true);
        let view = self.view(op.operands[0]);
        let owner = self.owner(&layout);
        let skip = layout.redundant().register;
        for j in (0..layout.registers()).filter(|&j| j as u32 & skip == 0) {
            let index: Vec<V> = tiles[1..1 + rank].iter().map(|t| t[j].clone()).collect();
            let (address, inside) = self.element(&view, &index, dtype.size());
            let mask = self.w.and(masked.then(|| tiles[1 + rank][j].clone()), inside);
            let mask = self.w.and(owner.clone(), mask);
            let words = pack(&mut self.w, dtype, &tiles[0][j..=j]);
            self.store_words(view.param, &address, Words::of(dtype, 1), &words, mask.as_ref());
        }
        Ok(())
    }

    // -- atomics -----------------------------------------------------------------------------------------------------

    pub(super) fn atomic(&mut self, id: OpId) -> Result<()> {
        let op = self.k.op(id);
        let OpKind::Atomic { op: what, masked } = op.kind else { unreachable!("only called for atomics") };
        let dtype = self.k.ty(op.operands[1]).dtype();
        let layout = self.plan.work[&id].clone();
        let tiles: Vec<Vec<V>> = op.operands[1..].iter().map(|&v| self.get(v, &layout)).collect();
        let rank = tiles.len() - 1 - usize::from(masked);
        self.order(op.operands[0], None, &layout, true);
        let view = self.view(op.operands[0]);
        let owner = self.owner(&layout);
        let copies = layout.redundant().register;
        let mut regs: Vec<V> = vec![int(0); layout.registers()];
        for j in (0..layout.registers()).filter(|&j| j as u32 & copies == 0) {
            let index: Vec<V> = tiles[1..1 + rank].iter().map(|t| t[j].clone()).collect();
            let (address, inside) = self.element(&view, &index, dtype.size());
            let mask = self.w.and(masked.then(|| tiles[1 + rank][j].clone()), inside);
            let mask = self.w.and(owner.clone(), mask);
            regs[j] = self.atomic_element(what, dtype, &address, &tiles[0][j], mask);
        }
        let Some(&r) = op.results.first().filter(|&&r| self.demanded(r)) else { return Ok(()) };
        if owner.is_some() {
            // Those that hold copies were told nothing.
            regs = self.from_owners(&regs, dtype, &layout)?;
        } else if copies != 0 {
            // Copies within a thread: the register with the same element.
            let flat: HashMap<u32, usize> =
                (0..layout.registers()).rev().map(|j| (layout.flat(j as u32, 0, 0), j)).collect();
            regs = (0..layout.registers()).map(|j| regs[flat[&layout.flat(j as u32, 0, 0)]].clone()).collect();
        }
        self.define(r, regs)
    }

    fn atomic_element(&mut self, what: AtomicOp, dtype: DType, address: &V, x: &V, mask: Option<V>) -> V {
        let wide = dtype.size() == 8;
        let b = if wide { "b64" } else { "b32" };
        let u = if wide { "u64" } else { "u32" };
        let s = if wide { "s64" } else { "s32" };
        let native = match (what, dtype) {
            (AtomicOp::Add, DType::F32) => Some("add.f32".to_owned()),
            (AtomicOp::Add, DType::F16) => Some("add.noftz.f16".to_owned()),
            (AtomicOp::Add, DType::BF16) if self.sm >= 90 => Some("add.noftz.bf16".to_owned()),
            _ if dtype.size() < 4 => None,
            (AtomicOp::Exchange, _) => Some(format!("exch.{b}")),
            (_, DType::F32) => None,
            (AtomicOp::Add, _) => Some(format!("add.{u}")),
            (AtomicOp::Min, d) => Some(format!("min.{}", if d.is_signed() { s } else { u })),
            (AtomicOp::Max, d) => Some(format!("max.{}", if d.is_signed() { s } else { u })),
            (AtomicOp::And, _) => Some(format!("and.{b}")),
            (AtomicOp::Or, _) => Some(format!("or.{b}")),
            (AtomicOp::Xor, _) => Some(format!("xor.{b}")),
        };
        let Some(native) = native else { return self.atomic_loop(what, dtype, address, x, mask) };
        let words = Words::of(dtype, 1);
        let (ty, c) = if dtype == DType::F32 && native == "add.f32" {
            ("float", "f")
        } else {
            (words.asm_type(), words.constraint())
        };
        let value = if ty == "float" { x.clone() } else { to_bits(&mut self.w, dtype, x) };
        let zero = match ty {
            "float" => "mov.b32 $0, 0; ",
            "i16" => "mov.b16 $0, 0; ",
            "i32" => "mov.b32 $0, 0; ",
            _ => "mov.b64 $0, 0; ",
        };
        let old = match &mask {
            None => {
                let ptx = format!("atom.global.relaxed.gpu.{native} $0, [$1], $2;");
                self.w.asm_effect(ty, &ptx, &format!("={c},l,{c}"), &[("i64", address), (ty, &value)])
            }
            Some(m) => {
                let ptx = format!("{zero}@$3 atom.global.relaxed.gpu.{native} $0, [$1], $2;");
                self.w.asm_effect(ty, &ptx, &format!("={c},l,{c},b"), &[("i64", address), (ty, &value), ("i1", m)])
            }
        };
        if ty == "float" { old } else { from_bits(&mut self.w, dtype, &old) }
    }

    /// What the hardware has no instruction for: compare and swap the aligned 32-bit word until nobody came between.
    fn atomic_loop(&mut self, what: AtomicOp, dtype: DType, address: &V, x: &V, mask: Option<V>) -> V {
        let bits = 8 * dtype.size();
        let own = memory_type(dtype);
        let w = &mut self.w;
        let [start, turn, done] = ["atomic", "swap", "swapped"].map(|s| w.label(s));
        let aligned = w.op(format_args!("and i64 {address}, -4"));
        let offset = w.op(format_args!("and i64 {address}, 3"));
        let offset = w.op(format_args!("trunc i64 {offset} to i32"));
        let shift = w.op(format_args!("shl i32 {offset}, 3"));
        let ones = if bits == 32 { u32::MAX } else { (1u32 << bits) - 1 } as i32;
        let field = w.op(format_args!("shl i32 {ones}, {shift}"));
        let keep = w.op(format_args!("xor i32 {field}, -1"));
        let before = w.block.clone();
        let condition = mask.unwrap_or_else(|| "true".into());
        w.branch(&condition, &start, &done);
        w.start(&start);
        let first = w.asm_effect("i32", "ld.global.relaxed.gpu.b32 $0, [$1];", "=r,l", &[("i64", &aligned)]);
        w.jump(&turn);
        w.start(&turn);
        let seen = format!("%n{}", w.fresh());
        let word = w.op(format_args!("phi i32 [ {first}, %{start} ], [ {seen}, %{turn} ]"));
        let old = w.op(format_args!("lshr i32 {word}, {shift}"));
        let old = w.convert("trunc", "i32", &old, own);
        let old = from_bits(w, dtype, &old);
        let new = match what {
            AtomicOp::Add => math::binary(w, BinaryOp::Add, dtype, &old, x),
            AtomicOp::Min => math::binary(w, BinaryOp::Min, dtype, &old, x),
            AtomicOp::Max => math::binary(w, BinaryOp::Max, dtype, &old, x),
            AtomicOp::And => math::binary(w, BinaryOp::And, dtype, &old, x),
            AtomicOp::Or => math::binary(w, BinaryOp::Or, dtype, &old, x),
            AtomicOp::Xor => math::binary(w, BinaryOp::Xor, dtype, &old, x),
            AtomicOp::Exchange => x.clone(),
        };
        let new = to_bits(w, dtype, &new);
        let new = w.convert("zext", own, &new, "i32");
        let new = w.op(format_args!("shl i32 {new}, {shift}"));
        let rest = w.op(format_args!("and i32 {word}, {keep}"));
        let new = w.op(format_args!("or i32 {rest}, {new}"));
        let args = [("i64", &aligned), ("i32", &word), ("i32", &new)];
        let found = w.asm_effect("i32", "atom.global.relaxed.gpu.cas.b32 $0, [$1], $2, $3;", "=r,l,r,r", &args);
        w.alias(&seen, "i32", &found);
        let same = w.icmp("eq", "i32", &found, &word);
        w.branch(&same, &done, &turn);
        w.start(&done);
        let ty = llvm_type(dtype);
        let zero = super::text::constant(dtype, crate::ir::Bits(0));
        w.op(format_args!("phi {ty} [ {zero}, %{before} ], [ {old}, %{turn} ]"))
    }
}
