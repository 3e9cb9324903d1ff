//! From [`Observations`] to findings: what lies outside the limits, and the likeliest cause.
//!
//! A hypothesis explains a gap when the gap that it leaves lies within the limits, or is a tenth of it
//! or less; of several the one that leaves least is named. Where none does, the shape of the gap speaks.

use kernels::tch::Kind;
use model::Attention;

use super::finding::Finding;
use super::limits::Limits;
use super::observation::{
    GapObservation, Hypothesis, KeptAgreement, NetworkDifference, Observations, RoutingAgreement,
    Trial,
};

/// A gap this many times smaller is explained.
const EXPLAINED: f64 = 10.0;
/// A gap grows along the samples when its second half has this many times the mean of its first.
const GROWS: f64 = 2.0;

/// One finding for each thing that sampler and learner should agree about.
pub fn diagnose(observations: &Observations) -> Vec<Finding> {
    let limits = Limits::of(observations.kind);
    let mut found = vec![record(observations)];
    let explanation = observations
        .gap
        .as_ref()
        .and_then(|gap| explanation(gap, limits));
    match &observations.gap {
        Some(gap) => found.push(logprob_gap(observations, gap, explanation, limits)),
        None => found.push(
            Finding::failed("log-prob gap", "nothing could be compared").because(
                "the samples don't hold what the learner needs",
                "see `record`",
            ),
        ),
    }
    // A cause that is known is named once.
    let see_gap = explanation.is_some();
    if let Some(routing) = observations.routing {
        found.push(routing_agreement(routing, see_gap, limits));
    }
    if let Some(kept) = &observations.kept {
        found.push(kept_agreement(kept, see_gap, limits));
    }
    if let Some(share) = observations.selection {
        found.push(selection_overlap(share, see_gap, limits));
    }
    found
}

fn record(observations: &Observations) -> Finding {
    let (samples, tokens) = (observations.num_samples, observations.num_tokens);
    let Some(first) = observations.refused.first() else {
        let text = format!("{samples} samples, {tokens} tokens carry what training replays");
        return Finding::ok("record", text)
            .figure("samples", samples as f64)
            .figure("tokens", tokens as f64);
    };
    let others = match observations.refused.len() {
        1 => String::new(),
        n => format!(" (and {} more)", n - 1),
    };
    Finding::failed("record", format!("training would stop: {first}{others}")).because(
        "what the engine records at sampling time was dropped, cut or overwritten on its way to the learner",
        "follow that field from the engine's postprocessing over the group to the packing",
    )
}

/// The hypothesis that explains the gap best, where the gap needs one.
fn explanation(gap: &GapObservation, limits: Limits) -> Option<Trial> {
    let explains =
        |trial: &&Trial| limits.hold(&trial.gap) || trial.gap.mean * EXPLAINED <= gap.gap.mean;
    let trials = gap.trials.iter().filter(explains);
    trials
        .min_by(|a, b| a.gap.mean.total_cmp(&b.gap.mean))
        .copied()
}

fn kind_name(kind: Kind) -> &'static str {
    if kind == Kind::Float { "f32" } else { "bf16" }
}

fn logprob_gap(
    observations: &Observations,
    gap: &GapObservation,
    explanation: Option<Trial>,
    limits: Limits,
) -> Finding {
    let place = &gap.place;
    let mut text = format!(
        "mean {:.1e}, max {:.1e} nats a token (limits {} and {} in {}); largest at prompt {}, sample {}, \
         token {} {:?}",
        gap.gap.mean,
        gap.gap.max,
        limits.gap_mean,
        limits.gap_max,
        kind_name(observations.kind),
        place.prompt,
        place.sample,
        place.token,
        place.text,
    );
    if gap.on_recorded_keys {
        text += "; on the recorded keys, since the indexer is yet to be trained";
    }
    let holds = limits.hold(&gap.gap);
    let profile = gap.profile;
    if !holds {
        text += &format!(
            "; first tokens {:.1e}, decoded ones {:.1e} (early {:.1e}, late {:.1e})",
            profile.first, profile.decoded, profile.early, profile.late
        );
    }
    let finding = Finding::of("log-prob gap", holds, text)
        .figure("mean", gap.gap.mean)
        .figure("max", gap.gap.max)
        .figure("first_tokens", profile.first)
        .figure("decoded_tokens", profile.decoded);
    if holds {
        return finding;
    }
    match explanation {
        Some(trial) => {
            let (cause, advice) = explained(trial.hypothesis, gap, observations);
            let left = format!(
                "{cause}; so computed, the gap is mean {:.1e}, max {:.1e}",
                trial.gap.mean, trial.gap.max
            );
            finding.because(left, advice)
        }
        None => {
            let (cause, advice) = by_shape(gap, limits);
            finding.because(cause, advice)
        }
    }
}

/// Cause and advice of a hypothesis that explains the gap.
fn explained(
    hypothesis: Hypothesis,
    gap: &GapObservation,
    observations: &Observations,
) -> (String, String) {
    let own = |cause: &str, advice: &str| (cause.to_string(), advice.to_string());
    match hypothesis {
        Hypothesis::Shifted(by) => (
            format!(
                "the sampler's log-probs are shifted: what it reports for a token is that of the token {} place{} {}",
                by.unsigned_abs(),
                if by.unsigned_abs() == 1 { "" } else { "s" },
                if by > 0 { "later" } else { "earlier" }
            ),
            "sampler_logprobs[t] must be the log-prob of tokens[t]: look at where the engine records a token and \
             at how the group is packed"
                .to_string(),
        ),
        Hypothesis::RecordedSelection => own(
            "the indexer selects other keys in the trainer than it did in the sampler",
            "compare what the two feed it (hidden states, rotation, quantisation); in bf16 near ties alone can do \
             this: then compute in f32",
        ),
        Hypothesis::FreeRouting => {
            let constant = observations.routing.and_then(|routing| routing.constant);
            let constant = constant.map_or(String::new(), |id| format!(" (expert {id} everywhere)"));
            (
                format!("the experts on record{constant} are not those that the sampler used"),
                "look at where the engine records routing and at the order of its rows".to_string(),
            )
        }
        Hypothesis::RecordedRouting => own(
            "the trainer, routing freely, uses other experts than the sampler did",
            "set keep_routing: true in the grpo stage",
        ),
        Hypothesis::OtherAttention(attention) => {
            let name = |attention| match attention {
                Attention::Dense => "dense",
                Attention::Sparse => "sparse",
            };
            let ours = match attention {
                Attention::Dense => Attention::Sparse,
                Attention::Sparse => Attention::Dense,
            };
            (
                format!(
                    "the sampler's attention is {}, the trainer's {}",
                    name(attention),
                    name(ours)
                ),
                "give both the attention of the stage".to_string(),
            )
        }
        Hypothesis::WholeVocabulary => own(
            "the sampler ignored the kept tokens: its log-probs are over the whole vocabulary",
            "renormalise them over what truncation left, or set keep_sampling_mask: false",
        ),
        Hypothesis::TruncatedAgain => own(
            "the kept tokens on record are not those that the sampler renormalised over",
            "look at where the engine records them; a row of none stands for the whole vocabulary",
        ),
        Hypothesis::RecordedKept => own(
            "the sampler truncates, the trainer ignores the kept tokens",
            "set keep_sampling_mask: true in the grpo stage, or let sampling keep everything",
        ),
        Hypothesis::Temperature(temperature) => (
            format!("the sampler's temperature is {temperature:.2}, not the trainer's"),
            "both must divide by sampling.temperature".to_string(),
        ),
        Hypothesis::SamplerNetwork => network(&gap.difference),
    }
}

/// Why a sampler that decodes faithfully has another network.
fn network(difference: &NetworkDifference) -> (String, String) {
    if !difference.shape.is_empty() {
        let is_rope = |sentence: &String| sentence.contains("rope") || sentence.contains("yarn");
        let what = match difference.shape.iter().any(is_rope) {
            true => "sampler and trainer turn positions differently (RoPE)",
            false => "sampler and trainer have other hyper-parameters",
        };
        return (
            format!("{what}: {}", difference.shape.join("; ")),
            "load both from one config.json".to_string(),
        );
    }
    match &difference.weights {
        Some(weights) => (
            format!(
                "the sampler has stale weights: {} of {} tensors differ, {} most (by {:.1e})",
                weights.num_differing, weights.num_tensors, weights.name, weights.largest
            ),
            "publish the weights after each update, before anything is sampled".to_string(),
        ),
        None => (
            "the sampler's own packed pass gives its log-probs, the learner's does not".to_string(),
            "compare the options of the two passes".to_string(),
        ),
    }
}

/// Cause and advice from where the gap begins and how it goes on.
fn by_shape(gap: &GapObservation, limits: Limits) -> (String, String) {
    let profile = gap.profile;
    let grows = profile.late > GROWS * profile.early;
    let first_is_right = profile.first <= limits.gap_mean && profile.decoded > limits.gap_mean;
    let unexplained = "no hypothesis explains it";
    match (first_is_right, grows) {
        (true, true) => (
            "the first tokens, from the prompt's pass, agree; the gap begins with the first decoded token and \
             grows: positions of decoded tokens (RoPE), or a cache that fills up wrongly"
                .to_string(),
            "compare the positions and the cache rows of a decode step with those of the whole sequence".to_string(),
        ),
        (true, false) => (
            "the first tokens, from the prompt's pass, agree; the gap begins with the first decoded token: what \
             the cache holds, or what a decode step makes of it"
                .to_string(),
            "compare a decode step with the last row of a pass over the whole sequence".to_string(),
        ),
        (false, true) => (
            format!("{unexplained}; it grows with the position: rotation (RoPE), or the sight of keys"),
            "compare rope_theta and its layout, and the masks of branched documents".to_string(),
        ),
        (false, false) => (
            format!("{unexplained}; it is everywhere, from the first token on: weights, or the prompt's tokens"),
            "compare the weights of both sides, then the logits after the prompt".to_string(),
        ),
    }
}

fn routing_agreement(routing: RoutingAgreement, see_gap: bool, limits: Limits) -> Finding {
    let replayed = match routing.replayed {
        Some(share) => format!("the replaying pass used {share:.4} of them"),
        None => "the run does not replay them".to_string(),
    };
    let text = format!(
        "free routing chooses {:.4} of the recorded experts (limit {}); {replayed}",
        routing.free, limits.routing
    );
    let replays = routing.replayed.is_none_or(|share| share == 1.0);
    let finding = Finding::of("routing", replays && routing.free >= limits.routing, text)
        .figure("free", routing.free);
    let finding = match routing.replayed {
        Some(share) => finding.figure("replayed", share),
        None => finding,
    };
    match (finding.has_failed(), routing.constant) {
        (false, _) => finding,
        (true, Some(id)) => finding.because(
            format!(
                "expert {id} is on record for every token of every layer: the ids were dropped"
            ),
            "look at where the engine records routing",
        ),
        (true, None) if !replays => finding.because(
            "the trainer does not follow the recorded experts",
            "look at what the pass makes of Routing::Replay",
        ),
        (true, None) => from_gap(
            finding,
            see_gap,
            "the recorded experts are not those of these tokens, or the router sees other hidden states",
            "look at where the engine records routing and at the order of its rows",
        ),
    }
}

fn kept_agreement(kept: &KeptAgreement, see_gap: bool, limits: Limits) -> Finding {
    let place = &kept.place;
    let text = format!(
        "{:.4} of the recorded and the trainer's own are common (limit {}); least {:.2} at prompt {}, sample {}, token {}",
        kept.mean, limits.kept, kept.worst, place.prompt, place.sample, place.token
    );
    let finding = Finding::of("kept tokens", kept.mean >= limits.kept, text)
        .figure("mean", kept.mean)
        .figure("worst", kept.worst);
    match finding.has_failed() {
        false => finding,
        true => from_gap(
            finding,
            see_gap,
            "truncation keeps other tokens of the trainer's distributions than the sampler recorded",
            "look at the order of temperature and filters, and at where the engine records what is kept",
        ),
    }
}

fn selection_overlap(share: f64, see_gap: bool, limits: Limits) -> Finding {
    let text = format!(
        "the trainer's indexer selects {share:.4} of the keys that the sampler attended to (limit {})",
        limits.selection
    );
    let finding =
        Finding::of("selected keys", share >= limits.selection, text).figure("share", share);
    match finding.has_failed() {
        false => finding,
        true => from_gap(
            finding,
            see_gap,
            "the indexer sees other hidden states, or scores them differently",
            "compare the indexer's inputs, rotation and quantisation of both sides",
        ),
    }
}

/// A failure that has the cause of the log-prob gap, where that is known.
fn from_gap(finding: Finding, see_gap: bool, cause: &str, advice: &str) -> Finding {
    match see_gap {
        true => finding.because("that of the log-prob gap", "see `log-prob gap`"),
        false => finding.because(cause, advice),
    }
}
