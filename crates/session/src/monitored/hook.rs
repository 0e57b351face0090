//! What hooks are asked, and what they are given.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use convoke_graph_core::{Error, ErrorKind, Feed, Graph, Result, Variable};
use convoke_input::Coordinator;

use crate::device_tensor::Fetched;
use crate::fetch::{Fetch, FetchList, FetchResults};
use crate::metadata::RunMetadata;
use crate::session::{RunOptions, Session, Timings};

/// What happens around the runs of a [`MonitoredSession`](crate::MonitoredSession). All methods do nothing unless they
/// are written.
///
/// An error of any of them is one of the run, or of the beginning or end.
///
/// # Source
/// TensorFlow's `SessionRunHook`.
pub trait Hook {
    /// Called once, before there is a session: the last time at which nodes can be added to the graph.
    ///
    /// # Errors
    /// What makes the hook useless, such as a graph without a global step.
    fn begin(&mut self, graph: &Graph) -> Result<()> {
        let _ = graph;
        Ok(())
    }

    /// Called for each session, also one that is made in place of another: it is initialised, and its queue runners
    /// are at work.
    ///
    /// # Errors
    /// The monitored session gives them, whatever their kind, and the session is given up.
    fn after_create_session(&mut self, session: &Session, coordinator: &Coordinator) -> Result<()> {
        let _ = (session, coordinator);
        Ok(())
    }

    /// Called before each run, and says what else it is to fetch and to be fed.
    ///
    /// # Errors
    /// The run is not made. They are as those of the run: a monitored session recovers from
    /// [`ErrorKind::Aborted`] and [`ErrorKind::Unavailable`].
    fn before_run(&mut self, run: &mut BeforeRun<'_>) -> Result<()> {
        let _ = run;
        Ok(())
    }

    /// Called after each run that has succeeded.
    ///
    /// # Errors
    /// The run's caller gets them, whatever their kind; what it has stored stays.
    fn after_run(&mut self, run: &AfterRun<'_>) -> Result<()> {
        let _ = run;
        Ok(())
    }

    /// Called once, if the monitored session ends without an error: at the end of its inputs, too.
    ///
    /// # Errors
    /// The end gives them; hooks after this one are not called.
    fn end(&mut self, session: &Session) -> Result<()> {
        let _ = session;
        Ok(())
    }
}

/// So that the caller keeps the hook.
impl<H: Hook + ?Sized> Hook for &mut H {
    fn begin(&mut self, graph: &Graph) -> Result<()> {
        H::begin(self, graph)
    }

    fn after_create_session(&mut self, session: &Session, coordinator: &Coordinator) -> Result<()> {
        H::after_create_session(self, session, coordinator)
    }

    fn before_run(&mut self, run: &mut BeforeRun<'_>) -> Result<()> {
        H::before_run(self, run)
    }

    fn after_run(&mut self, run: &AfterRun<'_>) -> Result<()> {
        H::after_run(self, run)
    }

    fn end(&mut self, session: &Session) -> Result<()> {
        H::end(self, session)
    }
}

/// A run that is about to be made.
#[derive(Debug)]
pub struct BeforeRun<'r> {
    session: &'r Session,
    end: End<'r>,
    /// The number of the run.
    run: u64,
    pub(super) list: FetchList,
    pub(super) feeds: Vec<Feed<'static>>,
    pub(super) options: RunOptions,
}

/// Whom to ask for the end.
#[derive(Debug, Clone, Copy)]
pub(super) struct End<'r> {
    /// Whether the monitored session was asked, whatever happens to its sessions.
    pub is_wanted: &'r AtomicBool,
    pub coordinator: &'r Coordinator,
}

impl End<'_> {
    fn request(self) {
        self.is_wanted.store(true, Ordering::Relaxed);
        self.coordinator.request_stop();
    }
}

/// What a hook has asked a run for. Keep it until [`Hook::after_run`], where [`AfterRun::get`] takes it.
#[derive(Debug)]
pub struct Wanted<F> {
    fetch: F,
    /// The places of its tensors among those of all hooks.
    places: Range<usize>,
    run: u64,
}

impl<'r> BeforeRun<'r> {
    pub(super) fn new(session: &'r Session, end: End<'r>, run: u64, options: RunOptions) -> Self {
        let (list, feeds) = (FetchList::default(), Vec::new());
        Self { session, end, run, list, feeds, options }
    }

    /// The session, for runs of the hook's own: hooks are not called for these.
    pub fn session(&self) -> &'r Session {
        self.session
    }

    /// Asks for the end: [`MonitoredSession::should_stop`](crate::MonitoredSession::should_stop) is true from now on.
    pub fn request_stop(&self) {
        self.end.request();
    }

    /// What the run fetches as well, or does, if it is operations.
    pub fn fetch<F: Fetch>(&mut self, fetch: F) -> Wanted<F> {
        let start = self.list.n_places();
        fetch.collect(&mut self.list);
        Wanted { fetch, places: start..self.list.n_places(), run: self.run }
    }

    /// What the run is fed as well: nothing that another hook or the caller feeds.
    pub fn feed(&mut self, feed: Feed<'static>) {
        self.feeds.push(feed);
    }

    /// Has the run record at least these times.
    pub fn timings(&mut self, timings: Timings) {
        self.options.timings = self.options.timings.max(timings);
    }

    /// Lets the run take this long: the longest that the caller, else the session, or a hook allows counts. A run that
    /// these two do not limit has no limit.
    pub fn timeout(&mut self, timeout: Duration) {
        let limit = self.options.timeout.or(self.session.core.options.timeout);
        self.options.timeout = limit.map(|limit| limit.max(timeout));
    }
}

/// A run that has succeeded.
#[derive(Debug)]
pub struct AfterRun<'r> {
    pub(super) session: &'r Session,
    pub(super) end: End<'r>,
    pub(super) run: u64,
    /// What hooks have asked for.
    pub(super) values: &'r [Fetched],
    pub(super) metadata: &'r RunMetadata,
    pub(super) options: &'r RunOptions,
}

impl<'r> AfterRun<'r> {
    /// The session, for runs of the hook's own: hooks are not called for these.
    pub fn session(&self) -> &'r Session {
        self.session
    }

    /// Asks for the end: [`MonitoredSession::should_stop`](crate::MonitoredSession::should_stop) is true from now on.
    pub fn request_stop(&self) {
        self.end.request();
    }

    /// What the run did.
    pub fn metadata(&self) -> &'r RunMetadata {
        self.metadata
    }

    /// The options that it was made with, the caller's and the hooks' together.
    pub fn options(&self) -> &'r RunOptions {
        self.options
    }

    /// The value of what the hook has asked for.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] for what was asked of another run.
    pub fn get<F: Fetch>(&self, wanted: &Wanted<F>) -> Result<F::Output> {
        let values = self.values.get(wanted.places.clone());
        let Some(values) = values.filter(|_| wanted.run == self.run) else {
            let message = "the hook asked another run for this; ask each run in before_run";
            return Err(Error::new(ErrorKind::FailedPrecondition, message));
        };
        let places = (0..values.len()).collect();
        wanted.fetch.take(&mut FetchResults::new(values.into(), places))
    }
}

/// The graph's counter of steps, which a hook needs.
///
/// # Errors
/// There is none.
pub(super) fn global_step(graph: &Graph, hook: &str) -> Result<Variable> {
    graph.find_global_step().ok_or_else(|| {
        let message =
            format!("a global step should be created to use {hook}: see Graph::global_step");
        Error::new(ErrorKind::FailedPrecondition, message)
    })
}

/// What runs add to the global step, as far as is known. A run fetches the step as it was at its start, and only where
/// it may matter is it worth another run to look up what has come of it.
#[derive(Debug, Default)]
pub(super) struct Increment {
    /// The step at the start of the last run, or after it if that is known.
    last: Option<i64>,
    by: Option<i64>,
}

impl Increment {
    /// Notes that a run began at `before`. Says where it may have come to, once a run has added something.
    pub fn may_come_to(&mut self, before: i64) -> Option<i64> {
        self.is_at(before);
        self.by.map(|by| before.saturating_add(by))
    }

    /// Notes the step.
    pub fn is_at(&mut self, step: i64) {
        let by = self.last.replace(step).map(|last| step.saturating_sub(last));
        // Runs that count nothing, and another session that begins further back, tell nothing of the next run.
        self.by = by.filter(|&by| by > 0).or(self.by);
    }
}

/// The step that a session has come to.
///
/// # Errors
/// The run fails.
pub(super) fn step_now(session: &Session, step: &Variable) -> Result<i64> {
    session.run(&[], step)?.scalar::<i64>()
}
