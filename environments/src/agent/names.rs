//! Names of nothing in particular, from syllables: a policy can't know them from elsewhere, and none says
//! anything about what it names.

use std::collections::BTreeSet;

use crate::draw::Draw;

const ONSETS: [&str; 16] = [
    "b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z",
];
const RIMES: [&str; 12] = [
    "a", "e", "i", "o", "u", "an", "el", "in", "or", "us", "ai", "en",
];

/// Hands out names, each once.
#[derive(Debug, Default)]
pub(super) struct Names {
    given: BTreeSet<String>,
}

impl Names {
    /// A fresh name of two or three syllables.
    pub(super) fn name(&mut self, draw: &mut Draw) -> String {
        loop {
            let name = syllables(draw);
            if self.given.insert(name.clone()) {
                return name;
            }
        }
    }

    /// A fresh name followed by one of `kinds`. The syllables before it are fresh too.
    pub(super) fn place(&mut self, draw: &mut Draw, kinds: &[&str]) -> String {
        let name = self.name(draw);
        format!("{name} {}", draw.choose(kinds))
    }
}

fn syllables(draw: &mut Draw) -> String {
    let mut name = String::new();
    for _ in 0..draw.between(2..=3) {
        name += draw.choose(&ONSETS);
        name += draw.choose(&RIMES);
    }
    name[..1].to_ascii_uppercase() + &name[1..]
}
