//! Programs of a cluster on threads: what they exchange is what the interpreter computes, and those that do not meet
//! end with an error.

use super::control::for_loop;
use super::*;
use crate::ir::{BinaryOp, CmpOp, Combine, OpKind};

/// The program's rank and its number, in clusters of `size`.
fn rank(b: &mut Builder, size: u8) -> (ValueId, ValueId) {
    b.kernel_mut().options.cluster = size;
    let (id, n) = (b.program_id(0), b.i32(size.into()));
    (b.binary(BinaryOp::Rem, id, n), id)
}

/// Every form that an element has in scratch memory, tiles and scalars, by every combination that it has.
#[test]
fn exchanges_of_every_type() {
    for dtype in DType::ALL {
        for &combine in Combine::ALL.iter().filter(|&&c| c != Combine::Region && c.accepts(dtype)) {
            for cluster in [1, 2, 8] {
                let mut c = Case::new();
                let (_, id) = rank(&mut c.b, cluster);
                let values = c.random.values(dtype, 8 * 4 * 8);
                let x = c.view(dtype, &[8, 4, 8], Access::Read, &values);
                let out = c.target(dtype, &[8, 8, 4]);
                let one = c.target(dtype, &[8]);
                let zero = c.b.i32(0);
                let t = c.b.load(x, &[id, zero, zero], dims(&[1, 4, 8]), None);
                let corner = c.b.slice(t, &[0, 0, 0], dims(&[1, 1, 1]));
                let corner = c.b.reshape(corner, Shape::SCALAR);
                let turned = c.b.transpose(t, &[0, 2, 1]);
                let turned = c.b.cluster_reduce(turned, combine);
                let corner = c.b.cluster_reduce(corner, combine);
                c.b.store(out, turned, &[id, zero, zero]);
                let corner = c.b.broadcast(corner, dims(&[1]));
                c.b.store(one, corner, &[id]);
                c.check_grid([8, 1, 1]);
            }
        }
    }
}

/// Exchanges in a loop, of computed tiles, in grids of many clusters; what others stored before is loaded after.
#[test]
fn many_exchanges() {
    for cluster in [2, 4] {
        let mut c = Case::new();
        let (own, id) = rank(&mut c.b, cluster);
        let values = c.random.values(F32, 24 * 16);
        let x = c.view(F32, &[24, 16], Access::Read, &values);
        let out = c.target(F32, &[24, 16]);
        let last = c.target(F32, &[24, 16]);
        let (zero, one, size) = (c.b.i32(0), c.b.i32(1), c.b.i32(cluster.into()));
        let next = c.b.binary(BinaryOp::Add, own, one);
        let next = c.b.binary(BinaryOp::Rem, next, size);
        let first = c.b.binary(BinaryOp::Sub, id, own);
        let neighbour = c.b.binary(BinaryOp::Add, first, next);
        let t = c.b.load(x, &[id, zero], dims(&[1, 16]), None);
        let t = for_loop(&mut c.b, (0, 9, 1), &[t], |b, _, carried| {
            b.store(out, carried[0], &[id, zero]);
            let doubled = b.binary(BinaryOp::Add, carried[0], carried[0]);
            let sum = b.cluster_reduce(doubled, Combine::Sum);
            let theirs = b.load(out, &[neighbour, zero], dims(&[1, 16]), None);
            let most = b.cluster_reduce(carried[0], Combine::Max);
            let shift = b.binary(BinaryOp::Sub, sum, most);
            let mixed = b.binary(BinaryOp::Add, shift, theirs);
            let small = b.splat(F32, dims(&[1, 16]), 0.125);
            vec![b.binary(BinaryOp::Mul, mixed, small)]
        });
        c.b.store(last, t[0], &[id, zero]);
        c.check_grid([24, 1, 1]);
    }
}

/// Programs below `limit` come to the exchange; the others go past it, or to another one.
fn divided(limit: i32, elsewhere: bool) -> Result<(), CpuError> {
    let mut c = Case::new();
    let (own, id) = rank(&mut c.b, 4);
    let out = c.target(I32, &[4]);
    let limit = c.b.i32(limit);
    let below = c.b.compare(CmpOp::Lt, own, limit);
    c.b.loc.line = 10;
    let (then, _) = c.b.open(&[]);
    let sum = c.b.cluster_reduce(id, Combine::Sum);
    let sum = c.b.broadcast(sum, dims(&[1]));
    c.b.store(out, sum, &[id]);
    c.b.close(&[]);
    c.b.loc.line = 20;
    let (otherwise, _) = c.b.open(&[]);
    if elsewhere {
        c.b.cluster_reduce(id, Combine::Sum);
    }
    c.b.close(&[]);
    c.b.emit_with_regions(OpKind::If, &[below], &[], &[then, otherwise]);
    launch(&mut c.b.finish(), &c.args, [4, 1, 1], false).0
}

#[test]
fn programs_that_do_not_meet() {
    let failed = |result: Result<(), CpuError>| match result {
        Err(CpuError::Failed { message, .. }) => message,
        other => panic!("{other:?}"),
    };
    divided(4, false).expect("all meet");
    divided(0, true).expect("all meet");
    let waits = |n: u32, line: u32| format!("program {n} waits in `cluster_reduce` at case.rs:{line}:1");
    let all = |list: &[String]| format!("the programs of a cluster do not meet: {}", list.join(", "));
    assert_eq!(failed(divided(2, false)), all(&[waits(0, 10), waits(1, 10)]));
    assert_eq!(failed(divided(1, true)), all(&[waits(0, 10), waits(1, 20), waits(2, 20), waits(3, 20)]));
}

#[test]
fn grids_are_whole_clusters() {
    let mut c = Case::new();
    let (_, id) = rank(&mut c.b, 2);
    c.b.cluster_reduce(id, Combine::Sum);
    let error = launch(&mut c.b.finish(), &c.args, [3, 1, 1], false).0.expect_err("a cluster of one and a half");
    assert!(error.to_string().contains("axis 0 is not a multiple of the clusters of 2"), "{error}");
}
