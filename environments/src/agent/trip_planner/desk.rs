//! The session of a trip: the report's fifteen tools over a [`World`]. All but `submit_result` only read.

use serde_json::{Map, Value, json};

use super::date::WEEKDAYS;
use super::plan::{Day, clauses, read};
use super::world::{City, World};
use crate::session::{Called, Session};
use crate::tool::{ToolDef, ToolOutput};
use crate::verdict::{Fault, Verdict};

/// What a call gets that meets an outage.
pub(super) const OUTAGE: &str = "Error: 503 Service Unavailable. Try the same call again.";

/// The tools, as the policy sees them.
pub(super) fn tools() -> Vec<ToolDef> {
    let city = ("city", "string", "name of a city");
    let attraction = ("attraction", "string", "name of an attraction");
    let hotel = ("hotel", "string", "name of a hotel");
    let restaurant = ("restaurant", "string", "name of a restaurant");
    vec![
        ToolDef::new(
            "get_all_attractions_by_city",
            "Names of a city's attractions.",
            &[city],
        ),
        ToolDef::new("get_all_cities", "Names of all cities.", &[]),
        ToolDef::new(
            "get_all_hotels_by_city",
            "Names of a city's hotels.",
            &[city],
        ),
        ToolDef::new(
            "get_all_restaurants_by_city",
            "Names of a city's restaurants.",
            &[city],
        ),
        ToolDef::new(
            "get_city_by_attraction",
            "The city an attraction is in.",
            &[attraction],
        ),
        ToolDef::new("get_city_by_hotel", "The city a hotel is in.", &[hotel]),
        ToolDef::new(
            "get_city_by_restaurant",
            "The city a restaurant is in.",
            &[restaurant],
        ),
        ToolDef::new(
            "get_city_transport",
            "Ways to get about within a city.",
            &[city],
        ),
        infos("attraction", "ticket, open_days, kind"),
        infos("city", "region, population"),
        infos("hotel", "price, rating"),
        infos("restaurant", "price, rating"),
        ToolDef::new(
            "get_inter_city_transport",
            "Direct connections from one city to another.",
            &[
                ("from_city", "string", "name of a city"),
                ("to_city", "string", "name of a city"),
            ],
        ),
        ToolDef::new(
            "get_weather_by_city_date",
            "The weather in a city on a day of the trip.",
            &[city, ("date", "string", "such as 2025-10-01")],
        ),
        ToolDef::new(
            "submit_result",
            "Hands in the plan and ends the task.",
            &[("answer_text", "string", "the plan: a JSON list")],
        ),
    ]
}

fn infos(kind: &str, keywords: &str) -> ToolDef {
    let mut tool = ToolDef::new(
        &format!("get_infos_by_{kind}"),
        &format!("Chosen facts about one {kind}."),
        &[(kind, "string", &format!("name of the {kind}"))],
    );
    tool.parameters["properties"]["info_keywords"] = json!({
        "type": "array",
        "items": {"type": "string"},
        "maxItems": 8,
        "description": format!("which facts: of {keywords}"),
    });
    tool.parameters["required"] = json!(["info_keywords", kind]);
    tool
}

/// See the module.
pub(super) struct Desk {
    world: World,
    num_calls: u32,
    plan: Option<Vec<Day>>,
}

impl Desk {
    pub(super) fn new(world: World) -> Desk {
        Desk {
            world,
            num_calls: 0,
            plan: None,
        }
    }

    /// The result of a reading call as JSON text.
    fn answer(&self, tool: &str, arguments: &Map<String, Value>) -> Result<String, String> {
        let text = |name: &str| arguments.get(name).and_then(Value::as_str).unwrap_or("");
        let city = |name: &str| self.city(text(name));
        Ok(match tool {
            "get_all_cities" => names(self.world.cities.iter().map(|city| &city.name)),
            "get_all_attractions_by_city" => {
                names(city("city")?.attractions.iter().map(|place| &place.name))
            }
            "get_all_hotels_by_city" => names(city("city")?.hotels.iter().map(|place| &place.name)),
            "get_all_restaurants_by_city" => {
                names(city("city")?.restaurants.iter().map(|place| &place.name))
            }
            "get_city_by_attraction" => self.city_with("attraction", text("attraction"))?,
            "get_city_by_hotel" => self.city_with("hotel", text("hotel"))?,
            "get_city_by_restaurant" => self.city_with("restaurant", text("restaurant"))?,
            "get_city_transport" => {
                let ways = city("city")?.transport.iter();
                Value::from_iter(ways.map(|(mode, price)| json!({"mode": mode, "price": price})))
                    .to_string()
            }
            "get_inter_city_transport" => self.connections(text("from_city"), text("to_city"))?,
            "get_weather_by_city_date" => self.weather(text("city"), text("date"))?,
            _ => {
                let kind = tool.strip_prefix("get_infos_by_").unwrap_or(tool);
                chosen(&self.infos(kind, text(kind))?, arguments)?
            }
        })
    }

    fn city(&self, name: &str) -> Result<&City, String> {
        let known = self.world.cities.iter().find(|city| city.name == name);
        known.ok_or_else(|| unknown("city", name))
    }

    fn city_with(&self, kind: &str, name: &str) -> Result<String, String> {
        let has = |city: &&City| match kind {
            "attraction" => city.attractions.iter().any(|place| place.name == name),
            "hotel" => city.hotels.iter().any(|place| place.name == name),
            _ => city.restaurants.iter().any(|place| place.name == name),
        };
        let city = self.world.cities.iter().find(has);
        let city = city.ok_or_else(|| unknown(kind, name))?;
        Ok(json!({"city": city.name}).to_string())
    }

    /// All facts about the one of `kind` called `name`, as (keyword, JSON text).
    fn infos(&self, kind: &str, name: &str) -> Result<Vec<(&'static str, String)>, String> {
        let mut cities = self.world.cities.iter();
        let facts = match kind {
            "city" => cities.find(|city| city.name == name).map(|city| {
                vec![
                    ("region", json!(city.region).to_string()),
                    ("population", city.population.to_string()),
                ]
            }),
            "attraction" => cities
                .flat_map(|city| &city.attractions)
                .find(|place| place.name == name)
                .map(|place| {
                    let days = (0..7).filter(|day| (place.open >> day) & 1 == 1);
                    let kind = if place.is_outdoor {
                        "outdoor"
                    } else {
                        "indoor"
                    };
                    vec![
                        ("ticket", place.ticket.to_string()),
                        (
                            "open_days",
                            Value::from_iter(days.map(|day| WEEKDAYS[day])).to_string(),
                        ),
                        ("kind", json!(kind).to_string()),
                    ]
                }),
            _ => cities
                .flat_map(|city| match kind {
                    "hotel" => &city.hotels,
                    _ => &city.restaurants,
                })
                .find(|place| place.name == name)
                .map(|place| {
                    vec![
                        ("price", place.price.to_string()),
                        (
                            "rating",
                            format!("{}.{}", place.rating / 10, place.rating % 10),
                        ),
                    ]
                }),
        };
        facts.ok_or_else(|| unknown(kind, name))
    }

    fn connections(&self, from: &str, to: &str) -> Result<String, String> {
        let position = |name: &str| self.world.city(name).ok_or_else(|| unknown("city", name));
        let (from, to) = (position(from)?, position(to)?);
        let links = self.world.links.iter();
        let clock = |minutes: u32| format!("{:02}:{:02}", minutes / 60, minutes % 60);
        let between = links.filter(|link| (link.from, link.to) == (from, to));
        Ok(Value::from_iter(between.map(|link| {
            json!({
                "mode": link.mode,
                "number": link.number,
                "depart": clock(link.depart),
                "arrive": clock(link.arrive),
                "price": link.price,
            })
        }))
        .to_string())
    }

    fn weather(&self, city: &str, date: &str) -> Result<String, String> {
        let at = self.world.city(city).ok_or_else(|| unknown("city", city))?;
        let request = &self.world.request;
        let mut days = 0..request.num_days;
        let day = days.find(|&day| request.first.plus(day).iso() == date);
        let day = day.ok_or_else(|| format!("Error: there is no forecast for {date:?}."))?;
        Ok(json!({"weather": self.world.weather[at][day].name()}).to_string())
    }
}

impl Session for Desk {
    fn call(&mut self, name: &str, arguments: &Map<String, Value>) -> Result<Called, Fault> {
        self.num_calls += 1;
        if self.world.outages.contains(&self.num_calls) {
            return Ok(ToolOutput::error(OUTAGE).into());
        }
        if name == "submit_result" {
            let text = arguments.get("answer_text").and_then(Value::as_str);
            return Ok(match read(text.unwrap_or("")) {
                Ok(plan) => {
                    self.plan = Some(plan);
                    Called::Final(ToolOutput::ok("The plan is handed in."))
                }
                Err(problem) => ToolOutput::error(problem).into(),
            });
        }
        Ok(match self.answer(name, arguments) {
            Ok(result) => ToolOutput::ok(result).into(),
            Err(problem) => ToolOutput::error(problem).into(),
        })
    }

    /// Only what was handed in counts; text is no answer.
    fn grade(&mut self, _: &str) -> Result<Verdict, Fault> {
        let Some(plan) = &self.plan else {
            return Ok(Verdict::of_clauses(
                None,
                [("submitted".to_string(), false)],
            ));
        };
        let extracted = serde_json::to_string(plan).ok();
        let submitted = [("submitted".to_string(), true)];
        let clauses = submitted.into_iter().chain(clauses(&self.world, plan));
        Ok(Verdict::of_clauses(extracted, clauses))
    }
}

fn names<'a>(names: impl Iterator<Item = &'a String>) -> String {
    Value::from_iter(names.map(String::as_str)).to_string()
}

fn unknown(kind: &str, name: &str) -> String {
    // A policy may call with a text of any length; its error shows the beginning.
    let shown: String = name.chars().take(60).collect();
    format!("Error: there is no {kind} called {shown:?}.")
}

/// The asked-for ones of `facts` as a JSON object.
fn chosen(
    facts: &[(&'static str, String)],
    arguments: &Map<String, Value>,
) -> Result<String, String> {
    let keywords = arguments.get("info_keywords").and_then(Value::as_array);
    let mut fields = Vec::new();
    for keyword in keywords.into_iter().flatten().filter_map(Value::as_str) {
        let known = facts.iter().find(|(name, _)| *name == keyword);
        let Some((name, value)) = known else {
            let names: Vec<&str> = facts.iter().map(|(name, _)| *name).collect();
            return Err(format!(
                "Error: unknown keyword; known are {}.",
                names.join(", ")
            ));
        };
        let field = format!("\"{name}\":{value}");
        if !fields.contains(&field) {
            fields.push(field);
        }
    }
    Ok(format!("{{{}}}", fields.join(",")))
}
