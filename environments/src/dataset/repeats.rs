//! Texts that come more than once among very many, in 8 bytes a text.
//!
//! A first pass hands every text to [`Hashes`]. Where two have the same 64 bits, a second pass over the
//! suspects alone ([`Suspects`]) compares 256 bits, which no two different texts share.

use std::collections::HashMap;

/// 64 bits of every text so far.
#[derive(Debug, Default)]
pub(crate) struct Hashes(Vec<u64>);

impl Hashes {
    pub(crate) fn add(&mut self, text: &str) {
        self.0.push(short_hash(text));
    }

    /// Those that came twice.
    pub(crate) fn repeated(mut self) -> Suspects {
        self.0.sort_unstable();
        let pairs = self.0.windows(2).filter(|pair| pair[0] == pair[1]);
        Suspects::of(pairs.map(|pair| pair[0]).collect())
    }

    /// Those that came here and in `other`.
    pub(crate) fn shared(mut self, mut other: Hashes) -> Suspects {
        self.0.sort_unstable();
        other.0.sort_unstable();
        let (few, many) = match self.0.len() < other.0.len() {
            true => (self.0, other.0),
            false => (other.0, self.0),
        };
        let mut shared = few;
        shared.retain(|hash| many.binary_search(hash).is_ok());
        Suspects::of(shared)
    }
}

/// Texts that may come more than once.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    /// Ascending.
    hashes: Vec<u64>,
    first: HashMap<[u8; 32], u64>,
}

impl Suspects {
    fn of(mut hashes: Vec<u64>) -> Suspects {
        hashes.dedup();
        Suspects {
            hashes,
            first: HashMap::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Notes that `text` is that of `row`, unless an earlier row has it already; that row then.
    pub(crate) fn note(&mut self, text: &str, row: u64) -> Option<u64> {
        let digest = self.digest(text)?;
        let first = *self.first.entry(digest).or_insert(row);
        (first != row).then_some(first)
    }

    /// The row that was noted with `text`.
    pub(crate) fn noted(&self, text: &str) -> Option<u64> {
        self.first.get(&self.digest(text)?).copied()
    }

    fn digest(&self, text: &str) -> Option<[u8; 32]> {
        let is_suspect = self.hashes.binary_search(&short_hash(text)).is_ok();
        is_suspect.then(|| *blake3::hash(text.as_bytes()).as_bytes())
    }
}

fn short_hash(text: &str) -> u64 {
    let digest = blake3::hash(text.as_bytes());
    let (first, _) = digest
        .as_bytes()
        .split_first_chunk()
        .expect("a digest has 32 bytes");
    u64::from_le_bytes(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes<'a>(texts: impl IntoIterator<Item = &'a str>) -> Hashes {
        let mut hashes = Hashes::default();
        texts.into_iter().for_each(|text| hashes.add(text));
        hashes
    }

    #[test]
    fn a_text_that_comes_again_leads_to_its_first_row() {
        let texts = ["a", "b", "c", "a", "b", "a"];
        let mut suspects = hashes(texts).repeated();
        let rows = texts.iter().zip(0..);
        let earlier: Vec<Option<u64>> = rows.map(|(text, row)| suspects.note(text, row)).collect();
        assert_eq!(earlier, [None, None, None, Some(0), Some(1), Some(0)]);
        assert!(hashes(["a", "b", "", " "]).repeated().is_empty());
    }

    #[test]
    fn texts_of_two_sets_are_found_from_either_side() {
        for (one, other) in [
            (vec!["a", "b", "c"], vec!["c"]),
            (vec!["c"], vec!["a", "b", "c"]),
        ] {
            let mut suspects = hashes(one).shared(hashes(other));
            assert_eq!(suspects.note("c", 7), None);
            assert_eq!((suspects.noted("c"), suspects.noted("a")), (Some(7), None));
        }
        assert!(hashes(["a"]).shared(hashes(["b"])).is_empty());
    }
}
