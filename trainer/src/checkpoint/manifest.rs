//! The manifest of a checkpoint folder: which files it must hold, byte for byte.
//!
//! It is written last and carries a seal, the BLAKE3 hash of its own content, so that any damaged
//! byte in the folder shows: in a file by the manifest, in the manifest by the seal.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::tensor_file::create_file;
use super::{CheckpointError, io_error};

/// Version of the folder's format; another one is refused.
const FORMAT: u32 = 1;

const FILE_NAME: &str = "manifest.json";

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
        let sealed = Sealed {
            manifest: self.clone(),
            seal: self.seal(),
        };
        let write = |out: &mut dyn io::Write| Ok(serde_json::to_writer_pretty(out, &sealed)?);
        create_file(folder, FILE_NAME, write).map(drop)
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
            let mut file = File::open(&path).map_err(io_error(&path))?;
            let found = file.metadata().map_err(io_error(&path))?.len();
            let problem = if found != record.bytes {
                format!("it has {found} bytes in place of {}", record.bytes)
            } else {
                let mut hasher = blake3::Hasher::new();
                io::copy(&mut file, &mut hasher).map_err(io_error(&path))?;
                if hasher.finalize().to_hex().as_str() == record.blake3 {
                    continue;
                }
                "its content doesn't match its hash".to_string()
            };
            return Err(CheckpointError::Damaged { path, problem });
        }
        Ok(())
    }
}
