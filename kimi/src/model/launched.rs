//! The kernels that a model launches on a GPU, collected without one.

use super::load::{ModelWeights, weight_type};
use super::ops::Ops;
use super::{Model, engine::PIECE};
use crate::config::Config;
use crate::engine::EngineError;
use crate::sampling::Sampling;
use crate::weights::Weights;
use kiln::ir::Kernel;
use kiln::{DType, Device, Float, bf16, f16};
use std::collections::BTreeMap;

/// Lengths of prompts: around those from which other instances run, and with and without the facts that hold for
/// multiples of 16.
const PROMPTS: [usize; 26] = [
    1, 2, 3, 5, 8, 9, 16, 17, 32, 33, 64, 65, 100, 128, 129, 256, 300, 512, 600, 1000, 1024, 1500, 2048, 4096, 5000,
    9000,
];

/// What sessions launch, prompts of many lengths, a token after each, both ways of sampling: every kernel with its facts,
/// as staged. Nothing is computed.
///
/// # Errors
/// If the checkpoint cannot be loaded, or the model has no instances.
pub fn kernels(config: Config, weights: &Weights) -> Result<Vec<Kernel>, EngineError> {
    match weight_type(&config, weights)? {
        DType::BF16 => with_weights::<bf16>(config, weights),
        DType::F16 => with_weights::<f16>(config, weights),
        _ => with_weights::<f32>(config, weights),
    }
}

fn with_weights<W: Float>(config: Config, weights: &Weights) -> Result<Vec<Kernel>, EngineError> {
    let weights = ModelWeights::load(&config, weights, Device::Cpu, &mut |_, _| {})?;
    let ops = Ops::<bf16, W>::new(Device::Cpu).with_gpu_tiles();
    let longest = config.model_max_length;
    let model = Model::new(ops, config, weights)?;
    let mut all = BTreeMap::new();
    for prompt in PROMPTS.into_iter().filter(|&n| n < longest) {
        let recorded = kiln::record(|| {
            let mut session = model.new_session()?;
            model.reserve(&mut session, prompt)?;
            for piece in vec![0; prompt].chunks(PIECE) {
                model.append(&mut session, piece, None)?;
            }
            model.reserve(&mut session, 1)?;
            for sampling in [Sampling::greedy(), Sampling::default()] {
                ops.sample_into(&session.logits, &sampling, &session.position, &mut session.picked)?;
            }
            model.append_picked(&mut session)?;
            Ok::<(), EngineError>(())
        })?;
        all.extend(recorded.into_iter().map(|kernel| (kernel.to_string(), kernel)));
    }
    Ok(all.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_and_single_tokens_are_among_what_sessions_launch() {
        let folder = crate::shipped_model();
        let config = Config::read(&folder.join("config.json")).unwrap();
        let kernels = kernels(config, &Weights::open(&folder).unwrap()).unwrap();
        for name in [
            "kda_chunk",
            "kda_step",
            "mla_prefill",
            "mla_decode",
            "experts_down",
            "experts_down_row",
            "argmax",
            "sample",
        ] {
            assert!(kernels.iter().any(|kernel| kernel.name == name), "no {name} among {}", kernels.len());
        }
    }
}
