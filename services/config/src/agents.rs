//! Agents: who is connected, what they shall collect, and what they say of it.

mod commands;
mod config_api;
mod doubles;
mod filter;
mod fleet_api;
mod keeper;
mod labels;
mod mailbox;
mod merged;
mod preview;
mod registry;
mod report;
mod reread;
mod session;
mod statuses;
mod stored;
mod wanted;
mod watch;

pub(crate) use commands::Commands;
pub(crate) use config_api::AgentConfigApi;
pub(crate) use doubles::follow as follow_sessions;
pub(crate) use fleet_api::FleetApi;
pub(crate) use keeper::Keeper;
pub(crate) use merged::Fleet;
pub(crate) use preview::Previews;
pub(crate) use registry::Registry;
pub(crate) use wanted::follow as follow_rules;
