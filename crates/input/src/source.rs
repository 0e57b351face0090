//! The bytes of a file: buffered, decompressed on the way, with their offset and a name for messages.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use convoke_graph_core::{Compression, Error, ErrorKind, Result};
use flate2::bufread::MultiGzDecoder;
use flate2::{Decompress, FlushDecompress, Status};

const BUFFER_BYTES: usize = 64 << 10;

/// What a reader holds, after decompression, and how much of it was read.
#[derive(Debug)]
pub(crate) struct Source<R: Read> {
    input: BufReader<Decoder<R>>,
    compressed: bool,
    name: Option<String>,
    offset: u64,
}

impl<R: Read> Source<R> {
    pub(crate) fn new(reader: R, compression: Compression) -> Self {
        let decoder = match compression {
            Compression::None => Decoder::None(reader),
            Compression::Gzip => Decoder::Gzip(MultiGzDecoder::new(buffered(reader))),
            Compression::Zlib => Decoder::Zlib(ZlibStreams::new(reader)),
        };
        let compressed = compression != Compression::None;
        Self { input: buffered(decoder), compressed, name: None, offset: 0 }
    }

    pub(crate) fn named(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// The name, if it is known.
    pub(crate) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Bytes read or skipped so far.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next bytes, at least one unless the end is reached.
    pub(crate) fn fill(&mut self) -> Result<&[u8]> {
        while let Err(e) = self.input.fill_buf() {
            if e.kind() != io::ErrorKind::Interrupted {
                return Err(self.unreadable(&e));
            }
        }
        Ok(self.input.buffer())
    }

    /// Takes `len` of the bytes that [`Self::fill`] gave.
    pub(crate) fn consume(&mut self, len: usize) {
        self.input.consume(len);
        self.offset = self.offset.saturating_add(len as u64);
    }

    /// Hands at most `len` bytes over in parts, and says how many; fewer only at the end.
    fn parts(&mut self, len: u64, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
        let mut left = len;
        while left > 0 {
            let bytes = self.fill()?;
            if bytes.is_empty() {
                break;
            }
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            each(&bytes[..part])?;
            self.consume(part);
            left -= part as u64;
        }
        Ok(len - left)
    }

    /// Appends at most `len` bytes, and says how many; fewer only at the end.
    pub(crate) fn read_into(&mut self, out: &mut Vec<u8>, len: u64) -> Result<u64> {
        self.parts(len, |part| append(out, part))
    }

    /// Fills `out` from its start, and says how far; less than whole only at the end.
    pub(crate) fn read_array<const N: usize>(&mut self) -> Result<([u8; N], usize)> {
        let (mut out, mut found) = ([0; N], 0);
        self.parts(N as u64, |part| {
            out[found..found + part.len()].copy_from_slice(part);
            found += part.len();
            Ok(())
        })?;
        Ok((out, found))
    }

    /// Passes over at most `len` bytes, and says how many; fewer only at the end.
    pub(crate) fn skip(&mut self, len: u64) -> Result<u64> {
        self.parts(len, |_| Ok(()))
    }

    /// An error of `kind` that begins with the name.
    pub(crate) fn error(&self, kind: ErrorKind, message: impl AsRef<str>) -> Error {
        let (name, message) = (self.name.as_deref().unwrap_or("input"), message.as_ref());
        Error::new(kind, format!("{name}: {message}"))
    }

    fn unreadable(&self, e: &io::Error) -> Error {
        // The decoders report damage by these kinds; any other comes from the file system.
        let damage =
            [io::ErrorKind::UnexpectedEof, io::ErrorKind::InvalidInput, io::ErrorKind::InvalidData];
        let offset = self.offset;
        if self.compressed && damage.contains(&e.kind()) {
            let message = format!(
                "expected compressed data, found damage after byte {offset} of the content: {e}; \
                 check how the file is compressed, or fetch it again"
            );
            return self.error(ErrorKind::DataLoss, message);
        }
        self.error(kind_of(e), format!("cannot be read at byte {offset}: {e}"))
    }
}

/// Opens a regular file: to open a pipe would wait for a writer, and a device may never end.
pub(crate) fn open(path: &Path) -> Result<File> {
    let failed =
        |e: &io::Error| Error::new(kind_of(e), format!("cannot open {}: {e}", path.display()));
    if !fs::metadata(path).map_err(|e| failed(&e))?.is_file() {
        let message = format!("{}: expected a regular file, found something else", path.display());
        return Err(Error::invalid(message));
    }
    File::open(path).map_err(|e| failed(&e))
}

/// What messages and keys call a file.
pub(crate) fn name_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The kind of what the system reports of a file.
#[doc(hidden)]
pub fn kind_of(e: &io::Error) -> ErrorKind {
    match e.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidFilename => ErrorKind::InvalidArgument,
        io::ErrorKind::StorageFull | io::ErrorKind::OutOfMemory => ErrorKind::ResourceExhausted,
        _ => ErrorKind::Unavailable,
    }
}

/// Appends where there is memory.
pub(crate) fn append(out: &mut Vec<u8>, bytes: &[u8]) -> Result<()> {
    out.try_reserve(bytes.len()).map_err(|_| {
        let len = out.len().saturating_add(bytes.len());
        Error::new(
            ErrorKind::ResourceExhausted,
            format!("no host memory for a record of {len} bytes; lower the limit for records"),
        )
    })?;
    out.extend_from_slice(bytes);
    Ok(())
}

/// A step of an iterator that ends at its first error.
pub(crate) fn step<T>(done: &mut bool, next: Result<Option<T>>) -> Option<Result<T>> {
    let next = next.transpose();
    *done = !matches!(next, Some(Ok(_)));
    next
}

#[derive(Debug)]
enum Decoder<R: Read> {
    None(R),
    Gzip(MultiGzDecoder<BufReader<R>>),
    Zlib(ZlibStreams<R>),
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(reader) => reader.read(out),
            Self::Gzip(decoder) => decoder.read(out),
            Self::Zlib(streams) => streams.read(out),
        }
    }
}

/// Zlib streams, one after the other. flate2's own reader ends with the first.
#[derive(Debug)]
struct ZlibStreams<R> {
    reader: BufReader<R>,
    state: Decompress,
    /// A stream has ended and no other has begun.
    between: bool,
}

impl<R: Read> ZlibStreams<R> {
    fn new(reader: R) -> Self {
        Self { reader: buffered(reader), state: Decompress::new(true), between: false }
    }
}

impl<R: Read> Read for ZlibStreams<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while !out.is_empty() {
            let input = self.reader.fill_buf()?;
            let at_end = input.is_empty();
            if at_end && self.between {
                break;
            }
            self.between = false;
            let (before_in, before_out) = (self.state.total_in(), self.state.total_out());
            let status = self.state.decompress(input, out, FlushDecompress::None);
            let status = status.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
            let consumed = difference(self.state.total_in(), before_in)?;
            let found = difference(self.state.total_out(), before_out)?;
            self.reader.consume(consumed);
            if status == Status::StreamEnd {
                self.state.reset(true);
                self.between = true;
            } else if found == 0 && (at_end || consumed == 0) {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the end is missing"));
            }
            if found > 0 {
                return Ok(found);
            }
        }
        Ok(0)
    }
}

fn difference(after: u64, before: u64) -> io::Result<usize> {
    usize::try_from(after - before).map_err(io::Error::other)
}

fn buffered<R: Read>(reader: R) -> BufReader<R> {
    BufReader::with_capacity(BUFFER_BYTES, reader)
}
