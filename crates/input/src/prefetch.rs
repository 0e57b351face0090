//! Any iterator as an input that is made ahead, on threads of its own, while a device works.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::iter::FusedIterator;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use convoke_graph_core::{Error, ErrorKind, Result};

/// More threads than this are never started, whatever is asked for.
const MAX_THREADS: usize = 256;

/// The items of an iterator, in its order, made ahead by a thread that pulls them.
///
/// Items are moved and never cloned; no more than `depth` of them are made, or being made, before they
/// are asked for. An error is an item as any other. The iterator itself, and what it holds, is dropped
/// on a thread of this value, or with it.
///
/// Once `depth` items are made, the next is begun when half of them are taken: a thread that is woken for
/// each item takes the cores from the device more often than need be.
///
/// Dropping it stops the threads and waits for them: that takes as long as the items which they are
/// making, and for ever where the iterator waits for ever.
///
/// ```no_run
/// use convoke_input::{Endian, InputExt, RecordFormat, Records, decode_raw};
/// use convoke_graph_core::{DType, Result};
///
/// # fn main() -> Result<()> {
/// let images = Records::open("digits.tfrecord", &RecordFormat::TfRecord(Default::default()))?
///     .map(|record| decode_raw(&record?.value, DType::F32, Endian::Little))
///     .batches(64)
///     .prefetch(2);
/// for images in images {
///     let images = images?;
///     // The next two batches are read and decoded while this one runs:
///     // session.run(&[x.feed(&images)], &train)?;
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Panics
/// Where the item would have come on whose making the iterator, or the function, panicked: with the
/// same payload. Earlier items are given before; afterwards this iterator is at its end.
///
/// # Source
/// `tf.data.Dataset.prefetch`, and `map` with `num_parallel_calls` and a deterministic order.
pub struct Prefetch<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
    /// Makes one item on the consumer's thread, where the system gave no other.
    by_hand: Option<Box<dyn Fn() + Send + Sync>>,
    hint: (usize, Option<usize>),
    given: usize,
    waited: Duration,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Items of `source`, up to `depth` ahead; a depth of 0 is one of 1.
    ///
    /// Where the system refuses a thread, items are made when they are asked for. [`Self::try_new`]
    /// says so instead.
    pub fn new<S>(source: S, depth: usize) -> Self
    where
        S: IntoIterator<Item = T, IntoIter: Send + 'static>,
    {
        Self::with_threads(source, 1, depth, |item| item)
    }

    /// As [`Self::new`], never without a thread.
    ///
    /// # Errors
    /// [`ErrorKind::ResourceExhausted`] if the system refuses it.
    pub fn try_new<S>(source: S, depth: usize) -> Result<Self>
    where
        S: IntoIterator<Item = T, IntoIter: Send + 'static>,
    {
        Self::try_with_threads(source, 1, depth, |item| item)
    }

    /// What `f` makes of each item of `source`, in the source's order, on `threads` threads at once.
    ///
    /// The source is pulled by one thread at a time. Threads that exceed `depth`, or 256, would have
    /// nothing to do and are not started; 0 is 1. Where the system refuses some, the others do it all.
    pub fn with_threads<S, F>(source: S, threads: usize, depth: usize, f: F) -> Self
    where
        S: IntoIterator<IntoIter: Send + 'static>,
        F: Fn(S::Item) -> T + Send + Sync + 'static,
    {
        let (mut prefetch, work) = Self::idle(source, depth, f);
        let started = prefetch.start(&work, threads);
        if started.is_err() && prefetch.threads.is_empty() {
            prefetch = prefetch.by_hand(work);
        }
        prefetch
    }

    /// As [`Self::with_threads`], never with fewer threads.
    ///
    /// # Errors
    /// [`ErrorKind::ResourceExhausted`] if the system refuses one.
    pub fn try_with_threads<S, F>(source: S, threads: usize, depth: usize, f: F) -> Result<Self>
    where
        S: IntoIterator<IntoIter: Send + 'static>,
        F: Fn(S::Item) -> T + Send + Sync + 'static,
    {
        let (mut prefetch, work) = Self::idle(source, depth, f);
        prefetch.start(&work, threads)?;
        Ok(prefetch)
    }

    /// Without a thread, and what would be a thread's work.
    pub(crate) fn idle<S, F>(source: S, depth: usize, f: F) -> (Self, Arc<Work<S::IntoIter, F, T>>)
    where
        S: IntoIterator,
    {
        let source = source.into_iter();
        let hint = source.size_hint();
        let shared = Arc::new(Shared::new(depth.max(1)));
        let work = Work { source: Mutex::new(source), f, shared: shared.clone() };
        let (threads, by_hand) = (Vec::new(), None);
        let prefetch = Self { shared, threads, by_hand, hint, given: 0, waited: Duration::ZERO };
        (prefetch, Arc::new(work))
    }

    pub(crate) fn by_hand<I, F>(mut self, work: Arc<Work<I, F, T>>) -> Self
    where
        I: Iterator + Send + 'static,
        F: Fn(I::Item) -> T + Send + Sync + 'static,
    {
        self.by_hand = Some(Box::new(move || _ = work.step()));
        self
    }

    fn start<I, F>(&mut self, work: &Arc<Work<I, F, T>>, threads: usize) -> Result<()>
    where
        I: Iterator + Send + 'static,
        F: Fn(I::Item) -> T + Send + Sync + 'static,
    {
        for n in 0..threads.clamp(1, MAX_THREADS).min(self.shared.depth) {
            let work = work.clone();
            let thread = thread::Builder::new().name(format!("convoke-prefetch-{n}"));
            let thread = thread.spawn(move || while work.step() {}).map_err(|e| {
                let message = format!("cannot start a thread that makes items ahead: {e}");
                Error::new(ErrorKind::ResourceExhausted, message)
            })?;
            self.threads.push(thread);
        }
        Ok(())
    }
}

impl<T> Prefetch<T> {
    /// The greatest number of items that are made, or being made, before they are asked for.
    pub fn depth(&self) -> usize {
        self.shared.depth
    }

    /// How many items could be taken now without waiting.
    ///
    /// Where it is often 0, the device waits for its input; where it is often [`Self::depth`], the
    /// input waits for the device.
    pub fn buffered(&self) -> usize {
        self.shared.lock().line.iter().take_while(|slot| slot.is_some()).count()
    }

    /// For how long, in all, [`Iterator::next`] has waited for items.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl<T> Iterator for Prefetch<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let since = Instant::now();
        if let Some(make_one) = &self.by_hand {
            make_one();
        }
        let made = self.shared.take();
        self.waited = self.waited.saturating_add(since.elapsed());
        match made? {
            Ok(item) => {
                self.given = self.given.saturating_add(1);
                Some(item)
            }
            Err(panic) => {
                self.shared.close();
                resume_unwind(panic)
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let slots = self.shared.lock();
        if slots.ended {
            return (0, Some(slots.line.len()));
        }
        let (least, most) = self.hint;
        let left = |n: usize| n.saturating_sub(self.given);
        (left(least), most.map(left))
    }
}

impl<T> FusedIterator for Prefetch<T> {}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.shared.close();
        let own = thread::current().id();
        for thread in self.threads.drain(..).filter(|thread| thread.thread().id() != own) {
            // It ends with a panic only if an item or the source panics on being dropped.
            let _ = thread.join();
        }
    }
}

impl<T> fmt::Debug for Prefetch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("Prefetch");
        f.field("depth", &self.depth()).field("buffered", &self.buffered());
        f.field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}

/// An item, or the panic that came instead.
type Made<T> = Result<T, Box<dyn Any + Send>>;

/// What threads and the consumer share.
struct Shared<T> {
    depth: usize,
    slots: Mutex<Slots<T>>,
    /// The front slot is filled, or there will be none.
    ready: Condvar,
    /// A slot is free, or none is needed any more.
    room: Condvar,
}

struct Slots<T> {
    /// In the source's order; an item that is being made has an empty slot.
    line: VecDeque<Option<Made<T>>>,
    /// The number of the front slot, counted from the first item.
    front: usize,
    /// No slot is added any more.
    ended: bool,
    /// The line has been full, and nothing is pulled until half of it is taken.
    rests: bool,
}

impl<T> Shared<T> {
    fn new(depth: usize) -> Self {
        let slots = Slots { line: VecDeque::new(), front: 0, ended: false, rests: false };
        Self { depth, slots: Mutex::new(slots), ready: Condvar::new(), room: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Slots<T>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is room for an item; false if none is wanted.
    fn wait_for_room(&self) -> bool {
        let rests = |slots: &mut Slots<T>| slots.rests && !slots.ended;
        let slots = self.room.wait_while(self.lock(), rests);
        !slots.unwrap_or_else(PoisonError::into_inner).ended
    }

    /// Adds an empty slot, maybe the last, for an item that is about to be made, and gives its number.
    fn reserve(&self, last: bool) -> usize {
        let mut slots = self.lock();
        let number = slots.front.wrapping_add(slots.line.len());
        // After a close nobody looks: the number is then that of no slot.
        if !slots.ended {
            slots.line.push_back(None);
            slots.rests = slots.line.len() >= self.depth;
        }
        slots.ended |= last;
        number
    }

    /// Puts what was made in its slot, if that is still there. A panic ends the line.
    fn fill(&self, number: usize, made: Made<T>) {
        let mut slots = self.lock();
        slots.ended |= made.is_err();
        let place = number.wrapping_sub(slots.front);
        if let Some(slot) = slots.line.get_mut(place) {
            *slot = Some(made);
            if place == 0 {
                self.ready.notify_one();
            }
        }
    }

    /// The source is at its end.
    fn end(&self) {
        self.lock().ended = true;
        self.ready.notify_one();
    }

    /// Waits for the front item and takes it; `None` at the end.
    fn take(&self) -> Option<Made<T>> {
        let waits = |slots: &mut Slots<T>| match slots.line.front() {
            Some(slot) => slot.is_none(),
            None => !slots.ended,
        };
        let slots = self.ready.wait_while(self.lock(), waits);
        let mut slots = slots.unwrap_or_else(PoisonError::into_inner);
        let made = slots.line.pop_front().flatten()?;
        slots.front = slots.front.wrapping_add(1);
        // Where the next is not made yet, whoever is free is wanted at once.
        let is_missing = slots.line.front().is_none_or(Option::is_none);
        if slots.rests && (is_missing || slots.line.len() <= self.depth / 2) {
            slots.rests = false;
            self.room.notify_one();
        }
        Some(made)
    }

    /// Nobody takes items any more.
    fn close(&self) {
        let mut slots = self.lock();
        slots.ended = true;
        let unused = std::mem::take(&mut slots.line);
        self.room.notify_one();
        // Items may take long to drop, or panic on it.
        drop(slots);
        drop(unused);
    }
}

/// What threads do.
pub(crate) struct Work<I, F, T> {
    /// Locked while an item is pulled and its slot reserved, so that slots have the source's order.
    source: Mutex<I>,
    f: F,
    shared: Arc<Shared<T>>,
}

impl<I: Iterator, F: Fn(I::Item) -> T, T> Work<I, F, T> {
    /// Makes an item once there is room for it; false if there is no other to make.
    fn step(&self) -> bool {
        let Some((number, item)) = self.pull() else { return false };
        let made = item.and_then(|item| catch_unwind(AssertUnwindSafe(|| (self.f)(item))));
        self.shared.fill(number, made);
        true
    }

    fn pull(&self) -> Option<(usize, Made<I::Item>)> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.shared.wait_for_room() {
            return None;
        }
        let item = catch_unwind(AssertUnwindSafe(|| source.next())).transpose();
        let Some(item) = item else {
            self.shared.end();
            return None;
        };
        // A source that has panicked is not asked again, by no thread.
        let number = self.shared.reserve(item.is_err());
        Some((number, item))
    }
}
