//! Trip planning after the example of the DeepSeek-V3.2 report (its section on the general agent), hardened.
//!
//! A plan of some days is asked for; what it needs to know stands behind the report's fifteen tools. Lists hold names
//! only: prices, ratings, tickets and opening days take `get_infos_by_*`. Any plan that keeps every clause earns 1.
//! Level 1 and 2 have the report's rule (day 2 only); 3 has it every day; 4 adds a bound on the total cost, close to
//! the optimum; 5 travel, opening days and weather; 6 a longer trip, decoys and tools that fail for a moment.

mod date;
mod desk;
mod optimum;
mod plan;
mod rules;
mod solver;
#[cfg(test)]
mod tests;
mod world;

use std::ops::RangeInclusive;

use self::date::WEEKDAYS;
use self::desk::Desk;
use self::plan::Day;
use self::world::{Request, World};
use super::names::Names;
use crate::draw::Draw;
use crate::episode::EpisodeLimits;
use crate::instance::{Domain, Instance, TaskFamily};
use crate::session::Session;
use crate::tool::ToolDef;
use crate::verdict::{Fault, FaultKind};

pub(crate) struct TripPlanner;

/// What a level's worlds are like.
struct Profile {
    /// Cities that can be visited; the start is one more.
    num_cities: usize,
    num_hotels: usize,
    num_restaurants: usize,
    num_attractions: usize,
    num_days: usize,
    /// Percent of restaurants rated 4.0 or higher; as many lie from 3.2 to 3.9.
    good_percent: usize,
    is_tiered_daily: bool,
    /// Without a budget: of this many structurally valid plans at most one keeps every rule.
    min_plans_per_right: u128,
    /// The budget lies this many percent above the optimum.
    slack_percent: Option<u32>,
    travels: bool,
    has_decoys: bool,
    num_outages: usize,
}

fn profile(level: u32) -> Profile {
    let small = Profile {
        num_cities: 3,
        num_hotels: 2,
        num_restaurants: 3,
        num_attractions: 2,
        num_days: 3,
        good_percent: 12,
        is_tiered_daily: false,
        min_plans_per_right: 4,
        slack_percent: None,
        travels: false,
        has_decoys: false,
        num_outages: 0,
    };
    let large = Profile {
        num_cities: 5,
        num_hotels: 4,
        num_restaurants: 5,
        num_attractions: 4,
        good_percent: 6,
        min_plans_per_right: 10,
        ..small
    };
    match level {
        1 => small,
        2 => large,
        3 => Profile {
            is_tiered_daily: true,
            ..large
        },
        4 => Profile {
            is_tiered_daily: true,
            good_percent: 15,
            slack_percent: Some(10),
            ..large
        },
        5 => Profile {
            is_tiered_daily: true,
            good_percent: 15,
            slack_percent: Some(5),
            travels: true,
            ..large
        },
        _ => Profile {
            num_cities: 6,
            num_days: 4,
            is_tiered_daily: true,
            good_percent: 15,
            slack_percent: Some(5),
            travels: true,
            has_decoys: true,
            num_outages: 4,
            ..large
        },
    }
}

impl TaskFamily for TripPlanner {
    fn name(&self) -> &'static str {
        "trip_planner"
    }

    fn summary(&self) -> &'static str {
        "plan a trip by rules, from what tools tell"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=6
    }

    fn domain(&self) -> Domain {
        Domain::Agent
    }

    fn is_quick(&self) -> bool {
        false
    }

    fn tools(&self, _level: u32) -> Vec<ToolDef> {
        desk::tools()
    }

    fn limits(&self, level: u32) -> EpisodeLimits {
        EpisodeLimits {
            max_turns: 64,
            max_calls: if level < 4 { 128 } else { 384 },
            ..EpisodeLimits::default()
        }
    }

    fn open(&self, _level: u32, gold: &str) -> Result<Option<Box<dyn Session>>, Fault> {
        let world: World = serde_json::from_str(gold)
            .map_err(|error| Fault::new(FaultKind::Grader, format!("no world: {error}")))?;
        Ok(Some(Box::new(Desk::new(world))))
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let profile = profile(level);
        let world = world::draw_world(&profile, draw)?;
        let gold = serde_json::to_string(&world).ok()?;
        Some(Instance {
            canonical: gold.clone(),
            system: None,
            question: question(&world.request, !world.outages.is_empty()),
            witness: solver::solve(&world)?,
            solution: "The plan is handed in.".to_string(),
            gold,
        })
    }

    /// A plan in names of nowhere, as text: it is not handed in, and would be wrong.
    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        let mut names = Names::default();
        let days = (0..profile(level).num_days).map(|_| Day {
            time: "2025-10-01".to_string(),
            city: names.name(draw),
            hotel: names.name(draw),
            afternoon_restaurant: names.name(draw),
            afternoon_attraction: names.name(draw),
            evening_restaurant: names.name(draw),
        });
        serde_json::to_string(&days.collect::<Vec<_>>()).unwrap_or_default()
    }
}

/// Every rule that the checker checks.
fn question(request: &Request, has_outages: bool) -> String {
    let start = &request.start;
    let day = |day: usize| {
        let date = request.first.plus(day);
        format!("{} ({})", date.iso(), WEEKDAYS[date.weekday()])
    };
    let mut rules = vec![
        format!("I live in {start} and start there on the first day; {start} is not visited."),
        "No city, hotel, attraction or restaurant comes twice.".to_string(),
        "Each day is spent in one city; its hotel, its two restaurants and its attraction lie in that city."
            .to_string(),
        format!(
            "{}, by the price p of that day's hotel in CNY: p >= 800: both restaurants together cost less than 350, \
             each is rated 4.0 or higher, and the ticket costs less than 120. 500 <= p < 800: at least one restaurant \
             is rated 4.0 or higher, and the ticket costs less than 180. 200 <= p < 500: at least one restaurant is \
             rated 3.2 or higher. p < 200: not allowed.",
            if request.is_tiered_daily {
                "Every day"
            } else {
                "On day 2"
            }
        ),
    ];
    if request.travels {
        rules.push(
            "The attraction is open on that weekday, and it is not of kind outdoor where it rains that day."
                .to_string(),
        );
        rules.push(format!(
            "Each morning I travel from the city of the day before (on the first day from {start}) by one direct \
             connection that departs at 06:00 or later and arrives by 12:00."
        ));
    }
    if let Some(budget) = request.budget {
        let fares = if request.travels {
            ", and the cheapest connections that fit"
        } else {
            ""
        };
        rules.push(format!(
            "Hotels, restaurants and tickets{fares} cost at most {budget} CNY in all."
        ));
    }
    let rules: Vec<String> = (1..)
        .zip(rules)
        .map(|(number, rule)| format!("{number}. {rule}"))
        .collect();
    let failing = if has_outages {
        " A tool may fail for a moment; then repeat the call."
    } else {
        ""
    };
    format!(
        "Plan a trip of {} days, {} to {}, with the tools.{failing}\nRules:\n{}\nHand it in by submit_result: a JSON \
         list with one object for each day, in order:\n[{{\"time\":\"{}\",\"city\":\"...\",\"hotel\":\"...\",\
         \"afternoon_restaurant\":\"...\",\"afternoon_attraction\":\"...\",\"evening_restaurant\":\"...\"}}, ...]",
        request.num_days,
        day(0),
        day(request.num_days - 1),
        rules.join("\n"),
        request.first.iso(),
    )
}

/// What a level's tasks were measured to take: means over the training tasks of `num_seeds` seeds.
pub(super) fn measured_rows(num_seeds: u32) -> String {
    use super::measured::{num_calls, train_tasks};
    let mut rows = String::from(
        "| level | plans | of them right, mean | at most | calls of a solver | turns |\n|---|---|---|---|---|---|\n",
    );
    for level in TripPlanner.levels() {
        let (mut plans, mut shares, mut calls, mut turns) = (0.0, Vec::new(), 0, 0);
        for task in train_tasks(crate::Family::TripPlanner, level, num_seeds) {
            let world: World = serde_json::from_str(&task.gold).expect("a world of ours");
            let (kept, all) = optimum::count_plans(&world).expect("some plan keeps the rules");
            plans = all as f64;
            shares.push(kept as f64 / all as f64);
            calls += num_calls(&task);
            turns += task.witness.len();
        }
        let mean = shares.iter().sum::<f64>() / shares.len() as f64;
        let most = shares.iter().copied().fold(0.0, f64::max);
        let per_task = |sum: usize| sum as f64 / f64::from(num_seeds);
        rows += &format!(
            "| {level} | {plans:.1e} | {mean:.1e} | {most:.1e} | {:.1} | {:.1} |\n",
            per_task(calls),
            per_task(turns)
        );
    }
    rows
}
