//! The shipped model on its kernels against the stored results of another implementation (`kimi verify`).

use kimi::engine::{self, Device, Want};
use kimi::golden::Golden;
use kimi::verify::{Options, verify};
use std::path::Path;

fn check(device: Device, options: Options) {
    let mut engine = engine::open(&kimi::shipped_model(), device, &mut |_, _| {}).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/kimi-tiny");
    let golden = Golden::open(&folder, engine.config()).unwrap();
    let mut printed = vec![];
    let report = verify(&mut *engine, &golden, options, &mut printed).unwrap();
    let printed = String::from_utf8_lossy(&printed);
    println!("{printed}");
    assert!(report.checks > 0 && report.failures.is_empty(), "{:#?}\n{printed}", report.failures);
}

#[test]
fn the_interpreter_agrees_on_the_short_prompts() {
    check(Device::Interpret, Options { longest_prompt: 17, greedy_tokens: 8, held_out: false });
}

#[test]
fn the_cpu_agrees_on_everything() {
    check(Device::Cpu, Options { longest_prompt: usize::MAX, greedy_tokens: 64, held_out: true });
}

/// However a sequence is cut, and whoever else is there, its logits are the same up to rounding.
#[test]
fn sessions_are_independent_and_pieces_equal_the_whole() {
    let mut engine = engine::open(&kimi::shipped_model(), Device::Cpu, &mut |_, _| {}).unwrap();
    let ids: Vec<u32> = (0..75).map(|i| (i * 37 + 11) % 3840).collect();
    let whole = engine.open_session().unwrap();
    let expected = engine.append(whole, &ids, Want::Last).unwrap();
    for piece in [1, 3, 16, 64, 74] {
        let (session, other) = (engine.open_session().unwrap(), engine.open_session().unwrap());
        let mut got = vec![];
        for ids in ids.chunks(piece) {
            got = engine.append(session, ids, Want::Last).unwrap();
            engine.append(other, &[7, 8, 9], Want::Nothing).unwrap();
        }
        let error = kimi::reference::relative_error(&got, &expected);
        assert!(error < 1e-5, "pieces of {piece}: {error:e}");
    }
}
