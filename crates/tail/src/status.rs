//! What the tailer says of itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use logmesh_types::{ByteRange, RuleName, StreamId, TopicName, UnixNanos};

/// How far a stream is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStatus {
    /// The stream.
    pub stream: StreamId,
    /// Where the file lies, as last seen.
    pub path: PathBuf,
    /// The rule that owns it.
    pub rule: RuleName,
    /// Where its events go.
    pub topic: TopicName,
    /// The first byte that was to be collected.
    pub start: u64,
    /// The file's size, as last seen.
    pub size: u64,
    /// Read up to here.
    pub read: u64,
    /// Durable at the centre up to here.
    pub acked: u64,
    /// Since when the oldest byte waits that isn't acked.
    pub waiting_since: Option<UnixNanos>,
    /// What it is doing.
    pub state: FileState,
    /// What keeps it from going on, or did last.
    pub error: Option<String>,
    /// How fast it was read of late, rounded; 0 when nothing was for [`RATE_MEMORY`].
    pub bytes_per_second: u64,
    /// What isn't acked may be gone before it is: it has lost its name, or at the pace of late it takes longer than the
    /// file's rotation or truncation leaves time for.
    pub at_risk: bool,
    /// Bytes that were gone before they could be collected.
    pub lost_bytes: u64,
    /// Where they were, as far as that was kept: of a file at most [`MAX_LOSSES`] ranges are.
    pub losses: Vec<Loss>,
}

/// The rate of a file that wasn't read for so long is told as 0.
pub const RATE_MEMORY: Duration = Duration::from_secs(30);

/// The most ranges of lost bytes that are kept of a file; beyond it they're only counted.
pub const MAX_LOSSES: usize = 256;

/// Bytes of a stream that were gone before they could be collected.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Loss {
    /// Where they were in the stream.
    pub range: ByteRange,
    /// What became of them.
    pub cause: LossCause,
    /// When that was noticed.
    pub noted: UnixNanos,
}

/// How bytes were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum LossCause {
    /// The file was truncated, or written anew, before they were acked.
    Truncated,
    /// The file was cut short, above the place where it was read: what is written there later is other bytes.
    CutShort,
    /// The file was deleted, or moved out of reach, before they were acked.
    Gone,
    /// They were sent, and before they were acked the file was truncated and the process ended: they may have arrived.
    Unacked,
}

impl LossCause {
    /// What happened, in words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Truncated => "the file was truncated or written anew before they were read",
            Self::CutShort => "the file was cut short before they were read",
            Self::Gone => "the file was gone before they were read",
            Self::Unacked => "the file was truncated and the agent ended before they were acked",
        }
    }
}

impl FileStatus {
    /// Bytes that aren't durable at the centre yet.
    pub fn lag(&self) -> u64 {
        self.size.saturating_sub(self.acked)
    }
}

/// What a stream is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileState {
    /// It is read as it grows.
    Active,
    /// The file has gone from its path, or was written anew: what is left of this generation is being sent.
    Draining,
    /// It can't be read or sent now; see the error.
    Blocked,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleStatus {
    /// Its name.
    pub name: RuleName,
    /// The revision that runs.
    pub running_revision: i64,
    /// Files that it owns and that are read as another rule or revision says until what was sent of them is acked; the
    /// least revision of this rule by which one is read, if there is one.
    pub waiting: usize,
    /// See [`RuleStatus::waiting`].
    pub earliest_revision: Option<i64>,
    /// How fast its files were read of late, in lines and bytes, rounded; 0 when nothing was for [`RATE_MEMORY`].
    pub lines_per_second: u64,
    /// See [`RuleStatus::lines_per_second`].
    pub bytes_per_second: u64,
    /// Bytes of its files that aren't durable at the centre yet.
    pub lag_bytes: u64,
    /// Lines that the container format or the encoding couldn't read, since the rule reads as it does.
    pub decode_errors: u64,
    /// Files that it owns.
    pub files: usize,
    /// Files that it matches and another rule owns.
    pub shadowed: usize,
    /// The rules that own those, by name, at most [`MAX_OWNERS`].
    pub shadowed_by: Vec<RuleName>,
    /// Files that it matches and that can't or mustn't be read.
    pub refused: usize,
    /// Those by reason, as in [`FileProblem::reason`].
    pub refused_by: BTreeMap<&'static str, usize>,
    /// Why some files aren't read, at most [`MAX_PROBLEMS`].
    pub problems: Vec<FileProblem>,
}

/// The most owners that are listed for a rule of which files belong to others.
pub const MAX_OWNERS: usize = 20;

/// The most problems that are listed for a rule; all are counted.
pub const MAX_PROBLEMS: usize = 20;

/// Why a file isn't read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileProblem {
    /// Its path.
    pub path: PathBuf,
    /// A stable name: `SHADOWED`, `NOT_ALLOWED`, `NOT_A_REGULAR_FILE`, `UNREADABLE`, `BINARY`, `COMPRESSED`,
    /// `IGNORED_OLDER`, `TOO_MANY_FILES`, …
    pub reason: &'static str,
    /// In words; for `SHADOWED` the owner's name.
    pub detail: String,
}

/// Numbers over all files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Files that are followed.
    pub files: usize,
    /// Files that are held open.
    pub open_files: usize,
    /// Bytes and chunks that were handed out and aren't acked.
    pub in_flight_bytes: u64,
    /// See [`Totals::in_flight_bytes`].
    pub in_flight_chunks: usize,
    /// Bytes that were read since the start.
    pub read_bytes: u64,
    /// Events that were read since the start.
    pub read_events: u64,
    /// Events that were ended by their size since the start: what follows is marked as a continuation.
    pub split_events: u64,
    /// Lines of which only the start was sent since the start.
    pub cut_events: u64,
    /// Lines that the container format or the encoding couldn't read since the start.
    pub decode_errors: u64,
    /// Bytes that were acked since the start.
    pub acked_bytes: u64,
    /// Bytes that are known to have gone unread since the start, and those of vanished files that were found again later.
    pub lost_bytes: u64,
    /// Truncations that were seen since the start.
    pub truncations: u64,
    /// Transactions of the state since the start.
    pub commits: u64,
}
