//! `baleen eval`: a policy plays held-out tasks, one sample each, graded exactly.
//!
//! The prompts are those of a run's own evaluation with the same environments, so the overall rate
//! of `baleen eval RUN` compares with the run's `held_out_pass_rate`.

use std::sync::Arc;

use environments::{Family, Split};
use model::chat::ChatOptions;
use rollout::{
    EpisodeHost, EpisodesConfig, FinishReason, GradingConfig, Group, GuardedGrader, Judge,
};
use rollout::{MemorySettings, SamplingConfig};

use super::model_arguments::ModelArguments;
use super::{Failure, env, output};
use crate::config::{EnvironmentConfig, EvaluationConfig, TaskSource};
use crate::dataset_record;
use crate::progress::Progress;
use crate::prompts::{PromptSource, open_tasks};
use crate::run_folder::RunLayout;
use crate::sandbox_check;

/// Measure how many held-out tasks a policy solves
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  baleen eval models/moe --family sums --level 2 --prompts 256
  baleen eval models/moe --family sums --family compare --level 1 --level 3
  baleen eval runs/quickstart        the run's own tasks, prompts and temperature")]
pub struct Args {
    #[command(flatten)]
    model: ModelArguments,
    /// Task family; repeatable [default: those of the run]
    #[arg(long)]
    family: Vec<String>,
    /// Difficulty: one for all families, or one for each in order [default: 1]
    #[arg(long, requires = "family")]
    level: Vec<u32>,
    /// Held-out prompts, one sample each [default: the run's, or 256]
    #[arg(long)]
    prompts: Option<usize>,
    /// Sampling temperature; 0 always takes the most likely token [default: the run's, or 1]
    #[arg(long)]
    temperature: Option<f64>,
    /// New tokens at most [default: the run's, or 24]
    #[arg(long)]
    max_new_tokens: Option<usize>,
    /// System message [default: the run's, or the chat template's own]
    #[arg(long)]
    system: Option<String>,
    /// Random draws derive from it [default: the run's, or 0]
    #[arg(long)]
    seed: Option<u64>,
}

/// What is played, once arguments, run and defaults are put together.
struct Plan {
    environments: Vec<EnvironmentConfig>,
    prompts: usize,
    sampling: SamplingConfig,
    grading: GradingConfig,
    episodes: EpisodesConfig,
    system_prompt: Option<String>,
    seed: u64,
    max_batch_sequences: usize,
    memory: MemorySettings,
}

/// Plays and prints a table.
pub fn run(args: &Args) -> Result<(), Failure> {
    let plan = args.plan()?;
    sandbox_check::check(&plan.environments)?;
    let model = args.model.load()?;
    let settings = model.generation(
        plan.sampling,
        plan.seed,
        plan.max_batch_sequences,
        plan.memory,
    )?;
    let (shape, max_new_tokens) = (model.policy.config(), settings.sampling.max_new_tokens);
    let tasks = Arc::new(open_tasks(
        &plan.environments,
        shape,
        &model.tokenizer,
        max_new_tokens,
    )?);
    let layout = RunLayout::new(&args.model.model);
    if let Some((path, problem)) = dataset_record::changed_since(&layout, &tasks)? {
        tracing::warn!(
            "{path} is not what it was when the run began ({problem}): figures don't compare with the run's"
        );
    }
    let source = PromptSource {
        environments: &plan.environments,
        tasks: &tasks,
        system_prompt: plan.system_prompt.as_deref(),
        seed: plan.seed,
        tokenizer: &model.tokenizer,
        context: shape.max_position_embeddings,
        max_new_tokens,
    };
    let prompts = (0..plan.prompts as u64)
        .map(|id| source.prompt(Split::HeldOut, id))
        .collect::<Result<Vec<_>, _>>()?;
    let grader = GuardedGrader::new(tasks.clone(), &plan.grading);
    let episodes = EpisodeHost {
        tasks: tasks.clone(),
        tokenizer: model.tokenizer.clone(),
        chat: ChatOptions::default(),
        system_prompt: plan.system_prompt.clone(),
        config: plan.episodes,
    };
    let progress = Progress::new("evaluation", plan.prompts as u64, "samples");
    let (groups, _) = rollout::sample_groups(
        &model.policy,
        prompts,
        1,
        &settings,
        Judge {
            decode: &|tokens| model.tokenizer.decode(tokens),
            grader: &grader,
            episodes: Some(&episodes),
            rewards: None,
        },
        &mut |finished, _| progress.set(finished as u64),
    )?;
    progress.finish();
    grader.check()?;
    output::print_line(&table(&plan.environments, &groups)).map(|_| ())
}

impl Args {
    fn plan(&self) -> Result<Plan, Failure> {
        let layout = RunLayout::new(&self.model.model);
        let run = match layout.is_run() {
            true => Some(layout.read_config()?),
            false => None,
        };
        let environments = match (&run, self.family.is_empty()) {
            (_, false) => environments(&self.family, &self.level)?,
            (Some(run), true) => run.environments.clone(),
            (None, true) => {
                let hint = format!("the families are {}", family_names());
                return Err(Failure::usage("which tasks? name a --family").hint(hint));
            }
        };
        let defaults = run
            .as_ref()
            .map_or_else(EvaluationConfig::default, |run| run.evaluation.clone());
        let new_tokens = run.as_ref().map(|run| run.sampling.max_new_tokens);
        let sampling = SamplingConfig::default();
        Ok(Plan {
            environments,
            prompts: self.prompts.unwrap_or(defaults.prompts),
            sampling: SamplingConfig {
                temperature: self.temperature.unwrap_or(defaults.temperature),
                max_new_tokens: self
                    .max_new_tokens
                    .or(new_tokens)
                    .unwrap_or(sampling.max_new_tokens),
                ..sampling
            },
            episodes: run
                .as_ref()
                .map_or_else(EpisodesConfig::default, |run| run.episodes.clone()),
            grading: run
                .as_ref()
                .map_or_else(GradingConfig::default, |run| run.grading.clone()),
            system_prompt: self
                .system
                .clone()
                .or_else(|| run.as_ref()?.system_prompt.clone()),
            seed: self
                .seed
                .or_else(|| Some(run.as_ref()?.seed))
                .unwrap_or_default(),
            max_batch_sequences: run.as_ref().map_or(64, |run| run.max_batch_sequences),
            memory: run.as_ref().map(|run| run.memory()).unwrap_or_default(),
        })
    }
}

/// Families and levels from the command line, in equal shares.
fn environments(families: &[String], levels: &[u32]) -> Result<Vec<EnvironmentConfig>, Failure> {
    if levels.len() > 1 && levels.len() != families.len() {
        return Err(Failure::usage(format!(
            "{} --level for {} --family: give one for all, or one for each",
            levels.len(),
            families.len()
        )));
    }
    families
        .iter()
        .enumerate()
        .map(|(i, name)| {
            let family = env::family(name)?;
            let level = levels.get(i).or(levels.first()).copied().unwrap_or(1);
            env::check_level(family, level)?;
            Ok(EnvironmentConfig {
                source: TaskSource::Family { family, level },
                weight: 1.0,
                kl_scale: 1.0,
                mcp: Vec::new(),
                rubric: None,
            })
        })
        .collect()
}

fn family_names() -> String {
    Family::ALL.map(Family::name).join(", ")
}

/// One line for each environment and one for all.
fn table(environments: &[EnvironmentConfig], groups: &[Group]) -> String {
    let mut text = format!(
        "{:<12} {:>5} {:>8} {:>7} {:>7} {:>7} {:>7} {:>9}",
        "family", "level", "prompts", "passed", "+-", "reward", "tokens", "finished"
    );
    let mut line = |name: &str, level: &str, groups: &[&Group]| {
        text.push_str(&format!("\n{name:<12} {level:>5} {}", figures(groups)));
    };
    for environment in environments {
        let own: Vec<&Group> = groups
            .iter()
            .filter(|group| environment.is_source_of(&group.prompt.task))
            .collect();
        let (name, level) = environment.source.name_and_level();
        let level = level.map_or("-".to_string(), |level| level.to_string());
        line(&name, &level, &own);
    }
    if environments.len() > 1 {
        line("all", "", &groups.iter().collect::<Vec<_>>());
    }
    text
}

/// Counts, pass rate with its standard error sqrt(p (1 - p) / n), and means.
fn figures(groups: &[&Group]) -> String {
    let samples = || groups.iter().flat_map(|group| &group.samples);
    let rewards: Vec<f64> = samples()
        .filter_map(|sample| sample.verdict.reward())
        .collect();
    let n = rewards.len();
    if n == 0 {
        return format!("{n:>8}");
    }
    let mean = |sum: f64| sum / n as f64;
    let passed = mean(rewards.iter().filter(|&&reward| reward >= 1.0).count() as f64);
    let error = mean(passed * (1.0 - passed)).sqrt();
    let reward = mean(rewards.iter().sum());
    let tokens = mean(samples().map(|sample| sample.tokens.len() as f64).sum());
    let stopped = |sample: &&rollout::Sample| sample.finish_reason == FinishReason::Stop;
    let finished = mean(samples().filter(stopped).count() as f64);
    format!("{n:>8} {passed:>7.3} {error:>7.3} {reward:>7.3} {tokens:>7.1} {finished:>9.3}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| word.to_string()).collect()
    }

    #[test]
    fn levels_go_with_families_in_order_or_for_all() {
        let of = |families: &[&str], levels: &[u32]| -> Vec<(Family, u32)> {
            environments(&strings(families), levels)
                .expect("sound")
                .iter()
                .map(|environment| match environment.source {
                    TaskSource::Family { family, level } => (family, level),
                    _ => panic!("only families were asked for"),
                })
                .collect()
        };
        assert_eq!(of(&["sums"], &[]), [(Family::Sums, 1)]);
        assert_eq!(
            of(&["sums", "gcd"], &[2]),
            [(Family::Sums, 2), (Family::Gcd, 2)]
        );
        assert_eq!(
            of(&["sums", "gcd"], &[1, 2]),
            [(Family::Sums, 1), (Family::Gcd, 2)]
        );
    }

    #[test]
    fn unknown_family_and_level_are_usage_errors() {
        let text = |families: &[&str], levels: &[u32]| {
            environments(&strings(families), levels)
                .expect_err("must be refused")
                .to_string()
        };
        assert!(text(&["sum"], &[]).contains("sums, products"));
        assert!(text(&["sums"], &[99]).contains("not 99"));
        assert!(text(&["sums", "gcd", "compare"], &[1, 2]).contains("one for each"));
    }
}
