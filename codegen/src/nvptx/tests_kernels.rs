//! Kernels for the tests of this back end, built by hand.

use crate::ir::{
    Access, AtomicOp, BinaryOp, Builder, CmpOp, Combine, DType, Fact, Kernel, Loc, OpKind, Precision, Shape, Type,
    UnaryOp, ValueId,
};

/// The kernel with facts as a launch on contiguous, well-sized tensors gives them.
pub(super) fn contiguous(mut k: Kernel) -> Kernel {
    use crate::ir::SlotKind;
    let rank = |p: u32| match k.ty(k.params[p as usize].value) {
        Type::View(_, r) => r,
        _ => 0,
    };
    k.facts = k
        .slots()
        .iter()
        .map(|s| match s.kind {
            SlotKind::Scalar => Fact::Unknown,
            SlotKind::Stride(d) if d + 1 == rank(s.param) => Fact::One,
            _ => Fact::Multiple16,
        })
        .collect();
    k
}

pub(super) fn built(name: &str, f: impl FnOnce(&mut Builder)) -> Kernel {
    let mut b = Builder::new(name, Loc::caller());
    f(&mut b);
    let k = b.finish();
    if let Err(e) = crate::ir::verify(&k) {
        panic!("{name}: {e:?}");
    }
    k
}

pub(super) fn view(b: &mut Builder, name: &str, d: DType, rank: u8, access: Access) -> ValueId {
    b.kernel_mut().add_param(name, Type::View(d, rank), access, None)
}

pub(super) fn for_loop(
    b: &mut Builder,
    n: ValueId,
    step: i32,
    inits: &[ValueId],
    f: impl FnOnce(&mut Builder, ValueId, &[ValueId]) -> Vec<ValueId>,
) -> Vec<ValueId> {
    let (zero, step) = (b.i32(0), b.i32(step));
    let mut types = vec![Type::scalar(DType::I32)];
    types.extend(inits.iter().map(|&v| b.ty(v)));
    let (region, args) = b.open(&types);
    let out = f(b, args[0], &args[1..]);
    b.close(&out);
    let operands: Vec<ValueId> = [zero, n, step].iter().chain(inits).copied().collect();
    let op = b.emit_with_regions(OpKind::For { stages: 0 }, &operands, &types[1..], &[region]);
    b.results(op)
}

pub(super) fn gemm(m: u32, n: u32, k: u32, dtype: DType, precision: Precision) -> Kernel {
    contiguous(built(&format!("gemm_{m}_{n}_{k}_{dtype}_{precision:?}"), |b| {
        let (x, y) = (view(b, "a", dtype, 2, Access::Read), view(b, "b", dtype, 2, Access::Read));
        let out = view(b, "c", dtype, 2, Access::Write);
        let (pm, pn) = (b.program_id(0), b.program_id(1));
        let (bm, bn) = (b.i32(m as i32), b.i32(n as i32));
        let (row, column) = (b.binary(BinaryOp::Mul, pm, bm), b.binary(BinaryOp::Mul, pn, bn));
        let acc = b.splat(DType::F32, Shape::new(&[m, n]), 0.0);
        let depth = b.dim(x, 1);
        let sum = for_loop(b, depth, k as i32, &[acc], |b, i, c| {
            let p = b.load(x, &[row, i], Shape::new(&[m, k]), None);
            let q = b.load(y, &[i, column], Shape::new(&[k, n]), None);
            vec![b.dot(p, q, c[0], precision)]
        });
        let r = b.cast(sum[0], dtype);
        b.store(out, r, &[row, column]);
    }))
}

/// Products of tiles of rank 3: in a loop, of a transposed operand, and of sums of such products.
pub(super) fn batched(count: u32, m: u32, n: u32, k: u32, dtype: DType) -> Kernel {
    contiguous(built(&format!("batched_{count}_{m}_{n}_{k}_{dtype}"), |b| {
        let (x, y) = (view(b, "a", dtype, 3, Access::Read), view(b, "b", dtype, 3, Access::Read));
        let sums = if dtype.is_float() { DType::F32 } else { DType::I32 };
        let out = view(b, "c", sums, 3, Access::Write);
        let (pid, each, zero) = (b.program_id(0), b.i32(count as i32), b.i32(0));
        let first = b.binary(BinaryOp::Mul, pid, each);
        let acc = b.splat(sums, Shape::new(&[count, m, n]), 0.0);
        let depth = b.dim(x, 2);
        let sum = for_loop(b, depth, k as i32, &[acc], |b, i, c| {
            let p = b.load(x, &[first, zero, i], Shape::new(&[count, m, k]), None);
            let q = b.load(y, &[first, zero, i], Shape::new(&[count, n, k]), None);
            let q = b.transpose(q, &[0, 2, 1]);
            vec![b.dot(p, q, c[0], Precision::F32)]
        });
        let mut sum = sum[0];
        if dtype.is_float() {
            // Small, so that little is lost where the sums of sums cancel.
            let scale = b.splat(sums, Shape::new(&[count, m, n]), 1.0 / 64.0);
            sum = b.binary(BinaryOp::Mul, sum, scale);
            let t = b.transpose(sum, &[0, 2, 1]);
            let none = b.splat(sums, Shape::new(&[count, m, m]), 0.0);
            let square = b.dot(sum, t, none, Precision::F32);
            sum = b.dot(square, sum, sum, Precision::F32);
        }
        b.store(out, sum, &[first, zero, zero]);
    }))
}

/// What is lost when x·a is rounded, by an exact product; x·a + x; and the first of these for the first elements alone.
pub(super) fn fused(dtype: DType) -> Kernel {
    contiguous(built(&format!("fused_{dtype}"), |b| {
        let (x, a) = (view(b, "x", dtype, 1, Access::Read), view(b, "a", dtype, 1, Access::Read));
        let out = view(b, "out", dtype, 2, Access::Write);
        let zero = b.i32(0);
        let [tx, ta] = [x, a].map(|v| b.load(v, &[zero], Shape::new(&[256]), None));
        let [sx, sa] = [x, a].map(|v| {
            let t = b.load(v, &[zero], Shape::new(&[1]), None);
            b.reshape(t, Shape::SCALAR)
        });
        let [lost, first] = [(tx, ta), (sx, sa)].map(|(x, a)| {
            let nothing = b.splat(dtype, b.ty(x).shape(), 0.0);
            let rounded = b.fma(x, a, nothing);
            let negative = b.unary(UnaryOp::Neg, rounded);
            b.fma(x, a, negative)
        });
        let sum = b.fma(tx, ta, tx);
        let first = b.broadcast(first, Shape::new(&[256]));
        for (row, t) in [lost, sum, first].into_iter().enumerate() {
            let row = b.i32(row as i32);
            let t = b.reshape(t, Shape::new(&[1, 256]));
            b.store(out, t, &[row, zero]);
        }
    }))
}

pub(super) fn rmsnorm(n: u32) -> Kernel {
    contiguous(built("rmsnorm", |b| {
        let x = view(b, "x", DType::BF16, 2, Access::Read);
        let w = view(b, "w", DType::BF16, 1, Access::Read);
        let out = view(b, "out", DType::BF16, 2, Access::Write);
        let (row, zero) = (b.program_id(0), b.i32(0));
        let t = b.load(x, &[row, zero], Shape::new(&[1, n]), None);
        let t = b.cast(t, DType::F32);
        let square = b.binary(BinaryOp::Mul, t, t);
        let s = b.reduce(square, 1, Combine::Sum);
        let inv = b.splat(DType::F32, Shape::new(&[1]), 1.0 / n as f64);
        let s = b.binary(BinaryOp::Mul, s, inv);
        let r = b.unary(UnaryOp::Rsqrt, s);
        let r = b.reshape(r, Shape::new(&[1, 1]));
        let r = b.broadcast(r, Shape::new(&[1, n]));
        let y = b.binary(BinaryOp::Mul, t, r);
        let g = b.load(w, &[zero], Shape::new(&[n]), None);
        let g = b.reshape(g, Shape::new(&[1, n]));
        let g = b.cast(g, DType::F32);
        let y = b.binary(BinaryOp::Mul, y, g);
        let y = b.cast(y, DType::BF16);
        b.store(out, y, &[row, zero]);
    }))
}

/// Flash attention of one head, without a mask.
pub(super) fn attention(m: u32, n: u32, d: u32) -> Kernel {
    contiguous(built("attention", |b| {
        let q = view(b, "q", DType::BF16, 2, Access::Read);
        let k = view(b, "k", DType::BF16, 2, Access::Read);
        let v = view(b, "v", DType::BF16, 2, Access::Read);
        let out = view(b, "out", DType::BF16, 2, Access::Write);
        let (pid, bm, zero) = (b.program_id(0), b.i32(m as i32), b.i32(0));
        let row = b.binary(BinaryOp::Mul, pid, bm);
        let query = b.load(q, &[row, zero], Shape::new(&[m, d]), None);
        let len = b.dim(k, 0);
        let acc = b.splat(DType::F32, Shape::new(&[m, d]), 0.0);
        let most = b.splat(DType::F32, Shape::new(&[m]), f64::NEG_INFINITY);
        let sum = b.splat(DType::F32, Shape::new(&[m]), 0.0);
        let r = for_loop(b, len, n as i32, &[acc, most, sum], |b, i, c| {
            let keys = b.load(k, &[i, zero], Shape::new(&[n, d]), None);
            let keys = b.transpose(keys, &[1, 0]);
            let none = b.splat(DType::F32, Shape::new(&[m, n]), 0.0);
            let s = b.dot(query, keys, none, Precision::F32);
            let big = b.reduce(s, 1, Combine::Max);
            let big = b.binary(BinaryOp::Max, c[1], big);
            let wide = b.reshape(big, Shape::new(&[m, 1]));
            let wide = b.broadcast(wide, Shape::new(&[m, n]));
            let s = b.binary(BinaryOp::Sub, s, wide);
            let p = b.unary(UnaryOp::Exp2, s);
            let old = b.binary(BinaryOp::Sub, c[1], big);
            let old = b.unary(UnaryOp::Exp2, old);
            let rows = b.reduce(p, 1, Combine::Sum);
            let sum = b.binary(BinaryOp::Mul, c[2], old);
            let sum = b.binary(BinaryOp::Add, sum, rows);
            let scale = b.reshape(old, Shape::new(&[m, 1]));
            let scale = b.broadcast(scale, Shape::new(&[m, d]));
            let acc = b.binary(BinaryOp::Mul, c[0], scale);
            let values = b.load(v, &[i, zero], Shape::new(&[n, d]), None);
            let p = b.cast(p, DType::BF16);
            let acc = b.dot(p, values, acc, Precision::F32);
            vec![acc, big, sum]
        });
        let total = b.reshape(r[2], Shape::new(&[m, 1]));
        let total = b.broadcast(total, Shape::new(&[m, d]));
        let y = b.binary(BinaryOp::Div, r[0], total);
        let y = b.cast(y, DType::BF16);
        b.store(out, y, &[row, zero]);
    }))
}

/// Every unary operation on one tile.
pub(super) fn functions(dtype: DType) -> Kernel {
    use UnaryOp::*;
    let all = [
        Neg, Abs, Exp, Exp2, Log, Log2, Log2Approx, Sqrt, Rsqrt, Sin, Cos, Tanh, Sigmoid, Silu, Softplus, Erf, Floor,
        Ceil, Round, Trunc, Recip,
    ];
    contiguous(built("functions", |b| {
        let x = view(b, "x", dtype, 1, Access::Read);
        let out = view(b, "out", dtype, 2, Access::Write);
        let zero = b.i32(0);
        let t = b.load(x, &[zero], Shape::new(&[256]), None);
        for (i, op) in all.into_iter().enumerate() {
            let y = b.unary(op, t);
            let y = b.reshape(y, Shape::new(&[1, 256]));
            let i = b.i32(i as i32);
            b.store(out, y, &[i, zero]);
        }
    }))
}

/// Casts from one type to all.
pub(super) fn casts(from: DType) -> Kernel {
    built("casts", |b| {
        let zero = b.i32(0);
        let x = view(b, from.name(), from, 1, Access::Read);
        let t = b.load(x, &[zero], Shape::new(&[64]), None);
        for to in DType::ALL {
            let y = b.cast(t, to);
            let out = view(b, to.name(), to, 1, Access::Write);
            b.store(out, y, &[zero]);
        }
    })
}

/// What the bits of `from` can be taken for.
pub(super) fn bitcasts_of(from: DType) -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(move |to| ![from, *to].contains(&DType::Bool) && to.size() == from.size())
}

/// The bits of a computed value (no bool) as every type of the same size, computed with again where that is possible.
pub(super) fn bitcasts(from: DType) -> Kernel {
    built("bitcasts", |b| {
        let zero = b.i32(0);
        let at_least_one = |b: &mut Builder, x: ValueId, d: DType| {
            if d.is_fp8() {
                return x;
            }
            let one = b.splat(d, Shape::new(&[64]), 1.0);
            b.binary(BinaryOp::Max, x, one)
        };
        let x = view(b, from.name(), from, 1, Access::Read);
        let t = b.load(x, &[zero], Shape::new(&[64]), None);
        let t = at_least_one(b, t, from);
        for to in bitcasts_of(from) {
            let y = b.bitcast(t, to);
            let y = at_least_one(b, y, to);
            let out = view(b, to.name(), to, 1, Access::Write);
            b.store(out, y, &[zero]);
        }
    })
}

/// The index of the largest element of every row, by a region; and a running maximum from the far end.
pub(super) fn argmax_and_scan(rows: u32, n: u32) -> Kernel {
    contiguous(built("argmax", |b| {
        let x = view(b, "x", DType::F32, 2, Access::Read);
        let out = view(b, "out", DType::I32, 1, Access::Write);
        let sums = view(b, "sums", DType::F32, 2, Access::Write);
        let zero = b.i32(0);
        let t = b.load(x, &[zero, zero], Shape::new(&[rows, n]), None);
        let i = b.iota(Shape::new(&[rows, n]), 1);
        let r = b.reduce_by(&[t, i], 1, |b, l, r| {
            let less = b.compare(CmpOp::Lt, l[0], r[0]);
            vec![b.select(less, r[0], l[0]), b.select(less, r[1], l[1])]
        });
        b.store(out, r[1], &[zero]);
        let s = b.scan(t, 1, Combine::Sum, true);
        b.store(sums, s, &[zero, zero]);
        let s = b.scan(t, 0, Combine::Max, false);
        b.store(sums, s, &[zero, zero]);
    }))
}

/// Scans of rows or columns (or of a row whose index bits are `mixed`) in both directions: sums, maxima, and compositions of the affine maps x ↦ a·x + b, whose
/// order matters. All exact: what is summed as bf16 is 1 or -1.
pub(super) fn scans(rows: u32, n: u32, axis: usize, warps: u8, mixed: bool) -> Kernel {
    let mut k = contiguous(built(&format!("scans_{rows}_{n}_{axis}_{warps}_{mixed}"), |b| {
        let zero = b.i32(0);
        let shape = Shape::new(&[rows, n]);
        let load = |b: &mut Builder, d: DType| {
            let x = view(b, d.name(), d, 2, Access::Read);
            let x = b.load(x, &[zero, zero], shape, None);
            if !mixed {
                return x;
            }
            let x = b.reshape(x, Shape::new(&[4, 2, 2, n / 16]));
            let x = b.transpose(x, &[3, 1, 0, 2]);
            b.reshape(x, shape)
        };
        let (x, y) = (load(b, DType::I32), load(b, DType::I64));
        let [one, two] = [1.0, 2.0].map(|c| b.splat(DType::I32, shape, c));
        let z = b.binary(BinaryOp::And, x, two);
        let z = b.binary(BinaryOp::Sub, z, one);
        let z = b.cast(z, DType::BF16);
        // Odd factors, whose products do not become 0.
        let one = b.splat(DType::I64, shape, 1.0);
        let a = b.binary(BinaryOp::Or, y, one);
        for reverse in [false, true] {
            let maps = b.scan_by(&[a, x], axis, reverse, |b, l, r| {
                let factor = b.binary(BinaryOp::Mul, l[0], r[0]);
                let narrow = b.cast(r[0], DType::I32);
                let moved = b.binary(BinaryOp::Mul, l[1], narrow);
                vec![factor, b.binary(BinaryOp::Add, moved, r[1])]
            });
            let sums = [
                b.scan(x, axis, Combine::Sum, reverse),
                b.scan(y, axis, Combine::Max, reverse),
                b.scan(z, axis, Combine::Sum, reverse),
            ];
            for v in maps.into_iter().chain(sums) {
                let d = b.ty(v).dtype();
                let out = view(b, "out", d, 2, Access::Write);
                b.store(out, v, &[zero, zero]);
            }
        }
    }));
    k.options.warps = warps;
    k
}

/// Gather, scatter, atomics of all kinds, asserts and prints.
pub(super) fn memory() -> Kernel {
    built("memory", |b| {
        let x = view(b, "x", DType::F32, 2, Access::Read);
        let out = view(b, "out", DType::F32, 1, Access::Write);
        let [zero, some] = [0, 3].map(|i| b.i32(i));
        let s = Shape::new(&[64]);
        let i = b.iota(s, 0);
        let three = b.splat(DType::I32, s, 3.0);
        let mask = b.compare(CmpOp::Gt, i, three);
        let other = b.splat(DType::F32, s, -1.0);
        let g = b.gather(x, &[i, three], Some((mask, other)));
        b.scatter(out, g, &[i], Some(mask));
        let back = b.load(out, &[zero], s, None);
        b.store(out, back, &[zero]);
        for d in [DType::F32, DType::I32, DType::U64, DType::BF16, DType::F16, DType::U8] {
            let y = view(b, &format!("atomic_{d}"), d, 1, Access::Write);
            let v = b.cast(g, d);
            let mut ops = vec![AtomicOp::Add, AtomicOp::Exchange];
            if d.is_int() || d == DType::F32 {
                ops.extend([AtomicOp::Min, AtomicOp::Max]);
            }
            if d.is_int() {
                ops.extend([AtomicOp::And, AtomicOp::Or, AtomicOp::Xor]);
            }
            for op in ops {
                let old = b.atomic(op, y, v, &[i], Some(mask));
                b.store(y, old, &[zero]);
            }
            b.store_add(y, v, &[zero]);
            b.store_add(y, v, &[some]);
        }
        let yes = b.compare(CmpOp::Eq, i, i);
        b.assert(yes, "always");
        let n = b.dim(x, 0);
        b.print("extent", &[n]);
    })
}
