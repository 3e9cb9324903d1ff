//! One entry of a run's `environments`: a task family, a dataset or another program's tasks, and its share of the
//! prompts.

use adapters::{McpConfig, RubricConfig, ServerConfig};
use environments::{DatasetConfig, Family, TaskKey};
use serde::{Deserialize, Serialize};

/// One source of tasks: `(family: sums, level: 2)`, `(dataset: (path: "a.jsonl", grader: integer))` or
/// `(server: (name: "shop", command: ["python3", "shop.py"]), level: 2)`, each with `weight` and `kl_scale`.
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
    /// Servers whose tools its tasks are given.
    pub mcp: Vec<McpConfig>,
    /// A language model that grades its answers in place of its own grader.
    pub rubric: Option<Box<RubricConfig>>,
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
    /// Made, run and graded by another program.
    Server {
        /// The program.
        server: Box<ServerConfig>,
        /// Difficulty, as the program counts it.
        level: u32,
    },
}

impl TaskSource {
    /// What it is called, and its difficulty where it has one.
    pub fn name_and_level(&self) -> (String, Option<u32>) {
        match self {
            TaskSource::Family { family, level } => (family.name().to_string(), Some(*level)),
            TaskSource::Dataset(dataset) => (dataset.name(), None),
            TaskSource::Server { server, level } => (server.name.clone(), Some(*level)),
        }
    }

    /// Whether its tasks come with worked solutions. Those of a server stay there.
    pub fn has_solutions(&self) -> bool {
        !matches!(self, TaskSource::Server { .. })
    }
}

impl EnvironmentConfig {
    /// Whether `task` is one of its tasks.
    pub fn is_source_of(&self, task: &TaskKey) -> bool {
        match (&self.source, task) {
            (TaskSource::Family { family, level }, TaskKey::Family(key)) => {
                (*family, *level) == (key.family, key.level)
            }
            (TaskSource::Dataset(dataset), TaskKey::Row(key)) => dataset.name() == key.dataset,
            (TaskSource::Server { server, level }, TaskKey::External(key)) => {
                (&server.name, *level) == (&key.environment, key.level)
            }
            _ => false,
        }
    }

    /// Its dataset.
    pub fn dataset(&self) -> Option<&DatasetConfig> {
        match &self.source {
            TaskSource::Dataset(dataset) => Some(dataset),
            TaskSource::Family { .. } | TaskSource::Server { .. } => None,
        }
    }

    /// Its server, if the tasks are another program's, and their level.
    pub fn server(&self) -> Option<(&ServerConfig, u32)> {
        match &self.source {
            TaskSource::Server { server, level } => Some((server, *level)),
            TaskSource::Family { .. } | TaskSource::Dataset(_) => None,
        }
    }
}

/// The keys as they are written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvironmentKeys {
    /// Task family; this, `dataset` or `server`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    family: Option<Family>,
    /// Difficulty within the family, or as the server counts it; 1 is easiest, and the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    level: Option<u32>,
    /// Prompts from files: `environments/src/dataset/config.rs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dataset: Option<DatasetConfig>,
    /// Another program: `adapters/src/config.rs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    server: Option<ServerConfig>,
    /// Servers of the Model Context Protocol: `adapters/src/config.rs`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    mcp: Vec<McpConfig>,
    /// A grading model: `adapters/src/rubric.rs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rubric: Option<Box<RubricConfig>>,
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
        let level = keys.level.unwrap_or(1);
        let source = match (keys.family, keys.dataset, keys.server) {
            (Some(family), None, None) => TaskSource::Family { family, level },
            (None, Some(_), None) if keys.level.is_some() => {
                return Err("`level` belongs to a family or a server; a dataset has none");
            }
            (None, Some(dataset), None) => TaskSource::Dataset(dataset),
            (None, None, Some(_)) if !keys.mcp.is_empty() => {
                return Err(
                    "`mcp` gives tools to the tasks of a family or a dataset; those of a server have its own",
                );
            }
            (None, None, Some(_)) if keys.rubric.is_some() => {
                return Err(
                    "`rubric` grades the tasks of a family or a dataset; a server grades its own",
                );
            }
            (None, None, Some(server)) => TaskSource::Server {
                server: Box::new(server),
                level,
            },
            (None, None, None) => {
                return Err("an environment needs a `family`, a `dataset` or a `server`");
            }
            _ => {
                return Err(
                    "an environment is a `family`, a `dataset` or a `server`, one alone; make more entries",
                );
            }
        };
        Ok(EnvironmentConfig {
            source,
            weight: keys.weight,
            kl_scale: keys.kl_scale,
            mcp: keys.mcp,
            rubric: keys.rubric,
        })
    }
}

impl From<EnvironmentConfig> for EnvironmentKeys {
    fn from(environment: EnvironmentConfig) -> EnvironmentKeys {
        let (_, level) = environment.source.name_and_level();
        let (mut family, mut dataset, mut server) = (None, None, None);
        match environment.source {
            TaskSource::Family { family: own, .. } => family = Some(own),
            TaskSource::Dataset(own) => dataset = Some(own),
            TaskSource::Server { server: own, .. } => server = Some(*own),
        }
        EnvironmentKeys {
            family,
            level,
            dataset,
            server,
            mcp: environment.mcp,
            rubric: environment.rubric,
            weight: environment.weight,
            kl_scale: environment.kl_scale,
        }
    }
}
