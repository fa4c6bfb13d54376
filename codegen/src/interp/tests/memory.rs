//! Views, loads and stores at their edges.

use super::*;
use crate::ir::{AtomicOp, BinaryOp, CmpOp};

/// A load of 4 from a view of 3 elements 10, 11, 12 at `start`, with `other` -1.
fn load_at(start: i32) -> Vec<f64> {
    let mut c = Case::new();
    let view = c.view("x", F32, &[3], Access::Read, &f32s(&[10., 11., 12.]));
    let start = c.b.i32(start);
    let other = c.b.splat(F32, dims(&[]), -1.0);
    let t = c.b.load(view, &[start], dims(&[4]), Some(other));
    c.values(t)
}

#[test]
fn loads_at_any_coordinate() {
    assert_eq!(load_at(0), [10., 11., 12., -1.]);
    assert_eq!(load_at(2), [12., -1., -1., -1.]);
    assert_eq!(load_at(-2), [-1., -1., 10., 11.]);
    for outside in [3, -4, i32::MAX, i32::MIN] {
        assert_eq!(load_at(outside), [-1.; 4], "{outside}");
    }
}

#[test]
fn loads_without_other_give_zero_and_boxes_hang_over_every_edge() {
    let nine: Vec<f32> = (1..=9).map(|x| x as f32).collect();
    let mut c = Case::new();
    let view = c.view("x", F32, &[3, 3], Access::Read, &f32s(&nine));
    let start = [c.b.i32(-1), c.b.i32(2)];
    let t = c.b.load(view, &start, dims(&[4, 2]), None);
    assert_eq!(c.values(t), [0., 0., 3., 0., 6., 0., 9., 0.]);
}

#[test]
fn strides_may_be_zero_or_negative() {
    let x = f32s(&[1., 2., 3., 4., 5., 6.]);
    let load = |offset_elements, strides: [i64; 2]| {
        let mut c = Case::new();
        let arg = Arg::View { buffer: x.clone(), offset_elements, shape: vec![2, 3], strides: strides.to_vec() };
        let view = c.strided("x", F32, Access::Read, arg);
        let zeros = c.zeros(2);
        let t = c.b.load(view, &zeros, dims(&[2, 4]), None);
        c.values(t)
    };
    assert_eq!(load(0, [1, 2]), [1., 3., 5., 0., 2., 4., 6., 0.]);
    assert_eq!(load(5, [-3, -1]), [6., 5., 4., 0., 3., 2., 1., 0.]);
    assert_eq!(load(1, [0, 1]), [2., 3., 4., 0., 2., 3., 4., 0.]);
}

#[test]
fn stores_touch_nothing_outside() {
    let out = f32s(&[0.0; 9]);
    let mut c = Case::new();
    let arg = Arg::View { buffer: out.clone(), offset_elements: 0, shape: vec![2, 2], strides: vec![3, 1] };
    let view = c.strided("out", F32, Access::Write, arg);
    let start = [c.b.i32(-1), c.b.i32(1)];
    let i = c.b.iota(dims(&[4, 4]), 0);
    let value = c.b.cast(i, F32);
    c.b.store(view, value, &start);
    c.run().unwrap();
    assert_eq!(f32_values(&out), [0., 1., 0., 0., 2., 0., 0., 0., 0.]);
}

#[test]
fn empty_views() {
    let nothing = Arc::new(Buffer::uninit(0));
    let mut c = Case::new();
    let view = c.view("x", F32, &[0, 5], Access::Write, &nothing);
    let zeros = c.zeros(2);
    let rows = c.b.dim(view, 0);
    let columns = c.b.dim(view, 1);
    let other = c.b.splat(F32, dims(&[]), 3.0);
    let t = c.b.load(view, &zeros, dims(&[2, 2]), Some(other));
    c.b.store(view, t, &zeros);
    let out = c.output(rows);
    let more = c.output(columns);
    assert_eq!(
        {
            c.run().unwrap();
            (i32_values(&out), i32_values(&more))
        },
        (vec![0], vec![5])
    );
}

#[test]
fn the_strides_of_an_empty_view_may_be_anything() {
    let mut c = Case::new();
    let arg = Arg::View {
        buffer: Arc::new(Buffer::uninit(0)),
        offset_elements: usize::MAX,
        shape: vec![4, 0, 4],
        strides: vec![i64::MAX, 1, i64::MIN],
    };
    let view = c.strided("x", F32, Access::Write, arg);
    let three = c.b.i32(3);
    let zero = c.b.i32(0);
    let t = c.b.load(view, &[three, zero, three], dims(&[2, 2, 2]), None);
    c.b.store(view, t, &[three, zero, three]);
    let row = c.b.view_select(view, 0, three);
    let part = c.b.view_narrow(row, 1, three, three);
    let t = c.b.load(part, &[zero, zero], dims(&[2, 2]), None);
    let mask = c.b.constant(DType::Bool, dims(&[2, 2]), Bits(1));
    let index = c.b.splat(I32, dims(&[2, 2]), 1.0);
    let t = c.b.gather(part, &[index, index], Some((mask, t)));
    assert_eq!(c.values(t), [0.0; 4]);
}

#[test]
fn rank_zero_views() {
    let x = f32s(&[7.0, 8.0]);
    let mut c = Case::new();
    let arg = Arg::View { buffer: x.clone(), offset_elements: 1, shape: vec![], strides: vec![] };
    let view = c.strided("x", F32, Access::Write, arg);
    let t = c.b.load(view, &[], dims(&[]), None);
    let t2 = c.b.binary(BinaryOp::Add, t, t);
    c.b.store(view, t2, &[]);
    c.run().unwrap();
    assert_eq!(f32_values(&x), [7.0, 16.0]);
}

#[test]
fn selecting_and_narrowing() {
    let x: Vec<f32> = (0..12).map(|x| x as f32).collect();
    let mut c = Case::new();
    let view = c.view("x", F32, &[3, 4], Access::Read, &f32s(&x));
    let (one, two) = (c.b.i32(1), c.b.i32(2));
    let column = c.b.view_select(view, 1, two);
    let part = c.b.view_narrow(column, 0, one, two);
    let zero = c.b.i32(-1);
    let t = c.b.load(part, &[zero], dims(&[4]), None);
    assert_eq!(c.values(t), [0., 6., 10., 0.]);
}

#[test]
fn narrowing_clamps() {
    for (start, len, want) in [
        (0, 9, 4),
        (2, 9, 2),
        (-2, 4, 2),
        (4, 1, 0),
        (9, 9, 0),
        (1, -5, 0),
        (i32::MAX, i32::MAX, 0),
        (i32::MIN, i32::MAX, 0),
    ] {
        let mut c = Case::new();
        let view = c.view("x", F32, &[4], Access::Read, &f32s(&[0.; 4]));
        let (s, l) = (c.b.i32(start), c.b.i32(len));
        let part = c.b.view_narrow(view, 0, s, l);
        let n = c.b.dim(part, 0);
        assert_eq!(c.values(n), [want as f64], "{start} {len}");
    }
}

#[test]
fn gathers() {
    let mut c = Case::new();
    let view = c.view("x", F32, &[2, 2], Access::Read, &f32s(&[1., 2., 3., 4.]));
    let i = c.input(I32, &[4], &[0., 1., 2., 0.]);
    let j = c.input(I32, &[4], &[1., 0., 0., -1.]);
    let mask = c.input(DType::Bool, &[4], &[1., 0., 1., 1.]);
    let other = c.b.splat(F32, dims(&[4]), 9.0);
    let t = c.b.gather(view, &[i, j], Some((mask, other)));
    assert_eq!(c.values(t), [2., 9., 9., 9.]);
    let mut c = Case::new();
    let view = c.view("x", F32, &[2], Access::Read, &f32s(&[1., 2.]));
    let i = c.input(I32, &[2, 2], &[0., 1., 1., 0.]);
    let t = c.b.gather(view, &[i], None);
    assert_eq!(c.values(t), [1., 2., 2., 1.]);
}

#[test]
fn scatters() {
    let out = f32s(&[0.0; 4]);
    let mut c = Case::new();
    let view = c.view("out", F32, &[4], Access::Write, &out);
    // Twice to place 0, but once masked; twice outside.
    let i = c.input(I32, &[4], &[0., 7., 0., -1.]);
    let mask = c.input(DType::Bool, &[4], &[1., 1., 0., 1.]);
    let value = c.b.splat(F32, dims(&[4]), 5.0);
    c.b.scatter(view, value, &[i], Some(mask));
    c.run().unwrap();
    assert_eq!(f32_values(&out), [5., 0., 0., 0.]);
}

#[test]
fn atomics_return_the_values_before() {
    for (op, want, left) in [
        (AtomicOp::Add, [10., 12., 0., 0.], 15.),
        (AtomicOp::Max, [10., 10., 0., 0.], 10.),
        (AtomicOp::Exchange, [10., 2., 0., 0.], 3.),
    ] {
        for dtype in [F32, I32, DType::BF16] {
            if dtype == DType::BF16 && op == AtomicOp::Max {
                continue;
            }
            let size = dtype.size();
            let memory = Arc::new(Buffer::zeroed(size));
            memory.write_bytes(0, &Bits::from_f64(dtype, 10.0).0.to_le_bytes()[..size]).unwrap();
            let mut c = Case::new();
            let view = c.view("m", dtype, &[1], Access::Write, &memory);
            let i = c.input(I32, &[4], &[0., 0., 0., 1.]);
            let mask = c.input(DType::Bool, &[4], &[1., 1., 0., 1.]);
            let value = c.input(dtype, &[4], &[2., 3., 100., 100.]);
            let before = c.b.atomic(op, view, value, &[i], Some(mask));
            assert_eq!(c.values(before), want, "{op:?} {dtype}");
            assert_eq!(elements(&memory, dtype)[0].to_f64(dtype), left, "{op:?} {dtype}");
        }
    }
}

/// Programs add to a box of which one corner lies inside; a view of stride 0 shows one element several times.
#[test]
fn boxes_are_added_to() {
    for dtype in [F32, DType::BF16, I32, DType::U8] {
        let (size, mut c) = (dtype.size(), Case::new());
        let memory = Arc::new(Buffer::zeroed(6 * size));
        let view = c.view("m", dtype, &[2, 3], Access::Write, &memory);
        let value = c.input(dtype, &[2, 2], &[1., 2., 3., 4.]);
        let [one, two] = [1, 2].map(|i| c.b.i32(i));
        c.b.store_add(view, value, &[one, two]);
        c.b.store_add(view, value, &[one, one]);
        c.run_grid([5, 1, 1]).unwrap();
        let left: Vec<f64> = elements(&memory, dtype).iter().map(|x| x.to_f64(dtype)).collect();
        assert_eq!(left, [0., 0., 0., 0., 5., 15.], "{dtype}");
    }
    let memory = f32s(&[1.; 1]);
    let mut c = Case::new();
    let arg = Arg::View { buffer: memory.clone(), offset_elements: 0, shape: vec![4], strides: vec![0] };
    let view = c.strided("m", F32, Access::Write, arg);
    let value = c.input(F32, &[4], &[1., 2., 3., 4.]);
    let zero = c.b.i32(0);
    c.b.store_add(view, value, &[zero]);
    c.run().unwrap();
    assert_eq!(f32_values(&memory), [11.]);
}

#[test]
fn atomics_of_several_programs() {
    let memory = Arc::new(Buffer::zeroed(4));
    let mut c = Case::new();
    let view = c.view("m", I32, &[1], Access::Write, &memory);
    let zero = c.b.i32(0);
    let id = c.b.program_id(0);
    c.b.atomic(AtomicOp::Add, view, id, &[zero], None);
    c.run_grid([10, 1, 1]).unwrap();
    assert_eq!(i32_values(&memory), [45]);
}

/// A program that gives 3 to a semaphore, and one that takes two of them.
#[test]
fn signals_are_counted_and_taken() {
    let memory = Arc::new(Buffer::zeroed(8));
    let run = |signals: bool, at: i32| {
        let mut c = Case::new();
        let view = c.view("ready", I32, &[2], Access::Write, &memory);
        let [at, two, three] = [at, 2, 3].map(|i| c.b.i32(i));
        if signals {
            c.b.signal(view, three, &[at])
        } else {
            c.b.wait(view, two, &[at])
        };
        c.run()
    };
    let error = run(false, 1).unwrap_err();
    assert_eq!((error.kind(), error.element()), (&ErrorKind::NeverSignalled, Some(&[1][..])));
    run(true, 1).unwrap();
    run(false, 1).unwrap();
    assert_eq!(i32_values(&memory), [0, 1]);
    // One is too few. Outside nothing happens.
    assert_eq!(*run(false, 1).unwrap_err().kind(), ErrorKind::NeverSignalled);
    run(true, 2).unwrap();
    run(false, -1).unwrap();
    assert_eq!(i32_values(&memory), [0, 1]);
    run(true, 1).unwrap();
    run(false, 1).unwrap();
    run(false, 1).unwrap();
    assert_eq!(i32_values(&memory), [0, 0]);
}

#[test]
fn any_nonzero_byte_is_true() {
    let mut c = Case::new();
    let view = c.view("x", DType::Bool, &[4], Access::Read, &Arc::new(Buffer::from_bytes([0, 1, 2, 255])));
    let zeros = c.zeros(1);
    let t = c.b.load(view, &zeros, dims(&[4]), None);
    let yes = c.b.constant(DType::Bool, dims(&[4]), Bits(1));
    let same = c.b.compare(CmpOp::Eq, t, yes);
    assert_eq!(c.bits(same), [Bits(0), Bits(1), Bits(1), Bits(1)]);
}
