//! Prints what the levels of the agent families were measured to take: the tables of `docs/families/agent.md`.
//!
//! `cargo run -p environments --example agent_levels [SEEDS]`

use environments::agent::measured::{desk_tables, trip_table};

fn main() {
    let seeds = std::env::args().nth(1).and_then(|seeds| seeds.parse().ok());
    let seeds = seeds.unwrap_or(1000);
    println!("trip_planner\n{}", trip_table(seeds));
    println!("order_desk\n{}", desk_tables(seeds));
}
