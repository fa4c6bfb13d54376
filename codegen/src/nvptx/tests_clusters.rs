//! Programs of a cluster that exchange tiles: they compute what the interpreter computes, in their buffers' turns, and
//! none leaves while others may read its memory.

use super::differential::{compare_runs, general, specialised};
use super::simulate::Order;
use super::{Lowered, Target, llvm_text};
use crate::ir::{DType, Kernel, Lint, parse, verify};

fn kernel(text: &str) -> Kernel {
    let k = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    verify(&k).unwrap_or_else(|e| panic!("{e}\n{text}"));
    k
}

fn check(k: &Kernel, programs: u32, shapes: &[&[i64]], tolerance: f64) -> Lowered {
    let (special, general) = (specialised(k, shapes), general(k));
    let runs: [(&Kernel, u32, &[Order]); 2] = [(&special, 90, &Order::ALL[..2]), (&general, 90, &Order::ALL[..2])];
    compare_runs(&runs, [programs, 1, 1], shapes, tolerance);
    #[cfg(feature = "llvm")]
    super::tests::assembles(&special, 90);
    llvm_text(&special, Target { sm: 90 }).unwrap_or_else(|e| panic!("{e}"))
}

/// Tiles of this shape, and a scalar, combined by sum and maximum.
fn exchange(cluster: u32, dtype: DType, shape: &[u32]) -> Kernel {
    let d = dtype.name();
    let n: u32 = shape.iter().product();
    let shape = shape.iter().map(u32::to_string).collect::<Vec<_>>().join("x");
    kernel(&format!(
        "kernel exchange(%x: view<{d},2>, %out: write view<{d},2>, %one: write view<{d},1>) cluster {cluster} {{
          %p: i32 = program_id 0
          %zero: i32 = const 0
          %t: {d}<1x{n}> = load %x[%p, %zero]
          %shaped: {d}<{shape}> = reshape %t
          %a: {d}<{shape}> = cluster_reduce sum %shaped
          %b: {d}<{shape}> = cluster_reduce max %shaped
          %c: {d}<{shape}> = sub %a, %b
          %r: {d}<1x{n}> = reshape %c
          store %out[%p, %zero], %r
          %rows: {d}<1> = reduce max axis 1 %t
          %row: {d} = reshape %rows
          %s: {d} = cluster_reduce sum %row
          %u: {d}<1> = broadcast %s
          store %one[%p], %u
          yield
        }}"
    ))
}

#[test]
fn tiles_of_every_kind() {
    for dtype in [DType::F32, DType::I32, DType::BF16, DType::I8, DType::I64] {
        for (cluster, shape) in
            [(2, &[1][..]), (4, &[8]), (8, &[64]), (2, &[1024]), (4, &[16, 32]), (2, &[2, 8, 16]), (1, &[64])]
        {
            let n: i64 = shape.iter().map(|&d| i64::from(d)).product();
            let k = exchange(cluster, dtype, shape);
            check(&k, 8, &[&[8, n], &[8, n], &[8]], 0.0);
        }
    }
}

/// A softmax over rows of which each program has a part, then each adds what its neighbour has stored.
fn softmax(cluster: u32, n: u32) -> Kernel {
    kernel(&format!(
        "kernel softmax(%x: view<f32,2>, %out: write view<f32,2>, %sums: write view<f32,2>) cluster {cluster} {{
          %p: i32 = program_id 0
          %size: i32 = const {cluster}
          %rank: i32 = rem %p, %size
          %group: i32 = div %p, %size
          %n: i32 = const {n}
          %at: i32 = mul %rank, %n
          %zero: i32 = const 0
          %one: i32 = const 1
          %three: i32 = const 3
          %next: i32 = add %rank, %one
          %right: i32 = rem %next, %size
          %there: i32 = mul %right, %n
          %first: i32 = mul %group, %three
          for %i: i32 = %zero to %three step %one {{
            %r: i32 = add %first, %i
            %t: f32<1x{n}> = load %x[%r, %at]
            %m: f32<1> = reduce max axis 1 %t
            %top: f32<1> = cluster_reduce max %m
            %top1: f32<1x1> = reshape %top
            %tops: f32<1x{n}> = broadcast %top1
            %d: f32<1x{n}> = sub %t, %tops
            %e: f32<1x{n}> = exp %d
            %s: f32<1> = reduce sum axis 1 %e
            %total: f32<1> = cluster_reduce sum %s
            %total1: f32<1x1> = reshape %total
            %totals: f32<1x{n}> = broadcast %total1
            %y: f32<1x{n}> = div %e, %totals
            store %out[%r, %at], %y
            %met: f32<1> = cluster_reduce sum %s
            %theirs: f32<1x{n}> = load %out[%r, %there]
            %both: f32<1x{n}> = add %y, %theirs
            store %sums[%r, %at], %both
            yield
          }}
          yield
        }}"
    ))
}

#[test]
fn several_exchanges_in_a_loop() {
    for (cluster, n) in [(2, 256), (4, 64), (8, 32)] {
        let c = i64::from(cluster * n);
        let made = check(&softmax(cluster, n), 2 * cluster, &[&[6, c], &[6, c], &[6, c]], 1e-5);
        // Three exchanges, and the end.
        assert_eq!(made.text.matches("barrier.cluster.arrive.release").count(), 4);
        assert_eq!((made.cluster, made.findings.len()), (cluster, 0), "{:?}", made.findings);
    }
}

/// Tiles of this shape combined four times, of which nothing is written before the last time; then each program overwrites
/// the row that its neighbour has read.
fn sent(cluster: u32, dtype: DType, shape: &[u32]) -> Kernel {
    let d = dtype.name();
    let n: u32 = shape.iter().product();
    let shape = shape.iter().map(u32::to_string).collect::<Vec<_>>().join("x");
    kernel(&format!(
        "kernel sent(%x: write view<{d},2>, %one: write view<{d},1>) cluster {cluster} {{
          %p: i32 = program_id 0
          %one_on: i32 = const 1
          %near: i32 = xor %p, %one_on
          %zero: i32 = const 0
          %t: {d}<1x{n}> = load %x[%near, %zero]
          %shaped: {d}<{shape}> = reshape %t
          %a: {d}<{shape}> = cluster_reduce sum %shaped
          %b: {d}<{shape}> = cluster_reduce max %shaped
          %c: {d}<{shape}> = sub %a, %b
          %e: {d}<{shape}> = cluster_reduce min %c
          %r: {d}<1x{n}> = reshape %e
          %rows: {d}<1> = reduce max axis 1 %t
          %row: {d} = reshape %rows
          %s: {d} = cluster_reduce sum %row
          %u: {d}<1> = broadcast %s
          store %x[%p, %zero], %r
          store %one[%p], %u
          yield
        }}"
    ))
}

const SENT: &str = "st.async.shared::cluster.mbarrier::complete_tx::bytes";

#[test]
fn small_tiles_are_sent_without_a_fence() {
    for dtype in [DType::F32, DType::I32, DType::I64] {
        for (cluster, shape) in [(2, &[1][..]), (4, &[8]), (8, &[64]), (2, &[128]), (4, &[4, 32]), (2, &[2, 8, 8])] {
            let n: i64 = shape.iter().map(|&d| i64::from(d)).product();
            let made = check(&sent(cluster, dtype, shape), 8, &[&[8, n], &[8]], 0.0);
            assert!(made.text.contains(SENT) && !made.text.contains("arrive.release"), "{}", made.text);
            // Of each thread a word that depends on what it has read.
            assert!(made.text.contains("st.shared.b32 [$0], $1;\", \"r,r,~{memory}\""), "{}", made.text);
            assert_eq!((made.cluster, made.findings.len()), (cluster, 0), "{:?}", made.findings);
        }
    }
}

/// Where others could tell the difference, or tiles are large, or of elements that cannot be sent, there is the barrier.
#[test]
fn what_must_not_be_sent() {
    let text = |k: &Kernel| llvm_text(k, Target { sm: 90 }).unwrap().text;
    assert!(text(&sent(2, DType::F32, &[256])).contains(SENT));
    for k in [sent(2, DType::F32, &[512]), sent(2, DType::BF16, &[8]), exchange(2, DType::F32, &[8]), softmax(2, 64)] {
        let text = text(&k);
        assert!(!text.contains(SENT) && text.contains("barrier.cluster.arrive.release"), "{}", k.name);
    }
    // A read of what is written later, where the exchange does not see its value.
    let nested = |param: &str| {
        kernel(&format!(
            "kernel nested(%x: view<f32,1>, %out: write view<f32,1>) cluster 2 {{
              %p: i32 = program_id 0
              %zero: i32 = const 0
              %n: i32 = dim 0 %x
              %one: i32 = const 1
              %none: f32<1> = const 0.0
              %sum: f32<1> = for %i: i32 = %zero to %n step %one carrying (%acc: f32<1> = %none) {{
                %t: f32<1> = load {param}[%i]
                %next: f32<1> = add %acc, %t
                yield %next
              }}
              %all: f32<1> = cluster_reduce sum %sum
              store %out[%p], %all
              yield
            }}"
        ))
    };
    assert!(text(&nested("%x")).contains(SENT));
    assert!(!text(&nested("%out")).contains(SENT));
}

/// Rows of a product whose inner dimension two programs share, `ending` after the loop or in it.
fn product(within: &str, after: &str) -> Kernel {
    kernel(&format!(
        "kernel product(%a: view<f16,2>, %b: view<f16,2>, %c: write view<f32,2>) warps 8 cluster 2 {{
          %zero: i32 = const 0
          %one: i32 = const 1
          %two: i32 = const 2
          %p: i32 = program_id 0
          %part: i32 = rem %p, %two
          %tile: i32 = div %p, %two
          %m: i32 = const 128
          %i: i32 = mul %tile, %m
          %step: i32 = const 64
          %depth: i32 = dim 1 %a
          %half: i32 = div %depth, %two
          %from: i32 = mul %part, %half
          %to: i32 = add %from, %half
          %none: f32<128x64> = const 0.0
          %own: f32<128x64> = for %k: i32 = %from to %to step %step carrying (%acc: f32<128x64> = %none) {{
            %x: f16<128x64> = load %a[%i, %k]
            %y: f16<64x64> = load %b[%zero, %k]
            %t: f16<64x64> = transpose [1, 0] %y
            %next: f32<128x64> = dot %x, %t, %acc
            {within}
          }}
          {after}
          %first: bool = eq %part, %zero
          if %first {{
            store %c[%i, %zero], %sum
            yield
          }} else {{
            yield
          }}
          yield
        }}"
    ))
}

/// The sums of a large tile are exchanged when all has been copied: the producer has left, and its rings are the buffers.
#[test]
fn large_tiles_are_exchanged_in_the_memory_of_rings() {
    let k = product("yield %next", "%sum: f32<128x64> = cluster_reduce sum %own");
    let made = check(&k, 4, &[&[256, 512], &[64, 512], &[256, 64]], 1e-2);
    assert!(made.text.contains("cp.async.bulk") && made.findings.is_empty(), "{:?}", made.findings);
    let alone = product("yield %next", "%sum: f32<128x64> = add %own, %own");
    let alone = llvm_text(&specialised(&alone, &[&[256, 512], &[64, 512], &[256, 64]]), Target { sm: 90 }).unwrap();
    assert_eq!(made.shared_bytes, alone.shared_bytes);
}

/// Exchanges among the products: no copies by a producer, which would not come to the barrier.
#[test]
fn products_run_ahead_without_a_producer() {
    let within = "%both: f32<128x64> = cluster_reduce max %next
                  yield %both";
    let k = product(within, "%sum: f32<128x64> = add %own, %own");
    let made = check(&k, 4, &[&[256, 256], &[64, 256], &[256, 64]], 1e-2);
    assert!(!made.text.contains("cp.async.bulk") && made.text.contains("cp.async"), "{:?}", made.findings);
    let found: Vec<_> = made.findings.iter().map(|f| (f.lint, &f.message[..])).collect();
    let why = "no bulk copies: the producer cannot come to where programs meet";
    assert!(found.contains(&(Lint::Fallback, why)), "{found:?}");
}

#[test]
fn clusters_need_hopper() {
    let mut k = exchange(2, DType::F32, &[8]);
    let error = llvm_text(&k, Target { sm: 80 }).unwrap_err().to_string();
    assert!(error.contains("exchange tiles on Hopper, and this is code for sm_80"), "{error}");
    k.options.cluster = 1;
    let made = llvm_text(&k, Target { sm: 80 }).unwrap();
    assert!(!made.text.contains("cluster"), "nobody to meet");
}
