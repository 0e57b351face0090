//! Queue runners: which operations fill a queue again and again while a session works.
//!
//! Source: TensorFlow's `python/training/queue_runner_impl.py`. A session starts them.

use std::sync::Arc;

use crate::{Graph, NodeId, Operation, Queue, QueueSpec};

/// Operations that put elements into a queue, each run again and again on a thread of its own, and what ends them.
///
/// A session starts it. A thread ends when its operation gives `OutOfRange` or `Cancelled`: its own input is at an
/// end, or the queue was closed. The last thread to end closes the queue.
#[derive(Debug, Clone)]
pub struct QueueRunner {
    queue: Queue,
    enqueues: Vec<Operation>,
    close: Operation,
    cancel: Operation,
}

/// A runner as its graph keeps it, without handles to the graph.
#[derive(Debug)]
pub(crate) struct RunnerParts {
    queue: Arc<QueueSpec>,
    enqueues: Vec<NodeId>,
    close: NodeId,
    cancel: NodeId,
}

impl QueueRunner {
    /// A runner of `enqueues`, one thread for each; the same operation may come more than once.
    ///
    /// # Errors
    /// Said when it is started: operations of another graph.
    #[track_caller]
    pub fn new(queue: &Queue, enqueues: impl IntoIterator<Item = Operation>) -> Self {
        Self {
            queue: queue.clone(),
            enqueues: enqueues.into_iter().collect(),
            close: queue.close(),
            cancel: queue.close_and_cancel(),
        }
    }

    /// The queue that it fills.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// What it runs, one thread for each.
    pub fn enqueues(&self) -> &[Operation] {
        &self.enqueues
    }

    /// What closes the queue when all threads have ended by themselves.
    pub fn close(&self) -> &Operation {
        &self.close
    }

    /// What closes the queue when a stop was requested or a thread has failed: who waits for room is cancelled.
    pub fn cancel(&self) -> &Operation {
        &self.cancel
    }

    /// The name of the queue.
    pub fn name(&self) -> &str {
        &self.queue.spec().name
    }
}

impl Graph {
    /// Adds a runner to those that a session of the graph starts. One of another graph is left out.
    pub fn add_queue_runner(&self, runner: &QueueRunner) {
        let all = runner.enqueues.iter().chain([&runner.close]);
        if all.into_iter().any(|operation| operation.graph().id() != self.id()) {
            return;
        }
        let parts = RunnerParts {
            queue: runner.queue.shared_spec(),
            enqueues: runner.enqueues.iter().map(Operation::id).collect(),
            close: runner.close.id(),
            cancel: runner.cancel.id(),
        };
        self.write().queue_runners.push(parts);
    }

    /// The runners that were added, in order.
    pub fn queue_runners(&self) -> Vec<QueueRunner> {
        let operation = |&id: &NodeId| Operation::new(self.clone(), id);
        let runner = |parts: &RunnerParts| QueueRunner {
            queue: Queue::new(self.clone(), parts.queue.clone()),
            enqueues: parts.enqueues.iter().map(operation).collect(),
            close: operation(&parts.close),
            cancel: operation(&parts.cancel),
        };
        self.read().queue_runners.iter().map(runner).collect()
    }
}
