//! `baleen report`: runs as one HTML page. Of the runs it only reads; they may be working.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Failure, output};
use crate::report::{self, MAX_RUNS, ReportError, Run};
use crate::run_folder;

/// Show one run, or several over one another, as an HTML page
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  baleen report runs/quickstart                  writes runs/quickstart/report.html
  baleen report runs/a runs/b --out compare.html")]
pub struct Args {
    /// Run folders, such as runs/quickstart
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// File to write [default: RUN/report.html; of several runs report.html]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Writes the page and prints where it is.
pub fn run(args: &Args) -> Result<(), Failure> {
    if args.runs.len() > MAX_RUNS {
        let text = format!("{} runs: a page shows {MAX_RUNS} at most", args.runs.len());
        return Err(Failure::usage(text));
    }
    let distinct: BTreeSet<&PathBuf> = args.runs.iter().collect();
    if distinct.len() < args.runs.len() {
        return Err(Failure::usage("the same run is named twice"));
    }
    let runs = args
        .runs
        .iter()
        .map(|folder| Run::read(folder).map_err(Failure::from))
        .collect::<Result<Vec<_>, _>>()?;
    let out = match (&args.out, &args.runs[..]) {
        (Some(out), _) => out.clone(),
        (None, [folder]) => folder.join("report.html"),
        (None, _) => PathBuf::from("report.html"),
    };
    let io = |error: std::io::Error| Failure::running(format!("{}: {error}", out.display()));
    if !report::may_replace(&out).map_err(io)? {
        let text = format!("{} is there and is no report of baleen", out.display());
        return Err(Failure::usage(text).hint("name another file with --out, or remove that one"));
    }
    let page = report::page(runs);
    run_folder::replace_file(&out, page.as_bytes()).map_err(io)?;
    output::print_line(&written(&out, page.len())).map(|_| ())
}

/// `runs/a/report.html: 312 kB; open it in a browser`.
fn written(out: &Path, bytes: usize) -> String {
    format!(
        "{}: {} kB; open it in a browser",
        out.display(),
        bytes.div_ceil(1000)
    )
}

impl From<ReportError> for Failure {
    fn from(error: ReportError) -> Failure {
        match error {
            ReportError::RunFolder(error) => error.into(),
            error @ ReportError::Metrics { .. } => {
                Failure::running(error).hint("`baleen fsck` tells what else of the run is damaged")
            }
        }
    }
}
