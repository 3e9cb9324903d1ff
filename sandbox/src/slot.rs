//! Slots: a number that only one jail of the machine holds at a time, with a user id (for root) and
//! a control group of its own. Held by a lock on a file that is removed at the end.

use rustix::fs::{FlockOperation, flock};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::SandboxError;
use crate::error::While;

/// No id below this is ever taken for a slot.
pub(crate) const MIN_ID: u32 = 10_000;
/// Where slots' user and group ids may begin; systems hand out none of these by default. The lower
/// ones serve root inside a container, which often has 65,536 ids in all.
const FIRST_IDS: [u32; 3] = [200_000, 60_000, 30_000];
/// Jails that may live at once on a machine.
pub(crate) const NUM_SLOTS: u32 = 512;

/// Where slots are kept, and whether they have user ids of their own.
#[derive(Clone, Debug)]
pub(crate) struct SlotHome {
    pub(crate) dir: PathBuf,
    /// User and group id of slot 0, where the harness may hand them out.
    first_id: Option<u32>,
}

impl SlotHome {
    /// The folder of this user.
    pub(crate) fn of_user() -> Result<Self, SandboxError> {
        let uid = nix::unistd::geteuid();
        let beside = std::env::temp_dir().join(format!("baleen-sandbox-{uid}"));
        if !uid.is_root() {
            let home = Self {
                dir: beside,
                first_id: None,
            };
            return home.prepare().map(|()| home);
        }
        let map = |name| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        let mut home = Self {
            dir: PathBuf::from("/run/baleen-sandbox"),
            first_id: first_id(&map("uid_map"), &map("gid_map")),
        };
        if home.prepare().is_err() {
            // A container may have /run read-only.
            home.dir = beside;
            home.prepare()?;
        }
        Ok(home)
    }

    /// Makes the folder, or checks that an existing one is this user's alone to write.
    pub(crate) fn prepare(&self) -> Result<(), SandboxError> {
        // Root's slots have other user ids, which must reach their own folders in it.
        let mode = if self.first_id.is_some() {
            0o711
        } else {
            0o700
        };
        let shown = self.dir.display();
        match DirBuilder::new().mode(mode).create(&self.dir) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(SandboxError::infra(format!("make {shown}"), error));
            }
            _ => {}
        }
        let found = fs::symlink_metadata(&self.dir).while_trying(format!("look at {shown}"))?;
        let own = found.uid() == nix::unistd::geteuid().as_raw();
        if !found.is_dir() || !own || found.mode() & 0o022 != 0 {
            return Err(SandboxError::infra(
                format!("use {shown}"),
                "it is not a folder that only this user may write; remove it",
            ));
        }
        Ok(())
    }

    /// Takes the first free slot.
    pub(crate) fn take(&self) -> Result<Slot, SandboxError> {
        for index in 0..NUM_SLOTS {
            if let Some(lock) = self.try_lock(index)? {
                return Ok(Slot {
                    home: self.clone(),
                    index,
                    lock: Some(lock),
                });
            }
        }
        Err(SandboxError::Capacity { slots: NUM_SLOTS })
    }

    /// Slots of harnesses that were killed, now held by this process, to be cleaned and dropped.
    pub(crate) fn stale(&self) -> Vec<Slot> {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return Vec::new();
        };
        let index_of = |name: &str| {
            name.strip_prefix("slot-")?
                .strip_suffix(".lock")?
                .parse()
                .ok()
        };
        entries
            .filter_map(|entry| index_of(entry.ok()?.file_name().to_str()?))
            .filter_map(|index| {
                Some(Slot {
                    home: self.clone(),
                    index,
                    lock: Some(self.try_lock(index).ok()??),
                })
            })
            .collect()
    }

    fn try_lock(&self, index: u32) -> Result<Option<File>, SandboxError> {
        let path = self.lock_path(index);
        let failed = || format!("lock {}", path.display());
        loop {
            let opened = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path);
            let file = match opened {
                // The last jail of another process may just have removed the folder.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.prepare()?;
                    continue;
                }
                other => other.while_trying(failed())?,
            };
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                other => other.while_trying(failed())?,
            }
            // Between opening and locking the holder may have removed the file: then this lock is
            // on a file that nobody else will see.
            let locked = file.metadata().while_trying(failed())?.ino();
            if fs::metadata(&path).is_ok_and(|named| named.ino() == locked) {
                return Ok(Some(file));
            }
        }
    }

    fn lock_path(&self, index: u32) -> PathBuf {
        self.dir.join(format!("slot-{index}.lock"))
    }
}

/// The first range that both maps (lines `inside outside count`) hold as a whole.
fn first_id(uid_map: &str, gid_map: &str) -> Option<u32> {
    let holds = |map: &str, first: u32| {
        map.lines().any(|line| {
            let mut numbers = line
                .split_whitespace()
                .filter_map(|n| n.parse::<u64>().ok());
            let (inside, count) = (numbers.next(), numbers.nth(1));
            let (Some(inside), Some(count)) = (inside, count) else {
                return false;
            };
            let (first, end) = (u64::from(first), u64::from(first + NUM_SLOTS));
            inside <= first && end <= inside + count
        })
    };
    FIRST_IDS
        .into_iter()
        .find(|first| holds(uid_map, *first) && holds(gid_map, *first))
}

/// A slot that this process holds.
#[derive(Debug)]
pub(crate) struct Slot {
    home: SlotHome,
    pub(crate) index: u32,
    lock: Option<File>,
}

impl Slot {
    /// User and group id of its own; none where the harness is not root.
    pub(crate) fn id(&self) -> Option<u32> {
        Some(self.home.first_id? + self.index)
    }

    /// The lock, for the supervisor to share: the slot stays taken until it has ended, even when
    /// this process is killed.
    pub(crate) fn lock(&self) -> Option<BorrowedFd<'_>> {
        self.lock.as_ref().map(AsFd::as_fd)
    }

    /// The lite backend's working folder.
    pub(crate) fn work_dir(&self) -> PathBuf {
        self.home.dir.join(format!("slot-{}", self.index))
    }

    /// Makes the working folder afresh, owned by the slot.
    pub(crate) fn make_work_dir(&self) -> Result<PathBuf, SandboxError> {
        let dir = self.work_dir();
        let shown = dir.display();
        crate::tree::remove(&dir).while_trying(format!("clear {shown}"))?;
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .while_trying(format!("make {shown}"))?;
        if let Some(id) = self.id() {
            std::os::unix::fs::chown(&dir, Some(id), Some(id))
                .while_trying(format!("give {shown} to the slot"))?;
        }
        Ok(dir)
    }

    /// Keeps the slot locked as long as this process lives: something in it would not die.
    pub(crate) fn quarantine(mut self) {
        if let Some(lock) = self.lock.take() {
            std::mem::forget(lock);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.lock.is_some() {
            // Removed while still locked, so that nobody locks a file that then loses its name.
            let _ = fs::remove_file(self.home.lock_path(self.index));
            remove_if_empty(&self.home.dir);
        }
    }
}

fn remove_if_empty(dir: &Path) {
    let _ = fs::remove_dir(dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_slots_lie_within_what_the_user_namespace_maps() {
        let all = "         0          0 4294967295\n";
        let container = "0 100000 65536\n";
        assert_eq!(first_id(all, all), Some(200_000));
        assert_eq!(first_id(container, all), Some(60_000));
        assert_eq!(first_id("0 1000 1\n", "0 1000 1\n"), None);
    }

    #[test]
    fn a_slot_is_held_once_and_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let home = SlotHome {
            dir: parent.path().join("slots"),
            first_id: None,
        };
        let first = home.take().unwrap();
        let second = home.take().unwrap();
        assert_eq!((first.index, second.index), (0, 1));
        drop(first);
        assert_eq!(home.take().unwrap().index, 0);
        drop(second);
        assert!(!home.dir.exists());
    }
}
