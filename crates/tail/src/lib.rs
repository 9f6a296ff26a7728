//! Follows files and cuts what they grow by into chunks, so that no line is lost and none is doubled.
//!
//! No sockets and no async: a thread drives a [`Collector`], sends the chunks that it gives out, and tells it what was
//! acked. Files are opened only through [`pathguard`].

mod chunk;
mod collector;
mod follow;
mod framing;
mod losses;
mod pace;
pub mod pathguard;
mod pool;
mod preview;
mod rule;
mod state;
mod status;
mod walk;
mod watch;

pub use chunk::{Chunk, Source};
pub use collector::{Collector, OpenError, Settings};
pub use follow::{Again, NotAgain, NotAgainCause, Recall};
pub use framing::{FramingSpec, Pattern};
pub use logmesh_glob::{GlobError, PathGlob};
pub use preview::{FilePreview, MAX_CHANGES, MAX_SAMPLE, Preview, preview};
pub use rule::{Pace, RuleError, StartAt, TailRule};
pub use state::{FILE_NAME as STATE_FILE, StateError};
pub use status::{
    FileProblem, FileState, FileStatus, Loss, LossCause, MAX_LOSSES, MAX_OWNERS, MAX_PROBLEMS, RATE_MEMORY, RuleStatus,
    Totals,
};
pub use watch::Waker;
