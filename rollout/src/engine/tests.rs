//! The engine on tiny random models: equal samples whatever the batch, shared prefills, and
//! records that training can replay. Weights are large, so that every token depends on its context.

use model::logprobs::token_logprobs;
use model::{DsaConfig, ModelConfig, ModelType, MoeConfig, PackedInput, WeightError, WeightSource};
use tch::Device;

use super::*;

const VOCAB: usize = 40;
const STOP: [u32; 2] = [3, 17];

/// Uniform weights in (-0.4, 0.4) from the name; norms are 1. `poison` names a tensor of NaNs.
struct Weights {
    poison: Option<&'static str>,
}

impl WeightSource for Weights {
    fn tensor(&mut self, name: &str, shape: &[i64]) -> Result<Tensor, WeightError> {
        let count = shape.iter().product::<i64>() as u64;
        let key = name.bytes().fold(7u64, |key, byte| {
            key.wrapping_mul(1_000_003) + u64::from(byte)
        });
        let values: Vec<f32> = (0..count)
            .map(|i| match name {
                _ if self.poison == Some(name) => f32::NAN,
                _ if name.ends_with("norm.weight") => 1.0,
                _ => (draws::uniform(key, i, 0, 0) as f32 - 0.5) * 0.8,
            })
            .collect();
        Ok(Tensor::from_slice(&values).view(shape))
    }
}

fn config(moe: bool, dsa: bool) -> ModelConfig {
    ModelConfig {
        vocab_size: VOCAB,
        hidden_size: 32,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        max_position_embeddings: 64,
        tie_word_embeddings: false,
        bos_token_id: None,
        eos_token_ids: STOP.to_vec(),
        model_type: if moe {
            ModelType::Mixtral
        } else {
            ModelType::Llama
        },
        moe: moe.then_some(MoeConfig::mixtral(4, 2)),
        dsa: dsa.then_some(DsaConfig::new(4, 8, 6)),
        ..ModelConfig::sizeless_llama()
    }
}

fn load(config: &ModelConfig) -> Transformer {
    // Tiny operations: threads would only wait for each other.
    tch::set_num_threads(1);
    let mut weights = Weights { poison: None };
    Transformer::load(config, &mut weights, Kind::Float, Device::Cpu).unwrap()
}

fn settings(sampling: SamplingConfig, max_batch_sequences: usize) -> GenerationSettings {
    GenerationSettings {
        sampling,
        attention: Attention::Sparse,
        stop_tokens: STOP.to_vec(),
        vocabulary: Vocabulary::all(VOCAB - 2),
        seed: 11,
        policy_version: 6,
        max_batch_sequences,
    }
}

fn whole() -> SamplingConfig {
    SamplingConfig {
        max_new_tokens: 12,
        ..SamplingConfig::default()
    }
}

fn truncated() -> SamplingConfig {
    SamplingConfig {
        temperature: 0.9,
        top_k: 12,
        top_p: 0.93,
        min_p: 0.02,
        max_new_tokens: 12,
    }
}

/// Groups of 5, 1 and 8 samples with prompts of 9, 2 and 14 tokens.
fn requests() -> Vec<Request> {
    [(100, 9, 5), (101, 2, 1), (205, 14, 8)]
        .map(|(prompt_id, len, num_samples)| Request {
            prompt_id,
            tokens: (0..len)
                .map(|i| (prompt_id as u32 + i * 7) % VOCAB as u32)
                .collect(),
            num_samples,
        })
        .to_vec()
}

fn generate(
    model: &Transformer,
    settings: &GenerationSettings,
) -> (Vec<Vec<GeneratedSample>>, GenerationStats) {
    let requests = requests();
    let engine = Engine::new(model, settings, &requests).unwrap();
    engine.generate(&mut |_, _| ()).unwrap()
}

#[test]
fn samples_do_not_depend_on_the_batch() {
    for (moe, dsa) in [(true, true), (true, false), (false, false)] {
        let model = load(&config(moe, dsa));
        for sampling in [whole(), truncated()] {
            let (expected, _) = generate(&model, &settings(sampling.clone(), 64));
            for num_slots in [1, 3] {
                let (found, _) = generate(&model, &settings(sampling.clone(), num_slots));
                for (a, b) in found.iter().flatten().zip(expected.iter().flatten()) {
                    assert_eq!(a.tokens, b.tokens, "{num_slots} slots, {sampling:?}");
                    assert_eq!(a.finish_reason, b.finish_reason);
                    assert_eq!(a.kept, b.kept);
                    assert_eq!(a.routing, b.routing);
                    for (x, y) in a.sampler_logprobs.iter().zip(&b.sampler_logprobs) {
                        assert!((x - y).abs() < 1e-4, "{x} {y}");
                    }
                }
            }
        }
    }
}

#[test]
fn training_recomputes_the_sampler_logprobs_from_the_record() {
    for (moe, dsa) in [(true, true), (true, false), (false, true)] {
        let model = load(&config(moe, dsa));
        for sampling in [whole(), truncated()] {
            let (samples, _) = generate(&model, &settings(sampling.clone(), 3));
            for (request, group) in requests().iter().zip(&samples) {
                for sample in group {
                    let found = recomputed_logprobs(&model, request, sample, sampling.temperature);
                    assert_eq!(found.len(), sample.tokens.len());
                    for (x, y) in found.iter().zip(&sample.sampler_logprobs) {
                        assert!((x - y).abs() < 1e-4, "moe {moe} dsa {dsa}: {x} {y}");
                    }
                }
            }
        }
    }
}

/// One packed forward over prompt and completion with the recorded experts and kept tokens.
fn recomputed_logprobs(
    model: &Transformer,
    request: &Request,
    sample: &GeneratedSample,
    temperature: f64,
) -> Vec<f32> {
    let (prompt_len, len) = (request.tokens.len(), sample.tokens.len());
    let forwarded = [&request.tokens, &sample.tokens[..len - 1]].concat();
    let trace = &sample.routing;
    let routing = if model.config().moe.is_some() {
        assert_eq!(trace.num_tokens(), forwarded.len());
        let ids: Vec<i64> = trace.ids.iter().map(|&id| i64::from(id)).collect();
        let shape = [-1, trace.num_layers as i64, trace.top_k as i64];
        Routing::Replay(Tensor::from_slice(&ids).view(shape))
    } else {
        assert_eq!(
            *trace,
            RoutingTrace::default(),
            "dense models route nothing"
        );
        Routing::Free
    };
    let replays = matches!(routing, Routing::Replay(_));
    let options = ForwardOptions {
        routing,
        ..ForwardOptions::inference()
    };
    let input = PackedInput::from_sequences(&[&forwarded], model.device());
    let output = tch::no_grad(|| model.forward_packed(&input, &options));
    if replays {
        assert_eq!(output.routing_agreement, Some(1.0), "free routing agrees");
    }
    let rows = output.hidden.narrow(0, prompt_len as i64 - 1, len as i64);
    let targets: Vec<i64> = sample.tokens.iter().map(|&id| i64::from(id)).collect();
    let logprobs = tch::no_grad(|| {
        token_logprobs(
            &model.logits(&rows),
            &Tensor::from_slice(&targets),
            temperature,
            Some(&sample.kept),
        )
    });
    Vec::try_from(logprobs).unwrap()
}

#[test]
fn a_prompt_is_prefilled_once_for_its_group() {
    let model = load(&config(true, true));
    for num_slots in [1, 3, 64] {
        let (samples, stats) = generate(&model, &settings(whole(), num_slots));
        assert_eq!(stats.prefill_tokens, 9 + 2 + 14);
        let lens = || samples.iter().flatten().map(|sample| sample.tokens.len());
        assert_eq!(stats.sampled_tokens, lens().sum::<usize>());
        assert_eq!(
            stats.decoded_tokens,
            lens().map(|len| len - 1).sum::<usize>()
        );
        assert!(stats.mean_key_share > 0.0 && stats.mean_key_share < 1.0);
        assert!(stats.mean_entropy > 0.0 && stats.mean_entropy < (VOCAB as f64).ln());
        assert!(stats.prefill_secs > 0.0 && stats.decode_secs > 0.0);
    }
}

#[test]
fn samples_end_with_a_stop_token_or_at_the_limit() {
    let model = load(&config(true, false));
    let (samples, _) = generate(&model, &settings(truncated(), 4));
    let counts: Vec<usize> = samples.iter().map(Vec::len).collect();
    assert_eq!(counts, [5, 1, 8]);
    let mut reasons = Vec::new();
    for sample in samples.iter().flatten() {
        let (last, before) = sample.tokens.split_last().unwrap();
        assert!(before.iter().all(|token| !STOP.contains(token)));
        match sample.finish_reason {
            FinishReason::Stop => assert!(STOP.contains(last)),
            FinishReason::Length => {
                assert!(!STOP.contains(last) && sample.tokens.len() == 12);
            }
        }
        reasons.push(sample.finish_reason);
        assert_eq!(sample.policy_version, 6);
        assert_eq!(sample.kept.num_rows(), sample.tokens.len());
        for (i, token) in sample.tokens.iter().enumerate() {
            assert!(sample.kept.row(i).contains(token));
            assert!((*token as usize) < VOCAB - 2, "surplus ids are not sampled");
        }
        assert!(
            sample
                .sampler_logprobs
                .iter()
                .all(|&logprob| logprob <= 0.0)
        );
    }
    // The seed is chosen so that both kinds occur.
    assert!(reasons.contains(&FinishReason::Stop) && reasons.contains(&FinishReason::Length));
}

#[test]
fn samples_of_a_group_differ_and_follow_the_seed() {
    let model = load(&config(false, false));
    let (first, _) = generate(&model, &settings(whole(), 8));
    let mut other_seed = settings(whole(), 8);
    other_seed.seed = 12;
    let (second, _) = generate(&model, &other_seed);
    assert_ne!(first[0][0].tokens, first[0][1].tokens);
    assert_ne!(first[0][0].tokens, second[0][0].tokens);
}

#[test]
fn progress_counts_up_to_the_total() {
    let model = load(&config(false, false));
    let (requests, settings) = (requests(), settings(whole(), 4));
    let mut calls = Vec::new();
    let engine = Engine::new(&model, &settings, &requests).unwrap();
    engine
        .generate(&mut |finished, total| calls.push((finished, total)))
        .unwrap();
    assert!(calls.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert!(calls.iter().all(|&(_, total)| total == 14));
    assert_eq!(calls.last(), Some(&(14, 14)));
}

#[test]
fn no_requests_give_no_samples() {
    let model = load(&config(false, false));
    let settings = settings(whole(), 4);
    let engine = Engine::new(&model, &settings, &[]).unwrap();
    let (samples, stats) = engine.generate(&mut |_, _| ()).unwrap();
    assert_eq!((samples.len(), stats.sampled_tokens), (0, 0));
}

#[test]
fn prompts_beyond_the_context_are_refused_by_name() {
    let model = load(&config(false, false));
    let settings = settings(whole(), 4);
    let mut requests = requests();
    // 52 + 12 tokens fill the context of 64; one more does not fit.
    requests[1].tokens = vec![1; 52];
    assert!(Engine::new(&model, &settings, &requests).is_ok());
    requests[1].tokens = vec![1; 53];
    let message = Engine::new(&model, &settings, &requests)
        .unwrap_err()
        .to_string();
    assert!(message.starts_with("prompt 101 has 53 tokens"), "{message}");
}

#[test]
fn a_diverged_policy_is_an_error_that_names_the_sample() {
    let mut weights = Weights {
        poison: Some("lm_head.weight"),
    };
    let config = config(false, false);
    let model = Transformer::load(&config, &mut weights, Kind::Float, Device::Cpu).unwrap();
    let (requests, settings) = (requests(), settings(whole(), 4));
    let engine = Engine::new(&model, &settings, &requests).unwrap();
    let message = engine.generate(&mut |_, _| ()).unwrap_err().to_string();
    assert!(
        message.starts_with("prompt 100, sample 0, token 0"),
        "{message}"
    );
}
