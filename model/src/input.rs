//! Packed input: several documents in one row of tokens, no padding.
//!
//! A document is a trunk (the prompt) followed by zero or more branches (the completions of that
//! prompt). A branch token sees the trunk and the earlier tokens of its own branch, so a prompt
//! shared by a group is computed once, and every value equals that of the sequence on its own.

use kernels::tch::{Device, Tensor};

/// One prompt with its continuations, laid out `[trunk | branch 0 | branch 1 | ...]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Index of the first token in the pack.
    pub start: i64,
    /// Tokens every branch sees.
    pub trunk_len: i64,
    /// Lengths of the branches; empty for a plain sequence.
    pub branch_lens: Vec<i64>,
}

impl Document {
    /// Tokens in the document.
    pub fn num_tokens(&self) -> i64 {
        self.trunk_len + self.branch_lens.iter().sum::<i64>()
    }

    /// Position of each token in its own sequence, `[num_tokens]`.
    pub fn positions(&self) -> Vec<i64> {
        let mut positions: Vec<i64> = (0..self.trunk_len).collect();
        for &len in &self.branch_lens {
            positions.extend(self.trunk_len..self.trunk_len + len);
        }
        positions
    }

    /// Index, within the document, of the first token of each token's own branch (0 in the trunk).
    /// Token t sees s when `s <= t` and (`s < trunk_len` or `s >= branch_starts[t]`).
    pub fn branch_starts(&self) -> Vec<i64> {
        let mut starts = vec![0; self.trunk_len as usize];
        let mut next = self.trunk_len;
        for &len in &self.branch_lens {
            starts.extend(std::iter::repeat_n(next, len as usize));
            next += len;
        }
        starts
    }
}

/// A pack of documents.
#[derive(Debug)]
pub struct PackedInput {
    /// Token ids, `[T]` i64.
    pub tokens: Tensor,
    /// Documents in order; together they cover `0..T`.
    pub documents: Vec<Document>,
}

impl PackedInput {
    /// Packs plain sequences, one document each.
    pub fn from_sequences(sequences: &[&[u32]], device: Device) -> PackedInput {
        let mut tokens = Vec::new();
        let mut documents = Vec::new();
        for sequence in sequences {
            documents.push(Document {
                start: tokens.len() as i64,
                trunk_len: sequence.len() as i64,
                branch_lens: Vec::new(),
            });
            tokens.extend(sequence.iter().map(|&id| i64::from(id)));
        }
        PackedInput {
            tokens: kernels::upload(&tokens, device),
            documents,
        }
    }

    /// Number of tokens T.
    pub fn num_tokens(&self) -> i64 {
        self.tokens.size()[0]
    }

    /// Position of every token in its own sequence, `[T]` i64.
    pub fn positions(&self) -> Tensor {
        let positions: Vec<i64> = self
            .documents
            .iter()
            .flat_map(Document::positions)
            .collect();
        kernels::upload(&positions, self.tokens.device())
    }
}
