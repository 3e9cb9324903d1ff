//! Environments that others wrote, as tasks and sessions of ours.
//!
//! [`agentenv`] speaks our own protocol, `agentenv/1`, with a program, a Unix socket or an HTTP address: such a server
//! makes tasks, runs their sessions and grades them. [`mcp`] speaks the Model Context Protocol: such a server has tools
//! only, which a task of ours is given ([`mcp::Servers::equip`]). [`rubric`] has a language model grade answers by a
//! rubric. [`screening`] refuses tasks that pay for garbage.
//! What goes wrong on the other side is a [`Fault`](environments::Fault): the sample is invalid, never worth 0.
//!
//! The server is trusted as any program is that one starts oneself; nothing here is a sandbox.

pub mod agentenv;
pub mod config;
pub mod mcp;
mod program;
pub mod rubric;
mod runtime;
pub mod screening;

pub use agentenv::{AgentEnv, OpenError};
pub use config::{Address, Connect, Deadlines, Era, McpConfig, Program, ServerConfig};
pub use rubric::{Rubric, RubricConfig, RubricError, RubricGrader};
