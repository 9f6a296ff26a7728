//! What tests share: waiting for a condition, and folders that stay when a test fails. A dev-dependency only.

mod folder;
mod wait;

pub use folder::Folder;
pub use wait::{wait_for, wait_for_async};
