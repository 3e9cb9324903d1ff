//! Learning rate over the optimizer steps of a stage, counted from 0.
//!
//! Warm-up: `peak * (step + 1) / warmup_steps`, so the first step already moves and the last warm-up
//! step reaches the peak. Then constant, or half a cosine that ends at `floor * peak` on the
//! stage's last step.

use std::f64::consts::PI;

use crate::config::{Decay, LearningRate};

/// Learning rate of optimizer step `step` (from 0) in a stage of `total_steps`.
pub fn learning_rate(rate: &LearningRate, step: usize, total_steps: usize) -> f64 {
    if step < rate.warmup_steps {
        return rate.peak * (step + 1) as f64 / rate.warmup_steps as f64;
    }
    match rate.decay {
        Decay::Constant => rate.peak,
        Decay::Cosine { floor } => {
            let peak_step = rate.warmup_steps.saturating_sub(1);
            let last_step = total_steps.saturating_sub(1);
            if last_step <= peak_step {
                return rate.peak;
            }
            let progress = (step - peak_step) as f64 / (last_step - peak_step) as f64;
            let cosine = 0.5 * (1.0 + (PI * progress.min(1.0)).cos());
            rate.peak * (floor + (1.0 - floor) * cosine)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(warmup_steps: usize, decay: Decay, total_steps: usize) -> Vec<f64> {
        let rate = LearningRate {
            peak: 8.0,
            warmup_steps,
            decay,
        };
        (0..total_steps)
            .map(|step| learning_rate(&rate, step, total_steps))
            .collect()
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < 1e-12, "{found:?} against {expected:?}");
        }
    }

    #[test]
    fn constant_rate_is_the_peak_from_the_first_step() {
        assert_close(&rates(0, Decay::Constant, 3), &[8.0, 8.0, 8.0]);
    }

    #[test]
    fn warmup_rises_linearly_and_reaches_the_peak() {
        let found = rates(4, Decay::Constant, 6);
        assert_close(&found, &[2.0, 4.0, 6.0, 8.0, 8.0, 8.0]);
    }

    #[test]
    fn cosine_starts_at_the_peak_and_ends_at_the_floor() {
        let found = rates(0, Decay::Cosine { floor: 0.25 }, 5);
        let quarter = 2.0 + 6.0 * 0.853_553_390_593_273_8;
        let three_quarters = 2.0 + 6.0 * 0.146_446_609_406_726_2;
        assert_close(&found, &[8.0, quarter, 5.0, three_quarters, 2.0]);
    }

    #[test]
    fn cosine_follows_the_warmup_without_a_jump() {
        let found = rates(2, Decay::Cosine { floor: 0.0 }, 6);
        let quarter = 8.0 * 0.853_553_390_593_273_8;
        assert_close(&found, &[4.0, 8.0, quarter, 4.0, 8.0 - quarter, 0.0]);
    }

    #[test]
    fn steps_past_the_stage_stay_at_the_floor() {
        let rate = LearningRate {
            peak: 1.0,
            warmup_steps: 0,
            decay: Decay::Cosine { floor: 0.5 },
        };
        assert_eq!(learning_rate(&rate, 99, 10), 0.5);
        assert_eq!(learning_rate(&rate, 0, 1), 1.0);
    }
}
