//! Prompts longer than one prefill may be: they go in parts, others decode in between, and samples are what they would
//! have been.

use super::preemption::with_pages;
use super::replay::models;
use super::*;

fn in_parts(settings: &GenerationSettings, max_prefill_tokens: usize) -> GenerationSettings {
    GenerationSettings {
        memory: MemorySettings {
            max_prefill_tokens,
            ..settings.memory
        },
        ..settings.clone()
    }
}

#[track_caller]
fn assert_same_samples(
    found: &[Vec<GeneratedSample>],
    expected: &[Vec<GeneratedSample>],
    what: &str,
) {
    for (a, b) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert_eq!(a.tokens, b.tokens, "{what}");
        assert_eq!((&a.kept, &a.routing), (&b.kept, &b.routing), "{what}");
        assert_eq!(a.selection, b.selection, "{what}");
        assert_eq!(a.finish_reason, b.finish_reason, "{what}");
        for (x, y) in a.sampler_logprobs.iter().zip(&b.sampler_logprobs) {
            assert!((x - y).abs() < 1e-5, "{what}: {x} {y}");
        }
    }
}

#[test]
fn samples_do_not_depend_on_the_parts_of_their_prompts() {
    for (name, config) in models() {
        let model = load(&config);
        for sampling in [whole(), truncated()] {
            let plenty = GenerationSettings {
                record_selection: config.dsa.is_some(),
                ..settings(sampling, 64)
            };
            let (expected, _) = generate(&model, &plenty);
            for max_prefill_tokens in [1, 3, 4, 8, 13] {
                for num_slots in [1, 3, 64] {
                    let settings = GenerationSettings {
                        max_batch_sequences: num_slots,
                        ..in_parts(&plenty, max_prefill_tokens)
                    };
                    let (found, stats) = generate(&model, &settings);
                    assert_eq!(stats.prefill_tokens, 9 + 2 + 14);
                    let what = format!("{name}, {max_prefill_tokens} at once, {num_slots} slots");
                    assert_same_samples(&found, &expected, &what);
                }
            }
        }
    }
}

#[test]
fn with_few_pages_too_samples_do_not_depend_on_parts() {
    for (name, config) in models() {
        let model = load(&config);
        let plenty = GenerationSettings {
            record_selection: config.dsa.is_some(),
            ..settings(truncated(), 64)
        };
        let (expected, _) = generate(&model, &plenty);
        let mut num_preempted = 0;
        for max_prefill_tokens in [1, 3, 5, 16] {
            for pages in [7, 8, 10, 13] {
                for num_slots in [2, 5, 64] {
                    let settings = GenerationSettings {
                        max_batch_sequences: num_slots,
                        ..with_pages(&model, &in_parts(&plenty, max_prefill_tokens), pages)
                    };
                    let (found, stats) = generate(&model, &settings);
                    num_preempted += stats.preemptions;
                    let what = format!("{name}, {max_prefill_tokens} at once, {pages} pages");
                    assert_same_samples(&found, &expected, &what);
                }
            }
        }
        assert!(num_preempted > 20, "{num_preempted}");
    }
}

/// Tokens drawn of each sample at work, by request.
fn num_drawn(engine: &Engine) -> Vec<Vec<usize>> {
    let groups = engine.in_flight().into_iter();
    groups
        .map(|group| group.samples.iter().map(|s| s.tokens.len()).collect())
        .collect()
}

#[test]
fn live_sequences_take_a_step_between_two_parts() {
    let model = load(&config(true, true));
    let long = in_parts(&settings(whole(), 4), 4);
    let settings = GenerationSettings {
        // No sample ends early.
        stop_tokens: Vec::new(),
        ..long
    };
    let mut engine = Engine::idle(&model, &settings, 4);
    let [_, short, long] = <[Request; 3]>::try_from(requests()).unwrap();
    engine.submit(short).unwrap();
    engine.step().unwrap();
    engine
        .submit(Request {
            num_samples: 2,
            ..long
        })
        .unwrap();
    let mut drawn = Vec::new();
    for _ in 0..8 {
        engine.step().unwrap();
        drawn.push(num_drawn(&engine));
    }
    let short_alone = |count| vec![vec![count], vec![]];
    let expected = [
        // 4 of the 14 tokens, and a token of the other prompt's sample.
        short_alone(1),
        short_alone(2),
        short_alone(2),
        short_alone(3),
        short_alone(3),
        short_alone(4),
        // The last two tokens, and both samples start.
        vec![vec![4], vec![1, 1]],
        vec![vec![5], vec![2, 2]],
    ];
    assert_eq!(drawn, expected);
    assert_eq!(engine.take_stats().prefill_tokens, 2 + 14);
}

#[test]
fn weights_that_change_between_parts_leave_the_keys_and_make_the_first_token_theirs() {
    let model = load(&config(true, false));
    let settings = in_parts(&settings(whole(), 4), 6);
    let run = |changes_after: Option<usize>| {
        let mut engine = Engine::idle(&model, &settings, 4);
        engine.submit(requests().remove(2)).unwrap();
        let head = model
            .parameters()
            .into_iter()
            .find(|p| p.name == "lm_head.weight");
        let mut head = head.unwrap().master.detach();
        let before = head.copy();
        for step in 0.. {
            if changes_after == Some(step) {
                let _ = tch::no_grad(|| head.neg_());
                engine.set_policy_version(7);
            }
            if engine.step().unwrap().is_none() {
                break;
            }
        }
        tch::no_grad(|| head.copy_(&before));
        let samples = engine.take_finished().remove(0).samples;
        (samples, engine.take_stats().prefill_tokens)
    };
    let (before, _) = run(None);
    // 14 tokens in parts of 6: after two of three.
    let (between, num_run) = run(Some(2));
    let (from_the_start, _) = run(Some(0));
    assert_eq!(num_run, 14, "nothing is run again");
    for (index, sample) in between.iter().enumerate() {
        assert!(sample.policy_versions.iter().all(|&version| version == 7));
        // The head alone changed, so the keys are those that they would be.
        assert_eq!(sample.tokens, from_the_start[index].tokens);
    }
    assert!(
        before
            .iter()
            .zip(&between)
            .any(|(a, b)| a.tokens != b.tokens)
    );
}

#[test]
fn a_prompt_in_parts_is_taken_out_where_the_cache_grows_and_loses_nothing() {
    let model = load(&config(true, true));
    let plenty = settings(whole(), 3);
    let (expected, _) = generate(&model, &plenty);
    let settings = with_pages(&model, &in_parts(&plenty, 4), 25);
    let mut engine = Engine::idle(&model, &settings, 3);
    // The prompt of 9 tokens is between its parts when the longer one comes and the cache is emptied.
    engine.submit(requests().remove(0)).unwrap();
    engine.step().unwrap();
    engine.submit(requests().remove(2)).unwrap();
    engine.submit(requests().remove(1)).unwrap();
    let mut finished = Vec::new();
    while engine.step().unwrap().is_some() {
        finished.extend(engine.take_finished());
    }
    let stats = engine.take_stats();
    assert_eq!(stats.preemptions, 1);
    assert_eq!(stats.prefill_tokens, 4 + 9 + 2 + 14);
    finished.sort_by_key(|group| group.prompt_id);
    let samples: Vec<Vec<GeneratedSample>> =
        finished.into_iter().map(|group| group.samples).collect();
    assert_same_samples(&samples, &expected, "after the cache has grown");
}

#[test]
fn another_engine_begins_a_prompt_in_parts_anew() {
    let model = load(&config(true, true));
    let settings = in_parts(&settings(truncated(), 4), 4);
    let (expected, _) = generate(&model, &settings);
    for steps in [0, 1, 2, 3, 4, 6, 9] {
        let found = generate_on_two_engines(&model, &settings, steps);
        let samples: Vec<Vec<GeneratedSample>> =
            found.into_iter().map(|group| group.samples).collect();
        let tokens = |groups: &[Vec<GeneratedSample>]| -> Vec<Vec<u32>> {
            let samples = groups.iter().flatten();
            samples.map(|sample| sample.tokens.clone()).collect()
        };
        assert_eq!(tokens(&samples), tokens(&expected), "{steps} steps");
    }
}
