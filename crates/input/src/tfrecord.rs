//! TFRecord files: each record between a checked length and its own checksum.
//!
//! A record is its length as 8 little-endian bytes, their masked CRC32C (RFC 3720, Castagnoli) as 4,
//! the bytes, and their masked CRC32C as 4. Source: TensorFlow's `core/lib/io/record_reader.cc`.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::iter::FusedIterator;
use std::path::Path;

use convoke_graph_core::{Compression, Error, ErrorKind, Result, TfRecordOptions};
use flate2::write::{GzEncoder, ZlibEncoder};

use crate::source::{Source, kind_of, name_of, open, step};

const LENGTH_BYTES: usize = 8;
const CRC_BYTES: usize = 4;
const HEADER_BYTES: usize = LENGTH_BYTES + CRC_BYTES;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The records of a TFRecord file, in order.
///
/// # Errors
/// [`ErrorKind::DataLoss`] for a wrong checksum, a cut record and damaged compression, with the
/// record's number (from 0) and offset; [`ErrorKind::ResourceExhausted`] for a record above the limit;
/// or what the file system reports. The iterator ends after it.
#[derive(Debug)]
pub struct TfRecords<R: Read> {
    source: Source<R>,
    max_record_bytes: u64,
    produced: u64,
    done: bool,
}

impl TfRecords<File> {
    /// Reads a file.
    ///
    /// # Errors
    /// The file does not exist, is not regular, or cannot be opened.
    pub fn open(path: impl AsRef<Path>, options: TfRecordOptions) -> Result<Self> {
        let path = path.as_ref();
        Ok(Self::new(open(path)?, options).named(name_of(path)))
    }
}

impl<R: Read> TfRecords<R> {
    /// Reads what `reader` holds. It is buffered here.
    pub fn new(reader: R, options: TfRecordOptions) -> Self {
        let source = Source::new(reader, options.compression);
        Self { source, max_record_bytes: options.max_record_bytes, produced: 0, done: false }
    }

    /// Names the file in errors.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        Self { source: self.source.named(name), ..self }
    }

    /// Records given so far.
    pub fn records_produced(&self) -> u64 {
        self.produced
    }

    /// Where the next record begins: bytes from the start of the content, after decompression.
    pub fn offset(&self) -> u64 {
        self.source.offset()
    }

    fn read(&mut self) -> Result<Option<Vec<u8>>> {
        let start = self.source.offset();
        let Some(len) = self.read_len(start)? else { return Ok(None) };
        if len > self.max_record_bytes {
            let message = format!(
                "expected at most {} bytes, found {len}; raise the limit, max_record_bytes",
                self.max_record_bytes
            );
            return Err(self.error(ErrorKind::ResourceExhausted, start, &message));
        }
        let mut record = Vec::new();
        let found = self.source.read_into(&mut record, len)?;
        self.check_whole(start, "its data", len, found)?;
        let (crc, found) = self.source.read_array::<CRC_BYTES>()?;
        self.check_whole(start, "its data's checksum", CRC_BYTES as u64, found as u64)?;
        self.check_crc(start, "its data", u32::from_le_bytes(crc), &record)?;
        self.produced += 1;
        Ok(Some(record))
    }

    /// The length of the record at `start`, or `None` at the end of the file.
    fn read_len(&mut self, start: u64) -> Result<Option<u64>> {
        let (header, found) = self.source.read_array::<HEADER_BYTES>()?;
        if found == 0 {
            return Ok(None);
        }
        self.check_whole(start, "its header", HEADER_BYTES as u64, found as u64)?;
        let [l0, l1, l2, l3, l4, l5, l6, l7, crc @ ..] = header;
        let len = [l0, l1, l2, l3, l4, l5, l6, l7];
        self.check_crc(start, "its length", u32::from_le_bytes(crc), &len)?;
        Ok(Some(u64::from_le_bytes(len)))
    }

    fn check_whole(&self, start: u64, what: &str, expected: u64, found: u64) -> Result<()> {
        if found == expected {
            return Ok(());
        }
        let message = format!(
            "expected {expected} bytes of {what}, found {found} before the end; the file was cut"
        );
        Err(self.error(ErrorKind::DataLoss, start, &message))
    }

    fn check_crc(&self, start: u64, what: &str, expected: u32, bytes: &[u8]) -> Result<()> {
        let found = masked_crc(bytes);
        if found == expected {
            return Ok(());
        }
        let advice = if start == 0 && bytes.starts_with(&GZIP) {
            "the file begins as gzip does: open it with that compression"
        } else {
            "the file is damaged or no TFRecord file"
        };
        let message = format!(
            "expected the masked CRC32C {expected:#010x} of {what}, found {found:#010x}; {advice}"
        );
        Err(self.error(ErrorKind::DataLoss, start, &message))
    }

    fn error(&self, kind: ErrorKind, start: u64, message: &str) -> Error {
        self.source.error(kind, format!("record {} at byte {start}: {message}", self.produced))
    }
}

impl<R: Read> Iterator for TfRecords<R> {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.read();
        step(&mut self.done, next)
    }
}

impl<R: Read> FusedIterator for TfRecords<R> {}

/// Writes a TFRecord file.
///
/// [`Self::finish`] writes what is buffered and the end of the compressed stream. A writer that is
/// dropped without it may leave them out, and cannot say so.
#[derive(Debug)]
pub struct TfRecordWriter<W: Write> {
    output: Output<W>,
    name: Option<String>,
    written: u64,
    failed: bool,
}

#[derive(Debug)]
enum Output<W: Write> {
    None(BufWriter<W>),
    Gzip(GzEncoder<BufWriter<W>>),
    Zlib(ZlibEncoder<BufWriter<W>>),
}

impl TfRecordWriter<File> {
    /// Makes a file, or empties the one that is there.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn create(path: impl AsRef<Path>, compression: Compression) -> Result<Self> {
        Self::open(path.as_ref(), compression, File::options().create(true).truncate(true))
    }

    /// Makes a file, and leaves one that is there alone.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`]; what else the file system reports.
    pub fn create_new(path: impl AsRef<Path>, compression: Compression) -> Result<Self> {
        Self::open(path.as_ref(), compression, File::options().create_new(true))
    }

    fn open(path: &Path, compression: Compression, options: &mut OpenOptions) -> Result<Self> {
        let file = options.write(true).open(path).map_err(|e| {
            Error::new(kind_of(&e), format!("cannot create {}: {e}", path.display()))
        })?;
        Ok(Self { name: Some(name_of(path)), ..Self::new(file, compression) })
    }
}

impl<W: Write> TfRecordWriter<W> {
    /// Writes to `writer`, which is buffered here.
    pub fn new(writer: W, compression: Compression) -> Self {
        let (writer, level) = (BufWriter::new(writer), flate2::Compression::default());
        let output = match compression {
            Compression::None => Output::None(writer),
            Compression::Gzip => Output::Gzip(GzEncoder::new(writer, level)),
            Compression::Zlib => Output::Zlib(ZlibEncoder::new(writer, level)),
        };
        Self { output, name: None, written: 0, failed: false }
    }

    /// Records written so far.
    pub fn records_written(&self) -> u64 {
        self.written
    }

    /// Appends a record.
    ///
    /// # Errors
    /// What the writer reports. The file may then end within a record, so every later call is refused
    /// with [`ErrorKind::FailedPrecondition`].
    pub fn write(&mut self, record: &[u8]) -> Result<()> {
        let len = (record.len() as u64).to_le_bytes();
        self.attempt(|output| {
            output.write_all(&len)?;
            output.write_all(&masked_crc(&len).to_le_bytes())?;
            output.write_all(record)?;
            output.write_all(&masked_crc(record).to_le_bytes())
        })?;
        self.written += 1;
        Ok(())
    }

    /// Hands all records over to the writer, and flushes it. The compressed stream goes on.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn flush(&mut self) -> Result<()> {
        self.attempt(|output| output.flush())
    }

    /// Ends the file, flushes the writer and gives it back. A file is not synced to its disk.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn finish(self) -> Result<W> {
        self.check_sound()?;
        let Self { output, name, written, .. } = self;
        output.finish().map_err(|e| write_error(&e, name.as_deref(), written))
    }

    fn check_sound(&self) -> Result<()> {
        if !self.failed {
            return Ok(());
        }
        let (name, written) = (self.name.as_deref().unwrap_or("output"), self.written);
        let message = format!(
            "{name}: an earlier write failed after {written} records; write the file again"
        );
        Err(Error::new(ErrorKind::FailedPrecondition, message))
    }

    fn attempt(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        self.check_sound()?;
        write(self.output.writer()).map_err(|e| {
            self.failed = true;
            write_error(&e, self.name.as_deref(), self.written)
        })
    }
}

impl<W: Write> Output<W> {
    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::None(writer) => writer,
            Self::Gzip(encoder) => encoder,
            Self::Zlib(encoder) => encoder,
        }
    }

    fn finish(self) -> io::Result<W> {
        let writer = match self {
            Self::None(writer) => writer,
            Self::Gzip(encoder) => encoder.finish()?,
            Self::Zlib(encoder) => encoder.finish()?,
        };
        let mut writer = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        writer.flush()?;
        Ok(writer)
    }
}

fn write_error(e: &io::Error, name: Option<&str>, written: u64) -> Error {
    let name = name.unwrap_or("output");
    Error::new(kind_of(e), format!("{name}: cannot write after {written} records: {e}"))
}

/// CRC32C turned and moved, so that the checksum of data that holds checksums stays good.
pub(crate) fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}
