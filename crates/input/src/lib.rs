//! Records from files, tensors from records, and batches made ahead of a device: pure Rust iterators that
//! no session is needed for.
//!
//! [`Records`] opens a file by path in any [`RecordFormat`] and gives [`Record`]s, each a key and a
//! value. [`TfRecords`], [`Lines`], [`FixedRecords`] and [`WholeFile`] do the same from any
//! [`std::io::Read`]; [`TfRecordWriter`] writes. [`CsvDecoder`] and [`decode_raw`] turn values into
//! [`HostTensor`](convoke_graph_core::HostTensor)s.
//!
//! [`InputExt`] gives any iterator what an input needs: [`Shuffled`], [`Batches`] and [`Prefetch`].
//! [`Coordinator`] stops threads together and keeps the first error of any of them.
//!
//! Read next: `source.rs` (bytes, decompressed on the way), then `tfrecord.rs` (one format, whole);
//! `prefetch.rs` for what is made ahead.
//!
//! Invariants
//! - Memory grows with bytes that were read, up to a limit, and never with a size that a file claims.
//! - Compressed files are streams: no more than a buffer of them is decompressed ahead.
//! - After an error of its own an iterator ends.
//! - Offsets are bytes from the start of the content, after decompression.
//! - A thread belongs to a value that joins it. What is made ahead is bounded.
#![forbid(unsafe_code)]

mod batch;
mod coordinator;
mod csv;
mod ext;
mod fixed;
mod lines;
mod nodes;
mod prefetch;
mod raw;
mod reader;
mod shuffle;
mod source;
mod tfrecord;
mod whole;

#[cfg(test)]
mod tests;

pub use convoke_graph_core::{
    Compression, DEFAULT_LIMIT, FixedOptions, LineOptions, RecordFormat, TfRecordOptions,
};

pub use batch::{Batches, Example};
pub use coordinator::{Coordinator, Registered, StopHook};
pub use csv::{CsvDecoder, CsvOptions};
pub use ext::InputExt;
pub use fixed::FixedRecords;
pub use lines::Lines;
pub use nodes::DecodeExt;
pub use prefetch::Prefetch;
pub use raw::{Endian, decode_raw, decode_raw_batch};
pub use reader::{Position, Record, Records};
pub use shuffle::Shuffled;
pub use source::kind_of;
pub use tfrecord::{TfRecordWriter, TfRecords};
pub use whole::WholeFile;
