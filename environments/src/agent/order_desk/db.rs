//! The shop's database, and what its tools do to it.
//!
//! The tools refuse only what can't be done at all; what may not be done is the policy's matter.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// All rows, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Db {
    pub(super) customers: BTreeMap<String, Customer>,
    pub(super) items: BTreeMap<String, Item>,
    pub(super) orders: BTreeMap<String, Order>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Customer {
    pub(super) name: String,
    pub(super) email: String,
    pub(super) tier: Tier,
    pub(super) on_hold: bool,
    pub(super) addresses: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Tier {
    Standard,
    Gold,
}

/// One variant of a product.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Item {
    pub(super) product: String,
    pub(super) variant: String,
    pub(super) price: u32,
    pub(super) stock: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) customer_id: String,
    pub(super) status: Status,
    pub(super) placed_days_ago: u32,
    /// Of a delivered order.
    pub(super) delivered_days_ago: Option<u32>,
    pub(super) address: String,
    pub(super) lines: Vec<Line>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Pending,
    Shipped,
    Delivered,
    Cancelled,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    pub(super) item_id: String,
    pub(super) paid: u32,
    pub(super) final_sale: bool,
    pub(super) state: LineState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LineState {
    Kept,
    Refunded,
    Exchanged,
}

/// A change of the database: the call of a tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "tool", rename_all = "snake_case")]
pub(super) enum Edit {
    CancelOrder {
        order_id: String,
    },
    RefundItem {
        order_id: String,
        item_id: String,
    },
    ChangeAddress {
        order_id: String,
        address: String,
    },
    ExchangeItem {
        order_id: String,
        item_id: String,
        new_item_id: String,
    },
}

impl Edit {
    /// The order that it changes.
    pub(super) fn order_id(&self) -> &str {
        match self {
            Edit::CancelOrder { order_id }
            | Edit::RefundItem { order_id, .. }
            | Edit::ChangeAddress { order_id, .. }
            | Edit::ExchangeItem { order_id, .. } => order_id,
        }
    }
}

impl Db {
    /// The customer with this email, and its id.
    pub(super) fn customer(&self, email: &str) -> Option<(&String, &Customer)> {
        let mut customers = self.customers.iter();
        customers.find(|(_, customer)| customer.email == email)
    }

    /// The item that is this variant of this product.
    pub(super) fn item_id(&self, product: &str, variant: &str) -> Option<&String> {
        let mut items = self.items.iter();
        let found = items.find(|(_, item)| item.product == product && item.variant == variant);
        found.map(|(id, _)| id)
    }

    /// Makes a change, whole or not at all.
    ///
    /// # Errors
    /// Why it can't be made, for the policy.
    pub(super) fn apply(&mut self, change: &Edit) -> Result<(), String> {
        let unknown = || format!("there is no order {}", shown(change.order_id()));
        let order = self.orders.get_mut(change.order_id()).ok_or_else(unknown)?;
        match change {
            Edit::CancelOrder { order_id } => {
                if order.status == Status::Cancelled {
                    return Err(format!("order {order_id} is cancelled already"));
                }
                order.status = Status::Cancelled;
            }
            Edit::RefundItem { item_id, .. } => {
                kept_line(order, item_id)?.state = LineState::Refunded;
            }
            Edit::ChangeAddress { address, .. } => order.address.clone_from(address),
            Edit::ExchangeItem {
                item_id,
                new_item_id,
                ..
            } => {
                let line = kept_line(order, item_id)?;
                let item = self.items.get_mut(new_item_id);
                let item =
                    item.ok_or_else(|| format!("there is no item {}", shown(new_item_id)))?;
                if item.stock == 0 {
                    return Err(format!("item {new_item_id} is out of stock"));
                }
                item.stock -= 1;
                line.item_id.clone_from(new_item_id);
                line.state = LineState::Exchanged;
            }
        }
        Ok(())
    }
}

fn kept_line<'a>(order: &'a mut Order, item_id: &str) -> Result<&'a mut Line, String> {
    let lines = &mut order.lines;
    let line = lines.iter_mut().find(|line| line.item_id == item_id);
    let line = line.ok_or_else(|| format!("the order has no item {}", shown(item_id)))?;
    match line.state {
        LineState::Kept => Ok(line),
        LineState::Refunded => Err(format!("item {item_id} is refunded already")),
        LineState::Exchanged => Err(format!("item {item_id} is exchanged already")),
    }
}

/// The beginning of a text that may be of any length.
pub(super) fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(40).collect::<String>())
}
