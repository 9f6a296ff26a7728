//! Every metric that a process of the mesh may have: its name, kind, labels and meaning, in one place.
//!
//! `/metrics` describes them from here, and `docs/reference/metrics.md` is made of it. Names follow Prometheus' rules: the unit
//! is in the name, what only grows ends in `_total`.

/// What a metric is to Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from 0 at the start of the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How often values of which size were seen.
    Histogram,
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// The names of its labels. The values of each are few and known beforehand, but for topics.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($const:ident = $kind:ident $name:literal $([$($label:literal),+])? $help:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "`: ", $help, ".")]
            pub const $const: &str = $name;
        )*

        /// All of them, by name.
        pub const ALL: &[Metric] = &[
            $(Metric { name: $name, kind: Kind::$kind, labels: &[$($($label),+)?], help: $help },)*
        ];
    };
}

metrics! {
    AGENT_ACKED_BYTES = Counter "logmesh_agent_acked_bytes_total" "bytes of files that a gateway said are durable on the bus";
    AGENT_CUT_EVENTS = Counter "logmesh_agent_cut_events_total" "events longer than their rule allows, of which the rest was left out";
    AGENT_DECODE_ERRORS = Counter "logmesh_agent_decode_errors_total" "events with bytes that aren't of the encoding they should have";
    AGENT_FILES = Gauge "logmesh_agent_files" "files that belong to a rule";
    AGENT_FILES_AT_RISK = Gauge "logmesh_agent_files_at_risk" "files that may be gone before all of them is acked: they lost their name, or are rotated faster than they are read";
    AGENT_IN_FLIGHT_BYTES = Gauge "logmesh_agent_in_flight_bytes" "bytes that were read and aren't acked";
    AGENT_IN_FLIGHT_CHUNKS = Gauge "logmesh_agent_in_flight_chunks" "chunks that were made and aren't acked";
    AGENT_LAG_BYTES = Gauge "logmesh_agent_lag_bytes" "bytes in files that aren't acked, read or not";
    AGENT_LOST_BYTES = Counter "logmesh_agent_lost_bytes_total" "bytes that a file lost before they could be read, listed by range and cause in `logmesh agents get`";
    AGENT_OLDEST_UNACKED_SECONDS = Gauge "logmesh_agent_oldest_unacked_seconds" "how long the oldest bytes wait for their ack; 0 if none do";
    AGENT_OPEN_FILES = Gauge "logmesh_agent_open_files" "files that are held open";
    AGENT_READ_BYTES = Counter "logmesh_agent_read_bytes_total" "bytes read from files and sent, those that were sent again included";
    AGENT_READ_EVENTS = Counter "logmesh_agent_read_events_total" "events made of them";
    AGENT_RELOADS = Counter "logmesh_agent_reloads_total" ["outcome"] "changed settings files, by outcome: applied, refused";
    AGENT_SETTINGS_REFUSED = Gauge "logmesh_agent_settings_refused" "1 while the settings file holds what can't be applied and the last good settings go on";
    AGENT_SPLIT_EVENTS = Counter "logmesh_agent_split_events_total" "continuations made of events longer than their rule allows";
    AGENT_STATE_COMMITS = Counter "logmesh_agent_state_commits_total" "times that positions were made durable";
    AGENT_STATE_FAILING = Gauge "logmesh_agent_state_failing" "1 while positions can't be made durable";
    AGENT_TRUNCATIONS = Counter "logmesh_agent_truncations_total" "files that were seen to become shorter, which begins a new stream";
    BUS_APPEND_FAILURES = Counter "logmesh_bus_append_failures_total" "records that Kafka didn't take; the gateway tries again, or refuses them with the reason";
    BUS_APPENDED_BYTES = Counter "logmesh_bus_appended_bytes_total" "bytes of records that are durable on the bus";
    BUS_APPENDED_RECORDS = Counter "logmesh_bus_appended_records_total" "records that are durable on the bus";
    BUS_COMMIT_FAILURES = Counter "logmesh_bus_commit_failures_total" "commits of the embedded bus that failed, such as on a full disk";
    BUS_COMMIT_SECONDS = Histogram "logmesh_bus_commit_seconds" "a commit of the embedded bus, with its fsync";
    BUS_QUEUE_ROOM_BYTES = Gauge "logmesh_bus_queue_room_bytes" "bytes that may still be handed to the bus before appends wait; 0: it is the bottleneck";
    BUS_RETENTION_HELD_BACK = Gauge "logmesh_bus_retention_held_back_partitions" "partitions of the embedded bus that keep more than they should, since transfer hasn't read it";
    CONFIG_AGENT_WRITES = Counter "logmesh_config_agent_writes_total" "writes to the store of what is known of agents";
    CONFIG_AGENTS_ONLINE = Gauge "logmesh_config_agents_online" "agents with a session at this server";
    CONFIG_AGENTS_REFUSED = Counter "logmesh_config_agents_refused_total" "sessions refused because an agent of that id is connected already";
    CONFIG_AGENTS_WRITTEN = Counter "logmesh_config_agents_written_total" "agents in those writes";
    CONFIG_FORGOTTEN = Counter "logmesh_config_forgotten_total" "agents and histories of deleted rules that were kept long enough and are forgotten";
    CONFIG_RULE_PROBLEMS = Gauge "logmesh_config_rule_problems" "stored rules that can't be served, by `logmesh rules list` told with key and field";
    CONFIG_RULES = Gauge "logmesh_config_rules" "rules that are served";
    FRESHNESS_SECONDS = Histogram "logmesh_freshness_seconds" ["topic", "hop"] "how long new events took, by hop: file_to_agent, agent_to_gateway, gateway_to_bus, bus_to_transfer, transfer_to_index, and total; the events of a chunk are one value, topics beyond 100 are `(others)`";
    FRESHNESS_SKEWED_EVENTS = Counter "logmesh_freshness_skewed_events_total" ["topic", "hop"] "events of which a hop came out negative by over 10 ms, since two machines' clocks differ";
    GATEWAY_ACK_SECONDS = Histogram "logmesh_gateway_ack_seconds" "from the arrival of a chunk to its ack";
    GATEWAY_ACKED_BYTES = Counter "logmesh_gateway_acked_bytes_total" "bytes of chunks that are durable on the bus";
    GATEWAY_APPEND_RETRIES = Counter "logmesh_gateway_append_retries_total" "appends to the bus that failed and were tried again";
    GATEWAY_CHUNKS = Counter "logmesh_gateway_chunks_total" ["outcome"] "chunks by outcome: acked, rejected";
    GATEWAY_CLAMPED_READ_TIMES = Counter "logmesh_gateway_clamped_read_times_total" "chunks whose read time was before 2000 or over a day ahead, and was moved";
    GATEWAY_IN_FLIGHT_BYTES = Gauge "logmesh_gateway_in_flight_bytes" "bytes received that are neither durable nor refused";
    GATEWAY_PUSH_STREAMS = Gauge "logmesh_gateway_push_streams" "open Push streams";
    GATEWAY_WRITTEN_EVENTS = Counter "logmesh_gateway_written_events_total" "events of Write that are durable on the bus";
    GRPC_CONNECTION_LIMIT = Counter "logmesh_grpc_connection_limit_total" "times that a connection had to wait since there were too many";
    GRPC_CONNECTIONS = Gauge "logmesh_grpc_connections" "open connections";
    GRPC_SHED_CALLS = Counter "logmesh_grpc_shed_calls_total" ["why"] "calls turned away, most with the time to come again: queue, timeout, stopped";
    TRANSFER_BACKOFFS = Counter "logmesh_transfer_backoffs_total" ["reason"] "times that the index took less, by reason: busy, failed, slow";
    TRANSFER_BOOK_RANGES_LEFT_OUT = Counter "logmesh_transfer_book_ranges_left_out_total" "ranges that found no room in the book of their stream; their events are looked up by id instead";
    TRANSFER_BULK_DOCUMENTS = Gauge "logmesh_transfer_bulk_documents_limit" "documents in a bulk at most, as adapted to what the index takes";
    TRANSFER_BULK_REQUESTS = Gauge "logmesh_transfer_bulk_requests_limit" "bulk requests at once at most, as adapted to what the index takes";
    TRANSFER_BULK_SECONDS = Histogram "logmesh_transfer_bulk_seconds" "a bulk request";
    TRANSFER_BYTES = Counter "logmesh_transfer_bytes_total" "bytes of documents sent to the index";
    TRANSFER_EVENTS = Counter "logmesh_transfer_events_total" ["outcome"] "events by outcome: read, created, duplicate, repeat, retired, dead_letter, overlap, lost_record";
    TRANSFER_REPLAYED_EVENTS = Counter "logmesh_transfer_replayed_events_total" "events that replays have written or found there";
    TRANSFER_RETIRED_SLICES = Counter "logmesh_transfer_retired_slices_total" "days of the index that were deleted since their topic's index_retention is over";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_and_come_in_order() {
        assert!(ALL.is_sorted_by(|before, after| before.name < after.name));
        for metric in ALL {
            let total = metric.name.ends_with("_total");
            assert_eq!(metric.kind == Kind::Counter, total, "{} is a {:?}", metric.name, metric.kind);
            assert!(metric.name.starts_with("logmesh_") && !metric.help.ends_with('.'), "{metric:?}");
        }
    }
}
