//! What the agent families' levels were measured to take.
//!
//! `cargo run -p environments --example agent_levels` prints the tables of `docs/families/agent.md`.

use crate::family::Family;
use crate::task::{FamilyKey, Split, Task};

/// Training tasks of seeds `0..num_seeds`.
pub(super) fn train_tasks(
    family: Family,
    level: u32,
    num_seeds: u32,
) -> impl Iterator<Item = Task> {
    (0..num_seeds).map(move |seed| {
        Family::task(&FamilyKey {
            family,
            split: Split::Train,
            level,
            seed: u64::from(seed),
        })
    })
}

/// Calls of the worked solution.
pub(super) fn num_calls(task: &Task) -> usize {
    task.witness.iter().map(Vec::len).sum()
}

/// Of trips, by level: how many structurally valid plans there are and which share of them keeps every rule, counted
/// exactly; and the calls and turns of the solver. Means over `num_seeds` training tasks, as a Markdown table.
pub fn trip_table(num_seeds: u32) -> String {
    super::trip_planner::measured_rows(num_seeds)
}
