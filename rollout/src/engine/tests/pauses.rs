//! Samples of several turns: what they draw and record is what one pass over the whole conversation gives.

use super::*;
use crate::generation::PausedSample;

/// Requests that pause, with room for some turns.
fn talking() -> Vec<Request> {
    let pausing = |request| Request {
        pauses: true,
        ..request
    };
    requests().into_iter().map(pausing).collect()
}

fn talking_settings() -> GenerationSettings {
    let sampling = SamplingConfig {
        max_new_tokens: 30,
        ..SamplingConfig::default()
    };
    settings(sampling, 3)
}

/// The answer to a turn: some tokens that depend on it and are no stop tokens.
fn answer(turn: &[u32]) -> Vec<u32> {
    let sum: u32 = turn.iter().sum();
    (0..1 + sum % 3).map(|i| 20 + (sum + i) % 15).collect()
}

struct Talk {
    samples: Vec<Vec<GeneratedSample>>,
    num_answers: usize,
    stats: GenerationStats,
}

/// Runs `requests` to their end; every turn is answered while there is room, after `patience` further steps.
fn talk(model: &Transformer, settings: &GenerationSettings, patience: usize) -> Talk {
    let requests = talking();
    let mut engine = Engine::new(model, settings, &requests).unwrap();
    let mut waiting: Vec<(usize, PausedSample)> = Vec::new();
    let (mut groups, mut num_answers, mut step) = (Vec::new(), 0, 0);
    while groups.len() < requests.len() {
        let went = engine.step().unwrap();
        step += 1;
        let paused = engine.take_paused().into_iter();
        let paused = paused.filter(|paused| !paused.is_cut);
        waiting.extend(paused.map(|paused| (step + patience, paused)));
        let is_idle = went.is_none();
        assert!(!is_idle || !waiting.is_empty(), "nothing left to be done");
        let (due, later) = waiting
            .into_iter()
            .partition(|(at, _)| *at <= step || is_idle);
        waiting = later;
        for (_, paused) in due {
            let given = answer(&paused.turn);
            match given.len() < paused.room {
                true => {
                    num_answers += 1;
                    engine
                        .resume(paused.prompt_id, paused.sample, &given)
                        .unwrap();
                }
                false => {
                    let reason = FinishReason::Length;
                    engine.finish_paused(paused.prompt_id, paused.sample, reason);
                }
            }
        }
        groups.extend(engine.take_finished());
    }
    assert_eq!(engine.step().unwrap(), None);
    groups.sort_by_key(|group| group.prompt_id);
    Talk {
        samples: groups.into_iter().map(|group| group.samples).collect(),
        num_answers,
        stats: engine.take_stats(),
    }
}

/// Every recorded number against one forward pass over prompt and completion.
fn check_against_one_pass(model: &Transformer, request: &Request, sample: &GeneratedSample) {
    let all: Vec<u32> = request
        .tokens
        .iter()
        .chain(&sample.tokens)
        .copied()
        .collect();
    let num_run = all.len() - 1;
    let shape = CacheShape {
        num_slots: 1,
        num_pages: 16,
        page_tokens: 8,
    };
    let mut cache = KvCache::of_pages(model.config(), shape, model.kind(), model.device());
    cache.reserve(model.config(), all.len(), 16);
    let settings = talking_settings();
    let options = forward_options(&settings);
    let output = tch::no_grad(|| {
        cache.pages.begin(0, num_run);
        model.prefill_behind(&mut cache, &[0], &[0], &[&all[..num_run]], &options)
    });
    if model.config().moe.is_some() {
        let mut rows = routing_rows::RoutingRows::of(&output);
        assert_eq!(sample.routing, rows.take(num_run), "experts of every token");
    }
    let logprobs = model.logits(&output.hidden).log_softmax(-1, Kind::Float);
    let prompt = request.tokens.len();
    for (index, &token) in sample.tokens.iter().enumerate() {
        if sample.given.iter().any(|given| given.contains(&index)) {
            assert_eq!(sample.sampler_logprobs[index], 0.0);
            assert!(sample.kept.row(index).is_empty());
            continue;
        }
        let row = (prompt + index - 1) as i64;
        let expected = logprobs.double_value(&[row, i64::from(token)]) as f32;
        let got = sample.sampler_logprobs[index];
        assert!(
            (got - expected).abs() < 1e-4,
            "token {index}: {got} {expected}"
        );
    }
}

#[test]
fn turns_are_recorded_as_one_pass_over_the_conversation_would() {
    for (moe, dsa) in [(false, false), (true, false), (true, true)] {
        let model = load(&config(moe, dsa));
        let talk = talk(&model, &talking_settings(), 2);
        assert!(talk.num_answers > 3, "{}", talk.num_answers);
        for (request, samples) in talking().iter().zip(&talk.samples) {
            assert_eq!(samples.len(), request.num_samples);
            samples
                .iter()
                .for_each(|sample| check_against_one_pass(&model, request, sample));
        }
    }
}

#[test]
fn only_the_stop_token_and_the_answer_are_run_when_a_turn_goes_on() {
    let model = load(&config(true, false));
    let talk = talk(&model, &talking_settings(), 0);
    let given: usize = talk
        .samples
        .iter()
        .flatten()
        .map(|s| s.given.iter().map(ExactSizeIterator::len).sum::<usize>())
        .sum();
    let prompts: usize = talking().iter().map(|request| request.tokens.len()).sum();
    // The stop token takes the place of the last given one, which the next step runs.
    assert_eq!(talk.stats.prefill_tokens, prompts + given);
    assert_eq!(talk.stats.preemptions, 0);
}

#[test]
fn samples_do_not_depend_on_how_long_answers_take_or_on_room_in_the_cache() {
    let model = load(&config(true, false));
    let at_once = talk(&model, &talking_settings(), 0);
    let late = talk(&model, &talking_settings(), 7);
    let mut tight = talking_settings();
    let longest = talking()
        .iter()
        .map(|request| request.tokens.len())
        .max()
        .unwrap();
    let tokens = longest + tight.sampling.max_new_tokens;
    let page_bytes = KvCache::token_bytes(model.config(), tight.memory.page_tokens, Kind::Float);
    let pages = tokens.div_ceil(tight.memory.page_tokens) + 2;
    tight.memory.cache = CacheMemory::Bytes((pages * page_bytes) as u64);
    let short = talk(&model, &tight, 3);
    assert!(
        short.stats.prefill_tokens > late.stats.prefill_tokens,
        "pages were let go of"
    );
    // Log-probs differ in their last digits, as products over other numbers of rows do.
    let tokens = |talk: &Talk| -> Vec<Vec<u32>> {
        let samples = talk.samples.iter().flatten();
        samples.map(|sample| sample.tokens.clone()).collect()
    };
    assert!(tokens(&at_once) == tokens(&late));
    assert!(tokens(&short) == tokens(&late));
}
