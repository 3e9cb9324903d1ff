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
