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

/// That selection selects everything, where no sequence of the run's first prompts can grow beyond
/// `index_topk`; `longest_prompt` is the longest of those, in tokens.
pub fn selects_every_key(
    config: &RunConfig,
    shape: &ModelConfig,
    longest_prompt: usize,
) -> Option<String> {
    let topk = shape.dsa.as_ref()?.index_topk;
    let longest = longest_prompt + config.sampling.max_new_tokens;
    // Beyond the context, `without_effect` says the same without looking at prompts.
    (topk >= longest && topk < shape.max_position_embeddings).then(|| {
        format!(
            "index_topk ({topk}) is not below the longest sequence that the first prompts allow ({longest_prompt} \
             tokens and sampling.max_new_tokens = {}): sparse attention selects every key, as dense attention would",
            config.sampling.max_new_tokens
        )
    })
}

fn idle_in_grpo(config: &RunConfig, shape: &ModelConfig, stage: &GrpoConfig) -> Vec<String> {
    let mut found = Vec::new();
    // A stage of one step has nothing to sample ahead.
    let is_ahead = stage.asynchronous.is_some() && stage.steps > 1;
    if stage.mini_batches == 1 && !is_ahead {
        let mask = stage.off_policy_delta.map_or(String::new(), |delta| {
            format!("off_policy_delta ({delta}) and ")
        });
        found.push(format!(
            "mini_batches is 1, so every sample trains the policy that drew it: {mask}clip_epsilon ({}) can act on \
             nothing but rounding between sampler and trainer",
            stage.clip_epsilon
        ));
    }
    if stage.asynchronous.is_some() && stage.steps == 1 {
        found.push("asynchronous has nothing to sample ahead: the stage has one step".to_string());
    }
    if stage.keep_routing {
        match &shape.moe {
            None => found
                .push("keep_routing has nothing to keep: the policy has no experts".to_string()),
            Some(moe) if moe.num_experts_per_tok >= moe.num_experts => found.push(format!(
                "keep_routing has nothing to keep: every token goes to all {} experts",
                moe.num_experts
            )),
            Some(_) => {}
        }
    }
    let sampling = &config.sampling;
    let drops = sampling.top_p < 1.0
        || sampling.min_p > 0.0
        || (1..shape.vocab_size).contains(&sampling.top_k);
    if stage.keep_sampling_mask && !drops {
        found.push(
            "keep_sampling_mask has nothing to keep: sampling.top_k, top_p and min_p drop no token"
                .to_string(),
        );
    }
    let scaled = config.environments.iter().find(|e| e.kl_scale != 1.0);
    if let (0.0, Some(environment)) = (stage.kl_beta, scaled) {
        found.push(format!(
            "kl_beta is 0, so the kl_scale ({}) of an environment scales nothing",
            environment.kl_scale
        ));
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
    fn techniques_whose_numbers_leave_nothing_to_do_are_named() {
        let moe = "moe: (num_experts: 4, num_experts_per_tok: 4, scoring_func: softmax),";
        let mut config = config(moe, "mini_batches: 2, kl_beta: 0.0,");
        config.sampling.top_k = 260;
        config.environments[0].kl_scale = 3.0;
        let idle = found(&config);
        let parts = ["all 4 experts", "drop no token", "kl_scale (3)"];
        assert_eq!(idle.len(), parts.len(), "{idle:?}");
        for (sentence, part) in idle.iter().zip(parts) {
            assert!(sentence.contains(part), "{sentence}");
        }
        // With one less, each acts.
        let moe = "moe: (num_experts: 4, num_experts_per_tok: 3, scoring_func: softmax),";
        let mut config = self::config(moe, "mini_batches: 2, kl_beta: 0.1,");
        config.sampling.top_k = 259;
        config.environments[0].kl_scale = 3.0;
        assert_eq!(found(&config), Vec::<String>::new());
    }

    #[test]
    fn a_single_step_has_no_age() {
        let mut config = config("", "asynchronous: (max_policy_age: 2),");
        if let StageConfig::Grpo(grpo) = &mut config.stages[0] {
            grpo.steps = 1;
        }
        let text = found(&config);
        assert!(text[0].contains("mini_batches is 1"), "{text:?}");
        assert!(
            text[1].starts_with("stages[0].grpo.asynchronous"),
            "{text:?}"
        );
    }

    #[test]
    fn selecting_every_key_of_the_runs_own_sequences_is_named() {
        let dsa = "dsa: (index_n_heads: 2, index_head_dim: 4, index_topk: 40),";
        let config = config(dsa, "mini_batches: 2,");
        let PolicySource::Random(shape) = &config.model.source else {
            panic!("a random policy");
        };
        // 24 new tokens: 16 of a prompt fill 40 keys, 17 exceed them.
        let sentence = selects_every_key(&config, shape, 16).expect("nothing is left out");
        assert!(sentence.contains("16 tokens and sampling.max_new_tokens = 24"));
        assert_eq!(selects_every_key(&config, shape, 17), None);
    }

    #[test]
    fn selecting_every_key_is_named() {
        let dsa = "dsa: (index_n_heads: 2, index_head_dim: 4, index_topk: 64),";
        let found = found(&config(dsa, "mini_batches: 2,"));
        let start = "index_topk (64) is not below the context of 64 tokens";
        assert!(found[0].starts_with(start), "{found:?}");
    }
}
