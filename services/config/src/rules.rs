//! Rules: how they and their history are stored, the view of all of them, and the API.

mod api;
mod filter;
mod history;
mod live;
mod mask;
mod seed;
mod stored;
mod view;
mod write;

pub(crate) use api::RuleApi;
pub(crate) use live::{LiveRule, RuleSet};
pub(crate) use seed::SeedView;
pub(crate) use view::RuleView;
