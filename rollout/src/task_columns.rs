//! A task's key as the columns `family`, `level`, `split` and `task_seed` of a rollout file hold it.
//!
//! A row of a dataset has the family `dataset:NAME`, level 0 and its number as the seed.

use environments::{FamilyKey, RowKey, Split, TaskKey};

/// Before the name of a dataset.
const DATASET: &str = "dataset:";

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
        let family = self.family.parse();
        Ok(TaskKey::Family(FamilyKey {
            family: family.map_err(|error: environments::UnknownFamily| error.to_string())?,
            split: self.split,
            level: self.level,
            seed: self.task_seed,
        }))
    }
}
