//! Held-out evaluation: one sample for each of a fixed set of prompts that training never sees.

use environments::Split;
use rollout::SamplingConfig;

use crate::error::TrainerError;
use crate::session::Session;

/// Figures of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Share of the graded prompts that were solved; `None` when none could be graded.
    pub pass_rate: Option<f64>,
    /// Wall-clock seconds.
    pub secs: f64,
}

/// Plays held-out prompts `0..prompts` at the evaluation's temperature without truncation.
///
/// # Errors
/// Sampling, or a grader that gave up.
pub fn evaluate(session: &Session) -> Result<Evaluation, TrainerError> {
    let config = &session.config.evaluation;
    let prompts = (0..config.prompts as u64)
        .map(|id| session.prompts().prompt(Split::HeldOut, id))
        .collect::<Result<Vec<_>, _>>()?;
    let sampling = SamplingConfig {
        temperature: config.temperature,
        max_new_tokens: session.config.sampling.max_new_tokens,
        ..SamplingConfig::default()
    };
    let rollout = session.sample("evaluation", prompts, 1, &sampling)?;
    session.grader.check()?;
    let rewards = rollout
        .groups
        .iter()
        .flat_map(|group| &group.samples)
        .filter_map(|sample| sample.verdict.reward());
    let (passed, graded) = rewards.fold((0usize, 0usize), |(passed, graded), reward| {
        (passed + usize::from(reward >= 1.0), graded + 1)
    });
    Ok(Evaluation {
        pass_rate: (graded > 0).then(|| passed as f64 / graded as f64),
        secs: rollout.secs,
    })
}
