//! Servers as a configuration writes them: where a server is takes one of several keys.

use std::collections::BTreeMap;
use std::path::PathBuf;

use environments::EpisodeLimits;
use serde::{Deserialize, Serialize};

use super::{Address, Connect, Deadlines, Era, McpConfig, Program, ServerConfig};

/// The keys of a server as they are written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServerKeys {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    command: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    socket: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token_variable: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log: Option<PathBuf>,
    #[serde(default)]
    deadlines: Deadlines,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limits: Option<EpisodeLimits>,
    #[serde(default = "three")]
    max_restarts: u32,
    #[serde(default)]
    partial_rewards: bool,
    #[serde(default = "eight")]
    screened_tasks: u32,
}

/// The keys of a server with tools only.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct McpKeys {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    command: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token_variable: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log: Option<PathBuf>,
    #[serde(default)]
    era: Era,
    #[serde(default)]
    deadlines: Deadlines,
}

fn three() -> u32 {
    3
}

fn eight() -> u32 {
    8
}

fn check_name(name: &str) -> Result<(), String> {
    let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    match !name.is_empty() && name.len() <= 64 && name.bytes().all(is_sound) {
        true => Ok(()),
        false => Err(format!(
            "the name {name:?} must be 1 to 64 letters, digits, `_`, `-` or `.`"
        )),
    }
}

/// The keys that say where a server is.
#[derive(Default)]
struct Place {
    command: Option<Vec<String>>,
    socket: Option<PathBuf>,
    url: Option<String>,
    token_variable: Option<String>,
    env: BTreeMap<String, String>,
    log: Option<PathBuf>,
}

impl TryFrom<Place> for Connect {
    type Error = String;

    fn try_from(place: Place) -> Result<Connect, String> {
        let is_program = place.command.is_some();
        if !is_program && (!place.env.is_empty() || place.log.is_some()) {
            return Err("`env` and `log` belong to a `command`".to_string());
        }
        if place.url.is_none() && place.token_variable.is_some() {
            return Err("`token_variable` belongs to a `url`".to_string());
        }
        match (place.command, place.socket, place.url) {
            (Some(command), None, None) if command.is_empty() => {
                Err("`command` names no program".to_string())
            }
            (Some(command), None, None) => Ok(Connect::Program(Program {
                command,
                env: place.env,
                log: place.log,
            })),
            (None, Some(socket), None) => Ok(Connect::Socket(socket)),
            (None, None, Some(url)) if url.starts_with("http://") => Ok(Connect::Http(Address {
                url,
                token_variable: place.token_variable,
            })),
            (None, None, Some(url)) => Err(format!("`url` ({url}) must begin with http://")),
            _ => Err("a server has one of `command`, `socket` and `url`".to_string()),
        }
    }
}

impl From<Connect> for Place {
    fn from(connect: Connect) -> Place {
        let mut place = Place::default();
        match connect {
            Connect::Program(program) => {
                place.command = Some(program.command);
                (place.env, place.log) = (program.env, program.log);
            }
            Connect::Socket(path) => place.socket = Some(path),
            Connect::Http(address) => {
                (place.url, place.token_variable) = (Some(address.url), address.token_variable);
            }
        }
        place
    }
}

impl TryFrom<ServerKeys> for ServerConfig {
    type Error = String;

    fn try_from(keys: ServerKeys) -> Result<ServerConfig, String> {
        check_name(&keys.name)?;
        keys.deadlines.check()?;
        let place = Place {
            command: keys.command,
            socket: keys.socket,
            url: keys.url,
            token_variable: keys.token_variable,
            env: keys.env,
            log: keys.log,
        };
        Ok(ServerConfig {
            connect: place.try_into()?,
            name: keys.name,
            deadlines: keys.deadlines,
            limits: keys.limits,
            max_restarts: keys.max_restarts,
            partial_rewards: keys.partial_rewards,
            screened_tasks: keys.screened_tasks,
        })
    }
}

impl From<ServerConfig> for ServerKeys {
    fn from(server: ServerConfig) -> ServerKeys {
        let place = Place::from(server.connect);
        ServerKeys {
            name: server.name,
            command: place.command,
            socket: place.socket,
            url: place.url,
            token_variable: place.token_variable,
            env: place.env,
            log: place.log,
            deadlines: server.deadlines,
            limits: server.limits,
            max_restarts: server.max_restarts,
            partial_rewards: server.partial_rewards,
            screened_tasks: server.screened_tasks,
        }
    }
}

impl TryFrom<McpKeys> for McpConfig {
    type Error = String;

    fn try_from(keys: McpKeys) -> Result<McpConfig, String> {
        check_name(&keys.name)?;
        keys.deadlines.check()?;
        let place = Place {
            command: keys.command,
            socket: None,
            url: keys.url,
            token_variable: keys.token_variable,
            env: keys.env,
            log: keys.log,
        };
        Ok(McpConfig {
            connect: place.try_into()?,
            name: keys.name,
            era: keys.era,
            deadlines: keys.deadlines,
        })
    }
}

impl From<McpConfig> for McpKeys {
    fn from(server: McpConfig) -> McpKeys {
        let place = Place::from(server.connect);
        McpKeys {
            name: server.name,
            command: place.command,
            url: place.url,
            token_variable: place.token_variable,
            env: place.env,
            log: place.log,
            era: server.era,
            deadlines: server.deadlines,
        }
    }
}
