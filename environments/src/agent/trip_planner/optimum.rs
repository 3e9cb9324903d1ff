//! The cheapest plan, and how many of all structurally valid plans keep the rules; both exact.
//!
//! A plan is a sequence of different cities other than the start, and in each a hotel, two different restaurants in
//! order, and an attraction. Given the cities the days are independent, so per city and day only the costs of the
//! allowed choices matter:
//!
//! ```text
//! best(d, S, c) = min over c' in S \ {c} of best(d - 1, S \ {c}, c') + fare(c', c) + cheapest choice of day d in c
//! ```

use std::collections::BTreeMap;

use super::plan::Day;
use super::rules::{day_cost, fare, is_dry, is_open, is_tiered, tier_allows};
use super::world::World;

/// A choice of hotel, afternoon restaurant, attraction and evening restaurant in one city.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) cost: u32,
    places: [usize; 4],
}

/// Every choice that the rules of day `day` allow in `city`.
pub(super) fn choices(world: &World, day: usize, city: usize) -> Vec<Choice> {
    let place = &world.cities[city];
    let mut found = Vec::new();
    for (a, attraction) in place.attractions.iter().enumerate() {
        let counts = world.request.travels;
        if counts && !(is_open(world, day, attraction) && is_dry(world, day, city, attraction)) {
            continue;
        }
        for (h, hotel) in place.hotels.iter().enumerate() {
            for (r, afternoon) in place.restaurants.iter().enumerate() {
                for (s, evening) in place.restaurants.iter().enumerate() {
                    let tables = [afternoon, evening];
                    let is_tier_kept =
                        !is_tiered(world, day) || tier_allows(hotel, tables, attraction);
                    if r != s && is_tier_kept {
                        found.push(Choice {
                            cost: day_cost(hotel, tables, attraction),
                            places: [h, r, a, s],
                        });
                    }
                }
            }
        }
    }
    found
}

/// `choice` as an entry of a plan.
pub(super) fn entry(world: &World, day: usize, city: usize, choice: &Choice) -> Day {
    let place = &world.cities[city];
    let [h, r, a, s] = choice.places;
    Day {
        time: world.request.first.plus(day).iso(),
        city: place.name.clone(),
        hotel: place.hotels[h].name.clone(),
        afternoon_restaurant: place.restaurants[r].name.clone(),
        afternoon_attraction: place.attractions[a].name.clone(),
        evening_restaurant: place.restaurants[s].name.clone(),
    }
}

/// The least cost of a plan that keeps every rule but the budget, and such a plan.
pub(super) fn cheapest_plan(world: &World) -> Option<(u32, Vec<Day>)> {
    let num_days = world.request.num_days;
    let start = world.city(&world.request.start)?;
    let best: Vec<Vec<Option<Choice>>> = (0..num_days)
        .map(|day| {
            (0..world.cities.len())
                .map(|city| {
                    choices(world, day, city)
                        .into_iter()
                        .min_by_key(|choice| choice.cost)
                })
                .collect()
        })
        .collect();
    // Ways to have spent the days so far: (visited cities, last city) -> (cost, route).
    let mut ways = BTreeMap::from([((1u32 << start, start), (0u32, Vec::new()))]);
    for choices in &best {
        let mut longer: BTreeMap<(u32, usize), (u32, Vec<usize>)> = BTreeMap::new();
        for (&(visited, last), (spent, route)) in &ways {
            for (city, choice) in choices.iter().enumerate() {
                let (Some(choice), Some(fare)) = (choice, fare(world, last, city)) else {
                    continue;
                };
                if visited >> city & 1 == 1 {
                    continue;
                }
                let spent = spent + fare + choice.cost;
                let key = (visited | 1 << city, city);
                if longer.get(&key).is_none_or(|(known, _)| spent < *known) {
                    let route = route.iter().copied().chain([city]).collect();
                    longer.insert(key, (spent, route));
                }
            }
        }
        ways = longer;
    }
    let (spent, route) = ways.into_values().min()?;
    let plan = route.iter().enumerate().map(|(day, &city)| {
        let choice = best[day][city].as_ref()?;
        Some(entry(world, day, city, choice))
    });
    Some((spent, plan.collect::<Option<_>>()?))
}

/// (plans that keep every rule, structurally valid plans).
pub(super) fn count_plans(world: &World) -> Option<(u128, u128)> {
    let start = world.city(&world.request.start)?;
    let num_days = world.request.num_days;
    // How many choices there are at each cost; where no budget counts, cost is no matter.
    let costs: Vec<Vec<Costs>> = (0..num_days)
        .map(|day| {
            (0..world.cities.len())
                .map(|city| {
                    let mut costs = Costs::new();
                    for choice in choices(world, day, city) {
                        let cost = world.request.budget.map_or(0, |_| choice.cost);
                        *costs.entry(cost).or_default() += 1;
                    }
                    costs
                })
                .collect()
        })
        .collect();
    let cheapest = |costs: &Vec<Costs>| costs.iter().filter_map(|c| c.keys().next().copied()).min();
    let floors: Vec<u32> = costs.iter().map(cheapest).collect::<Option<_>>()?;
    let count = Count {
        world,
        costs,
        floors,
    };
    let num_kept = count.extend(0, start, 1 << start, &Costs::from([(0, 1)]));
    let mut num_plans = 1u128;
    for day in 0..num_days {
        let place = &world.cities[usize::from(start == 0)];
        let num_tables = place.restaurants.len();
        let per_city = place.hotels.len() * num_tables * (num_tables - 1) * place.attractions.len();
        num_plans *= ((world.cities.len() - 1 - day) * per_city) as u128;
    }
    Some((num_kept, num_plans))
}

/// Cost -> number of ways.
type Costs = BTreeMap<u32, u128>;

struct Count<'a> {
    world: &'a World,
    costs: Vec<Vec<Costs>>,
    /// Least cost of each day in any city.
    floors: Vec<u32>,
}

impl Count<'_> {
    /// Ways to go on after `day` days that cost `spent` so far and ended in `last`.
    fn extend(&self, day: usize, last: usize, visited: u32, spent: &Costs) -> u128 {
        if day == self.floors.len() {
            return spent.values().sum();
        }
        let rest: u32 = self.floors[day + 1..].iter().sum();
        let is_within = |cost: u32| self.world.request.budget.is_none_or(|b| cost + rest <= b);
        let mut total = 0;
        for (city, costs) in self.costs[day].iter().enumerate() {
            let Some(fare) = fare(self.world, last, city) else {
                continue;
            };
            if visited >> city & 1 == 1 {
                continue;
            }
            let mut longer = Costs::new();
            for (cost, ways) in spent {
                let sums = costs.iter().map(|(more, w)| (cost + fare + more, ways * w));
                for (sum, ways) in sums.take_while(|(sum, _)| is_within(*sum)) {
                    *longer.entry(sum).or_default() += ways;
                }
            }
            if !longer.is_empty() {
                total += self.extend(day + 1, city, visited | 1 << city, &longer);
            }
        }
        total
    }
}
