//! The language: what the macros make of control flow, structs and device functions, run by the interpreter and by the
//! CPU back end.
//!
//! Each test is a kernel beside the same computation in plain Rust.

use kiln::prelude::*;
use kiln::{DType, Device, Tensor};

/// Where every kernel here runs.
const DEVICES: [Device; 2] = [Device::Interpret, Device::Cpu];

fn i32s(values: &[i32], device: Device) -> Tensor {
    Tensor::from_slice(values, &[values.len()], device).unwrap()
}

/// What a launch writes into a fresh output of `n` numbers.
macro_rules! output {
    ($n:expr, $device:expr, |$out:ident| $launch:expr) => {{
        let mut tensor = Tensor::uninit(&[$n], DType::I32, $device).unwrap();
        let $out = &mut tensor;
        $launch.run().unwrap_or_else(|error| panic!("{error}"));
        tensor.to_vec::<i32>().unwrap()
    }};
}

// ---- what loops and branches carry ----

/// Both branches store, one value is carried through, one is given by the `if`.
#[kernel]
fn branches(x: &View<i32, 1>, out: &mut Block<i32, 1>) {
    let mut steps: Tile<i32> = zeros();
    let v = x.get(program_id(0));
    let sign = if v > 0 {
        steps += 1;
        out.store(v.splat());
        full(1.0)
    } else if v == 0 {
        steps += 2;
        out.store((v - 5).splat());
        zeros()
    } else {
        out.store((0 - v).splat());
        v / v
    };
    let old = out.load();
    out.store(old * 100 + (steps * 10 + sign));
}

#[test]
fn both_branches_may_store_into_one_output() {
    for device in DEVICES {
        let got = output!(3, device, |out| branches(&i32s(&[7, 0, -3], device), out));
        assert_eq!(got, [711, -480, 301]);
    }
}

/// A name declared inside hides the carried one, and only until its scope ends.
#[kernel]
fn shadowing(n: i32, out: &mut Block<i32, 1>) {
    let mut x: Tile<i32> = zeros();
    let mut y: Tile<i32> = zeros();
    for i in 0..n {
        x += 1;
        {
            let mut x = i;
            x *= 10;
            y += x;
        }
        let mut y = x;
        y += 1000;
        x = y - 1000;
    }
    out.store((x * 10000 + y).splat());
}

#[test]
fn shadowed_names_are_not_carried() {
    for device in DEVICES {
        assert_eq!(output!(1, device, |out| shadowing(4, out)), [40060]);
    }
}

#[derive(Clone, Copy, Carried)]
struct Running {
    sum: Tile<i32>,
    largest: Tile<i32>,
}

impl Running {
    #[device]
    fn add(&mut self, v: Tile<i32>) {
        self.sum += v;
        if v > self.largest {
            self.largest = v;
        }
    }
}

#[device]
fn count(x: &View<i32, 1>, n: Tile<i32>, even: &mut Tile<i32>, pair: &mut (Tile<i32>, [Tile<i32>; 2])) {
    for i in 0..n {
        let v = x.get(i);
        if v % 2 == 0 {
            *even += 1;
            bump(&mut pair.1[0], v);
        } else {
            pair.0 += 1;
            bump(&mut pair.1[1], v);
        }
        touch(even);
    }
}

#[device]
fn bump(t: &mut Tile<i32>, by: Tile<i32>) {
    *t += by;
}

#[device]
fn touch(t: &mut Tile<i32>) {
    *t += 100;
}

/// Fields, places behind references, arrays and tuples are carried as what they are.
#[kernel]
fn places(x: &View<i32, 1>, out: &mut Block<i32, 8>) {
    let zero: Tile<i32> = zeros();
    let mut running = Running { sum: zero, largest: zero };
    let n = x.dim(0);
    for i in 0..n {
        (&mut running).add(x.get(i));
    }
    let mut even = zero;
    let mut pair = (zero, [zero; 2]);
    count(x, n, &mut even, &mut pair);
    let mut fields = running;
    for i in 0..n {
        fields.sum -= i;
        (pair.0, fields.largest) = (fields.largest, pair.0);
    }
    let values = [running.sum, running.largest, even, pair.0, pair.1[0], pair.1[1], fields.sum, fields.largest];
    let mut all: Tile<i32, 8> = zeros();
    for (k, v) in values.into_iter().enumerate() {
        let here: Tile<bool, 8> = iota::<8>() == k;
        all = select(here, v.splat(), all);
    }
    out.store(all);
}

#[test]
fn fields_references_arrays_and_tuples_are_carried() {
    for device in DEVICES {
        let x = i32s(&[4, 9, 2, 7, 5], device);
        let got = output!(8, device, |out| places(&x, out));
        // Five swaps of (odd count 3, largest 9).
        assert_eq!(got, [27, 9, 502, 9, 6, 21, 17, 3]);
    }
}

/// A method that changes its receiver does so without a token that says so.
#[kernel]
fn unseen_change(x: &View<i32, 1>, out: &mut Block<i32, 1>) {
    let mut running = Running { sum: zeros(), largest: zeros() };
    for i in 0..x.dim(0) {
        running.add(x.get(i));
    }
    out.store(running.sum.splat());
}

#[test]
fn a_change_that_is_not_seen_is_reported() {
    let mut out = Tensor::uninit(&[1], DType::I32, Device::Interpret).unwrap();
    let error = unseen_change(&i32s(&[1, 2], Device::Interpret), &mut out).run().unwrap_err().to_string();
    assert!(error.contains("(&mut x).method(..)") && error.contains("language.rs"), "{error}");
}

/// More carried variables than one tuple of the library holds.
#[kernel]
fn many(n: i32, out: &mut Block<i32, 1>) {
    let one: Tile<i32> = full(1.0);
    let (mut a, mut b, mut c, mut d, mut e) = (one, one, one, one, one);
    let (mut f, mut g, mut h, mut i, mut j) = (one, one, one, one, one);
    for _ in 0..n {
        (a, b, c, d, e, f, g, h, i, j) = (b, c, d, e, f, g, h, i, j, a + b);
    }
    let _ = (c, d, e, f, g, h, i);
    out.store((a * 1000 + j).splat());
}

#[test]
fn ten_carried_variables() {
    for device in DEVICES {
        let mut v = [1; 10];
        for _ in 0..25 {
            let last = v[0] + v[1];
            v.rotate_left(1);
            v[9] = last;
        }
        assert_eq!(output!(1, device, |out| many(25, out)), [v[0] * 1000 + v[9]]);
    }
}

// ---- loops ----

#[kernel]
fn collatz(x: &View<i32, 1>, out: &mut Block<i32, 1>) {
    let mut n = x.get(program_id(0));
    let mut steps: Tile<i32> = zeros();
    while n != 1 && steps < 1000 {
        n = if n % 2 == 0 { n / 2 } else { n * 3 + 1 };
        steps += 1;
    }
    out.store(steps.splat());
}

#[test]
fn while_with_an_if_inside() {
    for device in DEVICES {
        let expected = |mut n: i32| {
            let mut steps = 0;
            while n != 1 {
                n = if n % 2 == 0 { n / 2 } else { n * 3 + 1 };
                steps += 1;
            }
            steps
        };
        let x = i32s(&[1, 6, 7, 27], device);
        let got = output!(4, device, |out| collatz(&x, out));
        assert_eq!(got, [1, 6, 7, 27].map(expected));
    }
}

/// Staged, stepped, unrolled and native loops in each other; an outer accumulator through all of them.
#[kernel]
fn nest<const N: usize>(n: i32, out: &mut Block<i32, 1>) {
    let mut sum: Tile<i32> = zeros();
    let mut last: [Tile<i32>; 2] = [zeros(); 2];
    for i in (0..n).step_by(3).stages(2) {
        for k in unroll(0..N) {
            if k != 1 {
                for j in i..n {
                    sum += j * k;
                    last[k % 2] = j;
                }
            }
        }
        for t in &mut last {
            *t += 1;
        }
    }
    let mut halvings = 0;
    let mut size = N;
    while size > 1 {
        size /= 2;
        halvings += 1;
    }
    out.store((sum * 1000 + last[0] * 10 + last[1] + halvings * 100).splat());
}

#[test]
fn staged_and_unrolled_loops_nest() {
    for device in DEVICES {
        let n = 7;
        let (mut sum, mut last) = (0, [0, 0]);
        for i in (0..n).step_by(3) {
            for k in [0, 2, 3] {
                for j in i..n {
                    sum += j * k;
                    last[k as usize % 2] = j;
                }
            }
            last = last.map(|t| t + 1);
        }
        assert_eq!(output!(1, device, |out| nest::<4>(n, out)), [sum * 1000 + last[0] * 10 + last[1] + 200]);
    }
}

// ---- compile time ----

/// What is decided while staging takes part in no IR: branches of different kinds, values that are no tiles.
#[kernel(warps = W, min_programs_per_sm = 2)]
fn compile_time<const MODE: usize, const W: u8>(x: &View<i32, 1>, out: &mut Block<i32, 4>) {
    static_assert!(MODE < 3, "three modes");
    let width = if MODE == 0 { 1usize } else { MODE * 2 };
    let name = if MODE == 2 { Some(x) } else { None };
    let v: Tile<i32, 4> = if let Some(view) = name { view.load(4) } else { x.load(0) };
    let scaled = match MODE {
        0 => v,
        _ if width > 3 => v * 10,
        _ => v * 2,
    };
    let twice = |t: Tile<i32, 4>| if MODE >= 1 && width != 4 { t + t } else { t };
    out.store(twice(scaled) + width);
}

#[test]
fn compile_time_branches() {
    for device in DEVICES {
        let x = &i32s(&[1, 2, 3, 4, 5, 6, 7, 8], device);
        assert_eq!(output!(4, device, |out| compile_time::<0, 4>(x, out)), [2, 3, 4, 5]);
        // Scaled by 2, doubled because of the mode only where the width is not 4.
        assert_eq!(output!(4, device, |out| compile_time::<1, 4>(x, out)), [6, 10, 14, 18]);
        assert_eq!(output!(4, device, |out| compile_time::<2, 8>(x, out)), [54, 64, 74, 84]);
    }
}

#[test]
fn static_assert_fails_while_staging() {
    let x = i32s(&[0; 8], Device::Interpret);
    let mut out = Tensor::uninit(&[4], DType::I32, Device::Interpret).unwrap();
    let error = compile_time::<3, 4>(&x, &mut out).run().unwrap_err().to_string();
    assert!(error.contains("three modes") && error.contains("language.rs"), "{error}");
}

// ---- arguments ----

/// A gate.
#[derive(KernelArg)]
struct Gate<T: Int> {
    /// One number per program.
    base: View<T, 1>,
    factor: Scalar<i32>,
}

#[kernel]
fn with_struct<T: Int>(gate: &Gate<T>, by_value: Gate<i32>, mut shift: i32, out: &mut Block<i32, 1>) {
    shift += 1;
    let a = gate.base.get(program_id(0)).cast::<i32>() * gate.factor;
    let b = by_value.base.get(0) * by_value.factor;
    out.store((a + b + shift).splat());
}

#[test]
fn structs_of_arguments() {
    for device in DEVICES {
        let base = Tensor::from_slice(&[1i64, 2, 3], &[3], device).unwrap();
        let other = i32s(&[5], device);
        let got = output!(3, device, |out| with_struct::<i64>(
            GateHost { base: &base, factor: 10 },
            GateHost { base: &other, factor: 100 },
            6,
            out
        ));
        assert_eq!(got, [517, 527, 537]);
    }
}

/// `&mut View` is written through `unsafe`, also inside staged control flow.
#[kernel]
fn reverse(x: &View<i32, 1>, y: &mut View<i32, 1>) {
    let n = x.dim(0);
    // SAFETY: one program is launched, so no other writes or reads `y`.
    unsafe {
        for i in 0..n {
            if i != 2 {
                y.set(n - 1 - i, x.get(i));
            } else {
                y.set(n - 1 - i, -1);
            }
        }
    }
}

#[test]
fn a_view_written_through_unsafe() {
    for device in DEVICES {
        let x = &i32s(&[1, 2, 3, 4], device);
        assert_eq!(output!(4, device, |out| reverse(x, out).grid(1)), [4, -1, 2, 1]);
    }
}

// ---- failures at run time ----

#[kernel]
fn checked(x: &View<i32, 1>, out: &mut Block<i32, 1>) {
    let v = x.get(program_id(0));
    assert!(v > 0, "inputs are positive");
    out.store(v.splat());
}

#[test]
fn assert_names_its_text_and_line() {
    let x = i32s(&[1, 0], Device::Interpret);
    let mut out = Tensor::uninit(&[2], DType::I32, Device::Interpret).unwrap();
    let error = checked(&x, &mut out).run().unwrap_err().to_string();
    let line = line!() - 9;
    assert!(error.contains("inputs are positive") && error.contains(&format!("language.rs:{line}")), "{error}");
}

// ---- products ----

/// Each matrix with itself turned, and that times another.
#[kernel]
fn batched(x: &View<i8, 3>, y: &View<i8, 3>, out: &mut Block<i32, 2, 4, 8>) {
    let first = out.origin(0);
    let x: Tile<i8, 2, 4, 8> = x.load((first, 0, 0));
    let y: Tile<i8, 2, 8, 8> = y.load((first, 0, 0));
    let square = dot_batch(x, x.t(), zeros());
    // Of f32 because of the precision, which makes no difference to small whole numbers.
    let more = dot_batch_with(square.cast::<f32>(), x.cast::<f32>(), zeros(), Precision::Tf32x3);
    out.store(dot_batch(x, y, more.cast::<i32>()));
}

#[test]
fn products_of_tiles_of_rank_three() {
    let numbers = |n: usize, seed: usize| (0..n).map(|i| ((i * seed) % 7) as i8 - 3).collect::<Vec<i8>>();
    let (x, y) = (numbers(4 * 4 * 8, 5), numbers(4 * 8 * 8, 11));
    let at_x = |p: usize, i: usize, j: usize| i32::from(x[(p * 4 + i) * 8 + j]);
    let at_y = |p: usize, i: usize, j: usize| i32::from(y[(p * 8 + i) * 8 + j]);
    let mut want = vec![];
    for (p, i, j) in (0..4 * 4 * 8).map(|e| (e / 32, e / 8 % 4, e % 8)) {
        let square = |l: usize| (0..8).map(|d| at_x(p, i, d) * at_x(p, l, d)).sum::<i32>();
        let more: i32 = (0..4).map(|l| square(l) * at_x(p, l, j)).sum();
        want.push(more + (0..8).map(|l| at_x(p, i, l) * at_y(p, l, j)).sum::<i32>());
    }
    for device in DEVICES {
        let x = Tensor::from_slice(&x, &[4, 4, 8], device).unwrap();
        let y = Tensor::from_slice(&y, &[4, 8, 8], device).unwrap();
        let mut out = Tensor::uninit(&[4, 4, 8], DType::I32, device).unwrap();
        batched(&x, &y, &mut out).run().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(out.to_vec::<i32>().unwrap(), want);
    }
}

/// Pieces of `x`, put together in the order of their numbers; the whole of it by one.
#[kernel]
fn pieces(x: &View<i32, 2>, out: &mut Block<i32, 8, 16>, all: &mut Block<i32, 8, 16>) {
    let mut put: Tile<i32, 8, 16> = full(-1.0);
    for i in 0..7 {
        let at = (i % 4 * 2, i / 4 * 8);
        let piece: Tile<i32, 2, 8> = x.load(at);
        put = put.insert(at, piece);
    }
    out.store(put);
    let whole: Tile<i32, 8, 16> = x.load((0, 0));
    all.store(put.insert((0, 0), whole));
}

#[test]
fn tiles_of_pieces() {
    let x: Vec<i32> = (0..128).collect();
    // The last piece is not put in.
    let want: Vec<i32> = (0..128).map(|e| if e / 16 >= 6 && e % 16 >= 8 { -1 } else { e }).collect();
    for device in DEVICES {
        let from = Tensor::from_slice(&x, &[8, 16], device).unwrap();
        let [mut out, mut all] = [(); 2].map(|_| Tensor::uninit(&[8, 16], DType::I32, device).unwrap());
        pieces(&from, &mut out, &mut all).run().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(out.to_vec::<i32>().unwrap(), want);
        assert_eq!(all.to_vec::<i32>().unwrap(), x);
    }
}
