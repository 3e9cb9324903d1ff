//! Solves a trip through its tools alone: the proof that it can be solved, and its worked solution.
//!
//! It knows what the question says ([`Request`]) and what calls told it, and fills a [`World`] of its own from that.
//! Without a budget it looks into one city after another until it can fill every day that has a rule; with one it
//! looks up everything and takes the cheapest plan.

use serde_json::{Map, Value, json};

use super::date::WEEKDAYS;
use super::desk::{Desk, OUTAGE};
use super::optimum::{cheapest_plan, choices, entry};
use super::plan::Day;
use super::rules::is_tiered;
use super::world::{Attraction, City, Link, Place, Request, Weather, World};
use crate::session::{Called, Session};
use crate::tool::ToolCall;

/// The turns of calls that solve the trip of `world`, the submission last; `None` where they don't.
pub(super) fn solve(world: &World) -> Option<Vec<Vec<ToolCall>>> {
    let mut solver = Solver {
        desk: Desk::new(world.clone()),
        turns: Vec::new(),
        seen: World {
            request: world.request.clone(),
            ..World::default()
        },
        num_calls: 0,
    };
    let plan = solver.plan()?;
    let answer = serde_json::to_string(&plan).ok()?;
    solver.ask(&[("submit_result", json!({"answer_text": answer}))])?;
    Some(solver.turns)
}

/// A call to make: tool and arguments.
type Ask<'a> = (&'a str, Value);

struct Solver {
    desk: Desk,
    turns: Vec<Vec<ToolCall>>,
    seen: World,
    num_calls: usize,
}

impl Solver {
    fn plan(&mut self) -> Option<Vec<Day>> {
        let cities = self.ask(&[("get_all_cities", json!({}))])?;
        for name in texts(&cities[0])? {
            self.seen.cities.push(City {
                name,
                ..City::default()
            });
        }
        match self.seen.request.budget {
            None => self.first_plan(),
            Some(_) => {
                let all: Vec<usize> = self.away().collect();
                self.list(&all)?;
                self.look_into(&all)?;
                if self.seen.request.travels {
                    self.look_at_travel(&all)?;
                    self.look_at_weather(&all)?;
                }
                cheapest_plan(&self.seen).map(|(_, plan)| plan)
            }
        }
    }

    /// Every city but the start.
    fn away(&self) -> impl Iterator<Item = usize> + use<> {
        let start = self.seen.city(&self.seen.request.start);
        (0..self.seen.cities.len()).filter(move |&city| Some(city) != start)
    }

    /// A plan that keeps the hotel rule, from as few cities as it takes.
    fn first_plan(&mut self) -> Option<Vec<Day>> {
        let Request { num_days, .. } = self.seen.request;
        let (strict, free): (Vec<usize>, Vec<usize>) =
            (0..num_days).partition(|&day| is_tiered(&self.seen, day));
        let mut plan: Vec<Option<Day>> = vec![None; num_days];
        let mut unused = Vec::new();
        let mut to_fill = strict.iter().copied();
        let mut next = to_fill.next();
        let mut cities = self.away();
        while let Some(day) = next {
            let city = cities.next()?;
            self.list(&[city])?;
            self.look_into(&[city])?;
            match choices(&self.seen, day, city).first() {
                Some(choice) => {
                    plan[day] = Some(entry(&self.seen, day, city, choice));
                    next = to_fill.next();
                }
                None => unused.push(city),
            }
        }
        // The other days take any city. Those already listed cost no more calls.
        let fresh: Vec<usize> = cities
            .take(free.len().saturating_sub(unused.len()))
            .collect();
        if !fresh.is_empty() {
            self.list(&fresh)?;
        }
        for (day, city) in free.into_iter().zip(unused.into_iter().chain(fresh)) {
            let choice = choices(&self.seen, day, city).first().copied()?;
            plan[day] = Some(entry(&self.seen, day, city, &choice));
        }
        plan.into_iter().collect()
    }

    /// Lists what is in `cities`.
    fn list(&mut self, cities: &[usize]) -> Option<()> {
        let mut asks = Vec::new();
        for &city in cities {
            let name = &self.seen.cities[city].name;
            for kind in ["hotels", "restaurants", "attractions"] {
                asks.push((format!("get_all_{kind}_by_city"), json!({"city": name})));
            }
        }
        let asks: Vec<Ask> = asks.iter().map(|(t, a)| (t.as_str(), a.clone())).collect();
        let lists = self.ask(&asks)?;
        for (&city, lists) in cities.iter().zip(lists.chunks(3)) {
            let place = |name: String| Place {
                name,
                ..Place::default()
            };
            let attraction = |name: String| Attraction {
                name,
                ..Attraction::default()
            };
            let city = &mut self.seen.cities[city];
            city.hotels = texts(&lists[0])?.into_iter().map(place).collect();
            city.restaurants = texts(&lists[1])?.into_iter().map(place).collect();
            city.attractions = texts(&lists[2])?.into_iter().map(attraction).collect();
        }
        Some(())
    }

    /// Looks up the facts that the rules of the task need of everything in `cities`.
    fn look_into(&mut self, cities: &[usize]) -> Option<()> {
        let mut asks: Vec<Ask> = Vec::new();
        let facts: &[&str] = match self.seen.request.travels {
            true => &["ticket", "open_days", "kind"],
            false => &["ticket"],
        };
        for &city in cities {
            let city = &self.seen.cities[city];
            asks.extend(city.hotels.iter().map(|place| {
                let arguments = json!({"info_keywords": ["price"], "hotel": place.name});
                ("get_infos_by_hotel", arguments)
            }));
            asks.extend(city.restaurants.iter().map(|place| {
                let arguments =
                    json!({"info_keywords": ["price", "rating"], "restaurant": place.name});
                ("get_infos_by_restaurant", arguments)
            }));
            asks.extend(city.attractions.iter().map(|place| {
                let arguments = json!({"info_keywords": facts, "attraction": place.name});
                ("get_infos_by_attraction", arguments)
            }));
        }
        let mut infos = self.ask(&asks)?.into_iter();
        for &city in cities {
            let city = &mut self.seen.cities[city];
            for place in &mut city.hotels {
                place.price = number(&infos.next()?["price"])?;
            }
            for place in &mut city.restaurants {
                let info = infos.next()?;
                place.price = number(&info["price"])?;
                place.rating = info["rating"].to_string().replace('.', "").parse().ok()?;
            }
            for place in &mut city.attractions {
                let info = infos.next()?;
                place.ticket = number(&info["ticket"])?;
                place.is_outdoor = info["kind"] == "outdoor";
                for day in texts(&info["open_days"]).unwrap_or_default() {
                    let weekday = WEEKDAYS.iter().position(|known| *known == day)?;
                    place.open |= 1 << weekday;
                }
            }
        }
        Some(())
    }

    fn look_at_travel(&mut self, cities: &[usize]) -> Option<()> {
        let start = self.seen.city(&self.seen.request.start)?;
        let pairs: Vec<(usize, usize)> = [start]
            .iter()
            .chain(cities)
            .flat_map(|&from| cities.iter().map(move |&to| (from, to)))
            .filter(|(from, to)| from != to)
            .collect();
        let name = |city: usize| &self.seen.cities[city].name;
        let ask = |&(from, to): &(usize, usize)| {
            let arguments = json!({"from_city": name(from), "to_city": name(to)});
            ("get_inter_city_transport", arguments)
        };
        let asks: Vec<Ask> = pairs.iter().map(ask).collect();
        let answers = self.ask(&asks)?;
        for ((from, to), links) in pairs.into_iter().zip(answers) {
            for link in links.as_array()? {
                self.seen.links.push(Link {
                    from,
                    to,
                    mode: link["mode"].as_str()?.to_string(),
                    number: link["number"].as_str()?.to_string(),
                    depart: minutes(&link["depart"])?,
                    arrive: minutes(&link["arrive"])?,
                    price: number(&link["price"])?,
                });
            }
        }
        Some(())
    }

    fn look_at_weather(&mut self, cities: &[usize]) -> Option<()> {
        let Request {
            first, num_days, ..
        } = self.seen.request;
        let mut asks: Vec<Ask> = Vec::new();
        for &city in cities {
            let name = &self.seen.cities[city].name;
            asks.extend((0..num_days).map(|day| {
                let arguments = json!({"city": name, "date": first.plus(day).iso()});
                ("get_weather_by_city_date", arguments)
            }));
        }
        let answers = self.ask(&asks)?;
        self.seen.weather = vec![vec![Weather::Rain; num_days]; self.seen.cities.len()];
        for (&city, days) in cities.iter().zip(answers.chunks(num_days)) {
            for (day, answer) in days.iter().enumerate() {
                let told = Weather::ALL.into_iter();
                let mut told = told.filter(|weather| answer["weather"] == weather.name());
                self.seen.weather[city][day] = told.next()?;
            }
        }
        Some(())
    }

    /// Makes `asks` in one turn, and again in further turns what failed; the results as JSON, in order.
    fn ask(&mut self, asks: &[Ask]) -> Option<Vec<Value>> {
        let mut results: Vec<Option<Value>> = vec![None; asks.len()];
        while results.contains(&None) {
            let mut turn = Vec::new();
            for ((tool, arguments), result) in asks.iter().zip(&mut results) {
                if result.is_some() {
                    continue;
                }
                self.num_calls += 1;
                turn.push(ToolCall {
                    id: format!("call_{}", self.num_calls),
                    name: (*tool).to_string(),
                    arguments: arguments.to_string(),
                });
                let object: &Map<String, Value> = arguments.as_object()?;
                *result = match self.desk.call(tool, object).ok()? {
                    Called::Final(_) => Some(Value::Null),
                    Called::Output(output) if output.content == OUTAGE => None,
                    Called::Output(output) if output.is_error => return None,
                    Called::Output(output) => Some(serde_json::from_str(&output.content).ok()?),
                };
            }
            self.turns.push(turn);
        }
        results.into_iter().collect()
    }
}

fn texts(value: &Value) -> Option<Vec<String>> {
    let items = value.as_array()?.iter();
    items
        .map(|item| item.as_str().map(str::to_string))
        .collect()
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

/// Minutes after midnight of a time such as `"07:35"`. A connection that arrives the next day has hours above 23.
fn minutes(value: &Value) -> Option<u32> {
    let (hours, minutes) = value.as_str()?.split_once(':')?;
    Some(hours.parse::<u32>().ok()? * 60 + minutes.parse::<u32>().ok()?)
}
