//! The session of a ticket: tools over a [`Db`] of its own, and the exact grading of what became of it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::db::{Db, Edit, shown};
use super::policy::{Decision, Ticket, decide};
use crate::session::{Called, Session};
use crate::tool::{ToolDef, ToolOutput};
use crate::verdict::{Fault, FaultKind, Verdict};

/// The tools, as the policy sees them.
pub(super) fn tools() -> Vec<ToolDef> {
    let order = ("order_id", "string", "such as W1234");
    let item = ("item_id", "string", "an item of the order, such as I1234");
    let mut close = ToolDef::new("close_ticket", "Closes the ticket and ends the task.", &[]);
    let integer = json!({"type": "integer"});
    close.parameters["properties"]["refusals"] = json!({
        "type": "array",
        "maxItems": 16,
        "items": {
            "type": "object",
            "properties": {"part": integer, "clause": integer},
            "required": ["part", "clause"],
            "additionalProperties": false,
        },
        "description": "each refused part with the clause that forbids it; empty where all parts are done",
    });
    close.parameters["required"] = json!(["refusals"]);
    vec![
        ToolDef::new(
            "find_customer",
            "The customer with an email, with the ids of the orders.",
            &[("email", "string", "email")],
        ),
        ToolDef::new("get_order", "An order with its items.", &[order]),
        ToolDef::new(
            "list_items",
            "All variants of a product.",
            &[("product", "string", "name of a product")],
        ),
        ToolDef::new("cancel_order", "Cancels an order.", &[order]),
        ToolDef::new(
            "refund_item",
            "Refunds an item of an order.",
            &[order, item],
        ),
        ToolDef::new(
            "change_address",
            "Sends an order to another address.",
            &[order, ("address", "string", "the new address")],
        ),
        ToolDef::new(
            "exchange_item",
            "Exchanges an item of an order for another item.",
            &[order, item, ("new_item_id", "string", "such as I1234")],
        ),
        close,
    ]
}

/// A part that was refused, by its number and the clause's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) struct Refusal {
    pub(super) part: i64,
    pub(super) clause: i64,
}

/// See the module.
pub(super) struct Desk {
    initial: Db,
    db: Db,
    wanted: Db,
    wanted_refusals: Vec<Refusal>,
    refusals: Option<Vec<Refusal>>,
}

impl Desk {
    /// # Errors
    /// A ticket that the policy can't decide.
    pub(super) fn new(db: Db, ticket: &Ticket) -> Result<Desk, Fault> {
        let mut wanted = db.clone();
        let decisions = decide(&mut wanted, ticket)
            .ok_or_else(|| Fault::new(FaultKind::Grader, "the ticket can't be decided"))?;
        Ok(Desk {
            initial: db.clone(),
            db,
            wanted,
            wanted_refusals: refusals(&decisions),
            refusals: None,
        })
    }

    fn read(&self, tool: &str, text: &str) -> Result<Value, String> {
        match tool {
            "find_customer" => {
                let known = self.db.customer(text);
                let (id, customer) = known
                    .ok_or_else(|| format!("there is no customer with email {}", shown(text)))?;
                let orders = self.db.orders.iter();
                let orders: Vec<&String> = orders
                    .filter_map(|(order_id, order)| (order.customer_id == *id).then_some(order_id))
                    .collect();
                let mut row = json!(customer);
                row["customer_id"] = json!(id);
                row["orders"] = json!(orders);
                Ok(row)
            }
            "get_order" => {
                let known = self.db.orders.get(text);
                let order = known.ok_or_else(|| format!("there is no order {}", shown(text)))?;
                let mut row = json!(order);
                for line in row["lines"].as_array_mut().into_iter().flatten() {
                    let item = line["item_id"]
                        .as_str()
                        .and_then(|id| self.db.items.get(id));
                    line["product"] = json!(item.map(|item| &item.product));
                    line["variant"] = json!(item.map(|item| &item.variant));
                }
                Ok(row)
            }
            _ => {
                let variants = self.db.items.iter();
                let variants: Vec<Value> = variants
                    .filter(|(_, item)| item.product == text)
                    .map(|(id, item)| {
                        let mut row = json!(item);
                        row["item_id"] = json!(id);
                        row
                    })
                    .collect();
                match variants.is_empty() {
                    true => Err(format!("there is no product {}", shown(text))),
                    false => Ok(Value::Array(variants)),
                }
            }
        }
    }

    fn change(&mut self, tool: &str, arguments: &Map<String, Value>) -> Result<Value, String> {
        let mut tagged = arguments.clone();
        tagged.insert("tool".to_string(), json!(tool));
        let change: Edit =
            serde_json::from_value(Value::Object(tagged)).map_err(|error| error.to_string())?;
        self.db.apply(&change)?;
        Ok(json!({"done": true}))
    }
}

/// The refusals among `decisions`, parts numbered from 1.
pub(super) fn refusals(decisions: &[Decision]) -> Vec<Refusal> {
    let numbered = (1..).zip(decisions);
    numbered
        .filter_map(|(part, decision)| match decision {
            Decision::Refuse(clause) => Some(Refusal {
                part,
                clause: *clause as i64,
            }),
            Decision::Do(_) => None,
        })
        .collect()
}

impl Session for Desk {
    fn call(&mut self, name: &str, arguments: &Map<String, Value>) -> Result<Called, Fault> {
        let result = match name {
            "close_ticket" => {
                let given = arguments.get("refusals").cloned().unwrap_or_default();
                match serde_json::from_value::<Vec<Refusal>>(given) {
                    Ok(mut given) => {
                        given.sort_unstable();
                        self.refusals = Some(given);
                        return Ok(Called::Final(ToolOutput::ok(r#"{"closed":true}"#)));
                    }
                    Err(error) => Err(error.to_string()),
                }
            }
            "find_customer" | "get_order" | "list_items" => {
                let text = arguments.values().next().and_then(Value::as_str);
                self.read(name, text.unwrap_or(""))
            }
            _ => self.change(name, arguments),
        };
        Ok(match result {
            Ok(result) => ToolOutput::ok(result.to_string()).into(),
            Err(problem) => ToolOutput::error(format!("Error: {problem}.")).into(),
        })
    }

    /// The final database row by row, and the ticket. Text is no answer.
    fn grade(&mut self, _: &str) -> Result<Verdict, Fault> {
        let found = rows(&self.db)?;
        let (initial, wanted) = (rows(&self.initial)?, rows(&self.wanted)?);
        let is_goal = |key: &String| initial.get(key) != wanted.get(key);
        let is_as_wanted = |key: &String| found.get(key) == wanted.get(key);
        let (goal, others): (Vec<&String>, Vec<&String>) =
            wanted.keys().partition(|key| is_goal(key));
        let clauses = [
            ("closed", self.refusals.is_some()),
            (
                "refusals",
                self.refusals.as_ref() == Some(&self.wanted_refusals),
            ),
            ("goal_rows", goal.into_iter().all(is_as_wanted)),
            (
                "other_rows",
                found.len() == wanted.len() && others.into_iter().all(is_as_wanted),
            ),
        ];
        let clauses = clauses.map(|(name, is_met)| (name.to_string(), is_met));
        let extracted = self.refusals.as_ref().map(|refusals| {
            let said = |refusal: &Refusal| format!("{}:{}", refusal.part, refusal.clause);
            refusals.iter().map(said).collect::<Vec<_>>().join(" ")
        });
        Ok(Verdict::of_clauses(extracted, clauses))
    }
}

/// Every row as its bytes, by table and id.
fn rows(db: &Db) -> Result<BTreeMap<String, String>, Fault> {
    let mut rows = BTreeMap::new();
    let tables = serde_json::to_value(db)
        .map_err(|error| Fault::new(FaultKind::Grader, error.to_string()))?;
    for (table, entries) in tables.as_object().into_iter().flatten() {
        for (id, row) in entries.as_object().into_iter().flatten() {
            rows.insert(format!("{table} {id}"), row.to_string());
        }
    }
    Ok(rows)
}
