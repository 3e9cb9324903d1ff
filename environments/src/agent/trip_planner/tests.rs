//! The checker against one written a second time from the question's words, and what must not pass it.

use serde_json::{Value, json};

use super::desk::{Desk, OUTAGE};
use super::optimum::{cheapest_plan, count_plans};
use super::plan::{Day, clauses};
use super::rules::tier_allows;
use super::world::{Attraction, City, Place, Weather, World, draw_world};
use super::{Profile, TripPlanner, profile};
use crate::draw::{Draw, Purpose};
use crate::instance::TaskFamily;
use crate::session::{Called, Session};
use crate::{AssistantTurn, Episode, Family, FamilyKey, Next, Split, Task, ToolCall};

fn task(level: u32, seed: u64) -> Task {
    Family::task(&key(level, seed))
}

fn key(level: u32, seed: u64) -> FamilyKey {
    FamilyKey {
        family: Family::TripPlanner,
        split: Split::Train,
        level,
        seed,
    }
}

fn world_of(task: &Task) -> World {
    serde_json::from_str(&task.gold).expect("a world")
}

/// Worlds of three cities, small enough to try every plan.
fn small_worlds(change: impl Fn(&mut Profile)) -> impl Iterator<Item = World> {
    let mut small = profile(1);
    change(&mut small);
    (0..40).filter_map(move |seed| {
        draw_world(&small, &mut Draw::new(Purpose::Instance, &key(1, seed), 0))
    })
}

/// Every structurally valid plan with the places it names.
fn all_plans(world: &World) -> Vec<Vec<(Day, usize, [usize; 4])>> {
    let mut plans: Vec<Vec<(Day, usize, [usize; 4])>> = vec![Vec::new()];
    for day in 0..world.request.num_days {
        let mut longer = Vec::new();
        for plan in &plans {
            for (c, city) in world.cities.iter().enumerate() {
                if city.name == world.request.start || plan.iter().any(|(_, used, _)| *used == c) {
                    continue;
                }
                for places in all_places(city) {
                    let [h, r, a, s] = places;
                    let entry = Day {
                        time: world.request.first.plus(day).iso(),
                        city: city.name.clone(),
                        hotel: city.hotels[h].name.clone(),
                        afternoon_restaurant: city.restaurants[r].name.clone(),
                        afternoon_attraction: city.attractions[a].name.clone(),
                        evening_restaurant: city.restaurants[s].name.clone(),
                    };
                    let mut plan = plan.clone();
                    plan.push((entry, c, places));
                    longer.push(plan);
                }
            }
        }
        plans = longer;
    }
    plans
}

fn all_places(city: &City) -> Vec<[usize; 4]> {
    let mut all = Vec::new();
    for h in 0..city.hotels.len() {
        for r in 0..city.restaurants.len() {
            for a in 0..city.attractions.len() {
                for s in (0..city.restaurants.len()).filter(|&s| s != r) {
                    all.push([h, r, a, s]);
                }
            }
        }
    }
    all
}

/// Cost of a plan that keeps all rules but the budget, worked out from the question's words.
fn cost_if_right(world: &World, plan: &[(Day, usize, [usize; 4])]) -> Option<u32> {
    let mut total = 0;
    let mut at = world.request.start.clone();
    for (day, (entry, c, [h, r, a, s])) in plan.iter().enumerate() {
        let city = &world.cities[*c];
        let (hotel, sight) = (&city.hotels[*h], &city.attractions[*a]);
        let (lunch, dinner) = (&city.restaurants[*r], &city.restaurants[*s]);
        let best = lunch.rating.max(dinner.rating);
        let worst = lunch.rating.min(dinner.rating);
        let is_fine = if hotel.price >= 800 {
            lunch.price + dinner.price < 350 && worst >= 40 && sight.ticket < 120
        } else if hotel.price >= 500 {
            best >= 40 && sight.ticket < 180
        } else {
            hotel.price >= 200 && best >= 32
        };
        if !is_fine && (day == 1 || world.request.is_tiered_daily) {
            return None;
        }
        if world.request.travels {
            let weekday = (world.request.first.weekday() + day) % 7;
            let is_wet = world.weather[*c][day] == Weather::Rain;
            if sight.open & (1 << weekday) == 0 || (sight.is_outdoor && is_wet) {
                return None;
            }
            let links = world.links.iter().filter(|link| {
                world.cities[link.from].name == at && world.cities[link.to].name == entry.city
            });
            let in_time = links.filter(|link| link.depart >= 360 && link.arrive <= 720);
            total += in_time.map(|link| link.price).min()?;
            at.clone_from(&entry.city);
        }
        total += hotel.price + lunch.price + dinner.price + sight.ticket;
    }
    Some(total)
}

#[test]
fn checker_count_and_optimum_agree_with_trying_every_plan() {
    let change = |profile: &mut Profile| {
        profile.is_tiered_daily = true;
        profile.good_percent = 25;
        profile.slack_percent = Some(20);
    };
    let dear = small_worlds(change).take(2);
    let travelling = small_worlds(|profile| {
        change(profile);
        profile.travels = true;
    })
    .take(2);
    for world in small_worlds(|_| ()).take(2).chain(dear).chain(travelling) {
        let plans = all_plans(&world);
        let budget = world.request.budget.unwrap_or(u32::MAX);
        let mut num_kept = 0;
        let mut least = u32::MAX;
        for plan in &plans {
            let cost = cost_if_right(&world, plan);
            least = least.min(cost.unwrap_or(u32::MAX));
            let is_right = cost.is_some_and(|cost| cost <= budget);
            num_kept += u128::from(is_right);
            let days: Vec<Day> = plan.iter().map(|(day, ..)| day.clone()).collect();
            let is_passed = clauses(&world, &days).iter().all(|(_, is_met)| *is_met);
            assert_eq!(is_passed, is_right, "{days:?} in {world:?}");
        }
        assert_eq!(
            count_plans(&world),
            Some((num_kept, plans.len() as u128)),
            "{world:?}"
        );
        let (optimum, _) = cheapest_plan(&world).expect("a plan");
        assert_eq!(optimum, least, "{world:?}");
    }
}

#[test]
fn the_bands_by_hotel_price_are_half_open() {
    let place = |price, rating| Place {
        name: String::new(),
        price,
        rating,
    };
    // Hotel, two restaurants (price, rating), ticket.
    for (hotel, lunch, dinner, ticket, is_allowed) in [
        (199, (50, 50), (50, 50), 0, false),
        (200, (50, 20), (50, 32), 300, true),
        (499, (50, 31), (50, 31), 0, false),
        (500, (50, 20), (50, 39), 0, false),
        (500, (300, 20), (300, 40), 179, true),
        (799, (300, 20), (300, 40), 180, false),
        (800, (174, 40), (175, 40), 119, true),
        (800, (175, 40), (175, 40), 119, false),
        (800, (100, 40), (100, 39), 119, false),
        (800, (100, 40), (100, 40), 120, false),
        (5000, (100, 40), (100, 40), 119, true),
    ] {
        let tables = [&place(lunch.0, lunch.1), &place(dinner.0, dinner.1)];
        let attraction = Attraction {
            ticket,
            ..Attraction::default()
        };
        let found = tier_allows(&place(hotel, 0), tables, &attraction);
        assert_eq!(found, is_allowed, "{hotel} {lunch:?} {dinner:?} {ticket}");
    }
}

/// Clauses of `plan` that are not met.
fn broken(world: &World, plan: &[Day]) -> Vec<String> {
    let clauses = clauses(world, plan).into_iter();
    clauses
        .filter_map(|(name, is_met)| (!is_met).then_some(name))
        .collect()
}

#[test]
fn a_plan_a_little_off_breaks_the_clause_it_is_off_by() {
    for seed in 0..20 {
        let mut world = world_of(&task(5, seed));
        let (optimum, plan) = cheapest_plan(&world).expect("a plan");
        assert_eq!(broken(&world, &plan), [""; 0]);
        let changed = |change: &dyn Fn(&mut Vec<Day>)| {
            let mut plan = plan.clone();
            change(&mut plan);
            broken(&world, &plan)
        };
        let has = |found: Vec<String>, clause: &str| {
            assert!(
                found.iter().any(|name| name == clause),
                "{clause}: {found:?}"
            );
        };
        has(changed(&|plan| plan[0].time.push('0')), "dates");
        has(changed(&|plan| plan.truncate(2)), "dates");
        has(changed(&|plan| plan.clear()), "dates");
        has(changed(&|plan| plan.push(plan[0].clone())), "dates");
        has(
            changed(&|plan| plan[0].city.clone_from(&world.request.start)),
            "away",
        );
        has(
            changed(&|plan| plan[0].hotel = plan[1].hotel.clone()),
            "located",
        );
        has(changed(&|plan| plan[0].hotel.push(' ')), "located");
        has(
            changed(&|plan| plan[1].evening_restaurant = plan[1].afternoon_restaurant.clone()),
            "restaurants_differ",
        );
        has(
            changed(&|plan| {
                let time = plan[0].time.clone();
                plan[0] = Day {
                    time,
                    ..plan[1].clone()
                };
            }),
            "cities_differ",
        );
        world.request.budget = Some(optimum);
        assert_eq!(broken(&world, &plan), [""; 0]);
        world.request.budget = Some(optimum - 1);
        assert_eq!(broken(&world, &plan), ["budget"]);
        world.links.clear();
        assert_eq!(broken(&world, &plan), ["travel", "budget"]);
    }
}

#[test]
fn lists_tell_names_and_nothing_else() {
    let world = world_of(&task(6, 0));
    let city = world.cities[0].name.clone();
    let mut desk = Desk::new(World {
        outages: Vec::new(),
        ..world
    });
    for (tool, arguments) in [
        ("get_all_cities", json!({})),
        ("get_all_hotels_by_city", json!({"city": city})),
        ("get_all_restaurants_by_city", json!({"city": city})),
        ("get_all_attractions_by_city", json!({"city": city})),
    ] {
        let output = called(&mut desk, tool, &arguments);
        assert!(!output.contains(|c: char| c.is_ascii_digit()), "{output}");
        let names: Vec<String> = serde_json::from_str(&output).expect("a list");
        assert!(names.len() >= 4, "{output}");
    }
}

fn called(desk: &mut Desk, tool: &str, arguments: &Value) -> String {
    match desk.call(tool, arguments.as_object().expect("an object")) {
        Ok(Called::Output(output)) => output.content,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_call_that_meets_an_outage_succeeds_when_repeated() {
    let world = World {
        outages: vec![2, 4],
        ..world_of(&task(1, 0))
    };
    let mut desk = Desk::new(world);
    let all = called(&mut desk, "get_all_cities", &json!({}));
    assert_eq!(called(&mut desk, "get_all_cities", &json!({})), OUTAGE);
    assert_eq!(called(&mut desk, "get_all_cities", &json!({})), all);
    // A submission that fails is not handed in.
    let submitted = called(&mut desk, "submit_result", &json!({"answer_text": "[]"}));
    assert_eq!(submitted, OUTAGE);
}

#[test]
fn errors_say_what_to_mend_and_end_nothing() {
    let task = task(2, 0);
    let mut episode = Episode::open(&task).expect("a session");
    for (tool, arguments, words) in [
        (
            "get_all_hotels_by_city",
            json!({"city": "Nowhere"}),
            "there is no city called \"Nowhere\"",
        ),
        (
            "get_infos_by_hotel",
            json!({"info_keywords": ["stars"], "hotel": "X"}),
            "no hotel called",
        ),
        (
            "get_city_by_hotel",
            json!({"hotel": "x".repeat(1 << 20)}),
            "no hotel called \"xxx",
        ),
        (
            "submit_result",
            json!({"answer_text": "day 1: rest"}),
            "no JSON list of days",
        ),
        (
            "submit_result",
            json!({"answer_text": "[".repeat(10_000)}),
            "no JSON list of days",
        ),
        (
            "submit_result",
            json!({"answer_text": " ".repeat(20_000)}),
            "longer than 16384 bytes",
        ),
        (
            "submit_result",
            json!({"answer_text": "[{\"time\": \"2025-10-01\"}]"}),
            "missing field",
        ),
        (
            "get_weather_by_city_date",
            json!({"city": world_of(&task).cities[0].name, "date": "today"}),
            "no forecast",
        ),
    ] {
        let turn = AssistantTurn {
            content: String::new(),
            calls: vec![ToolCall {
                id: "1".to_string(),
                name: tool.to_string(),
                arguments: arguments.to_string(),
            }],
        };
        match episode.step(&turn).expect("no fault") {
            Next::Tools(messages) => {
                assert!(messages[0].is_error, "{messages:?}");
                assert!(messages[0].content.contains(words), "{messages:?}");
                assert!(messages[0].content.len() < 300, "{messages:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(episode.grade().reward(), Some(0.0));
}

#[test]
fn names_are_never_ambiguous() {
    for level in TripPlanner.levels() {
        let world = world_of(&task(level, 1));
        let mut names: Vec<&String> = Vec::new();
        for city in &world.cities {
            names.push(&city.name);
            names.extend(city.hotels.iter().chain(&city.restaurants).map(|p| &p.name));
            names.extend(city.attractions.iter().map(|place| &place.name));
        }
        let num_names = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), num_names);
    }
}

#[test]
fn random_plans_pass_ever_less_often() {
    let mut before = 1.0;
    for level in TripPlanner.levels() {
        let share = |seed| {
            let (kept, all) = count_plans(&world_of(&task(level, seed))).expect("plans");
            kept as f64 / all as f64
        };
        let mean = (0..20).map(share).sum::<f64>() / 20.0;
        assert!(mean * 1.5 < before, "level {level}: {mean} after {before}");
        before = mean;
    }
}

#[test]
fn sessions_of_one_task_share_nothing() {
    let task = task(6, 3);
    let mut episodes: Vec<Episode> = (0..300)
        .map(|_| Episode::open(&task).expect("a session"))
        .collect();
    // Turn by turn in all of them; the last one hands in what another task's solution says.
    let wrong = super::tests::task(6, 4)
        .witness
        .concat()
        .pop()
        .expect("a submission");
    let (last, turns) = task.witness.split_last().expect("turns");
    for calls in turns {
        for episode in &mut episodes {
            let turn = AssistantTurn {
                content: String::new(),
                calls: calls.clone(),
            };
            assert!(matches!(episode.step(&turn), Ok(Next::Tools(_))));
        }
    }
    for (index, episode) in episodes.iter_mut().enumerate() {
        let calls = if index == 7 {
            vec![wrong.clone()]
        } else {
            last.clone()
        };
        let turn = AssistantTurn {
            content: String::new(),
            calls,
        };
        assert!(matches!(episode.step(&turn), Ok(Next::Done(_))));
        let reward = if index == 7 { 0.0 } else { 1.0 };
        assert_eq!(episode.grade().reward(), Some(reward), "{index}");
    }
}
