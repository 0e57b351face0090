//! A session's threads and the scratch memory that they share.

use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use convoke_graph_core::{AlignedBytes, Error, ErrorKind, Result};
use smallvec::SmallVec;

use crate::fast::Team;
use crate::lanes::Lanes;

/// Bytes of a line of a cache, in which scratch memory is given out.
const LINE: usize = 64;

/// The threads that a session's kernels run on, with scratch memory that is kept between runs.
///
/// The calling thread is one of them. Work that is too small to share is done by it alone, and so is all work while
/// the others have that of another caller. Dropping it ends the threads and frees the memory.
#[derive(Debug)]
pub struct Threads {
    team: Option<Team>,
    n: usize,
    scratch: Lanes<Mutex<Vec<AlignedBytes>>>,
}

impl Threads {
    /// `n` threads, the calling one among them; 0 is as 1.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(n: usize) -> Result<Self> {
        if n <= 1 {
            return Ok(Self::one());
        }
        let team = Team::new(n - 1).map_err(|e| {
            Error::new(ErrorKind::ResourceExhausted, format!("cannot start {n} threads: {e}"))
        })?;
        Ok(Self { team: Some(team), n, scratch: Lanes::default() })
    }

    /// The calling thread alone.
    pub fn one() -> Self {
        Self { team: None, n: 1, scratch: Lanes::default() }
    }

    /// How many threads work at once.
    pub fn len(&self) -> usize {
        self.n
    }

    /// True if all work is done on the calling thread.
    pub fn is_empty(&self) -> bool {
        self.team.is_none()
    }

    /// Calls `f` with each of `0..n_parts`, on all threads.
    pub(crate) fn share(&self, n_parts: usize, f: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let work = || loop {
            let part = next.fetch_add(1, Ordering::Relaxed);
            if part >= n_parts {
                return;
            }
            f(part);
        };
        match &self.team {
            Some(team) if n_parts > 1 && team.run(n_parts - 1, &work) => {}
            _ => work(),
        }
    }

    /// At least `len` bytes of garbage, in whole lines, back in the pool when dropped.
    pub(crate) fn scratch(&self, len: usize) -> Result<Scratch<'_>> {
        if len == 0 {
            return Ok(Scratch { bytes: AlignedBytes::default(), threads: self });
        }
        let kept = self.scratch.all().find_map(|lane| lock(lane).pop());
        let bytes = match kept {
            Some(bytes) if bytes.len() >= len => bytes,
            // Whole lines: whoever gets them next has other elements.
            _ => AlignedBytes::zeroed(len.checked_next_multiple_of(LINE).unwrap_or(len))?,
        };
        Ok(Scratch { bytes, threads: self })
    }

    /// The bytes of all scratch memory that is kept.
    #[cfg(test)]
    pub(crate) fn kept_bytes(&self) -> usize {
        let of_lane = |lane: &Mutex<Vec<AlignedBytes>>| -> usize {
            lock(lane).iter().map(|bytes| bytes.len()).sum()
        };
        self.scratch.all().map(of_lane).sum()
    }

    /// Calls `f` with parts of `0..len` and of each output, in which every index has `widths[i]` bytes.
    ///
    /// Parts begin at multiples of `grain`; they are computed in parallel if `parallel`.
    pub(crate) fn split(
        &self,
        parallel: bool,
        grain: usize,
        (outputs, widths): (&mut [&mut [u8]], &[usize]),
        len: usize,
        f: &PartFn<'_>,
    ) -> Result<()> {
        if !parallel || self.team.is_none() || len <= grain {
            return f(0..len, outputs);
        }
        let each = len.div_ceil(self.n * 4).next_multiple_of(grain.max(1));
        let mut parts: SmallVec<[Mutex<Option<Part<'_>>>; 8]> = SmallVec::new();
        let mut rest: Parts<'_> = outputs.iter_mut().map(|o| &mut **o).collect();
        for start in (0..len).step_by(each) {
            let range = start..(start + each).min(len);
            let mut part = Parts::new();
            for (rest, width) in rest.iter_mut().zip(widths) {
                let (own, after) = std::mem::take(rest).split_at_mut(range.len() * width);
                part.push(own);
                *rest = after;
            }
            parts.push(Mutex::new(Some((range, part))));
        }
        self.try_share(parts.len(), &|i| match lock(&parts[i]).take() {
            Some((range, mut outputs)) => f(range, &mut outputs),
            None => Ok(()),
        })
    }

    /// As [`Self::share`]; the error of the first part that failed.
    pub(crate) fn try_share(
        &self,
        n_parts: usize,
        f: &(dyn Fn(usize) -> Result<()> + Sync),
    ) -> Result<()> {
        let first_error: Mutex<Option<(usize, Error)>> = Mutex::default();
        self.share(n_parts, &|i| {
            if let Err(error) = f(i) {
                let mut first = lock(&first_error);
                if first.as_ref().is_none_or(|(at, _)| i < *at) {
                    *first = Some((i, error));
                }
            }
        });
        match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}

/// A part of each output, in which every index has `widths[i]` bytes.
pub(crate) fn parts_of<'o>(
    outputs: &'o mut [&mut [u8]],
    widths: &[usize],
    range: Range<usize>,
) -> SmallVec<[&'o mut [u8]; 2]> {
    let outputs = outputs.iter_mut().zip(widths);
    outputs.map(|(out, width)| &mut out[range.start * width..range.end * width]).collect()
}

/// Computes a part. Not generic, so that the machinery of sharing is compiled once.
pub(crate) type PartFn<'f> = dyn Fn(Range<usize>, &mut [&mut [u8]]) -> Result<()> + Sync + 'f;

type Parts<'a> = SmallVec<[&'a mut [u8]; 2]>;

type Part<'a> = (Range<usize>, Parts<'a>);

/// Scratch memory on loan.
#[derive(Debug)]
pub(crate) struct Scratch<'t> {
    bytes: AlignedBytes,
    threads: &'t Threads,
}

impl Deref for Scratch<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Scratch<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            lock(self.threads.scratch.own()).push(std::mem::take(&mut self.bytes));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
