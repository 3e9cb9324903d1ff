//! One entry of a run's `environments`: a task family or a dataset, and its share of the prompts.

use environments::{DatasetConfig, Family, TaskKey};
use serde::{Deserialize, Serialize};

/// One source of tasks: `(family: sums, level: 2)` or `(dataset: (path: "a.jsonl", grader: integer))`, each
/// with `weight` and `kl_scale`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "EnvironmentKeys", into = "EnvironmentKeys")]
pub struct EnvironmentConfig {
    /// Where tasks come from.
    pub source: TaskSource,
    /// Share of the prompts, relative to the others.
    pub weight: f64,
    /// Strength of the KL term on these tasks, relative to the stage's `kl_beta`; 0 leaves them free of it.
    /// The report gives every domain its own.
    pub kl_scale: f64,
}

/// Where the tasks of an environment come from.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskSource {
    /// Made by rule.
    Family {
        /// Task family.
        family: Family,
        /// Difficulty.
        level: u32,
    },
    /// Read from files.
    Dataset(DatasetConfig),
}

impl EnvironmentConfig {
    /// Whether `task` is one of its tasks.
    pub fn is_source_of(&self, task: &TaskKey) -> bool {
        match (&self.source, task) {
            (TaskSource::Family { family, level }, TaskKey::Family(key)) => {
                (*family, *level) == (key.family, key.level)
            }
            (TaskSource::Dataset(dataset), TaskKey::Row(key)) => dataset.name() == key.dataset,
            _ => false,
        }
    }

    /// Its dataset.
    pub fn dataset(&self) -> Option<&DatasetConfig> {
        match &self.source {
            TaskSource::Dataset(dataset) => Some(dataset),
            TaskSource::Family { .. } => None,
        }
    }
}

/// The keys as they are written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvironmentKeys {
    /// Task family; this or `dataset`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    family: Option<Family>,
    /// Difficulty within the family; 1 is easiest, and the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    level: Option<u32>,
    /// Prompts from files: `environments/src/dataset/config.rs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dataset: Option<DatasetConfig>,
    /// See [`EnvironmentConfig`].
    #[serde(default = "unit")]
    weight: f64,
    /// See [`EnvironmentConfig`].
    #[serde(default = "unit")]
    kl_scale: f64,
}

fn unit() -> f64 {
    1.0
}

impl TryFrom<EnvironmentKeys> for EnvironmentConfig {
    type Error = &'static str;

    fn try_from(keys: EnvironmentKeys) -> Result<EnvironmentConfig, &'static str> {
        let source = match (keys.family, keys.level, keys.dataset) {
            (Some(family), level, None) => TaskSource::Family {
                family,
                level: level.unwrap_or(1),
            },
            (None, None, Some(dataset)) => TaskSource::Dataset(dataset),
            (None, Some(_), Some(_)) => {
                return Err("`level` belongs to a family; a dataset has none");
            }
            (Some(_), _, Some(_)) => {
                return Err(
                    "an environment is a `family` or a `dataset`, not both; make two entries",
                );
            }
            (None, _, None) => return Err("an environment needs a `family` or a `dataset`"),
        };
        Ok(EnvironmentConfig {
            source,
            weight: keys.weight,
            kl_scale: keys.kl_scale,
        })
    }
}

impl From<EnvironmentConfig> for EnvironmentKeys {
    fn from(environment: EnvironmentConfig) -> EnvironmentKeys {
        let (family, level, dataset) = match environment.source {
            TaskSource::Family { family, level } => (Some(family), Some(level), None),
            TaskSource::Dataset(dataset) => (None, None, Some(dataset)),
        };
        EnvironmentKeys {
            family,
            level,
            dataset,
            weight: environment.weight,
            kl_scale: environment.kl_scale,
        }
    }
}
