//! Techniques that can't act, judged by what was played: `without_effect` knows the configuration alone.

use model::{Attention, ModelConfig};
use rollout::{FinishReason, Group, Sample};

use super::finding::Finding;
use crate::config::{GrpoConfig, RunConfig, StageConfig};
use crate::without_effect::without_effect;

/// Notes on what is on and yet idle in the run, and on what the samples look like.
pub fn effect_findings(
    config: &RunConfig,
    shape: &ModelConfig,
    attention: Attention,
    groups: &[Group],
) -> Vec<Finding> {
    let mut sentences = without_effect(config, shape);
    sentences.extend(idle_selection(shape, attention, groups));
    let grpo = config.stages.iter().find_map(|stage| match stage {
        StageConfig::Grpo(stage) => Some(stage),
        _ => None,
    });
    sentences.extend(grpo.and_then(|stage| idle_advantage(stage, groups)));
    let notes = sentences.into_iter();
    notes
        .map(|sentence| Finding::note("without effect", sentence))
        .collect()
}

/// How many samples ended by themselves.
pub fn finished_finding(groups: &[Group], max_new_tokens: usize) -> Finding {
    let samples = || groups.iter().flat_map(|group| &group.samples);
    let count = samples().count().max(1) as f64;
    let ended = samples().filter(|sample| sample.finish_reason == FinishReason::Stop);
    let share = ended.count() as f64 / count;
    let mut text = format!("{share:.2} of the samples ended with a stop token");
    if share == 0.0 {
        text += &format!(
            ": unless the policy is untrained, it ends answers with another token, or {max_new_tokens} new tokens \
             (sampling.max_new_tokens) are too few"
        );
    }
    Finding::note("finished", text).figure("share", share)
}

fn idle_selection(shape: &ModelConfig, attention: Attention, groups: &[Group]) -> Option<String> {
    let topk = shape.dsa.as_ref()?.index_topk;
    let longest = groups
        .iter()
        .flat_map(|group| {
            let prompt = group.prompt.tokens.len();
            let samples = group.samples.iter();
            samples.map(move |sample| prompt + sample.tokens.len())
        })
        .max()?;
    (attention == Attention::Sparse && topk >= longest).then(|| {
        format!(
            "index_topk ({topk}) is not below the longest of the sequences played ({longest} tokens): sparse attention \
             selects every key"
        )
    })
}

fn idle_advantage(stage: &GrpoConfig, groups: &[Group]) -> Option<String> {
    if stage.group_size == 1 {
        return Some(
            "group_size is 1: a sample is compared with itself alone, and every advantage is 0"
                .to_string(),
        );
    }
    let differ = |group: &Group| {
        let mut rewards = group.samples.iter().filter_map(Sample::reward);
        let first = rewards.next();
        rewards.any(|reward| Some(reward) != first)
    };
    (!groups.is_empty() && !groups.iter().any(differ)).then(|| {
        "in no group did rewards differ: of these prompts the starting policy would learn nothing by grpo (earlier \
         stages, easier tasks or larger groups can change that)"
            .to_string()
    })
}

#[cfg(test)]
mod tests;
