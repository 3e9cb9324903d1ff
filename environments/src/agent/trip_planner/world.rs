//! The database of a trip, what is asked of the plan, and how both are drawn.
//!
//! Prices are whole CNY, ratings tenths, times minutes after midnight.

use serde::{Deserialize, Serialize};

use super::Profile;
use super::date::Date;
use super::optimum::{cheapest_plan, count_plans};
use crate::agent::names::Names;
use crate::draw::Draw;

/// What a session is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct World {
    /// All cities, that of the traveller among them.
    pub(super) cities: Vec<City>,
    /// Direct connections.
    pub(super) links: Vec<Link>,
    /// Of each city, day by day.
    pub(super) weather: Vec<Vec<Weather>>,
    /// What the question says.
    pub(super) request: Request,
    /// Numbers of the calls, from 1, that fail with 503.
    pub(super) outages: Vec<u32>,
}

/// What the question asks for; the policy knows all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    /// Where the traveller lives.
    pub(super) start: String,
    /// The first day.
    pub(super) first: Date,
    /// Days of the trip.
    pub(super) num_days: usize,
    /// The rule by hotel price holds on every day, not on the second alone.
    pub(super) is_tiered_daily: bool,
    /// Travel, opening days and weather count.
    pub(super) travels: bool,
    /// Bound of the total cost.
    pub(super) budget: Option<u32>,
}

/// A city and what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct City {
    pub(super) name: String,
    pub(super) region: String,
    pub(super) population: u32,
    pub(super) hotels: Vec<Place>,
    pub(super) restaurants: Vec<Place>,
    pub(super) attractions: Vec<Attraction>,
    /// Ways to get about within it: (mode, price).
    pub(super) transport: Vec<(String, u32)>,
}

/// A hotel or a restaurant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) price: u32,
    pub(super) rating: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attraction {
    pub(super) name: String,
    pub(super) ticket: u32,
    /// Open on weekday w, Monday 0: bit w.
    pub(super) open: u8,
    pub(super) is_outdoor: bool,
}

/// A direct connection, running daily.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Link {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) mode: String,
    pub(super) number: String,
    pub(super) depart: u32,
    pub(super) arrive: u32,
    pub(super) price: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Weather {
    Sunny,
    Cloudy,
    Rain,
}

impl Weather {
    pub(super) const ALL: [Weather; 3] = [Weather::Sunny, Weather::Cloudy, Weather::Rain];

    pub(super) fn name(self) -> &'static str {
        match self {
            Weather::Sunny => "sunny",
            Weather::Cloudy => "cloudy",
            Weather::Rain => "rain",
        }
    }
}

impl World {
    /// The city of this name.
    pub(super) fn city(&self, name: &str) -> Option<usize> {
        self.cities.iter().position(|city| city.name == name)
    }
}

/// A world in which some plan keeps every rule of `profile`; `None` where the draw has none.
pub(super) fn draw_world(profile: &Profile, draw: &mut Draw) -> Option<World> {
    let mut names = Names::default();
    let num_days = profile.num_days;
    let cities: Vec<City> = (0..=profile.num_cities)
        .map(|_| draw_city(profile, &mut names, draw))
        .collect();
    let mut world = World {
        links: draw_links(cities.len(), draw),
        weather: (0..cities.len())
            .map(|_| (0..num_days).map(|_| draw.choose(&Weather::ALL)).collect())
            .collect(),
        request: Request {
            start: cities[draw.index(cities.len())].name.clone(),
            first: Date::draw(num_days, draw),
            num_days,
            is_tiered_daily: profile.is_tiered_daily,
            travels: profile.travels,
            budget: None,
        },
        outages: (0..profile.num_outages)
            .map(|_| draw.between(1..=60) as u32)
            .collect(),
        cities,
    };
    world.outages.sort_unstable();
    world.outages.dedup();
    let (optimum, _) = cheapest_plan(&world)?;
    if profile.slack_percent.is_none() {
        // A world where most plans are right asks for no look at prices.
        let (num_kept, num_plans) = count_plans(&world)?;
        if num_kept * profile.min_plans_per_right > num_plans {
            return None;
        }
    }
    world.request.budget = profile
        .slack_percent
        .map(|slack| optimum * (100 + slack) / 100);
    Some(world)
}

fn draw_city(profile: &Profile, names: &mut Names, draw: &mut Draw) -> City {
    let mut city = City {
        name: names.name(draw),
        region: draw.choose(&["north", "south", "east", "west"]).to_string(),
        population: tens(draw, 10, 900) * 1000,
        hotels: (0..profile.num_hotels)
            .map(|_| Place {
                name: names.place(draw, &["Hotel", "Inn", "House", "Lodge"]),
                price: hotel_price(draw),
                rating: draw.between(25..=50) as u32,
            })
            .collect(),
        restaurants: (0..profile.num_restaurants)
            .map(|_| Place {
                name: names.place(draw, &["Kitchen", "Table", "Bistro", "Garden"]),
                price: tens(draw, 30, 260),
                rating: rating(profile, draw),
            })
            .collect(),
        attractions: (0..profile.num_attractions)
            .map(|_| Attraction {
                name: names.place(draw, &["Museum", "Tower", "Park", "Gallery"]),
                ticket: tens(draw, 20, 300),
                open: (0..7).fold(0, |open, weekday| {
                    open | (u8::from(draw.index(3) > 0) << weekday)
                }),
                is_outdoor: draw.coin(),
            })
            .collect(),
        transport: ["bus", "metro", "taxi"]
            .map(|mode| (mode.to_string(), draw.between(2..=40) as u32))
            .to_vec(),
    };
    if profile.has_decoys {
        plant_decoys(&mut city, draw);
    }
    city
}

/// Makes one of each kind the cheapest by far and forbids it by a hair.
fn plant_decoys(city: &mut City, draw: &mut Draw) {
    let at = draw.index(city.hotels.len());
    city.hotels[at].price = draw.between(190..=199) as u32;
    let at = draw.index(city.restaurants.len());
    city.restaurants[at].price = 20;
    city.restaurants[at].rating = draw.choose(&[31, 39]);
    let at = draw.index(city.attractions.len());
    city.attractions[at].ticket = 10;
    city.attractions[at].open = 1 << draw.index(7);
}

/// A multiple of 10 from `low` to `high`.
fn tens(draw: &mut Draw, low: i64, high: i64) -> u32 {
    draw.between(low / 10..=high / 10) as u32 * 10
}

/// One hotel in four in each band, those below the lowest included.
fn hotel_price(draw: &mut Draw) -> u32 {
    let (low, high) = draw.choose(&[(120, 190), (200, 490), (500, 790), (800, 1400)]);
    tens(draw, low, high)
}

fn rating(profile: &Profile, draw: &mut Draw) -> u32 {
    let (low, high) = match draw.index(100) {
        share if share < profile.good_percent => (40, 49),
        share if share < 2 * profile.good_percent => (32, 39),
        _ => (20, 31),
    };
    draw.between(low..=high) as u32
}

/// Between each two cities, either way, up to two connections.
fn draw_links(num_cities: usize, draw: &mut Draw) -> Vec<Link> {
    let mut links: Vec<Link> = Vec::new();
    for from in 0..num_cities {
        for to in (0..num_cities).filter(|&to| to != from) {
            for _ in 0..draw.index(3) {
                let (mode, letter, fares) = draw.choose(&[
                    ("train", 'G', (60, 300)),
                    ("bus", 'B', (30, 150)),
                    ("plane", 'F', (250, 700)),
                ]);
                let depart = draw.between(60..=220) as u32 * 5;
                links.push(Link {
                    from,
                    to,
                    mode: mode.to_string(),
                    number: format!("{letter}{}", 100 + links.len()),
                    depart,
                    arrive: depart + draw.between(8..=60) as u32 * 5,
                    price: tens(draw, fares.0, fares.1),
                });
            }
        }
    }
    links
}
