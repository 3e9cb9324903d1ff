//! Packs of small groups, written out by hand.

use environments::{
    AnswerGrader, BadRow, DatasetConfig, Family, FamilyKey, RowKey, Split, Verdict,
};
use kernels::tch::Kind;
use model::{RoutingTrace, SelectionTrace};
use rollout::{FinishReason, GeneratedSample, Prompt, Segment};

use super::*;
use crate::config::TaskSource;
use crate::loss::{GrpoLossInput, GrpoLossParams, grpo_loss};

const SHAPE: RoutingShape = RoutingShape {
    num_layers: 2,
    top_k: 1,
    num_experts: 1000,
};
const KEYS: SelectionShape = SelectionShape {
    num_layers: 2,
    topk: 3,
};

/// A sample after a prompt of `prompt_len` tokens. Token t has log-prob -t / 10; even tokens keep
/// everything, odd ones themselves and 99; row r of layer l ran expert `10 * r + l`, branch rows
/// plus 100 * (index + 1). A token at position p >= 3 attends to itself and 0 and 1 in layer 0, to itself and
/// the two before in layer 1.
fn sample(index: usize, prompt_len: usize, tokens: &[u32]) -> Sample {
    let mut kept = KeptTokens::default();
    for &token in tokens {
        if token % 2 == 0 {
            kept.push(&[]);
        } else {
            kept.push(&[token, 99]);
        }
    }
    let rows = prompt_len + tokens.len() - 1;
    let ids = (0..rows).flat_map(|r| {
        let own = if r < prompt_len { 0 } else { 100 * (index + 1) };
        (0..2).map(move |layer| (own + 10 * r + layer) as u16)
    });
    Sample {
        index,
        tokens: tokens.to_vec(),
        sampler_logprobs: tokens.iter().map(|&t| -(t as f32) / 10.0).collect(),
        kept,
        routing: RoutingTrace {
            num_layers: 2,
            top_k: 1,
            ids: ids.collect(),
        },
        selection: SelectionTrace {
            num_layers: 2,
            topk: 3,
            keys: (3..rows as u32)
                .flat_map(|p| [0, 1, p, p - 2, p - 1, p])
                .collect(),
        },
        policy_versions: vec![0; tokens.len()],
        given: Vec::new(),
        later: Vec::new(),
        paid: None,
        episode: None,
        finish_reason: FinishReason::Stop,
        text: String::new(),
        verdict: Verdict::graded(0.0, None),
    }
}

fn task(family: Family, level: u32) -> TaskKey {
    TaskKey::Family(FamilyKey {
        family,
        split: Split::Train,
        level,
        seed: 0,
    })
}

fn group(id: u64, prompt: &[u32], samples: &[&[u32]]) -> Group {
    Group {
        prompt: Prompt {
            id,
            task: task(Family::Sums, 1),
            question: String::new(),
            tokens: prompt.to_vec(),
        },
        samples: samples
            .iter()
            .enumerate()
            .map(|(index, tokens)| sample(index, prompt.len(), tokens))
            .collect(),
    }
}

fn options(micro_batch_tokens: usize) -> PackOptions<'static> {
    PackOptions {
        micro_batch_tokens,
        keep_routing: Some(SHAPE),
        keep_selection: Some(KEYS),
        keep_sampling_mask: true,
        truncates: false,
        vocab_size: 100,
        skip_without_signal: false,
        environments: &[],
        device: Device::Cpu,
    }
}

fn ints(tensor: &Tensor) -> Vec<i64> {
    Vec::<i64>::try_from(tensor.flatten(0, -1)).expect("i64")
}

fn floats(tensor: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(tensor.to_kind(Kind::Double)).expect("one dimension")
}

#[test]
fn group_becomes_one_document_with_a_branch_a_sample() {
    let groups = [group(7, &[10, 11, 12], &[&[20, 21, 22], &[30], &[40, 41]])];
    let advantages = [vec![Some(0.5), Some(-0.25), Some(-0.25)]];
    let batches = pack(&groups, &advantages, &options(100)).unwrap();
    assert_eq!(batches.len(), 1);
    let batch = &batches[0];
    assert_eq!(ints(&batch.input.tokens), [10, 11, 12, 20, 21, 40]);
    let document = Document {
        start: 0,
        trunk_len: 3,
        // The second sample's only token is never forwarded: it has no branch.
        branch_lens: vec![2, 1],
    };
    assert_eq!(batch.input.documents, [document]);
    assert_eq!(ints(&batch.targets), [20, 21, 22, 30, 40, 41]);
    assert_eq!(ints(&batch.target_rows), [2, 3, 4, 2, 2, 5]);
    assert_eq!(ints(&batch.sequence), [0, 0, 0, 1, 2, 2]);
    assert_eq!(ints(&batch.lengths), [3, 1, 2]);
    assert_eq!(floats(&batch.advantages), [0.5, -0.25, -0.25]);
    let (a, b, c) = (1.0 / 3.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0 / 2.0);
    assert_eq!(floats(&batch.token_weights), [a, a, a, b, c, c]);
    let logprobs = floats(&batch.sampler_logprobs);
    assert!((logprobs[5] + 4.1).abs() < 1e-6);
}

/// A sample that drew 20, was given 50 and 51, drew 21; then a user spoke, and behind the new context it drew 22 and 23.
fn talk(index: usize) -> Sample {
    let whole = sample(index, 3, &[20, 50, 51, 21]);
    let later = sample(index, 4, &[22, 23]);
    Sample {
        given: std::iter::once(1..3).collect(),
        later: vec![Segment {
            prompt_tokens: vec![10, 11, 12, 13],
            completion: GeneratedSample {
                tokens: later.tokens,
                sampler_logprobs: later.sampler_logprobs,
                kept: later.kept,
                routing: later.routing,
                selection: later.selection,
                policy_versions: later.policy_versions,
                finish_reason: later.finish_reason,
                given: Vec::new(),
            },
        }],
        ..whole
    }
}

#[test]
fn given_tokens_are_context_and_a_later_segment_is_a_document_of_its_own() {
    let mut group = group(7, &[10, 11, 12], &[&[30]]);
    group.samples.push(talk(1));
    let advantages = [vec![Some(-0.5), Some(0.5)]];
    let groups = [group];
    let batch = pack(&groups, &advantages, &options(100)).unwrap().remove(0);
    assert_eq!(
        ints(&batch.input.tokens),
        [10, 11, 12, 20, 50, 51, 10, 11, 12, 13, 22]
    );
    let document = |start, trunk_len, branch: i64| Document {
        start,
        trunk_len,
        branch_lens: vec![branch],
    };
    assert_eq!(
        batch.input.documents,
        [document(0, 3, 3), document(6, 4, 1)]
    );
    assert_eq!(ints(&batch.targets), [30, 20, 21, 22, 23]);
    // 21 is predicted behind 51, the last token that was given before it.
    assert_eq!(ints(&batch.target_rows), [2, 2, 5, 9, 10]);
    assert_eq!(ints(&batch.sequence), [0, 1, 1, 2, 2]);
    assert_eq!(ints(&batch.lengths), [1, 2, 2]);
    assert_eq!(floats(&batch.advantages), [-0.5, 0.5, 0.5]);
    // Half of the objective for each sample, and a quarter of that for each token that the second drew.
    assert_eq!(
        floats(&batch.token_weights),
        [0.5, 0.125, 0.125, 0.125, 0.125]
    );
    assert_eq!(batch.kept.num_rows(), 5);
    let segments: Vec<_> = batch
        .sources
        .iter()
        .map(|s| (s.sample_index, s.segment))
        .collect();
    assert_eq!(segments, [(0, 0), (1, 0), (1, 1)]);
    // The routing of every forwarded token, the given ones included.
    assert_eq!(batch.routing.unwrap().size(), [11, 2, 1]);
}

#[test]
fn a_later_segment_that_does_not_fit_its_tokens_is_named() {
    let mut group = group(7, &[10, 11, 12], &[&[30]]);
    group.samples.push(talk(1));
    group.samples[1].later[0].completion.sampler_logprobs.pop();
    let error = pack(&[group], &[vec![Some(1.0), Some(0.0)]], &options(100)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "prompt 7, sample 1: segment 1: 2 tokens but 1 sampler log-probs"
    );
    let mut group = self::group(7, &[10, 11, 12], &[&[30]]);
    group.samples.push(talk(1));
    group.samples[1].given = std::iter::once(3..4).collect();
    let error = pack(&[group], &[vec![Some(1.0), Some(0.0)]], &options(100)).unwrap_err();
    assert!(
        error.to_string().contains("leave none to be drawn"),
        "{error}"
    );
}

#[test]
fn kept_tokens_follow_the_targets() {
    let groups = [group(0, &[1], &[&[21, 4], &[6, 31]])];
    let advantages = [vec![Some(1.0), Some(-1.0)]];
    let batch = pack(&groups, &advantages, &options(100)).unwrap().remove(0);
    assert_eq!(batch.kept.offsets, [0, 2, 2, 2, 4]);
    assert_eq!(batch.kept.ids, [21, 99, 31, 99]);
    let without = PackOptions {
        keep_sampling_mask: false,
        ..options(100)
    };
    let batch = pack(&groups, &advantages, &without).unwrap().remove(0);
    assert_eq!(batch.kept.offsets, [0; 5]);
}

#[test]
fn samples_have_the_kl_scale_of_their_environment() {
    let environment = |source, kl_scale| EnvironmentConfig {
        source,
        weight: 1.0,
        kl_scale,
        mcp: Vec::new(),
        rubric: None,
    };
    let family = |family, level| TaskSource::Family { family, level };
    let dataset = DatasetConfig {
        path: "data/mine.jsonl".to_string(),
        grader: AnswerGrader::Exact,
        name: None,
        held_out: None,
        on_bad_row: BadRow::Stop,
    };
    let environments = [
        environment(family(Family::Compare, 1), 3.0),
        environment(family(Family::Sums, 2), 0.5),
        environment(TaskSource::Dataset(dataset), 0.25),
    ];
    let row = |dataset: &str| {
        TaskKey::Row(RowKey {
            dataset: dataset.to_string(),
            split: Split::Train,
            row: 1,
        })
    };
    // Sums at level 1 and the other dataset are none of them.
    let tasks = [
        (task(Family::Sums, 2), 0.5),
        (task(Family::Compare, 1), 3.0),
        (task(Family::Sums, 1), 1.0),
        (row("mine"), 0.25),
        (row("other"), 1.0),
    ];
    let groups = tasks.clone().map(|(task, _)| {
        let mut group = group(1, &[1, 2], &[&[20], &[30]]);
        group.prompt.task = task;
        group
    });
    let advantages = vec![vec![Some(1.0), Some(-1.0)]; tasks.len()];
    let options = PackOptions {
        environments: &environments,
        ..options(100)
    };
    let batch = pack(&groups, &advantages, &options).unwrap().remove(0);
    let expected: Vec<f64> = tasks.iter().flat_map(|(_, scale)| [*scale; 2]).collect();
    assert_eq!(floats(&batch.kl_scales), expected);
}

#[test]
fn routing_rows_follow_the_packed_tokens() {
    let groups = [group(0, &[1, 2], &[&[4, 6, 8], &[6, 8]])];
    let advantages = [vec![Some(1.0), Some(-1.0)]];
    let batch = pack(&groups, &advantages, &options(100)).unwrap().remove(0);
    let routing = batch.routing.unwrap();
    assert_eq!(routing.size(), [5, 2, 1]);
    // Two prompt rows, two of the first branch, one of the second; both branches start at row 2.
    let expected = [0, 1, 10, 11, 120, 121, 130, 131, 220, 221];
    assert_eq!(ints(&routing), expected);
    let without = PackOptions {
        keep_routing: None,
        ..options(100)
    };
    let batches = pack(&groups, &advantages, &without).unwrap();
    assert!(batches[0].routing.is_none());
}

#[test]
fn selected_keys_follow_the_packed_tokens() {
    let groups = [group(0, &[1, 2], &[&[4, 6, 8], &[6, 8], &[2]])];
    let advantages = [vec![Some(1.0), Some(-0.5), Some(-0.5)]];
    let batch = pack(&groups, &advantages, &options(100)).unwrap().remove(0);
    let selection = batch.selection.unwrap();
    // Two prompt rows, two of the first branch at positions 2 and 3, one of the second at position 2.
    assert_eq!(selection.size(), [5, 2, 3]);
    let layer = |layer| ints(&selection.select(1, layer));
    let in_sight = [[0, -1, -1], [0, 1, -1], [0, 1, 2]].concat();
    let branches = |third: [i64; 3]| [&in_sight[..], &third, &[0, 1, 2]].concat();
    assert_eq!(layer(0), branches([0, 1, 3]));
    assert_eq!(layer(1), branches([1, 2, 3]));
    let without = PackOptions {
        keep_selection: None,
        ..options(100)
    };
    let batches = pack(&groups, &advantages, &without).unwrap();
    assert!(batches[0].selection.is_none());
}

#[test]
fn rows_of_selected_keys_are_no_wider_than_the_longest_sequence() {
    let groups = [group(0, &[1], &[&[4, 6]])];
    let batch = pack(&groups, &[vec![Some(1.0)]], &options(100)).unwrap();
    let selection = batch[0].selection.as_ref().unwrap();
    assert_eq!(selection.size(), [2, 2, 2]);
    assert_eq!(ints(&selection.select(1, 0)), [0, -1, 0, 1]);
}

#[test]
fn invalid_samples_and_groups_without_advantage_count_nowhere() {
    let groups = [
        group(0, &[1], &[&[4, 5], &[6], &[7]]),
        group(1, &[2], &[&[4], &[6]]),
        group(2, &[3], &[&[8], &[9]]),
    ];
    let advantages = [
        vec![Some(0.5), None, Some(-0.5)],
        vec![None, None],
        vec![Some(0.0), Some(0.0)],
    ];
    let batch = pack(&groups, &advantages, &options(100)).unwrap().remove(0);
    assert_eq!(ints(&batch.targets), [4, 5, 7, 8, 9]);
    // Two samples a group and two groups take part.
    assert_eq!(
        floats(&batch.token_weights),
        [0.125, 0.125, 0.25, 0.25, 0.25]
    );
    assert!(
        pack(&groups[1..2], &advantages[1..2], &options(100))
            .unwrap()
            .is_empty()
    );
}

fn three_groups() -> (Vec<Group>, Vec<Vec<Option<f64>>>) {
    let groups = vec![
        group(
            0,
            &[1, 2, 3],
            &[&[10, 11, 12], &[13, 14], &[15, 16, 17, 18]],
        ),
        group(1, &[4, 5], &[&[20], &[21, 22, 23, 24, 25], &[26, 27]]),
        group(2, &[6], &[&[30, 31], &[32, 33, 34], &[35]]),
    ];
    let advantages = vec![
        vec![Some(0.75), Some(-0.25), Some(-0.5)],
        vec![Some(-0.5), None, Some(0.5)],
        vec![Some(1.0), Some(-0.5), Some(-0.5)],
    ];
    (groups, advantages)
}

/// Loss of the step, and its gradient by one score a vocabulary entry.
fn step_loss(batches: &[MicroBatch]) -> (f64, Vec<f64>) {
    let scores = Tensor::arange(100, (Kind::Double, Device::Cpu)) * -0.101;
    let scores = scores.set_requires_grad(true);
    let mut total = 0.0;
    for batch in batches {
        let logprobs = scores.index_select(0, &batch.targets);
        let ref_logprobs = &batch.sampler_logprobs * 0.9;
        let input = GrpoLossInput {
            logprobs: &logprobs,
            sampler_logprobs: &batch.sampler_logprobs,
            ref_logprobs: Some(&ref_logprobs),
            sequence: &batch.sequence,
            advantages: &batch.advantages,
            lengths: &batch.lengths,
            kl_scales: &batch.kl_scales,
            token_weights: &batch.token_weights,
        };
        let params = GrpoLossParams {
            clip_epsilon: 0.2,
            kl_beta: 0.1,
            off_policy_delta: Some(0.02),
        };
        let loss = grpo_loss(&input, &params).loss;
        total += loss.double_value(&[]);
        loss.backward();
    }
    (total, floats(&scores.grad()))
}

#[test]
fn split_into_micro_batches_leaves_the_objective_alone() {
    let (groups, advantages) = three_groups();
    let whole = pack(&groups, &advantages, &options(1000)).unwrap();
    assert_eq!(whole.len(), 1);
    let weights: f64 = floats(&whole[0].token_weights).iter().sum();
    assert!((weights - 1.0).abs() < 1e-12);
    let (loss, gradient) = step_loss(&whole);
    for (limit, num_batches) in [(12, 2), (9, 2), (6, 4), (1, 8)] {
        let split = pack(&groups, &advantages, &options(limit)).unwrap();
        assert_eq!(split.len(), num_batches, "limit {limit}");
        let all = |of: fn(&MicroBatch) -> Vec<f64>| split.iter().flat_map(of).collect::<Vec<_>>();
        assert_eq!(
            all(|b| floats(&b.token_weights)),
            floats(&whole[0].token_weights)
        );
        assert_eq!(all(|b| floats(&b.targets)), floats(&whole[0].targets));
        let (split_loss, split_gradient) = step_loss(&split);
        assert!((split_loss - loss).abs() < 1e-12);
        for (s, w) in split_gradient.iter().zip(&gradient) {
            assert!((s - w).abs() < 1e-12, "limit {limit}: {s} against {w}");
        }
    }
}

#[test]
fn group_that_fits_is_never_split() {
    let (groups, advantages) = three_groups();
    // 9, 3 and 4 tokens: the first two don't fit together.
    let batches = pack(&groups, &advantages, &options(9)).unwrap();
    let sizes: Vec<i64> = batches.iter().map(|b| b.input.num_tokens()).collect();
    assert_eq!(sizes, [9, 7]);
}

#[test]
fn group_too_large_repeats_its_prompt() {
    let groups = [group(
        0,
        &[1, 2, 3],
        &[&[10, 11, 12], &[14, 16], &[18, 20, 22]],
    )];
    let advantages = [vec![Some(0.5), Some(0.0), Some(-0.5)]];
    let batches = pack(&groups, &advantages, &options(6)).unwrap();
    assert_eq!(batches.len(), 2);
    assert_eq!(ints(&batches[0].input.tokens), [1, 2, 3, 10, 11, 14]);
    assert_eq!(ints(&batches[1].input.tokens), [1, 2, 3, 18, 20]);
    assert_eq!(batches[1].input.documents[0].branch_lens, [2]);
    assert_eq!(ints(&batches[1].target_rows), [2, 3, 4]);
    // Still three samples in the group.
    assert_eq!(floats(&batches[1].token_weights), [1.0 / 9.0; 3]);
    let routing = ints(batches[1].routing.as_ref().unwrap());
    assert_eq!(routing, [0, 1, 10, 11, 20, 21, 330, 331, 340, 341]);
}

#[test]
fn second_document_starts_where_the_first_ends() {
    let groups = [
        group(0, &[1, 2], &[&[4, 6], &[8]]),
        group(1, &[3], &[&[10], &[12, 14]]),
    ];
    let advantages = [vec![Some(0.5), Some(-0.5)], vec![Some(0.5), Some(-0.5)]];
    let batch = pack(&groups, &advantages, &options(100)).unwrap().remove(0);
    assert_eq!(batch.input.documents[1].start, 3);
    assert_eq!(ints(&batch.input.tokens), [1, 2, 4, 3, 12]);
    assert_eq!(ints(&batch.target_rows), [1, 2, 1, 3, 3, 4]);
    assert_eq!(ints(&batch.sequence), [0, 0, 1, 2, 3, 3]);
}

/// The message of the error that a change to sample 1 of group 42 causes.
fn refused_with(options: &PackOptions, change: impl Fn(&mut Sample)) -> String {
    let mut groups = [group(42, &[1, 2], &[&[4, 6], &[9, 8, 6], &[7]])];
    change(&mut groups[0].samples[1]);
    let advantages = [vec![Some(0.5), Some(0.5), Some(-1.0)]];
    let error = pack(&groups, &advantages, options).unwrap_err();
    error.to_string()
}

fn refused(change: impl Fn(&mut Sample)) -> String {
    refused_with(&options(100), change)
}

#[test]
fn payload_that_does_not_fit_is_refused_by_prompt_and_sample() {
    let missing = refused(|s| s.routing.ids.clear());
    assert!(
        missing.starts_with("prompt 42, sample 1: no experts were recorded"),
        "{missing}"
    );
    let short = refused(|s| s.routing.ids.truncate(4));
    assert!(
        short.contains("experts of 2 tokens were recorded, prompt and sample have 4"),
        "{short}"
    );
    let shape = refused(|s| s.routing.num_layers = 1);
    assert!(
        shape.contains("1 layers x 1 were recorded, the model has 2 x 1"),
        "{shape}"
    );
    let prompt = refused(|s| s.routing.ids[3] = 5);
    assert!(
        prompt.contains("experts of the prompt differ from those of sample 0"),
        "{prompt}"
    );
    let logprobs = refused(|s| s.sampler_logprobs.truncate(1));
    assert!(
        logprobs.contains("3 tokens but 1 sampler log-probs"),
        "{logprobs}"
    );
    let infinite = refused(|s| s.sampler_logprobs[1] = f32::NEG_INFINITY);
    assert!(
        infinite.contains("log-prob of token 1 is -inf"),
        "{infinite}"
    );
    let rows = refused(|s| s.kept = KeptTokens::default());
    assert!(
        rows.contains("3 tokens but 0 rows of kept tokens"),
        "{rows}"
    );
    let outside = refused(|s| s.tokens[0] = 11);
    assert!(
        outside.contains("token 0 was sampled but is not among"),
        "{outside}"
    );
    let empty = refused(|s| s.tokens.clear());
    assert!(empty.contains("it has no tokens"), "{empty}");
}

#[test]
fn ids_out_of_range_are_refused_by_their_place() {
    let token = refused(|s| s.tokens[1] = 100);
    assert!(
        token.contains("token id 100 lies outside the vocabulary of 100"),
        "{token}"
    );
    let kept = refused(|s| s.kept.ids[1] = 100);
    assert!(
        kept.contains("the kept token 100 of token 0 lies outside"),
        "{kept}"
    );
    let expert = refused(|s| s.routing.ids[5] = 1000);
    assert!(
        expert.contains("forwarded token 2, expert layer 1: expert 1000 of 1000"),
        "{expert}"
    );
    let two_each = PackOptions {
        keep_routing: Some(RoutingShape {
            num_layers: 1,
            top_k: 2,
            ..SHAPE
        }),
        keep_selection: None,
        ..options(100)
    };
    let mut groups = [group(42, &[1, 2], &[&[9, 8, 6]])];
    let trace = &mut groups[0].samples[0].routing;
    (trace.num_layers, trace.top_k) = (1, 2);
    let advantages = [vec![Some(0.5)]];
    assert!(pack(&groups, &advantages, &two_each).is_ok());
    groups[0].samples[0].routing.ids.fill(0);
    let zeros = pack(&groups, &advantages, &two_each)
        .unwrap_err()
        .to_string();
    assert!(
        zeros.contains("forwarded token 0, expert layer 0: expert 0 was recorded twice"),
        "{zeros}"
    );
}

#[test]
fn malformed_rows_of_kept_tokens_are_refused() {
    let descending = refused(|s| s.kept.ids.swap(0, 1));
    assert!(
        descending.contains("kept tokens of token 0 are not in ascending order"),
        "{descending}"
    );
    let changes: [fn(&mut KeptTokens); 4] = [
        |kept| kept.offsets.clear(),
        |kept| kept.offsets[0] = 1,
        |kept| kept.offsets[1] = 3,
        |kept| kept.ids.push(99),
    ];
    for change in changes {
        let offsets = refused(|s| change(&mut s.kept));
        assert!(offsets.contains("offsets of its kept tokens"), "{offsets}");
    }
    let truncating = PackOptions {
        truncates: true,
        ..options(100)
    };
    // Token 0 of sample 0 keeps everything, which truncation never does.
    let dropped = refused_with(&truncating, |_| ());
    assert!(
        dropped.starts_with("prompt 42, sample 0: token 0 has no kept tokens"),
        "{dropped}"
    );
}

#[test]
fn selected_keys_that_do_not_fit_are_refused() {
    let missing = refused(|s| s.selection = SelectionTrace::default());
    assert!(
        missing.starts_with("prompt 42, sample 1: no selected keys were recorded"),
        "{missing}"
    );
    let shape = refused(|s| s.selection.topk = 2);
    assert!(
        shape.contains("keys of 2 layers x 2 were recorded, the model selects 2 x 3"),
        "{shape}"
    );
    let short = refused(|s| s.selection.keys.truncate(3));
    assert!(
        short.contains("3 selected keys were recorded, 4 forwarded tokens have 6"),
        "{short}"
    );
    for keys in [[0, 1, 4], [1, 0, 3], [1, 1, 3]] {
        let unseen = refused(|s| s.selection.keys[3..].copy_from_slice(&keys));
        assert!(
            unseen.contains("forwarded token 3, layer 1: the recorded keys are not ascending"),
            "{unseen}"
        );
    }
    let mut groups = [group(42, &[1, 2, 3, 4], &[&[4, 6], &[9]])];
    groups[0].samples[1].selection.keys[1] = 2;
    let advantages = [vec![Some(0.5), Some(-0.5)]];
    let prompt = pack(&groups, &advantages, &options(100))
        .unwrap_err()
        .to_string();
    assert!(
        prompt.contains("the keys of the prompt differ from those of sample 0"),
        "{prompt}"
    );
}

#[test]
fn advantages_of_another_group_are_refused() {
    let groups = [group(3, &[1], &[&[4], &[6]])];
    let error = pack(&groups, &[vec![Some(0.0)]], &options(9)).unwrap_err();
    assert_eq!(error.to_string(), "prompt 3 has 2 samples but 1 advantages");
}

#[test]
fn text_is_predicted_from_loss_from_on_and_weighted_over_the_step() {
    let text = |tokens: &[u32], loss_from| TextDocument {
        given: Vec::new(),
        tokens: tokens.to_vec(),
        loss_from,
    };
    let documents = [
        text(&[1, 2, 3, 4], 2),
        text(&[5, 6], 0),
        text(&[7, 8, 9], 3),
    ];
    let batches = pack_text(&documents, 6, Device::Cpu).unwrap();
    assert_eq!(batches.len(), 2);
    assert_eq!(ints(&batches[0].input.tokens), [1, 2, 3, 4, 5, 6]);
    assert_eq!(ints(&batches[0].targets), [3, 4, 6]);
    assert_eq!(ints(&batches[0].target_rows), [1, 2, 4]);
    assert_eq!(floats(&batches[0].token_weights), [1.0 / 3.0; 3]);
    // The last document is context only.
    assert_eq!(batches[1].targets.numel(), 0);
    let error = pack_text(&[text(&[], 0)], 6, Device::Cpu).unwrap_err();
    assert_eq!(error, BatchError::EmptyText { index: 0 });
}
