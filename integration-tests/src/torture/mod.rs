//! The torture of one agent: files suffer what programs, rotation and people do to them, while the agent and the mesh
//! are killed and frozen. What happens follows from a seed.

mod agent;
mod attention;
mod centre;
mod disk;
mod judge;
mod ledger;
mod writer;

pub use agent::AgentProcess;
pub use attention::Attention;
pub use centre::Centre;
pub use disk::SmallDisk;
pub use judge::{Report, judge};
pub use ledger::{Ledger, Line};
pub use writer::{Habit, TortureWriter};
