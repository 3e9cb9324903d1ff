//! How far sequences drifted from the policy that sampled them, and what the off-policy mask took away.
//!
//! drift = mean_t(sampler_logprobs - logprobs), nats a token, as in eq. 9; only sequences with a negative
//! advantage can be masked. The report leaves delta open: the spread of the drift is what to choose it by.

use serde::{Deserialize, Serialize};

use crate::learned_file::LearnedSample;

/// Upper ends of the histogram's bins but the last, nats a token; the first bin holds what did not drift.
pub const BIN_ENDS: [f64; 10] = [0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0];
const NUM_BINS: usize = BIN_ENDS.len() + 1;

/// Figures of the sequences of one step, as `metrics.jsonl` holds them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OffPolicy {
    /// Share of the absolute advantage, the learning signal, that the mask took away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub masked_advantage_share: Option<f64>,
    /// What the mask did to sequences of each age; only the ages that occurred, youngest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub masked_by_age: Vec<MaskedAtAge>,
    /// Sequences with negative advantage by their drift: up to 0, 1e-4, 3e-4, 1e-3, ..., 1, and beyond.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drift_histogram_negative: Vec<u64>,
    /// The same of the other sequences, which are never masked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drift_histogram_other: Vec<u64>,
    /// The `off_policy_delta` that would mask 1 % of the sequences with negative advantage; absent where
    /// that is less than one sequence, as are the next two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta_masking_1_percent: Option<f64>,
    /// 5 %.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta_masking_5_percent: Option<f64>,
    /// 10 %.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta_masking_10_percent: Option<f64>,
}

/// What the mask did to the sequences of one age.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MaskedAtAge {
    /// Updates of the policy since the sequences' first tokens were sampled.
    pub age: u64,
    /// Sequences of that age.
    pub sequences: usize,
    /// Those masked.
    pub masked_sequences: usize,
    /// Their tokens.
    pub masked_tokens: usize,
    /// Their share of the absolute advantage of that age; 0 where there is none.
    pub masked_advantage_share: f64,
}

impl OffPolicy {
    /// The figures of a step's samples; all absent where there are none.
    pub fn of(samples: &[LearnedSample]) -> OffPolicy {
        if samples.is_empty() {
            return OffPolicy::default();
        }
        let mut ages: Vec<u64> = samples.iter().map(|sample| sample.policy_age).collect();
        ages.sort_unstable();
        ages.dedup();
        let at_age = |&age: &u64| {
            let of_age = || samples.iter().filter(|s| s.policy_age == age);
            let masked = || of_age().filter(|s| s.is_masked);
            MaskedAtAge {
                age,
                sequences: of_age().count(),
                masked_sequences: masked().count(),
                masked_tokens: masked().map(|s| s.logprobs.len()).sum(),
                masked_advantage_share: masked_advantage_share(of_age()),
            }
        };
        let drifts = |is_negative: bool| -> Vec<f64> {
            let found = samples
                .iter()
                .filter(|s| (s.advantage < 0.0) == is_negative);
            found.map(|s| s.drift).collect()
        };
        let (negative, other) = (drifts(true), drifts(false));
        OffPolicy {
            masked_advantage_share: Some(masked_advantage_share(samples.iter())),
            masked_by_age: ages.iter().map(at_age).collect(),
            drift_histogram_negative: histogram(&negative),
            drift_histogram_other: histogram(&other),
            delta_masking_1_percent: delta_masking(&negative, 0.01),
            delta_masking_5_percent: delta_masking(&negative, 0.05),
            delta_masking_10_percent: delta_masking(&negative, 0.1),
        }
    }
}

fn masked_advantage_share<'a>(samples: impl Iterator<Item = &'a LearnedSample>) -> f64 {
    let (mut all, mut masked) = (0.0, 0.0);
    for sample in samples {
        all += sample.advantage.abs();
        if sample.is_masked {
            masked += sample.advantage.abs();
        }
    }
    match all {
        0.0 => 0.0,
        all => masked / all,
    }
}

fn histogram(drifts: &[f64]) -> Vec<u64> {
    let mut counts = vec![0; NUM_BINS];
    for &drift in drifts {
        counts[BIN_ENDS.partition_point(|&end| end < drift)] += 1;
    }
    counts
}

/// The drift above which lie `share` of the sequences, rounded down. Not below 0, since no delta is.
fn delta_masking(drifts: &[f64], share: f64) -> Option<f64> {
    let mut drifts = drifts.to_vec();
    drifts.sort_unstable_by(|a, b| b.total_cmp(a));
    // The half of a thousandth absorbs that 0.1 times 30 is less than 3 in binary.
    let num_masked = (share * drifts.len() as f64 + 5e-4) as usize;
    let delta = drifts.get(num_masked).copied()?;
    (num_masked > 0).then_some(delta.max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(drift: f64, advantage: f64, policy_age: u64, is_masked: bool) -> LearnedSample {
        LearnedSample {
            prompt_id: 0,
            sample_index: 0,
            segment: 0,
            mini_batch: 0,
            policy_age,
            advantage,
            kl_scale: 1.0,
            token_weight: 0.1,
            drift,
            is_masked,
            logprobs: vec![-1.0; 10],
            ref_logprobs: None,
        }
    }

    #[test]
    fn what_the_mask_took_is_counted_by_age() {
        let found = OffPolicy::of(&[
            sequence(0.3, -0.5, 1, true),
            sequence(0.3, 0.5, 1, false),
            sequence(0.0, -1.0, 0, false),
            sequence(0.2, -2.0, 1, true),
        ]);
        assert_eq!(found.masked_advantage_share, Some(2.5 / 4.0));
        let young = MaskedAtAge {
            age: 0,
            sequences: 1,
            ..MaskedAtAge::default()
        };
        let old = MaskedAtAge {
            age: 1,
            sequences: 3,
            masked_sequences: 2,
            masked_tokens: 20,
            masked_advantage_share: 2.5 / 3.0,
        };
        assert_eq!(found.masked_by_age, [young, old]);
    }

    #[test]
    fn bins_hold_their_upper_end_and_are_split_by_the_sign_of_the_advantage() {
        let found = OffPolicy::of(&[
            sequence(-0.4, -0.5, 0, false),
            sequence(0.0, -0.5, 0, false),
            sequence(1e-4, -0.5, 0, false),
            sequence(2e-4, -0.5, 0, false),
            sequence(7.0, -0.5, 0, true),
            sequence(0.1, 0.5, 0, false),
            sequence(0.11, 0.0, 0, false),
        ]);
        let negative = [2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!(found.drift_histogram_negative, negative);
        let other = [0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0];
        assert_eq!(found.drift_histogram_other, other);
    }

    #[test]
    fn the_deltas_mask_their_share_of_the_negative_sequences() {
        // Drifts 0.01 to 0.30, and one with a positive advantage far out.
        let mut all: Vec<_> = (1..=30)
            .map(|n| sequence(f64::from(n) / 100.0, -1.0, 0, false))
            .collect();
        all.push(sequence(9.0, 1.0, 0, false));
        let found = OffPolicy::of(&all);
        // 0.3 of a sequence; 1.5, rounded down; 3.
        assert_eq!(found.delta_masking_1_percent, None);
        assert_eq!(found.delta_masking_5_percent, Some(0.29));
        assert_eq!(found.delta_masking_10_percent, Some(0.27));
        let masked = all.iter().filter(|s| s.advantage < 0.0 && s.drift > 0.27);
        assert_eq!(masked.count(), 3);
    }

    #[test]
    fn a_step_without_sequences_has_no_figures() {
        let line = serde_json::to_string(&OffPolicy::of(&[])).expect("serialisable");
        assert_eq!(line, "{}");
    }
}
