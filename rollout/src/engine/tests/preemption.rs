//! A cache with too few pages: samples are taken out and run again, and are what they would have been.

use super::*;

/// A budget of so many pages for all of a model's layers.
pub(super) fn with_pages(
    model: &Transformer,
    settings: &GenerationSettings,
    pages: u64,
) -> GenerationSettings {
    let page_tokens = settings.memory.page_tokens;
    let page_bytes = KvCache::token_bytes(model.config(), page_tokens, model.kind()) as u64;
    GenerationSettings {
        memory: MemorySettings {
            cache: CacheMemory::Bytes(pages * page_bytes + page_bytes / 2),
            ..settings.memory
        },
        ..settings.clone()
    }
}

#[test]
fn samples_do_not_depend_on_how_many_pages_there_are() {
    for (moe, dsa) in [(true, true), (true, false), (false, false)] {
        let model = load(&config(moe, dsa));
        for sampling in [whole(), truncated()] {
            let plenty = GenerationSettings {
                record_selection: dsa,
                ..settings(sampling, 64)
            };
            let (expected, stats) = generate(&model, &plenty);
            assert_eq!(stats.preemptions, 0);
            let mut num_preempted = 0;
            // The longest sequence, 14 + 12 tokens, takes seven pages; two prompts more, ten.
            for pages in [7, 8, 10, 13, 20] {
                for num_slots in [2, 5, 64] {
                    let settings = GenerationSettings {
                        max_batch_sequences: num_slots,
                        ..with_pages(&model, &plenty, pages)
                    };
                    let (found, stats) = generate(&model, &settings);
                    num_preempted += stats.preemptions;
                    for (a, b) in found.iter().flatten().zip(expected.iter().flatten()) {
                        assert_eq!(a.tokens, b.tokens, "{pages} pages, {num_slots} slots");
                        assert_eq!((&a.kept, &a.routing), (&b.kept, &b.routing));
                        assert_eq!(a.selection, b.selection);
                        assert_eq!(a.finish_reason, b.finish_reason);
                        for (x, y) in a.sampler_logprobs.iter().zip(&b.sampler_logprobs) {
                            assert!((x - y).abs() < 1e-5, "{x} {y}");
                        }
                    }
                }
            }
            assert!(num_preempted > 20, "{num_preempted}");
        }
    }
}

#[test]
fn a_short_prefill_budget_changes_no_sample() {
    let model = load(&config(true, false));
    let plenty = settings(whole(), 64);
    let (expected, _) = generate(&model, &plenty);
    let mut short = plenty;
    // The prompt of 14 tokens whole, and then those of 9 and 2.
    short.memory.max_prefill_tokens = 14;
    let (found, stats) = generate(&model, &short);
    assert_eq!(stats.prefill_tokens, 9 + 2 + 14);
    for (a, b) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert_eq!(a.tokens, b.tokens);
    }
}

#[test]
fn a_sample_that_is_run_again_leaves_the_prompt_to_siblings_that_hold_it() {
    let model = load(&config(true, true));
    let plenty = GenerationSettings {
        record_selection: true,
        // No sample ends early.
        stop_tokens: Vec::new(),
        ..settings(whole(), 8)
    };
    // 8 samples of a prompt of 14 tokens, three whole pages and a part of the fourth.
    let group = || requests().split_off(2);
    let run = |settings: &GenerationSettings| {
        let engine = Engine::new(&model, settings, &group()).unwrap();
        engine.generate(&mut |_, _| ()).unwrap()
    };
    let (expected, _) = run(&plenty);
    let (found, stats) = run(&with_pages(&model, &plenty, 16));
    assert!(stats.preemptions > 2, "{}", stats.preemptions);
    // Less than their prompts alone would be.
    let again = stats.prefill_tokens - 14;
    assert!(again < 14 * stats.preemptions, "{again}");
    for (a, b) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert_eq!((&a.tokens, &a.routing), (&b.tokens, &b.routing));
        assert_eq!(a.selection, b.selection);
        for (x, y) in a.sampler_logprobs.iter().zip(&b.sampler_logprobs) {
            assert!((x - y).abs() < 1e-5, "{x} {y}");
        }
    }
}

#[test]
fn a_cache_that_has_no_room_to_grow_beside_itself_is_emptied_first() {
    let model = load(&config(true, true));
    let plenty = settings(whole(), 3);
    let (expected, _) = generate(&model, &plenty);
    // Three slots of 2 + 12 tokens take 15 pages, of 14 + 12 tokens 24: together more than there may be.
    let settings = with_pages(&model, &plenty, 25);
    let mut engine = Engine::idle(&model, &settings, 3);
    let mut finished = Vec::new();
    for index in [1, 0, 2] {
        engine.submit(requests().remove(index)).unwrap();
        for _ in 0..3 {
            engine.step().unwrap();
        }
        finished.extend(engine.take_finished());
    }
    while engine.step().unwrap().is_some() {
        finished.extend(engine.take_finished());
    }
    finished.sort_by_key(|group| group.prompt_id);
    assert!(engine.take_stats().preemptions > 0);
    let tokens = |samples: &[GeneratedSample]| -> Vec<Vec<u32>> {
        samples.iter().map(|sample| sample.tokens.clone()).collect()
    };
    for (group, expected) in finished.iter().zip(&expected) {
        assert_eq!(tokens(&group.samples), tokens(expected));
    }
    assert_eq!(finished.len(), 3);
}

#[test]
fn a_budget_below_one_sequence_is_an_error_that_names_the_key() {
    let model = load(&config(false, false));
    let settings = with_pages(&model, &settings(whole(), 4), 6);
    let error = Engine::new(&model, &settings, &requests()).unwrap_err();
    let message = error.to_string();
    // Seven pages of 4 tokens, in 2 layers of 2 x 2 x 8 numbers.
    for part in [
        "prompt 205 ",
        "takes 7168 bytes",
        "allows 6656",
        "raise `cache_memory`",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
}
