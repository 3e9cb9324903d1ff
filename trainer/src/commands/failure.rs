//! An error on its way out: what happened, why, what to do, and the exit code.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

use kernels::profiler::ProfileError;

use crate::checkpoint::CheckpointError;
use crate::config_file::ConfigError;
use crate::error::TrainerError;
use crate::run_folder::RunFolderError;

/// A command that could not be done. Its display ends with a newline.
#[derive(Debug)]
pub struct Failure {
    error: Box<dyn Error + Send + Sync>,
    hint: Option<String>,
    code: u8,
}

impl Failure {
    /// Something went wrong while running: exit code 1.
    pub fn running(error: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
        Failure {
            error: error.into(),
            hint: None,
            code: 1,
        }
    }

    /// What was asked for makes no sense: exit code 2.
    pub fn usage(error: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
        Failure {
            code: 2,
            ..Failure::running(error)
        }
    }

    /// The failure that `said` tells of, where it is that memory has run out, the machine's or a card's.
    pub(super) fn of_memory(said: &str) -> Option<Failure> {
        const SIGNS: [&str; 4] = [
            "allocate memory",
            "out of memory",
            "ALLOC_FAILED",
            "bad_alloc",
        ];
        if !SIGNS.iter().any(|sign| said.contains(sign)) {
            return None;
        }
        // What libtorch says of a card begins there; before it stands who called.
        let said = said
            .find("CUDA out of memory")
            .map_or(said, |at| &said[at..]);
        let hint = "in learning lower micro_batch_tokens or set activation_checkpointing; in sampling lower \
                    max_batch_sequences or max_new_tokens (the cache of keys and values); or take a smaller model. \
                    `baleen train CONFIG --dry-run` estimates what is needed";
        Some(Failure::running(format!("not enough memory: {said}")).hint(hint))
    }

    /// Adds what to do.
    pub fn hint(self, hint: impl Into<String>) -> Failure {
        Failure {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// For the shell.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.error.to_string();
        writeln!(f, "error: {said}")?;
        let mut cause = self.error.source();
        while let Some(error) = cause {
            // Some errors quote their cause in their own message.
            let text = error.to_string();
            if !said.contains(&text) {
                writeln!(f, "  because: {text}")?;
                said = text;
            }
            cause = error.source();
        }
        match &self.hint {
            Some(hint) => writeln!(f, "hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        let hint = match &error {
            ConfigError::Read { .. } => Some("the configurations of this project lie in configs/"),
            ConfigError::NotResumable { .. } | ConfigError::Edited { .. } => Some(
                "checkpoints.*, evaluation.*, grading.* and a larger number of steps in the last stage \
                 may change; for all else start a new run",
            ),
            ConfigError::Text(_) | ConfigError::Problems { .. } => None,
        };
        Failure {
            hint: hint.map(str::to_string),
            ..Failure::usage(error)
        }
    }
}

impl From<RunFolderError> for Failure {
    fn from(error: RunFolderError) -> Failure {
        let (code, hint) = match error {
            RunFolderError::Config(error) => return error.into(),
            RunFolderError::Exists { ref path } => (
                2,
                format!(
                    "continue it with `baleen resume {}`, or name another folder with --run",
                    path.display()
                ),
            ),
            RunFolderError::NotEmpty { .. } => (2, "name another folder with --run".to_string()),
            RunFolderError::NotARun { .. } => (
                2,
                "a run folder is what `baleen train` made, such as runs/quickstart".to_string(),
            ),
            RunFolderError::InUse { .. } => (
                1,
                "wait for that process, or stop it; it saves and leaves on SIGTERM".to_string(),
            ),
            RunFolderError::Io { .. } => (
                1,
                "check free space and permissions, or name another folder with --run".to_string(),
            ),
        };
        Failure {
            code,
            ..Failure::running(error).hint(hint)
        }
    }
}

impl From<TrainerError> for Failure {
    fn from(error: TrainerError) -> Failure {
        // Of a card's memory libtorch tells in its own words, whatever it was asked for.
        if let Some(failure) = Failure::of_memory(first_line(&error.to_string())) {
            return failure;
        }
        match error {
            TrainerError::RunFolder(error) => error.into(),
            TrainerError::Checkpoint(error) => error.into(),
            TrainerError::Weights(error) => model::checkpoint::CheckpointError::from(error).into(),
            TrainerError::Tokenizer(error) => error.into(),
            TrainerError::Rollout(error) => error.into(),
            TrainerError::Dataset(error) => error.into(),
            error @ TrainerError::NoSandbox { .. } => Failure::usage(error).hint(
                "`baleen sandbox doctor` says what this machine lacks; or leave these families out",
            ),
            error @ (TrainerError::Upcycle(_)
            | TrainerError::Text { .. }
            | TrainerError::DatasetChanged { .. }
            | TrainerError::NoIndexer { .. }
            | TrainerError::NotReplayable { .. }
            | TrainerError::Server(_)
            | TrainerError::Mcp { .. }
            | TrainerError::Rubric { .. }
            | TrainerError::NoStopToken) => Failure::usage(error),
            error @ (TrainerError::RunCheckpoint(CheckpointError::Io { .. })
            | TrainerError::Io { .. }
            | TrainerError::Profile(ProfileError::Io { .. })) => {
                Failure::running(error).hint(DISK_HINT)
            }
            other => Failure::running(other),
        }
    }
}

/// Without libtorch's own trace.
fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// What helps when the disk refuses while a run works.
const DISK_HINT: &str = "check free space and permissions, then continue with `baleen resume`; the \
                         checkpoints saved so far are intact";

// A model, tokenizer or prompt that doesn't fit is wrong input; a disk that refuses is not.

impl From<model::checkpoint::CheckpointError> for Failure {
    fn from(error: model::checkpoint::CheckpointError) -> Failure {
        use model::WeightError;
        use model::checkpoint::CheckpointError;
        match error {
            CheckpointError::Tokenizer(error) => error.into(),
            error @ CheckpointError::Weights(WeightError::Io { .. }) => Failure::running(error),
            error => Failure::usage(error),
        }
    }
}

impl From<rollout::RolloutError> for Failure {
    fn from(error: rollout::RolloutError) -> Failure {
        use rollout::RolloutError;
        match error {
            RolloutError::Chat(error) => error.into(),
            RolloutError::Task(error) => error.into(),
            RolloutError::EmptyPrompt { .. } | RolloutError::PromptTooLong { .. } => {
                Failure::usage(error)
            }
            error @ (RolloutError::Io { .. } | RolloutError::Parquet { .. }) => {
                Failure::running(error).hint(DISK_HINT)
            }
            error => Failure::running(error),
        }
    }
}

impl From<environments::DatasetError> for Failure {
    fn from(error: environments::DatasetError) -> Failure {
        match error {
            error @ environments::DatasetError::Changed { .. } => Failure::running(error),
            error => Failure::usage(error),
        }
    }
}

impl From<model::tokenizer::TokenizerError> for Failure {
    fn from(error: model::tokenizer::TokenizerError) -> Failure {
        match error {
            model::tokenizer::TokenizerError::Io { .. } => Failure::running(error),
            error => Failure::usage(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn error_cause_and_hint_are_said_once_each() {
        let error = RunFolderError::Io {
            action: "create",
            path: PathBuf::from("/proc/x"),
            source: io::Error::new(io::ErrorKind::PermissionDenied, "permission denied"),
        };
        assert_eq!(
            Failure::from(error).to_string(),
            "error: can't create /proc/x\n  because: permission denied\nhint: check free space \
             and permissions, or name another folder with --run\n"
        );
    }

    #[test]
    fn a_full_card_is_told_with_what_to_lower() {
        let error = TrainerError::Kernel(kernels::KernelError::Libtorch {
            operation: "fused_adamw_",
            message:
                "CUDA out of memory. Tried to allocate 2.00 GiB.\nException raised from malloc"
                    .to_string(),
        });
        let text = Failure::from(error).to_string();
        assert!(
            text.starts_with("error: not enough memory: CUDA out of memory. Tried"),
            "{text}"
        );
        assert!(
            text.contains("hint: in learning lower micro_batch_tokens"),
            "{text}"
        );
        assert!(!text.contains("Exception"), "{text}");
    }

    #[test]
    fn an_existing_run_hints_at_resume() {
        let error = RunFolderError::Exists {
            path: PathBuf::from("runs/a"),
        };
        let failure = Failure::from(error);
        assert!(failure.to_string().contains("`baleen resume runs/a`"));
        assert_eq!(failure.code, 2);
    }
}
