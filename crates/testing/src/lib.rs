//! What tests share: waiting for a condition, folders that stay when a test fails, damaged files, real servers, and a
//! door before one of them that gives bulks another end. A dev-dependency only.

mod damage;
pub mod faults;
mod folder;
pub mod servers;
mod wait;

pub use damage::flip_pages;
pub use folder::Folder;
pub use wait::{wait_for, wait_for_async};
