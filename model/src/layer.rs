//! One decoder layer: x + attention(norm(x)), then x + feed-forward(norm(x)).

use kernels::tch::{Kind, Tensor};

use crate::config::ModelConfig;
use crate::context::{DecodeContext, PackContext};
use crate::gqa::{AttentionRequest, CacheWrite, GroupedQueryAttention};
use crate::kv_cache::LayerCache;
use crate::mlp::Mlp;
use crate::moe::Moe;
use crate::parameter::{Parameter, ParameterGroup, ParameterLoader};
use crate::router::Routed;
use crate::transformer::Attention;
use crate::weights::WeightError;

/// y = weight * x * rsqrt(mean(x^2) + eps), statistics in f32.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    weight: Parameter,
    eps: f64,
}

impl RmsNorm {
    pub(crate) fn load(
        loader: &mut ParameterLoader,
        name: &str,
        config: &ModelConfig,
    ) -> Result<RmsNorm, WeightError> {
        let weight = loader.load(name, ParameterGroup::Main, &[config.hidden_size])?;
        Ok(RmsNorm {
            weight,
            eps: config.rms_norm_eps,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        let wide = x.to_kind(Kind::Float);
        let mean_square = (&wide * &wide).mean_dim(-1, true, Kind::Float);
        // Rounded before the weight multiplies, as Hugging Face does.
        (wide * (mean_square + self.eps).rsqrt()).to_kind(x.kind()) * self.weight.weight()
    }

    pub(crate) fn parameter(&self) -> &Parameter {
        &self.weight
    }
}

#[derive(Debug)]
enum FeedForward {
    Dense(Mlp),
    Moe(Moe),
}

/// A decoder layer.
#[derive(Debug)]
pub(crate) struct Layer {
    input_norm: RmsNorm,
    attention: GroupedQueryAttention,
    post_attention_norm: RmsNorm,
    feed_forward: FeedForward,
}

/// What a packed pass through a layer yields besides the residual stream.
#[derive(Debug, Default)]
pub(crate) struct LayerRecord {
    pub(crate) routed: Option<Routed>,
    pub(crate) selected: Option<Vec<Vec<i64>>>,
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
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        Ok(Layer {
            input_norm: RmsNorm::load(loader, &format!("{prefix}.input_layernorm.weight"), config)?,
            attention: GroupedQueryAttention::load(loader, &format!("{prefix}.self_attn"), config)?,
            post_attention_norm: RmsNorm::load(
                loader,
                &format!("{prefix}.post_attention_layernorm.weight"),
                config,
            )?,
            feed_forward: match &config.moe {
                Some(moe) => FeedForward::Moe(Moe::load(
                    loader,
                    &format!("{prefix}.block_sparse_moe"),
                    moe,
                    hidden,
                    intermediate,
                )?),
                None => FeedForward::Dense(Mlp::load(
                    loader,
                    &format!("{prefix}.mlp"),
                    ["gate_proj", "up_proj", "down_proj"],
                    hidden,
                    intermediate,
                )?),
            },
        })
    }

    /// `x` `[T, hidden_size]` of a pack; `recorded` `[T, top_k]` forces the experts.
    pub(crate) fn packed(
        &self,
        x: &Tensor,
        pack: &PackContext,
        request: AttentionRequest,
        recorded: Option<&Tensor>,
        write: Option<CacheWrite>,
    ) -> LayerOutput {
        let attended = self
            .attention
            .packed(&self.input_norm.forward(x), pack, request, write);
        let x = x + attended.y;
        let (y, routed) = self.feed_forward(&x, recorded);
        LayerOutput {
            x: x + y,
            indexer_loss: attended.indexer_loss,
            record: LayerRecord {
                routed,
                selected: attended.selected,
            },
        }
    }

    /// `x` `[B, hidden_size]`, one new token a slot.
    pub(crate) fn cached(
        &self,
        x: &Tensor,
        step: &DecodeContext,
        cache: &LayerCache,
        attention: Attention,
    ) -> (Tensor, Option<Routed>) {
        let x = x + self
            .attention
            .cached(&self.input_norm.forward(x), step, cache, attention);
        let (y, routed) = self.feed_forward(&x, None);
        (x + y, routed)
    }

    fn feed_forward(&self, x: &Tensor, recorded: Option<&Tensor>) -> (Tensor, Option<Routed>) {
        let h = self.post_attention_norm.forward(x);
        match &self.feed_forward {
            FeedForward::Dense(mlp) => (mlp.forward(&h), None),
            FeedForward::Moe(moe) => {
                let (y, routed) = moe.forward(&h, recorded);
                (y, Some(routed))
            }
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
