//! Keeps a server alive: starts it when it is first needed and again when it died, so many times in a row.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use environments::{Fault, FaultKind};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::agentenv::channel::Channel;
use crate::agentenv::wire::{CallError, Description, PROTOCOL};
use crate::config::{ServerConfig, secs};

/// See the module.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) config: ServerConfig,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    live: Option<Arc<Live>>,
    /// Starts so far.
    num_starts: u64,
    /// Starts after the first, since a session was last graded.
    num_restarts: u32,
    /// What it said of itself at the first start.
    description: Option<Description>,
}

/// A server as it was started once: its sessions live and die with it.
#[derive(Debug)]
pub(crate) struct Live {
    name: String,
    pub(crate) channel: Channel,
    /// Which start this was, from 1.
    pub(crate) start: u64,
    /// It let somebody wait in vain.
    is_suspect: AtomicBool,
}

impl Server {
    pub(crate) fn new(config: ServerConfig) -> Server {
        Server {
            config,
            state: Mutex::default(),
        }
    }

    /// The server, running, and what it says of itself.
    ///
    /// # Errors
    /// It can't be started, died too often, or became another.
    pub(crate) fn live(&self) -> Result<(Arc<Live>, Description), Fault> {
        let mut state = self.state();
        if let Some(live) = &state.live
            && !self.is_sound(live)
        {
            live.channel.kill();
            state.live = None;
        }
        let live = match &state.live {
            Some(live) => live.clone(),
            None => self.start(&mut state)?,
        };
        let described = state.description.clone().expect("it has started");
        Ok((live, described))
    }

    /// A session was graded: what went wrong before no longer counts.
    pub(crate) fn has_graded(&self) {
        self.state().num_restarts = 0;
    }

    /// Number of its process, while it runs.
    pub(crate) fn process_id(&self) -> Option<u32> {
        let state = self.state();
        let live = state.live.as_ref()?;
        live.channel.process_id()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under this lock")
    }

    /// One that let somebody wait must say at once what it is.
    fn is_sound(&self, live: &Live) -> bool {
        if live.channel.has_ended() {
            return false;
        }
        if !live.is_suspect.load(Ordering::Relaxed) {
            return true;
        }
        let patience = secs(self.config.deadlines.connect_secs);
        let answers = live.channel.request("env/describe", &json!({}), patience);
        live.is_suspect.store(false, Ordering::Relaxed);
        answers.is_ok()
    }

    fn start(&self, state: &mut State) -> Result<Arc<Live>, Fault> {
        let name = &self.config.name;
        if state.num_starts > 0 {
            if state.num_restarts == self.config.max_restarts {
                let reason = format!(
                    "server {name} ended or hung {} times without a graded session in between; `log` shows its \
                     standard error",
                    state.num_restarts + 1
                );
                return Err(Fault::new(FaultKind::Infra, reason));
            }
            state.num_restarts += 1;
        }
        state.num_starts += 1;
        let channel = Channel::open(&self.config.connect)
            .map_err(|error| Fault::new(FaultKind::Infra, format!("server {name}: {error}")))?;
        let live = Arc::new(Live {
            name: name.clone(),
            channel,
            start: state.num_starts,
            is_suspect: AtomicBool::new(false),
        });
        let patience = secs(self.config.deadlines.connect_secs);
        let described: Description = live
            .ask("env/describe", &json!({}), patience)
            .map_err(|error| error.fault(name, "env/describe"))?;
        if described.protocol != PROTOCOL {
            let reason = format!(
                "server {name} speaks {:?}, not {PROTOCOL}",
                described.protocol
            );
            return Err(Fault::new(FaultKind::Protocol, reason));
        }
        let known = state.description.get_or_insert_with(|| described.clone());
        if *known != described {
            let reason = format!(
                "server {name} is {} version {} since it was started again, and was {} version {}",
                described.name, described.version, known.name, known.version
            );
            return Err(Fault::new(FaultKind::Protocol, reason));
        }
        state.live = Some(live.clone());
        Ok(live)
    }
}

impl Live {
    /// Asks, and reads the reply as a `T`.
    pub(crate) fn ask<T: DeserializeOwned>(
        &self,
        method: &str,
        params: &Value,
        deadline: Duration,
    ) -> Result<T, CallError> {
        let reply = self.channel.request(method, params, deadline);
        if let Err(CallError::Timeout) = reply {
            self.is_suspect.store(true, Ordering::Relaxed);
        }
        // The error names a field, and may quote what stands there: only where in the reply it is, is kept.
        serde_json::from_value(reply?).map_err(|error| {
            let words = error.to_string();
            let field = words.split('`').nth(1).unwrap_or("a field of another type");
            CallError::Nonsense(format!("the reply is not what it should be: {field}"))
        })
    }

    /// The fault that `error` is.
    pub(crate) fn fault(&self, method: &str, error: &CallError) -> Fault {
        error.fault(&self.name, method)
    }
}
