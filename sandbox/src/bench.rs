//! `baleen-sandbox bench`: what a jail costs, and whether many at once leave anything behind.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::SandboxError;
use crate::sandbox::Sandbox;
use crate::spec::JailSpec;

const NUM_RUNS: usize = 100;
const NUM_AT_ONCE: usize = 200;

/// What may leak.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    children: usize,
    mounts: usize,
    cgroups: usize,
    descriptors: usize,
}

impl Held {
    fn now() -> Self {
        let lines = |path: &str| fs::read_to_string(path).unwrap_or_default().lines().count();
        Self {
            children: crate::processes::descendants(std::process::id().cast_signed()).len(),
            mounts: lines("/proc/self/mountinfo"),
            cgroups: num_cgroups(),
            descriptors: fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
        }
    }
}

/// Control groups that exist, in all hierarchies. (The kernel's own count includes removed ones whose
/// memory it has not yet taken back.)
fn num_cgroups() -> usize {
    let mut pending = vec![PathBuf::from("/sys/fs/cgroup")];
    let mut num_dirs = 0;
    while let Some(dir) = pending.pop() {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let inner = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        pending.extend(inner.map(|entry| entry.path()));
        num_dirs += 1;
    }
    num_dirs
}

fn percentile(sorted: &[Duration], share: f64) -> f64 {
    let index = (sorted.len() as f64 * share) as usize;
    sorted[index.min(sorted.len() - 1)].as_secs_f64() * 1e3
}

/// Prints the measurements.
///
/// # Errors
/// Faults of the sandbox.
pub fn bench(sandbox: &Sandbox) -> Result<bool, SandboxError> {
    println!(
        "backend {:?}, control groups {}",
        sandbox.backend(),
        if sandbox.has_cgroups() { "yes" } else { "no" }
    );
    for command in [vec!["/bin/true"], vec!["/usr/bin/python3", "-S", "-c", "0"]] {
        let spec = JailSpec::new(command.clone());
        let mut times = Vec::with_capacity(NUM_RUNS);
        for _ in 0..NUM_RUNS {
            let start = Instant::now();
            sandbox.run(&spec, &[], &[], &[])?;
            times.push(start.elapsed());
        }
        times.sort();
        println!(
            "{:<20} {NUM_RUNS} runs, from order to torn down: p50 {:.1} ms, p95 {:.1} ms",
            command[0],
            percentile(&times, 0.5),
            percentile(&times, 0.95)
        );
    }
    let before = Held::now();
    let start = Instant::now();
    let jails = (0..NUM_AT_ONCE)
        .map(|_| sandbox.spawn(&JailSpec::new(["/bin/sleep", "60"]), &[]))
        .collect::<Result<Vec<_>, _>>()?;
    let up = start.elapsed();
    let alive = jails.iter().filter(|jail| jail.is_running()).count();
    drop(jails);
    let after = Held::now();
    println!(
        "{alive} jails at once: up in {:.2} s, gone after {:.2} s",
        up.as_secs_f64(),
        start.elapsed().as_secs_f64()
    );
    println!("before {before:?}\nafter  {after:?}");
    let clean = before == after;
    println!(
        "{}",
        if clean {
            "nothing is left"
        } else {
            "LEFT BEHIND"
        }
    );
    Ok(clean)
}
