//! Works a ticket through the tools alone: the proof that they tell enough, and the worked solution.
//!
//! It knows the ticket and the policy, fills a [`Db`] of its own with what calls told it, and decides on that.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::db::{Customer, Db, Edit, Item, Order};
use super::desk::{Desk, Refusal, refusals};
use super::policy::{Decision, Ticket, WishKind, decide};
use crate::session::{Called, Session};
use crate::tool::ToolCall;

/// The turns of calls that work `ticket`, the closing last.
pub(super) fn solve(db: &Db, ticket: &Ticket) -> Option<Vec<Vec<ToolCall>>> {
    let mut solver = Solver {
        desk: Desk::new(db.clone(), ticket).ok()?,
        turns: Vec::new(),
        seen: Db::default(),
        num_calls: 0,
    };
    solver.look_up(ticket)?;
    let decisions = decide(&mut solver.seen, ticket)?;
    let changes: Vec<(String, Value)> = decisions
        .iter()
        .filter_map(|decision| match decision {
            Decision::Do(change) => call_of(change),
            Decision::Refuse(_) => None,
        })
        .collect();
    if !changes.is_empty() {
        solver.ask(&changes)?;
    }
    let close = json!({"refusals": to_json(&refusals(&decisions))});
    solver.ask(&[("close_ticket".to_string(), close)])?;
    Some(solver.turns)
}

/// Tool and arguments that make `change`.
pub(super) fn call_of(change: &Edit) -> Option<(String, Value)> {
    let mut arguments = json!(change);
    let tool = arguments.as_object_mut()?.remove("tool")?;
    Some((tool.as_str()?.to_string(), arguments))
}

/// As `close_ticket` takes them.
pub(super) fn to_json(refusals: &[Refusal]) -> Value {
    let refusals = refusals.iter();
    Value::from_iter(refusals.map(|r| json!({"part": r.part, "clause": r.clause})))
}

struct Solver {
    desk: Desk,
    turns: Vec<Vec<ToolCall>>,
    seen: Db,
    num_calls: usize,
}

impl Solver {
    fn look_up(&mut self, ticket: &Ticket) -> Option<()> {
        let asked = json!({"email": ticket.email});
        let mut told = self.ask(&[("find_customer".to_string(), asked)])?.remove(0);
        let row = told.as_object_mut()?;
        let id = row.remove("customer_id")?.as_str()?.to_string();
        let own: Vec<String> = serde_json::from_value(row.remove("orders")?).ok()?;
        let customer: Customer = serde_json::from_value(told).ok()?;
        self.seen.customers.insert(id, customer);

        let wishes = || {
            let parts = ticket.parts.iter();
            parts.flat_map(|part| {
                [Some(&part.wish), part.fallback.as_ref()]
                    .into_iter()
                    .flatten()
            })
        };
        let mut orders: BTreeSet<String> =
            wishes().filter_map(|wish| wish.order_id.clone()).collect();
        if wishes().any(|wish| wish.order_id.is_none()) {
            orders.extend(own);
        }
        let mut products = BTreeSet::new();
        for wish in wishes() {
            if let WishKind::Exchange(product, _) = &wish.kind {
                products.insert(product.clone());
            }
        }
        let asks: Vec<(String, Value)> = orders
            .iter()
            .map(|id| ("get_order".to_string(), json!({"order_id": id})))
            .chain(
                products
                    .iter()
                    .map(|product| ("list_items".to_string(), json!({"product": product}))),
            )
            .collect();
        let mut told = self.ask(&asks)?.into_iter();
        for id in orders {
            let row = told.next()?;
            for line in row["lines"].as_array()? {
                // What an item costs now and whether there is one matters for the new item of an exchange alone,
                // whose product is listed below.
                let item = Item {
                    product: line["product"].as_str()?.to_string(),
                    variant: line["variant"].as_str()?.to_string(),
                    price: 0,
                    stock: 0,
                };
                let item_id = line["item_id"].as_str()?.to_string();
                self.seen.items.insert(item_id, item);
            }
            let order: Order = serde_json::from_value(row).ok()?;
            self.seen.orders.insert(id, order);
        }
        for variants in told {
            for row in variants.as_array()? {
                let item_id = row["item_id"].as_str()?.to_string();
                let item: Item = serde_json::from_value(row.clone()).ok()?;
                self.seen.items.insert(item_id, item);
            }
        }
        Some(())
    }

    /// Makes calls in one turn; their results.
    fn ask(&mut self, asks: &[(String, Value)]) -> Option<Vec<Value>> {
        let mut turn = Vec::new();
        let mut results = Vec::new();
        for (tool, arguments) in asks {
            self.num_calls += 1;
            turn.push(ToolCall {
                id: format!("call_{}", self.num_calls),
                name: tool.clone(),
                arguments: arguments.to_string(),
            });
            match self.desk.call(tool, arguments.as_object()?).ok()? {
                Called::Final(_) => {}
                Called::Output(output) if output.is_error => return None,
                Called::Output(output) => results.push(serde_json::from_str(&output.content).ok()?),
            }
        }
        self.turns.push(turn);
        Some(results)
    }
}
