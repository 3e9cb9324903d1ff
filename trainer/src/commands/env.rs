//! `baleen env`: the task families; their tasks looked at, examined and played.

mod check;
mod elsewhere;
mod list;
mod play;
mod show;
mod turns;

use clap::Subcommand;
use environments::{Family, FamilyKey, Split, Task};

use super::Failure;
use crate::config_error::nearest;

/// List task families, look at their tasks, check and play them
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    List(list::Args),
    Show(show::Args),
    Check(check::Args),
    Play(play::Args),
    Fingerprint(elsewhere::Args),
}

/// Which task is meant.
#[derive(Debug, clap::Args)]
struct TaskArguments {
    /// Task family, such as sums
    family: String,
    /// Difficulty [default: the easiest]
    #[arg(long, value_name = "N")]
    level: Option<u32>,
    /// Picks the task
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// A task kept for evaluation instead of one trained on
    #[arg(long)]
    held_out: bool,
}

impl TaskArguments {
    fn key(&self) -> Result<FamilyKey, Failure> {
        let family = family(&self.family)?;
        let level = self.level.unwrap_or(*family.levels().start());
        check_level(family, level)?;
        Ok(FamilyKey {
            family,
            split: match self.held_out {
                true => Split::HeldOut,
                false => Split::Train,
            },
            level,
            seed: self.seed,
        })
    }
}

/// Does what was asked.
pub fn run(args: &Args) -> Result<(), Failure> {
    match &args.action {
        Action::List(args) => list::run(args),
        Action::Show(args) => show::run(args),
        Action::Check(args) => check::run(args),
        Action::Play(args) => play::run(args),
        Action::Fingerprint(args) => elsewhere::run(args),
    }
}

/// The family called `name`.
pub(super) fn family(name: &str) -> Result<Family, Failure> {
    name.parse().map_err(|error| {
        let hint = match nearest(name, &Family::ALL.map(Family::name)) {
            Some(nearest) => format!("did you mean {nearest}?"),
            None => "`baleen env list` tells what each is".to_string(),
        };
        Failure::usage(error).hint(hint)
    })
}

/// Refuses a level that `family` doesn't have.
pub(super) fn check_level(family: Family, level: u32) -> Result<(), Failure> {
    let levels = family.levels();
    match levels.contains(&level) {
        true => Ok(()),
        false => Err(Failure::usage(format!(
            "{family} has levels {} to {}, not {level}",
            levels.start(),
            levels.end()
        ))),
    }
}

/// The fields of a key, and what else names its task.
fn title(key: &FamilyKey) -> String {
    let FamilyKey {
        family,
        split,
        level,
        seed,
    } = key;
    let split = match split {
        Split::Train => "train",
        Split::HeldOut => "held_out",
    };
    let (domain, version) = (family.domain().name(), family.version());
    format!(
        "family {family}, split {split}, level {level}, seed {seed}; domain {domain}, version {version}"
    )
}

/// What the policy is shown of `task`.
fn shown(task: &Task) -> String {
    let mut text = String::new();
    if let Some(system) = &task.system {
        text += &format!("system:\n{system}\n\n");
    }
    text += &format!("user:\n{}\n", task.question);
    if !task.tools.is_empty() {
        text += "\ntools:\n";
    }
    for tool in &task.tools {
        text += &format!("{:#}\n", tool.to_json());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_family_is_met_with_the_nearest_name() {
        let text = |name| family(name).expect_err("no family").to_string();
        assert!(text("suduko").ends_with("hint: did you mean sudoku?\n"));
        assert!(text("suduko").contains("the families are sums, products"));
        assert!(text("an_xyz_of_quite_another_kind").contains("hint: `baleen env list`"));
    }

    #[test]
    fn a_level_that_is_not_there_is_met_with_those_that_are() {
        let error = check_level(Family::Gcd, 6).expect_err("no level");
        assert_eq!(error.to_string(), "error: gcd has levels 1 to 5, not 6\n");
        assert!(check_level(Family::Gcd, 5).is_ok());
    }
}
