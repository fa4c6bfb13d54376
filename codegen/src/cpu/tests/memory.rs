//! Views: boxes across every edge, windows, strides, gathers, scatters, atomics.

use super::*;
use crate::ir::{AtomicOp, BinaryOp, CmpOp};

fn numbers(c: &mut Case, dtype: DType, n: usize) -> Vec<Bits> {
    c.random.values(dtype, n)
}

#[test]
fn boxes_across_every_edge() {
    for dtype in DType::ALL {
        for (start_row, start_column) in
            [(0, 0), (-2, 0), (5, 3), (0, -5), (7, 40), (100, 0), (0, i32::MAX), (i32::MIN, 1)]
        {
            let mut c = Case::new();
            let values = numbers(&mut c, dtype, 9 * 37);
            let from = c.view(dtype, &[9, 37], Access::Read, &values);
            let to = c.target(dtype, &[9, 37]);
            let at = [c.b.i32(start_row), c.b.i32(start_column)];
            let other = c.b.splat(dtype, Shape::SCALAR, 1.0);
            for other in [None, Some(other)] {
                let x = c.b.load(from, &at, dims(&[8, 16]), other);
                c.output(x);
                c.b.store(to, x, &at);
            }
            c.check();
        }
    }
}

#[test]
fn strides_of_every_kind() {
    for strides in [[1, 16], [-1, 40], [40, -1], [0, 1], [1, 0], [33, 2]] {
        for dtype in [F32, BF16, DType::U8, DType::I64] {
            let mut c = Case::new();
            let values = numbers(&mut c, dtype, 2000);
            let bytes: Vec<u8> = values.iter().flat_map(|b| b.0.to_le_bytes()[..dtype.size()].to_vec()).collect();
            let view = View { dtype, bytes, offset: 100, shape: vec![13, 15], strides: strides.to_vec() };
            let v = c.strided(dtype, Access::Read, view);
            let zeros = c.zeros(2);
            let x = c.b.load(v, &zeros, dims(&[16, 16]), None);
            c.output(x);
            let y = c.b.load(v, &zeros, dims(&[8, 8]), None);
            c.output(y);
            if !strides.contains(&0) {
                let bytes = vec![0; 2000 * dtype.size()];
                let view = View { dtype, bytes, offset: 100, shape: vec![13, 15], strides: strides.to_vec() };
                let out = c.strided(dtype, Access::Write, view);
                c.b.store(out, x, &zeros);
            }
            c.check();
        }
    }
}

#[test]
fn views_of_ranks_0_1_3_and_4_and_empty_ones() {
    for dtype in [F32, BF16] {
        let mut c = Case::new();
        let values = numbers(&mut c, dtype, 120);
        let v = c.view(dtype, &[2, 3, 4, 5], Access::Read, &values);
        let zeros = c.zeros(4);
        let x = c.b.load(v, &zeros, dims(&[2, 4, 4, 8]), None);
        c.output(x);
        let one = c.b.i32(1);
        let v3 = c.b.view_select(v, 2, one);
        let x = c.b.load(v3, &zeros[..3], dims(&[2, 4, 8]), None);
        c.output(x);
        let two = c.b.i32(2);
        let n = c.b.view_narrow(v3, 1, one, two);
        let d = c.b.dim(n, 1);
        let d = c.b.broadcast(d, dims(&[1]));
        c.output(d);
        let x = c.b.load(n, &zeros[..3], dims(&[2, 4, 8]), None);
        c.output(x);
        let minus = c.b.i32(-3);
        let n = c.b.view_narrow(v3, 2, minus, one);
        let x = c.b.load(n, &zeros[..3], dims(&[2, 4, 8]), None);
        c.output(x);
        let v1 = c.b.view_select(v3, 0, one);
        let v1 = c.b.view_select(v1, 0, two);
        let x = c.b.load(v1, &zeros[..1], dims(&[4]), None);
        c.output(x);
        let v0 = c.b.view_select(v1, 0, two);
        let x = c.b.load(v0, &[], Shape::SCALAR, None);
        let x = c.b.broadcast(x, dims(&[1]));
        c.output(x);
        let empty = c.view(dtype, &[0, 7], Access::Read, &[]);
        let x = c.b.load(empty, &zeros[..2], dims(&[2, 8]), None);
        c.output(x);
        c.check();
    }
}

#[test]
fn a_selection_outside_has_no_elements() {
    let mut c = Case::new();
    let values = numbers(&mut c, F32, 32);
    let v = c.view(F32, &[4, 8], Access::Read, &values);
    let nine = c.b.i32(9);
    let row = c.b.view_select(v, 0, nine);
    let zeros = c.zeros(1);
    let x = c.b.load(row, &zeros, dims(&[8]), None);
    c.output(x);
    let element = c.b.view_select(row, 0, zeros[0]);
    let x = c.b.load(element, &[], Shape::SCALAR, None);
    let x = c.b.broadcast(x, dims(&[8]));
    c.output(x);
    let mut kernel = c.b.finish();
    let (result, memory) = launch(&mut kernel, &c.args, [1; 3], false);
    result.expect("runs");
    for m in &memory[1..] {
        assert!(m[GUARD..m.len() - GUARD].iter().all(|&b| b == 0));
    }
}

#[test]
fn gathers_and_scatters() {
    for dtype in [F32, BF16, DType::Bool, DType::I64, DType::F8E4M3] {
        let mut c = Case::new();
        let values = numbers(&mut c, dtype, 50 * 7);
        let from = c.view(dtype, &[50, 7], Access::Read, &values);
        let to = c.target(dtype, &[50, 7]);
        let rows: Vec<Bits> = (0..32).map(|i| Bits::from_i64(I32, (i * 13) % 70 - 10)).collect();
        let rows = c.input_bits(I32, &[32, 1], &rows);
        let rows = c.b.broadcast(rows, dims(&[32, 8]));
        let columns = c.b.iota(dims(&[32, 8]), 1);
        let other = c.input(dtype, &[32, 8]);
        let limit = c.b.splat(I32, dims(&[32, 8]), 5.0);
        let mask = c.b.compare(CmpOp::Lt, columns, limit);
        let x = c.b.gather(from, &[rows, columns], Some((mask, other)));
        c.output(x);
        c.b.scatter(to, x, &[rows, columns], Some(mask));
        let three = c.b.i32(3);
        let row = c.b.view_select(from, 0, three);
        let seven = c.b.iota(dims(&[4]), 0);
        let x = c.b.gather(row, &[seven], None);
        c.output(x);
        c.check();
    }
}

#[test]
fn atomics_of_many_programs() {
    for (dtype, ops) in [
        (I32, &[AtomicOp::Add, AtomicOp::Min, AtomicOp::Max, AtomicOp::And, AtomicOp::Or, AtomicOp::Xor][..]),
        (DType::U64, &[AtomicOp::Add, AtomicOp::Max]),
        (F32, &[AtomicOp::Add, AtomicOp::Max]),
        (DType::F16, &[AtomicOp::Add]),
    ] {
        for &op in ops {
            let mut c = Case::new();
            let to = c.view(dtype, &[8], Access::Write, &[Bits::from_f64(dtype, 5.0); 8]);
            let pid = c.b.program_id(0);
            let pid = c.b.cast(pid, dtype);
            let pid = c.b.broadcast(pid, dims(&[16]));
            let i = c.b.iota(dims(&[16]), 0);
            let four = c.b.splat(I32, dims(&[16]), 4.0);
            let mask = c.b.compare(CmpOp::Ne, i, four);
            c.b.atomic(op, to, pid, &[i], Some(mask));
            c.check_grid([9, 1, 1]);
        }
    }
    let mut c = Case::new();
    let to = c.view(I32, &[8], Access::Write, &[Bits(5); 8]);
    let x = c.input(I32, &[16]);
    let i = c.b.iota(dims(&[16]), 0);
    let old = c.b.atomic(AtomicOp::Exchange, to, x, &[i], None);
    c.output(old);
    c.check();
}

#[test]
fn stores_and_loads_keep_their_order() {
    let mut c = Case::new();
    let values = numbers(&mut c, F32, 64);
    let v = c.view(F32, &[64], Access::Write, &values);
    let (zero, one, two) = (c.b.i32(0), c.b.i32(1), c.b.i32(2));
    // Shifted by one: each element must come from the old contents.
    let x = c.b.load(v, &[zero], dims(&[32]), None);
    c.b.store(v, x, &[one]);
    // In place.
    let y = c.b.load(v, &[two], dims(&[16]), None);
    let y2 = c.b.binary(BinaryOp::Add, y, y);
    c.b.store(v, y2, &[two]);
    // Loaded before a store, used after it.
    let z = c.b.load(v, &[zero], dims(&[64]), None);
    c.b.store(v, x, &[two]);
    let w = c.b.binary(BinaryOp::Mul, z, z);
    c.b.store(v, w, &[zero]);
    c.check();
}

#[test]
fn a_grid_of_blocks_with_ragged_edges() {
    let mut c = Case::new();
    let values = numbers(&mut c, BF16, 3 * 50 * 70);
    let from = c.view(BF16, &[3, 50, 70], Access::Read, &values);
    let to = c.target(F32, &[3, 50, 70]);
    let mut at = vec![];
    for (axis, size) in [(2, 1), (1, 16), (0, 32)] {
        let pid = c.b.program_id(axis);
        let size = c.b.i32(size);
        at.push(c.b.binary(BinaryOp::Mul, pid, size));
    }
    let x = c.b.load(from, &at, dims(&[1, 16, 32]), None);
    let x = c.b.cast(x, F32);
    let y = c.b.binary(BinaryOp::Mul, x, x);
    c.b.store(to, y, &at);
    c.check_grid([3, 4, 3]);
}

#[test]
fn signals_are_counted_and_taken() {
    let mut c = Case::new();
    let semaphores = c.view(DType::I32, &[2], Access::Write, &[Bits(0); 2]);
    let [zero, one, two] = [0, 1, 2].map(|i| c.b.i32(i));
    c.b.signal(semaphores, two, &[one]);
    c.b.signal(semaphores, one, &[one]);
    c.b.wait(semaphores, two, &[one]);
    // Outside nothing happens.
    c.b.signal(semaphores, two, &[two]);
    c.b.wait(semaphores, one, &[two]);
    c.b.signal(semaphores, one, &[zero]);
    c.check();
}

#[test]
fn nobody_waits_for_a_signal_that_cannot_come() {
    let mut c = Case::new();
    let semaphores = c.view(DType::I32, &[1], Access::Write, &[Bits(0)]);
    let [zero, three] = [0, 3].map(|i| c.b.i32(i));
    c.b.wait(semaphores, three, &[zero]);
    let kernel = super::compile_for(&c.b.finish(), super::has_fma()).expect("compiles");
    let mut memory = [2i32];
    // SAFETY: the view is the array.
    let error = unsafe { kernel.launch(&[memory.as_mut_ptr() as u64, 1, 1], [1, 1, 1]) }.unwrap_err();
    assert!(error.to_string().contains("waits for a signal that no earlier launch has given"), "{error}");
}
