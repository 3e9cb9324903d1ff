//! Where the figures of a step go: `metrics.jsonl`, and what is made of it for those who look on.
//!
//! A metrics line that can't be written stops the run, for a resume needs it. The event file is a copy
//! that the next resume writes anew, so a run goes on without it, after one warning.

use std::io;

use crate::error::TrainerError;
use crate::event_file::EventFile;
use crate::metrics::{self, MetricsWriter, StepMetrics};
use crate::prometheus::Exporter;
use crate::run_folder::RunLayout;

/// Takes the figures of every step of one run.
#[derive(Debug)]
pub struct StepLog {
    layout: RunLayout,
    metrics: MetricsWriter,
    events: Option<EventFile>,
    exporter: Option<Exporter>,
}

impl StepLog {
    /// Starts with no step or, after a checkpoint taken at global step `resumed`, with those up to it: later
    /// ones are dropped.
    ///
    /// # Errors
    /// `metrics.jsonl` can't be read or written.
    pub fn open(
        layout: &RunLayout,
        resumed: Option<u64>,
        exporter: Option<Exporter>,
    ) -> Result<StepLog, TrainerError> {
        let path = layout.metrics_path();
        let metrics = match resumed {
            None => MetricsWriter::create(&path),
            Some(global_step) => MetricsWriter::resume(&path, global_step),
        };
        let metrics = metrics.map_err(io_error(layout))?;
        let steps = metrics::read(&path).map_err(io_error(layout))?;
        if let Some(exporter) = &exporter {
            exporter.show_earlier(&steps);
        }
        let mut log = StepLog {
            layout: layout.clone(),
            metrics,
            events: None,
            exporter,
        };
        match EventFile::open(&layout.tensorboard_path(), &steps) {
            Ok(events) => log.events = Some(events),
            Err(error) => log.go_on_without_events(&error),
        }
        Ok(log)
    }

    /// Takes the figures of a step made just now.
    ///
    /// # Errors
    /// `metrics.jsonl` can't be written.
    pub fn write(&mut self, metrics: &StepMetrics) -> Result<(), TrainerError> {
        self.metrics
            .write(metrics)
            .map_err(io_error(&self.layout))?;
        if let Some(events) = &mut self.events
            && let Err(error) = events.append(metrics)
        {
            self.go_on_without_events(&error);
        }
        if let Some(exporter) = &self.exporter {
            exporter.show(metrics);
        }
        Ok(())
    }

    /// Makes every metrics line written so far survive a power cut.
    ///
    /// # Errors
    /// `metrics.jsonl` can't be written.
    pub fn sync(&self) -> Result<(), TrainerError> {
        self.metrics.sync().map_err(io_error(&self.layout))
    }

    fn go_on_without_events(&mut self, error: &io::Error) {
        self.events = None;
        tracing::warn!(
            "{}: {error}; the run goes on without TensorBoard events, the next `baleen resume` \
             writes all of them",
            self.layout.tensorboard_path().display()
        );
    }
}

fn io_error(layout: &RunLayout) -> impl FnOnce(io::Error) -> TrainerError {
    let path = layout.metrics_path();
    move |source| TrainerError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn step(global_step: u64) -> StepMetrics {
        StepMetrics {
            global_step,
            ..StepMetrics::default()
        }
    }

    #[test]
    fn an_event_file_that_cannot_be_written_does_not_stop_the_run() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let layout = RunLayout::new(dir.path());
        fs::write(layout.tensorboard_path(), "in the way").expect("written");
        let mut log = StepLog::open(&layout, None, None).expect("created");
        log.write(&step(1)).expect("written");
        log.sync().expect("synced");
        let steps = metrics::read(&layout.metrics_path()).expect("readable");
        assert_eq!(steps, [step(1)]);

        fs::remove_file(layout.tensorboard_path()).expect("removed");
        drop(StepLog::open(&layout, Some(1), None).expect("resumed"));
        assert!(layout.tensorboard_path().is_dir());
    }

    #[test]
    fn metrics_that_cannot_be_written_are_an_error_with_their_path() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let layout = RunLayout::new(&dir.path().join("gone"));
        let error = StepLog::open(&layout, None, None).expect_err("no folder");
        assert!(error.to_string().contains("metrics.jsonl"), "{error}");
    }
}
