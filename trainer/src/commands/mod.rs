//! What `baleen` can be asked to do: one file a command, each with its arguments and `run`.
//!
//! Results go to standard output, all else to standard error. An error reaches `main` once, as a
//! [`Failure`] with its hint and exit code.

mod bench;
mod broken_invariant;
mod chat;
mod doctor;
mod env;
mod eval;
mod export;
mod failure;
mod fsck;
mod generate;
mod import;
mod logging;
mod model_arguments;
mod output;
mod plan;
mod replay;
mod report;
mod resume;
mod rollout;
mod sandbox;
mod score;
mod selftest;
mod status;
mod stop;
mod train;
mod watch;

use clap::{Parser, Subcommand};

pub use failure::Failure;

/// RL post-training of sparse mixture-of-experts language models
#[derive(Debug, Parser)]
#[command(
    name = "baleen",
    version,
    about,
    after_help = "\
Examples:
  baleen train configs/quickstart.ron              train; everything lands in runs/quickstart
  baleen train configs/quickstart.ron --dry-run    show what would be run, and its size
  baleen doctor configs/quickstart.ron             whether the run would be sound, before it starts
  baleen train configs/quickstart.ron --run runs/b --set seed=2 --set sampling.temperature=0.8
  baleen status runs/quickstart                    how far a run is, and how its rewards go
  baleen watch runs/quickstart                     the same live: curves, samples, log
  baleen resume runs/quickstart                    continue after a stop, a crash or a kill
  baleen fsck runs/quickstart                      whether everything in a run folder is whole
  baleen rollout configs/quickstart.ron --out samples   sample and grade, train nothing
  baleen replay runs/quickstart --step 40 --json step.json   a step's arithmetic, token by token
  baleen export runs/quickstart models/now         the newest checkpoint as a Hugging Face folder
  baleen report runs/quickstart                    curves, advice and samples as an HTML page
  baleen import model.gguf models/moe --upcycle experts=4,top_k=2 --dsa heads=4,dim=32,topk=16
  baleen generate models/moe --prompt 'What is 2 + 3?'
  baleen eval models/moe --family sums --level 2 --prompts 256
  baleen chat encode conversation.json --model models/moe --thinking
  baleen env show order_desk --level 3             a task as the policy sees it; list, check, play
  baleen sandbox doctor                            whether programs of a policy can be run here
  baleen bench smollm2-135m --dtype f32            how fast this machine is, against its limits

Ctrl-C or SIGTERM ends a run after the current step, saved; a second one ends it at once.

Exit codes:
  0  done, or stopped on request after saving
  1  failed while running
  2  wrong usage, configuration or model"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(train::Args),
    Doctor(doctor::Args),
    Resume(resume::Args),
    Status(status::Args),
    Watch(watch::Args),
    Fsck(fsck::Args),
    Rollout(rollout::Args),
    Replay(replay::Args),
    Export(export::Args),
    Report(report::Args),
    Import(import::Args),
    Generate(generate::Args),
    Score(score::Args),
    Eval(eval::Args),
    Chat(chat::Args),
    Env(env::Args),
    Sandbox(sandbox::Args),
    Bench(bench::Args),
    Selftest(selftest::Args),
}

impl Cli {
    /// Does what was asked.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub fn run(self) -> Result<(), Failure> {
        broken_invariant::caught(|| match &self.command {
            Command::Train(args) => train::run(args),
            Command::Doctor(args) => doctor::run(args),
            Command::Resume(args) => resume::run(args),
            Command::Status(args) => status::run(args),
            Command::Watch(args) => watch::run(args),
            Command::Fsck(args) => fsck::run(args),
            Command::Rollout(args) => rollout::run(args),
            Command::Replay(args) => replay::run(args),
            Command::Export(args) => export::run(args),
            Command::Report(args) => report::run(args),
            Command::Import(args) => import::run(args),
            Command::Generate(args) => generate::run(args),
            Command::Score(args) => score::run(args),
            Command::Eval(args) => eval::run(args),
            Command::Chat(args) => chat::run(args),
            Command::Env(args) => env::run(args),
            Command::Sandbox(args) => sandbox::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Selftest(args) => selftest::run(args),
        })
        .inspect_err(logging::record_failure)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_example_of_the_help_parses() {
        let help = Cli::command().render_long_help().to_string();
        let examples: Vec<&str> = help
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with("baleen "))
            .collect();
        assert!(examples.len() > 10, "{}", examples.len());
        for example in examples {
            let without_comment = example.split("  ").next().expect("split gives one");
            // Enough shell for the examples: a quoted argument stays one.
            let words: Vec<String> = without_comment
                .split('\'')
                .enumerate()
                .flat_map(|(i, part)| match i % 2 {
                    0 => part.split_whitespace().map(str::to_string).collect(),
                    _ => vec![part.to_string()],
                })
                .collect();
            let parsed = Cli::try_parse_from(words);
            assert!(parsed.is_ok(), "{example}: {}", parsed.expect_err("not ok"));
        }
    }
}
