//! One prompt -> G samples -> verdicts.
//!
//! Token ids come from the engine and stay as they are; text is decoded only for the grader and the
//! rollout file. Advantages are the learner's business.

use std::fmt;

use environments::RewardConfig;
use model::Transformer;
use model::chat::Thinking;

use crate::episodes::{Driver, EpisodeHost};
use crate::error::RolloutError;
use crate::generation::{GeneratedSample, GenerationSettings, GenerationStats};
use crate::grading::GuardedGrader;
use crate::paid;
use crate::sample::{Group, Prompt, Sample};

/// What turns sampled tokens into verdicts.
#[derive(Clone, Copy)]
pub struct Judge<'a> {
    /// Completion ids (a final stop token already left out) to text.
    pub decode: &'a dyn Fn(&[u32]) -> String,
    /// Grades the text of tasks of one turn.
    pub grader: &'a GuardedGrader,
    /// Runs the episodes of tasks of several turns; without it every task is taken for one of one turn.
    pub episodes: Option<&'a EpisodeHost>,
    /// What completions are paid for; without it, the verdict's reward.
    pub rewards: Option<&'a RewardConfig>,
}

impl fmt::Debug for Judge<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge").finish_non_exhaustive()
    }
}

/// Samples `group_size` completions of every prompt and grades them.
///
/// `progress` is called with (finished, total) samples. Whether the grader gave up is the caller's to ask, once the
/// groups are in safety.
///
/// # Errors
/// A prompt that is empty or too long, a policy whose logits are not finite, or a chat format that can't show what tools
/// answer.
pub fn sample_groups(
    model: &Transformer,
    prompts: Vec<Prompt>,
    group_size: usize,
    settings: &GenerationSettings,
    judge: Judge,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Vec<Group>, GenerationStats), RolloutError> {
    let total = prompts.len() * group_size;
    let num_slots = settings.max_batch_sequences.min(total.max(1));
    let mut driver = Driver::new(model, settings, num_slots, group_size, judge);
    driver.make_room(&prompts)?;
    let order: Vec<u64> = prompts.iter().map(|prompt| prompt.id).collect();
    for prompt in prompts {
        driver.submit(prompt, Vec::new())?;
    }
    let (mut groups, mut num_finished) = (Vec::new(), 0);
    while let Some(newly_finished) = driver.step()? {
        num_finished += newly_finished;
        if newly_finished > 0 {
            progress(num_finished, total);
        }
        groups.extend(driver.take_finished());
    }
    groups.sort_by_key(|group: &Group| order.iter().position(|&id| id == group.prompt.id));
    Ok((groups, driver.take_stats()))
}

/// Decodes and grades the samples of one prompt, by index.
pub fn graded_group(
    prompt: Prompt,
    samples: Vec<GeneratedSample>,
    settings: &GenerationSettings,
    judge: &Judge,
) -> Group {
    let thinking = judge
        .episodes
        .map_or(Thinking::Off, |host| host.chat.thinking);
    let max_tokens = settings.sampling.max_new_tokens;
    let samples = samples
        .into_iter()
        .enumerate()
        .map(|(index, generated)| {
            let own = without_stop(&generated.tokens, &settings.stop_tokens);
            let text = (judge.decode)(own);
            let verdict = judge.grader.grade(&prompt, &text);
            // Marks of reasoning may be special tokens, which the text leaves out.
            let marked = judge
                .episodes
                .and_then(|host| host.tokenizer.decode_with_special(own).ok());
            let paid = paid::of_turn(
                judge.rewards,
                &prompt,
                &verdict,
                marked.as_deref().unwrap_or(&text),
                thinking,
                generated.finish_reason,
                (generated.tokens.len(), max_tokens),
            );
            Sample {
                index,
                verdict,
                paid,
                text,
                tokens: generated.tokens,
                sampler_logprobs: generated.sampler_logprobs,
                kept: generated.kept,
                routing: generated.routing,
                selection: generated.selection,
                policy_versions: generated.policy_versions,
                finish_reason: generated.finish_reason,
                given: generated.given,
                later: Vec::new(),
                episode: None,
            }
        })
        .collect();
    Group { prompt, samples }
}

/// The completion without its final stop token.
fn without_stop<'a>(tokens: &'a [u32], stop_tokens: &[u32]) -> &'a [u32] {
    match tokens.split_last() {
        Some((last, rest)) if stop_tokens.contains(last) => rest,
        _ => tokens,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use environments::{Family, FamilyKey, Split, Tasks, Verdict};
    use model::{Attention, KeptTokens, RoutingTrace, SelectionTrace};

    use super::*;
    use crate::grading::GradingConfig;
    use crate::memory::MemorySettings;
    use crate::sample::FinishReason;
    use crate::sampler::SamplingConfig;
    use crate::vocabulary::Vocabulary;

    #[test]
    fn samples_are_decoded_without_their_stop_token_and_graded() {
        let key = FamilyKey {
            family: Family::Sums,
            split: Split::Train,
            level: 1,
            seed: 3,
        };
        let task = Family::task(&key);
        let prompt = Prompt {
            id: 5,
            task: key.into(),
            question: task.question.clone(),
            tokens: vec![1, 2],
        };
        let generated = |tokens: &[u32], finish_reason| GeneratedSample {
            tokens: tokens.to_vec(),
            sampler_logprobs: vec![-0.5; tokens.len()],
            kept: KeptTokens::default(),
            routing: RoutingTrace::default(),
            selection: SelectionTrace::default(),
            policy_versions: vec![4; tokens.len()],
            finish_reason,
            given: Vec::new(),
        };
        let samples = vec![
            generated(&[10, 0], FinishReason::Stop),
            generated(&[11, 0, 12], FinishReason::Length),
        ];
        // Token 10 is the right answer, 11 is no answer; the stop token 0 would show as '#'.
        let decode = |ids: &[u32]| -> String {
            ids.iter()
                .map(|id| match id {
                    10 => task.solution.as_str(),
                    0 => "#",
                    _ => "none ",
                })
                .collect()
        };
        let grader = GuardedGrader::new(Arc::new(Tasks::default()), &GradingConfig::default());
        let judge = Judge {
            decode: &decode,
            grader: &grader,
            episodes: None,
            rewards: None,
        };
        let settings = GenerationSettings {
            sampling: SamplingConfig {
                max_new_tokens: 3,
                ..SamplingConfig::default()
            },
            attention: Attention::Dense,
            stop_tokens: vec![0],
            vocabulary: Vocabulary::all(13),
            seed: 0,
            policy_version: 0,
            max_batch_sequences: 1,
            memory: MemorySettings::default(),
            record_selection: false,
        };
        let group = graded_group(prompt.clone(), samples.clone(), &settings, &judge);
        let [right, wrong] = group.samples.as_slice() else {
            panic!("two samples");
        };
        assert_eq!((right.index, wrong.index), (0, 1));
        assert_eq!(right.text, task.solution);
        assert_eq!(wrong.text, "none #none ");
        assert_eq!(right.verdict.reward(), Some(1.0));
        assert!(matches!(wrong.verdict, Verdict::Graded { reward, .. } if reward == 0.0));
        assert_eq!(right.tokens, [10, 0], "ids stay as they were sampled");
        assert_eq!(right.policy_versions, [4, 4]);
        assert_eq!((right.reward(), wrong.reward()), (Some(1.0), Some(0.0)));

        // Sums are of mathematics: the answer that the limit cut loses its outcome, and both pay for their length.
        let mut rewards = RewardConfig::default();
        rewards.math.format_gate = true;
        rewards.math.length = 0.5;
        rewards.math.length_buffer_tokens = 2;
        let judge = Judge {
            rewards: Some(&rewards),
            ..judge
        };
        let samples = vec![
            samples[0].clone(),
            generated(&[10, 10, 10], FinishReason::Length),
        ];
        let group = graded_group(prompt, samples, &settings, &judge);
        let paid: Vec<Option<f64>> = group.samples.iter().map(Sample::reward).collect();
        // Two of three tokens are half the buffer: 0.25 is taken off, of three 0.5.
        assert_eq!(paid, [Some(0.75), Some(-0.5)]);
        assert_eq!(group.samples[1].verdict.reward(), Some(1.0));
    }
}
