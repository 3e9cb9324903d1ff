//! TensorBoard event file: the figures of every step as scalars, beside `metrics.jsonl`.
//!
//! `metrics.jsonl` is the truth. When a run starts or goes on, [`EventFile::open`] writes all its steps
//! anew into one file under a later name and empties the file before it, so that neither a kill in the
//! middle of a record nor the steps that a resume takes back leave anything behind. (TensorBoard goes on to
//! the later name from a file that ends, not from one that is gone.) Format: records of
//! `length u64 | masked crc32c of it u32 | protobuf Event | masked crc32c of it u32`, little endian.
//! Values are f32, as TensorBoard stores scalars. A step keeps the wall time at which it was made; where
//! no event file knows it, times are counted back from the next known one by the seconds of the steps.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use prost::Message;
use rollout::crash_point;

use crate::figures::figures;
use crate::metrics::StepMetrics;
use crate::run_folder::now;

mod tags;

/// What TensorBoard takes for an event file has this in its name; names ascend in time.
const NAME: &str = "events.out.tfevents.";
/// Not an event file to TensorBoard while it is half written.
const PARTIAL: &str = "partial";
/// First event of every file of this format.
const FILE_VERSION: &str = "brain.Event:2";
/// `SessionLog.status`: a program that looks on forgets what it has read of this step and later ones.
const SESSION_START: i32 = 1;

// The parts of TensorFlow's event.proto and summary.proto that scalars need.

#[derive(Clone, PartialEq, prost::Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session_log: Option<SessionLog>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<ScalarValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScalarValue {
    #[prost(string, tag = "1")]
    tag: String,
    // Optional, so that 0 is written too.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// The event file of a run at work.
#[derive(Debug)]
pub struct EventFile {
    out: crash_point::Writer,
}

impl EventFile {
    /// Replaces what the event files in `folder` hold by one file with `steps`, to be appended to.
    ///
    /// # Errors
    /// The folder can't be made or written.
    pub fn open(folder: &Path, steps: &[StepMetrics]) -> io::Result<EventFile> {
        fs::create_dir_all(folder)?;
        let old = event_files(folder)?;
        let end = now().as_secs_f64();
        let times = wall_times(&known_times(&old), steps, end);
        let start = Event {
            wall_time: times.first().copied().unwrap_or(end),
            ..Event::default()
        };
        let partial = folder.join(PARTIAL);
        let out = crash_point::Writer::new(crash_point::create(&partial, false)?);
        let mut writer = BufWriter::new(out);
        writer.write_all(&record(&Event {
            file_version: Some(FILE_VERSION.to_string()),
            ..start.clone()
        }))?;
        writer.write_all(&record(&Event {
            session_log: Some(SessionLog {
                status: SESSION_START,
            }),
            ..start
        }))?;
        for (metrics, time) in steps.iter().zip(times) {
            writer.write_all(&record(&event(metrics, time)))?;
        }
        let out = writer
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        crash_point::sync(out.file(), &partial)?;
        crash_point::rename(&partial, &folder.join(next_name(&old, end as u64)))?;
        // Whoever looks on may be reading the newest of them.
        if let Some((newest, older)) = old.split_last() {
            crash_point::create(newest, false)?;
            for path in older {
                crash_point::remove_file(path)?;
            }
        }
        Ok(EventFile { out })
    }

    /// Appends the figures of a step made just now.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn append(&mut self, metrics: &StepMetrics) -> io::Result<()> {
        // One call, so that a kill can cut at most this record.
        let time = now().as_secs_f64();
        self.out.write_all(&record(&event(metrics, time)))
    }
}

fn event(metrics: &StepMetrics, wall_time: f64) -> Event {
    let value = figures(metrics)
        .iter()
        .map(|figure| ScalarValue {
            tag: tags::tag(figure),
            simple_value: Some(figure.value as f32),
        })
        .collect();
    Event {
        wall_time,
        step: metrics.global_step as i64,
        summary: Some(Summary { value }),
        ..Event::default()
    }
}

fn record(event: &Event) -> Vec<u8> {
    let event = event.encode_to_vec();
    let length = (event.len() as u64).to_le_bytes();
    let mut bytes = Vec::with_capacity(event.len() + 16);
    bytes.extend(length);
    bytes.extend(masked_crc(&length).to_le_bytes());
    bytes.extend(&event);
    bytes.extend(masked_crc(&event).to_le_bytes());
    bytes
}

/// The format masks its sums, so that a sum over bytes that hold a sum stays a good one.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// The events of a file up to its end or to the first record that is cut short or damaged.
fn events(bytes: &[u8]) -> Vec<Event> {
    let mut found = Vec::new();
    let mut rest = bytes;
    while let Some((event, after)) = split_record(rest) {
        found.push(event);
        rest = after;
    }
    found
}

fn split_record(bytes: &[u8]) -> Option<(Event, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (length_crc, rest) = rest.split_first_chunk::<4>()?;
    let num_bytes = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (event, rest) = rest.split_at_checked(num_bytes)?;
    let (event_crc, rest) = rest.split_first_chunk::<4>()?;
    let is_sound = masked_crc(length) == u32::from_le_bytes(*length_crc)
        && masked_crc(event) == u32::from_le_bytes(*event_crc);
    let event = Event::decode(event).ok().filter(|_| is_sound)?;
    Some((event, rest))
}

/// The event files in `folder`, oldest first.
fn event_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(NAME) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// `NAME SECONDS .baleen`, later than every name of `old` even if the clock went back.
fn next_name(old: &[PathBuf], secs: u64) -> String {
    let secs_of = |path: &PathBuf| -> Option<u64> {
        let name = path.file_name()?.to_str()?.strip_prefix(NAME)?;
        name.split('.').next()?.parse().ok()
    };
    let newest = old.iter().filter_map(secs_of).max();
    let secs = newest.map_or(secs, |newest| secs.max(newest.saturating_add(1)));
    format!("{NAME}{secs:010}.baleen")
}

/// Wall time by global step, as far as `files` can be read; later files count.
fn known_times(files: &[PathBuf]) -> BTreeMap<u64, f64> {
    files
        .iter()
        .filter_map(|path| fs::read(path).ok())
        .flat_map(|bytes| events(&bytes))
        .filter(|event| event.summary.is_some())
        .filter_map(|event| Some((u64::try_from(event.step).ok()?, event.wall_time)))
        .collect()
}

/// The wall time of each of `steps`; what is not known before `end` or the next known time.
fn wall_times(known: &BTreeMap<u64, f64>, steps: &[StepMetrics], mut end: f64) -> Vec<f64> {
    let mut times: Vec<f64> = steps
        .iter()
        .rev()
        .map(|step| {
            let time = known.get(&step.global_step).copied().unwrap_or(end);
            end = time - step.secs.total.unwrap_or(0.0);
            time
        })
        .collect();
    times.reverse();
    times
}

#[cfg(test)]
mod tests;
