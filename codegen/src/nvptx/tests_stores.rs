//! Stores as bulk copies leave what the interpreter leaves.

use super::differential::{compare, compare_runs, general, specialised};
use super::simulate::Order;
#[cfg(feature = "llvm")]
use super::tests::assembles;
use super::tests_kernels::{built, for_loop, view};
use super::{Target, llvm_text};
use crate::ir::{
    Access, BinaryOp, Builder, CmpOp, DType, Kernel, Lint, OpKind, Precision, Shape, Type, UnaryOp, ValueId,
};

/// The copies that the specialised kernel has; whatever it has, it computes the right thing.
fn copies(k: &Kernel, grid: [u32; 3], shapes: &[&[i64]]) -> usize {
    let special = specialised(k, shapes);
    let text = llvm_text(&special, Target { sm: 90 }).unwrap_or_else(|e| panic!("{e}")).text;
    compare_runs(&[(&special, 90, &Order::ALL), (&general(k), 90, &Order::ALL[..2])], grid, shapes, 1e-2);
    text.matches("global.shared::cta.bulk_group").count()
}

/// Tiles of x·y, bf16, by as many programs as there are, each one tile below the other, as `store` makes them of a tile and
/// its first row.
fn tiles([m, n]: [u32; 2], rank: u8, store: impl Fn(&mut Builder, ValueId, ValueId, ValueId)) -> Kernel {
    let mut k = built("tiles", |b| {
        let [x, y] = ["x", "y"].map(|name| view(b, name, DType::BF16, 2, Access::Read));
        let out = view(b, "out", DType::BF16, rank, Access::Write);
        let (first, programs, rows) = (b.program_id(0), b.num_programs(0), b.dim(x, 0));
        let (extent, zero) = (b.i32(m as i32), b.i32(0));
        let (first, step) = (b.binary(BinaryOp::Mul, first, extent), b.binary(BinaryOp::Mul, programs, extent));
        let (body, args) = b.open(&[Type::scalar(DType::I32)]);
        let acc = b.splat(DType::F32, Shape::new(&[m, n]), 0.0);
        let depth = b.dim(x, 1);
        let sum = for_loop(b, depth, 32, &[acc], |b, i, c| {
            let p = b.load(x, &[args[0], i], Shape::new(&[m, 32]), None);
            let q = b.load(y, &[i, zero], Shape::new(&[32, n]), None);
            vec![b.dot(p, q, c[0], Precision::F32)]
        });
        let sum = b.cast(sum[0], DType::BF16);
        store(b, out, sum, args[0]);
        b.close(&[]);
        b.emit_with_regions(OpKind::For { stages: 0 }, &[first, rows, step], &[], &[body]);
    });
    k.options.warps = if m < 128 { 4 } else { 8 };
    k
}

/// A tile of all columns, at its row.
fn in_place(b: &mut Builder, out: ValueId, tile: ValueId, row: ValueId) {
    let zero = b.i32(0);
    b.store(out, tile, &[row, zero]);
}

/// Tiles that end beside the matrix's edges, each warp's in several panels or several boxes.
#[test]
fn results_of_products_are_copied() {
    // Of 128 columns a warp has two panels; of 256 rows two boxes.
    for (tile, pieces) in [([128, 128], 2), ([128, 64], 1), ([256, 64], 2), ([64, 32], 1)] {
        let shapes: [&[i64]; 3] = [&[328, 64], &[64, 112], &[328, 112]];
        assert_eq!(copies(&tiles(tile, 2, in_place), [2, 1, 1], &shapes), pieces, "{tile:?}");
    }
}

/// Buffers are shared by all stores of a loop: with three copies an iteration it begins where the last one ended. The
/// stores of different iterations do not meet, so that nothing else waits for copies.
#[test]
fn several_tiles_are_copied_from_the_same_buffers() {
    let mut k = built("several", |b| {
        let [x, y] = ["x", "y"].map(|name| view(b, name, DType::BF16, 2, Access::Read));
        let out = ["once", "twice", "thrice"].map(|name| view(b, name, DType::BF16, 2, Access::Write));
        let (zero, rows) = (b.i32(0), b.dim(x, 0));
        for_loop(b, rows, 64, &[], |b, row, _| {
            let p = b.load(x, &[row, zero], Shape::new(&[64, 64]), None);
            let q = b.load(y, &[zero, zero], Shape::new(&[64, 64]), None);
            let acc = b.splat(DType::F32, Shape::new(&[64, 64]), 0.0);
            let sum = b.dot(p, q, acc, Precision::F32);
            let tile = b.cast(sum, DType::BF16);
            for (i, out) in out.into_iter().enumerate() {
                let times = b.splat(DType::BF16, Shape::new(&[64, 64]), i as f64 + 1.0);
                let tile = b.binary(BinaryOp::Mul, tile, times);
                b.store(out, tile, &[row, zero]);
            }
            vec![]
        });
    });
    k.options.warps = 4;
    let shapes: [&[i64]; 5] = [&[328, 64], &[64, 64], &[328, 64], &[328, 64], &[328, 64]];
    assert_eq!(copies(&k, [1; 3], &shapes), 3);
    let text = llvm_text(&specialised(&k, &shapes), Target { sm: 90 }).unwrap_or_else(|e| panic!("{e}")).text;
    assert!(!text.contains("cp.async.bulk.wait_group 0;"), "{text}");
}

/// A warp's part of the transposed tile has as many columns as the warp has rows: 32 bytes are no more than threads write
/// themselves.
#[test]
fn transposed_results_are_stored() {
    let turned = |b: &mut Builder, out: ValueId, tile: ValueId, row: ValueId| {
        let (zero, tile) = (b.i32(0), b.transpose(tile, &[1, 0]));
        b.store(out, tile, &[zero, row]);
    };
    let shapes: [&[i64]; 3] = [&[336, 64], &[64, 32], &[24, 336]];
    assert_eq!(copies(&tiles([128, 32], 2, turned), [2, 1, 1], &shapes), 0);
}

/// One of several matrices.
#[test]
fn results_go_to_selected_matrices() {
    let k = tiles([64, 64], 3, |b, out, tile, row| {
        let which = b.program_id(1);
        let out = b.view_select(out, 1, which);
        in_place(b, out, tile, row);
    });
    assert_eq!(copies(&k, [1, 3, 1], &[&[120, 64], &[64, 80], &[120, 3, 80]]), 1);
}

/// The accelerator adds: to where several programs do, and repeatedly, without waiting for what was added before. bf16
/// sums of so few numbers are exact.
#[test]
fn results_are_added_by_copies() {
    let mut k = tiles([64, 64], 2, |b, out, tile, row| {
        let (zero, one) = (b.i32(0), b.splat(DType::BF16, Shape::new(&[64, 64]), 1.0));
        let few = b.binary(BinaryOp::Min, tile, one);
        let none = b.splat(DType::BF16, Shape::new(&[64, 64]), 0.0);
        let few = b.binary(BinaryOp::Max, few, none);
        let few = b.unary(UnaryOp::Round, few);
        b.store_add(out, few, &[row, zero]);
        b.store_add(out, few, &[zero, zero]);
    });
    k.options.warps = 4;
    let shapes: [&[i64]; 3] = [&[328, 64], &[64, 112], &[328, 112]];
    assert_eq!(copies(&k, [2, 1, 1], &shapes), 0, "not copies but reductions");
    let text = llvm_text(&specialised(&k, &shapes), Target { sm: 90 }).unwrap_or_else(|e| panic!("{e}")).text;
    assert_eq!(text.matches("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group").count(), 2, "{text}");
    assert!(!text.contains("cp.async.bulk.wait_group 0;"), "{text}");
}

/// Threads add as much as 16 bytes at once where Hopper can, elsewhere single elements; of small integers by compare and
/// swap.
#[test]
fn threads_add_by_vectors() {
    use DType::{BF16, F16, F32, I8, I16, I32, U64};
    let vectors = [(F32, "add.v4.f32"), (F16, "add.noftz.v4.f16x2"), (BF16, "add.noftz.v4.bf16x2")];
    let elements = [(I32, "add.u32"), (U64, "add.u64"), (I8, "cas.b32"), (I16, "cas.b32")];
    for (dtype, name) in vectors.into_iter().chain(elements) {
        let k = built("added", |b| {
            let (x, out) = (view(b, "x", dtype, 2, Access::Read), view(b, "out", dtype, 2, Access::Write));
            let [zero, two, ten] = [0, 2, 10].map(|i| b.i32(i));
            let x = b.load(x, &[zero, zero], Shape::new(&[8, 128]), None);
            b.store_add(out, x, &[two, zero]);
            b.store_add(out, x, &[ten, two]);
        });
        let shapes: [&[i64]; 2] = [&[8, 128], &[17, 128]];
        compare(&k, [1; 3], &shapes, 0.0);
        let special = specialised(&k, &shapes);
        let text = llvm_text(&special, Target { sm: 90 }).unwrap_or_else(|e| panic!("{e}")).text;
        assert!(text.contains(name), "{dtype}: {text}");
        #[cfg(feature = "llvm")]
        for sm in [80, 90] {
            assembles(&special, sm);
        }
    }
}

/// Copies have no order: the second store to a place waits for the first to be made.
#[test]
fn what_is_stored_last_stays() {
    let k = tiles([64, 64], 2, |b, out, tile, row| {
        in_place(b, out, tile, row);
        let one = b.splat(DType::BF16, Shape::new(&[64, 64]), 1.0);
        let more = b.binary(BinaryOp::Add, tile, one);
        in_place(b, out, more, row);
    });
    let shapes: [&[i64]; 3] = [&[128, 64], &[64, 64], &[128, 64]];
    assert_eq!(copies(&k, [1; 3], &shapes), 2);
    let text = llvm_text(&specialised(&k, &shapes), Target { sm: 90 }).unwrap_or_else(|e| panic!("{e}")).text;
    let first = text.find("bulk_group").expect("a copy");
    let wait = first + text[first..].find("cp.async.bulk.wait_group 0;").expect("a wait");
    assert!(text[wait..].contains("bulk_group ["), "{text}");
}

/// Not where the kernel also reads, where the view is a part of the parameter, where rows begin anywhere, or at a program's
/// end. Where a loop goes on, the reason is reported.
#[test]
fn other_stores_are_the_threads() {
    let even: [&[i64]; 3] = [&[128, 64], &[64, 64], &[128, 64]];
    assert_eq!(copies(&tiles([64, 64], 2, in_place), [1; 3], &even), 1);
    assert_eq!(copies(&tiles([64, 64], 2, in_place), [1; 3], &[&[128, 64], &[64, 60], &[128, 60]]), 0);
    let read = tiles([64, 64], 2, |b, out, tile, row| {
        let zero = b.i32(0);
        let there = b.load(out, &[row, zero], Shape::new(&[64, 64]), None);
        let sum = b.binary(BinaryOp::Add, tile, there);
        in_place(b, out, sum, row);
    });
    assert_eq!(copies(&read, [1; 3], &even), 0);
    let narrowed = tiles([64, 64], 2, |b, out, tile, row| {
        let (zero, some) = (b.i32(0), b.i32(40));
        let out = b.view_narrow(out, 0, zero, some);
        in_place(b, out, tile, row);
    });
    assert_eq!(copies(&narrowed, [1; 3], &even), 0);
    let sometimes = tiles([64, 64], 2, |b, out, tile, row| {
        let zero = b.i32(0);
        let first = b.compare(CmpOp::Eq, row, zero);
        let (then, _) = b.open(&[]);
        in_place(b, out, tile, row);
        b.close(&[]);
        let (otherwise, _) = b.open(&[]);
        b.close(&[]);
        b.emit_with_regions(OpKind::If, &[first], &[], &[then, otherwise]);
    });
    assert_eq!(copies(&sometimes, [1; 3], &even), 0);
    let why = |k: &Kernel, shapes: &[&[i64]]| {
        let made = llvm_text(&specialised(k, shapes), Target { sm: 90 }).unwrap_or_else(|e| panic!("{e}"));
        let found = made.findings.iter().filter(|f| f.lint == Lint::Fallback).map(|f| f.message.clone());
        found.filter_map(|m| Some(m.split_once(" is not stored by bulk copies: ")?.1.to_owned())).collect::<Vec<_>>()
    };
    let (plain, uneven): (_, [&[i64]; 3]) = (tiles([64, 64], 2, in_place), [&[128, 64], &[64, 60], &[128, 60]]);
    assert_eq!(why(&plain, &even), [""; 0]);
    assert_eq!(why(&plain, &uneven), ["its address or a stride is not known to be a multiple of 16 bytes"]);
    assert_eq!(why(&read, &even), ["the kernel does more with the parameter, or tells others of it"]);
    assert_eq!(why(&narrowed, &even), ["its view was narrowed"]);
    assert_eq!(why(&sometimes, &even), [""; 0], "a branch ends there");
}
