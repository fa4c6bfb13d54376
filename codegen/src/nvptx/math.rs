//! Elementwise operations on one element, as LLVM text.
//!
//! Floats narrower than f32 are widened, computed in f32 and rounded once, as the IR demands. Division, square root and
//! every sum and product are IEEE and never contracted; exponentials, logarithms and the functions built on them are
//! hardware approximations with a correction, good to about 2^-21 of the value. An instruction's `.ftz` form, which takes
//! subnormal numbers for zeros and gives zeros for them, is used where the IR says the same (`exp2`, `log2_approx`) or nothing is lost by
//! it (`sigmoid` says why); elsewhere it would make zeros that the interpreter does not have.

use super::text::{V, Writer, float, int, llvm_type};
use crate::ir::{BinaryOp, CmpOp, Combine, DType, UnaryOp};
use std::f32::consts;

/// An element's value as f32.
pub fn to_f32(w: &mut Writer, dtype: DType, x: &V) -> V {
    match dtype {
        DType::F32 => x.clone(),
        DType::BF16 => {
            let wide = w.op(format_args!("zext i16 {x} to i32"));
            let high = w.op(format_args!("shl i32 {wide}, 16"));
            w.op(format_args!("bitcast i32 {high} to float"))
        }
        DType::F16 => {
            let h = w.op(format_args!("bitcast i16 {x} to half"));
            w.op(format_args!("fpext half {h} to float"))
        }
        DType::F8E5M2 => {
            // The upper half of an f16.
            let wide = w.op(format_args!("zext i8 {x} to i16"));
            let bits = w.op(format_args!("shl i16 {wide}, 8"));
            to_f32(w, DType::F16, &bits)
        }
        DType::F8E4M3 => {
            // Exponent and mantissa moved to f32's places are off by the difference of the biases, a power of two;
            // the product is exact for normal and subnormal numbers alike.
            let wide = w.op(format_args!("zext i8 {x} to i32"));
            let magnitude = w.op(format_args!("and i32 {wide}, 127"));
            let moved = w.op(format_args!("shl i32 {magnitude}, 20"));
            let small = w.op(format_args!("bitcast i32 {moved} to float"));
            let value = w.op(format_args!("fmul float {small}, {}", float(2f32.powi(120))));
            let bits = w.op(format_args!("bitcast float {value} to i32"));
            let nan = w.op(format_args!("icmp eq i32 {magnitude}, 127"));
            let bits = w.op(format_args!("select i1 {nan}, i32 2143289344, i32 {bits}"));
            let sign = w.op(format_args!("and i32 {wide}, 128"));
            let sign = w.op(format_args!("shl i32 {sign}, 24"));
            let bits = w.op(format_args!("or i32 {bits}, {sign}"));
            w.op(format_args!("bitcast i32 {bits} to float"))
        }
        d => {
            let op = if d.is_signed() { "sitofp" } else { "uitofp" };
            w.op(format_args!("{op} {} {x} to float", llvm_type(d)))
        }
    }
}

/// An f32 rounded to a float type.
pub fn from_f32(w: &mut Writer, dtype: DType, x: &V) -> V {
    match dtype {
        DType::F32 => x.clone(),
        // The conversion of a pair runs at four times the rate of that of a single.
        DType::BF16 | DType::F16 => {
            let [narrow, _] = narrow_pair(w, dtype, x, &float(0.0));
            narrow
        }
        DType::F8E4M3 => encode_f8(w, x, 20, 0x7ffff, 960, 0x3c80_0000, 16384.0, 0x7e, 0x7e),
        DType::F8E5M2 => encode_f8(w, x, 21, 0xfffff, 448, 0x3880_0000, 128.0, 0x7b, 0x7c),
        d => unreachable!("{d} is no float type"),
    }
}

/// Rounds two numbers to f16 or bf16 by one instruction.
pub fn narrow_pair(w: &mut Writer, dtype: DType, x: &V, y: &V) -> [V; 2] {
    let kind = if dtype == DType::BF16 { "bf16x2" } else { "f16x2" };
    let pair = w.asm("i32", &format!("cvt.rn.{kind}.f32 $0, $1, $2;"), "=r,f,f", &[("float", y), ("float", x)]);
    w.halves(&pair)
}

/// A sum, difference or product of two pairs of f16 or bf16 by one instruction. It rounds once; so does the way through
/// f32, which has more than twice their bits.
pub fn binary_pair(w: &mut Writer, op: BinaryOp, dtype: DType, x: [&V; 2], y: [&V; 2]) -> [V; 2] {
    let kind = if dtype == DType::BF16 { "bf16x2" } else { "f16x2" };
    let name = match op {
        BinaryOp::Add => "add",
        BinaryOp::Sub => "sub",
        BinaryOp::Mul => "mul",
        other => unreachable!("no instruction for pairs of {other:?}"),
    };
    let [x, y] = [x, y].map(|[low, high]| w.join(low, high));
    let pair = w.asm("i32", &format!("{name}.rn.{kind} $0, $1, $2;"), "=r,r,r", &[("i32", &x), ("i32", &y)]);
    w.halves(&pair)
}

/// Rounds to an 8-bit float: by integer arithmetic on the bits where the result is normal, and below by adding a number
/// whose unit in the last place is the subnormals' spacing.
#[allow(clippy::too_many_arguments)]
fn encode_f8(
    w: &mut Writer,
    x: &V,
    shift: u32,
    half: u32,
    rebias: u32,
    min_normal: u32,
    magic: f32,
    largest: u32,
    over: u32,
) -> V {
    let bits = w.op(format_args!("bitcast float {x} to i32"));
    let a = w.op(format_args!("and i32 {bits}, 2147483647"));
    let sign = w.op(format_args!("lshr i32 {bits}, 24"));
    let sign = w.op(format_args!("and i32 {sign}, 128"));
    let odd = w.op(format_args!("lshr i32 {a}, {shift}"));
    let odd = w.op(format_args!("and i32 {odd}, 1"));
    let rounded = w.op(format_args!("add i32 {a}, {half}"));
    let rounded = w.op(format_args!("add i32 {rounded}, {odd}"));
    let rounded = w.op(format_args!("lshr i32 {rounded}, {shift}"));
    let normal = w.op(format_args!("sub i32 {rounded}, {rebias}"));
    let magnitude = w.op(format_args!("bitcast i32 {a} to float"));
    let sum = w.op(format_args!("fadd float {magnitude}, {}", float(magic)));
    let sum = w.op(format_args!("bitcast float {sum} to i32"));
    let subnormal = w.op(format_args!("sub i32 {sum}, {}", magic.to_bits()));
    let small = w.op(format_args!("icmp ult i32 {a}, {min_normal}"));
    let code = w.op(format_args!("select i1 {small}, i32 {subnormal}, i32 {normal}"));
    let large = w.op(format_args!("icmp ugt i32 {code}, {largest}"));
    let code = w.op(format_args!("select i1 {large}, i32 {over}, i32 {code}"));
    let nan = w.op(format_args!("icmp ugt i32 {a}, 2139095040"));
    let code = w.op(format_args!("select i1 {nan}, i32 127, i32 {code}"));
    let code = w.op(format_args!("or i32 {code}, {sign}"));
    w.op(format_args!("trunc i32 {code} to i8"))
}

/// A function of the special function unit, by its PTX name: as an intrinsic, so that a sign of the operand is folded in.
fn approx(w: &mut Writer, instruction: &str, x: &V) -> V {
    let name = instruction.strip_suffix("32").expect("all are of f32");
    w.call("float", &format!("llvm.nvvm.{name}"), &[("float", x)])
}

fn fadd(w: &mut Writer, a: &V, b: &V) -> V {
    w.op(format_args!("fadd float {a}, {b}"))
}
fn fsub(w: &mut Writer, a: &V, b: &V) -> V {
    w.op(format_args!("fsub float {a}, {b}"))
}
fn fmul(w: &mut Writer, a: &V, b: &V) -> V {
    w.op(format_args!("fmul float {a}, {b}"))
}
fn fdiv(w: &mut Writer, a: &V, b: &V) -> V {
    w.op(format_args!("fdiv float {a}, {b}"))
}
/// a · b + c, rounded once.
pub fn fma(w: &mut Writer, a: &V, b: &V, c: &V) -> V {
    w.call("float", "llvm.fma.f32", &[("float", a), ("float", b), ("float", c)])
}
fn intrinsic(w: &mut Writer, name: &str, x: &V) -> V {
    w.call("float", &format!("llvm.{name}.f32"), &[("float", x)])
}
fn fneg(w: &mut Writer, x: &V) -> V {
    w.op(format_args!("fneg float {x}"))
}

/// Σ coefficients[i] · x^i by Horner's rule.
fn polynomial(w: &mut Writer, x: &V, coefficients: &[f64]) -> V {
    let (last, rest) = coefficients.split_last().expect("a polynomial has a coefficient");
    rest.iter().rev().fold(float(*last as f32), |sum, &c| fma(w, &sum, x, &float(c as f32)))
}

/// e^x. 2^(x·log2 e) loses what the product rounds away; that remainder, found exactly by an fma, enters as the factor
/// 1 + r·ln 2. The clamp keeps the factor near 1 where the power is 0 or infinite.
fn exp(w: &mut Writer, x: &V) -> V {
    let log2e = float(consts::LOG2_E);
    let low = float((std::f64::consts::LOG2_E - consts::LOG2_E as f64) as f32);
    let t = fmul(w, x, &log2e);
    let minus_t = fneg(w, &t);
    let r = fma(w, x, &log2e, &minus_t);
    let r = fma(w, x, &low, &r);
    let r = w.call("float", "llvm.minnum.f32", &[("float", &r), ("float", &float(1e-4))]);
    let r = w.call("float", "llvm.maxnum.f32", &[("float", &r), ("float", &float(-1e-4))]);
    let factor = fma(w, &r, &float(consts::LN_2), &float(1.0));
    let power = approx(w, "ex2.approx.f32", &t);
    fmul(w, &power, &factor)
}

/// 2·atanh(s) = ln((1 + s) / (1 - s)) by its series, for |s| up to 1/3.
fn two_atanh(w: &mut Writer, s: &V) -> V {
    let square = fmul(w, s, s);
    let coefficients: Vec<f64> = (1..=7).map(|k| 2.0 / (2 * k + 1) as f64).collect();
    let tail = polynomial(w, &square, &coefficients);
    let tail = fmul(w, &tail, &square);
    let tail = fmul(w, &tail, s);
    fma(w, s, &float(2.0), &tail)
}

/// The exponent e and the logarithm of the mantissa m, x = 2^e·m with m in [2/3, 4/3); for positive finite x.
fn log_parts(w: &mut Writer, x: &V) -> (V, V) {
    // Subnormal numbers are brought into the normal range first.
    let tiny = w.op(format_args!("fcmp olt float {x}, {}", float(f32::MIN_POSITIVE)));
    let scaled = fmul(w, x, &float(8388608.0));
    let a = w.select(&tiny, "float", &scaled, x);
    let bits = w.op(format_args!("bitcast float {a} to i32"));
    let e = w.op(format_args!("sub i32 {bits}, {}", (2f32 / 3.0).to_bits()));
    let e = w.op(format_args!("and i32 {e}, {}", 0xff80_0000u32 as i32));
    let m = w.op(format_args!("sub i32 {bits}, {e}"));
    let m = w.op(format_args!("bitcast i32 {m} to float"));
    let e = w.op(format_args!("ashr i32 {e}, 23"));
    let shift = w.select(&tiny, "i32", &int(-23), &int(0));
    let e = w.op(format_args!("add i32 {e}, {shift}"));
    let e = w.op(format_args!("sitofp i32 {e} to float"));
    let f = fadd(w, &m, &float(-1.0));
    let d = fadd(w, &m, &float(1.0));
    let s = fdiv(w, &f, &d);
    (e, two_atanh(w, &s))
}

/// `result` for positive finite x; otherwise what logarithms give: -inf of 0, NaN of negatives, x of inf and NaN.
fn log_limits(w: &mut Writer, x: &V, result: &V) -> V {
    let finite = w.op(format_args!("fcmp olt float {x}, {}", float(f32::INFINITY)));
    let r = w.select(&finite, "float", result, x);
    let negative = w.op(format_args!("fcmp olt float {x}, {}", float(0.0)));
    let r = w.select(&negative, "float", &float_nan(), &r);
    let zero = w.op(format_args!("fcmp oeq float {x}, {}", float(0.0)));
    w.select(&zero, "float", &float(f32::NEG_INFINITY), &r)
}

fn float_nan() -> V {
    "0x7FF8000000000000".into()
}

/// sin or cos: x reduced by multiples of π/2 in three parts (exact for |x| up to about 10^5), then a Taylor polynomial.
fn sin_cos(w: &mut Writer, x: &V, cosine: bool) -> V {
    let n = fmul(w, x, &float(consts::FRAC_2_PI));
    let n = intrinsic(w, "roundeven", &n);
    // π/2 in parts of few bits, so that the products with small n are exact.
    const PARTS: [f32; 3] = [1.570_312_5, 4.837_512_97e-4, 7.549_789_95e-8];
    let mut r = x.clone();
    for part in PARTS {
        r = fma(w, &n, &float(-part), &r);
    }
    let k = w.call("i32", "llvm.fptosi.sat.i32.f32", &[("float", &n)]);
    let k = if cosine { w.op(format_args!("add i32 {k}, 1")) } else { k };
    let square = fmul(w, &r, &r);
    let sine = polynomial(w, &square, &[-1.0 / 6.0, 1.0 / 120.0, -1.0 / 5040.0, 1.0 / 362880.0]);
    let sine = fmul(w, &sine, &square);
    let sine = fma(w, &sine, &r, &r);
    let cosine = polynomial(w, &square, &[1.0, -0.5, 1.0 / 24.0, -1.0 / 720.0, 1.0 / 40320.0, -1.0 / 3628800.0]);
    let odd = w.op(format_args!("trunc i32 {k} to i1"));
    let y = w.select(&odd, "float", &cosine, &sine);
    let minus = fneg(w, &y);
    let bit = w.op(format_args!("and i32 {k}, 2"));
    let flip = w.icmp("ne", "i32", &bit, &int(0));
    w.select(&flip, "float", &minus, &y)
}

fn tanh(w: &mut Writer, x: &V) -> V {
    let a = intrinsic(w, "fabs", x);
    // 1 - 2 / (e^2a + 1); near zero that cancels, and the series takes over.
    let double = fadd(w, &a, &a);
    let e = exp(w, &double);
    let e = fadd(w, &e, &float(1.0));
    let q = fdiv(w, &float(2.0), &e);
    let large = fsub(w, &float(1.0), &q);
    let large = w.call("float", "llvm.copysign.f32", &[("float", &large), ("float", x)]);
    let square = fmul(w, x, x);
    let series = [-1.0 / 3.0, 2.0 / 15.0, -17.0 / 315.0, 62.0 / 2835.0, -1382.0 / 155925.0];
    let small = polynomial(w, &square, &series);
    let small = fmul(w, &small, &square);
    let small = fma(w, &small, x, x);
    let near = w.op(format_args!("fcmp olt float {a}, {}", float(0.35)));
    w.select(&near, "float", &small, &large)
}

fn erf(w: &mut Writer, x: &V) -> V {
    let a = intrinsic(w, "fabs", x);
    // Taylor's series up to 1.
    let square = fmul(w, x, x);
    let mut factorial = 1.0;
    let mut series = vec![];
    for n in 0..12 {
        if n > 0 {
            factorial *= n as f64;
        }
        let sign = if n % 2 == 0 { 1.0 } else { -1.0 };
        series.push(sign * std::f64::consts::FRAC_2_SQRT_PI / (factorial * (2 * n + 1) as f64));
    }
    let small = polynomial(w, &square, &series);
    let small = fmul(w, &small, x);
    // 1 - t·p(t)·e^-x², Abramowitz and Stegun 7.1.26: within 1.5e-7, where erf is at least 0.84.
    let d = fma(w, &a, &float(0.327_591_1), &float(1.0));
    let t = fdiv(w, &float(1.0), &d);
    let p = polynomial(w, &t, &[0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429]);
    let p = fmul(w, &p, &t);
    let minus = fneg(w, &square);
    let e = exp(w, &minus);
    let p = fmul(w, &p, &e);
    let large = fsub(w, &float(1.0), &p);
    let large = w.call("float", "llvm.copysign.f32", &[("float", &large), ("float", x)]);
    let near = w.op(format_args!("fcmp olt float {a}, {}", float(1.0)));
    let y = w.select(&near, "float", &small, &large);
    // NaN takes neither branch of a comparison: the copysign above kept it through e^-x².
    let nan = w.op(format_args!("fcmp uno float {x}, {x}"));
    w.select(&nan, "float", x, &y)
}

/// 1 / (1 + 2^(-x·log2 e)). What the product rounds away changes the result by (1 - sigmoid)·|x|·2^-24 of its value:
/// nothing where the result matters, 2^-20 of it where x is -16. A power below 2^-126 is lost beside the 1, and the sum is
/// at least 1, so that flushing subnormal numbers turns results below 2^-126 into zero and changes nothing else.
fn sigmoid(w: &mut Writer, x: &V) -> V {
    let t = fmul(w, x, &float(-consts::LOG2_E));
    let e = approx(w, "ex2.approx.ftz.f32", &t);
    let d = fadd(w, &e, &float(1.0));
    approx(w, "rcp.approx.ftz.f32", &d)
}

fn unary_f32(w: &mut Writer, op: UnaryOp, x: &V) -> V {
    match op {
        UnaryOp::Neg => fneg(w, x),
        UnaryOp::Abs => intrinsic(w, "fabs", x),
        UnaryOp::Not => unreachable!("not of a float"),
        UnaryOp::Exp => exp(w, x),
        UnaryOp::Exp2 => approx(w, "ex2.approx.ftz.f32", x),
        UnaryOp::Log => {
            let (e, m) = log_parts(w, x);
            let low = (std::f64::consts::LN_2 - 0.693_359_375) as f32;
            let sum = fma(w, &e, &float(low), &m);
            let sum = fma(w, &e, &float(0.693_359_375), &sum);
            log_limits(w, x, &sum)
        }
        UnaryOp::Log2 => {
            let (e, m) = log_parts(w, x);
            let sum = fma(w, &m, &float(consts::LOG2_E), &e);
            log_limits(w, x, &sum)
        }
        UnaryOp::Log2Approx => approx(w, "lg2.approx.ftz.f32", x),
        UnaryOp::Sqrt => intrinsic(w, "sqrt", x),
        UnaryOp::Rsqrt => approx(w, "rsqrt.approx.f32", x),
        UnaryOp::Sin => sin_cos(w, x, false),
        UnaryOp::Cos => sin_cos(w, x, true),
        UnaryOp::Tanh => tanh(w, x),
        UnaryOp::Sigmoid => sigmoid(w, x),
        UnaryOp::Silu => {
            let s = sigmoid(w, x);
            fmul(w, x, &s)
        }
        UnaryOp::Softplus => {
            // ln(1 + u) = 2·atanh(u / (2 + u)), u = e^-|x| in [0, 1].
            let a = intrinsic(w, "fabs", x);
            let minus = fneg(w, &a);
            let u = exp(w, &minus);
            let d = fadd(w, &u, &float(2.0));
            let s = fdiv(w, &u, &d);
            let tail = two_atanh(w, &s);
            let positive = w.op(format_args!("fcmp ogt float {x}, {}", float(0.0)));
            let head = w.select(&positive, "float", x, &float(0.0));
            fadd(w, &head, &tail)
        }
        UnaryOp::Erf => erf(w, x),
        UnaryOp::Floor => intrinsic(w, "floor", x),
        UnaryOp::Ceil => intrinsic(w, "ceil", x),
        UnaryOp::Round => intrinsic(w, "roundeven", x),
        UnaryOp::Trunc => intrinsic(w, "trunc", x),
        UnaryOp::Recip => fdiv(w, &float(1.0), x),
    }
}

pub fn unary(w: &mut Writer, op: UnaryOp, dtype: DType, x: &V) -> V {
    let ty = llvm_type(dtype);
    if dtype.is_float() {
        let wide = to_f32(w, dtype, x);
        let y = unary_f32(w, op, &wide);
        return from_f32(w, dtype, &y);
    }
    match op {
        UnaryOp::Not => w.op(format_args!("xor {ty} {x}, -1")),
        UnaryOp::Neg => w.op(format_args!("sub {ty} 0, {x}")),
        UnaryOp::Abs if dtype.is_signed() => w.call(ty, &format!("llvm.abs.{ty}"), &[(ty, x), ("i1", &int(0))]),
        UnaryOp::Abs => x.clone(),
        op => unreachable!("{op:?} of {dtype}"),
    }
}

pub fn binary(w: &mut Writer, op: BinaryOp, dtype: DType, x: &V, y: &V) -> V {
    let ty = llvm_type(dtype);
    if dtype.is_float() {
        let (a, b) = (to_f32(w, dtype, x), to_f32(w, dtype, y));
        let r = match op {
            BinaryOp::Add => fadd(w, &a, &b),
            BinaryOp::Sub => fsub(w, &a, &b),
            BinaryOp::Mul => fmul(w, &a, &b),
            BinaryOp::Div => fdiv(w, &a, &b),
            BinaryOp::Rem => w.op(format_args!("frem float {a}, {b}")),
            BinaryOp::Min => w.call("float", "llvm.minnum.f32", &[("float", &a), ("float", &b)]),
            BinaryOp::Max => w.call("float", "llvm.maxnum.f32", &[("float", &a), ("float", &b)]),
            op => unreachable!("{op:?} of {dtype}"),
        };
        return from_f32(w, dtype, &r);
    }
    let signed = dtype.is_signed();
    match op {
        BinaryOp::Add => w.bin("add", ty, x, y),
        BinaryOp::Sub => w.bin("sub", ty, x, y),
        BinaryOp::Mul => w.bin("mul", ty, x, y),
        BinaryOp::And => w.bin("and", ty, x, y),
        BinaryOp::Or => w.bin("or", ty, x, y),
        BinaryOp::Xor => w.bin("xor", ty, x, y),
        BinaryOp::Shl | BinaryOp::Shr => {
            let amount = w.op(format_args!("and {ty} {y}, {}", 8 * dtype.size() - 1));
            let opcode = if op == BinaryOp::Shl {
                "shl"
            } else if signed {
                "ashr"
            } else {
                "lshr"
            };
            w.op(format_args!("{opcode} {ty} {x}, {amount}"))
        }
        BinaryOp::Min | BinaryOp::Max if dtype == DType::Bool => {
            w.bin(if op == BinaryOp::Min { "and" } else { "or" }, ty, x, y)
        }
        BinaryOp::Min | BinaryOp::Max => {
            let name = match (op == BinaryOp::Min, signed) {
                (true, true) => "smin",
                (true, false) => "umin",
                (false, true) => "smax",
                (false, false) => "umax",
            };
            w.call(ty, &format!("llvm.{name}.{ty}"), &[(ty, x), (ty, y)])
        }
        BinaryOp::Div | BinaryOp::Rem => {
            // LLVM leaves division by zero and MIN / -1 undefined: such divisors are replaced by 1.
            let zero = w.icmp("eq", ty, y, &int(0));
            let mut divisor = w.select(&zero, ty, &int(1), y);
            let minus_one = signed.then(|| w.icmp("eq", ty, y, &int(-1)));
            if let Some(m) = &minus_one {
                divisor = w.select(m, ty, &int(1), &divisor);
            }
            let opcode = match (op == BinaryOp::Div, signed) {
                (true, true) => "sdiv",
                (true, false) => "udiv",
                (false, true) => "srem",
                (false, false) => "urem",
            };
            let mut q = w.op(format_args!("{opcode} {ty} {x}, {divisor}"));
            if let (BinaryOp::Div, Some(m)) = (op, &minus_one) {
                let negated = w.op(format_args!("sub {ty} 0, {x}"));
                q = w.select(m, ty, &negated, &q);
            }
            w.select(&zero, ty, &int(0), &q)
        }
    }
}

pub fn compare(w: &mut Writer, op: CmpOp, dtype: DType, x: &V, y: &V) -> V {
    if dtype.is_float() {
        let (a, b) = (to_f32(w, dtype, x), to_f32(w, dtype, y));
        let predicate = match op {
            CmpOp::Eq => "oeq",
            CmpOp::Ne => "une",
            CmpOp::Lt => "olt",
            CmpOp::Le => "ole",
            CmpOp::Gt => "ogt",
            CmpOp::Ge => "oge",
        };
        return w.op(format_args!("fcmp {predicate} float {a}, {b}"));
    }
    let s = if dtype.is_signed() { "s" } else { "u" };
    let predicate = match op {
        CmpOp::Eq => "eq".to_owned(),
        CmpOp::Ne => "ne".to_owned(),
        CmpOp::Lt => format!("{s}lt"),
        CmpOp::Le => format!("{s}le"),
        CmpOp::Gt => format!("{s}gt"),
        CmpOp::Ge => format!("{s}ge"),
    };
    w.icmp(&predicate, llvm_type(dtype), x, y)
}

pub fn cast(w: &mut Writer, from: DType, to: DType, x: &V) -> V {
    let (a, b) = (llvm_type(from), llvm_type(to));
    match (from, to) {
        _ if from == to => x.clone(),
        (_, DType::Bool) if from.is_float() => {
            let wide = to_f32(w, from, x);
            w.op(format_args!("fcmp une float {wide}, {}", float(0.0)))
        }
        (_, DType::Bool) => w.icmp("ne", a, x, &int(0)),
        _ if from.is_float() && to.is_float() => {
            let wide = to_f32(w, from, x);
            from_f32(w, to, &wide)
        }
        _ if from.is_float() => {
            let wide = to_f32(w, from, x);
            let s = if to.is_signed() { "si" } else { "ui" };
            w.call(b, &format!("llvm.fpto{s}.sat.{b}.f32"), &[("float", &wide)])
        }
        _ if to.is_float() => {
            let wide = to_f32(w, from, x);
            from_f32(w, to, &wide)
        }
        _ if from.size() > to.size() => w.op(format_args!("trunc {a} {x} to {b}")),
        _ if from == DType::Bool => w.op(format_args!("zext i1 {x} to {b}")),
        _ if from.size() == to.size() => x.clone(),
        _ if from.is_signed() => w.op(format_args!("sext {a} {x} to {b}")),
        _ => w.op(format_args!("zext {a} {x} to {b}")),
    }
}

/// Same bits, another type of the same size.
pub fn bitcast(w: &mut Writer, from: DType, to: DType, x: &V) -> V {
    let (a, b) = (llvm_type(from), llvm_type(to));
    match (from, to) {
        // LLVM takes `bfloat` to i16 to `half` for one conversion, which it then cannot select: it must not see both.
        (DType::BF16, _) if to != DType::BF16 => {
            let v = w.asm("i16", "mov.b16 $0, $1;", "=h,h", &[("i16", x)]);
            w.same_bits(&v, x);
            v
        }
        _ if a == b => x.clone(),
        (DType::Bool, _) => w.op(format_args!("zext i1 {x} to {b}")),
        (_, DType::Bool) => w.icmp("ne", a, x, &int(0)),
        _ => w.op(format_args!("bitcast {a} {x} to {b}")),
    }
}

/// One step of a named combination.
pub fn combine(w: &mut Writer, combine: Combine, dtype: DType, x: &V, y: &V) -> V {
    let op = match (combine, dtype) {
        (Combine::Sum, DType::Bool) => BinaryOp::Xor,
        (Combine::Prod, DType::Bool) => BinaryOp::And,
        (Combine::Sum, _) => BinaryOp::Add,
        (Combine::Prod, _) => BinaryOp::Mul,
        (Combine::Max, _) => BinaryOp::Max,
        (Combine::Min, _) => BinaryOp::Min,
        (Combine::And, _) => BinaryOp::And,
        (Combine::Or, _) => BinaryOp::Or,
        (Combine::Xor, _) => BinaryOp::Xor,
        (Combine::Region, _) => unreachable!("a region is inlined, not named"),
    };
    binary(w, op, dtype, x, y)
}
