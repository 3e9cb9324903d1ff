//! The temperature at which the trainer's logits come nearest to the sampler's log-probs.

use kernels::tch::{Kind, Tensor};
use model::KeptTokens;
use model::logprobs::token_logprobs;

use super::pass::Pass;
use crate::batch::MicroBatch;

/// Tokens looked at; their logits are alive together.
const NUM_TOKENS: i64 = 256;
/// Temperatures tried, evenly on a logarithmic scale, before the best is refined.
const NUM_TRIED: usize = 33;
const LOWEST: f64 = 0.1;
const HIGHEST: f64 = 10.0;
/// Each step narrows the interval to 0.62 of its width.
const NUM_REFINEMENTS: usize = 30;

/// The temperature with the smallest mean gap; `None` without tokens.
pub(super) fn fitted(
    pass: &Pass,
    batches: &[MicroBatch],
    kept: Option<&[KeptTokens]>,
) -> Option<f64> {
    let (logits, targets) = pass.first_logits(batches, NUM_TOKENS)?;
    let count = targets.size()[0];
    if count == 0 {
        return None;
    }
    let sampler = batches[0].sampler_logprobs.narrow(0, 0, count);
    let kept = kept.map(|kept| kept[0].slice(0, count as usize));
    Some(best(&logits, &targets, &sampler, kept.as_ref()))
}

fn best(logits: &Tensor, targets: &Tensor, sampler: &Tensor, kept: Option<&KeptTokens>) -> f64 {
    let gap = |log_temperature: f64| {
        let logprobs = token_logprobs(logits, targets, log_temperature.exp(), kept);
        let gap = (logprobs - sampler).abs().mean(Kind::Double);
        gap.double_value(&[])
    };
    let step = (HIGHEST / LOWEST).ln() / (NUM_TRIED - 1) as f64;
    let tried = (0..NUM_TRIED).map(|i| LOWEST.ln() + step * i as f64);
    let start = tried
        .min_by(|a, b| gap(*a).total_cmp(&gap(*b)))
        .expect("temperatures are tried");
    // Golden section: one new point a step.
    let ratio = (5f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (start - step, start + step);
    let (mut left, mut right) = (high - ratio * (high - low), low + ratio * (high - low));
    let (mut gap_left, mut gap_right) = (gap(left), gap(right));
    for _ in 0..NUM_REFINEMENTS {
        if gap_left < gap_right {
            (high, right, gap_right) = (right, left, gap_left);
            left = high - ratio * (high - low);
            gap_left = gap(left);
        } else {
            (low, left, gap_left) = (left, right, gap_right);
            right = low + ratio * (high - low);
            gap_right = gap(right);
        }
    }
    ((low + high) / 2.0).exp()
}

#[cfg(test)]
mod tests {
    use kernels::tch;

    use super::*;

    #[test]
    fn the_temperature_of_the_sampler_is_found_again() {
        tch::manual_seed(1);
        let logits = Tensor::randn([40, 30], (Kind::Float, tch::Device::Cpu)) * 3.0;
        let targets = Tensor::randint(30, [40], (Kind::Int64, tch::Device::Cpu));
        let mut kept = KeptTokens::default();
        for target in Vec::<i64>::try_from(&targets).unwrap() {
            kept.push(&(0..=target as u32).collect::<Vec<_>>());
        }
        for temperature in [0.3, 0.7, 1.0, 2.5] {
            for kept in [None, Some(&kept)] {
                let sampler = token_logprobs(&logits, &targets, temperature, kept);
                let found = best(&logits, &targets, &sampler, kept);
                assert!((found / temperature - 1.0).abs() < 1e-3, "{found}");
            }
        }
    }
}
