//! The figures of a step by name, for those that show them elsewhere: TensorBoard, Prometheus.
//!
//! A figure is a number of a line of `metrics.jsonl`; its name is its key there. What a step doesn't have,
//! or has as no finite number, is no figure. The drift histograms are no figures.

use serde_json::Value;

use crate::metrics::StepMetrics;

/// One number of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Key in `metrics.jsonl`, such as `reward_mean`; for entries of `masked_by_age`, `by_environment` and
    /// `reward_parts` `masked_by_age_sequences` and so on.
    pub name: String,
    /// Of which samples, where the figure is one of several: an age in versions, an environment, or a part of the reward.
    pub label: Option<(&'static str, String)>,
    /// Its value.
    pub value: f64,
}

/// All figures of `metrics`, in the order of its line.
pub fn figures(metrics: &StepMetrics) -> Vec<Figure> {
    let Ok(Value::Object(line)) = serde_json::to_value(metrics) else {
        unreachable!("a step serialises to an object");
    };
    let mut found = Vec::new();
    for (key, value) in line {
        match value {
            Value::Number(number) => found.extend(figure(key, None, number.as_f64())),
            Value::Array(entries) => {
                for entry in entries {
                    found.extend(labelled(&key, &entry));
                }
            }
            _ => {}
        }
    }
    found
}

fn figure(
    name: String,
    label: Option<(&'static str, String)>,
    value: Option<f64>,
) -> Option<Figure> {
    let value = value?;
    Some(Figure { name, label, value })
}

/// The figures of one entry of `masked_by_age`, `by_environment` or `reward_parts`; none of the numbers of a histogram.
fn labelled(key: &str, entry: &Value) -> Vec<Figure> {
    let labels = ["age", "environment", "part"].into_iter();
    let label = labels.filter_map(|name| match entry.get(name)? {
        Value::Number(number) => Some((name, number.to_string())),
        Value::String(text) => Some((name, text.clone())),
        _ => None,
    });
    let Some(label) = label.take(1).next() else {
        return Vec::new();
    };
    let fields = entry.as_object().into_iter().flatten();
    fields
        .filter(|(field, _)| *field != label.0)
        .filter_map(|(field, value)| {
            figure(
                format!("{key}_{field}"),
                Some(label.clone()),
                value.as_f64(),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::episode_figures::EnvironmentFigures;
    use crate::off_policy::{MaskedAtAge, OffPolicy};

    #[test]
    fn numbers_are_figures_and_what_is_absent_or_not_finite_is_none() {
        let metrics = StepMetrics {
            stage: "grpo".to_string(),
            step: 2,
            reward_mean: Some(0.25),
            loss: Some(f64::NAN),
            invalid_samples: Some(0),
            ..StepMetrics::default()
        };
        let found: Vec<(String, f64)> = figures(&metrics)
            .into_iter()
            .map(|figure| (figure.name, figure.value))
            .collect();
        let expected = [
            ("stage_index", 0.0),
            ("step", 2.0),
            ("global_step", 0.0),
            ("policy_version", 0.0),
            ("reward_mean", 0.25),
            ("invalid_samples", 0.0),
        ];
        assert_eq!(
            found,
            expected.map(|(name, value)| (name.to_string(), value))
        );
    }

    #[test]
    fn what_is_counted_by_environment_carries_its_name() {
        let metrics = StepMetrics {
            by_environment: vec![EnvironmentFigures {
                environment: "sums 1".to_string(),
                samples: 4,
                reward_mean: 0.5,
                pass_rate: 0.25,
            }],
            ..StepMetrics::default()
        };
        let found: Vec<Figure> = figures(&metrics)
            .into_iter()
            .filter(|figure| figure.label.is_some())
            .collect();
        let names: Vec<&str> = found.iter().map(|figure| &*figure.name).collect();
        let expected = ["samples", "reward_mean", "pass_rate"];
        assert_eq!(names, expected.map(|name| format!("by_environment_{name}")));
        let label = Some(("environment", "sums 1".to_string()));
        assert!(found.iter().all(|figure| figure.label == label));
    }

    #[test]
    fn what_is_counted_by_age_carries_its_age_and_histograms_are_left_out() {
        let at_age = |age, masked_tokens| MaskedAtAge {
            age,
            sequences: 1,
            masked_tokens,
            ..MaskedAtAge::default()
        };
        let metrics = StepMetrics {
            off_policy: OffPolicy {
                masked_by_age: vec![at_age(0, 0), at_age(3, 7)],
                drift_histogram_other: vec![1, 1],
                ..OffPolicy::default()
            },
            ..StepMetrics::default()
        };
        let found = figures(&metrics);
        assert!(found.contains(&Figure {
            name: "masked_by_age_masked_tokens".to_string(),
            label: Some(("age", "3".to_string())),
            value: 7.0,
        }));
        assert!(found.contains(&Figure {
            name: "masked_by_age_sequences".to_string(),
            label: Some(("age", "0".to_string())),
            value: 1.0,
        }));
        let histogram = |figure: &&Figure| figure.name.contains("histogram");
        assert_eq!(found.iter().find(histogram), None);
    }
}
