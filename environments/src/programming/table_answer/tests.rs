use super::*;
use crate::baselines::Baseline;
use crate::family::Family;
use crate::sandboxed::tests::has_sandbox;
use crate::task::{FamilyKey, Split, Task};
use crate::{AssistantTurn, Episode, Next};

const PAGE: &str = include_str!("../../../../docs/families/interpreter.md");

fn tasks(level: u32, num_seeds: u64) -> impl Iterator<Item = Task> {
    (0..num_seeds).map(move |seed| {
        Family::task(&FamilyKey {
            family: Family::TableAnswer,
            split: Split::Train,
            level,
            seed,
        })
    })
}

fn gold(task: &Task) -> Gold {
    Gold::read(&task.gold).expect("a problem")
}

#[test]
fn python_reads_from_the_files_what_the_reference_finds() {
    if !has_sandbox() {
        return;
    }
    for level in TableAnswer.levels() {
        for task in tasks(level, 12) {
            let mut episode = Episode::open(&task).expect("a session");
            let mut last = String::new();
            for calls in &task.witness {
                let turn = AssistantTurn {
                    content: String::new(),
                    calls: calls.clone(),
                };
                match episode.step(&turn).expect("no fault") {
                    Next::Tools(messages) => last.clone_from(&messages[0].content),
                    other => panic!("{other:?}"),
                }
            }
            let expected = format!("Out[2]: {}", gold(&task).answer);
            assert_eq!(last, expected, "{}", task.question);
        }
    }
}

#[test]
fn the_documented_sizes_of_table_answers_are_the_measured_ones() {
    let mut table = String::new();
    let mut sizes = Vec::new();
    for level in TableAnswer.levels() {
        let (mut num_lines, mut num_bytes, mut num_asked) = (0, 0, 0);
        for task in tasks(level, 100) {
            let problem = gold(&task).problem;
            let tables = Tables::draw(level, problem.stream);
            num_lines += tables.orders.len() + tables.returns.len();
            num_lines += if level >= 3 {
                tables.customers.len()
            } else {
                0
            };
            num_bytes += tables
                .files()
                .iter()
                .map(|file| file.bytes.len())
                .sum::<usize>();
            num_asked += task.question.len();
        }
        sizes.push(num_bytes);
        table += &format!(
            "| {level} | {} | {} | {} |\n",
            num_lines / 100,
            num_bytes / 100,
            num_asked / 100
        );
    }
    assert!(sizes.is_sorted(), "{sizes:?}");
    for row in table.lines() {
        assert!(PAGE.contains(row), "put this table on the page:\n{table}");
    }
}

#[test]
fn every_rule_of_the_last_level_changes_answers() {
    type Forget = fn(&mut Problem, &mut Tables);
    let forgetful: [(&str, Forget); 5] = [
        ("every line is an order of its own", |_, tables| {
            for (order, id) in tables.orders.iter_mut().zip(1_000_000..) {
                order.id = id;
            }
        }),
        ("the first line of an order counts", |_, tables| {
            tables.orders.reverse()
        }),
        ("nothing is given back", |_, tables| tables.returns.clear()),
        ("all regions", |problem, _| problem.region = None),
        ("all dates", |problem, _| problem.days = None),
    ];
    for (rule, forget) in forgetful {
        let mut num_wrong = 0;
        for task in tasks(5, 40) {
            let Gold {
                mut problem,
                answer,
            } = gold(&task);
            let mut tables = Tables::draw(5, problem.stream);
            assert_eq!(problem.answer(&tables), Some(answer));
            forget(&mut problem, &mut tables);
            num_wrong += usize::from(problem.answer(&tables) != Some(answer));
        }
        assert!(num_wrong >= 15, "{rule}: {num_wrong} of 40");
    }
}

#[test]
fn a_thousand_answers_about_tables_without_skill_earn_what_the_page_says() {
    // Nothing is run for them, but an episode opens only where a sandbox works.
    if !has_sandbox() {
        return;
    }
    let mut table = String::new();
    for level in TableAnswer.levels() {
        let rewards = Baseline::ALL.map(|baseline| {
            let reward = baseline.mean_reward(Family::TableAnswer, level, 1000);
            assert!(reward <= 0.01, "{baseline:?} at level {level}: {reward}");
            format!("{reward:.3}")
        });
        table += &format!("| table_answer | {level} | {} |\n", rewards.join(" | "));
    }
    for row in table.lines() {
        assert!(PAGE.contains(row), "put this table on the page:\n{table}");
    }
}

#[test]
fn a_key_gives_the_same_bytes_on_every_machine() {
    // Other bytes are another version of the family.
    let fingerprints: Vec<String> = [1, 3, 5]
        .map(|level| {
            let mut hasher = blake3::Hasher::new();
            for task in tasks(level, 5) {
                let tables = Tables::draw(level, gold(&task).problem.stream);
                hasher.update(task.question.as_bytes());
                hasher.update(task.gold.as_bytes());
                for file in tables.files() {
                    hasher.update(&file.bytes);
                }
            }
            hasher.finalize().to_hex()[..16].to_string()
        })
        .to_vec();
    assert_eq!(
        fingerprints,
        ["3cdbc28d4c5c1d08", "84e325abc4f7f2bf", "fd580412bec6ee93"]
    );
}
