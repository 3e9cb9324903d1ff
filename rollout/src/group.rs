//! One prompt -> G samples -> verdicts.
//!
//! Token ids come from the engine and stay as they are; text is decoded only for the grader and the
//! rollout file. Advantages are the learner's business.

use environments::Family;
use model::Transformer;

use crate::engine::{Engine, GeneratedSample, GenerationSettings, GenerationStats, Request};
use crate::error::RolloutError;
use crate::sample::{Group, Prompt, Sample};

/// Samples `group_size` completions of every prompt and grades them.
///
/// `decode` turns completion ids (a final stop token already left out) into text. `progress` is
/// called with (finished, total) samples.
///
/// # Errors
/// A prompt that is empty or too long, or a policy whose logits are not finite.
pub fn sample_groups(
    model: &Transformer,
    prompts: Vec<Prompt>,
    group_size: usize,
    settings: &GenerationSettings,
    decode: &dyn Fn(&[u32]) -> String,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(Vec<Group>, GenerationStats), RolloutError> {
    let requests: Vec<Request> = prompts
        .iter()
        .map(|prompt| Request {
            prompt_id: prompt.id,
            tokens: prompt.tokens.clone(),
            num_samples: group_size,
        })
        .collect();
    let (samples, stats) = Engine::new(model, settings, &requests)?.generate(progress)?;
    let groups = prompts
        .into_iter()
        .zip(samples)
        .map(|(prompt, samples)| graded_group(prompt, samples, &settings.stop_tokens, decode))
        .collect();
    Ok((groups, stats))
}

/// Decodes and grades the samples of one prompt.
fn graded_group(
    prompt: Prompt,
    samples: Vec<GeneratedSample>,
    stop_tokens: &[u32],
    decode: &dyn Fn(&[u32]) -> String,
) -> Group {
    let task = Family::task(&prompt.task);
    let samples = samples
        .into_iter()
        .enumerate()
        .map(|(index, generated)| {
            let text = decode(without_stop(&generated.tokens, stop_tokens));
            Sample {
                index,
                verdict: Family::verify(&task, &text),
                text,
                tokens: generated.tokens,
                sampler_logprobs: generated.sampler_logprobs,
                kept: generated.kept,
                routing: generated.routing,
                policy_version: generated.policy_version,
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
