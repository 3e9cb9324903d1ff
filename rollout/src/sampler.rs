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
    Vec::try_from(tensor.to_kind(Kind::Int64).flatten(0, -1)).expect("a flat i64 tensor")
}

fn to_f64(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).expect("a flat f64 tensor")
}

#[cfg(test)]
mod tests {
    use model::KeptTokens;
    use model::logprobs::token_logprobs;

    use super::*;
    use crate::draws::uniform;

    fn config(temperature: f64, top_k: usize, top_p: f64, min_p: f64) -> SamplingConfig {
        SamplingConfig {
            temperature,
            top_k,
            top_p,
            min_p,
            max_new_tokens: 1,
        }
    }

    /// Settings that cover every filter alone and together.
    fn configs() -> Vec<SamplingConfig> {
        vec![
            config(1.0, 0, 1.0, 0.0),
            config(0.7, 0, 1.0, 0.0),
            config(1.0, 4, 1.0, 0.0),
            config(1.0, 1, 1.0, 0.0),
            config(1.0, 50, 1.0, 0.0),
            config(1.3, 0, 0.83, 0.0),
            config(1.0, 0, 0.013, 0.0),
            config(0.6, 0, 1.0, 0.17),
            config(1.0, 5, 0.9, 0.0),
            config(1.0, 6, 0.97, 0.11),
        ]
    }

    /// Logits `[rows, vocab]` on a grid of quarters: exact in f32, with many ties.
    fn tied_logits(rows: u64, vocab: u64) -> Tensor {
        let values: Vec<f32> = (0..rows * vocab)
            .map(|i| (uniform(1, i, 0, 0) * 16.0).floor() as f32 / 4.0)
            .collect();
        Tensor::from_slice(&values).view([rows as i64, vocab as i64])
    }

    /// Draws that differ by row and by `salt`.
    fn draws(rows: u64, salt: u64) -> Vec<f64> {
        (0..rows).map(|row| uniform(2, row, salt, 0)).collect()
    }

    /// The definition, one row at a time, in f64 by a full sort: (id, log-prob, kept ascending).
    fn by_definition(logits: &[f32], config: &SamplingConfig, draw: f64) -> (u32, f64, Vec<u32>) {
        let z: Vec<f64> = logits
            .iter()
            .map(|&x| f64::from(x) / config.temperature)
            .collect();
        let sum: f64 = z.iter().map(|x| x.exp()).sum();
        let p: Vec<f64> = z.iter().map(|x| x.exp() / sum).collect();
        let mut order: Vec<usize> = (0..p.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        let mut kept = Vec::new();
        let mut mass = 0.0;
        for &id in &order {
            let is_beyond_k = config.top_k > 0 && kept.len() == config.top_k;
            let is_unlikely = p[id] < config.min_p * p[order[0]];
            if is_beyond_k || is_unlikely || (config.top_p < 1.0 && mass >= config.top_p) {
                break;
            }
            kept.push(id);
            mass += p[id];
        }
        kept.sort_unstable();
        let mut cumulative = 0.0;
        let id = *kept
            .iter()
            .find(|&&id| {
                cumulative += p[id] / mass;
                cumulative > draw
            })
            .unwrap();
        let kept = kept.iter().map(|&id| id as u32).collect();
        (id as u32, (p[id] / mass).ln(), kept)
    }

    #[test]
    fn tokens_logprobs_and_kept_sets_follow_the_definition() {
        let (rows, vocab) = (40, 13);
        let logits = tied_logits(rows, vocab);
        for config in configs() {
            for salt in 0..5 {
                let draws = draws(rows, salt);
                let found = sample_batch(&logits, &config, &draws, vocab as i64);
                for (row, token) in found.iter().enumerate() {
                    let values = Vec::<f32>::try_from(logits.get(row as i64)).unwrap();
                    let (id, logprob, mut kept) = by_definition(&values, &config, draws[row]);
                    if !config.truncates() {
                        kept.clear();
                    }
                    assert_eq!((token.id, &token.kept), (id, &kept), "{config:?} row {row}");
                    let error = (f64::from(token.logprob) - logprob).abs();
                    assert!(error < 2e-6, "{config:?} row {row}: {error}");
                }
            }
        }
    }

    #[test]
    fn long_top_p_prefixes_follow_the_definition() {
        // Nearly flat rows over 3000 ids: prefixes of about 2900, 1700 and 30 tokens, beyond and
        // within the first candidates, next to a row with a single likely token.
        let vocab = 3000;
        let values: Vec<f32> = (0..3 * vocab)
            .map(|i| match i / vocab {
                0 => uniform(3, i, 0, 0) as f32,
                1 => uniform(3, i, 0, 0) as f32 * 4.0,
                _ => 20.0 * f32::from(i % vocab == 77),
            })
            .collect();
        let logits = Tensor::from_slice(&values).view([3, vocab as i64]);
        for top_p in [0.01, 0.9, 0.985] {
            let config = config(1.0, 0, top_p, 0.0);
            let found = sample_batch(&logits, &config, &[0.3, 0.6, 0.9], vocab as i64);
            for (row, token) in found.iter().enumerate() {
                let values = Vec::<f32>::try_from(logits.get(row as i64)).unwrap();
                let (id, logprob, kept) = by_definition(&values, &config, [0.3, 0.6, 0.9][row]);
                assert_eq!(token.kept, kept, "top_p {top_p} row {row}");
                assert_eq!(token.id, id);
                assert!((f64::from(token.logprob) - logprob).abs() < 1e-5);
            }
            assert_eq!(found[2].kept, [77]);
        }
    }

    #[test]
    fn sampler_logprobs_equal_what_training_recomputes() {
        let (rows, vocab) = (40, 13);
        let logits = tied_logits(rows, vocab) / 3.0;
        for config in configs() {
            // Ids 11 and 12 belong to no token.
            for allowed_vocab in [13, 11] {
                let found = sample_batch(&logits, &config, &draws(rows, 9), allowed_vocab);
                let mut kept = KeptTokens::default();
                found.iter().for_each(|token| kept.push(&token.kept));
                let ids: Vec<i64> = found.iter().map(|token| i64::from(token.id)).collect();
                let ids = Tensor::from_slice(&ids);
                let recomputed = token_logprobs(&logits, &ids, config.temperature, Some(&kept));
                let recomputed = Vec::<f32>::try_from(recomputed).unwrap();
                for (token, expected) in found.iter().zip(recomputed) {
                    let error = (token.logprob - expected).abs();
                    assert!(error < 2e-6, "{config:?}: {} {expected}", token.logprob);
                }
            }
        }
    }

    #[test]
    fn probabilities_of_the_kept_tokens_sum_to_one() {
        let logits = tied_logits(1, 13);
        let config = config(0.8, 6, 0.97, 0.05);
        let mut probabilities = std::collections::BTreeMap::new();
        let mut kept = Vec::new();
        for salt in 0..500 {
            let token = &sample_batch(&logits, &config, &draws(1, salt), 13)[0];
            assert!(token.kept.contains(&token.id));
            probabilities.insert(token.id, f64::from(token.logprob).exp());
            kept.clone_from(&token.kept);
        }
        let ids: Vec<u32> = probabilities.keys().copied().collect();
        assert_eq!(ids, kept, "every kept token is drawn, and no other");
        let sum: f64 = probabilities.values().sum();
        assert!((sum - 1.0).abs() < 1e-6, "{sum}");
    }

    #[test]
    fn frequencies_match_the_probabilities() {
        let p = [0.4f32, 0.3, 0.2, 0.1];
        let rows = 20_000;
        let row = Tensor::from_slice(&p.map(f32::ln)).view([1, 4]);
        let logits = row.expand([rows as i64, 4], false);
        // Top-k 3 leaves 0.4, 0.3, 0.2 over 0.9. Chi-square with 3 and 2 degrees of freedom exceeds
        // 16.3 and 13.8 once in a thousand.
        let whole = config(1.0, 0, 1.0, 0.0);
        let cut = config(1.0, 3, 1.0, 0.0);
        for (config, mass, limit) in [(whole, 1.0, 16.3), (cut, 0.9, 13.8)] {
            let mut counts = [0f64; 4];
            for token in sample_batch(&logits, &config, &draws(rows, 4), 4) {
                counts[token.id as usize] += 1.0;
            }
            let num_kept = if mass < 1.0 { 3 } else { 4 };
            let chi_square: f64 = (0..num_kept)
                .map(|i| {
                    let expected = f64::from(p[i]) / mass * rows as f64;
                    (counts[i] - expected).powi(2) / expected
                })
                .sum();
            assert!(chi_square < limit, "{counts:?}: {chi_square}");
            assert_eq!(counts[..num_kept].iter().sum::<f64>(), rows as f64);
        }
    }

    #[test]
    fn top_p_0_7_keeps_the_two_likeliest_of_three() {
        // p = 0.2, 0.5, 0.3: 0.5 < 0.7 <= 0.8. Renormalised: 5/8 for id 1 and 3/8 for id 2.
        let logits = Tensor::from_slice(&[0.2f32, 0.5, 0.3].map(f32::ln)).view([1, 3]);
        let at = |draw| sample_batch(&logits, &config(1.0, 0, 0.7, 0.0), &[draw], 3).remove(0);
        assert_eq!((at(0.62).id, at(0.63).id), (1, 2));
        assert_eq!(at(0.0).kept, [1, 2]);
        assert!((at(0.0).logprob - 0.625f32.ln()).abs() < 1e-6);
        assert!((at(0.9).logprob - 0.375f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn extreme_draws_stay_on_tokens_with_weight() {
        // exp(-200) is 0 in f32: ids 0 and 4 have no weight.
        let logits = Tensor::from_slice(&[-200f32, 0.0, 1.0, 0.5, -200.0]).view([1, 5]);
        let last = 1.0 - f64::EPSILON / 2.0;
        for config in [config(1.0, 0, 1.0, 0.0), config(1.0, 5, 1.0, 0.0)] {
            let lowest = &sample_batch(&logits, &config, &[0.0], 5)[0];
            let highest = &sample_batch(&logits, &config, &[last], 5)[0];
            assert!([0, 1].contains(&lowest.id), "{lowest:?}");
            assert!([3, 4].contains(&highest.id), "{highest:?}");
            assert!(lowest.logprob.is_finite() && highest.logprob.is_finite());
        }
        let whole = config(1.0, 0, 1.0, 0.0);
        assert_eq!(sample_batch(&logits, &whole, &[0.0], 5)[0].id, 1);
        assert_eq!(sample_batch(&logits, &whole, &[last], 5)[0].id, 3);
    }

    #[test]
    fn surplus_ids_are_never_sampled() {
        // Id 3 has the largest logit, but only 3 ids are allowed.
        let logits = Tensor::from_slice(&[1f32, 2.0, 1.5, 9.0])
            .view([1, 4])
            .expand([200, 4], false);
        for mut config in configs() {
            for temperature in [config.temperature, 0.0] {
                config.temperature = temperature;
                for token in sample_batch(&logits, &config, &draws(200, 6), 3) {
                    assert!(token.id < 3 && !token.kept.contains(&3), "{token:?}");
                }
            }
        }
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals_with_logprob_0() {
        let logits = Tensor::from_slice(&[0f32, 3.0, 1.0, 3.0, 3.0]).view([1, 5]);
        let token = &sample_batch(&logits, &config(0.0, 0, 1.0, 0.0), &[0.99], 5)[0];
        let expected = SampledToken {
            id: 1,
            logprob: 0.0,
            kept: vec![1],
            entropy: 0.0,
        };
        assert_eq!(*token, expected);
    }

    #[test]
    fn entropy_is_that_of_the_tempered_distribution_before_truncation() {
        // Uniform over 4: log 4. p = (1/2, 1/4, 1/4) at temperature 1: 1.5 log 2; its logits halved
        // at temperature 1/2 are the same distribution.
        let uniform = Tensor::full([1, 4], 7.0, (Kind::Float, tch::Device::Cpu));
        let halves = Tensor::from_slice(&[0.5f32, 0.25, 0.25].map(f32::ln)).view([1, 3]);
        for top_k in [0, 2] {
            let at = |logits: &Tensor, temperature| {
                let config = config(temperature, top_k, 1.0, 0.0);
                sample_batch(logits, &config, &[0.5], 4)[0].entropy
            };
            assert!((at(&uniform, 1.0) - 4f32.ln()).abs() < 1e-6);
            assert!((at(&halves, 1.0) - 1.5 * 2f32.ln()).abs() < 1e-6);
            assert!((at(&(&halves / 2.0), 0.5) - 1.5 * 2f32.ln()).abs() < 1e-6);
        }
    }

    #[test]
    fn logits_that_are_not_finite_give_a_nan_logprob() {
        for bad in [f32::NAN, f32::INFINITY] {
            let logits = Tensor::from_slice(&[0f32, bad, 1.0]).view([1, 3]);
            for mut config in configs() {
                for temperature in [config.temperature, 0.0] {
                    config.temperature = temperature;
                    let token = &sample_batch(&logits, &config, &[0.5], 3)[0];
                    assert!(token.logprob.is_nan(), "{bad} {config:?}: {token:?}");
                }
            }
        }
    }

    #[test]
    fn values_out_of_range_are_named() {
        assert!(SamplingConfig::default().problems().is_empty());
        assert!(config(0.0, 3, 0.5, 0.5).problems().is_empty());
        let all_wrong = SamplingConfig {
            temperature: -1.0,
            top_k: 0,
            top_p: 0.0,
            min_p: 1.0,
            max_new_tokens: 0,
        };
        let problems = all_wrong.problems();
        for (problem, key) in problems.iter().zip([
            "temperature (-1)",
            "top_p (0)",
            "min_p (1)",
            "max_new_tokens",
        ]) {
            assert!(problem.starts_with(key), "{problem}");
        }
        assert_eq!(problems.len(), 4);
        assert_eq!(config(f64::NAN, 0, f64::NAN, f64::NAN).problems().len(), 3);
    }
}
