use std::collections::BTreeMap;

use super::*;
use crate::baselines::Baseline;
use crate::family::Family;
use crate::sandboxed::tests::has_sandbox;
use crate::task::{FamilyKey, Split, Task};
use sandbox::PythonLimits;

const PAGE: &str = include_str!("../../../../docs/families/interpreter.md");
const KINDS: [&str; NUM_KINDS] = ["count", "simulate", "digest", "grid", "cycle"];

fn tasks(level: u32, num_seeds: u64) -> impl Iterator<Item = Task> {
    (0..num_seeds).map(move |seed| {
        Family::task(&FamilyKey {
            family: Family::ComputedAnswer,
            split: Split::Train,
            level,
            seed,
        })
    })
}

fn gold(task: &Task) -> Gold {
    Gold::read(&task.gold).expect("a problem")
}

fn kind(problem: &Problem) -> &'static str {
    KINDS[match problem {
        Problem::Count(_) => 0,
        Problem::Simulate(_) => 1,
        Problem::Digest(_) => 2,
        Problem::Grid(_) => 3,
        Problem::Cycle(_) => 4,
    }]
}

#[test]
fn python_finds_what_the_reference_finds_at_every_level_of_every_kind() {
    if !has_sandbox() {
        return;
    }
    let limits = PythonLimits {
        max_cells: 1000,
        ..interpreter::limits()
    };
    let mut interpreter = Interpreter::new(limits, Vec::new()).expect("a sandbox");
    let mut num_checked = BTreeMap::new();
    for level in ComputedAnswer.levels() {
        for task in tasks(level, 25) {
            let gold = gold(&task);
            let outputs = gold.problem.cells().map(|code| {
                interpreter.begin_turn();
                let arguments = serde_json::Map::from_iter([("code".to_string(), json!(code))]);
                interpreter.call(&arguments).expect("no fault")
            });
            assert!(!outputs[0].is_error, "{}: {}", task.key, outputs[0].content);
            // Cells that check themselves against a loop say whether they agree.
            assert!(["[no output]", "True"].contains(&&*outputs[0].content));
            let (_, value) = outputs[1].content.split_once("]: ").expect("a value");
            assert_eq!(value, gold.answer.to_string(), "{}", task.question);
            *num_checked.entry((level, kind(&gold.problem))).or_insert(0) += 1;
        }
    }
    assert_eq!(num_checked.len(), 5 * NUM_KINDS, "{num_checked:?}");
}

#[test]
fn the_documented_work_of_computed_answers_is_the_measured_one() {
    let mut means: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for level in ComputedAnswer.levels() {
        let mut works: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for task in tasks(level, 1000) {
            let gold = gold(&task);
            works
                .entry(kind(&gold.problem))
                .or_default()
                .push(gold.work);
        }
        for (kind, works) in works {
            assert!(works.len() > 100, "{kind} {level}: {}", works.len());
            let mean = works.iter().sum::<u64>() / works.len() as u64;
            means.entry(kind).or_default().push(mean);
        }
    }
    let mut table = String::new();
    for kind in KINDS {
        let works = &means[kind];
        assert!(
            works.is_sorted() && works[0] < works[4],
            "{kind}: {works:?}"
        );
        let shown: Vec<String> = works.iter().map(u64::to_string).collect();
        table += &format!("| {kind} | {} |\n", shown.join(" | "));
    }
    for row in table.lines() {
        assert!(PAGE.contains(row), "put this table on the page:\n{table}");
    }
}

#[test]
fn a_thousand_answers_without_skill_earn_what_the_page_says() {
    // Nothing is run for them, but an episode opens only where a sandbox works.
    if !has_sandbox() {
        return;
    }
    let mut table = String::new();
    for level in ComputedAnswer.levels() {
        let rewards = Baseline::ALL.map(|baseline| {
            let reward = baseline.mean_reward(Family::ComputedAnswer, level, 1000);
            assert!(reward <= 0.01, "{baseline:?} at level {level}: {reward}");
            format!("{reward:.3}")
        });
        table += &format!("| computed_answer | {level} | {} |\n", rewards.join(" | "));
    }
    for row in table.lines() {
        assert!(PAGE.contains(row), "put this table on the page:\n{table}");
    }
}

#[test]
fn one_committed_integer_is_right_and_nothing_else() {
    for task in (1..=5).flat_map(|level| tasks(level, 20)) {
        let answer = gold(&task).answer;
        let reward = |completion: &str| {
            let graded = ComputedAnswer.grade(&task.gold, completion);
            graded.reward().expect("graded")
        };
        for right in [
            format!("\\boxed{{{answer}}}"),
            format!("{} So \\boxed{{ {answer} }}.", task.question),
        ] {
            assert_eq!(reward(&right), 1.0, "{right}");
        }
        for wrong in [
            answer.to_string(),
            format!("\\boxed{{{}}}", answer + 1),
            format!("\\boxed{{{answer}.0}}"),
            format!("\\boxed{{{answer}, {answer}}}"),
            format!("\\boxed{{{answer}}} or \\boxed{{{}}}", answer - 1),
            "\\boxed{integer}".to_string(),
        ] {
            assert_eq!(reward(&wrong), 0.0, "{wrong}");
        }
        // What the policy reads holds no answer.
        let calls = format!("{:?}", task.witness);
        let padded = answer.to_string();
        if padded.len() > 6 {
            assert!(!task.question.contains(&padded) && !calls.contains(&padded));
        }
    }
}

#[test]
fn a_key_gives_the_same_bytes_on_every_machine() {
    // Other bytes are another version of the family.
    let fingerprints: Vec<String> = (1..=5)
        .map(|level| {
            let tasks = tasks(level, 20);
            let bytes: String = tasks
                .map(|task| format!("{:?} {} {:?}", task.question, task.gold, task.witness))
                .collect();
            blake3::hash(bytes.as_bytes()).to_hex()[..16].to_string()
        })
        .collect();
    assert_eq!(
        fingerprints,
        [
            "533297299ae43260",
            "f3f878674a66529f",
            "61ef8bc3660672be",
            "a6d0e9f3decfee3a",
            "287b39bcb0586a17"
        ]
    );
}
