//! Measures the levels: how many well-formed answers are right that were drawn at random, or by a small change of a
//! right one. The table is on `docs/families/programming.md`, and a test compares it with that page.

use crate::draw::{Draw, Purpose};
use crate::family::Family;
use crate::instance::TaskFamily;
use crate::programming::compose_function::{self, unsealed};
use crate::programming::invert_program::InvertProgram;
use crate::programming::judge;
use crate::programming::program::{Program, inputs};
use crate::programming::regex_synthesis::RegexSynthesis;
use crate::programming::repair_program::{self, catalogue, lookalikes};
use crate::programming::value::{Kind, Value};
use crate::task::{FamilyKey, Split};

const PAGE: &str = include_str!("../../../docs/families/programming.md");
/// Tasks of a level that are measured.
const NUM_TASKS: u64 = 30;

/// How many answers were right, of how many.
#[derive(Clone, Copy, Default)]
struct Share(usize, usize);

impl Share {
    fn add(&mut self, is_right: bool) {
        self.0 += usize::from(is_right);
        self.1 += 1;
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.1 {
            0 => f.write_str("-"),
            all => write!(f, "{} of {all}", self.0),
        }
    }
}

/// The tasks of a level, each with the gold and a stream of draws.
fn tasks(family: Family, level: u32) -> impl Iterator<Item = (String, String, Draw)> {
    (0..NUM_TASKS).map(move |seed| {
        let key = FamilyKey {
            family,
            split: Split::Train,
            level,
            seed,
        };
        let task = Family::task(&key);
        (
            task.gold,
            task.question,
            Draw::new(Purpose::Baseline, &key, 2),
        )
    })
}

/// Random programs, and right ones with one step replaced by a lookalike.
fn composed(level: u32) -> (Share, Share) {
    let (mut random, mut near) = (Share::default(), Share::default());
    for (gold, _, mut draw) in tasks(Family::ComposeFunction, level) {
        let gold: compose_function::Gold = unsealed(&gold);
        let (kind, num_steps) = (gold.program.input, gold.program.steps.len());
        for _ in 0..1000 {
            random.add(gold.accepts(&Program::draw(kind, num_steps, &mut draw)));
        }
        let kinds = gold.program.kinds().expect("steps fit each other");
        for (at, kind) in kinds.into_iter().take(num_steps).enumerate() {
            for step in lookalikes(&gold.program.steps[at], kind) {
                let mut other = gold.program.clone();
                other.steps[at] = step;
                near.add(gold.accepts(&other));
            }
        }
    }
    (random, near)
}

/// The shown program with as many steps as are wrong, drawn at random, replaced by random lookalikes.
fn repaired(level: u32) -> (Share, Share) {
    let mut random = Share::default();
    for (gold, _, mut draw) in tasks(Family::RepairProgram, level) {
        let gold: repair_program::Gold = unsealed(&gold);
        let kinds = gold.wrong.kinds().expect("steps fit each other");
        for _ in 0..50 {
            let mut guess = gold.wrong.clone();
            let mut places: Vec<usize> = (0..guess.steps.len()).collect();
            for _ in 0..gold.num_wrong {
                let at = places.swap_remove(draw.index(places.len()));
                let steps = lookalikes(&gold.wrong.steps[at], kinds[at]);
                if !steps.is_empty() {
                    guess.steps[at] = draw.choose(&steps);
                }
            }
            random.add(gold.right.accepts(&guess));
        }
    }
    (random, Share::default())
}

/// Random answers of the family's own.
fn answered(family: Family, definition: &dyn TaskFamily, level: u32, num: usize) -> (Share, Share) {
    let mut random = Share::default();
    for (gold, question, mut draw) in tasks(family, level) {
        for _ in 0..num {
            let answer = definition.random_answer(level, &question, &mut draw);
            random.add(definition.grade(&gold, &answer).reward() == Some(1.0));
        }
    }
    (random, Share::default())
}

#[test]
fn the_documented_levels_are_the_measured_ones() {
    let mut table = String::new();
    for (family, measure) in [
        (
            Family::ComposeFunction,
            &composed as &dyn Fn(u32) -> (Share, Share),
        ),
        (Family::InvertProgram, &|level| {
            answered(Family::InvertProgram, &InvertProgram, level, 1000)
        }),
        (Family::RegexSynthesis, &|level| {
            answered(Family::RegexSynthesis, &RegexSynthesis, level, 60)
        }),
        (Family::RepairProgram, &repaired),
    ] {
        for level in family.levels() {
            let (random, near) = measure(level);
            table += &format!("| {family} | {level} | {random} | {near} |\n");
        }
    }
    for row in table.lines() {
        assert!(PAGE.contains(row), "put this table on the page:\n{table}");
    }
}

#[test]
fn every_step_does_the_same_in_rust_and_in_python() {
    if !crate::sandboxed::tests::has_sandbox() {
        return;
    }
    for kind in Kind::INPUTS {
        let key = FamilyKey {
            family: Family::ComposeFunction,
            split: Split::Train,
            level: 1,
            seed: 0,
        };
        let given = inputs(kind, 12, &mut Draw::new(Purpose::Baseline, &key, 3));
        let shown: Vec<String> = given.iter().map(Value::json).collect();
        let mut code = format!("import json\nGIVEN = {:?}\nSTEPS = []\n", shown.join(";"));
        let (mut asked, mut expected) = (Vec::new(), Vec::new());
        for (number, (step, _)) in catalogue(kind).iter().enumerate() {
            let program = Program {
                input: kind,
                steps: vec![*step],
            };
            code += &format!("{}\nSTEPS.append(solve)\n", program.python());
            for (place, input) in given.iter().enumerate() {
                asked.push(Value::List(vec![number as i64, place as i64]));
                expected.push(step.apply(input));
            }
        }
        code += "def solve(x):\n    return STEPS[x[0]](json.loads(GIVEN.split(';')[x[1]]))\n";
        assert!(
            catalogue(kind).len() > 80,
            "{kind:?}: {}",
            catalogue(kind).len()
        );
        let verdict = judge::grade_code(&code, &asked, &expected);
        assert_eq!(verdict.reward(), Some(1.0), "{kind:?}");
    }
}
