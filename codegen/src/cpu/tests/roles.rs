//! Roles on threads: what they compute is what the interpreter computes, and what cannot go on ends with its error.

use super::control::for_loop;
use super::*;
use crate::ir::{BinaryOp, CmpOp, OpKind, Precision, RegionId, Role};

/// A region without arguments.
fn region(b: &mut Builder, body: impl FnOnce(&mut Builder)) -> RegionId {
    let (region, _) = b.open(&[]);
    body(b);
    b.close(&[]);
    region
}

fn tile(dtype: DType, extents: &[u32]) -> Type {
    Type::Tile(dtype, dims(extents))
}

/// One role loads, one multiplies, one stores, on every program of a grid.
#[test]
fn a_product_in_three_roles() {
    for dtype in [F32, BF16] {
        let (m, k, n) = (70, 50, 33);
        let mut c = Case::new();
        let (va, vb) = (c.random.values(dtype, m * k), c.random.values(dtype, k * n));
        let a = c.view(dtype, &[m as i64, k as i64], Access::Read, &va);
        let b = c.view(dtype, &[k as i64, n as i64], Access::Read, &vb);
        let out = c.target(F32, &[m as i64, n as i64]);
        let size = c.b.i32(32);
        let at: Vec<ValueId> = (0..2)
            .map(|axis| {
                let id = c.b.program_id(axis);
                c.b.binary(BinaryOp::Mul, id, size)
            })
            .collect();
        let operands = [tile(dtype, &[32, 16]), tile(dtype, &[16, 32])];
        let loaded = c.b.channel(3, &operands);
        let done = c.b.channel(1, &[tile(F32, &[32, 32])]);
        let load = region(&mut c.b, |bl| {
            for_loop(bl, (0, k as i32, 16), &[], |bl, i, _| {
                let x = bl.load(a, &[at[0], i], dims(&[32, 16]), None);
                let y = bl.load(b, &[i, at[1]], dims(&[16, 32]), None);
                bl.send(loaded, &[x, y]);
                vec![]
            });
        });
        let multiply = region(&mut c.b, |bl| {
            let zero = bl.splat(F32, dims(&[32, 32]), 0.0);
            let sum = for_loop(bl, (0, k as i32, 16), &[zero], |bl, _, carried| {
                let (slot, tiles) = bl.receive(loaded, &operands);
                let sum = bl.dot(tiles[0], tiles[1], carried[0], Precision::F32);
                bl.release(slot);
                vec![sum]
            });
            bl.send(done, &sum);
        });
        let store = region(&mut c.b, |bl| {
            let (slot, tiles) = bl.receive(done, &[tile(F32, &[32, 32])]);
            bl.release(slot);
            bl.store(out, tiles[0], &at);
        });
        c.b.roles(&[load, multiply, store].map(|r| (Role::default(), r)));
        c.within(1e-5, k as f64).check_grid([3, 2, 1]);
    }
}

/// Every form that an element has in scratch memory, scalars too, goes through a channel unchanged.
#[test]
fn messages_of_every_type() {
    for dtype in DType::ALL {
        let mut c = Case::new();
        let n = 3 * 8 * 4;
        let values = if dtype == DType::Bool { c.random.values(dtype, n) } else { c.random.hostile(dtype, n) };
        let values: Vec<Bits> =
            values.into_iter().map(|v| if v.to_f64(dtype).is_nan() { Bits(0) } else { v }).collect();
        let view = c.view(dtype, &[24, 4], Access::Read, &values);
        let out = c.target(dtype, &[24, 4]);
        let one = c.target(dtype, &[3, 1]);
        let message = [Type::scalar(dtype), tile(dtype, &[4, 8])];
        let channel = c.b.channel(2, &message);
        let send = region(&mut c.b, |b| {
            for_loop(b, (0, 24, 8), &[], |b, i, _| {
                let zero = b.i32(0);
                let x = b.load(view, &[i, zero], dims(&[8, 4]), None);
                let t = b.transpose(x, &[1, 0]);
                let corner = b.slice(x, &[0, 0], dims(&[1, 1]));
                let corner = b.reshape(corner, Shape::SCALAR);
                b.send(channel, &[corner, t]);
                vec![]
            });
        });
        let receive = region(&mut c.b, |b| {
            for_loop(b, (0, 3, 1), &[], |b, i, _| {
                let (slot, tiles) = b.receive(channel, &message);
                let (zero, eight) = (b.i32(0), b.i32(8));
                let row = b.binary(BinaryOp::Mul, i, eight);
                let x = b.transpose(tiles[1], &[1, 0]);
                b.store(out, x, &[row, zero]);
                b.release(slot);
                let corner = b.broadcast(tiles[0], dims(&[1, 1]));
                b.store(one, corner, &[i, zero]);
                vec![]
            });
        });
        c.b.roles(&[(Role::default(), receive), (Role::default(), send)]);
        c.check();
    }
}

/// A kernel whose first role sends `sent` numbers, the second receives `received` of them, if these are the launch's;
/// the first asserts that its index is below `limit`.
fn counting() -> Case {
    let mut c = Case::new();
    let [sent, received, limit] = [(); 3].map(|()| c.scalar(I32, Bits(0)));
    let out = c.target(I32, &[1]);
    let message = [Type::scalar(I32)];
    let channel = c.b.channel(2, &message);
    let [zero, one] = [0, 1].map(|i| c.b.i32(i));
    let carry = |b: &mut Builder, high, body: &mut dyn FnMut(&mut Builder, ValueId, ValueId) -> ValueId| {
        let (region, args) = b.open(&[Type::scalar(I32); 2]);
        let next = body(b, args[0], args[1]);
        b.close(&[next]);
        let kind = OpKind::For { stages: 0 };
        let op = b.emit_with_regions(kind, &[zero, high, one, zero], &[Type::scalar(I32)], &[region]);
        b.results(op)[0]
    };
    c.b.loc.line = 10;
    let send = region(&mut c.b, |b| {
        carry(b, sent, &mut |b, i, last| {
            let fits = b.compare(CmpOp::Lt, i, limit);
            b.assert(fits, "too many");
            b.send(channel, &[i]);
            last
        });
    });
    c.b.loc.line = 20;
    let receive = region(&mut c.b, |b| {
        let sum = carry(b, received, &mut |b, _, sum| {
            let (slot, tiles) = b.receive(channel, &message);
            b.release(slot);
            b.binary(BinaryOp::Add, sum, tiles[0])
        });
        let sum = b.broadcast(sum, dims(&[1]));
        b.store(out, sum, &[zero]);
    });
    c.b.roles(&[(Role::default(), send), (Role::default(), receive)]);
    c
}

#[test]
fn what_cannot_go_on_ends_with_an_error() {
    let run = |sent: u64, received: u64, limit: u64| {
        let mut c = counting();
        for (arg, v) in c.args.iter_mut().zip([sent, received, limit]) {
            *arg = Arg::Scalar(Bits(v));
        }
        let mut kernel = c.b.finish();
        verify(&kernel).expect("nothing is known to be wrong");
        launch(&mut kernel, &c.args, [1, 1, 1], false).0
    };
    let failed = |result: Result<(), CpuError>| match result {
        Err(CpuError::Failed { loc, message, .. }) => (loc.line, message),
        other => panic!("{other:?}"),
    };
    run(1000, 1000, 1000).expect("fits");
    let deadlock = "a deadlock: role 1 waits in `receive` at case.rs:20:1".to_owned();
    assert_eq!(failed(run(3, 4, 9)), (20, deadlock));
    let deadlock = "a deadlock: role 0 waits in `send` at case.rs:10:1".to_owned();
    assert_eq!(failed(run(6, 3, 9)), (10, deadlock));
    assert_eq!(failed(run(4, 3, 9)), (1, "1 messages of the channel were never received".to_owned()));
    assert_eq!(failed(run(9, 9, 5)), (10, "assertion failed: too many".to_owned()));
}

/// The next program of a crew finds its channels empty.
#[test]
fn many_programs() {
    let mut c = Case::new();
    let out = c.target(I32, &[200]);
    let id = c.b.program_id(0);
    let message = [tile(I32, &[1])];
    let channel = c.b.channel(1, &message);
    let send = region(&mut c.b, |b| {
        let x = b.broadcast(id, dims(&[1]));
        b.send(channel, &[x]);
    });
    let receive = region(&mut c.b, |b| {
        let (slot, tiles) = b.receive(channel, &message);
        b.store(out, tiles[0], &[id]);
        b.release(slot);
    });
    c.b.roles(&[(Role::default(), send), (Role::default(), receive)]);
    c.check_grid([200, 1, 1]);
}
