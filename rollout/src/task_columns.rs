//! A task's key as the columns `family`, `level`, `split` and `task_seed` of a rollout file hold it.
//!
//! A row of a dataset has the family `dataset:NAME`, level 0 and its number as the seed; a task of an environment outside
//! this program has the family `environment:NAME@VERSION`.

use environments::{ExternalKey, FamilyKey, RowKey, Split, TaskKey};

/// Before the name of a dataset.
const DATASET: &str = "dataset:";
/// Before the name of an environment outside this program.
const EXTERNAL: &str = "environment:";

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TaskColumns {
    pub(crate) family: String,
    pub(crate) level: u32,
    pub(crate) split: Split,
    pub(crate) task_seed: u64,
}

impl TaskColumns {
    pub(crate) fn of(task: &TaskKey) -> TaskColumns {
        match task {
            TaskKey::Family(key) => TaskColumns {
                family: key.family.name().to_string(),
                level: key.level,
                split: key.split,
                task_seed: key.seed,
            },
            TaskKey::Row(key) => TaskColumns {
                family: format!("{DATASET}{}", key.dataset),
                level: 0,
                split: key.split,
                task_seed: key.row,
            },
            TaskKey::External(key) => TaskColumns {
                family: format!("{EXTERNAL}{}@{}", key.environment, key.version),
                level: key.level,
                split: key.split,
                task_seed: key.seed,
            },
        }
    }

    /// # Errors
    /// A family that does not exist.
    pub(crate) fn key(self) -> Result<TaskKey, String> {
        if let Some(dataset) = self.family.strip_prefix(DATASET) {
            return Ok(TaskKey::Row(RowKey {
                dataset: dataset.to_string(),
                split: self.split,
                row: self.task_seed,
            }));
        }
        if let Some(named) = self.family.strip_prefix(EXTERNAL) {
            let (environment, version) = named
                .rsplit_once('@')
                .and_then(|(name, version)| Some((name, version.parse().ok()?)))
                .ok_or_else(|| format!("{}: an environment without a version", self.family))?;
            return Ok(TaskKey::External(ExternalKey {
                environment: environment.to_string(),
                version,
                split: self.split,
                level: self.level,
                seed: self.task_seed,
            }));
        }
        let family = self.family.parse();
        Ok(TaskKey::Family(FamilyKey {
            family: family.map_err(|error: environments::UnknownFamily| error.to_string())?,
            split: self.split,
            level: self.level,
            seed: self.task_seed,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_keeps_its_name_and_version() {
        let key = TaskKey::External(ExternalKey {
            environment: "a@b".to_string(),
            version: 3,
            split: Split::HeldOut,
            level: 2,
            seed: 9,
        });
        let columns = TaskColumns::of(&key);
        assert_eq!(columns.family, "environment:a@b@3");
        assert_eq!(columns.key(), Ok(key));
    }
}
