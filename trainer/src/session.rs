//! What a running stage works with: policy, reference, optimizer, tokenizer, and where the run stands.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use environments::{Split, Tasks};
use kernels::tch::Kind;
use model::chat::ChatOptions;
use model::{Attention, ParameterGroup, Tokenizer, Transformer};
use rollout::GenerationSettings;
use rollout::{EpisodeHost, Group, GuardedGrader, Judge, Prompt, SamplingConfig, Vocabulary};

use crate::batch::TextDocument;
use crate::checkpoint::TrainState;
use crate::config::{PolicySource, RunConfig, StageConfig, TextConfig};
use crate::error::TrainerError;
use crate::optimizer::AdamW;
use crate::policy;
use crate::progress::Progress;
use crate::prompts::{self, PromptSource};
use crate::rollout_worker::RolloutWorker;
use crate::run_folder::RunLayout;
use crate::text::Corpus;
use crate::without_effect::{selects_every_key, without_effect};

mod restore;
mod rollouts;
pub(crate) mod salvage;

/// Prompts whose lengths are compared with `index_topk` before a run.
const PROMPTS_LOOKED_AT: u64 = 64;

/// Marks the numbers of prompts that text is made from; `grpo` asks those without it.
const TEXT_PROMPTS: u64 = 1 << 62;
/// The stage of a text prompt lies above its number in the stage: no stage sees another's prompts.
const STAGE_SHIFT: u32 = 40;

/// A run in progress.
pub struct Session<'a> {
    /// Resolved config.
    pub config: &'a RunConfig,
    /// Where everything is written.
    pub folder: &'a RunLayout,
    /// Asks the run to stop.
    pub stop: &'a AtomicBool,
    /// The network being trained.
    pub policy: Transformer,
    /// The policy as it was when the grpo stage began, where its KL is wanted.
    pub reference: Option<Transformer>,
    /// Tokenizer.
    pub tokenizer: Tokenizer,
    /// What the run's prompts ask.
    pub tasks: Arc<Tasks>,
    /// Grades every sample of one turn of the run.
    pub grader: Arc<GuardedGrader>,
    /// Runs the episodes of its other tasks.
    pub episodes: EpisodeHost,
    /// Optimizer of the current stage.
    pub optimizer: AdamW,
    /// Where the run stands.
    pub state: TrainState,
    /// What a checkpoint held of asynchronous rollouts, until a worker goes on with it.
    pub in_flight: Vec<Group>,
    /// Samples ahead, while an asynchronous stage runs.
    pub worker: Option<RolloutWorker>,
    threads: i32,
    corpus: Option<(Vec<String>, Corpus)>,
}

/// Attention of a run's policy in stage `stage` outside the warm-up: dense until an attached indexer
/// has been trained, sparse from the first `sparse_training` stage on, and sparse throughout for a
/// policy whose folder came with its indexer.
pub fn attention_at(config: &RunConfig, stage: usize) -> Attention {
    let is_new =
        config.model.dsa.is_some() || matches!(config.model.source, PolicySource::Random(_));
    let trains_sparse = |stage: &StageConfig| matches!(stage, StageConfig::SparseTraining(_));
    match config.stages.iter().position(trains_sparse) {
        Some(first) if is_new && stage < first => Attention::Dense,
        None if config.model.dsa.is_some() => Attention::Dense,
        _ => Attention::Sparse,
    }
}

fn kind_name(kind: Kind) -> &'static str {
    if kind == Kind::Float { "f32" } else { "bf16" }
}

/// Groups sampled, with what it took.
pub struct Rollout {
    /// Graded groups.
    pub groups: Vec<Group>,
    /// Engine's own account.
    pub stats: rollout::GenerationStats,
    /// Wall-clock seconds that were waited for them.
    pub secs: f64,
    /// Wall-clock seconds in which the engine did what `stats` tells.
    pub sampling_secs: f64,
}

impl<'a> Session<'a> {
    /// Opens the run's datasets and loads the starting policy; nothing is trained yet.
    ///
    /// # Errors
    /// The model's files, or those of a dataset.
    pub fn new(
        config: &'a RunConfig,
        folder: &'a RunLayout,
        stop: &'a AtomicBool,
    ) -> Result<Session<'a>, TrainerError> {
        let runtime = kernels::runtime::start(config.threads);
        let kind = policy::compute_kind(config.compute, runtime.device);
        let start = Instant::now();
        let parts = policy::open(&config.model, config.seed)?;
        let tasks = Arc::new(prompts::open_tasks(
            &config.environments,
            &parts.config,
            &parts.tokenizer,
            config.sampling.max_new_tokens,
        )?);
        let (policy, tokenizer) = policy::load(parts, kind, runtime.device)?;
        policy::check(config, policy.config())?;
        tracing::info!(
            "policy: {:.1} M parameters, {} layers, {}, {}; computing in {} on {:?} with {} threads; loaded in {:.1} s",
            policy.config().num_parameters() as f64 / 1e6,
            policy.config().num_hidden_layers,
            match &policy.config().moe {
                Some(moe) => format!(
                    "{} experts, top-{}",
                    moe.num_experts, moe.num_experts_per_tok
                ),
                None => "dense feed-forward".to_string(),
            },
            match &policy.config().dsa {
                Some(dsa) => format!("sparse attention over {} keys", dsa.index_topk),
                None => "dense attention".to_string(),
            },
            kind_name(kind),
            runtime.device,
            kernels::tch::get_num_threads(),
            start.elapsed().as_secs_f64()
        );
        let trains_sparse = |stage: &StageConfig| matches!(stage, StageConfig::SparseTraining(_));
        if config.model.dsa.is_some() && !config.stages.iter().any(trains_sparse) {
            tracing::warn!(
                "model.dsa attaches an indexer, but no sparse_training stage brings it into use: attention stays \
                 dense, and the exported policy holds an indexer that should not be used yet"
            );
        }
        let session = Session {
            config,
            folder,
            stop,
            policy,
            reference: None,
            episodes: EpisodeHost {
                tasks: tasks.clone(),
                tokenizer: tokenizer.clone(),
                chat: ChatOptions::default(),
                system_prompt: config.system_prompt.clone(),
                config: config.episodes.clone(),
            },
            tokenizer,
            grader: Arc::new(GuardedGrader::new(tasks.clone(), &config.grading)),
            tasks,
            optimizer: AdamW::new(&config.optimizer),
            state: TrainState {
                arithmetic: format!(
                    "{} on {:?} with {} threads",
                    kind_name(kind),
                    runtime.device,
                    kernels::tch::get_num_threads()
                ),
                ..TrainState::default()
            },
            in_flight: Vec::new(),
            worker: None,
            threads: kernels::tch::get_num_threads(),
            corpus: None,
        };
        session.say_what_is_idle()?;
        Ok(session)
    }

    /// Logs the techniques that can't act in this run.
    fn say_what_is_idle(&self) -> Result<(), TrainerError> {
        let shape = self.policy.config();
        let mut idle = without_effect(self.config, shape);
        if shape.dsa.is_some() {
            let prompts = (0..PROMPTS_LOOKED_AT).map(|id| self.prompts().prompt(Split::Train, id));
            let prompts = prompts.collect::<Result<Vec<_>, _>>()?;
            let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max();
            idle.extend(selects_every_key(self.config, shape, longest.unwrap_or(0)));
        }
        for sentence in idle {
            tracing::info!("without effect: {sentence}");
        }
        Ok(())
    }

    /// The stage that runs now; `None` when the run is complete.
    pub fn stage(&self) -> Option<&'a StageConfig> {
        self.config.stages.get(self.state.stage)
    }

    /// Attention of the main model outside the warm-up.
    pub fn attention(&self) -> Attention {
        attention_at(self.config, self.state.stage)
    }

    /// Lets gradients reach the language model, the indexer, or both.
    pub fn set_trainable(&self, main: bool, indexer: bool) {
        for parameter in self.policy.parameters() {
            let trains = match parameter.group {
                ParameterGroup::Main => main,
                ParameterGroup::Indexer => indexer,
                ParameterGroup::Frozen => false,
            };
            let _ = parameter.master.set_requires_grad(trains);
        }
    }

    /// The run's prompts.
    pub fn prompts(&self) -> PromptSource<'_> {
        let context = self.policy.config().max_position_embeddings;
        PromptSource::new(self.config, &self.tasks, &self.tokenizer, context)
    }

    /// Samples `group_size` completions of each prompt with the current policy and grades them.
    ///
    /// # Errors
    /// A prompt that doesn't fit, or logits that are not finite.
    pub fn sample(
        &self,
        label: &str,
        prompts: Vec<Prompt>,
        group_size: usize,
        sampling: &SamplingConfig,
    ) -> Result<Rollout, TrainerError> {
        let start = Instant::now();
        let settings = self.generation(sampling);
        let progress = Progress::new(label, (prompts.len() * group_size) as u64, "samples");
        let (groups, stats) = rollout::group::sample_groups(
            &self.policy,
            prompts,
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
        let secs = start.elapsed().as_secs_f64();
        Ok(Rollout {
            groups,
            stats,
            secs,
            sampling_secs: secs,
        })
    }

    fn generation(&self, sampling: &SamplingConfig) -> GenerationSettings {
        GenerationSettings {
            sampling: sampling.clone(),
            attention: self.attention(),
            stop_tokens: self.policy.config().eos_token_ids.clone(),
            vocabulary: Vocabulary::of(&self.tokenizer, self.policy.config().vocab_size),
            seed: self.config.seed,
            policy_version: self.state.policy_version,
            max_batch_sequences: self.config.max_batch_sequences,
            memory: self.config.memory(),
            record_selection: false,
        }
    }

    /// The next `count` text documents of a stage; advances the cursor.
    ///
    /// # Errors
    /// Text files that can't be read, or sampling.
    pub fn next_documents(
        &mut self,
        text: &TextConfig,
        count: usize,
    ) -> Result<Vec<TextDocument>, TrainerError> {
        let first = self.state.next_document;
        let ids = first..first + count as u64;
        // No prompt is both solved for the policy and asked by `grpo`: rewards would be memory.
        let stage = (self.state.stage as u64) << STAGE_SHIFT;
        let prompt_id = |id: u64| TEXT_PROMPTS | stage | id;
        // A model may list several; the tokenizer's is the one that ends a turn of chat.
        let end = self
            .tokenizer
            .eos_token()
            .and_then(|token| self.tokenizer.token_id(token));
        let end = end.unwrap_or(self.policy.config().eos_token_ids[0]);
        let documents = match text {
            TextConfig::Solutions => {
                let solved = |id| {
                    let solved = self.prompts().solved(prompt_id(id), end)?;
                    Ok(TextDocument {
                        loss_from: solved.prompt_len,
                        tokens: solved.tokens,
                        given: solved.given,
                    })
                };
                ids.map(solved).collect::<Result<Vec<_>, TrainerError>>()?
            }
            TextConfig::PolicySamples => {
                let prompts = ids
                    .map(|id| self.prompts().prompt(Split::Train, prompt_id(id)))
                    .collect::<Result<Vec<_>, _>>()?;
                let rollout = self.sample("sampling text", prompts, 1, &self.config.sampling)?;
                let document = |group: Group| {
                    let prompt = group.prompt.tokens;
                    let loss_from = prompt.len();
                    let behind =
                        |given: Range<usize>| loss_from + given.start..loss_from + given.end;
                    group.samples.into_iter().next().map(|sample| TextDocument {
                        tokens: [prompt, sample.tokens].concat(),
                        loss_from,
                        given: sample.given.into_iter().map(behind).collect(),
                    })
                };
                rollout.groups.into_iter().filter_map(document).collect()
            }
            TextConfig::Files(paths) => {
                if self.corpus.as_ref().is_none_or(|(read, _)| read != paths) {
                    let max_tokens = self
                        .config
                        .micro_batch_tokens
                        .min(self.policy.config().max_position_embeddings);
                    self.corpus = Some((
                        paths.clone(),
                        Corpus::read(paths, &self.tokenizer, max_tokens)?,
                    ));
                }
                let corpus = &self.corpus.as_ref().expect("read above").1;
                ids.map(|id| corpus.document(self.config.seed, id))
                    .collect()
            }
        };
        self.state.next_document += count as u64;
        Ok(documents)
    }
}
