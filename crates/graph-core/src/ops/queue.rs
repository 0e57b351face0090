//! Queues: elements that runs leave for later runs. What an operation takes, it takes before its run begins; what it
//! puts comes into the queue when the run has succeeded.
//!
//! Source: TensorFlow's `python/ops/data_flow_ops.py`. There, both happen in the middle of a step, and a step that
//! fails later has lost what it took.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::op::arity;
use crate::ops::registry::Decode;
use crate::{
    Attribute, Attributes, Backward, Class, DType, Dim, Dims, Error, Fact, Graph, HostTensor, Op,
    OpError, Operation, Result, Shape, Tensor,
};

/// In which order elements leave a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QueueKind {
    /// As they came.
    Fifo,
    /// As they came; elements of one batch may differ in sizes that the queue does not say, and are filled up with
    /// zeros, false or empty strings to the largest of the batch.
    PaddingFifo,
    /// At random, of at least one more than `min_after_dequeue` until the queue is closed. The same seed gives the
    /// same choices.
    RandomShuffle {
        /// So many stay behind, for the sake of mixing.
        min_after_dequeue: usize,
        /// Of the generator.
        seed: u64,
    },
    /// The least first component first: that is a scalar of i64. Equal ones as they came.
    Priority,
}

/// What a queue holds, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueSpec {
    /// The name of the queue's node, or the shared one.
    pub name: String,
    /// The container that it is in; none is the default one.
    pub container: Option<Arc<str>>,
    /// The order.
    pub kind: QueueKind,
    /// How many elements at most before who puts one waits; `None` is without bound.
    pub capacity: Option<usize>,
    /// The dtype and sizes of each component of an element.
    pub components: Vec<(DType, Dims)>,
}

/// What an operation does with a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QueueAction {
    /// The queue itself.
    Make,
    /// Puts an element: its components are the inputs.
    Enqueue,
    /// Puts as many elements as the inputs have rows.
    EnqueueMany,
    /// Takes an element: its components are the outputs.
    Dequeue,
    /// Takes so many elements, as batches.
    DequeueMany(usize),
    /// Takes so many elements, or those that are left in a closed queue, as batches.
    DequeueUpTo(usize),
    /// Gives the number of elements.
    Size,
    /// Gives whether the queue is closed.
    IsClosed,
    /// Closes the queue; cancels who waits to put elements, if so.
    Close {
        /// Whether they are cancelled, or wait on.
        cancel_pending: bool,
    },
}

/// An operation on a queue.
#[derive(Debug, Clone)]
pub struct QueueOp {
    /// The queue.
    pub queue: Arc<QueueSpec>,
    /// What it does.
    pub action: QueueAction,
}

/// What a new queue is to be.
#[derive(Debug, Clone)]
pub struct QueueOptions {
    /// The order.
    pub kind: QueueKind,
    /// How many elements at most; `None` is without bound.
    pub capacity: Option<usize>,
    /// Queues of the same shared name and container are one queue in a session. They must be alike.
    pub shared_name: Option<String>,
}

impl Default for QueueOptions {
    /// First in, first out, without bound, of its own.
    fn default() -> Self {
        Self { kind: QueueKind::Fifo, capacity: None, shared_name: None }
    }
}

/// A queue of a graph. Each session has elements of its own in it.
///
/// Runs that need an element wait until there is one, in the order in which they came, and so do those that put one
/// into a full queue. A run takes all that it needs at once and before it begins, and puts all that it puts when it
/// has succeeded: if it fails, every queue is as it was. An element that a run puts can be taken by later runs only.
#[derive(Debug, Clone)]
pub struct Queue {
    graph: Graph,
    spec: Arc<QueueSpec>,
}

impl Graph {
    /// A queue whose elements come out as they went in. `components` are the dtypes and sizes of what an element
    /// consists of.
    ///
    /// # Errors
    /// Recorded: a queue of no components.
    #[track_caller]
    pub fn fifo_queue<D: Into<Dims>>(
        &self,
        name: &str,
        capacity: usize,
        components: impl IntoIterator<Item = (DType, D)>,
    ) -> Queue {
        let capacity = Some(capacity);
        self.queue(name, components, QueueOptions { capacity, ..QueueOptions::default() })
    }

    /// A queue of any kind.
    ///
    /// # Errors
    /// Recorded: a queue of no components or no room, one by priority whose first component is no scalar of i64, one
    /// that keeps back more elements than it has room for.
    #[track_caller]
    pub fn queue<D: Into<Dims>>(
        &self,
        name: &str,
        components: impl IntoIterator<Item = (DType, D)>,
        options: QueueOptions,
    ) -> Queue {
        let QueueOptions { kind, capacity, shared_name } = options;
        let components: Vec<(DType, Dims)> =
            components.into_iter().map(|(dtype, dims)| (dtype, dims.into())).collect();
        let container = self.container_now();
        let mut spec = QueueSpec { name: name.to_owned(), container, kind, capacity, components };
        let op = QueueOp { queue: Arc::new(spec.clone()), action: QueueAction::Make };
        let node = self.apply_named(op, &[], name).node();
        spec.name = match shared_name {
            // No node has a name like that.
            Some(shared) => match &spec.container {
                Some(container) => format!("shared in {container}: {shared}"),
                None => format!("shared: {shared}"),
            },
            None => node.name.to_string(),
        };
        Queue::new(self.clone(), Arc::new(spec))
    }
}

impl Queue {
    pub(crate) fn new(graph: Graph, spec: Arc<QueueSpec>) -> Self {
        Self { graph, spec }
    }

    /// The graph that it belongs to.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    pub(crate) fn shared_spec(&self) -> Arc<QueueSpec> {
        self.spec.clone()
    }

    /// What it holds.
    pub fn spec(&self) -> &QueueSpec {
        &self.spec
    }

    #[track_caller]
    fn apply(&self, action: QueueAction, inputs: &[&Tensor]) -> Tensor {
        let op = QueueOp { queue: self.spec.clone(), action };
        let name =
            format!("{}_{}", self.spec.name.rsplit('/').next().unwrap_or("queue"), op.name());
        self.graph.apply_named(op, inputs, &name)
    }

    /// Puts an element with these components when the run has succeeded; the run waits for room before it begins.
    ///
    /// # Errors
    /// Recorded: another number of components, or other dtypes or sizes. In a run: `Cancelled` if the queue is
    /// closed.
    #[track_caller]
    pub fn enqueue(&self, components: &[&Tensor]) -> Operation {
        self.apply(QueueAction::Enqueue, components).operation()
    }

    /// Puts an element for each row of the components. The run waits for room for one; the others may be more than
    /// the capacity.
    ///
    /// # Errors
    /// As [`Self::enqueue`]; components of different numbers of rows.
    #[track_caller]
    pub fn enqueue_many(&self, components: &[&Tensor]) -> Operation {
        self.apply(QueueAction::EnqueueMany, components).operation()
    }

    /// The components of an element, which a run that needs one of them takes.
    ///
    /// # Errors
    /// In a run: `OutOfRange` if the queue is closed and empty.
    #[track_caller]
    pub fn dequeue(&self) -> Vec<Tensor> {
        self.apply(QueueAction::Dequeue, &[]).operation().outputs()
    }

    /// The components of `n` elements, as batches with a new first axis.
    ///
    /// # Errors
    /// Recorded: components of sizes that the queue does not say. In a run: `OutOfRange` if the queue is closed and
    /// has fewer elements, which stay there.
    #[track_caller]
    pub fn dequeue_many(&self, n: usize) -> Vec<Tensor> {
        self.apply(QueueAction::DequeueMany(n), &[]).operation().outputs()
    }

    /// As [`Self::dequeue_many`], but of a closed queue gives those that are left, if there is one.
    ///
    /// # Errors
    /// As [`Self::dequeue_many`]; `OutOfRange` only of an empty queue.
    #[track_caller]
    pub fn dequeue_up_to(&self, n: usize) -> Vec<Tensor> {
        self.apply(QueueAction::DequeueUpTo(n), &[]).operation().outputs()
    }

    /// How many elements there are when the run begins: a scalar of i32.
    #[track_caller]
    pub fn size(&self) -> Tensor {
        self.apply(QueueAction::Size, &[])
    }

    /// Whether the queue is closed when the run begins.
    #[track_caller]
    pub fn is_closed(&self) -> Tensor {
        self.apply(QueueAction::IsClosed, &[])
    }

    /// Closes the queue: nothing more is put into it, and what is there can be taken. Who waits for room already
    /// still gets it.
    ///
    /// # Errors
    /// In a run: `Cancelled` if it is closed already.
    #[track_caller]
    pub fn close(&self) -> Operation {
        self.apply(QueueAction::Close { cancel_pending: false }, &[]).operation()
    }

    /// Closes the queue, and ends runs that wait for room with `Cancelled`.
    ///
    /// # Errors
    /// As [`Self::close`].
    #[track_caller]
    pub fn close_and_cancel(&self) -> Operation {
        self.apply(QueueAction::Close { cancel_pending: true }, &[]).operation()
    }
}

impl QueueSpec {
    fn check(&self) -> Result<(), OpError> {
        let refuse = |message: String| Err(OpError::Invalid(message));
        if self.components.is_empty() {
            return refuse("a queue has at least one component".into());
        }
        if self.capacity == Some(0) {
            return refuse("a queue of capacity 0 has no room; give at least 1, or None".into());
        }
        match (self.kind, &self.components[0]) {
            (QueueKind::Priority, (DType::I64, dims)) if dims.rank() == Some(0) => Ok(()),
            (QueueKind::Priority, (dtype, dims)) => refuse(format!(
                "the first component of a queue by priority is a scalar of i64, and this is {dtype}{dims}"
            )),
            (QueueKind::RandomShuffle { min_after_dequeue, .. }, _)
                if self.capacity.is_some_and(|capacity| capacity <= min_after_dequeue) =>
            {
                let capacity = self.capacity.unwrap_or_default();
                refuse(format!(
                    "a queue of capacity {capacity} that keeps back {min_after_dequeue} gives nothing"
                ))
            }
            _ => Ok(()),
        }
    }

    /// The facts of elements of these components, with `first` before their sizes.
    fn facts(&self, first: Option<Dim>) -> Result<SmallVec<[Fact; 1]>, OpError> {
        let pads = self.kind == QueueKind::PaddingFifo;
        let fact = |(dtype, dims): &(DType, Dims)| {
            let Some(first) = first else { return Ok(Fact::new(*dtype, dims.clone())) };
            let sizes =
                dims.dims().filter(|dims| pads || dims.iter().all(|dim| dim.known().is_some()));
            let Some(sizes) = sizes else {
                let name = &self.name;
                return Err(OpError::Invalid(format!(
                    "batches of queue '{name}' need components of specified shapes, and one is {dtype}{dims}"
                )));
            };
            let sizes: SmallVec<[Dim; 6]> =
                std::iter::once(first).chain(sizes.iter().copied()).collect();
            Ok(Fact::new(*dtype, Dims::Known(sizes).checked()?))
        };
        self.components.iter().map(fact).collect()
    }

    fn expect_inputs(&self, inputs: &[Fact], many: bool) -> Result<(), OpError> {
        if inputs.len() != self.components.len() {
            return Err(OpError::Arity { expected: self.components.len(), found: inputs.len() });
        }
        let mut rows = Dim::Unknown;
        for (i, (fact, (dtype, dims))) in inputs.iter().zip(&self.components).enumerate() {
            let own = match (many, fact.dims.dims()) {
                (false, _) => fact.dims.clone(),
                (true, None) => Dims::UnknownRank,
                (true, Some([])) => {
                    let found = fact.dims.clone();
                    return Err(OpError::Rank { expected: 1, found });
                }
                (true, Some([first, rest @ ..])) => {
                    let shared = rows.unify(*first).ok_or_else(|| {
                        OpError::Invalid(format!(
                            "component {i} has {first:?} rows, and those before have {rows:?}"
                        ))
                    })?;
                    rows = shared;
                    Dims::Known(rest.iter().copied().collect())
                }
            };
            if fact.dtype != *dtype {
                return Err(OpError::DTypes { lhs: *dtype, rhs: fact.dtype });
            }
            dims.unify(&own).map_err(|_| {
                OpError::Invalid(format!(
                    "shape mismatch in component {i} of queue '{}': expected {dims}, got {own}",
                    self.name
                ))
            })?;
        }
        Ok(())
    }

    /// Checks the components of an element.
    ///
    /// # Errors
    /// One that has sizes that the queue does not take.
    pub fn check_element(&self, shapes: &[&Shape]) -> Result<()> {
        for (i, (shape, (_, dims))) in shapes.iter().zip(&self.components).enumerate() {
            if !dims.admits(shape) {
                let message = format!(
                    "shape mismatch in component {i} of queue '{}': expected {dims}, got {shape}",
                    self.name
                );
                return Err(Error::invalid(message));
            }
        }
        Ok(())
    }
}

impl Op for QueueOp {
    fn name(&self) -> &str {
        match self.action {
            QueueAction::Make => "queue",
            QueueAction::Enqueue => "enqueue",
            QueueAction::EnqueueMany => "enqueue_many",
            QueueAction::Dequeue => "dequeue",
            QueueAction::DequeueMany(_) => "dequeue_many",
            QueueAction::DequeueUpTo(_) => "dequeue_up_to",
            QueueAction::Size => "size",
            QueueAction::IsClosed => "is_closed",
            QueueAction::Close { .. } => "close",
        }
    }

    fn infer(&self, inputs: &[Fact]) -> Result<SmallVec<[Fact; 1]>, OpError> {
        self.queue.check()?;
        match self.action {
            QueueAction::Enqueue => self.queue.expect_inputs(inputs, false)?,
            QueueAction::EnqueueMany => self.queue.expect_inputs(inputs, true)?,
            _ => {
                let [] = arity(inputs)?;
            }
        }
        match self.action {
            QueueAction::Dequeue => self.queue.facts(None),
            QueueAction::DequeueMany(n) => self.queue.facts(Some(Dim::Known(n))),
            QueueAction::DequeueUpTo(_) => self.queue.facts(Some(Dim::Unknown)),
            QueueAction::Size => Ok([Fact::new(DType::I32, Vec::new())].into_iter().collect()),
            QueueAction::IsClosed => Ok([Fact::new(DType::Bool, Vec::new())].into_iter().collect()),
            _ => Ok(SmallVec::new()),
        }
    }

    fn eval(&self, _: &[HostTensor]) -> Result<SmallVec<[HostTensor; 1]>, OpError> {
        Err(OpError::Invalid("a queue has no elements outside of a session".into()))
    }

    fn gradient(&self, backward: &Backward<'_>) -> Vec<Option<Tensor>> {
        vec![None; backward.n_inputs()]
    }

    fn class(&self) -> Class<'_> {
        Class::Queue(self)
    }

    fn encode(&self) -> Option<Attributes> {
        Some(self.encoded())
    }
}

impl QueueOp {
    /// Whether its outputs are there before a run begins.
    pub fn is_source(&self) -> bool {
        use QueueAction::{Dequeue, DequeueMany, DequeueUpTo, IsClosed, Size};
        matches!(self.action, Dequeue | DequeueMany(_) | DequeueUpTo(_) | Size | IsClosed)
    }
}

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[("queue", |a| {
    Ok(Arc::new(QueueOp { queue: Arc::new(QueueSpec::decode(a, "")?), action: action(a)? }))
})];

impl QueueOp {
    fn encoded(&self) -> Attributes {
        let number = match self.action {
            QueueAction::DequeueMany(n) | QueueAction::DequeueUpTo(n) => Some(n),
            _ => None,
        };
        let cancels = match self.action {
            QueueAction::Close { cancel_pending } => Some(cancel_pending),
            _ => None,
        };
        let attributes = Attributes::of("queue")
            .with("action", self.name())
            .with_some("number", number)
            .with_some("cancel_pending", cancels);
        self.queue.encoded(attributes, "")
    }
}

impl QueueSpec {
    /// The attributes with its own, whose names begin with `prefix`.
    pub(crate) fn encoded(&self, attributes: Attributes, prefix: &str) -> Attributes {
        let Self { name, container, kind, capacity, components } = self;
        let (order, seed, behind) = match *kind {
            QueueKind::Fifo => ("fifo", None, None),
            QueueKind::PaddingFifo => ("padding_fifo", None, None),
            QueueKind::RandomShuffle { min_after_dequeue, seed } => {
                ("random_shuffle", Some(seed), Some(min_after_dequeue))
            }
            QueueKind::Priority => ("priority", None, None),
        };
        let dtypes: Attribute = components.iter().map(|(dtype, _)| *dtype).collect();
        let dims: Attribute = components.iter().map(|(_, dims)| dims.clone()).collect();
        let own = |name: &str| format!("{prefix}{name}");
        attributes
            .with(own("name"), name.as_str())
            .with_some(&own("container"), container.as_deref())
            .with(own("kind"), order)
            .with_some(&own("seed"), seed)
            .with_some(&own("min_after_dequeue"), behind)
            .with_some(&own("capacity"), *capacity)
            .with(own("dtypes"), dtypes)
            .with(own("dims"), dims)
    }

    /// The queue of attributes whose names begin with `prefix`.
    pub(crate) fn decode(a: &Attributes, prefix: &str) -> Result<Self, OpError> {
        let own = |name: &str| format!("{prefix}{name}");
        let kind = match a.text(&own("kind"))? {
            "fifo" => QueueKind::Fifo,
            "padding_fifo" => QueueKind::PaddingFifo,
            "random_shuffle" => QueueKind::RandomShuffle {
                min_after_dequeue: a.int(&own("min_after_dequeue"))?,
                seed: a.int(&own("seed"))?,
            },
            "priority" => QueueKind::Priority,
            other => return Err(OpError::Invalid(format!("there is no queue {other:?}"))),
        };
        let component = |pair: (&Attribute, &Attribute)| match pair {
            (Attribute::DType(dtype), Attribute::Dims(dims)) => {
                Ok((*dtype, dims.clone().checked()?))
            }
            other => Err(OpError::Invalid(format!("{other:?} are no dtype and dimensions"))),
        };
        let (dtypes, dims) = (a.list(&own("dtypes"))?, a.list(&own("dims"))?);
        let components = dtypes.iter().zip(dims).map(component);
        let (container, capacity) = (own("container"), own("capacity"));
        Ok(Self {
            name: a.text(&own("name"))?.to_owned(),
            container: a.get(&container).map(|_| a.text(&container)).transpose()?.map(Arc::from),
            kind,
            capacity: a.get(&capacity).map(|_| a.int(&capacity)).transpose()?,
            components: components.collect::<Result<_, _>>()?,
        })
    }
}

fn action(a: &Attributes) -> Result<QueueAction, OpError> {
    Ok(match a.text("action")? {
        "queue" => QueueAction::Make,
        "enqueue" => QueueAction::Enqueue,
        "enqueue_many" => QueueAction::EnqueueMany,
        "dequeue" => QueueAction::Dequeue,
        "dequeue_many" => QueueAction::DequeueMany(a.int("number")?),
        "dequeue_up_to" => QueueAction::DequeueUpTo(a.int("number")?),
        "size" => QueueAction::Size,
        "is_closed" => QueueAction::IsClosed,
        "close" => QueueAction::Close { cancel_pending: a.bool("cancel_pending")? },
        other => return Err(OpError::Invalid(format!("a queue does not {other:?}"))),
    })
}
