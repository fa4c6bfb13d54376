//! What instructions compute from numbers alone.

/// An operation on two integers of a width, or two floats (width 0).
pub type Binary = fn(u32, u64, u64) -> u64;
/// A comparison of two integers, given both unsigned and signed.
pub type Compare = fn(u64, u64, i64, i64) -> bool;
pub type CompareFloats = fn(f32, f32) -> bool;

pub fn bits_of(ty: &str) -> u32 {
    match ty {
        "i1" => 1,
        "i8" => 8,
        "i16" | "half" | "bfloat" => 16,
        "i32" | "float" => 32,
        "i64" | "double" | "ptr" => 64,
        other => panic!("type {other}"),
    }
}

pub fn mask(bits: u32) -> u64 {
    if bits == 64 { u64::MAX } else { (1 << bits) - 1 }
}

pub fn signed(x: u64, bits: u32) -> i64 {
    ((x << (64 - bits)) as i64) >> (64 - bits)
}

/// A float from its bits, and back.
pub fn f(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

pub fn b(x: f32) -> u64 {
    x.to_bits() as u64
}

pub fn binary(op: &str) -> Binary {
    match op {
        "fadd" => |_, x, y| b(f(x) + f(y)),
        "fsub" => |_, x, y| b(f(x) - f(y)),
        "fmul" => |_, x, y| b(f(x) * f(y)),
        "fdiv" => |_, x, y| b(f(x) / f(y)),
        "frem" => |_, x, y| b(f(x) % f(y)),
        "add" => |_, x, y| x.wrapping_add(y),
        "sub" => |_, x, y| x.wrapping_sub(y),
        "mul" => |_, x, y| x.wrapping_mul(y),
        "and" => |_, x, y| x & y,
        "or" => |_, x, y| x | y,
        "xor" => |_, x, y| x ^ y,
        "shl" => |_, x, y| x << y,
        "lshr" => |_, x, y| x >> y,
        "ashr" => |n, x, y| (signed(x, n) >> y) as u64,
        "sdiv" => |n, x, y| (signed(x, n) / signed(y, n)) as u64,
        "srem" => |n, x, y| (signed(x, n) % signed(y, n)) as u64,
        "udiv" => |_, x, y| x / y,
        "urem" => |_, x, y| x % y,
        op => panic!("{op}"),
    }
}

pub fn compare(predicate: &str) -> Compare {
    match predicate {
        "eq" => |x, y, _, _| x == y,
        "ne" => |x, y, _, _| x != y,
        "ult" => |x, y, _, _| x < y,
        "ule" => |x, y, _, _| x <= y,
        "ugt" => |x, y, _, _| x > y,
        "uge" => |x, y, _, _| x >= y,
        "slt" => |_, _, x, y| x < y,
        "sle" => |_, _, x, y| x <= y,
        "sgt" => |_, _, x, y| x > y,
        "sge" => |_, _, x, y| x >= y,
        p => panic!("icmp {p}"),
    }
}

pub fn compare_floats(predicate: &str) -> CompareFloats {
    match predicate {
        "oeq" => |x, y| x == y,
        "une" => |x, y| x != y,
        "olt" => |x, y| x < y,
        "ole" => |x, y| x <= y,
        "ogt" => |x, y| x > y,
        "oge" => |x, y| x >= y,
        "uno" => |x, y| x.is_nan() || y.is_nan(),
        p => panic!("fcmp {p}"),
    }
}

pub fn cast(op: &str, from: &str, to: &str, x: u64) -> u64 {
    match op {
        "zext" | "trunc" | "bitcast" => x,
        "sext" => signed(x, bits_of(from)) as u64,
        "fptrunc" if to == "half" => half::f16::from_f32(f(x)).to_bits() as u64,
        "fptrunc" => half::bf16::from_f32(f(x)).to_bits() as u64,
        "fpext" => b(half::f16::from_bits(x as u16).to_f32()),
        "sitofp" => b(signed(x, bits_of(from)) as f32),
        "uitofp" => b(x as f32),
        op => panic!("{op}"),
    }
}

/// What an instruction of this name makes of an operand or a result: in `.ftz` forms, a zero of a subnormal number.
fn flushed(name: &str, x: f32) -> f32 {
    if x.is_subnormal() && name.contains(".ftz") { 0f32.copysign(x) } else { x }
}

/// The special function unit.
fn special_function(name: &str, x: f32) -> u64 {
    let x = flushed(name, x);
    let y = match name.trim_start_matches("llvm.nvvm.") {
        "ex2.approx.ftz.f" | "ex2.approx.f" => x.exp2(),
        "lg2.approx.ftz.f" => x.log2(),
        "rcp.approx.ftz.f" => 1.0 / x,
        "rsqrt.approx.f" => 1.0 / x.sqrt(),
        other => panic!("intrinsic {other}"),
    };
    b(flushed(name, y))
}

/// An LLVM intrinsic that needs nothing but its arguments.
pub fn intrinsic(name: &str, a: &[u64]) -> u64 {
    let parts: Vec<&str> = name.split('.').collect();
    let ty = parts.last().copied().unwrap_or_default();
    match parts[1] {
        "nvvm" if ty == "prmt" => {
            let bytes = (a[0] & mask(32) | a[1] << 32).to_le_bytes();
            let chosen = |i: usize| bytes[(a[2] >> (4 * i) & 7) as usize];
            u32::from_le_bytes([chosen(0), chosen(1), chosen(2), chosen(3)]) as u64
        }
        "nvvm" => special_function(name, f(a[0])),
        "fma" => b(f(a[0]).mul_add(f(a[1]), f(a[2]))),
        "minnum" => b(f(a[0]).min(f(a[1]))),
        "maxnum" => b(f(a[0]).max(f(a[1]))),
        "fabs" => a[0] & 0x7fff_ffff,
        "copysign" => a[0] & 0x7fff_ffff | a[1] & 0x8000_0000,
        "sqrt" => b(f(a[0]).sqrt()),
        "floor" => b(f(a[0]).floor()),
        "ceil" => b(f(a[0]).ceil()),
        "trunc" => b(f(a[0]).trunc()),
        "roundeven" => b(f(a[0]).round_ties_even()),
        "fptosi" => {
            let bits = bits_of(parts[3]);
            let limit = 1i128 << (bits - 1);
            ((f(a[0]) as f64 as i128).clamp(-limit, limit - 1) as u64) & mask(bits)
        }
        "fptoui" => {
            let bits = bits_of(parts[3]);
            ((f(a[0]) as f64 as i128).clamp(0, (1i128 << bits) - 1) as u64) & mask(bits)
        }
        "abs" => {
            let bits = bits_of(ty);
            signed(a[0] & mask(bits), bits).wrapping_abs() as u64 & mask(bits)
        }
        "smin" | "smax" | "umin" | "umax" => {
            let bits = bits_of(ty);
            let (x, y) = (a[0] & mask(bits), a[1] & mask(bits));
            let less = if parts[1].starts_with('s') { signed(x, bits) < signed(y, bits) } else { x < y };
            if less == parts[1].ends_with("min") { x } else { y }
        }
        _ => panic!("intrinsic {name}"),
    }
}
