//! Uniform random numbers by name instead of by order.
//!
//! The draw for one token is a pure function of (run seed, prompt id, sample index, position in the
//! completion): the four u64, little-endian, are the 256-bit key of ChaCha8, and the first 64-bit
//! word w gives u = (w >> 11) 2^-53. So a token never depends on which sequences shared its batch,
//! and a resumed run draws what the uninterrupted one would have drawn.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// The uniform number in [0, 1) that picks token `position` of sample `sample_index` of a prompt.
pub fn uniform(seed: u64, prompt_id: u64, sample_index: u64, position: u64) -> f64 {
    let mut key = [0u8; 32];
    for (bytes, word) in key
        .chunks_exact_mut(8)
        .zip([seed, prompt_id, sample_index, position])
    {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let word = ChaCha8Rng::from_seed(key).next_u64();
    // The top 53 bits fill a double exactly, so the result can't round up to 1.
    (word >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_equal_those_of_chacha8_written_after_the_paper() {
        // From a separate ChaCha (Bernstein 2008; 8 rounds, zero nonce and counter), whose 20-round
        // stream for the zero key begins 76b8e0ada0f13d90 and whose 8-round one 3e00ef2f895f40d6.
        assert_eq!(uniform(0, 0, 0, 0), 0.8369197568826472);
        assert_eq!(uniform(7, 11, 3, 0), 0.6571598079433134);
        assert_eq!(uniform(7, 11, 3, 1), 0.13069151234196985);
        assert_eq!(uniform(u64::MAX, 1, 2, 3), 0.3238743592391353);
    }

    #[test]
    fn every_part_of_the_key_matters() {
        let base = uniform(1, 2, 3, 4);
        for other in [
            uniform(2, 2, 3, 4),
            uniform(1, 3, 3, 4),
            uniform(1, 2, 4, 4),
            uniform(1, 2, 3, 5),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn draws_fill_ten_bins_evenly() {
        let mut bins = [0f64; 10];
        for position in 0..10_000 {
            bins[(uniform(5, 6, 7, position) * 10.0) as usize] += 1.0;
        }
        let chi_square: f64 = bins.iter().map(|n| (n - 1000.0).powi(2) / 1000.0).sum();
        // 9 degrees of freedom: 27.9 is exceeded once in a thousand.
        assert!(chi_square < 27.9, "{bins:?}");
    }
}
