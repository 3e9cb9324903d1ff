//! What the machine has to give, asked before a run: memory, NCCL, and which libtorch it is.
//!
//! Memory of this process is limited by what the system has left and by every control group above the
//! process (version 1 or 2); pages of files that a group holds can be dropped and count as left.

use std::fs;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use tch::Device;

/// The collectives library as its loader knows it.
const NCCL: &str = "libnccl.so.2";

unsafe extern "C" {
    /// Of libtorch's stable C interface: one byte each for major, minor and patch, from the highest.
    safe fn aoti_torch_abi_version() -> u64;
}

/// The libtorch that is loaded, such as `2.11.0`.
pub fn libtorch_version() -> String {
    let [major, minor, patch, ..] = aoti_torch_abi_version().to_be_bytes();
    format!("{major}.{minor}.{patch}")
}

/// Whether NCCL, which several GPUs speak to each other with, can be loaded.
///
/// # Errors
/// Why not, in the loader's words.
pub fn find_nccl() -> Result<(), String> {
    // SAFETY: loading runs the library's initialisers, which only set up its own state; it is
    // closed again at once and no symbol of it is used.
    unsafe { Library::open(Some(NCCL), RTLD_NOW | RTLD_LOCAL) }
        .map(drop)
        .map_err(|error| loader_reason(&error))
}

/// What the loader says; the error itself only says that loading failed.
pub(crate) fn loader_reason(error: &libloading::Error) -> String {
    let reason = std::error::Error::source(error);
    reason.map_or_else(|| error.to_string(), ToString::to_string)
}

/// Bytes that tensors on `device` may still take; `None` where nobody says.
pub fn available_memory_bytes(device: Device) -> Option<u64> {
    match device {
        Device::Cuda(_) => gpu_memory_bytes().map(|(free, _)| free),
        _ => main_memory_bytes(Path::new("/")),
    }
}

/// Free and total memory of the current GPU, asked of the CUDA runtime that libtorch has loaded.
fn gpu_memory_bytes() -> Option<(u64, u64)> {
    type MemGetInfo = unsafe extern "C" fn(free: *mut usize, total: *mut usize) -> i32;
    let (mut free, mut total) = (0, 0);
    // SAFETY: the program itself is open all the time. The symbol, where it exists, is the CUDA
    // runtime's function of this signature since its first version; it writes two numbers.
    let code = unsafe {
        let program = Library::this();
        let get = program.get::<MemGetInfo>(b"cudaMemGetInfo\0").ok()?;
        get(&raw mut free, &raw mut total)
    };
    (code == 0).then_some((free as u64, total as u64))
}

/// Main memory left, reading `proc` and `sys` below `root`.
fn main_memory_bytes(root: &Path) -> Option<u64> {
    let left_in_system = fs::read_to_string(root.join("proc/meminfo"))
        .ok()
        .and_then(|text| bytes_after(&text, "MemAvailable:"));
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let left_in_groups = groups.lines().filter_map(|line| {
        // hierarchy-ID:controllers:path, of version 2 without an ID of its own and controllers.
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let path = path.trim_start_matches('/');
        if controllers.is_empty() {
            left_in_group(&root.join("sys/fs/cgroup"), path, V2)
        } else if controllers.split(',').any(|name| name == "memory") {
            left_in_group(&root.join("sys/fs/cgroup/memory"), path, V1)
        } else {
            None
        }
    });
    left_in_system.into_iter().chain(left_in_groups).min()
}

/// File names of limit and use, and the key of `memory.stat` for pages of files not used lately.
type GroupFiles = (&'static str, &'static str, &'static str);
const V1: GroupFiles = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
);
const V2: GroupFiles = ("memory.max", "memory.current", "inactive_file");

/// The least that the group `path` and those above it have left.
fn left_in_group(mount: &Path, path: &str, (limit, used, file_pages): GroupFiles) -> Option<u64> {
    let number = |path: PathBuf| -> Option<u64> {
        // `max` for no limit is no number.
        fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    let left = |group: &Path| {
        let (limit, used) = (number(group.join(limit))?, number(group.join(used))?);
        let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let droppable = stat
            .lines()
            .find_map(|line| line.strip_prefix(file_pages)?.trim().parse().ok())
            .unwrap_or(0);
        Some(limit.saturating_sub(used.saturating_sub(droppable)))
    };
    // Inside a container the path may be that of the host, with nothing there but the mount itself.
    let own = mount.join(path);
    let groups = own.ancestors().take_while(|group| group.starts_with(mount));
    groups.filter_map(left).min()
}

/// The number of KiB after `key`, in bytes.
fn bytes_after(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file tree with these contents, and the memory found in it.
    fn found(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        main_memory_bytes(root.path())
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal: 4096 kB\nMemAvailable:   2000 kB\n",
    );

    #[test]
    fn without_groups_the_system_says_what_is_left() {
        assert_eq!(found(&[MEMINFO]), Some(2_048_000));
        assert_eq!(found(&[]), None);
    }

    #[test]
    fn the_tightest_group_above_the_process_decides() {
        let files = |current: &'static str| {
            [
                MEMINFO,
                ("proc/self/cgroup", "0::/outer/inner\n"),
                ("sys/fs/cgroup/outer/inner/memory.max", "max\n"),
                ("sys/fs/cgroup/outer/inner/memory.current", "5\n"),
                ("sys/fs/cgroup/outer/memory.max", "1000000\n"),
                ("sys/fs/cgroup/outer/memory.current", current),
                (
                    "sys/fs/cgroup/outer/memory.stat",
                    "anon 9\nactive_file 7\ninactive_file 1000\n",
                ),
            ]
        };
        assert_eq!(found(&files("400000\n")), Some(601_000));
        assert_eq!(found(&files("9000000\n")), Some(0));
    }

    #[test]
    fn groups_of_version_1_count_too() {
        let files = [
            MEMINFO,
            ("proc/self/cgroup", "3:cpu:/x\n4:memory:/job\n0::/\n"),
            ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "900000"),
            ("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "100000"),
            (
                "sys/fs/cgroup/memory/job/memory.stat",
                "total_inactive_file 50000\n",
            ),
            // No limit: the largest number of pages.
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712",
            ),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1"),
        ];
        assert_eq!(found(&files), Some(850_000));
    }

    #[test]
    fn this_machine_has_memory_and_the_libtorch_that_was_linked() {
        assert!(available_memory_bytes(Device::Cpu).unwrap() > 1 << 20);
        assert_eq!(libtorch_version(), "2.11.0");
    }

    #[test]
    fn what_nccl_lacks_is_said_by_its_name() {
        if let Err(reason) = find_nccl() {
            assert!(reason.contains(NCCL), "{reason}");
        }
    }
}
