//! The folder of a run, one process at a time.
//!
//! ```text
//! runs/NAME/
//!   config.ron                     the configuration with every default and --set written out
//!   metrics.jsonl                  one line a step
//!   tensorboard/                   the same figures as an event file, see `event_file`
//!   log.txt                        what the console said, step by step
//!   datasets.json                  what the files of the run's datasets held when it began
//!   rollouts/step-000012.parquet   groups of one step
//!   learned/step-000012.parquet    what the learner saw of them
//!   checkpoints/                   see `checkpoint`
//!   model/                         the final policy, a Hugging Face folder
//!   lock                           held while a process works here: its id and start time
//! ```
//! [`RunLayout`] only names the places and may be used to look on; [`RunFolder`] holds the lock.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rollout::crash_point;

use crate::config::RunConfig;
use crate::config_file::{self, ConfigError};

/// A run folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RunFolderError {
    /// A new run would overwrite another.
    #[error("{path} already holds a run")]
    Exists {
        /// Run folder.
        path: PathBuf,
    },
    /// A new run would mix with other files.
    #[error("{path} exists, is not empty and holds no run")]
    NotEmpty {
        /// Folder.
        path: PathBuf,
    },
    /// There is no run to look at or to resume.
    #[error("{path} holds no run: config.ron is missing")]
    NotARun {
        /// Folder.
        path: PathBuf,
    },
    /// Another process works here.
    #[error("run folder {path} is in use by {holder}")]
    InUse {
        /// Run folder.
        path: PathBuf,
        /// `process 123, for 5 min`.
        holder: String,
    },
    /// The operating system refused.
    #[error("can't {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// File or folder.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The folder's config.ron is not sound.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Where everything of a run lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunLayout {
    root: PathBuf,
}

impl RunLayout {
    /// The layout below `root`; touches nothing.
    pub fn new(root: &Path) -> RunLayout {
        RunLayout {
            root: root.to_path_buf(),
        }
    }

    /// The run folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The resolved configuration.
    pub fn config_path(&self) -> PathBuf {
        self.root.join("config.ron")
    }

    /// One JSON line a step.
    pub fn metrics_path(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// Folder of the TensorBoard event file.
    pub fn tensorboard_path(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    /// The log.
    pub fn log_path(&self) -> PathBuf {
        self.root.join("log.txt")
    }

    /// See [`crate::dataset_record`].
    pub fn datasets_path(&self) -> PathBuf {
        self.root.join("datasets.json")
    }

    /// Folder of checkpoints.
    pub fn checkpoints_path(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// Folder of rollouts.
    pub fn rollouts_path(&self) -> PathBuf {
        self.root.join("rollouts")
    }

    /// The groups of step `global_step`.
    pub fn rollout_path(&self, global_step: u64) -> PathBuf {
        self.rollouts_path()
            .join(format!("step-{global_step:06}.parquet"))
    }

    /// What an asynchronous run that an error ended had sampled ahead.
    pub fn left_behind_path(&self) -> PathBuf {
        self.rollouts_path().join("in_flight.parquet")
    }

    /// What the learner saw of those groups.
    pub fn learned_path(&self, global_step: u64) -> PathBuf {
        self.root
            .join("learned")
            .join(format!("step-{global_step:06}.parquet"))
    }

    /// The final policy, a Hugging Face folder.
    pub fn model_path(&self) -> PathBuf {
        self.root.join("model")
    }

    /// Whether a run is there.
    pub fn is_run(&self) -> bool {
        self.config_path().is_file()
    }

    /// Whether the run there has any result yet. One that failed before, on a wrong path of the
    /// model for instance, may be started anew.
    pub fn has_results(&self) -> bool {
        let has_metrics = fs::metadata(self.metrics_path()).is_ok_and(|file| file.len() > 0);
        let is_filled = |folder: PathBuf| {
            fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
        };
        has_metrics || is_filled(self.checkpoints_path()) || is_filled(self.rollouts_path())
    }

    /// The process that works here now, `process 123, for 5 min`; `None` when there is none.
    pub fn holder(&self) -> Option<String> {
        let mut file = File::open(self.root.join("lock")).ok()?;
        match fs4::FileExt::try_lock_shared(&file) {
            Err(fs4::TryLockError::WouldBlock) => {}
            _ => return None,
        }
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        Some(holder(&text))
    }

    /// The run's configuration.
    ///
    /// # Errors
    /// No run there, or a config.ron that was edited into something unsound.
    pub fn read_config(&self) -> Result<RunConfig, RunFolderError> {
        if !self.is_run() {
            return Err(RunFolderError::NotARun {
                path: self.root.clone(),
            });
        }
        Ok(config_file::load(&self.config_path(), &[])?)
    }
}

/// A run folder that this process alone may write to, until the value is dropped.
#[derive(Debug)]
pub struct RunFolder {
    layout: RunLayout,
    // The operating system releases the lock when the file closes, even after a kill.
    _lock: File,
}

impl Deref for RunFolder {
    type Target = RunLayout;

    fn deref(&self) -> &RunLayout {
        &self.layout
    }
}

impl RunFolder {
    /// Makes the folder of a new run and writes its `config.ron`.
    ///
    /// # Errors
    /// A run with results or other files are there already, another process holds the folder, or it can't be
    /// written.
    pub fn create(root: &Path, config: &RunConfig) -> Result<RunFolder, RunFolderError> {
        let layout = RunLayout::new(root);
        fs::create_dir_all(root).map_err(io("create", root))?;
        // Lock first: of two processes that start at once, one wins and the other is told so.
        let is_empty = fs::read_dir(root)
            .map_err(io("read", root))?
            .next()
            .is_none();
        let had_lock = root.join("lock").is_file();
        let lock = lock(root)?;
        if layout.is_run() && layout.has_results() {
            return Err(RunFolderError::Exists {
                path: root.to_path_buf(),
            });
        }
        if !is_empty && !had_lock {
            // Leave the stranger's folder as it was.
            let _ = fs::remove_file(root.join("lock"));
            return Err(RunFolderError::NotEmpty {
                path: root.to_path_buf(),
            });
        }
        for part in [layout.checkpoints_path(), layout.rollouts_path()] {
            fs::create_dir_all(&part).map_err(io("create", &part))?;
        }
        let folder = RunFolder {
            layout,
            _lock: lock,
        };
        folder.write_config(config)?;
        // Of a run that came to nothing: this one may have other datasets.
        let path = folder.datasets_path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(io("remove", &path)(error)),
            _ => Ok(folder),
        }
    }

    /// Takes over the folder of an interrupted run.
    ///
    /// # Errors
    /// No run there, another process works on it, or it can't be written.
    pub fn open(root: &Path) -> Result<RunFolder, RunFolderError> {
        let layout = RunLayout::new(root);
        if !layout.is_run() {
            return Err(RunFolderError::NotARun {
                path: root.to_path_buf(),
            });
        }
        let lock = lock(root)?;
        Ok(RunFolder {
            layout,
            _lock: lock,
        })
    }

    /// Replaces `config.ron`, all of it or nothing.
    ///
    /// # Errors
    /// The folder can't be written.
    pub fn write_config(&self, config: &RunConfig) -> Result<(), RunFolderError> {
        let path = self.config_path();
        replace_file(&path, config_file::to_ron(config).as_bytes()).map_err(io("write", &path))
    }
}

/// Gives `path` the content `bytes`, all of it or nothing. What a kill leaves half written,
/// `PATH.partial`, is overwritten the next time.
///
/// # Errors
/// The disk refuses.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let mut out = crash_point::Writer::new(crash_point::create(partial, false)?);
    out.write_all(bytes)?;
    crash_point::sync(out.file(), partial)?;
    crash_point::rename(partial, path)
}

fn io<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> RunFolderError + 'a {
    move |source| RunFolderError::Io {
        action,
        path: path.to_path_buf(),
        source,
    }
}

/// Takes `root/lock` and writes `PID START` (seconds since 1970) into it.
fn lock(root: &Path) -> Result<File, RunFolderError> {
    let path = root.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io("write", &path))?;
    match fs4::FileExt::try_lock(&file) {
        Ok(()) => {}
        Err(fs4::TryLockError::WouldBlock) => {
            let mut text = String::new();
            // Unreadable text only costs the detail of who holds the lock.
            let _ = file.read_to_string(&mut text);
            return Err(RunFolderError::InUse {
                path: root.to_path_buf(),
                holder: holder(&text),
            });
        }
        Err(fs4::TryLockError::Error(source)) => return Err(io("lock", &path)(source)),
    }
    let start = now().as_secs();
    file.set_len(0)
        .and_then(|()| write!(file, "{} {start}", std::process::id()))
        .map_err(io("write", &path))?;
    Ok(file)
}

/// Says who wrote a lock file: `process 123, for 5 min`.
fn holder(text: &str) -> String {
    let mut words = text.split_whitespace();
    let (Some(pid), Some(Ok(start))) = (words.next(), words.next().map(str::parse::<u64>)) else {
        return "another process".to_string();
    };
    let secs = now().as_secs().saturating_sub(start);
    let age = match secs {
        0..60 => format!("{secs} s"),
        60..7200 => format!("{} min", secs / 60),
        _ => format!("{} h", secs / 3600),
    };
    format!("process {pid}, for {age}")
}

pub(crate) fn now() -> Duration {
    // A clock before 1970 only spoils the age shown to the user.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RunConfig {
        let text = r#"(
            name: "a",
            model: (source: Path("model")),
            environments: [(family: sums)],
            stages: [sft(steps: 1, learning_rate: (peak: 1e-3))],
        )"#;
        config_file::parse(text, "test").expect("sound")
    }

    #[test]
    fn new_run_folder_holds_its_config() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let root = dir.path().join("runs/a");
        let folder = RunFolder::create(&root, &config()).expect("created");
        assert_eq!(folder.read_config().expect("readable"), config());
        assert_eq!(
            folder.rollout_path(12),
            root.join("rollouts/step-000012.parquet")
        );
        assert!(folder.checkpoints_path().is_dir());
    }

    #[test]
    fn an_existing_run_is_not_overwritten() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        drop(RunFolder::create(dir.path(), &config()).expect("created"));
        fs::write(dir.path().join("metrics.jsonl"), "{}\n").expect("written");
        let error = RunFolder::create(dir.path(), &config()).expect_err("must be refused");
        assert!(matches!(error, RunFolderError::Exists { .. }), "{error}");
        RunFolder::open(dir.path()).expect("resume may open it");
    }

    #[test]
    fn a_run_without_results_may_be_started_anew() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        drop(RunFolder::create(dir.path(), &config()).expect("created"));
        fs::write(dir.path().join("metrics.jsonl"), "").expect("written");
        fs::write(dir.path().join("datasets.json"), "{}").expect("written");
        let changed = RunConfig {
            seed: 9,
            ..config()
        };
        let folder = RunFolder::create(dir.path(), &changed).expect("nothing is lost");
        assert_eq!(folder.read_config().expect("readable"), changed);
        assert!(
            !folder.datasets_path().exists(),
            "it has datasets of its own"
        );
    }

    #[test]
    fn a_folder_in_use_names_the_process() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folder = RunFolder::create(dir.path(), &config()).expect("created");
        let error = RunFolder::open(dir.path()).expect_err("must be refused");
        let text = error.to_string();
        let holder = format!("is in use by process {}, for ", std::process::id());
        assert!(text.contains(&holder), "{text}");
        assert!(RunLayout::new(dir.path()).holder().is_some());
        drop(folder);
        assert_eq!(RunLayout::new(dir.path()).holder(), None);
        RunFolder::open(dir.path()).expect("free again");
    }

    #[test]
    fn a_strangers_folder_is_left_alone() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::write(dir.path().join("thesis.txt"), "precious").expect("written");
        let error = RunFolder::create(dir.path(), &config()).expect_err("must be refused");
        assert!(matches!(error, RunFolderError::NotEmpty { .. }), "{error}");
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 1);
    }

    #[test]
    fn a_folder_without_a_run_is_named() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let error = RunFolder::open(dir.path()).expect_err("nothing there");
        assert!(error.to_string().contains("config.ron is missing"));
    }

    #[test]
    fn a_path_below_a_file_is_an_error_with_its_name() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("file");
        fs::write(&file, "").expect("written");
        let error = RunFolder::create(&file.join("run"), &config()).expect_err("not a folder");
        assert!(error.to_string().contains("can't create"), "{error}");
    }
}
