//! The values that an iteration takes until it repeats itself, summed up. A step: one of the iteration.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::Solved;
use crate::draw::Draw;

/// An iteration that takes longer is not asked for.
const MAX_STEPS: usize = 150_000;

/// z becomes (z z + c) mod m.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Cycle {
    start: i64,
    c: i64,
    m: i64,
}

impl Cycle {
    pub(super) fn draw(level: u32, draw: &mut Draw) -> Cycle {
        let m = draw.between(match level {
            1 => 90..=400,
            2 => 1_000..=9_999,
            3 => 1_000_000..=9_999_999,
            4 => 100_000_000..=300_000_000,
            _ => 1_000_000_000..=2_000_000_000,
        });
        Cycle {
            start: draw.between(2..=m - 1),
            c: draw.between(1..=m - 3),
            m,
        }
    }

    pub(super) fn asked(&self) -> String {
        let Cycle { start, c, m } = self;
        format!(
            "Let z(0) = {start} and z(n) = (z(n-1)*z(n-1) + {c}) mod {m} for larger n. Sooner or later the sequence repeats itself, so that it has only so many different values. What is the sum of all its different values?"
        )
    }

    pub(super) fn solve(&self) -> Option<Solved> {
        let mut seen = HashSet::new();
        let (mut z, mut sum) = (self.start, 0);
        while seen.insert(z) {
            if seen.len() > MAX_STEPS {
                return None;
            }
            sum += z;
            z = (z * z + self.c) % self.m;
        }
        Some(Solved {
            answer: sum,
            work: seen.len() as u64,
        })
    }

    pub(super) fn cells(&self) -> [String; 2] {
        let Cycle { start, c, m } = self;
        let define = format!(
            "def total(z):\n    seen = set()\n    while z not in seen:\n        seen.add(z)\n        z = (z*z + {c}) % {m}\n    return sum(seen)"
        );
        [define, format!("total({start})")]
    }

    /// Of as many values as there are on average, sqrt(pi m / 2), half of the modulus each, twice.
    pub(super) fn largest(&self) -> i64 {
        let m = self.m as f64;
        (m * (std::f64::consts::PI * m / 2.0).sqrt()) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_summed_until_one_comes_again() {
        // 3, 0 (9 + 1 = 10), 1, 2, 5, 6 (26), 7 (37), 0: each once.
        let cycle = Cycle {
            start: 3,
            c: 1,
            m: 10,
        };
        assert_eq!(
            cycle.solve(),
            Some(Solved {
                answer: 3 + 1 + 2 + 5 + 6 + 7,
                work: 7
            })
        );
    }
}
