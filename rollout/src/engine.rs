//! The generation engine: schedule -> run -> postprocess, until every sample has finished.
//!
//! Each step either starts waiting samples (prefill, once a prompt, whose pages its group shares) or
//! decodes one token for every live sequence. Where the cache's budget runs short, sequences are taken out and run
//! again later, which changes none of their tokens. Beside tokens it records what training replays: the
//! log-prob of each token at sampling time, the kept tokens, and the experts of every forwarded token.
//! An [`Engine`] serves a list of requests to its end ([`Engine::generate`]), or lives on: requests come
//! ([`Engine::submit`]) and go ([`Engine::take_finished`]), the weights under it change between steps
//! ([`Engine::set_policy_version`]; each token knows its version, cached keys stay those of the older
//! weights), and what is unfinished can be taken out and continued by another engine
//! ([`Engine::in_flight`], [`Request::begun`]).

mod graph_steps;
mod graphs;
mod pauses;
mod prefill;
mod routing_rows;
mod selected_rows;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use model::{
    CacheShape, ForwardOptions, KvCache, LentDecoder, Routing, RoutingTrace, Selection,
    SelectionTrace, Transformer,
};
use tch::Tensor;

use self::graph_steps::PendingStep;
use self::routing_rows::RoutingRows;
use self::selected_rows::SelectedRows;
use crate::draws;
use crate::error::RolloutError;
use crate::generation::{
    GeneratedGroup, GeneratedSample, GenerationSettings, GenerationStats, Request,
};
use crate::sample::FinishReason;
use crate::sampler::{SampledToken, sample_batch};
use crate::scheduler::{SampleId, Scheduler, Step, check_fit};

/// What siblings of a prefilled prompt share besides the cache.
#[derive(Debug)]
struct StartedPrompt {
    /// Logits after the last prompt token, `[V]`.
    logits: Tensor,
    /// Experts of the prompt's tokens.
    routing: RoutingTrace,
    /// Keys they attended to.
    selection: SelectionTrace,
    /// Version of the weights that made the logits: that of the first token drawn from them.
    policy_version: u64,
}

/// Sequences whose next token is to be drawn.
struct NextTokens {
    slots: Vec<usize>,
    /// `[slots, V]`.
    logits: Tensor,
    /// Version of the weights that made each row of the logits.
    policy_versions: Vec<u64>,
}

/// A request at work.
#[derive(Debug)]
struct Active {
    request: Request,
    /// Kept while samples of it wait.
    started: Option<StartedPrompt>,
    /// Those begun, growing token by token.
    samples: Vec<GeneratedSample>,
    num_finished: usize,
    /// Those that wait for an answer to their turn.
    paused: BTreeSet<usize>,
}

/// What became of a sample by a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recorded {
    GoesOn,
    Paused,
    Finished,
}

/// Generates the samples of requests.
#[derive(Debug)]
pub struct Engine<'a> {
    model: &'a Transformer,
    settings: &'a GenerationSettings,
    policy_version: u64,
    options: ForwardOptions,
    cache: KvCache,
    /// Most that the cache may take.
    budget_bytes: u64,
    /// Decodes in place of the model where it can.
    graphs: Option<LentDecoder<'a>>,
    /// Decodes ahead of what has been recorded.
    pending: Option<PendingStep>,
    /// Samples that ended outside of steps.
    num_settled: usize,
    scheduler: Scheduler,
    /// By the order of submission.
    active: BTreeMap<usize, Active>,
    /// Samples whose turn has ended and that nobody has taken.
    newly_paused: Vec<SampleId>,
    /// Of the prompt that is run in parts.
    part_of_prompt: prefill::PromptRecord,
    num_submitted: usize,
    stats: GenerationStats,
}

impl<'a> Engine<'a> {
    /// An engine with these requests; no more slots than they need.
    ///
    /// # Errors
    /// A prompt that is empty or, with its completion, longer than the model's context or than the cache's budget.
    pub fn new(
        model: &'a Transformer,
        settings: &'a GenerationSettings,
        requests: &[Request],
    ) -> Result<Engine<'a>, RolloutError> {
        let num_samples: usize = requests.iter().map(|r| r.num_samples).sum();
        let num_slots = settings.max_batch_sequences.min(num_samples.max(1));
        let mut engine = Engine::idle(model, settings, num_slots);
        // The longest first, so that the cache is made once.
        engine.make_room(requests.iter().max_by_key(|request| request.tokens.len()))?;
        for request in requests {
            engine.submit(request.clone())?;
        }
        Ok(engine)
    }

    /// An engine without requests that decodes `num_slots` sequences at once, at most.
    pub fn idle(
        model: &'a Transformer,
        settings: &'a GenerationSettings,
        num_slots: usize,
    ) -> Engine<'a> {
        let memory = &settings.memory;
        // Before the budget: their buffers are no longer free then.
        let graphs = graphs::decoder(model, settings, num_slots);
        let shape = CacheShape {
            num_slots,
            num_pages: 0,
            page_tokens: memory.page_tokens,
        };
        Engine {
            model,
            settings,
            policy_version: settings.policy_version,
            options: forward_options(settings),
            budget_bytes: memory.cache.bytes(model.device()),
            cache: KvCache::of_pages(model.config(), shape, model.kind(), model.device()),
            graphs,
            pending: None,
            num_settled: 0,
            scheduler: Scheduler::new(num_slots, memory.max_prefill_tokens),
            active: BTreeMap::new(),
            newly_paused: Vec::new(),
            part_of_prompt: prefill::PromptRecord::default(),
            num_submitted: 0,
            stats: GenerationStats::default(),
        }
    }

    /// Adds a request behind those that wait.
    ///
    /// # Errors
    /// As [`Engine::new`].
    ///
    /// # Panics
    /// When more samples are begun than wanted.
    pub fn submit(&mut self, mut request: Request) -> Result<(), RolloutError> {
        self.make_room([&request])?;
        let samples = std::mem::take(&mut request.begun);
        assert!(
            samples.len() <= request.num_samples,
            "more begun than wanted"
        );
        let is_unfinished =
            |sample: &GeneratedSample| sample.finish_reason == FinishReason::Unfinished;
        let unfinished = samples
            .iter()
            .enumerate()
            .filter(|(_, sample)| is_unfinished(sample));
        let unfinished: Vec<(usize, usize)> = unfinished
            .map(|(index, sample)| (index, sample.tokens.len()))
            .collect();
        self.scheduler.add(
            self.num_submitted,
            request.tokens.len(),
            &unfinished,
            samples.len()..request.num_samples,
        );
        self.active.insert(
            self.num_submitted,
            Active {
                num_finished: samples.len() - unfinished.len(),
                request,
                started: None,
                samples,
                paused: BTreeSet::new(),
            },
        );
        self.num_submitted += 1;
        Ok(())
    }

    /// Grows the cache until every slot holds any of `requests`, or as far as the budget goes; in one go where it is
    /// told of the longest first.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn make_room<'r>(
        &mut self,
        requests: impl IntoIterator<Item = &'r Request>,
    ) -> Result<(), RolloutError> {
        let max_new_tokens = self.settings.sampling.max_new_tokens;
        for request in requests {
            let prompt = request.tokens.len();
            let context = self.model.config().max_position_embeddings;
            check_fit(request.prompt_id, prompt, max_new_tokens, context)?;
            self.grow_cache(request.prompt_id, prompt + max_new_tokens)?;
        }
        Ok(())
    }

    /// Makes slots able to hold `tokens` tokens, and takes pages for all of them within the budget.
    fn grow_cache(&mut self, prompt_id: u64, tokens: usize) -> Result<(), RolloutError> {
        let (config, kind) = (self.model.config(), self.model.kind());
        let page_bytes = KvCache::token_bytes(config, self.cache.pages.page_tokens(), kind) as u64;
        let allowed = usize::try_from(self.budget_bytes / page_bytes).unwrap_or(usize::MAX);
        let wanted = self.cache.pages.pages_for(tokens);
        if wanted > allowed {
            return Err(RolloutError::CacheTooSmall {
                prompt_id,
                needed_bytes: wanted as u64 * page_bytes,
                allowed_bytes: self.budget_bytes,
            });
        }
        let before = self.cache.pages.num_pages();
        // One more each: a prompt that is held for siblings keeps its last page to itself.
        let num_pages = allowed.min((wanted + 1) * self.cache.num_slots());
        if num_pages > before {
            self.settle()?;
            self.graphs.iter_mut().for_each(|graphs| graphs.forget());
            // A cache that keeps what it holds is there twice while it grows.
            if before + num_pages > allowed {
                self.scheduler.preempt_all(&mut self.cache.pages);
            }
        }
        self.cache.reserve(config, tokens, num_pages);
        Ok(())
    }

    /// The weights have changed, after [`Engine::settle`]: tokens drawn from now on are of this version.
    pub fn set_policy_version(&mut self, version: u64) {
        self.policy_version = version;
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
        let wanted = self
            .active
            .values()
            .map(|active| active.request.num_samples);
        let total = wanted.sum();
        let mut num_finished = 0;
        while let Some(newly_finished) = self.step()? {
            num_finished += newly_finished;
            if newly_finished > 0 {
                progress(num_finished, total);
            }
        }
        let samples = self.active.into_values().map(|active| active.samples);
        Ok((samples.collect(), self.stats))
    }

    /// One step; the number of samples it finished (those that pause left out), `None` when nothing was left to do.
    ///
    /// # Errors
    /// Logits that are not finite.
    pub fn step(&mut self) -> Result<Option<usize>, RolloutError> {
        let _guard = tch::no_grad_guard();
        let num_settled = std::mem::take(&mut self.num_settled);
        let step = match self.pending {
            // It was begun in the last one.
            Some(_) => Some(Step::Decode {
                num_live: self.scheduler.num_live(),
            }),
            None => self.scheduler.schedule(&mut self.cache.pages),
        };
        self.stats.preemptions += self.scheduler.take_num_preempted();
        let Some(step) = step else {
            return Ok((num_settled > 0).then_some(num_settled));
        };
        let start = Instant::now();
        let is_decode = matches!(step, Step::Decode { .. });
        let _range = kernels::profiler::range(if is_decode { "decode" } else { "prefill" });
        let num_finished = match step {
            Step::Admit(admissions) => match self.start(&admissions) {
                Some(next) => self.postprocess(next)?,
                None => 0,
            },
            Step::Decode { num_live } => match self.graphs.take() {
                Some(mut graphs) => {
                    let num_finished = self.decode_by_graph(&mut graphs)?;
                    self.graphs = Some(graphs);
                    num_finished
                }
                None => {
                    let next = self.decode(num_live);
                    self.postprocess(next)?
                }
            },
        };
        let secs = start.elapsed().as_secs_f64();
        *if is_decode {
            &mut self.stats.decode_secs
        } else {
            &mut self.stats.prefill_secs
        } += secs;
        Ok(Some(num_settled + num_finished))
    }

    /// Takes out the requests whose samples have all finished, oldest first.
    pub fn take_finished(&mut self) -> Vec<GeneratedGroup> {
        let is_finished = |active: &Active| active.num_finished == active.request.num_samples;
        let finished = self.active.iter().filter(|(_, active)| is_finished(active));
        let numbers: Vec<usize> = finished.map(|(&number, _)| number).collect();
        let taken = numbers
            .iter()
            .filter_map(|number| self.active.remove(number));
        taken
            .map(|active| GeneratedGroup {
                prompt_id: active.request.prompt_id,
                samples: active.samples,
            })
            .collect()
    }

    /// What has been begun of the requests at work, oldest first; those that wait have no samples. The
    /// [`Request::begun`] of another engine that shall go on with them.
    pub fn in_flight(&self) -> Vec<GeneratedGroup> {
        let groups = self.active.values().map(|active| GeneratedGroup {
            prompt_id: active.request.prompt_id,
            samples: active.samples.clone(),
        });
        groups.collect()
    }

    /// What was done since the last call.
    pub fn take_stats(&mut self) -> GenerationStats {
        std::mem::take(&mut self.stats)
    }

    /// The newest token of a live sequence, which the cache does not hold yet.
    fn newest_token(&mut self, slot: usize) -> u32 {
        let newest = self.sample(slot).tokens.last();
        *newest.expect("a live sequence has a first token")
    }

    /// Forwards the newest token of every live sequence.
    fn decode(&mut self, num_live: usize) -> NextTokens {
        let slots: Vec<usize> = (0..num_live).collect();
        let tokens: Vec<i64> = slots
            .iter()
            .map(|&slot| i64::from(self.newest_token(slot)))
            .collect();
        let tokens = Tensor::from_slice(&tokens).to_device(self.model.device());
        let output = self.model.decode(&mut self.cache, &tokens, &self.options);
        let mut routing = RoutingRows::of(&output);
        let mut selected = SelectedRows::of(self.model, &output);
        for &slot in &slots {
            let row = routing.take(1);
            let position = self.cache.pages.len(slot) - 1;
            let sample = self.sample(slot);
            sample.routing.ids.extend(row.ids);
            selected.take(position, &mut sample.selection);
        }
        self.stats.decoded_tokens += num_live;
        self.stats.key_share_sum += output.key_share * num_live as f64;
        NextTokens {
            policy_versions: vec![self.policy_version; slots.len()],
            slots,
            logits: self.model.logits(&output.hidden),
        }
    }

    /// The uniform number behind the next token of a sample.
    fn draw(&self, id: SampleId) -> f64 {
        let active = &self.active[&id.request];
        draws::uniform(
            self.settings.seed,
            active.request.prompt_id,
            id.sample as u64,
            active.samples[id.sample].tokens.len() as u64,
        )
    }

    /// Draws and records a token a sequence, ends those that are complete, and counts them.
    fn postprocess(&mut self, next: NextTokens) -> Result<usize, RolloutError> {
        let ids: Vec<SampleId> = next.slots.iter().map(|&slot| self.live(slot)).collect();
        let draws: Vec<f64> = ids.iter().map(|&id| self.draw(id)).collect();
        let sampling = &self.settings.sampling;
        let tokens = sample_batch(&next.logits, sampling, &draws, &self.settings.vocabulary);
        let mut num_finished = 0;
        for (row, (id, token)) in ids.into_iter().zip(tokens).enumerate() {
            num_finished += self.record(id, token, next.policy_versions[row])?;
        }
        Ok(num_finished)
    }

    /// Appends `token`, drawn by weights of version `policy_version`, to its sample, which leaves its slot where that
    /// ends its turn; 1 where it completes the sample, else 0.
    fn record(
        &mut self,
        id: SampleId,
        token: SampledToken,
        policy_version: u64,
    ) -> Result<usize, RolloutError> {
        match self.append(id, token, policy_version)? {
            Recorded::GoesOn => Ok(0),
            Recorded::Paused => {
                self.pause(id);
                Ok(0)
            }
            Recorded::Finished => {
                self.scheduler.finish_sample(id, &mut self.cache.pages);
                // Samples of several turns are counted by whoever answers them.
                Ok(usize::from(!self.active[&id.request].request.pauses))
            }
        }
    }

    fn append(
        &mut self,
        id: SampleId,
        token: SampledToken,
        policy_version: u64,
    ) -> Result<Recorded, RolloutError> {
        let active = self.active.get_mut(&id.request).expect("it is at work");
        let sample = &mut active.samples[id.sample];
        if !token.logprob.is_finite() {
            return Err(RolloutError::NonFiniteLogits {
                prompt_id: active.request.prompt_id,
                sample_index: id.sample,
                position: sample.tokens.len(),
            });
        }
        sample.tokens.push(token.id);
        sample.sampler_logprobs.push(token.logprob);
        sample.kept.push(&token.kept);
        sample.policy_versions.push(policy_version);
        self.stats.sampled_tokens += 1;
        self.stats.entropy_sum += f64::from(token.entropy);
        if self.settings.stop_tokens.contains(&token.id) {
            sample.finish_reason = FinishReason::Stop;
            if active.request.pauses {
                return Ok(Recorded::Paused);
            }
        } else if sample.tokens.len() == self.settings.sampling.max_new_tokens {
            sample.finish_reason = FinishReason::Length;
        } else {
            return Ok(Recorded::GoesOn);
        }
        active.num_finished += 1;
        if active.request.pauses {
            self.newly_paused.push(id);
        }
        Ok(Recorded::Finished)
    }

    fn live(&self, slot: usize) -> SampleId {
        self.scheduler.live(slot).expect("the slot is live")
    }

    fn sample(&mut self, slot: usize) -> &mut GeneratedSample {
        let id = self.live(slot);
        let active = self.active.get_mut(&id.request).expect("it is at work");
        &mut active.samples[id.sample]
    }
}

/// Free routing that is recorded, and whatever else the settings ask for.
fn forward_options(settings: &GenerationSettings) -> ForwardOptions {
    ForwardOptions {
        routing: Routing::Record,
        attention: settings.attention,
        selection: match settings.record_selection {
            true => Selection::Record,
            false => Selection::Free,
        },
        ..ForwardOptions::inference()
    }
}

#[cfg(test)]
mod tests;
