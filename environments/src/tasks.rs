//! From a key to its task: families make theirs, datasets read theirs, environments outside this program are asked.
//!
//! The samples of a prompt are graded one by one, so the tasks asked for last are kept.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::dataset::{Dataset, DatasetConfig, DatasetError};
use crate::family::Family;
use crate::task::{ExternalKey, Split, Task, TaskKey};
use crate::verdict::Fault;

/// Tasks kept.
const MAX_RECENT: usize = 64;
/// Bytes of text of the tasks kept.
const MAX_RECENT_BYTES: usize = 16 << 20;

/// An environment outside this program.
pub trait ExternalTasks: fmt::Debug + Send + Sync {
    /// Its name in the configuration.
    fn name(&self) -> &str;

    /// Version of its tasks, as it states it.
    fn version(&self) -> u32;

    /// The task that `key` names, the same at every call.
    ///
    /// # Errors
    /// A fault of the service, or a key of another environment or version.
    fn task(&self, key: &ExternalKey) -> Result<Task, Fault>;
}

/// Gives the tasks that it is meant for further tools; others it returns as they are.
pub trait Equip: fmt::Debug + Send + Sync {
    /// The task that is asked.
    fn equip(&self, task: Task) -> Task;
}

/// Every task that a run may meet. Threads may share it.
#[derive(Debug, Default)]
pub struct Tasks {
    datasets: BTreeMap<String, Dataset>,
    externals: BTreeMap<String, Arc<dyn ExternalTasks>>,
    equipment: Vec<Arc<dyn Equip>>,
    /// Newest last.
    recent: Mutex<VecDeque<Arc<Task>>>,
}

impl Tasks {
    /// The tasks of all families and of these datasets, whose names must differ. A prompt of more than
    /// `max_prompt_bytes` is a bad row.
    ///
    /// # Errors
    /// The first dataset that can't be opened.
    pub fn open<'a>(
        datasets: impl IntoIterator<Item = &'a DatasetConfig>,
        max_prompt_bytes: usize,
    ) -> Result<Tasks, DatasetError> {
        let opened = datasets.into_iter().map(|config| {
            let dataset = Dataset::open(config, max_prompt_bytes)?;
            Ok((dataset.name().to_string(), dataset))
        });
        Ok(Tasks {
            datasets: opened.collect::<Result<_, DatasetError>>()?,
            externals: BTreeMap::new(),
            equipment: Vec::new(),
            recent: Mutex::default(),
        })
    }

    /// With the tasks of an environment outside this program, whose name differs from those before it.
    #[must_use]
    pub fn with_external(mut self, external: Arc<dyn ExternalTasks>) -> Tasks {
        self.externals.insert(external.name().to_string(), external);
        self
    }

    /// With tools for some of its tasks.
    #[must_use]
    pub fn with_equipment(mut self, equipment: Arc<dyn Equip>) -> Tasks {
        self.equipment.push(equipment);
        self
    }

    /// The key of a task of the environment outside this program with that name.
    ///
    /// # Errors
    /// There is none.
    pub fn external_key(
        &self,
        name: &str,
        split: Split,
        level: u32,
        seed: u64,
    ) -> Result<ExternalKey, DatasetError> {
        Ok(ExternalKey {
            environment: name.to_string(),
            version: self.external(name)?.version(),
            split,
            level,
            seed,
        })
    }

    /// The datasets, by name.
    pub fn datasets(&self) -> impl Iterator<Item = &Dataset> {
        self.datasets.values()
    }

    /// The dataset of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn dataset(&self, name: &str) -> Result<&Dataset, DatasetError> {
        self.datasets
            .get(name)
            .ok_or_else(|| DatasetError::Unknown {
                name: format!("dataset {name}"),
            })
    }

    /// The task that `key` names.
    ///
    /// # Errors
    /// A dataset or environment that is not there, a row that can't be read, or a fault of an environment outside this
    /// program.
    ///
    /// # Panics
    /// When a family has no such level.
    pub fn task(&self, key: &TaskKey) -> Result<Arc<Task>, DatasetError> {
        let is_asked_for = |task: &&Arc<Task>| task.key == *key;
        if let Some(task) = self.recent().iter().rev().find(is_asked_for) {
            return Ok(task.clone());
        }
        let task = match key {
            TaskKey::Family(key) => Family::task(key),
            TaskKey::Row(key) => self.dataset(&key.dataset)?.task(key)?,
            TaskKey::External(key) => {
                let made = self.external(&key.environment)?.task(key);
                made.map_err(|fault| DatasetError::External {
                    name: key.to_string(),
                    fault,
                })?
            }
        };
        let equipment = self.equipment.iter();
        let task = Arc::new(equipment.fold(task, |task, equipment| equipment.equip(task)));
        let mut recent = self.recent();
        recent.push_back(task.clone());
        let mut num_bytes: usize = recent.iter().map(|task| num_bytes_of(task)).sum();
        while recent.len() > MAX_RECENT || num_bytes > MAX_RECENT_BYTES {
            num_bytes -= recent.pop_front().map_or(0, |task| num_bytes_of(&task));
        }
        Ok(task)
    }

    fn external(&self, name: &str) -> Result<&dyn ExternalTasks, DatasetError> {
        let external = self.externals.get(name);
        let external = external.ok_or_else(|| DatasetError::Unknown {
            name: format!("environment {name}"),
        })?;
        Ok(&**external)
    }

    fn recent(&self) -> MutexGuard<'_, VecDeque<Arc<Task>>> {
        self.recent.lock().expect("nothing panics under this lock")
    }
}

fn num_bytes_of(task: &Task) -> usize {
    let system = task.system.as_ref().map_or(0, String::len);
    system + task.question.len() + task.solution.len() + task.gold.len()
}
