//! Tools of servers of the Model Context Protocol, for tasks of ours, through the official client `rmcp`.
//!
//! ```text
//! open: connect, list the tools, close.   session: connect to every server -> calls -> verify of the task -> close
//! ```
//!
//! Such servers keep their state as they like, so a session has connections of its own, and a program is started anew
//! for each. A result with `isError` is for the policy to read; an error of the protocol or of the transport is a fault.

mod connection;
mod names;
mod session;

use std::sync::Arc;

use environments::{Fault, FaultKind, OpenSession, Session, Task, ToolDef};

use crate::config::McpConfig;
use connection::Server;
use session::McpSession;

/// Servers, and what their tools are called here. Threads may share it.
#[derive(Debug)]
pub struct Servers {
    servers: Vec<Server>,
    tools: Vec<Offered>,
}

/// A tool.
#[derive(Clone, Debug)]
pub(crate) struct Offered {
    /// As the policy is told of it.
    pub(crate) def: ToolDef,
    /// Whose it is.
    pub(crate) server: usize,
    /// Its name there.
    pub(crate) name: String,
}

impl Servers {
    /// Connects to every server once and lists its tools.
    ///
    /// # Errors
    /// One that can't be reached or speaks nonsense, servers of the same name, tools that can't be told apart.
    pub fn open(configs: &[McpConfig]) -> Result<Servers, Fault> {
        let servers: Vec<Server> = configs.iter().cloned().map(Server::new).collect();
        let mut listed = Vec::with_capacity(servers.len());
        for server in &servers {
            listed.push((server.name(), server.connect()?.tools()?));
        }
        let tools =
            names::offered(listed).map_err(|problem| Fault::new(FaultKind::Protocol, problem))?;
        Ok(Servers { servers, tools })
    }

    /// The tools, in the order of the servers.
    pub fn tools(&self) -> Vec<ToolDef> {
        self.tools.iter().map(|tool| tool.def.clone()).collect()
    }

    /// `task`, a task of one turn, with these tools: its sessions call them, and grade as the task did.
    pub fn equip(self: &Arc<Self>, task: Task) -> Task {
        let opener = Arc::new(Equipped {
            servers: self.clone(),
            task: task.clone(),
        });
        task.with_tools(self.tools(), opener)
    }
}

/// Opens the sessions of one task.
#[derive(Debug)]
struct Equipped {
    servers: Arc<Servers>,
    task: Task,
}

impl OpenSession for Equipped {
    fn open(&self) -> Result<Box<dyn Session>, Fault> {
        let connections = self.servers.servers.iter().map(Server::connect);
        Ok(Box::new(McpSession {
            connections: connections.collect::<Result<_, Fault>>()?,
            servers: self.servers.clone(),
            task: self.task.clone(),
        }))
    }
}
