//! The policy's decisions against hand-checked cases and a second reading of the clauses, and what must not pass.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::blind::Blind;
use super::db::{Customer, Db, Edit, Item, Line, LineState, Order, Status, Tier};
use super::desk::Desk;
use super::policy::{Clause, Decision, Ticket, change_of, decide, judged};
use super::solver::call_of;
use super::{Gold, OrderDesk, profile};
use crate::draw::{Draw, Purpose};
use crate::instance::TaskFamily;
use crate::session::{Called, Session};
use crate::{AssistantTurn, Episode, Family, FamilyKey, Next, Split, Task, ToolCall, Verdict};

fn key(level: u32, seed: u64) -> FamilyKey {
    FamilyKey {
        family: Family::OrderDesk,
        split: Split::Train,
        level,
        seed,
    }
}

fn task(level: u32, seed: u64) -> Task {
    Family::task(&key(level, seed))
}

fn gold_of(task: &Task) -> Gold {
    serde_json::from_str(&task.gold).expect("a ticket")
}

/// A shop with one delivered order W1 of a red lamp for 100, of customer C1.
fn shop() -> Db {
    let item = |variant: &str, price, stock| Item {
        product: "lamp".to_string(),
        variant: variant.to_string(),
        price,
        stock,
    };
    let line = Line {
        item_id: "I1".to_string(),
        paid: 100,
        final_sale: false,
        state: LineState::Kept,
    };
    let order = Order {
        customer_id: "C1".to_string(),
        status: Status::Delivered,
        placed_days_ago: 20,
        delivered_days_ago: Some(15),
        address: "1 A Street".to_string(),
        lines: vec![line],
    };
    let customer = |email: &str| Customer {
        name: "A B".to_string(),
        email: email.to_string(),
        tier: Tier::Standard,
        on_hold: false,
        addresses: vec!["1 A Street".to_string(), "2 B Street".to_string()],
    };
    Db {
        customers: BTreeMap::from([
            ("C1".to_string(), customer("a@b")),
            ("C2".to_string(), customer("c@d")),
        ]),
        items: BTreeMap::from([
            ("I1".to_string(), item("red", 100, 1)),
            ("I2".to_string(), item("blue", 100, 1)),
            ("I3".to_string(), item("green", 110, 1)),
            ("I4".to_string(), item("black", 90, 0)),
        ]),
        orders: BTreeMap::from([("W1".to_string(), order)]),
    }
}

fn cancel() -> Edit {
    Edit::CancelOrder {
        order_id: "W1".to_string(),
    }
}

fn refund() -> Edit {
    Edit::RefundItem {
        order_id: "W1".to_string(),
        item_id: "I1".to_string(),
    }
}

fn readdress(address: &str) -> Edit {
    Edit::ChangeAddress {
        order_id: "W1".to_string(),
        address: address.to_string(),
    }
}

fn exchange(new: &str) -> Edit {
    Edit::ExchangeItem {
        order_id: "W1".to_string(),
        item_id: "I1".to_string(),
        new_item_id: new.to_string(),
    }
}

/// The clause against `change` in a shop after `set`.
fn against(change: &Edit, set: impl Fn(&mut Customer, &mut Order)) -> Option<Clause> {
    let mut db = shop();
    let customer = db.customers.get_mut("C1").expect("C1");
    set(customer, db.orders.get_mut("W1").expect("W1"));
    judged(&db, "C1", change, 0).expect("known ids").0
}

#[test]
fn windows_end_where_the_policy_says() {
    let placed = |days, tier| {
        against(&cancel(), |customer, order| {
            customer.tier = tier;
            order.status = Status::Pending;
            order.placed_days_ago = days;
        })
    };
    assert_eq!(placed(3, Tier::Standard), None);
    assert_eq!(placed(4, Tier::Standard), Some(Clause::CancelWindow));
    assert_eq!(placed(7, Tier::Gold), None);
    assert_eq!(placed(8, Tier::Gold), Some(Clause::CancelWindow));
    for change in [refund(), exchange("I2")] {
        let delivered = |days, tier| {
            against(&change, |customer, order| {
                customer.tier = tier;
                order.delivered_days_ago = Some(days);
            })
        };
        assert_eq!(delivered(30, Tier::Standard), None);
        assert_eq!(delivered(31, Tier::Standard), Some(Clause::ReturnWindow));
        assert_eq!(delivered(60, Tier::Gold), None);
        assert_eq!(delivered(61, Tier::Gold), Some(Clause::ReturnWindow));
    }
}

#[test]
fn each_clause_forbids_what_it_says_and_the_lowest_is_cited() {
    let as_is = |_: &mut Customer, _: &mut Order| ();
    let pending = |_: &mut Customer, order: &mut Order| order.status = Status::Pending;
    assert_eq!(against(&refund(), as_is), None);
    assert_eq!(against(&cancel(), as_is), Some(Clause::CancelPending));
    assert_eq!(against(&refund(), pending), Some(Clause::ReturnWindow));
    assert_eq!(
        against(&readdress("2 B Street"), as_is),
        Some(Clause::Address)
    );
    assert_eq!(against(&readdress("2 B Street"), pending), None);
    assert_eq!(
        against(&readdress("2 b street"), pending),
        Some(Clause::Address)
    );
    assert_eq!(against(&exchange("I2"), as_is), None);
    for new in ["I1", "I3", "I4"] {
        assert_eq!(
            against(&exchange(new), as_is),
            Some(Clause::Exchange),
            "{new}"
        );
    }
    let final_sale = |_: &mut Customer, order: &mut Order| order.lines[0].final_sale = true;
    assert_eq!(against(&refund(), final_sale), Some(Clause::FinalSale));
    assert_eq!(
        against(&exchange("I3"), final_sale),
        Some(Clause::FinalSale)
    );
    let held = |customer: &mut Customer, _: &mut Order| customer.on_hold = true;
    assert_eq!(against(&cancel(), held), Some(Clause::Hold));
    let foreign = |customer: &mut Customer, order: &mut Order| {
        customer.on_hold = true;
        order.customer_id = "C2".to_string();
    };
    assert_eq!(against(&refund(), foreign), Some(Clause::Owner));
    // 200 refunded before and 100 now is the limit.
    let limited = |before| judged(&shop(), "C1", &refund(), before).expect("known").0;
    assert_eq!(limited(200), None);
    assert_eq!(limited(201), Some(Clause::RefundLimit));
}

/// The clauses read a second time, from the document's words and the rows as JSON.
fn cited_again(db: &Value, customer_id: &str, call: &(String, Value), refunded: u64) -> i64 {
    let (tool, arguments) = call;
    let order = &db["orders"][arguments["order_id"].as_str().expect("an id")];
    let customer = &db["customers"][customer_id];
    let is_gold = customer["tier"] == "gold";
    let empty = Vec::new();
    let lines = order["lines"].as_array().unwrap_or(&empty);
    let line = lines
        .iter()
        .find(|line| line["item_id"] == arguments["item_id"]);
    let is_return = tool == "refund_item" || tool == "exchange_item";
    if order["customer_id"] != customer_id {
        return 1;
    }
    if customer["on_hold"] == true {
        return 2;
    }
    if tool == "cancel_order" && order["status"] != "pending" {
        return 3;
    }
    if tool == "cancel_order"
        && order["placed_days_ago"].as_u64() > Some(if is_gold { 7 } else { 3 })
    {
        return 4;
    }
    if is_return {
        let days = order["delivered_days_ago"].as_u64().unwrap_or(1000);
        if order["status"] != "delivered" || days > if is_gold { 60 } else { 30 } {
            return 5;
        }
        if line.expect("a line")["final_sale"] == true {
            return 6;
        }
    }
    if tool == "refund_item"
        && refunded + line.expect("a line")["paid"].as_u64().expect("paid") > 300
    {
        return 7;
    }
    if tool == "change_address" {
        let known = customer["addresses"].as_array().expect("addresses");
        if order["status"] != "pending" || !known.contains(&arguments["address"]) {
            return 8;
        }
    }
    if tool == "exchange_item" {
        let row = |id: &Value| db["items"][id.as_str().expect("an id")].clone();
        let (old, new) = (row(&arguments["item_id"]), row(&arguments["new_item_id"]));
        let paid = line.expect("a line")["paid"].as_u64();
        if old["product"] != new["product"]
            || old["variant"] == new["variant"]
            || new["stock"] == 0
            || new["price"].as_u64() > paid
        {
            return 9;
        }
    }
    0
}

#[test]
fn decisions_agree_with_a_second_reading_of_the_clauses() {
    let mut cited = [0usize; 10];
    for level in OrderDesk.levels() {
        for seed in 0..100 {
            let Gold { db, ticket } = gold_of(&task(level, seed));
            let customer_id = db.customer(&ticket.email).expect("the writer").0.clone();
            let decisions = decide(&mut db.clone(), &ticket).expect("decided");
            let (mut now, mut refunded) = (db.clone(), 0);
            for (part, decision) in ticket.parts.iter().zip(decisions) {
                let mut expected = None;
                for wish in [Some(&part.wish), part.fallback.as_ref()]
                    .into_iter()
                    .flatten()
                {
                    let change = change_of(&db, &customer_id, wish).expect("known");
                    let call = call_of(&change).expect("a call");
                    let clause = cited_again(&json!(now), &customer_id, &call, refunded);
                    if clause == 0 {
                        expected = Some(Decision::Do(change));
                        break;
                    }
                    expected = expected.or(Some(Decision::Refuse(clause_of(clause))));
                }
                cited[match &decision {
                    Decision::Refuse(clause) => *clause as usize,
                    Decision::Do(_) => 0,
                }] += 1;
                assert_eq!(Some(&decision), expected.as_ref(), "{part:?}");
                if let Decision::Do(change) = decision {
                    if let Edit::RefundItem { order_id, item_id } = &change {
                        let lines = &now.orders[order_id].lines;
                        let line = lines.iter().find(|line| line.item_id == *item_id);
                        refunded += u64::from(line.expect("a line").paid);
                    }
                    now.apply(&change).expect("possible");
                }
            }
        }
    }
    assert!(cited.iter().all(|&count| count >= 10), "{cited:?}");
}

fn clause_of(number: i64) -> Clause {
    let all = profile(6).clauses().into_iter();
    let mut found = all.filter(|clause| *clause as i64 == number);
    found.next().expect("a clause")
}

/// Plays `calls` in a fresh session.
fn played(gold: &Gold, calls: &[(String, Value)]) -> Verdict {
    let mut desk = Desk::new(gold.db.clone(), &gold.ticket).expect("a session");
    for (tool, arguments) in calls {
        let arguments = arguments.as_object().expect("an object");
        desk.call(tool, arguments).expect("no fault");
    }
    desk.grade("").expect("graded")
}

fn unmet(verdict: &Verdict) -> Vec<&str> {
    match verdict {
        Verdict::Graded { parts, .. } => (parts.iter())
            .filter_map(|(name, met)| (*met == 0.0).then_some(name.as_str()))
            .collect(),
        Verdict::Invalid { reason, .. } => panic!("{reason}"),
    }
}

/// The witness without its look-ups.
fn deeds(task: &Task) -> Vec<(String, Value)> {
    let is_look = |name: &str| ["find_customer", "get_order", "list_items"].contains(&name);
    let calls = task.witness.iter().flatten();
    calls
        .filter(|call| !is_look(&call.name))
        .map(|call| {
            let arguments = serde_json::from_str(&call.arguments).expect("JSON");
            (call.name.clone(), arguments)
        })
        .collect()
}

#[test]
fn any_other_row_changed_or_left_is_wrong() {
    for seed in 0..60 {
        let task = task(5, seed);
        let gold = gold_of(&task);
        let right = deeds(&task);
        assert_eq!(unmet(&played(&gold, &right)), [""; 0], "{seed}");
        let (close, changes) = right.split_last().expect("a closing");
        let with = |changes: &[(String, Value)], close: &(String, Value)| {
            let calls: Vec<_> = changes.iter().chain([close]).cloned().collect();
            played(&gold, &calls)
        };
        // The order of independent changes is free.
        let reversed: Vec<_> = changes.iter().rev().cloned().collect();
        assert_eq!(unmet(&with(&reversed, close)), [""; 0], "{seed}");
        // One change left out.
        if let Some((_, fewer)) = changes.split_last() {
            assert_eq!(unmet(&with(fewer, close)), ["goal_rows"], "{seed}");
        }
        // An order that the ticket does not mention is sent elsewhere.
        let named = |id: &&String| {
            task.witness
                .iter()
                .flatten()
                .any(|c| c.arguments.contains(*id))
        };
        let stranger = gold
            .db
            .orders
            .keys()
            .find(|id| !named(id))
            .expect("a stranger's order");
        let meddled = (
            "change_address".to_string(),
            json!({"order_id": stranger, "address": "9 Z Street"}),
        );
        let more: Vec<_> = changes.iter().cloned().chain([meddled]).collect();
        assert_eq!(unmet(&with(&more, close)), ["other_rows"], "{seed}");
        // Refusals that differ a little.
        let refusals = close.1["refusals"].as_array().expect("a list");
        let closed = |refusals: Vec<Value>| {
            let close = (close.0.clone(), json!({"refusals": refusals}));
            unmet(&with(changes, &close)).join(" ")
        };
        let backwards: Vec<Value> = refusals.iter().rev().cloned().collect();
        assert_eq!(closed(backwards), "", "order of refusals is free");
        if let Some((first, rest)) = refusals.split_first() {
            assert_eq!(closed(rest.to_vec()), "refusals");
            let mut other = first.clone();
            other["clause"] = json!(first["clause"].as_i64().expect("a number") % 9 + 1);
            let others: Vec<Value> = rest.iter().cloned().chain([other]).collect();
            assert_eq!(closed(others), "refusals", "another clause");
            let twice: Vec<Value> = refusals.iter().chain([first]).cloned().collect();
            assert_eq!(closed(twice), "refusals", "a refusal said twice");
        }
        // Not closed.
        assert_eq!(played(&gold, changes).reward(), Some(0.0));
    }
}

#[test]
fn nothing_done_is_right_only_with_every_refusal_said() {
    let mut num_all_refused = 0;
    for seed in 0..200 {
        let task = task(2, seed);
        let gold = gold_of(&task);
        let (close, changes) = {
            let deeds = deeds(&task);
            let (close, changes) = deeds.split_last().expect("a closing");
            (close.clone(), changes.to_vec())
        };
        let silent = ("close_ticket".to_string(), json!({"refusals": []}));
        assert_eq!(played(&gold, &[silent]).reward(), Some(0.0), "{seed}");
        let said = played(&gold, &[close]).reward();
        assert_eq!(said, Some(f64::from(changes.is_empty())), "{seed}");
        num_all_refused += usize::from(changes.is_empty());
    }
    assert!(num_all_refused > 0);
}

#[test]
fn work_without_the_policy_earns_next_to_nothing() {
    for level in OrderDesk.levels() {
        let profile = profile(level);
        let mut rewards = [0.0; Blind::ALL.len()];
        for seed in 0..100 {
            let gold = gold_of(&task(level, seed));
            for (attempt, (blind, sum)) in (1..).zip(Blind::ALL.iter().zip(&mut rewards)) {
                let mut draw = Draw::new(Purpose::Baseline, &key(level, seed), attempt);
                *sum += blind.reward(&profile, &gold, &mut draw) / 100.0;
            }
        }
        // A coin for each of two parts and one of four clauses is right 1 time in 16.
        let most = if level <= 3 { 0.12 } else { 0.03 };
        assert!(
            rewards.iter().all(|&mean| mean <= most),
            "level {level}: {rewards:?}"
        );
        assert_eq!(rewards[0], 0.0, "level {level}: doing nothing pays");
    }
}

#[test]
fn errors_say_what_is_wrong_and_change_nothing() {
    let ticket = Ticket {
        email: "a@b".to_string(),
        parts: Vec::new(),
    };
    let mut desk = Desk::new(shop(), &ticket).expect("a session");
    for (tool, arguments, words) in [
        (
            "find_customer",
            json!({"email": "x".repeat(1 << 20)}),
            "no customer with email \"xxx",
        ),
        (
            "get_order",
            json!({"order_id": "W9"}),
            "there is no order \"W9\"",
        ),
        (
            "list_items",
            json!({"product": "sofa"}),
            "there is no product \"sofa\"",
        ),
        (
            "cancel_order",
            json!({"order_id": ""}),
            "there is no order \"\"",
        ),
        (
            "refund_item",
            json!({"order_id": "W1", "item_id": "I2"}),
            "the order has no item \"I2\"",
        ),
        (
            "exchange_item",
            json!({"order_id": "W1", "item_id": "I1", "new_item_id": "I4"}),
            "item I4 is out of stock",
        ),
    ] {
        let called = desk.call(tool, arguments.as_object().expect("an object"));
        let Ok(Called::Output(output)) = called else {
            panic!("{called:?}");
        };
        assert!(output.is_error && output.content.len() < 120, "{output:?}");
        assert!(output.content.contains(words), "{output:?}");
    }
    let mut db = shop();
    db.apply(&refund()).expect("possible");
    let again = db.apply(&refund()).expect_err("refunded");
    assert_eq!(again, "item I1 is refunded already");
    assert_eq!(
        db.apply(&exchange("I4")),
        Err("item I1 is refunded already".to_string())
    );
}

#[test]
fn sessions_of_one_task_share_nothing() {
    let task = task(4, 2);
    let gold = gold_of(&task);
    let order_id = gold.db.orders.keys().next().expect("an order");
    let meddle = ToolCall {
        id: "0".to_string(),
        name: "change_address".to_string(),
        arguments: json!({"order_id": order_id, "address": "9 Z Street"}).to_string(),
    };
    let turn = |calls: &[ToolCall]| AssistantTurn {
        content: String::new(),
        calls: calls.to_vec(),
    };
    let mut episodes: Vec<Episode> = (0..300)
        .map(|_| Episode::open(&task).expect("a session"))
        .collect();
    let meddled = episodes[7].step(&turn(&[meddle])).expect("no fault");
    assert!(matches!(meddled, Next::Tools(_)));
    for calls in &task.witness {
        for episode in &mut episodes {
            episode.step(&turn(calls)).expect("no fault");
        }
    }
    for (index, episode) in episodes.iter_mut().enumerate() {
        let reward = if index == 7 { 0.0 } else { 1.0 };
        assert_eq!(episode.grade().reward(), Some(reward), "{index}");
    }
}
