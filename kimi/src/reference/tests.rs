//! The reference against transformers' numbers, and against itself.

use super::model::{ReferenceLayerState, ReferenceModel, ReferenceTrace};
use super::*;
use crate::config::Config;
use crate::weights::Weights;

fn shipped() -> ReferenceModel {
    let folder = crate::shipped_model();
    let config = Config::read(&folder.join("config.json")).unwrap();
    ReferenceModel::load(config, &Weights::open(&folder).unwrap(), |_, _| {}).unwrap()
}

fn golden() -> Weights {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/kimi-tiny");
    Weights::open_file(&folder.join("golden.safetensors")).unwrap()
}

fn floats(golden: &Weights, name: &str) -> Vec<f32> {
    golden.find(name).unwrap_or_else(|| panic!("no {name}")).to_f32().unwrap()
}

fn ids(golden: &Weights, name: &str) -> Vec<u32> {
    golden.find(name).unwrap().to_i32().unwrap().into_iter().map(|id| id as u32).collect()
}

#[test]
fn agrees_with_transformers() {
    let (model, golden) = (shipped(), golden());
    let hidden = model.config().hidden_size;
    for p in 0..3 {
        let prompt = ids(&golden, &format!("p{p}.ids"));
        let (mut state, mut trace) = (model.new_state(), ReferenceTrace::default());
        let normed = model.forward(&prompt, &mut state, Some(&mut trace));
        let error = relative_error(&model.logits(&normed), &floats(&golden, &format!("p{p}.logits")));
        assert!(error < 1e-5, "prompt {p}: logits are off by {error:e}");

        let last: Vec<f64> = trace.hidden.iter().flat_map(|x| &x[x.len() - hidden..]).copied().collect();
        let error = relative_error(&last, &floats(&golden, &format!("p{p}.hidden")));
        assert!(error < 1e-5, "prompt {p}: hidden states are off by {error:e}");

        let chosen = model.config().experts_per_token;
        let tail = |all: &[u32]| all[all.len() - chosen..].to_vec();
        let experts: Vec<u32> = trace.routing.iter().flat_map(|(_, r)| tail(&r.experts)).collect();
        assert_eq!(experts, ids(&golden, &format!("p{p}.experts")), "prompt {p}");
        let weights: Vec<f64> =
            trace.routing.iter().flat_map(|(_, r)| r.weights[r.weights.len() - chosen..].to_vec()).collect();
        assert!(relative_error(&weights, &floats(&golden, &format!("p{p}.expert_weights"))) < 1e-5);
        let margins: Vec<f64> = trace.routing.iter().map(|(_, r)| *r.margin.last().unwrap()).collect();
        assert!(relative_error(&margins, &floats(&golden, &format!("p{p}.expert_margin"))) < 1e-3);

        if p == 2 {
            for (layer, memory) in state.layers.iter().enumerate() {
                let ReferenceLayerState::Kda { conv, state } = memory else { continue };
                let (_, given) = trace.kda.iter().find(|(at, _)| *at == layer).expect("each KDA layer is traced");
                let mut replayed = vec![0.0; state.len()];
                given.delta_rule(&mut replayed);
                assert_eq!(&replayed, state, "layer {layer}: what the delta rule was given leads elsewhere");
                let error = relative_error(state, &floats(&golden, &format!("p2.state.{layer}")));
                assert!(error < 1e-5, "layer {layer}: the state is off by {error:e}");
                // Four inputs are stored; three of them matter to the next token.
                let stored = floats(&golden, &format!("p2.conv.{layer}"));
                let stored: Vec<f32> = stored.chunks_exact(4).flat_map(|four| &four[1..]).copied().collect();
                assert!(relative_error(&conv.concat(), &stored) < 1e-5);
            }
        }
    }
}

#[test]
fn pieces_equal_the_whole() {
    let (model, golden) = (shipped(), golden());
    let prompt = ids(&golden, "p2.ids");
    let whole = model.forward(&prompt, &mut model.new_state(), None);
    for piece in [1, 2, 7, 64] {
        let mut state = model.new_state();
        let parts: Vec<f64> = prompt.chunks(piece).flat_map(|ids| model.forward(ids, &mut state, None)).collect();
        assert!(relative_error(&parts, &whole) < 1e-12, "pieces of {piece}");
    }
    let mut state = model.new_state();
    assert!(model.forward(&[], &mut state, None).is_empty());
    assert_eq!(state.tokens, 0);
}

#[test]
fn extreme_gates_stay_finite() {
    let shape = KdaShape { key_heads: 2, heads: 2, key: 3, value: 2 };
    let tokens = 40;
    let wave = |n: usize, scale: f64| (0..n).map(|i| (i as f64 * 1.7).sin() * scale).collect::<Vec<_>>();
    let raw = wave(tokens * 6, 1000.0);
    let g = kda_gate(&raw, &[201f64.ln(), 0.0], &[0.5; 6]);
    assert!(g.iter().all(|g| g.is_finite() && *g <= 0.0) && g.iter().any(|g| *g < -1e5));
    let k = l2_norm(&wave(tokens * 6, 1.0), 3, 1e-6, 1.0);
    let mut state = vec![0.0; 12];
    let o = kda_recurrence(shape, &k, &k, &wave(tokens * 4, 3.0), &g, &wave(tokens * 2, 0.5), &mut state);
    assert!(o.iter().chain(&state).all(|x| x.is_finite()));
}

#[test]
fn small_operations() {
    assert_eq!(sigmoid(-1e300), 0.0);
    assert_eq!(sigmoid(1e300), 1.0);
    assert_eq!(softplus(25.0), 25.0);
    assert!((softplus(-700.0) - (-700f64).exp()).abs() < 1e-300);
    assert_eq!(argmax(&[1.0, 3.0, f64::NAN, 3.0]), 1);
    assert_eq!(argmax(&[f64::NAN, -1.0]), 1);
    assert!((log_softmax(&[1e4, 1e4])[0] + 2f64.ln()).abs() < 1e-9);
    assert!((negative_log_likelihood(&[0.0, 0.0, 9.0, 9.0], &[0, 1], 2) - 2f64.ln()).abs() < 1e-12);
    assert_eq!(relative_error(&[f32::NAN], &[1.0f32]), f64::INFINITY);

    // Equal biased scores: the lower index is taken; weights come from the unbiased scores.
    let shape = RouterShape { chosen: 2, renormalize: true, scale: 2.0 };
    let routing = route(shape, &[0.0, 0.0, 0.0], &[0.0, 0.5, 0.0]);
    assert_eq!((routing.experts, routing.margin), (vec![0, 1], vec![0.0]));
    assert_eq!(routing.weights, [1.0, 1.0]);
    assert_eq!(route(RouterShape { chosen: 1, ..shape }, &[], &[0.0]), Routing::default());
}
