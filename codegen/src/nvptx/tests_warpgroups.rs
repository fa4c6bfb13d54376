//! Products by warpgroups and loads as bulk copies compute what the interpreter computes.

use super::differential::{compare_runs, general, specialised};
use super::simulate::{Order, Simulator, address_of};
use super::tests_kernels::{attention, built, for_loop, view};
use super::{Lowered, Target, llvm_text};
use crate::ir::{
    Access, BinaryOp, Builder, CmpOp, Combine, DType, Kernel, OpKind, Precision, Reuse, Shape, Type, UnaryOp, ValueId,
};

/// Specialised to the shapes, the kernel uses bulk copies and products by warpgroups; it computes the right thing, and
/// so does the kernel that knows nothing of its arguments. What became of it.
pub(super) fn check(k: &Kernel, grid: [u32; 3], shapes: &[&[i64]]) -> Lowered {
    let special = specialised(k, shapes);
    let lowered = llvm_text(&special, Target { sm: 90 }).unwrap_or_else(|e| panic!("{e}"));
    let text = &lowered.text;
    assert!(text.contains("wgmma.mma_async") && text.contains("cp.async.bulk.tensor"), "{}: {text}", k.name);
    compare_runs(&[(&special, 90, &Order::ALL), (&general(k), 90, &Order::ALL[..2])], grid, shapes, tolerance(k));
    lowered
}

/// Of a kernel's results: integers are exact, and rounding to tf32 is part of what is asked for, so that sums alone
/// differ.
pub(super) fn tolerance(k: &Kernel) -> f64 {
    match k.ty(k.params[0].value).dtype() {
        DType::I8 | DType::U8 => 0.0,
        DType::F32 => 1e-3,
        _ => 1e-2,
    }
}

/// With every view to be evicted first: nothing else than the order in which caches forget.
fn used_once(mut k: Kernel) -> Kernel {
    k.params.iter_mut().for_each(|p| p.reuse = Reuse::EvictFirst);
    k
}

/// With this many warps, and buffers in the rings of loops (0: as many as the compiler likes).
pub(super) fn with(mut k: Kernel, warps: u8, stages: u8) -> Kernel {
    k.options.warps = warps;
    for op in &mut k.ops {
        if let OpKind::For { stages: s } = &mut op.kind {
            *s = stages;
        }
    }
    k
}

/// The tile of this shape at these coordinates of a matrix, or of its transpose.
pub(super) fn tile(b: &mut Builder, from: ValueId, shape: [u32; 2], at: [ValueId; 2], turned: bool) -> ValueId {
    if turned {
        let t = b.load(from, &[at[1], at[0]], Shape::new(&[shape[1], shape[0]]), None);
        b.transpose(t, &[1, 0])
    } else {
        b.load(from, &at, Shape::new(&shape), None)
    }
}

pub(super) fn zeros(b: &mut Builder, shape: [u32; 2]) -> ValueId {
    b.splat(DType::F32, Shape::new(&shape), 0.0)
}

fn times(b: &mut Builder, x: ValueId, by: u32) -> ValueId {
    let by = b.i32(by as i32);
    b.binary(BinaryOp::Mul, x, by)
}

pub(super) fn dot(b: &mut Builder, x: ValueId, y: ValueId, acc: ValueId) -> ValueId {
    b.dot(x, y, acc, Precision::Tf32)
}

/// The type of sums of products of this type.
pub(super) fn sums(dtype: DType) -> DType {
    if dtype.is_float() { DType::F32 } else { DType::I32 }
}

/// A tile times two, in its own type.
pub(super) fn doubled(b: &mut Builder, x: ValueId) -> ValueId {
    let dtype = b.ty(x).dtype();
    let wide = b.cast(x, DType::F32);
    let two = b.splat(DType::F32, b.ty(x).shape(), 2.0);
    let wide = b.binary(BinaryOp::Mul, wide, two);
    b.cast(wide, dtype)
}

fn when(
    b: &mut Builder,
    condition: ValueId,
    results: &[Type],
    yes: impl FnOnce(&mut Builder) -> Vec<ValueId>,
    no: impl FnOnce(&mut Builder) -> Vec<ValueId>,
) -> Vec<ValueId> {
    let (then, _) = b.open(&[]);
    let out = yes(b);
    b.close(&out);
    let (otherwise, _) = b.open(&[]);
    let out = no(b);
    b.close(&out);
    let op = b.emit_with_regions(OpKind::If, &[condition], results, &[then, otherwise]);
    b.results(op)
}

/// A kernel on matrices `a` and `b` of a type, writing sums of products to `c`.
pub(super) fn on_matrices(name: &str, dtype: DType, f: impl FnOnce(&mut Builder, [ValueId; 3])) -> Kernel {
    built(name, |b| {
        let (x, y) = (view(b, "a", dtype, 2, Access::Read), view(b, "b", dtype, 2, Access::Read));
        let out = view(b, "c", sums(dtype), 2, Access::Write);
        f(b, [x, y, out]);
    })
}

/// C = A·B, where either may lie transposed.
pub(super) fn gemm([m, n, k]: [u32; 3], dtype: DType, [turn_a, turn_b]: [bool; 2]) -> Kernel {
    let name = format!("gemm_{m}_{n}_{k}_{dtype}_{turn_a}_{turn_b}");
    on_matrices(&name, dtype, |b, [x, y, out]| {
        let (pm, pn) = (b.program_id(0), b.program_id(1));
        let (row, column) = (times(b, pm, m), times(b, pn, n));
        let acc = b.splat(sums(dtype), Shape::new(&[m, n]), 0.0);
        let depth = b.dim(x, usize::from(!turn_a));
        let sum = for_loop(b, depth, k as i32, &[acc], |b, i, c| {
            let p = tile(b, x, [m, k], [row, i], turn_a);
            let q = tile(b, y, [k, n], [i, column], turn_b);
            vec![dot(b, p, q, c[0])]
        });
        b.store(out, sum[0], &[row, column]);
    })
}

/// Checks [`gemm`] on matrices of these extents.
pub(super) fn check_gemm(tile: [u32; 3], warps: u8, dtype: DType, turned: [bool; 2], [m, n, k]: [i64; 3]) {
    let kernel = with(gemm(tile, dtype, turned), warps, 0);
    let turn = |turned: bool, [r, c]: [i64; 2]| if turned { [c, r] } else { [r, c] };
    let (a, b) = (turn(turned[0], [m, k]), turn(turned[1], [k, n]));
    let grid = [(m as u32).div_ceil(tile[0]), (n as u32).div_ceil(tile[1]), 1];
    check(&kernel, grid, &[&a, &b, &[m, n]]);
}

/// One loop with a product by warpgroups and one of tiles of rank 3: the tile of its load may come to a ring with the
/// others, but is read from there like any tile.
#[test]
fn a_product_of_rank_3_beside_one_by_warpgroups() {
    let kernel = built("beside", |b| {
        let (x, y) = (view(b, "a", DType::BF16, 2, Access::Read), view(b, "b", DType::BF16, 2, Access::Read));
        let several = view(b, "d", DType::BF16, 3, Access::Read);
        let (out, other) = (view(b, "c", DType::F32, 2, Access::Write), view(b, "e", DType::F32, 3, Access::Write));
        let zero = b.i32(0);
        let acc = zeros(b, [64, 32]);
        let sums = b.splat(DType::F32, Shape::new(&[2, 16, 16]), 0.0);
        let depth = b.dim(x, 1);
        let sum = for_loop(b, depth, 32, &[acc, sums], |b, i, c| {
            let p = tile(b, x, [64, 32], [zero, i], false);
            let q = tile(b, y, [32, 32], [i, zero], false);
            let r = b.load(several, &[zero, zero, i], Shape::new(&[2, 16, 32]), None);
            let turned = b.transpose(r, &[0, 2, 1]);
            vec![dot(b, p, q, c[0]), dot(b, r, turned, c[1])]
        });
        b.store(out, sum[0], &[zero, zero]);
        b.store(other, sum[1], &[zero, zero, zero]);
    });
    check(&kernel, [1; 3], &[&[64, 128], &[128, 32], &[2, 16, 128], &[64, 32], &[2, 16, 16]]);
}

const TURNS: [[bool; 2]; 4] = [[false, false], [false, true], [true, false], [true, true]];

#[test]
fn gemm_in_every_orientation() {
    for (i, turned) in TURNS.into_iter().enumerate() {
        let dtype = if i % 2 == 0 { DType::BF16 } else { DType::F16 };
        check_gemm([64, 16, 16], 4, dtype, turned, [64, 16, 48]);
        check_gemm([64, 32, 32], 4, dtype, turned, [64, 32, 64]);
        check_gemm([64, 64, 64], 4, dtype, turned, [64, 64, 192]);
        check_gemm([128, 64, 64], 8, dtype, turned, [128, 64, 128]);
        check_gemm([64, 128, 32], 8, dtype, turned, [64, 128, 64]);
    }
}

#[test]
fn gemm_with_large_tiles() {
    check_gemm([128, 128, 64], 8, DType::BF16, [false, true], [128, 128, 128]);
    check_gemm([128, 256, 64], 8, DType::BF16, [false, false], [128, 256, 128]);
    check_gemm([128, 256, 64], 8, DType::F16, [true, true], [128, 256, 64]);
    check_gemm([128, 128, 32], 4, DType::BF16, [false, false], [128, 128, 64]);
    check_gemm([256, 64, 32], 8, DType::BF16, [true, false], [256, 64, 64]);
}

/// [`gemm`] in clusters of programs with neighbouring rows, each of one tile after the other.
fn clustered_gemm(cluster: u8, [m, n, k]: [u32; 3]) -> Kernel {
    let mut kernel = on_matrices("clustered", DType::BF16, |b, [x, y, out]| {
        let (program, programs) = (b.program_id(0), b.num_programs(0));
        let size = b.i32(i32::from(cluster));
        let (first, member) = (b.binary(BinaryOp::Div, program, size), b.binary(BinaryOp::Rem, program, size));
        let step = b.binary(BinaryOp::Div, programs, size);
        let width = b.dim(y, 1);
        let wide = b.i32(n as i32);
        let columns = b.binary(BinaryOp::Div, width, wide);
        loop_of(b, [first, columns, step], |b, tile| {
            let (row, column) = (times(b, member, m), times(b, tile, n));
            let acc = zeros(b, [m, n]);
            let depth = b.dim(x, 1);
            let sum = for_loop(b, depth, k as i32, &[acc], |b, i, c| {
                let p = b.load(x, &[row, i], Shape::new(&[m, k]), None);
                let q = b.load(y, &[i, column], Shape::new(&[k, n]), None);
                vec![dot(b, p, q, c[0])]
            });
            b.store(out, sum[0], &[row, column]);
        });
    });
    kernel.options.cluster = cluster;
    kernel
}

/// A loop that carries nothing.
fn loop_of(b: &mut Builder, [lo, hi, step]: [ValueId; 3], body: impl FnOnce(&mut Builder, ValueId)) {
    let (region, args) = b.open(&[Type::scalar(DType::I32)]);
    body(b, args[0]);
    b.close(&[]);
    b.emit_with_regions(OpKind::For { stages: 0 }, &[lo, hi, step], &[], &[region]);
}

#[test]
fn clusters_share_what_all_their_programs_load() {
    for (cluster, tile, [m, n, k], programs) in [
        (2, [64, 32, 32], [128, 96, 96], 4),
        (2, [64, 64, 64], [128, 64, 320], 2),
        (4, [64, 128, 64], [256, 256, 128], 8),
        (4, [128, 64, 32], [512, 128, 64], 4),
    ] {
        let kernel = clustered_gemm(cluster, tile);
        let special = specialised(&kernel, &[&[m, k], &[k, n], &[m, n]]);
        let text = llvm_text(&special, Target { sm: 90 }).unwrap().text;
        let (shared, all) = (text.matches(".multicast::cluster").count(), text.matches("cp.async.bulk").count());
        assert_eq!(shared, tile[1].div_ceil(64) as usize, "the panels of the second operand: {text}");
        assert!(shared < all, "rows are each program's own");
        check(&kernel, [programs, 1, 1], &[&[m, k], &[k, n], &[m, n]]);
    }
}

#[test]
fn gemm_of_what_is_used_once() {
    check(
        &used_once(gemm([64, 64, 64], DType::BF16, [false, true])),
        [1, 2, 1],
        &[&[64, 192], &[128, 192], &[64, 128]],
    );
}

/// What has been copied is gone; the rows of a tile are whole lines of caches, or are not, or end outside.
#[test]
fn gemm_of_what_is_discarded() {
    for (tile, inner) in [([64, 64, 64], 192), ([64, 64, 32], 192), ([64, 128, 64], 160)] {
        let mut k = gemm(tile, DType::BF16, [false, true]);
        k.params.iter_mut().filter(|p| p.access == Access::Read).for_each(|p| p.reuse = Reuse::Discard);
        let shapes: [&[i64]; 3] = [&[48, inner], &[tile[1] as i64, inner], &[48, tile[1] as i64]];
        check(&k, [1; 3], &shapes);
        let text = llvm_text(&specialised(&k, &shapes), Target { sm: 90 }).unwrap().text;
        assert_eq!(text.contains("discard.global.L2"), tile[2] == 64, "{text}");
    }
}

/// A loop along the rows discards the lines that a row of its tiles begins with, and nothing beside them; none where rows
/// do not begin with a line.
#[test]
fn whole_lines_are_discarded_as_rows_go_by() {
    let k = crate::ir::parse(
        "kernel rows(%x: view<f16,2>, %y: view<f16,2>, %c: write view<f32,2>) warps 4 {
          %zero: i32 = const 0
          %step: i32 = const 64
          %rows: i32 = dim 0 %x
          %none: f32<64x64> = const 0.0
          %all: f32<64x64> = for %t: i32 = %zero to %rows step %step carrying (%sum: f32<64x64> = %none) {
            %a: f16<64x64> = load %x[%t, %zero]
            %b: f16<64x64> = load %y[%t, %zero]
            %turned: f16<64x64> = transpose [1, 0] %b
            %next: f32<64x64> = dot %a, %turned, %sum
            yield %next
          }
          store %c[%zero, %zero], %all
          yield
        }",
    );
    let mut k = k.unwrap();
    k.params.iter_mut().filter(|p| p.access == Access::Read).for_each(|p| p.reuse = Reuse::Discard);
    for width in [64, 128, 80] {
        let shapes: [&[i64]; 3] = [&[192, width], &[192, width], &[64, 64]];
        check(&k, [1; 3], &shapes);
        let special = specialised(&k, &shapes);
        let lowered = llvm_text(&special, Target { sm: 90 }).unwrap();
        let bytes = |[rows, columns]: [i64; 2], size: i64| vec![0; (rows * columns * size) as usize];
        let memory = vec![bytes([192, width], 2), bytes([192, width], 2), bytes([64, 64], 4)];
        let mut simulator = Simulator::new(&lowered, memory);
        let params: Vec<u64> = (shapes.iter().enumerate())
            .flat_map(|(i, s)| [address_of(i), s[0] as u64, s[1] as u64, s[1] as u64, 1])
            .collect();
        simulator.run(&params, [0; 3], [1; 3], Order::ALL[0]);
        for read in &simulator.global[..2] {
            for (at, byte) in read.iter().enumerate() {
                let gone = width != 80 && at as i64 % (2 * width) < 128;
                assert_eq!(*byte == 0xff, gone, "byte {at} of rows of {width}");
            }
        }
    }
}

#[test]
fn gemm_that_tiles_do_not_divide() {
    for turned in TURNS {
        check_gemm([64, 32, 32], 4, DType::BF16, turned, [80, 48, 80]);
        check_gemm([64, 64, 16], 4, DType::F16, turned, [16, 80, 176]);
    }
    check_gemm([64, 128, 64], 8, DType::BF16, [false, true], [100, 30, 208]);
}

#[test]
fn gemm_of_every_depth() {
    for depth in [16, 32, 48, 64, 80, 96, 272] {
        check_gemm([64, 16, 16], 4, DType::BF16, [false, false], [64, 16, depth]);
        let few = with(gemm([64, 16, 16], DType::BF16, [false, true]), 4, 2);
        check(&few, [1; 3], &[&[64, depth], &[16, depth], &[64, 16]]);
    }
    // Rows of no elements are not what bulk copies take.
    let k = gemm([64, 16, 16], DType::BF16, [false, false]);
    compare_runs(&[(&k, 90, &Order::ALL)], [1; 3], &[&[64, 0], &[0, 16], &[64, 16]], 0.0);
}

/// Rings that are walked several times, each time differently far.
#[test]
fn rings_in_outer_loops() {
    let k = on_matrices("nested", DType::BF16, |b, [x, y, out]| {
        let (zero, depth, columns) = (b.i32(0), b.dim(x, 1), b.dim(y, 1));
        for_loop(b, columns, 32, &[], |b, column, _| {
            // 0, 2, 4, ... iterations, while there are as many.
            let most = b.binary(BinaryOp::Min, column, depth);
            let acc = zeros(b, [64, 32]);
            let sum = for_loop(b, most, 16, &[acc], |b, i, c| {
                let p = tile(b, x, [64, 16], [zero, i], false);
                let q = tile(b, y, [16, 32], [i, column], false);
                vec![dot(b, p, q, c[0])]
            });
            b.store(out, sum[0], &[zero, column]);
            vec![]
        });
    });
    for stages in [0, 2, 3] {
        check(&with(k.clone(), 4, stages), [1; 3], &[&[64, 112], &[112, 160], &[64, 160]]);
    }
}

/// A ring in one branch, another in the other, in a loop that takes one or the other.
#[test]
fn rings_in_branches() {
    let k = on_matrices("branches", DType::F16, |b, [x, y, out]| {
        let (zero, depth, columns) = (b.i32(0), b.dim(x, 1), b.dim(y, 1));
        let pid = b.program_id(0);
        for_loop(b, columns, 32, &[], |b, column, _| {
            let walk = |turn: u32| {
                move |b: &mut Builder| {
                    let acc = zeros(b, [64, 32]);
                    let step = 16 << turn;
                    for_loop(b, depth, step, &[acc], |b, i, c| {
                        let p = tile(b, x, [64, step as u32], [zero, i], false);
                        let q = tile(b, y, [step as u32, 32], [i, column], false);
                        let q = if turn == 0 { q } else { doubled(b, q) };
                        vec![dot(b, p, q, c[0])]
                    })
                }
            };
            let (one, thirty_two) = (b.i32(1), b.i32(32));
            let turn = b.binary(BinaryOp::Div, column, thirty_two);
            let turn = b.binary(BinaryOp::Add, turn, pid);
            let odd = b.binary(BinaryOp::And, turn, one);
            let odd = b.compare(CmpOp::Eq, odd, one);
            let result = [Type::Tile(DType::F32, Shape::new(&[64, 32]))];
            let sum = when(b, odd, &result, walk(0), walk(1));
            b.store(out, sum[0], &[zero, column]);
            vec![]
        });
    });
    check(&with(k, 4, 0), [1, 1, 1], &[&[64, 96], &[96, 128], &[64, 128]]);
}

/// A ring that one program of two walks.
#[test]
fn ring_of_some_programs() {
    let k = on_matrices("sometimes", DType::BF16, |b, [x, y, out]| {
        let (zero, one, depth, pid) = (b.i32(0), b.i32(1), b.dim(x, 1), b.program_id(0));
        let row = times(b, pid, 64);
        let first = b.compare(CmpOp::Lt, pid, one);
        let result = [Type::Tile(DType::F32, Shape::new(&[64, 64]))];
        let sum = when(
            b,
            first,
            &result,
            |b| {
                let acc = zeros(b, [64, 64]);
                for_loop(b, depth, 16, &[acc], |b, i, c| {
                    let p = tile(b, x, [64, 16], [row, i], false);
                    let q = tile(b, y, [16, 64], [i, zero], false);
                    vec![dot(b, p, q, c[0])]
                })
            },
            |b| vec![b.splat(DType::F32, Shape::new(&[64, 64]), 3.0)],
        );
        // Needs scratch memory: a sum over all rows.
        let all = b.reduce(sum[0], 0, Combine::Sum);
        let all = b.reshape(all, Shape::new(&[1, 64]));
        let all = b.broadcast(all, Shape::new(&[64, 64]));
        let sum = b.binary(BinaryOp::Add, sum[0], all);
        b.store(out, sum, &[row, zero]);
    });
    check(&with(k, 4, 0), [2, 1, 1], &[&[128, 80], &[80, 64], &[128, 64]]);
}

#[test]
fn attention_with_chained_products() {
    for ([m, n, d], warps, keys) in [
        ([64, 32, 32], 4, 96),
        ([64, 64, 64], 4, 64),
        ([128, 64, 64], 8, 192),
        ([128, 64, 128], 8, 64),
        // Two warpgroups in turns.
        ([128, 128, 128], 8, 384),
    ] {
        let rows = i64::from(m);
        let (long, wide) = (keys as i64, i64::from(d));
        let shapes: &[&[i64]] = &[&[rows, wide], &[long, wide], &[long, wide], &[rows, wide]];
        let k = with(attention(m, n, d), warps, 0);
        let special = specialised(&k, shapes);
        let text = llvm_text(&special, Target { sm: 90 }).unwrap().text;
        assert!(text.contains("wgmma.mma_async") && text.contains("cp.async.bulk.tensor"));
        assert_eq!(text.contains("bar.arrive"), n == 128);
        compare_runs(&[(&special, 90, &Order::ALL), (&general(&k), 90, &Order::ALL[..2])], [1; 3], shapes, 5e-2);
    }
}

/// Operands that are computed in every iteration are put into shared memory, where the products of the iteration before
/// must be done.
#[test]
fn placed_operands_are_not_overwritten_in_flight() {
    for (first, second) in [(false, true), (true, false), (true, true)] {
        for warps in [4, 8] {
            let k = on_matrices(&format!("computed_{first}_{second}"), DType::BF16, |b, [x, y, out]| {
                let (zero, depth) = (b.i32(0), b.dim(x, 1));
                let acc = zeros(b, [64, 128]);
                let sum = for_loop(b, depth, 32, &[acc], |b, i, c| {
                    let p = tile(b, x, [64, 32], [zero, i], false);
                    let q = tile(b, y, [32, 128], [i, zero], false);
                    let p = if first { doubled(b, p) } else { p };
                    let q = if second { doubled(b, q) } else { q };
                    vec![dot(b, p, q, c[0])]
                });
                b.store(out, sum[0], &[zero, zero]);
            });
            let shapes: &[&[i64]] = &[&[64, 128], &[128, 128], &[64, 128]];
            let (special, general) = (specialised(&k, shapes), general(&k));
            let [special, general] = [special, general].map(|k| with(k, warps, 0));
            compare_runs(&[(&special, 90, &Order::ALL), (&general, 90, &Order::ALL)], [1; 3], shapes, 1e-2);
        }
    }
}

/// Tiles of views selected from parameters of rank 3 and 4, which they overlap in part.
#[test]
fn selected_views() {
    let k = built("selected", |b| {
        let x = view(b, "a", DType::BF16, 3, Access::Read);
        let y = view(b, "b", DType::BF16, 4, Access::Read);
        let out = view(b, "c", DType::F32, 3, Access::Write);
        let (pid, zero, two) = (b.program_id(0), b.i32(0), b.i32(2));
        let depth = b.dim(x, 2);
        let head = b.binary(BinaryOp::Sub, two, pid);
        // [head, row, k] and [batch, k, head, column].
        let x = b.view_select(x, 0, pid);
        let y = b.view_select(y, 2, head);
        let y = b.view_select(y, 0, pid);
        let acc = zeros(b, [64, 64]);
        let sum = for_loop(b, depth, 32, &[acc], |b, i, c| {
            let p = tile(b, x, [64, 32], [zero, i], false);
            let q = tile(b, y, [32, 64], [i, zero], false);
            vec![dot(b, p, q, c[0])]
        });
        let out = b.view_select(out, 0, pid);
        b.store(out, sum[0], &[zero, zero]);
    });
    check(&with(k, 4, 0), [3, 1, 1], &[&[3, 48, 80], &[3, 80, 3, 48], &[3, 64, 64]]);
}

/// A tile in a ring is also looked at by elementwise operations, and by two products, one of them transposed.
#[test]
fn tiles_with_several_uses() {
    let k = on_matrices("several", DType::BF16, |b, [x, y, out]| {
        let (zero, depth) = (b.i32(0), b.dim(y, 0));
        let acc = zeros(b, [64, 64]);
        let sums = for_loop(b, depth, 64, &[acc, acc, acc], |b, i, c| {
            let p = tile(b, x, [64, 64], [zero, i], false);
            let q = tile(b, y, [64, 64], [i, zero], false);
            let turned = b.transpose(q, &[1, 0]);
            let wide = b.cast(q, DType::F32);
            let total = b.binary(BinaryOp::Add, c[2], wide);
            let one = dot(b, p, q, c[0]);
            let other = dot(b, p, turned, c[1]);
            vec![one, other, total]
        });
        let sum = b.binary(BinaryOp::Add, sums[0], sums[1]);
        let sum = b.binary(BinaryOp::Add, sum, sums[2]);
        b.store(out, sum, &[zero, zero]);
    });
    check(&with(k.clone(), 4, 0), [1; 3], &[&[64, 192], &[192, 64], &[64, 64]]);
    check(&with(k, 4, 2), [1; 3], &[&[64, 320], &[320, 64], &[64, 64]]);
}

/// A tile that ordinary loads alone read, after the products of the iteration: all of a warp must have read it before
/// its buffer is free.
#[test]
fn tile_after_the_products() {
    let k = on_matrices("after", DType::BF16, |b, [x, y, out]| {
        let (zero, depth) = (b.i32(0), b.dim(y, 0));
        let acc = zeros(b, [64, 64]);
        let sums = for_loop(b, depth, 64, &[acc, acc], |b, i, c| {
            let p = tile(b, x, [64, 64], [zero, i], false);
            let q = tile(b, y, [64, 64], [i, zero], false);
            let none = zeros(b, [64, 64]);
            let product = dot(b, p, q, none);
            let product = b.unary(UnaryOp::Abs, product);
            let next = b.i32(16);
            let r = tile(b, y, [64, 64], [i, next], false);
            let r = b.cast(r, DType::F32);
            vec![b.binary(BinaryOp::Add, c[0], product), b.binary(BinaryOp::Add, c[1], r)]
        });
        let sum = b.binary(BinaryOp::Add, sums[0], sums[1]);
        b.store(out, sum, &[zero, zero]);
    });
    check(&with(k, 4, 2), [1; 3], &[&[64, 320], &[320, 80], &[64, 64]]);
}

/// Products of which some stay in flight around the loop and some do not, and one accumulator for two of them.
#[test]
fn products_in_flight_around_a_loop() {
    let k = on_matrices("flights", DType::BF16, |b, [x, y, out]| {
        let (zero, depth) = (b.i32(0), b.dim(y, 0));
        let acc = zeros(b, [64, 32]);
        let sums = for_loop(b, depth, 32, &[acc, acc], |b, i, c| {
            let p = tile(b, x, [64, 32], [zero, i], false);
            let q = tile(b, y, [32, 32], [i, zero], false);
            let once = dot(b, p, q, c[0]);
            let twice = dot(b, p, q, once);
            // Looked at in every iteration.
            let none = zeros(b, [64, 32]);
            let own = dot(b, p, q, none);
            let other = b.binary(BinaryOp::Add, c[1], own);
            vec![twice, other]
        });
        let sum = b.binary(BinaryOp::Add, sums[0], sums[1]);
        b.store(out, sum, &[zero, zero]);
    });
    check(&with(k, 4, 0), [1; 3], &[&[64, 192], &[192, 32], &[64, 32]]);
}

/// The first operand of a product that stays in flight around the loop is computed anew in every iteration, in
/// registers that the product before still reads.
#[test]
fn registers_are_not_overwritten_in_flight() {
    let k = on_matrices("scores", DType::BF16, |b, [x, y, out]| {
        let (zero, length) = (b.i32(0), b.dim(y, 0));
        let query = tile(b, x, [64, 32], [zero, zero], false);
        let acc = zeros(b, [64, 32]);
        let sum = for_loop(b, length, 64, &[acc], |b, i, c| {
            let keys = tile(b, y, [64, 32], [i, zero], false);
            let turned = b.transpose(keys, &[1, 0]);
            let none = zeros(b, [64, 64]);
            let scores = dot(b, query, turned, none);
            let scores = b.cast(scores, DType::BF16);
            vec![dot(b, scores, keys, c[0])]
        });
        b.store(out, sum[0], &[zero, zero]);
    });
    check(&with(k, 4, 0), [1; 3], &[&[64, 32], &[256, 32], &[64, 32]]);
}

/// The same, where nothing between the products waits for the one before.
#[test]
fn numbered_registers_are_not_overwritten_in_flight() {
    let k = on_matrices("numbers", DType::BF16, |b, [_, y, out]| {
        let (zero, length) = (b.i32(0), b.dim(y, 0));
        let shape = Shape::new(&[64, 32]);
        let acc = zeros(b, [64, 64]);
        let sum = for_loop(b, length, 32, &[acc], |b, i, c| {
            let (rows, columns) = (b.iota(shape, 0), b.iota(shape, 1));
            let number = b.binary(BinaryOp::Xor, rows, columns);
            let wide = b.broadcast(i, shape);
            let number = b.binary(BinaryOp::Add, number, wide);
            let number = b.cast(number, DType::BF16);
            let q = tile(b, y, [32, 64], [i, zero], false);
            vec![dot(b, number, q, c[0])]
        });
        b.store(out, sum[0], &[zero, zero]);
    });
    check(&with(k, 4, 0), [1; 3], &[&[64, 32], &[256, 64], &[64, 64]]);
}

/// A product is waited for although a branch that issued another one, or none, came between.
#[test]
fn branches_do_not_hide_what_is_in_flight() {
    for (yes, no) in [(0, 0), (1, 0), (0, 2), (2, 1)] {
        let k = on_matrices(&format!("between_{yes}_{no}"), DType::BF16, |b, [x, y, out]| {
            let (zero, one, pid) = (b.i32(0), b.i32(1), b.program_id(0));
            let row = times(b, pid, 64);
            let p = tile(b, x, [64, 32], [row, zero], false);
            let q = tile(b, y, [32, 32], [zero, zero], false);
            let none = zeros(b, [64, 32]);
            let before = dot(b, p, q, none);
            let first = b.compare(CmpOp::Lt, pid, one);
            let result = [Type::Tile(DType::F32, Shape::new(&[64, 32]))];
            let branch = |products: usize| {
                move |b: &mut Builder| {
                    let mut sum = b.splat(DType::F32, Shape::new(&[64, 32]), 1.0);
                    for _ in 0..products {
                        sum = dot(b, p, q, sum);
                        sum = b.binary(BinaryOp::Add, sum, sum);
                    }
                    vec![sum]
                }
            };
            let between = when(b, first, &result, branch(yes), branch(no));
            let sum = b.binary(BinaryOp::Add, before, between[0]);
            b.store(out, sum, &[row, zero]);
        });
        check(&with(k, 4, 0), [2, 1, 1], &[&[128, 32], &[32, 32], &[128, 32]]);
    }
}

/// Two warpgroups issue products in turns; the one whose turn it is comes to a barrier of both while its product is in
/// flight.
#[test]
fn barriers_between_turns() {
    let k = on_matrices("turns", DType::BF16, |b, [x, y, out]| {
        let (zero, length) = (b.i32(0), b.dim(y, 0));
        let bias = view(b, "bias", DType::F32, 2, Access::Read);
        let query = tile(b, x, [128, 128], [zero, zero], false);
        let acc = zeros(b, [128, 128]);
        let sum = for_loop(b, length, 128, &[acc], |b, i, c| {
            let keys = tile(b, y, [128, 128], [i, zero], false);
            let turned = b.transpose(keys, &[1, 0]);
            let none = zeros(b, [128, 128]);
            let scores = dot(b, query, turned, none);
            // A sum over the rows of all warps.
            let column = b.load(bias, &[zero, i], Shape::new(&[128, 128]), None);
            let column = b.reduce(column, 0, Combine::Sum);
            let column = b.reshape(column, Shape::new(&[1, 128]));
            let column = b.broadcast(column, Shape::new(&[128, 128]));
            let scores = b.binary(BinaryOp::Add, scores, column);
            let scores = b.cast(scores, DType::BF16);
            vec![dot(b, scores, keys, c[0])]
        });
        b.store(out, sum[0], &[zero, zero]);
    });
    let shapes: &[&[i64]] = &[&[128, 128], &[256, 128], &[128, 128], &[128, 256]];
    for stages in [0, 2] {
        let special = with(specialised(&k, shapes), 8, stages);
        let text = llvm_text(&special, Target { sm: 90 }).unwrap().text;
        assert!(text.contains("bar.arrive"), "{text}");
        compare_runs(&[(&special, 90, &Order::ALL[..2])], [1; 3], shapes, 3e-2);
    }
}

/// x · y, where the loop may read a step's operands only when a semaphore says so: the producer waits for it. The
/// program gives the signals itself, all but the first long after the producer has come to the wait. If `pairs`, it waits
/// at every other step for two.
fn waiting(reads_first: bool, pairs: bool) -> Kernel {
    built("waiting", |b| {
        let [x, y] = ["x", "y"].map(|name| view(b, name, DType::BF16, 2, Access::Read));
        let bias = view(b, "bias", DType::F32, 1, Access::Read);
        let ready = view(b, "ready", DType::I32, 1, Access::Write);
        let out = view(b, "out", DType::F32, 2, Access::Write);
        let (zero, one) = (b.i32(0), b.i32(1));
        let length = b.dim(x, 1);
        let none = b.splat(DType::I32, Shape::new(&[4]), 0.0);
        b.store(ready, none, &[zero]);
        for_loop(b, length, 64, &[], |b, i, _| {
            let step = b.i32(64);
            let at = b.binary(BinaryOp::Div, i, step);
            let group = b.i32(if pairs { -2 } else { -1 });
            let at = b.binary(BinaryOp::And, at, group);
            b.signal(ready, one, &[at]);
            vec![]
        });
        let acc = zeros(b, [64, 64]);
        let sum = for_loop(b, length, 64, &[acc], |b, i, c| {
            let step = b.i32(64);
            let at = b.binary(BinaryOp::Div, i, step);
            if pairs {
                let odd = b.binary(BinaryOp::And, at, one);
                let even = b.compare(CmpOp::Eq, odd, zero);
                let wait = |b: &mut Builder| {
                    let two = b.i32(2);
                    b.wait(ready, two, &[at]);
                    vec![]
                };
                when(b, even, &[], wait, |_| vec![]);
            } else {
                b.wait(ready, one, &[at]);
            }
            let mut sum = c[0];
            if reads_first {
                let more = b.load(bias, &[i], Shape::new(&[64]), None);
                let more = b.reshape(more, Shape::new(&[1, 64]));
                let more = b.broadcast(more, Shape::new(&[64, 64]));
                sum = b.binary(BinaryOp::Add, sum, more);
            }
            let (left, right) = (tile(b, x, [64, 64], [zero, i], false), tile(b, y, [64, 64], [i, zero], false));
            vec![dot(b, left, right, sum)]
        });
        b.store(out, sum[0], &[zero, zero]);
    })
}

#[test]
fn the_producer_waits_for_signals() {
    let shapes: [&[i64]; 5] = [&[64, 256], &[256, 64], &[256], &[4], &[64, 64]];
    check(&waiting(false, false), [1; 3], &shapes);
    check(&waiting(false, true), [1; 3], &shapes);
    // What the computing warps read themselves may not be read before the wait: no producer there.
    for pairs in [false, true] {
        let special = specialised(&waiting(true, pairs), &shapes);
        compare_runs(&[(&special, 90, &Order::ALL)], [1; 3], &shapes, 1e-2);
    }
    let special = specialised(&waiting(true, false), &shapes);
    let text = llvm_text(&special, Target { sm: 90 }).unwrap_or_else(|e| panic!("{e}")).text;
    assert!(!text.contains("cp.async"), "{text}");
}

/// A chain of products with a result a step: s ← s·f + xᵀy and c ← xs, where the factors f are a row of their own.
/// Stores of different steps do not meet, and what a warp stores is its own: no barrier in the loop.
fn steps(disjoint: bool) -> Kernel {
    built("steps", |b| {
        let [x, y] = ["x", "y"].map(|name| view(b, name, DType::BF16, 2, Access::Read));
        let f = view(b, "f", DType::F32, 2, Access::Read);
        let (out, last) = (view(b, "out", DType::F32, 2, Access::Write), view(b, "last", DType::F32, 2, Access::Write));
        let (zero, rows) = (b.i32(0), b.dim(y, 0));
        let acc = zeros(b, [64, 64]);
        let sum = for_loop(b, rows, 64, &[acc], |b, i, c| {
            let step = b.i32(64);
            let at = b.binary(BinaryOp::Div, i, step);
            let xs = tile(b, x, [64, 64], [zero, i], false);
            let ys = tile(b, y, [64, 64], [i, zero], false);
            let factors = tile(b, f, [1, 64], [at, zero], false);
            let before = b.cast(c[0], DType::BF16);
            let none = zeros(b, [64, 64]);
            let seen = dot(b, before, ys, none);
            let turned = b.transpose(seen, &[1, 0]);
            b.store(out, turned, &[if disjoint { i } else { zero }, zero]);
            let factors = b.broadcast(factors, Shape::new(&[64, 64]));
            let s = b.binary(BinaryOp::Mul, c[0], factors);
            vec![dot(b, xs, ys, s)]
        });
        b.store(last, sum[0], &[zero, zero]);
    })
}

#[test]
fn steps_that_store_apart_wait_for_nobody() {
    let shapes: [&[i64]; 5] = [&[64, 192], &[192, 64], &[3, 64], &[192, 64], &[64, 64]];
    for disjoint in [true, false] {
        let k = steps(disjoint);
        check(&k, [1; 3], &shapes);
        let text = llvm_text(&specialised(&k, &shapes), Target { sm: 90 }).unwrap_or_else(|e| panic!("{e}")).text;
        let compute = &text[text.find("\ncompute").expect("the computing warps")..];
        let (from, to) = (compute.find("\nloop").expect("a loop"), compute.find("\ndone").expect("its end"));
        assert_eq!(compute[from..to].contains("bar.sync 1,"), !disjoint, "{text}");
    }
}

/// A tile in a ring is read where its values are first needed, be it after a product that was issued since it arrived:
/// the chain's factors, which nobody needs before its second product.
#[test]
fn tiles_are_read_where_they_are_needed() {
    let shapes: [&[i64]; 5] = [&[64, 192], &[192, 64], &[3, 64], &[192, 64], &[64, 64]];
    let text = llvm_text(&specialised(&steps(true), &shapes), Target { sm: 90 }).unwrap_or_else(|e| panic!("{e}")).text;
    let compute = &text[text.find("\ncompute").expect("the computing warps")..];
    let body = &compute[compute.find("\nloop").expect("a loop")..];
    let (product, factors) = (body.find("wgmma.mma_async"), body.find("ld.shared.v2.b32"));
    assert!(product.is_some() && factors.is_some() && product < factors, "{body}");
}

/// What follows the issue of a product whose first operand is in registers stays behind it.
#[test]
fn nothing_is_loaded_between_a_products_instructions() {
    let k = on_matrices("kept_together", DType::BF16, |b, [x, y, out]| {
        let (zero, depth) = (b.i32(0), b.dim(x, 1));
        let acc = zeros(b, [64, 64]);
        let sum = for_loop(b, depth, 32, &[acc], |b, i, c| {
            let q = tile(b, y, [32, 64], [i, zero], true);
            let p = tile(b, x, [64, 32], [zero, i], false);
            let p = doubled(b, p);
            vec![dot(b, p, q, c[0])]
        });
        b.store(out, sum[0], &[zero, zero]);
    });
    let shapes: &[&[i64]] = &[&[64, 96], &[64, 96], &[64, 64]];
    let text = check(&with(k, 4, 0), [1; 3], shapes).text;
    let product = text.find("wgmma.mma_async").unwrap();
    let end = product + text[product..].find("wgmma.wait_group").unwrap();
    assert!(text[product..end].contains("llvm.nvvm.bar.warp.sync"), "{text}");
}
