//! Samples that start: their prompts, and what was drawn of them before, go through the model into the cache.

use model::{ForwardOptions, KeptTokens, Routing, RoutingTrace};
use tch::Tensor;

use super::routing_rows::RoutingRows;
use super::selected_rows::SelectedRows;
use super::{Engine, NextTokens, StartedPrompt, forward_options};
use crate::generation::GeneratedSample;
use crate::sample::FinishReason;
use crate::scheduler::{Admission, PromptSource, SampleId};

impl Engine<'_> {
    /// Brings new samples into their slots; `None` where all of them only go on.
    pub(super) fn start(&mut self, admissions: &[Admission]) -> Option<NextTokens> {
        let (restored, fresh): (Vec<Admission>, Vec<Admission>) = admissions
            .iter()
            .partition(|admission| admission.source == PromptSource::Restore);
        self.restore(&restored);
        self.prefill(&fresh);
        for admission in &fresh {
            let number = admission.id.request;
            let active = self.active.get_mut(&number).expect("it is at work");
            let started = active.started.as_ref().expect("prefilled before");
            debug_assert_eq!(active.samples.len(), admission.id.sample);
            active.samples.push(GeneratedSample {
                tokens: Vec::new(),
                sampler_logprobs: Vec::new(),
                kept: KeptTokens::default(),
                routing: started.routing.clone(),
                selection: started.selection.clone(),
                policy_versions: Vec::new(),
                finish_reason: FinishReason::Unfinished,
            });
        }
        let started = |number| {
            self.active[&number]
                .started
                .as_ref()
                .expect("prefilled before")
        };
        let prompts: Vec<&StartedPrompt> = fresh.iter().map(|a| started(a.id.request)).collect();
        let rows: Vec<&Tensor> = prompts.iter().map(|prompt| &prompt.logits).collect();
        let next = (!rows.is_empty()).then(|| NextTokens {
            slots: fresh.iter().map(|a| a.slot).collect(),
            logits: Tensor::stack(&rows, 0),
            policy_versions: prompts.iter().map(|prompt| prompt.policy_version).collect(),
        });
        for admission in admissions {
            let number = admission.id.request;
            if !self.scheduler.is_waiting(number)
                && let Some(active) = self.active.get_mut(&number)
            {
                active.started = None;
            }
        }
        next
    }

    /// Runs the prompts that no pages hold yet, all in one forward pass.
    fn prefill(&mut self, admissions: &[Admission]) {
        let is_new = |a: &&Admission| a.source == PromptSource::Prefill;
        // A prompt of which samples were begun before keeps the experts recorded then.
        let (recorded, free): (Vec<&Admission>, Vec<&Admission>) = admissions
            .iter()
            .filter(is_new)
            .partition(|a| self.recorded_routing(a.id).is_some());
        for (new, replays) in [(free, false), (recorded, true)] {
            let prompt = |a: &Admission| self.active[&a.id.request].request.tokens.clone();
            let sequences: Vec<(Admission, Vec<u32>)> =
                new.into_iter().map(|a| (*a, prompt(a))).collect();
            self.run_sequences(&sequences, replays);
        }
    }

    /// Runs prompts with what was sampled of them before, all but the last token.
    fn restore(&mut self, admissions: &[Admission]) {
        let forwarded = |admission: &Admission| {
            let active = &self.active[&admission.id.request];
            let sampled = &active.samples[admission.id.sample].tokens;
            let sampled = &sampled[..sampled.len().saturating_sub(1)];
            [active.request.tokens.as_slice(), sampled].concat()
        };
        let sequences: Vec<(Admission, Vec<u32>)> =
            admissions.iter().map(|a| (*a, forwarded(a))).collect();
        let replays = |id: SampleId| self.recorded_routing(id).is_some();
        let replays = sequences.first().is_some_and(|(a, _)| replays(a.id));
        self.run_sequences(&sequences, replays);
    }

    /// One forward pass over `sequences`, each a prompt and what follows it, into their slots.
    fn run_sequences(&mut self, sequences: &[(Admission, Vec<u32>)], replays: bool) {
        if sequences.is_empty() {
            return;
        }
        let slots: Vec<usize> = sequences.iter().map(|(a, _)| a.slot).collect();
        let tokens: Vec<&[u32]> = sequences
            .iter()
            .map(|(_, tokens)| tokens.as_slice())
            .collect();
        let replay = replays.then(|| ForwardOptions {
            routing: self.replayed(sequences),
            ..forward_options(self.settings)
        });
        let options = replay.as_ref().unwrap_or(&self.options);
        let output = self
            .model
            .prefill(&mut self.cache, &slots, &tokens, options);

        let ends: Vec<i64> = sequences
            .iter()
            .scan(0, |start, (admission, tokens)| {
                let prompt = &self.active[&admission.id.request].request.tokens;
                let end = *start + prompt.len() as i64 - 1;
                *start += tokens.len() as i64;
                Some(end)
            })
            .collect();
        let last = Tensor::from_slice(&ends).to_device(output.hidden.device());
        let logits = self.model.logits(&output.hidden.index_select(0, &last));
        let mut routing = RoutingRows::of(&output);
        let mut selected = SelectedRows::of(self.model, &output);
        for (row, (admission, tokens)) in sequences.iter().enumerate() {
            let active = self.active.get_mut(&admission.id.request);
            let active = active.expect("it is at work");
            let prompt_len = active.request.tokens.len();
            let started = StartedPrompt {
                logits: logits.get(row as i64),
                routing: routing.take(prompt_len),
                selection: selected.take_prompt(prompt_len),
                policy_version: self.policy_version,
            };
            // Siblings that wait start as the first did, whatever was run again since.
            active.started.get_or_insert(started);
            // The recorded samples hold what follows.
            routing.take(tokens.len() - prompt_len);
            selected.skip(tokens.len() - prompt_len);
        }
        let num_tokens: usize = tokens.iter().map(|tokens| tokens.len()).sum();
        self.stats.prefill_tokens += num_tokens;
        self.stats.key_share_sum += output.key_share * num_tokens as f64;
    }

    /// The experts recorded of a sample begun before, or of a sibling's prompt.
    fn recorded_routing(&self, id: SampleId) -> Option<&RoutingTrace> {
        let samples = &self.active[&id.request].samples;
        let sample = samples.get(id.sample).or(samples.first())?;
        (!sample.routing.ids.is_empty()).then_some(&sample.routing)
    }

    /// The recorded experts of every forwarded token of `sequences`.
    fn replayed(&self, sequences: &[(Admission, Vec<u32>)]) -> Routing {
        let (mut ids, mut row) = (Vec::<i64>::new(), (0, 0));
        for (admission, tokens) in sequences {
            let trace = self
                .recorded_routing(admission.id)
                .expect("recorded before");
            row = (trace.num_layers as i64, trace.top_k as i64);
            let len = tokens.len() * trace.num_layers * trace.top_k;
            ids.extend(trace.ids[..len].iter().map(|&id| i64::from(id)));
        }
        let ids = Tensor::from_slice(&ids).view([-1, row.0, row.1]);
        Routing::Replay(ids.to_device(self.model.device()))
    }
}
