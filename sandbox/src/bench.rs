//! `baleen-sandbox bench`: what a jail and a Python session cost, and whether many at once leave
//! anything behind.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::SandboxError;
use crate::python::{PythonLimits, PythonSession};
use crate::sandbox::Sandbox;
use crate::spec::JailSpec;

const NUM_RUNS: usize = 100;
const NUM_AT_ONCE: usize = 200;
const NUM_SESSIONS_AT_ONCE: usize = 30;

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

fn print_times(name: &str, what: &str, mut times: Vec<Duration>) {
    times.sort();
    println!(
        "{name:<20} {} runs, {what}: p50 {:.1} ms, p95 {:.1} ms",
        times.len(),
        percentile(&times, 0.5),
        percentile(&times, 0.95)
    );
}

/// The first cell starts the jail and the interpreter.
fn bench_python(sandbox: &Sandbox) -> Result<(), SandboxError> {
    let new = || PythonSession::new(sandbox, PythonLimits::default(), Vec::new());
    let (mut first, mut later, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..NUM_RUNS {
        let mut session = new();
        for number in 0..10 {
            let start = Instant::now();
            session.run("sum(i * i for i in range(100))")?;
            let times = if number == 0 { &mut first } else { &mut later };
            times.push(start.elapsed());
        }
        let start = Instant::now();
        session.stop()?;
        ends.push(start.elapsed());
    }
    print_times("Python session", "first cell", first);
    print_times("Python session", "later cells", later);
    print_times("Python session", "end", ends);
    let start = Instant::now();
    let mut sessions: Vec<_> = (0..NUM_SESSIONS_AT_ONCE).map(|_| new()).collect();
    let results: Vec<_> = std::thread::scope(|scope| {
        let run = |session: &mut PythonSession| session.run("1 + 1").map(|_| ());
        let threads = sessions
            .iter_mut()
            .map(|session| scope.spawn(move || run(session)));
        let threads: Vec<_> = threads.collect();
        threads
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect()
    });
    let up = start.elapsed();
    let num_up = results
        .iter()
        .filter(|joined| matches!(joined, Ok(Ok(()))))
        .count();
    println!(
        "{num_up} Python sessions at once: first cells done in {:.2} s",
        up.as_secs_f64()
    );
    Ok(())
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
        print_times(command[0], "from order to torn down", times);
    }
    bench_python(sandbox)?;
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
