//! A whole file as one record, as TensorFlow's `WholeFileReader` gives it.

use std::fs::File;
use std::io::Read;
use std::iter::FusedIterator;
use std::path::Path;

use convoke_graph_core::{Compression, ErrorKind, Result};

use crate::Record;
use crate::source::{Source, name_of, open, step};

/// One record: the file's name and all its bytes, none for an empty file.
///
/// # Errors
/// [`ErrorKind::ResourceExhausted`] for a file above the limit, of which no more than the limit is
/// read, or what the file system reports. The iterator ends after it.
#[derive(Debug)]
pub struct WholeFile<R: Read> {
    source: Source<R>,
    max_bytes: u64,
    produced: u64,
    done: bool,
}

impl WholeFile<File> {
    /// Reads a file of at most `max_bytes`.
    ///
    /// # Errors
    /// The file does not exist, is not regular, or cannot be opened.
    pub fn open(path: impl AsRef<Path>, max_bytes: u64) -> Result<Self> {
        let path = path.as_ref();
        Ok(Self::new(open(path)?, name_of(path), max_bytes))
    }
}

impl<R: Read> WholeFile<R> {
    /// Reads what `reader` holds, at most `max_bytes`; `name` is the key and stands in errors.
    pub fn new(reader: R, name: impl Into<String>, max_bytes: u64) -> Self {
        let source = Source::new(reader, Compression::None).named(name);
        Self { source, max_bytes, produced: 0, done: false }
    }

    /// 1 after the record was given, 0 before.
    pub fn records_produced(&self) -> u64 {
        self.produced
    }

    /// Bytes read so far.
    pub fn offset(&self) -> u64 {
        self.source.offset()
    }

    fn read(&mut self) -> Result<Option<Record>> {
        if self.produced > 0 {
            return Ok(None);
        }
        let mut value = Vec::new();
        self.source.read_into(&mut value, self.max_bytes)?;
        if !self.source.fill()?.is_empty() {
            let message = format!(
                "expected a file of at most {} bytes, found more; raise the limit, max_bytes",
                self.max_bytes
            );
            return Err(self.source.error(ErrorKind::ResourceExhausted, message));
        }
        self.produced = 1;
        Ok(Some(Record { key: self.source.name().unwrap_or_default().to_owned(), value }))
    }
}

impl<R: Read> Iterator for WholeFile<R> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.read();
        step(&mut self.done, next)
    }
}

impl<R: Read> FusedIterator for WholeFile<R> {}
