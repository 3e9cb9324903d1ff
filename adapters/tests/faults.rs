//! What goes wrong on a server's side: whose sample it costs, what is asked again and what never is.

use std::path::Path;
use std::time::{Duration, Instant};

use adapters::AgentEnv;
use environments::ExternalTasks;
use environments::{AssistantTurn, Episode, Fault, FaultKind, Next, Split, ToolCall, Verdict};
use serde_json::{Value, json};

use crate::places::{Apart, config, episode, faulty, python, runs, task, wait_until};

fn call(episode: &mut Episode, name: &str, arguments: Value) -> Result<String, Fault> {
    let turn = AssistantTurn {
        content: String::new(),
        calls: vec![ToolCall {
            id: "c".to_string(),
            name: name.to_string(),
            arguments: arguments.to_string(),
        }],
    };
    match episode.step(&turn)? {
        Next::Tools(messages) => Ok(messages[0].content.clone()),
        other => panic!("{other:?}"),
    }
}

fn lines(log: &Path, line: &str) -> usize {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().filter(|found| *found == line).count()
}

fn kind(verdict: &Verdict) -> FaultKind {
    match verdict {
        Verdict::Invalid { fault, .. } => *fault,
        Verdict::Graded { .. } => panic!("{verdict:?}"),
    }
}

#[test]
fn a_server_killed_in_the_middle_costs_its_own_sessions_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let logs = ["one", "two"].map(|name| folder.path().join(name));
    let [killed, other] = [0, 1].map(|at| {
        let server = faulty(&logs[at], &[], json!({}));
        AgentEnv::connect(&server).expect("it runs")
    });
    let mut sessions = [episode(&killed, 0), episode(&killed, 1)];
    let mut elsewhere = episode(&other, 0);
    let process = killed.process_id().expect("it runs");
    let process_id = rustix::process::Pid::from_raw(i32::try_from(process).expect("small"));
    rustix::process::kill_process(process_id.expect("not 0"), rustix::process::Signal::KILL)
        .expect("it is ours");
    let fault = call(&mut sessions[0], "count", json!({})).expect_err("it is dead");
    assert_eq!(fault.kind, FaultKind::Infra, "{fault}");
    assert_eq!(kind(&sessions[1].grade()), FaultKind::Infra);
    assert_eq!(
        call(&mut elsewhere, "count", json!({})).expect("it lives"),
        "count"
    );
    // The task is known; the next session of it gets a new server.
    let mut next = episode(&killed, 0);
    assert_ne!(killed.process_id(), Some(process));
    assert_eq!(
        call(&mut next, "count", json!({})).expect("it lives"),
        "count"
    );
    assert_eq!(next.grade().reward(), Some(0.0));
    assert_eq!(lines(&logs[0], "start"), 2);
}

#[test]
fn a_call_that_a_server_died_of_is_not_repeated() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let server = AgentEnv::connect(&faulty(&log, &[], json!({}))).expect("it runs");
    let mut dying = episode(&server, 0);
    let fault = call(&mut dying, "die", json!({})).expect_err("it died");
    assert_eq!(fault.kind, FaultKind::Infra, "{fault}");
    assert_eq!(kind(&dying.grade()), FaultKind::Infra);
    drop(dying);
    assert_eq!(
        call(&mut episode(&server, 0), "count", json!({})).expect("it lives"),
        "count"
    );
    assert_eq!(lines(&log, "die"), 1);
}

#[test]
fn restarts_are_bounded() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let server = faulty(&log, &["dies_on=open"], json!({"max_restarts": 2}));
    let server = AgentEnv::connect(&server).expect("it runs");
    let task = task(&server, 0);
    for _ in 0..4 {
        let fault = Episode::open(&task).expect_err("it dies");
        assert_eq!(fault.kind, FaultKind::Infra, "{fault}");
    }
    let fault = Episode::open(&task).expect_err("it dies");
    assert!(
        fault.reason.contains("3 times without a graded session"),
        "{fault}"
    );
    assert_eq!(lines(&log, "start"), 3);
}

#[test]
fn a_graded_session_makes_up_for_earlier_deaths() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let server =
        AgentEnv::connect(&faulty(&log, &[], json!({"max_restarts": 1}))).expect("it runs");
    for _ in 0..3 {
        call(&mut episode(&server, 0), "die", json!({})).expect_err("it died");
        assert_eq!(episode(&server, 0).grade().reward(), Some(0.0));
    }
    assert_eq!(lines(&log, "start"), 4);
}

#[test]
fn a_slow_call_costs_its_session_and_a_frozen_server_is_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let keys = json!({"deadlines": {"call_secs": 0.3, "connect_secs": 5.0}});
    let server = AgentEnv::connect(&faulty(&log, &[], keys)).expect("it runs");
    let process = server.process_id().expect("it runs");
    let mut slow = episode(&server, 0);
    let start = Instant::now();
    assert_eq!(
        call(&mut slow, "hang", json!({}))
            .expect_err("too slow")
            .kind,
        FaultKind::Timeout
    );
    assert!(start.elapsed() < Duration::from_secs(5));
    let mut next = episode(&server, 0);
    assert_eq!(server.process_id(), Some(process), "it answered all others");
    assert_eq!(
        call(&mut next, "freeze", json!({}))
            .expect_err("frozen")
            .kind,
        FaultKind::Timeout
    );
    let mut after = episode(&server, 0);
    assert_ne!(server.process_id(), Some(process));
    assert_eq!(
        call(&mut after, "count", json!({})).expect("it lives"),
        "count"
    );
    drop((slow, next, after));
    wait_until("the frozen server is gone", || !runs(process));
}

#[test]
fn what_a_server_started_ends_with_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = faulty(&folder.path().join("log"), &[], json!({}));
    let server = AgentEnv::connect(&server).expect("it runs");
    let mut bearing = episode(&server, 0);
    let born = call(&mut bearing, "bear", json!({})).expect("it lives");
    let born: u32 = born.parse().expect("a number");
    assert!(runs(born));
    drop((bearing, server));
    wait_until("its child is gone", || !runs(born));
}

#[test]
fn error_codes_say_whose_fault_it_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = faulty(&folder.path().join("log"), &[], json!({}));
    let server = AgentEnv::connect(&server).expect("it runs");
    for (code, kind) in [
        (-32602, FaultKind::Protocol),
        (-32601, FaultKind::Protocol),
        (-32000, FaultKind::Capacity),
        (-32001, FaultKind::Infra),
        (-32002, FaultKind::Grader),
        (-32003, FaultKind::Infra),
        (-32603, FaultKind::Infra),
        (7, FaultKind::Protocol),
    ] {
        let fault =
            call(&mut episode(&server, 0), "fail", json!({"code": code})).expect_err("as asked");
        assert_eq!(fault.kind, kind, "{fault}");
        assert!(fault.reason.contains("as asked"), "{fault}");
    }
    let mut crashing = episode(&server, 0);
    let turn = AssistantTurn {
        content: "crash".to_string(),
        calls: Vec::new(),
    };
    crashing.step(&turn).expect("no fault");
    let Verdict::Invalid { fault, reason } = crashing.grade() else {
        panic!("the grader crashed")
    };
    assert_eq!(fault, FaultKind::Grader);
    assert!(
        reason.contains("ValueError") && !reason.contains("42"),
        "{reason}"
    );
}

#[test]
fn a_full_server_is_waited_for_until_the_deadline() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let full = |open_secs: f64| {
        let keys = json!({"deadlines": {"open_secs": open_secs}});
        AgentEnv::connect(&faulty(&log, &["max_sessions=1"], keys)).expect("it runs")
    };
    let server = full(0.5);
    let first = episode(&server, 0);
    let fault = Episode::open(&task(&server, 1)).expect_err("no room");
    assert_eq!(fault.kind, FaultKind::Capacity, "{fault}");
    drop(first);
    let server = full(20.0);
    let first = episode(&server, 0);
    std::thread::scope(|scope| {
        let second = scope.spawn(|| Episode::open(&task(&server, 1)).is_ok());
        std::thread::sleep(Duration::from_millis(300));
        drop(first);
        assert!(second.join().expect("no panic"));
    });
}

#[test]
fn opening_and_grading_are_repeated_under_the_same_key() {
    let folder = tempfile::tempdir().expect("a folder");
    let [socket, log] = ["socket", "log"].map(|name| folder.path().join(name));
    let arguments = [&socket, &log].map(|path| path.to_str().expect("plain"));
    let _server = Apart::start(&python("adapters/tests/servers/dropping.py", &arguments));
    wait_until("the socket is there", || socket.exists());
    let server = config(json!({"name": "words", "socket": socket}));
    let mut connected = AgentEnv::connect(&server);
    wait_until("it listens", || {
        if connected.is_err() {
            connected = AgentEnv::connect(&server);
        }
        connected.is_ok()
    });
    let server = connected.expect("it is");
    let task = server
        .task(&server.key(Split::Train, 1, 0))
        .expect("a task");
    let mut episode = Episode::open(&task).expect("repeated");
    let verdict = episode.grade();
    let Verdict::Graded { reward, parts, .. } = &verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!((*reward, parts["graded"]), (1.0, 1.0), "graded once");
    let text = std::fs::read_to_string(&log).expect("it is written");
    let keys: Vec<&str> = text.lines().collect();
    assert_eq!(keys.len(), 4, "{keys:?}");
    assert!(keys[0] == keys[1] && keys[2] == keys[3], "{keys:?}");
    assert!(keys[0].starts_with("env/open") && keys[2].starts_with("env/grade"));
}
