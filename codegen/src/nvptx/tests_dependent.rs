//! What a kernel does before the launch before it has ended: loads from settled memory, and nothing else. (The simulator
//! watches every thread.)

use super::differential::{compare_runs, specialised};
use super::simulate::Order;
use super::{Lowered, Target, llvm_text};
use crate::ir::{Kernel, parse, verify};

const WAIT: &str = "griddepcontrol.wait";
const ALLOW: &str = "griddepcontrol.launch_dependents";

/// Runs the kernel on 64 elements a parameter, and returns its text for Hopper.
fn check(text: &str) -> Lowered {
    let k: Kernel = parse(text).unwrap();
    verify(&k).unwrap_or_else(|e| panic!("{e}"));
    let shapes = vec![&[64][..]; k.params.len()];
    let special = specialised(&k, &shapes);
    compare_runs(&[(&special, 80, &Order::ALL[..2]), (&special, 90, &Order::ALL[..2])], [1; 3], &shapes, 1e-6);
    assert!(!llvm_text(&special, Target { sm: 80 }).unwrap().text.contains("griddepcontrol"));
    llvm_text(&special, Target { sm: 90 }).unwrap()
}

/// How many loads and stores of global memory stand before the first such text, and how many in all.
fn accesses(made: &Lowered, text: &str) -> (usize, usize) {
    let count = |part: &str| part.matches("ld.global").count() + part.matches("st.global").count();
    let (before, _) = made.text.split_once(text).unwrap_or_else(|| panic!("no {text}"));
    (count(before), count(&made.text))
}

fn sum(first: &str, second: &str) -> String {
    format!(
        "kernel sum(%a: {first}view<f32,1>, %b: {second}view<f32,1>, %out: write view<f32,1>) warps 1 {{
          %zero: i32 = const 0
          %x: f32<32> = load %a[%zero]
          %y: f32<32> = load %b[%zero]
          %z: f32<32> = add %x, %y
          store %out[%zero], %z
          yield
        }}"
    )
}

#[test]
fn settled_memory_is_loaded_before_the_wait() {
    let made = check(&sum("settled ", ""));
    assert_eq!(accesses(&made, WAIT), (1, 3));
    assert_eq!(accesses(&made, ALLOW), (1, 3), "allowed as soon as it has waited");
    assert_eq!(made.settled, [true, false, false]);
    // In the order of the author: nothing is moved.
    assert_eq!(accesses(&check(&sum("", "settled ")), WAIT), (0, 3));
    let all = check(&sum("settled ", "settled "));
    assert_eq!((accesses(&all, WAIT), &all.settled[..]), ((2, 3), &[true, true, false][..]));
}

#[test]
fn a_kernel_without_waits_first_and_lets_nobody_begin() {
    let made = check(&sum("", ""));
    assert_eq!(accesses(&made, WAIT), (0, 3));
    assert!(!made.text.contains(ALLOW) && made.settled.is_empty());
}

/// Also what is settled is written afterwards only; a loop waits as a whole.
#[test]
fn loops_and_stores_wait() {
    let made = check(
        "kernel shift(%a: settled view<f32,1>, %b: view<f32,1>, %c: write settled view<f32,1>) warps 1 {
          %zero: i32 = const 0
          %step: i32 = const 32
          %end: i32 = const 64
          %first: f32<32> = load %c[%zero]
          %all: f32<32> = for %i: i32 = %zero to %end step %step carrying (%sum: f32<32> = %first) {
            %x: f32<32> = load %a[%i]
            %y: f32<32> = load %b[%i]
            %z: f32<32> = fma %x, %y, %sum
            yield %z
          }
          store %c[%zero], %all
          yield
        }",
    );
    assert_eq!(accesses(&made, WAIT).0, 1);
    let stores = check(
        "kernel stores(%c: write settled view<f32,1>) warps 1 {
          %zero: i32 = const 0
          %one: f32<32> = const 1.0
          store %c[%zero], %one
          yield
        }",
    );
    assert_eq!(accesses(&stores, WAIT), (0, 1));
}

/// A kernel that only loads, and uses nothing of it, waits at its end: the next one relies on that.
#[test]
fn the_end_waits() {
    check("kernel nothing(%a: settled view<f32,1>) warps 1 { yield }");
}

/// Who waits for signals does nothing before.
#[test]
fn signals_are_waited_for_afterwards() {
    let k = parse(
        "kernel late(%a: settled view<f32,1>, %ready: write view<i32,1>, %out: write view<f32,1>) warps 1 {
          %zero: i32 = const 0
          %one: i32 = const 1
          %x: f32<32> = load %a[%zero]
          wait %ready[%zero], %one
          store %out[%zero], %x
          yield
        }",
    )
    .unwrap();
    let made = llvm_text(&k, Target { sm: 90 }).unwrap();
    assert_eq!(accesses(&made, WAIT).0, 0);
    assert!(made.settled.is_empty());
}
