//! Records from files: pure Rust iterators that no session is needed for.
//!
//! [`Records`] opens a file by path in any [`RecordFormat`] and gives [`Record`]s, each a key and a
//! value. [`TfRecords`], [`Lines`], [`FixedRecords`] and [`WholeFile`] do the same from any
//! [`std::io::Read`]; [`TfRecordWriter`] writes.
//!
//! Read next: `source.rs` (bytes, decompressed on the way), then `tfrecord.rs` (one format, whole).
//!
//! Invariants
//! - Memory grows with bytes that were read, up to a limit, and never with a size that a file claims.
//! - Compressed files are streams: no more than a buffer of them is decompressed ahead.
//! - After an error an iterator ends.
//! - Offsets are bytes from the start of the content, after decompression.
#![forbid(unsafe_code)]

mod fixed;
mod lines;
mod reader;
mod source;
mod tfrecord;
mod whole;

#[cfg(test)]
mod tests;

pub use fixed::{FixedOptions, FixedRecords};
pub use lines::{LineOptions, Lines};
pub use reader::{Position, Record, RecordFormat, Records};
pub use source::{Compression, DEFAULT_LIMIT};
pub use tfrecord::{TfRecordOptions, TfRecordWriter, TfRecords};
pub use whole::WholeFile;
