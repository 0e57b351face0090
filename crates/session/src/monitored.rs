//! Sessions for training: made, restored, watched by hooks, made again where that helps, and ended.
//!
//! Read `monitored/hook.rs` for what hooks do; the others are a hook each.
//!
//! Source: TensorFlow's `python/training/monitored_session.py`.

mod checkpoint_saver;
mod current;
mod feed_fn;
mod final_ops;
mod hook;
mod logging_tensor;
mod nan_tensor;
mod profiler;
mod step_counter;
mod stop_at_step;
mod timer;

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use convoke_graph_core::{Error, ErrorKind, Feed, Frozen, Graph, Result};
use convoke_input::Coordinator;

pub use checkpoint_saver::{CheckpointSaver, Saved};
use current::{Current, Start};
pub use feed_fn::FeedFn;
pub use final_ops::FinalOps;
use hook::End;
pub use hook::{AfterRun, BeforeRun, Hook, Wanted};
pub use logging_tensor::LoggingTensor;
pub use nan_tensor::NanTensor;
pub use profiler::Profiler;
pub use step_counter::StepCounter;
pub use stop_at_step::StopAtStep;

use crate::checkpoint::RestoreOptions;
use crate::device_tensor::AllFetched;
use crate::devices::Devices;
use crate::fetch::{Fetch, FetchList, FetchResults};
use crate::metadata::RunMetadata;
use crate::saver::Saver;
use crate::session::{RunOptions, Session, SessionOptions};

/// How often in a row a session is made in place of another, if nobody says so.
const RECOVERIES: usize = 5;

/// What a monitored session is made of.
pub struct Monitor<'h> {
    start: Start<'h>,
    hooks: Vec<Box<dyn Hook + 'h>>,
    recoveries: Option<usize>,
}

/// A session that takes care of a training.
///
/// It begins where the newest checkpoint of its saver stands, initialises the variables that this leaves without
/// elements, and starts the graph's queue runners. [Hooks](Hook) see each run. The end of the inputs,
/// [`ErrorKind::OutOfRange`], ends it without an error. While it is there nothing can be added to the graph.
///
/// With a saver, a run that ends with [`ErrorKind::Aborted`] or [`ErrorKind::Unavailable`], or of which a thread of the
/// coordinator does, is made again in a new session, which begins from the newest checkpoint as well. Without one such
/// an error comes back, as a new session would begin from the initial values, and what was trained would be lost; see
/// [`Monitor::recoveries`]. So does an error of a hook, as it says nothing of the session.
///
/// ```
/// # use convoke_session::{Devices, Monitor, StopAtStep};
/// # use convoke_graph_core::{DType, Graph, Init};
/// # fn main() -> convoke_graph_core::Result<()> {
/// let g = Graph::new();
/// let w = g.variable("w", Init::Zeros, DType::F32, []);
/// let train = w.assign_add(0.5).operation();
/// let step = g.after(&[&train], || g.global_step().assign_add(1));
/// let session = Monitor::new(&g, &Devices::cpu()).hook(StopAtStep::last(10)).start()?;
/// session.supervise(|session| {
///     while !session.should_stop() {
///         session.run(&[], &step)?;
///     }
///     assert_eq!(session.run(&[], &w)?.scalar::<f32>()?, 5.0);
///     Ok(())
/// })
/// # }
/// ```
///
/// # Source
/// TensorFlow's `MonitoredSession`; with [`Monitor::recoveries`] of 0 its `SingularMonitoredSession`.
pub struct MonitoredSession<'h> {
    start: Start<'h>,
    hooks: Vec<Box<dyn Hook + 'h>>,
    /// None between an end and a new beginning.
    now: Option<Current>,
    /// Why the last session could not be made.
    lost: Option<Error>,
    /// Whether somebody has asked for the end, of whichever session.
    is_end_wanted: AtomicBool,
    /// Whether who asked was told to stop for nothing but a thread's error.
    has_told_of_thread: AtomicBool,
    recoveries: usize,
    /// How often it has recovered since a run succeeded.
    n_recovered: usize,
    /// How many runs were begun.
    n_runs: u64,
    _frozen: Frozen,
}

/// What has failed.
enum Failure {
    /// The session or its run: another may do better.
    Session(Error),
    /// A hook, after the session or the run was made.
    Hook(Error),
}

impl<'h> Monitor<'h> {
    /// Sessions of this graph on these devices, without a saver and without hooks.
    pub fn new(graph: &Graph, devices: &Devices) -> Self {
        Self { start: Start::new(graph, devices), hooks: Vec::new(), recoveries: None }
    }

    /// The options of its sessions.
    #[must_use]
    pub fn options(mut self, options: SessionOptions) -> Self {
        self.start.options = options;
        self
    }

    /// Has sessions begin from the newest checkpoint of this saver, if there is one. To save, add a
    /// [`CheckpointSaver`].
    #[must_use]
    pub fn saver(mut self, saver: Saver) -> Self {
        self.start.saver = Some(saver);
        self
    }

    /// What to restore of a checkpoint, and what may differ: what stays without elements is initialised.
    #[must_use]
    pub fn restore_options(mut self, options: RestoreOptions) -> Self {
        self.start.restore = options;
        self
    }

    /// Feeds the initialisers, of each session that needs them, with this as well. TensorFlow: `init_feed_dict`.
    #[must_use]
    pub fn init_feed(mut self, feed: Feed<'static>) -> Self {
        self.start.init_feeds.push(feed);
        self
    }

    /// What to do with a session that was initialised and not restored, before queue runners start.
    #[must_use]
    pub fn init(mut self, init: impl FnMut(&Session) -> Result<()> + 'h) -> Self {
        self.start.init = Some(Box::new(init));
        self
    }

    /// Adds a hook. Hooks are called in the order in which they were added. Of a hook that is given by `&mut`, the
    /// caller has what it knows when the monitored session has ended.
    #[must_use]
    pub fn hook(mut self, hook: impl Hook + 'h) -> Self {
        self.hooks.push(Box::new(hook));
        self
    }

    /// How often in a row a session is made in place of another before a run succeeds. At first that is 5; but without a
    /// saver, once there was a session, 0: another would begin from the initial values, and what was trained would be
    /// lost without a word. TensorFlow tries for ever, with or without.
    #[must_use]
    pub fn recoveries(mut self, n: usize) -> Self {
        self.recoveries = Some(n);
        self
    }

    /// How long the threads of the coordinator have to end after a stop: two minutes at first. One that waits in a run
    /// of the session for what does not come takes all of it; then the session is closed, which ends that run.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.start.grace = grace;
        self
    }

    /// Lets hooks begin, freezes the graph until the monitored session is dropped, and makes the first session.
    ///
    /// # Errors
    /// The graph is no longer frozen then; what hooks have added to it is there.
    ///
    /// What hooks refuse; as [`Session::with_options`], [`Saver::restore_latest_with`] and
    /// [`Session::start_queue_runners`]; what initialisers refuse.
    pub fn start(mut self) -> Result<MonitoredSession<'h>> {
        for hook in &mut self.hooks {
            hook.begin(&self.start.graph)?;
        }
        let frozen = self.start.graph.freeze();
        self.start.find_variables();
        let has_saver = self.start.saver.is_some();
        let mut session = MonitoredSession {
            start: self.start,
            hooks: self.hooks,
            now: None,
            lost: None,
            is_end_wanted: AtomicBool::new(false),
            has_told_of_thread: AtomicBool::new(false),
            recoveries: self.recoveries.unwrap_or(RECOVERIES),
            n_recovered: 0,
            n_runs: 0,
            _frozen: frozen,
        };
        while let Err(failure) = session.make() {
            session.recover(failure)?;
        }
        session.n_recovered = 0;
        session.recoveries = self.recoveries.unwrap_or(if has_saver { RECOVERIES } else { 0 });
        Ok(session)
    }
}

impl MonitoredSession<'_> {
    /// As [`Session::run`], with what hooks add to it, and again in a new session where that helps.
    ///
    /// # Errors
    /// As [`Session::run`], and those of hooks and new sessions. If the run fails and a thread of the coordinator has
    /// failed, its error, which is the cause.
    pub fn run<F: Fetch>(&mut self, feeds: &[Feed<'_>], fetch: F) -> Result<F::Output> {
        self.run_with(feeds, fetch, RunOptions::default()).map(|(output, _)| output)
    }

    /// As [`Self::run`], with options, and says what the last attempt did.
    ///
    /// # Errors
    /// As [`Self::run`] and [`Session::run_with`].
    pub fn run_with<F: Fetch>(
        &mut self,
        feeds: &[Feed<'_>],
        fetch: F,
        options: RunOptions,
    ) -> Result<(F::Output, RunMetadata)> {
        loop {
            match self.thread_error().filter(|error| self.recovers(error)) {
                // Who has asked for the end has what was trained until then.
                Some(error) if !self.is_end_wanted() => self.recover(Failure::Session(error))?,
                _ => {}
            }
            match self.make().and_then(|()| self.attempt(feeds, &fetch, &options)) {
                Ok(given) => {
                    // A thread that fails again and again would have each run begin anew.
                    if self.thread_error().is_none() {
                        self.n_recovered = 0;
                    }
                    return Ok(given);
                }
                Err(failure) => self.recover(failure)?,
            }
        }
    }

    /// Whether somebody has asked for the end: a hook, [`Self::request_stop`], or a thread that has failed. Not a
    /// thread whose error the next run recovers from. Also if the last session could not be made anew.
    pub fn should_stop(&self) -> bool {
        let Some(now) = &self.now else { return true };
        if self.is_end_wanted() || !now.coordinator.should_stop() {
            return self.is_end_wanted();
        }
        let error = now.coordinator.check().err();
        let stops = !error.as_ref().is_some_and(|error| self.recovers(error));
        if stops && error.is_some() {
            self.has_told_of_thread.store(true, Ordering::Relaxed);
        }
        stops
    }

    /// Asks for the end, also of a session that is made in place of this one.
    pub fn request_stop(&self) {
        self.is_end_wanted.store(true, Ordering::Relaxed);
        self.now.iter().for_each(|now| now.coordinator.request_stop());
    }

    fn is_end_wanted(&self) -> bool {
        self.is_end_wanted.load(Ordering::Relaxed)
    }

    /// That for which a thread has failed.
    fn thread_error(&self) -> Option<Error> {
        self.now.as_ref()?.coordinator.check().err()
    }

    /// The session, for runs that no hook sees.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] if the last could not be made anew.
    pub fn session(&self) -> Result<&Session> {
        self.current().map(|now| &now.session)
    }

    /// The coordinator of the session's threads. A new session has a new one.
    ///
    /// # Errors
    /// As [`Self::session`].
    pub fn coordinator(&self) -> Result<&Coordinator> {
        self.current().map(|now| &now.coordinator)
    }

    /// Does `body`, and ends then: as [`Self::close`] does if there was no error or [`ErrorKind::OutOfRange`], else
    /// without the hooks' ends. Either way the threads have ended and the session is closed.
    ///
    /// # Errors
    /// Those of `body` but `OutOfRange`; those of [`Self::close`].
    pub fn supervise(mut self, body: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        match body(&mut self) {
            Err(error) if error.kind() != ErrorKind::OutOfRange => {
                self.discard();
                Err(error)
            }
            _ => self.close(),
        }
    }

    /// Lets the hooks end, stops and joins the threads, and closes the session. To drop it leaves out the hooks' ends.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] if the last session could not be made anew: no hook has ended. Those of the
    /// hooks, else that for which a thread has failed; but `Aborted` and `Unavailable` of a thread are only logged,
    /// unless they are why [`Self::should_stop`] was true.
    pub fn close(mut self) -> Result<()> {
        self.current()?;
        let Some(now) = self.now.take() else { return Ok(()) };
        let ended = self.hooks.iter_mut().try_for_each(|hook| hook.end(&now.session));
        let has_told = *self.has_told_of_thread.get_mut();
        let stopped = now.stop(self.start.grace).or_else(|error| {
            if has_told || !may_pass(&error) {
                return Err(error);
            }
            tracing::warn!("a thread has failed, which the training no longer needs: {error}");
            Ok(())
        });
        ended.and(stopped)
    }

    fn current(&self) -> Result<&Current> {
        self.now.as_ref().ok_or_else(|| {
            let why = self.lost.as_ref().map_or("", Error::message);
            let message = format!(
                "there is no session, as none could be made anew: {why}; run makes another"
            );
            Error::new(ErrorKind::FailedPrecondition, message)
        })
    }

    /// Makes a session, if there is none.
    fn make(&mut self) -> Result<(), Failure> {
        if self.now.is_some() {
            return Ok(());
        }
        let made = self.start.session().map_err(Failure::Session);
        let made = made.and_then(|now| self.begin(now));
        if let Err(Failure::Session(error) | Failure::Hook(error)) = &made {
            self.lost = Some(error.clone());
        }
        made
    }

    fn begin(&mut self, now: Current) -> Result<(), Failure> {
        let Current { session, coordinator } = &now;
        let started = session.start_queue_runners(coordinator).map_err(Failure::Session);
        let begun = started.and_then(|_| {
            let mut hooks = self.hooks.iter_mut();
            let begun = hooks.try_for_each(|hook| hook.after_create_session(session, coordinator));
            begun.map_err(Failure::Hook)
        });
        match begun {
            Ok(()) => {
                self.now = Some(now);
                Ok(())
            }
            Err(failure) => {
                let cause = now.stop(self.start.grace).err();
                Err(cause.map_or(failure, Failure::Session))
            }
        }
    }

    /// Makes a run with what hooks ask for.
    fn attempt<F: Fetch>(
        &mut self,
        feeds: &[Feed<'_>],
        fetch: &F,
        options: &RunOptions,
    ) -> Result<(F::Output, RunMetadata), Failure> {
        self.n_runs = self.n_runs.wrapping_add(1);
        let run = self.n_runs;
        let Some(Current { session, coordinator }) = &self.now else {
            return Err(Error::internal("a run without a session").into());
        };
        let end = End { is_wanted: &self.is_end_wanted, coordinator };
        let mut before = BeforeRun::new(session, end, run, options.clone());
        for hook in &mut self.hooks {
            hook.before_run(&mut before)?;
        }
        let BeforeRun { list, feeds: more, options, .. } = before;
        let mut all = Cow::Borrowed(feeds);
        for feed in more {
            if all.iter().any(|other| other.tensor.is(&feed.tensor)) {
                let message = "the same tensor is fed twice: by hooks, or by a hook and the caller";
                return Err(Error::invalid(message).with_node(feed.tensor.name()).into());
            }
            all.to_mut().push(feed);
        }
        let merged = Merged { fetch, hooks: &list };
        let ((output, values), metadata) = session.run_with(&all, merged, options.clone())?;
        let (values, metadata_of, options) = (&values[..], &metadata, &options);
        let after = AfterRun { session, end, run, values, metadata: metadata_of, options };
        for hook in &mut self.hooks {
            hook.after_run(&after).map_err(Failure::Hook)?;
        }
        Ok((output, metadata))
    }

    /// Whether another session may do better.
    fn recovers(&self, error: &Error) -> bool {
        may_pass(error) && self.n_recovered < self.recoveries
    }

    /// Makes room for another session, if that may do better.
    ///
    /// # Errors
    /// The cause, if not.
    fn recover(&mut self, failure: Failure) -> Result<()> {
        let error = match failure {
            Failure::Session(error) => self.thread_error().unwrap_or(error),
            Failure::Hook(error) => return Err(error),
        };
        if !self.recovers(&error) {
            return Err(error);
        }
        self.n_recovered += 1;
        tracing::warn!(
            "the session is made anew, from the newest checkpoint if there is one: {error}"
        );
        let asked = self.now.as_ref().is_some_and(|Current { coordinator, .. }| {
            coordinator.should_stop() && coordinator.check().is_ok()
        });
        *self.is_end_wanted.get_mut() |= asked;
        self.discard();
        Ok(())
    }

    /// Ends the session that there is. What its threads say is a consequence.
    fn discard(&mut self) {
        if let Some(Err(error)) = self.now.take().map(|now| now.stop(self.start.grace)) {
            tracing::debug!("a thread had failed: {error}");
        }
    }
}

impl Drop for MonitoredSession<'_> {
    fn drop(&mut self) {
        self.discard();
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Session(error)
    }
}

/// Whether it may be otherwise the next time.
fn may_pass(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Aborted | ErrorKind::Unavailable)
}

/// What the caller fetches, and behind it what hooks do.
struct Merged<'a, F> {
    fetch: &'a F,
    hooks: &'a FetchList,
}

impl<F: Fetch> Fetch for Merged<'_, F> {
    type Output = (F::Output, AllFetched);

    fn collect(&self, list: &mut FetchList) {
        self.fetch.collect(list);
        list.append(self.hooks);
    }

    fn take(&self, results: &mut FetchResults) -> Result<Self::Output> {
        let values = results.last(self.hooks.n_places());
        Ok((self.fetch.take(results)?, values))
    }
}

impl fmt::Debug for Monitor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (graph, hooks) = (self.start.graph.id(), self.hooks.len());
        write!(f, "Monitor of graph {graph} with {hooks} hooks")
    }
}

impl fmt::Debug for MonitoredSession<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (runs, hooks) = (self.n_runs, self.hooks.len());
        write!(f, "MonitoredSession after {runs} runs, with {hooks} hooks")
    }
}
