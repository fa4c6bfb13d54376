//! Products by warpgroups of other types than 16-bit floats: bytes, and f32 rounded to tf32.

use super::differential::{compare_runs, general, specialised};
use super::simulate::Order;
use super::tests::assembles;
use super::tests_kernels::{built, for_loop, view};
use super::tests_warpgroups::{check, check_gemm, dot, doubled, gemm, on_matrices, sums, tile, tolerance, with, zeros};
use super::{Target, Transfer, llvm_text};
use crate::ir::{Access, BinaryOp, DType, Lint, OpKind, Precision, Shape};

const BYTES: [DType; 4] = [DType::I8, DType::U8, DType::F8E4M3, DType::F8E5M2];

/// Operands of 8 bits, of which K runs along the rows.
#[test]
fn gemm_of_bytes() {
    for dtype in BYTES {
        check_gemm([64, 16, 32], 4, dtype, [false, true], [64, 16, 96]);
        check_gemm([128, 64, 64], 8, dtype, [false, true], [128, 48, 144]);
        check_gemm([64, 128, 128], 8, dtype, [false, true], [64, 128, 256]);
        check_gemm([128, 256, 128], 8, dtype, [false, true], [128, 256, 128]);
    }
}

#[test]
fn gemm_as_tf32() {
    check_gemm([64, 16, 8], 4, DType::F32, [false, true], [64, 16, 48]);
    check_gemm([64, 64, 32], 4, DType::F32, [false, true], [64, 48, 80]);
    check_gemm([128, 64, 16], 8, DType::F32, [false, true], [100, 64, 64]);
    check_gemm([64, 128, 32], 8, DType::F32, [false, true], [64, 128, 64]);
    check_gemm([128, 256, 32], 8, DType::F32, [false, true], [128, 256, 32]);
}

/// Whether some product takes its first operand from registers.
fn from_registers(text: &str) -> bool {
    text.lines().any(|l| l.contains("wgmma.mma_async") && l.contains("}, {"))
}

/// A first operand that is computed from a tile in a ring comes from registers; other computed operands are put into
/// shared memory.
#[test]
fn computed_operands_of_bytes_and_tf32() {
    for dtype in BYTES.into_iter().chain([DType::F32]) {
        for (first, second) in [(false, true), (true, false), (true, true)] {
            for warps in [4, 8] {
                let k = on_matrices(&format!("computed_{dtype}_{first}_{second}"), dtype, |b, [x, y, out]| {
                    let (zero, depth) = (b.i32(0), b.dim(x, 1));
                    let acc = b.splat(sums(dtype), Shape::new(&[64, 128]), 0.0);
                    let sum = for_loop(b, depth, 64, &[acc], |b, i, c| {
                        let p = tile(b, x, [64, 64], [zero, i], false);
                        let q = tile(b, y, [128, 64], [zero, i], false);
                        let p = if first { doubled(b, p) } else { p };
                        let q = if second { doubled(b, q) } else { q };
                        let turned = b.transpose(q, &[1, 0]);
                        vec![dot(b, p, turned, c[0])]
                    });
                    b.store(out, sum[0], &[zero, zero]);
                });
                let shapes: &[&[i64]] = &[&[64, 128], &[128, 128], &[64, 128]];
                let (special, general) = (with(specialised(&k, shapes), warps, 2), with(general(&k), warps, 2));
                let text = llvm_text(&special, Target { sm: 90 }).unwrap().text;
                assert!(text.contains("wgmma.mma_async"), "{dtype} {warps}: {text}");
                assert_eq!(from_registers(&text), first && !second, "{dtype} {warps}: {text}");
                compare_runs(
                    &[(&special, 90, &Order::ALL), (&general, 90, &Order::ALL)],
                    [1; 3],
                    shapes,
                    tolerance(&k),
                );
            }
        }
    }
}

#[test]
fn sums_of_integers_wrap() {
    for dtype in [DType::I8, DType::U8] {
        let k = on_matrices("wraps", dtype, |b, [x, y, out]| {
            let zero = b.i32(0);
            let depth = b.dim(x, 1);
            let acc = b.splat(DType::I32, Shape::new(&[64, 64]), f64::from(i32::MAX));
            let sum = for_loop(b, depth, 32, &[acc], |b, i, c| {
                let p = tile(b, x, [64, 32], [zero, i], false);
                let q = tile(b, y, [32, 64], [i, zero], true);
                vec![dot(b, p, q, c[0])]
            });
            b.store(out, sum[0], &[zero, zero]);
        });
        check(&with(k, 4, 0), [1; 3], &[&[64, 96], &[64, 96], &[64, 64]]);
    }
}

/// One wait hands sums of both types through.
#[test]
fn products_of_integers_and_floats_in_flight() {
    let k = built("both", |b| {
        let [x, y] = ["a", "b"].map(|name| view(b, name, DType::I8, 2, Access::Read));
        let [z, w] = ["d", "e"].map(|name| view(b, name, DType::F32, 2, Access::Read));
        let (out, other) = (view(b, "c", DType::I32, 2, Access::Write), view(b, "f", DType::F32, 2, Access::Write));
        let (zero, depth) = (b.i32(0), b.dim(x, 1));
        let none = [DType::I32, DType::F32].map(|d| b.splat(d, Shape::new(&[64, 32]), 0.0));
        let both = for_loop(b, depth, 32, &none, |b, i, c| {
            let [p, r] = [x, z].map(|v| tile(b, v, [64, 32], [zero, i], false));
            let [q, s] = [y, w].map(|v| tile(b, v, [32, 32], [i, zero], true));
            vec![dot(b, p, q, c[0]), dot(b, r, s, c[1])]
        });
        b.store(out, both[0], &[zero, zero]);
        b.store(other, both[1], &[zero, zero]);
    });
    let shapes: [&[i64]; 6] = [&[64, 96], &[32, 96], &[64, 96], &[32, 96], &[64, 32], &[64, 32]];
    let (special, general) = (specialised(&k, &shapes), general(&k));
    let text = llvm_text(&special, Target { sm: 90 }).unwrap().text;
    assert!(text.contains("s32.s8.s8") && text.contains("f32.tf32.tf32"), "{text}");
    compare_runs(&[(&special, 90, &Order::ALL), (&general, 90, &Order::ALL[..2])], [1; 3], &shapes, 1e-3);
    assembles(&special, 90);
}

/// Bulk copies round to tf32 what products alone read. What others look at, too, comes as it is.
#[test]
fn copies_round_what_products_alone_read() {
    let gemm = gemm([64, 64, 32], DType::F32, [false, true]);
    let lowered = check(&with(gemm, 4, 0), [1; 3], &[&[64, 96], &[64, 96], &[64, 64]]);
    assert!(lowered.maps.iter().all(|m| m.transfer == Transfer::Tf32) && !from_registers(&lowered.text));
    for exactly in [false, true] {
        let k = on_matrices("others", DType::F32, |b, [x, y, out]| {
            let other = view(b, "d", DType::F32, 2, Access::Write);
            let (zero, depth) = (b.i32(0), b.dim(x, 1));
            let (none, acc) = (zeros(b, [64, 32]), zeros(b, [64, 64]));
            let both = for_loop(b, depth, 32, &[acc, none, acc], |b, i, c| {
                let p = tile(b, x, [64, 32], [zero, i], false);
                let q = tile(b, y, [32, 64], [i, zero], true);
                let more = if exactly {
                    let r = tile(b, y, [32, 64], [i, zero], true);
                    b.dot(p, r, c[2], Precision::Tf32x3)
                } else {
                    c[2]
                };
                vec![dot(b, p, q, c[0]), b.binary(BinaryOp::Add, c[1], p), more]
            });
            let sum = b.binary(BinaryOp::Add, both[0], both[2]);
            b.store(out, sum, &[zero, zero]);
            b.store(other, both[1], &[zero, zero]);
        });
        let lowered = check(&with(k, 4, 2), [1; 3], &[&[64, 128], &[64, 128], &[64, 64], &[64, 32]]);
        let rounded: Vec<bool> = lowered.maps.iter().map(|m| m.transfer == Transfer::Tf32).collect();
        assert_eq!(rounded, [false, true, false][..2 + usize::from(exactly)]);
        assert!(from_registers(&lowered.text));
    }
}

/// Loads outside of loops are rounded on the way, too.
#[test]
fn a_single_product_as_tf32() {
    let k = on_matrices("single", DType::F32, |b, [x, y, out]| {
        let zero = b.i32(0);
        let (p, q) = (tile(b, x, [64, 64], [zero, zero], false), tile(b, y, [64, 32], [zero, zero], true));
        let none = zeros(b, [64, 32]);
        let sum = dot(b, p, q, none);
        b.store(out, sum, &[zero, zero]);
    });
    let lowered = check(&with(k, 4, 0), [1; 3], &[&[64, 64], &[32, 64], &[64, 32]]);
    assert!(lowered.maps.iter().all(|m| m.transfer == Transfer::Tf32));
}

#[test]
fn products_of_bytes_and_tf32_assemble() {
    for (dtype, depth) in [(DType::I8, 128), (DType::U8, 64), (DType::F32, 32)] {
        for (tile, warps) in [([128, 128, depth], 4), ([128, 256, depth], 8)] {
            let k = with(gemm(tile, dtype, [false, true]), warps, 0);
            let [m, n, depth] = [512, 512, 512];
            let special = specialised(&k, &[&[m, depth], &[n, depth], &[m, n]]);
            assert_eq!(llvm_text(&special, Target { sm: 90 }).unwrap().findings, []);
            assembles(&special, 90);
        }
    }
}

/// What falls back to single warps says why.
#[test]
fn products_that_warpgroups_do_not_take() {
    use Precision::{F32, Tf32, Tf32x3};
    let floats = "which takes f32 as tf32 only";
    let turned = "which takes 8-bit and tf32 operands with K along their rows";
    for (dtype, precision, [m, n, k], turned, why) in [
        (DType::F32, F32, [64, 64, 32], true, floats),
        (DType::F32, Tf32x3, [64, 64, 32], true, floats),
        (DType::F32, Tf32, [64, 64, 32], false, turned),
        (DType::F32, Tf32, [32, 64, 32], true, "which takes at least 64x16x8 of tf32"),
        (DType::I8, Tf32, [64, 64, 32], false, turned),
        (DType::U8, Tf32, [64, 64, 16], true, "which takes at least 64x16x16 (8-bit: 64x16x32)"),
    ] {
        let mut kernel = with(gemm([m, n, k], dtype, [false, turned]), 4, 0);
        for op in &mut kernel.ops {
            if let OpKind::Dot(p) = &mut op.kind {
                *p = precision;
            }
        }
        let [m, n, k] = [m, n, k].map(i64::from);
        let turn = |[r, c]: [i64; 2]| if turned { [c, r] } else { [r, c] };
        let shapes: [&[i64]; 3] = [&[m, 2 * k], &turn([2 * k, n]), &[m, n]];
        let special = specialised(&kernel, &shapes);
        let lowered = llvm_text(&special, Target { sm: 90 }).unwrap_or_else(|e| panic!("{e}"));
        let findings = lowered.findings.iter().filter(|f| f.lint == Lint::Fallback);
        let whys: Vec<&str> = findings.filter_map(|f| f.message.split_once("no wgmma, ")).map(|(_, w)| w).collect();
        assert_eq!(whys, [why], "{dtype} {precision:?}");
        assert!(!lowered.text.contains("wgmma.mma_async"));
        compare_runs(&[(&special, 90, &Order::ALL[..2])], [1; 3], &shapes, tolerance(&kernel));
    }
}
