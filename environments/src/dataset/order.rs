//! The order of a pass over a dataset: a keyed permutation that needs no memory.
//!
//! A Feistel network permutes the numbers of 2h bits, the fewest that hold `len`: a round takes (l, r) to
//! (r, l xor f(r)). A result that is no place of the dataset is permuted again until it is one
//! (cycle walking), which takes fewer than four turns on average and permutes the places among themselves.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// More rounds than the four that make a Feistel network look random, since halves are small here.
const ROUNDS: usize = 8;

/// The order that `key` gives to `len` places: the place of item `index`, which lies below `len`.
pub(crate) fn place(key: [u8; 32], index: u64, len: u64) -> u64 {
    assert!(index < len, "item {index} of {len}");
    let mut rng = ChaCha8Rng::from_seed(key);
    let round_keys: [u64; ROUNDS] = std::array::from_fn(|_| rng.next_u64());
    let num_bits = u64::BITS - (len - 1).leading_zeros();
    let half = num_bits.div_ceil(2).max(1);
    let mask = u64::MAX >> (u64::BITS - half);
    let mut value = index;
    loop {
        let (mut left, mut right) = (value >> half, value & mask);
        for round_key in round_keys {
            (left, right) = (right, left ^ (mixed(right ^ round_key) & mask));
        }
        value = left << half | right;
        if value < len {
            return value;
        }
    }
}

/// The finaliser of splitmix64: every bit of the result depends on every bit of `bits`.
fn mixed(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn order(key: u8, len: u64) -> Vec<u64> {
        (0..len).map(|index| place([key; 32], index, len)).collect()
    }

    #[test]
    fn every_place_comes_exactly_once() {
        for len in [1, 2, 3, 4, 5, 7, 16, 17, 64, 65, 1000, 4097] {
            let order = order(1, len);
            assert!(order.iter().all(|&place| place < len), "{len}");
            let places: HashSet<u64> = order.into_iter().collect();
            assert_eq!(places.len() as u64, len);
        }
    }

    #[test]
    fn large_sets_and_the_largest_are_permuted_too() {
        for len in [1 << 40, u64::MAX] {
            let places: HashSet<u64> = (0..1000).map(|i| place([3; 32], i, len)).collect();
            assert_eq!(places.len(), 1000);
            assert!(places.iter().any(|&place| place > len / 2), "{len}");
            assert!(place([3; 32], len - 1, len) < len);
        }
    }

    #[test]
    fn another_key_gives_another_order() {
        let orders: HashSet<Vec<u64>> = (0..50).map(|key| order(key, 20)).collect();
        assert_eq!(orders.len(), 50);
    }

    #[test]
    fn an_item_comes_to_every_place_equally_often() {
        let mut counts = [0u32; 10];
        for key in 0..4000u32 {
            let key = *blake3::hash(&key.to_le_bytes()).as_bytes();
            counts[place(key, 3, 10) as usize] += 1;
        }
        // 400 expected, standard deviation 19.
        assert!(
            counts.iter().all(|count| (310..490).contains(count)),
            "{counts:?}"
        );
    }
}
