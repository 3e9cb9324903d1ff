//! GRPO: sample groups, grade them, take the optimizer steps on them.

use std::path::Path;
use std::time::Instant;

use environments::{Split, Verdict};
use model::KeptTokens;
use rollout::{FinishReason, Group};

use crate::advantage::group_advantages;
use crate::config::GrpoConfig;
use crate::error::TrainerError;
use crate::learner::{GrpoLearner, GrpoStep};
use crate::metrics::{StepMetrics, StepSecs};
use crate::off_policy::OffPolicy;
use crate::schedule;
use crate::session::{Rollout, Session};

/// One rollout and its optimizer steps.
///
/// # Errors
/// Sampling, writing the rollout file, or learning.
pub fn step(session: &mut Session, stage: &GrpoConfig) -> Result<StepMetrics, TrainerError> {
    let first = session.state.next_prompt_id;
    let prompts = (first..first + stage.prompts_per_step as u64)
        .map(|id| session.prompts().prompt(Split::Train, id))
        .collect::<Result<Vec<_>, _>>()?;
    session.state.next_prompt_id += stage.prompts_per_step as u64;
    let rollout = session.sample(
        "rollout",
        prompts,
        stage.group_size,
        &session.config.sampling,
    )?;

    let advantages: Vec<Vec<Option<f64>>> = rollout
        .groups
        .iter()
        .map(|group| group_advantages(&rewards(group)))
        .collect();
    let file = session.folder.rollout_path(session.state.global_step + 1);
    // An invalid sample has no advantage; its row says why.
    let flat: Vec<f64> = advantages
        .iter()
        .flatten()
        .map(|advantage| advantage.unwrap_or(f64::NAN))
        .collect();
    rollout::rollout_file::write(&file, session.state.global_step + 1, &rollout.groups, &flat)?;
    let samples = rollout.groups.iter().flat_map(|group| &group.samples);
    let verdicts = samples.map(|sample| &sample.verdict);
    refuse_invalid(verdicts, stage.max_invalid_share, &file)?;

    let learner = GrpoLearner {
        config: session.config,
        stage,
        attention: session.attention(),
        policy: &session.policy,
        reference: session.reference.as_ref(),
    };
    let taken = session.state.step_in_stage * stage.mini_batches;
    let total = stage.steps * stage.mini_batches;
    let rate =
        |mini_batch| schedule::learning_rate(&stage.learning_rate, taken + mini_batch, total);
    let start = Instant::now();
    let step = learner.step(&mut session.optimizer, &rollout.groups, &advantages, rate)?;
    let train_secs = start.elapsed().as_secs_f64() - step.reference_secs.unwrap_or(0.0);
    // Mini-batch i trains a policy i versions newer than the one that sampled: their mean.
    let policy_age = step.optimizer_steps.saturating_sub(1) as f64 / 2.0;
    session.state.policy_version += step.optimizer_steps as u64;
    Ok(StepMetrics {
        learning_rate: step.learning_rate,
        policy_age: Some(policy_age),
        ..metrics(&rollout, &step, train_secs)
    })
}

/// Stops the run where more than the share `limit` of a rollout's samples is invalid.
fn refuse_invalid<'a>(
    verdicts: impl Iterator<Item = &'a Verdict>,
    limit: f64,
    file: &Path,
) -> Result<(), TrainerError> {
    let (mut invalid, mut total, mut first) = (0, 0, None);
    for verdict in verdicts {
        total += 1;
        if let Verdict::Invalid { reason } = verdict {
            invalid += 1;
            first = first.or(Some(reason));
        }
    }
    match first {
        Some(reason) if f64::from(invalid) > limit * f64::from(total) => {
            Err(TrainerError::InvalidSamples {
                invalid: invalid as usize,
                total: total as usize,
                limit,
                reason: reason.clone(),
                path: file.to_path_buf(),
            })
        }
        _ => Ok(()),
    }
}

fn rewards(group: &Group) -> Vec<Option<f64>> {
    group
        .samples
        .iter()
        .map(|sample| sample.verdict.reward())
        .collect()
}

fn kept_bytes(kept: &KeptTokens) -> usize {
    size_of_val(&kept.ids[..]) + size_of_val(&kept.offsets[..])
}

/// Groups of which no sample is better than another; one valid sample has none to compare with.
fn zero_spread_groups(groups: &[Group]) -> usize {
    let is_flat = |group: &&Group| {
        let mut valid = rewards(group).into_iter().flatten();
        let first = valid.next();
        valid.all(|reward| Some(reward) == first)
    };
    groups.iter().filter(is_flat).count()
}

fn metrics(rollout: &Rollout, step: &GrpoStep, train_secs: f64) -> StepMetrics {
    let samples = || rollout.groups.iter().flat_map(|group| &group.samples);
    let count = samples().count().max(1) as f64;
    let rewards: Vec<f64> = samples()
        .filter_map(|sample| sample.verdict.reward())
        .collect();
    let valid = rewards.len().max(1) as f64;
    let mean = rewards.iter().sum::<f64>() / valid;
    let variance = rewards
        .iter()
        .map(|reward| (reward - mean).powi(2))
        .sum::<f64>()
        / valid;
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
    let learned = |value: f64| trained.then_some(value);
    StepMetrics {
        reward_mean: Some(mean),
        reward_std: Some(variance.sqrt()),
        pass_rate: Some(rewards.iter().filter(|&&reward| reward >= 1.0).count() as f64 / valid),
        invalid_samples: Some(count as usize - rewards.len()),
        loss: learned(step.loss),
        kl: step.reference_secs.and(learned(step.stats.kl_mean())),
        ratio_mean: learned(step.stats.ratio_mean()),
        ratio_max: learned(step.stats.ratio_max),
        clipped_share: learned(step.stats.clipped_share()),
        masked_sequences: Some(step.stats.masked_sequences as usize),
        masked_tokens: Some(step.stats.masked_tokens as usize),
        off_policy: OffPolicy::of(&step.sequences),
        zero_spread_groups: Some(zero_spread_groups(&rollout.groups)),
        logprob_gap_mean: learned(step.logprob_gap_mean),
        logprob_gap_max: learned(step.logprob_gap_max),
        routing_agreement_free: step.routing_agreement_free,
        routing_agreement_replay: step.routing_agreement_replay,
        keys_selected_share: learned(step.key_share),
        indexer_kl: step.indexer_kl,
        entropy: Some(rollout.stats.mean_entropy),
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
        rollout_tokens_per_sec: Some(rollout.stats.sampled_tokens as f64 / rollout.secs),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_with_too_many_invalid_samples_stops_the_run() {
        let graded = Verdict::Graded {
            reward: 1.0,
            extracted: None,
        };
        let invalid = Verdict::Invalid {
            reason: "the sandbox did not start".to_string(),
        };
        let check = |num_invalid: usize, limit: f64| {
            let verdicts = std::iter::repeat_n(&graded, 10 - num_invalid);
            let verdicts = verdicts.chain(std::iter::repeat_n(&invalid, num_invalid));
            refuse_invalid(
                verdicts,
                limit,
                Path::new("runs/a/rollouts/step-000001.parquet"),
            )
        };
        assert!(check(0, 0.0).is_ok());
        assert!(check(1, 0.1).is_ok(), "the share itself is allowed");
        assert!(check(10, 1.0).is_ok());
        let error = check(2, 0.1).unwrap_err().to_string();
        for part in [
            "2 of 10",
            "(0.1)",
            "the sandbox did not start",
            "step-000001",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}
