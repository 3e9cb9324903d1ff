//! What is sound passes, in f32 and in bf16.

use super::*;

fn assert_sound(config: &RunConfig, kind: Kind) {
    // In a run both sides are one network.
    let policy = load(config, kind);
    for sampling in [whole(), truncated()] {
        let groups = play(config, &policy, &sampling);
        let found = examined(&policy, &policy, &sampling, &groups);
        assert!(!found.iter().any(Finding::has_failed), "{sampling:?}");
        let shape = policy.config();
        let checks: Vec<&str> = found.iter().map(|finding| finding.check).collect();
        let mut expected = vec!["record", "log-prob gap"];
        expected.extend(shape.moe.as_ref().map(|_| "routing"));
        expected.extend(sampling.truncates().then_some("kept tokens"));
        expected.extend(shape.dsa.as_ref().map(|_| "selected keys"));
        assert_eq!(checks, expected);
    }
}

#[test]
fn sound_policies_pass_in_f32() {
    for config in [dense(), upcycled(), v32()] {
        assert_sound(&config, Kind::Float);
    }
}

#[test]
fn sound_policies_pass_in_bf16() {
    for config in [dense(), upcycled(), v32()] {
        assert_sound(&config, Kind::BFloat16);
    }
}

/// The limits of f32 leave room: an order of magnitude for the gap.
#[test]
fn gaps_of_sound_policies_lie_well_below_the_limits() {
    for (kind, room) in [(Kind::Float, 10.0), (Kind::BFloat16, 2.0)] {
        let limits = limits::Limits::of(kind);
        for config in [dense(), upcycled(), v32()] {
            let policy = load(&config, kind);
            let groups = play(&config, &policy, &truncated());
            let tokenizer = Tokenizer::byte_level();
            let sampling = truncated();
            let players = players(&policy, &policy, &tokenizer, &sampling);
            let gap = observe(&players, &groups).gap.unwrap().gap;
            assert!(gap.mean * room < limits.gap_mean, "{kind:?}: {gap:?}");
            assert!(gap.max * room < limits.gap_max, "{kind:?}: {gap:?}");
        }
    }
}

/// An indexer that is yet to be trained selects by near ties: what rounding makes of them is no fault.
#[test]
fn a_new_indexer_is_left_out_of_the_gap() {
    for config in [upcycled(), v32()] {
        let (sampler, learner) = (load(&config, Kind::Float), load(&config, Kind::Float));
        for parameter in learner.parameters() {
            if parameter.name.ends_with("indexer.weights_proj.weight") {
                let _ = tch::no_grad(|| parameter.master.shallow_clone().neg_());
            }
        }
        let (sampling, tokenizer) = (truncated(), Tokenizer::byte_level());
        let groups = play(&config, &sampler, &sampling);
        let as_trained = players(&sampler, &learner, &tokenizer, &sampling);
        let found = diagnose(&observe(&as_trained, &groups));
        assert!(found[1].has_failed());
        let cause = found[1].cause.as_deref().unwrap();
        assert!(cause.contains("the indexer selects other keys"), "{cause}");
        let as_new = Players {
            indexer_is_new: true,
            ..as_trained
        };
        let found = diagnose(&observe(&as_new, &groups));
        let failed: Vec<&str> = found
            .iter()
            .filter(|f| f.has_failed())
            .map(|f| f.check)
            .collect();
        assert_eq!(
            failed,
            ["selected keys"],
            "that much other keys is no near tie"
        );
        assert!(
            found[1].measured.contains("on the recorded keys"),
            "{}",
            found[1]
        );
    }
}

#[test]
fn activation_checkpointing_and_the_size_of_micro_batches_change_nothing() {
    let (config, sampling, tokenizer) = (v32(), truncated(), Tokenizer::byte_level());
    let policy = load(&config, Kind::Float);
    let groups = play(&config, &policy, &sampling);
    let base = players(&policy, &policy, &tokenizer, &sampling);
    for players in [
        Players {
            activation_checkpointing: true,
            ..base
        },
        Players {
            micro_batch_tokens: 40,
            ..base
        },
        Players {
            micro_batch_tokens: 10_000,
            ..base
        },
    ] {
        let found = diagnose(&observe(&players, &groups));
        assert!(!found.iter().any(Finding::has_failed), "{found:?}");
    }
}
