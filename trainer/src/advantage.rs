//! Group advantage (report 3.1): `A_i = R_i - mean(R_1, ..., R_G)`.
//!
//! The mean is not divided by a standard deviation. A sample that failed through no fault of the
//! policy has no reward (`None`): it has no vote in the mean and gets no advantage.

/// Reward minus the mean over the group's valid samples, one entry a sample.
///
/// Invalid samples stay `None`. With fewer than two valid samples there is nothing to compare
/// with, and every entry is `None`.
pub fn group_advantages(rewards: &[Option<f64>]) -> Vec<Option<f64>> {
    let valid: Vec<f64> = rewards.iter().flatten().copied().collect();
    if valid.len() < 2 {
        return vec![None; rewards.len()];
    }
    // Equal rewards give exactly 0, whatever the rounding of their mean.
    if valid.iter().all(|&reward| reward == valid[0]) {
        return rewards.iter().map(|r| r.map(|_| 0.0)).collect();
    }
    let mean = valid.iter().sum::<f64>() / valid.len() as f64;
    rewards.iter().map(|r| r.map(|r| r - mean)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advantage_is_reward_minus_group_mean() {
        let advantages = group_advantages(&[Some(1.0), Some(0.0), Some(0.0), Some(1.0)]);
        assert_eq!(advantages, [Some(0.5), Some(-0.5), Some(-0.5), Some(0.5)]);
    }

    #[test]
    fn advantage_is_not_divided_by_the_standard_deviation() {
        let advantages = group_advantages(&[Some(0.75), Some(0.25)]);
        assert_eq!(advantages, [Some(0.25), Some(-0.25)]);
    }

    #[test]
    fn invalid_sample_has_no_vote_and_no_advantage() {
        let advantages = group_advantages(&[Some(1.0), None, Some(0.5)]);
        assert_eq!(advantages, [Some(0.25), None, Some(-0.25)]);
    }

    #[test]
    fn zero_variance_group_has_zero_advantage() {
        // 0.1 + 0.1 + 0.1 over 3 is not 0.1 in binary.
        assert_eq!(group_advantages(&[Some(0.1); 3]), [Some(0.0); 3]);
    }

    #[test]
    fn a_single_valid_sample_has_nothing_to_compare_with() {
        assert_eq!(group_advantages(&[None, Some(1.0)]), [None, None]);
        assert_eq!(group_advantages(&[]), Vec::<Option<f64>>::new());
    }
}
