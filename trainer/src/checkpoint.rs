//! Run checkpoints: everything a killed run needs to continue bit for bit.
//!
//! ```text
//! checkpoints/step-000040/         after step 40 of the run (`global_step`)
//!     weights.safetensors          f32 masters by Hugging Face name
//!     optimizer.safetensors        moments and step counts
//!     state.json                   TrainState: stage, steps, policy version, cursors
//!     in_flight.parquet            asynchronous runs: groups sampled and not trained, in part or whole
//!     manifest.json                format, config hash, reference link; size and BLAKE3 of each file
//! checkpoints/reference-stage-2/   weights.safetensors, manifest.json: written once a stage
//! ```
//! A folder is written as `NAME.partial`, made durable (fsync of each file and the folder) and then
//! renamed, so a folder with its plain name is complete. Older ones go afterwards, renamed to
//! `NAME.deleting` first. A folder of the same name steps aside as `NAME.replaced`, which counts as
//! `NAME` until the new one is in place. One writer at a time: the run folder's lock sees to that.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kernels::tch::Tensor;
use rollout::Group;
use serde::{Deserialize, Serialize};

use self::item_folder::ItemFolder;
use self::manifest::{FileRecord, Manifest, ReferenceLink};
use self::tensor_file::{TensorFile, create_file, create_tensor_file};

mod item_folder;
pub mod manifest;
mod tensor_file;

const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const IN_FLIGHT: &str = "in_flight.parquet";

/// Where a run stands, besides its tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainState {
    /// Index of the stage in the run's list.
    pub stage: usize,
    /// Steps done in it.
    pub step_in_stage: usize,
    /// Steps of all stages done so far; names the checkpoint.
    pub global_step: u64,
    /// Version of the policy.
    pub policy_version: u64,
    /// Id of the next prompt; random draws are keyed by it.
    pub next_prompt_id: u64,
    /// Next document of the stage's text.
    pub next_document: u64,
    /// Type, device and threads of the computation: what the last bits depend on.
    pub arithmetic: String,
}

/// A checkpoint that can't be written, found or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system refused (a full disk shows here); earlier checkpoints are untouched.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A file is not what was written.
    #[error("{path} is damaged: {problem}", path = path.display())]
    Damaged {
        /// File.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// File and model disagree about a tensor.
    #[error("{path}: tensor '{name}': {problem}", path = path.display())]
    Tensor {
        /// File.
        path: PathBuf,
        /// Tensor.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// Groups in flight can't be written or read.
    #[error(transparent)]
    InFlight(#[from] rollout::RolloutError),
    /// There are checkpoints, but every one is damaged.
    #[error(
        "no checkpoint in {folder} is intact; restore one from a backup or start a new run:\n  {problems}",
        folder = folder.display(),
        problems = problems.join("\n  ")
    )]
    NoneIntact {
        /// The run's `checkpoints`.
        folder: PathBuf,
        /// What is wrong with each, newest first.
        problems: Vec<String>,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError + use<> {
    let path = path.to_path_buf();
    |source| CheckpointError::Io { path, source }
}

/// What goes into a checkpoint.
#[derive(Debug)]
pub struct Contents<'a> {
    /// f32 masters by Hugging Face name.
    pub weights: &'a [(String, Tensor)],
    /// State of the optimizer.
    pub optimizer: &'a [(String, Tensor)],
    /// Where the run stands.
    pub state: &'a TrainState,
    /// Hash of the run's configuration.
    pub config_hash: &'a str,
    /// Name that [`Checkpoints::save_reference`] returned, while a reference policy is in use.
    pub reference: Option<&'a str>,
    /// Groups that were sampled, in part or whole, and not trained yet.
    pub in_flight: &'a [Group],
}

/// The newest intact checkpoint.
#[derive(Debug)]
pub struct Latest {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// What is wrong with each newer one, newest first; tell the user.
    pub damaged: Vec<CheckpointError>,
}

/// A checkpoint whose files were all verified.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// Where the run stood.
    pub state: TrainState,
    /// Hash of the configuration it was made with.
    pub config_hash: String,
    /// Name of the reference policy, for the next [`Contents::reference`].
    pub reference: Option<String>,
    reference_path: Option<PathBuf>,
}

impl Checkpoint {
    /// Copies the weights into `targets`, in place.
    ///
    /// # Errors
    /// Names, shapes or types differ (then nothing was copied), or the disk refuses.
    pub fn load_weights(&self, targets: &[(&str, &Tensor)]) -> Result<(), CheckpointError> {
        TensorFile::open(&self.path.join(WEIGHTS))?.copy_into(targets)
    }

    /// Copies the reference policy's weights into `targets`, in place; false when there is none.
    ///
    /// # Errors
    /// As [`Checkpoint::load_weights`].
    pub fn load_reference(&self, targets: &[(&str, &Tensor)]) -> Result<bool, CheckpointError> {
        match &self.reference_path {
            Some(path) => TensorFile::open(&path.join(WEIGHTS))?.copy_into(targets)?,
            None => return Ok(false),
        }
        Ok(true)
    }

    /// Groups that were sampled, in part or whole, and not trained yet.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn in_flight(&self) -> Result<Vec<Group>, CheckpointError> {
        let path = self.path.join(IN_FLIGHT);
        if !path.exists() {
            return Ok(Vec::new());
        }
        Ok(rollout::rollout_file::read(&path)?.groups)
    }

    /// State of the optimizer, on the CPU.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn optimizer_state(&self) -> Result<Vec<(String, Tensor)>, CheckpointError> {
        TensorFile::open(&self.path.join(OPTIMIZER))?.read_all()
    }
}

/// A checkpoint, or what is wrong with it, by the name of its folder.
pub type NamedCheckpoint = (String, Result<Checkpoint, CheckpointError>);

/// The checkpoints of a run.
#[derive(Debug)]
pub struct Checkpoints {
    items: ItemFolder,
    keep: usize,
    /// Steps whose checkpoint [`Checkpoints::latest`] found damaged: they don't count as kept.
    damaged: BTreeSet<u64>,
}

impl Checkpoints {
    /// The checkpoints in `folder` (made on the first save), of which the newest `keep` stay; at
    /// least one does.
    pub fn new(folder: &Path, keep: usize) -> Checkpoints {
        Checkpoints {
            items: ItemFolder {
                path: folder.to_path_buf(),
            },
            keep: keep.max(1),
            damaged: BTreeSet::new(),
        }
    }

    /// Writes `step-NNNNNN`, then deletes what is older than the newest `keep`.
    ///
    /// # Errors
    /// The disk refuses, or a tensor can't be stored: nothing new is left behind and every earlier
    /// checkpoint is still there.
    pub fn save(&mut self, contents: &Contents) -> Result<PathBuf, CheckpointError> {
        let step = contents.state.global_step;
        let reference = match contents.reference {
            None => None,
            Some(name) => Some(ReferenceLink {
                name: name.to_string(),
                seal: Manifest::read(&self.items.path_of(name))?.seal(),
            }),
        };
        let path = self.items.create(&step_name(step), |folder| {
            let mut files = vec![
                create_tensor_file(folder, WEIGHTS, contents.weights)?,
                create_tensor_file(folder, OPTIMIZER, contents.optimizer)?,
                create_file(folder, STATE, |out| {
                    Ok(serde_json::to_writer_pretty(out, contents.state)?)
                })?,
            ];
            if !contents.in_flight.is_empty() {
                files.push(create_in_flight_file(folder, step, contents.in_flight)?);
            }
            Manifest::new(contents.config_hash, reference, files).create(folder)
        })?;
        self.damaged.remove(&step);
        self.delete_old(contents.state)?;
        Ok(path)
    }

    /// Finishes what a killed [`Checkpoints::save`] left to do, for a run that goes on from `state`: a run
    /// that has no step to go would never save again.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn tidy(&self, state: &TrainState) -> Result<(), CheckpointError> {
        self.items.clear_leftovers()?;
        self.delete_old(state)
    }

    fn delete_old(&self, state: &TrainState) -> Result<(), CheckpointError> {
        self.delete_old_steps(state.global_step)?;
        self.delete_old_references(state.stage)
    }

    /// Writes `reference-stage-N`, the policy as it was when stage N began, and returns that name.
    /// It stays as long as a checkpoint links to it or the run is still in stage N or before.
    ///
    /// # Errors
    /// As [`Checkpoints::save`].
    pub fn save_reference(
        &self,
        stage: usize,
        weights: &[(String, Tensor)],
    ) -> Result<String, CheckpointError> {
        let name = format!("reference-stage-{stage}");
        self.items.create(&name, |folder| {
            let files = vec![create_tensor_file(folder, WEIGHTS, weights)?];
            Manifest::new("", None, files).create(folder)
        })?;
        Ok(name)
    }

    /// The newest checkpoint whose every byte is as written, its reference included; `None` when
    /// the run has no checkpoint yet.
    ///
    /// # Errors
    /// There are checkpoints but none is intact.
    pub fn latest(&mut self) -> Result<Option<Latest>, CheckpointError> {
        let mut damaged = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            match self.verified(step) {
                Ok(checkpoint) => {
                    return Ok(Some(Latest {
                        checkpoint,
                        damaged,
                    }));
                }
                Err(error) => {
                    self.damaged.insert(step);
                    damaged.push(error);
                }
            }
        }
        if damaged.is_empty() {
            return Ok(None);
        }
        Err(CheckpointError::NoneIntact {
            folder: self.items.path.clone(),
            problems: damaged.iter().map(ToString::to_string).collect(),
        })
    }

    /// The newest intact checkpoint of step `step` or before; `None` where there is none.
    ///
    /// # Errors
    /// The folder can't be listed.
    pub fn newest_until(&self, step: u64) -> Result<Option<Checkpoint>, CheckpointError> {
        let steps = self
            .steps()?
            .into_iter()
            .rev()
            .filter(|&found| found <= step);
        Ok(steps.filter_map(|step| self.verified(step).ok()).next())
    }

    /// Every checkpoint, oldest first, by its folder's name: as [`Checkpoints::latest`] would find it.
    ///
    /// # Errors
    /// The folder can't be listed.
    pub fn verify_all(&self) -> Result<Vec<NamedCheckpoint>, CheckpointError> {
        let verified = |step| (step_name(step), self.verified(step));
        Ok(self.steps()?.into_iter().map(verified).collect())
    }

    fn verified(&self, step: u64) -> Result<Checkpoint, CheckpointError> {
        let path = self.items.path_of(&step_name(step));
        let manifest = Manifest::read(&path)?;
        manifest.verify(&path)?;
        let mut reference_path = None;
        if let Some(link) = &manifest.reference {
            let linked = self.items.path_of(&link.name);
            let reference = Manifest::read(&linked)?;
            if reference.seal() != link.seal {
                return Err(CheckpointError::Damaged {
                    problem: format!("{} links to another one of that name", path.display()),
                    path: linked,
                });
            }
            reference.verify(&linked)?;
            reference_path = Some(linked);
        }
        let state_path = path.join(STATE);
        let state = fs::read(&state_path).map_err(io_error(&state_path))?;
        let state = serde_json::from_slice(&state).map_err(|e| CheckpointError::Damaged {
            path: state_path,
            problem: e.to_string(),
        })?;
        Ok(Checkpoint {
            path,
            state,
            config_hash: manifest.config_hash,
            reference: manifest.reference.map(|link| link.name),
            reference_path,
        })
    }

    /// Later steps are left alone: the run comes by there again.
    fn delete_old_steps(&self, saved: u64) -> Result<(), CheckpointError> {
        let mut steps = self.steps()?;
        steps.retain(|&step| step <= saved);
        let intact = steps
            .iter()
            .rev()
            .filter(|step| !self.damaged.contains(step));
        let kept: BTreeSet<u64> = intact.take(self.keep).copied().collect();
        for step in steps.iter().filter(|step| !kept.contains(step)) {
            self.items.delete(&step_name(*step))?;
        }
        Ok(())
    }

    /// Deletes references of stages before `stage` to which no checkpoint links.
    fn delete_old_references(&self, stage: usize) -> Result<(), CheckpointError> {
        let mut linked = BTreeSet::new();
        for step in self.steps()? {
            match Manifest::read(&self.items.path_of(&step_name(step))) {
                Ok(manifest) => linked.extend(manifest.reference.map(|link| link.name)),
                // Its link is unknown: delete nothing that it may need once repaired.
                Err(_) => return Ok(()),
            }
        }
        for name in self.items.items()? {
            let of_stage = name.strip_prefix("reference-stage-");
            let earlier = of_stage
                .and_then(|n| n.parse::<usize>().ok())
                .is_some_and(|n| n < stage);
            if earlier && !linked.contains(&name) {
                self.items.delete(&name)?;
            }
        }
        Ok(())
    }

    /// Steps that have a checkpoint, ascending.
    fn steps(&self) -> Result<Vec<u64>, CheckpointError> {
        let items = self.items.items()?;
        let numbers = items.iter().filter_map(|name| name.strip_prefix("step-"));
        let mut steps: Vec<u64> = numbers.filter_map(|number| number.parse().ok()).collect();
        steps.sort_unstable();
        Ok(steps)
    }
}

/// Writes the groups in flight as a rollout file whose samples have no advantage yet.
fn create_in_flight_file(
    folder: &Path,
    step: u64,
    groups: &[Group],
) -> Result<FileRecord, CheckpointError> {
    let path = folder.join(IN_FLIGHT);
    let num_samples = groups.iter().map(|group| group.samples.len()).sum();
    rollout::rollout_file::write(&path, step, groups, &vec![f64::NAN; num_samples])?;
    FileRecord::of(folder, IN_FLIGHT)
}

fn step_name(step: u64) -> String {
    format!("step-{step:06}")
}

#[cfg(test)]
mod tests;
