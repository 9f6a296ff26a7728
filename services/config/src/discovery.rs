//! Discovery: servers register for as long as they live, and others are told which there are.

mod api;
mod campaign;
mod endpoint;
mod register;

pub(crate) use api::DiscoveryApi;
pub(crate) use endpoint::{Endpoints, entry};
pub(crate) use register::Registration;
