//! The example environment over every transport; configurations, screening, tasks by key.

use std::sync::Arc;

use adapters::{AgentEnv, OpenError};
use environments::{
    AssistantTurn, Episode, ExternalTasks, Next, Split, Stop, Task, TaskKey, Tasks, ToolCall,
    Verdict,
};
use serde_json::{Value, json};

use crate::places::{Apart, config, faulty, python, runs, wait_until};

fn turn(calls: &[(&str, Value)]) -> AssistantTurn {
    let calls = calls
        .iter()
        .enumerate()
        .map(|(at, (name, arguments))| ToolCall {
            id: format!("c{at}"),
            name: (*name).to_string(),
            arguments: arguments.to_string(),
        });
    AssistantTurn {
        content: String::new(),
        calls: calls.collect(),
    }
}

/// The goal that the question states.
fn goal(task: &Task) -> i64 {
    let after = task.question.split("exactly ").nth(1).expect("a goal");
    let goal = after.split(' ').next().expect("a number");
    goal.parse().expect("a number")
}

/// Fills the till of level 1 with the one coin that is right, or with another.
fn play(server: &AgentEnv, seed: u64, is_right: bool) -> Verdict {
    let task = server
        .task(&server.key(Split::Train, 1, seed))
        .expect("a task");
    assert_eq!(task.system.as_deref(), Some("You work at a till."));
    let mut episode = Episode::open(&task).expect("a session");
    let wrong = turn(&[("insert", json!({"coin": 3}))]);
    let Next::Tools(messages) = episode.step(&wrong).expect("no fault") else {
        panic!("it goes on")
    };
    assert_eq!(messages[0].content, "Error: there is no coin of 3.");
    assert!(messages[0].is_error);
    let coin = if is_right { goal(&task) } else { 20 };
    let calls = turn(&[("insert", json!({"coin": coin})), ("close", json!({}))]);
    assert_eq!(
        episode.step(&calls).expect("no fault"),
        Next::Done(Stop::Submitted)
    );
    episode.grade()
}

fn check_till(server: &AgentEnv) {
    let verdict = play(server, 0, true);
    let Verdict::Graded { reward, parts, .. } = &verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(*reward, 1.0);
    let names: Vec<&str> = parts.keys().map(|name| &**name).collect();
    assert_eq!(names, ["closed", "few coins", "score", "sum"]);
    assert_eq!(
        play(server, 0, false).reward(),
        Some(0.0),
        "20 is divisible by four: held out"
    );
}

fn till(more: &[&str]) -> Vec<String> {
    python("scripts/agentenv/till.py", more)
}

#[test]
fn a_program_s_environment_is_played_and_ends_with_us() {
    let server = config(json!({"name": "till", "command": till(&[])}));
    let server = AgentEnv::open(&server, [1]).expect("it runs and pays for no garbage");
    check_till(&server);
    let process = server.process_id().expect("it runs");
    assert!(runs(process));
    drop(server);
    assert!(!runs(process));
}

#[test]
fn an_environment_behind_a_socket_is_played() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("till");
    let _server = Apart::start(&till(&["--socket", socket.to_str().expect("plain")]));
    wait_until("the socket is there", || socket.exists());
    let server = config(json!({"name": "till", "socket": socket}));
    let mut opened = AgentEnv::open(&server, [1]);
    wait_until("it listens", || {
        if opened.is_err() {
            opened = AgentEnv::open(&server, [1]);
        }
        opened.is_ok()
    });
    check_till(&opened.expect("it is"));
}

#[test]
fn an_environment_behind_http_is_played() {
    let (_server, url) = Apart::announced(&till(&["--port", "0"]), &[]);
    let server = config(json!({"name": "till", "url": url}));
    check_till(&AgentEnv::open(&server, [1]).expect("it runs"));
}

#[test]
fn http_asks_for_the_token() {
    // Some variable that is set, and that tests may not change.
    let token = std::env::var("PATH").expect("it is set");
    let (_server, url) = Apart::announced(&till(&["--port", "0"]), &[("AGENTENV_TOKEN", &token)]);
    let keys = json!({"name": "till", "url": url, "token_variable": "PATH"});
    AgentEnv::connect(&config(keys)).expect("it is the token");
    for (variable, words) in [("HOME", "403"), ("NO_SUCH_VARIABLE", "is not set")] {
        let keys = json!({"name": "till", "url": url, "token_variable": variable});
        let error = AgentEnv::connect(&config(keys)).expect_err("no token");
        assert!(error.to_string().contains(words), "{error}");
    }
    let error = AgentEnv::connect(&config(json!({"name": "till", "url": url})));
    let error = error.expect_err("no token");
    assert!(error.to_string().contains("403"), "{error}");
}

#[test]
fn sessions_of_one_server_run_side_by_side() {
    let server = config(json!({"name": "till", "command": till(&[])}));
    let server = AgentEnv::open(&server, [1]).expect("it runs");
    std::thread::scope(|scope| {
        for seed in 0..16 {
            let server = &server;
            scope.spawn(move || assert_eq!(play(server, seed, true).reward(), Some(1.0)));
        }
    });
}

#[test]
fn a_key_names_the_same_task_in_every_process() {
    let [one, two] = [0, 1].map(|_| {
        let server = config(json!({"name": "till", "command": till(&[])}));
        AgentEnv::connect(&server).expect("it runs")
    });
    for (level, seed) in [(1, 0), (5, 3), (5, u64::MAX)] {
        let key = one.key(Split::HeldOut, level, seed);
        let question = |server: &AgentEnv| server.task(&key).expect("a task").question;
        assert_eq!(question(&one), question(&two));
    }
}

#[test]
fn tasks_are_found_by_their_keys() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = faulty(&folder.path().join("log"), &[], json!({}));
    let server = Arc::new(AgentEnv::open(&server, [1]).expect("it runs"));
    let key = server.key(Split::Train, 1, 7);
    let tasks = Tasks::default().with_external(server.clone());
    let task = tasks.task(&TaskKey::External(key.clone())).expect("a task");
    assert_eq!(task.question, "Task train 7");
    // A task of one turn is graded without an episode as well.
    assert_eq!(task.verify("right").reward(), Some(1.0));
    assert_eq!(task.verify("wrong").reward(), Some(0.0));
    for (environment, version) in [("other", 1), ("faulty", 2)] {
        let mut key = key.clone();
        (key.environment, key.version) = (environment.to_string(), version);
        let error = tasks.task(&key.into()).expect_err("of another");
        assert!(error.to_string().contains(environment), "{error}");
    }
    let json = serde_json::to_string(&TaskKey::External(key.clone())).expect("plain data");
    assert_eq!(
        serde_json::from_str::<TaskKey>(&json).expect("a key"),
        TaskKey::External(key)
    );
}

#[test]
fn an_environment_that_pays_for_garbage_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let server = faulty(&log, &["pays=1"], json!({}));
    let error = AgentEnv::open(&server, [1]).expect_err("it pays for everything");
    assert!(matches!(error, OpenError::Pays { .. }), "{error}");
    let words = "environment faulty version 1 level 1 seed 0 pays for an empty answer";
    assert!(error.to_string().contains(words), "{error}");
    // Half a reward counts only where the configuration says so.
    let half = |keys| AgentEnv::open(&faulty(&log, &["reward=0.5"], keys), [1]);
    half(json!({})).expect("no full reward");
    let error = half(json!({"partial_rewards": true})).expect_err("it pays");
    assert!(matches!(error, OpenError::Pays { .. }), "{error}");
}

#[test]
fn levels_are_checked_and_programs_must_be_servers() {
    let error = |keys: Value, level| {
        AgentEnv::open(&config(keys), [level])
            .expect_err("refused")
            .to_string()
    };
    let words = error(json!({"name": "till", "command": till(&[])}), 6);
    assert!(words.contains("levels 1 to 5, not 6"), "{words}");
    for (command, words) in [
        (json!(["no-such-program"]), "can't be started"),
        (json!(["sh", "-c", "read line"]), "it ended"),
        (
            json!(["sh", "-c", "echo hello; read line"]),
            "no JSON-RPC message",
        ),
        (json!(["sleep", "60"]), "no reply in time"),
    ] {
        let keys = json!({"name": "x", "command": command, "deadlines": {"connect_secs": 2.0}});
        let found = error(keys, 1);
        assert!(found.contains(words), "{found}");
    }
}
