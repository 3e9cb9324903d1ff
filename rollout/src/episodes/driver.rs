//! Moves samples between the engine, which draws their turns, and the pool, which answers them.
//!
//! Prompts without turns pass straight through. The episodes of the others go on whenever their tools have answered, while
//! the engine draws for the rest; it waits only where every sample is out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use environments::{Next, Stop, Task, Verdict};
use model::Transformer;

use super::pool::{Answer, Ask, Place, PlayerId, Pool};
use super::talk::Talk;
use super::{EpisodeHost, opening};
use crate::engine::Engine;
use crate::error::RolloutError;
use crate::generation::{
    GeneratedGroup, GeneratedSample, GenerationSettings, GenerationStats, PausedSample, Request,
};
use crate::group::{Judge, graded_group};
use crate::paid;
use crate::sample::{EpisodeRecord, FinishReason, Group, Prompt, Sample, Segment};
use crate::scheduler::check_fit;

/// How long an engine without work waits for a tool before the caller is asked again.
const PATIENCE: Duration = Duration::from_millis(50);
/// Bits of a segment's request id: see [`segment_id`].
const PROMPT_BITS: u32 = 40;
const SAMPLE_BITS: u32 = 12;

/// Runs prompts to graded groups.
#[derive(Debug)]
pub struct Driver<'a> {
    engine: Engine<'a>,
    settings: &'a GenerationSettings,
    context: usize,
    judge: Judge<'a>,
    group_size: usize,
    pool: Pool,
    /// Prompts at work.
    prompts: BTreeMap<u64, Playing>,
    /// Whose requests of later segments are.
    segments: BTreeMap<u64, PlayerId>,
    finished: Vec<Group>,
    /// Samples that ended outside of engine steps.
    num_over: usize,
}

/// A prompt at work.
#[derive(Debug)]
struct Playing {
    prompt: Prompt,
    /// Empty for a prompt without turns.
    players: Vec<Player>,
    /// Its samples, once the engine has finished with their first segments.
    first: Option<Vec<GeneratedSample>>,
}

/// A sample in several turns.
#[derive(Debug)]
struct Player {
    talk: Talk,
    /// `None` while it is out.
    place: Option<Place>,
    /// The request and the sample of the segment at work.
    at: PlayerId,
    /// Contexts of its later segments.
    contexts: Vec<Vec<u32>>,
    /// What was drawn behind those that have ended.
    later: Vec<Segment>,
    over: Option<(Verdict, EpisodeRecord)>,
}

impl<'a> Driver<'a> {
    /// An idle driver that samples `group_size` completions a prompt, in `num_slots` slots.
    pub fn new(
        model: &'a Transformer,
        settings: &'a GenerationSettings,
        num_slots: usize,
        group_size: usize,
        judge: Judge<'a>,
    ) -> Driver<'a> {
        let config = judge.episodes.map(|host| host.config.clone());
        let config = config.unwrap_or_default();
        Driver {
            engine: Engine::idle(model, settings, num_slots),
            settings,
            context: model.config().max_position_embeddings,
            judge,
            group_size,
            pool: Pool::new(config.threads, config.turn_timeout_secs),
            prompts: BTreeMap::new(),
            segments: BTreeMap::new(),
            finished: Vec::new(),
            num_over: 0,
        }
    }

    /// Makes room in the cache for the longest of `prompts`.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn make_room(&mut self, prompts: &[Prompt]) -> Result<(), RolloutError> {
        let longest = prompts.iter().max_by_key(|prompt| prompt.tokens.len());
        let request = longest.map(|prompt| Request {
            prompt_id: prompt.id,
            tokens: prompt.tokens.clone(),
            num_samples: self.group_size,
            begun: Vec::new(),
            pauses: false,
        });
        self.engine.make_room(&request)
    }

    /// Adds a prompt behind those that wait, with what was begun of its samples before. Samples with turns begin
    /// anew: what their tools did is gone.
    ///
    /// # Errors
    /// As [`Engine::new`], or a task that is not there any more.
    pub fn submit(
        &mut self,
        prompt: Prompt,
        begun: Vec<GeneratedSample>,
    ) -> Result<(), RolloutError> {
        let task = match self.judge.episodes {
            Some(host) => host.task_with_turns(&prompt.task)?,
            None => None,
        };
        let players = match &task {
            Some(task) => (0..self.group_size)
                .map(|sample| self.player(task, (prompt.id, sample)))
                .collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        self.engine.submit(Request {
            prompt_id: prompt.id,
            tokens: prompt.tokens.clone(),
            num_samples: self.group_size,
            begun: if task.is_some() { Vec::new() } else { begun },
            pauses: task.is_some(),
        })?;
        let playing = Playing {
            prompt,
            players,
            first: None,
        };
        self.prompts.insert(playing.prompt.id, playing);
        Ok(())
    }

    fn player(&self, task: &Arc<Task>, at: PlayerId) -> Result<Player, RolloutError> {
        let host = self.host();
        Ok(Player {
            talk: Talk::new(opening(
                task,
                host.system_prompt.as_deref(),
                &host.tokenizer,
            )?),
            place: Some(Place::New(task.clone())),
            at,
            contexts: Vec::new(),
            later: Vec::new(),
            over: None,
        })
    }

    fn host(&self) -> &'a EpisodeHost {
        self.judge
            .episodes
            .expect("only a host has tasks with turns")
    }

    /// One step; the number of samples that it finished, `None` when nothing is left to do.
    ///
    /// # Errors
    /// Logits that are not finite, or a chat format that can't show a conversation.
    pub fn step(&mut self) -> Result<Option<usize>, RolloutError> {
        let stepped = self.engine.step()?;
        for paused in self.engine.take_paused() {
            self.hear(paused)?;
        }
        let patience = match stepped {
            Some(_) => Duration::ZERO,
            None => PATIENCE,
        };
        let answers = self.pool.answers(patience).into_iter();
        let answers: Vec<_> = answers.chain(self.pool.expired()).collect();
        let has_answers = !answers.is_empty();
        for (id, answer) in answers {
            self.answer(id, answer)?;
        }
        for group in self.engine.take_finished() {
            self.keep(group);
        }
        self.finish_groups();
        let num_over = std::mem::take(&mut self.num_over);
        let is_at_work = stepped.is_some() || has_answers || self.pool.num_out() > 0;
        assert!(
            is_at_work || self.prompts.is_empty(),
            "{} prompts wait for nothing",
            self.prompts.len()
        );
        Ok(is_at_work.then(|| stepped.unwrap_or(0) + num_over))
    }

    /// Whether prompts are at work.
    pub fn is_busy(&self) -> bool {
        !self.prompts.is_empty()
    }

    /// The groups that have been graded since the last call.
    pub fn take_finished(&mut self) -> Vec<Group> {
        std::mem::take(&mut self.finished)
    }

    /// What the engine did since the last call.
    pub fn take_stats(&mut self) -> GenerationStats {
        self.engine.take_stats()
    }

    /// The engine's, of prompts without turns.
    pub fn in_flight(&self) -> Vec<GeneratedGroup> {
        let groups = self.engine.in_flight().into_iter();
        let has_turns = |id: u64| self.prompts.get(&id).is_none_or(|p| !p.players.is_empty());
        groups.filter(|group| !has_turns(group.prompt_id)).collect()
    }

    /// See [`Engine::settle`].
    ///
    /// # Errors
    /// As [`Driver::step`].
    pub fn settle(&mut self) -> Result<(), RolloutError> {
        self.engine.settle()
    }

    /// See [`Engine::set_policy_version`].
    pub fn set_policy_version(&mut self, version: u64) {
        self.engine.set_policy_version(version);
    }

    /// Gives the samples of a prompt other episodes.
    #[cfg(test)]
    pub(super) fn replace_places(&mut self, prompt: u64, make: &dyn Fn() -> Place) {
        let playing = self.prompts.get_mut(&prompt).expect("it is at work");
        let players = playing.players.iter_mut();
        players.for_each(|player| player.place = Some(make()));
    }

    /// Whose the sample of a request is.
    fn owner(&self, request: u64, sample: usize) -> PlayerId {
        let owner = self.segments.get(&request).copied();
        owner.unwrap_or((request, sample))
    }

    fn player_mut(&mut self, (prompt, sample): PlayerId) -> &mut Player {
        let playing = self.prompts.get_mut(&prompt).expect("it is at work");
        &mut playing.players[sample]
    }

    /// Takes a turn of the policy to its episode.
    fn hear(&mut self, paused: PausedSample) -> Result<(), RolloutError> {
        let id = self.owner(paused.prompt_id, paused.sample);
        let host = self.host();
        let player = self.player_mut(id);
        let ask = match paused.is_cut {
            true => Ask::End(Stop::Length),
            false => match player.talk.hear(host, &paused.turn) {
                Some(turn) => Ask::Step(turn),
                None => Ask::End(Stop::Malformed),
            },
        };
        let place = player.place.take().expect("it was not out");
        self.pool.ask(id, place, ask);
        Ok(())
    }

    /// Takes what an episode answers back to its sample.
    fn answer(&mut self, id: PlayerId, answer: Answer) -> Result<(), RolloutError> {
        match answer {
            Answer::Over(verdict, record) => {
                let (request, sample) = self.player_mut(id).at;
                if self.engine.is_paused(request, sample) {
                    self.engine
                        .finish_paused(request, sample, FinishReason::Stop);
                }
                self.player_mut(id).over = Some((verdict, record));
                self.num_over += 1;
            }
            Answer::Next(episode, Next::Tools(results)) => {
                let host = self.host();
                let player = self.player_mut(id);
                player.place = Some(Place::Open(episode));
                let given = player.talk.results(host, results)?;
                let (request, sample) = player.at;
                if given.len() < self.engine.room(request, sample) {
                    self.engine.resume(request, sample, &given)?;
                } else {
                    self.engine
                        .finish_paused(request, sample, FinishReason::Length);
                    self.end(id, Stop::Length);
                }
            }
            Answer::Next(episode, Next::User(content)) => {
                let host = self.host();
                let player = self.player_mut(id);
                player.place = Some(Place::Open(episode));
                let context = player.talk.user(host, content)?;
                let (request, sample) = player.at;
                self.engine
                    .finish_paused(request, sample, FinishReason::Stop);
                self.begin_segment(id, context)?;
            }
            Answer::Next(_, Next::Done(_)) => unreachable!("what is done is over"),
        }
        Ok(())
    }

    /// Asks the episode to end as it stands.
    fn end(&mut self, id: PlayerId, stop: Stop) {
        let place = self.player_mut(id).place.take().expect("it was not out");
        self.pool.ask(id, place, Ask::End(stop));
    }

    /// Begins the next segment behind `context`, a request of its own.
    fn begin_segment(&mut self, id: PlayerId, context: Vec<u32>) -> Result<(), RolloutError> {
        let number = self.player_mut(id).contexts.len() as u64 + 1;
        let max_new_tokens = self.settings.sampling.max_new_tokens;
        let request = segment_id(id, number).filter(|&request| {
            check_fit(request, context.len(), max_new_tokens, self.context).is_ok()
        });
        let Some(request) = request else {
            self.end(id, Stop::Length);
            return Ok(());
        };
        self.engine.submit(Request {
            prompt_id: request,
            tokens: context.clone(),
            num_samples: 1,
            begun: Vec::new(),
            pauses: true,
        })?;
        self.segments.insert(request, id);
        let player = self.player_mut(id);
        player.contexts.push(context);
        player.at = (request, 0);
        Ok(())
    }

    /// Keeps what the engine has finished with.
    fn keep(&mut self, mut group: GeneratedGroup) {
        match self.segments.remove(&group.prompt_id) {
            Some(id) => {
                let player = self.player_mut(id);
                let prompt_tokens = player.contexts[player.later.len()].clone();
                if let Some(completion) = group.samples.pop() {
                    player.later.push(Segment {
                        prompt_tokens,
                        completion,
                    });
                }
            }
            None => {
                let playing = self.prompts.get_mut(&group.prompt_id);
                playing.expect("it was submitted").first = Some(group.samples);
            }
        }
    }

    /// Takes out the prompts all of whose samples are over.
    fn finish_groups(&mut self) {
        let is_over = |playing: &Playing| {
            let is_over = |player: &Player| {
                player.over.is_some() && player.later.len() == player.contexts.len()
            };
            playing.first.is_some() && playing.players.iter().all(is_over)
        };
        let over = self.prompts.iter().filter(|(_, playing)| is_over(playing));
        let over: Vec<u64> = over.map(|(&id, _)| id).collect();
        for id in over {
            let playing = self.prompts.remove(&id).expect("it was found there");
            let group = self.graded(playing);
            self.finished.push(group);
        }
    }

    fn graded(&self, playing: Playing) -> Group {
        let Playing {
            prompt,
            players,
            first,
        } = playing;
        let samples = first.unwrap_or_default();
        if players.is_empty() {
            return graded_group(prompt, samples, self.settings, &self.judge);
        }
        let host = self.host();
        let samples = samples.into_iter().zip(players).enumerate();
        let max_tokens = self.settings.sampling.max_new_tokens;
        let samples = samples.map(|(index, (generated, mut player))| {
            let messages = std::mem::take(&mut player.talk).into_messages();
            let mut sample = sample_of(host, index, generated, player);
            let last = sample.later.last();
            let num_tokens = last.map_or(sample.tokens.len(), |s| s.completion.tokens.len());
            let stop = sample.episode.and_then(|episode| episode.stop);
            sample.paid = paid::of_episode(
                self.judge.rewards,
                &prompt,
                &sample.verdict,
                &messages,
                // Without a stop no answer was given, or a service failed and the sample is invalid.
                stop.unwrap_or(Stop::Length),
                (num_tokens, max_tokens),
            );
            sample
        });
        Group {
            samples: samples.collect(),
            prompt,
        }
    }
}

fn sample_of(
    host: &EpisodeHost,
    index: usize,
    generated: GeneratedSample,
    player: Player,
) -> Sample {
    let (verdict, record) = player.over.expect("only what is over is graded");
    let said = |tokens: &[u32]| {
        let text = host.tokenizer.decode_with_special(tokens);
        text.unwrap_or_else(|_| host.tokenizer.decode(tokens))
    };
    let mut text = said(&generated.tokens);
    for segment in &player.later {
        text += "\n\n";
        text += &said(&segment.prompt_tokens);
        text += &said(&segment.completion.tokens);
    }
    let last = player.later.last();
    Sample {
        index,
        tokens: generated.tokens,
        sampler_logprobs: generated.sampler_logprobs,
        kept: generated.kept,
        routing: generated.routing,
        selection: generated.selection,
        policy_versions: generated.policy_versions,
        finish_reason: last.map_or(generated.finish_reason, |s| s.completion.finish_reason),
        text,
        verdict,
        given: generated.given,
        later: player.later,
        episode: Some(record),
        paid: None,
    }
}

/// The id of a later segment's request, which keys its draws: `segment | sample | prompt` below the bit that marks
/// held-out prompts. `None` where a number does not fit.
fn segment_id((prompt, sample): PlayerId, number: u64) -> Option<u64> {
    let held_out = prompt & 1 << 63;
    let prompt = prompt & !(1 << 63);
    let fits = prompt >> PROMPT_BITS == 0
        && sample >> SAMPLE_BITS == 0
        && number >> (63 - PROMPT_BITS - SAMPLE_BITS) == 0;
    // Shifts of what does not fit are thrown away.
    let own = number.wrapping_shl(PROMPT_BITS + SAMPLE_BITS) | (sample as u64) << PROMPT_BITS;
    fits.then_some(held_out | own | prompt)
}
