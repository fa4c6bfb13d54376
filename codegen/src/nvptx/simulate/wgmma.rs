//! Products by warpgroups, after the PTX manual ("Asynchronous warpgroup level matrix instructions"): descriptors,
//! canonical layouts, fragments, and when results are there.
//!
//! In units of elements, with T elements to 16 bytes and S = 2, 4 or 8 times 16 bytes to a swizzle of 32, 64 or 128
//! bytes, the manual's canonical layouts are `((8,m),(T,2)) : ((S·T,SBO),(1,T))` for K-major operands and
//! `((T,S,m),(8,k)) : ((1,T,LBO),(S·T,SBO))` for MN-major ones: strides of the coordinate along M or N and of that
//! along K. The swizzle applies to the addresses that come out.

use super::asm::{Asm, Op, Ptx};
use super::compute::{b, f, mask};
use super::memory::swizzled;
use super::parse::Operand;
use super::{Simulator, Thread, flying, real};
use crate::ir::{Bits, DType};

/// A product that is not finished: what it reads of shared memory.
pub struct Flight {
    /// The warpgroup's first thread.
    first: usize,
    /// Its number in the order of commits.
    group: u64,
    /// 16-byte chunks.
    chunks: Vec<u64>,
    /// The warps that have not waited for it, as bits.
    warps: u32,
}

/// A matrix descriptor.
struct Descriptor {
    start: u64,
    leading: u64,
    stride: u64,
    swizzle: u64,
}

impl Descriptor {
    /// Of a program whose shared memory begins in this window.
    fn new(bits: u64, window: u64) -> Descriptor {
        let field = |at: u32| (bits >> at & 0x3fff) << 4;
        let swizzle = match bits >> 62 {
            1 => 128,
            2 => 64,
            3 => 32,
            _ => panic!("products read swizzled matrices only: descriptor {bits:#x}"),
        };
        let d = Descriptor { start: window + field(0), leading: field(16), stride: field(32), swizzle };
        assert_eq!(bits & 0x3fff_c000_c000_c000, 0, "unused bits and the base offset are zero: {bits:#x}");
        // Without a base offset the swizzle's pattern starts at multiples of its size.
        assert_eq!(d.start >> 7 & (swizzle / 16 - 1), 0, "the pattern starts elsewhere: descriptor {bits:#x}");
        d
    }

    /// Where 16 bytes of the matrix are: those that start at `other` along M or N and at byte `k` along K; or, MN-major,
    /// at element `k` along K (elements of 16 bits).
    fn place(&self, transposed: bool, other: u64, k: u64) -> u64 {
        let columns = self.swizzle / 2;
        let offset = if transposed {
            2 * (other % columns) + other / columns * self.leading + k % 8 * self.swizzle + k / 8 * self.stride
        } else {
            other % 8 * self.swizzle + other / 8 * self.stride + k
        };
        swizzled(self.start + offset, self.swizzle)
    }
}

/// A row of an operand: its elements along K, 32 bytes of them. (Sums of that many products of bytes are exact in f32.)
type Row = [f32; 32];

fn element(dtype: DType, bytes: &[u8]) -> f32 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    let word = u64::from_le_bytes(word);
    match dtype {
        // Tensor cores do not look at the bits that tf32 has not.
        DType::F32 => f(word & !0x1fff),
        _ => Bits(word).to_f64(dtype) as f32,
    }
}

impl Simulator {
    /// PTX of a whole warpgroup.
    pub fn as_group(&mut self, asm: &Asm, group: &mut [Thread]) {
        let width = asm.width().max(1);
        let mut env = vec![];
        let mut one = vec![];
        for t in group.iter() {
            asm.enter(t, &mut one);
            one.resize(width, 0);
            env.extend_from_slice(&one);
        }
        let mut fenced = false;
        let mut held = vec![];
        // What is issued here belongs to the group that is open now.
        let number = group[0].committed + 1;
        for p in &asm.code {
            for t in 1..group.len() {
                assert_eq!(p.allowed(&env[..width]), p.allowed(&env[t * width..][..width]), "{}", p.name);
            }
            match p.op {
                Op::Setp(equal) => {
                    for e in env.chunks_mut(width) {
                        let same = p.args[1].value(e) == p.args[2].value(e);
                        e[p.args[0].register()] = u64::from(same == equal);
                    }
                }
                Op::MaxRegisters => {
                    let count = p.args[0].value(&env);
                    assert!((24..=256).contains(&count) && count.is_multiple_of(8), "{} {count}", p.name);
                }
                Op::WgmmaFence => fenced = true,
                Op::WgmmaCommit => group.iter_mut().for_each(|t| t.committed += 1),
                Op::Wgmma => {
                    assert!(fenced, "registers that others wrote need a fence before a product");
                    let registers = self.product(p, &mut env, width, number, group[0].id);
                    held.extend(registers.into_iter().filter(|r| *r >= asm.outs).map(|r| r - asm.outs));
                }
                _ => panic!("{} is not for warpgroups", p.name),
            }
        }
        for (t, e) in group.iter_mut().zip(env.chunks(width)) {
            for &r in &held {
                if let Operand::Slot(slot) = asm.args[r] {
                    t.hold(slot, number);
                }
            }
            asm.leave(t, e);
        }
    }

    /// One product; the registers of its first operand. `env`: `width` registers of each thread.
    fn product(&mut self, p: &Ptx, env: &mut [u64], width: usize, number: u64, first: usize) -> Vec<usize> {
        let name = p.name.strip_prefix("wgmma.mma_async.sync.aligned.m64n").expect("a shape");
        let (shape, types) = name.split_once('.').expect("types");
        let (n, depth) = shape.split_once('k').expect("a shape");
        let n: usize = n.parse().expect("N");
        assert!(n.is_multiple_of(8) && (8..=256).contains(&n), "{}", p.name);
        let dtype = match types {
            "f32.bf16.bf16" => DType::BF16,
            "f32.f16.f16" => DType::F16,
            "f32.e4m3.e4m3" => DType::F8E4M3,
            "f32.e5m2.e5m2" => DType::F8E5M2,
            "f32.tf32.tf32" => DType::F32,
            "s32.s8.s8" => DType::I8,
            "s32.u8.u8" => DType::U8,
            other => panic!("{other}"),
        };
        assert!(dtype.is_float() || n.is_multiple_of(16) || [8, 24].contains(&n), "{}", p.name);
        assert_eq!(depth.parse(), Ok(32 / dtype.size()), "{}", p.name);
        let sums = &p.args[..n / 2];
        let rest = &p.args[n / 2..];
        // From a descriptor: a, b, add, two signs, two transpositions. From registers: four of them, no transposition.
        // Integers have no signs, and operands of other than 16 bits no transpositions.
        let turns = if dtype.size() == 2 { 2 } else { 0 };
        let signs = if dtype.is_float() { 2 } else { 0 };
        let from_registers = rest.len() == 6 + signs + turns / 2;
        assert!(from_registers || rest.len() == 3 + signs + turns, "{} has {} operands", p.name, p.args.len());
        let (a, rest) = rest.split_at(if from_registers { 4 } else { 1 });
        let one = &env[..width];
        assert!(rest[2..2 + signs].iter().all(|s| s.value(one) == 1), "signs");
        let transposed = |i: usize| rest.get(2 + signs + i).is_some_and(|t| t.value(one) == 1);
        let add = rest[1].value(one) == 1;
        let window = (first / self.stride()) as u64 * super::WINDOW;
        let uniform = |arg: super::asm::Arg| {
            let x = arg.value(&env[..width]);
            let same = env.chunks(width).all(|e| arg.value(e) == x);
            assert!(same, "a descriptor is the same for the whole warpgroup");
            Descriptor::new(x, window)
        };
        let mut chunks = vec![];
        let matrix_b = self.matrix(&uniform(rest[0]), transposed(usize::from(!from_registers)), n, dtype, &mut chunks);
        let matrix_a = if from_registers {
            let (size, per_word) = (dtype.size(), 4 / dtype.size());
            let mut m: Vec<Row> = vec![[0.0; 32]; 64];
            for (t, e) in env.chunks(width).enumerate() {
                for (r, arg) in a.iter().enumerate() {
                    let word = (arg.value(e) as u32).to_le_bytes();
                    for (i, x) in word.chunks(size).enumerate() {
                        let row = 16 * (t / 32) + t % 32 / 4 + 8 * (r & 1);
                        let column = per_word * (t % 4) + i + 4 * per_word * (r >> 1);
                        m[row][column] = element(dtype, x);
                    }
                }
            }
            m
        } else {
            self.matrix(&uniform(a[0]), transposed(0), 64, dtype, &mut chunks)
        };
        for (t, e) in env.chunks_mut(width).enumerate() {
            for (i, sum) in sums.iter().enumerate() {
                let row = 16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2);
                let column = 8 * (i / 4) + 2 * (t % 4) + i % 2;
                // A product may add to one of the same shape that is not finished.
                let old = e[sum.register()];
                let old = if !add { 0 } else { flying(old).map_or_else(|| real(old, "wgmma"), |(_, x)| x) };
                let x: f32 = matrix_a[row].iter().zip(&matrix_b[column]).map(|(a, b)| a * b).sum();
                let new = if dtype.is_float() { b(f(old) + x) } else { old.wrapping_add(x as i64 as u64) & mask(32) };
                e[sum.register()] = super::in_flight(number, new);
            }
        }
        for &c in &chunks {
            self.shared.read_by(c, true);
        }
        self.flights.push(Flight { first, group: number, chunks, warps: 0b1111 });
        if from_registers { a.iter().map(|r| r.register()).collect() } else { vec![] }
    }

    /// An operand: its rows along M or N.
    fn matrix(&self, d: &Descriptor, trans: bool, rows: usize, dtype: DType, chunks: &mut Vec<u64>) -> Vec<Row> {
        let mut out = vec![[0.0; 32]; rows];
        let size = dtype.size();
        let (others, along_k) = if trans { (rows / 8, 16) } else { (rows, 2) };
        for i in 0..others {
            for j in 0..along_k {
                let (row, k) = if trans { (8 * i, j) } else { (i, 16 * j) };
                let place = d.place(trans, row as u64, k as u64);
                chunks.push(place);
                for (e, x) in self.shared.load_proxy(place).chunks(size).enumerate() {
                    let x = element(dtype, x);
                    if trans {
                        out[row + e][k] = x;
                    } else {
                        out[row][k / size + e] = x;
                    }
                }
            }
        }
        out
    }

    /// `wgmma.wait_group`: results that are handed through are there afterwards.
    pub fn wait_for_products(&mut self, asm: &Asm, warp: &mut [Thread]) {
        let mut env = vec![];
        let (first, bit) = (warp[0].id & !127, 1 << (warp[0].id / 32 % 4));
        for t in warp.iter_mut() {
            asm.enter(t, &mut env);
            let left = asm.code[0].args[0].value(&env);
            t.landed = t.landed.max(t.committed.saturating_sub(left));
            for x in &mut env[..asm.outs] {
                if let Some((group, value)) = flying(*x) {
                    assert!(group <= t.landed, "a wait hands through what it does not wait for");
                    *x = value;
                }
            }
            asm.leave(t, &env);
        }
        let landed = warp[0].landed;
        let shared = &mut self.shared;
        self.flights.retain_mut(|flight| {
            if flight.first == first && flight.group <= landed {
                flight.warps &= !bit;
            }
            if flight.warps == 0 {
                flight.chunks.iter().for_each(|&c| shared.read_by(c, false));
            }
            flight.warps != 0
        });
    }
}
