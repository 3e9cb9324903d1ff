//! What a program did: how it ended, what it printed, which limits it reached.

use std::fs::File;
use std::io;
use std::time::Duration;

use crate::jail::drain;
use crate::outputs::Refusal;

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It exited with this code.
    Exited(i32),
    /// A signal ended it.
    Signalled(i32),
    /// A limit ended it; [`Flags`] says which.
    Killed,
    /// It could not be started; the words say why.
    NotStarted(String),
}

/// Limits that were reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Wall time.
    pub timed_out: bool,
    /// Memory: the kernel killed a process, or the watch killed all.
    pub out_of_memory: bool,
    /// Processor time.
    pub out_of_cpu: bool,
    /// A fork was refused.
    pub out_of_tasks: bool,
    /// Files took more than their share (lite; in the full backend writing fails instead).
    pub out_of_disk: bool,
    /// Some output was dropped.
    pub output_cut: bool,
}

impl Flags {
    pub(crate) fn join(&mut self, other: &Self) {
        self.timed_out |= other.timed_out;
        self.out_of_memory |= other.out_of_memory;
        self.out_of_cpu |= other.out_of_cpu;
        self.out_of_tasks |= other.out_of_tasks;
        self.out_of_disk |= other.out_of_disk;
        self.output_cut |= other.output_cut;
    }

    /// Any of them.
    #[must_use]
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// A file asked for after the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOut {
    /// Path below the working folder, as asked.
    pub path: String,
    /// Its bytes, or why they were not read.
    pub bytes: Result<Vec<u8>, Refusal>,
}

/// Everything about a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Standard output, with a mark at its end when some was dropped.
    pub stdout: Vec<u8>,
    /// Standard error, likewise.
    pub stderr: Vec<u8>,
    /// Limits that were reached.
    pub flags: Flags,
    /// The files asked for, in order.
    pub files: Vec<FileOut>,
    /// From the start of the program to its end.
    pub wall: Duration,
    /// Processor time of everything inside, where a control group counts it.
    pub cpu: Option<Duration>,
}

impl Outcome {
    /// It exited with code 0 and reached no limit.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.end == End::Exited(0) && !self.flags.any()
    }
}

/// An output stream with a cap on what is kept.
#[derive(Debug)]
pub(crate) struct Captured {
    file: Option<File>,
    kept: Vec<u8>,
    max_bytes: usize,
    num_dropped: u64,
}

impl Captured {
    pub(crate) fn new(file: File, max_bytes: usize) -> Self {
        Self {
            file: Some(file),
            kept: Vec::new(),
            max_bytes,
            num_dropped: 0,
        }
    }

    /// The pipe, until its end was read.
    pub(crate) fn open_file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Takes in what is there; true when some was ever dropped.
    pub(crate) fn read_available(&mut self) -> io::Result<bool> {
        if let Some(file) = &mut self.file {
            let (kept, num_dropped) = (&mut self.kept, &mut self.num_dropped);
            let ended = drain(file, |bytes| {
                let room = self.max_bytes.saturating_sub(kept.len()).min(bytes.len());
                kept.extend_from_slice(&bytes[..room]);
                *num_dropped += (bytes.len() - room) as u64;
            })?;
            if ended {
                self.file = None;
            }
        }
        Ok(self.num_dropped > 0)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.kept
    }

    /// What was kept, marked when some was dropped.
    pub(crate) fn marked(&self) -> Vec<u8> {
        let mut bytes = self.kept.clone();
        if self.num_dropped > 0 {
            let mark = format!("\n[{} more bytes were dropped]\n", self.num_dropped);
            bytes.extend_from_slice(mark.as_bytes());
        }
        bytes
    }

    /// Removes the first complete line, or everything when the cap was reached without one.
    pub(crate) fn take_line(&mut self) -> Option<Vec<u8>> {
        match self.kept.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let mut line: Vec<u8> = self.kept.drain(..=end).collect();
                line.pop();
                Some(line)
            }
            None if self.kept.len() >= self.max_bytes => Some(std::mem::take(&mut self.kept)),
            None => None,
        }
    }

    pub(crate) fn take_line_or_rest(&mut self) -> Option<Vec<u8>> {
        let rest =
            |stream: &mut Self| (!stream.kept.is_empty()).then(|| std::mem::take(&mut stream.kept));
        self.take_line().or_else(|| rest(self))
    }
}
