//! Every fixed limit of the system, each with its reason. A limit that an operator may want to move is a setting whose
//! default stands here.

/// The longest event, in bytes with its terminator. A longer line is split into continuation events, or cut: one document of
/// more than this is of use to nobody and would make every later buffer larger.
pub const MAX_EVENT_BYTES: usize = 1 << 20;

/// The least that a rule may set as its longest event, in bytes: a document has fields of that size beside its message.
pub const MIN_EVENT_BYTES: usize = 1 << 10;

/// The same for files that container runtimes write, whose lines are 16 KiB of text that JSON can grow sixfold: a line
/// that is split can't be unwrapped.
pub const MIN_CONTAINER_EVENT_BYTES: usize = 128 << 10;

/// The most raw bytes in one chunk. One chunk is one allocation in agent, gateway and transfer.
pub const MAX_CHUNK_BYTES: usize = 1 << 20;

/// The most events in one chunk: a chunk of empty lines must not unfold into a million documents at once.
pub const MAX_CHUNK_EVENTS: usize = 16_384;

/// The largest gRPC message that a server or client decodes (tonic's default too).
pub const MAX_GRPC_MESSAGE_BYTES: usize = 4 << 20;

/// The largest record on the bus: JSON can grow a line sixfold (`\u0000`), and a header comes on top.
pub const MAX_RECORD_BYTES: usize = 8 << 20;

/// Unacked bytes that an agent holds in memory for one gateway connection.
pub const MAX_IN_FLIGHT_BYTES: u64 = 16 << 20;

/// The most events in one `Write` request.
pub const MAX_WRITE_EVENTS: usize = 10_000;

/// The longest rule name, topic name or label key, in bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// The longest path or glob in a rule, in bytes (Linux `PATH_MAX`).
pub const MAX_PATH_BYTES: usize = 4096;

/// The most path globs, and the most exclude globs, in one rule.
pub const MAX_RULE_PATHS: usize = 256;

/// The most files that one agent follows at a time.
pub const MAX_FILES: usize = 100_000;

/// The most files that an agent keeps open at a time.
pub const MAX_OPEN_FILES: usize = 1_024;

/// The largest page of any list or search.
pub const MAX_PAGE_SIZE: usize = 10_000;

/// The longest query text, in bytes, and the deepest nesting of it.
pub const MAX_QUERY_BYTES: usize = 16_384;
/// See [`MAX_QUERY_BYTES`].
pub const MAX_QUERY_DEPTH: usize = 64;

/// Watch streams and live tails that one server serves at a time.
pub const MAX_WATCHERS: usize = 20_000;

/// What one command has an agent read again at most: an answer's worth of ranges, and as many bytes as are sent in some seconds.
pub const MAX_READ_AGAIN_RANGES: usize = 1_000;
/// See [`MAX_READ_AGAIN_RANGES`].
pub const MAX_READ_AGAIN_BYTES: usize = 64 << 20;
