//! Roles and channels as authors write them, on the interpreter and the CPU, and what is said of those that do not fit.
//!
//! Each kernel stands beside the same computation in plain Rust.

mod marks;

use kiln::prelude::*;
use kiln::{DType, Device, Tensor};

const DEVICES: [Device; 2] = [Device::Interpret, Device::Cpu];

/// Of the only line here that ends with this comment.
fn line_of(mark: &str) -> usize {
    marks::line_of(include_str!("roles.rs"), mark)
}

fn i32s(values: &[i32], device: Device) -> Tensor {
    Tensor::from_slice(values, &[values.len()], device).unwrap()
}

/// One loads, one doubles what is odd and counts it, one adds up: messages of a tile, of tiles and numbers, and of
/// nothing.
#[kernel]
fn three(x: &View<i32, 1>, out: &mut Block<i32, 4>) {
    let first = out.origin(0);
    let (mut loaded, mut next) = channel::<Tile<i32, 4>, 2>();
    let (mut changed, mut last) = channel::<([Tile<i32, 4>; 2], Tile<i32>), 1>();
    let (mut finished, mut end) = channel::<(), 1>();
    roles([
        role(1, || {
            for i in 0..5 {
                loaded.send(x.load(first + i * 8));
            }
            end.receive().release();
        }),
        role(1, || {
            let mut count: Tile<i32> = zeros();
            for _ in 0..5 {
                let slot = next.receive();
                let odd = *slot & 1;
                count += odd.sum::<0>();
                changed.send(([*slot, *slot * odd], count));
                slot.release();
            }
            finished.send(());
        })
        .registers(64),
        role(4, || {
            let mut sum: Tile<i32, 4> = zeros();
            for _ in 0..5 {
                let slot = last.receive();
                let ([all, odd], count) = *slot;
                slot.release();
                sum = sum + all + odd + count;
            }
            out.store(sum);
        }),
    ]);
}

#[test]
fn messages_of_several_kinds() {
    let x: Vec<i32> = (0..48).map(|i| i * i % 31).collect();
    let want: Vec<i32> = (0..8)
        .map(|at| {
            let (first, lane) = (at / 4 * 4, at % 4);
            let mut count = 0;
            let mut sum = 0;
            for i in 0..5 {
                let loaded = &x[first + i * 8..][..4];
                count += loaded.iter().filter(|&&v| v % 2 == 1).count() as i32;
                sum += loaded[lane] * (1 + loaded[lane] % 2) + count;
            }
            sum
        })
        .collect();
    for device in DEVICES {
        let mut out = Tensor::uninit(&[8], DType::I32, device).unwrap();
        three(&i32s(&x, device), &mut out).run().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(out.to_vec::<i32>().unwrap(), want, "{device}");
    }
}

/// The receiver wants one message more if `n` is large: nobody knows before it runs.
#[kernel]
fn uneven(n: i32, out: &mut Block<i32, 1>) {
    let (mut to, mut from) = channel::<Tile<i32>, 2>(); // left behind
    roles([
        role(1, || {
            for i in 0..n {
                to.send(i);
            }
        }),
        role(1, || {
            let mut sum: Tile<i32, 1> = zeros();
            for _ in 0..n.min(3) + n / 8 * 8 {
                let slot = from.receive(); // waits
                sum += *slot;
                slot.release();
            }
            out.store(sum);
        }),
    ]);
}

#[test]
fn what_does_not_fit_at_run_time() {
    for device in DEVICES {
        let run = |n: i32| {
            let mut out = Tensor::uninit(&[1], DType::I32, device).unwrap();
            uneven(n, &mut out).run().map(|()| out.to_vec::<i32>().unwrap()[0])
        };
        assert_eq!(run(3).unwrap(), 3);
        let left = run(4).unwrap_err().to_string();
        assert!(left.contains("1 messages of the channel were never received"), "{left}");
        assert!(left.contains(&format!("roles.rs:{}:", line_of("left behind"))), "{left}");
        let stuck = run(8).unwrap_err().to_string();
        assert!(stuck.contains("a deadlock: role 1 waits in `receive`"), "{stuck}");
        assert!(stuck.contains(&format!("roles.rs:{}:", line_of("waits"))), "{stuck}");
    }
}

/// Sends twice what is received, however large `n` is.
#[kernel]
fn twice(n: i32, out: &mut Block<i32, 1>) {
    let (mut to, mut from) = channel::<Tile<i32>, 2>();
    roles([
        role(1, || {
            for i in 0..n {
                to.send(i); // twice
                to.send(i);
            }
        }),
        role(1, || {
            for _ in 0..n {
                from.receive().release();
            }
            out.store(zeros());
        }),
    ]);
}

#[kernel]
fn kept(out: &mut Block<i32, 1>) {
    let (mut to, mut from) = channel::<Tile<i32>, 2>();
    roles([
        role(1, || to.send(full(1.0))),
        role(1, || {
            let slot = from.receive(); // kept
            out.store(slot.splat());
        }),
    ]);
}

#[kernel]
fn crossed(out: &mut Block<i32, 1>) {
    let (mut to, mut from) = channel::<(), 1>();
    let (mut back, mut other) = channel::<(), 1>();
    roles([
        role(1, || {
            other.receive().release(); // crossed
            to.send(());
        }),
        role(1, || {
            from.receive().release();
            back.send(());
            out.store(zeros());
        }),
    ]);
}

/// A value of a role is not seen after it.
#[kernel]
fn escaping(out: &mut Block<i32, 1>) {
    let mut sum: Tile<i32, 1> = zeros();
    roles([role(1, || sum += 1)]); // not the end
    out.store(sum);
}

#[test]
fn what_does_not_fit_when_it_is_staged() {
    let mut out = Tensor::uninit(&[1], DType::I32, Device::Cpu).unwrap();
    let error = |launched: kiln::Result<()>, line: &str, text: &str| {
        let error = launched.unwrap_err().to_string();
        assert!(error.contains(text) && error.contains(&format!("roles.rs:{}:", line_of(line))), "{error}");
    };
    error(twice(4, &mut out).run(), "twice", "more sends than receives");
    error(kept(&mut out).run(), "kept", "its `release` in the region that received it");
    error(crossed(&mut out).run(), "crossed", "role 0 waits in `receive`");
    error(escaping(&mut out).run(), "not the end", "operations after it");
}
