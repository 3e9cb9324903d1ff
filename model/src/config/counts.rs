//! Numbers of parameters by part of a layer; tied embeddings count once, all experts count.

use super::ModelConfig;

impl ModelConfig {
    /// Number of parameters, the gate's correction biases included.
    pub fn num_parameters(&self) -> usize {
        let h = self.hidden_size;
        let layer = self.attention_parameters() + self.indexer_parameters() + 2 * h;
        let num_moe_layers = self.num_moe_layers();
        let num_dense_layers = self.num_hidden_layers - num_moe_layers;
        let heads = if self.tie_word_embeddings { 1 } else { 2 };
        self.num_hidden_layers * layer
            + num_dense_layers * 3 * h * self.intermediate_size
            + num_moe_layers * self.moe_parameters()
            + heads * self.vocab_size * h
            + h
    }

    /// Parameters of one layer's main attention, norms and biases included.
    pub fn attention_parameters(&self) -> usize {
        let (h, heads) = (self.hidden_size, self.num_attention_heads);
        let Some(mla) = &self.mla else {
            let both = heads + 2 * self.num_key_value_heads;
            let bias = if self.qkv_bias { both } else { 0 };
            let norms = if self.qk_norm { 2 } else { 0 };
            return self.head_dim * (h * (both + heads) + bias + norms);
        };
        let q = match mla.q_lora_rank {
            Some(rank) => rank * (h + 1 + heads * mla.qk_head_dim()),
            None => h * heads * mla.qk_head_dim(),
        };
        let expanded = heads * (mla.qk_nope_head_dim + mla.v_head_dim);
        let kv = h * mla.latent_dim() + mla.kv_lora_rank * (1 + expanded);
        q + kv + heads * mla.v_head_dim * h
    }

    /// Parameters of one layer's indexer; 0 without one.
    pub fn indexer_parameters(&self) -> usize {
        let q_latent = self.mla.as_ref().and_then(|mla| mla.q_lora_rank);
        let q_input = q_latent.unwrap_or(self.hidden_size);
        self.dsa.as_ref().map_or(0, |dsa| {
            let (heads, dim) = (dsa.index_n_heads, dsa.index_head_dim);
            q_input * heads * dim + self.hidden_size * (dim + heads) + 2 * dim
        })
    }

    /// Parameters of one layer's experts, shared ones and the gate included; 0 without experts.
    pub fn moe_parameters(&self) -> usize {
        self.moe.as_ref().map_or(0, |moe| {
            let expert = 3 * self.hidden_size * self.expert_intermediate_size();
            let bias = if moe.correction_bias { 1 } else { 0 };
            (moe.num_experts + moe.n_shared_experts) * expert
                + moe.num_experts * (self.hidden_size + bias)
        })
    }
}
