//! How the next token is picked from logits, defined so that a kernel can do it and get the same token.
//!
//! A pick is the arg-max of `(logit - max) / temperature + gumbel` over the tokens that the filters keep, which draws
//! from exactly the softmax distribution (the Gumbel-max trick).  It needs no normalisation, no running sum and no
//! order among threads, and its noise is a pure function of (seed, position, token): the same seed gives the same
//! tokens whatever was computed in which order, in which batch, on which device.
//!
//! The filters keep every token whose logit reaches a *threshold*, so equal logits stand or fall together and no
//! order of them needs to be agreed on.  In this order, each on what the one before left:
//!
//! 1. `top_k`: the k-th largest logit.
//! 2. `top_p`: the largest logit such that the tokens that reach it have at least the share p of the probability.
//! 3. `min_p`: the tokens whose probability is at least `min_p` times the greatest.
//!
//! The noise is [`random`] -> [`gumbel`], in 32-bit integers and f32 only.

use serde::{Deserialize, Serialize};

/// Sampling parameters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token and ignores everything else here.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the most likely tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this likely, relative to the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Selects the noise.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

/// A sampling parameter out of its range.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("{name} is {value}, expected {expected}")]
pub struct SamplingError {
    name: &'static str,
    value: f32,
    expected: &'static str,
}

impl Sampling {
    /// The most likely token, always.
    pub fn greedy() -> Sampling {
        Sampling { temperature: 0.0, ..Sampling::default() }
    }

    /// Checks the ranges; NaN is in none.
    pub fn check(&self) -> Result<(), SamplingError> {
        let Sampling { temperature, top_p, min_p, .. } = *self;
        let fail = |name, value, expected| Err(SamplingError { name, value, expected });
        if !(0.0..=1e6).contains(&temperature) {
            return fail("temperature", temperature, "a number from 0 (greedy) to 1e6");
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return fail("top_p", top_p, "a number above 0, at most 1");
        }
        if !(0.0..=1.0).contains(&min_p) {
            return fail("min_p", min_p, "a number from 0 to 1");
        }
        Ok(())
    }

    /// Picks the token at `position` (the number of tokens before it) from `logits` [vocabulary].
    ///
    /// NaN is never picked; where nothing else is there, token 0 is.
    pub fn pick(&self, logits: &[f32], position: u32) -> u32 {
        let best = argmax(logits.iter().copied());
        if self.temperature == 0.0 || logits.is_empty() {
            return best;
        }
        let top = logits[best as usize];
        let threshold = self.threshold(logits, top);
        argmax(logits.iter().enumerate().map(|(token, logit)| {
            if *logit >= threshold {
                (logit - top) / self.temperature + gumbel(random(self.seed, position, token as u32))
            } else {
                f32::NEG_INFINITY
            }
        }))
    }

    /// The least logit that the filters keep; `top` is the greatest.
    fn threshold(&self, logits: &[f32], top: f32) -> f32 {
        // p ≥ min_p · p_max, in logits; ln 0 = -inf keeps all.
        let mut threshold = top + self.temperature * self.min_p.ln();
        let by_k = self.top_k > 0 && (self.top_k as usize) < logits.len();
        if !by_k && self.top_p >= 1.0 {
            return threshold;
        }
        let mut sorted: Vec<f32> = logits.iter().copied().filter(|x| !x.is_nan()).collect();
        sorted.sort_unstable_by(|a, b| b.total_cmp(a));
        if by_k && let Some(&kth) = sorted.get(self.top_k as usize - 1) {
            threshold = threshold.max(kth);
            sorted.truncate(sorted.partition_point(|x| *x >= kth));
        }
        if self.top_p < 1.0 {
            let mass = |x: &f32| f64::from((x - top) / self.temperature).exp();
            let wanted = f64::from(self.top_p) * sorted.iter().map(mass).sum::<f64>();
            let mut sum = 0.0;
            let reached = sorted.iter().find(|x| {
                sum += mass(x);
                sum >= wanted
            });
            threshold = threshold.max(reached.copied().unwrap_or(f32::NEG_INFINITY));
        }
        threshold
    }
}

/// Index of the first largest number; NaN never wins, and where all are NaN it is 0.
fn argmax(values: impl Iterator<Item = f32>) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (at, value) in values.enumerate() {
        if value > best.1 {
            best = (at as u32, value);
        }
    }
    best.0
}

/// 32 random bits for a token at a position: a counter-based generator, a pure function of its arguments.
///
/// Each word of the key and of the counter is added to the state, which then goes through [`scramble`], a bijection
/// with full avalanche; so two inputs that differ in one word never collide in the following state.
pub fn random(seed: u64, position: u32, token: u32) -> u32 {
    let words = [seed as u32, (seed >> 32) as u32, position, token];
    words.into_iter().fold(0x9E37_79B9, |state: u32, word| scramble(state.wrapping_add(word)))
}

/// MurmurHash3's 32-bit finaliser (Austin Appleby, public domain): xor-shifts and odd multiplications, so a bijection.
/// 0 is a fixed point; the odd constant that [`random`] starts from keeps a zero key away from it.
fn scramble(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x85EB_CA6B);
    x ^= x >> 13;
    x = x.wrapping_mul(0xC2B2_AE35);
    x ^ (x >> 16)
}

/// Standard Gumbel noise, `-ln(-ln u)`, from random bits.  u = (top 23 bits + ½) / 2²³ is exact in f32 and never 0 or
/// 1, so the noise is finite: from -2.8 to 16.6.
pub fn gumbel(bits: u32) -> f32 {
    let u = ((bits >> 9) as f32 + 0.5) * (1.0 / 8_388_608.0);
    -(-u.ln()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each token is picked, over many positions.
    fn counts(sampling: Sampling, logits: &[f32], draws: u32) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for position in 0..draws {
            counts[sampling.pick(logits, position) as usize] += 1.0 / f64::from(draws);
        }
        counts
    }

    #[test]
    fn draws_follow_the_softmax() {
        let probabilities = [0.5f32, 0.25, 0.125, 0.125];
        let logits = probabilities.map(|p| p.ln() + 3.0);
        for seed in [0, 1, u64::MAX] {
            let got = counts(Sampling { seed, ..Sampling::default() }, &logits, 40_000);
            for (got, want) in got.iter().zip(probabilities) {
                // Four standard deviations of a binomial share over 40,000 draws are at most 0.01.
                assert!((got - f64::from(want)).abs() < 0.01, "{got} for {want}");
            }
        }
        let hot = counts(Sampling { temperature: 1e6, ..Sampling::default() }, &logits, 40_000);
        assert!(hot.iter().all(|p| (p - 0.25).abs() < 0.01));
    }

    #[test]
    fn filters_keep_what_they_say() {
        let logits = [0.5f32, 0.25, 0.125, 0.125].map(f32::ln);
        let kept = |sampling: Sampling| counts(sampling, &logits, 2000).iter().map(|p| *p > 0.0).collect::<Vec<_>>();
        let all = Sampling::default();
        assert_eq!(kept(Sampling { top_k: 1, ..all }), [true, false, false, false]);
        assert_eq!(kept(Sampling { top_k: 2, ..all }), [true, true, false, false]);
        // Equal logits stand or fall together.
        assert_eq!(kept(Sampling { top_k: 3, ..all }), [true; 4]);
        assert_eq!(kept(Sampling { top_p: 0.5, ..all }), [true, false, false, false]);
        assert_eq!(kept(Sampling { top_p: 0.51, ..all }), [true, true, false, false]);
        assert_eq!(kept(Sampling { top_p: 0.76, ..all }), [true; 4]);
        assert_eq!(kept(Sampling { min_p: 0.4, ..all }), [true, true, false, false]);
        assert_eq!(kept(Sampling { min_p: 1.0, ..all }), [true, false, false, false]);
        // Of the two that top_k leaves, the first has two thirds.
        assert_eq!(kept(Sampling { top_k: 2, top_p: 0.6, ..all }), [true, false, false, false]);
        assert_eq!(kept(Sampling { temperature: 0.0, ..all }), [true, false, false, false]);
        assert_eq!(kept(Sampling { temperature: 1e-6, ..all }), [true, false, false, false]);
    }

    #[test]
    fn same_seed_same_tokens() {
        let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin()).collect();
        let run = |seed| (0..50).map(|p| Sampling { seed, ..Sampling::default() }.pick(&logits, p)).collect::<Vec<_>>();
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        assert_ne!(run(7), run(7 << 32));
        // A kernel must reproduce these numbers.
        assert_eq!([random(0, 0, 0), random(1, 2, 3), random(1 << 32, 2, 3)], [0x37DD_7702, 0x38C0_E03E, 0xD27B_D91A]);
    }

    #[test]
    fn hostile_logits() {
        let some = Sampling { top_k: 2, top_p: 0.9, min_p: 0.1, ..Sampling::default() };
        assert_eq!(some.pick(&[f32::NAN, 1.0, f32::NAN], 0), 1);
        assert_eq!(some.pick(&[f32::NAN, f32::NAN], 0), 0);
        assert_eq!(some.pick(&[f32::NEG_INFINITY, -1e30, f32::NEG_INFINITY], 3), 1);
        assert_eq!(some.pick(&[], 0), 0);
        for bits in [0, u32::MAX, 1 << 31] {
            assert!(gumbel(bits).is_finite());
        }
    }

    #[test]
    fn ranges_are_checked() {
        let ok = Sampling::default();
        assert_eq!(ok.check(), Ok(()));
        for (bad, name) in [
            (Sampling { temperature: -1.0, ..ok }, "temperature"),
            (Sampling { temperature: f32::NAN, ..ok }, "temperature"),
            (Sampling { top_p: 0.0, ..ok }, "top_p"),
            (Sampling { min_p: 1.5, ..ok }, "min_p"),
        ] {
            assert!(bad.check().unwrap_err().to_string().contains(name));
        }
    }
}
