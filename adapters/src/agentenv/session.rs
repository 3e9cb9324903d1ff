//! A session on a server, as a [`Session`] of ours.

use std::sync::Arc;

use environments::{Called, Fault, FaultKind, Reply, Session, ToolOutput, Verdict};
use serde_json::{Map, Value, json};

use crate::agentenv::server::{Live, Server};
use crate::agentenv::wire::{CALL, CallError, CallResult, Graded, Observed, SESSION};
use crate::config::{Connect, secs};

/// Name of the part that holds what the server paid, where only a full reward counts.
const SCORE: &str = "score";

pub(crate) struct RemoteSession {
    pub(crate) server: Arc<Server>,
    pub(crate) live: Arc<Live>,
    /// The server's name for it.
    pub(crate) id: String,
    /// Makes a repeated `env/grade` one request.
    pub(crate) grade_key: String,
    /// What happened, for the grader: calls and words, in order.
    pub(crate) events: Vec<Value>,
    pub(crate) num_calls: u64,
}

impl Session for RemoteSession {
    fn call(&mut self, name: &str, arguments: &Map<String, Value>) -> Result<Called, Fault> {
        const METHOD: &str = "tools/call";
        self.num_calls += 1;
        let params = json!({
            "name": name,
            "arguments": arguments,
            "_meta": {SESSION: self.id, CALL: format!("c{}", self.num_calls)},
        });
        let deadline = secs(self.server.config.deadlines.call_secs);
        // Asked once, whatever becomes of it.
        let result: CallResult = self
            .live
            .ask(METHOD, &params, deadline)
            .map_err(|error| self.live.fault(METHOD, &error))?;
        let output = ToolOutput {
            content: result.text(),
            is_error: result.is_error,
        };
        self.events.push(json!({
            "type": "call",
            "name": name,
            "arguments": arguments,
            "content": output.content,
            "is_error": output.is_error,
        }));
        Ok(match result.is_final() {
            true => Called::Final(output),
            false => Called::Output(output),
        })
    }

    fn hear(&mut self, content: &str) -> Result<Reply, Fault> {
        const METHOD: &str = "env/observe";
        let params = json!({"session": self.id, "content": content});
        let deadline = secs(self.server.config.deadlines.call_secs);
        let observed = self.live.ask(METHOD, &params, deadline);
        let observed = observed.map_err(|error| self.live.fault(METHOD, &error))?;
        self.events
            .push(json!({"type": "said", "content": content}));
        Ok(match observed {
            Observed::Done => Reply::Done,
            Observed::User { content } => {
                self.events
                    .push(json!({"type": "user", "content": content}));
                Reply::User(content)
            }
        })
    }

    fn grade(&mut self, answer: &str) -> Result<Verdict, Fault> {
        const METHOD: &str = "env/grade";
        let params = json!({
            "session": self.id,
            "trajectory": {"answer": answer, "events": self.events},
            "idempotency_key": self.grade_key,
        });
        let deadline = secs(self.server.config.deadlines.grade_secs);
        let mut graded = self.live.ask(METHOD, &params, deadline);
        // The session may have outlived the connection, but not the program.
        let may_live = !matches!(self.server.config.connect, Connect::Program(_));
        if may_live && matches!(graded, Err(CallError::Lost(_))) {
            (self.live, _) = self.server.live()?;
            graded = self.live.ask(METHOD, &params, deadline);
        }
        let graded = graded.map_err(|error| self.live.fault(METHOD, &error))?;
        let verdict = verdict(graded, self.server.config.partial_rewards)
            .map_err(|problem| Fault::new(FaultKind::Grader, problem))?;
        self.server.has_graded();
        Ok(verdict)
    }
}

impl Drop for RemoteSession {
    fn drop(&mut self) {
        let params = json!({"session": self.id});
        self.live.channel.tell("env/close", &params);
    }
}

/// # Errors
/// A reward or part that is no number, or a reward out of [0, 1].
fn verdict(graded: Graded, partial_rewards: bool) -> Result<Verdict, String> {
    if !(0.0..=1.0).contains(&graded.reward) {
        return Err(format!("the reward {} is not in [0, 1]", graded.reward));
    }
    let mut parts = graded.parts;
    if let Some(name) = parts.keys().find(|name| !parts[*name].is_finite()) {
        return Err(format!("the part {name} is no number"));
    }
    let mut reward = graded.reward;
    if !partial_rewards {
        parts.insert(SCORE.to_string(), reward);
        reward = f64::from(reward >= 1.0);
    }
    if !graded.tamper.is_empty() {
        reward = 0.0;
    }
    Ok(Verdict::Graded {
        reward,
        extracted: graded.extracted,
        parts,
        tamper: graded.tamper,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graded(reward: f64, tamper: &[&str]) -> Graded {
        Graded {
            reward,
            extracted: None,
            parts: [("style".to_string(), 0.25)].into(),
            tamper: tamper.iter().map(|flag| (*flag).to_string()).collect(),
        }
    }

    #[test]
    fn only_a_full_reward_counts_unless_the_configuration_says_so() {
        for (reward, is_partial, paid) in [
            (0.99, false, 0.0),
            (1.0, false, 1.0),
            (0.5, true, 0.5),
            (0.0, true, 0.0),
        ] {
            let verdict = verdict(graded(reward, &[]), is_partial).expect("sound");
            assert_eq!(verdict.reward(), Some(paid));
            let Verdict::Graded { parts, .. } = verdict else {
                panic!("it is graded")
            };
            assert_eq!(parts["style"], 0.25);
            assert_eq!(parts.get(SCORE).copied(), (!is_partial).then_some(reward));
        }
        let tampered = verdict(graded(1.0, &["wrote the verdict file"]), false);
        assert_eq!(tampered.expect("sound").reward(), Some(0.0));
    }

    #[test]
    fn rewards_that_are_none_are_the_graders_fault() {
        for reward in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let error = verdict(graded(reward, &[]), true).expect_err("no reward");
            assert!(error.contains("not in [0, 1]"), "{error}");
        }
    }
}
