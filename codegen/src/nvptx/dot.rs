//! Matrix products: `mma.sync` on fragments in registers, or multiply-adds on operands in shared memory.
//!
//! The layouts (`gpu::layout`, `mma_operand` and `mma_accumulator`) number registers so that a fragment is a run of
//! them: of A its 32-bit words, then fragments along K, then along M; of B words, K, N; of the accumulator four
//! elements, then N, then M.

use super::lower::{Lower, Result, apply};
use super::math;
use super::memory::{Words, pack};
use super::pipeline::FetchedOperand;
use super::text::{V, int, llvm_type, struct_type};
use crate::gpu::layout::{LANE_BITS, Level, LinearLayout, SharedLayout, VectorAccess, wavefronts_of};
use crate::gpu::mma::{DotPlan, MmaKind, MmaPlan};
use crate::ir::{DType, OpId};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// How many products a warp has, and how many fragments each operand or accumulator of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiling {
    pub batch: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

impl MmaKind {
    /// Bytes of an operand's element in its fragment.
    pub fn bytes(self) -> usize {
        match self {
            MmaKind::F16 | MmaKind::BF16 => 2,
            MmaKind::Tf32 | MmaKind::Tf32x3 => 4,
            MmaKind::I8 | MmaKind::U8 => 1,
        }
    }

    fn instruction(self) -> &'static str {
        match self {
            MmaKind::F16 => "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
            MmaKind::BF16 => "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
            MmaKind::Tf32 | MmaKind::Tf32x3 => "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
            MmaKind::I8 => "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32",
            MmaKind::U8 => "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32",
        }
    }
}

pub(super) fn tiling(plan: &MmaPlan) -> Tiling {
    let per_word = 4 / plan.kind.bytes();
    let shape = plan.acc.shape();
    let k = plan.a.shape().dim(shape.rank() - 1) / (8 * per_word);
    let (a, b, acc) = (plan.a.registers(), plan.b.registers(), plan.acc.registers());
    // The batch's registers are the outermost, those that all three have.
    let batch = match shape.rank() {
        2 => 1,
        _ => plan.acc.axis_bases(Level::Register, 0).iter().fold(1, |n, b| n << u32::from(*b != 0)),
    };
    let m = a / (4 * per_word * k * batch);
    let n = b / (2 * per_word * k * batch);
    debug_assert_eq!(4 * m * n * batch, acc, "fragments of the operands and the accumulator meet");
    Tiling { batch, m, n, k }
}

impl Lower<'_> {
    pub(super) fn dot(&mut self, id: OpId) -> Result<()> {
        let op = self.k.op(id);
        let plan = self.plan;
        match &plan.dots[&id] {
            DotPlan::Fma { layout } => self.dot_fma(id, layout),
            DotPlan::Wgmma(m) => self.dot_wgmma(id, m),
            DotPlan::Mma(m) => {
                let mut a = self.operand(id, m, 0);
                let mut b = self.operand(id, m, 1);
                let mut acc = self.get(op.operands[2], &m.acc);
                let t = tiling(m);
                let mut ready = self.fragments(&mut a, &mut b, t, 0);
                for step in 0..t.batch * t.k {
                    // The next step's fragments are on their way during this step's products.
                    let next = (step + 1 < t.batch * t.k).then(|| self.fragments(&mut a, &mut b, t, step + 1));
                    let each = acc.len() / t.batch;
                    let acc = &mut acc[step / t.k * each..][..each];
                    self.mma_step(m.kind, &ready.0, &ready.1, acc);
                    if let Some(next) = next {
                        ready = next;
                    }
                }
                self.define(op.results[0], acc)
            }
        }
    }

    /// An operand: in the ring of the loop around, or in registers.
    fn operand(&mut self, id: OpId, m: &MmaPlan, i: usize) -> Source {
        let (v, layout) = (self.k.op(id).operands[i], if i == 0 { &m.a } else { &m.b });
        match self.fetched(id, i, layout) {
            Some(f) => Source::Shared(f),
            None => {
                let dtype = self.k.ty(v).dtype();
                let regs = self.get(v, layout);
                Source::Registers(self.operand_words(m.kind, dtype, &regs))
            }
        }
    }

    /// Those of one step along K; steps run through one product after the other.
    fn fragments(&mut self, a: &mut Source, b: &mut Source, t: Tiling, step: usize) -> (Vec<Fragment>, Vec<Fragment>) {
        let (product, k) = (step / t.k, step % t.k);
        let a = (0..t.m).map(|i| self.fragment(a, 4, (product * t.m + i) * t.k + k)).collect();
        let b = (0..t.n).map(|j| self.fragment(b, 2, (product * t.n + j) * t.k + k)).collect();
        (a, b)
    }

    fn fragment(&mut self, source: &mut Source, words: usize, index: usize) -> Fragment {
        match source {
            Source::Registers(w) => w.fragment(words, index),
            Source::Shared(f) => Fragment { high: self.fetch(f, index * words, words), low: vec![] },
        }
    }

    /// The 32-bit words of an operand's fragments; for split products the high and the low parts.
    pub(super) fn operand_words(&mut self, kind: MmaKind, dtype: DType, regs: &[V]) -> OperandWords {
        let mut high = vec![];
        let mut low = vec![];
        match kind {
            MmaKind::Tf32 | MmaKind::Tf32x3 => {
                for x in regs {
                    let h = self.tf32(x);
                    if kind == MmaKind::Tf32x3 {
                        let rounded = self.w.op(format_args!("bitcast i32 {h} to float"));
                        let rest = self.w.op(format_args!("fsub float {x}, {rounded}"));
                        let l = self.tf32(&rest);
                        low.push(l);
                    }
                    high.push(h);
                }
            }
            _ => {
                let narrow = dtype.is_fp8();
                for group in regs.chunks(4 / kind.bytes()) {
                    let group: Vec<V> = if narrow {
                        group.iter().map(|x| math::cast(&mut self.w, dtype, DType::BF16, x)).collect()
                    } else {
                        group.to_vec()
                    };
                    let dtype = if narrow { DType::BF16 } else { dtype };
                    high.extend(pack(&mut self.w, dtype, &group));
                }
            }
        }
        OperandWords { high, low }
    }

    /// Elements as products by warpgroups read them: packed, f32 rounded to tf32.
    pub(super) fn packed(&mut self, dtype: DType, elements: &[V]) -> Vec<V> {
        if dtype == DType::F32 {
            return elements.iter().map(|x| self.tf32(x)).collect();
        }
        pack(&mut self.w, dtype, elements)
    }

    fn tf32(&mut self, x: &V) -> V {
        self.w.asm("i32", "cvt.rna.tf32.f32 $0, $1;", "=r,f", &[("float", x)])
    }

    /// All products of one step along K: `a[i]` (fragments along M) with `b[j]` (along N).
    pub(super) fn mma_step(&mut self, kind: MmaKind, a: &[Fragment], b: &[Fragment], acc: &mut [V]) {
        let n = b.len();
        for (i, a) in a.iter().enumerate() {
            for (j, b) in b.iter().enumerate() {
                let at = (i * n + j) * 4;
                if kind == MmaKind::Tf32x3 {
                    // Small products first.
                    self.mma(kind, &a.low, &b.high, &mut acc[at..at + 4]);
                    self.mma(kind, &a.high, &b.low, &mut acc[at..at + 4]);
                }
                self.mma(kind, &a.high, &b.high, &mut acc[at..at + 4]);
            }
        }
    }

    fn mma(&mut self, kind: MmaKind, a: &[V], b: &[V], acc: &mut [V]) {
        let integer = matches!(kind, MmaKind::I8 | MmaKind::U8);
        let (ty, out) = if integer { ("i32", "=r") } else { ("float", "=f") };
        let ptx = format!("{} {{$0,$1,$2,$3}}, {{$4,$5,$6,$7}}, {{$8,$9}}, {{$0,$1,$2,$3}};", kind.instruction());
        let constraints = format!("{0},{0},{0},{0},r,r,r,r,r,r,0,1,2,3", out);
        let mut args: Vec<(&str, &V)> = a.iter().chain(b).map(|v| ("i32", v)).collect();
        args.extend(acc.iter().map(|v| (ty, v)));
        let result = self.w.asm(&struct_type(ty, 4), &ptx, &constraints, &args);
        acc.clone_from_slice(&self.w.fields(ty, 4, &result));
    }

    // -- multiply-adds -----------------------------------------------------------------------------------------------

    /// Both operands whole in shared memory as 32-bit numbers; a loop over K in which every thread reads its rows of A
    /// and columns of B. Of tiles of rank 3 one matrix lies after the other.
    fn dot_fma(&mut self, id: OpId, layout: &LinearLayout) -> Result<()> {
        let op = self.k.op(id);
        let dtype = self.k.ty(op.operands[0]).dtype();
        let acc_type = self.k.ty(op.results[0]).dtype();
        let ty = llvm_type(acc_type);
        let (a, b) = (self.k.ty(op.operands[0]).shape(), self.k.ty(op.operands[1]).shape());
        let [products, m, depth, n] = self.k.dot_extents(op);
        let acc = self.get(op.operands[2], layout);
        let base = self.scratch(4 * (a.numel() + b.numel()));
        for (v, start) in [(op.operands[0], 0), (op.operands[1], 4 * a.numel())] {
            let (regs, from) = self.get_home(v);
            let thread = self.thread_bytes(from.thread_bases().map(|b| 4 * b).collect());
            let skip = from.redundant().register;
            let rows = SharedLayout::row_major(*from.shape()).expect("extents of a layout are powers of two");
            self.shared_tile("stores for multiply-adds", acc_type, &from, &rows, &VectorAccess::single(&from));
            for r in (0..from.registers() as u32).filter(|r| r & skip == 0) {
                let x = math::cast(&mut self.w, dtype, acc_type, &regs[r as usize]);
                let word = pack(&mut self.w, acc_type, &[x]);
                let place = self.shared_place(&base, &thread, 4 * from.flat(r, 0, 0));
                let place = self.w.bin("add", "i32", &place, &int(start));
                self.store_shared(&place, Words::of(acc_type, 1), &word, None);
            }
        }
        self.scratch_written();

        // The registers' rows and columns, each with the number of its product; addresses advance with k.
        let first = a.rank() - 2;
        for (shape, axis, step, matrix) in [(a, first, depth, m * depth), (b, first + 1, 1, depth * n)] {
            let word = |lane| {
                let at = layout.apply(0, lane, 0).map(|c| c as usize);
                4 * (at[axis] * step + if first > 0 { at[0] * matrix } else { 0 }) as u32
            };
            let lanes: Vec<u32> = (0..1 << LANE_BITS).map(word).collect();
            self.shared_access("loads for multiply-adds", acc_type, shape, wavefronts_of(&lanes, 4));
        }
        let rows = layout.axis_bases(Level::Register, first);
        let columns = layout.axis_bases(Level::Register, first + 1);
        let matrices = if products > 1 { layout.axis_bases(Level::Register, 0) } else { vec![] };
        let thread_row = self.thread_coordinate(layout, first);
        let thread_column = self.thread_coordinate(layout, first + 1);
        let thread_matrix = (products > 1).then(|| self.thread_coordinate(layout, 0));
        let mut row_at: BTreeMap<(u32, u32), V> = BTreeMap::new();
        let mut column_at: BTreeMap<(u32, u32), V> = BTreeMap::new();
        for r in 0..layout.registers() as u32 {
            let (matrix, row, column) = (apply(&matrices, r), apply(&rows, r), apply(&columns, r));
            // Where the matrix of this product starts, of an operand with so many elements in each.
            let start = |lower: &mut Self, elements: usize| match &thread_matrix {
                Some(thread) => {
                    let c = lower.w.bin("xor", "i32", thread, &int(matrix));
                    let c = lower.w.bin("mul", "i32", &c, &int(4 * elements));
                    lower.w.bin("add", "i32", &base, &c)
                }
                None => base.clone(),
            };
            if let Entry::Vacant(slot) = row_at.entry((matrix, row)) {
                let start = start(self, m * depth);
                let c = self.w.bin("xor", "i32", &thread_row, &int(row));
                let c = self.w.bin("mul", "i32", &c, &int(4 * depth));
                let c = self.w.bin("add", "i32", &start, &c);
                slot.insert(c);
            }
            if let Entry::Vacant(slot) = column_at.entry((matrix, column)) {
                let start = start(self, depth * n);
                let c = self.w.bin("xor", "i32", &thread_column, &int(column));
                let c = self.w.bin("mul", "i32", &c, &int(4));
                let c = self.w.bin("add", "i32", &start, &c);
                let c = self.w.bin("add", "i32", &c, &int(4 * a.numel()));
                slot.insert(c);
            }
        }
        let unroll = depth.min(4);
        let [pre, turn, done] = ["pre", "fma", "done"].map(|s| self.w.label(s));
        self.w.jump(&pre);
        self.w.start(&pre);
        self.w.jump(&turn);
        self.w.start(&turn);
        let next = format!("%n{}", self.w.fresh());
        let k = self.w.op(format_args!("phi i32 [ 0, %{pre} ], [ {next}, %{turn} ]"));
        let nexts: Vec<String> = acc.iter().map(|_| format!("%n{}", self.w.fresh())).collect();
        let mut sums: Vec<V> = vec![];
        for (x, name) in acc.iter().zip(&nexts) {
            sums.push(self.w.op(format_args!("phi {ty} [ {x}, %{pre} ], [ {name}, %{turn} ]")));
        }
        let row_step = self.w.bin("mul", "i32", &k, &int(4));
        let column_step = self.w.bin("mul", "i32", &k, &int(4 * n));
        for u in 0..unroll {
            let read = |lower: &mut Self, places: &BTreeMap<(u32, u32), V>, step: &V, offset: usize| {
                let mut values = BTreeMap::new();
                for (&c, place) in places {
                    let p = lower.w.bin("add", "i32", place, step);
                    let p = lower.w.bin("add", "i32", &p, &int(offset));
                    let word = lower.load_shared(&p, Words::of(acc_type, 1));
                    values.insert(c, super::memory::unpack(&mut lower.w, acc_type, &word, 1)[0].clone());
                }
                values
            };
            let left = read(self, &row_at, &row_step, 4 * u);
            let right = read(self, &column_at, &column_step, 4 * n * u);
            for (r, sum) in sums.iter_mut().enumerate() {
                let matrix = apply(&matrices, r as u32);
                let (x, y) = (&left[&(matrix, apply(&rows, r as u32))], &right[&(matrix, apply(&columns, r as u32))]);
                *sum = if acc_type == DType::F32 {
                    math::fma(&mut self.w, x, y, sum)
                } else {
                    let p = self.w.bin("mul", ty, x, y);
                    self.w.bin("add", ty, &p, sum)
                };
            }
        }
        for (x, name) in sums.iter().zip(&nexts) {
            self.w.alias(name, ty, x);
        }
        self.w.line(format_args!("{next} = add i32 {k}, {unroll}"));
        let more = self.w.icmp("slt", "i32", &next.as_str().into(), &int(depth));
        self.w.branch(&more, &turn, &done);
        self.w.start(&done);
        self.define(op.results[0], sums)
    }
}

/// Where an operand's fragments come from.
enum Source {
    Registers(OperandWords),
    Shared(FetchedOperand),
}

/// The words of an operand.
pub(super) struct OperandWords {
    pub high: Vec<V>,
    /// Of split products only.
    pub low: Vec<V>,
}

/// The words of one fragment.
pub(super) struct Fragment {
    pub high: Vec<V>,
    pub low: Vec<V>,
}

impl OperandWords {
    /// Fragment `index`, of `words` words.
    pub fn fragment(&self, words: usize, index: usize) -> Fragment {
        let cut = |v: &Vec<V>| v.get(index * words..(index + 1) * words).unwrap_or_default().to_vec();
        Fragment { high: cut(&self.high), low: cut(&self.low) }
    }
}
