//! The axes of a plot: from values to pixels, and where the labels go.

use super::html::short;

/// How values become heights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// Evenly.
    Linear,
    /// By decades; values of 0 and below have no place.
    Log,
}

/// A range of values on a range of pixels.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
    pixels: (f64, f64),
}

impl Axis {
    /// From the lowest to the highest of `values`, which `pixels` spans; widened where they are equal, and for logarithms to
    /// at least a decade. `None` without a value that has a place.
    pub fn over(
        scale: Scale,
        values: impl Iterator<Item = f64>,
        pixels: (f64, f64),
    ) -> Option<Axis> {
        let has_place = |value: &f64| value.is_finite() && (scale == Scale::Linear || *value > 0.0);
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(has_place) {
            low = low.min(value);
            high = high.max(value);
        }
        if low > high {
            return None;
        }
        match scale {
            Scale::Linear if low == high => {
                let margin = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
                // What is never negative starts at 0.
                low = if low >= 0.0 {
                    (low - margin).max(0.0)
                } else {
                    low - margin
                };
                high += margin;
            }
            Scale::Log if high < 10.0 * low => {
                let center = (low * high).sqrt();
                (low, high) = (center / 10f64.sqrt(), center * 10f64.sqrt());
            }
            _ => {}
        }
        Some(Axis {
            scale,
            low,
            high,
            pixels,
        })
    }

    /// The same with a little room beyond the highest value and, unless that is 0, below the lowest.
    pub fn with_headroom(mut self) -> Axis {
        match self.scale {
            Scale::Linear => {
                let margin = (self.high - self.low) * 0.05;
                self.low -= if self.low == 0.0 { 0.0 } else { margin };
                self.high += margin;
            }
            Scale::Log => {
                let factor = (self.high / self.low).powf(0.05);
                self.low /= factor;
                self.high *= factor;
            }
        }
        self
    }

    /// The pixel of `value`; `None` where it has no place.
    pub fn pixel(&self, value: f64) -> Option<f64> {
        let share = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value / self.low).log10() / (self.high / self.low).log10(),
        };
        let pixel = self.pixels.0 + share * (self.pixels.1 - self.pixels.0);
        pixel.is_finite().then_some(pixel)
    }

    /// Whether `value` lies within the range.
    pub fn covers(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }

    /// Lowest and highest value.
    pub fn ends(&self) -> (f64, f64) {
        (self.low, self.high)
    }

    /// Round values within the range with their labels, about `count` of them; whole ones only, if `whole`.
    pub fn ticks(&self, count: usize, whole: bool) -> Vec<(f64, String)> {
        let values = match self.scale {
            Scale::Linear => linear_ticks(self.low, self.high, count, whole),
            Scale::Log => log_ticks(self.low, self.high, count),
        };
        values
            .into_iter()
            .map(|value| (value, label(value)))
            .collect()
    }
}

fn linear_ticks(low: f64, high: f64, count: usize, whole: bool) -> Vec<f64> {
    let rough = (high - low) / count.max(1) as f64;
    let decade = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * decade)
        .find(|&step| step >= rough * 0.999)
        .unwrap_or(10.0 * decade);
    let step = if whole { step.max(1.0) } else { step };
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

fn log_ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let powers = |every: usize| {
        (first..=last)
            .step_by(every)
            .map(|exponent| 10f64.powi(exponent))
    };
    let within = |value: &f64| *value >= low * 0.999 && *value <= high * 1.001;
    let decades = powers(1).filter(within).count();
    match decades {
        0..=2 => powers(1)
            .flat_map(|power| [1.0, 2.0, 5.0].map(|factor| factor * power))
            .filter(within)
            .collect(),
        _ => powers(decades.div_ceil(count.max(1)))
            .filter(within)
            .collect(),
    }
}

/// `0.2`, `15k`, `1e-5`.
fn label(value: f64) -> String {
    // Sums of steps such as 0.1 leave dust in the last digits.
    let value = if value.abs() < 1e-12 { 0.0 } else { value };
    match value.abs() {
        1e4..1e6 => format!("{}k", short(value / 1e3)),
        1e6..1e9 => format!("{}M", short(value / 1e6)),
        1e9.. => format!("{}G", short(value / 1e9)),
        0.001..1e4 | 0.0 => short(value),
        _ => {
            let text = format!("{value:.0e}");
            text.replace("e0", "")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: Scale, low: f64, high: f64, whole: bool) -> Vec<String> {
        let axis = Axis::over(scale, [low, high].into_iter(), (0.0, 100.0)).expect("a range");
        let ticks = axis.ticks(5, whole);
        ticks.into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn labels_are_round_and_few() {
        let cases: [(Scale, f64, f64, bool, &[&str]); 7] = [
            (
                Scale::Linear,
                0.0,
                1.0,
                false,
                &["0", "0.2", "0.4", "0.6", "0.8", "1"],
            ),
            (
                Scale::Linear,
                -0.13,
                0.31,
                false,
                &["-0.1", "0", "0.1", "0.2", "0.3"],
            ),
            (Scale::Linear, 1.0, 3.0, true, &["1", "2", "3"]),
            (
                Scale::Linear,
                0.0,
                50_000.0,
                false,
                &["0", "10k", "20k", "30k", "40k", "50k"],
            ),
            (Scale::Log, 1e-6, 1.0, false, &["1e-6", "1e-4", "0.01", "1"]),
            (
                Scale::Log,
                0.5,
                30.0,
                false,
                &["0.5", "1", "2", "5", "10", "20"],
            ),
            (
                Scale::Linear,
                0.0,
                4e-5,
                false,
                &["0", "1e-5", "2e-5", "3e-5", "4e-5"],
            ),
        ];
        for (scale, low, high, whole, expected) in cases {
            assert_eq!(labels(scale, low, high, whole), expected, "{low} to {high}");
        }
    }

    #[test]
    fn equal_values_get_room_and_zero_has_no_place_among_logarithms() {
        let flat =
            Axis::over(Scale::Linear, [0.0, 0.0].into_iter(), (0.0, 100.0)).expect("a range");
        assert_eq!(flat.ends(), (0.0, 1.0));
        let log =
            Axis::over(Scale::Log, [0.0, 1e-3, 0.1].into_iter(), (0.0, 100.0)).expect("a range");
        assert_eq!(log.ends(), (1e-3, 0.1));
        assert_eq!(log.pixel(0.0), None);
        assert_eq!(log.pixel(0.01).map(f64::round), Some(50.0));
        assert!(Axis::over(Scale::Log, [0.0].into_iter(), (0.0, 100.0)).is_none());
        assert!(Axis::over(Scale::Linear, [].into_iter(), (0.0, 100.0)).is_none());
    }
}
