//! Compiled kernels against the interpreter: each operation on every dtype and on hostile shapes.
//!
//! A [`Case`] is a kernel with arguments. [`Case::check`] runs it on both sides, from equal and poisoned memory, compiled
//! with and without facts, and compares every byte of every argument; the memory around each argument must stay as it
//! was.

mod clusters;
mod control;
mod elements;
mod memory;
mod random;
mod roles;
mod tiles;

use super::{CpuError, compile_for, has_fma};
use crate::interp::{self, Buffer};
use crate::ir::{Access, Bits, Builder, DType, Kernel, Loc, Shape, SlotKind, Type, ValueId, verify};
use std::sync::Arc;

const BF16: DType = DType::BF16;
const F32: DType = DType::F32;
const I32: DType = DType::I32;

fn dims(extents: &[u32]) -> Shape {
    Shape::new(extents)
}

/// A deterministic source of bits (SplitMix64).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1..1.
    fn unit(&mut self) -> f64 {
        self.bits() as i64 as f64 / 2f64.powi(63)
    }

    /// Ordinary values: floats around 1, small integers.
    fn values(&mut self, dtype: DType, n: usize) -> Vec<Bits> {
        let mut value = || match dtype {
            DType::Bool => Bits(self.bits() & 1),
            d if d.is_float() => Bits::from_f64(d, self.unit() * 2.0),
            d if d.is_signed() => Bits::from_i64(d, (self.unit() * 100.0) as i64),
            d => Bits::from_i64(d, (self.bits() % 200) as i64),
        };
        (0..n).map(|_| value()).collect()
    }

    /// Any bits of the dtype.
    fn hostile(&mut self, dtype: DType, n: usize) -> Vec<Bits> {
        let mask = if dtype == DType::Bool { 1 } else { u64::MAX >> (64 - 8 * dtype.size()) };
        (0..n).map(|_| Bits(self.bits() & mask)).collect()
    }
}

struct View {
    dtype: DType,
    bytes: Vec<u8>,
    offset: usize,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

enum Arg {
    Scalar(Bits),
    View(View),
}

struct Case {
    b: Builder,
    args: Vec<Arg>,
    random: Random,
    /// Largest permitted difference of floats, relative to the larger magnitude of `scale` and the value.
    tolerance: f64,
    scale: f64,
}

/// Bytes around each argument that must not change.
const GUARD: usize = 256;

impl Case {
    fn new() -> Case {
        let b = Builder::new("case", Loc { file: "case.rs", line: 1, column: 1 });
        Case { b, args: vec![], random: Random(1), tolerance: 0.0, scale: 0.0 }
    }

    fn strided(&mut self, dtype: DType, access: Access, view: View) -> ValueId {
        let ty = Type::View(dtype, view.shape.len() as u8);
        let name = format!("arg{}", self.args.len());
        self.args.push(Arg::View(view));
        self.b.kernel_mut().add_param(name, ty, access, None)
    }

    fn view(&mut self, dtype: DType, shape: &[i64], access: Access, values: &[Bits]) -> ValueId {
        let bytes = values.iter().flat_map(|b| b.0.to_le_bytes()[..dtype.size()].to_vec()).collect();
        let mut strides = vec![1; shape.len()];
        for d in (1..shape.len()).rev() {
            strides[d - 1] = strides[d] * shape[d].max(1);
        }
        self.strided(dtype, access, View { dtype, bytes, offset: 0, shape: shape.to_vec(), strides })
    }

    fn scalar(&mut self, dtype: DType, bits: Bits) -> ValueId {
        self.args.push(Arg::Scalar(bits));
        let name = format!("arg{}", self.args.len());
        self.b.kernel_mut().add_param(name, Type::scalar(dtype), Access::Read, None)
    }

    fn zeros(&mut self, n: usize) -> Vec<ValueId> {
        (0..n).map(|_| self.b.i32(0)).collect()
    }

    fn extents(shape: Shape) -> Vec<i64> {
        shape.dims().iter().map(|&d| d as i64).collect()
    }

    fn input_bits(&mut self, dtype: DType, shape: &[u32], values: &[Bits]) -> ValueId {
        let view = self.view(dtype, &Self::extents(dims(shape)), Access::Read, values);
        let zeros = self.zeros(shape.len());
        self.b.load(view, &zeros, dims(shape), None)
    }

    /// A tile of ordinary random values, loaded.
    fn input(&mut self, dtype: DType, shape: &[u32]) -> ValueId {
        let values = self.random.values(dtype, dims(shape).numel());
        self.input_bits(dtype, shape, &values)
    }

    /// A poisoned output view.
    fn target(&mut self, dtype: DType, shape: &[i64]) -> ValueId {
        let n: i64 = shape.iter().product();
        let poison = if dtype == DType::Bool { Bits(1) } else { Bits(u64::MAX) };
        self.view(dtype, shape, Access::Write, &vec![poison; n as usize])
    }

    /// Stores a tile whole.
    fn output(&mut self, tile: ValueId) {
        let (dtype, shape) = (self.b.ty(tile).dtype(), self.b.ty(tile).shape());
        let view = self.target(dtype, &Self::extents(shape));
        let zeros = self.zeros(shape.rank());
        self.b.store(view, tile, &zeros);
    }

    fn within(mut self, tolerance: f64, scale: f64) -> Case {
        (self.tolerance, self.scale) = (tolerance, scale);
        self
    }

    fn check(self) {
        self.check_grid([1, 1, 1]);
    }

    fn check_grid(self, grid: [u32; 3]) {
        let (tolerance, scale) = (self.tolerance, self.scale);
        let mut kernel = self.b.finish();
        if let Err(e) = verify(&kernel) {
            panic!("{e}\n{kernel}");
        }
        let buffers: Vec<Option<Arc<Buffer>>> = self
            .args
            .iter()
            .map(|a| match a {
                Arg::View(v) => Some(Arc::new(Buffer::from_bytes(v.bytes.clone()))),
                Arg::Scalar(_) => None,
            })
            .collect();
        let args: Vec<interp::Arg> = self
            .args
            .iter()
            .zip(&buffers)
            .map(|(a, buffer)| match (a, buffer) {
                (Arg::View(v), Some(buffer)) => interp::Arg::View {
                    buffer: buffer.clone(),
                    offset_elements: v.offset,
                    shape: v.shape.clone(),
                    strides: v.strides.clone(),
                },
                (Arg::Scalar(bits), _) => interp::Arg::Scalar(*bits),
                _ => unreachable!(),
            })
            .collect();
        interp::run(&kernel, grid, &args).expect("interprets");
        for with_facts in [false, true] {
            let (result, memory) = launch(&mut kernel, &self.args, grid, with_facts);
            result.expect("runs");
            for (i, (arg, buffer)) in self.args.iter().zip(&buffers).enumerate() {
                let (Arg::View(v), Some(buffer)) = (arg, buffer) else { continue };
                let expected = buffer.to_bytes().expect("initialised");
                let found = &memory[i];
                assert!(
                    found[..GUARD].iter().chain(&found[GUARD + expected.len()..]).all(|&b| b == 0xa5),
                    "arg{i}: guards"
                );
                compare(v.dtype, i, (&expected, &found[GUARD..GUARD + expected.len()]), (tolerance, scale), &kernel);
            }
        }
    }
}

fn compare(
    dtype: DType,
    arg: usize,
    (expected, found): (&[u8], &[u8]),
    (tolerance, scale): (f64, f64),
    kernel: &Kernel,
) {
    let elements = |bytes: &[u8]| -> Vec<Bits> {
        let wide = |c: &[u8]| c.iter().rev().fold(0, |x, &b| x << 8 | b as u64);
        bytes.chunks_exact(dtype.size()).map(|c| Bits(wide(c))).collect()
    };
    for (i, (e, f)) in elements(expected).into_iter().zip(elements(found)).enumerate() {
        let (x, y) = (e.to_f64(dtype), f.to_f64(dtype));
        let close = x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= tolerance * x.abs().max(scale);
        let same = e == f || (dtype.is_float() && close);
        assert!(same, "arg{arg}[{i}]: expected {x:e}, found {y:e} ({e:x?}, {f:x?})\n{kernel}");
    }
}

/// Compiles and launches on copies of the arguments; the result, and for each view its memory with guards around.
fn launch(kernel: &mut Kernel, args: &[Arg], grid: [u32; 3], with_facts: bool) -> (Result<(), CpuError>, Vec<Vec<u8>>) {
    launch_for(has_fma(), kernel, args, grid, with_facts)
}

/// The same as if the machine had, or had not, an instruction that multiplies and adds.
fn launch_for(
    fma: bool,
    kernel: &mut Kernel,
    args: &[Arg],
    grid: [u32; 3],
    with_facts: bool,
) -> (Result<(), CpuError>, Vec<Vec<u8>>) {
    let mut memory: Vec<Vec<u8>> = args
        .iter()
        .map(|a| match a {
            Arg::View(v) => [vec![0xa5; GUARD], v.bytes.clone(), vec![0xa5; GUARD]].concat(),
            Arg::Scalar(_) => vec![],
        })
        .collect();
    let mut slots = vec![];
    for (arg, m) in args.iter().zip(&mut memory) {
        match arg {
            Arg::Scalar(bits) => slots.push(bits.0),
            Arg::View(v) => {
                slots.push(m.as_mut_ptr() as u64 + (GUARD + v.offset * v.dtype.size()) as u64);
                slots.extend(v.shape.iter().chain(&v.strides).map(|&x| x as u64));
            }
        }
    }
    kernel.facts = if with_facts { Kernel::facts_of(&kernel.slots(), &slots) } else { vec![] };
    assert!(kernel.slots().iter().all(|s| matches!(s.kind, SlotKind::Scalar) || !slots.is_empty()));
    let compiled = compile_for(kernel, fma).expect("compiles");
    // SAFETY: each view's elements lie in `memory`, which is not touched meanwhile; the interpreter has found no races.
    let result = unsafe { compiled.launch(&slots, grid) };
    (result, memory)
}
