//! Runs on the tasks of another program, and with tools of another: what a configuration may say, what is refused, and
//! that a resume asks the same.

use std::collections::BTreeSet;
use std::path::Path;

use environments::TaskKey;
use rollout::rollout_file::{self, RolloutFile};

use crate::program::{self, Working, workspace};
use crate::refusal::{WRONG_INPUT, refused};
use crate::run_files::{TINY, assert_same_results, global_step, text};

/// Tools are told of in a system message, byte by byte.
const CONTEXT: &str = "model.source.Random.max_position_embeddings=1536";
const ONE_STEP: &str = "stages=[grpo(steps: 1, prompts_per_step: 12, group_size: 2, kl_beta: 0.0, learning_rate: (peak: 1e-3))]";
const STAGES: &str = "stages=[sft(steps: 1, documents_per_step: 4, learning_rate: (peak: 1e-3)), \
     grpo(steps: 5, prompts_per_step: 12, group_size: 2, kl_beta: 0.0, learning_rate: (peak: 1e-3))]";

/// An entry of the example server.
fn till(level: u32) -> String {
    let script = workspace().join("scripts/agentenv/till.py");
    let script = text(&script);
    format!("(server: (name: \"till\", command: [\"python3\", {script:?}]), level: {level})")
}

fn environments(entries: &[&str]) -> String {
    format!("environments=[{}]", entries.join(", "))
}

fn train(run: &Path, changes: &[&str]) -> Vec<String> {
    let mut args: Vec<String> = ["train", TINY, "--run", text(run), "--set", CONTEXT]
        .map(String::from)
        .into();
    for change in changes {
        args.extend(["--set".to_string(), change.to_string()]);
    }
    args
}

fn rollout(run: &Path, step: u64) -> RolloutFile {
    let file = run.join(format!("rollouts/step-{step:06}.parquet"));
    rollout_file::read(&file).expect("written by the run")
}

#[test]
fn another_programs_tasks_are_asked_beside_a_familys_and_a_resume_asks_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let mixed = environments(&["(family: sums, level: 1)", &till(1), &till(3)]);
    program::succeed(&train(&one, &[&mixed, STAGES]));
    let mut asked = BTreeSet::new();
    for group in rollout(&one, 2).groups {
        let invalid: Vec<_> = group
            .samples
            .iter()
            .filter(|s| s.verdict.reward().is_none())
            .collect();
        assert!(invalid.is_empty(), "{}", invalid.len());
        asked.insert(match &group.prompt.task {
            TaskKey::External(key) => {
                assert_eq!((&*key.environment, key.version), ("till", 1));
                assert!(group.prompt.question.starts_with("Put coins worth"));
                assert!(group.samples.iter().all(|sample| sample.episode.is_some()));
                key.level
            }
            _ => 0,
        });
    }
    assert_eq!(asked, BTreeSet::from([0, 1, 3]));

    let stderr = dir.path().join("stderr");
    let mut working = Working::start(&train(&two, &[&mixed, STAGES]), &stderr);
    assert!(working.wait_until(|| global_step(&two) >= 3));
    working.kill();
    program::succeed(&["resume", text(&two)]);
    assert_same_results(&two, &one);
}

#[test]
fn a_server_that_can_not_be_used_is_refused_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let till_9 = till(9);
    let (till_1, till_2) = (till(1), till(2));
    let other = till_2.replace("\"python3\"", "\"python3\", \"-u\"");
    let gone = "(server: (name: \"gone\", command: [\"false\"]))";
    for (entries, stages, parts) in [
        (vec![&*till_9], ONE_STEP, ["till", "levels 1 to 5"]),
        (vec![gone], ONE_STEP, ["server gone, env/describe", "`log`"]),
        (
            vec![&*till_1],
            STAGES,
            ["stages[0].sft", "a server gives none"],
        ),
        (
            vec![&*till_1, &*other],
            ONE_STEP,
            ["environments[1].server", "another `name`"],
        ),
        (
            vec![&*till_1, &*till_1],
            ONE_STEP,
            ["environments[1].level", "sum of the weights"],
        ),
    ] {
        let args = train(&run, &[&environments(&entries), stages]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        refused(&args, WRONG_INPUT, &parts);
    }
}

#[test]
fn a_familys_tasks_are_given_the_tools_of_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let log = dir.path().join("log");
    let stub = workspace().join("adapters/tests/servers/mcp_stub.py");
    let server = format!(
        "(name: \"stub\", command: [\"python3\", {:?}, \"legacy\", \"stdio\", {:?}])",
        text(&stub),
        text(&log)
    );
    let equipped = format!("(family: sums, level: 1, mcp: [{server}])");
    program::succeed(&train(&run, &[&environments(&[&equipped]), ONE_STEP]));
    for group in rollout(&run, 1).groups {
        assert!(
            group.prompt.tokens.len() > 200,
            "the tools are told of: {}",
            group.prompt.tokens.len()
        );
        for sample in group.samples {
            assert!(sample.episode.is_some() && sample.verdict.reward().is_some());
        }
    }
    let two = environments(&[&equipped, "(family: sums, level: 1)"]);
    let args = train(&dir.path().join("two"), &[&two, ONE_STEP]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    refused(
        &args,
        WRONG_INPUT,
        &["environments[1].mcp", "the same tasks"],
    );
}
