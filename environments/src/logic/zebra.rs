//! Zebra puzzles: who lives in which house, and with what?
//!
//! `n` houses in a row have `k` attributes of `n` values each. Clues that hold of a drawn assignment are added until no
//! other fits, then those that the rest makes superfluous are taken away. Effort is the number of sweeps over all clues
//! that narrowing the possible houses of every value takes, guesses where it stands still included.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::draw::Draw;
use crate::instance::{Domain, Instance, TaskFamily};
use crate::logic::answer::words;
use crate::logic::{Puzzle, shuffle, shuffled};
use crate::verdict::Verdict;

/// The family.
pub(crate) struct Zebra;

/// An attribute: its name, how a house is named by a value, and values.
const ATTRIBUTES: [(&str, &str, &str, [&str; 5]); 5] = [
    ("name", "", "'s house", ["Ann", "Ben", "Cleo", "Dan", "Eva"]),
    (
        "colour",
        "the ",
        " house",
        ["red", "blue", "green", "white", "black"],
    ),
    (
        "pet",
        "the house with the ",
        "",
        ["cat", "dog", "fish", "horse", "zebra"],
    ),
    (
        "drink",
        "the house with ",
        "",
        ["tea", "milk", "juice", "water", "cocoa"],
    ),
    (
        "job",
        "the ",
        "'s house",
        ["baker", "doctor", "farmer", "pilot", "tailor"],
    ),
];
/// Puzzles drawn before an attempt is given up.
const MAX_TRIES: u32 = 20;

/// What holds of values; a value is numbered `attribute * houses + index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Clue {
    At(usize, usize),
    Same(usize, usize),
    Differ(usize, usize),
    DirectlyLeft(usize, usize),
    Beside(usize, usize),
    Before(usize, usize),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Street {
    num_houses: usize,
    num_attributes: usize,
    clues: Vec<Clue>,
}

/// Houses, attributes, kinds of clues by weight, and least effort.
fn size(level: u32) -> (usize, usize, &'static [usize], u64) {
    match level {
        1 => (3, 2, &[0, 0, 1], 0),
        2 => (3, 3, &[0, 1, 1, 3], 0),
        3 => (4, 3, &[0, 1, 2, 3, 4], 6),
        4 => (4, 4, &[0, 1, 2, 3, 4, 5], 8),
        5 => (5, 4, &[0, 1, 2, 3, 4, 4, 5, 5], 12),
        _ => (5, 5, &[1, 2, 3, 4, 4, 4, 5, 5], 25),
    }
}

impl Clue {
    fn holds(self, houses: &[usize]) -> bool {
        match self {
            Clue::At(value, house) => houses[value] == house,
            Clue::Same(one, other) => houses[one] == houses[other],
            Clue::Differ(one, other) => houses[one] != houses[other],
            Clue::DirectlyLeft(one, other) => houses[one] + 1 == houses[other],
            Clue::Beside(one, other) => houses[one].abs_diff(houses[other]) == 1,
            Clue::Before(one, other) => houses[one] < houses[other],
        }
    }

    /// A random clue that holds, or none of the drawn kind.
    fn random(
        kinds: &[usize],
        num_houses: usize,
        houses: &[usize],
        draw: &mut Draw,
    ) -> Option<Clue> {
        let (one, other) = (draw.index(houses.len()), draw.index(houses.len()));
        let are_two_attributes = one / num_houses != other / num_houses;
        let clue = match draw.choose(kinds) {
            0 => Clue::At(one, houses[one]),
            1 => Clue::Same(one, other),
            2 => Clue::Differ(one, other),
            3 => Clue::DirectlyLeft(one, other),
            4 => Clue::Beside(one, other),
            _ => Clue::Before(one, other),
        };
        let needs_two = matches!(clue, Clue::Same(..) | Clue::Differ(..));
        (clue.holds(houses) && one != other && (are_two_attributes || !needs_two)).then_some(clue)
    }

    fn text(self, num_houses: usize) -> String {
        let house = |value: usize| {
            let (_, before, after, values) = ATTRIBUTES[value / num_houses];
            format!("{before}{}{after}", values[value % num_houses])
        };
        let text = match self {
            Clue::At(value, at) => format!("{} is house {}.", house(value), at + 1),
            Clue::Same(one, other) => format!("{} is {}.", house(one), house(other)),
            Clue::Differ(one, other) => format!("{} is not {}.", house(one), house(other)),
            Clue::DirectlyLeft(one, other) => {
                format!("{} is directly left of {}.", house(one), house(other))
            }
            Clue::Beside(one, other) => format!("{} is next to {}.", house(one), house(other)),
            Clue::Before(one, other) => {
                format!("{} is somewhere left of {}.", house(one), house(other))
            }
        };
        let (first, rest) = text.split_at(1);
        format!("{}{rest}", first.to_ascii_uppercase())
    }
}

/// Possible houses of every value, as bits.
type Possible = Vec<u8>;

/// Narrows and guesses until it has `max_found` assignments.
struct Search<'a> {
    street: &'a Street,
    max_found: usize,
    found: Vec<Vec<usize>>,
    num_sweeps: u64,
}

impl Search<'_> {
    /// Takes away what `clue` rules out.
    fn apply(clue: Clue, possible: &mut Possible) {
        match clue {
            Clue::At(value, house) => possible[value] &= 1 << house,
            Clue::Same(one, other) => {
                possible[one] &= possible[other];
                possible[other] = possible[one];
            }
            Clue::Differ(one, other) => {
                for (one, other) in [(one, other), (other, one)] {
                    if possible[other].count_ones() == 1 {
                        possible[one] &= !possible[other];
                    }
                }
            }
            Clue::DirectlyLeft(one, other) => {
                possible[one] &= possible[other] >> 1;
                possible[other] &= possible[one] << 1;
            }
            Clue::Beside(one, other) => {
                possible[one] &= possible[other] >> 1 | possible[other] << 1;
                possible[other] &= possible[one] >> 1 | possible[one] << 1;
            }
            Clue::Before(one, other) => {
                // Below the other's last house; above the first one's first.
                let last = 7u32.saturating_sub(possible[other].leading_zeros());
                possible[one] &= (1u8 << last) - 1;
                let first = possible[one].trailing_zeros().min(7);
                possible[other] &= !(((1u16 << (first + 1)) - 1) as u8);
            }
        }
    }

    /// A house has one value of every attribute, and a value one house.
    fn tell_apart(&self, possible: &mut Possible) {
        let num_houses = self.street.num_houses;
        for group in possible.chunks_mut(num_houses) {
            for one in 0..num_houses {
                if group[one].count_ones() == 1 {
                    let taken = group[one];
                    for (other, houses) in group.iter_mut().enumerate() {
                        if other != one {
                            *houses &= !taken;
                        }
                    }
                }
            }
            for house in (0..num_houses).map(|house| 1u8 << house) {
                let mut holders = (0..num_houses).filter(|&value| group[value] & house != 0);
                if let (Some(only), None) = (holders.next(), holders.next()) {
                    group[only] = house;
                }
            }
        }
    }

    fn run(&mut self, mut possible: Possible) {
        loop {
            let before = possible.clone();
            self.num_sweeps += 1;
            for &clue in &self.street.clues {
                Search::apply(clue, &mut possible);
            }
            self.tell_apart(&mut possible);
            if possible.contains(&0) {
                return;
            }
            if possible == before {
                break;
            }
        }
        let open = (0..possible.len()).filter(|&value| possible[value].count_ones() > 1);
        let Some(value) = open.min_by_key(|&value| possible[value].count_ones()) else {
            let houses: Vec<usize> = possible
                .iter()
                .map(|bits| bits.trailing_zeros() as usize)
                .collect();
            if self.street.fits(&houses) {
                self.found.push(houses);
            }
            return;
        };
        for house in 0..self.street.num_houses {
            if possible[value] >> house & 1 == 1 && self.found.len() < self.max_found {
                let mut guessed = possible.clone();
                guessed[value] = 1 << house;
                self.run(guessed);
            }
        }
    }
}

impl Street {
    fn fits(&self, houses: &[usize]) -> bool {
        let is_each_once = houses
            .chunks(self.num_houses)
            .all(|group| (0..self.num_houses).all(|house| group.contains(&house)));
        is_each_once && self.clues.iter().all(|clue| clue.holds(houses))
    }

    /// Up to `max_found` assignments, and the sweeps it took.
    fn solve(&self, max_found: usize) -> (Vec<Vec<usize>>, u64) {
        let mut search = Search {
            street: self,
            max_found,
            found: Vec::new(),
            num_sweeps: 0,
        };
        let all = ((1u16 << self.num_houses) - 1) as u8;
        search.run(vec![all; self.num_houses * self.num_attributes]);
        (search.found, search.num_sweeps)
    }

    fn random(level: u32, draw: &mut Draw) -> Option<(Street, Vec<usize>)> {
        let (num_houses, num_attributes, kinds, min_sweeps) = size(level);
        let houses: Vec<usize> = (0..num_attributes)
            .flat_map(|_| shuffled(num_houses, draw))
            .collect();
        let mut street = Street {
            num_houses,
            num_attributes,
            clues: Vec::new(),
        };
        for _ in 0..1000 {
            let clue = Clue::random(kinds, num_houses, &houses, draw);
            let Some(clue) = clue.filter(|clue| !street.clues.contains(clue)) else {
                continue;
            };
            street.clues.push(clue);
            if street.clues.len() >= num_houses && street.solve(2).0.len() == 1 {
                break;
            }
        }
        let mut place = 0;
        while place < street.clues.len() {
            let clue = street.clues.remove(place);
            if street.solve(2).0.len() != 1 {
                street.clues.insert(place, clue);
                place += 1;
            }
        }
        shuffle(&mut street.clues, draw);
        let (found, num_sweeps) = street.solve(2);
        (found.len() == 1 && num_sweeps >= min_sweeps).then_some((street, houses))
    }

    /// Every house's values, in the order of the attributes.
    fn rows(&self, houses: &[usize]) -> Vec<String> {
        let row = |house: usize| {
            let values = (0..houses.len()).filter(|&value| houses[value] == house);
            let words: Vec<&str> = values
                .map(|value| ATTRIBUTES[value / self.num_houses].3[value % self.num_houses])
                .collect();
            words.join(" ")
        };
        (0..self.num_houses).map(row).collect()
    }

    /// The house of every value, from the words of the answer.
    fn read(&self, words: &[String]) -> Option<Vec<usize>> {
        let mut houses = vec![None; self.num_houses * self.num_attributes];
        if words.len() != houses.len() {
            return None;
        }
        for (place, word) in words.iter().enumerate() {
            let (house, attribute) = (place / self.num_attributes, place % self.num_attributes);
            let values = &ATTRIBUTES[attribute].3[..self.num_houses];
            let index = values
                .iter()
                .position(|value| value.eq_ignore_ascii_case(word))?;
            houses[attribute * self.num_houses + index] = Some(house);
        }
        houses.into_iter().collect()
    }
}

fn parse(gold: &str) -> Street {
    serde_json::from_str(gold).expect("we wrote it")
}

impl Puzzle for Zebra {
    fn unit(&self) -> &'static str {
        "sweeps over the clues"
    }

    fn effort(&self, gold: &str) -> u64 {
        parse(gold).solve(2).1
    }
}

impl TaskFamily for Zebra {
    fn name(&self) -> &'static str {
        "zebra"
    }

    fn summary(&self) -> &'static str {
        "who lives in which house, from clues"
    }

    fn levels(&self) -> RangeInclusive<u32> {
        1..=6
    }

    fn domain(&self) -> Domain {
        Domain::Logic
    }

    fn is_quick(&self) -> bool {
        false
    }

    fn draw(&self, level: u32, draw: &mut Draw) -> Option<Instance> {
        let (street, houses) = (0..MAX_TRIES).find_map(|_| Street::random(level, draw))?;
        let attributes = &ATTRIBUTES[..street.num_attributes];
        let lists: Vec<String> = attributes
            .iter()
            .map(|(name, _, _, values)| {
                format!("{name} ({})", values[..street.num_houses].join(", "))
            })
            .collect();
        let clues: Vec<String> = street
            .clues
            .iter()
            .map(|clue| clue.text(street.num_houses))
            .collect();
        let rows = street.rows(&houses);
        let steps: Vec<String> = rows
            .iter()
            .enumerate()
            .map(|(house, row)| format!("House {}: {row}.", house + 1))
            .collect();
        let names: Vec<&str> = attributes.iter().map(|(name, ..)| *name).collect();
        let gold = serde_json::to_string(&street).expect("plain data");
        Some(Instance {
            canonical: gold.clone(),
            question: format!(
                "Houses 1 to {} stand in a row from left to right. Each has one {}, and no two houses share any of these.\n\
                 {}\nAnswer with the {} of each house, house by house, as words separated by spaces, in \\boxed{{}}.",
                street.num_houses,
                lists.join(", one "),
                clues.join("\n"),
                names.join(", ")
            ),
            solution: format!("{} \\boxed{{{}}}", steps.join(" "), rows.join(", ")),
            gold,
            ..Instance::default()
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        let street = parse(gold);
        let answer = words(completion);
        let is_right = answer
            .as_deref()
            .and_then(|words| street.read(words))
            .is_some_and(|houses| street.fits(&houses));
        Verdict::exact(is_right, answer.map(|words| words.join(" ")))
    }

    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        let (num_houses, num_attributes, ..) = size(level);
        let houses: Vec<usize> = (0..num_attributes)
            .flat_map(|_| shuffled(num_houses, draw))
            .collect();
        let street = Street {
            num_houses,
            num_attributes,
            clues: Vec::new(),
        };
        format!("\\boxed{{{}}}", street.rows(&houses).join(", "))
    }

    /// Names all values in the order in which the question lists them.
    fn greedy_answer(&self, question: &str) -> String {
        let num_houses = ATTRIBUTES[0]
            .3
            .iter()
            .filter(|name| question.contains(*name))
            .count();
        let num_attributes = ATTRIBUTES
            .iter()
            .filter(|(_, _, _, values)| question.contains(&format!("({}", values[0])));
        let street = Street {
            num_houses,
            num_attributes: num_attributes.count(),
            clues: Vec::new(),
        };
        let houses: Vec<usize> = (0..street.num_attributes)
            .flat_map(|_| 0..num_houses)
            .collect();
        format!("\\boxed{{{}}}", street.rows(&houses).join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Family;
    use crate::task::{FamilyKey, Split};

    fn reward(street: &Street, answer: &str) -> f64 {
        let gold = serde_json::to_string(street).expect("plain data");
        let verdict = Zebra.grade(&gold, &format!("\\boxed{{{answer}}}"));
        verdict.reward().expect("always graded")
    }

    #[test]
    fn a_street_that_fits_the_clues_is_right() {
        // Values: Ann, Ben, Cleo, red, blue, green. Ann 2; Ben next to Cleo can't be, so Before decides.
        let street = Street {
            num_houses: 3,
            num_attributes: 2,
            clues: vec![
                Clue::At(0, 1),
                Clue::Before(1, 2),
                Clue::Same(0, 3),
                Clue::Differ(1, 4),
            ],
        };
        assert_eq!(reward(&street, "Ben green, Ann red, Cleo blue"), 1.0);
        assert_eq!(reward(&street, "ben green\nann red\ncleo blue"), 1.0);
        for wrong in [
            "Ben blue, Ann red, Cleo green",
            "Cleo blue, Ann red, Ben green",
            "Ben green, Ann red",
            "Ben green, Ann red, Cleo green",
            "green Ben, red Ann, blue Cleo",
            "Ben green, Ann red, Cleo blue, Dan black",
        ] {
            assert_eq!(reward(&street, wrong), 0.0, "{wrong}");
        }
        // Two streets fit where a clue is missing.
        let open = Street {
            clues: street.clues[..3].to_vec(),
            ..street
        };
        assert_eq!(reward(&open, "Ben blue, Ann red, Cleo green"), 1.0);
        assert_eq!(reward(&open, "Ben green, Ann red, Cleo blue"), 1.0);
    }

    /// All orders of the houses.
    fn orders(num_houses: usize) -> Vec<Vec<usize>> {
        let mut orders: Vec<Vec<usize>> = vec![Vec::new()];
        for _ in 0..num_houses {
            let longer = orders.iter().flat_map(|order| {
                let unused = (0..num_houses).filter(|house| !order.contains(house));
                unused.map(|house| [order.clone(), vec![house]].concat())
            });
            orders = longer.collect();
        }
        orders
    }

    #[test]
    fn trying_all_streets_finds_the_one_that_the_search_finds() {
        for (level, seed) in (1..=3).flat_map(|level| (0..15).map(move |seed| (level, seed))) {
            let key = FamilyKey {
                family: Family::Zebra,
                split: Split::Train,
                level,
                seed,
            };
            let street = parse(&Family::task(&key).gold);
            let orders = orders(street.num_houses);
            let mut streets = vec![Vec::new()];
            for _ in 0..street.num_attributes {
                streets = streets
                    .iter()
                    .flat_map(|street| {
                        orders
                            .iter()
                            .map(|order| [street.clone(), order.clone()].concat())
                    })
                    .collect();
            }
            streets.retain(|houses| street.fits(houses));
            assert_eq!(streets, street.solve(2).0, "{street:?}");
        }
    }
}
