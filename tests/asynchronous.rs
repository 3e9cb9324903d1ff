//! Runs that sample ahead while they learn: every sample is trained once, ages stay bounded, and a run that is
//! stopped or killed goes on with what was in flight.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rollout::{FinishReason, rollout_file};
use trainer::learned_file;

use crate::program::{self, Working};
use crate::run_files::{TINY, checkpoints, global_step, metrics, text};

/// The stages of tests/fixtures/tiny.ron with an asynchronous last one.
const STAGES: &str = "stages=[
    sft(steps: 3, documents_per_step: 16, learning_rate: (peak: 1e-2)),
    grpo(steps: 10, prompts_per_step: 4, group_size: 4, mini_batches: 2, kl_beta: 1e-2,
         learning_rate: (peak: 1e-3), asynchronous: (max_policy_age: 2)),
]";
const SFT_STEPS: u64 = 3;
const GRPO_STEPS: u64 = 10;
const PROMPTS_PER_STEP: u64 = 4;
const GROUP_SIZE: usize = 4;
const MINI_BATCHES: u64 = 2;
const MAX_POLICY_AGE: u64 = 2;
/// Few, so that groups are cut in the middle.
const SLOTS: usize = 6;

/// Starts the run, or goes on with it where there is one.
pub fn go_on(run: &Path) -> Working {
    let stderr = run.with_extension("stderr");
    match run.join("config.ron").exists() {
        true => Working::start(&["resume", text(run)], &stderr),
        false => Working::start(
            &[
                "train",
                TINY,
                "--run",
                text(run),
                "--set",
                STAGES,
                "--set",
                &format!("max_batch_sequences={SLOTS}"),
                "--set",
                "evaluation=(prompts: 0, every: 0)",
            ],
            &stderr,
        ),
    }
}

/// Checks a complete run: each prompt of each step once and whole, each sample trained by the step that
/// drew it, no token older than allowed.
pub fn assert_whole(run: &Path) {
    let mut next_prompt_id = 0;
    for step in SFT_STEPS + 1..=SFT_STEPS + GRPO_STEPS {
        let name = format!("step-{step:06}.parquet");
        let rollout = rollout_file::read(&run.join("rollouts").join(&name)).unwrap();
        let ids: Vec<u64> = rollout.groups.iter().map(|group| group.prompt.id).collect();
        let expected: Vec<u64> = (next_prompt_id..next_prompt_id + PROMPTS_PER_STEP).collect();
        assert_eq!(ids, expected, "{name}");
        next_prompt_id += PROMPTS_PER_STEP;

        let (_, learned) = learned_file::read(&run.join("learned").join(&name)).unwrap();
        let mut trained = BTreeMap::new();
        for sample in &learned {
            let before = trained.insert((sample.prompt_id, sample.sample_index), sample);
            assert!(before.is_none(), "{name}: trained twice");
        }
        for group in &rollout.groups {
            assert_eq!(group.samples.len(), GROUP_SIZE, "{name}");
            for (index, sample) in group.samples.iter().enumerate() {
                assert_eq!(sample.index, index);
                assert_ne!(sample.finish_reason, FinishReason::Unfinished);
                assert!(sample.verdict.reward().is_some(), "graded");
                assert_eq!(sample.policy_versions.len(), sample.tokens.len());
                assert!(sample.policy_versions.is_sorted());
                let learned = trained[&(group.prompt.id, index)];
                assert_eq!(learned.logprobs.len(), sample.tokens.len());
                let oldest = (MAX_POLICY_AGE + 1) * MINI_BATCHES - 1;
                assert!(
                    learned.policy_age <= oldest,
                    "{name}: {}",
                    learned.policy_age
                );
                // Version 3 is that of the policy when the stage began.
                let trained = SFT_STEPS + (step - SFT_STEPS - 1) * MINI_BATCHES;
                let trained = trained + learned.mini_batch as u64;
                assert_eq!(learned.policy_age, trained - sample.policy_versions[0]);
            }
        }
        assert_eq!(
            trained.len(),
            PROMPTS_PER_STEP as usize * GROUP_SIZE,
            "{name}"
        );
    }
}

#[test]
fn every_sample_is_trained_once_and_no_later_than_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let mut working = go_on(&run);
    assert!(working.end().success(), "{}", working.said());
    assert_whole(&run);
    let steps = metrics(&run);
    let ages = || steps.iter().filter_map(|step| step.policy_age_max);
    assert_eq!(ages().count() as u64, GRPO_STEPS);
    assert!(
        ages().any(|age| age >= MINI_BATCHES),
        "nothing was sampled ahead"
    );
    let spanning: usize = steps.iter().filter_map(|step| step.spanning_samples).sum();
    assert!(spanning > 0, "no sample spans two versions of the policy");
    let said = working.said();
    assert!(
        !said.contains("off_policy_delta"),
        "the mask can act: {said}"
    );
}

#[test]
fn a_first_token_is_of_the_version_whose_logits_it_was_drawn_from() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let stages = STAGES.replace("group_size: 4", "group_size: 8");
    let stderr = dir.path().join("stderr");
    let mut working = Working::start(
        &[
            "train",
            TINY,
            "--run",
            text(&run),
            "--set",
            &stages,
            "--set",
            "max_batch_sequences=3",
            "--set",
            "evaluation=(prompts: 0, every: 0)",
        ],
        &stderr,
    );
    assert!(working.end().success(), "{}", working.said());
    // Two versions never give a token the very same log-prob, but siblings that came later draw from the
    // logits of their prompt's one prefill.
    let mut versions = BTreeMap::new();
    let mut num_equal = 0;
    for step in SFT_STEPS + 1..=SFT_STEPS + GRPO_STEPS {
        let path = run.join(format!("rollouts/step-{step:06}.parquet"));
        for group in rollout_file::read(&path).unwrap().groups {
            for sample in &group.samples {
                let drawn = (
                    group.prompt.id,
                    sample.tokens[0],
                    sample.sampler_logprobs[0].to_bits(),
                );
                let version = sample.policy_versions[0];
                let known = *versions.entry(drawn).or_insert(version);
                num_equal += usize::from(known != version);
            }
        }
    }
    assert_eq!(
        num_equal, 0,
        "first tokens stamped with a version that did not draw them"
    );
}

/// Prompt, sample, token ids and their versions of every sample that has ended.
type Ended = Vec<(u64, usize, Vec<u32>, Vec<u64>)>;

fn ended(groups: &[rollout::Group]) -> Ended {
    let samples = groups.iter().flat_map(|group| {
        let id = group.prompt.id;
        group.samples.iter().map(move |sample| (id, sample))
    });
    samples
        .filter(|(_, sample)| sample.finish_reason != FinishReason::Unfinished)
        .map(|(id, s)| (id, s.index, s.tokens.clone(), s.policy_versions.clone()))
        .collect()
}

#[test]
fn a_stop_saves_what_is_in_flight_and_a_resume_goes_on_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let mut working = go_on(&run);
    assert!(
        working.wait_until(|| global_step(&run) >= SFT_STEPS + 3),
        "{}",
        working.said()
    );
    working.terminate();
    assert_eq!(working.end().code(), Some(0), "{}", working.said());
    let stopped = global_step(&run);
    let newest = checkpoints(&run).pop().unwrap();
    let file = run
        .join("checkpoints")
        .join(&newest)
        .join("in_flight.parquet");
    let groups = rollout_file::read(&file).unwrap().groups;
    let taken = (stopped - SFT_STEPS) * PROMPTS_PER_STEP;
    assert!(groups.iter().all(|group| group.prompt.id >= taken));
    let samples = || groups.iter().flat_map(|group| &group.samples);
    let unfinished = samples().filter(|s| s.finish_reason == FinishReason::Unfinished);
    assert!(unfinished.count() <= SLOTS, "more than there are slots");
    let kept = ended(&groups);

    let mut working = go_on(&run);
    assert!(working.end().success(), "{}", working.said());
    assert_whole(&run);
    let later = ended_on_disk(&run, stopped + 1);
    assert_holds(&later, &kept);
    // What had begun keeps its beginning.
    for group in &groups {
        for sample in &group.samples {
            let id = group.prompt.id;
            let whole = later.iter().find(|s| (s.0, s.1) == (id, sample.index));
            let (_, _, tokens, versions) = whole.expect("it was trained");
            assert!(tokens.starts_with(&sample.tokens));
            assert!(versions.starts_with(&sample.policy_versions));
        }
    }
    assert!(
        !groups.is_empty(),
        "nothing was in flight, so nothing was shown"
    );
}

/// The samples of the rollout files from step `first` on.
fn ended_on_disk(run: &Path, first: u64) -> Ended {
    let steps = (first..=SFT_STEPS + GRPO_STEPS).map(|step| format!("step-{step:06}.parquet"));
    let paths = steps.map(|name| run.join("rollouts").join(name));
    let written = paths.filter(|path| path.is_file());
    written
        .flat_map(|path| ended(&rollout_file::read(&path).unwrap().groups))
        .collect()
}

fn assert_holds(later: &Ended, earlier: &Ended) {
    for sample in earlier {
        assert!(later.contains(sample), "{sample:?} was drawn again");
    }
}

#[test]
fn a_run_killed_while_it_samples_ahead_loses_and_repeats_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let mut known = Ended::new();
    for (steps, pause) in [(3, 40), (4, 5), (6, 90), (9, 20), (11, 60)] {
        let mut working = go_on(&run);
        working.wait_until(|| global_step(&run) >= steps);
        std::thread::sleep(Duration::from_millis(pause));
        working.kill();
        // The steps since the newest checkpoint are taken again, with the samples they had.
        let written = ended_on_disk(&run, 0);
        assert_holds(&written, &known);
        known = written;
    }
    let mut working = go_on(&run);
    assert!(working.end().success(), "{}", working.said());
    assert_whole(&run);
    assert!(!known.is_empty());
    assert_holds(&ended_on_disk(&run, 0), &known);
    let ended = program::succeed(&["fsck", text(&run)]);
    assert!(!ended.stdout.contains("damaged"), "{}", ended.stdout);
}

#[test]
fn what_was_sampled_ahead_of_a_step_that_failed_is_kept_for_the_resume() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let mut working = go_on(&run);
    assert!(working.wait_until(|| global_step(&run) > SFT_STEPS));
    // Step 10 can't write its samples.
    let in_the_way = run.join("rollouts/step-000010.parquet");
    std::fs::create_dir(&in_the_way).unwrap();
    assert_eq!(working.end().code(), Some(1), "{}", working.said());
    assert!(working.said().contains("step-000010.parquet"));
    let left_behind = run.join("rollouts/in_flight.parquet");
    let kept = rollout_file::read(&left_behind).unwrap().groups;
    let taken = (10 - SFT_STEPS) * PROMPTS_PER_STEP;
    assert!(kept.iter().all(|group| group.prompt.id >= taken));
    let known = [ended_on_disk(&run, 0), ended(&kept)].concat();

    std::fs::remove_dir(&in_the_way).unwrap();
    let mut working = go_on(&run);
    assert!(working.end().success(), "{}", working.said());
    assert_whole(&run);
    assert_holds(&ended_on_disk(&run, 0), &known);
    assert!(!left_behind.exists(), "checkpoints hold everything now");
}
