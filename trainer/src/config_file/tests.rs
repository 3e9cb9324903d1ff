//! Tests of `config_file`.

use super::*;

const SOUND: &str = r#"(
    name: "a",
    model: (source: Path("model"), dsa: (index_n_heads: 4, index_head_dim: 16, index_topk: 8)),
    environments: [(family: sums)],
    stages: [
        sft(steps: 1, learning_rate: (peak: 1e-3)),
        grpo(
            steps: 5,
            prompts_per_step: 4,
            group_size: 8,
            learning_rate: (peak: 1e-5, decay: cosine(floor: 0.1)),
        ),
    ],
)
"#;

/// The message for [`SOUND`] with `from` replaced by `to`.
fn message(from: &str, to: &str) -> String {
    let text = SOUND.replace(from, to);
    assert_ne!(text, SOUND, "nothing was replaced");
    parse(&text, "bad.ron")
        .expect_err("must be rejected")
        .to_string()
}

fn override_message(argument: &str) -> String {
    let config = parse(SOUND, "good.ron").expect("sound");
    with_override(&config, argument)
        .expect_err("must be rejected")
        .to_string()
}

/// Message of [`load`] for a file with this text.
fn load_message(text: &str, overrides: &[&str]) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("bad.ron");
    std::fs::write(&path, text).expect("written");
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    load(&path, &overrides)
        .expect_err("must be rejected")
        .to_string()
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no {part:?} in:\n{message}");
    }
}

#[test]
fn misspelt_key_is_located_and_corrected() {
    assert_eq!(
        message("group_size: 8", "grop_size: 8"),
        "bad.ron:10:13: unknown key `grop_size` in `stages[1].grpo`
    |
 10 |             grop_size: 8,
    |             ^^^^^^^^^ did you mean `group_size`?
    = valid here: steps, prompts_per_step, group_size, mini_batches, learning_rate, \
             clip_epsilon, kl_beta, off_policy_delta, keep_routing, keep_sampling_mask, \
             train_indexer, max_invalid_share, asynchronous"
    );
}

#[test]
fn misspelt_stage_and_family_list_the_valid_ones() {
    assert_says(
        &message("sft(", "sftt("),
        &[
            "bad.ron:6:9",
            "`stages[0]` can't be `sftt`",
            "did you mean `sft`?",
            "indexer_warmup",
        ],
    );
    assert_says(
        &message("family: sums", "family: sum"),
        &[
            "bad.ron:4:29",
            "environments[0].family",
            "`sum`",
            "did you mean `sums`?",
            "countdown",
        ],
    );
}

#[test]
fn an_environment_is_a_family_or_a_dataset() {
    let dataset = r#"dataset: (path: "a.jsonl", grader: integer)"#;
    let config = parse(&SOUND.replace("family: sums", dataset), "good.ron").expect("sound");
    let text = to_ron(&config);
    assert!(
        text.contains("grader: integer,") && !text.contains("family"),
        "{text}"
    );
    assert_eq!(parse(&text, "resolved").expect("sound"), config);
    let text = to_ron(&parse(SOUND, "good.ron").expect("sound"));
    assert!(
        text.contains("family: sums,") && !text.contains("dataset"),
        "{text}"
    );

    let instead = |entry: &str| message("family: sums", entry);
    for (entry, problem) in [
        (
            "weight: 2.0",
            "an environment needs a `family`, a `dataset` or a `server` in `environments",
        ),
        (
            &format!("family: sums, {dataset}"),
            "a `family`, a `dataset` or a `server`, one alone",
        ),
        (
            &format!("{dataset}, level: 2"),
            "`level` belongs to a family",
        ),
        (
            r#"server: (name: "a"), level: 2"#,
            "one of `command`, `socket` and `url`",
        ),
        (
            r#"server: (name: "a", command: ["b"]), mcp: [(name: "c", command: ["d"])]"#,
            "`mcp` gives tools to the tasks of a family or a dataset",
        ),
    ] {
        assert_says(&instead(entry), &["bad.ron:4:", problem]);
    }
    assert_says(
        &instead("familie: sums"),
        &[
            "bad.ron:4:21",
            "did you mean `family`?",
            "valid here: family, level, dataset, server, mcp, rubric, weight, kl_scale",
        ],
    );
    assert_says(
        &instead(r#"dataset: (path: "a.jsonl", grader: integr)"#),
        &[
            "`environments[0].dataset.grader` can't be `integr`",
            "did you mean `integer`?",
            "exact, choice",
        ],
    );
    assert_says(
        &instead(r#"dataset: (path: "a.jsonl", grader: exact, hold_out: "b.jsonl")"#),
        &[
            "unknown key `hold_out` in `environments[0].dataset`",
            "did you mean `held_out`?",
        ],
    );
    assert_says(
        &instead(r#"dataset: (grader: exact)"#),
        &["key `path` is missing in `environments[0].dataset`"],
    );
}

#[test]
fn misspelt_key_of_a_decay_or_a_random_model_is_not_ignored() {
    assert_says(
        &message("floor: 0.1", "floor: 0.1, flor: 1"),
        &[
            "bad.ron:11:67",
            "unknown key `flor`",
            "did you mean `floor`?",
        ],
    );
    assert_says(
        &message("Path(\"model\")", "Random(vocab_sise: 3)"),
        &[
            "bad.ron:3:28",
            "`vocab_sise` in `model.source.Random`",
            "did you mean `vocab_size`?",
        ],
    );
}

#[test]
fn a_far_off_key_gets_no_suggestion() {
    let message = message("name: \"a\",", "name: \"a\", zzzzzzzzzz: 1,");
    assert_says(
        &message,
        &["unknown key `zzzzzzzzzz`", "valid here: name, seed"],
    );
    assert!(!message.contains("did you mean"), "{message}");
}

#[test]
fn wrong_types_name_key_position_and_what_is_wanted() {
    for (from, to, parts) in [
        (
            "steps: 1",
            "steps: ten",
            [
                "bad.ron:6:20",
                "`stages[0].sft.steps`",
                "whole number, found `ten`",
            ],
        ),
        (
            "steps: 1",
            "steps: 1.5",
            [
                "bad.ron:6:20",
                "`stages[0].sft.steps`",
                "whole number, found `1.5`",
            ],
        ),
        (
            "steps: 1",
            "steps: -1",
            [
                "bad.ron:6:20",
                "`stages[0].sft.steps`",
                "must not be negative, found `-1`",
            ],
        ),
        (
            "peak: 1e-3",
            "peak: \"high\"",
            [
                "bad.ron:6:45",
                "`stages[0].sft.learning_rate.peak`",
                "a number, found `\"high\"`",
            ],
        ),
        (
            "(peak: 1e-3)",
            "1e-3",
            [
                "bad.ron:6:38",
                "`stages[0].sft.learning_rate`",
                "parentheses",
            ],
        ),
        (
            "name: \"a\"",
            "name: a",
            ["bad.ron:2:11", "`name`", "text in double quotes, found `a`"],
        ),
        (
            "[(family: sums)]",
            "(family: sums)",
            ["bad.ron:4:19", "`environments`", "list in square brackets"],
        ),
        (
            "family: sums",
            "family: \"sums\"",
            ["bad.ron:4:29", "`environments[0].family`", "sums, products"],
        ),
        (
            "Path(\"model\")",
            "\"model\"",
            ["bad.ron:3:21", "`model.source`", "valid here: Path, Random"],
        ),
        (
            "group_size: 8",
            "group_size: 8, keep_routing: 1",
            [
                "bad.ron:10:42",
                "`stages[1].grpo.keep_routing`",
                "true or false",
            ],
        ),
    ] {
        assert_says(&message(from, to), &parts);
    }
}

#[test]
fn broken_syntax_is_located() {
    assert_says(
        &message("name: \"a\",", "name: \"a\""),
        &["bad.ron:3:5", "comma is missing"],
    );
    assert_says(
        &message("    ],\n)", "    ],\n"),
        &["bad.ron:1:1:", "before this bracket is closed"],
    );
    assert_says(
        &message("Path(\"model\")", "Path(\"model)"),
        &["bad.ron:3:", "closing quote"],
    );
}

#[test]
fn missing_and_repeated_keys_are_named() {
    assert_says(
        &message("sft(steps: 1, ", "sft("),
        &["bad.ron:6:12", "key `steps` is missing in `stages[0].sft`"],
    );
    assert_says(
        &message("name: \"a\",", "name: \"a\", name: \"b\","),
        &["bad.ron:2:16", "key `name` is given twice"],
    );
}

#[test]
fn written_out_config_parses_back_equal() {
    let config = parse(SOUND, "good.ron").expect("sound");
    let text = to_ron(&config);
    assert_eq!(parse(&text, "resolved").expect("sound"), config);
    assert!(text.contains("off_policy_delta: 0.1,"), "{text}");
}

#[test]
fn overrides_replace_values_of_every_type() {
    let mut config = parse(SOUND, "good.ron").expect("sound");
    for argument in [
        "seed=7",
        "stages[1].grpo.steps=9",
        "sampling.temperature = 0.7",
        "name=other",
        "system_prompt=Be brief, please.",
        "model.source.Path=models/b",
        "model.upcycle=(experts: 4, top_k: 2)",
        "model.upcycle.top_k=1",
        "stages[1].grpo.off_policy_delta=None",
        "stages[0].sft.learning_rate.decay=cosine(floor: 0.2)",
        "optimizer.betas[1]=0.99",
    ] {
        config = with_override(&config, argument).unwrap_or_else(|error| panic!("{error}"));
    }
    let text = to_ron(&config);
    for line in [
        "seed: 7,",
        "steps: 9,",
        "temperature: 0.7,",
        "name: \"other\",",
        "system_prompt: \"Be brief, please.\",",
        "source: Path(\"models/b\"),",
        "top_k: 1,",
        "off_policy_delta: None,",
        "floor: 0.2,",
        "betas: (0.9, 0.99),",
    ] {
        assert!(text.contains(line), "no {line} in:\n{text}");
    }
}

#[test]
fn bad_override_is_quoted_with_the_nearest_key() {
    assert_eq!(
        override_message("sampling.temprature=0.5"),
        "--set: unknown key `temprature` in `sampling`
  |
  | sampling.temprature=0.5
  |          ^^^^^^^^^^ did you mean `temperature`?
  = valid here: temperature, top_k, top_p, min_p, max_new_tokens"
    );
    assert_says(
        &override_message("stages[1].grpo.steps=ten"),
        &[
            "--set: `stages[1].grpo.steps` must be a whole number, found `ten`",
            "=ten",
            "  |                      ^^^",
        ],
    );
    assert_says(
        &override_message("stages[2].grpo.steps=1"),
        &["unknown key `[2]` in `stages`", "valid here: [0], [1]"],
    );
    assert_says(
        &override_message("stages[0].grpo.steps=1"),
        &["unknown key `grpo` in `stages[0]`", "valid here: sft"],
    );
    assert_says(
        &override_message("model.upcycle.experts=4"),
        &[
            "`model.upcycle` is None",
            "set it as a whole, model.upcycle=...",
        ],
    );
    assert_says(
        &override_message("model.upcycle=(experts: 4, topk: 2)"),
        &[
            "unknown key `topk` in `model.upcycle`",
            "did you mean `top_k`?",
        ],
    );
    assert_says(
        &override_message("seed"),
        &["`seed` is not of the form path=value"],
    );
    assert_says(
        &override_message("seed=1, name: \"x\""),
        &["`seed` must be a whole number"],
    );
}

#[test]
fn contradictions_are_reported_all_at_once_with_their_lines() {
    let text = SOUND
        .replace("group_size: 8", "group_size: 1")
        .replace("peak: 1e-3", "peak: -1e-3");
    assert_says(
        &load_message(&text, &["sampling.top_p=1.5"]),
        &[
            "bad.ron: 3 problems",
            "\n  - --set sampling.top_p=1.5: sampling.top_p (1.5) must",
            "\n  - line 6: stages[0].sft.learning_rate.peak is -0.001; it must be above 0",
            "\n  - line 10: stages[1].grpo.group_size is 1;",
        ],
    );
}

#[test]
fn every_config_of_the_project_is_sound() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).expect("configs/ is there") {
        let path = entry.expect("readable").path();
        if path.extension().is_some_and(|end| end == "ron") {
            let config = load(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(parse(&to_ron(&config), "resolved").expect("sound"), config);
            names.push(config.name);
        }
    }
    for name in ["smoke", "quickstart"] {
        assert!(names.iter().any(|found| found == name), "{names:?}");
    }
}

#[test]
fn missing_file_is_named() {
    let error = load(Path::new("no/such.ron"), &[]).expect_err("no such file");
    assert_eq!(error.to_string(), "can't read config no/such.ron");
}
