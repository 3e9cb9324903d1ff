//! A process of two numbers, run for a number of steps. A step: one of the process; at level 5, where it must be seen to
//! come back to where it was, one of the search for its cycle.

use serde::{Deserialize, Serialize};

use super::Solved;
use crate::draw::Draw;

/// Up to so many steps are simply run.
const MAX_RUN: u64 = 1_000_000;
/// No cycle is looked for longer than this.
const MAX_SEARCH: u64 = 400_000;

/// x becomes (a x + b y + c) mod p; then y becomes (y + x) mod q if x mod k = r, else (d y + e) mod q.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Simulate {
    start: (i64, i64),
    a: i64,
    b: i64,
    c: i64,
    p: i64,
    k: i64,
    r: i64,
    d: i64,
    e: i64,
    q: i64,
    num_steps: u64,
}

impl Simulate {
    pub(super) fn draw(level: u32, draw: &mut Draw) -> Simulate {
        let steps = draw.between(match level {
            1 => 4..=9,
            2 => 40..=90,
            3 => 1_000..=2_000,
            4 => 20_000..=40_000,
            _ => 1_000_000_000_000..=9_000_000_000_000,
        });
        let moduli = match level {
            1 | 2 => 90..=999,
            3 | 4 => 5_000..=99_999,
            _ => 5_000..=30_000,
        };
        let (p, q) = (draw.between(moduli.clone()), draw.between(moduli));
        let k = draw.between(2..=4);
        Simulate {
            start: (draw.between(0..=p - 1), draw.between(0..=q - 1)),
            a: draw.between(2..=99),
            b: draw.between(1..=99),
            c: draw.between(0..=99),
            p,
            k,
            r: draw.between(0..=k - 1),
            d: draw.between(2..=99),
            e: draw.between(1..=99),
            q,
            num_steps: steps as u64,
        }
    }

    pub(super) fn asked(&self) -> String {
        let Simulate {
            start: (x, y),
            a,
            b,
            c,
            p,
            k,
            r,
            d,
            e,
            q,
            num_steps,
        } = self;
        format!(
            "Let x = {x} and y = {y}. A step replaces x by ({a}*x + {b}*y + {c}) mod {p}; after that, if the new x leaves the remainder {r} when divided by {k}, it replaces y by (y + x) mod {q}, otherwise by ({d}*y + {e}) mod {q}. What is {q}*x + y after {num_steps} steps?"
        )
    }

    fn step(&self, (x, y): (i64, i64)) -> (i64, i64) {
        let x = (self.a * x + self.b * y + self.c) % self.p;
        let y = match x % self.k == self.r {
            true => (y + x) % self.q,
            false => (self.d * y + self.e) % self.q,
        };
        (x, y)
    }

    fn after(&self, num_steps: u64) -> (i64, i64) {
        (0..num_steps).fold(self.start, |state, _| self.step(state))
    }

    /// Brent's search: the length of the cycle, and how many steps it took; the state then is on the cycle.
    fn cycle(&self) -> Option<(u64, u64)> {
        let (mut power, mut length, mut work) = (1, 1, 1);
        let (mut slow, mut fast) = (self.start, self.step(self.start));
        while slow != fast {
            if power == length {
                (slow, power, length) = (fast, 2 * power, 0);
            }
            fast = self.step(fast);
            length += 1;
            work += 1;
            if work > MAX_SEARCH {
                return None;
            }
        }
        Some((length, work))
    }

    pub(super) fn solve(&self) -> Option<Solved> {
        let (num_steps, work) = if self.num_steps <= MAX_RUN {
            (self.num_steps, self.num_steps)
        } else {
            // After `work` steps the process is on its cycle, where whole rounds change nothing.
            let (length, work) = self.cycle()?;
            let reached = work + (self.num_steps - work) % length;
            (reached, work + reached)
        };
        let (x, y) = self.after(num_steps);
        Some(Solved {
            answer: self.q * x + y,
            work,
        })
    }

    pub(super) fn cells(&self) -> [String; 2] {
        let Simulate {
            start: (x, y),
            a,
            b,
            c,
            p,
            k,
            r,
            d,
            e,
            q,
            num_steps,
        } = self;
        let step = format!(
            "def step(x, y):\n    x = ({a}*x + {b}*y + {c}) % {p}\n    return x, (y + x) % {q} if x % {k} == {r} else ({d}*y + {e}) % {q}\n"
        );
        let run = match *num_steps <= MAX_RUN {
            true => format!(
                "\ndef run(n):\n    x, y = {x}, {y}\n    for _ in range(n):\n        x, y = step(x, y)\n    return {q}*x + y"
            ),
            false => format!(
                "\ndef run(n):\n    state, seen, states = ({x}, {y}), {{}}, []\n    while state not in seen:\n        seen[state] = len(states)\n        states.append(state)\n        state = step(*state)\n    first = seen[state]\n    if n >= first:\n        n = first + (n - first) % (len(states) - first)\n    return {q}*states[n][0] + states[n][1]"
            ),
        };
        [step + &run, format!("run({num_steps})")]
    }

    pub(super) fn largest(&self) -> i64 {
        self.p * self.q - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// x + y mod 7 when x is even, else 2 y + 1 mod 5.
    fn small(num_steps: u64) -> Simulate {
        Simulate {
            start: (1, 2),
            a: 1,
            b: 1,
            c: 0,
            p: 7,
            k: 2,
            r: 0,
            d: 2,
            e: 1,
            q: 5,
            num_steps,
        }
    }

    #[test]
    fn steps_are_those_that_the_question_tells() {
        // (1, 2): x = 3, odd, y = 0; (3, 0): x = 3, y = 1; (3, 1): x = 4, even, y = 0.
        assert_eq!(small(3).after(1), (3, 0));
        assert_eq!(small(3).after(2), (3, 1));
        assert_eq!(small(3).after(3), (4, 0));
        assert_eq!(small(3).solve().map(|solved| solved.answer), Some(20));
    }

    #[test]
    fn far_steps_are_found_on_the_cycle() {
        let (length, _) = small(0).cycle().expect("35 states");
        assert_eq!(small(0).after(35), small(0).after(35 + length));
        let far = small(MAX_RUN + 1 + length).solve().expect("found");
        let (x, y) = small(0).after(MAX_RUN + 1);
        assert_eq!(far.answer, 5 * x + y);
    }
}
