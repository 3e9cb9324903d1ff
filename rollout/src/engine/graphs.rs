//! Whether decode steps run as CUDA graphs.

use model::{GraphDecoder, GraphSampling, LentDecoder, Transformer, Truncation};

use crate::generation::GenerationSettings;

/// A decoder for `num_slots` sequences where the model, the settings and the machine allow it. It draws the tokens
/// too, unless they are greedy.
pub(super) fn decoder<'a>(
    model: &'a Transformer,
    settings: &GenerationSettings,
    num_slots: usize,
) -> Option<LentDecoder<'a>> {
    if !GraphDecoder::supports(model, settings.attention) {
        return None;
    }
    let config = &settings.sampling;
    let sampling = (config.temperature > 0.0).then(|| GraphSampling {
        temperature: config.temperature,
        allowed: settings.vocabulary.flags(model.config().vocab_size),
        truncation: config.truncates().then_some(Truncation {
            top_k: config.top_k,
            top_p: config.top_p,
            min_p: config.min_p,
        }),
    });
    match model.decoder(num_slots, sampling) {
        Ok(decoder) => Some(decoder),
        Err(error) => {
            tracing::warn!("decoding goes on without CUDA graphs, several times slower: {error}");
            None
        }
    }
}
