//! The whole check of a run: machine, memory, tokenizer, graders, and a play of its first prompts.

use std::sync::Arc;

use environments::{Split, Tasks};
use kernels::runtime::Runtime;
use model::chat::ChatOptions;
use model::{Attention, Tokenizer, Transformer};
use rollout::{EpisodeHost, GenerationSettings, Group, GuardedGrader, Judge, Prompt, Vocabulary};

use super::conversation::{Exchange, conversation_findings, prompt_finding};
use super::diagnose::diagnose;
use super::effects::{effect_findings, finished_finding};
use super::finding::Finding;
use super::machine::{machine_findings, memory_finding, peak_memory_finding};
use super::observe::{Players, observe};
use super::rewards::{reward_findings, tasks_of};
use crate::config::{EnvironmentConfig, GrpoConfig, RunConfig, StageConfig};
use crate::error::TrainerError;
use crate::policy;
use crate::progress::Progress;
use crate::prompts::{self, PromptSource};
use crate::session::attention_at;

/// Samples of a prompt, at most: enough for branches side by side.
const GROUP_SIZE: usize = 4;
/// Exchanges shown to the tokenizer, of each environment.
const NUM_EXCHANGES: usize = 4;

/// Examines the run that `config` describes on its first `num_prompts` prompts; `report` is given each
/// finding as it comes.
///
/// # Errors
/// A policy that can't be loaded or played.
pub fn examine(
    config: &RunConfig,
    runtime: &Runtime,
    num_prompts: usize,
    report: &mut dyn FnMut(Finding),
) -> Result<(), TrainerError> {
    let kind = policy::compute_kind(config.compute, runtime.device);
    machine_findings(runtime, config)
        .into_iter()
        .for_each(&mut *report);
    let parts = policy::open(&config.model, config.seed)?;
    let memory = memory_finding(config, &parts.config, kind, runtime.device);
    let fits = !memory.has_failed();
    report(memory);
    if let Err(error) = policy::check(config, &parts.config) {
        report(Finding::failed("policy", error.to_string()).because(
            "stages and policy don't fit together: a run would not start",
            "see the sentence above",
        ));
    }
    let tasks = Arc::new(prompts::open_tasks(
        &config.environments,
        &parts.config,
        &parts.tokenizer,
        config.sampling.max_new_tokens,
    )?);
    conversation_findings(
        &parts.tokenizer,
        &parts.config,
        config.system_prompt.as_deref(),
        &exchanges(&config.environments, &tasks)?,
    )
    .into_iter()
    .for_each(&mut *report);
    // One of its own: where it gives up, the policy's samples are graded all the same.
    let grader = GuardedGrader::new(tasks.clone(), &config.grading);
    reward_findings(&config.environments, &tasks, &grader)?
        .into_iter()
        .for_each(&mut *report);

    let context = parts.config.max_position_embeddings;
    let source = PromptSource::new(config, &tasks, &parts.tokenizer, context);
    let ids = 0..num_prompts as u64;
    let prompts: Result<Vec<Prompt>, TrainerError> =
        ids.map(|id| source.prompt(Split::Train, id)).collect();
    match prompts {
        Ok(prompts) if fits => {
            report(prompt_finding(&parts.tokenizer, &prompts));
            let (policy, tokenizer) = policy::load(parts, kind, runtime.device)?;
            let play = Play {
                config,
                grader: GuardedGrader::new(tasks.clone(), &config.grading),
                episodes: EpisodeHost {
                    tasks: tasks.clone(),
                    tokenizer: tokenizer.clone(),
                    chat: ChatOptions::default(),
                    system_prompt: config.system_prompt.clone(),
                    config: config.episodes.clone(),
                },
                policy: &policy,
                tokenizer: &tokenizer,
            };
            play.examine(&prompts, report)?;
            report(peak_memory_finding());
        }
        Ok(_) => report(Finding::note(
            "play",
            "sampler and trainer were not compared: what does not fit might end this process",
        )),
        // The chat template's own finding says what to do about it.
        Err(error) => report(Finding::failed("prompts", error.to_string()).because(
            "a prompt of the run can't be rendered",
            "see `chat template`",
        )),
    }
    Ok(())
}

/// Questions with their worked solutions.
fn exchanges(
    environments: &[EnvironmentConfig],
    tasks: &Tasks,
) -> Result<Vec<Exchange>, TrainerError> {
    let mut exchanges = Vec::new();
    for environment in environments {
        let tasks = tasks_of(environment, tasks)?
            .into_iter()
            .take(NUM_EXCHANGES);
        exchanges.extend(tasks.map(|(_, task)| Exchange {
            question: task.question.clone(),
            answer: task.solution.clone(),
        }));
    }
    Ok(exchanges)
}

/// The starting policy at play.
struct Play<'a> {
    config: &'a RunConfig,
    grader: GuardedGrader,
    episodes: EpisodeHost,
    policy: &'a Transformer,
    tokenizer: &'a Tokenizer,
}

impl Play<'_> {
    fn examine(
        &self,
        prompts: &[Prompt],
        report: &mut dyn FnMut(Finding),
    ) -> Result<(), TrainerError> {
        let config = self.config;
        let (stage, grpo) = first_grpo(config);
        let (attention, at_start) = (attention_at(config, stage), attention_at(config, 0));
        let group_size = grpo.map_or(GROUP_SIZE, |grpo| grpo.group_size.min(GROUP_SIZE));
        let groups = self.sample("playing", prompts, group_size, attention)?;
        let players = Players {
            sampler: self.policy,
            learner: self.policy,
            tokenizer: self.tokenizer,
            sampling: &config.sampling,
            attention,
            indexer_is_new: attention != at_start,
            keep_routing: grpo.is_none_or(|grpo| grpo.keep_routing),
            keep_sampling_mask: grpo.is_none_or(|grpo| grpo.keep_sampling_mask),
            micro_batch_tokens: config.micro_batch_tokens,
            activation_checkpointing: config.activation_checkpointing,
        };
        diagnose(&observe(&players, &groups))
            .into_iter()
            .for_each(&mut *report);
        // An indexer that has not been trained yet says nothing of how the policy answers.
        let answers = match attention == at_start {
            true => groups,
            false => self.sample("playing as at the start", prompts, group_size, at_start)?,
        };
        report(finished_finding(&answers, config.sampling.max_new_tokens));
        effect_findings(config, self.policy.config(), attention, &answers)
            .into_iter()
            .for_each(report);
        Ok(())
    }

    /// Groups of these prompts with the run's sampling, keys recorded.
    fn sample(
        &self,
        label: &str,
        prompts: &[Prompt],
        group_size: usize,
        attention: Attention,
    ) -> Result<Vec<Group>, TrainerError> {
        let shape = self.policy.config();
        let settings = GenerationSettings {
            sampling: self.config.sampling.clone(),
            attention,
            stop_tokens: shape.eos_token_ids.clone(),
            vocabulary: Vocabulary::of(self.tokenizer, shape.vocab_size),
            seed: self.config.seed,
            policy_version: 0,
            max_batch_sequences: self.config.max_batch_sequences,
            memory: self.config.memory(),
            record_selection: true,
        };
        let progress = Progress::new(label, (prompts.len() * group_size) as u64, "samples");
        let (groups, _) = rollout::sample_groups(
            self.policy,
            prompts.to_vec(),
            group_size,
            &settings,
            Judge {
                decode: &|tokens| self.tokenizer.decode(tokens),
                grader: &self.grader,
                episodes: Some(&self.episodes),
                rewards: Some(&self.config.rewards),
            },
            &mut |finished, _| progress.set(finished as u64),
        )?;
        progress.finish();
        Ok(groups)
    }
}

/// Index of the first grpo stage with its config; one past the last stage without.
fn first_grpo(config: &RunConfig) -> (usize, Option<&GrpoConfig>) {
    let stages = config.stages.iter().enumerate();
    let mut grpo = stages.filter_map(|(index, stage)| match stage {
        StageConfig::Grpo(grpo) => Some((index, Some(grpo))),
        _ => None,
    });
    grpo.next().unwrap_or((config.stages.len(), None))
}
