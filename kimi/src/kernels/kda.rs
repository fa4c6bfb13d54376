//! Kimi Delta Attention ("Kimi Linear", arXiv 2510.26692).
//!
//! Per head, with state S `[D, V]`:
//! ```text
//! S ← Diag(exp g_t) S;   u = β_t (v_t − Sᵀ k_t);   S ← S + k_t uᵀ;   o_t = Sᵀ q_t
//! ```
//! Prompts go through it in chunks: [`kda_chunk`], all chunks at once, prepares what does not need the state;
//! [`kda_state`] walks the chunks, beside it where it can ([`kda_gate`]). Few tokens take [`kda_recurrent`], or
//! [`kda_step`] for all that a layer does between its projections. `docs/kda.md` derives them.

mod blocks;
mod chunk;
mod gate;
mod recurrent;
mod state;
mod step;
mod tokens;

pub use chunk::kda_chunk;
pub use gate::kda_gate;
pub use recurrent::kda_recurrent;
pub use state::kda_state;
pub use step::kda_step;

use kiln::prelude::*;
use std::f32::consts::LOG2_E;

/// Over a block of S tokens a decay of less than `FLOOR_BITS / S` bits a token is set to that.
///
/// In blocks of 16 (16-bit activations) what is left of the past is then 2^-13, a 32nd of the activations' rounding;
/// in blocks of 8 (f32) 2^-26.
const FLOOR_BITS: f32 = 208.0;

/// Value columns of a block of a state.
///
/// Kernels take a pool of states as `[slots·heads, D / 32, D, 32]` f32: the columns of a head's state in blocks, of each
/// block its `D` rows (key channels). So what [`kda_step`] moves at a time is one piece of memory.
pub const STATE_COLUMNS: usize = 32;

/// Chunks of a sequence that a walk beside their preparation waits for at once: a look at a semaphore takes as long as
/// most of a step.
pub const GROUP: usize = 4;

/// How much a token makes a channel forget, at least 0, for x `[tokens, channels]` without its bias and rate = exp(A_log):
/// [`decay_scale`] times that is the logarithm to base 2 of what the channel keeps.
///
/// softplus(x) in bits, which has no bound, or of the bounded gate sigmoid(rate·x).
#[device]
fn forgetting<const BOUNDED: bool, const C: usize, const N: usize>(
    x: Tile<f32, C, N>,
    bias: Tile<f32, N>,
    rate: Tile<f32>,
) -> Tile<f32, C, N> {
    if BOUNDED {
        x.mul_add(rate, (bias * rate).row()).sigmoid()
    } else {
        // log2(1 + 2^y), y = x·log2 e: infinite for y above 128, and an error of the logarithm is one of the exponent.
        (x.mul_add(LOG2_E, (bias * LOG2_E).row()).exp2() + 1.0).log2_approx()
    }
}

/// −rate of −rate·softplus(x), or lower_bound of lower_bound·sigmoid(rate·x), in bits: less than 0.
#[device]
fn decay_scale<const BOUNDED: bool>(rate: Tile<f32>, lower_bound: Tile<f32>) -> Tile<f32> {
    if BOUNDED { lower_bound * LOG2_E } else { -rate }
}

/// What makes a vector of unit length: (Σ x² + 1e-6)^-½.
#[device]
fn unit<const N: usize>(x: Tile<f32, N>) -> Tile<f32> {
    ((x * x).sum::<0>() + 1e-6).rsqrt()
}
