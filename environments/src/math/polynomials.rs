//! Polynomials: the coefficients of a product or composition, or the integer roots of an expanded product.
//!
//! Coefficients are listed from the highest power down; roots in any order, each as often as it counts.
//! Work: products of two coefficients while the polynomial is expanded.

use std::ops::RangeInclusive;

use super::{boxed, gold, gold_numbers, grade_list, listed};
use crate::draw::Draw;
use crate::instance::{Instance, TaskFamily};
use crate::verdict::Verdict;

/// The family.
pub(crate) struct Polynomials;

/// The product, lowest power first.
fn product(a: &[i64], b: &[i64], work: &mut u64) -> Vec<i64> {
    let mut result = vec![0; a.len() + b.len() - 1];
    for (i, left) in a.iter().enumerate() {
        for (j, right) in b.iter().enumerate() {
            result[i + j] += left * right;
            *work += 1;
        }
    }
    result
}

/// `outer(inner)` by Horner's rule.
fn composition(outer: &[i64], inner: &[i64], work: &mut u64) -> Vec<i64> {
    let mut result = vec![0];
    for coefficient in outer.iter().rev() {
        result = product(&result, inner, work);
        result[0] += coefficient;
    }
    while result.len() > 1 && result.last() == Some(&0) {
        result.pop();
    }
    result
}

/// `polynomial`, lowest power first, as text.
fn text(polynomial: &[i64]) -> String {
    let mut words = String::new();
    for (power, &coefficient) in polynomial.iter().enumerate().rev() {
        if coefficient == 0 {
            continue;
        }
        words += match (words.is_empty(), coefficient < 0) {
            (true, false) => "",
            (true, true) => "-",
            (false, false) => " + ",
            (false, true) => " - ",
        };
        let size = coefficient.abs();
        words += &match power {
            0 => size.to_string(),
            1 if size == 1 => "x".to_string(),
            1 => format!("{size}x"),
            _ if size == 1 => format!("x^{power}"),
            _ => format!("{size}x^{power}"),
        };
    }
    words
}

/// A polynomial of this degree with coefficients up to `largest` in size, the leading one positive.
fn random(degree: usize, largest: i64, draw: &mut Draw) -> Vec<i64> {
    let mut polynomial: Vec<i64> = (0..degree)
        .map(|_| draw.between(-largest..=largest))
        .collect();
    polynomial.push(draw.between(1..=largest));
    polynomial
}

/// The largest coefficient or root drawn, and how many numbers the answer has.
fn answer_size(level: u32) -> (i64, usize) {
    match level {
        1 => (5, 3),
        2 => (9, 3),
        3 => (12, 3),
        4 => (5, 5),
        5 => (15, 5),
        _ => (6, 10),
    }
}

fn coefficients(text_before: &str, polynomial: &[i64], work: u64) -> Instance {
    let down: Vec<i64> = polynomial.iter().rev().copied().collect();
    Instance {
        canonical: text_before.to_string(),
        question: format!(
            "Expand {text_before}. List all coefficients from the highest power down to the constant, zeros included, \
             as \\boxed{{c, ..., c}}."
        ),
        solution: format!("The result is {}. {}", text(polynomial), boxed(&down)),
        // 0 in front: the order counts.
        gold: gold(work, &[&[0], down.as_slice()].concat()),
        ..Instance::default()
    }
}

impl TaskFamily for Polynomials {
    fn name(&self) -> &'static str {
        "polynomials"
    }

    fn summary(&self) -> &'static str {
        "products, compositions and roots of polynomials"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=6
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let mut work = 0;
        let (largest, count) = answer_size(level);
        match level {
            1 | 2 => {
                let mut factors = [random(1, largest, draw), random(1, largest, draw)];
                factors.sort_unstable();
                let expanded = product(&factors[0], &factors[1], &mut work);
                let question = format!("({})({})", text(&factors[0]), text(&factors[1]));
                Some(coefficients(&question, &expanded, work))
            }
            4 | 6 => {
                let degrees = if level == 4 { (2, 2) } else { (3, 3) };
                let outer = random(degrees.0, largest, draw);
                let inner = random(degrees.1, largest, draw);
                let expanded = composition(&outer, &inner, &mut work);
                let question = format!(
                    "f(g(x)) for f(x) = {} and g(x) = {}",
                    text(&outer),
                    text(&inner)
                );
                Some(coefficients(&question, &expanded, work))
            }
            _ => {
                let mut roots: Vec<i64> = (0..count)
                    .map(|_| draw.between(-largest..=largest))
                    .collect();
                if roots.contains(&0) {
                    return None;
                }
                roots.sort_unstable();
                let mut expanded = vec![1];
                let mut factors = String::new();
                for &root in &roots {
                    expanded = product(&expanded, &[-root, 1], &mut work);
                    factors += &format!("({})", text(&[-root, 1]));
                }
                Some(Instance {
                    canonical: listed(&roots, " "),
                    question: format!(
                        "All roots of {} are integers. List them in any order, each as often as its multiplicity, as \
                         \\boxed{{r, ..., r}}.",
                        text(&expanded)
                    ),
                    solution: format!("It is {factors}. {}", boxed(&roots)),
                    gold: gold(work, &[&[1], roots.as_slice()].concat()),
                    ..Instance::default()
                })
            }
        }
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        let wanted = gold_numbers(gold);
        let in_any_order = wanted[0] == 1;
        grade_list(completion, |numbers| {
            let mut numbers = numbers.to_vec();
            if in_any_order {
                numbers.sort_unstable();
            }
            numbers == wanted[1..]
        })
    }

    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        let (largest, count) = answer_size(level);
        boxed(
            &(0..count)
                .map(|_| draw.between(-largest..=largest))
                .collect::<Vec<_>>(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(polynomial: &[i64], x: i64) -> i64 {
        polynomial.iter().rev().fold(0, |value, c| value * x + c)
    }

    #[test]
    fn expanded_polynomials_have_the_values_of_what_they_expand() {
        let (f, g) = ([3, -2, 0, 1], [-1, 4, 2]);
        let (fg, f_of_g) = (product(&f, &g, &mut 0), composition(&f, &g, &mut 0));
        for x in -9..=9 {
            assert_eq!(at(&fg, x), at(&f, x) * at(&g, x));
            assert_eq!(at(&f_of_g, x), at(&f, at(&g, x)));
        }
        assert_eq!(text(&[-1, 0, 1, -3]), "-3x^3 + x^2 - 1");
    }

    #[test]
    fn roots_come_in_any_order_and_coefficients_in_one() {
        let reward = |gold: &str, answer: &str| Polynomials.grade(gold, answer).reward();
        assert_eq!(reward("9|1 -2 3 3", "\\boxed{3, -2, 3}"), Some(1.0));
        assert_eq!(reward("9|1 -2 3 3", "\\boxed{3, -2}"), Some(0.0));
        assert_eq!(reward("9|1 -2 3 3", "\\boxed{3, -2, -2}"), Some(0.0));
        assert_eq!(reward("4|0 1 2 -3", "\\boxed{1, 2, -3}"), Some(1.0));
        assert_eq!(reward("4|0 1 2 -3", "\\boxed{-3, 2, 1}"), Some(0.0));
    }
}
