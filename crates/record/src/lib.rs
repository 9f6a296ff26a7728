//! What lies on the bus, and how it becomes documents.
//!
//! One place knows the two formats of a topic ([`codec`]), how a chunk is cut into events ([`chunk`]), the one document
//! builder ([`document`]) that gives equal documents wherever it runs, the books ([`book`]), what of them is retired
//! ([`slices`], [`mark`]), what a document says of its event ([`origin`]), the times of a record's way ([`hops`]), and what a topic is ([`topic`]). No I/O.

pub mod book;
pub mod chunk;
pub mod codec;
pub mod document;
pub mod hops;
pub mod mark;
mod message;
pub mod origin;
pub mod slices;
pub mod topic;

pub use book::{Book, Coverage};
pub use chunk::{ChunkError, EventSlice};
pub use codec::{Content, DeadLetter, DecodeError, Document, Format, Redrive, decode};
pub use hops::Times;
pub use mark::{Mark, Marks};
pub use origin::Origin;
pub use slices::Slices;
pub use topic::{TRANSFER_GROUP, TopicSettings, Topics, with_books};
