//! The stream of prompts and worked solutions a run trains and evaluates on.
//!
//! Prompt number i is the same in every run with the same seed and environments: its family is
//! drawn by weight and its instance by a seed, both keyed by (run seed, split, i). So a resumed run
//! needs no more state than the next number.

use environments::{Family, Split, Task, TaskKey};
use model::Tokenizer;
use model::chat::{ChatOptions, Message};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use rollout::Prompt;

use crate::config::{EnvironmentConfig, RunConfig};
use crate::error::TrainerError;

/// Draws prompts; see the module.
#[derive(Debug)]
pub struct PromptSource<'a> {
    environments: &'a [EnvironmentConfig],
    system_prompt: Option<&'a str>,
    seed: u64,
    tokenizer: &'a Tokenizer,
}

/// A prompt with its worked solution: `tokens[prompt_len..]` is the solution and a stop token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SolvedPrompt {
    /// Prompt and solution.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt_len: usize,
}

impl<'a> PromptSource<'a> {
    /// The prompts of a run.
    pub fn new(config: &'a RunConfig, tokenizer: &'a Tokenizer) -> PromptSource<'a> {
        let system_prompt = config.system_prompt.as_deref();
        PromptSource::of(&config.environments, system_prompt, config.seed, tokenizer)
    }

    /// The prompts of a run with these settings; `environments` must not be empty.
    pub fn of(
        environments: &'a [EnvironmentConfig],
        system_prompt: Option<&'a str>,
        seed: u64,
        tokenizer: &'a Tokenizer,
    ) -> PromptSource<'a> {
        PromptSource {
            environments,
            system_prompt,
            seed,
            tokenizer,
        }
    }

    /// Prompt number `id` of `split`.
    ///
    /// # Errors
    /// A chat template that can't render it.
    pub fn prompt(&self, split: Split, id: u64) -> Result<Prompt, TrainerError> {
        let task = self.task(split, id);
        let tokens = self.encode(&task)?;
        // Evaluation and training number their prompts apart, so their draws must not share a key.
        let id = match split {
            Split::Train => id,
            Split::HeldOut => id | 1 << 63,
        };
        Ok(Prompt {
            id,
            tokens,
            question: task.question,
            task: task.key,
        })
    }

    /// Training prompt number `id` with its worked solution and the stop token `end`.
    ///
    /// # Errors
    /// A chat template that can't render it.
    pub fn solved(&self, id: u64, end: u32) -> Result<SolvedPrompt, TrainerError> {
        let task = self.task(Split::Train, id);
        let mut tokens = self.encode(&task)?;
        let prompt_len = tokens.len();
        tokens.extend(self.tokenizer.encode(&task.solution));
        tokens.push(end);
        Ok(SolvedPrompt { tokens, prompt_len })
    }

    fn task(&self, split: Split, id: u64) -> Task {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&id.to_le_bytes());
        // The held-out set does not depend on the run's seed: every run is judged on the same prompts.
        if split == Split::HeldOut {
            key[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        }
        let mut rng = ChaCha8Rng::from_seed(key);
        let total: f64 = self.environments.iter().map(|e| e.weight).sum();
        let mut left = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * total;
        let environment = self
            .environments
            .iter()
            .find(|environment| {
                left -= environment.weight;
                left < 0.0
            })
            .unwrap_or(&self.environments[self.environments.len() - 1]);
        Family::task(&TaskKey {
            family: environment.family,
            split,
            level: environment.level,
            seed: rng.next_u64(),
        })
    }

    fn encode(&self, task: &Task) -> Result<Vec<u32>, TrainerError> {
        let system = self.system_prompt.map(Message::system);
        let messages: Vec<Message> = system
            .into_iter()
            .chain([Message::user(&task.question)])
            .collect();
        Ok(self.tokenizer.chat(&messages, &ChatOptions::default())?)
    }
}
