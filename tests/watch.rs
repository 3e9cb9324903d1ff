//! `baleen watch` on a terminal: on a finished run, on one at work in another process, and where there is
//! no terminal.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use trainer::dashboard::screen::Screen;

use crate::program::{self, Working};
use crate::run_files::{TINY, files, global_step, text, train_tiny};
use crate::terminal::Terminal;

/// As a terminal sends them.
const RIGHT: &str = "\x1b[C";
const DOWN: &str = "\x1b[B";
const PAGE_UP: &str = "\x1b[5~";
const TAB: &str = "\t";
const CTRL_C: &str = "\x03";

/// Set in the child that is to panic.
const PANIC: &str = "BALEEN_TEST_PANIC";

fn watch(run: &Path) -> Terminal {
    Terminal::baleen(&["watch", text(run)])
}

#[test]
fn a_finished_run_shows_its_panels_at_every_size_and_is_left_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    train_tiny(&run);
    let before = files(&run);

    let mut terminal = watch(&run);
    terminal.wait_for(&[
        "tiny",
        "complete",
        "grpo 12/12",
        "100 %",
        "held-out pass rate",
    ]);
    terminal.wait_for(&["final policy exported", "q quit"]);
    terminal.press(TAB);
    terminal.wait_for(&["KL to the reference", "entropy", "rollout, tokens/s"]);
    terminal.press(TAB);
    terminal.wait_for(&["step 27 (newest, of 12)", "prompt 1 of 8   sample 1 of 8"]);
    terminal.press(RIGHT);
    terminal.press(DOWN);
    terminal.wait_for(&["prompt 2 of 8   sample 2 of 8", "question", "completion"]);
    terminal.press(PAGE_UP);
    terminal.wait_for(&["step 26 (of 12)"]);
    terminal.press("4");
    terminal.wait_for(&["health of the current stage"]);
    terminal.press("5");
    terminal.wait_for(&["checkpoint", "grpo 12/12"]);
    terminal.press("?");
    terminal.wait_for(&["this help"]);
    terminal.press("?1");

    terminal.resize(160, 50);
    let text = terminal.wait_for(&["complete", "gradient norm", "policy age"]);
    assert!(text.lines().count() >= 45, "{text}");
    terminal.resize(24, 5);
    terminal.wait_for(&["24x5 is too small"]);
    terminal.resize(1, 1);
    terminal.resize(80, 24);
    terminal.wait_for(&["complete", "grpo 12/12", "q quit"]);

    terminal.press("q");
    assert_eq!(terminal.end(), 0, "{}", terminal.text());
    terminal.assert_restored();
    assert!(files(&run) == before, "the run folder was changed");
}

#[test]
fn a_run_at_work_in_another_process_is_followed_and_not_disturbed() {
    let dir = tempfile::tempdir().unwrap();
    let [run, stderr] = ["run", "stderr"].map(|name| dir.path().join(name));
    let mut working = Working::start(&["train", TINY, "--run", text(&run)], &stderr);
    assert!(working.wait_until(|| run.join("config.ron").exists()));
    let mut terminal = watch(&run);
    let process = format!("running: process {}", working.id());
    terminal.wait_for(&[&process]);
    let seen = global_step(&run);
    assert!(seen < 27, "the run is over too soon to be watched");
    // A step appears that was not there when the dashboard was opened, then the end.
    let start = Instant::now();
    let newest = |text: &str| -> Option<u64> {
        let (_, rest) = text.split_once("┌step ")?;
        rest.split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok()
    };
    while newest(&terminal.text()).is_none_or(|step| step <= seen) {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{}",
            terminal.text()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(working.end().success(), "{}", working.said());
    terminal.wait_for(&["complete", "step 27"]);
    terminal.press(CTRL_C);
    assert_eq!(terminal.end(), 0, "{}", terminal.text());
    terminal.assert_restored();
}

#[test]
fn sigterm_ends_it_and_gives_the_terminal_back() {
    let dir = tempfile::tempdir().unwrap();
    let run = begun(dir.path());
    let mut terminal = watch(&run);
    terminal.wait_for(&["no step yet", "not running"]);
    let kill = format!("kill -TERM {}", terminal.id());
    let status = Command::new("sh").args(["-c", &kill]).status().unwrap();
    assert!(status.success(), "SIGTERM can be sent");
    assert_eq!(terminal.end(), 0, "{}", terminal.text());
    terminal.assert_restored();
}

#[test]
fn a_panic_gives_the_terminal_back_and_is_read_there() {
    if std::env::var_os(PANIC).is_some() {
        let _screen = Screen::open().unwrap();
        panic!("on purpose");
    }
    let test = std::env::current_exe().unwrap();
    let args = [
        "--exact",
        "watch::a_panic_gives_the_terminal_back_and_is_read_there",
        "--nocapture",
    ];
    let env = [(PANIC, "1"), ("RUST_BACKTRACE", "0")];
    let mut terminal = Terminal::start(test.as_os_str(), &args, &env, (80, 24));
    assert_ne!(terminal.end(), 0, "{}", terminal.text());
    terminal.assert_restored();
    terminal.wait_for(&["on purpose"]);
}

/// A run without any step: `config.ron` alone.
fn begun(dir: &Path) -> std::path::PathBuf {
    let run = dir.join("begun");
    fs::create_dir(&run).unwrap();
    fs::copy(program::workspace().join(TINY), run.join("config.ron")).unwrap();
    run
}

#[test]
fn without_a_terminal_everything_is_printed_once() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    train_tiny(&run);
    let ended = program::succeed(&["watch", text(&run)]);
    assert!(
        ended.stderr.contains("standard output is no terminal"),
        "{}",
        ended.stderr
    );
    for part in [
        "complete",
        "grpo 12/12",
        "held-out pass rate",
        "KL to the reference",
        "step 27 (newest, of 12)",
        "final policy exported",
    ] {
        assert!(ended.stdout.contains(part), "{part} in {}", ended.stdout);
    }
    assert!(!ended.stdout.contains('\x1b'), "{}", ended.stdout);
    let asked = program::succeed(&["watch", text(&run), "--once"]);
    assert_eq!((asked.stdout, asked.stderr.as_str()), (ended.stdout, ""));
}

#[test]
fn a_run_without_a_step_is_shown_and_no_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = begun(dir.path());
    let ended = program::succeed(&["watch", text(&run), "--once"]);
    for part in ["tiny", "not running", "no step yet", "no figures yet"] {
        assert!(ended.stdout.contains(part), "{part} in {}", ended.stdout);
    }
    let ended = program::finish(program::command(&["watch", text(dir.path())]));
    assert_eq!(ended.code, 2, "{}", ended.stderr);
    assert!(
        ended.stderr.contains("config.ron is missing"),
        "{}",
        ended.stderr
    );
}
