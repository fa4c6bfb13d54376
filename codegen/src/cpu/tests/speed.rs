//! Measurements: `cargo test --release -p kiln-codegen cpu::tests::speed -- --ignored --nocapture --test-threads 1`.

use super::*;
use crate::cpu::compile;
use crate::ir::{BinaryOp, Combine, OpKind, Precision, UnaryOp};
use std::time::Instant;

/// Median seconds of a launch.
fn median(kernel: &mut Kernel, args: &mut [Vec<u8>], shapes: &[(DType, Vec<i64>)], grid: [u32; 3]) -> f64 {
    let mut slots = vec![];
    for (m, (_, shape)) in args.iter_mut().zip(shapes) {
        slots.push(m.as_mut_ptr() as u64);
        slots.extend(shape.iter().map(|&d| d as u64));
        let strides = (0..shape.len()).map(|i| shape[i + 1..].iter().product::<i64>() as u64);
        slots.extend(strides);
    }
    kernel.facts = Kernel::facts_of(&kernel.slots(), &slots);
    let start = Instant::now();
    let compiled = compile(kernel).expect("compiles");
    println!("  compiled in {:.1} ms, {} bytes", start.elapsed().as_secs_f64() * 1e3, compiled.code_bytes());
    let mut times: Vec<f64> = (0..15)
        .map(|_| {
            let start = Instant::now();
            // SAFETY: the slots describe `args`, which live on; programs write disjoint blocks.
            unsafe { compiled.launch(&slots, grid) }.expect("runs");
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("  best {:.1} µs", times[0] * 1e6);
    times[times.len() / 2]
}

fn block_starts(b: &mut Builder, sizes: &[i32]) -> Vec<ValueId> {
    let mut at = vec![];
    for (axis, &size) in sizes.iter().enumerate() {
        let pid = b.program_id(axis);
        let size = b.i32(size);
        at.push(b.binary(BinaryOp::Mul, pid, size));
    }
    at
}

fn memory(shapes: &[(DType, Vec<i64>)]) -> Vec<Vec<u8>> {
    shapes.iter().map(|(d, s)| vec![0x3c; d.size() * s.iter().product::<i64>() as usize]).collect()
}

fn params(b: &mut Builder, shapes: &[(DType, Vec<i64>)]) -> Vec<ValueId> {
    let last = shapes.len() - 1;
    let param = |(i, (d, s)): (usize, &(DType, Vec<i64>))| {
        let access = if i == last { Access::Write } else { Access::Read };
        b.kernel_mut().add_param(format!("p{i}"), Type::View(*d, s.len() as u8), access, None)
    };
    shapes.iter().enumerate().map(param).collect()
}

#[test]
#[ignore = "a measurement"]
fn matrix_product() {
    for (dtype, n, block, depth) in
        [(F32, 256, 64, 64), (F32, 256, 64, 32), (BF16, 256, 64, 64), (BF16, 1024, 64, 64), (BF16, 256, 32, 32)]
    {
        for transposed in [false, true] {
            let mut b = Builder::new("matmul", Loc::default());
            let square = vec![n as i64, n as i64];
            let shapes = [(dtype, square.clone()), (dtype, square.clone()), (F32, square)];
            let p = params(&mut b, &shapes);
            let at = block_starts(&mut b, &[block, block]);
            let size = block as u32;
            let zero = b.splat(F32, dims(&[size, size]), 0.0);
            let (lo, hi, step) = (b.i32(0), b.i32(n), b.i32(depth));
            let acc = b.ty(zero);
            let (region, args) = b.open(&[Type::scalar(I32), acc]);
            let x = b.load(p[0], &[at[0], args[0]], dims(&[size, depth as u32]), None);
            let y = if transposed {
                let y = b.load(p[1], &[at[1], args[0]], dims(&[size, depth as u32]), None);
                b.transpose(y, &[1, 0])
            } else {
                b.load(p[1], &[args[0], at[1]], dims(&[depth as u32, size]), None)
            };
            let sum = b.dot(x, y, args[1], Precision::F32);
            b.close(&[sum]);
            let op = b.emit_with_regions(OpKind::For { stages: 0 }, &[lo, hi, step, zero], &[acc], &[region]);
            let sum = b.results(op)[0];
            b.store(p[2], sum, &at);
            let grid = [(n / block) as u32, (n / block) as u32, 1];
            let t = median(&mut b.finish(), &mut memory(&shapes), &shapes, grid);
            let flop = 2.0 * (n as f64).powi(3);
            println!(
                "{dtype} {n}x{n}x{n}, blocks {block}x{block}x{depth}, b transposed: {transposed}: {:.1} GFLOP/s",
                flop / t / 1e9
            );
        }
    }
}

#[test]
#[ignore = "a measurement"]
fn matrix_times_vector() {
    let (rows, columns) = (1024, 1024);
    for dtype in [F32, BF16] {
        let mut b = Builder::new("gemv", Loc::default());
        let shapes = [(dtype, vec![rows, columns]), (F32, vec![columns]), (F32, vec![rows])];
        let p = params(&mut b, &shapes);
        let at = block_starts(&mut b, &[16]);
        let zero = b.i32(0);
        let w = b.load(p[0], &[at[0], zero], dims(&[16, 1024]), None);
        let w = b.cast(w, F32);
        let x = b.load(p[1], &[zero], dims(&[1024]), None);
        let x = b.reshape(x, dims(&[1, 1024]));
        let x = b.broadcast(x, dims(&[16, 1024]));
        let y = b.binary(BinaryOp::Mul, w, x);
        let y = b.reduce(y, 1, Combine::Sum);
        b.store(p[2], y, &at);
        let t = median(&mut b.finish(), &mut memory(&shapes), &shapes, [rows as u32 / 16, 1, 1]);
        println!("{dtype} {rows}x{columns} times vector: {:.1} GFLOP/s", 2.0 * (rows * columns) as f64 / t / 1e9);
    }
}

#[test]
#[ignore = "a measurement"]
fn elementwise() {
    let n = 1 << 22;
    for (name, dtype, ops) in [
        ("x + y", F32, &[][..]),
        ("silu(x) + y", F32, &[UnaryOp::Silu]),
        ("silu(x) + y", BF16, &[UnaryOp::Silu]),
        ("log(exp(x)) + y", F32, &[UnaryOp::Exp, UnaryOp::Log]),
    ] {
        let mut b = Builder::new("elementwise", Loc::default());
        let shapes = [(dtype, vec![n]), (dtype, vec![n]), (dtype, vec![n])];
        let p = params(&mut b, &shapes);
        let at = block_starts(&mut b, &[1024]);
        let mut x = b.load(p[0], &at, dims(&[1024]), None);
        let y = b.load(p[1], &at, dims(&[1024]), None);
        for &op in ops {
            x = b.unary(op, x);
        }
        let z = b.binary(BinaryOp::Add, x, y);
        b.store(p[2], z, &at);
        let t = median(&mut b.finish(), &mut memory(&shapes), &shapes, [n as u32 / 1024, 1, 1]);
        println!("{name} of {dtype}: {:.1} GB/s", 3.0 * n as f64 * dtype.size() as f64 / t / 1e9);
    }
}
