//! Chains of SHA-256, and the smallest number whose digest begins with zeros. A step: a digest.

use serde::{Deserialize, Serialize};

use super::Solved;
use super::sha256::hex_digest;
use crate::draw::Draw;

/// No number beyond is tried.
const MAX_TRIED: u64 = 20_000;
const SYLLABLES: [&str; 16] = [
    "ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "wu", "za",
];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Digest {
    /// The text becomes the digest of itself, a colon and the number of the round.
    Chain { word: String, num_rounds: u64 },
    /// The smallest number for which word, colon, number has a digest that begins with so many zeros.
    Search { word: String, num_zeros: usize },
}

impl Digest {
    pub(super) fn draw(level: u32, draw: &mut Draw) -> Digest {
        let syllables: Vec<&str> = (0..4).map(|_| draw.choose(&SYLLABLES)).collect();
        let word = format!("{}{}", syllables.concat(), draw.between(10..=99));
        let chain = |word, num_rounds: i64| Digest::Chain {
            word,
            num_rounds: num_rounds as u64,
        };
        match level {
            1 => chain(word, draw.between(1..=2)),
            2 => chain(word, draw.between(8..=19)),
            3 => chain(word, draw.between(80..=190)),
            4 => chain(word, draw.between(600..=1200)),
            _ => Digest::Search { word, num_zeros: 3 },
        }
    }

    pub(super) fn asked(&self) -> String {
        match self {
            Digest::Chain { word, num_rounds } => format!(
                "Let s be the text {word}. In round i, for i from 1 to {num_rounds}, s is replaced by the SHA-256 digest, in 64 lower-case hexadecimal digits, of the text made of s, a colon and i in decimal (in ASCII, without spaces). Read the first 8 digits of the last s as a hexadecimal number: which number is it in decimal?"
            ),
            Digest::Search { word, num_zeros } => format!(
                "Let s(k) be the SHA-256 digest, in 64 lower-case hexadecimal digits, of the text made of {word}, a colon and k in decimal (in ASCII, without spaces). What is the smallest k >= 0 for which s(k) begins with {num_zeros} zeros?"
            ),
        }
    }

    pub(super) fn solve(&self) -> Option<Solved> {
        match self {
            Digest::Chain { word, num_rounds } => {
                let last = (1..=*num_rounds).fold(word.clone(), |text, round| {
                    hex_digest(format!("{text}:{round}").as_bytes())
                });
                Some(Solved {
                    answer: i64::from_str_radix(&last[..8], 16).ok()?,
                    work: *num_rounds,
                })
            }
            Digest::Search { word, num_zeros } => {
                let zeros = "0".repeat(*num_zeros);
                let found = (0..MAX_TRIED)
                    .find(|k| hex_digest(format!("{word}:{k}").as_bytes()).starts_with(&zeros))?;
                Some(Solved {
                    answer: found as i64,
                    work: found + 1,
                })
            }
        }
    }

    pub(super) fn cells(&self) -> [String; 2] {
        let define = "import hashlib\n\ndef digest(text):\n    return hashlib.sha256(text.encode()).hexdigest()";
        let ask = match self {
            Digest::Chain { word, num_rounds } => format!(
                "s = '{word}'\nfor i in range(1, {num_rounds} + 1):\n    s = digest(f'{{s}}:{{i}}')\nint(s[:8], 16)"
            ),
            Digest::Search { word, num_zeros } => format!(
                "k = 0\nwhile not digest(f'{word}:{{k}}').startswith('0' * {num_zeros}):\n    k += 1\nk"
            ),
        };
        [define.to_string(), ask]
    }

    pub(super) fn largest(&self) -> i64 {
        match self {
            Digest::Chain { .. } => i64::from(u32::MAX),
            Digest::Search { num_zeros, .. } => 1 << (4 * num_zeros + 1),
        }
    }
}
