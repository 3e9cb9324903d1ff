//! `agentenv/1`: tasks, sessions and verdicts of another program, over JSON-RPC 2.0. `docs/agentenv.md` is the protocol.
//!
//! ```text
//! start -> env/describe;  task: env/make;  session: env/open -> (tools/call | env/observe)* -> env/grade -> env/close
//! ```
//!
//! A call of a tool is sent once: it may have changed the world even where no reply came. Opening and grading are
//! repeated under the same idempotency key. A server that dies takes its own sessions along, and the next session gets
//! a new one.

mod channel;
mod environment;
mod lines;
mod server;
mod session;
mod wire;

pub use environment::{AgentEnv, OpenError};
