//! What a kernel says of itself: assertions, which trap, and prints.

use super::lower::{Lower, Result};
use super::math;
use super::text::{V, int, llvm_type};
use crate::ir::Op;

impl Lower<'_> {
    pub(super) fn assert(&mut self, op: &Op) -> Result<()> {
        let (regs, _) = self.get_home(op.operands[0]);
        let mut all = regs[0].clone();
        for r in &regs[1..] {
            all = self.w.op(format_args!("and i1 {all}, {r}"));
        }
        let fails = self.w.op(format_args!("xor i1 {all}, true"));
        self.w.asm_effect("void", "@$0 trap;", "b", &[("i1", &fails)]);
        Ok(())
    }

    /// One line from the first thread of each program.
    pub(super) fn print(&mut self, op: &Op, message: &str) -> Result<()> {
        let mut format = String::new();
        for c in message.chars() {
            format.push_str(if c == '%' { "%%" } else { "" });
            if c != '%' {
                format.push(c);
            }
        }
        let mut fields: Vec<(&str, V)> = vec![];
        for &v in op.operands.iter().filter(|&&v| self.k.ty(v).is_scalar()) {
            let (dtype, x) = (self.k.ty(v).dtype(), self.scalar(v));
            if dtype.is_float() {
                let wide = math::to_f32(&mut self.w, dtype, &x);
                fields.push(("double", self.w.convert("fpext", "float", &wide, "double")));
                format.push_str(" %g");
            } else {
                let signed = dtype.is_signed();
                let opcode = if signed { "sext" } else { "zext" };
                fields.push(("i64", self.w.convert(opcode, llvm_type(dtype), &x, "i64")));
                format.push_str(if signed { " %lld" } else { " %llu" });
            }
        }
        format.push('\n');
        let bytes: String = format.bytes().chain([0]).map(|b| format!("\\{b:02X}")).collect();
        let name = format!("@text{}", self.w.fresh());
        let size = format.len() + 1;
        self.w.global(format_args!("{name} = private addrspace(1) constant [{size} x i8] c\"{bytes}\""));
        let tid = self.tid();
        let first = self.w.icmp("eq", "i32", &tid, &int(0));
        let [yes, done] = ["print", "printed"].map(|s| self.w.label(s));
        let buffer = self.w.hoist(format_args!("alloca [{} x i64], align 8", fields.len().max(1)));
        self.w.branch(&first, &yes, &done);
        self.w.start(&yes);
        for (i, (ty, v)) in fields.iter().enumerate() {
            let place = self.w.op(format_args!("getelementptr i64, ptr {buffer}, i32 {i}"));
            self.w.line(format_args!("store {ty} {v}, ptr {place}, align 8"));
        }
        let text = self.w.op(format_args!("addrspacecast ptr addrspace(1) {name} to ptr"));
        self.w.call("i32", "vprintf", &[("ptr", &text), ("ptr", &buffer)]);
        self.w.jump(&done);
        self.w.start(&done);
        Ok(())
    }
}
