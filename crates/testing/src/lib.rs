//! What tests share: waiting for a condition, folders that stay when a test fails, and real servers. A dev-dependency only.

mod folder;
pub mod servers;
mod wait;

pub use folder::Folder;
pub use wait::{wait_for, wait_for_async};
