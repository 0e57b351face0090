//! Tests of the whole crate, and what they share.

mod batch;
mod compression;
mod coordinator;
mod csv;
mod fixed;
mod lines;
mod prefetch;
mod raw;
mod reader;
mod shuffle;
mod tfrecord;

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use convoke_graph_core::{ErrorKind, Result};

use crate::{Compression, Record};

/// A file that is removed at the end of its test.
struct TempFile(PathBuf);

impl TempFile {
    fn new(content: &[u8]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("convoke-input-{process}-{count}"));
        fs::write(&path, content).expect("the temporary folder can be written");
        Self(path)
    }
}

impl AsRef<Path> for TempFile {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Gives a few bytes at a time, and is interrupted between them.
struct Trickle<'b> {
    bytes: &'b [u8],
    step: usize,
    interrupt: bool,
}

impl<'b> Trickle<'b> {
    fn new(bytes: &'b [u8], step: usize) -> Self {
        Self { bytes, step, interrupt: false }
    }
}

impl Read for Trickle<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.interrupt = !self.interrupt;
        if self.interrupt {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let len = self.step.min(out.len()).min(self.bytes.len());
        let (given, rest) = self.bytes.split_at(len);
        out[..len].copy_from_slice(given);
        self.bytes = rest;
        Ok(len)
    }
}

/// Gives its bytes, then an error.
struct Failing<'b>(&'b [u8]);

impl Read for Failing<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.0.read(out)? {
            0 => Err(io::Error::other("the disk is gone")),
            len => Ok(len),
        }
    }
}

fn compressed(content: &[u8], compression: Compression) -> Vec<u8> {
    let level = flate2::Compression::default();
    match compression {
        Compression::None => content.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(content).and_then(|()| encoder.finish()).expect("a vector grows")
        }
        Compression::Zlib => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
            encoder.write_all(content).and_then(|()| encoder.finish()).expect("a vector grows")
        }
    }
}

const COMPRESSIONS: [Compression; 3] = [Compression::None, Compression::Gzip, Compression::Zlib];

/// What came before the first error, and its kind and message; checks that nothing follows it.
#[track_caller]
fn drain<T>(mut records: impl Iterator<Item = Result<T>>) -> (Vec<T>, Option<(ErrorKind, String)>) {
    let mut whole = Vec::new();
    let fault = loop {
        match records.next() {
            None => break None,
            Some(Ok(record)) => whole.push(record),
            Some(Err(e)) => break Some((e.kind(), e.message().to_owned())),
        }
    };
    assert!(records.next().is_none(), "an iterator stays at its end");
    (whole, fault)
}

#[track_caller]
fn all<T>(records: impl Iterator<Item = Result<T>>) -> Vec<T> {
    let (records, fault) = drain(records);
    assert_eq!(fault, None);
    records
}

#[track_caller]
fn check_refused<T>(result: Result<T>, kind: ErrorKind, message: &str) {
    let e = result.err().expect("it is refused");
    assert_eq!((e.kind(), e.message()), (kind, message));
}

fn record(key: &str, value: impl Into<Vec<u8>>) -> Record {
    Record { key: key.to_owned(), value: value.into() }
}
