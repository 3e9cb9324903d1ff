//! The rules of a day and of a journey, each a pure function.
//!
//! Bands by hotel price: [200, 500), [500, 800), [800, inf). The report's bands overlap at 500 and 800 and leave
//! hotels below 200 open; here those are not allowed where the rule holds.

use super::world::{Attraction, Place, Weather, World};

/// Earliest departure and latest arrival of a journey, minutes after midnight.
pub(super) const TRAVEL_HOURS: (u32, u32) = (6 * 60, 12 * 60);

/// The rule by hotel price holds on this day, counted from 0.
pub(super) fn is_tiered(world: &World, day: usize) -> bool {
    world.request.is_tiered_daily || day == 1
}

/// The rule by hotel price.
pub(super) fn tier_allows(hotel: &Place, tables: [&Place; 2], attraction: &Attraction) -> bool {
    let num_rated = |least: u32| tables.iter().filter(|table| table.rating >= least).count();
    match hotel.price {
        0..200 => false,
        200..500 => num_rated(32) >= 1,
        500..800 => num_rated(40) >= 1 && attraction.ticket < 180,
        800.. => {
            let spent: u32 = tables.iter().map(|table| table.price).sum();
            spent < 350 && num_rated(40) == 2 && attraction.ticket < 120
        }
    }
}

/// The attraction is open on this day.
pub(super) fn is_open(world: &World, day: usize, attraction: &Attraction) -> bool {
    let weekday = world.request.first.plus(day).weekday();
    (attraction.open >> weekday) & 1 == 1
}

/// The weather of this day in this city allows the attraction.
pub(super) fn is_dry(world: &World, day: usize, city: usize, attraction: &Attraction) -> bool {
    !attraction.is_outdoor || world.weather[city][day] != Weather::Rain
}

/// What a day costs, travel aside.
pub(super) fn day_cost(hotel: &Place, tables: [&Place; 2], attraction: &Attraction) -> u32 {
    hotel.price + tables[0].price + tables[1].price + attraction.ticket
}

/// The cheapest fare from one city to another in the morning; 0 where travel does not count.
pub(super) fn fare(world: &World, from: usize, to: usize) -> Option<u32> {
    if !world.request.travels {
        return Some(0);
    }
    let in_time = world.links.iter().filter(|link| {
        (link.from, link.to) == (from, to)
            && link.depart >= TRAVEL_HOURS.0
            && link.arrive <= TRAVEL_HOURS.1
    });
    in_time.map(|link| link.price).min()
}
