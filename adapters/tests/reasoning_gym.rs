//! Twenty datasets of reasoning-gym, screened and answered.

use std::process::{Command, Stdio};

use adapters::AgentEnv;
use adapters::screening::paid_garbage;
use environments::{AssistantTurn, Episode, ExternalTasks, Next, Split, Stop, Task, Verdict};
use serde_json::json;

use crate::places::{config, python_with, repository};

const DATASETS: [&str; 20] = [
    "base_conversion",
    "basic_arithmetic",
    "binary_alternation",
    "caesar_cipher",
    "chain_sum",
    "count_bits",
    "count_primes",
    "countdown",
    "gcd",
    "lcm",
    "leg_counting",
    "letter_counting",
    "maze",
    "mini_sudoku",
    "number_sorting",
    "prime_factorization",
    "simple_equations",
    "spell_backward",
    "tower_of_hanoi",
    "word_sorting",
];

fn verdict(task: &Task, content: String) -> Verdict {
    let mut episode = Episode::open(task).expect("a session");
    let calls = Vec::new();
    let next = episode.step(&AssistantTurn { content, calls });
    assert_eq!(next.expect("no fault"), Next::Done(Stop::Answered));
    episode.grade()
}

#[test]
fn twenty_datasets_pay_for_their_own_answers_and_not_for_garbage() {
    let Some(python) = python_with("reasoning_gym") else {
        return;
    };
    // Both take a while to import the package.
    let gold = Command::new(&python)
        .arg(repository("adapters/tests/servers/gold_answers.py"))
        .arg(DATASETS.len().to_string())
        .args(DATASETS)
        .env("PYTHONHASHSEED", "0")
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let script = repository("scripts/agentenv/reasoning_gym_server.py");
    let mut command = vec![python, script.display().to_string()];
    command.extend(DATASETS.map(str::to_string));
    // Screened below, so that every refusal is seen.
    let server = AgentEnv::open(
        &config(json!({
            "name": "reasoning_gym",
            "command": command,
            "deadlines": {"connect_secs": 60.0},
            "screened_tasks": 0,
        })),
        [1],
    );
    let server = server.expect("it runs");
    let gold = gold.wait_with_output().expect("it ends").stdout;
    let gold: Vec<String> = serde_json::from_slice(&gold).expect("the answers");
    let mut refused = Vec::new();
    for (seed, answer) in gold.iter().enumerate() {
        let name = DATASETS[seed];
        let key = server.key(Split::Train, 1, seed as u64);
        let task = server.task(&key).expect("a task");
        if let Some(reason) = paid_garbage(&task).expect("no fault") {
            refused.push((name, reason.to_string()));
            continue;
        }
        let right = verdict(&task, format!("I think <answer>{answer}</answer>"));
        assert_eq!(right.reward(), Some(1.0), "{name}: {answer}");
        // Parts of the answer and more than it are worth nothing, whatever the dataset says of them.
        for near in [
            format!("<answer>{answer} or not</answer>"),
            format!("<answer>{answer}</answer> no, <answer>zzz</answer>"),
            answer.clone(),
        ] {
            let verdict = verdict(&task, near.clone());
            let Verdict::Graded { reward, parts, .. } = &verdict else {
                panic!("{name}: {verdict:?}")
            };
            assert_eq!(*reward, 0.0, "{name}: {near}");
            assert!(parts["score"] < 1.0, "{name}: {near}");
        }
    }
    assert_eq!(refused, [], "none of these twenty pays for garbage");
}
