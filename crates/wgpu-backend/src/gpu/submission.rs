//! One round of uploads, commands and downloads: what the caller gives, and what it gets back.
//!
//! The calling thread fills and empties the staging memory; the owner thread (`owner.rs`) does the rest.

use std::ops::{Deref, Range};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::GpuError;
use super::buffer::Buffer;
use super::device::Shared;
use super::owner::{Claim, Done, Job, Piece, Place};
use super::recording::{self, Command, Recording};
use super::staging::{Direction, MAX_SPANS, SPAN_BYTES};

/// Bytes to bring to the device before the commands run.
///
/// A length that is not a multiple of 4 also zeroes the up to 3 bytes after it.
#[derive(Debug, Clone, Copy)]
pub struct Upload<'a> {
    /// The bytes; copied before the submission is handed over.
    pub bytes: &'a [u8],
    /// Where they go.
    pub dst: &'a Buffer,
    /// Bytes from the start of `dst`, a multiple of 4.
    pub offset: u64,
}

/// Bytes to copy between two different buffers of the device, after the uploads and before the commands.
#[derive(Debug, Clone, Copy)]
pub struct BufferCopy<'a> {
    /// Where they are: on the device, or on another part of its GPU.
    pub src: &'a Buffer,
    /// Bytes from the start of `src`, a multiple of 4.
    pub src_offset: u64,
    /// Where they go.
    pub dst: &'a Buffer,
    /// Bytes from the start of `dst`, a multiple of 4.
    pub dst_offset: u64,
    /// How many bytes; up to 3 more are copied.
    pub size: u64,
}

/// Bytes to bring back after the commands ran.
#[derive(Debug, Clone, Copy)]
pub struct Download<'a> {
    /// Where they are.
    pub src: &'a Buffer,
    /// Bytes from the start of `src`, a multiple of 4.
    pub offset: u64,
    /// How many bytes.
    pub size: u64,
}

/// Work for one queue submission: uploads and copies, then the recording, then copies and downloads. Every part may be empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Submission<'a> {
    /// What is brought to the device first; in order, so that of two on the same bytes the later counts.
    pub uploads: &'a [Upload<'a>],
    /// What is copied on the device before the recording.
    pub copies: &'a [BufferCopy<'a>],
    /// What is run.
    pub recording: Option<&'a Arc<Recording>>,
    /// What is copied on the device after the recording.
    pub copies_after: &'a [BufferCopy<'a>],
    /// What is brought back.
    pub downloads: &'a [Download<'a>],
    /// When to give up waiting.
    pub deadline: Option<Instant>,
    /// What to measure on the device, if it can tell.
    pub timestamps: Timestamps,
}

/// What a device measures of a submission.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Timestamps {
    /// Nothing.
    #[default]
    None,
    /// The time from the first dispatch to the last.
    Whole,
    /// The time of each dispatch too. They then run in passes of their own, one after the other; of more than
    /// 2,048, only the whole is measured.
    Each,
}

/// Bytes that came from a device, aligned to 8 so that they can be read as any number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostBytes {
    words: Vec<u64>,
    n_bytes: usize,
}

/// What a submission brought back and what it took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunOutput {
    /// The bytes of each download, in order. Empty after [`Pending::wait_with`].
    pub data: Vec<HostBytes>,
    /// Time from the first to the last dispatch on the device, if it was asked for and the device can tell.
    pub gpu_time: Option<Duration>,
    /// The time of each dispatch, in order, if it was asked for and the device can tell.
    pub dispatch_times: Vec<Duration>,
    /// When each of them began, from the beginning of the first. As long as `dispatch_times`.
    pub dispatch_starts: Vec<Duration>,
    /// Bytes brought to the device, each upload rounded up to a multiple of 4.
    pub upload_bytes: u64,
    /// Bytes brought back, each download rounded up to a multiple of 4.
    pub download_bytes: u64,
    /// Dispatches run.
    pub dispatches: u32,
    /// Copies and clears between device buffers.
    pub copies: u32,
    /// Queue submissions: 1, or 0 if there was nothing to do.
    pub submissions: u32,
    /// Time of the host for copying what goes to the device.
    pub copying: Duration,
    /// From when until when the owner thread recorded and submitted.
    pub recorded: Option<[Instant; 2]>,
}

/// A submission on its way. Dropping it doesn't stop it.
#[derive(Debug)]
#[must_use = "the result of a submission is only known after `wait`"]
pub struct Pending {
    pub(super) shared: Arc<Shared>,
    pub(super) done: Receiver<Result<Done, GpuError>>,
    pub(super) claim: Arc<Claim>,
    pub(super) handed_over: Instant,
    pub(super) deadline: Option<Instant>,
}

impl HostBytes {
    /// A copy of `bytes`.
    pub fn new(bytes: &[u8]) -> HostBytes {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        if let Some(target) = bytemuck::cast_slice_mut(&mut words).get_mut(..bytes.len()) {
            target.copy_from_slice(bytes);
        }
        HostBytes { words, n_bytes: bytes.len() }
    }

    /// The words that hold the bytes; those after the last byte are zero.
    pub fn into_words(self) -> Vec<u64> {
        self.words
    }
}

impl Deref for HostBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words).get(..self.n_bytes).unwrap_or_default()
    }
}

impl Pending {
    /// Blocks until the work is done, and copies the downloads.
    ///
    /// # Errors
    /// What the device layer refused, [`GpuError::Timeout`] after the deadline, [`GpuError::Lost`].
    pub fn wait(self) -> Result<RunOutput, GpuError> {
        let mut data = Vec::new();
        let mut output = self.wait_with(&mut |_, bytes| data.push(HostBytes::new(bytes)))?;
        output.data = data;
        Ok(output)
    }

    /// Blocks until the work is done, and shows `visit` the index and the bytes of each download, in order,
    /// where the device put them. What it saw counts only if this answers `Ok`.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn wait_with(self, visit: &mut dyn FnMut(usize, &[u8])) -> Result<RunOutput, GpuError> {
        let done = self.receive()?;
        let shared = &self.shared;
        let mut output = done.output;
        {
            let _held = shared.mapped.read().unwrap_or_else(PoisonError::into_inner);
            shared.lost.check()?;
            let read = |place: &Place, visit: &mut dyn FnMut(&[u8])| {
                let (chunk, _) = done
                    .down
                    .get(place.chunk)
                    .ok_or_else(|| GpuError::internal("a download without staging memory"))?;
                // Views have to start at a multiple of 8 and have a multiple of 4 bytes.
                let end = place.offset + place.n_bytes.next_multiple_of(4);
                let view = chunk.raw.slice(place.offset..end).get_mapped_range();
                let view = view.map_err(|e| shared.or_lost(GpuError::internal(e.to_string())))?;
                visit(view.get(..place.n_bytes as usize).unwrap_or_default());
                Ok::<(), GpuError>(())
            };
            for (index, place) in done.places.iter().enumerate() {
                if place.n_bytes == 0 {
                    visit(index, &[]);
                } else {
                    read(place, &mut |bytes| visit(index, bytes))?;
                }
            }
            if let Some(place) = &done.times {
                let period = shared.queue.get_timestamp_period();
                read(place, &mut |bytes| read_times(bytes, period, &mut output))?;
            }
        }
        // What was copied before a loss may be garbage.
        shared.lost.check()?;
        shared.staging.put(Direction::Down, done.down.into_iter().map(|(chunk, _)| chunk));
        Ok(output)
    }

    fn receive(&self) -> Result<Done, GpuError> {
        let result = match self.deadline {
            None => self.done.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(deadline) => {
                self.done.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            }
        };
        match result {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(GpuError::Timeout {
                waited: self.handed_over.elapsed(),
                submitted: !self.claim.give_up(),
            }),
            Err(RecvTimeoutError::Disconnected) => {
                self.shared.lost.check()?;
                Err(GpuError::internal("the owner thread ended before it answered"))
            }
        }
    }
}

/// Reads pairs of timestamps, in ticks of `period` nanoseconds.
fn read_times(bytes: &[u8], period: f32, output: &mut RunOutput) {
    let ticks = |bytes: &[u8]| bytes.first_chunk::<8>().map_or(0, |tick| u64::from_le_bytes(*tick));
    let spans: Vec<(u64, u64)> = bytes
        .chunks_exact(SPAN_BYTES as usize)
        .map(|span| (ticks(span), ticks(&span[8..])))
        .collect();
    // A device that could not tell leaves zeros.
    let time = |begin: u64, end: u64| {
        let ticks = end.checked_sub(begin).filter(|_| begin != 0)?;
        Some(Duration::from_nanos((ticks as f64 * f64::from(period)) as u64))
    };
    let (first, last) = (spans.first().copied(), spans.last().copied());
    output.gpu_time = first.zip(last).and_then(|((begin, _), (_, end))| time(begin, end));
    if spans.len() as u64 == u64::from(output.dispatches) {
        let times: Option<_> = spans.iter().map(|&(begin, end)| time(begin, end)).collect();
        let starts = spans.iter().map(|&(begin, _)| time(first.map_or(0, |(at, _)| at), begin));
        let starts: Option<_> = starts.collect();
        (output.dispatch_times, output.dispatch_starts) = times.zip(starts).unwrap_or_default();
    }
}

impl Shared {
    /// Checks a submission, takes staging memory for it and fills that.
    pub(super) fn stage(&self, work: &Submission<'_>) -> Result<Job, GpuError> {
        self.lost.check()?;
        let mut job = Job { recording: work.recording.cloned(), ..Job::default() };
        let n_dispatches = work.recording.map_or(0, |recording| recording.n_dispatches());
        job.deadline = work.deadline;
        let n_spans = match work.timestamps {
            Timestamps::None => 0,
            Timestamps::Each if n_dispatches <= MAX_SPANS => n_dispatches,
            _ => n_dispatches.min(1),
        };
        let staged = self.stage_downloads(work, n_spans, &mut job);
        let staged = staged.and_then(|()| self.stage_copies(work.copies, &mut job.copies));
        let staged =
            staged.and_then(|()| self.stage_copies(work.copies_after, &mut job.copies_after));
        let staged = staged.and_then(|()| self.stage_uploads(work.uploads, &mut job));
        if let Err(error) = staged {
            job.recycle(&self.staging);
            return Err(error);
        }
        job.output.dispatches = n_dispatches;
        let recorded = work.recording.map_or(0, |recording| recording.n_copies());
        let copies = job.copies.len().saturating_add(job.copies_after.len());
        job.output.copies = recorded.saturating_add(copies as u32);
        Ok(job)
    }

    /// Gives each download a place, whole within one chunk, and the timestamps one after them.
    fn stage_downloads(
        &self,
        work: &Submission<'_>,
        n_spans: u32,
        job: &mut Job,
    ) -> Result<(), GpuError> {
        let max = self.max_shared_chunk();
        let mut sizes: SmallVec<[u64; 1]> = SmallVec::new();
        let mut place = |n_bytes: u64| {
            // Places are 16 apart; wgpu wants mapped views at multiples of 8.
            let size = n_bytes.next_multiple_of(16);
            match sizes.last_mut() {
                Some(used) if *used + size <= max => *used += size,
                _ => sizes.push(size),
            }
            let used = sizes.last().copied().unwrap_or(size);
            Place { chunk: sizes.len().saturating_sub(1), offset: used - size, n_bytes }
        };
        for download in work.downloads {
            let n_bytes = download.size.checked_next_multiple_of(4).unwrap_or(u64::MAX);
            download.src.check_range("download", &self.meter, download.offset, n_bytes)?;
            // wgpu has no empty copies or views.
            let empty = Place { chunk: 0, offset: 0, n_bytes: 0 };
            job.places.push(if n_bytes == 0 { empty } else { place(download.size) });
            job.sources.push((download.src.clone(), download.offset));
            job.output.download_bytes += n_bytes;
        }
        if n_spans > 0 {
            job.timer = self.timer(n_spans)?;
            job.times = job.timer.is_some().then(|| place(u64::from(n_spans) * SPAN_BYTES));
        }
        for size in sizes {
            job.down.push((self.chunk(Direction::Down, size)?, size));
        }
        Ok(())
    }

    fn stage_copies(
        &self,
        copies: &[BufferCopy<'_>],
        staged: &mut Vec<Command>,
    ) -> Result<(), GpuError> {
        for copy in copies {
            let size = copy.size.checked_next_multiple_of(4).unwrap_or(u64::MAX);
            let command = Command::Copy {
                src: copy.src.clone(),
                src_offset: copy.src_offset,
                dst: copy.dst.clone(),
                dst_offset: copy.dst_offset,
                size,
            };
            recording::check(self, &command)?;
            if size > 0 {
                staged.push(command);
            }
        }
        Ok(())
    }

    /// Packs the uploads into chunks, split where a chunk ends.
    fn stage_uploads(&self, uploads: &[Upload<'_>], job: &mut Job) -> Result<(), GpuError> {
        let mut left = 0u64;
        for upload in uploads {
            let n_bytes = (upload.bytes.len() as u64).next_multiple_of(4);
            upload.dst.check_range("upload", &self.meter, upload.offset, n_bytes)?;
            left += n_bytes.next_multiple_of(16);
            job.output.upload_bytes += n_bytes;
        }
        let mut todo = uploads.iter().filter(|upload| !upload.bytes.is_empty());
        let mut current = todo.next().map(|upload| (upload, 0..upload.bytes.len()));
        while current.is_some() {
            let size = left.min(self.max_shared_chunk());
            let chunk = self.chunk(Direction::Up, size)?;
            let capacity = size.min(chunk.raw.size());
            let index = job.up.len();
            job.up.push(chunk);
            let mut pieces: SmallVec<[(&Upload<'_>, Range<usize>, u64); 4]> = SmallVec::new();
            let mut used = 0;
            while let Some((upload, range)) = current.take() {
                let room = (capacity - used) as usize;
                if room == 0 {
                    current = Some((upload, range));
                    break;
                }
                let end = range.start + range.len().min(room);
                pieces.push((upload, range.start..end, used));
                used += ((end - range.start) as u64).next_multiple_of(16);
                current = if end < range.end {
                    Some((upload, end..range.end))
                } else {
                    todo.next().map(|upload| (upload, 0..upload.bytes.len()))
                };
            }
            left = left.saturating_sub(used);
            self.fill(job, index, &pieces)?;
        }
        Ok(())
    }

    /// Copies the pieces into a mapped chunk, padded with zeros to a multiple of 4.
    fn fill(
        &self,
        job: &mut Job,
        index: usize,
        pieces: &[(&Upload<'_>, Range<usize>, u64)],
    ) -> Result<(), GpuError> {
        let _held = self.mapped.read().unwrap_or_else(PoisonError::into_inner);
        self.lost.check()?;
        let Some(chunk) = job.up.get(index) else { return Ok(()) };
        let view = chunk.raw.slice(..).get_mapped_range_mut();
        let mut view = view.map_err(|e| self.or_lost(GpuError::internal(e.to_string())))?;
        let begun = Instant::now();
        for (upload, range, at) in pieces {
            let bytes = upload.bytes.get(range.clone()).unwrap_or_default();
            let at = *at as usize;
            view.slice(at..at + bytes.len()).copy_from_slice(bytes);
            let n_bytes = bytes.len().next_multiple_of(4);
            view.slice(at + bytes.len()..at + n_bytes).fill(0);
            job.pieces.push(Piece {
                chunk: index,
                chunk_offset: at as u64,
                dst: upload.dst.clone(),
                dst_offset: upload.offset + range.start as u64,
                n_bytes: n_bytes as u64,
            });
        }
        job.output.copying += begun.elapsed();
        Ok(())
    }
}
