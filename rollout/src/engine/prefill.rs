//! Samples that start: their prompts, and what was drawn of them before, go through the model into the cache.
//!
//! What is longer than one prefill may be goes in parts, each behind the cached keys of those before, as decode does.
//! Weights that change in between change nothing of those keys: as for samples that decode meanwhile, they stay those of
//! the older weights, and the first token is of the version whose weights ran the prompt's last part.

use model::{ForwardOptions, ForwardOutput, KeptTokens, Routing, RoutingTrace, SelectionTrace};
use tch::Tensor;

use super::routing_rows::RoutingRows;
use super::selected_rows::SelectedRows;
use super::{Engine, NextTokens, StartedPrompt, forward_options};
use crate::generation::GeneratedSample;
use crate::sample::FinishReason;
use crate::scheduler::{Admission, PromptSource, SampleId};

impl Engine<'_> {
    /// Runs what is admitted; the next tokens of fresh samples that are complete, `None` where there are none.
    pub(super) fn start(&mut self, admissions: &[Admission]) -> Option<NextTokens> {
        let (restored, fresh): (Vec<Admission>, Vec<Admission>) = admissions
            .iter()
            .partition(|admission| admission.source == PromptSource::Restore);
        self.restore(&restored);
        self.prefill(&fresh);
        let fresh: Vec<Admission> = fresh.into_iter().filter(|a| a.is_complete).collect();
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
                given: Vec::new(),
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

    /// Runs the prompts that no pages hold yet, or parts of them, all in one forward pass.
    fn prefill(&mut self, admissions: &[Admission]) {
        // A prompt of which samples were begun before keeps the experts recorded then.
        let (recorded, free): (Vec<&Admission>, Vec<&Admission>) = admissions
            .iter()
            .partition(|a| self.recorded_routing(a.id).is_some());
        for (new, replays) in [(free, false), (recorded, true)] {
            let parts: Vec<Part> = new
                .into_iter()
                .filter_map(|a| Part::of(*a, &self.active[&a.id.request].request.tokens, &[]))
                .collect();
            self.run_parts(&parts, replays);
        }
    }

    /// Runs prompts with what was sampled of them before, all but the last token, or parts of both. What was recorded
    /// is replayed; what follows it was given to the sample and is recorded now.
    fn restore(&mut self, admissions: &[Admission]) {
        let part = |admission: Admission| {
            let active = &self.active[&admission.id.request];
            let sampled = &active.samples[admission.id.sample].tokens;
            Part::of(admission, &active.request.tokens, sampled)
        };
        let recorded = |admission: &Admission| {
            let routing = self.recorded_routing(admission.id);
            routing.map_or(0, |routing| routing.num_tokens())
        };
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for admission in admissions {
            let Admission { begin, end, .. } = *admission;
            let middle = recorded(admission).clamp(begin, end);
            old.extend(part(Admission {
                end: middle,
                ..*admission
            }));
            new.extend(part(Admission {
                begin: middle,
                ..*admission
            }));
        }
        self.run_parts(&old, true);
        self.run_parts(&new, false);
    }

    /// One forward pass over `parts` of sequences into their slots, behind what those hold.
    fn run_parts(&mut self, parts: &[Part], replays: bool) {
        if parts.is_empty() {
            return;
        }
        let slots: Vec<usize> = parts.iter().map(|part| part.admission.slot).collect();
        let pasts: Vec<usize> = parts.iter().map(|part| part.admission.begin).collect();
        let tokens: Vec<&[u32]> = parts.iter().map(|part| part.tokens.as_slice()).collect();
        let replay = replays.then(|| ForwardOptions {
            routing: self.replayed(parts),
            ..forward_options(self.settings)
        });
        let options = replay.as_ref().unwrap_or(&self.options);
        let output = self
            .model
            .prefill_behind(&mut self.cache, &slots, &pasts, &tokens, options);
        self.record_prompts(parts, &output);
        let num_tokens: usize = tokens.iter().map(|tokens| tokens.len()).sum();
        self.stats.prefill_tokens += num_tokens;
        self.stats.key_share_sum += output.key_share * num_tokens as f64;
    }

    /// Keeps what the pass over `parts` put out of prompts, for the samples that start with them. Of what follows a
    /// prompt the samples get what they do not hold yet.
    fn record_prompts(&mut self, parts: &[Part], output: &ForwardOutput) {
        let mut start = 0;
        let mut ends = Vec::new();
        for part in parts {
            ends.extend(part.prompt_end().map(|end| (start + end) as i64));
            start += part.tokens.len();
        }
        let mut logits = match ends.is_empty() {
            true => Vec::new(),
            false => {
                let last = Tensor::from_slice(&ends).to_device(output.hidden.device());
                let last = output.hidden.index_select(0, &last);
                self.model.logits(&last).unbind(0)
            }
        }
        .into_iter();
        let mut routing = RoutingRows::of(output);
        let mut selected = SelectedRows::of(self.model, output);
        for part in parts {
            let admission = &part.admission;
            let num_rows = part.num_prompt_tokens();
            // Of prompts only the one that is run in parts is not begun here.
            let mut record = match admission.begin {
                0 => PromptRecord::default(),
                _ => std::mem::take(&mut self.part_of_prompt),
            };
            record.add_routing(routing.take(num_rows));
            selected.take_prompt(
                admission.begin..admission.begin + num_rows,
                &mut record.selection,
            );
            let behind = admission.begin + num_rows..admission.begin + part.tokens.len();
            let rows = routing.take(behind.len());
            if !behind.is_empty() {
                let active = self.active.get_mut(&admission.id.request);
                let sample = &mut active.expect("it is at work").samples[admission.id.sample];
                if sample.routing.num_tokens() == behind.start {
                    sample.routing.ids.extend(rows.ids);
                }
                selected.take_new(behind, &mut sample.selection);
            }
            if part.prompt_end().is_none() {
                self.part_of_prompt = record;
                continue;
            }
            let started = StartedPrompt {
                logits: logits.next().expect("a row for each end of a prompt"),
                routing: record.routing,
                selection: record.selection,
                policy_version: self.policy_version,
            };
            let active = self.active.get_mut(&admission.id.request);
            // Siblings that wait start as the first did, whatever was run again since.
            let active = active.expect("it is at work");
            active.started.get_or_insert(started);
        }
    }

    /// The experts recorded of a sample begun before, or of a sibling's prompt.
    fn recorded_routing(&self, id: SampleId) -> Option<&RoutingTrace> {
        let samples = &self.active[&id.request].samples;
        let sample = samples.get(id.sample).or(samples.first())?;
        (!sample.routing.ids.is_empty()).then_some(&sample.routing)
    }

    /// The recorded experts of every forwarded token of `parts`.
    fn replayed(&self, parts: &[Part]) -> Routing {
        let (mut ids, mut row) = (Vec::<i64>::new(), (0, 0));
        for part in parts {
            let Admission { id, begin, end, .. } = part.admission;
            let trace = self.recorded_routing(id).expect("recorded before");
            row = (trace.num_layers as i64, trace.top_k as i64);
            let width = trace.num_layers * trace.top_k;
            let recorded = &trace.ids[begin * width..end * width];
            ids.extend(recorded.iter().map(|&id| i64::from(id)));
        }
        let ids = Tensor::from_slice(&ids).view([-1, row.0, row.1]);
        Routing::Replay(ids.to_device(self.model.device()))
    }
}

/// Tokens of one sequence, a prompt and what was drawn behind it, that are run at once.
#[derive(Debug)]
struct Part {
    admission: Admission,
    tokens: Vec<u32>,
    prompt_len: usize,
}

impl Part {
    /// What `admission` runs of `prompt` and `sampled`; `None` where that is nothing.
    fn of(admission: Admission, prompt: &[u32], sampled: &[u32]) -> Option<Part> {
        let Admission { begin, end, .. } = admission;
        let all = prompt.iter().chain(sampled).copied();
        let tokens: Vec<u32> = all.skip(begin).take(end - begin).collect();
        (!tokens.is_empty()).then_some(Part {
            admission,
            tokens,
            prompt_len: prompt.len(),
        })
    }

    /// How many of the tokens are the prompt's.
    fn num_prompt_tokens(&self) -> usize {
        let left = self.prompt_len.saturating_sub(self.admission.begin);
        left.min(self.tokens.len())
    }

    /// Where among the tokens the prompt's last is, if it is one of them.
    fn prompt_end(&self) -> Option<usize> {
        let Admission { begin, end, .. } = self.admission;
        (begin..end)
            .contains(&(self.prompt_len - 1))
            .then(|| self.prompt_len - 1 - begin)
    }
}

/// What passes have put out of the tokens of a prompt so far, in order.
#[derive(Debug, Default)]
pub(super) struct PromptRecord {
    routing: RoutingTrace,
    selection: SelectionTrace,
}

impl PromptRecord {
    fn add_routing(&mut self, rows: RoutingTrace) {
        self.routing.num_layers = rows.num_layers;
        self.routing.top_k = rows.top_k;
        self.routing.ids.extend(rows.ids);
    }
}
