//! What a configuration says of servers: where they are, how long they may take, what is believed of them.

mod keys;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use environments::EpisodeLimits;
use serde::{Deserialize, Serialize};

/// A server of `agentenv/1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "keys::ServerKeys", into = "keys::ServerKeys")]
pub struct ServerConfig {
    /// Its name here, in keys of tasks and in rollout files: letters, digits, `_`, `-` and `.`.
    pub name: String,
    /// Where it is.
    pub connect: Connect,
    /// How long it may take.
    pub deadlines: Deadlines,
    /// Bounds of an episode, in place of those that the server states.
    pub limits: Option<EpisodeLimits>,
    /// How often in a row it is started or connected to again without a session that was graded in between.
    pub max_restarts: u32,
    /// Pay what the server pays. Otherwise a reward below 1 is 0, and what the server said is the part `score`.
    pub partial_rewards: bool,
    /// Tasks that must pay nothing for garbage before the server is used.
    pub screened_tasks: u32,
}

/// A server of the Model Context Protocol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "keys::McpKeys", into = "keys::McpKeys")]
pub struct McpConfig {
    /// Its name: before the names of its tools where another server has a tool of the same name.
    pub name: String,
    /// A program, started anew for every session, or an HTTP address.
    pub connect: Connect,
    /// Which protocol it speaks.
    pub era: Era,
    /// How long it may take; `make_secs` and `grade_secs` are not used.
    pub deadlines: Deadlines,
}

/// Versions of the Model Context Protocol, as they differ for a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Era {
    /// Found out once, when the server is opened. A legacy server that passes over what it does not know takes 10 s.
    #[default]
    Auto,
    /// Up to 2025-11-25: `initialize`, and sessions.
    Legacy,
    /// From 2026-07-28: no sessions, `server/discover`.
    Modern,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq)]
pub enum Connect {
    /// A program that is started, on its standard input and output.
    Program(Program),
    /// A Unix socket.
    Socket(PathBuf),
    /// HTTP.
    Http(Address),
}

/// An HTTP address. There is no TLS: it should be this machine's own.
#[derive(Clone, Debug, PartialEq)]
pub struct Address {
    /// Such as `http://127.0.0.1:8000/mcp`.
    pub url: String,
    /// The variable of this program's environment that holds the bearer token, if the server asks for one.
    pub token_variable: Option<String>,
}

impl Address {
    /// The bearer token.
    ///
    /// # Errors
    /// The variable is not set.
    pub(crate) fn token(&self) -> Result<Option<String>, String> {
        let read = |name: &String| {
            std::env::var(name)
                .map_err(|_| format!("the variable {name} with the token is not set"))
        };
        self.token_variable.as_ref().map(read).transpose()
    }
}

/// A program to start.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Variables of its environment, beside PATH, HOME, LANG and TMPDIR; it sees no others.
    pub env: BTreeMap<String, String>,
    /// Where its standard error goes, appended; by default nowhere.
    pub log: Option<PathBuf>,
}

/// How long a server may take, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deadlines {
    /// Until it has started and said what it is.
    pub connect_secs: f64,
    /// To make a task.
    pub make_secs: f64,
    /// To open a session, attempts and waiting for room included.
    pub open_secs: f64,
    /// To run a tool, or to answer what the assistant said.
    pub call_secs: f64,
    /// To grade an episode.
    pub grade_secs: f64,
}

impl Default for Deadlines {
    fn default() -> Deadlines {
        Deadlines {
            connect_secs: 10.0,
            make_secs: 60.0,
            open_secs: 120.0,
            call_secs: 30.0,
            grade_secs: 300.0,
        }
    }
}

/// Longest deadline: a day.
const MAX_SECS: f64 = 86_400.0;

impl Deadlines {
    fn check(&self) -> Result<(), String> {
        for (key, secs) in [
            ("connect_secs", self.connect_secs),
            ("make_secs", self.make_secs),
            ("open_secs", self.open_secs),
            ("call_secs", self.call_secs),
            ("grade_secs", self.grade_secs),
        ] {
            if !(secs > 0.0 && secs <= MAX_SECS) {
                return Err(format!(
                    "{key} ({secs}) must lie above 0 and at most at {MAX_SECS}, a day"
                ));
            }
        }
        Ok(())
    }
}

/// A number of seconds that [`Deadlines::check`] has seen.
pub(crate) fn secs(secs: f64) -> Duration {
    Duration::from_secs_f64(secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_entry_is_read_and_written() {
        let written = json!({
            "name": "shop", "command": ["python3", "shop.py"], "deadlines": {"call_secs": 120.0}
        });
        let config: ServerConfig = serde_json::from_value(written).expect("sound");
        assert_eq!(config.deadlines.call_secs, 120.0);
        assert_eq!(config.deadlines.grade_secs, 300.0);
        assert!(!config.partial_rewards);
        let again = serde_json::to_value(&config).expect("it is plain data");
        assert_eq!(
            serde_json::from_value::<ServerConfig>(again).expect("sound"),
            config
        );
    }

    #[test]
    fn what_is_wrong_with_an_entry_is_said() {
        for (server, words) in [
            (json!({"name": "a"}), "one of `command`, `socket` and `url`"),
            (json!({"name": "a", "command": []}), "names no program"),
            (
                json!({"name": "a", "command": ["x"], "url": "http://y"}),
                "one of",
            ),
            (
                json!({"name": "a", "url": "https://y"}),
                "must begin with http://",
            ),
            (
                json!({"name": "a", "url": "http://y", "log": "z"}),
                "belong to a `command`",
            ),
            (
                json!({"name": "a", "command": ["x"], "token_variable": "T"}),
                "belongs to a `url`",
            ),
            (json!({"name": "a b", "command": ["x"]}), "letters, digits"),
            (
                json!({"name": "a", "command": ["x"], "colour": 1}),
                "unknown field `colour`",
            ),
            (
                json!({"name": "a", "command": ["x"], "deadlines": {"make_secs": 0.0}}),
                "make_secs (0) must lie above 0",
            ),
        ] {
            let error = serde_json::from_value::<ServerConfig>(server).expect_err("unsound");
            assert!(error.to_string().contains(words), "{error}");
        }
        let socket = json!({"name": "a", "socket": "/s"});
        assert!(serde_json::from_value::<McpConfig>(socket).is_err());
    }
}
