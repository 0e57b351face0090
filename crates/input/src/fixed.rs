//! Records of one length, as TensorFlow's `FixedLengthRecordReader` gives them.
//!
//! Source: TensorFlow's `core/kernels/fixed_length_record_reader_op.cc`.

use std::fs::File;
use std::io::Read;
use std::iter::FusedIterator;
use std::path::Path;

use convoke_graph_core::{Error, ErrorKind, FixedOptions, Result};

use crate::Record;
use crate::source::{Source, append, name_of, open, step};

/// The records of a file, each of the same length. Keys are `file:index`, from 0.
///
/// What is left over before the footer and is no whole record is dropped, as TensorFlow does.
///
/// # Errors
/// [`ErrorKind::DataLoss`] for a file that is shorter than its header (TensorFlow: out of range) and
/// for damaged compression, or what the file system reports. The iterator ends after it.
#[derive(Debug)]
pub struct FixedRecords<R: Read> {
    source: Source<R>,
    name: String,
    options: FixedOptions,
    window_bytes: u64,
    record_bytes: usize,
    /// Bytes from the start of the last record: the record and what may be the footer.
    window: Vec<u8>,
    produced: u64,
    done: bool,
}

impl FixedRecords<File> {
    /// Reads a file.
    ///
    /// # Errors
    /// As [`Self::new`], or the file does not exist, is not regular, or cannot be opened.
    pub fn open(path: impl AsRef<Path>, options: FixedOptions) -> Result<Self> {
        let path = path.as_ref();
        Self::new(open(path)?, name_of(path), options)
    }
}

impl<R: Read> FixedRecords<R> {
    /// Reads what `reader` holds; `name` stands in keys and errors.
    ///
    /// # Errors
    /// `record_bytes` is 0, or a record and the footer are above the limit.
    pub fn new(reader: R, name: impl Into<String>, options: FixedOptions) -> Result<Self> {
        let (window_bytes, record_bytes) = checked(&options)?;
        let name = name.into();
        Ok(Self {
            source: Source::new(reader, options.compression).named(name.clone()),
            name,
            options,
            window_bytes,
            record_bytes,
            window: Vec::new(),
            produced: 0,
            done: false,
        })
    }

    /// Records given so far.
    pub fn records_produced(&self) -> u64 {
        self.produced
    }

    /// Bytes taken so far from the start of the content, after decompression; the footer's are taken
    /// with each record, since they may be the footer.
    pub fn offset(&self) -> u64 {
        self.source.offset()
    }

    fn read(&mut self) -> Result<Option<Record>> {
        if self.produced == 0 {
            self.skip_header()?;
        } else if !self.hop()? {
            return Ok(None);
        }
        let missing = self.window_bytes.saturating_sub(self.window.len() as u64);
        if self.source.read_into(&mut self.window, missing)? < missing {
            return Ok(None);
        }
        let mut value = Vec::new();
        append(&mut value, &self.window[..self.record_bytes])?;
        let key = format!("{}:{}", self.name, self.produced);
        self.produced += 1;
        Ok(Some(Record { key, value }))
    }

    fn skip_header(&mut self) -> Result<()> {
        let expected = self.options.header_bytes;
        let found = self.source.skip(expected)?;
        if found == expected {
            return Ok(());
        }
        let message = format!("expected a header of {expected} bytes, found a file of {found}");
        Err(self.source.error(ErrorKind::DataLoss, message))
    }

    /// Moves the window to the next record; false if the file ends before.
    fn hop(&mut self) -> Result<bool> {
        let hop = match self.options.hop_bytes {
            0 => self.options.record_bytes,
            hop => hop,
        };
        let held = self.window.len() as u64;
        if hop < held {
            // Less than the length of a vector.
            self.window.drain(..hop as usize);
            return Ok(true);
        }
        self.window.clear();
        let beyond = hop - held;
        Ok(self.source.skip(beyond)? == beyond)
    }
}

impl<R: Read> Iterator for FixedRecords<R> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.read();
        step(&mut self.done, next)
    }
}

impl<R: Read> FusedIterator for FixedRecords<R> {}

/// Bytes to hold for one record, and how many of them are the record.
fn checked(options: &FixedOptions) -> Result<(u64, usize)> {
    if options.record_bytes == 0 {
        return Err(Error::invalid("expected record_bytes of at least 1, got 0"));
    }
    let FixedOptions { record_bytes, footer_bytes, max_record_bytes, .. } = *options;
    let window = record_bytes.checked_add(footer_bytes).filter(|&len| len <= max_record_bytes);
    window.zip(usize::try_from(record_bytes).ok()).ok_or_else(|| {
        Error::new(
            ErrorKind::ResourceExhausted,
            format!(
                "expected at most {max_record_bytes} bytes of a record and the footer, got \
                 {record_bytes} and {footer_bytes}; raise the limit, max_record_bytes"
            ),
        )
    })
}
