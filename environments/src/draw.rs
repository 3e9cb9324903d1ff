//! Random draws that are the same bytes on every machine.
//!
//! stream = ChaCha8(blake3(purpose, family, level, split, seed, attempt)), every number little-endian.
//! Bounded draws reject instead of taking a bare remainder, so they are exactly uniform.

use std::ops::RangeInclusive;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::task::{FamilyKey, Split};

/// What a stream is for; streams of different purposes are independent.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// Making the instance.
    Instance,
    /// Making a baseline's answer.
    Baseline,
}

/// A stream of random numbers.
#[derive(Debug)]
pub(crate) struct Draw {
    stream: ChaCha8Rng,
}

impl Draw {
    /// The stream of `key` for one purpose and one attempt.
    pub(crate) fn new(purpose: Purpose, key: &FamilyKey, attempt: u32) -> Draw {
        let context = match purpose {
            Purpose::Instance => "baleen environments 1: instance",
            Purpose::Baseline => "baleen environments 1: baseline",
        };
        let split = match key.split {
            Split::Train => 0u8,
            Split::HeldOut => 1u8,
        };
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(key.family.name().as_bytes());
        hasher.update(&[0, split]);
        hasher.update(&key.level.to_le_bytes());
        hasher.update(&key.seed.to_le_bytes());
        hasher.update(&attempt.to_le_bytes());
        Draw {
            stream: ChaCha8Rng::from_seed(*hasher.finalize().as_bytes()),
        }
    }

    /// The stream of a number, for content that is made again wherever it is needed.
    pub(crate) fn of_content(number: u64) -> Draw {
        let mut hasher = blake3::Hasher::new_derive_key("baleen environments 1: content");
        hasher.update(&number.to_le_bytes());
        Draw {
            stream: ChaCha8Rng::from_seed(*hasher.finalize().as_bytes()),
        }
    }

    /// Uniform in `0..bound`.
    ///
    /// # Panics
    /// When `bound` is 0.
    fn below(&mut self, bound: u64) -> u64 {
        // The largest multiple of `bound` that fits: values from there on would favour small remainders.
        let limit = u64::MAX - u64::MAX % bound;
        loop {
            let value = self.stream.next_u64();
            if value < limit {
                return value % bound;
            }
        }
    }

    /// Uniform in `range`, both ends included.
    pub(crate) fn between(&mut self, range: RangeInclusive<i64>) -> i64 {
        let width = range.end().abs_diff(*range.start()) + 1;
        let offset = i64::try_from(self.below(width)).expect("level ranges are far below 2^63");
        range.start() + offset
    }

    /// True half the time.
    pub(crate) fn coin(&mut self) -> bool {
        self.below(2) == 1
    }

    /// A uniform index of a sequence of `len` items.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// One of `choices`, uniform.
    pub(crate) fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.index(choices.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Family;

    fn draw(seed: u64, attempt: u32) -> Draw {
        let key = FamilyKey {
            family: Family::Sums,
            split: Split::Train,
            level: 1,
            seed,
        };
        Draw::new(Purpose::Instance, &key, attempt)
    }

    #[test]
    fn both_ends_of_a_range_are_drawn() {
        let mut draw = draw(0, 0);
        let mut counts = [0usize; 6];
        for _ in 0..6000 {
            counts[draw.between(0..=5) as usize] += 1;
        }
        // 1000 expected, standard deviation 29.
        assert!(
            counts.iter().all(|&count| (850..1150).contains(&count)),
            "{counts:?}"
        );
    }

    #[test]
    fn seeds_and_attempts_have_streams_of_their_own() {
        let first: Vec<u64> = (0..4).map(|_| draw(0, 0).below(1 << 60)).collect();
        assert!(first.iter().all(|&value| value == first[0]));
        assert_ne!(draw(0, 0).below(1 << 60), draw(1, 0).below(1 << 60));
        assert_ne!(draw(0, 0).below(1 << 60), draw(0, 1).below(1 << 60));
    }
}
