//! A folder of items (folders themselves), each of which appears whole or not at all.
//!
//! An item is written as `NAME.partial`, made durable and renamed to `NAME`; it is deleted as
//! `NAME.deleting`. An item of the same name steps aside as `NAME.replaced`, which counts as `NAME`
//! until the new one is in place. What a killed writer left is cleared by the next one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rollout::crash_point;

use super::{CheckpointError, io_error};

const PARTIAL: &str = ".partial";
const DELETING: &str = ".deleting";
const REPLACED: &str = ".replaced";

/// The folder.
#[derive(Debug)]
pub(super) struct ItemFolder {
    /// Where it is; made with the first item.
    pub(super) path: PathBuf,
}

impl ItemFolder {
    /// Creates the item `name` with what `write` puts into its folder.
    ///
    /// # Errors
    /// `write` fails or the disk refuses: nothing new is left behind then.
    pub(super) fn create(
        &self,
        name: &str,
        write: impl FnOnce(&Path) -> Result<(), CheckpointError>,
    ) -> Result<PathBuf, CheckpointError> {
        fs::create_dir_all(&self.path).map_err(io_error(&self.path))?;
        self.clear_leftovers()?;
        let partial = self.path.join(format!("{name}{PARTIAL}"));
        let attempt = || {
            crash_point::create_dir(&partial).map_err(io_error(&partial))?;
            write(&partial)?;
            sync_folder(&partial)?;
            self.put_in_place(&partial, name)
        };
        attempt().inspect_err(|_| {
            // The error that stopped the write is the one to report; what this leaves behind is
            // cleared by the next save.
            let _ = fs::remove_dir_all(&partial);
        })
    }

    fn put_in_place(&self, partial: &Path, name: &str) -> Result<PathBuf, CheckpointError> {
        let path = self.path.join(name);
        let replaced = self.path.join(format!("{name}{REPLACED}"));
        let replaces = path.exists();
        if replaces {
            rename(&path, &replaced)?;
        }
        if let Err(error) = rename(partial, &path) {
            if replaces {
                rename(&replaced, &path)?;
            }
            return Err(error);
        }
        sync_folder(&self.path)?;
        if replaces {
            remove(&replaced)?;
        }
        Ok(path)
    }

    /// Removes what a killed writer left half written or half deleted.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn clear_leftovers(&self) -> Result<(), CheckpointError> {
        for name in self.names()? {
            let path = self.path.join(&name);
            if name.ends_with(PARTIAL) || name.ends_with(DELETING) {
                remove(&path)?;
            } else if let Some(plain) = name.strip_suffix(REPLACED) {
                let plain = self.path.join(plain);
                if plain.exists() {
                    remove(&path)?;
                } else {
                    rename(&path, &plain)?;
                }
            }
        }
        Ok(())
    }

    /// Deletes the item `name`.
    pub(super) fn delete(&self, name: &str) -> Result<(), CheckpointError> {
        let deleting = self.path.join(format!("{name}{DELETING}"));
        rename(&self.path.join(name), &deleting)?;
        remove(&deleting)
    }

    /// Names of the items, sorted.
    pub(super) fn items(&self) -> Result<Vec<String>, CheckpointError> {
        let mut items: Vec<String> = self
            .names()?
            .into_iter()
            .filter(|name| !name.ends_with(PARTIAL) && !name.ends_with(DELETING))
            .map(|name| name.strip_suffix(REPLACED).unwrap_or(&name).to_string())
            .collect();
        items.sort();
        items.dedup();
        Ok(items)
    }

    /// Names in the folder; none when there is no folder.
    fn names(&self) -> Result<Vec<String>, CheckpointError> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io_error(&self.path))?,
        };
        let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name());
        let names: Vec<_> = entries
            .map(name)
            .collect::<io::Result<_>>()
            .map_err(io_error(&self.path))?;
        Ok(names
            .into_iter()
            .filter_map(|name| name.into_string().ok())
            .collect())
    }

    /// Folder of the item `name`, also while a newer one is about to replace it.
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        let replaced = self.path.join(format!("{name}{REPLACED}"));
        if !path.exists() && replaced.exists() {
            return replaced;
        }
        path
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    crash_point::rename(from, to).map_err(io_error(from))
}

fn remove(folder: &Path) -> Result<(), CheckpointError> {
    crash_point::remove_dir_all(folder).map_err(io_error(folder))
}

/// Makes names created or renamed in `folder` durable.
fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    crash_point::sync_folder(folder).map_err(io_error(folder))
}
