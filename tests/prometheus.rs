//! `--prometheus`: a run at work is scraped, and what it answers is held against `metrics.jsonl`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use serde_json::{Map, Value};

use crate::program::{self, Working, python};
use crate::run_files::{TINY, global_step, text};

/// Name, labels and value of a sample.
type Sample = (String, BTreeMap<String, String>, f64);

/// Head and body of what the server at `address` says to `GET path`.
fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("someone answers");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )
    .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head ends so");
    (head.to_string(), body.to_string())
}

/// The address that a run says it answers at.
fn address(working: &mut Working, stderr: &Path) -> String {
    let said = || fs::read_to_string(stderr).expect("it was made at the start");
    let of = |text: &str| -> Option<String> {
        let (_, rest) = text.split_once("metrics for Prometheus: http://")?;
        Some(rest.split_once("/metrics\n")?.0.to_string())
    };
    assert!(working.wait_until(|| of(&said()).is_some()), "{}", said());
    of(&said()).expect("it was there")
}

/// The samples of `body`, read without more than the format's simplest rules.
fn samples(body: &str) -> Vec<Sample> {
    let lines = body.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, rest) = line.split_once('{').expect("every sample has labels");
            let (labels, value) = rest.rsplit_once("} ").expect("a value follows");
            let labels = labels.split(',').map(|label| {
                let (name, value) = label.split_once('=').expect("name=value");
                (name.to_string(), value.trim_matches('"').to_string())
            });
            let value = value.parse().expect("a number");
            (name.to_string(), labels.collect(), value)
        })
        .collect()
}

/// The samples of `body` as Prometheus' own parser reads them.
fn samples_read_by(python: &str, body: &str) -> Vec<Sample> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("body");
    fs::write(&path, body).unwrap();
    let mut command = program::quiet(python);
    command.arg("tests/read_prometheus.py");
    command.stdin(File::open(path).unwrap());
    let ended = program::finish(command);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).expect("samples")
}

fn value(samples: &[Sample], name: &str) -> Option<f64> {
    let sample = samples.iter().find(|(found, _, _)| found == name);
    sample.map(|(_, _, value)| *value)
}

/// Every plain number of the newest line is there under its name with run and stage.
fn assert_equals_line(samples: &[Sample], run: &Path) {
    let step = value(samples, "baleen_steps_total").expect("always there");
    let lines = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let line: Map<String, Value> = lines
        .lines()
        .map(|line| serde_json::from_str::<Map<_, _>>(line).expect("an object"))
        .find(|line| line["global_step"].as_f64() == Some(step))
        .expect("a line is written before it is shown");
    let mut num_figures = 0;
    for (key, expected) in line.iter().filter(|(_, value)| value.is_number()) {
        let sample = (
            format!("baleen_{key}"),
            BTreeMap::from([
                ("run".to_string(), "tiny".to_string()),
                (
                    "stage".to_string(),
                    line["stage"].as_str().unwrap().to_string(),
                ),
            ]),
            expected.as_f64().unwrap(),
        );
        assert!(samples.contains(&sample), "{sample:?} in {samples:?}");
        num_figures += 1;
    }
    assert!(num_figures > 10, "{line:?}");
}

#[test]
fn a_run_at_work_answers_with_the_figures_of_its_newest_step_and_so_does_its_resume() {
    let dir = tempfile::tempdir().unwrap();
    let [run, stderr] = ["run", "stderr"].map(|name| dir.path().join(name));
    let train = [
        "train",
        TINY,
        "--run",
        text(&run),
        "--prometheus",
        "127.0.0.1:0",
    ];
    let mut working = Working::start(&train, &stderr);
    let at = address(&mut working, &stderr);
    assert!(working.wait_until(|| global_step(&run) >= 17));
    let (head, body) = get(&at, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    let format = "content-type: text/plain; version=0.0.4; charset=utf-8";
    assert!(head.contains(format), "{head}");
    let found = samples(&body);
    assert_equals_line(&found, &run);
    assert!(value(&found, "baleen_reward_mean").is_some(), "{body}");
    assert!(body.contains("# TYPE baleen_reward_mean gauge"), "{body}");
    assert!(body.contains("# TYPE baleen_steps_total counter"), "{body}");
    let since = value(&found, "baleen_last_step_timestamp_seconds").expect("always there");
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!((0.0..60.0).contains(&(now - since)), "{since} at {now}");
    if let Some(python) = python() {
        assert_eq!(samples_read_by(&python, &body), found);
    }
    let (head, _) = get(&at, "/");
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");

    assert!(working.kill());
    let resume = ["resume", text(&run), "--prometheus", "127.0.0.1:0"];
    let mut working = Working::start(&resume, &stderr);
    let at = address(&mut working, &stderr);
    let mut steps = 0.0;
    assert!(working.wait_until(|| {
        let found = samples(&get(&at, "/metrics").1);
        steps = value(&found, "baleen_steps_total").expect("always there");
        steps > 0.0
    }));
    // The kill may have come before the checkpoint of the step that was seen.
    assert!(steps >= 15.0, "goes on from a checkpoint: {steps}");
    assert!(working.end().success(), "{}", working.said());
}

#[test]
fn clients_that_never_ask_do_not_hold_up_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let [run, stderr] = ["run", "stderr"].map(|name| dir.path().join(name));
    let train = [
        "train",
        TINY,
        "--run",
        text(&run),
        "--prometheus",
        "127.0.0.1:0",
    ];
    let mut working = Working::start(&train, &stderr);
    let at = address(&mut working, &stderr);
    let silent: Vec<TcpStream> = (0..40)
        .map(|_| TcpStream::connect(&at).expect("it listens"))
        .collect();
    assert!(working.end().success(), "{}", working.said());
    assert_eq!(silent.len(), 40);
    assert_eq!(global_step(&run), 27);
}

#[test]
fn an_address_that_is_taken_or_none_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    for address in [taken.as_str(), "nowhere", "127.0.0.1"] {
        let train = ["train", TINY, "--run", text(&run), "--prometheus", address];
        let ended = program::finish(program::command(&train));
        assert_eq!(ended.code, 2, "{}", ended.stderr);
        let said = format!("error: can't answer Prometheus at {address}: ");
        assert!(ended.stderr.contains(&said), "{}", ended.stderr);
        assert!(ended.stderr.contains("hint: "), "{}", ended.stderr);
        assert!(!run.exists(), "nothing is made");
    }
}
