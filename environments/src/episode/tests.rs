use serde_json::{Map, Value};

use super::*;
use crate::family::Family;
use crate::task::{FamilyKey, Split};
use crate::verdict::Verdict;

/// A shop bell: `ring` counts up, `flood` talks a lot, `fail` has a fault, `submit` ends. Its user speaks once.
struct Bell {
    rings: u64,
    has_spoken: bool,
}

impl Session for Bell {
    fn call(&mut self, name: &str, arguments: &Map<String, Value>) -> Result<Called, Fault> {
        match name {
            "ring" => {
                self.rings += arguments["times"].as_u64().unwrap_or(0);
                Ok(ToolOutput::ok(format!("rung {} times", self.rings)).into())
            }
            "flood" => Ok(ToolOutput::ok("x".repeat(5000)).into()),
            "submit" => Ok(Called::Final(ToolOutput::ok("thanks"))),
            _ => Err(Fault::new(FaultKind::Infra, "the rope broke")),
        }
    }

    fn hear(&mut self, _: &str) -> Result<Reply, Fault> {
        Ok(match std::mem::replace(&mut self.has_spoken, true) {
            false => Reply::User("who is there?".to_string()),
            true => Reply::Done,
        })
    }

    fn grade(&mut self, answer: &str) -> Result<Verdict, Fault> {
        let is_right = answer == "me" && self.rings == 3;
        Ok(Verdict::exact(is_right, Some(answer.to_string())))
    }
}

fn episode(limits: EpisodeLimits) -> Episode {
    let bell = Bell {
        rings: 0,
        has_spoken: false,
    };
    let tools = [
        ToolDef::new("ring", "Rings.", &[("times", "integer", "how often")]),
        ToolDef::new("flood", "Talks.", &[]),
        ToolDef::new("fail", "Fails.", &[]),
        ToolDef::new("submit", "Ends.", &[]),
    ];
    Episode::of_session(Box::new(bell), &tools, limits).expect("sound tools")
}

fn calls(calls: &[(&str, &str)]) -> AssistantTurn {
    let calls = calls
        .iter()
        .enumerate()
        .map(|(i, (name, arguments))| ToolCall {
            id: i.to_string(),
            name: (*name).to_string(),
            arguments: (*arguments).to_string(),
        });
    AssistantTurn {
        content: String::new(),
        calls: calls.collect(),
    }
}

fn says(content: &str) -> AssistantTurn {
    AssistantTurn {
        content: content.to_string(),
        calls: Vec::new(),
    }
}

#[test]
fn calls_are_answered_in_order_and_a_user_opens_a_new_segment() {
    let mut episode = episode(EpisodeLimits::default());
    let turn = calls(&[
        ("ring", r#"{"times": 1}"#),
        ("knock", "{}"),
        ("ring", r#"{"times": 2}"#),
    ]);
    let Next::Tools(messages) = episode.step(&turn).expect("no fault") else {
        panic!("tools answer");
    };
    let said: Vec<(&str, bool)> = messages
        .iter()
        .map(|message| (message.content.as_str(), message.is_error))
        .collect();
    assert_eq!(said[0], ("rung 1 times", false));
    assert!(
        said[1].1 && said[1].0.contains("no tool \"knock\""),
        "{said:?}"
    );
    assert_eq!(said[2], ("rung 3 times", false));
    assert_eq!(messages[2].call_id, "2");
    let next = episode.step(&says("open!")).expect("no fault");
    assert_eq!(next, Next::User("who is there?".to_string()));
    let next = episode.step(&says("me")).expect("no fault");
    assert_eq!(next, Next::Done(Stop::Answered));
    assert_eq!(episode.num_calls(), (3, 1));
    assert_eq!(episode.grade().reward(), Some(1.0));
}

#[test]
fn long_results_are_cut_and_say_so() {
    let mut episode = episode(EpisodeLimits {
        max_result_bytes: 100,
        ..EpisodeLimits::default()
    });
    let Next::Tools(messages) = episode.step(&calls(&[("flood", "{}")])).expect("no fault") else {
        panic!("tools answer");
    };
    assert!(messages[0].is_truncated);
    assert!(messages[0].content.contains("4900 bytes cut"));
}

#[test]
fn a_limit_ends_a_valid_sample() {
    let ring = calls(&[("ring", r#"{"times": 1}"#)]);
    let limits = EpisodeLimits::default();
    for (limits, stop) in [
        (
            EpisodeLimits {
                max_turns: 3,
                ..limits
            },
            Stop::Turns,
        ),
        (
            EpisodeLimits {
                max_calls: 2,
                ..limits
            },
            Stop::Calls,
        ),
        (
            EpisodeLimits {
                max_secs: 0.0,
                ..limits
            },
            Stop::Time,
        ),
    ] {
        let mut episode = episode(limits);
        let mut last = Next::Tools(Vec::new());
        for _ in 0..3 {
            last = episode.step(&ring).expect("no fault");
            if matches!(last, Next::Done(_)) {
                break;
            }
        }
        assert_eq!(last, Next::Done(stop));
        assert_eq!(episode.grade().reward(), Some(0.0), "graded as it stands");
    }
}

#[test]
fn a_submission_ends_the_episode_and_a_fault_does_not_count_against_the_policy() {
    let mut submitted = episode(EpisodeLimits::default());
    let next = submitted.step(&calls(&[("submit", "{}"), ("ring", r#"{"times": 1}"#)]));
    assert_eq!(next, Ok(Next::Done(Stop::Submitted)));
    assert_eq!(submitted.num_calls(), (1, 0), "nothing runs after it");
    let mut broken = episode(EpisodeLimits::default());
    let fault = broken.step(&calls(&[("fail", "{}")])).expect_err("a fault");
    let verdict = Verdict::from(fault);
    assert_eq!(
        verdict,
        Verdict::invalid(FaultKind::Infra, "the rope broke")
    );
    assert_eq!(verdict.reward(), None);
}

#[test]
fn a_task_of_one_turn_is_an_episode_of_one_turn() {
    let task = Family::task(&FamilyKey {
        family: Family::Sums,
        split: Split::Train,
        level: 2,
        seed: 0,
    });
    let mut episode = Episode::open(&task).expect("a session");
    let next = episode.step(&says(&task.solution)).expect("no fault");
    assert_eq!(next, Next::Done(Stop::Answered));
    assert_eq!(episode.grade().reward(), Some(1.0));
}
