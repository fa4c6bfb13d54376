//! All programs of a launch meet: what each stored before, the others read after, whichever comes first.

use super::differential::{compare_runs, specialised};
use super::simulate::Order;
use super::{Lowered, Target, llvm_text};
use crate::ir::{Kernel, Lint, parse, verify};

fn check(k: &Kernel, sm: u32, programs: u32, shapes: &[&[i64]]) -> Lowered {
    verify(k).unwrap_or_else(|e| panic!("{e}"));
    let special = specialised(k, shapes);
    compare_runs(&[(&special, sm, &Order::ALL[..2])], [programs, 1, 1], shapes, 1e-2);
    #[cfg(feature = "llvm")]
    super::tests::assembles(&special, sm);
    llvm_text(&special, Target { sm }).unwrap_or_else(|e| panic!("{e}"))
}

/// Three times over a program replaces its number by the sum of all, behind two meetings.
#[test]
fn numbers_go_around() {
    let k = parse(
        "kernel around(%x: view<i32,1>, %sums: write view<i32,2>) {
          %p: i32 = program_id 0
          %zero: i32 = const 0
          %one: i32 = const 1
          %three: i32 = const 3
          %first: i32<1> = load %x[%p]
          %last: i32<1> = for %i: i32 = %zero to %three step %one carrying (%own: i32<1> = %first) {
            %row: i32<1x1> = reshape %own
            store %sums[%i, %p], %row
            grid_sync
            %all: i32<1x8> = load %sums[%i, %zero]
            %sum: i32<1> = reduce sum axis 1 %all
            yield %sum
          }
          %end: i32<1x1> = reshape %last
          store %sums[%three, %p], %end
          yield
        }",
    )
    .unwrap();
    let shapes: &[&[i64]] = &[&[8], &[4, 8]];
    for sm in [80, 90] {
        let made = check(&k, sm, 8, shapes);
        assert!(made.meets && made.text.contains("i64 %meeting)"), "{}", made.text);
    }
    let alone = parse(&k.to_string().replace("grid_sync", "")).unwrap();
    assert!(!llvm_text(&alone, Target { sm: 90 }).unwrap().meets);
}

/// The products of steps `from` to `to` of the inner dimension, stored as this program's.
fn products(name: &str, [from, to]: [&str; 2]) -> String {
    format!(
        "%{name}: f32<64x64> = for %k: i32 = %{from} to %{to} step %step carrying (%acc: f32<64x64> = %none) {{
            %x: f16<64x64> = load %a[%zero, %k]
            %y: f16<64x64> = load %b[%zero, %k]
            %t: f16<64x64> = transpose [1, 0] %y
            %next: f32<64x64> = dot %x, %t, %acc
            yield %next
          }}
          %{name}_row: f32<1x64x64> = reshape %{name}
          store %c[%p, %zero, %zero], %{name}_row"
    )
}

/// Products of a part of the inner dimension, which programs then add up; `again` after the meeting.
fn parts(again: &str) -> Kernel {
    parse(&format!(
        "kernel parts(%a: view<f16,2>, %b: view<f16,2>, %c: write view<f32,3>, %d: write view<f32,2>) warps 4 {{
          %zero: i32 = const 0
          %one: i32 = const 1
          %p: i32 = program_id 0
          %step: i32 = const 64
          %half: i32 = const 256
          %from: i32 = mul %p, %half
          %to: i32 = add %from, %half
          %none: f32<64x64> = const 0.0
          {}
          grid_sync
          %rows: i32 = const 32
          %row: i32 = mul %p, %rows
          %first: f32<1x32x64> = load %c[%zero, %row, %zero]
          %second: f32<1x32x64> = load %c[%one, %row, %zero]
          %both: f32<1x32x64> = add %first, %second
          %sum: f32<32x64> = reshape %both
          {again}
          store %d[%row, %zero], %sum
          yield
        }}",
        products("own", ["from", "to"])
    ))
    .unwrap()
}

/// The producer of copies has left when the computing warps meet those of other programs.
#[test]
fn programs_meet_after_their_copies() {
    let shapes: &[&[i64]] = &[&[64, 512], &[64, 512], &[2, 64, 64], &[64, 64]];
    let made = check(&parts(""), 90, 2, shapes);
    assert!(made.text.contains("cp.async.bulk") && made.findings.is_empty(), "{:?}", made.findings);
}

/// It could not wait for the others before it copies what they stored.
#[test]
fn no_producer_copies_what_comes_after_a_meeting() {
    let shapes: &[&[i64]] = &[&[64, 512], &[64, 512], &[2, 64, 64], &[64, 64]];
    let k = specialised(&parts(&products("more", ["zero", "half"])), shapes);
    let made = llvm_text(&k, Target { sm: 90 }).unwrap_or_else(|e| panic!("{e}"));
    assert!(!made.text.contains("cp.async.bulk"), "{}", made.text);
    let why = "no bulk copies: the producer cannot come to where programs meet";
    assert!(made.findings.iter().any(|f| (f.lint, &f.message[..]) == (Lint::Fallback, why)), "{:?}", made.findings);
}
