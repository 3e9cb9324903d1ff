use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::draw::{Draw, Purpose};
use crate::episode::EpisodeLimits;
use crate::session::{Called, OpenSession, Session};
use crate::task::ExternalKey;
use crate::tool::{ToolCall, ToolDef, ToolOutput};
use crate::verdict::{Fault, Verdict};

/// What is wrong with a family.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    None,
    ShortAnswerAfterWords,
    ShortAnswerInTool,
    LongAnswerInSystem,
    SealedJson,
    RareLongAnswer,
    Clock,
    Moody,
    PaysNothing,
    PaysEmpty,
    PaysRandom,
    PanicsOnGarbage,
    PanicsOnCalls,
    PaysCalls,
    PanicsAtDraw,
    Hangs,
}

/// Asks for a number that a rule gives: seven times another, plus the length of a word. With a tool, that adds.
#[derive(Debug)]
struct Made(Flaw);

static CLOCK: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Debug)]
struct Adder {
    flaw: Flaw,
    answer: String,
    has_called: bool,
}

impl OpenSession for Adder {
    fn open(&self) -> Result<Box<dyn Session>, Fault> {
        Ok(Box::new(self.clone()))
    }
}

impl Session for Adder {
    fn call(
        &mut self,
        _: &str,
        arguments: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Called, Fault> {
        self.has_called = true;
        let a = arguments["a"].as_i64();
        if self.flaw == Flaw::PanicsOnCalls {
            a.expect("a number").checked_mul(7).expect("a small number");
        }
        Ok(ToolOutput::ok("added").into())
    }

    fn grade(&mut self, answer: &str) -> Result<Verdict, Fault> {
        match self.flaw {
            Flaw::PanicsOnGarbage => assert!(answer.len() < 1000, "too long a text"),
            Flaw::Hangs => thread::sleep(Duration::from_secs(30)),
            Flaw::PaysCalls if self.has_called => return Ok(Verdict::exact(true, None)),
            Flaw::PaysNothing => return Ok(Verdict::graded(0.5, Some(answer.to_string()))),
            Flaw::PaysEmpty if answer.is_empty() => return Ok(Verdict::exact(true, None)),
            Flaw::PaysRandom if answer.parse::<i64>().is_ok() => {
                return Ok(Verdict::exact(true, Some(answer.to_string())));
            }
            _ => {}
        }
        let mut found = answer.rsplit(' ').next().unwrap_or_default().to_string();
        let is_right = found == self.answer;
        if self.flaw == Flaw::Moody {
            found += &CLOCK.fetch_add(1, Ordering::SeqCst).to_string();
        }
        Ok(Verdict::exact(is_right, Some(found)))
    }
}

impl Examined for Made {
    fn task(&self, level: u32, seed: u64) -> Task {
        let flaw = self.0;
        assert!(flaw != Flaw::PanicsAtDraw || seed != 2, "no such instance");
        let mut draw = Draw::new(Purpose::Instance, &train_key(Family::Sums, level, seed), 0);
        let a = draw.between(10..=99);
        let is_long = matches!(
            flaw,
            Flaw::LongAnswerInSystem | Flaw::RareLongAnswer | Flaw::SealedJson
        );
        let answer = match is_long {
            true => format!(
                "{}-{}-{}",
                7 * a,
                draw.between(1_000_000..=9_999_999),
                draw.between(1_000_000_000_000..=9_999_999_999_999)
            ),
            false => (7 * a).to_string(),
        };
        let mut question = format!("A number is seven times {a}. Which one is it?");
        let mut tool = ToolDef::new(
            "add",
            "Adds one to a number.",
            &[("a", "integer", "a number")],
        );
        let mut system = "Answer with the number alone.".to_string();
        match flaw {
            Flaw::ShortAnswerAfterWords => question += &format!(" (internal: gold {answer})"),
            Flaw::ShortAnswerInTool => tool.description += &format!(" The result is {answer}."),
            Flaw::LongAnswerInSystem => system += &format!(" Not {answer}!"),
            Flaw::RareLongAnswer if seed == 7 => system += &format!(" Not {answer}!"),
            Flaw::Clock => {
                question += &format!(" It is {} now.", CLOCK.fetch_add(1, Ordering::SeqCst))
            }
            _ => {}
        }
        let gold = format!("{{\"goal\": \"{answer}\", \"rows\": [{a}]}}");
        if flaw == Flaw::SealedJson {
            question += &format!("\n{}", gold.replace(' ', "\n"));
        }
        let key = ExternalKey {
            environment: "made".to_string(),
            version: 1,
            split: Split::Train,
            level,
            seed,
        };
        let session = Adder {
            flaw,
            answer: answer.clone(),
            has_called: false,
        };
        let limits = EpisodeLimits::default();
        let mut task = Task::external(
            key,
            Some(system),
            question,
            vec![tool],
            limits,
            Arc::new(session),
        );
        task.witness = vec![vec![ToolCall {
            id: "1".to_string(),
            name: "add".to_string(),
            arguments: "{\"a\": 1}".to_string(),
        }]];
        task.solution = format!("It is {answer}");
        task.gold = gold;
        task
    }

    fn answer(&self, baseline: Baseline, level: u32, seed: u64, task: &Task) -> String {
        let mut draw = Draw::new(Purpose::Baseline, &train_key(Family::Sums, level, seed), 0);
        match baseline {
            Baseline::Empty => String::new(),
            Baseline::Echo => task.question.clone(),
            Baseline::Random => draw.between(70..=693).to_string(),
            Baseline::Greedy => "70".to_string(),
        }
    }
}

fn examined(flaw: Flaw, num_seeds: u64) -> Examination {
    let thoroughness = Thoroughness {
        num_seeds,
        deadline: Duration::from_secs(if flaw == Flaw::Hangs { 1 } else { 60 }),
    };
    examine(Arc::new(Made(flaw)), 1, thoroughness)
}

#[test]
fn a_sound_family_passes_every_check() {
    for num_seeds in [1, 5, 100, 1000] {
        let found = examined(Flaw::None, num_seeds);
        assert_eq!(found.problems, []);
        assert_eq!(found.rewards[0], Some(0.0));
        assert_eq!(
            found.fingerprint,
            fingerprint(&Made(Flaw::None), 1, num_seeds)
        );
    }
}

#[test]
fn every_flaw_is_found_by_its_check_alone_and_named() {
    for (flaw, check, seed, words) in [
        (
            Flaw::ShortAnswerAfterWords,
            Check::Leak,
            Some(0),
            "what follows \"internal : gold\" (time 1)",
        ),
        (
            Flaw::ShortAnswerInTool,
            Check::Leak,
            Some(0),
            "what follows \"the result is\"",
        ),
        (
            Flaw::LongAnswerInSystem,
            Check::Leak,
            Some(0),
            "as in 100 of 100 tasks",
        ),
        (
            Flaw::RareLongAnswer,
            Check::Leak,
            Some(7),
            "as in 1 of 100 tasks, and those of other seeds in 0 of 800",
        ),
        (Flaw::SealedJson, Check::Leak, Some(0), "the sealed text"),
        (Flaw::Clock, Check::Same, Some(0), "another question"),
        (Flaw::Moody, Check::Same, Some(0), "gets another verdict"),
        (
            Flaw::PaysEmpty,
            Check::Pay,
            Some(0),
            "the baseline empty earns 1; it may earn 0",
        ),
        (
            Flaw::PaysRandom,
            Check::Pay,
            None,
            "the baseline random earns 1.000 on average; it may earn 0.1",
        ),
        (
            Flaw::PanicsOnGarbage,
            Check::Garbage,
            Some(0),
            "it panicked: too long a text",
        ),
        (
            Flaw::PanicsOnCalls,
            Check::Garbage,
            Some(0),
            "it panicked: a small number",
        ),
        (
            Flaw::PaysCalls,
            Check::Garbage,
            Some(0),
            "hostile calls of add earns 1",
        ),
        (
            Flaw::PanicsAtDraw,
            Check::Same,
            Some(2),
            "it panicked: no such instance",
        ),
        (Flaw::Hangs, Check::Witness, Some(0), "took longer than 1 s"),
    ] {
        let found = examined(flaw, 100);
        let all = &found.problems;
        let is_meant = |problem: &&Problem| problem.check == check && problem.what.contains(words);
        let problem = all.iter().find(is_meant);
        let problem = problem.unwrap_or_else(|| panic!("{flaw:?}: {all:?}"));
        assert_eq!(problem.seed, seed, "{flaw:?}: {all:?}");
        // An empty answer is the garbage of hostile calls, too.
        let others = all.iter().filter(|problem| problem.check != check);
        let is_other =
            |problem: &&Problem| flaw != Flaw::PaysEmpty || problem.check != Check::Garbage;
        assert_eq!(
            others.filter(is_other).collect::<Vec<_>>(),
            Vec::<&Problem>::new(),
            "{flaw:?}"
        );
    }
}

#[test]
fn a_verifier_that_refuses_its_own_solutions_is_found() {
    let found = examined(Flaw::PaysNothing, 5);
    let witness: Vec<&Problem> = found
        .problems
        .iter()
        .filter(|p| p.check == Check::Witness)
        .collect();
    assert_eq!(witness.len(), 4, "three, and how many more: {witness:?}");
    assert!(
        witness[0]
            .what
            .starts_with("the worked solution earns 0.5, where the verifier read \"It is ")
    );
    assert_eq!(witness[3].what, "2 more of this check");
}

#[test]
fn another_process_that_draws_other_bytes_is_found() {
    let mut found = examined(Flaw::None, 3);
    let own = found.fingerprint.clone();
    found.compare(&own);
    assert_eq!(found.problems, []);
    found.compare("0");
    assert_eq!(found.problems[0].check, Check::Same);
    assert!(found.problems[0].what.contains("another process"));
}

#[test]
fn every_family_passes() {
    let mut problems = Vec::new();
    for family in Family::ALL {
        // What runs code is examined with fewer seeds, where a sandbox works.
        let num_seeds = match (family.is_quick(), family.needs_sandbox()) {
            (true, _) => 100,
            (false, false) => 10,
            (false, true) if crate::sandboxed::tests::has_sandbox() => 2,
            (false, true) => continue,
        };
        for level in family.levels() {
            let thoroughness = Thoroughness {
                num_seeds,
                deadline: Duration::from_secs(60),
            };
            let found = examine(Arc::new(family), level, thoroughness);
            let of_level = |problem| (family, level, problem);
            problems.extend(found.problems.into_iter().map(of_level));
        }
    }
    assert_eq!(problems, []);
}
