//! The manifest of a checkpoint folder: which files it must hold, byte for byte.
//!
//! It is written last and carries a seal, the BLAKE3 hash of its own content, so that any damaged
//! byte in the folder shows: in a file by the manifest, in the manifest by the seal.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rollout::crash_point;
use serde::{Deserialize, Serialize};

use super::tensor_file::create_file;
use super::{CheckpointError, io_error};

/// Version of the folder's format; another one is refused.
const FORMAT: u32 = 1;

const FILE_NAME: &str = "manifest.json";
const PARTIAL_NAME: &str = "manifest.json.partial";

/// One file of the folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Plain file name.
    pub name: String,
    /// Size.
    pub bytes: u64,
    /// BLAKE3 of the content, hexadecimal.
    pub blake3: String,
}

impl FileRecord {
    /// The record of the file `name` as it lies in `folder`.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn of(folder: &Path, name: &str) -> Result<FileRecord, CheckpointError> {
        let path = folder.join(name);
        let hash = || {
            let mut hasher = blake3::Hasher::new();
            let bytes = io::copy(&mut File::open(&path)?, &mut hasher)?;
            Ok((bytes, hasher.finalize().to_hex().to_string()))
        };
        let (bytes, blake3) = hash().map_err(io_error(&path))?;
        Ok(FileRecord {
            name: name.to_string(),
            bytes,
            blake3,
        })
    }
}

/// The reference policy that a checkpoint needs: another item of the same run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceLink {
    /// Folder beside the checkpoint's.
    pub name: String,
    /// Seal of its manifest.
    pub seal: String,
}

/// Content of `manifest.json`, without its seal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the format.
    pub format: u32,
    /// Hash of the run's configuration, as the run gave it.
    pub config_hash: String,
    /// Reference policy, if one is in use.
    pub reference: Option<ReferenceLink>,
    /// Every file but the manifest.
    pub files: Vec<FileRecord>,
}

/// Writes a manifest of everything in `folder`, which is whole.
///
/// # Errors
/// The disk refuses.
pub fn seal_folder(folder: &Path) -> Result<(), CheckpointError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let name = entry.map_err(io_error(folder))?.file_name();
        let is_other = |name: &String| ![FILE_NAME, PARTIAL_NAME].contains(&name.as_str());
        names.extend(name.into_string().ok().filter(is_other));
    }
    names.sort();
    let records = names.iter().map(|name| FileRecord::of(folder, name));
    let manifest = Manifest::new("", None, records.collect::<Result<_, _>>()?);
    // The folder is in use: the manifest has to appear whole.
    manifest.create_as(folder, PARTIAL_NAME)?;
    let [from, to] = [PARTIAL_NAME, FILE_NAME].map(|name| folder.join(name));
    crash_point::rename(&from, &to).map_err(io_error(&from))?;
    crash_point::sync_folder(folder).map_err(io_error(folder))
}

/// Whether `folder` holds what its manifest tells of; false where it has none, as an older program left it.
///
/// # Errors
/// A file that is not as it was written.
pub fn verify_folder(folder: &Path) -> Result<bool, CheckpointError> {
    if !folder.join(FILE_NAME).exists() {
        return Ok(false);
    }
    Manifest::read(folder)?.verify(folder)?;
    Ok(true)
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    manifest: Manifest,
    seal: String,
}

impl Manifest {
    /// A manifest of the current format.
    pub(super) fn new(
        config_hash: &str,
        reference: Option<ReferenceLink>,
        files: Vec<FileRecord>,
    ) -> Manifest {
        Manifest {
            format: FORMAT,
            config_hash: config_hash.to_string(),
            reference,
            files,
        }
    }

    /// BLAKE3 of the manifest, hexadecimal.
    pub(super) fn seal(&self) -> String {
        let bytes = serde_json::to_vec(self).expect("a manifest is plain data");
        blake3::hash(&bytes).to_hex().to_string()
    }

    /// Writes `manifest.json` into `folder`, durably.
    ///
    /// # Errors
    /// The disk refuses.
    pub(super) fn create(&self, folder: &Path) -> Result<(), CheckpointError> {
        self.create_as(folder, FILE_NAME)
    }

    fn create_as(&self, folder: &Path, name: &str) -> Result<(), CheckpointError> {
        let sealed = Sealed {
            manifest: self.clone(),
            seal: self.seal(),
        };
        let write = |out: &mut dyn io::Write| Ok(serde_json::to_writer_pretty(out, &sealed)?);
        create_file(folder, name, write).map(drop)
    }

    /// Reads the manifest of `folder` and checks its seal.
    ///
    /// # Errors
    /// No manifest, another format, or a broken seal.
    pub(super) fn read(folder: &Path) -> Result<Manifest, CheckpointError> {
        let path = folder.join(FILE_NAME);
        let text = fs::read(&path).map_err(io_error(&path))?;
        let damaged = |problem: String| CheckpointError::Damaged {
            path: path.clone(),
            problem,
        };
        let sealed: Sealed =
            serde_json::from_slice(&text).map_err(|e| damaged(format!("it can't be read: {e}")))?;
        let manifest = sealed.manifest;
        if manifest.seal() != sealed.seal {
            return Err(damaged("its content doesn't match its seal".to_string()));
        }
        if manifest.format != FORMAT {
            let found = manifest.format;
            return Err(damaged(format!(
                "it has format {found}, this program reads format {FORMAT}"
            )));
        }
        Ok(manifest)
    }

    /// Checks every file in `folder` against its size and hash.
    ///
    /// # Errors
    /// The first file that is missing or differs.
    pub(super) fn verify(&self, folder: &Path) -> Result<(), CheckpointError> {
        for record in &self.files {
            let path = folder.join(&record.name);
            // A wrong size shows without reading the file.
            let found = fs::metadata(&path).map_err(io_error(&path))?.len();
            let problem = if found != record.bytes {
                format!("it has {found} bytes in place of {}", record.bytes)
            } else if FileRecord::of(folder, &record.name)? != *record {
                "its content doesn't match its hash".to_string()
            } else {
                continue;
            };
            return Err(CheckpointError::Damaged { path, problem });
        }
        Ok(())
    }
}
