use super::*;
use crate::{AssistantTurn, Episode, EpisodeLimits, Family, FamilyKey, Next, Split, Stop};
use crate::{ToolCall, ToolMessage};
use serde_json::json;

use crate::sandboxed::tests::has_sandbox;

/// Nothing that a cell could make by chance.
const SEALED: &str = "493817265550123986";

fn quick() -> PythonLimits {
    PythonLimits {
        cell: Duration::from_secs(20),
        grace: Duration::from_millis(500),
        ..limits()
    }
}

fn episode_of(limits: PythonLimits) -> Episode {
    let tools = [tool(&limits)];
    let interpreter = Interpreter::new(limits, Vec::new()).expect("a sandbox");
    let session = InterpreterSession::new(interpreter, |answer| {
        Verdict::exact(answer == SEALED, Some(answer.to_string()))
    });
    Episode::of_session(Box::new(session), &tools, EpisodeLimits::default()).expect("a tool")
}

fn turn(cells: &[&str]) -> AssistantTurn {
    let calls = cells.iter().enumerate().map(|(number, code)| ToolCall {
        id: format!("call_{number}"),
        name: TOOL.to_string(),
        arguments: json!({ "code": code }).to_string(),
    });
    AssistantTurn {
        content: String::new(),
        calls: calls.collect(),
    }
}

fn results(episode: &mut Episode, cells: &[&str]) -> Vec<ToolMessage> {
    match episode.step(&turn(cells)).expect("no fault") {
        Next::Tools(messages) => messages,
        other => panic!("{other:?}"),
    }
}

fn run(episode: &mut Episode, code: &str) -> ToolMessage {
    results(episode, &[code]).remove(0)
}

fn answer(episode: &mut Episode, content: &str) -> Verdict {
    let said = AssistantTurn {
        content: content.to_string(),
        calls: Vec::new(),
    };
    assert_eq!(episode.step(&said), Ok(Next::Done(Stop::Answered)));
    episode.grade()
}

#[test]
fn state_survives_between_cells_and_turns() {
    if !has_sandbox() {
        return;
    }
    let mut episode = episode_of(quick());
    let first = results(
        &mut episode,
        &["def f(n):\n    return n * 2\nx = 20", "print(f(x))\nx += 1"],
    );
    assert_eq!(first[0].content, "[no output]");
    assert_eq!(first[1].content, "40");
    assert_eq!(run(&mut episode, "f(x)").content, "Out[3]: 42");
    let failed = run(&mut episode, "print('so far')\n1 / 0");
    assert!(failed.is_error);
    assert!(failed.content.starts_with("so far\nTraceback"));
    assert!(failed.content.ends_with("division by zero"));
    assert_eq!(run(&mut episode, "x").content, "Out[5]: 21");
    let verdict = answer(&mut episode, SEALED);
    let Verdict::Graded { reward, parts, .. } = verdict else {
        panic!("{verdict:?}");
    };
    assert_eq!((reward, parts["cells"]), (1.0, 5.0));
}

#[test]
fn the_twenty_first_cell_is_refused_in_words_and_the_episode_goes_on() {
    if !has_sandbox() {
        return;
    }
    let mut episode = episode_of(quick());
    for number in 1..=20 {
        let message = run(&mut episode, "n = globals().get('n', 0) + 1\nn");
        assert_eq!(message.content, format!("Out[{number}]: {number}"));
    }
    let refused = run(&mut episode, "n");
    assert!(refused.is_error);
    assert!(
        refused.content.contains("all 20 were used"),
        "{}",
        refused.content
    );
    assert_eq!(answer(&mut episode, SEALED).reward(), Some(1.0));
}

#[test]
fn a_slow_cell_is_told_its_time_and_one_that_will_not_stop_that_all_is_lost() {
    if !has_sandbox() {
        return;
    }
    let mut episode = episode_of(PythonLimits {
        cell: Duration::from_secs(1),
        ..quick()
    });
    run(&mut episode, "x = 5");
    let slow = run(&mut episode, "print('begun')\nwhile True: pass");
    assert!(slow.is_error && slow.content.starts_with("begun\n"));
    let words = "timed out after 1 s and was interrupted; names and files are kept";
    assert!(slow.content.contains(words), "{}", slow.content);
    assert_eq!(run(&mut episode, "x").content, "Out[3]: 5");
    let stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass";
    let killed = run(&mut episode, stubborn);
    assert!(killed.is_error);
    for words in ["and was killed", "the Python session was lost"] {
        assert!(killed.content.contains(words), "{}", killed.content);
    }
    assert!(run(&mut episode, "x").content.contains("NameError"));
    assert_eq!(answer(&mut episode, "7").reward(), Some(0.0));
}

#[test]
fn memory_that_runs_out_is_told_and_a_lost_session_starts_anew() {
    if !has_sandbox() {
        return;
    }
    let mut episode = episode_of(PythonLimits {
        memory_bytes: 128 << 20,
        ..quick()
    });
    run(&mut episode, "x = 5");
    // A control group kills, a resource limit raises.
    let greedy = run(
        &mut episode,
        "b = [bytearray(1 << 20) for _ in range(1 << 12)]",
    );
    assert!(greedy.is_error);
    assert!(
        greedy.content.contains("memory ran out") || greedy.content.contains("MemoryError"),
        "{}",
        greedy.content
    );
    let died = run(&mut episode, "import os\nos._exit(3)");
    assert!(died.content.contains("Python exited with code 3"));
    assert!(died.content.contains("the Python session was lost"));
    assert_eq!(run(&mut episode, "1 + 1").content, "Out[4]: 2");
}

#[test]
fn long_output_and_long_errors_are_cut_with_a_mark() {
    if !has_sandbox() {
        return;
    }
    let mut episode = episode_of(quick());
    let flood = run(
        &mut episode,
        "print('a' * 100_000)\nraise ValueError('b' * 100_000)",
    );
    let marks = flood.content.matches("bytes are left out here").count();
    assert_eq!(marks, 2, "{}", flood.content.len());
    assert!(flood.content.len() < 18 << 10, "{}", flood.content.len());
    assert!(flood.content.starts_with("aaaa") && flood.content.contains("bbbb"));
}

#[test]
fn a_turn_of_many_slow_cells_ends_in_time_and_the_next_one_goes_on() {
    if !has_sandbox() {
        return;
    }
    let mut interpreter = Interpreter::new(quick(), Vec::new()).expect("a sandbox");
    interpreter.turn_time = Duration::from_millis(300);
    let code = |code: &str| Map::from_iter([("code".to_string(), json!(code))]);
    let sleep = code("import time\ntime.sleep(0.4)\n1");
    assert_eq!(
        interpreter.call(&sleep).expect("no fault").content,
        "Out[1]: 1"
    );
    let refused = interpreter.call(&code("2")).expect("no fault");
    assert!(refused.is_error && refused.content.starts_with("[not run: "));
    assert_eq!(interpreter.num_cells(), 1);
    interpreter.begin_turn();
    assert_eq!(
        interpreter.call(&code("2")).expect("no fault").content,
        "Out[2]: 2"
    );
}

#[test]
fn the_episode_tells_the_session_where_a_turn_begins() {
    struct Counts(u32);
    impl Session for Counts {
        fn begin_turn(&mut self) {
            self.0 += 1;
        }
        fn call(&mut self, _: &str, _: &Map<String, Value>) -> Result<Called, Fault> {
            Ok(ToolOutput::ok(self.0.to_string()).into())
        }
        fn grade(&mut self, _: &str) -> Result<Verdict, Fault> {
            Ok(Verdict::exact(false, None))
        }
    }
    let tools = [tool(&limits())];
    let mut episode =
        Episode::of_session(Box::new(Counts(0)), &tools, EpisodeLimits::default()).expect("a tool");
    let said = |messages: Vec<ToolMessage>| -> Vec<String> {
        messages
            .into_iter()
            .map(|message| message.content)
            .collect()
    };
    assert_eq!(said(results(&mut episode, &["a", "b"])), ["1", "1"]);
    assert_eq!(said(results(&mut episode, &["c"])), ["2"]);
}

#[test]
fn a_sandbox_that_fails_is_a_fault_and_no_answer_of_the_policy() {
    if !has_sandbox() {
        return;
    }
    // Python itself needs more.
    let mut episode = episode_of(PythonLimits {
        num_tasks: 1,
        ..quick()
    });
    let fault = episode.step(&turn(&["1"])).expect_err("it can't start");
    assert!(
        matches!(fault.kind, FaultKind::Infra | FaultKind::Timeout),
        "{fault}"
    );
    assert!(!fault.reason.contains(SEALED));
}

/// Looks for the sealed answer, whose digits the code holds in reverse, wherever a cell can read.
const SEARCH: &str = r#"
import os, sys
wanted = b"689321055562718394"[::-1]
found, num_read = [], 0
def look(place, data):
    global num_read
    num_read += 1
    if wanted in data:
        found.append(place)
for name, value in os.environ.items():
    look("environment", (name + value).encode())
roots = [os.getcwd(), os.environ.get("HOME", "/"), "/tmp", "/dev/shm", "/mnt", "/root", "/etc", "/var"]
for root in roots:
    for folder, _, names in os.walk(root):
        for name in names:
            look(os.path.join(folder, name), name.encode())
            try:
                with open(os.path.join(folder, name), "rb") as file:
                    look(os.path.join(folder, name), file.read(1 << 20))
            except OSError:
                pass
try:
    processes = [p for p in os.listdir("/proc") if p.isdigit()]
except OSError:
    processes = []
for process in processes:
    for name in ("cmdline", "environ"):
        try:
            with open("/proc/%s/%s" % (process, name), "rb") as file:
                look(process + name, file.read())
        except OSError:
            pass
    # Memory of others; this process holds `wanted` itself.
    if int(process) != os.getpid():
        try:
            with open("/proc/%s/maps" % process) as maps, open("/proc/%s/mem" % process, "rb") as memory:
                for line in maps:
                    begin, end = (int(part, 16) for part in line.split()[0].split("-"))
                    memory.seek(begin)
                    look(process + "mem", memory.read(end - begin))
        except OSError:
            pass
print(found, num_read > 0)
"#;

#[test]
fn the_sealed_answer_is_nowhere_in_the_session() {
    if !has_sandbox() {
        return;
    }
    let mut episode = episode_of(quick());
    assert_eq!(run(&mut episode, SEARCH).content, "[] True");
    // The search does find what is there.
    run(&mut episode, "open('planted', 'wb').write(wanted)");
    let content = run(&mut episode, SEARCH).content;
    assert!(content.contains("planted'"), "{content}");
    assert_eq!(answer(&mut episode, SEALED).reward(), Some(1.0));
}

#[test]
fn any_task_of_one_turn_can_be_given_the_interpreter() {
    let task = Family::task(&FamilyKey {
        family: Family::Products,
        split: Split::Train,
        level: 6,
        seed: 0,
    });
    let equipped = equip(task.clone(), quick());
    assert_eq!(equipped.tools[0].name, TOOL);
    assert_eq!(
        (&equipped.key, &equipped.question),
        (&task.key, &task.question)
    );
    if !has_sandbox() {
        return;
    }
    let mut episode = Episode::open(&equipped).expect("a session");
    assert_eq!(run(&mut episode, "6 * 7").content, "Out[1]: 42");
    assert_eq!(answer(&mut episode, &task.solution).reward(), Some(1.0));
    let mut episode = Episode::open(&equipped).expect("a session");
    assert_eq!(answer(&mut episode, "1").reward(), Some(0.0));
}
