//! From the groups of a play to [`Observations`]: the learner's pass over them against the record.

use model::{Attention, KeptTokens, Tokenizer, Transformer};
use rollout::{Group, SamplingConfig, Vocabulary};

use super::gap::{Gap, Logprobs, Profile};
use super::limits::Limits;
use super::network::difference;
use super::observation::{
    GapObservation, Hypothesis, KeptAgreement, Observations, Place, RoutingAgreement, Trial,
};
use super::pass::{Follow, Pass, Side, sampler_logprobs};
use super::temperature;
use crate::batch::{self, MicroBatch, PackOptions, RoutingShape, SelectionShape};

/// Who plays, and how the run would train on it.
#[derive(Clone, Copy, Debug)]
pub struct Players<'a> {
    /// The policy that the groups were sampled from.
    pub sampler: &'a Transformer,
    /// The policy that learns from them; in a run the same.
    pub learner: &'a Transformer,
    /// Names tokens.
    pub tokenizer: &'a Tokenizer,
    /// How tokens were drawn.
    pub sampling: &'a SamplingConfig,
    /// Attention of both.
    pub attention: Attention,
    /// Whether the indexer is yet to be trained. Its choice is then one among near ties, which rounding
    /// decides, so that both sides are compared on the keys that the sampler selected.
    pub indexer_is_new: bool,
    /// Whether the run replays the recorded experts.
    pub keep_routing: bool,
    /// Whether the run restricts log-probs to the kept tokens.
    pub keep_sampling_mask: bool,
    /// Tokens of a micro-batch.
    pub micro_batch_tokens: usize,
    /// Whether activations are computed again in backward.
    pub activation_checkpointing: bool,
}

/// Groups packed with everything of their record that is sound.
struct Packed {
    batches: Vec<MicroBatch>,
    has_routing: bool,
    has_kept: bool,
    has_selection: bool,
}

/// Compares what the sampler recorded in `groups` with what the learner computes of them.
pub fn observe(players: &Players, groups: &[Group]) -> Observations {
    let samples = || groups.iter().flat_map(|group| &group.samples);
    let (packed, refused) = pack(players, groups);
    let mut observations = Observations {
        kind: players.learner.kind(),
        num_samples: samples().count(),
        num_tokens: samples().map(|sample| sample.tokens.len()).sum(),
        refused,
        gap: None,
        routing: None,
        kept: None,
        selection: None,
    };
    if let Some(packed) = packed.filter(|packed| !packed.batches.is_empty()) {
        measure(players, groups, &packed, &mut observations);
    }
    observations
}

/// Packs all samples, and says what the run would refuse.
fn pack(players: &Players, groups: &[Group]) -> (Option<Packed>, Vec<String>) {
    let config = players.learner.config();
    let bare = PackOptions {
        micro_batch_tokens: players.micro_batch_tokens,
        keep_routing: None,
        keep_selection: None,
        keep_sampling_mask: false,
        truncates: players.sampling.truncates(),
        vocab_size: config.vocab_size,
        skip_without_signal: false,
        environments: &[],
        device: players.learner.device(),
    };
    let routing = config.moe.as_ref().map(|moe| RoutingShape {
        num_layers: config.num_moe_layers(),
        top_k: moe.num_experts_per_tok,
        num_experts: moe.num_experts,
    });
    let selection = config.dsa.as_ref().map(|dsa| SelectionShape {
        num_layers: config.num_hidden_layers,
        topk: dsa.index_topk,
    });
    let selection = selection.filter(|_| players.attention == Attention::Sparse);
    // Every sample counts, whatever its reward.
    let advantages: Vec<Vec<Option<f64>>> = groups
        .iter()
        .map(|group| vec![Some(0.0); group.samples.len()])
        .collect();
    let attempt = |options: &PackOptions| batch::pack(groups, &advantages, options);
    let mut refused = Vec::new();
    if let Err(error) = attempt(&bare) {
        return (None, vec![error.to_string()]);
    }
    let mut is_sound = |options: PackOptions, is_needed: bool| match attempt(&options) {
        Ok(_) => true,
        Err(error) => {
            if is_needed {
                refused.push(error.to_string());
            }
            false
        }
    };
    let has_routing = routing.is_some()
        && is_sound(
            PackOptions {
                keep_routing: routing,
                ..bare
            },
            players.keep_routing,
        );
    let has_kept = is_sound(
        PackOptions {
            keep_sampling_mask: true,
            ..bare
        },
        players.keep_sampling_mask,
    );
    let has_selection = selection.is_some()
        && is_sound(
            PackOptions {
                keep_selection: selection,
                ..bare
            },
            true,
        );
    let batches = attempt(&PackOptions {
        keep_routing: routing.filter(|_| has_routing),
        keep_selection: selection.filter(|_| has_selection),
        keep_sampling_mask: has_kept,
        ..bare
    });
    let packed = batches.ok().map(|batches| Packed {
        batches,
        has_routing,
        has_kept,
        has_selection,
    });
    (packed, refused)
}

/// The learner's passes, each compared with the record.
fn measure(players: &Players, groups: &[Group], packed: &Packed, observations: &mut Observations) {
    let batches = &packed.batches;
    let side = Side::Learner(players.learner);
    let as_in_run = Follow {
        routing: players.keep_routing && packed.has_routing,
        selection: players.indexer_is_new && packed.has_selection,
        attention: players.attention,
        activation_checkpointing: players.activation_checkpointing,
    };
    let pass = Pass::run(side, batches, as_in_run);
    let recorded: Vec<KeptTokens> = batches.iter().map(|batch| batch.kept.clone()).collect();
    let restricts = players.keep_sampling_mask && packed.has_kept;
    let in_use = restricts.then_some(&recorded[..]);
    let sampler = sampler_logprobs(batches);
    let trainer = pass.logprobs(batches, in_use, players.sampling.temperature);

    // Beside the run's own pass, one that follows the whole record: what the live router and indexer
    // would choose on the sampler's own path.
    let followed = (packed.has_routing || packed.has_selection).then(|| {
        let follow = Follow {
            routing: packed.has_routing,
            selection: packed.has_selection,
            ..as_in_run
        };
        Pass::run(side, batches, follow)
    });
    observations.selection = followed.as_ref().and_then(|pass| pass.selection_free);
    observations.routing = followed.as_ref().and_then(|followed| {
        Some(RoutingAgreement {
            free: followed.routing_free?,
            replayed: pass.routing_used.filter(|_| as_in_run.routing),
            constant: constant_expert(groups),
        })
    });
    let vocabulary = Vocabulary::of(players.tokenizer, players.learner.config().vocab_size);
    let own_kept = players
        .sampling
        .truncates()
        .then(|| pass.kept_tokens(players.sampling, &vocabulary));
    let places = Places { players, groups };
    if let (Some(own), true) = (&own_kept, packed.has_kept) {
        observations.kept = kept_agreement(&recorded, own, &places);
    }
    observations.gap = Gap::between(&trainer, &sampler).map(|gap| {
        let holds = Limits::of(observations.kind).hold(&gap);
        let trials = Trials {
            players,
            packed,
            base: as_in_run,
            pass: &pass,
            kept: in_use,
            trainer: &trainer,
            sampler: &sampler,
        };
        GapObservation {
            gap,
            on_recorded_keys: as_in_run.selection,
            place: places.of(gap.worst),
            profile: Profile::of(&trainer, &sampler),
            trials: match holds {
                true => Vec::new(),
                false => trials.run(&recorded, own_kept.as_deref()),
            },
            difference: match holds {
                true => Default::default(),
                false => difference(players.sampler, players.learner),
            },
        }
    });
}

/// The expert that every token of every layer has, if there is one.
fn constant_expert(groups: &[Group]) -> Option<u16> {
    let samples = groups.iter().flat_map(|group| &group.samples);
    let mut ids = samples.flat_map(|sample| &sample.routing.ids);
    let first = *ids.next()?;
    ids.all(|&id| id == first).then_some(first)
}

fn kept_agreement(
    recorded: &[KeptTokens],
    own: &[KeptTokens],
    places: &Places,
) -> Option<KeptAgreement> {
    let (mut sum, mut count, mut worst) = (0.0, 0, (f64::INFINITY, 0));
    for (recorded, own) in recorded.iter().zip(own) {
        for row in 0..recorded.num_rows() {
            let (recorded, own) = (recorded.row(row), own.row(row));
            let is_common = |id: &&u32| own.binary_search(id).is_ok();
            let both = recorded.iter().filter(is_common).count();
            let either = recorded.len() + own.len() - both;
            let share = both as f64 / either.max(1) as f64;
            if share < worst.0 {
                worst = (share, count);
            }
            sum += share;
            count += 1;
        }
    }
    (count > 0).then(|| KeptAgreement {
        mean: sum / count as f64,
        worst: worst.0,
        place: places.of_target(worst.1),
    })
}

/// Names the tokens of the play.
struct Places<'a> {
    players: &'a Players<'a>,
    groups: &'a [Group],
}

impl Places<'_> {
    /// Token `token` of the n-th sample of the play.
    fn of(&self, (sample, token): (usize, usize)) -> Place {
        let all = self.groups.iter().flat_map(|group| {
            let samples = group.samples.iter();
            samples.map(move |sample| (group.prompt.id, sample))
        });
        let mut all = all.skip(sample);
        let (prompt, sample) = all.next().expect("a sample of the play");
        let id = sample.tokens[token];
        let text = self.players.tokenizer.decode_with_special(&[id]);
        Place {
            prompt,
            sample: sample.index,
            token,
            text: text.unwrap_or_else(|_| format!("id {id}")),
        }
    }

    /// The n-th token of all samples.
    fn of_target(&self, target: usize) -> Place {
        let samples = self.groups.iter().flat_map(|group| &group.samples);
        let mut left = target;
        for (index, sample) in samples.enumerate() {
            if left < sample.tokens.len() {
                return self.of((index, left));
            }
            left -= sample.tokens.len();
        }
        panic!("target {target} lies beyond the play")
    }
}

/// What the gap is compared under.
struct Trials<'a> {
    players: &'a Players<'a>,
    packed: &'a Packed,
    base: Follow,
    pass: &'a Pass<'a>,
    /// Kept tokens in use.
    kept: Option<&'a [KeptTokens]>,
    trainer: &'a Logprobs,
    sampler: &'a Logprobs,
}

impl Trials<'_> {
    /// Every hypothesis that can be tried, with the gap that it leaves.
    fn run(&self, recorded: &[KeptTokens], own_kept: Option<&[KeptTokens]>) -> Vec<Trial> {
        let (players, batches) = (self.players, &self.packed.batches);
        let mut found = Vec::new();
        let mut add = |hypothesis, gap: Option<Gap>| {
            found.extend(gap.map(|gap| Trial { hypothesis, gap }));
        };
        for by in [1, -1] {
            let gap = Gap::shifted(self.trainer, self.sampler, by);
            add(Hypothesis::Shifted(by), gap);
        }
        let learner = Side::Learner(players.learner);
        for (hypothesis, follow) in self.other_ways() {
            add(
                hypothesis,
                self.gap_of(&Pass::run(learner, batches, follow)),
            );
        }
        let temperature = players.sampling.temperature;
        let gap_of_kept = |kept: Option<&[KeptTokens]>, temperature: f64| {
            let logprobs = self.pass.logprobs(batches, kept, temperature);
            Gap::between(&logprobs, self.sampler)
        };
        if players.sampling.truncates() {
            match self.kept {
                Some(_) => add(Hypothesis::WholeVocabulary, gap_of_kept(None, temperature)),
                None if self.packed.has_kept => {
                    let gap = gap_of_kept(Some(recorded), temperature);
                    add(Hypothesis::RecordedKept, gap);
                }
                None => {}
            }
            add(
                Hypothesis::TruncatedAgain,
                gap_of_kept(own_kept, temperature),
            );
        }
        if let Some(other) = temperature::fitted(self.pass, batches, self.kept) {
            add(
                Hypothesis::Temperature(other),
                gap_of_kept(self.kept, other),
            );
        }
        let sampler = Side::Sampler(players.sampler);
        if players.sampler.parameters().len() == players.learner.parameters().len() {
            let pass = Pass::run(sampler, batches, self.base);
            add(Hypothesis::SamplerNetwork, self.gap_of(&pass));
        }
        found
    }

    /// Passes that follow something else of the record than the run's.
    fn other_ways(&self) -> Vec<(Hypothesis, Follow)> {
        let base = self.base;
        let mut ways = Vec::new();
        if self.packed.has_selection && !base.selection {
            let follow = Follow {
                selection: true,
                ..base
            };
            ways.push((Hypothesis::RecordedSelection, follow));
        }
        if self.players.learner.config().moe.is_some() {
            let follow = Follow {
                routing: !base.routing,
                ..base
            };
            match base.routing {
                true => ways.push((Hypothesis::FreeRouting, follow)),
                false if self.packed.has_routing => {
                    ways.push((Hypothesis::RecordedRouting, follow));
                }
                false => {}
            }
        }
        if self.players.learner.config().dsa.is_some() {
            let attention = match base.attention {
                Attention::Dense => Attention::Sparse,
                Attention::Sparse => Attention::Dense,
            };
            ways.push((
                Hypothesis::OtherAttention(attention),
                Follow { attention, ..base },
            ));
        }
        ways
    }

    fn gap_of(&self, pass: &Pass) -> Option<Gap> {
        let batches = &self.packed.batches;
        let temperature = self.players.sampling.temperature;
        let logprobs = pass.logprobs(batches, self.kept, temperature);
        Gap::between(&logprobs, self.sampler)
    }
}
