//! Ways to outlive the jail or to reach other processes.

use sandbox::{End, Sandbox};
use std::time::{Duration, Instant};

use crate::support::{assert_all_blocked, host_processes_with, python, shell, words};

crate::on_both_backends!(
    other_processes_are_out_of_reach,
    a_daemon_does_not_outlive_a_timeout,
    a_background_writer_does_not_outlive_the_end,
    no_descriptor_leaks_in,
    killing_everything_kills_only_the_jail,
    the_environment_is_clean,
);
crate::on_all_variants!(a_fork_bomb_stays_inside);

const REACH: &str = r#"
import signal
harness, own = int(sys.argv[1]), os.getpid()
def not_own(attack):
    return lambda: False if harness == own else attack()
attempt("signal", not_own(lambda: os.kill(harness, signal.SIGUSR1)))
attempt("stop", not_own(lambda: os.kill(harness, signal.SIGSTOP)))
attempt("probe", not_own(lambda: os.kill(harness, 0)))
attempt("ptrace attach", lambda: call(101, 16, harness, 0, 0))
attempt("ptrace parent", lambda: call(101, 16, os.getppid(), 0, 0))
attempt("ptrace me", lambda: call(101, 0, 0, 0, 0))
attempt("read memory", lambda: call(310, os.getppid(), 0, 0, 0, 0, 0))
attempt("write memory", lambda: call(311, os.getppid(), 0, 0, 0, 0, 0))
attempt("limits of the parent", lambda: call(302, os.getppid(), 7, 0, ctypes.create_string_buffer(16)))
attempt("descriptor of the parent", lambda: call(438, os.pidfd_open(os.getppid()), 0, 0))
attempt("priority", not_own(lambda: os.setpriority(os.PRIO_PROCESS, harness, 19)))
attempt("priority of the parent", lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19) if os.getppid() > 1 else False)
attempt("scheduling", not_own(lambda: os.sched_setaffinity(harness, {0})))
attempt("clock", lambda: __import__("time").clock_settime(0, 1.0))
print("finished")
"#;

fn other_processes_are_out_of_reach(sandbox: &Sandbox) {
    assert_all_blocked(sandbox, REACH, &[&std::process::id().to_string()]);
}

/// A number that only this test's processes carry.
fn marker() -> String {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    format!("1000.{}{}", std::process::id(), nanos % 1_000_000)
}

fn a_daemon_does_not_outlive_a_timeout(sandbox: &Sandbox) {
    let marker = marker();
    let (mut spec, files) = python(
        "import signal, subprocess, time\n\
         signal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
         if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        os.execv('/bin/sleep', ['sleep', sys.argv[1]])\n    os._exit(0)\n\
         print('started', flush=True)\ntime.sleep(60)",
    );
    spec.command.push(marker.clone());
    spec.limits.wall = Duration::from_millis(800);
    let start = Instant::now();
    let outcome = sandbox.run(&spec, &files, &[], &[]).unwrap();
    assert!(outcome.flags.timed_out, "{}", words(&outcome));
    assert_eq!(outcome.end, End::Killed);
    assert!(words(&outcome).contains("started"));
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(host_processes_with(&marker).is_empty());
}

fn a_background_writer_does_not_outlive_the_end(sandbox: &Sandbox) {
    let marker = marker();
    let script = format!(
        "(setsid sh -c 'while :; do echo forged >result; sleep 0.01; done' {marker} &) ; \
         (setsid sleep {marker} &) ; sleep 0.1; echo honest >result2"
    );
    let mut jail = sandbox.spawn(&shell(&script), &[]).unwrap();
    jail.wait(&[]).unwrap();
    assert_eq!(jail.end(), Some(&End::Exited(0)));
    assert!(host_processes_with(&marker).is_empty());
    assert_eq!(jail.read_file("result2", 100), Ok(b"honest\n".to_vec()));
}

fn no_descriptor_leaks_in(sandbox: &Sandbox) {
    // A descriptor that every child would inherit, as careless libraries open them.
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("leak")).unwrap();
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
    let (spec, files) = python("print(sorted(os.listdir('/proc/self/fd'), key=int))");
    let outcome = sandbox.run(&spec, &files, &[], &[]).unwrap();
    // The fourth is the listing itself.
    assert_eq!(words(&outcome).trim(), "['0', '1', '2', '3']");
}

fn killing_everything_kills_only_the_jail(sandbox: &Sandbox) {
    let mut bystander = std::process::Command::new("sleep")
        .arg("30")
        .spawn()
        .unwrap();
    let outcome = sandbox
        .run(&shell("kill -9 -1; echo survived"), &[], &[], &[])
        .unwrap();
    assert_eq!(bystander.try_wait().unwrap(), None, "{}", words(&outcome));
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

fn the_environment_is_clean(sandbox: &Sandbox) {
    let mut spec = shell("env | cut -d= -f1 | sort | tr '\\n' ' '");
    spec.env.push(("WANTED".to_owned(), "1".to_owned()));
    let outcome = sandbox.run(&spec, &[], &[], &[]).unwrap();
    assert_eq!(
        words(&outcome).trim(),
        "HOME LANG PATH PWD PYTHONHASHSEED SOURCE_DATE_EPOCH TMPDIR TZ WANTED"
    );
}

fn a_fork_bomb_stays_inside(sandbox: &Sandbox) {
    let marker = marker();
    let (mut spec, files) = python(
        "import time\nn = 0\nwhile n < 400:\n    try:\n        if os.fork() == 0:\n            os.execv('/bin/sleep', ['sleep', sys.argv[1]])\n    except OSError as error:\n        print('blocked after', n, flush=True)\n        break\n    n += 1\nprint('forked', n, flush=True)\ntime.sleep(60)",
    );
    spec.command.push(marker.clone());
    spec.limits.wall = Duration::from_secs(2);
    let mut jail = sandbox.spawn(&spec, &files).unwrap();
    let sandbox::Line::Bytes(line) = jail.read_line(Duration::from_secs(10)).unwrap() else {
        panic!("no line");
    };
    let line = String::from_utf8(line).unwrap();
    let num_forks: u64 = line
        .strip_prefix("blocked after ")
        .expect(&line)
        .parse()
        .unwrap();
    assert!(num_forks <= spec.limits.num_tasks, "{line}");
    assert!(num_forks >= 4, "{line}");
    jail.wait(&[]).unwrap();
    assert!(host_processes_with(&marker).is_empty());
}
