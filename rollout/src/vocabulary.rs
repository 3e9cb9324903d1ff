//! Which columns of the logits are tokens.
//!
//! A model may have more rows of embedding and output head than its tokenizer has ids (DeepSeek-V3.2:
//! 129,280 and 128,815), and a tokenizer may leave ids between others unused. Such ids decode to nothing:
//! they are never sampled. Legend: B rows, V columns of the logits, A ids that may be sampled.

use model::Tokenizer;
use tch::Tensor;

/// The ids that may be sampled: those below a length, but for some unused ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    len: i64,
    /// Below `len`, ascending.
    unused: Vec<i64>,
    /// The ids that may be sampled, ascending; empty where they are all below `len`.
    ids: Vec<i64>,
}

impl Vocabulary {
    /// Every id below `len`.
    pub fn all(len: usize) -> Vocabulary {
        Vocabulary::new(len, &[])
    }

    /// The tokens of `tokenizer` that have one of the `num_rows` rows of an output head.
    pub fn of(tokenizer: &Tokenizer, num_rows: usize) -> Vocabulary {
        let len = tokenizer.vocab_size().min(num_rows);
        Vocabulary::new(len, tokenizer.unused_ids())
    }

    fn new(len: usize, unused: &[u32]) -> Vocabulary {
        let len = len as i64;
        let unused = unused.iter().map(|&id| i64::from(id));
        let unused: Vec<i64> = unused.filter(|&id| id < len).collect();
        let ids = match unused.is_empty() {
            true => Vec::new(),
            false => (0..len)
                .filter(|id| unused.binary_search(id).is_err())
                .collect(),
        };
        Vocabulary { len, unused, ids }
    }

    /// The columns that may be sampled.
    ///
    /// # Shapes
    /// `logits` `[B, V]`; result `[B, A]`, by ascending id.
    pub(crate) fn sampled(&self, logits: &Tensor) -> Tensor {
        match self.ids.is_empty() {
            true => logits.narrow(1, 0, self.len.min(logits.size()[1])),
            false => columns(logits, &self.ids),
        }
    }

    /// The columns that may not.
    ///
    /// # Shapes
    /// `logits` `[B, V]`; result `[B, V - A]`.
    pub(crate) fn surplus(&self, logits: &Tensor) -> Tensor {
        let num_columns = logits.size()[1];
        let len = self.len.min(num_columns);
        let beyond = logits.narrow(1, len, num_columns - len);
        match self.unused.is_empty() {
            true => beyond,
            false => Tensor::cat(&[columns(logits, &self.unused), beyond], 1),
        }
    }

    /// Whether each of `num_columns` columns of the logits may be sampled; `None` where all may.
    pub(crate) fn flags(&self, num_columns: usize) -> Option<Vec<bool>> {
        if self.unused.is_empty() && self.len >= num_columns as i64 {
            return None;
        }
        let is_token = |id| id < self.len && self.unused.binary_search(&id).is_err();
        Some((0..num_columns as i64).map(is_token).collect())
    }

    /// Id of column `place` of [`Vocabulary::sampled`].
    pub(crate) fn id(&self, place: i64) -> u32 {
        let id = match self.ids.is_empty() {
            true => place,
            false => self.ids[place as usize],
        };
        id as u32
    }
}

fn columns(logits: &Tensor, ids: &[i64]) -> Tensor {
    logits.index_select(1, &Tensor::from_slice(ids).to_device(logits.device()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SamplingConfig;
    use crate::sampler::sample_batch;

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.flatten(0, -1)).unwrap()
    }

    #[test]
    fn columns_are_those_of_tokens() {
        let logits = Tensor::from_slice(&[0f32, 1.0, 2.0, 3.0, 4.0, 5.0]).view([1, 6]);
        let holes = Vocabulary::new(5, &[1, 3, 7]);
        assert_eq!(values(&holes.sampled(&logits)), [0.0, 2.0, 4.0]);
        assert_eq!(values(&holes.surplus(&logits)), [1.0, 3.0, 5.0]);
        assert_eq!([0, 1, 2].map(|place| holes.id(place)), [0, 2, 4]);
        let flags = [true, false, true, false, true, false];
        assert_eq!(holes.flags(6), Some(flags.to_vec()));
        assert_eq!(Vocabulary::all(6).flags(6), None);
        let all = Vocabulary::all(4);
        assert_eq!(values(&all.sampled(&logits)), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(values(&all.surplus(&logits)), [4.0, 5.0]);
        assert_eq!(all.id(3), 3);
        assert_eq!(values(&Vocabulary::all(9).surplus(&logits)), [0f32; 0]);
    }

    #[test]
    fn unused_ids_are_never_sampled_but_weigh_in_the_whole_rows_logprob() {
        // softmax of the whole row: 1/8, 1/2, 1/8, 1/4, as training sees it. Ids 1 and 3 are no tokens.
        let logits = Tensor::from_slice(&[1f32, 4.0, 1.0, 2.0].map(f32::ln)).view([1, 4]);
        let vocabulary = Vocabulary::new(3, &[1]);
        for (top_k, logprob, entropy) in [(0, 0.125f32, 2f32), (3, 0.5, 2.0), (1, 1.0, 2.0)] {
            let config = SamplingConfig {
                top_k,
                ..SamplingConfig::default()
            };
            let at = |draw| sample_batch(&logits, &config, &[draw], &vocabulary).remove(0);
            assert_eq!(at(0.49).id, 0);
            assert_eq!(at(0.51).id, if top_k == 1 { 0 } else { 2 });
            let token = at(0.0);
            assert!((token.logprob - logprob.ln()).abs() < 1e-6, "{token:?}");
            assert!((token.entropy - entropy.ln()).abs() < 1e-6, "{token:?}");
            let kept: &[u32] = [&[][..], &[0], &[0, 2]][match top_k {
                0 => 0,
                1 => 1,
                _ => 2,
            }];
            assert_eq!(token.kept, kept);
        }
        let greedy = SamplingConfig {
            temperature: 0.0,
            ..SamplingConfig::default()
        };
        let later = Tensor::from_slice(&[0f32, 4.0, 1.0, 2.0]).view([1, 4]);
        assert_eq!(sample_batch(&later, &greedy, &[0.0], &vocabulary)[0].id, 2);
    }

    #[test]
    fn a_tokenizers_unused_ids_are_left_out() {
        // Tokens 0, 1 and, after a hole, 4; the output head has rows 0 to 7.
        let folder = tempfile::tempdir().unwrap();
        let file = r#"{"version": "1.0", "added_tokens": [],
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 4}, "merges": []}}"#;
        std::fs::write(folder.path().join("tokenizer.json"), file).unwrap();
        let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
        assert_eq!(Vocabulary::of(&tokenizer, 8), Vocabulary::new(5, &[2, 3]));
        assert_eq!(Vocabulary::of(&tokenizer, 3), Vocabulary::new(3, &[2]));
    }
}
