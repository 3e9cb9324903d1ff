//! The reference policy is restricted to the kept tokens as the policy is.

use crate::program;
use crate::run_files::{TINY, metrics, text};

/// In the first step policy and reference are equal, and so must be their log-probs: over the whole
/// vocabulary the reference's would lie lower by the log of what top-p keeps, ln 0.95 here.
#[test]
fn the_first_step_has_no_kl_though_tokens_were_truncated() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let stages = "stages=[grpo(steps: 1, prompts_per_step: 4, group_size: 4, kl_beta: 1e-2, \
                  learning_rate: (peak: 1e-3))]";
    let no_evaluation = "evaluation=(prompts: 0)";
    let train = ["train", TINY, "--run", text(&run)];
    let set = ["--set", stages, "--set", no_evaluation];
    program::succeed(&[&train[..], &set].concat());
    let step = metrics(&run).pop().unwrap();
    assert!(
        step.kept_tokens_mean.unwrap() < 259.0,
        "tokens were dropped"
    );
    let kl = step.kl.unwrap();
    assert!(kl.abs() < 1e-8, "{kl}");
}
