//! Medians of wall-clock times after one run that does not count.

use std::time::Instant;

/// A rate is measured over runs at least this long.
const LEAST_RATE_SECS: f64 = 0.05;

/// How often to measure.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Runs that count.
    pub repeats: usize,
}

/// Runs `work` once to warm up, then `repeats` times; the parts of the run with the median total.
///
/// # Errors
/// The first error of `work`.
pub fn median_parts<const N: usize, E>(
    timing: Timing,
    mut work: impl FnMut() -> Result<[f64; N], E>,
) -> Result<[f64; N], E> {
    work()?;
    let mut runs = (0..timing.repeats.max(1))
        .map(|_| work())
        .collect::<Result<Vec<_>, E>>()?;
    Ok(middle(&mut runs))
}

/// Units a second of `work(times)`, which does `units` that many times.
pub fn rate(timing: Timing, units: f64, mut work: impl FnMut(usize)) -> f64 {
    work(1);
    let once = secs(|| work(1));
    let times = (LEAST_RATE_SECS / once.max(1e-9)).ceil().max(1.0) as usize;
    let mut runs: Vec<[f64; 1]> = (0..timing.repeats.max(1))
        .map(|_| [secs(|| work(times))])
        .collect();
    units * times as f64 / middle(&mut runs)[0]
}

/// Seconds that `work` takes.
pub fn secs(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// The run whose total is the median, the lower one of two.
fn middle<const N: usize>(runs: &mut [[f64; N]]) -> [f64; N] {
    let total = |run: &[f64; N]| run.iter().sum::<f64>();
    runs.sort_by(|a, b| total(a).total_cmp(&total(b)));
    runs[(runs.len() - 1) / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_run_does_not_count_and_the_median_total_does() {
        let mut runs = [[90.0, 9.0], [1.0, 6.0], [5.0, 0.5], [2.0, 4.0]].into_iter();
        let found = median_parts(Timing { repeats: 3 }, || Ok::<_, ()>(runs.next().unwrap()));
        // Totals 7, 5.5 and 6.
        assert_eq!(found, Ok([2.0, 4.0]));
    }

    #[test]
    fn an_error_ends_the_measurement() {
        let found = median_parts::<1, &str>(Timing { repeats: 3 }, || Err("no"));
        assert_eq!(found, Err("no"));
    }
}
