//! Figures of samples by environment, and of their episodes where there are tools.

use std::collections::BTreeMap;

use rollout::{EpisodeRecord, Group, Sample};
use serde::{Deserialize, Serialize};

use crate::config::EnvironmentConfig;

/// What episodes of several turns did, as `metrics.jsonl` holds it; absent where there were none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EpisodeFigures {
    /// Turns of the assistant, mean over episodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turns_mean: Option<f64>,
    /// Tool calls, mean over episodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls_mean: Option<f64>,
    /// Share of the calls that were errors of the policy; absent without calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bad_tool_calls_share: Option<f64>,
    /// Share of the episodes with a turn that is not of the chat format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub malformed_share: Option<f64>,
    /// Share of the episodes that a limit on turns, calls, time or context ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limited_share: Option<f64>,
}

/// What samples were paid for, where a run pays for more than the verdict.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RewardPart {
    /// `outcome`, `format`, `length` or `language`.
    pub part: String,
    /// Its mean over the samples that have it.
    pub mean: f64,
}

/// The samples of one environment among several.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EnvironmentFigures {
    /// Its family and level, dataset, or server and level.
    pub environment: String,
    /// Graded samples.
    pub samples: usize,
    /// Mean of what they were paid.
    pub reward_mean: f64,
    /// Share of them with the full reward.
    pub pass_rate: f64,
}

impl EpisodeFigures {
    /// The figures of a step's samples.
    pub fn of<'a>(samples: impl Iterator<Item = &'a Sample>) -> EpisodeFigures {
        use environments::Stop;
        let episodes: Vec<&EpisodeRecord> = samples
            .filter_map(|sample| sample.episode.as_ref())
            .collect();
        if episodes.is_empty() {
            return EpisodeFigures::default();
        }
        let count = episodes.len() as f64;
        let sum = |of: fn(&EpisodeRecord) -> usize| {
            episodes.iter().map(|episode| of(episode)).sum::<usize>() as f64
        };
        let share = |stops: &[Option<Stop>]| {
            let ended = episodes.iter().filter(|e| stops.contains(&e.stop));
            Some(ended.count() as f64 / count)
        };
        let calls = sum(|episode| episode.num_calls);
        let limits = [Stop::Turns, Stop::Calls, Stop::Time, Stop::Length].map(Some);
        EpisodeFigures {
            turns_mean: Some(sum(|episode| episode.num_turns) / count),
            tool_calls_mean: Some(calls / count),
            bad_tool_calls_share: (calls > 0.0)
                .then(|| sum(|episode| episode.num_bad_calls) / calls),
            malformed_share: share(&[Some(Stop::Malformed)]),
            limited_share: share(&limits),
        }
    }
}

/// The means of the parts of what samples were paid, by name.
pub fn reward_parts<'a>(samples: impl Iterator<Item = &'a Sample>) -> Vec<RewardPart> {
    let mut sums: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
    let paid = samples.filter_map(|sample| sample.paid.as_ref());
    for (part, value) in paid.flat_map(|paid| &paid.parts) {
        let (sum, count) = sums.entry(part).or_default();
        *sum += value;
        *count += 1;
    }
    let means = sums.into_iter().map(|(part, (sum, count))| RewardPart {
        part: part.to_string(),
        mean: sum / count as f64,
    });
    means.collect()
}

/// Figures of each of several `environments` that had graded samples; nothing where there is but one environment.
pub fn by_environment(
    environments: &[EnvironmentConfig],
    groups: &[Group],
) -> Vec<EnvironmentFigures> {
    if environments.len() < 2 {
        return Vec::new();
    }
    let figures = |environment: &EnvironmentConfig| {
        let own = groups
            .iter()
            .filter(|g| environment.is_source_of(&g.prompt.task));
        let samples = || own.clone().flat_map(|group| &group.samples);
        let rewards: Vec<f64> = samples().filter_map(Sample::reward).collect();
        let count = rewards.len() as f64;
        let is_solved = |sample: &&Sample| sample.verdict.reward().is_some_and(|r| r >= 1.0);
        let passed = samples().filter(is_solved).count();
        let name = match environment.source.name_and_level() {
            (name, Some(level)) => format!("{name} {level}"),
            (name, None) => name,
        };
        (!rewards.is_empty()).then(|| EnvironmentFigures {
            environment: name,
            samples: rewards.len(),
            reward_mean: rewards.iter().sum::<f64>() / count,
            pass_rate: passed as f64 / count,
        })
    };
    environments.iter().filter_map(figures).collect()
}

#[cfg(test)]
mod tests {
    use environments::{Family, FamilyKey, Split, Stop, TaskKey, Verdict};
    use model::{KeptTokens, RoutingTrace, SelectionTrace};
    use rollout::{FinishReason, Prompt};

    use super::*;
    use crate::environment_config::TaskSource;

    fn sample(reward: f64, episode: Option<(usize, usize, Stop)>) -> Sample {
        Sample {
            verdict: Verdict::graded(reward, None),
            episode: episode.map(|(num_calls, num_bad_calls, stop)| EpisodeRecord {
                num_turns: num_calls + 1,
                num_calls,
                num_bad_calls,
                stop: Some(stop),
            }),
            index: 0,
            tokens: vec![257],
            sampler_logprobs: vec![0.0],
            kept: KeptTokens::default(),
            routing: RoutingTrace::default(),
            selection: SelectionTrace::default(),
            policy_versions: vec![0],
            given: Vec::new(),
            later: Vec::new(),
            paid: None,
            finish_reason: FinishReason::Stop,
            text: String::new(),
        }
    }

    #[test]
    fn episodes_are_averaged_and_samples_without_turns_left_out() {
        let samples = [
            sample(1.0, None),
            sample(1.0, Some((2, 0, Stop::Answered))),
            sample(0.0, Some((2, 1, Stop::Turns))),
            sample(0.0, Some((0, 0, Stop::Malformed))),
            sample(0.0, Some((0, 0, Stop::Length))),
        ];
        let figures = EpisodeFigures::of(samples.iter());
        let expected = EpisodeFigures {
            turns_mean: Some(2.0),
            tool_calls_mean: Some(1.0),
            bad_tool_calls_share: Some(0.25),
            malformed_share: Some(0.25),
            limited_share: Some(0.5),
        };
        assert_eq!(figures, expected);
        assert_eq!(
            EpisodeFigures::of(samples[..1].iter()),
            EpisodeFigures::default()
        );
    }

    #[test]
    fn parts_of_rewards_are_averaged_over_the_samples_that_have_them() {
        let paid = |parts: &[(&str, f64)]| {
            let parts = parts.iter().map(|&(name, value)| (name.to_string(), value));
            Sample {
                paid: Some(environments::Reward {
                    reward: 0.0,
                    parts: parts.collect(),
                }),
                ..sample(1.0, None)
            }
        };
        let samples = [
            sample(1.0, None),
            paid(&[("outcome", 1.0), ("length", -0.5)]),
            paid(&[("outcome", 0.5)]),
        ];
        let means = [("length", -0.5), ("outcome", 0.75)].map(|(part, mean)| RewardPart {
            part: part.to_string(),
            mean,
        });
        assert_eq!(reward_parts(samples.iter()), means);
    }

    #[test]
    fn rewards_are_told_apart_by_environment() {
        let environment = |family, level| EnvironmentConfig {
            source: TaskSource::Family { family, level },
            weight: 1.0,
            kl_scale: 1.0,
            mcp: Vec::new(),
            rubric: None,
        };
        let group = |family, level, rewards: &[f64]| Group {
            prompt: Prompt {
                task: TaskKey::Family(FamilyKey {
                    family,
                    split: Split::Train,
                    level,
                    seed: 0,
                }),
                id: 0,
                question: String::new(),
                tokens: vec![256],
            },
            samples: rewards.iter().map(|&reward| sample(reward, None)).collect(),
        };
        let environments = [
            environment(Family::Sums, 1),
            environment(Family::Gcd, 2),
            environment(Family::Sums, 2),
        ];
        let groups = [
            group(Family::Sums, 1, &[1.0, 0.0]),
            group(Family::Sums, 1, &[1.0, 0.5]),
            group(Family::Sums, 2, &[0.0]),
        ];
        let figures = by_environment(&environments, &groups);
        let expected = [("sums 1", 4, 0.625, 0.5), ("sums 2", 1, 0.0, 0.0)];
        let expected = expected.map(
            |(name, samples, reward_mean, pass_rate)| EnvironmentFigures {
                environment: name.to_string(),
                samples,
                reward_mean,
                pass_rate,
            },
        );
        assert_eq!(figures, expected);
        assert_eq!(by_environment(&environments[..1], &groups), Vec::new());
    }
}
