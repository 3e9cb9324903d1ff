//! What a run folder says at this moment, read by somebody who only looks on.
//!
//! Nothing is locked or written. Files may be replaced, cut short or missing at any moment: what can't be
//! read stays as it was last seen, and [`RunFiles::problems`] says so.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::SystemTime;

use super::rollouts::Rollouts;
use crate::config::RunConfig;
use crate::health::{self, Advisory};
use crate::metrics::{self, StepMetrics};
use crate::run_folder::{RunFolderError, RunLayout};

/// Bytes at the end of the log that are looked at.
const LOG_BYTES: u64 = 64 << 10;

/// The files of a run as they were last seen.
#[derive(Debug)]
pub struct RunFiles {
    /// Where they lie.
    pub layout: RunLayout,
    /// The run's configuration.
    pub config: RunConfig,
    /// The process at work, `process 123, for 5 min`.
    pub holder: Option<String>,
    /// What is outside its healthy range, warnings first.
    pub advisories: Vec<Advisory>,
    /// The last lines of the log.
    pub log: Vec<String>,
    /// What could not be read this time.
    pub problems: Vec<String>,
    /// The samples.
    pub rollouts: Rollouts,
    metrics: MetricsTail,
    lock_text: Option<String>,
}

impl RunFiles {
    /// Looks at the run in `layout` for the first time.
    ///
    /// # Errors
    /// No run there, or a config.ron that is not sound.
    pub fn open(layout: RunLayout) -> Result<RunFiles, RunFolderError> {
        let config = layout.read_config()?;
        let mut files = RunFiles {
            layout,
            config,
            holder: None,
            advisories: Vec::new(),
            log: Vec::new(),
            problems: Vec::new(),
            rollouts: Rollouts::default(),
            metrics: MetricsTail::default(),
            lock_text: None,
        };
        files.refresh();
        Ok(files)
    }

    /// The steps so far, oldest first.
    pub fn steps(&self) -> &[StepMetrics] {
        &self.metrics.steps
    }

    /// Whether every stage has made its last step.
    pub fn is_complete(&self) -> bool {
        let last = self.steps().last();
        last.is_some_and(|last| {
            last.stage_index + 1 == self.config.stages.len()
                && last.step >= self.config.stages[last.stage_index].steps()
        })
    }

    /// Looks again, at all but the samples.
    pub fn refresh(&mut self) {
        self.problems.clear();
        match self.layout.read_config() {
            Ok(config) => self.config = config,
            Err(error) => self.problems.push(error.to_string()),
        }
        self.refresh_holder();
        let path = self.layout.metrics_path();
        if let Err(error) = self.metrics.refresh(&path) {
            self.problems.push(format!("{}: {error}", path.display()));
        }
        match tail(&self.layout.log_path()) {
            Ok(lines) => self.log = lines,
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.log.clear(),
            Err(error) => self.problems.push(format!("log.txt: {error}")),
        }
        let silent_secs = self.holder.as_ref().and(self.metrics.silent_secs());
        self.advisories = health::advisories(&self.config, self.steps(), silent_secs);
    }

    /// Asking who works here takes the lock for an instant where nobody does, and could get in the way of
    /// a process that starts in that instant. So this asks only when the answer may have changed: while a
    /// process works here, and when the lock file was written to.
    fn refresh_holder(&mut self) {
        let text = fs::read_to_string(self.layout.root().join("lock")).ok();
        if self.holder.is_some() || text != self.lock_text {
            self.holder = self.layout.holder();
            self.lock_text = text;
        }
    }
}

/// The steps of a `metrics.jsonl` that grows, or is replaced by a shorter one.
#[derive(Debug, Default)]
struct MetricsTail {
    steps: Vec<StepMetrics>,
    num_bytes: u64,
    last_line: Vec<u8>,
    modified: Option<SystemTime>,
}

impl MetricsTail {
    /// Reads what was added. A last line cut short is left for the next time.
    fn refresh(&mut self, path: &Path) -> io::Result<()> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                *self = MetricsTail::default();
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if !self.continues(&mut file)? {
            *self = MetricsTail::default();
        }
        self.modified = file.metadata()?.modified().ok();
        let mut added = Vec::new();
        file.seek(SeekFrom::Start(self.num_bytes))?;
        file.read_to_end(&mut added)?;
        let lines = added.split_inclusive(|byte| *byte == b'\n');
        for line in lines.filter(|line| line.ends_with(b"\n")) {
            self.steps
                .push(metrics::parse_line(&String::from_utf8_lossy(line))?);
            self.num_bytes += line.len() as u64;
            self.last_line = line.to_vec();
        }
        Ok(())
    }

    /// Seconds since the last line was written.
    fn silent_secs(&self) -> Option<f64> {
        let since = self.modified?.elapsed().unwrap_or_default();
        Some(since.as_secs_f64())
    }

    /// Whether the last line that was read still lies where it was read.
    fn continues(&self, file: &mut File) -> io::Result<bool> {
        let mut line = Vec::new();
        let length = self.last_line.len() as u64;
        file.seek(SeekFrom::Start(self.num_bytes - length))?;
        file.take(length).read_to_end(&mut line)?;
        Ok(line == self.last_line)
    }
}

/// The last lines of a text file.
fn tail(path: &Path) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(LOG_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // Where the file is longer, the first line lacks its beginning.
    let skipped = usize::from(start > 0);
    Ok(text.lines().skip(skipped).map(str::to_string).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::MetricsWriter;

    fn step(global_step: u64, reward: f64) -> StepMetrics {
        StepMetrics {
            global_step,
            reward_mean: Some(reward),
            ..StepMetrics::default()
        }
    }

    #[test]
    fn metrics_are_followed_through_growth_a_cut_line_and_a_resume() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("metrics.jsonl");
        let mut tail = MetricsTail::default();
        tail.refresh(&path).expect("no file is no step");
        let mut writer = MetricsWriter::create(&path).expect("created");
        for global_step in 1..=3 {
            writer.write(&step(global_step, 0.5)).expect("written");
            tail.refresh(&path).expect("readable");
            assert_eq!(tail.steps.len() as u64, global_step);
        }
        let whole = fs::read(&path).expect("readable");
        fs::write(&path, [&whole[..], b"{\"stage\": \"gr"].concat()).expect("written");
        tail.refresh(&path).expect("a cut line is left alone");
        assert_eq!(tail.steps.len(), 3);

        // The resume takes step 3 back and makes it again, of the same length.
        let mut writer = MetricsWriter::resume(&path, 2).expect("resumed");
        writer.write(&step(3, 0.7)).expect("written");
        writer.write(&step(4, 0.9)).expect("written");
        tail.refresh(&path).expect("readable");
        let rewards: Vec<_> = tail.steps.iter().map(|step| step.reward_mean).collect();
        assert_eq!(rewards, [0.5, 0.5, 0.7, 0.9].map(Some));
        fs::remove_file(&path).expect("removed");
        tail.refresh(&path).expect("no file is no step");
        assert_eq!(tail.steps, []);
    }

    #[test]
    fn a_damaged_line_is_an_error_and_the_steps_before_it_stay() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("metrics.jsonl");
        let mut writer = MetricsWriter::create(&path).expect("created");
        writer.write(&step(1, 0.5)).expect("written");
        let mut bytes = fs::read(&path).expect("readable");
        bytes.extend(b"\xff\xfe\n{}\n");
        fs::write(&path, bytes).expect("written");
        let mut tail = MetricsTail::default();
        for _ in 0..2 {
            let error = tail.refresh(&path).expect_err("damaged");
            assert!(error.to_string().contains("not a metrics line"), "{error}");
            assert_eq!(tail.steps, [step(1, 0.5)]);
        }
    }

    #[test]
    fn the_tail_of_a_long_log_begins_with_a_whole_line() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("log.txt");
        let text: String = (0..20_000).map(|i| format!("line {i}\n")).collect();
        fs::write(&path, &text).expect("written");
        let lines = tail(&path).expect("readable");
        assert_eq!(lines.last().map(String::as_str), Some("line 19999"));
        let first = 20_000 - lines.len();
        assert_eq!(lines[0], format!("line {first}"));
        assert!(lines.len() > 5000, "{}", lines.len());
    }
}
