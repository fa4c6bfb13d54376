//! Tiles on their way between threads - exchanges, conversions, slices across lanes, products of rank 3, loads ahead -
//! compute what the interpreter computes.

use super::differential::{compare, specialised};
use super::simulate::{Order, Simulator, address_of};
#[cfg(feature = "llvm")]
use super::tests::check_both;
use super::tests_kernels::{built, contiguous, for_loop, view};
use super::{Target, llvm_text};
use crate::gpu::layout::test_support::Rng;
use crate::ir::{Access, BinaryOp, Builder, CmpOp, Combine, DType, Kernel, OpKind, Precision, Shape, UnaryOp, ValueId};

/// How many random kernels.
const SEEDS: u64 = 150;

fn tile(b: &mut Builder, from: ValueId, dims: &[u32]) -> ValueId {
    let zero = b.i32(0);
    b.load(from, &vec![zero; dims.len()], Shape::new(dims), None)
}

fn store(b: &mut Builder, name: &str, x: ValueId) {
    let ty = b.ty(x);
    let rank = ty.shape().rank();
    let out = view(b, name, ty.dtype(), rank as u8, Access::Write);
    let zero = b.i32(0);
    b.store(out, x, &vec![zero; rank]);
}

/// The text of the kernel specialised to these shapes, for a chip with everything.
fn text(k: &Kernel, shapes: &[&[i64]]) -> String {
    llvm_text(&specialised(k, shapes), Target { sm: 90 }).unwrap_or_else(|e| panic!("{e}")).text
}

// -- exchanges -----------------------------------------------------------------------------------------------------------

/// Sums of columns and what was the largest in them, twice with something between: what lies in scratch memory is read
/// again, and then overwritten.
#[test]
fn the_same_value_is_exchanged_several_times() {
    let k = contiguous(built("again", |b| {
        let x = view(b, "x", DType::F32, 2, Access::Read);
        let t = tile(b, x, &[4, 32]);
        let sum = b.reduce(t, 0, Combine::Sum);
        // Stored and loaded again by others: a barrier that frees all of scratch memory.
        let out = view(b, "out", DType::F32, 1, Access::Write);
        let (zero, one) = (b.i32(0), b.i32(1));
        b.store(out, sum, &[zero]);
        let back = b.load(out, &[one], Shape::new(&[32]), None);
        let most = b.reduce(t, 0, Combine::Max);
        let least = b.reduce(t, 0, Combine::Min);
        let sums = b.scan(t, 0, Combine::Sum, true);
        // Another value's exchange.
        let twice = b.binary(BinaryOp::Add, t, t);
        let other = b.reduce(twice, 0, Combine::Max);
        let again = b.reduce(t, 0, Combine::Prod);
        for (i, v) in [back, most, least, sums, other, again].into_iter().enumerate() {
            store(b, &format!("out{i}"), v);
        }
    }));
    let row: &[i64] = &[32];
    let shapes: &[&[i64]] = &[&[4, 32], &[64], row, row, row, &[4, 32], row, row];
    compare(&k, [1; 3], shapes, 1e-5);
    let stores = text(&k, shapes).matches("st.shared").count();
    assert_eq!(stores, 3, "the first value, the second, the first");
}

/// Constants look the same whatever their type.
#[test]
fn exchanged_constants_are_told_apart() {
    let k = contiguous(built("constants", |b| {
        let t = view(b, "t", DType::F32, 2, Access::Read);
        let t = tile(b, t, &[4, 32]);
        let [x, y] = [DType::I32, DType::I64].map(|d| b.splat(d, Shape::new(&[4, 32]), 3.0));
        let r = b.reduce_by(&[t, x, y], 0, |b, l, r| {
            let most = b.binary(BinaryOp::Max, l[0], r[0]);
            vec![most, b.binary(BinaryOp::Add, l[1], r[1]), b.binary(BinaryOp::Mul, l[2], r[2])]
        });
        for (name, r) in ["most", "sum", "product"].into_iter().zip(r) {
            store(b, name, r);
        }
    }));
    compare(&k, [1; 3], &[&[4, 32], &[32], &[32], &[32]], 0.0);
}

/// Where two warps exchange, a thread reads what the other one has; where four do, from one place what all have.
#[test]
fn of_two_warps_each_reads_the_others_elements() {
    for (rows, loads) in [(2, 1), (4, 4)] {
        let columns = 128 / rows;
        let k = contiguous(built("exchange", |b| {
            let x = view(b, "x", DType::F32, 2, Access::Read);
            let t = tile(b, x, &[rows, columns]);
            let sum = b.reduce(t, 0, Combine::Sum);
            store(b, "sum", sum);
        }));
        let shapes: &[&[i64]] = &[&[rows.into(), columns.into()], &[columns.into()]];
        compare(&k, [1; 3], shapes, 1e-6);
        let text = text(&k, shapes);
        assert_eq!(text.matches("ld.shared").count(), loads, "{text}");
    }
}

/// 8- to 64-bit elements in vectors, over warps.
#[test]
fn exchanges_are_vectorised() {
    for dtype in [DType::I8, DType::Bool, DType::BF16, DType::F32, DType::I64] {
        let k = contiguous(built(&format!("exchange_{dtype}"), |b| {
            let x = view(b, "x", DType::I32, 3, Access::Read);
            let t = tile(b, x, &[4, 8, 32]);
            let t = match dtype {
                DType::Bool => {
                    let zero = b.splat(DType::I32, Shape::new(&[4, 8, 32]), 0.0);
                    b.compare(CmpOp::Gt, t, zero)
                }
                d => b.cast(t, d),
            };
            let combine = if dtype == DType::Bool { Combine::Xor } else { Combine::Max };
            for axis in 0..3 {
                let r = b.reduce(t, axis, combine);
                store(b, &format!("reduced{axis}"), r);
                let s = b.scan(t, axis, combine, axis == 1);
                store(b, &format!("scanned{axis}"), s);
            }
        }));
        let all: &[i64] = &[4, 8, 32];
        compare(&k, [1; 3], &[all, &[8, 32], all, &[4, 32], all, &[4, 8], all], 0.0);
    }
}

// -- conversions ---------------------------------------------------------------------------------------------------------

/// A tile walks through layouts: transposed and scanned, several times, with 16-bit and 32-bit elements.
fn walk(dims: [u32; 2], dtype: DType) -> Kernel {
    let turned = [dims[1], dims[0]];
    contiguous(built(&format!("walk_{dtype}"), |b| {
        let (x, y) = (view(b, "x", dtype, 2, Access::Read), view(b, "y", dtype, 2, Access::Read));
        let (x, y) = (tile(b, x, &dims), tile(b, y, &turned));
        let z = b.transpose(x, &[1, 0]);
        let z = b.binary(BinaryOp::Max, y, z);
        let z = b.scan(z, 0, Combine::Max, false);
        let z = b.transpose(z, &[1, 0]);
        let z = b.binary(BinaryOp::Min, x, z);
        let z = b.scan(z, 0, Combine::Max, true);
        let back = b.transpose(z, &[1, 0]);
        store(b, "first", z);
        store(b, "second", back);
    }))
}

#[test]
fn conversions_follow_each_other() {
    for dims in [[64, 64], [32, 128]] {
        for dtype in [DType::BF16, DType::F32, DType::I8] {
            let [a, b] = dims.map(i64::from);
            let shapes: &[&[i64]] = &[&[a, b], &[b, a], &[a, b], &[b, a]];
            compare(&walk(dims, dtype), [1; 3], shapes, 0.0);
        }
    }
}

/// The simulator does notice: without any one of its barriers the kernel fails.
#[test]
fn every_missing_barrier_is_noticed() {
    let shapes: [&[i64]; 4] = [&[64, 64]; 4];
    let mut lowered = llvm_text(&specialised(&walk([64, 64], DType::F32), &shapes), Target { sm: 90 }).unwrap();
    let barrier = "  call void @llvm.nvvm.barrier0()";
    let params: Vec<u64> = (0..4).flat_map(|i| [address_of(i), 64, 64, 64, 1]).collect();
    let run = |lowered: &super::Lowered| {
        let mut s = Simulator::new(lowered, vec![vec![0; 4 << 12]; 4]);
        s.run(&params, [0; 3], [1; 3], Order { backwards: false, early: false });
    };
    run(&lowered);
    let text = lowered.text.clone();
    let barriers: Vec<usize> = text.match_indices(barrier).map(|(at, _)| at).collect();
    assert!(barriers.len() >= 3, "{text}");
    for (i, at) in barriers.into_iter().enumerate() {
        let rest = text[at..].split_once('\n').expect("a line").1;
        lowered.text = text[..at].to_owned() + rest;
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&lowered)));
        assert!(failed.is_err(), "barrier {i}: {text}");
    }
}

// -- slices across lanes -------------------------------------------------------------------------------------------------

/// The last of the running sums of each matrix's columns, as the next step of a recurrence takes it.
#[test]
fn slices_come_from_other_lanes() {
    for dtype in [DType::F32, DType::BF16, DType::I8] {
        for (columns, row) in [(32, 15), (64, 15), (64, 0), (64, 9), (8, 15)] {
            let k = contiguous(built(&format!("last_{dtype}_{columns}_{row}"), |b| {
                let x = view(b, "x", dtype, 3, Access::Read);
                let t = tile(b, x, &[4, 16, columns]);
                let sums = b.scan(t, 1, Combine::Max, false);
                let last = b.slice(sums, &[0, row, 0], Shape::new(&[4, 1, columns]));
                let all = b.broadcast(last, Shape::new(&[4, 16, columns]));
                let rest = b.binary(BinaryOp::Sub, all, sums);
                store(b, "last", last);
                store(b, "rest", rest);
            }));
            let n = i64::from(columns);
            compare(&k, [1; 3], &[&[4, 16, n], &[4, 1, n], &[4, 16, n]], 0.0);
        }
    }
}

/// Boxes of a product's sums: their rows and columns are in other lanes and registers.
#[test]
fn slices_of_products_need_no_shared_memory() {
    let k = contiguous(built("corner", |b| {
        let (x, y) = (view(b, "x", DType::BF16, 2, Access::Read), view(b, "y", DType::BF16, 2, Access::Read));
        let (x, y) = (tile(b, x, &[64, 16]), tile(b, y, &[16, 32]));
        let none = b.splat(DType::F32, Shape::new(&[64, 32]), 0.0);
        let c = b.dot(x, y, none, Precision::F32);
        let c = b.reshape(c, Shape::new(&[4, 16, 32]));
        for (i, (at, dims)) in
            [([0, 5, 0], [4, 1, 32]), ([0, 8, 16], [4, 8, 16]), ([0, 0, 3], [4, 16, 1]), ([0, 13, 30], [4, 1, 1])]
                .into_iter()
                .enumerate()
        {
            let s = b.slice(c, &at, Shape::new(&dims));
            store(b, &format!("out{i}"), s);
        }
    }));
    let shapes: &[&[i64]] = &[&[64, 16], &[16, 32], &[4, 1, 32], &[4, 8, 16], &[4, 16, 1], &[4, 1, 1]];
    compare(&k, [1; 3], shapes, 1e-4);
}

// -- arithmetic in pairs -------------------------------------------------------------------------------------------------

/// Bit for bit; the numbers include such as round to even, overflow and underflow.
#[test]
fn pairs_round_once() {
    for (dtype, sm) in [(DType::F16, 80), (DType::BF16, 90)] {
        let k = contiguous(built(&format!("pairs_{dtype}"), |b| {
            let (x, y) = (view(b, "x", dtype, 1, Access::Read), view(b, "y", dtype, 1, Access::Read));
            let (x, y) = (tile(b, x, &[1024]), tile(b, y, &[1024]));
            let large = b.splat(dtype, Shape::new(&[1024]), 60000.0);
            let small = b.splat(dtype, Shape::new(&[1024]), 1.0 / 16384.0);
            let mut all = vec![];
            for op in [BinaryOp::Add, BinaryOp::Sub, BinaryOp::Mul] {
                let z = b.binary(op, x, y);
                all.extend([z, b.binary(op, z, large), b.binary(op, large, z), b.binary(op, z, small)]);
            }
            for (i, v) in all.into_iter().enumerate() {
                store(b, &format!("out{i}"), v);
            }
        }));
        let shapes: [&[i64]; 14] = [&[1024]; 14];
        compare(&k, [1; 3], &shapes, 0.0);
        let text = llvm_text(&specialised(&k, &shapes), Target { sm }).unwrap().text;
        assert!(["add", "sub", "mul"].iter().all(|op| text.contains(&format!("{op}.rn.{dtype}x2"))), "{text}");
    }
}

// -- products of rank 3 --------------------------------------------------------------------------------------------------

/// Extents of products of 16-bit floats: how many, M, N, K.
const PRODUCTS: [[u32; 4]; 6] =
    [[1, 16, 16, 16], [2, 16, 16, 16], [4, 32, 16, 32], [8, 16, 32, 64], [4, 16, 16, 16], [1, 64, 32, 32]];

/// Elementwise with a second matrix, in f32, and narrowed again.
fn computed(b: &mut Builder, x: ValueId, y: ValueId) -> ValueId {
    let dtype = b.ty(x).dtype();
    let [x, y] = [x, y].map(|v| b.cast(v, DType::F32));
    let y = b.unary(UnaryOp::Exp2, y);
    let x = b.binary(BinaryOp::Mul, x, y);
    b.cast(x, dtype)
}

/// Products of operands that are computed from matrices of all rows, `second` of them with K as its rows.
fn ranked([count, m, n, k]: [u32; 4], dtype: DType, second: bool) -> Kernel {
    contiguous(built(&format!("ranked_{count}_{m}_{n}_{k}_{dtype}_{second}"), |b| {
        let [x, s, y] = ["x", "s", "y"].map(|name| view(b, name, dtype, 2, Access::Read));
        let (x, s) = (tile(b, x, &[count * m, k]), tile(b, s, &[count * m, k]));
        let p = computed(b, x, s);
        let p = b.reshape(p, Shape::new(&[count, m, k]));
        let q = if second {
            let y = tile(b, y, &[count * k, n]);
            let y = computed(b, y, y);
            b.reshape(y, Shape::new(&[count, k, n]))
        } else {
            let y = tile(b, y, &[count * n, k]);
            let y = computed(b, y, y);
            let y = b.reshape(y, Shape::new(&[count, n, k]));
            b.transpose(y, &[0, 2, 1])
        };
        let acc = b.iota(Shape::new(&[count, m, n]), 2);
        let acc = b.cast(acc, DType::F32);
        let sum = b.dot(p, q, acc, Precision::F32);
        store(b, "out", sum);
    }))
}

#[test]
fn products_of_computed_operands() {
    let mut unmoved = 0;
    for extents in PRODUCTS {
        let [count, m, n, k] = extents.map(i64::from);
        for (dtype, second) in [(DType::BF16, false), (DType::F16, false), (DType::BF16, true)] {
            let kernel = ranked(extents, dtype, second);
            let rows: &[i64] = if second { &[count * k, n] } else { &[count * n, k] };
            let shapes: &[&[i64]] = &[&[count * m, k], &[count * m, k], rows, &[count, m, n]];
            // Some elements are rounded to neighbours where the powers differ a little.
            compare(&kernel, [1; 3], shapes, 2e-2);
            let text = text(&kernel, shapes);
            assert!(text.contains("mma.sync"), "{text}");
            unmoved += u32::from(!second && !text.contains("barrier0"));
        }
    }
    assert!(unmoved >= 4, "in runs, nothing moves between warps on the way from the loads to the product: {unmoved}");
}

/// (p·q)·… where a product's sums, narrowed, are the next one's second operand; also the transposed, and the first.
#[test]
fn products_of_products() {
    for [count, m, n, k] in PRODUCTS {
        for dtype in [DType::BF16, DType::F16] {
            let kernel = contiguous(built(&format!("chain_{count}_{m}_{n}_{k}_{dtype}"), |b| {
                let [x, y, z] = ["x", "y", "z"].map(|name| view(b, name, dtype, 3, Access::Read));
                let (x, y) = (tile(b, x, &[count, m, k]), tile(b, y, &[count, k, n]));
                let z = tile(b, z, &[count, 16, m]);
                let none = b.splat(DType::F32, Shape::new(&[count, m, n]), 0.0);
                let sum = b.dot(x, y, none, Precision::F32);
                let scale = b.splat(DType::F32, Shape::new(&[count, m, n]), 1.0 / 16.0);
                let sum = b.binary(BinaryOp::Mul, sum, scale);
                let narrow = b.cast(sum, dtype);
                let none = b.splat(DType::F32, Shape::new(&[count, 16, n]), 0.0);
                let second = b.dot(z, narrow, none, Precision::F32);
                let none = b.splat(DType::F32, Shape::new(&[count, m, m]), 0.0);
                let turned = b.transpose(narrow, &[0, 2, 1]);
                let square = b.dot(narrow, turned, none, Precision::F32);
                let small = b.cast(square, dtype);
                let cube = b.dot(small, narrow, sum, Precision::F32);
                for (name, v) in [("second", second), ("square", square), ("cube", cube)] {
                    store(b, name, v);
                }
            }));
            let [c, m, n, k] = [count, m, n, k].map(i64::from);
            let shapes: &[&[i64]] = &[&[c, m, k], &[c, k, n], &[c, 16, m], &[c, 16, n], &[c, m, m], &[c, m, n]];
            compare(&kernel, [1; 3], shapes, 3e-2);
            let text = text(&kernel, shapes);
            assert!(text.contains("mma.sync"), "{text}");
            // With a warp for each product, or rows.
            if c >= 4 {
                assert!(text.contains("movmatrix"), "{}: {text}", kernel.name);
            }
        }
    }
}

// -- loads ahead in threads' own slots ------------------------------------------------------------------------------------

/// A recurrence over chunks of rows, like those of linear attention: s ← s·f + xᵀ·y, with a store of what x·s was; in
/// `outer` turns of a loop around.
pub(super) fn recurrence(outer: u32, dtype: DType) -> Kernel {
    recurrence_of(outer, dtype, None, 0)
}

/// The same, of a number of rows that is a constant, or with loads that run ahead by so many stages.
fn recurrence_of(outer: u32, dtype: DType, fixed: Option<i32>, stages: u8) -> Kernel {
    let mut k = contiguous(built(&format!("recurrence_{outer}_{dtype}"), |b| {
        let (x, y) = (view(b, "x", dtype, 2, Access::Read), view(b, "y", dtype, 2, Access::Read));
        let f = view(b, "f", DType::F32, 1, Access::Read);
        let (bytes, words) =
            (view(b, "bytes", DType::I8, 2, Access::Read), view(b, "words", DType::I64, 1, Access::Read));
        let out = view(b, "out", DType::F32, 2, Access::Write);
        let last = view(b, "last", DType::F32, 2, Access::Write);
        let zero = b.i32(0);
        let none = |b: &mut Builder| b.splat(DType::F32, Shape::new(&[16, 16]), 0.0);
        let rows = fixed.map(|rows| b.i32(rows)).unwrap_or_else(|| b.dim(x, 0));
        let start = none(b);
        let turn = |b: &mut Builder, init: ValueId| {
            for_loop(b, rows, 16, &[init], |b, i, c| {
                let xs = b.load(x, &[i, zero], Shape::new(&[16, 16]), None);
                let factor = b.load(f, &[i], Shape::new(&[16]), None);
                let next = b.i32(16);
                let next = b.binary(BinaryOp::Add, i, next);
                let ys = b.load(y, &[next, zero], Shape::new(&[16, 16]), None);
                let (xs, ys) = (computed(b, xs, xs), computed(b, ys, ys));
                let signs = b.load(bytes, &[i, zero], Shape::new(&[16, 16]), None);
                let positive = b.splat(DType::I8, Shape::new(&[16, 16]), 0.0);
                let positive = b.compare(CmpOp::Ge, signs, positive);
                let minus = b.unary(UnaryOp::Neg, xs);
                let xs = b.select(positive, xs, minus);
                let few = b.load(words, &[i], Shape::new(&[16]), None);
                let few = b.cast(few, DType::F32);
                let hundredth = b.splat(DType::F32, Shape::new(&[16]), 0.01);
                let few = b.binary(BinaryOp::Mul, few, hundredth);
                let factor = b.binary(BinaryOp::Add, factor, few);
                let factor = b.reshape(factor, Shape::new(&[1, 16]));
                let factor = b.broadcast(factor, Shape::new(&[16, 16]));
                let s = b.binary(BinaryOp::Mul, c[0], factor);
                let narrow = b.cast(s, dtype);
                let empty = none(b);
                let seen = b.dot(xs, narrow, empty, Precision::F32);
                b.store(out, seen, &[i, zero]);
                let turned = b.transpose(xs, &[1, 0]);
                let quarter = b.splat(DType::F32, Shape::new(&[16, 16]), 0.25);
                let s = b.binary(BinaryOp::Mul, s, quarter);
                vec![b.dot(turned, ys, s, Precision::F32)]
            })[0]
        };
        let sum = if outer == 1 {
            turn(b, start)
        } else {
            let n = b.i32(outer as i32);
            for_loop(b, n, 1, &[start], |b, j, c| {
                let outer = b.load(x, &[j, zero], Shape::new(&[16, 16]), None);
                let inner = turn(b, c[0]);
                let tenth = b.splat(dtype, Shape::new(&[16, 16]), 0.125);
                let outer = b.binary(BinaryOp::Mul, outer, tenth);
                let narrow = b.cast(inner, dtype);
                let quarter = b.splat(DType::F32, Shape::new(&[16, 16]), 0.25);
                let inner = b.binary(BinaryOp::Mul, inner, quarter);
                vec![b.dot(outer, narrow, inner, Precision::F32)]
            })[0]
        };
        b.store(last, sum, &[zero, zero]);
    }));
    for op in &mut k.ops {
        if let OpKind::For { stages: s } = &mut op.kind {
            *s = stages;
        }
    }
    k
}

/// A tile of 16 rows and 64 columns (64 rows and 16 columns) that a loop puts together from pieces of 16 columns (rows),
/// half of them or all, and a product with it. If `stored`, it is also stored as it is.
fn put_together(axis: usize, half: bool, stored: bool) -> Kernel {
    let mut k = contiguous(built("put_together", |b| {
        let shape = |other: u32| Shape::new(&if axis == 1 { [16, other] } else { [other, 16] });
        let x = view(b, "x", DType::BF16, 2, Access::Read);
        let (whole, zero) = (shape(64), b.i32(0));
        let start = b.splat(DType::BF16, whole, 1.0);
        let end = b.i32(if half { 32 } else { 64 });
        let tile = for_loop(b, end, 16, &[start], |b, i, c| {
            let at = if axis == 1 { [zero, i] } else { [i, zero] };
            let piece = b.load(x, &at, shape(16), None);
            let piece = b.binary(BinaryOp::Add, piece, piece);
            let two = b.join(piece, piece, axis);
            let four = b.join(two, two, axis);
            let (place, extent) = (b.iota(whole, axis), b.i32(16));
            let extents = b.broadcast(extent, whole);
            let (number, wanted) = (b.binary(BinaryOp::Div, place, extents), b.binary(BinaryOp::Div, i, extent));
            let wanted = b.broadcast(wanted, whole);
            let here = b.compare(CmpOp::Eq, number, wanted);
            vec![b.select(here, four, c[0])]
        })[0];
        let y = view(b, "y", DType::BF16, 2, Access::Read);
        let y = self::tile(b, y, &[16, if axis == 1 { 16 } else { 64 }]);
        let none = b.splat(DType::F32, Shape::new(&[16, if axis == 1 { 64 } else { 16 }]), 0.0);
        let product = b.dot(y, tile, none, Precision::F32);
        store(b, "product", product);
        if stored {
            store(b, "tile", tile);
        }
    }));
    crate::passes::optimize(&mut k);
    k
}

/// In shared memory, if it is put together from all of its pieces and needed in one layout.
#[test]
fn tiles_are_put_together_in_shared_memory() {
    for axis in [0, 1] {
        for (half, stored) in [(false, false), (false, true), (true, false)] {
            let (wide, narrow): (&[i64], &[i64]) =
                if axis == 1 { (&[16, 64], &[16, 16]) } else { (&[64, 16], &[16, 64]) };
            let product: &[i64] = if axis == 1 { &[16, 64] } else { &[16, 16] };
            let shapes = &[wide, narrow, product, wide][..if stored { 4 } else { 3 }];
            let k = put_together(axis, half, stored);
            compare(&k, [1; 3], shapes, 2e-2);
            let chip = crate::gpu::Chip { warpgroups: true, shared_bytes: 227 << 10, ring_bytes: 1 << 16 };
            let plan = crate::gpu::assign::assign(&specialised(&k, shapes), chip);
            assert_eq!(plan.assemblies.len(), usize::from(!half && !stored), "axis {axis}, {half}, {stored}");
        }
    }
}

/// Sums down the rows of an accumulator, which has eight of them in different lanes, and two functions of these that meet
/// accumulators again: each thread gets whole columns, by one exchange within the warp, and one brings both functions back.
#[test]
fn scans_across_lanes_go_through_whole_columns() {
    let k = contiguous(built("columns", |b| {
        let (x, y) = (view(b, "x", DType::BF16, 2, Access::Read), view(b, "y", DType::BF16, 2, Access::Read));
        let (x, y) = (tile(b, x, &[16, 16]), tile(b, y, &[16, 32]));
        let none = b.splat(DType::F32, Shape::new(&[16, 32]), 0.0);
        let product = b.dot(x, y, none, Precision::F32);
        let sums = b.scan(product, 0, Combine::Sum, false);
        let (less, more) = (b.unary(UnaryOp::Tanh, sums), b.unary(UnaryOp::Sigmoid, sums));
        let both = b.binary(BinaryOp::Mul, product, less);
        let both = b.fma(product, more, both);
        store(b, "out", both);
    }));
    let k = Kernel { options: crate::ir::Options { warps: 1, ..k.options }, ..k };
    let shapes: &[&[i64]] = &[&[16, 16], &[16, 32], &[16, 32]];
    compare(&k, [1; 3], shapes, 2e-2);
    let text = text(&k, shapes);
    assert!(!text.contains("shfl"), "{text}");
    let exchanges = text.matches("call void @llvm.nvvm.bar.warp.sync").count();
    // Of x and y for the product, there and back, and for the store.
    assert_eq!(exchanges, 5, "{text}");
}

/// Any number of stages, fewer or more than there are iterations; all of a known number start before the first.
#[test]
fn loads_run_ahead_by_any_number_of_stages() {
    let all: &[i64] = &[80, 16];
    let shapes = [all, all, &[80], all, &[80], all, &[16, 16]];
    for stages in [2, 3, 5, 7] {
        for (outer, fixed) in [(1, None), (2, None), (1, Some(80)), (3, Some(48)), (1, Some(0))] {
            let k = recurrence_of(outer, DType::BF16, fixed, stages);
            compare(&k, [1; 3], &shapes, 3e-2);
            if (outer, fixed) == (1, Some(80)) {
                let text = text(&k, &shapes);
                let (before, body) = text.split_at(text.find("\nloop").expect("a loop"));
                assert_eq!(body.contains(".shared.global"), stages < 5, "{text}");
                let copies = before.matches("cp.async.commit_group").count();
                assert_eq!(copies, if stages < 5 { stages as usize - 1 } else { 5 }, "{text}");
            }
        }
    }
}

/// Where the copies of all iterations start before the first, a thread finds its places once; those of the others are so far
/// from them.
#[test]
fn places_of_copies_are_found_once() {
    let all: &[i64] = &[80, 16];
    let shapes = [all, all, &[80], all, &[80], all, &[16, 16]];
    let found = |rows: i32| {
        let text = text(&recurrence_of(1, DType::BF16, Some(rows), 7), &shapes);
        let before = &text[..text.find("\nloop").expect("a loop")];
        (before.matches(".shared.global").count(), before.matches("sext i32 %").count())
    };
    let [(two, places), (five, as_many)] = [32, 80].map(found);
    assert!(2 * five == 5 * two && places == as_many, "{two} and {five} copies, {places} and {as_many} places");
}

#[test]
fn loads_run_ahead_in_slots() {
    for dtype in [DType::BF16, DType::F16] {
        for (outer, rows) in [(1, 0), (1, 16), (1, 32), (1, 80), (0, 32), (3, 16), (2, 48), (3, 0)] {
            let k = recurrence(outer, dtype);
            let all: &[i64] = &[rows, 16];
            let shapes = [all, all, &[rows], all, &[rows], all, &[16, 16]];
            compare(&k, [1; 3], &shapes, 3e-2);
        }
    }
    let all: &[i64] = &[80, 16];
    let shapes = [all, all, &[80], all, &[80], all, &[16, 16]];
    let text = text(&recurrence(1, DType::BF16), &shapes);
    let body = text.find("\nloop").expect("a loop");
    assert!(text[..body].matches(".shared.global").count() >= 4, "{text}");
}

/// Two passes over x, the second of which scales by what the first one has summed up, and takes y, too; `between` them
/// anything.
fn two_passes(second_from: i32, between: &str) -> Kernel {
    let k = crate::ir::parse(&format!(
        "kernel two_passes(%x: view<bf16,2> [address % 16, extent1 % 16, stride0 % 16, stride1 = 1],
                           %y: view<bf16,2> [address % 16, extent1 % 16, stride0 % 16, stride1 = 1],
                           %ready: write view<i32,1>, %out: write view<f32,2>) warps 1 {{
          %zero: i32 = const 0
          %from: i32 = const {second_from}
          %all: i32 = const 64
          %step: i32 = const 16
          %none: f32<16x16> = const 0.0
          %squares: f32<16x16> = for %d: i32 = %zero to %all step %step stages 4 carrying (%sum: f32<16x16> = %none) {{
            %a: bf16<16x16> = load %x[%zero, %d]
            %twice: bf16<16x16> = add %a, %a
            %turned: bf16<16x16> = transpose [1, 0] %twice
            %more: f32<16x16> = dot %twice, %turned, %sum
            yield %more
          }}
          {between}
          %narrow: bf16<16x16> = cast %squares
          %result: f32<16x16> = for %e: i32 = %zero to %all step %step stages 4 carrying (%s: f32<16x16> = %none) {{
            %at: i32 = add %from, %e
            %p: bf16<16x16> = load %x[%zero, %at]
            %q: bf16<16x16> = load %y[%zero, %e]
            %scaled: bf16<16x16> = mul %p, %narrow
            %minus: bf16<16x16> = neg %q
            %side: bf16<16x16> = transpose [1, 0] %minus
            %next: f32<16x16> = dot %scaled, %side, %s
            yield %next
          }}
          store %out[%zero, %zero], %result
          yield
        }}"
    ));
    k.unwrap()
}

/// Loops without products run ahead if their author asks for that. A row that is passed over twice is read once.
#[test]
fn loops_without_products_run_ahead_if_asked_to() {
    let shapes: [&[i64]; 2] = [&[100], &[128]];
    let passes = |stages: &str| {
        let k = crate::ir::parse(&format!(
            "kernel row(%x: view<i32,1> [address % 16, stride0 = 1], %out: write view<i32,1>) warps 1 {{
              %zero: i32 = const 0
              %all: i32 = const 128
              %step: i32 = const 32
              %none: i32<32> = const 0
              %sum: i32<32> = for %d: i32 = %zero to %all step %step{stages} carrying (%s: i32<32> = %none) {{
                %a: i32<32> = load %x[%d]
                %more: i32<32> = add %s, %a
                yield %more
              }}
              %total: i32 = reduce sum axis 0 %sum
              for %e: i32 = %zero to %all step %step{stages} {{
                %b: i32<32> = load %x[%e]
                %of_all: i32<32> = broadcast %total
                %least: i32<32> = sub %b, %of_all
                store %out[%e], %least
                yield
              }}
              yield
            }}"
        ));
        let k = k.unwrap();
        compare(&k, [1; 3], &shapes, 0.0);
        let text = text(&k, &shapes);
        let (before, loops) = text.split_at(text.find("\nloop").expect("a loop"));
        [before, loops].map(|part| part.matches("cp.async.ca.shared.global").count())
    };
    assert_eq!([passes(""), passes(" stages 4"), passes(" stages 2")], [[0, 0], [4, 0], [1, 3]]);
}

/// A loop whose loads are all those of a later one, too, takes them from that one's slots: they are copied once, and all
/// copies start before the first loop. Not if there is a wait between the two: what is behind it may not be read before.
#[test]
fn an_earlier_loop_borrows_slots() {
    let shapes: [&[i64]; 4] = [&[16, 80], &[16, 64], &[1], &[16, 16]];
    let waiting = text(&two_passes(0, "wait %ready[%zero], %step"), &shapes);
    let start = waiting.find("\nloop").expect("a loop");
    assert!(waiting[start..].contains(".shared.global"), "{waiting}");
    for (from, copies) in [(0, 16), (16, 24)] {
        let k = two_passes(from, "");
        compare(&k, [1; 3], &shapes, 3e-2);
        let text = text(&k, &shapes);
        let first = text.find("\nloop").expect("a loop");
        let between = text[first..].matches(".shared.global").count();
        let barrier = text.find("call void @llvm.nvvm.bar.warp.sync").expect("what is loaded before stays before");
        assert!(barrier < text.find(".shared.global").expect("copies"), "{text}");
        assert_eq!((text.matches(".shared.global").count(), between > 0), (copies, from > 0), "{text}");
    }
}

// -- anything ------------------------------------------------------------------------------------------------------------

/// The elements' lowest bits as a narrow float: -1 to 2.
fn small(b: &mut Builder, x: ValueId, dtype: DType) -> ValueId {
    let (shape, from) = (b.ty(x).shape(), b.ty(x).dtype());
    let [three, one] = [3.0, 1.0].map(|c| b.splat(from, shape, c));
    let x = b.binary(BinaryOp::And, x, three);
    let x = b.binary(BinaryOp::Sub, x, one);
    b.cast(x, dtype)
}

/// A matrix, or matrices, with the transposed; then with that: by tensor cores, and exact.
fn product(b: &mut Builder, x: ValueId, dtype: DType, chained: bool) -> ValueId {
    let shape = b.ty(x).shape();
    let rank = shape.rank();
    let perm: Vec<usize> = (0..rank - 2).chain([rank - 1, rank - 2]).collect();
    let p = small(b, x, dtype);
    let q = b.transpose(p, &perm);
    let square = shape.with(rank - 1, shape.dims()[rank - 2]);
    let none = b.splat(DType::F32, square, 0.0);
    let r = b.dot(p, q, none, Precision::F32);
    let r = b.cast(r, DType::I32);
    if !chained || square.dim(rank - 1) < 16 {
        return r;
    }
    let narrow = small(b, r, dtype);
    let r = b.dot(narrow, narrow, none, Precision::F32);
    b.cast(r, DType::I32)
}

/// Random chains of what moves elements between threads; on integers, so that both sides agree on every bit.
fn random(seed: u64) -> Kernel {
    let mut rng = Rng::new(seed);
    let mut k = contiguous(built(&format!("random_{seed}"), |b| {
        let shapes: [&[u32]; 5] = [&[4, 32], &[4, 16, 16], &[16, 64], &[2, 8, 32], &[512]];
        let dtypes = [DType::I32, DType::I16, DType::I8, DType::I64];
        let mut pool = vec![];
        for name in ["x", "y"] {
            let dims = shapes[rng.below(5) as usize];
            let x = view(b, name, DType::I32, dims.len() as u8, Access::Read);
            pool.push(tile(b, x, dims));
        }
        for _ in 0..14 {
            let back = rng.below(pool.len() as u32).min(rng.below(pool.len() as u32)) as usize;
            let x = pool[pool.len() - 1 - back];
            let shape = b.ty(x).shape();
            let rank = shape.rank();
            let axis = rng.below(rank as u32) as usize;
            let combine = [Combine::Sum, Combine::Max, Combine::Xor][rng.below(3) as usize];
            let y = match rng.below(16) {
                0 | 1 => {
                    let mut perm: Vec<usize> = (0..rank).collect();
                    perm.swap(axis, rng.below(rank as u32) as usize);
                    b.transpose(x, &perm)
                }
                2 => {
                    let n = shape.numel() as u32;
                    let row = 4 << rng.below(4);
                    let dims = if rng.below(2) == 0 { vec![n / row, row] } else { vec![n / row / 4, 4, row] };
                    if dims.contains(&0) { x } else { b.reshape(x, Shape::new(&dims)) }
                }
                3 | 4 => b.scan(x, axis, combine, rng.below(2) == 0),
                5 | 6 => {
                    let r = b.reduce(x, axis, combine);
                    let r = b.reshape(r, shape.with(axis, 1));
                    b.broadcast(r, shape)
                }
                7 | 8 => {
                    let dims: Vec<u32> = shape.dims().iter().map(|&d| d >> rng.below(d.ilog2() + 1)).collect();
                    let at: Vec<u32> =
                        shape.dims().iter().zip(&dims).map(|(&d, &part)| part * rng.below(d / part)).collect();
                    let part = b.slice(x, &at, Shape::new(&dims));
                    let ones: Vec<u32> =
                        (0..rank).map(|a| if dims[a] == shape.dims()[a] { dims[a] } else { 1 }).collect();
                    if dims == ones { b.broadcast(part, shape) } else { b.scan(part, axis, combine, false) }
                }
                9 => b.cast(x, dtypes[rng.below(4) as usize]),
                10..=13 if rank >= 2 && shape.dim(rank - 1) >= 16 && shape.dim(rank - 2) <= 64 => {
                    let dtype = [DType::BF16, DType::F16][rng.below(2) as usize];
                    product(b, x, dtype, rng.below(2) == 0)
                }
                14 if shape.numel() < 2048 => b.join(x, x, axis),
                _ => {
                    let same: Vec<ValueId> = pool.iter().copied().filter(|&v| b.ty(v) == b.ty(x)).collect();
                    let other = same[rng.below(same.len() as u32) as usize];
                    b.binary([BinaryOp::Add, BinaryOp::Mul, BinaryOp::Max][rng.below(3) as usize], x, other)
                }
            };
            pool.push(y);
            // Seen by others, with a barrier between.
            if rng.below(6) == 0 {
                store(b, "seen", y);
            }
        }
        let last = pool[pool.len() - 1];
        store(b, "last", last);
        let before = pool[pool.len() - 2];
        store(b, "before", before);
    }));
    k.options.warps = [1, 2, 4, 4, 8][rng.below(5) as usize];
    k
}

#[test]
fn random_chains() {
    let marks = ["st.shared", "mma.sync", "movmatrix", "shfl.sync.idx", "shfl.sync.bfly", "bar.warp.sync"];
    let mut seen = [0; 6];
    for seed in 0..SEEDS {
        let k = random(seed);
        // What is stored tells its extents.
        let mut stored = k.ops.iter().filter(|o| o.kind == OpKind::Store).map(|o| k.ty(o.operands[1]).shape());
        let mut shapes: Vec<Vec<i64>> = vec![];
        for p in &k.params {
            let load = |o: &&crate::ir::Op| matches!(o.kind, OpKind::Load { .. }) && o.operands[0] == p.value;
            let shape = match p.access {
                Access::Read => k.ty(k.ops.iter().find(load).expect("every parameter is read").results[0]).shape(),
                Access::Write => stored.next().expect("every output is written"),
            };
            shapes.push(shape.dims().iter().map(|&d| i64::from(d)).collect());
        }
        let shapes: Vec<&[i64]> = shapes.iter().map(|s| &s[..]).collect();
        compare(&k, [1; 3], &shapes, 0.0);
        let text = text(&k, &shapes);
        for (mark, n) in marks.iter().zip(&mut seen) {
            *n += u32::from(text.lines().any(|l| !l.starts_with("declare") && l.contains(mark)));
        }
    }
    assert!(seen.iter().all(|&n| n >= 5), "{marks:?}: {seen:?}");
}

/// The instructions used here exist on both chips.
#[cfg(feature = "llvm")]
#[test]
fn tiles_on_their_way_assemble() {
    for dtype in [DType::BF16, DType::F16] {
        check_both(&ranked([4, 16, 32, 32], dtype, false), 255);
        check_both(&recurrence(1, dtype), 255);
        let k = contiguous(built("paired", |b| {
            let [x, y] = ["x", "y"].map(|name| view(b, name, dtype, 2, Access::Read));
            let (x, y) = (tile(b, x, &[32, 16]), tile(b, y, &[16, 32]));
            let none = b.splat(DType::F32, Shape::new(&[32, 32]), 0.0);
            let c = b.dot(x, y, none, Precision::F32);
            let c = b.cast(c, dtype);
            let mut sum = c;
            for op in [BinaryOp::Add, BinaryOp::Mul, BinaryOp::Sub] {
                sum = b.binary(op, sum, c);
            }
            let c = b.dot(c, sum, none, Precision::F32);
            let row = b.slice(c, &[5, 0], Shape::new(&[1, 32]));
            store(b, "row", row);
        }));
        check_both(&k, 255);
    }
}
