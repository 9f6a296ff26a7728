//! The headers of records on the bus.

/// Header: `chunk` or `event`.
pub const FORMAT: &str = "logmesh-format";
/// Header of an event: its document id; absent if it takes its id from its place on the bus.
pub const ID: &str = "logmesh-id";
/// Header of an event: the date of its index slice.
pub const DATE: &str = "logmesh-date";
/// Header of an event of a stream: its range, `start-end`.
pub const RANGE: &str = "logmesh-range";
/// Header of a dead letter: why it could not be stored.
pub const REASON: &str = "logmesh-reason";
/// Header of an event that is a dead letter sent through again: `operation/partition/offset`, the last two being its place
/// in the dead-letter topic. Other readers take it for what it is, an event that comes once more.
pub const REDRIVE: &str = "logmesh-redrive";
/// Header of a record that was on the bus before and is sent again, by a repair of the index: who reads the bus may leave it out.
pub const REPEATED: &str = "logmesh-repeated";
/// Header: when the events were written, read and received, `written/read/received` in nanoseconds since 1970; what isn't
/// known is empty.
pub const TIMES: &str = "logmesh-times";

/// The constant of a name that is one of these: whoever reads records by the million keeps no text of each.
pub fn known(name: &str) -> Option<&'static str> {
    [FORMAT, DATE, ID, RANGE, TIMES, REASON, REDRIVE, REPEATED].into_iter().find(|known| *known == name)
}
