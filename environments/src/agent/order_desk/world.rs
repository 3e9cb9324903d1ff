//! Draws a shop and a ticket.

use std::collections::BTreeSet;

use super::Profile;
use super::db::{Customer, Db, Item, Line, LineState, Order, Status, Tier};
use super::policy::{Clause, Decision, Part, Ticket, Wish, WishKind, decide};
use crate::agent::names::Names;
use crate::draw::Draw;

const VARIANTS: [&str; 4] = ["red", "blue", "green", "black"];

/// A shop and a ticket of `profile`; `None` where the draw is not as wanted.
pub(super) fn draw_case(profile: &Profile, draw: &mut Draw) -> Option<(Db, Ticket)> {
    let mut maker = Maker {
        profile,
        names: Names::default(),
        ids: BTreeSet::new(),
        db: Db::default(),
    };
    // Mixed tickets, but for a few: what is asked tells nothing of what is right.
    let wanted = draw.index(16);
    maker.catalogue(draw);
    let customers: Vec<String> = (0..profile.num_customers)
        .map(|_| maker.customer(draw))
        .collect();
    let writer = draw.choose(&customers.iter().collect::<Vec<_>>()).clone();
    // An account on hold has every part refused.
    let is_held = wanted == 1 && draw.coin();
    maker.db.customers.get_mut(&writer)?.on_hold = is_held;
    let mut stock = maker.shuffled_items(draw);
    let mut parts = Vec::new();
    for _ in 0..profile.num_parts {
        let is_foreign = draw.index(10) == 0;
        let others: Vec<&String> = customers.iter().filter(|id| **id != writer).collect();
        let owner = match is_foreign {
            true => draw.choose(&others).clone(),
            false => writer.clone(),
        };
        parts.push(maker.part(&writer, &owner, &mut stock, draw)?);
    }
    for id in &customers {
        for _ in 0..profile.num_idle_orders {
            let status = draw.choose(&[Status::Pending, Status::Shipped, Status::Delivered]);
            maker.order(id, status, &mut stock, draw)?;
        }
    }
    let db = maker.db;
    let email = db.customers[&writer].email.clone();
    let ticket = Ticket { email, parts };
    let decisions = decide(&mut db.clone(), &ticket)?;
    let is_refused = |decision: &Decision| matches!(decision, Decision::Refuse(_));
    let num_refused = decisions.iter().filter(|d| is_refused(d)).count();
    let is_wanted = match wanted {
        0 => num_refused == 0,
        1 => num_refused == decisions.len(),
        _ => 0 < num_refused && num_refused < decisions.len(),
    };
    let is_in_document = |decision: &Decision| match decision {
        Decision::Refuse(clause) => profile.clauses().contains(clause),
        Decision::Do(_) => true,
    };
    (is_wanted && decisions.iter().all(is_in_document)).then_some((db, ticket))
}

struct Maker<'a> {
    profile: &'a Profile,
    names: Names,
    ids: BTreeSet<String>,
    db: Db,
}

impl Maker<'_> {
    fn id(&mut self, letter: char, draw: &mut Draw) -> String {
        loop {
            let id = format!("{letter}{}", draw.between(1000..=9999));
            if self.ids.insert(id.clone()) {
                return id;
            }
        }
    }

    fn catalogue(&mut self, draw: &mut Draw) {
        for _ in 0..self.profile.num_products {
            let product = self.names.place(draw, &["lamp", "bag", "chair", "radio"]);
            let price = draw.between(4..=26) as u32 * 10;
            for variant in VARIANTS {
                let item = Item {
                    product: product.clone(),
                    variant: variant.to_string(),
                    price: price + draw.choose(&[0, 0, 10]),
                    stock: draw.choose(&[0, 1, 2, 5, 8]),
                };
                let id = self.id('I', draw);
                self.db.items.insert(id, item);
            }
        }
    }

    fn customer(&mut self, draw: &mut Draw) -> String {
        let id = self.id('C', draw);
        let (first, last) = (self.names.name(draw), self.names.name(draw));
        let customer = Customer {
            email: format!("{first}.{last}@post.example").to_lowercase(),
            name: format!("{first} {last}"),
            tier: draw.choose(&[Tier::Standard, Tier::Gold]),
            on_hold: draw.index(8) == 0,
            addresses: (0..2).map(|_| self.address(draw)).collect(),
        };
        self.db.customers.insert(id.clone(), customer);
        id
    }

    fn address(&mut self, draw: &mut Draw) -> String {
        format!("{} {} Street", draw.between(1..=99), self.names.name(draw))
    }

    /// Every item once. An item is in one order at most, so that a customer's words mean one order.
    fn shuffled_items(&self, draw: &mut Draw) -> Vec<String> {
        let mut ids: Vec<String> = self.db.items.keys().cloned().collect();
        for at in (1..ids.len()).rev() {
            ids.swap(at, draw.index(at + 1));
        }
        ids
    }

    /// An order of one or two items, and the first of them.
    fn order(
        &mut self,
        customer_id: &str,
        status: Status,
        stock: &mut Vec<String>,
        draw: &mut Draw,
    ) -> Option<(String, String)> {
        let mut lines = Vec::new();
        for _ in 0..draw.between(1..=2) {
            let item_id = stock.pop()?;
            lines.push(Line {
                paid: self.db.items[&item_id].price,
                item_id,
                final_sale: draw.index(6) == 0,
                state: LineState::Kept,
            });
        }
        let first = lines[0].item_id.clone();
        let delivered_days_ago = match status {
            Status::Delivered => {
                let (low, high) = draw.choose(&[(1, 30), (1, 30), (31, 60), (61, 90)]);
                Some(draw.between(low..=high) as u32)
            }
            _ => None,
        };
        let placed = match status {
            Status::Pending => {
                let (low, high) = draw.choose(&[(0, 3), (0, 3), (4, 7), (8, 12)]);
                draw.between(low..=high)
            }
            _ => draw.between(3..=9) + i64::from(delivered_days_ago.unwrap_or(0)),
        };
        let order = Order {
            customer_id: customer_id.to_string(),
            status,
            placed_days_ago: placed as u32,
            delivered_days_ago,
            address: draw
                .choose(
                    &self.db.customers[customer_id]
                        .addresses
                        .iter()
                        .collect::<Vec<_>>(),
                )
                .clone(),
            lines,
        };
        let id = self.id('W', draw);
        self.db.orders.insert(id.clone(), order);
        Some((id, first))
    }

    /// One part of the writer's ticket, about a fresh order of `owner`.
    fn part(
        &mut self,
        writer: &str,
        owner: &str,
        stock: &mut Vec<String>,
        draw: &mut Draw,
    ) -> Option<Part> {
        let kind = draw.index(self.profile.num_kinds);
        let fits = match kind {
            0 | 2 => Status::Pending,
            _ => Status::Delivered,
        };
        let status = match draw.index(5) {
            0 => draw.choose(&[Status::Shipped, Status::Delivered, Status::Cancelled]),
            _ => fits,
        };
        let (order_id, item_id) = self.order(owner, status, stock, draw)?;
        let item = self.db.items[&item_id].clone();
        let is_by_id = self.profile.names_orders || owner != writer;
        let wish = |kind| Wish {
            kind,
            order_id: is_by_id.then(|| order_id.clone()),
            item: (item.product.clone(), item.variant.clone()),
        };
        let kind = match kind {
            0 => WishKind::Cancel,
            1 => WishKind::Refund,
            2 => WishKind::Address(self.new_address(writer, &order_id, draw)),
            _ => {
                let others: Vec<Item> = (self.db.items.values())
                    .filter(|other| {
                        (other.product == item.product && other.variant != item.variant)
                            || draw.index(40) == 0
                    })
                    .cloned()
                    .collect();
                let new = others.get(draw.index(others.len().max(1)))?;
                if new == &item {
                    return None;
                }
                WishKind::Exchange(new.product.clone(), new.variant.clone())
            }
        };
        let has_fallback = self.profile.has_fallbacks && draw.coin();
        let fallback = match kind {
            WishKind::Exchange(..) if has_fallback => Some(wish(WishKind::Refund)),
            WishKind::Cancel if has_fallback => {
                let address = self.new_address(writer, &order_id, draw);
                Some(wish(WishKind::Address(address)))
            }
            _ => None,
        };
        Some(Part {
            wish: wish(kind),
            fallback,
        })
    }

    /// Mostly the other one of the writer's addresses, at times one that is on no account.
    fn new_address(&mut self, writer: &str, order_id: &str, draw: &mut Draw) -> String {
        let unknown = self.address(draw);
        let known = &self.db.customers[writer].addresses;
        let present = &self.db.orders[order_id].address;
        let mut others = known.iter().filter(|address| *address != present);
        match others.next() {
            Some(other) if draw.index(4) > 0 => other.clone(),
            _ => unknown,
        }
    }
}

impl Profile {
    /// Clauses of the level's document.
    pub(super) fn clauses(&self) -> Vec<Clause> {
        let mut clauses = vec![
            Clause::Owner,
            Clause::Hold,
            Clause::CancelPending,
            Clause::CancelWindow,
        ];
        if self.num_kinds > 1 {
            clauses.extend([Clause::ReturnWindow, Clause::FinalSale, Clause::RefundLimit]);
        }
        if self.num_kinds > 2 {
            clauses.extend([Clause::Address, Clause::Exchange]);
        }
        clauses
    }
}
