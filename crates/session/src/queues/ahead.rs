//! What readers have of files beyond the place where they stand, and the reading itself, which needs no lock.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use convoke_graph_core::{HostTensor, RecordFormat, Result};
use convoke_input::Records;

use crate::cancel::Stop;

/// How many records are passed over before a run looks whether it is cancelled.
const PASSED: u64 = 256;

/// Key and value, scalar strings.
pub(super) type Pair = [HostTensor; 2];

/// Records of one file that were read and not given.
#[derive(Debug)]
pub(super) struct Ahead {
    file: HostTensor,
    /// How many records of the file come before these.
    first: u64,
    pub records: VecDeque<Pair>,
    pub end: End,
    /// Where the next come from; none before it is opened and after the end.
    source: Option<Records>,
}

/// What is known of the end of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// There may be more records.
    Open,
    /// The records that are there are the last.
    Reached,
    /// The next record cannot be read. Noted for who leaves the file; who reads tries again.
    Failed,
}

impl Ahead {
    fn new(file: HostTensor, first: u64) -> Self {
        Self { file, first, records: VecDeque::new(), end: End::Open, source: None }
    }

    /// Whether it is what comes after `given` records of `file`.
    pub fn follows(&self, file: &HostTensor, given: u64) -> bool {
        self.first == given && self.file == *file
    }

    /// Forgets records that were given.
    pub fn advance(&mut self, n: usize) {
        self.records.drain(..n.min(self.records.len()));
        self.first = self.first.saturating_add(n as u64);
    }
}

/// What a run needs of a file before it can be served.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub reader: String,
    /// The node's name, for errors.
    pub node: Arc<str>,
    pub format: RecordFormat,
    /// The file's place among those that the reader has ahead.
    pub slot: usize,
    pub file: HostTensor,
    /// How many of its records were given.
    pub given: u64,
    /// How many of the records that come next are taken already.
    pub used: usize,
    /// How many there are to be with those.
    pub n: usize,
    /// The files that come next, for as long as they have no record.
    pub more: Vec<HostTensor>,
    /// Whether a file that cannot be read will do as well.
    pub skips: bool,
}

/// Records being read, with the file out of its reader's hands.
pub(super) struct Job {
    pub wanted: Wanted,
    /// What there is of the file, and of those that come next.
    pub ahead: Vec<Ahead>,
}

impl Job {
    pub fn new(wanted: Wanted, ahead: Option<Ahead>) -> Self {
        let ahead = ahead.filter(|a| a.follows(&wanted.file, wanted.given) && a.end != End::Failed);
        let ahead = ahead.unwrap_or_else(|| Ahead::new(wanted.file.clone(), wanted.given));
        Self { wanted, ahead: vec![ahead] }
    }

    /// Reads until there are as many records as are wanted, or a file that has some is at its end.
    ///
    /// # Errors
    /// What the first file's reader refuses; what `stop` says. Nothing is kept of the file then.
    pub fn run(&mut self, stop: &Stop<'_>) -> Result<()> {
        let Wanted { mut used, n, .. } = self.wanted;
        let missing = n.saturating_sub(used);
        if let Some(first) = self.ahead.first_mut() {
            first.fill(&self.wanted, n, stop)?;
        }
        for name in std::mem::take(&mut self.wanted.more) {
            let is_empty = |a: &Ahead| a.end == End::Reached && a.records.len() <= used;
            if !self.ahead.last().is_some_and(is_empty) {
                break;
            }
            used = 0;
            let mut next = Ahead::new(name, 0);
            // Who comes to it reads it again, and hears of the error.
            if next.fill(&self.wanted, missing, stop).is_err() {
                break;
            }
            self.ahead.push(next);
        }
        Ok(())
    }
}

impl Ahead {
    /// Reads until there are `n` records, or the file is at its end.
    ///
    /// # Errors
    /// What the file's reader refuses, unless it is to be passed over; what `stop` says.
    fn fill(&mut self, wanted: &Wanted, n: usize, stop: &Stop<'_>) -> Result<()> {
        let read = self.read(&wanted.format, n, stop);
        if wanted.skips && read.is_err() && stop.check().is_ok() {
            self.end = End::Failed;
            return Ok(());
        }
        read
    }

    fn read(&mut self, format: &RecordFormat, n: usize, stop: &Stop<'_>) -> Result<()> {
        if *format == RecordFormat::Identity {
            self.records.push_back([self.file.clone(), self.file.clone()]);
            self.end = End::Reached;
            return Ok(());
        }
        let mut source = match self.source.take() {
            Some(source) => source,
            None => opened(self, format, stop)?,
        };
        while self.records.len() < n {
            stop.check()?;
            let Some(record) = source.next().transpose()? else {
                self.end = End::Reached;
                return Ok(());
            };
            let key = HostTensor::strings(&[], [record.key])?;
            self.records.push_back([key, HostTensor::strings(&[], [record.value])?]);
        }
        self.source = Some(source);
        Ok(())
    }
}

/// The file, behind the records that were given or are there.
fn opened(ahead: &Ahead, format: &RecordFormat, stop: &Stop<'_>) -> Result<Records> {
    let mut source = Records::open(path_of(&ahead.file)?, format)?;
    let mut left = ahead.first.saturating_add(ahead.records.len() as u64);
    while left > 0 {
        stop.check()?;
        let n = left.min(PASSED);
        source.skip_records(n)?;
        left -= n;
    }
    Ok(source)
}

fn path_of(file: &HostTensor) -> Result<PathBuf> {
    let bytes = file.as_strings()?.first().map(Vec::as_slice).unwrap_or_default();
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        Ok(PathBuf::from(std::ffi::OsStr::from_bytes(bytes)))
    }
    #[cfg(not(unix))]
    {
        let text = std::str::from_utf8(bytes).map_err(|e| {
            convoke_graph_core::Error::invalid(format!("expected a file name in UTF-8: {e}"))
        })?;
        Ok(PathBuf::from(text))
    }
}
