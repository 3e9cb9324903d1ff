//! Graph colouring: colour the vertices such that no edge joins two of one colour.
//!
//! Edges are drawn between vertices of different hidden colours. Effort is the number of vertices that a search colours,
//! which takes the vertex with the fewest colours left first. Any proper colouring is right.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::draw::Draw;
use crate::instance::{Domain, Instance, TaskFamily};
use crate::integer_answer::integers;
use crate::logic::answer::symbols;
use crate::logic::{Puzzle, shuffle};
use crate::verdict::Verdict;

/// The family.
pub(crate) struct Colouring;

const COLOURS: [char; 4] = ['R', 'G', 'B', 'Y'];
/// Graphs drawn before an attempt is given up.
const MAX_TRIES: u32 = 30;
/// The search for the effort stops here.
const MAX_STEPS: u64 = 20_000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Graph {
    num_vertices: usize,
    num_colours: usize,
    edges: Vec<(usize, usize)>,
}

/// Vertices, colours, edges, and the least effort.
fn size(level: u32) -> (usize, usize, usize, u64) {
    match level {
        1 => (5, 2, 5, 5),
        2 => (6, 3, 9, 6),
        3 => (10, 3, 19, 10),
        4 => (18, 3, 38, 20),
        5 => (30, 3, 67, 40),
        _ => (40, 4, 165, 100),
    }
}

impl Graph {
    fn is_proper(&self, colours: &[usize]) -> bool {
        self.edges
            .iter()
            .all(|&(one, other)| colours[one] != colours[other])
    }

    /// Vertices that the search colours until it has a colouring.
    fn num_steps(&self) -> u64 {
        let mut neighbours = vec![Vec::new(); self.num_vertices];
        for &(one, other) in &self.edges {
            neighbours[one].push(other);
            neighbours[other].push(one);
        }
        let mut search = Search {
            neighbours,
            num_colours: self.num_colours,
            colours: vec![None; self.num_vertices],
            num_steps: 0,
        };
        search.run();
        search.num_steps
    }
}

struct Search {
    neighbours: Vec<Vec<usize>>,
    num_colours: usize,
    colours: Vec<Option<usize>>,
    num_steps: u64,
}

impl Search {
    fn left(&self, vertex: usize) -> Vec<usize> {
        let is_free = |&colour: &usize| {
            self.neighbours[vertex]
                .iter()
                .all(|&other| self.colours[other] != Some(colour))
        };
        (0..self.num_colours).filter(is_free).collect()
    }

    fn run(&mut self) -> bool {
        let open = (0..self.colours.len()).filter(|&vertex| self.colours[vertex].is_none());
        let first = open.min_by_key(|&vertex| {
            (
                self.left(vertex).len(),
                usize::MAX - self.neighbours[vertex].len(),
            )
        });
        let Some(vertex) = first else {
            return true;
        };
        for colour in self.left(vertex) {
            self.num_steps += 1;
            self.colours[vertex] = Some(colour);
            if self.num_steps >= MAX_STEPS || self.run() {
                return true;
            }
            self.colours[vertex] = None;
        }
        false
    }
}

fn letters(colours: &[usize]) -> String {
    colours.iter().map(|&colour| COLOURS[colour]).collect()
}

fn parse(gold: &str) -> Graph {
    serde_json::from_str(gold).expect("we wrote it")
}

impl Puzzle for Colouring {
    fn unit(&self) -> &'static str {
        "vertices coloured"
    }

    fn effort(&self, gold: &str) -> u64 {
        parse(gold).num_steps()
    }
}

impl TaskFamily for Colouring {
    fn name(&self) -> &'static str {
        "colouring"
    }

    fn summary(&self) -> &'static str {
        "colour a graph so that the ends of every edge differ"
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
        let (num_vertices, num_colours, num_edges, min_steps) = size(level);
        let (graph, hidden) = (0..MAX_TRIES).find_map(|_| {
            let mut hidden: Vec<usize> = (0..num_vertices)
                .map(|vertex| vertex % num_colours)
                .collect();
            shuffle(&mut hidden, draw);
            let mut edges: Vec<(usize, usize)> = (0..num_vertices)
                .flat_map(|one| (one + 1..num_vertices).map(move |other| (one, other)))
                .filter(|&(one, other)| hidden[one] != hidden[other])
                .collect();
            shuffle(&mut edges, draw);
            edges.truncate(num_edges);
            edges.sort_unstable();
            let graph = Graph {
                num_vertices,
                num_colours,
                edges,
            };
            let is_each_joined = (0..num_vertices).all(|vertex| {
                graph
                    .edges
                    .iter()
                    .any(|&(one, other)| one == vertex || other == vertex)
            });
            (is_each_joined && graph.num_steps() >= min_steps).then_some((graph, hidden))
        })?;
        let edges: Vec<String> = graph
            .edges
            .iter()
            .map(|(one, other)| format!("{}-{}", one + 1, other + 1))
            .collect();
        let classes: Vec<String> = (0..num_colours)
            .map(|colour| {
                let members = (0..num_vertices).filter(|&vertex| hidden[vertex] == colour);
                let members: Vec<String> = members.map(|vertex| (vertex + 1).to_string()).collect();
                format!("{}: {}", COLOURS[colour], members.join(" "))
            })
            .collect();
        Some(Instance {
            canonical: format!("{num_colours} {}", edges.join(" ")),
            question: format!(
                "Colour the vertices 1 to {num_vertices} with the colours {} such that the two ends of every edge differ. \
                 Edges: {}. Answer with the letters of the vertices' colours, from 1 to {num_vertices}, in \\boxed{{}}.",
                letters(&(0..num_colours).collect::<Vec<_>>())
                    .chars()
                    .map(String::from)
                    .collect::<Vec<_>>()
                    .join(", "),
                edges.join(", ")
            ),
            solution: format!(
                "No edge joins two of a line. {}. \\boxed{{{}}}",
                classes.join("; "),
                letters(&hidden)
            ),
            gold: serde_json::to_string(&graph).expect("plain data"),
            ..Instance::default()
        })
    }

    fn grade(&self, gold: &str, completion: &str) -> Verdict {
        let graph = parse(gold);
        let extracted = symbols(completion);
        let colours = extracted.as_deref().and_then(|answer| {
            let colour = |letter: char| {
                let known = &COLOURS[..graph.num_colours];
                known
                    .iter()
                    .position(|known| known.eq_ignore_ascii_case(&letter))
            };
            answer.chars().map(colour).collect::<Option<Vec<usize>>>()
        });
        let is_right = colours.is_some_and(|colours| {
            colours.len() == graph.num_vertices && graph.is_proper(&colours)
        });
        Verdict::exact(is_right, extracted)
    }

    fn random_answer(&self, level: u32, _question: &str, draw: &mut Draw) -> String {
        let (num_vertices, num_colours, ..) = size(level);
        let colours: Vec<usize> = (0..num_vertices).map(|_| draw.index(num_colours)).collect();
        format!("\\boxed{{{}}}", letters(&colours))
    }

    /// Gives each vertex in turn the first colour that no neighbour has, or the first of all.
    fn greedy_answer(&self, question: &str) -> String {
        let edges: Vec<(usize, usize)> = question
            .split([' ', ',', '.'])
            .filter_map(|word| {
                let (one, other) = word.split_once('-')?;
                Some((one.parse().ok()?, other.parse().ok()?))
            })
            .collect();
        let num_vertices = integers(question).get(1).map_or(0, |&last| last as usize);
        let num_colours = COLOURS
            .iter()
            .filter(|&&c| question.contains(&format!(" {c}")))
            .count();
        let mut colours: Vec<usize> = Vec::new();
        for vertex in 1..=num_vertices {
            let is_free = |colour: &usize| {
                !edges
                    .iter()
                    .any(|&(one, other)| other == vertex && colours.get(one - 1) == Some(colour))
            };
            colours.push((0..num_colours).find(is_free).unwrap_or(0));
        }
        format!("\\boxed{{{}}}", letters(&colours))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reward(answer: &str) -> f64 {
        let square = Graph {
            num_vertices: 4,
            num_colours: 3,
            edges: vec![(0, 1), (1, 2), (2, 3), (0, 3)],
        };
        let gold = serde_json::to_string(&square).expect("plain data");
        let verdict = Colouring.grade(&gold, &format!("\\boxed{{{answer}}}"));
        verdict.reward().expect("always graded")
    }

    #[test]
    fn all_eighteen_colourings_of_a_square_are_right() {
        // A cycle of n vertices has (k-1)^n + (k-1)(-1)^n proper colourings: 16 + 2.
        let all = (0..81).map(|code| [code / 27, code / 9 % 3, code / 3 % 3, code % 3]);
        let right = all
            .filter(|colours| reward(&letters(colours)) == 1.0)
            .count();
        assert_eq!(right, 18);
    }

    #[test]
    fn only_the_named_colours_of_all_vertices_count() {
        assert_eq!(reward("r, g,\nb g"), 1.0);
        for wrong in ["RGR", "RGRGR", "RGRY", "RRGG", "1212", ""] {
            assert_eq!(reward(wrong), 0.0, "{wrong}");
        }
    }
}
