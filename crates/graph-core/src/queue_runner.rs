//! Queue runners: which operations fill a queue again and again while a session works.
//!
//! Source: TensorFlow's `python/training/queue_runner_impl.py`. A session starts them.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::graph::GraphState;
use crate::{
    BodyId, Class, ErrorKind, Graph, Node, NodeId, NodeList, OpError, Operation, Queue,
    QueueAction, QueueRole, QueueSpec,
};

/// How many threads the runners of a graph that is made of parts have at most.
const THREADS_MAX: usize = 4096;
/// How many nodes are looked at for what such a runner puts into its queue.
const NODES_MAX: usize = 1 << 22;

/// Operations that put elements into a queue, each run again and again on a thread of its own, and what ends them.
///
/// A session starts it. A thread ends when its operation gives [`ErrorKind::OutOfRange`] (see [`Self::ending_at`]) or
/// [`ErrorKind::Cancelled`]: its own input is at an end, or the queue was closed. The last thread to end closes the
/// queue.
#[derive(Debug, Clone)]
pub struct QueueRunner {
    queue: Queue,
    enqueues: Vec<Operation>,
    close: Operation,
    cancel: Operation,
    ends: Vec<ErrorKind>,
}

/// The nodes of a queue runner: see [`QueueRunner`].
#[derive(Debug, Clone)]
pub struct RunnerParts {
    /// What it runs, one thread for each.
    pub enqueues: Vec<NodeId>,
    /// What closes the queue when all threads have ended by themselves.
    pub close: NodeId,
    /// What closes the queue when a stop was requested or a thread has failed.
    pub cancel: NodeId,
    /// What ends a thread well, beside a cancel.
    pub ends: Vec<ErrorKind>,
}

/// A runner as its graph keeps it, without handles to the graph.
#[derive(Debug)]
pub(crate) struct KeptRunner {
    queue: Arc<QueueSpec>,
    pub(crate) parts: RunnerParts,
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
            ends: vec![ErrorKind::OutOfRange],
        }
    }

    /// Errors of these kinds are the end of what a thread puts, and no failure: `queue_closed_exception_types`. They
    /// take the place of [`ErrorKind::OutOfRange`] alone; [`ErrorKind::Cancelled`] always is one.
    #[must_use]
    pub fn ending_at(self, kinds: impl IntoIterator<Item = ErrorKind>) -> Self {
        Self { ends: kinds.into_iter().collect(), ..self }
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

    /// The kinds of errors that end a thread well, beside [`ErrorKind::Cancelled`].
    pub fn ends(&self) -> &[ErrorKind] {
        &self.ends
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
            enqueues: runner.enqueues.iter().map(Operation::id).collect(),
            close: runner.close.id(),
            cancel: runner.cancel.id(),
            ends: runner.ends.clone(),
        };
        self.write().queue_runners.push(KeptRunner { queue: runner.queue.shared_spec(), parts });
    }

    /// The runners that were added, in order.
    pub fn queue_runners(&self) -> Vec<QueueRunner> {
        let operation = |&id: &NodeId| Operation::new(self.clone(), id);
        let runner = |KeptRunner { queue, parts }: &KeptRunner| QueueRunner {
            queue: Queue::new(self.clone(), queue.clone()),
            enqueues: parts.enqueues.iter().map(operation).collect(),
            close: operation(&parts.close),
            cancel: operation(&parts.cancel),
            ends: parts.ends.clone(),
        };
        self.read().queue_runners.iter().map(runner).collect()
    }
}

impl GraphState {
    /// Adds runners of another graph, or of a file.
    pub(crate) fn restore_runners(&mut self, runners: Vec<RunnerParts>) -> Result<(), OpError> {
        let (mut n_threads, mut n_nodes) = (0usize, 0);
        for parts in runners {
            n_threads = n_threads.saturating_add(parts.enqueues.len());
            if n_threads > THREADS_MAX {
                let message = format!("queue runners of more than {THREADS_MAX} threads in all");
                return Err(OpError::Invalid(message));
            }
            let queue = parts.fills(&self.nodes, &mut n_nodes)?;
            self.queue_runners.push(KeptRunner { queue, parts });
        }
        Ok(())
    }
}

impl RunnerParts {
    /// The queue that it closes, and that each of its operations puts elements into, by itself or by what it needs.
    ///
    /// # Errors
    /// Nodes that are not among `nodes`, that lie in a body, or that do not do this.
    pub fn queue(&self, nodes: &NodeList) -> Result<Arc<QueueSpec>, OpError> {
        self.fills(nodes, &mut 0)
    }

    /// As [`Self::queue`]; counts the nodes that it looks at.
    fn fills(&self, nodes: &NodeList, n_nodes: &mut usize) -> Result<Arc<QueueSpec>, OpError> {
        let queue = closed_by(node(nodes, self.close)?, false)?;
        let cancelled = closed_by(node(nodes, self.cancel)?, true)?;
        if *queue != *cancelled {
            let (closed, cancelled) = (&queue.name, &cancelled.name);
            let message = format!("a queue runner closes queue '{closed}' or '{cancelled}'");
            return Err(OpError::Invalid(message));
        }
        let enqueues: BTreeSet<NodeId> = self.enqueues.iter().copied().collect();
        for id in enqueues {
            let enqueue = node(nodes, id)?;
            if enqueue.body != BodyId::GRAPH {
                let message =
                    format!("{} is run by a queue runner, and lies in a body", enqueue.name);
                return Err(OpError::Invalid(message));
            }
            if !puts_into(nodes, id, queue, n_nodes)? {
                let message = format!(
                    "{} is run by the runner of queue '{}', and puts nothing into it",
                    enqueue.name, queue.name
                );
                return Err(OpError::Invalid(message));
            }
        }
        Ok(queue.clone())
    }
}

fn node(nodes: &NodeList, id: NodeId) -> Result<&Arc<Node>, OpError> {
    let (at, n) = (id.0 as usize, nodes.len());
    if at >= n {
        let message = format!("a queue runner uses node {at}, and there are {n}");
        return Err(OpError::Invalid(message));
    }
    Ok(&nodes[at])
}

/// The queue that a node closes, as it is to.
fn closed_by(node: &Node, cancel_pending: bool) -> Result<&Arc<QueueSpec>, OpError> {
    match node.op.class() {
        Class::Queue(op)
            if op.action == QueueAction::Close { cancel_pending }
                && op.queue.role == QueueRole::Queue
                && op.among.is_empty()
                && node.body == BodyId::GRAPH =>
        {
            Ok(&op.queue)
        }
        _ => {
            let how = if cancel_pending { " and cancels who waits" } else { "" };
            let message = format!("expected what closes a queue{how}, got {}", node.name);
            Err(OpError::Invalid(message))
        }
    }
}

/// Whether an operation, or what it needs, puts elements into a queue.
fn puts_into(
    nodes: &NodeList,
    operation: NodeId,
    queue: &QueueSpec,
    n_nodes: &mut usize,
) -> Result<bool, OpError> {
    let mut seen: BTreeSet<NodeId> = BTreeSet::new();
    let mut stack = vec![operation];
    while let Some(id) = stack.pop() {
        if !seen.insert(id) {
            continue;
        }
        *n_nodes += 1;
        if *n_nodes > NODES_MAX {
            let message = format!("what queue runners run needs more than {NODES_MAX} nodes");
            return Err(OpError::Invalid(message));
        }
        let node = node(nodes, id)?;
        if let Class::Queue(op) = node.op.class()
            && matches!(op.action, QueueAction::Enqueue | QueueAction::EnqueueMany)
            && node.error().is_none()
        {
            let own = if op.among.is_empty() { std::slice::from_ref(&op.queue) } else { &op.among };
            if own.iter().any(|own| **own == *queue) {
                return Ok(true);
            }
        }
        if let Class::Flow(flow) = node.op.class() {
            let inside = flow.bodies().iter().flat_map(|body| &body.nodes);
            stack.extend(inside.map(|node| node.id));
        }
        stack.extend(
            node.inputs.iter().map(|input| input.node).chain(node.controls.iter().copied()),
        );
    }
    Ok(false)
}
