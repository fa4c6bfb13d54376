//! Operations on elements. What they compute is said by [`semantics`](crate::semantics), on the bits of one element;
//! here are the loops, with shortcuts for the common dtypes that a test holds to the definition bit for bit.

use super::error::{ErrorKind, Fault};
use super::tile::{Data, map_elements, unflatten};
use crate::ir::{BinaryOp, CmpOp, DType, Shape, UnaryOp};
use crate::semantics;
use half::{bf16, f16};

pub(super) fn unary(op: UnaryOp, dtype: DType, x: &Data) -> Data {
    Data::generate(dtype, x.len(), |i| semantics::unary(op, dtype, x.get(i)))
}

#[inline]
fn zip<T: Copy, R>(x: &[T], y: &[T], f: impl Fn(T, T) -> R) -> Vec<R> {
    x.iter().zip(y).map(|(&x, &y)| f(x, y)).collect()
}

/// `shape` is for naming the element at fault.
pub(super) fn binary(op: BinaryOp, dtype: DType, shape: Shape, x: &Data, y: &Data) -> Result<Data, Fault> {
    if let Some(fast) = binary_fast(op, dtype, x, y) {
        return Ok(fast);
    }
    Data::try_generate(dtype, x.len(), |i| {
        semantics::binary(op, dtype, x.get(i), y.get(i))
            .ok_or_else(|| Fault::from(ErrorKind::DivisionByZero).at(unflatten(shape, i)))
    })
}

fn binary_fast(op: BinaryOp, dtype: DType, x: &Data, y: &Data) -> Option<Data> {
    fn floats<T: Copy>(
        op: BinaryOp,
        x: &[T],
        y: &[T],
        decode: impl Fn(T) -> f32,
        encode: impl Fn(f32) -> T,
    ) -> Option<Vec<T>> {
        Some(match op {
            BinaryOp::Add => zip(x, y, |x, y| encode(decode(x) + decode(y))),
            BinaryOp::Sub => zip(x, y, |x, y| encode(decode(x) - decode(y))),
            BinaryOp::Mul => zip(x, y, |x, y| encode(decode(x) * decode(y))),
            BinaryOp::Div => zip(x, y, |x, y| encode(decode(x) / decode(y))),
            _ => return None,
        })
    }
    Some(match (dtype, x, y) {
        (DType::F32, Data::W4(x), Data::W4(y)) => Data::W4(floats(op, x, y, f32::from_bits, f32::to_bits)?),
        (DType::BF16, Data::W2(x), Data::W2(y)) => {
            Data::W2(floats(op, x, y, |x| bf16::from_bits(x).to_f32(), |x| bf16::from_f32(x).to_bits())?)
        }
        (DType::F16, Data::W2(x), Data::W2(y)) => {
            Data::W2(floats(op, x, y, |x| f16::from_bits(x).to_f32(), |x| f16::from_f32(x).to_bits())?)
        }
        (DType::I32, Data::W4(x), Data::W4(y)) => Data::W4(match op {
            BinaryOp::Add => zip(x, y, u32::wrapping_add),
            BinaryOp::Sub => zip(x, y, u32::wrapping_sub),
            BinaryOp::Mul => zip(x, y, u32::wrapping_mul),
            BinaryOp::And => zip(x, y, |x, y| x & y),
            _ => return None,
        }),
        (DType::Bool, Data::W1(x), Data::W1(y)) => Data::W1(match op {
            BinaryOp::And => zip(x, y, |x, y| x & y),
            BinaryOp::Or => zip(x, y, |x, y| x | y),
            _ => return None,
        }),
        _ => return None,
    })
}

pub(super) fn fma(dtype: DType, x: &Data, a: &Data, b: &Data) -> Data {
    Data::generate(dtype, x.len(), |i| semantics::fma(dtype, x.get(i), a.get(i), b.get(i)))
}

pub(super) fn compare(op: CmpOp, dtype: DType, x: &Data, y: &Data) -> Data {
    fn typed<T: Copy, U: PartialOrd>(op: CmpOp, x: &[T], y: &[T], decode: impl Fn(T) -> U) -> Vec<u8> {
        match op {
            CmpOp::Eq => zip(x, y, |x, y| (decode(x) == decode(y)) as u8),
            CmpOp::Ne => zip(x, y, |x, y| (decode(x) != decode(y)) as u8),
            CmpOp::Lt => zip(x, y, |x, y| (decode(x) < decode(y)) as u8),
            CmpOp::Le => zip(x, y, |x, y| (decode(x) <= decode(y)) as u8),
            CmpOp::Gt => zip(x, y, |x, y| (decode(x) > decode(y)) as u8),
            CmpOp::Ge => zip(x, y, |x, y| (decode(x) >= decode(y)) as u8),
        }
    }
    Data::W1(match (dtype, x, y) {
        (DType::F32, Data::W4(x), Data::W4(y)) => typed(op, x, y, f32::from_bits),
        (DType::I32, Data::W4(x), Data::W4(y)) => typed(op, x, y, |x| x as i32),
        _ => (0..x.len()).map(|i| semantics::compare(op, dtype, x.get(i), y.get(i)) as u8).collect(),
    })
}

pub(super) fn select(c: &Data, x: &Data, y: &Data) -> Data {
    let Data::W1(c) = c else { panic!("a condition is bool; the verifier refuses such a kernel") };
    match (x, y) {
        (Data::W1(x), Data::W1(y)) => Data::W1(choose(c, x, y)),
        (Data::W2(x), Data::W2(y)) => Data::W2(choose(c, x, y)),
        (Data::W4(x), Data::W4(y)) => Data::W4(choose(c, x, y)),
        (Data::W8(x), Data::W8(y)) => Data::W8(choose(c, x, y)),
        _ => panic!("select of different types; the verifier refuses such a kernel"),
    }
}

fn choose<T: Copy>(c: &[u8], x: &[T], y: &[T]) -> Vec<T> {
    c.iter().zip(x.iter().zip(y)).map(|(&c, (&x, &y))| if c != 0 { x } else { y }).collect()
}

pub(super) fn cast(from: DType, to: DType, x: &Data) -> Data {
    match (from, to, x) {
        (DType::BF16, DType::F32, Data::W2(v)) => {
            Data::W4(v.iter().map(|&x| bf16::from_bits(x).to_f32().to_bits()).collect())
        }
        (DType::F16, DType::F32, Data::W2(v)) => {
            Data::W4(v.iter().map(|&x| f16::from_bits(x).to_f32().to_bits()).collect())
        }
        (DType::F32, DType::BF16, Data::W4(v)) => {
            Data::W2(v.iter().map(|&x| bf16::from_f32(f32::from_bits(x)).to_bits()).collect())
        }
        (DType::F32, DType::F16, Data::W4(v)) => {
            Data::W2(v.iter().map(|&x| f16::from_f32(f32::from_bits(x)).to_bits()).collect())
        }
        (DType::I32, DType::F32, Data::W4(v)) => Data::W4(v.iter().map(|&x| (x as i32 as f32).to_bits()).collect()),
        _ => Data::generate(to, x.len(), |i| semantics::cast(from, to, x.get(i))),
    }
}

/// The same bits; only bool has bits that are no value of it, and becomes `!= 0`.
pub(super) fn bitcast(to: DType, x: &Data) -> Data {
    match x {
        Data::W1(v) if to == DType::Bool => Data::W1(v.iter().map(|&x| (x != 0) as u8).collect()),
        _ => map_elements!(x, v => v.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Bits;

    /// Values where shortcuts go wrong: zeros of both signs, subnormals, infinities, NaNs, extremes, and noise.
    fn hostile(dtype: DType) -> Vec<u64> {
        let width = 8 * dtype.size() as u32;
        let top = 1u64 << (width - 1);
        let mut v = vec![0, 1, 2, 3, top, top + 1, top - 1, u64::MAX >> (64 - width)];
        v.extend(
            [0.0, 1.0, -1.5, 3.25, 1e-40, 65504.0, 3e38, f64::INFINITY, f64::NEG_INFINITY, f64::NAN]
                .map(|x| if dtype.is_float() { Bits::from_f64(dtype, x).0 } else { 5 }),
        );
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        v.extend((0..40).map(|_| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 13) & (u64::MAX >> (64 - width))
        }));
        if dtype == DType::Bool {
            v.iter_mut().for_each(|x| *x &= 1);
        }
        v
    }

    fn pairs(dtype: DType) -> (Data, Data) {
        let v = hostile(dtype);
        let n = v.len();
        let x = Data::generate(dtype, n * n, |i| Bits(v[i / n]));
        let y = Data::generate(dtype, n * n, |i| Bits(v[i % n]));
        (x, y)
    }

    /// Equal, any NaN being as good as any other.
    fn same(dtype: DType, x: Bits, y: Bits) -> bool {
        x == y || dtype.is_float() && x.to_f64(dtype).is_nan() && y.to_f64(dtype).is_nan()
    }

    #[test]
    fn shortcuts_agree_with_the_definition() {
        use BinaryOp::*;
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::I32, DType::Bool] {
            let (x, y) = pairs(dtype);
            let mut fast = 0;
            for op in [Add, Sub, Mul, Div, Rem, Min, Max, And, Or, Xor, Shl, Shr] {
                let Some(z) = binary_fast(op, dtype, &x, &y) else { continue };
                fast += 1;
                for i in 0..x.len() {
                    let want = semantics::binary(op, dtype, x.get(i), y.get(i)).unwrap();
                    assert!(same(dtype, z.get(i), want), "{op:?} {dtype} {:x?} {:x?}", x.get(i), y.get(i));
                }
            }
            assert!(fast >= 2, "{dtype} has no shortcuts");
            for op in [CmpOp::Eq, CmpOp::Ne, CmpOp::Lt, CmpOp::Le, CmpOp::Gt, CmpOp::Ge] {
                let z = compare(op, dtype, &x, &y);
                for i in 0..x.len() {
                    let want = semantics::compare(op, dtype, x.get(i), y.get(i));
                    assert_eq!(z.bool_at(i), want, "{op:?} {dtype} {:x?} {:x?}", x.get(i), y.get(i));
                }
            }
        }
    }

    #[test]
    fn casts_agree_with_the_definition() {
        for from in DType::ALL {
            let v = hostile(from);
            let x = Data::generate(from, v.len(), |i| Bits(v[i]));
            for to in DType::ALL {
                let y = cast(from, to, &x);
                for i in 0..v.len() {
                    let want = semantics::cast(from, to, x.get(i));
                    assert!(same(to, y.get(i), want), "{from} to {to} of {:x?}", x.get(i));
                }
            }
        }
    }
}
