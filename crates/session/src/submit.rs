//! Runs that nobody waits for yet: a few threads make them one after the other.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use convoke_graph_core::{Error, ErrorKind, Feed, Result};

use crate::cancel::CancelToken;
use crate::core::{Core, Planned, Request, UnderWay};
use crate::device_tensor::AllFetched;
use crate::executor::Outputs;
use crate::feeds::FeedData;
use crate::fetch::{Fetch, FetchResults, Places};
use crate::metadata::RunMetadata;
use crate::queues::{Attempt, Park, Parked, Presence, Taken, Uses};
use crate::session::{RunOptions, Session};

/// A run that was submitted: to be waited for, awaited, cancelled, or left alone.
///
/// Dropping it cancels the run, unless [`Self::detach`] has let it go. A session that is dropped while runs are
/// submitted lives until they have ended. Those that are left when all of them wait for queues or readers, and the
/// session has no handle any more, end with [`ErrorKind::Cancelled`]: nobody could help them. Callables and queue
/// runners are handles.
///
/// As a future it gives what [`Session::run`] does, and needs no runtime of any kind.
///
/// ```
/// # use convoke_session::{Devices, RunOptions, Session};
/// # use convoke_graph_core::{DType, Graph, dims};
/// # fn main() -> convoke_graph_core::Result<()> {
/// let g = Graph::new();
/// let x = g.placeholder("x", DType::F32, dims![]);
/// let session = Session::new(&g, &Devices::cpu())?;
/// let run = session.submit(&[x.feed(3.0)], &x * 2.0, RunOptions::default());
/// assert_eq!(run.wait()?.scalar::<f32>()?, 6.0);
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping the handle cancels the run"]
pub struct RunHandle<F: Fetch> {
    fetch: F,
    /// For each fetched tensor in order, its place among the fetches of the program.
    places: Places,
    slot: Arc<Slot>,
    token: CancelToken,
    cancels: bool,
}

/// What a run gives: the fetched tensors, and what it did.
type Given = Result<(AllFetched, RunMetadata)>;

/// Where a run leaves what it gives.
#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Default)]
struct State {
    given: Option<Given>,
    is_taken: bool,
    waker: Option<Waker>,
}

impl State {
    fn is_done(&self) -> bool {
        self.given.is_some() || self.is_taken
    }

    /// What the run gave, if it is done; an error if it was taken before.
    fn take(&mut self) -> Option<Given> {
        if self.is_taken {
            let message = "what the run gave was taken by an earlier poll";
            return Some(Err(Error::new(ErrorKind::FailedPrecondition, message)));
        }
        self.is_taken = self.given.is_some();
        self.given.take()
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self, given: Given) {
        let mut state = self.lock();
        state.given = Some(given);
        let waker = state.waker.take();
        drop(state);
        self.done.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<F: Fetch> RunHandle<F> {
    /// Submits a run.
    pub(crate) fn start(
        session: &Session,
        feeds: &[Feed<'_>],
        fetch: F,
        options: RunOptions,
    ) -> Self {
        let token = CancelToken::new();
        let slot = Arc::<Slot>::default();
        let mut handle = Self { fetch, places: Places::new(), slot, token, cancels: true };
        if let Err(error) = handle.submit(session, feeds, options) {
            handle.slot.fill(Err(error));
        }
        handle
    }

    fn submit(&mut self, session: &Session, feeds: &[Feed<'_>], options: RunOptions) -> Result<()> {
        let core = session.core.clone();
        core.check_open()?;
        let mut metadata = RunMetadata::default();
        let tensors = feeds.iter().map(|feed| &feed.tensor);
        let (list, planned) = core.planned(tensors, &self.fetch, &mut metadata)?;
        self.places = list.into_places();
        let data = planned.check_feeds(feeds)?.into_iter().map(FeedData::into_owned);
        let data: Vec<FeedData<'static>> = data.collect::<Result<_>>()?;
        let (slot, token) = (self.slot.clone(), self.token.clone());
        let (begun, uses, waits) = (OnceLock::new(), OnceLock::new(), Mutex::default());
        let presence = Mutex::new(core.queues.enter(&planned.uses));
        let submitted = Submitted {
            presence,
            core,
            planned,
            data,
            options,
            token,
            slot,
            metadata,
            begun,
            uses,
            waits,
        };
        Arc::new(submitted).line_up(Attempt::default(), End::Last)
    }

    /// Waits for the run.
    ///
    /// # Errors
    /// As [`Session::run`]; [`ErrorKind::Cancelled`] if it was cancelled.
    pub fn wait(self) -> Result<F::Output> {
        self.wait_with().map(|(output, _)| output)
    }

    /// As [`Self::wait`], and says what the run did.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn wait_with(mut self) -> Result<(F::Output, RunMetadata)> {
        let slot = self.slot.clone();
        let mut state = slot.lock();
        let given = loop {
            match state.take() {
                Some(given) => break given,
                None => state = slot.done.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(state);
        self.taken(given)
    }

    /// Waits for the run for a while; gives the handle back if that is not enough. The run goes on.
    ///
    /// # Errors
    /// The handle.
    pub fn wait_for(self, time: Duration) -> std::result::Result<Result<F::Output>, Self> {
        let end = Instant::now().checked_add(time);
        let mut state = self.slot.lock();
        while !state.is_done() {
            let left = match end.map(|end| end.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => break,
                left => left.unwrap_or(Duration::MAX),
            };
            let waited = self.slot.done.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let is_done = state.is_done();
        drop(state);
        if is_done { Ok(self.wait()) } else { Err(self) }
    }

    /// Whether the run has ended, so that waiting takes no time.
    pub fn is_done(&self) -> bool {
        self.slot.lock().is_done()
    }

    /// Cancels the run, as [`CancelToken`] says. Other runs go on.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// Lets the run go on by itself. What it gives, and why it fails if it does, is lost; what it assigns is stored.
    pub fn detach(mut self) {
        self.cancels = false;
    }

    fn taken(&mut self, given: Given) -> Result<(F::Output, RunMetadata)> {
        self.cancels = false;
        let (tensors, metadata) = given?;
        let mut results = FetchResults::new(tensors, std::mem::take(&mut self.places));
        Ok((self.fetch.take(&mut results)?, metadata))
    }
}

/// A run, until it is made.
struct Submitted {
    /// That the queues know of it.
    presence: Mutex<Option<Presence>>,
    core: Arc<Core>,
    planned: Arc<Planned>,
    data: Vec<FeedData<'static>>,
    options: RunOptions,
    token: CancelToken,
    slot: Arc<Slot>,
    /// What planning noted.
    metadata: RunMetadata,
    /// When it first had a thread.
    begun: OnceLock<Instant>,
    /// What it does with queues and readers, once that is known.
    uses: OnceLock<Uses>,
    /// The run and what it has noted, if it waits in its middle. Locked while a thread makes it.
    waits: Mutex<Option<(UnderWay<'static>, RunMetadata)>>,
}

impl Submitted {
    /// Puts it at an end of the line.
    fn line_up(self: Arc<Self>, attempt: Attempt, end: End) -> Result<()> {
        let own = self.clone();
        self.core.runners.push(Box::new(move || own.make(attempt)), end)
    }

    /// Makes the run, or lines up again when queues have changed.
    fn make(self: Arc<Self>, attempt: Attempt) {
        let given = catch_unwind(AssertUnwindSafe(|| self.try_make(attempt)));
        match given.unwrap_or_else(|_| Err(Error::internal("the run panicked"))) {
            Ok(None) => {}
            Ok(Some(given)) => self.slot.fill(Ok(given)),
            Err(error) => self.slot.fill(Err(error)),
        }
    }

    /// What the run gives; nothing if it waits for queues.
    fn try_make(
        self: &Arc<Self>,
        mut attempt: Attempt,
    ) -> Result<Option<(AllFetched, RunMetadata)>> {
        let start = *self.begun.get_or_init(Instant::now);
        let _at_work = self.core.at_work();
        let request = Request::new(&self.planned, &self.data, &self.options, start);
        let request = Request { token: Some(&self.token), ..request };
        // Who is to go on may be so before it has been left.
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, mut metadata) = waits.take().map_or_else(
            || {
                let mut metadata = self.metadata.clone();
                metadata.begin(&request);
                (None, metadata)
            },
            |(run, metadata)| (Some(run), metadata),
        );
        let mut tensors = AllFetched::new();
        let outputs = &mut Outputs::Tensors(&mut tensors);
        if self.planned.uses.is_empty() {
            self.core.run(&request, outputs, &mut metadata)?;
        } else {
            let uses = self.uses(&request)?;
            let deadline = self.core.stop(&request).deadline.map(|(until, _)| until);
            let parked = |attempt, end| Parked { deadline, resume: self.resume(attempt, end) };
            let run = match before {
                Some(run) => {
                    run.resume(attempt);
                    run
                }
                None => match self
                    .try_take(&request, uses, &mut attempt, &|attempt| parked(attempt, End::Last))?
                {
                    Some(taken) => {
                        UnderWay::new(&self.core.queues, &self.planned, &self.data, taken)?
                    }
                    None => return Ok(None),
                },
            };
            // Who has begun has what others wait for.
            let park: Park<'_> = &|attempt| parked(attempt, End::First);
            let (core, metadata_of) = (&self.core, &mut metadata);
            let run = core.run_with(&request, uses, run, Some(park), outputs, metadata_of)?;
            if let Some(run) = run {
                *waits = Some((run, metadata));
                return Ok(None);
            }
        }
        metadata.wall = start.elapsed();
        Ok(Some((tensors, metadata)))
    }

    /// What it does with queues and readers, once it is known what must be known first.
    fn uses(&self, request: &Request<'_>) -> Result<&Uses> {
        match self.uses.get() {
            Some(uses) => Ok(uses),
            None if !self.planned.uses.is_open(&self.data) => Ok(&self.planned.uses),
            None => {
                let resolved = self.core.resolved(request)?.into_owned();
                Ok(self.uses.get_or_init(|| resolved))
            }
        }
    }

    /// Takes what it takes before it begins; nothing if it waits for that.
    fn try_take(
        &self,
        request: &Request<'_>,
        uses: &Uses,
        attempt: &mut Attempt,
        park: Park<'_>,
    ) -> Result<Option<Taken>> {
        let stop = self.core.stop(request);
        let taken = self.core.queues.try_take(uses, &self.data, attempt, &stop, park);
        let mut presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner);
        presence.iter_mut().for_each(Presence::has_tried);
        taken.map_err(|e| self.core.located_on_host(e))
    }

    /// What lines it up again, in its place in the queues' line.
    fn resume(self: &Arc<Self>, attempt: Attempt, end: End) -> Box<dyn FnOnce() + Send> {
        let own = self.clone();
        // A thread of the runners parks it, so that there is one, and lining up does not fail.
        Box::new(move || {
            let slot = own.slot.clone();
            if let Err(error) = own.line_up(attempt, end) {
                slot.fill(Err(error));
            }
        })
    }
}

impl<F: Fetch + Unpin> Future for RunHandle<F> {
    type Output = Result<F::Output>;

    /// After it was ready, a future gives `FailedPrecondition`.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let mut state = this.slot.lock();
        let Some(given) = state.take() else {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        drop(state);
        Poll::Ready(this.taken(given).map(|(output, _)| output))
    }
}

impl<F: Fetch> Drop for RunHandle<F> {
    fn drop(&mut self) {
        if self.cancels {
            self.token.cancel();
        }
    }
}

impl<F: Fetch> fmt::Debug for RunHandle<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RunHandle, {}", if self.is_done() { "done" } else { "not done" })
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Where in the line a job comes.
#[derive(Clone, Copy)]
enum End {
    First,
    Last,
}

/// The threads that make submitted runs.
pub(crate) struct Runners {
    line: Arc<Line>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// The runs that wait.
struct Line {
    /// How many threads work at a time.
    n: usize,
    jobs: Mutex<Jobs>,
    wake: Condvar,
}

#[derive(Default)]
struct Jobs {
    line: VecDeque<Job>,
    n_threads: usize,
    /// Whether no more jobs come.
    ends: bool,
}

impl Runners {
    /// At most `n` threads that work at a time, none yet.
    pub fn new(n: usize) -> Self {
        let (jobs, wake) = (Mutex::default(), Condvar::new());
        Self { line: Arc::new(Line { n: n.max(1), jobs, wake }), threads: Mutex::default() }
    }

    /// Puts a job at an end of the line.
    ///
    /// # Errors
    /// The system refuses the first thread.
    fn push(&self, job: Job, end: End) -> Result<()> {
        self.start_another()?;
        let mut jobs = self.line.lock();
        match end {
            End::First => jobs.line.push_front(job),
            End::Last => jobs.line.push_back(job),
        }
        // Who is woken needs it at once.
        drop(jobs);
        self.line.wake.notify_one();
        Ok(())
    }

    /// Starts a thread, if there may be one more.
    ///
    /// # Errors
    /// The system refuses the first one.
    fn start_another(&self) -> Result<()> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let mut jobs = self.line.lock();
        let n_before = jobs.n_threads;
        if n_before >= self.line.n {
            return Ok(());
        }
        jobs.n_threads += 1;
        drop(jobs);
        let line = self.line.clone();
        let name = format!("convoke-run-{n_before}");
        match std::thread::Builder::new().name(name).spawn(move || line.work()) {
            Ok(thread) => {
                threads.retain(|thread| !thread.is_finished());
                threads.push(thread);
            }
            Err(e) => {
                self.line.lock().n_threads -= 1;
                // Those that there are do it.
                if n_before == 0 {
                    let message = format!("cannot start a thread for submitted runs: {e}");
                    return Err(Error::new(ErrorKind::ResourceExhausted, message));
                }
            }
        }
        Ok(())
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of a thread.
    fn work(&self) {
        loop {
            let mut jobs = self.lock();
            let job = loop {
                match jobs.line.pop_front() {
                    Some(job) => break job,
                    None if jobs.ends => return,
                    None => jobs = self.wake.wait(jobs).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(jobs);
            // A waker may panic; the thread is for others too.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    }
}

impl Drop for Runners {
    /// Jobs keep the session that has the runners: there are none left.
    fn drop(&mut self) {
        self.line.lock().ends = true;
        self.line.wake.notify_all();
        let threads =
            std::mem::take(self.threads.get_mut().unwrap_or_else(PoisonError::into_inner));
        let own = std::thread::current().id();
        // The last job may have been the last to have the session.
        for thread in threads.into_iter().filter(|thread| thread.thread().id() != own) {
            let _ = thread.join();
        }
    }
}
