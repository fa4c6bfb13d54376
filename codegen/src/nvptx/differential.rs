//! Lowered kernels, run by the simulator, compute what the interpreter computes.

use super::simulate::{Order, Simulator, address_of};
use super::tests_kernels as kernels;
use super::tests_kernels::{built, view};
use super::{Target, llvm_text};
use crate::gpu;
use crate::interp::{Arg, Buffer, run};
use crate::ir::{Access, BinaryOp, Combine, DType, Kernel, OpKind, Options, Shape, Type};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Numbers that look random.
fn noise(seed: u64) -> impl FnMut() -> f64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0
    }
}

fn fill(dtype: DType, count: usize, seed: u64) -> Vec<u8> {
    let mut next = noise(seed);
    let mut out = vec![];
    for _ in 0..count {
        let x = match dtype {
            DType::U8 => 255.0 * next().abs(),
            _ if dtype.is_float() => 2.0 * next(),
            _ => 100.0 * next(),
        };
        // None halfway between two tf32 numbers: bulk copies round those otherwise than the rest.
        let odd = u64::from(dtype == DType::F32);
        out.extend_from_slice(&(crate::ir::Bits::from_f64(dtype, x).0 | odd).to_le_bytes()[..dtype.size()]);
    }
    out
}

/// A contiguous view's strides.
fn strides(shape: &[i64]) -> Vec<i64> {
    (0..shape.len()).map(|d| shape[d + 1..].iter().map(|&x| x.max(1)).product()).collect()
}

/// The kernel specialised to arguments of these shapes.
pub(super) fn specialised(k: &Kernel, shapes: &[&[i64]]) -> Kernel {
    let mut special = k.clone();
    let values: Vec<u64> = shapes
        .iter()
        .flat_map(|s| std::iter::once(0).chain(s.iter().copied()).chain(strides(s)).map(|x| x as u64))
        .collect();
    special.facts = Kernel::facts_of(&k.slots(), &values);
    special
}

/// The kernel specialised to nothing.
pub(super) fn general(k: &Kernel) -> Kernel {
    Kernel { facts: vec![], ..k.clone() }
}

/// Runs both and compares every buffer. `shapes`: one per parameter.
pub(super) fn compare(k: &Kernel, grid: [u32; 3], shapes: &[&[i64]], tolerance: f64) {
    let (special, general) = (specialised(k, shapes), general(k));
    let orders = |early| [Order { backwards: false, early }, Order { backwards: true, early: !early }];
    let runs = [(&special, 80, orders(false)), (&special, 90, orders(false)), (&general, 90, orders(true))];
    let runs: Vec<_> = runs.iter().map(|(k, sm, orders)| (*k, *sm, &orders[..])).collect();
    compare_runs(&runs, grid, shapes, tolerance);
}

/// Runs versions of one kernel, each for a chip and in some orders.
pub(super) fn compare_runs(runs: &[(&Kernel, u32, &[Order])], grid: [u32; 3], shapes: &[&[i64]], tolerance: f64) {
    let mut args = vec![];
    let mut params = vec![];
    let mut global = vec![];
    let mut buffers = vec![];
    let k = general(runs[0].0);
    for (i, (p, shape)) in k.params.iter().zip(shapes).enumerate() {
        let Type::View(dtype, _) = k.ty(p.value) else { panic!("views only") };
        let bytes = fill(dtype, shape.iter().product::<i64>() as usize, i as u64 + 1);
        let buffer = Arc::new(Buffer::from_bytes(bytes.clone()));
        args.push(Arg::contiguous(&buffer, shape));
        params.push(address_of(i));
        params.extend(shape.iter().copied().chain(strides(shape)).map(|d| d as u64));
        global.push(bytes);
        buffers.push(buffer);
    }
    run(&k, grid, &args).unwrap_or_else(|e| panic!("{}: {e}", k.name));
    // Of what is discarded nothing is left.
    let want: Vec<Option<Vec<u8>>> = buffers.iter().map(|b| b.to_bytes().ok()).collect();
    for &(k, sm, orders) in runs {
        let lowered = llvm_text(k, Target { sm }).unwrap_or_else(|e| panic!("{e}"));
        for &order in orders {
            let mut s = Simulator::new(&lowered, global.clone());
            for z in 0..grid[2] {
                for y in 0..grid[1] {
                    for x in (0..grid[0]).step_by(s.run_together(grid)) {
                        s.run(&params, [x, y, z], grid, order);
                    }
                }
            }
            for (i, p) in k.params.iter().enumerate().filter(|(_, p)| p.access == Access::Write) {
                let dtype = k.ty(p.value).dtype();
                let value = |bytes: &[u8], j: usize| {
                    let mut word = [0; 8];
                    word[..dtype.size()].copy_from_slice(&bytes[j * dtype.size()..(j + 1) * dtype.size()]);
                    crate::ir::Bits(u64::from_le_bytes(word)).to_f64(dtype)
                };
                let want = want[i].as_ref().expect("all written");
                for j in 0..want.len() / dtype.size() {
                    let (w, g) = (value(want, j), value(&s.global[i], j));
                    let same = w == g || w.is_nan() && g.is_nan() || (w - g).abs() <= tolerance * w.abs().max(1e-2);
                    assert!(same, "{} sm_{sm} {order:?}: `{}`[{j}] is {g}, not {w}", k.name, p.name);
                }
            }
        }
    }
}

use crate::ir::Precision;

#[test]
fn functions() {
    let shapes: &[&[i64]] = &[&[256], &[21, 256]];
    compare(&kernels::functions(DType::F32), [1; 3], shapes, 2e-5);
    compare(&kernels::functions(DType::BF16), [1; 3], shapes, 1e-2);
    compare(&kernels::functions(DType::F16), [1; 3], shapes, 2e-3);
}

/// Bit for bit; with rounded products the first row would be 0.
#[test]
fn fma_keeps_the_product_exact() {
    for d in [DType::F32, DType::BF16, DType::F16] {
        compare(&kernels::fused(d), [1; 3], &[&[256], &[256], &[3, 256]], 0.0);
    }
}

#[test]
fn casts() {
    for d in DType::ALL {
        let shapes: Vec<&[i64]> = vec![&[64]; 15];
        compare(&kernels::casts(d), [1; 3], &shapes, 0.0);
    }
}

#[test]
fn bitcasts() {
    for d in DType::ALL.into_iter().filter(|d| *d != DType::Bool) {
        let shapes: Vec<&[i64]> = vec![&[64]; 1 + kernels::bitcasts_of(d).count()];
        compare(&kernels::bitcasts(d), [1; 3], &shapes, 0.0);
    }
}

#[test]
fn reductions_and_scans() {
    for (rows, n) in [(8, 256), (64, 32), (1, 1024), (4, 4)] {
        let (r, c) = (rows as i64, n as i64);
        compare(&kernels::argmax_and_scan(rows, n), [1; 3], &[&[r, c], &[r], &[r, c]], 1e-3);
    }
}

/// The hardware that counts the index of a kernel's scans, from the lowest bit: registers, lanes, warps.
fn scanned_along(k: &Kernel) -> BTreeSet<String> {
    let plan = gpu::assign::assign(k, gpu::Chip { warpgroups: false, shared_bytes: 163 << 10, ring_bytes: 0 });
    let mut all = BTreeSet::new();
    for (id, layout) in &plan.work {
        if let OpKind::Scan { axis, .. } = k.op(*id).kind {
            let bits = gpu::suitable::axis_bits(layout, axis as usize).expect("chosen for that");
            let mut levels: Vec<char> = bits.iter().map(|(level, _)| format!("{level:?}").remove(0)).collect();
            levels.dedup();
            all.insert(String::from_iter(levels));
        }
    }
    all
}

#[test]
fn scans_along_all_levels() {
    let cases = [
        (64, 8, 0, 1, false),
        (8, 64, 1, 1, false),
        (4, 256, 1, 1, false),
        (64, 8, 0, 4, false),
        (32, 32, 0, 4, false),
        (128, 4, 0, 8, false),
        (2, 1024, 1, 4, false),
        (1, 512, 1, 8, false),
        (4, 8, 1, 4, false),
        (1, 512, 1, 1, true),
        (1, 512, 1, 4, true),
        (1, 256, 1, 8, true),
    ];
    let mut seen = BTreeSet::new();
    for (rows, n, axis, warps, mixed) in cases {
        let k = kernels::scans(rows, n, axis, warps, mixed);
        let shape: &[i64] = &[rows as i64, n as i64];
        seen.append(&mut scanned_along(&general(&k)));
        seen.append(&mut scanned_along(&specialised(&k, &[shape; 12])));
        compare(&k, [1; 3], &[shape; 12], 0.0);
    }
    // All that a step can follow on.
    for levels in ["L", "LR", "RL", "RLR", "RLW", "RLWR", "WR", "WRWL", "LWLRL"] {
        assert!(seen.contains(levels), "no scan along {levels}, but {seen:?}");
    }
}

/// Four elements of a lane take in one total, which is fetched once.
#[test]
fn a_scan_shuffles_once_per_step_and_total() {
    let k = built("sums", |b| {
        let (x, out) = (view(b, "x", DType::F32, 1, Access::Read), view(b, "out", DType::F32, 1, Access::Write));
        let zero = b.i32(0);
        let t = b.load(x, &[zero], Shape::new(&[128]), None);
        let t = b.scan(t, 0, Combine::Sum, false);
        b.store(out, t, &[zero]);
    });
    let k = Kernel { options: Options { warps: 1, ..k.options }, ..k };
    let k = specialised(&k, &[&[128], &[128]]);
    assert_eq!(scanned_along(&k), BTreeSet::from(["RL".to_owned()]));
    let text = llvm_text(&k, Target { sm: 90 }).unwrap().text;
    assert_eq!(text.matches("call i32 @llvm.nvvm.shfl.sync").count(), 5);
}

#[test]
fn rmsnorm() {
    compare(&kernels::rmsnorm(1024), [2, 1, 1], &[&[2, 1024], &[1024], &[2, 1024]], 1e-2);
}

#[test]
fn memory() {
    let mut shapes: Vec<&[i64]> = vec![&[32, 16], &[64]];
    shapes.extend([&[64i64][..]; 6]);
    compare(&kernels::memory(), [1; 3], &shapes, 1e-2);
}

#[test]
fn products() {
    for (d, p, tolerance) in [
        (DType::BF16, Precision::F32, 2e-2),
        (DType::F16, Precision::F32, 4e-3),
        (DType::F32, Precision::Tf32, 2e-2),
        (DType::F32, Precision::Tf32x3, 1e-3),
        (DType::F32, Precision::F32, 1e-3),
    ] {
        compare(&kernels::gemm(32, 64, 32, d, p), [2, 1, 1], &[&[64, 128], &[128, 64], &[64, 64]], tolerance);
        compare(&kernels::gemm(16, 16, 64, d, p), [2, 2, 1], &[&[32, 64], &[64, 32], &[32, 32]], tolerance);
    }
    compare(
        &kernels::gemm(64, 64, 32, DType::BF16, Precision::F32),
        [1, 1, 1],
        &[&[64, 160], &[160, 64], &[64, 64]],
        2e-2,
    );
    let one: &[&[i64]] = &[&[16, 16], &[16, 32], &[16, 32]];
    compare(&kernels::gemm(16, 32, 16, DType::BF16, Precision::F32), [1, 1, 1], one, 2e-2);
    for m in [8, 4, 1] {
        let one: &[&[i64]] = &[&[m, 16], &[16, 32], &[m, 32]];
        compare(&kernels::gemm(m as u32, 32, 16, DType::BF16, Precision::F32), [1, 1, 1], one, 2e-2);
    }
    compare(&kernels::gemm(4, 32, 16, DType::BF16, Precision::F32), [1, 1, 1], &[&[4, 48], &[48, 32], &[4, 32]], 2e-2);
}

#[test]
fn products_of_rank_3() {
    for (count, m, n, k) in
        [(1, 16, 16, 16), (2, 16, 32, 16), (4, 16, 16, 32), (4, 8, 4, 2), (2, 1, 1, 4), (2, 32, 16, 16)]
    {
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::I8] {
            let [c, rows, columns, depth] = [2 * count, m, n, 2 * k].map(i64::from);
            let shapes: &[&[i64]] = &[&[c, rows, depth], &[c, columns, depth], &[c, rows, columns]];
            compare(&kernels::batched(count, m, n, k, dtype), [2, 1, 1], shapes, 1e-3);
        }
    }
}

/// One thread stores a scalar, all of them load it: found by `lab random`, seed 4194846.
#[test]
fn scalars_are_loaded_after_one_thread_has_stored_them() {
    let text = "kernel twice(%s: view<i32,1>, %y: write view<i32,1>, %out: write view<i32,1>) {
  %0: i32 = program_id 0
  %1: view<i32,0> = view_select 0 %s, %0
  %2: i32 = load %1[]
  %3: view<i32,0> = view_select 0 %y, %0
  store %3[], %2
  %4: i32 = load %3[]
  %5: i32<128> = broadcast %4
  %6: i32 = const 128
  %7: i32 = mul %0, %6
  store %out[%7], %5
  yield
}";
    compare(&crate::ir::parse(text).unwrap(), [2, 1, 1], &[&[2], &[2], &[256]], 0.0);
}

/// A program that signals to itself: the store of 0 makes sure of the semaphore's value.
#[test]
fn waits_come_after_signals() {
    let text = "kernel pass(%x: view<i32,1>, %ready: write view<i32,1>, %out: write view<i32,1>) {
  %0: i32 = const 0
  %1: i32 = const 3
  %2: i32<1> = const 0
  store %ready[%0], %2
  signal %ready[%0], %1
  %4: i32 = const 2
  wait %ready[%0], %4
  wait %ready[%1], %4
  %3: i32<64> = load %x[%0]
  store %out[%0], %3
  yield
}";
    compare(&crate::ir::parse(text).unwrap(), [1; 3], &[&[64], &[1], &[64]], 0.0);
}

#[test]
fn attention() {
    compare(&kernels::attention(64, 32, 32), [1; 3], &[&[64, 32], &[64, 32], &[64, 32], &[64, 32]], 3e-2);
}

/// Two stores of 64 numbers, `apart` from each other, at a place that only the launch knows.
fn two_stores(apart: i32) -> Kernel {
    built("two_stores", |b| {
        let out = view(b, "out", DType::F32, 1, Access::Write);
        let at = b.program_id(0);
        let more = b.i32(apart);
        let later = b.binary(BinaryOp::Add, at, more);
        for at in [at, later] {
            let x = b.splat(DType::F32, Shape::new(&[64]), 1.0);
            b.store(out, x, &[at]);
        }
    })
}

#[test]
fn stores_wait_for_one_another_only_if_they_may_overlap() {
    for (apart, barrier) in [(64, false), (-64, false), (1000, false), (63, true), (-1, true)] {
        let text = llvm_text(&two_stores(apart), Target { sm: 90 }).unwrap().text;
        assert_eq!(text.contains("call void @llvm.nvvm.barrier0"), barrier, "{apart} apart");
    }
}
