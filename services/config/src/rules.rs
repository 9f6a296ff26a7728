//! Rules: how they're stored, the view of all of them, and the API.

mod api;
mod mask;
mod stored;
mod view;

pub(crate) use api::RuleApi;
pub(crate) use view::{RuleSet, RuleView};
