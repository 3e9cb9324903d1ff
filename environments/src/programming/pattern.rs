//! Small regular expressions and a matcher of their own, which knows nothing of the `regex` crate.
//!
//! pattern = piece+; piece = atom, then nothing or a quantifier; atom = letter, class, word or choice of two words. A string is
//! matched whole. The positions that a prefix of the pattern can reach are the bits of one byte.

use crate::draw::Draw;

/// The letters of all strings.
pub(super) const LETTERS: &[u8] = b"abc";
/// Longest string that counts.
pub(super) const MAX_LETTERS: usize = 6;

/// A choice of words; a word is a row of sets of letters, a set has the bits of its [`LETTERS`].
type Atom = Vec<Vec<u8>>;

/// An atom and how often it comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    atom: Atom,
    /// Fewest and most repetitions.
    times: (u8, u8),
}

/// No upper bound.
const ANY: u8 = u8::MAX;

/// What pieces of a level are made of.
pub(super) struct Shape {
    pub(super) num_pieces: usize,
    /// Words of two letters in parentheses.
    pub(super) has_words: bool,
    /// Choices of two words.
    pub(super) has_choices: bool,
    /// How often a piece may come.
    times: &'static [(u8, u8)],
}

/// The shape of a level.
pub(super) fn shape(level: u32) -> Shape {
    let shape = |num_pieces, has_words, has_choices, num_times| {
        const TIMES: [(u8, u8); 6] = [(1, 1), (0, ANY), (1, ANY), (0, 1), (2, 2), (1, 2)];
        Shape {
            num_pieces,
            has_words,
            has_choices,
            times: &TIMES[..num_times],
        }
    };
    match level {
        1 => shape(2, false, false, 3),
        2 => shape(3, false, false, 4),
        3 => shape(3, true, false, 4),
        4 => shape(4, true, true, 4),
        _ => shape(5, true, true, 6),
    }
}

impl Shape {
    /// The shape in words.
    pub(super) fn prose(&self) -> String {
        let words = if self.has_words {
            ", a word of two letters in parentheses such as (ab)"
        } else {
            ""
        };
        let choices = if self.has_choices {
            ", a choice of two different words of one or two letters such as (a|bc)"
        } else {
            ""
        };
        let marks: Vec<String> = self.times[1..].iter().map(|&times| mark(times)).collect();
        format!(
            "{} pieces in a row. A piece is a letter, a class of two or three letters such as [ab]{words}{choices}; after it comes nothing or one of {}",
            self.num_pieces,
            marks.join(" "),
        )
    }

    fn draw_piece(&self, draw: &mut Draw) -> Piece {
        let mut letter = || 1u8 << draw.index(LETTERS.len());
        let letters = [letter(), letter(), letter(), letter()];
        let sort = draw.index(4 + usize::from(self.has_words) + 2 * usize::from(self.has_choices));
        let atom = match sort {
            0 | 1 => vec![vec![letters[0]]],
            2 => vec![vec![0b111 ^ letters[0]]],
            3 if draw.coin() => vec![vec![0b111]],
            3 => vec![vec![0b111 ^ letters[0]]],
            4 => vec![letters[..2].to_vec()],
            _ => {
                let first = letters[..1 + draw.index(2)].to_vec();
                let mut second = letters[2..3 + draw.index(2)].to_vec();
                if first == second {
                    second = vec![letters[0], 0b100 >> letters[0].trailing_zeros()];
                }
                vec![first, second]
            }
        };
        Piece {
            atom,
            times: draw.choose(self.times),
        }
    }

    /// A random pattern.
    pub(super) fn draw(&self, draw: &mut Draw) -> Vec<Piece> {
        (0..self.num_pieces)
            .map(|_| self.draw_piece(draw))
            .collect()
    }

    /// Patterns that differ from this one in one place, by all quantifiers and some atoms.
    pub(super) fn neighbours(&self, pattern: &[Piece], draw: &mut Draw) -> Vec<Vec<Piece>> {
        let mut neighbours = Vec::new();
        for at in 0..pattern.len() {
            let mut with = |piece: Option<Piece>| {
                let mut pattern = pattern.to_vec();
                pattern.splice(at..=at, piece);
                neighbours.push(pattern);
            };
            for &times in self.times {
                let atom = pattern[at].atom.clone();
                with(Some(Piece { atom, times }));
            }
            for _ in 0..8 {
                let Piece { atom, .. } = self.draw_piece(draw);
                let times = pattern[at].times;
                with(Some(Piece { atom, times }));
            }
            with(None);
        }
        neighbours.retain(|neighbour| neighbour != pattern);
        neighbours
    }
}

/// Every string that counts, shortest first.
pub(super) fn all_strings() -> Vec<String> {
    let mut strings = vec![String::new()];
    let mut from = 0;
    for _ in 0..MAX_LETTERS {
        let to = strings.len();
        for at in from..to {
            for &letter in LETTERS {
                strings.push(format!("{}{}", strings[at], char::from(letter)));
            }
        }
        from = to;
    }
    strings
}

/// Whether the pattern matches all of `text`, which has at most [`MAX_LETTERS`] letters.
pub(super) fn matches(pattern: &[Piece], text: &str) -> bool {
    let text = text.as_bytes();
    let reached = pattern
        .iter()
        .fold(1u8, |reached, piece| piece.reached(reached, text));
    reached >> text.len() & 1 == 1
}

impl Piece {
    /// Positions after the piece, from those before it.
    fn reached(&self, before: u8, text: &[u8]) -> u8 {
        let (least, most) = self.times;
        let mut now = before;
        let mut reached = if least == 0 { before } else { 0 };
        for count in 1..=most.min(MAX_LETTERS as u8) {
            now = self.once(now, text);
            if count >= least {
                reached |= now;
            }
            if now == 0 {
                break;
            }
        }
        reached
    }

    fn once(&self, before: u8, text: &[u8]) -> u8 {
        let word = |word: &Vec<u8>| {
            word.iter().fold(before, |reached, set| {
                let goes_on = |at: &usize| reached >> at & 1 == 1 && has(*set, text[*at]);
                let places = (0..text.len()).filter(goes_on);
                places.fold(0, |next, at| next | 1 << (at + 1))
            })
        };
        self.atom.iter().map(word).fold(0, |a, b| a | b)
    }

    fn text(&self) -> String {
        let mark = mark(self.times);
        let words: Vec<String> = self
            .atom
            .iter()
            .map(|word| word.iter().map(|&set| set_text(set)).collect())
            .collect();
        match words.as_slice() {
            [word] if self.atom[0].len() == 1 => format!("{word}{mark}"),
            _ => format!("({}){mark}", words.join("|")),
        }
    }
}

fn has(set: u8, letter: u8) -> bool {
    set >> (letter - b'a') & 1 == 1
}

fn set_text(set: u8) -> String {
    let letters = LETTERS.iter().filter(|&&letter| has(set, letter));
    let letters: String = letters.map(|&letter| char::from(letter)).collect();
    if letters.len() == 1 {
        letters
    } else {
        format!("[{letters}]")
    }
}

fn mark(times: (u8, u8)) -> String {
    match times {
        (1, 1) => String::new(),
        (0, ANY) => "*".to_string(),
        (1, ANY) => "+".to_string(),
        (0, 1) => "?".to_string(),
        (least, most) if least == most => format!("{{{least}}}"),
        (least, most) => format!("{{{least},{most}}}"),
    }
}

/// The pattern as text.
pub(super) fn text(pattern: &[Piece]) -> String {
    pattern.iter().map(Piece::text).collect()
}
