//! `baleen report`: one or several runs as one HTML page that needs no network and no other file.
//!
//! Charts over the steps (several runs over one another), the healthy range of each figure with the advice of [`crate::health`], samples of the
//! newest rollouts token by token, and what differs between the configurations. Whatever the number of steps, the page stays small: curves are
//! thinned out to what can be seen, and only a few samples are shown.

mod axis;
mod chart;
mod figures;
mod html;
mod page;
mod pieces;
mod points;
mod run;
mod sample_html;
mod samples;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

pub use self::run::{ReportError, Run};

/// Runs of one page, at most: so many colours can be told apart.
pub const MAX_RUNS: usize = 8;

/// The page of `runs`, at most [`MAX_RUNS`] of them, in their order.
pub fn page(mut runs: Vec<Run>) -> String {
    assert!(
        runs.len() <= MAX_RUNS,
        "{} runs are more than there are colours",
        runs.len()
    );
    let names: Vec<String> = runs.iter().map(|run| run.label.clone()).collect();
    for run in &mut runs {
        // Runs of one name are told apart by their folders.
        if names.iter().filter(|name| **name == run.label).count() > 1 {
            run.label = run.folder.clone();
        }
    }
    page::page(&runs)
}

/// Whether `path` is a page that [`page`] made, or nothing: what may be replaced by another.
///
/// # Errors
/// The file can't be read.
pub fn may_replace(path: &Path) -> io::Result<bool> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    let mut begin = vec![0; page::FIRST_LINE.len()];
    match file.read_exact(&mut begin) {
        Ok(()) => Ok(begin == page::FIRST_LINE.as_bytes()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
