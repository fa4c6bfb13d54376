//! Kernels in roles: they compute what the interpreter computes, with the copying warp, the slots and the registers that
//! their author asked for; what has no counterpart on a GPU is refused where it stands.

use super::differential::{compare_runs, general, specialised};
use super::simulate::Order;
use super::{Lowered, Target, llvm_text};
use crate::ir::{Kernel, Lint, parse, verify};

const ORDERS: [Order; 4] = [
    Order { backwards: false, early: false },
    Order { backwards: true, early: true },
    Order { backwards: false, early: true },
    Order { backwards: true, early: false },
];

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
        [(&special, 90, &ORDERS), (&special, 80, &ORDERS[..2]), (&general, 90, &ORDERS[..2])];
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

/// c = a·bᵀ, 128 × 64 at a time, 64 deep, with these roles.
fn product(copying: &str, computing: &str) -> Kernel {
    kernel(&format!(
        "{HEAD} %ch: channel = channel 3 of (f16<128x64>, f16<64x64>)
        roles role {copying} {{
          for %k: i32 = %zero to %depth step %step {{
            %p: f16<128x64> = load %a[%i, %k]
            %q: f16<64x64> = load %b[%j, %k]
            send %ch, %p, %q
            yield
          }}
          yield
        }} role {computing} {{
          %none: f32<128x64> = const 0.0
          %sum: f32<128x64> = for %k: i32 = %zero to %depth step %step carrying (%acc: f32<128x64> = %none) {{
            %slot: slot, %p: f16<128x64>, %q: f16<64x64> = receive %ch
            %t: f16<64x64> = transpose [1, 0] %q
            %next: f32<128x64> = dot %p, %t, %acc
            release %slot
            yield %next
          }}
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
    let both = "no registers move: the copying roles and the computing one must both say how many they take";
    assert_eq!(findings("registers 24", "warps 4"), (160, found(Lint::SetmaxnregIgnored, both)));
    let all = "no registers move: each thread has as many as it can have";
    assert_eq!(findings("registers 24", "warps 4 registers 240"), (160, found(Lint::SetmaxnregIgnored, all)));
}

/// A warpgroup that waits for registers that nobody gives away waits for ever.
#[test]
fn registers_that_there_are_not() {
    for (copying, computing) in [(48, 232), (40, 240), (176, 168), (24, 160)] {
        let k = product(&format!("warps 4 registers {copying}"), &format!("warps 8 registers {computing}"));
        let error = llvm_text(&specialised(&k, &SHAPES), Target { sm: 90 }).unwrap_err().to_string();
        assert!(error.contains(&format!("{copying} registers for a copying thread and {computing}")), "{error}");
        assert!(error.contains("each of 384 begins with 168"), "{error}");
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
          %end: i32 = for %t: i32 = %zero to %two step %one carrying (%row: i32 = %j) {{
            %last: i32 = for %k: i32 = %zero to %depth step %step carrying (%count: i32 = %one) {{
              %q: f16<64x64> = load %b[%row, %k]
              %f: f32 = cast %count
              send %right, %q, %f
              %more: i32 = add %count, %one
              yield %more
            }}
            %after: i32 = add %row, %n
            yield %after
          }}
          yield
        }}
        yield }}"
    ));
    check(&k, [2, 1, 1], &SHAPES);
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

/// What a copying role computes is computed all the same, elsewhere.
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
    let made = lowered(&k, &SHAPES);
    assert!(made.findings.iter().any(|f| f.message.contains("computed by the role that receives it")));
    let (special, general) = (specialised(&k, &SHAPES), general(&k));
    let runs: [(&Kernel, u32, &[Order]); 2] = [(&special, 90, &ORDERS), (&general, 80, &ORDERS[..1])];
    compare_runs(&runs, [2, 2, 1], &SHAPES, 1e-2);
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
    compare_runs(&[(&k, 90, &ORDERS[..1]), (&k, 80, &ORDERS[..1])], [1; 3], &[&[50], &[50]], 0.0);
}

#[test]
fn what_has_no_counterpart() {
    let error = |roles: &str, line: u32, rule: &str| {
        let text = format!(
            "kernel k(%x: view<f32,1>, %out: write view<f32,1>, %n: i32, %m: i32) {{
              %zero: i32 = const 0
              %one: i32 = const 1
              %some: bool = gt %n, %zero
              %t: f32<4> = const 1.0
              %c: channel = channel 2 of (f32<4>)
              %d: channel = channel 2 of (f32<4>)
              roles at \"k.rs\":1:1 {roles} yield }}"
        );
        for sm in [80, 90] {
            let error = llvm_text(&kernel(&text), Target { sm }).unwrap_err().to_string();
            assert!(error.contains(rule) && error.contains(&format!("`k` at k.rs:{line}:1")), "{error}");
        }
    };
    let receive =
        |c: &str, at: u32| format!("%s{at}: slot, %v{at}: f32<4> = receive {c} at \"k.rs\":{at}:1 release %s{at}");
    let send = |c: &str, at: u32| format!("send {c}, %t at \"k.rs\":{at}:1");
    let store = "store %out[%zero], %t";
    let role = |body: &str| format!("role {{ {body} yield }}");
    let times = |high: &str, at: u32, body: &str| {
        format!("for %i: i32 = %zero to {high} step %one at \"k.rs\":{at}:1 {{ {body} yield }}")
    };
    let two = role(&send("%c", 2)) + &role(&format!("{} {store}", receive("%c", 3))) + &role("store %out[%one], %t");
    error(&two, 1, "on a GPU one role computes; the others only load and send: here 2 roles do more");
    let back = role(&format!("{} {}", send("%c", 2), receive("%d", 3)))
        + &role(&format!("{} {}", receive("%c", 4), send("%d", 5)));
    error(&back, 1, "here 2 roles do more");
    let lonely = role(&send("%c", 2)) + &role(&format!("{} {}", receive("%c", 3), send("%d", 4)));
    // Somebody must receive it, and who does computes.
    let lonely = lonely.replace(&send("%d", 4), &times("%m", 5, &send("%d", 4)));
    error(&(lonely + &role(&times("%n", 6, &receive("%d", 7)))), 1, "here 2 roles do more");
    let other = role(&times("%n", 2, &send("%c", 3))) + &role(&times("%m", 4, &receive("%c", 5)));
    error(&other, 4, "the bounds of the loop at k.rs:2:1 are others");
    let flat = role(&format!("{} {}", send("%c", 2), send("%c", 3))) + &role(&times("2", 4, &receive("%c", 5)));
    let flat = flat.replace("to 2 step", "to %two step").replacen("role {", "role { %two: i32 = const 2", 2);
    error(&flat, 4, "`send` at k.rs:2:1 and `for` do not fit");
    let order = role(&format!("{} {}", send("%c", 2), send("%d", 3)))
        + &role(&format!("{} {}", receive("%d", 4), receive("%c", 5)));
    error(&order, 4, "what is sent at k.rs:2:1 goes through another channel");
    let maybe = |at: u32, body: &str| format!("if %some at \"k.rs\":{at}:1 {{ {body} yield }} else {{ yield }}");
    let branch = role(&send("%c", 2)) + &role(&maybe(3, &receive("%c", 4)));
    error(&branch, 3, "`send` at k.rs:2:1 and `if` do not fit");
    let fewer = role(&maybe(2, &format!("{} {}", send("%c", 3), send("%c", 4)))) + &role(&maybe(5, &receive("%c", 6)));
    error(&fewer, 4, "nothing is received for this");
    let more =
        role(&maybe(2, &send("%c", 3))) + &role(&maybe(4, &format!("{} {}", receive("%c", 5), receive("%c", 6))));
    error(&more, 6, "nothing is sent for this");
}

/// Where the tests have an assembler.
#[test]
#[cfg(feature = "llvm")]
fn a_product_in_roles_assembles() {
    let k = specialised(&product("warps 4 registers 40", "warps 8 registers 232"), &SHAPES);
    super::tests::check_both(&k, 255);
}
