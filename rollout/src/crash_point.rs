//! Crashes on purpose: shows what a crash at any file operation leaves behind.
//!
//! With `BALEEN_CRASH_AT=n` the n-th file operation of the process (creating, writing, syncing, renaming and
//! removing what belongs to a run, in the order in which they happen) ends it at once: nothing is unwound,
//! nothing flushed. A write is cut in half. Without the variable nothing happens. `tests/crashes.rs` uses it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The variable that names the operation to crash at.
pub const VARIABLE: &str = "BALEEN_CRASH_AT";

static COUNT: AtomicU64 = AtomicU64::new(0);
static CHOSEN: OnceLock<Option<u64>> = OnceLock::new();

/// Counts an operation; whether it is the chosen one.
fn is_chosen() -> bool {
    let chosen = CHOSEN.get_or_init(|| std::env::var(VARIABLE).ok()?.parse().ok());
    chosen.is_some_and(|chosen| COUNT.fetch_add(1, Ordering::SeqCst) + 1 == chosen)
}

/// Goes before an operation that happens as a whole or not at all.
fn before(what: &str, path: &Path) {
    if is_chosen() {
        crash(what, path);
    }
}

fn crash(what: &str, path: &Path) -> ! {
    eprintln!("{VARIABLE}: crashed before {what} {}", path.display());
    std::process::abort()
}

/// Creates the file `path`; fails where it exists if `is_new`.
///
/// # Errors
/// The operating system refuses, here and below.
pub fn create(path: &Path, is_new: bool) -> io::Result<File> {
    before("creating", path);
    match is_new {
        true => File::create_new(path),
        false => File::create(path),
    }
}

/// Creates the folder `path`.
///
/// # Errors
/// As [`create`].
pub fn create_dir(path: &Path) -> io::Result<()> {
    before("creating", path);
    fs::create_dir(path)
}

/// Makes a file's content durable; `path` is its name.
///
/// # Errors
/// As [`create`].
pub fn sync(file: &File, path: &Path) -> io::Result<()> {
    before("syncing", path);
    file.sync_all()
}

/// Makes names created or renamed in `folder` durable.
///
/// # Errors
/// As [`create`].
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    before("syncing", folder);
    File::open(folder)?.sync_all()
}

/// Renames.
///
/// # Errors
/// As [`create`].
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    before("renaming", from);
    fs::rename(from, to)
}

/// Removes a file.
///
/// # Errors
/// As [`create`].
pub fn remove_file(path: &Path) -> io::Result<()> {
    before("removing", path);
    fs::remove_file(path)
}

/// Removes a folder with what is in it, one entry after the other.
///
/// # Errors
/// As [`create`].
pub fn remove_dir_all(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        before("removing", &path);
        match path.is_dir() {
            true => fs::remove_dir_all(&path)?,
            false => fs::remove_file(&path)?,
        }
    }
    before("removing", folder);
    fs::remove_dir(folder)
}

/// Passes writes on to a file.
#[derive(Debug)]
pub struct Writer {
    file: File,
}

impl Writer {
    /// Writes to `file`.
    pub fn new(file: File) -> Writer {
        Writer { file }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if is_chosen() {
            // What a disk may keep of a write that a crash interrupts.
            let _ = self.file.write_all(&bytes[..bytes.len() / 2]);
            crash(
                "the rest of a write of",
                Path::new(&bytes.len().to_string()),
            );
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
