//! The figures of a grpo step, from its samples and from what the learner did with them.

use model::KeptTokens;
use rollout::{FinishReason, Group, Sample};

use super::rewards;
use crate::config::EnvironmentConfig;
use crate::episode_figures::{EpisodeFigures, by_environment, reward_parts};
use crate::learned_file::LearnedSample;
use crate::learner::GrpoStep;
use crate::metrics::{StepMetrics, StepSecs};
use crate::off_policy::OffPolicy;
use crate::session::Rollout;

fn kept_bytes(kept: &KeptTokens) -> usize {
    size_of_val(&kept.ids[..]) + size_of_val(&kept.offsets[..])
}

/// Groups whose valid samples, two or more, earned the same.
fn zero_spread_groups(groups: &[Group]) -> usize {
    let is_flat = |group: &&Group| {
        let valid: Vec<f64> = rewards(group).into_iter().flatten().collect();
        valid.len() > 1 && valid.iter().all(|reward| *reward == valid[0])
    };
    groups.iter().filter(is_flat).count()
}

/// Versions between sampler and learner, mean over samples; `None` where nothing was trained.
fn mean_age(samples: &[LearnedSample]) -> Option<f64> {
    let sum: u64 = samples.iter().map(|sample| sample.policy_age).sum();
    (!samples.is_empty()).then(|| sum as f64 / samples.len() as f64)
}

fn spans_versions(versions: &[u64]) -> bool {
    versions.first() != versions.last()
}

/// The line of a step; stage, counters and total time are the orchestrator's.
pub(super) fn metrics(
    environments: &[EnvironmentConfig],
    rollout: &Rollout,
    step: &GrpoStep,
    train_secs: f64,
) -> StepMetrics {
    let samples = || rollout.groups.iter().flat_map(|group| &group.samples);
    let count = samples().count().max(1) as f64;
    let rewards: Vec<f64> = samples().filter_map(Sample::reward).collect();
    let valid = rewards.len().max(1) as f64;
    // Without a valid sample there is no reward to speak of.
    let of_rewards = |value: f64| (!rewards.is_empty()).then_some(value);
    let mean = rewards.iter().sum::<f64>() / valid;
    let variance = rewards
        .iter()
        .map(|reward| (reward - mean).powi(2))
        .sum::<f64>()
        / valid;
    let is_solved = |sample: &&Sample| sample.verdict.reward().is_some_and(|r| r >= 1.0);
    let passed = samples().filter(is_solved).count();
    let completion_tokens: usize = samples().map(|sample| sample.tokens.len()).sum();
    let kept: usize = samples().map(|sample| sample.kept.ids.len()).sum();
    let per_token =
        |bytes: usize| (bytes > 0).then(|| bytes as f64 / completion_tokens.max(1) as f64);
    let prompt_tokens: usize = rollout
        .groups
        .iter()
        .map(|group| group.prompt.tokens.len())
        .sum();
    // Figures of the optimizer steps are absent where no group had a learning signal.
    let trained = step.optimizer_steps > 0;
    let masked = || step.samples.iter().filter(|sample| sample.is_masked);
    let learned = |value: f64| trained.then_some(value);
    StepMetrics {
        reward_mean: of_rewards(mean),
        reward_std: of_rewards(variance.sqrt()),
        pass_rate: of_rewards(passed as f64 / valid),
        invalid_samples: Some(count as usize - rewards.len()),
        reward_parts: reward_parts(samples()),
        by_environment: by_environment(environments, &rollout.groups),
        episodes: EpisodeFigures::of(samples()),
        learning_rate: step.learning_rate,
        policy_age: mean_age(&step.samples),
        policy_age_max: step.samples.iter().map(|s| s.policy_age).max(),
        spanning_samples: Some(
            samples()
                .filter(|s| spans_versions(&s.policy_versions))
                .count(),
        ),
        loss: learned(step.mean_loss()),
        kl: step.reference_secs.and(learned(step.stats.kl_mean())),
        ratio_mean: learned(step.stats.ratio_mean()),
        ratio_max: learned(step.stats.ratio_max),
        clipped_share: learned(step.stats.clipped_share()),
        extreme_kl_tokens: step.reference_secs.map(|_| step.stats.extreme_tokens),
        masked_sequences: Some(masked().count()),
        masked_tokens: Some(masked().map(|sample| sample.logprobs.len()).sum()),
        off_policy: OffPolicy::of(&step.samples),
        zero_spread_groups: Some(zero_spread_groups(&rollout.groups)),
        logprob_gap_mean: learned(step.logprob_gap_mean),
        logprob_gap_max: learned(step.logprob_gap_max),
        routing_agreement_free: step.routing_agreement_free,
        routing_agreement_replay: step.routing_agreement_replay,
        keys_selected_share: learned(step.key_share),
        indexer_kl: step.indexer_kl,
        entropy: Some(rollout.stats.mean_entropy()),
        prompt_tokens_mean: Some(prompt_tokens as f64 / rollout.groups.len().max(1) as f64),
        completion_tokens_mean: Some(completion_tokens as f64 / count),
        routing_bytes_per_token: per_token(
            samples().map(|s| size_of_val(&s.routing.ids[..])).sum(),
        ),
        kept_bytes_per_token: match kept {
            0 => None,
            _ => per_token(samples().map(|s| kept_bytes(&s.kept)).sum()),
        },
        kept_tokens_mean: (kept > 0).then(|| kept as f64 / completion_tokens.max(1) as f64),
        finished_share: Some(
            samples()
                .filter(|sample| sample.finish_reason == FinishReason::Stop)
                .count() as f64
                / count,
        ),
        grad_norm: learned(step.norms.main),
        indexer_grad_norm: step.indexer_kl.map(|_| step.norms.indexer),
        preemptions: Some(rollout.stats.preemptions),
        rollout_tokens_per_sec: Some(rollout.stats.sampled_tokens as f64 / rollout.sampling_secs),
        train_tokens_per_sec: learned(step.num_tokens as f64 / train_secs),
        secs: StepSecs {
            rollout: Some(rollout.secs),
            reference: step.reference_secs,
            train: Some(train_secs),
            ..StepSecs::default()
        },
        ..StepMetrics::default()
    }
}
