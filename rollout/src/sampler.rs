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

/// Candidates sorted first when only top-p limits their number; grows by [`WIDENING`] as needed.
const FIRST_CANDIDATES: i64 = 64;
/// Growth of the candidate list of rows whose top-p prefix is longer.
const WIDENING: i64 = 16;

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
    fn truncates(&self) -> bool {
        self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0
    }
}

/// One drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// Token id.
    pub id: u32,
    /// Log-prob after temperature, truncation and renormalisation, nats; NaN when the logits are
    /// not finite.
    pub logprob: f32,
    /// Ids left by truncation, ascending; empty when no filter is on: the whole vocabulary.
    pub kept: Vec<u32>,
    /// Entropy of the tempered distribution before truncation, nats.
    pub entropy: f32,
}

/// Draws one token a row.
///
/// Row b uses the uniform number `draws[b]` in [0, 1). Ids from `allowed_vocab` on (rows of the
/// embedding that no token has) are never drawn nor kept; only the log-prob of an untruncated row
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
    allowed_vocab: i64,
) -> Vec<SampledToken> {
    let (rows, vocab) = logits.size2().expect("logits are [B, V]");
    assert_eq!(rows as usize, draws.len(), "one draw a row of the logits");
    tch::no_grad(|| {
        let allowed_vocab = allowed_vocab.min(vocab);
        if config.temperature == 0.0 {
            return sample_greedy(&logits.narrow(1, 0, allowed_vocab));
        }
        let tempered = Tempered::new(logits, config.temperature, allowed_vocab);
        if config.truncates() {
            tempered.sample_truncated(config, draws)
        } else {
            tempered.sample_whole(draws)
        }
    })
}

/// The most likely token of each row.
fn sample_greedy(logits: &Tensor) -> Vec<SampledToken> {
    let ids = to_i64(&logits.argmax(1, false));
    let max = logits.amax(1, false);
    // x - x: 0 for a finite maximum, NaN otherwise.
    let logprobs = to_f64(&(&max - &max));
    ids.iter()
        .zip(logprobs)
        .map(|(&id, logprob)| SampledToken {
            id: id as u32,
            logprob: logprob as f32,
            kept: vec![id as u32],
            entropy: 0.0,
        })
        .collect()
}

/// softmax(logits / temperature), unnormalised; A ids are allowed.
struct Tempered {
    /// Logits of the allowed ids over temperature, f32 `[B, A]`.
    logits: Tensor,
    /// Largest of each row, f32 `[B, 1]`.
    max: Tensor,
    /// exp(logits - max), f32 `[B, A]`.
    weights: Tensor,
    /// The same, summed over the ids that are not allowed, f64 `[B]`.
    surplus: Tensor,
}

impl Tempered {
    fn new(logits: &Tensor, temperature: f64, allowed_vocab: i64) -> Tempered {
        let all = if temperature == 1.0 {
            logits.shallow_clone()
        } else {
            logits / temperature
        };
        let logits = all.narrow(1, 0, allowed_vocab);
        let max = logits.amax(1, true);
        let weights = (&logits - &max).exp_();
        let surplus = all.narrow(1, allowed_vocab, all.size()[1] - allowed_vocab) - &max;
        let surplus = surplus.to_kind(Kind::Double).exp_();
        Tempered {
            logits,
            max,
            weights,
            surplus: surplus.sum_dim_intlist(1, false, Kind::Double),
        }
    }

    /// H = log Z - sum(w (x - max)) / Z with Z = sum w, `[B]`.
    fn entropy(&self, total: &Tensor) -> Tensor {
        let weighted = self
            .weights
            .unsqueeze(1)
            .bmm(&self.logits.unsqueeze(2))
            .view([-1])
            .to_kind(Kind::Double);
        total.log() + self.max.squeeze_dim(1) - weighted / total
    }

    /// Without truncation: inverse CDF over the whole vocabulary, no loop over it on the host.
    fn sample_whole(&self, draws: &[f64]) -> Vec<SampledToken> {
        let cdf = self.weights.cumsum(1, Kind::Double);
        let total = cdf.select(1, -1);
        let draws = Tensor::from_slice(draws).to_device(cdf.device());
        // Strictly below the total, so that the draw can't run past the last token with weight.
        let target = (draws * &total).minimum(&total.nextafter(&total.zeros_like()));
        let ids = target
            .unsqueeze(1)
            .searchsorted(&cdf, false, true, "right", None::<Tensor>)
            .clamp_max(cdf.size()[1] - 1);
        let chosen = self.logits.gather(1, &ids, false);
        let logprobs = (chosen - &self.max).squeeze_dim(1).to_kind(Kind::Double)
            - (&total + &self.surplus).log();
        let (ids, logprobs, entropy) = (
            to_i64(&ids),
            to_f64(&logprobs),
            to_f64(&self.entropy(&total)),
        );
        (0..ids.len())
            .map(|row| SampledToken {
                id: ids[row] as u32,
                logprob: logprobs[row] as f32,
                kept: Vec::new(),
                entropy: entropy[row] as f32,
            })
            .collect()
    }

    /// With truncation: the host sees the kept tokens only.
    fn sample_truncated(&self, config: &SamplingConfig, draws: &[f64]) -> Vec<SampledToken> {
        let total = self.weights.sum_dim_intlist(1, false, Kind::Float);
        let prefixes = self.prefixes(config, &total);
        let floors: Vec<f32> = prefixes.iter().map(|prefix| prefix.floor).collect();
        let floors = Tensor::from_slice(&floors)
            .to_device(self.logits.device())
            .unsqueeze(1)
            .maximum(&(&self.max + config.min_p.ln()));
        let mask = self.logits.ge_tensor(&floors);
        // Both list the kept tokens row by row, by ascending id.
        let places = to_i64(&mask.nonzero());
        let values = to_f64(&self.logits.masked_select(&mask));
        let max = to_f64(&self.max);
        let entropy = to_f64(&self.entropy(&total.to_kind(Kind::Double)));

        let mut candidates: Vec<Vec<(u32, f64)>> = vec![Vec::new(); draws.len()];
        for (place, &value) in places.chunks_exact(2).zip(&values) {
            candidates[place[0] as usize].push((place[1] as u32, value));
        }
        candidates
            .into_iter()
            .enumerate()
            .map(|(row, mut kept)| {
                prefixes[row].drop_surplus_ties(&mut kept);
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

    /// What top-k and top-p leave of each row. Only as many tokens are sorted as needed.
    fn prefixes(&self, config: &SamplingConfig, total: &Tensor) -> Vec<Prefix> {
        let (rows, vocab) = self.logits.size2().expect("logits are [B, V]");
        let whole = Prefix {
            len: vocab as usize,
            floor: f32::NEG_INFINITY,
        };
        let mut prefixes = vec![whole; rows as usize];
        if config.top_k == 0 && config.top_p == 1.0 {
            return prefixes;
        }
        let widest = match config.top_k as i64 {
            0 => vocab,
            top_k => top_k.min(vocab),
        };
        let mut width = if config.top_p < 1.0 {
            widest.min(FIRST_CANDIDATES)
        } else {
            widest
        };
        let mut pending: Vec<i64> = (0..rows).collect();
        while !pending.is_empty() {
            let index = Tensor::from_slice(&pending).to_device(self.logits.device());
            let (values, _) = self
                .logits
                .index_select(0, &index)
                .topk(width, 1, true, true);
            let lens = if config.top_p < 1.0 {
                let sums = (&values - self.max.index_select(0, &index))
                    .exp_()
                    .cumsum(1, Kind::Double)
                    / total.index_select(0, &index).unsqueeze(1);
                // Prefixes that fall short of top_p, and the one after them.
                sums.lt(config.top_p).sum_dim_intlist(1, false, Kind::Int64) + 1
            } else {
                Tensor::full(
                    [pending.len() as i64],
                    width,
                    (Kind::Int64, values.device()),
                )
            };
            let ends: Tensor = lens.clamp_max(width) - 1;
            let floors = to_f64(&values.gather(1, &ends.unsqueeze(1), false));
            let is_final = width == widest;
            let mut unresolved = Vec::new();
            for ((&row, len), floor) in pending.iter().zip(to_i64(&lens)).zip(floors) {
                if len > width && !is_final {
                    unresolved.push(row);
                } else {
                    prefixes[row as usize] = Prefix {
                        len: len.min(width) as usize,
                        floor: floor as f32,
                    };
                }
            }
            pending = unresolved;
            width = widest.min(width * WIDENING);
        }
        prefixes
    }
}

/// The first `len` tokens of a row in (p descending, id ascending) order.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    /// Number of tokens.
    len: usize,
    /// Logit of the last of them; tokens outside may share it.
    floor: f32,
}

impl Prefix {
    /// Drops tokens as likely as the last kept one beyond `len`, highest ids first. `kept` is
    /// ascending by id and holds every token at or above the floor (or a higher one).
    fn drop_surplus_ties(&self, kept: &mut Vec<(u32, f64)>) {
        if kept.len() <= self.len {
            return;
        }
        let floor = f64::from(self.floor);
        let above = kept.iter().filter(|&&(_, value)| value > floor).count();
        let mut ties_left = self.len - above;
        kept.retain(|&(_, value)| {
            let is_tie = value <= floor;
            let stays = !is_tie || ties_left > 0;
            ties_left -= usize::from(is_tie && stays);
            stays
        });
    }
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

fn to_i64(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor.to_kind(Kind::Int64).view([-1])).expect("a flat i64 tensor")
}

fn to_f64(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).view([-1])).expect("a flat f64 tensor")
}
