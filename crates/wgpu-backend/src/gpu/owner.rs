//! The thread that submits to a GPU and polls it, the only one that does, whichever part of the GPU a job is of: what
//! one part was given before another, the queue does before.
//!
//! Several submissions may be on the device at once. They end in the order in which they were made. However a
//! submission ends, its caller gets an answer: from here, or because the channel is closed.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::buffer::Buffer;
use super::device::{Scopes, Shared, guarded_poll};
use super::recording::{self, Command, Recording, Spans};
use super::staging::{Chunk, Direction, SPAN_BYTES, Staging, Timer};
use super::submission::RunOutput;
use super::{GpuError, error};

/// Submissions on the device at once. More add no throughput, since the device runs one after the other.
const MAX_IN_FLIGHT: usize = 16;

/// A submission whose staging memory is filled.
#[derive(Debug, Default)]
pub(super) struct Job {
    pub(super) up: SmallVec<[Chunk; 1]>,
    pub(super) pieces: SmallVec<[Piece; 4]>,
    pub(super) copies: Vec<Command>,
    pub(super) recording: Option<Arc<Recording>>,
    pub(super) copies_after: Vec<Command>,
    /// Chunks for downloads, and how much of each is used.
    pub(super) down: SmallVec<[(Chunk, u64); 1]>,
    pub(super) places: SmallVec<[Place; 4]>,
    /// For each place, the buffer and the offset that it is read from.
    pub(super) sources: SmallVec<[(Buffer, u64); 4]>,
    pub(super) timer: Option<Timer>,
    pub(super) times: Option<Place>,
    pub(super) handed_over: Option<Instant>,
    pub(super) deadline: Option<Instant>,
    pub(super) claim: Arc<Claim>,
    pub(super) output: RunOutput,
}

/// Who got to a job first at its deadline: the owner, which submits it, or the caller, which gives it up.
#[derive(Debug, Default)]
pub(super) struct Claim(AtomicU8);

impl Claim {
    const SUBMITTED: u8 = 1;
    const GIVEN_UP: u8 = 2;

    /// Claims the job for the device. Answers false if the caller has given it up.
    fn submit(&self) -> bool {
        self.0.compare_exchange(0, Claim::SUBMITTED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Gives the job up. Answers false if the device has it or is about to get it.
    pub(super) fn give_up(&self) -> bool {
        self.0.compare_exchange(0, Claim::GIVEN_UP, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// A part of an upload, in a chunk. All in bytes and multiples of 4.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) chunk: usize,
    pub(super) chunk_offset: u64,
    pub(super) dst: Buffer,
    pub(super) dst_offset: u64,
    pub(super) n_bytes: u64,
}

/// Where in the chunks a download lies: `n_bytes` from `offset`, a multiple of 16.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) chunk: usize,
    pub(super) offset: u64,
    pub(super) n_bytes: u64,
}

/// A finished submission with its downloads still in mapped staging memory.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) down: SmallVec<[(Chunk, u64); 1]>,
    pub(super) places: SmallVec<[Place; 4]>,
    pub(super) times: Option<Place>,
    pub(super) output: RunOutput,
}

/// A job, whose it is, and whom to answer.
pub(super) struct Request {
    pub(super) shared: Arc<Shared>,
    pub(super) job: Job,
    pub(super) reply: SyncSender<Result<Done, GpuError>>,
}

/// Serves requests until all handles are gone, and then waits for what is still on the device.
pub(super) fn serve(requests: &Receiver<Request>) {
    let mut in_flight = VecDeque::new();
    let mut free = Instant::now();
    loop {
        let request = if in_flight.is_empty() {
            let Ok(request) = requests.recv() else { return };
            Some(request)
        } else if in_flight.len() < MAX_IN_FLIGHT {
            requests.try_recv().ok()
        } else {
            None
        };
        match request {
            Some(request) => in_flight.extend(InFlight::start(request)),
            None => {
                wait_for_first(&mut in_flight, free);
                free = Instant::now();
            }
        }
    }
}

/// A submission on the device.
struct InFlight {
    shared: Arc<Shared>,
    job: Job,
    reply: SyncSender<Result<Done, GpuError>>,
    index: wgpu::SubmissionIndex,
    submitted: Instant,
}

/// Waits for the oldest submission and answers for it. The device was free for it since `free`.
///
/// The wait has no timeout: a wait that times out while another thread polls the same device trips an assertion
/// of wgpu 30. Callers watch their deadlines themselves.
fn wait_for_first(in_flight: &mut VecDeque<InFlight>, free: Instant) {
    let Some(first) = in_flight.front() else { return };
    let shared = first.shared.clone();
    let wait = wgpu::PollType::Wait { submission_index: Some(first.index.clone()), timeout: None };
    let status = guarded_poll(&shared, wait);
    let end = first.submitted.max(free) + shared.least_time;
    std::thread::sleep(end.saturating_duration_since(Instant::now()));
    if let Err(lost) = shared.lost.check() {
        for flight in in_flight.drain(..) {
            let _ = flight.reply.send(Err(lost.clone()));
        }
        return;
    }
    let Some(first) = in_flight.pop_front() else { return };
    match status {
        Some(Ok(_)) => first.finish(),
        Some(Err(error)) => {
            let error = GpuError::internal(error.to_string());
            let _ = first.reply.send(Err(shared.or_lost(error)));
        }
        None => {
            let _ = first.reply.send(Err(shared.lost.error()));
        }
    }
}

impl InFlight {
    /// Submits a job. If that fails, the caller is told and there is nothing in flight.
    fn start(Request { shared, mut job, reply }: Request) -> Option<InFlight> {
        let received = Instant::now();
        if job.deadline.is_some_and(|deadline| received >= deadline) || !job.claim.submit() {
            let waited = job.handed_over.map_or(Duration::ZERO, |since| since.elapsed());
            job.recycle(&shared.staging);
            let _ = reply.send(Err(GpuError::Timeout { waited, submitted: false }));
            return None;
        }
        let submit = AssertUnwindSafe(|| job.submit(&shared));
        let result = catch_unwind(submit).unwrap_or_else(|payload| {
            // wgpu's state is unknown now.
            shared.lost.set(error::panic_message(&*payload));
            Err(shared.lost.error())
        });
        match result {
            Ok(index) => {
                let submitted = Instant::now();
                job.output.recorded = Some([received, submitted]);
                Some(InFlight { shared, job, reply, index, submitted })
            }
            Err(error) => {
                let _ = reply.send(Err(shared.or_lost(error)));
                None
            }
        }
    }

    /// Answers for a submission that the device is done with.
    fn finish(self) {
        let InFlight { shared, mut job, reply, .. } = self;
        let mapped = job.down.iter().all(|(chunk, _)| chunk.settle());
        for chunk in &job.up {
            chunk.settle();
        }
        // Mapping fails if the device is lost without anybody being told.
        let alive = if job.down.is_empty() || !mapped { shared.probe() } else { Ok(()) };
        let result = match alive {
            Err(lost) => Err(lost),
            Ok(()) if !mapped => Err(GpuError::internal("staging memory was not mapped")),
            Ok(()) => Ok(Done {
                down: std::mem::take(&mut job.down),
                places: std::mem::take(&mut job.places),
                times: job.times,
                output: std::mem::take(&mut job.output),
            }),
        };
        job.recycle(&shared.staging);
        if let Err(unheard) = reply.send(result) {
            let Ok(done) = unheard.0 else { return };
            shared.staging.put(Direction::Down, done.down.into_iter().map(|(chunk, _)| chunk));
        }
    }
}

impl Job {
    /// Whether there is nothing to submit.
    pub(super) fn is_empty(&self) -> bool {
        let recorded = self.recording.as_ref().is_some_and(|r| !r.commands().is_empty());
        let copies = self.copies.is_empty() && self.copies_after.is_empty();
        self.pieces.is_empty() && copies && self.down.is_empty() && !recorded
    }

    /// A job with nothing to submit, as if it were done.
    pub(super) fn into_done(self) -> Done {
        Done { down: self.down, places: self.places, times: self.times, output: self.output }
    }

    /// Gives the staging memory back.
    pub(super) fn recycle(self, staging: &Staging) {
        staging.put(Direction::Up, self.up);
        staging.put(Direction::Down, self.down.into_iter().map(|(chunk, _)| chunk));
        if let Some(timer) = self.timer {
            staging.put_timer(timer);
        }
    }

    /// Encodes and submits, and asks for the staging memory to be mapped again after it.
    fn submit(&self, shared: &Shared) -> Result<wgpu::SubmissionIndex, GpuError> {
        shared.lost.check()?;
        let memory = || shared.meter.out_of_memory(0);
        let scopes = Scopes::push(&shared.device);
        let commands = self.encode(shared);
        scopes.pop("recording", memory)?;
        let scopes = Scopes::push(&shared.device);
        let index = shared.queue.submit([commands]);
        for chunk in &self.up {
            chunk.map(wgpu::MapMode::Write, chunk.raw.size());
        }
        for (chunk, used) in &self.down {
            chunk.map(wgpu::MapMode::Read, *used);
        }
        scopes.pop("submission", memory)?;
        shared.lost.check()?;
        self.count(shared);
        Ok(index)
    }

    fn encode(&self, shared: &Shared) -> wgpu::CommandBuffer {
        let desc = wgpu::CommandEncoderDescriptor { label: None };
        let mut encoder = shared.device.create_command_encoder(&desc);
        for chunk in self.up.iter().chain(self.down.iter().map(|(chunk, _)| chunk)) {
            chunk.unmap();
        }
        for piece in &self.pieces {
            let Some(chunk) = self.up.get(piece.chunk) else { continue };
            let (dst, at) = (piece.dst.raw(), piece.dst_offset);
            let size = Some(piece.n_bytes);
            encoder.copy_buffer_to_buffer(&chunk.raw, piece.chunk_offset, dst, at, size);
        }
        for copy in &self.copies {
            recording::encode_copy(&mut encoder, copy);
        }
        if let Some(recording) = &self.recording {
            let timer = self.timer.as_ref().zip(self.times.as_ref());
            let spans = timer.map(|(timer, place)| Spans {
                queries: &timer.queries,
                n: (place.n_bytes / SPAN_BYTES) as u32,
            });
            recording.encode(&mut encoder, spans.as_ref());
        }
        for copy in &self.copies_after {
            recording::encode_copy(&mut encoder, copy);
        }
        for (place, (src, at)) in self.places.iter().zip(&self.sources) {
            let Some((chunk, _)) = self.down.get(place.chunk) else { continue };
            let size = place.n_bytes.next_multiple_of(4);
            if size > 0 {
                encoder.copy_buffer_to_buffer(src.raw(), *at, &chunk.raw, place.offset, Some(size));
            }
        }
        if let (Some(timer), Some(place)) = (&self.timer, &self.times) {
            let n = 2 * (place.n_bytes / SPAN_BYTES) as u32;
            encoder.resolve_query_set(&timer.queries, 0..n, &timer.resolved, 0);
            if let Some((chunk, _)) = self.down.get(place.chunk) {
                let size = Some(place.n_bytes);
                encoder.copy_buffer_to_buffer(&timer.resolved, 0, &chunk.raw, place.offset, size);
            }
        }
        encoder.finish()
    }

    fn count(&self, shared: &Shared) {
        let meter = &shared.meter;
        let add = |counter: &std::sync::atomic::AtomicU64, n: u64| {
            counter.fetch_add(n, Ordering::Relaxed);
        };
        add(&meter.submissions, 1);
        add(&meter.dispatches, self.output.dispatches.into());
        add(&meter.copies, self.output.copies.into());
        add(&meter.uploads, self.pieces.len() as u64);
        add(&meter.upload_bytes, self.output.upload_bytes);
        add(&meter.downloads, self.places.iter().filter(|place| place.n_bytes > 0).count() as u64);
        add(&meter.download_bytes, self.output.download_bytes);
    }
}
