//! Choosing the next token, on the device.
//!
//! Greedy: the largest logit. Otherwise temperature, top-k, top-p and min-p narrow the set, and the Gumbel trick draws
//! from it: argmax of `logit/temperature − ln(−ln u)` with u hashed from (seed, position, token), so the same seed
//! gives the same tokens whatever the device or the batch.

use kiln::prelude::*;

/// The largest logit's index, the first of equals; NaN is never taken. logits `[n, vocabulary]` f32 → out `[n]` i32. Program: row.
#[kernel]
pub fn argmax<const B: usize>(logits: &View<f32, 2>, out: &mut Block<i32, 1>) {
    let row = logits.select(0, program_id(0));
    let mut best: Tile<f32> = full(f64::NEG_INFINITY);
    let mut at: Tile<i32> = zeros();
    for start in (0..row.dim(0)).step_by(B) {
        let (value, index) = numbers::<B>(&row, start).argmax::<0>();
        at = select(value > best, index + start, at);
        best = best.max(value);
    }
    out.store(at.splat());
}

/// Draws by `sampling::Sampling::pick`, whose definition this follows step by step.
///
/// logits `[n, vocabulary]` f32, position `[n]` i32 (tokens before the one drawn) → out `[n]` i32. `temperature` > 0;
/// `top_k` 0 keeps all. Program: row.
#[kernel]
pub fn sample<const B: usize>(
    logits: &View<f32, 2>,
    position: &View<i32, 1>,
    temperature: f32,
    top_k: i32,
    top_p: f32,
    min_p: f32,
    seed_low: u32,
    seed_high: u32,
    out: &mut Block<i32, 1>,
) {
    let row = logits.select(0, program_id(0));
    let vocabulary = row.dim(0);
    let mut top: Tile<f32> = full(f64::NEG_INFINITY);
    for start in (0..vocabulary).step_by(B) {
        top = top.max(numbers::<B>(&row, start).amax::<0>());
    }

    let mut threshold = top + temperature * min_p.log();
    let mut by_k: Tile<f32> = full(f64::NEG_INFINITY);
    if top_k > 0 && top_k < vocabulary {
        // The k-th largest logit: the largest key that at least k logits reach, found bit by bit.
        let mut key: Tile<u32> = zeros();
        for bit in 0..32 {
            let candidate = key | one_bit(bit);
            let mut count: Tile<i32> = zeros();
            for start in (0..vocabulary).step_by(B) {
                let reached = sort_key(numbers::<B>(&row, start)) >= candidate;
                count += reached.cast::<i32>().sum::<0>();
            }
            key = select(count >= top_k, candidate, key);
        }
        by_k = from_sort_key(key);
    }
    threshold = threshold.max(by_k);
    if top_p < 1.0 {
        let mut total: Tile<f32> = zeros();
        for start in (0..vocabulary).step_by(B) {
            let x = numbers::<B>(&row, start);
            total += select(x >= by_k, ((x - top) / temperature).exp(), 0.0).sum::<0>();
        }
        // The largest logit such that those that reach it have the share p.
        let mut key: Tile<u32> = zeros();
        for bit in 0..32 {
            let candidate = key | one_bit(bit);
            let mut mass: Tile<f32> = zeros();
            for start in (0..vocabulary).step_by(B) {
                let x = numbers::<B>(&row, start);
                let reached = (sort_key(x) >= candidate) & (x >= by_k);
                mass += select(reached, ((x - top) / temperature).exp(), 0.0).sum::<0>();
            }
            key = select(mass >= total * top_p, candidate, key);
        }
        threshold = threshold.max(from_sort_key(key));
    }

    let position = position.get(program_id(0)).cast::<u32>();
    let state: Tile<u32> = full(0x9E37_79B9u32 as f64);
    let state = scramble(scramble(scramble(state + seed_low) + seed_high) + position);
    let mut best: Tile<f32> = full(f64::NEG_INFINITY);
    let mut at: Tile<i32> = zeros();
    for start in (0..vocabulary).step_by(B) {
        let x = numbers::<B>(&row, start);
        let token = (iota::<B>() + start).cast::<u32>();
        let score = (x - top) / temperature + gumbel(scramble(token + state));
        let score = select(x >= threshold, score, f32::NEG_INFINITY);
        let (value, index) = score.argmax::<0>();
        at = select(value > best, index + start, at);
        best = best.max(value);
    }
    out.store(at.splat());
}

/// `B` logits; what is no number, or beyond the vocabulary, as -inf.
#[device]
fn numbers<const B: usize>(row: &View<f32, 1>, start: Tile<i32>) -> Tile<f32, B> {
    let x: Tile<f32, B> = row.load_or(start, f32::NEG_INFINITY);
    select(x == x, x, f32::NEG_INFINITY)
}

/// Bit 31 - `index`.
#[device]
fn one_bit(index: Tile<i32>) -> Tile<u32> {
    let one: Tile<u32> = full(1.0);
    one << (31usize - index).cast::<u32>()
}

/// Keys that are ordered as the numbers are.
#[device]
fn sort_key<S: Shape>(x: Tile<f32, S>) -> Tile<u32, S> {
    let bits = x.bitcast::<u32>();
    select((bits >> 31) == 0, bits | 0x8000_0000u32, !bits)
}

/// The number of a key.
#[device]
fn from_sort_key<S: Shape>(key: Tile<u32, S>) -> Tile<f32, S> {
    select((key >> 31) == 1, key ^ 0x8000_0000u32, !key).bitcast::<f32>()
}

/// MurmurHash3's 32-bit finaliser: a bijection with full avalanche.
#[device]
fn scramble<S: Shape>(x: Tile<u32, S>) -> Tile<u32, S> {
    let x = (x ^ (x >> 16)) * 0x85EB_CA6Bu32;
    let x = (x ^ (x >> 13)) * 0xC2B2_AE35u32;
    x ^ (x >> 16)
}

/// Standard Gumbel noise -ln(-ln u) with u = (top 23 bits + ½) / 2²³.
#[device]
fn gumbel<S: Shape>(bits: Tile<u32, S>) -> Tile<f32, S> {
    let u = ((bits >> 9).cast::<f32>() + 0.5) * (1.0 / 8_388_608.0);
    -(-u.log()).log()
}
