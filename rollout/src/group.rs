//! One prompt -> G samples -> verdicts.
//!
//! Token ids come from the engine and stay as they are; text is decoded only for the grader and the
//! rollout file. Advantages are the learner's business.

use model::Transformer;

use crate::engine::Engine;
use crate::error::RolloutError;
use crate::generation::{GeneratedSample, GenerationSettings, GenerationStats, Request};
use crate::grading::GuardedGrader;
use crate::sample::{Group, Prompt, Sample};

/// Samples `group_size` completions of every prompt and grades them.
///
/// `decode` turns completion ids (a final stop token already left out) into text. `progress` is
/// called with (finished, total) samples. Whether `grader` gave up is the caller's to ask, once the groups
/// are in safety.
///
/// # Errors
/// A prompt that is empty or too long, or a policy whose logits are not finite.
pub fn sample_groups(
    model: &Transformer,
    prompts: Vec<Prompt>,
    group_size: usize,
    settings: &GenerationSettings,
    decode: &dyn Fn(&[u32]) -> String,
    grader: &GuardedGrader,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Vec<Group>, GenerationStats), RolloutError> {
    let requests: Vec<Request> = prompts
        .iter()
        .map(|prompt| Request {
            prompt_id: prompt.id,
            tokens: prompt.tokens.clone(),
            num_samples: group_size,
            begun: Vec::new(),
        })
        .collect();
    let (samples, stats) = Engine::new(model, settings, &requests)?.generate(progress)?;
    let groups = prompts
        .into_iter()
        .zip(samples)
        .map(|(prompt, samples)| {
            graded_group(prompt, samples, &settings.stop_tokens, decode, grader)
        })
        .collect();
    Ok((groups, stats))
}

/// Decodes and grades the samples of one prompt, by index; `decode` as in [`sample_groups`].
pub fn graded_group(
    prompt: Prompt,
    samples: Vec<GeneratedSample>,
    stop_tokens: &[u32],
    decode: &dyn Fn(&[u32]) -> String,
    grader: &GuardedGrader,
) -> Group {
    let samples = samples
        .into_iter()
        .enumerate()
        .map(|(index, generated)| {
            let text = decode(without_stop(&generated.tokens, stop_tokens));
            Sample {
                index,
                verdict: grader.grade(&prompt, &text),
                text,
                tokens: generated.tokens,
                sampler_logprobs: generated.sampler_logprobs,
                kept: generated.kept,
                routing: generated.routing,
                selection: generated.selection,
                policy_versions: generated.policy_versions,
                finish_reason: generated.finish_reason,
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
    use model::{KeptTokens, RoutingTrace, SelectionTrace};

    use super::*;
    use crate::grading::GradingConfig;
    use crate::sample::FinishReason;

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
        let group = graded_group(prompt, samples, &[0], &decode, &grader);
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
    }
}
