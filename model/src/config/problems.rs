//! Contradictions in a [`ModelConfig`], each a sentence that names the keys.

use super::{DsaConfig, MlaConfig, ModelConfig, ModelType, MoeConfig, ScoringFunc, YarnConfig};

/// Problems found so far.
struct Problems(Vec<String>);

impl Problems {
    /// Notes `problem` unless `sound`.
    fn check(&mut self, sound: bool, problem: impl FnOnce() -> String) {
        if !sound {
            self.0.push(problem());
        }
    }

    fn positive(&mut self, sizes: &[(&str, usize)]) {
        for (name, size) in sizes {
            self.check(*size > 0, || format!("{name} is 0; it must be at least 1"));
        }
    }
}

impl ModelConfig {
    /// Every contradiction found, in words that name the keys; empty when the config is sound.
    pub fn problems(&self) -> Vec<String> {
        let mut found = Problems(Vec::new());
        found.positive(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ]);
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        found.check(kv_heads == 0 || heads.is_multiple_of(kv_heads), || {
            format!(
                "num_key_value_heads ({kv_heads}) does not divide num_attention_heads ({heads})"
            )
        });
        found.check(self.head_dim.is_multiple_of(2), || {
            format!("head_dim ({}) is odd; RoPE rotates pairs", self.head_dim)
        });
        let std = self.initializer_range;
        found.check(std.is_finite() && std >= 0.0, || {
            format!("initializer_range ({std}) must be a number, 0 or more")
        });
        self.check_family(&mut found);
        if let Some(yarn) = &self.yarn {
            check_yarn(yarn, self.rope_theta, &mut found);
        }
        if let Some(mla) = &self.mla {
            self.check_mla(mla, &mut found);
        }
        if let Some(moe) = &self.moe {
            self.check_moe(moe, &mut found);
        }
        if let Some(dsa) = &self.dsa {
            self.check_dsa(dsa, &mut found);
        }
        found.0
    }

    /// What the family has, and has not.
    fn check_family(&self, found: &mut Problems) {
        let family = self.model_type;
        let is_moe = matches!(family, ModelType::Mixtral | ModelType::Qwen3Moe);
        let is_sparse = matches!(family, ModelType::DeepseekV32 | ModelType::GlmMoeDsa);
        let mut part = |name: &str, is_there: bool, belongs: bool| {
            found.check(is_there == belongs, || {
                let verb = if belongs { "needs" } else { "has no" };
                format!("model_type {} {verb} {name}", family.name())
            });
        };
        part("mla", self.mla.is_some(), family.is_deepseek());
        part("moe", self.moe.is_some(), is_moe || family.is_deepseek());
        part("qkv_bias", self.qkv_bias, family == ModelType::Qwen2);
        let has_qk_norm = matches!(family, ModelType::Qwen3 | ModelType::Qwen3Moe);
        part("qk_norm", self.qk_norm, has_qk_norm);
        // The grouped-query families take an indexer or leave it.
        if family.is_deepseek() {
            part("dsa", self.dsa.is_some(), is_sparse);
        }
    }

    fn check_mla(&self, mla: &MlaConfig, found: &mut Problems) {
        found.positive(&[
            ("q_lora_rank", mla.q_lora_rank.unwrap_or(1)),
            ("kv_lora_rank", mla.kv_lora_rank),
            ("qk_nope_head_dim", mla.qk_nope_head_dim),
            ("qk_rope_head_dim", mla.qk_rope_head_dim),
            ("v_head_dim", mla.v_head_dim),
        ]);
        found.check(self.head_dim == mla.qk_rope_head_dim, || {
            format!(
                "head_dim ({}) must be qk_rope_head_dim ({}): only that part of a head is rotated",
                self.head_dim, mla.qk_rope_head_dim
            )
        });
        let family = self.model_type;
        // DeepSeek-V3's config has a key for it, the others' have none.
        found.check(
            mla.rope_interleave || family == ModelType::DeepseekV3,
            || {
                format!(
                    "mla.rope_interleave must be true for model_type {}",
                    family.name()
                )
            },
        );
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        found.check(heads == kv_heads, || {
            format!(
                "num_key_value_heads ({kv_heads}) must be num_attention_heads ({heads}) with MLA"
            )
        });
    }

    fn check_moe(&self, moe: &MoeConfig, found: &mut Problems) {
        let (experts, top_k) = (moe.num_experts, moe.num_experts_per_tok);
        found.check((1..=experts).contains(&top_k), || {
            format!(
                "num_experts_per_tok ({top_k}) must lie between 1 and the number of experts ({experts})"
            )
        });
        found.check(experts <= u16::MAX as usize, || {
            format!("{experts} experts; at most 65535 are supported")
        });
        found.positive(&[(
            "moe_intermediate_size",
            moe.moe_intermediate_size.unwrap_or(1),
        )]);
        let (dense, layers) = (moe.first_k_dense_replace, self.num_hidden_layers);
        found.check(dense < layers.max(1), || {
            format!(
                "first_k_dense_replace ({dense}) leaves none of num_hidden_layers ({layers}) its experts"
            )
        });
        found.check(
            moe.routed_scaling_factor.is_finite() && moe.routed_scaling_factor > 0.0,
            || {
                let factor = moe.routed_scaling_factor;
                format!("routed_scaling_factor ({factor}) must be a positive number")
            },
        );
        check_groups(moe, found);
        self.check_gate_of_family(moe, found);
    }

    /// What the checkpoint format of the family leaves open about its gate.
    fn check_gate_of_family(&self, moe: &MoeConfig, found: &mut Problems) {
        let family = self.model_type;
        let mut fixed = |key: &str, holds: bool, value: &str| {
            found.check(holds, || {
                format!("{key} must be {value} for model_type {}", family.name())
            });
        };
        if family.is_deepseek() {
            let is_sigmoid = moe.scoring_func == ScoringFunc::Sigmoid;
            fixed("scoring_func", is_sigmoid, "sigmoid");
            fixed("correction_bias", moe.correction_bias, "true");
            return;
        }
        fixed("correction_bias", !moe.correction_bias, "false");
        fixed("n_shared_experts", moe.n_shared_experts == 0, "0");
        let no_dense = moe.first_k_dense_replace == 0;
        fixed("first_k_dense_replace", no_dense, "0");
        fixed("n_group", moe.n_group == 1, "1");
        let unscaled = moe.routed_scaling_factor == 1.0;
        fixed("routed_scaling_factor", unscaled, "1");
        if family == ModelType::Mixtral {
            fixed("norm_topk_prob", moe.norm_topk_prob, "true");
            let width = self.expert_intermediate_size();
            let same = width == self.intermediate_size;
            fixed("moe_intermediate_size", same, "intermediate_size");
        } else {
            let is_softmax = moe.scoring_func == ScoringFunc::Softmax;
            fixed("scoring_func", is_softmax, "softmax");
        }
    }

    fn check_dsa(&self, dsa: &DsaConfig, found: &mut Problems) {
        let dim = dsa.index_head_dim;
        found.check(dsa.index_n_heads > 0 && dsa.index_topk > 0, || {
            "index_n_heads and index_topk must be at least 1".to_string()
        });
        found.check(dim > 0 && dim.is_multiple_of(2), || {
            format!("index_head_dim ({dim}) must be even and at least 2")
        });
        let interleaves = self.model_type == ModelType::GlmMoeDsa;
        found.check(dsa.rope_interleave == interleaves, || {
            let family = self.model_type.name();
            format!("dsa.rope_interleave must be {interleaves} for model_type {family}")
        });
        found.check(
            dsa.quantization.is_none() || dim.is_power_of_two(),
            || format!("index_head_dim ({dim}) must be a power of two for the Hadamard transform of dsa.quantization"),
        );
        if let Some(mla) = &self.mla {
            found.check(mla.q_lora_rank.is_some(), || {
                "dsa with mla needs q_lora_rank: the indexer's queries come from that latent"
                    .to_string()
            });
            found.check(dim >= mla.qk_rope_head_dim, || {
                let rope = mla.qk_rope_head_dim;
                format!("index_head_dim ({dim}) is less than qk_rope_head_dim ({rope})")
            });
        }
    }
}

fn check_groups(moe: &MoeConfig, found: &mut Problems) {
    let (experts, groups, kept) = (moe.num_experts, moe.n_group, moe.topk_group);
    if groups == 0 || !experts.is_multiple_of(groups) {
        found.0.push(format!(
            "n_group ({groups}) does not divide the number of experts ({experts})"
        ));
        return;
    }
    found.check((1..=groups).contains(&kept), || {
        format!("topk_group ({kept}) must lie between 1 and n_group ({groups})")
    });
    let (size, top_k) = (experts / groups, moe.num_experts_per_tok);
    found.check(groups == 1 || size >= 2, || {
        format!("n_group ({groups}) leaves one expert a group; groups are ranked by their best two")
    });
    found.check(top_k <= kept * size, || {
        format!(
            "num_experts_per_tok ({top_k}) exceeds the {} experts of topk_group ({kept}) groups",
            kept * size
        )
    });
}

fn check_yarn(yarn: &YarnConfig, rope_theta: f64, found: &mut Problems) {
    found.check(yarn.factor.is_finite() && yarn.factor > 0.0, || {
        format!("yarn.factor ({}) must be a positive number", yarn.factor)
    });
    found.positive(&[(
        "yarn.original_max_position_embeddings",
        yarn.original_max_position_embeddings,
    )]);
    found.check(
        yarn.beta_slow > 0.0 && yarn.beta_fast >= yarn.beta_slow && yarn.beta_fast.is_finite(),
        || {
            format!(
                "yarn.beta_fast ({}) must be at least yarn.beta_slow ({}), which must be positive",
                yarn.beta_fast, yarn.beta_slow
            )
        },
    );
    found.check(rope_theta > 1.0, || {
        format!("rope_theta ({rope_theta}) must exceed 1 with yarn")
    });
}
