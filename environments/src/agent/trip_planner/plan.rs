//! A plan as it is handed in, and which clauses of the task it meets.

use serde::{Deserialize, Serialize};

use super::rules::{day_cost, fare, is_dry, is_open, is_tiered, tier_allows};
use super::world::{Attraction, Place, World};

/// Longest text that is read as a plan, in bytes.
const MAX_BYTES: usize = 16 << 10;

/// One day: an object of the report's JSON list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Day {
    pub(super) time: String,
    pub(super) city: String,
    pub(super) hotel: String,
    pub(super) afternoon_restaurant: String,
    pub(super) afternoon_attraction: String,
    pub(super) evening_restaurant: String,
}

/// Reads a plan.
///
/// # Errors
/// What is wrong with the text, for the policy.
pub(super) fn read(text: &str) -> Result<Vec<Day>, String> {
    if text.len() > MAX_BYTES {
        return Err(format!(
            "Error: the answer is longer than {MAX_BYTES} bytes."
        ));
    }
    serde_json::from_str(text)
        .map_err(|error| format!("Error: the answer is no JSON list of days as asked: {error}"))
}

/// What a day names, found in the database.
struct Found<'a> {
    city: usize,
    hotel: &'a Place,
    tables: [&'a Place; 2],
    attraction: &'a Attraction,
}

fn find<'a>(world: &'a World, day: &Day) -> Option<Found<'a>> {
    let city = world.city(&day.city)?;
    let place = &world.cities[city];
    let table = |name: &str| place.restaurants.iter().find(|table| table.name == name);
    Some(Found {
        city,
        hotel: place.hotels.iter().find(|hotel| hotel.name == day.hotel)?,
        tables: [
            table(&day.afternoon_restaurant)?,
            table(&day.evening_restaurant)?,
        ],
        attraction: place
            .attractions
            .iter()
            .find(|attraction| attraction.name == day.afternoon_attraction)?,
    })
}

/// Every clause of the task by name, and whether `plan` meets it. A clause about prices, travel or opening is met by
/// no plan that names something unknown or in another city.
pub(super) fn clauses(world: &World, plan: &[Day]) -> Vec<(String, bool)> {
    let request = &world.request;
    let are_dates = plan.len() == request.num_days
        && (plan.iter().enumerate()).all(|(i, day)| day.time == request.first.plus(i).iso());
    let found: Option<Vec<Found>> = plan.iter().map(|day| find(world, day)).collect();
    let found = found.filter(|_| are_dates);
    let mut clauses = vec![
        ("dates", are_dates),
        ("away", plan.iter().all(|day| day.city != request.start)),
        ("located", found.is_some()),
        ("cities_differ", differ(plan.iter().map(|day| &day.city))),
        ("hotels_differ", differ(plan.iter().map(|day| &day.hotel))),
        (
            "attractions_differ",
            differ(plan.iter().map(|day| &day.afternoon_attraction)),
        ),
        (
            "restaurants_differ",
            differ(
                plan.iter()
                    .flat_map(|day| [&day.afternoon_restaurant, &day.evening_restaurant]),
            ),
        ),
    ];
    let holds = |rule: &dyn Fn(usize, &Found) -> bool| {
        let mut days = found.iter().flatten().enumerate();
        found.is_some() && days.all(|(day, found)| rule(day, found))
    };
    let is_tier_kept = |day: usize, found: &Found| {
        !is_tiered(world, day) || tier_allows(found.hotel, found.tables, found.attraction)
    };
    clauses.push(("hotel_rule", holds(&is_tier_kept)));
    if request.travels {
        let is_open = |day: usize, found: &Found| is_open(world, day, found.attraction);
        clauses.push(("open", holds(&is_open)));
        let is_dry = |day: usize, found: &Found| is_dry(world, day, found.city, found.attraction);
        clauses.push(("weather", holds(&is_dry)));
    }
    let fares = found.as_ref().and_then(|found| fares(world, found));
    if request.travels {
        clauses.push(("travel", fares.is_some()));
    }
    if let Some(budget) = request.budget {
        let spent = found.as_ref().zip(fares).map(|(found, fares)| {
            let days = found.iter();
            fares
                + days
                    .map(|day| day_cost(day.hotel, day.tables, day.attraction))
                    .sum::<u32>()
        });
        clauses.push(("budget", spent.is_some_and(|spent| spent <= budget)));
    }
    let named = |(name, is_met): (&str, bool)| (name.to_string(), is_met);
    clauses.into_iter().map(named).collect()
}

/// What the journeys cost, if all are possible.
fn fares(world: &World, days: &[Found]) -> Option<u32> {
    let mut from = world.city(&world.request.start)?;
    let mut sum = 0;
    for day in days {
        sum += fare(world, from, day.city)?;
        from = day.city;
    }
    Some(sum)
}

fn differ<'a>(names: impl Iterator<Item = &'a String>) -> bool {
    let mut names: Vec<&String> = names.collect();
    let num_names = names.len();
    names.sort_unstable();
    names.dedup();
    names.len() == num_names
}
