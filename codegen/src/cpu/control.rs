//! Loops, branches, assertions and prints.
//!
//! Carried scalars and views are parameters of Cranelift blocks; carried tiles have an array each, which the regions see
//! as their argument and the operation as its result.

use super::emit::{Emitter, ViewValue, clif_type};
use super::plan::{Layout, Place};
use crate::ir::{DType, Op, OpId, Type, ValueId};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{Block, InstBuilder, Type as ClifType, Value, types};

impl<'a> Emitter<'a, '_> {
    /// The SSA values of a scalar or view; none for a tile.
    fn flatten(&mut self, v: ValueId, out: &mut Vec<Value>) {
        match self.k.ty(v) {
            Type::Tile(_, s) if s.rank() > 0 => {}
            Type::Tile(..) => out.push(self.scalar(v)),
            Type::View(..) => {
                let view = self.views[&v].clone();
                out.push(view.address);
                out.extend(&view.extents);
                out.extend(&view.strides);
                out.push(view.valid.unwrap_or_else(|| self.b.ins().iconst(types::I8, 1)));
            }
            Type::Channel | Type::Slot => unreachable!("neither is carried"),
        }
    }

    fn flatten_all(&mut self, vs: &[ValueId]) -> Vec<Value> {
        let mut out = vec![];
        vs.iter().for_each(|&v| self.flatten(v, &mut out));
        out
    }

    /// The Cranelift types of a value's [`Self::flatten`]ed form.
    fn flat_types(&self, vs: &[ValueId]) -> Vec<ClifType> {
        let mut out = vec![];
        for &v in vs {
            match self.k.ty(v) {
                Type::Tile(_, s) if s.rank() > 0 => {}
                Type::Tile(d, _) => out.push(clif_type(d, 1)),
                Type::View(_, rank) => {
                    out.extend(vec![types::I64; 1 + 2 * rank as usize]);
                    out.push(types::I8);
                }
                Type::Channel | Type::Slot => unreachable!("neither is carried"),
            }
        }
        out
    }

    /// Gives values their SSA values, in the order of [`Self::flatten`].
    fn bind(&mut self, vs: &[ValueId], flat: &[Value]) {
        let mut flat = flat.iter().copied();
        let mut next = || flat.next().expect("as many values as types");
        for &v in vs {
            match self.k.ty(v) {
                Type::Tile(_, s) if s.rank() > 0 => {}
                Type::Tile(..) => self.scalars[v.index()] = Some(next()),
                Type::View(_, rank) => {
                    let address = next();
                    let extents = (0..rank).map(|_| next()).collect();
                    let strides = (0..rank).map(|_| next()).collect();
                    let valid = next();
                    let valid = (rank == 0).then_some(valid);
                    self.views.insert(v, ViewValue { address, extents, strides, valid });
                }
                Type::Channel | Type::Slot => unreachable!("neither is carried"),
            }
        }
    }

    fn params(&mut self, block: Block, types: &[ClifType]) -> Vec<Value> {
        types.iter().map(|&t| self.b.append_block_param(block, t)).collect()
    }

    /// Fills the arrays of carried tiles with their first values.
    fn enter_carried(&mut self, inits: &[ValueId], results: &[ValueId]) {
        for (&init, &result) in inits.iter().zip(results) {
            if let Place::Tile(l) = self.plan.place(result) {
                self.copy_to(init, l);
            }
        }
    }

    /// Ends a region: copies yielded tiles to the results' arrays and returns the flattened rest.
    fn leave(&mut self, id: OpId, results: &[ValueId]) -> Vec<Value> {
        let k = self.k;
        let yielded = &k.op(id).operands;
        let flat = self.flatten_all(yielded);
        let mut late = vec![];
        for (i, (&v, &result)) in yielded.iter().zip(results).enumerate() {
            let place = self.plan.place(result);
            let Place::Tile(l) = place else { continue };
            if self.plan.place(v) == place {
                continue;
            }
            match self.plan.copy(id, i, self.k.ty(v).shape()) {
                Some(between) => {
                    self.copy_to(v, between);
                    late.push((v, between, l));
                }
                None => late.push((v, l, l)),
            }
        }
        for (v, from, to) in late {
            if from == to {
                self.copy_to(v, to);
            } else {
                self.copy_layout(self.k.ty(v), from, to);
            }
        }
        flat
    }

    fn copy_layout(&mut self, ty: Type, from: Layout, to: Layout) {
        let (dtype, shape) = (ty.dtype(), ty.shape());
        let vec = (0..shape.rank()).rev().find(|&a| dtype.size() < 8 && shape.dim(a) >= 4);
        self.nest(shape, vec, None, &mut |s, p| {
            let x = s.read_tile(from, dtype, p);
            s.write_tile(to, dtype, p, x);
        });
    }

    pub(super) fn emit_for(&mut self, id: OpId) {
        let k = self.k;
        let op = k.op(id);
        let inits = &op.operands[3..];
        let args = &k.region(op.regions[0]).args;
        self.enter_carried(inits, &op.results);
        let [lo, hi, step] = [0, 1, 2].map(|i| {
            let v = self.scalar(op.operands[i]);
            self.b.ins().sextend(types::I64, v)
        });
        if k.constant(op.operands[2]).is_none_or(|step| step.to_i64(DType::I32) <= 0) {
            let positive = self.b.ins().icmp_imm(IntCC::SignedGreaterThan, step, 0);
            self.demand(positive, id);
        }
        let types = self.flat_types(&op.results);
        let [header, body, exit] = [(); 3].map(|()| self.b.create_block());
        let index = self.b.append_block_param(header, types::I64);
        let carried = self.params(header, &types);
        let mut enter = vec![lo];
        enter.extend(self.flatten_all(inits));
        self.jump(header, &enter);
        self.goto(header);
        // In 64 bits, so that the last step cannot wrap.
        let more = self.b.ins().icmp(IntCC::SignedLessThan, index, hi);
        self.b.ins().brif(more, body, &[], exit, &[]);
        self.goto(body);
        let i = self.b.ins().ireduce(types::I32, index);
        self.scalars[args[0].index()] = Some(i);
        self.bind(&args[1..], &carried);
        let last = self.emit_ops(op.regions[0]);
        let yielded = self.leave(last, &op.results);
        let mut back = vec![self.b.ins().iadd(index, step)];
        back.extend(yielded);
        self.jump(header, &back);
        self.goto(exit);
        self.bind(&op.results, &carried);
    }

    pub(super) fn emit_while(&mut self, op: &Op) {
        let k = self.k;
        self.enter_carried(&op.operands, &op.results);
        let types = self.flat_types(&op.results);
        let [header, body, exit] = [(); 3].map(|()| self.b.create_block());
        let carried = self.params(header, &types);
        let enter = self.flatten_all(&op.operands);
        self.jump(header, &enter);
        self.goto(header);
        self.bind(&k.region(op.regions[0]).args, &carried);
        let last = self.emit_ops(op.regions[0]);
        let condition = self.scalar(k.op(last).operands[0]);
        self.b.ins().brif(condition, body, &[], exit, &[]);
        self.goto(body);
        self.bind(&k.region(op.regions[1]).args, &carried);
        let last = self.emit_ops(op.regions[1]);
        let back = self.leave(last, &op.results);
        self.jump(header, &back);
        self.goto(exit);
        self.bind(&op.results, &carried);
    }

    pub(super) fn emit_if(&mut self, op: &Op) {
        let condition = self.scalar(op.operands[0]);
        let [then, otherwise, exit] = [(); 3].map(|()| self.b.create_block());
        let types = self.flat_types(&op.results);
        let results = self.params(exit, &types);
        self.b.ins().brif(condition, then, &[], otherwise, &[]);
        for (block, &region) in [then, otherwise].into_iter().zip(&op.regions) {
            self.goto(block);
            let last = self.emit_ops(region);
            let values = self.leave(last, &op.results);
            self.jump(exit, &values);
        }
        self.goto(exit);
        self.bind(&op.results, &results);
    }

    pub(super) fn emit_assert(&mut self, id: OpId) {
        let k = self.k;
        let condition = k.op(id).operands[0];
        let holds = if k.ty(condition).is_scalar() { self.scalar(condition) } else { self.all(condition) };
        self.demand(holds, id);
    }

    /// Ends the program with the operation's failure unless `holds`.
    pub(super) fn demand(&mut self, holds: Value, id: OpId) {
        let [fail, go_on] = [(); 2].map(|()| self.b.create_block());
        self.b.ins().brif(holds, go_on, &[], fail, &[]);
        self.b.set_cold_block(fail);
        self.goto(fail);
        let code = self.b.ins().iconst(types::I32, id.index() as i64 + 1);
        self.b.ins().return_(&[code]);
        self.goto(go_on);
    }

    /// Hands the values to the host, each as an array in scratch memory.
    pub(super) fn emit_print(&mut self, id: OpId) {
        let k = self.k;
        let number = self.b.ins().iconst(types::I32, id.index() as i64);
        for (i, &v) in k.op(id).operands.iter().enumerate() {
            let Type::Tile(_, shape) = k.ty(v) else { continue };
            let Some(l) = self.plan.copy(id, i, shape) else { continue };
            self.copy_to(v, l);
        }
        let (context, ids, scratch) = (self.context, self.ids, self.scratch);
        self.b.ins().call(self.helpers.print, &[context, number, ids, scratch]);
    }
}
