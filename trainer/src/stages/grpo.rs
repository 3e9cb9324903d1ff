//! GRPO: sample groups, grade them, take the optimizer steps on them.

use std::path::{Path, PathBuf};
use std::time::Instant;

use environments::Verdict;
use rollout::{Group, Sample};

use crate::advantage::group_advantages;
use crate::config::GrpoConfig;
use crate::error::TrainerError;
use crate::learned_file;
use crate::learner::{GrpoLearner, GrpoStep};
use crate::metrics::StepMetrics;
use crate::schedule;
use crate::session::{Rollout, Session};

mod figures;

/// One rollout and its optimizer steps; `None` when the run was asked to stop before there was a rollout.
///
/// # Errors
/// Sampling, writing the step's files, or learning.
pub fn step(
    session: &mut Session,
    stage: &GrpoConfig,
) -> Result<Option<StepMetrics>, TrainerError> {
    let Some(rollout) = session.next_rollout(stage)? else {
        return Ok(None);
    };
    let number = session.state.global_step + 1;
    let file = write_rollout(session, &rollout)?;
    let samples = rollout.groups.iter().flat_map(|group| &group.samples);
    let verdicts = samples.map(|sample| &sample.verdict);
    // A grader that has given up is the cause of the invalid samples, and says more.
    session.grader.check()?;
    refuse_invalid(verdicts, stage.max_invalid_share, &file)?;

    let start = Instant::now();
    let step = learn(session, stage, &rollout.groups)?;
    let train_secs = start.elapsed().as_secs_f64() - step.reference_secs.unwrap_or(0.0);
    session.publish_to_worker()?;
    learned_file::write(&session.folder.learned_path(number), number, &step.samples)?;
    Ok(Some(figures::metrics(
        &session.config.environments,
        &rollout,
        &step,
        train_secs,
    )))
}

/// Writes the samples of the session's next step to their file, and returns its path.
///
/// # Errors
/// The disk refuses.
pub fn write_rollout(session: &Session, rollout: &Rollout) -> Result<PathBuf, TrainerError> {
    let number = session.state.global_step + 1;
    let path = session.folder.rollout_path(number);
    // An invalid sample has no advantage; its row says why.
    let advantages = advantages(&rollout.groups).into_iter().flatten();
    let flat: Vec<f64> = advantages.map(|a| a.unwrap_or(f64::NAN)).collect();
    rollout::rollout_file::write(&path, number, &rollout.groups, &flat)?;
    Ok(path)
}

/// The optimizer steps of the stage's current step on `groups`, from wherever they come.
///
/// # Errors
/// Samples without the payload that replay needs, or gradients that are not finite.
pub fn learn(
    session: &mut Session,
    stage: &GrpoConfig,
    groups: &[Group],
) -> Result<GrpoStep, TrainerError> {
    let learner = GrpoLearner {
        config: session.config,
        stage,
        attention: session.attention(),
        policy: &session.policy,
        reference: session.reference.as_ref(),
        policy_version: session.state.policy_version,
    };
    let taken = session.state.step_in_stage * stage.mini_batches;
    let total = stage.steps * stage.mini_batches;
    let rate =
        |mini_batch| schedule::learning_rate(&stage.learning_rate, taken + mini_batch, total);
    let step = learner.step(&mut session.optimizer, groups, &advantages(groups), rate)?;
    session.state.policy_version += step.optimizer_steps as u64;
    Ok(step)
}

/// The advantage of every sample, by group.
pub fn advantages(groups: &[Group]) -> Vec<Vec<Option<f64>>> {
    let of_group = |group| group_advantages(&rewards(group));
    groups.iter().map(of_group).collect()
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
        if let Verdict::Invalid { reason, .. } = verdict {
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
    group.samples.iter().map(Sample::reward).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_with_too_many_invalid_samples_stops_the_run() {
        let graded = Verdict::graded(1.0, None);
        let invalid = Verdict::invalid(
            environments::FaultKind::Grader,
            "the sandbox did not start".to_string(),
        );
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
