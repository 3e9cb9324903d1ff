//! The tensors of a model folder: names and shapes that a config implies, by family.
//!
//! Each expert has tensors of its own on disk, in every family. The list is what a folder is checked
//! against before anything is read, and what a complete folder holds.

use crate::config::{DsaConfig, MlaConfig, ModelConfig, ModelType, MoeConfig};

/// The embedding.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The output head, where it is not tied to the embedding.
pub(crate) const HEAD: &str = "lm_head.weight";
/// Last part of the name of a gate's selection bias, which is stored in f32 always.
pub(crate) const CORRECTION_BIAS: &str = "e_score_correction_bias";

/// Names and shapes collected so far.
struct Names(Vec<(String, Vec<i64>)>);

impl Names {
    fn add(&mut self, name: String, shape: &[usize]) {
        let shape = shape.iter().map(|&n| n as i64).collect();
        self.0.push((name, shape));
    }

    /// A SwiGLU: gate and up projection `[width, hidden]`, down projection `[hidden, width]`.
    fn add_mlp(&mut self, prefix: &str, names: [&str; 3], hidden: usize, width: usize) {
        let [gate, up, down] = names;
        self.add(format!("{prefix}.{gate}.weight"), &[width, hidden]);
        self.add(format!("{prefix}.{up}.weight"), &[width, hidden]);
        self.add(format!("{prefix}.{down}.weight"), &[hidden, width]);
    }
}

const MLP: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];
const MIXTRAL_MLP: [&str; 3] = ["w1", "w3", "w2"];

/// Every tensor of a model of shape `config`, in the order of a forward pass.
pub fn expected_tensors(config: &ModelConfig) -> Vec<(String, Vec<i64>)> {
    let mut names = Names(Vec::new());
    let hidden = config.hidden_size;
    names.add(EMBEDDING.to_string(), &[config.vocab_size, hidden]);
    for index in 0..config.num_hidden_layers {
        let layer = format!("model.layers.{index}");
        names.add(format!("{layer}.input_layernorm.weight"), &[hidden]);
        let attention = format!("{layer}.self_attn");
        match &config.mla {
            Some(mla) => add_latent_attention(&mut names, &attention, config, mla),
            None => add_grouped_attention(&mut names, &attention, config),
        }
        if let Some(dsa) = &config.dsa {
            add_indexer(&mut names, &format!("{attention}.indexer"), config, dsa);
        }
        names.add(
            format!("{layer}.post_attention_layernorm.weight"),
            &[hidden],
        );
        match config.layer_moe(index) {
            Some(moe) => add_experts(&mut names, &layer, config, moe),
            None => {
                let mlp = format!("{layer}.mlp");
                names.add_mlp(&mlp, MLP, hidden, config.intermediate_size);
            }
        }
    }
    names.add("model.norm.weight".to_string(), &[hidden]);
    if !config.tie_word_embeddings {
        names.add(HEAD.to_string(), &[config.vocab_size, hidden]);
    }
    names.0
}

fn add_grouped_attention(names: &mut Names, prefix: &str, config: &ModelConfig) {
    let (hidden, dim) = (config.hidden_size, config.head_dim);
    let (q, kv) = (
        config.num_attention_heads * dim,
        config.num_key_value_heads * dim,
    );
    for (name, width) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
        names.add(format!("{prefix}.{name}.weight"), &[width, hidden]);
        if config.qkv_bias {
            names.add(format!("{prefix}.{name}.bias"), &[width]);
        }
    }
    names.add(format!("{prefix}.o_proj.weight"), &[hidden, q]);
    if config.qk_norm {
        names.add(format!("{prefix}.q_norm.weight"), &[dim]);
        names.add(format!("{prefix}.k_norm.weight"), &[dim]);
    }
}

fn add_latent_attention(names: &mut Names, prefix: &str, config: &ModelConfig, mla: &MlaConfig) {
    let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
    let q = heads * mla.qk_head_dim();
    match mla.q_lora_rank {
        Some(rank) => {
            names.add(format!("{prefix}.q_a_proj.weight"), &[rank, hidden]);
            names.add(format!("{prefix}.q_a_layernorm.weight"), &[rank]);
            names.add(format!("{prefix}.q_b_proj.weight"), &[q, rank]);
        }
        None => names.add(format!("{prefix}.q_proj.weight"), &[q, hidden]),
    }
    let (rank, latent) = (mla.kv_lora_rank, mla.latent_dim());
    let expanded = heads * (mla.qk_nope_head_dim + mla.v_head_dim);
    names.add(
        format!("{prefix}.kv_a_proj_with_mqa.weight"),
        &[latent, hidden],
    );
    names.add(format!("{prefix}.kv_a_layernorm.weight"), &[rank]);
    names.add(format!("{prefix}.kv_b_proj.weight"), &[expanded, rank]);
    names.add(
        format!("{prefix}.o_proj.weight"),
        &[hidden, heads * mla.v_head_dim],
    );
}

/// Its queries come from the query latent (`wq_b`), without one from the hidden state (`wq`).
fn add_indexer(names: &mut Names, prefix: &str, config: &ModelConfig, dsa: &DsaConfig) {
    let (hidden, dim) = (config.hidden_size, dsa.index_head_dim);
    let q = dsa.index_n_heads * dim;
    match config.mla.as_ref().and_then(|mla| mla.q_lora_rank) {
        Some(rank) => names.add(format!("{prefix}.wq_b.weight"), &[q, rank]),
        None => names.add(format!("{prefix}.wq.weight"), &[q, hidden]),
    }
    names.add(format!("{prefix}.wk.weight"), &[dim, hidden]);
    names.add(format!("{prefix}.k_norm.weight"), &[dim]);
    names.add(format!("{prefix}.k_norm.bias"), &[dim]);
    names.add(
        format!("{prefix}.weights_proj.weight"),
        &[dsa.index_n_heads, hidden],
    );
}

fn add_experts(names: &mut Names, layer: &str, config: &ModelConfig, moe: &MoeConfig) {
    let (block, matrices) = match config.model_type {
        ModelType::Mixtral => ("block_sparse_moe", MIXTRAL_MLP),
        _ => ("mlp", MLP),
    };
    let (prefix, hidden) = (format!("{layer}.{block}"), config.hidden_size);
    names.add(format!("{prefix}.gate.weight"), &[moe.num_experts, hidden]);
    if moe.correction_bias {
        names.add(
            format!("{prefix}.gate.{CORRECTION_BIAS}"),
            &[moe.num_experts],
        );
    }
    let width = config.expert_intermediate_size();
    for expert in 0..moe.num_experts {
        names.add_mlp(
            &format!("{prefix}.experts.{expert}"),
            matrices,
            hidden,
            width,
        );
    }
    if moe.n_shared_experts > 0 {
        let shared = format!("{prefix}.shared_experts");
        names.add_mlp(&shared, MLP, hidden, moe.n_shared_experts * width);
    }
}
