//! Shape of a model: the fields of a Hugging Face `config.json` that this crate understands.
//!
//! Field names are the checkpoint's own. `MlaConfig`, `MoeConfig` and `DsaConfig` are present together
//! with their tensors or not at all; [`ModelConfig::problems`] names contradictions. What a family
//! ([`ModelType`]) has no choice about is stated all the same, so that the network reads it here.

mod counts;
mod problems;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Family of a model: the `model_type` of its `config.json`, which decides the tensors' names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelType {
    /// Grouped-query attention, dense feed-forward.
    #[default]
    Llama,
    /// Llama with biases on the query, key and value projections.
    Qwen2,
    /// Llama with a norm on every query and key head.
    Qwen3,
    /// Llama with experts (`block_sparse_moe`).
    Mixtral,
    /// Qwen3 with experts.
    Qwen3Moe,
    /// Multi-head latent attention, `noaux_tc` experts.
    DeepseekV3,
    /// DeepSeek-V3 with a lightning indexer (half-split RoPE).
    DeepseekV32,
    /// GLM-5: as DeepSeek-V3.2, but its indexer's RoPE is interleaved.
    GlmMoeDsa,
}

impl ModelType {
    /// The `model_type` of `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            ModelType::Llama => "llama",
            ModelType::Qwen2 => "qwen2",
            ModelType::Qwen3 => "qwen3",
            ModelType::Mixtral => "mixtral",
            ModelType::Qwen3Moe => "qwen3_moe",
            ModelType::DeepseekV3 => "deepseek_v3",
            ModelType::DeepseekV32 => "deepseek_v32",
            ModelType::GlmMoeDsa => "glm_moe_dsa",
        }
    }

    /// Whether attention is multi-head latent attention and the gate DeepSeek-V3's.
    pub fn is_deepseek(self) -> bool {
        matches!(
            self,
            ModelType::DeepseekV3 | ModelType::DeepseekV32 | ModelType::GlmMoeDsa
        )
    }
}

/// How router logits become gate scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoringFunc {
    /// Softmax over all experts, then top-k.
    Softmax,
    /// DeepSeek-V3: independent sigmoids, then top-k.
    Sigmoid,
}

/// Mixture-of-experts feed-forward, in every layer from `first_k_dense_replace` on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeConfig {
    /// Experts per layer.
    pub num_experts: usize,
    /// Experts chosen per token.
    pub num_experts_per_tok: usize,
    /// Gate.
    pub scoring_func: ScoringFunc,
    /// Width of an expert's SwiGLU; `None`: the model's `intermediate_size`.
    #[serde(default)]
    pub moe_intermediate_size: Option<usize>,
    /// Leading layers with a dense feed-forward.
    #[serde(default)]
    pub first_k_dense_replace: usize,
    /// Experts that every token passes, fused into one SwiGLU of that many widths.
    #[serde(default)]
    pub n_shared_experts: usize,
    /// Groups of neighbouring experts; 1 for no groups.
    #[serde(default = "one")]
    pub n_group: usize,
    /// Groups whose experts may be chosen.
    #[serde(default = "one")]
    pub topk_group: usize,
    /// Gates of a token are divided by their sum.
    #[serde(default = "yes")]
    pub norm_topk_prob: bool,
    /// Factor on the gates.
    #[serde(default = "unit")]
    pub routed_scaling_factor: f64,
    /// `e_score_correction_bias` is added to the scores for the choice only (`noaux_tc`).
    #[serde(default)]
    pub correction_bias: bool,
}

impl MoeConfig {
    /// Mixtral's gate: softmax, top-k, renormalised; every layer, no shared expert.
    pub fn mixtral(num_experts: usize, num_experts_per_tok: usize) -> MoeConfig {
        MoeConfig {
            num_experts,
            num_experts_per_tok,
            scoring_func: ScoringFunc::Softmax,
            moe_intermediate_size: None,
            first_k_dense_replace: 0,
            n_shared_experts: 0,
            n_group: 1,
            topk_group: 1,
            norm_topk_prob: true,
            routed_scaling_factor: 1.0,
            correction_bias: false,
        }
    }
}

/// How the simulated FP8 quantisation writes a vector's scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleFormat {
    /// A power of two, rounded up.
    Ue8m0,
    /// amax / 448 as it is.
    F32,
}

/// The indexer as FP8 inference computes it: its queries and keys pass a Hadamard transform, then
/// each vector is rounded to e4m3 with a scale of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexerQuantization {
    /// Format of the scales.
    pub scale_format: ScaleFormat,
}

/// DeepSeek Sparse Attention: the lightning indexer's sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DsaConfig {
    /// Indexer heads (H^I of the report).
    pub index_n_heads: usize,
    /// Width of an indexer head (d^I). RoPE turns all of it, with MLA its first `qk_rope_head_dim`.
    pub index_head_dim: usize,
    /// Keys selected per query.
    pub index_topk: usize,
    /// RoPE pairs neighbours (GLM-5) instead of halves (DeepSeek-V3.2).
    #[serde(default)]
    pub rope_interleave: bool,
    /// Simulate the quantised indexer; `None` computes it in the model's type.
    #[serde(default)]
    pub quantization: Option<IndexerQuantization>,
}

impl DsaConfig {
    /// An indexer with half-split RoPE and no quantisation.
    pub fn new(index_n_heads: usize, index_head_dim: usize, index_topk: usize) -> DsaConfig {
        DsaConfig {
            index_n_heads,
            index_head_dim,
            index_topk,
            rope_interleave: false,
            quantization: None,
        }
    }
}

/// Multi-head latent attention: keys and values of all heads come from one latent per token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlaConfig {
    /// Width of the query latent; `None`: queries come straight from the hidden state.
    pub q_lora_rank: Option<usize>,
    /// Width of the key/value latent.
    pub kv_lora_rank: usize,
    /// Part of a query or key head without position.
    pub qk_nope_head_dim: usize,
    /// Part of a query or key head that RoPE turns; its key is shared by all heads.
    pub qk_rope_head_dim: usize,
    /// Width of a value head.
    pub v_head_dim: usize,
    /// RoPE of the main attention pairs neighbours instead of halves.
    #[serde(default = "yes")]
    pub rope_interleave: bool,
}

impl MlaConfig {
    /// Width of a query or key head, `qk_nope_head_dim + qk_rope_head_dim`.
    pub fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// Values a token leaves in the cache, `kv_lora_rank + qk_rope_head_dim`.
    pub fn latent_dim(&self) -> usize {
        self.kv_lora_rank + self.qk_rope_head_dim
    }
}

/// YaRN: RoPE stretched to a longer context (Peng et al. 2023).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct YarnConfig {
    /// How much longer the context became.
    pub factor: f64,
    /// Context before, in tokens.
    pub original_max_position_embeddings: usize,
    /// Dimensions turning more often than this over the original context stay as they are.
    #[serde(default = "beta_fast")]
    pub beta_fast: f64,
    /// Dimensions turning less often than this are slowed by `factor`.
    #[serde(default = "unit")]
    pub beta_slow: f64,
    /// Coefficient of the factor on cosine and sine; 0 where the checkpoint states none.
    #[serde(default)]
    pub mscale: f64,
    /// Coefficient of the softmax scale's factor (MLA); 0 where the checkpoint states none.
    #[serde(default)]
    pub mscale_all_dim: f64,
}

impl YarnConfig {
    /// `0.1 coefficient ln(factor) + 1`, and 1 where nothing is stretched.
    pub fn magnitude(&self, coefficient: f64) -> f64 {
        if self.factor <= 1.0 {
            return 1.0;
        }
        0.1 * coefficient * self.factor.ln() + 1.0
    }

    /// Factor on cosine and sine: the ratio of both magnitudes where both are stated, else that of
    /// coefficient 1.
    pub fn rotation_factor(&self) -> f64 {
        if self.mscale != 0.0 && self.mscale_all_dim != 0.0 {
            self.magnitude(self.mscale) / self.magnitude(self.mscale_all_dim)
        } else {
            self.magnitude(1.0)
        }
    }
}

/// Everything that determines the network's shape.
///
/// An absent `model_type` means `llama`, and with `moe` `mixtral`, which differs by its experts alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct ModelConfig {
    /// Family.
    #[serde(default)]
    pub model_type: ModelType,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of a dense SwiGLU, and of an expert's unless `moe` says otherwise.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads; divides `num_attention_heads`. With MLA the same number.
    pub num_key_value_heads: usize,
    /// Width of a head; with MLA that of its rotated part.
    pub head_dim: usize,
    /// RMSNorm epsilon.
    pub rms_norm_eps: f64,
    /// Standard deviation of weights drawn at random; a trained model's are not.
    #[serde(default = "initializer_range")]
    pub initializer_range: f64,
    /// RoPE base.
    pub rope_theta: f64,
    /// RoPE stretched by YaRN, or plain.
    #[serde(default)]
    pub yarn: Option<YarnConfig>,
    /// Longest context, in tokens.
    pub max_position_embeddings: usize,
    /// Output head shares the embedding.
    pub tie_word_embeddings: bool,
    /// Query, key and value projections have biases (Qwen2).
    #[serde(default)]
    pub qkv_bias: bool,
    /// RMSNorm on every query and key head before RoPE (Qwen3).
    #[serde(default)]
    pub qk_norm: bool,
    /// Begin-of-sequence id, where the model has one.
    pub bos_token_id: Option<u32>,
    /// Ids that end a completion.
    pub eos_token_ids: Vec<u32>,
    /// Multi-head latent attention, or grouped-query attention.
    #[serde(default)]
    pub mla: Option<MlaConfig>,
    /// Mixture of experts, or dense.
    pub moe: Option<MoeConfig>,
    /// Sparse attention, or dense.
    pub dsa: Option<DsaConfig>,
}

impl<'de> Deserialize<'de> for ModelConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ModelConfig, D::Error> {
        let mut config = ModelConfig::deserialize(deserializer)?;
        if config.model_type == ModelType::Llama && config.moe.is_some() {
            config.model_type = ModelType::Mixtral;
        }
        Ok(config)
    }
}

impl Serialize for ModelConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ModelConfig::serialize(self, serializer)
    }
}

impl ModelConfig {
    /// A dense llama of no size: what remains to be said are the sizes (all 0 here), the rest are the
    /// family's usual values.
    pub fn sizeless_llama() -> ModelConfig {
        ModelConfig {
            model_type: ModelType::Llama,
            vocab_size: 0,
            hidden_size: 0,
            intermediate_size: 0,
            num_hidden_layers: 0,
            num_attention_heads: 0,
            num_key_value_heads: 0,
            head_dim: 0,
            rms_norm_eps: 1e-5,
            initializer_range: initializer_range(),
            rope_theta: 1e4,
            yarn: None,
            max_position_embeddings: 0,
            tie_word_embeddings: false,
            qkv_bias: false,
            qk_norm: false,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            mla: None,
            moe: None,
            dsa: None,
        }
    }

    /// Softmax scale of the main attention: `d^-0.5` with d the width of a query head, with MLA and
    /// YaRN times the squared magnitude of `mscale_all_dim` (0.1352 at DeepSeek-V3.2's sizes).
    pub fn softmax_scale(&self) -> f64 {
        let Some(mla) = &self.mla else {
            return (self.head_dim as f64).powf(-0.5);
        };
        let magnitude = self
            .yarn
            .as_ref()
            .map_or(1.0, |yarn| yarn.magnitude(yarn.mscale_all_dim));
        (mla.qk_head_dim() as f64).powf(-0.5) * magnitude * magnitude
    }

    /// The experts of layer `index`; `None` where it is dense.
    pub fn layer_moe(&self, index: usize) -> Option<&MoeConfig> {
        self.moe
            .as_ref()
            .filter(|moe| index >= moe.first_k_dense_replace)
    }

    /// Layers with experts: the layers of a routing record.
    pub fn num_moe_layers(&self) -> usize {
        self.moe.as_ref().map_or(0, |moe| {
            self.num_hidden_layers
                .saturating_sub(moe.first_k_dense_replace)
        })
    }

    /// Width of an expert's SwiGLU.
    pub fn expert_intermediate_size(&self) -> usize {
        let stated = self.moe.as_ref().and_then(|moe| moe.moe_intermediate_size);
        stated.unwrap_or(self.intermediate_size)
    }

    /// Leading dimensions of an indexer head that RoPE turns.
    pub fn index_rope_dim(&self, dsa: &DsaConfig) -> usize {
        let mla = self.mla.as_ref();
        mla.map_or(dsa.index_head_dim, |mla| mla.qk_rope_head_dim)
    }
}

/// The usual one, of models some thousand wide; a small model learns faster from about
/// `hidden_size^-0.5`.
pub(crate) fn initializer_range() -> f64 {
    0.02
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

fn unit() -> f64 {
    1.0
}

fn beta_fast() -> f64 {
    32.0
}

#[cfg(test)]
mod tests;
