//! A run that was killed, stopped or damaged goes on and ends with the bytes of an undisturbed run.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crate::program::{self, Working};
use crate::run_files::{
    TINY, TINY_STEPS, assert_same_results, checkpoints, copy, global_step, metrics, text,
    train_tiny,
};

/// When to kill.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So long after the process began: while it loads, or in a step.
    After(Duration),
    /// When a checkpoint is half written.
    Saving,
    /// Right after the last step of a stage, before its checkpoint or while the next stage begins.
    EndOfStage(usize),
    /// So long after so many steps are done.
    Steps(u64, Duration),
}

/// Draws that are the same in every test run (splitmix64).
struct Draws(u64);

impl Draws {
    fn millis(&mut self, below: u64) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Duration::from_millis((bits ^ (bits >> 31)) % below)
    }
}

/// Starts the run, or goes on with it where there is one.
fn go_on(run: &Path) -> Working {
    let stderr = run.with_extension("stderr");
    match run.join("config.ron").exists() {
        true => Working::start(&["resume", text(run)], &stderr),
        false => Working::start(&["train", TINY, "--run", text(run)], &stderr),
    }
}

/// Checkpoint folders begun since `start` that are not whole yet.
fn half_written(run: &Path, start: SystemTime) -> bool {
    checkpoints(run)
        .iter()
        .filter(|name| name.ends_with(".partial"))
        .any(|name| {
            let folder = fs::metadata(run.join("checkpoints").join(name));
            folder
                .and_then(|folder| folder.modified())
                .is_ok_and(|time| time > start)
        })
}

/// Goes on with the run and kills it. False when it was complete before the moment came.
fn kill_at(run: &Path, moment: Moment) -> bool {
    let (start, began) = (SystemTime::now(), Instant::now());
    let mut working = go_on(run);
    let mut pause = Duration::ZERO;
    let came = working.wait_until(|| match moment {
        Moment::After(delay) => began.elapsed() >= delay,
        Moment::Saving => half_written(run, start),
        Moment::EndOfStage(stage) => {
            global_step(run) >= TINY_STEPS[..=stage].iter().sum::<usize>() as u64
        }
        Moment::Steps(steps, delay) => {
            pause = delay;
            global_step(run) >= steps
        }
    });
    std::thread::sleep(pause);
    let killed = came && working.kill();
    assert!(killed || working.end().success(), "{}", working.said());
    killed
}

/// Goes on until the run is complete.
fn complete(run: &Path) -> String {
    let mut working = go_on(run);
    assert!(working.end().success(), "{}", working.said());
    working.said()
}

#[test]
fn a_run_killed_at_any_moment_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let [undisturbed, run] = ["undisturbed", "killed"].map(|name| dir.path().join(name));
    train_tiny(&undisturbed);

    let mut draws = Draws(20);
    let mut after = |below| Moment::After(draws.millis(below));
    let mut moments = vec![after(100), after(500), after(700), Moment::Saving];
    moments.extend([Moment::EndOfStage(0), Moment::Saving, after(900)]);
    moments.extend([Moment::EndOfStage(1), Moment::Saving, Moment::Saving]);
    moments.extend([
        Moment::EndOfStage(2),
        Moment::Saving,
        after(1000),
        Moment::Saving,
    ]);
    moments.extend([19, 21, 24].map(|steps| Moment::Steps(steps, draws.millis(200))));
    let mut num_kills = 0;
    let mut num_cut_saves = 0;
    for moment in moments {
        let start = SystemTime::now();
        num_kills += usize::from(kill_at(&run, moment));
        num_cut_saves += usize::from(half_written(&run, start));
    }
    assert!(num_kills >= 8, "only {num_kills} kills hit the run");
    assert!(num_cut_saves >= 1, "no kill cut a checkpoint short");
    println!("{num_kills} kills, {num_cut_saves} of them while a checkpoint was written");
    complete(&run);
    assert_same_results(&run, &undisturbed);

    // Such a comparison means something only if there was something to learn from.
    let learned = metrics(&run)
        .iter()
        .filter(|step| {
            step.reward_std.is_some_and(|std| std > 0.0) && step.kl.is_some_and(|kl| kl > 0.0)
        })
        .count();
    assert!(
        learned >= 6,
        "only {learned} grpo steps had rewards that differ"
    );
}

#[test]
fn a_run_asked_to_stop_saves_exits_with_0_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let [undisturbed, run] = ["undisturbed", "stopped"].map(|name| dir.path().join(name));
    train_tiny(&undisturbed);

    // In the sft stage, whose steps are saved two by two, and in the first step of grpo.
    for steps in [10, 15] {
        let mut working = go_on(&run);
        assert!(working.wait_until(|| global_step(&run) >= steps));
        working.terminate();
        assert_eq!(working.end().code(), Some(0), "{}", working.said());
        let said = working.said();
        assert!(said.contains("asked to stop"), "{said}");
        assert!(
            said.contains(&format!("baleen resume {}", run.display())),
            "{said}"
        );
        let saved = format!("step-{:06}", global_step(&run));
        assert!(checkpoints(&run).contains(&saved), "{saved} is missing");
        assert!(global_step(&run) < 27, "stopped too late to show anything");
    }
    let said = complete(&run);
    assert!(said.contains("resumed from"), "{said}");
    assert_same_results(&run, &undisturbed);
}

/// The newest checkpoint of a run that was interrupted.
fn newest(run: &Path) -> PathBuf {
    let names = checkpoints(run);
    let is_whole = |name: &&String| name.starts_with("step-") && !name.contains('.');
    let newest = names.iter().rfind(is_whole);
    run.join("checkpoints")
        .join(newest.expect("the run was saved"))
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let [undisturbed, begun] = ["undisturbed", "begun"].map(|name| dir.path().join(name));
    train_tiny(&undisturbed);
    assert!(kill_at(&begun, Moment::Steps(22, Duration::ZERO)));

    // A bit in the middle of the file flips, or the file ends there.
    for (file, cut) in [
        ("weights.safetensors", false),
        ("optimizer.safetensors", true),
        ("manifest.json", true),
    ] {
        let run = dir.path().join(format!("damaged-{file}"));
        copy(&begun, &run);
        let newest = newest(&run);
        let damaged = newest.join(file);
        let mut bytes = fs::read(&damaged).unwrap();
        let middle = bytes.len() / 2;
        if cut {
            bytes.truncate(middle);
        } else {
            bytes[middle] ^= 0x10;
        }
        fs::write(&damaged, bytes).unwrap();
        let said = complete(&run);
        assert!(said.contains("checkpoint not used: "), "{said}");
        assert!(
            said.contains(&format!("{} is damaged", damaged.display())),
            "{said}"
        );
        assert!(
            !said.contains(&format!("resumed from {}", newest.display())),
            "{said}"
        );
        assert!(said.contains("resumed from"), "{said}");
        assert_same_results(&run, &undisturbed);
    }
}

#[test]
fn a_run_without_an_intact_checkpoint_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    assert!(kill_at(&run, Moment::Steps(10, Duration::ZERO)));
    for name in checkpoints(&run) {
        let path = run
            .join("checkpoints")
            .join(name)
            .join("weights.safetensors");
        if path.exists() {
            fs::write(path, "").unwrap();
        }
    }
    let before = crate::run_files::results(&run);
    let ended = program::finish(program::command(&["resume", text(&run)]));
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    for name in checkpoints(&run).iter().filter(|name| !name.contains('.')) {
        assert!(ended.stderr.contains(name.as_str()), "{}", ended.stderr);
    }
    assert!(
        ended.stderr.contains("no checkpoint in"),
        "{}",
        ended.stderr
    );
    assert_eq!(crate::run_files::results(&run), before);
}
