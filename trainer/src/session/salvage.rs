//! What an asynchronous run sampled after its newest checkpoint and left on disk.
//!
//! Which version of the policy draws a token depends on the clock, so what was drawn once can't be drawn again.
//! Two places hold it: the rollout files of the steps since the checkpoint, which a resume takes again with the same
//! samples, and `rollouts/in_flight.parquet`, written when an error ends the run, with what was sampled ahead.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use rollout::{Group, crash_point, rollout_file};

use crate::checkpoint::TrainState;
use crate::config::GrpoConfig;
use crate::run_folder::RunLayout;

/// The groups to go on with: those `in_flight` in the checkpoint at `state`, each replaced by what is on disk of the same
/// prompt, oldest first.
pub(super) fn sampled_ahead(
    folder: &RunLayout,
    state: &TrainState,
    stage: &GrpoConfig,
    in_flight: Vec<Group>,
) -> Vec<Group> {
    let mut found: BTreeMap<u64, Group> = in_flight
        .into_iter()
        .map(|group| (group.prompt.id, group))
        .collect();
    let first = state.next_prompt_id;
    let left_behind = read(&folder.left_behind_path()).into_iter();
    found.extend(
        left_behind
            .filter(|group| group.prompt.id >= first)
            .map(|group| (group.prompt.id, group)),
    );
    let per_step = stage.prompts_per_step as u64;
    let steps_left = stage.steps.saturating_sub(state.step_in_stage) as u64;
    for ahead in 0..steps_left {
        let expected = first + ahead * per_step..first + (ahead + 1) * per_step;
        let groups = read(&folder.rollout_path(state.global_step + 1 + ahead));
        let is_whole = groups.iter().map(|group| group.prompt.id).eq(expected)
            && groups.iter().all(|g| g.samples.len() == stage.group_size);
        // Later files are of steps that came after one that is lost.
        if !is_whole {
            break;
        }
        found.extend(groups.into_iter().map(|group| (group.prompt.id, group)));
    }
    found.into_values().collect()
}

/// Nothing where there is no such file, or none that can be read: then the samples are drawn anew.
fn read(path: &Path) -> Vec<Group> {
    if !path.exists() {
        return Vec::new();
    }
    match rollout_file::read(path) {
        Ok(file) => file.groups,
        Err(error) => {
            tracing::warn!("{error}; its samples are drawn anew");
            Vec::new()
        }
    }
}

/// Keeps what was sampled ahead of the step that failed.
pub(crate) fn leave_behind(folder: &RunLayout, state: &TrainState, groups: &[Group]) {
    if groups.is_empty() {
        return;
    }
    let path = folder.left_behind_path();
    let num_samples = groups.iter().map(|group| group.samples.len()).sum();
    let advantages = vec![f64::NAN; num_samples];
    match rollout_file::write(&path, state.global_step + 1, groups, &advantages) {
        Ok(()) => tracing::info!(
            "{num_samples} samples of later steps, finished or begun, are kept in {} for the resume",
            path.display()
        ),
        Err(error) => tracing::warn!("what was sampled ahead is lost: {error}"),
    }
}

/// Removes what [`leave_behind`] kept, once a checkpoint holds it.
///
/// # Errors
/// The operating system refuses.
pub(crate) fn forget_left_behind(folder: &RunLayout) -> io::Result<()> {
    let path = folder.left_behind_path();
    match path.exists() {
        true => crash_point::remove_file(&path),
        false => Ok(()),
    }
}
