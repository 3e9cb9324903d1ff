//! The stream of prompts and worked solutions a run trains and evaluates on.
//!
//! Prompt number i is the same in every run with the same seed and environments: its environment is
//! drawn by weight and its task by a seed, both keyed by (run seed, split, i). So a resumed run
//! needs no more state than the next number. Of a dataset, number i is place i of its passes over the rows:
//! alone, it asks every row once before any again; beside others, it passes over those that they take.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use adapters::mcp::Servers;
use adapters::{AgentEnv, RubricGrader, ServerConfig};
use environments::{BadRow, Equip, ExternalTasks, FamilyKey, Split, Task, TaskKey, Tasks};
use model::chat::ChatOptions;
use model::{ModelConfig, Tokenizer};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use rollout::{Prompt, episodes};

use crate::config::{EnvironmentConfig, RunConfig, TaskSource};
use crate::error::TrainerError;
use crate::transcript;

/// Rows drawn for a prompt until one fits, where rows that don't may be skipped.
const MAX_ATTEMPTS: u32 = 100;

/// Draws prompts; see the module.
#[derive(Clone, Copy, Debug)]
pub struct PromptSource<'a> {
    /// Where tasks come from; not empty.
    pub environments: &'a [EnvironmentConfig],
    /// Their tasks.
    pub tasks: &'a Tasks,
    /// System message of every prompt.
    pub system_prompt: Option<&'a str>,
    /// Keys the draws.
    pub seed: u64,
    /// Tokenizer of the policy.
    pub tokenizer: &'a Tokenizer,
    /// Tokens of prompt and completion that the policy can read.
    pub context: usize,
    /// Tokens of it that a prompt leaves to the completion.
    pub max_new_tokens: usize,
}

/// A prompt with its worked solution: `tokens[prompt_len..]` is the solution and a stop token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SolvedPrompt {
    /// Prompt and solution.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_len: usize,
    /// Where among the tokens are the results of its calls.
    pub given: Vec<Range<usize>>,
}

/// Opens the datasets and the servers among `environments` for a policy of shape `config`.
///
/// # Errors
/// A file that can't be used, or a server that does not run or pays for garbage.
pub fn open_tasks(
    environments: &[EnvironmentConfig],
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    max_new_tokens: usize,
) -> Result<Tasks, TrainerError> {
    let datasets = environments.iter().filter_map(EnvironmentConfig::dataset);
    // Rows are not tokenised here: a prompt with more bytes than so many of the longest tokens can't fit.
    let room = config
        .max_position_embeddings
        .saturating_sub(max_new_tokens);
    let max_prompt_bytes = room.saturating_mul(tokenizer.max_token_bytes());
    let mut tasks = Tasks::open(datasets, max_prompt_bytes)?;
    for dataset in tasks.datasets() {
        tracing::info!("dataset {}: {}", dataset.name(), dataset.summary());
    }
    for (server, levels) in servers(environments) {
        let opened = AgentEnv::open(server, levels)?;
        tracing::info!(
            "server {}: version {}, {} task(s) of each level paid nothing for garbage",
            server.name,
            opened.version(),
            server.screened_tasks
        );
        tasks = tasks.with_external(Arc::new(opened));
    }
    for environment in environments {
        let Some(rubric) = &environment.rubric else {
            continue;
        };
        let grader =
            RubricGrader::new((**rubric).clone()).map_err(|source| TrainerError::Rubric {
                environment: environment.source.name_and_level().0,
                source,
            })?;
        tasks = tasks.with_equipment(Arc::new(Graded {
            environment: environment.clone(),
            grader: Arc::new(grader),
        }));
    }
    // Behind the graders: what a task is given tools for is graded as before.
    for environment in environments.iter().filter(|e| !e.mcp.is_empty()) {
        let servers = Servers::open(&environment.mcp).map_err(|fault| TrainerError::Mcp {
            environment: environment.source.name_and_level().0,
            fault,
        })?;
        tasks = tasks.with_equipment(Arc::new(Equipment {
            environment: environment.clone(),
            servers: Arc::new(servers),
        }));
    }
    Ok(tasks)
}

/// Every server once, with the levels asked of it.
fn servers(environments: &[EnvironmentConfig]) -> Vec<(&ServerConfig, BTreeSet<u32>)> {
    let mut found: Vec<(&ServerConfig, BTreeSet<u32>)> = Vec::new();
    for (server, level) in environments.iter().filter_map(EnvironmentConfig::server) {
        match found
            .iter_mut()
            .find(|(other, _)| other.name == server.name)
        {
            Some((_, levels)) => drop(levels.insert(level)),
            None => found.push((server, BTreeSet::from([level]))),
        }
    }
    found
}

/// A language model that grades the answers of one environment.
#[derive(Debug)]
struct Graded {
    environment: EnvironmentConfig,
    grader: Arc<RubricGrader>,
}

impl Equip for Graded {
    fn equip(&self, task: Task) -> Task {
        match self.environment.is_source_of(&task.key) {
            true => self.grader.equip(task),
            false => task,
        }
    }
}

/// The tools of servers for the tasks of one environment.
#[derive(Debug)]
struct Equipment {
    environment: EnvironmentConfig,
    servers: Arc<Servers>,
}

impl Equip for Equipment {
    fn equip(&self, task: Task) -> Task {
        match self.environment.is_source_of(&task.key) {
            true => self.servers.equip(task),
            false => task,
        }
    }
}

impl<'a> PromptSource<'a> {
    /// The prompts of a run with a policy that reads `context` tokens.
    pub fn new(
        config: &'a RunConfig,
        tasks: &'a Tasks,
        tokenizer: &'a Tokenizer,
        context: usize,
    ) -> PromptSource<'a> {
        PromptSource {
            environments: &config.environments,
            tasks,
            system_prompt: config.system_prompt.as_deref(),
            seed: config.seed,
            tokenizer,
            context,
            max_new_tokens: config.sampling.max_new_tokens,
        }
    }

    /// Prompt number `id` of `split`.
    ///
    /// # Errors
    /// A chat template that can't render it, or a row of a dataset that can't be read or does not fit.
    pub fn prompt(&self, split: Split, id: u64) -> Result<Prompt, TrainerError> {
        let (task, prompt) = self.fitting(split, id, None)?;
        // Evaluation and training number their prompts apart, so their draws must not share a key.
        let id = match split {
            Split::Train => id,
            Split::HeldOut => id | 1 << 63,
        };
        Ok(Prompt {
            id,
            tokens: prompt.tokens,
            question: task.question.clone(),
            task: task.key.clone(),
        })
    }

    /// Training prompt number `id` with its worked solution and the stop token `end`.
    ///
    /// # Errors
    /// As [`PromptSource::prompt`].
    pub fn solved(&self, id: u64, end: u32) -> Result<SolvedPrompt, TrainerError> {
        let (_, solved) = self.fitting(Split::Train, id, Some(end))?;
        Ok(solved)
    }

    /// Task number `id` as tokens, with its solution where there is an `end` to set behind it. Only datasets have
    /// tasks that don't fit and others to take their place; what a family asks is up to its level.
    fn fitting(
        &self,
        split: Split,
        id: u64,
        end: Option<u32>,
    ) -> Result<(Arc<Task>, SolvedPrompt), TrainerError> {
        let room = match end {
            None => self.context.saturating_sub(self.max_new_tokens),
            Some(_) => self.context,
        };
        let mut attempt = 0;
        loop {
            let task = self
                .tasks
                .task(&self.key(split, id, attempt, end.is_some())?)?;
            let solved = self.encode(&task, end)?;
            let problem = format!(
                "{} tokens with the chat template{}, but only {room} fit into the model's context",
                solved.tokens.len(),
                if end.is_some() {
                    " and the solution"
                } else {
                    ""
                },
            );
            let is_too_long = solved.tokens.len() > room;
            let key = match &task.key {
                TaskKey::Row(key) if is_too_long => key,
                _ => return Ok((task, solved)),
            };
            let dataset = self.tasks.dataset(&key.dataset)?;
            attempt += 1;
            if dataset.on_bad_row() == BadRow::Stop || attempt == MAX_ATTEMPTS {
                return Err(dataset.bad_row(key, problem).into());
            }
            tracing::warn!("{key} is skipped: {problem}");
        }
    }

    /// The key of task number `id`, with a worked solution where `is_solved`.
    fn key(
        &self,
        split: Split,
        id: u64,
        attempt: u32,
        is_solved: bool,
    ) -> Result<TaskKey, TrainerError> {
        let environments: Vec<&EnvironmentConfig> = self
            .environments
            .iter()
            .filter(|environment| !is_solved || environment.source.has_solutions())
            .collect();
        // The held-out set does not depend on the run's seed: every run is judged on the same prompts.
        let seed = match split {
            Split::Train => self.seed,
            Split::HeldOut => u64::MAX,
        };
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&id.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(key);
        let total: f64 = environments.iter().map(|e| e.weight).sum();
        let mut left = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * total;
        let drawn = environments.iter().find(|environment| {
            left -= environment.weight;
            left < 0.0
        });
        let last = environments.last().expect("some environment has solutions");
        let environment = drawn.unwrap_or(last);
        match &environment.source {
            TaskSource::Family { family, level } => Ok(TaskKey::Family(FamilyKey {
                family: *family,
                split,
                level: *level,
                seed: rng.next_u64(),
            })),
            TaskSource::Dataset(dataset) => {
                let dataset = self.tasks.dataset(&dataset.name())?;
                Ok(TaskKey::Row(dataset.draw(split, seed, id, attempt)?))
            }
            TaskSource::Server { server, level } => {
                let seed = rng.next_u64();
                let key = self.tasks.external_key(&server.name, split, *level, seed)?;
                Ok(TaskKey::External(key))
            }
        }
    }

    /// The prompt that asks `task`, and its worked solution where there is an `end` to set behind each of its turns.
    fn encode(&self, task: &Task, end: Option<u32>) -> Result<SolvedPrompt, TrainerError> {
        let messages = episodes::opening(task, self.system_prompt, self.tokenizer)?;
        let tokens = self.tokenizer.chat(&messages, &ChatOptions::default())?;
        let prompt = SolvedPrompt {
            prompt_len: tokens.len(),
            tokens,
            given: Vec::new(),
        };
        match end {
            Some(end) => Ok(transcript::solved(
                task,
                messages,
                prompt,
                self.tokenizer,
                end,
            )?),
            None => Ok(prompt),
        }
    }
}
