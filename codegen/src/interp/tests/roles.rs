//! Roles and channels: what they compute, and what is wrong with those that do not fit.

use super::*;
use crate::ir::parse;

/// A kernel of i32 values with these roles, over channels `%c` of 2 slots and `%d` of 1 slot; `%n` and `%m` are
/// parameters.
fn kernel(roles: &[&str]) -> Kernel {
    let mut text = "kernel k(%x: view<i32,1>, %out: write view<i32,1>, %n: i32, %m: i32) at \"k.rs\":1:1 {
      %zero: i32 = const 0
      %one: i32 = const 1
      %c: channel = channel 2 of (i32<4>, i32) at \"k.rs\":2:1
      %d: channel = channel 1 of (i32) at \"k.rs\":3:1
      roles"
        .to_owned();
    for role in roles {
        text += &format!(" role {{ {role} yield }}");
    }
    parse(&(text + " yield }")).unwrap_or_else(|e| panic!("{e}"))
}

fn run_kernel(kernel: &Kernel, n: i32, m: i32) -> Result<Vec<i32>, Error> {
    let x = Arc::new(Buffer::from_bytes((0..64i32).flat_map(i32::to_le_bytes).collect::<Vec<_>>()));
    let out = Arc::new(Buffer::from_bytes(vec![0xff; 64 * 4]));
    let scalar = |v: i32| Arg::scalar(I32, v as f64);
    run(kernel, [1, 1, 1], &[Arg::contiguous(&x, &[64]), Arg::contiguous(&out, &[64]), scalar(n), scalar(m)])?;
    Ok(i32_values(&out))
}

const SENDER: &str = "for %i: i32 = %zero to %n step %one {
  %t: i32<4> = load %x[%i]
  send %c, %t, %i at \"k.rs\":10:1
  yield
}";

const RECEIVER: &str = "%sum: i32 = for %j: i32 = %zero to %m step %one carrying (%s: i32 = %zero) {
  %slot: slot, %t: i32<4>, %i: i32 = receive %c at \"k.rs\":20:1
  %u: i32 = reduce sum axis 0 %t
  release %slot
  %v: i32 = mul %u, %i
  %w: i32 = add %s, %v
  yield %w
}
%r: i32<1> = broadcast %sum
store %out[%zero], %r";

#[test]
fn messages_come_in_order_and_whole() {
    let k = kernel(&[SENDER, RECEIVER]);
    for n in 0..7 {
        let want: i32 = (0..n).map(|i| i * (4 * i + 6)).sum();
        assert_eq!(run_kernel(&k, n, n).unwrap()[0], want, "{n} messages");
        let swapped = kernel(&[RECEIVER, SENDER]);
        assert_eq!(run_kernel(&swapped, n, n).unwrap()[0], want, "{n} messages, roles swapped");
    }
}

#[test]
fn what_is_left_and_what_is_missing_are_errors() {
    let k = kernel(&[SENDER, RECEIVER]);
    let error = run_kernel(&k, 5, 4).unwrap_err();
    assert_eq!((error.kind(), error.loc().line), (&ErrorKind::NotReceived(1), 2), "{error}");
    let error = run_kernel(&k, 4, 5).unwrap_err();
    let waits = "role 1 waits in `receive` at k.rs:20:1".to_owned();
    assert_eq!((error.kind(), error.loc().line), (&ErrorKind::Deadlock(waits), 20), "{error}");
    // As many as the slots hold, and one more.
    let error = run_kernel(&k, 4, 2).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::NotReceived(2), "{error}");
    let error = run_kernel(&k, 5, 2).unwrap_err();
    let waits = "role 0 waits in `send` at k.rs:10:1".to_owned();
    assert_eq!((error.kind(), error.loc().line), (&ErrorKind::Deadlock(waits), 10), "{error}");
}

/// Each waits for the other's message: the verifier cannot know whether the branches are taken.
#[test]
fn a_circle_is_a_deadlock() {
    let first = "%t: i32<4> = load %x[%zero]
      %yes: bool = gt %n, %zero
      if %yes { %s: slot, %v: i32 = receive %d at \"k.rs\":5:1 release %s yield } else { yield }
      send %c, %t, %n";
    let second = "%s: slot, %t: i32<4>, %i: i32 = receive %c at \"k.rs\":6:1
      release %s
      %yes: bool = gt %n, %zero
      if %yes { send %d, %n yield } else { yield }";
    let k = kernel(&[first, second]);
    run_kernel(&k, 0, 0).expect("no circle");
    let error = run_kernel(&k, 1, 0).unwrap_err();
    let waits = "role 0 waits in `receive` at k.rs:5:1, role 1 waits in `receive` at k.rs:6:1";
    assert_eq!(error.kind(), &ErrorKind::Deadlock(waits.to_owned()), "{error}");
}

/// Message 2 goes where message 0 was, whatever else has been released.
#[test]
fn a_ring_waits_for_its_oldest_slot() {
    let send = "%t: i32<4> = load %x[%zero]";
    let sends = format!("{send} for %i: i32 = %zero to %n step %one {{ send %c, %t, %i at \"k.rs\":7:1 yield }}");
    let receives = "%s0: slot, %t0: i32<4>, %i0: i32 = receive %c
      %s1: slot, %t1: i32<4>, %i1: i32 = receive %c
      release %s1
      %s2: slot, %t2: i32<4>, %i2: i32 = receive %c at \"k.rs\":8:1
      release %s0
      release %s2";
    let error = run_kernel(&kernel(&[&sends, receives]), 3, 0).unwrap_err();
    let waits = "role 0 waits in `send` at k.rs:7:1, role 1 waits in `receive` at k.rs:8:1";
    assert_eq!(error.kind(), &ErrorKind::Deadlock(waits.to_owned()), "{error}");
}

/// Values before the roles are seen by all; a received tile outlives its slot; each program has channels of its own.
#[test]
fn programs_and_values() {
    let text = "kernel k(%out: write view<i32,1>) {
      %p: i32 = program_id 0
      %q: i32 = mul %p, %p
      %c: channel = channel 1 of (i32)
      roles role { send %c, %q send %c, %p yield }
      role {
        %s: slot, %v: i32 = receive %c
        release %s
        %t: slot, %w: i32 = receive %c
        release %t
        %sum: i32 = add %v, %w
        %total: i32 = add %sum, %q
        %r: i32<1> = broadcast %total
        store %out[%p], %r
        yield
      }
      yield
    }";
    let out = Arc::new(Buffer::uninit(4 * 5));
    run(&parse(text).unwrap(), [5, 1, 1], &[Arg::contiguous(&out, &[5])]).unwrap();
    assert_eq!(i32_values(&out), (0..5).map(|p| 2 * p * p + p).collect::<Vec<_>>());
}

/// Nothing orders what two roles do to memory, nor a role and what every role does before.
#[test]
fn roles_race() {
    let store = "%t: i32<4> = load %x[%zero] store %out[%zero], %t at \"k.rs\":5:1";
    let load = "%u: i32<4> = load %out[%one] at \"k.rs\":6:1 print \"got\", %u";
    let racy = |first: &str, second: &str, line: u32, how: &'static str| {
        let error = run_kernel(&kernel(&[first, second]), 1, 1).unwrap_err();
        assert_eq!((error.kind(), error.loc().line), (&ErrorKind::RoleRace { how }, line), "{error}");
    };
    racy(store, load, 6, "writes");
    racy(load, store, 5, "reads");
    racy(store, store, 5, "writes");
    run_kernel(&kernel(&[store, "%t: i32<4> = load %x[%zero] store %out[%n], %t"]), 4, 0).expect("apart");
    // One role may do both.
    run_kernel(&kernel(&[&format!("{store} {load}"), ""]), 1, 1).expect("in order");
    let before = |roles: &str| {
        let text = format!(
            "kernel k(%x: view<i32,1>, %out: write view<i32,1>, %n: i32, %m: i32) {{
              %zero: i32 = const 0
              %t: i32<4> = load %out[%zero]
              roles {roles} yield }}"
        );
        run_kernel(&parse(&text).unwrap(), 0, 0)
    };
    let writes = "role { store %out[%zero], %t yield }";
    before(writes).expect("alone");
    let error = before(&format!("{writes} role {{ yield }}")).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::RoleRace { how: "reads" }, "{error}");
}
