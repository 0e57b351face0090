//! How files become records: plain data, which readers of files and of graphs share. Who reads is elsewhere.

use std::str::FromStr;

use crate::{Error, Result};

/// The most bytes of one record, line or whole file, where no other limit is given: 1 GiB.
pub const DEFAULT_LIMIT: u64 = 1 << 30;

/// How a file is compressed. Several compressed streams, one after the other, are one content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// As it is.
    #[default]
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 1950.
    Zlib,
}

impl FromStr for Compression {
    type Err = Error;

    /// TensorFlow's names: `GZIP`, `ZLIB`, and `NONE` or nothing.
    ///
    /// # Errors
    /// Another name.
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "" | "NONE" => Ok(Self::None),
            "GZIP" => Ok(Self::Gzip),
            "ZLIB" => Ok(Self::Zlib),
            _ => Err(Error::invalid(format!(
                "expected the compression GZIP, ZLIB, NONE or nothing, got {name:?}"
            ))),
        }
    }
}

/// How to read lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineOptions {
    /// Lines to leave out at the start of the file; they are counted in keys, and may be of any length.
    pub skip_header_lines: u64,
    /// The most bytes of a line before its line feed.
    pub max_line_bytes: u64,
    /// How the file is compressed.
    pub compression: Compression,
}

impl Default for LineOptions {
    fn default() -> Self {
        Self { skip_header_lines: 0, max_line_bytes: DEFAULT_LIMIT, compression: Compression::None }
    }
}

/// How a file of records of one length is laid out. Sizes are of the content, after decompression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedOptions {
    /// Bytes before the first record.
    pub header_bytes: u64,
    /// Bytes of a record; at least 1.
    pub record_bytes: u64,
    /// Bytes at the end of the file that are no record.
    pub footer_bytes: u64,
    /// Bytes from the start of one record to the start of the next; 0 means `record_bytes`. Records
    /// overlap where it is less, and have gaps where it is more.
    pub hop_bytes: u64,
    /// How the file is compressed.
    pub compression: Compression,
    /// The most bytes of a record and the footer together, since both are held in memory.
    pub max_record_bytes: u64,
}

impl FixedOptions {
    /// Records of `record_bytes`, one after the other, and nothing else.
    pub fn new(record_bytes: u64) -> Self {
        Self {
            header_bytes: 0,
            record_bytes,
            footer_bytes: 0,
            hop_bytes: 0,
            compression: Compression::None,
            max_record_bytes: DEFAULT_LIMIT,
        }
    }
}

/// How to read a TFRecord file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TfRecordOptions {
    /// How the file is compressed.
    pub compression: Compression,
    /// A longer record is refused before anything is allocated for it.
    pub max_record_bytes: u64,
}

impl Default for TfRecordOptions {
    fn default() -> Self {
        Self { compression: Compression::None, max_record_bytes: DEFAULT_LIMIT }
    }
}

/// How a file becomes records, and what their keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordFormat {
    /// One record, the file. Key: the file's name.
    WholeFile {
        /// A larger file is refused.
        max_bytes: u64,
    },
    /// Each line. Key: `file:line`, from 1.
    Lines(LineOptions),
    /// Records of one length. Key: `file:index`, from 0.
    Fixed(FixedOptions),
    /// TFRecord. Key: `file:offset`, in bytes after decompression.
    TfRecord(TfRecordOptions),
    /// One record, the path itself; no file is opened. Key: the path.
    Identity,
}

impl RecordFormat {
    /// [`Self::WholeFile`] with the default limit.
    pub fn whole_file() -> Self {
        Self::WholeFile { max_bytes: DEFAULT_LIMIT }
    }

    /// Whether a file is one record, so that it is at its end with it.
    pub fn is_single(&self) -> bool {
        matches!(self, Self::WholeFile { .. } | Self::Identity)
    }
}
