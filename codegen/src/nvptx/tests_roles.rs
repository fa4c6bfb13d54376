//! Kernels in roles: they compute what the interpreter computes, with the copying warp, the slots and the registers that
//! their author asked for; what has no counterpart on a GPU is refused where it stands.

use super::differential::{compare_runs, general, specialised};
use super::simulate::Order;
use super::{Lowered, Target, llvm_text};
use crate::ir::{Kernel, Lint, parse, verify};

fn kernel(text: &str) -> Kernel {
    let k = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    verify(&k).unwrap_or_else(|e| panic!("{e}\n{text}"));
    k
}

fn lowered(k: &Kernel, shapes: &[&[i64]]) -> Lowered {
    llvm_text(&specialised(k, shapes), Target { sm: 90 }).unwrap_or_else(|e| panic!("{e}"))
}

/// For Hopper with bulk copies and products by warpgroups, and for any arguments and chip.
fn check(k: &Kernel, grid: [u32; 3], shapes: &[&[i64]]) -> Lowered {
    let special = specialised(k, shapes);
    let made = lowered(k, shapes);
    assert!(made.text.contains("wgmma.mma_async"), "{:?}", made.findings);
    assert!(made.text.contains("cp.async.bulk.tensor"), "{:?}", made.findings);
    let general = general(k);
    let runs: [(&Kernel, u32, &[Order]); 3] =
        [(&special, 90, &Order::ALL), (&special, 80, &Order::ALL[..2]), (&general, 90, &Order::ALL[..2])];
    compare_runs(&runs, grid, shapes, 1e-2);
    made
}

const HEAD: &str = "kernel product(%a: view<f16,2>, %b: view<f16,2>, %c: write view<f32,2>) {
  %zero: i32 = const 0
  %x: i32 = program_id 0
  %y: i32 = program_id 1
  %m: i32 = const 128
  %n: i32 = const 64
  %step: i32 = const 64
  %i: i32 = mul %x, %m
  %j: i32 = mul %y, %n
  %depth: i32 = dim 1 %a
  ";

/// Loads and sends blocks of a and b, to its end.
const COPYING: &str = "for %k: i32 = %zero to %depth step %step {
    %p: f16<128x64> = load %a[%i, %k]
    %q: f16<64x64> = load %b[%j, %k]
    send %ch, %p, %q
    yield
  }
  yield";

/// %sum of the products of what it receives.
const COMPUTING: &str = "%none: f32<128x64> = const 0.0
  %sum: f32<128x64> = for %k: i32 = %zero to %depth step %step carrying (%acc: f32<128x64> = %none) {
    %slot: slot, %p: f16<128x64>, %q: f16<64x64> = receive %ch
    %t: f16<64x64> = transpose [1, 0] %q
    %next: f32<128x64> = dot %p, %t, %acc
    release %slot
    yield %next
  }";

/// c = a·bᵀ, 128 × 64 at a time, 64 deep, with these roles.
fn product(copying: &str, computing: &str) -> Kernel {
    kernel(&format!(
        "{HEAD} %ch: channel = channel 3 of (f16<128x64>, f16<64x64>)
        roles role {copying} {{
          {COPYING}
        }} role {computing} {{
          {COMPUTING}
          store %c[%i, %j], %sum
          yield
        }}
        yield }}"
    ))
}

const SHAPES: [&[i64]; 3] = [&[200, 336], &[112, 336], &[200, 112]];

#[test]
fn a_product_in_roles() {
    let made = check(&product("warps 4 registers 40", "warps 8 registers 232"), [2, 2, 1], &SHAPES);
    assert_eq!(made.threads, 384);
    assert!(made.text.contains("setmaxnreg.dec.sync.aligned.u32 40;"));
    assert!(made.text.contains("setmaxnreg.inc.sync.aligned.u32 232;"));
    assert_eq!(made.findings, []);
    // Three buffers of both tiles.
    let (tiles, stages) = ((128 + 64) * 64 * 2, 3);
    assert!((stages * tiles..(stages + 1) * tiles).contains(&(made.shared_bytes as usize)), "{}", made.shared_bytes);
}

#[test]
fn warps_and_registers_that_cannot_be_had() {
    let findings = |copying: &str, computing: &str| {
        let made = check(&product(copying, computing), [2, 2, 1], &SHAPES);
        let found: Vec<_> = made.findings.into_iter().map(|f| (f.lint, f.message)).collect();
        (made.threads, found)
    };
    let found = |lint, text: &str| vec![(lint, text.to_owned())];
    assert_eq!(findings("warps 1", "warps 8"), (288, vec![]));
    assert_eq!(findings("", ""), (160, vec![]));
    let whole = "registers move between whole warpgroups: 4 warps are launched for the copying roles, not 1";
    assert_eq!(findings("warps 1 registers 24", "warps 8 registers 240"), (384, found(Lint::Fallback, whole)));
    let one = "one warp is launched for the copying roles, not 2";
    assert_eq!(findings("warps 2", "warps 4"), (160, found(Lint::Fallback, one)));
    let both = "no registers move: every role must say how many its threads take";
    assert_eq!(findings("registers 24", "warps 4"), (160, found(Lint::SetmaxnregIgnored, both)));
    let all = "no registers move: each thread has as many as it can have";
    assert_eq!(findings("registers 24", "warps 4 registers 240"), (160, found(Lint::SetmaxnregIgnored, all)));
}

/// A warpgroup that waits for registers that nobody gives away waits for ever.
#[test]
fn registers_that_there_are_not() {
    for (copying, computing) in [(48, 232), (40, 240), (176, 168)] {
        let k = product(&format!("warps 4 registers {copying}"), &format!("warps 8 registers {computing}"));
        let error = llvm_text(&specialised(&k, &SHAPES), Target { sm: 90 }).unwrap_err().to_string();
        let all = 128 * copying + 256 * computing;
        let asked = format!("{copying} and {computing} registers a thread are {all} in all");
        assert!(error.contains(&asked) && error.contains("384 threads that begin with 168 have 64512"), "{error}");
    }
}

/// Several tiles of the result one after the other, each operand through a channel of its own from a role of its own, of
/// which one keeps count in a variable; numbers are sent, too.
#[test]
fn nested_loops_and_several_copying_roles() {
    let k = kernel(&format!(
        "{HEAD} %one: i32 = const 1
        %two: i32 = const 2
        %left: channel = channel 2 of (f16<128x64>)
        %right: channel = channel 4 of (f16<64x64>, f32)
        roles role {{
          for %t: i32 = %zero to %two step %one {{
            %d: i32 = dim 1 %a
            for %k: i32 = %zero to %d step %step {{
              %p: f16<128x64> = load %a[%i, %k]
              send %left, %p
              yield
            }}
            yield
          }}
          yield
        }} role warps 8 {{
          for %t: i32 = %zero to %two step %one {{
            %none: f32<128x64> = const 0.0
            %scale: f32 = const 0.0
            %sum: f32<128x64>, %s: f32 = for %k: i32 = %zero to %depth step %step carrying (%acc: f32<128x64> = %none, %s0: f32 = %scale) {{
              %slot: slot, %p: f16<128x64> = receive %left
              %other: slot, %q: f16<64x64>, %f: f32 = receive %right
              %u: f16<64x64> = transpose [1, 0] %q
              %next: f32<128x64> = dot %p, %u, %acc
              release %other
              release %slot
              %s1: f32 = add %s0, %f
              yield %next, %s1
            }}
            %row: i32 = mul %t, %n
            %at: i32 = add %j, %row
            %s2: f32<128x64> = broadcast %s
            %scaled: f32<128x64> = mul %sum, %s2
            store %c[%i, %at], %scaled
            yield
          }}
          yield
        }} role {{
          %end: i32 = for %t: i32 = %zero to %two step %one carrying (%start: i32 = %one) {{
            %down: i32 = mul %t, %n
            %row: i32 = add %j, %down
            %last: i32 = for %k: i32 = %zero to %depth step %step carrying (%count: i32 = %start) {{
              %q: f16<64x64> = load %b[%row, %k]
              %f: f32 = cast %count
              send %right, %q, %f
              %more: i32 = add %count, %one
              yield %more
            }}
            yield %last
          }}
          yield
        }}
        yield }}"
    ));
    check(&k, [2, 1, 1], &SHAPES);
    // The fewer slots of the two.
    let parts = crate::passes::roles::divide(&k, false).expect("it has roles").parts;
    assert!(parts.len() == 1 && parts[0].kernel.to_string().contains("stages 2 carrying"), "{}", parts[0].kernel);
}

/// One tile goes before the loop, through a branch that both take.
#[test]
fn messages_outside_of_loops() {
    let k = kernel(&format!(
        "{HEAD} %first: channel = channel 1 of (f16<128x64>)
        %rest: channel = channel 4 of (f16<64x64>)
        %some: bool = gt %depth, %zero
        roles role warps 1 {{
          %p: f16<128x64> = load %a[%i, %zero]
          send %first, %p
          if %some {{
            for %k: i32 = %zero to %depth step %step {{
              %q: f16<64x64> = load %b[%k, %j]
              send %rest, %q
              yield
            }}
            yield
          }} else {{ yield }}
          yield
        }} role warps 4 {{
          %slot: slot, %p: f16<128x64> = receive %first
          %none: f32<128x64> = const 0.0
          %sum: f32<128x64> = if %some {{
            %all: f32<128x64> = for %k: i32 = %zero to %depth step %step carrying (%acc: f32<128x64> = %none) {{
              %other: slot, %q: f16<64x64> = receive %rest
              %next: f32<128x64> = dot %p, %q, %acc
              release %other
              yield %next
            }}
            yield %all
          }} else {{ yield %none }}
          release %slot
          store %c[%i, %j], %sum
          yield
        }}
        yield }}"
    ));
    check(&k, [2, 2, 1], &SHAPES);
}

/// Work stays in its role on Hopper; elsewhere it moves to the role that computes, and that is said.
#[test]
fn computed_messages() {
    let mut text = product("warps 1", "warps 8").to_string();
    let loads = text.find("    send ").expect("a message is sent");
    let names: Vec<&str> = text[loads..].split([' ', ',', '\n']).filter(|w| w.starts_with('%')).take(3).collect();
    let [channel, p, q] = names[..] else { panic!("{names:?}") };
    let line = format!("send {channel}, {p}, {q}");
    let twice = format!("%twice: f16<64x64> = add {q}, {q}\n send {channel}, {p}, %twice");
    text = text.replacen(&line, &twice, 1);
    let k = kernel(&text);
    assert_eq!(lowered(&k, &SHAPES).threads, 128 + 256);
    on_hopper(&k, [2, 2, 1], &SHAPES);
    let found = llvm_text(&k, Target { sm: 80 }).unwrap().findings;
    assert!(found.iter().any(|f| f.message.contains("computed by the role that receives it")), "{found:?}");
    compare_runs(&[(&k, 80, &Order::ALL[..1])], [2, 2, 1], &SHAPES, 1e-2);
}

/// Without roles that copy, a role is the kernel.
#[test]
fn one_role() {
    let k = kernel(
        "kernel alone(%x: view<f32,1>, %out: write view<f32,1>) {
          %zero: i32 = const 0
          roles role warps 2 {
            %t: f32<64> = load %x[%zero]
            %u: f32<64> = add %t, %t
            store %out[%zero], %u
            yield
          }
          yield }",
    );
    assert_eq!(lowered(&k, &[&[50], &[50]]).threads, 64);
    compare_runs(&[(&k, 90, &Order::ALL[..1]), (&k, 80, &Order::ALL[..1])], [1; 3], &[&[50], &[50]], 0.0);
}

/// Runs on Hopper as the interpreter does, in all orders.
fn on_hopper(k: &Kernel, grid: [u32; 3], shapes: &[&[i64]]) {
    let (special, general) = (specialised(k, shapes), general(k));
    compare_runs(&[(&special, 90, &Order::ALL), (&general, 90, &Order::ALL)], grid, shapes, 1e-2);
}

/// What makes a role that loads and sends one of those that compute, with the rule and where it is broken: refused where
/// only one may compute; on Hopper it runs all the same.
#[test]
fn roles_that_do_not_copy() {
    let check = |roles: &str, line: u32, rule: &str| {
        let text = format!(
            "kernel k(%x: view<f32,1>, %out: write view<f32,1>) {{
              %zero: i32 = const 0
              %one: i32 = const 1
              %two: i32 = const 2
              %n: i32 = dim 0 %x
              %m: i32 = dim 0 %out
              %some: bool = gt %n, %zero
              %t: f32<4> = load %x[%two]
              %c: channel = channel 2 of (f32<4>)
              %d: channel = channel 2 of (f32<4>)
              roles at \"k.rs\":1:1 {roles} yield }}"
        );
        let k = kernel(&text);
        let error = llvm_text(&k, Target { sm: 80 }).unwrap_err().to_string();
        assert!(error.contains("before Hopper one role computes, and the others only load and send"), "{error}");
        assert!(error.contains(rule) && error.contains(&format!("`k` at k.rs:{line}:1")), "{error}");
        let found = llvm_text(&k, Target { sm: 90 }).unwrap().findings;
        let said = found.iter().any(|f| f.message.contains(rule) && f.place == format!("k.rs:{line}:1"));
        assert!(said || line == 1, "{found:?}");
        on_hopper(&k, [1; 3], &[&[40], &[40]]);
    };
    let receive = |c: &str, at: u32| {
        format!(
            "%s{at}: slot, %v{at}: f32<4> = receive {c} at \"k.rs\":{at}:1 store %out[%zero], %v{at} release %s{at}"
        )
    };
    let send = |c: &str, at: u32| format!("send {c}, %t at \"k.rs\":{at}:1");
    let role = |body: &str| format!("role warps 1 {{ {body} yield }}");
    let times = |high: &str, at: u32, body: &str| {
        format!("for %i: i32 = %zero to {high} step %one at \"k.rs\":{at}:1 {{ {body} yield }}")
    };
    let two = role(&send("%c", 2)) + &role(&receive("%c", 3)) + &role("store %out[%two], %t");
    check(&two.replace("%out[%zero], %v3", "%out[%m], %v3"), 1, "here 2 roles do more");
    let back = role(&format!("{} {}", send("%c", 2), receive("%d", 3)))
        + &role(&format!("%s: slot, %v: f32<4> = receive %c release %s {}", send("%d", 5)));
    check(&back, 1, "here 2 roles do more");
    let other = role(&times("%n", 2, &send("%c", 3))) + &role(&times("%m", 4, &receive("%c", 5)));
    check(&other, 4, "the bounds of the loop at k.rs:2:1 are others");
    let flat = role(&format!("{} {}", send("%c", 2), send("%c", 3))) + &role(&times("%two", 4, &receive("%c", 5)));
    check(&flat, 4, "`send` at k.rs:2:1 and `for` do not fit");
    let order = role(&format!("{} {}", send("%c", 2), send("%d", 3)))
        + &role(&format!("{} {}", receive("%d", 4), receive("%c", 5)));
    check(&order, 4, "what is sent at k.rs:2:1 goes through another channel");
    let maybe = |at: u32, body: &str| format!("if %some at \"k.rs\":{at}:1 {{ {body} yield }} else {{ yield }}");
    let branch = role(&send("%c", 2)) + &role(&maybe(3, &receive("%c", 4)));
    check(&branch, 3, "`send` at k.rs:2:1 and `if` do not fit");
    let fewer = role(&maybe(2, &send("%c", 3)))
        + &role(&format!("{} {}", maybe(4, &receive("%c", 5)), times("%zero", 6, &receive("%c", 7))));
    check(&fewer, 6, "nothing is sent for this");
    let more = role(&format!("{} {}", maybe(2, &send("%c", 3)), times("%zero", 4, &send("%c", 5))))
        + &role(&maybe(6, &receive("%c", 7)));
    check(&more, 4, "nothing is received for this");
}

/// The product of one role goes to another, which adds a row that a third has summed up, and stores.
#[test]
fn a_product_and_what_becomes_of_it() {
    let k = kernel(&format!(
        "{HEAD} %ch: channel = channel 3 of (f16<128x64>, f16<64x64>)
        %sums: channel = channel 1 of (f32<128x64>)
        %rows: channel = channel 2 of (f32<64>, i32)
        roles role warps 1 {{
          {COPYING}
        }} role warps 8 {{
          {COMPUTING}
          send %sums, %sum
          yield
        }} role warps 2 {{
          %q: f16<64x64> = load %b[%j, %zero]
          %w: f32<64x64> = cast %q
          %row: f32<64> = reduce sum axis 1 %w
          send %rows, %row, %j
          yield
        }} role warps 4 {{
          %s: slot, %row: f32<64>, %at: i32 = receive %rows
          %u: slot, %sum: f32<128x64> = receive %sums
          %r: f32<1x64> = reshape %row
          %all: f32<128x64> = broadcast %r
          %added: f32<128x64> = add %sum, %all
          release %u
          release %s
          store %c[%i, %at], %added
          yield
        }}
        yield }}"
    ));
    let made = lowered(&k, &SHAPES);
    assert!(made.text.contains("wgmma.mma_async") && made.text.contains("cp.async.bulk.tensor"));
    // Eight warps and the copying one's, filled up to a warpgroup; two, filled up; four.
    assert_eq!(made.threads, 3 * 128 + 128 + 128);
    on_hopper(&k, [2, 2, 1], &SHAPES);
}

/// Registers move between all warpgroups, each to the number that its author wants, or from it.
#[test]
#[cfg(feature = "llvm")]
fn registers_of_several_roles() {
    let k = kernel(&format!(
        "{HEAD} %ch: channel = channel 3 of (f16<128x64>, f16<64x64>)
        %sums: channel = channel 1 of (f32<128x64>)
        roles role warps 4 registers 24 {{
          {COPYING}
        }} role warps 8 registers 168 {{
          {COMPUTING}
          send %sums, %sum
          yield
        }} role warps 4 registers 128 {{
          %u: slot, %sum: f32<128x64> = receive %sums
          release %u
          store %c[%i, %j], %sum
          yield
        }}
        yield }}"
    ));
    let made = lowered(&k, &SHAPES);
    assert_eq!(made.threads, 512);
    let moves: Vec<&str> = made.text.split("setmaxnreg.").skip(1).map(|s| s.split(';').next().unwrap_or("")).collect();
    // All begin with 128, and so the last role stays as it is.
    assert_eq!(moves, ["dec.sync.aligned.u32 24", "inc.sync.aligned.u32 168"]);
    on_hopper(&k, [2, 2, 1], &SHAPES);
    super::tests::assembles(&specialised(&k, &SHAPES), 90);
}

/// One role loads for two that compute, each half of the columns, and each has a copying warp of its own.
#[test]
fn two_products_side_by_side() {
    let computing = |channel: &str, at: &str| {
        format!(
            "role warps 4 {{
              %none: f32<128x64> = const 0.0
              %sum: f32<128x64> = for %k: i32 = %zero to %depth step %step carrying (%acc: f32<128x64> = %none) {{
                %slot: slot, %p: f16<128x64>, %q: f16<64x64> = receive {channel}
                %t: f16<64x64> = transpose [1, 0] %q
                %next: f32<128x64> = dot %p, %t, %acc
                release %slot
                yield %next
              }}
              store %c[%i, {at}], %sum
              yield
            }} "
        )
    };
    let k = kernel(&format!(
        "{HEAD} %left: channel = channel 2 of (f16<128x64>, f16<64x64>)
        %right: channel = channel 3 of (f16<128x64>, f16<64x64>)
        %j2: i32 = add %j, %n
        roles role warps 1 {{
          for %k: i32 = %zero to %depth step %step {{
            %p: f16<128x64> = load %a[%i, %k]
            %q: f16<64x64> = load %b[%j, %k]
            %r: f16<64x64> = load %b[%j2, %k]
            send %left, %p, %q
            send %right, %p, %r
            yield
          }}
          yield
        }} {}{} yield }}",
        computing("%left", "%j"),
        computing("%right", "%j2")
    ));
    let made = lowered(&k, &SHAPES);
    assert_eq!(made.threads, 256 + 160);
    assert_eq!(made.text.matches("cp.async.bulk.tensor").count(), 4);
    on_hopper(&k, [2, 1, 1], &SHAPES);
    #[cfg(feature = "llvm")]
    super::tests::assembles(&specialised(&k, &SHAPES), 90);
}

/// A role that loads only when it is asked to: what it sends is written to slots by its threads, and products read it from
/// there.
#[test]
fn operands_on_request() {
    let k = kernel(&format!(
        "{HEAD} %wanted: channel = channel 2 of ()
        %ch: channel = channel 2 of (f16<128x64>, f16<64x64>)
        roles role warps 4 {{
          for %k: i32 = %zero to %depth step %step {{
            %go: slot = receive %wanted
            release %go
            %p: f16<128x64> = load %a[%i, %k]
            %q: f16<64x64> = load %b[%j, %k]
            send %ch, %p, %q
            yield
          }}
          yield
        }} role warps 4 {{
          %none: f32<128x64> = const 0.0
          %sum: f32<128x64> = for %k: i32 = %zero to %depth step %step carrying (%acc: f32<128x64> = %none) {{
            send %wanted
            %slot: slot, %p: f16<128x64>, %q: f16<64x64> = receive %ch
            release %slot
            %t: f16<64x64> = transpose [1, 0] %q
            %next: f32<128x64> = dot %p, %t, %acc
            yield %next
          }}
          store %c[%i, %j], %sum
          yield
        }}
        yield }}"
    ));
    let found = lowered(&k, &SHAPES).findings;
    assert!(found.iter().any(|f| f.message.starts_with("a product reads a copy of this tile")), "{found:?}");
    on_hopper(&k, [2, 2, 1], &SHAPES);
}

/// Tiles of every size of element and several ranks, through slots released out of order.
#[test]
fn messages_of_many_kinds() {
    for (dtype, other) in [("f32", "i64"), ("bf16", "u8"), ("i8", "bool"), ("f8e4m3", "u16")] {
        let k = kernel(&format!(
            "kernel kinds(%x: view<{dtype},2>, %y: view<{other},1>, %out: write view<{dtype},2>, %second: write view<{other},1>) {{
              %zero: i32 = const 0
              %four: i32 = const 4
              %eight: i32 = const 8
              %rows: i32 = const 24
              %c: channel = channel 3 of ({dtype}<8x32>, {dtype}<32x8>, {other}<16>, {other}<2x2x4>, {other}, i32)
              roles role warps 4 {{
                for %i: i32 = %zero to %rows step %eight {{
                  %t: {dtype}<8x32> = load %x[%i, %zero]
                  %u: {dtype}<32x8> = transpose [1, 0] %t
                  %v: {other}<16> = load %y[%i]
                  %w: {other}<2x2x4> = reshape %v
                  %first: {other}<1> = load %y[%i]
                  %s: {other} = reshape %first
                  send %c, %t, %u, %v, %w, %s, %i
                  yield
                }}
                print \"done\"
                yield
              }} role warps 2 {{
                %s0: slot, %a0: {dtype}<8x32>, %b0: {dtype}<32x8>, %c0: {other}<16>, %d0: {other}<2x2x4>, %e0: {other}, %i0: i32 = receive %c
                %s1: slot, %a1: {dtype}<8x32>, %b1: {dtype}<32x8>, %c1: {other}<16>, %d1: {other}<2x2x4>, %e1: {other}, %i1: i32 = receive %c
                release %s1
                %s2: slot, %a2: {dtype}<8x32>, %b2: {dtype}<32x8>, %c2: {other}<16>, %d2: {other}<2x2x4>, %e2: {other}, %i2: i32 = receive %c
                release %s0
                %turned: {dtype}<8x32> = transpose [1, 0] %b1
                store %out[%i0, %zero], %a0
                store %out[%i1, %zero], %turned
                store %out[%i2, %zero], %a2
                %flat: {other}<16> = reshape %d0
                store %second[%zero], %flat
                %sixteen: i32 = const 16
                store %second[%sixteen], %c1
                %thirty: i32 = const 32
                %last: {other}<4> = broadcast %e2
                store %second[%thirty], %last
                release %s2
                yield
              }}
              yield }}"
        ));
        on_hopper(&k, [1; 3], &[&[24, 32], &[40], &[24, 32], &[36]]);
    }
}

#[test]
fn more_roles_than_there_can_be() {
    let role = "role warps 8 { store %out[%zero], %t yield } ";
    let made = |roles: usize| {
        let text = format!(
            "kernel k(%out: write view<f32,1>) {{
              %zero: i32 = const 0
              %t: f32<4> = const 1.0
              roles at \"k.rs\":1:1 {} yield }}",
            role.repeat(roles)
        );
        llvm_text(&kernel(&text), Target { sm: 90 }).map(|l| l.threads).map_err(|e| e.to_string())
    };
    assert_eq!(made(4), Ok(1024));
    assert_eq!(made(5), Err("kernel `k` at k.rs:1:1: 1280 threads in all roles: a program can have 1024".into()));
    assert_eq!(made(6), Err("kernel `k` at k.rs:1:1: 6 computing roles: a program can have 5".into()));
}

/// Where the tests have an assembler; the second is the one of the example.
#[test]
#[cfg(feature = "llvm")]
fn products_in_roles_assemble() {
    let k = specialised(&product("warps 4 registers 40", "warps 8 registers 232"), &SHAPES);
    super::tests::check_both(&k, 255);
    let text = product("warps 4 registers 40", "warps 8 registers 232").to_string();
    let wide = text.replace("f16<64x64>", "f16<256x64>").replace("channel 3", "channel 4");
    let wide = wide.replace("f32<128x64>", "f32<128x256>");
    let k = kernel(&wide.replacen(": f16<256x64> = transpose", ": f16<64x256> = transpose", 1));
    let k = specialised(&k, &[&[256, 512], &[512, 512], &[256, 512]]);
    super::tests::assembles(&k, 90);
    let made = llvm_text(&k, Target { sm: 90 }).unwrap();
    assert_eq!((made.threads, made.findings), (384, vec![]));
    assert!(made.shared_bytes >= 4 * (128 + 256) * 64 * 2, "{}", made.shared_bytes);
}
