use environments::{Family, FamilyKey, Split};
use model::{KeptTokens, RoutingTrace, SelectionTrace};
use rollout::{FinishReason, Group};

use super::*;

/// Sample `index` of prompt 7.
pub(in crate::report) fn shown(index: usize, reward: Option<f64>, advantage: f64) -> ShownSample {
    ShownSample {
        reasons: Vec::new(),
        step: 12,
        prompt: Prompt {
            id: 7,
            task: FamilyKey {
                family: Family::Sums,
                split: Split::Train,
                level: 2,
                seed: 9,
            }
            .into(),
            question: "What is 2 + 3?".to_string(),
            tokens: vec![1, 2, 3],
        },
        sample: Sample {
            index,
            tokens: vec![53, 257],
            sampler_logprobs: vec![-0.5, -0.25],
            kept: KeptTokens {
                offsets: vec![0, 0, 0],
                ids: Vec::new(),
            },
            routing: RoutingTrace {
                num_layers: 0,
                top_k: 0,
                ids: Vec::new(),
            },
            selection: SelectionTrace::default(),
            policy_versions: vec![4, 4],
            given: Vec::new(),
            later: Vec::new(),
            paid: None,
            episode: None,
            finish_reason: FinishReason::Stop,
            text: "5".to_string(),
            verdict: match reward {
                Some(reward) => Verdict::graded(reward, None),
                None => Verdict::invalid(
                    environments::FaultKind::Grader,
                    "the sandbox did not start".to_string(),
                ),
            },
        },
        advantage,
        learned: None,
    }
}

/// What was learned from a sample of [`shown`].
pub(in crate::report) fn learned(index: usize, gap: f32, is_masked: bool) -> LearnedSample {
    LearnedSample {
        prompt_id: 7,
        sample_index: index,
        segment: 0,
        mini_batch: 1,
        policy_age: 1,
        advantage: -0.5,
        kl_scale: 1.0,
        token_weight: 0.1,
        drift: f64::from(gap),
        is_masked,
        logprobs: vec![-0.5 - gap, -0.25],
        ref_logprobs: Some(vec![-0.75, -0.125]),
    }
}

fn reasons(found: Vec<ShownSample>) -> Vec<(usize, Vec<Reason>)> {
    let chosen = chosen(found).into_iter();
    chosen
        .map(|sample| (sample.sample.index, sample.reasons))
        .collect()
}

#[test]
fn the_best_and_the_worst_are_chosen_by_reward_then_advantage() {
    let found = vec![
        shown(0, Some(0.0), -0.25),
        shown(1, Some(1.0), 0.25),
        shown(2, Some(1.0), 0.75),
        shown(3, Some(0.5), 0.0),
        shown(4, Some(0.0), -0.75),
        shown(5, Some(1.0), 0.5),
        shown(6, None, f64::NAN),
    ];
    assert_eq!(
        reasons(found),
        [
            (2, vec![Reason::Best]),
            (5, vec![Reason::Best]),
            (4, vec![Reason::Worst]),
            (0, vec![Reason::Worst]),
            (6, vec![Reason::Invalid]),
        ]
    );
}

#[test]
fn a_sample_with_several_reasons_comes_once() {
    let with = |index, reward, gap, is_masked| ShownSample {
        learned: Some(learned(index, gap, is_masked)),
        ..shown(index, Some(reward), reward - 0.5)
    };
    let found = vec![
        with(0, 0.0, 0.5, true),
        with(1, 1.0, 0.01, false),
        with(2, 0.5, 0.2, false),
        with(3, 0.5, 0.1, true),
        with(4, 0.5, 0.0, false),
    ];
    let best_and_worst = [Reason::Best, Reason::Worst];
    let found = reasons(found);
    assert_eq!(found[0], (1, vec![Reason::Best]));
    assert!(found.contains(&(0, vec![Reason::Worst, Reason::LargestGap, Reason::Masked])));
    assert!(found.contains(&(3, vec![Reason::Masked])));
    let of_gap = found
        .iter()
        .filter(|(_, reasons)| reasons.contains(&Reason::LargestGap));
    assert_eq!(of_gap.map(|(index, _)| *index).collect::<Vec<_>>(), [2, 0]);
    let edges = found
        .iter()
        .flat_map(|(_, reasons)| reasons)
        .filter(|r| best_and_worst.contains(r));
    assert_eq!(edges.count(), 4);
}

/// The line of a grpo step.
fn step(global_step: u64) -> StepMetrics {
    StepMetrics {
        global_step,
        reward_mean: Some(0.5),
        ..StepMetrics::default()
    }
}

#[test]
fn the_newest_rollouts_are_read_with_what_was_learned_and_what_lacks_is_noted() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let layout = RunLayout::new(dir.path());
    for global_step in 1..=5 {
        let mut sample = shown(0, Some(0.5), 0.0).sample;
        sample.routing.num_layers = 1;
        let group = Group {
            prompt: shown(0, None, 0.0).prompt,
            samples: vec![sample],
        };
        let path = layout.rollout_path(global_step);
        std::fs::create_dir_all(path.parent().expect("in a folder")).expect("created");
        rollout_file::write(&path, global_step, &[group], &[0.0]).expect("written");
    }
    let steps: Vec<StepMetrics> = (1..=5).map(step).collect();
    let path = layout.learned_path(5);
    learned_file::write(&path, 5, &[learned(0, 0.5, false)]).expect("written");
    let found = read(&layout, &steps);
    // Steps 5, 4 and 3, of which the first two are the best and the last is neither.
    let best = &found.samples[0];
    assert_eq!(
        (best.step, best.learned.as_ref()),
        (5, Some(&learned(0, 0.5, false)))
    );
    assert!(found.samples.iter().all(|sample| sample.step >= 3));
    assert_eq!(found.notes.len(), 1);
    assert!(
        found.notes[0].contains("learned/ is missing for steps 3, 4"),
        "{}",
        found.notes[0]
    );

    std::fs::remove_file(layout.rollout_path(5)).expect("removed");
    std::fs::write(layout.rollout_path(4), "no parquet").expect("written");
    let found = read(&layout, &steps);
    assert_eq!(found.samples.len(), 1);
    assert_eq!(found.samples[0].step, 3);
    assert!(
        found.notes[0].contains("step-000005.parquet is not there"),
        "{}",
        found.notes[0]
    );
    assert!(
        found.notes[1].contains("step-000004.parquet"),
        "{}",
        found.notes[1]
    );
}
