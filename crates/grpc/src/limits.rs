//! Every limit of our gRPC servers and channels, each with its reason.

use std::time::Duration;

/// Connections that a server holds at a time: ten thousand agents and their clients, each for some tens of KiB. Further
/// ones wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 12_000;

/// Calls under way on one connection. The console passes its clients' streams on over one; more than this queue up at
/// the caller.
pub const MAX_STREAMS: u32 = 1_024;

/// Bytes of a request's headers.
pub const MAX_HEADER_BYTES: u32 = 16 << 10;

/// Bytes of one call under way without the reader having asked for more: one chunk and its frame, so that a chunk is sent
/// without a pause.
pub const STREAM_WINDOW: u32 = 2 << 20;

/// The same for all calls of a connection.
pub const CONNECTION_WINDOW: u32 = 8 << 20;

/// A side that heard nothing for this long asks whether the other still lives …
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// … and gives the connection up when no answer came for this long. (A pulled cable is noticed within 15 s.)
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may take to be made.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long calls may go on after the server was asked to end. Services end their streams at the same token, so this is
/// for those that hang.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// The wait after a connection couldn't be accepted, mostly for want of file descriptors.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
