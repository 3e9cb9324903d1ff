//! What calls without a look at the policy earn, and what a level's tickets were measured to take.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::desk::{Desk, Refusal, refusals};
use super::policy::{Decision, change_of, decide};
use super::solver::{call_of, to_json};
use super::{Gold, OrderDesk, Profile, profile};
use crate::agent::measured::{num_calls, train_tasks};
use crate::draw::{Draw, Purpose};
use crate::family::Family;
use crate::instance::TaskFamily;
use crate::session::Session;
use crate::task::{FamilyKey, Split};

/// A way of working a ticket without the policy. All know the ids that they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blind {
    /// Does nothing and says that all is done.
    Close,
    /// Does all that the customer says.
    Obey,
    /// Refuses every part, by a random clause.
    Refuse,
    /// Does or refuses each part at random, by a random clause.
    Coin,
    /// Makes ten random calls with ids that exist, and closes with what refusals chance gives.
    Calls,
}

impl Blind {
    pub(super) const ALL: [Blind; 5] = [
        Blind::Close,
        Blind::Obey,
        Blind::Refuse,
        Blind::Coin,
        Blind::Calls,
    ];

    /// What it earns on a ticket of `profile`.
    pub(super) fn reward(self, profile: &Profile, gold: &Gold, draw: &mut Draw) -> f64 {
        let Gold { db, ticket } = gold;
        let mut desk = Desk::new(db.clone(), ticket).expect("a ticket of ours");
        let mut refused = Vec::new();
        let clauses = profile.clauses();
        let customer_id = db.customer(&ticket.email).expect("the writer").0;
        for (number, part) in (1..).zip(&ticket.parts) {
            let obeys = match self {
                Blind::Close => continue,
                Blind::Obey => true,
                Blind::Refuse => false,
                Blind::Coin | Blind::Calls => draw.coin(),
            };
            if !obeys {
                refused.push(Refusal {
                    part: number,
                    clause: draw.choose(&clauses) as i64,
                });
            } else if self != Blind::Calls {
                let change = change_of(db, customer_id, &part.wish).expect("what the part means");
                call(&mut desk, &call_of(&change).expect("a call"));
            }
        }
        if self == Blind::Calls {
            for _ in 0..10 {
                call(&mut desk, &random_call(gold, draw));
            }
        }
        call(
            &mut desk,
            &(
                "close_ticket".to_string(),
                json!({"refusals": to_json(&refused)}),
            ),
        );
        desk.grade("").ok().and_then(|v| v.reward()).unwrap_or(1.0)
    }
}

/// Errors are nothing to it.
fn call(desk: &mut Desk, (tool, arguments): &(String, Value)) {
    let arguments = arguments.as_object().expect("arguments are an object");
    desk.call(tool, arguments).expect("no fault");
}

fn random_call(gold: &Gold, draw: &mut Draw) -> (String, Value) {
    let orders: Vec<&String> = gold.db.orders.keys().collect();
    let order_id = draw.choose(&orders);
    let order = &gold.db.orders[order_id];
    let lines: Vec<&String> = order.lines.iter().map(|line| &line.item_id).collect();
    let items: Vec<&String> = gold.db.items.keys().collect();
    let addresses = &gold.db.customers[&order.customer_id].addresses;
    let item_id = draw.choose(&lines);
    let (tool, arguments) = match draw.index(7) {
        0 => ("find_customer", json!({"email": gold.ticket.email})),
        1 => ("get_order", json!({"order_id": order_id})),
        2 => (
            "list_items",
            json!({"product": gold.db.items[item_id].product}),
        ),
        3 => ("cancel_order", json!({"order_id": order_id})),
        4 => (
            "refund_item",
            json!({"order_id": order_id, "item_id": item_id}),
        ),
        5 => (
            "change_address",
            json!({"order_id": order_id, "address": addresses[draw.index(addresses.len())]}),
        ),
        _ => (
            "exchange_item",
            json!({"order_id": order_id, "item_id": item_id, "new_item_id": draw.choose(&items)}),
        ),
    };
    (tool.to_string(), arguments)
}

/// Means over the training tasks of `num_seeds` seeds, as two Markdown tables.
pub(in crate::agent) fn measured_rows(num_seeds: u32) -> String {
    let mut levels = String::from(
        "| level | parts | clauses | calls of a solver, mean | least | turns | parts refused | clauses cited |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    let mut earned = String::from(
        "| level | close | obey | refuse | coin | calls |\n|---|---|---|---|---|---|\n",
    );
    for level in OrderDesk.levels() {
        let profile = profile(level);
        let (mut calls, mut turns, mut cited, mut num_refused) = (Vec::new(), 0, 0, 0);
        let mut rewards = Blind::ALL.map(|_| 0.0);
        for (seed, task) in train_tasks(Family::OrderDesk, level, num_seeds).enumerate() {
            let gold: Gold = serde_json::from_str(&task.gold).expect("a ticket of ours");
            calls.push(num_calls(&task));
            turns += task.witness.len();
            let decisions = decide(&mut gold.db.clone(), &gold.ticket).expect("decided");
            num_refused += refusals(&decisions).len();
            let clauses = |decision: &Decision| match decision {
                Decision::Refuse(clause) => Some(*clause),
                Decision::Do(_) => None,
            };
            let distinct: BTreeSet<_> = decisions.iter().filter_map(clauses).collect();
            cited += distinct.len();
            let key = FamilyKey {
                family: Family::OrderDesk,
                split: Split::Train,
                level,
                seed: seed as u64,
            };
            for (attempt, (blind, sum)) in (1..).zip(Blind::ALL.iter().zip(&mut rewards)) {
                let mut draw = Draw::new(Purpose::Baseline, &key, attempt);
                *sum += blind.reward(&profile, &gold, &mut draw);
            }
        }
        let per_task = |sum: usize| sum as f64 / f64::from(num_seeds);
        levels += &format!(
            "| {level} | {} | {} | {:.1} | {} | {:.1} | {:.2} | {:.2} |\n",
            profile.num_parts,
            profile.clauses().len(),
            per_task(calls.iter().sum()),
            calls.iter().min().expect("a task"),
            per_task(turns),
            per_task(num_refused),
            per_task(cited),
        );
        let rewards = rewards.map(|sum| format!("{:.3}", sum / f64::from(num_seeds)));
        earned += &format!("| {level} | {} |\n", rewards.join(" | "));
    }
    format!("{levels}\n{earned}")
}
