//! What files keep of queues: what they are, not what is in them.

use std::sync::Arc;

use super::{QueueAction, QueueKind, QueueOp, QueueRole, QueueSpec, Reduction};
use crate::ops::registry::Decode;
use crate::{Attribute, Attributes, OpError};

/// How files' operations are made.
pub(crate) const SAVED: &[(&str, Decode)] = &[("queue", |a| {
    let among = match a.get("n_among") {
        Some(_) => a.int::<u32>("n_among")?,
        None => 0,
    };
    let queue = |i| Ok(Arc::new(QueueSpec::decode(a, &among_prefix(i))?));
    let among = (0..among).map(queue).collect::<Result<_, OpError>>()?;
    let (queue, action) = (Arc::new(QueueSpec::decode(a, "")?), action(a)?);
    Ok(Arc::new(QueueOp { queue, action, among }))
})];

impl QueueAction {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Make => "queue",
            Self::Enqueue => "enqueue",
            Self::EnqueueMany => "enqueue_many",
            Self::Dequeue => "dequeue",
            Self::DequeueMany(_) => "dequeue_many",
            Self::DequeueUpTo(_) => "dequeue_up_to",
            Self::Size => "size",
            Self::IsClosed => "is_closed",
            Self::Close { .. } => "close",
            Self::Peek(_) => "peek",
            Self::Clear => "clear",
            Self::ApplyGradient => "apply_gradient",
            Self::TakeGradient(_) => "take_gradient",
            Self::SetStep => "set_global_step",
            Self::InsertMany { .. } => "insert_many",
            Self::TakeMany { .. } => "take_many",
            Self::IncompleteSize => "incomplete_size",
            Self::Put { .. } => "put",
            Self::GetKey => "get",
            Self::PeekKey => "peek_key",
        }
    }
}

/// What the names of the attributes of a queue begin with that the run may choose.
fn among_prefix(i: u32) -> String {
    format!("among_{i}_")
}

impl QueueOp {
    pub(super) fn encoded(&self) -> Attributes {
        let number = match self.action {
            QueueAction::DequeueMany(n)
            | QueueAction::DequeueUpTo(n)
            | QueueAction::Peek(n)
            | QueueAction::TakeGradient(n)
            | QueueAction::TakeMany { n, .. } => n,
            _ => None,
        };
        let cancels = match self.action {
            QueueAction::Close { cancel_pending } => Some(cancel_pending),
            _ => None,
        };
        let component = match self.action {
            QueueAction::InsertMany { component } => Some(component),
            _ => None,
        };
        let up_to = match self.action {
            QueueAction::TakeMany { up_to, .. } => Some(up_to),
            _ => None,
        };
        let places = match self.action {
            QueueAction::Put { places } => Some(places),
            _ => None,
        };
        let attributes = Attributes::of("queue")
            .with("action", self.action.name())
            .with_some("number", number)
            .with_some("cancel_pending", cancels)
            .with_some("component", component)
            .with_some("up_to", up_to)
            .with_some("places", places);
        let attributes = self.queue.encoded(attributes, "");
        if self.among.is_empty() {
            return attributes;
        }
        let attributes = attributes.with("n_among", self.among.len());
        let all = (0u32..).zip(self.among.iter());
        all.fold(attributes, |attributes, (i, queue)| queue.encoded(attributes, &among_prefix(i)))
    }
}

impl QueueSpec {
    /// The attributes with its own, whose names begin with `prefix`.
    pub(crate) fn encoded(&self, attributes: Attributes, prefix: &str) -> Attributes {
        let Self { name, container, kind, capacity, components, role } = self;
        let (order, seed, behind) = match *kind {
            QueueKind::Fifo => ("fifo", None, None),
            QueueKind::PaddingFifo => ("padding_fifo", None, None),
            QueueKind::RandomShuffle { min_after_dequeue, seed } => {
                ("random_shuffle", Some(seed), Some(min_after_dequeue))
            }
            QueueKind::Priority => ("priority", None, None),
        };
        let role = match *role {
            QueueRole::Queue => None,
            QueueRole::Staging => Some("staging"),
            QueueRole::Barrier => Some("barrier"),
            QueueRole::Accumulator(Reduction::Mean) => Some("mean"),
            QueueRole::Accumulator(Reduction::Sum) => Some("sum"),
            QueueRole::MapStaging => Some("map_staging"),
            QueueRole::SparseAccumulator(Reduction::Mean) => Some("sparse_mean"),
            QueueRole::SparseAccumulator(Reduction::Sum) => Some("sparse_sum"),
        };
        let dtypes: Attribute = components.iter().map(|(dtype, _)| *dtype).collect();
        let dims: Attribute = components.iter().map(|(_, dims)| dims.clone()).collect();
        let own = |name: &str| format!("{prefix}{name}");
        attributes
            .with(own("name"), name.as_str())
            .with_some(&own("container"), container.as_deref())
            .with(own("kind"), order)
            .with_some(&own("role"), role)
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
        let role = own("role");
        let role = match a.get(&role).map(|_| a.text(&role)).transpose()? {
            None => QueueRole::Queue,
            Some("staging") => QueueRole::Staging,
            Some("barrier") => QueueRole::Barrier,
            Some("mean") => QueueRole::Accumulator(Reduction::Mean),
            Some("sum") => QueueRole::Accumulator(Reduction::Sum),
            Some("map_staging") => QueueRole::MapStaging,
            Some("sparse_mean") => QueueRole::SparseAccumulator(Reduction::Mean),
            Some("sparse_sum") => QueueRole::SparseAccumulator(Reduction::Sum),
            Some(other) => return Err(OpError::Invalid(format!("no queue is for {other:?}"))),
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
            role,
        })
    }
}

/// How many elements, if that is fixed.
fn number(a: &Attributes) -> Result<Option<usize>, OpError> {
    a.get("number").map(|_| a.int("number")).transpose()
}

fn action(a: &Attributes) -> Result<QueueAction, OpError> {
    Ok(match a.text("action")? {
        "queue" => QueueAction::Make,
        "enqueue" => QueueAction::Enqueue,
        "enqueue_many" => QueueAction::EnqueueMany,
        "dequeue" => QueueAction::Dequeue,
        "dequeue_many" => QueueAction::DequeueMany(number(a)?),
        "dequeue_up_to" => QueueAction::DequeueUpTo(number(a)?),
        "size" => QueueAction::Size,
        "is_closed" => QueueAction::IsClosed,
        "close" => QueueAction::Close { cancel_pending: a.bool("cancel_pending")? },
        "peek" => QueueAction::Peek(number(a)?),
        "clear" => QueueAction::Clear,
        "apply_gradient" => QueueAction::ApplyGradient,
        "take_gradient" => QueueAction::TakeGradient(number(a)?),
        "set_global_step" => QueueAction::SetStep,
        "insert_many" => QueueAction::InsertMany { component: a.int("component")? },
        "take_many" => QueueAction::TakeMany { n: number(a)?, up_to: a.bool("up_to")? },
        "incomplete_size" => QueueAction::IncompleteSize,
        "put" => QueueAction::Put { places: a.int("places")? },
        "get" => QueueAction::GetKey,
        "peek_key" => QueueAction::PeekKey,
        other => return Err(OpError::Invalid(format!("a queue does not {other:?}"))),
    })
}
