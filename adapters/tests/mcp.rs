//! The client of the Model Context Protocol against servers of both eras, on standard streams and over HTTP.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use adapters::McpConfig;
use adapters::mcp::Servers;
use environments::{
    AssistantTurn, Episode, Family, FamilyKey, Fault, FaultKind, Next, Split, Task, ToolCall,
    ToolMessage,
};
use serde_json::{Value, json};

use crate::places::{Apart, python, python_with, repository, wait_until};

const STUB: &str = "adapters/tests/servers/mcp_stub.py";

/// A stub: its configuration, and the server where it is none of the client's own.
struct Stub {
    config: McpConfig,
    log: PathBuf,
    _folder: tempfile::TempDir,
    _server: Option<Apart>,
}

impl Stub {
    fn new(era: &str, transport: &str, options: &[&str], keys: Value) -> Stub {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let mut arguments = vec![era, transport, log.to_str().expect("plain")];
        arguments.extend(options);
        let command = python(STUB, &arguments);
        let mut all = json!({"name": "stub"});
        let server = match transport {
            "http" => {
                let (server, url) = Apart::announced(&command, &[]);
                all["url"] = json!(url);
                Some(server)
            }
            _ => {
                all["command"] = json!(command);
                None
            }
        };
        let more = keys.as_object().expect("an object").clone();
        all.as_object_mut().expect("an object").extend(more);
        Stub {
            config: serde_json::from_value(all).expect("sound"),
            log,
            _folder: folder,
            _server: server,
        }
    }

    fn open(&self) -> Arc<Servers> {
        Arc::new(Servers::open(std::slice::from_ref(&self.config)).expect("it runs"))
    }

    fn lines(&self, line: &str) -> usize {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().filter(|found| *found == line).count()
    }
}

fn sum() -> Task {
    Family::task(&FamilyKey {
        family: Family::Sums,
        split: Split::Train,
        level: 1,
        seed: 0,
    })
}

fn episode(servers: &Arc<Servers>) -> Episode {
    Episode::open(&servers.equip(sum())).expect("a session")
}

fn call(episode: &mut Episode, name: &str, arguments: Value) -> Result<ToolMessage, Fault> {
    let turn = AssistantTurn {
        content: String::new(),
        calls: vec![ToolCall {
            id: "c".to_string(),
            name: name.to_string(),
            arguments: arguments.to_string(),
        }],
    };
    match episode.step(&turn)? {
        Next::Tools(mut messages) => Ok(messages.remove(0)),
        other => panic!("{other:?}"),
    }
}

fn text(episode: &mut Episode, name: &str, arguments: Value) -> String {
    let message = call(episode, name, arguments).expect("no fault");
    assert!(!message.is_error, "{message:?}");
    message.content
}

fn check_episode(stub: &Stub) {
    let servers = stub.open();
    let names: Vec<String> = servers.tools().into_iter().map(|tool| tool.name).collect();
    let expected = [
        "count",
        "echo",
        "wrong",
        "broken",
        "ask",
        "structured",
        "die",
        "hang",
    ];
    assert_eq!(names, expected, "both pages, in order");
    let mut played = episode(&servers);
    let said = text(&mut played, "echo", json!({"text": "hello"}));
    assert_eq!(said, "hello\n[image left out]");
    assert_eq!(
        text(&mut played, "structured", json!({})),
        r#"{"answer":42}"#
    );
    let wrong = call(&mut played, "wrong", json!({})).expect("no fault");
    assert_eq!((&*wrong.content, wrong.is_error), ("no such file", true));
    // The schema holds before the server is asked.
    let bad = call(&mut played, "echo", json!({"text": 7})).expect("no fault");
    assert!(bad.is_error && stub.lines("tools/call echo") == 1);
    let fault = call(&mut played, "broken", json!({})).expect_err("an error of the protocol");
    assert_eq!(fault.kind, FaultKind::Protocol, "{fault}");
    let answer = AssistantTurn {
        content: sum().solution,
        calls: Vec::new(),
    };
    played.step(&answer).expect("no fault");
    assert_eq!(
        played.grade().reward(),
        Some(1.0),
        "the task grades as it did"
    );
}

#[test]
fn legacy_servers_are_played_on_both_transports() {
    for (transport, options) in [("stdio", &[][..]), ("http", &[]), ("http", &["sse"])] {
        let stub = Stub::new("legacy", transport, options, json!({}));
        check_episode(&stub);
        assert_eq!(stub.lines("initialize"), 2, "once to list, once to play");
        assert_eq!(
            stub.lines("server/discover"),
            1,
            "the era is asked for once"
        );
        if transport == "http" {
            wait_until("sessions are closed", || stub.lines("DELETE") == 2);
        }
    }
}

#[test]
fn modern_servers_are_played_on_both_transports() {
    for (transport, options) in [("stdio", &[][..]), ("http", &[]), ("http", &["sse"])] {
        let stub = Stub::new("modern", transport, options, json!({}));
        check_episode(&stub);
        assert_eq!(stub.lines("initialize"), 0);
        assert_eq!(stub.lines("server/discover"), 2);
        let mut asking = episode(&stub.open());
        let message = call(&mut asking, "ask", json!({})).expect("no fault");
        assert!(
            message.is_error && message.content.contains("further input"),
            "{message:?}"
        );
    }
}

#[test]
fn eras_that_are_known_are_not_asked_for() {
    let stub = Stub::new("silent", "stdio", &[], json!({"era": "legacy"}));
    let start = Instant::now();
    assert_eq!(text(&mut episode(&stub.open()), "count", json!({})), "1");
    assert!(start.elapsed() < Duration::from_secs(9));
    assert_eq!(stub.lines("server/discover"), 0);
    // One that ends over the question is started again.
    let stub = Stub::new("dying", "stdio", &[], json!({}));
    assert_eq!(text(&mut episode(&stub.open()), "count", json!({})), "1");
    assert_eq!((stub.lines("server/discover"), stub.lines("start")), (1, 3));
    let stub = Stub::new("modern", "stdio", &[], json!({"era": "legacy"}));
    let fault = Servers::open(&[stub.config]).expect_err("of the other era");
    assert_eq!(fault.kind, FaultKind::Protocol, "{fault}");
}

#[test]
fn every_session_has_a_process_of_its_own() {
    let stub = Stub::new("legacy", "stdio", &[], json!({}));
    let servers = stub.open();
    let mut sessions = [episode(&servers), episode(&servers)];
    for expected in ["1", "2"] {
        for session in &mut sessions {
            assert_eq!(text(session, "count", json!({})), expected);
        }
    }
    assert_eq!(stub.lines("start"), 3);
    let ours = |_: &Path| processes_with(&stub.log);
    assert_eq!(ours(&stub.log), 2);
    drop(sessions);
    assert_eq!(ours(&stub.log), 0);
}

/// Processes that name the file among their arguments.
fn processes_with(log: &Path) -> usize {
    let log = log.to_str().expect("plain").as_bytes();
    let processes = std::fs::read_dir("/proc").expect("it is there").flatten();
    processes
        .filter(|process| {
            let arguments = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            arguments.windows(log.len()).any(|window| window == log)
        })
        .count()
}

#[test]
fn a_server_that_dies_costs_its_session_and_the_call_is_not_repeated() {
    for transport in ["stdio", "http"] {
        let stub = Stub::new("legacy", transport, &[], json!({}));
        let servers = stub.open();
        let [mut dying, mut other] = [episode(&servers), episode(&servers)];
        let fault = call(&mut dying, "die", json!({})).expect_err("it is gone");
        assert_eq!(fault.kind, FaultKind::Infra, "{transport}: {fault}");
        // Over HTTP the stub forgets every session.
        if transport == "stdio" {
            assert_eq!(text(&mut other, "count", json!({})), "1");
            assert_eq!(stub.lines("tools/call die"), 1);
        }
        let said = text(&mut episode(&servers), "echo", json!({"text": "a"}));
        assert_eq!(said, "a\n[image left out]", "the next session works");
    }
}

#[test]
fn calls_have_a_deadline_and_the_server_is_told() {
    for era in ["legacy", "modern"] {
        let keys = json!({"deadlines": {"call_secs": 0.3}});
        let stub = Stub::new(era, "stdio", &[], keys);
        let servers = stub.open();
        let mut slow = episode(&servers);
        let start = Instant::now();
        let fault = call(&mut slow, "hang", json!({})).expect_err("too slow");
        assert_eq!(fault.kind, FaultKind::Timeout, "{fault}");
        drop(slow);
        assert!(
            start.elapsed() < Duration::from_secs(8),
            "{:?}",
            start.elapsed()
        );
        assert_eq!(processes_with(&stub.log), 0);
    }
}

#[test]
fn tools_of_the_same_name_are_told_apart() {
    let stubs = ["legacy", "modern"].map(|era| Stub::new(era, "stdio", &[], json!({})));
    let mut configs = stubs.each_ref().map(|stub| stub.config.clone());
    let fault = Servers::open(&configs).expect_err("both have the same name");
    assert!(
        fault.reason.contains("two servers have the name"),
        "{fault}"
    );
    configs[1].name = "other".to_string();
    let servers = Arc::new(Servers::open(&configs).expect("they run"));
    let mut played = episode(&servers);
    assert_eq!(text(&mut played, "stub__count", json!({})), "1");
    assert_eq!(text(&mut played, "other__count", json!({})), "1");
    assert_eq!(text(&mut played, "stub__count", json!({})), "2");
    let unknown = call(&mut played, "count", json!({})).expect("no fault");
    assert!(unknown.is_error);
}

#[test]
fn the_official_server_is_understood() {
    let Some(python) = python_with("mcp") else {
        return;
    };
    let script = repository("adapters/tests/servers/mcp_official.py");
    let script = script.to_str().expect("plain");
    let http = [&*python, script, "http"].map(str::to_string);
    let (_server, url) = Apart::announced(&http, &[]);
    for (era, place) in [
        ("auto", json!([python, script])),
        ("auto", Value::Null),
        ("legacy", Value::Null),
    ] {
        let mut keys = json!({"name": "official", "era": era, "deadlines": {"connect_secs": 60.0}});
        match place {
            Value::Null => keys["url"] = json!(url),
            command => keys["command"] = command,
        }
        let config: McpConfig = serde_json::from_value(keys).expect("sound");
        let servers = Arc::new(Servers::open(&[config]).expect("it runs"));
        let names: Vec<String> = servers.tools().into_iter().map(|tool| tool.name).collect();
        assert_eq!(names, ["count", "add", "fail"]);
        let mut played = episode(&servers);
        assert_eq!(text(&mut played, "add", json!({"a": 3, "b": 4})), "7");
        let failed = call(&mut played, "fail", json!({})).expect("no fault");
        assert!(
            failed.is_error && failed.content.contains("fail"),
            "{failed:?}"
        );
        let bad = call(&mut played, "add", json!({"a": "x", "b": 4})).expect("no fault");
        assert!(bad.is_error);
    }
}
