//! A session's threads and the scratch memory that they share.

use std::ops::{Deref, DerefMut, Range};
use std::sync::{Mutex, PoisonError};

use convoke_graph_core::{AlignedBytes, Error, ErrorKind, Result};
use smallvec::SmallVec;

/// The threads that a session's kernels run on, with scratch memory that is kept between runs.
///
/// Work that is too small to share runs on the calling thread. Dropping it ends the threads and frees
/// the memory.
#[derive(Debug)]
pub struct Threads {
    pool: Option<rayon::ThreadPool>,
    n: usize,
    scratch: Mutex<Vec<AlignedBytes>>,
}

impl Threads {
    /// `n` threads of their own; for 0 or 1, the calling thread.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(n: usize) -> Result<Self> {
        if n <= 1 {
            return Ok(Self::one());
        }
        let named = rayon::ThreadPoolBuilder::new()
            .num_threads(n)
            .thread_name(|i| format!("convoke-cpu-{i}"));
        let pool = named.build().map_err(|e| {
            Error::new(ErrorKind::ResourceExhausted, format!("cannot start {n} threads: {e}"))
        })?;
        Ok(Self { pool: Some(pool), n, scratch: Mutex::default() })
    }

    /// The calling thread alone.
    pub fn one() -> Self {
        Self { pool: None, n: 1, scratch: Mutex::default() }
    }

    /// How many threads work at once.
    pub fn len(&self) -> usize {
        self.n
    }

    /// True if all work is done on the calling thread.
    pub fn is_empty(&self) -> bool {
        self.pool.is_none()
    }

    /// Runs `f` where rayon's calls use these threads, if there is more than one.
    pub(crate) fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(f),
            None => f(),
        }
    }

    /// At least `len` bytes of garbage, back in the pool when dropped.
    pub(crate) fn scratch(&self, len: usize) -> Result<Scratch<'_>> {
        let kept = self.lock().pop();
        let bytes = match kept {
            Some(bytes) if bytes.len() >= len => bytes,
            _ if len == 0 => AlignedBytes::default(),
            _ => AlignedBytes::zeroed(len)?,
        };
        Ok(Scratch { bytes, threads: self })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<AlignedBytes>> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
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
        if !parallel || self.pool.is_none() || len <= grain {
            return f(0..len, outputs);
        }
        let share = len.div_ceil(self.n * 4).next_multiple_of(grain.max(1));
        let parts: Parts<'_> = outputs.iter_mut().map(|o| &mut **o).collect();
        self.install(|| halve(share, parts, widths, 0..len, f))
    }
}

/// Computes a part. Not generic, so that the machinery of sharing is compiled once.
type PartFn<'f> = dyn Fn(Range<usize>, &mut [&mut [u8]]) -> Result<()> + Sync + 'f;

type Parts<'a> = SmallVec<[&'a mut [u8]; 2]>;

fn halve(
    share: usize,
    mut parts: Parts<'_>,
    widths: &[usize],
    range: Range<usize>,
    f: &PartFn<'_>,
) -> Result<()> {
    let n_shares = range.len().div_ceil(share);
    if n_shares <= 1 {
        return f(range, &mut parts);
    }
    let n_left = n_shares / 2 * share;
    let middle = range.start + n_left;
    let (mut left, mut right) = (Parts::new(), Parts::new());
    for (part, width) in parts.into_iter().zip(widths) {
        let (l, r) = part.split_at_mut(n_left * width);
        left.push(l);
        right.push(r);
    }
    let (l, r) = rayon::join(
        || halve(share, left, widths, range.start..middle, f),
        || halve(share, right, widths, middle..range.end, f),
    );
    l.and(r)
}

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
            self.threads.lock().push(std::mem::take(&mut self.bytes));
        }
    }
}
