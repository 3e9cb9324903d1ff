//! `baleen env check`: whether families are fit to train on, on this machine.

use std::sync::Arc;
use std::time::Duration;

use environments::examination::{Check, Examination, Problem, Thoroughness, examine};
use environments::{Baseline, Family};
use serde::Serialize;

use super::super::{Failure, output};
use super::elsewhere::Elsewhere;
use super::{check_level, family};

/// Seeds of a family whose tasks are drawn and graded quickly.
const NUM_SEEDS: u64 = 100;
/// Of those whose tasks take longer to draw: still enough to find a short answer by its place.
const NUM_SEEDS_OF_SLOW: u64 = 40;
/// Of those whose answers are run in the sandbox.
const NUM_SEEDS_IN_SANDBOX: u64 = 5;
/// What one draw or the grading of one completion may take. Code that a policy wrote may run for some seconds.
const DEADLINE: Duration = Duration::from_secs(60);

/// Check families: determinism, worked solutions, baselines, leaks, garbage
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Checks, over training tasks (docs/environments.md tells more):
  same     a key gives the same bytes, twice and in another process; a completion the same verdict
  witness  the worked solution earns 1
  pay      an empty answer earns 0, an echo of the question at most 0.01, a random answer at most 0.1
  leak     the answer can't be read off the prompt or the tools
  garbage  hostile text and calls are graded, and earn nothing

greedy, the cheapest shortcut known, may earn anything: a policy has learned something above it.")]
pub struct Args {
    #[command(flatten)]
    selection: Selection,
    /// Print one line of JSON a level instead of the table
    #[arg(long)]
    json: bool,
}

/// Which families, levels and seeds.
#[derive(Debug, clap::Args)]
pub struct Selection {
    /// Task families [default: all]
    #[arg(value_name = "FAMILY")]
    pub families: Vec<String>,
    /// This level alone [default: all]
    #[arg(long, value_name = "N")]
    pub level: Option<u32>,
    /// Seeds of each level [default: 100; 40 where tasks take long, 5 where answers are run]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub seeds: Option<u64>,
}

impl Selection {
    /// Families and levels, in order. A level that only some families have is left out of the others, unless they
    /// were named.
    pub fn levels(&self) -> Result<Vec<(Family, u32)>, Failure> {
        let are_named = !self.families.is_empty();
        let families: Vec<Family> = match are_named {
            true => self
                .families
                .iter()
                .map(|name| family(name))
                .collect::<Result<_, _>>()?,
            false => Family::ALL.to_vec(),
        };
        let mut levels = Vec::new();
        for family in families {
            match self.level {
                None => levels.extend(family.levels().map(|level| (family, level))),
                Some(level) if are_named || family.levels().contains(&level) => {
                    check_level(family, level)?;
                    levels.push((family, level));
                }
                Some(_) => {}
            }
        }
        match levels.is_empty() {
            true => Err(Failure::usage("no family has such a level")),
            false => Ok(levels),
        }
    }

    /// Seeds of each level of `family`.
    pub fn num_seeds(&self, family: Family) -> u64 {
        let usual = match (family.needs_sandbox(), family.is_quick()) {
            (true, _) => NUM_SEEDS_IN_SANDBOX,
            (false, true) => NUM_SEEDS,
            (false, false) => NUM_SEEDS_OF_SLOW,
        };
        self.seeds.unwrap_or(usual)
    }
}

/// A line of `--json`.
#[derive(Debug, Serialize)]
struct Row<'a> {
    family: Family,
    passed: bool,
    #[serde(flatten)]
    examination: &'a Examination,
}

/// Prints a line a level, then every problem; fails where there is one.
pub fn run(args: &Args) -> Result<(), Failure> {
    let mut levels = args.selection.levels()?;
    let without_sandbox = without_sandbox(&mut levels, &args.selection)?;
    // Drawing goes on there while tasks are graded here.
    let mut elsewhere = Elsewhere::start(&levels, &args.selection).map_err(Failure::running)?;
    let mut reads_on = args.json || output::print_line(&heading())?;
    let mut problems: Vec<(Family, u32, Problem)> = Vec::new();
    for (i, &(family, level)) in levels.iter().enumerate() {
        let num_seeds = args.selection.num_seeds(family);
        let thoroughness = Thoroughness {
            num_seeds,
            deadline: DEADLINE,
        };
        let mut examination = examine(Arc::new(family), level, thoroughness);
        match elsewhere.fingerprint(family, level, num_seeds) {
            // One that did not come to its end here has none to compare.
            _ if examination.fingerprint.is_empty() => {
                elsewhere = Elsewhere::start(&levels[i + 1..], &args.selection)
                    .map_err(Failure::running)?;
            }
            Ok(sum) => examination.compare(&sum),
            Err(problem) => {
                let what = format!("another process could not draw the tasks: {problem}");
                examination.problems.push(Problem {
                    check: Check::Same,
                    seed: None,
                    what,
                });
                elsewhere = Elsewhere::start(&levels[i + 1..], &args.selection)
                    .map_err(Failure::running)?;
            }
        }
        if reads_on {
            reads_on = output::print_line(&match args.json {
                true => json_line(family, &examination)?,
                false => row(family, &examination),
            })?;
        }
        let found = examination.problems.into_iter();
        problems.extend(found.map(|problem| (family, level, problem)));
    }
    if !args.json {
        for text in problems.iter().map(told).chain(without_sandbox) {
            reads_on = reads_on && output::print_line(&text)?;
        }
        if reads_on && problems.is_empty() {
            output::print_line(&format!("\n{} levels, no problem", levels.len()))?;
        }
    }
    failure(&problems)
}

/// Takes families out that can't be graded on this machine, and says so.
///
/// # Errors
/// They were asked for by name.
fn without_sandbox(
    levels: &mut Vec<(Family, u32)>,
    selection: &Selection,
) -> Result<Option<String>, Failure> {
    let needs_sandbox = |(family, _): &(Family, u32)| family.needs_sandbox();
    if !levels.iter().any(needs_sandbox) {
        return Ok(None);
    }
    let Err(fault) = environments::sandbox() else {
        return Ok(None);
    };
    let mut names: Vec<&str> = levels
        .iter()
        .filter(|level| needs_sandbox(level))
        .map(|(family, _)| family.name())
        .collect();
    names.dedup();
    let names = names.join(", ");
    let what = format!(
        "{names} can't be examined: they run what the policy writes, and {}",
        fault.reason
    );
    levels.retain(|level| !needs_sandbox(level));
    match selection.families.is_empty() && !levels.is_empty() {
        true => Ok(Some(format!("\nNOT EXAMINED {what}"))),
        false => {
            Err(Failure::running(what).hint("`baleen sandbox doctor` says what this machine lacks"))
        }
    }
}

fn failure(problems: &[(Family, u32, Problem)]) -> Result<(), Failure> {
    let mut failed: Vec<String> = problems
        .iter()
        .map(|(family, level, problem)| format!("{family} {level} ({})", problem.check))
        .collect();
    failed.dedup();
    match failed.is_empty() {
        true => Ok(()),
        false => Err(
            Failure::running(format!("these failed: {}", failed.join(", "))).hint(
                "`baleen env show FAMILY --level N --seed N --witness` shows a task; docs/environments.md tells more \
                 about each check",
            ),
        ),
    }
}

fn heading() -> String {
    let rewards = Baseline::ALL.map(|baseline| format!("{:>6}", baseline.name()));
    let checks = Check::ALL.map(|check| format!("{:<7}", check.name()));
    format!(
        "{:<18} {:>5} {:>6}  {}  {}",
        "family",
        "level",
        "seeds",
        rewards.join(" "),
        checks.join(" ")
    )
    .trim_end()
    .to_string()
}

fn row(family: Family, examination: &Examination) -> String {
    let rewards = examination.rewards.map(|reward| match reward {
        Some(reward) => format!("{reward:>6.3}"),
        None => format!("{:>6}", "-"),
    });
    let checks = Check::ALL.map(|check| {
        let state = match examination.passes(check) {
            true if examination.fingerprint.is_empty() => "-",
            true => "ok",
            false => "FAILED",
        };
        format!("{state:<7}")
    });
    format!(
        "{family:<18} {:>5} {:>6}  {}  {}",
        examination.level,
        examination.num_seeds,
        rewards.join(" "),
        checks.join(" ")
    )
    .trim_end()
    .to_string()
}

fn json_line(family: Family, examination: &Examination) -> Result<String, Failure> {
    let row = Row {
        family,
        passed: examination.problems.is_empty(),
        examination,
    };
    serde_json::to_string(&row).map_err(Failure::running)
}

fn told((family, level, problem): &(Family, u32, Problem)) -> String {
    let seed = problem
        .seed
        .map_or_else(String::new, |seed| format!(" seed {seed}"));
    format!(
        "\nFAILED {family} level {level}{seed}: {}: {}\n  to do: {}",
        problem.check,
        problem.what,
        problem.check.advice()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(families: &[&str], level: Option<u32>) -> Selection {
        Selection {
            families: families.iter().map(|name| name.to_string()).collect(),
            level,
            seeds: None,
        }
    }

    #[test]
    fn all_families_are_meant_unless_some_are_named() {
        let levels = |families: &[&str], level| selection(families, level).levels();
        assert!(levels(&[], None).expect("all").len() > 100);
        let hardest = levels(&[], Some(6)).expect("some have it");
        assert!(hardest.contains(&(Family::Sums, 6)) && !hardest.contains(&(Family::Gcd, 6)));
        assert_eq!(
            levels(&["gcd"], Some(5)).expect("it has"),
            [(Family::Gcd, 5)]
        );
        let refused = |families, level| levels(families, level).expect_err("no").to_string();
        assert!(refused(&["gcd"], Some(6)).contains("levels 1 to 5, not 6"));
        assert!(refused(&[], Some(99)).contains("no family"));
    }

    #[test]
    fn a_problem_is_told_with_its_place_and_what_to_do_and_fails() {
        let problem = |seed| Problem {
            check: Check::Leak,
            seed,
            what: "it is there".to_string(),
        };
        let found = [
            (Family::Sums, 2, problem(Some(7))),
            (Family::Sums, 2, problem(None)),
        ];
        let text = told(&found[0]);
        assert!(
            text.starts_with("\nFAILED sums level 2 seed 7: leak: it is there\n  to do: take the")
        );
        assert!(told(&found[1]).starts_with("\nFAILED sums level 2: leak"));
        let failure = failure(&found).expect_err("it fails").to_string();
        assert!(
            failure.starts_with("error: these failed: sums 2 (leak)\n"),
            "{failure}"
        );
        let examination = Examination {
            level: 2,
            num_seeds: 9,
            rewards: [Some(0.0), Some(0.0), Some(0.05), None],
            problems: vec![problem(None)],
            fingerprint: "f".to_string(),
        };
        let row = row(Family::Sums, &examination);
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(
            words,
            [
                "sums", "2", "9", "0.000", "0.000", "0.050", "-", "ok", "ok", "ok", "FAILED", "ok"
            ]
        );
        assert_eq!(words.len(), heading().split_whitespace().count());
    }
}
