//! One packed pass of one side over the groups, under a choice of what of the record it follows.
//!
//! The learner computes under autograd with the master weights cast, the sampler without and with the
//! published ones: where a policy was changed and not published, the two differ.

use kernels::tch::{self, Kind, Tensor};
use model::{Attention, ForwardOptions, KeptTokens, Routing, Selection, Transformer};
use rollout::sampler::sample_batch;
use rollout::{SamplingConfig, Vocabulary};

use super::gap::Logprobs;
use crate::batch::MicroBatch;

/// Rows of logits alive at once.
const ROWS: i64 = 512;

/// Whose pass.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side<'a> {
    Learner(&'a Transformer),
    Sampler(&'a Transformer),
}

impl<'a> Side<'a> {
    pub(super) fn model(&self) -> &'a Transformer {
        match self {
            Side::Learner(model) | Side::Sampler(model) => model,
        }
    }

    /// `compute` with the weights of this side.
    pub(super) fn run<T>(&self, compute: impl FnOnce() -> T) -> T {
        match self {
            Side::Learner(_) => compute(),
            Side::Sampler(_) => tch::no_grad(compute),
        }
    }
}

/// What a pass follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Follow {
    pub(super) routing: bool,
    pub(super) selection: bool,
    pub(super) attention: Attention,
    pub(super) activation_checkpointing: bool,
}

/// Results of a pass over every micro-batch.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    side: Side<'a>,
    /// Hidden states that predict the targets of each micro-batch, `[N, hidden_size]`.
    hidden: Vec<Tensor>,
    /// Share of recorded experts that free routing would choose.
    pub(super) routing_free: Option<f64>,
    /// Share of recorded experts that were used.
    pub(super) routing_used: Option<f64>,
    /// Share of recorded keys that free selection would choose.
    pub(super) selection_free: Option<f64>,
}

impl<'a> Pass<'a> {
    pub(super) fn run(side: Side<'a>, batches: &[MicroBatch], follow: Follow) -> Pass<'a> {
        let mut hidden = Vec::new();
        let (mut free, mut used, mut keys) = (Mean::default(), Mean::default(), Mean::default());
        for batch in batches {
            let replay = |ids: &Option<Tensor>| ids.as_ref().map(Tensor::shallow_clone);
            let recorded = replay(&batch.routing).filter(|_| follow.routing);
            let selected = replay(&batch.selection).filter(|_| follow.selection);
            let options = ForwardOptions {
                routing: recorded.map_or(Routing::Record, Routing::Replay),
                attention: follow.attention,
                selection: selected.map_or(Selection::Free, Selection::Replay),
                indexer_loss: false,
                activation_checkpointing: follow.activation_checkpointing,
            };
            let output = side.run(|| side.model().forward_packed(&batch.input, &options));
            let rows = output.hidden.detach().index_select(0, &batch.target_rows);
            hidden.push(rows);
            let num_tokens = batch.input.num_tokens() as f64;
            free.add(output.routing_agreement(), num_tokens);
            keys.add(output.selection_agreement, num_tokens);
            if let (Some(recorded), Some(routing)) = (&batch.routing, &output.routing) {
                let same = recorded.eq_tensor(routing).to_kind(Kind::Double);
                used.add(Some(same.mean(Kind::Double).double_value(&[])), num_tokens);
            }
        }
        Pass {
            side,
            hidden,
            routing_free: free.value(),
            routing_used: used.value(),
            selection_free: keys.value(),
        }
    }

    /// Log-probs of the targets, sample by sample; `kept` has a row a target of each micro-batch.
    pub(super) fn logprobs(
        &self,
        batches: &[MicroBatch],
        kept: Option<&[KeptTokens]>,
        temperature: f64,
    ) -> Logprobs {
        let mut found = Vec::new();
        for (index, (batch, hidden)) in batches.iter().zip(&self.hidden).enumerate() {
            let rows = Tensor::arange(hidden.size()[0], (Kind::Int64, hidden.device()));
            let kept = kept.map(|kept| &kept[index]);
            let logprobs = self.side.run(|| {
                let model = self.side.model();
                model.token_logprobs(hidden, &rows, &batch.targets, temperature, kept)
            });
            found.extend(by_sample(batch, &logprobs.detach()));
        }
        found
    }

    /// Logits and ids of the first targets, `limit` at most, of the first micro-batch.
    pub(super) fn first_logits(
        &self,
        batches: &[MicroBatch],
        limit: i64,
    ) -> Option<(Tensor, Tensor)> {
        let (batch, hidden) = (batches.first()?, self.hidden.first()?);
        let count = limit.min(hidden.size()[0]);
        let rows = hidden.narrow(0, 0, count);
        let logits = self.side.run(|| self.side.model().logits(&rows).detach());
        Some((logits, batch.targets.narrow(0, 0, count)))
    }

    /// The tokens that `sampling` would keep of this pass's own distributions, for each micro-batch.
    pub(super) fn kept_tokens(
        &self,
        sampling: &SamplingConfig,
        vocabulary: &Vocabulary,
    ) -> Vec<KeptTokens> {
        let kept = self.hidden.iter().map(|hidden| {
            let mut kept = KeptTokens::default();
            let count = hidden.size()[0];
            for start in (0..count).step_by(ROWS as usize) {
                let len = ROWS.min(count - start);
                let logits = self.side.run(|| {
                    let rows = hidden.narrow(0, start, len);
                    self.side.model().logits(&rows).detach()
                });
                // The draws don't matter: only what is kept is wanted.
                let draws = vec![0.0; len as usize];
                for token in sample_batch(&logits, sampling, &draws, vocabulary) {
                    kept.push(&token.kept);
                }
            }
            kept
        });
        kept.collect()
    }
}

/// `values` `[N]` of the targets of `batch`, sample by sample.
fn by_sample(batch: &MicroBatch, values: &Tensor) -> Logprobs {
    let values = Vec::<f64>::try_from(values.to_kind(Kind::Double)).expect("one axis");
    let lengths = Vec::<i64>::try_from(&batch.lengths).expect("one axis");
    let mut values = values.into_iter();
    let samples = lengths
        .iter()
        .map(|&len| values.by_ref().take(len as usize).collect());
    samples.collect()
}

/// What the sampler reported, sample by sample.
pub(super) fn sampler_logprobs(batches: &[MicroBatch]) -> Logprobs {
    let of_batch = |batch: &MicroBatch| by_sample(batch, &batch.sampler_logprobs);
    batches.iter().flat_map(of_batch).collect()
}

/// A weighted mean of what was there.
#[derive(Default)]
struct Mean {
    sum: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, value: Option<f64>, weight: f64) {
        if let Some(value) = value {
            self.sum += value * weight;
            self.weight += weight;
        }
    }

    fn value(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }
}
