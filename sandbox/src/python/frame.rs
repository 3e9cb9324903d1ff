//! What the keeper inside says about a cell: one line of JSON. Nobody but the keeper can write to its
//! standard output, yet half a line comes when it is killed.

use serde::Deserialize;

use super::cell::{Cell, CellFlags, death};
use crate::outcome::Flags;

/// The keeper's first line.
#[derive(Deserialize)]
pub(super) struct Greeting {
    ready: bool,
}

impl Greeting {
    pub(super) fn is(line: &[u8]) -> bool {
        serde_json::from_slice::<Self>(line).is_ok_and(|greeting| greeting.ready)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CellEnd {
    /// The worker answered.
    Done,
    /// It did not end after the interrupt.
    Killed,
    /// The worker is gone.
    Died,
}

/// Both ends of a text that may have been too long, in hexadecimal digits.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cut {
    head: String,
    tail: String,
    dropped: u64,
}

/// The answer to a cell.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Frame {
    #[serde(rename = "id")]
    _id: u32,
    end: CellEnd,
    /// As wait(2) tells it.
    status: i32,
    interrupted: bool,
    memory_error: bool,
    stdout: Cut,
    stderr: Cut,
    late: Cut,
    result: Option<Cut>,
    error: Option<Cut>,
}

impl Frame {
    pub(super) fn read(line: &[u8]) -> Option<Box<Self>> {
        serde_json::from_slice(line).ok()
    }

    pub(super) fn is_done(&self) -> bool {
        self.end == CellEnd::Done
    }

    /// A cell after which the session goes on.
    pub(super) fn into_cell(self) -> Cell {
        let cuts = [&self.stdout, &self.stderr, &self.late];
        let optional = [self.result.as_ref(), self.error.as_ref()];
        let truncated = cuts
            .into_iter()
            .chain(optional.into_iter().flatten())
            .any(|cut| cut.dropped > 0);
        Cell {
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
            late_output: self.late.text(),
            result: self.result.map(|cut| cut.text()),
            traceback: self.error.map(|cut| cut.text()),
            flags: CellFlags {
                truncated,
                timed_out: self.interrupted,
                out_of_memory: self.memory_error,
                ..CellFlags::default()
            },
            ..Cell::default()
        }
    }

    /// A cell that took its interpreter along; `jail` are the limits that the jail reached.
    pub(super) fn into_last_cell(self, jail: &Flags) -> Cell {
        let (end, status) = (self.end, self.status);
        let mut cell = self.into_cell();
        cell.flags.restarted = true;
        cell.flags.out_of_memory |= jail.out_of_memory;
        cell.flags.timed_out |= end == CellEnd::Killed || jail.timed_out;
        if end == CellEnd::Died {
            cell.notice = Some(death(status, jail));
        }
        cell
    }
}

impl Cut {
    /// Lossy text with a mark where bytes are missing.
    fn text(&self) -> String {
        let (head, tail) = (bytes_of(&self.head), bytes_of(&self.tail));
        if self.dropped == 0 {
            return String::from_utf8_lossy(&[head, tail].concat()).into_owned();
        }
        // Characters that were cut in two do not count as broken ones.
        let whole = match std::str::from_utf8(&head) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => head.len(),
        };
        let is_inside = |byte: &&u8| **byte & 0xC0 == 0x80;
        let skipped = tail.iter().take(3).take_while(is_inside).count();
        format!(
            "{}\n[... {} bytes are left out here ...]\n{}",
            String::from_utf8_lossy(&head[..whole]),
            self.dropped + (head.len() - whole + skipped) as u64,
            String::from_utf8_lossy(&tail[skipped..])
        )
    }
}

/// Bytes of hexadecimal digits; whatever else there is ends them.
fn bytes_of(digits: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pairs = digits.as_bytes().chunks_exact(2);
    pairs
        .map_while(|pair| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_text_keeps_whole_characters_and_counts_the_rest() {
        // "a", then the first half of "é"; then the second half of "é", then "b".
        let cut = Cut {
            head: "61c3".to_owned(),
            tail: "a962".to_owned(),
            dropped: 10,
        };
        assert_eq!(cut.text(), "a\n[... 12 bytes are left out here ...]\nb");
        let whole = Cut { dropped: 0, ..cut };
        assert_eq!(whole.text(), "aéb");
    }

    #[test]
    fn half_a_frame_is_none() {
        assert!(Frame::read(b"{\"id\": 1, \"end\": \"done\"").is_none());
        assert!(!Greeting::is(b"{\"ready\": false}"));
    }
}
