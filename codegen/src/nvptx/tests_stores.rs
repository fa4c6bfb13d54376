//! Stores as bulk copies leave what the interpreter leaves.

use super::differential::{compare_runs, general, specialised};
use super::simulate::Order;
use super::tests_kernels::{built, for_loop, view};
use super::{Target, llvm_text};
use crate::ir::{Access, BinaryOp, Builder, DType, Kernel, Precision, Shape, ValueId};

const ORDERS: [Order; 4] = [
    Order { backwards: false, early: false },
    Order { backwards: true, early: true },
    Order { backwards: false, early: true },
    Order { backwards: true, early: false },
];

/// The copies that the specialised kernel has; whatever it has, it computes the right thing.
fn copies(k: &Kernel, grid: [u32; 3], shapes: &[&[i64]]) -> usize {
    let special = specialised(k, shapes);
    let text = llvm_text(&special, Target { sm: 90 }).unwrap_or_else(|e| panic!("{e}")).text;
    compare_runs(&[(&special, 90, &ORDERS), (&general(k), 90, &ORDERS[..2])], grid, shapes, 1e-2);
    text.matches("global.shared::cta.bulk_group").count()
}

/// The product of `rows` of x and all of y in steps of 32, bf16.
fn product(b: &mut Builder, [x, y]: [ValueId; 2], [m, n]: [u32; 2], [row, column]: [ValueId; 2]) -> ValueId {
    let acc = b.splat(DType::F32, Shape::new(&[m, n]), 0.0);
    let depth = b.dim(x, 1);
    let sum = for_loop(b, depth, 32, &[acc], |b, i, c| {
        let p = b.load(x, &[row, i], Shape::new(&[m, 32]), None);
        let q = b.load(y, &[i, column], Shape::new(&[32, n]), None);
        vec![b.dot(p, q, c[0], Precision::F32)]
    });
    b.cast(sum[0], DType::BF16)
}

fn inputs(b: &mut Builder) -> [ValueId; 2] {
    ["x", "y"].map(|name| view(b, name, DType::BF16, 2, Access::Read))
}

fn output(b: &mut Builder, rank: u8) -> ValueId {
    view(b, "out", DType::BF16, rank, Access::Write)
}

/// Tiles of out = x·y, by as many programs as there are, each one tile below the other, 8 warps.
fn tiles([m, n]: [u32; 2], turned: bool) -> Kernel {
    let mut k = built("tiles", |b| {
        let xy = inputs(b);
        let out = output(b, 2);
        let (first, programs) = (b.program_id(0), b.num_programs(0));
        let (extent, rows) = (b.i32(m as i32), b.dim(xy[0], 0));
        let (first, step) = (b.binary(BinaryOp::Mul, first, extent), b.binary(BinaryOp::Mul, programs, extent));
        let (body, args) = b.open(&[crate::ir::Type::scalar(DType::I32)]);
        let zero = b.i32(0);
        let sum = product(b, xy, [m, n], [args[0], zero]);
        if turned {
            let sum = b.transpose(sum, &[1, 0]);
            b.store(out, sum, &[zero, args[0]]);
        } else {
            b.store(out, sum, &[args[0], zero]);
        }
        b.close(&[]);
        b.emit_with_regions(crate::ir::OpKind::For { stages: 0 }, &[first, rows, step], &[], &[body]);
    });
    k.options.warps = 8;
    k
}

/// Tiles that end beside the matrix's edges, each warp's in several panels or several boxes, with buffers that one
/// tile after the other uses.
#[test]
fn results_of_products_are_copied() {
    // Of 128 columns a warp has two panels; of 256 rows two boxes.
    for (tile, pieces) in [([128, 128], 2), ([128, 64], 1), ([256, 64], 2), ([128, 32], 1)] {
        let shapes: [&[i64]; 3] = [&[328, 64], &[64, 112], &[328, 112]];
        assert_eq!(copies(&tiles(tile, false), [2, 1, 1], &shapes), pieces, "{tile:?}");
    }
}

/// A warp's part of the transposed tile has as many columns as the warp has rows: 32 bytes.
#[test]
fn transposed_results_are_copied() {
    let shapes: [&[i64]; 3] = [&[336, 64], &[64, 32], &[24, 336]];
    assert_eq!(copies(&tiles([128, 32], true), [2, 1, 1], &shapes), 1);
}

/// One of several matrices; the tile has an axis of extent 1 less than the parameter.
#[test]
fn results_go_to_selected_matrices() {
    let mut k = built("selected", |b| {
        let xy = inputs(b);
        let out = output(b, 3);
        let (zero, which) = (b.i32(0), b.program_id(0));
        let out = b.view_select(out, 1, which);
        let sum = product(b, xy, [64, 64], [zero, zero]);
        b.store(out, sum, &[zero, zero]);
    });
    k.options.warps = 4;
    let shapes: [&[i64]; 3] = [&[56, 64], &[64, 80], &[56, 3, 80]];
    assert_eq!(copies(&k, [3, 1, 1], &shapes), 1);
}

/// Copies have no order: the second store to a place waits for the first to be made.
#[test]
fn what_is_stored_last_stays() {
    let mut k = built("twice", |b| {
        let xy = inputs(b);
        let out = output(b, 2);
        let zero = b.i32(0);
        let sum = product(b, xy, [64, 64], [zero, zero]);
        let one = b.splat(DType::BF16, Shape::new(&[64, 64]), 1.0);
        b.store(out, sum, &[zero, zero]);
        let more = b.binary(BinaryOp::Add, sum, one);
        b.store(out, more, &[zero, zero]);
    });
    k.options.warps = 4;
    let shapes: [&[i64]; 3] = [&[64, 64], &[64, 64], &[64, 64]];
    assert_eq!(copies(&k, [1; 3], &shapes), 2);
    let text = llvm_text(&specialised(&k, &shapes), Target { sm: 90 }).unwrap_or_else(|e| panic!("{e}")).text;
    let first = text.find("bulk_group").expect("a copy");
    let wait = first + text[first..].find("cp.async.bulk.wait_group 0;").expect("a wait");
    assert!(text[wait..].contains("bulk_group ["), "{text}");
}

/// A chain of products whose results leave a step later, to a part of a matrix: the first store is outside of it as a whole,
/// and what the last one leaves out is stored by the threads.
fn chain(starts: impl Fn(&mut Builder, ValueId) -> ValueId, rows: i32) -> Kernel {
    let mut k = built("chain", |b| {
        let [x, y] = inputs(b);
        let (from, out) = (view(b, "from", DType::I32, 1, Access::Read), output(b, 2));
        let zero = b.i32(0);
        let from = b.gather(from, &[zero], None);
        let (start, length) = (starts(b, from), b.i32(rows));
        let part = b.view_narrow(out, 0, start, length);
        let before = b.splat(DType::BF16, Shape::new(&[64, 64]), 0.0);
        let last = for_loop(b, length, 64, &[before], |b, i, c| {
            let p = b.load(x, &[i, zero], Shape::new(&[64, 64]), None);
            let q = b.load(y, &[zero, zero], Shape::new(&[64, 64]), None);
            let acc = b.splat(DType::F32, Shape::new(&[64, 64]), 0.0);
            let sum = b.dot(p, q, acc, Precision::F32);
            let step = b.i32(64);
            let at = b.binary(BinaryOp::Sub, i, step);
            b.store(part, c[0], &[at, zero]);
            vec![b.cast(sum, DType::BF16)]
        });
        let at = b.i32((rows - 1) / 64 * 64);
        b.store(part, last[0], &[at, zero]);
    });
    k.options.warps = 4;
    k
}

#[test]
fn parts_of_parameters_are_copied_to() {
    let shapes: [&[i64]; 4] = [&[200, 64], &[64, 64], &[1], &[208, 64]];
    // Where a view begins at `from` that may be negative, tiles may lie across its start; `from` of the tests is.
    assert_eq!(copies(&chain(|_, from| from, 150), [1; 3], &shapes), 0);
    let clamped = |b: &mut Builder, from: ValueId| {
        let least = b.i32(9);
        b.binary(BinaryOp::Max, from, least)
    };
    assert_eq!(copies(&chain(clamped, 150), [1; 3], &shapes), 1);
    // The view ends where the parameter does, in the middle of a tile; and behind it.
    assert_eq!(copies(&chain(clamped, 208), [1; 3], &shapes), 1);
    let behind = |b: &mut Builder, from: ValueId| {
        let far = b.i32(300);
        b.binary(BinaryOp::Max, from, far)
    };
    assert_eq!(copies(&chain(behind, 150), [1; 3], &shapes), 1);
}

/// Not where the kernel also reads, where the view is a part of the parameter, or where rows begin anywhere.
#[test]
fn other_stores_are_the_threads() {
    let kernel = |f: fn(&mut Builder, ValueId, ValueId)| {
        let mut k = built("other", |b| {
            let xy = inputs(b);
            let out = output(b, 2);
            let zero = b.i32(0);
            let sum = product(b, xy, [64, 64], [zero, zero]);
            f(b, out, sum);
        });
        k.options.warps = 4;
        k
    };
    let even: [&[i64]; 3] = [&[64, 64], &[64, 64], &[64, 64]];
    let stored = kernel(|b, out, sum| {
        let zero = b.i32(0);
        b.store(out, sum, &[zero, zero]);
    });
    assert_eq!(copies(&stored, [1; 3], &even), 1);
    assert_eq!(copies(&stored, [1; 3], &[&[64, 64], &[64, 60], &[64, 60]]), 0);
    let read = kernel(|b, out, sum| {
        let zero = b.i32(0);
        let there = b.load(out, &[zero, zero], Shape::new(&[64, 64]), None);
        let sum = b.binary(BinaryOp::Add, sum, there);
        b.store(out, sum, &[zero, zero]);
    });
    assert_eq!(copies(&read, [1; 3], &even), 0);
    let narrowed = kernel(|b, out, sum| {
        let (zero, some) = (b.i32(0), b.i32(40));
        let out = b.view_narrow(out, 0, zero, some);
        b.store(out, sum, &[zero, zero]);
    });
    assert_eq!(copies(&narrowed, [1; 3], &even), 0);
}
