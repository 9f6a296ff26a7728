//! Rules: how they and their history are stored, the view of all of them, and the API.

mod api;
mod filter;
mod history;
mod mask;
mod stored;
mod view;
mod write;

pub(crate) use api::RuleApi;
pub(crate) use view::{RuleSet, RuleView};
