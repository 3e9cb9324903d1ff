//! Tests of `config_problems`.

use crate::config::RunConfig;
use crate::config_file;

fn sound() -> RunConfig {
    let text = r#"(
            name: "a",
            model: (source: Path("m.gguf"), dsa: (index_n_heads: 4, index_head_dim: 16, index_topk: 8)),
            environments: [(family: sums)],
            stages: [
                indexer_warmup(steps: 3, learning_rate: (peak: 1e-3)),
                grpo(steps: 5, prompts_per_step: 4, group_size: 8, learning_rate: (peak: 1e-5)),
            ],
        )"#;
    config_file::parse(text, "test").unwrap_or_else(|error| panic!("{error}"))
}

fn problems(overrides: &[&str]) -> Vec<String> {
    let mut config = sound();
    for argument in overrides {
        config =
            config_file::with_override(&config, argument).unwrap_or_else(|error| panic!("{error}"));
    }
    config.validate().err().unwrap_or_default()
}

#[test]
fn sound_config_has_no_problems() {
    assert_eq!(problems(&[]), Vec::<String>::new());
}

#[test]
fn each_senseless_value_is_named_by_its_key() {
    for (argument, start) in [
        ("name=", "name is \"\""),
        ("name=../up", "name is \"../up\""),
        ("name=.hidden", "name is \".hidden\""),
        ("environments=[]", "environments is empty"),
        ("environments[0].weight=0", "environments[0].weight is 0"),
        ("environments[0].weight=-1", "environments[0].weight is -1"),
        (
            "environments[0].weight=NaN",
            "environments[0].weight is NaN",
        ),
        (
            "environments[0].kl_scale=-1",
            "environments[0].kl_scale is -1",
        ),
        (
            "environments=[(family: sums), (family: sums, kl_scale: 2.0)]",
            "environments[1].kl_scale is 2, but an earlier entry gives sums at level 1 another",
        ),
        (
            "stages[1].grpo.max_invalid_share=1.5",
            "stages[1].grpo.max_invalid_share is 1.5; a share lies between 0 and 1",
        ),
        (
            "environments=[(dataset: (path: \"\", grader: exact))]",
            "environments[0].dataset.path is empty",
        ),
        (
            "environments=[(dataset: (path: \"a/x.jsonl\", grader: exact)), (dataset: (path: \"x.parquet\", grader: exact))]",
            "environments[1].dataset.name is \"x\", as that of an earlier entry",
        ),
        ("environments[0].level=0", "environments[0].level is 0"),
        (
            "environments[0].level=99",
            "environments[0].level is 99; sums has levels 1 to",
        ),
        (
            "sampling.temperature=-0.5",
            "sampling.temperature (-0.5) must",
        ),
        (
            "sampling.temperature=0",
            "sampling.temperature is 0; greedy",
        ),
        (
            "grading.timeout_secs=0",
            "grading.timeout_secs (0) must lie above 0",
        ),
        ("sampling.top_p=0", "sampling.top_p (0) must"),
        ("sampling.min_p=1", "sampling.min_p (1) must"),
        ("sampling.max_new_tokens=0", "sampling.max_new_tokens is 0"),
        ("max_batch_sequences=0", "max_batch_sequences is 0"),
        ("max_prefill_tokens=0", "max_prefill_tokens is 0"),
        ("cache_memory=bytes(0)", "cache_memory is bytes(0)"),
        ("cache_memory=share(1.5)", "cache_memory is share(1.5)"),
        ("micro_batch_tokens=0", "micro_batch_tokens is 0"),
        ("text=Files([])", "text.Files is empty"),
        ("stages=[]", "stages is empty"),
        (
            "stages[0].indexer_warmup.steps=0",
            "stages[0].indexer_warmup.steps is 0",
        ),
        (
            "stages[0].indexer_warmup.documents_per_step=0",
            "stages[0].indexer_warmup.documents_per_step is 0",
        ),
        (
            "stages[0].indexer_warmup.learning_rate.peak=0",
            "stages[0].indexer_warmup.learning_rate.peak is 0",
        ),
        (
            "stages[0].indexer_warmup.learning_rate.warmup_steps=4",
            "stages[0].indexer_warmup.learning_rate.warmup_steps is 4",
        ),
        (
            "stages[0].indexer_warmup.learning_rate.decay=cosine(floor: 2)",
            "stages[0].indexer_warmup.learning_rate.decay.cosine.floor is 2",
        ),
        (
            "stages[0].indexer_warmup.text=Files([])",
            "stages[0].indexer_warmup.text.Files is empty",
        ),
        (
            "stages[1].grpo.prompts_per_step=0",
            "stages[1].grpo.prompts_per_step is 0",
        ),
        (
            "stages[1].grpo.group_size=1",
            "stages[1].grpo.group_size is 1",
        ),
        (
            "stages[1].grpo.mini_batches=0",
            "stages[1].grpo.mini_batches is 0",
        ),
        (
            "stages[1].grpo.mini_batches=3",
            "stages[1].grpo.mini_batches is 3, which does not divide",
        ),
        (
            "stages[1].grpo.clip_epsilon=0",
            "stages[1].grpo.clip_epsilon is 0",
        ),
        (
            "stages[1].grpo.kl_beta=-1e-3",
            "stages[1].grpo.kl_beta is -0.001",
        ),
        (
            "stages[1].grpo.off_policy_delta=-0.1",
            "stages[1].grpo.off_policy_delta is -0.1",
        ),
        ("optimizer.betas[0]=1", "optimizer.betas[0] is 1"),
        ("optimizer.epsilon=0", "optimizer.epsilon is 0"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay is -1"),
        ("optimizer.max_grad_norm=0", "optimizer.max_grad_norm is 0"),
        ("evaluation.temperature=-1", "evaluation.temperature is -1"),
        ("checkpoints.keep=0", "checkpoints.keep is 0"),
        (
            "model.upcycle=(experts: 1, top_k: 1)",
            "model.upcycle.experts is 1",
        ),
        (
            "model.upcycle=(experts: 4, top_k: 5)",
            "model.upcycle.top_k is 5",
        ),
        ("model.dsa.index_n_heads=0", "model.dsa.index_n_heads is 0"),
        (
            "model.dsa.index_head_dim=15",
            "model.dsa.index_head_dim is 15",
        ),
        ("model.dsa.index_topk=0", "model.dsa.index_topk is 0"),
    ] {
        let found = problems(&[argument]);
        assert!(
            matches!(&found[..], [only] if only.starts_with(start)),
            "{argument} gave {found:?}, not one problem starting with {start:?}"
        );
    }
}

#[test]
fn indexer_stages_need_an_indexer() {
    assert_eq!(
        problems(&["model.dsa=None"]),
        [
            "stages[0].indexer_warmup trains the indexer, but the model has none; set model.dsa \
              or drop the stage"
        ]
    );
    // A model folder may bring its own; that shows when it is opened.
    assert!(problems(&["model.dsa=None", "model.source.Path=folder"]).is_empty());
}

#[test]
fn evaluation_without_prompts_contradicts_an_interval() {
    let found = problems(&["evaluation.prompts=0", "evaluation.every=5"]);
    assert!(found[0].starts_with("evaluation.every is 5"), "{found:?}");
    assert!(problems(&["evaluation.prompts=0"]).is_empty());
}

#[test]
fn random_model_problems_and_double_experts_are_found() {
    let shape = "(vocab_size: 258, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 2, \
            num_attention_heads: 4, num_key_value_heads: 3, head_dim: 16, rms_norm_eps: 1e-5, \
            rope_theta: 1e4, max_position_embeddings: 16, tie_word_embeddings: true, \
            bos_token_id: None, eos_token_ids: [257, 259], moe: (num_experts: 4, num_experts_per_tok: 2, \
            scoring_func: softmax))";
    let found = problems(&[
        &format!("model.source=Random{shape}"),
        "model.upcycle=(experts: 4, top_k: 2)",
    ]);
    let beginnings = [
        "model.source.Random: num_key_value_heads (3)",
        "model.source.Random.vocab_size is 258; the byte-level tokenizer needs 259",
        "model.source.Random.eos_token_ids is [257, 259]",
        "model.upcycle asks for experts",
        "sampling.max_new_tokens is 24",
    ];
    assert_eq!(found.len(), beginnings.len(), "{found:?}");
    for (problem, beginning) in found.iter().zip(beginnings) {
        assert!(problem.starts_with(beginning), "{problem}");
    }
}
