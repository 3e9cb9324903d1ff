//! Processes as /proc shows them: descendants of one, their memory and time, tasks of a user.

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getuid};
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// A process, as far as the limits need it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    parent: i32,
    stopped: bool,
    dead: bool,
    /// Its own and those of ended children that it has collected.
    pub(crate) cpu_ticks: u64,
    pub(crate) num_threads: u64,
    pub(crate) resident_pages: u64,
}

/// Reads `/proc/PID/stat`: the name in brackets may itself hold blanks and brackets.
fn parse_stat(text: &str) -> Option<Process> {
    let pid = text.split(' ').next()?.parse().ok()?;
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        stopped: matches!(*fields.first()?, "T" | "t" | "Z" | "X"),
        dead: matches!(*fields.first()?, "Z" | "X"),
        cpu_ticks: (11..=14).map(number).sum::<Option<u64>>()?,
        num_threads: number(17)?,
        resident_pages: number(21)?,
    })
}

fn numbered() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Every process below `root`, at any depth; empty when there is none.
pub(crate) fn descendants(root: i32) -> Vec<Process> {
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for pid in numbered() {
        if let Some(process) = find(pid) {
            children.entry(process.parent).or_default().push(process);
        }
    }
    let mut found = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for process in children.remove(&parent).unwrap_or_default() {
            parents.push(process.pid);
            found.push(process);
        }
    }
    found
}

/// One process; none when it is gone.
pub(crate) fn find(pid: i32) -> Option<Process> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Kills all below `root`. They are stopped first: killing at once would make room for new ones
/// while the rest still forks.
pub(crate) fn kill_descendants(root: i32) {
    for _ in 0..200 {
        let running: Vec<_> = descendants(root)
            .into_iter()
            .filter(|process| !process.stopped)
            .collect();
        if running.is_empty() {
            break;
        }
        for process in running {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGSTOP);
        }
    }
    for process in descendants(root) {
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
}

/// Threads of all processes of this process's user.
pub(crate) fn num_tasks_of_own_user() -> u64 {
    let uid = getuid().as_raw();
    numbered()
        .filter(|pid| fs::metadata(format!("/proc/{pid}")).is_ok_and(|data| data.uid() == uid))
        .filter_map(find)
        .map(|process| process.num_threads)
        .sum()
}

/// Whether any process belongs to the user. The dead that nobody has collected yet do not count.
pub(crate) fn user_has_processes(uid: u32) -> bool {
    numbered()
        .filter(|pid| fs::metadata(format!("/proc/{pid}")).is_ok_and(|data| data.uid() == uid))
        .filter_map(find)
        .any(|process| !process.dead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_brackets_is_read_past() {
        let tail = "S 7 1 1 0 -1 0 0 0 0 0 30 4 5 1 20 0 3 0 99 4096 25 0";
        let process = parse_stat(&format!("12 (a) b (c) {tail}")).unwrap();
        assert_eq!((process.pid, process.parent), (12, 7));
        assert_eq!((process.cpu_ticks, process.num_threads), (40, 3));
        assert_eq!(process.resident_pages, 25);
    }

    #[test]
    fn a_child_is_a_descendant() {
        let mut child = std::process::Command::new("sleep")
            .arg("9")
            .spawn()
            .unwrap();
        let found = descendants(std::process::id().cast_signed());
        assert!(
            found
                .iter()
                .any(|process| process.pid == child.id().cast_signed())
        );
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
