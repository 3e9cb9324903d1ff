//! The full backend's root: a memory file system with read-only binds of the system's programs, a
//! fresh /proc, a minimal /dev, and one sized memory file system behind /job, /tmp and /dev/shm.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{pivot_root, sethostname};
use std::fs::{self, File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::Path;

use crate::SandboxError;
use crate::error::While;
use crate::spec::JailSpec;

/// Working folder and home of the program.
pub(super) const WORK_DIR: &str = "/job";
/// Where the root is put together, in this mount namespace only.
const NEW_ROOT: &str = "/tmp";
/// Folders of programs and libraries; on most systems links into /usr.
const SYSTEM_DIRS: [&str; 6] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"];
/// What programs need of /etc, beside the stubs below.
const SYSTEM_FILES: [&str; 3] = [
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/ssl/openssl.cnf",
];
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
const STUBS: [(&str, &str); 4] = [
    (
        "passwd",
        "root:x:0:0:root:/:/bin/false\njob:x:1000:1000:job:/job:/bin/sh\n",
    ),
    ("group", "root:x:0:\njob:x:1000:\n"),
    ("hosts", "127.0.0.1 localhost\n"),
    (
        "nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files\n",
    ),
];

/// Builds the root, makes it `/`, and returns the working folder's descriptor for the library.
pub(super) fn build(spec: &JailSpec) -> Result<File, SandboxError> {
    // What happens here shall not travel to the host.
    mount_at(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    // Sources below the folder that is mounted over must stay within reach: open them first.
    let kept_sources = spec
        .readable
        .iter()
        .map(|path| Ok((path, open_path(path)?)))
        .collect::<Result<Vec<_>, SandboxError>>()?;
    mount_at(
        Some("tmpfs"),
        NEW_ROOT,
        Some("tmpfs"),
        plain,
        Some("mode=755,size=4m,nr_inodes=4096"),
    )?;
    let within = |path: &str| format!("{NEW_ROOT}{path}");
    for dir in SYSTEM_DIRS {
        let Ok(kind) = fs::symlink_metadata(dir) else {
            continue;
        };
        if kind.is_symlink() {
            let target = fs::read_link(dir).while_trying(format!("read {dir}"))?;
            symlink(target, within(dir)).while_trying(format!("link {dir}"))?;
        } else {
            make_dir(&within(dir))?;
            bind_read_only(dir, &within(dir))?;
        }
    }
    make_dir(&within("/etc"))?;
    for file in SYSTEM_FILES {
        let Ok(kind) = fs::metadata(file) else {
            continue;
        };
        let target = within(file);
        if kind.is_dir() {
            make_dir(&target)?;
        } else {
            make_parents(&target)?;
            make_file(&target, "")?;
        }
        bind_read_only(file, &target)?;
    }
    for (name, text) in STUBS {
        make_file(&within(&format!("/etc/{name}")), text)?;
    }
    make_dir(&within("/dev"))?;
    for name in DEVICES {
        let device = format!("/dev/{name}");
        make_file(&within(&device), "")?;
        mount_at(
            Some(&device),
            &within(&device),
            None,
            MsFlags::MS_BIND,
            None,
        )?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, within(&format!("/dev/{name}"))).while_trying("link in /dev")?;
    }
    make_dir(&within("/proc"))?;
    mount_at(
        Some("proc"),
        &within("/proc"),
        Some("proc"),
        plain | MsFlags::MS_NOEXEC,
        None,
    )?;
    let job = mount_writable(spec, &within)?;
    for (path, source) in &kept_sources {
        let target = within(path);
        let source_path = format!("/proc/self/fd/{}", source.as_raw_fd());
        if source.metadata().while_trying("look at a folder")?.is_dir() {
            make_parents(&target)?;
            make_dir(&target)?;
        } else {
            make_parents(&target)?;
            make_file(&target, "")?;
        }
        bind_read_only(&source_path, &target)?;
    }
    sethostname("sandbox").while_trying("set the host name")?;
    enter()?;
    Ok(job)
}

/// One memory file system, so that one size bounds all that is written.
fn mount_writable(spec: &JailSpec, within: &impl Fn(&str) -> String) -> Result<File, SandboxError> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    // An inode costs kernel memory: at most one for each KiB, and few in a small one.
    let inodes = (spec.limits.disk_bytes >> 10).clamp(256, 1 << 18);
    let options = format!(
        "mode=755,size={},nr_inodes={inodes}",
        spec.limits.disk_bytes
    );
    // The folder is hidden below the working folder's own bind once that is made.
    let writable = within(WORK_DIR);
    make_dir(&writable)?;
    mount_at(
        Some("tmpfs"),
        &writable,
        Some("tmpfs"),
        plain,
        Some(&options),
    )?;
    for (name, target, mode) in [
        ("tmp", "/tmp", 0o1777),
        ("shm", "/dev/shm", 0o1777),
        ("job", WORK_DIR, 0o755),
    ] {
        let source = format!("{writable}/{name}");
        make_dir(&source)?;
        fs::set_permissions(&source, Permissions::from_mode(mode)).while_trying("set a mode")?;
        let target = within(target);
        if name != "job" {
            make_dir(&target)?;
        }
        mount_at(Some(&source), &target, None, MsFlags::MS_BIND, None)?;
    }
    File::open(&writable).while_trying("open the working folder")
}

/// Makes the new root `/`, drops the old one, and closes the root against writing.
fn enter() -> Result<(), SandboxError> {
    std::env::set_current_dir(NEW_ROOT).while_trying("enter the new root")?;
    // Both names the same: the old root lies on top of the new one, from where it is taken off.
    pivot_root(".", ".").while_trying("switch to the new root")?;
    umount2(".", MntFlags::MNT_DETACH).while_trying("drop the old root")?;
    std::env::set_current_dir("/").while_trying("enter the new root")?;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount_at(
        None,
        "/",
        None,
        flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        None,
    )
}

fn open_path(path: &str) -> Result<File, SandboxError> {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)
        .map_err(|cause| SandboxError::infra(format!("open {path}"), cause))
}

fn make_dir(path: &str) -> Result<(), SandboxError> {
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(SandboxError::infra(format!("make {path}"), error))
        }
        _ => Ok(()),
    }
}

fn make_parents(path: &str) -> Result<(), SandboxError> {
    match Path::new(path).parent() {
        Some(parent) => {
            fs::create_dir_all(parent).while_trying(format!("make {}", parent.display()))
        }
        None => Ok(()),
    }
}

fn make_file(path: &str, text: &str) -> Result<(), SandboxError> {
    fs::write(path, text).while_trying(format!("make {path}"))
}

fn mount_at(
    source: Option<&str>,
    target: &str,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> Result<(), SandboxError> {
    mount(source, target, kind, flags, options).map_err(|errno| {
        let what = source.or(kind).unwrap_or("a change");
        SandboxError::infra(format!("mount {what} at {target}"), errno)
    })
}

/// Binds a tree and makes it and every mount inside it read-only.
fn bind_read_only(source: &str, target: &str) -> Result<(), SandboxError> {
    let tree = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount_at(Some(source), target, None, tree, None)?;
    let table = fs::read_to_string("/proc/self/mountinfo").while_trying("list mounts")?;
    for point in mounts_within(&table, target) {
        // Flags that the host set cannot be taken off in a user namespace: they are kept.
        let present = rustix::fs::statvfs(point.as_str())
            .while_trying(format!("look at {point}"))?
            .f_flag
            .bits();
        let kept = MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME | MsFlags::MS_NODIRATIME;
        let mut flags = MsFlags::from_bits_truncate(present) & kept;
        if present & ST_RELATIME != 0 {
            flags |= MsFlags::MS_RELATIME;
        }
        flags |= MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
        flags |= MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount_at(None, &point, None, flags, None)?;
    }
    Ok(())
}

/// The one flag whose bit differs between statvfs(3) and mount(2).
const ST_RELATIME: u64 = 4096;

/// Mount points at and below `root` in a mountinfo table.
fn mounts_within(table: &str, root: &str) -> Vec<String> {
    let below = format!("{root}/");
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .filter(|point| point == root || point.starts_with(&below))
        .collect()
}

/// The table writes blanks and backslashes as `\ooo`.
fn unescape(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|o| u8::from_str_radix(o, 8).ok()) {
            Some(byte) => {
                text.push(char::from(byte));
                text.push_str(&part[3..]);
            }
            None => text.push_str(part),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_a_tree_are_found_and_unescaped() {
        let table = "1 2 0:1 / /tmp/usr rw - ext4 x rw\n3 4 0:1 / /tmp/usr/a\\040b rw - ext4 x rw\n5 6 0:1 / /tmp/usrx rw - ext4 x rw\n";
        assert_eq!(
            mounts_within(table, "/tmp/usr"),
            ["/tmp/usr", "/tmp/usr/a b"]
        );
    }
}
