//! Agents: who is connected, what they shall collect, and what they say of it.

mod commands;
mod config_api;
mod fleet_api;
mod mailbox;
mod merged;
mod preview;
mod registry;
mod report;
mod session;

pub(crate) use commands::Commands;
pub(crate) use config_api::AgentConfigApi;
pub(crate) use fleet_api::FleetApi;
pub(crate) use preview::Previews;
pub(crate) use registry::Registry;
