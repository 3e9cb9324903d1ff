//! An environment on a server, as tasks of ours.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use environments::{
    ExternalKey, ExternalTasks, Fault, FaultKind, OpenSession, Session, Split, Task,
};
use serde_json::{Value, json};

use crate::agentenv::server::{Live, Server};
use crate::agentenv::session::RemoteSession;
use crate::agentenv::wire::{CallError, Levels, Made, MadeTask, Make, Opened, shown};
use crate::config::{ServerConfig, secs};
use crate::screening::{self, Screened};

/// A server's environment can't be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The server does not run, or not as it should.
    #[error("{0}; its key `log` names a file for what it says, or run its command by hand to see")]
    Fault(#[from] Fault),
    /// It makes other tasks each time.
    #[error(
        "server {name} says that it is not deterministic; the same key must name the same task at every call"
    )]
    NotDeterministic {
        /// The server.
        name: String,
    },
    /// There is no such level.
    #[error("server {name} has levels {first} to {last}, not {level}")]
    Level {
        /// The server.
        name: String,
        /// Easiest.
        first: u32,
        /// Hardest.
        last: u32,
        /// Asked for.
        level: u32,
    },
    /// Its grader pays for nothing.
    #[error("server {name}: {screened}; no policy would learn the task, so it is refused")]
    Pays {
        /// The server.
        name: String,
        /// The task and the answer.
        screened: Screened,
    },
}

/// An environment on a server. Threads may share it; sessions of one server run at the same time.
#[derive(Debug)]
pub struct AgentEnv {
    server: Arc<Server>,
    version: u32,
    levels: Levels,
}

impl AgentEnv {
    /// Starts the server, or connects to it, and asks what it is. [`AgentEnv::open`] screens its tasks as well.
    ///
    /// # Errors
    /// It does not run, or is no server of this protocol.
    pub fn connect(config: &ServerConfig) -> Result<AgentEnv, OpenError> {
        let server = Arc::new(Server::new(config.clone()));
        let (_, described) = server.live()?;
        if !described.deterministic {
            let name = config.name.clone();
            return Err(OpenError::NotDeterministic { name });
        }
        Ok(AgentEnv {
            server,
            version: described.version,
            levels: described.levels,
        })
    }

    /// An environment whose tasks of these `levels` pay nothing for garbage, as far as the first
    /// [`screened_tasks`](ServerConfig::screened_tasks) of each level show.
    ///
    /// # Errors
    /// It does not run, has no such level, or pays.
    pub fn open(
        config: &ServerConfig,
        levels: impl IntoIterator<Item = u32>,
    ) -> Result<AgentEnv, OpenError> {
        let opened = AgentEnv::connect(config)?;
        let Levels { first, last } = opened.levels;
        let name = || config.name.clone();
        for level in levels {
            if !(first..=last).contains(&level) {
                return Err(OpenError::Level {
                    name: name(),
                    first,
                    last,
                    level,
                });
            }
            for seed in 0..u64::from(config.screened_tasks) {
                let task = opened.task(&opened.key(Split::Train, level, seed))?;
                if let Some(screened) = screening::paid_garbage(&task)? {
                    return Err(OpenError::Pays {
                        name: name(),
                        screened,
                    });
                }
            }
        }
        Ok(opened)
    }

    /// The key of a task.
    pub fn key(&self, split: Split, level: u32, seed: u64) -> ExternalKey {
        ExternalKey {
            environment: self.server.config.name.clone(),
            version: self.version,
            split,
            level,
            seed,
        }
    }

    /// Easiest and hardest level.
    pub fn levels(&self) -> (u32, u32) {
        (self.levels.first, self.levels.last)
    }

    /// Number of the server's process, where it is a program of ours and runs.
    pub fn process_id(&self) -> Option<u32> {
        self.server.process_id()
    }
}

impl ExternalTasks for AgentEnv {
    fn name(&self) -> &str {
        &self.server.config.name
    }

    fn version(&self) -> u32 {
        self.version
    }

    fn task(&self, key: &ExternalKey) -> Result<Task, Fault> {
        let (name, version) = (self.name(), self.version);
        if (&*key.environment, key.version) != (name, version) {
            let reason = format!("{key} is not of server {name}, which is at version {version}");
            return Err(Fault::new(FaultKind::Protocol, reason));
        }
        let (start, made) = make(&self.server, key)?;
        let seen = shown(&made.messages, &made.tools)
            .map_err(|problem| Fault::new(FaultKind::Protocol, format!("{key}: {problem}")))?;
        let limits = self.server.config.limits.or(made.limits);
        let opener = Arc::new(RemoteTask {
            server: self.server.clone(),
            key: key.clone(),
            made: Mutex::new((start, made)),
        });
        Ok(Task::external(
            key.clone(),
            seen.system,
            seen.question,
            seen.tools,
            limits.unwrap_or_default(),
            opener,
        ))
    }
}

/// The task as the server made it, and at which of its starts. Asked again where the server died over it: nothing is
/// changed by it.
fn make(server: &Server, key: &ExternalKey) -> Result<(u64, MadeTask), Fault> {
    let params = json!(Make {
        seed: key.seed,
        level: key.level,
        split: key.split,
    });
    let deadline = secs(server.config.deadlines.make_secs);
    let mut is_first = true;
    loop {
        let (live, _) = server.live()?;
        match live.ask("env/make", &params, deadline) {
            Ok(Made { task }) => return Ok((live.start, task)),
            Err(CallError::Lost(_)) if is_first => is_first = false,
            Err(error) => return Err(live.fault("env/make", &error)),
        }
    }
}

/// Opens the sessions of one task.
#[derive(Debug)]
struct RemoteTask {
    server: Arc<Server>,
    key: ExternalKey,
    /// At which start of the server, and what it made.
    made: Mutex<(u64, MadeTask)>,
}

impl OpenSession for RemoteTask {
    fn open(&self) -> Result<Box<dyn Session>, Fault> {
        const METHOD: &str = "env/open";
        let key = fresh_key();
        let give_up = Instant::now() + secs(self.server.config.deadlines.open_secs);
        let mut num_lost = 0;
        loop {
            let (live, _) = self.server.live()?;
            let made = self.made_by(&live)?;
            let params = json!({"task_id": made.id, "idempotency_key": key});
            let patience = give_up.saturating_duration_since(Instant::now());
            match live.ask::<Opened>(METHOD, &params, patience) {
                Ok(opened) => return self.session(live, &made, opened, &key),
                Err(CallError::Lost(_)) if num_lost == 0 => num_lost += 1,
                Err(error) => {
                    let wait = match &error {
                        CallError::Refused(refused) => refused.retry_after_ms(),
                        _ => None,
                    };
                    let wait = wait.map(Duration::from_millis);
                    match wait.filter(|wait| Instant::now() + *wait < give_up) {
                        Some(wait) => sleep(wait),
                        None => return Err(live.fault(METHOD, &error)),
                    }
                }
            }
        }
    }
}

impl RemoteTask {
    /// The task as this start of the server knows it.
    fn made_by(&self, live: &Live) -> Result<MadeTask, Fault> {
        let mut made = self.made.lock().expect("nothing panics under this lock");
        if made.0 != live.start {
            let (start, again) = make(&self.server, &self.key)?;
            let was = (&made.1.messages, &made.1.tools);
            if was != (&again.messages, &again.tools) {
                return Err(self.protocol("the same key gave another task after a restart"));
            }
            *made = (start, again);
        }
        Ok(made.1.clone())
    }

    fn session(
        &self,
        live: Arc<Live>,
        made: &MadeTask,
        opened: Opened,
        key: &str,
    ) -> Result<Box<dyn Session>, Fault> {
        let session = RemoteSession {
            server: self.server.clone(),
            live,
            id: opened.session,
            grade_key: format!("{key}-grade"),
            events: Vec::<Value>::new(),
            num_calls: 0,
        };
        // The policy was shown what the task says.
        if (&opened.messages, &opened.tools) != (&made.messages, &made.tools) {
            return Err(self.protocol("the session's messages or tools are not the task's"));
        }
        Ok(Box::new(session))
    }

    fn protocol(&self, problem: &str) -> Fault {
        Fault::new(FaultKind::Protocol, format!("{}: {problem}", self.key))
    }
}

/// A key that no other session has, of this process or another.
fn fresh_key() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanos = now.unwrap_or_default().as_nanos();
    format!("{}-{nanos}-{count}", std::process::id())
}
