//! Queue runners at work: threads of a coordinator that fill the queues of a session.
//!
//! Source: TensorFlow's `python/training/queue_runner_impl.py`. There, one thread more waits for the stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use convoke_graph_core::{Error, ErrorKind, NodeId, Operation, QueueRunner, Result};
use convoke_input::{Coordinator, StopHook};

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
    /// A thread ends when its operation gives [`ErrorKind::OutOfRange`] or [`ErrorKind::Cancelled`], or the session is
    /// closed; then the last one closes the queue. Any other error stops the coordinator, whose join gives it. When a
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
            return Ok(0);
        }
        let own = token.clone();
        let team = Arc::new(Team {
            session: self.clone(),
            id,
            close: runner.close().clone(),
            cancel: runner.cancel().clone(),
            has_failed: AtomicBool::new(false),
            _hook: coordinator.on_stop(move || own.cancel()),
            token,
        });
        for (i, enqueue) in runner.enqueues().iter().enumerate() {
            let (team, enqueue) = (team.clone(), enqueue.clone());
            let name = format!("convoke-fill-{}-{i}", runner.name().replace('\0', "_"));
            let token = team.token.clone();
            let started =
                coordinator.spawn(name, move |coordinator| team.fill(&enqueue, coordinator));
            started.inspect_err(|_| token.cancel())?;
        }
        Ok(runner.enqueues().len())
    }
}

/// The threads of one runner. The last to end closes the queue.
struct Team {
    session: Session,
    id: NodeId,
    close: Operation,
    cancel: Operation,
    /// Cancelled when a stop is requested.
    token: CancelToken,
    has_failed: AtomicBool,
    _hook: StopHook,
}

impl Team {
    /// The life of a thread.
    fn fill(&self, enqueue: &Operation, coordinator: &Coordinator) -> Result<()> {
        let filled = self.repeat(enqueue, coordinator);
        match filled {
            Err(e) if matches!(e.kind(), ErrorKind::OutOfRange | ErrorKind::Cancelled) => Ok(()),
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
        // No instant is that far away.
        let timeout = Some(Duration::MAX);
        let options =
            RunOptions { timeout, cancel: Some(self.token.clone()), ..RunOptions::default() };
        while !coordinator.should_stop() {
            fill.call_with((), &options)?;
        }
        Ok(())
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        let has_failed = self.has_failed.load(Ordering::Relaxed) || std::thread::panicking();
        let is_forced = self.token.is_cancelled() || has_failed;
        let operation = if is_forced { &self.cancel } else { &self.close };
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
