//! Days of a trip. A trip lies within one month, so no day is carried over.

use serde::{Deserialize, Serialize};

use crate::draw::Draw;

/// Short names, Monday first.
pub(super) const WEEKDAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Date {
    year: u32,
    month: u32,
    day: u32,
}

impl Date {
    /// A first day of a trip of `num_days`.
    pub(super) fn draw(num_days: usize, draw: &mut Draw) -> Date {
        Date {
            year: draw.between(2025..=2030) as u32,
            month: draw.between(1..=12) as u32,
            day: draw.between(1..=28 - num_days as i64) as u32,
        }
    }

    /// The date `days` later in the same month.
    pub(super) fn plus(self, days: usize) -> Date {
        Date {
            day: self.day + days as u32,
            ..self
        }
    }

    /// As `2025-10-01`.
    pub(super) fn iso(self) -> String {
        format!("{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }

    /// Monday is 0. Sakamoto's rule of the Gregorian calendar.
    pub(super) fn weekday(self) -> usize {
        const SHIFTS: [u32; 12] = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4];
        let year = self.year - u32::from(self.month < 3);
        let from_sunday =
            year + year / 4 - year / 100 + year / 400 + SHIFTS[self.month as usize - 1] + self.day;
        (from_sunday as usize + 6) % 7
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weekdays_are_those_of_the_calendar() {
        for (year, month, day, weekday) in [
            (2025, 10, 1, "Wed"),
            (2026, 11, 27, "Fri"),
            (2028, 2, 28, "Mon"),
            (2028, 3, 1, "Wed"),
            (2030, 1, 1, "Tue"),
        ] {
            let date = Date { year, month, day };
            assert_eq!(WEEKDAYS[date.weekday()], weekday, "{date:?}");
        }
    }
}
