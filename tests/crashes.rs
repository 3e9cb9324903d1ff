//! Runs that are crashed at every file operation and killed at many moments, in each mode: every resume succeeds, a
//! synchronous run ends with the bytes of an undisturbed one, an asynchronous one has trained each sample once,
//! and no part of the folder is ever found half written.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use rollout::{FinishReason, rollout_file};
use trainer::fsck;
use trainer::learned_file;
use trainer::run_folder::RunLayout;

use crate::program::{self, Working};
use crate::run_files::{
    TINY, TINY_STEPS, assert_same_results, checkpoints, copy, global_step, metrics, text,
};

const CRASH: &str = "tests/fixtures/crash.ron";
/// Steps of [`CRASH`], the text step included.
const STEPS: u64 = 4;
const PROMPTS_PER_STEP: u64 = 2;
const GROUP_SIZE: usize = 3;
const ASYNCHRONOUS: &str = "stages[1].grpo.asynchronous=(max_policy_age: 1)";

/// Rollouts beside learning, or each after the other.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Synchronous,
    Asynchronous,
}

/// The command that begins the run, or goes on with it where there is one.
fn arguments(run: &Path, mode: Mode) -> Vec<&str> {
    if run.join("config.ron").exists() {
        return vec!["resume", text(run)];
    }
    let mut arguments = vec!["train", CRASH, "--run", text(run)];
    if mode == Mode::Asynchronous {
        arguments.extend(["--set", ASYNCHRONOUS]);
    }
    arguments
}

/// Goes on until the process ends by itself or crashes at its `crash_at`-th file operation; true when it
/// crashed.
fn go_on_until(run: &Path, mode: Mode, crash_at: u64) -> bool {
    let mut command = program::command(&arguments(run, mode));
    command.env(rollout::crash_point::VARIABLE, crash_at.to_string());
    let ended = program::finish(command);
    let crashed = ended.stderr.contains(rollout::crash_point::VARIABLE);
    assert!(crashed || ended.code == 0, "{}", ended.stderr);
    crashed
}

/// Goes on until the run is complete.
fn complete(run: &Path, mode: Mode) {
    program::succeed(&arguments(run, mode));
}

/// Nothing that the crash left is damaged.
fn assert_whole(run: &Path) {
    if run.join("config.ron").exists() {
        for part in fsck::check(&RunLayout::new(run)) {
            let state = part.state;
            assert!(state.is_ok(), "{}: {state:?}", part.name);
        }
    }
}

/// Every prompt was trained once, whole, in its step.
fn assert_each_sample_once(run: &Path) {
    let mut next_prompt_id = 0;
    for step in 2..=STEPS {
        let name = format!("step-{step:06}.parquet");
        let rollout = rollout_file::read(&run.join("rollouts").join(&name)).unwrap();
        let (_, learned) = learned_file::read(&run.join("learned").join(&name)).unwrap();
        let mut drawn = BTreeSet::new();
        for group in &rollout.groups {
            for sample in &group.samples {
                assert_ne!(sample.finish_reason, FinishReason::Unfinished);
                drawn.insert((group.prompt.id, sample.index));
            }
        }
        let ids = next_prompt_id..next_prompt_id + PROMPTS_PER_STEP;
        let expected: BTreeSet<(u64, usize)> = ids
            .flat_map(|id| (0..GROUP_SIZE).map(move |index| (id, index)))
            .collect();
        next_prompt_id += PROMPTS_PER_STEP;
        assert_eq!(drawn, expected, "{name}");
        let trained: Vec<_> = learned
            .iter()
            .map(|s| (s.prompt_id, s.sample_index))
            .collect();
        assert_eq!(trained.len(), expected.len(), "{name}");
        assert_eq!(
            trained.into_iter().collect::<BTreeSet<_>>(),
            expected,
            "{name}"
        );
    }
    assert_eq!(global_step(run), STEPS);
}

/// Crashes a run at its first file operation, another at its second, and so on; each is then completed.
/// Every second one crashes again on its way.
fn crash_at_every_file_operation(mode: Mode) {
    let dir = tempfile::tempdir().unwrap();
    let undisturbed = dir.path().join("undisturbed");
    complete(&undisturbed, mode);
    let mut num_crashes = 0;
    for crash_at in 1.. {
        let run = dir.path().join(format!("run-{crash_at}"));
        if !go_on_until(&run, mode, crash_at) {
            break;
        }
        num_crashes += 1;
        assert_whole(&run);
        if crash_at % 2 == 0 {
            num_crashes += u64::from(go_on_until(&run, mode, crash_at / 2));
            assert_whole(&run);
        }
        complete(&run, mode);
        match mode {
            Mode::Synchronous => assert_same_results(&run, &undisturbed),
            Mode::Asynchronous => assert_each_sample_once(&run),
        }
        std::fs::remove_dir_all(&run).unwrap();
    }
    println!("{num_crashes} crashes");
    assert!(num_crashes >= 180, "only {num_crashes} crashes");
}

#[test]
fn a_crash_at_any_file_operation_is_survived_in_the_synchronous_mode() {
    crash_at_every_file_operation(Mode::Synchronous);
}

#[test]
fn a_crash_at_any_file_operation_is_survived_in_the_asynchronous_mode() {
    crash_at_every_file_operation(Mode::Asynchronous);
}

/// Kills runs with SIGKILL at moments spread over all they do, each run up to four times.
fn kill_at_many_moments(mode: Mode, num_runs: u64) {
    let dir = tempfile::tempdir().unwrap();
    let undisturbed = dir.path().join("undisturbed");
    let start = std::time::Instant::now();
    complete(&undisturbed, mode);
    let whole = start.elapsed();
    let mut num_kills = 0;
    for number in 0..num_runs {
        let run = dir.path().join(format!("run-{number}"));
        for round in 0..4 {
            let stderr = run.with_extension("stderr");
            let mut working = Working::start(&arguments(&run, mode), &stderr);
            // The golden ratio spreads the moments evenly, whatever their number.
            let share = (0.618_033_988_7 * (4 * number + round + 1) as f64).fract();
            let moment = whole.mul_f64(share).max(Duration::from_millis(1));
            let began = std::time::Instant::now();
            let came = working.wait_until(|| began.elapsed() >= moment);
            let killed = came && working.kill();
            assert!(killed || working.end().success(), "{}", working.said());
            num_kills += u64::from(killed);
            assert_whole(&run);
        }
        complete(&run, mode);
        match mode {
            Mode::Synchronous => assert_same_results(&run, &undisturbed),
            Mode::Asynchronous => assert_each_sample_once(&run),
        }
        std::fs::remove_dir_all(&run).unwrap();
    }
    println!("{num_kills} kills");
    assert!(
        num_kills >= 2 * num_runs,
        "only {num_kills} kills hit a run"
    );
}

#[test]
fn kills_at_any_moment_are_survived_in_the_synchronous_mode() {
    kill_at_many_moments(Mode::Synchronous, 12);
}

#[test]
fn kills_at_any_moment_are_survived_in_the_asynchronous_mode() {
    kill_at_many_moments(Mode::Asynchronous, 12);
}

#[test]
fn a_run_relaunched_at_each_boundary_of_its_stages_has_the_losses_of_one_that_never_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    let keep = "checkpoints=(every: 2, keep: 99)";
    program::succeed(&["train", TINY, "--run", text(&whole), "--set", keep]);
    let losses = |run: &Path| -> Vec<_> {
        let steps = metrics(run).into_iter();
        steps
            .map(|step| (step.global_step, step.loss, step.indexer_kl))
            .collect()
    };
    let mut boundary = 0;
    for (stage, steps) in TINY_STEPS[..3].iter().enumerate() {
        boundary += steps;
        // What the folder held when the stage had ended.
        let run = dir.path().join(format!("after-{stage}"));
        copy(&whole, &run);
        std::fs::remove_dir_all(run.join("model")).unwrap();
        for name in checkpoints(&run) {
            let step = name
                .strip_prefix("step-")
                .and_then(|step| step.parse::<usize>().ok());
            if step.is_none_or(|step| step > boundary) {
                std::fs::remove_dir_all(run.join("checkpoints").join(&name)).unwrap();
            }
        }
        let said = program::succeed(&["resume", text(&run)]).stderr;
        assert!(said.contains(&format!("step-{boundary:06}")), "{said}");
        assert_eq!(losses(&run), losses(&whole), "after stage {stage}");
        assert_same_results(&run, &whole);
    }
}
