//! Host functions that compiled kernels call, and what they share with the host.

use super::roles::{Crew, Site};
use crate::interp::Tile;
use crate::ir::{AtomicOp, Bits, DType, Kernel, OpKind, Shape, Type, UnaryOp};
use crate::semantics;
use cranelift_codegen::ir::FuncRef;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Which program runs, of how many; compiled code reads it.
#[repr(C)]
pub(super) struct LaunchIds {
    pub(super) program: [u32; 3],
    pub(super) grid: [u32; 3],
    /// The role that the thread has, or the program's rank in its cluster, and those it works with; null if it is
    /// alone.
    pub(super) role: u32,
    pub(super) crew: *const Crew,
}

/// The functions as a kernel under construction names them.
#[derive(Clone, Copy)]
pub(super) struct HelperRefs {
    pub(super) sin: FuncRef,
    pub(super) cos: FuncRef,
    pub(super) erf: FuncRef,
    pub(super) rem: FuncRef,
    pub(super) fma: FuncRef,
    pub(super) atomic: FuncRef,
    pub(super) print: FuncRef,
    pub(super) exchange: FuncRef,
}

fn unary(op: UnaryOp, x: f32) -> f32 {
    semantics::to_f32(DType::F32, semantics::unary(op, DType::F32, semantics::from_f32(DType::F32, x)))
}

pub(super) extern "C" fn sin(x: f32) -> f32 {
    unary(UnaryOp::Sin, x)
}

pub(super) extern "C" fn cos(x: f32) -> f32 {
    unary(UnaryOp::Cos, x)
}

pub(super) extern "C" fn erf(x: f32) -> f32 {
    unary(UnaryOp::Erf, x)
}

pub(super) extern "C" fn rem(x: f32, y: f32) -> f32 {
    x % y
}

/// For machines without the instruction.
pub(super) extern "C" fn fma(x: f32, a: f32, b: f32) -> f32 {
    x.mul_add(a, b)
}

pub(super) const ATOMICS: [AtomicOp; 7] =
    [AtomicOp::Add, AtomicOp::Min, AtomicOp::Max, AtomicOp::And, AtomicOp::Or, AtomicOp::Xor, AtomicOp::Exchange];

/// Applies an atomic operation to the element at `address` and returns the bits before. `code` is the operation's index
/// in [`ATOMICS`] times the number of dtypes plus the dtype's index.
///
/// # Safety
/// `address` must be that of an element of the dtype, aligned to its size, which is accessed only atomically meanwhile.
pub(super) unsafe extern "C" fn atomic(code: u64, address: *mut u8, value: u64) -> u64 {
    let op = ATOMICS[code as usize / DType::ALL.len()];
    let dtype = DType::ALL[code as usize % DType::ALL.len()];
    macro_rules! update {
        ($atomic:ty, $bits:ty) => {{
            // SAFETY: the caller promises an aligned element of this size that is only accessed atomically.
            let cell = unsafe { <$atomic>::from_ptr(address.cast()) };
            let next = |old: $bits| {
                Some(semantics::atomic(op, dtype, Bits(old as u64), Bits(value as $bits as u64)).0 as $bits)
            };
            let old = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
            old.unwrap_or_else(|old| old) as u64
        }};
    }
    match dtype.size() {
        1 => update!(AtomicU8, u8),
        2 => update!(AtomicU16, u16),
        4 => update!(AtomicU32, u32),
        _ => update!(AtomicU64, u64),
    }
}

/// What the host must know to print, and to hand messages from role to role: shared by all launches of a kernel.
pub(super) struct Context {
    pub(super) prints: HashMap<u32, PrintSite>,
    pub(super) sites: HashMap<u32, Site>,
}

pub(super) struct PrintSite {
    message: String,
    /// Type and offset in scratch memory of each value.
    values: Vec<(DType, Shape, usize)>,
}

impl Context {
    pub(super) fn new(kernel: &Kernel, plan: &super::plan::Plan) -> Context {
        let mut prints = HashMap::new();
        for (i, op) in kernel.ops.iter().enumerate() {
            let OpKind::Print { message } = &op.kind else { continue };
            let mut values = vec![];
            for (j, &v) in op.operands.iter().enumerate() {
                if let Type::Tile(dtype, shape) = kernel.ty(v)
                    && let Some(l) = plan.copy(crate::ir::OpId(i as u32), j, shape)
                {
                    values.push((dtype, shape, plan.array_offset(l.array)));
                }
            }
            prints.insert(i as u32, PrintSite { message: message.clone(), values });
        }
        Context { prints, sites: super::roles::sites(kernel, plan) }
    }
}

/// Prints what an operation has left in scratch memory.
///
/// # Safety
/// `context` and `ids` must be those of the launch, `scratch` its memory with the operation's values written.
pub(super) unsafe extern "C" fn print(context: *const Context, op: u32, ids: *const LaunchIds, scratch: *const u8) {
    // SAFETY: the caller passes the pointers that `CpuKernel::launch` gave it.
    let (context, ids) = unsafe { (&*context, &*ids) };
    let Some(site) = context.prints.get(&op) else { return };
    let [x, y, z] = ids.program;
    let mut text = format!("({x}, {y}, {z}) {}", site.message);
    for &(dtype, shape, offset) in &site.values {
        // SAFETY: the compiled code has written `shape.numel()` elements there.
        let tile = Tile::from_bits(dtype, shape, |i| unsafe { element(dtype, scratch.add(offset), i) });
        let _ = write!(text, " {tile}");
    }
    text.push('\n');
    // A closed standard output is no reason to stop computing.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// One element of an array in scratch memory.
///
/// # Safety
/// The array must have more than `i` elements.
pub(super) unsafe fn element(dtype: DType, array: *const u8, i: usize) -> Bits {
    // SAFETY: the caller promises the element.
    unsafe {
        match dtype {
            DType::Bool => Bits((array.cast::<u32>().add(i).read_unaligned() != 0) as u64),
            d if d.size() == 8 => Bits(array.cast::<u64>().add(i).read_unaligned()),
            d if d.is_float() => semantics::from_f32(d, array.cast::<f32>().add(i).read_unaligned()),
            d => Bits::from_i64(d, array.cast::<i32>().add(i).read_unaligned() as i64),
        }
    }
}

/// Sets one element of an array in scratch memory.
///
/// # Safety
/// As of [`element`]; nobody else looks at the array meanwhile.
pub(super) unsafe fn set_element(dtype: DType, array: *mut u8, i: usize, bits: Bits) {
    // SAFETY: arrays are aligned to 64 bytes, and the caller promises the element.
    unsafe {
        match dtype {
            DType::Bool => array.cast::<u32>().add(i).write(if bits.0 == 0 { 0 } else { u32::MAX }),
            d if d.size() == 8 => array.cast::<u64>().add(i).write(bits.0),
            d if d.is_float() => array.cast::<f32>().add(i).write(semantics::to_f32(d, bits)),
            d => array.cast::<i32>().add(i).write(bits.to_i64(d) as i32),
        }
    }
}
