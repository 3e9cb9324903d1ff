//! How far a long wait has come: a bar on a terminal, plain lines now and then elsewhere.
//!
//! Bars and log lines share standard error: [`LogWriter`] takes the bars away while it writes, so
//! that neither scrambles the other. A wait shorter than [`SECS_BETWEEN_LINES`] leaves no line.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Plain lines of one wait are at least this far apart.
const SECS_BETWEEN_LINES: f64 = 20.0;

/// The bars of this process; it has one terminal.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// One wait, from its first unit to its last.
#[derive(Debug)]
pub struct Progress {
    label: String,
    unit: &'static str,
    total: u64,
    start: Instant,
    display: Display,
}

#[derive(Debug)]
enum Display {
    Bar(ProgressBar),
    Lines { last: Cell<Instant> },
}

impl Progress {
    /// Announces `total` units of work, `unit` in the plural: `rollout ... 12/64 samples`.
    pub fn new(label: &str, total: u64, unit: &'static str) -> Progress {
        let start = Instant::now();
        let display = if io::stderr().is_terminal() {
            let template = format!("{{msg}} [{{bar:30}}] {{pos}}/{{len}} {unit}, {{eta}} left");
            let style = ProgressStyle::with_template(&template)
                .expect("the template is constant")
                .progress_chars("=> ");
            let bar = BARS.add(ProgressBar::new(total).with_style(style));
            bar.set_message(label.to_string());
            Display::Bar(bar)
        } else {
            Display::Lines {
                last: Cell::new(start),
            }
        };
        Progress {
            label: label.to_string(),
            unit,
            total,
            start,
            display,
        }
    }

    /// `done` units are finished.
    pub fn set(&self, done: u64) {
        match &self.display {
            Display::Bar(bar) => bar.set_position(done),
            Display::Lines { last } => {
                let now = Instant::now();
                if (now - last.get()).as_secs_f64() >= SECS_BETWEEN_LINES && done < self.total {
                    last.set(now);
                    let line = line(&self.label, done, self.total, self.unit, now - self.start);
                    tracing::info!("{line}");
                }
            }
        }
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let Display::Bar(bar) = self.display {
            bar.finish_and_clear();
            BARS.remove(&bar);
        }
    }
}

fn line(label: &str, done: u64, total: u64, unit: &str, elapsed: Duration) -> String {
    let secs = elapsed.as_secs_f64();
    let left = match done {
        0 => String::new(),
        _ => format!(", {:.0} s left", secs * (total - done) as f64 / done as f64),
    };
    format!("{label}: {done}/{total} {unit} after {secs:.0} s{left}")
}

/// Writes to standard error beside the bars.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_and_how_long_still() {
        let elapsed = Duration::from_secs(30);
        assert_eq!(
            line("rollout", 16, 64, "samples", elapsed),
            "rollout: 16/64 samples after 30 s, 90 s left"
        );
        assert_eq!(
            line("rollout", 0, 64, "samples", elapsed),
            "rollout: 0/64 samples after 30 s"
        );
    }
}
