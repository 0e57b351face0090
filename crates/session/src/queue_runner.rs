//! Queue runners at work: threads of a coordinator that fill the queues of a session.
//!
//! Source: TensorFlow's `python/training/queue_runner_impl.py`. There, one thread more waits for the stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use convoke_graph_core::{Error, ErrorKind, NodeId, Operation, QueueRunner, Result, Tensor};
use convoke_input::{Coordinator, StopHook};

use crate::callable::{Arguments, Callable};
use crate::cancel::CancelToken;
use crate::queues::puts_of;
use crate::session::{RunOptions, Session};

impl Session {
    /// Starts all queue runners of the graph, as [`Self::start_queue_runner`] does, and says how many threads that
    /// are.
    ///
    /// # Errors
    /// As [`Self::start_queue_runner`]; runners that are started already go on.
    pub fn start_queue_runners(&self, coordinator: &Coordinator) -> Result<usize> {
        let runners = self.graph().queue_runners();
        runners.iter().map(|runner| self.start_queue_runner(runner, coordinator)).sum()
    }

    /// Starts the threads of a queue runner, as threads of `coordinator`, and says how many: none if they are at work
    /// in this session already.
    ///
    /// A thread ends when its operation gives [`ErrorKind::OutOfRange`], or what [`QueueRunner::ending_at`] says, or
    /// [`ErrorKind::Cancelled`], or the session is closed; then the last one closes the queue. Any other error stops the coordinator, whose join gives it. When a
    /// stop is requested, runs that wait are cancelled, and the queue is closed with those that wait for room in it.
    /// The session's timeout is not for these runs. They keep the session: request a stop, or close it, to be rid of
    /// it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a runner of another graph; [`ErrorKind::FailedPrecondition`] for a closed
    /// session; [`ErrorKind::ResourceExhausted`] if the system refuses a thread: the others end then.
    pub fn start_queue_runner(
        &self,
        runner: &QueueRunner,
        coordinator: &Coordinator,
    ) -> Result<usize> {
        let Some(team) = self.team(runner, coordinator)? else { return Ok(0) };
        for (i, enqueue) in runner.enqueues().iter().enumerate() {
            let enqueue = enqueue.clone();
            team.spawn(i, coordinator, move |team, coordinator| {
                team.repeat(&enqueue, coordinator)
            })?;
        }
        Ok(runner.enqueues().len())
    }

    /// Starts a thread of `coordinator` that runs the one operation of `runner` for each item of `input`, which are
    /// values for `feeds`, in their order; and says whether it did: not if the runner is at work in this session
    /// already. With the end of `input`, the queue is closed, and who waits for more of it than it has is told.
    ///
    /// An item that is an error ends the thread, as one of the operation does: see [`Self::start_queue_runner`].
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a runner of another number of operations than one, and as
    /// [`Self::callable`]; as [`Self::start_queue_runner`].
    ///
    /// # Source
    /// What TensorFlow's users write as a thread that runs `enqueue` with a `feed_dict` again and again.
    pub fn start_queue_input<I, A>(
        &self,
        runner: &QueueRunner,
        feeds: &[&Tensor],
        input: I,
        coordinator: &Coordinator,
    ) -> Result<bool>
    where
        I: IntoIterator<Item = Result<A>>,
        I::IntoIter: Send + 'static,
        A: Arguments<'static>,
    {
        let [enqueue] = runner.enqueues() else {
            let (name, n) = (runner.name(), runner.enqueues().len());
            return Err(Error::invalid(format!(
                "expected one operation that puts what is fed into queue '{name}', got {n}"
            )));
        };
        let fill = self.callable(feeds, enqueue.clone())?;
        let Some(team) = self.team(runner, coordinator)? else { return Ok(false) };
        let input = input.into_iter();
        team.spawn(0, coordinator, |team, coordinator| team.feed(fill, input, coordinator))?;
        Ok(true)
    }

    /// What the threads of a runner share, unless they are at work already or there would be none.
    fn team(&self, runner: &QueueRunner, coordinator: &Coordinator) -> Result<Option<Arc<Team>>> {
        self.core.check_open()?;
        let own = self.graph().id();
        let all = runner.enqueues().iter().chain([runner.close()]);
        if all.into_iter().any(|operation| operation.graph().id() != own) {
            let name = runner.name();
            let message = format!("the runner of queue '{name}' is of another graph");
            return Err(Error::invalid(message));
        }
        let id = runner.close().id();
        let token = CancelToken::new();
        let graph = self.graph().snapshot();
        let puts = runner.enqueues().iter().flat_map(|enqueue| puts_of(&graph, enqueue.id()));
        let puts: Vec<NodeId> = puts.collect();
        if runner.enqueues().is_empty() || !self.core.queues.start_runner(id, &token, puts) {
            return Ok(None);
        }
        let own = token.clone();
        Ok(Some(Arc::new(Team {
            session: self.clone(),
            id,
            runner: runner.clone(),
            has_failed: AtomicBool::new(false),
            _hook: coordinator.on_stop(move || own.cancel()),
            token,
        })))
    }
}

/// The threads of one runner. The last to end closes the queue.
struct Team {
    session: Session,
    id: NodeId,
    runner: QueueRunner,
    /// Cancelled when a stop is requested.
    token: CancelToken,
    has_failed: AtomicBool,
    _hook: StopHook,
}

impl Team {
    /// Starts a thread, which is `fill`; if the system refuses it, the others end.
    fn spawn(
        self: &Arc<Self>,
        number: usize,
        coordinator: &Coordinator,
        fill: impl FnOnce(&Self, &Coordinator) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let name = format!("convoke-fill-{}-{number}", self.runner.name().replace('\0', "_"));
        let team = self.clone();
        let started = coordinator
            .spawn(name, move |coordinator| team.ended(fill(&team, coordinator), coordinator));
        started.inspect_err(|_| self.token.cancel())
    }

    /// What a thread leaves that has ended so.
    fn ended(&self, filled: Result<()>, coordinator: &Coordinator) -> Result<()> {
        match filled {
            Err(e) if e.kind() == ErrorKind::Cancelled => Ok(()),
            Err(e) if self.runner.ends().contains(&e.kind()) => Ok(()),
            Err(_) if self.session.core.check_open().is_err() => Ok(()),
            Err(error) => {
                self.has_failed.store(true, Ordering::Relaxed);
                // Before the queue is closed: who takes from it asks the coordinator why.
                let _who_joined_has_gone = coordinator.request_stop_with(error.clone());
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    fn repeat(&self, enqueue: &Operation, coordinator: &Coordinator) -> Result<()> {
        let fill = self.session.callable(&[], enqueue)?;
        let options = self.options();
        while !coordinator.should_stop() {
            fill.call_with((), &options)?;
        }
        Ok(())
    }

    fn feed<A: Arguments<'static>>(
        &self,
        fill: Callable<Operation>,
        input: impl Iterator<Item = Result<A>>,
        coordinator: &Coordinator,
    ) -> Result<()> {
        let options = self.options();
        for values in input {
            if coordinator.should_stop() {
                break;
            }
            fill.call_with(values?, &options)?;
        }
        Ok(())
    }

    fn options(&self) -> RunOptions {
        // No instant is that far away.
        let timeout = Some(Duration::MAX);
        RunOptions { timeout, cancel: Some(self.token.clone()), ..RunOptions::default() }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        let has_failed = self.has_failed.load(Ordering::Relaxed) || std::thread::panicking();
        let is_forced = self.token.is_cancelled() || has_failed;
        let operation = if is_forced { self.runner.cancel() } else { self.runner.close() };
        match self.session.run(&[], operation) {
            // Closed by somebody else, or the session is.
            Err(e) if e.kind() == ErrorKind::Cancelled => {}
            Err(_) if self.session.core.check_open().is_err() => {}
            Err(e) => tracing::error!("{}: the queue stays open: {e}", operation.name()),
            Ok(()) => {}
        }
        self.session.core.queues.end_runner(self.id);
    }
}
