//! What the agent families' levels were measured to take.
//!
//! `cargo run -p environments --example agent_levels` prints the tables of `docs/families/agent.md`, and
//! `cargo run -p environments --example agent_episode` its transcript.

use crate::episode::{AssistantTurn, Episode, Next};
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

/// Of tickets, by level: calls and turns of the solver, how many clauses the policy has and how many of them a ticket's
/// refusals cite; and what working without the policy earns. Means over `num_seeds` training tasks, as Markdown tables.
pub fn desk_tables(num_seeds: u32) -> String {
    super::order_desk::measured_rows(num_seeds)
}

/// The worked solution of a training task, played in an episode: what the policy reads and what it calls.
///
/// # Panics
/// When `family` has no such level.
pub fn transcript(family: Family, level: u32, seed: u64) -> String {
    let task = Family::task(&FamilyKey {
        family,
        split: Split::Train,
        level,
        seed,
    });
    let mut text = String::new();
    if let Some(system) = &task.system {
        text += &format!("system: {system}\n\n");
    }
    text += &format!("user: {}\n", task.question);
    let mut episode = Episode::open(&task).expect("a session");
    for calls in &task.witness {
        text += "\nassistant:\n";
        for call in calls {
            text += &format!("  {}({})\n", call.name, call.arguments);
        }
        let turn = AssistantTurn {
            content: String::new(),
            calls: calls.clone(),
        };
        match episode.step(&turn).expect("no fault") {
            Next::Tools(messages) => {
                text += "tool:\n";
                for message in messages {
                    text += &format!("  {}\n", message.content);
                }
            }
            Next::User(content) => text += &format!("user: {content}\n"),
            Next::Done(_) => break,
        }
    }
    if episode.stop().is_none() {
        text += &format!("\nassistant: {}\n", task.solution);
        let turn = AssistantTurn {
            content: task.solution.clone(),
            calls: Vec::new(),
        };
        episode.step(&turn).expect("no fault");
    }
    let reward = episode.grade().reward().unwrap_or(f64::NAN);
    text + &format!("\nreward {reward}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_an_episode_as_it_is_played() {
        let page = include_str!("../../../docs/families/agent.md");
        let played = transcript(Family::OrderDesk, 3, 0);
        assert!(page.contains(&played), "put this on the page:\n{played}");
        assert!(played.ends_with("reward 1\n"));
    }

    #[test]
    fn a_key_gives_the_same_bytes_on_every_machine() {
        let fingerprint = |(family, level): (Family, u32)| {
            let task = Family::task(&FamilyKey {
                family,
                split: Split::HeldOut,
                level,
                seed: u64::MAX,
            });
            let bytes = format!("{:?} {} {:?}", task.question, task.gold, task.witness);
            blake3::hash(bytes.as_bytes()).to_hex()[..16].to_string()
        };
        // Other bytes are another version of the family.
        assert_eq!(
            [
                (Family::TripPlanner, 1),
                (Family::TripPlanner, 6),
                (Family::OrderDesk, 1),
                (Family::OrderDesk, 6),
                (Family::Lookup, 3),
            ]
            .map(fingerprint),
            [
                "85cf19af8dc393e2",
                "493252ea16b7d474",
                "ec1d820f6fc7773e",
                "807bc85536f51a56",
                "5f9702abf0c30e7c"
            ]
        );
    }
}
