//! Shape of a model: the fields of a Hugging Face `config.json` that this crate understands.
//!
//! Field names are the checkpoint's own. `MoeConfig` and `DsaConfig` are present together with
//! their tensors or not at all; [`ModelConfig::validate`] rejects contradictions.

use serde::{Deserialize, Serialize};

/// How router logits become gate scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoringFunc {
    /// Mixtral: softmax over all experts, then top-k, then renormalised to sum 1.
    Softmax,
    /// DeepSeek-V3: independent sigmoids, then top-k, then renormalised to sum 1.
    Sigmoid,
}

/// Mixture-of-experts feed-forward, in every layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeConfig {
    /// Experts per layer.
    pub num_experts: usize,
    /// Experts chosen per token.
    pub num_experts_per_tok: usize,
    /// Gate.
    pub scoring_func: ScoringFunc,
}

/// DeepSeek Sparse Attention: the lightning indexer's sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DsaConfig {
    /// Indexer heads (H^I of the report).
    pub index_n_heads: usize,
    /// Width of an indexer head (d^I); the whole head is rotated by RoPE (half-split).
    pub index_head_dim: usize,
    /// Keys selected per query.
    pub index_topk: usize,
}

/// Everything that determines the network's shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of a (dense or expert) SwiGLU.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// RMSNorm epsilon.
    pub rms_norm_eps: f64,
    /// RoPE base.
    pub rope_theta: f64,
    /// Longest context, in tokens.
    pub max_position_embeddings: usize,
    /// Output head shares the embedding.
    pub tie_word_embeddings: bool,
    /// Begin-of-sequence id, where the model has one.
    pub bos_token_id: Option<u32>,
    /// Ids that end a completion.
    pub eos_token_ids: Vec<u32>,
    /// Mixture of experts, or dense.
    pub moe: Option<MoeConfig>,
    /// Sparse attention, or dense.
    pub dsa: Option<DsaConfig>,
}

impl ModelConfig {
    /// Every contradiction found, in words that name the keys; empty when the config is sound.
    pub fn problems(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if value == 0 {
                found.push(format!("{name} is 0; it must be at least 1"));
            }
        }
        if self.num_key_value_heads > 0
            && !self
                .num_attention_heads
                .is_multiple_of(self.num_key_value_heads)
        {
            found.push(format!(
                "num_key_value_heads ({}) does not divide num_attention_heads ({})",
                self.num_key_value_heads, self.num_attention_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            found.push(format!(
                "head_dim ({}) is odd; RoPE rotates pairs",
                self.head_dim
            ));
        }
        if let Some(moe) = &self.moe {
            if moe.num_experts_per_tok == 0 || moe.num_experts_per_tok > moe.num_experts {
                found.push(format!(
                    "num_experts_per_tok ({}) must lie between 1 and the number of experts ({})",
                    moe.num_experts_per_tok, moe.num_experts
                ));
            }
            if moe.num_experts > u16::MAX as usize {
                found.push(format!(
                    "{} experts; at most 65535 are supported",
                    moe.num_experts
                ));
            }
        }
        if let Some(dsa) = &self.dsa {
            if dsa.index_n_heads == 0 || dsa.index_topk == 0 {
                found.push("index_n_heads and index_topk must be at least 1".to_string());
            }
            if dsa.index_head_dim == 0 || dsa.index_head_dim % 2 != 0 {
                found.push(format!(
                    "index_head_dim ({}) must be even and at least 2",
                    dsa.index_head_dim
                ));
            }
        }
        found
    }

    /// Softmax scale of the main attention, `head_dim^-0.5`.
    pub fn softmax_scale(&self) -> f64 {
        (self.head_dim as f64).powf(-0.5)
    }

    /// Number of parameters, all experts counted (tied embeddings once).
    pub fn num_parameters(&self) -> usize {
        let (h, f) = (self.hidden_size, self.intermediate_size);
        let attention =
            h * self.head_dim * (2 * self.num_attention_heads + 2 * self.num_key_value_heads);
        let ffn = match &self.moe {
            None => 3 * h * f,
            Some(moe) => moe.num_experts * (3 * h * f + h),
        };
        let indexer = self.dsa.as_ref().map_or(0, |d| {
            h * d.index_n_heads * d.index_head_dim
                + h * d.index_head_dim
                + 2 * d.index_head_dim
                + h * d.index_n_heads
        });
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        self.num_hidden_layers * (attention + ffn + indexer + 2 * h)
            + heads * self.vocab_size * h
            + h
    }
}
