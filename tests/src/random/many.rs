//! Many cases on several threads.

use super::{Failure, Limits, Runner, check};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Checks the cases of these seeds; `runners` makes the runners of a thread, `done` hears of every case. Stops early when
/// `done` says that it has heard enough by giving `false`.
pub fn check_many(
    seeds: Range<u64>,
    limits: Limits,
    threads: usize,
    runners: impl Fn() -> Vec<Box<dyn Runner>> + Sync,
    done: impl Fn(u64, Result<(), Box<Failure>>) -> bool + Sync,
) {
    let next = AtomicU64::new(seeds.start);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut runners = runners();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !seeds.contains(&seed) {
                        return;
                    }
                    if !done(seed, check(seed, limits, &mut runners)) {
                        next.store(seeds.end, Ordering::Relaxed);
                        return;
                    }
                }
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Interpreter;
    use std::sync::Mutex;

    #[test]
    fn every_seed_once_until_told_to_stop() {
        let limits = Limits { statements: 2, elements: 16, depth: 1 };
        let runners = || vec![Box::new(Interpreter { optimise: true }) as Box<dyn Runner>];
        let heard = Mutex::new(vec![]);
        check_many(5..25, limits, 3, runners, |seed, result| {
            assert!(result.is_ok());
            heard.lock().unwrap().push(seed);
            true
        });
        let mut heard = heard.into_inner().unwrap();
        heard.sort();
        assert_eq!(heard, Vec::from_iter(5..25));

        let count = AtomicU64::new(0);
        check_many(0..1000, limits, 2, runners, |_, _| count.fetch_add(1, Ordering::Relaxed) < 3);
        assert!(count.into_inner() <= 5, "one more of each thread at most");
    }
}
