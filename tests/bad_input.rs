//! Configurations that can't be used, prompts that don't fit, and run folders that can't be written,
//! are in use or hold another run. Nothing of the user's may be lost.

use std::fs;
use std::path::{Path, PathBuf};

use crate::program::{self, Working};
use crate::refusal::{FAILED, WRONG_INPUT, refused, spoil, train_refused};
use crate::run_files::{TINY, checkpoints, files, global_step, results, text, train_tiny};

/// A copy of [`TINY`] with `from` replaced, in `folder`.
fn edited(folder: &Path, from: &str, to: &str) -> PathBuf {
    let tiny = fs::read_to_string(program::workspace().join(TINY)).expect("a file of the project");
    assert!(tiny.contains(from), "{from} is not in {TINY}");
    let path = folder.join("edited.ron");
    fs::write(&path, tiny.replacen(from, to, 1)).expect("written");
    path
}

#[test]
fn a_misspelt_key_is_named_with_its_place_and_the_nearest_one() {
    let dir = tempfile::tempdir().unwrap();
    let config = edited(dir.path(), "group_size: 8", "group_sise: 8");
    let run = dir.path().join("run");
    let parts = [
        "edited.ron:36:13: unknown key `group_sise`",
        "did you mean `group_size`?",
    ];
    refused(
        &["train", text(&config), "--run", text(&run)],
        WRONG_INPUT,
        &parts,
    );
    let parts = ["--set: ", "`temprature`", "did you mean `temperature`?"];
    let set = [
        "train",
        TINY,
        "--run",
        text(&run),
        "--set",
        "sampling.temprature=1",
    ];
    refused(&set, WRONG_INPUT, &parts);
    assert!(!run.exists(), "nothing was to be run");
}

#[test]
fn broken_syntax_and_a_missing_file_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = edited(dir.path(), "seed: 5,", "seed: 5");
    refused(
        &["train", text(&config)],
        WRONG_INPUT,
        &["edited.ron:5:", "comma"],
    );
    let absent = dir.path().join("absent.ron");
    refused(
        &["train", text(&absent)],
        WRONG_INPUT,
        &[text(&absent), "configs/"],
    );
    refused(&["train"], WRONG_INPUT, &["<CONFIG>"]);
}

#[test]
fn negative_and_contradictory_values_are_all_listed() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let config = edited(dir.path(), "steps: 12", "steps: -12");
    let train = ["train", text(&config), "--run", text(&run)];
    refused(
        &train,
        WRONG_INPUT,
        &["edited.ron:34:", "must not be negative", "-12"],
    );

    let train = |set: &[&str], parts: &[&str]| {
        let mut args = vec!["train", TINY, "--run", text(&run)];
        set.iter().for_each(|change| args.extend(["--set", change]));
        refused(&args, WRONG_INPUT, parts);
    };
    train(
        &[
            "optimizer.epsilon=-1",
            "stages[3].grpo.mini_batches=3",
            "evaluation.prompts=0",
        ],
        &[
            "3 problems",
            "optimizer.epsilon is -1; it must be above 0",
            "stages[3].grpo.mini_batches is 3, which does not divide prompts_per_step (8)",
            "evaluation.every is 4, but evaluation.prompts is 0",
        ],
    );
    // Before the run begins, not when the stage does.
    train(
        &["stages[2].sft.text=Files([\"/no/such/corpus.jsonl\"])"],
        &["/no/such/corpus.jsonl: No such file", "text to train on"],
    );
    train(
        &["model.source.Random.dsa=None"],
        &["stages[0].indexer_warmup trains the indexer, but the model has none"],
    );
    train(
        &[
            "model.source.Random.vocab_size=100",
            "model.source.Random.eos_token_ids=[900]",
        ],
        &[
            "vocab_size is 100; the byte-level tokenizer needs 259",
            "eos_token_ids is [900]",
        ],
    );
    train(
        &["environments[0].level=99"],
        &["environments[0].level is 99; sums has levels 1 to"],
    );
    assert!(!run.exists(), "nothing was to be run");
}

#[test]
fn a_prompt_longer_than_the_context_is_refused_with_what_to_lower() {
    let context = "model.source.Random.max_position_embeddings=40";
    let parts = [
        "context of 40",
        "`max_position_embeddings`",
        "lower `sampling.max_new_tokens`",
    ];
    train_refused(&[context], WRONG_INPUT, &parts);
}

#[test]
fn a_run_folder_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    let below = file.join("run");
    for run in [text(&below), "/proc/baleen-run"] {
        let parts = [run, "can't create", "hint: ", "--run"];
        refused(&["train", TINY, "--run", run], FAILED, &parts);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");

    let other = dir.path().join("thesis");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("thesis.txt"), "precious").unwrap();
    let parts = [text(&other), "holds no run", "--run"];
    refused(&["train", TINY, "--run", text(&other)], WRONG_INPUT, &parts);
    refused(
        &["resume", text(&other)],
        WRONG_INPUT,
        &[text(&other), "config.ron is missing"],
    );
    refused(
        &["status", text(&other)],
        WRONG_INPUT,
        &[text(&other), "config.ron is missing"],
    );
    assert_eq!(files(&other).len(), 1);
}

#[test]
fn a_run_folder_in_use_names_its_process_which_works_on() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let long = [
        "train",
        TINY,
        "--run",
        text(&run),
        "--set",
        "stages[3].grpo.steps=10000",
    ];
    let mut working = Working::start(&long, &dir.path().join("stderr"));
    assert!(
        working.wait_until(|| global_step(&run) >= 1),
        "{}",
        working.said()
    );
    let holder = format!("in use by process {}", working.id());
    let parts = [text(&run), &holder, "hint: wait for that process"];
    refused(&["resume", text(&run)], FAILED, &parts);
    refused(&["train", TINY, "--run", text(&run)], FAILED, &parts);
    let status = program::succeed(&["status", text(&run)]).stdout;
    assert!(
        status.contains(&format!("running: process {}", working.id())),
        "{status}"
    );
    let before = global_step(&run);
    assert!(
        working.wait_until(|| global_step(&run) > before),
        "{}",
        working.said()
    );
    assert!(working.kill());
}

#[test]
fn a_finished_run_is_neither_overwritten_nor_resumed_with_another_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    train_tiny(&run);
    let before = results(&run);
    let again = ["train", TINY, "--run", text(&run)];
    refused(
        &again,
        WRONG_INPUT,
        &["already holds a run", "baleen resume"],
    );

    let allowed =
        "checkpoints.*, evaluation.*, grading.* and a larger number of steps in the last stage may";
    let resume = |set: &str, parts: &[&str]| {
        refused(&["resume", text(&run), "--set", set], WRONG_INPUT, parts);
    };
    resume(
        "seed=6",
        &["seed was 5 and is now 6; it may not change", allowed],
    );
    resume(
        "stages[0].indexer_warmup.steps=9",
        &["stages[0].indexer_warmup.steps was 4", allowed],
    );
    resume("sede=6", &["unknown key `sede`", "did you mean `seed`?"]);
    assert_eq!(results(&run), before);

    // Edited by hand.
    spoil(&run, "config.ron", "seed: 5", "seed: 6");
    let parts = ["config.ron was edited since the run began", allowed];
    refused(&["resume", text(&run)], WRONG_INPUT, &parts);
    spoil(&run, "config.ron", "seed: 6", "seed: 5");
    assert_eq!(results(&run), before);
    assert_eq!(checkpoints(&run).len(), 3);
}
