//! Graders that panic, hang and give nonsense, each beside samples that are graded well.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use environments::{Family, FamilyKey, RowKey, Split};

use super::*;

/// Does what the completion says.
#[derive(Default)]
struct Obedient {
    /// Lets those that hang go on.
    released: AtomicBool,
    threads: Mutex<Vec<thread::ThreadId>>,
    ended: AtomicUsize,
}

impl Grader for Obedient {
    fn grade(&self, _: &TaskKey, completion: &str) -> Verdict {
        self.threads.lock().unwrap().push(thread::current().id());
        let graded = |reward| Verdict::graded(reward, None);
        match completion {
            "panic" => panic!("index 7\nis out of bounds"),
            "odd panic" => std::panic::panic_any(7),
            "hang" => {
                while !self.released.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(1));
                }
                self.ended.fetch_add(1, Ordering::SeqCst);
                graded(1.0)
            }
            "invalid" => {
                Verdict::invalid(environments::FaultKind::Grader, "no sandbox".to_string())
            }
            number => graded(number.parse().expect("a number")),
        }
    }
}

fn prompt() -> Prompt {
    Prompt {
        id: 5,
        task: FamilyKey {
            family: Family::Sums,
            split: Split::Train,
            level: 2,
            seed: 17,
        }
        .into(),
        question: String::new(),
        tokens: vec![1],
    }
}

fn guarded(timeout_secs: f64, max_hung: usize) -> (Arc<Obedient>, GuardedGrader) {
    let grader = Arc::new(Obedient::default());
    let config = GradingConfig {
        timeout_secs,
        max_hung,
    };
    (grader.clone(), GuardedGrader::new(grader, &config))
}

fn reason(guard: &GuardedGrader, completion: &str) -> String {
    match guard.grade(&prompt(), completion) {
        Verdict::Invalid { reason, .. } => reason,
        graded => panic!("{completion} was graded: {graded:?}"),
    }
}

fn reward(guard: &GuardedGrader, completion: &str) -> Option<f64> {
    guard.grade(&prompt(), completion).reward()
}

#[test]
fn verdicts_pass_unchanged_and_one_thread_gives_them_all() {
    let (grader, guard) = guarded(60.0, 0);
    for (completion, expected) in [("0", 0.0), ("0.25", 0.25), ("1", 1.0), ("-0.0", 0.0)] {
        assert_eq!(reward(&guard, completion), Some(expected));
    }
    assert_eq!(reason(&guard, "invalid"), "no sandbox");
    let threads = grader.threads.lock().unwrap();
    assert_eq!(threads.len(), 5);
    assert!(threads.iter().all(|thread| *thread == threads[0]));
    assert_ne!(threads[0], thread::current().id());
}

#[test]
fn a_reward_that_is_none_makes_the_sample_invalid() {
    let (_, guard) = guarded(60.0, 0);
    for nonsense in ["NaN", "inf", "-inf", "1.5", "-0.001"] {
        let reason = reason(&guard, nonsense);
        let expected = format!(
            "grading sums level 2 seed 17 (prompt 5): the grader gave {nonsense}, which is no reward: a number \
             between 0 and 1"
        );
        assert_eq!(reason, expected);
    }
    assert_eq!(reward(&guard, "1"), Some(1.0));
}

#[test]
fn a_panic_makes_the_sample_invalid_and_grading_goes_on() {
    let (grader, guard) = guarded(60.0, 0);
    assert_eq!(
        reason(&guard, "panic"),
        "grading sums level 2 seed 17 (prompt 5): the grader panicked: index 7"
    );
    assert!(reason(&guard, "odd panic").ends_with("panicked: no message"));
    assert_eq!(reward(&guard, "1"), Some(1.0));
    assert!(guard.check().is_ok());
    assert_eq!(grader.threads.lock().unwrap().len(), 3);
}

#[test]
fn a_hanging_grader_is_left_behind_after_the_timeout() {
    // Long enough for a quick grader on a busy machine.
    let (grader, guard) = guarded(1.0, 1);
    let start = Instant::now();
    let reason = reason(&guard, "hang");
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(
        reason,
        "grading sums level 2 seed 17 (prompt 5): the grader took longer than grading.timeout_secs (1 s)"
    );
    assert_eq!(reward(&guard, "1"), Some(1.0), "by another thread");
    assert!(guard.check().is_ok());
    // What it says too late is heard by nobody, and its thread ends.
    grader.released.store(true, Ordering::SeqCst);
    while grader.ended.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    assert_eq!(reward(&guard, "0"), Some(0.0));
    assert_eq!(grader.threads.lock().unwrap().len(), 3);
}

#[test]
fn one_too_many_that_hang_leave_the_rest_ungraded_at_once_and_stop_the_run() {
    let (_, guard) = guarded(0.02, 1);
    reason(&guard, "hang");
    assert!(guard.check().is_ok());
    reason(&guard, "hang");
    let start = Instant::now();
    for _ in 0..1000 {
        assert!(reason(&guard, "1").ends_with("not graded, since too many graders hang"));
    }
    assert!(start.elapsed() < Duration::from_secs(10), "nobody waits");
    let error = guard.check().expect_err("the run must stop").to_string();
    for part in [
        "more than grading.max_hung (1)",
        "sums level 2 seed 17: the grader took longer",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn graders_that_come_back_no_longer_count_as_hanging() {
    let (grader, guard) = guarded(0.02, 1);
    for round in 1..=4 {
        grader.released.store(false, Ordering::SeqCst);
        reason(&guard, "hang");
        grader.released.store(true, Ordering::SeqCst);
        let is_back = || {
            let threads = guard.threads();
            threads.hung.iter().all(JoinHandle::is_finished)
        };
        while !is_back() {
            thread::yield_now();
        }
        assert_eq!(grader.ended.load(Ordering::SeqCst), round);
        assert!(guard.check().is_ok());
    }
}

#[test]
fn a_slow_grader_holds_up_no_other_thread() {
    let (grader, guard) = guarded(60.0, 0);
    thread::scope(|scope| {
        let slow = scope.spawn(|| reward(&guard, "hang"));
        while grader.threads.lock().unwrap().is_empty() {
            thread::yield_now();
        }
        assert_eq!(reward(&guard, "0.5"), Some(0.5));
        grader.released.store(true, Ordering::SeqCst);
        assert_eq!(slow.join().unwrap(), Some(1.0));
    });
}

#[test]
fn a_task_that_cannot_be_read_makes_its_samples_invalid() {
    let guard = GuardedGrader::new(Arc::new(Tasks::default()), &GradingConfig::default());
    assert!(reward(&guard, "no answer").is_some());
    let lost = Prompt {
        task: RowKey {
            dataset: "gone".to_string(),
            split: Split::Train,
            row: 1,
        }
        .into(),
        ..prompt()
    };
    let reason = match guard.grade(&lost, "7") {
        Verdict::Invalid { reason, .. } => reason,
        graded => panic!("{graded:?}"),
    };
    assert_eq!(reason, "there is no dataset gone here");
}

#[test]
fn senseless_limits_are_named() {
    let problems = |timeout_secs| {
        let config = GradingConfig {
            timeout_secs,
            max_hung: 0,
        };
        config.problems()
    };
    assert!(GradingConfig::default().problems().is_empty());
    for senseless in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
        assert_eq!(problems(senseless).len(), 1, "{senseless}");
        assert!(problems(senseless)[0].starts_with("timeout_secs ("));
    }
}
