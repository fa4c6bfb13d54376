//! Loops and branches around random statements.

use super::generate::{Entry, Generator};
use super::rng::SMALL;
use kiln_codegen::ir::{BinaryOp, Bits, CmpOp, DType, OpKind, Type, ValueId};

impl Generator {
    pub(super) fn control(&mut self) {
        self.depth += 1;
        match self.rng.below(5) {
            0 | 1 => self.branch(),
            2 => self.while_loop(),
            _ => self.for_loop(),
        }
        self.depth -= 1;
    }

    fn body(&mut self) {
        for _ in 0..self.rng.between(1, 5) {
            if self.budget > 0 {
                self.statement();
            }
        }
    }

    /// Closes the open region, yielding a value of each type, and forgets what it defined.
    fn close(&mut self, types: &[Type], known: usize) {
        let values: Vec<ValueId> = types.iter().map(|t| self.value(t.dtype(), t.shape()).v).collect();
        self.b.close(&values);
        self.pool.truncate(known);
    }

    fn results(&mut self, kind: OpKind, operands: &[ValueId], types: &[Type], regions: &[kiln_codegen::ir::RegionId]) {
        let op = self.b.emit_with_regions(kind, operands, types, regions);
        for v in self.b.results(op) {
            self.push(v, false);
        }
    }

    fn carried(&mut self) -> Vec<Entry> {
        let n = self.rng.below(4);
        (0..n).map(|_| self.any(|_| true)).collect()
    }

    fn branch(&mut self) {
        let c = self.value(DType::Bool, kiln_codegen::ir::Shape::SCALAR).v;
        let types: Vec<Type> = self.carried().iter().map(|e| self.b.ty(e.v)).collect();
        let known = self.pool.len();
        let (then, _) = self.b.open(&[]);
        self.body();
        self.close(&types, known);
        let (otherwise, _) = self.b.open(&[]);
        if self.rng.chance(60) {
            self.body();
        }
        self.close(&types, known);
        self.results(OpKind::If, &[c], &types, &[then, otherwise]);
    }

    /// From 0 to 7: a constant, or known only when the kernel runs.
    fn bound(&mut self) -> ValueId {
        if self.rng.chance(50) {
            let n = self.rng.pick(&[0, 1, 2, 3, 5]);
            return self.constant_i32(n);
        }
        let x = self.value(DType::I32, kiln_codegen::ir::Shape::SCALAR).v;
        let mask = self.b.constant(DType::I32, kiln_codegen::ir::Shape::SCALAR, Bits(SMALL as u64));
        self.b.binary(BinaryOp::And, x, mask)
    }

    fn for_loop(&mut self) {
        let high = self.bound();
        let low = if self.rng.chance(70) { self.constant_i32(0) } else { self.bound() };
        let step = self.rng.between(1, 3);
        let step = self.constant_i32(step);
        let inits = self.carried();
        let types: Vec<Type> = inits.iter().map(|e| self.b.ty(e.v)).collect();
        let known = self.pool.len();
        let (region, args) = self.b.open(&[&[Type::scalar(DType::I32)], &types[..]].concat());
        args.into_iter().for_each(|a| self.push(a, false));
        self.body();
        self.close(&types, known);
        let operands: Vec<ValueId> = [low, high, step].into_iter().chain(inits.iter().map(|e| e.v)).collect();
        let stages = self.rng.below(4) as u8;
        self.results(OpKind::For { stages }, &operands, &types, &[region]);
    }

    /// Counts down from a bound, and may stop early.
    fn while_loop(&mut self) {
        let counter = self.bound();
        let inits = self.carried();
        let types: Vec<Type> =
            [Type::scalar(DType::I32)].into_iter().chain(inits.iter().map(|e| self.b.ty(e.v))).collect();
        let known = self.pool.len();
        let (condition, args) = self.b.open(&types);
        args.iter().for_each(|&a| self.push(a, false));
        let zero = self.constant_i32(0);
        let mut more = self.b.compare(CmpOp::Gt, args[0], zero);
        if self.rng.chance(30) {
            self.body();
            let c = self.value(DType::Bool, kiln_codegen::ir::Shape::SCALAR).v;
            more = self.b.binary(BinaryOp::And, more, c);
        }
        self.b.close(&[more]);
        self.pool.truncate(known);
        let (body, args) = self.b.open(&types);
        args.iter().for_each(|&a| self.push(a, false));
        self.body();
        let one = self.constant_i32(1);
        let mut values = vec![self.b.binary(BinaryOp::Sub, args[0], one)];
        values.extend(types[1..].iter().map(|t| self.value(t.dtype(), t.shape()).v).collect::<Vec<_>>());
        self.b.close(&values);
        self.pool.truncate(known);
        let operands: Vec<ValueId> = [counter].into_iter().chain(inits.iter().map(|e| e.v)).collect();
        self.results(OpKind::While, &operands, &types, &[condition, body]);
    }
}
