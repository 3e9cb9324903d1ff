//! The timeline of one step of a run, for `baleen train --profile FILE`.
//!
//! Recorded is the third step of the first grpo stage: by then kernels are loaded and memory is in place.
//! Ranges on the timeline: `step`, in it `rollout` (with `prefill` and `decode` of the engine), `learn`
//! (with `reference` and `optimizer`), `evaluation` and `checkpoint` where the step has them.

use std::path::{Path, PathBuf};

use kernels::profiler::{ProfileError, Profiler, check_file, range};
use kernels::tch::Device;

use crate::checkpoint::TrainState;
use crate::config::{RunConfig, StageConfig};
use crate::error::TrainerError;

/// Steps of a stage before the one that is recorded.
const STEPS_BEFORE: usize = 2;

/// Which step is recorded, and where to.
#[derive(Debug)]
pub struct StepProfile {
    path: PathBuf,
    stage: usize,
    step_in_stage: usize,
}

impl StepProfile {
    /// Makes the file `path`, if need be, and picks the step of `config`.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn create(path: &Path, config: &RunConfig) -> Result<StepProfile, ProfileError> {
        check_file(path)?;
        let (stage, step_in_stage) = recorded_step(config);
        Ok(StepProfile {
            path: path.to_path_buf(),
            stage,
            step_in_stage,
        })
    }

    /// Whether the step that comes next is the one to record.
    pub fn is_due(&self, state: &TrainState) -> bool {
        (state.stage, state.step_in_stage) == (self.stage, self.step_in_stage)
    }

    /// Makes the step, recorded, on `device`.
    ///
    /// # Errors
    /// Those of the step, or of writing the file once the step is done.
    pub fn record<T>(
        &self,
        device: Device,
        make_step: impl FnOnce() -> Result<T, TrainerError>,
    ) -> Result<T, TrainerError> {
        let made = recorded(&self.path, device, || {
            let _step = range("step");
            make_step()
        })?;
        tracing::info!("profile of this step: {}", self.path.display());
        Ok(made)
    }
}

/// Does `work` and writes its timeline to `path`.
///
/// # Errors
/// Those of the work, or of writing the file once it is done.
pub fn recorded<T>(
    path: &Path,
    device: Device,
    work: impl FnOnce() -> Result<T, TrainerError>,
) -> Result<T, TrainerError> {
    let profiler = Profiler::start(device)?;
    let done = work()?;
    profiler.save(path)?;
    Ok(done)
}

/// Stage and steps made in it before: of the first grpo stage, or of the first one where there is none.
fn recorded_step(config: &RunConfig) -> (usize, usize) {
    let of_grpo = |stage: &StageConfig| matches!(stage, StageConfig::Grpo(_));
    let stage = config.stages.iter().position(of_grpo).unwrap_or(0);
    let steps = config.stages.get(stage).map_or(0, StageConfig::steps);
    (stage, STEPS_BEFORE.min(steps.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config_file::{parse, with_override};

    fn picked(stages: &str) -> (usize, usize) {
        let tiny = parse(include_str!("../../tests/fixtures/tiny.ron"), "tiny.ron");
        let config = with_override(&tiny.expect("valid"), &format!("stages=[{stages}]"));
        recorded_step(&config.expect("valid"))
    }

    #[test]
    fn the_third_step_of_the_first_grpo_stage_is_recorded() {
        let grpo =
            "grpo(steps: 12, prompts_per_step: 8, group_size: 8, learning_rate: (peak: 1e-3))";
        let sft = |steps: usize| format!("sft(steps: {steps}, learning_rate: (peak: 1e-3))");
        assert_eq!(picked(&format!("{}, {grpo}, {grpo}", sft(6))), (1, 2));
        assert_eq!(picked(&sft(6)), (0, 2));
        assert_eq!(picked(&sft(2)), (0, 1));
        assert_eq!(picked(&sft(1)), (0, 0));
    }
}
