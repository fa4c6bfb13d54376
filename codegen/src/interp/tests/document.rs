//! `docs/tile-ir.md` describes every operation, and its examples do what it says.

use super::*;
use crate::ir::{AtomicOp, BinaryOp, CmpOp, Combine, Lint, MAX_RANK, OpKind, Precision, UnaryOp, parse};
use std::collections::BTreeSet;

const TEXT: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/tile-ir.md"));

/// One of every kind of operation. The match makes a new kind an error here.
fn one_of_each() -> Vec<OpKind> {
    let mut kinds = vec![
        OpKind::Const(Bits(0)),
        OpKind::Iota { axis: 0 },
        OpKind::ProgramId { axis: 0 },
        OpKind::NumPrograms { axis: 0 },
        OpKind::Fma,
        OpKind::Select,
        OpKind::Cast,
        OpKind::Bitcast,
        OpKind::Broadcast,
        OpKind::Reshape,
        OpKind::Transpose { perm: [0; MAX_RANK] },
        OpKind::Slice { offsets: [0; MAX_RANK] },
        OpKind::Join { axis: 0 },
        OpKind::Reduce { axis: 0, combine: Combine::Sum },
        OpKind::Scan { axis: 0, combine: Combine::Sum, reverse: false },
        OpKind::Dot(Precision::F32),
        OpKind::Dim { dim: 0 },
        OpKind::ViewSelect { dim: 0 },
        OpKind::ViewNarrow { dim: 0 },
        OpKind::Load { has_other: false },
        OpKind::Store,
        OpKind::StoreAdd,
        OpKind::Gather { masked: false },
        OpKind::Scatter { masked: false },
        OpKind::Atomic { op: AtomicOp::Add, masked: false },
        OpKind::Signal,
        OpKind::Wait,
        OpKind::ClusterReduce(Combine::Sum),
        OpKind::GridSync,
        OpKind::For { stages: 0 },
        OpKind::While,
        OpKind::If,
        OpKind::Yield,
        OpKind::Channel { slots: 1, message: smallvec::smallvec![] },
        OpKind::Roles(smallvec::smallvec![]),
        OpKind::Send,
        OpKind::Receive,
        OpKind::Release,
        OpKind::Assert { message: String::new() },
        OpKind::Print { message: String::new() },
    ];
    kinds.extend(UnaryOp::ALL.iter().map(|&f| OpKind::Unary(f)));
    kinds.extend(BinaryOp::ALL.iter().map(|&f| OpKind::Binary(f)));
    kinds.extend(CmpOp::ALL.iter().map(|&f| OpKind::Compare(f)));
    let groups: BTreeSet<u32> = kinds
        .iter()
        .map(|kind| match kind {
            OpKind::Const(_) | OpKind::Iota { .. } | OpKind::ProgramId { .. } | OpKind::NumPrograms { .. } => 0,
            OpKind::Unary(_) | OpKind::Binary(_) | OpKind::Compare(_) => 1,
            OpKind::Fma | OpKind::Select | OpKind::Cast | OpKind::Bitcast => 2,
            OpKind::Broadcast | OpKind::Reshape | OpKind::Transpose { .. } | OpKind::Slice { .. } => 3,
            OpKind::Join { .. } | OpKind::Reduce { .. } | OpKind::Scan { .. } | OpKind::Dot(_) => 4,
            OpKind::Dim { .. } | OpKind::ViewSelect { .. } | OpKind::ViewNarrow { .. } => 5,
            OpKind::Load { .. } | OpKind::Store | OpKind::StoreAdd => 6,
            OpKind::Gather { .. } | OpKind::Scatter { .. } => 6,
            OpKind::Atomic { .. } | OpKind::For { .. } | OpKind::While | OpKind::If | OpKind::Yield => 7,
            OpKind::Assert { .. } | OpKind::Print { .. } => 8,
            OpKind::Signal | OpKind::Wait => 9,
            OpKind::ClusterReduce(_) | OpKind::GridSync => 11,
            OpKind::Channel { .. } | OpKind::Roles(_) | OpKind::Send | OpKind::Receive | OpKind::Release => 10,
        })
        .collect();
    assert_eq!(groups.len(), 12);
    kinds
}

/// The words in backticks in the first column of the tables under this heading.
fn described(heading: &str) -> BTreeSet<&'static str> {
    let after = TEXT.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no heading {heading}")).1;
    let section = after.split("\n## ").next().unwrap_or(after);
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.flat_map(|row| row.split(" |").next().unwrap_or(row).split('`').step_by(2)).collect()
}

#[test]
fn every_operation_is_described_and_nothing_else() {
    let operations: BTreeSet<&str> = one_of_each().iter().map(|k| k.mnemonic()).collect();
    assert_eq!(described("Operations"), operations);
    assert_eq!(described("Combinations"), Combine::ALL.iter().map(|c| c.name()).collect());
    assert_eq!(described("Atomic functions"), AtomicOp::ALL.iter().map(|a| a.name()).collect());
    assert_eq!(described("Precisions"), Precision::ALL.iter().map(|p| p.name()).collect());
    assert_eq!(described("Lints"), Lint::ALL.iter().map(|l| l.name()).collect());
    assert_eq!(described("Element types"), DType::ALL.iter().map(|d| d.name()).collect());
}

#[test]
fn examples_parse_verify_and_run() {
    let examples: Vec<&str> =
        TEXT.split("```text\nkernel ").skip(1).map(|s| s.split("```").next().expect("some text")).collect();
    assert_eq!(examples.len(), 3);
    let kernels: Vec<Kernel> = examples.iter().map(|s| parse(&format!("kernel {s}")).expect("parses")).collect();
    // Row sums of a 3 × 5 matrix, two columns at a time.
    let x: Vec<f32> = (0..15).map(|x| x as f32).collect();
    let out = Arc::new(Buffer::uninit(3 * 4));
    run(&kernels[0], [2, 1, 1], &[Arg::contiguous(&f32s(&x), &[3, 5]), Arg::contiguous(&out, &[3])]).expect("runs");
    assert_eq!(f32_values(&out), [10., 35., 60.]);
    // Twice what is there, ten numbers in blocks of four.
    let x: Vec<f32> = (0..10).map(|x| x as f32).collect();
    let out = Arc::new(Buffer::uninit(10 * 4));
    run(&kernels[1], [1, 1, 1], &[Arg::contiguous(&f32s(&x), &[10]), Arg::contiguous(&out, &[10])]).expect("runs");
    assert_eq!(f32_values(&out), x.iter().map(|x| 2. * x).collect::<Vec<f32>>());
    // The index of the largest of four.
    let out = Arc::new(Buffer::uninit(4));
    let x = f32s(&[1., 7., 7., f32::NAN]);
    run(&kernels[2], [1, 1, 1], &[Arg::contiguous(&x, &[4]), Arg::contiguous(&out, &[])]).expect("runs");
    assert_eq!(i32_values(&out), [1]);
}
