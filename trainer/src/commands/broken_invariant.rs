//! A panic on its way out: one error with exit code 1, in the run's log too, in place of a trace.
//!
//! Tensor code panics where an invariant breaks, which is a bug, and where memory runs out. With
//! `RUST_BACKTRACE` set the trace is printed as well. The panic of a grader is none of these: its sample
//! says what happened.

use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::Mutex;

use super::Failure;

/// What the last panic said.
static SAID: Mutex<String> = Mutex::new(String::new());

/// Does `command`; a panic in it becomes a [`Failure`].
pub(super) fn caught(command: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    let usual = panic::take_hook();
    let wants_trace = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
    panic::set_hook(Box::new(move |info| {
        if rollout::grading::is_guarded_panic(info) {
            return;
        }
        if let Ok(mut said) = SAID.lock() {
            *said = summary(info);
        }
        if wants_trace {
            usual(info);
        }
    }));
    // Nothing of the command is used again after a panic but its files, which are whole or absent.
    let outcome = panic::catch_unwind(AssertUnwindSafe(command));
    drop(panic::take_hook());
    outcome.unwrap_or_else(|_| {
        let said = SAID.lock().map(|said| said.clone()).unwrap_or_default();
        Err(failure(&said))
    })
}

/// `src/file.rs:12: what was said`, without libtorch's own trace.
fn summary(info: &PanicHookInfo) -> String {
    let payload = info.payload();
    let said = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    // The message of a libtorch error is quoted, so its line breaks are escaped.
    let first_line = said.split(['\n']).next().unwrap_or_default();
    let first_line = first_line.split("\\n").next().unwrap_or_default();
    match info.location() {
        Some(location) => format!("{location}: {first_line}"),
        None => first_line.to_string(),
    }
}

fn failure(said: &str) -> Failure {
    if let Some(failure) = Failure::of_memory(said) {
        return failure;
    }
    Failure::running(format!("broken invariant: {said}")).hint(
        "this is a bug in baleen, please report it; the checkpoints of a run are not affected, \
         `baleen resume` continues from the newest",
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use environments::{Family, FamilyKey, Split, TaskKey, Verdict};
    use rollout::{Grader, GradingConfig, GuardedGrader, Prompt};

    use super::*;

    #[test]
    fn a_panic_becomes_an_error_that_says_where_and_what() {
        let failure = caught(|| panic!("seven\nframes")).expect_err("it panics");
        let text = failure.to_string();
        assert!(text.starts_with("error: broken invariant: "), "{text}");
        assert!(text.contains("broken_invariant.rs:"), "{text}");
        assert!(text.contains(": seven\nhint: "), "{text}");
    }

    /// Panics at every answer.
    struct Fragile;

    impl Grader for Fragile {
        fn grade(&self, _: &TaskKey, completion: &str) -> Verdict {
            panic!("can't allocate for {completion}")
        }
    }

    #[test]
    fn a_graders_panic_is_told_by_its_sample_and_is_not_the_runs_failure() {
        let prompt = Prompt {
            id: 3,
            task: FamilyKey {
                family: Family::Gcd,
                split: Split::Train,
                level: 1,
                seed: 0,
            }
            .into(),
            question: String::new(),
            tokens: vec![1],
        };
        let grader = GuardedGrader::new(Arc::new(Fragile), &GradingConfig::default());
        let mut verdict = None;
        let failure = caught(|| {
            verdict = Some(grader.grade(&prompt, "7"));
            // Unwinds without a message of its own.
            std::panic::resume_unwind(Box::new(()))
        });
        let Some(Verdict::Invalid { reason, .. }) = verdict else {
            panic!("graded as {verdict:?}");
        };
        assert!(reason.contains("broken_invariant.rs:"), "{reason}");
        assert!(reason.ends_with(": can't allocate for 7"), "{reason}");
        let text = failure.expect_err("it unwinds").to_string();
        assert!(!text.contains("allocate"), "{text}");
    }

    #[test]
    fn missing_memory_is_said_with_what_to_lower() {
        let said = "x.rs:1: DefaultCPUAllocator: can't allocate memory";
        let text = failure(said).to_string();
        assert!(text.contains("not enough memory"), "{text}");
        assert!(text.contains("micro_batch_tokens"), "{text}");
        // As tch quotes libtorch.
        let said = "/root/tensor.rs:9: called `Result::unwrap()` on an `Err` value: Torch(\"CUDA out of memory. \
                    Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB.";
        let text = failure(said).to_string();
        assert!(
            text.starts_with(
                "error: not enough memory: CUDA out of memory. Tried to allocate 20.00 GiB."
            ),
            "{text}"
        );
        assert!(text.contains("activation_checkpointing"), "{text}");
        let said = "kernels/src/fused.rs:80: rms_norm: cuModuleLoadData: out of memory";
        assert!(failure(said).to_string().contains("not enough memory"));
        let other = failure("x.rs:1: 3 rows in place of 4").to_string();
        assert!(other.contains("broken invariant"), "{other}");
    }

    #[test]
    fn what_goes_well_is_passed_on() {
        assert!(caught(|| Ok(())).is_ok());
        let refused = caught(|| Err(Failure::usage("no"))).expect_err("refused");
        assert_eq!(refused.to_string(), "error: no\n");
    }
}
