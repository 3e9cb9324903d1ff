//! Progress of long work: a bar on a terminal, a plain line now and then elsewhere; never both.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Time between plain lines.
const PLAIN_INTERVAL: Duration = Duration::from_secs(20);

/// Progress of one piece of work.
#[derive(Debug)]
pub struct Progress {
    label: String,
    unit: &'static str,
    total: u64,
    bar: Option<ProgressBar>,
    last_line: Cell<Instant>,
}

impl Progress {
    /// Starts at 0 of `total` `unit`s.
    pub fn new(label: &str, total: u64, unit: &'static str) -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg:<16} {wide_bar} {pos}/{len} {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style).with_message(label.to_string())
        });
        Progress { label: label.to_string(), unit, total, bar, last_line: Cell::new(Instant::now()) }
    }

    /// `done` units are finished.
    pub fn set(&self, done: u64) {
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None if self.last_line.get().elapsed() >= PLAIN_INTERVAL => {
                self.last_line.set(Instant::now());
                tracing::info!("{}: {done} of {} {}", self.label, self.total, self.unit);
            }
            None => {}
        }
    }

    /// The work is over; a bar disappears.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
