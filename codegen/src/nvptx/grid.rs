//! Where all programs of a launch meet (`grid_sync`).
//!
//! The launcher gives a word of device memory, after all other parameters. Everybody adds 1 to it but the first program,
//! which adds what makes the sum 2^31: its top bit turns when all have come, and that is what they wait for. So it needs
//! no preparation, and serves one launch after another. One thread comes for its program, between barriers: with the fence
//! before it adds it brings what all of its threads have stored, and with the look that finds the bit turned (an
//! acquire) they see what all others brought.
//!
//! All programs must be running: the launcher asks for a cooperative launch, which is refused where they do not fit.

use super::lower::Lower;
use super::text::{V, int};

/// The parameter.
pub(super) const WORD: &str = "%meeting";

impl Lower<'_> {
    pub(super) fn grid_sync(&mut self) {
        self.barrier();
        let tid = self.tid();
        let first = self.w.icmp("eq", "i32", &tid, &int(0));
        let [come, look, met] = ["come", "look", "met"].map(|s| self.w.label(s));
        self.w.branch(&first, &come, &met);
        self.w.start(&come);
        let mut number: V = int(0);
        let mut programs: V = int(1);
        for axis in ["z", "y", "x"] {
            let [at, extent] =
                ["ctaid", "nctaid"].map(|s| self.w.call("i32", &format!("llvm.nvvm.read.ptx.sreg.{s}.{axis}"), &[]));
            number = self.w.bin("or", "i32", &number, &at);
            programs = self.w.bin("mul", "i32", &programs, &extent);
        }
        let leads = self.w.icmp("eq", "i32", &number, &int(0));
        let rest = self.w.bin("sub", "i32", &int(0x8000_0001u32 as i32), &programs);
        let add = self.w.select(&leads, "i32", &rest, &int(1));
        let word: V = WORD.into();
        self.w.asm_effect("void", "fence.acq_rel.gpu;", "", &[]);
        let ptx = "atom.relaxed.gpu.global.add.u32 $0, [$1], $2;";
        let before = self.w.asm_effect("i32", ptx, "=r,l,r", &[("i64", &word), ("i32", &add)]);
        self.w.jump(&look);
        self.w.start(&look);
        let found = self.w.asm_effect("i32", "ld.acquire.gpu.global.b32 $0, [$1];", "=r,l", &[("i64", &word)]);
        let change = self.w.bin("xor", "i32", &found, &before);
        let turned = self.w.icmp("slt", "i32", &change, &int(0));
        self.w.branch(&turned, &met, &look);
        self.w.start(&met);
        self.barrier();
    }
}
