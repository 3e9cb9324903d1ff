//! Techniques that are on and yet can't act in this run: said at the start, never left to be found out.
//!
//! What depends on what is sampled (did every group earn equal rewards, was every key selected) is in the
//! metrics of each step.

use model::ModelConfig;

use crate::config::{GrpoConfig, RunConfig, StageConfig};

/// A sentence for every technique of `config` that can't change anything on a policy of `shape`; each names
/// its key and what would make it act.
pub fn without_effect(config: &RunConfig, shape: &ModelConfig) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(dsa) = &shape.dsa
        && dsa.index_topk >= shape.max_position_embeddings
    {
        found.push(format!(
            "index_topk ({}) is not below the context of {} tokens: sparse attention selects every key, as dense \
             attention would",
            dsa.index_topk, shape.max_position_embeddings
        ));
    }
    for (index, stage) in config.stages.iter().enumerate() {
        if let StageConfig::Grpo(stage) = stage {
            let path = format!("stages[{index}].grpo");
            let idle = idle_in_grpo(config, shape, stage);
            found.extend(
                idle.into_iter()
                    .map(|sentence| format!("{path}.{sentence}")),
            );
        }
    }
    found
}

fn idle_in_grpo(config: &RunConfig, shape: &ModelConfig, stage: &GrpoConfig) -> Vec<String> {
    let mut found = Vec::new();
    if stage.mini_batches == 1 {
        let mask = stage.off_policy_delta.map_or(String::new(), |delta| {
            format!("off_policy_delta ({delta}) and ")
        });
        found.push(format!(
            "mini_batches is 1, so every sample trains the policy that drew it: {mask}clip_epsilon ({}) can act on \
             nothing but rounding between sampler and trainer",
            stage.clip_epsilon
        ));
    }
    if stage.keep_routing && shape.moe.is_none() {
        found.push("keep_routing has nothing to keep: the policy has no experts".to_string());
    }
    let sampling = &config.sampling;
    if stage.keep_sampling_mask && !sampling.truncates() {
        found.push(
            "keep_sampling_mask has nothing to keep: sampling.top_k, top_p and min_p drop no token"
                .to_string(),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PolicySource;
    use crate::config_file;

    fn config(more: &str, grpo: &str) -> RunConfig {
        let text = format!(
            r#"(
            name: "a",
            model: (source: Random(
                vocab_size: 260, hidden_size: 8, intermediate_size: 16, num_hidden_layers: 1,
                num_attention_heads: 2, num_key_value_heads: 1, head_dim: 4, rms_norm_eps: 1e-5,
                rope_theta: 1e4, max_position_embeddings: 64, tie_word_embeddings: true,
                eos_token_ids: [2], {more}
            )),
            environments: [(family: sums)],
            stages: [grpo(
                steps: 5, prompts_per_step: 4, group_size: 8, learning_rate: (peak: 1e-5), {grpo}
            )],
        )"#
        );
        config_file::parse(&text, "test").unwrap_or_else(|error| panic!("{error}"))
    }

    fn found(config: &RunConfig) -> Vec<String> {
        let PolicySource::Random(shape) = &config.model.source else {
            panic!("a random policy");
        };
        without_effect(config, shape)
    }

    #[test]
    fn defaults_on_a_dense_policy_name_everything_that_is_idle() {
        let found = found(&config("", ""));
        let starts = [
            "stages[0].grpo.mini_batches is 1, so every sample trains the policy that drew it: off_policy_delta (0.1) and clip",
            "stages[0].grpo.keep_routing has nothing to keep",
            "stages[0].grpo.keep_sampling_mask has nothing to keep",
        ];
        assert_eq!(found.len(), starts.len(), "{found:?}");
        for (sentence, start) in found.iter().zip(starts) {
            assert!(sentence.starts_with(start), "{sentence}");
        }
    }

    #[test]
    fn what_acts_or_is_off_is_not_named() {
        let moe = "moe: (num_experts: 4, num_experts_per_tok: 2, scoring_func: softmax), \
                   dsa: (index_n_heads: 2, index_head_dim: 4, index_topk: 63),";
        let mut acting = config(moe, "mini_batches: 2,");
        acting.sampling.top_p = 0.9;
        assert_eq!(found(&acting), Vec::<String>::new());
        let off = "off_policy_delta: None, keep_routing: false, keep_sampling_mask: false,";
        let found = found(&config("", off));
        assert_eq!(found.len(), 1, "the clip is always on: {found:?}");
    }

    #[test]
    fn selecting_every_key_is_named() {
        let dsa = "dsa: (index_n_heads: 2, index_head_dim: 4, index_topk: 64),";
        let found = found(&config(dsa, "mini_batches: 2,"));
        let start = "index_topk (64) is not below the context of 64 tokens";
        assert!(found[0].starts_with(start), "{found:?}");
    }
}
