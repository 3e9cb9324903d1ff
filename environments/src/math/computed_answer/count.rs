//! How many integers up to N have all of the given properties. A step: a number looked at, or a transition of the
//! programme over digits that level 5 takes.

use serde::{Deserialize, Serialize};

use super::Solved;
use crate::draw::Draw;

/// From here on numbers are counted by their digits, so that only properties that digits show are drawn.
const FIRST_FAR: i64 = 1_000_000_000;
const PRIMES: [i64; 8] = [7, 11, 13, 17, 19, 23, 29, 31];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Count {
    limit: i64,
    properties: Vec<Property>,
}

/// Properties in the order of what they take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Property {
    /// n mod m = r.
    Remainder(i64, i64),
    /// (sum of the decimal digits) mod m = r.
    DigitSum(i64, i64),
    /// An even number of ones in binary.
    EvenOnes,
    /// No square above 1 divides it.
    Squarefree,
    /// So many positive divisors.
    Divisors(i64),
}

fn digit_sum(mut n: i64) -> i64 {
    let mut sum = 0;
    while n > 0 {
        sum += n % 10;
        n /= 10;
    }
    sum
}

/// Exponents of the primes in n, by trial division.
fn exponents(mut n: i64) -> Vec<i64> {
    let mut found = Vec::new();
    let mut p = 2;
    while p * p <= n {
        let mut exponent = 0;
        while n % p == 0 {
            n /= p;
            exponent += 1;
        }
        if exponent > 0 {
            found.push(exponent);
        }
        p += 1;
    }
    if n > 1 {
        found.push(1);
    }
    found
}

impl Property {
    fn holds(self, n: i64) -> bool {
        match self {
            Property::Remainder(m, r) => n % m == r,
            Property::DigitSum(m, r) => digit_sum(n) % m == r,
            Property::EvenOnes => n.count_ones().is_multiple_of(2),
            Property::Squarefree => exponents(n).iter().all(|&exponent| exponent == 1),
            Property::Divisors(count) => {
                let divisors: i64 = exponents(n).iter().map(|exponent| exponent + 1).product();
                divisors == count
            }
        }
    }

    fn prose(self) -> String {
        match self {
            Property::Remainder(m, r) => format!("n leaves the remainder {r} when divided by {m}"),
            Property::DigitSum(m, r) => format!(
                "the sum of the decimal digits of n leaves the remainder {r} when divided by {m}"
            ),
            Property::EvenOnes => "n written in binary has an even number of ones".to_string(),
            Property::Squarefree => "no square greater than 1 divides n".to_string(),
            Property::Divisors(count) => format!("n has exactly {count} positive divisors"),
        }
    }

    fn python(self) -> String {
        match self {
            Property::Remainder(m, r) => format!("n % {m} == {r}"),
            Property::DigitSum(m, r) => format!("sum(map(int, str(n))) % {m} == {r}"),
            Property::EvenOnes => "bin(n).count('1') % 2 == 0".to_string(),
            Property::Squarefree => "all(e == 1 for e in exponents(n))".to_string(),
            Property::Divisors(count) => {
                format!("math.prod(e + 1 for e in exponents(n)) == {count}")
            }
        }
    }
}

fn remainder(draw: &mut Draw, moduli: &[i64]) -> Property {
    let m = draw.choose(moduli);
    Property::Remainder(m, draw.between(0..=m - 1))
}

fn digits(draw: &mut Draw, moduli: &[i64]) -> Property {
    let m = draw.choose(moduli);
    Property::DigitSum(m, draw.between(0..=m - 1))
}

impl Count {
    pub(super) fn draw(level: u32, draw: &mut Draw) -> Count {
        let limit = draw.between(match level {
            1 => 200..=400,
            2 => 1_000..=2_000,
            3 => 5_000..=9_000,
            4 => 20_000..=40_000,
            _ => 1_000_000_000_000..=1_000_000_000_000_000,
        });
        let hard = match draw.index(3) {
            0 => Property::EvenOnes,
            1 => Property::Squarefree,
            _ => Property::Divisors(draw.choose(&[4, 8, 12, 16])),
        };
        let properties = match level {
            1 => vec![remainder(draw, &[2, 3, 4, 5]), digits(draw, &[2, 3, 4, 5])],
            2 => vec![digits(draw, &[4, 5, 6, 7, 8]), hard],
            3 => vec![
                remainder(draw, &[3, 4, 5, 6]),
                digits(draw, &[4, 5, 7]),
                hard,
            ],
            4 => vec![remainder(draw, &PRIMES), digits(draw, &[4, 5, 7]), hard],
            _ => vec![remainder(draw, &PRIMES), digits(draw, &PRIMES)],
        };
        Count { limit, properties }
    }

    pub(super) fn asked(&self) -> String {
        let listed: Vec<String> = self.properties.iter().map(|p| p.prose()).collect();
        format!(
            "How many integers n from 1 to {} have all of these properties: {}?",
            self.limit,
            listed.join("; ")
        )
    }

    pub(super) fn solve(&self) -> Solved {
        match self.far() {
            Some(moduli) => self.by_digits(moduli),
            None => Solved {
                answer: (1..=self.limit)
                    .filter(|&n| self.properties.iter().all(|p| p.holds(n)))
                    .count() as i64,
                work: self.limit as u64,
            },
        }
    }

    /// (m, r) of the remainder and of the digit sum, where the limit is out of a loop's reach.
    fn far(&self) -> Option<[(i64, i64); 2]> {
        match self.properties.as_slice() {
            [Property::Remainder(m, r), Property::DigitSum(k, s)] if self.limit >= FIRST_FAR => {
                Some([(*m, *r), (*k, *s)])
            }
            _ => None,
        }
    }

    /// Numbers by (n mod m, digit sum mod k) and by whether they still are the limit's own first digits.
    fn by_digits(&self, [(m, r), (k, s)]: [(i64, i64); 2]) -> Solved {
        let mut work = 0;
        let mut below = vec![0i64; (m * k) as usize];
        let mut on = (0, 0);
        for digit in self.limit.to_string().bytes().map(|b| i64::from(b - b'0')) {
            let mut next = vec![0i64; below.len()];
            let mut add = |(n, sum): (i64, i64), d: i64, count: i64| {
                let place = (n * 10 + d) % m * k + (sum + d) % k;
                next[place as usize] += count;
                work += 1;
            };
            for (place, &count) in below.iter().enumerate().filter(|(_, count)| **count > 0) {
                let place = place as i64;
                (0..10).for_each(|d| add((place / k, place % k), d, count));
            }
            (0..digit).for_each(|d| add(on, d, 1));
            on = ((on.0 * 10 + digit) % m, (on.1 + digit) % k);
            below = next;
        }
        let found = below[(r * k + s) as usize] + i64::from(on == (r, s));
        Solved {
            // Zero is among them.
            answer: found - i64::from((r, s) == (0, 0)),
            work,
        }
    }

    pub(super) fn cells(&self) -> [String; 2] {
        if let Some([(m, r), (k, s)]) = self.far() {
            let define = format!(
                "from functools import lru_cache\n\n@lru_cache(None)\ndef free(places, n, total):\n    if places == 0:\n        return int(n == {r} and total == {s})\n    return sum(free(places - 1, (n * 10 + d) % {m}, (total + d) % {k}) for d in range(10))\n\ndef count(limit):\n    digits = [int(d) for d in str(limit)]\n    n = total = found = 0\n    for i, digit in enumerate(digits):\n        for d in range(digit):\n            found += free(len(digits) - i - 1, (n * 10 + d) % {m}, (total + d) % {k})\n        n, total = (n * 10 + digit) % {m}, (total + digit) % {k}\n    return found + int((n, total) == ({r}, {s})) - int(({r}, {s}) == (0, 0))\n\nprint(count(5000) == sum(n % {m} == {r} and sum(map(int, str(n))) % {k} == {s} for n in range(1, 5001)))"
            );
            return [define, format!("count({})", self.limit)];
        }
        let conditions: Vec<String> = self.properties.iter().map(|p| p.python()).collect();
        let define = format!(
            "import math\n\ndef exponents(n):\n    found, p = [], 2\n    while p * p <= n:\n        e = 0\n        while n % p == 0:\n            n //= p\n            e += 1\n        if e:\n            found.append(e)\n        p += 1\n    return found + [1] if n > 1 else found\n\ndef holds(n):\n    return {}",
            conditions.join(" and ")
        );
        let ask = format!("sum(holds(n) for n in range(1, {} + 1))", self.limit);
        [define, ask]
    }

    pub(super) fn largest(&self) -> i64 {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_those_of_small_numbers_that_one_knows() {
        let having =
            |property: Property| (1..=20).filter(|&n| property.holds(n)).collect::<Vec<_>>();
        assert_eq!(having(Property::Divisors(4)), [6, 8, 10, 14, 15]);
        assert_eq!(
            having(Property::Squarefree),
            [1, 2, 3, 5, 6, 7, 10, 11, 13, 14, 15, 17, 19]
        );
        assert_eq!(
            having(Property::EvenOnes),
            [3, 5, 6, 9, 10, 12, 15, 17, 18, 20]
        );
        assert_eq!(having(Property::DigitSum(5, 0)), [5, 14, 19]);
        assert_eq!(having(Property::Remainder(7, 3)), [3, 10, 17]);
    }

    #[test]
    fn counting_by_digits_is_counting() {
        for (limit, r, s) in [(99_999, 0, 0), (50_000, 3, 2), (7, 0, 0), (123_456, 6, 10)] {
            let count = Count {
                limit,
                properties: vec![Property::Remainder(7, r), Property::DigitSum(11, s)],
            };
            assert_eq!(
                count.by_digits([(7, r), (11, s)]).answer,
                count.solve().answer,
                "{count:?}"
            );
        }
    }
}
