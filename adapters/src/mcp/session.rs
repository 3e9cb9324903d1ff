//! A session of a task with tools of servers.

use std::sync::Arc;

use environments::{Called, Fault, FaultKind, Session, Task, Verdict};
use serde_json::{Map, Value};

use crate::mcp::Servers;
use crate::mcp::connection::Connection;

pub(crate) struct McpSession {
    pub(crate) servers: Arc<Servers>,
    /// One for every server.
    pub(crate) connections: Vec<Connection>,
    /// The task without tools, which grades.
    pub(crate) task: Task,
}

impl Session for McpSession {
    fn call(&mut self, name: &str, arguments: &Map<String, Value>) -> Result<Called, Fault> {
        let offered = self.servers.tools.iter().find(|tool| tool.def.name == name);
        let offered = offered
            .ok_or_else(|| Fault::new(FaultKind::Protocol, format!("no server has tool {name}")))?;
        let connection = &self.connections[offered.server];
        Ok(connection.call(&offered.name, arguments)?.into())
    }

    fn grade(&mut self, answer: &str) -> Result<Verdict, Fault> {
        Ok(self.task.verify(answer))
    }
}
