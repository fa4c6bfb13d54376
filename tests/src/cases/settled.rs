//! Launches of a graph that load before the ones before them have ended (`settled`), and find what they should.

use super::Trial;
use kiln::prelude::*;
use kiln::{Device, Element, Graph, Tensor};

const BLOCK: usize = 256;

/// out = x + 1, after some time; x is loaded at once. The next launch may begin as soon as this one has found `before`,
/// which is not settled.
#[kernel(warps = 4, settled(x))]
fn slowly_one_more<const B: usize>(
    x: &View<f32, 1>,
    before: &View<f32, 1>,
    rounds: i32,
    out: &mut Block<f32, B>,
    seen: &mut Block<f32, B>,
) {
    let mut own: Tile<f32, B> = x.load(out.origin(0));
    let before: Tile<f32, B> = before.load(out.origin(0));
    // Neither changes it: these are small whole numbers.
    for _ in 0..rounds {
        own = (own + 0.5) - 0.5;
    }
    out.store(own + 1.0);
    seen.store(before);
}

/// In a graph each launch stores long after the next one could have begun. Two numbers are counted up: *in turns*, where a
/// launch loads what the launch before the one before it has stored, and *at once*, where it loads what the last one has
/// stored, though it says otherwise, so that it must not begin early.
pub(super) fn counted_in_a_graph(trial: &mut Trial) -> anyhow::Result<()> {
    const LAUNCHES: usize = 12;
    const ROUNDS: i32 = 2000;
    let n = 64 * BLOCK;
    for numbers in [2, 1] {
        // Of each number the old one and the new one.
        let places: Vec<Tensor> =
            (0..2 * numbers).map(|_| Tensor::zeros(&[n], f32::DTYPE, trial.device)).collect::<kiln::Result<_>>()?;
        let mut seen = trial.poisoned::<f32>(&[n])?;
        let loaded = |launch: usize| &places[2 * (launch % numbers) + launch / numbers % 2];
        let stored = |launch: usize| &places[2 * (launch % numbers) + (launch / numbers + 1) % 2];
        let mut work = || -> kiln::Result<()> {
            for launch in 0..LAUNCHES {
                let (before, mut out) = (stored((launch + LAUNCHES - 1) % LAUNCHES), stored(launch).clone());
                slowly_one_more::<BLOCK>(loaded(launch), before, ROUNDS, &mut out, &mut seen).run()?;
            }
            Ok(())
        };
        let replays = if matches!(trial.device, Device::Cuda(_)) {
            let graph = Graph::capture(trial.device, work)?;
            (0..3).try_for_each(|_| graph.replay())?;
            3
        } else {
            work()?;
            1
        };
        let (each, what) = (LAUNCHES / numbers, if numbers == 2 { "in turns" } else { "at once" });
        // An even number of rounds ends where it began.
        for number in 0..numbers {
            let want = vec![(replays * each) as f64; n];
            trial.compare(&format!("{what}: number {number}"), loaded(number), &want, n, 0.0)?;
        }
        // The last launch has seen what the one before it stored.
        let before = if numbers == 2 { replays * each } else { replays * each - 1 };
        trial.compare(&format!("{what}: the launch before"), &seen, &vec![before as f64; n], n, 0.0)?;
    }
    Ok(())
}
