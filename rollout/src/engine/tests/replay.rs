//! What training makes of the record: one packed pass over prompt and completion against the log-probs
//! that the sampler returned token by token from its cache.
//!
//! The two use different kernels (one query against cached keys, many against many), so they agree up to
//! rounding and not bit for bit. Weights here are large and contexts short, which makes for more rounding
//! a token than pretrained models show.

use model::logprobs::token_logprobs;
use model::{MlaConfig, PackedInput, ScoringFunc};

use super::*;

/// Largest difference in f32, nats; the largest found is 3.1e-6.
const F32_MAX: f32 = 2e-5;
/// In bf16, over the samples of a model: mean and largest, nats; the largest found are 0.012 and 0.09.
pub(super) const BF16_MEAN: f32 = 0.04;
pub(super) const BF16_MAX: f32 = 0.3;

/// DeepSeek-V3.2 in small: latent attention, indexer, a dense layer, then `noaux_tc` experts with a
/// shared one.
fn v32() -> ModelConfig {
    ModelConfig {
        model_type: ModelType::DeepseekV32,
        num_hidden_layers: 3,
        num_key_value_heads: 4,
        head_dim: 4,
        mla: Some(MlaConfig {
            q_lora_rank: Some(14),
            kv_lora_rank: 12,
            qk_nope_head_dim: 6,
            qk_rope_head_dim: 4,
            v_head_dim: 8,
            rope_interleave: true,
        }),
        moe: Some(MoeConfig {
            scoring_func: ScoringFunc::Sigmoid,
            moe_intermediate_size: Some(16),
            first_k_dense_replace: 1,
            n_shared_experts: 1,
            n_group: 2,
            routed_scaling_factor: 1.5,
            correction_bias: true,
            ..MoeConfig::mixtral(4, 2)
        }),
        ..config(false, true)
    }
}

pub(super) fn models() -> [(&'static str, ModelConfig); 5] {
    [
        ("dense", config(false, false)),
        ("experts", config(true, false)),
        ("indexer", config(false, true)),
        ("experts and indexer", config(true, true)),
        ("v32", v32()),
    ]
}

fn recording(sampling: &SamplingConfig, num_slots: usize) -> GenerationSettings {
    GenerationSettings {
        record_selection: true,
        ..settings(sampling.clone(), num_slots)
    }
}

/// What of the record a pass is forced to follow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replay {
    routing: bool,
    selection: bool,
}

/// How runs train.
const AS_IN_RUNS: Replay = Replay {
    routing: true,
    selection: false,
};
pub(super) const ALL: Replay = Replay {
    routing: true,
    selection: true,
};
const NOTHING: Replay = Replay {
    routing: false,
    selection: false,
};

/// A packed pass over prompt and completion, and the log-probs of the completion in it.
fn recompute(
    model: &Transformer,
    request: &Request,
    sample: &GeneratedSample,
    temperature: f64,
    replay: Replay,
) -> (Vec<f32>, ForwardOutput) {
    let device = model.device();
    let (prompt_len, len) = (request.tokens.len(), sample.tokens.len());
    let forwarded = [&request.tokens, &sample.tokens[..len - 1]].concat();
    let (trace, keys) = (&sample.routing, &sample.selection);
    let options = ForwardOptions {
        routing: match model.config().moe.is_some() && replay.routing {
            true => {
                assert_eq!(trace.num_tokens(), forwarded.len());
                let ids: Vec<i64> = trace.ids.iter().map(|&id| i64::from(id)).collect();
                let shape = [-1, trace.num_layers as i64, trace.top_k as i64];
                Routing::Replay(Tensor::from_slice(&ids).view(shape).to_device(device))
            }
            false => Routing::Free,
        },
        selection: match model.config().dsa.is_some() && replay.selection {
            true => {
                assert_eq!(keys.keys.len(), keys.expected_len(forwarded.len()));
                let rows = keys.rows(0..forwarded.len(), keys.topk);
                let shape = [-1, keys.num_layers as i64, keys.topk as i64];
                Selection::Replay(Tensor::from_slice(&rows).view(shape).to_device(device))
            }
            false => Selection::Free,
        },
        ..ForwardOptions::inference()
    };
    let input = PackedInput::from_sequences(&[&forwarded], model.device());
    let output = tch::no_grad(|| model.forward_packed(&input, &options));
    let rows = output.hidden.narrow(0, prompt_len as i64 - 1, len as i64);
    let targets: Vec<i64> = sample.tokens.iter().map(|&id| i64::from(id)).collect();
    let logprobs = tch::no_grad(|| {
        token_logprobs(
            &model.logits(&rows),
            &Tensor::from_slice(&targets).to_device(device),
            temperature,
            Some(&sample.kept),
        )
    });
    (Vec::try_from(logprobs).unwrap(), output)
}

/// |recomputed - sampled| over all samples of a model, and the smallest shares of recorded experts and keys
/// that free choice would choose.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) mean: f32,
    pub(super) max: f32,
    routing: f64,
    selection: f64,
}

pub(super) fn compare(
    model: &Transformer,
    samples: &[Vec<GeneratedSample>],
    temperature: f64,
    replay: Replay,
) -> Comparison {
    let mut gaps = Vec::new();
    let (mut routing, mut selection) = (1.0f64, 1.0f64);
    for (request, group) in requests().iter().zip(samples) {
        for sample in group {
            let (logprobs, output) = recompute(model, request, sample, temperature, replay);
            assert_eq!(logprobs.len(), sample.tokens.len());
            let pairs = logprobs.iter().zip(&sample.sampler_logprobs);
            gaps.extend(pairs.map(|(x, y)| (x - y).abs()));
            routing = routing.min(output.routing_agreement().unwrap_or(1.0));
            selection = selection.min(output.selection_agreement.unwrap_or(1.0));
        }
    }
    Comparison {
        mean: gaps.iter().sum::<f32>() / gaps.len() as f32,
        max: gaps.iter().copied().fold(0.0, f32::max),
        routing,
        selection,
    }
}

#[test]
fn training_recomputes_the_sampler_logprobs_from_the_record() {
    for (name, config) in models() {
        let model = load(&config);
        for sampling in [whole(), truncated()] {
            let (samples, _) = generate(&model, &recording(&sampling, 3));
            let first = &samples[0][0];
            if config.moe.is_none() {
                assert_eq!(first.routing, RoutingTrace::default());
            }
            if config.dsa.is_none() {
                assert_eq!(first.selection, SelectionTrace::default());
            }
            for replay in [AS_IN_RUNS, ALL, NOTHING] {
                let found = compare(&model, &samples, sampling.temperature, replay);
                assert!(found.max < F32_MAX, "{name}, {replay:?}: {found:?}");
                assert_eq!((found.routing, found.selection), (1.0, 1.0), "{name}");
            }
        }
    }
}

/// Rounding decides near ties between experts and between keys; replayed, both are the sampler's.
#[test]
fn in_bf16_training_recomputes_them_within_its_rounding() {
    for (name, config) in models() {
        let model = load_in(&config, Kind::BFloat16);
        for sampling in [whole(), truncated()] {
            let (samples, _) = generate(&model, &recording(&sampling, 3));
            let found = compare(&model, &samples, sampling.temperature, ALL);
            assert!(found.mean < BF16_MEAN, "{name}: {found:?}");
            assert!(found.max < BF16_MAX, "{name}: {found:?}");
            assert!(found.max > F32_MAX, "{name}: computed in f32");
        }
    }
}

/// With the recorded keys the pass is the sampler's, whatever has become of the indexer since.
#[test]
fn replayed_selection_reproduces_the_sampler_logprobs_after_the_indexer_changed() {
    for (name, config) in models() {
        if config.dsa.is_none() {
            continue;
        }
        let model = load(&config);
        let (samples, _) = generate(&model, &recording(&truncated(), 3));
        for parameter in model.parameters() {
            if parameter.name.ends_with("indexer.weights_proj.weight") {
                let _ = tch::no_grad(|| parameter.master.shallow_clone().neg_());
            }
        }
        let temperature = truncated().temperature;
        let replayed = compare(&model, &samples, temperature, ALL);
        assert!(replayed.max < F32_MAX, "{name}: {replayed:?}");
        assert!(replayed.selection < 0.9, "{name}: {replayed:?}");
        let free = compare(&model, &samples, temperature, AS_IN_RUNS);
        assert!(free.max > 0.05, "{name}: {free:?}");
    }
}

#[test]
fn recording_the_selection_changes_no_sample() {
    for (name, config) in models() {
        let model = load(&config);
        let (recorded, _) = generate(&model, &recording(&truncated(), 3));
        let (plain, _) = generate(&model, &settings(truncated(), 3));
        for (recorded, plain) in recorded.iter().flatten().zip(plain.iter().flatten()) {
            assert_eq!(plain.selection, SelectionTrace::default());
            let without = GeneratedSample {
                selection: SelectionTrace::default(),
                ..recorded.clone()
            };
            assert_eq!(&without, plain, "{name}");
        }
    }
}
