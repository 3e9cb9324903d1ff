//! A pack as sequences of their own, for attention over all of them in one call.
//!
//! Every trunk and every branch is a sequence: its queries are its own tokens, in the order of the pack; its keys
//! are those of the trunk, if it is a branch, and then its own. A query sees the keys up to its own place, counted
//! from the end: causal order aligned at the lower right. T tokens, S sequences, K keys.

use kernels::tch::{Device, Tensor};

use crate::input::Document;

/// The sequences of a pack.
#[derive(Debug)]
pub(crate) struct Sequences {
    /// Row in the pack of each key, i64 `[K]`.
    pub(crate) key_rows: Tensor,
    /// Where each sequence's queries begin, and their end: i32 `[S + 1]`.
    pub(crate) query_starts: Tensor,
    /// The same of its keys.
    pub(crate) key_starts: Tensor,
    /// Queries and keys of the longest sequences.
    pub(crate) longest: [i64; 2],
    /// Document of each token, i64 `[T]`.
    pub(crate) documents: Tensor,
    /// Position of each token in its own sequence, i64 `[T]`.
    pub(crate) positions: Tensor,
}

impl Sequences {
    pub(crate) fn new(documents: &[Document], device: Device) -> Sequences {
        let (mut key_rows, mut document_of, mut positions) = (Vec::new(), Vec::new(), Vec::new());
        let (mut query_starts, mut key_starts) = (vec![0_i32], vec![0_i32]);
        let mut longest = [0; 2];
        for (index, document) in documents.iter().enumerate() {
            let trunk = document.start..document.start + document.trunk_len;
            let mut add = |shared: i64, own: std::ops::Range<i64>| {
                if own.is_empty() {
                    return;
                }
                let queries = own.end - own.start;
                key_rows.extend(document.start..document.start + shared);
                key_rows.extend(own);
                longest = [longest[0].max(queries), longest[1].max(shared + queries)];
                query_starts.push(query_starts[query_starts.len() - 1] + queries as i32);
                key_starts.push(key_rows.len() as i32);
            };
            add(0, trunk.clone());
            let mut start = trunk.end;
            for &len in &document.branch_lens {
                add(document.trunk_len, start..start + len);
                start += len;
            }
            document_of.extend(std::iter::repeat_n(
                index as i64,
                document.num_tokens() as usize,
            ));
            positions.extend(document.positions());
        }
        let on_device = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        Sequences {
            key_rows: on_device(&key_rows),
            query_starts: Tensor::from_slice(&query_starts).to_device(device),
            key_starts: Tensor::from_slice(&key_starts).to_device(device),
            longest,
            documents: on_device(&document_of),
            positions: on_device(&positions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows that each token attends to, by a plain reading of the sequences.
    fn seen(sequences: &Sequences) -> Vec<Vec<i64>> {
        let row = |tensor: &Tensor| {
            Vec::<i64>::try_from(tensor.to_kind(kernels::tch::Kind::Int64)).unwrap()
        };
        let (keys, queries) = (row(&sequences.key_rows), row(&sequences.query_starts));
        let key_starts = row(&sequences.key_starts);
        let mut seen = Vec::new();
        for s in 0..queries.len() - 1 {
            let own = &keys[key_starts[s] as usize..key_starts[s + 1] as usize];
            let count = (queries[s + 1] - queries[s]) as usize;
            seen.extend((0..count).map(|i| own[..own.len() - (count - 1 - i)].to_vec()));
        }
        seen
    }

    #[test]
    fn sequences_show_what_the_masks_of_documents_show() {
        let documents = [
            Document {
                start: 0,
                trunk_len: 3,
                branch_lens: vec![2, 0, 1],
            },
            Document {
                start: 6,
                trunk_len: 4,
                branch_lens: Vec::new(),
            },
            Document {
                start: 10,
                trunk_len: 0,
                branch_lens: vec![2, 2],
            },
        ];
        let sequences = Sequences::new(&documents, Device::Cpu);
        let mut expected = Vec::new();
        for document in &documents {
            let starts = document.branch_starts();
            for t in 0..document.num_tokens() {
                let is_visible = |&s: &i64| s < document.trunk_len || s >= starts[t as usize];
                let visible = (0..=t).filter(is_visible).map(|s| document.start + s);
                expected.push(visible.collect::<Vec<_>>());
            }
        }
        assert_eq!(seen(&sequences), expected);
        assert_eq!(sequences.longest, [4, 5]);
        let row = |tensor: &Tensor| Vec::<i64>::try_from(tensor).unwrap();
        assert_eq!(
            row(&sequences.documents),
            [[0; 6].as_slice(), &[1; 4], &[2; 4]].concat()
        );
        assert_eq!(row(&sequences.positions)[..6], [0, 1, 2, 3, 4, 3]);
    }
}
