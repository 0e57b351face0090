//! Lines of text, as TensorFlow's `TextLineReader` gives them.

use std::fs::File;
use std::io::Read;
use std::iter::FusedIterator;
use std::path::Path;

use convoke_graph_core::{ErrorKind, LineOptions, Result};

use crate::Record;
use crate::source::{Source, append, name_of, open, step};

/// The lines of a file, without `\n` or `\r\n`; bytes, whatever their encoding.
///
/// The last line may lack its line feed. Keys are `file:line`, from 1. Where TensorFlow drops each
/// carriage return of a line, here only the last one goes.
///
/// # Errors
/// [`ErrorKind::ResourceExhausted`] for a line above the limit, [`ErrorKind::DataLoss`] for damaged
/// compression, or what the file system reports. The iterator ends after it.
#[derive(Debug)]
pub struct Lines<R: Read> {
    source: Source<R>,
    name: String,
    options: LineOptions,
    line: u64,
    produced: u64,
    done: bool,
}

impl Lines<File> {
    /// Reads a file.
    ///
    /// # Errors
    /// The file does not exist, is not regular, or cannot be opened.
    pub fn open(path: impl AsRef<Path>, options: LineOptions) -> Result<Self> {
        let path = path.as_ref();
        Ok(Self::new(open(path)?, name_of(path), options))
    }
}

impl<R: Read> Lines<R> {
    /// Reads what `reader` holds; `name` stands in keys and errors.
    pub fn new(reader: R, name: impl Into<String>, options: LineOptions) -> Self {
        let name = name.into();
        let source = Source::new(reader, options.compression).named(name.clone());
        Self { source, name, options, line: 0, produced: 0, done: false }
    }

    /// Lines given so far.
    pub fn records_produced(&self) -> u64 {
        self.produced
    }

    /// Where the next line begins: bytes from the start of the content, after decompression.
    pub fn offset(&self) -> u64 {
        self.source.offset()
    }

    fn read(&mut self) -> Result<Option<Record>> {
        while self.line < self.options.skip_header_lines {
            if !self.read_line(None)? {
                return Ok(None);
            }
        }
        let mut value = Vec::new();
        if !self.read_line(Some(&mut value))? {
            return Ok(None);
        }
        if value.last() == Some(&b'\r') {
            value.pop();
        }
        self.produced += 1;
        Ok(Some(Record { key: format!("{}:{}", self.name, self.line), value }))
    }

    /// Reads a line and its line feed, and keeps it if asked to; false at the end of the file.
    fn read_line(&mut self, mut keep: Option<&mut Vec<u8>>) -> Result<bool> {
        let start = self.source.offset();
        loop {
            let bytes = self.source.fill()?;
            if bytes.is_empty() {
                break;
            }
            let feed = bytes.iter().position(|&b| b == b'\n');
            let part = &bytes[..feed.unwrap_or(bytes.len())];
            let len = part.len();
            if let Some(line) = &mut keep {
                if (line.len() as u64).saturating_add(len as u64) > self.options.max_line_bytes {
                    return Err(self.too_long(start));
                }
                append(line, part)?;
            }
            self.source.consume(len + usize::from(feed.is_some()));
            if feed.is_some() {
                break;
            }
        }
        let found = self.source.offset() > start;
        self.line += u64::from(found);
        Ok(found)
    }

    fn too_long(&self, start: u64) -> convoke_graph_core::Error {
        let message = format!(
            "line {} at byte {start}: expected at most {} bytes, found more; raise the limit, \
             max_line_bytes, or check that the file is text",
            self.line.saturating_add(1),
            self.options.max_line_bytes
        );
        self.source.error(ErrorKind::ResourceExhausted, message)
    }
}

impl<R: Read> Iterator for Lines<R> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.read();
        step(&mut self.done, next)
    }
}

impl<R: Read> FusedIterator for Lines<R> {}
