//! A grpo step whose grader panics, hangs and gives nonsense: every sample is written down, the good ones
//! are trained on, and a run that must stop stops after that.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use environments::{TaskKey, Verdict};
use rollout::rollout_file::{self, RolloutFile};
use rollout::{Grader, GradingConfig, GuardedGrader, RolloutError};
use trainer::config::{RunConfig, StageConfig};
use trainer::config_file;
use trainer::error::TrainerError;
use trainer::metrics::StepMetrics;
use trainer::run_folder::RunFolder;
use trainer::session::Session;
use trainer::stages;

use crate::program::workspace;
use crate::run_files::TINY;

/// Samples of the step.
const SAMPLES: usize = 32;

/// Treats sample number i as its function says.
struct Scripted {
    graded: AtomicUsize,
    script: fn(usize) -> Verdict,
}

impl Grader for Scripted {
    fn grade(&self, _: &TaskKey, _: &str) -> Verdict {
        (self.script)(self.graded.fetch_add(1, Ordering::SeqCst))
    }
}

fn graded(reward: f64) -> Verdict {
    Verdict::graded(reward, None)
}

fn hang() -> Verdict {
    loop {
        std::thread::park();
    }
}

fn config(max_invalid_share: f64) -> RunConfig {
    let stage = format!(
        "stages=[grpo(steps: 2, prompts_per_step: 4, group_size: 8, kl_beta: 0.0, learning_rate: (peak: 1e-3), \
         max_invalid_share: {max_invalid_share:?})]"
    );
    config_file::load(&workspace().join(TINY), &[stage]).expect("sound")
}

/// Takes the first step of a run in `root` with this grader; five seconds a sample, on a busy machine too; at most two may hang.
fn step(
    root: &Path,
    max_invalid_share: f64,
    script: fn(usize) -> Verdict,
) -> (Result<StepMetrics, TrainerError>, RolloutFile) {
    let config = config(max_invalid_share);
    let [StageConfig::Grpo(_)] = config.stages.as_slice() else {
        panic!("one grpo stage");
    };
    let folder = RunFolder::create(root, &config).expect("a new folder");
    let stop = AtomicBool::new(false);
    let mut session = Session::new(&config, &folder, &stop).expect("a random model");
    let grader = Arc::new(Scripted {
        graded: AtomicUsize::new(0),
        script,
    });
    let limits = GradingConfig {
        timeout_secs: 5.0,
        max_hung: 2,
    };
    session.grader = Arc::new(GuardedGrader::new(grader, &limits));
    stages::prepare(&mut session, &config.stages[0]);
    let outcome = stages::step(&mut session, &config.stages[0]);
    let outcome = outcome.map(|metrics| metrics.expect("nobody asked it to stop"));
    let file = rollout_file::read(&folder.rollout_path(1)).expect("the samples were written");
    (outcome, file)
}

/// Why each sample of the file is invalid; all of them are there.
fn reasons(file: &RolloutFile) -> Vec<Option<&str>> {
    let samples = file.groups.iter().flat_map(|group| &group.samples);
    let reasons: Vec<Option<&str>> = samples
        .map(|sample| match &sample.verdict {
            Verdict::Invalid { reason, .. } => Some(reason.as_str()),
            Verdict::Graded { .. } => None,
        })
        .collect();
    assert_eq!(reasons.len(), SAMPLES);
    reasons
}

#[test]
fn good_samples_beside_bad_graders_are_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let (outcome, file) = step(dir.path(), 0.2, |sample| match sample {
        1 => panic!("a bug"),
        10 => graded(f64::NAN),
        20 => hang(),
        21 => graded(-1.0),
        sample => graded((sample % 2) as f64),
    });
    let metrics = outcome.expect("four of 32 may fail");
    assert_eq!(metrics.invalid_samples, Some(4));
    assert_eq!(metrics.zero_spread_groups, Some(0));
    assert!(metrics.grad_norm.unwrap() > 0.0);
    for (index, reason) in reasons(&file).into_iter().enumerate() {
        let expected = match index {
            1 => "the grader panicked: a bug",
            10 => "the grader gave NaN",
            20 => "the grader took longer than grading.timeout_secs (5 s)",
            21 => "the grader gave -1",
            _ => {
                assert_eq!(reason, None, "sample {index}");
                assert!(file.advantages[index].abs() > 0.1);
                continue;
            }
        };
        let reason = reason.expect("it is invalid");
        assert!(reason.starts_with("grading sums level 1 seed "), "{reason}");
        assert!(reason.contains(expected), "{reason}");
        assert!(file.advantages[index].is_nan(), "no vote in its group");
    }
}

#[test]
fn too_many_failures_stop_the_run_after_all_samples_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let (outcome, file) = step(dir.path(), 0.2, |sample| match sample % 4 {
        0 => graded(f64::INFINITY),
        _ => graded(1.0),
    });
    match outcome.expect_err("a quarter is more than a fifth") {
        TrainerError::InvalidSamples { invalid, total, .. } => {
            assert_eq!((invalid, total), (8, SAMPLES));
        }
        other => panic!("{other}"),
    }
    assert_eq!(reasons(&file).iter().flatten().count(), 8);
}

#[test]
fn graders_that_all_hang_stop_the_run_soon_and_all_samples_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let start = std::time::Instant::now();
    // Nothing but the hanging itself may stop this run.
    let (outcome, file) = step(dir.path(), 1.0, |sample| match sample {
        0..3 => graded(1.0),
        _ => hang(),
    });
    match outcome.expect_err("nothing can be graded any more") {
        TrainerError::Rollout(RolloutError::GradersHang { max_hung, last }) => {
            assert_eq!(max_hung, 2);
            assert!(last.contains("took longer"), "{last}");
        }
        other => panic!("{other}"),
    }
    // Three waits of five seconds, not 29.
    assert!(start.elapsed() < Duration::from_secs(20));
    let reasons = reasons(&file);
    assert_eq!(reasons.iter().flatten().count(), SAMPLES - 3);
    assert!(reasons[31].unwrap().contains("not graded"));
}
