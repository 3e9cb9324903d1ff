//! Clients against servers that run here: no network beyond this machine's own ports.

mod agentenv;
mod faults;
mod mcp;
mod places;
mod reasoning_gym;
mod rubric;
