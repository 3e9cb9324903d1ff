//! Questions about tables that are too large to be read in a context: CSV files in the folder of the code interpreter's
//! session. One integer, an amount in cents.
//!
//! A level adds rows and rules: a state (1), dates, and amounts written in several ways (2), a second table to join (3), lines
//! that replace earlier ones (4), a third table, customers that are missing and letters in any case (5). The files are made
//! of a number in the gold where a session opens.

mod files;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::draw::Draw;
use crate::echo::without_question;
use crate::instance::{Domain, Instance, TaskFamily};
use crate::interpreter::{self, Interpreter, InterpreterSession};
use crate::math::{boxed, grade_list, last_number};
use crate::session::Session;
use crate::tool::{ToolCall, ToolDef};
use crate::verdict::{Fault, FaultKind, Verdict};

use files::{NUM_DAYS, REGIONS, STATES, Tables, date, num_orders};

/// The family.
pub(crate) struct TableAnswer;

/// Fewer orders make no question.
const MIN_COUNTED: usize = 3;

/// A question and the tables that it is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Problem {
    level: u32,
    /// What the tables are drawn from.
    stream: u64,
    state: usize,
    /// First and last day, both counted.
    days: Option<(u32, u32)>,
    region: Option<usize>,
    wanted: Wanted,
}

/// What is asked of the amounts of the orders that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Wanted {
    Total,
    BestCustomer,
    BestDay,
    /// The amount in this place, the largest being the first.
    Ranked(usize),
}

/// What a session is made of.
#[derive(Serialize, Deserialize)]
struct Gold {
    problem: Problem,
    answer: i64,
}

impl Gold {
    fn read(gold: &str) -> Result<Gold, Fault> {
        serde_json::from_str(gold)
            .map_err(|error| Fault::new(FaultKind::Grader, format!("no problem: {error}")))
    }

    fn grade(&self, completion: &str) -> Verdict {
        let answer = without_question(completion, &self.problem.question());
        grade_list(&answer, |numbers| numbers == [self.answer])
    }
}

impl Problem {
    fn draw(level: u32, draw: &mut Draw) -> Problem {
        let first = draw.between(0..=i64::from(NUM_DAYS) * 2 / 3) as u32;
        let days = (first, first + draw.between(60..=110) as u32);
        let region = draw.index(REGIONS.len());
        Problem {
            level,
            stream: draw.between(0..=i64::MAX - 1) as u64,
            state: draw.index(STATES.len()),
            days: (level >= 2).then_some(days),
            region: (level >= 3).then_some(region),
            wanted: match draw.index(4) {
                0 => Wanted::Total,
                1 => Wanted::BestCustomer,
                2 => Wanted::BestDay,
                _ => Wanted::Ranked(draw.between(2..=MIN_COUNTED as i64) as usize),
            },
        }
    }

    fn question(&self) -> String {
        let mut text = String::from(
            "The folder of the Python session holds orders.csv, with the columns order_id, customer_id, date, state and amount",
        );
        if self.level >= 3 {
            text += ", and customers.csv, with the columns customer_id and region";
        }
        if self.level >= 5 {
            text += ", and returns.csv, with the columns order_id and amount";
        }
        text += ". Amounts are in dollars with two decimals";
        if self.level >= 2 {
            text += ", some of them with a dollar sign, with commas between thousands, or both";
        }
        text += ".";
        if self.level >= 4 {
            text += " Where several lines have the same order_id, the last of them alone counts.";
        }
        if self.level >= 5 {
            text += " What returns.csv has for an order, in one or more lines, is taken off its amount. Orders of customers that customers.csv lacks don't count. Regions and states are written in any letter case.";
        }
        let mut conditions = vec![format!("the state {}", STATES[self.state])];
        if let Some((first, last)) = self.days {
            conditions.push(format!("a date from {} to {}", date(first), date(last)));
        }
        if let Some(region) = self.region {
            conditions.push(format!("a customer of the region {}", REGIONS[region]));
        }
        let which = conditions.join(" and ");
        let wanted = match self.wanted {
            Wanted::Total => "What is the sum of their amounts".to_string(),
            Wanted::BestCustomer => {
                "What is the largest sum of their amounts that one customer has".to_string()
            }
            Wanted::BestDay => "What is the largest sum of their amounts on one date".to_string(),
            Wanted::Ranked(2) => "What is the second largest of their amounts".to_string(),
            Wanted::Ranked(_) => "What is the third largest of their amounts".to_string(),
        };
        text + &format!(
            " Take the orders with {which}. {wanted}, in cents? Give it, one integer, as \\boxed{{integer}}."
        )
    }

    /// `None` where too few orders count, or the answer is no positive amount.
    fn answer(&self, tables: &Tables) -> Option<i64> {
        let mut latest = BTreeMap::new();
        for order in &tables.orders {
            latest.insert(order.id, order);
        }
        let regions: BTreeMap<u32, usize> = tables.customers.iter().copied().collect();
        let mut amounts = Vec::new();
        let (mut by_customer, mut by_day) = (BTreeMap::new(), BTreeMap::new());
        for order in latest.values() {
            let is_in_time = |(first, last)| (first..=last).contains(&order.day);
            let is_there = |region| regions.get(&order.customer) == Some(&region);
            if order.state != self.state
                || !self.days.is_none_or(is_in_time)
                || !self.region.is_none_or(is_there)
            {
                continue;
            }
            let returned = tables.returns.iter().filter(|(id, _)| *id == order.id);
            let amount = order.cents - returned.map(|(_, cents)| cents).sum::<i64>();
            amounts.push(amount);
            *by_customer.entry(order.customer).or_insert(0) += amount;
            *by_day.entry(order.day).or_insert(0) += amount;
        }
        if amounts.len() < MIN_COUNTED {
            return None;
        }
        amounts.sort_unstable();
        let answer = match self.wanted {
            Wanted::Total => amounts.iter().sum(),
            Wanted::BestCustomer => by_customer.into_values().max()?,
            Wanted::BestDay => by_day.into_values().max()?,
            Wanted::Ranked(place) => amounts[amounts.len() - place],
        };
        (answer > 0).then_some(answer)
    }

    /// Two cells: the tables, and the line whose value is the answer.
    fn cells(&self) -> [String; 2] {
        let mut read = String::from(
            "import csv\nfrom collections import Counter\n\ndef cents(text):\n    dollars, rest = text.replace('$', '').replace(',', '').split('.')\n    return int(dollars) * 100 + int(rest)\n\ndef rows(name):\n    with open(name, newline='') as file:\n        return list(csv.DictReader(file))\n\norders = {}\nfor row in rows('orders.csv'):\n    orders[row['order_id']] = dict(row, amount=cents(row['amount']))",
        );
        if self.level >= 5 {
            read += "\nback = Counter()\nfor row in rows('returns.csv'):\n    back[row['order_id']] += cents(row['amount'])\nfor number, order in orders.items():\n    order['amount'] -= back[number]";
        }
        if self.level >= 3 {
            read += "\nregion = {row['customer_id']: row['region'].lower() for row in rows('customers.csv')}";
        }
        let mut conditions = vec![format!("o['state'].lower() == '{}'", STATES[self.state])];
        if let Some((first, last)) = self.days {
            conditions.push(format!(
                "'{}' <= o['date'] <= '{}'",
                date(first),
                date(last)
            ));
        }
        if let Some(wanted) = self.region {
            let wanted = REGIONS[wanted];
            conditions.push(format!("region.get(o['customer_id']) == '{wanted}'"));
        }
        read += &format!(
            "\ncounted = [o for o in orders.values() if {}]",
            conditions.join(" and ")
        );
        let largest = |key: &str| {
            format!(
                "sums = Counter()\nfor o in counted:\n    sums[o['{key}']] += o['amount']\nmax(sums.values())"
            )
        };
        let ask = match self.wanted {
            Wanted::Total => "sum(o['amount'] for o in counted)".to_string(),
            Wanted::BestCustomer => largest("customer_id"),
            Wanted::BestDay => largest("date"),
            Wanted::Ranked(place) => format!("sorted(o['amount'] for o in counted)[-{place}]"),
        };
        [read, ask]
    }
}

impl TaskFamily for TableAnswer {
    fn summary(&self) -> &'static str {
        "questions about tables in files, by Python cells"
    }

    fn name(&self) -> &'static str {
        "table_answer"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=5
    }

    fn domain(&self) -> Domain {
        Domain::Programming
    }

    fn needs_sandbox(&self) -> bool {
        true
    }

    fn is_quick(&self) -> bool {
        false
    }

    fn tools(&self, _level: u32) -> Vec<ToolDef> {
        vec![interpreter::tool(&interpreter::limits())]
    }

    fn open(&self, _level: u32, gold: &str) -> Result<Option<Box<dyn Session>>, Fault> {
        let gold = Gold::read(gold)?;
        let files = Tables::draw(gold.problem.level, gold.problem.stream).files();
        let interpreter = Interpreter::new(interpreter::limits(), files)?;
        let session = InterpreterSession::new(interpreter, move |answer| gold.grade(answer));
        Ok(Some(Box::new(session)))
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let problem = Problem::draw(level, draw);
        let answer = problem.answer(&Tables::draw(level, problem.stream))?;
        let witness = problem.cells().into_iter().zip(1..).map(|(code, number)| {
            vec![ToolCall {
                id: format!("call_{number}"),
                name: interpreter::TOOL.to_string(),
                arguments: json!({ "code": code }).to_string(),
            }]
        });
        Some(Instance {
            canonical: serde_json::to_string(&problem).ok()?,
            system: None,
            question: problem.question(),
            witness: witness.collect(),
            solution: boxed(&[answer]),
            gold: serde_json::to_string(&Gold { problem, answer }).ok()?,
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        Gold::read(gold).map_or_else(Verdict::from, |gold| gold.grade(completion))
    }

    /// A random amount, up to what all orders come to.
    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        let most = num_orders(level) as i64 * files::MAX_CENTS / 2;
        boxed(&[draw.between(1..=most)])
    }

    fn greedy_answer(&self, question: &str) -> String {
        last_number(question)
    }
}

#[cfg(test)]
mod tests;
