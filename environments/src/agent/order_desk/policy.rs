//! The policy document, and what it decides of a ticket.
//!
//! A part of a ticket is done, or refused by the lowest-numbered clause that forbids it. Parts are decided in order,
//! each on the database as the parts before left it.

use serde::{Deserialize, Serialize};

use super::db::{Db, Edit, Order, Status, Tier};

/// Most that one ticket may refund.
pub(super) const MAX_REFUND: u32 = 300;

/// Numbered clauses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Clause {
    Owner = 1,
    Hold = 2,
    CancelPending = 3,
    CancelWindow = 4,
    ReturnWindow = 5,
    FinalSale = 6,
    RefundLimit = 7,
    Address = 8,
    Exchange = 9,
}

impl Clause {
    /// As the policy document has it.
    pub(super) fn text(self) -> String {
        match self {
            Clause::Owner => {
                "Any part: the order belongs to the customer with the ticket's email.".to_string()
            }
            Clause::Hold => "Any part: the customer's account is not on hold.".to_string(),
            Clause::CancelPending => "Cancel: the order is pending.".to_string(),
            Clause::CancelWindow => {
                "Cancel: the order was placed at most 3 days ago; 7 days for tier gold.".to_string()
            }
            Clause::ReturnWindow => {
                "Refund or exchange: the order is delivered, at most 30 days ago; 60 days for \
                                     tier gold."
                    .to_string()
            }
            Clause::FinalSale => {
                "Refund or exchange: the item is not marked final_sale.".to_string()
            }
            Clause::RefundLimit => format!(
                "Refund: what was paid for the item and for those refunded earlier in this ticket is at most \
                 {MAX_REFUND} in all."
            ),
            Clause::Address => {
                "Change of address: the order is pending, and the new address is one of the \
                                customer's addresses, letter by letter."
                    .to_string()
            }
            Clause::Exchange => {
                "Exchange: the new item is another variant of the same product, is in stock, and \
                                 costs at most what was paid."
                    .to_string()
            }
        }
    }
}

/// What a customer asks for, in the customer's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wish {
    pub(super) kind: WishKind,
    /// The order's id, where the customer names it; else it is the customer's order with `item`.
    pub(super) order_id: Option<String>,
    /// Product and variant that the wish is about.
    pub(super) item: (String, String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum WishKind {
    Cancel,
    Refund,
    /// To this address.
    Address(String),
    /// For this product and variant.
    Exchange(String, String),
}

/// A part of a ticket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) wish: Wish,
    /// Wished for where `wish` is refused.
    pub(super) fallback: Option<Wish>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ticket {
    pub(super) email: String,
    pub(super) parts: Vec<Part>,
}

/// What becomes of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Do(Edit),
    Refuse(Clause),
}

/// Finds what `wish` is about; `None` where there is no such thing.
pub(super) fn change_of(db: &Db, customer_id: &str, wish: &Wish) -> Option<Edit> {
    let item_id = db.item_id(&wish.item.0, &wish.item.1)?;
    let holds = |order: &&Order| order.lines.iter().any(|line| line.item_id == *item_id);
    let order_id = match &wish.order_id {
        Some(id) => db.orders.contains_key(id).then_some(id)?,
        None => {
            let mut orders = db.orders.iter();
            let is_meant =
                |(_, order): &(&String, &Order)| order.customer_id == customer_id && holds(order);
            orders.find(is_meant)?.0
        }
    };
    let (order_id, item_id) = (order_id.clone(), item_id.clone());
    Some(match &wish.kind {
        WishKind::Cancel => Edit::CancelOrder { order_id },
        WishKind::Refund => Edit::RefundItem { order_id, item_id },
        WishKind::Address(address) => Edit::ChangeAddress {
            order_id,
            address: address.clone(),
        },
        WishKind::Exchange(product, variant) => Edit::ExchangeItem {
            order_id,
            item_id,
            new_item_id: db.item_id(product, variant)?.clone(),
        },
    })
}

/// The lowest-numbered clause that forbids `change`, after refunds of `refunded` in the same ticket; and what it
/// would refund. `None` where it names something unknown.
pub(super) fn judged(
    db: &Db,
    customer_id: &str,
    change: &Edit,
    refunded: u32,
) -> Option<(Option<Clause>, u32)> {
    let customer = db.customers.get(customer_id)?;
    let order = db.orders.get(change.order_id())?;
    let is_gold = customer.tier == Tier::Gold;
    let mut kept = vec![
        (Clause::Owner, order.customer_id == customer_id),
        (Clause::Hold, !customer.on_hold),
    ];
    let days_to_return = if is_gold { 60 } else { 30 };
    let is_returnable = order.status == Status::Delivered
        && order
            .delivered_days_ago
            .is_some_and(|days| days <= days_to_return);
    let line_of = |item_id: &str| order.lines.iter().find(|line| line.item_id == item_id);
    let mut refund = 0;
    match change {
        Edit::CancelOrder { .. } => {
            let days_to_cancel = if is_gold { 7 } else { 3 };
            kept.push((Clause::CancelPending, order.status == Status::Pending));
            kept.push((
                Clause::CancelWindow,
                order.placed_days_ago <= days_to_cancel,
            ));
        }
        Edit::RefundItem { item_id, .. } => {
            let line = line_of(item_id)?;
            refund = line.paid;
            kept.push((Clause::ReturnWindow, is_returnable));
            kept.push((Clause::FinalSale, !line.final_sale));
            kept.push((Clause::RefundLimit, refunded + line.paid <= MAX_REFUND));
        }
        Edit::ChangeAddress { address, .. } => {
            let is_known = customer.addresses.contains(address);
            kept.push((Clause::Address, order.status == Status::Pending && is_known));
        }
        Edit::ExchangeItem {
            item_id,
            new_item_id,
            ..
        } => {
            let line = line_of(item_id)?;
            let (old, new) = (db.items.get(item_id)?, db.items.get(new_item_id)?);
            let is_fitting = old.product == new.product
                && item_id != new_item_id
                && new.stock > 0
                && new.price <= line.paid;
            kept.push((Clause::ReturnWindow, is_returnable));
            kept.push((Clause::FinalSale, !line.final_sale));
            kept.push((Clause::Exchange, is_fitting));
        }
    }
    let broken = kept.into_iter().filter(|(_, is_kept)| !is_kept);
    Some((broken.map(|(clause, _)| clause).min(), refund))
}

/// Decides every part of `ticket` and makes the changes in `db`. `None` where a part names something unknown or
/// the policy allows what can't be done: no ticket of ours.
pub(super) fn decide(db: &mut Db, ticket: &Ticket) -> Option<Vec<Decision>> {
    let customer_id = db.customer(&ticket.email)?.0.clone();
    // What the words mean is settled before anything changes.
    let meant = |part: &Part| -> Option<Vec<Edit>> {
        let wishes = [Some(&part.wish), part.fallback.as_ref()];
        let changes = wishes.into_iter().flatten();
        changes
            .map(|wish| change_of(db, &customer_id, wish))
            .collect()
    };
    let parts: Vec<Vec<Edit>> = ticket.parts.iter().map(meant).collect::<Option<_>>()?;
    let mut refunded = 0;
    let mut decisions = Vec::new();
    for changes in parts {
        let mut decision = None;
        for change in changes {
            let (clause, refund) = judged(db, &customer_id, &change, refunded)?;
            match clause {
                None => {
                    db.apply(&change).ok()?;
                    refunded += refund;
                    decision = Some(Decision::Do(change));
                    break;
                }
                Some(clause) => {
                    decision.get_or_insert(Decision::Refuse(clause));
                }
            }
        }
        decisions.push(decision?);
    }
    Some(decisions)
}
