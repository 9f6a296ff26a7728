//! What the service takes at most, each with its reason.

use std::time::Duration;

/// All rules together, as stored JSON. So that the whole set fits one message of `WatchRules` or `WatchConfig` (4 MiB).
pub(crate) const MAX_RULES_BYTES: usize = 3 << 20;

/// One rule as stored. It's written together with its place in the history, and once with its former state, and etcd takes
/// 1.5 MiB in a transaction.
pub(crate) const MAX_RULE_BYTES: usize = 256 << 10;

/// What is kept of a rule's history: so many changes, and fewer if they take more bytes than this. The newest is always
/// kept.
pub(crate) const MAX_HISTORY: usize = 100;
pub(crate) const MAX_HISTORY_BYTES: usize = 1 << 20;

/// Who changed a rule and why, in bytes, as the protos say.
pub(crate) const MAX_AUTHOR_BYTES: usize = 128;
pub(crate) const MAX_REASON_BYTES: usize = 1 << 10;

/// Problems with stored rules that are told, and the longest text of one in bytes: a message that carries all rules must
/// have room for them.
pub(crate) const MAX_PROBLEMS: usize = 256;
pub(crate) const MAX_PROBLEM_BYTES: usize = 512;

/// A page of a list ends at this size, for the same reason.
pub(crate) const MAX_PAGE_BYTES: usize = 2 << 20;

/// The largest page of a list, as the protos say.
pub(crate) const MAX_PAGE: usize = 1000;

/// Labels of one agent, and the longest value in bytes (`ip` may hold many addresses).
pub(crate) const MAX_LABELS: usize = 64;
pub(crate) const MAX_LABEL_BYTES: usize = 4096;

/// The longest session and version text of an agent, in bytes.
pub(crate) const MAX_SESSION_BYTES: usize = 128;

/// All rules by number: as many as an agent that all of them are for can tell of.
pub(crate) const MAX_RULES: usize = MAX_AGENT_RULES;

/// Rules that one agent may say it holds or report on, and the size of one such report; what is beyond is cut from its
/// list of problems.
pub(crate) const MAX_AGENT_RULES: usize = 2000;
pub(crate) const MAX_RULE_STATUS_BYTES: usize = 4 << 10;

/// Ranges of lost bytes that are kept of a stream: as many as an agent tells of a file.
pub(crate) const MAX_LOST_RANGES: usize = 256;

/// Error texts in reports are cut here, in bytes.
pub(crate) const MAX_REPORT_TEXT_BYTES: usize = 1 << 10;

/// Endpoints of all kinds.
pub(crate) const MAX_ENDPOINTS: usize = 1000;

/// The longest address, in bytes: a host name of 253 and a port.
pub(crate) const MAX_ADDRESS_BYTES: usize = 260;

/// How long a caller of `Register` may take to say what it registers.
pub(crate) const FIRST_MESSAGE: Duration = Duration::from_secs(10);

/// How often an update without an etag is tried when others write the same rule.
pub(crate) const UPDATE_ATTEMPTS: usize = 8;

/// Other config services that are asked at a time, and how long one of them may take to answer: a page of a thousand
/// agents takes some tens of milliseconds, and who waits for a dead one waits in vain.
pub(crate) const PEERS_AT_A_TIME: usize = 16;
pub(crate) const PEER_TIMEOUT: Duration = Duration::from_secs(2);

/// Agents that are asked something at a time, by all callers; and how long they have to answer what a rule would do: three
/// seconds to look, and the way there and back.
pub(crate) const COMMANDS_AT_A_TIME: usize = 256;
pub(crate) const PREVIEW_TIME: Duration = Duration::from_secs(5);

/// How long an agent has for what it reads again: 20 s until the last of it is acked, and the way there and back.
pub(crate) const READ_AGAIN_TIME: Duration = Duration::from_secs(25);

/// Files that an agent shows of what a rule would match, and pairs of rules between which files would move.
pub(crate) const MAX_PREVIEW_FILES: usize = 20;

/// One-time messages that wait for a connected agent to take them.
pub(crate) const MAX_WAITING_MESSAGES: usize = 16;

/// Agents that are taken from the store: five times as many as one server serves.
pub(crate) const MAX_KNOWN_AGENTS: usize = 100_000;

/// Agents that are written in one transaction, far below what a store takes, how large one's record may be, and how long
/// further ones are waited for. Ten thousand that come at once are written in a hundred transactions.
pub(crate) const MAX_AGENTS_WRITTEN: usize = 100;
pub(crate) const MAX_AGENT_BYTES: usize = 12 << 10;
pub(crate) const GATHER: Duration = Duration::from_millis(50);

/// Sessions in one message of `WatchSessions`, at most some 250 bytes each.
pub(crate) const MAX_SESSIONS_TOLD: usize = 5_000;

/// The pause between two messages of `WatchSessions`: connections that come together are told together.
pub(crate) const SESSIONS_PAUSE: Duration = Duration::from_millis(20);

/// Streams of `WatchAgents` at a time: each looks at all agents of all servers once a second.
pub(crate) const MAX_AGENT_WATCHES: usize = 32;

/// How often a stream of `WatchAgents` looks.
pub(crate) const AGENTS_LOOK: Duration = Duration::from_secs(1);

/// How long a server may wait until it knows a revision that the caller has seen elsewhere.
pub(crate) const REVISION_WAIT: Duration = Duration::from_millis(1500);
