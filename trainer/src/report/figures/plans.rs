//! The charts of the page, one entry each: title, curves, and what is judged in them.

use crate::config::{GrpoConfig, RunConfig, StageConfig};
use crate::health::{Figure, ranges};
use crate::metrics::StepMetrics;
use crate::report::axis::Scale;

/// From a step to the value shown.
pub(super) type Value = fn(&RunConfig, &StepMetrics) -> Option<f64>;

/// How a chart is made from the steps.
pub(super) struct Plan {
    /// Heading.
    pub title: &'static str,
    /// Unit, or what the marks mean.
    pub unit: &'static str,
    /// Scale of the values.
    pub scale: Scale,
    /// Whether the range of the values begins at 0.
    pub from_zero: bool,
    /// Figures whose healthy range stands beside it.
    pub figures: &'static [Figure],
    /// Name and value of each curve.
    pub curves: &'static [(&'static str, Value)],
    /// Half the height of the band about the first curve.
    pub spread: Value,
    /// Ends of healthy ranges.
    pub bounds: fn(&RunConfig) -> Vec<f64>,
}

/// A plain chart; the others differ in what they name.
const PLAIN: Plan = Plan {
    title: "",
    unit: "",
    scale: Scale::Linear,
    from_zero: true,
    figures: &[],
    curves: &[],
    spread: |_, _| None,
    bounds: |_| Vec::new(),
};

/// In the order of the page.
pub(super) const PLANS: [Plan; 19] = [
    Plan {
        title: "Reward",
        unit: "mean, band: standard deviation",
        figures: &[Figure::Reward],
        curves: &[("reward", |_, s| s.reward_mean)],
        spread: |_, s| s.reward_std,
        ..PLAIN
    },
    Plan {
        title: "Pass rate",
        unit: "share of samples",
        figures: &[Figure::HeldOut],
        curves: &[
            ("training", |_, s| s.pass_rate),
            ("held-out", |_, s| s.held_out_pass_rate),
        ],
        ..PLAIN
    },
    Plan {
        title: "Groups without advantage",
        unit: "share of groups",
        figures: &[Figure::ZeroSpread],
        curves: &[("zero spread", |config, s| {
            Some(s.zero_spread_groups? as f64 / grpo(config, s)?.prompts_per_step as f64)
        })],
        bounds: |_| vec![ranges::MAX_ZERO_SPREAD_SHARE],
        ..PLAIN
    },
    Plan {
        title: "KL to the reference",
        unit: "nats a token",
        figures: &[Figure::Kl],
        curves: &[("kl", |_, s| s.kl)],
        ..PLAIN
    },
    Plan {
        title: "Entropy",
        unit: "nats a token",
        figures: &[Figure::Entropy],
        curves: &[("entropy", |_, s| s.entropy)],
        bounds: |_| vec![ranges::MIN_ENTROPY],
        ..PLAIN
    },
    Plan {
        title: "Log-prob gap, trainer and sampler",
        unit: "nats",
        scale: Scale::Log,
        from_zero: false,
        figures: &[Figure::LogprobGap],
        curves: &[
            ("mean", |_, s| s.logprob_gap_mean),
            ("largest", |_, s| s.logprob_gap_max),
        ],
        bounds: |_| vec![ranges::MAX_LOGPROB_GAP_F32, ranges::MAX_LOGPROB_GAP_BF16],
        ..PLAIN
    },
    Plan {
        title: "Taken by the off-policy mask",
        unit: "share",
        figures: &[Figure::OffPolicyMask],
        curves: &[
            ("of the advantage", |_, s| {
                s.off_policy.masked_advantage_share
            }),
            ("of the sequences", |config, s| {
                share(s.masked_sequences, trained_sequences(config, s)?)
            }),
            ("of the tokens", |config, s| {
                share(
                    s.masked_tokens,
                    trained_sequences(config, s)? * s.completion_tokens_mean?,
                )
            }),
        ],
        bounds: |_| vec![ranges::MAX_MASKED_ADVANTAGE_SHARE],
        ..PLAIN
    },
    Plan {
        title: "off_policy_delta that would mask",
        unit: "nats a token; dashed: the delta in use",
        scale: Scale::Log,
        from_zero: false,
        curves: &[
            ("10 %", |_, s| s.off_policy.delta_masking_10_percent),
            ("5 %", |_, s| s.off_policy.delta_masking_5_percent),
            ("1 %", |_, s| s.off_policy.delta_masking_1_percent),
        ],
        bounds: |config| {
            let grpo = |stage: &StageConfig| match stage {
                StageConfig::Grpo(grpo) => grpo.off_policy_delta,
                _ => None,
            };
            config.stages.iter().filter_map(grpo).collect()
        },
        ..PLAIN
    },
    Plan {
        title: "Ratio to the sampling policy",
        unit: "of a token's probability",
        scale: Scale::Log,
        from_zero: false,
        curves: &[
            ("mean", |_, s| s.ratio_mean),
            ("largest", |_, s| s.ratio_max),
        ],
        ..PLAIN
    },
    Plan {
        title: "Age of the trained samples",
        unit: "versions of the policy",
        curves: &[
            ("mean", |_, s| s.policy_age.filter(|_| is_stale(s))),
            ("largest", |_, s| {
                Some(s.policy_age_max.filter(|_| is_stale(s))? as f64)
            }),
        ],
        ..PLAIN
    },
    Plan {
        title: "Clipped tokens",
        unit: "share",
        figures: &[Figure::ClippedShare],
        curves: &[("clipped", |_, s| s.clipped_share)],
        bounds: |_| vec![ranges::MAX_CLIPPED_SHARE],
        ..PLAIN
    },
    Plan {
        title: "Experts chosen as the sampler did",
        unit: "share",
        from_zero: false,
        figures: &[Figure::RoutingAgreement, Figure::RoutingReplay],
        curves: &[
            ("left free", |_, s| s.routing_agreement_free),
            ("replayed", |_, s| s.routing_agreement_replay),
        ],
        bounds: |_| vec![ranges::MIN_ROUTING_AGREEMENT],
        ..PLAIN
    },
    Plan {
        title: "Length",
        unit: "tokens",
        figures: &[Figure::Length],
        curves: &[
            ("completion", |_, s| s.completion_tokens_mean),
            ("prompt", |_, s| s.prompt_tokens_mean),
        ],
        ..PLAIN
    },
    Plan {
        title: "Finished completions",
        unit: "share",
        figures: &[Figure::Finished],
        curves: &[("finished", |_, s| s.finished_share)],
        bounds: |_| vec![ranges::MIN_FINISHED_SHARE],
        ..PLAIN
    },
    Plan {
        title: "Invalid samples",
        unit: "share",
        figures: &[Figure::Invalid],
        curves: &[("invalid", |config, s| {
            let stage = grpo(config, s)?;
            // All 0 is no chart.
            let invalid = s.invalid_samples.filter(|&count| count > 0);
            share(invalid, (stage.prompts_per_step * stage.group_size) as f64)
        })],
        bounds: |_| vec![ranges::MAX_INVALID_SHARE],
        ..PLAIN
    },
    Plan {
        title: "Gradient norm",
        unit: "before clipping",
        scale: Scale::Log,
        from_zero: false,
        figures: &[Figure::GradNorm, Figure::IndexerGradNorm],
        curves: &[
            ("language model", |_, s| s.grad_norm),
            ("indexer", |_, s| s.indexer_grad_norm),
        ],
        bounds: |config| vec![config.optimizer.max_grad_norm],
        ..PLAIN
    },
    Plan {
        title: "Loss",
        unit: "that the stage minimises",
        from_zero: false,
        curves: &[("loss", |_, s| s.loss)],
        ..PLAIN
    },
    Plan {
        title: "Indexer KL",
        unit: "nats a token",
        curves: &[("indexer kl", |_, s| s.indexer_kl)],
        ..PLAIN
    },
    Plan {
        title: "Throughput",
        unit: "tokens a second",
        curves: &[
            ("rollout", |_, s| s.rollout_tokens_per_sec),
            ("training", |_, s| s.train_tokens_per_sec),
        ],
        ..PLAIN
    },
];

/// The parts of a step's time, in the order they pass.
pub(super) const PHASES: [(&str, Value); 5] = [
    ("rollout", |_, s| s.secs.rollout),
    ("reference", |_, s| s.secs.reference),
    ("train", |_, s| s.secs.train),
    ("evaluation", |_, s| s.secs.evaluation),
    ("checkpoint", |_, s| s.secs.checkpoint),
];

/// Whether a sample was trained by a policy newer than the one that drew it; where none is, ages are no chart.
fn is_stale(step: &StepMetrics) -> bool {
    step.policy_age_max.is_some_and(|age| age > 0)
}

/// The grpo stage that `step` belongs to.
fn grpo<'a>(config: &'a RunConfig, step: &StepMetrics) -> Option<&'a GrpoConfig> {
    match config.stages.get(step.stage_index)? {
        StageConfig::Grpo(grpo) => Some(grpo),
        _ => None,
    }
}

/// Sequences that a step trained on.
fn trained_sequences(config: &RunConfig, step: &StepMetrics) -> Option<f64> {
    let by_age = &step.off_policy.masked_by_age;
    if by_age.is_empty() {
        let stage = grpo(config, step)?;
        return Some((stage.prompts_per_step * stage.group_size) as f64);
    }
    Some(by_age.iter().map(|age| age.sequences as f64).sum())
}

fn share(part: Option<usize>, whole: f64) -> Option<f64> {
    let part = part? as f64;
    (whole > 0.0).then(|| part / whole)
}
