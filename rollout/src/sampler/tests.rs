//! The sampler against the definition in plain f64, the trainer's log-probs, and numbers by hand.

use model::KeptTokens;
use model::logprobs::token_logprobs;

use super::*;
use crate::draws::uniform;

/// With the ids below `num_ids`; [`Vocabulary`]'s own tests have others.
fn sample_batch(
    logits: &Tensor,
    config: &SamplingConfig,
    draws: &[f64],
    num_ids: i64,
) -> Vec<SampledToken> {
    super::sample_batch(logits, config, draws, &Vocabulary::all(num_ids as usize))
}

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
