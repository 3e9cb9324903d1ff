//! The decoder: embedding, layers, final norm, output head.

use kernels::tch::{Device, Kind, Tensor};

use crate::config::ModelConfig;
use crate::input::PackedInput;
use crate::kv_cache::KvCache;
use crate::parameter::Parameter;
use crate::router::Routing;
use crate::weights::{WeightError, WeightSource};

/// Which attention the main model uses where an indexer is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Every visible key (and always where no indexer is attached).
    Dense,
    /// The indexer's top-k.
    Sparse,
}

/// What a forward pass shall do besides computing hidden states.
#[derive(Debug)]
pub struct ForwardOptions {
    /// Experts.
    pub routing: Routing,
    /// Attention.
    pub attention: Attention,
    /// Also return the indexer's KL loss of every layer.
    pub indexer_loss: bool,
    /// Also return the key positions selected (scoring and tests; large).
    pub record_selected: bool,
    /// Recompute each layer's activations in backward instead of keeping them.
    pub activation_checkpointing: bool,
}

impl ForwardOptions {
    /// Plain inference with free routing and sparse attention.
    pub fn inference() -> ForwardOptions {
        ForwardOptions {
            routing: Routing::Free,
            attention: Attention::Sparse,
            indexer_loss: false,
            record_selected: false,
            activation_checkpointing: false,
        }
    }
}

/// Result of a forward pass over T tokens.
#[derive(Debug)]
pub struct ForwardOutput {
    /// Normalised final hidden states, `[T, hidden_size]`.
    pub hidden: Tensor,
    /// Experts chosen, i64 `[T, num_layers, top_k]`, under `Routing::Record` in a MoE model.
    pub routing: Option<Tensor>,
    /// Indexer KL per layer, each a scalar, when asked for.
    pub indexer_losses: Vec<Tensor>,
    /// Per layer: selected key positions of each token within its sequence, `[T][<=topk]` ascending.
    pub selected: Option<Vec<Vec<Vec<i64>>>>,
    /// Keys attended over keys visible, averaged over tokens and layers (1 when dense).
    pub key_share: f64,
}

/// A causal language model.
#[derive(Debug)]
pub struct Transformer {
    config: ModelConfig,
}

impl Transformer {
    /// Loads every tensor from `source`, computing in `kind` on `device`.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape than `config` implies.
    pub fn load(
        config: &ModelConfig,
        source: &mut dyn WeightSource,
        kind: Kind,
        device: Device,
    ) -> Result<Transformer, WeightError> {
        todo!()
    }

    /// Shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Compute type.
    pub fn kind(&self) -> Kind {
        todo!()
    }

    /// Device of the weights.
    pub fn device(&self) -> Device {
        todo!()
    }

    /// Every parameter, in a fixed order.
    pub fn parameters(&self) -> Vec<&Parameter> {
        todo!()
    }

    /// Every parameter, in the same fixed order.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        todo!()
    }

    /// Makes the masters visible to the next inference pass.
    pub fn publish(&mut self) {
        self.parameters_mut()
            .into_iter()
            .for_each(Parameter::publish);
    }

    /// Forward over packed documents, differentiable.
    pub fn forward_packed(&self, input: &PackedInput, options: &ForwardOptions) -> ForwardOutput {
        todo!()
    }

    /// Forward over prompts, one a slot, writing keys and values to the cache; `slots[i]` must be
    /// empty. Hidden states cover all prompt tokens, `[sum of lengths, hidden_size]`. No gradient.
    pub fn prefill(
        &self,
        cache: &mut KvCache,
        slots: &[usize],
        prompts: &[&[u32]],
        options: &ForwardOptions,
    ) -> ForwardOutput {
        todo!()
    }

    /// One more token for each of the slots `0..B`: `tokens` i64 `[B]`; hidden `[B, hidden_size]`. No gradient.
    pub fn decode(
        &self,
        cache: &mut KvCache,
        tokens: &Tensor,
        options: &ForwardOptions,
    ) -> ForwardOutput {
        todo!()
    }

    /// Output head: hidden `[N, hidden_size]` to f32 logits `[N, vocab_size]`.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        todo!()
    }
}
