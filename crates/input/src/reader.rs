//! Records of any format from a file that is opened by path: what a session's readers use.

use std::fs::File;
use std::iter::FusedIterator;
use std::path::Path;

use convoke_graph_core::{Error, ErrorKind, RecordFormat, Result};

use crate::source::name_of;
use crate::{FixedRecords, Lines, TfRecords, WholeFile};

/// What a reader gives.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Record {
    /// Where the value comes from, as [`RecordFormat`] says.
    pub key: String,
    /// The value.
    pub value: Vec<u8>,
}

/// How far a reader is. To come back to it, open the file again and pass over `records`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// Records given or passed over.
    pub records: u64,
    /// Bytes taken from the content, after decompression.
    pub offset: u64,
}

/// The records of one file.
///
/// # Errors
/// Those of the format's own reader: [`WholeFile`], [`Lines`], [`FixedRecords`] or [`TfRecords`].
/// The iterator ends after one.
#[derive(Debug)]
pub struct Records {
    name: String,
    reader: Reader,
}

#[derive(Debug)]
enum Reader {
    WholeFile(WholeFile<File>),
    Lines(Lines<File>),
    Fixed(FixedRecords<File>),
    TfRecord(TfRecords<File>),
    Identity { value: Option<Vec<u8>> },
}

impl Records {
    /// Opens a file; nothing is read yet.
    ///
    /// # Errors
    /// The format's sizes are refused, or the file does not exist, is not regular, or cannot be opened.
    pub fn open(path: impl AsRef<Path>, format: &RecordFormat) -> Result<Self> {
        let path = path.as_ref();
        let reader = match format {
            RecordFormat::WholeFile { max_bytes } => {
                Reader::WholeFile(WholeFile::open(path, *max_bytes)?)
            }
            RecordFormat::Lines(options) => Reader::Lines(Lines::open(path, *options)?),
            RecordFormat::Fixed(options) => Reader::Fixed(FixedRecords::open(path, *options)?),
            RecordFormat::TfRecord(options) => Reader::TfRecord(TfRecords::open(path, *options)?),
            RecordFormat::Identity => {
                Reader::Identity { value: Some(path.as_os_str().as_encoded_bytes().to_vec()) }
            }
        };
        Ok(Self { name: name_of(path), reader })
    }

    /// The file's name, as in keys and errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Records given or passed over so far.
    pub fn records_produced(&self) -> u64 {
        match &self.reader {
            Reader::WholeFile(reader) => reader.records_produced(),
            Reader::Lines(reader) => reader.records_produced(),
            Reader::Fixed(reader) => reader.records_produced(),
            Reader::TfRecord(reader) => reader.records_produced(),
            Reader::Identity { value } => u64::from(value.is_none()),
        }
    }

    /// How far the reader is.
    pub fn position(&self) -> Position {
        let offset = match &self.reader {
            Reader::WholeFile(reader) => reader.offset(),
            Reader::Lines(reader) => reader.offset(),
            Reader::Fixed(reader) => reader.offset(),
            Reader::TfRecord(reader) => reader.offset(),
            Reader::Identity { .. } => 0,
        };
        Position { records: self.records_produced(), offset }
    }

    /// Passes over `n` records, which are read and checked as if they were given.
    ///
    /// # Errors
    /// A record's own, or [`ErrorKind::OutOfRange`] if the file ends before.
    pub fn skip_records(&mut self, n: u64) -> Result<()> {
        for passed in 0..n {
            match self.next() {
                Some(record) => record?,
                None => {
                    let message = format!(
                        "{}: expected {n} records to pass over, found {passed}; was the file \
                         changed?",
                        self.name
                    );
                    return Err(Error::new(ErrorKind::OutOfRange, message));
                }
            };
        }
        Ok(())
    }
}

impl Iterator for Records {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.reader {
            Reader::WholeFile(reader) => reader.next(),
            Reader::Lines(reader) => reader.next(),
            Reader::Fixed(reader) => reader.next(),
            Reader::TfRecord(reader) => {
                let offset = reader.offset();
                let record = reader.next()?;
                Some(record.map(|value| Record { key: format!("{}:{offset}", self.name), value }))
            }
            Reader::Identity { value } => {
                value.take().map(|value| Ok(Record { key: self.name.clone(), value }))
            }
        }
    }
}

impl FusedIterator for Records {}
