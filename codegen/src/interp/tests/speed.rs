//! How fast the interpreter is. It is no benchmark of anything but "fast enough to run a small model":
//! `cargo test -p kiln-codegen --lib interp::tests::speed -- --ignored --nocapture`.

use super::*;
use crate::ir::{BinaryOp, Combine, OpKind, Precision, UnaryOp};
use std::time::Instant;

/// Runs what `body` appends 100 times in one program; prints millions of `unit` per second.
fn rate(name: &str, work: usize, body: impl Fn(&mut Builder, &[ValueId])) {
    let memory = f32s(&vec![0.5; 64 * 64]);
    let mut c = Case::new();
    let view = c.view("x", F32, &[64, 64], Access::Write, &memory);
    let zeros = c.zeros(2);
    let x = c.b.load(view, &zeros, dims(&[64, 64]), None);
    let half = c.b.cast(x, DType::BF16);
    let bounds = [c.b.i32(0), c.b.i32(100), c.b.i32(1)];
    let (region, _) = c.b.open(&[Type::scalar(I32)]);
    body(&mut c.b, &[x, half, view, zeros[0]]);
    c.b.close(&[]);
    c.b.emit_with_regions(OpKind::For { stages: 0 }, &bounds, &[], &[region]);
    let (kernel, args) = (c.b.finish(), c.args);
    // Two programs, so that the history is kept; the second then fails on what the first wrote, which is not timed.
    for grid in [1, 2] {
        let start = Instant::now();
        let mut limit = Options { step_limit: 1_000_000, ..Options::default() };
        let result = run_with(&kernel, [grid, 1, 1], &args, &mut limit);
        let seconds = start.elapsed().as_secs_f64();
        let programs = if result.is_ok() { grid as f64 } else { 1.0 };
        println!(
            "{name:>12}, {grid} programs: {:8.1} million per second",
            work as f64 * 100.0 * programs / seconds / 1e6
        );
    }
}

#[test]
#[ignore = "prints timings, checks nothing"]
fn throughput() {
    let tile = 64 * 64;
    rate("dot f32", 64 * tile, |b, v| {
        b.dot(v[0], v[0], v[0], Precision::F32);
    });
    rate("dot bf16", 64 * tile, |b, v| {
        b.dot(v[1], v[1], v[0], Precision::F32);
    });
    rate("add f32", tile, |b, v| {
        b.binary(BinaryOp::Add, v[0], v[0]);
    });
    rate("mul bf16", tile, |b, v| {
        b.binary(BinaryOp::Mul, v[1], v[1]);
    });
    rate("max f32", tile, |b, v| {
        b.binary(BinaryOp::Max, v[0], v[0]);
    });
    rate("exp f32", tile, |b, v| {
        b.unary(UnaryOp::Exp, v[0]);
    });
    rate("neg f32", tile, |b, v| {
        b.unary(UnaryOp::Neg, v[0]);
    });
    rate("cast f8", tile, |b, v| {
        b.cast(v[0], DType::F8E4M3);
    });
    for axis in [0, 1] {
        rate("sum", tile, |b, v| {
            b.reduce(v[0], axis, Combine::Sum);
        });
        rate("max", tile, |b, v| {
            b.reduce(v[0], axis, Combine::Max);
        });
        rate("scan", tile, |b, v| {
            b.scan(v[0], axis, Combine::Sum, false);
        });
        rate("region", tile, |b, v| {
            b.reduce_by(&[v[0]], axis, |b, l, r| vec![b.binary(BinaryOp::Add, l[0], r[0])]);
        });
    }
    rate("transpose", tile, |b, v| {
        b.transpose(v[0], &[1, 0]);
    });
    rate("broadcast", tile, |b, v| {
        let s = b.slice(v[0], &[0, 0], dims(&[64, 1]));
        b.broadcast(s, dims(&[64, 64]));
    });
    rate("load", tile, |b, v| {
        b.load(v[2], &[v[3], v[3]], dims(&[64, 64]), None);
    });
    rate("store", tile, |b, v| b.store(v[2], v[0], &[v[3], v[3]]));
    rate("gather", tile, |b, v| {
        let i = b.iota(dims(&[64, 64]), 0);
        b.gather(v[2], &[i, i], None);
    });
    rate("small ops", 1, |b, v| {
        b.binary(BinaryOp::Add, v[3], v[3]);
    });
}
