//! Programs of a cluster that exchange tiles: in which order they are combined, what lies before what, and what is said
//! of programs that do not meet.

use super::*;
use crate::ir::parse;

/// A kernel of i32 values in clusters of `cluster` programs with this body; `%p` is the program, `%rank` its rank.
fn kernel(cluster: u32, body: &str) -> Kernel {
    let text = format!(
        "kernel k(%x: view<i32,1>, %out: write view<i32,1>) cluster {cluster} at \"k.rs\":1:1 {{
          %p: i32 = program_id 0
          %size: i32 = const {cluster}
          %rank: i32 = rem %p, %size
          %zero: i32 = const 0
          %one: i32 = const 1
          {body}
          yield
        }}"
    );
    parse(&text).unwrap_or_else(|e| panic!("{e}"))
}

/// Runs on x = 0, 1, 2 … and an output of as many numbers, which nobody has written.
fn run_kernel(kernel: &Kernel, programs: u32, order: Order) -> Result<Vec<i32>, Error> {
    let x = Arc::new(Buffer::from_bytes((0..16i32).flat_map(i32::to_le_bytes).collect::<Vec<_>>()));
    let out = Arc::new(Buffer::uninit(16 * 4));
    let args = [Arg::contiguous(&x, &[16]), Arg::contiguous(&out, &[16])];
    run_with(kernel, [programs, 1, 1], &args, &mut Options { order, ..Options::default() })?;
    Ok(i32_values(&out))
}

#[test]
fn all_get_the_combination_of_all() {
    for (cluster, order) in [(2, Order::Grid), (4, Order::Shuffled(7)), (8, Order::Grid), (1, Order::Grid)] {
        let k = kernel(
            cluster,
            "%t: i32<1> = load %x[%p]
             %sum: i32<1> = cluster_reduce sum %t
             %most: i32<1> = cluster_reduce max %t
             %both: i32<1> = mul %sum, %most
             store %out[%p], %both",
        );
        let first = |p: i32| p / cluster as i32 * cluster as i32;
        let members = |p: i32| first(p)..first(p) + cluster as i32;
        let want: Vec<i32> = (0..16).map(|p| members(p).sum::<i32>() * (members(p).end - 1)).collect();
        assert_eq!(run_kernel(&k, 16, order).unwrap(), want, "{cluster}");
    }
}

/// The first of the sums absorbs the 1.
#[test]
fn ranks_are_added_in_their_order() {
    let text = "kernel k(%x: view<f32,1>, %out: write view<f32,1>) cluster 4 {
      %p: i32 = program_id 0
      %t: f32<1> = load %x[%p]
      %s: f32<1> = cluster_reduce sum %t
      store %out[%p], %s
      yield
    }";
    let out = Arc::new(Buffer::uninit(16));
    let x = f32s(&[1., 1e9, -1e9, 3.]);
    run(&parse(text).unwrap(), [4, 1, 1], &[Arg::contiguous(&x, &[4]), Arg::contiguous(&out, &[4])]).unwrap();
    assert_eq!(f32_values(&out), [3.; 4]);
}

#[test]
fn what_others_did_before_is_there() {
    // Each reads what its neighbour has written, and in the next iteration overwrites what the other neighbour has
    // read.
    let passed_on = |between: &str| {
        let body = format!(
            "%four: i32 = const 4
             %next: i32 = add %rank, %one
             %right: i32 = rem %next, %size
             %first: i32 = sub %p, %rank
             %neighbour: i32 = add %first, %right
             %t: i32<1> = load %x[%p]
             %sum: i32<1> = for %i: i32 = %zero to %four step %one carrying (%s: i32<1> = %t) {{
               store %out[%p], %s
               %a: i32<1> = cluster_reduce max %s
               %u: i32<1> = load %out[%neighbour]
               %b: i32<1> = {between} %s
               %v: i32<1> = add %s, %u
               yield %v
             }}
             store %out[%p], %sum"
        );
        run_kernel(&kernel(4, &body), 16, Order::Grid)
    };
    let mut want: Vec<i32> = (0..16).collect();
    for _ in 0..4 {
        want = (0..16).map(|p| want[p] + want[p / 4 * 4 + (p + 1) % 4]).collect();
    }
    assert_eq!(passed_on("cluster_reduce max").unwrap(), want);
    let error = passed_on("abs").unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Race { .. }), "{error}");
}

#[test]
fn programs_that_do_not_meet_are_told() {
    let ends = kernel(
        2,
        "%t: i32<1> = load %x[%p]
         %even: bool = eq %rank, %zero
         if %even {
           %s: i32<1> = cluster_reduce sum %t at \"k.rs\":7:1
           yield
         } else {
           yield
         }",
    );
    let error = run_kernel(&ends, 2, Order::Grid).unwrap_err();
    assert_eq!((error.loc().line, error.program()), (7, Some([0, 0, 0])));
    let what = "the programs of a cluster do not meet: program (0, 0, 0) waits in `cluster_reduce` at k.rs:7:1, program \
                (1, 0, 0) has ended";
    assert_eq!(error.kind().to_string(), what);

    let elsewhere = kernel(
        2,
        "%t: i32<1> = load %x[%p]
         %even: bool = eq %rank, %zero
         %u: i32<1> = if %even {
           %s: i32<1> = cluster_reduce sum %t at \"k.rs\":7:1
           yield %s
         } else {
           %s: i32<1> = cluster_reduce sum %t at \"k.rs\":9:1
           yield %s
         }
         store %out[%p], %u",
    );
    let error = run_kernel(&elsewhere, 16, Order::Grid).unwrap_err();
    let what = "program (0, 0, 0) waits in `cluster_reduce` at k.rs:7:1, program (1, 0, 0) waits in `cluster_reduce` at \
                k.rs:9:1";
    assert!(error.to_string().ends_with(what), "{error}");

    let alone = kernel(2, "%s: i32 = cluster_reduce sum %p");
    let error = run_kernel(&alone, 3, Order::Grid).unwrap_err();
    assert!(error.to_string().contains("axis 0 is not a multiple of the clusters of 2"), "{error}");
}
