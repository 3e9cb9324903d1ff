//! Control groups, versions 1 and 2: memory, tasks and processor time of one jail together.
//!
//! A jail's group lies beside or below the harness's own, wherever that may be made with the
//! controllers; a host where it may not has resource limits and a watch over /proc instead.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::SandboxError;
use crate::error::While;
use crate::spec::Limits;

/// For the last processes of a killed harness's jail to die.
const LEFTOVER_TIME: Duration = Duration::from_secs(2);

/// Folders in which a jail's groups can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CgroupHome {
    /// One folder for each controller.
    V1 {
        memory: PathBuf,
        pids: PathBuf,
        cpu: Option<PathBuf>,
        cpuacct: Option<PathBuf>,
    },
    V2(PathBuf),
}

impl CgroupHome {
    /// Finds a place by making a group there; the words say why there is none.
    pub(crate) fn find() -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let v1 = |controller: &str| {
            let dir = v1_dir(&mounts, &own, controller)?;
            can_make(&dir, &[]).then_some(dir)
        };
        if let (Some(memory), Some(pids)) = (v1("memory"), v1("pids")) {
            return Ok(Self::V1 {
                memory,
                pids,
                cpu: v1("cpu"),
                cpuacct: v1("cpuacct"),
            });
        }
        let needed = ["memory.max", "pids.max"];
        v2_candidates(&mounts, &own)
            .into_iter()
            .find(|dir| can_make(dir, &needed))
            .map(Self::V2)
            .ok_or_else(|| {
                "no control group with memory and pids may be made here; run as root, or in a \
                 delegated group: systemd-run --user --scope -p Delegate=yes"
                    .to_owned()
            })
    }
}

fn can_make(parent: &Path, needed: &[&str]) -> bool {
    let thread = format!("{:?}", std::thread::current().id());
    let number: String = thread.chars().filter(char::is_ascii_digit).collect();
    let name = format!("baleen-probe-{}-{number}", std::process::id());
    let dir = parent.join(name);
    if fs::create_dir(&dir).is_err() {
        return false;
    }
    let complete = needed.iter().all(|file| dir.join(file).exists());
    let _ = fs::remove_dir(&dir);
    complete
}

/// Mount point of a hierarchy: kind and options are what follows the table's dash.
fn mount_point(mounts: &str, fits: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let (kind, options) = (right.next()?, right.nth(1)?);
        fits(kind, options).then(|| PathBuf::from(left.split(' ').nth(4).unwrap_or_default()))
    })
}

/// Path of this process's group among the lines `number:controllers:path`.
fn own_path(own: &str, fits: impl Fn(&str) -> bool) -> Option<&str> {
    own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        fits(fields.next()?).then(|| fields.next())?
    })
}

fn v1_dir(mounts: &str, own: &str, controller: &str) -> Option<PathBuf> {
    let has = |list: &str| list.split(',').any(|name| name == controller);
    let point = mount_point(mounts, |kind, options| kind == "cgroup" && has(options))?;
    let path = own_path(own, has)?;
    Some(point.join(path.trim_start_matches('/')))
}

/// Below the harness's own group, then beside it, then at the top.
fn v2_candidates(mounts: &str, own: &str) -> Vec<PathBuf> {
    let Some(point) = mount_point(mounts, |kind, _| kind == "cgroup2") else {
        return Vec::new();
    };
    let path = own_path(own, str::is_empty).unwrap_or("/");
    let below = point.join(path.trim_start_matches('/'));
    let mut dirs = vec![below.clone()];
    if below != point {
        dirs.extend(below.parent().map(Path::to_path_buf));
        dirs.push(point);
    }
    dirs
}

/// The group of one jail, removed when dropped.
#[derive(Debug)]
pub(crate) struct Cgroup {
    home: CgroupHome,
    name: String,
}

impl Cgroup {
    /// Makes the group of a slot with its limits.
    pub(crate) fn make(
        home: &CgroupHome,
        slot: u32,
        limits: &Limits,
    ) -> Result<Self, SandboxError> {
        let group = Self::of_slot(home, slot);
        for dir in group.dirs() {
            let failed = || format!("make control group {}", dir.display());
            // A harness that was killed may have left it: the slot is ours, so it holds nothing.
            let deadline = Instant::now() + LEFTOVER_TIME;
            while dir.exists() {
                match fs::remove_dir(&dir) {
                    Err(error) if Instant::now() > deadline => {
                        return Err(SandboxError::infra(failed(), error));
                    }
                    _ => std::thread::sleep(Duration::from_millis(1)),
                }
            }
            fs::create_dir(&dir).while_trying(failed())?;
        }
        group.limit(limits)?;
        Ok(group)
    }

    /// Removes what a killed harness left of a slot, if anything.
    pub(crate) fn remove_leftover(home: &CgroupHome, slot: u32) {
        drop(Self::of_slot(home, slot));
    }

    fn of_slot(home: &CgroupHome, slot: u32) -> Self {
        let user = nix::unistd::geteuid();
        Self {
            home: home.clone(),
            name: format!("baleen-sandbox-{user}-{slot}"),
        }
    }

    fn limit(&self, limits: &Limits) -> Result<(), SandboxError> {
        let memory = limits.memory_bytes.to_string();
        // Process 1 counts as well.
        let tasks = (limits.num_tasks + 1).to_string();
        let quota = ((limits.cpus * 100_000.0) as u64).max(1000);
        let write = |dir: &Path, file: &str, value: &str| {
            fs::write(dir.join(file), value)
                .while_trying(format!("write {value} to {}/{file}", dir.display()))
        };
        // Not every kernel accounts swap or has a quota; without swap there is nothing to bound.
        let write_if_there = |dir: &Path, file: &str, value: &str| match dir.join(file).exists() {
            true => write(dir, file, value),
            false => Ok(()),
        };
        match &self.home {
            CgroupHome::V1 {
                memory: memory_home,
                pids,
                cpu,
                ..
            } => {
                let memory_dir = memory_home.join(&self.name);
                write(&memory_dir, "memory.limit_in_bytes", &memory)?;
                write_if_there(&memory_dir, "memory.memsw.limit_in_bytes", &memory)?;
                write(&pids.join(&self.name), "pids.max", &tasks)?;
                if let Some(cpu) = cpu {
                    write_if_there(
                        &cpu.join(&self.name),
                        "cpu.cfs_quota_us",
                        &quota.to_string(),
                    )?;
                }
            }
            CgroupHome::V2(home) => {
                let dir = home.join(&self.name);
                write(&dir, "memory.max", &memory)?;
                write_if_there(&dir, "memory.swap.max", "0")?;
                write_if_there(&dir, "memory.oom.group", "1")?;
                write(&dir, "pids.max", &tasks)?;
                write_if_there(&dir, "cpu.max", &format!("{quota} 100000"))?;
            }
        }
        Ok(())
    }

    fn dirs(&self) -> Vec<PathBuf> {
        let homes: Vec<&PathBuf> = match &self.home {
            CgroupHome::V1 {
                memory,
                pids,
                cpu,
                cpuacct,
            } => [Some(memory), Some(pids), cpu.as_ref(), cpuacct.as_ref()]
                .into_iter()
                .flatten()
                .collect(),
            CgroupHome::V2(home) => vec![home],
        };
        homes.iter().map(|home| home.join(&self.name)).collect()
    }

    /// Puts a process into the group.
    pub(crate) fn add(&self, pid: i32) -> Result<(), SandboxError> {
        for dir in self.dirs() {
            fs::write(dir.join("cgroup.procs"), pid.to_string())
                .while_trying(format!("put the jail into {}", dir.display()))?;
        }
        Ok(())
    }

    fn counter(&self, v1: &Path, v1_file: &str, v2_file: &str, key: &str) -> u64 {
        let path = match &self.home {
            CgroupHome::V1 { .. } => v1.join(&self.name).join(v1_file),
            CgroupHome::V2(home) => home.join(&self.name).join(v2_file),
        };
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .find_map(|line| {
                line.strip_prefix(key)?
                    .strip_prefix(' ')?
                    .trim()
                    .parse()
                    .ok()
            })
            .unwrap_or(0)
    }

    /// The kernel killed something for lack of memory.
    pub(crate) fn was_out_of_memory(&self) -> bool {
        let home = match &self.home {
            CgroupHome::V1 { memory, .. } => memory,
            CgroupHome::V2(home) => home,
        };
        self.counter(home, "memory.oom_control", "memory.events", "oom_kill") > 0
    }

    /// A fork was refused.
    pub(crate) fn was_out_of_tasks(&self) -> bool {
        let home = match &self.home {
            CgroupHome::V1 { pids, .. } => pids,
            CgroupHome::V2(home) => home,
        };
        self.counter(home, "pids.events", "pids.events", "max") > 0
    }

    /// Processor time used so far; none where nothing counts it.
    pub(crate) fn cpu_time(&self) -> Option<Duration> {
        match &self.home {
            CgroupHome::V1 { cpuacct, .. } => {
                let path = cpuacct.as_ref()?.join(&self.name).join("cpuacct.usage");
                let nanos = fs::read_to_string(path).ok()?.trim().parse().ok()?;
                Some(Duration::from_nanos(nanos))
            }
            CgroupHome::V2(home) => {
                let micros = self.counter(home, "", "cpu.stat", "usage_usec");
                Some(Duration::from_micros(micros))
            }
        }
    }

    /// Waits until no process is left in the group.
    pub(crate) fn wait_empty(&self, deadline: Instant) -> bool {
        let is_empty = |dir: &PathBuf| {
            fs::read_to_string(dir.join("cgroup.procs")).is_ok_and(|text| text.trim().is_empty())
        };
        loop {
            if self.dirs().iter().all(is_empty) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Removes the group, which must be empty.
    pub(crate) fn remove(&self) -> Result<(), SandboxError> {
        for dir in self.dirs().iter().filter(|dir| dir.exists()) {
            fs::remove_dir(dir).while_trying(format!("remove {}", dir.display()))?;
        }
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "4:memory:/a/b\n2:cpuacct,cpu:/\n0::/user/scope\n";

    #[test]
    fn groups_of_version_1_are_found_by_controller() {
        let mounts = "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
        let dir = |name| v1_dir(mounts, OWN, name);
        assert_eq!(dir("memory"), Some("/sys/fs/cgroup/memory/a/b".into()));
        assert_eq!(dir("cpu"), Some("/sys/fs/cgroup/cpu,cpuacct/".into()));
        assert_eq!(dir("pids"), None);
    }

    #[test]
    fn groups_of_version_2_are_sought_from_the_own_one_upwards() {
        let mounts = "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let expected = [
            "/sys/fs/cgroup/user/scope",
            "/sys/fs/cgroup/user",
            "/sys/fs/cgroup",
        ];
        assert_eq!(v2_candidates(mounts, OWN), expected.map(PathBuf::from));
    }
}
