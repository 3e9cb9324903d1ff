//! |trainer - sampler| log-probs, token by token: how large, where, and how it grows along a sequence.

/// Log-probs of the tokens of each sample, nats.
pub type Logprobs = Vec<Vec<f64>>;

/// How far the log-probs of the same tokens lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gap {
    /// Mean over tokens, nats.
    pub mean: f64,
    /// Largest, nats.
    pub max: f64,
    /// Where it is: sample and token.
    pub worst: (usize, usize),
}

impl Gap {
    /// Between the log-probs of two sides; `None` where there is no token. NaN counts as infinite.
    ///
    /// # Panics
    /// Sides of other lengths.
    pub fn between(trainer: &Logprobs, sampler: &Logprobs) -> Option<Gap> {
        assert_eq!(trainer.len(), sampler.len(), "the same samples");
        let mut found = Vec::new();
        for (sample, (trainer, sampler)) in trainer.iter().zip(sampler).enumerate() {
            assert_eq!(trainer.len(), sampler.len(), "the same tokens");
            let tokens = trainer.iter().zip(sampler).enumerate();
            found.extend(tokens.map(|(token, (a, b))| (distance(*a, *b), (sample, token))));
        }
        let mut largest = *found.first()?;
        for &next in &found {
            if next.0 > largest.0 {
                largest = next;
            }
        }
        Some(Gap {
            mean: found.iter().map(|(gap, _)| gap).sum::<f64>() / found.len() as f64,
            max: largest.0,
            worst: largest.1,
        })
    }

    /// Between the sampler's token t and the trainer's token t + `by`.
    pub fn shifted(trainer: &Logprobs, sampler: &Logprobs, by: isize) -> Option<Gap> {
        let later = by.max(0) as usize;
        let earlier = by.min(0).unsigned_abs();
        // The first `later` tokens of the trainer have no partner, nor have the first `earlier` of the sampler.
        let pairs = trainer.iter().zip(sampler).map(|(trainer, sampler)| {
            let pairs = trainer.iter().skip(later).zip(sampler.iter().skip(earlier));
            pairs.map(|(a, b)| (*a, *b)).unzip()
        });
        let (trainer, sampler): (Logprobs, Logprobs) = pairs.unzip();
        Gap::between(&trainer, &sampler)
    }
}

/// How the gap goes along the samples, nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    /// Mean over first tokens, which the prompt's own pass predicts.
    pub first: f64,
    /// Mean over the others, which come from the cache; 0 where there are none.
    pub decoded: f64,
    /// Mean over the first half of the others, by their place in the sample.
    pub early: f64,
    /// The same over the second half.
    pub late: f64,
}

impl Profile {
    /// Of the log-probs of two sides.
    pub fn of(trainer: &Logprobs, sampler: &Logprobs) -> Profile {
        let mut decoded: Vec<(usize, f64)> = Vec::new();
        let mut first = Vec::new();
        for (trainer, sampler) in trainer.iter().zip(sampler) {
            for (token, (a, b)) in trainer.iter().zip(sampler).enumerate() {
                match token {
                    0 => first.push(distance(*a, *b)),
                    _ => decoded.push((token, distance(*a, *b))),
                }
            }
        }
        decoded.sort_by_key(|(token, _)| *token);
        let gaps: Vec<f64> = decoded.into_iter().map(|(_, gap)| gap).collect();
        let (early, late) = gaps.split_at(gaps.len() / 2);
        Profile {
            first: mean(&first),
            decoded: mean(&gaps),
            early: mean(early),
            late: mean(late),
        }
    }
}

fn distance(a: f64, b: f64) -> f64 {
    let distance = (a - b).abs();
    if distance.is_nan() {
        f64::INFINITY
    } else {
        distance
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_largest_and_its_place_are_over_all_tokens() {
        let trainer = vec![vec![-1.0, -2.0], vec![], vec![-3.0]];
        let sampler = vec![vec![-1.5, -2.0], vec![], vec![-2.0]];
        let gap = Gap::between(&trainer, &sampler).unwrap();
        assert_eq!((gap.mean, gap.max, gap.worst), (0.5, 1.0, (2, 0)));
        assert_eq!(Gap::between(&vec![vec![]], &vec![vec![]]), None);
    }

    #[test]
    fn what_is_no_number_is_the_largest_gap() {
        let gap = Gap::between(&vec![vec![f64::NAN, -9.0]], &vec![vec![-1.0, -1.0]]).unwrap();
        assert_eq!((gap.max, gap.worst), (f64::INFINITY, (0, 0)));
    }

    #[test]
    fn log_probs_moved_by_a_token_have_no_gap_when_moved_back() {
        let trainer = vec![vec![-1.0, -2.0, -4.0], vec![-3.0]];
        // The sampler reports those of the token after.
        let sampler = vec![vec![-2.0, -4.0, -7.0], vec![-9.0]];
        assert_eq!(Gap::shifted(&trainer, &sampler, 1).unwrap().max, 0.0);
        assert_eq!(Gap::shifted(&sampler, &trainer, -1).unwrap().max, 0.0);
        assert_eq!(Gap::shifted(&trainer, &sampler, -1).unwrap().max, 5.0);
        assert_eq!(Gap::shifted(&vec![vec![-1.0]], &vec![vec![-1.0]], 1), None);
    }

    #[test]
    fn the_profile_parts_first_tokens_from_decoded_ones_and_early_from_late() {
        let trainer = vec![vec![0.0, 1.0, 2.0, 3.0], vec![0.5, 1.0]];
        let sampler = vec![vec![0.0; 4], vec![0.0; 2]];
        let profile = Profile::of(&trainer, &sampler);
        assert_eq!(profile.first, 0.25);
        // Of tokens 1, 1, 2 and 3.
        assert_eq!((profile.early, profile.late), (1.0, 2.5));
        assert_eq!(profile.decoded, 1.75);
    }
}
