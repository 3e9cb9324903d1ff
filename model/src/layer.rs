//! One decoder layer: x + attention(norm(x)), then x + feed-forward(norm(x)).

use kernels::KernelError;
use kernels::tch::Tensor;

use crate::attention::{AttentionLayer, AttentionRequest, CacheWrite};
use crate::config::ModelConfig;
use crate::context::{DecodeContext, PackContext};
use crate::decode_graph::StepRecorder;
use crate::experts::Experts;
use crate::kv_cache::LayerCache;
use crate::mlp::Mlp;
use crate::moe::{MLP_NAMES, Moe};
use crate::norm::RmsNorm;
use crate::parameter::{Parameter, ParameterLoader};
use crate::router::Routed;
use crate::transformer::Attention;
use crate::weights::WeightError;

#[derive(Debug)]
enum FeedForward {
    Dense(Mlp),
    Moe(Box<Moe>),
}

/// A decoder layer.
#[derive(Debug)]
pub(crate) struct Layer {
    input_norm: RmsNorm,
    attention: AttentionLayer,
    post_attention_norm: RmsNorm,
    feed_forward: FeedForward,
}

/// What a packed pass through a layer yields besides the residual stream.
#[derive(Debug, Default)]
pub(crate) struct LayerRecord {
    pub(crate) routed: Option<Routed>,
    pub(crate) selected: Option<Tensor>,
    pub(crate) selection_agreement: Option<Tensor>,
}

/// Result of a packed pass through a layer.
#[derive(Debug)]
pub(crate) struct LayerOutput {
    pub(crate) x: Tensor,
    pub(crate) indexer_loss: Option<Tensor>,
    pub(crate) record: LayerRecord,
}

impl Layer {
    pub(crate) fn load(
        loader: &mut ParameterLoader,
        index: usize,
        config: &ModelConfig,
    ) -> Result<Layer, WeightError> {
        let prefix = format!("model.layers.{index}");
        let norm = |loader: &mut ParameterLoader, name: &str| {
            let name = format!("{prefix}.{name}.weight");
            RmsNorm::load(loader, &name, config.hidden_size, config.rms_norm_eps)
        };
        Ok(Layer {
            input_norm: norm(loader, "input_layernorm")?,
            attention: AttentionLayer::load(loader, &format!("{prefix}.self_attn"), config)?,
            post_attention_norm: norm(loader, "post_attention_layernorm")?,
            feed_forward: match config.layer_moe(index) {
                Some(moe) => FeedForward::Moe(Box::new(Moe::load(loader, &prefix, config, moe)?)),
                None => FeedForward::Dense(Mlp::load(
                    loader,
                    &format!("{prefix}.mlp"),
                    MLP_NAMES,
                    config.hidden_size,
                    config.intermediate_size,
                )?),
            },
        })
    }

    /// Whether a router chooses experts here.
    pub(crate) fn has_experts(&self) -> bool {
        matches!(self.feed_forward, FeedForward::Moe(_))
    }

    /// `x` `[T, hidden_size]` of a pack; `recorded` `[T, top_k]` forces the experts.
    pub(crate) fn packed(
        &self,
        x: &Tensor,
        pack: &PackContext,
        request: &AttentionRequest,
        recorded: Option<&Tensor>,
        write: Option<CacheWrite>,
    ) -> LayerOutput {
        let (output, y) = self.packed_behind(x, None, pack, request, recorded, write);
        // Not in place: the norm before the feed-forward needs its input for the backward pass.
        let x = &output.x + y;
        LayerOutput { x, ..output }
    }

    /// The same of `x + y`, and the last sum is left to who comes next: to the output's `x` belongs what is returned
    /// beside it. A norm that sums first saves a pass over both.
    pub(crate) fn packed_behind(
        &self,
        x: &Tensor,
        y: Option<&Tensor>,
        pack: &PackContext,
        request: &AttentionRequest,
        recorded: Option<&Tensor>,
        write: Option<CacheWrite>,
    ) -> (LayerOutput, Tensor) {
        let (x, h) = match y {
            Some(y) => self.input_norm.add_forward(x, y),
            None => (x.shallow_clone(), self.input_norm.forward(x)),
        };
        let attended = self.attention.packed(&h, pack, request, write);
        let (x, y, routed) = self.feed_forward(&x, &attended.y, recorded);
        let output = LayerOutput {
            x,
            indexer_loss: attended.indexer_loss,
            record: LayerRecord {
                routed,
                selected: attended.selected,
                selection_agreement: attended.selection_agreement,
            },
        };
        (output, y)
    }

    /// `x` `[B, hidden_size]`, one new token a slot; with the experts and the keys that were selected.
    pub(crate) fn cached(
        &self,
        x: &Tensor,
        step: &DecodeContext,
        cache: &LayerCache,
        attention: Attention,
    ) -> (Tensor, Option<Routed>, Option<Tensor>) {
        let h = self.input_norm.forward(x);
        let (attended, selected) = self.attention.cached(&h, step, cache, attention);
        let (x, y, routed) = self.feed_forward(x, &attended, None);
        (x + y, routed, selected)
    }

    /// `x + attended`, and what the feed-forward makes of it.
    fn feed_forward(
        &self,
        x: &Tensor,
        attended: &Tensor,
        recorded: Option<&Tensor>,
    ) -> (Tensor, Tensor, Option<Routed>) {
        let (x, h) = self.post_attention_norm.add_forward(x, attended);
        match &self.feed_forward {
            FeedForward::Dense(mlp) => (x, mlp.forward(&h), None),
            FeedForward::Moe(moe) => {
                let (y, routed) = moe.forward(&h, recorded);
                (x, y, Some(routed))
            }
        }
    }

    /// The layer's experts, where a router chooses them.
    pub(crate) fn experts(&self) -> Option<&Experts> {
        match &self.feed_forward {
            FeedForward::Dense(_) => None,
            FeedForward::Moe(moe) => Some(moe.experts()),
        }
    }

    /// Whether [`Layer::record`] can be used.
    pub(crate) fn can_be_recorded(&self) -> bool {
        self.attention.can_be_recorded()
            && match &self.feed_forward {
                FeedForward::Dense(_) => true,
                FeedForward::Moe(moe) => moe.can_be_recorded(),
            }
    }

    /// Puts a decode step on the recorder's queue. The feed-forward's output stays in `y`, for the next norm to
    /// add; so does that of the layer before, unless this is the first.
    pub(crate) fn record(
        &self,
        step: &StepRecorder,
        cache: &LayerCache,
        is_first: bool,
    ) -> Result<(), KernelError> {
        if let (true, FeedForward::Dense(mlp)) = (step.has_small_products, &self.feed_forward) {
            let (weight, eps) = self.input_norm.weight_and_epsilon();
            self.attention.record(step, cache, Some((&weight, eps)))?;
            let (weight, eps) = self.post_attention_norm.weight_and_epsilon();
            return mlp.record(step, Some((&weight, eps)));
        }
        self.input_norm
            .record(step, (!is_first).then_some(&step.y))?;
        self.attention.record(step, cache, None)?;
        self.post_attention_norm.record(step, Some(&step.y))?;
        match &self.feed_forward {
            FeedForward::Dense(mlp) => mlp.record(step, None),
            FeedForward::Moe(moe) => moe.record(step),
        }
    }

    pub(crate) fn parameters(&self) -> Vec<&Parameter> {
        let mut all = vec![self.input_norm.parameter()];
        all.extend(self.attention.parameters());
        all.push(self.post_attention_norm.parameter());
        match &self.feed_forward {
            FeedForward::Dense(mlp) => all.extend(mlp.parameters()),
            FeedForward::Moe(moe) => all.extend(moe.parameters()),
        }
        all
    }
}

#[cfg(test)]
impl Layer {
    /// What the layer's indexer thinks of every key of a pack of one document, `[T, T]`.
    pub(crate) fn index_scores(&self, x: &Tensor, pack: &PackContext) -> Tensor {
        let h = self.input_norm.forward(x);
        self.attention.index_scores(&h, pack)
    }
}
