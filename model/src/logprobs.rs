//! The one log-prob function: sampler and trainer both call it.
//!
//! log pi(y | kept) = z_y - log sum_{v in kept} exp z_v,   z = logits / temperature.
//! `kept` is the support that top-k / top-p / min-p left at sampling time (report 3.1, Keep Sampling
//! Mask); with the whole vocabulary kept it is the plain log-softmax. N tokens, V vocabulary.

use kernels::fused;
use kernels::fused::logprobs::Kept;
use kernels::tch::{Device, Kind, Tensor};

use crate::transformer::Transformer;

/// Rows of logits alive at once in [`Transformer::token_logprobs`].
const CHUNK: i64 = 512;

/// Log-prob of each target under the tempered, restricted distribution.
///
/// # Shapes
/// `logits` `[N, V]` f32, `targets` `[N]` i64; `kept` has N rows. Result `[N]` f32.
///
/// # Panics
/// `kept` with another number of rows than `targets`.
pub fn token_logprobs(
    logits: &Tensor,
    targets: &Tensor,
    temperature: f64,
    kept: Option<&KeptTokens>,
) -> Tensor {
    let scaled = if temperature == 1.0 {
        logits.shallow_clone()
    } else {
        logits / temperature
    };
    let restricted = match kept.filter(|kept| !kept.ids.is_empty()) {
        Some(kept) => {
            assert_eq!(
                kept.num_rows() as i64,
                targets.size()[0],
                "kept tokens: one row a target"
            );
            scaled + kept.additive_mask(logits.size()[1], logits.device())
        }
        None => scaled,
    };
    let chosen = restricted
        .gather(1, &targets.unsqueeze(1), false)
        .squeeze_dim(1);
    chosen - restricted.logsumexp(&[1][..], false)
}

impl Transformer {
    /// Log-probs of `targets` `[N]`, each predicted by row `rows[i]` of `hidden` `[T, hidden_size]`;
    /// logits exist for a chunk of rows at a time. Result `[N]` f32.
    pub fn token_logprobs(
        &self,
        hidden: &Tensor,
        rows: &Tensor,
        targets: &Tensor,
        temperature: f64,
        kept: Option<&KeptTokens>,
    ) -> Tensor {
        let fused = self.head(|head| {
            let kept = kept.map(|kept| Kept {
                offsets: &kept.offsets,
                ids: &kept.ids,
            });
            fused::logprobs::token_logprobs(hidden, &head, rows, targets, temperature, kept)
        });
        if let Some(logprobs) = fused {
            return logprobs;
        }
        let count = targets.size()[0];
        let chunks: Vec<Tensor> = (0..count)
            .step_by(CHUNK as usize)
            .map(|start| {
                let len = CHUNK.min(count - start);
                let logits = self.logits(&hidden.index_select(0, &rows.narrow(0, start, len)));
                let kept = kept.map(|kept| kept.slice(start as usize, len as usize));
                token_logprobs(
                    &logits,
                    &targets.narrow(0, start, len),
                    temperature,
                    kept.as_ref(),
                )
            })
            .collect();
        Tensor::cat(&chunks, 0)
    }
}

/// The support that top-k / top-p / min-p left at each completion token, as CSR rows.
///
/// Row i is `ids[offsets[i]..offsets[i + 1]]`. An empty row means that the whole vocabulary was
/// kept. `offsets` has one more entry than there are rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptTokens {
    /// Row boundaries, `[rows + 1]`, starting with 0.
    pub offsets: Vec<u32>,
    /// Token ids, ascending within a row.
    pub ids: Vec<u32>,
}

impl Default for KeptTokens {
    fn default() -> Self {
        KeptTokens {
            offsets: vec![0],
            ids: Vec::new(),
        }
    }
}

impl KeptTokens {
    /// Appends a row; an empty slice stands for the whole vocabulary.
    pub fn push(&mut self, row: &[u32]) {
        self.ids.extend_from_slice(row);
        let end = u32::try_from(self.ids.len());
        self.offsets.push(
            end.expect("fewer than 2^32 kept tokens in one place: take fewer samples a step"),
        );
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The ids of row `i`; empty when everything was kept.
    pub fn row(&self, i: usize) -> &[u32] {
        &self.ids[self.offsets[i] as usize..self.offsets[i + 1] as usize]
    }

    /// Rows `start..start + len`.
    pub fn slice(&self, start: usize, len: usize) -> KeptTokens {
        let first = self.offsets[start];
        let last = self.offsets[start + len];
        KeptTokens {
            offsets: self.offsets[start..=start + len]
                .iter()
                .map(|offset| offset - first)
                .collect(),
            ids: self.ids[first as usize..last as usize].to_vec(),
        }
    }

    /// 0 where a token is kept and -inf elsewhere, `[rows, vocab]` f32.
    fn additive_mask(&self, vocab: i64, device: Device) -> Tensor {
        let mut kept = Vec::with_capacity(self.ids.len());
        let mut whole = Vec::new();
        for row in 0..self.num_rows() {
            let ids = self.row(row);
            if ids.is_empty() {
                whole.push(row as i64);
            }
            kept.extend(ids.iter().map(|&id| row as i64 * vocab + i64::from(id)));
        }
        let options = (Kind::Float, device);
        let mask = Tensor::full([self.num_rows() as i64 * vocab], f64::NEG_INFINITY, options);
        let mask = mask.index_fill(0, &Tensor::from_slice(&kept).to_device(device), 0.0);
        let whole = Tensor::from_slice(&whole).to_device(device);
        mask.view([self.num_rows() as i64, vocab])
            .index_fill(0, &whole, 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits() -> Tensor {
        Tensor::from_slice(&[1f32, 2.0, 3.0, 0.5, 0.5, 0.5]).view([2, 3])
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor).expect("one dimension")
    }

    #[test]
    fn whole_vocabulary_gives_the_plain_log_softmax() {
        let targets = Tensor::from_slice(&[2i64, 0]);
        let mut kept = KeptTokens::default();
        kept.push(&[]);
        kept.push(&[0, 1, 2]);
        for found in [
            token_logprobs(&logits(), &targets, 1.0, None),
            token_logprobs(&logits(), &targets, 1.0, Some(&kept)),
        ] {
            let found = values(&found);
            // log(e^3 / (e + e^2 + e^3)) = -0.407606, log(1/3) = -1.098612
            assert!(
                (found[0] + 0.407606).abs() < 1e-5 && (found[1] + 1.098612).abs() < 1e-5,
                "{found:?}"
            );
        }
    }

    #[test]
    fn kept_tokens_renormalise_to_one() {
        let mut kept = KeptTokens::default();
        kept.push(&[1, 2]);
        kept.push(&[0]);
        let found = values(&token_logprobs(
            &logits(),
            &Tensor::from_slice(&[1i64, 0]),
            0.5,
            Some(&kept),
        ));
        // Temperature 0.5 doubles the logits: log(e^4 / (e^4 + e^6)) = -2.126928; a lone token has log-prob 0.
        assert!(
            (found[0] + 2.126928).abs() < 1e-5 && found[1].abs() < 1e-6,
            "{found:?}"
        );
    }

    #[test]
    fn slices_of_rows_keep_their_ids() {
        let mut kept = KeptTokens::default();
        for row in [&[4u32, 7][..], &[], &[9]] {
            kept.push(row);
        }
        let slice = kept.slice(1, 2);
        assert_eq!((slice.row(0), slice.row(1)), (&[][..], &[9u32][..]));
    }
}
