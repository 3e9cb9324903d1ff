//! `baleen doctor`: passes a sound run, fails one whose chat template is faulty, and says which.

use std::fs;

use serde_json::Value;

use crate::program;
use crate::refusal::spoil;
use crate::run_files::{TINY, text, train_tiny};

/// Exit code and what was said on standard output and error.
fn doctor(args: &[&str]) -> (i32, String, String) {
    let ended = program::finish(program::command(&[&["doctor"], args].concat()));
    (ended.code, ended.stdout, ended.stderr)
}

#[test]
fn a_sound_run_passes_and_every_check_has_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("findings.json");
    let (code, said, errors) = doctor(&[TINY, "--prompts", "4", "--json", text(&json)]);
    assert_eq!(code, 0, "{said}{errors}");
    for line in [
        "note    machine",
        "ok      memory",
        "ok      tokenizer",
        "ok      stop tokens          <|im_end|> (257)",
        "ok      chat template",
        "ok      rewards              sums 1: empty answer 0.00, question repeated 0.00, worked solution 1.00",
        "ok      prompts              4 prompts",
        "ok      record               16 samples",
        "ok      log-prob gap",
        "ok      routing",
        "ok      kept tokens",
        "ok      selected keys",
        "note    finished",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["passed"], true);
    let findings = report["findings"].as_array().unwrap();
    assert_eq!(
        findings.len() + 1,
        said.lines().count(),
        "a line a finding, and a last one: {said}"
    );
    assert!(said.ends_with("11 checks, 0 failed\n"), "{said}");
    let gap = findings
        .iter()
        .find(|f| f["check"] == "log-prob gap")
        .unwrap();
    assert_eq!(gap["state"], "ok");
    let mean = gap["figures"]["mean"].as_f64().unwrap();
    assert!(mean > 0.0 && mean < 1e-4, "{mean}");
}

#[test]
fn a_faulty_chat_template_fails_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    train_tiny(&run);
    let model = run.join("model");
    let source = format!("model.source=Path({:?})", text(&model));
    let (code, said, errors) = doctor(&[TINY, "--set", &source]);
    assert_eq!(code, 0, "{said}{errors}");

    // The prompt now opens an answer otherwise than a conversation shows it.
    let opening = "<|im_start|>assistant";
    spoil(
        &model,
        "tokenizer_config.json",
        opening,
        "<|im_start|>assistant:",
    );
    let json = dir.path().join("findings.json");
    let (code, said, errors) = doctor(&[TINY, "--set", &source, "--json", text(&json)]);
    assert_eq!(code, 1, "{said}{errors}");
    assert!(said.contains("FAILED  chat template"), "{said}");
    assert!(
        said.contains("cause: the chat template rewrites or strips"),
        "{said}"
    );
    assert!(
        said.contains("do:    mend chat_template in tokenizer_config.json"),
        "{said}"
    );
    assert!(
        said.contains("ok      log-prob gap"),
        "all else is checked too: {said}"
    );
    assert!(errors.contains("1 check failed"), "{errors}");
    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["passed"], false);
}

#[test]
fn a_run_that_does_not_fit_is_not_played() {
    let (code, said, errors) = doctor(&[TINY, "--set", "max_batch_sequences=2000000000"]);
    assert_eq!(code, 1, "{said}{errors}");
    assert!(said.contains("FAILED  memory"), "{said}");
    assert!(said.contains("note    play"), "{said}");
    assert!(!said.contains("log-prob gap"), "{said}");
}

#[test]
fn what_is_no_run_is_a_wrong_usage() {
    for (args, part) in [
        (vec!["configs/nowhere.ron"], "configs/nowhere.ron"),
        (vec![TINY, "--prompts", "0"], "--prompts 0"),
        (vec![TINY, "--set", "sampling.top_p=2"], "top_p"),
    ] {
        let (code, said, errors) = doctor(&args);
        assert_eq!(code, 2, "{said}{errors}");
        assert!(errors.contains(part), "{errors}");
    }
}
