//! Whether a share that was seen can be chance.

/// A limit counts as broken where a chance as small as this is left that it holds: of all the families together no
/// more than one examination in a thousand may fail by bad luck with its seeds.
const SMALL: f64 = 1e-6;

/// Whether rewards between 0 and 1 whose sum is `sum` may come from `num` tasks that pay `limit` on average. Of all
/// such rewards those of 0 and 1 scatter most, so that others are judged mildly.
pub(super) fn may_be(sum: f64, num: usize, limit: f64) -> bool {
    at_least(sum.floor() as usize, num, limit) > SMALL
}

/// P(X >= k) for X binomial of `n` tries, each a success with probability `p` in (0, 1).
fn at_least(k: usize, n: usize, p: f64) -> f64 {
    let mut ln_choose = 0.0;
    let mut sum = 0.0;
    for i in 0..=n {
        if i > 0 {
            ln_choose += ((n + 1 - i) as f64).ln() - (i as f64).ln();
        }
        if i >= k {
            sum += (ln_choose + i as f64 * p.ln() + (n - i) as f64 * (1.0 - p).ln()).exp();
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_of_small_binomials_are_counted_by_hand() {
        let is = |found: f64, expected: f64| {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        };
        // Three coins: 1 + 3 of 8 outcomes have two heads or more.
        is(at_least(2, 3, 0.5), 0.5);
        is(at_least(0, 5, 0.3), 1.0);
        is(at_least(2, 2, 0.1), 0.01);
        // 1 - 0.9^2
        is(at_least(1, 2, 0.1), 0.19);
    }

    #[test]
    fn a_few_rewards_prove_nothing_and_many_do() {
        assert!(may_be(3.0, 10, 0.1));
        assert!(may_be(100.0, 1000, 0.1));
        assert!(may_be(130.0, 1000, 0.1));
        assert!(!may_be(160.0, 1000, 0.1));
        assert!(!may_be(10.0, 10, 0.1));
        assert!(may_be(0.9, 1, 1e-3), "no whole reward");
    }
}
