use super::*;
use crate::config_file;
use crate::off_policy::OffPolicy;

fn config(grpo: &str, more: &str) -> RunConfig {
    let text = format!(
        r#"(
        name: "a",
        model: (source: Path("model")),
        environments: [(family: sums)],
        sampling: (max_new_tokens: 24),
        stages: [
            sft(steps: 5, learning_rate: (peak: 1e-3)),
            grpo(steps: 100, prompts_per_step: 10, group_size: 10, learning_rate: (peak: 1e-5), {grpo}),
        ],
        {more}
    )"#
    );
    config_file::parse(&text, "test").unwrap_or_else(|error| panic!("{error}"))
}

/// `count` steps with nothing out of range, changed by `change(number from 0, step)`.
fn steps(count: usize, change: impl Fn(usize, &mut StepMetrics)) -> Vec<StepMetrics> {
    let sound = |i: usize| {
        let mut step = StepMetrics {
            stage: "grpo".to_string(),
            stage_index: 1,
            step: i + 1,
            global_step: i as u64 + 6,
            policy_age: Some(0.5),
            reward_mean: Some(0.3 + 0.01 * i as f64),
            reward_std: Some(0.4),
            pass_rate: Some(0.3 + 0.01 * i as f64),
            held_out_pass_rate: Some(0.3 + 0.01 * i as f64),
            invalid_samples: Some(0),
            kl: Some(1e-3 + 1e-4 * i as f64),
            ratio_mean: Some(1.0),
            ratio_max: Some(1.5),
            clipped_share: Some(0.01),
            masked_sequences: Some(1),
            masked_tokens: Some(10),
            zero_spread_groups: Some(2),
            logprob_gap_mean: Some(2e-6),
            logprob_gap_max: Some(0.01),
            routing_agreement_free: Some(0.999),
            routing_agreement_replay: Some(1.0),
            entropy: Some(0.9 - 0.01 * i as f64),
            completion_tokens_mean: Some(12.0),
            finished_share: Some(0.98),
            grad_norm: Some(0.8),
            indexer_grad_norm: Some(0.1),
            ..StepMetrics::default()
        };
        step.off_policy.masked_advantage_share = Some(0.02);
        step.secs.total = Some(20.0);
        change(i, &mut step);
        step
    };
    (0..count).map(sound).collect()
}

/// The one advisory on `steps`, which must be about `figure`.
fn only(config: &RunConfig, steps: &[StepMetrics], figure: Figure) -> Advisory {
    let mut found = advisories(config, steps, None);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].figure, figure, "{found:#?}");
    found.remove(0)
}

fn none(config: &RunConfig, steps: &[StepMetrics]) {
    assert_eq!(advisories(config, steps, None), []);
}

#[test]
fn a_sound_run_has_no_advisories_at_any_length() {
    for count in 0..=60 {
        none(&config("", ""), &steps(count, |_, _| {}));
    }
}

#[test]
fn a_single_odd_step_is_no_advisory() {
    let odd = steps(30, |i, step| {
        if i == 27 {
            step.zero_spread_groups = Some(10);
            step.entropy = Some(0.0);
            step.kl = Some(0.5);
            step.clipped_share = Some(0.6);
            step.finished_share = Some(0.3);
            step.reward_mean = Some(0.0);
            step.logprob_gap_mean = Some(1.0);
            step.completion_tokens_mean = Some(24.0);
        }
    });
    none(&config("", ""), &odd);
}

#[test]
fn groups_without_advantage_are_answered_by_how_the_rewards_stand() {
    let flat = |reward: f64| {
        let flat = steps(12, |i, step| {
            step.zero_spread_groups = Some(if i % 2 == 0 { 5 } else { 7 });
            step.reward_mean = Some(reward);
        });
        only(&config("", ""), &flat, Figure::ZeroSpread)
    };
    assert_eq!(flat(0.1).found, "0.60 of the groups in the newest 10 steps");
    assert!(flat(0.1).advice.starts_with("Lower the tasks' level"));
    assert!(flat(0.7).advice.starts_with("Raise the tasks' level"));
    assert!(flat(0.99).advice.starts_with("The tasks are solved"));
    assert_eq!(flat(0.1).severity, Severity::Warning);
}

#[test]
fn entropy_collapses_by_level_and_by_fall_unless_the_tasks_are_solved() {
    let low = steps(12, |_, step| step.entropy = Some(0.02));
    let found = only(&config("", ""), &low, Figure::Entropy).found;
    assert_eq!(found, "0.020 nats a token in the newest 10 steps");
    let fallen = steps(20, |i, step| {
        step.entropy = Some(if i < 10 { 1.0 } else { 0.15 })
    });
    let found = only(&config("", ""), &fallen, Figure::Entropy).found;
    assert_eq!(found, "fell from 1.000 to 0.150 nats a token");
    let kept = steps(20, |i, step| {
        step.entropy = Some(if i < 10 { 1.0 } else { 0.21 })
    });
    none(&config("", ""), &kept);
    let solved = steps(12, |_, step| {
        step.entropy = Some(0.02);
        step.reward_mean = Some(0.97);
    });
    none(&config("", ""), &solved);
}

#[test]
fn the_gap_is_judged_by_the_arithmetic_and_by_its_rise() {
    let wide = steps(12, |_, step| step.logprob_gap_mean = Some(0.01));
    let (f32, bf16) = (config("", "compute: f32"), config("", "compute: bf16"));
    let found = only(&f32, &wide, Figure::LogprobGap).found;
    assert_eq!(
        found,
        "1.0e-2 nats in the newest 10 steps, too much for f32"
    );
    none(&bf16, &wide);
    none(&config("", ""), &wide);
    let rising = steps(20, |i, step| {
        step.logprob_gap_mean = Some(if i < 10 { 0.005 } else { 0.02 })
    });
    let found = only(&bf16, &rising, Figure::LogprobGap).found;
    assert_eq!(found, "rose from 5.0e-3 to 2.0e-2 nats");
    // Of rollouts that are older than one step the gap is drift.
    let stale = steps(20, |_, step| {
        step.logprob_gap_mean = Some(0.5);
        step.policy_age_max = Some(2);
    });
    none(&config("mini_batches: 2", "compute: f32"), &stale);
    let found = only(&config("mini_batches: 3", ""), &stale, Figure::LogprobGap).found;
    assert_eq!(
        found,
        "5.0e-1 nats in the newest 10 steps, too much for bf16"
    );
    // Fourfold, but rounding still.
    let rounding = steps(20, |i, step| {
        step.logprob_gap_mean = Some(if i < 10 { 1e-6 } else { 4e-6 })
    });
    none(&f32, &rounding);
}

#[test]
fn a_kl_that_jumps_and_stays_is_named_and_a_rising_one_is_not() {
    let jump = steps(20, |i, step| {
        step.kl = Some(if i < 17 { 0.002 } else { 0.05 })
    });
    let found = only(&config("", ""), &jump, Figure::Kl).found;
    assert_eq!(
        found,
        "jumped from 2.0e-3 to 5.0e-2 nats a token within 3 steps"
    );
    none(
        &config("", ""),
        &steps(20, |i, step| step.kl = Some(0.002 * (i + 1) as f64)),
    );
    none(
        &config("", ""),
        &steps(20, |i, step| {
            step.kl = Some(if i < 17 { 1e-6 } else { 9e-4 })
        }),
    );
}

#[test]
fn a_kl_that_grows_from_nothing_is_no_jump() {
    for count in 1..=40 {
        let growing = steps(count, |i, step| step.kl = Some(1e-3 * (i * i) as f64));
        none(&config("", ""), &growing);
    }
}

#[test]
fn a_mask_that_takes_a_lot_or_never_acts_is_named() {
    let greedy = steps(12, |_, step| {
        step.off_policy.masked_advantage_share = Some(0.3)
    });
    let found = only(&config("", ""), &greedy, Figure::OffPolicyMask);
    assert_eq!(found.found, "0.30 of the advantage in the newest 10 steps");
    assert_eq!(found.severity, Severity::Warning);
    none(&config("off_policy_delta: None", ""), &greedy);

    let idle = |count, age| {
        steps(count, move |_, step| {
            step.masked_sequences = Some(0);
            step.policy_age = Some(age);
            step.off_policy = OffPolicy {
                masked_advantage_share: Some(0.0),
                delta_masking_5_percent: Some(0.003),
                ..OffPolicy::default()
            };
        })
    };
    let found = only(&config("", ""), &idle(20, 0.5), Figure::OffPolicyMask);
    assert_eq!(found.severity, Severity::Notice);
    assert_eq!(found.found, "no sequence in 20 steps drifted beyond 0.1");
    assert!(
        found
            .advice
            .starts_with("An off_policy_delta of 3.0e-3 would mask 5 %")
    );
    none(&config("", ""), &idle(19, 0.5));
    // Nothing is stale: said at the run's start.
    none(&config("", ""), &idle(20, 0.0));
}

#[test]
fn shares_out_of_range_are_named() {
    let clipped = steps(12, |_, step| step.clipped_share = Some(0.12));
    let advice = only(
        &config("mini_batches: 2", ""),
        &clipped,
        Figure::ClippedShare,
    )
    .advice;
    assert!(advice.starts_with("Lower the learning rate"), "{advice}");
    let cut = steps(12, |_, step| step.finished_share = Some(0.8));
    let advice = only(&config("", ""), &cut, Figure::Finished).advice;
    assert!(
        advice.starts_with("Raise sampling.max_new_tokens (24)"),
        "{advice}"
    );
    let strayed = steps(12, |_, step| step.routing_agreement_free = Some(0.9));
    only(&config("", ""), &strayed, Figure::RoutingAgreement);
    let broken = steps(12, |i, step| {
        step.routing_agreement_replay = Some(if i == 11 { 0.999 } else { 1.0 })
    });
    only(&config("", ""), &broken, Figure::RoutingReplay);
    none(&config("keep_routing: false", ""), &broken);
    // 2 of 100 samples.
    let lost = steps(12, |_, step| step.invalid_samples = Some(2));
    let found = only(&config("", ""), &lost, Figure::Invalid).found;
    assert_eq!(found, "2.0 % of the samples in the newest 10 steps");
}

#[test]
fn gradient_spikes_and_an_eternal_clip_are_named() {
    let spike = steps(12, |i, step| {
        step.grad_norm = Some(if i == 8 { 9.0 } else { 0.8 })
    });
    let found = only(&config("", ""), &spike, Figure::GradNorm);
    assert_eq!(
        found.found,
        "9.00 in one of the newest 10 steps, where 0.80 is usual"
    );
    let clipped = steps(12, |_, step| step.grad_norm = Some(3.0));
    let found = only(&config("", ""), &clipped, Figure::GradNorm);
    assert_eq!(found.severity, Severity::Notice);
    assert!(
        found
            .found
            .starts_with("above max_grad_norm (1) in all of the newest 10")
    );
    none(&config("", "optimizer: (max_grad_norm: 4)"), &clipped);
    let indexer = steps(12, |i, step| {
        step.indexer_grad_norm = Some(if i == 8 { 9.0 } else { 0.8 })
    });
    only(&config("", ""), &indexer, Figure::IndexerGradNorm);
    // In a stage on text too.
    let text: Vec<StepMetrics> = spike
        .iter()
        .map(|step| StepMetrics {
            stage_index: 0,
            ..step.clone()
        })
        .collect();
    only(&config("", ""), &text, Figure::GradNorm);
}

#[test]
fn lengths_that_double_or_halve_are_noticed() {
    let lengths = |after: f64| {
        steps(20, move |i, step| {
            step.completion_tokens_mean = Some(if i < 10 { 12.0 } else { after })
        })
    };
    let found = only(&config("", ""), &lengths(25.0), Figure::Length);
    assert_eq!(found.found, "went from 12.0 to 25.0 tokens");
    assert!(found.advice.starts_with("Read some long samples"));
    let found = only(&config("", ""), &lengths(5.0), Figure::Length);
    assert!(found.advice.starts_with("Read some short samples"));
    none(&config("", ""), &lengths(23.0));
}

#[test]
fn rewards_that_fall_or_stay_flat_are_named() {
    let noise = |i: usize| 0.02 * (i % 3) as f64;
    let rewards = |count, reward: fn(usize) -> f64| {
        steps(count, move |i, step| {
            let reward = reward(i) + noise(i);
            step.reward_mean = Some(reward);
            step.pass_rate = Some(reward);
            step.held_out_pass_rate = Some(reward);
        })
    };
    let fallen = rewards(30, |i| if i < 20 { 0.6 } else { 0.4 });
    let found = only(&config("", ""), &fallen, Figure::Reward).found;
    assert_eq!(found, "0.422 in the newest 10 steps, after 0.622 at best");
    let flat = rewards(40, |_| 0.3);
    let found = only(&config("", ""), &flat, Figure::Reward).found;
    assert_eq!(found, "0.318, not above 0.318 of the start, after 40 steps");
    none(&config("", ""), &rewards(39, |_| 0.3));
    none(&config("", ""), &rewards(40, |_| 0.96));
}

#[test]
fn held_out_far_below_training_is_named() {
    let memorised = |held_out| steps(20, move |_, step| step.held_out_pass_rate = Some(held_out));
    let found = only(&config("", ""), &memorised(0.2), Figure::HeldOut).found;
    assert_eq!(found, "0.200, where training passes 0.445");
    none(&config("", ""), &memorised(0.31));
    // Of 4 prompts one more or less is 0.25.
    none(&config("", "evaluation: (prompts: 4)"), &memorised(0.2));
}

#[test]
fn silence_is_measured_in_steps_of_the_run() {
    let config = config("", "");
    let steps = steps(12, |i, step| {
        if i == 6 {
            step.secs.total = Some(70.0);
        }
    });
    // 5 times 20 s, but twice the longest of 70 s.
    assert_eq!(advisories(&config, &steps, Some(139.0)), []);
    let found = advisories(&config, &steps, Some(141.0));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].figure, Figure::Silence);
    assert_eq!(
        found[0].found,
        "no line for 141 s, where a step takes 20.0 s"
    );
    let fast = self::steps(12, |_, step| step.secs.total = Some(0.5));
    assert_eq!(advisories(&config, &fast, Some(59.0)), []);
    assert_eq!(advisories(&config, &fast, Some(61.0)).len(), 1);
    assert_eq!(advisories(&config, &[], Some(1e9)), []);
}

#[test]
fn only_the_stage_of_the_newest_step_is_judged_and_warnings_come_first() {
    let mut lines = steps(12, |_, step| {
        step.finished_share = Some(0.5);
        step.grad_norm = Some(3.0);
        step.entropy = Some(0.01);
    });
    let figures: Vec<Figure> = advisories(&config("", ""), &lines, None)
        .iter()
        .map(|advisory| advisory.figure)
        .collect();
    assert_eq!(
        figures,
        [Figure::Entropy, Figure::Finished, Figure::GradNorm]
    );
    lines.push(StepMetrics {
        stage_index: 2,
        step: 1,
        ..StepMetrics::default()
    });
    none(&config("", ""), &lines);
}

#[test]
fn a_line_tells_figure_value_range_meaning_and_advice() {
    let cut = steps(12, |_, step| step.finished_share = Some(0.8));
    assert_eq!(
        advisories(&config("", ""), &cut, None)[0].to_string(),
        "finished_share: 0.80 of the completions in the newest 10 steps (healthy: at least 90 %): completions cut at \
         max_new_tokens rarely earn a reward. Raise sampling.max_new_tokens (24), or train longer in sft, where \
         completions end."
    );
}

#[test]
fn the_documented_table_is_this_one() {
    let document = include_str!("../../../docs/run-folder.md");
    for figure in Figure::ALL {
        let range = figure.range();
        let keys: Vec<String> = range.keys.iter().map(|key| format!("`{key}`")).collect();
        let row = format!(
            "| {} | {} | {} |",
            keys.join(", "),
            range.healthy,
            range.meaning
        );
        assert!(
            document.contains(&row),
            "docs/run-folder.md lacks this row:\n{row}"
        );
    }
}
