//! gRPC for all of logmesh: servers with every limit set, reflection and health; channels that notice a silent peer; calls
//! passed on to another server; and one way to say what was wrong, a misspelt topic included.
//!
//! Nothing here knows what a service does, but that config knows which topics rules write to.

mod candidate;
mod channel;
mod incoming;
pub mod limits;
mod registration;
mod routes;
mod server;
mod shed;
mod status;
mod topics;
mod upstream;

pub use candidate::{Candidate, Term};
pub use channel::{AddressError, channel, check_address};
pub use registration::Registration;
pub use routes::Routes;
pub use server::{ServeError, serve};
pub use shed::{Load, Shed};
pub use status::{
    FieldViolation, aborted, already_exists, bad_field, come_again, data_loss, describe, failed_precondition,
    innermost, internal, invalid_argument, not_found, page_size, permission_denied, reason, resource_exhausted,
    unavailable,
};
pub use topics::{check_topic, missing_topics, no_topic, refuse_topics, rules, topics_of_rules};
pub use upstream::{Choice, Upstream};

#[cfg(test)]
mod tests;
