//! Prints the worked solution of a task of an agent family as an episode.
//!
//! `cargo run -p environments --example agent_episode [FAMILY LEVEL SEED]`; by default the one of
//! `docs/families/agent.md`.

use environments::agent::measured::transcript;
use environments::{Family, UnknownFamily};

fn main() -> Result<(), UnknownFamily> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let family: Family = match arguments.first() {
        Some(name) => name.parse()?,
        None => Family::OrderDesk,
    };
    let number = |index: usize| arguments.get(index).and_then(|text| text.parse().ok());
    let level = number(1).unwrap_or(3);
    print!(
        "{}",
        transcript(family, level as u32, number(2).unwrap_or(0))
    );
    Ok(())
}
