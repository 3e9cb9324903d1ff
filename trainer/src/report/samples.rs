//! Which samples of a run's newest rollouts the page shows: the best, the worst, those that sampler and trainer disagree about
//! most, those that the off-policy mask took, and an invalid one.

use std::collections::HashMap;

use environments::Verdict;
use rollout::rollout_file;
use rollout::{Prompt, Sample};

use crate::learned_file::{self, LearnedSample};
use crate::metrics::StepMetrics;
use crate::run_folder::RunLayout;

/// Newest rollouts that samples are taken from.
const ROLLOUTS: usize = 3;
/// Samples shown for each reason.
const SAMPLES_A_REASON: usize = 2;

/// Why a sample is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Highest reward, then highest advantage.
    Best,
    /// Lowest reward, then lowest advantage.
    Worst,
    /// A token with one of the largest |trainer - sampler| log-probs.
    LargestGap,
    /// Removed by the off-policy mask.
    Masked,
    /// Failed through no fault of the policy.
    Invalid,
}

/// A sample with what was learned from it.
#[derive(Clone, Debug)]
pub(super) struct ShownSample {
    /// Why it is shown.
    pub reasons: Vec<Reason>,
    /// Step of the run that used it.
    pub step: u64,
    /// Its prompt.
    pub prompt: Prompt,
    /// The sample.
    pub sample: Sample,
    /// Advantage; not a number where it is invalid.
    pub advantage: f64,
    /// What the learner saw, where that was kept.
    pub learned: Option<LearnedSample>,
}

/// The samples of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct ShownSamples {
    /// In the order of their reasons.
    pub samples: Vec<ShownSample>,
    /// What could not be shown, and why.
    pub notes: Vec<String>,
}

impl ShownSample {
    /// |trainer - sampler| log-prob of each token.
    pub fn gaps(&self) -> Option<Vec<f32>> {
        let learned = self.learned.as_ref()?;
        let pairs = learned.logprobs.iter().zip(&self.sample.sampler_logprobs);
        Some(
            pairs
                .map(|(trainer, sampler)| (trainer - sampler).abs())
                .collect(),
        )
    }

    fn largest_gap(&self) -> Option<f32> {
        self.gaps()?.into_iter().reduce(f32::max)
    }

    fn is_masked(&self) -> bool {
        self.learned
            .as_ref()
            .is_some_and(|learned| learned.is_masked)
    }
}

/// Reads the newest rollouts and chooses. What is missing or damaged becomes a note.
pub(super) fn read(layout: &RunLayout, steps: &[StepMetrics]) -> ShownSamples {
    let has_rollout = |step: &&StepMetrics| step.reward_mean.is_some();
    let newest: Vec<u64> = steps
        .iter()
        .rev()
        .filter(has_rollout)
        .map(|step| step.global_step)
        .take(ROLLOUTS)
        .collect();
    let mut shown = ShownSamples::default();
    let mut found = Vec::new();
    let mut without_learned: Vec<String> = Vec::new();
    for step in newest {
        let path = layout.rollout_path(step);
        if !path.exists() {
            shown.notes.push(format!("{} is not there", path.display()));
            continue;
        }
        let rollout = match rollout_file::read(&path) {
            Ok(rollout) => rollout,
            Err(error) => {
                shown.notes.push(error.to_string());
                continue;
            }
        };
        let path = layout.learned_path(step);
        let mut learned: HashMap<(u64, usize), LearnedSample> = HashMap::new();
        if path.exists() {
            match learned_file::read(&path) {
                Ok((_, samples)) => {
                    learned.extend(
                        samples
                            .into_iter()
                            .map(|s| ((s.prompt_id, s.sample_index), s)),
                    );
                }
                Err(error) => shown.notes.push(error.to_string()),
            }
        } else {
            without_learned.push(step.to_string());
        }
        let mut advantages = rollout.advantages.into_iter();
        for group in rollout.groups {
            for mut sample in group.samples {
                // Megabytes a sample, and not shown.
                sample.routing.ids = Vec::new();
                let key = (group.prompt.id, sample.index);
                found.push(ShownSample {
                    reasons: Vec::new(),
                    step,
                    prompt: group.prompt.clone(),
                    advantage: advantages.next().unwrap_or(f64::NAN),
                    learned: learned.remove(&key),
                    sample,
                });
            }
        }
    }
    if !without_learned.is_empty() {
        without_learned.reverse();
        shown.notes.push(format!(
            "learned/ is missing for steps {}: of their samples the log-probs of the trainer are not known, so that tokens have no colour, \
             and nothing tells which the off-policy mask removed. Runs of older builds did not keep them.",
            without_learned.join(", ")
        ));
    }
    shown.samples = chosen(found);
    shown
}

/// A few samples for each reason; one that has several comes once.
fn chosen(mut found: Vec<ShownSample>) -> Vec<ShownSample> {
    type Rank = fn(&ShownSample) -> Option<(f64, f64)>;
    // Highest rank first; `None` is not eligible.
    let ranks: [(Reason, usize, Rank); 5] = [
        (Reason::Best, SAMPLES_A_REASON, |s| {
            Some((s.sample.verdict.reward()?, s.advantage))
        }),
        (Reason::Worst, SAMPLES_A_REASON, |s| {
            Some((-s.sample.verdict.reward()?, -s.advantage))
        }),
        (Reason::LargestGap, SAMPLES_A_REASON, |s| {
            Some((f64::from(s.largest_gap()?), 0.0))
        }),
        (Reason::Masked, SAMPLES_A_REASON, |s| {
            let drift = s.learned.as_ref()?.drift;
            s.is_masked().then_some((drift, 0.0))
        }),
        (Reason::Invalid, 1, |s| {
            matches!(s.sample.verdict, Verdict::Invalid { .. }).then_some((0.0, 0.0))
        }),
    ];
    let mut order: Vec<usize> = Vec::new();
    for (reason, count, rank) in ranks {
        let mut ranked: Vec<(usize, (f64, f64))> = found
            .iter()
            .enumerate()
            .filter_map(|(i, sample)| Some((i, rank(sample)?)))
            .collect();
        // Stable: of equals the one of the newest step.
        ranked.sort_by(|(_, a), (_, b)| b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)));
        for (i, _) in ranked.into_iter().take(count) {
            found[i].reasons.push(reason);
            if !order.contains(&i) {
                order.push(i);
            }
        }
    }
    let mut slots: Vec<Option<ShownSample>> = found.into_iter().map(Some).collect();
    order.into_iter().filter_map(|i| slots[i].take()).collect()
}

#[cfg(test)]
pub(super) mod tests;
