//! The smallest task with a tool: look a key up. For trying out a run with a policy that can do little.
//!
//! Level 1 pays the call with the right key, 2 the value answered after it, 3 a value that takes two calls.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::draw::Draw;
use crate::episode::EpisodeLimits;
use crate::instance::{Domain, Instance, TaskFamily};
use crate::integer_answer;
use crate::session::{Called, Session};
use crate::tool::{ToolCall, ToolDef, ToolOutput};
use crate::verdict::{Fault, FaultKind, Verdict};

const NUM_KEYS: usize = 5;

pub(crate) struct Lookup;

/// What a session is made of.
#[derive(Serialize, Deserialize)]
struct Table {
    values: BTreeMap<String, String>,
    /// The key that has to be looked up last.
    key: String,
    is_call_enough: bool,
}

impl TaskFamily for Lookup {
    fn name(&self) -> &'static str {
        "lookup"
    }

    fn summary(&self) -> &'static str {
        "look a key up with one tool, in one call or two"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=3
    }

    fn domain(&self) -> Domain {
        Domain::Agent
    }

    fn tools(&self, _level: u32) -> Vec<ToolDef> {
        vec![ToolDef::new(
            "lookup",
            "The value of a key.",
            &[("key", "string", "such as k7")],
        )]
    }

    fn limits(&self, _level: u32) -> EpisodeLimits {
        EpisodeLimits {
            max_turns: 8,
            max_calls: 8,
            ..EpisodeLimits::default()
        }
    }

    fn open(&self, _level: u32, gold: &str) -> Result<Option<Box<dyn Session>>, Fault> {
        let table: Table = serde_json::from_str(gold)
            .map_err(|error| Fault::new(FaultKind::Grader, format!("no table: {error}")))?;
        Ok(Some(Box::new(Lookups {
            table,
            is_looked_up: false,
        })))
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let mut values = BTreeMap::new();
        while values.len() < NUM_KEYS {
            let letter = draw.choose(&["a", "c", "f", "h", "k", "m", "p", "r", "t", "w"]);
            let key = format!("{letter}{}", draw.between(1..=99));
            values.insert(key, draw.between(100..=999).to_string());
        }
        let keys: Vec<String> = values.keys().cloned().collect();
        let first = draw.index(NUM_KEYS);
        let (asked, mut path) = (&keys[first], vec![keys[first].clone()]);
        if level == 3 {
            let last =
                keys[(first + draw.between(1..=NUM_KEYS as i64 - 1) as usize) % NUM_KEYS].clone();
            values.insert(asked.clone(), last.clone());
            path.push(last);
        }
        let key = path.last()?.clone();
        let value = values[&key].clone();
        let witness = (1..).zip(&path).map(|(number, key)| {
            vec![ToolCall {
                id: format!("call_{number}"),
                name: "lookup".to_string(),
                arguments: json!({"key": key}).to_string(),
            }]
        });
        let table = Table {
            is_call_enough: level == 1,
            key,
            values,
        };
        Some(Instance {
            canonical: format!("{level} {asked} -> {value}"),
            system: None,
            question: match level {
                1 => format!("Look up {asked}."),
                2 => format!("What is the value of {asked}?"),
                _ => format!("{asked} names a key. What is that key's value?"),
            },
            witness: witness.collect(),
            solution: value,
            gold: serde_json::to_string(&table).ok()?,
        })
    }

    fn random_answer(&self, _level: u32, _question: &str, draw: &mut Draw) -> String {
        draw.between(100..=999).to_string()
    }
}

struct Lookups {
    table: Table,
    is_looked_up: bool,
}

impl Session for Lookups {
    fn call(&mut self, _name: &str, arguments: &Map<String, Value>) -> Result<Called, Fault> {
        let key = arguments.get("key").and_then(Value::as_str).unwrap_or("");
        let Some(value) = self.table.values.get(key) else {
            return Ok(ToolOutput::error("Error: there is no such key.").into());
        };
        let output = ToolOutput::ok(value);
        if key == self.table.key {
            self.is_looked_up = true;
            if self.table.is_call_enough {
                return Ok(Called::Final(output));
            }
        }
        Ok(output.into())
    }

    fn grade(&mut self, answer: &str) -> Result<Verdict, Fault> {
        let looked_up = ("looked_up".to_string(), self.is_looked_up);
        if self.table.is_call_enough {
            return Ok(Verdict::of_clauses(None, [looked_up]));
        }
        let Some(value) = self.table.values.get(&self.table.key) else {
            return Err(Fault::new(FaultKind::Grader, "the table lacks its key"));
        };
        let graded = integer_answer::grade(value, answer);
        let is_right = graded.reward() == Some(1.0);
        let extracted = match graded {
            Verdict::Graded { extracted, .. } => extracted,
            Verdict::Invalid { .. } => None,
        };
        let clauses = [looked_up, ("value".to_string(), is_right)];
        Ok(Verdict::of_clauses(extracted, clauses))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AssistantTurn, Episode, Family, FamilyKey, Next, Split, Stop, Task};

    fn tasks(level: u32) -> impl Iterator<Item = Task> {
        (0..50).map(move |seed| {
            Family::task(&FamilyKey {
                family: Family::Lookup,
                split: Split::Train,
                level,
                seed,
            })
        })
    }

    fn call(key: &str) -> AssistantTurn {
        AssistantTurn {
            content: String::new(),
            calls: vec![ToolCall {
                id: "1".to_string(),
                name: "lookup".to_string(),
                arguments: json!({"key": key}).to_string(),
            }],
        }
    }

    fn say(content: &str) -> AssistantTurn {
        AssistantTurn {
            content: content.to_string(),
            calls: Vec::new(),
        }
    }

    fn table(task: &Task) -> Table {
        serde_json::from_str(&task.gold).expect("a table")
    }

    #[test]
    fn at_level_one_the_right_call_alone_is_paid() {
        for task in tasks(1) {
            let table = table(&task);
            let mut episode = Episode::open(&task).expect("a session");
            for key in table.values.keys().filter(|key| **key != table.key) {
                let next = episode.step(&call(key)).expect("no fault");
                assert!(matches!(next, Next::Tools(_)), "another key ends nothing");
            }
            let next = episode.step(&call(&table.key)).expect("no fault");
            assert_eq!(next, Next::Done(Stop::Submitted));
            assert_eq!(episode.grade().reward(), Some(1.0));
        }
    }

    #[test]
    fn beyond_it_the_value_is_paid_only_after_the_call() {
        for task in tasks(2).chain(tasks(3)) {
            let table = table(&task);
            let value = &table.values[&table.key];
            let reward = |turns: &[AssistantTurn]| {
                let mut episode = Episode::open(&task).expect("a session");
                for turn in turns {
                    episode.step(turn).expect("no fault");
                }
                episode.grade().reward()
            };
            assert_eq!(reward(&[call(&table.key), say(value)]), Some(1.0));
            assert_eq!(reward(&[say(value)]), Some(0.0), "guessed");
            assert_eq!(reward(&[call(&table.key)]), Some(0.0), "not answered");
            let other = (value.parse::<u32>().expect("a number") + 1).to_string();
            assert_eq!(reward(&[call(&table.key), say(&other)]), Some(0.0));
        }
    }

    #[test]
    fn questions_are_short_and_hold_no_value() {
        for task in (1..=3).flat_map(tasks) {
            assert!(task.question.len() < 60, "{task:?}");
            assert!(!task.question.contains(&task.solution), "{task:?}");
        }
    }
}
