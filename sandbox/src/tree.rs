//! Folders that a hostile program wrote: removed and measured without following a link and without
//! recursion, since a program can nest folders deeper than any stack or descriptor table.

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, openat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

fn open_dir(parent: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn entries(dir: impl AsFd) -> rustix::io::Result<Vec<(CString, FileType)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            found.push((name.to_owned(), entry.file_type()));
        }
    }
    Ok(found)
}

/// Removes `path` with everything in it; fine when it does not exist. Folders inside folders are
/// first moved up to the top, so two descriptors are open at most.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let top = match open_dir(CWD, path) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let mut num_moved = 0_u64;
    loop {
        let found = entries(&top)?;
        if found.is_empty() {
            break;
        }
        for (name, kind) in found {
            if kind != FileType::Directory {
                unlinkat(&top, &name, AtFlags::empty())?;
                continue;
            }
            // The program may have closed it against its owner.
            let _ = rustix::fs::chmodat(&top, &name, Mode::RWXU, AtFlags::empty());
            let inner = open_dir(&top, &name)?;
            for (child, kind) in entries(&inner)? {
                if kind == FileType::Directory {
                    let _ = rustix::fs::chmodat(&inner, &child, Mode::RWXU, AtFlags::empty());
                    // Names that the program took already are passed over.
                    loop {
                        num_moved += 1;
                        let free = format!(".moved-{num_moved}");
                        match renameat_with(&inner, &child, &top, free, RenameFlags::NOREPLACE) {
                            Err(Errno::EXIST) => {}
                            other => break other?,
                        }
                    }
                } else {
                    unlinkat(&inner, &child, AtFlags::empty())?;
                }
            }
            unlinkat(&top, &name, AtFlags::REMOVEDIR)?;
        }
    }
    drop(top);
    std::fs::remove_dir(path)
}

/// Bytes on disk of all files below `path`, as far as they are found before `stop_at` is passed.
pub(crate) fn disk_bytes(path: &Path, stop_at: u64) -> u64 {
    /// Folders open at once; deeper ones are not counted, their number is bounded by the rest.
    const MAX_DEPTH: usize = 64;
    let mut total = 0;
    let mut pending: Vec<(OwnedFd, usize)> =
        open_dir(CWD, path).into_iter().map(|fd| (fd, 0)).collect();
    while let Some((dir, depth)) = pending.pop() {
        for (name, kind) in entries(&dir).unwrap_or_default() {
            let size = statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)
                .map_or(0, |stat| stat.st_blocks.cast_unsigned() * 512);
            // An empty file costs as well.
            total += size.max(512);
            if total > stop_at {
                return total;
            }
            if kind == FileType::Directory && depth < MAX_DEPTH && pending.len() < 512 {
                pending.extend(open_dir(&dir, &name).map(|fd| (fd, depth + 1)));
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_far_deeper_than_a_path_can_be_is_removed_and_links_are_not_followed() {
        let parent = tempfile::tempdir().unwrap();
        let kept = parent.path().join("kept");
        std::fs::create_dir(&kept).unwrap();
        std::fs::write(kept.join("file"), "x").unwrap();
        let top = parent.path().join("top");
        std::fs::create_dir(&top).unwrap();
        std::os::unix::fs::symlink(&kept, top.join("link")).unwrap();
        let mut dir = open_dir(CWD, &top).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&dir, "deep", Mode::RWXU).unwrap();
            dir = open_dir(&dir, "deep").unwrap();
        }
        assert!(disk_bytes(&top, u64::MAX) > 0);
        remove(&top).unwrap();
        assert!(!top.exists() && kept.join("file").exists());
    }
}
