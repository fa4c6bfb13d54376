//! Instructions that the threads of a warp execute together.

use super::asm::{Asm, Op};
use super::compute::{b, f};
use super::parse::Code;
use super::{Simulator, Thread};

impl Simulator {
    /// One instruction of a whole warp.
    pub fn together(&mut self, code: &Code, warp: &mut [Thread]) {
        match code {
            Code::WarpBarrier => {
                for t in warp {
                    self.shared.publish(&mut t.fenced);
                    t.warp_barriers += 1;
                }
            }
            Code::Shuffle(out, value, lane, exclusive) => {
                let sent: Vec<u64> = warp.iter().map(|t| t.get(value)).collect();
                for (i, t) in warp.iter_mut().enumerate() {
                    let lane = t.get(lane) as usize & 31;
                    t.set(*out, sent[if *exclusive { i ^ lane } else { lane }]);
                }
            }
            Code::Asm(asm) => {
                assert_eq!(asm.code.len(), 1, "one instruction at a time");
                match asm.code[0].op {
                    Op::Ldmatrix => self.ldmatrix(asm, warp),
                    Op::Stmatrix => self.stmatrix(asm, warp),
                    Op::Movmatrix => movmatrix(asm, warp),
                    Op::WgmmaWait => self.wait_for_products(asm, warp),
                    _ => {
                        let read = |lane: usize, i: usize| warp[lane].get(&asm.args[i]);
                        let results = mma(&asm.code[0].name, &read);
                        for (t, r) in warp.iter_mut().zip(results) {
                            (0..4).for_each(|i| t.set(asm.out + i, r[i]));
                        }
                    }
                }
            }
            _ => panic!("needs no other threads"),
        }
    }

    fn stmatrix(&mut self, asm: &Asm, warp: &mut [Thread]) {
        let trans = asm.code[0].name.contains(".trans");
        let words = asm.args.len() - 1;
        let addresses: Vec<u64> = warp.iter().map(|t| t.get(&asm.args[0]) + asm.code[0].offset).collect();
        for (t, &address) in warp.iter().zip(&addresses[..8 * words]) {
            self.touch(t, true, address, 16);
        }
        for (lane, t) in warp.iter_mut().enumerate() {
            for j in 0..words {
                let word = t.get(&asm.args[1 + j]) as u32;
                for half in 0..2 {
                    let (row, column) =
                        if trans { (2 * (lane % 4) + half, lane / 4) } else { (lane / 4, 2 * (lane % 4) + half) };
                    let base = addresses[8 * j + row];
                    assert_eq!(base % 16, 0, "stmatrix rows are aligned");
                    let (at, bytes) = (base + 2 * column as u64, ((word >> (16 * half)) as u16).to_le_bytes());
                    self.shared.written(at, &bytes, t.event());
                    self.shared.store(at, &bytes);
                    t.remember(at, &bytes);
                }
            }
        }
    }

    fn ldmatrix(&mut self, asm: &Asm, warp: &mut [Thread]) {
        let trans = asm.code[0].name.contains(".trans");
        let addresses: Vec<u64> = warp.iter().map(|t| t.get(&asm.args[0]) + asm.code[0].offset).collect();
        for (t, &address) in warp.iter().zip(&addresses[..8 * asm.outs]) {
            self.touch(t, true, address, 16);
        }
        for (lane, t) in warp.iter_mut().enumerate() {
            for j in 0..asm.outs {
                let mut word = 0u64;
                for half in 0..2 {
                    let (row, column) =
                        if trans { (2 * (lane % 4) + half, lane / 4) } else { (lane / 4, 2 * (lane % 4) + half) };
                    let base = addresses[8 * j + row];
                    assert_eq!(base % 16, 0, "ldmatrix rows are aligned");
                    self.shared.read(base + 2 * column as u64, 2, t.event());
                    let bytes = self.shared.load(base + 2 * column as u64, 2);
                    word |= (u16::from_le_bytes([bytes[0], bytes[1]]) as u64) << (16 * half);
                }
                t.set(asm.out + j, word);
            }
        }
    }
}

/// Lane l holds elements 2(l mod 4) and 2(l mod 4) + 1 of row l / 4 of a matrix; then of the transposed one.
fn movmatrix(asm: &Asm, warp: &mut [Thread]) {
    let words: Vec<u64> = warp.iter().map(|t| t.get(&asm.args[0])).collect();
    let element = |row: usize, column: usize| words[4 * row + column / 2] >> (16 * (column % 2)) & 0xffff;
    for (lane, t) in warp.iter_mut().enumerate() {
        let (row, column) = (lane / 4, 2 * (lane % 4));
        t.set(asm.out, element(column, row) | element(column + 1, row) << 16);
    }
}

/// m16n8k(32 bytes): operand `i` of lane l is `read(l, i)`: four words of A, two of B, four of the accumulator.
fn mma(ptx: &str, read: &dyn Fn(usize, usize) -> u64) -> Vec<[u64; 4]> {
    let (bytes, integer) = if ptx.contains("k16") {
        (2, false)
    } else if ptx.contains("k8.") {
        (4, false)
    } else {
        (1, true)
    };
    let per_word = 4 / bytes;
    let depth = 8 * per_word;
    let element = |word: u64, i: usize| -> f64 {
        let x = word >> (8 * bytes * i);
        match bytes {
            2 if ptx.contains("bf16") => half::bf16::from_bits(x as u16).to_f64(),
            2 => half::f16::from_bits(x as u16).to_f64(),
            4 => f(x & 0xffff_e000) as f64,
            _ if ptx.contains("s8") => x as u8 as i8 as f64,
            _ => x as u8 as f64,
        }
    };
    let mut a = vec![vec![0.0; depth]; 16];
    let mut bm = vec![vec![0.0; 8]; depth];
    for lane in 0..32 {
        let (g, t) = (lane / 4, lane % 4);
        for w in 0..4 {
            for i in 0..per_word {
                a[g + 8 * (w & 1)][t * per_word + i + (w >> 1) * depth / 2] = element(read(lane, w), i);
            }
        }
        for w in 0..2 {
            for i in 0..per_word {
                bm[t * per_word + i + w * depth / 2][g] = element(read(lane, 4 + w), i);
            }
        }
    }
    (0..32)
        .map(|lane| {
            let (g, t) = (lane / 4, lane % 4);
            std::array::from_fn(|i| {
                let (row, column) = (g + 8 * (i >> 1), 2 * t + (i & 1));
                let sum: f64 = (0..depth).map(|k| a[row][k] * bm[k][column]).sum();
                let acc = read(lane, 6 + i);
                if integer {
                    (acc as u32 as i32).wrapping_add(sum as i32) as u32 as u64
                } else {
                    b((f(acc) as f64 + sum) as f32)
                }
            })
        })
        .collect()
}
