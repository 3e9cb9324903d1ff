//! A decode step being recorded: the buffers that layers read and write.

use std::cell::Cell;

use kernels::cuda::Queue;
use kernels::decode::attention::{Heads, Rope};
use kernels::tch::{Device, Kind, Tensor};

use super::{heads, kept_words, output_words};
use crate::config::ModelConfig;

/// Buffers that all graphs share, flat, for the largest N.
#[derive(Debug)]
pub(super) struct Buffers {
    pub(super) x: Tensor,
    pub(super) h: Tensor,
    pub(super) y: Tensor,
    pub(super) qkv: Tensor,
    pub(super) attended: Tensor,
    pub(super) both: Tensor,
    pub(super) inner: Tensor,
    pub(super) outputs: Tensor,
    pub(super) gates: Tensor,
    pub(super) logits: Tensor,
    /// The largest N.
    pub(super) rows: i64,
    /// What a step gives the host, i32: token, log-prob and entropy of each row, then the experts, then the ids drawn
    /// from. All graphs share it, so that a step finds the tokens of the one before.
    pub(super) output: Tensor,
}

/// A step being recorded: what layers read and write.
pub(crate) struct StepRecorder<'a> {
    pub(crate) queue: &'a Queue,
    pub(crate) heads: Heads,
    pub(crate) rope: &'a Rope,
    /// i32 `[N]`.
    pub(crate) positions: Tensor,
    /// What the step before drew, i32 `[rows of the largest graph]`.
    pub(crate) drawn: Tensor,
    /// Pages of the sequences, i32 `[N, width]`.
    pub(crate) table: Tensor,
    /// Tokens of a page.
    pub(crate) page: i64,
    /// Whether norms and residual sums are part of the products, as they are for few rows.
    pub(crate) has_small_products: bool,
    /// Residual stream, `[N, hidden]`.
    pub(crate) x: Tensor,
    /// Normed input of a block, `[N, hidden]`.
    pub(crate) h: Tensor,
    /// Output of a block, not yet added, `[N, hidden]`.
    pub(crate) y: Tensor,
    /// `[N, (H + 2 K) D]`.
    pub(crate) qkv: Tensor,
    /// `[N, H D]`.
    pub(crate) attended: Tensor,
    pub(super) buffers: &'a Buffers,
    pub(super) rows: i64,
    /// i16 `[N, num_moe_layers, top_k]`.
    pub(super) routing: Option<Tensor>,
    pub(super) moe_layer: Cell<i64>,
}

impl StepRecorder<'_> {
    /// Room for gate and up projection `[experts, N, 2 width]`, and for their product.
    pub(crate) fn feed_forward(&self, experts: i64, width: i64) -> (Tensor, Tensor) {
        let shaped = |buffer, width| shaped(buffer, &[experts, self.rows, width]);
        (
            shaped(&self.buffers.both, 2 * width),
            shaped(&self.buffers.inner, width),
        )
    }

    /// Room for what each expert makes of each row, `[experts, N, hidden]`.
    pub(crate) fn expert_outputs(&self, experts: i64) -> Tensor {
        let hidden = self.x.size()[1];
        shaped(&self.buffers.outputs, &[experts, self.rows, hidden])
    }

    /// Gates `[N, experts]` and expert ids `[N, top_k]` of the next layer with experts.
    pub(crate) fn routing(&self, experts: i64) -> (Tensor, Tensor) {
        let layer = self.moe_layer.replace(self.moe_layer.get() + 1);
        let routing = self
            .routing
            .as_ref()
            .expect("a layer with experts in a model with experts");
        (
            shaped(&self.buffers.gates, &[self.rows, experts]),
            routing.select(1, layer),
        )
    }
}

impl Buffers {
    pub(super) fn new(config: &ModelConfig, rows: usize, device: Device) -> Buffers {
        let rows = rows as i64;
        let room = |width: usize, kind| Tensor::zeros([rows * width as i64], (kind, device));
        let wide = |width| room(width, Kind::BFloat16);
        let experts = config.moe.as_ref().map_or(0, |moe| moe.num_experts);
        let inner = config
            .intermediate_size
            .max(experts * config.expert_intermediate_size());
        Buffers {
            x: wide(config.hidden_size),
            h: wide(config.hidden_size),
            y: wide(config.hidden_size),
            qkv: wide(heads(config).qkv_width() as usize),
            attended: wide(config.num_attention_heads * config.head_dim),
            both: wide(2 * inner),
            inner: wide(inner),
            outputs: wide(experts * config.hidden_size),
            gates: room(experts, Kind::Float),
            logits: wide(config.vocab_size),
            rows,
            output: Tensor::zeros(
                [
                    (output_words(config, rows as usize, None) + rows as usize * kept_words(config))
                        as i64,
                ],
                (Kind::Int, device),
            ),
        }
    }
}

/// The front of a flat buffer as `shape`.
pub(super) fn shaped(buffer: &Tensor, shape: &[i64]) -> Tensor {
    buffer.narrow(0, 0, shape.iter().product()).view(shape)
}
