//! Where log lines go: standard error, and for a run also its `log.txt`.
//!
//! `BALEEN_LOG` sets the level (`debug`, or a filter such as `rollout=debug`); `info` by default.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, registry};

use super::Failure;
use crate::progress::LogWriter;

/// Events of this target go to `log.txt` alone; `main` says the same on standard error.
const FILE_ONLY: &str = "log_file";

/// Log lines go to standard error from now on.
pub fn start() -> Result<(), Failure> {
    init(None)
}

/// Log lines go to standard error and are appended to `path` from now on.
pub fn start_with_file(path: &Path) -> Result<(), Failure> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|error| Failure::running(format!("can't write {}: {error}", path.display())))?;
    init(Some(file))
}

/// Records in `log.txt` why a run ended.
pub fn record_failure(failure: &Failure) {
    tracing::error!(target: FILE_ONLY, "{}", failure.to_string().trim_end());
}

fn init(file: Option<File>) -> Result<(), Failure> {
    let filter = EnvFilter::try_from_env("BALEEN_LOG")
        .or_else(|error| match std::env::var_os("BALEEN_LOG") {
            Some(_) => Err(error),
            None => Ok(EnvFilter::new("info")),
        })
        .map_err(|error| Failure::usage(format!("BALEEN_LOG: {error}")))?;
    let console = layer()
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .with_writer(|| LogWriter)
        .with_filter(filter_fn(|event| event.target() != FILE_ONLY));
    let file = file.map(|file| {
        layer()
            .with_ansi(false)
            .with_target(false)
            .with_writer(Mutex::new(file))
    });
    registry()
        .with(filter)
        .with(console)
        .with(file)
        .try_init()
        .map_err(Failure::running)
}
