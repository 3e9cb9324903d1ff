//! A shop's desk: a customer writes a ticket of several parts, a policy document says which of them may be done.
//!
//! The tools do whatever can be done; what may be done is up to the reader of the policy. The final database is
//! graded row by row against the one that the policy leads to, and refused parts must be named with the clause that
//! forbids them, so neither doing nothing nor obeying the customer earns anything. The level grows with the kinds of
//! wishes, the clauses that matter, the parts, and the calls that it takes to find the orders.

mod blind;
mod db;
mod desk;
mod policy;
mod solver;
#[cfg(test)]
mod tests;
mod world;

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

pub(super) use self::blind::measured_rows;
use self::db::Db;
use self::desk::Desk;
use self::policy::{Part, Ticket, Wish, WishKind};
use crate::draw::Draw;
use crate::episode::EpisodeLimits;
use crate::instance::{Domain, Instance, TaskFamily};
use crate::session::Session;
use crate::tool::ToolDef;
use crate::verdict::{Fault, FaultKind};

pub(crate) struct OrderDesk;

/// What a level's shops and tickets are like.
struct Profile {
    num_products: usize,
    num_customers: usize,
    /// Orders of each customer that the ticket is not about.
    num_idle_orders: usize,
    num_parts: usize,
    /// Of cancel, refund, change of address and exchange, the first so many.
    num_kinds: usize,
    /// The ticket names orders by id, not by what is in them.
    names_orders: bool,
    has_fallbacks: bool,
}

fn profile(level: u32) -> Profile {
    let small = Profile {
        num_products: 5,
        num_customers: 2,
        num_idle_orders: 1,
        num_parts: 2,
        num_kinds: 1,
        names_orders: true,
        has_fallbacks: false,
    };
    match level {
        1 => small,
        2 => Profile {
            num_kinds: 2,
            ..small
        },
        3 => Profile {
            num_kinds: 4,
            ..small
        },
        4 => Profile {
            num_products: 8,
            num_kinds: 4,
            num_parts: 3,
            num_idle_orders: 2,
            names_orders: false,
            ..small
        },
        5 => Profile {
            num_products: 10,
            num_customers: 3,
            num_kinds: 4,
            num_parts: 4,
            num_idle_orders: 2,
            names_orders: false,
            has_fallbacks: true,
        },
        _ => Profile {
            num_products: 14,
            num_customers: 3,
            num_kinds: 4,
            num_parts: 6,
            num_idle_orders: 3,
            names_orders: false,
            has_fallbacks: true,
        },
    }
}

/// What a session is made of.
#[derive(Serialize, Deserialize)]
struct Gold {
    db: Db,
    ticket: Ticket,
}

impl TaskFamily for OrderDesk {
    fn name(&self) -> &'static str {
        "order_desk"
    }

    fn summary(&self) -> &'static str {
        "work a shop's ticket by its policy, with tools over its database"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=6
    }

    fn domain(&self) -> Domain {
        Domain::Agent
    }

    fn is_quick(&self) -> bool {
        false
    }

    fn tools(&self, _level: u32) -> Vec<ToolDef> {
        desk::tools()
    }

    fn limits(&self, _level: u32) -> EpisodeLimits {
        EpisodeLimits {
            max_turns: 48,
            max_calls: 96,
            ..EpisodeLimits::default()
        }
    }

    fn open(&self, _level: u32, gold: &str) -> Result<Option<Box<dyn Session>>, Fault> {
        let gold: Gold = serde_json::from_str(gold)
            .map_err(|error| Fault::new(FaultKind::Grader, format!("no ticket: {error}")))?;
        Ok(Some(Box::new(Desk::new(gold.db, &gold.ticket)?)))
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let profile = profile(level);
        let (db, ticket) = world::draw_case(&profile, draw)?;
        let witness = solver::solve(&db, &ticket)?;
        let question = question(&ticket, &db);
        let gold = serde_json::to_string(&Gold { db, ticket }).ok()?;
        Some(Instance {
            canonical: gold.clone(),
            system: Some(document(&profile)),
            question,
            witness,
            solution: "The ticket is closed.".to_string(),
            gold,
        })
    }

    /// Random refusals as text: no ticket is closed by it.
    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        let clauses = profile(level).clauses();
        let clause = draw.choose(&clauses) as i64;
        format!("[{{\"part\":1,\"clause\":{clause}}}]")
    }
}

/// The policy document.
fn document(profile: &Profile) -> String {
    let clauses = profile.clauses().into_iter();
    let clauses: Vec<String> = clauses
        .map(|clause| format!("{}. {}", clause as i64, clause.text()))
        .collect();
    let fallbacks = if profile.has_fallbacks {
        " Where a part has a second wish, do that if the first is forbidden and the second is not; if both are \
         forbidden, cite the clause that forbids the first."
    } else {
        ""
    };
    format!(
        "You work at the order desk of a shop. Decide the numbered parts of a ticket in order, each on the data as the \
         parts before left it. Do a part if all clauses on it hold. Else refuse it: change nothing for it, and cite \
         the clause that does not hold, the one with the lowest number if there are several.{fallbacks} Do nothing \
         that is not asked for. The tools do not check the clauses. At the end call close_ticket with every refused \
         part and the clause cited for it.\nClauses:\n{}",
        clauses.join("\n")
    )
}

fn question(ticket: &Ticket, db: &Db) -> String {
    let name = db.customer(&ticket.email).map_or("", |(_, c)| &c.name);
    let parts: Vec<String> = (1..)
        .zip(&ticket.parts)
        .map(|(number, part)| format!("{number}. {}", part_text(part)))
        .collect();
    format!(
        "Ticket from {name} <{}>:\n{}",
        ticket.email,
        parts.join("\n")
    )
}

fn part_text(part: &Part) -> String {
    let fallback = match &part.fallback {
        None => String::new(),
        Some(wish) => format!(" If that is not allowed: {}", wish_text(wish, true)),
    };
    format!("{}{fallback}", wish_text(&part.wish, false))
}

/// A wish in words; one that follows another is about the same order and item.
fn wish_text(wish: &Wish, follows: bool) -> String {
    let (product, variant) = &wish.item;
    let item = match follows {
        true => "it".to_string(),
        false => format!("the {product} ({variant})"),
    };
    let order = match &wish.order_id {
        Some(id) => format!("order {id}"),
        None => "my order".to_string(),
    };
    let whole_order = match (&wish.order_id, follows) {
        (_, true) => "it".to_string(),
        (Some(_), false) => order.clone(),
        (None, false) => format!("my order with {item}"),
    };
    let of_order = match follows {
        true => String::new(),
        false => format!(" of {order}"),
    };
    match &wish.kind {
        WishKind::Cancel => format!("Cancel {whole_order}."),
        WishKind::Refund => format!("Refund {item}{of_order}."),
        WishKind::Address(address) => format!("Send {whole_order} to {address} instead."),
        WishKind::Exchange(product, variant) => {
            format!("Exchange {item}{of_order} for the {product} ({variant}).")
        }
    }
}
