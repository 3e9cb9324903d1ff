//! From logits to tokens: temperature, truncation, a keyed draw, and the log-prob of the choice.
//!
//! With p = softmax(logits / temperature) over the ids the tokenizer has, sorted by (p descending,
//! id ascending), each filter keeps a prefix: top-k the first k; top-p the shortest prefix whose
//! sum is >= top_p; min-p the tokens with p >= min_p max(p). The kept set K is the shortest of the
//! three and always holds the most likely token. The token drawn is the first of K, by ascending
//! id, whose cumulative weight exceeds u. Its log-prob is log_softmax(logits / temperature)
//! restricted to K (to all logits where nothing was truncated), which is what training recomputes.
//! Legend: B rows, V vocabulary.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::truncation::{Prefix, prefixes};
use crate::vocabulary::Vocabulary;

/// Ids per block of the two-level inverse CDF.
const CDF_BLOCK: i64 = 256;

/// How tokens are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingConfig {
    /// Divides the logits; 0 means greedy.
    pub temperature: f64,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of tokens with at least this probability; 1 keeps all.
    pub top_p: f64,
    /// Drop tokens less likely than this share of the most likely one; 0 keeps all.
    pub min_p: f64,
    /// New tokens at most.
    pub max_new_tokens: usize,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        SamplingConfig {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            max_new_tokens: 24,
        }
    }
}

impl SamplingConfig {
    /// Every value out of range, in words that name the key; empty when the config is sound.
    pub fn problems(&self) -> Vec<String> {
        let mut found = Vec::new();
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            found.push(format!(
                "temperature ({}) must be 0 (greedy) or a positive number",
                self.temperature
            ));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            found.push(format!(
                "top_p ({}) must lie above 0 and at most at 1 (1 keeps all)",
                self.top_p
            ));
        }
        if !(self.min_p >= 0.0 && self.min_p < 1.0) {
            found.push(format!(
                "min_p ({}) must lie between 0 (keeps all) and below 1",
                self.min_p
            ));
        }
        if self.max_new_tokens == 0 {
            found.push("max_new_tokens is 0; it must be at least 1".to_string());
        }
        found
    }

    /// Whether a filter may drop tokens.
    pub fn truncates(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }
}

/// One drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// Token id.
    pub id: u32,
    /// Log-prob after temperature, truncation and renormalisation, nats; NaN when the logits are
    /// not finite. Renormalised over `kept`; where that is empty, over all rows of the output head,
    /// those that no token has included, as in training.
    pub logprob: f32,
    /// Ids left by truncation, ascending; empty when no filter is on: the whole vocabulary.
    pub kept: Vec<u32>,
    /// Entropy of the tempered distribution before truncation, nats.
    pub entropy: f32,
}

/// Draws one token a row.
///
/// Row b uses the uniform number `draws[b]` in [0, 1). Ids outside `vocabulary` (rows of the output
/// head that no token has) are never drawn nor kept; only the log-prob of an untruncated row
/// counts their weight, because training normalises such rows over all logits. Temperature 0 takes
/// the most likely token (the lowest id of equals): the distribution is then one point, with
/// log-prob 0, entropy 0 and that token as the kept set.
///
/// # Shapes
/// `logits` f32 `[B, V]`, `draws` `[B]`.
pub fn sample_batch(
    logits: &Tensor,
    config: &SamplingConfig,
    draws: &[f64],
    vocabulary: &Vocabulary,
) -> Vec<SampledToken> {
    let (rows, _) = logits.size2().expect("logits are [B, V]");
    assert_eq!(rows as usize, draws.len(), "one draw a row of the logits");
    tch::no_grad(|| {
        if config.temperature == 0.0 {
            return sample_greedy(&vocabulary.sampled(logits), vocabulary);
        }
        let tempered = Tempered::new(logits, config.temperature, vocabulary);
        if config.truncates() {
            tempered.sample_truncated(config, draws)
        } else {
            tempered.sample_whole(draws)
        }
    })
}

/// The most likely token of each row.
fn sample_greedy(logits: &Tensor, vocabulary: &Vocabulary) -> Vec<SampledToken> {
    let places = to_i64(&logits.argmax(1, false));
    let max = logits.amax(1, false);
    // 0 x: 0 for a finite maximum, NaN otherwise.
    let logprobs = to_f64(&(max * 0.0));
    places
        .into_iter()
        .zip(logprobs)
        .map(|(place, logprob)| SampledToken {
            id: vocabulary.id(place),
            logprob: logprob as f32,
            kept: vec![vocabulary.id(place)],
            entropy: 0.0,
        })
        .collect()
}

/// softmax(logits / temperature), unnormalised; A ids are allowed.
struct Tempered<'a> {
    vocabulary: &'a Vocabulary,
    /// Logits of the allowed ids over temperature, f32 `[B, A]`.
    logits: Tensor,
    /// Largest of each row, f32 `[B, 1]`.
    max: Tensor,
    /// exp(logits - max), f32 `[B, A]`.
    weights: Tensor,
    /// The same, summed over the ids that are not allowed, f64 `[B]`.
    surplus: Tensor,
}

impl Tempered<'_> {
    fn new<'a>(logits: &Tensor, temperature: f64, vocabulary: &'a Vocabulary) -> Tempered<'a> {
        let all = if temperature == 1.0 {
            logits.shallow_clone()
        } else {
            logits / temperature
        };
        let logits = vocabulary.sampled(&all);
        let max = logits.amax(1, true);
        let weights = (&logits - &max).exp_();
        let surplus = vocabulary.surplus(&all) - &max;
        let surplus = surplus.to_kind(Kind::Double).exp_();
        Tempered {
            vocabulary,
            logits,
            max,
            weights,
            surplus: surplus.sum_dim_intlist(1, false, Kind::Double),
        }
    }

    /// H = log Z - sum(w (x - max)) / Z with Z = sum w, `[B]`.
    fn entropy(&self, total: &Tensor) -> Tensor {
        let weighted = (&self.weights * &self.logits)
            .sum_dim_intlist(1, false, Kind::Float)
            .to_kind(Kind::Double);
        total.log() + self.max.squeeze_dim(1) - weighted / total
    }

    /// Without truncation: inverse CDF over the whole vocabulary, no loop over it on the host.
    fn sample_whole(&self, draws: &[f64]) -> Vec<SampledToken> {
        let draws = Tensor::from_slice(draws).to_device(self.weights.device());
        let (places, total) = inverse_cdf(&self.weights, &draws);
        let chosen = self.logits.gather(1, &places.unsqueeze(1), false);
        let logprobs = (chosen - &self.max).squeeze_dim(1).to_kind(Kind::Double)
            - (&total + &self.surplus).log();
        let (places, logprobs, entropy) = (
            to_i64(&places),
            to_f64(&logprobs),
            to_f64(&self.entropy(&total)),
        );
        (0..places.len())
            .map(|row| SampledToken {
                id: self.vocabulary.id(places[row]),
                logprob: logprobs[row] as f32,
                kept: Vec::new(),
                entropy: entropy[row] as f32,
            })
            .collect()
    }

    /// With truncation: the host sees the kept tokens only.
    fn sample_truncated(&self, config: &SamplingConfig, draws: &[f64]) -> Vec<SampledToken> {
        let total = self
            .weights
            .sum_dim_intlist(1, false, Kind::Float)
            .to_kind(Kind::Double);
        let prefixes = prefixes(&self.logits, &self.max, &total, config.top_k, config.top_p);
        let floors: Vec<f32> = prefixes.iter().map(|prefix| prefix.floor).collect();
        let floors = Tensor::from_slice(&floors)
            .to_device(self.logits.device())
            .unsqueeze(1)
            .maximum(&(&self.max + config.min_p.ln()));
        let above = self.logits.ge_tensor(&floors).nonzero();
        let (rows, places) = (above.select(1, 0), above.select(1, 1));
        let values = self.logits.index(&[Some(&rows), Some(&places)]);
        let max = to_f64(&self.max);
        let entropy = to_f64(&self.entropy(&total));

        // The places come row by row, ascending, and so do their ids.
        let mut kept: Vec<Vec<(u32, f64)>> = vec![Vec::new(); draws.len()];
        for ((row, place), value) in to_i64(&rows)
            .into_iter()
            .zip(to_i64(&places))
            .zip(to_f64(&values))
        {
            kept[row as usize].push((self.vocabulary.id(place), value));
        }
        kept.into_iter()
            .enumerate()
            .map(|(row, mut kept)| {
                drop_surplus_ties(&mut kept, prefixes[row]);
                let (id, logprob) = draw_among(&kept, max[row], draws[row]);
                SampledToken {
                    id,
                    logprob: logprob as f32,
                    kept: kept.iter().map(|&(id, _)| id).collect(),
                    entropy: entropy[row] as f32,
                }
            })
            .collect()
    }
}

/// The first id of each row whose cumulative weight exceeds draw x total, and the totals: picks a
/// block by the blocks' sums, then the id within it, so that only 1/256 of the weights are summed
/// up one by one.
///
/// # Shapes
/// `weights` f32 `[B, A]`, `draws` f64 `[B]`; result i64 `[B]` and f64 `[B]`.
fn inverse_cdf(weights: &Tensor, draws: &Tensor) -> (Tensor, Tensor) {
    let num_ids = weights.size()[1];
    let num_blocks = (num_ids + CDF_BLOCK - 1) / CDF_BLOCK;
    let padding = num_blocks * CDF_BLOCK - num_ids;
    let blocks = if padding == 0 {
        weights.shallow_clone()
    } else {
        // Ids without weight are never drawn.
        weights.constant_pad_nd([0, padding])
    };
    let blocks = blocks.reshape([-1, num_blocks, CDF_BLOCK]);
    let sums = blocks
        .sum_dim_intlist(2, false, Kind::Float)
        .to_kind(Kind::Double);
    let cdf = sums.cumsum(1, Kind::Double);
    let total = cdf.select(1, -1);
    let target = (draws * &total).unsqueeze(1);
    let block = first_above(&cdf, &target);
    let before = cdf.gather(1, &block, false) - sums.gather(1, &block, false);
    let index = block.unsqueeze(2).expand([-1, 1, CDF_BLOCK], false);
    let within = blocks
        .gather(1, &index, false)
        .squeeze_dim(1)
        .cumsum(1, Kind::Double);
    let place = first_above(&within, &(target - before));
    let ids = (block * CDF_BLOCK + place).squeeze_dim(1);
    // Only NaN weights point beyond the last id.
    (ids.clamp_max(num_ids - 1), total)
}

/// Index of the first entry of each row of `cdf` above `target` `[B, 1]`, which is taken as
/// strictly below the last entry, so that rounding can't run past the last one with weight.
fn first_above(cdf: &Tensor, target: &Tensor) -> Tensor {
    let last = cdf.narrow(1, -1, 1);
    target
        .minimum(&last.nextafter(&last.zeros_like()))
        .searchsorted(cdf, false, true, "right", None::<Tensor>)
        .clamp_max(cdf.size()[1] - 1)
}

/// Drops tokens as likely as the last of the prefix beyond its length, highest ids first. `kept`,
/// (id, logit) by ascending id, holds every token at or above the prefix's floor or a higher one.
fn drop_surplus_ties(kept: &mut Vec<(u32, f64)>, prefix: Prefix) {
    if kept.len() <= prefix.len {
        return;
    }
    let floor = f64::from(prefix.floor);
    let above = kept.iter().filter(|&&(_, value)| value > floor).count();
    let mut ties_left = prefix.len - above;
    kept.retain(|&(_, value)| {
        let is_tie = value <= floor;
        let stays = !is_tie || ties_left > 0;
        ties_left -= usize::from(is_tie && stays);
        stays
    });
}

/// Inverse CDF over (id, logit) pairs: the id drawn and its renormalised log-prob.
fn draw_among(kept: &[(u32, f64)], max: f64, draw: f64) -> (u32, f64) {
    let total: f64 = kept.iter().map(|&(_, value)| (value - max).exp()).sum();
    // Strictly below the total, so that rounding can't run past the last token with weight.
    let target = (draw * total).min(total.next_down());
    let mut sum = 0.0;
    for &(id, value) in kept {
        sum += (value - max).exp();
        if sum > target {
            return (id, value - max - total.ln());
        }
    }
    // Only NaN logits get here: nothing compares as kept.
    (0, f64::NAN)
}

pub(crate) fn to_i64(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor.to_kind(Kind::Int64).flatten(0, -1)).expect("a flat i64 tensor")
}

pub(crate) fn to_f64(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).expect("a flat f64 tensor")
}

#[cfg(test)]
mod tests;
