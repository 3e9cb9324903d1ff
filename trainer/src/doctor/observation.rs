//! What was seen when sampler and learner computed the same tokens; no judgement yet.

use kernels::tch::Kind;
use model::Attention;

use super::gap::{Gap, Profile};

/// Everything measured on the groups of a play.
#[derive(Clone, Debug)]
pub struct Observations {
    /// Compute type of the learner.
    pub kind: Kind,
    /// Samples and tokens played.
    pub num_samples: usize,
    /// Completion tokens.
    pub num_tokens: usize,
    /// What the learner would refuse to train on, in its own words.
    pub refused: Vec<String>,
    /// |trainer - sampler|, as a run would compute it; `None` where nothing can be compared.
    pub gap: Option<GapObservation>,
    /// Experts, where there are any.
    pub routing: Option<RoutingAgreement>,
    /// Kept tokens, where sampling truncates.
    pub kept: Option<KeptAgreement>,
    /// Share of the recorded keys that the learner's indexer selects, where it selects.
    pub selection: Option<f64>,
}

/// The gap and, where it is too large, what is known about its cause.
#[derive(Clone, Debug)]
pub struct GapObservation {
    /// How large.
    pub gap: Gap,
    /// Whether the trainer followed the recorded keys.
    pub on_recorded_keys: bool,
    /// Where it is largest.
    pub place: Place,
    /// How it goes along the samples.
    pub profile: Profile,
    /// What remains of it under each hypothesis; empty where the gap lies within the limits.
    pub trials: Vec<Trial>,
    /// How the networks of sampler and learner differ; looked for where the gap is too large.
    pub difference: NetworkDifference,
}

/// A token of the play.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Prompt id.
    pub prompt: u64,
    /// Index of the sample in its group.
    pub sample: usize,
    /// Index of the token in the sample.
    pub token: usize,
    /// Its text.
    pub text: String,
}

/// A hypothesis with the gap that it leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// What is supposed.
    pub hypothesis: Hypothesis,
    /// Gap if it is so.
    pub gap: Gap,
}

/// Why the sampler's log-probs might not be the trainer's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Hypothesis {
    /// The log-prob reported for a token is that of the one this many places later.
    Shifted(isize),
    /// The keys the sampler selected are not those the trainer selects.
    RecordedSelection,
    /// The sampler did not use the experts that were recorded.
    FreeRouting,
    /// The trainer, routing freely, uses other experts than the sampler.
    RecordedRouting,
    /// The sampler attends so.
    OtherAttention(Attention),
    /// The sampler did not renormalise over the kept tokens.
    WholeVocabulary,
    /// The sampler renormalised over what truncation keeps, not over what was recorded.
    TruncatedAgain,
    /// The sampler truncated, the trainer does not restrict.
    RecordedKept,
    /// The sampler's temperature.
    Temperature(f64),
    /// The sampler has another network, which it decodes with faithfully.
    SamplerNetwork,
}

/// Experts recorded and experts chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoutingAgreement {
    /// Share of the recorded experts that free routing chooses.
    pub free: f64,
    /// Share of the recorded experts that the replaying pass used; `None` where the run does not replay.
    pub replayed: Option<f64>,
    /// The one expert that was recorded everywhere, if so.
    pub constant: Option<u16>,
}

/// Kept tokens recorded and kept tokens of the trainer's distributions: |both| / |either|.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptAgreement {
    /// Mean over tokens.
    pub mean: f64,
    /// Smallest.
    pub worst: f64,
    /// Where it is.
    pub place: Place,
}

/// How two networks differ.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetworkDifference {
    /// Hyper-parameters, each as a sentence of both values.
    pub shape: Vec<String>,
    /// Weights.
    pub weights: Option<WeightDifference>,
}

/// How two sets of weights of one shape differ.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightDifference {
    /// Tensors with other values.
    pub num_differing: usize,
    /// All tensors.
    pub num_tensors: usize,
    /// The one that differs most.
    pub name: String,
    /// By how much, in its largest entry.
    pub largest: f64,
}
