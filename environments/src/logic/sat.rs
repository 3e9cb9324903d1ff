//! Satisfiability: give every variable a truth value such that every clause has a true literal.
//!
//! Clauses are drawn around a hidden assignment. Of a clause's three literals one is true with probability 4/6, two with
//! 1/6, three with 1/6, so that a literal is true half the time and its count of signs gives nothing away. Effort is the
//! number of nodes of a search by unit propagation that branches on the shortest clause.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::committed::committed;
use crate::draw::Draw;
use crate::instance::{Domain, Instance, TaskFamily};
use crate::logic::{Puzzle, shuffle, shuffled};
use crate::verdict::Verdict;

/// The family.
pub(crate) struct Sat;

/// Small levels add clauses until so few assignments are left.
const MAX_MODELS: usize = 2;
/// Fewer clauses than this are no puzzle.
const MAX_CLAUSES: usize = 400;

/// A variable from 1, negative where negated.
type Literal = i32;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Formula {
    num_variables: usize,
    clauses: Vec<Vec<Literal>>,
}

/// Variables, literals a clause, clauses (0: until [`MAX_MODELS`] are left).
fn size(level: u32) -> (usize, usize, usize) {
    match level {
        1 => (5, 2, 0),
        2 => (7, 3, 0),
        3 => (12, 3, 54),
        4 => (20, 3, 88),
        5 => (35, 3, 150),
        _ => (50, 3, 212),
    }
}

fn variable(literal: Literal) -> usize {
    literal.unsigned_abs() as usize - 1
}

fn is_satisfied(clauses: &[Vec<Literal>], values: &[bool]) -> bool {
    let holds = |&literal: &Literal| values[variable(literal)] == (literal > 0);
    clauses.iter().all(|clause| clause.iter().any(holds))
}

/// A clause that `hidden` satisfies.
fn random_clause(hidden: &[bool], len: usize, draw: &mut Draw) -> Vec<Literal> {
    let num_true = match draw.index(6) {
        0 if len == 3 => 3,
        0 | 1 => 2,
        _ => 1,
    };
    let chosen = &shuffled(hidden.len(), draw)[..len];
    let mut clause: Vec<Literal> = chosen
        .iter()
        .enumerate()
        .map(|(place, &variable)| {
            let literal = variable as Literal + 1;
            let is_positive = hidden[variable] == (place < num_true);
            if is_positive { literal } else { -literal }
        })
        .collect();
    shuffle(&mut clause, draw);
    clause
}

/// How many of all assignments satisfy the clauses.
fn num_models(num_variables: usize, clauses: &[Vec<Literal>]) -> usize {
    let masks: Vec<(u32, u32)> = clauses
        .iter()
        .map(|clause| {
            let bits = |is_positive: bool| {
                let of_sign = clause
                    .iter()
                    .filter(|&&literal| (literal > 0) == is_positive);
                of_sign.fold(0u32, |bits, &literal| bits | 1 << variable(literal))
            };
            (bits(true), bits(false))
        })
        .collect();
    let fits = |&values: &u32| {
        masks
            .iter()
            .all(|&(yes, no)| values & yes != 0 || !values & no != 0)
    };
    (0..1u32 << num_variables).filter(fits).count()
}

/// Unit propagation and branching; counts nodes up to the first assignment.
struct Search<'a> {
    formula: &'a Formula,
    num_nodes: u64,
}

impl Search<'_> {
    fn run(&mut self, mut values: Vec<Option<bool>>) -> Option<Vec<bool>> {
        self.num_nodes += 1;
        loop {
            // The unsatisfied clause with the fewest open literals.
            let mut shortest: Option<Vec<Literal>> = None;
            for clause in &self.formula.clauses {
                let value =
                    |literal: Literal| values[variable(literal)].map(|v| v == (literal > 0));
                if clause.iter().any(|&literal| value(literal) == Some(true)) {
                    continue;
                }
                let open: Vec<Literal> = clause
                    .iter()
                    .copied()
                    .filter(|&literal| value(literal).is_none())
                    .collect();
                if shortest.as_ref().is_none_or(|best| open.len() < best.len()) {
                    shortest = Some(open);
                }
            }
            match shortest.as_deref() {
                None => return Some(values.iter().map(|value| value.unwrap_or(false)).collect()),
                Some([]) => return None,
                Some(&[literal]) => values[variable(literal)] = Some(literal > 0),
                Some(&[literal, ..]) => {
                    for is_true in [true, false] {
                        let mut branch = values.clone();
                        branch[variable(literal)] = Some((literal > 0) == is_true);
                        if let Some(found) = self.run(branch) {
                            return Some(found);
                        }
                    }
                    return None;
                }
            }
        }
    }
}

fn parse(gold: &str) -> Formula {
    serde_json::from_str(gold).expect("we wrote it")
}

fn literals(values: &[bool]) -> String {
    let literal = |(variable, &value): (usize, &bool)| {
        format!("{}{}", if value { "" } else { "-" }, variable + 1)
    };
    values
        .iter()
        .enumerate()
        .map(literal)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Values by variable, if `answer` names each variable once.
fn read_values(answer: &str, num_variables: usize) -> Option<Vec<bool>> {
    let mut values = vec![None; num_variables];
    let parts =
        answer.split(|letter: char| letter.is_whitespace() || letter == ',' || letter == ';');
    for part in parts.filter(|part| !part.is_empty()) {
        let number: Literal = part.replace('\u{2212}', "-").parse().ok()?;
        let place = values.get_mut((number.unsigned_abs() as usize).checked_sub(1)?)?;
        if place.replace(number > 0).is_some() {
            return None;
        }
    }
    values.into_iter().collect()
}

impl Puzzle for Sat {
    fn unit(&self) -> &'static str {
        "search nodes"
    }

    fn effort(&self, gold: &str) -> u64 {
        let formula = parse(gold);
        let mut search = Search {
            formula: &formula,
            num_nodes: 0,
        };
        search.run(vec![None; formula.num_variables]);
        search.num_nodes
    }
}

impl TaskFamily for Sat {
    fn name(&self) -> &'static str {
        "sat"
    }

    fn summary(&self) -> &'static str {
        "values of variables that satisfy every clause"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=6
    }

    fn domain(&self) -> Domain {
        Domain::Logic
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let (num_variables, len, num_clauses) = size(level);
        let hidden: Vec<bool> = (0..num_variables).map(|_| draw.coin()).collect();
        let mut clauses: Vec<Vec<Literal>> = Vec::new();
        for _ in 0..MAX_CLAUSES {
            let is_done = match num_clauses {
                0 => num_models(num_variables, &clauses) <= MAX_MODELS,
                wanted => clauses.len() == wanted,
            };
            if is_done {
                break;
            }
            let clause = random_clause(&hidden, len, draw);
            let is_same =
                |known: &Vec<Literal>| clause.iter().all(|literal| known.contains(literal));
            if !clauses.iter().any(is_same) {
                clauses.push(clause);
            }
        }
        let lines: Vec<String> = clauses
            .iter()
            .map(|clause| {
                clause
                    .iter()
                    .map(Literal::to_string)
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect();
        // One true literal of each clause, while that is short.
        let holds = |literal: &&Literal| hidden[variable(**literal)] == (**literal > 0);
        let reasons: Vec<String> = clauses
            .iter()
            .filter_map(|clause| clause.iter().find(holds))
            .map(Literal::to_string)
            .take(60)
            .collect();
        let mut canonical = lines.clone();
        canonical.sort_unstable();
        Some(Instance {
            canonical: canonical.join(";"),
            question: format!(
                "There are {num_variables} variables, each true or false. Every line below is a clause; the number k in it \
                 says that variable k is true, -k that it is false. Choose values such that in every clause at least one \
                 of the numbers is right.\n{}\nAnswer with k or -k for each variable k from 1 to {num_variables}, separated \
                 by spaces, in \\boxed{{}}.",
                lines.join("\n")
            ),
            solution: format!(
                "True in each clause: {}. \\boxed{{{}}}",
                reasons.join(" "),
                literals(&hidden)
            ),
            gold: serde_json::to_string(&Formula {
                num_variables,
                clauses,
            })
            .expect("plain data"),
            ..Instance::default()
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        let formula = parse(gold);
        let answer = committed(completion);
        let is_right = answer
            .and_then(|answer| read_values(answer, formula.num_variables))
            .is_some_and(|values| is_satisfied(&formula.clauses, &values));
        Verdict::exact(is_right, answer.map(str::to_string))
    }

    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        let values: Vec<bool> = (0..size(level).0).map(|_| draw.coin()).collect();
        format!("\\boxed{{{}}}", literals(&values))
    }

    /// Gives each variable the sign that it has more often.
    fn greedy_answer(&self, question: &str) -> String {
        let is_clause = |line: &&str| line.split(' ').all(|word| word.parse::<Literal>().is_ok());
        let clauses: Vec<Literal> = question
            .lines()
            .filter(is_clause)
            .flat_map(|line| line.split(' ').filter_map(|word| word.parse().ok()))
            .collect();
        let num_variables = clauses.iter().map(|&literal| variable(literal) + 1).max();
        let mut balance = vec![0; num_variables.unwrap_or(0)];
        for literal in clauses {
            balance[variable(literal)] += literal.signum();
        }
        let values: Vec<bool> = balance.iter().map(|&sum| sum >= 0).collect();
        format!("\\boxed{{{}}}", literals(&values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reward(answer: &str) -> f64 {
        let formula = Formula {
            num_variables: 3,
            clauses: vec![vec![1, 2], vec![-1, 3], vec![-2, -3]],
        };
        let gold = serde_json::to_string(&formula).expect("plain data");
        let verdict = Sat.grade(&gold, &format!("\\boxed{{{answer}}}"));
        verdict.reward().expect("always graded")
    }

    #[test]
    fn every_satisfying_assignment_is_right_and_no_other() {
        let right: Vec<[i32; 3]> = (0..8)
            .map(|bits: i32| [1, 2, 3].map(|k| if bits >> (k - 1) & 1 == 1 { k } else { -k }))
            .filter(|answer| reward(&format!("{answer:?}").replace(['[', ']'], "")) == 1.0)
            .collect();
        assert_eq!(right, [[-1, 2, -3], [1, -2, 3]], "by hand");
    }

    #[test]
    fn each_variable_is_named_once() {
        assert_eq!(reward("3,\n1 \u{2212}2"), 1.0);
        for wrong in [
            "1 -2",
            "1 -2 3 3",
            "1 -2 3 4",
            "1 -2 3 0",
            "1 -2 x3",
            "1 -2 3 -1",
            "true false true",
        ] {
            assert_eq!(reward(wrong), 0.0, "{wrong}");
        }
    }

    #[test]
    fn the_search_agrees_with_trying_everything() {
        let formula = |clauses: &[&[i32]]| Formula {
            num_variables: 2,
            clauses: clauses.iter().map(|clause| clause.to_vec()).collect(),
        };
        for clauses in [
            &[&[1, 2][..], &[-1, 2], &[1, -2], &[-1, -2]][..],
            &[&[1, 2], &[-1, 2], &[1, -2]],
            &[&[1], &[-1]],
        ] {
            let formula = formula(clauses);
            let mut search = Search {
                formula: &formula,
                num_nodes: 0,
            };
            let found = search.run(vec![None; 2]);
            assert_eq!(
                found.is_some(),
                num_models(2, &formula.clauses) > 0,
                "{formula:?}"
            );
        }
    }
}
