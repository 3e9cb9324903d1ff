//! SHA-256 (FIPS 180-4), for digests that Python's `hashlib` makes as well.
//!
//! The constants are the first 32 bits of the fractional parts of square roots (the state) and of cube roots (the rounds) of
//! the first primes; they are worked out here in integers.

use std::sync::OnceLock;

struct Constants {
    state: [u32; 8],
    rounds: [u32; 64],
}

/// floor(root * 2^32) mod 2^32 for the `degree`-th root of `n`.
fn fraction_of_root(n: u128, degree: u32) -> u32 {
    // The largest r with r^degree <= n * 2^(32 degree): below 2^36, since n < 400.
    let bound = n << (32 * degree);
    let (mut low, mut high) = (0u128, 1u128 << 37);
    while high - low > 1 {
        let middle = (low + high) / 2;
        match middle.pow(degree) <= bound {
            true => low = middle,
            false => high = middle,
        }
    }
    low as u32
}

fn constants() -> &'static Constants {
    static MADE: OnceLock<Constants> = OnceLock::new();
    MADE.get_or_init(|| {
        let is_prime = |n: &u128| (2..*n).all(|d| !n.is_multiple_of(d));
        let primes: Vec<u128> = (2..400).filter(is_prime).take(64).collect();
        Constants {
            state: std::array::from_fn(|at| fraction_of_root(primes[at], 2)),
            rounds: std::array::from_fn(|at| fraction_of_root(primes[at], 3)),
        }
    })
}

/// One block of 64 bytes.
fn compress(state: &mut [u32; 8], block: &[u8], rounds: &[u32; 64]) {
    let mut words = [0u32; 64];
    for (word, bytes) in words.iter_mut().zip(block.as_chunks::<4>().0) {
        *word = u32::from_be_bytes(*bytes);
    }
    for at in 16..64 {
        let (w15, w2) = (words[at - 15], words[at - 2]);
        let s0 = w15.rotate_right(7) ^ w15.rotate_right(18) ^ (w15 >> 3);
        let s1 = w2.rotate_right(17) ^ w2.rotate_right(19) ^ (w2 >> 10);
        words[at] = words[at - 16]
            .wrapping_add(s0)
            .wrapping_add(words[at - 7])
            .wrapping_add(s1);
    }
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for (word, constant) in words.iter().zip(rounds) {
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let chosen = (e & f) ^ (!e & g);
        let first = h
            .wrapping_add(s1)
            .wrapping_add(chosen)
            .wrapping_add(*constant)
            .wrapping_add(*word);
        let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let majority = (a & b) ^ (a & c) ^ (b & c);
        let second = s0.wrapping_add(majority);
        (h, g, f, e) = (g, f, e, d.wrapping_add(first));
        (d, c, b, a) = (c, b, a, first.wrapping_add(second));
    }
    for (old, new) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *old = old.wrapping_add(new);
    }
}

/// The digest of `message` in lower-case hexadecimal digits.
pub(super) fn hex_digest(message: &[u8]) -> String {
    let constants = constants();
    let mut padded = message.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend((message.len() as u64 * 8).to_be_bytes());
    let mut state = constants.state;
    for block in padded.chunks_exact(64) {
        compress(&mut state, block, &constants.rounds);
    }
    state.iter().map(|word| format!("{word:08x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_standard() {
        // The examples of FIPS 180-4's companion, and the empty message.
        for (message, digest) in [
            (
                "",
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ),
            (
                "abc",
                "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            ),
            (
                "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
            ),
        ] {
            assert_eq!(hex_digest(message.as_bytes()), digest, "{message}");
        }
        assert_eq!(
            hex_digest(&b"a".repeat(1_000_000)),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
        );
    }
}
