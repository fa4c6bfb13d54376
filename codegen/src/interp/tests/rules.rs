//! Every rule, broken once; and what the error says.

use super::*;
use crate::ir::{AtomicOp, BinaryOp, Fact, Reuse};

fn bad_argument(result: Result<(), Error>) -> String {
    let error = result.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::BadArgument(_)), "{error}");
    error.to_string()
}

#[test]
fn errors_name_everything() {
    let mut c = Case::new();
    let view = c.view("table", F32, &[4], Access::Read, &f32s(&[0.; 4]));
    let index = c.input(I32, &[4], &[0., 1., 4., 0.]);
    c.b.loc = Loc { file: "model.rs", line: 12, column: 9 };
    c.b.gather(view, &[index], None);
    let error = c.run_grid([2, 1, 1]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "kernel `case` at model.rs:12:9, program (0, 0, 0), parameter `table`, element [4]: index 4 is outside of \
         dimension 0, whose extent is 4"
    );
    assert_eq!(error.loc().line, 12);
    assert_eq!(error.program(), Some([0, 0, 0]));
    assert_eq!((error.parameter(), error.element()), (Some("table"), Some(&[4][..])));
}

#[test]
fn arguments_must_fit() {
    let kernel = || {
        let mut b = Builder::new("k", Loc::default());
        b.kernel_mut().add_param("n", Type::scalar(I32), Access::Read, None);
        b.kernel_mut().add_param("x", Type::View(F32, 2), Access::Read, None);
        b.finish()
    };
    let n = Arg::scalar(I32, 3.0);
    let buffer = f32s(&[0.; 12]);
    let view = |offset_elements, shape: &[i64], strides: &[i64]| Arg::View {
        buffer: buffer.clone(),
        offset_elements,
        shape: shape.to_vec(),
        strides: strides.to_vec(),
    };
    let launch = |args: &[Arg]| run(&kernel(), [1, 1, 1], args);
    launch(&[n.clone(), view(0, &[3, 4], &[4, 1])]).unwrap();
    launch(&[n.clone(), view(11, &[3, 4], &[-4, -1])]).unwrap();
    launch(&[n.clone(), view(usize::MAX, &[3, 0], &[i64::MAX, i64::MIN])]).unwrap();
    for (offset, shape, strides) in [
        (1, &[3i64, 4][..], &[4i64, 1][..]),
        (10, &[3, 4], &[-4, -1]),
        (0, &[3, 4], &[4]),
        (0, &[12], &[1]),
        (0, &[-1, 4], &[4, 1]),
        (0, &[i64::MAX, 1], &[1, 1]),
        (0, &[i32::MAX as i64, i32::MAX as i64], &[i64::MAX, i64::MAX]),
        (usize::MAX, &[1, 1], &[1, 1]),
    ] {
        let message = bad_argument(launch(&[n.clone(), view(offset, shape, strides)]));
        assert!(message.contains("parameter `x`"), "{message}");
    }
    bad_argument(launch(std::slice::from_ref(&n)));
    bad_argument(launch(&[n.clone(), n.clone()]));
    bad_argument(launch(&[view(0, &[3, 4], &[4, 1]), n.clone()]));
    bad_argument(run(&kernel(), [u32::MAX, 2, 1], &[n.clone(), view(0, &[3, 4], &[4, 1])]));
    // Slots: n, address, two extents, two strides.
    let mut special = kernel();
    special.facts = vec![Fact::Unknown, Fact::Multiple16, Fact::Unknown, Fact::Unknown, Fact::Unknown, Fact::One];
    run(&special, [1, 1, 1], &[n.clone(), view(1, &[2, 4], &[4, 1])]).unwrap();
    assert!(bad_argument(run(&special, [1, 1, 1], &[n, view(1, &[2, 2], &[4, 2])])).contains("stride"));
}

#[test]
fn selecting_outside_is_an_error() {
    for (index, extent) in [(-1, 2), (2, 2), (0, 0)] {
        let mut c = Case::new();
        let view = c.view("x", F32, &[extent, 2], Access::Read, &f32s(&[0.; 4]));
        let i = c.b.i32(index);
        c.b.view_select(view, 0, i);
        let error = c.run().unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::OutOfBounds { dim: 0, index: index as i64, extent });
        assert_eq!(error.parameter(), Some("x"));
    }
}

#[test]
fn what_is_discarded_is_gone() {
    let memory = Arc::new(Buffer::zeroed(16));
    let load = |starts: &[i32]| {
        let mut c = Case::new();
        let view = c.view("x", F32, &[4], Access::Read, &memory);
        c.b.kernel_mut().params[0].reuse = Reuse::Discard;
        for &start in starts {
            let start = c.b.i32(start);
            c.b.load(view, &[start], dims(&[2]), None);
        }
        c.run()
    };
    load(&[0]).unwrap();
    assert!(!memory.is_initialised(0, 4) && !memory.is_initialised(4, 4) && memory.is_initialised(8, 8));
    // By another launch, and by the same.
    for starts in [&[1][..], &[2, 3]] {
        let error = load(starts).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Uninitialised);
    }
}

#[test]
fn reading_nothing_is_an_error() {
    let memory = Arc::new(Buffer::uninit(16));
    memory.write_bytes(0, &[0; 10]).unwrap();
    let load = |from: i32, n: u32| {
        let mut c = Case::new();
        let view = c.view("x", F32, &[4], Access::Read, &memory);
        let start = c.b.i32(from);
        c.b.load(view, &[start], dims(&[n]), None);
        c.run()
    };
    load(0, 2).unwrap();
    let error = load(1, 2).unwrap_err();
    assert_eq!((error.kind(), error.element()), (&ErrorKind::Uninitialised, Some(&[2][..])));
    // By a gather and by an atomic, too.
    let mut c = Case::new();
    let view = c.view("x", F32, &[4], Access::Write, &memory);
    let three = c.b.i32(3);
    let value = c.b.splat(F32, dims(&[]), 1.0);
    c.b.atomic(AtomicOp::Add, view, value, &[three], None);
    let error = c.run().unwrap_err();
    assert_eq!((error.kind(), error.element()), (&ErrorKind::Uninitialised, Some(&[3][..])));
    // What the kernel itself has written may be read.
    let mut c = Case::new();
    let view = c.view("x", F32, &[4], Access::Write, &memory);
    let zeros = c.zeros(1);
    let value = c.b.splat(F32, dims(&[4]), 1.0);
    c.b.store(view, value, &zeros);
    let t = c.b.load(view, &zeros, dims(&[4]), None);
    assert_eq!(c.values(t), [1.0; 4]);
}

/// Each program reads, or writes, or both, element (id · `stride`) of one buffer.
fn touching(stride: i32, read: i32, write: bool) -> Result<(), Error> {
    let mut c = Case::new();
    let memory = f32s(&[0.; 8]);
    let view = c.view("x", F32, &[8], Access::Write, &memory);
    let id = c.b.program_id(0);
    let stride = c.b.i32(stride);
    let place = c.b.binary(BinaryOp::Mul, id, stride);
    if read >= 0 {
        let shift = c.b.i32(read);
        let from = c.b.binary(BinaryOp::Add, place, shift);
        c.b.load(view, &[from], dims(&[1]), None);
    }
    if write {
        let one = c.b.splat(F32, dims(&[1]), 1.0);
        c.b.store(view, one, &[place]);
    }
    c.run_grid([4, 1, 1])
}

#[test]
fn races_between_programs() {
    touching(1, 0, true).unwrap();
    touching(0, 0, false).unwrap();
    // All write one place.
    let error = touching(0, -1, true).unwrap_err();
    assert_eq!(error.program(), Some([1, 0, 0]));
    assert_eq!(*error.kind(), ErrorKind::Race { other: Some([0, 0, 0]), how: "writes" });
    // Reads of the neighbour's place: found when the neighbour writes.
    let error = touching(1, 1, true).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Race { other: Some([0, 0, 0]), how: "reads" });
    // Two readers, then a writer: place 4 is read by all (as 4·0 + 4), and written by program 1.
    let error = touching(2, 0, true).and_then(|()| touching(0, 4, true)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Race { .. }), "{error}");
}

#[test]
fn a_race_through_two_parameters_is_found() {
    let memory = f32s(&[0.; 8]);
    let mut c = Case::new();
    let input = c.view("x", F32, &[8], Access::Read, &memory);
    let output = c.view("y", F32, &[8], Access::Write, &memory);
    let id = c.b.program_id(0);
    let zero = c.b.i32(0);
    let t = c.b.load(input, &[zero], dims(&[1]), None);
    c.b.store(output, t, &[id]);
    let error = c.run_grid([2, 1, 1]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Race { .. }));
    assert_eq!(error.parameter(), Some("x"));
}

#[test]
fn launches_follow_each_other_without_race() {
    // Program 0 of the first launch and program 1 of the second write the same place.
    let memory = f32s(&[0.; 2]);
    for shift in [0, 1] {
        let mut c = Case::new();
        let view = c.view("x", F32, &[2], Access::Write, &memory);
        let id = c.b.program_id(0);
        let shift = c.b.i32(shift);
        let place = c.b.binary(BinaryOp::Xor, id, shift);
        let one = c.b.splat(F32, dims(&[1]), 1.0);
        c.b.store(view, one, &[place]);
        c.run_grid([2, 1, 1]).unwrap();
    }
}

#[test]
fn atomics_race_with_plain_accesses() {
    let memory = f32s(&[0.; 2]);
    let mut c = Case::new();
    let view = c.view("x", F32, &[2], Access::Write, &memory);
    let zero = c.b.i32(0);
    let one = c.b.splat(F32, dims(&[]), 1.0);
    c.b.load(view, &[zero], dims(&[1]), None);
    c.b.atomic(AtomicOp::Add, view, one, &[zero], None);
    let error = c.run_grid([2, 1, 1]).unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Race { other: Some([0, 0, 0]), how: "atomically changes" });
}

#[test]
fn additions_race_with_plain_accesses_only() {
    for (stores, race) in [(false, false), (true, true)] {
        let mut c = Case::new();
        let view = c.view("x", F32, &[2], Access::Write, &f32s(&[0.; 2]));
        let zero = c.b.i32(0);
        let one = c.b.splat(F32, dims(&[2]), 1.0);
        if stores {
            c.b.store(view, one, &[zero]);
        }
        c.b.store_add(view, one, &[zero]);
        let kind = c.run_grid([2, 1, 1]).map_err(|e| e.kind().clone());
        let how = Err(ErrorKind::Race { other: Some([0, 0, 0]), how: "writes" });
        assert_eq!(kind, if race { how } else { Ok(()) });
    }
}

#[test]
fn one_place_twice() {
    let mut c = Case::new();
    let view = c.view("x", F32, &[4], Access::Write, &f32s(&[0.; 4]));
    let i = c.input(I32, &[4], &[0., 1., 3., 1.]);
    let value = c.b.splat(F32, dims(&[4]), 1.0);
    c.b.scatter(view, value, &[i], None);
    let error = c.run().unwrap_err();
    assert_eq!((error.kind(), error.element()), (&ErrorKind::DuplicateIndex, Some(&[1][..])));
    // A store through a view that overlaps itself; the same view written at a single place is fine.
    for (rows, fails) in [(2, true), (1, false)] {
        let mut c = Case::new();
        let arg = Arg::View { buffer: f32s(&[0.; 4]), offset_elements: 0, shape: vec![2, 4], strides: vec![0, 1] };
        let view = c.strided("x", F32, Access::Write, arg);
        let zeros = c.zeros(2);
        let value = c.b.splat(F32, dims(&[rows, 4]), 1.0);
        c.b.store(view, value, &zeros);
        assert_eq!(c.run().is_err(), fails);
    }
}

#[test]
fn kernels_that_do_not_verify_are_refused() {
    let mut c = Case::new();
    let view = c.view("x", F32, &[4], Access::Read, &f32s(&[0.; 4]));
    let zeros = c.zeros(1);
    let value = c.b.splat(F32, dims(&[4]), 1.0);
    c.b.store(view, value, &zeros);
    let error = c.run().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::InvalidIr(_)), "{error}");
    // A tile where the region of a combination needs a scalar.
    let mut c = Case::new();
    let x = c.input(F32, &[2, 4], &[0.; 8]);
    c.b.reduce_by(&[x], 0, |_, _, _| vec![x]);
    assert!(matches!(c.run().unwrap_err().kind(), ErrorKind::InvalidIr(_)));
}

#[test]
fn assertions_and_division() {
    let mut c = Case::new();
    let x = c.input(DType::Bool, &[2, 2], &[1., 1., 0., 1.]);
    c.b.assert(x, "all must be");
    let error = c.run().unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Assert("all must be".into()));
    assert_eq!(error.element(), Some(&[1, 0][..]));
    for op in [BinaryOp::Div, BinaryOp::Rem] {
        let mut c = Case::new();
        let x = c.input(I32, &[2, 2], &[1., 2., 3., 4.]);
        let y = c.input(I32, &[2, 2], &[1., 2., 1., 0.]);
        c.b.binary(op, x, y);
        let error = c.run().unwrap_err();
        assert_eq!((error.kind(), error.element()), (&ErrorKind::DivisionByZero, Some(&[1, 1][..])));
    }
}

#[test]
fn memory_is_usable_after_an_error() {
    let memory = f32s(&[0.; 1]);
    let mut c = Case::new();
    let view = c.view("x", F32, &[1], Access::Write, &memory);
    let zeros = c.zeros(1);
    let one = c.b.splat(F32, dims(&[1]), 1.0);
    c.b.store(view, one, &zeros);
    assert!(c.run_grid([2, 1, 1]).is_err());
    memory.write_bytes(0, &2f32.to_le_bytes()).unwrap();
    assert_eq!(f32_values(&memory), [2.0]);
}
