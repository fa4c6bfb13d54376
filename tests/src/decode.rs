//! Decoding by [`Engine::step`], whose launches a GPU records and replays, beside decoding by calls each of which is
//! launched anew.

use anyhow::ensure;
use kimi::engine::{Engine, SessionId, Want};
use kimi::sampling::Sampling;

/// Tokens that nobody picked, appended half-way.
const FOREIGN: usize = 6;

/// Other parameters at every step.
fn sampling(step: usize) -> Sampling {
    let base = Sampling { temperature: 0.8, seed: 7 + (step / 3) as u64, ..Sampling::default() };
    match step % 5 {
        0 => Sampling::greedy(),
        1 => base,
        2 => Sampling { top_k: 20, ..base },
        3 => Sampling { top_p: 0.9, temperature: 1.3, ..base },
        _ => Sampling { min_p: 0.05, ..base },
    }
}

/// Gives two sessions the same prompt; one goes on by steps, the other by `sample` and `append`. They must pick the same
/// tokens and have the same logits after each, and the same states at the end, bit for bit. Half-way both are given
/// some more tokens. Returns how many graphs the steps captured.
///
/// # Errors
/// If the two differ, saying where; if the engine fails.
pub fn steps_are_appends(engine: &mut dyn Engine, prompt: usize, steps: usize) -> anyhow::Result<u64> {
    let vocabulary = engine.config().vocab_size;
    let ids =
        |first: usize, n: usize| -> Vec<u32> { (first..first + n).map(|i| (i * 7919 % vocabulary) as u32).collect() };
    let (by_step, by_append) = (engine.open_session()?, engine.open_session()?);
    for session in [by_step, by_append] {
        engine.append(session, &ids(0, prompt), Want::Nothing)?;
    }
    let before = kiln::captures();
    for step in 0..steps {
        if step == steps / 2 {
            for session in [by_step, by_append] {
                engine.append(session, &ids(prompt, FOREIGN), Want::Nothing)?;
            }
        }
        let at = engine.tokens(by_step);
        let picked = engine.step(by_step, &sampling(step))?;
        let expected = engine.sample(by_append, &sampling(step))?;
        ensure!(picked == expected, "token {at}: the step picked {picked}, not {expected}");
        let want = engine.append(by_append, &[expected], Want::Last)?;
        let got = engine.append(by_step, &[], Want::Last)?;
        ensure!(bits(&got) == bits(&want), "token {at}: the step's logits are others");
        ensure!(engine.tokens(by_step) == engine.tokens(by_append), "token {at}: the step appended another number");
    }
    let captured = kiln::captures() - before;
    ensure!(engine.states(by_step)? == engine.states(by_append)?, "the steps left other states");
    [by_step, by_append].into_iter().for_each(|session: SessionId| engine.close_session(session));
    Ok(captured)
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}
