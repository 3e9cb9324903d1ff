//! Whether what a sample carries fits its tokens: log-probs, kept tokens, recorded experts and keys.
//!
//! A technique that is on and whose payload is missing must stop the run, not be skipped; the
//! sentences here say what to do.

use model::KeptTokens;
use rollout::SegmentView;

use super::{PackOptions, RoutingShape, SelectionShape};

/// What in a sample contradicts its tokens, if anything.
pub(super) fn sample_problem(sample: SegmentView, options: &PackOptions) -> Option<String> {
    let len = sample.tokens.len();
    if len == 0 {
        return Some("it has no tokens".to_string());
    }
    if let Some(&id) = sample
        .tokens
        .iter()
        .find(|&&id| id as usize >= options.vocab_size)
    {
        let size = options.vocab_size;
        return Some(format!(
            "token id {id} lies outside the vocabulary of {size}"
        ));
    }
    if sample.sampler_logprobs.len() != len {
        let found = sample.sampler_logprobs.len();
        return Some(format!("{len} tokens but {found} sampler log-probs"));
    }
    if sample.policy_versions.len() != len {
        let found = sample.policy_versions.len();
        return Some(format!("{len} tokens but {found} policy versions"));
    }
    let mut end = 0;
    for given in sample.given {
        if given.start < end || given.end <= given.start || given.end >= len {
            return Some(format!(
                "the given tokens {given:?} of {len} tokens are empty, out of order, or leave none to be drawn behind them"
            ));
        }
        end = given.end;
    }
    if let Some(t) = sample.sampler_logprobs.iter().position(|l| !l.is_finite()) {
        let found = sample.sampler_logprobs[t];
        return Some(format!("the sampler log-prob of token {t} is {found}"));
    }
    match options.keep_sampling_mask {
        true => kept_problem(sample, options),
        false => None,
    }
}

fn kept_problem(sample: SegmentView, options: &PackOptions) -> Option<String> {
    let (len, kept) = (sample.tokens.len(), sample.kept);
    if let Some(problem) = offsets_problem(kept) {
        return Some(problem);
    }
    if kept.num_rows() != len {
        let found = kept.num_rows();
        return Some(format!(
            "{len} tokens but {found} rows of kept tokens; the engine must record them, or set \
             keep_sampling_mask: false"
        ));
    }
    (0..len).find_map(|t| {
        let row = kept.row(t);
        let outside = row.iter().find(|&&id| id as usize >= options.vocab_size);
        let is_given = || sample.given.iter().any(|given| given.contains(&t));
        if row.is_empty() {
            (options.truncates && !is_given()).then(|| {
                format!(
                    "token {t} has no kept tokens, although sampling.top_k, top_p or min_p is on; the engine \
                     must record them, or set keep_sampling_mask: false"
                )
            })
        } else if let Some(id) = outside {
            let size = options.vocab_size;
            Some(format!("the kept token {id} of token {t} lies outside the vocabulary of {size}"))
        } else if !row.is_sorted_by(|a, b| a < b) {
            Some(format!("the kept tokens of token {t} are not in ascending order"))
        } else if row.binary_search(&sample.tokens[t]).is_err() {
            Some(format!("token {t} was sampled but is not among its kept tokens"))
        } else {
            None
        }
    })
}

/// What is wrong with the row boundaries of `kept`, if anything.
fn offsets_problem(kept: &KeptTokens) -> Option<String> {
    let (offsets, end) = (&kept.offsets, kept.ids.len() as u32);
    let fit = offsets.first() == Some(&0) && offsets.last() == Some(&end) && offsets.is_sorted();
    (!fit).then(|| {
        format!(
            "the offsets of its kept tokens don't rise from 0 to the {} ids",
            kept.ids.len()
        )
    })
}

/// What is wrong with the recorded experts of `sample`, if anything; `first` is the group's first
/// valid sample, checked before.
pub(super) fn routing_problem(
    prompt_len: usize,
    sample: SegmentView,
    first: SegmentView,
    shape: RoutingShape,
) -> Option<String> {
    let trace = sample.routing;
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
    for (index, experts) in trace.ids.chunks(shape.top_k).enumerate() {
        // Millions of these pass: where it is counts only for one that doesn't.
        let place = || {
            let (token, layer) = (index / shape.num_layers, index % shape.num_layers);
            format!("forwarded token {token}, expert layer {layer}")
        };
        if let Some(id) = experts
            .iter()
            .find(|&&id| usize::from(id) >= shape.num_experts)
        {
            let count = shape.num_experts;
            return Some(format!("{}: expert {id} of {count} was recorded", place()));
        }
        let is_twice = |&i: &usize| experts[..i].contains(&experts[i]);
        if let Some(i) = (1..experts.len()).find(is_twice) {
            let id = experts[i];
            return Some(format!("{}: expert {id} was recorded twice", place()));
        }
    }
    let prompt = prompt_len * row;
    (trace.ids[..prompt] != first.routing.ids[..prompt]).then(|| {
        format!(
            "the experts of the prompt differ from those of sample {}",
            first.sample
        )
    })
}

/// What is wrong with the recorded keys of `sample`, if anything; `first` as above.
pub(super) fn selection_problem(
    prompt_len: usize,
    sample: SegmentView,
    first: SegmentView,
    shape: SelectionShape,
) -> Option<String> {
    let trace = sample.selection;
    if (trace.num_layers, trace.topk) != (shape.num_layers, shape.topk) {
        return Some(match trace.num_layers {
            0 => "no selected keys were recorded; the engine must be asked to (record_selection)"
                .to_string(),
            found => format!(
                "keys of {found} layers x {} were recorded, the model selects {} x {}",
                trace.topk, shape.num_layers, shape.topk
            ),
        });
    }
    let num_tokens = prompt_len + sample.tokens.len() - 1;
    let expected = trace.expected_len(num_tokens);
    if trace.keys.len() != expected {
        return Some(format!(
            "{} selected keys were recorded, {num_tokens} forwarded tokens have {expected}",
            trace.keys.len()
        ));
    }
    for (index, keys) in trace.keys.chunks(shape.topk).enumerate() {
        let (token, layer) = (
            shape.topk + index / shape.num_layers,
            index % shape.num_layers,
        );
        let is_sound =
            keys.is_sorted_by(|a, b| a < b) && keys.iter().all(|&key| key as usize <= token);
        if !is_sound {
            return Some(format!(
                "forwarded token {token}, layer {layer}: the recorded keys are not ascending positions up to {token}"
            ));
        }
    }
    let prompt = trace.expected_len(prompt_len);
    (trace.keys[..prompt] != first.selection.keys[..prompt]).then(|| {
        format!(
            "the keys of the prompt differ from those of sample {}",
            first.sample
        )
    })
}
