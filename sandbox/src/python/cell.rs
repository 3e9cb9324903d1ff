//! What a cell did, and how a policy reads it.

use std::time::Duration;

use crate::outcome::{End, Flags};

/// What happened beside the code's own doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CellFlags {
    /// Some text was too long; its middle is missing.
    pub truncated: bool,
    /// It was interrupted, or killed, because its time was over.
    pub timed_out: bool,
    /// The interpreter is gone, and with it all names and files; the next cell gets a fresh one.
    pub restarted: bool,
    /// Memory ran out: a `MemoryError`, or the kernel or the watch killed.
    pub out_of_memory: bool,
    /// It was refused before it ran.
    pub not_run: bool,
}

/// What a cell did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell {
    /// Counts from 1, restarts included; 0 for one that was not run.
    pub number: u32,
    /// Standard output, invalid UTF-8 replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
    /// What came on either stream after the previous cell and before this one, from threads and
    /// processes in the background.
    pub late_output: String,
    /// `repr` of the last expression, unless that is None.
    pub result: Option<String>,
    /// The exception that ended it, with the frames from the cell on.
    pub traceback: Option<String>,
    /// What happened beside.
    pub flags: CellFlags,
    /// Why it was not run, or how the interpreter ended.
    pub notice: Option<String>,
    /// From the order to the answer; the start of an interpreter is not counted.
    pub duration: Duration,
    /// What it had.
    pub time_limit: Duration,
}

impl Cell {
    pub(super) fn not_run(why: String) -> Self {
        Self {
            flags: CellFlags {
                not_run: true,
                ..CellFlags::default()
            },
            notice: Some(why),
            ..Self::default()
        }
    }

    /// Not even the keeper answered in time: the cell had stopped it.
    pub(super) fn silent(jail: &Flags) -> Self {
        Self {
            flags: CellFlags {
                timed_out: true,
                restarted: true,
                out_of_memory: jail.out_of_memory,
                ..CellFlags::default()
            },
            ..Self::default()
        }
    }

    /// The whole jail ended before an answer.
    pub(super) fn ended(end: &End, jail: &Flags) -> Self {
        let status = match end {
            End::Exited(code) => code << 8,
            End::Signalled(signal) => *signal,
            End::Killed | End::NotStarted(_) => libc::SIGKILL,
        };
        Self {
            flags: CellFlags {
                timed_out: jail.timed_out,
                restarted: true,
                out_of_memory: jail.out_of_memory,
                ..CellFlags::default()
            },
            notice: Some(format!(
                "{}; whether this cell ran to its end is not known",
                death(status, jail)
            )),
            ..Self::default()
        }
    }

    /// It ran to its end without an exception and reached no limit (cut output is none).
    #[must_use]
    pub fn is_success(&self) -> bool {
        let CellFlags {
            timed_out,
            restarted,
            out_of_memory,
            not_run,
            truncated: _,
        } = self.flags;
        self.traceback.is_none() && !(timed_out || restarted || out_of_memory || not_run)
    }

    /// What the policy reads: output, standard error, traceback, result, notices. The notices' text
    /// may also be printed by a cell, so a judge looks at the flags.
    #[must_use]
    pub fn to_tool_text(&self) -> String {
        let mut parts = Vec::new();
        let mut add = |title: &str, text: &str| {
            if !text.is_empty() {
                parts.push(format!("{title}{}", text.trim_end_matches('\n')));
            }
        };
        add(
            "[background output since the last cell]\n",
            &self.late_output,
        );
        add("", &self.stdout);
        add("[stderr]\n", &self.stderr);
        add("", self.traceback.as_deref().unwrap_or_default());
        add(
            &format!("Out[{}]: ", self.number),
            self.result.as_deref().unwrap_or_default(),
        );
        for notice in self.notices() {
            add("", &format!("[{notice}]"));
        }
        if parts.is_empty() {
            return "[no output]".to_owned();
        }
        parts.join("\n")
    }

    fn notices(&self) -> Vec<String> {
        let mut notices: Vec<String> = self.notice.iter().cloned().collect();
        let seconds = self.time_limit.as_secs_f64();
        match (self.flags.timed_out, self.flags.restarted) {
            (true, false) => notices.push(format!(
                "timed out after {seconds} s and was interrupted; names and files are kept"
            )),
            (true, true) if self.notice.is_none() => notices.push(format!(
                "timed out after {seconds} s, did not stop when interrupted, and was killed"
            )),
            _ => {}
        }
        if self.flags.out_of_memory && !self.flags.restarted {
            notices.push("memory ran out".to_owned());
        }
        if self.flags.restarted {
            notices.push(
                "the Python session was lost: names, imports and written files are gone; the next cell starts a fresh one"
                    .to_owned(),
            );
        }
        notices
    }
}

/// How the interpreter ended, in words. `status` is as wait(2) tells it.
pub(super) fn death(status: i32, jail: &Flags) -> String {
    let limit = [
        (jail.out_of_memory, "memory ran out"),
        (jail.out_of_cpu, "the session's processor time is used up"),
        (jail.out_of_disk, "files took more than their share"),
        (jail.timed_out, "the session's time is over"),
    ];
    if let Some((_, words)) = limit.into_iter().find(|(reached, _)| *reached) {
        return format!("Python was killed: {words}");
    }
    match status & 0x7f {
        0 => format!("Python exited with code {}", status >> 8 & 0xff),
        signal => match nix::sys::signal::Signal::try_from(signal) {
            Ok(name) => format!("Python was ended by {name}"),
            Err(_) => format!("Python was ended by signal {signal}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_its_parts_in_order() {
        let cell = Cell {
            number: 3,
            stdout: "out\n".to_owned(),
            stderr: "err\n".to_owned(),
            result: Some("5".to_owned()),
            ..Cell::default()
        };
        assert_eq!(cell.to_tool_text(), "out\n[stderr]\nerr\nOut[3]: 5");
        assert_eq!(Cell::default().to_tool_text(), "[no output]");
    }

    #[test]
    fn deaths_are_told_by_limit_code_or_signal() {
        let none = Flags::default();
        assert_eq!(death(3 << 8, &none), "Python exited with code 3");
        assert_eq!(death(11, &none), "Python was ended by SIGSEGV");
        let memory = Flags {
            out_of_memory: true,
            ..none
        };
        assert_eq!(death(9, &memory), "Python was killed: memory ran out");
    }
}
