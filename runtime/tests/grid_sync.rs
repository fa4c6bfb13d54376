//! All programs of a launch meet, on the interpreter and the CPU, and what is said of those that do not.

mod marks;

use kiln::prelude::*;
use kiln::{DType, Device, Tensor};

const DEVICES: [Device; 2] = [Device::Interpret, Device::Cpu];

/// Of the only line here that ends with this comment.
fn line_of(mark: &str) -> usize {
    marks::line_of(include_str!("grid_sync.rs"), mark)
}

/// Sums over everything up to each block of `N`, in a scan by doubling: in each round a program adds what stood `step`
/// blocks before its own. x, out `[blocks·N]`, sums `[blocks]`. Program: block, along any axis.
#[kernel]
fn sums_so_far<const N: usize>(x: &View<i32, 1>, sums: &mut View<i32, 1>, out: &mut View<i32, 1>) {
    let block = program_id(0) + num_programs(0) * program_id(1);
    let blocks = num_programs(0) * num_programs(1);
    let own: Tile<i32, N> = x.load(block * N);
    let mut sum = own.sum::<0>();
    let mut step: Tile<i32> = full(1.0);
    for _ in 0..6 {
        // SAFETY: a program stores its own sum; others have read the one before, as they came to the last meeting.
        unsafe { sums.set(block, sum) };
        grid_sync();
        let before = select((block >= step) & (step < blocks), sums.get((block - step).max(0)), 0);
        grid_sync();
        sum += before;
        step *= 2;
    }
    let all: Tile<i32, N> = zeros();
    // SAFETY: a program stores its own block.
    unsafe { out.store(block * N, all + sum) };
}

#[test]
fn sums_of_all_that_comes_before() {
    let values: Vec<i32> = (0..96).map(|i| (i * 37) % 101 - 40).collect();
    let mut want = vec![];
    let mut sum = 0;
    for block in values.chunks(4) {
        sum += block.iter().sum::<i32>();
        want.extend([sum; 4]);
    }
    for device in DEVICES {
        let x = Tensor::from_slice(&values, &[96], device).unwrap();
        for grid in [[24, 1], [6, 4]] {
            let mut sums = Tensor::uninit(&[24], DType::I32, device).unwrap();
            let mut out = Tensor::uninit(&[96], DType::I32, device).unwrap();
            sums_so_far::<4>(&x, &mut sums, &mut out).grid(grid).run().unwrap();
            assert_eq!(out.to_vec::<i32>().unwrap(), want, "{device}, {grid:?}");
        }
        // A single program has nobody to wait for.
        let mut sums = Tensor::uninit(&[1], DType::I32, device).unwrap();
        let mut out = Tensor::uninit(&[4], DType::I32, device).unwrap();
        sums_so_far::<4>(&x, &mut sums, &mut out).grid([1, 1]).run().unwrap();
        assert_eq!(out.to_vec::<i32>().unwrap(), want[..4], "{device}");
    }
}

/// Reads what its neighbour stores, without a meeting between.
#[kernel]
fn too_early(x: &mut View<i32, 1>) {
    grid_sync();
    // SAFETY: none, which is what the interpreter says.
    unsafe { x.set(program_id(0), program_id(0)) }; // early
    let next = x.get((program_id(0) + 1) % num_programs(0));
    // SAFETY: as above.
    unsafe { x.set(program_id(0), next) };
}

#[test]
fn a_meeting_before_is_none_between() {
    let mut x = Tensor::from_slice(&[0; 4], &[4], Device::Interpret).unwrap();
    let error = too_early(&mut x).grid(4).run().unwrap_err().to_string();
    assert!(error.contains(&format!("grid_sync.rs:{}:", line_of("early"))), "{error}");
    assert!(error.contains("program"), "{error}");
}

/// Only some programs come.
#[kernel]
fn apart(out: &mut Block<i32, 1>) {
    if program_id(0) != 1 {
        grid_sync(); // apart
    }
    let one: Tile<i32, 1> = full(1.0);
    out.store(one);
}

/// In a role.
#[kernel]
fn in_role(out: &mut Block<i32, 1>) {
    roles([role(4, || {
        grid_sync(); // role
        let one: Tile<i32, 1> = full(1.0);
        out.store(one);
    })]);
}

/// Beside an exchange.
#[kernel(cluster = 2)]
fn both(out: &mut Block<i32, 1>) {
    let one: Tile<i32, 1> = full(1.0);
    let sum = one.cluster_sum();
    grid_sync(); // both
    out.store(sum);
}

#[test]
fn what_does_not_fit() {
    for device in DEVICES {
        let mut out = Tensor::uninit(&[3], DType::I32, device).unwrap();
        let error = apart(&mut out).run().unwrap_err().to_string();
        assert!(error.contains("do not meet"), "{error}");
        assert!(error.contains(&format!("grid_sync.rs:{}:", line_of("apart"))), "{error}");
    }
    let mut out = Tensor::uninit(&[2], DType::I32, Device::Cpu).unwrap();
    let error = |launched: kiln::Result<()>, line: &str, text: &str| {
        let error = launched.unwrap_err().to_string();
        assert!(error.contains(text) && error.contains(&format!("grid_sync.rs:{}:", line_of(line))), "{error}");
    };
    error(in_role(&mut out).run(), "role", "outside of roles");
    error(both(&mut out).run(), "both", "one whose clusters exchange nothing");
    let mut many = Tensor::uninit(&[2000], DType::I32, Device::Cpu).unwrap();
    let error = apart(&mut many).run().unwrap_err().to_string();
    assert!(error.contains("all 2000 programs of a grid of [2000, 1, 1] are to meet, and 1024 can"), "{error}");
}
