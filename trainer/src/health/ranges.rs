//! The healthy range of every figure that is judged: the one home of these numbers.
//!
//! `docs/run-folder.md` repeats the table (a test compares them). Where a bound was measured its source is
//! beside it; the others are our judgement and say so.

/// Steps at either end of a stage whose figures are averaged, at most. Judgement: a reward of 64 samples jumps by
/// 0.06 from step to step, the mean of 10 by 0.02.
pub const WINDOW: usize = 10;

/// Steps of a stage before any of its figures is judged. Judgement.
pub const MIN_STEPS: usize = 5;

/// Share of a step's groups without advantage. Judgement: beyond half, most of a rollout's cost teaches nothing.
pub const MAX_ZERO_SPREAD_SHARE: f64 = 0.5;

/// Reward from which on tasks count as solved: nothing is left to explore or to gain. Judgement.
pub const SOLVED_REWARD: f64 = 0.95;

/// Entropy, nats a token. Judgement: at 0.05 nats and 20 tokens a completion, a third of all completions
/// of a prompt are its most likely one (exp(-20 * 0.05) = 0.37), so that a group hardly spreads.
pub const MIN_ENTROPY: f64 = 0.05;

/// Entropy at a stage's end over that at its start. Judgement: the recorded runs of `docs/benchmarks.md` keep more.
pub const MIN_ENTROPY_LEFT: f64 = 0.2;

/// Mean |trainer - sampler| log-prob in f32, nats. Measured: at most 6e-6 (`docs/benchmarks.md`); the rest is margin
/// for other machines.
pub const MAX_LOGPROB_GAP_F32: f64 = 1e-4;

/// The same in bf16. Measured: at most 0.013; other systems saw 0.036 where sampler and trainer had drifted apart.
pub const MAX_LOGPROB_GAP_BF16: f64 = 0.03;

/// Rise of the gap over a stage. Reported elsewhere: 0.011 to 0.036, before a collapse.
pub const MAX_LOGPROB_GAP_RISE: f64 = 3.0;

/// A gap below this share of its limit is rounding, however it rises. Judgement.
pub const LOGPROB_GAP_NOISE: f64 = 0.1;

/// KL of the newest [`KL_STEPS`] over that of the [`WINDOW`] before them. Judgement.
pub const MAX_KL_JUMP: f64 = 5.0;

/// Newest steps whose median KL is compared: more than one, since a single rollout may be odd. Judgement.
pub const KL_STEPS: usize = 3;

/// KL, nats a token, below which no jump counts. Judgement.
pub const KL_NOISE: f64 = 1e-3;

/// Share of the absolute advantage that the off-policy mask takes. Judgement: the mask is for the few worst.
pub const MAX_MASKED_ADVANTAGE_SHARE: f64 = 0.2;

/// Steps in which a mask that could act must have acted once. Judgement.
pub const IDLE_MASK_STEPS: usize = 20;

/// Share of the tokens whose ratio is clipped. Judgement.
pub const MAX_CLIPPED_SHARE: f64 = 0.1;

/// Share of the completions that end by themselves. Judgement.
pub const MIN_FINISHED_SHARE: f64 = 0.9;

/// Share of recorded experts that the trainer would choose itself. Measured: at least 0.9998 in f32 and 0.995 in bf16
/// (`docs/benchmarks.md`), at one mini-batch a rollout; others refuse below 0.8.
pub const MIN_ROUTING_AGREEMENT: f64 = 0.95;

/// Share of recorded experts that the trainer did use: all, but for the rounding of the mean.
pub const MIN_ROUTING_REPLAY: f64 = 1.0 - 1e-6;

/// Share of the samples that failed through no fault of the policy. Judgement; `max_invalid_share` stops the run.
pub const MAX_INVALID_SHARE: f64 = 0.01;

/// Largest recent gradient norm over the stage's median. Judgement.
pub const MAX_GRAD_SPIKE: f64 = 10.0;

/// Length of completions at a stage's end over that at its start, either way. Judgement.
pub const MAX_LENGTH_CHANGE: f64 = 2.0;

/// Loss of reward from the best window to the newest. Judgement.
pub const MAX_REWARD_LOSS: f64 = 0.1;

/// Steps after which a reward should have moved. Judgement: the quickstart gains 0.2 in 24.
pub const FLAT_REWARD_STEPS: usize = 40;

/// Standard errors that a difference of two windows must exceed to count.
pub const STANDARD_ERRORS: f64 = 2.0;

/// Pass rate in training minus held-out. Judgement; must exceed the standard error of the evaluation too.
pub const MAX_HELD_OUT_GAP: f64 = 0.15;

/// Silence over the median time of a step. Judgement; saving and evaluation take long now and then.
pub const STALL_STEPS: f64 = 5.0;

/// Silence over the longest recent step. Judgement.
pub const STALL_LONGEST_STEPS: f64 = 2.0;

/// Silence that is never a stall, seconds. Judgement.
pub const MIN_STALL_SECS: f64 = 60.0;

/// What is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Figure {
    /// Mean reward.
    Reward,
    /// Held-out pass rate against that in training.
    HeldOut,
    /// Groups without advantage.
    ZeroSpread,
    /// Entropy of the policy.
    Entropy,
    /// |trainer - sampler| log-prob.
    LogprobGap,
    /// KL to the reference policy.
    Kl,
    /// What the off-policy mask takes.
    OffPolicyMask,
    /// Tokens whose ratio is clipped.
    ClippedShare,
    /// Completions that end by themselves.
    Finished,
    /// Length of completions.
    Length,
    /// Experts that the trainer would choose as the sampler did.
    RoutingAgreement,
    /// Experts that the trainer was made to use.
    RoutingReplay,
    /// Samples that failed through no fault of the policy.
    Invalid,
    /// Gradient norm of the language model.
    GradNorm,
    /// Gradient norm of the indexer.
    IndexerGradNorm,
    /// Time since the last step.
    Silence,
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthyRange {
    /// Keys in `metrics.jsonl`; the first is the one that is judged.
    pub keys: &'static [&'static str],
    /// In words.
    pub healthy: String,
    /// What it tells to be outside.
    pub meaning: &'static str,
}

impl Figure {
    /// In the order of the table.
    pub const ALL: [Figure; 16] = [
        Figure::Reward,
        Figure::HeldOut,
        Figure::ZeroSpread,
        Figure::Entropy,
        Figure::LogprobGap,
        Figure::Kl,
        Figure::OffPolicyMask,
        Figure::ClippedShare,
        Figure::Finished,
        Figure::Length,
        Figure::RoutingAgreement,
        Figure::RoutingReplay,
        Figure::Invalid,
        Figure::GradNorm,
        Figure::IndexerGradNorm,
        Figure::Silence,
    ];

    /// The figure's row.
    pub fn range(self) -> HealthyRange {
        let (keys, healthy, meaning): (&[&str], String, &str) = match self {
            Figure::Reward => (
                &["reward_mean", "reward_std", "pass_rate"],
                format!(
                    "rising until {SOLVED_REWARD}, and no {MAX_REWARD_LOSS} below its best; it jumps with the prompts of a step"
                ),
                "the policy does not learn these tasks, or unlearns them",
            ),
            Figure::HeldOut => (
                &["held_out_pass_rate"],
                format!("rising, and at most {MAX_HELD_OUT_GAP} below `pass_rate`"),
                "what is learned holds for the training prompts alone",
            ),
            Figure::ZeroSpread => (
                &["zero_spread_groups"],
                format!("at most {} of the groups", percent(MAX_ZERO_SPREAD_SHARE)),
                "a group whose samples all earn the same teaches nothing",
            ),
            Figure::Entropy => (
                &["entropy"],
                format!(
                    "falling slowly; at least {MIN_ENTROPY} nats a token, and {} of what it was when the stage began",
                    percent(MIN_ENTROPY_LEFT)
                ),
                "the policy is sure of every token, right or wrong, and explores nothing any more",
            ),
            Figure::LogprobGap => (
                &["logprob_gap_mean", "logprob_gap_max"],
                format!(
                    "at most {MAX_LOGPROB_GAP_F32:e} nats in f32 and {MAX_LOGPROB_GAP_BF16} in bf16, and not rising \
                     {MAX_LOGPROB_GAP_RISE}-fold"
                ),
                "sampler and trainer disagree about one and the same policy: ratios, KL and mask are computed against noise. \
                 Judged only where samples are of the newest version: in asynchronous runs the age itself makes a gap",
            ),
            Figure::Kl => (
                &["kl"],
                format!("slowly rising, never {MAX_KL_JUMP}-fold within {KL_STEPS} steps"),
                "the policy suddenly leaves the reference",
            ),
            Figure::OffPolicyMask => (
                &[
                    "masked_advantage_share",
                    "masked_sequences",
                    "masked_tokens",
                ],
                format!(
                    "at most {}; not always 0 where `policy_age` is above 0",
                    percent(MAX_MASKED_ADVANTAGE_SHARE)
                ),
                "the off-policy mask takes too much of the learning signal, or protects from nothing",
            ),
            Figure::ClippedShare => (
                &["clipped_share", "ratio_max", "ratio_mean"],
                format!(
                    "at most {}; 0 at one mini-batch a rollout in f32, where all ratios are 1",
                    percent(MAX_CLIPPED_SHARE)
                ),
                "clipped tokens have no gradient: the policy moves too far within a rollout",
            ),
            Figure::Finished => (
                &["finished_share"],
                format!("at least {}", percent(MIN_FINISHED_SHARE)),
                "completions cut at max_new_tokens rarely earn a reward",
            ),
            Figure::Length => (
                &["completion_tokens_mean"],
                format!(
                    "neither {MAX_LENGTH_CHANGE} times nor 1/{MAX_LENGTH_CHANGE} of what it was when the stage began"
                ),
                "the form of the answers changes, perhaps instead of their content",
            ),
            Figure::RoutingAgreement => (
                &["routing_agreement_free"],
                format!("at least {MIN_ROUTING_AGREEMENT}"),
                "left free, the trainer would choose other experts than the sampler did",
            ),
            Figure::RoutingReplay => (
                &["routing_agreement_replay"],
                "1".to_string(),
                "the trainer did not use the recorded experts although keep_routing is on",
            ),
            Figure::Invalid => (
                &["invalid_samples"],
                format!("at most {} of the samples", percent(MAX_INVALID_SHARE)),
                "samples fail through no fault of the policy and are lost to training",
            ),
            Figure::GradNorm => (
                &["grad_norm"],
                format!(
                    "within {MAX_GRAD_SPIKE} times its median; not above `max_grad_norm`, where it is clipped, in every step"
                ),
                "single batches throw the policy about, or the clip sets the length of every step",
            ),
            Figure::IndexerGradNorm => (
                &["indexer_grad_norm"],
                format!(
                    "within {MAX_GRAD_SPIKE} times its median; not above `max_indexer_grad_norm`, where it is clipped, in \
                     every step"
                ),
                "single batches throw the indexer about, or the clip sets the length of every step",
            ),
            Figure::Silence => (
                &["secs_total"],
                format!("the next line within {STALL_STEPS} times the median time of a step"),
                "the run hangs, or waits for something outside",
            ),
        };
        HealthyRange {
            keys,
            healthy,
            meaning,
        }
    }

    /// The key in `metrics.jsonl` that is judged.
    pub fn key(self) -> &'static str {
        self.range().keys[0]
    }
}

/// `20 %`.
fn percent(share: f64) -> String {
    format!("{} %", share * 100.0)
}
