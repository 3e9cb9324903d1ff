//! Sokoban: push every box onto a goal.
//!
//! A room, its goals and the boxes on them are drawn; a breadth-first search backwards (pulls) gives the least number of
//! moves from every position, and one in the level's range is asked. Effort is that number. Any plan that works is right.

use std::ops::RangeInclusive;

use crate::draw::Draw;
use crate::instance::{Domain, Instance, TaskFamily};
use crate::logic::answer::symbols;
use crate::logic::{Puzzle, shuffled};
use crate::verdict::Verdict;

/// The family.
pub(crate) struct Sokoban;

/// Up, down, left, right: letter, row step, column step.
const MOVES: [(char, isize, isize); 4] = [('U', -1, 0), ('D', 1, 0), ('L', 0, -1), ('R', 0, 1)];
/// Rooms drawn before an attempt is given up.
const MAX_TRIES: u32 = 40;
/// Not reached.
const FAR: u16 = u16::MAX;

/// What a level draws.
struct Size {
    /// Of the room without its outer wall.
    side: usize,
    num_walls: usize,
    num_boxes: usize,
    moves: RangeInclusive<u16>,
}

fn size(level: u32) -> Size {
    let (side, num_walls, num_boxes, moves) = match level {
        1 => (3, 0, 1, 3..=5),
        2 => (4, 2, 1, 6..=9),
        3 => (5, 5, 1, 12..=18),
        4 => (5, 4, 2, 18..=26),
        5 => (6, 8, 2, 32..=50),
        _ => (6, 9, 3, 50..=90),
    };
    Size {
        side,
        num_walls,
        num_boxes,
        moves,
    }
}

/// A room; cells are numbered row by row, walls too.
struct Room {
    width: usize,
    is_floor: Vec<bool>,
    goals: Vec<usize>,
}

/// Where the player and the boxes (in ascending order) stand.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Position {
    player: usize,
    boxes: Vec<usize>,
}

impl Room {
    /// Reads rows of `#`, `-`, `.`, `$`, `*`, `@` and `+`.
    fn parse(gold: &str) -> (Room, Position) {
        let width = gold.lines().next().map_or(0, str::len);
        let cells: Vec<u8> = gold.lines().flat_map(str::bytes).collect();
        let of = |kinds: &[u8]| -> Vec<usize> {
            (0..cells.len())
                .filter(|&cell| kinds.contains(&cells[cell]))
                .collect()
        };
        let room = Room {
            width,
            is_floor: cells.iter().map(|&cell| cell != b'#').collect(),
            goals: of(b".*+"),
        };
        let position = Position {
            player: of(b"@+").first().copied().unwrap_or(0),
            boxes: of(b"$*"),
        };
        (room, position)
    }

    fn text(&self, position: &Position) -> String {
        let letter = |cell: usize| {
            let is_goal = self.goals.contains(&cell);
            match (position.boxes.contains(&cell), position.player == cell) {
                (true, _) => {
                    if is_goal {
                        '*'
                    } else {
                        '$'
                    }
                }
                (_, true) => {
                    if is_goal {
                        '+'
                    } else {
                        '@'
                    }
                }
                _ if !self.is_floor[cell] => '#',
                _ => {
                    if is_goal {
                        '.'
                    } else {
                        '-'
                    }
                }
            }
        };
        let row = |row: usize| {
            (row * self.width..(row + 1) * self.width)
                .map(letter)
                .collect::<String>()
        };
        (0..self.is_floor.len() / self.width)
            .map(row)
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// The floor next to `cell`; the outer wall keeps every step inside.
    fn step(&self, cell: usize, (_, rows, columns): (char, isize, isize)) -> Option<usize> {
        let next = cell.checked_add_signed(rows * self.width as isize + columns)?;
        self.is_floor
            .get(next)
            .copied()
            .unwrap_or(false)
            .then_some(next)
    }

    /// The position after a move, if it is possible.
    fn moved(&self, position: &Position, direction: (char, isize, isize)) -> Option<Position> {
        let player = self.step(position.player, direction)?;
        let mut boxes = position.boxes.clone();
        if let Some(pushed) = boxes.iter_mut().find(|cell| **cell == player) {
            *pushed = self
                .step(player, direction)
                .filter(|to| !position.boxes.contains(to))?;
            boxes.sort_unstable();
        }
        Some(Position { player, boxes })
    }

    fn is_solved(&self, position: &Position) -> bool {
        position.boxes == self.goals
    }
}

/// The least number of moves to the goal, of every position from which it is reached.
struct Distances {
    /// Floor cells.
    floor: Vec<usize>,
    moves: Vec<u16>,
    /// Codes in the order of their distance.
    reached: Vec<usize>,
}

impl Distances {
    /// Breadth-first from all solved positions, moves taken back.
    fn new(room: &Room) -> Distances {
        let floor: Vec<usize> = (0..room.is_floor.len())
            .filter(|&cell| room.is_floor[cell])
            .collect();
        let num_codes = floor.len().pow(room.goals.len() as u32 + 1);
        let mut distances = Distances {
            floor,
            moves: vec![FAR; num_codes],
            reached: Vec::new(),
        };
        for &player in &distances.floor.clone() {
            if !room.goals.contains(&player) {
                let solved = Position {
                    player,
                    boxes: room.goals.clone(),
                };
                distances.reach(&solved, 0);
            }
        }
        let mut next = 0;
        while let Some(&code) = distances.reached.get(next) {
            next += 1;
            let (after, moves) = (
                distances.position(code, room.goals.len()),
                distances.moves[code],
            );
            for direction in MOVES {
                let back = (direction.0, -direction.1, -direction.2);
                let Some(player) = room
                    .step(after.player, back)
                    .filter(|cell| !after.boxes.contains(cell))
                else {
                    continue;
                };
                let walked = Position {
                    player,
                    boxes: after.boxes.clone(),
                };
                distances.reach(&walked, moves + 1);
                // A box in front may have been pushed there from where the player stands.
                let front = room.step(after.player, direction);
                if let Some(place) = after.boxes.iter().position(|&cell| Some(cell) == front) {
                    let mut pulled = walked;
                    pulled.boxes[place] = after.player;
                    pulled.boxes.sort_unstable();
                    distances.reach(&pulled, moves + 1);
                }
            }
        }
        distances
    }

    fn code(&self, position: &Position) -> Option<usize> {
        let cells = std::iter::once(&position.player).chain(&position.boxes);
        cells
            .map(|cell| self.floor.binary_search(cell).ok())
            .try_fold(0, |code, index| Some(code * self.floor.len() + index?))
    }

    fn position(&self, mut code: usize, num_boxes: usize) -> Position {
        let mut boxes = vec![0; num_boxes];
        for place in boxes.iter_mut().rev() {
            *place = self.floor[code % self.floor.len()];
            code /= self.floor.len();
        }
        Position {
            player: self.floor[code],
            boxes,
        }
    }

    fn reach(&mut self, position: &Position, moves: u16) {
        if let Some(code) = self.code(position)
            && self.moves[code] == FAR
        {
            self.moves[code] = moves;
            self.reached.push(code);
        }
    }

    fn of(&self, position: &Position) -> u16 {
        self.code(position).map_or(FAR, |code| self.moves[code])
    }

    /// A shortest plan from a position that has one.
    fn plan(&self, room: &Room, start: &Position) -> String {
        let (mut plan, mut position) = (String::new(), start.clone());
        while !room.is_solved(&position) {
            let left = self.of(&position);
            let step = MOVES.iter().find_map(|&direction| {
                let next = room.moved(&position, direction)?;
                (self.of(&next) < left).then_some((direction.0, next))
            });
            let Some((letter, next)) = step else {
                break;
            };
            plan.push(letter);
            position = next;
        }
        plan
    }
}

/// Whether all moves of `plan` are possible and leave every box on a goal.
fn works(room: &Room, start: &Position, plan: &str) -> bool {
    let mut position = start.clone();
    for letter in plan.chars() {
        let direction = MOVES
            .into_iter()
            .find(|(name, ..)| name.eq_ignore_ascii_case(&letter));
        match direction.and_then(|direction| room.moved(&position, direction)) {
            Some(next) => position = next,
            None => return false,
        }
    }
    room.is_solved(&position)
}

impl Puzzle for Sokoban {
    fn unit(&self) -> &'static str {
        "moves of a shortest plan"
    }

    fn effort(&self, gold: &str) -> u64 {
        let (room, start) = Room::parse(gold);
        u64::from(Distances::new(&room).of(&start))
    }
}

impl TaskFamily for Sokoban {
    fn name(&self) -> &'static str {
        "sokoban"
    }

    fn summary(&self) -> &'static str {
        "push every box onto a goal"
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
        let size = size(level);
        let width = size.side + 2;
        (0..MAX_TRIES).find_map(|_| {
            let inside: Vec<usize> = shuffled(size.side * size.side, draw)
                .into_iter()
                .map(|cell| (cell / size.side + 1) * width + cell % size.side + 1)
                .collect();
            let (walls, open) = inside.split_at(size.num_walls);
            let mut is_floor = vec![false; width * width];
            for &cell in open {
                is_floor[cell] = true;
            }
            let mut goals = open[..size.num_boxes].to_vec();
            goals.sort_unstable();
            debug_assert!(walls.iter().all(|&wall| !is_floor[wall]));
            let room = Room {
                width,
                is_floor,
                goals,
            };
            let distances = Distances::new(&room);
            let far_enough: Vec<usize> = distances
                .reached
                .iter()
                .copied()
                .filter(|&code| size.moves.contains(&distances.moves[code]))
                .collect();
            if far_enough.is_empty() {
                return None;
            }
            let start = distances.position(draw.choose(&far_enough), size.num_boxes);
            let plan = distances.plan(&room, &start);
            let gold = room.text(&start);
            Some(Instance {
                canonical: gold.clone(),
                question: format!(
                    "Sokoban: # is a wall, - floor, . a goal, $ a box, * a box on a goal, @ you, + you on a goal.\n{gold}\n\
                     Each move U, D, L or R takes you one cell up, down, left or right; a box there is pushed one cell on, \
                     which must be free of walls and boxes. Every move must be possible. In the end every box must stand on \
                     a goal. Answer with the letters of the moves in \\boxed{{}}."
                ),
                solution: format!("{} moves. \\boxed{{{plan}}}", plan.len()),
                gold,
                ..Instance::default()
            })
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        let extracted = symbols(completion);
        let is_right = extracted.as_deref().is_some_and(|plan| {
            let (room, start) = Room::parse(gold);
            works(&room, &start, plan)
        });
        Verdict::exact(is_right, extracted)
    }

    /// As many random moves as the level's longest shortest plan.
    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        let plan: String = (0..*size(level).moves.end())
            .map(|_| draw.choose(&MOVES).0)
            .collect();
        format!("\\boxed{{{plan}}}")
    }

    /// Pushes to the right.
    fn greedy_answer(&self, _question: &str) -> String {
        "\\boxed{RRR}".to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::family::Family;
    use crate::task::{FamilyKey, Split};

    const ROOM: &str = "######\n#@$-.#\n#----#\n######";

    fn reward(gold: &str, plan: &str) -> f64 {
        let verdict = Sokoban.grade(gold, &format!("\\boxed{{{plan}}}"));
        verdict.reward().expect("always graded")
    }

    #[test]
    fn any_plan_that_ends_with_the_boxes_on_goals_is_right() {
        for plan in ["RR", "r r", "R, R", "DURR", "RRLLDR"] {
            assert_eq!(reward(ROOM, plan), 1.0, "{plan}");
        }
    }

    #[test]
    fn an_impossible_move_or_a_box_beside_its_goal_is_wrong() {
        for plan in ["R", "RRR", "LRR", "RRX", "URR", "DRURR", "2R", ""] {
            assert_eq!(reward(ROOM, plan), 0.0, "{plan}");
        }
        // Two boxes in a row are not pushed.
        assert_eq!(reward("#######\n#@$$..#\n#######", "RR"), 0.0);
        assert_eq!(reward("#####\n#@$*#\n#-.-#\n#####", "R"), 0.0);
    }

    #[test]
    fn a_room_is_written_as_it_is_read() {
        for text in [ROOM, "#####\n#+$*#\n#--.#\n#####"] {
            let (room, position) = Room::parse(text);
            assert_eq!(room.text(&position), text);
        }
    }

    /// Least moves, forwards, by plain sets of positions.
    fn shortest(room: &Room, start: &Position) -> Option<u16> {
        let mut seen = BTreeSet::new();
        let mut layer = vec![start.clone()];
        for moves in 0.. {
            if layer.iter().any(|position| room.is_solved(position)) {
                return Some(moves);
            }
            layer = layer
                .iter()
                .flat_map(|position| MOVES.iter().filter_map(|&d| room.moved(position, d)))
                .filter(|next| seen.insert((next.player, next.boxes.clone())))
                .collect();
            if layer.is_empty() {
                return None;
            }
        }
        None
    }

    #[test]
    fn backwards_and_forwards_searches_agree_on_the_shortest_plan() {
        for (level, seed) in (1..=4).flat_map(|level| (0..6).map(move |seed| (level, seed))) {
            let key = FamilyKey {
                family: Family::Sokoban,
                split: Split::Train,
                level,
                seed,
            };
            let gold = Family::task(&key).gold;
            let (room, start) = Room::parse(&gold);
            let moves = Distances::new(&room).of(&start);
            assert_eq!(shortest(&room, &start), Some(moves), "{gold}");
            assert!(size(level).moves.contains(&moves));
        }
    }
}
