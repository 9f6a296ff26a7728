//! The names of the gateway's metrics, and what each counts.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Chunks by `outcome`: `acked`, `rejected`.
pub(crate) const CHUNKS: &str = "logmesh_gateway_chunks_total";
/// Chunks whose read time was moved, since their agent's clock is far off.
pub(crate) const CLAMPED: &str = "logmesh_gateway_clamped_read_times_total";
/// Bytes of chunks that were acked.
pub(crate) const BYTES: &str = "logmesh_gateway_acked_bytes_total";
/// Events that came by `Write` and are durable.
pub(crate) const WRITTEN: &str = "logmesh_gateway_written_events_total";
/// Times that appends failed and were tried again.
pub(crate) const RETRIES: &str = "logmesh_gateway_append_retries_total";
/// Push streams that are open.
pub(crate) const STREAMS: &str = "logmesh_gateway_push_streams";
/// Bytes that were received and are neither acked nor refused.
pub(crate) const IN_FLIGHT: &str = "logmesh_gateway_in_flight_bytes";
/// From the arrival of a chunk to its ack.
pub(crate) const ACK_SECONDS: &str = "logmesh_gateway_ack_seconds";

/// Describes them to whoever exports them.
pub(crate) fn describe() {
    describe_counter!(CHUNKS, Unit::Count, "chunks by outcome");
    describe_counter!(
        CLAMPED,
        Unit::Count,
        "chunks whose read time was before 2000 or over a day ahead, and was moved"
    );
    describe_counter!(BYTES, Unit::Bytes, "bytes of chunks that are durable on the bus");
    describe_counter!(WRITTEN, Unit::Count, "events of Write that are durable on the bus");
    describe_counter!(RETRIES, Unit::Count, "appends to the bus that failed and were tried again");
    describe_gauge!(STREAMS, Unit::Count, "open Push streams");
    describe_gauge!(IN_FLIGHT, Unit::Bytes, "bytes received that are not yet durable");
    describe_histogram!(ACK_SECONDS, Unit::Seconds, "from the arrival of a chunk to its ack");
}
