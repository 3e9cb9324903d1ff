//! What a running stage works with: policy, reference, optimizer, tokenizer, and where the run stands.

use std::time::Instant;

use environments::Split;
use kernels::tch::Kind;
use model::{Attention, ParameterGroup, Tokenizer, Transformer};
use rollout::engine::GenerationSettings;
use rollout::{Group, Prompt, SamplingConfig, Vocabulary};

use crate::batch::TextDocument;
use crate::checkpoint::TrainState;
use crate::config::{PolicySource, RunConfig, StageConfig, TextConfig};
use crate::error::TrainerError;
use crate::optimizer::AdamW;
use crate::policy;
use crate::progress::Progress;
use crate::prompts::PromptSource;
use crate::run_folder::RunFolder;
use crate::text::Corpus;
use crate::without_effect::without_effect;

/// Marks the numbers of prompts that text is made from; `grpo` asks those without it.
const TEXT_PROMPTS: u64 = 1 << 62;
/// The stage of a text prompt lies above its number in the stage: no stage sees another's prompts.
const STAGE_SHIFT: u32 = 40;

/// A run in progress.
pub struct Session<'a> {
    /// Resolved config.
    pub config: &'a RunConfig,
    /// Where everything is written.
    pub folder: &'a RunFolder,
    /// The network being trained.
    pub policy: Transformer,
    /// The policy as it was when the grpo stage began, where its KL is wanted.
    pub reference: Option<Transformer>,
    /// Tokenizer.
    pub tokenizer: Tokenizer,
    /// Optimizer of the current stage.
    pub optimizer: AdamW,
    /// Where the run stands.
    pub state: TrainState,
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
    pub stats: rollout::engine::GenerationStats,
    /// Wall-clock seconds.
    pub secs: f64,
}

impl<'a> Session<'a> {
    /// Loads the starting policy; nothing is trained yet.
    ///
    /// # Errors
    /// The model's files.
    pub fn new(config: &'a RunConfig, folder: &'a RunFolder) -> Result<Session<'a>, TrainerError> {
        let runtime = kernels::runtime::start(config.threads);
        let kind = policy::compute_kind(config.compute, runtime.device);
        let start = Instant::now();
        let (policy, tokenizer) = policy::load(
            policy::open(&config.model, config.seed)?,
            kind,
            runtime.device,
        )?;
        if policy.config().eos_token_ids.is_empty() {
            return Err(TrainerError::NoStopToken);
        }
        let needs_indexer = |stage: &StageConfig| match stage {
            StageConfig::IndexerWarmup(_) | StageConfig::SparseTraining(_) => true,
            StageConfig::Sft(_) => false,
            StageConfig::Grpo(grpo) => grpo.train_indexer,
        };
        if policy.config().dsa.is_none()
            && let Some(index) = config.stages.iter().position(needs_indexer)
        {
            let stage = config.stages[index].name();
            return Err(TrainerError::NoIndexer { index, stage });
        }
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
        for sentence in without_effect(config, policy.config()) {
            tracing::info!("without effect: {sentence}");
        }
        Ok(Session {
            config,
            folder,
            policy,
            reference: None,
            tokenizer,
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
            corpus: None,
        })
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
        PromptSource::new(self.config, &self.tokenizer)
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
        let settings = GenerationSettings {
            sampling: sampling.clone(),
            attention: self.attention(),
            stop_tokens: self.policy.config().eos_token_ids.clone(),
            vocabulary: Vocabulary::of(&self.tokenizer, self.policy.config().vocab_size),
            seed: self.config.seed,
            policy_version: self.state.policy_version,
            max_batch_sequences: self.config.max_batch_sequences,
        };
        let progress = Progress::new(label, (prompts.len() * group_size) as u64, "samples");
        let (groups, stats) = rollout::group::sample_groups(
            &self.policy,
            prompts,
            group_size,
            &settings,
            &|tokens| self.tokenizer.decode(tokens),
            &mut |finished, _| progress.set(finished as u64),
        )?;
        progress.finish();
        Ok(Rollout {
            groups,
            stats,
            secs: start.elapsed().as_secs_f64(),
        })
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
                    group.samples.into_iter().next().map(|sample| TextDocument {
                        tokens: [prompt, sample.tokens].concat(),
                        loss_from,
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
