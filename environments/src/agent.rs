//! Tasks for agents: tools over a database that only they see. One file or folder per family.

pub(crate) mod lookup;
pub mod measured;
mod names;
pub(crate) mod order_desk;
pub(crate) mod trip_planner;
