//! The engine on tiny random models: equal samples whatever the batch, shared prefills, and errors.
//! Weights are large, so that every token depends on its context.

mod graphs;
mod parts;
mod pauses;
mod preemption;
mod replay;

use model::{
    Attention, DsaConfig, ForwardOutput, ModelConfig, ModelType, MoeConfig, WeightError,
    WeightSource,
};
use tch::{Device, Kind};

use super::*;
use crate::memory::{CacheMemory, MemorySettings};
use crate::sampler::SamplingConfig;
use crate::vocabulary::Vocabulary;

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
    load_in(config, Kind::Float)
}

fn load_in(config: &ModelConfig, kind: Kind) -> Transformer {
    load_on(config, kind, Device::Cpu)
}

fn load_on(config: &ModelConfig, kind: Kind, device: Device) -> Transformer {
    // Tiny operations: threads would only wait for each other.
    tch::set_num_threads(1);
    let mut weights = Weights { poison: None };
    Transformer::load(config, &mut weights, kind, device).unwrap()
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
        // Small pages, so that prompts of a few tokens take several.
        memory: MemorySettings {
            page_tokens: 4,
            ..MemorySettings::default()
        },
        record_selection: false,
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
            begun: Vec::new(),
            pauses: false,
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
        assert!(stats.mean_key_share() > 0.0 && stats.mean_key_share() < 1.0);
        assert!(stats.mean_entropy() > 0.0 && stats.mean_entropy() < (VOCAB as f64).ln());
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
            FinishReason::Unfinished => panic!("every sample ends"),
        }
        reasons.push(sample.finish_reason);
        assert_eq!(sample.policy_versions, vec![6; sample.tokens.len()]);
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

/// Plays the requests on one engine for `steps` steps, and to the end on another that gets what was begun.
fn generate_on_two_engines(
    model: &Transformer,
    settings: &GenerationSettings,
    steps: usize,
) -> Vec<GeneratedGroup> {
    let mut first = Engine::idle(model, settings, settings.max_batch_sequences);
    for request in requests() {
        first.submit(request).unwrap();
    }
    for _ in 0..steps {
        first.step().unwrap();
    }
    let mut groups = first.take_finished();
    let mut second = Engine::idle(model, settings, settings.max_batch_sequences);
    second.set_policy_version(7);
    for begun in first.in_flight() {
        let mut requests = requests().into_iter();
        let request = requests.find(|request| request.prompt_id == begun.prompt_id);
        second
            .submit(Request {
                begun: begun.samples,
                ..request.unwrap()
            })
            .unwrap();
    }
    while second.step().unwrap().is_some() {
        groups.extend(second.take_finished());
    }
    groups.extend(second.take_finished());
    assert!(second.in_flight().is_empty());
    groups.sort_by_key(|group| group.prompt_id);
    groups
}

#[test]
fn what_one_engine_began_another_ends_as_the_first_would_have() {
    for (moe, dsa) in [(true, true), (false, false)] {
        let model = load(&config(moe, dsa));
        for num_slots in [2, 4, 64] {
            let settings = settings(truncated(), num_slots);
            let (expected, _) = generate(&model, &settings);
            let mut num_spanning = 0;
            for steps in [0, 1, 2, 5, 9, 14] {
                let found = generate_on_two_engines(&model, &settings, steps);
                assert_eq!(found.len(), expected.len());
                let samples = found.iter().flat_map(|group| &group.samples);
                for (a, b) in samples.zip(expected.iter().flatten()) {
                    assert_eq!(a.tokens, b.tokens, "{num_slots} slots, {steps} steps");
                    assert_eq!(a.kept, b.kept);
                    assert_eq!(a.routing, b.routing);
                    assert_eq!(a.finish_reason, b.finish_reason);
                    for (x, y) in a.sampler_logprobs.iter().zip(&b.sampler_logprobs) {
                        assert!((x - y).abs() < 1e-4, "{x} {y}");
                    }
                    // Each token is of the version under which it was drawn.
                    assert_eq!(a.policy_versions.len(), a.tokens.len());
                    assert!(a.policy_versions.is_sorted());
                    assert!(
                        a.policy_versions
                            .iter()
                            .all(|version| [6, 7].contains(version))
                    );
                    num_spanning +=
                        usize::from(a.policy_versions.first() != a.policy_versions.last());
                }
            }
            assert!(num_spanning > 0, "no sample was cut in the middle");
        }
    }
}

#[test]
fn requests_may_come_while_others_are_at_work() {
    let model = load(&config(true, true));
    let settings = settings(whole(), 3);
    let (expected, _) = generate(&model, &settings);
    let mut engine = Engine::idle(&model, &settings, 3);
    let mut finished = Vec::new();
    for request in requests() {
        // The third prompt is the longest: the cache grows while sequences live in it.
        engine.submit(request).unwrap();
        for _ in 0..4 {
            engine.step().unwrap();
        }
        finished.extend(engine.take_finished());
    }
    while engine.step().unwrap().is_some() {
        finished.extend(engine.take_finished());
    }
    finished.sort_by_key(|group| group.prompt_id);
    assert_eq!(finished.len(), expected.len());
    for (group, expected) in finished.iter().zip(&expected) {
        let tokens = |samples: &[GeneratedSample]| -> Vec<Vec<u32>> {
            samples.iter().map(|sample| sample.tokens.clone()).collect()
        };
        assert_eq!(tokens(&group.samples), tokens(expected));
    }
    let stats = engine.take_stats();
    let lens = expected.iter().flatten().map(|sample| sample.tokens.len());
    assert_eq!(stats.sampled_tokens, lens.sum::<usize>());
    assert_eq!(engine.take_stats(), GenerationStats::default());
}

#[test]
fn siblings_of_a_prompt_begun_elsewhere_keep_its_recorded_experts() {
    let model = load(&config(true, false));
    let settings = settings(whole(), 1);
    // With one slot the group's first sample has ended and its siblings still wait.
    let mut first = Engine::idle(&model, &settings, 1);
    first.submit(requests().remove(0)).unwrap();
    while first.in_flight()[0]
        .samples
        .iter()
        .filter(|s| s.finish_reason != FinishReason::Unfinished)
        .count()
        < 1
    {
        first.step().unwrap();
    }
    let mut begun = first.in_flight().remove(0).samples;
    // As an older version of the policy might have chosen: the other experts.
    let mut other = begun[0].routing.clone();
    other.ids.iter_mut().for_each(|id| *id = 3 - *id);
    begun[0].routing = other.clone();
    let mut second = Engine::idle(&model, &settings, 1);
    let request = Request {
        begun,
        ..requests().remove(0)
    };
    let prompt = request.tokens.len() * other.num_layers * other.top_k;
    second.submit(request).unwrap();
    while second.step().unwrap().is_some() {}
    let samples = second.take_finished().remove(0).samples;
    assert_eq!(samples.len(), 5);
    for sample in &samples {
        assert_eq!(sample.routing.ids[..prompt], other.ids[..prompt]);
    }
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
        // That of the longest prompt comes first.
        message.starts_with("prompt 205, sample 0, token 0"),
        "{message}"
    );
}
