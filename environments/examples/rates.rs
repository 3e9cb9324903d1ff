//! Tasks made and graded per second on one core, by family, at its easiest and its hardest level:
//! `cargo build -p sandbox; cargo run -p environments --example rates [FAMILY...]`.
//!
//! Graded is a whole episode: opened, the worked solution's calls made, its answer said, the verdict given.

use std::time::{Duration, Instant};

use environments::{Episode, Family, FamilyKey, Split, Task};

/// Of each figure.
const TIME: Duration = Duration::from_millis(500);

fn main() {
    let names: Vec<String> = std::env::args().skip(1).collect();
    println!("| family | level | made a second | graded a second |\n|---|---|---|---|");
    for family in Family::ALL {
        if !names.is_empty() && !names.iter().any(|name| name == family.name()) {
            continue;
        }
        let levels = family.levels();
        let mut asked = vec![*levels.start()];
        if levels.end() > levels.start() {
            asked.push(*levels.end());
        }
        for level in asked {
            let task = |seed| {
                Family::task(&FamilyKey {
                    family,
                    split: Split::Train,
                    level,
                    seed,
                })
            };
            let tasks: Vec<Task> = (0..20).map(task).collect();
            let made = per_second(|seed| drop(task(seed)));
            let graded = per_second(|number| {
                let task = &tasks[number as usize % tasks.len()];
                let verdict = Episode::played(task, &task.witness, &task.solution);
                assert_eq!(verdict.reward(), Some(1.0), "{}: {verdict:?}", task.key);
            });
            println!("| {family} | {level} | {made:.0} | {graded:.0} |");
        }
    }
}

/// How often `act`, given 0, 1, 2 and so on, is done in a second.
fn per_second(mut act: impl FnMut(u64)) -> f64 {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < TIME {
        act(count);
        count += 1;
    }
    count as f64 / start.elapsed().as_secs_f64()
}
