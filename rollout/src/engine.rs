//! The generation engine: schedule -> run -> postprocess, until every sample has finished.
//!
//! One [`Engine`] serves one batch of requests with one policy version. Each step either starts
//! waiting samples (prefill, once a prompt, then copies for its group) or decodes one token for
//! every live sequence. Beside tokens it records what training replays: the log-prob of each token
//! at sampling time, the kept tokens, and the experts of every forwarded token.

use std::time::Instant;

use model::Transformer;
use model::{Attention, ForwardOptions, ForwardOutput, KeptTokens, KvCache, Routing, RoutingTrace};
use tch::{Kind, Tensor};

use crate::draws;
use crate::error::RolloutError;
use crate::sample::FinishReason;
use crate::sampler::{SampledToken, SamplingConfig, sample_batch};
use crate::scheduler::{Admission, PromptSource, SampleId, Scheduler, Step, check_fit};
use crate::vocabulary::Vocabulary;

/// A prompt to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Keys the random draws; unique within a run.
    pub prompt_id: u64,
    /// Prompt token ids.
    pub tokens: Vec<u32>,
    /// Completions wanted.
    pub num_samples: usize,
}

/// How to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationSettings {
    /// Temperature, truncation, length.
    pub sampling: SamplingConfig,
    /// Attention of the model: dense until its indexer has been trained.
    pub attention: Attention,
    /// Ids that end a completion.
    pub stop_tokens: Vec<u32>,
    /// Ids that may be sampled: the tokenizer's, which may be fewer than the output head's rows.
    pub vocabulary: Vocabulary,
    /// Run seed of the draws.
    pub seed: u64,
    /// Version of the weights, recorded in every sample.
    pub policy_version: u64,
    /// Sequences decoded at once, at most.
    pub max_batch_sequences: usize,
}

/// One completion, not yet decoded or graded.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedSample {
    /// Completion token ids, a stop token included.
    pub tokens: Vec<u32>,
    /// Log-prob of each token at sampling time, after temperature and truncation.
    pub sampler_logprobs: Vec<f32>,
    /// Support left by truncation, one row a token.
    pub kept: KeptTokens,
    /// Experts of prompt and completion, `prompt + len - 1` rows; no rows in a dense model.
    pub routing: RoutingTrace,
    /// Version of the policy that sampled it.
    pub policy_version: u64,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// What a generation did, for metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationStats {
    /// Prompt tokens run through the model; a group's prompt counts once.
    pub prefill_tokens: usize,
    /// Tokens run through decode steps.
    pub decoded_tokens: usize,
    /// Tokens drawn: the lengths of all samples.
    pub sampled_tokens: usize,
    /// Time of prefills with the draws of first tokens.
    pub prefill_secs: f64,
    /// Time of decode steps with their draws.
    pub decode_secs: f64,
    /// Keys attended over keys visible, mean over forwarded tokens.
    pub mean_key_share: f64,
    /// Entropy of the tempered policy before truncation, mean over sampled tokens, nats.
    pub mean_entropy: f64,
}

/// What siblings of a prefilled prompt share besides the cache.
#[derive(Debug)]
struct StartedPrompt {
    /// Logits after the last prompt token, `[V]`.
    logits: Tensor,
    /// Experts of the prompt's tokens.
    routing: RoutingTrace,
}

/// Sequences whose next token is to be drawn: their slots and logits `[slots, V]`.
type NextTokens = (Vec<usize>, Tensor);

/// Generates the samples of a list of requests.
#[derive(Debug)]
pub struct Engine<'a> {
    model: &'a Transformer,
    settings: &'a GenerationSettings,
    requests: &'a [Request],
    options: ForwardOptions,
    cache: KvCache,
    scheduler: Scheduler,
    /// By request; kept while samples of it wait.
    started: Vec<Option<StartedPrompt>>,
    /// By request and sample, growing token by token.
    samples: Vec<Vec<GeneratedSample>>,
    stats: GenerationStats,
}

impl<'a> Engine<'a> {
    /// Prepares the cache, with room for the longest prompt and `max_new_tokens` in each slot.
    ///
    /// # Errors
    /// A prompt that is empty or, with its completion, longer than the model's context.
    pub fn new(
        model: &'a Transformer,
        settings: &'a GenerationSettings,
        requests: &'a [Request],
    ) -> Result<Engine<'a>, RolloutError> {
        let max_new_tokens = settings.sampling.max_new_tokens;
        check_fit(
            requests.iter().map(|r| (r.prompt_id, r.tokens.len())),
            max_new_tokens,
            model.config().max_position_embeddings,
        )?;
        let prompt_lens: Vec<usize> = requests.iter().map(|r| r.tokens.len()).collect();
        let num_samples: Vec<usize> = requests.iter().map(|r| r.num_samples).collect();
        let capacity = prompt_lens.iter().max().copied().unwrap_or(0) + max_new_tokens;
        let num_slots = settings
            .max_batch_sequences
            .min(num_samples.iter().sum::<usize>().max(1));
        Ok(Engine {
            model,
            settings,
            requests,
            options: ForwardOptions {
                routing: Routing::Record,
                attention: settings.attention,
                ..ForwardOptions::inference()
            },
            cache: KvCache::new(
                model.config(),
                num_slots,
                capacity,
                model.kind(),
                model.device(),
            ),
            scheduler: Scheduler::new(prompt_lens, &num_samples, num_slots),
            started: requests.iter().map(|_| None).collect(),
            samples: requests.iter().map(|_| Vec::new()).collect(),
            stats: GenerationStats::default(),
        })
    }

    /// Runs to the end and returns the samples of each request, by sample index. `progress` is
    /// called with (finished, total) samples after every step that finished some.
    ///
    /// # Errors
    /// Logits that are not finite.
    pub fn generate(
        mut self,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<(Vec<Vec<GeneratedSample>>, GenerationStats), RolloutError> {
        let total = self.requests.iter().map(|r| r.num_samples).sum();
        let mut num_finished = 0;
        while let Some(newly_finished) = tch::no_grad(|| self.step())? {
            num_finished += newly_finished;
            if newly_finished > 0 {
                progress(num_finished, total);
            }
        }
        let stats = &mut self.stats;
        let num_forwarded = (stats.prefill_tokens + stats.decoded_tokens).max(1);
        stats.mean_key_share /= num_forwarded as f64;
        stats.mean_entropy /= stats.sampled_tokens.max(1) as f64;
        Ok((self.samples, self.stats))
    }

    /// One step; the number of samples it finished, `None` when nothing was left to do.
    fn step(&mut self) -> Result<Option<usize>, RolloutError> {
        let Some(step) = self.scheduler.schedule() else {
            return Ok(None);
        };
        let start = Instant::now();
        let is_decode = matches!(step, Step::Decode { .. });
        let next = match step {
            Step::Admit(admissions) => self.start(&admissions),
            Step::Decode { moves, num_live } => self.decode(&moves, num_live),
        };
        let num_finished = self.postprocess(next)?;
        let secs = start.elapsed().as_secs_f64();
        *if is_decode {
            &mut self.stats.decode_secs
        } else {
            &mut self.stats.prefill_secs
        } += secs;
        Ok(Some(num_finished))
    }

    /// Brings the prompts of new samples into their slots.
    fn start(&mut self, admissions: &[Admission]) -> NextTokens {
        self.prefill(admissions);
        for admission in admissions {
            let request = admission.id.request;
            if let PromptSource::Slot(from) = admission.source {
                let prompt_len = self.requests[request].tokens.len() as i64;
                share_prompt(&mut self.cache, from, admission.slot, prompt_len);
            }
            let started = self.started[request].as_ref().expect("prefilled before");
            debug_assert_eq!(self.samples[request].len(), admission.id.sample);
            self.samples[request].push(GeneratedSample {
                tokens: Vec::new(),
                sampler_logprobs: Vec::new(),
                kept: KeptTokens::default(),
                routing: started.routing.clone(),
                policy_version: self.settings.policy_version,
                // Stands unless a stop token is drawn.
                finish_reason: FinishReason::Length,
            });
        }
        let rows: Vec<&Tensor> = admissions
            .iter()
            .map(|a| {
                &self.started[a.id.request]
                    .as_ref()
                    .expect("prefilled before")
                    .logits
            })
            .collect();
        let logits = Tensor::stack(&rows, 0);
        for admission in admissions {
            if !self.scheduler.is_waiting(admission.id.request) {
                self.started[admission.id.request] = None;
            }
        }
        (admissions.iter().map(|a| a.slot).collect(), logits)
    }

    /// Runs the prompts that no slot holds yet, all in one forward pass.
    fn prefill(&mut self, admissions: &[Admission]) {
        let new: Vec<&Admission> = admissions
            .iter()
            .filter(|a| a.source == PromptSource::Prefill)
            .collect();
        if new.is_empty() {
            return;
        }
        let slots: Vec<usize> = new.iter().map(|a| a.slot).collect();
        let prompts: Vec<&[u32]> = new
            .iter()
            .map(|a| self.requests[a.id.request].tokens.as_slice())
            .collect();
        slots.iter().for_each(|&slot| self.cache.clear_slot(slot));
        let output = self
            .model
            .prefill(&mut self.cache, &slots, &prompts, &self.options);

        let ends: Vec<i64> = prompts
            .iter()
            .scan(0, |end, prompt| {
                *end += prompt.len() as i64;
                Some(*end - 1)
            })
            .collect();
        let last = Tensor::from_slice(&ends).to_device(output.hidden.device());
        let logits = self.model.logits(&output.hidden.index_select(0, &last));
        let mut routing = RoutingRows::of(&output);
        for (row, (admission, prompt)) in new.iter().zip(&prompts).enumerate() {
            self.started[admission.id.request] = Some(StartedPrompt {
                logits: logits.get(row as i64),
                routing: routing.take(prompt.len()),
            });
        }
        let num_tokens: usize = prompts.iter().map(|prompt| prompt.len()).sum();
        self.stats.prefill_tokens += num_tokens;
        self.stats.mean_key_share += output.key_share * num_tokens as f64;
    }

    /// Forwards the last token of every live sequence.
    fn decode(&mut self, moves: &[(usize, usize)], num_live: usize) -> NextTokens {
        for &(from, to) in moves {
            self.cache.copy_slot(from, to);
            self.cache.clear_slot(from);
        }
        let slots: Vec<usize> = (0..num_live).collect();
        let tokens: Vec<i64> = slots
            .iter()
            .map(|&slot| {
                let last = self.sample(slot).tokens.last();
                i64::from(*last.expect("a live sequence has a first token"))
            })
            .collect();
        let tokens = Tensor::from_slice(&tokens).to_device(self.model.device());
        let output = self.model.decode(&mut self.cache, &tokens, &self.options);
        let mut routing = RoutingRows::of(&output);
        for &slot in &slots {
            let row = routing.take(1);
            self.sample(slot).routing.ids.extend(row.ids);
        }
        self.stats.decoded_tokens += num_live;
        self.stats.mean_key_share += output.key_share * num_live as f64;
        (slots, self.model.logits(&output.hidden))
    }

    /// Draws and records a token a sequence, ends those that are complete, and counts them.
    fn postprocess(&mut self, (slots, logits): NextTokens) -> Result<usize, RolloutError> {
        let ids: Vec<SampleId> = slots.iter().map(|&slot| self.live(slot)).collect();
        let draws: Vec<f64> = ids
            .iter()
            .map(|id| {
                draws::uniform(
                    self.settings.seed,
                    self.requests[id.request].prompt_id,
                    id.sample as u64,
                    self.samples[id.request][id.sample].tokens.len() as u64,
                )
            })
            .collect();
        let sampling = &self.settings.sampling;
        let tokens = sample_batch(&logits, sampling, &draws, &self.settings.vocabulary);
        let mut num_finished = 0;
        for (&slot, (id, token)) in slots.iter().zip(ids.iter().zip(tokens)) {
            if self.record(*id, token)? {
                self.scheduler.finish(slot);
                num_finished += 1;
            }
        }
        Ok(num_finished)
    }

    /// Appends `token` to its sample; true when that completes it.
    fn record(&mut self, id: SampleId, token: SampledToken) -> Result<bool, RolloutError> {
        let sample = &mut self.samples[id.request][id.sample];
        if !token.logprob.is_finite() {
            return Err(RolloutError::NonFiniteLogits {
                prompt_id: self.requests[id.request].prompt_id,
                sample_index: id.sample,
                position: sample.tokens.len(),
            });
        }
        sample.tokens.push(token.id);
        sample.sampler_logprobs.push(token.logprob);
        sample.kept.push(&token.kept);
        self.stats.sampled_tokens += 1;
        self.stats.mean_entropy += f64::from(token.entropy);
        if self.settings.stop_tokens.contains(&token.id) {
            sample.finish_reason = FinishReason::Stop;
            return Ok(true);
        }
        Ok(sample.tokens.len() == self.settings.sampling.max_new_tokens)
    }

    fn live(&self, slot: usize) -> SampleId {
        self.scheduler.live(slot).expect("the slot is live")
    }

    fn sample(&mut self, slot: usize) -> &mut GeneratedSample {
        let id = self.live(slot);
        &mut self.samples[id.request][id.sample]
    }
}

/// Makes slot `to` hold the first `prompt_len` tokens of slot `from`, which may be the same.
fn share_prompt(cache: &mut KvCache, from: usize, to: usize, prompt_len: i64) {
    let held = std::mem::replace(&mut cache.lengths[from], prompt_len);
    if from != to {
        cache.copy_slot(from, to);
        cache.lengths[from] = held;
    }
}

/// The expert ids of a forward pass on the host, handed out row by row.
struct RoutingRows {
    num_layers: usize,
    top_k: usize,
    ids: std::vec::IntoIter<i32>,
}

impl RoutingRows {
    fn of(output: &ForwardOutput) -> RoutingRows {
        let Some(routing) = &output.routing else {
            return RoutingRows {
                num_layers: 0,
                top_k: 0,
                ids: Vec::new().into_iter(),
            };
        };
        let size = routing.size();
        // i32 halves the transfer of i64 ids; they fit (at most 65535 experts).
        let ids: Vec<i32> =
            Vec::try_from(routing.to_kind(Kind::Int).flatten(0, -1)).expect("a flat i32 tensor");
        RoutingRows {
            num_layers: size[1] as usize,
            top_k: size[2] as usize,
            ids: ids.into_iter(),
        }
    }

    /// The rows of the next `num_tokens` tokens.
    fn take(&mut self, num_tokens: usize) -> RoutingTrace {
        let len = num_tokens * self.num_layers * self.top_k;
        RoutingTrace {
            num_layers: self.num_layers,
            top_k: self.top_k,
            ids: self.ids.by_ref().take(len).map(|id| id as u16).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
