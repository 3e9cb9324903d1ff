//! Faults between sampler and learner, planted one at a time.

use super::*;

/// The finding of `check`, which must have failed for a reason that contains `cause`.
#[track_caller]
fn assert_cause(found: &[Finding], check: &str, cause: &str) {
    let finding = found.iter().find(|finding| finding.check == check);
    let finding = finding.unwrap_or_else(|| panic!("no {check}"));
    assert!(finding.has_failed(), "{finding}");
    let named = finding.cause.as_deref().unwrap();
    assert!(named.contains(cause), "{named}");
    assert!(finding.advice.is_some());
}

const MODELS: [fn() -> RunConfig; 3] = [dense, upcycled, v32];

#[test]
fn another_rope_theta_is_named() {
    for config in MODELS.map(|config| config()) {
        for sampling in [whole(), truncated()] {
            let learner = load(&config, Kind::Float);
            let sampler = load_as(&config, Kind::Float, |shape| shape.rope_theta = 100.0);
            let groups = play(&config, &sampler, &sampling);
            let found = examined(&sampler, &learner, &sampling, &groups);
            let cause = "turn positions differently (RoPE): rope_theta is 100";
            assert_cause(&found, "log-prob gap", cause);
        }
    }
}

#[test]
fn interleaved_against_half_split_rope_is_named() {
    let config = v32();
    let learner = load(&config, Kind::Float);
    let sampler = load_as(&config, Kind::Float, |shape| {
        let mla = shape.mla.as_mut().unwrap();
        mla.rope_interleave = !mla.rope_interleave;
    });
    let groups = play(&config, &sampler, &whole());
    let found = examined(&sampler, &learner, &whole(), &groups);
    let cause = "turn positions differently (RoPE): mla.rope_interleave is";
    assert_cause(&found, "log-prob gap", cause);
}

/// The rotation of the indexer alone: other keys are selected.
#[test]
fn an_indexer_that_turns_positions_differently_is_named() {
    let config = v32();
    let learner = load(&config, Kind::Float);
    let sampler = load_as(&config, Kind::Float, |shape| {
        let dsa = shape.dsa.as_mut().unwrap();
        dsa.rope_interleave = !dsa.rope_interleave;
    });
    let groups = play(&config, &sampler, &whole());
    let found = examined(&sampler, &learner, &whole(), &groups);
    let finding = found.iter().find(|f| f.check == "log-prob gap").unwrap();
    let cause = finding.cause.as_deref().unwrap();
    let is_named = cause.contains("the indexer selects other keys") || cause.contains("dsa.rope");
    assert!(is_named, "{cause}");
    let selected = found.iter().find(|f| f.check == "selected keys").unwrap();
    assert!(selected.has_failed());
}

#[test]
fn routing_that_was_dropped_is_named() {
    for config in [upcycled(), v32()] {
        let policy = load(&config, Kind::Float);
        let mut groups = play(&config, &policy, &truncated());
        samples(&mut groups).for_each(|sample| sample.routing = RoutingTrace::default());
        let found = examined(&policy, &policy, &truncated(), &groups);
        assert_cause(&found, "record", "dropped");
        assert!(found[0].measured.contains("no experts were recorded"));

        let mut groups = play(&config, &policy, &truncated());
        samples(&mut groups).for_each(|sample| sample.routing.ids.fill(0));
        let found = examined(&policy, &policy, &truncated(), &groups);
        assert_cause(&found, "record", "dropped");
        assert!(found[0].measured.contains("expert 0 was recorded twice"));
    }
}

/// With one expert a token zeros look like a record.
#[test]
fn zeros_in_place_of_experts_are_named() {
    let mut config = upcycled();
    config.model.upcycle.as_mut().unwrap().top_k = 1;
    let policy = load(&config, Kind::Float);
    let mut groups = play(&config, &policy, &whole());
    samples(&mut groups).for_each(|sample| sample.routing.ids.fill(0));
    let found = examined(&policy, &policy, &whole(), &groups);
    let cause = "the experts on record (expert 0 everywhere) are not those that the sampler used";
    assert_cause(&found, "log-prob gap", cause);
    assert_cause(&found, "routing", "expert 0 is on record for every token");
}

#[test]
fn rows_of_experts_in_another_order_are_named() {
    for config in [upcycled(), v32()] {
        let policy = load(&config, Kind::Float);
        let mut groups = play(&config, &policy, &whole());
        for sample in samples(&mut groups) {
            let row = sample.routing.num_layers * sample.routing.top_k;
            // The prompt's rows stay: they are shared. Those of the completion move on by one.
            let from = sample.routing.ids.len() - (sample.tokens.len() - 1) * row;
            if sample.tokens.len() > 2 {
                sample.routing.ids[from..].rotate_right(row);
            }
        }
        let found = examined(&policy, &policy, &whole(), &groups);
        let cause = "the experts on record are not those that the sampler used";
        assert_cause(&found, "log-prob gap", cause);
        assert_cause(&found, "routing", "that of the log-prob gap");
    }
}

#[test]
fn shifted_log_probs_are_named_with_their_direction() {
    for config in MODELS.map(|config| config()) {
        let policy = load(&config, Kind::Float);
        for (later, text) in [
            (true, "of the token 1 place later"),
            (false, "1 place earlier"),
        ] {
            let mut groups = play(&config, &policy, &truncated());
            for sample in samples(&mut groups) {
                match later {
                    true => sample.sampler_logprobs.rotate_left(1),
                    false => sample.sampler_logprobs.rotate_right(1),
                }
            }
            let found = examined(&policy, &policy, &truncated(), &groups);
            assert_cause(&found, "log-prob gap", text);
        }
    }
}

/// Another object with other weights, in f32; in bf16 one policy that was changed and not published.
#[test]
fn stale_weights_are_named() {
    let nudge = |policy: &Transformer| {
        for parameter in policy.parameters() {
            if parameter.name.ends_with("proj.weight") {
                let mut master = parameter.master.detach();
                let noise = master.randn_like() * 0.01;
                tch::no_grad(|| master += noise);
            }
        }
    };
    tch::manual_seed(5);
    for config in MODELS.map(|config| config()) {
        let (sampler, learner) = (load(&config, Kind::Float), load(&config, Kind::Float));
        nudge(&learner);
        let groups = play(&config, &sampler, &truncated());
        let found = examined(&sampler, &learner, &truncated(), &groups);
        assert_cause(&found, "log-prob gap", "the sampler has stale weights");

        let policy = load(&config, Kind::BFloat16);
        // An update larger than what bf16 rounds away.
        (0..6).for_each(|_| nudge(&policy));
        let groups = play(&config, &policy, &truncated());
        let found = examined(&policy, &policy, &truncated(), &groups);
        assert_cause(&found, "log-prob gap", "the sampler has stale weights");
        policy.publish();
        let groups = play(&config, &policy, &truncated());
        let found = examined(&policy, &policy, &truncated(), &groups);
        assert!(!found.iter().any(Finding::has_failed));
    }
}

#[test]
fn another_temperature_is_found() {
    for config in MODELS.map(|config| config()) {
        let policy = load(&config, Kind::Float);
        // Ignored, and another one.
        for (configured, used) in [(0.7, 1.0), (1.0, 0.6)] {
            let at = |temperature| SamplingConfig {
                temperature,
                ..whole()
            };
            let groups = play(&config, &policy, &at(used));
            let found = examined(&policy, &policy, &at(configured), &groups);
            let cause = format!("the sampler's temperature is {used:.2}");
            assert_cause(&found, "log-prob gap", &cause);
        }
        let warmer = SamplingConfig {
            temperature: 1.1,
            ..truncated()
        };
        let groups = play(&config, &policy, &warmer);
        let found = examined(&policy, &policy, &truncated(), &groups);
        assert_cause(&found, "log-prob gap", "the sampler's temperature is 1.10");
        assert_cause(&found, "kept tokens", "that of the log-prob gap");
    }
}

#[test]
fn kept_tokens_that_were_dropped_are_named() {
    for config in MODELS.map(|config| config()) {
        let policy = load(&config, Kind::Float);
        let mut groups = play(&config, &policy, &truncated());
        for sample in samples(&mut groups) {
            let mut kept = KeptTokens::default();
            sample.tokens.iter().for_each(|_| kept.push(&[]));
            sample.kept = kept;
        }
        let found = examined(&policy, &policy, &truncated(), &groups);
        assert_cause(&found, "record", "dropped");
        assert!(found[0].measured.contains("token 0 has no kept tokens"));
        let cause = "the kept tokens on record are not those that the sampler renormalised over";
        assert_cause(&found, "log-prob gap", cause);
    }
}

#[test]
fn a_sampler_that_does_not_renormalise_is_named() {
    let config = dense();
    let policy = load(&config, Kind::Float);
    let mut groups = play(&config, &policy, &truncated());
    // What a trainer without the mask computes is what such a sampler would report.
    let tokenizer = Tokenizer::byte_level();
    let sampling = truncated();
    for group in &mut groups {
        for sample in &mut group.samples {
            let tokens = [&group.prompt.tokens[..], &sample.tokens].concat();
            let input = model::PackedInput::from_sequences(&[&tokens], Device::Cpu);
            let options = model::ForwardOptions::inference();
            let hidden = tch::no_grad(|| policy.forward_packed(&input, &options)).hidden;
            let (start, len) = (group.prompt.tokens.len() as i64, sample.tokens.len() as i64);
            let rows =
                tch::Tensor::arange_start(start - 1, start + len - 1, (Kind::Int64, Device::Cpu));
            let targets = input.tokens.narrow(0, start, len);
            let logprobs =
                policy.token_logprobs(&hidden, &rows, &targets, sampling.temperature, None);
            sample.sampler_logprobs = Vec::try_from(logprobs.detach()).unwrap();
        }
    }
    let found = diagnose(&observe(
        &players(&policy, &policy, &tokenizer, &sampling),
        &groups,
    ));
    assert_cause(
        &found,
        "log-prob gap",
        "the sampler ignored the kept tokens",
    );
}

/// Switched off where they matter.
#[test]
fn techniques_that_a_run_leaves_out_are_named() {
    let (config, sampling, tokenizer) = (upcycled(), truncated(), Tokenizer::byte_level());
    let policy = load(&config, Kind::Float);
    let groups = play(&config, &policy, &sampling);
    let without_mask = Players {
        keep_sampling_mask: false,
        ..players(&policy, &policy, &tokenizer, &sampling)
    };
    let found = diagnose(&observe(&without_mask, &groups));
    assert_cause(
        &found,
        "log-prob gap",
        "the trainer ignores the kept tokens",
    );

    // A router that changed since the samples were drawn.
    let learner = load(&config, Kind::Float);
    for parameter in learner.parameters() {
        if parameter.name.ends_with("gate.weight") {
            let _ = tch::no_grad(|| parameter.master.shallow_clone().neg_());
        }
    }
    let free = Players {
        keep_routing: false,
        ..players(&policy, &learner, &tokenizer, &sampling)
    };
    let found = diagnose(&observe(&free, &groups));
    let failed = found.iter().find(|f| f.check == "routing").unwrap();
    assert!(failed.has_failed() && failed.measured.contains("does not replay"));
}

#[test]
fn attention_that_differs_is_named() {
    for config in [upcycled(), v32()] {
        let (policy, tokenizer, sampling) =
            (load(&config, Kind::Float), Tokenizer::byte_level(), whole());
        let groups = play(&config, &policy, &sampling);
        let dense = Players {
            attention: Attention::Dense,
            ..players(&policy, &policy, &tokenizer, &sampling)
        };
        let found = diagnose(&observe(&dense, &groups));
        let cause = "the sampler's attention is sparse, the trainer's dense";
        assert_cause(&found, "log-prob gap", cause);
    }
}

/// A decode step at wrong positions: right after the prompt, wrong from the first decoded token on.
#[test]
fn a_fault_of_decoding_alone_is_told_by_where_the_gap_begins() {
    let config = dense();
    let policy = load(&config, Kind::Float);
    let spoilt = load_as(&config, Kind::Float, |shape| shape.rope_theta = 3.0);
    let mut groups = play(&config, &policy, &whole());
    let tokenizer = Tokenizer::byte_level();
    for group in &mut groups {
        for sample in &mut group.samples {
            let tokens = [&group.prompt.tokens[..], &sample.tokens].concat();
            let input = model::PackedInput::from_sequences(&[&tokens], Device::Cpu);
            let options = model::ForwardOptions {
                routing: Routing::Free,
                ..model::ForwardOptions::inference()
            };
            let hidden = tch::no_grad(|| spoilt.forward_packed(&input, &options)).hidden;
            let (start, len) = (group.prompt.tokens.len() as i64, sample.tokens.len() as i64);
            let rows =
                tch::Tensor::arange_start(start - 1, start + len - 1, (Kind::Int64, Device::Cpu));
            let targets = input.tokens.narrow(0, start, len);
            let wrong = spoilt.token_logprobs(&hidden, &rows, &targets, 1.0, None);
            let wrong: Vec<f32> = Vec::try_from(wrong.detach()).unwrap();
            sample.sampler_logprobs[1..].copy_from_slice(&wrong[1..]);
        }
    }
    let sampling = whole();
    let found = diagnose(&observe(
        &players(&policy, &policy, &tokenizer, &sampling),
        &groups,
    ));
    assert_cause(
        &found,
        "log-prob gap",
        "the gap begins with the first decoded token",
    );
}

#[test]
fn samples_that_can_not_be_compared_fail_without_a_panic() {
    let config = dense();
    let policy = load(&config, Kind::Float);
    let mut groups = play(&config, &policy, &whole());
    groups[1].samples[2].sampler_logprobs.pop();
    let found = examined(&policy, &policy, &whole(), &groups);
    assert_cause(&found, "record", "dropped");
    assert!(found[0].measured.contains("sampler log-probs"));
    assert_cause(&found, "log-prob gap", "don't hold what the learner needs");
    let found = examined(&policy, &policy, &whole(), &[]);
    assert!(found[1].has_failed());
}
