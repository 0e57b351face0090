//! Host-visible memory that bytes pass through on their way to and from the device, kept from run to run.
//!
//! Idle upload chunks are mapped, so the caller's thread can fill one at once. Idle download chunks may still
//! be mapped from the run before; the owner unmaps them when it uses them again. Sizes come in classes, so
//! that runs of about the same size find each other's chunks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use convoke_placement::{SHARED_CHUNK, chunk_bytes};

use super::GpuError;
use super::device::{Shared, lock};
use super::meter::Reservation;

/// The most spans of time that one run measures: a query set has at most 4,096 queries.
pub(super) const MAX_SPANS: u32 = 2048;
/// Bytes of the two timestamps of a span.
pub(super) const SPAN_BYTES: u64 = 16;

const UNMAPPED: u8 = 0;
const PENDING: u8 = 1;
const MAPPED: u8 = 2;
const FAILED: u8 = 3;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Up,
    Down,
}

/// One staging buffer.
#[derive(Debug)]
pub(super) struct Chunk {
    // Freed before its bytes are given back.
    pub(super) raw: wgpu::Buffer,
    state: Arc<AtomicU8>,
    _reservation: Reservation,
}

impl Chunk {
    /// Asks for the first `n_bytes` (a multiple of 4) to be mapped once the device is done with the chunk.
    pub(super) fn map(&self, mode: wgpu::MapMode, n_bytes: u64) {
        self.state.store(PENDING, Ordering::Release);
        let state = self.state.clone();
        self.raw.slice(..n_bytes.min(self.raw.size())).map_async(mode, move |result| {
            state.store(if result.is_ok() { MAPPED } else { FAILED }, Ordering::Release);
        });
    }

    /// Gives the chunk to the device.
    pub(super) fn unmap(&self) {
        if self.state.swap(UNMAPPED, Ordering::AcqRel) != UNMAPPED {
            self.raw.unmap();
        }
    }

    /// Waits until the chunk is mapped, after the device was polled for it: if the app polls its device too,
    /// its thread may be about to tell us. Answers whether it is.
    pub(super) fn settle(&self) -> bool {
        let until = Instant::now() + Duration::from_secs(1);
        while self.state.load(Ordering::Acquire) == PENDING && Instant::now() < until {
            std::thread::yield_now();
        }
        self.is_mapped()
    }

    fn is_mapped(&self) -> bool {
        self.state.load(Ordering::Acquire) == MAPPED
    }
}

/// What measures spans of time on the device: two queries each.
#[derive(Debug)]
pub(super) struct Timer {
    max_spans: u32,
    pub(super) queries: wgpu::QuerySet,
    pub(super) resolved: wgpu::Buffer,
    _reservation: Reservation,
}

/// The idle chunks and timers of one device.
#[derive(Debug)]
pub(super) struct Staging {
    keep: u64,
    up: Mutex<Idle>,
    down: Mutex<Idle>,
    timers: Mutex<Vec<Timer>>,
}

/// Idle chunks of one direction, the longest idle first.
#[derive(Debug, Default)]
struct Idle {
    chunks: VecDeque<Chunk>,
    n_bytes: u64,
}

impl Staging {
    pub(super) fn new(keep: u64) -> Staging {
        Staging { keep, up: Mutex::default(), down: Mutex::default(), timers: Mutex::default() }
    }

    /// No chunks yet, of which as many are kept.
    pub(super) fn beside(&self) -> Staging {
        Staging::new(self.keep)
    }

    fn idle(&self, direction: Direction) -> &Mutex<Idle> {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }

    /// Takes the chunk of this size that was used last: its memory is the warmest.
    fn take(&self, direction: Direction, size: u64) -> Option<Chunk> {
        let mut idle = lock(self.idle(direction));
        let at = idle.chunks.iter().rposition(|chunk| chunk.raw.size() == size)?;
        idle.n_bytes -= size;
        idle.chunks.remove(at)
    }

    /// Keeps chunks for later runs, and frees the longest idle ones above the bound. An upload chunk that
    /// isn't mapped is freed.
    pub(super) fn put(&self, direction: Direction, chunks: impl IntoIterator<Item = Chunk>) {
        for chunk in chunks {
            if direction == Direction::Up && !chunk.is_mapped() {
                continue;
            }
            let mut freed = Vec::new();
            let mut idle = lock(self.idle(direction));
            idle.n_bytes += chunk.raw.size();
            idle.chunks.push_back(chunk);
            while idle.n_bytes > self.keep {
                let Some(oldest) = idle.chunks.pop_front() else { break };
                idle.n_bytes -= oldest.raw.size();
                freed.push(oldest);
            }
            // Drivers may take long to free memory.
            drop(idle);
        }
    }

    pub(super) fn put_timer(&self, timer: Timer) {
        lock(&self.timers).push(timer);
    }

    /// Bytes of the idle chunks, which give way to what else is asked for.
    pub(super) fn idle_bytes(&self) -> u64 {
        lock(&self.up).n_bytes + lock(&self.down).n_bytes
    }

    /// Frees all idle chunks; answers whether there were any.
    pub(super) fn free_idle(&self) -> bool {
        let up = std::mem::take(&mut *lock(&self.up));
        let down = std::mem::take(&mut *lock(&self.down));
        !up.chunks.is_empty() || !down.chunks.is_empty()
    }
}

impl Shared {
    /// A chunk of at least `n_bytes`, or of as many as a buffer can have. An upload chunk is mapped.
    pub(super) fn chunk(&self, direction: Direction, n_bytes: u64) -> Result<Chunk, GpuError> {
        let size = chunk_size(n_bytes, self.info.limits.max_buffer_size);
        if let Some(chunk) = self.staging.take(direction, size) {
            return Ok(chunk);
        }
        let (label, usage, state) = match direction {
            Direction::Up => {
                ("staging up", wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC, MAPPED)
            }
            Direction::Down => (
                "staging down",
                wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                UNMAPPED,
            ),
        };
        let (raw, reservation) = self.raw_buffer(label, size, usage, state == MAPPED)?;
        Ok(Chunk { raw, state: Arc::new(AtomicU8::new(state)), _reservation: reservation })
    }

    /// A timer for so many spans, if the device has them.
    pub(super) fn timer(&self, n_spans: u32) -> Result<Option<Timer>, GpuError> {
        if !self.info.features.timestamps {
            return Ok(None);
        }
        {
            let mut idle = lock(&self.staging.timers);
            if let Some(at) = idle.iter().position(|timer| timer.max_spans >= n_spans) {
                return Ok(Some(idle.swap_remove(at)));
            }
        }
        let max_spans = n_spans.next_power_of_two();
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let (resolved, reservation) =
            self.raw_buffer("times", u64::from(max_spans) * SPAN_BYTES, usage, false)?;
        let desc = wgpu::QuerySetDescriptor {
            label: Some("times"),
            ty: wgpu::QueryType::Timestamp,
            count: 2 * max_spans,
        };
        let queries = self.scoped("query set", 0, || self.device.create_query_set(&desc))?;
        Ok(Some(Timer { max_spans, queries, resolved, _reservation: reservation }))
    }

    /// Bytes of the largest chunk that several uploads or downloads share.
    pub(super) fn max_shared_chunk(&self) -> u64 {
        chunk_size(SHARED_CHUNK, self.info.limits.max_buffer_size)
    }
}

/// The size class for `n_bytes`, at most `max`: that which placement counts.
fn chunk_size(n_bytes: u64, max: u64) -> u64 {
    chunk_bytes(n_bytes.max(1)).min(max & !15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_fit_and_keep_to_the_limit() {
        let cases =
            [(0, 64 << 10), (65_537, 128 << 10), (64 << 20, 64 << 20), ((64 << 20) + 1, 80 << 20)];
        for (n_bytes, size) in cases {
            assert_eq!(chunk_size(n_bytes, u64::MAX), size);
        }
        assert_eq!(chunk_size(u64::MAX, (1 << 31) - 1), (1 << 31) - 16);
        assert_eq!(chunk_size(5, 1024), 1024);
    }
}
