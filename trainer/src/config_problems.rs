//! Contradictions and senseless values in a [`RunConfig`], found once before anything runs.
//!
//! Every problem is a sentence that starts with its key path, `stages[3].grpo.group_size`, so that
//! a reader finds the line. All problems are reported together. What depends on files (does the
//! model folder exist, does it hold an indexer) is found when they are opened.

use std::fmt::Display;

use model::{DsaConfig, ModelConfig, Tokenizer};

use crate::config::{
    Decay, EnvironmentConfig, GrpoConfig, LearningRate, PolicySource, RunConfig, StageConfig,
    TaskSource, TextConfig, TextStageConfig, UpcycleConfig,
};

impl RunConfig {
    /// Checks every value, alone and against the others.
    ///
    /// # Errors
    /// All problems found, each a sentence that starts with its key path.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut found = Problems(Vec::new());
        self.check_name(&mut found);
        self.check_model(&mut found);
        found.check(
            !self.environments.is_empty(),
            "environments",
            "is empty; name at least one",
        );
        for i in 0..self.environments.len() {
            let (earlier, rest) = self.environments.split_at(i);
            check_environment(&rest[0], earlier, &format!("environments[{i}]"), &mut found);
        }
        self.check_sampling(&mut found);
        found.at_least_one("max_batch_sequences", self.max_batch_sequences);
        if let Some(problem) = self.cache_memory.problem() {
            found.check(false, "cache_memory", problem);
        }
        found.at_least_one("max_prefill_tokens", self.max_prefill_tokens);
        found.at_least_one("micro_batch_tokens", self.micro_batch_tokens);
        check_text(&self.text, "text", &mut found);
        found.check(
            !self.stages.is_empty(),
            "stages",
            "is empty; name at least one",
        );
        for (i, stage) in self.stages.iter().enumerate() {
            self.check_stage(stage, &format!("stages[{i}]"), &mut found);
        }
        self.check_optimizer(&mut found);
        self.check_evaluation(&mut found);
        found.at_least_one("checkpoints.keep", self.checkpoints.keep);
        if found.0.is_empty() {
            Ok(())
        } else {
            Err(found.0)
        }
    }

    /// False when the starting policy surely has no indexer. A model folder may bring its own.
    fn may_have_indexer(&self) -> bool {
        match &self.model.source {
            _ if self.model.dsa.is_some() => true,
            PolicySource::Random(shape) => shape.dsa.is_some(),
            PolicySource::Path(path) => !path.ends_with(".gguf"),
        }
    }

    fn check_name(&self, found: &mut Problems) {
        let plain = !self.name.is_empty()
            && !self.name.starts_with(['.', '-'])
            && self
                .name
                .chars()
                .all(|c| c.is_alphanumeric() || "._-".contains(c));
        found.check(
            plain,
            "name",
            format_args!(
                "is {:?}; it names a folder: letters, digits, '.', '_' and '-', not starting \
                 with '.' or '-'",
                self.name
            ),
        );
    }

    fn check_model(&self, found: &mut Problems) {
        match &self.model.source {
            PolicySource::Path(path) => {
                found.check(!path.is_empty(), "model.source.Path", "is empty");
            }
            PolicySource::Random(shape) => {
                for problem in shape.problems() {
                    found.0.push(format!("model.source.Random: {problem}"));
                }
                check_byte_level(shape, found);
                found.check(
                    self.model.upcycle.is_none() || shape.moe.is_none(),
                    "model.upcycle",
                    "asks for experts, but model.source.Random.moe already has them; keep one",
                );
                found.check(
                    self.model.dsa.is_none() || shape.dsa.is_none(),
                    "model.dsa",
                    "asks for an indexer, but model.source.Random.dsa already has one; keep one",
                );
                found.check(
                    self.sampling.max_new_tokens < shape.max_position_embeddings,
                    "sampling.max_new_tokens",
                    format_args!(
                        "is {}; that leaves no room for a prompt in a context of {} tokens \
                         (model.source.Random.max_position_embeddings)",
                        self.sampling.max_new_tokens, shape.max_position_embeddings
                    ),
                );
            }
        }
        if let Some(upcycle) = &self.model.upcycle {
            check_upcycle(upcycle, found);
        }
        if let Some(dsa) = &self.model.dsa {
            check_dsa(dsa, found);
        }
    }

    fn check_sampling(&self, found: &mut Problems) {
        for problem in self.sampling.problems() {
            found.0.push(format!("sampling.{problem}"));
        }
        for problem in self.grading.problems() {
            found.0.push(format!("grading.{problem}"));
        }
        for problem in self.rewards.problems(self.sampling.max_new_tokens) {
            found.0.push(format!("rewards.{problem}"));
        }
        for problem in self.episodes.problems() {
            found.0.push(format!("episodes.{problem}"));
        }
    }

    fn check_stage(&self, stage: &StageConfig, path: &str, found: &mut Problems) {
        match stage {
            StageConfig::IndexerWarmup(stage) => {
                let path = format!("{path}.indexer_warmup");
                self.check_needs_indexer(&path, found);
                self.check_text_stage(stage, &path, found);
            }
            StageConfig::SparseTraining(stage) => {
                let path = format!("{path}.sparse_training");
                self.check_needs_indexer(&path, found);
                self.check_text_stage(stage, &path, found);
            }
            StageConfig::Sft(stage) => {
                self.check_text_stage(stage, &format!("{path}.sft"), found);
            }
            StageConfig::Grpo(stage) => self.check_grpo(stage, &format!("{path}.grpo"), found),
        }
    }

    fn check_text_stage(&self, stage: &TextStageConfig, path: &str, found: &mut Problems) {
        check_text_stage(stage, path, found);
        let text = stage.text.as_ref().unwrap_or(&self.text);
        let has_solutions = |e: &EnvironmentConfig| e.source.has_solutions();
        found.check(
            *text != TextConfig::Solutions
                || self.environments.is_empty()
                || self.environments.iter().any(has_solutions),
            path,
            "trains on worked solutions, and a server gives none; add a family or a dataset, or set its `text` to \
             PolicySamples or Files",
        );
    }

    fn check_needs_indexer(&self, path: &str, found: &mut Problems) {
        found.check(
            self.may_have_indexer(),
            path,
            "trains the indexer, but the model has none; set model.dsa or drop the stage",
        );
    }

    fn check_grpo(&self, stage: &GrpoConfig, path: &str, found: &mut Problems) {
        let key = |name: &str| format!("{path}.{name}");
        found.at_least_one(&key("steps"), stage.steps);
        found.at_least_one(&key("prompts_per_step"), stage.prompts_per_step);
        found.check(
            stage.group_size >= 2,
            &key("group_size"),
            format_args!(
                "is {}; a reward is compared with the group's mean, so with fewer than 2 samples \
                 every advantage would be 0",
                stage.group_size
            ),
        );
        found.at_least_one(&key("mini_batches"), stage.mini_batches);
        found.check(
            stage.mini_batches == 0 || stage.prompts_per_step.is_multiple_of(stage.mini_batches),
            &key("mini_batches"),
            format_args!(
                "is {}, which does not divide prompts_per_step ({}) into equal sets of groups",
                stage.mini_batches, stage.prompts_per_step
            ),
        );
        check_learning_rate(
            &stage.learning_rate,
            stage.steps * stage.mini_batches,
            &key("learning_rate"),
            found,
        );
        found.positive(&key("clip_epsilon"), stage.clip_epsilon);
        found.not_negative(&key("kl_beta"), stage.kl_beta);
        if let Some(delta) = stage.off_policy_delta {
            found.positive(&key("off_policy_delta"), delta);
        }
        found.check(
            (0.0..=1.0).contains(&stage.max_invalid_share),
            &key("max_invalid_share"),
            format_args!(
                "is {}; a share lies between 0 and 1 (1 never stops)",
                stage.max_invalid_share
            ),
        );
        if let Some(asynchronous) = &stage.asynchronous {
            let key = key("asynchronous.max_policy_age");
            found.at_least_one(&key, asynchronous.max_policy_age);
        }
        found.check(
            !stage.train_indexer || self.may_have_indexer(),
            &key("train_indexer"),
            "is true, but the model has no indexer; set model.dsa or drop it",
        );
        found.check(
            self.sampling.temperature != 0.0,
            "sampling.temperature",
            format_args!(
                "is 0; greedy samples of a prompt are all the same, so {path} would learn nothing"
            ),
        );
    }

    fn check_optimizer(&self, found: &mut Problems) {
        let optimizer = &self.optimizer;
        for (i, beta) in [optimizer.betas.0, optimizer.betas.1]
            .into_iter()
            .enumerate()
        {
            found.check(
                (0.0..1.0).contains(&beta),
                &format!("optimizer.betas[{i}]"),
                format_args!("is {beta}; it must lie in [0, 1)"),
            );
        }
        found.positive("optimizer.epsilon", optimizer.epsilon);
        found.not_negative("optimizer.weight_decay", optimizer.weight_decay);
        found.positive("optimizer.max_grad_norm", optimizer.max_grad_norm);
        found.positive(
            "optimizer.max_indexer_grad_norm",
            optimizer.max_indexer_grad_norm,
        );
    }

    fn check_evaluation(&self, found: &mut Problems) {
        found.not_negative("evaluation.temperature", self.evaluation.temperature);
        found.check(
            self.evaluation.every == 0 || self.evaluation.prompts > 0,
            "evaluation.every",
            format_args!(
                "is {}, but evaluation.prompts is 0: nothing would be evaluated",
                self.evaluation.every
            ),
        );
    }
}

/// Sentences found so far.
struct Problems(Vec<String>);

impl Problems {
    fn check(&mut self, sound: bool, path: &str, problem: impl Display) {
        if !sound {
            self.0.push(format!("{path} {problem}"));
        }
    }

    fn at_least_one(&mut self, path: &str, value: usize) {
        self.check(value >= 1, path, "is 0; it must be at least 1");
    }

    fn positive(&mut self, path: &str, value: f64) {
        let sound = value.is_finite() && value > 0.0;
        self.check(sound, path, format_args!("is {value}; it must be above 0"));
    }

    fn not_negative(&mut self, path: &str, value: f64) {
        let sound = value.is_finite() && value >= 0.0;
        self.check(
            sound,
            path,
            format_args!("is {value}; it must be 0 or more"),
        );
    }
}

/// A random model reads and writes with the byte-level tokenizer.
fn check_byte_level(shape: &ModelConfig, found: &mut Problems) {
    let num_tokens = Tokenizer::byte_level().vocab_size();
    found.check(
        shape.vocab_size >= num_tokens,
        "model.source.Random.vocab_size",
        format_args!(
            "is {}; the byte-level tokenizer needs {num_tokens}",
            shape.vocab_size
        ),
    );
    found.check(
        !shape.eos_token_ids.is_empty()
            && shape
                .eos_token_ids
                .iter()
                .all(|&id| (id as usize) < num_tokens),
        "model.source.Random.eos_token_ids",
        format_args!(
            "is {:?}; name at least one token of the byte-level tokenizer, 257 is <|im_end|>",
            shape.eos_token_ids
        ),
    );
}

fn check_upcycle(upcycle: &UpcycleConfig, found: &mut Problems) {
    found.check(
        (2..=usize::from(u16::MAX)).contains(&upcycle.experts),
        "model.upcycle.experts",
        format_args!("is {}; it must lie between 2 and 65535", upcycle.experts),
    );
    found.check(
        (1..=upcycle.experts).contains(&upcycle.top_k),
        "model.upcycle.top_k",
        format_args!(
            "is {}; it must lie between 1 and model.upcycle.experts ({})",
            upcycle.top_k, upcycle.experts
        ),
    );
}

fn check_dsa(dsa: &DsaConfig, found: &mut Problems) {
    found.at_least_one("model.dsa.index_n_heads", dsa.index_n_heads);
    found.check(
        dsa.index_head_dim >= 2 && dsa.index_head_dim.is_multiple_of(2),
        "model.dsa.index_head_dim",
        format_args!(
            "is {}; it must be even and at least 2, RoPE rotates pairs",
            dsa.index_head_dim
        ),
    );
    found.at_least_one("model.dsa.index_topk", dsa.index_topk);
}

fn check_environment(
    environment: &EnvironmentConfig,
    earlier: &[EnvironmentConfig],
    path: &str,
    found: &mut Problems,
) {
    match &environment.source {
        TaskSource::Family { family, level } => {
            let levels = family.levels();
            found.check(
                levels.contains(level),
                &format!("{path}.level"),
                format_args!(
                    "is {level}; {family} has levels {} to {}",
                    levels.start(),
                    levels.end()
                ),
            );
            let same_tasks = |other: &&EnvironmentConfig| other.source == environment.source;
            let first = earlier.iter().find(same_tasks);
            found.check(
                first.is_none_or(|first| first.kl_scale == environment.kl_scale),
                &format!("{path}.kl_scale"),
                format_args!(
                    "is {}, but an earlier entry gives {family} at level {level} another; they are the same tasks",
                    environment.kl_scale
                ),
            );
            found.check(
                first.is_none_or(|first| first.mcp == environment.mcp),
                &format!("{path}.mcp"),
                format_args!(
                    "differs from an earlier entry's of {family} at level {level}; they are the same tasks"
                ),
            );
            found.check(
                first.is_none_or(|first| first.rubric == environment.rubric),
                &format!("{path}.rubric"),
                format_args!(
                    "differs from an earlier entry's of {family} at level {level}; they are the same tasks"
                ),
            );
            found.check(
                !family.has_tools() || (environment.mcp.is_empty() && environment.rubric.is_none()),
                path,
                format_args!(
                    "{family} has tools and a grader of its own; leave `mcp` and `rubric` out"
                ),
            );
        }
        TaskSource::Dataset(dataset) => {
            for problem in dataset.problems() {
                found.0.push(format!("{path}.dataset.{problem}"));
            }
            let mut datasets = earlier.iter().filter_map(EnvironmentConfig::dataset);
            found.check(
                datasets.all(|other| other.name() != dataset.name()),
                &format!("{path}.dataset.name"),
                format_args!(
                    "is {:?}, as that of an earlier entry; give one of them another `name`",
                    dataset.name()
                ),
            );
        }
        TaskSource::Server { server, level } => {
            let first = earlier.iter().filter_map(EnvironmentConfig::server);
            let first: Vec<_> = first.filter(|(o, _)| o.name == server.name).collect();
            found.check(
                first.iter().all(|(other, _)| *other == &**server),
                &format!("{path}.server"),
                format_args!(
                    "is called {:?} as an earlier one that is another; give one of them another `name`",
                    server.name
                ),
            );
            found.check(
                first.iter().all(|(_, other)| other != level),
                &format!("{path}.level"),
                format_args!(
                    "is {level}, as in an earlier entry of {:?}; one entry with the sum of the weights will do",
                    server.name
                ),
            );
        }
    }
    for problem in environment
        .rubric
        .iter()
        .flat_map(|rubric| rubric.problems())
    {
        found.0.push(format!("{path}.rubric.{problem}"));
    }
    found.positive(&format!("{path}.weight"), environment.weight);
    found.not_negative(&format!("{path}.kl_scale"), environment.kl_scale);
}

fn check_text(text: &TextConfig, path: &str, found: &mut Problems) {
    if let TextConfig::Files(files) = text {
        let path = format!("{path}.Files");
        found.check(!files.is_empty(), &path, "is empty; name at least one file");
    }
}

fn check_text_stage(stage: &TextStageConfig, path: &str, found: &mut Problems) {
    found.at_least_one(&format!("{path}.steps"), stage.steps);
    found.at_least_one(
        &format!("{path}.documents_per_step"),
        stage.documents_per_step,
    );
    let learning_rate = format!("{path}.learning_rate");
    check_learning_rate(&stage.learning_rate, stage.steps, &learning_rate, found);
    if let Some(text) = &stage.text {
        check_text(text, &format!("{path}.text"), found);
    }
}

fn check_learning_rate(rate: &LearningRate, steps: usize, path: &str, found: &mut Problems) {
    found.positive(&format!("{path}.peak"), rate.peak);
    found.check(
        rate.warmup_steps <= steps,
        &format!("{path}.warmup_steps"),
        format_args!(
            "is {}, but the stage has only {steps} optimizer steps: the peak is never reached",
            rate.warmup_steps
        ),
    );
    if let Decay::Cosine { floor } = rate.decay {
        found.check(
            (0.0..=1.0).contains(&floor),
            &format!("{path}.decay.cosine.floor"),
            format_args!("is {floor}; it is a share of the peak and must lie in [0, 1]"),
        );
    }
}

#[cfg(test)]
mod tests;
