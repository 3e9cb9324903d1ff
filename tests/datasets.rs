//! Runs on prompts from files: what is asked, what stays sealed, what a resume needs, and data that is bad.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use environments::{RowKey, Split, TaskKey};
use rollout::rollout_file;

use crate::program::{self, Working, workspace};
use crate::refusal::{WRONG_INPUT, refused};
use crate::run_files::{
    TINY, TINY_STEPS, assert_same_results, checkpoints, global_step, metrics, names, text,
};

/// Stages that are done in a second.
pub const ONE_STEP: &str =
    "stages=[sft(steps: 1, documents_per_step: 2, learning_rate: (peak: 1e-3))]";

/// The answer to [`recall`] number i, which no policy and no prompt comes upon.
fn answer(i: u64) -> u64 {
    914_000_000 + 7919 * i
}

/// Rows that ask for [`answer`].
fn recall(numbers: std::ops::Range<u64>) -> Vec<String> {
    numbers
        .map(|i| {
            format!(
                r#"{{"id": {i}, "prompt": "Recall {i}.", "answer": {}}}"#,
                answer(i)
            )
        })
        .collect()
}

fn write(path: &Path, lines: &[String]) {
    fs::write(path, lines.join("\n") + "\n").expect("written");
}

/// Override of [`TINY`]'s environments by the dataset at `path` with more `keys`.
pub fn dataset(path: &Path, keys: &str) -> String {
    let path = text(path);
    format!("environments=[(dataset: (path: {path:?}, grader: integer, {keys}))]")
}

/// Arguments that train [`TINY`] in `run` with changes.
pub fn train(run: &Path, set: &[&str]) -> Vec<String> {
    let mut args: Vec<String> = ["train", TINY, "--run", text(run)].map(String::from).into();
    for change in set {
        args.extend(["--set".to_string(), change.to_string()]);
    }
    args
}

fn as_words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn rows_are_asked_in_passes_and_their_answers_stay_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let [run, path] = ["run", "recall.jsonl"].map(|name| dir.path().join(name));
    let lines = recall(0..70);
    write(&path, &lines);
    let ended = program::succeed(&train(&run, &[&dataset(&path, "")]));

    let first = TINY_STEPS[..3].iter().sum::<usize>() as u64 + 1;
    let mut asked = Vec::new();
    let mut said = ended.stderr + &ended.stdout;
    for step in first..first + TINY_STEPS[3] as u64 {
        let file = rollout_file::read(&run.join(format!("rollouts/step-{step:06}.parquet")));
        for group in file.unwrap().groups {
            let TaskKey::Row(RowKey {
                dataset,
                split: Split::Train,
                row,
            }) = &group.prompt.task
            else {
                panic!("{} is no row to train on", group.prompt.task);
            };
            assert_eq!(dataset, "recall");
            assert_eq!(group.prompt.question, format!("Recall {}.", row - 1));
            assert_eq!(group.samples.len(), 8);
            asked.push(*row);
            said += &format!("{group:?}");
        }
    }
    assert_eq!(asked.len(), 96);
    // 96 prompts are a pass over the 40 to 60 rows to train on, and the beginning of the next.
    let rows: BTreeSet<u64> = asked.iter().copied().collect();
    let num_rows = rows.len();
    assert!((40..60).contains(&num_rows), "{num_rows}");
    assert_eq!(
        asked[..num_rows].iter().copied().collect::<BTreeSet<_>>(),
        rows
    );
    assert_ne!(
        asked[..96 - num_rows],
        asked[num_rows..],
        "each pass has its own order"
    );

    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(run.join("datasets.json")).unwrap()).unwrap();
    let file = &record["recall"][0];
    assert_eq!(file["bytes"], fs::metadata(&path).unwrap().len());
    assert_eq!(file["blake3"].as_str().unwrap().len(), 64);
    for file in ["log.txt", "metrics.jsonl", "config.ron", "datasets.json"] {
        said += &fs::read_to_string(run.join(file)).unwrap();
    }
    for i in 0..70 {
        assert!(!said.contains(&answer(i).to_string()), "an answer was told");
    }
}

#[test]
fn a_run_on_a_dataset_resumes_bit_for_bit_and_only_with_the_same_files() {
    let dir = tempfile::tempdir().unwrap();
    let [undisturbed, run, path, held_out] =
        ["undisturbed", "stopped", "recall.jsonl", "test.jsonl"].map(|name| dir.path().join(name));
    let lines = recall(0..20);
    write(&path, &lines);
    write(&held_out, &recall(20..25));
    let environments = format!(
        "environments=[(dataset: (path: {:?}, held_out: {:?}, name: \"mine\", grader: integer), weight: 2.0, \
         kl_scale: 0.5), (family: sums)]",
        text(&path),
        text(&held_out)
    );
    program::succeed(&train(&undisturbed, &[&environments]));

    let stderr = dir.path().join("stderr");
    let mut working = Working::start(&train(&run, &[&environments]), &stderr);
    assert!(
        working.wait_until(|| global_step(&run) >= 17),
        "{}",
        working.said()
    );
    working.terminate();
    assert_eq!(working.end().code(), Some(0), "{}", working.said());
    assert!(global_step(&run) < 27, "stopped too late to show anything");

    // One digit, in a row that may never be drawn again.
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, whole.replace("Recall 7.", "Recall 8.")).unwrap();
    let kept = checkpoints(&run);
    let parts = [
        text(&path),
        "is not what it was when the run began",
        "as long, but of other content",
    ];
    refused(&["resume", text(&run)], WRONG_INPUT, &parts);
    write(&held_out, &recall(20..26));
    fs::write(&path, &whole).unwrap();
    let parts = [text(&held_out), "bytes then, ", "put its old content back"];
    refused(&["resume", text(&run)], WRONG_INPUT, &parts);
    assert_eq!(checkpoints(&run), kept);

    write(&held_out, &recall(20..25));
    program::succeed(&["resume", text(&run)]);
    // Both name their own folder nowhere, so their configurations are the same too.
    assert_same_results(&run, &undisturbed);

    let checked = program::succeed(&["fsck", text(&run)]).stdout;
    assert!(
        checked.contains("ok       datasets.json: mine\n"),
        "{checked}"
    );
    let table = program::succeed(&["eval", text(&run), "--prompts", "12"]);
    assert!(
        table.stdout.contains("\nmine             - "),
        "{}",
        table.stdout
    );
    assert!(
        table.stdout.contains("\nsums             1 "),
        "{}",
        table.stdout
    );
    fs::write(&path, whole + "\n").unwrap();
    let table = program::succeed(&["eval", text(&run), "--prompts", "2"]);
    assert!(
        table
            .stderr
            .contains("figures don't compare with the run's"),
        "{}",
        table.stderr
    );
}

#[test]
fn bad_data_is_refused_by_name_and_a_mended_file_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.jsonl");
    let mut broken = b"{\"prompt\": \"a\", \"answer\": 1}\n{\"prompt\": \"".to_vec();
    broken.extend(b"\xff\", \"answer\": 1}\n");
    let row = |prompt: &str| {
        format!(
            r#"{{"prompt": "{prompt}", "answer": 1, "id": "q", "split": "train"}}{}"#,
            '\n'
        )
    };
    let cases: [(Vec<u8>, &[&str]); 6] = [
        (
            b"{\"prompt\": \"a\"}\n".into(),
            &["line 1: `answer` is missing", "on_bad_row: skip"],
        ),
        (
            b"{\"prompt\": 1, \"answer\": 1}\n".into(),
            &["line 1: `prompt` must be text"],
        ),
        (broken, &["line 2: not UTF-8: byte 13 of the line is 0xff"]),
        (
            row(&"x".repeat(10 << 20)).into(),
            &[
                "line 1 (id \"q\"): `prompt` has 10485760 bytes",
                "`max_position_embeddings`",
            ],
        ),
        // Fewer bytes than 232 of the longest tokens could have, but more than 232 tokens.
        (
            row(&"x".repeat(400)).into(),
            &["line 1: ", "tokens with the chat template", "only 232 fit"],
        ),
        (
            (row("a") + &row("b")).into(),
            &["line 2 (id \"q\"): `id` is also that of line 1"],
        ),
    ];
    for (content, parts) in cases {
        let grpo = "stages=[grpo(steps: 1, prompts_per_step: 1, group_size: 2, learning_rate: (peak: 1e-3))]";
        let run = dir.path().join("run");
        fs::write(&path, content).unwrap();
        let args = train(
            &run,
            &[
                &dataset(&path, ""),
                grpo,
                "evaluation.prompts=0",
                "evaluation.every=0",
            ],
        );
        let mut parts = parts.to_vec();
        parts.push(text(&path));
        refused(&as_words(&args), WRONG_INPUT, &parts);

        // What is found before anything was done leaves the folder free for the next try.
        if !metrics(&run).is_empty() {
            fs::remove_dir_all(&run).unwrap();
        }
        write(&path, &recall(0..9));
        program::succeed(&args);
        fs::remove_dir_all(&run).unwrap();
    }
    let absent = dir.path().join("absent.jsonl");
    let args = train(&dir.path().join("run"), &[&dataset(&absent, ""), ONE_STEP]);
    refused(
        &as_words(&args),
        WRONG_INPUT,
        &[text(&absent), "No such file"],
    );
}

#[test]
fn bad_rows_are_skipped_and_counted_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let [run, path] = ["run", "mine.jsonl"].map(|name| dir.path().join(name));
    let mut lines = recall(0..40);
    lines[3] = "nonsense".to_string();
    lines[5] = recall(4..5).remove(0);
    lines.push(format!(
        r#"{{"prompt": "{}", "answer": 1}}"#,
        "x".repeat(10 << 20)
    ));
    write(&path, &lines);
    let set = dataset(&path, "on_bad_row: skip");
    let ended = program::succeed(&train(&run, &[&set, ONE_STEP]));
    let first = "; 3 of 41 rows of ";
    assert!(ended.stderr.contains(first), "{}", ended.stderr);
    assert!(
        ended
            .stderr
            .contains("the first: line 4: not a JSON object"),
        "{}",
        ended.stderr
    );
    let mut dry = train(&run, &[&set]);
    dry.push("--dry-run".to_string());
    let plan = program::succeed(&dry).stdout;
    assert!(
        plan.contains("//   dataset mine: ") && plan.contains(first),
        "{plan}"
    );
}

#[test]
fn a_row_too_long_ends_the_run_when_drawn_and_a_resume_may_skip_it() {
    let dir = tempfile::tempdir().unwrap();
    let [run, skipping, path] = ["run", "skipping", "mine.jsonl"].map(|name| dir.path().join(name));
    let split =
        |line: String, split: &str| line.replace("{\"", &format!("{{\"split\": \"{split}\", \""));
    let mut lines: Vec<String> = recall(0..11)
        .into_iter()
        .map(|line| split(line, "train"))
        .collect();
    lines.extend(
        recall(11..14)
            .into_iter()
            .map(|line| split(line, "held_out")),
    );
    let long = format!(r#"{{"prompt": "{}", "answer": 1}}"#, "x".repeat(400));
    lines.push(split(long, "train"));
    write(&path, &lines);
    // The 12 rows to train on are asked in the first three steps.
    let grpo = "stages=[grpo(steps: 6, prompts_per_step: 4, group_size: 2, kl_beta: 0.0, learning_rate: (peak: 1e-3))]";
    let every = "checkpoints.every=1";
    let ended = program::succeed(&train(
        &skipping,
        &[&dataset(&path, "on_bad_row: skip"), grpo, every],
    ));
    assert!(
        ended.stderr.contains("dataset mine row 15 is skipped: "),
        "{}",
        ended.stderr
    );

    let args = train(&run, &[&dataset(&path, ""), grpo, every]);
    let parts = ["mine.jsonl, line 15: ", "only 232 fit", "on_bad_row: skip"];
    refused(&as_words(&args), WRONG_INPUT, &parts);
    assert!(global_step(&run) < 3);
    let set = "environments[0].dataset.on_bad_row=skip";
    program::succeed(&["resume", text(&run), "--set", set]);
    assert_same_results(&run, &skipping);
    for name in names(&run.join("rollouts")) {
        let file = rollout_file::read(&run.join("rollouts").join(name)).unwrap();
        assert_eq!(file.groups.len(), 4);
        for group in &file.groups {
            assert!(
                group.prompt.question.starts_with("Recall "),
                "{}",
                group.prompt.task
            );
        }
    }
}

#[test]
fn the_documented_example_is_that_of_the_configs_and_runs() {
    let page = fs::read_to_string(workspace().join("docs/environments.md")).unwrap();
    for (kind, file) in [
        ("ron", "configs/dataset.ron"),
        ("json", "configs/dataset.jsonl"),
    ] {
        let content = fs::read_to_string(workspace().join(file)).unwrap();
        let quoted = page
            .split(&format!("```{kind}\n"))
            .nth(1)
            .expect("the page quotes it");
        let quoted = quoted.split("```").next().expect("split gives one");
        assert!(content.contains(quoted), "{file} holds no\n{quoted}");
    }
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let args = [
        "train",
        "configs/dataset.ron",
        "--run",
        text(&run),
        "--set",
        "stages[0].sft.steps=2",
    ];
    let ended = program::succeed(&args);
    assert!(
        ended.stderr.contains("dataset dataset: 2"),
        "{}",
        ended.stderr
    );
    let rollouts = names(&run.join("rollouts"));
    assert_eq!(rollouts.len(), 4);
    let groups = rollouts.iter().flat_map(|name| {
        rollout_file::read(&run.join("rollouts").join(name))
            .unwrap()
            .groups
    });
    let (rows, made): (Vec<_>, Vec<_>) =
        groups.partition(|group| matches!(group.prompt.task, TaskKey::Row(_)));
    assert!(
        rows.len() > made.len() && !made.is_empty(),
        "{} {}",
        rows.len(),
        made.len()
    );
}
