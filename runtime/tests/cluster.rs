//! Exchanges within a cluster as authors write them, on the interpreter and the CPU, and what is said of those that do
//! not fit.

mod marks;

use kiln::prelude::*;
use kiln::{DType, Device, Tensor};

const DEVICES: [Device; 2] = [Device::Interpret, Device::Cpu];

/// Of the only line here that ends with this comment.
fn line_of(mark: &str) -> usize {
    marks::line_of(include_str!("cluster.rs"), mark)
}

/// Each program has `N` columns of the rows; whole rows are divided by their largest, less their sum. x, out
/// `[rows, C·N]`.
#[kernel(cluster = C)]
fn by_largest<const N: usize, const C: u8>(x: &View<i32, 2>, out: &mut View<i32, 2>) {
    let at = program_id(0) * N;
    for row in 0..x.dim(0) {
        let part: Tile<i32, N> = x.select(0, row).load(at);
        let largest = part.amax::<0>().cluster_max();
        let sum = part.sum::<0>().cluster_sum();
        // SAFETY: a program stores its own columns.
        unsafe { out.store((row, at), (part / largest - sum).reshape::<D2<1, N>>()) };
    }
}

#[test]
fn rows_over_clusters() {
    let (rows, columns) = (5, 32);
    let values: Vec<i32> = (0..rows * columns).map(|i| (i as i32 * 37) % 101 + 1).collect();
    let part = |row: &[i32]| {
        let (largest, sum) = (row.iter().max().unwrap(), row.iter().sum::<i32>());
        row.iter().map(|v| v / largest - sum).collect::<Vec<_>>()
    };
    // Of a cluster of one, each program by itself.
    let whole: Vec<i32> = values.chunks(columns).flat_map(part).collect();
    let alone: Vec<i32> = values.chunks(8).flat_map(part).collect();
    for device in DEVICES {
        let x = Tensor::from_slice(&values, &[rows, columns], device).unwrap();
        let mut out = Tensor::uninit(&[rows, columns], DType::I32, device).unwrap();
        by_largest::<8, 4>(&x, &mut out).grid(4).run().unwrap();
        assert_eq!(out.to_vec::<i32>().unwrap(), whole, "{device}");
        by_largest::<16, 2>(&x, &mut out).grid(2).run().unwrap();
        assert_eq!(out.to_vec::<i32>().unwrap(), whole, "{device}");
        by_largest::<8, 1>(&x, &mut out).grid(4).run().unwrap();
        assert_eq!(out.to_vec::<i32>().unwrap(), alone, "{device}");
    }
}

/// All read what one then replaces.
#[kernel(cluster = 4)]
fn replaced(x: &mut View<i32, 1>) {
    let all: Tile<i32, 8> = x.load(0);
    let sum = all.cluster_sum();
    if program_id(0) == 2 {
        // SAFETY: what others read they have read before.
        unsafe { x.store(0, sum) };
    }
}

#[test]
fn one_program_replaces_what_all_have_read() {
    for device in DEVICES {
        let mut x = Tensor::from_slice(&[1, 2, 3, 4, 5, 6, 7, 8], &[8], device).unwrap();
        replaced(&mut x).grid(4).run().unwrap();
        assert_eq!(x.to_vec::<i32>().unwrap(), [4, 8, 12, 16, 20, 24, 28, 32]);
    }
}

/// Only one of two programs comes.
#[kernel(cluster = 2)]
fn apart(out: &mut Block<i32, 1>) {
    let mut sum: Tile<i32, 1> = zeros();
    if program_id(0) == 0 {
        sum = sum.cluster_sum(); // apart
    }
    out.store(sum);
}

/// More than what may be exchanged.
#[kernel(cluster = 2)]
fn large(out: &mut Block<f32, 1>) {
    let all: Tile<f32, 64, 512> = zeros();
    let sum = all.cluster_sum(); // large
    out.store(sum.sum::<0>().sum::<0>().reshape());
}

/// In a role.
#[kernel(cluster = 2)]
fn in_role(out: &mut Block<i32, 1>) {
    roles([role(4, || {
        let one: Tile<i32, 1> = full(1.0);
        out.store(one.cluster_sum()); // role
    })]);
}

#[test]
fn what_does_not_fit() {
    for device in DEVICES {
        let mut out = Tensor::uninit(&[2], DType::I32, device).unwrap();
        let error = apart(&mut out).run().unwrap_err().to_string();
        assert!(error.contains("the programs of a cluster do not meet: "), "{error}");
        assert!(error.contains(&format!("cluster.rs:{}:", line_of("apart"))), "{error}");
    }
    let mut out = Tensor::uninit(&[2], DType::I32, Device::Cpu).unwrap();
    let mut sums = Tensor::uninit(&[2], DType::F32, Device::Cpu).unwrap();
    let error = |launched: kiln::Result<()>, line: &str, text: &str| {
        let error = launched.unwrap_err().to_string();
        assert!(error.contains(text) && error.contains(&format!("cluster.rs:{}:", line_of(line))), "{error}");
    };
    error(large(&mut sums).run(), "large", "a tile of at most 65536 bytes");
    error(in_role(&mut out).run(), "role", "outside of roles");
}
