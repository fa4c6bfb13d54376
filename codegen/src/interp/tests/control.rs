//! Loops, branches, diagnostics, options.

use super::*;
use crate::ir::{BinaryOp, CmpOp, OpKind};

/// Σ i over a loop with these bounds, and the number of iterations.
fn sum(low: i32, high: i32, step: i32) -> Result<Vec<i32>, Error> {
    let mut c = Case::new();
    let bounds = [c.b.i32(low), c.b.i32(high), c.b.i32(step)];
    let zero = c.b.i32(0);
    let scalar = Type::scalar(I32);
    let (region, args) = c.b.open(&[scalar; 3]);
    let total = c.b.binary(BinaryOp::Add, args[1], args[0]);
    let one = c.b.i32(1);
    let count = c.b.binary(BinaryOp::Add, args[2], one);
    c.b.close(&[total, count]);
    let operands = [bounds[0], bounds[1], bounds[2], zero, zero];
    let op = c.b.emit_with_regions(OpKind::For { stages: 0 }, &operands, &[scalar; 2], &[region]);
    let results = c.b.results(op);
    let both = [c.output(results[0]), c.output(results[1])];
    c.run()?;
    Ok(both.iter().flat_map(|b| i32_values(b)).collect())
}

#[test]
fn for_loops() {
    assert_eq!(sum(0, 5, 1).unwrap(), [10, 5]);
    assert_eq!(sum(1, 8, 3).unwrap(), [12, 3]);
    assert_eq!(sum(5, 5, 1).unwrap(), [0, 0]);
    assert_eq!(sum(5, -5, 1).unwrap(), [0, 0]);
    // The step after the last would wrap.
    assert_eq!(sum(i32::MAX - 1, i32::MAX, 2).unwrap(), [i32::MAX - 1, 1]);
    assert_eq!(sum(i32::MIN, i32::MAX, i32::MAX).unwrap().last(), Some(&3));
    assert_eq!(*sum(0, 5, 0).unwrap_err().kind(), ErrorKind::BadStep(0));
    assert_eq!(*sum(0, 0, -1).unwrap_err().kind(), ErrorKind::BadStep(-1));
}

/// Doubles 1 while it is at most `limit` (for ever, if that is negative: 0 = 0).
fn doubling(limit: i32) -> (Case, ValueId) {
    let mut c = Case::new();
    let scalar = Type::scalar(I32);
    let init = c.b.i32(if limit < 0 { 0 } else { 1 });
    let (condition, args) = c.b.open(&[scalar]);
    let bound = c.b.i32(limit.max(0));
    let more = c.b.compare(CmpOp::Le, args[0], bound);
    c.b.close(&[more]);
    let (body, args) = c.b.open(&[scalar]);
    let twice = c.b.binary(BinaryOp::Add, args[0], args[0]);
    c.b.close(&[twice]);
    let op = c.b.emit_with_regions(OpKind::While, &[init], &[scalar], &[condition, body]);
    let result = c.b.results(op)[0];
    (c, result)
}

#[test]
fn while_loops() {
    let (c, result) = doubling(100);
    assert_eq!(c.values(result), [128.]);
    let (c, result) = doubling(0);
    assert_eq!(c.values(result), [1.]);
}

#[test]
fn endless_loops_end() {
    let (c, _) = doubling(-1);
    let mut options = Options { step_limit: 1000, ..Options::default() };
    let error = run_with(&c.b.finish(), [1, 1, 1], &c.args, &mut options).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::StepLimit(1000));
}

#[test]
fn branches() {
    for (condition, want) in [(1, 10.), (0, 20.)] {
        let mut c = Case::new();
        let condition = c.b.constant(DType::Bool, dims(&[]), Bits(condition));
        let (then, _) = c.b.open(&[]);
        let x = c.b.i32(10);
        c.b.close(&[x]);
        let (otherwise, _) = c.b.open(&[]);
        let x = c.b.i32(20);
        c.b.close(&[x]);
        let op = c.b.emit_with_regions(OpKind::If, &[condition], &[Type::scalar(I32)], &[then, otherwise]);
        let result = c.b.results(op)[0];
        assert_eq!(c.values(result), [want]);
    }
}

#[test]
fn prints_name_the_program() {
    let mut c = Case::new();
    let id = c.b.program_id(1);
    let tile = c.input(F32, &[2, 2], &[1., -0.5, f64::INFINITY, 0.]);
    c.b.print("here", &[id, tile]);
    let mut lines = vec![];
    let mut print = |line: &str| lines.push(line.to_owned());
    let mut options = Options { print: Some(&mut print), ..Options::default() };
    run_with(&c.b.finish(), [1, 2, 1], &c.args, &mut options).unwrap();
    assert_eq!(lines, ["(0, 0, 0) here 0 [[1.0, -0.5], [inf, 0.0]]", "(0, 1, 0) here 1 [[1.0, -0.5], [inf, 0.0]]"]);
}

#[test]
fn traces_see_every_result() {
    let mut c = Case::new();
    let a = c.b.i32(2);
    let s = c.b.binary(BinaryOp::Mul, a, a);
    let t = c.b.broadcast(s, dims(&[32]));
    c.output(t);
    let mut seen = vec![];
    let mut trace = |e: &TraceEvent<'_>| seen.extend(e.results.iter().map(|t| format!("{t:?}")));
    let mut options = Options { trace: Some(&mut trace), ..Options::default() };
    run_with(&c.b.finish(), [1, 1, 1], &c.args, &mut options).unwrap();
    assert_eq!(seen[..2], ["i32<> 2", "i32<> 4"]);
    assert_eq!(seen[2], format!("i32<32> [{}, ..., 4, 4, 4, 4]", ["4"; 8].join(", ")));
}

#[test]
fn shuffled_programs_run_each_once() {
    for seed in 0..4 {
        let out = Arc::new(Buffer::uninit(4 * 12));
        let mut c = Case::new();
        let view = c.view("out", I32, &[12], Access::Write, &out);
        let id = c.b.program_id(0);
        let tile = c.b.reshape(id, dims(&[1]));
        c.b.store(view, tile, &[id]);
        let mut options = Options { order: Order::Shuffled(seed), ..Options::default() };
        run_with(&c.b.finish(), [12, 1, 1], &c.args, &mut options).unwrap();
        assert_eq!(i32_values(&out), (0..12).collect::<Vec<_>>());
    }
}

#[test]
fn an_empty_grid_runs_nothing() {
    let mut c = Case::new();
    let no = c.b.constant(DType::Bool, dims(&[]), Bits(0));
    c.b.assert(no, "not reached");
    c.run_grid([3, 0, 1]).unwrap();
}
