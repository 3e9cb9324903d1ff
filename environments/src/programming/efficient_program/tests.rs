//! The fast algorithms against slow ones, and how long the slow ones take.

use std::time::Duration;

use super::*;
use crate::family::Family;
use crate::sandboxed::tests::has_sandbox;
use crate::task::{FamilyKey, Split};

fn gold(level: u32, seed: u64) -> Gold {
    let key = FamilyKey {
        family: Family::EfficientProgram,
        split: Split::Train,
        level,
        seed,
    };
    unsealed(&Family::task(&key).gold)
}

/// One gold of each question, by level.
fn golds() -> Vec<(u32, Gold)> {
    let mut golds: Vec<(u32, Gold)> = Vec::new();
    for level in EfficientProgram.levels() {
        for seed in 0..20 {
            let gold = gold(level, seed);
            let sort = std::mem::discriminant(&gold.question);
            let is_known = |known: &(u32, Gold)| std::mem::discriminant(&known.1.question) == sort;
            if !golds.iter().any(is_known) {
                golds.push((level, gold));
            }
        }
    }
    assert_eq!(golds.len(), 10, "every question is drawn");
    golds
}

fn slow(gold: &Gold) -> String {
    gold.function("", &gold.question.slow_python())
}

#[test]
fn slow_and_fast_algorithms_agree_here_and_in_python() {
    if !has_sandbox() {
        return;
    }
    for (_, gold) in golds() {
        let (imports, lines) = gold.question.fast_python();
        let mut inputs = gold.inputs();
        inputs.pop();
        let answers: Vec<Value> = inputs
            .iter()
            .map(|x| Value::Integer(gold.answer(x)))
            .collect();
        let inputs: Vec<Value> = inputs.into_iter().map(Value::List).collect();
        for code in [slow(&gold), gold.function(imports, &lines)] {
            let verdict = judge::grade_code(&code, &inputs, &answers);
            assert_eq!(verdict.reward(), Some(1.0), "{gold:?} {code}");
        }
    }
}

#[test]
fn slow_algorithms_run_into_the_limit_and_earn_nothing() {
    if !has_sandbox() {
        return;
    }
    for (_, gold) in golds().into_iter().step_by(6) {
        let sealed = sealed(&gold);
        let verdict = EfficientProgram.grade(&sealed, &block(&slow(&gold)));
        let Verdict::Graded { reward, parts, .. } = verdict else {
            panic!("a slow program is no fault of the sandbox");
        };
        assert_eq!(reward, 0.0, "{gold:?}");
        assert!(parts.contains_key("timed_out"), "{parts:?}");
    }
}

/// Prints rows of the table of `docs/families/programming.md`: minutes of processor time, so one test a level.
mod measure_slow_algorithms {
    use super::*;

    fn measure(wanted: u32) {
        assert!(has_sandbox());
        for (level, gold) in golds().into_iter().filter(|(level, _)| *level == wanted) {
            let longest = gold.inputs().pop().expect("the longest");
            let stdin = Value::List(longest).json() + "\n";
            let secs = |code: &str| {
                let outcome = judge::run_within(code, &stdin, 150, Duration::from_secs(300));
                let outcome = outcome.expect("no fault");
                assert!(outcome.is_success(), "{gold:?} {outcome:?}");
                outcome.cpu.expect("control groups").as_secs_f64()
            };
            let (imports, lines) = gold.question.fast_python();
            let (fast, slow) = (secs(&gold.function(imports, &lines)), secs(&slow(&gold)));
            let name = format!("{:?}", gold.question);
            let name = name.split(' ').next().unwrap_or_default().to_string();
            let len = gold.question.max_len();
            println!("| {level} | {name} | {len} | {fast:.2} s | {slow:.1} s |");
        }
    }

    macro_rules! levels {
        ($($name:ident: $level:literal),*) => {$(
            #[test]
            #[ignore = "measures for minutes; it prints rows of a table of the documentation"]
            fn $name() {
                measure($level);
            }
        )*};
    }
    levels!(level_1: 1, level_2: 2, level_3: 3, level_4: 4, level_5: 5);
}
