//! Whether what a sample carries fits its tokens: log-probs, kept tokens, recorded experts.
//!
//! A technique that is on and whose payload is missing must stop the run, not be skipped; the
//! sentences here say what to do.

use rollout::Sample;

use super::RoutingShape;

/// What in a sample contradicts its tokens, if anything.
pub(super) fn sample_problem(sample: &Sample, keep_sampling_mask: bool) -> Option<String> {
    let len = sample.tokens.len();
    if len == 0 {
        return Some("it has no tokens".to_string());
    }
    if sample.sampler_logprobs.len() != len {
        let found = sample.sampler_logprobs.len();
        return Some(format!("{len} tokens but {found} sampler log-probs"));
    }
    if let Some(t) = sample.sampler_logprobs.iter().position(|l| !l.is_finite()) {
        let found = sample.sampler_logprobs[t];
        return Some(format!("the sampler log-prob of token {t} is {found}"));
    }
    if !keep_sampling_mask {
        return None;
    }
    if sample.kept.num_rows() != len {
        let found = sample.kept.num_rows();
        return Some(format!(
            "{len} tokens but {found} rows of kept tokens; the engine must record them, or set \
             keep_sampling_mask: false"
        ));
    }
    let dropped = |t: usize| {
        let row = sample.kept.row(t);
        !row.is_empty() && row.binary_search(&sample.tokens[t]).is_err()
    };
    let t = (0..len).find(|&t| dropped(t))?;
    Some(format!(
        "token {t} was sampled but is not among its kept tokens"
    ))
}

/// What is wrong with the recorded experts of `sample`, if anything; `first` is the group's first
/// valid sample, checked before.
pub(super) fn routing_problem(
    prompt_len: usize,
    sample: &Sample,
    first: &Sample,
    shape: RoutingShape,
) -> Option<String> {
    let trace = &sample.routing;
    if trace.ids.is_empty() {
        return Some(
            "no experts were recorded; the engine must record them, or set keep_routing: false"
                .to_string(),
        );
    }
    if (trace.num_layers, trace.top_k) != (shape.num_layers, shape.top_k) {
        return Some(format!(
            "experts of {} layers x {} were recorded, the model has {} x {}",
            trace.num_layers, trace.top_k, shape.num_layers, shape.top_k
        ));
    }
    let row = shape.num_layers * shape.top_k;
    let expected = prompt_len + sample.tokens.len() - 1;
    if trace.ids.len() != expected * row {
        return Some(format!(
            "experts of {} tokens were recorded, prompt and sample have {expected} forwarded tokens",
            trace.num_tokens()
        ));
    }
    let prompt = prompt_len * row;
    (trace.ids[..prompt] != first.routing.ids[..prompt]).then(|| {
        format!(
            "the experts of the prompt differ from those of sample {}",
            first.index
        )
    })
}
