//! Limits that no single kernel mechanism sums up: processor time of a whole jail, and, on hosts
//! without control groups, its memory and disk. Looked at every few turns of the jail's loop.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;
use crate::outcome::Flags;
use crate::processes;
use crate::spec::Limits;
use crate::tree;

const PERIOD: Duration = Duration::from_millis(50);
/// Walking a folder costs more.
const DISK_PERIOD: Duration = Duration::from_millis(250);

/// When it looked last.
#[derive(Debug)]
pub(crate) struct Watch {
    next: Instant,
    next_disk: Instant,
    /// A working folder on the host's own disk.
    work_dir: Option<PathBuf>,
}

impl Watch {
    pub(crate) fn new(work_dir: Option<PathBuf>) -> Self {
        let now = Instant::now();
        Self {
            next: now + PERIOD,
            next_disk: now + DISK_PERIOD,
            work_dir,
        }
    }

    /// The limits that are passed now.
    pub(crate) fn look(
        &mut self,
        limits: &Limits,
        cgroup: Option<&Cgroup>,
        supervisor: i32,
    ) -> Flags {
        let mut over = Flags::default();
        let now = Instant::now();
        if now >= self.next {
            self.next = now + PERIOD;
            let cpu_limit = Duration::from_secs(limits.cpu_secs);
            match cgroup.map(Cgroup::cpu_time) {
                Some(Some(used)) => over.out_of_cpu = used >= cpu_limit,
                // Without a group everything is summed up from /proc.
                counted => {
                    let inside = processes::descendants(supervisor);
                    let own = processes::find(supervisor);
                    // The supervisor itself stands for the orphans that it has collected.
                    let all = inside.iter().chain(&own);
                    let ticks: u64 = all.map(|process| process.cpu_ticks).sum();
                    // Kernels tell these times in hundredths of a second.
                    over.out_of_cpu = Duration::from_millis(ticks * 10) >= cpu_limit;
                    let pages: u64 = inside.iter().map(|process| process.resident_pages).sum();
                    let resident = pages * rustix::param::page_size() as u64;
                    over.out_of_memory = counted.is_none() && resident > limits.memory_bytes;
                }
            }
        }
        if let Some(dir) = &self.work_dir
            && now >= self.next_disk
        {
            self.next_disk = now + DISK_PERIOD;
            over.out_of_disk = tree::disk_bytes(dir, limits.disk_bytes) > limits.disk_bytes;
        }
        over
    }
}
