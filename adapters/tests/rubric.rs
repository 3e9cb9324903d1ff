//! The rubric grader against an endpoint that answers, fails, hangs and talks nonsense.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use adapters::{Rubric, RubricConfig, RubricError, RubricGrader};
use environments::{AssistantTurn, Episode, Family, FamilyKey, FaultKind, Split, Verdict};
use serde_json::{Value, json};

/// What the endpoint does with a request.
enum Act {
    Reply(u16, String),
    /// Holds the connection and says nothing.
    Hang,
    /// Closes the connection without a word.
    Close,
}

/// A request as it came.
#[derive(Clone, Debug)]
struct Asked {
    path: String,
    authorization: Option<String>,
    body: Value,
}

/// An endpoint on a port of this machine; its threads end with the process.
struct Endpoint {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    most_at_once: Arc<AtomicUsize>,
}

impl Endpoint {
    /// `act` is given the number of the request, from 0.
    fn start(act: impl Fn(usize) -> Act + Send + Sync + 'static) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("bound"));
        let (asked, most_at_once) = (Arc::new(Mutex::new(Vec::new())), Arc::default());
        let endpoint = Endpoint {
            url,
            asked: Arc::clone(&asked),
            most_at_once: Arc::clone(&most_at_once),
        };
        let (act, at_once) = (Arc::new(act), Arc::new(AtomicUsize::new(0)));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (act, asked, at_once) = (act.clone(), asked.clone(), at_once.clone());
                let most: Arc<AtomicUsize> = most_at_once.clone();
                thread::spawn(move || {
                    let mut stream = stream.expect("a connection");
                    let request = read(&stream);
                    most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let number = {
                        let mut asked = asked.lock().expect("nobody panics under it");
                        asked.push(request);
                        asked.len() - 1
                    };
                    match act(number) {
                        Act::Reply(status, body) => {
                            let head = format!(
                                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                                body.len()
                            );
                            at_once.fetch_sub(1, Ordering::SeqCst);
                            let _ = stream.write_all(&[head.as_bytes(), body.as_bytes()].concat());
                        }
                        Act::Hang => thread::sleep(Duration::from_secs(30)),
                        Act::Close => {}
                    }
                });
            }
        });
        endpoint
    }

    /// One that always says this.
    fn saying(content: &str) -> Endpoint {
        let body = completion(content);
        Endpoint::start(move |_| Act::Reply(200, body.clone()))
    }

    fn config(&self, keys: Value) -> RubricConfig {
        let mut config = json!({
            "url": self.url, "model": "judge", "rubric": "It says that air scatters blue light.", "timeout_seconds": 10.0,
        });
        let all = config.as_object_mut().expect("an object");
        all.extend(keys.as_object().expect("an object").clone());
        serde_json::from_value(config).expect("a sound configuration")
    }

    fn grader(&self, keys: Value) -> RubricGrader {
        RubricGrader::new(self.config(keys)).expect("a grader")
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("nobody panics under it").clone()
    }
}

fn read(stream: &TcpStream) -> Asked {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).expect("a request");
    let path = line.split(' ').nth(1).unwrap_or_default().to_string();
    let (mut len, mut authorization) = (0, None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a header");
        let Some((name, value)) = line.trim().split_once(": ") else {
            break;
        };
        match &*name.to_lowercase() {
            "content-length" => len = value.parse().expect("a length"),
            "authorization" => authorization = Some(value.to_string()),
            _ => {}
        }
    }
    let mut body = vec![0; len];
    reader.read_exact(&mut body).expect("a body");
    Asked {
        path,
        authorization,
        body: serde_json::from_slice(&body).expect("JSON"),
    }
}

/// The body of a reply that says `content`.
fn completion(content: &str) -> String {
    let message = json!({"role": "assistant", "content": content});
    json!({"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        .to_string()
}

const GOOD: &str = r#"{"reason": "It does.", "score": 0.75}"#;
const QUESTION: &str = "Why is the sky blue?";
const ANSWER: &str = "Air scatters blue light more.";

fn fault(verdict: &Verdict) -> (FaultKind, String) {
    match verdict {
        Verdict::Invalid { fault, reason } => (*fault, reason.clone()),
        Verdict::Graded { .. } => panic!("{verdict:?}"),
    }
}

#[test]
fn a_score_is_the_reward_and_the_request_is_what_it_should_be() {
    let endpoint = Endpoint::saying(GOOD);
    // A variable that is set wherever tests run.
    let grader = endpoint.grader(json!({"api_key_env": "PATH"}));
    let verdict = grader.grade(QUESTION, ANSWER);
    let Verdict::Graded {
        reward,
        extracted,
        parts,
        tamper,
    } = verdict
    else {
        panic!("{verdict:?}");
    };
    assert_eq!((reward, parts["score"]), (0.75, 0.75));
    assert_eq!((extracted.as_deref(), tamper.len()), (Some("It does."), 0));
    let asked = &endpoint.asked()[0];
    assert_eq!(asked.path, "/v1/chat/completions");
    let key = std::env::var("PATH").expect("it is set");
    assert_eq!(asked.authorization, Some(format!("Bearer {key}")));
    let body = &asked.body;
    assert_eq!(
        (&body["model"], &body["temperature"]),
        (&json!("judge"), &json!(0))
    );
    let format = &body["response_format"];
    assert_eq!(format["type"], "json_schema");
    assert_eq!(format["json_schema"]["strict"], true);
    let schema = &format["json_schema"]["schema"];
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["required"], json!(["reason", "score"]));
    let (system, user) = (&body["messages"][0], &body["messages"][1]);
    assert_eq!(
        (&system["role"], &user["role"]),
        (&json!("system"), &json!("user"))
    );
    // The answer stands between marks that the instructions name, and nowhere else.
    let (instructions, blocks) = (system["content"].as_str(), user["content"].as_str());
    let (instructions, blocks) = (instructions.expect("text"), blocks.expect("text"));
    let (_, after) = blocks.split_once("<<ANSWER ").expect("a mark");
    let mark = &after[..32];
    assert!(instructions.contains(mark) && !instructions.contains(ANSWER));
    assert_eq!(after[32..], format!(">>\n{ANSWER}\n<</ANSWER {mark}>>\n"));
    assert!(blocks.contains(QUESTION) && blocks.contains("air scatters blue light"));
    // Another answer has other marks.
    grader.grade(QUESTION, "Because.");
    let other = endpoint.asked()[1].body["messages"][1]["content"].to_string();
    assert!(!other.contains(mark), "{other}");
}

#[test]
fn of_a_list_the_share_of_items_met_is_paid() {
    let endpoint = Endpoint::saying(r#"{"reason": "", "met": [true, false, true, true]}"#);
    let grader = endpoint.grader(json!({"rubric": ["a", "b", "c", "d"]}));
    let verdict = grader.grade(QUESTION, ANSWER);
    let Verdict::Graded { reward, parts, .. } = &verdict else {
        panic!("{verdict:?}");
    };
    assert_eq!(*reward, 0.75);
    assert_eq!(
        (parts["item_1"], parts["item_2"], parts.len()),
        (1.0, 0.0, 4)
    );
    let schema = &endpoint.asked()[0].body["response_format"]["json_schema"]["schema"];
    assert_eq!(schema["properties"]["met"]["minItems"], 4);
    // A prompt's own rubric.
    let own = Rubric::Items(vec!["a".to_string(), "b".to_string()]);
    let (kind, reason) = fault(&grader.grade_by(&own, QUESTION, ANSWER));
    assert_eq!(kind, FaultKind::Grader);
    assert!(reason.contains("4 marks for 2 items"), "{reason}");
}

#[test]
fn what_passes_is_repeated_and_what_lasts_is_not() {
    let acts: [fn() -> Act; 3] = [
        || Act::Reply(503, "busy".to_string()),
        || Act::Close,
        || Act::Reply(429, String::new()),
    ];
    for act in acts {
        let good = completion(GOOD);
        let endpoint = Endpoint::start(move |number| match number {
            0 | 1 => act(),
            _ => Act::Reply(200, good.clone()),
        });
        let verdict = endpoint
            .grader(json!({"retries": 2}))
            .grade(QUESTION, ANSWER);
        assert_eq!(verdict.reward(), Some(0.75), "{verdict:?}");
        assert_eq!(endpoint.asked().len(), 3);
        // One repetition is not enough.
        let endpoint = Endpoint::start(move |_| act());
        let verdict = endpoint
            .grader(json!({"retries": 1}))
            .grade(QUESTION, ANSWER);
        assert_eq!(fault(&verdict).0, FaultKind::Grader);
        assert!(
            fault(&verdict).1.contains("after 2 attempts"),
            "{verdict:?}"
        );
        assert_eq!(endpoint.asked().len(), 2);
    }
    for status in [301, 400, 401, 404, 422] {
        let endpoint = Endpoint::start(move |_| Act::Reply(status, String::new()));
        let (kind, reason) = fault(&endpoint.grader(json!({})).grade(QUESTION, ANSWER));
        assert_eq!(kind, FaultKind::Grader);
        assert!(reason.contains(&status.to_string()), "{reason}");
        assert_eq!(endpoint.asked().len(), 1, "{status}");
    }
}

#[test]
fn nobody_there_is_a_fault_without_the_address() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = free.local_addr().expect("bound").port();
    drop(free);
    let endpoint = Endpoint::saying(GOOD);
    let url = format!("http://127.0.0.1:{port}/secret");
    let grader = endpoint.grader(json!({"url": url, "retries": 0}));
    let (kind, reason) = fault(&grader.grade(QUESTION, ANSWER));
    assert_eq!(kind, FaultKind::Grader);
    assert!(!reason.contains("secret"), "{reason}");
}

#[test]
fn an_endpoint_that_hangs_costs_its_time_and_no_more() {
    let endpoint = Endpoint::start(|_| Act::Hang);
    let grader = endpoint.grader(json!({"timeout_seconds": 0.5, "max_in_flight": 1}));
    // The second waits for the room that the first has, and that is given back.
    for _ in 0..2 {
        let start = Instant::now();
        let (kind, reason) = fault(&grader.grade(QUESTION, ANSWER));
        assert_eq!(kind, FaultKind::Timeout);
        assert!(reason.contains("timeout_seconds (0.5 s)"), "{reason}");
        assert!(start.elapsed() < Duration::from_secs(10));
    }
    assert_eq!(endpoint.asked().len(), 2);
    // So do repetitions.
    let busy = Endpoint::start(|_| Act::Reply(500, String::new()));
    let grader = busy.grader(json!({"timeout_seconds": 0.5, "retries": 1000}));
    assert_eq!(fault(&grader.grade(QUESTION, ANSWER)).0, FaultKind::Timeout);
    assert!(busy.asked().len() < 10);
}

#[test]
fn a_reply_that_is_no_verdict_is_a_fault_and_never_a_reward() {
    let of_content = |content: &str| completion(content);
    let message = |message: Value, end: &str| {
        json!({"choices": [{"message": message, "finish_reason": end}]}).to_string()
    };
    for body in [
        String::new(),
        "<html>".to_string(),
        "{}".to_string(),
        json!({"choices": []}).to_string(),
        json!({"error": {"message": "overloaded"}}).to_string(),
        message(json!({"content": null}), "stop"),
        message(json!({"content": GOOD, "refusal": "I won't."}), "stop"),
        message(json!({"content": GOOD}), "length"),
        message(json!({"content": GOOD}), "content_filter"),
        of_content(""),
        of_content("Score: 1"),
        of_content("1"),
        of_content(r#"{"reason": "", "score": 1.7}"#),
        of_content(r#"{"reason": "", "score": -0.1}"#),
        of_content(r#"{"reason": "", "score": 1e400}"#),
        of_content(r#"{"reason": "", "score": NaN}"#),
        of_content(r#"{"reason": "", "score": "1"}"#),
        of_content(r#"{"reason": "", "score": true}"#),
        of_content(r#"{"reason": "", "score": null}"#),
        of_content(r#"{"score": 1}"#),
        of_content(r#"{"reason": ""}"#),
        of_content(r#"{"reason": "", "score": 1, "bonus": 1}"#),
        of_content(r#"{"reason": "", "score": 0, "score": 1}"#),
        of_content(r#"{"reason": "", "met": [true]}"#),
        of_content(&format!("{GOOD} {GOOD}")),
        of_content(&format!("```json\n{GOOD}\n```")),
        "x".repeat(2 << 20),
    ] {
        let shown: String = body.chars().take(100).collect();
        let endpoint = Endpoint::start(move |_| Act::Reply(200, body.clone()));
        let (kind, reason) = fault(&endpoint.grader(json!({})).grade(QUESTION, ANSWER));
        assert_eq!(kind, FaultKind::Grader, "{shown}");
        assert!(reason.starts_with("rubric grader: "), "{reason}");
        assert_eq!(endpoint.asked().len(), 1, "{shown}");
    }
}

#[test]
fn an_answer_without_words_is_worth_nothing_and_asked_about_by_nobody() {
    let endpoint = Endpoint::saying(r#"{"reason": "", "score": 1}"#);
    let grader = endpoint.grader(json!({}));
    for answer in ["", " \n", ":", "...", "\u{3002}"] {
        assert_eq!(
            grader.grade(QUESTION, answer).reward(),
            Some(0.0),
            "{answer:?}"
        );
    }
    assert!(endpoint.asked().is_empty());
}

#[test]
fn so_many_requests_are_in_flight_and_no_more() {
    let good = completion(GOOD);
    let endpoint = Endpoint::start(move |_| {
        thread::sleep(Duration::from_millis(200));
        Act::Reply(200, good.clone())
    });
    let grader = Arc::new(endpoint.grader(json!({"max_in_flight": 2})));
    let threads: Vec<_> = (0..6)
        .map(|number| {
            let grader = grader.clone();
            thread::spawn(move || grader.grade(QUESTION, &format!("answer {number}")).reward())
        })
        .collect();
    for graded in threads {
        assert_eq!(graded.join().expect("no panic"), Some(0.75));
    }
    assert_eq!(endpoint.most_at_once.load(Ordering::SeqCst), 2);
}

#[test]
fn a_task_can_be_graded_by_a_rubric() {
    let endpoint = Endpoint::saying(GOOD);
    let grader = Arc::new(endpoint.grader(json!({})));
    let task = Family::task(&FamilyKey {
        family: Family::Sums,
        split: Split::Train,
        level: 1,
        seed: 0,
    });
    let graded = grader.equip(task.clone());
    let mut episode = Episode::open(&graded).expect("a session");
    let turn = AssistantTurn {
        content: "An answer.".to_string(),
        calls: Vec::new(),
    };
    episode.step(&turn).expect("no fault");
    assert_eq!(episode.grade().reward(), Some(0.75));
    assert_eq!(graded.verify("An answer.").reward(), Some(0.75));
    let blocks = endpoint.asked()[0].body["messages"][1]["content"].to_string();
    assert!(blocks.contains(&task.question), "{blocks}");
    // An endpoint that pays anything is found out.
    let garbage = adapters::screening::paid_garbage(&graded).expect("no fault");
    assert!(garbage.is_some());
}

#[test]
fn what_is_wrong_with_a_configuration_is_said() {
    let endpoint = Endpoint::saying(GOOD);
    for (keys, words) in [
        (
            json!({"url": "https://api.example"}),
            "must begin with http://",
        ),
        (json!({"model": ""}), "model is empty"),
        (json!({"rubric": " "}), "rubric is empty"),
        (json!({"rubric": []}), "rubric has no items"),
        (
            json!({"rubric": ["a", ""]}),
            "rubric has no items, or an empty one",
        ),
        (
            json!({"timeout_seconds": 0.0}),
            "timeout_seconds (0) must lie above 0",
        ),
        (json!({"max_in_flight": 0}), "max_in_flight (0)"),
        (json!({"max_answer_bytes": 7}), "max_answer_bytes (7)"),
    ] {
        let error = RubricGrader::new(endpoint.config(keys)).expect_err("unsound");
        assert!(error.to_string().contains(words), "{error}");
    }
    let config = endpoint.config(json!({"api_key_env": "BALEEN_NO_SUCH_KEY"}));
    let error = RubricGrader::new(config).expect_err("no key");
    assert_eq!(error, RubricError::NoKey("BALEEN_NO_SUCH_KEY".to_string()));
    let unknown = json!({"url": "http://x", "model": "m", "rubric": "r", "retrys": 3});
    assert!(serde_json::from_value::<RubricConfig>(unknown).is_err());
    let sound = endpoint.config(json!({"rubric": ["a"]}));
    let again = serde_json::to_value(&sound).expect("plain data");
    assert_eq!(
        serde_json::from_value::<RubricConfig>(again).expect("sound"),
        sound
    );
}

#[test]
fn the_configuration_on_the_page_is_read() {
    let page = include_str!("../../docs/environments.md");
    let (_, after) = page.split_once("## Rubric grader").expect("a section");
    let (_, after) = after.split_once("```ron\n").expect("an example");
    let (written, _) = after.split_once("```").expect("its end");
    // As configurations of runs are read.
    let options = ron::Options::default();
    let options = options.with_default_extension(ron::extensions::Extensions::IMPLICIT_SOME);
    let config: RubricConfig = options.from_str(written).expect("sound");
    assert!(matches!(&config.rubric, Rubric::Items(items) if items.len() == 2));
    assert!(config.problems().is_empty());
    let keyed = "(url: \"http://x\", model: \"m\", api_key_env: \"KEY\", rubric: \"words\")";
    let config: RubricConfig = options.from_str(keyed).expect("sound");
    assert_eq!(config.api_key_env.as_deref(), Some("KEY"));
    assert_eq!(config.rubric, Rubric::Words("words".to_string()));
}
