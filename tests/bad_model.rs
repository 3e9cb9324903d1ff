//! Models that are missing, damaged or don't fit together, and token ids that don't fit a model.

use std::fs;
use std::path::{Path, PathBuf};

use crate::program;
use crate::refusal::{WRONG_INPUT, refused, spoil, train_refused};
use crate::run_files::{TINY, text};

#[test]
fn a_missing_model_is_named_and_the_run_may_be_started_anew() {
    let set = ["model.source=Path(\"models/nowhere\")"];
    train_refused(
        &set,
        WRONG_INPUT,
        &["models/nowhere does not exist", "scripts/setup.sh"],
    );
}

#[test]
fn a_truncated_gguf_is_named() {
    let whole = program::workspace().join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(
        whole.exists(),
        "{} is missing: run scripts/setup.sh",
        whole.display()
    );
    let dir = tempfile::tempdir().unwrap();
    // Cut among the vocabulary, and among the tensors.
    for megabytes in [1, 20] {
        let cut = dir.path().join("cut.gguf");
        let mut start = fs::File::open(&whole).unwrap();
        let mut start = std::io::Read::take(&mut start, megabytes << 20);
        std::io::copy(&mut start, &mut fs::File::create(&cut).unwrap()).unwrap();
        let target = dir.path().join("model");
        let parts = [text(&cut), "download it again"];
        refused(&["import", text(&cut), text(&target)], WRONG_INPUT, &parts);
        assert!(!target.exists(), "nothing was to be written");
        let source = format!("model.source=Path({:?})", text(&cut));
        let dsa = "model.dsa=(index_n_heads: 2, index_head_dim: 8, index_topk: 8)";
        train_refused(&[&source, dsa], WRONG_INPUT, &parts);
    }
}

/// A model folder as a run exports it, to be spoilt.
fn model_folder(dir: &Path) -> PathBuf {
    let run = dir.join("source");
    let one_step = "stages=[sft(steps: 1, learning_rate: (peak: 1e-3))]";
    let less = "evaluation=(prompts: 0)";
    let train = [
        "train",
        TINY,
        "--run",
        text(&run),
        "--set",
        one_step,
        "--set",
        less,
    ];
    program::succeed(&train);
    run.join("model")
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_folder(dir.path());
    spoil(
        &model,
        "config.json",
        "\"hidden_size\": 32",
        "\"hidden_size\": 64",
    );
    let source = format!("model.source=Path({:?})", text(&model));
    let tensor = "model.embed_tokens.weight";
    let parts = [
        "model.safetensors",
        tensor,
        "[259, 32]",
        "[259, 64]",
        "config",
    ];
    train_refused(&[&source], WRONG_INPUT, &parts);
}

#[test]
fn a_tokenizer_without_the_tokens_it_needs_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_folder(dir.path());
    let source = format!("model.source=Path({:?})", text(&model));
    let tokenizer = "tokenizer_config.json";

    spoil(
        &model,
        tokenizer,
        "\"eos_token\": \"<|im_end|>\"",
        "\"eos_token\": \"</s>\"",
    );
    let parts = ["tokenizer", "eos_token '</s>'", "not in the vocabulary"];
    train_refused(&[&source], WRONG_INPUT, &parts);

    spoil(
        &model,
        tokenizer,
        "\"eos_token\": \"</s>\"",
        "\"unused\": 0",
    );
    for file in ["config.json", "generation_config.json"] {
        spoil(&model, file, "\"eos_token_id\": 257", "\"unused\": 0");
    }
    train_refused(&[&source], WRONG_INPUT, &["eos_token_id", "add one"]);

    spoil(
        &model,
        "config.json",
        "\"unused\": 0",
        "\"eos_token_id\": 257",
    );
    spoil(&model, tokenizer, "\"chat_template\"", "\"no_template\"");
    train_refused(
        &[&source],
        WRONG_INPUT,
        &["no chat template", "chat_template.jinja"],
    );
}

#[test]
fn wrong_lines_to_score_are_named_by_number() {
    let dir = tempfile::tempdir().unwrap();
    let model = model_folder(dir.path());
    let input = dir.path().join("input.jsonl");
    let long = format!("{{\"tokens\": {:?}}}", [1; 257]);
    for (line, problem) in [
        (
            "{\"tokens\": [1, 900]}",
            "token 900 is outside the vocabulary of 259",
        ),
        ("{\"tokens\": [-1]}", "not of the form"),
        ("{\"tokens\": []}", "no tokens"),
        (&long, "257 tokens, but the model's context has 256"),
    ] {
        fs::write(&input, format!("{{\"tokens\": [1, 2]}}\n{line}\n")).unwrap();
        let score = [
            "score",
            text(&model),
            "--input",
            text(&input),
            "--threads",
            "1",
        ];
        refused(
            &score,
            WRONG_INPUT,
            &[&format!("{}:2: ", text(&input)), problem],
        );
    }
    let prompt = "a".repeat(300);
    let generate = [
        "generate",
        text(&model),
        "--prompt",
        &prompt,
        "--threads",
        "1",
    ];
    refused(
        &generate,
        WRONG_INPUT,
        &["context of 256", "max_new_tokens"],
    );
}
