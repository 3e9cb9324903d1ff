//! The tables, and the files that hold them.

use sandbox::FileIn;

use crate::draw::Draw;

pub(super) const STATES: [&str; 4] = ["paid", "open", "shipped", "cancelled"];
pub(super) const REGIONS: [&str; 4] = ["north", "south", "east", "west"];
/// Days of the year of the orders, 2025.
pub(super) const NUM_DAYS: u32 = 365;
/// Largest amount of an order.
pub(super) const MAX_CENTS: i64 = 250_000;
const MONTHS: [u32; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// A line of orders.csv.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) id: u32,
    pub(super) customer: u32,
    /// From 0.
    pub(super) day: u32,
    pub(super) state: usize,
    pub(super) cents: i64,
    shown: Shown,
}

/// How a line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shown {
    has_dollar: bool,
    has_commas: bool,
    case: usize,
}

/// What the files say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tables {
    level: u32,
    pub(super) orders: Vec<Order>,
    /// Customers and their regions.
    pub(super) customers: Vec<(u32, usize)>,
    /// Orders and what was given back.
    pub(super) returns: Vec<(u32, i64)>,
}

/// Lines of orders.csv.
pub(super) fn num_orders(level: u32) -> usize {
    match level {
        1 => 40,
        2 => 500,
        3 => 1500,
        4 => 3000,
        _ => 5000,
    }
}

/// A day of the year as 2025-MM-DD.
pub(super) fn date(day: u32) -> String {
    let mut day = day.min(NUM_DAYS - 1);
    let mut month = 0;
    while day >= MONTHS[month] {
        day -= MONTHS[month];
        month += 1;
    }
    format!("2025-{:02}-{:02}", month + 1, day + 1)
}

fn in_case(word: &str, case: usize) -> String {
    match case {
        1 => word.to_uppercase(),
        2 => word[..1].to_uppercase() + &word[1..],
        _ => word.to_string(),
    }
}

/// Dollars with two decimals.
fn amount(cents: i64, shown: Shown) -> String {
    let digits = (cents / 100).to_string();
    let mut dollars = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if shown.has_commas && place > 0 && (digits.len() - place).is_multiple_of(3) {
            dollars.push(',');
        }
        dollars.push(digit);
    }
    let text = format!(
        "{}{dollars}.{:02}",
        if shown.has_dollar { "$" } else { "" },
        cents % 100
    );
    match text.contains(',') {
        true => format!("\"{text}\""),
        false => text,
    }
}

fn drawn_shown(level: u32, draw: &mut Draw) -> Shown {
    Shown {
        has_dollar: level >= 2 && draw.coin(),
        has_commas: level >= 2 && draw.coin(),
        case: if level >= 5 { draw.index(3) } else { 0 },
    }
}

impl Tables {
    /// The tables of a number, the same on every machine.
    pub(super) fn draw(level: u32, stream: u64) -> Tables {
        let draw = &mut Draw::of_content(stream);
        let num_orders = num_orders(level);
        let first_customer = draw.between(1000..=8000) as u32;
        let num_customers = (num_orders / 12).max(6);
        let customers: Vec<(u32, usize)> = (0..num_customers as u32)
            .map(|number| (first_customer + number, draw.index(REGIONS.len())))
            .collect();
        let first_order = draw.between(10_000..=80_000) as u32;
        let mut orders: Vec<Order> = Vec::with_capacity(num_orders);
        for _ in 0..num_orders {
            let repeated = (level >= 4 && !orders.is_empty() && draw.index(8) == 0)
                .then(|| draw.index(orders.len()));
            let mut order = match repeated {
                Some(at) => orders[at].clone(),
                None => Order {
                    id: first_order + orders.len() as u32,
                    customer: draw.choose(&customers).0,
                    day: draw.index(NUM_DAYS as usize) as u32,
                    state: 0,
                    cents: 0,
                    shown: Shown::default(),
                },
            };
            order.state = draw.index(STATES.len());
            order.cents = draw.between(100..=MAX_CENTS);
            order.shown = drawn_shown(level, draw);
            orders.push(order);
        }
        let num_returns = if level >= 5 { num_orders / 6 } else { 0 };
        let returns = (0..num_returns)
            .map(|_| {
                let order = &orders[draw.index(num_orders)];
                (order.id, draw.between(1..=50_000))
            })
            .collect();
        let is_kept = |draw: &mut Draw| level < 5 || draw.index(10) > 0;
        let mut kept: Vec<(u32, usize)> = customers.into_iter().filter(|_| is_kept(draw)).collect();
        // Not in the order of their numbers.
        for at in (1..kept.len()).rev() {
            kept.swap(at, draw.index(at + 1));
        }
        Tables {
            level,
            orders,
            customers: kept,
            returns,
        }
    }

    /// The files of a session's folder.
    pub(super) fn files(&self) -> Vec<FileIn> {
        let mut text = String::from("order_id,customer_id,date,state,amount\n");
        for order in &self.orders {
            let state = in_case(STATES[order.state], order.shown.case);
            let amount = amount(order.cents, order.shown);
            text += &format!(
                "{},{},{},{state},{amount}\n",
                order.id,
                order.customer,
                date(order.day)
            );
        }
        let mut files = vec![FileIn::new("orders.csv", text)];
        if self.level >= 3 {
            let mut text = String::from("customer_id,region\n");
            for (customer, region) in &self.customers {
                let case = if self.level >= 5 { customer % 3 } else { 0 };
                text += &format!("{customer},{}\n", in_case(REGIONS[*region], case as usize));
            }
            files.push(FileIn::new("customers.csv", text));
        }
        if self.level >= 5 {
            let mut text = String::from("order_id,amount\n");
            for (order, cents) in &self.returns {
                let shown = Shown {
                    has_dollar: order % 2 == 0,
                    ..Shown::default()
                };
                text += &format!("{order},{}\n", amount(*cents, shown));
            }
            files.push(FileIn::new("returns.csv", text));
        }
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_dates_are_written_as_the_question_says() {
        let shown = |has_dollar, has_commas| Shown {
            has_dollar,
            has_commas,
            case: 0,
        };
        assert_eq!(amount(123_456, shown(false, false)), "1234.56");
        assert_eq!(amount(123_405, shown(true, true)), "\"$1,234.05\"");
        assert_eq!(amount(99_900, shown(true, true)), "$999.00");
        assert_eq!(amount(7, shown(false, true)), "0.07");
        assert_eq!(
            (date(0), date(58)),
            ("2025-01-01".to_string(), "2025-02-28".to_string())
        );
        assert_eq!(
            (date(59), date(364)),
            ("2025-03-01".to_string(), "2025-12-31".to_string())
        );
        assert_eq!(date(900), "2025-12-31");
        assert_eq!(in_case("north", 2), "North");
    }
}
