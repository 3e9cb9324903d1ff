//! What every family keeps: solutions earn 1, splits are disjoint, bytes are fixed, and no text can
//! make a verifier panic. A new family is covered as soon as it is in [`Family::ALL`].

use std::collections::{BTreeMap, HashSet};

use super::*;
use crate::arithmetic::expression::{Fraction, evaluate};
use crate::episode::Episode;
use crate::integer_answer::integers;
use crate::task::{Split, TaskKey};
use crate::tool::ToolCall;

const SPLITS: [Split; 2] = [Split::Train, Split::HeldOut];

fn key(family: Family, split: Split, level: u32, seed: u64) -> FamilyKey {
    FamilyKey {
        family,
        split,
        level,
        seed,
    }
}

/// Those whose question is one sentence about integers.
const ARITHMETIC: [Family; 5] = [
    Family::Sums,
    Family::Products,
    Family::Compare,
    Family::Gcd,
    Family::Countdown,
];

/// Every task of the given seeds that can be graded here: all families, levels and both splits.
fn tasks(seeds: std::ops::Range<u64>) -> impl Iterator<Item = Task> {
    let of_family = move |family| {
        let seeds = seeds.start..seeds.end.min(seeds_of(family, 1000).end);
        tasks_of(&[family], seeds).collect::<Vec<_>>()
    };
    gradable().into_iter().flat_map(of_family)
}

/// All families, without those that run code where no sandbox works.
fn gradable() -> Vec<Family> {
    let needs_sandbox = Family::ALL.iter().any(|family| family.needs_sandbox());
    let has_sandbox = needs_sandbox && crate::sandboxed::tests::has_sandbox();
    let mut families = Family::ALL.to_vec();
    families.retain(|family| has_sandbox || !family.needs_sandbox());
    families
}

fn tasks_of(families: &[Family], seeds: std::ops::Range<u64>) -> impl Iterator<Item = Task> {
    families.iter().flat_map(move |&family| {
        let seeds = seeds.clone();
        family.levels().flat_map(move |level| {
            let seeds = seeds.clone();
            SPLITS.into_iter().flat_map(move |split| {
                seeds
                    .clone()
                    .map(move |seed| Family::task(&key(family, split, level, seed)))
            })
        })
    })
}

/// What `answer` earns in a fresh episode after these turns of calls.
fn episode_reward(task: &Task, calls: &[Vec<ToolCall>], answer: &str) -> f64 {
    let verdict = Episode::played(task, calls, answer);
    verdict.reward().expect("always graded")
}

fn reward(task: &Task, completion: &str) -> f64 {
    episode_reward(task, &[], completion)
}

/// Seeds that a test draws of each level and split: all that it can afford where an instance is work to draw.
fn seeds_of(family: Family, wanted: u64) -> std::ops::Range<u64> {
    // A run of code takes some 50 ms.
    match (family.is_quick(), family.needs_sandbox()) {
        (true, _) => 0..wanted,
        (false, false) => 0..wanted.div_ceil(20),
        (false, true) => 0..wanted.div_ceil(400),
    }
}

/// The key of a task that a family made.
fn made(task: &Task) -> &FamilyKey {
    match &task.key {
        TaskKey::Family(key) => key,
        other => panic!("{other} is no family's"),
    }
}

/// The family, the question's numbers in ascending order, and the result: what an instance is,
/// read from the question alone.
fn content(task: &Task) -> (Family, Vec<i64>, String) {
    let mut numbers = integers(&task.question);
    numbers.sort_unstable();
    (
        made(task).family,
        numbers,
        task.gold.split(' ').next_back().unwrap_or("").to_string(),
    )
}

#[test]
fn every_worked_solution_earns_the_full_reward() {
    for family in gradable() {
        for task in tasks_of(&[family], seeds_of(family, 1000)) {
            let reward = |answer: &str| episode_reward(&task, &task.witness, answer);
            assert_eq!(reward(&task.solution), 1.0, "{task:?}");
            let restated = format!("{} {}", task.question, task.solution);
            assert_eq!(reward(&restated), 1.0, "{task:?}");
        }
    }
}

#[test]
fn arithmetic_questions_and_solutions_are_one_short_line() {
    for task in tasks_of(&ARITHMETIC, 0..300) {
        assert!(
            task.question.len() <= 80 && task.question.is_ascii(),
            "{task:?}"
        );
        assert!(
            task.question.ends_with(['?', '.']) && !task.question.contains('\n'),
            "{task:?}"
        );
        assert!(
            task.solution.len() <= 60 && !task.solution.contains('\n'),
            "{task:?}"
        );
    }
}

#[test]
fn the_gold_answer_is_what_the_arithmetic_question_asks() {
    for task in tasks_of(&ARITHMETIC, 0..300) {
        let numbers = integers(&task.question);
        let gold: Vec<i64> = integers(&task.gold);
        let expected = match made(&task).family {
            Family::Sums => {
                let words = task.question.trim_end_matches(['?', '.']);
                let start = words
                    .find(|c: char| c.is_ascii_digit())
                    .expect("a sum has numbers");
                let value = evaluate(&words[start..])
                    .expect("the question holds an expression")
                    .value;
                assert_eq!(value, Fraction::integer(gold[0]), "{task:?}");
                gold[0]
            }
            Family::Products => numbers.iter().product(),
            Family::Compare => *numbers.iter().max().expect("numbers to compare"),
            Family::Gcd => (1..=numbers[0])
                .rev()
                .find(|d| numbers.iter().all(|n| n % d == 0))
                .expect("1 divides all"),
            Family::Countdown => {
                assert_eq!(numbers, gold, "{task:?}");
                continue;
            }
            other => panic!("{other} is no arithmetic"),
        };
        assert_eq!(gold, [expected], "{task:?}");
        assert!(expected >= 0);
    }
}

#[test]
fn level_two_holds_the_numbers_it_promises() {
    for task in tasks_of(&ARITHMETIC, 0..1000).filter(|task| made(task).level == 2) {
        let largest = match made(&task).family {
            Family::Sums | Family::Compare => 30,
            Family::Products => 12,
            _ => continue,
        };
        let numbers = integers(&task.question);
        assert_eq!(numbers.len(), 2, "{task:?}");
        assert!(
            numbers.iter().all(|number| (1..=largest).contains(number)),
            "{task:?}"
        );
    }
}

#[test]
fn a_draw_in_a_hundred_lands_in_either_split() {
    for family in Family::ALL {
        let definition = family.definition();
        for level in family.levels() {
            let key = key(family, Split::Train, level, 0);
            let num_drawn = if family.is_quick() { 5000 } else { 400 };
            let drawn: Vec<Split> = (0..num_drawn)
                .filter_map(|attempt| {
                    definition.draw(level, &mut Draw::new(Purpose::Instance, &key, attempt))
                })
                .map(|instance| split_of(family.name(), &instance.canonical))
                .collect();
            for split in SPLITS {
                let landed = drawn.iter().filter(|&&side| side == split).count();
                assert!(
                    landed * 100 >= num_drawn as usize,
                    "{family} {level} {split:?}: {landed} of {num_drawn}"
                );
            }
        }
    }
}

#[test]
fn no_instance_is_in_both_splits_at_any_level() {
    for family in Family::ALL {
        let is_arithmetic = ARITHMETIC.contains(&family);
        // Nothing is graded, so that seeds are as many where code would be run.
        let seeds = match (is_arithmetic, family.is_quick()) {
            (true, _) => 0..4000,
            (false, true) => 0..500,
            (false, false) => 0..25,
        };
        let mut sides = BTreeMap::from([(true, HashSet::new()), (false, HashSet::new())]);
        for task in tasks_of(&[family], seeds) {
            // Of arithmetic the question itself says which instance it is, whatever the family calls canonical.
            let content = match is_arithmetic {
                true => format!("{:?}", content(&task)),
                false => instance(made(&task)).canonical,
            };
            let is_train = made(&task).split == Split::Train;
            sides.entry(is_train).or_default().insert(content);
        }
        assert!(sides.values().all(|side| side.len() > 15), "{family}");
        assert!(sides[&true].is_disjoint(&sides[&false]), "{family}");
    }
}

fn num_distinct(family: Family, split: Split, level: u32) -> usize {
    let tasks = (0..5000).map(|seed| Family::task(&key(family, split, level, seed)));
    tasks
        .map(|task| content(&task))
        .collect::<HashSet<_>>()
        .len()
}

#[test]
fn small_levels_are_drawn_to_the_last_instance() {
    // 45 sums + 45 differences; 465 + 465; 15 and 78 products; 105 and 435 pairs; and for gcd
    // 11 coprime pairs of 2 to 7 times 15 divisors.
    for (family, level, total, held_out) in [
        (Family::Sums, 1, 90, 33),
        (Family::Sums, 2, 930, 249),
        (Family::Products, 1, 15, 5),
        (Family::Products, 2, 78, 19),
        (Family::Compare, 1, 105, 24),
        (Family::Compare, 2, 435, 100),
        (Family::Gcd, 1, 165, 44),
    ] {
        let train = num_distinct(family, Split::Train, level);
        let found = (train, num_distinct(family, Split::HeldOut, level));
        assert_eq!(found, (total - held_out, held_out), "{family} {level}");
    }
}

#[test]
fn the_same_key_gives_the_same_bytes_on_every_machine() {
    for (family, split, level, seed, question, solution) in [
        (
            Family::Sums,
            Split::Train,
            2,
            0,
            "Calculate 28 - 17.",
            "28 - 17 = 11",
        ),
        (
            Family::Sums,
            Split::HeldOut,
            2,
            u64::MAX,
            "How much is 13 + 21?",
            "13 + 21 = 34",
        ),
        (
            Family::Sums,
            Split::Train,
            5,
            u64::MAX,
            "What is 49 - 28 + 48?",
            "49 - 28 + 48 = 69",
        ),
        (
            Family::Products,
            Split::HeldOut,
            2,
            0,
            "Multiply 6 by 11.",
            "6 * 11 = 66",
        ),
        (
            Family::Compare,
            Split::Train,
            2,
            0,
            "Which number is bigger, 30 or 23?",
            "The larger number is 30",
        ),
        (
            Family::Gcd,
            Split::HeldOut,
            2,
            0,
            "What is the greatest common divisor of 68 and 51?",
            "68 = 17 * 4 and 51 = 17 * 3, so 17",
        ),
        (
            Family::Countdown,
            Split::Train,
            3,
            u64::MAX,
            "Use each of 6, 16, 11 and 10 exactly once with + - * / to make 12.",
            "6 * (10 / (16 - 11)) = 12",
        ),
    ] {
        let task = Family::task(&key(family, split, level, seed));
        assert_eq!(
            (task.question.as_str(), task.solution.as_str()),
            (question, solution)
        );
    }
}

#[test]
fn an_echo_in_any_spacing_earns_nothing() {
    for task in tasks(0..10) {
        let question = task.question.trim_end_matches(['?', '.']);
        for echo in [
            question.to_string(),
            question.to_uppercase(),
            question.replace(' ', "  \n"),
            format!("{question}! {question}?"),
            format!("You ask: {question}. I don't know."),
        ] {
            assert_eq!(reward(&task, &echo), 0.0, "{task:?}");
        }
    }
}

#[test]
fn hostile_text_is_graded_without_a_panic_and_earns_nothing() {
    let hostile = [
        "(".repeat(200_000),
        ")".repeat(200_000),
        "-".repeat(200_000),
        "7777777/".repeat(20_000),
        "9".repeat(200_000),
        "7777777,".repeat(20_000),
        "\u{2212}\u{d7}\u{f7}\u{0}\u{feff}\u{1f600}".repeat(1000),
        "0/0 = 0/0".to_string(),
        "1e999 NaN inf".to_string(),
        format!("{}-{}", i128::MIN, i128::MAX),
    ];
    for task in tasks(0..2) {
        for text in &hostile {
            assert_eq!(reward(&task, text), 0.0, "{:?}", task.key);
        }
    }
}

#[test]
fn random_text_is_graded_without_a_panic() {
    let alphabet: Vec<char> = "0123456789+-*/()=., \n;x\u{2212}\u{d7}\u{e9}"
        .chars()
        .collect();
    for (index, task) in tasks(0..20).enumerate() {
        let mut draw = Draw::new(Purpose::Baseline, made(&task), 1);
        let length = draw.index(60);
        let text: String = (0..length).map(|_| draw.choose(&alphabet)).collect();
        // Half of the texts mix in the question, to meet its edges too.
        let text = if index % 2 == 0 {
            text
        } else {
            format!("{text}{}{text}", task.question)
        };
        let reward = reward(&task, &text);
        assert!(reward == 0.0 || reward == 1.0);
    }
}

#[test]
fn a_family_has_one_name_everywhere() {
    for family in Family::ALL {
        let json = serde_json::to_string(&family).expect("a name");
        assert_eq!(json, format!("\"{family}\""));
        assert_eq!(family.name().parse(), Ok(family));
    }
    let error = "sum".parse::<Family>().expect_err("no such family");
    let words = "no task family is called \"sum\"; the families are sums, products, compare, gcd, countdown";
    assert!(error.to_string().starts_with(words), "{error}");
}

#[test]
#[should_panic(expected = "task family gcd has levels 1..=5, not 6")]
fn a_level_that_does_not_exist_is_refused() {
    Family::task(&key(Family::Gcd, Split::Train, 6, 0));
}
